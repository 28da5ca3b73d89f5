"""Keras 3: ``LSTM``, ``GRU``, ``SimpleRNN``, ``ConvLSTM1D`` to ``3D``, and ``Bidirectional``."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

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
    layers_of,
    read_cell,
    write_cell,
)
from lstm_jax.sequence.bidirectional import Bidirectional
from lstm_jax.sequence.stack import Stack

HAS = "LSTM, GRU, SimpleRNN and ConvLSTM (without peepholes)"

ACTIVATIONS = {
    "elu": "elu",
    "exponential": "exp",
    "hard_sigmoid": "hard_sigmoid",
    "hard_tanh": "hard_tanh",
    "linear": "identity",
    "relu": "relu",
    "selu": "selu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "softplus": "softplus",
    "softsign": "softsign",
    "swish": "silu",
    "tanh": "tanh",
}
"""The lstm_jax names of Keras's activations, for those that both libraries have."""


def hard_sigmoid_of_keras_2(x: Any) -> Any:
    """The ``hard_sigmoid`` of Keras 1 and 2, ``clip(x / 5 + 1 / 2, 0, 1)``; Keras 3's differs.

    >>> float(hard_sigmoid_of_keras_2(1.0))
    0.69...
    """
    return jnp.clip(0.2 * x + 0.5, 0.0, 1.0)


MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", "mul": "product"}
"""The lstm_jax names of Keras's merge modes."""


def from_keras(
    arrays: Mapping[str, Any],
    *,
    activation: Activation = "tanh",
    recurrent_activation: Activation = "sigmoid",
    reset_after: bool | None = None,
    merge_mode: str = "concat",
    padding: str = "valid",
) -> tuple[Any, Params]:
    """Converts the weights of Keras layers to an lstm_jax layer.

    Shapes determine the kind of each layer.  They do not determine the options below, which have
    the same meaning and defaults as in Keras and apply to all layers.  ``return_sequences`` is not
    needed: an lstm_jax layer returns all outputs and the last state.

    Args:
      arrays: arrays by path, from the bottom layer up:
        ``{w.path: w.numpy() for w in model.weights}``.  The last part of a path is ``kernel``,
        ``recurrent_kernel`` or ``bias``; all arrays of a cell have the same path before it.  The
        paths of the two directions contain a part that begins with ``forward_`` or
        ``backward_``.  Names without a path belong to a Keras cell.  May be traced.
      activation: a Keras name, or a function.
      recurrent_activation: a Keras name, or a function.  The ``hard_sigmoid`` of Keras 2 is a
        different function, :func:`hard_sigmoid_of_keras_2`.
      reset_after: the option of a GRU.  By default, the shape of the bias determines it; without
        bias it is True, as in Keras.
      merge_mode: ``"concat"``, ``"sum"``, ``"ave"`` or ``"mul"``.
      padding: the option of a convolutional LSTM; lstm_jax only has ``"same"``.  Strides and
        dilation must be 1.

    Returns:
      ``(layer, params)``: a :class:`Stack` of cells and :class:`Bidirectional`, or a cell if the
      arrays are those of a Keras cell.

    Raises:
      TypeError, ValueError: a name is missing or unknown, a shape does not fit, or Keras or
        lstm_jax does not have an option; the message names it.

    Example:
      >>> import numpy as np
      >>> shapes = {"gru/gru_cell/kernel": (2, 9), "gru/gru_cell/recurrent_kernel": (3, 9)}
      >>> layer, params = from_keras({name: np.ones(s, "float32") for name, s in shapes.items()})
      >>> layer.layers[0][1].reset_after, params["layer_0"]["b"].shape
      (True, (9,))
    """
    options = _options(activation, recurrent_activation, padding)
    given = Arrays(arrays, "keras")
    if all("/" not in name for name in given):
        cell, params = _read(given, "", reset_after, options)
        given.check_all_taken()
        return cell, as_params(params)

    groups: dict[str, dict[str, str]] = {}  # the path of each direction, by layer
    for name in given:
        path, _, last = name.rpartition("/")
        parts = path.split("/")
        ends = [n for n, p in enumerate(parts) if p.startswith(("forward_", "backward_"))]
        direction = parts[ends[-1]].split("_")[0] if ends else ""
        layer = "/".join(parts[: ends[-1]]) if ends else path
        if last in ("kernel", "recurrent_kernel", "bias"):
            groups.setdefault(layer, {}).setdefault(direction, f"{path}/")
    layers: dict[str, Any] = {}
    params: dict[str, Any] = {}
    for n, (name, paths) in enumerate(groups.items()):
        if "" in paths:
            layer, weights = _read(given, paths[""], reset_after, options)
        else:
            for direction in ("forward", "backward"):
                if direction not in paths:
                    raise ValueError(f"{name}/{direction}_... is missing; expected both directions")
            read = {end: _read(given, paths[end], reset_after, options) for end in sorted(paths)}
            (backward, _), (forward, _) = read["backward"], read["forward"]
            layer = Bidirectional(forward, backward, _merge(merge_mode))
            weights = {end: read[end][1] for end in ("forward", "backward")}
        layers[f"layer_{n}"], params[f"layer_{n}"] = layer, weights
    given.check_all_taken("; leave out the arrays of other layers")
    return Stack(layers), as_params(params)


