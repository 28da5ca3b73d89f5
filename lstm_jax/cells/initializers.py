"""How parameters begin: initialisers by name, and of several gates at once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import chosen_function

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

# Functions of this module, since cells compare (and hash, and are pickled) by those they hold:
# what JAX's factories return is new with each call.


def glorot_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples uniformly, with the variance 2 / (in + out) (Glorot & Bengio 2010)."""
    return jax.nn.initializers.glorot_uniform()(key, shape, dtype)


def lecun_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples from a normal distribution cut off at two deviations, with the variance 1 / in."""
    return jax.nn.initializers.lecun_normal()(key, shape, dtype)


def orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples a matrix with orthonormal rows or columns (Saxe et al. 2014)."""
    return jax.nn.initializers.orthogonal()(key, shape, dtype)


def torch_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples uniformly between plus and minus 1 / sqrt(H), H the last axis, as torch does."""
    limit = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def torch_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples the sum of torch's two biases: of two values of :func:`torch_uniform`."""
    return torch_uniform(key, (2, *shape), dtype).sum(0)


zeros = jax.nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class Joint:
    """Initialises the weights of all gates as one matrix: ``(D, 4H)``, not four of ``(D, H)``.

    Jointly orthogonal recurrent weights ``(H, 4H)`` have orthonormal rows; each gate's elements are
    half as large as those of a gate that is orthogonal by itself.

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
"""Initialisers by the name that a config gives them."""


def initializer(name: str, given: Initializer | str) -> Initializer:
    """The initialiser that an option asks for, by its name or itself.

    Args:
      name: the option, for messages.
      given: a key of :data:`INITIALIZERS` or a callable.

    Raises:
      ValueError: the string is not a key of :data:`INITIALIZERS`.
      TypeError: it is neither a string nor callable.

    >>> initializer("kernel_init", "lecun_normal") is lecun_normal
    True
    """
    return chosen_function(name, given, INITIALIZERS)


def blocks(init: Initializer | str, count: int) -> Initializer:
    """An initialiser of ``count`` equal blocks side by side along the last axis.

    It initialises each block by itself: with an orthogonal ``init``, the recurrent weights of each
    gate are orthogonal.  A :class:`Joint` one initialises all blocks as one matrix.

    >>> import jax
    >>> blocks(jax.nn.initializers.orthogonal(), 4)(jax.random.key(0), (3, 12), "float32").shape
    (3, 12)
    """
    return side_by_side(init, (1,) * count)


def side_by_side(init: Initializer | str, widths: tuple[int, ...]) -> Initializer:
    """An initialiser of blocks whose widths are in these proportions, as :func:`blocks`."""
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
    """Begins with ``value``."""
    return lambda key, shape, dtype: jnp.broadcast_to(value, shape).astype(dtype)


def chrono_bias(longest: float) -> Initializer:
    """Samples log u with u uniform in [1, longest - 1] (Tallec & Ollivier 2018)."""
    return lambda key, shape, dtype: jnp.log(
        jax.random.uniform(key, shape, dtype, 1.0, longest - 1.0)
    )
