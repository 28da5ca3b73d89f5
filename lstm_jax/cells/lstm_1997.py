"""The LSTM of 1997: no forget gate, and blocks of memory cells that share their gates."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import Activation, Activations
from lstm_jax.cells.base import (
    LSTMFamilyCell,
    Parameter,
    affine,
    check_size,
    check_unset,
    like,
    named,
)
from lstm_jax.cells.lstm import LSTMState


def input_squashing(x: jax.Array) -> jax.Array:
    """The paper's g(x) = 4σ(x) - 2, computed as 2 tanh(x/2) to avoid cancellation near 0."""
    return 2.0 * jnp.tanh(0.5 * x)


def output_squashing(x: jax.Array) -> jax.Array:
    """The paper's h(x) = 2σ(x) - 1, computed as tanh(x/2) to avoid cancellation near 0."""
    return jnp.tanh(0.5 * x)


ORIGINAL = Activations(candidate=input_squashing, output=output_squashing)
"""σ, 4σ - 2, 2σ - 1 and no clipping."""


def lstm_1997_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = ORIGINAL,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the LSTM as it was first published.

    For each memory cell v of a block j, with σ the logistic function, and with one value of i
    and of o for the whole block::

        i_j(t) = σ(W_i x(t) + U_i h(t-1) + b_i)_j
        o_j(t) = σ(W_o x(t) + U_o h(t-1) + b_o)_j
        c_jv(t) = c_jv(t-1) + i_j(t) g((W_g x(t) + U_g h(t-1) + b_g)_jv)
        h_jv(t) = o_j(t) h(c_jv(t))

    where g(z) = 4σ(z) - 2 and h(c) = 2σ(c) - 1.  Without a forget gate, the cell state only
    accumulates.  Reset it between sequences.

    Args:
      params: ``w_ih`` ``(D, 2n + H)``, ``w_hh`` ``(H, 2n + H)``, ``b`` ``(2n + H,)`` for n
        blocks, with columns i (n), g (H), o (n).  The cells of a block are adjacent.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ, the paper's g and h, and no clipping.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and the output
      ``y = h(t)``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = LSTM1997Cell(hidden_size=4, block_size=2)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, y = lstm_1997_cell(params, cell.zero_state(), jnp.ones(3))
      >>> y.shape, bool((y == state.h).all())
      ((4,), True)

    References:
      Sepp Hochreiter, Jürgen Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8),
      1997.  In the paper, gates may also read each other, the error is truncated where it leaves
      a memory cell, and output gates are initialised with negative biases.  Here, gates read only
      x and h, gradients are exact, and ``bias_init`` initialises all biases.
    """
    z = affine(params, state.h, x)
    H = state.c.shape[-1]
    n = (z.shape[-1] - H) // 2
    i, g, o = jnp.split(z, [n, n + H], -1)
    i, g, o = named("i", a.gate(i)), named("g", a.candidate(g)), named("o", a.gate(o))
    i, o = (jnp.repeat(gate, H // n, -1) for gate in (i, o))
    c = a.clip(state.c + i * g)
    h = o * a.output(c)
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class LSTM1997Cell(LSTMFamilyCell):
    """Sizes and options of the LSTM of 1997; its equations are :func:`lstm_1997_cell`.

    Parameters are ``w_ih`` ``(D, 2n + H)``, ``w_hh`` ``(H, 2n + H)`` and ``b`` ``(2n + H,)``
    for n = H / block_size blocks, with columns i (n), g (H), o (n).  Options are those of
    :class:`LSTMFamilyCell`, of which ``forget_bias`` and ``chrono`` must have their defaults,
    and the following.

    Attributes:
      block_size: number of memory cells that share an input and an output gate; divides H.
      activation_fn: by default the paper's g = 4σ - 2.
      output_fn: by default the paper's h = 2σ - 1; ``activation_fn`` if None.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = LSTM1997Cell(hidden_size=4, block_size=2)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> {name: array.shape for name, array in params.items()}
      {'w_ih': (3, 8), 'w_hh': (4, 8), 'b': (8,)}
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 3)))
      >>> y.shape
      (5, 4)
    """

    _: dataclasses.KW_ONLY
    activation_fn: Activation = input_squashing
    output_fn: Activation | None = output_squashing
    block_size: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_unset(self, "LSTM1997Cell has no forget gate", forget_bias=0.0, chrono=None)
        check_size("block_size", self.block_size)
        if self.hidden_size % self.block_size:
            raise ValueError(
                f"block_size must divide hidden_size={self.hidden_size}, got {self.block_size}"
            )

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H, n = input_size, self.hidden_size, self.hidden_size // self.block_size
        widths = (n, H, n)
        return {
            "w_ih": self.declare("kernel", (D, 2 * n + H), gates=widths),
            "w_hh": self.declare("recurrent_kernel", (H, 2 * n + H), gates=widths),
            "b": self.declare("bias", (2 * n + H,), gates=widths),
        }

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return lstm_1997_cell(params, state, x, self.activations)
