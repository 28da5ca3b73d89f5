"""Converts an ONNX graph to a pure JAX function."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx.inliner

from lstm_jax.interop.onnx.models import (
    MOST_NODES,
    Functions,
    array_of,
    attribute_of,
    check_computed,
    loaded,
    naming,
)
from lstm_jax.interop.onnx.operators import cast_to, dtype_of, known, operator_at
from lstm_jax.interop.onnx.recurrent import DEFAULTS as RECURRENT
from lstm_jax.interop.onnx.recurrent import run_node
from lstm_jax.sequence.engines import check_engine

Values = dict[str, Any]  # arrays by their names in a graph


class Node(NamedTuple):
    """One operation of a graph, with attributes as Python values."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    function: Any  # for a plain operator, the function that computes it


class Graph(NamedTuple):
    """A graph, or one nested in a node of another."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Values
    nodes: tuple[Node, ...]


class Input(NamedTuple):
    """The declared type and shape of a graph's input.

    Attributes:
      dtype: the type.
      shape: for each axis, its size, its name, or None if neither is declared; None if the graph
        does not declare a shape.
    """

    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None


class GraphFunction:
    """A graph as a pure function, returned by :func:`from_onnx`.

    ``f(**inputs)`` returns a dict of outputs by name.  ``f.apply(params, **inputs)`` uses other
    values of the parameters, and can be differentiated with respect to them.

    Attributes:
      inputs: an :class:`Input` for each name.
      outputs: the names of the outputs.
      params: the weights: the graph's floating-point constants by name, as NumPy arrays.
    """

    def __init__(self, model: onnx.ModelProto, engine: str = "auto"):
        check_engine(engine)
        self._engine = engine
        self._opset = _opset(model)
        if model.functions:
            count = Functions(model).count(model.graph.node)
            if count > MOST_NODES:
                raise ValueError(f"the model has {count} nodes; expected at most {MOST_NODES}")
            model = onnx.inliner.inline_local_functions(model)
        self._graph = read_graph(model.graph, self._opset)
        constants = self._graph.constants
        self.params = {
            name: array
            for name, array in constants.items()
            if jnp.issubdtype(array.dtype, jnp.floating)
        }
        self.inputs = {
            value.name: _input(value)
            for value in model.graph.input
            if value.name not in constants  # in old models, weights are also inputs
        }
        self.outputs = self._graph.outputs

    def __call__(self, **inputs: Any) -> dict[str, jax.Array]:
        """Computes the outputs by name.

        Raises:
          TypeError: an input is missing, unknown, or of another kind of type.
          ValueError: an input's shape is not the one that the graph declares.
        """
        return self.apply(self.params, **inputs)

    def apply(self, params: Mapping[str, Any], /, **inputs: Any) -> dict[str, jax.Array]:
        """Computes the outputs by name, with these values of :attr:`params`."""
        if set(params) != set(self.params):
            wrong = sorted(set(params) ^ set(self.params))
            raise TypeError(f"params must have the names of f.params; {wrong[0]!r} does not fit")
        if set(inputs) != set(self.inputs):
            raise TypeError(
                f"inputs must be {', '.join(self.inputs)}, got {', '.join(inputs) or 'none'}"
            )
        values = {
            name: _checked_input(name, inputs[name], wanted) for name, wanted in self.inputs.items()
        }
        for name, array in params.items():
            if array.shape != self.params[name].shape:
                raise ValueError(
                    f"params[{name!r}] must have shape {self.params[name].shape}, got {array.shape}"
                )
        values = {**self._graph.constants, **params, **values}
        results = run_graph(self._graph, values, self._opset, self._engine)
        return dict(zip(self.outputs, map(jnp.asarray, results), strict=True))


def from_onnx(model: onnx.ModelProto | str | os.PathLike, *, engine: str = "auto") -> GraphFunction:
    """Converts a model to a pure JAX function; lstm_jax cells compute LSTM, GRU and RNN.

    All shapes must follow from the shapes of the inputs, since they are computed during tracing.
    The function can be jitted, differentiated and mapped like any other.

    Args:
      model: an ONNX model, or its path.
      engine: the engine for LSTM, GRU and RNN, as in :func:`unroll`.

    Returns:
      ``f``; ``f(**inputs)`` returns a dict of outputs by name.

    Raises:
      ValueError: the model has an unsupported operator, which the message names, it is damaged,
        or its numbers are in another file.
      UserError: the same for a model from a file, which the message names.
      TypeError: ``model`` is neither a model nor a path.

    Example:
      >>> import jax, numpy as np
      >>> from lstm_jax import LSTM
      >>> from lstm_jax.interop.onnx import to_onnx
      >>> lstm = LSTM(4)
      >>> f = from_onnx(to_onnx(lstm, lstm.init(jax.random.key(0), input_size=3)))
      >>> f.inputs["xs"].shape
      ('T', 'B', 3)
      >>> outputs = jax.jit(f)(xs=np.ones((7, 5, 3), np.float32))
      >>> outputs["ys"].shape, outputs["new_state.layer_0.c"].shape
      ((7, 5, 4), (5, 4))
    """
    with naming(model):
        return GraphFunction(loaded(model), engine)


# ---- reading ----


def _opset(model: onnx.ModelProto) -> int:
    """The opset version of the standard's operators."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    return versions.get("", versions.get("ai.onnx", 1))


