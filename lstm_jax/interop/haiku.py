"""Haiku: ``LSTM``, ``GRU``, ``VanillaRNN`` and ``Conv1DLSTM`` to ``Conv3DLSTM``."""

from collections.abc import Mapping
from typing import Any

from lstm_jax.cells import ConvLSTMCell, GRUCell, LSTMCell, RNNCell
from lstm_jax.cells.base import BaseCell, Params
from lstm_jax.interop.conventions import CONVENTIONS, GATES
from lstm_jax.interop.weights import (
    Arrays,
    as_params,
    check_odd_kernel,
    check_same,
    directions_of,
    dtype_of,
    read_cell,
    write_cell,
)

HAS = "LSTM, GRU (reset_after=False), VanillaRNN (relu) and ConvLSTM (without peepholes)"
KINDS = {LSTMCell: "lstm", GRUCell: "gru", RNNCell: "rnn", ConvLSTMCell: "conv_lstm"}
ENDS = {"input_to_hidden/w": "conv_lstm", "w_i": "gru", "linear_1/w": "rnn", "linear/w": "lstm"}
"""The kind of core, by the first of these names that is present."""


def from_haiku(params: Mapping[str, Any]) -> tuple[BaseCell, Params]:
    """Converts the parameters of one recurrent Haiku core to an lstm_jax cell.

    Haiku's LSTMs add 1 to the forget gate at run time; here the bias includes it.  The update gate
    of Haiku's GRU has the opposite meaning, so its weights change sign.

    Args:
      params: the result of ``init`` of the transformed function, or the part that belongs to one
        core: ``{"lstm/linear": {"w": ..., "b": ...}}``.  May be traced.

    Returns:
      ``(cell, params)``.

    Raises:
      TypeError, ValueError: a name is missing or unknown, or a shape does not fit; the message
        names the array.

    Example:
      >>> import numpy as np
      >>> linear = {"w": np.zeros((2 + 3, 12), "float32"), "b": np.zeros(12, "float32")}
      >>> cell, params = from_haiku({"lstm/linear": linear})
      >>> params["b"].tolist()
      [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    arrays = Arrays(params, "haiku")
    found = [(kind, end, name) for end, kind in ENDS.items() for name in arrays if _ends(name, end)]
    if not found:
        raise ValueError(
            f"arrays of haiku must have a name that ends in {', '.join(ENDS)}, "
            f"got {', '.join(arrays)}"
        )
    kind, end, name = found[0]
    module = name[: -len(end)]
    ours = read_cell(
        arrays,
        _convention(kind, double_bias=f"{module}linear_1/b" in arrays),
        GATES[kind],
        lambda name: module + name,
    )
    arrays.check_all_taken(f" {module.rstrip('/')}; pass the parameters of one core")
    check_odd_kernel(ours, name)
    kernel = ours["w_hh"].shape[:-2]
    return _made(kind, ours["w_hh"].shape[-2], kernel, dtype_of(ours)), as_params(ours)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f"/{end}")


def _convention(kind: str, double_bias: bool) -> Any:
    return CONVENTIONS["haiku"]["rnn_single_bias" if kind == "rnn" and not double_bias else kind]


def _made(kind: str, size: int, kernel: tuple[int, ...], param_dtype: Any) -> BaseCell:
    """The lstm_jax cell with the same equations as Haiku's core."""
    if kind == "gru":
        return GRUCell(size, param_dtype=param_dtype)
    if kind == "rnn":
        return RNNCell(size, activation_fn="relu", param_dtype=param_dtype)
    if kind == "conv_lstm":
        return ConvLSTMCell(size, kernel_size=kernel, param_dtype=param_dtype)
    return LSTMCell(size, param_dtype=param_dtype)


def to_haiku(
    cell: Any, params: Params, *, name: str | None = None, double_bias: bool = True
) -> dict[str, dict[str, Any]]:
    """Converts the parameters of an lstm_jax cell to those of a recurrent Haiku core.

    Haiku adds 1 to an LSTM's forget bias at run time.  The stored bias is therefore 1 less than
    the cell's, rounded.  This is exact from 0.5 to 2; a smaller bias loses its last digits.

    Args:
      cell: an LSTM, a GRU without ``reset_after``, an RNN with ``activation_fn="relu"``, or a
        convolutional LSTM without peepholes.
      params: its parameters.
      name: the module's name; None for Haiku's default, such as ``"lstm"``.
      double_bias: the option of Haiku's RNN.

    Returns:
      NumPy arrays by module and name, for Haiku's ``apply``.

    Raises:
      TypeError, ValueError: ``params`` are not the cell's, or Haiku cannot hold something; the
        message names what would be lost.

    Example:
      >>> import jax
      >>> from lstm_jax import LSTMCell
      >>> cell = LSTMCell(3)
      >>> arrays = to_haiku(cell, cell.init(jax.random.key(0), input_size=2))
      >>> {name: array.shape for name, array in arrays["lstm/linear"].items()}
      {'w': (5, 12), 'b': (12,)}
    """
    kind, kernel = KINDS.get(type(cell), "lstm"), getattr(cell, "kernel_size", ())
    other = _made(kind, getattr(cell, "hidden_size", 1), kernel, "float32")
    check_same(cell, other, "haiku", HAS)
    directions_of(cell, params, "params")
    if name is None:
        new = {"rnn": "vanilla_rnn", "conv_lstm": f"conv{len(kernel)}_dlstm"}
        name = new.get(kind, kind)
    arrays = write_cell(
        params, _convention(kind, double_bias), GATES[kind], lambda n: f"{name}/{n}"
    )
    tree: dict[str, dict[str, Any]] = {}
    for path, array in arrays.items():
        module, _, last = path.rpartition("/")
        tree.setdefault(module, {})[last] = array
    return tree
