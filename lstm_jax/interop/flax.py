"""Flax, linen and nnx: LSTM, GRU and simple cells, and linen's ``ConvLSTMCell``."""

from collections.abc import Mapping
from typing import Any

from lstm_jax.cells import ConvLSTMCell, GRUCell, LSTMCell, RNNCell
from lstm_jax.cells.activations import Activation
from lstm_jax.cells.base import BaseCell, Params
from lstm_jax.interop.conventions import CONVENTIONS, GATES
from lstm_jax.interop.weights import (
    Arrays,
    as_params,
    check_odd_kernel,
    check_same,
    directions_of,
    dtype_of,
    gate_count,
    nested,
    read_cell,
    write_cell,
)

HAS = "LSTMCell, GRUCell (reset_after=True), SimpleCell and ConvLSTMCell (without peepholes)"
KINDS = {LSTMCell: "lstm", GRUCell: "gru", RNNCell: "rnn", ConvLSTMCell: "conv_lstm"}
FIRST = {
    "if_/kernel": ("flax.nnx", "lstm"),
    "ii/kernel": ("flax.linen", "lstm"),
    "ir/kernel": ("flax.linen", "gru"),
    "ih/kernel": ("flax.linen", "conv_lstm"),
    "i/kernel": ("flax.linen", "rnn"),
}
"""By what name the kind of cell is told, the first that is there."""


def from_flax(
    params: Mapping[str, Any],
    *,
    gate_fn: Activation = "sigmoid",
    activation_fn: Activation = "tanh",
) -> tuple[BaseCell, Params]:
    """Parameters of a recurrent cell of Flax, linen or nnx, as a cell of ours.

    Which cell it is, is told by the names and shapes.  (``SimpleCell(residual=True)`` looks like
    any other and is not meant; nor are strides and padding other than ``"SAME"`` of a
    ``ConvLSTMCell``.)

    Args:
      params: of linen ``variables["params"]``, of nnx ``nnx.state(cell, nnx.Param)``; within
        ``RNN(cell)`` they are under ``"cell"``.  May be traced.
      gate_fn: of the cell, a function or one of our names.
      activation_fn: likewise.

    Returns:
      ``(cell, params)``.

    Raises:
      TypeError, ValueError: a name is missing or not of such a cell, or a shape does not fit; the
        message names it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> theirs, x = nn.GRUCell(3), jnp.ones((1, 2))
      >>> variables = theirs.init(jax.random.key(0), jnp.zeros((1, 3)), x)
      >>> cell, params = from_flax(variables["params"])
      >>> type(cell).__name__, cell.reset_after, params["w_ih"].shape
      ('GRUCell', True, (2, 9))
    """
    arrays = Arrays(params, "flax")
    library, kind = next((told for name, told in FIRST.items() if name in arrays), ("", ""))
    if not library:
        recurrent = arrays["dense_h/kernel"]
        library = "flax.nnx"
        kind = {4: "optimized_lstm", 3: "gru", 1: "rnn"}.get(gate_count(recurrent), "")
        if not kind:
            raise ValueError(
                "dense_h/kernel must have shape (H, 4H), (H, 3H) or (H, H), of an "
                f"OptimizedLSTMCell, GRUCell or SimpleCell, got {recurrent.shape}"
            )
    convention, kind = CONVENTIONS[library][kind], kind.removeprefix("optimized_")
    ours = read_cell(arrays, convention, GATES[kind], lambda n: n, reset_after=kind == "gru")
    arrays.check_all_taken()
    check_odd_kernel(ours, "hh/kernel")
    kernel = ours["w_hh"].shape[:-2]
    options = {"gate_fn": gate_fn, "activation_fn": activation_fn}
    cell = _made(kind, ours["w_hh"].shape[-2], kernel, options, dtype_of(ours))
    return cell, as_params(ours)


def _made(
    kind: str, size: int, kernel: tuple[int, ...], options: dict[str, Any], param_dtype: Any
) -> BaseCell:
    """The cell of ours that Flax's is."""
    if kind == "conv_lstm":
        if options != {"gate_fn": "sigmoid", "activation_fn": "tanh"}:
            raise ValueError("gate_fn and activation_fn are no options of flax's ConvLSTMCell")
        return ConvLSTMCell(size, kernel_size=kernel, param_dtype=param_dtype)
    if kind == "rnn":
        return RNNCell(size, activation_fn=options["activation_fn"], param_dtype=param_dtype)
    if kind == "gru":
        return GRUCell(size, reset_after=True, **options, param_dtype=param_dtype)
    return LSTMCell(size, **options, param_dtype=param_dtype)


def to_flax(
    cell: Any,
    params: Params,
    *,
    api: str = "linen",
    optimized: bool = False,
    use_bias: bool = True,
    gate_fn: Activation = "sigmoid",
    activation_fn: Activation = "tanh",
) -> dict[str, Any]:
    """Parameters of a cell of ours as those of Flax's cell with these options.

    linen's ConvLSTMCell adds 1 to the forget bias at run time; what is stored is ours less 1,
    rounded, which is exact from 0.5 to 2.

    Args:
      cell: an LSTM, a GRU with ``reset_after``, an RNN, or a convolutional LSTM without peepholes
        (linen alone).
      params: its parameters.
      api: ``"linen"`` or ``"nnx"``.  The GRU of nnx has no ``b_hg``, which must be zero.
      optimized: whether an LSTM is for nnx's ``OptimizedLSTMCell`` (in linen there is no
        difference).
      use_bias: of linen's ConvLSTMCell.
      gate_fn, activation_fn: that the Flax cell has, functions or our names.

    Returns:
      NumPy arrays in a nested dict: for ``apply({"params": ...}, ...)`` of linen, or for
      ``nnx.update(cell, ...)``.

    Raises:
      TypeError, ValueError: ``params`` are not the cell's, or Flax cannot hold something; the
        message names what would be lost.

    Example:
      >>> import jax
      >>> from lstm_jax import LSTMCell
      >>> cell = LSTMCell(3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> tree = to_flax(cell, params, api="nnx", optimized=True)
      >>> tree["dense_i"]["kernel"].shape, sorted(tree["dense_h"])
      ((2, 12), ['bias', 'kernel'])
    """
    if api not in ("linen", "nnx"):
        raise ValueError(f"api must be 'linen' or 'nnx', got {api!r}")
    kind, kernel = KINDS.get(type(cell), "lstm"), getattr(cell, "kernel_size", ())
    options = {"gate_fn": gate_fn, "activation_fn": activation_fn}
    other = _made(kind, getattr(cell, "hidden_size", 1), kernel, options, "float32")
    check_same(cell, other, "flax", HAS)
    directions_of(cell, params, "params")
    if api == "nnx" and kind == "conv_lstm":
        raise ValueError("ConvLSTMCell would be lost: flax.nnx has LSTMCell, GRUCell, SimpleCell")
    if not use_bias and kind != "conv_lstm":
        raise ValueError("use_bias=False is an option of flax.linen.ConvLSTMCell alone")
    name = "optimized_lstm" if optimized and kind == "lstm" and api == "nnx" else kind
    convention = CONVENTIONS[f"flax.{api}"][name]
    return nested(write_cell(params, convention, GATES[kind], lambda n: n, bias=use_bias))
