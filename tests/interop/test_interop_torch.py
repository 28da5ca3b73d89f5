"""Weights to and from PyTorch, compared with its modules in values and gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTM, Bidirectional, LSTMCell, Stack
from lstm_jax.cells import CELLS, GRUCell, PeepholeLSTMCell, ProjectedLSTMCell, RNNCell
from lstm_jax.interop import from_torch, to_torch
from tests.interop.comparison import (
    NUMBER,
    assert_close,
    draw,
    draw_like,
    sizes,
    value_and_gradients,
    zero_state,
)

T, B = 3, 2


def random_module(torch, seed):
    """A torch module, the options that its arrays do not contain, and an input size."""
    rng = np.random.default_rng(seed)
    D, H = sizes(rng)
    kind = rng.choice(["LSTM", "LSTM", "GRU", "RNN"])
    options = {"bias": bool(rng.random() < 0.7), "dtype": torch.float64}
    if kind == "RNN" and rng.random() < 0.5:
        options["nonlinearity"] = "relu"
    given = {key: value for key, value in options.items() if key == "nonlinearity"}
    if rng.random() < 0.2:
        return getattr(torch.nn, f"{kind}Cell")(D, H, **options), given
    if kind == "LSTM" and rng.random() < 0.4:
        options["proj_size"] = H // 2
    options |= {
        "num_layers": int(rng.integers(1, 3)),
        "bidirectional": bool(rng.random() < 0.4),
        "batch_first": bool(rng.random() < 0.5),
    }
    return getattr(torch.nn, kind)(D, H, **options), given


def theirs_of_layer(torch, module, xs, h_0, c_0, lengths):
    """Outputs, with time as the first axis, and last h and c (or None) of a torch layer."""
    inputs = xs.transpose(0, 1) if module.batch_first else xs
    if lengths is not None:
        inputs = torch.nn.utils.rnn.pack_padded_sequence(
            inputs, lengths, batch_first=module.batch_first, enforce_sorted=False
        )
    ys, last = module(inputs, h_0 if c_0 is None else (h_0, c_0))
    if lengths is not None:
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(
            ys, batch_first=module.batch_first, total_length=T
        )
    ys = ys.transpose(0, 1) if module.batch_first else ys
    return (ys, *last) if isinstance(last, tuple) else (ys, last, None)


def theirs_of_cell(torch, module, xs, h_0, c_0, lengths):
    h, c, ys = h_0[0], None if c_0 is None else c_0[0], []
    for x in xs:
        if c is None:
            h = module(x, h)
        else:
            h, c = module(x, (h, c))
        ys.append(h)
    return torch.stack(ys), h[None], None if c is None else c[None]


def stacked(state, name):
    """``h`` or ``c`` of our state for all layers and directions, in torch's layout."""
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: hasattr(leaf, "h"))
    if not hasattr(leaves[0], name):
        return None
    return jnp.stack([getattr(leaf, name) for leaf in leaves])


