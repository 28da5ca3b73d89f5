"""Graphs as functions: graphs of other exporters, parameters, and rejected graphs."""

import functools
import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

onnx = pytest.importorskip("onnx", reason="needs onnx")

from lstm_jax import LSTM  # noqa: E402
from lstm_jax.errors import UserError  # noqa: E402
from lstm_jax.interop import from_torch  # noqa: E402
from lstm_jax.interop.onnx import (  # noqa: E402
    from_onnx,
    function_to_onnx,
    layers_from_onnx,
    to_onnx,
)
from lstm_jax.models import Compiled  # noqa: E402
from lstm_jax.tasks import Classification, Forecasting, NextCharacter  # noqa: E402
from lstm_jax.tasks.classification import ClassifierConfig  # noqa: E402
from lstm_jax.tasks.forecasting import ForecasterConfig  # noqa: E402
from lstm_jax.tasks.next_character import LanguageModelConfig, TextData  # noqa: E402
from lstm_jax.tasks.sequences_data import SequencesData  # noqa: E402
from lstm_jax.tasks.series_data import SeriesData  # noqa: E402

# Tests run each compiled program once or twice.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
TOLERANCE = 2e-6  # float32 sums of about ten terms of order 1 over a few steps


def model_of(nodes, inputs, outputs, constants=None, opset=18, **options):
    """A model of nodes ``(operator, inputs, outputs, attributes)``."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(o, i, out, name=out[0], **a) for o, i, out, a in nodes],
        "test",
        [info(name, code, shape) for name, (code, shape) in inputs.items()],
        [info(name, FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8, **options)


# ---- graphs of other exporters ----


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs the peer torch")


@pytest.fixture(scope="module")
def tagger(torch):
    """A torch model with bidirectional LSTM layers, a GRU and common other layers."""

    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(11, 5)
            self.lstm = torch.nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True)
            self.gru = torch.nn.GRU(8, 6)
            self.norm = torch.nn.LayerNorm(6)
            self.head = torch.nn.Linear(6, 3)

        def forward(self, tokens):
            ys, (h, c) = self.lstm(self.embed(tokens))
            zs, _ = self.gru(ys.transpose(0, 1))
            return torch.softmax(self.head(self.norm(zs)), -1), h, c

    torch.manual_seed(0)
    return Tagger().eval()


def exported_by_torch(torch, module, tokens, **options):
    file = io.BytesIO()
    torch.onnx.export(
        module,
        (tokens,),
        file,
        input_names=["tokens"],
        output_names=["ys", "h", "c"],
        **options,
    )
    return onnx.load_from_string(file.getvalue())


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # torch's exporter has many
def test_models_of_torch_in_values_and_gradients(torch, tagger):
    axes = {"tokens": {0: "B", 1: "T"}}
    example = torch.zeros((2, 7), dtype=torch.int64)
    model = exported_by_torch(torch, tagger, example, dynamo=False, dynamic_axes=axes)
    assert [node.op_type for node in model.graph.node].count("LSTM") == 2
    f = from_onnx(model, engine="scan")
    run = quickly(f)
    for shape in ((2, 7), (3, 4)):
        tokens = torch.randint(0, 11, shape)
        for name, theirs in zip(f.outputs, tagger(tokens), strict=True):
            ours = run(tokens=tokens.numpy().astype(np.int32))[name]
            np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=TOLERANCE)

    weights = torch.rand(tagger(tokens)[0].shape)
    (weights * tagger(tokens)[0]).sum().backward()
    theirs = {name: value.grad.numpy() for name, value in tagger.named_parameters()}

    def loss(params):
        return (weights.numpy() * f.apply(params, tokens=tokens.numpy())["ys"]).sum()

    grads = quickly(jax.grad(loss))({name: jnp.asarray(array) for name, array in f.params.items()})
    for name in ("embed.weight", "norm.weight", "head.bias"):
        np.testing.assert_allclose(grads[name], theirs[name], atol=10 * TOLERANCE)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_layers_of_a_model_of_torch(torch, tagger):
    """Their weights equal those converted directly from torch, bit for bit."""
    tokens = torch.zeros((2, 7), dtype=torch.int64)
    layers = list(layers_from_onnx(exported_by_torch(torch, tagger, tokens, dynamo=False)).values())
    state = {name: array.numpy() for name, array in tagger.state_dict().items()}
    of = lambda prefix: {  # noqa: E731
        name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
    }
    _, lstm = from_torch(of("lstm."))
    _, gru = from_torch(of("gru."))
    wanted = [*lstm.values(), *gru.values()]
    assert len(layers) == len(wanted) == 3
    for (_, params), theirs in zip(layers, wanted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, params["layer_0"], theirs)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_models_of_torchs_newer_exporter(torch, tagger):
    pytest.importorskip("onnxscript", reason="needs onnxscript, by which torch writes graphs")
    tokens = torch.randint(0, 11, (2, 7))
    f = from_onnx(exported_by_torch(torch, tagger, tokens, dynamo=True))
    for name, theirs in zip(f.outputs, tagger(tokens), strict=True):
        ours = f(tokens=tokens.numpy())[name]
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=TOLERANCE)


def test_a_graph_as_keras_is_exported():
    """Batch first, with zero states whose shape is computed from the input's."""
    rng = np.random.default_rng(0)
    D, H = 3, 4
    constants = {
        "W": rng.normal(size=(1, 4 * H, D)).astype(np.float32),
        "R": 0.5 * rng.normal(size=(1, 4 * H, H)).astype(np.float32),
        "B": rng.normal(size=(1, 8 * H)).astype(np.float32),
        "kernel": rng.normal(size=(H, 2)).astype(np.float32),
        "bias": rng.normal(size=2).astype(np.float32),
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "size": np.array([H]),
        "flat": np.array([-1, H]),
    }
    nodes = [
        ("Shape", ["x"], ["shape"], {}),
        ("Slice", ["shape", "zero", "one", "zero"], ["rows"], {}),
        ("Concat", ["one", "rows", "size"], ["state_shape"], {"axis": 0}),
        ("ConstantOfShape", ["state_shape"], ["zeros"], {}),
        ("Transpose", ["x"], ["time_first"], {"perm": [1, 0, 2]}),
        (
            "LSTM",
            ["time_first", "W", "R", "B", "", "zeros", "zeros"],
            ["Y", "Y_h"],
            {"direction": "forward", "hidden_size": H},
        ),
        ("Squeeze", ["Y", "one"], ["sequence"], {}),
        ("Transpose", ["sequence"], ["batch_first"], {"perm": [1, 0, 2]}),
        ("Reshape", ["batch_first", "flat"], ["rows_of_steps"], {}),
        ("MatMul", ["rows_of_steps", "kernel"], ["product"], {}),
        ("Add", ["product", "bias"], ["logits"], {}),
        ("Slice", ["shape", "zero", "two", "zero"], ["rows_and_steps"], {}),
        ("Concat", ["rows_and_steps", "two"], ["final_shape"], {"axis": 0}),
        ("Reshape", ["logits", "final_shape"], ["y"], {}),
    ]
    model = model_of(nodes, {"x": (FLOAT, ["B", "T", D])}, ["y"], constants)
    f = from_onnx(model)
    x = rng.normal(size=(2, 5, D)).astype(np.float32)
    h, c, ys = np.zeros((2, H)), np.zeros((2, H)), []
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    for t in range(5):
        z = x[:, t] @ constants["W"][0].T + h @ constants["R"][0].T
        i, o, f_gate, g = np.split(z + sum(np.split(constants["B"][0], 2)), 4, -1)
        c = sigmoid(f_gate) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        ys.append(h @ constants["kernel"] + constants["bias"])
    np.testing.assert_allclose(quickly(f)(x=x)["y"], np.stack(ys, 1), atol=1e-5)
    assert set(f.params) == {"W", "R", "B", "kernel", "bias"}
    assert f.inputs["x"].shape == ("B", "T", D)


