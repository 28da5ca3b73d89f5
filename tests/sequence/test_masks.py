"""Masked steps have no effect: at the start, in the middle, at the end, or in whole rows."""

import dataclasses
import functools
import itertools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from lstm_jax import CELLS, LSTM, Bidirectional, LSTMCell, Stack, stream, truncated, unroll
from lstm_jax.cells import BaseCell, MinGRUCell, Parameter, RNNState
from lstm_jax.cells.base import affine, zeros
from lstm_jax.sequence import choose_engine, reversed_resets
from lstm_jax.sequence.engines import obstacle
from lstm_jax.sequence.rows import flipped_by_mask, with_masked_replaced
from tests import oracles

T, B, D, H = 6, 3, 2, 3
FRONT = np.array([[0, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]], bool)
GAPS = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], bool)

# Functions that run a few times need not be fast: this halves the compile time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def flags(*shape):
    size = int(np.prod(shape))
    drawn = st.lists(st.booleans(), min_size=size, max_size=size)
    return drawn.map(lambda drawn: np.array(drawn, bool).reshape(shape))


# ---- values and gradients against the loop in NumPy ----

RUNS = [
    ("lstm", "scan", False),
    ("lstm", "fused", True),
    ("gru", "fused", False),
    ("slstm", "fused", False),
    ("min_lstm", "associative", False),
    ("min_lstm", "associative", True),
]


def weighted(ys, last):
    """A loss that weights every output and every field of the last state differently."""
    total = 0.0
    for n, array in enumerate([ys, *last]):
        weight = np.cos(np.arange(array.size) + n).reshape(array.shape)
        total = total + (weight * array * array + weight * array).sum()
    return total


class Run:
    """A cell with an engine, compiled once."""

    def __init__(self, name, engine, reverse):
        self.name, self.reverse = name, reverse
        cell = CELLS[name](hidden_size=H, param_dtype="float64")
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda a: rng.normal(size=a.shape), cell.init(jax.random.key(0), D)
        )
        self.xs = rng.normal(size=(T, B, D))
        state = jax.tree.map(lambda a: 0.5 * rng.normal(size=a.shape), cell.zero_state((B,)))
        # A normaliser is a sum of exponentials.
        self.state = state._replace(n=np.exp(state.n)) if name == "slstm" else state

        def loss(params, xs, state, lengths, mask, resets):
            last, ys = unroll(
                cell, params, xs, state, lengths=lengths, mask=mask, resets=resets,
                reverse=reverse, engine=engine,
            )  # fmt: skip
            return weighted(ys, last), (last, ys)

        self.run = quick_jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

    def expected(self, params, xs, state, lengths, mask, resets):
        last, ys = oracles.unroll(
            self.name, params, xs, state._asdict(), lengths, resets, self.reverse, mask
        )
        return type(state)(**last), ys


runs = functools.cache(Run)


@pytest.mark.parametrize(("name", "engine", "reverse"), RUNS)
@hypothesis.settings(deadline=None, max_examples=8)
@hypothesis.given(
    st.lists(st.integers(0, T), min_size=B, max_size=B),
    flags(T, B),
    flags(T, B),
    st.integers(0, 2**32 - 1),
)
def test_equals_a_loop_over_the_valid_steps(name, engine, reverse, lengths, mask, resets, seed):
    with jax.enable_x64(True):
        run = runs(name, engine, reverse)
        how = np.array(lengths), mask, resets
        spoilt = np.where((mask & (np.arange(T)[:, None] < how[0]))[..., None], run.xs, np.nan)
        (_, (last, ys)), grads = run.run(run.params, spoilt, run.state, *how)
        expected, expected_ys = run.expected(run.params, run.xs, run.state, *how)
        # Sums of ten float64 numbers of order 1 in each of six steps.
        np.testing.assert_allclose(ys, expected_ys, rtol=1e-11, atol=1e-12)
        chex.assert_trees_all_close(last, expected, rtol=1e-11, atol=1e-12)

        # Central differences of the NumPy loop, in a random direction of length one: their error is
        # the third derivative times step**2 = 1e-10, plus 1e-15 / step = 1e-10.
        rng, step = np.random.default_rng(seed), 1e-5
        args = run.params, run.xs, run.state
        tangent = jax.tree.map(lambda a: rng.normal(size=a.shape), args)
        length = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tangent)))
        values = []
        for sign in (1, -1):
            moved = jax.tree.map(lambda a, v, s=sign: a + s * step * v / length, args, tangent)
            values.append(weighted(*run.expected(*moved, *how)[::-1]))
        along = sum(
            np.vdot(g, v / length)
            for g, v in zip(jax.tree.leaves(grads), jax.tree.leaves(tangent), strict=True)
        )
        np.testing.assert_allclose(
            along, (values[0] - values[1]) / (2 * step), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("memory", ["recompute", "sqrt"])
@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_memory_plans_have_the_same_gradients(engine, memory):
    cell = LSTMCell(H)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))

    def grads(**how):
        loss = lambda p, xs: weighted(*unroll(cell, p, xs, mask=GAPS, **how)[::-1])  # noqa: E731
        return quick_jit(jax.grad(loss, (0, 1)))(params, xs)

    # Float32 sums of about twenty terms, in another order.
    chex.assert_trees_all_close(
        grads(engine=engine, memory=memory), grads(engine="scan"), rtol=2e-5, atol=2e-6
    )


