import functools
import itertools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Bidirectional, LSTMCell, LSTMState, Stack
from lstm_jax.cells import RNNCell
from lstm_jax.sequence import BidirectionalState, Zoneout
from tests import oracle

T, B, D, H = 6, 4, 3, 5
LAYER = Bidirectional(LSTMCell(H))
PARAMS = LAYER.init(jax.random.key(0), D)
XS = jax.random.normal(jax.random.key(1), (T, B, D))
LENGTHS = [6, 3, 1, 0]
RUN = jax.jit(functools.partial(LAYER.apply, PARAMS, XS))


def turned(xs, lengths):
    """Reverses the valid steps of each row; padding stays where it is."""
    xs = np.array(xs)
    for row, length in enumerate(lengths):
        xs[:length, row] = xs[:length, row][::-1]
    return xs


def random_state():
    h, c = jax.random.normal(jax.random.key(2), (2, 2, B, H))
    return BidirectionalState(LSTMState(h[0], c[0]), LSTMState(h[1], c[1]))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_equals_numpy_loops_in_both_directions(lengths):
    state, ys = LAYER.apply(
        PARAMS, XS, random_state(), lengths=None if lengths is None else jnp.array(lengths)
    )
    lengths = lengths or [T] * B
    start = random_state()
    h, c, there = oracle.lstm(PARAMS["forward"], XS, *start.forward, lengths)
    hb, cb, back = oracle.lstm(PARAMS["backward"], turned(XS, lengths), *start.backward, lengths)
    expected = np.concatenate([there, turned(back, lengths)], -1)
    np.testing.assert_allclose(ys, expected, atol=2e-6)
    for given, wanted in zip(jax.tree.leaves(state), (h, c, hb, cb), strict=True):
        np.testing.assert_allclose(given, wanted, atol=2e-6)


def test_last_states_are_those_at_both_ends():
    state, ys = LAYER.apply(PARAMS, XS, lengths=jnp.array(LENGTHS))
    np.testing.assert_array_equal(state.forward.h[1], ys[LENGTHS[1] - 1, 1, :H])
    np.testing.assert_array_equal(state.backward.h[:3], ys[0, :3, H:])
    np.testing.assert_array_equal(state.backward.h[3], np.zeros(H))  # a row without valid steps


def test_a_state_can_be_given_for_one_direction():
    start = random_state()
    both, _ = LAYER.apply(PARAMS, XS, start._replace(forward=LAYER.forward.zero_state((B,))))
    one, _ = LAYER.apply(PARAMS, XS, start._replace(forward=None))
    chex.assert_trees_all_equal(one, both)


def test_directions_have_separate_parameters():
    assert not np.array_equal(PARAMS["forward"]["w_hh"], PARAMS["backward"]["w_hh"])


MERGED = {
    "sum": lambda f, b: f + b,
    "mean": lambda f, b: 0.5 * f + 0.5 * b,
    "product": lambda f, b: f * b,
}


@pytest.mark.parametrize("merge", MERGED)
def test_merge(merge):
    layer = Bidirectional(LSTMCell(H), merge=merge)
    state, ys = LAYER.apply(PARAMS, XS)
    merged_state, merged = layer.apply(PARAMS, XS)
    expected = MERGED[merge](*np.split(np.asarray(ys), 2, -1))
    np.testing.assert_allclose(merged, expected, rtol=1e-6)  # one rounding error
    chex.assert_trees_all_equal(merged_state, state)
    assert layer.output_size == merged.shape[-1] == H


def test_custom_merge_gives_zeros_past_the_lengths():
    def largest(forward, backward):
        return jnp.maximum(forward, backward)[..., :2] + 1

    layer = Bidirectional(LSTMCell(H), merge=largest)
    _, ys = layer.apply(PARAMS, XS, lengths=jnp.array(LENGTHS))
    _, both = LAYER.apply(PARAMS, XS, lengths=jnp.array(LENGTHS))
    expected = np.maximum(both[..., :2], both[..., H : H + 2]) + 1
    past = np.arange(T)[:, None] >= np.array(LENGTHS)
    np.testing.assert_array_equal(ys, np.where(past[..., None], 0, expected))
    assert layer.output_size == 2


def test_two_kinds_of_cells():
    layer = Bidirectional(LSTMCell(H), RNNCell(2))
    params = layer.init(jax.random.key(0), D)
    state, ys = layer.apply(params, XS)
    assert (layer.output_size, ys.shape) == (H + 2, (T, B, H + 2))
    np.testing.assert_array_equal(ys[0, :, H:], state.backward.h)


@st.composite
def documents(draw):
    """The first step of each document in each row, and the lengths of the rows."""
    starts = draw(st.lists(st.booleans(), min_size=T * B, max_size=T * B))
    return np.array(starts).reshape(T, B), draw(st.lists(st.integers(0, T), min_size=B, max_size=B))


@hypothesis.settings(deadline=None, max_examples=10)
@hypothesis.given(documents())
def test_packed_documents_equal_separate_documents_in_numpy(drawn):
    resets, lengths = drawn
    _, ys = RUN(lengths=jnp.array(lengths), resets=jnp.array(resets))
    expected = np.zeros((T, B, 2 * H))
    for row, length in enumerate(lengths):
        cuts = sorted({0, length, *(t for t in range(length) if resets[t, row])})
        for start, stop in itertools.pairwise(cuts):
            document = XS[start:stop, row : row + 1]
            there = oracle.lstm(PARAMS["forward"], document)[2]
            back = oracle.lstm(PARAMS["backward"], document[::-1])[2][::-1]
            expected[start:stop, row] = np.concatenate([there, back], -1)[:, 0]
    np.testing.assert_allclose(ys, expected, atol=2e-6)