# ---- parts of the standard that concern the whole graph ----


def branch(operator):
    info = onnx.helper.make_tensor_value_info("y", FLOAT, None)
    node = onnx.helper.make_node(operator, ["x"], ["y"])
    return onnx.helper.make_graph([node], operator, [], [info])


def test_if_selects_by_known_values():
    """As exported by torch, where a shape is the condition."""
    nodes = [
        ("Shape", ["x"], ["shape"], {"start": 0, "end": 1}),
        ("Equal", ["shape", "one"], ["single"], {}),
        ("If", ["single"], ["y"], {"then_branch": branch("Neg"), "else_branch": branch("Exp")}),
    ]
    model = model_of(nodes, {"x": (FLOAT, ["n"])}, ["y"], {"one": np.array([1])})
    f = jax.jit(from_onnx(model))
    assert f(x=np.ones(1, np.float32))["y"].tolist() == [-1.0]
    np.testing.assert_allclose(f(x=np.ones(2, np.float32))["y"], np.e, rtol=1e-6)

    nodes = [
        ("Greater", ["x", "x"], ["truth"], {}),
        ("If", ["truth"], ["y"], {"then_branch": branch("Neg"), "else_branch": branch("Exp")}),
    ]
    computed = from_onnx(model_of(nodes, {"x": (FLOAT, [1])}, ["y"]))
    with pytest.raises(ValueError, match="the condition of If must be known during tracing"):
        jax.jit(computed)(x=np.ones(1, np.float32))