def read_graph(graph: onnx.GraphProto, opset: int) -> Graph:
    """Reads a graph, with its constants as NumPy arrays.

    Raises:
      ValueError: an operator is not supported.
    """
    nodes = []
    for node in graph.node:
        standard = node.domain in ("", "ai.onnx")
        function = operator_at(node.op_type, opset) if standard else None
        special = standard and (node.op_type in RECURRENT or node.op_type in WITH_GRAPHS)
        if node.op_type == "Scan" and opset < 9:  # Scan had other semantics in opset 8
            special = False
        if function is None and not special:
            domain = f"{node.domain}." if node.domain else ""
            raise ValueError(
                f"operator {domain}{node.op_type} (opset {opset}, node {node.name!r}) is not "
                "supported"
            )
        attributes = {a.name: _attribute(a, opset) for a in node.attribute}
        inputs, outputs = tuple(node.input), tuple(node.output)
        nodes.append(Node(node.op_type, node.name, inputs, outputs, attributes, function))
    if graph.sparse_initializer:
        raise ValueError("sparse initializers are not supported")
    return Graph(
        inputs=tuple(value.name for value in graph.input),
        outputs=tuple(value.name for value in graph.output),
        constants={tensor.name: array_of(tensor) for tensor in graph.initializer},
        nodes=_needed(nodes, [value.name for value in graph.output]),
    )


def _attribute(attribute: onnx.AttributeProto, opset: int) -> Any:
    """An attribute as a Python value; a graph becomes a :class:`Graph`."""
    value = attribute_of(attribute)
    return read_graph(value, opset) if isinstance(value, onnx.GraphProto) else value


def _needed(nodes: list[Node], outputs: Sequence[str]) -> tuple[Node, ...]:
    """The nodes that contribute to these outputs, in their order."""
    needed, reached = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            reached.append(node)
            needed |= _read_by(node)
    return tuple(reached[::-1])


def _read_by(node: Node) -> set[str]:
    """The values that a node and its nested graphs read."""
    graphs = [value for value in node.attributes.values() if isinstance(value, Graph)]
    inner = (_read_by(one) | set(graph.outputs) for graph in graphs for one in graph.nodes)
    return set(node.inputs).union(*inner, *(graph.outputs for graph in graphs))


def _input(value: onnx.ValueInfoProto) -> Input:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ValueError(f"input {value.name!r} is not a tensor")
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in tensor.shape.dim
        )
    return Input(dtype_of(tensor.elem_type), shape)


