"""One step at a time, for inputs that arrive one at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.base import Params, State, check_size
from lstm_jax.sequence.protocol import check_cell_or_layer, input_size
from lstm_jax.sequence.unroll import initial_state


class Stream:
    """A compiled step with its parameters, as :func:`stream` makes it.

    It holds no state of its own: ``state, y = step(state, x)``.

    Attributes:
      layer: the cell or layer.
      params: its parameters, on one device.

    >>> import jax
    >>> from lstm_jax import LSTMCell
    >>> cell = LSTMCell(hidden_size=3)
    >>> step = Stream(cell, cell.init(jax.random.key(0), input_size=2), batch_shape=(5,))
    >>> state, y = step(step.initial_state(), jax.numpy.ones((5, 2)))
    >>> y.shape
    (5, 3)
    """

    def __init__(
        self, layer: Any, params: Params, batch_shape: tuple[int, ...], input_size: int | None
    ):
        ...
