"""Comparisons of arrays, and parameters of Flax modules as pure dicts for computing with them."""

import chex
import jax
import numpy as np
from flax import nnx

from tests import compiled


def params_of(module) -> dict:
    """The module's parameters, a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def with_params(module, params):
    """A copy of the module with these parameters."""
    graph, _, rest = nnx.split(module, nnx.Param, ...)
    return nnx.merge(graph, params, rest)


def doubled(module, scale: float = 2.0, biases: dict | None = None):
    """A copy with parameters large enough that states matter, and with random biases."""
    params = params_of(module)
    for n, path in enumerate(biases or ()):
        *parents, last = path
        part = params
        for name in parents:
            part = part[name]
        part[last] = biases[path] * jax.random.normal(jax.random.key(n + 1), part[last].shape)
    return with_params(module, jax.tree.map(lambda leaf: scale * leaf, params))


def in_float64(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def assert_same(got, expected, atol: float) -> None:
    """Checks that trees are equal: bit for bit as users compile, else within ``atol``.

    A test that calls this has the mark ``optimized``.
    """
    if compiled.is_quick():
        chex.assert_trees_all_close(got, expected, atol=atol, rtol=0)
    else:
        chex.assert_trees_all_equal(got, expected)
