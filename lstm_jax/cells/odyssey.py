"""The variants of "LSTM: A Search Space Odyssey": the LSTM with peepholes and one change."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations, clipped, identity
from lstm_jax.cells.base import (
    Initializer,
    LSTMFamilyCell,
    Parameter,
    affine,
    check_unset,
    dot,
    like,
    named,
    zeros,
)
from lstm_jax.cells.lstm import LSTMState
from lstm_jax.cells.peephole import peephole

VARIANTS = {
    "nig": "fgo",
    "nfg": "igo",
    "nog": "ifg",
    "niaf": "ifgo",
    "noaf": "ifgo",
    "np": "ifgo",
    "fgr": "ifgo",
}
"""The gates of each variant, in the order in which parameters concatenate them."""

OWN_ACTIVATIONS = {
    "niaf": STANDARD._replace(candidate=identity),
    "noaf": STANDARD._replace(output=identity),
}
"""The element-wise functions of the variants that differ in them."""


class FGRState(NamedTuple):
    """The state of an LSTM with full gate recurrence between steps.

    Attributes:
      h: hidden state, which is also the step's output; ``[..., H]``.
      c: cell state; ``[..., H]``, always in float32 (or float64).
      i: the step's input gate, with the shape and type of ``c``.
      f: the forget gate, likewise.
      o: the output gate, likewise.

    >>> import jax.numpy as jnp
    >>> FGRState(*[jnp.zeros(3)] * 5).f.shape
    (3,)
    """

    h: jax.Array
    c: jax.Array
    i: jax.Array
    f: jax.Array
    o: jax.Array


def odyssey_cell(
    params: dict[str, jax.Array],
    state: LSTMState | FGRState,
    x: jax.Array,
    a: Activations | None = None,
    *,
    variant: str,
) -> tuple[LSTMState | FGRState, jax.Array]:
    r"""One step of a variant of the LSTM with peepholes.

    With σ the logistic function and ∘ the element-wise product::

        i_t = σ(W_i x_t + U_i h_{t-1} + p_i ∘ c_{t-1} + b_i)
        f_t = σ(W_f x_t + U_f h_{t-1} + p_f ∘ c_{t-1} + b_f)
        g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
        c_t = f_t ∘ c_{t-1} + i_t ∘ g_t
        o_t = σ(W_o x_t + U_o h_{t-1} + p_o ∘ c_t + b_o)
        h_t = o_t ∘ tanh(c_t)

    with one change::

        nig   no input gate                   i_t = 1
        nfg   no forget gate                  f_t = 1
        nog   no output gate                  o_t = 1
        niaf  no input activation function    g_t = W_g x_t + U_g h_{t-1} + b_g
        noaf  no output activation function   h_t = o_t ∘ c_t
        np    no peepholes                    p_i = p_f = p_o = 0
        fgr   full gate recurrence            i_t, f_t, o_t also read i_{t-1}, f_{t-1}, o_{t-1},
                                              each through a separate matrix

    The paper's eighth variant, coupled gates, is :func:`coupled_cell`.

    Args:
      params: ``w_ih`` ``(D, nH)``, ``w_hh`` ``(H, nH)`` and ``b`` ``(nH,)`` for the n gates and
        candidates of the variant, in the order i, f, g, o; except for np, the peepholes ``p_i``,
        ``p_f``, ``p_o`` of those gates, each ``(H,)``; with fgr ``w_gates`` ``(3H, 3H)``, with the
        rows i, f, o of the previous step and the columns i, f, o of this step.
      state: ``h`` and ``c``, each ``[..., H]``; with fgr also ``i``, ``f``, ``o``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ, tanh, tanh and no clipping, with the
        identity where niaf and noaf require it.
      variant: a key of ``VARIANTS``.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Raises:
      ValueError: there is no such variant.
      TypeError: ``state`` has the type of another variant.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = OdysseyLSTMCell(hidden_size=3, variant="nog")
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = odyssey_cell(params, cell.zero_state(), jnp.ones(2), variant="nog")
      >>> bool((y == jnp.tanh(state.c)).all())
      True

    References:
      Klaus Greff, Rupesh K. Srivastava, Jan Koutník, Bas R. Steunebrink, Jürgen Schmidhuber,
      "LSTM: A Search Space Odyssey", IEEE Transactions on Neural Networks and Learning
      Systems 28(10), 2017, the vanilla LSTM and the list of eight variants.
    """
    check_variant(variant)
    if isinstance(state, FGRState) != (variant == "fgr"):
        kind = "an FGRState" if variant == "fgr" else "an LSTMState"
        raise TypeError(f"state must be {kind} for variant {variant!r}, got {type(state).__name__}")
    gates = VARIANTS[variant]
    a = OWN_ACTIVATIONS.get(variant, STANDARD) if a is None else a
    z = dict(zip(gates, jnp.split(affine(params, state.h, x), len(gates), -1), strict=True))
    if isinstance(state, FGRState):
        last = jnp.concatenate([state.i, state.f, state.o], -1)
        added = jnp.split(dot(like(last, state.h), params["w_gates"]), 3, -1)
        z |= {gate: z[gate] + r for gate, r in zip("ifo", added, strict=True)}

    def gate(name: str, c: jax.Array) -> jax.Array:  # 1 if the variant lacks it
        if name not in z:
            return jnp.ones_like(c)
        return named(name, a.gate(z[name] + peephole(params, name, c)))

    i, f = gate("i", state.c), gate("f", state.c)
    g = named("g", a.candidate(z["g"]))
    c = a.clip(f * state.c + i * g)
    o = gate("o", c)
    h = o * a.output(c)
    new = FGRState(h, c, i, f, o) if isinstance(state, FGRState) else LSTMState(h=h, c=c)
    state = like(new, state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class OdysseyLSTMCell(LSTMFamilyCell):
    """Sizes and options of the variants of the LSTM; their equations are :func:`odyssey_cell`.

    Parameters are ``w_ih`` ``(D, nH)``, ``w_hh`` ``(H, nH)`` and ``b`` ``(nH,)``, with the gates
    of the variant in the order i, f, g, o; except for np, their peepholes ``p_i``, ``p_f``,
    ``p_o``, each ``(H,)``; and with fgr ``w_gates`` ``(3H, 3H)``.  Options are those of
    :class:`LSTMFamilyCell` and the following.  In niaf, ``activation_fn`` applies only to the cell
    state.  Options without effect must have their defaults: ``forget_bias`` and ``chrono`` in
    nfg, ``output_fn`` in noaf, ``peephole_init`` in np.

    Attributes:
      variant: ``"nig"``, ``"nfg"``, ``"nog"``, ``"niaf"``, ``"noaf"``, ``"np"`` or ``"fgr"``.
      peephole_init: initialises each gate's peephole weights; by default zeros.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = OdysseyLSTMCell(hidden_size=4, variant="nig")
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 12), 'w_hh': (4, 12), 'b': (12,), 'p_f': (4,), 'p_o': (4,)}
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 2)))
      >>> y.shape
      (5, 4)
    """

    _: dataclasses.KW_ONLY
    variant: str
    peephole_init: Initializer | str = zeros

    def __post_init__(self):
        super().__post_init__()
        check_variant(self.variant)
        who = f"variant {self.variant!r}"
        if "f" not in VARIANTS[self.variant]:
            check_unset(self, f"{who} has no forget gate", forget_bias=0.0, chrono=None)
        if self.variant == "np":
            check_unset(self, f"{who} has no peepholes", peephole_init=zeros)
        if self.variant == "noaf" and self.output_fn not in (None, "identity", identity):
            raise ValueError(
                f"output_fn must be left at None, as variant 'noaf' has no output activation "
                f"function, got {self.output_fn!r}"
            )

    @property
    def activations(self) -> Activations:
        """The functions that the options and the variant select."""
        functions = super().activations
        if self.variant == "niaf":
            return functions._replace(candidate=clipped(identity, self.preactivation_clip))
        if self.variant == "noaf":
            return functions._replace(output=identity)
        return functions

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        """Names of the weights that multiply the previous state, for DropConnect."""
        return ("w_hh", "w_gates") if self.variant == "fgr" else ("w_hh",)

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H, gates = input_size, self.hidden_size, VARIANTS[self.variant]
        n = len(gates)
        parameters = {
            "w_ih": self.declare("kernel", (D, n * H), gates=n),
            "w_hh": self.declare("recurrent_kernel", (H, n * H), gates=n),
            "b": Parameter(self.gate_biases(gates), (n * H,), "bias"),
        }
        if self.variant != "np":
            for gate in gates.replace("g", ""):
                parameters[f"p_{gate}"] = self.declare("peephole", (H,))
        if self.variant == "fgr":
            parameters["w_gates"] = self.declare("recurrent_kernel", (3 * H, 3 * H), gates=3)
        return parameters

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> Any:
        """Zeros ``[*batch_shape, H]``; all fields except ``h`` are in float32 or wider."""
        zero = super().zero_state(batch_shape)
        if self.variant == "fgr":
            return FGRState(h=zero.h, c=zero.c, i=zero.c, f=zero.c, o=zero.c)
        return zero

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState | FGRState, x: jax.Array
    ) -> tuple[LSTMState | FGRState, jax.Array]:
        return odyssey_cell(params, state, x, self.activations, variant=self.variant)


def check_variant(variant: str) -> None:
    """Raises an error if there is no such variant."""
    if not isinstance(variant, str) or variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
