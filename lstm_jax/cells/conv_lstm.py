"""The LSTM with convolutions instead of matrix products, over 1, 2 or 3 spatial axes."""

import dataclasses
import math

import jax

from lstm_jax.cells.activations import STANDARD, Activations
from lstm_jax.cells.base import (
    Initializer,
    LSTMFamilyCell,
    Parameter,
    check_bool,
    check_size,
    check_unset,
    zeros,
)
from lstm_jax.cells.lstm import LSTMState
from lstm_jax.cells.peephole import gated
from lstm_jax.cells.products import product


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolves ``x`` ``[..., *space, D]`` with ``w`` ``(*kernel, D, F)``, with zero padding.

    >>> import jax.numpy as jnp
    >>> convolve(jnp.ones((5, 1)), jnp.ones((3, 1, 1)))[:, 0].tolist()
    [2.0, 3.0, 3.0, 3.0, 2.0]
    """
    space = w.ndim - 2
    batch = x.shape[: x.ndim - space - 1]
    letters = "XYZ"[:space]
    y = product(
        jax.lax.conv_general_dilated,
        x.reshape(math.prod(batch), *x.shape[len(batch) :]),
        w,
        window_strides=(1,) * space,
        padding="SAME",
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    return y.reshape(*batch, *y.shape[1:])


def conv_lstm_cell(
    params: dict[str, jax.Array], state: LSTMState, x: jax.Array, a: Activations = STANDARD
) -> tuple[LSTMState, jax.Array]:
    r"""One step of the convolutional LSTM.

    With ∗ for a convolution over space::

        i_t = σ(W_i ∗ x_t + U_i ∗ h_{t-1} [+ p_i ∘ c_{t-1}] + b_i)
        f_t = σ(W_f ∗ x_t + U_f ∗ h_{t-1} [+ p_f ∘ c_{t-1}] + b_f)
        c_t = f_t ∘ c_{t-1} + i_t ∘ tanh(W_g ∗ x_t + U_g ∗ h_{t-1} + b_g)
        o_t = σ(W_o ∗ x_t + U_o ∗ h_{t-1} [+ p_o ∘ c_t] + b_o)
        h_t = o_t ∘ tanh(c_t)

    Args:
      params: ``w_ih`` ``(*kernel, D, 4H)``, ``w_hh`` ``(*kernel, H, 4H)``, ``b`` ``(4H,)``, gates
        in the order i, f, g, o; with peepholes also ``p_i``, ``p_f``, ``p_o``, ``(H,)`` or
        ``(*space, H)``.
      state: ``h`` and ``c``, each ``[..., *space, H]``.
      x: the input of this step, ``[..., *space, D]``.
      a: the element-wise functions; by default σ, tanh, tanh and no clipping.

    Returns:
      ``(state, y)``: the new state, with the dtypes of the old one, and ``y = h_t``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> cell = ConvLSTMCell(hidden_size=3)
      >>> params = cell.init(jax.random.key(0), input_size=1)
      >>> state, y = conv_lstm_cell(params, cell.zero_state((8, 8)), jnp.ones((8, 8, 1)))
      >>> y.shape
      (8, 8, 3)

    References:
      Xingjian Shi et al., "Convolutional LSTM Network: A Machine Learning Approach for
      Precipitation Nowcasting", NeurIPS 2015.
    """
    z = convolve(x, params["w_ih"]) + convolve(state.h, params["w_hh"])
    return gated(params, state, z + params["b"].astype(z.dtype), a)


@dataclasses.dataclass(frozen=True)
class ConvLSTMCell(LSTMFamilyCell):
    """Sizes and options of a convolutional LSTM; its equations are :func:`conv_lstm_cell`.

    Parameters are ``w_ih`` ``(*kernel, D, 4H)``, ``w_hh`` ``(*kernel, H, 4H)`` and ``b``
    ``(4H,)`` with gates in the order i, f, g, o, and with peepholes ``p_i``, ``p_f``, ``p_o``.
    Options are those of :class:`LSTMFamilyCell` and the following.  H is the number of channels.
    Every input is ``[..., *space, D]``; the argument of ``zero_state`` is the batch shape followed
    by the spatial shape.

    Attributes:
      kernel_size: size of the convolutions, an odd number for each of the 1, 2 or 3 spatial axes.
      peepholes: whether the gates read the cell state.
      spatial_shape: sizes of the spatial axes, for separate peepholes at each position,
        ``(*spatial_shape, H)``, as in the paper; None for shared peepholes, ``(H,)``.
      peephole_init: initialises the peephole weights, if there are any; by default zeros.

    Raises:
      TypeError, ValueError: a size or option is invalid; the message names it.

    Example:
      >>> import jax
      >>> cell = ConvLSTMCell(hidden_size=2, kernel_size=(5,))
      >>> {name: array.shape for name, array in cell.init(jax.random.key(0), 3).items()}
      {'w_ih': (5, 3, 8), 'w_hh': (5, 2, 8), 'b': (8,)}
    """

    _: dataclasses.KW_ONLY
    kernel_size: tuple[int, ...] = (3, 3)
    peepholes: bool = False
    spatial_shape: tuple[int, ...] | None = None
    peephole_init: Initializer | str = zeros

    def __post_init__(self):
        super().__post_init__()
        check_bool("peepholes", self.peepholes)
        if not self.peepholes:
            check_unset(self, "there are no peepholes", spatial_shape=None, peephole_init=zeros)
        for name in ("kernel_size", "spatial_shape"):
            sizes = getattr(self, name)
            if sizes is None and name == "spatial_shape":
                continue
            if not isinstance(sizes, tuple | list):
                raise TypeError(f"{name} must be a tuple of integers, got {sizes!r}")
            for size in sizes:
                check_size(name, size)
            object.__setattr__(self, name, tuple(sizes))
        if not 1 <= len(self.kernel_size) <= 3 or not all(size % 2 for size in self.kernel_size):
            raise ValueError(
                f"kernel_size must be 1, 2 or 3 odd numbers, one for each spatial axis, "
                f"got {self.kernel_size}"
            )
        if self.spatial_shape is not None and len(self.spatial_shape) != len(self.kernel_size):
            raise ValueError(
                f"spatial_shape must have as many axes as kernel_size={self.kernel_size}, "
                f"got {self.spatial_shape}"
            )

    @property
    def num_feature_axes(self) -> int:
        """The number of spatial axes, plus 1 for the channels."""
        return 1 + len(self.kernel_size)

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        D, H, kernel = input_size, self.hidden_size, self.kernel_size
        peephole = self.declare("peephole", (*(self.spatial_shape or ()), H))
        return {
            "w_ih": self.declare("kernel", (*kernel, D, 4 * H), gates=4),
            "w_hh": self.declare("recurrent_kernel", (*kernel, H, 4 * H), gates=4),
            "b": Parameter(self.gate_biases("ifgo"), (4 * H,), "bias"),
            **{name: peephole for name in ("p_i", "p_f", "p_o") if self.peepholes},
        }

    def check_x(self, params: dict[str, jax.Array], x: jax.Array) -> None:
        super().check_x(params, x)
        space = x.shape[x.ndim - self.num_feature_axes : -1]
        if self.peepholes and self.spatial_shape not in (None, space):
            raise ValueError(
                f"x must be [..., *space, D] with space={self.spatial_shape} (spatial_shape), "
                f"got shape {x.shape}"
            )

    def check_state(self, state: LSTMState) -> None:
        super().check_state(state)
        for name, array in state._asdict().items():
            if array.ndim < self.num_feature_axes:
                raise ValueError(
                    f"state.{name} must be [..., *space, H] with H={self.hidden_size} and as many "
                    f"spatial axes as kernel_size={self.kernel_size}, got shape {array.shape}"
                )

    def equations(
        self, params: dict[str, jax.Array], state: LSTMState, x: jax.Array
    ) -> tuple[LSTMState, jax.Array]:
        return conv_lstm_cell(params, state, x, self.activations)
