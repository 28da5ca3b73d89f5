import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lstm_jax import LSTM, LSTMCell, LSTMState, lstm_cell, truncated, unroll
from tests.arrays import assert_same

T, B, D, H = 9, 3, 2, 4
CELL = LSTMCell(H)
PARAMS = CELL.init(jax.random.key(0), D)
XS = jax.random.normal(jax.random.key(1), (T, B, D))
LENGTHS = jnp.array([9, 5, 0])
RESETS = jnp.zeros((T, B), bool).at[3, 0].set(True).at[4, 1].set(True)


def random_state():
    h, c = jax.random.normal(jax.random.key(2), (2, B, H))
    return LSTMState(h=h, c=c)


def run_of(params):
    return functools.partial(unroll, CELL, params)


def loss(last, ys):
    weights = jax.random.normal(jax.random.key(5), ys.shape)
    return (weights * ys).sum() + jnp.sin(last.c).sum() + (last.h**2).sum()


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
def loop(params, xs, state, cuts, burns, lengths, resets):
    """The definition in Python, step by step: gradients stop before steps marked in cuts."""
    cut = lambda flag, tree: jax.tree.map(  # noqa: E731
        lambda a: jnp.where(flag, jax.lax.stop_gradient(a), a), tree
    )
    ys = []
    for t in range(T):
        state = cut(cuts[t], state)
        fresh = jax.tree.map(lambda a, t=t: jnp.where(resets[t][:, None], 0, a), state)
        stepped, y = lstm_cell(params, fresh, xs[t])
        valid = (t < lengths)[:, None]
        state = jax.tree.map(lambda n, o, v=valid: jnp.where(v, n, o), stepped, state)
        state, y = cut(burns[t], (state, jnp.where(valid, y, 0)))
        ys.append(y)
    ys = jnp.stack(ys)
    return loss(state, ys), ys


@functools.partial(jax.jit, static_argnames=("window", "burn_in"))
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
def cut(params, xs, state, lengths, resets, *, window, burn_in):
    options = {"window": window, "burn_in": burn_in, "lengths": lengths, "resets": resets}
    last, ys = truncated(run_of(params), xs, state, **options)
    return loss(last, ys), ys


@hypothesis.settings(deadline=None, max_examples=12)
@hypothesis.given(
    st.sampled_from([(4, 0), (2, 3)]),
    st.lists(st.integers(0, T), min_size=B, max_size=B),
    st.lists(st.booleans(), min_size=T * B, max_size=T * B),
)
def test_equals_the_loop_in_value_and_gradient(sizes, rows, flags):
    window, burn_in = sizes
    lengths, resets = np.array(rows), np.array(flags).reshape(T, B)
    steps = np.arange(T)
    cuts = (steps > 0) & (steps >= burn_in) & ((steps - burn_in) % window == 0)
    args = PARAMS, XS, random_state()
    (_, ys), gradients = cut(*args, lengths, resets, window=window, burn_in=burn_in)
    (_, expected), wanted = loop(*args, cuts, steps < burn_in, lengths, resets)
    np.testing.assert_allclose(ys, expected, atol=1e-6)
    # Sums of up to T*B terms of order 1, in another order.
    chex.assert_trees_all_close(gradients, wanted, atol=1e-5, rtol=1e-5)


def reach(window, burn_in=0):
    """Whether the output at t has a gradient from the input at s: ``[t, s]``."""
    xs = XS[:, 0]
    jacobian = jax.jit(
        jax.jacobian(lambda xs: truncated(run_of(PARAMS), xs, window=window, burn_in=burn_in)[1])
    )(xs)
    return np.asarray(jnp.any(jacobian != 0, axis=(1, 3)))


def test_gradients_reach_to_the_start_of_their_window():
    windows = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    expected = (windows[:, None] == windows) & np.tri(T, dtype=bool)
    np.testing.assert_array_equal(reach(window=4), expected)


def test_steps_of_the_burn_in_have_no_gradient():
    windows = np.array([-1, -2, -3, 0, 0, 0, 0, 1, 1])
    expected = (windows[:, None] == windows) & np.tri(T, dtype=bool) & (windows >= 0)
    np.testing.assert_array_equal(reach(window=4, burn_in=3), expected)
    assert not reach(window=4, burn_in=T).any()


def test_one_window_over_everything_is_the_plain_run_in_gradient_too():
    once = jax.grad(lambda p: loss(*truncated(run_of(p), XS, window=T)))(PARAMS)
    plain = jax.grad(lambda p: loss(*run_of(p)(XS)))(PARAMS)
    chex.assert_trees_all_close(once, plain, atol=1e-5)


def test_the_last_state_has_its_gradient_from_the_last_window():
    """Like an output: a learned state for the start of the next chunk needs it."""
    gradient = jax.grad(lambda xs: truncated(run_of(PARAMS), xs, window=3)[0].c.sum())(XS)
    np.testing.assert_array_equal(jnp.any(gradient != 0, (1, 2)), np.arange(T) >= 6)


