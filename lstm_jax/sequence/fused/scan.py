"""A scan whose derivative computes the gradients of parameters outside its loop.

``fused_scan(f, init, xs)`` equals ``jax.lax.scan(f, init, xs)`` and differentiates faster.  The
derivative of a step is linear in three arguments,

    ds_t = J_s ds_{t-1} + (J_p dp + J_x dx_t),

and only the first depends on the previous step.  The bracket is therefore precomputed for a block
of steps at once.  In reverse mode, the loop then carries only the gradient of the state, and the
gradients of parameters and inputs are one product for a whole block.  In the same way, everything
in the step that is independent of the carry is precomputed.  The step's jaxpr determines which
equations these are, so that any step is supported.

All of this is one ``jax.custom_jvp`` rule that consists of plain scans, from which every transform
follows.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.sequence.fused import rewrites
from lstm_jax.sequence.fused.graph import CHEAP, LAYOUT, Equation, StepGraph, Var, Vars, bind
from lstm_jax.sequence.shardings import has_all_cores, on_one_device

Leaves = list[Any]


class ScanConfig(NamedTuple):
    """How a sequence is run.

    Attributes:
      num_steps: T.
      block: steps in a block; the last block may be shorter.
      reverse: whether time runs backwards.
      save_residuals: whether intermediate values that are expensive to recompute are stored for
        the derivative.
      offload: whether stored values stay in host memory until the derivative needs them.
    """

    num_steps: int
    block: int
    reverse: bool
    save_residuals: bool
    offload: bool


def fused_scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any,
    *,
    reverse: bool = False,
    block: int | None = None,
    save_residuals: bool = True,
    offload: bool = False,
    finite_coefficients: bool = False,
) -> tuple[Any, Any]:
    """``jax.lax.scan(f, init, xs, reverse=reverse)`` with a faster derivative.

    Args:
      f: one step, ``(carry, x) -> (carry, y)``; arrays that it closes over have gradients, too.
      init: the first carry.
      xs: a pytree of arrays with time as their first axis, at least one step long.
      reverse: whether time runs backwards.
      block: steps in a block; None for :func:`block_size`.
      save_residuals: whether intermediate values that are expensive to recompute are stored for
        the derivative.  If not, only carries are stored, and the rest is recomputed for one
        block at a time.
      offload: whether stored values stay in host memory (without second derivatives).
      finite_coefficients: whether local derivatives that are not finite count as zero.

    Returns:
      ``(carry, ys)``.

    >>> import jax.numpy as jnp
    >>> fused_scan(lambda total, x: (total + x, total), jnp.zeros(()), jnp.arange(4.0))
    (Array(6., dtype=float32), Array([0., 0., 1., 3.], dtype=float32))
    """
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    graph, y_tree = _step_graph(f, init, first)
    init_leaves, carry_tree = jax.tree.flatten(init)
    x_leaves = jax.tree.leaves(xs)
    num_steps = len(x_leaves[0])
    if block is None:
        block = block_size(num_steps, init_leaves)
        # What is recomputed for a block needs memory, too: eight blocks need less in total than
        # stored residuals, and below two steps in a block nothing is gained (measured).
        save_residuals = save_residuals or num_steps < 16
        if not save_residuals:
            block = min(block, num_steps // 8)
    block = min(block, num_steps)
    config = ScanConfig(num_steps, block, reverse, save_residuals, offload)
    run = _with_rule(graph, config, finite_coefficients)
    consts = [jnp.asarray(value) for value in graph.consts.values()]
    graph.consts = dict.fromkeys(graph.consts)  # the rule outlives these tracers
    carry, ys = run(consts, init_leaves, x_leaves)
    return carry_tree.unflatten(carry), jax.tree.unflatten(y_tree, ys)


def stored_values(f: Callable[[Any, Any], tuple[Any, Any]], carry: Any, x: Any) -> Leaves:
    """What :func:`fused_scan` stores for one step so that it can be differentiated.

    >>> import jax.numpy as jnp
    >>> step = lambda c, x: (jnp.tanh(c * jnp.sin(x)), c)
    >>> [value.shape for value in stored_values(step, jnp.zeros(2), jnp.zeros(2))]
    [(2,), (2,)]
    """
    graph, _ = _step_graph(f, carry, x)
    leaves, x_leaves = jax.tree.leaves(carry), jax.tree.leaves(x)
    consts = list(graph.consts.values())
    values = [consts, leaves, x_leaves]
    floats = [[_is_float(leaf) for leaf in group] for group in values]
    step = linearize(graph, consts, leaves, x_leaves, floats)
    body = step.body
    stored = dict.fromkeys([*body.new_carry, *body.y, *step.residuals()])
    return body.graph.evaluate(list(stored), bind([body.consts, body.carry, body.x], values))


def _step_graph(
    f: Callable[[Any, Any], tuple[Any, Any]], carry: Any, x: Any
) -> tuple[StepGraph, Any]:
    """A step on lists of leaves as a graph, and the structure of its output."""
    (carry_leaves, carry_tree), (x_leaves, x_tree) = map(jax.tree.flatten, (carry, x))
    y_tree: Any = None

    def step(carry: Leaves, x: Leaves) -> tuple[Leaves, Leaves]:
        nonlocal y_tree
        new_carry, y = f(carry_tree.unflatten(carry), x_tree.unflatten(x))
        y_leaves, y_tree = jax.tree.flatten(y)
        return carry_tree.flatten_up_to(new_carry), y_leaves

    graph = StepGraph(step, carry_leaves, x_leaves)
    rewrites.merge_gates(graph)
    return graph, y_tree


SMALL = 2**18
"""Elements of a state, summed over all steps, up to which one block is fastest (measured)."""


def block_size(num_steps: int, carry: Leaves) -> int:
    """Steps in a block: all steps of a small sequence, otherwise about 512 rows (T times B).

    A block's products are then large, while its operands still fit in the cache.  A divisor of T
    is preferred, so that no shorter block remains.

    >>> import jax.numpy as jnp
    >>> block_size(100, [jnp.zeros((32, 512))]), block_size(97, [jnp.zeros((32, 512))])
    (20, 16)
    """
    rows = max((math.prod(leaf.shape[:-1]) for leaf in carry), default=1)
    if num_steps * max((leaf.size for leaf in carry), default=1) <= SMALL:
        return num_steps
    wanted = min(num_steps, max(8, 512 // rows))
    divisors = [n for n in range(-(-wanted // 2), 2 * wanted + 1) if num_steps % n == 0]
    return min(divisors, key=lambda n: abs(math.log(n / wanted)), default=wanted)


def _with_rule(
    graph: StepGraph, config: ScanConfig, finite_coefficients: bool
) -> Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]:
    """The function ``(consts, init, xs) -> (carry, ys)`` with its ``custom_jvp`` rule."""

    plain = LoopBody(graph, list(graph.consts), *graph.inputs, *graph.outputs)

    @jax.custom_jvp
    def run(consts: Leaves, init: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
        carry, chunks = scan_values(plain, config, consts, init, xs, plain.y)
        return carry, sequences(chunks, plain.y)

    def rule(primals: Any, tangents: Any) -> Any:
        consts, init, xs = primals
        nonzero = [[not _is_zero(tangent) for tangent in group] for group in tangents]
        nonzero[1] = [_is_float(leaf) for leaf in init]  # zero only before the first step
        step = linearize(graph, consts, init, [leaf[0] for leaf in xs], nonzero)
        if has_all_cores(*init, *xs) and not step.mixes_values_and_tangents():
            step = step.with_factors()
        if finite_coefficients:
            step = step.with_finite_coefficients()

        body, residuals = step.body, step.residuals()
        if step.mixes_values_and_tangents():
            body, residuals = plain, []
        store = [*body.y, *body.new_carry, *(residuals if config.save_residuals else [])]
        carry, chunks = scan_values(body, config, consts, init, xs, store)
        ys = sequences(chunks, body.y)

        d_consts, d_init, d_xs = tangents
        d_init = [
            jnp.zeros_like(a) if _is_zero(d) else d for a, d in zip(init, d_init, strict=True)
        ]
        given = _selected([d_consts, d_init, d_xs], nonzero)
        d_carry, d_ys = scan_tangents(
            step, config, consts, xs, chunks, body.new_carry, residuals, given
        )
        return (carry, ys), (_with_float0(carry, d_carry), _with_float0(ys, d_ys))

    run.defjvp(rule, symbolic_zeros=True)
    return run


# ---- values ----


class LoopBody(NamedTuple):
    """A step graph as the body of a loop.

    Attributes:
      graph: the equations.
      consts: variables that are the same in every step.
      carry: variables that the previous step passes on.
      x: variables of this step's input.
      new_carry: variables of the carry that the step returns.
      y: variables of its output.
    """

    graph: StepGraph
    consts: Vars
    carry: Vars
    x: Vars
    new_carry: Vars
    y: Vars

    def changing(self) -> set[Var]:
        """The variables that may differ from step to step."""
        return self.graph.depending_on([*self.carry, *self.x])

    def loop_invariants(self, consts: Leaves, wanted: Iterable[Var]) -> dict[Var, Any]:
        """The values needed for ``wanted`` that are the same in every step."""
        known = bind(self.consts, consts)
        defined = {v for equation in self.graph.equations for v in equation.outputs}
        invariant = self.graph.minimal_cut(wanted, defined - self.changing(), self.consts, LAYOUT)
        return known | bind(invariant, self.graph.evaluate(invariant, known))

    def precomputed(self, wanted: Iterable[Var]) -> Vars:
        """The variables, independent of the carry, to compute for many steps before the loop.

        These are the ``wanted`` ones, and for the loop either the values that are expensive to
        recompute or those that the loop reads directly, whichever have fewer elements.  (A
        normalised array is smaller than the array, its mean and its deviation.)
        """
        graph = self.graph
        carry_dependent = graph.depending_on(self.carry)
        independent = self.changing() - carry_dependent - {*self.x}
        in_loop = [v for v in wanted if v in carry_dependent]
        read = [v for v in graph.read_by(carry_dependent, in_loop) if v in independent]
        expensive = self.expensive(in_loop, (), carry_dependent)
        smaller = min(expensive, read, key=lambda variables: graph.size(*variables))
        return list(dict.fromkeys([*smaller, *(v for v in wanted if v in independent)]))

    def expensive(
        self,
        wanted: Iterable[Var],
        known: Iterable[Var],
        carry_dependent: frozenset[Var] | set[Var] = frozenset(),
    ) -> Vars:
        """Values needed for ``wanted`` that change every step and are expensive to recompute.

        Args:
          wanted: variables to be computed later.
          known: variables whose values will be available, besides arguments.
          carry_dependent: variables that are excluded.
        """
        known = {*self.consts, *self.carry, *self.x, *known}
        return self.graph.minimal_cut(wanted, self.changing() - carry_dependent, known, CHEAP)


def scan_values(
    body: LoopBody, config: ScanConfig, consts: Leaves, init: Leaves, xs: Leaves, store: Vars
) -> tuple[Leaves, list[Any]]:
    """Runs the loop and stores the values of ``store`` for every step.

    Returns:
      ``(carry, chunks)``: the last carry, and for each chunk of blocks the stored values by
      variable and the carries before the first step of each block.
    """
    graph = body.graph
    wanted = {v: v for v in (*body.new_carry, *store)}
    precomputed = body.precomputed(wanted)
    before_loop = [v for v in store if v in {*precomputed, *body.x}]
    in_loop = [v for v in store if v not in (*before_loop, *body.new_carry, *body.y)]
    read_once = [v for v in precomputed if v not in before_loop]
    reused = {} if config.offload else rewrites.reusable_buffers(graph, read_once, in_loop, wanted)

    def step(known: Mapping[Var, Any], carry: Leaves, inputs: Any) -> Any:
        results = graph.evaluate(wanted, {**known, **bind(body.carry, carry), **inputs})
        stored = {v: results[v] for v in store if v not in before_loop}
        return [results[v] for v in body.new_carry], stored

    def step_inputs(known: Mapping[Var, Any], xs: Leaves) -> dict[Var, Any]:
        inputs = bind(body.x, xs)
        return inputs | evaluate_block(graph, precomputed, known, inputs)

    def by_blocks(
        consts: Leaves, init: Leaves, xs: Leaves, scan: Any = jax.lax.scan
    ) -> tuple[Leaves, list[Any]]:
        known = body.loop_invariants(consts, wanted)

        def block(carry: Leaves, xs: Leaves) -> Any:
            inputs = step_inputs(known, xs)
            end, stored = scan(
                functools.partial(step, known), carry, inputs, reverse=config.reverse
            )
            stored |= {v: inputs[v] for v in before_loop}
            if config.offload:
                moved = {v: a for v, a in stored.items() if v not in body.y}
                stored |= jax.device_put(moved, jax.memory.Space.Host)
            return end, (stored, carry)

        return over_blocks(block, init, in_blocks(xs, config), config, scan)

    @jax.custom_jvp
    def run(consts: Leaves, init: Leaves, xs: Leaves) -> tuple[Leaves, list[Any]]:
        if not reused or len(reused) < len(read_once):
            return by_blocks(consts, init, xs, scan_stacking_bits)
        known = body.loop_invariants(consts, wanted)
        inputs = step_inputs(known, xs)
        carry, stored = scan_in_place(functools.partial(step, known), init, inputs, reused, config)
        stored |= {v: inputs[v] for v in before_loop}
        return carry, in_chunks(stored, init, body.new_carry, config)

    # To differentiate values that are overwritten, JAX would have to copy them; bits have no
    # derivative.
    run.defjvp(functools.partial(jax.jvp, by_blocks))
    return run(consts, init, xs)


def scan_in_place(
    step: Callable[[Leaves, Any], tuple[Leaves, dict[Var, Any]]],
    init: Leaves,
    inputs: dict[Var, Any],
    reused: Mapping[Var, Var],
    config: ScanConfig,
) -> tuple[Leaves, dict[Var, Any]]:
    """A scan in which stored values overwrite the precomputed values that they are computed from.

    A scan's own output would be filled with zeros first, and each block's copied into it; on a
    CPU both take as long as writing the values.

    Args:
      step: one step, ``(carry, inputs) -> (carry, stored)``.
      init: the first carry.
      inputs: what the steps read, by variable; time is the first axis.
      reused: for each precomputed variable the stored one that overwrites it.
      config: how the sequence is run.

    Returns:
      The last carry, and the stored values by variable.
    """
    buffers = {new: inputs[old] for old, new in reused.items()}
    others = {v: a for v, a in inputs.items() if v not in reused}

    def body(state: Any, now: Any) -> Any:
        (carry, buffers), (t, inputs) = state, now
        here = {
            old: jax.lax.dynamic_index_in_dim(
                buffers[new], t, 0, False, allow_negative_indices=False
            )
            for old, new in reused.items()
        }
        carry, stored = step(carry, {**inputs, **here})
        buffers = {
            v: jax.lax.dynamic_update_index_in_dim(
                buffer, stored.pop(v), t, 0, allow_negative_indices=False
            )
            for v, buffer in buffers.items()
        }
        return (carry, buffers), stored

    steps = (jnp.arange(config.num_steps), others)
    (carry, buffers), stored = scan_stacking_bits(
        body, (init, buffers), steps, reverse=config.reverse
    )
    return carry, {**stored, **buffers}


def scan_stacking_bits(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, *, reverse: bool
) -> tuple[Any, Any]:
    """``jax.lax.scan`` that, on a CPU, stacks outputs of narrow types as integers.

    XLA's CPU compiler has no update in place for narrow floating types: to write one step, it
    widens the whole stack and narrows it again, so that the time grows with the square of T.
    Integers have no derivative.
    """
    return _scan_stacking(body, carry, xs, reverse, _bits, _from_bits)


def scan_stacking_float32(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, *, reverse: bool
) -> tuple[Any, Any]:
    """As :func:`scan_stacking_bits`, in float32, which has a derivative and needs more memory.

    >>> body = lambda total, x: (total + x, total)
    >>> zero = jnp.zeros((), "bfloat16")
    >>> scan_stacking_float32(body, zero, jnp.ones(3, "bfloat16"), reverse=False)[1]
    Array([0, 1, 2], dtype=bfloat16)
    """
    return _scan_stacking(body, carry, xs, reverse, _in_float32, _narrowed)


def _scan_stacking(
    body: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any,
    reverse: bool,
    stored: Callable[[jax.Array], jax.Array],
    restored: Callable[[jax.Array, Any], jax.Array],
) -> tuple[Any, Any]:
    """``jax.lax.scan`` that, on a CPU, converts outputs before it stacks them, and back after."""
    if jax.default_backend() != "cpu":
        return jax.lax.scan(body, carry, xs, reverse=reverse)
    types: Any = None  # not the outputs themselves, which are tracers of the step

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        nonlocal types
        carry, outputs = body(carry, x)
        types = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), outputs)
        return carry, jax.tree.map(stored, outputs)

    carry, stacks = jax.lax.scan(step, carry, xs, reverse=reverse)
    return carry, jax.tree.map(restored, stacks, types)


def _in_float32(array: jax.Array) -> jax.Array:
    """An array of a narrow type in float32, others as they are."""
    return array.astype(jnp.float32) if _is_narrow(array) else array


def _narrowed(array: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    """The array of which ``array`` is :func:`_in_float32`, in the type of ``like``."""
    return array.astype(like.dtype) if _is_narrow(like) else array


def _bits(array: jax.Array) -> jax.Array:
    """An array of a narrow type as integers, others as they are."""
    if not _is_narrow(array):
        return array
    return jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")


def _from_bits(array: jax.Array, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """The array of which ``array`` is :func:`_bits`, in the type of ``like``."""
    return jax.lax.bitcast_convert_type(array, like.dtype) if _is_narrow(like) else array


class _Pair(NamedTuple):
    """A stack that a loop reads, and the same as integers."""

    bits: jax.Array
    array: jax.Array


def _with_bits(array: jax.Array) -> Any:
    """A stack for a loop to read, which for a narrow type XLA's CPU compiler would widen first."""
    return _Pair(_bits(array), array) if _is_narrow(array) else array


