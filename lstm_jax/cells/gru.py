"""The gated recurrent unit."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import GatedCell, Parameter, check_bool, dot, like, named
from lstm_jax.cells.rnn import RNNState


def gru_cell(
    params: dict[str, jax.Array], state: RNNState, x: jax.Array, a: Activations = STANDARD
) -> tuple[RNNState, jax.Array]:
    r"""One step of the gated recurrent unit, with the reset gate before the product.

    ::

        r_t = σ(W_r x_t + U_r h_{t-1} + b_r)
        z_t = σ(W_z x_t + U_z h_{t-1} + b_z)
        g_t = tanh(W_g x_t + U_g (r_t ∘ h_{t-1}) + b_g)
        h_t = z_t ∘ h_{t-1} + (1 - z_t) ∘ g_t

    Args:
      params: ``w_ih`` ``(D, 3H)``, ``w_hh`` ``(H, 3H)``, ``b`` ``(3H,)``, gates in the order
        r, z, g.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ and tanh.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = GRUCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = gru_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (3,)

    References:
      Kyunghyun Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
      Statistical Machine Translation", EMNLP 2014, section 2.3 (biases added).
    """
    h, size = state.h, state.h.shape[-1]
    z_x = dot(x, params["w_ih"])
    z_x = z_x + params["b"].astype(z_x.dtype)
    z_h = dot(h, params["w_hh"][:, : 2 * size])
    r, z = jnp.split(a.gate(z_x[..., : 2 * size] + z_h), 2, -1)
    r, z = named("r", r), named("z", z)
    wide = like(h, r)
    reset = like(r * wide, h)
    g = named("g", a.candidate(z_x[..., 2 * size :] + dot(reset, params["w_hh"][:, 2 * size :])))
    state = like(RNNState(h=z * wide + (1.0 - z) * g), state)
    return state, state.h


def gru_reset_after_cell(
    params: dict[str, jax.Array], state: RNNState, x: jax.Array, a: Activations = STANDARD
) -> tuple[RNNState, jax.Array]:
    r"""One step of the gated recurrent unit, with the reset gate after the product.

    As :func:`gru_cell`, except for::

        g_t = tanh(W_g x_t + b_g + r_t ∘ (U_g h_{t-1} + b_hg))

    with one more parameter, ``b_hg`` ``(H,)``.  All three share one product with h_{t-1}.
    cuDNN, PyTorch and Keras (``reset_after``) compute this variant.

    Args:
      params: those of :func:`gru_cell`, and ``b_hg`` ``(H,)``.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ and tanh.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = GRUCell(hidden_size=3, reset_after=True)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = gru_reset_after_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (3,)

    References:
      Kyunghyun Cho et al., as :func:`gru_cell`, in arXiv:1406.1078 version 1; also described
      in ONNX's operator GRU (``linear_before_reset``).
    """
    z_x = dot(x, params["w_ih"])
    z_x = z_x + params["b"].astype(z_x.dtype)
    r_x, z_x, g_x = jnp.split(z_x, 3, -1)
    r_h, z_h, g_h = jnp.split(dot(state.h, params["w_hh"]), 3, -1)
    r, z = named("r", a.gate(r_x + r_h)), named("z", a.gate(z_x + z_h))
    g = named("g", a.candidate(g_x + r * (g_h + params["b_hg"].astype(g_h.dtype))))
    state = like(RNNState(h=z * like(state.h, z) + (1.0 - z) * g), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class GRUCell(GatedCell):
    """Sizes and options of a gated recurrent unit; its equations are :func:`gru_cell`.

    Parameters are ``w_ih`` ``(D, 3H)``, ``w_hh`` ``(H, 3H)`` and ``b`` ``(3H,)`` with gates in
    the order r, z, g, and with ``reset_after`` also ``b_hg`` ``(H,)``.  Options are those of
    :class:`GatedCell` (``chrono`` applies to z, which keeps the state) and the following.

    Attributes:
      reset_after: whether the reset gate is applied after the product with the previous state
        (:func:`gru_reset_after_cell`) instead of before it.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> params = GRUCell(hidden_size=4).init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 12), 'w_hh': (4, 12), 'b': (12,)}
    """

    _: dataclasses.KW_ONLY
    reset_after: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_bool("reset_after", self.reset_after)

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        parameters = {
            "w_ih": self.declare("kernel", (D, 3 * H), gates=3),
            "w_hh": self.declare("recurrent_kernel", (H, 3 * H), gates=3),
            "b": Parameter(self.biases("rzg", keeps="z"), (3 * H,), "bias"),
        }
        if self.reset_after:
            parameters["b_hg"] = self.declare("bias", (H,))
        return parameters

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> RNNState:
        """``h`` of zeros, ``[*batch_shape, H]``."""
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        equations = gru_reset_after_cell if self.reset_after else gru_cell
        return equations(params, state, x, self.activations)
