"""Gate equations: pure functions and the dataclasses that hold their sizes and options."""

from lstm_jax.cells.base import Cell
from lstm_jax.cells.lstm import LSTMCell, LSTMState, lstm_cell

CELLS: dict[str, type] = {
    "lstm": LSTMCell,
}
"""Cell classes by the name that a config gives them; each is built from ``hidden_size=`` alone."""

__all__ = ["CELLS", "Cell", "LSTMCell", "LSTMState", "lstm_cell"]
