import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTMCell, resets_from_dones, resets_from_segments, unroll
from lstm_jax.sequence import reversed_resets
from tests import oracle

T, B, D, H = 8, 3, 2, 4
CELL = LSTMCell(H)
PARAMS = CELL.init(jax.random.key(0), D)
XS = jax.random.normal(jax.random.key(1), (T, B, D))


def flags(*shape):
    size = math.prod(shape)
    drawn = st.lists(st.booleans(), min_size=size, max_size=size)
    return drawn.map(lambda drawn: np.array(drawn, bool).reshape(shape))


@jax.jit
def replay(state, dones, previous_done):
    resets = resets_from_dones(dones, previous_done)
    return unroll(CELL, PARAMS, XS, state, resets=resets)


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(flags(T, B), flags(B))
def test_replaying_a_rollout_equals_acting_with_a_reset_after_each_end(dones, previous_done):
    """An actor clears its memory after each step that ended an episode; so does the replay."""
    before = unroll(CELL, PARAMS, 3 * XS)[0]  # what the actor remembers as the rollout begins
    params = {name: np.asarray(array, np.float64) for name, array in PARAMS.items()}
    h, c = (np.asarray(array, np.float64).copy() for array in (before.h, before.c))
    acted = np.zeros((T, B, H))
    cleared = previous_done
    for t in range(T):
        h[cleared], c[cleared] = 0, 0
        h, c = oracle.lstm_step(params, h, c, np.asarray(XS[t], np.float64))
        acted[t] = h
        cleared = dones[t]
    state, replayed = replay(before, dones, previous_done)
    np.testing.assert_allclose(replayed, acted, atol=2e-6)
    np.testing.assert_allclose(state.c, c, atol=2e-6)


def test_rollouts_in_two_parts_have_the_flags_of_the_whole():
    dones = jnp.array([0, 1, 0, 0, 1, 1, 0, 1], bool)
    whole = resets_from_dones(dones, jnp.array(True))
    parts = [
        resets_from_dones(dones[:5], jnp.array(True)),
        resets_from_dones(dones[5:], dones[4]),
    ]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)


def test_the_diagrams():
    dones = jnp.array([0, 0, 1, 0, 0], bool)
    np.testing.assert_array_equal(resets_from_dones(dones, jnp.array(True)), [1, 0, 0, 1, 0])
    np.testing.assert_array_equal(resets_from_dones(dones, jnp.array(False)), [0, 0, 0, 1, 0])
    ids = jnp.array([1, 1, 2, 2, 2, 0])
    np.testing.assert_array_equal(resets_from_segments(ids), [1, 0, 1, 0, 0, 1])
    resets = jnp.array([1, 0, 1, 0, 0], bool)
    np.testing.assert_array_equal(reversed_resets(resets), [0, 1, 0, 0, 0])


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), max_size=6))
def test_segments_begin_where_a_row_differs_from_the_step_before(rows):
    ids = np.array(rows, np.int32).reshape(-1, 2)
    resets = np.asarray(resets_from_segments(ids))
    for t in range(len(ids)):
        for row in range(2):
            assert resets[t, row] == (t == 0 or ids[t, row] != ids[t - 1, row])


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(flags(T, B), st.lists(st.integers(0, T), min_size=B, max_size=B))
def test_reversed_resets_stand_one_step_earlier_and_not_past_the_lengths(resets, lengths):
    ends = np.asarray(reversed_resets(resets, jnp.array(lengths)))
    for t in range(T):
        for row in range(B):
            assert ends[t, row] == (t + 1 < lengths[row] and resets[t + 1, row])


def test_no_steps():
    none = jnp.zeros((0, B), bool)
    assert resets_from_dones(none, jnp.ones(B, bool)).shape == (0, B)
    assert resets_from_segments(jnp.zeros((0, B), int)).shape == (0, B)
    assert reversed_resets(none, jnp.zeros(B, int)).shape == (0, B)


def test_inside_jit_and_vmap():
    dones = jax.random.bernoulli(jax.random.key(2), 0.5, (T, B))
    expected = resets_from_dones(dones, dones[-1])
    by_row = jax.jit(jax.vmap(resets_from_dones, (1, 0), 1))(dones, dones[-1])
    np.testing.assert_array_equal(by_row, expected)


class TestErrors:
    def test_flags_that_are_numbers(self):
        with pytest.raises(TypeError, match="dones must be booleans, got float32"):
            resets_from_dones(jnp.zeros((T, B)), jnp.ones(B, bool))
        with pytest.raises(TypeError, match="previous_done must be booleans, got int32"):
            resets_from_dones(jnp.zeros((T, B), bool), jnp.ones(B, jnp.int32))
        with pytest.raises(TypeError, match="resets must be booleans, got float32"):
            reversed_resets(jnp.zeros((T, B)))

    def test_previous_done_of_another_batch(self):
        with pytest.raises(
            ValueError, match=r"previous_done must have the batch shape of dones, \(3,\), got.*\(\)"
        ):
            resets_from_dones(jnp.zeros((T, B), bool), jnp.array(True))

    def test_no_time_axis(self):
        with pytest.raises(ValueError, match=r"dones must be \[T, \.\.\.\], got shape \(\)"):
            resets_from_dones(jnp.array(True), jnp.array(True))
        with pytest.raises(ValueError, match=r"segment_ids must be \[T, \.\.\.\], got shape \(\)"):
            resets_from_segments(jnp.array(1))

    def test_segments_that_are_no_integers(self):
        with pytest.raises(TypeError, match="segment_ids must be integers, got float32"):
            resets_from_segments(jnp.zeros((T, B)))
