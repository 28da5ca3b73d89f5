"""JAX functions as graphs of ONNX, with recurrent layers as its recurrent operators."""

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
"""Primitives that call a function, and the parameter that holds it."""


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
    """A cell or layer over a sequence as a model of ONNX.

    Cells that ONNX's LSTM, GRU and RNN can express become these operators, all others a Scan of
    plain operators.  Numbers narrower than float32 enter and leave as float32.

    Args:
      layer: a cell, :class:`Stack`, :class:`LSTM`, :class:`Bidirectional`, or another layer.
      params: its parameters.
      streaming: whether the state is an input, too, so that a sequence can come in parts, be it
        step by step.
      lengths: whether there is an input ``lengths``, int32 ``[B]``, as in :func:`unroll`.
      mask: whether there is an input ``mask``, booleans ``[T, B]``, as in :func:`unroll`.  ONNX's
        LSTM, GRU and RNN take lengths alone, so that every cell becomes a Scan.
      batch_shape: the axes between time and features; a name stands for any size.
      num_steps: T, a number or a name.
      size: D, where the layer cannot tell it from its parameters.

    Returns:
      A model with the input ``xs`` ``[T, *batch_shape, D]``, and where asked for ``lengths``,
      ``mask`` and ``state.*``; its outputs are ``ys`` and ``new_state.*``, the state after the
      last step.

    Raises:
      TypeError: it is neither a cell nor a layer.
      ValueError: D is not known, or as in :func:`function_to_onnx`.

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
            f"size must be given, since {type(layer).__name__} cannot tell it from its parameters"
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
    """A function of parameters and named arrays as a model of ONNX.

    The function is traced, and each of JAX's primitives becomes operators of ONNX; what follows
    from the parameters alone is computed now.  Loops over recurrent cells become ONNX's LSTM,
    GRU and RNN, where these can express them, and a Scan elsewhere.

    Args:
      function: called as ``function(params, **inputs)``; returns a dict of arrays or pytrees.
      params: a pytree of arrays, which become constants of the graph, ``params.*``.
      inputs: shape and type of each input by its name, a ``jax.ShapeDtypeStruct`` or a pytree of
        them, whose leaves get the names ``name.*``.  Sizes from ``jax.export.symbolic_shape``
        stay open; all must come from one call of it, or one scope.

    Returns:
      A model; its outputs have the names that the function gives them, as the inputs do.

    Raises:
      ValueError: a primitive has no translation (the message names it), an output has the name
        of an input, or an open size does not follow from the inputs' shapes.

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
        specs[name] = jax.ShapeDtypeStruct(leaf.shape, _at_the_edge(leaf.dtype))
        g.learn_sizes(name, leaf.shape)
        wide = specs[name].dtype != leaf.dtype
        values.append(g.add("Cast", name, to=type_code(leaf.dtype)) if wide else name)

    results = translate(g, closed.jaxpr, closed.consts, [*known, *values])
    outputs = {}
    for (name, leaf), value in zip(_named_leaves(names, shapes), results, strict=True):
        if name in specs:
            raise ValueError(f"output {name!r} must not have the name of an input")
        dtype = _at_the_edge(leaf.dtype)
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
    """:func:`unroll` as one equation of the traced function, which :func:`recurrence` translates.

    It is a ``jax.lax.composite`` named ``lstm_jax.unroll``, with ``cell`` and ``reverse`` among its
    attributes.  Its body is the plain scan, for cells that have no operator of their own.
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
    """The outputs of a function's equations, added to a graph one by one."""
    values = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return np.asarray(atom.val, dtype_of(atom)) if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        results = _results(g, eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(g: Builder, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The outputs of one equation: translated, or computed where all inputs are known."""
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
    # Of narrow numbers ONNX Runtime computes little on a CPU; as XLA does, what is computed in
    # float32 is rounded once.
    narrow = any(is_narrow(dtype_of(v)) for v in (*eqn.invars, *eqn.outvars))
    narrow = narrow and name not in ("convert_element_type", "dot_general")
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
    """``jax.lax.scan`` as ONNX's Scan, whose body sees what the function closes over."""
    params = eqn.params
    count, carried = scan_counts(eqn)
    jaxpr = params["jaxpr"].jaxpr
    consts, states, xs = inputs[:count], inputs[count : count + carried], inputs[count + carried :]
    avals = [v.aval for v in jaxpr.invars[count:]]
    body = g.within()
    names = [body.new_name("input") for _ in avals]
    results = translate(body, jaxpr, params["jaxpr"].consts, [*consts, *names])
    given = dict(zip(names, avals, strict=True))
    if not xs:  # ONNX counts the steps by what it reads
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
    """A loop over a cell as ONNX's LSTM, GRU or RNN, or None where these cannot express it."""
    attributes = {key: tree.unflatten(leaves) for key, leaves, tree in eqn.params["attributes"]}
    cell, arguments = attributes["cell"], attributes["arguments"]
    start = len(inputs) - arguments.num_leaves  # before them stands what the cell closes over
    params, xs, given = arguments.unflatten(inputs[start:])
    _, of_xs, of_given = arguments.unflatten([v.aval for v in eqn.invars[start:]])
    if obstacle(cell) or given["mask"] is not None or given["resets"] is not None:
        return None
    types = {dtype_of(v) for v in eqn.invars[start:]} - {np.dtype(np.int32), np.dtype(np.int64)}
    if types != {np.dtype(np.float32)}:  # ONNX Runtime has these operators for no other type
        return None
    if any(isinstance(array, str) for array in params.values()):  # weights that are computed
        return None
    name, arrays, node_attributes = operator_of(cell, params, reverse=attributes["reverse"])
    steps, *batch, features = of_xs.shape
    rows, size = math.prod(batch), node_attributes["hidden_size"]

    def flat(array: Value, shape: list[Any]) -> Value:
        """With one batch axis."""
        return array if len(batch) == 1 else reshaped(g, array, shape)

    lengths = given["lengths"]
    if lengths is not None:
        lengths = flat(lengths, [rows])
        if of_given["lengths"].dtype != np.int32:
            lengths = widened(g, lengths, np.int32)
    begin = _beginning(g, cell, params, given["state"], rows, flat)
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
    if lengths is not None and begin:  # a row of no steps ends with its initial state
        some = g.add("Greater", lengths, np.zeros(1, np.int32))
        some = reshaped(g, some, [1, rows, 1])
        ends = [g.add("Where", some, end, b) for end, b in zip(ends, begin, strict=True)]
    ys = g.add("Squeeze", y, np.array([1]))
    ends = [g.add("Squeeze", end, np.array([0])) for end in ends]
    if len(batch) != 1:
        ys = reshaped(g, ys, [steps, *batch, size])
        ends = [reshaped(g, end, [*batch, size]) for end in ends]
    return [*ends, ys]


def _beginning(
    g: Builder, cell: Any, params: Any, state: Any, rows: Any, flat: Callable[..., Value]
) -> list[Value]:
    """What the operator begins with, each [1, rows, H]; nothing for zeros."""
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


# ---- help ----


def _name(of: str, path: Any) -> str:
    return f"{of}.{jax.tree_util.keystr(path, simple=True, separator='.')}" if path else of


def _named_leaves(names: Iterable[str], trees: Iterable[Any]) -> list[tuple[str, Any]]:
    """The arrays of each tree, by its name and their places in it."""
    return [
        (_name(name, path), leaf)
        for name, tree in zip(names, trees, strict=True)
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def _at_the_edge(dtype: Any) -> np.dtype:
    """The type in which values enter and leave: float32 for narrower ones, which it holds."""
    return np.dtype(np.float32 if is_narrow(dtype) else dtype)


def _float_type(params: Any) -> np.dtype:
    types = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(params)}
    floats = [dtype for dtype in types if jnp.issubdtype(dtype, jnp.floating)]
    return _at_the_edge(jnp.result_type(*floats) if floats else jnp.float32)
