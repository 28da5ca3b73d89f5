"""Running a cell over time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.base import Cell, Params, State

ENGINES = ("auto", "scan")


def unroll(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    state: State | None = None,
    *,
    lengths: jax.Array | None = None,
    engine: str = "auto",
) -> tuple[State, jax.Array]:
    """A cell over a sequence.

    In Python, for one row::

        ys = []
        for t in range(T):
            if t < length:
                state, y = cell.step(params, state, xs[t])
            else:
                y = 0
            ys.append(y)

    Args:
      cell: sizes and equations, such as ``LSTMCell(hidden_size=64)``.
      params: the cell's parameters, as from ``cell.init``.
      xs: the inputs, ``[T, ..., D]``, with any number of batch axes.
      state: the state before the first step, each array ``[..., H]``; zeros if None.
      lengths: how many steps of each row count, integers of the batch shape ``[...]`` from
        0 to T.  Steps at or past a row's length change neither its state nor receive or
        give gradient, whatever ``xs`` holds there, and their outputs are zero.
      engine: how the loop is run.  ``"scan"`` is ``jax.lax.scan`` over ``cell.step``, the
        reference; ``"auto"`` chooses, which today means ``"scan"``.

    Returns:
      ``(state, ys)``: the state after each row's last step, and the outputs ``[T, ..., H]``.

    Raises:
      ValueError: ``xs`` has no time or feature axis, ``state`` or ``lengths`` do not have
        the batch shape of ``xs``, a (concrete) length lies outside 0..T, or ``engine`` is
        unknown.
      TypeError: ``lengths`` are not integers or ``state`` has another structure than
        ``cell.zero_state()``.

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
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if xs.ndim < 2:
        raise ValueError(f"xs must be [T, ..., D], got shape {xs.shape}")
    batch_shape = xs.shape[1:-1]
    if state is None:
        state = _varying_like(cell.zero_state(batch_shape), (params, xs, lengths))
    _check_state(cell, state, batch_shape)
    if lengths is None:
        return jax.lax.scan(functools.partial(cell.step, params), state, xs)

    lengths = _checked_lengths(lengths, xs.shape[0], batch_shape)
    valid = jnp.arange(xs.shape[0]).reshape(-1, *[1] * lengths.ndim) < lengths  # [T, ...]
    # What lies past a row's end must not reach the step: a NaN or infinity there would come
    # back as 0 * NaN in the gradient of the parameters.
    xs = _where(valid, xs, jnp.zeros_like(xs))

    def step(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
        x, valid = inputs
        stepped, y = cell.step(params, state, x)
        state = jax.tree.map(functools.partial(_where, valid), stepped, state)
        return state, _where(valid, y, jnp.zeros_like(y))

    return jax.lax.scan(step, state, (xs, valid))


def _where(condition: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """``jnp.where`` with the condition's axes leading."""
    return jnp.where(
        condition.reshape(condition.shape + (1,) * (yes.ndim - condition.ndim)), yes, no
    )


def _varying_like(tree: Any, other: Any) -> Any:
    """The tree, marked as different on each device where ``other`` is (inside shard_map).

    A scan's state must be so marked from the start if a step makes it so.
    """
    axes: set[str] = set()
    for leaf in jax.tree.leaves(other):
        type_ = jax.typeof(leaf)  # until jax 0.10.1 it has its varying axes as `vma`
        axes |= type_.vma if hasattr(type_, "vma") else type_.manual_axis_type.varying
    if not axes:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, tuple(axes), to="varying"), tree)


def _check_state(cell: Cell, state: State, batch_shape: tuple[int, ...]) -> None:
    expected = jax.eval_shape(lambda: cell.zero_state(batch_shape))
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise TypeError(
            f"state must have the structure of cell.zero_state(), "
            f"{jax.tree.structure(expected)}, got {jax.tree.structure(state)}"
        )
    for (path, wanted), given in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(state), strict=True
    ):
        if jnp.shape(given) != wanted.shape:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} must have shape {wanted.shape} (the batch "
                f"shape of xs, then the cell's sizes), got shape {jnp.shape(given)}"
            )


def _checked_lengths(lengths: Any, num_steps: int, batch_shape: tuple[int, ...]) -> jax.Array:
    """The lengths as an array of integers, checked as far as they are known."""
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
