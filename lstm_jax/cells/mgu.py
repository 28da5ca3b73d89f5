"""The minimal gated unit: a single gate instead of the two of the GRU."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import GatedCell, Parameter, dot, like, named
from lstm_jax.cells.rnn import RNNState


def mgu_cell(
    params: dict[str, jax.Array], state: RNNState, x: jax.Array, a: Activations = STANDARD
) -> tuple[RNNState, jax.Array]:
    r"""One step of the minimal gated unit.

    ::

        f_t = σ(W_f x_t + U_f h_{t-1} + b_f)
        g_t = tanh(W_g x_t + U_g (f_t ∘ h_{t-1}) + b_g)
        h_t = (1 - f_t) ∘ h_{t-1} + f_t ∘ g_t

    The paper calls f the forget gate, although f = 1 replaces the state.

    Args:
      params: ``w_ih`` ``(D, 2H)``, ``w_hh`` ``(H, 2H)``, ``b`` ``(2H,)``, in the order f, g.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ and tanh.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = MGUCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = mgu_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (3,)

    References:
      Guo-Bing Zhou, Jianxin Wu, Chen-Lin Zhang, Zhi-Hua Zhou, "Minimal Gated Unit for
      Recurrent Neural Networks", International Journal of Automation and Computing 13(3),
      2016.
    """
    h, size = state.h, state.h.shape[-1]
    z = dot(x, params["w_ih"])
    f_x, g_x = jnp.split(z + params["b"].astype(z.dtype), 2, -1)
    f = named("f", a.gate(f_x + dot(h, params["w_hh"][:, :size])))
    wide = like(h, f)
    g = named("g", a.candidate(g_x + dot(like(f * wide, h), params["w_hh"][:, size:])))
    state = like(RNNState(h=(1.0 - f) * wide + f * g), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class MGUCell(GatedCell):
    """Sizes and options of a minimal gated unit; its equations are :func:`mgu_cell`.

    Parameters are ``w_ih`` ``(D, 2H)``, ``w_hh`` ``(H, 2H)`` and ``b`` ``(2H,)`` in the order
    f, g.  Options are those of :class:`GatedCell` (``chrono`` applies to f, which writes).

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> params = MGUCell(hidden_size=4).init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 8), 'w_hh': (4, 8), 'b': (8,)}
    """

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": self.declare("kernel", (D, 2 * H), gates=2),
            "w_hh": self.declare("recurrent_kernel", (H, 2 * H), gates=2),
            "b": Parameter(self.biases("fg", writes="f"), (2 * H,), "bias"),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> RNNState:
        """``h`` of zeros, ``[*batch_shape, H]``."""
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        return mgu_cell(params, state, x, self.activations)
