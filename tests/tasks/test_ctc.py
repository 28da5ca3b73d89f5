"""The CTC loss against a sum over all alignments, and error rates."""

import itertools

import jax.numpy as jnp
import numpy as np

from lstm_jax.tasks.ctc import ctc_losses, error_rates, spelled, steps_needed


def test_losses_sum_over_all_alignments():
    logits = np.random.default_rng(0).normal(size=(3, 5, 3)).astype(np.float32)
    lengths, labels = np.array([5, 3, 4]), np.array([[1, 1, 2], [2, 0, 0], [1, 2, 0]])
    label_lengths = np.array([3, 1, 2])
    losses = ctc_losses(*map(jnp.asarray, (logits, lengths, labels, label_lengths)))
    for row, length in enumerate(lengths):
        probs = np.exp(logits[row].astype(np.float64))
        probs /= probs.sum(-1, keepdims=True)
        total = 0.0
        for alignment in itertools.product(range(3), repeat=length):
            collapsed = [label for label, _ in itertools.groupby(alignment) if label]
            if collapsed == labels[row, : label_lengths[row]].tolist():
                total += np.prod([probs[t, label] for t, label in enumerate(alignment)])
        np.testing.assert_allclose(losses[row], -np.log(total), rtol=1e-5)


def test_steps_needed():
    """The length of the shortest alignment."""
    for labels in itertools.product([1, 2], repeat=3):
        shortest = next(
            n for n in range(9)
            for alignment in itertools.product(range(3), repeat=n)
            if tuple(x for x, _ in itertools.groupby(alignment) if x) == labels
        )  # fmt: skip
        assert steps_needed(labels) == shortest


def test_error_rates():
    """Errors are counted over all words and characters, not averaged over lines."""
    rates = error_rates(["a b c d", "e"], ["a b x d", ""])
    assert rates == {"WER": 100 * 2 / 5, "CER": 100 * 2 / 8}


def test_spelling():
    assert spelled(np.array([1, 3, 2, -1]), ["a", "b", " "]) == "a b"
