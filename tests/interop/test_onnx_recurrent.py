"""ONNX's LSTM, GRU and RNN, compared with a loop from the standard and with ONNX Runtime."""

import functools

import jax
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx")

from lstm_jax import LSTM, Bidirectional, LSTMCell, Stack  # noqa: E402
from lstm_jax.cells import CELLS, CoupledLSTMCell, GRUCell, PeepholeLSTMCell, RNNCell  # noqa: E402
from lstm_jax.interop.onnx import from_onnx, layer_from_onnx, layer_to_onnx  # noqa: E402
from lstm_jax.interop.onnx.recurrent import InputForgetLSTMCell  # noqa: E402
from lstm_jax.sequence import VariationalDropout, Zoneout, unroll  # noqa: E402

# Tests run each compiled program once or twice.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}

# ---- the standard's equations in NumPy, one row and step after the other ----
# Attributes of ONNX are float32.

# Each with the standard's defaults of alpha and beta; None if there is none.
FUNCTIONS = {
    "Affine": (1.0, 0.0, lambda x, a, b: a * x + b),
    "Elu": (1.0, None, lambda x, a, b: np.where(x >= 0, x, a * (np.exp(x) - 1))),
    "HardSigmoid": (0.2, 0.5, lambda x, a, b: np.minimum(np.maximum(a * x + b, 0), 1)),
    "LeakyRelu": (0.01, None, lambda x, a, b: np.where(x >= 0, x, a * x)),
    "Relu": (None, None, lambda x, a, b: np.maximum(x, 0)),
    "ScaledTanh": (1.0, 1.0, lambda x, a, b: a * np.tanh(b * x)),
    "Sigmoid": (None, None, lambda x, a, b: 1 / (1 + np.exp(-x))),
    "Softplus": (None, None, lambda x, a, b: np.log(1 + np.exp(x))),
    "Softsign": (None, None, lambda x, a, b: x / (1 + np.abs(x))),
    "Tanh": (None, None, lambda x, a, b: np.tanh(x)),
    "ThresholdedRelu": (1.0, None, lambda x, a, b: np.where(x >= a, x, 0)),
}


def functions_of(operator, directions, attributes):
    names = attributes.get("activations", DEFAULTS[operator] * directions)
    alphas = list(attributes.get("activation_alpha", []))
    betas = list(attributes.get("activation_beta", []))
    made = []
    for name in names:
        alpha, beta, function = FUNCTIONS[name]
        if alpha is not None and alphas:
            alpha = float(np.float32(alphas.pop(0)))
        if beta is not None and betas:
            beta = float(np.float32(betas.pop(0)))
        made.append(lambda x, function=function, alpha=alpha, beta=beta: function(x, alpha, beta))
    count = len(DEFAULTS[operator])
    return [made[n * count : (n + 1) * count] for n in range(directions)]


