"""Activation functions by name, and the four uses of them in an LSTM."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

Function = Callable[[jax.Array], jax.Array]  # element-wise
Activation = str | Function
F = TypeVar("F")


def identity(x: jax.Array) -> jax.Array:
    """Returns ``x`` unchanged."""
    return x


ACTIVATIONS: dict[str, Function] = {
    "elu": jax.nn.elu,
    "exp": jnp.exp,
    "gelu": jax.nn.gelu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "identity": identity,
    "leaky_relu": jax.nn.leaky_relu,
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "tanh": jnp.tanh,
}
"""Element-wise functions by their name in configs."""


class Activations(NamedTuple):
    """The element-wise functions of a gated cell, by their names in the equations.

    Attributes:
      gate: applied to the pre-activation of each gate; σ in the docstrings.
      candidate: applied to the pre-activation of the candidate g.
      output: applied to the cell state to compute the hidden state.
      clip: applied to the new cell state; the identity unless there is a ``cell_clip``.

    >>> import jax.numpy as jnp
    >>> Activations().candidate(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """

    gate: Function = jax.nn.sigmoid
    candidate: Function = jnp.tanh
    output: Function = jnp.tanh
    clip: Function = identity


STANDARD = Activations()
"""σ, tanh, tanh and no clipping."""


def activation(name: str, given: Activation) -> Function:
    """The function that an option selects.

    Args:
      name: the option, for error messages.
      given: a key of :data:`ACTIVATIONS` or a callable.

    Raises:
      ValueError: the string is not a key of :data:`ACTIVATIONS`.
      TypeError: it is neither a string nor callable.

    >>> activation("gate_fn", "hard_sigmoid") is jax.nn.hard_sigmoid
    True
    """
    return chosen_function(name, given, ACTIVATIONS)


def chosen_function(name: str, given: F | str, known: Mapping[str, F]) -> F:
    """Returns a function unchanged, and for a name the function in ``known``.

    Raises:
      ValueError: the string is not a key of ``known``.
      TypeError: it is neither a string nor callable.
    """
    if isinstance(given, str):
        if given not in known:
            raise ValueError(
                f"{name} must be a function or one of {', '.join(known)}, got {given!r}"
            )
        return known[given]
    if not callable(given):
        raise TypeError(f"{name} must be a function or the name of one, got {given!r}")
    return given


def clipped(function: Function, limit: float | None) -> Function:
    """``function`` with its argument clipped to [-limit, limit]; unchanged if ``limit`` is None."""
    if limit is None:
        return function
    return lambda x: function(jnp.clip(x, -limit, limit))


def check_limit(name: str, limit: Any) -> None:
    """Raises an error if ``limit`` is neither None nor a positive number."""
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        raise TypeError(f"{name} must be a positive number or None, got {limit!r}")
    if not limit > 0:
        raise ValueError(f"{name} must be above 0, got {limit}")
