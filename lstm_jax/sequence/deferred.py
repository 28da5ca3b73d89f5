"""A scan over time whose derivative keeps the gradients of parameters out of its loop.

``deferred_scan(f, init, xs)`` is ``jax.lax.scan(f, init, xs)``, faster to differentiate.  The
derivative of a step is linear in three things,

    ds_t = J_s ds_{t-1} + (J_p dp + J_x dx_t),

of which only the first has to wait for the step before.  So what is in brackets is computed
for a block of steps at once, ahead of the loop; read backwards, as reverse mode does, the loop
hands on the gradient of the state alone, and those of parameters and inputs are one product a
block.  In the same way, what a step computes of its inputs alone is computed for a block at
once.  Which is which is read off the step's own equations, as JAX traces them: any step will do.

All of it is one ``jax.custom_jvp`` rule of plain scans, from which every transform follows.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.sequence.program import CHEAP, LAYOUT, Equation, Name, Names, Program, named

Leaves = list[Any]


class Plan(NamedTuple):
    """How a sequence is run.

    Attributes:
      num_steps: T.
      block: steps of a block; the last one may be shorter.
      reverse: whether time runs backwards.
      save: whether what is dear to compute is stored for the derivative.
      offload: whether what is stored waits in the host's memory.
    """

    num_steps: int
    block: int
    reverse: bool
    save: bool
    offload: bool


def deferred_scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any,
    *,
    reverse: bool = False,
    block: int | None = None,
    save: bool = True,
    offload: bool = False,
) -> tuple[Any, Any]:
    """``jax.lax.scan(f, init, xs, reverse=reverse)`` with another derivative.

    Args:
      f: one step, ``(carry, x) -> (carry, y)``; arrays that it closes over have gradients, too.
      init: the first carry.
      xs: a tree of arrays with time as their first axis, at least one step long.
      reverse: whether time runs backwards.
      block: steps of a block; None for a rule by size.
      save: whether what is dear to compute is stored for the derivative; if not, only carries
        are, and the rest is computed once more, for a block at a time.
      offload: whether what is stored waits in the host's memory (no second derivatives then).

    Returns:
      ``(carry, ys)``.

    >>> import jax.numpy as jnp
    >>> deferred_scan(lambda total, x: (total + x, total), jnp.zeros(()), jnp.arange(4.0))
    (Array(6., dtype=float32), Array([0., 0., 1., 3.], dtype=float32))
    """
    init_leaves, carry_tree = jax.tree.flatten(init)
    x_leaves, x_tree = jax.tree.flatten(xs)
    y_tree: Any = None

    def step(carry: Leaves, x: Leaves) -> tuple[Leaves, Leaves]:
        nonlocal y_tree
        new, y = f(carry_tree.unflatten(carry), x_tree.unflatten(x))
        y_leaves, y_tree = jax.tree.flatten(y)
        return carry_tree.flatten_up_to(new), y_leaves

    program = Program(step, init_leaves, [leaf[0] for leaf in x_leaves])
    program.gates_at_once()
    num_steps = len(x_leaves[0])
    block = block_size(num_steps, init_leaves) if block is None else min(block, num_steps)
    run = _deferred(program, Plan(num_steps, block, reverse, save, offload))
    consts = [jnp.asarray(value) for value in program.closed_over.values()]
    program.closed_over = dict.fromkeys(program.closed_over)  # its rule outlives these tracers
    carry, ys = run(consts, init_leaves, x_leaves)
    return carry_tree.unflatten(carry), jax.tree.unflatten(y_tree, ys)


def block_size(num_steps: int, carry: Leaves) -> int:
    """Steps of a block: all of a small sequence; else about 512 rows in all, so that a block's
    products are large, but what goes in and out of them is still in the cache, and a divisor
    of T if there is one about there.

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


SMALL = 2**18
"""Elements of a state, over all steps, up to which one block is faster than several (measured)."""