@np.errstate(over="ignore")
def oracle(operator, feeds, **attributes):
    """Outputs Y, Y_h and, for an LSTM, Y_c, in float64."""
    get = {
        name: None if array is None else np.asarray(array, np.float64)
        for name, array in ((name, feeds.get(name)) for name in INPUTS)
    }
    X, W, R = get["X"], get["W"], get["R"]
    layout = attributes.get("layout", 0)
    if layout:
        X = X.swapaxes(0, 1)
    (steps, rows, _), (directions, _, size) = X.shape, R.shape
    begin = [
        np.zeros((directions, rows, size))
        if get[name] is None
        else (get[name].swapaxes(0, 1) if layout else get[name])
        for name in ("initial_h", "initial_c")
    ]
    lengths = feeds.get("sequence_lens")
    Y = np.zeros((steps, directions, rows, size))
    ends = [np.zeros((directions, rows, size)) for _ in range(STATES[operator])]
    clip = float(np.float32(attributes.get("clip", np.inf)))

    for n in range(directions):
        B = np.zeros(2 * GATES[operator] * size) if get["B"] is None else get["B"][n]
        P = np.zeros(3 * size) if get["P"] is None else get["P"][n]
        activations = [
            lambda z, f=f: f(np.clip(z, -clip, clip))
            for f in functions_of(operator, directions, attributes)[n]
        ]
        unclipped = functions_of(operator, directions, attributes)[n][-1]
        backwards = n == 1 or attributes.get("direction") == "reverse"
        for row in range(rows):
            h, c = begin[0][n, row], begin[1][n, row]
            count = steps if lengths is None else lengths[row]
            for t in reversed(range(count)) if backwards else range(count):
                x = X[t, row]
                if operator == "LSTM":
                    f, g, _ = activations
                    i_x, o_x, f_x, c_x = np.split(W[n] @ x + R[n] @ h + sum(np.split(B, 2)), 4)
                    p_i, p_o, p_f = np.split(P, 3)
                    i = f(i_x + p_i * c)
                    forget = 1 - i if attributes.get("input_forget") else f(f_x + p_f * c)
                    c = forget * c + i * g(c_x)
                    o = f(o_x + p_o * c)
                    h = o * unclipped(c)
                elif operator == "GRU":
                    f, g = activations
                    z_x, r_x, h_x = np.split(W[n] @ x, 3)
                    R_z, R_r, R_h = np.split(R[n], 3)
                    Wb_z, Wb_r, Wb_h, Rb_z, Rb_r, Rb_h = np.split(B, 6)
                    z = f(z_x + R_z @ h + Wb_z + Rb_z)
                    r = f(r_x + R_r @ h + Wb_r + Rb_r)
                    if attributes.get("linear_before_reset"):
                        new = g(h_x + r * (R_h @ h + Rb_h) + Wb_h)
                    else:
                        new = g(h_x + R_h @ (r * h) + Rb_h + Wb_h)
                    h = (1 - z) * new + z * h
                else:
                    (f,) = activations
                    h = f(W[n] @ x + R[n] @ h + sum(np.split(B, 2)))
                Y[t, n, row] = h
            for end, value in zip(ends, (h, c), strict=False):
                end[n, row] = value
    if layout:
        return [Y.transpose(2, 0, 1, 3), *(end.swapaxes(0, 1) for end in ends)]
    return [Y, *ends]


# ---- models of one node ----


def model_of(operator, feeds, **attributes):
    """A model whose arrays are all inputs, so that all of them have a gradient."""
    names = INPUTS if operator == "LSTM" else INPUTS[:6]
    inputs = [name if name in feeds else "" for name in names]
    outputs = ["Y", "Y_h", "Y_c"][: 1 + STATES[operator]]
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, outputs, **attributes)],
        operator,
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in feeds.items()
        ],
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(feeds["X"].dtype), None
            )
            for name in outputs
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def drawn(rng, operator, directions=1, T=4, B=3, D=2, H=3, optional=(), layout=0):
    """Arrays of random numbers, in float64."""
    gates = GATES[operator]
    states = (B, directions, H) if layout else (directions, B, H)
    shapes = {
        "X": (B, T, D) if layout else (T, B, D),
        "W": (directions, gates * H, D),
        "R": (directions, gates * H, H),
        "B": (directions, 2 * gates * H),
        "initial_h": states,
        "initial_c": states,
        "P": (directions, 3 * H),
    }
    feeds = {
        name: 0.5 * rng.normal(size=shape)
        for name, shape in shapes.items()
        if name in ("X", "W", "R") or name in optional
    }
    if "sequence_lens" in optional:
        lengths = rng.integers(1, T + 1, B).astype(np.int32)
        lengths[0] = T
        feeds["sequence_lens"] = lengths
    return feeds


