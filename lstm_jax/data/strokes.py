"""Operations on pen paths: size and slant, resampling, distortion, features.

All functions work on many pieces of handwriting at once, whose points are concatenated.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEATURES = 6
"""Features of a point; see :func:`features`."""


class Paths(NamedTuple):
    """The points of B pieces of handwriting with S strokes in all.

    Attributes:
      points: float64 ``[P, 2]``, x to the right and y upwards.
      stroke: the stroke of each point, increasing integers ``[P]`` from 0 to S - 1.
      piece: the piece of each stroke, increasing integers ``[S]`` from 0 to B - 1.

    >>> Paths(np.zeros((3, 2)), np.array([0, 0, 1]), np.array([0, 0])).piece.size
    2
    """

    points: np.ndarray
    stroke: np.ndarray
    piece: np.ndarray

    @property
    def owner(self) -> np.ndarray:
        """The piece of each point, ``[P]``."""
        return self.piece[self.stroke]

    @property
    def moves(self) -> np.ndarray:
        """Each point minus the previous one; zeros at the first point of a piece, ``[P, 2]``."""
        moves = np.diff(self.points, axis=0, prepend=self.points[:1])
        moves[1:][np.diff(self.owner) > 0] = 0
        return moves

    @property
    def lifted(self) -> np.ndarray:
        """Whether the pen was lifted on the way to each point, booleans ``[P]``."""
        return np.diff(self.stroke, prepend=self.stroke[:1]) > 0

    @property
    def drawn(self) -> np.ndarray:
        """The moves during which the pen touched the paper; zeros for other points."""
        return np.where(self.lifted[:, None], 0, self.moves)


def paths_of(pieces: Sequence[Sequence[np.ndarray]]) -> Paths:
    """The strokes of some pieces of handwriting, ``[N, 2]`` each, as :class:`Paths`.

    >>> paths = paths_of([[np.zeros((2, 2)), np.ones((1, 2))], [np.ones((3, 2))]])
    >>> paths.stroke.tolist(), paths.piece.tolist()
    ([0, 0, 1, 2, 2, 2], [0, 0, 1])
    """
    strokes = [stroke for piece in pieces for stroke in piece]
    counts = [len(stroke) for stroke in strokes]
    points = np.concatenate([np.zeros((0, 2)), *strokes])
    stroke = np.repeat(np.arange(len(strokes)), counts)
    return Paths(points, stroke, np.repeat(np.arange(len(pieces)), [len(p) for p in pieces]))


def strokes_of(paths: Paths) -> list[list[np.ndarray]]:
    """The strokes of each piece: the inverse of :func:`paths_of`."""
    strokes = np.split(paths.points, np.flatnonzero(np.diff(paths.stroke)) + 1)
    bounds = np.searchsorted(paths.piece, np.arange(paths.piece[-1] + 2))
    return [strokes[a:b] for a, b in itertools.pairwise(bounds)]


def _sums(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Sums of the points' values over each piece, ``[B]``."""
    return np.bincount(owner, values, minlength=owner[-1] + 1)


def slants(paths: Paths) -> np.ndarray:
    """The slant of each piece: how far its downward moves go to the left per unit down, ``[B]``.

    ``sum(dx) / sum(dy)`` over the moves with ``dy < -|dx|``, clipped to -1 to 1; 0 if there is no
    such move.

    >>> slants(paths_of([[np.array([[1.0, 2.0], [0.0, 0.0]])]]))
    array([0.5])
    """
    dx, dy = paths.drawn.T
    down = dy < -abs(dx)
    along, height = (_sums(np.where(down, d, 0), paths.owner) for d in (dx, dy))
    return np.divide(along, height, out=np.zeros(len(height)), where=height < 0)


def normalised(paths: Paths) -> Paths:
    """Upright handwriting of a standard size: a shear removes the slant, then :func:`scaled`.

    >>> word = normalised(paths_of([[np.array([[5.0, 20.0], [0.0, 10.0], [5.0, 10.0]])]]))
    >>> word.points.round(2).tolist()
    [[0.0, 1.41], [0.0, -0.71], [1.06, -0.71]]
    """
    points = paths.points.copy()
    points[:, 0] -= slants(paths)[paths.owner] * points[:, 1]
    return scaled(paths._replace(points=points))


def scaled(paths: Paths) -> Paths:
    """Handwriting of a standard size, centred at height 0.

    In each piece the heights y, weighted by the length of ink, have mean 0 and deviation 1. x
    starts at 0 on the left and has the same scale. A piece whose height is less than a tenth of its
    width is scaled by its width.

    >>> word = scaled(paths_of([[np.array([[1.0, 20.0], [1.0, 10.0], [6.0, 10.0]])]]))
    >>> word.points.round(2).tolist()
    [[0.0, 1.41], [0.0, -0.71], [1.06, -0.71]]
    """
    owner, points = paths.owner, paths.points
    length = np.hypot(*paths.drawn.T)
    # Each end of a move counts half of its length; in a piece without length, points count equally.
    weight = length.copy()
    weight[:-1] += length[1:]
    weight = np.where(_sums(length, owner)[owner] > 0, weight, 1.0)
    total, y = _sums(weight, owner), points[:, 1]
    mean = _sums(weight * y, owner) / total
    y = y - mean[owner]
    deviation = np.sqrt(_sums(weight * y**2, owner) / total)
    starts = np.searchsorted(owner, np.arange(owner[-1] + 1))
    left, right = (f.reduceat(points[:, 0], starts) for f in (np.minimum, np.maximum))
    size = np.maximum(deviation, (right - left) / 10)
    size = np.where(size > 0, size, 1.0)[owner]
    return paths._replace(points=np.stack([(points[:, 0] - left[owner]) / size, y / size], 1))


