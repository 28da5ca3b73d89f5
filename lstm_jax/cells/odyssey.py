"""The variants of "LSTM: A Search Space Odyssey"."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activation, Activations, identity
from lstm_jax.cells.base import (
    Initializer,
    LSTMFamilyCell,
    Parameter,
    affine,
    blocks,
    dot,
    like,
    zeros,
)
from lstm_jax.cells.lstm import LSTMState

GATES = {  # blocks of weights in each variant, out of i, f, g, o
    "nig": "fgo",
    "nfg": "igo",
    "nog": "ifg",
    "niaf": "ifgo",
    "noaf": "ifgo",
    "np": "ifgo",
    "fgr": "ifgo",
}
"""The blocks of weights that each variant has."""


class FGRState(NamedTuple):
    """What an LSTM with full gate recurrence hands from one step to the next.

    Attributes:
      h: hidden state, which is also the step's output; ``[..., H]``.
      c: cell state; ``[..., H]``, float32 or wider, like the gates.
      i, f, o: the last step's gates; ``[..., H]``.

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
    a: Activations = STANDARD,
    *,
    variant: str,
) -> tuple[LSTMState | FGRState, jax.Array]:
    r"""One step of a variant of the LSTM with peepholes.

    The vanilla LSTM of the paper (z is this library's g, y its h)::

        g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
        i_t = σ(W_i x_t + U_i h_{t-1} + p_i ∘ c_{t-1} + b_i)
        f_t = σ(W_f x_t + U_f h_{t-1} + p_f ∘ c_{t-1} + b_f)
        c_t = g_t ∘ i_t + c_{t-1} ∘ f_t
        o_t = σ(W_o x_t + U_o h_{t-1} + p_o ∘ c_t + b_o)
        h_t = tanh(c_t) ∘ o_t

    and what each variant does to it::

        nig   i_t = 1                      niaf  g_t without tanh
        nfg   f_t = 1                      noaf  h_t = c_t ∘ o_t
        nog   o_t = 1                      np    p_i = p_f = p_o = 0
        fgr   each gate also reads the last step's gates: R_i i_{t-1} + R_f f_{t-1} + R_o o_{t-1}

    Args:
      params: ``w_ih`` ``(D, nH)``, ``w_hh`` ``(H, nH)``, ``b`` ``(nH,)`` of the n gates that
        the variant has, in the order i, f, g, o; ``p_i``, ``p_f``, ``p_o`` ``(H,)`` of those
        gates, but for np; for fgr ``w_gates`` ``(3H, 3H)``, rows of the last i, f, o, columns
        of the new ones.
      state: ``h`` and ``c``, each ``[..., H]``; for fgr an :class:`FGRState`.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; σ, tanh and tanh, and no clipping.
      variant: a key of :data:`GATES`.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = OdysseyLSTMCell(hidden_size=3, variant="nig")
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = odyssey_cell(params, cell.zero_state(), jnp.ones(2), variant="nig")
      >>> y.shape
      (3,)

    References:
      Klaus Greff, Rupesh K. Srivastava, Jan Koutník, Bas R. Steunebrink, Jürgen Schmidhuber,
      "LSTM: A Search Space Odyssey", IEEE Transactions on Neural Networks and Learning
      Systems 28(10), 2017, sections 2 (vanilla) and 3 (variants).
    """
    gates = GATES[variant]
    z = dict(zip(gates, jnp.split(affine(params, state.h, x), len(gates), -1), strict=True))
    if isinstance(state, FGRState):
        last = jnp.concatenate([state.i, state.f, state.o], -1)
        w = params["w_gates"]
        recurrent = jnp.split(dot(last.astype(state.h.dtype), w), 3, -1)
        z |= {gate: z[gate] + add for gate, add in zip("ifo", recurrent, strict=True)}

    def gate(name: str, c: jax.Array) -> jax.Array:
        """The gate, seeing ``c`` where it has a peephole; 1 where the variant has none."""
        if name not in gates:
            return jnp.ones_like(c)
        peephole = params[f"p_{name}"] * c if f"p_{name}" in params else 0.0
        return a.gate(z[name] + peephole)

    i, f = gate("i", state.c), gate("f", state.c)
    c = a.clip(a.candidate(z["g"]) * i + state.c * f)
    o = gate("o", c)
    h = a.output(c) * o
    new = FGRState(h, c, i, f, o) if isinstance(state, FGRState) else LSTMState(h=h, c=c)
    new = like(new, state)
    return new, new.h


