"""A simple method with which text classifiers are compared."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lstm_jax.data import Tokenizer


def ngram_classifier(
    texts: Sequence[str], labels: np.ndarray, num_classes: int, strength: float = 1.0
) -> Callable[[Sequence[str]], np.ndarray]:
    """Multinomial logistic regression on tf-idf features of single words and pairs of words.

    If an n-gram occurs n times in a text, and in d of the N training texts, its feature is
    ``n (1 + log((1 + N) / (1 + d)))``.  The features of a text are scaled to norm 1.  Weights W
    minimise ``sum(losses) + |W|^2 / (2 strength)``.

    Args:
      texts: N training texts.
      labels: integers ``[N]``.
      num_classes: C.
      strength: the inverse of regularisation; a larger value fits the training texts more closely.

    Returns:
      A function from M texts to their scores ``[M, C]``.

    >>> classifier = ngram_classifier(["good", "very good", "bad"], np.array([1, 1, 0]), 2)
    >>> classifier(["so good", "so bad"]).argmax(1).tolist()
    [1, 0]

    References:
      Gerard Salton, Christopher Buckley, "Term-weighting approaches in automatic text retrieval",
      Information Processing & Management 24(5), 1988; with the smoothing of scikit-learn's
      TfidfVectorizer.
    """
    import scipy.optimize
    from scipy.special import log_softmax

    tokenizer = Tokenizer.train(texts, kind="words", vocabulary_size=10**6, lowercase=True)
    counts, known = _counts(tokenizer, texts)
    idf = 1 + np.log((1 + len(texts)) / (1 + np.bincount(counts.indices, minlength=len(known))))
    xs, targets = _scaled(counts, idf), np.eye(num_classes)[labels]
    size = xs.shape[1] * num_classes

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:size].reshape(-1, num_classes), flat[size:]
        log_shares = log_softmax(xs @ weights + bias, axis=1)
        value = -(targets * log_shares).sum() + (weights**2).sum() / (2 * strength)
        errors = np.exp(log_shares) - targets
        slope = xs.T @ errors + weights / strength
        return value / len(texts), np.concatenate([slope.ravel(), errors.sum(0)]) / len(texts)

    found = scipy.optimize.minimize(
        objective, np.zeros(size + num_classes), jac=True, method="L-BFGS-B",
        options={"maxiter": 100},
    ).x  # fmt: skip
    weights, bias = found[:size].reshape(-1, num_classes), found[size:]
    return lambda others: _scaled(_counts(tokenizer, others, known)[0], idf) @ weights + bias


def _counts(
    tokenizer: Tokenizer, texts: Sequence[str], known: np.ndarray | None = None
) -> tuple[Any, np.ndarray]:
    """The count of each n-gram in each text, sparse ``[N, G]``, and the n-grams as numbers.

    Args:
      known: the n-grams to count, sorted; None for all that occur.
    """
    from scipy.sparse import csr_array

    rows = tokenizer.encode(texts)
    tokens = np.concatenate(rows).astype(np.int64)
    row = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    together = row[:-1] == row[1:]
    pairs = ((tokens[:-1] + 1) * len(tokenizer) + tokens[1:])[together]
    grams, row = np.concatenate([tokens, pairs]), np.concatenate([row, row[:-1][together]])
    known = np.unique(grams) if known is None else known
    place = np.searchsorted(known, grams).clip(max=len(known) - 1)
    kept = known[place] == grams
    places = (row[kept], place[kept])
    counts = csr_array((np.ones(kept.sum()), places), shape=(len(rows), len(known)))
    counts.sum_duplicates()
    return counts, known


def _scaled(counts: Any, idf: np.ndarray) -> Any:
    """The features of each text, with norm 1 unless all are zero, sparse ``[N, G]``."""
    from scipy.sparse import diags_array

    weighted = counts @ diags_array(idf)
    norms = np.sqrt(weighted.power(2).sum(1))
    return diags_array(1 / np.where(norms > 0, norms, 1)) @ weighted
