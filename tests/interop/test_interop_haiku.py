"""Parameters to and from Haiku, compared with its cores in values and gradients."""

import jax
import numpy as np
import pytest

from lstm_jax.cells import (
    ConvLSTMCell,
    GRUCell,
    LSTMCell,
    LSTMState,
    PeepholeLSTMCell,
    RNNCell,
    RNNState,
)
from lstm_jax.interop import from_haiku, to_haiku
from tests.interop.comparison import NUMBER, assert_cells_agree, draw, draw_like, sizes

T, B = 3, 2


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(NUMBER))
def test_values_and_gradients_agree_with_haiku(seed):
    hk = pytest.importorskip("haiku", reason="needs the peer dm-haiku")
    rng = np.random.default_rng(seed)
    D, H = sizes(rng)
    kind = rng.choice(["LSTM", "GRU", "VanillaRNN", "Conv2DLSTM"])
    space = (4, 3) if kind == "Conv2DLSTM" else ()
    if space:
        D, H = 3, 2
    options = {"double_bias": bool(rng.random() < 0.5)} if kind == "VanillaRNN" else {}

    def core(x, carry):
        arguments = (space, H, [3, 1]) if space else (H,)
        return getattr(hk, kind)(*arguments, **options)(x, carry)

    core = hk.without_apply_rng(hk.transform(core))
    with jax.enable_x64(True):
        xs = draw(rng, T, B, *space, D, dtype="float64")
        h, c = draw(rng, 2, B, *space, H, dtype="float64")
        lstm = kind.endswith("LSTM")
        carry = hk.LSTMState(h, c) if lstm else h
        arrays = draw_like(rng, core.init(jax.random.PRNGKey(seed), xs[0], carry))

        def step(arrays, carry, x):
            y, carry = core.apply(arrays, x, carry)
            return carry, y

        as_state = (lambda carry: LSTMState(*carry)) if lstm else RNNState
        assert_cells_agree(from_haiku, arrays, step, carry, as_state, xs, rng)

        again = to_haiku(*from_haiku(arrays), **options)
        assert jax.tree.structure(again) == jax.tree.structure(arrays)
        for path, array in jax.tree_util.tree_leaves_with_path(again):
            given = arrays[path[0].key][path[1].key]
            if path[1].key == "w" or kind == "GRU":
                np.testing.assert_array_equal(array, given, strict=True)
            elif kind == "LSTM":  # 1 was added and subtracted
                np.testing.assert_allclose(array, given, atol=np.finfo(float).eps)


CELLS = [
    LSTMCell(3),
    GRUCell(3),
    RNNCell(3, activation_fn="relu"),
    ConvLSTMCell(2),
    ConvLSTMCell(2, kernel_size=(1, 3, 1)),
]


@pytest.mark.parametrize("cell", CELLS)
def test_round_trip_is_exact_except_rounding_of_the_forget_bias(cell):
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    params = draw_like(np.random.default_rng(0), shapes)
    again, back = from_haiku(to_haiku(cell, params))
    assert again == cell
    back = {name: np.array(array) for name, array in back.items()}
    if "LSTM" in type(cell).__name__:
        forget = np.s_[cell.hidden_size : 2 * cell.hidden_size]
        given = params["b"][forget]
        np.testing.assert_allclose(back["b"][forget], given, atol=2e-7)  # of numbers up to 2
        exact = given >= 0.5
        np.testing.assert_array_equal(back["b"][forget][exact], given[exact])
        back["b"][forget] = given
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_new_forget_bias_round_trips_exactly():
    cell = LSTMCell(3, forget_bias=1.0)
    params = cell.init(jax.random.key(0), 2)
    arrays = to_haiku(cell, params, name="mine")
    assert not arrays["mine/linear"]["b"].any()
    jax.tree.map(np.testing.assert_array_equal, from_haiku(arrays)[1], params)


def test_an_rnn_without_second_bias():
    cell = RNNCell(3, activation_fn="relu")
    params = cell.init(jax.random.key(0), 2)
    arrays = to_haiku(cell, params, double_bias=False)
    assert list(arrays["vanilla_rnn/linear_1"]) == ["w"]
    jax.tree.map(np.testing.assert_array_equal, from_haiku(arrays)[1], params)


REFUSED = [
    (RNNCell(3), "activation_fn='tanh' of RNNCell would be lost: haiku has activation_fn='relu'"),
    (GRUCell(3, reset_after=True), "reset_after=True of GRUCell would be lost"),
    (PeepholeLSTMCell(3), "p_i, p_f, p_o of PeepholeLSTMCell would be lost: haiku has LSTM, GRU"),
    (ConvLSTMCell(3, peepholes=True), "peepholes=True of ConvLSTMCell would be lost"),
    (LSTMCell(3, learn_initial_state=True), "learn_initial_state=True of LSTMCell would be lost"),
]


@pytest.mark.parametrize(("cell", "message"), REFUSED)
def test_unsupported_options_are_rejected(cell, message):
    with pytest.raises(ValueError, match=message):
        to_haiku(cell, cell.init(jax.random.key(0), 2))


def ones(*shape):
    return np.ones(shape, "float32")


WRONG = [
    ({"mlp": {"v": ones(2, 3)}}, "must have a name that ends in .*linear/w, got mlp/v"),
    ({"lstm/linear": {"w": ones(2, 12), "b": ones(12)}}, r"lstm/linear/w must have shape \(D \+ H"),
    ({"lstm/linear": {"w": ones(5, 11)}}, r"lstm/linear/w must have shape .* got \(5, 11\)"),
    ({"lstm/linear": {"w": ones(5, 12), "b": ones(9)}}, r"lstm/linear/b must have shape \(4H,\)"),
    ({"lstm/linear": {"w": ones(5, 12), "bias": ones(12)}}, "lstm/linear/bias is not an array of"),
    (
        {"lstm/linear": {"w": ones(5, 12)}, "lstm_1/linear": {"w": ones(6, 12)}},
        "lstm_1/linear/w is not an array of .* lstm; pass the parameters of one core",
    ),
    ({"gru": {"w_i": ones(2, 9), "b": ones(9)}}, "gru/w_h is missing"),
    (
        {"c": {"input_to_hidden": {"w": ones(2, 1, 8)}, "hidden_to_hidden": {"w": ones(2, 2, 8)}}},
        r"c/input_to_hidden/w must have odd kernel sizes, got \(2,\)",
    ),
]


@pytest.mark.parametrize(("arrays", "message"), WRONG)
def test_wrong_arrays_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        from_haiku(arrays)
