"""cuDNN: the flat weight buffer of ``jax.experimental.rnn``."""

from typing import Any

import jax

from lstm_jax.cells import LSTMCell
from lstm_jax.cells.base import Params, check_size
from lstm_jax.interop.conventions import CONVENTIONS, GATES, to_ours
from lstm_jax.interop.weights import (
    as_array,
    as_params,
    cells_of,
    check_same,
)
from lstm_jax.sequence import cudnn
from lstm_jax.sequence.bidirectional import Bidirectional
from lstm_jax.sequence.stack import Stack


def from_cudnn(
    weights: Any,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
) -> tuple[Stack, Params]:
    """Converts the weight buffer of ``jax.experimental.rnn.lstm`` to an lstm_jax stack.

    The two biases are summed.

    Args:
      weights: an array of one axis, as ``init_lstm_weight`` returns it.  May be traced.
      input_size: D.
      hidden_size: H.
      num_layers: L.
      bidirectional: whether each layer reads its sequence in both directions.

    Returns:
      ``(stack, params)``.

    Raises:
      TypeError, ValueError: a size is not a positive integer, or ``weights`` has another length.

    Example:
      >>> import jax
      >>> from jax.experimental import rnn
      >>> weights = rnn.init_lstm_weight(jax.random.key(0), 2, 3, 1, True)
      >>> stack, params = from_cudnn(weights, 2, 3, bidirectional=True)
      >>> params["layer_0"]["backward"]["w_ih"].shape
      (2, 12)
    """
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    for name, size in sizes.items():
        check_size(name, size)
    weights, ends = as_array("weights", weights), 1 + bool(bidirectional)
    if num_layers > weights.size:  # a layer has more than one number
        raise ValueError(f"num_layers={num_layers} is too large for {weights.size} weights")
    rows = 4 * hidden_size
    widths = [input_size] * ends + [ends * hidden_size] * ends * (num_layers - 1)
    shapes = [shape for width in widths for shape in ((rows, width), (rows, hidden_size))]
    shapes += [(rows,)] * (2 * len(widths))
    lengths = [shape[0] * shape[1] if len(shape) == 2 else shape[0] for shape in shapes]
    if weights.shape != (sum(lengths),):
        raise ValueError(
            f"weights must have shape ({sum(lengths)},) for input_size={input_size}, "
            f"hidden_size={hidden_size}, num_layers={num_layers}, "
            f"bidirectional={bool(bidirectional)}, got {weights.shape}"
        )
    parts, start = [], 0
    for shape, length in zip(shapes, lengths, strict=True):
        part = weights[start : start + length].reshape(shape)
        parts.append(to_ours(part, CONVENTIONS["cudnn"]["lstm"], GATES["lstm"]))
        start += length
    matrices, biases = parts[: 2 * len(widths)], parts[2 * len(widths) :]
    cells = [
        {"w_ih": matrices[n], "w_hh": matrices[n + 1], "b": biases[n] + biases[n + 1]}
        for n in range(0, 2 * len(widths), 2)
    ]
    cell = LSTMCell(hidden_size, param_dtype=str(weights.dtype))
    names = [f"layer_{n}" for n in range(num_layers)]
    if not bidirectional:
        return Stack(dict.fromkeys(names, cell)), as_params(dict(zip(names, cells, strict=True)))
    pairs = zip(cells[::2], cells[1::2], strict=True)
    both = [{"forward": forward, "backward": backward} for forward, backward in pairs]
    layer = Bidirectional(cell)
    return Stack(dict.fromkeys(names, layer)), as_params(dict(zip(names, both, strict=True)))


def to_cudnn(layer: Any, params: Params) -> jax.Array:
    """Converts an lstm_jax stack to the weight buffer of ``jax.experimental.rnn.lstm``.

    The first of the buffer's two biases is the layer's, the second is zero.

    Args:
      layer: a stack of standard LSTMs of one size, in one or both directions.
      params: its parameters.

    Returns:
      The buffer, an array of one axis.

    Raises:
      TypeError, ValueError: ``params`` are not the layer's, or cuDNN cannot hold something; the
        message names what would be lost.

    Example:
      >>> import jax
      >>> from lstm_jax import LSTM
      >>> lstm = LSTM(3, num_layers=2)
      >>> to_cudnn(lstm, lstm.init(jax.random.key(0), input_size=2)).shape
      (180,)
    """
    layers = cells_of(layer, params, "cudnn")
    flat = [both for _, cells in layers for both in cells.values()]
    for cell, _ in flat:
        check_same(cell, LSTMCell(flat[0][0].hidden_size), "cudnn", "LSTM")
    return cudnn.weights([weights for _, weights in flat])
