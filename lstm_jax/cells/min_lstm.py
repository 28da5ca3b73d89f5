"""The LSTM whose gates do not read the state, so that all steps can be had at once."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import Activation, Activations
from lstm_jax.cells.base import GatedCell, Parameter, blocks, cast, check_number, dot, like
from lstm_jax.cells.min_gru import LINEAR
from lstm_jax.cells.rnn import RNNState


def min_lstm_coefficients(
    params: dict[str, jax.Array], x: jax.Array, a: Activations = LINEAR
) -> tuple[jax.Array, jax.Array]:
    """What a step multiplies the state by, f', and what it adds, i' ∘ g.

    >>> import jax, jax.numpy as jnp
    >>> params = MinLSTMCell(hidden_size=3).init(jax.random.key(0), input_size=2)
    >>> keep, write = min_lstm_coefficients(params, jnp.ones((7, 2)))
    >>> keep.shape, write.shape
    ((7, 3), (7, 3))
    """
    z = dot(x, params["w_ih"])
    i, f, g = jnp.split(z + params["b"].astype(z.dtype), 3, -1)
    # f / (f + i) = σ(log f - log i), which is no 0 / 0 where both gates are shut.
    odds = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
    return a.gate(odds), a.gate(-odds) * a.candidate(g)


def min_lstm_cell(
    params: dict[str, jax.Array], state: RNNState, x: jax.Array, a: Activations = LINEAR
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
      a: the element-wise functions; σ and the identity.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = MinLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = min_lstm_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (3,)

    References:
      Leo Feng, Frederick Tung, Mohamed Osama Ahmed, Yoshua Bengio, Hossein Hajimirsadeghi,
      "Were RNNs All We Needed?", arXiv:2410.01201, 2024, section 3.2.
    """
    keep, write = min_lstm_coefficients(params, x, a)
    state = like(RNNState(h=keep * state.h + write), state)
    return state, state.h


