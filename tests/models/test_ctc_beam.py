"""CTC decoding, compared with a search over all alignments in float64."""

import itertools
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.models.ctc_beam import IMPOSSIBLE, Weights, greedy, prefix_beam_search
from lstm_jax.tasks.word_model import word_model

STEPS, CLASSES, BLANK, SPACE = 5, 4, 0, 3
WIDE = 400  # large enough for all labellings
LINES = [["a"], ["ab", "a"], ["b", "ab"], ["a", "b", "a"]]
LABELS = {"a": 1, "b": 2}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(3, STEPS, CLASSES)) * 1.5


LENGTHS = np.array([STEPS, 3, STEPS])


def collapsed(alignment, blank=BLANK):
    return tuple(label for label, _ in itertools.groupby(alignment) if label != blank)


def all_labellings(logits, blank=BLANK):
    """The log probability of every labelling of one row."""
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = defaultdict(lambda: -np.inf)
    for alignment in itertools.product(range(CLASSES), repeat=len(logits)):
        score = sum(log_probs[t, label] for t, label in enumerate(alignment))
        labelling = collapsed(alignment, blank)
        found[labelling] = np.logaddexp(found[labelling], score)
    return found


def best(found, row):
    """The labellings of a row and their scores, without those that do not exist."""
    labels, lengths, scores = (np.asarray(x)[row] for x in found)
    return {
        tuple(labels[k, : lengths[k]].tolist()): scores[k]
        for k in range(len(labels))
        if scores[k] > IMPOSSIBLE / 2
    }


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy(logits, blank):
    found = greedy(jnp.asarray(logits), jnp.asarray(LENGTHS), blank=blank)
    for row, length in enumerate(LENGTHS):
        alignment = logits[row, :length].argmax(-1).tolist()
        assert list(best(found, row)) == [collapsed(alignment, blank)]


@pytest.mark.parametrize("blank", [0, 2])
def test_every_labelling(logits, blank):
    """A beam that is wide enough finds all labellings, each once, with their exact scores."""
    found = prefix_beam_search(jnp.asarray(logits), jnp.asarray(LENGTHS), beam=WIDE, blank=blank)
    for row, length in enumerate(LENGTHS):
        expected = all_labellings(logits[row, :length], blank)
        scores = best(found, row)
        assert scores.keys() == expected.keys()
        for labelling, score in scores.items():
            np.testing.assert_allclose(score, expected[labelling], rtol=1e-6)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_narrow_beam(logits):
    """The best labelling is found among few prefixes; scores are lower bounds."""
    found = prefix_beam_search(jnp.asarray(logits), jnp.asarray(LENGTHS), beam=8)
    for row, length in enumerate(LENGTHS):
        expected = all_labellings(logits[row, :length])
        scores = best(found, row)
        assert max(scores, key=scores.get) == max(expected, key=expected.get)
        assert len(scores) <= 8
        assert all(score <= expected[labelling] + 1e-6 for labelling, score in scores.items())


def word_score(line, order, unknown):
    """Log probability of a line of words, by counting: Witten-Bell."""
    vocabulary = sorted({word for each in LINES for word in each})

    def probability(word, history):
        lines = [("<s>", *each, "</s>") for each in LINES]
        if not history:
            followers = [w for each in lines for w in each[1:]]
            shorter = 1 / (len(vocabulary) + 1)
        else:
            size = len(history)
            followers = [
                each[n] for each in lines for n in range(size, len(each))
                if each[n - size : n] == history
            ]  # fmt: skip
            shorter = probability(word, history[1:])
        kinds = len(set(followers))
        if not followers:
            return shorter
        return (followers.count(word) + kinds * shorter) / (len(followers) + kinds)

    total, history = 0.0, ("<s>",)
    for word in (*line, "</s>"):
        known = word in vocabulary or word == "</s>"
        context = history[max(0, len(history) - order + 1) :] if order > 1 else ()
        total += np.log(probability(word, context)) if known else unknown
        history = (*history, word) if known else ()
    return total


def words_of(labelling):
    return "".join(" ab "[label] for label in labelling).removesuffix(" ").split(" ")


@pytest.mark.parametrize(("order", "unknown"), [(1, -3.0), (2, -3.0), (3, -3.0), (2, IMPOSSIBLE)])
def test_with_words(logits, order, unknown):
    """Exact scores of all lines of words; if unknown words are impossible, of known words only."""
    model = word_model(LINES, LABELS, CLASSES, order=order, separator=SPACE, unknown=unknown)
    weights = Weights(0.7, 0.3)
    found = prefix_beam_search(jnp.asarray(logits), jnp.asarray(LENGTHS), model, weights, beam=WIDE)
    for row, length in enumerate(LENGTHS):
        expected = {}
        for labelling, score in all_labellings(logits[row, :length]).items():
            words = words_of(labelling) if labelling else []
            known = all(word in {"a", "b", "ab"} for word in words)
            if "" in words or not (known or unknown > IMPOSSIBLE):
                continue
            expected[labelling] = score + 0.7 * word_score(words, order, unknown) + 0.3 * len(words)
        scores = best(found, row)
        assert scores.keys() == expected.keys()
        for labelling, score in scores.items():
            np.testing.assert_allclose(score, expected[labelling], rtol=1e-5)


def test_single_words(logits):
    """Without a separator a line is one word of the lexicon."""
    lines = [["a"], ["ab"], ["aba"]]
    model = word_model(lines, LABELS, CLASSES, order=1)
    found = prefix_beam_search(jnp.asarray(logits), jnp.asarray(LENGTHS), model, beam=WIDE)
    for row in range(3):
        assert best(found, row).keys() <= {(), (1,), (1, 2), (1, 2, 1)}


def test_limit_of_labels(logits):
    found = prefix_beam_search(jnp.asarray(logits), jnp.asarray(LENGTHS), beam=WIDE, max_labels=2)
    assert found.labels.shape == (3, WIDE, 2)
    for row, length in enumerate(LENGTHS):
        expected = {k for k in all_labellings(logits[row, :length]) if len(k) <= 2}
        assert best(found, row).keys() == expected
