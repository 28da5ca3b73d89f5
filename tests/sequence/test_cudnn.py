"""The cuDNN engine on a CPU: packing and special cases, with JAX's reference as the kernel."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from lstm_jax import LSTMCell, LSTMState, unroll
from lstm_jax.sequence.cudnn import cudnn_lstm, weights
from lstm_jax.sequence.rows import flipped

T, B, D, H = 6, 4, 3, 5
CELL = LSTMCell(H)

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def reference(x, h_0, c_0, flat, lengths, input_size, hidden_size, layers, dropout, both):
    """``jax.experimental.rnn.lstm``, computed by the reference and unpacking of that module."""
    assert lengths.dtype == jnp.int32 and x.dtype == jnp.float32
    parts = rnn.unpack_lstm_weights(flat, input_size, hidden_size, layers, both)
    return rnn.lstm_ref(
        x, h_0, c_0, *parts, lengths, input_size, hidden_size, layers, dropout, both
    )


def arguments(steps=T):
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: a + 0.1 * rng.normal(size=a.shape).astype("float32"),
        CELL.init(jax.random.key(0), D),
    )
    state = LSTMState(*rng.normal(size=(2, B, H)).astype("float32"))
    return params, rng.normal(size=(steps, B, D)).astype("float32"), state


def test_weights_are_laid_out_as_jax_unpacks_them():
    first, second = CELL.init(jax.random.key(0), D), CELL.init(jax.random.key(1), H)
    w_ih, w_hh, b_ih, b_hh = rnn.unpack_lstm_weights(weights([first, second]), D, H, 2, False)
    for n, params in enumerate((first, second)):
        np.testing.assert_array_equal(w_ih[n], params["w_ih"].T)
        np.testing.assert_array_equal(w_hh[n], params["w_hh"].T)
        np.testing.assert_array_equal(b_ih[n] + b_hh[n], params["b"])
    size = rnn.get_num_params_in_lstm(D, H, 2, False)
    assert weights([first, second]).shape == (size,)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [6, 1, 0, 4]])
def test_values_and_gradients_equal_the_scan(reverse, lengths):
    lengths = None if lengths is None else jnp.array(lengths)
    args = arguments()

    def loss(run, params, xs, state):
        last, ys = run(params, xs, state)
        total = sum(jnp.sin(leaf + n).sum() for n, leaf in enumerate((ys, last.h, last.c)))
        return total, (last, ys)

    def ours(params, xs, state):
        return cudnn_lstm(params, xs, state, lengths, reverse=reverse, kernel=reference)

    def scan(params, xs, state):
        return unroll(CELL, params, xs, state, lengths=lengths, reverse=reverse, engine="scan")

    ((got, results), gradients), ((value, expected), slopes) = (
        quick_jit(jax.value_and_grad(functools.partial(loss, run), (0, 1, 2), has_aux=True))(*args)
        for run in (ours, scan)
    )
    # Six steps in float32: about ten rounding errors of 6e-8 in sums of order 10.
    chex.assert_trees_all_close((got, gradients), (value, slopes), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(results, expected, rtol=1e-5, atol=1e-6)


def test_unroll_calls_it(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    seen = []

    def kernel(*args):
        seen.append(args)
        return reference(*args)

    monkeypatch.setattr(rnn, "lstm", kernel)
    params, xs, state = arguments()
    got = unroll(CELL, params, xs, state, engine="cudnn")
    assert len(seen) == 1
    monkeypatch.undo()
    expected = unroll(CELL, params, xs, state, engine="scan")
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_flipped_leaves_padding_where_it_is():
    xs = jnp.arange(12.0).reshape(3, 4, 1)
    got = flipped(xs, jnp.array([3, 2, 1, 0]))[..., 0]
    np.testing.assert_array_equal(got, [[8, 5, 2, 3], [4, 1, 6, 7], [0, 9, 10, 11]])
    assert (flipped(flipped(xs, jnp.array([3, 2, 1, 0])), jnp.array([3, 2, 1, 0])) == xs).all()


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_on_the_device_itself():
    params, xs, state = arguments(50)
    with jax.default_matmul_precision("highest"):
        got = jax.jit(functools.partial(unroll, CELL, engine="cudnn"))(params, xs, state)
        expected = unroll(CELL, params, xs, state, engine="scan")
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)
