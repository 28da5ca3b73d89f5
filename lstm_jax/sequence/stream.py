"""Streaming: one compiled step for inputs that arrive one at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.base import Params, State, check_size, check_state, like
from lstm_jax.sequence.protocol import check_cell_or_layer
from lstm_jax.sequence.rows import where
from lstm_jax.sequence.unroll import initial_state


class Stream:
    """A compiled step with its parameters, made by :func:`stream`.

    It holds no state: ``state, y = step(state, x)``.

    Attributes:
      layer: the cell or layer.
      params: its parameters, on one device.
      x: shape and type of an input, ``[*batch_shape, D]``.
    """

    def __init__(self, layer: Any, params: Params, batch_shape: tuple[int, ...], input_size: int):
        device = _device_of(params)
        start = initial_state(layer, params, batch_shape)
        self.layer = layer
        self._batch_shape = batch_shape
        self.params = jax.device_put(params, device)
        self.x = jax.ShapeDtypeStruct((*batch_shape, input_size), _float_type(params))
        self._start = jax.device_put(jax.tree.map(jnp.asarray, start), device)
        # Compiled ahead of time, so that no later call compiles anything.
        self._compiled = jax.jit(self._step).lower(self.params, self._start, self.x).compile()

    def initial_state(self) -> State:
        """The state before the first step: zeros, or a learned state."""
        return self._start

    def __call__(self, state: State, x: Any, mask: Any = None) -> tuple[State, jax.Array]:
        """One step in time.

        Args:
          state: from :meth:`initial_state` or the previous step.
          x: ``[*batch_shape, D]``, of any real type.
          mask: booleans ``[*batch_shape]``; a row whose flag is false keeps its state, its
            output is zero, and its input is not read.  None for a step in every row.

        Returns:
          ``(state, y)``: the new state, and the output ``[*batch_shape, H]``.

        Raises:
          ValueError: ``x``, ``mask`` or a part of ``state`` has another shape than that of the
            stream.
          TypeError: ``state`` has another structure, or ``mask`` is not an array of booleans.
        """
        x = self._fitting_x(x)
        if mask is None:
            step, compiled, inputs = self._step, self._compiled, (x,)
        else:
            step, compiled = self._masked_step, self._compiled_with_mask
            inputs = (x, self._fitting_mask(mask))
        try:
            return compiled(self.params, state, *inputs)
        except TypeError:  # the state has other types than compiled for, or something is traced
            state = self._fitting_state(state)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, inputs))):
            return step(self.params, state, *inputs)
        return compiled(self.params, state, *inputs)

    def _step(self, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
        stepped, y = self.layer.step(params, state, x)
        return like(stepped, state), y

    def _masked_step(
        self, params: Params, state: State, x: jax.Array, mask: jax.Array
    ) -> tuple[State, jax.Array]:
        # The input of a masked row must not reach the equations, where its gradient is 0 * NaN.
        start = initial_state(self.layer, params, mask.shape)
        x = where(mask, x, jnp.ones_like(x))
        stepped, y = self._step(params, where(mask, state, like(start, state)), x)
        return where(mask, stepped, state), where(mask, y, jnp.zeros_like(y))

    @functools.cached_property
    def _compiled_with_mask(self) -> Any:
        """The step for calls with a mask, compiled at the first of them."""
        mask = jax.ShapeDtypeStruct(self._batch_shape, bool)
        return jax.jit(self._masked_step).lower(self.params, self._start, self.x, mask).compile()

    def _fitting_x(self, x: Any) -> Any:
        """The input in the stream's type, after a check of its shape."""
        if not isinstance(x, jax.Array):
            x = np.asarray(x, self.x.dtype)
        elif x.dtype != self.x.dtype:
            x = x.astype(self.x.dtype)
        if x.shape != self.x.shape:
            raise ValueError(
                f"x must have the stream's shape {self.x.shape} (batch_shape, then D), "
                f"got shape {x.shape}"
            )
        return x

    def _fitting_mask(self, mask: Any) -> Any:
        """The mask as an array, after a check of its type and shape."""
        mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
        if mask.dtype != bool:
            raise TypeError(f"mask must be booleans, got {mask.dtype}")
        if mask.shape != self._batch_shape:
            raise ValueError(
                f"mask must have the stream's batch shape {self._batch_shape}, "
                f"got shape {mask.shape}"
            )
        return mask

    def _fitting_state(self, state: Any) -> State:
        """The state in the stream's types, after a check of its structure and shapes."""
        state = jax.tree.map(jnp.asarray, state)
        check_state(state, self._start)
        return like(state, self._start)


def stream(
    layer: Any,
    params: Params,
    batch_shape: tuple[int, ...] = (),
    *,
    input_size: int | None = None,
) -> Stream:
    """A cell or layer as one compiled step, for inputs that arrive one at a time.

    ``state, y = step(state, x)`` is pure: it keeps no state between calls, so one stream serves
    any number of sequences.  It is compiled once, here (for calls with a mask, at the first such
    call), for one shape and one type: an input of another real type is cast to the type of the
    parameters, and an input of another shape is an error.  Inside ``jit``, ``grad`` and other
    transformations a stream is traced like any function.

    Args:
      layer: a cell, or a :class:`Stack` or :class:`LSTM` of cells that run forwards.
      params: its parameters, as from ``layer.init``; placed on one device.
      batch_shape: the batch axes of an input, ``[*batch_shape, D]``.
      input_size: D, if the parameters do not determine it (a cell without
        ``input_size(params)``).

    Returns:
      A :class:`Stream`, with ``initial_state()``.

    Raises:
      ValueError: the layer reads its sequence from the end, or D is unknown.
      TypeError: it is neither a cell nor a layer, or ``params`` belong to another layer.

    Example:
      >>> import jax, numpy as np
      >>> from lstm_jax import LSTM
      >>> lstm = LSTM(hidden_size=3, num_layers=2)
      >>> step = stream(lstm, lstm.init(jax.random.key(0), input_size=2))
      >>> state = step.initial_state()
      >>> for x in np.ones((5, 2)):
      ...     state, y = step(state, x)
      >>> y.shape, bool((y == state["layer_1"].h).all())
      ((3,), True)
    """
    check_cell_or_layer("layer", layer)
    if not hasattr(layer, "step"):
        raise ValueError(
            f"layer must run forwards in time, got {type(layer).__name__}, which needs the future"
        )
    size = layer.input_size(params) if hasattr(layer, "input_size") else None
    if size is None:
        if input_size is None:
            raise ValueError(
                f"input_size must be given, since {type(layer).__name__} cannot determine it from "
                "its parameters"
            )
        check_size("input_size", input_size)
        size = input_size
    elif input_size not in (None, size):
        raise ValueError(f"input_size must be {size} to fit the parameters, got {input_size}")
    return Stream(layer, params, tuple(batch_shape), size)


def _device_of(params: Params) -> Any:
    """The first device that holds parameters; None, the default device, if there is none."""
    arrays = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    devices = {device for array in arrays for device in array.devices()}
    return min(devices, key=lambda device: device.id) if devices else None


def _float_type(params: Params) -> jnp.dtype:
    """The type of the floating-point parameters; float32 if there are none."""
    types = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    floats = [dtype for dtype in types if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.result_type(*floats) if floats else jnp.dtype("float32")
