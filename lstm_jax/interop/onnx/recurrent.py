"""Converts ONNX's operators LSTM, GRU and RNN to lstm_jax cells and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import (
    CoupledLSTMCell,
    GRUCell,
    LSTMCell,
    LSTMFamilyCell,
    LSTMState,
    OdysseyLSTMCell,
    Parameter,
    PeepholeLSTMCell,
    RNNCell,
)
from lstm_jax.cells.activations import Activations
from lstm_jax.cells.base import affine, like, zeros
from lstm_jax.cells.peephole import peephole
from lstm_jax.interop.conventions import CONVENTIONS, GATES, from_ours, to_ours
from lstm_jax.interop.onnx.activations import (
    OnnxActivation,
    activation_to_onnx,
    activations_from_onnx,
    attributes_of,
)
from lstm_jax.sequence import Bidirectional, Stack, initial_state, unroll
from lstm_jax.sequence.regularizers import Regularizer
from lstm_jax.sequence.stack import Stacked

DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
"""The default activation functions of each operator."""

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}

ATTRIBUTES = {
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "layout",
}
OWN_ATTRIBUTES = {"LSTM": {"input_forget"}, "GRU": {"linear_before_reset"}, "RNN": set()}

WITHOUT_I = GATES["lstm"].replace("i", "")  # the gates of a cell with i = 1 - f
WITHOUT_F = GATES["lstm"].replace("f", "")  # the gates of a cell with f = 1 - i


class Operator(NamedTuple):
    """The weights and attributes of a recurrent node.

    Attributes:
      name: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.
      arrays: ``W``, ``R``, ``B`` and, for an LSTM with peepholes, ``P``; the first axis is the
        direction.
      attributes: the attributes by name, such as ``hidden_size`` and ``direction``.
    """

    name: str
    arrays: dict[str, Any]
    attributes: dict[str, Any]


# ---- ONNX's LSTM with coupled gates that are not sigmoid ----


def input_forget_cell(
    params: dict[str, jax.Array], state: LSTMState, x: jax.Array, a: Activations
) -> tuple[LSTMState, jax.Array]:
    r"""One step of ONNX's LSTM with ``input_forget = 1``, for any gate activation f.

    ::

        i_t = f(W_i x_t + U_i h_{t-1} + p_i ∘ c_{t-1} + b_i)
        g_t = g(W_g x_t + U_g h_{t-1} + b_g)
        c_t = (1 - i_t) ∘ c_{t-1} + i_t ∘ g_t
        o_t = f(W_o x_t + U_o h_{t-1} + p_o ∘ c_t + b_o)
        h_t = o_t ∘ h(c_t)

    With f = σ it equals :func:`coupled_cell`, since 1 - σ(z) = σ(-z).
    """
    i, g, o = jnp.split(affine(params, state.h, x), 3, -1)
    i = a.gate(i + peephole(params, "i", state.c))
    c = (1.0 - i) * state.c + i * a.candidate(g)
    o = a.gate(o + peephole(params, "o", c))
    state = like(LSTMState(h=o * a.output(c), c=c), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class InputForgetLSTMCell(LSTMFamilyCell):
    """Sizes and options of :func:`input_forget_cell`; the order of the gates is i, g, o.

    >>> sorted(InputForgetLSTMCell(2).init(jax.random.key(0), 3))
    ['b', 'p_i', 'p_o', 'w_hh', 'w_ih']
    """

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": self.declare("kernel", (D, 3 * H), gates=3),
            "w_hh": self.declare("recurrent_kernel", (H, 3 * H), gates=3),
            "b": self.declare("bias", (3 * H,)),
            "p_i": Parameter(zeros, (H,)),
            "p_o": Parameter(zeros, (H,)),
        }

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return input_forget_cell(params, state, x, self.activations)


# ---- from ONNX ----


def layer_from_onnx(
    operator: str, arrays: Mapping[str, Any], attributes: Mapping[str, Any] | None = None
) -> tuple[Stack, dict[str, Any]]:
    """Converts a recurrent ONNX operator to a layer and its parameters.

    Args:
      operator: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.
      arrays: ``W`` ``[directions, gates * H, D]``, ``R`` ``[directions, gates * H, H]`` and, if
        present, ``B`` ``[directions, 2 * gates * H]`` and an LSTM's ``P`` ``[directions, 3H]``.
      attributes: the node's attributes.  ``layout`` is ignored, since it does not affect weights.

    Returns:
      ``(layer, params)``: a :class:`Stack` of one layer ``layer_0``, which is a cell (run backwards
      if ``direction`` is ``"reverse"``) or a :class:`Bidirectional`.  ``clip`` bounds the
      pre-activations of gates and candidates, as it does in ONNX Runtime.

    Raises:
      ValueError: the operator, an array, its shape, an attribute or a function is not ONNX's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import LSTM
      >>> lstm = LSTM(4, bidirectional=True)
      >>> name, arrays, attributes = layer_to_onnx(lstm, lstm.init(jax.random.key(0), 3))
      >>> layer, params = layer_from_onnx(name, arrays, attributes)
      >>> layer.apply(params, jnp.ones((7, 5, 3)))[1].shape
      (7, 5, 8)
    """
    attributes = dict(attributes or {})
    cells = cells_from_onnx(operator, arrays, attributes)
    if len(cells) == 2:
        (forward, forward_params), (backward, backward_params) = cells
        both = {"forward": forward_params, "backward": backward_params}
        return Stack([Bidirectional(forward, backward)]), {"layer_0": both}
    ((cell, params),) = cells
    return Stack([cell], reverse=attributes.get("direction") == "reverse"), {"layer_0": params}


def cells_from_onnx(
    operator: str, arrays: Mapping[str, Any], attributes: Mapping[str, Any]
) -> list[tuple[Any, dict[str, Any]]]:
    """The cell of each direction with its parameters; arguments as :func:`layer_from_onnx`."""
    if operator not in DEFAULTS:
        raise ValueError(f"operator must be one of {', '.join(DEFAULTS)}, got {operator!r}")
    for name in attributes:
        if name not in ATTRIBUTES | OWN_ATTRIBUTES[operator]:
            raise ValueError(f"{operator} of ONNX has no attribute {name!r}")
    direction = attributes.get("direction", "forward")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    count = DIRECTIONS[direction]
    hidden_size = _checked_size(operator, arrays, attributes, count)
    functions = activations_from_onnx(attributes, DEFAULTS[operator], count)
    options = {
        "hidden_size": hidden_size,
        "param_dtype": np.dtype(jax.dtypes.canonicalize_dtype(arrays["W"].dtype)).name,
        "preactivation_clip": attributes.get("clip"),
    }
    make = {"LSTM": _lstm_from_onnx, "GRU": _gru_from_onnx, "RNN": _rnn_from_onnx}[operator]
    cells = []
    for n in range(count):
        kind = operator.lower()
        convention, gates = CONVENTIONS["onnx"][kind], GATES[kind]
        params = {
            ours: to_ours(arrays[theirs][n], convention, gates)
            for ours, theirs in (("w_ih", "W"), ("w_hh", "R"))
        }
        bias = arrays.get("B")
        if bias is None:
            b_ih = b_hh = np.zeros(len(gates) * hidden_size, options["param_dtype"])
        else:
            b_ih, b_hh = (to_ours(b, convention, gates) for b in _parts(bias[n], 2))
        peepholes = arrays["P"][n] if arrays.get("P") is not None else None
        cells.append(make(params, b_ih, b_hh, peepholes, functions[n], options, attributes))
    return cells


def _lstm_from_onnx(params, b_ih, b_hh, peepholes, functions, options, attributes):
    gate, candidate, output = functions
    options |= {"gate_fn": gate, "activation_fn": candidate}
    if output != candidate:  # by default they are equal
        options["output_fn"] = output
    params["b"] = b_ih + b_hh
    if peepholes is not None:
        order = CONVENTIONS["onnx"]["lstm"].peepholes
        params |= {
            f"p_{name}": p for name, p in zip(order, _parts(peepholes, len(order)), strict=True)
        }
    if not attributes.get("input_forget"):
        return (LSTMCell if peepholes is None else PeepholeLSTMCell)(**options), params
    # f = 1 - i: the parameters of f are not used.
    if gate != "sigmoid":
        params = {
            name: array if name.startswith("p_") else _chosen(array, WITHOUT_F)
            for name, array in params.items()
            if name != "p_f"
        }
        for name in ("p_i", "p_o"):
            params.setdefault(name, np.zeros(options["hidden_size"], options["param_dtype"]))
        return InputForgetLSTMCell(**options), params
    # CoupledLSTMCell has i = 1 - f; σ(-z) = 1 - σ(z).
    coupled = {}
    for name in ("w_ih", "w_hh", "b"):
        of = dict(zip(GATES["lstm"], _parts(params[name], len(GATES["lstm"])), strict=True))
        of["f"] = -of["i"]
        coupled[name] = _joined([of[gate] for gate in WITHOUT_I])
    if peepholes is not None:
        coupled |= {"p_f": -params["p_i"], "p_o": params["p_o"]}
    return CoupledLSTMCell(**options, peepholes=peepholes is not None), coupled


def _gru_from_onnx(params, b_ih, b_hh, peepholes, functions, options, attributes):
    gate, candidate = functions
    options |= {"gate_fn": gate, "activation_fn": candidate}
    reset_after = bool(attributes.get("linear_before_reset"))
    params["b"] = b_ih + b_hh
    if reset_after:
        before, after = _chosen(b_ih, "g", GATES["gru"]), _chosen(b_hh, "g", GATES["gru"])
        gates = _chosen(params["b"], GATES["gru"].replace("g", ""), GATES["gru"])
        params |= {"b": _joined([gates, before]), "b_hg": after}
    return GRUCell(**options, reset_after=reset_after), params


def _rnn_from_onnx(params, b_ih, b_hh, peepholes, functions, options, attributes):
    return RNNCell(**options, activation_fn=functions[0]), {**params, "b": b_ih + b_hh}


def _checked_size(
    operator: str, arrays: Mapping[str, Any], attributes: Mapping[str, Any], count: int
) -> int:
    """Checks the shape of every array, and returns H."""
    known = ("W", "R", "B", "P") if operator == "LSTM" else ("W", "R", "B")
    for name in arrays:
        if name not in known:
            raise ValueError(f"{operator} of ONNX has {', '.join(known)}, got {name!r}")
    for name in ("W", "R"):
        if arrays.get(name) is None:
            raise ValueError(f"{operator} of ONNX needs {name}")
        if arrays[name].ndim != 3:
            raise ValueError(
                f"{name} must be [directions, gates * H, in], got shape {arrays[name].shape}"
            )
    size, gates = arrays["R"].shape[-1], len(GATES[operator.lower()])
    if attributes.get("hidden_size", size) != size:
        raise ValueError(
            f"hidden_size must be {size}, the last size of R, got {attributes['hidden_size']}"
        )
    shapes = {
        "W": (count, gates * size, arrays["W"].shape[-1]),
        "R": (count, gates * size, size),
        "B": (count, 2 * gates * size),
        "P": (count, 3 * size),
    }
    for name, array in arrays.items():
        if array is not None and tuple(array.shape) != shapes[name]:
            raise ValueError(
                f"{name} of {operator} with {count} direction(s) and hidden_size={size} must have "
                f"shape {shapes[name]}, got {tuple(array.shape)}"
            )
    return size


# ---- running a node ----


def run_node(
    operator: str,
    X: jax.Array,
    W: Any,
    R: Any,
    B: Any = None,
    sequence_lens: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    P: Any = None,
    *,
    engine: str = "auto",
    **attributes: Any,
) -> tuple[jax.Array, ...]:
    """Computes ``(Y, Y_h)`` and, for an LSTM, ``Y_c``; :func:`unroll` runs each direction.

    Outputs beyond a row's length are zero.  A row of length zero ends with its initial state.

    >>> import jax.numpy as jnp
    >>> Y, Y_h = run_node("RNN", jnp.ones((5, 2, 3)), jnp.ones((1, 4, 3)), jnp.ones((1, 4, 4)))
    >>> Y.shape, Y_h.shape
    ((5, 1, 2, 4), (1, 2, 4))
    """
    X = jnp.asarray(X)
    layout = attributes.get("layout", 0)
    if X.ndim != 3:
        raise ValueError(f"X of {operator} must have three axes, got shape {X.shape}")
    arrays = {"W": W, "R": R, "B": B, "P": P}
    cells = cells_from_onnx(
        operator, {name: a for name, a in arrays.items() if a is not None}, attributes
    )
    states = {"h": initial_h, "c": initial_c}
    states = {name: array for name, array in states.items() if array is not None}
    if layout:
        X = X.swapaxes(0, 1)
        states = {name: array.swapaxes(0, 1) for name, array in states.items()}
    outputs, last = [], []
    for n, (cell, params) in enumerate(cells):
        zero = initial_state(cell, params, X.shape[1:-1], X)
        begin = zero._replace(**{name: jnp.asarray(array[n]) for name, array in states.items()})
        reverse = n == 1 or attributes.get("direction") == "reverse"
        end, ys = unroll(
            cell, params, X, begin, lengths=sequence_lens, reverse=reverse, engine=engine
        )
        outputs.append(ys)
        last.append(end)
    Y = jnp.stack(outputs, 1)
    ends = [jnp.stack(fields) for fields in zip(*last, strict=True)]  # h, then c
    if layout:
        Y = jnp.moveaxis(Y, 2, 0)
        ends = [end.swapaxes(0, 1) for end in ends]
    return tuple(array.astype(X.dtype) for array in (Y, *ends))


# ---- to ONNX ----


def layer_to_onnx(layer: Any, params: Any) -> Operator:
    """Converts a layer and its parameters to a recurrent ONNX operator.

    Args:
      layer: a cell, :class:`Bidirectional`, or a :class:`Stack` or :class:`LSTM` of one layer.
      params: its parameters.

    Returns:
      An :class:`Operator` with NumPy arrays.

    Raises:
      ValueError: ONNX's operators cannot express the layer; the message gives the reason.

    Example:
      >>> import jax
      >>> from lstm_jax.cells import GRUCell
      >>> cell = GRUCell(4)
      >>> operator = layer_to_onnx(cell, cell.init(jax.random.key(0), input_size=3))
      >>> operator.name, operator.arrays["W"].shape
      ('GRU', (1, 12, 3))
      >>> operator.attributes["linear_before_reset"]
      0
    """
    reverse = False
    if isinstance(layer, Stacked):
        if len(layer.layers) != 1:
            raise ValueError(
                f"an ONNX operator is one layer, got {len(layer.layers)}; to_onnx converts a stack "
                "to a graph"
            )
        reverse, ((name, layer),) = layer.reverse, dict(layer.layers).items()
        params = params[name]
    if isinstance(layer, Bidirectional):
        if layer.merge != "concat":
            raise ValueError(f"ONNX concatenates both directions, got merge={layer.merge!r}")
        directions = [
            cell_to_onnx(layer.forward, params["forward"]),
            cell_to_onnx(layer.backward, params["backward"]),
        ]
        return both_directions(*directions)
    return cell_to_onnx(layer, params, reverse=reverse)


def cell_to_onnx(cell: Any, params: Mapping[str, Any], *, reverse: bool = False) -> Operator:
    """Converts one direction, as :func:`layer_to_onnx` does."""
    why = obstacle(cell)
    if why is None and cell.learn_initial_state:
        why = "learns its initial state, which is not a weight of an operator"
    if why is not None:
        raise ValueError(f"ONNX has no operator for {type(cell).__name__}: it {why}")
    return operator_of(cell, params, reverse=reverse)


def obstacle(cell: Any) -> str | None:
    """Why ONNX's operators cannot express a cell, as a phrase; None if they can.

    >>> obstacle(LSTMCell(3)), obstacle(LSTMCell(3, cell_clip=1.0))
    (None, 'clips its cell state')
    """
    cell = _in_evaluation(cell)
    if type(cell) not in EXPRESSIBLE or getattr(cell, "variant", "np") not in VARIANTS:
        return "has other equations"
    if getattr(cell, "cell_clip", None) is not None:
        return "clips its cell state"
    if cell.dtype is not None and jnp.dtype(cell.dtype) != jnp.dtype(cell.param_dtype):
        return f"computes in {jnp.dtype(cell.dtype).name} with {cell.param_dtype} parameters"
    if isinstance(cell, CoupledLSTMCell) and _functions(cell)[0] != OnnxActivation("Sigmoid"):
        return "couples gates that are not sigmoid"
    for option, function in zip(_OPTIONS, _functions(cell), strict=False):
        if function is None:
            return f"has {option}={getattr(cell, option)!r}, which is not a function of ONNX"
    return None


EXPRESSIBLE = {
    LSTMCell: "LSTM",
    PeepholeLSTMCell: "LSTM",
    OdysseyLSTMCell: "LSTM",
    CoupledLSTMCell: "LSTM",
    InputForgetLSTMCell: "LSTM",
    GRUCell: "GRU",
    RNNCell: "RNN",
}
"""The operator of each lstm_jax cell that ONNX can express."""

VARIANTS = ("np", "niaf", "noaf")  # variants of OdysseyLSTMCell that only differ in functions
_OPTIONS = ("gate_fn", "activation_fn", "output_fn")


def operator_of(cell: Any, params: Mapping[str, Any], *, reverse: bool = False) -> Operator:
    """Converts a cell for which :func:`obstacle` returns None, and its parameters."""
    cell = _in_evaluation(cell)
    name = EXPRESSIBLE[type(cell)]
    convention, gates = CONVENTIONS["onnx"][name.lower()], GATES[name.lower()]
    of = {key: np.asarray(array) for key, array in params.items()}
    attributes: dict[str, Any] = {
        "hidden_size": cell.hidden_size,
        "direction": "reverse" if reverse else "forward",
    }
    functions = _functions(cell)
    if [function.name for function in functions] != [*DEFAULTS[name]]:
        attributes |= attributes_of(functions)
    if cell.preactivation_clip is not None:
        attributes["clip"] = float(cell.preactivation_clip)
    if isinstance(cell, CoupledLSTMCell | InputForgetLSTMCell):
        attributes["input_forget"] = 1
        of = _uncoupled(cell, of)
    b_hh = np.zeros_like(of["b"])
    if name == "GRU":
        attributes["linear_before_reset"] = int(cell.reset_after)
        if cell.reset_after:
            zero = np.zeros_like(of["b_hg"])
            b_hh = _joined([of["b_hg"] if gate == "g" else zero for gate in gates])
    biases = [from_ours(b, convention, gates) for b in (of["b"], b_hh)]
    arrays = {
        "W": from_ours(of["w_ih"], convention, gates),
        "R": from_ours(of["w_hh"], convention, gates),
        "B": _joined(biases),
    }
    order = convention.peepholes
    if any(f"p_{gate}" in of for gate in order):
        arrays["P"] = _joined([of[f"p_{gate}"] for gate in order])
    return Operator(name, {key: array[None] for key, array in arrays.items()}, attributes)


def _uncoupled(cell: Any, of: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of all four gates; with ``input_forget``, ONNX ignores those of f."""
    coupled = isinstance(cell, CoupledLSTMCell)
    full = {}
    for name in ("w_ih", "w_hh", "b"):
        gates = dict(zip(WITHOUT_I if coupled else WITHOUT_F, _parts(of[name], 3), strict=True))
        if coupled:
            gates["i"] = -gates["f"]  # σ(-z) = 1 - σ(z)
        gates["f"] = np.zeros_like(gates["i"])
        full[name] = _joined([gates[gate] for gate in GATES["lstm"]])
    if "p_o" in of:
        p_i = -of["p_f"] if coupled else of["p_i"]
        full |= {"p_i": p_i, "p_o": of["p_o"], "p_f": np.zeros_like(p_i)}
    return full