def _is_pair(leaf: Any) -> bool:
    return isinstance(leaf, _Pair)


def _value(leaf: Any) -> jax.Array:
    """What the loop reads of :func:`_with_bits`: the integers, unless it is differentiated."""
    return _read(*leaf) if _is_pair(leaf) else leaf


@jax.custom_jvp
def _read(bits: jax.Array, array: jax.Array) -> jax.Array:
    return _from_bits(bits, array)


_read.defjvp(lambda primals, tangents: (_read(*primals), tangents[1]))


def in_chunks(
    stored: dict[Var, Any], init: Leaves, new_carry: Vars, config: ScanConfig
) -> list[Any]:
    """Stored sequences as chunks, with the carries before the first step of each block."""
    block = config.block
    starts = [
        jnp.concatenate(
            [stored[v][block::block], first[None]]
            if config.reverse
            else [first[None], stored[v][block - 1 : -1 : block]]
        )
        for v, first in zip(new_carry, init, strict=True)
    ]
    count = config.num_steps // block
    parts = [[a[:count] for a in starts], [a[count:] for a in starts]]
    chunks = in_blocks(stored, config)
    return list(zip(chunks, parts[: len(chunks)], strict=True))


# ---- derivatives ----


class LinearizedStep(NamedTuple):
    """A step with its derivative.

    Attributes:
      body: the step; its graph also computes the derivative.
      tangents_in: variables of the nonzero tangents of consts, carry and x.
      tangents_out: variables of the tangents of the new carry and of y.
      has_factors: whether :func:`factor_out_products` has been applied.
    """

    body: LoopBody
    tangents_in: list[Vars]
    tangents_out: tuple[Vars, Vars]
    has_factors: bool = False

    def tangents(self) -> set[Var]:
        """Every variable that is linear in the tangents."""
        return self.body.graph.depending_on(jax.tree.leaves(self.tangents_in))

    def carry_tangents(self) -> set[Var]:
        """The tangents that depend on the carry's tangent, and so on the previous step."""
        return self.body.graph.depending_on(self.tangents_in[1])

    def read_by(self, readers: set[Var], among: Callable[[Var], bool]) -> Vars:
        """The results, and the variables that ``readers`` are computed from, if in ``among``."""
        results = [*self.tangents_out[0], *self.tangents_out[1]]
        read = [*self.body.graph.read_by(readers, results), *results]
        return [v for v in dict.fromkeys(read) if among(v)]

    def coefficients(self) -> Vars:
        """The values, different in each step, by which the loop multiplies the carry's tangent."""
        changing = self.body.changing() - self.tangents()
        return self.read_by(self.carry_tangents(), changing.__contains__)

    def with_factors(self) -> "LinearizedStep":
        """This step with products factored out, unless the loop would then read more."""
        body = self.body
        graph = body.graph.copy()
        results = [*self.tangents_out[0], *self.tangents_out[1]]
        rewrites.factor_out_products(graph, self.carry_tangents(), results)
        factored = self._replace(body=body._replace(graph=graph), has_factors=True)
        read = self.coefficients()
        stored = [*body.carry, *body.x, *body.new_carry, *body.expensive(read, body.new_carry)]
        before = body.graph.read(stored, read)
        return factored if graph.size(*factored.coefficients()) <= graph.size(*before) else self

    def with_finite_coefficients(self) -> "LinearizedStep":
        """This step, with coefficients that are not finite replaced by zeros."""
        graph = self.body.graph.copy()
        rewrites.make_coefficients_finite(graph, self.tangents(), self.body.changing())
        return self._replace(body=self.body._replace(graph=graph))

    def mixes_values_and_tangents(self) -> bool:
        """Whether an equation, such as a loop in the step, computes both at once."""
        return not self.tangents().isdisjoint([*self.body.new_carry, *self.body.y])

    def residuals(self) -> Vars:
        """The values to store for the derivative, besides carries and inputs."""
        tangents = self.tangents()
        needed = self.read_by(tangents, lambda v: v not in tangents)
        return self.body.expensive(needed, self.body.new_carry)


