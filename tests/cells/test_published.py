"""Published values for constant weights, which need no files.

Sources: the tests of TensorFlow 1 (``rnn_cell_test.py`` of core and contrib) and of Keras 3
(``lstm_test.py``, ``gru_test.py``, ``conv_lstm_test.py``), which contain outputs of their own
cells.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTMState, unroll
from lstm_jax.cells import CELLS


def constant(cell, input_size, given, **others):
    """Constant parameters: ``given`` for all, except those given by name."""
    return {
        name: jnp.broadcast_to(jnp.asarray(others.get(name, given), "float32"), one.shape)
        for name, one in cell.parameters(input_size).items()
    }


def blocks(size, *values):
    """A value for each gate."""
    return np.repeat(np.float32(values), size)


class TestTensorFlow:
    """All weights are 0.5, biases 0 unless stated otherwise, inputs 1 and states 0.1."""

    def test_basic_lstm(self):
        """Two layers, forget_bias=1."""
        cell = CELLS["lstm"](hidden_size=2)
        params = constant(cell, 2, 0.5, b=blocks(2, 0, 1, 0, 0))
        start = LSTMState(h=jnp.full((1, 2), 0.1), c=jnp.full((1, 2), 0.1))
        first, y = cell.step(params, start, jnp.ones((1, 2)))
        second, _ = cell.step(params, start, y)
        np.testing.assert_allclose(first.c, [[0.68967271] * 2], rtol=1e-6)
        np.testing.assert_allclose(first.h, [[0.44848421] * 2], rtol=1e-6)
        np.testing.assert_allclose(second.c, [[0.39897051] * 2], rtol=1e-6)
        np.testing.assert_allclose(second.h, [[0.24024698] * 2], rtol=1e-6)

    @pytest.mark.parametrize(("features", "expected"), [(2, 0.175991), (3, 0.156736)])
    def test_gru(self, features, expected):
        """The bias of its gates is 1, that of the candidate 0."""
        cell = CELLS["gru"](hidden_size=2)
        params = constant(cell, features, 0.5, b=blocks(2, 1, 1, 0))
        start = cell.zero_state((1,))._replace(h=jnp.full((1, 2), 0.1))
        _, y = cell.step(params, start, jnp.ones((1, features)))
        np.testing.assert_allclose(y, [[expected] * 2], atol=1e-6)

    def test_coupled(self):
        """CoupledInputForgetGateLSTMCell without peepholes, forget_bias=1."""
        cell = CELLS["coupled"](hidden_size=2)
        params = constant(cell, 4, 0.5, b=blocks(2, 1, 0, 0))
        start = LSTMState(h=jnp.full((3, 2), 0.1), c=jnp.full((3, 2), 0.1))
        x = jnp.array([[1.0], [2.0], [3.0]]) * jnp.ones(4)
        state, _ = cell.step(params, start, x)
        np.testing.assert_allclose(state.c[:, 0], [0.137523, 0.105450, 0.100742], atol=1e-6)
        np.testing.assert_allclose(state.h[:, 1], [0.121753, 0.103349, 0.100178], atol=1e-6)


class TestKeras:
    """Input weights 0.01, recurrent weights 0.02."""

    xs = np.arange(72, dtype=np.float32).reshape(3, 6, 4).swapaxes(0, 1)

    def params(self, name, size, bias, features=4, **options):
        cell = CELLS[name](hidden_size=size, **options)
        given = {"w_ih": 0.01, "w_hh": 0.02, "b": blocks(size, *bias)}
        return cell, constant(cell, features, 0.03, **given)

    @pytest.mark.parametrize(
        ("bias", "reverse", "expected"),
        [
            ((0.03, 1, 0.03, 0.03), False, [0.6288687, 0.86899155, 0.9460773]),
            ((0.03, 1, 0.03, 0.03), True, [0.35622165, 0.74789524, 0.8872726]),
            ((0.03, 0.03, 0.03, 0.03), False, [0.57019705, 0.8661914, 0.9459622]),
            ((0, 0, 0, 0), False, [0.54986924, 0.86226785, 0.9443936]),
        ],
    )
    def test_lstm(self, bias, reverse, expected):
        # Keras sets the forget gate's bias to one, whereas our forget_bias adds one.
        if bias[1] == 1:
            bias = (bias[0], 1.0, *bias[2:])
        cell, params = self.params("lstm", 3, bias)
        last, _ = unroll(cell, params, self.xs, reverse=reverse)
        np.testing.assert_allclose(last.h, np.outer(expected, np.ones(3)), rtol=1e-5)

    def test_lstm_with_a_mask(self):
        cell, params = self.params("lstm", 2, (0.03, 1, 0.03, 0.03), features=3)
        xs = np.arange(24, dtype=np.float32).reshape(2, 4, 3).swapaxes(0, 1)
        last, ys = unroll(cell, params, xs, lengths=jnp.array([3, 2]))
        expected = [[0.01588910, 0.05552048, 0.11755939, 0.0], [0.14185596, 0.28556206, 0.0, 0.0]]
        np.testing.assert_allclose(ys[..., 0].T, expected, rtol=2e-5)
        np.testing.assert_allclose(last.h[:, 1], [0.11755939, 0.28556206], rtol=2e-5)

    @pytest.mark.parametrize(
        ("options", "bias", "b_hg", "reverse", "expected"),
        [
            # reset_after has two biases, each 0.03.
            ((True, (0.06, 0.06, 0.03), 0.03, False, [0.5217289, 0.6371659, 0.39384964])),
            ((True, (0.06, 0.06, 0.03), 0.03, True, [0.24406259, 0.611516, 0.3928808])),
            ((True, (0, 0, 0), 0.0, False, [0.49988455, 0.64701194, 0.4103359])),
            ((False, (0.03, 0.03, 0.03), None, False, [0.51447755, 0.6426879, 0.40208298])),
        ],
    )
    def test_gru(self, options, bias, b_hg, reverse, expected):
        cell, params = self.params("gru", 3, bias, reset_after=options)
        if b_hg is not None:
            params["b_hg"] = jnp.full(3, b_hg)
        last, _ = unroll(cell, params, self.xs, reverse=reverse)
        np.testing.assert_allclose(last.h, np.outer(expected, np.ones(3)), rtol=1e-5)

    def test_conv_lstm_cell(self):
        cell, params = self.params("conv_lstm", 4, (0, 1, 0, 0), features=3)
        x = np.arange(150, dtype=np.float32).reshape(2, 5, 5, 3) / 10
        start = np.arange(200, dtype=np.float32).reshape(2, 5, 5, 4) / 10
        state, _ = cell.step(params, LSTMState(h=start, c=start), x)
        np.testing.assert_allclose(state.h.sum(), 188.89502, rtol=1e-6)
        np.testing.assert_allclose(state.c.sum(), 2170.444, rtol=1e-6)

    def test_conv_lstm(self):
        cell, params = self.params("conv_lstm", 4, (0, 1, 0, 0), features=3)
        xs = np.arange(450, dtype=np.float32).reshape(2, 3, 5, 5, 3).swapaxes(0, 1) / 100
        start = np.arange(200, dtype=np.float32).reshape(2, 5, 5, 4) / 100
        last, _ = unroll(cell, params, xs, LSTMState(h=start, c=start))
        np.testing.assert_allclose(last.h.sum(), 119.812454, rtol=1e-6)
