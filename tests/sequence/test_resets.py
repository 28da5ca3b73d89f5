import functools
import math

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import CELLS, LSTMCell, resets_from_dones, resets_from_segments, unroll
from lstm_jax.sequence import reversed_resets
from tests import oracle
from tests.sequence.test_masks import Singular

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
    before = unroll(CELL, PARAMS, 3 * XS)[0]  # the actor's state at the start of the rollout
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
def test_segments_start_where_the_id_differs_from_the_previous_step(rows):
    ids = np.array(rows, np.int32).reshape(-1, 2)
    resets = np.asarray(resets_from_segments(ids))
    for t in range(len(ids)):
        for row in range(2):
            assert resets[t, row] == (t == 0 or ids[t, row] != ids[t - 1, row])


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(flags(T, B), st.lists(st.integers(0, T), min_size=B, max_size=B))
def test_reversed_resets_are_one_step_earlier_and_within_the_lengths(resets, lengths):
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

    def test_segments_that_are_not_integers(self):
        with pytest.raises(TypeError, match="segment_ids must be integers, got float32"):
            resets_from_segments(jnp.zeros((T, B)))


# ---- NaN before a reset ----

RESETS = np.zeros((T, B), bool)
RESETS[[0, 3, 5], [0, 1, 2]] = True
AFTER = np.cumsum(RESETS, 0) > 0  # the steps after each row's only reset
RUNS = [
    ("lstm", "scan", "full", False),
    ("lstm", "scan", "recompute", True),
    ("lstm", "fused", "full", False),
    ("lstm", "fused", "recompute", True),
    ("lstm", "fused", "sqrt", False),
    ("gru", "fused", "full", True),
    ("slstm", "fused", "full", False),
    ("min_lstm", "associative", "full", False),
    ("min_gru", "associative", "full", True),
]


@pytest.mark.parametrize(("name", "engine", "memory", "reverse"), RUNS)
def test_nothing_before_a_reset_reaches_values_or_gradients_after_it(name, engine, memory, reverse):
    """NaN, infinities and overflow, in inputs and in the given state."""
    cell = CELLS[name](hidden_size=H)
    params = cell.init(jax.random.key(0), D)
    state = jax.tree.map(lambda a: 0.5 * jnp.ones_like(a), cell.zero_state((B,)))
    turned = lambda a: a[::-1] if reverse else a  # noqa: E731
    after = turned(AFTER)[..., None]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def run(params, xs, state):
        last, ys = unroll(
            cell, params, xs, state, resets=turned(RESETS), reverse=reverse,
            engine=engine, memory=memory,
        )  # fmt: skip
        ys = jnp.where(after, ys, 0)
        return (ys**2).sum() + jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, last)), ys

    (value, ys), grads = run(params, XS, state)
    for poison in (np.nan, np.inf, 3e38):
        spoilt = jax.tree.map(lambda a, p=poison: jnp.full_like(a, p), state)
        (other, others), other_grads = run(params, jnp.where(after, XS, poison), spoilt)
        # The same numbers, but XLA may sum them in another order: a few rounding errors of 1e-7.
        np.testing.assert_allclose(other, value, rtol=1e-6)
        np.testing.assert_allclose(others, ys, atol=1e-6)
        chex.assert_trees_all_close(other_grads, grads, rtol=1e-5, atol=1e-5)
    _, d_xs, d_state = grads
    assert (np.where(after, 0, d_xs) == 0).all()
    chex.assert_trees_all_equal(d_state, jax.tree.map(jnp.zeros_like, d_state))


@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_equations_that_are_singular_before_a_reset(engine):
    """log 0, 1 / 0 and 0 / 0 at the steps before a reset, whose inputs are finite."""
    cell = Singular(H)
    params = cell.init(jax.random.key(0), D)
    xs = 1.0 + jax.random.uniform(jax.random.key(1), (T, B, D))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def grads(params, xs):
        _, ys = unroll(cell, params, xs, resets=RESETS, engine=engine)
        return (jnp.where(AFTER[..., None], ys, 0) ** 2).sum()

    spoilt = jnp.where(AFTER[..., None], xs, 0.0)
    chex.assert_trees_all_close(grads(params, spoilt), grads(params, xs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_a_nan_after_a_reset_is_seen_in_value_and_gradient(engine):
    xs = XS.at[4, 0, 0].set(jnp.nan)

    @jax.jit
    @jax.value_and_grad
    def run(params):
        _, ys = unroll(CELL, params, xs, resets=RESETS, engine=engine)
        return (ys**2).sum()

    value, grads = run(PARAMS)
    assert np.isnan(value) and all(np.isnan(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_second_derivatives_with_resets(engine):
    """Against finite differences of the gradient, in float64."""
    with jax.enable_x64(True):
        cell = LSTMCell(H, param_dtype="float64")
        params = cell.init(jax.random.key(0), D)
        xs = jnp.asarray(XS, "float64")

        def loss(params):
            _, ys = unroll(cell, params, xs, resets=RESETS, engine=engine)
            return (ys**2).sum()

        grad = jax.jit(jax.grad(loss))
        tangent = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
        _, product = jax.jit(lambda p, v: jax.jvp(jax.grad(loss), (p,), (v,)))(params, tangent)
        up, down = (
            grad(jax.tree.map(lambda a, v, s=s: a + s * 1e-5 * v, params, tangent)) for s in (1, -1)
        )
        # Errors of the third derivative times 1e-10, and rounding errors of 1e-15 / 1e-5.
        chex.assert_trees_all_close(
            product, jax.tree.map(lambda a, b: (a - b) / 2e-5, up, down), rtol=1e-6, atol=1e-6
        )
