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


def loop(params, xs, state, window, burn_in, lengths, resets):
    """The definition, step by step in Python."""
    ys = []
    for t in range(len(xs)):
        if t >= burn_in and (t - burn_in) % window == 0 and t > 0:
            state = jax.lax.stop_gradient(state)
        at = jax.tree.map(lambda a, t=t: jnp.where(resets[t][:, None], 0, a), state)
        stepped, y = lstm_cell(params, at, xs[t])
        valid = (t < lengths)[:, None]
        state = jax.tree.map(lambda n, o, v=valid: jnp.where(v, n, o), stepped, state)
        y = jnp.where(valid, y, 0)
        if t < burn_in:
            state, y = jax.lax.stop_gradient((state, y))
        ys.append(y)
    return state, jnp.stack(ys)


@hypothesis.settings(deadline=None, max_examples=12)
@hypothesis.given(
    st.integers(1, T + 1),
    st.integers(0, T),
    st.lists(st.integers(0, T), min_size=B, max_size=B),
    st.lists(st.booleans(), min_size=T * B, max_size=T * B),
)
def test_values_are_the_plain_runs_and_gradients_those_of_the_loop(window, burn_in, rows, flags):
    lengths, resets = jnp.array(rows), jnp.array(flags).reshape(T, B)

    def loss(last, ys):
        weights = jax.random.normal(jax.random.key(5), ys.shape)
        return (weights * ys).sum() + jnp.sin(last.c).sum() + (last.h**2).sum()

    def cut(params, xs, state):
        options = {"lengths": lengths, "resets": resets}
        outputs = truncated(run_of(params), xs, state, window=window, burn_in=burn_in, **options)
        return loss(*outputs), outputs

    def by_hand(params, xs, state):
        outputs = loop(params, xs, state, window, burn_in, lengths, resets)
        return loss(*outputs), outputs

    args = PARAMS, XS, random_state()
    (_, outputs), gradients = jax.value_and_grad(cut, (0, 1, 2), has_aux=True)(*args)
    (_, _), expected = jax.value_and_grad(by_hand, (0, 1, 2), has_aux=True)(*args)
    plain = unroll(CELL, PARAMS, XS, random_state(), lengths=lengths, resets=resets)
    chex.assert_trees_all_equal(outputs, plain)
    # Sums of up to T*B terms of order 1, in another order.
    chex.assert_trees_all_close(gradients, expected, atol=1e-5, rtol=1e-5)


def reach(window, burn_in=0, length=T):
    """Whether the output at t has a gradient from the input at s: ``[t, s]``."""
    xs = XS[:, 0]
    jacobian = jax.jacobian(
        lambda xs: truncated(
            run_of(PARAMS), xs, window=window, burn_in=burn_in, lengths=jnp.array(length)
        )[1]
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
    def loss(run):
        return lambda params: jnp.sin(run(params)[1]).sum()

    cut = jax.grad(loss(lambda p: truncated(run_of(p), XS, window=T)))(PARAMS)
    plain = jax.grad(loss(lambda p: run_of(p)(XS)))(PARAMS)
    chex.assert_trees_all_close(cut, plain, atol=1e-5)


def test_the_last_state_has_its_gradient_from_the_last_window():
    """As an output has: what was learned for the next chunk's start must not be lost."""
    gradient = jax.grad(lambda xs: truncated(run_of(PARAMS), xs, window=3)[0].c.sum())(XS)
    np.testing.assert_array_equal(jnp.any(gradient != 0, (1, 2)), np.arange(T) >= 6)


def test_a_learned_initial_state_learns_from_the_first_window_and_from_resets():
    cell = LSTMCell(H, learn_initial_state=True)
    params = cell.init(jax.random.key(0), D)

    def gradient(t, resets=None):
        run = lambda p: functools.partial(unroll, cell, p)  # noqa: E731
        loss = lambda p: truncated(run(p), XS, window=3, resets=resets)[1][t].sum()  # noqa: E731
        return jax.grad(loss)(params)["c_0"]

    assert gradient(1).any() and gradient(4, RESETS).any()
    assert not gradient(4).any()


@pytest.mark.parametrize("window", [2, 4, 20])
def test_a_stack(window):
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


def test_noise_differs_from_window_to_window():
    lstm = LSTM(H, num_layers=2, dropout=0.5)
    params = lstm.init(jax.random.key(0), D)
    xs = jnp.ones((6, 50, D))

    def noisy(xs, state, *, lengths, resets, key):
        return state, xs * jax.random.normal(key, xs.shape)

    _, ys = truncated(noisy, xs, lstm.zero_state((50,)), window=2, key=jax.random.key(3))
    assert not np.allclose(ys[:2], ys[2:4]) and not np.allclose(ys[2:4], ys[4:])
    run = functools.partial(lstm.apply, params)
    assert not np.allclose(truncated(run, xs, window=2, key=jax.random.key(3))[1], run(xs)[1])


@pytest.mark.parametrize("leading", [(), (2, 2)])
def test_any_number_of_batch_axes(leading):
    xs = jax.random.normal(jax.random.key(1), (T, *leading, D))
    chex.assert_trees_all_equal(truncated(run_of(PARAMS), xs, window=4), run_of(PARAMS)(xs))


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

    def test_what_the_run_would_refuse_of_the_whole(self):
        with pytest.raises(ValueError, match="lengths must lie between 0 and T=9.*11"):
            truncated(run_of(PARAMS), XS, window=2, lengths=jnp.array([1, 2, 11]))
        with pytest.raises(ValueError, match=r"resets must have .* \(9, 3\), got shape \(8, 3\)"):
            truncated(run_of(PARAMS), XS, window=2, resets=RESETS[:8])
        with pytest.raises(ValueError, match=r"xs must be .* got shape \(9, 3, 5\)"):
            truncated(run_of(PARAMS), jnp.zeros((T, B, 5)), window=2)
        with pytest.raises(ValueError, match=r"state\.h must have shape \(3, 4\)"):
            truncated(run_of(PARAMS), XS, CELL.zero_state((2,)), window=2)
