"""Copies converted parameters into the Flax modules of lstm_jax."""

from typing import Any

import jax.numpy as jnp

from lstm_jax.cells.base import Params
from lstm_jax.interop.weights import check_same
from lstm_jax.sequence.bidirectional import Bidirectional
from lstm_jax.sequence.protocol import input_size
from lstm_jax.sequence.stack import Stack, Stacked


def fill(module: Any, layer: Any, params: Params) -> dict[str, Any]:
    """Copies parameters into a module of ``lstm_jax.nnx``, or returns variables for linen.

    It accepts the result of any ``from_`` function: ``fill(module, *from_torch(arrays))``.

    Args:
      module: a module of ``lstm_jax.nnx`` or ``lstm_jax.linen``, for a cell or a whole sequence.
      layer: the cell or layer that the parameters belong to.  It must have the same equations as
        the module.  The module's own types, dropout and execution options apply.
      params: its parameters.

    Returns:
      The variables, ``{"params": ...}``, for ``apply`` of a linen module.  An nnx module is
      modified in place.

    Raises:
      TypeError: ``module`` is not an lstm_jax module.
      ValueError: ``layer`` has other equations, or a shape differs from the module's.

    Example:
      >>> import jax, numpy as np
      >>> from flax import nnx
      >>> from lstm_jax.interop import from_torch
      >>> from lstm_jax.nnx import LSTM
      >>> lstm = LSTM(2, 3, rngs=nnx.Rngs(0))
      >>> shapes = {"weight_ih_l0": (12, 2), "weight_hh_l0": (12, 3)}
      >>> arrays = {name: np.ones(shape, "float32") for name, shape in shapes.items()}
      >>> _ = fill(lstm, *from_torch(arrays))
      >>> float(lstm.layer_0.w_ih.sum())
      24.0

      >>> from lstm_jax import linen
      >>> variables = fill(linen.LSTM(3), *from_torch(arrays))
      >>> linen.LSTM(3).apply(variables, np.ones((1, 5, 2))).shape  # [B, T, D] to [B, T, H]
      (1, 5, 3)
    """
    from flax import nnx

    holders = (getattr(module, name, None) for name in ("cell", "functional", "layer"))
    own = next((one for one in holders if hasattr(one, "init") and not isinstance(one, type)), None)
    if own is None:
        raise TypeError(
            f"module must be one of lstm_jax.nnx or lstm_jax.linen, got {type(module).__name__}"
        )
    if isinstance(own, Stacked) and not isinstance(layer, Stacked):
        layer, params = Stack([layer]), {next(iter(dict(own.layers))): params}
    elif isinstance(layer, Stacked) and not isinstance(own, Stacked) and len(layer.layers) == 1:
        ((name, layer),) = dict(layer.layers).items()
        params = params[name]
    _check_alike(own, layer)
    if isinstance(module, nnx.Module):
        held = module.params  # type: ignore[attr-defined]
        wanted, given = input_size(own, held), input_size(own, params)
        if wanted != given:
            raise ValueError(f"params must have the module's input size {wanted}, got {given}")
        nnx.update(module, _in_types_of(params, held))
    return {"params": params}


def _in_types_of(params: Params, held: Params) -> Params:
    if isinstance(held, dict):
        return {name: _in_types_of(params[name], child) for name, child in held.items()}
    return jnp.asarray(params, held.dtype)


def _check_alike(own: Any, layer: Any) -> None:
    """Raises if a layer has other equations than a module."""
    if isinstance(own, Stacked) and isinstance(layer, Stacked):
        for name in ("connections", "reverse"):
            if getattr(own, name) != getattr(layer, name):
                raise ValueError(
                    f"{name}={getattr(layer, name)!r} would be lost: the module has "
                    f"{name}={getattr(own, name)!r}"
                )
        names = [[*dict(stack.layers)] for stack in (own, layer)]
        if names[0] != names[1]:
            raise ValueError(
                f"layers must be those of the module, {', '.join(names[0])}, "
                f"got {', '.join(names[1])}"
            )
        for name in names[0]:
            _check_alike(dict(own.layers)[name], dict(layer.layers)[name])
    elif isinstance(own, Bidirectional) and isinstance(layer, Bidirectional):
        if own.merge != layer.merge:
            raise ValueError(
                f"merge={layer.merge!r} would be lost: the module has merge={own.merge!r}"
            )
        _check_alike(own.forward, layer.forward)
        _check_alike(own.backward, layer.backward)
    else:
        check_same(layer, own, "the module", type(own).__name__)
