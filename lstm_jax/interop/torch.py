"""PyTorch: state dicts of ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and their cells."""

import re
from collections.abc import Mapping
from typing import Any

from lstm_jax.cells import GRUCell, LSTMCell, ProjectedLSTMCell, RNNCell
from lstm_jax.cells.base import BaseCell, Params
from lstm_jax.interop.conventions import CONVENTIONS, GATES
from lstm_jax.interop.weights import (
    Arrays,
    as_params,
    cells_of,
    check_same,
    directions_of,
    dtype_of,
    gate_count,
    read_cell,
    write_cell,
)
from lstm_jax.sequence.bidirectional import Bidirectional
from lstm_jax.sequence.stack import Stack

HAS = "LSTM, with proj_size or not, GRU (reset_after=True) and RNN"
NAME = re.compile(r"(?:weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l([0-9]+)(_reverse)?)?")
LENGTH, DIRECTION = "g", "v"  # the two parts of a weight with weight norm
KINDS = {4: "lstm", 3: "gru", 1: "rnn"}


def from_torch(
    state_dict: Mapping[str, Any], *, prefix: str = "", nonlinearity: str = "tanh"
) -> tuple[Any, Params]:
    """Converts the weights of ``torch.nn.LSTM``, ``GRU``, ``RNN`` or their cells to lstm_jax.

    Weight norm (``weight_hh_l0_g`` and ``_v``, or ``parametrizations.weight_hh_l0.original0`` and
    ``1``) and the ``weight_hh_l0_raw`` of AWD-LSTM's weight drop are resolved to the weights that
    torch computes from them in evaluation.  The two biases are summed, except that those of a
    GRU's candidate stay separate, as ``b`` and ``b_hg``; missing biases become zeros.
    ``batch_first`` does not affect the arrays; in lstm_jax, time is the first axis.  ``dropout``
    is not in the arrays; set it with ``dataclasses.replace(layer, dropout=0.2)``.

    Args:
      state_dict: ``module.state_dict()``: NumPy, JAX or torch tensors by name, such as
        ``weight_ih_l0_reverse`` ``(4H, D)``, or nested lists of numbers, as from JSON.  Shapes
        determine whether they are an LSTM, GRU or RNN.  May be traced.
      prefix: the module's path in the state dict of a whole model: ``"encoder.lstm."``.
      nonlinearity: torch's option of an RNN, ``"tanh"`` or ``"relu"``.

    Returns:
      ``(layer, params)``: a :class:`Stack` of cells or of :class:`Bidirectional`, or a cell if the
      arrays are those of a torch cell.

    Raises:
      TypeError, ValueError: a name is missing or unknown to torch, directions or kinds are mixed,
        or a shape does not fit; the message names the key.

    Example:
      >>> import numpy as np
      >>> shapes = {"weight_ih_l0": (12, 2), "weight_hh_l0": (12, 3)}
      >>> layer, params = from_torch({name: np.ones(s, "float32") for name, s in shapes.items()})
      >>> layer.layers, params["layer_0"]["w_ih"].shape
      ((('layer_0', LSTMCell(hidden_size=3...)),), (2, 12))
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    arrays = _plain(Arrays(state_dict, "torch", prefix), prefix)
    matches = {name: NAME.fullmatch(name[len(prefix) :]) for name in arrays}
    for name, match in matches.items():
        if match is None:
            raise ValueError(
                f"{name} is not an array of a recurrent layer of torch; use prefix= to select the "
                "arrays of one module"
            )
    numbers = [int(match[1]) for match in matches.values() if match and match[1]]
    ends = ["", "_reverse"][: 1 + any(match[2] for match in matches.values() if match)]
    if not numbers:
        cell, params = _read(arrays, prefix, "", nonlinearity)
        arrays.check_all_taken()
        return cell, as_params(params)

    layers: dict[str, Any] = {}
    params: dict[str, Any] = {}
    cells: list[BaseCell] = []
    biased = any("bias" in name[len(prefix) :] for name in arrays)
    for n in range(1 + max(numbers)):
        read = [_read(arrays, prefix, f"_l{n}{end}", nonlinearity) for end in ends]
        for (cell, weights), end in zip(read, ends, strict=True):
            width = len(ends) * cells[0].output_size if n else read[0][1]["w_ih"].shape[0]
            if weights["w_ih"].shape[0] != width:
                raise ValueError(
                    f"{prefix}weight_ih_l{n}{end} must have input size {width}, the width of the "
                    f"layer below, got shape {weights['w_ih'].shape[::-1]}"
                )
            if biased:  # then every layer and direction must have biases
                _ = arrays[f"{prefix}bias_ih_l{n}{end}"]
            cells.append(cell)
            _check_alike(cells[0], cell, f"{prefix}weight_hh_l{n}{end}")
        forward = read[0]
        if len(ends) == 1:
            layers[f"layer_{n}"], params[f"layer_{n}"] = forward
        else:
            backward = read[1]
            layers[f"layer_{n}"] = Bidirectional(forward[0], backward[0])
            params[f"layer_{n}"] = {"forward": forward[1], "backward": backward[1]}
    arrays.check_all_taken()
    return Stack(layers), as_params(params)


def _plain(arrays: Arrays, prefix: str) -> Arrays:
    """Resolves wrappers and parametrizations, so that arrays have the names of a plain module.

    Raises:
      ValueError: a weight has a parametrization other than weight norm, or a part is missing.
    """
    plain, raw = {}, {}
    parts: dict[str, dict[str, str]] = {}
    for name in arrays:
        short = name[len(prefix) :].removeprefix("module.")  # added by wrappers
        norm = re.fullmatch(r"(.*)_([gv])", short)
        parametrized = re.fullmatch(r"parametrizations\.([^.]+)\.(.*)", short)
        if parametrized:
            kind = {"original0": LENGTH, "original1": DIRECTION}.get(parametrized[2])
            if kind is None:
                raise ValueError(
                    f"{name} belongs to a parametrization other than weight norm; remove it first: "
                    "torch.nn.utils.parametrize.remove_parametrizations"
                )
            parts.setdefault(parametrized[1], {})[kind] = name
        elif norm:
            parts.setdefault(norm[1], {})[norm[2]] = name
        elif short.endswith("_raw"):
            raw[prefix + short.removesuffix("_raw")] = arrays[name]
        else:
            plain[prefix + short] = arrays.given[name]
    for short, names in parts.items():
        if len(names) < 2:
            (name,) = names.values()
            raise ValueError(
                f"{name} is one part of a weight with weight norm; the other is missing"
            )
        raw[prefix + short] = _normed(
            names[LENGTH], arrays[names[LENGTH]], arrays[names[DIRECTION]]
        )
    return Arrays({**plain, **raw}, "torch", prefix)


def _normed(name: str, g: Any, v: Any) -> Any:
    """The weight with norm ``g`` and direction ``v``: ``g v / |v|`` for each index of ``g``."""
    sizes = (1,) * v.ndim if g.ndim == 0 else g.shape
    summed = tuple(axis for axis, size in enumerate(sizes) if size == 1)
    fits = len(sizes) == v.ndim and all(
        size in (1, whole) for size, whole in zip(sizes, v.shape, strict=True)
    )
    if not fits or not summed:
        raise ValueError(
            f"{name} must have the shape of its direction, {v.shape}, but size 1 along each axis "
            f"of the norm, got {g.shape}"
        )
    xp = v.__array_namespace__()
    wide = v.astype(xp.promote_types(v.dtype, "float32"))
    norm = xp.sqrt(xp.sum(wide * wide, axis=summed, keepdims=True))
    return (wide * (g.reshape(sizes) / norm)).astype(v.dtype)


def _read(arrays: Arrays, prefix: str, suffix: str, nonlinearity: str) -> tuple[BaseCell, Params]:
    """The cell of one layer and direction, and its parameters."""

    def key(name: str) -> str:
        return prefix + name + suffix

    recurrent = arrays[key("weight_hh")]
    count = 4 if key("weight_hr") in arrays else gate_count(recurrent, transposed=True)
    if count not in KINDS or recurrent.ndim != 2:
        raise ValueError(
            f"{key('weight_hh')} must have shape (4H, H), (3H, H) or (H, H), of an LSTM, GRU or "
            f"RNN, got {recurrent.shape}"
        )
    kind = KINDS[count]
    params = read_cell(
        arrays, CONVENTIONS["torch"][kind], GATES[kind], key, reset_after=kind == "gru"
    )
    size = params["w_hh"].shape[-1] // count
    proj_size = params["w_hr"].shape[-1] if "w_hr" in params else None
    return _made(kind, size, proj_size, nonlinearity, dtype_of(params)), params


def _made(
    kind: str, size: int, proj_size: int | None, nonlinearity: str, param_dtype: Any
) -> BaseCell:
    """The lstm_jax cell with the same equations as torch's."""
    if kind == "gru":
        return GRUCell(size, reset_after=True, param_dtype=param_dtype)
    if kind == "rnn":
        return RNNCell(size, activation_fn=nonlinearity, param_dtype=param_dtype)
    if proj_size is None:
        return LSTMCell(size, param_dtype=param_dtype)
    return ProjectedLSTMCell(size, proj_size=proj_size, param_dtype=param_dtype)