def test_lengths_are_a_mask():
    cell = LSTMCell(H)
    params = cell.init(jax.random.key(0), D)
    xs, lengths = jax.random.normal(jax.random.key(1), (T, B, D)), np.array([6, 2, 0])
    run = functools.partial(unroll, cell, params, xs)
    by_lengths = run(lengths=lengths)
    chex.assert_trees_all_equal(by_lengths, run(mask=np.arange(T)[:, None] < lengths))
    assert (by_lengths[1][2:, 1] == 0).all() and (by_lengths[1][:, 2] == 0).all()


# ---- NaN ----


@dataclasses.dataclass(frozen=True)
class Singular(BaseCell):
    """A cell that is finite only for positive inputs: zero gives log 0, 1 / 0 and 0 / 0."""

    def parameters(self, input_size):
        return {
            "w_ih": self.declare("kernel", (input_size, self.hidden_size)),
            "w_hh": self.declare("recurrent_kernel", (self.hidden_size, self.hidden_size)),
            "b": Parameter(zeros, (self.hidden_size,)),
        }

    def zero_state(self, batch_shape=()):
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def equations(self, params, state, x):
        x = jnp.log(x) + 1 / x + x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        grown = jnp.exp(0.1 * jnp.square(state.h).sum(-1, keepdims=True))
        h = jnp.tanh(affine(params, state.h, x)) * grown
        return RNNState(h=h), h


@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_equations_that_are_singular_at_zero_are_finite_at_masked_steps(engine):
    cell = Singular(H)
    params = cell.init(jax.random.key(0), D)
    xs = 1.0 + jax.random.uniform(jax.random.key(1), (T, B, D))
    spoilt = jnp.where(GAPS[..., None], xs, 0.0)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def run(params, xs):
        state, ys = unroll(cell, params, xs, mask=GAPS, engine=engine)
        return ys.sum() + state.h.sum()

    chex.assert_trees_all_equal(run(params, spoilt), run(params, xs))
    chex.assert_tree_all_finite(run(params, spoilt))


@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_a_masked_step_does_not_compute_with_the_state_that_it_carries(engine):
    """exp(h²) of a large state is infinite, and its derivative times zero is NaN."""
    cell = Singular(H)
    params = cell.init(jax.random.key(0), D)
    state = RNNState(h=jnp.full((B, H), 30.0))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def grads(params, xs, state):
        state, ys = unroll(cell, params, xs, state, mask=np.zeros((T, B), bool), engine=engine)
        return ys.sum() + state.h.sum()

    d_params, d_xs, d_state = grads(params, jnp.full((T, B, D), jnp.inf), state)
    chex.assert_trees_all_equal(d_params, jax.tree.map(jnp.zeros_like, d_params))
    assert (d_xs == 0).all() and (d_state.h == 1).all()


def test_replaced_inputs():
    xs = jnp.array([[[np.nan, 1.0]], [[np.inf, 2.0]], [[3.0, 3.0]]])
    valid = np.array([[False], [True], [False]])
    np.testing.assert_array_equal(
        with_masked_replaced(xs, valid)[:, 0], [[1, 2], [np.inf, 2], [1, 2]]
    )
    np.testing.assert_array_equal(with_masked_replaced(xs, ~valid[:1].repeat(3, 0)), xs)
    assert (with_masked_replaced(xs, np.zeros((3, 1), bool)) == 1).all()
    assert with_masked_replaced(xs[:0], valid[:0]).shape == (0, 1, 2)


