"""Forecasters of frames: squares as channels, the encoder's states, and streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.cells import ConvLSTMCell, LSTMCell
from lstm_jax.models import Compiled, ConvForecaster, FullyConnectedForecaster
from lstm_jax.models.video import depth_to_space, space_to_depth
from tests.arrays import doubled, params_of

FRAMES = np.random.default_rng(0).random((2, 4, 8, 12, 2), np.float32)


def test_squares_become_the_channels_of_one_position():
    places = np.asarray(space_to_depth(jnp.asarray(FRAMES), 4))
    assert places.shape == (2, 4, 2, 3, 32)
    square = FRAMES[1, 2, 4:8, 8:12].reshape(-1)
    np.testing.assert_array_equal(places[1, 2, 1, 2], square)
    np.testing.assert_array_equal(depth_to_space(jnp.asarray(places), 4), FRAMES)


def step_by_step(model, cell, steps, frames):
    """The forecast, computed by single steps of the cells."""
    params, layers = params_of(model), ("layer_0", "layer_1")
    xs = steps(jnp.asarray(frames))
    space = xs.shape[2:-1]
    states = {layer: cell.zero_state((len(xs), *space)) for layer in layers}

    def step(part, x):
        for layer in layers:
            states[layer], x = cell.step(params[part][layer], states[layer], x)
        return x

    for t in range(xs.shape[1]):
        step("encoder", xs[:, t])
    readout = params["readout"]
    written = [step("forecaster", xs[:, -1]) for _ in range(3)]
    return jnp.stack(written, 1) @ readout["kernel"] + readout["bias"]


@pytest.mark.parametrize("kind", ["conv_lstm", "lstm"])
def test_a_forecast_starts_from_the_encoders_states(kind):
    shape = FRAMES.shape[2:]
    if kind == "conv_lstm":
        model = doubled(ConvForecaster(shape, 3, 5, num_layers=2, rngs=nnx.Rngs(0)))
        cell, steps = ConvLSTMCell(5), lambda x: space_to_depth(x, 4)
    else:
        model = doubled(FullyConnectedForecaster(shape, 3, 5, num_layers=2, rngs=nnx.Rngs(0)))
        cell, steps = LSTMCell(5), lambda x: x.reshape(2, -1, 8 * 12 * 2)
    compiled = Compiled(model)
    carry, outputs = compiled(compiled.initial_carry(2), frames=FRAMES)
    assert outputs["logits"].shape == (2, 3, 8, 12, 2)
    expected = jax.jit(lambda frames: step_by_step(model, cell, steps, frames))(FRAMES)
    found = steps(jnp.asarray(outputs["logits"]))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # In two parts, as a stream.
    first, _ = compiled(compiled.initial_carry(2), frames=FRAMES[:, :2])
    again, streamed = compiled(first, frames=FRAMES[:, 2:])
    np.testing.assert_allclose(streamed["logits"], outputs["logits"], atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), carry, again)
