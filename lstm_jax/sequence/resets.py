"""Flags for the argument ``resets`` of ``unroll``, from episodes and from packed documents."""

from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.sequence.rows import checked_flags, valid_steps


def resets_from_dones(dones: jax.Array, previous_done: jax.Array) -> jax.Array:
    """The resets of a rollout, from flags that mark the last step of each episode.

    A step that ends an episode still belongs to it; the step after it begins the next one::

        t          -1 |  0   1   2   3   4
        episode     a |  b   b   b   c   c
        dones[t]    1 |  0   0   1   0   0
                     \\    \\   \\   \\   \\
        resets[t]      |  1   0   0   1   0

    so ``resets[t] = dones[t - 1]``, and ``resets[0]`` is the flag of the last step of the
    rollout before this one.  With ``resets = dones`` the last step of each episode would
    read an empty memory, and the first step of the next one would read the end of that episode:
    training seems to work, but the agent learns to act without its memory.

    Args:
      dones: booleans ``[T, ...]``; whether step t was the last of its episode.
      previous_done: booleans ``[...]``; the same for the step before this rollout.  All true
        before the first rollout, ``dones[-1]`` of the last one after it.

    Returns:
      Booleans ``[T, ...]`` for ``unroll(..., resets=)``.

    Raises:
      TypeError: an argument is not an array of booleans.
      ValueError: ``dones`` has no time axis, or ``previous_done`` does not have its batch shape.

    Example:
      >>> import jax.numpy as jnp
      >>> resets_from_dones(jnp.array([False, False, True, False]), jnp.array(True)).tolist()
      [True, False, False, True]

    References:
      Matthew Hausknecht, Peter Stone, "Deep Recurrent Q-Learning for Partially Observable
      MDPs", AAAI Fall Symposium 2015 (the state is reset at the start of each episode).
    """
    dones = checked_flags("dones", dones)
    previous_done = checked_flags(
        "previous_done", previous_done, dones.shape[1:], "the batch shape of dones"
    )
    return jnp.concatenate([previous_done[None], dones])[: len(dones)]


def resets_from_segments(segment_ids: jax.Array) -> jax.Array:
    """The resets of rows that hold several documents one after the other::

        t                0   1   2   3   4   5
        segment_ids[t]   1   1   2   2   2   0
        resets[t]        1   0   1   0   0   1

    Args:
      segment_ids: integers ``[T, ...]``, one for each document of a row, as from
        :func:`pack`.

    Returns:
      Booleans ``[T, ...]`` for ``unroll(..., resets=)``: true at t = 0 and where the id
      differs from that of the previous step.

    Raises:
      TypeError: ``segment_ids`` are not integers.
      ValueError: they have no time axis.

    Example:
      >>> import jax.numpy as jnp
      >>> resets_from_segments(jnp.array([1, 1, 2, 2, 2, 0])).tolist()
      [True, False, True, False, False, True]
    """
    segment_ids = jnp.asarray(segment_ids)
    if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise TypeError(f"segment_ids must be integers, got {segment_ids.dtype}")
    if segment_ids.ndim < 1:
        raise ValueError(f"segment_ids must be [T, ...], got shape {segment_ids.shape}")
    first = jnp.ones_like(segment_ids[:1], dtype=bool)
    return jnp.concatenate([first, segment_ids[1:] != segment_ids[:-1]])


def reversed_resets(
    resets: jax.Array, lengths: jax.Array | None = None, *, mask: jax.Array | None = None
) -> jax.Array:
    """Resets for ``unroll(..., reverse=True)`` at the document boundaries of ``resets``.

    When time runs backwards, a document starts at its last step: the valid step before the first
    step of the next document::

        t                    0   1   2   3   4   5
        document             a   a   -   b   b   b
        mask[t]              1   1   0   1   1   1
        resets[t]            1   0   0   1   0   0
        reversed_resets[t]   0   1   0   0   0   0

    Args:
      resets: booleans ``[T, ...]``; whether a document begins at t.
      lengths: integers ``[...]``; flags past a row's end are ignored.  None for whole rows.
      mask: booleans ``[T, ...]``; flags at false steps are ignored.  None for no gaps.

    Returns:
      Booleans ``[T, ...]``; false at a row's last valid step, where the backward direction
      starts from the ``state`` argument of :func:`unroll`.

    Raises:
      TypeError: ``resets`` or ``mask`` are not booleans.
      ValueError: ``resets`` have no time axis, or ``mask`` has another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> reversed_resets(jnp.array([True, False, True, False, False])).tolist()
      [False, True, False, False, False]
    """
    resets = checked_flags("resets", resets)
    if mask is not None:
        mask = checked_flags("mask", mask, resets.shape, "the shape of resets")
    if mask is None:
        ends = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
        if lengths is None:
            return ends
        following = jnp.arange(1, resets.shape[0] + 1).reshape(-1, *[1] * (resets.ndim - 1))
        return ends & (following < jnp.asarray(lengths))
    valid = mask if lengths is None else mask & valid_steps(resets.shape[0], lengths)

    def step(next_begins: jax.Array, now: tuple[jax.Array, jax.Array]) -> Any:
        valid, reset = now
        return jnp.where(valid, reset, next_begins), valid & next_begins

    none = (resets[:1] & valid[:1] & False).any(0)  # sharded as the flags are
    _, ends = jax.lax.scan(step, none, (valid, resets), reverse=True)
    return ends
