"""The sLSTM of xLSTM: exponential gates, a normaliser and a stabiliser."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations, Function, clipped, identity
from lstm_jax.cells.base import (
    GatedCell,
    Initializer,
    Parameter,
    accumulation_dtype,
    blocks,
    check_size,
    dot,
    like,
    zeros,
)
from lstm_jax.cells.biases import gate_biases

# Far below any pre-activation, so that the first step's log i is the maximum whatever it is,
# and still far from the end of float32, so that no difference overflows.
NOTHING_STORED = -1e30

LOG_FORGET: dict[str, Function] = {"sigmoid": jax.nn.log_sigmoid, "exp": identity}


class SLSTMState(NamedTuple):
    """What an sLSTM hands from one step to the next; all but h are float32 or wider.

    Cell state and normaliser are stored divided by exp(m): what they stand for is c exp(m)
    and n exp(m), and all that is read of them is c / n.

    Attributes:
      h: hidden state, which is also the step's output; ``[..., H]``.
      c: cell state; ``[..., H]``.
      n: normaliser, the sum of the weights with which c was written; ``[..., H]``.
      m: stabiliser, the largest logarithm of such a weight; ``[..., H]``.

    >>> import jax.numpy as jnp
    >>> SLSTMState(h=jnp.zeros(3), c=jnp.zeros(3), n=jnp.ones(3), m=jnp.zeros(3)).n.sum()
    Array(3., dtype=float32)
    """

    h: jax.Array
    c: jax.Array
    n: jax.Array
    m: jax.Array


def slstm_cell(
    params: dict[str, jax.Array],
    state: SLSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
    log_input: Function = identity,
    log_forget: Function = jax.nn.log_sigmoid,
) -> tuple[SLSTMState, jax.Array]:
    r"""One step of the sLSTM.

    With σ the logistic function, ∘ the element-wise product, and ĩ, f̃, g̃, õ the
    pre-activations, such as ĩ_t = W_i x_t + U_i h_{t-1} + b_i::

        log i_t = ĩ_t                            g_t = tanh(g̃_t)
        log f_t = log σ(f̃_t), or f̃_t             o_t = σ(õ_t)
        m_t = max(log f_t + m_{t-1}, log i_t)
        i'_t = exp(log i_t - m_t)
        f'_t = exp(log f_t + m_{t-1} - m_t)
        c_t = f'_t ∘ c_{t-1} + i'_t ∘ g_t
        n_t = f'_t ∘ n_{t-1} + i'_t
        h_t = o_t ∘ c_t / n_t

    U is block-diagonal: each head reads its own d = H / heads features of h alone.  c_t / n_t
    does not depend on m, which keeps the exponentials in reach.

    Args:
      params: ``w_ih`` ``(D, 4H)`` and ``b`` ``(4H,)``, gates in the order i, f, g, o; ``w_hh``
        ``(heads, d, 4d)``, each head's gates in that order.
      state: ``h``, ``c``, ``n``, ``m``, each ``[..., H]``; where nothing is stored yet c and
        n are zero and m is -1e30.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; σ for o and tanh for g.
      log_input: of ĩ, the logarithm of the input gate.
      log_forget: of f̃, the logarithm of the forget gate: log σ, or the identity where the
        gate is exponential.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = SLSTMCell(hidden_size=4, num_heads=2)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, y = slstm_cell(params, cell.zero_state(), jnp.ones(3))
      >>> y.shape, state.n.tolist()
      ((4,), [1.0, 1.0, 1.0, 1.0])

    References:
      Maximilian Beck et al., "xLSTM: Extended Long Short-Term Memory", NeurIPS 2024,
      section 2.2 (there g is called z, and U is R).  The paper does not say where m begins;
      with -1e30 the first step has m_1 = log i_1, as in the authors' own code.
    """
    z = dot(x, params["w_ih"]) + _heads_dot(state.h, params["w_hh"])
    i, f, g, o = jnp.split(z + params["b"].astype(z.dtype), 4, -1)
    log_i, log_f = log_input(i), log_forget(f)
    m = jnp.maximum(log_f + state.m, log_i)
    i, f = jnp.exp(log_i - m), jnp.exp(log_f + state.m - m)
    c = f * state.c + i * a.candidate(g)
    n = f * state.n + i
    h = a.gate(o) * c / n
    state = like(SLSTMState(h=h, c=c, n=n, m=m), state)
    return state, state.h


def _heads_dot(h: jax.Array, w: jax.Array) -> jax.Array:
    """``[..., H]`` by ``(heads, d, 4d)``: all gates side by side, ``[..., 4H]``."""
    heads, d, _ = w.shape
    dtype = jnp.result_type(h, w)
    z = jnp.einsum(
        "...kd,kdge->...gke",
        h.reshape(*h.shape[:-1], heads, d).astype(dtype),
        w.reshape(heads, d, 4, d).astype(dtype),
        preferred_element_type=accumulation_dtype(dtype),
    )
    return z.reshape(*h.shape[:-1], 4 * heads * d)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SLSTMCell(GatedCell):
    """Sizes and options of an sLSTM; its equations are :func:`slstm_cell`.

    Parameters are ``w_ih`` ``(D, 4H)`` and ``b`` ``(4H,)`` with gates in the order i, f, g, o,
    and ``w_hh`` ``(heads, d, 4d)`` with d = H / heads.  Options are those of
    :class:`GatedCell`, where ``gate_fn`` is the output gate's alone, and these.

    With ``learn_initial_state`` the start is h = c = 0, n = 1, m = 0 and not
    :meth:`zero_state`, in which nothing is stored that a gradient could reach.

    Attributes:
      num_heads: into how many heads the hidden features fall; divides H.
      forget_fn: the forget gate, ``"sigmoid"`` or ``"exp"``.
      forget_bias: added to the forget gate's initial bias; ``chrono`` replaces it.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax
      >>> cell = SLSTMCell(hidden_size=4, num_heads=2, forget_fn="exp")
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (3, 16), 'w_hh': (2, 2, 8), 'b': (16,)}
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 3)))
      >>> y.shape
      (5, 4)
    """

    num_heads: int = 1
    forget_fn: str = "sigmoid"
    forget_bias: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_size("num_heads", self.num_heads)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads must divide hidden_size={self.hidden_size}, got {self.num_heads}"
            )
        if self.forget_fn not in LOG_FORGET:
            raise ValueError(
                f"forget_fn must be one of {', '.join(LOG_FORGET)}, got {self.forget_fn!r}"
            )
        if self.forget_fn == "exp" and self.chrono is not None:
            raise ValueError(
                "chrono must be None where forget_fn is 'exp', since it sets how long a gate "
                f"between 0 and 1 remembers, got {self.chrono}"
            )

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H, d = input_size, self.hidden_size, self.hidden_size // self.num_heads
        recurrent = _each(blocks(self.recurrent_kernel_init, 4))
        biases = gate_biases(
            self.bias_init,
            "ifgo",
            keep="f",
            write="i",
            chrono=self.chrono,
            forget_bias=self.forget_bias,
        )
        return {
            "w_ih": Parameter(blocks(self.kernel_init, 4), (D, 4 * H)),
            "w_hh": Parameter(recurrent, (self.num_heads, d, 4 * d)),
            "b": Parameter(biases, (4 * H,)),
        }

    def all_parameters(self, input_size: int) -> dict[str, Parameter]:
        parameters = super().all_parameters(input_size)
        if self.learn_initial_state:
            shape = (self.hidden_size,)
            parameters["n_0"] = Parameter(jax.nn.initializers.ones, shape)
            parameters["m_0"] = Parameter(zeros, shape)
        return parameters

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> SLSTMState:
        """Nothing stored: ``h``, ``c``, ``n`` zero and ``m`` -1e30, each ``[*batch_shape, H]``."""
        shape = (*batch_shape, self.hidden_size)
        zero = self.zeros(*shape, accumulated=True)
        return SLSTMState(h=self.zeros(*shape), c=zero, n=zero, m=zero + NOTHING_STORED)

    def equations(
        self, params: dict[str, jax.Array], state: SLSTMState, x: jax.Array
    ) -> tuple[SLSTMState, jax.Array]:
        limit = self.preactivation_clip
        log_input, log_forget = clipped(identity, limit), clipped(LOG_FORGET[self.forget_fn], limit)
        return slstm_cell(params, state, x, self.activations, log_input, log_forget)


def _each(init: Initializer) -> Initializer:
    """Draws each matrix of a stack by itself."""

    def init_stack(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.stack([init(k, shape[1:], dtype) for k in jax.random.split(key, shape[0])])

    return init_stack
