"""Flags of steps, and valid steps: those before the end of a row whose mask is true."""

from typing import Any

import jax
import jax.numpy as jnp


def checked_flags(
    name: str,
    flags: Any,
    shape: tuple[int, ...] | None = None,
    of: str = "the time and batch axes of xs",
) -> jax.Array:
    """Flags such as ``mask`` and ``resets`` as an array, after a check of type and shape.

    Args:
      name: the argument.
      flags: its value.
      shape: the required shape; None if only a time axis is required.
      of: what has this shape, for the message.

    >>> checked_flags("mask", [True, False], (3,))
    Traceback (most recent call last):
    ValueError: mask must have the time and batch axes of xs, (3,), got shape (2,)
    """
    flags = jnp.asarray(flags)
    if flags.dtype != bool:
        raise TypeError(f"{name} must be booleans, got {flags.dtype}")
    if shape is None and flags.ndim < 1:
        raise ValueError(f"{name} must be [T, ...], got shape {flags.shape}")
    if shape not in (None, flags.shape):
        raise ValueError(f"{name} must have {of}, {shape}, got shape {flags.shape}")
    return flags


def valid_steps(num_steps: int, lengths: jax.Array) -> jax.Array:
    """Booleans ``[T, ...]``: whether a step is before the end of its row.

    >>> import jax.numpy as jnp
    >>> valid_steps(3, jnp.array([2, 0])).tolist()
    [[True, False], [True, False], [False, False]]
    """
    lengths = jnp.asarray(lengths)
    return jnp.arange(num_steps).reshape(-1, *[1] * lengths.ndim) < lengths


def counted_steps(
    num_steps: int, lengths: jax.Array | None, mask: jax.Array | None
) -> jax.Array | None:
    """Booleans ``[T, ...]``: whether a step is valid by its row's length and by the mask.

    None if neither is given: every step is valid.

    >>> import jax.numpy as jnp
    >>> mask = jnp.array([[False, True], [True, True], [True, True]])
    >>> counted_steps(3, jnp.array([2, 3]), mask).T.tolist()
    [[False, True, False], [True, True, True]]
    """
    if lengths is None:
        return mask
    valid = valid_steps(num_steps, lengths)
    return valid if mask is None else valid & mask


def where(condition: jax.Array, yes: Any, no: Any) -> Any:
    """``jnp.where`` leaf by leaf, with the condition's axes leading.

    >>> where(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2))).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def choose(yes: jax.Array, no: jax.Array) -> jax.Array:
        axes = (1,) * (yes.ndim - condition.ndim)
        return jnp.where(condition.reshape(condition.shape + axes), yes, no)

    return jax.tree.map(choose, yes, no)


def with_masked_replaced(xs: jax.Array, valid: jax.Array) -> jax.Array:
    """Inputs ``[T, ..., D]`` in which masked steps hold the input of their row's first valid step.

    Equations that are finite at valid steps are then also finite at masked steps; a constant could
    be the wrong value (zeros in ``x / norm(x)``).  Rows without a valid step, and elements that are
    not finite, become ones.

    >>> xs = jnp.array([[jnp.nan], [2.0], [3.0]])
    >>> with_masked_replaced(xs, jnp.array([False, True, False])).ravel().tolist()
    [2.0, 2.0, 2.0]
    """
    if xs.shape[0] == 0:
        return xs
    valid = valid.reshape(valid.shape + (1,) * (xs.ndim - valid.ndim))
    # As a sum over time, since a gather would collect the shards of the batch.
    t = jnp.arange(xs.shape[0]).reshape(-1, *[1] * (xs.ndim - 1))
    is_first = t == jnp.argmax(valid, 0, keepdims=True)
    first = jnp.where(is_first, xs, 0).sum(0, keepdims=True)
    usable = valid.any(0, keepdims=True) & jnp.isfinite(first)
    return jnp.where(valid, xs, jax.lax.stop_gradient(jnp.where(usable, first, 1)))


def flipped(xs: jax.Array, lengths: jax.Array) -> jax.Array:
    """Each row of ``[T, ..., D]`` reversed within its own length.

    >>> import jax.numpy as jnp
    >>> flipped(jnp.arange(3.0).reshape(3, 1, 1), jnp.array([2]))[:, 0, 0].tolist()
    [1.0, 0.0, 2.0]
    """
    lengths = jnp.asarray(lengths)
    t = jnp.arange(xs.shape[0]).reshape(-1, *[1] * lengths.ndim)
    source = jnp.where(t < lengths, lengths - 1 - t, t)
    return jnp.take_along_axis(xs, source.reshape(source.shape + (1,) * (xs.ndim - source.ndim)), 0)


def flipped_by_mask(xs: jax.Array, valid: jax.Array) -> jax.Array:
    """The valid steps of each row of ``[T, ..., D]`` in reverse order; masked steps stay.

    >>> import jax.numpy as jnp
    >>> xs, valid = jnp.arange(5.0), jnp.array([True, False, True, True, False])
    >>> flipped_by_mask(xs, valid).tolist()
    [3.0, 1.0, 2.0, 0.0, 4.0]
    """
    rank = jnp.cumsum(valid, 0) - 1
    order = jnp.argsort(~valid, axis=0)  # stable: the indices of valid steps, in order, come first
    source = jnp.take_along_axis(order, jnp.maximum(rank[-1:] - rank, 0), 0)
    source = jnp.where(valid, source, jnp.arange(xs.shape[0]).reshape(-1, *[1] * (valid.ndim - 1)))
    return jnp.take_along_axis(xs, source.reshape(source.shape + (1,) * (xs.ndim - source.ndim)), 0)