# ---- resets ----


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
    flags(T, B), flags(T, B), st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B)
)
def test_documents_end_at_the_valid_step_before_the_next_document(resets, mask, lengths):
    ends = np.asarray(
        reversed_resets(resets, None if lengths is None else jnp.array(lengths), mask=mask)
    )
    for row in range(B):
        steps = [t for t in range(T) if mask[t, row] and (lengths is None or t < lengths[row])]
        expected = np.zeros(T, bool)
        for t, following in itertools.pairwise(steps):
            expected[t] = resets[following, row]
        np.testing.assert_array_equal(ends[:, row], expected)


def test_flags_of_another_shape():
    with pytest.raises(
        ValueError, match=r"mask must have the shape of resets, \(6, 3\), got.*\(6,"
    ):
        reversed_resets(GAPS, mask=GAPS[:, :1])
    with pytest.raises(TypeError, match="mask must be booleans, got int"):
        reversed_resets(GAPS, mask=GAPS.astype(int))


# ---- layers ----


@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_both_directions_skip_the_same_steps(engine):
    layer = Bidirectional(LSTMCell(H), engine=engine)
    params = layer.init(jax.random.key(0), D)
    xs = np.asarray(jax.random.normal(jax.random.key(1), (T, B, D)))
    resets = np.zeros((T, B), bool)
    resets[[3, 4], [1, 0]] = True
    resets[[0, 3], [2, 0]] = True  # of a masked row, and at a masked step
    spoilt = np.where(GAPS[..., None], xs, np.nan)
    state, ys = jax.jit(functools.partial(layer.apply, mask=GAPS, resets=resets))(params, spoilt)
    # By hand: in row 0, steps 1 and 4 are a document each; in row 1, steps 0, 1 and steps 3, 5.
    documents = [(0, [1]), (0, [4]), (1, [0, 1]), (1, [3, 5])]
    expected, last = np.zeros((T, B, 2 * H)), {}
    for row, steps in documents:
        part = xs[steps][:, row : row + 1]
        ends, ahead = oracles.unroll("lstm", params["forward"], part)
        begins, back = oracles.unroll("lstm", params["backward"], part, reverse=True)
        expected[steps, row] = np.concatenate([ahead, back], -1)[:, 0]
        last[row] = ends["h"][0], last.get(row, (0, begins["h"][0]))[1]  # the first document's
    np.testing.assert_allclose(ys, expected, atol=1e-6)  # float32 sums of order 1
    for row, (forward, backward) in last.items():
        np.testing.assert_allclose(state.forward.h[row], forward, atol=1e-6)
        np.testing.assert_allclose(state.backward.h[row], backward, atol=1e-6)
    assert (state.forward.h[2] == 0).all() and (state.backward.c[2] == 0).all()


def test_custom_merges_give_zero_and_no_gradient_at_masked_steps():
    def merge(ys, zs):  # of two zeros 0 / 0
        return 1.0 + ys / jnp.linalg.norm(ys, axis=-1, keepdims=True) + zs

    layer = Bidirectional(LSTMCell(H), merge=merge)
    params = layer.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(params):
        _, ys = layer.apply(params, xs, mask=GAPS)
        return (ys**2).sum(), ys

    grads, ys = run(params)
    assert (np.asarray(ys)[~GAPS] == 0).all() and (np.asarray(ys)[GAPS] != 0).all()
    chex.assert_tree_all_finite(grads)


@pytest.mark.parametrize("connections", ["plain", "residual", "skip"])
def test_stacks_pass_the_mask_to_every_layer(connections):
    """Rows without their masked steps give the same outputs, one row at a time."""
    layers = [Bidirectional(LSTMCell(H)), LSTMCell(2 * H)]
    stack = Stack(layers, connections=connections)
    params = stack.init(jax.random.key(0), D)
    xs = np.asarray(jax.random.normal(jax.random.key(1), (T, B, D)))
    apply = jax.jit(stack.apply)
    spoilt = np.where(FRONT[..., None], xs, np.nan)
    state, ys = apply(params, spoilt, mask=FRONT)
    assert (np.asarray(ys)[~FRONT] == 0).all()
    short, short_ys = apply(params, xs[2:, :1])
    np.testing.assert_allclose(ys[2:, :1], short_ys, atol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[:1], state), short, atol=1e-6)


