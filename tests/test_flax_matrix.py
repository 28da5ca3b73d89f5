"""Every cell as a Flax module, inside Flax's own recurrent modules."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import lstm_jax.linen
import lstm_jax.nnx
from lstm_jax import CELLS
from lstm_jax.sequence import Bidirectional

B, T, D, H = 3, 4, 3, 4
LENGTHS = jnp.array([4, 2, 1])


def functional(name):
    return CELLS[name](hidden_size=H)


def module(flax_modules, name):
    """The module of a cell by the name that its class has, and the options that make the cell."""
    make = CELLS[name]
    kind, options = (
        (make.func, make.keywords) if isinstance(make, functools.partial) else (make, {})
    )
    return getattr(flax_modules, kind.__name__), options


@functools.cache
def inputs(name):
    """``[T, B, ..., D]``."""
    space = (2,) * (functional(name).num_feature_axes - 1)
    return jax.random.normal(jax.random.key(1), (T, B, *space, D))


@functools.cache
def expected(name):
    """Parameters, carries and outputs of both directions, by the functional layer."""
    layer = Bidirectional(functional(name))
    params = layer.init(jax.random.key(0), D)
    return params, *jax.jit(layer.apply)(params, inputs(name), lengths=LENGTHS)


def check(name, carry, outputs):
    _, state, ys = expected(name)
    chex.assert_trees_all_close(carry, tuple(state), atol=1e-5)
    valid = np.arange(T)[:, None] < np.asarray(LENGTHS)  # Flax leaves what it likes in the rest
    np.testing.assert_allclose(np.asarray(outputs)[valid], np.asarray(ys)[valid], atol=1e-5)


def test_each_class_of_a_cell_has_a_module_of_its_name():
    kinds = {make.func if isinstance(make, functools.partial) else make for make in CELLS.values()}
    for flax_modules in (lstm_jax.nnx, lstm_jax.linen):
        assert {kind.__name__ for kind in kinds} <= set(flax_modules.__all__)


@pytest.mark.parametrize("name", CELLS)
def test_nnx(name):
    kind, options = module(lstm_jax.nnx, name)
    cells = [kind(D, H, **options, rngs=nnx.Rngs(seed)) for seed in range(2)]
    assert cells[0].cell == functional(name)
    for cell, params in zip(cells, expected(name)[0].values(), strict=True):
        assert jax.tree.map(jnp.shape, cell.params) == jax.tree.map(jnp.shape, params)
        for parameter, value in params.items():
            getattr(cell, parameter)[...] = value
    layer = nnx.Bidirectional(*map(nnx.RNN, cells), time_major=True, return_carry=True)
    check(name, *layer(inputs(name), seq_lengths=LENGTHS))
    carry = cells[0].initialize_carry(inputs(name).shape[1:])
    chex.assert_trees_all_equal(carry, functional(name).zero_state(inputs(name).shape[1:-1]))


@pytest.mark.parametrize("name", CELLS)
def test_linen(name):
    kind, options = module(lstm_jax.linen, name)
    cell = kind(H, **options)
    assert cell.cell == functional(name)
    layer = nn.Bidirectional(nn.RNN(cell), nn.RNN(cell.copy()), time_major=True, return_carry=True)
    params = {f"{way}_rnn": {"cell": tree} for way, tree in expected(name)[0].items()}
    drawn = jax.eval_shape(layer.init, jax.random.key(0), inputs(name))
    assert jax.tree.map(jnp.shape, drawn["params"]) == jax.tree.map(jnp.shape, params)
    check(name, *layer.apply({"params": params}, inputs(name), seq_lengths=LENGTHS))
    carry = cell.initialize_carry(jax.random.key(0), inputs(name).shape[1:])
    chex.assert_trees_all_equal(carry, functional(name).zero_state(inputs(name).shape[1:-1]))
