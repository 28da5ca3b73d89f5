"""Gate equations: pure functions and the dataclasses that hold their sizes and options."""

from collections.abc import Callable
from typing import Any

from lstm_jax.cells.activations import ACTIVATIONS, Activations
from lstm_jax.cells.base import BaseCell, Cell, GatedCell, LSTMFamilyCell, Parameter
from lstm_jax.cells.lstm import LSTMCell, LSTMState, lstm_cell
from lstm_jax.cells.rnn import RNNCell, RNNState, rnn_cell

CELLS: dict[str, Callable[..., Any]] = {
    "lstm": LSTMCell,
    "rnn": RNNCell,
}
"""Cell classes by the name that a config gives them; each is built from ``hidden_size=`` alone."""

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "Activations",
    "BaseCell",
    "Cell",
    "GatedCell",
    "LSTMCell",
    "LSTMFamilyCell",
    "LSTMState",
    "Parameter",
    "RNNCell",
    "RNNState",
    "lstm_cell",
    "rnn_cell",
]
