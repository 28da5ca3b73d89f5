"""Dynamic time warping, against all paths of short sequences."""

import functools

import numpy as np
import pytest

from lstm_jax.tasks.warping import nearest, warped_distances


def by_recursion(x, y) -> float:
    @functools.cache
    def total(s, t):
        if s < 0 or t < 0:
            return 0.0 if s == t == -1 else np.inf
        before = min(total(s - 1, t), total(s, t - 1), total(s - 1, t - 1))
        return float(np.linalg.norm(x[s] - y[t])) + before

    return total(len(x) - 1, len(y) - 1) / (len(x) + len(y))


def test_distances_equal_those_of_the_best_path():
    rng = np.random.default_rng(0)
    one, others = rng.normal(size=(5, 3)), [rng.normal(size=(n, 3)) for n in (1, 4, 9)]
    found = warped_distances(one, others)
    assert found == pytest.approx([by_recursion(one, y) for y in others])


def test_the_same_sequence_at_another_speed_is_the_nearest():
    rng = np.random.default_rng(0)
    others = [rng.normal(size=(6, 3)) for _ in range(4)]
    slow = [np.repeat(y, 3, axis=0) for y in others]
    assert nearest(slow, others).tolist() == [0, 1, 2, 3]
    assert warped_distances(slow[2], others)[2] == pytest.approx(0, abs=1e-7)
