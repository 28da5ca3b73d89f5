"""A function of arrays as a list of equations, to be computed in parts and at different times."""

import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

Name = int
Names = list[Name]

# fmt: off
CHEAP = frozenset(
    (
        "abs", "add", "add_any", "and", "broadcast_in_dim", "ceil", "clamp", "concatenate",
        "convert_element_type", "copy", "copy_p", "div", "eq", "expand_dims", "floor", "ge",
        "gt", "integer_pow", "iota", "is_finite", "le", "lt", "max", "min", "mul", "ne", "neg",
        "not", "one_minus_square", "or", "pcast", "pvary", "rem", "reshape", "rev", "select_n",
        "sign", "slice", "split", "square", "squeeze", "stop_gradient", "sub", "transpose", "xor",
    )
)
# fmt: on
"""Primitives that cost less than to store what they computed and to read it again."""

LAYOUT = frozenset(("broadcast_in_dim", "expand_dims", "iota", "reshape", "squeeze"))
"""Primitives that compute nothing."""

CURVES = frozenset(("erf", "exp", "expm1", "log", "log1p", "logistic", "sqrt", "tanh"))
"""Functions of single elements, dear, but no more so than to store and to read them."""

SUMS = ("add", "add_any")
CALLS = ("jit", "pjit", "closed_call")


class Equation(NamedTuple):
    """``outputs = function(*inputs)``, a list of them."""

    name: str
    function: Any
    inputs: tuple[Name, ...]
    outputs: tuple[Name, ...]
    params: Mapping[str, Any] = {}


class _Primitive(NamedTuple):
    """A primitive as a function of arrays."""

    primitive: Any
    params: dict[str, Any]

    def __call__(self, *arguments: Any) -> list[Any]:
        params = self.primitive.get_bind_params(self.params)
        if isinstance(params, tuple):  # until jax 0.10.1
            functions, params = params
            arguments = (*functions, *arguments)
        results = self.primitive.bind(*arguments, **params)
        return results if self.primitive.multiple_results else [results]


class _ScaledTanh(NamedTuple):
    scale: Any

    def __call__(self, z: jax.Array) -> list[jax.Array]:
        return [jnp.tanh(z * jnp.asarray(self.scale, z.dtype))]


class _Split(NamedTuple):
    sizes: list[int]

    def __call__(self, a: jax.Array) -> list[jax.Array]:
        return list(jax.lax.split(a, self.sizes, axis=a.ndim - 1))


def _half(tanh: jax.Array) -> list[jax.Array]:
    return [0.5 * tanh + 0.5]


def _same(tanh: jax.Array) -> list[jax.Array]:
    return [tanh]


