"""The gated recurrent unit, with its reset gate before or after the product."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import GatedCell, Parameter, blocks, dot, like
from lstm_jax.cells.biases import gate_biases
from lstm_jax.cells.rnn import RNNState


def gru_cell(
    params: dict[str, jax.Array],
    state: RNNState,
    x: jax.Array,
    a: Activations = STANDARD,
) -> tuple[RNNState, jax.Array]:
    r"""One step of the gated recurrent unit.

    With σ the logistic function and ∘ the element-wise product::

        r_t = σ(W_r x_t + U_r h_{t-1} + b_r)
        z_t = σ(W_z x_t + U_z h_{t-1} + b_z)
        g_t = tanh(W_g x_t + U_g (r_t ∘ h_{t-1}) + b_g)
        h_t = z_t ∘ h_{t-1} + (1 - z_t) ∘ g_t

    Args:
      params: ``w_ih`` ``(D, 3H)``, ``w_hh`` ``(H, 3H)``, ``b`` ``(3H,)``, in the order r, z, g.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; σ for r and z, tanh for g.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = GRUCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = gru_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Kyunghyun Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
      Statistical Machine Translation", EMNLP 2014, equations 5-8 (there without biases, and
      g is called h̃).
    """
    h = state.h
    H = h.shape[-1]
    z = dot(x, params["w_ih"])
    x_rz, x_g = jnp.split(z + params["b"].astype(z.dtype), [2 * H], -1)
    u_rz, u_g = jnp.split(params["w_hh"], [2 * H], -1)
    r, z = jnp.split(a.gate(x_rz + dot(h, u_rz)), 2, -1)
    g = a.candidate(x_g + dot((r * h.astype(r.dtype)).astype(h.dtype), u_g))
    h = z * h.astype(z.dtype) + (1.0 - z) * g
    state = like(RNNState(h=h), state)
    return state, state.h


def gru_reset_after_cell(
    params: dict[str, jax.Array],
    state: RNNState,
    x: jax.Array,
    a: Activations = STANDARD,
) -> tuple[RNNState, jax.Array]:
    r"""One step of the gated recurrent unit that resets after the product.

    As :func:`gru_cell` but for::

        g_t = tanh(W_g x_t + b_g + r_t ∘ (U_g h_{t-1} + b_hg))

    so that all products with h are one; cuDNN and PyTorch have this one.

    Args:
      params: as for :func:`gru_cell`, and ``b_hg`` ``(H,)``.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; σ for r and z, tanh for g.

    Returns:
      ``(state, y)`` as for :func:`gru_cell`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = GRUCell(hidden_size=3, reset_after=True)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = gru_reset_after_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Kyunghyun Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
      Statistical Machine Translation", arXiv 1406.1078, 2014, in its first version.
    """
    z_x = dot(x, params["w_ih"])
    z_h = dot(state.h, params["w_hh"])
    x_r, x_z, x_g = jnp.split(z_x + params["b"].astype(z_x.dtype), 3, -1)
    h_r, h_z, h_g = jnp.split(z_h, 3, -1)
    r, z = a.gate(x_r + h_r), a.gate(x_z + h_z)
    g = a.candidate(x_g + r * (h_g + params["b_hg"].astype(h_g.dtype)))
    h = z * state.h.astype(z.dtype) + (1.0 - z) * g
    state = like(RNNState(h=h), state)
    return state, state.h


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRUCell(GatedCell):
    """Sizes and options of a gated recurrent unit; its equations are :func:`gru_cell`.

    Parameters are ``w_ih`` ``(D, 3H)``, ``w_hh`` ``(H, 3H)`` and ``b`` ``(3H,)`` in the order r,
    z, g; options are those of :class:`GatedCell` (z keeps, which is what ``chrono`` goes by)
    and this one.

    Attributes:
      reset_after: whether the reset gate stands after the product, by
        :func:`gru_reset_after_cell`, and there is a bias ``b_hg`` ``(H,)`` more.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax
      >>> cell = GRUCell(hidden_size=4, reset_after=True)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 12), 'w_hh': (4, 12), 'b': (12,), 'b_hg': (4,)}
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 2)))
      >>> y.shape
      (5, 4)
    """

    reset_after: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.reset_after, bool):
            raise TypeError(f"reset_after must be True or False, got {self.reset_after!r}")

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        biases = gate_biases(self.bias_init, "rzg", keep="z", chrono=self.chrono)
        parameters = {
            "w_ih": Parameter(blocks(self.kernel_init, 3), (D, 3 * H)),
            "w_hh": Parameter(blocks(self.recurrent_kernel_init, 3), (H, 3 * H)),
            "b": Parameter(biases, (3 * H,)),
        }
        if self.reset_after:
            parameters["b_hg"] = Parameter(self.bias_init, (H,))
        return parameters

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> RNNState:
        """``h`` of zeros, ``[*batch_shape, H]``."""
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        step = gru_reset_after_cell if self.reset_after else gru_cell
        return step(params, state, x, self.activations)
