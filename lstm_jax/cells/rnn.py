"""The simple recurrent network: one layer that reads its own previous output."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import Activation, Function, activation, check_limit, clipped
from lstm_jax.cells.base import BaseCell, Parameter, affine, like


class RNNState(NamedTuple):
    """The state of a cell without a cell state between steps.

    Attributes:
      h: hidden state, which is also the step's output; ``[..., H]``.

    >>> import jax.numpy as jnp
    >>> RNNState(h=jnp.zeros(3)).h.shape
    (3,)
    """

    h: jax.Array


def rnn_cell(
    params: dict[str, jax.Array], state: RNNState, x: jax.Array, activation: Function = jnp.tanh
) -> tuple[RNNState, jax.Array]:
    r"""One step of the simple recurrent network::

        h_t = tanh(W x_t + U h_{t-1} + b)

    Args:
      params: ``w_ih`` ``(D, H)``, ``w_hh`` ``(H, H)``, ``b`` ``(H,)``.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      activation: the element-wise function; by default tanh.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = RNNCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = rnn_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Jeffrey L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990, figure 2
      (hidden units read the input and, through context units, their own previous values).
    """
    h = activation(affine(params, state.h, x))
    state = like(RNNState(h=h), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class RNNCell(BaseCell):
    """Sizes and options of a simple recurrent network; its equations are :func:`rnn_cell`.

    Parameters are ``w_ih`` ``(D, H)``, ``w_hh`` ``(H, H)`` and ``b`` ``(H,)``.  Options are
    those of :class:`BaseCell` and the following.

    Attributes:
      activation_fn: the activation, a name or a function; by default ``"tanh"``.
      preactivation_clip: limit to which pre-activations are clipped, on both sides of 0 (ONNX
        ``clip``); None for no clipping.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = RNNCell(hidden_size=4, activation_fn="relu")
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 2)))
      >>> y.shape
      (5, 4)
    """

    _: dataclasses.KW_ONLY
    activation_fn: Activation = "tanh"
    preactivation_clip: float | None = None

    def __post_init__(self):
        super().__post_init__()
        activation("activation_fn", self.activation_fn)
        check_limit("preactivation_clip", self.preactivation_clip)

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": self.declare("kernel", (D, H)),
            "w_hh": self.declare("recurrent_kernel", (H, H)),
            "b": self.declare("bias", (H,)),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> RNNState:
        """``h`` of zeros, ``[*batch_shape, H]``."""
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        function = activation("activation_fn", self.activation_fn)
        return rnn_cell(params, state, x, clipped(function, self.preactivation_clip))
