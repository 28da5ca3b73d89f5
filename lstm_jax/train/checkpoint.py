"""Checkpoints: written whole or not at all, checked when read, never unpickled."""

import hashlib
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lstm_jax.errors import UserError
from lstm_jax.train.step import TrainState

# Orbax reports each step of its work; a run prints what concerns its user itself.
logging.getLogger("absl").setLevel(logging.ERROR)


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


class Checkpoints:
    """The checkpoints of a run: the latest few and the best, each a numbered folder.

    Beside the state a checkpoint holds ``meta``, plain JSON: the place in the data, what has
    been summed up since the last line of figures, and a digest of the state.

    Args:
      folder: where they lie; made if missing.
      keep: how many of the latest are kept, beside the best.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        policies = ocp.checkpoint_managers
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["loss"],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                enable_async_checkpointing=False,
            ),
            item_names=("state", "meta"),
        )

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, the latest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, state: TrainState, meta: dict[str, Any], loss: float | None) -> None:
        """Writes a checkpoint, in one move from a temporary folder.

        Args:
          state: what training goes on from.
          meta: what else it needs; JSON.
          loss: validation loss, by which the best is chosen; None where there is none.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            # Left from before this run was taken up from an earlier checkpoint.
            self._manager.delete(step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                meta=ocp.args.JsonSave({**meta, "digest": digest(state)}),
            ),
            metrics=None if loss is None else {"loss": loss},
            force=True,
        )

    def best_step(self) -> int | None:
        """The step of the lowest validation loss, or the latest where none was taken."""
        losses = {}
        for step in self.steps():
            file = self.folder / str(step) / "metrics" / "metrics"
            if file.exists():
                losses[step] = json.loads(file.read_text())["loss"]
        return min(losses, key=lambda step: (losses[step], step), default=self.latest_step())

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
        self._manager.close()
