"""Comparison with other libraries' cells: torch (values and gradients), ONNX's evaluator, ONNX
Runtime.

Their weights are (gates * H, in), with a different order of gates and two biases. Each layout is
written here as a function from our parameters to theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import unroll
from lstm_jax.cells import CELLS

pytestmark = pytest.mark.peers

T, B, D, H = 6, 3, 4, 5
LENGTHS = np.array([6, 4, 1], np.int32)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs the peer torch")


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("onnx", reason="needs the peer onnx")
    from onnx.reference import ReferenceEvaluator

    return lambda model: ReferenceEvaluator(model)


@pytest.fixture(scope="module")
def runtime():
    pytest.importorskip("onnx", reason="needs onnx to write models")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the peer onnxruntime")
    return lambda model: onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def drawn(cell, dtype):
    """Parameters, inputs and a state of random numbers, as NumPy arrays."""
    rng = np.random.default_rng(0)
    normal = lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(dtype)  # noqa: E731
    params = jax.tree.map(normal, jax.eval_shape(lambda: cell.init(jax.random.key(0), D)))
    state = jax.tree.map(normal, jax.eval_shape(lambda: cell.zero_state((B,))))
    return params, rng.normal(size=(T, B, D)).astype(dtype), state


def gates(array, ours, theirs):
    """The blocks of the last axis, from our order of gates to theirs."""
    blocks = dict(zip(ours, np.split(array, len(ours), -1), strict=True))
    return np.concatenate([blocks[gate] for gate in theirs], -1)


# ---- torch: gates in our orders ----


def as_torch(torch, name, params, **options):
    """A layer of torch with our parameters, in float64."""
    make = {"lstm": torch.nn.LSTM, "projected": torch.nn.LSTM, "gru": torch.nn.GRU}
    module = make.get(name, torch.nn.RNN)(D, H, dtype=torch.float64, **options)
    theirs = {
        "weight_ih_l0": params["w_ih"].T,
        "weight_hh_l0": params["w_hh"].T,
        "bias_ih_l0": params["b"],
        "bias_hh_l0": np.zeros_like(params["b"]),
    }
    if name == "projected":
        theirs["weight_hr_l0"] = params["w_hr"].T
    if name == "gru":
        theirs["bias_hh_l0"][2 * H :] = params["b_hg"]
    with torch.no_grad():
        for key, array in theirs.items():
            getattr(module, key).copy_(torch.tensor(array))
    return module


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("lstm", {}, {}),
        ("projected", {"proj_size": 3}, {"proj_size": 3}),
        ("gru", {"reset_after": True}, {}),
        ("rnn", {}, {"nonlinearity": "tanh"}),
        ("rnn", {"activation_fn": "relu"}, {"nonlinearity": "relu"}),
    ],
)
def test_values_and_gradients_agree_with_torch(torch, name, ours, theirs):
    with jax.enable_x64(True):
        cell = CELLS[name](hidden_size=H, param_dtype="float64", **ours)
        params, xs, state = drawn(cell, np.float64)
        weights = np.cos(np.arange(T * B * cell.output_size)).reshape(T, B, -1)

        def loss(params, xs, state):
            last, ys = unroll(cell, params, xs, state, lengths=LENGTHS)
            return (weights * ys).sum() + sum((field**2).sum() for field in last), (last, ys)

        (_, (last, ys)), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
            params, xs, state
        )

        module = as_torch(torch, name, params, **theirs)
        inputs = torch.tensor(xs, requires_grad=True)
        start = [torch.tensor(field, requires_grad=True) for field in state]
        packed = torch.nn.utils.rnn.pack_padded_sequence(inputs, LENGTHS.tolist())
        first = [field[None] for field in start]
        outputs, end = module(packed, tuple(first) if len(first) > 1 else first[0])
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, total_length=T)
        end = end if isinstance(end, tuple) else (end,)
        total = (torch.tensor(weights) * outputs).sum() + sum((field**2).sum() for field in end)
        total.backward()

        # The same few hundred float64 operations in another order.
        close = lambda a, b, what: np.testing.assert_allclose(  # noqa: E731
            a, b.detach().numpy(), rtol=1e-10, atol=1e-12, err_msg=what
        )
        close(ys, outputs, "outputs")
        for field, our, their in zip(last._fields, last, end, strict=True):
            close(our, their[0], f"last {field}")
        close(grads[1], inputs.grad, "gradient for inputs")
        for field, our, their in zip(state._fields, grads[2], start, strict=True):
            close(our, their.grad, f"gradient for {field}")
        for our, their in (
            ("w_ih", module.weight_ih_l0.grad.T),
            ("w_hh", module.weight_hh_l0.grad.T),
            ("b", module.bias_ih_l0.grad),
        ):
            close(grads[0][our], their, f"gradient for {our}")
        if name == "projected":
            close(grads[0]["w_hr"], module.weight_hr_l0.grad.T, "gradient for w_hr")
        if name == "gru":
            close(grads[0]["b_hg"], module.bias_hh_l0.grad[2 * H :], "gradient for b_hg")


# ---- ONNX: gates i, o, f, c (our g); GRU z, r, h (our g); peepholes i, o, f ----


def as_onnx(operator, params, xs, state, **attributes):
    """A model of one node, and its inputs; its outputs are Y, Y_h and, for an LSTM, Y_c."""
    from onnx import TensorProto, helper

    ours, theirs = {"LSTM": ("ifgo", "iofg"), "GRU": ("rzg", "zrg"), "RNN": ("g", "g")}[operator]
    bias = gates(params["b"], ours, theirs)
    recurrent_bias = np.zeros_like(bias)
    if "b_hg" in params:
        recurrent_bias[2 * H :] = params["b_hg"]
    fed = {
        "X": xs,
        "W": gates(params["w_ih"], ours, theirs).T[None],
        "R": gates(params["w_hh"], ours, theirs).T[None],
        "B": np.concatenate([bias, recurrent_bias])[None],
        "sequence_lens": attributes.pop("lengths", None),
        "initial_h": state.h[None],
    }
    if operator == "LSTM":
        fed["initial_c"] = state.c[None]
        if "p_i" in params:
            fed["P"] = np.concatenate([params[f"p_{gate}"] for gate in "iof"])[None]
    fed = {key: array for key, array in fed.items() if array is not None}
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    inputs = [name if name in fed else "" for name in names[: 8 if operator == "LSTM" else 6]]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    node = helper.make_node(operator, inputs, outputs, hidden_size=H, **attributes)
    of = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float64): TensorProto.DOUBLE}
    of[np.dtype(np.int32)] = TensorProto.INT32
    graph = helper.make_graph(
        [node],
        operator,
        [helper.make_tensor_value_info(k, of[a.dtype], a.shape) for k, a in fed.items()],
        [helper.make_tensor_value_info(k, of[xs.dtype], None) for k in outputs],
    )
    opset = helper.make_opsetid("", 14)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8), fed


def agree(session, fed, last, ys, tolerance):
    outputs = session.run(None, fed)
    close = lambda a, b, what: np.testing.assert_allclose(  # noqa: E731
        a, b, rtol=tolerance, atol=tolerance, err_msg=what
    )
    close(ys, outputs[0][:, 0], "outputs")
    for field, our, their in zip(last._fields, last, outputs[1:], strict=True):
        close(our, their[0], f"last {field}")


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(
    ("name", "operator", "ours", "theirs"),
    [
        ("lstm", "LSTM", {}, {}),
        ("peephole", "LSTM", {}, {}),
        ("gru", "GRU", {"reset_after": False}, {"linear_before_reset": 0}),
        ("gru", "GRU", {"reset_after": True}, {"linear_before_reset": 1}),
        ("rnn", "RNN", {}, {"activations": ["Tanh"]}),
    ],
)
def test_values_agree_with_onnx_reference(reference, name, operator, ours, theirs, direction):
    with jax.enable_x64(True):
        cell = CELLS[name](hidden_size=H, param_dtype="float64", **ours)
        params, xs, state = drawn(cell, np.float64)
        last, ys = unroll(cell, params, xs, state, reverse=direction == "reverse")
        model, fed = as_onnx(operator, params, xs, state, direction=direction, **theirs)
        # The same few hundred float64 operations in another order.
        agree(reference(model), fed, last, ys, 1e-12)


# jax.nn.hard_sigmoid is relu6(x + 3) / 6.
HARD = {"activation_alpha": [1 / 6], "activation_beta": [0.5]}


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(
    ("name", "operator", "ours", "theirs"),
    [
        ("lstm", "LSTM", {}, {}),
        ("peephole", "LSTM", {}, {}),
        ("lstm", "LSTM", {"preactivation_clip": 0.5}, {"clip": 0.5}),
        ("peephole", "LSTM", {"preactivation_clip": 0.5}, {"clip": 0.5}),
        (
            "lstm",
            "LSTM",
            {"gate_fn": "hard_sigmoid", "activation_fn": "softsign", "output_fn": "tanh"},
            {"activations": ["HardSigmoid", "Softsign", "Tanh"], **HARD},
        ),
        (
            "lstm",
            "LSTM",
            {"activation_fn": "relu", "output_fn": "softsign"},
            {"activations": ["Sigmoid", "Relu", "Softsign"]},
        ),
        ("gru", "GRU", {}, {"linear_before_reset": 0}),
        ("gru", "GRU", {"reset_after": True}, {"linear_before_reset": 1}),
        ("gru", "GRU", {"preactivation_clip": 0.5}, {"linear_before_reset": 0, "clip": 0.5}),
        (
            "gru",
            "GRU",
            {"gate_fn": "hard_sigmoid", "activation_fn": "softsign"},
            {"activations": ["HardSigmoid", "Softsign"], **HARD},
        ),
        ("rnn", "RNN", {"activation_fn": "relu"}, {"activations": ["Relu"]}),
        ("rnn", "RNN", {"preactivation_clip": 0.5}, {"activations": ["Tanh"], "clip": 0.5}),
    ],
)
def test_values_agree_with_onnxruntime(runtime, name, operator, ours, theirs, direction):
    """Rows of different lengths, each read backwards from its own end."""
    cell = CELLS[name](hidden_size=H, **ours)
    params, xs, state = drawn(cell, np.float32)
    reverse = direction == "reverse"
    last, ys = unroll(cell, params, xs, state, lengths=LENGTHS, reverse=reverse)
    model, fed = as_onnx(
        operator, params, xs, state, direction=direction, lengths=LENGTHS, **theirs
    )
    # Float32 sums of D + H = 9 terms of order 1 over T = 6 steps; its exponentials are
    # approximations of a few rounding errors.
    agree(runtime(model), fed, last, ys, 1e-5)


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_coupled_agrees_with_onnxruntime(runtime, peepholes, direction):
    """ONNX's input_forget has f = 1 - i of i's weights; we have i = 1 - f of f's.

    Since σ(-z) = 1 - σ(z), the input gate's weights are those of our forget gate with the opposite
    sign.
    """
    cell = CELLS["coupled"](hidden_size=H, peepholes=peepholes)
    params, xs, state = drawn(cell, np.float32)
    last, ys = unroll(cell, params, xs, state, lengths=LENGTHS, reverse=direction == "reverse")

    theirs = {}
    for key in ("w_ih", "w_hh", "b"):
        f, g, o = np.split(params[key], 3, -1)
        theirs[key] = np.concatenate([-f, np.zeros_like(f), g, o], -1)
    if peepholes:
        theirs |= {"p_i": -params["p_f"], "p_f": np.zeros(H, np.float32), "p_o": params["p_o"]}
    model, fed = as_onnx(
        "LSTM", theirs, xs, state, direction=direction, lengths=LENGTHS, input_forget=1
    )
    agree(runtime(model), fed, last, ys, 1e-5)  # as above


def test_convolution_agrees_with_torch(torch):
    """The pre-activations of conv_lstm, by torch's cross-correlation."""
    kernel = (3, 5)
    cell = CELLS["conv_lstm"](
        hidden_size=H, kernel_size=kernel, gate_fn="identity", activation_fn="identity"
    )
    rng = np.random.default_rng(0)
    params = {
        key: rng.normal(size=parameter.shape).astype(np.float32)
        for key, parameter in cell.parameters(D).items()
    }
    x, h, c = (rng.normal(size=(B, 4, 6, size)).astype(np.float32) for size in (D, H, H))
    state, _ = cell.step(params, cell.zero_state((B, 4, 6))._replace(h=h, c=c), jnp.asarray(x))

    def convolved(x, w):
        x, w = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(w).permute(3, 2, 0, 1)
        return torch.nn.functional.conv2d(x, w, padding="same").permute(0, 2, 3, 1).numpy()

    z = convolved(x, params["w_ih"]) + convolved(h, params["w_hh"]) + params["b"]
    i, f, g, o = np.split(z, 4, -1)
    expected = f * c + i * g
    # Sums of 15 * (D + H) = 135 terms of order 1, their products of order 100.
    np.testing.assert_allclose(state.c, expected, atol=135 * 6e-8 * np.abs(expected).max())
    np.testing.assert_allclose(state.h, o * expected, atol=135 * 6e-8 * np.abs(o * expected).max())
