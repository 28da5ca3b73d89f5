"""Noise in training: its arithmetic against NumPy, its statistics, and when it is off."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import CELLS, LSTM, Bidirectional, LSTMCell, Stack, unroll
from lstm_jax.cells import GatedCell, RNNCell
from lstm_jax.sequence import DropConnect, RecurrentDropout, VariationalDropout, Zoneout
from lstm_jax.sequence.protocol import is_stochastic
from lstm_jax.sequence.regularizers import Regularizer, noisy_step, single_step
from tests import oracle

T, B, D, H = 6, 3, 4, 5
CELL = LSTMCell(H)
PARAMS = CELL.init(jax.random.key(0), D)
XS = jax.random.normal(jax.random.key(1), (T, B, D))
KEY = jax.random.key(2)
KINDS = {
    "zoneout": Zoneout(CELL, hidden_rate=0.3, cell_rate=0.6),
    "variational": VariationalDropout(CELL, 0.3, 0.4, 0.5),
    "recurrent": RecurrentDropout(CELL, 0.4),
    "dropconnect": DropConnect(CELL, 0.4),
    "nested": Zoneout(VariationalDropout(DropConnect(RecurrentDropout(CELL)))),
}
f64 = functools.partial(np.asarray, dtype=np.float64)


def numpy_params(params=PARAMS):
    return {name: f64(array) for name, array in params.items()}


def test_zoneout_equals_the_numpy_loop_with_the_same_masks():
    cell = KINDS["zoneout"]
    last, ys = unroll(cell, PARAMS, XS, key=KEY)
    _, (masks, _) = noisy_step(cell, PARAMS, KEY, XS.shape)
    h = c = np.zeros((B, H))
    for t in range(T):
        new_h, new_c = oracle.lstm_step(numpy_params(), h, c, f64(XS[t]))
        h = np.where(masks.h[t], h, new_h)
        c = np.where(masks.c[t], c, new_c)
        np.testing.assert_allclose(ys[t], h, atol=2e-6)
    np.testing.assert_allclose(last.c, c, atol=2e-6)


def test_zoneout_in_evaluation_uses_the_mean():
    cell = KINDS["zoneout"]
    last, ys = unroll(cell, PARAMS, XS)
    h = c = np.zeros((B, H))
    for t in range(T):
        new_h, new_c = oracle.lstm_step(numpy_params(), h, c, f64(XS[t]))
        h, c = 0.3 * h + 0.7 * new_h, 0.6 * c + 0.4 * new_c
        np.testing.assert_allclose(ys[t], h, atol=2e-6)
    np.testing.assert_allclose(last.c, c, atol=2e-6)


def test_zoneout_in_evaluation_averages_a_stabilised_state_on_one_scale():
    """An sLSTM stores c and n relative to exp(m); c exp(m) and n exp(m) are averaged."""
    cell = CELLS["slstm"](hidden_size=H)
    params = cell.init(jax.random.key(0), D)
    zoned = Zoneout(cell, hidden_rate=0.3, cell_rate=0.6)
    state, _ = cell.step(params, cell.zero_state((B,)), XS[0])
    new, _ = cell.step(params, state, XS[1])
    mean, _ = zoned.step(params, state, XS[1])
    for name in "cn":
        stored, renewed, averaged = (
            f64(getattr(s, name)) * np.exp(f64(s.m)) for s in (state, new, mean)
        )
        np.testing.assert_allclose(averaged, 0.6 * stored + 0.4 * renewed, rtol=1e-5)
    np.testing.assert_allclose(mean.h, 0.3 * state.h + 0.7 * new.h, atol=1e-6)


def test_zoneout_zones_at_its_rates():
    cell = Zoneout(LSTMCell(50), hidden_rate=0.2, cell_rate=0.7)
    params = cell.init(jax.random.key(0), D)
    _, (masks, _) = noisy_step(cell, params, KEY, (40, 20, D))
    for mask, rate in ((masks.h, 0.2), (masks.c, 0.7)):
        # Five deviations of the mean of 40,000 tosses.
        assert abs(mask.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / mask.size)
    assert not np.array_equal(masks.c[0], masks.c[1])


def test_variational_dropout_equals_the_numpy_loop_with_one_mask_per_sequence():
    """Each mask shows as zero columns of inputs, states or outputs."""
    cell = VariationalDropout(CELL, input_rate=0.3, state_rate=0.4, output_rate=0.5)
    ones = cell.init(jax.random.key(0), D)
    keys = jax.random.split(KEY, 4)
    masks = [
        f64(jax.random.bernoulli(key, 1 - rate, (B, size))) / (1 - rate)
        for key, rate, size in zip(keys, (0.3, 0.4, 0.5), (D, H, H), strict=False)
    ]
    last, ys = unroll(cell, ones, XS, key=KEY)
    h = c = np.zeros((B, H))
    for t in range(T):
        h, c = oracle.lstm_step(numpy_params(ones), masks[1] * h, c, masks[0] * f64(XS[t]))
        np.testing.assert_allclose(ys[t], masks[2] * h, atol=3e-6)
    np.testing.assert_allclose(last.h, h, atol=3e-6)


@pytest.mark.parametrize("rate", ["input_rate", "state_rate", "output_rate"])
def test_variational_rates_are_independent(rate):
    off = dict(input_rate=0.0, state_rate=0.0, output_rate=0.0)
    plain = unroll(VariationalDropout(CELL, **off), PARAMS, XS, key=KEY)
    chex.assert_trees_all_equal(plain, unroll(CELL, PARAMS, XS))
    _, noisy = unroll(VariationalDropout(CELL, **(off | {rate: 0.6})), PARAMS, XS, key=KEY)
    assert not np.allclose(noisy, plain[1])


def test_recurrent_dropout_equals_the_numpy_loop_with_the_same_masks():
    cell = KINDS["recurrent"]
    last, ys = unroll(cell, PARAMS, XS, key=KEY)
    _, keep = noisy_step(cell, PARAMS, KEY, XS.shape)
    p, h, c = numpy_params(), np.zeros((B, H)), np.zeros((B, H))
    for t in range(T):
        z = f64(XS[t]) @ p["w_ih"] + h @ p["w_hh"] + p["b"]
        i, f, g, o = np.split(z, 4, -1)
        dropped = np.where(keep[t], np.tanh(g) / 0.6, 0.0)
        c = oracle.sigmoid(f) * c + oracle.sigmoid(i) * dropped
        h = oracle.sigmoid(o) * np.tanh(c)
        np.testing.assert_allclose(ys[t], h, atol=2e-6)
    np.testing.assert_allclose(last.c, c, atol=2e-6)


def test_dropconnect_equals_the_numpy_loop_with_the_masked_weights():
    cell = KINDS["dropconnect"]
    _, ys = unroll(cell, PARAMS, XS, key=KEY)
    mask = jax.random.bernoulli(jax.random.split(KEY)[0], 0.6, PARAMS["w_hh"].shape)
    weights = {**PARAMS, "w_hh": jnp.where(mask, PARAMS["w_hh"] / 0.6, 0.0)}
    _, _, expected = oracle.lstm(weights, XS)
    np.testing.assert_allclose(ys, expected, atol=2e-6)


@pytest.mark.parametrize("kind", ["variational", "recurrent", "dropconnect"])
def test_dropout_is_off_without_a_key(kind):
    chex.assert_trees_all_equal(unroll(KINDS[kind], PARAMS, XS), unroll(CELL, PARAMS, XS))


def test_what_is_stochastic():
    class Mine(Regularizer):
        """Has no rates to decide from."""

    assert all(map(is_stochastic, [*KINDS.values(), Mine(CELL), Zoneout(Mine(CELL), 0.0, 0.0)]))
    quiet = Zoneout(
        VariationalDropout(DropConnect(RecurrentDropout(CELL, 0.0), 0.0), 0, 0, 0), 0, 0
    )
    assert not any(map(is_stochastic, [CELL, quiet, Stack([CELL, quiet]), Bidirectional(quiet)]))
    assert is_stochastic(Stack([CELL, CELL], dropout=0.1))
    assert not is_stochastic(Stack([CELL], dropout=0.1))  # no dropout between layers
    assert not is_stochastic(LSTM(H, 2)) and is_stochastic(LSTM(H, 2, dropout=0.1))
    assert is_stochastic(Stack([Bidirectional(CELL, Zoneout(CELL))]))


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    @pytest.mark.parametrize("key", [KEY, None])
    def test_a_single_step_is_a_sequence_of_one(self, kind, key):
        state = jax.tree.map(jnp.ones_like, CELL.zero_state((B,)))
        expected, (y,) = unroll(KINDS[kind], PARAMS, XS[:1], state, key=key)
        step = single_step(KINDS[kind], PARAMS, state, XS[0], key)
        chex.assert_trees_all_close(step, (expected, y), atol=1e-6)

    def test_the_same_key_gives_the_same_noise_and_another_key_another(self, kind):
        first, again, other = (
            unroll(KINDS[kind], PARAMS, XS, key=k)[1] for k in (KEY, KEY, jax.random.key(3))
        )
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other)

    def test_jit_grad_lengths_resets_and_reverse(self, kind):
        lengths = jnp.array([T, 2, 0])
        resets = jnp.zeros((T, B), bool).at[3, 0].set(True)

        @jax.jit
        def loss(params, xs):
            state, ys = unroll(
                KINDS[kind], params, xs, lengths=lengths, resets=resets, reverse=True, key=KEY
            )
            return (ys**2).sum() + (state.c**2).sum(), ys

        dirty = XS.at[2:, 1].set(jnp.nan).at[:, 2].set(jnp.nan)
        (clean, ys), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(PARAMS, XS)
        (same, _), spoilt = jax.value_and_grad(loss, (0, 1), has_aux=True)(PARAMS, dirty)
        assert clean == same
        chex.assert_trees_all_equal(grads, spoilt)
        chex.assert_tree_all_finite(grads)
        np.testing.assert_array_equal(ys[2:, 1], np.zeros((T - 2, H)))

    def test_is_a_hashable_cell(self, kind):
        cell = KINDS[kind]
        assert hash(cell) == hash(KINDS[kind])
        assert (cell.hidden_size, cell.output_size) == (H, H)
        chex.assert_trees_all_equal(cell.init(jax.random.key(0), D), PARAMS)


def test_resets_restore_the_learned_initial_state_of_the_cell_inside():
    cell = DropConnect(LSTMCell(H, learn_initial_state=True), 0.0)
    params = cell.init(jax.random.key(0), D)
    params["h_0"] = jnp.ones(H)
    expected = unroll(cell.cell, params, XS)
    chex.assert_trees_all_equal(unroll(cell, params, XS, key=KEY), expected)


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_can_be_regularised(name):
    cell = CELLS[name](hidden_size=4)
    space = (5,) * (getattr(cell, "num_feature_axes", 1) - 1)
    xs = jax.random.normal(jax.random.key(1), (3, 2, *space, 3))
    params = cell.init(jax.random.key(0), 3)
    _, plain = unroll(cell, params, xs)
    regularised = VariationalDropout(Zoneout(cell))
    if not cell.is_linear:
        regularised = DropConnect(regularised)
    elif name in ("min_lstm", "min_gru"):
        with pytest.raises(ValueError, match="DropConnect needs a cell with recurrent weights"):
            unroll(DropConnect(cell), params, xs, key=KEY)
    _, noisy = unroll(regularised, params, xs, key=KEY)
    assert noisy.shape == plain.shape
    assert np.isfinite(noisy).all()
    assert not np.allclose(noisy, plain)


GATED = [name for name, kind in CELLS.items() if isinstance(kind(hidden_size=4), GatedCell)]


@pytest.mark.parametrize("name", GATED)
def test_recurrent_dropout_of_everything_leaves_every_gated_cell_its_zero_state(name):
    """Nothing is written, so that the state remains zero."""
    cell = CELLS[name](hidden_size=4)
    space = (5,) * (cell.num_feature_axes - 1)
    xs = jax.random.normal(jax.random.key(1), (1, *space, 3))
    params = cell.init(jax.random.key(0), 3)
    state, _ = unroll(RecurrentDropout(cell, 1 - 1e-7), params, xs, key=KEY)
    np.testing.assert_array_equal(state.c if hasattr(state, "c") else state.h, 0.0)
    state, _ = unroll(cell, params, xs)
    assert (np.asarray(state.c if hasattr(state, "c") else state.h) != 0).any()


def test_recurrent_dropout_creates_no_class_on_each_call():
    def count():
        unroll(RecurrentDropout(CELL), PARAMS, XS, key=KEY, engine="scan")
        return len(type(CELL).__subclasses__())

    assert count() == count()


class TestErrors:
    @pytest.mark.parametrize("rate", [-0.1, 1.0, "0.5", True])
    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            (Zoneout, "hidden_rate"),
            (Zoneout, "cell_rate"),
            (VariationalDropout, "input_rate"),
            (VariationalDropout, "state_rate"),
            (VariationalDropout, "output_rate"),
            (RecurrentDropout, "rate"),
            (DropConnect, "rate"),
        ],
    )
    def test_rates_out_of_range(self, kind, name, rate):
        with pytest.raises(ValueError, match=f"{name} must be at least 0 and below 1, got"):
            kind(CELL, **{name: rate})

    def test_recurrent_dropout_needs_gates_directly_inside(self):
        with pytest.raises(TypeError, match="RecurrentDropout drops the candidate of a cell with"):
            RecurrentDropout(RNNCell(3))
        with pytest.raises(TypeError, match="must wrap that cell directly, got Zoneout"):
            RecurrentDropout(Zoneout(CELL))
