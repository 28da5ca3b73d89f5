"""Long short-term memory networks in JAX: pure cells, scanned over time.

The core imports jax and nothing heavier; Flax modules live in ``lstm_jax.nnx``.
"""

from lstm_jax.cells import CELLS, LSTMCell, LSTMState, lstm_cell
from lstm_jax.sequence import (
    LSTM,
    Bidirectional,
    Stack,
    choose_engine,
    pack,
    resets_from_dones,
    resets_from_segments,
    stream,
    truncated,
    unpack,
    unroll,
)
from lstm_jax.tune import tune_cpu

__all__ = [
    "CELLS",
    "LSTM",
    "Bidirectional",
    "LSTMCell",
    "LSTMState",
    "Stack",
    "choose_engine",
    "lstm_cell",
    "pack",
    "resets_from_dones",
    "resets_from_segments",
    "stream",
    "truncated",
    "tune_cpu",
    "unpack",
    "unroll",
]
__version__ = "0.1.0"
