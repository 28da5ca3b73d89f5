"""Operations on pen paths, compared with loops over pieces and strokes."""

import itertools

import numpy as np
import pytest

from lstm_jax.data.strokes import (
    distorted,
    features,
    normalised,
    paths_of,
    resampled,
    slants,
    strokes_of,
)

EXACT = 1e-9  # float64, a few dozen sums


def pieces(seed: int = 0) -> list[list[np.ndarray]]:
    """Random walks of one to four strokes, among them a dot."""
    rng = np.random.default_rng(seed)
    sizes = [(5, 3), (9,), (4, 1, 7, 2), (6, 6)]
    return [[rng.normal(size=(n, 2)).cumsum(0) + 10 for n in counts] for counts in sizes]


def test_strokes_round_trip():
    for one, other in zip(strokes_of(paths_of(pieces())), pieces(), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def weighted(piece):
    """Heights and the lengths of ink at them, of both ends of every move."""
    heights, weights = [], []
    for stroke in piece:
        for a, b in itertools.pairwise(stroke):
            heights += [a[1], b[1]]
            weights += [np.hypot(*(b - a))] * 2
    return np.array(heights), np.array(weights)


def test_normalised_handwriting_is_upright_and_of_one_size():
    paths = normalised(paths_of(pieces()))
    np.testing.assert_allclose(slants(paths), 0, atol=EXACT)
    for piece in strokes_of(paths):
        y, weights = weighted(piece)
        assert np.average(y, weights=weights) == pytest.approx(0, abs=EXACT)
        assert np.average(y**2, weights=weights) == pytest.approx(1)
        assert np.concatenate(piece)[:, 0].min() == pytest.approx(0, abs=EXACT)


def test_size_and_position_have_no_influence():
    moved = [[stroke * 7 - 50 for stroke in piece] for piece in pieces()]
    one, other = normalised(paths_of(pieces())), normalised(paths_of(moved))
    np.testing.assert_allclose(other.points, one.points, atol=EXACT)


def test_a_dot_and_a_line_have_a_size():
    dot, line = strokes_of(normalised(paths_of([[np.array([[3.0, 4.0]])], [np.eye(2) * [5, 0]]])))
    assert dot[0].tolist() == [[0, 0]]
    assert np.ptp(line[0][:, 0]) == pytest.approx(10) and np.ptp(line[0][:, 1]) == 0


def test_resampled_points_are_equally_spaced():
    spacing = 0.3
    for piece, found in zip(
        pieces(), strokes_of(resampled(paths_of(pieces()), spacing)), strict=True
    ):
        for stroke, points in zip(piece, found, strict=True):
            place = np.append(0, np.hypot(*np.diff(stroke, axis=0).T).cumsum())
            parts = max(1, round(place[-1] / spacing))
            wanted = np.linspace(0, place[-1], parts + 1)
            expected = np.stack([np.interp(wanted, place, axis) for axis in stroke.T], 1)
            np.testing.assert_allclose(points, expected, atol=EXACT)


def test_long_piece_has_at_most_the_allowed_points():
    counts = np.bincount(resampled(paths_of(pieces()), 0.01, longest=40).owner)
    assert (counts <= 40).all() and (counts > 30).all()


def test_features_are_directions_heights_and_jumps():
    found = features(paths_of(pieces()))
    rows = []
    for piece in pieces():
        last = None
        for stroke in piece:
            for n, point in enumerate(stroke):
                move = np.zeros(2) if last is None else point - last
                length = np.hypot(*move)
                lifted = n == 0 and last is not None
                jump = move if lifted else [0, 0]
                rows.append([*(move / length if length else move), point[1], lifted, *jump])
                last = point
    np.testing.assert_allclose(found, rows, rtol=1e-6, atol=1e-6)  # stored in float32


def test_distortions_without_warp_are_affine():
    paths = paths_of(pieces())
    options = {"slant": 0.3, "scale": 0.2, "turn": 0.1}
    moved = distorted(paths, np.random.default_rng(0), **options, warp=0.0)
    for one, other in zip(strokes_of(paths), strokes_of(moved), strict=True):
        before, after = np.concatenate(one), np.concatenate(other)
        _, residuals, *_ = np.linalg.lstsq(before, after, rcond=None)
        assert residuals == pytest.approx(0, abs=EXACT)
        assert not np.allclose(before, after)
    warped = distorted(paths, np.random.default_rng(0), slant=0, scale=0, turn=0, warp=0.1)
    distance = np.hypot(*(warped.points - paths.points).T)
    assert 0.02 < distance.mean() < 0.4
