import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTM, LSTMCell
from lstm_jax.sequence import dropout
from tests import oracle

T, B, D, H = 7, 3, 4, 5
XS = jax.random.normal(jax.random.key(1), (T, B, D))


def test_a_stack_equals_numpy_loops_on_top_of_each_other():
    lstm = LSTM(H, num_layers=3)
    params = lstm.init(jax.random.key(0), D)
    lengths = [7, 2, 0]
    state, ys = lstm.apply(params, XS, lengths=jnp.array(lengths))
    below = XS
    for name in ("layer_0", "layer_1", "layer_2"):
        h, c, below = oracle.lstm(params[name], below, lengths=lengths)
        np.testing.assert_allclose(state[name].h, h, atol=3e-6)
        np.testing.assert_allclose(state[name].c, c, atol=3e-6)
    np.testing.assert_allclose(ys, below, atol=3e-6)


def test_chunks_with_the_states_handed_on_equal_the_whole():
    lstm = LSTM(H, num_layers=2)
    params = lstm.init(jax.random.key(0), D)
    whole, ys = lstm.apply(params, XS)
    middle, first = lstm.apply(params, XS[:3])
    last, second = lstm.apply(params, XS[3:], middle)
    np.testing.assert_array_equal(jnp.concatenate([first, second]), ys)
    chex.assert_trees_all_equal(last, whole)


def test_layers_are_drawn_apart():
    params = LSTM(H, num_layers=2).init(jax.random.key(0), H)
    assert not np.array_equal(params["layer_0"]["w_hh"], params["layer_1"]["w_hh"])


def test_the_cell_of_the_layers_can_be_replaced():
    lstm = LSTM(H, cell=functools.partial(LSTMCell, forget_bias=3.0))
    bias = lstm.init(jax.random.key(0), D)["layer_0"]["b"]
    np.testing.assert_array_equal(bias, np.repeat([0.0, 3.0, 0.0, 0.0], H))


class TestDropout:
    lstm = LSTM(H, num_layers=2, dropout=0.5)
    params = lstm.init(jax.random.key(0), D)

    def test_is_off_without_a_key(self):
        plain = LSTM(H, num_layers=2).apply(self.params, XS)
        chex.assert_trees_all_equal(self.lstm.apply(self.params, XS), plain)

    def test_with_a_key_touches_the_way_up_alone(self):
        plain, _ = self.lstm.apply(self.params, XS)
        state, ys = self.lstm.apply(self.params, XS, key=jax.random.key(2))
        chex.assert_trees_all_equal(state["layer_0"], plain["layer_0"])
        assert not np.allclose(state["layer_1"].h, plain["layer_1"].h)
        assert (ys != 0).all()  # nothing is dropped after the top layer

    def test_keeps_the_mean(self):
        xs = dropout(jnp.ones(100_000), 0.3, jax.random.key(0))
        zeros = float((xs == 0).mean())
        # Five deviations of the mean of 100,000 coin tosses.
        assert abs(zeros - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 1e5)
        np.testing.assert_allclose(xs[xs != 0], 1 / 0.7, rtol=1e-6)


class TestErrors:
    lstm = LSTM(H, num_layers=2)

    def test_parameters_of_another_stack(self):
        params = LSTM(H).init(jax.random.key(0), D)
        with pytest.raises(TypeError, match="params must have one entry a layer, layer_0, layer_1"):
            self.lstm.apply(params, XS)

    def test_states_of_another_stack(self):
        params = self.lstm.init(jax.random.key(0), D)
        with pytest.raises(TypeError, match="state must have one entry a layer"):
            self.lstm.apply(params, XS, LSTM(H).zero_state((B,)))

    @pytest.mark.parametrize("rate", [-0.1, 1.0])
    def test_impossible_dropout(self, rate):
        with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
            LSTM(H, dropout=rate)

    def test_impossible_number_of_layers(self):
        with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
            LSTM(H, num_layers=0)
        with pytest.raises(TypeError, match="num_layers must be an int"):
            LSTM(H, num_layers=1.5)