def has_all_cores() -> bool:
    """Whether a device is the only one of a CPU, and runs large operations on all of its cores.

    >>> import jax
    >>> has_all_cores() == (jax.default_backend() == "cpu" and jax.local_device_count() == 1)
    True
    """
    return jax.default_backend() == "cpu" and jax.local_device_count() == 1


def _deferred(
    program: Program, plan: Plan
) -> Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]:
    """The function ``(consts, init, xs) -> (carry, ys)`` with its derivative."""

    plain = Loop(program, list(program.closed_over), *program.inputs, *program.outputs)

    @jax.custom_jvp
    def run(consts: Leaves, init: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
        carry, chunks = forward(plain, plan, consts, init, xs, plain.y)
        return carry, sequences(chunks, plain.y)

    def rule(primals: Any, tangents: Any) -> Any:
        consts, init, xs = primals
        moving = [[not _is_zero(tangent) for tangent in group] for group in tangents]
        moving[1] = [_is_float(leaf) for leaf in init]  # the second step's is not zero
        linear = linearized(program, consts, init, [leaf[0] for leaf in xs], moving)
        if has_all_cores() and not linear.is_mixed():
            linear = linear.factors_apart()

        loop, keep = linear.loop, linear.to_keep()
        if linear.is_mixed():
            loop, keep = plain, []
        store = [*loop.y, *loop.new, *(keep if plan.save else [])]
        carry, chunks = forward(loop, plan, consts, init, xs, store)
        ys = sequences(chunks, loop.y)

        d_consts, d_init, d_xs = tangents
        d_init = [
            jnp.zeros_like(a) if _is_zero(d) else d for a, d in zip(init, d_init, strict=True)
        ]
        moved = _picked([d_consts, d_init, d_xs], moving)
        d_carry, d_ys = tangent(linear, plan, consts, xs, chunks, loop.new, keep, moved)
        return (carry, ys), (_filled(carry, d_carry), _filled(ys, d_ys))

    run.defjvp(rule, symbolic_zeros=True)
    return run


# ---- values ----


class Loop(NamedTuple):
    """A program as the body of a loop: the names of its arguments and results."""

    program: Program
    consts: Names
    carry: Names
    x: Names
    new: Names
    y: Names

    def once(self, consts: Leaves, wanted: Iterable[Name]) -> dict[Name, Any]:
        """What of ``wanted`` and on the way to it is known before the first step."""
        known = named(self.consts, consts)
        per_step = self.program.depending_on([*self.carry, *self.x])
        fixed = {name for equation in self.program.equations for name in equation.outputs}
        fixed = self.program.cut(wanted, fixed - per_step, self.consts, LAYOUT)
        return known | named(fixed, self.program.evaluate(fixed, known))

    def ahead(self, wanted: Iterable[Name]) -> Names:
        """What is computed for many steps at once, before the loop.

        That is what is ``wanted`` and does not wait for the carry; and for the loop what is dear
        of that kind or, if it is less, as after a normalisation, what the loop reads at last.
        """
        program = self.program
        late = program.depending_on(self.carry)
        early = program.depending_on([*self.carry, *self.x]) - late - {*self.x}
        in_loop = [name for name in wanted if name in late]
        read = [name for name in program.read_by(late, in_loop) if name in early]
        ways = [self.dear(in_loop, (), late), read]
        least = min(ways, key=lambda names: program.size(*names))
        return list(dict.fromkeys([*least, *(name for name in wanted if name in early)]))

    def dear(
        self,
        wanted: Iterable[Name],
        known: Iterable[Name],
        late: frozenset[Name] | set[Name] = frozenset(),
    ) -> Names:
        """What is dear on the way to ``wanted`` and changes from step to step, but is not late."""
        changing = self.program.depending_on([*self.carry, *self.x])
        known = {*self.consts, *self.carry, *self.x, *known}
        return self.program.cut(wanted, changing - late, known, CHEAP)


def forward(
    loop: Loop, plan: Plan, consts: Leaves, init: Leaves, xs: Leaves, store: Names
) -> tuple[Leaves, list[Any]]:
    """The last carry, and what was stored, in chunks.

    Returns:
      ``(carry, chunks)``, for each chunk a dict of what was stored, by name, and the carries
      with which its blocks began.
    """
    program = loop.program
    wanted = {name: name for name in (*loop.new, *store)}
    ahead = loop.ahead(wanted)
    early = [name for name in store if name in {*ahead, *loop.x}]
    kept = [name for name in store if name not in (*early, *loop.new, *loop.y)]
    passing = [name for name in ahead if name not in early]
    places = {} if plan.offload else program.places(passing, kept, wanted)

    def one(known: Mapping[Name, Any], carry: Leaves, inputs: Any) -> Any:
        results = program.evaluate(wanted, {**known, **named(loop.carry, carry), **inputs})
        stored = {name: results[name] for name in store if name not in early}
        return [results[name] for name in loop.new], stored

    def with_ahead(known: Mapping[Name, Any], xs: Leaves) -> dict[Name, Any]:
        inputs = named(loop.x, xs)
        return inputs | at_once(program, ahead, known, inputs)

    def in_turn(consts: Leaves, init: Leaves, xs: Leaves) -> tuple[Leaves, list[Any]]:
        known = loop.once(consts, wanted)

        def block(carry: Leaves, xs: Leaves) -> Any:
            step, inputs = functools.partial(one, known), with_ahead(known, xs)
            end, stored = jax.lax.scan(step, carry, inputs, reverse=plan.reverse)
            stored |= {name: inputs[name] for name in early}
            if plan.offload:
                waiting = {name: a for name, a in stored.items() if name not in loop.y}
                stored |= jax.device_put(waiting, jax.memory.Space.Host)
            return end, (stored, carry)

        return over_blocks(block, init, in_blocks(xs, plan), plan)

    if not places or len(places) < len(passing):
        return in_turn(consts, init, xs)

    @jax.custom_jvp
    def at_their_places(consts: Leaves, init: Leaves, xs: Leaves) -> tuple[Leaves, list[Any]]:
        known = loop.once(consts, wanted)
        step, inputs = functools.partial(one, known), with_ahead(known, xs)
        carry, stored = in_place(step, init, inputs, places, plan)
        stored |= {name: inputs[name] for name in early}
        return carry, in_chunks(stored, init, loop.new, plan)

    # What is overwritten cannot be differentiated without copies.
    at_their_places.defjvp(functools.partial(jax.jvp, in_turn))
    return at_their_places(consts, init, xs)


def in_place(
    one: Callable[[Leaves, Any], tuple[Leaves, dict[Name, Any]]],
    init: Leaves,
    inputs: dict[Name, Any],
    places: Mapping[Name, Name],
    plan: Plan,
) -> tuple[Leaves, dict[Name, Any]]:
    """The loop in which what a step stores takes the place of what was computed for it ahead.

    An array of its own would be filled with zeros first, and a block's be copied to it; on a
    CPU both cost as much time as it takes to write the values.

    Args:
      one: a step.
      init: the first carry.
      inputs: what steps read, by name, time in front.
      places: names of what is computed ahead, and of what takes the place of each.
      plan: how the sequence is run.

    Returns:
      The last carry, and what was stored.
    """
    buffers = {stored: inputs[early] for early, stored in places.items()}
    others = {name: a for name, a in inputs.items() if name not in places}

    def step(state: Any, now: Any) -> Any:
        (carry, buffers), (t, inputs) = state, now
        here = {
            e: jax.lax.dynamic_index_in_dim(buffers[s], t, 0, False, allow_negative_indices=False)
            for e, s in places.items()
        }
        carry, stored = one(carry, {**inputs, **here})
        buffers = {
            name: jax.lax.dynamic_update_index_in_dim(
                buffer, stored.pop(name), t, 0, allow_negative_indices=False
            )
            for name, buffer in buffers.items()
        }
        return (carry, buffers), stored

    steps = (jnp.arange(plan.num_steps), others)
    (carry, buffers), stored = jax.lax.scan(step, (init, buffers), steps, reverse=plan.reverse)
    return carry, {**stored, **buffers}


def in_chunks(stored: dict[Name, Any], init: Leaves, new: Names, plan: Plan) -> list[Any]:
    """Sequences as chunks, with the carries with which their blocks began."""
    block = plan.block
    starts = [
        jnp.concatenate(
            [stored[name][block::block], first[None]]
            if plan.reverse
            else [first[None], stored[name][block - 1 : -1 : block]]
        )
        for name, first in zip(new, init, strict=True)
    ]
    count = plan.num_steps // block
    parts = [[a[:count] for a in starts], [a[count:] for a in starts]]
    chunks = in_blocks(stored, plan)
    return list(zip(chunks, parts[: len(chunks)], strict=True))


# ---- derivatives ----


class Linear(NamedTuple):
    """A program with its derivative.

    Attributes:
      loop: the values.
      d_names: names of the tangents that move: of consts, carry and x.
      d_out: names of the tangents of the new carry and of y.
      is_apart: whether chains of products are products with one factor.
    """

    loop: Loop
    d_names: list[Names]
    d_out: tuple[Names, Names]
    is_apart: bool = False

    def parts(self) -> tuple[set[Name], set[Name]]:
        """All tangents, and those that have to wait for the step before."""
        depending_on = self.loop.program.depending_on
        return depending_on(jax.tree.leaves(self.d_names)), depending_on(self.d_names[1])

    def read_by(self, readers: set[Name], among: Callable[[Name], bool]) -> Names:
        """The values that equations of ``readers`` read, and results, ``among`` which they are."""
        results = [*self.d_out[0], *self.d_out[1]]
        read = [*self.loop.program.read_by(readers, results), *results]
        return [name for name in dict.fromkeys(read) if among(name)]

    def factors(self) -> Names:
        """What the loop of tangents reads that changes from step to step and is no tangent."""
        linear, late = self.parts()
        loop = self.loop
        changing = loop.program.depending_on([*loop.carry, *loop.x]) - linear
        return self.read_by(late, changing.__contains__)

    def factors_apart(self) -> "Linear":
        """The same with one factor for each chain of products, if these are no more numbers than
        those from which they are computed."""
        program, loop = self.loop.program.copy(), self.loop
        program.factors_apart(self.parts()[1], [*self.d_out[0], *self.d_out[1]])
        apart = self._replace(loop=loop._replace(program=program), is_apart=True)
        read = self.factors()
        stored = [*loop.carry, *loop.x, *loop.new, *loop.dear(read, loop.new)]
        before = loop.program.read(stored, read)
        return apart if program.size(*apart.factors()) <= program.size(*before) else self

    def is_mixed(self) -> bool:
        """Whether some equation, such as a loop in a step, computes values along with tangents."""
        linear, _ = self.parts()
        return not linear.isdisjoint([*self.loop.new, *self.loop.y])

    def to_keep(self) -> Names:
        """What is worth storing for the tangents, beside carries and inputs."""
        linear, _ = self.parts()
        needed = self.read_by(linear, lambda name: name not in linear)
        return self.loop.dear(needed, self.loop.new)


def linearized(
    program: Program, consts: Leaves, init: Leaves, x: Leaves, moving: list[list[bool]]
) -> Linear:
    """A step with its derivative by those arguments that move."""
    names = [list(program.closed_over), *program.inputs]
    now = [consts, init, x]

    def step(now: list[Leaves], moved: list[Leaves]) -> Any:
        def outputs(moving_now: list[Leaves]) -> Any:
            known = named(names, now) | named(_picked(names, moving), moving_now)
            new, y = program.evaluate(program.outputs, known)
            floats = [list(filter(_is_float, new)), list(filter(_is_float, y))]
            return floats, (new, y)

        _, d_out, out = jax.jvp(outputs, (_picked(now, moving),), (moved,), has_aux=True)
        return out, d_out

    both = Program(step, now, _picked(now, moving))
    (names_, d_names), ((new, y), d_out) = both.inputs, both.outputs
    both.sums_apart(both.depending_on(d_names[1]))
    both.lay_out(
        both.depending_on(jax.tree.leaves(d_names)),
        both.depending_on(jax.tree.leaves([names_[1:], d_names])),
    )
    return Linear(Loop(both, names_[0], names_[1], names_[2], new, y), d_names, d_out)


def tangent(
    linear: Linear,
    plan: Plan,
    consts: Leaves,
    xs: Leaves,
    chunks: list[Any],
    new: Names,
    keep: Names,
    moved: list[Leaves],
) -> tuple[Leaves, Leaves]:
    """Tangents of the last carry and of ys, linear in those that ``moved``.

    ``chunks`` are from :func:`forward`, with carries under the names of ``new``.
    """
    loop, program = linear.loop, linear.loop.program
    tangents, late = linear.parts()
    known = loop.once(consts, linear.read_by(tangents, lambda name: name not in tangents))
    early = linear.read_by(late, lambda name: name in tangents and name not in late)
    d_consts, d_init, d_xs = moved

    def one(d_carry: Leaves, inputs: Any) -> Any:
        values = {**known, **inputs, **named(linear.d_names[1], d_carry)}
        return program.evaluate(linear.d_out, values)

    def block(d_carry: Leaves, inputs: Any) -> Any:
        (stored, start), xs, d_xs = inputs
        if plan.offload:
            stored = jax.device_put(stored, jax.memory.Space.Device)
        after = [stored[name] for name in new]
        before = [_shifted(a, b, plan.reverse) for a, b in zip(start, after, strict=True)]
        steps = named([loop.carry, loop.x, loop.new], [before, xs, after])
        if plan.save:
            steps |= {name: stored[name] for name in keep}
        else:
            steps |= at_once(program, keep, known, steps)
        d_known = {**known, **named(linear.d_names[0], d_consts)}
        d_steps = {**steps, **named(linear.d_names[2], d_xs)}
        d_steps = at_once(program, early, d_known, d_steps, tangents)
        if linear.is_apart:
            steps = at_once(program, linear.factors(), known, steps)
        return jax.lax.scan(
            # Stored are the arguments, and not what cheaply follows from them.
            jax.checkpoint(one, prevent_cse=False),
            d_carry,
            {**steps, **d_steps},
            reverse=plan.reverse,
        )

    block = jax.checkpoint(block, prevent_cse=False)
    inputs = list(zip(chunks, in_blocks(xs, plan), in_blocks(d_xs, plan), strict=True))
    d_carry, d_chunks = over_blocks(block, d_init, inputs, plan)
    return d_carry, [joined(list(parts)) for parts in zip(*d_chunks, strict=True)]


# ---- blocks of steps ----


def at_once(
    program: Program,
    wanted: Names,
    known: Mapping[Name, Any],
    steps: Mapping[Name, Any],
    tangents: set[Name] | frozenset[Name] = frozenset(),
) -> dict[Name, Any]:
    """Values of many steps by name; those of ``steps`` have time in front."""
    in_time = set(steps)

    def lifted(equation: Equation, arguments: list[Any]) -> list[Any]:
        axes = [0 if name in in_time else None for name in equation.inputs]
        if not any(axis == 0 for axis in axes):
            return equation.function(*arguments)
        in_time.update(equation.outputs)
        if equation.name == "dot_general" and axes == [0, None]:
            lhs, rhs = arguments
            (left, right), (batched, _) = equation.params["dimension_numbers"]
            if left == (lhs.ndim - 2,) and rhs.ndim == 2 and not batched:
                # Time and batch as one axis: the derivative sums over both, and XLA lays
                # arrays out anew where it sums over two.
                flat, axis = lhs.reshape(math.prod(lhs.shape[:-1]), lhs.shape[-1]), 1
                if equation.inputs[1] in tangents and jax.default_backend() == "cpu":
                    # Read backwards this is x^T dz, for which XLA's CPU library (YNNPACK) is a
                    # tenth faster than what it falls back to, if x^T is laid out for it.
                    flat, axis = jax.lax.optimization_barrier(flat.T), 0
                params = {**equation.params, "dimension_numbers": (((axis,), right), ((), ()))}
                (product,) = equation.function._replace(params=params)(flat, rhs)
                return [product.reshape(*lhs.shape[:-1], *product.shape[1:])]
        return jax.vmap(equation.function, in_axes=axes)(*arguments)

    values = program.evaluate(wanted, {**known, **steps}, lifted)
    num_steps = len(next(iter(steps.values())))
    return {
        name: value if name in in_time else jnp.broadcast_to(value, (num_steps, *value.shape))
        for name, value in zip(wanted, values, strict=True)
    }


def in_blocks(leaves: Any, plan: Plan) -> list[Any]:
    """Arrays ``[T, ...]`` as chunks ``[number of blocks, steps of one, ...]`` of equal blocks."""
    count, rest = divmod(plan.num_steps, plan.block)
    whole = count * plan.block
    chunks = [jax.tree.map(lambda a: a[:whole].reshape(count, plan.block, *a.shape[1:]), leaves)]
    if rest:
        chunks.append(jax.tree.map(lambda a: a[None, whole:], leaves))
    return chunks


def joined(chunks: list[jax.Array]) -> jax.Array:
    """Chunks as one array ``[T, ...]``."""
    parts = [chunk.reshape(math.prod(chunk.shape[:2]), *chunk.shape[2:]) for chunk in chunks]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def sequences(chunks: list[Any], names: Names) -> Leaves:
    """What was stored by ``names``, each as one array ``[T, ...]``."""
    return [joined([stored[name] for stored, _ in chunks]) for name in names]


def over_blocks(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, chunks: list[Any], plan: Plan
) -> tuple[Any, list[Any]]:
    """``body`` from block to block as time runs; the outputs are chunks, too."""
    outputs = []
    for chunk in reversed(chunks) if plan.reverse else chunks:
        if len(jax.tree.leaves(chunk)[0]) == 1:  # no loop for one block
            carry, out = body(carry, jax.tree.map(lambda a: a[0], chunk))
            out = jax.tree.map(lambda a: a[None], out)
        else:
            carry, out = jax.lax.scan(body, carry, chunk, reverse=plan.reverse)
        outputs.append(out)
    return carry, outputs[::-1] if plan.reverse else outputs


def _shifted(first: jax.Array, after: jax.Array, reverse: bool) -> jax.Array:
    """What stood before each step of a block, from its start and what stood after each."""
    return jnp.concatenate([after[1:], first[None]] if reverse else [first[None], after[:-1]])


# ---- lists ----


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _picked(groups: list[Leaves], which: list[list[bool]]) -> list[Leaves]:
    return [
        [leaf for leaf, yes in zip(leaves, flags, strict=True) if yes]
        for leaves, flags in zip(groups, which, strict=True)
    ]


def _filled(primals: Leaves, tangents: Leaves) -> Leaves:
    """A tangent for each primal; integers and the like have none."""
    given = iter(tangents)
    return [
        next(given) if _is_float(leaf) else np.zeros(leaf.shape, jax.dtypes.float0)
        for leaf in primals
    ]
