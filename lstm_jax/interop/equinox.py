"""Equinox: ``LSTMCell`` and ``GRUCell``."""

from collections.abc import Mapping
from typing import Any

from lstm_jax.cells import GRUCell, LSTMCell
from lstm_jax.cells.base import BaseCell, Params
from lstm_jax.interop.conventions import CONVENTIONS, GATES
from lstm_jax.interop.weights import (
    Arrays,
    as_params,
    check_same,
    directions_of,
    dtype_of,
    gate_count,
    read_cell,
    write_cell,
)

HAS = "LSTMCell and GRUCell (reset_after=True)"
STATIC = ("input_size", "hidden_size", "use_bias")  # the fields of a cell that are not arrays


def from_equinox(arrays: Mapping[str, Any]) -> tuple[BaseCell, Params]:
    """Converts the weights of ``equinox.nn.LSTMCell`` or ``GRUCell`` to an lstm_jax cell.

    Args:
      arrays: arrays by field name, as in ``vars(cell)``; its other fields are ignored.  Biases may
        be missing or None, and become zeros.  May be traced.

    Returns:
      ``(cell, params)``.

    Raises:
      TypeError, ValueError: a name is missing or unknown to Equinox, or a shape does not fit; the
        message names the array.

    Example:
      >>> import numpy as np
      >>> ones = {"weight_ih": np.ones((9, 2), "float32"), "weight_hh": np.ones((9, 3), "float32")}
      >>> cell, params = from_equinox(ones)
      >>> type(cell).__name__, {name: array.shape for name, array in params.items()}
      ('GRUCell', {'w_ih': (2, 9), 'w_hh': (3, 9), 'b': (9,), 'b_hg': (3,)})
    """
    if isinstance(arrays, Mapping):
        arrays = {
            name: array
            for name, array in arrays.items()
            if name not in STATIC and not (name in ("bias", "bias_n") and array is None)
        }
    given = Arrays(arrays, "equinox")
    recurrent = given["weight_hh"]
    kind = {4: "lstm", 3: "gru"}.get(gate_count(recurrent, transposed=True))
    if kind is None:
        raise ValueError(
            "weight_hh must have shape (4H, H) or (3H, H), of an LSTMCell or GRUCell, "
            f"got {recurrent.shape}"
        )
    params = read_cell(
        given,
        CONVENTIONS["equinox"][kind],
        GATES[kind],
        lambda name: name,
        reset_after=kind == "gru",
    )
    given.check_all_taken()
    return _made(kind, params["w_hh"].shape[0], dtype_of(params)), as_params(params)


def _made(kind: str, size: int, param_dtype: Any) -> BaseCell:
    """The lstm_jax cell with the same equations as Equinox's."""
    if kind == "gru":
        return GRUCell(size, reset_after=True, param_dtype=param_dtype)
    return LSTMCell(size, param_dtype=param_dtype)


def to_equinox(cell: Any, params: Params, *, use_bias: bool = True) -> dict[str, Any]:
    """Converts the weights of an lstm_jax cell to those of an Equinox cell, by field name.

    Args:
      cell: an LSTM, or a GRU with ``reset_after``.
      params: its parameters.
      use_bias: the Equinox cell's option.

    Returns:
      NumPy arrays by field.  ``equinox.tree_at`` puts them into the cell, with
      ``lambda cell: [getattr(cell, name) for name in arrays]`` and ``list(arrays.values())``.

    Raises:
      TypeError, ValueError: ``params`` are not the cell's, or Equinox cannot hold something; the
        message names what would be lost.

    Example:
      >>> import jax
      >>> from lstm_jax import LSTMCell
      >>> cell = LSTMCell(3)
      >>> arrays = to_equinox(cell, cell.init(jax.random.key(0), input_size=2))
      >>> {name: array.shape for name, array in arrays.items()}
      {'weight_ih': (12, 2), 'weight_hh': (12, 3), 'bias': (12,)}
    """
    kind = "gru" if isinstance(cell, GRUCell) else "lstm"
    check_same(cell, _made(kind, getattr(cell, "hidden_size", 1), "float32"), "equinox", HAS)
    directions_of(cell, params, "params")
    convention = CONVENTIONS["equinox"][kind]
    return write_cell(params, convention, GATES[kind], lambda name: name, bias=use_bias)
