"""Stacks of cells as one functional layer."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lstm_jax.cells import LSTMCell, LSTMState
from lstm_jax.cells.base import check_size
from lstm_jax.sequence.unroll import unroll

LSTMParams = dict[str, dict[str, jax.Array]]
LSTMStates = dict[str, LSTMState]


def dropout(xs: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a fraction ``rate`` of ``xs`` and scales the rest by ``1 / (1 - rate)``.

    Args:
      xs: any array.
      rate: the probability, 0 <= rate < 1, with which an element becomes zero.
      key: a random key; None (no training) returns ``xs`` as they are.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> dropout(jnp.ones(8), 0.5, jax.random.key(0)).tolist().count(0.0) in range(9)
      True
      >>> dropout(jnp.ones(2), 0.5, None).tolist()
      [1.0, 1.0]

    References:
      Nitish Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
      Overfitting", JMLR 15, 2014.
    """
    if key is None or rate == 0.0:
        return xs
    keep = jax.random.bernoulli(key, 1.0 - rate, xs.shape)
    return jnp.where(keep, xs / jnp.asarray(1.0 - rate, xs.dtype), jnp.zeros_like(xs))


@dataclasses.dataclass(frozen=True)
class LSTM:
    """Stacked LSTM layers; each reads the outputs of the one below.

    Attributes:
      hidden_size: H, the number of hidden features of every layer.
      num_layers: L.
      dropout: probability with which each output of a layer but the last is zeroed on its
        way up (Zaremba et al. 2014); at work only where ``apply`` is given a ``key``.
      dtype: type of the products, as in :class:`LSTMCell`.
      param_dtype: type in which parameters are stored.
      cell: builds each layer's cell from ``hidden_size``, ``dtype`` and ``param_dtype``.
        ``functools.partial(LSTMCell, forget_bias=2.0)``, say, replaces an initialiser.
      engine: how each layer runs over time, as in :func:`unroll`.

    Raises:
      TypeError, ValueError: a size is no positive integer or ``dropout`` lies outside [0, 1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lstm = LSTM(hidden_size=4, num_layers=2)
      >>> params = lstm.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstm.apply(params, jnp.ones((7, 5, 3)))  # T=7, B=5, D=3
      >>> ys.shape, sorted(state)
      ((7, 5, 4), ['layer_0', 'layer_1'])

    References:
      Wojciech Zaremba, Ilya Sutskever, Oriol Vinyals, "Recurrent Neural Network
      Regularization", arXiv:1409.2329, 2014, equation 4 (dropout between layers only).
    """

    hidden_size: int
    num_layers: int = 1
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = "float32"
    cell: type[LSTMCell] = LSTMCell
    engine: str = "auto"

    def __post_init__(self):
        check_size("hidden_size", self.hidden_size)
        if isinstance(self.num_layers, bool) or not isinstance(self.num_layers, int):
            raise TypeError(f"num_layers must be an int, got {self.num_layers!r}")
        if self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    @property
    def layers(self) -> dict[str, LSTMCell]:
        """The cell of each layer, by name, from the bottom up."""
        cell = self.cell(self.hidden_size, dtype=self.dtype, param_dtype=self.param_dtype)
        return {f"layer_{n}": cell for n in range(self.num_layers)}

    def init(self, key: jax.Array, input_size: int) -> LSTMParams:
        """The parameters of each layer's cell, by the layer's name."""
        check_size("input_size", input_size)
        keys = jax.random.split(key, self.num_layers)
        sizes = [input_size] + [self.hidden_size] * (self.num_layers - 1)
        return {
            name: cell.init(k, size)
            for (name, cell), k, size in zip(self.layers.items(), keys, sizes, strict=True)
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMStates:
        """A zero state for each layer, by the layer's name."""
        return {name: cell.zero_state(batch_shape) for name, cell in self.layers.items()}

    def apply(
        self,
        params: LSTMParams,
        xs: jax.Array,
        state: LSTMStates | None = None,
        *,
        lengths: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[LSTMStates, jax.Array]:
        """The stack over a sequence.

        Args:
          params: as from :meth:`init`.
          xs: ``[T, ..., D]``.
          state: the state of each layer before the first step; zeros if None.
          lengths: as in :func:`unroll`.
          key: random key for dropout; None switches dropout off.

        Returns:
          ``(state, ys)``: each layer's last state by its name, and the top layer's outputs
          ``[T, ..., H]``.

        Raises:
          TypeError: ``params`` or ``state`` do not name this stack's layers.
          ValueError: as in :func:`unroll`.
        """
        for name, tree in (("params", params), ("state", state)):
            if tree is not None and set(tree) != set(self.layers):
                raise TypeError(
                    f"{name} must have one entry a layer, {', '.join(self.layers)}, "
                    f"got {', '.join(map(str, tree))}"
                )
        ys, last = xs, {}
        for n, (name, cell) in enumerate(self.layers.items()):
            if n > 0:
                layer_key = None if key is None else jax.random.fold_in(key, n)
                ys = dropout(ys, self.dropout, layer_key)
            last[name], ys = unroll(
                cell,
                params[name],
                ys,
                None if state is None else state[name],
                lengths=lengths,
                engine=self.engine,
            )
        return last, ys
