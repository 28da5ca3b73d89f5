"""Layers anywhere in a model, and damaged or malicious models."""

import io
import itertools
import resource
import time

import jax
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx")

from lstm_jax import LSTM, LSTMCell, Stack  # noqa: E402
from lstm_jax.errors import UserError  # noqa: E402
from lstm_jax.interop import from_torch  # noqa: E402
from lstm_jax.interop.convert import read_layer  # noqa: E402
from lstm_jax.interop.onnx import from_onnx, layer_to_onnx, layers_from_onnx, to_onnx  # noqa: E402

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
helper, tensor = onnx.helper, onnx.numpy_helper.from_array


def layer_of(H, seed=0):
    layer = Stack([LSTMCell(H)])
    return layer, layer.init(jax.random.key(seed), 3)


def lstm_node(H, seed=0, name="", x="x", y="h"):
    """An LSTM node, and its weights as tensors with unique names."""
    operator = layer_to_onnx(*layer_of(H, seed))
    weights = [tensor(array, f"{key}{H}{seed}") for key, array in operator.arrays.items()]
    inputs = [x, *(weight.name for weight in weights)]
    node = helper.make_node("LSTM", inputs, ["", y], name=name, **operator.attributes)
    return node, weights


def model_of(nodes, constants=(), outputs=("y",), functions=(), opsets=(("", 18),)):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [info("x", FLOAT, ["T", "B", 3])],
        [info(name, FLOAT, None) for name in outputs],
        list(constants),
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*opset) for opset in opsets],
        ir_version=10,
        functions=list(functions),
    )


def graph_of(nodes, output, inputs=(), constants=(), name="inner"):
    info = helper.make_tensor_value_info
    values = [info(key, code, shape) for key, code, shape in inputs]
    return helper.make_graph(nodes, name, values, [info(output, FLOAT, None)], list(constants))


def assert_found(found, H, seed=0):
    layer, params = layer_of(H, seed)
    assert found[0] == layer
    jax.tree.map(np.testing.assert_array_equal, found[1], params)


# ---- graphs within nodes ----


def test_both_branches_of_an_if_have_their_layers(tmp_path):
    """As in a voice activity model, with one branch for each sampling rate."""
    first, weights = lstm_node(2, name="rnn", y="a")
    second, within = lstm_node(4, name="rnn", y="b")
    branches = {
        "then_branch": graph_of([first], "a"),  # with weights of the graph around it
        "else_branch": graph_of([second], "b", constants=within),  # and with its own
    }
    nodes = [
        helper.make_node("STFT", ["x"], ["sound"]),  # not supported here, and not needed
        helper.make_node("If", ["rate"], ["y"], name="", **branches),
    ]
    model = model_of(nodes, [*weights, tensor(np.array(True), "rate")])
    layers = layers_from_onnx(model)
    assert set(layers) == {"If_0/then_branch/rnn", "If_0/else_branch/rnn"}
    assert_found(layers["If_0/then_branch/rnn"], 2)
    assert_found(layers["If_0/else_branch/rnn"], 4)
    onnx.save(model, tmp_path / "a.onnx")
    assert_found(read_layer(tmp_path / "a.onnx", "onnx", "If_0/else_branch"), 4)


def test_bodies_of_loops_and_scans_have_their_layers():
    inside, weights = lstm_node(2, x="part", y="h")
    body = graph_of(
        [inside],
        "h",
        [("n", INT64, []), ("go", onnx.TensorProto.BOOL, []), ("part", FLOAT, None)],
        weights,
    )
    loop = helper.make_node("Loop", ["", "go", "x"], ["y"], name="loop", body=body)
    deeper, weights = lstm_node(4, seed=1, x="step", y="k")
    inner = graph_of([deeper], "k", [("step", FLOAT, None)])
    nested = helper.make_node("Scan", ["x"], ["z"], name="scan", num_scan_inputs=1, body=inner)
    condition = helper.make_node("If", ["go"], ["v"], then_branch=graph_of([nested], "z"))
    layers = layers_from_onnx(model_of([loop, condition], weights, ("y", "v")))
    assert list(layers) == ["loop/body/LSTM_0", "If_0/then_branch/scan/body/LSTM_1"]
    assert_found(layers["loop/body/LSTM_0"], 2)
    assert_found(layers["If_0/then_branch/scan/body/LSTM_1"], 4, 1)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # torch's exporter has many
