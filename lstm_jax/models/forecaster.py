"""A forecaster that reads a window in segments."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Carry, Model, Outputs
from lstm_jax.nnx import LSTM


class SegmentForecaster(Model):
    """Forecasts each column of a table from its own past, with the same weights for every column.

    The model subtracts a level, the last value ``x_W``, from a column's window ``x_1 .. x_W``.  It
    divides the result into segments of S rows, embeds each segment, and runs an LSTM over the
    embeddings.  A linear map of the last hidden state gives the whole horizon of F rows::

        e_n = relu(W_e (x_{(n-1)S+1 .. nS} - x_W) + b_e)
        h_N = LSTM(e_1, ..., e_N)
        y_{1..F} = W_y h_N + b_y + x_W

    Args:
      columns: C.
      segment: S, the number of rows per step of the LSTM.
      horizon: F, the number of future rows.
      hidden_features: H, features of embeddings and of each layer.
      num_layers: stacked layers.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      dropout: dropout rate of the outputs of every layer.
      dtype: type of the products in the layers.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Example:
      >>> model = SegmentForecaster(columns=2, segment=4, horizon=3, hidden_features=8,
      ...                           rngs=nnx.Rngs(0))
      >>> past = jnp.ones((5, 12, 2))  # [B, W, C]
      >>> carry, outputs = model(model.initial_carry(5), past=past, level=past[:, -1])
      >>> outputs["forecast"].shape  # [B, F, C]
      (5, 3, 2)

    References:
      Shengsheng Lin et al., "SegRNN: Segment Recurrent Neural Network for Long-Term Time
      Series Forecasting", arXiv:2308.11200, 2023 (segments, independent channels, subtraction of
      the last value; this model has an LSTM, and one linear map for the horizon).
    """

    def __init__(
        self,
        columns: int,
        segment: int,
        horizon: int,
        hidden_features: int,
        num_layers: int = 1,
        *,
        cell: Any = "lstm",
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        glorot = jax.nn.initializers.glorot_uniform()
        self.columns, self.segment = columns, segment
        self.embedding = nnx.Linear(segment, hidden_features, kernel_init=glorot, rngs=rngs)
        self.lstm = LSTM(
            hidden_features, hidden_features, num_layers,
            cell=cell, dropout=dropout, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        width = self.lstm.layer.output_size
        self.readout = nnx.Linear(width, horizon, kernel_init=glorot, rngs=rngs)

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return {
            "past": (f"b, {self.segment}*t, {self.columns}", "float32"),
            "level": (f"b, {self.columns}", "float32"),
        }

    def initial_carry(self, rows: int) -> Carry:
        """The state of each layer, arrays ``[rows, C, H]``."""
        return self.lstm.layer.initial_state(self.lstm.params, (rows, self.columns))

    def __call__(
        self, carry: Carry, *, past: jax.Array, level: jax.Array, rngs: nnx.Rngs | None = None
    ) -> tuple[Carry, Outputs]:
        """The forecast after further segments of the window.

        Args:
          carry: as from :meth:`initial_carry`, or from earlier segments.
          past: ``[B, N * S, C]``.
          level: the window's last row, ``[B, C]``.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, {"forecast": [B, F, C]})``.
        """
        rows, _, columns = past.shape
        level = level[:, None]
        flat = (past - level).swapaxes(1, 2).reshape(rows * columns, -1, self.segment)
        embedded = jax.nn.relu(self.embedding(flat.swapaxes(0, 1)))  # [N, B * C, H]
        carry = jax.tree.map(lambda leaf: leaf.reshape(rows * columns, *leaf.shape[2:]), carry)
        carry, ys = self.lstm(
            embedded, initial_carry=carry, time_major=True, return_carry=True,
            rngs=rngs,
        )  # fmt: skip
        change = self.readout(self.dropout(ys[-1].astype(jnp.float32), rngs=rngs))
        carry = jax.tree.map(lambda leaf: leaf.reshape(rows, columns, *leaf.shape[1:]), carry)
        return carry, {"forecast": change.reshape(rows, columns, -1).swapaxes(1, 2) + level}
