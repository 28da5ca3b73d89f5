"""The multiplicative LSTM: the recurrent transition depends on the input."""

import dataclasses

import jax

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import LSTMFamilyCell, Parameter, dot, like, named
from lstm_jax.cells.lstm import LSTMState, lstm_cell


def multiplicative_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the multiplicative LSTM (mLSTM).

    With ∘ the element-wise product::

        m_t = (W_mx x_t) ∘ (W_mh h_{t-1})
        (h_t, c_t) = LSTM(x_t, m_t, c_{t-1})

    where LSTM is :func:`lstm_cell`, which thus reads m_t instead of h_{t-1}.

    Args:
      params: ``w_mx`` ``(D, H)``, ``w_mh`` ``(H, H)``, and the LSTM's ``w_ih`` ``(D, 4H)``,
        ``w_hh`` ``(H, 4H)``, ``b`` ``(4H,)``, gates in the order i, f, g, o.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ, tanh, tanh and no clipping.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = MultiplicativeLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = multiplicative_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Ben Krause, Liang Lu, Iain Murray, Steve Renals, "Multiplicative LSTM for sequence
      modelling", ICLR 2017 workshop track (arXiv:1609.07959), the equations of mLSTM, with
      as many intermediate features m as hidden features.
    """
    m = named("m", dot(x, params["w_mx"]) * dot(state.h, params["w_mh"]))
    return lstm_cell(params, state._replace(h=like(m, state.h)), x, a)


@dataclasses.dataclass(frozen=True)
class MultiplicativeLSTMCell(LSTMFamilyCell):
    """Sizes and options of a multiplicative LSTM; see :func:`multiplicative_cell`.

    Parameters are ``w_mx`` ``(D, H)``, ``w_mh`` ``(H, H)``, ``w_ih`` ``(D, 4H)``, ``w_hh``
    ``(H, 4H)`` and ``b`` ``(4H,)`` with gates in the order i, f, g, o.  Options are those of
    :class:`LSTMFamilyCell`.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = MultiplicativeLSTMCell(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_mx': (2, 4), 'w_mh': (4, 4), 'w_ih': (2, 16), 'w_hh': (4, 16), 'b': (16,)}
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 2)))
      >>> y.shape
      (5, 4)
    """

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        """Names of the weights between the previous hidden state and the gates."""
        return ("w_mh", "w_hh")

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_mx": self.declare("kernel", (D, H)),
            "w_mh": self.declare("recurrent_kernel", (H, H)),
            "w_ih": self.declare("kernel", (D, 4 * H), gates=4),
            "w_hh": self.declare("recurrent_kernel", (H, 4 * H), gates=4),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,), "bias"),
        }

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return multiplicative_cell(params, state, x, self.activations)
