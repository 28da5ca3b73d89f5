import dataclasses
import functools
import importlib
from typing import ClassVar

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lstm_jax import CELLS, LSTMCell, LSTMState, unroll
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
    # float32 rounding errors of sums of D + H terms of order 1, over T contracting steps.
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
def test_steps_past_the_lengths_affect_no_value_and_no_gradient(rubbish):
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
def test_chunks_with_passed_states_equal_the_whole(cut):
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


def numpy_rows(xs, state, lengths, resets, reverse):
    """Each row separately; a reset sets the state to zero before its step."""
    params = {name: np.asarray(array, np.float64) for name, array in PARAMS.items()}
    ys = np.zeros((len(xs), B, H))
    h, c = np.array(state.h, np.float64), np.array(state.c, np.float64)
    for row in range(B):
        steps = range(lengths[row])
        for t in reversed(steps) if reverse else steps:
            if resets[t, row]:
                h[row] = c[row] = 0.0
            h[row], c[row] = oracle.lstm_step(
                params, h[row], c[row], np.asarray(xs[t, row], np.float64)
            )
            ys[t, row] = h[row]
    return h, c, ys


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(
    st.lists(st.integers(0, T), min_size=B, max_size=B),
    st.lists(st.booleans(), min_size=T * B, max_size=T * B),
    st.booleans(),
)
def test_resets_lengths_and_direction_equal_the_numpy_loop(lengths, resets, reverse):
    resets = np.array(resets).reshape(T, B)
    state = random_state()
    last, ys = unroll(
        CELL, PARAMS, XS, state, lengths=np.array(lengths), resets=resets, reverse=reverse
    )
    h, c, expected = numpy_rows(XS, state, lengths, resets, reverse)
    np.testing.assert_allclose(ys, expected, atol=2e-6)
    np.testing.assert_allclose(last.h, h, atol=2e-6)
    np.testing.assert_allclose(last.c, c, atol=2e-6)


def test_reverse_equals_the_reversed_rows_forwards():
    lengths = np.asarray(LENGTHS)
    flipped = np.array(XS)
    for row, length in enumerate(lengths):
        flipped[:length, row] = np.asarray(XS)[:length, row][::-1]
    last, ys = unroll(CELL, PARAMS, XS, lengths=LENGTHS, reverse=True)
    expected_last, expected = unroll(CELL, PARAMS, flipped, lengths=LENGTHS)
    chex.assert_trees_all_equal(last, expected_last)
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(ys[:length, row], expected[:length, row][::-1])


def test_a_reset_stops_the_gradient_to_earlier_steps():
    resets = jnp.zeros((T, B), bool).at[3].set(True)
    grads = jax.grad(lambda xs, s: unroll(CELL, PARAMS, xs, s, resets=resets)[1][3:].sum(), (0, 1))
    dxs, dstate = grads(XS, random_state())
    np.testing.assert_array_equal(dxs[:3], np.zeros((3, B, D)))
    chex.assert_trees_all_equal(dstate, CELL.zero_state((B,)))
    assert (dxs[3] != 0).all()


def test_replaying_a_rollout_as_a_sequence_equals_stepping_it():
    resets = np.random.default_rng(0).random((T, B)) < 0.4
    state, ys = CELL.zero_state((B,)), []
    for t in range(T):
        zero = CELL.zero_state((B,))
        state = jax.tree.map(lambda z, s, t=t: jnp.where(resets[t, :, None], z, s), zero, state)
        state, y = jax.jit(CELL.step)(PARAMS, state, XS[t])
        ys.append(y)
    last, replayed = unroll(CELL, PARAMS, XS, resets=resets)
    np.testing.assert_allclose(replayed, jnp.stack(ys), atol=1e-6)
    chex.assert_trees_all_close(last, state, atol=1e-6)


def test_resets_that_are_all_false_change_nothing():
    plain = unroll(CELL, PARAMS, XS)
    chex.assert_trees_all_equal(unroll(CELL, PARAMS, XS, resets=jnp.zeros((T, B), bool)), plain)


class TestLearnedInitialState:
    cell = LSTMCell(H, learn_initial_state=True)
    params: ClassVar = dict(PARAMS, h_0=jnp.linspace(-1, 1, H), c_0=jnp.linspace(2, 0, H))

    def test_is_initially_zero_under_the_names_of_the_state(self):
        params = self.cell.init(jax.random.key(0), D)
        np.testing.assert_array_equal(params["h_0"], np.zeros(H))
        np.testing.assert_array_equal(params["c_0"], np.zeros(H))

    def test_is_the_start_of_a_sequence_and_restored_by_resets(self):
        start = LSTMState(*(jnp.broadcast_to(self.params[n], (B, H)) for n in ("h_0", "c_0")))
        resets = jnp.zeros((T, B), bool).at[2].set(True)
        _, ys = unroll(self.cell, self.params, XS, resets=resets)
        np.testing.assert_allclose(ys[:2], unroll(CELL, PARAMS, XS[:2], start)[1], atol=1e-6)
        np.testing.assert_allclose(ys[2:], unroll(CELL, PARAMS, XS[2:], start)[1], atol=1e-6)

    def test_gets_gradient_from_every_row_and_every_reset(self):
        def loss(params, resets):
            return unroll(self.cell, params, XS, resets=resets)[1].sum()

        once = jax.grad(loss)(self.params, jnp.zeros((T, B), bool))
        every = jax.grad(loss)(self.params, jnp.ones((T, B), bool))
        assert (once["c_0"] != 0).all()
        assert not np.allclose(once["c_0"], every["c_0"])

    def test_a_row_of_length_zero_returns_it(self):
        last, _ = unroll(self.cell, self.params, XS, lengths=jnp.zeros(B, int))
        np.testing.assert_array_equal(last.c, np.tile(self.params["c_0"], (B, 1)))


