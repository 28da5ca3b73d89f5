"""The Mogrifier LSTM: input and hidden state gate each other before the LSTM step."""

import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import (
    LSTMFamilyCell,
    Parameter,
    check_size,
    dot,
    like,
    named,
)
from lstm_jax.cells.lstm import LSTMState, lstm_cell

MOST_ROUNDS = 100


def mogrifier_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
    rounds: int = 5,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the Mogrifier LSTM.

    With σ the logistic function and ∘ the element-wise product, in rounds r = 1, 2, ...::

        x = 2σ(Q_r h) ∘ x    for odd r
        h = 2σ(R_r x) ∘ h    for even r

    starting from x_t and h_{t-1}.  Then (h_t, c_t) = LSTM(x, h, c_{t-1}), where LSTM is
    :func:`lstm_cell`.  With a rank, each matrix is a product of two factors.

    Args:
      params: ``w_q{r}`` ``(H, D)`` for odd r, ``w_r{r}`` ``(D, H)`` for even r, each optionally
        as two factors, ``w_q{r}_left`` ``(H, k)`` and ``w_q{r}_right`` ``(k, D)``; and the LSTM's
        ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)``, ``b`` ``(4H,)``, gates in the order
        i, f, g, o.
      state: ``h`` and ``c``, each ``[..., H]``.
      x: the input of this step, ``[..., D]``.
      a: the element-wise functions; by default σ (also in the rounds), tanh, tanh and no clipping.
      rounds: the number of rounds; 0 for a standard LSTM.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and the output
      ``y = h_t``, ``[..., H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = MogrifierLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = mogrifier_cell(params, cell.zero_state(), jnp.ones(2))
      >>> y.shape, bool((y == state.h).all())
      ((3,), True)

    References:
      Gábor Melis, Tomáš Kočiský, Phil Blunsom, "Mogrifier LSTM", ICLR 2020 (arXiv:1909.01792),
      where ``w_q{r}`` and ``w_r{r}`` are transposed.
    """

    def gated(v: jax.Array, z: jax.Array) -> jax.Array:
        return like(2.0 * a.gate(z) * like(v, z), v)

    h = state.h
    x = x.astype(jnp.result_type(x, params["w_ih"]))  # the gated input is not integral
    for r in range(1, rounds + 1):
        if r % 2:
            x = named(f"x_{r}", gated(x, product(h, params, f"w_q{r}")))
        else:
            h = named(f"h_{r}", gated(h, product(x, params, f"w_r{r}")))
    return lstm_cell(params, state._replace(h=h), x, a)


def product(v: jax.Array, params: dict[str, jax.Array], name: str) -> jax.Array:
    """``v @ w``, where w is the parameter of this name or the product of its two factors."""
    if name in params:
        return dot(v, params[name])
    return dot(like(dot(v, params[f"{name}_left"]), v), params[f"{name}_right"])


@dataclasses.dataclass(frozen=True)
class MogrifierLSTMCell(LSTMFamilyCell):
    """Sizes and options of a Mogrifier LSTM; its equations are :func:`mogrifier_cell`.

    Parameters are ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)`` and ``b`` ``(4H,)`` with gates in
    the order i, f, g, o.  ``recurrent_kernel_init`` also initialises ``w_q{r}`` ``(H, D)`` for odd
    rounds r, and ``kernel_init`` ``w_r{r}`` ``(D, H)`` for even rounds.  With a rank, the two
    factors ``..._left`` and ``..._right`` replace each of these.  Options are those of
    :class:`LSTMFamilyCell` and the following.

    Attributes:
      rounds: the number of times that input and hidden state gate each other, at most
        ``MOST_ROUNDS``; 0 for a standard LSTM.
      rank: k, the rank of the matrices of these gates; None for full rank.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = MogrifierLSTMCell(hidden_size=4, rounds=2, rank=1)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> [name for name in params if name not in ("w_ih", "w_hh", "b")]
      ['w_q1_left', 'w_q1_right', 'w_r2_left', 'w_r2_right']
      >>> state, y = cell.step(params, cell.zero_state((5,)), jax.numpy.ones((5, 3)))
      >>> y.shape
      (5, 4)
    """

    _: dataclasses.KW_ONLY
    rounds: int = 5
    rank: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int):
            raise TypeError(f"rounds must be an int, got {self.rounds!r}")
        if not 0 <= self.rounds <= MOST_ROUNDS:
            raise ValueError(
                f"rounds must be at least 0 and at most {MOST_ROUNDS}, got {self.rounds}"
            )
        if self.rank is not None:
            check_size("rank", self.rank)

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        """Names of the weights that multiply the previous hidden state, gated or not."""
        suffix = "" if self.rank is None else "_left"
        return ("w_hh", *(f"w_q{r}{suffix}" for r in range(1, self.rounds + 1, 2)))

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H = input_size, self.hidden_size
        parameters = {
            "w_ih": self.declare("kernel", (D, 4 * H), gates=4),
            "w_hh": self.declare("recurrent_kernel", (H, 4 * H), gates=4),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,), "bias"),
        }
        for r in range(1, self.rounds + 1):
            if r % 2:
                parameters |= self.factors(f"w_q{r}", "recurrent_kernel", H, D)
            else:
                parameters |= self.factors(f"w_r{r}", "kernel", D, H)
        return parameters

    def factors(self, name: str, role: str, rows: int, columns: int) -> dict[str, Parameter]:
        """Declares a matrix ``(rows, columns)``, or its two factors if there is a rank."""
        if self.rank is None:
            return {name: self.declare(role, (rows, columns))}
        return {
            f"{name}_left": self.declare(role, (rows, self.rank)),
            f"{name}_right": self.declare(role, (self.rank, columns)),
        }

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return mogrifier_cell(params, state, x, self.activations, self.rounds)