def test_branches_and_loops_that_torch_exports():
    """A torch script with layers under a condition and in a loop; weights are bit for bit equal."""
    torch = pytest.importorskip("torch", reason="needs the peer torch")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.LSTM(3, 4, bidirectional=True)
            self.second = torch.nn.GRU(3, 5)
            self.third = torch.nn.LSTM(3, 2)

        def forward(self, x, rate: torch.Tensor, count: torch.Tensor):
            if bool(rate == 16000):  # noqa: SIM108, which scripts do not have
                y = self.first(x)[0].sum(-1)
            else:
                y = self.second(x)[0].sum(-1)
            z = x
            for _ in range(int(count)):
                z = z + self.third(z)[0].sum()
            return y, z

    module, file = Model().eval(), io.BytesIO()
    torch.onnx.export(
        torch.jit.script(module),
        (torch.ones(2, 1, 3), torch.tensor(8000), torch.tensor(3)),
        file,
        dynamo=False,
        opset_version=17,
    )
    layers = layers_from_onnx(onnx.load_from_string(file.getvalue()))
    parts = ("/If/then_branch/", "/If/else_branch/", "/Loop/body/")
    for part, of, name in zip(parts, ("first", "second", "third"), layers, strict=True):
        assert name.startswith(part)
        wanted, params = from_torch(getattr(module, of).state_dict())
        assert [type(one) for _, one in layers[name][0].layers] == [
            type(one) for _, one in wanted.layers
        ]
        jax.tree.map(np.testing.assert_array_equal, layers[name][1], params)


def test_weights_that_a_loop_changes_are_not_found():
    inside, weights = lstm_node(2)
    carried = inside.input[2]
    body = graph_of([inside], "h", [("n", INT64, []), (carried, FLOAT, None)])
    loop = helper.make_node("Loop", ["", ""], ["y"], name="loop", body=body)
    with pytest.raises(ValueError, match=r"^R of node 'loop/body/LSTM_0' is computed from the mod"):
        layers_from_onnx(model_of([loop], weights))


def test_weights_are_computed_from_constants_in_any_scope():
    """As exporters arrange gates and directions; a function's attributes come from its caller."""
    node, weights = lstm_node(2)
    W = onnx.numpy_helper.to_array(weights[0])
    name = node.input[1]
    function = helper.make_function(
        "own",
        "Widened",
        ["top", "rest"],
        ["whole"],
        [
            helper.make_node("Concat", ["top", "rest"], ["rows"]),
            helper.make_node("Unsqueeze", ["rows", "axis"], ["whole"]),
        ],
        [helper.make_opsetid("", 18)],
        ["where"],
    )
    function.node[0].attribute.add(name="axis", ref_attr_name="where", type=2)
    axis = helper.make_node("Constant", [], ["axis"], value=tensor(np.array([0])))
    function.node.insert(0, axis)
    call = helper.make_node("Widened", ["top", "rest"], [name], domain="own", where=0)
    rest = helper.make_node("Neg", ["minus"], ["rest"])
    branch = graph_of([rest, call, node], "h", constants=[tensor(-W[0, 3:], "minus")])
    outer = helper.make_node("If", ["go"], ["y"], name="if", then_branch=branch)
    constants = [tensor(W[0, :3], "top"), *weights[1:]]
    model = model_of([outer], constants, functions=[function], opsets=(("", 18), ("own", 1)))
    assert_found(layers_from_onnx(model)["if/then_branch/LSTM_0"], 2)


def test_layers_in_a_models_own_functions():
    node, weights = lstm_node(2, x="a")
    constants = [
        helper.make_node("Constant", [], [weight.name], value=weight) for weight in weights[1:]
    ]
    function = helper.make_function(
        "own",
        "Rnn",
        ["a", weights[0].name],
        ["h"],
        [*constants, node],
        [helper.make_opsetid("", 18)],
    )
    calls = [helper.make_node("Rnn", ["x", "given"], [y], name=y, domain="own") for y in ("y", "z")]
    given = tensor(onnx.numpy_helper.to_array(weights[0]), "given")
    model = model_of(calls, [given], ("y", "z"), [function], (("", 18), ("own", 1)))
    layers = layers_from_onnx(model)
    assert list(layers) == ["y/LSTM_0", "z/LSTM_1"]
    for found in layers.values():
        assert_found(found, 2)