def as_state(zeros, h, c):
    """The inverse: our state from torch's ``h`` and ``c``."""
    leaves, tree = jax.tree.flatten(zeros, is_leaf=lambda leaf: hasattr(leaf, "h"))
    made = [
        type(leaf)(h=h[n]) if c is None else type(leaf)(h=h[n], c=c[n])
        for n, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, made)


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(NUMBER))
def test_values_and_gradients_agree_with_torch(seed):
    torch = pytest.importorskip("torch", reason="needs the peer torch")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        module, given = random_module(torch, seed)
        cell = not hasattr(module, "batch_first")
        arrays = {name: np.asarray(array) for name, array in module.state_dict().items()}
        layer, _ = from_torch(module.state_dict(), **given)
        zeros = zero_state(layer, (B,), "float64")
        xs = draw(rng, T, B, module.input_size, dtype="float64")
        lengths = None if cell or seed % 2 else rng.integers(1, T + 1, B)
        first = {name: stacked(zeros, name) for name in "hc"}
        first = {
            name: None if zero is None else draw(rng, *zero.shape, dtype="float64")
            for name, zero in first.items()
        }

        # Theirs.
        tensor = {
            name: None if value is None else torch.tensor(value, requires_grad=True)
            for name, value in {**first, "xs": xs}.items()
        }
        theirs = (theirs_of_cell if cell else theirs_of_layer)(
            torch, module, tensor["xs"], tensor["h"], tensor["c"], lengths
        )
        weights = [
            None if one is None else draw(rng, *one.shape, dtype="float64") for one in theirs
        ]
        total = sum(
            (torch.tensor(weight) * one).sum()
            for weight, one in zip(weights, theirs, strict=True)
            if one is not None
        )
        total.backward()

        # Ours.
        def weigh(ys, last):
            ours = ys, stacked(last, "h"), stacked(last, "c")
            pairs = zip(weights, ours, strict=True)
            return sum((weight * one).sum() for weight, one in pairs if one is not None)

        (ys, last), (by_arrays, by_xs, by_state) = value_and_gradients(
            lambda arrays: from_torch(arrays, **given),
            arrays,
            xs,
            as_state(zeros, first["h"], first["c"]),
            lengths,
            weigh,
        )

        terms = T * B * 8
        for ours, their in zip((ys, stacked(last, "h"), stacked(last, "c")), theirs, strict=True):
            assert (ours is None) == (their is None)
            if ours is not None:
                assert_close(ours, their.detach(), terms)
        for name, parameter in module.named_parameters():
            assert_close(by_arrays[name], parameter.grad, terms, name)
        assert_close(by_xs, tensor["xs"].grad, terms, "xs")
        for name in "hc":
            if first[name] is not None:
                assert_close(stacked(by_state, name), tensor[name].grad, terms, name)


# ---- round trips without torch ----


def random_params(layer, input_size=3):
    """Parameters none of which is zero."""
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), input_size))
    return jax.tree.map(jnp.asarray, draw_like(np.random.default_rng(0), shapes))


HELD = [
    Stack([LSTMCell(4)] * 2),
    Stack([Bidirectional(LSTMCell(4))] * 2),
    Stack([ProjectedLSTMCell(4, proj_size=3)]),
    Stack([GRUCell(4, reset_after=True)]),
    Stack([RNNCell(4)] * 3),
    LSTMCell(2),
    GRUCell(2, reset_after=True),
    RNNCell(2),
]


@pytest.mark.parametrize("layer", HELD)
def test_round_trip_is_exact(layer):
    params = random_params(layer)
    again, back = from_torch(to_torch(layer, params, prefix="a."), prefix="a.")
    assert again == layer
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_are_preserved(dtype):
    params = random_params(Stack([LSTMCell(4, param_dtype=dtype)]))
    layer, back = from_torch(to_torch(Stack([LSTMCell(4)]), params))
    assert layer.layers[0][1].param_dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.peers
