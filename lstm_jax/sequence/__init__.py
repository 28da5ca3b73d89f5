"""Running cells over time: one cell, and stacks of them."""

from lstm_jax.sequence.layers import LSTM, dropout
from lstm_jax.sequence.regularizers import (
    DropConnect,
    RecurrentDropout,
    VariationalDropout,
    Zoneout,
)
from lstm_jax.sequence.unroll import initial_state, unroll

__all__ = [
    "LSTM",
    "DropConnect",
    "RecurrentDropout",
    "VariationalDropout",
    "Zoneout",
    "dropout",
    "initial_state",
    "unroll",
]
