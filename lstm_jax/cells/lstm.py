"""The standard LSTM: a cell state with input, forget and output gates."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import LSTMFamilyCell, LSTMState, Parameter, affine, like, named


def lstm_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the standard LSTM.

    With σ the logistic function and ∘ the element-wise product::

        i_t = σ(W_i x_t + U_i h_{t-1} + b_i)
        f_t = σ(W_f x_t + U_f h_{t-1} + b_f)
        g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
        o_t = σ(W_o x_t + U_o h_{t-1} + b_o)
        c_t = f_t ∘ c_{t-1} + i_t ∘ g_t
        h_t = o_t ∘ tanh(c_t)

    Each parameter concatenates those of the four gates, in the order i, f, g, o.
    ``functools.partial(lstm_cell, params)`` can be the body of a ``jax.lax.scan``.

    Args:
      params: ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)``, ``b`` ``(4H,)``.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ, tanh, tanh and no clipping.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and the output
      ``y = h_t``, ``[..., H]``.  Products are computed in the type of their
      operands and summed in float32 or wider.  Gates and cell state have that wider type.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = LSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = lstm_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Felix A. Gers, Jürgen Schmidhuber, Fred Cummins, "Learning to Forget: Continual
      Prediction with LSTM", Neural Computation 12(10), 2000 (without squashing
      beyond tanh, as in Greff et al., "LSTM: A Search Space Odyssey", 2017, variant NP).
    """
    i, f, g, o = gates(affine(params, state.h, x), a)
    c = a.clip(f * state.c + i * g)
    h = o * a.output(c)
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


def gates(z: jax.Array, a: Activations) -> tuple[jax.Array, ...]:
    """Computes i, f, g and o from their concatenated pre-activations.

    >>> import jax.numpy as jnp
    >>> [float(gate[0]) for gate in gates(jnp.zeros(4), STANDARD)]
    [0.5, 0.5, 0.0, 0.5]
    """
    i, f, g, o = jnp.split(z, 4, -1)
    return (
        named("i", a.gate(i)),
        named("f", a.gate(f)),
        named("g", a.candidate(g)),
        named("o", a.gate(o)),
    )


@dataclasses.dataclass(frozen=True)
class LSTMCell(LSTMFamilyCell):
    """Sizes and options of a standard LSTM; its equations are :func:`lstm_cell`.

    Parameters are ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)`` and ``b`` ``(4H,)`` with gates in
    the order i, f, g, o.  Options are those of :class:`LSTMFamilyCell`.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = LSTMCell(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (2, 16), 'w_hh': (4, 16), 'b': (16,)}
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 2)))
      >>> y.shape
      (5, 4)
    """

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": self.declare("kernel", (D, 4 * H), gates=4),
            "w_hh": self.declare("recurrent_kernel", (H, 4 * H), gates=4),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,), "bias"),
        }

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return lstm_cell(params, state, x, self.activations)
