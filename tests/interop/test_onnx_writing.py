"""Exported models are valid, give the same values in ONNX Runtime, and are read back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the peer onnxruntime")

from lstm_jax import CELLS, LSTM, Bidirectional, LSTMCell, Stack, unroll  # noqa: E402
from lstm_jax.cells import GRUCell, PeepholeLSTMCell, SLSTMCell  # noqa: E402
from lstm_jax.interop.onnx import (  # noqa: E402
    from_onnx,
    function_to_onnx,
    layers_from_onnx,
    to_onnx,
)
from lstm_jax.interop.onnx.primitives import TRANSLATIONS  # noqa: E402
from lstm_jax.sequence import Zoneout  # noqa: E402

pytestmark = pytest.mark.peers

# Tests run each compiled program once or twice.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

T, B, D, H = 5, 3, 2, 4
SPACE = (3, 4)
# Float32 sums of about ten terms of order 1 over 5 steps, with approximated exponentials.
TOLERANCE = 2e-6
RECURRENT = ("LSTM", "GRU", "RNN", "Scan")


def run(model, feeds):
    """The outputs of ONNX Runtime for a model that the checker accepts."""
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def named(name, tree):
    """The arrays of a tree as inputs of a model."""
    return {
        f"{name}.{jax.tree_util.keystr(path, simple=True, separator='.')}": np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def operators(model):
    return [node.op_type for node in model.graph.node if node.op_type in RECURRENT]


def random_like(tree, seed=0):
    """Random numbers, positive if an sLSTM divides by them."""
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), tree)
    is_state = lambda node: hasattr(node, "_replace") and hasattr(node, "n")  # noqa: E731
    return jax.tree.map(
        lambda node: node._replace(n=1 + np.abs(node.n)) if is_state(node) else node,
        tree,
        is_leaf=is_state,
    )


def random_params(layer, size=D):
    like = jax.eval_shape(lambda: layer.init(jax.random.key(0), size))
    return jax.tree.map(lambda leaf: 0.5 * leaf, random_like(like))


def close(ours, theirs, tolerance=TOLERANCE, what=""):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=what)


# ---- cells and layers ----


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_streams_in_onnxruntime_and_is_read_back(name):
    """A sequence in two parts, with the state passed between them and rows of different lengths."""
    cell = CELLS[name](hidden_size=H)
    space = SPACE if name == "conv_lstm" else ()
    params, start = random_params(cell), random_like(cell.zero_state((B, *space)))
    xs = random_like(jnp.zeros((T, B, *space, D)))
    lengths = {} if space else {"lengths": np.array([5, 2, 0], np.int32)}
    model = to_onnx(cell, params, streaming=True, lengths=bool(lengths), batch_shape=("B", *space))
    (kind,) = operators(model)
    assert (kind == "Scan") == (
        name not in {"lstm", "peephole", "coupled", "niaf", "noaf", "np", "gru", "rnn"}
    )

    ours = quickly(functools.partial(unroll, cell, engine="scan"))
    state, ys = ours(params, xs, start, **lengths)
    feeds = {"xs": xs, **named("state", start), **lengths}
    theirs, back = run(model, feeds), quickly(from_onnx(model, engine="scan"))(**feeds)
    ours = {"ys": ys, **named("new_state", state)}
    assert set(theirs) == set(back) == set(ours)
    for key, array in ours.items():
        close(array, theirs[key], what=key)
        close(array, back[key], what=key)

    if not lengths:
        return
    parts, feeds = [], {**named("state", start)}
    for part in (slice(0, 2), slice(2, 5)):
        left = np.clip(lengths["lengths"] - part.start, 0, part.stop - part.start)
        theirs = run(model, {**feeds, "xs": xs[part], "lengths": left.astype(np.int32)})
        parts.append(theirs["ys"])
        feeds = {key.removeprefix("new_"): array for key, array in theirs.items() if key != "ys"}
    close(ys, np.concatenate(parts))


LAYERS = {
    "two layers": (LSTM(H, num_layers=2), ["LSTM", "LSTM"]),
    "both directions": (LSTM(H, bidirectional=True), ["LSTM"]),
    "mean": (LSTM(H, bidirectional=True, merge="mean", cell="gru"), ["GRU", "GRU"]),
    "own merge": (Bidirectional(LSTMCell(H), merge=jnp.maximum), ["LSTM", "LSTM"]),
    "reverse": (LSTM(H, reverse=True, cell="rnn"), ["RNN"]),
    "reverse scan": (LSTM(H, reverse=True, cell="mgu"), ["Scan"]),
    "residual": (
        Stack([GRUCell(H), CELLS["projected"](hidden_size=6, proj_size=H)], connections="residual"),
        ["GRU", "Scan"],
    ),
    "skip": (LSTM((H, 3), connections="skip"), ["LSTM", "LSTM"]),
    "mixed": (
        Stack({"a": Bidirectional(PeepholeLSTMCell(H)), "b": SLSTMCell(H, num_heads=2)}),
        ["LSTM", "Scan"],
    ),
    "zoneout": (Stack([Zoneout(LSTMCell(H))]), ["Scan"]),
    "cell clip": (Stack([LSTMCell(H, cell_clip=0.3)]), ["Scan"]),
    "learned start": (Stack([LSTMCell(H, learn_initial_state=True)]), ["LSTM"]),
    "learned start of a scan": (Stack([SLSTMCell(H, learn_initial_state=True)]), ["Scan"]),
    "functions": (Stack([GRUCell(H, activation_fn="gelu", gate_fn="hard_sigmoid")]), ["Scan"]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_run_in_onnxruntime(name):
    layer, expected = LAYERS[name]
    params = random_params(layer)
    model = to_onnx(layer, params, lengths=True)
    assert operators(model) == expected
    xs, lengths = random_like(jnp.zeros((T, B, D))), np.array([5, 2, 0], np.int32)
    state, ys = quickly(layer.apply)(params, xs, lengths=lengths)
    theirs = run(model, {"xs": xs, "lengths": lengths})
    close(ys, theirs["ys"])
    for key, array in named("new_state", state).items():
        close(array, theirs[key], what=key)


MASK = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0]], bool)


@pytest.mark.parametrize("name", ["two layers", "own merge", "reverse scan", "mixed"])
def test_masks_run_in_onnxruntime(name):
    """Padding at the start, a gap, and a row without steps, with any values at masked steps."""
    layer, _ = LAYERS[name]
    params = random_params(layer)
    model = to_onnx(layer, params, mask=True, streaming=name == "two layers")
    assert set(operators(model)) == {"Scan"}
    xs = np.where(MASK[..., None], random_like(jnp.zeros((T, B, D))), np.float32(np.nan))
    start = random_like(layer.zero_state((B,))) if name == "two layers" else None
    state, ys = quickly(layer.apply)(params, xs, start, mask=MASK)
    theirs = run(
        model, {"xs": xs, "mask": MASK, **({} if start is None else named("state", start))}
    )
    close(ys, theirs["ys"])
    for key, array in named("new_state", state).items():
        close(array, theirs[key], what=key)


def test_masks_with_lengths_and_documents():
    layer = LSTM(H, bidirectional=True)
    params, xs = random_params(layer), random_like(jnp.zeros((T, B, D)))
    how = {"lengths": np.array([5, 4, 2], np.int32), "mask": MASK, "resets": MASK[::-1].copy()}
    steps, batch = jax.export.symbolic_shape("T, B")
    shapes = {"xs": (steps, batch, D), "lengths": (batch,)} | dict.fromkeys(
        ("mask", "resets"), (steps, batch)
    )
    inputs = {
        name: jax.ShapeDtypeStruct(shapes[name], array.dtype)
        for name, array in {"xs": xs, **how}.items()
    }
    model = function_to_onnx(
        lambda params, xs, **how: {"ys": layer.apply(params, xs, **how)[1]}, params, inputs
    )
    _, ys = quickly(layer.apply)(params, xs, **how)
    close(ys, run(model, {"xs": xs, **how})["ys"])


BOTH = {
    "three layers": LSTM(H, 3, bidirectional=True),
    "gru": LSTM(H, bidirectional=True, cell="gru"),
    "peepholes in one": Stack([Bidirectional(PeepholeLSTMCell(H), LSTMCell(H))]),
    "functions": Stack([Bidirectional(LSTMCell(H), LSTMCell(H, activation_fn="relu"))]),
}


@pytest.mark.parametrize("batch", [("B",), (), ("A", "B")])
@pytest.mark.parametrize("name", BOTH)
def test_both_directions_are_one_operator_and_one_layer_again(name, batch):
    layer = BOTH[name]
    params = random_params(layer)
    rows = (2, 3)[: len(batch)]
    xs, start = random_like(jnp.zeros((T, *rows, D))), random_like(layer.zero_state(rows))
    model = to_onnx(layer, params, streaming=True, batch_shape=batch)
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == ["GRU" if name == "gru" else "LSTM"] * len(params)
    state, ys = quickly(layer.apply)(params, xs, start)
    theirs = run(model, {"xs": xs, **named("state", start)})
    close(ys, theirs["ys"])
    for key, array in named("new_state", state).items():
        close(array, theirs[key], what=key)
    for one, (found, weights) in zip(params, layers_from_onnx(model).values(), strict=True):
        assert isinstance(found.layers[0][1], Bidirectional)
        if name != "peepholes in one":  # which get some that are zero
            jax.tree.map(np.testing.assert_array_equal, weights["layer_0"], params[one])


def test_directions_that_do_not_form_a_layer_remain_two_operators():
    """Another sequence, order or axis, or an initial state from the other direction."""
    cell = LSTMCell(H)
    forward, backward = random_params(cell), random_params(cell)

    def function(params, xs, zs):
        end, ys = unroll(cell, params[0], xs)
        _, of_end = unroll(cell, params[1], xs, end, reverse=True)
        _, of_other = unroll(cell, params[1], zs, reverse=True)
        return {
            "end": jnp.concatenate([ys, of_end], -1),
            "other": jnp.concatenate([ys, of_other], -1),
            "order": jnp.concatenate([of_other, ys], -1),
            "axis": jnp.concatenate([ys, of_other], 0),
            "three": jnp.concatenate([ys, of_other, ys], -1),
        }

    axes = jax.export.symbolic_shape("T, B")
    spec = jax.ShapeDtypeStruct((*axes, D), np.float32)
    model = function_to_onnx(function, [forward, backward], {"xs": spec, "zs": spec})
    assert operators(model) == ["LSTM"] * 3
    xs, zs = (random_like(jnp.zeros((T, B, D))) for _ in range(2))
    wanted = quickly(function)([forward, backward], xs, zs)
    theirs = run(model, {"xs": xs, "zs": zs})
    for key, array in wanted.items():
        close(array, theirs[key], what=key)


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("cell", ["gru", "mgu"])
def test_any_number_of_batch_axes(batch, cell):
    layer = LSTM(H, cell=cell)
    params, xs = random_params(layer), random_like(jnp.zeros((T, *batch, D)))
    start = random_like(layer.zero_state(batch))
    model = to_onnx(layer, params, streaming=True, batch_shape=tuple("AB"[: len(batch)]))
    state, ys = quickly(layer.apply)(params, xs, start)
    theirs = run(model, {"xs": xs, **named("state", start)})
    close(ys, theirs["ys"])
    close(state["layer_0"].h, theirs["new_state.layer_0.h"])


@pytest.mark.parametrize("cell", ["lstm", "mogrifier"])
def test_narrow_types_are_rounded_like_ours(cell):
    layer = LSTM(H, cell=cell, dtype="bfloat16")
    params, xs = random_params(layer), random_like(jnp.zeros((T, B, D)))
    model = to_onnx(layer, params, streaming=True)
    assert {value.type.tensor_type.elem_type for value in model.graph.input} == {1}  # float32
    start = random_like(layer.zero_state((B,)))
    _, ys = quickly(layer.apply)(params, xs, start)
    theirs = run(model, {"xs": xs, **named("state", jax.tree.map(np.float32, start))})
    # One unit of bfloat16, in case a float32 sum is close to a tie.
    close(ys.astype(np.float32), theirs["ys"], 2**-7)
    assert (np.asarray(ys, np.float32) == theirs["ys"]).mean() > 0.95


def test_resets_are_exported():
    """ONNX's operators have no resets, so the result is a Scan."""
    layer = LSTM(H)
    params, xs = random_params(layer), random_like(jnp.zeros((T, B, D)))
    resets = np.arange(T * B).reshape(T, B) % 4 == 1

    def function(params, xs, resets):
        return {"ys": layer.apply(params, xs, resets=resets)[1]}

    axes = jax.export.symbolic_shape("T, B")
    inputs = {
        "xs": jax.ShapeDtypeStruct((*axes, D), np.float32),
        "resets": jax.ShapeDtypeStruct(axes, bool),
    }
    model = function_to_onnx(function, params, inputs)
    assert operators(model) == ["Scan"]
    _, ys = quickly(layer.apply)(params, xs, resets=resets)
    close(ys, run(model, {"xs": xs, "resets": resets})["ys"])


