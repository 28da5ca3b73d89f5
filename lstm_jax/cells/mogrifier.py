"""The LSTM whose input and state gate each other before every step."""

import dataclasses

import jax

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import LSTMFamilyCell, Parameter, blocks, check_size, dot, like
from lstm_jax.cells.lstm import LSTMState, lstm_cell


def mogrifier_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
    *,
    rounds: int = 5,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the Mogrifier LSTM.

    Before the step of an LSTM, with x^{-1} = x_t and h^0 = h_{t-1}::

        x^i = 2σ(Q^i h^{i-1}) ∘ x^{i-2}        for odd i in 1, ..., rounds
        h^i = 2σ(R^i x^{i-1}) ∘ h^{i-2}        for even i

    and the LSTM reads the last x and h.  With a rank k, Q^i and R^i are products of two
    narrow matrices.

    Args:
      params: ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)``, ``b`` ``(4H,)``, gates in the order
        i, f, g, o; for each odd round n ``w_q{n}`` ``(H, D)``, for each even one ``w_r{n}``
        ``(D, H)``; in place of either, with a rank, ``..._left`` ``(H or D, k)`` and
        ``..._right`` ``(k, D or H)``.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; σ, tanh and tanh, and no clipping.
      rounds: how often input or state is gated.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = MogrifierLSTMCell(hidden_size=3, rounds=2)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = mogrifier_cell(params, cell.zero_state(), jnp.ones(2), rounds=2)
      >>> y.shape
      (3,)

    References:
      Gábor Melis, Tomáš Kočiský, Phil Blunsom, "Mogrifier LSTM", ICLR 2020, section 2,
      equations 1 and 2.
    """

    def gated(name: str, by: jax.Array, what: jax.Array) -> jax.Array:
        if name in params:
            z = dot(by, params[name])
        else:
            narrow = dot(by, params[f"{name}_left"]).astype(by.dtype)
            z = dot(narrow, params[f"{name}_right"])
        return (2.0 * a.gate(z) * what).astype(what.dtype)

    h = state.h
    for n in range(1, rounds + 1):
        if n % 2:
            x = gated(f"w_q{n}", h, x)
        else:
            h = gated(f"w_r{n}", x, h)
    new, _ = lstm_cell(params, state._replace(h=h), x, a)
    state = like(new, state)
    return state, state.h


@dataclasses.dataclass(frozen=True)
class MogrifierLSTMCell(LSTMFamilyCell):
    """Sizes and options of a Mogrifier LSTM; its equations are :func:`mogrifier_cell`.

    Parameters are those of :class:`LSTMCell` and for each round n from 1 on ``w_q{n}``
    ``(H, D)`` where n is odd, ``w_r{n}`` ``(D, H)`` where it is even (or their factors
    ``..._left`` and ``..._right``); options are those of :class:`LSTMFamilyCell` and these.

    Attributes:
      rounds: how often input or state is gated by the other, at least 0.
      rank: k, the width of the two factors of each Q and R; None for whole matrices.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax
      >>> cell = MogrifierLSTMCell(hidden_size=4, rounds=2, rank=1)
      >>> list(cell.init(jax.random.key(0), input_size=2))[3:]
      ['w_q1_left', 'w_q1_right', 'w_r2_left', 'w_r2_right']
    """

    rounds: int = 5
    rank: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int):
            raise TypeError(f"rounds must be an int, got {self.rounds!r}")
        if self.rounds < 0:
            raise ValueError(f"rounds must be at least 0, got {self.rounds}")
        if self.rank is not None:
            check_size("rank", self.rank)

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        parameters = {
            "w_ih": Parameter(blocks(self.kernel_init, 4), (D, 4 * H)),
            "w_hh": Parameter(blocks(self.recurrent_kernel_init, 4), (H, 4 * H)),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,)),
        }
        for n in range(1, self.rounds + 1):
            name, rows, columns = (f"w_q{n}", H, D) if n % 2 else (f"w_r{n}", D, H)
            if self.rank is None:
                parameters[name] = Parameter(self.kernel_init, (rows, columns))
            else:
                parameters[f"{name}_left"] = Parameter(self.kernel_init, (rows, self.rank))
                parameters[f"{name}_right"] = Parameter(self.kernel_init, (self.rank, columns))
        return parameters

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        """``h`` and ``c`` of zeros, each ``[*batch_shape, H]``; ``c`` in float32 or wider."""
        shape = (*batch_shape, self.hidden_size)
        return LSTMState(h=self.zeros(*shape), c=self.zeros(*shape, accumulated=True))

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return mogrifier_cell(params, state, x, self.activations, rounds=self.rounds)
