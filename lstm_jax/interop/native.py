"""The format of lstm_jax: parameters under flat names, for files."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstm_jax.cells import (
    ConvLSTMCell,
    GRUCell,
    LSTMCell,
    PeepholeLSTMCell,
    ProjectedLSTMCell,
    RNNCell,
)
from lstm_jax.cells.activations import Activation
from lstm_jax.cells.base import BaseCell, Params
from lstm_jax.interop.weights import (
    Arrays,
    as_params,
    check_same,
    directions_of,
    dtype_of,
    flattened,
    layers_of,
    nested,
)
from lstm_jax.sequence.bidirectional import Bidirectional
from lstm_jax.sequence.stack import Stack

HAS = "LSTM, peephole, projected and convolutional LSTM, GRU and RNN with their default options"


def to_lstm_jax(layer: Any, params: Params, **options: Any) -> dict[str, Any]:
    """Returns parameters under flat names, ``layer_0/forward/w_ih``, to be written to a file.

    Args:
      layer: a stack, or a cell.
      params: its parameters.
      options: the options of :func:`from_lstm_jax`, if the cells do not have their defaults.

    Raises:
      TypeError, ValueError: ``params`` are not the layer's, or names and shapes do not determine
        what the layer computes; the message names what would be lost.

    Example:
      >>> import jax
      >>> from lstm_jax import LSTMCell
      >>> cell = LSTMCell(3)
      >>> list(to_lstm_jax(cell, cell.init(jax.random.key(0), input_size=2)))
      ['w_ih', 'w_hh', 'b']
    """

    def check(cell: Any, params: Params, where: str) -> None:
        other = _made({n: np.asarray(a) for n, a in params.items()}, where, options)
        check_same(cell, other, "an lstm_jax file", HAS)

    if hasattr(layer, "step") and not hasattr(layer, "apply"):
        ((cell, params),) = directions_of(layer, params, "params").values()
        check(cell, params, "")
        return {name: np.asarray(array) for name, array in flattened(params)}
    tree = {}
    for n, (name, one, weights) in enumerate(layers_of(layer, params, "an lstm_jax file")):
        if isinstance(one, Bidirectional) and one.merge != options.get("merge", "concat"):
            raise ValueError(
                f"merge={one.merge!r} would be lost: an lstm_jax file does not store it"
            )
        cells = directions_of(one, weights, f"params[{name!r}]")
        for cell, cell_params in cells.values():
            check(cell, cell_params, name)
        tree[f"layer_{n}"] = weights
    return {name: np.asarray(array) for name, array in flattened(tree)}


def from_lstm_jax(
    arrays: Mapping[str, Any],
    *,
    gate_fn: Activation | None = None,
    activation_fn: Activation | None = None,
    merge: str = "concat",
) -> tuple[Any, Params]:
    """Returns the layer that parameters under lstm_jax names belong to.

    Args:
      arrays: flat or nested arrays, ``layer_0/forward/w_ih``; for a single cell, ``w_ih``.
      gate_fn: the gate activation of all cells, if it is not their default.
      activation_fn: the activation of all cells, if it is not their default.
      merge: the option of :class:`Bidirectional`.

    Returns:
      ``(layer, params)``: a :class:`Stack`, or a cell.

    Raises:
      TypeError, ValueError: a name is missing or unknown, or a shape does not fit.

    Example:
      >>> import jax
      >>> from lstm_jax import LSTM
      >>> params = LSTM(3, cell="peephole").init(jax.random.key(0), input_size=2)
      >>> from_lstm_jax(params)[0].layers
      (('layer_0', PeepholeLSTMCell(hidden_size=3...)),)
    """
    given = Arrays(arrays, "lstm_jax")
    options = {"gate_fn": gate_fn, "activation_fn": activation_fn}
    tree = nested({name: given[name] for name in given})
    if "w_hh" in tree or not any(isinstance(child, dict) for child in tree.values()):
        return _made(tree, "", options), as_params(tree)
    layers: dict[str, Any] = {}
    for n in range(len(tree)):
        name = f"layer_{n}"
        if name not in tree or not isinstance(tree[name], dict):
            raise ValueError(
                f"{name} is missing from the arrays of lstm_jax, got {', '.join(tree)}"
            )
        weights = tree[name]
        if any(isinstance(child, dict) for child in weights.values()):
            if set(weights) != {"forward", "backward"}:
                names = ", ".join(weights)
                raise ValueError(f"{name} must have forward and backward, got {names}")
            cells = (
                _made(weights[end], f"{name}/{end}", options) for end in ("forward", "backward")
            )
            layers[name] = Bidirectional(*cells, merge=merge)
        else:
            layers[name] = _made(weights, name, options)
    return Stack(layers), as_params({name: tree[name] for name in layers})


def _made(params: Mapping[str, Any], where: str, options: Mapping[str, Any]) -> BaseCell:
    """The cell that these parameters belong to, determined by names and shapes."""
    at = f"{where}/" if where else ""
    for name in ("w_hh", "w_ih"):
        if name not in params or np.ndim(params[name]) < 2:
            raise ValueError(f"{at}{name} is missing or not a matrix, among {', '.join(params)}")
    cell_options = {
        name: value for name, value in options.items() if value is not None and name != "merge"
    }
    cell_options["param_dtype"] = dtype_of(params)
    w_hh = params["w_hh"]
    rows, columns = w_hh.shape[-2:]
    if w_hh.ndim > 2:
        kernel = w_hh.shape[:-2]
        peepholes = "p_i" in params
        space = params["p_i"].shape[:-1] or None if peepholes else None
        cell = ConvLSTMCell(
            columns // 4,
            kernel_size=kernel,
            peepholes=peepholes,
            spatial_shape=space,
            **cell_options,
        )
    elif "w_hr" in params:
        cell = ProjectedLSTMCell(columns // 4, proj_size=rows, **cell_options)
    elif "p_i" in params:
        cell = PeepholeLSTMCell(columns // 4, **cell_options)
    elif columns == 4 * rows:
        cell = LSTMCell(rows, **cell_options)
    elif columns == 3 * rows:
        cell = GRUCell(rows, reset_after="b_hg" in params, **cell_options)
    elif columns == rows:
        cell = RNNCell(rows, **{n: v for n, v in cell_options.items() if n != "gate_fn"})
    else:
        raise ValueError(f"{at}w_hh must be of an LSTM, GRU or RNN, got shape {w_hh.shape}")
    try:
        cell.check_params(params)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{at}{error}" if at else str(error)) from error
    return cell