def check_with_oracle(operator, feeds, **attributes):
    with jax.enable_x64(True):
        f = from_onnx(model_of(operator, feeds, **attributes), engine="scan")
        outputs = quickly(f)(**feeds)
    for name, wanted in zip(f.outputs, oracle(operator, feeds, **attributes), strict=True):
        # A few hundred float64 operations on numbers of order 1.
        np.testing.assert_allclose(outputs[name], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_activation_with_its_defaults(name):
    feeds = drawn(np.random.default_rng(0), "RNN", T=2, B=1)
    check_with_oracle("RNN", feeds, activations=[name])


@pytest.mark.parametrize(
    ("operator", "optional", "attributes"),
    [
        ("LSTM", ("sequence_lens", "initial_h"), {"direction": "reverse"}),
        ("LSTM", ("initial_c", "P"), {"input_forget": 1}),
        ("LSTM", ("B",), {"input_forget": 1, "activations": ["HardSigmoid", "Tanh", "Tanh"]}),
        ("LSTM", ("P", "initial_c"), {"clip": 0.4, "layout": 1}),
        ("GRU", ("B", "sequence_lens"), {"layout": 1, "linear_before_reset": 1}),
        ("RNN", ("B", "initial_h"), {"clip": 0.4, "layout": 1, "direction": "reverse"}),
    ],
)
def test_attributes_without_tests_in_the_standard(operator, optional, attributes):
    feeds = drawn(
        np.random.default_rng(0), operator, optional=optional, layout=attributes.get("layout", 0)
    )
    check_with_oracle(operator, feeds, **attributes)


def test_numbers_of_activations_are_consumed_in_order_over_both_directions():
    names = ["HardSigmoid", "LeakyRelu", "ScaledTanh", "Sigmoid", "Elu", "Affine"]
    attributes = {"activation_alpha": [0.3, 0.1, 0.9, 0.5], "activation_beta": [0.4, 1.1, 0.2]}
    feeds = drawn(np.random.default_rng(0), "LSTM", directions=2)
    check_with_oracle("LSTM", feeds, activations=names, direction="bidirectional", **attributes)


def test_a_row_without_steps_ends_with_its_initial_state():
    feeds = drawn(np.random.default_rng(0), "LSTM", optional=("initial_h", "initial_c"))
    feeds["sequence_lens"] = np.array([4, 0, 2], np.int32)
    check_with_oracle("LSTM", feeds)


# ---- random configurations: values by ONNX Runtime, gradients by finite differences ----


def configuration(seed):
    """An operator with any of its inputs and attributes, all of which ONNX Runtime supports."""
    rng = np.random.default_rng(seed)
    operator = ("LSTM", "GRU", "RNN")[seed % 3]
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    directions = 2 if direction == "bidirectional" else 1
    optional = [
        name
        for name in INPUTS[3:]
        if rng.random() < 0.5 and (operator == "LSTM" or name not in ("initial_c", "P"))
    ]
    attributes = {"direction": direction}
    if rng.random() < 0.3:
        attributes["clip"] = 0.625  # no smaller threshold: at a tie ONNX Runtime returns 0
    if operator == "LSTM" and rng.random() < 0.3:
        attributes["input_forget"] = 1
    if operator == "GRU":
        attributes["linear_before_reset"] = int(rng.integers(2))
    if rng.random() < 0.5:
        names = rng.choice(sorted(FUNCTIONS), len(DEFAULTS[operator]) * directions).tolist()
        attributes["activations"] = names
        for key, place in (("activation_alpha", 0), ("activation_beta", 1)):
            count = sum(FUNCTIONS[name][place] is not None for name in names)
            if count:  # quarters, which float32 represents exactly
                attributes[key] = [float(n) / 4 for n in rng.integers(1, 4, count)]
    feeds = drawn(rng, operator, directions, optional=optional)
    return operator, feeds, {**attributes, "hidden_size": 3}


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(50))
def test_values_equal_onnxruntime_and_gradients_equal_finite_differences(seed):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the peer onnxruntime")
    operator, feeds, attributes = configuration(seed)
    rng = np.random.default_rng(seed)
    floats = [name for name, array in feeds.items() if array.dtype == np.float64]
    toward = {name: rng.normal(size=feeds[name].shape) for name in floats}
    weights = [rng.normal(size=array.shape) for array in oracle(operator, feeds, **attributes)]

    with jax.enable_x64(True):
        f = from_onnx(model_of(operator, feeds, **attributes), engine="scan")

        def loss(given):
            outputs = f(**feeds | given)
            terms = [(w * outputs[name]).sum() for w, name in zip(weights, f.outputs, strict=True)]
            return sum(terms), outputs

        gradient = quickly(jax.value_and_grad(loss, has_aux=True))
        (_, outputs), slopes = gradient({name: feeds[name] for name in floats})
        slope = sum((slopes[name] * toward[name]).sum() for name in floats)

    wanted = oracle(operator, feeds, **attributes)
    for name, array in zip(f.outputs, wanted, strict=True):
        np.testing.assert_allclose(outputs[name], array, rtol=1e-12, atol=1e-12, err_msg=name)

    def moved(step):
        given = feeds | {name: feeds[name] + step * toward[name] for name in floats}
        arrays = oracle(operator, given, **attributes)
        return sum((w * array).sum() for w, array in zip(weights, arrays, strict=True))

    # Central differences: an error of step² times third derivatives, and 1e-16 / step.
    difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-6)

    single = {
        name: array if array.dtype == np.int32 else array.astype(np.float32)
        for name, array in feeds.items()
    }
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model_of(operator, single, **attributes).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    for name, theirs in zip(f.outputs, session.run(None, single), strict=True):
        # Float32 with approximated exponentials, over 4 steps, of numbers up to some tens.
        scale = 1 + np.abs(outputs[name]).max()
        np.testing.assert_allclose(outputs[name], theirs, rtol=0, atol=1e-5 * scale, err_msg=name)


