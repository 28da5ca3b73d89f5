"""The LSTM with coupled gates: the input gate is one minus the forget gate."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import (
    Initializer,
    LSTMFamilyCell,
    Parameter,
    affine,
    check_bool,
    check_unset,
    like,
    named,
    zeros,
)
from lstm_jax.cells.lstm import LSTMState
from lstm_jax.cells.peephole import peephole


def coupled_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the LSTM whose input gate is one minus its forget gate (CIFG).

    With σ the logistic function and ∘ the element-wise product::

        f_t = σ(W_f x_t + U_f h_{t-1} + p_f ∘ c_{t-1} + b_f)
        g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
        c_t = f_t ∘ c_{t-1} + (1 - f_t) ∘ g_t
        o_t = σ(W_o x_t + U_o h_{t-1} + p_o ∘ c_t + b_o)
        h_t = o_t ∘ tanh(c_t)

    Args:
      params: ``w_ih`` ``(D, 3H)``, ``w_hh`` ``(H, 3H)``, ``b`` ``(3H,)``, gates in the order
        f, g, o; with peepholes also ``p_f`` and ``p_o``, each ``(H,)``.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ, tanh, tanh and no clipping.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = CoupledLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = coupled_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Klaus Greff, Rupesh K. Srivastava, Jan Koutník, Bas R. Steunebrink, Jürgen Schmidhuber,
      "LSTM: A Search Space Odyssey", IEEE Transactions on Neural Networks and Learning
      Systems 28(10), 2017, variant CIFG (which computes the input gate and f = 1 - i; this is
      equivalent, with the sign of the gate's pre-activation reversed).
    """
    f, g, o = jnp.split(affine(params, state.h, x), 3, -1)
    f = named("f", a.gate(f + peephole(params, "f", state.c)))
    i = named("i", 1.0 - f)
    g = named("g", a.candidate(g))
    c = a.clip(f * state.c + i * g)
    o = named("o", a.gate(o + peephole(params, "o", c)))
    h = o * a.output(c)
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class CoupledLSTMCell(LSTMFamilyCell):
    """Sizes and options of an LSTM with coupled gates; its equations are :func:`coupled_cell`.

    Parameters are ``w_ih`` ``(D, 3H)``, ``w_hh`` ``(H, 3H)`` and ``b`` ``(3H,)`` with gates in
    the order f, g, o, and with peepholes ``p_f`` and ``p_o``, each ``(H,)``.  Options are those
    of :class:`LSTMFamilyCell` and the following.

    Attributes:
      peepholes: whether the gates read the cell state, as in the paper.
      peephole_init: initialises each gate's peephole weights, if there are any; by default zeros.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = CoupledLSTMCell(hidden_size=4, peepholes=True)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 12), 'w_hh': (4, 12), 'b': (12,), 'p_f': (4,), 'p_o': (4,)}
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 2)))
      >>> y.shape
      (5, 4)
    """

    _: dataclasses.KW_ONLY
    peepholes: bool = False
    peephole_init: Initializer | str = zeros

    def __post_init__(self):
        super().__post_init__()
        check_bool("peepholes", self.peepholes)
        if not self.peepholes:
            check_unset(self, "there are no peepholes", peephole_init=zeros)

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        parameters = {
            "w_ih": self.declare("kernel", (D, 3 * H), gates=3),
            "w_hh": self.declare("recurrent_kernel", (H, 3 * H), gates=3),
            "b": Parameter(self.gate_biases("fgo"), (3 * H,), "bias"),
        }
        if self.peepholes:
            parameters["p_f"] = self.declare("peephole", (H,))
            parameters["p_o"] = self.declare("peephole", (H,))
        return parameters

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return coupled_cell(params, state, x, self.activations)
