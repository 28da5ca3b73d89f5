"""The minGRU: its gate does not read the state, so all steps can be computed in parallel."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import Activation, Activations, identity
from lstm_jax.cells.base import GatedCell, Parameter, dot, like, named
from lstm_jax.cells.rnn import RNNState

LINEAR = Activations(candidate=identity)


def min_gru_coefficients(
    params: dict[str, jax.Array], x: jax.Array, a: Activations = LINEAR
) -> tuple[jax.Array, jax.Array]:
    """The factor 1 - z_t of the previous state, and the added term z_t ∘ g_t.

    >>> import jax, jax.numpy as jnp
    >>> params = MinGRUCell(hidden_size=3).init(jax.random.key(0), input_size=2)
    >>> keep, write = min_gru_coefficients(params, jnp.ones((7, 2)))
    >>> keep.shape, write.shape
    ((7, 3), (7, 3))
    """
    z = dot(x, params["w_ih"])
    z, g = jnp.split(z + params["b"].astype(z.dtype), 2, -1)
    z, g = named("z", a.gate(z)), named("g", a.candidate(g))
    return 1.0 - z, z * g


def min_gru_cell(
    params: dict[str, jax.Array], state: RNNState, x: jax.Array, a: Activations = LINEAR
) -> tuple[RNNState, jax.Array]:
    r"""One step of the minGRU.

    ::

        z_t = σ(W_z x_t + b_z)
        g_t = W_g x_t + b_g
        h_t = (1 - z_t) ∘ h_{t-1} + z_t ∘ g_t

    Args:
      params: ``w_ih`` ``(D, 2H)`` and ``b`` ``(2H,)``, in the order z, g.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ and the identity.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = MinGRUCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = min_gru_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (3,)

    References:
      Leo Feng, Frederick Tung, Mohamed Osama Ahmed, Yoshua Bengio, Hossein Hajimirsadeghi,
      "Were RNNs All We Needed?", arXiv:2410.01201, 2024.
    """
    keep, write = min_gru_coefficients(params, x, a)
    state = like(RNNState(h=keep * like(state.h, keep) + write), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class MinimalCell(GatedCell):
    """The base class of minGRU and minLSTM, whose gates and candidates read only the input."""

    _: dataclasses.KW_ONLY
    activation_fn: Activation = "identity"

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        """Empty, since gates and candidates read only the input."""
        return ()

    @property
    def is_linear(self) -> bool:
        """Always true."""
        return True

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> RNNState:
        """``h`` of zeros, ``[*batch_shape, H]``."""
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))


@dataclasses.dataclass(frozen=True)
class MinGRUCell(MinimalCell):
    """Sizes and options of a minGRU; its equations are :func:`min_gru_cell`.

    Parameters are ``w_ih`` ``(D, 2H)`` and ``b`` ``(2H,)`` in the order z, g.  Options are those
    of :class:`GatedCell` (``chrono`` applies to z, which writes); ``activation_fn`` is the
    identity by default.  The recurrence is linear: ``unroll`` can compute all steps in parallel.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> params = MinGRUCell(hidden_size=4).init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 8), 'b': (8,)}
    """

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": self.declare("kernel", (D, 2 * H), gates=2),
            "b": Parameter(self.biases("zg", writes="z"), (2 * H,), "bias"),
        }

    def linear_recurrence(
        self, params: dict[str, jax.Array], xs: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """a and b of h_t = a_t ∘ h_{t-1} + b_t, each ``[..., H]``."""
        return min_gru_coefficients(*self.prepared(params, xs), self.activations)

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        return min_gru_cell(params, state, x, self.activations)
