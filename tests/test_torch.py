"""Comparison with torch.nn.LSTM, which packs ragged sequences and has its own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTM

torch = pytest.importorskip("torch", reason="needs the peer torch")
pytestmark = pytest.mark.peers

T, B, D, H, LAYERS = 9, 4, 3, 6, 2
LENGTHS = [9, 5, 2, 1]


def as_torch(params):
    """Parameters for torch: the same gates i, f, g, o, but weights (4H, in) and two biases."""
    module = torch.nn.LSTM(D, H, LAYERS)
    with torch.no_grad():
        for n in range(LAYERS):
            layer = {k: torch.tensor(np.asarray(v)) for k, v in params[f"layer_{n}"].items()}
            getattr(module, f"weight_ih_l{n}").copy_(layer["w_ih"].T)
            getattr(module, f"weight_hh_l{n}").copy_(layer["w_hh"].T)
            getattr(module, f"bias_ih_l{n}").copy_(layer["b"])
            getattr(module, f"bias_hh_l{n}").zero_()
    return module


def test_values_and_gradients_of_ragged_stacks_agree_with_torch():
    lstm = LSTM(H, LAYERS)
    params = lstm.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    weight = jax.random.normal(jax.random.key(2), (T, B, H))

    def loss(params, xs):
        state, ys = lstm.apply(params, xs, lengths=jnp.array(LENGTHS))
        return (weight * ys).sum() + sum((s.c**2).sum() for s in state.values())

    value, (grads, dxs) = jax.value_and_grad(loss, (0, 1))(params, xs)

    module = as_torch(params)
    inputs = torch.tensor(np.asarray(xs), requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs, LENGTHS)
    outputs, (_, c) = module(packed)
    ys, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, total_length=T)
    expected = (torch.tensor(np.asarray(weight)) * ys).sum() + (c**2).sum()
    expected.backward()

    # float32 sums over up to T * B = 36 rows of terms of order 1.
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(dxs, inputs.grad, atol=1e-5)
    for n in range(LAYERS):
        ours = grads[f"layer_{n}"]
        np.testing.assert_allclose(
            ours["w_ih"].T, getattr(module, f"weight_ih_l{n}").grad, atol=2e-5
        )
        np.testing.assert_allclose(
            ours["w_hh"].T, getattr(module, f"weight_hh_l{n}").grad, atol=2e-5
        )
        np.testing.assert_allclose(ours["b"], getattr(module, f"bias_ih_l{n}").grad, atol=2e-5)
