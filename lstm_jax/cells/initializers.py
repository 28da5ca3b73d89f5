"""Initialisers by name, and initialisers of several gates."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import chosen_function

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

# JAX's factories return a new function at each call.  Cells are compared, hashed and pickled by
# their initialisers, so these are functions of a module.


def glorot_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples uniformly, with variance 2 / (in + out) (Glorot & Bengio 2010)."""
    return jax.nn.initializers.glorot_uniform()(key, shape, dtype)


def lecun_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples a normal distribution truncated at two standard deviations, with variance 1 / in."""
    return jax.nn.initializers.lecun_normal()(key, shape, dtype)


def orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples a matrix with orthonormal rows or columns (Saxe et al. 2014)."""
    return jax.nn.initializers.orthogonal()(key, shape, dtype)


def torch_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples uniformly between ±1 / sqrt(H), with H the size of the last axis, as torch does."""
    limit = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def torch_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples the sum of torch's two biases, each from :func:`torch_uniform`."""
    return torch_uniform(key, (2, *shape), dtype).sum(0)


zeros = jax.nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class Joint:
    """Initialises the weights of all gates as one matrix: ``(D, 4H)``, not four of ``(D, H)``.

    Jointly orthogonal recurrent weights ``(H, 4H)`` have orthonormal rows.  Their elements are
    half as large as if each gate were orthogonal.

    Attributes:
      init: initialises the matrix.
    """

    init: Initializer

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return self.init(key, shape, dtype)


INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": glorot_uniform,
    "joint_glorot_uniform": Joint(glorot_uniform),
    "joint_orthogonal": Joint(orthogonal),
    "lecun_normal": lecun_normal,
    "orthogonal": orthogonal,
    "torch_bias": torch_bias,
    "torch_uniform": torch_uniform,
    "zeros": zeros,
}
"""Initialisers by their name in configs."""


def initializer(name: str, given: Initializer | str) -> Initializer:
    """The initialiser that an option selects, as a function.

    Args:
      name: the option, for error messages.
      given: a key of :data:`INITIALIZERS` or a callable.

    Raises:
      ValueError: the string is not a key of :data:`INITIALIZERS`.
      TypeError: it is neither a string nor callable.

    >>> initializer("kernel_init", "lecun_normal") is lecun_normal
    True
    """
    return chosen_function(name, given, INITIALIZERS)


def blocks(init: Initializer | str, count: int) -> Initializer:
    """An initialiser of ``count`` equal blocks, concatenated along the last axis.

    It initialises each block separately.  With an orthogonal ``init``, for example, the recurrent
    weights of each gate are orthogonal.  A :class:`Joint` initialises all blocks as one matrix.

    >>> import jax
    >>> blocks(jax.nn.initializers.orthogonal(), 4)(jax.random.key(0), (3, 12), "float32").shape
    (3, 12)
    """
    return side_by_side(init, (1,) * count)


def side_by_side(init: Initializer | str, widths: tuple[int, ...]) -> Initializer:
    """Like :func:`blocks`, for blocks whose widths have these proportions."""
    function = initializer("init", init)
    if isinstance(function, Joint):
        return function

    def init_blocks(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        keys, unit = jax.random.split(key, len(widths)), shape[-1] // sum(widths)
        drawn = [
            function(k, (*shape[:-1], unit * width), dtype)
            for k, width in zip(keys, widths, strict=True)
        ]
        return jnp.concatenate(drawn, -1)

    return init_blocks


def constant(value: jax.Array) -> Initializer:
    """An initialiser that returns ``value``."""
    return lambda key, shape, dtype: jnp.broadcast_to(value, shape).astype(dtype)


def chrono_bias(longest: float) -> Initializer:
    """An initialiser that samples log u, u uniform in [1, longest - 1] (Tallec & Ollivier 2018)."""
    return lambda key, shape, dtype: jnp.log(
        jax.random.uniform(key, shape, dtype, 1.0, longest - 1.0)
    )
