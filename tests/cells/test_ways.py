"""All ways to run a cell over the same rows give the same values, for every cell."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from lstm_jax import CELLS, resets_from_segments, stream, unroll

T, B, D, H, MORE = 6, 2, 3, 4, 3
CUT = 3  # halves, which share one compiled program
SPACE = {"conv_lstm": (3,)}
OPTIONS = {"conv_lstm": {"kernel_size": (3,)}, "slstm": {"num_heads": 2}}

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Ways:
    """The ways to run a cell, each compiled once."""

    def __init__(self, name):
        self.cell = CELLS[name](hidden_size=H, param_dtype="float64", **OPTIONS.get(name, {}))
        rng = np.random.default_rng(0)
        space = SPACE.get(name, ())
        draw = lambda a: 0.5 * rng.normal(size=a.shape)  # noqa: E731
        self.params = jax.tree.map(draw, self.cell.init(jax.random.key(0), D))
        self.xs = rng.normal(size=(T, B, *space, D))
        self.state = self.cell.zero_state((B, *space))
        self.state = self.state._replace(h=draw(self.state.h))
        self.start = self.cell.zero_state((B, *space))
        self.step = quick_jit(self.cell.step)
        run = functools.partial(unroll, self.cell, self.params)
        self.run = {engine: quick_jit(functools.partial(run, engine=engine)) for engine in ENGINES}

    def step_by_step(self, lengths, mask, resets):
        state, ys = self.state, []
        where = lambda flags, a, b: np.where(  # noqa: E731
            flags.reshape(-1, *[1] * (np.ndim(b) - 1)), a, b
        )
        for t, x in enumerate(self.xs):
            begun = jax.tree.map(functools.partial(where, resets[t]), self.start, state)
            new, y = self.step(self.params, begun, x)
            valid = (t < lengths) & mask[t]
            state = jax.tree.map(functools.partial(where, valid), new, state)
            ys.append(where(valid, y, np.zeros_like(y)))
        return state, np.stack(ys)

    def in_chunks(self, run, lengths, mask, resets):
        first = np.minimum(lengths, CUT)
        how = {"lengths": first, "mask": mask[:CUT], "resets": resets[:CUT]}
        state, ys = run(self.xs[:CUT], self.state, **how)
        how = {"lengths": lengths - first, "mask": mask[CUT:], "resets": resets[CUT:]}
        state, zs = run(self.xs[CUT:], state, **how)
        return state, np.concatenate([ys, zs])

    def padded(self, run, lengths, mask, resets):
        rubbish = np.full((MORE, *self.xs.shape[1:]), np.nan)
        flags = np.ones((MORE, B), bool)
        xs, mask, resets = (
            np.concatenate(parts) for parts in ((self.xs, rubbish), (mask, flags), (resets, flags))
        )
        state, ys = run(xs, self.state, lengths=lengths, mask=mask, resets=resets)
        assert (ys[T:] == 0).all()
        return state, ys[:T]


ENGINES = ("scan", "fused")
ways = functools.cache(Ways)


@pytest.mark.parametrize("name", list(CELLS))
@hypothesis.settings(deadline=None, max_examples=6)
@hypothesis.given(
    st.lists(st.integers(0, T), min_size=B, max_size=B),
    st.lists(st.booleans(), min_size=T * B, max_size=T * B),
    st.lists(st.booleans(), min_size=T * B, max_size=T * B),
)
def test_whole_stepwise_chunked_and_padded_runs_are_equal(name, lengths, mask, resets):
    lengths, mask, resets = (
        np.array(lengths),
        np.array(mask).reshape(T, B),
        np.array(resets).reshape(T, B),
    )
    with jax.enable_x64(True):
        way = ways(name)
        expected = way.step_by_step(lengths, mask, resets)
        # The same sums of about ten float64 numbers, some of which a compiler may fuse.
        close = functools.partial(chex.assert_trees_all_close, rtol=1e-11, atol=1e-13)
        for engine, run in way.run.items():
            close(
                run(way.xs, way.state, lengths=lengths, mask=mask, resets=resets),
                expected,
                custom_message=f"whole, {engine}",
            )
            how = lengths, mask, resets
            close(way.in_chunks(run, *how), expected, custom_message=f"chunks, {engine}")
            close(way.padded(run, *how), expected, custom_message=f"padded, {engine}")


@pytest.mark.parametrize("name", list(CELLS))
def test_packed_documents_equal_separate_ones_and_a_stream(name):
    """Two documents in one row, each from the initial state, and one step at a time."""
    with jax.enable_x64(True):
        way = ways(name)
        segments = np.zeros((T, B), int)
        segments[CUT:] = 1
        resets = np.asarray(resets_from_segments(jnp.asarray(segments)))
        close = functools.partial(chex.assert_trees_all_close, rtol=1e-11, atol=1e-13)
        apart = [way.run["scan"](part, way.start)[1] for part in (way.xs[:CUT], way.xs[CUT:])]
        for engine, run in way.run.items():
            _, ys = run(way.xs, way.start, lengths=np.full(B, T), resets=resets)
            close(ys, jnp.concatenate(apart), custom_message=f"packed, {engine}")

        step = stream(way.cell, way.params, way.xs.shape[1:-1])
        for part, expected in zip((way.xs[:CUT], way.xs[CUT:]), apart, strict=True):
            state = step.initial_state()
            for x, right in zip(part, expected, strict=True):
                state, y = step(state, x)
                close(y, right, custom_message="stream")