def keras_mask(xs: Any, mask_value: float = 0.0) -> jax.Array:
    """Computes the mask of a sequence as Keras's ``Masking`` layer does.

    ::

        mask_t = any_d(x_{t, d} != mask_value)

    An ``Embedding`` with ``mask_zero=True`` skips steps whose token is zero: ``tokens != 0``.

    Args:
      xs: ``[..., D]``, with time on any of the leading axes.
      mask_value: the layer's option; :func:`keras_mask_value` reads it from a saved model.

    Returns:
      Booleans ``[...]`` for ``mask=`` of a layer or module.

    Example:
      >>> import jax.numpy as jnp
      >>> keras_mask(jnp.array([[0.0, 0.0], [0.0, 1.0]])).tolist()
      [False, True]
    """
    return (jnp.asarray(xs) != mask_value).any(-1)


def _options(
    activation: Activation, recurrent_activation: Activation, padding: str
) -> dict[str, Any]:
    """Converts Keras's options to those of lstm_jax cells."""

    def ours(name: str, given: Activation) -> Activation:
        if isinstance(given, str):
            if given not in ACTIVATIONS:
                raise ValueError(
                    f"{name} must be a function or one of {', '.join(ACTIVATIONS)}, got {given!r}"
                )
            return ACTIVATIONS[given]
        return given

    if padding not in ("same", "valid"):
        raise ValueError(f"padding must be 'same' or 'valid', got {padding!r}")
    return {
        "activation_fn": ours("activation", activation),
        "gate_fn": ours("recurrent_activation", recurrent_activation),
        "padding": padding,
    }


def _merge(merge_mode: str) -> str:
    if merge_mode not in MERGES:
        raise ValueError(f"merge_mode must be one of {', '.join(MERGES)}, got {merge_mode!r}")
    return MERGES[merge_mode]


def _read(
    arrays: Arrays, path: str, reset_after: bool | None, options: dict[str, Any]
) -> tuple[BaseCell, Params]:
    """The cell of one layer and direction, and its parameters."""

    def key(name: str) -> str:
        return path + name

    recurrent = arrays[key("recurrent_kernel")]
    kind = {4: "lstm", 3: "gru", 1: "rnn"}.get(gate_count(recurrent))
    if recurrent.ndim > 2:
        kind = "conv_lstm"
    if kind is None:
        raise ValueError(
            f"{key('recurrent_kernel')} must have shape (H, 4H), (H, 3H) or (H, H), of an LSTM, "
            f"GRU or SimpleRNN, got {recurrent.shape}"
        )
    if kind == "gru":
        reset_after = _reset_after(arrays, key("bias"), recurrent.shape[-1], reset_after)
    convention = CONVENTIONS["keras"][_layout(arrays, key("bias"), kind, recurrent, reset_after)]
    params = read_cell(
        arrays, convention, GATES[kind], key, reset_after=kind == "gru" and bool(reset_after)
    )
    check_odd_kernel(params, key("kernel"))
    kernel = params["w_hh"].shape[:-2]
    size = params["w_hh"].shape[-2]
    return _made(kind, size, reset_after, kernel, options, dtype_of(params)), params


def _layout(arrays: Arrays, bias: str, kind: str, recurrent: Any, reset_after: bool | None) -> str:
    """The name of a cell's convention; cuDNN's bias is twice as long as a plain one."""
    of_cudnn = bias in arrays and arrays[bias].shape == (2 * recurrent.shape[-1],)
    if kind in ("lstm", "gru") and of_cudnn:
        return f"cudnn_{kind}"
    return "gru_reset_before" if kind == "gru" and not reset_after else kind


def _reset_after(arrays: Arrays, name: str, columns: int, given: bool | None) -> bool:
    """Whether a GRU resets after the product, judged by the shape of its bias."""
    if name not in arrays:
        return given is not False
    shape = arrays[name].shape
    if shape not in ((2, columns), (2 * columns,), (columns,)):
        raise ValueError(
            f"{name} must have shape (2, 3H), {(2, columns)}, or (3H,) with "
            f"reset_after=False, got {shape}"
        )
    after = shape != (columns,)
    if given not in (None, after):
        raise ValueError(
            f"{name} has shape {shape}, which means reset_after={after}, got reset_after={given}"
        )
    return after