def both_directions(forward: Operator, backward: Operator) -> Operator:
    """Joins two directions with equal attributes into one operator."""
    lists = ("activations", "activation_alpha", "activation_beta")
    plain = [
        {name: value for name, value in one.attributes.items() if name not in lists}
        for one in (forward, backward)
    ]
    if forward.name != backward.name or plain[0] != plain[1]:
        raise ValueError(
            "both directions of an ONNX operator must have the same kind and attributes, got "
            f"{forward.name} with {plain[0]} and {backward.name} with {plain[1]}"
        )
    arrays = [dict(one.arrays) for one in (forward, backward)]
    for one in arrays:  # if only one direction has peepholes, those of the other are zero
        if "P" not in one and any("P" in other for other in arrays):
            one["P"] = np.zeros((1, 3 * one["R"].shape[-1]), one["R"].dtype)
    attributes = plain[0] | {"direction": "bidirectional"}
    if any("activations" in one.attributes for one in (forward, backward)):
        named = [
            {"activations": [*DEFAULTS[forward.name]], **one.attributes}
            for one in (forward, backward)
        ]
        for name in lists:
            values = [value for one in named for value in one.get(name, [])]
            if values:
                attributes[name] = values
    joined = {name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]}
    return Operator(forward.name, joined, attributes)


