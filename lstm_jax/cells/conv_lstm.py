"""The convolutional LSTM: features at each place of a grid, which reads its surroundings."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import (
    Initializer,
    LSTMFamilyCell,
    Parameter,
    accumulation_dtype,
    blocks,
    check_size,
    like,
    zeros,
)
from lstm_jax.cells.lstm import LSTMState


def conv_lstm_cell(
    params: dict[str, jax.Array],
    state: LSTMState,
    x: jax.Array,
    a: Activations = STANDARD,
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the convolutional LSTM.

    With σ the logistic function, ∘ the element-wise product and * a convolution of stride 1
    around each place, zeros outside::

        i_t = σ(W_i * x_t + U_i * h_{t-1} + p_i ∘ c_{t-1} + b_i)
        f_t = σ(W_f * x_t + U_f * h_{t-1} + p_f ∘ c_{t-1} + b_f)
        g_t = tanh(W_g * x_t + U_g * h_{t-1} + b_g)
        c_t = f_t ∘ c_{t-1} + i_t ∘ g_t
        o_t = σ(W_o * x_t + U_o * h_{t-1} + p_o ∘ c_t + b_o)
        h_t = o_t ∘ tanh(c_t)

    Args:
      params: ``w_ih`` ``(*k, D, 4H)``, ``w_hh`` ``(*k, H, 4H)``, ``b`` ``(4H,)`` in the order i,
        f, g, o, with k the size of the kernel along each spatial axis; where there are
        peepholes also ``p_i``, ``p_f``, ``p_o``, ``(H,)`` or ``(*space, H)``.
      state: ``h`` and ``c``, each ``[..., *space, H]``.
      x: the input of this step, ``[..., *space, D]``.
      a: the element-wise functions; σ, tanh and tanh, and no clipping.

    Returns:
      ``(state, y)``: the new state, in the types of the old one, and the output
      ``y = h_t``, ``[..., *space, H]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = ConvLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> state, y = conv_lstm_cell(params, cell.zero_state((7, 6)), jnp.ones((7, 6, 2)))
      >>> y.shape, bool((y == state.h).all())
      ((7, 6, 3), True)

    References:
      Xingjian Shi et al., "Convolutional LSTM Network: A Machine Learning Approach for
      Precipitation Nowcasting", NeurIPS 2015, section 3.1.  There a peephole has a weight for
      each place; without, and with one weight for all places, are common since.
    """

    def peep(gate: str, c: jax.Array) -> jax.Array | float:
        return params[f"p_{gate}"].astype(c.dtype) * c if f"p_{gate}" in params else 0.0

    z = convolve(x, params["w_ih"]) + convolve(state.h, params["w_hh"])
    i, f, g, o = jnp.split(z + params["b"].astype(z.dtype), 4, -1)
    i, f = a.gate(i + peep("i", state.c)), a.gate(f + peep("f", state.c))
    c = a.clip(f * state.c + i * a.candidate(g))
    h = a.gate(o + peep("o", c)) * a.output(c)
    state = like(LSTMState(h=h, c=c), state)
    return state, state.h


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """What lies around each place, weighted: zeros outside, one output a place.

    Multiplied in the operands' type and summed in float32 or wider, as ``dot`` does.

    Args:
      x: ``[..., *space, D]`` with 1, 2 or 3 spatial axes.
      w: ``(*k, D, N)``, a size of the kernel for each of them.

    Returns:
      ``[..., *space, N]``.

    >>> import jax.numpy as jnp
    >>> convolve(jnp.array([[1.0], [2.0], [3.0]]), jnp.ones((3, 1, 1)))[:, 0].tolist()
    [3.0, 6.0, 5.0]
    """
    rank = w.ndim - 2
    batch, place = x.shape[: -rank - 1], x.shape[-rank - 1 :]
    space = "DHW"[-rank:]
    dtype = jnp.result_type(x, w)
    y = jax.lax.conv_general_dilated(
        x.reshape(math.prod(batch), *place).astype(dtype),
        w.astype(dtype),
        window_strides=(1,) * rank,
        padding="SAME",
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        preferred_element_type=accumulation_dtype(dtype),
    )
    return y.reshape(*batch, *y.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvLSTMCell(LSTMFamilyCell):
    """Sizes and options of a convolutional LSTM; its equations are :func:`conv_lstm_cell`.

    Parameters are ``w_ih`` ``(*kernel_size, D, 4H)``, ``w_hh`` ``(*kernel_size, H, 4H)`` and
    ``b`` ``(4H,)`` with gates in the order i, f, g, o, and with peepholes ``p_i``, ``p_f`` and
    ``p_o``; options are those of :class:`LSTMFamilyCell` and these.  What other cells take
    for an axis of features are here the spatial axes and the features.

    Attributes:
      kernel_size: odd sizes, one for each of 1 to 3 spatial axes.
      peepholes: whether gates see the cell state.
      spatial_shape: size of each spatial axis where every place has peepholes of its own,
        ``(*spatial_shape, H)``, as in the paper; None for one ``(H,)`` for all places.
      peephole_init: draws each gate's peepholes; zeros.

    Raises:
      TypeError, ValueError: a size or option is impossible; the message names it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import unroll
      >>> cell = ConvLSTMCell(hidden_size=4, kernel_size=(3, 5), peepholes=True)
      >>> params = cell.init(jax.random.key(0), input_size=2)
      >>> {name: array.shape for name, array in params.items() if name != "b"}
      {'w_ih': (3, 5, 2, 16), 'w_hh': (3, 5, 4, 16), 'p_i': (4,), 'p_f': (4,), 'p_o': (4,)}
      >>> state, ys = unroll(cell, params, jnp.ones((7, 5, 9, 8, 2)))  # T=7, B=5, 9 by 8 places
      >>> ys.shape
      (7, 5, 9, 8, 4)
    """

    kernel_size: tuple[int, ...] = (3, 3)
    peepholes: bool = False
    spatial_shape: tuple[int, ...] | None = None
    peephole_init: Initializer = zeros

    def __post_init__(self):
        super().__post_init__()
        _check_sizes("kernel_size", self.kernel_size)
        if not 1 <= len(self.kernel_size) <= 3:
            raise ValueError(
                f"kernel_size must have 1 to 3 entries, one a spatial axis, got {self.kernel_size}"
            )
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(f"kernel_size must have odd entries, got {self.kernel_size}")
        if not isinstance(self.peepholes, bool):
            raise TypeError(f"peepholes must be True or False, got {self.peepholes!r}")
        if self.spatial_shape is not None:
            _check_sizes("spatial_shape", self.spatial_shape)
            if len(self.spatial_shape) != len(self.kernel_size):
                raise ValueError(
                    f"spatial_shape must have as many entries as kernel_size="
                    f"{self.kernel_size}, got {self.spatial_shape}"
                )
        for name, default in (("spatial_shape", None), ("peephole_init", zeros)):
            if not self.peepholes and getattr(self, name) is not default:
                raise ValueError(
                    f"{name} is for peepholes=True, got {getattr(self, name)} without peepholes"
                )

    @property
    def num_feature_axes(self) -> int:
        return 1 + len(self.kernel_size)

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H, k = input_size, self.hidden_size, self.kernel_size
        parameters = {
            "w_ih": Parameter(blocks(self.kernel_init, 4), (*k, D, 4 * H)),
            "w_hh": Parameter(blocks(self.recurrent_kernel_init, 4), (*k, H, 4 * H)),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,)),
        }
        if self.peepholes:
            peephole = Parameter(self.peephole_init, (*(self.spatial_shape or ()), H))
            parameters |= {"p_i": peephole, "p_f": peephole, "p_o": peephole}
        return parameters

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        """``h`` and ``c`` of zeros, each ``[*batch_shape, H]``; ``c`` in float32 or wider.

        Args:
          batch_shape: the batch axes and then the spatial ones.
        """
        shape = (*batch_shape, self.hidden_size)
        return LSTMState(h=self.zeros(*shape), c=self.zeros(*shape, accumulated=True))

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return conv_lstm_cell(params, state, x, self.activations)

    def check_x(self, params: dict[str, jax.Array], x: jax.Array) -> None:
        super().check_x(params, x)
        space = x.shape[-self.num_feature_axes : -1]
        if self.spatial_shape not in (None, space):
            raise ValueError(
                f"x must be [..., *space, D] with space={self.spatial_shape} (the cell's "
                f"spatial_shape), got shape {x.shape}"
            )

    def check_state(self, state: Any) -> None:
        super().check_state(state)
        for name, array in state._asdict().items():
            if array.ndim < self.num_feature_axes:
                raise ValueError(
                    f"state.{name} must be [..., *space, {self.hidden_size}] with "
                    f"{len(self.kernel_size)} spatial axes, got shape {array.shape}"
                )


def _check_sizes(name: str, sizes: Any) -> None:
    """Raises where ``sizes`` is no tuple of positive integers."""
    if not isinstance(sizes, tuple):
        raise TypeError(f"{name} must be a tuple of integers, got {sizes!r}")
    for n, size in enumerate(sizes):
        check_size(f"{name}[{n}]", size)
