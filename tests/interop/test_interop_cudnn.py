"""The weight buffer of ``jax.experimental.rnn``, compared with JAX's reference implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from lstm_jax import LSTM, Bidirectional, LSTMCell, LSTMState, Stack
from lstm_jax.cells import CELLS
from lstm_jax.interop import from_cudnn, to_cudnn
from tests.interop.comparison import NUMBER, assert_close, draw, draw_like, quick_jit, run, sizes

T, B = 3, 2


def theirs(given, weights, xs, h, c):
    D, H, L, both = given
    parts = rnn.unpack_lstm_weights(weights, *given)
    lengths = np.full(B, T, "int32")
    batch_first = jnp.swapaxes(xs, 0, 1)
    ys, h, c = rnn.lstm_ref(batch_first, h, c, *parts, lengths, D, H, L, 0.0, both)
    return jnp.swapaxes(ys, 0, 1), h, c


def ours(given, weights, xs, h, c):
    layer, params = from_cudnn(weights, *given)
    is_state = lambda leaf: isinstance(leaf, LSTMState)  # noqa: E731
    cells, tree = jax.tree.flatten(layer.zero_state((B,)), is_leaf=is_state)
    state = jax.tree.unflatten(tree, [LSTMState(h=h[n], c=c[n]) for n in range(len(cells))])
    last, ys = run(layer, params, xs, state)
    cells = jax.tree.leaves(last, is_leaf=is_state)
    return ys, jnp.stack([cell.h for cell in cells]), jnp.stack([cell.c for cell in cells])


@functools.cache
def value_and_gradients(function, given):
    """Results, and gradients of a weighted sum of them; compiled once for each kind of layer."""

    def loss(args, weigh_by):
        results = function(given, *args)
        return sum((w * r).sum() for w, r in zip(weigh_by, results, strict=True)), results

    return quick_jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("seed", range(NUMBER))
def test_values_and_gradients_agree_with_jax(seed):
    rng = np.random.default_rng(seed)
    (D, H), L, both = sizes(rng), int(rng.integers(1, 3)), bool(rng.integers(2))
    ends = 1 + both
    given = D, H, L, both
    weights = draw(rng, rnn.get_num_params_in_lstm(*given))
    xs, h, c = draw(rng, T, B, D), draw(rng, L * ends, B, H), draw(rng, L * ends, B, H)
    weigh_by = draw(rng, T, B, ends * H), draw(rng, *h.shape), draw(rng, *c.shape)

    got, expected = (
        value_and_gradients(function, given)((weights, xs, h, c), weigh_by)
        for function in (ours, theirs)
    )
    (_, got_results), got_gradients = got
    (_, results), gradients = expected
    pairs = zip((*got_results, *got_gradients), (*results, *gradients), strict=True)
    for one, other in pairs:
        assert_close(one, other, 8 * T * B * H)


HELD = [LSTM(3, 2).stack, LSTM(3, 2, bidirectional=True).stack, LSTM(3).stack]


@pytest.mark.parametrize("layer", HELD)
def test_round_trip_is_exact(layer):
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), 2))
    params = jax.tree.map(jnp.asarray, draw_like(np.random.default_rng(0), shapes))
    both = isinstance(layer.layers[0][1], Bidirectional)
    again, back = from_cudnn(to_cudnn(layer, params), 2, 3, len(layer.layers), both)
    assert again == layer
    jax.tree.map(np.testing.assert_array_equal, back, params)


REFUSED = [
    (LSTM(3, cell="gru"), "GRUCell would be lost: cudnn has LSTM"),
    (LSTM((3, 4)), "hidden_size=4 of LSTMCell would be lost: cudnn has hidden_size=3"),
    (Stack([CELLS["np"](3)]), "OdysseyLSTMCell would be lost"),
    (LSTM(3, bidirectional=True, merge="mean"), "merge='mean' would be lost"),
    (Stack([Bidirectional(LSTMCell(3)), LSTMCell(3)]), "layer_1 has other directions"),
]


@pytest.mark.parametrize(("layer", "message"), REFUSED)
def test_unsupported_options_are_rejected(layer, message):
    with pytest.raises(ValueError, match=message):
        to_cudnn(layer, layer.init(jax.random.key(0), 2))


def test_wrong_sizes_are_named():
    message = r"weights must have shape \(84,\) for input_size=2, hidden_size=3, .* got \(83,\)"
    with pytest.raises(ValueError, match=message):
        from_cudnn(jnp.ones(83), 2, 3)
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        from_cudnn(jnp.ones(84), 2, 0)
    with pytest.raises(TypeError, match="weights must be an array of floating numbers, got int32"):
        from_cudnn(jnp.ones(84, int), 2, 3)


def test_more_layers_than_numbers_are_not_listed():
    with pytest.raises(ValueError, match=r"^num_layers=999999999 is too large for 12 weights"):
        from_cudnn(np.ones(12, "float32"), 1, 1, 999_999_999)
