"""The LSTM with a projection: many memory cells and a narrow hidden state."""

import dataclasses

import jax

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import (
    LSTMFamilyCell,
    Parameter,
    affine,
    check_size,
    dot,
    like,
    named,
)
from lstm_jax.cells.lstm import LSTMState, gates


def projected_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the LSTM with a recurrent projection (LSTMP).

    With σ the logistic function and ∘ the element-wise product::

        i_t = σ(W_i x_t + U_i h_{t-1} + b_i)
        f_t = σ(W_f x_t + U_f h_{t-1} + b_f)
        g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
        o_t = σ(W_o x_t + U_o h_{t-1} + b_o)
        c_t = f_t ∘ c_{t-1} + i_t ∘ g_t
        h_t = W_r (o_t ∘ tanh(c_t))

    Args:
      params: ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(P, 4H)``, ``b`` ``(4H,)``, gates in the order
        i, f, g, o; ``w_hr`` ``(H, P)``.
      state: ``h`` ``[..., P]`` and ``c`` ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ, tanh, tanh and no clipping.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and the output
      ``y = h_t``, ``[..., P]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = ProjectedLSTMCell(hidden_size=6, proj_size=2)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, y = projected_cell(params, cell.zero_state(), jnp.ones(3))
      >>> y.shape, state.c.shape
      ((2,), (6,))

    References:
      Haşim Sak, Andrew Senior, Françoise Beaufays, "Long Short-Term Memory Recurrent Neural
      Network Architectures for Large Scale Acoustic Modeling", Interspeech 2014, the LSTM
      with a recurrent projection layer.  The gates in the paper have peepholes.  These have none,
      as in PyTorch's ``LSTM(proj_size=...)``.
    """
    i, f, g, o = gates(affine(params, state.h, x), a)
    c = a.clip(f * state.c + i * g)
    m = named("m", o * a.output(c))
    h = dot(like(m, state.h), params["w_hr"])
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class ProjectedLSTMCell(LSTMFamilyCell):
    """Sizes and options of an LSTM with a projection; its equations are :func:`projected_cell`.

    Parameters are ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(P, 4H)`` and ``b`` ``(4H,)`` with gates in
    the order i, f, g, o, and ``w_hr`` ``(H, P)``, which ``recurrent_kernel_init`` initialises.
    Options are those of :class:`LSTMFamilyCell` and the following.

    Attributes:
      proj_size: P, the number of features of ``h`` and of the output; None for half of H, rounded
        up.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = ProjectedLSTMCell(hidden_size=4)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (3, 16), 'w_hh': (2, 16), 'b': (16,), 'w_hr': (4, 2)}
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 3)))
      >>> y.shape
      (5, 2)
    """

    _: dataclasses.KW_ONLY
    proj_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.proj_size is not None:
            check_size("proj_size", self.proj_size)

    @property
    def output_size(self) -> int:
        """P, the number of output features."""
        return (self.hidden_size + 1) // 2 if self.proj_size is None else self.proj_size

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H, P = input_size, self.hidden_size, self.output_size
        return {
            "w_ih": self.declare("kernel", (D, 4 * H), gates=4),
            "w_hh": self.declare("recurrent_kernel", (P, 4 * H), gates=4),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,), "bias"),
            "w_hr": self.declare("recurrent_kernel", (H, P)),
        }

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return projected_cell(params, state, x, self.activations)
