"""The minimal GRU: one gate, which does not read the hidden state."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activation, Activations, identity
from lstm_jax.cells.base import GatedCell, Parameter, blocks, cast, dot, like
from lstm_jax.cells.biases import gate_biases
from lstm_jax.cells.rnn import RNNState

LINEAR = STANDARD._replace(candidate=identity)


def min_gru_cell(
    params: dict[str, jax.Array],
    state: RNNState,
    x: jax.Array,
    a: Activations = LINEAR,
) -> tuple[RNNState, jax.Array]:
    r"""One step of the minimal GRU.

    With σ the logistic function and ∘ the element-wise product::

        z_t = σ(W_z x_t + b_z)
        g_t = W_g x_t + b_g
        h_t = (1 - z_t) ∘ h_{t-1} + z_t ∘ g_t

    Args:
      params: ``w_ih`` ``(D, 2H)``, ``b`` ``(2H,)``, in the order z, g.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; σ for z and the identity for g.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = MinGRUCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = min_gru_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Leo Feng et al., "Were RNNs All We Needed?", arXiv 2410.01201, 2024, section 3.1 (there
      g is called h̃).  The form in logarithms of the paper's appendix, whose g is positive, is
      not this one.
    """
    keep, write = _coefficients(params, x, a)
    state = like(RNNState(h=keep * state.h.astype(keep.dtype) + write), state)
    return state, state.h


def _coefficients(
    params: dict[str, jax.Array], x: jax.Array, a: Activations
) -> tuple[jax.Array, jax.Array]:
    """1 - z and z ∘ g."""
    z = dot(x, params["w_ih"])
    z, g = jnp.split(z + params["b"].astype(z.dtype), 2, -1)
    z = a.gate(z)
    return 1.0 - z, z * a.candidate(g)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinGRUCell(GatedCell):
    """Sizes and options of a minimal GRU; its equations are :func:`min_gru_cell`.

    Parameters are ``w_ih`` ``(D, 2H)`` and ``b`` ``(2H,)`` in the order z, g; options are those
    of :class:`GatedCell` (z writes, and has the negative bias with ``chrono``) and this one.
    There are no recurrent weights, and the recurrence is linear: :func:`lstm_jax.unroll` can
    run all steps at once.

    Attributes:
      activation_fn: of the candidate, by name or itself; ``"identity"``, as in the paper.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import unroll
      >>> cell = MinGRUCell(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, ys = unroll(cell, params, jnp.ones((7, 5, 2)), engine="associative")
      >>> ys.shape
      (7, 5, 4)
    """

    activation_fn: Activation = "identity"

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        return ()

    @property
    def is_linear(self) -> bool:
        return True

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": Parameter(blocks(self.kernel_init, 2), (D, 2 * H)),
            "b": Parameter(
                gate_biases(self.bias_init, "zg", write="z", chrono=self.chrono), (2 * H,)
            ),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> RNNState:
        """``h`` of zeros, ``[*batch_shape, H]``."""
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        return min_gru_cell(params, state, x, self.activations)

    def linear_recurrence(
        self, params: dict[str, jax.Array], xs: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """a and b of h_t = a_t ∘ h_{t-1} + b_t for inputs ``[T, ..., D]``, each ``[T, ..., H]``."""
        self.check_params(params)
        self.check_x(params, xs)
        params = params | {"w_ih": cast(params["w_ih"], self.dtype)}
        return _coefficients(params, cast(xs, self.dtype), self.activations)
