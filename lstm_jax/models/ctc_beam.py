"""CTC decoding: the most likely labels, with or without a word model, as compiled loops."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

IMPOSSIBLE = -1e30  # log of probability zero; finite, so that differences are finite


class Labellings(NamedTuple):
    """The best labellings found by a search, best first in each row.

    Attributes:
      labels: int32 ``[B, K, U]``, -1 beyond the end of each.
      lengths: the number of labels of each, int32 ``[B, K]``.
      scores: the scores by which they are ranked, float32 ``[B, K]``; at most ``IMPOSSIBLE`` if
        fewer than K were found.
    """

    labels: jax.Array
    lengths: jax.Array
    scores: jax.Array


class WordModel(NamedTuple):
    """A lexicon as a prefix tree, and an n-gram model of its words as a finite automaton.

    Node 0 of the tree is the root, the start of a word. Node 1 represents every prefix of an
    unknown word. State 0 of the automaton is the start of a line.

    Attributes:
      children: the child of each node for each label, int32 ``[nodes, C]``.
      word: the word that ends at each node, W for an unknown word, int32 ``[nodes]``.
      ahead: the look-ahead log probability that a word passes through each node, float32
        ``[nodes]``; it ranks unfinished words.
      log_probs: of each word, an unknown one (W) and the end of a line (W + 1) in each state of
        the automaton, float32 ``[states, W + 2]``.
      following: the state after each word, int32 ``[states, W + 1]``.
      separator: the label between words, int32; -1 if each line is a single word.
    """

    children: jax.Array
    word: jax.Array
    ahead: jax.Array
    log_probs: jax.Array
    following: jax.Array
    separator: jax.Array


class Weights(NamedTuple):
    """The weights of a word model in a search.

    Attributes:
      model: the factor of its log probabilities.
      word: the term added to the score per word, which compensates for the lower probability of
        longer lines.
    """

    model: float | jax.Array = 1.0
    word: float | jax.Array = 0.0


@functools.partial(jax.jit, static_argnames="blank")
def greedy(logits: jax.Array, lengths: jax.Array, *, blank: int = 0) -> Labellings:
    """The most likely class of each step, with repetitions merged and blanks removed.

    Args:
      logits: ``[B, T, C]``.
      lengths: steps of each row, integers ``[B]``.
      blank: the class of the blank.

    Returns:
      One labelling of each row; its score is the log probability of the most likely alignment.

    >>> logits = jnp.log(jnp.eye(3) + 1e-6)[jnp.array([[1, 1, 0, 1, 2]])]
    >>> found = greedy(logits, jnp.array([5]))
    >>> found.labels[0, 0].tolist()
    [1, 1, 2, -1, -1]
    """
    log_probs = jax.nn.log_softmax(logits)
    inside = jnp.arange(logits.shape[1]) < lengths[:, None]
    best = jnp.where(inside, log_probs.argmax(-1), blank).astype(jnp.int32)
    before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=blank)
    emitted = (best != blank) & (best != before)
    places = jnp.where(emitted, jnp.cumsum(emitted, 1) - 1, best.shape[1])
    rows = jnp.arange(len(best))[:, None]
    labels = jnp.full_like(best, -1).at[rows, places].set(best, mode="drop")
    scores = jnp.where(inside, log_probs.max(-1), 0).sum(1)
    return Labellings(labels[:, None], emitted.sum(1)[:, None], scores[:, None])


class _Beam(NamedTuple):
    """The prefixes of one row; arrays [K, ...]."""

    labels: jax.Array  # int32 [K, U]
    length: jax.Array
    blank: jax.Array  # log probability of the alignments that end with a blank
    label: jax.Array  # and of those that end with the last label
    node: jax.Array  # of the lexicon
    state: jax.Array  # of the automaton
    words: jax.Array  # weighted log probability of the finished words

    @property
    def last(self) -> jax.Array:
        """The last label; -1 of an empty prefix."""
        place = jnp.maximum(self.length - 1, 0)[:, None]
        return jnp.where(self.length > 0, jnp.take_along_axis(self.labels, place, 1)[:, 0], -1)


@functools.partial(jax.jit, static_argnames=("beam", "blank", "max_labels"))
def prefix_beam_search(
    logits: jax.Array,
    lengths: jax.Array,
    words: WordModel | None = None,
    weights: Weights = Weights(),  # noqa: B008 - immutable
    *,
    beam: int = 16,
    blank: int = 0,
    max_labels: int | None = None,
) -> Labellings:
    """The labellings with the best scores, each summed over all of its alignments.

    Each step retains the K best prefixes of labellings. Each prefix has two log probabilities: of
    all its alignments that end with a blank, and of those that do not. The score of a labelling y
    is ::

        s(y) = log P(y | x) + α log P(words of y) + β (number of words)

    An unfinished word contributes α times the log probability that a word has this prefix, and β.

    Args:
      logits: ``[B, T, C]``.
      lengths: steps of each row, integers ``[B]``.
      words: a word model, or None.
      weights: α and β.
      beam: K.
      blank: the class of the blank.
      max_labels: U, the largest number of labels of a labelling; T if None.

    Returns:
      The K best labellings found in each row.

    Example:
      >>> probs = jnp.array([[[0.6, 0.4, 0.0], [0.6, 0.4, 0.0]]])  # a blank, and labels 1 and 2
      >>> lengths = jnp.array([2])
      >>> logits = jnp.log(probs)
      >>> greedy(logits, lengths).labels[0].tolist()  # P(blank blank) = 0.36
      [[-1, -1]]
      >>> found = prefix_beam_search(logits, lengths, beam=2)
      >>> found.labels[0, 0].tolist(), round(float(jnp.exp(found.scores[0, 0])), 2)
      ([1, -1], 0.64)

    References:
      Awni Hannun, Andrew Maas, Daniel Jurafsky, Andrew Ng, "First-Pass Large Vocabulary Continuous
      Speech Recognition using Bi-Directional Recurrent DNNs", arXiv:1408.2873, 2014; Stefan
      Ortmanns, Hermann Ney, Andreas Eiden, "Language-Model Look-Ahead for Large Vocabulary Speech
      Recognition", ICSLP 1996 (scores of unfinished words).
    """
    log_probs = jnp.maximum(jax.nn.log_softmax(logits), IMPOSSIBLE)
    limit = min(max_labels or logits.shape[1], logits.shape[1])

    def search(log_probs: jax.Array, length: jax.Array) -> Labellings:
        def step(prefixes: _Beam, inputs: tuple[jax.Array, jax.Array]) -> tuple[_Beam, None]:
            t, frame = inputs
            extended = _extended(prefixes, frame, words, weights, blank)
            return jax.tree.map(lambda a, b: jnp.where(t < length, a, b), extended, prefixes), None

        none = jnp.full(beam, IMPOSSIBLE)
        zeros = jnp.zeros(beam, jnp.int32)
        labels = jnp.full((beam, limit), -1, jnp.int32)
        first = _Beam(labels, zeros, none.at[0].set(0.0), none, zeros, zeros, jnp.zeros(beam))
        steps = jnp.arange(len(log_probs))
        found, _ = jax.lax.scan(step, first, (steps, log_probs))
        scores = jnp.logaddexp(found.blank, found.label) + _ended(found, words, weights)
        scores, best = jax.lax.top_k(scores, beam)
        return Labellings(found.labels[best], found.length[best], scores)

    return jax.vmap(search)(log_probs, lengths)


def _extended(
    prefixes: _Beam, frame: jax.Array, words: WordModel | None, weights: Weights, blank: int
) -> _Beam:
    """The best prefixes after one more step, from its log probabilities [C]."""
    labels, length, last = prefixes.labels, prefixes.length, prefixes.last
    beam, classes = len(length), len(frame)
    total = jnp.logaddexp(prefixes.blank, prefixes.label)
    of_last = jnp.where(last >= 0, frame[last], IMPOSSIBLE)

    # [i, c]: prefix i with another label c
    repeated = jnp.arange(classes) == last[:, None]
    longer = jnp.where(repeated, prefixes.blank[:, None], total[:, None]) + frame
    longer = jnp.where(jnp.arange(classes) == blank, IMPOSSIBLE, longer)
    longer = jnp.where((length < labels.shape[1])[:, None], longer, IMPOSSIBLE)

    # [i, j]: prefix j is prefix i with one more label
    places = jnp.arange(labels.shape[1])
    alike = (labels[:, None] == labels) | (places >= length[:, None, None])
    possible = total > IMPOSSIBLE / 2
    parent = alike.all(-1) & (length[:, None] + 1 == length) & possible[:, None] & possible
    joined = jnp.where(parent, longer[:, last], IMPOSSIBLE)  # [i, j]; last is -1 for no parent
    same_label = jnp.logaddexp(
        prefixes.label + of_last, jax.scipy.special.logsumexp(joined, axis=0)
    )
    present = jnp.zeros((beam, classes), bool).at[:, last].max(parent)
    longer = jnp.where(present, IMPOSSIBLE, longer)

    same_blank = total + frame[blank]
    node, state, finished = _read(prefixes, classes, words, weights)
    ahead = jnp.zeros(1) if words is None else weights.model * words.ahead + weights.word
    begun = ahead.at[0].set(0.0)  # no word is unfinished at the root
    scores = jnp.concatenate(
        [
            jnp.logaddexp(same_blank, same_label) + prefixes.words + begun[prefixes.node],
            (longer + finished + begun[node]).reshape(-1),
        ]
    )
    _, best = jax.lax.top_k(scores, beam)

    stays = best < beam
    chosen, label = jnp.divmod(jnp.maximum(best - beam, 0), classes)
    origin = jnp.where(stays, best, chosen)
    place = jnp.where(stays, labels.shape[1], length[origin])
    return _Beam(
        labels[origin].at[jnp.arange(beam), place].set(label.astype(jnp.int32), mode="drop"),
        length[origin] + ~stays,
        jnp.maximum(jnp.where(stays, same_blank[origin], IMPOSSIBLE), IMPOSSIBLE),
        jnp.maximum(jnp.where(stays, same_label[origin], longer[origin, label]), IMPOSSIBLE),
        jnp.where(stays, prefixes.node[origin], node[origin, label]),
        jnp.where(stays, prefixes.state[origin], state[origin, label]),
        jnp.where(stays, prefixes.words[origin], finished[origin, label]),
    )


def _read(
    prefixes: _Beam, classes: int, words: WordModel | None, weights: Weights
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Node, state and words' score of each prefix with each further label, ``[K, C]``."""
    shape = (len(prefixes.length), classes)
    state = jnp.broadcast_to(prefixes.state[:, None], shape)
    score = jnp.broadcast_to(prefixes.words[:, None], shape)
    if words is None:
        return jnp.zeros(shape, jnp.int32), state, score
    ends = jnp.arange(classes) == words.separator
    node = jnp.where(ends, 0, words.children[prefixes.node])
    gain, word = _word(prefixes, words, weights)
    score = score + jnp.where(ends, gain[:, None], 0.0)
    state = jnp.where(ends, words.following[prefixes.state, word][:, None], state)
    return node, state, jnp.maximum(score, IMPOSSIBLE)


def _word(prefixes: _Beam, words: WordModel, weights: Weights) -> tuple[jax.Array, jax.Array]:
    """The change of each prefix's score if its unfinished word ends, and this word."""
    word = words.word[prefixes.node]
    gain = weights.model * words.log_probs[prefixes.state, word] + weights.word
    return jnp.where(prefixes.node == 0, IMPOSSIBLE, gain), word  # no word is empty


def _ended(prefixes: _Beam, words: WordModel | None, weights: Weights) -> jax.Array:
    """The words' score of each prefix as a whole line."""
    if words is None:
        return jnp.zeros(len(prefixes.length))
    gain, word = _word(prefixes, words, weights)
    finished = prefixes.node == 0  # no word, or a separator at the end
    state = jnp.where(finished, prefixes.state, words.following[prefixes.state, word])
    end = weights.model * words.log_probs[state, -1]
    return jnp.maximum(prefixes.words + jnp.where(finished, 0.0, gain) + end, IMPOSSIBLE)