@dataclasses.dataclass(frozen=True)
class OdysseyLSTMCell(LSTMFamilyCell):
    """Sizes and options of a variant in the Odyssey; its equations are :func:`odyssey_cell`.

    Parameters are ``w_ih`` ``(D, nH)``, ``w_hh`` ``(H, nH)`` and ``b`` ``(nH,)`` of the n gates
    that the variant has, in the order i, f, g, o; ``p_i``, ``p_f`` and ``p_o`` ``(H,)`` of
    those gates, but for np; for fgr also ``w_gates`` ``(3H, 3H)``.  Options are those of
    :class:`LSTMFamilyCell` and these, but ``activation_fn`` of niaf is the identity by default
    (and ``output_fn`` tanh); noaf refuses an ``output_fn`` and nfg a ``forget_bias``.

    Attributes:
      variant: ``"nig"``, ``"nfg"``, ``"nog"`` (no input, forget, output gate), ``"niaf"``,
        ``"noaf"`` (no input, output activation function), ``"np"`` (no peepholes) or
        ``"fgr"`` (full gate recurrence).  The eighth, CIFG, is :class:`CoupledLSTMCell`.
      peephole_init: draws each peephole; zeros.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax
      >>> cell = OdysseyLSTMCell(hidden_size=4, variant="nog")
      >>> {name: array.shape for name, array in cell.init(jax.random.key(0), 2).items()}
      {'w_ih': (2, 12), 'w_hh': (4, 12), 'b': (12,), 'p_i': (4,), 'p_f': (4,)}
    """

    activation_fn: Activation | None = None  # type: ignore[assignment]
    _: dataclasses.KW_ONLY
    variant: str
    peephole_init: Initializer = zeros

    def __post_init__(self):
        if self.variant not in GATES:
            raise ValueError(f"variant must be one of {', '.join(GATES)}, got {self.variant!r}")
        if self.activation_fn is None:
            linear = self.variant == "niaf"
            object.__setattr__(self, "activation_fn", "identity" if linear else "tanh")
            if linear and self.output_fn is None:
                object.__setattr__(self, "output_fn", "tanh")
        super().__post_init__()
        if self.variant == "noaf" and self.output_fn is not None:
            raise ValueError(f"output_fn: variant noaf has none, got {self.output_fn!r}")
        if self.variant == "nfg" and (self.forget_bias != 1.0 or self.chrono):
            raise ValueError(
                f"forget_bias and chrono: variant nfg has no forget gate, got "
                f"{self.forget_bias} and {self.chrono}"
            )

    @property
    def activations(self) -> Activations:
        """The functions that the options ask for; of noaf, none for the output."""
        functions = super().activations
        return functions._replace(output=identity) if self.variant == "noaf" else functions

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H, gates = input_size, self.hidden_size, GATES[self.variant]
        n = len(gates)
        parameters = {
            "w_ih": Parameter(blocks(self.kernel_init, n), (D, n * H)),
            "w_hh": Parameter(blocks(self.recurrent_kernel_init, n), (H, n * H)),
            "b": Parameter(self.gate_biases(gates), (n * H,)),
        }
        if self.variant != "np":
            peephole = Parameter(self.peephole_init, (H,))
            parameters |= {f"p_{gate}": peephole for gate in gates if gate != "g"}
        if self.variant == "fgr":
            parameters["w_gates"] = Parameter(self.kernel_init, (3 * H, 3 * H))
        return parameters

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        """``w_hh``, and ``w_gates`` of fgr."""
        return ("w_hh", "w_gates") if self.variant == "fgr" else ("w_hh",)

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState | FGRState:
        """Zeros, each ``[*batch_shape, H]``; all but ``h`` in float32 or wider."""
        shape = (*batch_shape, self.hidden_size)
        h, c = self.zeros(*shape), self.zeros(*shape, accumulated=True)
        return FGRState(h, c, c, c, c) if self.variant == "fgr" else LSTMState(h=h, c=c)

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState | FGRState, x: jax.Array
    ) -> tuple[LSTMState | FGRState, jax.Array]:
        return odyssey_cell(params, state, x, self.activations, variant=self.variant)
