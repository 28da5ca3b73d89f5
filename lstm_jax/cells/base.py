"""What every cell is, and the few helpers that all cells share."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Params = Any  # a pytree of arrays
State = Any  # a pytree of arrays, each with the batch axes leading
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


class Cell(Protocol):
    """A recurrent cell: its sizes and options, and its equations as one pure step.

    Implementations are frozen dataclasses, so that they are hashable and can be
    static arguments of a jitted function.  They hold no arrays.
    """

    @property
    def hidden_size(self) -> int:
        """H, the number of features of one output."""
        ...

    def init(self, key: jax.Array, input_size: int) -> Params:
        """Parameters for inputs of ``input_size`` features, drawn from ``key``."""
        ...

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> State:
        """The state of a sequence that has not begun."""
        ...

    def step(self, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
        """One step in time: ``(state, y)``."""
        ...


def accumulation_dtype(*arrays_or_dtypes: Any) -> jnp.dtype:
    """The type in which products of these are summed: float32, or wider if they are."""
    return jnp.promote_types(jnp.result_type(*arrays_or_dtypes), jnp.float32)


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w``, multiplied in the operands' type and summed in float32 or wider."""
    dtype = jnp.result_type(x, w)
    return jnp.matmul(
        x.astype(dtype), w.astype(dtype), preferred_element_type=accumulation_dtype(dtype)
    )


def cast(tree: Any, dtype: DTypeLike | None) -> Any:
    """The tree with every array in ``dtype``; as it is where ``dtype`` is None."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def check_hidden_size(hidden_size: int) -> None:
    """Raises where ``hidden_size`` is no positive integer."""
    if isinstance(hidden_size, bool) or not isinstance(hidden_size, int):
        raise TypeError(f"hidden_size must be an int, got {hidden_size!r}")
    if hidden_size < 1:
        raise ValueError(f"hidden_size must be at least 1, got {hidden_size}")


def check_input_size(input_size: int) -> None:
    """Raises where ``input_size`` is no positive integer."""
    if isinstance(input_size, bool) or not isinstance(input_size, int):
        raise TypeError(f"input_size must be an int, got {input_size!r}")
    if input_size < 1:
        raise ValueError(f"input_size must be at least 1, got {input_size}")


def check_features(name: str, array: jax.Array, size: int, axes: str, letter: str) -> None:
    """Raises where the last axis of ``array`` does not have ``size`` elements."""
    if array.ndim < 1 or array.shape[-1] != size:
        raise ValueError(f"{name} must be {axes} with {letter}={size}, got shape {array.shape}")
