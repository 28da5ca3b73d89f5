"""The first LSTM: no forget gate, and cells in blocks behind shared gates."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import Activation, Activations
from lstm_jax.cells.base import LSTMFamilyCell, Parameter, affine, like
from lstm_jax.cells.lstm import LSTMState


def squash_input(x: jax.Array) -> jax.Array:
    """g of the paper, 4 σ(x) - 2, with values in [-2, 2] (equation 5 of its appendix)."""
    return 4.0 * jax.nn.sigmoid(x) - 2.0


def squash_state(x: jax.Array) -> jax.Array:
    """h of the paper, 2 σ(x) - 1, with values in [-1, 1] (equation 4 of its appendix)."""
    return 2.0 * jax.nn.sigmoid(x) - 1.0


AS_PUBLISHED = Activations(candidate=squash_input, output=squash_state)


def lstm_1997_cell(
    params: dict[str, jax.Array], state: LSTMState, x: jax.Array, a: Activations = AS_PUBLISHED
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the LSTM of 1997.

    With g(x) = 4σ(x) - 2 and h(x) = 2σ(x) - 1, and n blocks of S = H / n cells each, of which
    each has one input and one output gate::

        y^in_t  = σ(W_in x_t + U_in y^c_{t-1} + b_in)           one a block
        y^out_t = σ(W_out x_t + U_out y^c_{t-1} + b_out)        one a block
        s_t     = s_{t-1} + y^in_t ∘ g(W_c x_t + U_c y^c_{t-1} + b_c)
        y^c_t   = y^out_t ∘ h(s_t)

    s is ``state.c``, y^c ``state.h``; cells of a block lie side by side.  The gates read the
    cells' outputs and not one another, which the paper leaves open.

    Args:
      params: ``w_ih`` ``(D, 2n + H)``, ``w_hh`` ``(H, 2n + H)``, ``b`` ``(2n + H,)``, columns in
        the order input gates (n), cells (H), output gates (n).
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; the paper's.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and ``y = y^c_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = LSTM1997Cell(hidden_size=4, block_size=2)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = lstm_1997_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape
      (4,)

    References:
      Sepp Hochreiter, Jürgen Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8),
      1997, section 4 and appendix A.1.
    """
    size = state.c.shape[-1]
    z = affine(params, state.h, x)
    blocks = (z.shape[-1] - size) // 2
    i, g, o = jnp.split(z, [blocks, blocks + size], -1)
    i, o = (jnp.repeat(a.gate(gate), size // blocks, -1) for gate in (i, o))
    c = a.clip(state.c + i * a.candidate(g))
    h = o * a.output(c)
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class LSTM1997Cell(LSTMFamilyCell):
    """Sizes and options of the LSTM of 1997; its equations are :func:`lstm_1997_cell`.

    Parameters are ``w_ih`` ``(D, 2n + H)``, ``w_hh`` ``(H, 2n + H)`` and ``b`` ``(2n + H,)``
    with n = H / ``block_size``, columns in the order input gates, cells, output gates.
    Options are those of :class:`LSTMFamilyCell`, ``activation_fn`` and ``output_fn`` being the
    paper's by default, but for ``forget_bias`` and ``chrono``: there is no forget gate.

    Attributes:
      block_size: S, the cells behind each pair of gates; divides H.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax
      >>> cell = LSTM1997Cell(hidden_size=4, block_size=2)
      >>> {name: array.shape for name, array in cell.init(jax.random.key(0), 3).items()}
      {'w_ih': (3, 8), 'w_hh': (4, 8), 'b': (8,)}
    """

    activation_fn: Activation = squash_input
    output_fn: Activation | None = squash_state
    forget_bias: float = 0.0
    block_size: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name in ("forget_bias", "chrono"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} has no forget gate to act on in LSTM1997Cell, got "
                    f"{getattr(self, name)}"
                )
        if isinstance(self.block_size, bool) or not isinstance(self.block_size, int):
            raise TypeError(f"block_size must be an int, got {self.block_size!r}")
        if self.block_size < 1 or self.hidden_size % self.block_size:
            raise ValueError(
                f"block_size must divide hidden_size={self.hidden_size}, got {self.block_size}"
            )

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H, n = input_size, self.hidden_size, self.hidden_size // self.block_size

        def columns(init):
            def parts(key, shape, dtype):
                drawn = (
                    init(k, (*shape[:-1], width), dtype)
                    for k, width in zip(jax.random.split(key, 3), (n, H, n), strict=True)
                )
                return jnp.concatenate(list(drawn), -1)

            return parts

        return {
            "w_ih": Parameter(columns(self.kernel_init), (D, 2 * n + H)),
            "w_hh": Parameter(columns(self.recurrent_kernel_init), (H, 2 * n + H)),
            "b": Parameter(columns(self.bias_init), (2 * n + H,)),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        """``h`` and ``c`` of zeros, each ``[*batch_shape, H]``; ``c`` in float32 or wider."""
        shape = (*batch_shape, self.hidden_size)
        return LSTMState(h=self.zeros(*shape), c=self.zeros(*shape, accumulated=True))

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return lstm_1997_cell(params, state, x, self.activations)