class Decay:
    """A custom cell, whose parameters and state are single arrays."""

    hidden_size = D

    def init(self, key, input_size):
        return jnp.full(input_size, 0.5)

    def zero_state(self, batch_shape=()):
        return jnp.zeros((*batch_shape, D))

    def step(self, params, state, x):
        state = params * state + jnp.sin(x)
        return state, state


def test_a_custom_cell():
    cell, xs = Decay(), random_like(jnp.zeros((T, B, D)))
    params = cell.init(None, D)
    model = to_onnx(cell, params, size=D, streaming=True)
    assert [value.name for value in model.graph.input] == ["xs", "state"]
    start = np.ones((B, D), np.float32)
    state, ys = unroll(cell, params, xs, start, engine="scan")
    theirs = run(model, {"xs": xs, "state": start})
    close(ys, theirs["ys"])
    close(state, theirs["new_state"])
    with pytest.raises(ValueError, match=r"^size must be given, since the parameters of Decay do"):
        to_onnx(cell, params)


def test_computed_weights_are_not_constants_of_an_operator():
    layer = LSTM(H, cell="rnn")
    params, xs = random_params(layer), random_like(jnp.zeros((T, B, D)))

    def function(params, xs, scale):
        return {"ys": layer.apply(jax.tree.map(lambda leaf: scale * leaf, params), xs)[1]}

    inputs = {"xs": xs, "scale": np.array(2, np.float32)}
    model = function_to_onnx(function, params, inputs)
    assert operators(model) == ["Scan"]
    close(function(params, **inputs)["ys"], run(model, inputs)["ys"])