# ---- weights ----

EXPRESSIBLE = [
    LSTMCell(3),
    LSTMCell(3, preactivation_clip=0.5, gate_fn="hard_sigmoid", output_fn="identity"),
    PeepholeLSTMCell(3, activation_fn="softsign"),
    CoupledLSTMCell(3),
    CoupledLSTMCell(3, peepholes=True),
    InputForgetLSTMCell(3, gate_fn="hard_sigmoid"),
    GRUCell(3),
    GRUCell(3, reset_after=True),
    RNNCell(3, activation_fn="relu"),
    CELLS["np"](hidden_size=3),
    CELLS["niaf"](hidden_size=3),
    CELLS["noaf"](hidden_size=3),
    VariationalDropout(LSTMCell(3)),
]


def random_params(layer, size=2):
    rng = np.random.default_rng(0)
    like = jax.eval_shape(lambda: layer.init(jax.random.key(0), size))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), like)


@pytest.mark.parametrize("cell", EXPRESSIBLE, ids=range(len(EXPRESSIBLE)))
def test_cells_round_trip_through_operators_bit_for_bit(cell):
    params = random_params(cell)
    operator = layer_to_onnx(cell, params)
    layer, back = layer_from_onnx(*operator)
    again = layer_to_onnx(layer, back)
    assert again.name == operator.name and again.attributes == operator.attributes
    for name, array in operator.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
    if type(layer.layers[0][1]) is type(cell):
        assert set(back["layer_0"]) == set(params)
        for name, array in params.items():
            np.testing.assert_array_equal(back["layer_0"][name], array)


