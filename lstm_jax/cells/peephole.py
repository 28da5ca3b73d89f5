"""The LSTM with peepholes: its gates read the cell state."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import (
    Initializer,
    LSTMFamilyCell,
    Parameter,
    affine,
    like,
    named,
    zeros,
)
from lstm_jax.cells.lstm import LSTMState


def peephole(params: dict[str, jax.Array], gate: str, c: jax.Array) -> jax.Array | float:
    """The contribution of the cell state to a gate, ``p ∘ c``; 0 if the gate has no peephole.

    >>> import jax.numpy as jnp
    >>> peephole({"p_i": jnp.array([2.0, 3.0])}, "i", jnp.array([1.0, 10.0])).tolist()
    [2.0, 30.0]
    """
    p = params.get(f"p_{gate}")
    return 0.0 if p is None else p.astype(c.dtype) * c


def gated(
    params: dict[str, jax.Array], state: LSTMState, z: jax.Array, a: Activations
) -> tuple[LSTMState, jax.Array]:
    """Computes ``(state, y)`` from the concatenated pre-activations of i, f, g and o."""
    i, f, g, o = jnp.split(z, 4, -1)
    i = named("i", a.gate(i + peephole(params, "i", state.c)))
    f = named("f", a.gate(f + peephole(params, "f", state.c)))
    g = named("g", a.candidate(g))
    c = a.clip(f * state.c + i * g)
    o = named("o", a.gate(o + peephole(params, "o", c)))
    h = o * a.output(c)
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


def peephole_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the LSTM with peepholes.

    With σ the logistic function and ∘ the element-wise product::

        i_t = σ(W_i x_t + U_i h_{t-1} + p_i ∘ c_{t-1} + b_i)
        f_t = σ(W_f x_t + U_f h_{t-1} + p_f ∘ c_{t-1} + b_f)
        g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
        c_t = f_t ∘ c_{t-1} + i_t ∘ g_t
        o_t = σ(W_o x_t + U_o h_{t-1} + p_o ∘ c_t + b_o)
        h_t = o_t ∘ tanh(c_t)

    The output gate reads the new cell state, after clipping if there is any.

    Args:
      params: ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)``, ``b`` ``(4H,)``, gates in the order
        i, f, g, o; ``p_i``, ``p_f``, ``p_o``, each ``(H,)``.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ, tanh, tanh and no clipping.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = PeepholeLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = peephole_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Felix A. Gers, Nicol N. Schraudolph, Jürgen Schmidhuber, "Learning Precise Timing with
      LSTM Recurrent Networks", Journal of Machine Learning Research 3, 2002 (peepholes;
      there, the cell state has no output activation, as with ``output_fn="identity"``).
      Klaus Greff et al., "LSTM: A Search Space Odyssey", IEEE Transactions on Neural
      Networks and Learning Systems 28(10), 2017 (these equations).
    """
    return gated(params, state, affine(params, state.h, x), a)


@dataclasses.dataclass(frozen=True)
class PeepholeLSTMCell(LSTMFamilyCell):
    """Sizes and options of an LSTM with peepholes; its equations are :func:`peephole_cell`.

    Parameters are ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)`` and ``b`` ``(4H,)`` with gates in
    the order i, f, g, o, and ``p_i``, ``p_f``, ``p_o``, each ``(H,)``.  Options are those of
    :class:`LSTMFamilyCell` and the following.

    Attributes:
      peephole_init: initialises each gate's peephole weights; by default zeros, with which a new
        cell computes the same as a standard LSTM.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = PeepholeLSTMCell(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> list(params)
      ['w_ih', 'w_hh', 'b', 'p_i', 'p_f', 'p_o']
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 2)))
      >>> y.shape
      (5, 4)
    """

    _: dataclasses.KW_ONLY
    peephole_init: Initializer | str = zeros

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": self.declare("kernel", (D, 4 * H), gates=4),
            "w_hh": self.declare("recurrent_kernel", (H, 4 * H), gates=4),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,), "bias"),
            "p_i": self.declare("peephole", (H,)),
            "p_f": self.declare("peephole", (H,)),
            "p_o": self.declare("peephole", (H,)),
        }

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return peephole_cell(params, state, x, self.activations)
