"""Checkpoints: written atomically, verified when read, never unpickled."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lstm_jax.errors import UserError
from lstm_jax.train.step import TrainState

# Orbax logs each step of its work. A run prints its own messages instead.
logging.getLogger("absl").setLevel(logging.CRITICAL)

TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of folders that are being written
FILES = "files.json"  # in each checkpoint: the SHA-256 of every other file of it


class DamagedCheckpoint(UserError):  # noqa: N818 - describes the checkpoint
    """A checkpoint with a wrong digest or a broken structure.

    A file that cannot be read now, because of a missing permission or a disk or network error, does
    not count as damaged: its content may be intact.
    """


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
    def stop(error: OSError) -> None:
        raise error  # a folder that cannot be listed is not an empty one

    paths = [
        pathlib.Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=stop)
        for name in names
        if name not in (FILES, f"{FILES}.part")
    ]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
    }


def _known_digests(folder: pathlib.Path) -> dict[str, str]:
    """The stored digests; empty if the process was killed before it wrote them."""
    try:
        known = json.loads((folder / FILES).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise DamagedCheckpoint(f"{folder}: damaged checkpoint ({FILES} is not JSON)") from error
    if not isinstance(known, dict) or not known:
        raise DamagedCheckpoint(f"{folder}: damaged checkpoint ({FILES} holds no digests)")
    return known


def _meta_digest(meta: dict[str, Any]) -> str:
    """SHA-256 of the metadata, for a checkpoint whose ``files.json`` is missing."""
    content = {name: value for name, value in meta.items() if name != "meta_digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _held_loss(folder: pathlib.Path) -> float | None:
    """The validation loss of a checkpoint; None if it was not measured.

    It is read without Orbax, which cannot open a damaged checkpoint at all.

    Raises:
      DamagedCheckpoint: the loss is missing, or its file has changed.
    """
    name = "meta/metadata"
    known = _known_digests(folder)
    try:
        content = (folder / name).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DamagedCheckpoint(f"{folder}: damaged checkpoint ({name} is missing)") from error
    if known and hashlib.sha256(content).hexdigest() != known.get(name):
        raise DamagedCheckpoint(f"{folder}: damaged checkpoint ({name} has changed)")
    try:
        meta = json.loads(content)
        intact = meta.get("meta_digest", _meta_digest(meta)) == _meta_digest(meta)
        loss = None if meta["loss"] is None else float(meta["loss"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{folder}: damaged checkpoint ({name} is not JSON)") from error
    if not intact:
        raise DamagedCheckpoint(f"{folder}: damaged checkpoint ({name} has changed)")
    return loss


def _unreadable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror}); nothing was deleted")


def _safe_path(folder: pathlib.Path) -> tuple[pathlib.Path, contextlib.ExitStack]:
    """A path to a folder that Orbax reads literally, and the exit stack that removes it.

    Orbax interprets ``[`` and ``**`` in a path as patterns, and ``gs:`` as the address of a bucket.
    For such a folder the path is a symbolic link to it.
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
    """Keeps the steps that a function chooses; `Checkpoints` itself tracks the losses."""

    def __init__(self, kept: Callable[[list[int]], set[int | None]]):
        self._kept = kept

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        kept = self._kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of a run: the latest few and the best, each in a numbered folder.

    Besides the state, a checkpoint holds ``meta``, plain JSON: the position in the data, the sums
    since the last line of metrics, and a digest of the state.

    Args:
      folder: contains the checkpoints; created if missing.
      keep: the number of latest checkpoints that are kept besides the best.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        self.folder = folder.absolute()
        self._keep = keep
        self._losses: dict[int, float] = {}
        self._damaged: dict[int, DamagedCheckpoint] = {}  # their losses are unknown
        self._read_back = False  # whether a checkpoint of this process has been read
        path, self._link = _safe_path(self.folder)
        try:
            self._manager = ocp.CheckpointManager(
                path,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_LatestAndBest(self._kept),
                    enable_async_checkpointing=False,
                ),
                item_names=("state", "meta"),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # of damaged metadata
            self._link.close()
            self._refuse_damaged()
            raise UserError(f"{self.folder}: its checkpoints cannot be listed ({error})") from error
        try:
            self._read_losses()
        except OSError as error:
            self.close()
            raise _unreadable(self.folder, error) from error

    def _refuse_damaged(self) -> None:
        for path in sorted(self.folder.iterdir()):
            if path.name.isdigit():
                try:
                    self._check_files(path)
                except DamagedCheckpoint as error:
                    raise DamagedCheckpoint(
                        f"{error}; remove its folder to use the others"
                    ) from error

    def _read_losses(self) -> None:
        for step in self.steps():
            try:
                loss = _held_loss(self.folder / str(step))
            except DamagedCheckpoint as error:
                self._damaged[step] = error
            else:
                if loss is not None:
                    self._losses[step] = loss

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, latest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, state: TrainState, meta: dict[str, Any], loss: float | None) -> None:
        """Writes a checkpoint to a temporary folder and renames it.

        The first one is read back, so that a path or disk that loses data is noticed immediately.

        Args:
          state: the state from which training resumes.
          meta: everything else that resuming needs; JSON.
          loss: the quantity that selects the best checkpoint, where lower is better: the validation
            loss, unless the task selects by another metric; None if it was not measured.

        Raises:
          UserError: the checkpoint cannot be written, or cannot be read back.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            # An earlier process wrote it before this run was resumed from an earlier checkpoint.
            self._delete(step)
        if loss is not None:
            self._losses[step] = loss
        content = {**meta, "loss": loss, "digest": digest(state)}
        content["meta_digest"] = _meta_digest(content)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    # Arrays on the host: for sharded arrays Orbax would compile a slice for each
                    # shape.
                    state=ocp.args.StandardSave(jax.device_get(state)),
                    meta=ocp.args.JsonSave(content),
                ),
                force=True,
            )
            part = self.folder / str(step) / f"{FILES}.part"
            part.write_text(json.dumps(_digests(self.folder / str(step))), "utf-8")
            part.replace(self.folder / str(step) / FILES)
        except Exception as error:  # a full disk can fail in any of several libraries
            reason = str(error.strerror if isinstance(error, OSError) else error)
            reason = reason.strip().partition("\n")[0][:200]
            last = max((n for n in self.steps() if n != step), default=None)
            raise UserError(
                f"{self.folder / str(step)}: cannot be written ({reason}); "
                f"the last good checkpoint is {'none' if last is None else f'that of step {last}'}"
            ) from error
        if not self._read_back:
            self.restore(step, jax.device_get(state))
            self._read_back = True

    def best_step(self) -> int | None:
        """The step with the lowest validation loss, or the latest step if none was measured.

        Raises:
          DamagedCheckpoint: the loss of a checkpoint is unreadable, and it could be the lowest.
        """
        for step in self.steps():
            if step in self._damaged:
                raise DamagedCheckpoint(
                    f"{self._damaged[step]}, which could be the best; remove its folder to use "
                    "the others"
                ) from self._damaged[step]
        return self._best_of(self.steps())

    def _best_of(self, steps: Iterable[int]) -> int | None:
        known = [step for step in steps if step in self._losses]
        best = min(known, key=lambda step: (self._losses[step], step), default=None)
        return max(steps, default=None) if best is None else best

    def _kept(self, steps: list[int]) -> set[int | None]:
        return {*sorted(steps)[-self._keep :], self._best_of(steps)}

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The checkpoint of a step.

        Args:
          step: one of :meth:`steps`.
          like: a state with the same structure, shapes, types and shardings.

        Raises:
          DamagedCheckpoint: the checkpoint is damaged.
          UserError: it cannot be read, or does not fit ``like``.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
        restored, fault = self._restore(step, args)
        state, meta = restored["state"], restored["meta"]
        self._check_meta(meta, fault)
        if meta.get("digest") != digest(state):
            raise fault("digest differs")
        if int(state.step) != step:
            raise fault(f"it holds step {int(state.step)}")
        return state, meta

    def meta(self, step: int) -> dict[str, Any]:
        """The metadata of a checkpoint (JSON); raises the same errors as :meth:`restore`."""
        restored, fault = self._restore(step, ocp.args.Composite(meta=ocp.args.JsonRestore()))
        self._check_meta(restored["meta"], fault)
        return restored["meta"]

    def _check_meta(self, meta: Any, fault: Callable[[str], UserError]) -> None:
        if not isinstance(meta, dict):
            raise fault("meta")
        if meta.get("meta_digest", _meta_digest(meta)) != _meta_digest(meta):
            raise fault("meta has changed")

    def _restore(self, step: int, args: Any) -> tuple[Any, Callable[[str], UserError]]:
        """The items that Orbax reads, and a function that makes the error for wrong content."""
        folder = self.folder / str(step)
        intact = self._check_files(folder)

        def fault(reason: str) -> UserError:
            if intact:
                return UserError(f"{folder}: its files are intact, but do not fit ({reason})")
            return DamagedCheckpoint(f"{folder}: damaged checkpoint ({reason})")

        try:
            return self._manager.restore(step, args=args), fault
        except FileNotFoundError as error:
            raise fault("a file is missing") from error
        except OSError as error:
            raise _unreadable(folder, error) from error
        except Exception as error:  # a damaged file can fail in any of several libraries
            reason = str(error).strip().splitlines()
            raise fault(f"{type(error).__name__}: {reason[0][:100] if reason else ''}") from error

    def _check_files(self, folder: pathlib.Path) -> bool:
        """Compares the files with their digests, since Orbax reports damage only from threads.

        Returns:
          Whether the files are known to be intact. If the digests are missing, only the digest of
          the state can reveal damage.
        """
        try:
            known, found = _known_digests(folder), _digests(folder)
        except OSError as error:
            raise _unreadable(folder, error) from error
        folders = {name.partition("/")[0] for name in found}
        for name in known or ("state", "meta"):
            if name not in (found if known else folders):
                raise DamagedCheckpoint(f"{folder}: damaged checkpoint ({name} is missing)")
            if known and found[name] != known[name]:
                raise DamagedCheckpoint(f"{folder}: damaged checkpoint ({name} has changed)")
        return bool(known)

    def restore_latest(
        self, like: TrainState, warn: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest intact checkpoint; None if there are no checkpoints.

        A damaged checkpoint after it is skipped with a warning and deleted, since training will
        reach its step again. A damaged checkpoint before it is also deleted with a warning: it can
        no longer be the best.

        Raises:
          UserError: every checkpoint is damaged, or one cannot be read; nothing is deleted.
        """
        steps = self.steps()
        for step in steps:
            try:
                restored = self.restore(step, like)
            except DamagedCheckpoint as error:
                warn(f"{error}; the one before it is used")
                continue
            for newer in steps[: steps.index(step)]:
                self._delete(newer)
            for older in steps[steps.index(step) + 1 :]:
                try:
                    self._check_files(self.folder / str(older))
                except DamagedCheckpoint as error:
                    warn(f"{error}; it is removed")
                    self._delete(older)
            return restored
        if steps:
            raise UserError(f"{self.folder}: every checkpoint is damaged; start in a new workdir")
        return None

    def _delete(self, step: int) -> None:
        self._manager.delete(step)
        self._losses.pop(step, None)
        self._damaged.pop(step, None)

    def remove_unfinished(self) -> None:
        """Removes the remains of an interrupted save. Only the training process may call this."""
        for path in self.folder.iterdir():
            if path.is_dir() and TEMPORARY in path.name:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Waits for pending writes."""
        with self._link:
            self._manager.close()
