"""The drawing of a cell corresponds to its equations and is legible."""

import functools
import importlib.util
import itertools
import pathlib
import re
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from lstm_jax import linen, nnx
from lstm_jax.cells import CELLS, LSTMCell, SLSTMCell, named
from lstm_jax.inspect.schematic.dataflow import dataflow
from lstm_jax.inspect.schematic.draw import draw_cell, placed
from lstm_jax.sequence import Bidirectional, Zoneout

ROOT = pathlib.Path(__file__).parents[3]
SVG = "{http://www.w3.org/2000/svg}"


@functools.cache
def drawn(name):
    return draw_cell(CELLS[name](hidden_size=4))


# ---- the drawing corresponds to the equations ----


def equations(nodes):
    """A drawing as equations, one for each named value, in alphabetical order.

    ``σ[h' x p∘c']`` is a layer of h_{t-1} and x_t and, unit by unit, c_{t-1}.
    """
    called = {n: node.names[0] for n, node in enumerate(nodes) if node.names}
    for node in nodes:
        if node.kind == "new state":
            called.setdefault(node.inputs[0].source, node.text)

    def sources(edges):
        found = []
        for edge in edges:
            node = nodes[edge.source]
            joined = node.kind == "join" and not edge.weighted
            found += sources(node.inputs) if joined else [
                ("p∘" if edge.weighted else "") + written(edge.source)
            ]  # fmt: skip
        return sorted(found)

    def written(n, top=False):
        node = nodes[n]
        if n in called and not top:
            return called[n]
        if node.kind in ("state", "input"):
            return node.text + ("'" if node.kind == "state" else "")
        if node.kind == "layer":
            return f"{node.text}{node.note}[{' '.join(sources(node.inputs))}]"
        terms = [("p∘" if e.weighted else "") + written(e.source) for e in node.inputs]
        if node.text in ("+", "×"):
            return f"({node.text.join(sorted(terms))})"
        return (
            f"({node.text.join(terms)})" if node.text in "−÷" else f"{node.text}({','.join(terms)})"
        )

    found = [f"{name}={written(n, True)}" for n, name in called.items()]
    found += [
        f"{node.text}={called[node.inputs[0].source]}"
        for node in nodes
        if node.kind == "new state" and called[node.inputs[0].source] != node.text
    ]
    (y,) = (node for node in nodes if node.kind == "output")
    return sorted(found), called[y.inputs[0].source]


