"""What the nnx and the linen modules share: drawing with metadata, first carries, layouts."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import Cell, Initializer, Params, State
from lstm_jax.cells.base import draw as draw_parameter
from lstm_jax.sequence.unroll import initial_state

Unbox = Callable[[Any], tuple[jax.Array, Any]]  # what an initialiser returns to (array, box)


class Drawn(NamedTuple):
    """One new parameter.

    Attributes:
      value: the array.
      source: the field of the cell that drew it, such as ``"kernel_init"``; None for none.
      box: what the initialiser returned the array (of one gate) in, for its metadata; None
        for a bare array.
    """

    value: jax.Array
    source: str | None = None
    box: Any = None


def draw(cell: Any, key: jax.Array, input_size: int, unbox: Unbox) -> dict[str, Drawn]:
    """A cell's parameters, by name, as its ``init`` draws them.

    An initialiser may return its array in a box of metadata.  Cells draw each gate by itself
    and lay the arrays side by side, so gates are drawn unboxed; whoever calls this puts the
    whole parameter in the box of its first gate.

    Raises:
      TypeError: the parameters are no flat dict of arrays.
    """
    seen: list[tuple[str, Any]] = []

    def recorded(source: str, init: Initializer) -> Initializer:
        def unboxed(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            value, box = unbox(init(key, shape, dtype))
            seen.append((source, box))
            return value

        return unboxed

    describes = hasattr(cell, "all_parameters")
    if describes:
        names = [field.name for field in dataclasses.fields(cell) if field.name.endswith("_init")]
        cell = dataclasses.replace(
            cell, **{name: recorded(name, getattr(cell, name)) for name in names}
        )
    params = cell.init(key, input_size)
    if not isinstance(params, dict) or not all(map(_is_array, params.values())):
        raise TypeError(
            f"parameters of {type(cell).__name__} must be a flat dict of arrays to be held by "
            f"a Flax module, got {jax.tree.structure(params)}"
        )
    if not describes:
        return {name: Drawn(value) for name, value in params.items()}
    drawn = {}
    for name, parameter in cell.all_parameters(input_size).items():
        seen.clear()  # what this parameter asks is told without drawing it once more
        jax.eval_shape(lambda k, p=parameter: draw_parameter(p, k, cell.param_dtype), key)
        drawn[name] = Drawn(params[name], *seen[0]) if seen else Drawn(params[name])
    return drawn


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)


def first_carry(
    cell: Cell,
    params: Params,
    input_shape: tuple[int, ...],
    carry_init: Initializer | None,
    new_key: Callable[[], jax.Array],
) -> State:
    """The state before the first step: the cell's own, or each array drawn by ``carry_init``.

    Args:
      cell: a cell.
      params: its parameters, of which the state is one where it is learned.
      input_shape: shape of one step's input, ``[..., D]``.
      carry_init: draws the arrays; None for the cell's own initial state.
      new_key: a random key for each array.
    """
    batch_shape = tuple(input_shape[:-1])  # with the axes of space, where a cell has some
    if carry_init is None:
        return initial_state(cell, params, batch_shape)
    zeros = jax.eval_shape(lambda: cell.zero_state(batch_shape))
    return jax.tree.map(lambda zero: carry_init(new_key(), zero.shape, zero.dtype), zeros)


def check_options(module: str, functional: type, options: dict[str, Any]) -> None:
    """Raises where a keyword is no option of the functional cell."""
    known = option_fields(functional)
    for name in options:
        if name not in known:
            raise TypeError(
                f"{module} got an unexpected keyword argument {name!r}; "
                f"its options are {', '.join(known)}"
            )


def option_fields(functional: type) -> dict[str, dataclasses.Field]:
    """The options of a functional cell by name: all that is told to it but its size."""
    fields = dataclasses.fields(functional)
    return {field.name: field for field in fields if field.init and field.name != "hidden_size"}