def test_lstm_takes_a_mask():
    lstm = LSTM(H, num_layers=2, reverse=True)
    params = lstm.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    how = {"mask": GAPS, "resets": FRONT}
    chex.assert_trees_all_equal(lstm.apply(params, xs, **how), lstm.stack.apply(params, xs, **how))
    assert (np.asarray(lstm.apply(params, xs, **how)[1])[~GAPS] == 0).all()


def test_windows_share_the_mask():
    cell = LSTMCell(H)
    run = functools.partial(unroll, cell, cell.init(jax.random.key(0), D))
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    how = {"mask": jnp.asarray(GAPS), "lengths": jnp.array([5, 6, 6])}
    whole = jax.jit(functools.partial(run, **how))(xs)
    parts = jax.jit(functools.partial(truncated, run, window=2, burn_in=1, **how))(xs)
    chex.assert_trees_all_close(parts, whole, atol=1e-6)


def test_a_stream_skips_masked_rows():
    lstm = LSTM(H, num_layers=2)
    params = lstm.init(jax.random.key(0), D)
    xs = np.asarray(jax.random.normal(jax.random.key(1), (T, B, D)))
    last, ys = jax.jit(functools.partial(lstm.apply, mask=GAPS))(params, xs)
    step = stream(lstm, params, (B,))
    state = step.initial_state()
    for x, y, mask in zip(np.where(GAPS[..., None], xs, np.nan), ys, GAPS, strict=True):
        state, out = step(state, x, mask)
        np.testing.assert_allclose(out, y, atol=1e-6)
    chex.assert_trees_all_close(state, last, atol=1e-6)
    kept, out = step(state, xs[0], mask=np.zeros(B, bool))
    chex.assert_trees_all_equal(kept, state)
    assert (out == 0).all()

    def loss(x, state):  # traced, with a NaN in the masked row
        state, y = step(state, x, jnp.array([True, False, True]))
        return y.sum() + state["layer_1"].h.sum()

    x = jnp.asarray(xs[0]).at[1].set(jnp.nan)
    d_x, d_state = jax.jit(jax.grad(loss, (0, 1)))(x, step.initial_state())
    chex.assert_tree_all_finite((d_x, d_state))
    assert (d_x[1] == 0).all() and (d_state["layer_1"].h[1] == 1).all()


def test_outputs_flipped_within_valid_steps():
    xs = np.arange(T * B, dtype=float).reshape(T, B)
    out = np.asarray(flipped_by_mask(xs, GAPS))
    for row in range(B):
        steps = np.flatnonzero(GAPS[:, row])
        np.testing.assert_array_equal(out[steps, row], xs[steps[::-1], row])
    np.testing.assert_array_equal(out[~GAPS], xs[~GAPS])


# ---- engines and errors ----


def test_cudnn_supports_lengths_but_not_masks():
    cell = LSTMCell(64)
    how = {"dtype": "float32", "resets": False, "memory": "full", "platform": "gpu"}
    assert obstacle("cudnn", cell, 5, (4,), mask=True, **how) == "supports lengths, not a mask"
    assert obstacle("cudnn", cell, 5, (4,), mask=False, **how) is None
    choice = choose_engine(cell, 5, (4,), mask=True, platform="gpu")
    assert choice.engine == "fused"
    assert choice.rejected["cudnn"] == "supports lengths, not a mask"
    assert choose_engine(MinGRUCell(4), 5, (4,), mask=True, platform="gpu").engine == "associative"


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones((T, B)), TypeError, "mask must be booleans, got float"),
        (
            np.ones((B, T), bool),
            ValueError,
            r"mask must have the time and batch axes of xs, \(6, 3\)",
        ),
        (np.ones(T, bool), ValueError, r"xs, \(6, 3\), got shape \(6,\)"),
    ],
)
def test_bad_masks(mask, error, message):
    cell = LSTMCell(H)
    params = cell.init(jax.random.key(0), D)
    with pytest.raises(error, match=message):
        unroll(cell, params, jnp.zeros((T, B, D)), mask=mask)


def test_bad_masks_of_a_stream():
    cell = LSTMCell(H)
    step = stream(cell, cell.init(jax.random.key(0), D), (B,))
    with pytest.raises(TypeError, match="mask must be booleans, got float"):
        step(step.initial_state(), np.zeros((B, D)), np.ones(B))
    with pytest.raises(
        ValueError, match=r"mask must have the stream's batch shape \(3,\), got.*\(2,\)"
    ):
        step(step.initial_state(), np.zeros((B, D)), np.ones(2, bool))
