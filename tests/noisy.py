"""Cells and layers that add noise in training."""

import lstm_jax
from lstm_jax import cells, sequence

H = 5

NOISY = {
    "dropout": lambda rate: sequence.Stack([cells.RNNCell(H)] * 2, dropout=rate),
    "both_directions": lambda rate: sequence.Bidirectional(
        cells.RNNCell(H), sequence.Zoneout(cells.RNNCell(H), rate, 0.0)
    ),
    "zoneout": lambda rate: sequence.Zoneout(cells.RNNCell(H), rate, 0.0),
    "variational": lambda rate: sequence.VariationalDropout(cells.RNNCell(H), rate, 0.0, 0.0),
    "recurrent": lambda rate: sequence.RecurrentDropout(cells.GRUCell(H), rate),
    "drop_connect": lambda rate: sequence.DropConnect(cells.RNNCell(H), rate),
    "nested": lambda rate: sequence.Zoneout(sequence.DropConnect(cells.RNNCell(H), rate), 0.0, 0.0),
    "lstm": lambda rate: lstm_jax.LSTM(H, 2, cell="rnn", dropout=rate),
}
"""Each kind of noise, as a function of its rate."""
