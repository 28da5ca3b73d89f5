"""The probability of each word of a lexicon under a CTC model."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

IMPOSSIBLE = -1e30  # log of probability zero; finite, so that differences are finite


class Lexicon(NamedTuple):
    """The words of a lexicon as a tree whose nodes are their prefixes; node 0 is the empty one.

    Attributes:
      label: the last label of each prefix, int32 ``[N]``; 0 for the empty one.
      parent: the prefix without its last label, int32 ``[N]``.
      word: the node of each word, int32 ``[W]``.
    """

    label: jax.Array
    parent: jax.Array
    word: jax.Array


def lexicon_of(words: Sequence[Sequence[int]]) -> Lexicon:
    """The tree of some words, each a sequence of labels from 1 on.

    >>> lexicon_of([[1, 2], [1, 3]]).label.tolist()
    [0, 1, 2, 3]
    """
    nodes: dict[tuple[int, ...], int] = {(): 0}
    parents = [0]
    for word in words:
        for end in range(1, len(word) + 1):
            prefix = tuple(word[:end])
            if prefix not in nodes:
                parents.append(nodes[prefix[:-1]])
                nodes[prefix] = len(nodes)
    labels = [prefix[-1] if prefix else 0 for prefix in nodes]
    ends = [nodes[tuple(word)] for word in words]
    return Lexicon(*(jnp.array(column, jnp.int32) for column in (labels, parents, ends)))


@jax.jit
def word_scores(logits: jax.Array, lengths: jax.Array, lexicon: Lexicon) -> jax.Array:
    """The log probability of each word of a lexicon, summed over all of its alignments.

    For each prefix n, with last label l and parent m, the forward recursion of CTC computes the
    probability of all alignments of the first t steps that collapse to n, separately for those that
    end with its label and those that end with a blank::

        a_t(n) = P_t(l) (a_{t-1}(n) + b_{t-1}(m) + [l is not m's label] a_{t-1}(m))
        b_t(n) = P_t(blank) (b_{t-1}(n) + a_{t-1}(n))

    A word's probability is the sum of both at the last step.  Words share the computation for their
    common prefixes.

    Args:
      logits: ``[B, T, C]``; class 0 is the blank.
      lengths: steps of each row, integers ``[B]``.
      lexicon: from :func:`lexicon_of`.

    Returns:
      float32 ``[B, W]``; at most about -1e30 if a word has no alignment.

    Example:
      >>> probs = jnp.array([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]])
      >>> scores = word_scores(jnp.log(probs), jnp.array([2]), lexicon_of([[1], [1, 2]]))
      >>> np.exp(scores).tolist()  # 1 1, 1 0 and 0 1; 1 2
      [[0.37..., 0.25]]

    References:
      Alex Graves et al., "Connectionist Temporal Classification: Labelling Unsegmented Sequence
      Data with Recurrent Neural Networks", ICML 2006, section 4.1.
    """
    log_probs = jnp.maximum(jax.nn.log_softmax(logits), IMPOSSIBLE)
    label, parent, _ = lexicon
    new = (label != label[parent]) & (jnp.arange(len(label)) > 0)
    root = jnp.arange(len(label)) == 0

    def step(forward: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array]):
        a, b = forward
        frame, inside = inputs  # [B, C], [B]
        both = jnp.logaddexp(a, b)
        before = jnp.where(new, both[:, parent], b[:, parent])
        ended = jnp.logaddexp(a, jnp.where(root, IMPOSSIBLE, before)) + frame[:, label]
        ended = jnp.where(root, IMPOSSIBLE, jnp.maximum(ended, IMPOSSIBLE))
        blank = jnp.maximum(both + frame[:, :1], IMPOSSIBLE)
        inside = inside[:, None]
        return (jnp.where(inside, ended, a), jnp.where(inside, blank, b)), None

    nothing = jnp.full((len(logits), len(label)), IMPOSSIBLE)
    inside = jnp.arange(logits.shape[1])[:, None] < lengths
    first = (nothing, jnp.where(root, 0.0, nothing))
    (a, b), _ = jax.lax.scan(step, first, (log_probs.swapaxes(0, 1), inside))
    return jnp.logaddexp(a, b)[:, lexicon.word]


def best_words(
    logits: np.ndarray, lengths: np.ndarray, lexicon: Lexicon
) -> tuple[np.ndarray, np.ndarray]:
    """The most likely word of each row, int ``[B]``, and its share of the lexicon's probability.

    >>> probs = jnp.array([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]])
    >>> word, share = best_words(jnp.log(probs), jnp.array([2]), lexicon_of([[1], [1, 2]]))
    >>> word.tolist(), round(float(share[0]), 4)
    ([0], 0.6)
    """
    scores = np.asarray(word_scores(logits, lengths, lexicon))
    return scores.argmax(1), softmax(scores, axis=1).max(1)
