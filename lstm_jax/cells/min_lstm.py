"""The minLSTM: its gates do not read the state, so all steps can be computed in parallel."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import Activations, clipped, identity
from lstm_jax.cells.base import Parameter, check_number, dot, like, named
from lstm_jax.cells.min_gru import MinimalCell
from lstm_jax.cells.rnn import RNNState

LOGARITHMIC = Activations(gate=jax.nn.log_sigmoid, candidate=identity)


def min_lstm_coefficients(
    params: dict[str, jax.Array], x: jax.Array, a: Activations = LOGARITHMIC
) -> tuple[jax.Array, jax.Array]:
    """The factor f' of the previous state, and the added term i' ∘ g.

    >>> import jax, jax.numpy as jnp
    >>> params = MinLSTMCell(hidden_size=3).init(jax.random.key(0), input_size=2)
    >>> keep, write = min_lstm_coefficients(params, jnp.ones((7, 2)))
    >>> keep.shape, write.shape
    ((7, 3), (7, 3))
    """
    z = dot(x, params["w_ih"])
    i, f, g = jnp.split(z + params["b"].astype(z.dtype), 3, -1)
    # f / (f + i) = σ(log f - log i), which avoids 0 / 0 if both gates are closed.
    odds = a.gate(f) - a.gate(i)
    f, i = named("f'", jax.nn.sigmoid(odds)), named("i'", jax.nn.sigmoid(-odds))
    return f, i * named("g", a.candidate(g))


def min_lstm_cell(
    params: dict[str, jax.Array], state: RNNState, x: jax.Array, a: Activations = LOGARITHMIC
) -> tuple[RNNState, jax.Array]:
    r"""One step of the minLSTM.

    ::

        i_t = σ(W_i x_t + b_i)          f_t = σ(W_f x_t + b_f)
        i'_t = i_t / (f_t + i_t)        f'_t = f_t / (f_t + i_t)
        g_t = W_g x_t + b_g
        h_t = f'_t ∘ h_{t-1} + i'_t ∘ g_t

    Args:
      params: ``w_ih`` ``(D, 3H)`` and ``b`` ``(3H,)``, in the order i, f, g.
      state: ``h``, ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default, ``gate`` is log σ and ``candidate`` the identity.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = MinLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = min_lstm_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (3,)

    References:
      Leo Feng, Frederick Tung, Mohamed Osama Ahmed, Yoshua Bengio, Hossein Hajimirsadeghi,
      "Were RNNs All We Needed?", arXiv:2410.01201, 2024.
    """
    keep, write = min_lstm_coefficients(params, x, a)
    state = like(RNNState(h=keep * like(state.h, keep) + write), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class MinLSTMCell(MinimalCell):
    """Sizes and options of a minLSTM; its equations are :func:`min_lstm_cell`.

    Parameters are ``w_ih`` ``(D, 3H)`` and ``b`` ``(3H,)`` in the order i, f, g.  Options are
    those of :class:`GatedCell` and the following; ``gate_fn`` must be the sigmoid, and
    ``activation_fn`` is the identity by default.  The recurrence is linear: ``unroll`` can compute
    all steps in parallel.

    Attributes:
      forget_bias: added to the forget gate's initial bias; by default 1, since the paper finds
        that a positive bias makes training more efficient.  ``chrono`` replaces it.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> params = MinLSTMCell(hidden_size=4).init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 12), 'b': (12,)}
    """

    _: dataclasses.KW_ONLY
    forget_bias: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_number("forget_bias", self.forget_bias)
        if self.gate_fn not in ("sigmoid", jax.nn.sigmoid):
            raise ValueError(f"gate_fn of MinLSTMCell must be 'sigmoid', got {self.gate_fn!r}")

    @property
    def activations(self) -> Activations:
        """The functions that the options select; ``gate`` returns logarithms."""
        gate = clipped(jax.nn.log_sigmoid, self.preactivation_clip)
        return super().activations._replace(gate=gate)

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        biases = self.biases("ifg", keeps="f", writes="i", forget_bias=self.forget_bias)
        return {
            "w_ih": self.declare("kernel", (D, 3 * H), gates=3),
            "b": Parameter(biases, (3 * H,), "bias"),
        }

    def linear_recurrence(
        self, params: dict[str, jax.Array], xs: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """a and b of h_t = a_t ∘ h_{t-1} + b_t, each ``[..., H]``."""
        return min_lstm_coefficients(*self.prepared(params, xs), self.activations)

    def equations(
        self, params: dict[str, jax.Array], state: RNNState, x: jax.Array
    ) -> tuple[RNNState, jax.Array]:
        return min_lstm_cell(params, state, x, self.activations)
