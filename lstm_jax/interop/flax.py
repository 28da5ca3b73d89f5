"""Flax, linen and nnx: LSTM, GRU and simple cells, and linen's ``ConvLSTMCell``."""

from collections.abc import Iterator, Mapping
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
from lstm_jax.sequence.bidirectional import Bidirectional, Merge

HAS = "LSTMCell, GRUCell (reset_after=True), SimpleCell and ConvLSTMCell (without peepholes)"
KINDS = {LSTMCell: "lstm", GRUCell: "gru", RNNCell: "rnn", ConvLSTMCell: "conv_lstm"}
FIRST = {
    "if_/kernel": ("flax.nnx", "lstm"),
    "ii/kernel": ("flax.linen", "lstm"),
    "ir/kernel": ("flax.linen", "gru"),
    "ih/kernel": ("flax.linen", "conv_lstm"),
    "i/kernel": ("flax.linen", "rnn"),
}
"""The API and the kind of cell, by the first of these names that is present."""
JOINED = "dense_h/kernel"
"""The recurrent kernel of an nnx cell that has all gates in one array; its shape shows the kind."""
DIRECTIONS = {"forward": "forward_rnn/cell/", "backward": "backward_rnn/cell/"}
"""The paths of the cells in a ``Bidirectional`` of two ``RNN``."""


def from_flax(
    params: Mapping[str, Any],
    *,
    gate_fn: Activation = "sigmoid",
    activation_fn: Activation = "tanh",
    merge: str | Merge = "concat",
) -> tuple[BaseCell | Bidirectional, Params]:
    """Converts the parameters of a Flax cell, ``RNN`` or ``Bidirectional``, from linen or nnx.

    Names and shapes determine the kind of cell.  ``SimpleCell(residual=True)`` cannot be
    distinguished from a plain one and is not supported.  For a ``ConvLSTMCell``, strides and
    padding other than ``"SAME"`` are not supported.

    Args:
      params: the variables or ``variables["params"]`` of a linen module; ``nnx.state(module)`` or
        ``nnx.state(module, nnx.Param)`` of an nnx module.  Random streams are skipped.  May be
        traced.
      gate_fn: the cells' gate activation, a function or an lstm_jax name.
      activation_fn: the cells' activation, a function or an lstm_jax name.
      merge: how a ``Bidirectional`` merges its outputs, as in :class:`lstm_jax.Bidirectional`;
        Flax concatenates by default.

    Returns:
      ``(cell, params)`` for a cell or ``RNN``; for a ``Bidirectional``, an
      :class:`lstm_jax.Bidirectional` and its parameters.  The options of an ``RNN`` (``reverse``,
      ``time_major``) are not in its parameters.

    Raises:
      TypeError, ValueError: a name is missing or unknown, or a shape does not fit; the message
        names the array.  If ``params`` belong to a larger model, the message names the parts that
        can be passed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> rnn, xs = nn.RNN(nn.GRUCell(3)), jnp.ones((1, 5, 2))
      >>> cell, params = from_flax(rnn.init(jax.random.key(0), xs))
      >>> type(cell).__name__, cell.reset_after, params["w_ih"].shape
      ('GRUCell', True, (2, 9))
      >>> layer, params = from_flax(nn.Bidirectional(rnn, rnn.copy()).init(jax.random.key(0), xs))
      >>> type(layer).__name__, sorted(params)
      ('Bidirectional', ['backward', 'forward'])
    """
    arrays = Arrays(_weights(params) if isinstance(params, Mapping) else params, "flax")
    prefixes = _cell_prefixes(arrays)
    options = {"gate_fn": gate_fn, "activation_fn": activation_fn}
    if set(prefixes) == set(DIRECTIONS.values()):
        both = {way: _read(arrays, prefix, options) for way, prefix in DIRECTIONS.items()}
        arrays.check_all_taken()
        layer = Bidirectional(both["forward"][0], both["backward"][0], merge=merge)
        return layer, {way: weights for way, (_, weights) in both.items()}
    if merge != "concat":
        raise ValueError(f"merge is an option of Bidirectional, got one cell and merge={merge!r}")
    if not set(prefixes) <= {"", "cell/"} or len(prefixes) > 1:
        parts = dict.fromkeys(map(_part, prefixes))
        raise ValueError(
            "params must be those of one cell, RNN or Bidirectional of flax, got a larger model; "
            f"pass one of its parts: {', '.join(parts)}"
        )
    prefix = prefixes[0] if prefixes else ""
    cell, weights = _read(arrays, prefix, options)
    arrays.check_all_taken(f"; pass the part {_part(prefix)}" if prefix else "")
    return cell, weights