GATES = {
    "f": "f=σ[h' x]", "g": "g=tanh[h' x]", "i": "i=σ[h' x]", "o": "o=σ[h' x]",
    "pf": "f=σ[h' p∘c' x]", "pi": "i=σ[h' p∘c' x]", "po": "o=σ[h' p∘c x]",
}  # fmt: skip
MEMORY = ["c=((c'×f)+(g×i))", "h=(o×tanh(c))"]
STANDARD = [*MEMORY, GATES["f"], GATES["g"], GATES["i"], GATES["o"]]
EXPECTED = {
    "lstm": STANDARD,
    "np": STANDARD,
    "lstm_1997": [
        "c=((g×i)+c')", "h=(o×tanh(·/2)(c))", GATES["i"], GATES["o"], "g=2tanh(·/2)[h' x]",
    ],
    "peephole": [*MEMORY, GATES["pf"], GATES["g"], GATES["pi"], GATES["po"]],
    "coupled": [*MEMORY, GATES["f"], GATES["g"], "i=1−(f)", GATES["o"]],
    "nig": ["c=((c'×f)+g)", MEMORY[1], GATES["pf"], GATES["g"], GATES["po"]],
    "nfg": ["c=((g×i)+c')", MEMORY[1], GATES["g"], GATES["pi"], GATES["po"]],
    "nog": [MEMORY[0], "h=tanh(c)", GATES["pf"], GATES["g"], GATES["pi"]],
    "niaf": [*MEMORY, GATES["pf"], "g=linear[h' x]", GATES["pi"], GATES["po"]],
    "noaf": [MEMORY[0], "h=(c×o)", GATES["pf"], GATES["g"], GATES["pi"], GATES["po"]],
    "fgr": [
        *MEMORY, GATES["g"], "f=σ[f' h' i' o' p∘c' x]", "i=σ[f' h' i' o' p∘c' x]",
        "o=σ[f' h' i' o' p∘c x]",
    ],
    "projected": [MEMORY[0], *STANDARD[2:], "m=(o×tanh(c))", "h=linear[m]"],
    "layer_norm": [
        MEMORY[0], "h=(o×tanh(LN(c)))", "f=σ((LN[h']+LN[x]))", "g=tanh((LN[h']+LN[x]))",
        "i=σ((LN[h']+LN[x]))", "o=σ((LN[h']+LN[x]))",
    ],
    "multiplicative": [
        *MEMORY, "m=(linear[h']×linear[x])", "f=σ[m x]", "g=tanh[m x]", "i=σ[m x]", "o=σ[m x]",
    ],
    "mogrifier": [
        *MEMORY, "x_1=(2σ[h']×x)", "h_2=(2σ[x_1]×h')", "x_3=(2σ[h_2]×x_1)", "h_4=(2σ[x_3]×h_2)",
        "x_5=(2σ[h_4]×x_3)", "f=σ[h_4 x_5]", "g=tanh[h_4 x_5]", "i=σ[h_4 x_5]", "o=σ[h_4 x_5]",
    ],
    "slstm": [
        "m=max((log σ[h' x]+m'),linear[h' x])", "f=exp(((log σ[h' x]+m')−m))",
        "i=exp((linear[h' x]−m))", GATES["g"], GATES["o"], MEMORY[0], "n=((f×n')+i)",
        "h=((c×o)÷n)",
    ],
    "min_lstm": [
        "f'=σ((log σ[x]−log σ[x]))", "i'=σ(−·)((log σ[x]−log σ[x]))", "g=linear[x]",
        "h=((f'×h')+(g×i'))",
    ],
    "min_gru": ["z=σ[x]", "g=linear[x]", "h=((1−(z)×h')+(g×z))"],
    "gru": ["r=σ[h' x]", "z=σ[h' x]", "g=tanh[(h'×r) x]", "h=((1−(z)×g)+(h'×z))"],
    "mgu": ["f=σ[h' x]", "g=tanh[(f×h') x]", "h=((1−(f)×h')+(f×g))"],
    "rnn": ["h=tanh[h' x]"],
    "ind_rnn": ["h=relu[p∘h' x]"],
    "ea_lstm": [
        *MEMORY, "i=σ[[-1:](x)]", "f=σ[[:-1](x) h']", "g=tanh[[:-1](x) h']", "o=σ[[:-1](x) h']",
    ],
    "conv_lstm": [
        *MEMORY, "f=σconv[h' x]", "g=tanhconv[h' x]", "i=σconv[h' x]", "o=σconv[h' x]",
    ],
}  # fmt: skip
"""The drawings of docs/cells.md, in the format of :func:`equations`."""


@pytest.mark.parametrize("name", CELLS)
def test_the_drawing_shows_the_equations(name):
    found, y = equations(drawn(name).nodes)
    assert found == sorted(EXPECTED[name])
    assert y == "h"


def test_the_standard_lstm_has_no_other_nodes():
    texts = [n.text for n in drawn("lstm").nodes if n.kind in ("layer", "operation", "function")]
    assert sorted(texts) == sorted(["σ", "σ", "tanh", "σ", "×", "×", "+", "tanh", "×"])


SAMPLES = 60


@functools.cache
def computed(name):
    """A step's nodes, the values of each for many random states and inputs, and the graph."""
    cell, random = CELLS[name](hidden_size=4), np.random.default_rng(0)
    batch = (SAMPLES, *(3,) * (cell.num_feature_axes - 1))
    shapes = jax.eval_shape(
        lambda: (cell.init(jax.random.key(0), 3), cell.zero_state(batch), jnp.zeros((*batch, 3)))
    )
    flow = dataflow(cell.step, *shapes)
    params, *others = jax.tree.map(lambda a: random.normal(size=a.shape), shapes)
    params = jax.tree.map(lambda a: 0.4 * a, params)
    if name == "layer_norm":
        params["b"] *= 0  # only the biases of layers are drawn
    leaves = zip(
        jax.tree.leaves(flow.graph.inputs), jax.tree.leaves((params, *others)), strict=True
    )
    known = {leaf: jnp.asarray(array, "float32") for leaf, array in leaves}
    names = {n: node.value[0] for n, node in enumerate(flow.nodes) if node.value is not None}
    values = {}
    for n, array in flow.graph.evaluate(names, known).items():
        span = flow.nodes[n].value[1]
        values[n] = np.asarray(array if span is None else array[..., slice(*span)], np.float64)
    return flow.nodes, values, flow.graph


