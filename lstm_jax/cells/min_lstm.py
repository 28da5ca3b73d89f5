"""The minimal LSTM: gates that do not read the hidden state, and sum to one."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import Activation, Function, activation, clipped, identity
from lstm_jax.cells.base import GatedCell, Parameter, blocks, cast, dot, like
from lstm_jax.cells.biases import gate_biases
from lstm_jax.cells.rnn import RNNState


def min_lstm_cell(
    params: dict[str, jax.Array],
    state: RNNState,
    x: jax.Array,
    candidate: Function = identity,
    log_gate: Function = jax.nn.log_sigmoid,
) -> tuple[RNNState, jax.Array]:
    r"""One step of the minimal LSTM.

    With σ the logistic function and ∘ the element-wise product::

        i_t = σ(W_i x_t + b_i)
        f_t = σ(W_f x_t + b_f)
        g_t = W_g x_t + b_g
        f'_t = f_t / (f_t + i_t)        i'_t = i_t / (f_t + i_t)
        h_t = f'_t ∘ h_{t-1} + i'_t ∘ g_t

    f' is computed as σ(log f - log i), which is the same and divides nothing by nothing where
    both gates are shut.

    Args:
      params: ``w_ih`` ``(D, 3H)``, ``b`` ``(3H,)``, in the order i, f, g.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      candidate: the element-wise function of g; the identity.
      log_gate: the logarithm of both gates' function, log σ.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = MinLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = min_lstm_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Leo Feng et al., "Were RNNs All We Needed?", arXiv 2410.01201, 2024, section 3.2 (there
      g is called h̃).  The form in logarithms of the paper's appendix, whose g is positive, is
      not this one.
    """
    keep, write = _coefficients(params, x, candidate, log_gate)
    state = like(RNNState(h=keep * state.h.astype(keep.dtype) + write), state)
    return state, state.h


def _coefficients(
    params: dict[str, jax.Array], x: jax.Array, candidate: Function, log_gate: Function
) -> tuple[jax.Array, jax.Array]:
    """f' and i' ∘ g."""
    z = dot(x, params["w_ih"])
    i, f, g = jnp.split(z + params["b"].astype(z.dtype), 3, -1)
    odds = log_gate(f) - log_gate(i)
    return jax.nn.sigmoid(odds), jax.nn.sigmoid(-odds) * candidate(g)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinLSTMCell(GatedCell):
    """Sizes and options of a minimal LSTM; its equations are :func:`min_lstm_cell`.

    Parameters are ``w_ih`` ``(D, 3H)`` and ``b`` ``(3H,)`` in the order i, f, g; options are
    those of :class:`GatedCell` and these.  There are no recurrent weights, and the recurrence
    is linear: :func:`lstm_jax.unroll` can run all steps at once.

    Attributes:
      activation_fn: of the candidate, by name or itself; ``"identity"``, as in the paper.
      forget_bias: added to the forget gate's initial bias; ``chrono`` replaces it.

    Raises:
      TypeError, ValueError: a size or option is impossible, or ``gate_fn`` is not
        ``"sigmoid"``; the message names it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import unroll
      >>> cell = MinLSTMCell(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, ys = unroll(cell, params, jnp.ones((7, 5, 2)), engine="associative")
      >>> ys.shape
      (7, 5, 4)
    """

    activation_fn: Activation = "identity"
    forget_bias: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if activation("gate_fn", self.gate_fn) is not jax.nn.sigmoid:
            raise ValueError(
                "gate_fn of MinLSTMCell must be 'sigmoid', whose logarithm its equations take, "
                f"got {self.gate_fn!r}"
            )

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        return ()

    @property
    def is_linear(self) -> bool:
        return True

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        biases = gate_biases(
            self.bias_init,
            "ifg",
            keep="f",
            write="i",
            chrono=self.chrono,
            forget_bias=self.forget_bias,
        )
        return {
            "w_ih": Parameter(blocks(self.kernel_init, 3), (D, 3 * H)),
            "b": Parameter(biases, (3 * H,)),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> RNNState:
        """``h`` of zeros, ``[*batch_shape, H]``."""
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        return min_lstm_cell(params, state, x, *self._functions)

    def linear_recurrence(
        self, params: dict[str, jax.Array], xs: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """a and b of h_t = a_t ∘ h_{t-1} + b_t for inputs ``[T, ..., D]``, each ``[T, ..., H]``."""
        self.check_params(params)
        self.check_x(params, xs)
        params = params | {"w_ih": cast(params["w_ih"], self.dtype)}
        return _coefficients(params, cast(xs, self.dtype), *self._functions)

    @property
    def _functions(self) -> tuple[Function, Function]:
        log_gate = clipped(jax.nn.log_sigmoid, self.preactivation_clip)
        return self.activations.candidate, log_gate
