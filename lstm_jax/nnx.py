"""Flax nnx modules over the cells: they hold the parameters, the cells do the arithmetic."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax import cells, sequence
from lstm_jax.cells import LSTMState
from lstm_jax.cells.base import Initializer

__all__ = ["LSTM", "LSTMCell"]

_DEFAULTS = cells.LSTMCell(hidden_size=1)


class LSTMCell(nnx.RNNCellBase):
    """The standard LSTM as a cell for ``flax.nnx.RNN``.

    The equations, and the parameters ``w_ih`` ``(D, 4H)``, ``w_hh`` ``(H, 4H)`` and ``b``
    ``(4H,)`` with gates in the order i, f, g, o, are those of :func:`lstm_jax.lstm_cell`.
    The carry is an :class:`lstm_jax.LSTMState`.

    Args:
      in_features: D.
      hidden_features: H.
      kernel_init: draws each gate's input weights; Glorot-uniform.
      recurrent_kernel_init: draws each gate's recurrent weights; orthogonal.
      bias_init: draws each gate's bias; zeros.
      forget_bias: added to the forget gate's initial bias.
      dtype: type of the products; the cell state and every sum stay in float32 or wider.
      param_dtype: type in which parameters are stored.
      rngs: its stream ``params`` draws the parameters.

    Raises:
      TypeError, ValueError: a size is no positive integer.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> cell = LSTMCell(3, 4, rngs=nnx.Rngs(0))
      >>> nnx.RNN(cell)(jnp.ones((2, 5, 3))).shape  # [B, T, D] to [B, T, H]
      (2, 5, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        kernel_init: Initializer = _DEFAULTS.kernel_init,
        recurrent_kernel_init: Initializer = _DEFAULTS.recurrent_kernel_init,
        bias_init: Initializer = _DEFAULTS.bias_init,
        forget_bias: float = _DEFAULTS.forget_bias,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.cell = cells.LSTMCell(
            hidden_features,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            recurrent_kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            forget_bias=forget_bias,
        )
        params = self.cell.init(rngs.params(), in_features)
        self.w_ih = nnx.Param(params["w_ih"])
        self.w_hh = nnx.Param(params["w_hh"])
        self.b = nnx.Param(params["b"])

    @property
    def params(self) -> dict[str, jax.Array]:
        """The parameters as the functional cell takes them."""
        return {"w_ih": self.w_ih[...], "w_hh": self.w_hh[...], "b": self.b[...]}

    def __call__(self, carry: LSTMState, inputs: jax.Array) -> tuple[LSTMState, jax.Array]:  # type: ignore[override]
        """One step: ``(carry, y)``; ``inputs`` is ``[..., D]``, ``y`` ``[..., H]``."""
        return self.cell.step(self.params, carry, inputs)

    def initialize_carry(  # type: ignore[override]
        self,
        input_shape: tuple[int, ...],
        rngs: Any = None,
        carry_init: Initializer | None = None,
    ) -> LSTMState:
        """The state before the first step, for inputs of a shape ``[..., D]``.

        Args:
          input_shape: shape of one step's input.
          rngs: its stream ``carry`` (or the stream itself) draws the state where
            ``carry_init`` is given.
          carry_init: draws ``h`` and ``c``; zeros if None.
        """
        zeros = self.cell.zero_state(tuple(input_shape[:-1]))
        if carry_init is None:
            return zeros
        if rngs is None:
            raise ValueError("rngs must be given where carry_init is, got None")
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        return LSTMState(
            h=carry_init(stream(), zeros.h.shape, zeros.h.dtype),
            c=carry_init(stream(), zeros.c.shape, zeros.c.dtype),
        )

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input are features: the last one."""
        return 1


class LSTM(nnx.Module):
    """Stacked LSTM layers over a whole sequence.

    Args:
      in_features: D.
      hidden_features: H of every layer.
      num_layers: L.
      dropout: probability with which outputs between layers are zeroed, in calls that are
        given ``rngs``.
      time_major: whether time is the first axis of inputs and outputs (``[T, ..., D]``)
        and not the last but one (``[..., T, D]``).
      dtype, param_dtype: as in :class:`LSTMCell`.
      rngs: its stream ``params`` draws the parameters.

    Raises:
      TypeError, ValueError: a size is no positive integer or ``dropout`` lies outside [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> lstm = LSTM(3, 4, num_layers=2, rngs=nnx.Rngs(0))
      >>> carry, ys = lstm(jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 2]), return_carry=True)
      >>> ys.shape, carry["layer_1"].h.shape
      ((2, 5, 4), (2, 4))
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        num_layers: int = 1,
        *,
        dropout: float = 0.0,
        time_major: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.layer = sequence.LSTM(
            hidden_features, num_layers, dropout=dropout, dtype=dtype, param_dtype=param_dtype
        )
        self.time_major = time_major
        for n, name in enumerate(self.layer.layers):
            size = in_features if n == 0 else hidden_features
            cell = LSTMCell(size, hidden_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            setattr(self, name, cell)

    @property
    def params(self) -> dict[str, dict[str, jax.Array]]:
        """The parameters as the functional layer takes them."""
        return {name: getattr(self, name).params for name in self.layer.layers}

    def __call__(
        self,
        xs: jax.Array,
        *,
        initial_carry: dict[str, LSTMState] | None = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Any:
        """The stack over a sequence.

        Args:
          xs: ``[..., T, D]``, or ``[T, ..., D]`` where ``time_major``.
          initial_carry: each layer's state before the first step, by name; zeros if None.
          seq_lengths: how many steps of each row count, as in :func:`lstm_jax.unroll`.
          return_carry: whether the last states are returned, too.
          rngs: its stream ``dropout`` switches dropout on.

        Returns:
          The top layer's outputs, laid out as ``xs``; with ``return_carry`` the pair
          ``(carry, outputs)``.

        Raises:
          ValueError: ``xs`` has fewer than two axes, or as in :func:`lstm_jax.unroll`.
        """
        if xs.ndim < 2:
            layout = "[T, ..., D]" if self.time_major else "[..., T, D]"
            raise ValueError(f"xs must be {layout}, got shape {xs.shape}")
        key = None if rngs is None else rngs.dropout()
        if not self.time_major:
            xs = jnp.moveaxis(xs, -2, 0)
        carry, ys = self.layer.apply(self.params, xs, initial_carry, lengths=seq_lengths, key=key)
        if not self.time_major:
            ys = jnp.moveaxis(ys, 0, -2)
        return (carry, ys) if return_carry else ys