def test_functions_of_a_model_are_inlined():
    function = onnx.helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        [onnx.helper.make_node("Add", ["a", "a"], ["b"])],
        [onnx.helper.make_opsetid("", 18)],
    )
    model = model_of([], {"x": (FLOAT, [2])}, ["y"], functions=[function])
    model.graph.node.append(onnx.helper.make_node("Twice", ["x"], ["y"], domain="own"))
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    outputs = from_onnx(model)(x=np.array([1, 2], np.float32))
    assert outputs["y"].tolist() == [2.0, 4.0]


def test_models_are_read_from_files(tmp_path):
    layer = LSTM(3)
    path = tmp_path / "model.onnx"
    onnx.save(to_onnx(layer, layer.init(jax.random.key(0), 2)), path)
    xs = np.ones((4, 1, 2), np.float32)
    for given in (path, str(path)):
        assert from_onnx(given)(xs=xs)["ys"].shape == (4, 1, 3)


def test_functions_are_jitted_mapped_and_differentiated():
    layer = LSTM(3)
    params = layer.init(jax.random.key(0), 2)
    f = from_onnx(to_onnx(layer, params))
    xs = jax.random.normal(jax.random.key(1), (4, 5, 6, 2))
    mapped = jax.vmap(lambda xs: f(xs=xs)["ys"])(xs)
    np.testing.assert_allclose(mapped[2], f(xs=xs[2])["ys"], atol=TOLERANCE)
    ours = jax.grad(lambda xs: layer.apply(params, xs)[1].sum())(xs[0])
    theirs = jax.grad(lambda xs: f(xs=xs)["ys"].sum())(xs[0])
    np.testing.assert_allclose(theirs, ours, atol=TOLERANCE)


# ---- round trips of tasks ----


def character_task(folder):
    path = folder / "text.txt"
    path.write_text("".join(np.random.default_rng(0).choice(list("abcd \n"), 800)), "utf-8")
    data = TextData(str(path), validation_fraction=0.2, lanes=2, window=8)
    return NextCharacter(data, LanguageModelConfig(hidden_size=6, embedding_size=5, num_layers=2))


def classification_task(folder):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        rows = [
            ":".join(
                [*(",".join(map(str, column)) for column in rng.normal(size=(2, t))), f"c{n % 2}"]
            )
            for n, t in enumerate(rng.integers(1, 9, 20))
        ]
        (folder / part).write_text("\n".join(["@classLabel true c0 c1", "@data", *rows]))
    data = SequencesData(train=str(folder / "train"), test=str(folder / "test"), batch_size=4)
    return Classification(data, ClassifierConfig(hidden_size=5, cell="gru"))


