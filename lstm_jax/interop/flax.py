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
"""The API and the kind of cell, by the first of these names that is there."""
JOINED = "dense_h/kernel"
"""The name in cells of nnx with all gates in one array; its shape decides the kind."""
DIRECTIONS = {"forward": "forward_rnn/cell/", "backward": "backward_rnn/cell/"}
"""Where ``Bidirectional`` of ``RNN`` holds its cells."""


def from_flax(
    params: Mapping[str, Any],
    *,
    gate_fn: Activation = "sigmoid",
    activation_fn: Activation = "tanh",
    merge: str | Merge = "concat",
) -> tuple[BaseCell | Bidirectional, Params]:
    """Parameters of a recurrent cell, ``RNN`` or ``Bidirectional`` of Flax, linen or nnx.

    Names and shapes decide which cell it is.  (``SimpleCell(residual=True)`` looks like any other
    and is not supported; nor are strides and padding other than ``"SAME"`` of a ``ConvLSTMCell``.)

    Args:
      params: of linen the variables or ``variables["params"]``; of nnx ``nnx.state(module)`` or
        ``nnx.state(module, nnx.Param)``.  Random streams are skipped.  May be traced.
      gate_fn: of the cells, a function or one of our names.
      activation_fn: likewise.
      merge: of a ``Bidirectional``, as in :class:`lstm_jax.Bidirectional`; Flax's default
        concatenates.

    Returns:
      ``(cell, params)`` of a cell or ``RNN``; of a ``Bidirectional`` the pair of an
      :class:`lstm_jax.Bidirectional` and its parameters.  How an ``RNN`` runs (``reverse``,
      ``time_major``) is not in its parameters.

    Raises:
      TypeError, ValueError: a name is missing or not of such a cell, or a shape does not fit; the
        message names it.  If ``params`` are of a larger model, the message names its parts that
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
    places = _places(arrays)
    options = {"gate_fn": gate_fn, "activation_fn": activation_fn}
    if set(places) == set(DIRECTIONS.values()):
        both = {way: _read(arrays, place, options) for way, place in DIRECTIONS.items()}
        arrays.check_all_taken()
        layer = Bidirectional(both["forward"][0], both["backward"][0], merge=merge)
        return layer, {way: weights for way, (_, weights) in both.items()}
    if merge != "concat":
        raise ValueError(f"merge is an option of Bidirectional, got one cell and merge={merge!r}")
    if not set(places) <= {"", "cell/"} or len(places) > 1:
        parts = dict.fromkeys(map(_part, places))
        raise ValueError(
            "params must be those of one cell, RNN or Bidirectional of flax, got a larger model; "
            f"pass one of its parts: {', '.join(parts)}"
        )
    place = places[0] if places else ""
    cell, weights = _read(arrays, place, options)
    arrays.check_all_taken(f"; pass the part {_part(place)}" if place else "")
    return cell, weights


def _weights(params: Mapping[Any, Any]) -> dict[str, Any]:
    """Arrays by their path; of variables the parameters, and no random streams of nnx."""

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


def _places(arrays: Arrays) -> list[str]:
    """Where cells are: what the names of their arrays begin with, such as ``"cell/"``."""
    firsts = (*FIRST, JOINED)
    found = (
        name.removesuffix(first)
        for name in arrays
        for first in firsts
        if f"/{name}".endswith(f"/{first}")
    )
    return list(dict.fromkeys(found))


def _part(place: str) -> str:
    """The path of the cell, ``RNN`` or ``Bidirectional`` that has a cell at a place."""
    for ending in (*DIRECTIONS.values(), "cell/"):
        if place.endswith(f"/{ending}"):
            return place.removesuffix(ending).rstrip("/")
    return place.rstrip("/")


def _read(arrays: Arrays, place: str, options: dict[str, Any]) -> tuple[BaseCell, Params]:
    """The cell at a place, and its parameters."""
    library, kind = next(
        (found for name, found in FIRST.items() if place + name in arrays), ("", "")
    )
    if not library:
        recurrent = arrays[place + JOINED]
        library = "flax.nnx"
        kind = {4: "optimized_lstm", 3: "gru", 1: "rnn"}.get(gate_count(recurrent), "")
        if not kind:
            raise ValueError(
                f"{place}{JOINED} must have shape (H, 4H), (H, 3H) or (H, H), of an "
                f"OptimizedLSTMCell, GRUCell or SimpleCell, got {recurrent.shape}"
            )
    convention, kind = CONVENTIONS[library][kind], kind.removeprefix("optimized_")
    ours = read_cell(
        arrays, convention, GATES[kind], lambda name: place + name, reset_after=kind == "gru"
    )
    check_odd_kernel(ours, f"{place}hh/kernel")
    kernel = ours["w_hh"].shape[:-2]
    cell = _made(kind, ours["w_hh"].shape[-2], kernel, options, dtype_of(ours))
    return cell, as_params(ours)


def _made(
    kind: str, size: int, kernel: tuple[int, ...], options: dict[str, Any], param_dtype: Any
) -> BaseCell:
    """The cell of ours that Flax's is."""
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
    """Parameters of a cell of ours, or of both directions, as those of Flax's with these options.

    linen's ConvLSTMCell adds 1 to the forget bias at run time; what is stored is ours less 1,
    rounded, which is exact from 0.5 to 2.

    Args:
      cell: an LSTM, a GRU with ``reset_after``, an RNN, or a convolutional LSTM without peepholes
        (linen alone); or a :class:`lstm_jax.Bidirectional` of two such cells, for Flax's
        ``Bidirectional`` of two ``RNN``, to which ``merge_fn`` must be given.
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
        raise ValueError("use_bias=False is an option of flax.linen.ConvLSTMCell alone")
    name = "optimized_lstm" if optimized and kind == "lstm" and api == "nnx" else kind
    convention = CONVENTIONS[f"flax.{api}"][name]
    return nested(write_cell(params, convention, GATES[kind], lambda n: n, bias=use_bias))
