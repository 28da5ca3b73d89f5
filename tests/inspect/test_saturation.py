"""Shares of time for which gates are open or shut, and memory horizons, compared with loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import CELLS, LSTM, LSTMCell
from lstm_jax.cells import RNNCell
from lstm_jax.inspect import Trace, memory_horizon, saturation, trace

T, B, D, H = 12, 3, 2, 5
LENGTHS = np.array([12, 4, 0])


def made(model, scale=4.0):
    params = model.init(jax.random.key(0), D)
    params = jax.tree.map(lambda leaf: scale * leaf, params)  # so that gates saturate
    return params, jax.random.normal(jax.random.key(1), (T, B, D))


def test_shares_are_counted_over_valid_steps():
    lstm = LSTM(H, 2, cell=("lstm", "gru"))
    params, xs = made(lstm)
    traced = trace(lstm, params, xs, lengths=LENGTHS)
    shares = saturation(traced, low=0.2, high=0.7)
    assert {layer: list(gates) for layer, gates in shares.left.items()} == {
        "layer_0": ["i", "f", "o"],
        "layer_1": ["r", "z"],
    }
    for layer, gates in shares.left.items():
        for gate, left in gates.items():
            values = np.asarray(traced.values[layer][gate])
            steps = [values[t, row] for row in range(B) for t in range(LENGTHS[row])]
            below = sum(step < 0.2 for step in steps) / len(steps)
            above = sum(step > 0.7 for step in steps) / len(steps)
            np.testing.assert_allclose(left, below)
            np.testing.assert_allclose(shares.right[layer][gate], above)
            assert left.any()
            assert shares.right[layer][gate].any()


def test_custom_gates_and_mistakes():
    traced = Trace({"cell": {"leak": jnp.array([[0.05], [0.5]])}}, state=())
    assert saturation(traced, gates="leak").left["cell"]["leak"].tolist() == [0.5]
    with pytest.raises(ValueError, match=r"trace must have gates, i, f, o, .*, got leak"):
        saturation(traced)
    with pytest.raises(ValueError, match=r"must satisfy 0 < low < high < 1, got 0\.9 and 0\.1"):
        saturation(traced, low=0.9, high=0.1)


def decay(cell, params, xs, field, steps):
    """The factor by which a difference of the state decays if nothing else differs."""
    (state, other) = cell.zero_state(), cell.zero_state()
    other = other._replace(**{field: other._asdict()[field] + 1.0})
    for x in xs[:steps]:
        state, _ = cell.step(params, state, x)
        other, _ = cell.step(params, other, x)
    return getattr(other, field) - getattr(state, field)


KEEPING = ["lstm", "coupled", "projected", "min_lstm", "min_gru", "gru", "mgu", "peephole"]


@pytest.mark.parametrize("name", KEEPING)
def test_the_horizon_equals_the_decay_of_a_difference(name):
    """Without recurrent weights, the previous state acts only through the gate."""
    with jax.enable_x64(True):
        cell = CELLS[name](hidden_size=H, param_dtype="float64")
        params = cell.init(jax.random.key(0), D)
        for recurrent in cell.recurrent_weights:
            params[recurrent] = jnp.zeros_like(params[recurrent])
        xs = jax.random.normal(jax.random.key(1), (T, D), "float64")
        field = "c" if "c" in cell.zero_state()._fields else "h"
        faded = decay(cell, params, xs, field, T) / decay(cell, params, xs, field, 1)
        horizon = memory_horizon(trace(cell, params, xs), cell).steps["cell"]
        # Differences of numbers of order 1, rounded at 1e-16, which have decayed to 1e-5.
        np.testing.assert_allclose(np.exp(-(T - 1) / horizon), faded, rtol=1e-9)


def test_the_slstm_retains_what_it_does_not_overwrite():
    cell = CELLS["slstm"](hidden_size=H)
    params, xs = made(cell, 1.0)
    traced = trace(cell, params, xs)
    values = {name: np.asarray(array, np.float64) for name, array in traced.values["cell"].items()}
    kept = values["f"][1:] * values["n"][:-1] / values["n"][1:]  # weight of the old mean c / n
    expected = -1.0 / np.log(kept).reshape(-1, H).mean(0)
    np.testing.assert_allclose(memory_horizon(traced, cell).steps["cell"], expected, rtol=1e-4)


def test_lengths_and_endless_units():
    f = np.full((T, 2, 2), 0.5)
    f[:, 1] = 1e-9  # past the end, or so short that only the first step is valid
    f[..., 1] = 1.0
    traced = Trace({"cell": {"f": jnp.asarray(f)}}, (), lengths=jnp.array([T, 1]))
    steps = memory_horizon(traced, LSTMCell(2)).steps["cell"]
    np.testing.assert_allclose(steps, [1 / np.log(2), np.inf], rtol=1e-6)


def test_horizons_of_a_stack_and_of_a_gate_that_is_named():
    lstm = LSTM(H, 2, cell=("lstm", "gru"))
    params, xs = made(lstm)
    traced = trace(lstm, params, xs)
    steps = memory_horizon(traced, lstm).steps
    one = memory_horizon(traced._replace(values={"a": traced.values["layer_1"]}), gate="z")
    np.testing.assert_array_equal(steps["layer_1"], one.steps["a"])
    other = memory_horizon(traced._replace(values={"a": traced.values["layer_1"]}), gate="1 - z")
    assert not np.allclose(steps["layer_1"], other.steps["a"])


def test_cells_without_a_retaining_gate():
    cell = RNNCell(H)
    params, xs = made(cell)
    message = "trace must have the gate that retains the state, f of cell .RNNCell., got h; a cell"
    with pytest.raises(ValueError, match=message):
        memory_horizon(trace(cell, params, xs), cell)
    with pytest.raises(ValueError, match="model or gate must be given"):
        memory_horizon(trace(cell, params, xs))


def test_a_trace_without_steps_or_of_another_model():
    f = jnp.full((T, 2, 2), 0.5)
    with pytest.raises(ValueError, match="trace must have rows of at least 1 steps, got none"):
        saturation(Trace({"cell": {"f": f}}, (), lengths=jnp.array([0, 0])))
    with pytest.raises(ValueError, match="trace must have rows of at least 2 steps, got none"):
        memory_horizon(Trace({"cell": {"f": f[:1]}}, ()), gate="f")
    with pytest.raises(ValueError, match="model must have cell of the trace, got layer_0"):
        # An MGU retains 1 - f, not f.
        memory_horizon(Trace({"cell": {"f": f}}, ()), LSTM(2, cell="mgu"))
