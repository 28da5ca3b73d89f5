"""Converts JAX functions to ONNX graphs, and recurrent layers to ONNX's recurrent operators."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend.core import Literal
from onnx import helper

from lstm_jax._scans import scan_counts
from lstm_jax.interop.onnx.directions import join_directions
from lstm_jax.interop.onnx.graphs import (
    IR_VERSION,
    OPSET,
    Builder,
    Value,
    is_known_size,
    names_read,
    type_code,
)
from lstm_jax.interop.onnx.primitives import TRANSLATIONS, dtype_of, is_narrow, reshaped, widened
from lstm_jax.interop.onnx.recurrent import obstacle, operator_of
from lstm_jax.sequence import initial_state, unroll
from lstm_jax.sequence.protocol import check_cell_or_layer, input_size, is_layer
from lstm_jax.sequence.unroll import sequence_runner

CALLS = {
    "closed_call": "call_jaxpr",
    "composite": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}
"""Primitives that call a function, with the name of the parameter that holds it."""


def to_onnx(
    layer: Any,
    params: Any,
    *,
    streaming: bool = False,
    lengths: bool = False,
    mask: bool = False,
    batch_shape: tuple[int | str, ...] = ("B",),
    num_steps: int | str = "T",
    size: int | None = None,
) -> onnx.ModelProto:
    """Converts a cell or layer over a sequence to an ONNX model.

    Cells that ONNX's LSTM, GRU and RNN can express become these operators.  All others become a
    Scan of plain operators.  Inputs and outputs narrower than float32 are float32 in the model.

    Args:
      layer: a cell, :class:`Stack`, :class:`LSTM`, :class:`Bidirectional`, or another layer.
      params: its parameters.
      streaming: whether the state is also an input, so that a sequence can be passed in chunks of
        one or more steps.
      lengths: whether the model has an input ``lengths``, int32 ``[B]``, as in :func:`unroll`.
      mask: whether the model has an input ``mask``, booleans ``[T, B]``, as in :func:`unroll`.
        ONNX's LSTM, GRU and RNN only support lengths, so every cell then becomes a Scan.
      batch_shape: the axes between time and features; a name stands for any size.
      num_steps: T, a number or a name.
      size: D, if the layer's parameters do not determine it.

    Returns:
      A model with the input ``xs`` ``[T, *batch_shape, D]`` and, if requested, ``lengths``,
      ``mask`` and ``state.*``.  Its outputs are ``ys`` and ``new_state.*``, the state after the
      last step.

    Raises:
      TypeError: ``layer`` is neither a cell nor a layer.
      ValueError: D is unknown, or as in :func:`function_to_onnx`.

    Example:
      >>> import jax
      >>> from lstm_jax import LSTM
      >>> lstm = LSTM(4, num_layers=2)
      >>> model = to_onnx(lstm, lstm.init(jax.random.key(0), input_size=3), streaming=True)
      >>> [node.op_type for node in model.graph.node].count("LSTM")
      2
      >>> [value.name for value in model.graph.input][:3]
      ['xs', 'state.layer_0.h', 'state.layer_0.c']
    """
    check_cell_or_layer("layer", layer)
    features = input_size(layer, params) if size is None else size
    if features is None:
        raise ValueError(
            f"size must be given, since the parameters of {type(layer).__name__} do not determine "
            "it"
        )
    steps, *batch = jax.export.symbolic_shape(", ".join(map(str, (num_steps, *batch_shape))))
    inputs: dict[str, Any] = {
        "xs": jax.ShapeDtypeStruct((steps, *batch, features), _float_type(params))
    }
    if lengths:
        inputs["lengths"] = jax.ShapeDtypeStruct(tuple(batch), jnp.int32)
    if mask:
        inputs["mask"] = jax.ShapeDtypeStruct((steps, *batch), bool)
    if streaming:
        shape: Any = tuple(batch)
        inputs["state"] = jax.eval_shape(lambda params: initial_state(layer, params, shape), params)

    def run(params: Any, xs: jax.Array, **given: Any) -> dict[str, Any]:
        if is_layer(layer):
            state, ys = layer.apply(params, xs, **given)
        else:
            state, ys = unroll(layer, params, xs, **given)
        return {"ys": ys, "new_state": state}

    return function_to_onnx(run, params, inputs)


def function_to_onnx(
    function: Callable[..., Mapping[str, Any]], params: Any, inputs: Mapping[str, Any]
) -> onnx.ModelProto:
    """Converts a function of parameters and named arrays to an ONNX model.

    The function is traced, and each JAX primitive becomes one or more ONNX operators.  Values that
    depend only on the parameters are computed during the conversion.  Loops over recurrent cells
    become ONNX's LSTM, GRU and RNN if these can express them, and a Scan otherwise.

    Args:
      function: called as ``function(params, **inputs)``; returns a dict of arrays or pytrees.
      params: a pytree of arrays, which become constants of the graph, ``params.*``.
      inputs: the shape and type of each input by name, a ``jax.ShapeDtypeStruct`` or a pytree of
        them, whose leaves are named ``name.*``.  Sizes from ``jax.export.symbolic_shape`` stay
        symbolic; all of them must come from one call of that function, or from one scope.

    Returns:
      A model, whose outputs have the names in the function's result; leaves of pytrees are named
      as for inputs.

    Raises:
      ValueError: a primitive has no translation (the message names it), an output has the name
        of an input, or a symbolic size does not follow from the inputs' shapes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import LSTM
      >>> lstm = LSTM(4)
      >>> params = {"embedding": jnp.ones((9, 3)), "lstm": lstm.init(jax.random.key(0), 3)}
      >>> def model(params, tokens):  # [T, B]
      ...     _, ys = lstm.apply(params["lstm"], params["embedding"][tokens])
      ...     return {"ys": ys}
      >>> tokens = jax.ShapeDtypeStruct(jax.export.symbolic_shape("T, B"), jnp.int32)
      >>> proto = function_to_onnx(model, params, {"tokens": tokens})
      >>> [node.op_type for node in proto.graph.node if node.op_type in ("Gather", "LSTM")]
      ['Gather', 'LSTM']
    """
    names: list[str] = []

    def run(params: Any, *arrays: Any) -> list[Any]:
        results = function(params, **dict(zip(inputs, arrays, strict=True)))
        if not isinstance(results, Mapping):
            kind = type(results).__name__
            raise ValueError(f"function must return a dict of outputs, got {kind}")
        names[:] = results
        return list(results.values())

    with sequence_runner(_unroll_as_composite):
        closed, shapes = jax.make_jaxpr(run, return_shape=True)(params, *inputs.values())
    g = Builder()
    known = []
    for path, leaf in jax.tree.leaves_with_path(params):
        known.append(np.asarray(leaf))
        g.constant(known[-1], _name("params", path))

    specs, values = {}, []
    for name, leaf in _named_leaves(inputs, inputs.values()):
        specs[name] = jax.ShapeDtypeStruct(leaf.shape, _interface_dtype(leaf.dtype))
        g.learn_sizes(name, leaf.shape)
        wide = specs[name].dtype != leaf.dtype
        values.append(g.add("Cast", name, to=type_code(leaf.dtype)) if wide else name)

    results = translate(g, closed.jaxpr, closed.consts, [*known, *values])
    outputs = {}
    for (name, leaf), value in zip(_named_leaves(names, shapes), results, strict=True):
        if name in specs:
            raise ValueError(f"output {name!r} must not have the name of an input")
        dtype = _interface_dtype(leaf.dtype)
        if dtype != leaf.dtype:
            value = g.add("Cast", value, to=type_code(dtype))
        outputs[name] = value, jax.ShapeDtypeStruct(leaf.shape, dtype)
    join_directions(g)
    graph = g.graph("lstm_jax", specs, outputs)
    read = {name for node in graph.node for name in names_read(node)}
    graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name)
        for name, array in g.constants.items()
        if name in read
    )
    return helper.make_model(
        graph,
        producer_name="lstm_jax",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def _unroll_as_composite(
    cell: Any,
    params: Any,
    xs: Any,
    state: Any,
    *,
    lengths: Any,
    mask: Any,
    resets: Any,
    reverse: bool,
) -> Any:
    """Runs :func:`unroll` as one traced equation, which :func:`recurrence` translates.

    The equation is a ``jax.lax.composite`` named ``lstm_jax.unroll``, with ``cell`` and ``reverse``
    among its attributes.  Its body is the plain scan, for cells that ONNX has no operator for.
    """
    given = {"state": state, "lengths": lengths, "mask": mask, "resets": resets}

    def loop(params: Any, xs: Any, given: Any, *, cell: Any, reverse: bool, arguments: Any) -> Any:
        with sequence_runner(None):
            return unroll(cell, params, xs, **given, reverse=reverse, engine="scan")

    arguments = jax.tree.structure((params, xs, given))
    return jax.lax.composite(loop, "lstm_jax.unroll")(
        params, xs, given, cell=cell, reverse=reverse, arguments=arguments
    )


# ---- equations ----


def translate(g: Builder, jaxpr: Any, consts: list[Any], inputs: list[Value]) -> list[Value]:
    """Adds a function's equations to a graph one by one, and returns its outputs."""
    values = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return np.asarray(atom.val, dtype_of(atom)) if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        results = _results(g, eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(g: Builder, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The outputs of one equation: computed if all inputs are constant, otherwise translated."""
    name = eqn.primitive.name
    if name == "composite" and eqn.params["name"] == "lstm_jax.unroll":
        results = recurrence(g, eqn, inputs)
        if results is not None:
            return results
    if name in CALLS:
        inner = eqn.params[CALLS[name]]
        jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", [])
        return translate(g, jaxpr, consts, inputs)
    if name == "scan":
        return scan(g, eqn, inputs)
    open_sizes = not all(is_known_size(v.aval.shape) for v in eqn.outvars)
    if name != "dim_as_value" and not open_sizes and not any(isinstance(x, str) for x in inputs):
        results = eqn.primitive.bind(*inputs, **eqn.params)
        results = results if eqn.primitive.multiple_results else [results]
        return [np.asarray(result) for result in results]
    if name not in TRANSLATIONS:
        raise ValueError(f"{name} of JAX has no translation into operators of ONNX")
    # On a CPU, ONNX Runtime has few operators for narrow types.  The operators therefore compute in
    # float32, and the result is rounded once, as in XLA.
    narrow = any(is_narrow(dtype_of(v)) for v in (*eqn.invars, *eqn.outvars))
    narrow = narrow and name != "convert_element_type"
    if narrow:
        inputs = [
            widened(g, x, np.float32) if is_narrow(dtype_of(v)) else x
            for x, v in zip(inputs, eqn.invars, strict=True)
        ]
    results = TRANSLATIONS[name](g, eqn, *inputs)
    results = results if isinstance(results, list) else [results]
    if narrow:
        results = [
            widened(g, x, dtype_of(v)) if is_narrow(dtype_of(v)) else x
            for x, v in zip(results, eqn.outvars, strict=True)
        ]
    return results


def scan(g: Builder, eqn: Any, inputs: list[Value]) -> list[Value]:
    """``jax.lax.scan`` as ONNX's Scan, whose body reads closed-over values of the outer graph."""
    params = eqn.params
    count, carried = scan_counts(eqn)
    jaxpr = params["jaxpr"].jaxpr
    consts, states, xs = inputs[:count], inputs[count : count + carried], inputs[count + carried :]
    avals = [v.aval for v in jaxpr.invars[count:]]
    body = g.within()
    names = [body.new_name("input") for _ in avals]
    results = translate(body, jaxpr, params["jaxpr"].consts, [*consts, *names])
    given = dict(zip(names, avals, strict=True))
    if not xs:  # ONNX's Scan needs an input that determines the number of steps
        steps = g.add("Squeeze", g.size(params["length"]), np.array([0]))
        xs = [g.add("Range", np.array(0), steps, np.array(1))]
        given[body.new_name("input")] = jax.ShapeDtypeStruct((), np.int64)
    outputs = {
        body.new_name("output"): (value, v.aval)
        for value, v in zip(results, jaxpr.outvars, strict=True)
    }
    direction = int(params["reverse"])
    made = g.add(
        "Scan",
        *states,
        *xs,
        outputs=len(outputs),
        body=body.graph(body.new_name("step"), given, outputs),
        num_scan_inputs=len(xs),
        scan_input_directions=[direction] * len(xs),
        scan_output_directions=[direction] * (len(outputs) - carried) or None,
    )
    return made if isinstance(made, list) else [made]


def recurrence(g: Builder, eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """A loop over a cell as ONNX's LSTM, GRU or RNN, or None if these cannot express it."""
    attributes = {key: tree.unflatten(leaves) for key, leaves, tree in eqn.params["attributes"]}
    cell, arguments = attributes["cell"], attributes["arguments"]
    start = len(inputs) - arguments.num_leaves  # the values that the cell closes over come first
    params, xs, given = arguments.unflatten(inputs[start:])
    _, of_xs, of_given = arguments.unflatten([v.aval for v in eqn.invars[start:]])
    if obstacle(cell) or given["mask"] is not None or given["resets"] is not None:
        return None
    types = {dtype_of(v) for v in eqn.invars[start:]} - {np.dtype(np.int32), np.dtype(np.int64)}
    if types != {np.dtype(np.float32)}:  # ONNX Runtime has these operators only for float32
        return None
    if any(isinstance(array, str) for array in params.values()):  # the weights are not constant
        return None
    name, arrays, node_attributes = operator_of(cell, params, reverse=attributes["reverse"])
    steps, *batch, features = of_xs.shape
    rows, size = math.prod(batch), node_attributes["hidden_size"]

    def flat(array: Value, shape: list[Any]) -> Value:
        """Reshapes an array to one batch axis."""
        return array if len(batch) == 1 else reshaped(g, array, shape)

    lengths = given["lengths"]
    if lengths is not None:
        lengths = flat(lengths, [rows])
        if of_given["lengths"].dtype != np.int32:
            lengths = widened(g, lengths, np.int32)
    begin = _initial_states(g, cell, params, given["state"], rows, flat)
    states = 2 if name == "LSTM" else 1
    y, *ends = g.add(
        name,
        flat(xs, [steps, rows, features]),
        *(arrays[key] for key in ("W", "R", "B")),
        lengths,
        *(begin or [None] * states),
        arrays.get("P"),
        outputs=1 + states,
        **node_attributes,
    )
    if lengths is not None and begin:  # a row of length zero ends with its initial state
        some = g.add("Greater", lengths, np.zeros(1, np.int32))
        some = reshaped(g, some, [1, rows, 1])
        ends = [g.add("Where", some, end, b) for end, b in zip(ends, begin, strict=True)]
    ys = g.add("Squeeze", y, np.array([1]))
    ends = [g.add("Squeeze", end, np.array([0])) for end in ends]
    if len(batch) != 1:
        ys = reshaped(g, ys, [steps, *batch, size])
        ends = [reshaped(g, end, [*batch, size]) for end in ends]
    return [*ends, ys]


def _initial_states(
    g: Builder, cell: Any, params: Any, state: Any, rows: Any, flat: Callable[..., Value]
) -> list[Value]:
    """The operator's initial states, each ``[1, rows, H]``; an empty list for zeros."""
    fields = jax.eval_shape(cell.zero_state)
    if state is not None:
        return [
            reshaped(g, flat(array, [rows, *spec.shape]), [1, rows, *spec.shape])
            for array, spec in zip(state, fields, strict=True)
        ]
    if not cell.learn_initial_state:
        return []
    shapes = {name: g.shape([1, rows, *spec.shape]) for name, spec in fields._asdict().items()}
    return [g.add("Expand", params[f"{name}_0"], shape) for name, shape in shapes.items()]


# ---- helpers ----


def _name(of: str, path: Any) -> str:
    return f"{of}.{jax.tree_util.keystr(path, simple=True, separator='.')}" if path else of


def _named_leaves(names: Iterable[str], trees: Iterable[Any]) -> list[tuple[str, Any]]:
    """The arrays of each tree, named by the tree and the path in it."""
    return [
        (_name(name, path), leaf)
        for name, tree in zip(names, trees, strict=True)
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def _interface_dtype(dtype: Any) -> np.dtype:
    """The type of a model's inputs and outputs: float32 instead of narrower floating types."""
    return np.dtype(np.float32 if is_narrow(dtype) else dtype)


def _float_type(params: Any) -> np.dtype:
    types = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(params)}
    floats = [dtype for dtype in types if jnp.issubdtype(dtype, jnp.floating)]
    return _interface_dtype(jnp.result_type(*floats) if floats else jnp.float32)
