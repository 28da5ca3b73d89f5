"""Class scores: computing them in batches, their metrics, and predictions as columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax

from lstm_jax.data import length_bounds, padded
from lstm_jax.tasks.base import Columns, Metrics

ROWS = 256  # texts per call of a model


def logits_of(model: Any, rows: list[np.ndarray]) -> np.ndarray:
    """The class scores of texts, computed in batches of similar length.

    Args:
      model: reads ``tokens`` and ``lengths`` and returns ``logits``.
      rows: the tokens of each text, int32 ``[T_n]``.

    Returns:
      float32 ``[N, C]``.
    """
    lengths = np.array([len(row) for row in rows])
    bounds = length_bounds(lengths.max())
    bucket, found = np.searchsorted(bounds, lengths), {}
    for n, bound in enumerate(bounds):
        chosen = np.flatnonzero(bucket == n)
        size = min(ROWS, len(chosen))
        for start in range(0, len(chosen), ROWS):
            # All calls have the same shape: the last batch is filled with the first texts.
            part = np.resize(chosen[start : start + ROWS], size)
            tokens, steps = padded([rows[place] for place in part], bound)
            _, outputs = model(model.initial_carry(size), tokens=tokens, lengths=steps)
            found |= dict(zip(part.tolist(), np.asarray(outputs["logits"]), strict=True))
    return np.stack([found[place] for place in range(len(rows))])


def class_metrics(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """Metrics of class scores.

    Args:
      logits: ``[N, C]``.
      labels: integers ``[N]``.

    Returns:
      ``loss``, the mean cross-entropy in nats; ``accuracy`` and ``macro F1``, in percent.  Macro F1
      is the mean over classes of the harmonic mean of precision and recall, without classes that
      neither occur nor are predicted.

    >>> metrics = class_metrics(np.log([[0.5, 0.5], [0.2, 0.8]]), np.array([1, 1]))
    >>> round(metrics["loss"], 4), metrics["accuracy"], round(metrics["macro F1"], 1)
    (0.4581, 50.0, 33.3)
    """
    log_shares, predicted = log_softmax(np.asarray(logits, np.float64), axis=1), logits.argmax(1)
    classes = np.arange(logits.shape[1])[:, None]
    true, guessed = labels == classes, predicted == classes  # [C, N]
    sizes = true.sum(1) + guessed.sum(1)
    f1 = 2 * (true & guessed).sum(1)[sizes > 0] / sizes[sizes > 0]
    return {
        "loss": float(-log_shares[np.arange(len(labels)), labels].mean()),
        "accuracy": 100.0 * float((predicted == labels).mean()),
        "macro F1": 100.0 * float(f1.mean()),
    }


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """The number of times that each class (row) was predicted as each class (column).

    >>> confusion_counts(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def class_columns(
    predicted: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> Columns:
    """The predicted class of each row and the probability ``[N, C]`` of each class."""
    shares = {f"probability {name}": probabilities[:, n] for n, name in enumerate(classes)}
    return {"class": [classes[n] for n in predicted], **shares}
