"""A run's folder: whose config it holds, and who may write in it."""

import contextlib
import pathlib
from collections.abc import Iterator

import filelock

from lstm_jax.errors import UserError
from lstm_jax.train.config import Config, differing_keys, load_config, write_config

CONFIG_FILE = "config.toml"


def load_workdir(workdir: pathlib.Path) -> Config:
    """The config of the run in a folder.

    Raises:
      UserError: the folder holds no run.

    >>> load_workdir(pathlib.Path("/no/such/run"))
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/run: no run here (expected a config.toml)
    """
    if not (workdir / CONFIG_FILE).is_file():
        raise UserError(f"{workdir}: no run here (expected a {CONFIG_FILE})")
    return load_config(workdir / CONFIG_FILE)


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, config: Config) -> Iterator[None]:
    """The folder as this process's own: made or found to fit, and locked against others.

    The lock is the operating system's and goes with the process, however it ends.

    Raises:
      UserError: another process is at work in the folder, it holds a run with another config
        (the differing keys are named), or it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be made a folder ({error.strerror})") from error
    lock = filelock.FileLock(workdir / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{workdir}: another process is training in this folder") from error
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror})") from error
    try:
        if (workdir / CONFIG_FILE).exists():
            _refuse_other(workdir, config)
        else:
            write_config(config, workdir / ".config.part")
            (workdir / ".config.part").replace(workdir / CONFIG_FILE)
        yield
    finally:
        lock.release()


def _refuse_other(workdir: pathlib.Path, config: Config) -> None:
    differing = differing_keys(load_workdir(workdir), config)
    if differing:
        keys = ", ".join(
            f"{key} ({old!r} there, {new!r} asked)" for key, (old, new) in differing.items()
        )
        raise UserError(
            f"{workdir}: holds a run with another config: {keys}; take another --workdir"
        )
