"""Weights to and from Keras 3, compared with its layers in values and gradients."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported anywhere

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTM, Bidirectional, LSTMCell, Stack
from lstm_jax.cells import ACTIVATIONS as OURS
from lstm_jax.cells import CELLS, ConvLSTMCell, GRUCell, LSTMState, PeepholeLSTMCell, RNNCell
from lstm_jax.interop import from_keras, keras_mask, to_keras
from lstm_jax.interop.keras import ACTIVATIONS
from tests.interop.comparison import (
    NUMBER,
    assert_close,
    draw,
    draw_like,
    sizes,
    value_and_gradients,
    zero_state,
)

T, B, SPACE = 3, 2, (4, 3)
STATES = (LSTMState, type(RNNCell(1).zero_state()))


@pytest.fixture
def keras():
    return pytest.importorskip("keras", reason="needs the peer keras")


def random_layer(keras, rng, H):
    """A Keras layer, and the options that its arrays do not contain."""
    kind = rng.choice(["LSTM", "GRU", "SimpleRNN", "ConvLSTM2D"])
    use_bias = bool(rng.random() < 0.7)
    given = {}
    if rng.random() < 0.4:
        given["activation"] = str(rng.choice(["relu", "softsign"]))
    if kind != "SimpleRNN" and rng.random() < 0.4:
        given["recurrent_activation"] = "hard_sigmoid"
    options = {**given, "return_sequences": True, "return_state": True}
    if kind == "GRU":
        options["reset_after"] = bool(rng.random() < 0.6)
        if not use_bias:
            given["reset_after"] = options["reset_after"]
    if kind == "ConvLSTM2D":
        given["padding"] = options["padding"] = "same"
        options["kernel_size"] = (3, 1)
        H = 2
    else:
        options["use_cudnn"] = False
        if kind == "SimpleRNN":
            options.pop("use_cudnn")
    layer = getattr(keras.layers, kind)(H, use_bias=use_bias, **options)
    if rng.random() < 0.4 and kind != "ConvLSTM2D":
        given["merge_mode"] = str(rng.choice(["concat", "sum", "ave", "mul"]))
        layer = keras.layers.Bidirectional(layer, merge_mode=given["merge_mode"])
    return layer, given


def is_state(leaf):
    return isinstance(leaf, STATES)


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(NUMBER))
def test_values_and_gradients_agree_with_keras(seed, keras):
    rng = np.random.default_rng(seed)
    D, H = sizes(rng)
    layer, given = random_layer(keras, rng, H)
    space = SPACE if "padding" in given else ()
    D = 3 if space else D
    xs = draw(rng, B, T, *space, D)
    mask = None
    if not space and rng.random() < 0.5:
        lengths = rng.integers(1, T + 1, B)
        mask = np.arange(T) < lengths[:, None]
    layer.build(xs.shape)
    arrays = {w.path: draw(rng, *w.shape) for w in layer.weights}
    ours, _ = from_keras(arrays, **given)
    zeros = zero_state(ours, (B, *space), "float32")
    state = draw_like(rng, zeros)

    def of_keras(state):
        """Our state in the order of Keras: h, or h and c, of each direction."""
        cells = jax.tree.leaves(state, is_leaf=is_state)
        return [part for cell in cells for part in cell]

    def theirs(arrays, xs, state):
        fixed = [v.value for v in layer.non_trainable_variables]
        ys, *last = layer.stateless_call(
            [arrays[w.path] for w in layer.weights],
            fixed,
            xs,
            initial_state=of_keras(state),
            mask=mask,
        )[0]
        results = [jnp.swapaxes(ys, 0, 1), *last]
        if mask is not None:  # a row that has ended repeats its last output
            valid = jnp.asarray(mask.T)[..., None]
            results[0] = jnp.where(valid, results[0], 0)
        return sum((w * r).sum() for w, r in zip(weigh_by, results, strict=True)), results

    width = ours.output_size
    weigh_by = [draw(rng, T, B, *space, width)]
    weigh_by += [draw(rng, *part.shape) for part in of_keras(zeros)]
    with jax.disable_jit():
        graded = jax.value_and_grad(theirs, (0, 1, 2), has_aux=True)
        (_, results), gradients = graded(arrays, jnp.asarray(xs), state)

    def weigh(ys, last):
        mine = [ys, *of_keras(last)]
        return sum((w * r).sum() for w, r in zip(weigh_by, mine, strict=True))

    (ys, last), (by_arrays, by_xs, by_state) = value_and_gradients(
        lambda arrays: from_keras(arrays, **given),
        arrays,
        np.swapaxes(xs, 0, 1),
        state,
        None if mask is None else lengths,
        weigh,
    )
    terms = 8 * xs.size
    for one, other in zip([ys, *of_keras(last)], results, strict=True):
        assert_close(one, other, terms)
    for name in arrays:
        assert_close(by_arrays[name], gradients[0][name], terms, name)
    assert_close(jnp.swapaxes(by_xs, 0, 1), gradients[1], terms, "xs")
    for one, other in zip(of_keras(by_state), of_keras(gradients[2]), strict=True):
        assert_close(one, other, terms, "state")


@pytest.mark.peers
@pytest.mark.peers
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "Bidirectional"])
def test_masked_steps_are_skipped_as_keras_does(kind, keras):
    """Padding at the start, gaps, and a row without steps, in values and gradients."""
    rng = np.random.default_rng(0)
    num_steps, batch, D, H = 6, 4, 3, 2
    options = {"return_sequences": True, "return_state": True, "use_cudnn": False}
    layer = getattr(keras.layers, "GRU" if kind == "GRU" else "LSTM")(H, **options)
    layer = keras.layers.Bidirectional(layer) if kind == "Bidirectional" else layer
    xs = draw(rng, batch, num_steps, D)
    mask = rng.random((batch, num_steps)) < 0.6
    mask[0] = np.arange(num_steps) >= 2
    mask[1] = False
    xs[~mask] = -1.0
    masking = keras.layers.Masking(mask_value=-1.0)
    np.testing.assert_array_equal(masking.compute_mask(xs), mask)
    np.testing.assert_array_equal(keras_mask(xs, -1.0), mask)
    layer.build(xs.shape)
    arrays = {w.path: draw(rng, *w.shape) for w in layer.weights}
    fixed = [v.value for v in layer.non_trainable_variables]
    weigh_by = draw(rng, num_steps, batch, H * (2 if kind == "Bidirectional" else 1))

    def total(ys, states):
        return (weigh_by * ys).sum() + sum(
            jnp.cos(state + n).sum() for n, state in enumerate(states)
        )

    def theirs(arrays, xs):
        weights = [arrays[w.path] for w in layer.weights]
        ys, *last = layer.stateless_call(weights, fixed, xs, mask=mask)[0]
        ys = jnp.where(mask.T[..., None], ys.swapaxes(0, 1), 0)  # a gap repeats the last output
        return total(ys, last), (ys, last)

    def ours(arrays, xs):
        functional, params = from_keras(arrays)
        last, ys = functional.apply(params, xs.swapaxes(0, 1), mask=mask.T)
        last = [part for cell in jax.tree.leaves(last, is_leaf=is_state) for part in cell]
        return total(ys, last), (ys, last)

    results = [
        jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))(arrays, jnp.asarray(xs))
        for function in (ours, theirs)
    ]
    ((_, values), gradients), ((_, expected), expected_gradients) = results
    for one, other in zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, 8 * xs.size)
    for name in arrays:
        assert_close(gradients[0][name], expected_gradients[0][name], 8 * xs.size, name)
    assert_close(gradients[1], expected_gradients[1], 8 * xs.size, "xs")
    assert (np.asarray(gradients[1])[~mask] == 0).all()


def test_paths_are_those_of_a_model(keras):
    keras.utils.clear_session()
    layers = [
        keras.layers.LSTM(2, return_sequences=True),
        keras.layers.Bidirectional(keras.layers.GRU(3, return_sequences=True)),
        keras.layers.SimpleRNN(2, return_sequences=True),
        keras.layers.LSTM(3),
    ]
    inputs = keras.Input((None, 4))
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    stack, params = from_keras({w.path: w.numpy() for w in model.weights})
    arrays = to_keras(stack, params)
    assert list(arrays) == [w.path for w in model.weights]
    model.set_weights([2 * array for array in arrays.values()])
    xs = draw(np.random.default_rng(0), 5, 2, 4)
    _, ys = stack.apply(from_keras({w.path: w for w in model.weights})[1], xs)
    expected = model.predict_on_batch(np.swapaxes(xs, 0, 1))
    np.testing.assert_allclose(ys[-1], expected, atol=1e-6)  # a few float32 rounding errors


@pytest.mark.peers
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_these_names_are_the_same(name, keras):
    xs = np.linspace(-5, 5, 101).astype("float32")
    np.testing.assert_allclose(
        OURS[ACTIVATIONS[name]](xs), keras.activations.get(name)(xs), rtol=1e-6, atol=1e-6
    )


@pytest.mark.peers
def test_padding_of_a_new_keras_convolution_is_rejected_with_advice(keras):
    layer = keras.layers.ConvLSTM2D(2, 3)
    layer.build((1, 2, 5, 5, 3))
    with pytest.raises(ValueError, match=r"padding='valid' would be lost: .* pass padding='same'"):
        from_keras({w.path: w for w in layer.weights})


# ---- round trips without Keras ----


def random_params(layer, input_size=3):
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), input_size))
    return jax.tree.map(jnp.asarray, draw_like(np.random.default_rng(0), shapes))


HELD = [
    (Stack([LSTMCell(3), LSTMCell(4), GRUCell(2, reset_after=True), GRUCell(2), RNNCell(3)]), {}),
    (Stack([Bidirectional(GRUCell(2)), Bidirectional(LSTMCell(3), LSTMCell(4))]), {}),
    (Stack([Bidirectional(RNNCell(2), merge="product")]), {"merge_mode": "mul"}),
    (Stack([ConvLSTMCell(2, kernel_size=(3, 5))] * 2), {"padding": "same"}),
    (Stack([ConvLSTMCell(2, kernel_size=(1,))]), {}),
    (GRUCell(3, gate_fn="hard_sigmoid"), {"recurrent_activation": "hard_sigmoid"}),
    (LSTMCell(3), {}),
    (RNNCell(3, activation_fn="identity"), {"activation": "linear"}),
]


@pytest.mark.parametrize(("layer", "options"), HELD)
def test_round_trip_is_exact(layer, options):
    params = random_params(layer)
    again, back = from_keras(to_keras(layer, params, **options), **options)
    assert again == layer
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_custom_functions():
    def keras_2(x):
        return jnp.clip(0.2 * x + 0.5, 0, 1)

    cell = LSTMCell(3, gate_fn=keras_2)
    params = random_params(cell)
    with pytest.raises(ValueError, match="gate_fn=keras_2 of LSTMCell would be lost"):
        to_keras(cell, params)
    arrays = to_keras(cell, params, recurrent_activation=keras_2)
    assert from_keras(arrays, recurrent_activation=keras_2)[0] == cell


def test_no_bias():
    cell = GRUCell(3, reset_after=True)
    params = cell.init(jax.random.key(0), 2)
    arrays = to_keras(cell, params, use_bias=False)
    assert list(arrays) == ["kernel", "recurrent_kernel"]
    again, back = from_keras(arrays)
    assert again == cell
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert from_keras(arrays, reset_after=False)[0] == GRUCell(3)
    with pytest.raises(ValueError, match="b is not zero and would be lost"):
        to_keras(cell, random_params(cell), use_bias=False)


REFUSED = [
    (PeepholeLSTMCell(3), {}, "p_i, p_f, p_o of PeepholeLSTMCell would be lost: keras has LSTM"),
    (CELLS["projected"](4), {}, "ProjectedLSTMCell would be lost"),
    (LSTMCell(3, gate_fn="hard_sigmoid"), {}, "gate_fn='hard_sigmoid' of LSTMCell would be lost"),
    (LSTMCell(3, output_fn="relu"), {}, "output_fn='relu' of LSTMCell would be lost"),
    (LSTMCell(3), {"activation": "relu"}, "activation_fn='tanh' of LSTMCell would be lost"),
    (ConvLSTMCell(3), {}, "padding='valid' would be lost"),
    (ConvLSTMCell(3, peepholes=True), {"padding": "same"}, "peepholes=True of ConvLSTMCell"),
    (LSTM(3, bidirectional=True, merge="sum"), {}, "merge='sum' would be lost"),
    (LSTM(3, 2, connections="skip"), {}, "connections='skip' would be lost"),
    (LSTMCell(3), {"activation": "gelu"}, "activation must be a function or one of .*'gelu'"),
    (LSTM(3, bidirectional=True), {"merge_mode": "add"}, "merge_mode must be one of concat, sum"),
]


@pytest.mark.parametrize(("layer", "options", "message"), REFUSED)
def test_unsupported_options_are_rejected(layer, options, message):
    with pytest.raises(ValueError, match=message):
        to_keras(layer, random_params(layer), **options)


def changed(layer=None, /, **changes):
    """Arrays of both directions of a layer, some removed (None) or added."""
    layer = layer or Stack([Bidirectional(LSTMCell(2))])
    changes = {name.replace("__", "/"): array for name, array in changes.items()}
    arrays = {**to_keras(layer, random_params(layer)), **changes}
    return {name: array for name, array in arrays.items() if array is not None}


def ones(*shape):
    return np.ones(shape, "float32")


GRU = GRUCell(2, reset_after=True)
WRONG = [
    (changed(dense__kernel=ones(2, 2)), {}, "^dense/recurrent_kernel is missing"),
    (
        changed(norm__gamma=ones(2)),
        {},
        "^norm/gamma is not an array of .* leave out the arrays of other layers",
    ),
    (
        {n: a for n, a in changed().items() if "backward" not in n},
        {},
        "^bidirectional/backward_... is missing",
    ),
    (changed(LSTMCell(2), kernel=ones(3, 7)), {}, r"^kernel must have shape \(D, 4H\), \(3, 8\)"),
    (changed(LSTMCell(2), recurrent_kernel=ones(2, 9)), {}, "^kernel must have shape|^recurrent_k"),
    (changed(LSTMCell(2), bias=ones(9)), {}, r"^bias must have shape \(4H,\), \(8,\)"),
    (changed(GRU, bias=ones(3, 6)), {}, r"^bias must have shape \(2, 3H\), \(2, 6\), or"),
    (
        changed(GRU),
        {"reset_after": False},
        r"^bias has shape \(2, 6\), which means reset_after=True",
    ),
    (changed(LSTMCell(2), recurrent_kernel=None), {}, "^recurrent_kernel is missing"),
    (
        {"kernel": ones(2, 2, 3, 8), "recurrent_kernel": ones(2, 2, 2, 8)},
        {"padding": "same"},
        r"^kernel must have odd kernel sizes, got \(2, 2\)",
    ),
    (changed(), {"merge_mode": None}, "^merge_mode must be one of concat, sum, ave, mul, got None"),
    (changed(), {"padding": "causal"}, "^padding must be 'same' or 'valid', got 'causal'"),
]


@pytest.mark.parametrize(("arrays", "options", "message"), WRONG)
def test_wrong_arrays_are_named(arrays, options, message):
    with pytest.raises(ValueError, match=message):
        from_keras(arrays, **options)