def linearize(
    graph: StepGraph, consts: Leaves, init: Leaves, x: Leaves, nonzero: list[list[bool]]
) -> LinearizedStep:
    """A step with its derivative by the arguments whose tangents are ``nonzero``."""
    arguments = [list(graph.consts), *graph.inputs]
    values = [consts, init, x]

    def step(values: list[Leaves], tangents: list[Leaves]) -> Any:
        def outputs(differentiated: list[Leaves]) -> Any:
            known = bind(arguments, values) | bind(_selected(arguments, nonzero), differentiated)
            new_carry, y = graph.evaluate(graph.outputs, known)
            floats = [list(filter(_is_float, new_carry)), list(filter(_is_float, y))]
            return floats, (new_carry, y)

        differentiated = (_selected(values, nonzero),)
        _, d_out, out = jax.jvp(outputs, differentiated, (tangents,), has_aux=True)
        return out, d_out

    both = StepGraph(step, values, _selected(values, nonzero))
    ((consts_, carry, x_), tangents_in), ((new_carry, y), tangents_out) = both.inputs, both.outputs
    rewrites.separate_sums(both, both.depending_on(tangents_in[1]))
    rewrites.transpose_weights_once(
        both,
        linear=both.depending_on(jax.tree.leaves(tangents_in)),
        changing=both.depending_on(jax.tree.leaves([carry, x_, tangents_in])),
    )
    return LinearizedStep(
        LoopBody(both, consts_, carry, x_, new_carry, y), tangents_in, tangents_out
    )


