"""The independently recurrent network: each unit reads its own past alone."""

import dataclasses

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
from lstm_jax.cells.base import BaseCell, Initializer, Parameter, cast, dot, like
from lstm_jax.cells.rnn import RNNState

unit_uniform = jax.nn.initializers.uniform(1.0)  # once, as cells compare by their functions


def ind_rnn_cell(
    params: dict[str, jax.Array],
    state: RNNState,
    x: jax.Array,
    activation: Function = jax.nn.relu,
) -> tuple[RNNState, jax.Array]:
    r"""One step of the independently recurrent network.

    With ∘ the element-wise product::

        h_t = relu(W x_t + u ∘ h_{t-1} + b)

    Args:
      params: ``w_ih`` ``(D, H)``, ``u_hh`` ``(H,)``, ``b`` ``(H,)``.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      activation: the element-wise function, relu.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = IndRNNCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = ind_rnn_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Shuai Li, Wanqing Li, Chris Cook, Ce Zhu, Yanbo Gao, "Independently Recurrent Neural
      Network (IndRNN): Building A Longer and Deeper RNN", CVPR 2018, section 3.  The paper's
      bound on \|u\| during training, 2^(1/T) for sequences of T steps, is the optimiser's
      business and not kept here.
    """
    u, b = _coefficients(params, x)
    state = like(RNNState(h=activation(u * state.h.astype(u.dtype) + b)), state)
    return state, state.h


def _coefficients(params: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """u and W x + b."""
    z = dot(x, params["w_ih"])
    return params["u_hh"].astype(z.dtype), z + params["b"].astype(z.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndRNNCell(BaseCell):
    """Sizes and options of an independently recurrent network; see :func:`ind_rnn_cell`.

    Parameters are ``w_ih`` ``(D, H)``, ``u_hh`` ``(H,)`` and ``b`` ``(H,)``; options are those
    of :class:`BaseCell` and these.  With the identity for ``activation_fn`` and no clipping
    the recurrence is linear, and :func:`lstm_jax.unroll` can run all steps at once.

    Attributes:
      recurrent_kernel_init: draws ``u_hh``, a vector; uniform between 0 and 1.
      activation_fn: by name or itself; ``"relu"``.
      preactivation_clip: pre-activations are clipped to plus and minus this (ONNX ``clip``);
        None for no clipping.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax
      >>> cell = IndRNNCell(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 4), 'u_hh': (4,), 'b': (4,)}
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 2)))
      >>> y.shape
      (5, 4)
    """

    recurrent_kernel_init: Initializer = unit_uniform
    activation_fn: Activation = "relu"
    preactivation_clip: float | None = None

    def __post_init__(self):
        super().__post_init__()
        activation("activation_fn", self.activation_fn)
        check_limit("preactivation_clip", self.preactivation_clip)

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        return ("u_hh",)

    @property
    def is_linear(self) -> bool:
        function = activation("activation_fn", self.activation_fn)
        return function is identity and self.preactivation_clip is None

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": Parameter(self.kernel_init, (D, H)),
            "u_hh": Parameter(self.recurrent_kernel_init, (H,)),
            "b": Parameter(self.bias_init, (H,)),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> RNNState:
        """``h`` of zeros, ``[*batch_shape, H]``."""
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        function = activation("activation_fn", self.activation_fn)
        return ind_rnn_cell(params, state, x, clipped(function, self.preactivation_clip))

    def linear_recurrence(
        self, params: dict[str, jax.Array], xs: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """a and b of h_t = a_t ∘ h_{t-1} + b_t for inputs ``[T, ..., D]``, each ``[T, ..., H]``.

        Raises:
          ValueError: the cell is not linear.
        """
        if not self.is_linear:
            raise ValueError(f"linear_recurrence needs a cell that is linear, got {self}")
        self.check_params(params)
        self.check_x(params, xs)
        params = params | {"w_ih": cast(params["w_ih"], self.dtype)}
        u, b = _coefficients(params, cast(xs, self.dtype))
        return jnp.broadcast_to(u, b.shape), b
