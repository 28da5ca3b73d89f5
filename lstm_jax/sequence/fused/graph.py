"""A step as a graph of equations, any part of which can be evaluated.

A :class:`StepGraph` is a jaxpr with inner calls inlined.  It answers three questions that the
fused engine asks of a step: what depends on a variable, which equations a result needs, and
which intermediate values a later computation has to have stored.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

Var = int
Vars = list[Var]

# ---- classes of primitives ----

# fmt: off
LAYOUT = frozenset(("broadcast_in_dim", "expand_dims", "iota", "reshape", "squeeze"))
"""Primitives that only rearrange or repeat elements; their results are never stored."""

CHEAP = LAYOUT | frozenset(
    (
        "abs", "add", "add_any", "and", "ceil", "clamp", "concatenate", "convert_element_type",
        "copy", "copy_p", "div", "eq", "floor", "ge", "gt", "integer_pow", "is_finite", "le",
        "lt", "max", "min", "mul", "ne", "neg", "not", "one_minus_square", "or", "pad", "pcast",
        "pvary", "reduce_precision", "rem", "reshard", "rev", "select_n", "sharding_constraint",
        "sign", "slice", "split", "square", "stop_gradient", "sub", "transpose", "xor",
    )
)
"""Primitives that cost less to compute again than to store and load."""

TRANSCENDENTAL = frozenset(
    (
        "cos", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "log", "log1p", "logistic",
        "pow", "rsqrt", "sin", "sqrt", "tanh",
    )
)
"""Functions of single elements; as expensive to compute again as to store and load."""

EXPENSIVE = frozenset(
    (
        "argmax", "argmin", "cond", "conv_general_dilated", "cumsum", "custom_jvp_call",
        "custom_vjp_call", "dot_general", "dynamic_slice", "dynamic_update_slice", "gather",
        "random_bits", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod",
        "reduce_sum", "scan", "scatter", "scatter-add", "sort", "threefry2x32", "while",
    )
)
"""Primitives that cost more to compute again than to store and load: products, sums, loops."""
# fmt: on

SUMS = ("add", "add_any")
CALLS = ("jit", "pjit", "closed_call")


class Equation(NamedTuple):
    """``outputs = function(*inputs)``.

    Attributes:
      primitive: name of the JAX primitive.
      function: takes an array for each input and returns a list with one for each output.
      inputs: variables that it reads.
      outputs: variables that it defines.
      params: the primitive's parameters.
    """

    primitive: str
    function: Any
    inputs: tuple[Var, ...]
    outputs: tuple[Var, ...]
    params: Mapping[str, Any] = {}


class PrimitiveCall(NamedTuple):
    """A primitive with its parameters, as the function of an :class:`Equation`.

    Attributes:
      primitive: the JAX primitive.
      params: its parameters.
      mesh: the mesh in whose context the primitive runs; None for the context of the caller.
        (``jax.sharding.auto_axes``, which ``jnp.repeat`` uses, changes the context.)
    """

    primitive: Any
    params: dict[str, Any]
    mesh: Any = None

    def __call__(self, *arguments: Any) -> list[Any]:
        if self.mesh is not None:
            with jax.sharding.use_abstract_mesh(self.mesh):
                return self._replace(mesh=None)(*arguments)
        params = self.primitive.get_bind_params(self.params)
        if isinstance(params, tuple):  # until jax 0.10.1
            functions, params = params
            arguments = (*functions, *arguments)
        results = self.primitive.bind(*arguments, **params)
        return results if self.primitive.multiple_results else [results]


class Split(NamedTuple):
    """``jax.lax.split`` along the last axis, as the function of an :class:`Equation`."""

    sizes: list[int]

    def __call__(self, a: jax.Array) -> list[jax.Array]:
        return list(jax.lax.split(a, self.sizes, axis=a.ndim - 1))


def _call(equation: Equation, arguments: list[Any]) -> list[Any]:
    return equation.function(*arguments)


class StepGraph:
    """The equations of a function, in an order in which they can be evaluated.

    A jaxpr with inner calls inlined.  Variables are integers; each is defined once.

    Attributes:
      inputs: variables of the arguments, in a pytree like them.
      outputs: variables of the results, in a pytree like them.
      consts: values of the arrays that the function closes over, by variable.
      equations: topologically sorted.
      labels: the variable of each value that :func:`lstm_jax.cells.named` labels.

    >>> graph = StepGraph(lambda a, b: (a * 2.0) + b, 1.0, 1.0)
    >>> graph.evaluate(graph.outputs, bind(graph.inputs, [1.0, 5.0]))
    Array(7., dtype=float32, weak_type=True)
    """

    def __init__(self, function: Callable[..., Any], *examples: Any):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)
        self.equations: list[Equation] = []
        self.labels: dict[str, Var] = {}
        self._count = 0
        self._literals: dict[Var, Any] = {}
        self._avals: dict[Var, Any] = {}
        variables = {v: self._new() for v in (*closed.jaxpr.constvars, *closed.jaxpr.invars)}
        self.consts = {
            variables[v]: value
            for v, value in zip(closed.jaxpr.constvars, closed.consts, strict=True)
        }
        self._avals |= {variable: v.aval for v, variable in variables.items()}
        inputs = [variables[v] for v in closed.jaxpr.invars]
        self.inputs: Any = jax.tree.unflatten(jax.tree.structure(examples), inputs)
        outputs = self._inline(closed.jaxpr, variables)
        self.outputs: Any = jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    def copy(self) -> "StepGraph":
        """A copy whose equations can be rewritten without changing this graph."""
        other = copy.copy(self)
        other._avals = dict(self._avals)
        return other

    # ---- dependencies ----

    def depending_on(self, variables: Iterable[Var]) -> set[Var]:
        """``variables`` and everything computed from them."""
        found = set(variables)
        for equation in self.equations:
            if not found.isdisjoint(equation.inputs):
                found.update(equation.outputs)
        return found

    def needed_for(self, wanted: Iterable[Var], known: Iterable[Var]) -> list[Equation]:
        """The equations that compute ``wanted`` from ``known``."""
        missing, needed = set(wanted) - set(known), []
        known = set(known)
        for equation in reversed(self.equations):
            if not missing.isdisjoint(equation.outputs):
                missing.update(v for v in equation.inputs if v not in known)
                needed.append(equation)
        return needed[::-1]

    def read(self, known: Collection[Var], wanted: Iterable[Var]) -> Vars:
        """The variables among ``known`` that computing ``wanted`` reads.

        >>> graph = StepGraph(lambda a, b: (a * 2.0, b), 1.0, 1.0)
        >>> graph.read(graph.inputs, graph.outputs[:1]) == [graph.inputs[0]]
        True
        """
        read = {*wanted}
        read.update(v for e in self.needed_for(read, known) for v in e.inputs)
        return [v for v in known if v in read]

    def read_by(self, readers: Set[Var], wanted: Iterable[Var]) -> Vars:
        """The inputs of the equations that compute ``wanted`` and define some of ``readers``.

        >>> graph = StepGraph(lambda a, b, c: (a * b) + c, 1.0, 1.0, 1.0)
        >>> a, b, c = graph.inputs
        >>> graph.read_by({graph.outputs}, [graph.outputs])[-1] == c
        True
        """
        read = [
            v
            for equation in self.needed_for(wanted, ())
            if not readers.isdisjoint(equation.outputs)
            for v in equation.inputs
        ]
        return list(dict.fromkeys(read))

    def minimal_cut(
        self, wanted: Iterable[Var], among: Set[Var], known: Iterable[Var], free: Set[str]
    ) -> Vars:
        """The variables to store so that ``wanted`` can be recomputed cheaply.

        Walks back from ``wanted`` and stops at the first variable that may be stored and is
        not the result of a free primitive.  A transcendental function of known values, such
        as tanh(c), is recomputed.

        Args:
          wanted: variables to be computed later.
          among: variables that may be stored.
          known: variables whose values will be available anyway.
          free: primitives whose results are recomputed rather than stored.
        """
        known = set(known)
        missing, stored = set(wanted) - known, []
        for equation in reversed(self.equations):
            hit = missing.intersection(equation.outputs)
            again = equation.primitive in TRANSCENDENTAL and known.issuperset(equation.inputs)
            if hit and hit <= among and equation.primitive not in free and not again:
                stored += hit
            elif hit:
                missing.update(v for v in equation.inputs if v not in known)
        return stored

    # ---- evaluation ----

    def evaluate(
        self,
        wanted: Any,
        known: Mapping[Var, Any],
        run: Callable[[Equation, list[Any]], list[Any]] = _call,
    ) -> Any:
        """Values for a pytree of variables, computed from known ones.

        Args:
          wanted: a pytree of variables.
          known: values by variable.
          run: evaluates one equation on its arguments.
        """
        values = {**self._literals, **self.consts, **known}
        for equation in self.needed_for(jax.tree.leaves(wanted), known):
            results = run(equation, [values[v] for v in equation.inputs])
            for variable, result in zip(equation.outputs, results, strict=True):
                values.setdefault(variable, result)
        return jax.tree.map(values.__getitem__, wanted)

    # ---- types and new variables, for rewrites ----

    def aval(self, variable: Var) -> Any:
        """Shape and dtype of a variable."""
        return self._avals[variable]

    def size(self, *variables: Var) -> int:
        """The total number of elements of variables.

        >>> graph = StepGraph(lambda a, b: a, jax.numpy.ones((2, 3)), 1.0)
        >>> graph.size(*graph.inputs)
        7
        """
        return sum(self._avals[v].size for v in variables)

    def defined_by(self) -> dict[Var, Equation]:
        """The equation that defines each variable."""
        return {v: equation for equation in self.equations for v in equation.outputs}

    def new(self, shape: Sequence[int], dtype: Any) -> Var:
        """A new variable."""
        variable = self._new()
        self._avals[variable] = jax.ShapeDtypeStruct(tuple(shape), dtype)
        return variable

    def new_like(self, variable: Var) -> Var:
        """A new variable with the shape and dtype of another."""
        new = self._new()
        self._avals[new] = self._avals[variable]
        return new

    def new_split(self, variable: Var, sizes: Sequence[int]) -> Equation:
        """An equation that splits a variable into new ones along its last axis."""
        aval = self._avals[variable]
        pieces = tuple(self.new((*aval.shape[:-1], n), aval.dtype) for n in sizes)
        return Equation("split", Split(list(sizes)), (variable,), pieces)

    def _new(self) -> Var:
        self._count += 1
        return self._count

    def _inline(self, jaxpr: Any, variables: dict[Any, Var]) -> Vars:
        """Appends a jaxpr's equations, and returns the variables of its results."""

        def variable(atom: Any) -> Var:
            if isinstance(atom, Literal):
                new = self._new()
                self._literals[new], self._avals[new] = atom.val, atom.aval
                return new
            return variables[atom]

        for eqn in jaxpr.eqns:
            inputs = tuple(map(variable, eqn.invars))
            if eqn.primitive.name in CALLS:
                inner = eqn.params["jaxpr"]
                inner_variables = dict(zip(inner.jaxpr.invars, inputs, strict=True))
                for v, value in zip(inner.jaxpr.constvars, inner.consts, strict=True):
                    inner_variables[v] = self._new()
                    self._literals[inner_variables[v]] = value
                    self._avals[inner_variables[v]] = v.aval
                outputs = self._inline(inner.jaxpr, inner_variables)
                variables.update(zip(eqn.outvars, outputs, strict=True))
            elif eqn.primitive.name == "name":
                variables[eqn.outvars[0]] = self.labels[eqn.params["name"]] = inputs[0]
            else:
                variables.update((v, self._new()) for v in eqn.outvars)
                self._avals |= {variables[v]: v.aval for v in eqn.outvars}
                outputs = tuple(variables[v] for v in eqn.outvars)
                mesh = eqn.ctx.cur_abstract_mesh
                mesh = None if mesh == jax.sharding.get_abstract_mesh() else mesh
                function = PrimitiveCall(eqn.primitive, eqn.params, mesh)
                self.equations.append(
                    Equation(eqn.primitive.name, function, inputs, outputs, eqn.params)
                )
        return list(map(variable, jaxpr.outvars))


def bind(variables: Any, values: Any) -> dict[Var, Any]:
    """Values by variable, from a pytree of variables and one of values.

    >>> bind([1, 2], ["a", "b"])
    {1: 'a', 2: 'b'}
    """
    return dict(zip(jax.tree.leaves(variables), jax.tree.leaves(values), strict=True))
