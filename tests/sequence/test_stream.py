import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTM, Bidirectional, LSTMCell, Stack, stream, unroll
from lstm_jax.cells import RNNCell
from tests import oracle

T, D, H = 6, 3, 5
CELL = LSTMCell(H)
PARAMS = CELL.init(jax.random.key(0), D)
XS = jax.random.normal(jax.random.key(1), (T, D))

LAYERS = {
    "cell": CELL,
    "LSTM": LSTM(H, num_layers=2, engine="scan"),
    "bfloat16": LSTM(H, num_layers=2, dtype="bfloat16"),
    "skip": Stack([LSTMCell(H), RNNCell(2)], connections="skip"),
    "learned": LSTMCell(H, learn_initial_state=True),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch_shape", [(), (2,)])
def test_stepping_equals_the_whole_sequence(name, batch_shape):
    layer = LAYERS[name]
    params = jax.tree.map(lambda a: a + 0.1, layer.init(jax.random.key(0), D))
    xs = jax.random.normal(jax.random.key(1), (T, *batch_shape, D))
    run = (
        layer.apply
        if hasattr(layer, "apply")
        else lambda p, xs: unroll(layer, p, xs, engine="scan")
    )
    last, ys = jax.jit(run)(params, xs)
    step = stream(layer, params, batch_shape)
    state = step.initial_state()
    # The arithmetic of the plain scan is the same, but the compiler may fuse it differently.
    atol = {"cell": 0, "LSTM": 0, "bfloat16": 2e-2}.get(name, 1e-6)
    for x, expected in zip(xs, ys, strict=True):
        state, y = step(state, x)
        assert y.dtype == expected.dtype
        y, expected = y.astype("float32"), expected.astype("float32")
        np.testing.assert_allclose(y, expected, rtol=0, atol=atol)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, last)
    chex.assert_trees_all_close(state, last, rtol=0, atol=atol)


def test_equals_numpy():
    step = stream(CELL, PARAMS)
    state = step.initial_state()
    for x, expected in zip(np.asarray(XS), oracle.lstm(PARAMS, XS[:, None])[2], strict=True):
        state, y = step(state, x)
        np.testing.assert_allclose(y, expected[0], atol=2e-6)


def test_a_default_cell_preserves_float64_precision():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), PARAMS)
        xs = np.random.default_rng(0).normal(size=(T, D))
        step = stream(CELL, params)
        state = step.initial_state()
        for x, expected in zip(xs, oracle.lstm(params, xs[:, None])[2], strict=True):
            state, y = step(state, x)
            np.testing.assert_allclose(y, expected[0], rtol=0, atol=1e-15)  # a few rounding errors


def test_one_stream_serves_many_sequences():
    step = stream(CELL, PARAMS)
    start = step.initial_state()
    first, _ = step(start, XS[0])
    step(first, XS[1])
    again, _ = step(start, XS[0])
    chex.assert_trees_all_equal(again, first)
    chex.assert_trees_all_equal(start, CELL.zero_state())


KINDS = {
    "numpy": lambda x: np.asarray(x),
    "float64": lambda x: np.asarray(x, np.float64),
    "integers": lambda x: np.asarray(x, np.int64),
    "list": lambda x: np.asarray(x).tolist(),
    "jax": jnp.asarray,
    "bfloat16": lambda x: jnp.asarray(x, jnp.bfloat16),
    "committed": lambda x: jax.device_put(jnp.asarray(x), jax.devices()[0]),
    "weak": lambda x: jnp.broadcast_to(jnp.asarray(1.0), x.shape) * 1.0,
    "strided": lambda x: np.stack([x, x], 1)[:, 0],
}


@dataclasses.dataclass(frozen=True)
class Counting(LSTMCell):
    """Counts how often its step is traced."""

    def step(self, params, state, x):
        TRACED.append(x.shape)
        return super().step(params, state, x)


TRACED = []


def test_is_compiled_once_for_all_kinds_of_input():
    assert KINDS["weak"](np.ones(D)).weak_type
    TRACED.clear()
    step = stream(Counting(H), PARAMS)
    compiled = step._compiled
    for kind, make in KINDS.items():
        x = np.ones(D, np.float32)
        state, y = step(step.initial_state(), make(x))
        state, y = step(jax.tree.map(np.asarray, state), make(x))  # as loaded from a file
        state, y = step(jax.tree.map(lambda a: a.astype(jnp.float16), state), make(x))
        assert y.dtype == jnp.float32 and y.weak_type is False, kind
        assert jax.tree.map(jnp.dtype, state).c == jnp.float32
    assert len(TRACED) == 1 and step._compiled is compiled