def forecasting_task(folder):
    path = folder / "table.csv"
    values = np.random.default_rng(0).normal(size=(200, 3)).cumsum(0)
    rows = [",".join([str(n), *map(str, row)]) for n, row in enumerate(values)]
    path.write_text("\n".join(["date,a,b,c", *rows]))
    data = SeriesData(str(path), 100, 50, 50, 24, 5, 8, batch_size=4)
    return Forecasting(data, ForecasterConfig(segment=6, hidden_size=4, cell="mgu"))


class ReadBack:
    """A model that was converted to ONNX and back."""

    def __init__(self, model):
        graph, streams, weights = nnx.split(model.module, nnx.RngState, ...)
        scope = jax.export.SymbolicScope()
        symbolic = lambda text: jax.export.symbolic_shape(text, scope=scope)  # noqa: E731
        (rows,) = symbolic("b")
        inputs = {
            name: jax.ShapeDtypeStruct(symbolic(shape), dtype)
            for name, (shape, dtype) in model.inputs.items()
        }
        inputs["carry"] = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype),
            model.initial_carry(1),
        )

        def run(weights, carry, **inputs):
            carry, outputs = nnx.merge(graph, streams, weights)(carry, **inputs)
            return {**outputs, "new_carry": carry}

        self.run = quickly(from_onnx(function_to_onnx(run, nnx.to_pure_dict(weights), inputs)))
        self.initial_carry = model.initial_carry

    def __call__(self, carry, **inputs):
        leaves, structure = jax.tree.flatten(carry)
        names = [
            f"carry.{jax.tree_util.keystr(path, simple=True, separator='.')}"
            for path, _ in jax.tree.leaves_with_path(carry)
        ]
        outputs = self.run(**dict(zip(names, leaves, strict=True)), **inputs)
        new = [outputs.pop(f"new_{name}") for name in names]
        return structure.unflatten(new), outputs


@pytest.mark.parametrize("make", [character_task, classification_task, forecasting_task])
def test_tasks_have_the_same_metrics_when_read_back(make, tmp_path):
    task = make(tmp_path)
    module = task.build(nnx.Rngs(0))
    nnx.update(module, jax.tree.map(lambda leaf: 1.5 * leaf, nnx.state(module, nnx.Param)))
    model, split = Compiled(module), task.splits[-1]
    metrics, back = task.evaluate(model, split), task.evaluate(ReadBack(model), split)
    assert set(back) == set(metrics)
    for name, value in metrics.items():
        other = back[name]
        if name.endswith("perplexity"):  # an exponential, so its logarithm is compared
            value, other = np.log([value, other])
        np.testing.assert_allclose(other, value, rtol=1e-6, err_msg=name)
        assert f"{other:.4f}" == f"{value:.4f}", name


# ---- mistakes ----


def small(operator="Neg", attributes=None, inputs=None, constants=None, **options):
    nodes = [(operator, [*(inputs or ["x"])], ["y"], attributes or {})]
    return model_of(nodes, {"x": (FLOAT, ["n", 2])}, ["y"], constants, **options)


def with_domain():
    model = small("FusedMatMul", inputs=["x", "x"])
    model.graph.node[0].domain = "com.microsoft"
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (small("Det"), "operator Det (opset 18, node 'y') is not supported"),
        (with_domain(), "operator com.microsoft.FusedMatMul (opset 18, node 'y') is not supported"),
        (small("Scan", opset=8), "operator Scan (opset 8, node 'y') is not supported"),
    ],
)
def test_unknown_operators_are_named(model, message):
    with pytest.raises(ValueError) as error:
        from_onnx(model)
    assert str(error.value) == message


def test_damaged_files_are_named(tmp_path):
    path, whole = tmp_path / "a.onnx", small("Neg").SerializeToString()
    for damaged, message in ((whole[:-5], "Error parsing"), (b"", "it has no graph")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"a\.onnx: not a readable ONNX model: .*{message}"):
            from_onnx(path)
    with pytest.raises(TypeError, match=r"^model must be a ModelProto or a path, got bytes$"):
        from_onnx(whole)


