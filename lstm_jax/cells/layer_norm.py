"""The LSTM with layer normalisation of its pre-activations and of the cell state it reads."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import LSTMFamilyCell, Parameter, check_number, dot, like
from lstm_jax.cells.lstm import LSTMState, gates

ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros


def layer_norm(x: jax.Array, scale: jax.Array, shift: jax.Array, epsilon: float) -> jax.Array:
    """Normalises features to mean 0 and variance 1, then scales and shifts them.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([1.0, 2.0, 3.0])
    >>> layer_norm(x, jnp.ones(3), jnp.zeros(3), epsilon=1e-5).round(3).tolist()
    [-1.225..., 0.0, 1.225...]
    """
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    normalised = centered * jax.lax.rsqrt(variance + epsilon)
    return normalised * scale.astype(x.dtype) + shift.astype(x.dtype)


def layer_norm_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
    epsilon: float = 1e-5,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the LSTM with layer normalisation.

    With σ the logistic function and ∘ the element-wise product::

        LN(a; s, b) = (a - mean(a)) / sqrt(var(a) + ε) ∘ s + b
        (i, f, g, o) = LN(W x_t; s_x, b_x) + LN(U h_{t-1}; s_h, b_h) + b
        c_t = σ(f) ∘ c_{t-1} + σ(i) ∘ tanh(g)
        h_t = σ(o) ∘ tanh(LN(c_t; s_c, b_c))

    Mean and (biased) variance are over all 4H features of a product, or all H cells.  The
    state contains c_t without normalisation.

    Args:
      params: ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)``, ``b`` ``(4H,)``, gates in the order
        i, f, g, o; ``scale_x``, ``shift_x``, ``scale_h``, ``shift_h``, each ``(4H,)``;
        ``scale_c``, ``shift_c``, each ``(H,)``.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ, tanh, tanh and no clipping.
      epsilon: ε, added to variances.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = LayerNormLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = layer_norm_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Jimmy Lei Ba, Jamie Ryan Kiros, Geoffrey E. Hinton, "Layer Normalization", 2016
      (arXiv:1607.06450), supplementary material, equations 20-22.  The paper has no ε.
      Here, scales (the gains) are initialised to one and shifts to zero.
    """
    z_x = layer_norm(dot(x, params["w_ih"]), params["scale_x"], params["shift_x"], epsilon)
    z_h = layer_norm(dot(state.h, params["w_hh"]), params["scale_h"], params["shift_h"], epsilon)
    i, f, g, o = gates(z_x + z_h + params["b"].astype(z_x.dtype), a)
    c = a.clip(f * state.c + i * g)
    h = o * a.output(layer_norm(c, params["scale_c"], params["shift_c"], epsilon))
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class LayerNormLSTMCell(LSTMFamilyCell):
    """Sizes and options of an LSTM with layer normalisation; see :func:`layer_norm_cell`.

    Parameters are ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)`` and ``b`` ``(4H,)`` with gates in
    the order i, f, g, o; ``scale_x``, ``shift_x``, ``scale_h``, ``shift_h``, each ``(4H,)``,
    and ``scale_c``, ``shift_c``, each ``(H,)``.  Scales are initialised to one, shifts to zero.
    Options are those of :class:`LSTMFamilyCell` and the following.

    Attributes:
      epsilon: added to variances, so that equal features do not cause a division by zero.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = LayerNormLSTMCell(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> params["scale_x"].shape, params["shift_c"].shape
      ((16,), (4,))
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 2)))
      >>> y.shape
      (5, 4)
    """

    _: dataclasses.KW_ONLY
    epsilon: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        check_number("epsilon", self.epsilon)
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        return {
            "w_ih": self.declare("kernel", (D, 4 * H), gates=4),
            "w_hh": self.declare("recurrent_kernel", (H, 4 * H), gates=4),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,), "bias"),
            "scale_x": Parameter(ones, (4 * H,)),
            "shift_x": Parameter(zeros, (4 * H,)),
            "scale_h": Parameter(ones, (4 * H,)),
            "shift_h": Parameter(zeros, (4 * H,)),
            "scale_c": Parameter(ones, (H,)),
            "shift_c": Parameter(zeros, (H,)),
        }

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return layer_norm_cell(params, state, x, self.activations, self.epsilon)
