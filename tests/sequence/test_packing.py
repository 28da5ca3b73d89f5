import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTM, pack, resets_from_segments, unpack
from tests import oracle

D = 3


def documents(sizes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(size, D)).astype(np.float32) for size in sizes]


SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=9)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(SIZES)
def test_unpacking_restores_the_documents(sizes):
    given_documents = documents(sizes)
    packed = pack(given_documents, num_steps=7)
    for given, back in zip(given_documents, unpack(packed.xs, packed), strict=True):
        np.testing.assert_array_equal(back, given)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(SIZES)
def test_rows_contain_whole_documents_without_gaps(sizes):
    packed = pack(documents(sizes), num_steps=7)
    assert packed.lengths.sum() == sum(sizes)
    for ids, length in zip(packed.segment_ids.T, packed.lengths, strict=True):
        assert (ids[length:] == 0).all()
        counts = np.bincount(ids[:length])
        assert (np.diff(ids[:length]) >= 0).all() and (counts[1:] > 0).all()
        assert counts[:1].sum() == 0  # ids are 1, 2, ..., each document's steps together
    # First fit: the first document of a row does not fit into any earlier row.
    full = [sum(s for s, r in zip(sizes, packed.rows, strict=True) if r == row) for row in range(2)]
    if packed.xs.shape[1] > 1:
        assert full[0] + full[1] > 7


def test_first_fit():
    packed = pack(documents([3, 4, 2, 1, 5]), num_steps=5)
    assert packed.rows.tolist() == [0, 1, 0, 1, 2]
    assert packed.starts.tolist() == [0, 0, 3, 4, 0]
    assert packed.lengths.tolist() == [5, 5, 5]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_equals_separate_in_value_and_gradient(bidirectional):
    lstm = LSTM(4, num_layers=2, bidirectional=bidirectional)
    params = lstm.init(jax.random.key(0), D)
    apart = documents([3, 4, 3])
    packed = pack(apart, num_steps=7)
    resets = resets_from_segments(packed.segment_ids)
    names = ("forward", "backward") if bidirectional else (None,)

    def together(params):
        _, ys = lstm.apply(params, packed.xs, lengths=packed.lengths, resets=resets)
        outputs = unpack(ys, packed)
        return sum(jnp.sin(y).sum() for y in outputs), outputs

    def one_by_one(params):
        outputs = [lstm.apply(params, document)[1] for document in apart]
        return sum(jnp.sin(y).sum() for y in outputs), outputs

    (_, ys), gradient = jax.jit(jax.value_and_grad(together, has_aux=True))(params)
    (_, expected), wanted = jax.jit(jax.value_and_grad(one_by_one, has_aux=True))(params)
    for y, alone in zip(ys, expected, strict=True):
        np.testing.assert_allclose(y, alone, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), gradient, wanted)

    for y, document in zip(ys, apart, strict=True):  # and both equal NumPy's result
        below = document[:, None]
        for layer in ("layer_0", "layer_1"):
            cells = [params[layer] if name is None else params[layer][name] for name in names]
            turns = [slice(None), slice(None, None, -1)][: len(cells)]
            below = np.concatenate(
                [
                    oracle.lstm(cell, below[turn])[2][turn]
                    for cell, turn in zip(cells, turns, strict=True)
                ],
                -1,
            )
        np.testing.assert_allclose(y, below[:, 0], atol=3e-6)


def test_documents_of_tokens_and_of_images():
    tokens = pack([np.array([5, 6], np.uint8), np.array([7], np.uint8)], num_steps=4)
    assert tokens.xs.tolist() == [[5], [6], [7], [0]] and tokens.xs.dtype == np.uint8
    pictures = pack([np.ones((2, 4, 4, 1)), jnp.zeros((3, 4, 4, 1))], num_steps=3)
    assert pictures.xs.shape == (3, 2, 4, 4, 1)


def test_thousands_of_documents_are_packed_quickly():
    sizes = np.random.default_rng(0).integers(1, 100, 5000)
    packed = pack([np.zeros((size, 1), np.float32) for size in sizes], num_steps=100)
    assert packed.lengths.mean() > 95  # first fit fills rows well


class TestErrors:
    def test_no_document(self):
        with pytest.raises(ValueError, match="documents must contain at least one document"):
            pack([], num_steps=4)

    def test_too_long_a_document(self):
        with pytest.raises(
            ValueError, match=r"documents\[1\] must have at most num_steps=4.*got 5"
        ):
            pack(documents([4, 5]), num_steps=4)

    def test_differing_features(self):
        with pytest.raises(
            ValueError, match=r"documents\[1\] must be \[T, 3\].*got shape \(2, 2\)"
        ):
            pack([np.zeros((2, 3)), np.zeros((2, 2))], num_steps=4)

    def test_no_time_axis(self):
        with pytest.raises(ValueError, match=r"documents\[0\] must be \[T\].*got shape \(\)"):
            pack([1.0], num_steps=4)

    def test_impossible_number_of_steps(self):
        with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
            pack(documents([1]), num_steps=0)

    def test_outputs_of_other_rows(self):
        packed = pack(documents([3, 2]), num_steps=4)
        with pytest.raises(ValueError, match=r"ys must have the time and batch axes.*\(4, 2\)"):
            unpack(np.zeros((4, 3, D)), packed)
