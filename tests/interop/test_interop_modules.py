"""Our Flax modules, filled with imported parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lstm_jax.linen
import lstm_jax.nnx
from lstm_jax import LSTM, LSTMCell
from lstm_jax.cells import GRUCell
from lstm_jax.interop import fill, from_flax, from_keras, from_torch, to_keras, to_torch

XS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), "float32")  # [B, T, D]
# Outputs are in [-1, 1], so an absolute error of 1e-6 is eight rounding errors of float32.
LAYER = LSTM(4, 2, bidirectional=True)


@pytest.fixture(scope="module")
def params():
    return LAYER.init(jax.random.key(1), 3)


def expected(layer, params):
    _, ys = layer.apply(params, jnp.swapaxes(XS, 0, 1))
    return jnp.swapaxes(ys, 0, 1)


def test_sequence_modules_compute_the_imported_layer(params):
    module = lstm_jax.nnx.LSTM(3, 4, 2, bidirectional=True, dropout=0.3, rngs=nnx.Rngs(0))
    read = from_torch(to_torch(LAYER, params))
    fill(module, *read)
    module.eval()
    np.testing.assert_allclose(module(XS), expected(LAYER, params), atol=1e-6)
    linen = lstm_jax.linen.LSTM(4, 2, bidirectional=True)
    ys = linen.apply(fill(linen, *from_keras(to_keras(LAYER, params))), XS)
    np.testing.assert_allclose(ys, expected(LAYER, params), atol=1e-6)


def test_cell_modules_take_a_cell_or_a_stack_of_one():
    cell = GRUCell(4, reset_after=True)
    params = cell.init(jax.random.key(2), 3)
    wanted = expected(LSTM(4, cell=lambda **sizes: cell), {"layer_0": params})
    arrays = to_torch(LSTM(4, cell=lambda **sizes: cell), {"layer_0": params})
    module = lstm_jax.nnx.GRUCell(3, 4, reset_after=True, rngs=nnx.Rngs(0))
    fill(module, *from_torch(arrays))
    np.testing.assert_allclose(nnx.RNN(module)(XS), wanted, atol=1e-6)
    other = lstm_jax.nnx.Stack(3, cell, rngs=nnx.Rngs(0))
    fill(other, *from_torch(to_torch(cell, params)))
    np.testing.assert_allclose(other(XS), wanted, atol=1e-6)
    linen = lstm_jax.linen.GRUCell(4, reset_after=True)
    variables = fill(linen, *from_torch(arrays))
    _, y = linen.apply(variables, cell.zero_state((2,)), XS[:, 0])
    np.testing.assert_allclose(y, wanted[:, 0], atol=1e-6)


def test_modules_preserve_their_types(params):
    module = lstm_jax.nnx.LSTM(
        3, 4, 2, bidirectional=True, param_dtype="bfloat16", rngs=nnx.Rngs(0)
    )
    fill(module, LAYER, params)
    assert module.layer_0.forward.w_ih.dtype == jnp.bfloat16


def module(*args, **options):
    return lstm_jax.nnx.LSTM(*args, **options, rngs=nnx.Rngs(0))


REFUSED = [
    (
        module(3, 5),
        LSTM(4),
        "hidden_size=4 of LSTMCell would be lost: the module has hidden_",
    ),
    (module(3, 4, cell="gru"), LSTM(4), "LSTMCell would be lost: the module has GRUCell"),
    (module(3, 4, 2), LSTM(4), "layers must be those of the module, layer_0, layer_1, got layer_0"),
    (module(3, 4, connections="skip"), LSTM(4), "connections='plain' would be lost"),
    (module(3, 4, bidirectional=True, merge="sum"), LSTM(4, bidirectional=True), "merge='concat'"),
    (module(2, 4), LSTM(4), "params must have the module's input size 2, got 3"),
    (module(3, 4, gate_fn="hard_sigmoid"), LSTM(4), "gate_fn='sigmoid' of LSTMCell would be lost"),
]


@pytest.mark.parametrize(("module", "layer", "message"), REFUSED)
def test_a_different_layer_is_rejected(module, layer, message):
    with pytest.raises(ValueError, match=message):
        fill(module, layer, layer.init(jax.random.key(0), 3))


def test_other_modules_are_rejected():
    theirs = nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0))
    cell, params = from_flax(nnx.state(theirs, nnx.Param))
    assert cell == LSTMCell(4)
    with pytest.raises(TypeError, match=r"module must be one of lstm_jax.nnx or lstm_jax.linen"):
        fill(theirs, cell, params)
