"""Batches of no rows: empty outputs, and gradients of zero."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lstm_jax.linen
import lstm_jax.nnx
from lstm_jax import CELLS, LSTM, Bidirectional, LSTMCell, unroll
from lstm_jax.sequence.engines import MEMORIES, obstacle
from tests.cells.test_matrix import FIRST

T, D, H = 4, 3, 4


def check(run, params, xs, outputs):
    """Checks the shape of outputs, and that gradients are zeros in the shapes of the arguments."""

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(params, xs):
        state, ys = run(params, xs)
        return ys.sum() + sum(leaf.sum() for leaf in jax.tree.leaves(state)), ys

    (value, ys), grads = jax.jit(loss)(params, xs)
    assert value == 0 and ys.shape == outputs
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, (params, xs)))


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_every_cell(case):
    cell = case.cell()
    params, space = cell.init(jax.random.key(0), D), case.space
    how = {"lengths": np.zeros(0, int), "resets": np.zeros((T, 0), bool)}
    run = functools.partial(unroll, cell, **how)
    check(run, params, jnp.ones((T, 0, *space, D)), (T, 0, *space, cell.output_size))


@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 3)])
@pytest.mark.parametrize("engine", ["auto", "scan", "fused", "associative"])
def test_every_engine(engine, batch):
    cell = CELLS["min_lstm"](H)
    run = functools.partial(unroll, cell, engine=engine, mask=np.ones((T, *batch), bool))
    check(run, cell.init(jax.random.key(0), D), jnp.ones((T, *batch, D)), (T, *batch, H))


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory_plan(memory):
    cell = LSTMCell(H)
    run = functools.partial(unroll, cell, memory=memory)
    check(run, cell.init(jax.random.key(0), D), jnp.ones((T, 0, D)), (T, 0, H))


def test_cudnn_needs_a_row():
    how = {"dtype": "float32", "resets": False, "memory": "full", "platform": "gpu"}
    expected = "needs at least one step of one row"
    assert obstacle("cudnn", LSTMCell(H), T, (0,), **how) == expected


@pytest.mark.parametrize("mask", [None, np.zeros((T, 0), bool)])
@pytest.mark.parametrize(
    "layer", [LSTM(H, num_layers=2, bidirectional=True), Bidirectional(LSTMCell(H), merge=jnp.add)]
)
def test_layers(layer, mask):
    run = functools.partial(layer.apply, mask=mask)
    check(run, layer.init(jax.random.key(0), D), jnp.ones((T, 0, D)), (T, 0, layer.output_size))


@pytest.mark.parametrize("how", [{}, {"bidirectional": True}, {"reverse": True}, {"cell": "gru"}])
def test_modules(how):
    xs, lengths = jnp.ones((0, T, D)), jnp.zeros(0, int)
    module = lstm_jax.nnx.LSTM(D, H, num_layers=2, rngs=nnx.Rngs(0), **how)
    graph, state = nnx.split(module)
    width = 2 * H if "bidirectional" in how else H

    def run(state, xs):
        return nnx.merge(graph, state)(xs, seq_lengths=lengths, return_carry=True)

    check(run, state, xs, (0, T, width))

    module = lstm_jax.linen.LSTM(H, num_layers=2, return_carry=True, **how)
    variables = module.init(jax.random.key(0), jnp.ones((1, T, D)))
    check(
        functools.partial(module.apply, mask=jnp.ones((0, T), bool)), variables, xs, (0, T, width)
    )
