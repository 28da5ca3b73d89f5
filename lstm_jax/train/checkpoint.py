"""Checkpoints: written whole or not at all, checked when read, never unpickled."""

import contextlib
import hashlib
import json
import logging
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lstm_jax.errors import UserError
from lstm_jax.train.step import TrainState

# Orbax reports each step of its work; a run prints what concerns its user itself.
logging.getLogger("absl").setLevel(logging.ERROR)

FILES = "files.json"  # in each checkpoint: the SHA-256 of every other file of it


def digest(tree: Any) -> str:
    """SHA-256 of the names, types, shapes and bytes of a tree of arrays.

    >>> digest({"a": np.zeros(2)}) == digest({"a": np.zeros(2)})
    True
    >>> digest({"a": np.zeros(2)}) == digest({"a": np.ones(2)})
    False
    """
    hashed = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        hashed.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def _digests(folder: pathlib.Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (FILES, f"{FILES}.part")
    }


def _safe_path(folder: pathlib.Path) -> tuple[pathlib.Path, contextlib.ExitStack]:
    """A path to a folder that Orbax reads literally, and what removes it.

    Orbax takes ``[`` and ``**`` in a path as patterns, and ``gs:`` as the address of a bucket.
    Such a folder is reached through a symbolic link.
    """
    link = contextlib.ExitStack()
    if re.fullmatch(r"[\w /.-]*", str(folder)):
        return folder, link
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix="lstm_jax-")
        link.callback(temporary.cleanup)
        path = pathlib.Path(temporary.name) / "checkpoints"
        path.symlink_to(folder, target_is_directory=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    return path, link


class _LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the steps that a function chooses; losses are the business of `Checkpoints`."""

    def __init__(self, kept: Callable[[list[int]], set[int | None]]):
        self._kept = kept

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        kept = self._kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of a run: the latest few and the best, each a numbered folder.

    Beside the state a checkpoint holds ``meta``, plain JSON: the place in the data, what has
    been summed up since the last line of metrics, and a digest of the state.

    Args:
      folder: where they lie; made if missing.
      keep: how many of the latest are kept, beside the best.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        self.folder = folder.absolute()
        self._keep = keep
        self._losses: dict[int, float] = {}
        self._read_back = False  # whether a checkpoint of this process has been read
        path, self._link = _safe_path(self.folder)
        self._manager = ocp.CheckpointManager(
            path,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self._kept),
                enable_async_checkpointing=False,
            ),
            item_names=("state", "meta"),
        )
        for step in self.steps():
            # Read by hand: Orbax would fail altogether on a damaged one.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                meta = json.loads((self.folder / str(step) / "meta" / "metadata").read_text())
                self._losses[step] = float(meta["loss"])

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, the latest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, state: TrainState, meta: dict[str, Any], loss: float | None) -> None:
        """Writes a checkpoint, in one move from a temporary folder.

        The first one is read back, so that a path or disk that loses data is noticed at once.

        Args:
          state: what training goes on from.
          meta: what else it needs; JSON.
          loss: validation loss, by which the best is chosen; None where there is none.

        Raises:
          UserError: the checkpoint is written but cannot be read.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            # Left from before this run was taken up from an earlier checkpoint.
            self._manager.delete(step)
        self._losses.pop(step, None)
        if loss is not None:
            self._losses[step] = loss
        self._manager.save(
            step,
            args=ocp.args.Composite(
                # From the host: of sharded arrays Orbax would compile a slice of each shape.
                state=ocp.args.StandardSave(jax.device_get(state)),
                meta=ocp.args.JsonSave({**meta, "loss": loss, "digest": digest(state)}),
            ),
            force=True,
        )
        part = self.folder / str(step) / f"{FILES}.part"
        part.write_text(json.dumps(_digests(self.folder / str(step))), "utf-8")
        part.replace(self.folder / str(step) / FILES)
        if not self._read_back:
            self.restore(step, jax.device_get(state))
            self._read_back = True

    def best_step(self) -> int | None:
        """The step of the lowest validation loss, or the latest where none was taken."""
        return self._best_of(self.steps())

    def _best_of(self, steps: Iterable[int]) -> int | None:
        known = [step for step in steps if step in self._losses]
        best = min(known, key=lambda step: (self._losses[step], step), default=None)
        return max(steps, default=None) if best is None else best

    def _kept(self, steps: list[int]) -> set[int | None]:
        return {*sorted(steps)[-self._keep :], self._best_of(steps)}

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, None where there is none."""
        return max(self.steps(), default=None)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The checkpoint of a step.

        Args:
          step: one of :meth:`steps`.
          like: a state with the same structure, shapes, types and shardings.

        Raises:
          UserError: the checkpoint is damaged.
        """
        self._check_files(step)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore()
                ),
            )
            state, meta = restored["state"], restored["meta"]
            whole = meta["digest"] == digest(state)
        except Exception as error:  # a damaged file can fail in any of several libraries
            reason = str(error).strip().splitlines()
            raise UserError(
                f"{self.folder / str(step)}: damaged checkpoint "
                f"({type(error).__name__}: {reason[0][:100] if reason else ''})"
            ) from error
        if not whole:
            raise UserError(f"{self.folder / str(step)}: damaged checkpoint (digest differs)")
        return state, meta

    def meta(self, step: int) -> dict[str, Any]:
        """What a checkpoint holds beside the state.

        Raises:
          UserError: the checkpoint is damaged.
        """
        self._check_files(step)
        try:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            return self._manager.restore(step, args=args)["meta"]
        except Exception as error:
            raise UserError(f"{self.folder / str(step)}: damaged checkpoint (meta)") from error

    def _check_files(self, step: int) -> None:
        """Compares files with their digests: Orbax fails loudly in threads on damaged ones.

        Where the digests themselves are missing, since the process was killed just before
        they were written, the digest of the state alone must do.
        """
        folder = self.folder / str(step)
        try:
            known = json.loads((folder / FILES).read_text("utf-8"))
        except FileNotFoundError:
            known = {}
        except ValueError as error:
            raise UserError(f"{folder}: damaged checkpoint ({FILES} is no JSON)") from error
        found = _digests(folder)
        for name in known or ("state", "meta"):
            if not (folder / name).exists():
                raise UserError(f"{folder}: damaged checkpoint ({name} is missing)")
            if known and found[name] != known[name]:
                raise UserError(f"{folder}: damaged checkpoint ({name} has changed)")

    def restore_latest(
        self, like: TrainState, warn: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest checkpoint that is whole; None where there is none at all.

        A damaged one is passed over with a warning and deleted, since training will come to
        its step again.

        Raises:
          UserError: there are checkpoints, but every one is damaged.
        """
        steps = self.steps()
        for step in steps:
            try:
                restored = self.restore(step, like)
            except UserError as error:
                warn(f"{error}; passed over for the one before it")
                continue
            for newer in steps[: steps.index(step)]:
                self._manager.delete(newer)
            return restored
        if steps:
            raise UserError(f"{self.folder}: every checkpoint is damaged; start in a new workdir")
        return None

    def close(self) -> None:
        """Waits for what is being written."""
        with self._link:
            self._manager.close()
