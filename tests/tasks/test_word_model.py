"""Tables of the word model; tests/models/test_ctc_beam.py compares whole lines with enumeration."""

import numpy as np
import pytest

from lstm_jax.errors import UserError
from lstm_jax.models.ctc_beam import WordModel
from lstm_jax.tasks import word_model as module
from lstm_jax.tasks.word_model import word_model

LINES = [["one", "two"], ["two", "one", "one"], ["on"]]
LABELS = {c: n for n, c in enumerate(" enotw", 1)}


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one(order):
    model = word_model(LINES, LABELS, 7, order=order, separator=1, unknown=-5.0)
    known = np.delete(model.log_probs, -2, axis=1)
    np.testing.assert_allclose(np.exp(known).sum(1), 1, rtol=1e-6)
    assert (model.log_probs[:, -2] == -5).all()
    assert model.following.min() >= 0 and model.following.max() < len(model.log_probs)


def test_lexicon():
    model = WordModel(*map(np.asarray, word_model(LINES, LABELS, 7, separator=1)))
    words = ["on", "one", "two"]

    def node(text):
        place = 0
        for character in text:
            place = model.children[place, LABELS[character]]
        return place

    assert [model.word[node(word)] for word in words] == [0, 1, 2]
    assert model.word[node("o")] == 3 and node("e") == 1 and node("onew") == 1
    shares = np.exp(model.ahead[[node("o"), node("on"), node("one"), node("t")]])
    assert shares[0] == shares[1] > shares[2] > 0
    assert model.ahead[0] == 0


def test_too_large(monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 10)
    with pytest.raises(UserError, match="a smaller order than 2: at most 10 numbers, got 25"):
        word_model(LINES, LABELS, 7)