def _check_alike(first: BaseCell, cell: BaseCell, name: str) -> None:
    """Raises if layers or directions differ in kind or size."""
    wanted = type(first).__name__, first.hidden_size, first.output_size
    given = type(cell).__name__, cell.hidden_size, cell.output_size
    if wanted != given:
        described = "{} with hidden_size={} and output size {}"
        raise ValueError(
            f"{name}: torch has one kind and size of cell for all layers and directions, "
            f"{described.format(*wanted)}, got {described.format(*given)}"
        )


def to_torch(
    layer: Any,
    params: Params,
    *,
    prefix: str = "",
    bias: bool = True,
    nonlinearity: str = "tanh",
) -> dict[str, Any]:
    """Converts lstm_jax weights to a state dict of torch's ``nn.LSTM``, ``GRU`` or ``RNN``.

    Torch adds two biases.  ``bias_ih`` is the lstm_jax bias and ``bias_hh`` is zero, except for
    ``b_hg``, the bias of a GRU's candidate.  Converting to torch and back is exact.  Converting
    from torch and back replaces two biases by their sum.

    Args:
      layer: a stack of equal cells or of :class:`Bidirectional` of them, for a torch layer; or a
        cell, for a torch cell.
      params: its parameters.
      prefix: put before each name.
      bias: torch's option, whether the module has biases.
      nonlinearity: torch's option of an RNN.

    Returns:
      NumPy arrays by name; ``{name: torch.tensor(array) for ...}`` is a state dict.

    Raises:
      TypeError: ``params`` are not the layer's.
      ValueError: torch cannot hold something; the message names what would be lost.

    Example:
      >>> import jax
      >>> from lstm_jax import LSTM
      >>> lstm = LSTM(3, bidirectional=True)
      >>> arrays = to_torch(lstm, lstm.init(jax.random.key(0), input_size=2))
      >>> {name: array.shape for name, array in list(arrays.items())[3:5]}
      {'bias_hh_l0': (12,), 'weight_ih_l0_reverse': (12, 2)}
    """

    def write(cell: Any, params: Params, suffix: str) -> dict[str, Any]:
        kind = {GRUCell: "gru", RNNCell: "rnn"}.get(type(cell), "lstm")
        size, proj_size = getattr(cell, "hidden_size", 1), getattr(cell, "proj_size", None)
        if isinstance(cell, ProjectedLSTMCell):
            proj_size = cell.output_size
            if proj_size >= size:
                raise ValueError(
                    f"proj_size={proj_size} would be lost: in torch, proj_size is less than "
                    f"hidden_size, {size}"
                )
        check_same(cell, _made(kind, size, proj_size, nonlinearity, "float32"), "torch", HAS)

        def key(name: str) -> str:
            return prefix + name + suffix

        return write_cell(params, CONVENTIONS["torch"][kind], GATES[kind], key, bias=bias)

    if hasattr(layer, "step") and not hasattr(layer, "apply"):
        ((cell, params),) = directions_of(layer, params, "params").values()
        return write(cell, params, "")
    arrays, layers = {}, cells_of(layer, params, "torch")
    for n, (name, cells) in enumerate(layers):
        for direction, (cell, cell_params) in cells.items():
            suffix = f"_l{n}" + ("_reverse" if direction == "backward" else "")
            arrays |= write(cell, cell_params, suffix)
            _check_alike(layers[0][1]["forward"][0], cell, f"{name} {direction}")
    return arrays
