"""The standard LSTM: input, forget and output gate around a cell state."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells.base import (
    Initializer,
    accumulation_dtype,
    cast,
    check_features,
    check_hidden_size,
    check_input_size,
    dot,
)

# Made once: each call of these factories returns a new function, and cells compare
# (and hash) by the functions they hold.
_glorot_uniform = jax.nn.initializers.glorot_uniform()
_orthogonal = jax.nn.initializers.orthogonal()
_zeros = jax.nn.initializers.zeros


class LSTMState(NamedTuple):
    """What an LSTM hands from one step to the next.

    Attributes:
      h: hidden state, which is also the step's output; ``[..., H]``.
      c: cell state; ``[..., H]``, float32 (or float64) whatever the computation's type.

    >>> import jax.numpy as jnp
    >>> LSTMState(h=jnp.zeros(3), c=jnp.ones(3)).c.sum()
    Array(3., dtype=float32)
    """

    h: jax.Array
    c: jax.Array


def lstm_cell(
    params: dict[str, jax.Array], state: LSTMState, x: jax.Array
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the standard LSTM.

    With σ the logistic function and ∘ the element-wise product::

        i_t = σ(W_i x_t + U_i h_{t-1} + b_i)
        f_t = σ(W_f x_t + U_f h_{t-1} + b_f)
        g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
        o_t = σ(W_o x_t + U_o h_{t-1} + b_o)
        c_t = f_t ∘ c_{t-1} + i_t ∘ g_t
        h_t = o_t ∘ tanh(c_t)

    The four gates lie side by side in each parameter, in the order i, f, g, o.
    ``functools.partial(lstm_cell, params)`` is the body of a ``jax.lax.scan``.

    Args:
      params: ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)``, ``b`` ``(4H,)``.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and the output
      ``y = h_t``, ``[..., H]``.  Products are formed in the type of their operands and
      summed in float32 or wider; gates and cell state are computed in that wider type.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = LSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = lstm_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Felix A. Gers, Jürgen Schmidhuber, Fred Cummins, "Learning to Forget: Continual
      Prediction with LSTM", Neural Computation 12(10), 2000, equations 3.1-3.6 (without
      squashing beyond tanh, as in Greff et al., "LSTM: A Search Space Odyssey", 2017,
      section 3, variant NP).
    """
    z = dot(x, params["w_ih"]) + dot(state.h, params["w_hh"])
    z = z + params["b"].astype(z.dtype)
    i, f, g, o = jnp.split(z, 4, axis=-1)
    c = jax.nn.sigmoid(f) * state.c.astype(z.dtype) + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    state = LSTMState(h=h.astype(state.h.dtype), c=c.astype(state.c.dtype))
    return state, state.h


@dataclasses.dataclass(frozen=True)
class LSTMCell:
    """Sizes and options of a standard LSTM; its equations are :func:`lstm_cell`.

    Attributes:
      hidden_size: H, the number of hidden features.
      dtype: type of the products (``"bfloat16"``, ``"float32"``, ...); None takes what the
        parameters and inputs have.  The cell state and every sum stay in float32 or wider.
      param_dtype: type in which parameters are stored.
      kernel_init: draws each gate's input weights ``(D, H)``; Glorot-uniform.
      recurrent_kernel_init: draws each gate's recurrent weights ``(H, H)``; orthogonal.
      bias_init: draws each gate's bias ``(H,)``; zeros.
      forget_bias: added to the forget gate's initial bias, so that a new network
        remembers (Gers et al. 2000; Jozefowicz et al. 2015).

    Raises:
      TypeError, ValueError: ``hidden_size`` is no positive integer.

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

    hidden_size: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = "float32"
    kernel_init: Initializer = _glorot_uniform
    recurrent_kernel_init: Initializer = _orthogonal
    bias_init: Initializer = _zeros
    forget_bias: float = 1.0

    def __post_init__(self):
        check_hidden_size(self.hidden_size)

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Parameters ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)`` and ``b`` ``(4H,)``.

        Each gate's block is drawn by itself, so that an orthogonal block is orthogonal.

        Args:
          key: a random key.
          input_size: D, the number of input features.

        Raises:
          TypeError, ValueError: ``input_size`` is no positive integer.
        """
        check_input_size(input_size)
        size, dtype = self.hidden_size, jnp.dtype(self.param_dtype)
        w_key, u_key, b_key = jax.random.split(key, 3)

        def gates(init: Initializer, key: jax.Array, shape: tuple[int, ...]) -> list[jax.Array]:
            # Drawn in float32 or wider: an orthogonal matrix comes from a QR decomposition,
            # which has no narrower types.
            drawn = (init(k, shape, accumulation_dtype(dtype)) for k in jax.random.split(key, 4))
            return [gate.astype(dtype) for gate in drawn]

        b_i, b_f, b_g, b_o = gates(self.bias_init, b_key, (size,))
        return {
            "w_ih": jnp.concatenate(gates(self.kernel_init, w_key, (input_size, size)), -1),
            "w_hh": jnp.concatenate(gates(self.recurrent_kernel_init, u_key, (size, size)), -1),
            "b": jnp.concatenate([b_i, b_f + jnp.asarray(self.forget_bias, dtype), b_g, b_o]),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        """``h`` and ``c`` of zeros, each ``[*batch_shape, H]``; ``c`` in float32 or wider."""
        dtype = jnp.dtype(self.param_dtype if self.dtype is None else self.dtype)
        shape = (*batch_shape, self.hidden_size)
        return LSTMState(h=jnp.zeros(shape, dtype), c=jnp.zeros(shape, accumulation_dtype(dtype)))

    def step(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        """:func:`lstm_cell`, its arguments checked and cast to ``dtype``.

        Raises:
          TypeError: ``state`` is no :class:`LSTMState`.
          ValueError: the last axis of ``x`` is not D or that of ``state`` not H.
        """
        if not isinstance(state, LSTMState):
            raise TypeError(f"state must be an LSTMState(h, c), got {type(state).__name__}")
        check_features("x", x, params["w_ih"].shape[0], "[..., D]", "D")
        check_features("state.h", state.h, self.hidden_size, "[..., H]", "H")
        check_features("state.c", state.c, self.hidden_size, "[..., H]", "H")
        weights = cast({"w_ih": params["w_ih"], "w_hh": params["w_hh"]}, self.dtype)
        return lstm_cell({**params, **weights}, state, cast(x, self.dtype))
