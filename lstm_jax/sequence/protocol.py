"""The protocol of layers, and helpers that work on cells and layers alike."""

import dataclasses
from typing import Any, Protocol

import jax

from lstm_jax.cells.base import Params, State


class Layer(Protocol):
    """Something that runs over a whole sequence, such as :class:`Bidirectional`.

    Implementations are frozen, hashable and hold no arrays, as cells do.  A layer may define
    ``is_stochastic``, false where ``apply`` never uses its ``key``.
    """

    @property
    def output_size(self) -> int:
        """Features of one output."""
        ...

    def init(self, key: jax.Array, input_size: int) -> Params:
        """Parameters for inputs of ``input_size`` features, initialised with ``key``."""
        ...

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> State:
        """The state before the first step: zeros."""
        ...

    def apply(
        self,
        params: Params,
        xs: jax.Array,
        state: State | None = None,
        *,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[State, jax.Array]:
        """The layer over ``[T, ..., D]``: ``(state, ys)``; arguments as in :func:`unroll`."""
        ...


@dataclasses.dataclass(frozen=True)
class Around:
    """A wrapper around a cell, with the sizes, options and initial state of that cell.

    Attributes:
      cell: the wrapped cell.
    """

    cell: Any

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling ask for dunders before there is a cell.
        if name.startswith("__") or name == "cell":
            raise AttributeError(name)
        return getattr(self.cell, name)

    @property
    def is_linear(self) -> bool:
        """Always false: a wrapper works step by step."""
        return False


def is_stochastic(thing: Any) -> bool:
    """Whether a cell or layer uses a random key: it has dropout or a regulariser.

    Rates of zero do not count.  A custom layer that does not define ``is_stochastic`` is assumed
    to use its key.

    >>> from lstm_jax import LSTM, LSTMCell
    >>> is_stochastic(LSTM(3, num_layers=2, dropout=0.5)), is_stochastic(LSTMCell(3))
    (True, False)
    """
    return getattr(thing, "is_stochastic", is_layer(thing))


def is_layer(thing: Any) -> bool:
    """Whether ``thing`` is a layer rather than a cell: it has ``apply``."""
    return hasattr(thing, "apply")


def check_cell(name: str, thing: Any) -> None:
    """Raises a TypeError if ``thing`` is not a cell."""
    if isinstance(thing, type) or is_layer(thing) or not _has(thing, "init zero_state step"):
        raise TypeError(f"{name} must be a cell (init, zero_state, step), got {thing!r}")


def check_cell_or_layer(name: str, thing: Any) -> None:
    """Raises a TypeError if ``thing`` is neither a cell nor a layer."""
    wanted = "init zero_state apply" if is_layer(thing) else "init zero_state step"
    if isinstance(thing, type) or not _has(thing, wanted):
        raise TypeError(
            f"{name} must be a cell (init, zero_state, step) or a layer (init, zero_state, "
            f"apply), got {thing!r}"
        )


def _has(thing: Any, members: str) -> bool:
    return all(hasattr(thing, member) for member in members.split())


def output_size(thing: Any) -> int:
    """Features of one output of a cell or layer; H for a cell without ``output_size``.

    >>> from lstm_jax import LSTMCell
    >>> output_size(LSTMCell(hidden_size=3))
    3
    """
    return thing.output_size if hasattr(thing, "output_size") else thing.hidden_size


def input_size(thing: Any, params: Params) -> int | None:
    """D, read from the parameters of a cell or layer; None if they do not determine it.

    >>> import jax
    >>> from lstm_jax import LSTMCell
    >>> cell = LSTMCell(hidden_size=3)
    >>> input_size(cell, cell.init(jax.random.key(0), input_size=2))
    2
    """
    return thing.input_size(params) if hasattr(thing, "input_size") else None


def num_feature_axes(thing: Any) -> int:
    """The number of feature axes of an input: the last axis, and spatial axes before it.

    >>> from lstm_jax import LSTM
    >>> num_feature_axes(LSTM(3)), num_feature_axes(LSTM(3, cell="conv_lstm"))
    (1, 3)
    """
    return getattr(thing, "num_feature_axes", 1)