def scan_tangents(
    step: LinearizedStep,
    config: ScanConfig,
    consts: Leaves,
    xs: Leaves,
    chunks: list[Any],
    new_carry: Vars,
    residuals: Vars,
    tangents: list[Leaves],
) -> tuple[Leaves, Leaves]:
    """Tangents of the last carry and of ys, linear in the nonzero ``tangents``.

    ``chunks`` are those of :func:`scan_values`, which stored carries as ``new_carry``.
    """
    body, graph = step.body, step.body.graph
    linear, carry_dependent = step.tangents(), step.carry_tangents()
    known = body.loop_invariants(consts, step.read_by(linear, lambda v: v not in linear))
    precomputed = step.read_by(carry_dependent, lambda v: v in linear and v not in carry_dependent)
    d_consts, d_init, d_xs = tangents
    x_types = [d.dtype for d in d_xs]
    if jax.default_backend() == "cpu":  # their cotangents are stacked: see scan_stacking_bits
        d_xs = list(map(_in_float32, d_xs))

    def one_step(d_carry: Leaves, inputs: Any) -> Any:
        values = {**known, **inputs, **bind(step.tangents_in[1], d_carry)}
        return graph.evaluate(step.tangents_out, values)

    def block(d_carry: Leaves, inputs: Any) -> Any:
        chunk, d_xs = inputs
        (stored, start), xs = jax.tree.map(_value, chunk, is_leaf=_is_pair)
        d_xs = [d.astype(dtype) for d, dtype in zip(d_xs, x_types, strict=True)]
        if config.offload:
            stored = jax.device_put(stored, jax.memory.Space.Device)
        after = [stored[v] for v in new_carry]
        before = [_shifted(a, b, config.reverse) for a, b in zip(start, after, strict=True)]
        steps = bind([body.carry, body.x, body.new_carry], [before, xs, after])
        if config.save_residuals:
            steps |= {v: stored[v] for v in residuals}
        else:
            steps |= evaluate_block(graph, residuals, known, steps)
        d_known = {**known, **bind(step.tangents_in[0], d_consts)}
        d_steps = {**steps, **bind(step.tangents_in[2], d_xs)}
        d_steps = evaluate_block(graph, precomputed, d_known, d_steps, linear)
        if step.has_factors:
            steps = evaluate_block(graph, step.coefficients(), known, steps)
        return jax.lax.scan(
            # Reverse mode stores the arguments, and not what follows cheaply from them.
            jax.checkpoint(one_step, prevent_cse=False),
            d_carry,
            {**steps, **d_steps},
            reverse=config.reverse,
        )

    block = jax.checkpoint(block, prevent_cse=False)
    values = list(zip(chunks, in_blocks(xs, config), strict=True))
    if jax.default_backend() == "cpu" and not config.offload:
        values = jax.tree.map(_with_bits, values)
    inputs = list(zip(values, in_blocks(d_xs, config), strict=True))
    d_carry, d_chunks = over_blocks(block, d_init, inputs, config)
    return d_carry, [joined(list(parts)) for parts in zip(*d_chunks, strict=True)]


