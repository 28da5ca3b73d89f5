"""Rewrites of a step graph: the same values from equations that run faster.

Each rewrite is one function, whose docstring gives its purpose and the measured speed-up.  Times
are of a training step in float32 on two cores of an AMD EPYC with jax 0.10, at (T, B, D, H);
``docs/performance.md`` has the tables.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.sequence.fused.graph import SUMS, Equation, StepGraph, Var, Vars
from lstm_jax.sequence.shardings import on_one_device

# ---- of the step itself ----


def merge_gates(graph: StepGraph) -> None:
    """Replaces σ by tanh, and functions of slices of one array by one tanh of the whole array.

    σ(z) = tanh(z / 2) / 2 + 1 / 2.  XLA vectorises one tanh of [B, 4H] better than a function
    for each gate: inference at (128, 32, 128, 256) takes 26.0 ms instead of 31.6.

    >>> gates = lambda z: (jax.nn.sigmoid(z[:2]), jnp.tanh(z[2:]))
    >>> graph = StepGraph(gates, jnp.arange(4.0))
    >>> merge_gates(graph)
    >>> [equation.primitive for equation in graph.equations].count("tanh")
    1
    """
    gates = _gates_by_source(graph)
    piece_of: dict[Var, Var] = {}  # a gate: the piece of the tanh from which it is computed
    insert: dict[Var, list[Equation]] = {}  # equations to insert before a gate
    for source, group in gates.items():
        shape = graph.aval(source).shape
        size = shape[-1] if shape else 1
        if not _covers(group, size):
            continue
        edges = sorted({0, size, *(edge for start, stop, _ in group for edge in (start, stop))})
        scale = np.ones(size)
        for start, stop, equation in group:
            scale[start:stop] = 0.5 if equation.primitive == "logistic" else 1.0
        tanh = Equation("tanh", ScaledTanh(scale), (source,), (graph.new_like(source),))
        split = graph.new_split(tanh.outputs[0], [b - a for a, b in itertools.pairwise(edges)])
        for start, _, equation in group:
            piece_of[equation.outputs[0]] = split.outputs[edges.index(start)]
        insert[group[0][2].outputs[0]] = [tanh, split]

    rewritten: list[Equation] = []
    for equation in graph.equations:
        gate = equation.outputs[0]
        if gate not in piece_of and equation.primitive != "logistic":
            rewritten.append(equation)
            continue
        if gate not in piece_of:
            piece_of[gate] = graph.new_like(gate)
            tanh = Equation("tanh", ScaledTanh(0.5), equation.inputs, (piece_of[gate],))
            insert[gate] = [tanh]
        rewritten += insert.get(gate, [])
        function = _sigmoid_of_tanh if equation.primitive == "logistic" else _identity
        rewritten.append(Equation("mul", function, (piece_of[gate],), equation.outputs))
    graph.equations = rewritten


def _gates_by_source(graph: StepGraph) -> dict[Var, list[tuple[int, int, Equation]]]:
    """Every σ and tanh of a slice ``[..., start:stop]``, by the array that is sliced."""
    defined_by = graph.defined_by()
    gates: dict[Var, list[tuple[int, int, Equation]]] = {}
    for equation in graph.equations:
        if equation.primitive in ("logistic", "tanh"):
            source, start, stop = _slice_of(graph, equation.inputs[0], defined_by)
            gates.setdefault(source, []).append((start, stop, equation))
    return gates


def _covers(group: list[tuple[int, int, Equation]], size: int) -> bool:
    """Whether several disjoint slices, with one function each, make up most of an array."""
    edges = sorted({edge for start, stop, _ in group for edge in (start, stop)})
    width = edges[-1] - edges[0]
    disjoint = sum(stop - start for start, stop, _ in group) == width
    return len(group) > 1 and len(edges) == len(group) + 1 and disjoint and 4 * width >= 3 * size


def _slice_of(
    graph: StepGraph, variable: Var, defined_by: Mapping[Var, Equation]
) -> tuple[Var, int, int]:
    """``(source, start, stop)`` where ``variable`` is ``source[..., start:stop]``."""
    equation, shape = defined_by.get(variable), graph.aval(variable).shape
    if equation is not None and equation.primitive in ("slice", "split"):
        (source,) = equation.inputs
        source_shape = graph.aval(source).shape
        if equation.primitive == "split":
            if equation.params["axis"] == len(shape) - 1:
                n, sizes = equation.outputs.index(variable), equation.params["sizes"]
                return source, sum(sizes[:n]), sum(sizes[: n + 1])
        elif source_shape[:-1] == shape[:-1] and equation.params["strides"] is None:
            start = equation.params["start_indices"][-1]
            return source, start, equation.params["limit_indices"][-1]
    return variable, 0, shape[-1] if shape else 1


# ---- of the step with its derivative ----


def separate_sums(graph: StepGraph, carry_dependent: set[Var]) -> None:
    """Reorders sums so that terms independent of the carry are added up first.

    Their total is then precomputed for a block of steps, and the loop adds one array instead of
    several: in the derivative, one product with dW for all steps instead of one in each.

    >>> graph = StepGraph(lambda a, b, c: (a + b) + c, 1.0, 1.0, 1.0)
    >>> a, b, c = graph.inputs
    >>> separate_sums(graph, graph.depending_on([b]))
    >>> [equation.inputs == (a, c) for equation in graph.equations]
    [True, False]
    """
    uses: dict[Var, int] = dict.fromkeys(jax.tree.leaves(graph.outputs), 1)
    for equation in graph.equations:
        for v in equation.inputs:
            uses[v] = uses.get(v, 0) + 1
    defined_by = graph.defined_by()

    def is_sum(v: Var) -> bool:
        return v in carry_dependent and v in defined_by and defined_by[v].primitive in SUMS

    def terms(v: Var) -> Vars:
        return [
            term
            for n in defined_by[v].inputs
            for term in (terms(n) if is_sum(n) and uses[n] == 1 else [n])
        ]

    absorbed = {
        n
        for equation in graph.equations
        if is_sum(equation.outputs[0])
        for n in equation.inputs
        if is_sum(n) and uses[n] == 1
    }
    rewritten: list[Equation] = []
    for equation in graph.equations:
        total = equation.outputs[0]
        if not is_sum(total):
            rewritten.append(equation)
        elif total not in absorbed:
            every = terms(total)
            groups = [[t for t in every if (t in carry_dependent) == d] for d in (False, True)]
            partial_sums = []
            for group in groups:
                for term in group[1:]:
                    partial = graph.new_like(total)
                    rewritten.append(equation._replace(inputs=(group[0], term), outputs=(partial,)))
                    group[0] = partial
                partial_sums += group[:1]
            if len(partial_sums) == 2:
                rewritten.append(equation._replace(inputs=tuple(partial_sums)))
            else:  # every term depends on the carry: the last partial sum is the total
                rewritten[-1] = rewritten[-1]._replace(outputs=equation.outputs)
    graph.equations = rewritten


def factor_out_products(graph: StepGraph, linear: set[Var], results: Iterable[Var]) -> None:
    """Rewrites chains of products, linear in a variable, as that variable times one factor.

    d a b + d c becomes d (a b + c).  The factors, the local derivatives of gates, do not depend
    on the tangent d, so that they are precomputed for a block of steps on all cores: on one
    device a training step takes 0.91 to 0.99 times as long.

    Args:
      graph: the graph, which is changed.
      linear: variables that depend linearly on the carry's tangent.
      results: variables that must still be defined afterwards.

    >>> graph = StepGraph(lambda d, a, b: (d * a + d) * b, 1.0, 1.0, 1.0)
    >>> d, a, b = graph.inputs
    >>> factor_out_products(graph, graph.depending_on([d]), [graph.outputs])
    >>> [equation.primitive for equation in graph.equations if d in equation.inputs]
    ['mul']
    """
    rewritten: list[Equation] = []
    products: dict[Var, tuple[Var, Var]] = {}  # a variable: (base, factor) whose product it is
    pieces_of: dict[tuple[Var, Any], list[Var]] = {}

    def define(primitive: str, inputs: list[Var], function: Any) -> Var:
        avals = [graph.aval(v) for v in inputs]
        out = graph.new(np.broadcast_shapes(*(a.shape for a in avals)), jnp.result_type(*avals))
        rewritten.append(Equation(primitive, function, tuple(inputs), (out,)))
        return out

    def split(variable: Var, equation: Equation) -> list[Var]:
        sizes = equation.params["sizes"]
        if graph.aval(variable).shape[-1:] != (sum(sizes),):
            return [variable] * len(sizes)
        if (variable, sizes) not in pieces_of:
            rewritten.append(graph.new_split(variable, sizes))
            pieces_of[variable, sizes] = list(rewritten[-1].outputs)
        return pieces_of[variable, sizes]

    def multiply_out(variable: Var) -> None:
        if variable in products:
            rewritten.append(Equation("mul", _mul, products.pop(variable), (variable,)))

    for equation in graph.equations:
        (out, *_), inputs = equation.outputs, equation.inputs
        moving = [v for v in inputs if v in linear]
        fixed = [v for v in inputs if v not in linear]
        of = [products.get(v, (v, None)) for v in moving]
        shape = graph.aval(out).shape
        same_shape = all(graph.aval(v).shape == shape for v in moving)
        if not moving:
            rewritten.append(equation)
        elif equation.primitive == "mul" and len(moving) == 1 and same_shape:
            (base, factor), (by,) = of[0], fixed
            products[out] = base, by if factor is None else define("mul", [factor, by], _mul)
        elif (
            equation.primitive in SUMS
            and len(moving) == 2
            and of[0][0] == of[1][0]
            and same_shape
            and any(factor is not None for _, factor in of)
        ):
            given = [factor for _, factor in of if factor is not None]
            total = define("add", given, _add if len(given) == 2 else _add_one)
            products[out] = of[0][0], total
        elif (
            equation.primitive == "split"
            and of[0][1] is not None
            and equation.params.get("axis") == len(shape) - 1
        ):
            base, factor = of[0]
            pairs = zip(split(base, equation), split(factor, equation), strict=True)
            products |= dict(zip(equation.outputs, pairs, strict=True))
        else:
            for v in moving:
                multiply_out(v)
            rewritten.append(equation)
    for v in results:
        multiply_out(v)
    graph.equations = rewritten


def transpose_weights_once(graph: StepGraph, linear: set[Var], changing: set[Var]) -> None:
    """Transposes matrices before the loop, for products that reverse mode transposes.

    The transpose of h U is dz Uᵀ; with Uᵀ laid out once, it reaches 108 to 152 GFLOP/s.  A product
    that transposes in each step is slower.

    Args:
      graph: the graph, which is changed.
      linear: variables that depend linearly on tangents.
      changing: variables that change from step to step.
    """
    rewritten: list[Equation] = []
    transposed: dict[Var, Var] = {}
    for equation in graph.equations:
        if equation.primitive == "dot_general" and equation.outputs[0] in linear:
            (lhs, rhs), params = equation.inputs, dict(equation.params)
            ((left, right), _) = params["dimension_numbers"]
            is_weight = rhs not in changing and len(graph.aval(rhs).shape) == 2
            if is_weight and lhs in linear and len(right) == 1:
                if rhs not in transposed:
                    aval = graph.aval(rhs)
                    transposed[rhs] = graph.new(aval.shape[::-1], aval.dtype)
                    rewritten.append(Equation("transpose", _transpose, (rhs,), (transposed[rhs],)))
                params["dimension_numbers"] = ((left, (1 - right[0],)), ((), ()))
                equation = equation._replace(
                    function=equation.function._replace(params=params),
                    inputs=(lhs, transposed[rhs]),
                    params=params,
                )
        rewritten.append(equation)
    graph.equations = rewritten


def make_coefficients_finite(graph: StepGraph, linear: set[Var], changing: set[Var]) -> None:
    """Replaces coefficients of tangents that are not finite by zeros.

    A NaN or infinity then stays out of gradients that do not depend on it, such as those of the
    steps after a reset, which would otherwise receive 0 * NaN.  It adds 6 to 19 % to a training
    step of an LSTM with resets on two cores.

    Args:
      graph: the graph, which is changed.
      linear: variables that depend linearly on tangents.
      changing: variables that may hold such values.

    >>> graph = StepGraph(lambda d, x: d / x, 1.0, 0.0)
    >>> d, x = graph.inputs
    >>> make_coefficients_finite(graph, {d, graph.outputs}, {x})
    >>> float(graph.evaluate(graph.outputs, {d: 0.0, x: 0.0}))
    0.0
    """
    rewritten: list[Equation] = []
    finite: dict[tuple[Var, str], Var] = {}

    def coefficient(variable: Var, primitive: str, function: Any) -> Var:
        if (variable, primitive) not in finite:
            finite[variable, primitive] = new = graph.new_like(variable)
            rewritten.append(Equation(primitive, function, (variable,), (new,)))
        return finite[variable, primitive]

    for equation in graph.equations:
        if not linear.isdisjoint(equation.outputs):
            inputs = list(equation.inputs)
            if equation.primitive == "div" and inputs[1] not in linear:
                inputs[1] = coefficient(inputs[1], "div", _finite_reciprocal)
                equation = Equation("mul", _mul, tuple(inputs), equation.outputs)
            else:
                for n, variable in enumerate(inputs):
                    is_float = jnp.issubdtype(graph.aval(variable).dtype, jnp.floating)
                    if variable in changing and variable not in linear and is_float:
                        inputs[n] = coefficient(variable, "select_n", _finite)
                equation = equation._replace(inputs=tuple(inputs))
        rewritten.append(equation)
    graph.equations = rewritten


# ---- of a loop over the step ----


def reusable_buffers(
    graph: StepGraph, precomputed: Vars, stored: Vars, wanted: Collection[Var]
) -> dict[Var, Var]:
    """For each precomputed variable, a stored one that can overwrite it step by step.

    Both have the same shape and dtype, and the step reads the precomputed value only to compute the
    stored one.  No array is then filled with zeros first, and no block copied: a training step
    takes 0.91 to 1.0 times as long.

    >>> graph = StepGraph(lambda z, h: (h, jnp.tanh(z + h)), jnp.ones(2), jnp.ones(2))
    >>> (z, h), (_, tanh) = graph.inputs, graph.outputs
    >>> reusable_buffers(graph, [z], [h, tanh], [h, tanh]) == {z: tanh}
    True
    """
    found: dict[Var, Var] = {}
    for old in precomputed:
        dependent = graph.depending_on([old])
        for new in stored:
            same_type = graph.aval(old) == graph.aval(new)
            if not same_type or new not in dependent or new in found.values():
                continue
            others = graph.needed_for(wanted, [new])
            if not any(old in equation.inputs for equation in others):
                found[old] = new
                break
    return found


def product_over_block(
    equation: Equation, lhs: jax.Array, rhs: jax.Array, is_tangent: bool
) -> list[jax.Array] | None:
    """``[T, B, D] @ [D, H]`` as one product of ``[T * B, D]``, for arrays on one device.

    Reverse mode then contracts one axis instead of two, for which XLA would copy both operands into
    another layout.  That copy takes about a tenth of a training step.  None if the equation is
    another product, or if the batch may be sharded, since a sharded axis cannot be merged with
    time.

    Args:
      equation: a ``dot_general`` of a step's ``[B, D]`` with ``[D, H]``.
      lhs: its left operand for all steps, ``[T, B, D]``.
      rhs: its right operand, ``[D, H]``.
      is_tangent: whether ``rhs`` is a tangent.  Reverse mode then multiplies xᵀ with dz.
        XLA's CPU library (YNNPACK) is a tenth faster at it than the fallback, if xᵀ is laid out
        first.
    """
    (left, right), (batched, _) = equation.params["dimension_numbers"]
    if left != (lhs.ndim - 2,) or rhs.ndim != 2 or batched or not on_one_device(lhs, rhs):
        return None
    if is_tangent and lhs.dtype.itemsize < 4:  # for narrow types XLA lays out xᵀ only then
        return None
    rows, axis = lhs.reshape(math.prod(lhs.shape[:-1]), lhs.shape[-1]), 1
    if is_tangent and jax.default_backend() == "cpu":
        rows, axis = jax.lax.optimization_barrier(rows.T), 0
    params = {**equation.params, "dimension_numbers": (((axis,), right), ((), ()))}
    (product,) = equation.function._replace(params=params)(rows, rhs)
    return [product.reshape(*lhs.shape[:-1], *product.shape[1:])]


# ---- functions of rewritten equations ----


class ScaledTanh(NamedTuple):
    """tanh(scale z), with a number or one for each element of the last axis."""

    scale: Any

    def __call__(self, z: jax.Array) -> list[jax.Array]:
        return [jnp.tanh(z * jnp.asarray(self.scale, z.dtype))]


def _sigmoid_of_tanh(tanh: jax.Array) -> list[jax.Array]:
    return [0.5 * tanh + 0.5]


def _identity(tanh: jax.Array) -> list[jax.Array]:
    return [tanh]


def _mul(a: jax.Array, b: jax.Array) -> list[jax.Array]:
    return [a * b]


def _add(a: jax.Array, b: jax.Array) -> list[jax.Array]:
    return [a + b]


def _add_one(a: jax.Array) -> list[jax.Array]:
    return [a + 1]


def _finite(a: jax.Array) -> list[jax.Array]:
    return [jnp.where(jnp.isfinite(a), a, jnp.zeros_like(a))]


def _finite_reciprocal(a: jax.Array) -> list[jax.Array]:
    return _finite(jnp.reciprocal(a))


def _transpose(w: jax.Array) -> list[jax.Array]:
    return [w.T]