def _checked_input(name: str, array: Any, wanted: Input) -> jax.Array:
    """Checks an input against the graph's declaration, and casts it to the declared type."""
    array = jnp.asarray(array)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, k) and jnp.issubdtype(wanted.dtype, k) for k in kinds):
        raise TypeError(f"{name} must be {wanted.dtype}, got {array.dtype}")
    fits = wanted.shape is None or len(array.shape) == len(wanted.shape)
    sizes = zip(array.shape, wanted.shape or (), strict=False)
    if not fits or any(isinstance(size, int) and given != size for given, size in sizes):
        axes = ", ".join("?" if size is None else str(size) for size in wanted.shape or ())
        raise ValueError(f"{name} must be [{axes}], got shape {array.shape}")
    return cast_to(array, wanted.dtype)


# ---- running ----


def run_graph(graph: Graph, values: Values, opset: int, engine: str) -> list[Any]:
    """Computes the outputs of a graph.

    ``values`` holds its inputs, its constants, and the values of enclosing graphs.
    """
    values = {"": None, **values}
    for node in graph.nodes:
        values |= _outputs(node, values, opset, engine)
    return [values[name] for name in graph.outputs]


def _outputs(node: Node, values: Values, opset: int, engine: str) -> Values:
    """Computes the outputs of a node by name."""
    inputs = [values[name] for name in node.inputs]

    def run(graph: Graph, *arguments: Any) -> list[Any]:
        given = dict(zip(graph.inputs, arguments, strict=True))
        return run_graph(graph, {**values, **graph.constants, **given}, opset, engine)

    try:
        plain = node.function is not None
        if plain and all(x is None or isinstance(x, np.ndarray | np.generic) for x in inputs):
            check_computed(node.operator, inputs, node.attributes)
        if node.operator in RECURRENT:
            results = run_node(node.operator, *inputs, engine=engine, **node.attributes)
        elif node.operator in WITH_GRAPHS:
            results = WITH_GRAPHS[node.operator](run, *inputs, **node.attributes)
        elif node.operator == "Split":
            results = node.function(*inputs, outputs=len(node.outputs), **node.attributes)
        else:
            results = node.function(*inputs, **node.attributes)
    except (TypeError, ValueError, IndexError) as error:
        error.add_note(f"in node {node.name!r}, {node.operator}")
        raise
    results = results if isinstance(results, tuple | list) else [results]
    pairs = zip(node.outputs, results, strict=False)  # trailing outputs may be omitted
    return {name: result for name, result in pairs if name}


Run = Callable[..., list[Any]]  # runs a nested graph with its arguments


def scan(
    run: Run,
    *inputs: Any,
    body: Graph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> list[jax.Array]:
    """ONNX's Scan of opset 9 and later, as ``jax.lax.scan``."""
    count = len(inputs) - num_scan_inputs
    states = [jnp.asarray(state) for state in inputs[:count]]
    in_axes = scan_input_axes or [0] * num_scan_inputs
    flips = scan_input_directions or [0] * num_scan_inputs
    xs = [
        jnp.flip(x, 0) if flip else x
        for x, flip in (
            (jnp.moveaxis(jnp.asarray(x), axis, 0), flip)
            for x, axis, flip in zip(inputs[count:], in_axes, flips, strict=True)
        )
    ]

    def step(states: list[jax.Array], xs: list[jax.Array]) -> tuple[list[Any], list[Any]]:
        results = run(body, *states, *xs)
        new = [jnp.asarray(n).astype(o.dtype) for n, o in zip(results[:count], states, strict=True)]
        return new, [jnp.asarray(y) for y in results[count:]]

    states, ys = jax.lax.scan(step, states, xs)
    out_axes = scan_output_axes or [0] * len(ys)
    backwards = scan_output_directions or [0] * len(ys)
    return states + [
        jnp.moveaxis(jnp.flip(y, 0) if flip else y, 0, axis)
        for y, axis, flip in zip(ys, out_axes, backwards, strict=True)
    ]


def if_known(run: Run, condition: Any, *, then_branch: Graph, else_branch: Graph) -> list[Any]:
    """ONNX's If; the condition must follow from constants and shapes."""
    chosen = known("the condition of If", condition).reshape(()).item()
    return run(then_branch if chosen else else_branch)


WITH_GRAPHS: dict[str, Callable[..., Any]] = {"If": if_known, "Scan": scan}
"""Operators with nested graphs; their first argument is a function that runs these graphs."""
