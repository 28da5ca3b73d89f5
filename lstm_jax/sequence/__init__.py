"""Running cells over time: one cell, and stacks of them."""

from lstm_jax.sequence.layers import LSTM, dropout
from lstm_jax.sequence.unroll import unroll

__all__ = ["LSTM", "dropout", "unroll"]