def test_tensors_on_a_tape_and_of_bfloat16_are_read():
    torch = pytest.importorskip("torch", reason="needs the peer torch")
    module = torch.nn.LSTM(3, 2)
    _, params = from_torch(dict(module.named_parameters()))
    halved = module.to(torch.bfloat16)
    _, narrow = from_torch(halved.state_dict())
    assert narrow["layer_0"]["w_ih"].dtype == jnp.bfloat16
    expected = params["layer_0"]["w_ih"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(narrow["layer_0"]["w_ih"], expected)


@pytest.mark.peers
def test_imported_arrays_do_not_share_memory():
    torch = pytest.importorskip("torch", reason="needs the peer torch")
    module = torch.nn.RNN(3, 4)
    _, params = from_torch(module.state_dict())
    before = np.array(params["layer_0"]["w_hh"])
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    np.testing.assert_array_equal(params["layer_0"]["w_hh"], before)


def test_no_bias():
    layer = Stack([LSTMCell(4, forget_bias=0.0)])
    params = layer.init(jax.random.key(0), 3)
    arrays = to_torch(layer, params, bias=False)
    assert list(arrays) == ["weight_ih_l0", "weight_hh_l0"]
    jax.tree.map(np.testing.assert_array_equal, from_torch(arrays)[1], params)
    with pytest.raises(ValueError, match=r"b is not zero and would be lost: .* bias=False"):
        to_torch(layer, random_params(layer), bias=False)


def test_two_biases_become_their_sum():
    layer = Stack([RNNCell(4)])
    arrays = to_torch(layer, random_params(layer))
    arrays["bias_hh_l0"] += np.arange(4, dtype="float32")
    _, params = from_torch(arrays)
    np.testing.assert_array_equal(
        params["layer_0"]["b"], arrays["bias_ih_l0"] + np.arange(4, dtype="float32")
    )


REFUSED = [
    (PeepholeLSTMCell(3), {}, "p_i, p_f, p_o of PeepholeLSTMCell would be lost: torch has LSTM"),
    (CELLS["coupled"](3), {}, "CoupledLSTMCell would be lost: torch has LSTM"),
    (LSTMCell(3, cell_clip=3.0), {}, "cell_clip=3.0 of LSTMCell would be lost"),
    (LSTMCell(3, gate_fn="hard_sigmoid"), {}, "gate_fn='hard_sigmoid' of LSTMCell would be lost"),
    (LSTMCell(3, learn_initial_state=True), {}, "learn_initial_state=True of LSTMCell would be"),
    (GRUCell(3), {}, "reset_after=False of GRUCell would be lost: torch has reset_after=True"),
    (RNNCell(3, activation_fn="relu"), {}, "activation_fn='relu' of RNNCell would be lost"),
    (RNNCell(3), {"nonlinearity": "relu"}, "activation_fn='tanh' of RNNCell would be lost"),
    (ProjectedLSTMCell(3, proj_size=3), {}, "proj_size=3 would be lost"),
    (LSTM(3, 2, connections="residual"), {}, "connections='residual' would be lost"),
    (LSTM(3, reverse=True), {}, "reverse=True would be lost"),
    (LSTM(3, bidirectional=True, merge="sum"), {}, "merge='sum' would be lost"),
    (LSTM((3, 4)), {}, "layer_1 forward: torch has one kind and size of cell for all layers"),
    (Stack([Bidirectional(LSTMCell(3)), LSTMCell(3)]), {}, "layer_1 has other directions"),
]


@pytest.mark.parametrize(("layer", "options", "message"), REFUSED)
def test_unsupported_options_are_rejected(layer, options, message):
    with pytest.raises(ValueError, match=message):
        to_torch(layer, random_params(layer), **options)


def changed(**changes):
    """Arrays of two bidirectional layers, some removed (None) or added."""
    layer = Stack([Bidirectional(LSTMCell(2))] * 2)
    arrays = {**to_torch(layer, random_params(layer)), **changes}
    return {name: array for name, array in arrays.items() if array is not None}


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


WRONG = [
    (changed(bias_hh_l1=None), ValueError, "^bias_hh_l1 is missing"),
    (changed(bias_ih_l1=None, bias_hh_l1=None), ValueError, "^bias_ih_l1 is missing"),
    (changed(weight_hh_l0_reverse=None), ValueError, "^weight_hh_l0_reverse is missing"),
    (changed(wieght=ones(2)), ValueError, "^wieght is not an array of a recurrent layer of torch"),
    (changed(weight_ih_l3=ones(8, 4)), ValueError, "^weight_hh_l2 is missing"),
    (changed(weight_ih=ones(8, 4)), ValueError, "^weight_ih is not an array"),
    (changed(weight_ih_l1=ones(8, 3)), ValueError, r"^weight_ih_l1 must have input size 4"),
    (changed(weight_ih_l0=ones(9, 3)), ValueError, r"^weight_ih_l0 .* \(4H, D\), \(8, 3\) with"),
    (changed(weight_hh_l0=ones(8, 3)), ValueError, r"^weight_hh_l0 must .* got \(8, 3\)"),
    (changed(weight_hh_l1=ones(9, 3)), ValueError, "^weight_ih_l1 must have shape"),
    (changed(weight_hr_l0=ones(3, 3)), ValueError, r"^weight_hr_l0 must .* \(P, H\), \(3, 2\)"),
    (changed(bias_ih_l0=ones(7)), ValueError, r"^bias_ih_l0 must have shape \(4H,\), \(8,\)"),
    (changed(bias_ih_l0=ones(8, dtype="int8")), TypeError, "^bias_ih_l0 must be an array of float"),
    (changed(bias_ih_l0=ones(8, dtype="float64")), ValueError, "^bias_ih_l0 is float64, which JAX"),
    ([ones(2)], TypeError, "^arrays of torch must be a mapping from name to array, got list"),
    ({}, ValueError, "no array of torch has a name that begins with ''"),
]


@pytest.mark.parametrize(("arrays", "error", "message"), WRONG)
def test_wrong_arrays_are_named(arrays, error, message):
    with pytest.raises(error, match=message):
        from_torch(arrays)


def test_directions_are_not_mixed():
    one = to_torch(LSTM(2, 2), random_params(LSTM(2, 2)))
    both = to_torch(LSTM(2, bidirectional=True), random_params(LSTM(2, bidirectional=True)))
    with pytest.raises(ValueError, match=r"^weight_hh_l1_reverse is missing"):
        from_torch({**one, **both})


def test_kinds_are_not_mixed():
    arrays = to_torch(LSTM(2, 2), random_params(LSTM(2, 2)))
    rnn = to_torch(LSTM(2, cell="rnn"), random_params(LSTM(2, cell="rnn"), 2))
    swapped = {name.replace("_l0", "_l1"): array for name, array in rnn.items()}
    with pytest.raises(ValueError, match=r"^weight_hh_l1: torch has one kind and size of cell"):
        from_torch({**arrays, **swapped})


def test_parameters_of_another_layer_are_rejected():
    with pytest.raises(TypeError, match="params must have layer_0, layer_1, got layer_0"):
        to_torch(LSTM(2, 2), random_params(LSTM(2)))
    with pytest.raises(ValueError, match="must have shape"):
        to_torch(LSTM(3), random_params(LSTM(2)))
    with pytest.raises(TypeError, match="layer must be a cell, Stack"):
        to_torch("lstm", {})


# ---- weights that torch computes from others ----


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs the peer torch")


def outputs(torch, module, xs):
    with torch.no_grad():
        return module(torch.tensor(xs))[0].numpy()


SEQUENCE = np.random.default_rng(0).normal(size=(4, 2, 3)).astype("float32")


def assert_computes(state_dict, expected, prefix=""):
    layer, params = from_torch(state_dict, prefix=prefix)
    np.testing.assert_allclose(layer.apply(params, SEQUENCE)[1], expected, atol=1e-6)
    return layer, params


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # torch advises its newer weight norm
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("new", [False, True])
def test_weight_norm_becomes_plain_weights(new, dim, torch):
    utils = torch.nn.utils
    norm = utils.parametrizations.weight_norm if new else utils.weight_norm
    module = torch.nn.LSTM(3, 4, 2, bidirectional=True)
    for name in ("weight_hh_l0", "weight_ih_l1_reverse"):
        norm(module, name, dim=dim)
    names = list(module.state_dict())
    assert any("original0" in name if new else name.endswith("_g") for name in names)
    with torch.no_grad():
        for name, array in module.named_parameters():
            if name.endswith(("_g", "original0")):
                array *= torch.rand(array.shape) + 0.5
    expected = outputs(torch, module, SEQUENCE)
    assert_computes(module.state_dict(), expected)
    assert_computes({f"a.{n}": a for n, a in module.state_dict().items()}, expected, "a.")


@pytest.mark.peers
@pytest.mark.parametrize("where", ["", "module."])
def test_weight_drop_has_its_raw_weights(where, torch):
    """AWD-LSTM files also contain the last step's copy with dropout, which must not be used."""
    module = torch.nn.LSTM(3, 4)
    expected = outputs(torch, module, SEQUENCE)
    state = {f"rnns.0.module.{name}": a for name, a in module.state_dict().items()}
    state[f"rnns.0.{where}weight_hh_l0_raw"] = state["rnns.0.module.weight_hh_l0"]
    state["rnns.0.module.weight_hh_l0"] = 0 * state["rnns.0.module.weight_hh_l0"]
    assert_computes(state, expected, "rnns.0.")
    del state["rnns.0.module.weight_hh_l0"]
    assert_computes(state, expected, "rnns.0.")


@pytest.mark.peers
def test_gradients_come_out_under_the_names_of_weight_norm(torch):
    module = torch.nn.LSTM(3, 4)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    module(torch.tensor(SEQUENCE))[0].square().sum().backward()

    def loss(arrays):
        layer, params = from_torch(arrays)
        return (layer.apply(params, SEQUENCE)[1] ** 2).sum()

    arrays = {name: jnp.asarray(a.detach().numpy()) for name, a in module.named_parameters()}
    with jax.disable_jit():
        gradients = jax.grad(loss)(arrays)
    for name, array in module.named_parameters():
        np.testing.assert_allclose(gradients[name], array.grad, atol=1e-5)  # sums of 8 steps


@pytest.mark.peers
def test_a_state_dict_from_json(torch):
    module = torch.nn.GRU(3, 4)
    text = json.dumps({name: array.tolist() for name, array in module.state_dict().items()})
    _, params = assert_computes(json.loads(text), outputs(torch, module, SEQUENCE))
    _, wanted = from_torch(module.state_dict())
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def listed(**changes):
    arrays = {"weight_ih_l0": np.ones((8, 1)).tolist(), "weight_hh_l0": np.ones((8, 2)).tolist()}
    return {**arrays, **changes}


def array(*shape):
    return np.ones(shape, "float32")


PARTS = {
    "weight_ih_l0": array(8, 1),
    "weight_hh_l0_g": array(8, 1),
    "weight_hh_l0_v": array(8, 2),
}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            listed(weight_hh_l0=[[1.0], [1.0, 2.0]]),
            "^weight_hh_l0 must be lists of equal lengths: ",
        ),
        (listed(weight_hh_l0=["a"]), "^weight_hh_l0 must be lists of numbers, got <U1"),
        (
            listed(weight_hh_l0=[[1e39] * 2] * 8),
            "^weight_hh_l0 has numbers outside the range of float32",
        ),
        (listed(weight_hh_l0=[True]), "^weight_hh_l0 must be lists of numbers, got bool"),
        (
            {n: a for n, a in PARTS.items() if not n.endswith("_v")},
            "^weight_hh_l0_g is one part of a weight with weight norm; the other is missing",
        ),
        ({**PARTS, "weight_hh_l0_g": array(4, 1)}, r"^weight_hh_l0_g must have the shape of its"),
        ({**PARTS, "weight_hh_l0_g": array(8, 2)}, r"^weight_hh_l0_g must have the shape of its"),
        ({**PARTS, "weight_hh_l0_g": array(8)}, r"but size 1 along each axis .* got \(8,\)"),
        (
            {"parametrizations.weight_hh_l0.original": array(8, 2)},
            "belongs to a parametrization other than weight norm; remove it first: torch.nn.utils",
        ),
    ],
)
def test_parts_of_weights_that_do_not_fit_are_named(arrays, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_torch(arrays)
