"""A second LSTM, in NumPy and float64, written only from the equations."""

import numpy as np


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def lstm_step(params, h, c, x):
    """One step; gates in the order i, f, g, o."""
    z = x @ params["w_ih"] + h @ params["w_hh"] + params["b"]
    i, f, g, o = np.split(z, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, c


def lstm(params, xs, h=None, c=None, lengths=None):
    """A loop over time and rows: ``xs`` ``[T, B, D]`` to ``(h, c, ys)``."""
    params = {name: np.asarray(array, np.float64) for name, array in params.items()}
    xs = np.asarray(xs, np.float64)
    steps, batch, _ = xs.shape
    size = params["w_hh"].shape[0]
    h = np.zeros((batch, size)) if h is None else np.array(h, np.float64)
    c = np.zeros((batch, size)) if c is None else np.array(c, np.float64)
    ys = np.zeros((steps, batch, size))
    for row in range(batch):
        for t in range(steps if lengths is None else lengths[row]):
            h[row], c[row] = lstm_step(params, h[row], c[row], xs[t, row])
            ys[t, row] = h[row]
    return h, c, ys
