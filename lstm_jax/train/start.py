"""Initialisation of a run from the parameters of another run."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.errors import UserError
from lstm_jax.train.step import PlainMean, TrainState


class Source(NamedTuple):
    """The run from which parameters are taken.

    Attributes:
      folder: the other run's folder.
      params: its parameters, a nested dict of arrays.
      metadata: its task's metadata.
    """

    folder: pathlib.Path
    params: Any
    metadata: Mapping[str, Any]


def started_from(
    source: Source,
    state: TrainState,
    metadata: Mapping[str, Any],
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> TrainState:
    """A new state with the parameters of another run whose name and shape match.

    Args:
      source: the other run.
      state: the state before the first step.
      metadata: the metadata of this run's task.
      say: reports the parameters that were taken.
      warn: reports the parameters that were left out, and metadata that differ. A parameter of the
        same shape can then have another meaning, such as the embedding of another character.

    Raises:
      UserError: no parameter matches in name and shape.
    """
    given = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(source.params)}
    taken, missing = [], []

    def choose(path: Any, leaf: jax.Array) -> jax.Array:
        name = _name(path)
        if name in given and given[name].shape == leaf.shape:
            taken.append(name)
            return jnp.asarray(given[name], leaf.dtype)
        found = f"{given[name].shape} there" if name in given else "not there"
        missing.append(f"{name} {leaf.shape} ({found})")
        return leaf

    params = jax.tree_util.tree_map_with_path(choose, state.params)
    if not taken:
        raise UserError(
            f"train.init_from: {source.folder}: expected parameters with names and shapes of this "
            f"model, got none; this model has {', '.join(missing)}"
        )
    say(f"starting from {source.folder}: {len(taken)} of {len(taken) + len(missing)} parameters")
    unused = [name for name in given if name not in taken]
    for what, names in (("new", missing), ("left out", unused)):
        if names:
            warn(f"train.init_from: {what}: {', '.join(names)}")
    other = sorted(key for key in metadata if source.metadata.get(key) != metadata[key])
    if other:
        warn(f"train.init_from: {source.folder} has other metadata: {', '.join(other)}")
    average = state.average
    if isinstance(average, PlainMean):
        average = average._replace(params=jax.tree.map(jnp.copy, params))
    elif average is not None:
        average = jax.tree.map(jnp.copy, params)
    return state._replace(params=params, average=average)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
