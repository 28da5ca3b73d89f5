"""Reduces a cell's step to the few nodes of a textbook diagram."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.activations import ACTIVATIONS
from lstm_jax.sequence.fused.graph import Equation, StepGraph, Var

ARGUMENT = "□"  # the placeholder for a function's argument

# fmt: off
TRANSPARENT = frozenset((
    "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims",
    "optimization_barrier", "pcast", "pvary", "reduce_precision", "reshape", "squeeze",
    "stop_gradient", "transpose",
))
"""Primitives that change the layout or type of a value but not its meaning."""

CURVES = {
    "abs": "|□|", "acos": "acos(□)", "acosh": "acosh(□)", "asin": "asin(□)", "asinh": "asinh(□)",
    "atan": "atan(□)", "atanh": "atanh(□)", "cbrt": "cbrt(□)", "ceil": "ceil(□)", "cos": "cos(□)",
    "cosh": "cosh(□)", "erf": "erf(□)", "exp": "exp(□)", "exp2": "exp2(□)", "expm1": "exp(□)−1",
    "floor": "floor(□)", "log": "log(□)", "log1p": "log(1+□)", "logistic": "σ(□)", "neg": "−□",
    "not": "not(□)", "round": "round(□)", "rsqrt": "1/√□", "sign": "sign(□)", "sin": "sin(□)",
    "sinh": "sinh(□)", "sqrt": "√□", "square": "□²", "tan": "tan(□)", "tanh": "tanh(□)",
}
"""Elementwise functions of one value."""

OPERATORS = {
    "add": "+", "add_any": "+", "and": "and", "atan2": "atan2", "clamp": "clip", "div": "÷",
    "eq": "=", "ge": "≥", "gt": ">", "le": "≤", "lt": "<", "max": "max", "min": "min", "mul": "×",
    "ne": "≠", "nextafter": "nextafter", "or": "or", "pow": "pow", "rem": "rem",
    "select_n": "select", "sub": "−", "xor": "xor",
}
"""Elementwise functions of several values."""
# fmt: on

PRODUCTS = {"dot_general": "", "conv_general_dilated": "conv"}
"""Linear maps, and the note next to a layer that contains them."""

REDUCTIONS = {"reduce_sum": "Σ", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "Π"}
OTHERS = {**REDUCTIONS, "dot_general": "matmul", "conv_general_dilated": "conv"}
"""Functions that combine several elements of a value."""

NORMALISING = frozenset(
    (*REDUCTIONS, "abs", "add", "div", "exp", "integer_pow", "max", "mul", "rsqrt", "sqrt")
) | {"square", "sub"}
"""Primitives that normalisations consist of."""

SHORT = {"sigmoid": "σ", "log_sigmoid": "log σ"}
FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "log_sigmoid": jax.nn.log_sigmoid,
    **ACTIVATIONS,
}
"""Functions that are recognised by their values, regardless of how they are computed."""

POINTS = np.linspace(-7.0, 7.0, 57, dtype=np.float32)
"""The points at which functions are compared."""

WITH_WEIGHTS = ("matrix", "weighted")
"""Kinds of products of weights and another value: by a matrix, or by one number per unit."""

LONGEST = 12
"""The maximum number of characters in the text of a node."""


class Edge(NamedTuple):
    """An arrow into a node.

    Attributes:
      source: the index of the source node.
      weighted: whether the value is multiplied by a parameter, unit by unit.
    """

    source: int
    weighted: bool = False


class Node(NamedTuple):
    """A node of the drawing.

    Attributes:
      kind: ``"state"`` (of the previous step), ``"input"``, ``"layer"`` (a function of weights
        times its inputs, plus a bias), ``"operation"`` (elementwise), ``"function"`` (any other),
        ``"part"`` (some features), ``"join"`` (concatenated inputs), ``"new state"`` or
        ``"output"``.
      text: the function, such as ``"σ"`` or ``"×"``; for states and inputs, the name.
      names: the names of the value in the equations.
      inputs: the edges into the node, in the order of the operands.
      note: a note on a layer, ``"conv"``.
      value: the value's variable in the cell's :class:`StepGraph`, and the part of its last axis.
    """

    kind: str
    text: str
    names: tuple[str, ...] = ()
    inputs: tuple[Edge, ...] = ()
    note: str = ""
    value: tuple[Var, tuple[int, int] | None] | None = None


class Dataflow(NamedTuple):
    """A step as a graph to draw.

    Attributes:
      nodes: the nodes, each after its inputs.
      graph: the step's equations.
    """

    nodes: tuple[Node, ...]
    graph: StepGraph


def dataflow(step: Callable[..., Any], params: Any, state: Any, x: Any) -> Dataflow:
    """The graph of ``step(params, state, x)``; arguments are arrays or their shapes.

    The graph omits casts, reshapes and the splitting of concatenated gates.  A sum of products
    with weights is one layer, together with the function applied to it.

    >>> import jax, jax.numpy as jnp
    >>> def step(params, state, x):
    ...     state = jnp.tanh(state @ params["u"] + x @ params["w"])
    ...     return state, state
    >>> params = {"u": jnp.ones((3, 3)), "w": jnp.ones((2, 3))}
    >>> [node.text for node in dataflow(step, params, jnp.ones(3), jnp.ones(2)).nodes]
    ['s', 'x', 'tanh', 's', 'y']
    """
    graph = StepGraph(step, params, state, x)
    reader = _Reader(graph, (params, state, x))
    return Dataflow(_Drawing(reader).nodes(), graph)


# ---- reading the equations ----


@dataclasses.dataclass
class _Value:
    """An intermediate value between the equations and the nodes.

    ``terms`` are its arguments, each with a sign: the exponent of a factor in a product, or the
    sign of a summand in a sum.
    """

    kind: str
    terms: list[tuple[int, int]]
    text: str = ""
    names: tuple[str, ...] = ()
    where: tuple[Var, tuple[int, int] | None] | None = None


Span = tuple[int, int] | None  # a part of the last axis; None for all of it


class _Reader:
    """Reads the values of a graph, and each part of a split value separately."""

    def __init__(self, graph: StepGraph, examples: tuple[Any, Any, Any]):
        params, state, x = graph.inputs
        self.graph = graph
        self.values: list[_Value] = []
        self._known: dict[tuple[Var, Span], int] = {}
        self._computed: dict[Any, int] = {}
        self._types = _types(graph, examples)
        self._shapes = {name: tuple(np.shape(t)) for name, t in self._types.items()}
        self._sources = {name: label for label, name in labels(state, "s")}
        self._sources |= {name: label for label, name in labels(x, "x")}
        self._x = set(jax.tree.leaves(x))
        self.data = graph.depending_on(self._sources)
        self._weights = graph.depending_on(jax.tree.leaves(params)) - self.data
        self._called: dict[Var, tuple[str, ...]] = {}
        for label, name in graph.labels.items():
            self._called[name] = (*self._called.get(name, ()), label)
        self._made_by = self._fused()
        self._splits: dict[Var, bool] = {}

        for name in self._sources:
            self.read(name)
        new_state, y = graph.outputs
        self.new_state = [(label, self.read(name)) for label, name in labels(new_state, "s")]
        self.y = [(label, self.read(name)) for label, name in labels(y, "y")]
        for name in self._called:
            if name in self.data:
                self.read(name)

    def read(self, name: Var, span: Span = None) -> int:
        """The value's index in ``values``."""
        shape = self._shapes[name]
        if shape and span == (0, shape[-1]):
            span = None
        key = (name, span)
        if key not in self._known:
            found = self._read(name, span)
            self._known[key] = found
            if span is None:
                value = self.values[found]
                value.names += tuple(n for n in self._called.get(name, ()) if n not in value.names)
        return self._known[key]

    def _new(self, kind: str, terms: Iterable[Any], where: Any, text: str = "") -> int:
        signed = [term if isinstance(term, tuple) else (1, term) for term in terms]
        new = len(self.values)
        if kind in ("curve", "product", "sum", "operation", "function") and text != "bias":
            same = self._computed.setdefault((kind, text, *signed), new)  # computed twice
            if same != new:
                return same
        self.values.append(_Value(kind, signed, text, where=where))
        return new

    def _read(self, name: Var, span: Span) -> int:
        where = (name, span)
        if name not in self.data:
            number = self.constant(name)
            fixed = number is not None and not np.ndim(number)
            return self._new("constant", [], where, f"{number:.3g}" if fixed else "p")
        if span is not None and not self._splits_up(name):
            return self._new("part", [self.read(name)], where, self._part_text(name, span))
        if name in self._sources:
            kind = "input" if name in self._x else "state"
            return self._new(kind, [], where, self._sources[name])
        equation = self._made_by[name]
        inside = self._layout(equation, name, span)
        if inside is not None:
            return inside
        data = [n for n in equation.inputs if n in self.data]
        primitive, _, label = equation.primitive.partition(" ")
        if primitive in PRODUCTS and len(data) == 1:
            return self._new("matrix", [self.read(data[0])], where, PRODUCTS[primitive])
        if primitive in OPERATORS:
            return self._operator(equation, span, where)
        if primitive in CURVES or primitive in ("integer_pow", "function"):
            if primitive == "integer_pow":
                label = f"□^{equation.params['y']}".replace("^2", "²").replace("^3", "³")
            argument = self._argument(equation, data[0], span)
            return self._new("curve", [argument], where, label or CURVES[primitive])
        arguments = map(self.read, dict.fromkeys(data))
        if primitive == "norm":
            return self._new("norm", arguments, where, label)
        text = OTHERS.get(primitive) or equation.params.get("name", primitive.replace("_", " "))
        return self._new("function", arguments, where, text)

    def _argument(self, equation: Equation, argument: Var, span: Span) -> int:
        """The required part of the argument of an elementwise function."""
        width = self._shapes[argument][-1:]
        return self.read(
            argument, span if width == self._shapes[equation.outputs[0]][-1:] else None
        )

    def _operator(self, equation: Equation, span: Span, where: Any) -> int:
        sign = -1 if equation.primitive in ("sub", "div") else 1
        signs = [1, *(sign for _ in equation.inputs[1:])]
        known = [None if n in self.data else self.constant(n) for n in equation.inputs]
        parameters = any(
            n in self._weights or (value is not None and np.ndim(value))
            for n, value in zip(equation.inputs, known, strict=True)
        )
        terms = [
            (s, self._argument(equation, n, span))
            for s, n in zip(signs, equation.inputs, strict=True)
            if n in self.data
        ]
        kind = {"add": "sum", "add_any": "sum", "sub": "sum", "mul": "product", "div": "product"}
        kind = kind.get(equation.primitive, "operation")
        if len(terms) == len(equation.inputs):
            return self._new(kind, terms, where, OPERATORS[equation.primitive])
        (_, argument), *_ = terms
        if parameters and len(terms) == 1 and kind == "sum":
            return self._new("sum", terms, where, "bias")
        if parameters and len(terms) == 1 and kind == "product":
            return self._new("weighted", terms, where)
        numbers = [c for c in known if c is not None and not np.ndim(c)]
        if len(terms) == 1 and len(numbers) == len(equation.inputs) - 1:
            return self._with_numbers(equation, numbers, argument, where)
        return self._new("operation", terms, where, OPERATORS[equation.primitive])

    def _with_numbers(
        self, equation: Equation, numbers: list[Any], argument: int, where: Any
    ) -> int:
        """A function of one value and of numbers."""
        if equation.primitive == "clamp":
            return self._new("curve", [argument], where, "clip(□)")
        if equation.primitive == "select_n":
            return self._new("operation", [argument], where, "select")
        number = float(numbers[0])
        size, minus = f"{abs(number):.3g}", "−" if number < 0 else ""
        first = equation.inputs[0] not in self.data  # the number is the first operand
        same = {"add": 0.0, "add_any": 0.0, "mul": 1.0}
        if not first:
            same |= {"sub": 0.0, "div": 1.0, "pow": 1.0}
        if equation.primitive in same and number == same[equation.primitive]:
            return argument
        if equation.primitive in ("add", "add_any"):
            text = f"□{minus or '+'}{size}"
        elif equation.primitive == "sub" and not first:
            text = f"□{'+' if minus else '−'}{size}"
        elif equation.primitive == "mul" and 0 < abs(number) < 1 and (1 / number).is_integer():
            text = f"{minus}□/{abs(1 / number):.0f}"
        elif equation.primitive == "mul":
            text = f"{minus}{size}□"
        elif equation.primitive == "div":
            text = f"{minus}{size}/□" if first else f"{minus}□/{size}"
        elif equation.primitive in ("max", "min", "atan2", "nextafter", "rem"):
            both = (
                f"{minus}{size}, □"
                if first or equation.primitive in ("max", "min")
                else f"□, {size}"
            )
            text = f"{OPERATORS[equation.primitive]}({both})"
        else:
            sign = "^" if equation.primitive == "pow" else OPERATORS[equation.primitive]
            text = f"{minus}{size}{sign}□" if first else f"□{sign}{minus}{size}"
        return self._new("curve", [argument], where, text)

    # ---- parts of values ----

    def _layout(self, equation: Equation, name: Var, span: Span) -> int | None:
        """The value behind an equation that only changes the layout; None for other equations."""
        shape, primitive = self._shapes[name], equation.primitive
        if primitive == "split":
            n, axis = equation.outputs.index(name), equation.params["axis"]
            start = sum(equation.params["sizes"][:n])
            if axis == len(shape) - 1:
                return self.read(equation.inputs[0], _shifted(span, start, shape[-1]))
            whole = self.read(equation.inputs[0])
            return self._new("part", [whole], (name, None), f"part {n + 1}")
        if primitive == "slice":
            (whole,) = equation.inputs
            starts = equation.params["start_indices"]
            if self._shapes[whole][:-1] == shape[:-1] and equation.params["strides"] is None:
                return self.read(whole, _shifted(span, starts[-1], shape[-1]))
            return self._new("part", [self.read(whole)], (name, span), "part")
        if primitive == "concatenate":
            if equation.params["dimension"] == len(shape) - 1:
                return self._joined(equation, name, span)
            return self._new("join", map(self.read, equation.inputs), (name, span))
        if primitive in TRANSPARENT:
            n = equation.outputs.index(name)
            inside = self._shapes[equation.inputs[n]]
            if span is None or self._keeps_last_axis(equation, inside, shape):
                return self.read(equation.inputs[n], span)
            # Even if the layout of a product changes, its parts have separate weights.
            whole = self.values[self.read(equation.inputs[n])]
            return self._new("matrix", whole.terms, (name, span), whole.text)
        return None

    def _joined(self, equation: Equation, name: Var, span: Span) -> int:
        """Concatenated values, or the one that contains the part."""
        start, stop = span or (0, self._shapes[name][-1])
        pieces, at = [], 0
        for piece in equation.inputs:
            size = self._shapes[piece][-1]
            low, high = max(start - at, 0), min(stop - at, size)
            if low < high:
                pieces.append((piece, (low, high)))
            at += size
        found = [self.read(*piece) for piece in pieces]
        return found[0] if len(found) == 1 else self._new("join", found, (name, span))

    def _splits_up(self, name: Var) -> bool:
        """Whether a part of a value can be computed from parts of its inputs."""
        if name not in self._splits:
            self._splits[name] = self._can_split(name)
        return self._splits[name]

    def _can_split(self, name: Var) -> bool:
        if name in self._called or name in self._sources:
            return False
        equation, shape = self._made_by[name], self._shapes[name]
        data = [n for n in equation.inputs if n in self.data]
        wide = [n for n in data if self._shapes[n][-1:] == shape[-1:]]
        if equation.primitive in TRANSPARENT:
            inside = equation.inputs[equation.outputs.index(name)]
            if self._keeps_last_axis(equation, self._shapes[inside], shape):
                return self._splits_up(inside)
            return self.values[self.read(inside)].kind == "matrix"
        if equation.primitive in PRODUCTS:
            return len(data) == 1
        if equation.primitive in ("split", "slice"):
            return self._splits_up(data[0])
        if equation.primitive == "concatenate":
            return equation.params["dimension"] == len(shape) - 1
        elementwise = (*CURVES, *OPERATORS, "integer_pow", "function")
        return equation.primitive.split()[0] in elementwise and all(map(self._splits_up, wide))

    def _keeps_last_axis(self, equation: Equation, inside: Any, shape: Any) -> bool:
        if equation.primitive == "transpose":
            return equation.params["permutation"][-1] == len(shape) - 1
        if equation.primitive == "broadcast_in_dim":
            axes = equation.params["broadcast_dimensions"]
            return axes[-1:] == (len(shape) - 1,) and inside[-1:] == shape[-1:]
        return inside[-1:] == shape[-1:]

    def _part_text(self, name: Var, span: tuple[int, int]) -> str:
        """A part of the last axis as a Python slice, counted from the nearer end."""
        size = self._shapes[name][-1]
        start, stop = (n if 2 * n <= size else n - size for n in span)
        return f"[{start or ''}:{stop or ''}]"

    # ---- constants ----

    def _is_weight(self, name: Var) -> bool:
        return name in self._weights

    def constant(self, name: Var) -> Any:
        """A constant's value, as a number if all its elements are equal; None if not constant."""
        if name in self.data or self._is_weight(name):
            return None
        value = np.asarray(self.graph.evaluate(name, {}))
        same = value.size and (value == value.flat[0]).all()
        return value.flat[0] if same else value

    # ---- recognised functions, normalisation ----

    def _fused(self) -> dict[Var, Equation]:
        """The equation of each value; equations that form a recognised function are merged."""
        equations = [e for e in self.graph.equations if not self.data.isdisjoint(e.outputs)]
        required = set(jax.tree.leaves(self.graph.outputs)) | set(self._called)
        for find in (self._known_function, self._normalisation):
            for name in [*self._sources, *(out for e in equations for out in e.outputs)]:
                while found := next(self._found(find, name, equations, required), None):
                    region, label = found
                    *inner, last = region
                    fused = Equation(label, last.function, (name,), last.outputs)
                    equations = [
                        fused if e is last else e
                        for e in equations
                        if not any(e is merged for merged in inner)
                    ]
        return {out: equation for equation in equations for out in equation.outputs}

    def _found(
        self,
        find: Callable[..., str | None],
        name: Var,
        equations: list[Equation],
        required: set[Var],
    ) -> Iterator[tuple[list[Equation], str]]:
        """Equations that form one function of a value, and the function's label."""
        for region in _regions(equations, name, self.data, required):
            label = find(region, name)
            if label is not None:
                yield region, label

    def _known_function(self, region: list[Equation], name: Var) -> str | None:
        """The label of the elementwise function that equations form; None if unknown."""
        primitives = [e.primitive for e in region if e.primitive not in TRANSPARENT]
        allowed = {*CURVES, *OPERATORS, "integer_pow", "custom_jvp_call"}
        plain = len(primitives) == 1 and primitives[0] in (*CURVES, "integer_pow")
        if not primitives or plain or not allowed.issuperset(primitives):
            return None
        if any(self._is_weight(n) for e in region for n in e.inputs):
            return None
        last, shape, dtype = region[-1].outputs[0], self._shapes[name], self._types[name].dtype
        if shape != self._shapes[last] or not jnp.issubdtype(dtype, jnp.floating):
            return None
        size = math.prod(shape)
        points = np.resize(POINTS, -(-len(POINTS) // size) * size).astype(dtype)
        computed = np.concatenate([
            np.ravel(self.graph.evaluate(last, {name: jnp.reshape(chunk, shape)}))
            for chunk in points.reshape(-1, size)
        ])[: len(POINTS)]  # fmt: skip
        near = max(1e-5, 4 * float(jnp.finfo(dtype).eps))
        for label, values in _values_of_functions(dtype).items():
            if np.allclose(computed.astype(float), values, near, near):
                return f"function {SHORT.get(label, label.replace('_', ' '))}({ARGUMENT})"
        if set(primitives) == {"max", "min"}:
            return f"function clip({ARGUMENT})"
        return None

    def _normalisation(self, region: list[Equation], name: Var) -> str | None:
        """The label of the normalisation (by a mean, norm or sum) that equations form, or None."""
        primitives = {e.primitive for e in region} - TRANSPARENT
        if not primitives & set(REDUCTIONS) or not primitives <= NORMALISING:
            return None
        if self._shapes[name] != self._shapes[region[-1].outputs[0]]:
            return None
        if "exp" in primitives and "div" in primitives:
            weighted = any(self._is_weight(n) for e in region for n in e.inputs)
            return None if weighted else "norm softmax"
        if primitives & {"rsqrt", "sqrt"}:
            return "norm LN" if "sub" in primitives else "norm RMS"
        return None


@functools.cache
def _values_of_functions(dtype: Any) -> dict[str, np.ndarray]:
    """The values of all known functions at ``POINTS``, computed in ``dtype``."""
    return {
        label: np.asarray(function(jnp.asarray(POINTS, dtype)), float)
        for label, function in FUNCTIONS.items()
        if label != "identity"
    }


def labels(tree: Any, otherwise: str) -> list[tuple[str, Var]]:
    """The leaves of a tree, named by their paths."""
    found = []
    for path, name in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path]
        if not keys or all(key.isdigit() for key in keys):
            keys = [otherwise, *keys]
        found.append((keys[0] + "".join(f"_{key}" for key in keys[1:]), name))
    return found


def _types(graph: StepGraph, examples: Any) -> dict[Var, Any]:
    """The shape and type of every value."""
    values = {n for e in graph.equations for n in (*e.inputs, *e.outputs)}
    values |= {*jax.tree.leaves(graph.inputs), *jax.tree.leaves(graph.outputs)}
    everything = {name: name for name in sorted(values)}
    known = dict(zip(jax.tree.leaves(graph.inputs), jax.tree.leaves(examples), strict=True))
    return jax.eval_shape(lambda known: graph.evaluate(everything, known), known)


def _shifted(span: Span, start: int, size: int) -> tuple[int, int]:
    low, high = span or (0, size)
    return int(start + low), int(start + high)


def _regions(
    equations: list[Equation], name: Var, data: set[Var], required: set[Var]
) -> Iterator[list[Equation]]:
    """Lists of equations that compute a value from only one other value, the longest first.

    No other equation reads their intermediate values, and they contain no product with weights.
    """
    inside: list[Equation] = []
    reached = {name}
    for e in equations:
        arguments = [n for n in e.inputs if n in data]
        if arguments and set(arguments) <= reached and e.primitive not in PRODUCTS:
            inside.append(e)
            if required.isdisjoint(e.outputs):
                reached.update(e.outputs)
    uses: dict[Var, list[Equation]] = {}
    for e in equations:
        for n in e.inputs:
            uses.setdefault(n, []).append(e)
    for last in reversed(inside):
        wanted, region = set(last.inputs), [last]
        for e in reversed(inside[: inside.index(last)]):
            if not wanted.isdisjoint(e.outputs):
                region.append(e)
                wanted.update(e.inputs)
        region.reverse()
        among = {e.outputs for e in region}
        closed = all(
            user.outputs in among
            for e in region[:-1]
            for n in e.outputs
            for user in uses.get(n, ())
        )
        if closed and name in wanted:
            yield region


# ---- from values to nodes ----


class _Drawing:
    """Groups a reader's values into nodes."""

    def __init__(self, reader: _Reader):
        self.values = reader.values
        self.outputs = [("new state", *pair) for pair in reader.new_state]
        self.outputs += [("output", *pair) for pair in reader.y]
        self._hide_parts()
        self._flatten()
        self._uses = self._count_uses()
        self._nodes: list[Node] = []
        self._drawn: dict[int, int] = {}

    def nodes(self) -> tuple[Node, ...]:
        """All nodes, each after its inputs."""
        for n in self._reached():
            if self.values[n].kind in ("state", "input"):
                self._draw(n)
        for _, _, n in self.outputs:
            self._draw(n)
        for n in self._reached():
            if self.values[n].names:
                self._draw(n)
        for kind, label, n in self.outputs:
            edge = Edge(self._draw(n))
            self._nodes.append(Node(kind, label, (), (edge,), "", self.values[n].where))
        return _in_order(_with_joins(self._nodes))

    # ---- required values ----

    def _reached(self) -> list[int]:
        """The values that outputs or named values depend on, in order."""
        reached = {value for _, _, value in self.outputs}
        reached |= {n for n, value in enumerate(self.values) if value.names}
        reached |= {n for n, value in enumerate(self.values) if value.kind in ("state", "input")}
        todo = list(reached)
        while todo:
            for argument in self._terms(todo.pop()):
                if argument not in reached:
                    reached.add(argument)
                    todo.append(argument)
        return sorted(reached)

    def _count_uses(self) -> dict[int, int]:
        """The number of times that required values and outputs read each value."""
        uses: dict[int, int] = {}
        for argument in (t for n in self._reached() for t in self._terms(n)):
            uses[argument] = uses.get(argument, 0) + 1
        for _, _, n in self.outputs:
            uses[n] = uses.get(n, 0) + 1
        return uses

    def _terms(self, n: int) -> list[int]:
        return [argument for _, argument in self.values[n].terms]

    def _kinds(self, terms: Iterable[int]) -> list[str]:
        return [self.values[n].kind for n in terms]

    def _hide_parts(self) -> None:
        """Replaces parts of concatenated values by the whole value, and removes biases."""

        def whole(n: int) -> int:
            value = self.values[n]
            if value.names or len(value.terms) != 1 or value.terms[0][0] < 0:
                return n
            (inner,) = self._terms(n)
            kind = self.values[inner].kind
            part = value.kind == "part" and kind not in ("state", "input")
            bias = value.kind == "sum" and kind not in ("matrix", "weighted", "sum")
            return whole(inner) if part or bias else n

        for value in self.values:
            value.terms = [(sign, whole(n)) for sign, n in value.terms]
        self.outputs = [(kind, label, whole(n)) for kind, label, n in self.outputs]

    def _flatten(self) -> None:
        """Merges sums of sums into one sum, and products of products into one product."""
        changed = True
        while changed:
            uses = self._count_uses()
            changed = any([self._merge(self.values[n], uses) for n in self._reached()])

    def _merge(self, value: _Value, uses: dict[int, int]) -> bool:
        """Merges one sum within a sum, or product within a product; returns whether it did."""
        if value.kind not in ("sum", "product"):
            return False
        for index, (sign, argument) in enumerate(value.terms):
            inner = self.values[argument]
            if inner.kind != value.kind or inner.names or uses.get(argument, 0) != 1:
                continue
            if value.kind == "product" and -1 in (s for s, _ in value.terms + inner.terms):
                continue  # a quotient has exactly two operands
            terms = [(sign * s, t) for s, t in inner.terms]
            merged = value.terms[:index] + terms + value.terms[index + 1 :]
            plain = [k for k in self._kinds(t for _, t in merged) if k not in WITH_WEIGHTS]
            if len(plain) <= 3:
                value.terms = merged
                return True
        return False

    # ---- nodes ----

    def _alone(self, n: int) -> bool:
        """Whether a value can be drawn as part of the only value that reads it."""
        return self._uses.get(n, 0) == 1 and not self.values[n].names

    def _absorbed(self, n: int) -> list[int]:
        """The terms of a sum that are only weights times a value."""
        terms = self._terms(n)
        return [t for t in terms if self.values[t].kind in WITH_WEIGHTS and self._alone(t)]

    def _is_layer(self, n: int) -> bool:
        """Whether a value is only a sum of weights times other values."""
        if self.values[n].kind != "sum":
            return self.values[n].kind == "matrix"
        absorbed = self._absorbed(n)
        return absorbed == self._terms(n) and "matrix" in self._kinds(absorbed)

    def _draw(self, n: int) -> int:
        """The node of a value."""
        if n not in self._drawn:
            self._drawn[n] = self._draw_new(n)
        return self._drawn[n]

    def _draw_new(self, n: int) -> int:
        value, terms = self.values[n], self._terms(n)
        if self._is_layer(n):
            return self._layer(n, "linear", n)
        match value.kind:
            case "sum":
                return self._sum(n)
            case "curve":
                return self._curve(n)
            case "norm" if self._alone(terms[0]) and self._is_layer(terms[0]):
                return self._layer(terms[0], value.text, n)
            case "norm":
                return self._add("function", value.text, self._edges(terms), n)
            case "product":
                quotient = any(sign < 0 for sign, _ in value.terms)
                return self._add("operation", "÷" if quotient else "×", self._edges(terms), n)
            case "weighted":
                return self._add("operation", "p ∘", self._edges(terms), n)
            case "constant":
                return self._add("operation", value.text, [], n)
            case kind:
                return self._add(kind, value.text, self._edges(terms), n)

    def _edges(self, terms: Iterable[int], weighted: bool = False) -> list[Edge]:
        return [Edge(self._draw(n), weighted) for n in terms]

    def _add(
        self, kind: str, text: str, edges: Iterable[Edge], n: int | None = None, note: str = ""
    ) -> int:
        """Adds a node for a value or a part of one, and returns its index."""
        names, where = ((), None) if n is None else (self.values[n].names, self.values[n].where)
        self._nodes.append(Node(kind, text, names, tuple(edges), note, where))
        return len(self._nodes) - 1

    def _curve(self, n: int) -> int:
        """Adds an elementwise function; nested functions are one node while their text is short."""
        text, (inside,) = self.values[n].text, self._terms(n)
        while self._alone(inside) and self.values[inside].kind == "curve":
            both = nested(text, self.values[inside].text)
            if len(shown(both)) > LONGEST:
                break
            text, (inside,) = both, self._terms(inside)
        if self._alone(inside) and self._is_layer(inside):
            return self._layer(inside, shown(text), n)
        return self._add("operation", shown(text), self._edges([inside]), n)

    def _layer(self, n: int, text: str, top: int | None) -> int:
        """Adds a layer for the weighted terms of value ``n``; the node's value is ``top``."""
        terms = self._absorbed(n) if self.values[n].kind == "sum" else [n]
        matrices = [t for t in terms if self.values[t].kind == "matrix"]
        dense = [source for t in matrices for source in self._side_by_side(self._terms(t)[0])]
        weighted = [self._terms(t)[0] for t in terms if t not in matrices]
        edges = [*dict.fromkeys(self._edges(dense)), *self._edges(weighted, True)]
        note = next((self.values[t].text for t in matrices if self.values[t].text), "")
        return self._add("layer", text, edges, top, note)

    def _side_by_side(self, n: int) -> list[int]:
        """The values that a matrix is multiplied by: one, or several concatenated ones."""
        if self.values[n].kind == "join" and not self.values[n].names:
            return [source for t in self._terms(n) for source in self._side_by_side(t)]
        return [n]

    def _sum(self, n: int) -> int:
        """Adds a sum that has terms without weights."""
        absorbed = self._absorbed(n)
        plus, minus = (
            self._edges(t for s, t in self.values[n].terms if s == sign and t not in absorbed)
            for sign in (1, -1)
        )
        if "matrix" in self._kinds(absorbed):
            plus.insert(0, Edge(self._layer(n, "linear", None)))
        else:
            plus = self._edges((self._terms(t)[0] for t in absorbed), True) + plus
        if not minus:
            return self._add("operation", "+", plus, n)
        if len(plus) > 1:
            plus = [Edge(self._add("operation", "+", plus))]
        if len(minus) > 1:
            minus = [Edge(self._add("operation", "+", minus))]
        return self._add("operation", "−", plus + minus, n)


def nested(outer: str, inner: str) -> str:
    """The text of a function of a function.

    >>> nested("2□", "tanh(□)"), nested("tanh(□)", "□/2"), nested("2□", "1−□")
    ('2tanh(□)', 'tanh(□/2)', '2(1−□)')
    """
    plain = inner == ARGUMENT or re.fullmatch(r"[\wσ ]+\([^()]*\)|□[²³]", inner)
    bare = f"({ARGUMENT})" in outer
    return outer.replace(ARGUMENT, inner if plain or bare else f"({inner})")


def shown(text: str) -> str:
    """The text of a function, without its argument if possible.

    >>> shown("2tanh(□)"), shown("tanh(□/2)"), shown("1−□"), shown("□²"), shown("0.1□")
    ('2tanh', 'tanh(·/2)', '1−', '(·)²', '×0.1')
    """
    text = text.replace(f"({ARGUMENT})", "")
    if re.fullmatch(r"−?[\d.e+-]+□", text):
        return "×" + text.removesuffix(ARGUMENT)
    if text.endswith("−" + ARGUMENT):
        return text.removesuffix(ARGUMENT)
    return re.sub("□(?=[²³^])", "(□)", text).replace(ARGUMENT, "·")


def _with_joins(nodes: list[Node]) -> list[Node]:
    """Adds a join node for each set of inputs that several layers share."""
    nodes = list(nodes)

    def dense(node: Node) -> frozenset[int]:
        return frozenset(edge.source for edge in node.inputs if not edge.weighted)

    layers = [n for n, node in enumerate(nodes) if node.kind == "layer"]
    shared: dict[frozenset[int], list[int]] = {}
    for n in layers:
        shared.setdefault(dense(nodes[n]), []).append(n)
    joins: dict[frozenset[int], int] = {}
    for inputs, users in sorted(shared.items(), key=lambda item: len(item[0])):
        left = set(inputs)
        parts = []
        for smaller, join in reversed(joins.items()):
            if smaller <= left:
                left -= smaller
                parts.append(join)
        readers = sum(len(found) for more, found in shared.items() if inputs <= more)
        if not parts and (len(inputs) < 2 or readers < 2):
            continue
        if readers > 1 and len(left) + len(parts) > 1:
            nodes.append(Node("join", "", (), tuple(Edge(s) for s in (*parts, *sorted(left)))))
            joins[inputs] = len(nodes) - 1
            parts, left = [joins[inputs]], set()
        for user in users:
            node = nodes[user]
            edges = [Edge(s) for s in (*parts, *sorted(left))]
            edges += [edge for edge in node.inputs if edge.weighted]
            nodes[user] = node._replace(inputs=tuple(edges))
    return nodes


def _in_order(nodes: list[Node]) -> tuple[Node, ...]:
    """Sorts nodes so that each follows its inputs, and otherwise preserves their order."""
    position: dict[int, int] = {}
    ordered: list[Node] = []

    def visit(n: int) -> None:
        if n in position:
            return
        for edge in nodes[n].inputs:
            visit(edge.source)
        edges = tuple(edge._replace(source=position[edge.source]) for edge in nodes[n].inputs)
        position[n] = len(ordered)
        ordered.append(nodes[n]._replace(inputs=edges))

    first, last = ("state", "input"), ("new state", "output")
    for n in sorted(
        range(len(nodes)), key=lambda n: (nodes[n].kind not in first, nodes[n].kind in last)
    ):
        visit(n)
    return tuple(ordered)