def _weights(params: Mapping[Any, Any]) -> dict[str, Any]:
    """Parameters by path, without other linen collections and nnx random streams."""

    def flat(tree: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
        for key, child in tree.items():
            name = f"{above}{key}"
            if isinstance(child, Mapping):
                yield from flat(child, f"{name}/")
            elif not f"/{name}".endswith(("/rngs/key", "/rngs/count")):
                yield name, child

    arrays = dict(flat(params))
    collection = {
        n.removeprefix("params/"): a for n, a in arrays.items() if n.startswith("params/")
    }
    return collection or arrays


def _cell_prefixes(arrays: Arrays) -> list[str]:
    """The prefix of each cell's arrays, such as ``"cell/"``."""
    firsts = (*FIRST, JOINED)
    found = (
        name.removesuffix(first)
        for name in arrays
        for first in firsts
        if f"/{name}".endswith(f"/{first}")
    )
    return list(dict.fromkeys(found))


def _part(prefix: str) -> str:
    """The path of the cell, ``RNN`` or ``Bidirectional`` that contains the cell at a prefix."""
    for ending in (*DIRECTIONS.values(), "cell/"):
        if prefix.endswith(f"/{ending}"):
            return prefix.removesuffix(ending).rstrip("/")
    return prefix.rstrip("/")


def _read(arrays: Arrays, prefix: str, options: dict[str, Any]) -> tuple[BaseCell, Params]:
    """The cell at a prefix, and its parameters."""
    library, kind = next(
        (found for name, found in FIRST.items() if prefix + name in arrays), ("", "")
    )
    if not library:
        recurrent = arrays[prefix + JOINED]
        library = "flax.nnx"
        kind = {4: "optimized_lstm", 3: "gru", 1: "rnn"}.get(gate_count(recurrent), "")
        if not kind:
            raise ValueError(
                f"{prefix}{JOINED} must have shape (H, 4H), (H, 3H) or (H, H), of an "
                f"OptimizedLSTMCell, GRUCell or SimpleCell, got {recurrent.shape}"
            )
    convention, kind = CONVENTIONS[library][kind], kind.removeprefix("optimized_")
    ours = read_cell(
        arrays, convention, GATES[kind], lambda name: prefix + name, reset_after=kind == "gru"
    )
    check_odd_kernel(ours, f"{prefix}hh/kernel")
    kernel = ours["w_hh"].shape[:-2]
    cell = _made(kind, ours["w_hh"].shape[-2], kernel, options, dtype_of(ours))
    return cell, as_params(ours)


def _made(
    kind: str, size: int, kernel: tuple[int, ...], options: dict[str, Any], param_dtype: Any
) -> BaseCell:
    """The lstm_jax cell with the same equations as Flax's."""
    if kind == "conv_lstm":
        if options != {"gate_fn": "sigmoid", "activation_fn": "tanh"}:
            raise ValueError("gate_fn and activation_fn are not options of flax's ConvLSTMCell")
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
    """Converts the parameters of an lstm_jax cell or :class:`lstm_jax.Bidirectional` to Flax.

    linen's ConvLSTMCell adds 1 to the forget bias at run time.  The stored bias is therefore 1
    less than the cell's, rounded, which is exact from 0.5 to 2.

    Args:
      cell: an LSTM, a GRU with ``reset_after``, an RNN, or a convolutional LSTM without peepholes
        (linen only); or a :class:`lstm_jax.Bidirectional` of two such cells, for Flax's
        ``Bidirectional`` of two ``RNN``, to which you must pass the matching ``merge_fn``.
      params: its parameters.
      api: ``"linen"`` or ``"nnx"``.  The GRU of nnx has no ``b_hg``, which must be zero.
      optimized: whether an LSTM is for nnx's ``OptimizedLSTMCell`` (in linen both LSTM cells have
        the same parameters).
      use_bias: the option of linen's ConvLSTMCell.
      gate_fn, activation_fn: the Flax cell's options, functions or lstm_jax names.

    Returns:
      NumPy arrays in a nested dict, for linen's ``apply({"params": ...}, ...)`` or for
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
    if isinstance(cell, Bidirectional):
        return {
            f"{way}_rnn": {
                "cell": to_flax(
                    one,
                    weights,
                    api=api,
                    optimized=optimized,
                    use_bias=use_bias,
                    gate_fn=gate_fn,
                    activation_fn=activation_fn,
                )
            }
            for way, (one, weights) in directions_of(cell, params, "params").items()
        }
    kind, kernel = KINDS.get(type(cell), "lstm"), getattr(cell, "kernel_size", ())
    options = {"gate_fn": gate_fn, "activation_fn": activation_fn}
    other = _made(kind, getattr(cell, "hidden_size", 1), kernel, options, "float32")
    check_same(cell, other, "flax", HAS)
    directions_of(cell, params, "params")
    if api == "nnx" and kind == "conv_lstm":
        raise ValueError("ConvLSTMCell would be lost: flax.nnx has LSTMCell, GRUCell, SimpleCell")
    if not use_bias and kind != "conv_lstm":
        raise ValueError("only flax.linen.ConvLSTMCell has the option use_bias=False")
    name = "optimized_lstm" if optimized and kind == "lstm" and api == "nnx" else kind
    convention = CONVENTIONS[f"flax.{api}"][name]
    return nested(write_cell(params, convention, GATES[kind], lambda n: n, bias=use_bias))