def _in_evaluation(cell: Any) -> Any:
    """Removes regularisers that do nothing in evaluation."""
    while isinstance(cell, Regularizer) and type(cell).step is Regularizer.step:
        cell = cell.cell
    return cell


def _functions(cell: Any) -> list[Any]:
    """A cell's functions in ONNX; None for those that ONNX does not have."""
    given: Any = {
        "LSTM": lambda: (cell.gate_fn, cell.activation_fn, cell.output_fn or cell.activation_fn),
        "GRU": lambda: (cell.gate_fn, cell.activation_fn),
        "RNN": lambda: (cell.activation_fn,),
    }[EXPRESSIBLE[type(cell)]]()
    if getattr(cell, "variant", None) == "niaf":
        given = (given[0], "identity", given[2])
    if getattr(cell, "variant", None) == "noaf":
        given = (given[0], given[1], "identity")
    return [activation_to_onnx(function) for function in given]


# ---- blocks of gates along the last axis ----


def _parts(array: Any, count: int) -> list[Any]:
    return array.__array_namespace__().split(array, count, -1)


def _joined(arrays: list[Any]) -> Any:
    return arrays[0].__array_namespace__().concatenate(arrays, -1)


def _chosen(array: Any, chosen: str, gates: str = GATES["lstm"]) -> Any:
    """The blocks of some gates, in the given order."""
    of = dict(zip(gates, _parts(array, len(gates)), strict=True))
    return _joined([of[gate] for gate in chosen])
