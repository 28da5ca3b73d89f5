"""The fused scan against ``jax.lax.scan``, on steps that are not cells."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import CELLS, LSTM, unroll
from lstm_jax.sequence.fused import ScanConfig, block_size, fused_scan
from lstm_jax.sequence.fused.scan import (
    in_blocks,
    in_chunks,
    joined,
    scan_stacking_bits,
    stored_values,
)


def step(scale, carry, x):
    """A step with integers, a dict as carry, and an input that is not used in the carry."""
    h = jnp.tanh(scale @ carry["h"] + x["a"]) * jnp.where(carry["count"] > 2, 0.5, 1.0)
    return {"h": h, "count": carry["count"] + 1}, {"y": h * x["b"], "count": carry["count"]}


def total(scan, scale, h, xs, **how):
    init = {"h": h, "count": jnp.zeros((), jnp.int32)}
    carry, ys = scan(lambda c, x: step(scale, c, x), init, xs, **how)
    return jnp.sin(carry["h"]).sum() + (ys["y"] * jnp.cos(ys["count"])[:, None]).sum()


@pytest.mark.parametrize("block", [1, 3, 7, 20])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("save_residuals", [True, False])
def test_any_pytree_and_any_block(block, reverse, save_residuals):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        xs = {"a": rng.normal(size=(7, 4)), "b": rng.normal(size=(7, 4))}
        args = 0.5 * rng.normal(size=(4, 4)), rng.normal(size=4), xs
        how = {"block": block, "save_residuals": save_residuals, "reverse": reverse}

        def run(scan, **how):
            return jax.value_and_grad(lambda *a: total(scan, *a, **how), (0, 1, 2))(*args)

        got, expected = jax.jit(
            lambda: (run(fused_scan, **how), run(jax.lax.scan, reverse=reverse))
        )()
        chex.assert_trees_all_close(got, expected, rtol=1e-12, atol=1e-13)


def test_block_sizes():
    state = [jnp.zeros((32, 256))]
    assert block_size(16, state) == 16, "small: one block"
    assert block_size(128, state) == 16, "512 rows"
    assert 128 % block_size(128, [jnp.zeros((24, 4096))]) == 0, "a divisor of T"
    assert block_size(10_007, state) == 16, "a prime T has a shorter last block"


@pytest.mark.parametrize("reverse", [False, True])
def test_blocks_and_chunks(reverse):
    config = ScanConfig(7, 3, reverse, save_residuals=True, offload=False)
    after = jnp.arange(1.0, 8.0)
    chunks = in_blocks({0: after}, config)
    assert [chunk[0].shape for chunk in chunks] == [(2, 3), (1, 1)]
    assert joined([chunk[0] for chunk in chunks]).tolist() == after.tolist()
    # The carry before a block is the one after the block before it, in the direction of time.
    starts = [s.tolist() for _, (s,) in in_chunks({0: after}, [jnp.array(0.0)], [0], config)]
    assert starts == ([[4.0, 7.0], [0.0]] if reverse else [[0.0, 3.0], [6.0]])


def test_stored_values_of_an_lstm_step():
    """h, c and one tanh of all gates: 6 H."""
    from lstm_jax import LSTMCell

    cell = LSTMCell(8)
    params = cell.init(jax.random.key(0), 3)
    stored = stored_values(
        lambda state, x: cell.step(params, state, x), cell.zero_state((2,)), jnp.ones((2, 3))
    )
    assert sum(value.size for value in stored) == 2 * 6 * 8


@pytest.mark.parametrize("reverse", [False, True])
def test_outputs_of_narrow_types_are_stacked_unchanged(reverse):
    xs = jax.random.normal(jax.random.key(0), (5, 3))

    def body(total, x):
        total = total + x
        types = ("bfloat16", "float16", "float32", "int32", "bool")
        return total, [total.astype(dtype) for dtype in types] + [jax.random.key(1)]

    run = jax.jit(lambda scan: scan(body, jnp.zeros(3), xs, reverse=reverse), static_argnums=0)
    got, expected = run(scan_stacking_bits), run(jax.lax.scan)
    chex.assert_trees_all_equal_dtypes(got, expected)
    (*got, keys), (*expected, expected_keys) = got[1], expected[1]
    chex.assert_trees_all_equal(got, expected)
    assert (keys == expected_keys).all()


def test_no_stack_of_narrow_numbers_is_written_in_a_loop():
    """On a CPU, each such step would convert the whole stack to float32 and back."""
    lstm = LSTM(128, 2, dtype="bfloat16", engine="fused")
    params = jax.eval_shape(lambda: lstm.init(jax.random.key(0), 4))
    xs = jax.ShapeDtypeStruct((64, 64, 4), jnp.float32)  # several blocks

    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(params, xs):
        return lstm.apply(params, xs)[1].astype(jnp.float32).sum()

    text = jax.jit(gradient).lower(params, xs).as_text()
    written = re.findall(r"dynamic_update_slice.*: \(tensor<[^>]*x(\w+)>", text)
    assert {"f32", "ui16"} <= set(written)
    assert "bf16" not in written


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lstm", (20_000, 1, 8, 8)),
        ("lstm", (64, 4, 8, 8)),
        ("lstm", (3, 2, 8, 8)),
        ("rnn", (16, 16, 32, 64)),
        ("layer_norm", (300, 4, 16, 32)),
    ],
)
def test_recomputing_never_needs_more_memory(name, shape):
    """Compiled but not run."""
    T, B, D, H = shape
    cell = CELLS[name](H)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
    xs = jax.ShapeDtypeStruct((T, B, D), jnp.float32)

    def temporary_memory(memory):
        def loss(params, xs):
            return jnp.sin(unroll(cell, params, xs, memory=memory)[1]).sum()

        options = {"xla_backend_optimization_level": 0}
        lowered = jax.jit(jax.grad(loss, (0, 1)), compiler_options=options).lower(params, xs)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary_memory("recompute") <= temporary_memory("full")