def test_double_precision_is_a_scan():
    """ONNX Runtime has no LSTM in float64."""
    with jax.enable_x64(True):
        layer = LSTM(H, param_dtype="float64")
        params, xs = random_params(layer), random_like(jnp.zeros((T, B, D)))
        model = to_onnx(layer, params)
        _, ys = quickly(layer.apply)(params, xs)
    assert operators(model) == ["Scan"]
    close(ys, run(model, {"xs": xs})["ys"], 1e-12)


def test_weights_have_their_names_and_are_stored_once():
    layer = LSTM(H, 2, cell="mogrifier")
    model = to_onnx(layer, random_params(layer))
    names = [tensor.name for tensor in model.graph.initializer]
    assert {"params.layer_0.w_ih", "params.layer_1.w_q1"} <= set(names)
    sizes = [onnx.numpy_helper.to_array(tensor).size for tensor in model.graph.initializer]
    counted = sum(leaf.size for leaf in jax.tree.leaves(random_params(layer)))
    assert sum(sizes) < counted + 100  # in addition, axes and shapes


# ---- functions ----


def of(*shape, dtype=np.float32):
    return random_like(jnp.zeros(shape)).astype(dtype)


POSITIVE = np.abs(of(3, 4)) + 0.1
WHOLE = np.array([[-7, 5, 0], [4, -3, 2]], np.int32)
TRUTH = WHOLE > 0
FUNCTIONS = {
    "abs": (jnp.abs, of(3, 4)),
    "acos": (jnp.arccos, np.tanh(of(3, 4))),
    "acosh": (lambda x: jax.lax.acosh(x + 1), POSITIVE),
    "add": (lambda x: x + x.T, of(3, 3)),
    "add_any": (jax.grad(lambda x: (jnp.sin(x) * x).sum()), of(3)),
    "and": (lambda a: (a & ~a, a | a, a ^ ~a), TRUTH),
    "and of bits": (lambda a: (a & 3, a | 4, a ^ 5, ~a), WHOLE),
    "argmax": (lambda x: (x.argmax(1), x.argmin(0), (x > 0).argmax(0)), of(3, 4)),
    "asin": (jnp.arcsin, np.tanh(of(3, 4))),
    "asinh": (jax.lax.asinh, of(3, 4)),
    "atan": (jnp.arctan, of(3, 4)),
    "atanh": (jax.lax.atanh, np.tanh(of(3, 4))),
    "broadcast_in_dim": (lambda x: jnp.broadcast_to(x[:, None], (2, 3, 5, 4)), of(3, 4)),
    "ceil": (lambda x: (jnp.ceil(x), jnp.floor(x)), of(3, 4)),
    "clamp": (lambda x: jax.lax.clamp(-0.5, x, 0.5), of(3, 4)),
    "stack": (lambda x: jnp.stack([x, x], 1), of(3, 4)),
    "concatenate": (lambda x: jnp.concatenate([x, x], 1), of(3, 4)),
    "conv_general_dilated": (
        lambda x: jax.lax.conv_general_dilated(
            x,
            of(3, 2, 4),
            (2,),
            [(1, 2)],
            rhs_dilation=(2,),
            dimension_numbers=("NXC", "XIO", "NXC"),
        ),
        of(2, 9, 2),
    ),
    "convert_element_type": (lambda x: (x.astype(jnp.int32), (x > 0).astype(x.dtype)), 3 * of(9)),
    "copy": (lambda x: jnp.array(x, copy=True), of(3)),
    "cos": (lambda x: (jnp.cos(x), jnp.sin(x), jnp.tan(x)), of(3, 4)),
    "cosh": (lambda x: (jnp.cosh(x), jnp.sinh(x)), of(3, 4)),
    "cumsum": (lambda x: (x.cumsum(0), jax.lax.cumsum(x, 1, reverse=True)), of(3, 4)),
    "dim_as_value": (lambda x: x.mean(0), of(3, 4)),
    "div": (lambda x: x / 3, of(3, 4)),
    "div of integers": (
        lambda a: (jax.lax.div(a, jnp.int32(2)), jax.lax.rem(a, jnp.int32(3))),
        WHOLE,
    ),
    "dot_general": (
        lambda x: (x @ x.T, x.T @ x, jnp.einsum("abc,dcb->ad", x[:, None], x[:, :, None])),
        of(3, 4),
    ),
    "dot_general in batches": (lambda x: jnp.einsum("bij,bkj->kib", x, x), of(3, 4, 2)),
    "dot_general of narrow numbers": (  # quarters: their sums are exact and rounded once
        lambda x: (
            (x.astype("bfloat16") @ x.T.astype("bfloat16")).astype(x.dtype),
            jnp.einsum("ij,kj->ijk", *[x.astype("bfloat16")] * 2).astype(x.dtype),
        ),
        np.round(64 * of(3, 4)) / 4,
    ),
    "dynamic_slice": (
        lambda x: jax.lax.dynamic_slice(x, (x.sum().astype(int), 9), (2, 2)),
        of(3, 4),
    ),
    "eq": (lambda a: (a == 2, a != 2, a >= 2, a > 2, a <= 2, a < 2), WHOLE),
    "erf": (jax.lax.erf, of(3, 4)),
    "exp": (lambda x: (jnp.exp(x), jnp.exp2(x)), of(3, 4)),
    "expm1": (jnp.expm1, of(3, 4) * np.array([1e-6, 0.1, 1, 20], np.float32)),
    "gather": (lambda a: jnp.arange(24.0).reshape(6, 4)[a % 6], WHOLE),
    "gather along an axis": (lambda a: jnp.take(of(2, 6, 4), a % 6, axis=1, mode="clip"), WHOLE),
    "gather beyond": (lambda a: jnp.take(of(6, 4), a, axis=0, mode="clip"), WHOLE),
    "gather in rows": (lambda a: jnp.take_along_axis(of(2, 6, 4), a[..., None] % 6, 1), WHOLE),
    "gather of places": (lambda a: jnp.asarray(of(3, 5, 4))[a % 3, :, a % 4], WHOLE),
    "integer_pow": (lambda x: (x**2, x**3, x**-1), of(3, 4)),
    "iota": (
        lambda x: (
            x * jnp.arange(x.shape[0])[:, None] + jax.lax.broadcasted_iota(x.dtype, (3, 4), 1)
        ),
        of(3, 4),
    ),
    "is_finite": (lambda x: jnp.isfinite(x / jnp.floor(x)), of(3, 4)),
    "log": (jnp.log, POSITIVE),
    "log1p": (jnp.log1p, POSITIVE * np.array([1e-7, 1e-3, 1, 100], np.float32)),
    "logistic": (lambda x: (jax.nn.sigmoid(x), jax.nn.log_sigmoid(9 * x)), of(3, 4)),
    "max": (lambda x: (jnp.maximum(x, 0), jnp.minimum(x, 0.5)), of(3, 4)),
    "mul": (lambda x: -x * 2 - 1, of(3, 4)),
    "name": (lambda x: jax.ad_checkpoint.checkpoint_name(x, "x") + 1, of(3)),
    "optimization_barrier": (lambda x: jax.lax.optimization_barrier(x) + 1, of(3)),
    "pad": (lambda x: jnp.pad(x, ((1, 2), (0, 1)), constant_values=2), of(3, 4)),
    "pow": (lambda x: x**1.7, POSITIVE),
    "reduce_and": (lambda a: (a.all(0), a.any(1)), TRUTH),
    "reduce_max": (lambda x: (x.max(0), x.min(1), x.sum((0, 1)), x.prod(0)), of(3, 4)),
    "remat": (jax.grad(jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x)).sum())), of(3)),
    "reshape": (lambda x: x.reshape(2, -1), of(3, 4)),
    "rev": (lambda x: x[::-1, ::-1], of(3, 4)),
    "round": (lambda x: (jnp.round(x), jax.lax.round(x)), np.arange(-3, 3, 0.5, np.float32)),
    "scan": (lambda x: jax.lax.scan(lambda c, y: (c + y, c * y), x[0], x, reverse=True), of(5, 3)),
    "scan of nothing": (lambda x: jax.lax.fori_loop(0, 4, lambda n, c: c * 0.5 + n, x), of(3)),
    "select_n": (lambda a: jax.lax.select_n(a % 3, 1 * a, 2 * a, 3 * a), np.abs(WHOLE)),
    "select_n of truth": (lambda a: jnp.where(a, ~a, a), TRUTH),
    "sign": (jnp.sign, of(3, 4)),
    "slice": (lambda x: x[1:, :3:2], of(3, 4)),
    "slice of features": (lambda x: (x[:, 1:3], x[..., -1], x[:, -1:]), of(3, 4)),
    "softmax": (jax.nn.softmax, of(3, 4)),
    "split": (lambda x: jnp.split(x, [1, 3], 1), of(3, 4)),
    "sqrt": (lambda x: (jnp.sqrt(x), jax.lax.rsqrt(x), jnp.square(x)), POSITIVE),
    "squeeze": (lambda x: x.squeeze(1), of(3, 1, 4)),
    "sub": (lambda x: 1 - x, of(3)),
    "tanh": (lambda x: (jnp.tanh(x), jax.nn.gelu(x), jax.nn.elu(x)), of(3, 4)),
    "transpose": (lambda x: x.transpose(2, 0, 1), of(2, 3, 4)),
}


