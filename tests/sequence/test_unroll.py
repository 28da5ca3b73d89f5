import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lstm_jax import LSTMCell, LSTMState, unroll
from tests import oracle

T, B, D, H = 6, 4, 3, 5
CELL = LSTMCell(H)
PARAMS = CELL.init(jax.random.key(0), D)
XS = jax.random.normal(jax.random.key(1), (T, B, D))
LENGTHS = jnp.array([6, 3, 1, 0])


def loss(params, xs, state, lengths=None):
    last, ys = unroll(CELL, params, xs, state, lengths=lengths)
    return jnp.sin(ys).sum() + jnp.cos(last.c).sum() + (last.h**2).sum()


def random_state(key=2):
    h, c = jax.random.normal(jax.random.key(key), (2, B, H))
    return LSTMState(h=h, c=c)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_unroll_equals_the_numpy_loop(lengths):
    state = random_state()
    last, ys = unroll(CELL, PARAMS, XS, state, lengths=lengths)
    h, c, expected = oracle.lstm(PARAMS, XS, state.h, state.c, lengths)
    # float32 roundings of sums of D + H terms of order 1, over T steps that contract.
    np.testing.assert_allclose(ys, expected, atol=2e-6)
    np.testing.assert_allclose(last.h, h, atol=2e-6)
    np.testing.assert_allclose(last.c, c, atol=2e-6)


def test_unroll_equals_the_numpy_loop_in_float64_over_500_steps():
    with jax.enable_x64(True):
        cell = LSTMCell(H, param_dtype="float64")
        params = cell.init(jax.random.key(0), D)
        xs = jax.random.normal(jax.random.key(1), (500, 2, D), jnp.float64)
        _, ys = unroll(cell, params, xs)
        _, _, expected = oracle.lstm(params, xs)
        np.testing.assert_allclose(ys, expected, atol=1e-12)


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(st.lists(st.integers(0, T), min_size=B, max_size=B))
def test_a_row_with_a_length_equals_the_row_cut_short(lengths):
    last, ys = unroll(CELL, PARAMS, XS, lengths=jnp.array(lengths))
    for row, length in enumerate(lengths):
        alone, ys_alone = unroll(CELL, PARAMS, XS[:length, row])
        np.testing.assert_allclose(ys[:length, row], ys_alone, atol=1e-6)
        np.testing.assert_array_equal(ys[length:, row], np.zeros((T - length, H)))
        chex.assert_trees_all_close(jax.tree.map(lambda a, r=row: a[r], last), alone, atol=1e-6)


def test_length_zero_returns_the_initial_state():
    state = random_state()
    last, ys = unroll(CELL, PARAMS, XS, state, lengths=jnp.zeros(B, jnp.int32))
    chex.assert_trees_all_equal(last, state)
    np.testing.assert_array_equal(ys, np.zeros_like(ys))


@pytest.mark.parametrize("rubbish", [1e30, np.inf, np.nan])
def test_what_lies_past_the_lengths_changes_no_value_and_no_gradient(rubbish):
    past = jnp.arange(T)[:, None, None] >= LENGTHS[None, :, None]
    spoilt = jnp.where(past, rubbish, XS)
    state = random_state()
    clean = jax.value_and_grad(loss, (0, 1, 2))(PARAMS, XS, state, LENGTHS)
    dirty = jax.value_and_grad(loss, (0, 1, 2))(PARAMS, spoilt, state, LENGTHS)
    chex.assert_trees_all_equal(clean, dirty)
    np.testing.assert_array_equal(jnp.where(past, dirty[1][1], 0.0), np.zeros_like(XS))


