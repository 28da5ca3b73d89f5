"""What a regulariser draws for a sequence, and how a step is given it."""

from collections.abc import Callable
from typing import Any

import jax

from lstm_jax.cells.base import Cell, Params, State

NoisyStep = Callable[[State, jax.Array, Any], tuple[State, jax.Array]]


def noisy_step(
    cell: Cell, params: Params, key: jax.Array | None, shape: tuple[int, ...]
) -> tuple[NoisyStep, Any]:
    """A step that takes its noise as an input, and that noise for each step of a sequence.

    Args:
      cell: a cell; one with a method ``noisy`` (see :class:`Regularizer`) is noisy where
        ``key`` is given.
      params: its parameters.
      key: a random key; None for a step without noise.
      shape: of the inputs, ``[T, ..., D]``.

    Returns:
      ``(run, noise)``: ``run(state, x, noise_t)`` is one step, and ``noise`` a pytree whose
      arrays have time as their first axis.
    """
    if key is None or not hasattr(cell, "noisy"):
        return lambda state, x, _: cell.step(params, state, x), None
    return cell.noisy(params, key, shape)
