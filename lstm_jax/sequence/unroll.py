"""Running a cell over time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.base import (
    Cell,
    Params,
    State,
    check_features,
    check_state,
    like,
    widened,
    widest,
)
from lstm_jax.sequence import engines, shardings
from lstm_jax.sequence.cudnn import cudnn_lstm
from lstm_jax.sequence.fused.scan import with_finite_coefficients
from lstm_jax.sequence.protocol import input_size, is_layer, num_feature_axes
from lstm_jax.sequence.regularizers import noisy_step
from lstm_jax.sequence.rows import checked_flags, counted_steps, where, with_masked_replaced

sequence_runner = jax.make_user_context(None)
"""A function that :func:`unroll` calls instead of running an engine, where there is no key.

Within ``with sequence_runner(run):`` every sequence is run by ``run(cell, params, xs, state,
lengths=, mask=, resets=, reverse=)``.  An exporter uses it to translate whole sequences.
"""


def unroll(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    state: State | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    key: jax.Array | None = None,
    engine: str = "auto",
    memory: str = "full",
) -> tuple[State, jax.Array]:
    """Runs a cell over a sequence.

    In Python, for one row::

        ys = [0] * T
        for t in range(T):  # from T - 1 down to 0 where reverse
            if t < length and mask[t]:
                if resets[t]:
                    state = initial_state
                state, ys[t] = cell.step(params, state, xs[t])

    Args:
      cell: sizes and equations, such as ``LSTMCell(hidden_size=64)``.
      params: the cell's parameters, as from ``cell.init``.
      xs: the inputs, ``[T, ..., D]``, with any number of batch axes.
      state: the state before the first step, each array ``[..., H]``; its types are preserved.
        None means the cell's initial state: zeros, or a learned state, in the widest type
        of parameters and inputs (unless the cell has a ``dtype``).
      lengths: the number of valid steps of each row, integers ``[...]`` (the batch shape) from
        0 to T: the mask ``t < length``.
      mask: booleans ``[T, ...]``; a false step is treated as absent, at the start, in the
        middle or at the end.  It leaves the state unchanged, its output is zero, and it neither
        receives nor gives gradient, even if ``xs`` is NaN there.  If both ``lengths``
        and ``mask`` are given, a step must be valid in both.
      resets: booleans ``[T, ...]``; a true flag restores the cell's initial state (not
        ``state``) before that step reads it, and does nothing at a masked step.
        :func:`resets_from_dones` and :func:`resets_from_segments` make them.  A NaN before a
        reset reaches neither values nor gradients after it: with resets, local derivatives
        that are not finite are replaced by zero.
      reverse: whether time runs backwards, each row from its own last valid step; outputs
        stay at the times of their inputs, and a reset at t applies before step t, which
        then follows step t + 1.
      key: random key that switches on the noise of regularisers around the cell
        (such as :class:`Zoneout`); None for evaluation.
      engine: how the loop is run; values and gradients are the same up to rounding.
        ``"scan"`` is ``jax.lax.scan`` over ``cell.step``, the reference.  ``"fused"`` computes
        everything independent of the carry for a block of steps at once, and the gradients of
        parameters outside the loop.  ``"associative"`` is ``jax.lax.associative_scan``, for cells
        whose recurrence is linear.  ``"cudnn"`` is NVIDIA's, for :class:`LSTMCell`.  ``"auto"``
        uses the engine that :func:`choose_engine` returns.
      memory: the residuals stored for the derivative.  ``"full"``: all values that are expensive
        to recompute, mainly the gates; ``"recompute"``: only the states, so that gates are
        recomputed; ``"sqrt"``: about √T states, from which segments of √T steps are recomputed;
        ``"offload"``: as ``"full"``, but in the host's memory (no second derivatives).

    Returns:
      ``(state, ys)``: the state after each row's last step, and the outputs ``[T, ..., H]``.

    Raises:
      ValueError: ``xs`` has no time or feature axis or another feature size than the
        parameters, ``state``, ``lengths``, ``mask`` or ``resets`` do not have the batch shape
        of ``xs``, a (concrete) length lies outside 0..T, ``engine`` or ``memory`` is unknown, or
        the engine does not support the arguments.
      TypeError: ``lengths`` are not integers, ``mask`` or ``resets`` not booleans, or
        ``state`` has another structure than ``cell.zero_state()``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import LSTMCell
      >>> cell = LSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> xs = jnp.ones((5, 4, 2))  # T=5, B=4, D=2
      >>> state, ys = unroll(cell, params, xs, lengths=jnp.array([5, 3, 1, 0]))
      >>> ys.shape, state.h.shape
      ((5, 4, 3), (4, 3))
      >>> bool((ys[3:, 1] == 0).all()), bool((state.h[1] == ys[2, 1]).all())
      (True, True)
    """
    if sequence_runner.value is not None and key is None:
        rows = {"lengths": lengths, "mask": mask, "resets": resets}
        return sequence_runner.value(cell, params, xs, state, **rows, reverse=reverse)
    engines.check_engine(engine)
    engines.check_memory(memory)
    params, xs = jax.tree.map(jnp.asarray, params), jnp.asarray(xs)
    params = shardings.gathered(params, xs)
    features = num_feature_axes(cell)
    check_features("xs", xs, input_size(cell, params), features, lead="T, ...")
    num_steps, batch_shape = xs.shape[0], xs.shape[1 : xs.ndim - features]
    inputs = (params, xs, lengths, mask, resets, key)
    start = shardings.like_batch(initial_state(cell, params, xs.shape[1:-1], xs), xs, others=inputs)
    if state is None:
        state = start
    else:
        state = shardings.like_batch(jax.tree.map(jnp.asarray, state), xs, others=inputs)
        check_state(state, start)
        start = like(start, state)

    if lengths is not None:
        lengths = _checked_lengths(lengths, num_steps, batch_shape)
        lengths = shardings.like_batch(lengths, xs)
    if mask is not None:
        mask = checked_flags("mask", mask, (num_steps, *batch_shape))
        mask = shardings.like_batch(mask, xs, lead=1)
    if resets is not None:
        resets = checked_flags("resets", resets, (num_steps, *batch_shape))
        resets = shardings.like_batch(resets, xs, lead=1)
    valid = counted_steps(num_steps, lengths, mask)
    if valid is not None:
        # The inputs of a masked step must not reach the equations: a NaN or infinity there would
        # become 0 * NaN in the gradient of the parameters.
        xs = with_masked_replaced(xs, valid)

    engine = _engine(engine, cell, params, xs, batch_shape, mask, resets, memory)
    split_batch = engine == "fused" and key is None and engines.splits_batch(state, batch_shape)
    # Compiled once for each cell, even if unroll is called outside of jit.
    run = _compiled_loop if _is_hashable(cell) else _loop
    how = {"reverse": reverse, "engine": engine, "memory": memory, "split_batch": split_batch}
    with shardings.mesh_of(xs):
        return run(cell, params, xs, state, start, lengths, valid, resets, key, **how)


def _loop(
    cell: Any,
    params: Params,
    xs: jax.Array,
    state: State,
    start: State,
    lengths: jax.Array | None,
    valid: jax.Array | None,
    resets: jax.Array | None,
    key: jax.Array | None,
    *,
    reverse: bool,
    engine: str,
    memory: str,
    split_batch: bool,
) -> tuple[State, jax.Array]:
    """The loop, with checked arguments."""
    # With resets, values that are not finite before a reset must not become 0 * NaN in gradients.
    if engine == "associative":
        all_steps = functools.partial(
            _associative, cell, valid=valid, resets=resets, reverse=reverse
        )
        if resets is not None:
            all_steps = with_finite_coefficients(all_steps)
        return all_steps(params, xs, state, start)
    if engine == "cudnn":
        return cudnn_lstm(params, xs, state, lengths, reverse=reverse)

    run, noise = noisy_step(cell, params, key, xs.shape)

    # A masked step reads the initial state, for which the equations are finite.
    masked = None if valid is None else ~valid
    begins = masked if resets is None else resets if masked is None else resets | masked

    def step_from(start: State) -> Any:
        def step(state: State, inputs: Any) -> tuple[State, jax.Array]:
            x, valid, begins, noise = inputs
            before = state
            if begins is not None:
                state = where(begins, start, state)
            state, y = run(state, x, noise)
            state = jax.tree.map(shardings.like, like(state, before), before)
            y = jax.tree.map(lambda y: shardings.output_like(y, x), y)
            if valid is not None:
                state = where(valid, state, before)
                y = where(valid, y, jax.tree.map(jnp.zeros_like, y))
            return state, y

        return step

    run_loop = engines.loop(engine, memory, reverse, finite_coefficients=resets is not None)
    inputs = (xs, valid, begins, noise)
    if split_batch:
        return _with_split_batch(run_loop, step_from, start, state, inputs)
    return run_loop(step_from(start), state, inputs)


_compiled_loop = jax.jit(
    _loop, static_argnames=("cell", "reverse", "engine", "memory", "split_batch")
)


def _is_hashable(cell: Any) -> bool:
    try:
        hash(cell)
    except TypeError:
        return False
    return True


def _with_split_batch(
    run_loop: engines.Loop,
    step_from: Callable[[State], Any],
    start: State,
    state: State,
    inputs: Any,
) -> tuple[State, jax.Array]:
    """The loop over two parts of the batch side by side, so that two cores have work."""

    def parts(tree: Any, axis: int) -> list[Any]:
        leaves, structure = jax.tree.flatten(tree)
        pairs = [jnp.split(leaf, 2, axis) for leaf in leaves]
        return [structure.unflatten([pair[n] for pair in pairs]) for n in range(2)]

    steps = [step_from(part) for part in parts(start, 0)]

    def both(states: Any, inputs: Any) -> tuple[Any, Any]:
        pairs = [f(s, x) for f, s, x in zip(steps, states, inputs, strict=True)]
        return [state for state, _ in pairs], [y for _, y in pairs]

    states, ys = run_loop(both, parts(state, 0), parts(inputs, 1))
    state = jax.tree.map(lambda *pair: jnp.concatenate(pair), *states)
    return state, jax.tree.map(lambda *pair: jnp.concatenate(pair, 1), *ys)


def _engine(
    engine: str,
    cell: Any,
    params: Params,
    xs: jax.Array,
    batch_shape: tuple[int, ...],
    mask: jax.Array | None,
    resets: jax.Array | None,
    memory: str,
) -> str:
    """The engine that runs the loop: the best one, or the requested one if it can run it."""
    of = {
        "dtype": widest(params, xs) if jnp.issubdtype(xs.dtype, jnp.floating) else xs.dtype,
        "mask": mask is not None,
        "resets": resets is not None,
        "memory": memory,
    }
    num_steps = xs.shape[0]  # len(xs) fails for the symbolic sizes of jax.export
    if engine == "auto":
        return engines.choose_engine(cell, num_steps, batch_shape, **of).engine
    why = engines.obstacle(
        engine, cell, num_steps, batch_shape, platform=jax.default_backend(), **of
    )
    if why is not None:
        if engine == "fused" and 0 in (num_steps, *batch_shape):
            return "scan"
        raise ValueError(f"engine {engine!r} {why}")
    return engine


def _associative(
    cell: Any,
    params: Params,
    xs: jax.Array,
    state: State,
    start: State,
    valid: jax.Array | None,
    resets: jax.Array | None,
    reverse: bool,
) -> tuple[State, jax.Array]:
    """All steps at once, for a cell with h_t = a_t ∘ h_{t-1} + b_t, a and b independent of h.

    The composition of two segments, h ↦ a_1 h + b_1 and then h ↦ a_2 h + b_2, is
    h ↦ a_2 a_1 h + (a_2 b_1 + b_2), which is associative (Blelloch 1990).
    """
    a, b = cell.linear_recurrence(params, xs)  # each [T, ..., H]
    if resets is not None:  # the step reads the initial state instead of the carry
        resets = resets if valid is None else resets & valid
        b = where(resets, a * start.h.astype(b.dtype) + b, b)
        a = where(resets, jnp.zeros_like(a), a)
    if valid is not None:
        a = where(valid, a, jnp.ones_like(a))
        b = where(valid, b, jnp.zeros_like(b))
    if xs.shape[0] == 0:
        return state, b.astype(state.h.dtype)

    def unless(reset: jax.Array | None, a: jax.Array) -> jax.Array:
        """Zeros after a reset: a NaN would survive the product with a_t = 0."""
        return a if reset is None else where(reset, jnp.zeros_like(a), a)

    def after(first: Any, second: Any) -> Any:
        (a_1, b_1, reset_1), (a_2, b_2, reset_2) = first, second
        a_1, b_1 = unless(reset_2, a_1), unless(reset_2, b_1)
        reset = None if reset_2 is None else reset_1 | reset_2
        return a_2 * a_1, a_2 * b_1 + b_2, reset

    a, b, resets = jax.lax.associative_scan(after, (a, b, resets), reverse=reverse)
    before = unless(resets, jnp.broadcast_to(state.h.astype(a.dtype), a.shape))
    hs = (a * before + b).astype(state.h.dtype)
    last = type(state)(h=hs[0] if reverse else hs[-1])
    return last, hs if valid is None else where(valid, hs, jnp.zeros_like(hs))


def initial_state(
    cell: Cell, params: Params, batch_shape: tuple[int, ...] = (), xs: Any = None
) -> State:
    """The state before the first step of a cell or layer: zeros, or a learned state.

    For a cell without a ``dtype`` it is at least as wide as the parameters and the inputs ``xs``.

    >>> from lstm_jax import LSTMCell
    >>> initial_state(LSTMCell(3), params={}, batch_shape=(2,)).h.shape
    (2, 3)
    """
    learned: Callable[..., State] | None = getattr(cell, "initial_state", None)
    state = cell.zero_state(batch_shape) if learned is None else learned(params, batch_shape)
    if is_layer(cell) or getattr(cell, "dtype", None) is not None:
        return state
    return widened(state, params, xs)


def _checked_lengths(lengths: Any, num_steps: int, batch_shape: tuple[int, ...]) -> jax.Array:
    """The lengths as an array of integers; concrete values are checked."""
    given, lengths = lengths, jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.shape != batch_shape:
        raise ValueError(
            f"lengths must have the batch shape of xs, {batch_shape}, got shape {lengths.shape}"
        )
    if not isinstance(given, jax.core.Tracer) and lengths.size:
        # As NumPy, since jnp.min of a constant is a tracer inside a jitted function.
        known = np.asarray(given)
        low, high = int(known.min()), int(known.max())
        if low < 0 or high > num_steps:
            raise ValueError(
                f"lengths must lie between 0 and T={num_steps}, got values from {low} to {high}"
            )
    return lengths
