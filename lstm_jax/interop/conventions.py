"""The table of how each library lays out the parameters of each cell.

lstm_jax concatenates the gates along the last axis: i, f, g, o in an LSTM and r, z, g in a GRU.
Weights have shape ``(in, gates * H)``, for ``x @ w``.  There is one bias, ``b``.  A GRU that
resets after the product has a second one, ``b_hg``, for the recurrent part of the candidate.
This module uses the lstm_jax letter for a gate even where a library uses another one (it may call
the candidate g: c, n, a or h).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

GATES = {"lstm": "ifgo", "conv_lstm": "ifgo", "gru": "rzg", "rnn": "h"}
"""The order of the gates in lstm_jax, by kind of cell."""

Names = Mapping[str, str | tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Convention:
    """One library's layout of the parameters of one kind of cell.

    Attributes:
      gates: the order of the gates.
      names: the library's name of each array, by the array's role.  ``w_ih`` multiplies the
        input and ``w_hh`` the previous state.  ``b_ih`` is added to the first product and
        ``b_hh`` to the second; lstm_jax stores their sum as ``b``.  ``b_hg`` is the candidate's
        part of ``b_hh``, where a library stores it separately.  ``w_hr`` projects the output, and
        ``p`` are the peepholes.  If each gate has a separate array, the value is a tuple with one
        name per gate, in order.  If two roles have the same name, one array holds both parts, the
        input's first.
      transposed: whether matrices have shape ``(gates * H, in)``, for ``w @ x``, so that each gate
        is a block of rows.
      forget_bias: the number that the library's code adds to the forget gate's pre-activation at
        run time.
      negated: gates with the opposite meaning, σ(-x) = 1 - σ(x).  Their weights and biases have
        the opposite sign.
      peepholes: the order of the concatenated peepholes.
      blocks_transposed: whether the memory of each gate's block ``(in, H)`` holds the matrix
        ``(H, in)``, for ``w @ x``.

    >>> CONVENTIONS["haiku"]["lstm"].gates
    'igfo'
    """

    gates: str
    names: Names
    transposed: bool = False
    forget_bias: float = 0.0
    negated: str = ""
    peepholes: str = ""
    blocks_transposed: bool = False


def _for_each_gate(template: str, letters: str) -> tuple[str, ...]:
    return tuple(template.replace("*", letter) for letter in letters)


_TORCH = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
_KERAS = {"w_ih": "kernel", "w_hh": "recurrent_kernel", "b_ih": "bias"}
_ONNX = {"w_ih": "W", "w_hh": "R", "b_ih": "B", "b_hh": "B"}
_DENSE = {"w_ih": "dense_i/kernel", "w_hh": "dense_h/kernel"}

CONVENTIONS: dict[str, dict[str, Convention]] = {
    # nn.LSTM, nn.GRU, nn.RNN append _l0, _l1, ... and _reverse to these names; their cells do not.
    # Reset after the product.
    "torch": {
        "lstm": Convention("ifgo", {**_TORCH, "w_hr": "weight_hr"}, transposed=True),
        "gru": Convention("rzg", _TORCH, transposed=True),
        "rnn": Convention("h", _TORCH, transposed=True),
    },
    # The GRU's two biases are the rows of one array, (2, 3H); with reset_after=False there is one
    # bias.
    "keras": {
        "lstm": Convention("ifgo", _KERAS),
        "gru": Convention("zrg", {**_KERAS, "b_hh": "bias"}),
        "gru_reset_before": Convention("zrg", _KERAS),
        "rnn": Convention("h", _KERAS),
        "conv_lstm": Convention("ifgo", _KERAS),
        # CuDNNLSTM and CuDNNGRU of Keras 2 concatenate their two biases: (8H,) and (6H,).
        "cudnn_lstm": Convention("ifgo", {**_KERAS, "b_hh": "bias"}, blocks_transposed=True),
        "cudnn_gru": Convention("zrg", {**_KERAS, "b_hh": "bias"}, blocks_transposed=True),
    },
    # LSTMCell and OptimizedLSTMCell have the same parameters.  Reset after the product.
    "flax.linen": {
        "lstm": Convention(
            "ifgo",
            {
                "w_ih": _for_each_gate("i*/kernel", "ifgo"),
                "w_hh": _for_each_gate("h*/kernel", "ifgo"),
                "b_hh": _for_each_gate("h*/bias", "ifgo"),
            },
        ),
        "gru": Convention(
            "rzg",
            {
                "w_ih": _for_each_gate("i*/kernel", "rzn"),
                "w_hh": _for_each_gate("h*/kernel", "rzn"),
                "b_ih": _for_each_gate("i*/bias", "rzn"),
                "b_hg": "hn/bias",
            },
        ),
        "rnn": Convention("h", {"w_ih": "i/kernel", "w_hh": "h/kernel", "b_ih": "i/bias"}),
        "conv_lstm": Convention(
            "igfo",
            {"w_ih": "ih/kernel", "w_hh": "hh/kernel", "b_ih": "ih/bias", "b_hh": "hh/bias"},
            forget_bias=1.0,
        ),
    },
    # The GRU also resets after the product, but has no b_hg.
    "flax.nnx": {
        "lstm": Convention(
            "ifgo",
            {
                "w_ih": ("ii/kernel", "if_/kernel", "ig/kernel", "io/kernel"),
                "w_hh": _for_each_gate("h*/kernel", "ifgo"),
                "b_hh": _for_each_gate("h*/bias", "ifgo"),
            },
        ),
        "optimized_lstm": Convention("ifgo", {**_DENSE, "b_hh": "dense_h/bias"}),
        "gru": Convention("rzg", {**_DENSE, "b_ih": "dense_i/bias"}),
        "rnn": Convention("h", {**_DENSE, "b_ih": "dense_i/bias"}),
    },
    # The LSTM has one matrix for input and state, (D + H, 4H).  The GRU resets before the product.
    # Its z weights the candidate, h = (1 - z) h + z a, whereas in lstm_jax z weights the state.
    "haiku": {
        "lstm": Convention(
            "igfo", {"w_ih": "linear/w", "w_hh": "linear/w", "b_ih": "linear/b"}, forget_bias=1.0
        ),
        "gru": Convention("zrg", {"w_ih": "w_i", "w_hh": "w_h", "b_ih": "b"}, negated="z"),
        "rnn": Convention(
            "h",
            {"w_ih": "linear/w", "w_hh": "linear_1/w", "b_ih": "linear/b", "b_hh": "linear_1/b"},
        ),
        "rnn_single_bias": Convention(  # double_bias=False
            "h", {"w_ih": "linear/w", "w_hh": "linear_1/w", "b_ih": "linear/b"}
        ),
        "conv_lstm": Convention(
            "igfo",
            {
                "w_ih": "input_to_hidden/w",
                "w_hh": "hidden_to_hidden/w",
                "b_ih": "input_to_hidden/b",
                "b_hh": "hidden_to_hidden/b",
            },
            forget_bias=1.0,
        ),
    },
    # Reset after the product.
    "equinox": {
        "lstm": Convention(
            "ifgo", {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias"}, transposed=True
        ),
        "gru": Convention(
            "rzg",
            {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias", "b_hg": "bias_n"},
            transposed=True,
        ),
    },
    # W [directions, gates * H, D], R [directions, gates * H, H], B [directions, 2 * gates * H],
    # P [directions, 3H].  The GRU resets before the product, or after it with
    # linear_before_reset = 1; only then does it use the candidate's part of the second bias.
    "onnx": {
        "lstm": Convention("iofg", {**_ONNX, "p": "P"}, transposed=True, peepholes="iof"),
        "gru": Convention("zrg", _ONNX, transposed=True),
        "rnn": Convention("h", _ONNX, transposed=True),
    },
    # One flat array: w_ih and w_hh of each layer and direction, then b_ih and b_hh of each.
    "cudnn": {"lstm": Convention("ifgo", {name: "" for name in _TORCH}, transposed=True)},
}
"""The conventions by library and kind of cell."""


def reordered(array: Any, gates: str, new: str, axis: int = -1) -> Any:
    """Reorders the blocks of gates along an axis, bit for bit.

    Args:
      array: a NumPy or JAX array whose axis consists of one block per gate, all of equal size.
      gates: the current order, one letter for each block.
      new: the new order of the same letters.
      axis: the axis of the gates.

    >>> import numpy as np
    >>> reordered(np.arange(8), "iofg", "ifgo").tolist()
    [0, 1, 4, 5, 6, 7, 2, 3]
    """
    if gates == new:
        return array
    xp = array.__array_namespace__()
    blocks = dict(zip(gates, xp.split(array, len(gates), axis), strict=True))
    return xp.concatenate([blocks[gate] for gate in new], axis)


def to_ours(array: Any, convention: Convention, gates: str) -> Any:
    """Converts a matrix, kernel or bias of all gates to our layout, bit for bit except for signs.

    Args:
      array: a NumPy or JAX array in the library's layout.
      convention: the library's convention.
      gates: the order of our gates, as in :data:`GATES`.

    >>> import numpy as np
    >>> onnx = CONVENTIONS["onnx"]["lstm"]
    >>> to_ours(np.arange(4)[:, None], onnx, GATES["lstm"]).tolist()  # i, o, f, g; H = D = 1
    [[0, 2, 3, 1]]
    """
    if convention.transposed and array.ndim > 1:
        array = array.__array_namespace__().swapaxes(array, -1, -2)
    if convention.blocks_transposed and array.ndim > 1:
        array = _blockwise(lambda block: block.reshape(block.shape[::-1]).T, array, len(gates))
    return signed(reordered(array, convention.gates, gates), gates, convention)


def from_ours(array: Any, convention: Convention, gates: str) -> Any:
    """The inverse of :func:`to_ours`.

    >>> import numpy as np
    >>> onnx = CONVENTIONS["onnx"]["lstm"]
    >>> from_ours(np.array([[0, 2, 3, 1]]), onnx, GATES["lstm"]).tolist()
    [[0], [1], [2], [3]]
    """
    array = reordered(signed(array, gates, convention), gates, convention.gates)
    if convention.blocks_transposed and array.ndim > 1:
        array = _blockwise(lambda block: block.T.reshape(block.shape), array, len(gates))
    if convention.transposed and array.ndim > 1:
        array = array.__array_namespace__().swapaxes(array, -1, -2)
    return array


def _blockwise(change: Callable[[Any], Any], array: Any, count: int) -> Any:
    """Applies a function to each of ``count`` equal blocks along the last axis."""
    xp = array.__array_namespace__()
    return xp.concatenate([change(block) for block in xp.split(array, count, -1)], -1)


def signed(array: Any, gates: str, convention: Convention) -> Any:
    """Flips the sign of the gates that have the opposite meaning; gates are along the last axis.

    >>> import numpy as np
    >>> signed(np.array([1.0, 2.0, 3.0]), "rzg", CONVENTIONS["haiku"]["gru"]).tolist()
    [1.0, -2.0, 3.0]
    """
    if not convention.negated:
        return array
    xp = array.__array_namespace__()
    blocks = zip(gates, xp.split(array, len(gates), -1), strict=True)
    return xp.concatenate([-b if gate in convention.negated else b for gate, b in blocks], -1)
