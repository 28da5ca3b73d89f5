"""A run's folder: its config, its format, the metadata that prediction needs, and its lock."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from lstm_jax._files import write_content
from lstm_jax.config import Config, config_from, differing_keys, load_config, write_config
from lstm_jax.errors import UserError
from lstm_jax.train.files import locked, read_sealed, sealed

CONFIG_FILE = "config.toml"
RUN_FILE = "run.json"
NUM_STEPS = "train.num_steps"
FORMAT = 2
"""The version of the layout of a run's folder; version 1 had no ``run.json``."""


def load_workdir(workdir: pathlib.Path) -> Config:
    """The config of the run in a folder.

    Raises:
      UserError: the folder holds no run, its format is not supported, or its config was edited (the
        message names the differing keys).

    >>> load_workdir(pathlib.Path("/no/such/run"))
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/run: no run here (expected a config.toml)
    """
    held = read_run_file(workdir)
    config = load_config(workdir / CONFIG_FILE)
    if "config" in held:
        _refuse_edited(workdir, held["config"], config)
    return config


def stored_metadata(workdir: pathlib.Path) -> dict[str, Any]:
    """The task's metadata, as stored with the run."""
    return read_run_file(workdir)["metadata"]


def read_run_file(workdir: pathlib.Path) -> dict[str, Any]:
    """The content of ``run.json``: ``format``, ``metadata`` and the run's original ``config``.

    Raises the same errors as :func:`load_workdir`.
    """
    if not (workdir / CONFIG_FILE).is_file():
        raise UserError(f"{workdir}: no run here (expected a {CONFIG_FILE})")
    path = workdir / RUN_FILE
    held = read_sealed(path, "run") if path.exists() else {"format": 1}
    found = held.get("format")
    if found != FORMAT:
        raise UserError(
            f"{workdir}: expected a run folder of format {FORMAT}, got format {found!r}; train the "
            "run again, or use the version of lstm_jax that wrote it"
        )
    if not isinstance(held.get("metadata"), dict):
        raise UserError(f"{path}: expected the JSON of a run, got something else")
    return held


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, config: Config, metadata: Mapping[str, Any]) -> Iterator[None]:
    """Claims a folder for this process: creates it or checks that it fits, and locks it.

    Raises:
      UserError: another process works in the folder, it holds a run with another config (the
        message names the differing keys), or it cannot be created.
    """
    with locked(workdir, "training"):
        if (workdir / CONFIG_FILE).exists():
            _refuse_other(workdir, config)
        else:
            _begin(workdir, config, metadata)
        yield


def _begin(workdir: pathlib.Path, config: Config, metadata: Mapping[str, Any]) -> None:
    """Writes a new run's files; the config is last, so a folder that has one is complete."""
    held = sealed({"format": FORMAT, "metadata": metadata, "config": config.as_dict()})
    write_content(workdir / RUN_FILE, json.dumps(held, ensure_ascii=False, indent=1) + "\n")
    write_config(config, workdir / CONFIG_FILE)


def _refuse_edited(workdir: pathlib.Path, first: Any, config: Config) -> None:
    """Raises an error if config.toml is neither the original config nor a longer run of it."""
    if not isinstance(first, dict):
        raise UserError(f"{workdir / RUN_FILE}: config: expected a section, got {first!r:.40}")
    began = config_from(first, str(workdir / RUN_FILE), {}, workdir)
    differing = differing_keys(began, config)
    if set(differing) == {NUM_STEPS} and config.train.num_steps > began.train.num_steps:
        _check_extension(began)
    elif differing:
        keys = ", ".join(
            f"{key} ({old!r} when the run began, {new!r} now)"
            for key, (old, new) in differing.items()
        )
        raise UserError(
            f"{workdir / CONFIG_FILE}: edited since the run began: {keys}; undo this, or train "
            "the new config in another --workdir"
        )


def _refuse_other(workdir: pathlib.Path, config: Config) -> None:
    """Raises an error if the folder's config is a different one; a longer run is permitted."""
    stored = load_workdir(workdir)
    differing = differing_keys(stored, config)
    if set(differing) == {NUM_STEPS} and config.train.num_steps > stored.train.num_steps:
        _check_extension(stored)
        write_config(config, workdir / CONFIG_FILE)
        return
    if differing:
        keys = ", ".join(
            f"{key} ({old!r} in the folder, {new!r} requested)"
            for key, (old, new) in differing.items()
        )
        raise UserError(
            f"{workdir}: holds a run with another config: {keys}; take another --workdir"
        )


def _check_extension(config: Config) -> None:
    """Raises an error if the learning rate of past steps depends on the number of steps."""
    if config.optimizer.schedule == "cosine":
        raise UserError(
            f"{NUM_STEPS}: expected {config.train.num_steps}, where the cosine schedule of this "
            "run ends; a longer run needs optimizer.schedule constant, exponential or "
            "inverse_sqrt, or a new run with train.init_from"
        )
