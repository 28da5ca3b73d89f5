"""Nearest neighbours of sequences by dynamic time warping."""

from collections.abc import Sequence

import numpy as np


def warped_distances(one: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """The distance of a sequence to each of several others, by dynamic time warping.

    With the Euclidean distance d of two steps, and sequences of S and T steps::

        D(s, t) = d(x_s, y_t) + min(D(s - 1, t), D(s, t - 1), D(s - 1, t - 1))
        distance = D(S, T) / (S + T)

    Args:
      one: ``[S, D]``.
      others: sequences ``[T_n, D]``.

    Returns:
      ``[N]``, in the type of ``one``.

    >>> warped_distances(np.array([[0.0], [1.0]]), [np.array([[0.0], [0.0], [2.0]])]).tolist()
    [0.2]

    References:
      Hiroaki Sakoe, Seibi Chiba, "Dynamic programming algorithm optimization for spoken word
      recognition", IEEE Transactions on Acoustics, Speech, and Signal Processing 26, 1978.
    """
    S, lengths = len(one), np.array([len(other) for other in others])
    longest = lengths.max()
    padded = np.stack([np.pad(y, ((0, longest - len(y)), (0, 0))) for y in others])
    squares = np.square(one).sum(-1)[:, None] + np.square(padded).sum(-1)[:, None]
    products = np.einsum("sd,ntd->nst", one, padded, optimize=True)
    steps = np.sqrt((squares - 2 * products).clip(min=0))  # [N, S, T]
    total = np.full((len(others), S + 1, longest + 1), np.inf, one.dtype)
    total[:, 0, 0] = 0
    for diagonal in range(2, S + longest + 1):  # each diagonal depends on the previous two
        s = np.arange(max(1, diagonal - longest), min(S, diagonal - 1) + 1)
        t = diagonal - s
        before = np.minimum(total[:, s - 1, t], total[:, s, t - 1])
        total[:, s, t] = steps[:, s - 1, t - 1] + np.minimum(before, total[:, s - 1, t - 1])
    return total[np.arange(len(others)), S, lengths] / (S + lengths)


def nearest(sequences: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """The index of the nearest other sequence to each sequence, integers ``[N]``.

    >>> nearest([np.zeros((2, 1))], [np.ones((3, 1)), np.zeros((5, 1))]).tolist()
    [1]
    """
    return np.array([warped_distances(one, others).argmin() for one in sequences])
