import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lstm_jax
from lstm_jax.nnx import LSTM, LSTMCell
from tests import oracle

B, T, D, H = 3, 6, 4, 5
XS = jax.random.normal(jax.random.key(1), (B, T, D))
LENGTHS = jnp.array([6, 4, 1])


def test_a_cell_in_flax_rnn_equals_the_numpy_loop():
    cell = LSTMCell(D, H, rngs=nnx.Rngs(0))
    ys = nnx.RNN(cell)(XS)
    _, _, expected = oracle.lstm(cell.params, XS.swapaxes(0, 1))
    np.testing.assert_allclose(ys, expected.swapaxes(0, 1), atol=3e-6)


def test_a_cell_in_flax_rnn_takes_its_keywords():
    cell = LSTMCell(D, H, rngs=nnx.Rngs(0))
    carry, ys = nnx.RNN(cell, time_major=True)(
        XS.swapaxes(0, 1), seq_lengths=LENGTHS, return_carry=True
    )
    h, c, expected = oracle.lstm(cell.params, XS.swapaxes(0, 1), lengths=LENGTHS)
    np.testing.assert_allclose(carry.h, h, atol=3e-6)
    np.testing.assert_allclose(carry.c, c, atol=3e-6)
    valid = np.arange(T)[:, None] < np.asarray(LENGTHS)
    np.testing.assert_allclose(ys[valid], expected[valid], atol=3e-6)


def test_the_equations_are_those_of_flax():
    """The same weights in flax's own OptimizedLSTMCell (gate order i, f, g, o by name)."""
    ours = LSTMCell(D, H, rngs=nnx.Rngs(0))
    theirs = nnx.LSTMCell(D, H, rngs=nnx.Rngs(1))
    for name, w, u, b in zip(
        "ifgo",
        *(jnp.split(ours.params[name], 4, -1) for name in ("w_ih", "w_hh", "b")),
        strict=True,
    ):
        getattr(theirs, {"f": "if_"}.get(name, f"i{name}")).kernel[...] = w
        getattr(theirs, f"h{name}").kernel[...] = u
        getattr(theirs, f"h{name}").bias[...] = b
    np.testing.assert_allclose(nnx.RNN(ours)(XS), nnx.RNN(theirs)(XS), atol=3e-6)


class TestLSTM:
    lstm = LSTM(D, H, num_layers=2, rngs=nnx.Rngs(0))

    def test_equals_the_functional_layer(self):
        carry, ys = self.lstm(XS, seq_lengths=LENGTHS, return_carry=True)
        functional = lstm_jax.LSTM(H, num_layers=2)
        expected = functional.apply(self.lstm.params, XS.swapaxes(0, 1), lengths=LENGTHS)
        chex.assert_trees_all_equal((carry, ys.swapaxes(0, 1)), expected)

    def test_time_major_is_the_same_turned(self):
        turned = LSTM(D, H, num_layers=2, time_major=True, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(turned(XS.swapaxes(0, 1)).swapaxes(0, 1), self.lstm(XS))

    def test_goes_on_from_a_carry(self):
        carry, first = self.lstm(XS[:, :2], return_carry=True)
        second = self.lstm(XS[:, 2:], initial_carry=carry)
        np.testing.assert_array_equal(jnp.concatenate([first, second], 1), self.lstm(XS))

    def test_more_batch_axes_and_none(self):
        np.testing.assert_allclose(self.lstm(XS[0]), self.lstm(XS)[0], atol=1e-6)
        doubled = self.lstm(jnp.stack([XS, 2 * XS]))
        np.testing.assert_allclose(doubled[1], self.lstm(2 * XS), atol=1e-6)

    def test_dropout_needs_rngs(self):
        lstm = LSTM(D, H, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(lstm(XS), self.lstm(XS))
        assert not np.allclose(lstm(XS, rngs=nnx.Rngs(dropout=3)), self.lstm(XS))

    def test_holds_parameters_only(self):
        state = nnx.state(self.lstm)
        assert jax.tree.leaves(state) == jax.tree.leaves(nnx.state(self.lstm, nnx.Param))
        names = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
        assert names == {f"layer_{n}/{name}" for n in (0, 1) for name in ("w_ih", "w_hh", "b")}

    def test_jit_grad_and_an_optimizer_step(self):
        import optax

        lstm = LSTM(D, H, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(lstm, optax.sgd(0.1), wrt=nnx.Param)

        @nnx.jit
        def step(lstm, optimizer):
            loss, grads = nnx.value_and_grad(lambda lstm: (lstm(XS) ** 2).mean())(lstm)
            optimizer.update(lstm, grads)
            return loss

        losses = [float(step(lstm, optimizer)) for _ in range(5)]
        assert losses == sorted(losses, reverse=True)

    def test_split_and_merge(self):
        graph, state = nnx.split(self.lstm)
        np.testing.assert_array_equal(nnx.merge(graph, state)(XS), self.lstm(XS))

    def test_wrong_rank(self):
        with pytest.raises(ValueError, match=r"xs must be \[\.\.\., T, D\], got shape \(4,\)"):
            self.lstm(jnp.zeros(D))


def test_initialize_carry_draws_where_asked():
    cell = LSTMCell(D, H, rngs=nnx.Rngs(0))
    drawn = cell.initialize_carry((B, D), nnx.Rngs(carry=1), jax.nn.initializers.normal(1.0))
    assert not np.array_equal(drawn.h, drawn.c)
    np.testing.assert_array_equal(cell.initialize_carry((B, D)).c, np.zeros((B, H)))
    with pytest.raises(ValueError, match="rngs must be given where carry_init is"):
        cell.initialize_carry((B, D), None, jax.nn.initializers.ones)
