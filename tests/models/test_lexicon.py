"""Words of a lexicon, compared with optax's loss and with sums over all alignments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax.models.lexicon import IMPOSSIBLE, best_words, lexicon_of, word_scores

WORDS = [[1], [1, 2], [1, 1], [2, 2, 1], [3], [1, 2, 3, 1]]
TOLERANCE = 1e-4  # log probabilities in float32; optax uses 1e-5 for zero probabilities


def test_scores_equal_those_of_optax():
    logits = jax.random.normal(jax.random.key(0), (3, 9, 4)) * 3
    lengths = jnp.array([9, 6, 7])
    scores = np.asarray(word_scores(logits, lengths, lexicon_of(WORDS)))
    padding = (jnp.arange(9) >= lengths[:, None]).astype(float)
    for n, word in enumerate(WORDS):
        labels = jnp.tile(jnp.array(word), (3, 1))
        losses = optax.ctc_loss(logits, padding, labels, jnp.zeros(labels.shape))
        np.testing.assert_allclose(scores[:, n], -losses, rtol=TOLERANCE)


def test_scores_sum_over_all_alignments():
    logits = jax.random.normal(jax.random.key(1), (1, 4, 4))
    probs = np.asarray(jax.nn.softmax(logits))[0]
    scores = np.exp(word_scores(logits, jnp.array([4]), lexicon_of(WORDS)))[0]
    for word, score in zip(WORDS, scores, strict=True):
        total = 0.0
        for path in itertools.product(range(4), repeat=4):
            if [label for label, _ in itertools.groupby(path) if label] == word:
                total += np.prod(probs[np.arange(4), path])
        np.testing.assert_allclose(score, total, rtol=TOLERANCE, atol=1e-9)


def test_a_word_that_does_not_fit_is_impossible():
    logits = jnp.zeros((1, 2, 4))
    scores = np.asarray(word_scores(logits, jnp.array([2]), lexicon_of(WORDS)))[0]
    assert (scores[[2, 3, 5]] < IMPOSSIBLE / 2).all() and (scores[[0, 1, 4]] > -9).all()


def test_the_best_word_has_a_share_of_the_lexicon():
    logits = jax.random.normal(jax.random.key(2), (5, 8, 4))
    lengths, lexicon = jnp.full(5, 8), lexicon_of(WORDS)
    word, share = best_words(logits, lengths, lexicon)
    probs = np.exp(np.asarray(word_scores(logits, lengths, lexicon), np.float64))
    np.testing.assert_array_equal(word, probs.argmax(1))
    np.testing.assert_allclose(share, probs.max(1) / probs.sum(1), rtol=TOLERANCE)