class Program:
    """A function of arrays as equations between named values, calls within it written out.

    Attributes:
      inputs: names of the arguments, a tree like them.
      outputs: names of the results, a tree like them.
      closed_over: names and values of arrays that the function closes over.
      equations: in an order in which they can be computed.
      called: what :func:`lstm_jax.cells.named` called a value, with the value's name here.

    >>> program = Program(lambda a, b: (a * 2.0) + b, 1.0, 1.0)
    >>> program.evaluate(program.outputs, dict(zip(program.inputs, [1.0, 5.0])))
    Array(7., dtype=float32, weak_type=True)
    """

    def __init__(self, function: Callable[..., Any], *examples: Any):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)
        self.equations: list[Equation] = []
        self.called: dict[str, Name] = {}
        self._count = 0
        self._constants: dict[Name, Any] = {}
        self._types: dict[Name, Any] = {}
        names = {v: self._new() for v in (*closed.jaxpr.constvars, *closed.jaxpr.invars)}
        self.closed_over = {
            names[v]: value for v, value in zip(closed.jaxpr.constvars, closed.consts, strict=True)
        }
        self._types |= {name: v.aval for v, name in names.items()}
        inputs = [names[v] for v in closed.jaxpr.invars]
        self.inputs: Any = jax.tree.unflatten(jax.tree.structure(examples), inputs)
        outputs = self._write_out(closed.jaxpr, names)
        self.outputs: Any = jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    def copy(self) -> "Program":
        """One that can be rewritten, and this stays as it is."""
        other = copy.copy(self)
        other._types = dict(self._types)
        return other

    def depending_on(self, names: Iterable[Name]) -> set[Name]:
        """The values that cannot be had without those of ``names``, and these."""
        found = set(names)
        for equation in self.equations:
            if not found.isdisjoint(equation.inputs):
                found.update(equation.outputs)
        return found

    def needed_for(self, wanted: Iterable[Name], known: Iterable[Name]) -> list[Equation]:
        """The equations without which ``wanted`` cannot be computed."""
        missing, needed = set(wanted) - set(known), []
        known = set(known)
        for equation in reversed(self.equations):
            if not missing.isdisjoint(equation.outputs):
                missing.update(name for name in equation.inputs if name not in known)
                needed.append(equation)
        return needed[::-1]

    def evaluate(
        self,
        wanted: Any,
        known: Mapping[Name, Any],
        run: Callable[[Equation, list[Any]], list[Any]] = lambda e, arguments: e.function(
            *arguments
        ),
    ) -> Any:
        """A tree of values from a tree of names, computed from what is known."""
        values = {**self._constants, **self.closed_over, **known}
        for equation in self.needed_for(jax.tree.leaves(wanted), known):
            results = run(equation, [values[name] for name in equation.inputs])
            for name, result in zip(equation.outputs, results, strict=True):
                values.setdefault(name, result)
        return jax.tree.map(values.__getitem__, wanted)

    def cut(
        self, wanted: Iterable[Name], among: Set[Name], known: Iterable[Name], free: Set[str]
    ) -> Names:
        """The values to keep: those ``among`` which the way back from ``wanted`` first meets.

        A curve of something at hand, such as tanh(c), is computed again.

        Args:
          wanted: values to be had.
          among: values that can be kept.
          known: values that are at hand.
          free: primitives whose results are not worth keeping.
        """
        known = set(known)
        missing, kept = set(wanted) - known, []
        for equation in reversed(self.equations):
            hit = missing.intersection(equation.outputs)
            again = equation.name in CURVES and known.issuperset(equation.inputs)
            if hit and hit <= among and equation.name not in free and not again:
                kept += hit
            elif hit:
                missing.update(name for name in equation.inputs if name not in known)
        return kept

    def read(self, known: Collection[Name], wanted: Iterable[Name]) -> Names:
        """Those of ``known`` that are read on the way to ``wanted``, or wanted themselves.

        >>> program = Program(lambda a, b: (a * 2.0, b), 1.0, 1.0)
        >>> program.read(program.inputs, program.outputs[:1]) == [program.inputs[0]]
        True
        """
        read = {*wanted}
        read.update(name for e in self.needed_for(read, known) for name in e.inputs)
        return [name for name in known if name in read]

    def read_by(self, readers: Set[Name], wanted: Iterable[Name]) -> Names:
        """What the equations that compute ``readers`` read on the way to ``wanted``.

        >>> program = Program(lambda a, b, c: (a * b) + c, 1.0, 1.0, 1.0)
        >>> a, b, c = program.inputs
        >>> program.read_by({program.outputs}, [program.outputs])[-1] == c
        True
        """
        read = [
            name
            for equation in self.needed_for(wanted, ())
            if not readers.isdisjoint(equation.outputs)
            for name in equation.inputs
        ]
        return list(dict.fromkeys(read))

    def size(self, *names: Name) -> int:
        """The number of elements of values.

        >>> program = Program(lambda a, b: a, jnp.ones((2, 3)), 1.0)
        >>> program.size(*program.inputs)
        7
        """
        return sum(self._types[name].size for name in names)

    def places(self, early: Names, kept: Names, wanted: Collection[Name]) -> dict[Name, Name]:
        """For each early value the kept one that can be written over it, where there is one.

        It has the same shape and dtype, and whatever is wanted reads the early one, if at all, on
        the way to it alone.

        >>> program = Program(lambda z, h: (h, jnp.tanh(z + h)), jnp.ones(2), jnp.ones(2))
        >>> (z, h), (_, tanh) = program.inputs, program.outputs
        >>> program.places([z], [h, tanh], [h, tanh]) == {z: tanh}
        True
        """
        found: dict[Name, Name] = {}
        for name in early:
            later = self.depending_on([name])
            for other in kept:
                alike = self._types[name] == self._types[other]
                if not alike or other not in later or other in found.values():
                    continue
                rest = self.needed_for(wanted, [other])
                if not any(name in equation.inputs for equation in rest):
                    found[name] = other
                    break
        return found

    def sums_apart(self, late: set[Name]) -> None:
        """Writes sums of late and other values as the sum of the others plus that of the late.

        >>> program = Program(lambda a, b, c: (a + b) + c, 1.0, 1.0, 1.0)
        >>> a, b, c = program.inputs
        >>> program.sums_apart(program.depending_on([b]))
        >>> [equation.inputs == (a, c) for equation in program.equations]
        [True, False]
        """
        uses: dict[Name, int] = dict.fromkeys(jax.tree.leaves(self.outputs), 1)
        for equation in self.equations:
            for name in equation.inputs:
                uses[name] = uses.get(name, 0) + 1
        made_by = {out: equation for equation in self.equations for out in equation.outputs}

        def is_sum(name: Name) -> bool:
            return name in late and name in made_by and made_by[name].name in SUMS

        def terms(name: Name) -> Names:
            return [
                term
                for n in made_by[name].inputs
                for term in (terms(n) if is_sum(n) and uses[n] == 1 else [n])
            ]

        absorbed = {
            n
            for equation in self.equations
            if is_sum(equation.outputs[0])
            for n in equation.inputs
            if is_sum(n) and uses[n] == 1
        }
        written: list[Equation] = []
        for equation in self.equations:
            name = equation.outputs[0]
            if not is_sum(name):
                written.append(equation)
            elif name not in absorbed:
                every = terms(name)
                early, rest = ([t for t in every if (t in late) == wait] for wait in (False, True))
                totals = []
                for group in (early, rest):
                    for term in group[1:]:
                        total = self._like(name)
                        written.append(equation._replace(inputs=(group[0], term), outputs=(total,)))
                        group[0] = total
                    totals += group[:1]
                if len(totals) == 2:
                    written.append(equation._replace(inputs=tuple(totals)))
                else:  # all of it late: the last sum is the value itself
                    written[-1] = written[-1]._replace(outputs=equation.outputs)
        self.equations = written

    def factors_apart(self, linear: set[Name], results: Iterable[Name]) -> None:
        """Writes what follows linearly from a value by products as one product with a factor.

        The factors, such as the local derivatives of gates, are known without the values.

        Args:
          linear: values in which the equations that compute them are linear.
          results: values that must be there afterwards.

        >>> program = Program(lambda d, a, b: (d * a + d) * b, 1.0, 1.0, 1.0)
        >>> d, a, b = program.inputs
        >>> program.factors_apart(program.depending_on([d]), [program.outputs])
        >>> [equation.name for equation in program.equations if d in equation.inputs]
        ['mul']
        """
        written: list[Equation] = []
        products: dict[Name, tuple[Name, Name]] = {}  # a value: of what and what factor
        parts: dict[tuple[Name, Any], list[Name]] = {}

        def new(name: str, inputs: list[Name], function: Any) -> Name:
            types = [self._types[n] for n in inputs]
            shape = np.broadcast_shapes(*(t.shape for t in types))
            out = self._new()
            self._types[out] = jax.ShapeDtypeStruct(shape, jnp.result_type(*types))
            written.append(Equation(name, function, tuple(inputs), (out,)))
            return out

        def split(name: Name, equation: Equation) -> list[Name]:
            sizes = equation.params["sizes"]
            if self._types[name].shape[-1:] != (sum(sizes),):
                return [name] * len(sizes)
            if (name, sizes) not in parts:
                written.append(self._split(name, sizes))
                parts[name, sizes] = list(written[-1].outputs)
            return parts[name, sizes]

        def there(name: Name) -> Name:
            if name in products:
                written.append(Equation("mul", _product, products.pop(name), (name,)))
            return name

        for equation in self.equations:
            (name, *_), inputs = equation.outputs, equation.inputs
            moving = [n for n in inputs if n in linear]
            fixed = [n for n in inputs if n not in linear]
            of = [products.get(n, (n, None)) for n in moving]
            shape = self._types[name].shape
            alike = all(self._types[n].shape == shape for n in moving)
            if not moving:
                written.append(equation)
            elif equation.name == "mul" and len(moving) == 1 and alike:
                (base, factor), (by,) = of[0], fixed
                products[name] = base, by if factor is None else new("mul", [factor, by], _product)
            elif (
                equation.name in SUMS
                and len(moving) == 2
                and of[0][0] == of[1][0]
                and alike
                and any(factor is not None for _, factor in of)
            ):
                base = of[0][0]
                given = [factor for _, factor in of if factor is not None]
                total = new("add", given, _total if len(given) == 2 else _plus_one)
                products[name] = base, total
            elif (
                equation.name == "split"
                and of[0][1] is not None
                and equation.params.get("axis") == len(shape) - 1
            ):
                base, factor = of[0]
                pieces = zip(split(base, equation), split(factor, equation), strict=True)
                products |= dict(zip(equation.outputs, pieces, strict=True))
            else:
                for n in moving:
                    there(n)
                written.append(equation)
        for name in results:
            there(name)
        self.equations = written

    def gates_at_once(self) -> None:
        """Writes σ as tanh, and functions of parts of one array as one of the whole array.

        σ(z) = tanh(z / 2) / 2 + 1 / 2.  Where gates lie side by side, one tanh of all of them is
        faster than a σ or tanh of each.

        >>> gates = lambda z: (jax.nn.sigmoid(z[:2]), jnp.tanh(z[2:]))
        >>> program = Program(gates, jnp.arange(4.0))
        >>> program.gates_at_once()
        >>> [equation.name for equation in program.equations].count("tanh")
        1
        """
        made_by = {out: equation for equation in self.equations for out in equation.outputs}
        parts: dict[Name, list[tuple[int, int, Equation]]] = {}
        for equation in self.equations:
            if equation.name in ("logistic", "tanh"):
                whole, start, stop = self._part(equation.inputs[0], made_by)
                parts.setdefault(whole, []).append((start, stop, equation))

        where: dict[Name, Name] = {}  # a gate: the part of the tanh that it is made of
        together: dict[Name, list[Equation]] = {}  # a first gate: the tanh and its parts
        for whole, group in parts.items():
            edges = sorted({edge for start, stop, _ in group for edge in (start, stop)})
            size = self._types[whole].shape[-1] if self._types[whole].shape else 1
            # Gates apart from each other, each with one function, that leave little of the tanh
            # without use.
            apart = sum(stop - start for start, stop, _ in group) == edges[-1] - edges[0]
            if len(group) == 1 or len(edges) != len(group) + 1 or not apart:
                continue
            if 4 * (edges[-1] - edges[0]) < 3 * size:
                continue
            edges = sorted({0, size, *edges})
            scale = np.ones(size)
            for start, stop, equation in group:
                scale[start:stop] = 0.5 if equation.name == "logistic" else 1.0
            tanh = Equation("tanh", _ScaledTanh(scale), (whole,), (self._like(whole),))
            split = self._split(tanh.outputs[0], [b - a for a, b in itertools.pairwise(edges)])
            for start, _, equation in group:
                where[equation.outputs[0]] = split.outputs[edges.index(start)]
            together[group[0][2].outputs[0]] = [tanh, split]

        written: list[Equation] = []
        for equation in self.equations:
            name = equation.outputs[0]
            if name not in where and equation.name != "logistic":
                written.append(equation)
                continue
            if name not in where:
                where[name] = self._like(name)
                together[name] = [
                    Equation("tanh", _ScaledTanh(0.5), equation.inputs, (where[name],))
                ]
            written += together.get(name, [])
            gate = _half if equation.name == "logistic" else _same
            written.append(Equation("mul", gate, (where[name],), equation.outputs))
        self.equations = written

    def _part(self, name: Name, made_by: Mapping[Name, Any]) -> tuple[Name, int, int]:
        """Of what a value is a part along the last axis, and from where to where."""
        equation, shape = made_by.get(name), self._types[name].shape
        if equation is not None and equation.name in ("slice", "split"):
            (whole,) = equation.inputs
            size = self._types[whole].shape
            if equation.name == "split":
                if equation.params["axis"] == len(shape) - 1:
                    n, sizes = equation.outputs.index(name), equation.params["sizes"]
                    return whole, sum(sizes[:n]), sum(sizes[: n + 1])
            elif size[:-1] == shape[:-1] and equation.params["strides"] is None:
                start = equation.params["start_indices"][-1]
                return whole, start, equation.params["limit_indices"][-1]
        return name, 0, shape[-1] if shape else 1

    def lay_out(self, linear: set[Name], changing: set[Name]) -> None:
        """Writes products with fixed matrices so that reading them backwards needs no transpose.

        A derivative read backwards multiplies by the transpose of a matrix, which is much slower
        in every step than once, before the loop.
        """
        written: list[Equation] = []
        transposed: dict[Name, Name] = {}
        for equation in self.equations:
            if equation.name == "dot_general" and equation.outputs[0] in linear:
                (lhs, rhs), params = equation.inputs, dict(equation.params)
                ((left, right), _) = params["dimension_numbers"]
                fixed = rhs not in changing and self._types[rhs].ndim == 2
                if fixed and lhs in linear and len(right) == 1:
                    if rhs not in transposed:
                        transposed[rhs] = self._new()
                        shape, dtype = self._types[rhs].shape, self._types[rhs].dtype
                        self._types[transposed[rhs]] = jax.ShapeDtypeStruct(shape[::-1], dtype)
                        written.append(
                            Equation("transpose", _transposed, (rhs,), (transposed[rhs],))
                        )
                    params["dimension_numbers"] = ((left, (1 - right[0],)), ((), ()))
                    equation = equation._replace(
                        function=equation.function._replace(params=params),
                        inputs=(lhs, transposed[rhs]),
                        params=params,
                    )
            written.append(equation)
        self.equations = written

    def _new(self) -> Name:
        self._count += 1
        return self._count

    def _like(self, name: Name) -> Name:
        """A new name for a value like another one."""
        new = self._new()
        self._types[new] = self._types[name]
        return new

    def _split(self, whole: Name, sizes: Sequence[int]) -> Equation:
        """What splits a value into new ones along its last axis."""
        shape, dtype = self._types[whole].shape, self._types[whole].dtype
        pieces = {self._new(): jax.ShapeDtypeStruct((*shape[:-1], n), dtype) for n in sizes}
        self._types |= pieces
        return Equation("split", _Split(list(sizes)), (whole,), tuple(pieces))

    def _write_out(self, jaxpr: Any, names: dict[Any, Name]) -> Names:
        def name(atom: Any) -> Name:
            if isinstance(atom, Literal):
                new = self._new()
                self._constants[new], self._types[new] = atom.val, atom.aval
                return new
            return names[atom]

        for eqn in jaxpr.eqns:
            inputs = tuple(map(name, eqn.invars))
            if eqn.primitive.name in CALLS:
                inner = eqn.params["jaxpr"]
                inner_names = dict(zip(inner.jaxpr.invars, inputs, strict=True))
                for v, value in zip(inner.jaxpr.constvars, inner.consts, strict=True):
                    inner_names[v] = self._new()
                    self._constants[inner_names[v]] = value
                    self._types[inner_names[v]] = v.aval
                outputs = self._write_out(inner.jaxpr, inner_names)
                names.update(zip(eqn.outvars, outputs, strict=True))
            elif eqn.primitive.name == "name":
                names[eqn.outvars[0]] = self.called[eqn.params["name"]] = inputs[0]
            else:
                names.update((v, self._new()) for v in eqn.outvars)
                self._types |= {names[v]: v.aval for v in eqn.outvars}
                outputs = tuple(names[v] for v in eqn.outvars)
                function = _Primitive(eqn.primitive, eqn.params)
                self.equations.append(
                    Equation(eqn.primitive.name, function, inputs, outputs, eqn.params)
                )
        return list(map(name, jaxpr.outvars))


def _product(a: jax.Array, b: jax.Array) -> list[jax.Array]:
    return [a * b]


def _total(a: jax.Array, b: jax.Array) -> list[jax.Array]:
    return [a + b]


def _plus_one(a: jax.Array) -> list[jax.Array]:
    return [a + 1]


def _transposed(w: jax.Array) -> list[jax.Array]:
    return [w.T]


def named(names: Any, values: Any) -> dict[Name, Any]:
    """A tree of values by the names in a tree like it."""
    return dict(zip(jax.tree.leaves(names), jax.tree.leaves(values), strict=True))
