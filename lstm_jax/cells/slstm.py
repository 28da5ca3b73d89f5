"""The sLSTM of xLSTM: exponential gates with a normaliser and a stabiliser, and heads."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations, clipped
from lstm_jax.cells.base import (
    GatedCell,
    Parameter,
    blocks,
    check_number,
    check_size,
    dot,
    like,
    named,
    zeros,
)
from lstm_jax.cells.products import product

FORGET_FUNCTIONS = {"sigmoid": jax.nn.log_sigmoid, "exp": lambda z: z}
"""Functions that compute the logarithm of the forget gate, by the name of the gate."""

EMPTY = -1e30  # the stabiliser of an empty state; -inf would give NaN


class SLSTMState(NamedTuple):
    """The state of an sLSTM between steps; all fields except ``h`` are in float32 or wider.

    Attributes:
      h: hidden state, which is also the step's output; ``[..., H]``.
      c: cell state, times exp(-m); ``[..., H]``.
      n: normaliser, times exp(-m); ``[..., H]``, at least 0, and positive where c is not 0.
      m: stabiliser; ``[..., H]``.

    >>> import jax.numpy as jnp
    >>> SLSTMState(*[jnp.zeros(3)] * 4).n.shape
    (3,)
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
    log_forget=jax.nn.log_sigmoid,
    clip=lambda z: z,
) -> tuple[SLSTMState, jax.Array]:
    r"""One step of the sLSTM.

    With ĩ, f̃, g̃, õ = W x_t + U h_{t-1} + b, where U is block diagonal with a block per head::

        g_t  = tanh(g̃)          o_t = σ(õ)
        m_t  = max(log f_t + m_{t-1}, ĩ)              log f_t = log σ(f̃), or f̃ itself
        i'_t = exp(ĩ - m_t)     f'_t = exp(log f_t + m_{t-1} - m_t)
        c_t  = f'_t ∘ c_{t-1} + i'_t ∘ g_t
        n_t  = f'_t ∘ n_{t-1} + i'_t
        h_t  = o_t ∘ c_t / n_t

    The values of h_t do not depend on m, which keeps the exponentials from overflowing.

    Args:
      params: ``w_ih`` ``(D, 4H)``, ``b`` ``(4H,)``, gates in the order i, f, g, o;
        ``w_hh`` ``(heads, d, 4d)`` with d = H / heads, in the same order in each head.
      state: ``h``, ``c``, ``n``, ``m``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions of o and g; by default σ and tanh.
      log_forget: computes the logarithm of the forget gate from its pre-activation.
      clip: applied to the pre-activations of i and f; by default the identity.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = SLSTMCell(hidden_size=4, num_heads=2)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = slstm_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (4,)

    References:
      Maximilian Beck et al., "xLSTM: Extended Long Short-Term Memory", NeurIPS 2024
      (arXiv:2405.04517), the equations of the sLSTM and of its stabilised gates.
    """
    heads, d, _ = params["w_hh"].shape
    h = state.h.reshape(*state.h.shape[:-1], heads, d)
    each_head = ((h.ndim - 1,), (1,)), ((h.ndim - 2,), (0,))
    z_h = product(jax.lax.dot_general, h, params["w_hh"], dimension_numbers=each_head)
    z_h = jnp.moveaxis(z_h, 0, -2)
    z_h = z_h.reshape(*z_h.shape[:-1], 4, d)  # [..., heads, 4, d], to [..., 4, heads, d]
    z_h = jnp.swapaxes(z_h, -3, -2).reshape(*state.h.shape[:-1], 4 * heads * d)
    z = dot(x, params["w_ih"]) + z_h
    i, f, g, o = jnp.split(z + params["b"].astype(z.dtype), 4, -1)
    log_i, log_f = clip(i), log_forget(clip(f))
    m = jnp.maximum(log_f + state.m, log_i)
    i, f = named("i", jnp.exp(log_i - m)), named("f", jnp.exp(log_f + state.m - m))
    g, o = named("g", a.candidate(g)), named("o", a.gate(o))
    c = f * state.c + i * g
    n = f * state.n + i
    state = like(SLSTMState(h=o * c / n, c=c, n=n, m=m), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class SLSTMCell(GatedCell):
    """Sizes and options of an sLSTM; its equations are :func:`slstm_cell`.

    Parameters are ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(heads, d, 4d)`` with d = H / heads and ``b``
    ``(4H,)`` with gates in the order i, f, g, o.  Options are those of :class:`GatedCell`
    (``gate_fn`` applies to the output gate) and the following.  The zero state has ``m`` = -1e30:
    it is empty, and the first step determines the scale.  With ``learn_initial_state`` there are
    ``h_0``, ``c_0`` and ``m_0``, initialised to zeros.  The initial n is then 1.  This is not a
    restriction: n must be positive, and m_0 determines its scale exp(m).

    Attributes:
      num_heads: the number of blocks of the recurrent weights; divides H.
      forget_fn: activation of the forget gate, ``"sigmoid"`` or ``"exp"``.
      forget_bias: added to the forget gate's initial bias; by default 0.  ``chrono`` replaces it.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> params = SLSTMCell(hidden_size=4, num_heads=2).init(jax.random.key(0), input_size=3)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (3, 16), 'w_hh': (2, 2, 8), 'b': (16,)}
    """

    _: dataclasses.KW_ONLY
    num_heads: int = 1
    forget_fn: str = "sigmoid"
    forget_bias: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_size("num_heads", self.num_heads)
        check_number("forget_bias", self.forget_bias)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads must divide hidden_size={self.hidden_size}, got {self.num_heads}"
            )
        if self.chrono and self.forget_fn == "exp":
            raise ValueError("chrono requires a sigmoid forget gate, got forget_fn='exp'")
        if not isinstance(self.forget_fn, str) or self.forget_fn not in FORGET_FUNCTIONS:
            raise ValueError(
                f"forget_fn must be one of {', '.join(FORGET_FUNCTIONS)}, got {self.forget_fn!r}"
            )

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H, heads = input_size, self.hidden_size, self.num_heads
        d = H // heads

        def each_head(key, shape, dtype):
            draw = blocks(self.recurrent_kernel_init, 4)
            return jnp.stack([draw(k, shape[1:], dtype) for k in jax.random.split(key, heads)])

        biases = self.biases("ifgo", keeps="f", writes="i", forget_bias=self.forget_bias)
        return {
            "w_ih": self.declare("kernel", (D, 4 * H), gates=4),
            "w_hh": Parameter(each_head, (heads, d, 4 * d), "recurrent_kernel"),
            "b": Parameter(biases, (4 * H,), "bias"),
        }

    def all_parameters(self, input_size: int) -> dict[str, Parameter]:
        """As for any cell, but a learned initial state has no ``n_0``, and ``m_0`` is zeros."""
        parameters = super().all_parameters(input_size)
        if self.learn_initial_state:
            del parameters["n_0"]
            parameters["m_0"] = Parameter(zeros, (self.hidden_size,))
        return parameters

    def initial_state(
        self, params: dict[str, jax.Array], batch_shape: tuple[int, ...] = ()
    ) -> SLSTMState:
        """The state before the first step: the zero state, or the learned state with n = 1."""
        if self.learn_initial_state:
            params = {**params, "n_0": jnp.ones_like(params["c_0"])}
        return super().initial_state(params, batch_shape)

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> SLSTMState:
        """``h``, ``c`` and ``n`` of zeros and ``m`` of -1e30, each ``[*batch_shape, H]``."""
        shape = (*batch_shape, self.hidden_size)
        zero = self.zeros(*shape, accumulated=True)
        return SLSTMState(h=self.zeros(*shape), c=zero, n=zero, m=zero + EMPTY)

    def mean_state(self, old: SLSTMState, new: SLSTMState, rate: float) -> SLSTMState:
        """The mean ``rate * old + (1 - rate) * new``, with both states at the same scale m."""
        m = jnp.maximum(old.m, new.m)
        old_share, new_share = rate * jnp.exp(old.m - m), (1.0 - rate) * jnp.exp(new.m - m)
        c = old_share * old.c + new_share * new.c
        n = old_share * old.n + new_share * new.n
        return SLSTMState(h=rate * old.h + (1.0 - rate) * new.h, c=c, n=n, m=m)

    def equations(
        self, params: dict[str, jax.Array], state: SLSTMState, x: jax.Array
    ) -> tuple[SLSTMState, jax.Array]:
        clip = clipped(lambda z: z, self.preactivation_clip)
        log_forget = FORGET_FUNCTIONS[self.forget_fn]
        return slstm_cell(params, state, x, self.activations, log_forget, clip)