# JAX does not support a symbolic first axis for these.
FIXED = ("add", "broadcast_in_dim", "dynamic_slice", "gather in rows", "iota", "slice")
OPEN = [name for name in FUNCTIONS if name not in FIXED]


def as_model(function, shape, dtype):
    """A function of one array as a model."""
    wrap = lambda params, x: dict(enumerate_leaves(function(x)))  # noqa: E731
    return function_to_onnx(wrap, (), {"x": jax.ShapeDtypeStruct(shape, dtype)})


def enumerate_leaves(tree):
    return [(f"y{n}", leaf) for n, leaf in enumerate(jax.tree.leaves(tree))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_primitives_run_in_onnxruntime_and_are_read_back(name):
    function, x = FUNCTIONS[name]
    model = as_model(function, x.shape, x.dtype)
    theirs, back = run(model, {"x": x}), from_onnx(model)(x=x)
    for key, ours in enumerate_leaves(function(jnp.asarray(x))):
        ours = np.asarray(ours)
        assert theirs[key].dtype == ours.dtype
        np.testing.assert_allclose(theirs[key], ours, rtol=1e-5, atol=1e-6, strict=True)
        np.testing.assert_allclose(back[key], ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPEN)
def test_sizes_stay_symbolic(name):
    """A size of the first axis that differs from that of the export."""
    function, x = FUNCTIONS[name]
    sizes = ", ".join(["n", *map(str, x.shape[1:])])
    model = as_model(function, jax.export.symbolic_shape(sizes), x.dtype)
    theirs = run(model, {"x": x[:1]})
    for key, ours in enumerate_leaves(function(jnp.asarray(x[:1]))):
        np.testing.assert_allclose(theirs[key], ours, rtol=1e-5, atol=1e-6)


def primitives_of(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives_of(inner)


def test_every_translation_is_tested_above():
    seen = set()
    for function, x in FUNCTIONS.values():
        seen |= set(primitives_of(jax.make_jaxpr(function)(x).jaxpr))
    by_size = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 4"), np.float32)
    seen |= set(primitives_of(jax.make_jaxpr(lambda x: x.mean(0))(by_size).jaxpr))
    inside = {"copy_p", "pcast", "pvary"}  # of older JAX, and within shard_map
    assert set(TRANSLATIONS) - inside <= seen