def resampled(paths: Paths, spacing: float, longest: int | None = None) -> Paths:
    """The same strokes with equally spaced points.

    A stroke of length L is divided into ``max(1, round(L / spacing))`` equal parts.

    Args:
      paths: the strokes.
      spacing: the distance between points.
      longest: the largest number of points of a piece, more than twice its strokes; a longer piece
        gets a larger spacing. None for no limit.

    >>> line = resampled(paths_of([[np.array([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]])]]), 1.0)
    >>> line.points[:, 0].tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    distances = np.full(paths.piece[-1] + 1, spacing)
    if longest is not None:
        total = _sums(np.hypot(*paths.drawn.T), paths.owner)
        room = np.maximum(longest - 2 * np.bincount(paths.piece), 1)
        distances = np.maximum(distances, total / room)
    # The position along all strokes, concatenated with gaps of length 1.
    place = np.cumsum(np.hypot(*paths.drawn.T)) + paths.stroke
    numbers = np.arange(len(paths.piece))
    first = place[np.searchsorted(paths.stroke, numbers)]
    length = place[np.searchsorted(paths.stroke, numbers, "right") - 1] - first
    parts = np.maximum(1, np.rint(length / distances[paths.piece])).astype(int)
    stroke = np.repeat(numbers, parts + 1)
    k = np.arange(len(stroke)) - (np.cumsum(parts + 1) - parts - 1)[stroke]
    wanted = first[stroke] + length[stroke] * k / parts[stroke]
    points = np.stack([np.interp(wanted, place, column) for column in paths.points.T], 1)
    return Paths(points, stroke, paths.piece)


def distorted(
    paths: Paths, rng: np.random.Generator, *, slant: float, scale: float, turn: float, warp: float
) -> Paths:
    """The same pieces with random distortions.

    Args:
      paths: normalised strokes.
      rng: the source of the random numbers.
      slant: deviation of a shear ``x + s y``.
      scale: deviation of the logarithms of the factors of x and y.
      turn: deviation of the rotation angle of a piece, in radians.
      warp: deviation of the displacement of points by a smooth random field, sines with wavelengths
        of about a letter. Whole strokes are displaced with half this deviation.

    >>> word = paths_of([[np.array([[1.0, 2.0], [0.0, 0.0]])]])
    >>> same = distorted(word, np.random.default_rng(0), slant=0, scale=0, turn=0, warp=0)
    >>> np.array_equal(same.points, word.points)
    True
    """
    owner, count = paths.owner, paths.piece[-1] + 1
    factors = np.exp(scale * rng.normal(size=(count, 2)))
    shear, angle = slant * rng.normal(size=count), turn * rng.normal(size=count)
    # Frequencies of a letter's width, two waves for each coordinate.
    waves = rng.normal(size=(count, 2, 2, 2))
    phases, heights = rng.uniform(0, 2 * np.pi, (count, 2, 2)), rng.normal(size=(count, 2, 2))
    shifts = warp / 2 * rng.normal(size=(len(paths.piece), 2))
    inside = np.einsum("pd,pcwd->pcw", paths.points, waves[owner]) + phases[owner]
    points = paths.points + warp * (heights[owner] * np.sin(inside)).sum(-1) + shifts[paths.stroke]
    points = points * factors[owner]
    x, y = (points + np.stack([shear[owner] * points[:, 1], np.zeros(len(points))], 1)).T
    cos, sin = np.cos(angle)[owner], np.sin(angle)[owner]
    return paths._replace(points=np.stack([cos * x - sin * y, sin * x + cos * y], 1))


def features(paths: Paths) -> np.ndarray:
    """The features of each point that a model reads, float32 ``[P, 6]``.

    The direction of the move to the point (cosine and sine, zeros at a piece's first point), the
    height y, whether the pen was lifted on the way, and its displacement in x and y while lifted
    (zeros if it was not).

    >>> features(paths_of([[np.array([[0.0, 0.0], [3.0, 4.0]])]]))[1].tolist()
    [0.6000000238418579, 0.800000011920929, 4.0, 0.0, 0.0, 0.0]
    """
    moves, lifted = paths.moves, paths.lifted & (np.diff(paths.owner, prepend=-1) == 0)
    length = np.hypot(*moves.T)
    direction = moves / np.where(length > 0, length, 1)[:, None]
    jumps = np.where(lifted[:, None], moves, 0)
    columns = [direction, paths.points[:, 1:], lifted[:, None], jumps]
    return np.concatenate(columns, 1).astype(np.float32)
