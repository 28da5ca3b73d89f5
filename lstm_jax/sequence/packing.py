"""Packing: short documents concatenated into long rows, and their outputs split again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lstm_jax.cells.base import check_size


class Packed(NamedTuple):
    """Documents packed into rows by :func:`pack`.

    Attributes:
      xs: the documents' steps, ``[T, B, D...]``; zeros where a row is not full.
      segment_ids: int32 ``[T, B]``: 1, 2, ... for a row's first, second, ... document, 0 for
        padding.  :func:`resets_from_segments` makes resets of them.
      lengths: int32 ``[B]``, the number of steps of each row that are used.
      rows: int32 ``[N]``, the row of each document.
      starts: int32 ``[N]``, the step at which each begins.
      sizes: int32 ``[N]``, the number of steps of each.
    """

    xs: np.ndarray
    segment_ids: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


def pack(documents: Sequence[Any], num_steps: int) -> Packed:
    """Packs documents of different lengths into rows of ``num_steps`` steps.

    Each document is placed as a whole into the first row that has room for it.  With
    ``resets=resets_from_segments(packed.segment_ids)`` and ``lengths=packed.lengths`` a layer
    computes the same outputs as with one document per row, and :func:`unpack` returns the
    outputs of each document.  Runs in NumPy, on the host.

    Args:
      documents: N arrays ``[T_i, D...]`` of one feature shape; T_i from 0 to ``num_steps``.
      num_steps: T, the steps of a row.

    Returns:
      A :class:`Packed` with as many rows as needed, B, in the common type of the documents.

    Raises:
      ValueError: there is no document, one is longer than ``num_steps``, has no time axis,
        or differs in its feature shape from the first.
      TypeError: ``num_steps`` is not an integer.

    Example:
      >>> import numpy as np
      >>> packed = pack([np.full((n, 1), n) for n in (3, 4, 2)], num_steps=5)
      >>> packed.segment_ids.T.tolist()
      [[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]]
      >>> [document[:, 0].tolist() for document in unpack(packed.xs, packed)]
      [[3, 3, 3], [4, 4, 4, 4], [2, 2]]

    References:
      David S. Johnson et al., "Worst-Case Performance Bounds for Simple One-Dimensional
      Packing Algorithms", SIAM Journal on Computing 3(4), 1974 (first fit).
    """
    check_size("num_steps", num_steps)
    arrays = [np.asarray(document) for document in documents]
    if not arrays:
        raise ValueError("documents must contain at least one document, got none")
    for n, array in enumerate(arrays):
        if array.ndim < 1 or array.shape[1:] != arrays[0].shape[1:]:
            wanted = ", ".join(map(str, ("T", *arrays[0].shape[1:])))
            raise ValueError(
                f"documents[{n}] must be [{wanted}] as the first one is, got shape {array.shape}"
            )
        if len(array) > num_steps:
            raise ValueError(
                f"documents[{n}] must have at most num_steps={num_steps} steps, got {len(array)}"
            )

    room = np.full(len(arrays), num_steps)  # at most one row for each document
    sizes = np.array([len(array) for array in arrays], np.int32)
    rows, starts = np.zeros_like(sizes), np.zeros_like(sizes)
    for n, size in enumerate(sizes):
        rows[n] = row = np.argmax(room >= size)
        starts[n] = num_steps - room[row]
        room[row] -= size

    shape = (num_steps, rows.max() + 1)
    xs = np.zeros((*shape, *arrays[0].shape[1:]), np.result_type(*arrays))
    segment_ids = np.zeros(shape, np.int32)
    for array, row, start, size in zip(arrays, rows, starts, sizes, strict=True):
        xs[start : start + size, row] = array
        segment_ids[start : start + size, row] = segment_ids[:start, row].max(initial=0) + 1
    lengths = (num_steps - room[: shape[1]]).astype(np.int32)
    return Packed(xs, segment_ids, lengths, rows, starts, sizes)


def unpack(ys: Any, packed: Packed) -> list[Any]:
    """The outputs of each document, in the order of the arguments of :func:`pack`.

    Args:
      ys: ``[T, B, ...]``, one output for each step of the rows.
      packed: what :func:`pack` returned.

    Returns:
      N arrays ``[T_i, ...]``: NumPy arrays, or JAX arrays if ``ys`` is traced (inside ``jit`` or
      ``grad``, where ``packed`` must not be an argument of the traced function).

    Raises:
      ValueError: ``ys`` does not have the time and batch axes of ``packed``.

    Example:
      >>> import numpy as np
      >>> packed = pack([np.ones((3, 1)), np.ones((2, 1))], num_steps=5)
      >>> [document.tolist() for document in unpack(packed.segment_ids, packed)]
      [[1, 1, 1], [2, 2]]
    """
    if np.shape(ys)[:2] != packed.segment_ids.shape:
        raise ValueError(
            f"ys must have the time and batch axes of packed, {packed.segment_ids.shape}, "
            f"got shape {np.shape(ys)}"
        )
    if not isinstance(ys, jax.core.Tracer):
        ys = np.asarray(ys)
    places = zip(packed.rows, packed.starts, packed.sizes, strict=True)
    return [ys[start : start + size, row] for row, start, size in places]
