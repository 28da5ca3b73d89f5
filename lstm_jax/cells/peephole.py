"""The LSTM whose gates see the cell state."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import Initializer, LSTMFamilyCell, Parameter, affine, blocks, like, zeros
from lstm_jax.cells.lstm import LSTMState


def peephole_cell(
    params: dict[str, jax.Array], state: LSTMState, x: jax.Array, a: Activations = STANDARD
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the LSTM with peephole connections.

    ::

        i_t = σ(W_i x_t + U_i h_{t-1} + p_i ∘ c_{t-1} + b_i)
        f_t = σ(W_f x_t + U_f h_{t-1} + p_f ∘ c_{t-1} + b_f)
        g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
        c_t = f_t ∘ c_{t-1} + i_t ∘ g_t
        o_t = σ(W_o x_t + U_o h_{t-1} + p_o ∘ c_t + b_o)
        h_t = o_t ∘ tanh(c_t)

    Args:
      params: ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)``, ``b`` ``(4H,)``, gates in the order
        i, f, g, o; ``p_i``, ``p_f``, ``p_o`` ``(H,)``.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; σ, tanh and tanh, and no clipping.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = PeepholeLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = peephole_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (3,)

    References:
      Felix A. Gers, Nicol N. Schraudolph, Jürgen Schmidhuber, "Learning Precise Timing with
      LSTM Recurrent Networks", JMLR 3, 2002, section 3 (here each peephole reads its own
      cell alone, and tanh squashes, as in Greff et al. 2017, section 2).
    """
    i, f, g, o = jnp.split(affine(params, state.h, x), 4, -1)
    i = a.gate(i + params["p_i"] * state.c)
    f = a.gate(f + params["p_f"] * state.c)
    c = a.clip(f * state.c + i * a.candidate(g))
    o = a.gate(o + params["p_o"] * c)
    h = o * a.output(c)
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class PeepholeLSTMCell(LSTMFamilyCell):
    """Sizes and options of an LSTM with peepholes; its equations are :func:`peephole_cell`.

    Parameters are those of :class:`LSTMCell` and ``p_i``, ``p_f``, ``p_o`` ``(H,)``; options
    are those of :class:`LSTMFamilyCell` and this.

    Attributes:
      peephole_init: draws each peephole; zeros, so that a new cell is a standard LSTM.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax
      >>> params = PeepholeLSTMCell(hidden_size=4).init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 16), 'w_hh': (4, 16), 'b': (16,), 'p_i': (4,), 'p_f': (4,), 'p_o': (4,)}
    """

    peephole_init: Initializer = zeros

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        peepholes = {name: Parameter(self.peephole_init, (H,)) for name in ("p_i", "p_f", "p_o")}
        return {
            "w_ih": Parameter(blocks(self.kernel_init, 4), (D, 4 * H)),
            "w_hh": Parameter(blocks(self.recurrent_kernel_init, 4), (H, 4 * H)),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,)),
            **peepholes,
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        """``h`` and ``c`` of zeros, each ``[*batch_shape, H]``; ``c`` in float32 or wider."""
        shape = (*batch_shape, self.hidden_size)
        return LSTMState(h=self.zeros(*shape), c=self.zeros(*shape, accumulated=True))

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return peephole_cell(params, state, x, self.activations)
