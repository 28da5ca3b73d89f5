"""The minimal gated unit: a GRU with one gate for both of its two."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import GatedCell, Parameter, blocks, dot, like
from lstm_jax.cells.biases import gate_biases
from lstm_jax.cells.rnn import RNNState


def mgu_cell(
    params: dict[str, jax.Array],
    state: RNNState,
    x: jax.Array,
    a: Activations = STANDARD,
) -> tuple[RNNState, jax.Array]:
    r"""One step of the minimal gated unit.

    With σ the logistic function and ∘ the element-wise product::

        f_t = σ(W_f x_t + U_f h_{t-1} + b_f)
        g_t = tanh(W_g x_t + U_g (f_t ∘ h_{t-1}) + b_g)
        h_t = (1 - f_t) ∘ h_{t-1} + f_t ∘ g_t

    Args:
      params: ``w_ih`` ``(D, 2H)``, ``w_hh`` ``(H, 2H)``, ``b`` ``(2H,)``, in the order f, g.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; σ for f and tanh for g.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = MGUCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = mgu_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Guo-Bing Zhou, Jianxin Wu, Chen-Lin Zhang, Zhi-Hua Zhou, "Minimal Gated Unit for
      Recurrent Neural Networks", International Journal of Automation and Computing 13(3),
      2016, where g is called h̃ and the unit is set beside LSTM and GRU.
    """
    h = state.h
    z = dot(x, params["w_ih"])
    x_f, x_g = jnp.split(z + params["b"].astype(z.dtype), 2, -1)
    u_f, u_g = jnp.split(params["w_hh"], 2, -1)
    f = a.gate(x_f + dot(h, u_f))
    g = a.candidate(x_g + dot((f * h.astype(f.dtype)).astype(h.dtype), u_g))
    h = (1.0 - f) * h.astype(f.dtype) + f * g
    state = like(RNNState(h=h), state)
    return state, state.h


@dataclasses.dataclass(frozen=True, kw_only=True)
class MGUCell(GatedCell):
    """Sizes and options of a minimal gated unit; its equations are :func:`mgu_cell`.

    Parameters are ``w_ih`` ``(D, 2H)``, ``w_hh`` ``(H, 2H)`` and ``b`` ``(2H,)`` in the order f,
    g; options are those of :class:`GatedCell`.  f is called the forget gate but writes, so
    that ``chrono`` gives it the negative bias.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax
      >>> cell = MGUCell(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 8), 'w_hh': (4, 8), 'b': (8,)}
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 2)))
      >>> y.shape
      (5, 4)
    """

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": Parameter(blocks(self.kernel_init, 2), (D, 2 * H)),
            "w_hh": Parameter(blocks(self.recurrent_kernel_init, 2), (H, 2 * H)),
            "b": Parameter(
                gate_biases(self.bias_init, "fg", write="f", chrono=self.chrono), (2 * H,)
            ),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> RNNState:
        """``h`` of zeros, ``[*batch_shape, H]``."""
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        return mgu_cell(params, state, x, self.activations)