def _made(
    kind: str,
    size: int,
    reset_after: bool | None,
    kernel: tuple[int, ...],
    options: dict[str, Any],
    param_dtype: Any,
) -> BaseCell:
    """The lstm_jax cell with the same equations as Keras's."""
    cell_options = {name: value for name, value in options.items() if name != "padding"}
    cell_options["param_dtype"] = param_dtype
    if kind == "rnn":
        cell_options.pop("gate_fn")
        return RNNCell(size, **cell_options)
    if kind == "gru":
        return GRUCell(size, reset_after=bool(reset_after), **cell_options)
    if kind == "conv_lstm":
        if options["padding"] == "valid" and max(kernel) > 1:
            raise ValueError(
                "padding='valid' would be lost: lstm_jax convolutions have padding='same'; pass "
                "padding='same' if the Keras layer has it"
            )
        return ConvLSTMCell(size, kernel_size=kernel, **cell_options)
    return LSTMCell(size, **cell_options)


KINDS = {LSTMCell: "lstm", GRUCell: "gru", RNNCell: "rnn", ConvLSTMCell: "conv_lstm"}
CLASSES = {"lstm": "lstm", "gru": "gru", "rnn": "simple_rnn", "conv_lstm": "conv_lstm"}


def to_keras(
    layer: Any,
    params: Params,
    *,
    use_bias: bool = True,
    activation: Activation = "tanh",
    recurrent_activation: Activation = "sigmoid",
    merge_mode: str = "concat",
    padding: str = "valid",
) -> dict[str, Any]:
    """Converts the weights of an lstm_jax layer to those of Keras layers with these options.

    Args:
      layer: a stack of cells and :class:`Bidirectional`, each of which becomes a Keras layer; or
        a cell, which becomes a Keras cell.
      params: its parameters.
      use_bias, activation, recurrent_activation, merge_mode, padding: the options of the Keras
        layers.  ``reset_after`` of a Keras GRU must be that of the lstm_jax cell.

    Returns:
      NumPy arrays by the paths that Keras gives to new layers, in Keras's order:
      ``model.set_weights(list(arrays.values()))``.

    Raises:
      TypeError: ``params`` are not the layer's.
      ValueError: Keras's layers cannot hold something; the message names what would be lost.

    Example:
      >>> import jax
      >>> from lstm_jax import LSTM
      >>> lstm = LSTM(3, num_layers=2)
      >>> arrays = to_keras(lstm, lstm.init(jax.random.key(0), input_size=2))
      >>> [name for name in arrays if name.endswith("/kernel")]
      ['lstm/lstm_cell/kernel', 'lstm_1/lstm_cell/kernel']
    """
    options = _options(activation, recurrent_activation, padding)

    def kind_of(cell: Any) -> str:
        return KINDS.get(type(cell), "lstm")

    def write(cell: Any, params: Params, path: str) -> dict[str, Any]:
        kind, size = kind_of(cell), getattr(cell, "hidden_size", 1)
        reset_after, kernel = getattr(cell, "reset_after", None), getattr(cell, "kernel_size", ())
        check_same(cell, _made(kind, size, reset_after, kernel, options, "float32"), "keras", HAS)
        before = kind == "gru" and not reset_after
        convention = CONVENTIONS["keras"]["gru_reset_before" if before else kind]
        arrays = write_cell(params, convention, GATES[kind], lambda n: path + n, bias=use_bias)
        if reset_after and use_bias:
            arrays[f"{path}bias"] = arrays[f"{path}bias"].reshape(2, -1)
        return arrays

    if hasattr(layer, "step") and not hasattr(layer, "apply"):
        ((cell, params),) = directions_of(layer, params, "params").values()
        return write(cell, params, "")
    arrays, counts = {}, Counter()

    def new(name: str) -> str:
        counts[name] += 1
        return name if counts[name] == 1 else f"{name}_{counts[name] - 1}"

    for name, one, weights in layers_of(layer, params, "keras"):
        cells = directions_of(one, weights, f"params[{name!r}]")
        kind = kind_of(cells["forward"][0])
        cell_name = CLASSES[kind]
        axes = len(getattr(cells["forward"][0], "kernel_size", ()))
        layer_name = new(f"{cell_name}{axes}d" if axes else cell_name)
        above = ""
        if isinstance(one, Bidirectional):
            if one.merge != _merge(merge_mode):
                raise ValueError(
                    f"merge={one.merge!r} would be lost: the Keras layer has "
                    f"merge_mode={merge_mode!r}"
                )
            above = f"{new('bidirectional')}/"
        for direction, (cell, cell_params) in cells.items():
            end = f"{direction}_" if above else ""
            path = f"{above}{end}{layer_name}/{cell_name}_cell/"
            arrays |= write(cell, cell_params, path)
    return arrays