class TestAssociative:
    """The parallel scan of linear recurrences against the loop."""

    @pytest.mark.parametrize("name", ["min_lstm", "min_gru", "ind_rnn"])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_values_and_gradients_equal_the_scan(self, name, reverse):
        cell = CELLS[name](hidden_size=H, activation_fn="identity", learn_initial_state=True)
        with jax.enable_x64(True):
            cell = dataclasses.replace(cell, param_dtype="float64")
            params = cell.init(jax.random.key(0), D)
            params["h_0"] = jnp.linspace(-1.0, 1.0, H)
            xs, state = jnp.asarray(XS, float), unroll(cell, params, jnp.asarray(XS, float))[0]
            resets = np.random.default_rng(0).random((T, B)) < 0.3

            def loss(params, xs, state, engine):
                last, ys = unroll(
                    cell, params, xs, state, lengths=LENGTHS, resets=resets, reverse=reverse,
                    engine=engine,
                )  # fmt: skip
                return jnp.sin(ys).sum() + jnp.cos(last.h).sum(), (last, ys)

            run = functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
            loop = run(functools.partial(loss, engine="scan"))(params, xs, state)
            parallel = run(functools.partial(loss, engine="associative"))(params, xs, state)
            # The same products and sums, grouped differently: a few rounding errors per step.
            chex.assert_trees_all_close(parallel, loop, rtol=0, atol=1e-13)

    def test_no_steps(self):
        cell = CELLS["min_gru"](hidden_size=H)
        params = cell.init(jax.random.key(0), D)
        last, ys = unroll(cell, params, XS[:0], engine="associative")
        np.testing.assert_array_equal(last.h, np.zeros((B, H)))
        assert ys.shape == (0, B, H)

    def test_is_rejected_by_name_if_the_recurrence_is_not_linear(self):
        with pytest.raises(ValueError, match=r"'associative' is for cells .* not for LSTMCell"):
            unroll(CELL, PARAMS, XS, engine="associative")


class TestTransforms:
    def test_jit_with_concrete_and_traced_lengths(self):
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

    def test_no_tracer_leaks(self, checking_leaks):
        with checking_leaks():
            jax.jit(jax.grad(loss))(PARAMS, XS, random_state(), LENGTHS)

    def test_inside_shard_map_without_a_state(self):
        """The zero state must be marked as varying over the same devices as the inputs."""
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
        with pytest.raises(
            ValueError, match=r"xs must be \[T, \.\.\., D\] with D=3.*got shape \(3,\)"
        ):
            unroll(CELL, PARAMS, jnp.zeros(3))

    def test_wrong_feature_size(self):
        with pytest.raises(ValueError, match=r"xs must be \[T, \.\.\., D\] with D=3.*\(6, 4, 8\)"):
            unroll(CELL, PARAMS, jnp.zeros((T, B, 8)))

    def test_state_of_another_structure(self):
        with pytest.raises(TypeError, match=r"state must be LSTMState\(h, c\), got .*Array"):
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

    @pytest.mark.parametrize("shape", [(T,), (B, T), (T, B, 1), (T + 1, B)])
    def test_resets_of_wrong_shape(self, shape):
        with pytest.raises(
            ValueError, match=r"resets must have the time and batch axes of xs, \(6, 4\), got shape"
        ):
            unroll(CELL, PARAMS, XS, resets=jnp.zeros(shape, bool))

    def test_resets_of_wrong_type(self):
        with pytest.raises(TypeError, match="resets must be booleans, got int32"):
            unroll(CELL, PARAMS, XS, resets=jnp.zeros((T, B), "int32"))

    def test_integer_state(self):
        bad = LSTMState(h=jnp.zeros((B, H)), c=jnp.zeros((B, H), int))
        with pytest.raises(
            TypeError, match=r"state\.c must be float32 or a similar type, got int32"
        ):
            unroll(CELL, PARAMS, XS, bad)

    def test_unknown_engine(self):
        with pytest.raises(ValueError, match=r"engine must be one of .*, got 'warp'"):
            unroll(CELL, PARAMS, XS, engine="warp")


class TestCompiledOnce:
    """Also outside jit, as in a notebook."""

    def count(self):
        return importlib.import_module("lstm_jax.sequence.unroll")._compiled_loop._cache_size()

    def test_for_equal_cells_and_shapes(self):
        unroll(LSTMCell(H), PARAMS, XS)
        before = self.count()
        unroll(LSTMCell(H), jax.tree.map(jnp.sin, PARAMS), XS + 1.0)
        assert self.count() == before
        unroll(LSTMCell(H, cell_clip=1.0), PARAMS, XS)
        assert self.count() == before + 1, "another cell is another function"

    def test_an_unhashable_cell_is_compiled_each_time(self):
        @dataclasses.dataclass
        class Mutable:
            hidden_size: int
            factor: float = 1.0

            def init(self, key, input_size):
                return {}

            def zero_state(self, batch_shape=()):
                return jnp.zeros((*batch_shape, self.hidden_size))

            def step(self, params, state, x):
                return self.factor * state + x, state

        cell = Mutable(D)
        assert (unroll(cell, {}, jnp.ones((3, D)))[0] == 3.0).all()
        cell.factor = 0.0
        assert (unroll(cell, {}, jnp.ones((3, D)))[0] == 1.0).all()
