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
TOLD = {"time_major": True, "return_carry": True}


def functional(name):
    return CELLS[name](hidden_size=H)


def module(flax_modules, name):
    """The module with the name of a cell's class, and the options that create the cell."""
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
def parameters(name):
    """The parameters of both directions."""
    return Bidirectional(functional(name)).init(jax.random.key(0), D)


def fill(module, params):
    """Sets the parameters of an nnx module, which must have no others."""
    state = nnx.state(module)
    assert jax.tree.leaves(state) == jax.tree.leaves(nnx.state(module, nnx.Param))
    shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(state))
    assert shapes == jax.tree.map(jnp.shape, params)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(module, state)


def check(theirs, ours):
    """Compares ``(carry, outputs)`` of Flax's module around our cells with those of our module."""
    carry, ys = (theirs[0], tuple(ours[0])), (theirs[1], ours[1])
    chex.assert_trees_all_close(*carry, atol=1e-5)
    valid = np.arange(T)[:, None] < np.asarray(LENGTHS)  # Flax's values in padding are arbitrary
    np.testing.assert_allclose(*(np.asarray(y)[valid] for y in ys), atol=1e-5)


def test_each_class_of_a_cell_has_a_module_of_its_name():
    kinds = {make.func if isinstance(make, functools.partial) else make for make in CELLS.values()}
    for flax_modules in (lstm_jax.nnx, lstm_jax.linen):
        assert {kind.__name__ for kind in kinds} <= set(flax_modules.__all__)


@pytest.mark.parametrize("name", CELLS)
def test_nnx(name):
    kind, options = module(lstm_jax.nnx, name)
    cells = [kind(D, H, **options, rngs=nnx.Rngs(seed)) for seed in range(2)]
    assert cells[0].cell == functional(name)
    for cell, params in zip(cells, parameters(name).values(), strict=True):
        fill(cell, params)
    theirs = nnx.Bidirectional(*map(nnx.RNN, cells), **TOLD)
    ours = lstm_jax.nnx.Stack(D, Bidirectional(functional(name)), **TOLD, rngs=nnx.Rngs(0))
    fill(ours, parameters(name))
    check(*(layer(inputs(name), seq_lengths=LENGTHS) for layer in (theirs, ours)))
    carry = cells[0].initialize_carry(inputs(name).shape[1:])
    chex.assert_trees_all_equal(carry, functional(name).zero_state(inputs(name).shape[1:-1]))


def double(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64), tree)


def dtypes(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("name", CELLS)
def test_modules_of_float64_compute_in_float64(name):
    with jax.enable_x64(True):
        kind, options = module(lstm_jax.nnx, name)
        cell = kind(D, H, **options, rngs=nnx.Rngs(0))
        nnx.update(cell, double(nnx.state(cell)))
        xs, shape = double(jnp.moveaxis(inputs(name), 0, 1)), inputs(name).shape[1:]
        assert dtypes(cell.initialize_carry(shape)) == {"float64"}
        ones = cell.initialize_carry(shape, nnx.Rngs(0), jax.nn.initializers.ones)
        assert dtypes(ones) == {"float64"}
        rnn = nnx.RNN(cell, return_carry=True, rngs=False)
        stack = lstm_jax.nnx.Stack(D, functional(name), return_carry=True, rngs=nnx.Rngs(0))
        for whole in (rnn, stack):
            whole = nnx.clone(whole)
            nnx.update(whole, double(nnx.state(whole)))
            assert dtypes(nnx.eval_shape(lambda m, xs: m(xs), whole, xs)) == {"float64"}

        kind, options = module(lstm_jax.linen, name)
        for carry_init in (None, jax.nn.initializers.ones):
            rnn = nn.RNN(kind(H, **options, carry_init=carry_init), return_carry=True)
            for whole in (rnn, lstm_jax.linen.Stack(functional(name), return_carry=True)):
                variables = jax.eval_shape(lambda m=whole: double(m.init(jax.random.key(0), xs)))
                assert dtypes(jax.eval_shape(whole.apply, variables, xs)) == {"float64"}


@pytest.mark.parametrize("name", CELLS)
def test_linen(name):
    kind, options = module(lstm_jax.linen, name)
    cell = kind(H, **options)
    assert cell.cell == functional(name)
    theirs = nn.Bidirectional(nn.RNN(cell), nn.RNN(cell.copy()), **TOLD)
    ours = lstm_jax.linen.Stack(Bidirectional(functional(name)), **TOLD)
    params = parameters(name)
    results = []
    for layer, tree in (
        (theirs, {f"{way}_rnn": {"cell": tree} for way, tree in params.items()}),
        (ours, params),
    ):
        variables = {"params": tree}
        drawn = jax.eval_shape(layer.init, jax.random.key(0), inputs(name))
        assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, variables)
        results.append(layer.apply(variables, inputs(name), seq_lengths=LENGTHS))
    check(*results)
    carry = cell.initialize_carry(jax.random.key(0), inputs(name).shape[1:])
    chex.assert_trees_all_equal(carry, functional(name).zero_state(inputs(name).shape[1:-1]))
