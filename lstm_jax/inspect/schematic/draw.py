"""Draws a schematic of a cell from its equations, as an SVG."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

import jax
import jax.numpy as jnp

from lstm_jax.inspect.models import NO_PARAMS, functional
from lstm_jax.inspect.schematic.dataflow import Node, dataflow
from lstm_jax.inspect.schematic.layout import Layout, Link, Point, Shape, lay_out

# Colour-blind readers can distinguish blue and orange; shapes and lightness differ as well.
PAPER, INK, SOFT, BODY = "#ffffff", "#1b2733", "#5d6b78", "#f4f7f9"
COLOURS = {
    "layer": ("#ffe2ad", "#9a6400"),
    "operation": ("#d3e6f7", "#1f5f96"),
    "function": ("#d5eee3", "#0c6e52"),
    "part": (PAPER, SOFT),
    "join": (INK, INK),
}
"""The fill and edge colours of each kind of node."""

ORDERED = ("−", "÷", "pow", "select", "rem", "atan2", ">", "<", "≥", "≤")
"""Operations for which the order of the operands matters."""

SIZE = 16.0  # the font size, in pixels
SMALL = 12.0
ITALIC = f'font-family="serif" font-style="italic" font-size="{SIZE + 1:.0f}"'
MARGIN = 12.0
ROUND = 6.0  # the radius of corners


@dataclasses.dataclass(frozen=True)
class CellDrawing:
    """A cell's schematic, which notebooks display; ``str`` returns the SVG.

    Attributes:
      svg: the SVG.
      nodes: the drawn nodes, each after its inputs.
    """

    svg: str
    nodes: tuple[Node, ...]

    def __str__(self) -> str:
        return self.svg

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return self.svg


def draw_cell(cell: Any, input_size: int = 3) -> CellDrawing:
    """Draws how a cell's values depend on each other in one step, as an SVG.

    Time runs from left to right: the previous state enters on the left, and the new one leaves on
    the right.  x_t enters from below, and y_t leaves at the top.  Boxes are layers: functions of
    weights times the inputs, plus a bias.  Circles are elementwise operations.  A dashed wire is
    multiplied by a parameter, unit by unit (peepholes).  A thick wire carries a state to the next
    step through elementwise operations only.  Values have the names that
    :func:`lstm_jax.cells.named` gives them.

    Args:
      cell: any cell with ``init``, ``zero_state`` and ``step``, a stack of cells, or a module of
        ``lstm_jax.nnx`` or ``lstm_jax.linen``.
      input_size: D, for cells whose equations depend on it.

    Raises:
      TypeError: ``cell`` is not a cell.

    >>> from lstm_jax import LSTMCell
    >>> drawing = draw_cell(LSTMCell(hidden_size=4))
    >>> [node.text for node in drawing.nodes if node.kind == "layer"]
    ['σ', 'σ', 'σ', 'tanh']
    >>> str(drawing)[:4]
    '<svg'
    """
    cell = functional(cell, NO_PARAMS, name="cell").layer
    if not hasattr(cell, "step"):
        raise TypeError(f"cell must run step by step, got {type(cell).__name__}")
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size))
    space = getattr(cell, "spatial_shape", None) or (5,) * (
        getattr(cell, "num_feature_axes", 1) - 1
    )
    state = jax.eval_shape(lambda: cell.zero_state(space))
    dtype = getattr(cell, "dtype", None) or jnp.result_type(float)
    x = jax.ShapeDtypeStruct((*space, input_size), dtype)
    flow = dataflow(cell.step, params, state, x)
    return CellDrawing(_svg(flow.nodes, type(cell).__name__), flow.nodes)


# ---- from nodes to positions ----


def _spines(nodes: Sequence[Node]) -> list[list[int]]:
    """For each state, its path to the next step through elementwise operations only."""
    news = [n for n, node in enumerate(nodes) if node.kind == "new state"]
    spines = []
    olds = [n for n, node in enumerate(nodes) if node.kind == "state"]
    for old, new in zip(olds, news, strict=True):
        paths: dict[int, list[int]] = {old: [old]}
        for n, node in enumerate(nodes):
            if n != new and node.kind != "operation":
                continue
            found = [
                paths[e.source] for e in node.inputs if e.source in paths and not e.weighted
            ] or [paths[e.source] for e in node.inputs if e.source in paths]
            if found:
                paths[n] = [*min(found, key=len), n]
        spines.append(paths.get(new, []))
    return spines


def _memory(spines: list[list[int]]) -> set[tuple[int, int]]:
    """The edges of spines."""
    return {pair for spine in spines for pair in itertools.pairwise(spine)}


def _links(nodes: Sequence[Node], spines: list[list[int]]) -> list[list[Link]]:
    """The edges into each node; memory has the highest weight for straightness, then the ends."""
    strong = _memory(spines)
    links = []
    for n, node in enumerate(nodes):
        found = []
        for edge in node.inputs:
            kinds = (nodes[edge.source].kind, node.kind)
            ends = kinds[0] in ("state", "input") or kinds[1] in ("new state", "output")
            straight = 40.0 if (edge.source, n) in strong else 3.0 if ends else 1.5
            straight = 1.0 if edge.weighted else straight
            found.append(Link(edge.source, straight))
        links.append(found)
    return links


def _orders(nodes: Sequence[Node], spines: list[list[int]]) -> list[tuple[int, ...]]:
    """Candidate orders of the states: memories at the top, the output state at the bottom."""
    states = [n for n, node in enumerate(nodes) if node.kind == "state"]
    news = [node for node in nodes if node.kind == "new state"]
    outputs = {e.source for node in nodes if node.kind == "output" for e in node.inputs}
    memories = [s for s, spine in zip(states, spines, strict=True) if spine]
    others = [s for s, spine in zip(states, spines, strict=True) if not spine]
    shown = [
        s for s, new in zip(states, news, strict=True)
        if s in others and {e.source for e in new.inputs} <= outputs
    ]  # fmt: skip
    others = [s for s in others if s not in shown]
    return [
        (*a, *b, *shown)
        for a in itertools.islice(itertools.permutations(memories), 6)
        for b in itertools.islice(itertools.permutations(others), 6)
    ]


@functools.lru_cache(maxsize=64)
def placed(nodes: tuple[Node, ...]) -> tuple[list[Shape], Layout]:
    """The size of each node, and the layout."""
    spines = _spines(nodes)
    ordered = [n for n, node in enumerate(nodes) if node.text in ORDERED]
    shapes = [_shape(node) for node in nodes]
    return shapes, lay_out(shapes, _links(nodes, spines), ordered, _orders(nodes, spines))


def _shape(node: Node) -> Shape:
    width = text_width(node.text, SIZE)
    name = _name_width(node)
    if node.kind in ("state", "new state"):
        wide = label_width(node.text, "t−1" if node.kind == "state" else "t") + 3
        if node.kind == "state":
            return Shape("left", 4.0, 11.0, wide, 12.0)
        return Shape("right", 4.0, 11.0, 14.0, wide)
    if node.kind in ("input", "output"):
        return Shape("bottom" if node.kind == "input" else "top", 0.0, 0.0, 0.0, 0.0)
    if node.kind == "join":
        height = 7.0 * max(len(node.inputs), 2) + 1
        return Shape("side", 2.0, height, 2.0, 2.0 + name)
    if node.kind == "layer":
        half = max(width / 2 + 9, 21.0)
        height = 17.0 if not node.note else 21.0
        height = max(height, 7.0 * len(node.inputs) + 4)
        dashed = 15.0 if any(edge.weighted for edge in node.inputs) else 0.0
        return Shape("side", half, height, half + dashed, half + name)
    half = 13.0 if width < 15 else width / 2 + 9
    height = max(13.0, 7.0 * len(node.inputs) if len(node.inputs) > 3 else 0.0)
    return Shape("round", half, height, half, half + name)


def _name_width(node: Node) -> float:
    return sum(label_width(name, "t") + 6 for name in node.names)


# ---- text ----


def text_width(text: str, size: float) -> float:
    """The approximate width of a string in pixels; rather too large, since fonts differ."""
    narrow, wide = "iljft.,:·'[]()|/ ", "mwMW−+=∘×"
    em = sum(0.36 if c in narrow else 0.85 if c in wide else 0.6 for c in text)
    return em * size


def _split(name: str) -> tuple[str, str]:
    base, _, index = name.partition("_")
    return base, index


def label_width(name: str, time: str) -> float:
    """The width of a name with its index and time as subscripts."""
    base, index = _split(name)
    return text_width(base, SIZE) + text_width(",".join(filter(None, (index, time))), SMALL)


def _label(name: str, time: str, x: float, y: float, anchor: str = "start") -> str:
    """A name in mathematical notation: x_t, c_{t-1}."""
    base, index = _split(name)
    below = ",".join(filter(None, (index, time)))
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" {ITALIC}>{escape(base)}'
        f'<tspan dy="4" font-size="{SMALL:.0f}">{escape(below)}</tspan></text>'
    )


def _text(text: str, x: float, y: float, anchor: str = "start", size: float = SIZE) -> str:
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" font-size="{_n(size)}">'
        f"{escape(text)}</text>"
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


# ---- SVG ----


def _svg(nodes: tuple[Node, ...], title: str) -> str:
    shapes, layout = placed(nodes)
    left, top, right, bottom = layout.inside
    legend = list(_legend(nodes))
    x0 = min(c[0] - s.left for c, s in zip(layout.centres, shapes, strict=True)) - MARGIN
    x1 = max(c[0] + s.right for c, s in zip(layout.centres, shapes, strict=True)) + MARGIN
    keys, legend_height, width = _place_legend(legend, x1 - x0 - 2 * MARGIN)
    x1 = max(x1, x0 + width + 2 * MARGIN)
    y0, y1 = top - 44.0 - MARGIN, bottom + 44.0 + legend_height + MARGIN

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 {_n(x1 - x0)} {_n(y1 - y0)}" width="{_n(x1 - x0)}" height="{_n(y1 - y0)}" '
        f'style="max-width:100%;height:auto" font-family="sans-serif" font-size="{SIZE:.0f}">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(_description(nodes))}</desc>",
        f'<rect width="{_n(x1 - x0)}" height="{_n(y1 - y0)}" rx="10" fill="{PAPER}"/>',
        f'<g transform="translate({_n(-x0)} {_n(-y0)})" fill="{INK}">',
        f'<rect x="{_n(left)}" y="{_n(top)}" width="{_n(right - left)}" '
        f'height="{_n(bottom - top)}" rx="14" fill="{BODY}" stroke="#c3ced6"/>',
    ]
    out += _wires(nodes, layout)
    for node, shape, centre in zip(nodes, shapes, layout.centres, strict=True):
        out += _node(node, shape, centre)
    out.append("</g>")
    out.append(f'<g transform="translate({_n(MARGIN)} {_n(y1 - y0 - legend_height - 6)})">')
    out += keys
    out += ["</g>", "</svg>"]
    return "\n".join(out) + "\n"


def _wires(nodes: Sequence[Node], layout: Layout) -> Iterator[str]:
    heads, marks = [], []
    memory = _memory(_spines(nodes))
    for wire in layout.wires:
        node, points = nodes[wire.target], list(wire.points)
        source, dashed = node.inputs[wire.number]
        thick = (source, wire.target) in memory
        if node.kind == "output":
            points.append((points[-1][0], points[-1][1] - 16))
        if nodes[source].kind == "input" and points[0] == layout.centres[source]:
            points[0] = (points[0][0], points[0][1] + 18)
        if node.kind == "new state":
            points[-1] = (points[-1][0] - 2, points[-1][1])
        if node.kind != "join":
            points[-1], head = _head(points)
            heads.append(head)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        line, width = _path(points, layout.dots), 2.4 if thick else 1.6
        yield f'<path d="{line}" fill="none" stroke="{INK}" stroke-width="{width}"{dash}/>'
        (x, y), (before, _) = points[-1], points[-2]
        if dashed and before < x:
            marks.append(
                f'<text x="{_n(x + 1)}" y="{_n(y - 5)}" text-anchor="end" fill="{SOFT}" '
                f'font-size="{SMALL:.0f}"><tspan font-family="serif" font-style="italic">p</tspan>'
                "∘</text>"
            )
    yield from heads
    yield from marks
    for x, y in layout.dots:
        yield f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3"/>'


def _head(points: list[Point]) -> tuple[Point, str]:
    """The end of a line that leaves room for the arrow head, and the head."""
    (x, y), (a, b) = points[-1], points[-2]
    size = math.dist((x, y), (a, b))
    dx, dy = (x - a) / size, (y - b) / size
    corners = [(0, 0), (-8, -4), (-8, 4)]
    turned = " ".join(f"{_n(x + u * dx - v * dy)},{_n(y + u * dy + v * dx)}" for u, v in corners)
    return (x - 6 * dx, y - 6 * dy), f'<polygon points="{turned}"/>'


def _path(points: Sequence[Point], sharp: Sequence[Point]) -> str:
    """A line with round corners, except where another line branches off."""
    steps = [f"M{_n(points[0][0])} {_n(points[0][1])}"]
    for i in range(1, len(points) - 1):
        at = points[i]
        if at in sharp:
            steps.append(f"L{_n(at[0])} {_n(at[1])}")
            continue
        near = []
        for other in (points[i - 1], points[i + 1]):
            size = math.dist(at, other)
            part = min(ROUND, size / 2) / size
            near.append((at[0] + (other[0] - at[0]) * part, at[1] + (other[1] - at[1]) * part))
        (a, b), (c, d) = near
        steps.append(f"L{_n(a)} {_n(b)}Q{_n(at[0])} {_n(at[1])} {_n(c)} {_n(d)}")
    steps.append(f"L{_n(points[-1][0])} {_n(points[-1][1])}")
    return "".join(steps)


def _node(node: Node, shape: Shape, centre: Point) -> Iterator[str]:
    x, y = centre
    if node.kind == "state":
        yield _label(node.text, "t−1", x - 1, y + 5, "end")
    elif node.kind == "new state":
        yield _label(node.text, "t", x + 1, y + 5)
    elif node.kind == "input":
        yield _label(node.text, "t", x, y + 34, "middle")
    elif node.kind == "output":
        yield _label(node.text, "t", x, y - 24, "middle")
    else:
        fill, edge = COLOURS[node.kind]
        corner = {"layer": 4.0, "function": 4.0, "join": 1.5}.get(node.kind, shape.height)
        yield (
            f'<rect x="{_n(x - shape.width)}" y="{_n(y - shape.height)}" '
            f'width="{_n(2 * shape.width)}" height="{_n(2 * shape.height)}" rx="{_n(corner)}" '
            f'fill="{fill}" stroke="{edge}" stroke-width="1.6"/>'
        )
        if node.text:
            yield _text(node.text, x, y + (0.5 if node.note else 5.5), "middle")
        if node.note:
            yield _text(node.note, x, y + 15, "middle", SMALL)
        at = x + shape.width + 4
        for name in node.names:
            yield _label(name, "t", at, y - 7)
            at += label_width(name, "t") + 6


def _legend(nodes: Sequence[Node]) -> Iterator[tuple[str, str]]:
    """A sign and a text for each kind of node and wire."""
    kinds = {node.kind for node in nodes}
    if "layer" in kinds:
        yield _sign("layer", 3), "layer: f(W · inputs + b)"
    if "operation" in kinds:
        yield _sign("operation", 7), "element by element"
    if "function" in kinds:
        yield _sign("function", 3), "all units together"
    if "part" in kinds:
        yield _sign("part", 7), "some features"
    if "join" in kinds:
        yield f'<rect x="8" y="-13" width="4" height="16" rx="1" fill="{INK}"/>', "side by side"
    if any(edge.weighted for node in nodes for edge in node.inputs):
        line = f'<path d="M0 -5H20" stroke="{INK}" stroke-width="1.6" stroke-dasharray="5 4"/>'
        yield line, "times a weight per unit"
    signs = sorted(
        {node.text for node in nodes if node.text in ORDERED[:2] and len(node.inputs) > 1}
    )
    if signs:
        text = f'<text x="10" y="0" text-anchor="middle" fill="{INK}">{" ".join(signs)}</text>'
        yield text, "first operand from the left"


def _sign(kind: str, corner: int) -> str:
    fill, edge = COLOURS[kind]
    return (
        f'<rect x="0" y="-12" width="20" height="14" rx="{corner}" fill="{fill}" stroke="{edge}"/>'
    )


def _place_legend(
    legend: Sequence[tuple[str, str]], width: float
) -> tuple[list[str], float, float]:
    """The legend in as many lines as necessary, its height and its width."""
    x, y, widest, out = 0.0, 14.0, 0.0, []
    for sign, text in legend:
        long = text_width(text, SMALL)
        size = 27 + 0.9 * long
        if x and x + 27 + 1.1 * long > width:
            x, y = 0.0, y + 21.0
        out.append(
            f'<g transform="translate({_n(x)} {_n(y)})">{sign}<text x="27" y="-1" fill="{SOFT}" '
            f'font-size="{SMALL:.0f}">{escape(text)}</text></g>'
        )
        widest = max(widest, x + 27 + 1.1 * long)
        x += size + 14
    return out, y + 4, widest


def _description(nodes: Sequence[Node]) -> str:
    """The drawing as text, with an equation for each node."""

    def called(n: int) -> str:
        node = nodes[n]
        if node.kind == "state":
            return f"{node.text}[t-1]"
        if node.kind in ("input", "new state", "output"):
            return f"{node.text}[t]"
        return f"{node.names[0]}[t]" if node.names else f"v{n}"

    lines = []
    for n, node in enumerate(nodes):
        if node.kind in ("state", "input"):
            continue
        inputs = [("p ∘ " if e.weighted else "") + called(e.source) for e in node.inputs]
        if node.kind in ("new state", "output"):
            lines.append(f"{called(n)} = {inputs[0]}")
        elif node.kind == "join":
            lines.append(f"{called(n)} = [{', '.join(inputs)}]")
        elif node.kind == "layer":
            lines.append(f"{called(n)} = {node.text} layer of {' and '.join(inputs)}")
        elif node.kind == "operation" and node.text in ("+", "×", "−", "÷"):
            lines.append(f"{called(n)} = {f' {node.text} '.join(inputs)}")
        else:
            lines.append(f"{called(n)} = {node.text}({', '.join(inputs)})")
    return "; ".join(lines)