def test_more_padding_changes_nothing():
    padded = jnp.concatenate([XS, jnp.full((5, B, D), 7.0)])
    state = random_state()
    short = jax.value_and_grad(loss, (0, 2))(PARAMS, XS, state, LENGTHS)
    long = jax.value_and_grad(loss, (0, 2))(PARAMS, padded, state, LENGTHS)
    chex.assert_trees_all_close(short, long, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_gradients_equal_finite_differences(lengths):
    with jax.enable_x64(True):
        double = functools.partial(jax.tree.map, lambda a: jnp.asarray(a, jnp.float64))
        args = double((PARAMS, XS, random_state()))
        jax.test_util.check_grads(
            lambda *args: loss(*args, lengths), args, order=1, modes=["fwd", "rev"]
        )


@pytest.mark.parametrize("cut", [0, 1, 4, T])
def test_chunks_with_the_state_handed_on_equal_the_whole(cut):
    whole, ys = unroll(CELL, PARAMS, XS)
    middle, first = unroll(CELL, PARAMS, XS[:cut])
    last, second = unroll(CELL, PARAMS, XS[cut:], middle)
    np.testing.assert_array_equal(jnp.concatenate([first, second]), ys)
    chex.assert_trees_all_equal(last, whole)


def test_no_steps_give_empty_outputs_and_the_initial_state():
    state = random_state()
    last, ys = unroll(CELL, PARAMS, jnp.zeros((0, B, D)), state, lengths=jnp.zeros(B, int))
    chex.assert_trees_all_equal(last, state)
    assert ys.shape == (0, B, H)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_any_number_of_batch_axes(leading):
    xs = jax.random.normal(jax.random.key(3), (T, *leading, D))
    lengths = jnp.full(leading, 4)
    last, ys = unroll(CELL, PARAMS, xs, lengths=lengths)
    flat_last, flat = unroll(CELL, PARAMS, xs.reshape(T, -1, D), lengths=lengths.reshape(-1))
    np.testing.assert_allclose(ys.reshape(flat.shape), flat, atol=1e-6)
    np.testing.assert_allclose(last.c.reshape(flat_last.c.shape), flat_last.c, atol=1e-6)


class TestTransforms:
    def test_jit_with_lengths_known_and_unknown(self):
        eager = unroll(CELL, PARAMS, XS, lengths=LENGTHS)
        known = jax.jit(lambda p, xs: unroll(CELL, p, xs, lengths=LENGTHS))(PARAMS, XS)
        unknown = jax.jit(lambda p, xs, n: unroll(CELL, p, xs, lengths=n))(PARAMS, XS, LENGTHS)
        chex.assert_trees_all_close(eager, known, atol=1e-6)
        chex.assert_trees_all_close(eager, unknown, atol=1e-6)

    def test_vmap_over_parameters_is_an_ensemble(self):
        keys = jax.random.split(jax.random.key(0), 3)
        members = jax.vmap(lambda key: CELL.init(key, D))(keys)
        _, ys = jax.vmap(lambda p: unroll(CELL, p, XS))(members)
        for n, key in enumerate(keys):
            np.testing.assert_allclose(ys[n], unroll(CELL, CELL.init(key, D), XS)[1], atol=1e-6)

    def test_jvp_equals_vjp(self):
        """<J v, w> = <v, J^T w>."""
        f = lambda p: unroll(CELL, p, XS, lengths=LENGTHS)[1]  # noqa: E731
        v = jax.tree.map(lambda a: jax.random.normal(jax.random.key(5), a.shape), PARAMS)
        w = jax.random.normal(jax.random.key(6), (T, B, H))
        _, tangent = jax.jvp(f, (PARAMS,), (v,))
        (cotangent,) = jax.vjp(f, PARAMS)[1](w)
        left = jnp.vdot(tangent, w)
        right = sum(jnp.vdot(v[name], cotangent[name]) for name in v)
        np.testing.assert_allclose(left, right, rtol=1e-4)

    def test_a_second_call_does_not_compile_again(self):
        compiled = jax.jit(lambda p, xs, n: unroll(CELL, p, xs, lengths=n))
        compiled(PARAMS, XS, LENGTHS)
        compiled(PARAMS, 2 * XS, LENGTHS - LENGTHS)
        assert compiled._cache_size() == 1

    def test_no_tracer_leaks(self):
        with jax.checking_leaks():
            jax.jit(jax.grad(loss))(PARAMS, XS, random_state(), LENGTHS)

    def test_inside_shard_map_without_a_state(self):
        """The zero state must be marked as each device's own where the inputs are."""
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
        rows = PartitionSpec(None, "data")
        run = jax.shard_map(
            lambda p, xs: unroll(CELL, p, xs)[1],
            mesh=mesh,
            in_specs=(PartitionSpec(), rows),
            out_specs=rows,
        )
        np.testing.assert_allclose(run(PARAMS, XS), unroll(CELL, PARAMS, XS)[1], atol=1e-6)


class TestErrors:
    def test_no_feature_axis(self):
        with pytest.raises(ValueError, match=r"xs must be \[T, \.\.\., D\], got shape \(3,\)"):
            unroll(CELL, PARAMS, jnp.zeros(3))

    def test_wrong_feature_size(self):
        with pytest.raises(ValueError, match=r"xs must be \[T, \.\.\., D\] with D=3.*\(6, 4, 8\)"):
            unroll(CELL, PARAMS, jnp.zeros((T, B, 8)))

    def test_state_of_another_structure(self):
        with pytest.raises(TypeError, match=r"state must have the structure of cell\.zero_state"):
            unroll(CELL, PARAMS, XS, jnp.zeros((B, H)))

    def test_state_of_another_batch(self):
        bad = CELL.zero_state((B + 1,))
        with pytest.raises(
            ValueError, match=r"state\.h must have shape \(4, 5\).*got shape \(5, 5\)"
        ):
            unroll(CELL, PARAMS, XS, bad)

    def test_lengths_of_wrong_shape(self):
        with pytest.raises(ValueError, match=r"lengths must have the batch shape of xs, \(4,\)"):
            unroll(CELL, PARAMS, XS, lengths=jnp.array([1, 2]))

    def test_lengths_of_wrong_type(self):
        with pytest.raises(TypeError, match="lengths must be integers, got float32"):
            unroll(CELL, PARAMS, XS, lengths=jnp.ones(B))

    @pytest.mark.parametrize("bad", [-1, T + 1])
    def test_lengths_out_of_range(self, bad):
        with pytest.raises(ValueError, match=f"lengths must lie between 0 and T=6.*{bad}"):
            unroll(CELL, PARAMS, XS, lengths=jnp.array([1, 2, 3, bad]))

    def test_unknown_engine(self):
        with pytest.raises(ValueError, match=r"engine must be one of .*, got 'warp'"):
            unroll(CELL, PARAMS, XS, engine="warp")
