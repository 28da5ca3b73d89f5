"""Rows that end before the last step."""

import jax
import jax.numpy as jnp


def valid_steps(num_steps: int, lengths: jax.Array) -> jax.Array:
    """Booleans ``[T, ...]``: whether a step is before the end of its row.

    >>> import jax.numpy as jnp
    >>> valid_steps(3, jnp.array([2, 0])).tolist()
    [[True, False], [True, False], [False, False]]
    """
    lengths = jnp.asarray(lengths)
    return jnp.arange(num_steps).reshape(-1, *[1] * lengths.ndim) < lengths


def flipped(xs: jax.Array, lengths: jax.Array) -> jax.Array:
    """Each row of ``[T, ..., D]`` turned round within its own length.

    >>> import jax.numpy as jnp
    >>> flipped(jnp.arange(3.0).reshape(3, 1, 1), jnp.array([2]))[:, 0, 0].tolist()
    [1.0, 0.0, 2.0]
    """
    lengths = jnp.asarray(lengths)
    t = jnp.arange(xs.shape[0]).reshape(-1, *[1] * lengths.ndim)
    source = jnp.where(t < lengths, lengths - 1 - t, t)
    return jnp.take_along_axis(xs, source.reshape(source.shape + (1,) * (xs.ndim - source.ndim)), 0)