@pytest.mark.parametrize("cell", EXPRESSIBLE, ids=range(len(EXPRESSIBLE)))
def test_operators_equal_their_cells(cell):
    params = random_params(cell)
    operator = layer_to_onnx(cell, params)
    xs = np.random.default_rng(1).normal(size=(4, 2, 2)).astype(np.float32)
    wanted = oracle(operator.name, {"X": xs, **operator.arrays}, **operator.attributes)
    _, ys = quickly(functools.partial(unroll, cell, engine="scan"))(params, xs)
    # Float32 sums of 5 terms of order 1 over 4 steps; the ramp of 1/6 is rounded in ONNX.
    np.testing.assert_allclose(ys, wanted[0][:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        LSTM(3, bidirectional=True),
        LSTM(3, reverse=True, cell="gru"),
        Bidirectional(RNNCell(3, activation_fn="relu"), RNNCell(3)),
        Bidirectional(PeepholeLSTMCell(3), LSTMCell(3)),
    ],
    ids=["both", "reverse", "activations", "peepholes"],
)
def test_directions_become_one_operator(layer):
    params = random_params(layer)
    operator = layer_to_onnx(layer, params)
    xs = np.random.default_rng(1).normal(size=(4, 2, 2)).astype(np.float32)
    Y, *_ = oracle(operator.name, {"X": xs, **operator.arrays}, **operator.attributes)
    _, ys = quickly(layer.apply)(params, xs)
    np.testing.assert_allclose(ys, np.concatenate(list(Y.swapaxes(0, 1)), -1), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (CELLS["mgu"](hidden_size=3), "ONNX has no operator for MGUCell: it has other equations"),
        (LSTMCell(3, cell_clip=1.0), "ONNX has no operator for LSTMCell: it clips its cell state"),
        (LSTMCell(3, dtype="bfloat16"), "it computes in bfloat16 with float32 parameters"),
        (LSTMCell(3, gate_fn="gelu"), "it has gate_fn='gelu', which is not a function of ONNX"),
        (CoupledLSTMCell(3, gate_fn="hard_sigmoid"), "it couples gates that are not sigmoid"),
        (
            LSTMCell(3, learn_initial_state=True),
            "it learns its initial state, which is not a weight",
        ),
        (Zoneout(LSTMCell(3)), "ONNX has no operator for Zoneout"),
        (LSTM(3, num_layers=2), "an ONNX operator is one layer, got 2; to_onnx converts"),
        (Bidirectional(LSTMCell(3), merge="sum"), "concatenates both directions, got merge='sum'"),
        (Bidirectional(LSTMCell(3), GRUCell(3)), "both directions of an ONNX operator must"),
        (Stack([Bidirectional(LSTMCell(3), LSTMCell(4))]), "attributes, got LSTM with"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_unsupported_options_are_named(layer, message):
    with pytest.raises(ValueError) as error:
        layer_to_onnx(layer, random_params(layer))
    assert message in str(error.value)


ARRAYS = {name: np.zeros(shape) for name, shape in {"W": (1, 12, 2), "R": (1, 12, 3)}.items()}


@pytest.mark.parametrize(
    ("operator", "arrays", "attributes", "message"),
    [
        ("LSTMP", ARRAYS, {}, "operator must be one of LSTM, GRU, RNN, got 'LSTMP'"),
        ("LSTM", {"W": ARRAYS["W"]}, {}, "LSTM of ONNX needs R"),
        ("GRU", {**ARRAYS, "P": np.zeros(9)}, {}, "GRU of ONNX has W, R, B, got 'P'"),
        ("LSTM", {**ARRAYS, "B": np.zeros((1, 12))}, {}, "B of LSTM with 1 direction(s) and"),
        ("LSTM", ARRAYS, {"direction": "bidirectional"}, "must have shape (2, 12, 2), got (1, 12"),
        ("LSTM", ARRAYS, {"direction": "up"}, "direction must be one of forward, reverse, bidi"),
        ("LSTM", ARRAYS, {"hidden_size": 4}, "hidden_size must be 3, the last size of R, got 4"),
        ("GRU", ARRAYS, {"input_forget": 1}, "GRU of ONNX has no attribute 'input_forget'"),
        ("LSTM", {**ARRAYS, "W": np.zeros((12, 2))}, {}, "W must be [directions, gates * H, in]"),
        ("LSTM", ARRAYS, {"activations": ["Tanh"]}, "activations must name 3 functions per direc"),
        ("LSTM", ARRAYS, {"activations": ["Tanh", "Tanh", "Swish"]}, "must be of Affine, Elu,"),
        ("LSTM", ARRAYS, {"clip": -1.0}, "preactivation_clip must be above 0, got -1.0"),
    ],
)
def test_errors_name_the_array_or_attribute(operator, arrays, attributes, message):
    with pytest.raises(ValueError) as error:
        layer_from_onnx(operator, arrays, attributes)
    assert message in str(error.value)
