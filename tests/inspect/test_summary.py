"""Summaries, compared with numbers counted by hand and with the values that the engine stores."""

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import CELLS, LSTM, Bidirectional, LSTMCell, Stack, unroll
from lstm_jax.cells import ConvLSTMCell, GRUCell, RNNCell
from lstm_jax.inspect import summary

D, H = 5, 8


def one(model, input_size=D):
    (layer,) = summary(model, input_size).layers
    return layer


def test_an_lstm_by_hand():
    layer = one(LSTMCell(H))
    assert (layer.name, layer.cell) == ("cell", "LSTMCell")
    assert (layer.input_shape, layer.output_shape) == ((D,), (H,))
    assert layer.parameters == 4 * H * (D + H + 1)
    assert layer.state_bytes == 2 * H * 4
    assert layer.step_bytes == (2 + 4) * H * 4  # h, c and tanh of four pre-activations
    products = 2 * 4 * H * (D + H)
    sums = 4 * H + 4 * H  # of both products, and of the bias
    curves = 4 * H + H  # of gates and candidate, and of c
    state = 3 * H + H  # f c + i g, and o tanh(c)
    assert layer.step_flops == products + sums + curves + state


def test_other_cells_by_hand():
    gru, rnn = one(GRUCell(H)), one(RNNCell(H))
    assert gru.step_flops == 2 * 3 * H * (D + H) + 6 * H + 3 * H + H + 4 * H
    assert rnn.step_flops == 2 * H * (D + H) + 2 * H + H
    assert rnn.step_bytes == H * 4
    narrow = one(LSTMCell(H, dtype="bfloat16", param_dtype="bfloat16"))
    assert narrow.state_bytes == H * 2 + H * 4  # c is wide
    grid = one(ConvLSTMCell(2, kernel_size=(3, 5), peepholes=True), (7, 6, 3))
    assert grid.output_shape == (7, 6, 2)
    places, kernel = 7 * 6, 3 * 5
    products = 2 * places * 4 * 2 * kernel * (3 + 2)
    # As in the LSTM, two sums, five curves and four for the state, and three peepholes.
    assert grid.step_flops == products + places * 2 * (4 + 4 + 5 + 4 + 3 * 2)


@pytest.mark.parametrize("name", ["lstm", "rnn", "gru"])
def test_operations_of_products_equal_those_that_xla_counts(name):
    """XLA counts the operations of products in the same way, but fewer of the other operations."""
    cell = CELLS[name](hidden_size=64)
    params, x = cell.init(jax.random.key(0), 32), jnp.ones(32)
    compiled = jax.jit(cell.step).lower(params, cell.zero_state(), x).compile()
    counted = one(cell, 32).step_flops
    assert counted == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


@pytest.mark.parametrize("name", [name for name in CELLS if name != "conv_lstm"])
def test_every_cell_has_a_row(name):
    cell = CELLS[name](hidden_size=H)
    layer = one(cell)
    params = cell.init(jax.random.key(0), D)
    assert layer.parameters == sum(leaf.size for leaf in params.values())
    assert layer.output_shape == (cell.output_size,)
    weights = sum(leaf.size for name, leaf in params.items() if name.startswith("w_"))
    assert layer.step_flops >= 2 * weights
    assert layer.step_bytes >= layer.state_bytes


def test_training_stores_the_reported_residuals():
    """The derivative of a loop needs this amount of memory for each additional step."""
    cell, batch = LSTMCell(32), 64
    params = cell.init(jax.random.key(0), D)

    def stored(steps):
        def loss(params, xs):
            return unroll(cell, params, xs, engine="fused")[1].sum()

        _, pullback = jax.eval_shape(
            lambda p, xs: jax.vjp(loss, p, xs), params, jnp.ones((steps, batch, D))
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    measured = (stored(192) - stored(96)) / 96 / batch
    named = one(cell).step_bytes + 4 * D  # and what the cell reads
    # Each block's first carry is kept, too, and some masks of it.
    assert named <= measured <= 1.35 * named


def test_stacks_directions_and_connections():
    stack = Stack(
        {"both": Bidirectional(LSTMCell(H), GRUCell(3)), "inner": LSTM(4, 2), "top": RNNCell(6)},
        connections="skip",
    )
    rows = {layer.name: layer for layer in summary(stack, D).layers}
    assert {
        name: (row.cell, *row.input_shape, *row.output_shape) for name, row in rows.items()
    } == {
        "both.forward": ("LSTMCell", D, H),
        "both.backward": ("GRUCell", D, 3),
        "inner.layer_0": ("LSTMCell", D + H + 3, 4),
        "inner.layer_1": ("LSTMCell", 4, 4),
        "top": ("RNNCell", D + 4, 6),
    }
    params = stack.init(jax.random.key(0), D)
    assert summary(stack, D).parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_flax_modules():
    from flax import nnx

    import lstm_jax.linen
    import lstm_jax.nnx

    expected = summary(LSTM(H, 2), D)
    assert summary(lstm_jax.nnx.LSTM(D, H, 2, rngs=nnx.Rngs(0))) == expected
    assert summary(lstm_jax.linen.LSTM(H, 2), D) == expected
    assert summary(lstm_jax.linen.GRUCell(H), D) == summary(GRUCell(H), D)


def test_the_table():
    table = str(summary(LSTM((H, 3), bidirectional=True), D)).splitlines()
    assert len({len(line.rstrip()) for line in table}) == 1  # numbers end in one column
    assert table[-1].split()[0] == "total"
    assert "layer_1.backward" in table[-3]
    html = summary(LSTM(H), D)._repr_html_()
    assert html.count("<tr>") == 3
    assert "LSTMCell</td>" in html


@pytest.mark.parametrize(
    ("model", "size", "error", "message"),
    [
        (LSTMCell(H), None, ValueError, "input_size must be given, got None"),
        (LSTMCell(H), 0, ValueError, "input_size must be at least 1, got 0"),
        (LSTMCell(H), 2.5, TypeError, "input_size must be an int, got 2.5"),
        (LSTMCell, 3, TypeError, "model must be a cell"),
    ],
)
def test_impossible_summaries(model, size, error, message):
    with pytest.raises(error, match=message):
        summary(model, size)
