"""Weights to and from Equinox, compared with its cells in values and gradients."""

import jax
import numpy as np
import pytest

from lstm_jax import LSTM
from lstm_jax.cells import GRUCell, LSTMCell, LSTMState, RNNState
from lstm_jax.interop import from_equinox, to_equinox
from tests.interop.comparison import NUMBER, assert_cells_agree, draw, draw_like, sizes

T = 3


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(NUMBER))
def test_values_and_gradients_agree_with_equinox(seed):
    eqx = pytest.importorskip("equinox", reason="needs the peer equinox")
    rng = np.random.default_rng(seed)
    D, H = sizes(rng)
    kind = rng.choice(["LSTMCell", "GRUCell"])
    use_bias = bool(rng.random() < 0.8)
    with jax.enable_x64(True):
        options = {"use_bias": use_bias, "dtype": "float64", "key": jax.random.key(seed)}
        module = getattr(eqx.nn, kind)(D, H, **options)
        from_equinox(vars(module))  # accepts a module's fields unchanged
        arrays = {n: a for n, a in vars(module).items() if isinstance(a, jax.Array)}
        names = list(arrays)

        def step(arrays, carry, x):
            filled = eqx.tree_at(
                lambda m: [getattr(m, n) for n in names], module, [*map(arrays.get, names)]
            )
            carry = filled(x, carry)
            return carry, carry[0] if kind == "LSTMCell" else carry

        h, c = draw(rng, 2, H, dtype="float64")
        lstm = kind == "LSTMCell"
        carry = (h, c) if lstm else h
        as_state = (lambda carry: LSTMState(*carry)) if lstm else RNNState
        xs = draw(rng, T, D, dtype="float64")
        assert_cells_agree(from_equinox, arrays, step, carry, as_state, xs, rng)

        again = to_equinox(*from_equinox(arrays), use_bias=use_bias)
        assert list(again) == names
        for name in names:
            np.testing.assert_array_equal(again[name], arrays[name], strict=True)


@pytest.mark.parametrize("cell", [LSTMCell(3), GRUCell(3, reset_after=True)])
def test_round_trip_is_exact(cell):
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    params = draw_like(np.random.default_rng(0), shapes)
    again, back = from_equinox(to_equinox(cell, params))
    assert again == cell
    jax.tree.map(np.testing.assert_array_equal, back, params)


REFUSED = [
    (LSTMCell(3, cell_clip=1.0), "cell_clip=1.0 of LSTMCell would be lost"),
    (LSTMCell(3, activation_fn="relu"), "activation_fn='relu' of LSTMCell would be lost"),
    (GRUCell(3), "reset_after=False of GRUCell would be lost"),
]


@pytest.mark.parametrize(("cell", "message"), REFUSED)
def test_unsupported_options_are_rejected(cell, message):
    with pytest.raises(ValueError, match=message):
        to_equinox(cell, cell.init(jax.random.key(0), 2))


def ones(**shapes):
    return {name: np.ones(shape, "float32") for name, shape in shapes.items()}


WRONG = [
    (ones(weight_ih=(8, 3)), "weight_hh is missing from the arrays of equinox, got weight_ih"),
    (ones(weight_hh=(8, 2)), "weight_ih is missing"),
    (ones(weight_hh=(7, 2)), r"weight_hh must have shape \(4H, H\) or \(3H, H\).* got \(7, 2\)"),
    (ones(weight_hh=(8, 2), weight_ih=(7, 3)), r"weight_ih must have shape \(4H, D\), \(8, 3\)"),
    (
        ones(weight_hh=(8, 2), weight_ih=(8, 3), bias=(7,)),
        r"bias must have shape \(4H,\), \(8,\) with these weights, got \(7,\)",
    ),
    (ones(weight_hh=(6, 2), weight_ih=(6, 3), bias=(6,)), "bias_n is missing"),
    (
        ones(weight_hh=(8, 2), weight_ih=(8, 3), bias_n=(2,)),
        "bias_n is not an array of a recurrent",
    ),
]


@pytest.mark.parametrize(("arrays", "message"), WRONG)
def test_wrong_arrays_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        from_equinox(arrays)


def test_layers_are_rejected():
    lstm = LSTM(3)
    with pytest.raises(TypeError, match=r"cell must be a single cell for equinox, got LSTM"):
        to_equinox(lstm, lstm.init(jax.random.key(0), 2))
