"""The word model of a beam search, from the text of the training data."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from lstm_jax.errors import expect
from lstm_jax.models.ctc_beam import IMPOSSIBLE, WordModel

LARGEST = 2**26  # numbers in a table
START = -1  # the position before the first word

History = tuple[int, ...]  # the last words, the latest at the end


def word_model(
    lines: Sequence[Sequence[str]],
    labels: Mapping[str, int],
    num_classes: int,
    *,
    order: int = 2,
    separator: int = -1,
    unknown: float = IMPOSSIBLE,
) -> WordModel:
    """The lexicon of some lines of text, and an n-gram model of their words.

    The model uses Witten-Bell smoothing.  Let n be the number of occurrences, and k(h) the number
    of different words (or an end) after a history h of words.  With the history h', which is one
    word shorter::

        P(w | h) = (n(h w) + k(h) P(w | h')) / (n(h) + k(h))

    down to the uniform distribution over all words and the end of a line.

    Args:
      lines: the words of each line.
      labels: the label of each character.
      num_classes: C, labels and blank.
      order: n; 1 for words that are independent of the previous ones.
      separator: the label between words; -1 if each line is a single word.
      unknown: log probability of an unknown word; ``IMPOSSIBLE`` to allow only words of the
        lexicon.

    Raises:
      UserError: the table of probabilities would be too large.

    >>> model = word_model([["a", "b"], ["a"]], {"a": 1, "b": 2}, 4, separator=3)
    >>> [round(float(p), 3) for p in np.exp(model.log_probs[0])]  # a, b, unknown, end
    [0.792, 0.083, 0.0, 0.125]

    References:
      Ian H. Witten, Timothy C. Bell, "The zero-frequency problem: Estimating the probabilities of
      novel events in adaptive text compression", IEEE Transactions on Information Theory 37(4),
      1991, method C.
    """
    vocabulary = sorted({word for line in lines for word in line})
    ids = {word: n for n, word in enumerate(vocabulary)}
    counts = _counts([[ids[word] for word in line] for line in lines], len(ids), order)
    size = len(counts) * (len(ids) + 2)
    smaller = f"a smaller order than {order}: at most {LARGEST:,} numbers"
    expect(size <= LARGEST, "word model", smaller, f"{size:,}")
    histories = {history: n for n, history in enumerate(counts)}
    probs, following = _automaton(counts, histories, len(ids), order)
    log_probs = np.insert(np.log(probs), len(ids), unknown, axis=1)
    children, word = _tree(vocabulary, labels, num_classes)
    ahead = _ahead(children, word, probs[histories[()], :-1], unknown)
    # State 0 of the automaton is the start of a line.
    first = histories[(START,) if order > 1 else ()]
    swap = np.arange(len(counts))
    swap[[0, first]] = first, 0
    tables = (
        children, word, ahead, log_probs[swap].astype(np.float32),
        swap[following[swap]].astype(np.int32), np.int32(separator),
    )  # fmt: skip
    return WordModel(*map(jnp.asarray, tables))


def _counts(lines: list[list[int]], end: int, order: int) -> dict[History, dict[int, int]]:
    """The count of each word, or the end, after each history; shorter histories come first."""
    counts: dict[History, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for length in range(order):
        for line in lines:
            words = [START, *line, end]
            for place in range(max(1, length), len(words)):
                counts[tuple(words[place - length : place])][words[place]] += 1
    return counts


def _automaton(
    counts: dict[History, dict[int, int]], states: dict[History, int], words: int, order: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities ``[S, W + 1]`` of words and the end, and the next state, ``[S, W + 1]``.

    The last column of the next states is for an unknown word, after which no word is known from the
    training data.
    """
    probs = np.full((len(states), words + 1), 1 / (words + 1))
    following = np.zeros((len(states), words + 1), np.int64)
    for history, state in states.items():
        found = counts[history]
        shorter = states[history[1:]]
        if history:
            probs[state], following[state] = probs[shorter], following[shorter]
        total, kinds = sum(found.values()), len(found)
        probs[state] *= kinds / (total + kinds)
        for word, count in found.items():
            probs[state, word] += count / (total + kinds)
            longer = (*history, word)
            if len(longer) < order and word < words:
                following[state, word] = states[longer]
    return probs, following


def _tree(
    vocabulary: list[str], labels: Mapping[str, int], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The children of each node, ``[nodes, C]``, and the word that ends there, ``[nodes]``."""
    children, word = [[1] * num_classes, [1] * num_classes], [len(vocabulary)] * 2
    for number, spelling in enumerate(vocabulary):
        node = 0
        for character in spelling:
            label = labels[character]
            if children[node][label] == 1:
                children[node][label] = len(children)
                children.append([1] * num_classes)
                word.append(len(vocabulary))
            node = children[node][label]
        word[node] = number
    return np.array(children, np.int32), np.array(word, np.int32)


def _ahead(children: np.ndarray, word: np.ndarray, probs: np.ndarray, unknown: float) -> np.ndarray:
    """The log probability that a word passes through each node."""
    through = np.append(probs, 0.0)[word]
    for node in range(len(children) - 1, 1, -1):  # children come after their parents
        below = children[node][children[node] > 1]
        through[node] += through[below].sum()
    through[0] = 1.0
    with np.errstate(divide="ignore"):
        return np.where(np.arange(len(word)) == 1, unknown, np.log(through)).astype(np.float32)