OPERATIONS = {
    "×": np.multiply, "+": np.add, "−": np.subtract, "÷": np.divide, "max": np.maximum,
    "tanh": np.tanh, "exp": np.exp, "1−": lambda a: 1 - a, "σ": lambda a: 1 / (1 + np.exp(-a)),
    "σ(−·)": lambda a: 1 / (1 + np.exp(a)), "tanh(·/2)": lambda a: np.tanh(a / 2),
}  # fmt: skip
INVERSE = {
    "σ": lambda a: np.log(a / (1 - a)), "2σ": lambda a: np.log(a / (2 - a)), "tanh": np.arctanh,
    "2tanh(·/2)": lambda a: 2 * np.arctanh(a / 2), "linear": lambda a: a,
    "log σ": lambda a: -np.log(np.expm1(-a)),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_operations_compute_their_labels(name):
    """For random states and inputs, their values follow from those of the previous nodes."""
    nodes, values, _ = computed(name)
    checked = 0
    for n, node in enumerate(nodes):
        if node.kind == "operation" and n in values:
            inputs = [values[edge.source] for edge in node.inputs]
            if inputs[0].shape != values[n].shape:  # a quarter of the sum of normalised products
                assert name == "layer_norm" and inputs[0].shape[-1] == 16
                inputs = [np.split(inputs[0], 4, -1)["ifgo".index(node.names[0])]]
            np.testing.assert_allclose(OPERATIONS[node.text](*inputs), values[n], 2e-5, 2e-6)
            checked += 1
        elif node.kind == "part":
            (whole,) = (values[edge.source] for edge in node.inputs)
            start, stop = (int(s) if s else None for s in node.text[1:-1].split(":"))
            np.testing.assert_array_equal(values[n], whole[..., start:stop])
    assert checked or name in ("rnn", "ind_rnn")


@pytest.mark.parametrize("name", [n for n in CELLS if n not in ("conv_lstm", "ind_rnn")])
def test_layers_are_functions_of_weights_times_their_inputs(name):
    """Before its function, a layer's value is an affine map of its inputs, which is found by
    regression.

    Each input has nonzero weights, and those of a dashed wire form a diagonal matrix.
    """
    nodes, values, _ = computed(name)

    def sources(node):
        for edge in node.inputs:
            inner = nodes[edge.source]
            yield from sources(inner) if inner.kind == "join" else [edge]

    for n, node in enumerate(nodes):
        if node.kind != "layer" or node.text == "LN" or n not in values:
            continue
        edges = list(sources(node))
        inputs = [values[edge.source] for edge in edges]
        # σ and similar functions are inverted in float32, with a precision relative to their
        # bounds.
        z = INVERSE[node.text](values[n])
        columns = np.concatenate([*inputs, np.ones((SAMPLES, 1))], -1)
        weights, *_ = np.linalg.lstsq(columns, z, rcond=None)
        np.testing.assert_allclose(columns @ weights, z, atol=2e-4, err_msg=str(node))
        at = 0
        for edge, array in zip(edges, inputs, strict=True):
            block = weights[at : at + array.shape[-1]]
            at += array.shape[-1]
            assert np.abs(block).max() > 0.05, (node, edge)
            if edge.weighted:
                np.testing.assert_allclose(block, np.diag(np.diag(block)), atol=1e-3)


@pytest.mark.parametrize("name", CELLS)
def test_names_are_those_of_the_equations_and_every_output_is_drawn(name):
    nodes, _, graph = computed(name)
    labels = [label for node in nodes for label in node.names]
    assert sorted(labels) == sorted(graph.labels)
    assert [node[:4] for node in nodes] == [node[:4] for node in drawn(name).nodes]
    fields = jax.eval_shape(CELLS[name](hidden_size=4).zero_state)._fields
    for kind in ("state", "new state"):
        assert tuple(node.text for node in nodes if node.kind == kind) == fields
    used = {edge.source for node in nodes for edge in node.inputs}
    ends = {n for n, node in enumerate(nodes) if node.kind in ("new state", "output")}
    assert used | ends == set(range(len(nodes)))


# ---- custom cells ----


class OwnCell:
    """A user's cell that does not use the library's base class."""

    def __init__(self, step, params, state):
        self.step, self.params, self.state = step, params, state

    def init(self, key, input_size):
        return self.params

    def zero_state(self, batch_shape=()):
        return self.state


def test_a_custom_cell_without_names():
    def step(params, state, x):
        h, c = state
        z = jnp.concatenate([x, h]) @ params["w"] + params["b"]
        i, f, g, o = jnp.split(z, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.silu(o) * jnp.tanh(c)
        return (h, c), h

    params = {"w": jnp.ones((7, 16)), "b": jnp.ones(16)}
    drawing = draw_cell(OwnCell(step, params, (jnp.ones(4), jnp.ones(4))))
    found, _ = equations(drawing.nodes)
    cell = "((s_1'×σ[s_0' x])+(tanh[s_0' x]×σ[s_0' x]))"
    assert found == ["s_0=(silu[s_0' x]×tanh(s_1))", f"s_1={cell}"]
    assert not any(node.names for node in drawing.nodes)


def test_a_custom_cell_with_other_operations():
    def step(params, state, x):
        z = named("z", x @ params["w"] + state["h"] @ params["u"])
        a, b = jnp.split(z, 2)
        rate = jax.nn.sigmoid(params["r"])  # of parameters only
        memory = jnp.outer(a, b) + state["memory"]
        h = (1 - rate) * state["h"] + rate * jax.nn.softmax(memory @ b)
        limited = jnp.where(jnp.isnan(a), 0.0, 3 * jnp.clip(a, -1.0, 2.0))
        return {"h": h, "memory": memory, "step": state["step"] + 1}, limited

    params = {"w": jnp.ones((3, 8)), "u": jnp.ones((4, 8)), "r": jnp.ones(4)}
    state = {"h": jnp.ones(4), "memory": jnp.ones((4, 4)), "step": jnp.int32(0)}
    drawing = draw_cell(OwnCell(step, params, state))
    texts = [node.text for node in drawing.nodes]
    for text in ("linear", "matmul", "softmax", "·+1", "+", "×"):
        assert text in texts
    (new,) = (n for n in drawing.nodes if n.kind == "new state" and n.text == "h")
    (total,) = (edge.source for edge in new.inputs)
    assert [edge.weighted for edge in drawing.nodes[total].inputs] == [True, True]
    check_places(drawing.nodes)
    check_svg(str(drawing))


def test_options_and_regularisers_are_drawn():
    cell = LSTMCell(1, gate_fn="hard_sigmoid", activation_fn="elu", cell_clip=3.0, dtype="bfloat16")
    texts = [node.text for node in draw_cell(cell).nodes]
    assert texts.count("hard sigmoid") == 3 and texts.count("elu") == 2 and "clip" in texts
    noisy = draw_cell(Zoneout(LSTMCell(4), cell_rate=0.2)).nodes
    assert {"×0.2", "×0.8"} <= {node.text for node in noisy}
    heads = draw_cell(SLSTMCell(4, num_heads=2)).nodes
    assert equations(heads) == equations(drawn("slstm").nodes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_functions_are_recognised_by_their_values_in_every_type(dtype):
    def step(params, state, x):
        gate = 1 / (1 + jnp.exp(-x))  # a sigmoid by hand
        state = gate * (x / (1 + jnp.abs(x))) + state
        return state, jnp.maximum(named("y", state), 0)

    cell = OwnCell(step, {}, jnp.ones(3, dtype))
    cell.dtype = dtype
    nodes = draw_cell(cell).nodes
    y, (total,) = nodes[-2], nodes[-1].inputs
    assert [n.text for n in nodes if n.kind == "operation"] == ["σ", "softsign", "×", "+", "relu"]
    assert y.kind == "new state" and nodes[total.source].text == "relu"


def test_objects_that_are_not_cells_are_rejected():
    for other in ("lstm", LSTMCell):
        with pytest.raises(TypeError, match=r"cell must be a cell \(init, zero_state, step\)"):
            draw_cell(other)
    with pytest.raises(TypeError, match="cell must run step by step, got Bidirectional"):
        draw_cell(Bidirectional(LSTMCell(4)))
    with pytest.raises(TypeError, match=r"cell must be a cell, .*, got flax\..*Linear"):
        draw_cell(flax_nnx.Linear(3, 4, rngs=flax_nnx.Rngs(0)))


def test_modules_are_drawn_as_their_cells():
    drawing = str(draw_cell(CELLS["gru"](4)))
    assert str(draw_cell(nnx.GRUCell(3, 4, rngs=flax_nnx.Rngs(0)))) == drawing
    assert str(draw_cell(linen.GRUCell(4))) == drawing


# ---- legibility ----


def boxes(nodes):
    """Left, top, right and bottom of each node and of its label."""
    shapes, layout = placed(nodes)
    found = []
    for n, (shape, (x, y)) in enumerate(zip(shapes, layout.centres, strict=True)):
        if nodes[n].kind not in ("input", "output"):
            left = x - (shape.left if nodes[n].kind == "state" else shape.width)
            right = x + (shape.right if nodes[n].kind == "new state" else shape.width)
            found.append((n, left, y - shape.height, right, y + shape.height))
            if nodes[n].names:
                found.append((n, x + shape.width + 1, y - 20, x + shape.right, y - 2))
    return found, layout


def check_places(nodes):
    found, layout = boxes(nodes)
    for a, b in itertools.combinations(found, 2):
        apart = a[3] <= b[1] or b[3] <= a[1] or a[4] <= b[2] or b[4] <= a[2]
        assert a[0] == b[0] or apart, (a, b)
    segments = []
    for wire in layout.wires:
        source = nodes[wire.target].inputs[wire.number].source
        assert wire.points[-1] != wire.points[0]
        for p, q in itertools.pairwise(wire.points):
            assert p[0] == q[0] or p[1] == q[1]
            low, high = (min(p[0], q[0]), min(p[1], q[1])), (max(p[0], q[0]), max(p[1], q[1]))
            segments.append((source, low, high))
            for n, left, top, right, bottom in found:
                within = (
                    low[0] < right - 0.1 and left + 0.1 < high[0]
                    and low[1] < bottom - 0.1 and top + 0.1 < high[1]
                )  # fmt: skip
                assert not within, (nodes[n], wire)
    for (a, p, q), (b, r, s) in itertools.combinations(segments, 2):
        for axis in (0, 1):  # wires of different sources never overlap
            across = 1 - axis
            if a != b and p[across] == q[across] and r[across] == s[across]:
                close = abs(p[across] - r[across]) < 4
                assert not (close and p[axis] < s[axis] and r[axis] < q[axis]), (p, q, r, s)


@pytest.mark.parametrize("name", CELLS)
def test_nothing_overlaps(name):
    check_places(drawn(name).nodes)


def check_svg(svg):
    root = ET.fromstring(svg)
    assert root.find(f"{SVG}title").text and root.find(f"{SVG}desc").text
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert root.attrib["width"], root.attrib["height"] == (width, height)

    def texts(element, x, y):
        moved = re.match(r"translate\((\S+) (\S+)\)", element.attrib.get("transform", ""))
        x, y = (x + float(moved[1]), y + float(moved[2])) if moved else (x, y)
        if element.tag == f"{SVG}text":
            yield element, x + float(element.attrib["x"]), y + float(element.attrib["y"])
        for child in element:
            yield from texts(child, x, y)

    for element, x, y in texts(root, 0.0, 0.0):
        size = float(element.attrib.get("font-size", 16))
        assert size >= 12
        wide = 0.55 * size * len("".join(element.itertext()))
        anchor = element.attrib.get("text-anchor", "start")
        left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        assert left >= 0 and left + wide <= width, "".join(element.itertext())
        assert size * 0.8 <= y <= height - 4


@pytest.mark.parametrize("name", CELLS)
def test_the_svg_is_well_formed_and_no_text_leaves_it(name):
    check_svg(str(drawn(name)))


def test_a_drawing_is_displayed_and_deterministic():
    drawing = drawn("gru")
    assert str(drawing) == drawing._repr_svg_() == drawing._repr_html_()
    assert draw_cell(CELLS["gru"](hidden_size=4)) == drawing
    assert str(draw_cell(CELLS["gru"](hidden_size=64), input_size=5)) == str(drawing)


# ---- docs/cells.md ----


def test_the_drawings_of_the_docs_are_up_to_date():
    """If this fails, run python docs/draw_cells.py."""
    spec = importlib.util.spec_from_file_location("draw_cells", ROOT / "docs" / "draw_cells.py")
    draw_cells = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_cells)
    shown = re.findall(
        r"\]\(images/cells/(\w+)\.svg\)", (ROOT / "docs" / "cells.md").read_text("utf-8")
    )
    assert sorted(shown) == sorted(draw_cells.CELLS_SHOWN)
    assert {path.stem for path in draw_cells.FOLDER.iterdir()} == set(shown)
    for name in shown:
        drawing = draw_cells.picture(name) if name in draw_cells.OPTIONS else drawn(name)
        assert (draw_cells.FOLDER / f"{name}.svg").read_text("utf-8") == str(drawing), name