# ---- models that would open another file, exhaust the memory or never end ----


def in_another_file(folder):
    layer = LSTM(8)
    path = folder / "a.onnx"
    onnx.save_model(
        to_onnx(layer, layer.init(jax.random.key(0), 3)),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return path


@pytest.mark.parametrize("missing", [False, True])
def test_weights_in_another_file_are_not_read(missing, tmp_path):
    path = in_another_file(tmp_path)
    if missing:
        (tmp_path / "weights.bin").unlink()
    wanted = r"a\.onnx: the numbers of '.*' are in another file, 'weights\.bin', which is not read"
    for read in (from_onnx, layers_from_onnx, lambda path: read_layer(path, "onnx")):
        with pytest.raises(UserError, match=wanted):
            read(path)
    model = onnx.load(path, load_external_data=False)
    with pytest.raises(ValueError, match=r"^the numbers of '.*' are in another file"):
        layers_from_onnx(model)
    if not missing:
        assert list(layers_from_onnx(onnx.load(path))) == ["LSTM_0"]  # loaded by the user


def test_external_data_that_no_layer_needs_are_ignored(tmp_path):
    node, weights = lstm_node(2)
    secret = onnx.TensorProto(name="secret", data_type=FLOAT, dims=[4])
    secret.data_location = onnx.TensorProto.EXTERNAL
    secret.external_data.add(key="location", value="../../etc/passwd")
    model = model_of([node], [*weights, secret], ("h",))
    assert_found(layers_from_onnx(model)["LSTM_0"], 2)


def bomb(operator, inputs, constants, **attributes):
    """A model in which an operator computes a huge output from a small input."""
    made = helper.make_node(operator, inputs, ["big"], name="big", **attributes)
    node, weights = lstm_node(2)
    tensors = [tensor(np.asarray(a), name) for name, a in constants.items()]
    return made, node, [*weights, *tensors]


BOMBS = [
    ("ConstantOfShape", {"shape": np.array([2**16, 2**16])}, {}),
    ("Expand", {"v": np.ones(1, "float32"), "shape": np.array([2**31])}, {}),
    ("Tile", {"v": np.ones(1, "float32"), "n": np.array([2**40])}, {}),
    ("Range", {"a": np.array(0), "b": np.array(2**50), "c": np.array(1)}, {}),
    ("Pad", {"v": np.ones(1, "float32"), "n": np.array([0, 2**40])}, {}),
    ("OneHot", {"i": np.zeros(4, "int64"), "n": np.array(2**40), "v": np.array([0.0, 1.0])}, {}),
    ("Add", {"a": np.ones((2**18, 1), "float32"), "b": np.ones((1, 2**18), "float32")}, {}),
    ("MatMul", {"a": np.ones((2**18, 1), "float32"), "b": np.ones((1, 2**18), "float32")}, {}),
    ("Gather", {"a": np.ones((1, 2**18), "float32"), "i": np.zeros(2**18, "int64")}, {}),
]


@pytest.mark.parametrize(("operator", "constants", "attributes"), BOMBS)
def test_unneeded_values_are_not_computed(operator, constants, attributes):
    made, node, tensors = bomb(operator, list(constants), constants, **attributes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_found(layers_from_onnx(model_of([made, node], tensors, ("h",)))["LSTM_0"], 2)
    node.input[2] = "big"
    model = model_of([made, node], tensors, ("h",))
    with pytest.raises(
        ValueError, match=f"{operator} would compute [0-9]* numbers from [0-9]*; exp"
    ):
        layers_from_onnx(model)
    with pytest.raises(
        ValueError, match=f"{operator} would compute [0-9]* numbers from [0-9]*; exp"
    ):
        from_onnx(model)(x=np.ones((2, 1, 3), "float32"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 512 * 1024
    model = model_of([made, helper.make_node("Neg", ["x"], ["y"])], tensors)
    assert from_onnx(model)(x=np.ones((2, 1, 3), "float32"))["y"].shape == (2, 1, 3)


def test_the_memory_bound_applies_to_all_operators_together():
    node, weights = lstm_node(2)
    shape = tensor(np.array([2**12, 2**12]), "shape")
    nodes = [helper.make_node("ConstantOfShape", ["shape"], [f"v{n}"]) for n in range(40)]
    node.input[2] = "all"
    whole = helper.make_node("Sum", [f"v{n}" for n in range(40)], ["all"])
    with pytest.raises(
        ValueError, match=r"^R of node 'LSTM_0' needs far more memory to compute than"
    ):
        layers_from_onnx(model_of([*nodes, whole, node], [*weights, shape], ("h",)))


def doubling(levels, innermost):
    """Functions, each of which calls the next one twice and adds the results."""
    functions = []
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    for n in range(levels):
        nodes = [helper.make_node(innermost, ["a"], ["c"])]
        if n + 1 < levels:
            nodes = [helper.make_node(f"f{n + 1}", ["a"], [y], domain="own") for y in "bd"]
            nodes.append(helper.make_node("Add", ["b", "d"], ["c"]))
        functions.append(helper.make_function("own", f"f{n}", ["a"], ["c"], nodes, opsets))
    return functions


def test_doubling_functions_are_counted_and_not_inlined():
    call = helper.make_node("f0", ["x"], ["y"], domain="own")
    node, weights = lstm_node(2)
    started = time.monotonic()
    opsets = (("", 18), ("own", 1))
    model = model_of([call, node], weights, ("y", "h"), doubling(23, "Neg"), opsets)
    assert list(layers_from_onnx(model)) == ["LSTM_0"]
    with pytest.raises(ValueError, match=r"^the model has 8388608 nodes; expected at most 1000000"):
        from_onnx(model)
    model = model_of([call], [], ("y",), doubling(23, "LSTM"), opsets)
    with pytest.raises(ValueError, match=r"^the model has 4194304 recurrent layers; expected at"):
        layers_from_onnx(model)
    model = model_of([call], [], ("y",), doubling(3000, "LSTM"), opsets)
    for read in (from_onnx, layers_from_onnx):
        with pytest.raises(
            ValueError, match=r"^function calls of the model are nested more than 64"
        ):
            read(model)
    node.input[2] = "y"  # a weight that is computed through all of them
    call.input[0] = weights[1].name
    model = model_of([call, node], weights, ("y", "h"), doubling(18, "Neg"), opsets)
    with pytest.raises(
        ValueError, match=r"^R of node 'LSTM_0' needs far more memory to compute than"
    ):
        layers_from_onnx(model)
    assert time.monotonic() - started < 60


def test_a_long_chain_of_operators_is_rejected():
    node, weights = lstm_node(2)
    names = [weights[1].name, *(f"v{n}" for n in range(5000))]
    row = [helper.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names)]
    node.input[2] = names[-1]
    with pytest.raises(ValueError, match=r"^R of node 'LSTM_0' is computed by more than 64 operat"):
        layers_from_onnx(model_of([*row, node], weights, ("h",)))
    row[0].input[0] = names[-1]  # which never ends
    with pytest.raises(ValueError, match=r"^R of node 'LSTM_0' is computed by more than 64 operat"):
        layers_from_onnx(model_of([*row, node], weights, ("h",)))


@pytest.mark.parametrize("dims", [[-1], [-2, -8], [2**62, 4], [2**40], [5]])
def test_impossible_sizes_are_named(dims):
    node, weights = lstm_node(2)
    del weights[1].dims[:]
    weights[1].dims.extend(dims)
    for read in (layers_from_onnx, from_onnx):
        with pytest.raises(ValueError, match=r"has impossible sizes|cannot reshape array"):
            read(model_of([node], weights, ("h",)))


def test_unsupported_computations_of_weights_are_named():
    node, weights = lstm_node(2)
    node.input[2] = "big"
    for operator, message in (
        ("Einsum", "R of node 'LSTM_0' is computed by Einsum, which is not evaluated here"),
        ("Det", "R of node 'LSTM_0' is computed by Det, which is not evaluated here"),
        ("Shape", "R of node 'LSTM_0' must be floating numbers, got int64"),
    ):
        made = helper.make_node(operator, [weights[0].name], ["big"])
        with pytest.raises(ValueError) as error:
            layers_from_onnx(model_of([made, node], weights, ("h",)))
        assert str(error.value) == message
