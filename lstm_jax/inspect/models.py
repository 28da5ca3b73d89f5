"""Converts the models that this package accepts: any lstm_jax cell, layer or Flax module."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import Params, State
from lstm_jax.sequence import Bidirectional, Stack
from lstm_jax.sequence.protocol import check_cell_or_layer, is_layer, num_feature_axes
from lstm_jax.sequence.regularizers import without_regularizers
from lstm_jax.sequence.stack import Stacked

ALONE = "cell"
"""The name of a cell that is not part of a stack."""

NO_PARAMS: dict[str, Any] = {"params": {}}
"""Parameters for functions that only need a model's cells."""


class Model(NamedTuple):
    """A functional cell or layer with its parameters, and the layout of its inputs.

    Attributes:
      layer: the cell or layer.
      params: its parameters.
      time_major: whether time is the first axis of inputs.
    """

    layer: Any
    params: Params
    time_major: bool

    def time_leading(self, xs: Any, resets: Any) -> tuple[jax.Array, Any]:
        """Moves the time axis of inputs and resets to the front."""
        xs = jnp.asarray(xs)
        if self.time_major:
            return xs, resets
        axis = xs.ndim - 1 - num_feature_axes(self.layer)
        resets = None if resets is None else jnp.moveaxis(jnp.asarray(resets), -1, 0)
        return jnp.moveaxis(xs, axis, 0), resets


def functional(model: Any, params: Params, name: str = "model") -> Model:
    """The functional cell or layer of a model, which may be a Flax module.

    Args:
      model: a cell, a layer, or a module of ``lstm_jax.nnx`` or ``lstm_jax.linen``.
      params: its parameters; None for an nnx module, which holds them; for a linen module its
        variables (None if it is bound).
      name: the model's name in error messages.

    Raises:
      TypeError: ``model`` is of another type.
    """
    if "flax" in sys.modules:  # otherwise the model cannot be a Flax module
        from flax import linen as flax_linen
        from flax import nnx as flax_nnx

        from lstm_jax import linen, nnx

        if isinstance(model, flax_nnx.Module):
            if not isinstance(model, nnx._Cell | nnx.Stack):
                raise TypeError(_unknown(name, model))
            layer = model.cell if isinstance(model, nnx._Cell) else model.layer
            return Model(layer, model.params, getattr(model, "time_major", False))
        if isinstance(model, flax_linen.Module):
            if not isinstance(model, linen._Cell | linen._Sequence):
                raise TypeError(_unknown(name, model))
            variables = model.variables if params is None else params
            if "params" not in variables:
                raise TypeError(
                    "params of a linen module must be its variables, {'params': ...}, got "
                    f"{', '.join(variables)}"
                )
            layer = model.cell if isinstance(model, linen._Cell) else model.functional
            held = flax_linen.meta.unbox(variables["params"])
            return Model(layer, held, getattr(model, "time_major", False))
    check_cell_or_layer(name, model)
    return Model(model, params, time_major=True)


def _unknown(name: str, model: Any) -> str:
    return (
        f"{name} must be a cell, a layer, or a module of lstm_jax.nnx or lstm_jax.linen, got "
        f"{type(model).__module__}.{type(model).__name__}"
    )


# ---- cells in layers ----

Run = Callable[..., tuple[State, jax.Array]]


class _Part:
    """A cell or :class:`Bidirectional` that a custom function runs over time."""

    def __init__(self, part: Any, run: Run):
        self.part, self.run = part, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)

    def apply(self, params, xs, state=None, *, lengths=None, mask=None, resets=None, key=None):
        return self.run(params, xs, state, lengths=lengths, mask=mask, resets=resets)


def run_by(
    layer: Any,
    run: Callable[..., tuple[State, jax.Array]],
    path: str = "",
    *,
    reverse: bool = False,
    engine: str = "auto",
) -> Any:
    """The same layer, with ``run`` executing each cell and each :class:`Bidirectional`.

    Args:
      layer: a cell, a :class:`Bidirectional`, or a stack of these and of stacks.
      run: called as ``run(path, part, options, params, xs, state, lengths=, mask=, resets=)``
        with the part's path in the model and (for a cell) the options ``reverse`` and ``engine``
        of :func:`lstm_jax.unroll`; returns ``(state, ys)``.
      path: the path of the layer.
      reverse: whether time runs backwards, for a cell.
      engine: the engine, for a cell.

    Returns:
      A layer, with ``apply``.

    Raises:
      TypeError: it contains a layer of another kind.
      ValueError: ``reverse`` or ``engine`` is given for a layer, which has its own.
    """
    if is_layer(layer) and (reverse or engine != "auto"):
        name = "reverse" if reverse else "engine"
        raise ValueError(f"{name} is for a cell; {type(layer).__name__} has its own")
    if isinstance(layer, Stacked):
        how: dict[str, Any] = {"reverse": layer.reverse, "engine": layer.engine}
        parts = {
            name: run_by(part, run, join_path(path, name), **({} if is_layer(part) else how))
            for name, part in dict(layer.layers).items()
        }
        return Stack(parts, dropout=layer.dropout, connections=layer.connections)
    if isinstance(layer, Bidirectional) or not is_layer(layer):
        how = {"reverse": reverse, "engine": stepwise(engine)}
        return _Part(layer, functools.partial(run, path, layer, how))
    raise TypeError(
        f"model must consist of cells, Stack, LSTM and Bidirectional, got {type(layer).__name__}"
    )


def cells_by_path(layer: Any, path: str = "") -> dict[str, Any]:
    """The cells of a model by their path, without regularisers.

    >>> from lstm_jax.cells import GRUCell, LSTMCell
    >>> list(cells_by_path(Stack([LSTMCell(3), Bidirectional(GRUCell(2))])))
    ['layer_0', 'layer_1.forward', 'layer_1.backward']
    """
    if not isinstance(layer, Stacked):
        cells = directions(layer, path)
        return {where: without_regularizers(cell) for where, cell in cells.items()}
    found: dict[str, Any] = {}
    for name, part in dict(layer.layers).items():
        found |= cells_by_path(part, join_path(path, name))
    return found


def directions(part: Any, path: str) -> dict[str, Any]:
    """The cell of a part, or the two cells of a :class:`Bidirectional`, by path.

    >>> from lstm_jax.cells import GRUCell
    >>> list(directions(Bidirectional(GRUCell(2)), "layer_1"))
    ['layer_1.forward', 'layer_1.backward']
    """
    if not isinstance(part, Bidirectional):
        return {path or ALONE: part}
    return {join_path(path, "forward"): part.forward, join_path(path, "backward"): part.backward}


def join_path(path: str, name: str) -> str:
    """The path of the part ``name`` of the layer at ``path``.

    >>> join_path("", "layer_0"), join_path("layer_0", "forward")
    ('layer_0', 'layer_0.forward')
    """
    return f"{path}.{name}".lstrip(".")


def stepwise(engine: str) -> str:
    """Replaces engines that do not run step by step, whose intermediate values are not available.

    >>> stepwise("fused"), stepwise("associative")
    ('fused', 'auto')
    """
    return engine if engine in ("scan", "fused") else "auto"
