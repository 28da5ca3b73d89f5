"""The independently recurrent network: each unit reads only its own previous value."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import (
    Activation,
    Function,
    activation,
    check_limit,
    clipped,
    identity,
)
from lstm_jax.cells.base import BaseCell, Initializer, Parameter, dot, like
from lstm_jax.cells.rnn import RNNState


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Samples uniformly from [0, 1)."""
    return jax.random.uniform(key, shape, dtype)


def ind_rnn_cell(
    params: dict[str, jax.Array],
    state: RNNState,
    x: jax.Array,
    activation: Function = jax.nn.relu,
) -> tuple[RNNState, jax.Array]:
    r"""One step of the independently recurrent network.

    ::

        h_t = relu(W x_t + u ∘ h_{t-1} + b)

    Args:
      params: ``w_ih`` ``(D, H)``, ``u_hh`` ``(H,)``, ``b`` ``(H,)``.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      activation: the element-wise function; by default relu.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = IndRNNCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = ind_rnn_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (3,)

    References:
      Shuai Li, Wanqing Li, Chris Cook, Ce Zhu, Yanbo Gao, "Independently Recurrent Neural
      Network (IndRNN): Building A Longer and Deeper RNN", CVPR 2018.
    """
    z = dot(x, params["w_ih"])
    u, b = like((params["u_hh"], params["b"]), (z, z))
    h = activation(z + u * like(state.h, z) + b)
    state = like(RNNState(h=h), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class IndRNNCell(BaseCell):
    """Sizes and options of an IndRNN; its equations are :func:`ind_rnn_cell`.

    Parameters are ``w_ih`` ``(D, H)``, ``u_hh`` ``(H,)`` and ``b`` ``(H,)``.  Options are those
    of :class:`BaseCell` (``recurrent_kernel_init`` initialises ``u_hh``, by default uniformly in
    [0, 1), as in the paper for relu) and the following.  With ``activation_fn="identity"`` the
    recurrence is linear, and ``unroll`` can compute all steps in parallel.

    Attributes:
      activation_fn: the activation, a name or a function; by default ``"relu"``.
      preactivation_clip: limit to which pre-activations are clipped, on both sides of 0; None for
        no clipping.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> params = IndRNNCell(hidden_size=4).init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 4), 'u_hh': (4,), 'b': (4,)}
    """

    _: dataclasses.KW_ONLY
    recurrent_kernel_init: Initializer | str = uniform
    activation_fn: Activation = "relu"
    preactivation_clip: float | None = None

    def __post_init__(self):
        super().__post_init__()
        activation("activation_fn", self.activation_fn)
        check_limit("preactivation_clip", self.preactivation_clip)

    @property
    def _activation(self) -> Function:
        function = activation("activation_fn", self.activation_fn)
        return clipped(function, self.preactivation_clip)

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        """``u_hh``."""
        return ("u_hh",)

    @property
    def is_linear(self) -> bool:
        """Whether the activation is the identity."""
        return self._activation is identity

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": self.declare("kernel", (D, H)),
            "u_hh": self.declare("recurrent_kernel", (H,)),
            "b": self.declare("bias", (H,)),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> RNNState:
        """``h`` of zeros, ``[*batch_shape, H]``."""
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def linear_recurrence(
        self, params: dict[str, jax.Array], xs: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """a and b of h_t = a_t ∘ h_{t-1} + b_t, each ``[..., H]``, if the cell is linear."""
        params, xs = self.prepared(params, xs)
        b = dot(xs, params["w_ih"])
        b = b + params["b"].astype(b.dtype)
        return jnp.broadcast_to(params["u_hh"].astype(b.dtype), b.shape), b

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        return ind_rnn_cell(params, state, x, self._activation)