def test_a_flag_past_the_end_does_not_reset_the_backward_state():
    lengths = jnp.array([4, 3, 6, 2])
    resets = jnp.zeros((T, B), bool).at[4, 0].set(True).at[3, 1].set(True)
    plain = LAYER.apply(PARAMS, XS, random_state(), lengths=lengths)
    flagged = LAYER.apply(PARAMS, XS, random_state(), lengths=lengths, resets=resets)
    # Resets add operations that the compiler fuses: results differ by a rounding error.
    chex.assert_trees_all_close(flagged, plain, atol=1e-6)


def test_learned_initial_states_apply_at_both_ends_and_at_every_reset():
    layer = Bidirectional(LSTMCell(H, learn_initial_state=True))
    params = layer.init(jax.random.key(0), D)
    params = jax.tree.map(lambda a: a + 0.1, params)
    begin = layer.initial_state(params, (B,))
    assert (begin.backward.h == 0.1).all()
    chex.assert_trees_all_equal(layer.apply(params, XS, begin), layer.apply(params, XS))
    resets = jnp.zeros((T, B), bool).at[3].set(True)
    _, ys = layer.apply(params, XS, resets=resets)
    apart = [layer.apply(params, part)[1] for part in (XS[:3], XS[3:])]
    np.testing.assert_allclose(ys, jnp.concatenate(apart), atol=1e-6)


def test_noise_is_sampled_for_each_direction():
    layer = Bidirectional(Zoneout(LSTMCell(H)), merge=lambda f, b: f - b[::-1])
    params = layer.init(jax.random.key(0), D)
    params["backward"] = params["forward"]
    xs = jnp.concatenate([XS, XS[::-1]])  # both directions read the same inputs
    calm, noisy = (layer.apply(params, xs, key=key)[1] for key in (None, jax.random.key(3)))
    np.testing.assert_array_equal(calm, jnp.zeros_like(calm))
    assert (noisy != 0).any()


@pytest.mark.parametrize("leading", [(), (2, 2)])
def test_any_number_of_batch_axes(leading):
    xs = XS[:, : int(np.prod(leading))].reshape(T, *leading, D)
    lengths = jnp.full(leading, 4)
    _, ys = LAYER.apply(PARAMS, xs, lengths=lengths, resets=jnp.zeros(xs.shape[:-1], bool))
    _, flat = LAYER.apply(PARAMS, xs.reshape(T, -1, D), lengths=lengths.reshape(-1))
    np.testing.assert_allclose(ys.reshape(flat.shape), flat, atol=1e-6)


def test_no_steps():
    start = random_state()
    state, ys = LAYER.apply(
        PARAMS, XS[:0], start, lengths=jnp.zeros(B, int), resets=jnp.zeros((0, B), bool)
    )
    chex.assert_trees_all_equal(state, start)
    assert ys.shape == (0, B, 2 * H)


class TestTransforms:
    @staticmethod
    def loss(params, xs, state):
        resets = jnp.zeros((T, B), bool).at[2, 0].set(True)
        last, ys = LAYER.apply(params, xs, state, lengths=jnp.array(LENGTHS), resets=resets)
        return jnp.sin(ys).sum() + jnp.cos(last.backward.c).sum()

    def test_gradients_equal_finite_differences(self):
        with jax.enable_x64(True):
            args = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (PARAMS, XS, random_state()))
            jax.test_util.check_grads(jax.jit(self.loss), args, order=1, modes=["rev"])

    def test_vmap_is_an_ensemble(self):
        members = jax.vmap(lambda key: LAYER.init(key, D))(jax.random.split(jax.random.key(0), 2))
        _, ys = jax.jit(jax.vmap(lambda params: LAYER.apply(params, XS)))(members)
        alone = LAYER.apply(jax.tree.map(lambda a: a[1], members), XS)[1]
        np.testing.assert_allclose(ys[1], alone, atol=1e-6)

    def test_is_a_static_argument_that_compiles_once(self):
        run = jax.jit(lambda layer, params, xs: layer.apply(params, xs)[1], static_argnums=0)
        run(LAYER, PARAMS, XS)
        run(Bidirectional(LSTMCell(H), LSTMCell(H)), PARAMS, 2 * XS)
        assert run._cache_size() == 1


class TestErrors:
    def test_objects_that_are_not_cells(self):
        with pytest.raises(TypeError, match=r"forward must be a cell .*got <class"):
            Bidirectional(LSTMCell)
        with pytest.raises(TypeError, match=r"backward must be a cell .*got Stack"):
            Bidirectional(LSTMCell(H), Stack([LSTMCell(H)]))

    def test_unknown_merge(self):
        with pytest.raises(ValueError, match=r"merge must be a function or one of concat, .*'ave'"):
            Bidirectional(LSTMCell(H), merge="ave")
        with pytest.raises(TypeError, match="merge must be a function or the name of one, got 3"):
            Bidirectional(LSTMCell(H), merge=3)

    def test_merge_of_different_widths(self):
        with pytest.raises(ValueError, match=r"'sum' needs outputs of equal size, got 5 .* and 2"):
            Bidirectional(LSTMCell(H), LSTMCell(2), merge="sum")

    def test_parameters_of_one_cell(self):
        with pytest.raises(TypeError, match="params must have the entries forward, backward, got"):
            LAYER.apply(PARAMS["forward"], XS)

    def test_state_of_one_cell(self):
        with pytest.raises(TypeError, match=r"state must be BidirectionalState.*got LSTMState"):
            LAYER.apply(PARAMS, XS, LSTMCell(H).zero_state((B,)))