def with_finite_coefficients(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose local derivatives count as zero where they are not finite.

    Values are those of ``f``.  Arrays that it closes over have gradients, too.

    >>> jax.grad(with_finite_coefficients(jnp.sqrt))(0.0), jax.grad(jnp.sqrt)(0.0)
    (Array(0., dtype=float32, weak_type=True), Array(inf, dtype=float32, weak_type=True))
    """

    def g(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        out_tree: Any = None

        def flat(leaves: Leaves) -> Leaves:
            nonlocal out_tree
            results, out_tree = jax.tree.flatten(f(*tree.unflatten(leaves)))
            return results

        graph = StepGraph(flat, leaves)
        arguments = [list(graph.consts), *graph.inputs]

        @jax.custom_jvp
        def run(*values: Leaves) -> Leaves:
            return graph.evaluate(graph.outputs, bind(arguments, list(values)))

        def rule(primals: Any, tangents: Any) -> Any:
            values, tangents = list(primals), list(tangents)
            nonzero = [[_is_float(leaf) for leaf in group] for group in values]

            def derivative(values: list[Leaves], tangents: list[Leaves]) -> Any:
                def outputs(differentiated: list[Leaves]) -> Any:
                    known = bind(arguments, values)
                    known |= bind(_selected(arguments, nonzero), differentiated)
                    out = graph.evaluate(graph.outputs, known)
                    return list(filter(_is_float, out)), out

                differentiated = (_selected(values, nonzero),)
                _, d_out, out = jax.jvp(outputs, differentiated, (tangents,), has_aux=True)
                return out, d_out

            d_values = _selected(tangents, nonzero)
            both = StepGraph(derivative, values, d_values)
            linear = both.depending_on(jax.tree.leaves(both.inputs[1]))
            changing = both.depending_on(jax.tree.leaves(both.inputs))
            rewrites.make_coefficients_finite(both, linear, changing)
            out, d_out = both.evaluate(both.outputs, bind(both.inputs, (values, d_values)))
            return out, _with_float0(out, d_out)

        run.defjvp(rule)
        consts = [jnp.asarray(value) for value in graph.consts.values()]
        graph.consts = dict.fromkeys(graph.consts)  # the rule outlives these tracers
        return jax.tree.unflatten(out_tree, run(consts, leaves))

    return g


# ---- blocks of steps ----


def evaluate_block(
    graph: StepGraph,
    wanted: Vars,
    known: Mapping[Var, Any],
    steps: Mapping[Var, Any],
    tangents: set[Var] | frozenset[Var] = frozenset(),
) -> dict[Var, Any]:
    """Values for all steps of a block at once, by variable.

    Args:
      graph: the step's equations.
      wanted: variables to compute.
      known: values that are the same in every step.
      steps: values with time as their first axis.
      tangents: the variables that are tangents.
    """
    with_time = set(steps)

    def evaluate(equation: Equation, arguments: list[Any]) -> list[Any]:
        axes = [0 if v in with_time else None for v in equation.inputs]
        if not any(axis == 0 for axis in axes):
            return equation.function(*arguments)
        with_time.update(equation.outputs)
        if equation.primitive == "dot_general" and axes == [0, None]:
            lhs, rhs = arguments
            products = rewrites.product_over_block(
                equation, lhs, rhs, equation.inputs[1] in tangents
            )
            if products is not None:
                return products
        if equation.primitive == "conv_general_dilated" and not on_one_device(*arguments):
            return _step_by_step(equation, axes, arguments)  # vmap merges time and batch
        return jax.vmap(equation.function, in_axes=axes)(*arguments)

    values = graph.evaluate(wanted, {**known, **steps}, evaluate)
    num_steps = len(next(iter(steps.values())))
    return {
        v: value if v in with_time else jnp.broadcast_to(value, (num_steps, *value.shape))
        for v, value in zip(wanted, values, strict=True)
    }


def _step_by_step(
    equation: Equation, axes: list[int | None], arguments: list[Any]
) -> list[jax.Array]:
    """An equation for one step after another; arguments whose axis is 0 have time."""
    with_time = [a for a, axis in zip(arguments, axes, strict=True) if axis == 0]

    def one(now: list[Any]) -> list[Any]:
        given = iter(now)
        return equation.function(
            *[next(given) if axis == 0 else a for a, axis in zip(arguments, axes, strict=True)]
        )

    return jax.lax.map(one, with_time)


def in_blocks(leaves: Any, config: ScanConfig) -> list[Any]:
    """Arrays ``[T, ...]`` as chunks ``[number of blocks, steps, ...]`` of equal blocks."""
    count, rest = divmod(config.num_steps, config.block)
    whole = count * config.block
    chunks = [jax.tree.map(lambda a: a[:whole].reshape(count, config.block, *a.shape[1:]), leaves)]
    if rest:
        chunks.append(jax.tree.map(lambda a: a[None, whole:], leaves))
    return chunks


def joined(chunks: list[jax.Array]) -> jax.Array:
    """Chunks as one array ``[T, ...]``."""
    parts = [chunk.reshape(math.prod(chunk.shape[:2]), *chunk.shape[2:]) for chunk in chunks]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def sequences(chunks: list[Any], variables: Vars) -> Leaves:
    """The stored values of ``variables``, each as one array ``[T, ...]``."""
    return [joined([stored[v] for stored, _ in chunks]) for v in variables]


def over_blocks(
    body: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    chunks: list[Any],
    config: ScanConfig,
    scan: Any = jax.lax.scan,
) -> tuple[Any, list[Any]]:
    """Scans ``body`` over blocks, in the direction of time; its outputs are chunks, too."""
    outputs = []
    for chunk in reversed(chunks) if config.reverse else chunks:
        if len(jax.tree.leaves(chunk)[0]) == 1:  # a single block needs no loop
            carry, out = body(carry, jax.tree.map(lambda a: a[0], chunk))
            out = jax.tree.map(lambda a: a[None], out)
        else:
            carry, out = scan(body, carry, chunk, reverse=config.reverse)
        outputs.append(out)
    return carry, outputs[::-1] if config.reverse else outputs


def _shifted(first: jax.Array, after: jax.Array, reverse: bool) -> jax.Array:
    """The values before each step of a block, from those at its start and after each step."""
    return jnp.concatenate([after[1:], first[None]] if reverse else [first[None], after[:-1]])


# ---- lists of leaves ----


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_narrow(leaf: Any) -> bool:
    return _is_float(leaf) and leaf.dtype.itemsize < 4


def _selected(groups: list[Leaves], which: list[list[bool]]) -> list[Leaves]:
    return [
        [leaf for leaf, yes in zip(leaves, flags, strict=True) if yes]
        for leaves, flags in zip(groups, which, strict=True)
    ]


def _with_float0(primals: Leaves, tangents: Leaves) -> Leaves:
    """A tangent for each primal; those of integers and booleans have the dtype float0."""
    given = iter(tangents)
    return [
        next(given) if _is_float(leaf) else np.zeros(leaf.shape, jax.dtypes.float0)
        for leaf in primals
    ]