X = np.ones((3, 2), np.float32)


def test_missing_layers_are_reported():
    with pytest.raises(ValueError, match=r"^the model has no LSTM, GRU, RNN$"):
        layers_from_onnx(small())
    inputs = {"x": (FLOAT, [3, 1, 2]), "r": (FLOAT, [1, 1, 1])}
    model = model_of([], inputs, ["y"], {"W": np.ones((1, 1, 2), np.float32)})
    model.graph.node.append(onnx.helper.make_node("RNN", ["x", "W", "r"], ["", "y"], name="n"))
    with pytest.raises(ValueError, match=r"^R of node 'n' is computed from the model's inputs$"):
        layers_from_onnx(model)


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        ({}, TypeError, "inputs must be x, got none"),
        ({"z": X}, TypeError, "inputs must be x, got z"),
        ({"x": X > 0}, TypeError, "x must be float32, got bool"),
        ({"x": X[0]}, ValueError, "x must be [n, 2], got shape (2,)"),
        ({"x": X.T}, ValueError, "x must be [n, 2], got shape (2, 3)"),
    ],
)
def test_wrong_inputs_are_named(inputs, kind, message):
    with pytest.raises(kind) as error:
        from_onnx(small())(**inputs)
    assert str(error.value) == message


def test_wrong_parameters_are_named():
    f = from_onnx(small("Add", inputs=["x", "w"], constants={"w": np.ones(2, np.float32)}))
    with pytest.raises(TypeError, match=r"^params must have the names of f.params; 'v' does not"):
        f.apply({"w": X[0], "v": X}, x=X)
    with pytest.raises(ValueError, match=r"^params\['w'\] must have shape \(2,\), got \(3, 2\)"):
        f.apply({"w": X}, x=X)


def test_mistakes_in_a_node_name_it():
    f = from_onnx(small("Transpose", {"perm": [0, 1, 2]}))
    with pytest.raises(ValueError) as error:
        f(x=X)
    assert error.value.__notes__ == ["in node 'y', Transpose"]
    f = from_onnx(small("Neg", {"sharpness": 1}))
    with pytest.raises(TypeError, match="sharpness"):
        f(x=X)


def test_computed_shapes_are_rejected_by_name():
    nodes = [
        ("Cast", ["x"], ["shape"], {"to": INT64}),
        ("Reshape", ["x", "shape"], ["y"], {}),
    ]
    f = from_onnx(model_of(nodes, {"x": (FLOAT, [2])}, ["y"]))
    with pytest.raises(ValueError, match="the shape of Reshape must be known during tracing"):
        jax.jit(f)(x=np.ones(2, np.float32))


@pytest.mark.parametrize(
    ("function", "inputs", "message"),
    [
        (lambda p, x: {"y": jnp.sort(x)}, {"x": X}, "sort of JAX has no translation into opera"),
        (lambda p, x: {"x": 2 * x}, {"x": X}, "output 'x' must not have the name of an input"),
        (lambda p, x: 2 * x, {"x": X}, "function must return a dict of outputs, got"),
        (
            lambda p, x: {"y": x + jnp.arange(x.shape[0])},
            {"x": jax.ShapeDtypeStruct(jax.export.symbolic_shape("2*n*m"), np.float32)},
            "size m does not follow from the shapes of the inputs",
        ),
        (
            lambda p, x: {"y": jax.lax.pad(x, 0.0, [(0, 0, 1), (0, 0, 0)])},
            {"x": X},
            "ONNX has no operator for padding between elements",
        ),
    ],
)
def test_functions_that_cannot_be_exported_are_explained(function, inputs, message):
    specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in inputs.items()}
    with pytest.raises(ValueError) as error:
        function_to_onnx(function, (), specs)
    assert message in str(error.value)


def test_without_onnx_the_extra_is_named():
    code = "import sys; sys.modules['onnx'] = None; import lstm_jax.interop.onnx"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: lstm_jax.interop.onnx needs the package onnx" in ran.stderr
    assert "pip install 'lstm_jax[interop]'" in ran.stderr
