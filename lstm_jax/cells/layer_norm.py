"""The LSTM with layer normalisation."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import LSTMFamilyCell, Parameter, blocks, dot, like
from lstm_jax.cells.lstm import LSTMState


def layer_norm(
    a: jax.Array, scale: jax.Array, shift: jax.Array, epsilon: float = 1e-5
) -> jax.Array:
    """``(a - mean) / sqrt(variance + epsilon) ∘ scale + shift`` over the last axis.

    >>> import jax.numpy as jnp
    >>> layer_norm(jnp.array([1.0, 3.0]), jnp.ones(2), jnp.zeros(2), epsilon=0.0).tolist()
    [-1.0, 1.0]
    """
    centred = a - a.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + shift


def layer_norm_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
    *,
    epsilon: float = 1e-5,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the layer-normalised LSTM.

    With LN(z; α, β) = (z - mean) / deviation ∘ α + β, taken over all 4H features at once::

        (i, f, g, o) = LN(W x_t; α_x, β_x) + LN(U h_{t-1}; α_h, β_h) + b
        c_t = σ(f) ∘ c_{t-1} + σ(i) ∘ tanh(g)
        h_t = σ(o) ∘ tanh(LN(c_t; α_c, β_c))

    The state keeps c_t as it is, not normalised.

    Args:
      params: ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)``, ``b`` ``(4H,)``, gates in the order
        i, f, g, o; ``scale_x``, ``shift_x``, ``scale_h``, ``shift_h`` ``(4H,)`` and
        ``scale_c``, ``shift_c`` ``(H,)``, the α and β.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; σ, tanh and tanh, and no clipping.
      epsilon: added to each variance.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = LayerNormLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = layer_norm_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (3,)

    References:
      Jimmy Lei Ba, Jamie Ryan Kiros, Geoffrey E. Hinton, "Layer Normalization",
      arXiv:1607.06450, 2016, supplementary material, equations 20-22 (whose sum, without
      epsilon, is the same).
    """
    p = params
    z = layer_norm(dot(x, p["w_ih"]), p["scale_x"], p["shift_x"], epsilon)
    z = z + layer_norm(dot(state.h, p["w_hh"]), p["scale_h"], p["shift_h"], epsilon) + p["b"]
    i, f, g, o = jnp.split(z, 4, -1)
    c = a.clip(a.gate(f) * state.c + a.gate(i) * a.candidate(g))
    h = a.gate(o) * a.output(layer_norm(c, p["scale_c"], p["shift_c"], epsilon))
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class LayerNormLSTMCell(LSTMFamilyCell):
    """Sizes and options of a layer-normalised LSTM; its equations: :func:`layer_norm_cell`.

    Parameters are those of :class:`LSTMCell`, ``scale_x``, ``shift_x``, ``scale_h``,
    ``shift_h`` ``(4H,)``, and ``scale_c``, ``shift_c`` ``(H,)``, beginning with ones and zeros;
    options are those of :class:`LSTMFamilyCell` and this.

    Attributes:
      epsilon: added to each variance.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax
      >>> params = LayerNormLSTMCell(hidden_size=4).init(jax.random.key(0), input_size=2)
      >>> params["scale_x"].shape, params["shift_c"].shape
      ((16,), (4,))
    """

    epsilon: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, int | float):
            raise TypeError(f"epsilon must be a number, got {self.epsilon!r}")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros
        return {
            "w_ih": Parameter(blocks(self.kernel_init, 4), (D, 4 * H)),
            "w_hh": Parameter(blocks(self.recurrent_kernel_init, 4), (H, 4 * H)),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,)),
            "scale_x": Parameter(ones, (4 * H,)),
            "shift_x": Parameter(zeros, (4 * H,)),
            "scale_h": Parameter(ones, (4 * H,)),
            "shift_h": Parameter(zeros, (4 * H,)),
            "scale_c": Parameter(ones, (H,)),
            "shift_c": Parameter(zeros, (H,)),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        """``h`` and ``c`` of zeros, each ``[*batch_shape, H]``; ``c`` in float32 or wider."""
        shape = (*batch_shape, self.hidden_size)
        return LSTMState(h=self.zeros(*shape), c=self.zeros(*shape, accumulated=True))

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return layer_norm_cell(params, state, x, self.activations, epsilon=self.epsilon)
