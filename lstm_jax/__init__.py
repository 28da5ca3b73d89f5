"""Long short-term memory networks in JAX: pure cells, scanned over time.

The core imports jax and nothing heavier; Flax modules live in ``lstm_jax.nnx``.
"""

from lstm_jax.cells import CELLS, LSTMCell, LSTMState, lstm_cell
from lstm_jax.sequence import LSTM, unroll

__all__ = ["CELLS", "LSTM", "LSTMCell", "LSTMState", "lstm_cell", "unroll"]
__version__ = "0.1.0"