def test_inputs_of_other_types_are_cast_to_that_of_the_parameters():
    step = stream(CELL, PARAMS)
    x = np.array([1.0, -2.0, 3.0])
    _, expected = step(step.initial_state(), x.astype(np.float32))
    for other in (x, x.astype(np.int8), jnp.asarray(x, jnp.bfloat16), x.tolist()):
        np.testing.assert_array_equal(step(step.initial_state(), other)[1], expected)


def test_parameters_can_be_on_several_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = stream(CELL, jax.device_put(PARAMS, everywhere))
    state, y = step(step.initial_state(), np.ones(D))
    state, y = step(state, np.ones(D))
    assert len(y.devices()) == 1


def test_parameters_of_numpy():
    step = stream(CELL, jax.tree.map(np.asarray, PARAMS))
    expected = stream(CELL, PARAMS)(CELL.zero_state(), XS[0])
    chex.assert_trees_all_equal(step(step.initial_state(), XS[0]), expected)


def test_within_jit_scan_and_grad():
    step = stream(CELL, PARAMS)
    last, ys = jax.jit(lambda xs: jax.lax.scan(step, step.initial_state(), xs))(XS)
    chex.assert_trees_all_close((last, ys), unroll(CELL, PARAMS, XS), atol=1e-6)
    gradient = jax.grad(lambda x: step(step.initial_state(), x)[1].sum())(XS[0])
    expected = jax.grad(lambda x: CELL.step(PARAMS, CELL.zero_state(), x)[1].sum())(XS[0])
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Average:
    hidden_size: int

    def init(self, key, input_size):
        return {"w": jax.random.normal(key, (input_size, self.hidden_size))}

    def zero_state(self, batch_shape=()):
        return jnp.zeros((*batch_shape, self.hidden_size))

    def step(self, params, state, x):
        state = 0.9 * state + 0.1 * x @ params["w"]
        return state, state


def test_a_custom_cell():
    params = Average(2).init(jax.random.key(0), D)
    step = stream(Average(2), params, input_size=D)
    _, y = step(step.initial_state(), np.ones(D))
    np.testing.assert_allclose(y, 0.1 * params["w"].sum(0), rtol=1e-5)
    with pytest.raises(ValueError, match="since Average cannot determine it"):
        stream(Average(2), params)


class TestErrors:
    step = stream(CELL, PARAMS, (2,))

    @pytest.mark.parametrize("shape", [(D,), (3, D), (2, D + 1), ()])
    def test_an_input_of_another_shape(self, shape):
        for x in (np.zeros(shape), jnp.zeros(shape)):
            with pytest.raises(ValueError, match=r"x must have the stream's shape \(2, 3\)"):
                self.step(self.step.initial_state(), x)

    def test_a_state_of_another_shape(self):
        with pytest.raises(
            ValueError, match=r"state\.h must have shape \(2, 5\).*got shape \(5,\)"
        ):
            self.step(CELL.zero_state(), np.zeros((2, D)))

    def test_a_state_of_another_structure(self):
        with pytest.raises(TypeError, match=r"state must be LSTMState\(h, c\), got dict"):
            self.step({"h": 1}, np.zeros((2, D)))

    def test_layers_that_need_the_future(self):
        both = Bidirectional(CELL)
        with pytest.raises(ValueError, match=r"layer must run forwards.*got Bidirectional"):
            stream(both, both.init(jax.random.key(0), D))
        for lstm, culprit in (
            (LSTM(H, bidirectional=True), "layer_0 is Bidirectional"),
            (LSTM(H, reverse=True), "reverse=True"),
        ):
            with pytest.raises(ValueError, match=f"{culprit}.* needs the future"):
                stream(lstm, lstm.init(jax.random.key(0), D))

    def test_objects_that_are_not_layers(self):
        with pytest.raises(
            TypeError, match=r"layer must be a cell .* or a layer .*, got <function"
        ):
            stream(unroll, PARAMS)

    def test_parameters_of_another_cell(self):
        with pytest.raises((TypeError, ValueError), match="params"):
            stream(LSTMCell(H + 1), PARAMS)

    def test_another_input_size(self):
        with pytest.raises(ValueError, match="input_size must be 3 to fit the parameters"):
            stream(CELL, PARAMS, input_size=4)
