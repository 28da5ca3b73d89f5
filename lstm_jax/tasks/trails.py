"""Handwriting as moves of a pen from point to point, and as arrays for a model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lstm_jax.models.handwriting_synthesis import END, LIFT, ON


class Trail(NamedTuple):
    """A piece of handwriting as moves between points.

    Attributes:
      moves: float32 ``[N - 1, 2]``.
      kinds: the kind of each point, ``ON``, ``LIFT`` or ``END``, int32 ``[N]``.
    """

    moves: np.ndarray
    kinds: np.ndarray


def trail_of(strokes: Sequence[np.ndarray]) -> Trail:
    """The moves of a piece of handwriting.

    >>> trail_of([np.zeros((2, 2)), np.ones((1, 2))]).kinds.tolist()
    [0, 1, 2]
    """
    points = np.concatenate(strokes)
    kinds = np.full(len(points), ON, np.int32)
    kinds[np.cumsum([len(stroke) for stroke in strokes]) - 1] = LIFT
    kinds[-1] = END
    return Trail(np.diff(points, axis=0).astype(np.float32), kinds)


def trails_of(pieces: Sequence[Sequence[np.ndarray]], unit: float) -> list[Trail]:
    """The moves of pieces of handwriting, divided by a unit."""
    return [trail_of([stroke / unit for stroke in strokes]) for strokes in pieces]


def strokes_from(moves: np.ndarray, kinds: np.ndarray) -> list[np.ndarray]:
    """The strokes of a piece from its moves, starting at the origin.

    Args:
      moves: ``[N - 1, 2]``.
      kinds: the kinds of all points, ``[N]``.

    >>> [len(stroke) for stroke in strokes_from(np.ones((2, 2)), np.array([0, 1, 2]))]
    [2, 1]
    """
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    ends = np.flatnonzero(kinds[:-1] != ON) + 1
    return np.split(points, ends)


def padded_trails(trails: Sequence[Trail], length: int) -> dict[str, np.ndarray]:
    """The inputs and targets of a model for some pieces.

    Returns:
      ``moves`` ``[B, T, 3]``, the move to each point except the last (zeros for the first) and
      whether a stroke ends there; ``targets`` ``[B, T, 2]``, the move to the next point; ``kinds``
      ``[B, T]``, the kind of the next point; ``mask`` ``[B, T]``, true before the end.
    """
    rows = len(trails)
    batch: dict[str, np.ndarray] = {
        "moves": np.zeros((rows, length, 3), np.float32),
        "targets": np.zeros((rows, length, 2), np.float32),
        "kinds": np.zeros((rows, length), np.int32),
        "mask": np.zeros((rows, length), bool),
    }
    for row, (moves, kinds) in enumerate(trails):
        count = len(moves)
        batch["moves"][row, 1:count, :2] = moves[:-1]
        batch["moves"][row, :count, 2] = kinds[:-1] != ON
        batch["targets"][row, :count] = moves
        batch["kinds"][row, :count] = kinds[1:]
        batch["mask"][row, :count] = True
    return batch


def padded_text(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Labels as int32 ``[B, U]``, with at least one zero past the end of each row."""
    text = np.zeros((len(labels), 1 + max(map(len, labels))), np.int32)
    for row, letters in zip(text, labels, strict=True):
        row[: len(letters)] = letters
    return text