def test_a_learned_initial_state_learns_from_the_first_window_and_from_resets():
    cell = LSTMCell(H, learn_initial_state=True)
    params = cell.init(jax.random.key(0), D)

    @jax.jit
    @functools.partial(jax.jacobian)
    def gradients(params, resets):
        run = functools.partial(unroll, cell, params)
        return truncated(run, XS, window=3, resets=resets)[1].sum((1, 2))

    never = gradients(params, jnp.zeros_like(RESETS))["c_0"].any(-1)  # of the output at each t
    np.testing.assert_array_equal(never, np.arange(T) < 3)
    reset = gradients(params, RESETS)["c_0"].any(-1)
    np.testing.assert_array_equal(reset, np.arange(T) < 6)  # at 3 and 4 in the second window


@pytest.mark.parametrize("window", [2, 20])
def test_values_equal_those_of_the_plain_run_exactly(window):
    lstm = LSTM(H, num_layers=2, connections="skip")
    params = lstm.init(jax.random.key(0), D)
    run = functools.partial(lstm.apply, params)
    expected = lstm.apply(params, XS, lengths=LENGTHS, resets=RESETS)
    outputs = truncated(run, XS, window=window, burn_in=2, lengths=LENGTHS, resets=RESETS)
    chex.assert_trees_all_equal(outputs, expected)


def test_the_program_does_not_grow_with_the_sequence():
    def size(steps):
        loss = lambda p, xs: truncated(run_of(p), xs, window=3, burn_in=2)[1].sum()  # noqa: E731
        return len(str(jax.make_jaxpr(jax.grad(loss))(PARAMS, jnp.zeros((steps, B, D)))))

    assert size(3000) < 1.1 * size(30)


def test_every_window_samples_its_own_noise():
    def noise(xs, state, *, lengths, resets, key):
        return state, jax.random.normal(key, xs.shape)

    _, ys = truncated(noise, XS, random_state(), window=2, burn_in=2, key=jax.random.key(3))
    assert len(np.unique(ys[: T - 1].reshape(-1, 2, B, D), axis=0)) == 4


@pytest.mark.optimized
@pytest.mark.parametrize("leading", [(), (2, 2)])
def test_any_number_of_batch_axes(leading):
    xs = jax.random.normal(jax.random.key(1), (T, *leading, D))
    got, expected = truncated(run_of(PARAMS), xs, window=4), run_of(PARAMS)(xs)
    assert_same(got, expected, atol=1e-6)


def test_no_steps():
    state, ys = truncated(run_of(PARAMS), XS[:0], random_state(), window=4)
    chex.assert_trees_all_equal(state, random_state())
    assert ys.shape == (0, B, H)


class TestTransforms:
    def test_jit_with_lengths_unknown_compiles_once(self):
        run = jax.jit(lambda p, xs, n: truncated(run_of(p), xs, window=4, lengths=n))
        chex.assert_trees_all_close(
            run(PARAMS, XS, LENGTHS), run_of(PARAMS)(XS, lengths=LENGTHS), atol=1e-6
        )
        run(PARAMS, 2 * XS, LENGTHS // 2)
        assert run._cache_size() == 1

    def test_vmap(self):
        many = jnp.stack([XS, 2 * XS])
        _, ys = jax.vmap(lambda xs: truncated(run_of(PARAMS), xs, window=4))(many)
        np.testing.assert_allclose(ys[1], run_of(PARAMS)(2 * XS)[1], atol=1e-6)

    def test_inside_shard_map(self):
        xs = XS[:, :2]
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
        rows = PartitionSpec(None, "data")
        run = jax.shard_map(
            lambda p, xs: truncated(run_of(p), xs, window=4)[1],
            mesh=mesh,
            in_specs=(PartitionSpec(), rows),
            out_specs=rows,
        )
        np.testing.assert_allclose(run(PARAMS, xs), run_of(PARAMS)(xs)[1], atol=1e-6)


class TestErrors:
    def test_window(self):
        with pytest.raises(ValueError, match="window must be at least 1, got 0"):
            truncated(run_of(PARAMS), XS, window=0)
        with pytest.raises(TypeError, match=r"window must be an int, got 2\.5"):
            truncated(run_of(PARAMS), XS, window=2.5)

    @pytest.mark.parametrize("burn_in", [-1, T + 1])
    def test_burn_in(self, burn_in):
        with pytest.raises(ValueError, match=f"burn_in must be from 0 to T=9, got {burn_in}"):
            truncated(run_of(PARAMS), XS, window=2, burn_in=burn_in)

    def test_arguments_that_the_run_rejects_for_the_whole_sequence(self):
        with pytest.raises(ValueError, match=r"lengths must lie between 0 and T=9.*11"):
            truncated(run_of(PARAMS), XS, window=2, lengths=jnp.array([1, 2, 11]))
        with pytest.raises(ValueError, match=r"resets must have .* \(9, 3\), got shape \(8, 3\)"):
            truncated(run_of(PARAMS), XS, window=2, resets=RESETS[:8])
        with pytest.raises(ValueError, match=r"xs must be .* got shape \(9, 3, 5\)"):
            truncated(run_of(PARAMS), jnp.zeros((T, B, 5)), window=2)
        with pytest.raises(ValueError, match=r"state\.h must have shape \(3, 4\)"):
            truncated(run_of(PARAMS), XS, CELL.zero_state((2,)), window=2)
