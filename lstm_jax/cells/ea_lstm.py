"""The LSTM whose input gate depends only on static features."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import LSTMFamilyCell, Parameter, check_size, dot, like, named
from lstm_jax.cells.lstm import LSTMState


def ea_lstm_cell(
    params: dict[str, jax.Array], state: LSTMState, x: jax.Array, a: Activations = STANDARD
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the entity-aware LSTM.

    With the input x_t = (x_d, x_s), dynamic features followed by static ones::

        i   = σ(W_i x_s + b_i)
        f_t = σ(W_f x_d + U_f h_{t-1} + b_f)
        g_t = tanh(W_g x_d + U_g h_{t-1} + b_g)
        o_t = σ(W_o x_d + U_o h_{t-1} + b_o)
        c_t = f_t ∘ c_{t-1} + i ∘ g_t
        h_t = o_t ∘ tanh(c_t)

    The static features are part of every step's input, so that resets, packed rows and
    streams can change the entity.  As long as they are constant, so is i.

    Args:
      params: ``w_si`` ``(S, H)``; ``w_ih`` ``(D - S, 3H)`` and ``w_hh`` ``(H, 3H)`` in the order
        f, g, o; ``b`` ``(4H,)`` in the order i, f, g, o.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``; the last S features are static.
      a: the element-wise functions; by default σ, tanh, tanh and no clipping.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = EntityAwareLSTMCell(hidden_size=3, static_size=2)
      >>> params = cell.init(jax.random.key(0), input_size=5)
      >>> state, y = ea_lstm_cell(params, cell.zero_state(), jnp.ones(5))
      >>> y.shape
      (3,)

    References:
      Frederik Kratzert et al., "Towards learning universal, regional, and local hydrological
      behaviors via machine learning applied to large-sample datasets", Hydrology and Earth
      System Sciences 23, 2019, the equations of the EA-LSTM.
    """
    size = params["w_hh"].shape[0]
    dynamic, static = jnp.split(x, [params["w_ih"].shape[0]], -1)
    i = dot(static, params["w_si"])
    i = named("i", a.gate(i + params["b"][:size].astype(i.dtype)))
    z = dot(dynamic, params["w_ih"]) + dot(state.h, params["w_hh"])
    f, g, o = jnp.split(z + params["b"][size:].astype(z.dtype), 3, -1)
    f, g, o = named("f", a.gate(f)), named("g", a.candidate(g)), named("o", a.gate(o))
    c = a.clip(f * state.c + i * g)
    h = o * a.output(c)
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class EntityAwareLSTMCell(LSTMFamilyCell):
    """Sizes and options of an entity-aware LSTM; its equations are :func:`ea_lstm_cell`.

    Parameters are ``w_si`` ``(S, H)``, ``w_ih`` ``(D - S, 3H)`` and ``w_hh`` ``(H, 3H)`` in the
    order f, g, o, and ``b`` ``(4H,)`` in the order i, f, g, o.  Options are those of
    :class:`LSTMFamilyCell` and the following.  (The published experiments use ``forget_bias=5``.)

    Attributes:
      static_size: S, the number of static features, which are the last of the D input features.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = EntityAwareLSTMCell(hidden_size=4, static_size=2)
      >>> {name: array.shape for name, array in cell.init(jax.random.key(0), 5).items()}
      {'w_si': (2, 4), 'w_ih': (3, 12), 'w_hh': (4, 12), 'b': (16,)}
    """

    _: dataclasses.KW_ONLY
    static_size: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_size("static_size", self.static_size)

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H, S = input_size, self.hidden_size, self.static_size
        if D <= S:
            raise ValueError(f"input_size must be above static_size={S}, got {D}")
        return {
            "w_si": self.declare("kernel", (S, H)),
            "w_ih": self.declare("kernel", (D - S, 3 * H), gates=3),
            "w_hh": self.declare("recurrent_kernel", (H, 3 * H), gates=3),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,), "bias"),
        }

    def input_size(self, params: dict[str, jax.Array]) -> int | None:
        """D, including the static features."""
        dynamic = super().input_size(params)
        return None if dynamic is None else dynamic + self.static_size

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return ea_lstm_cell(params, state, x, self.activations)
