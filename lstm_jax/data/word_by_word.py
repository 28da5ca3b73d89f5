"""Translation word by word: what a translator must do better than."""

import re
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"\w+|[^\w\s]")


def word_translations(
    source: Sequence[str], target: Sequence[str], iterations: int = 5
) -> dict[str, str]:
    """The likeliest translation of each source word, by IBM model 1.

    Each target word f of a pair of sentences comes from one source word e, or from an empty word,
    all equally likely.  Expectation maximisation finds t(f | e)::

        c(e, f) = Σ_pairs Σ_(f in pair) t(f | e) / Σ_(e' in pair) t(f | e')
        t(f | e) = c(e, f) / Σ_f' c(e, f')

    Args:
      source: sentences.
      target: their translations.
      iterations: of expectation maximisation, from uniform probabilities.

    Returns:
      For each source word the f with the largest t(f | e).

    >>> words = word_translations(["das Haus", "das Buch", "ein Buch"],
    ...                           ["the house", "the book", "a book"])
    >>> words["das"], words["Buch"]
    ('the', 'book')

    References:
      Peter F. Brown et al., "The Mathematics of Statistical Machine Translation: Parameter
      Estimation", Computational Linguistics 19(2), 1993, section 4.1.
    """
    sources, source_words = _numbered(source, first=[""])
    targets, target_words = _numbered(target)
    # One entry for each target word and each source word of its pair, the empty word 0 included.
    e, f, owner, tokens = [], [], [], 0
    for es, fs in zip(sources, targets, strict=True):
        es = np.append(es, 0)
        e.append(np.tile(es, len(fs)))
        f.append(np.repeat(fs, len(es)))
        owner.append(np.repeat(np.arange(tokens, tokens + len(fs)), len(es)))
        tokens += len(fs)
    size = len(target_words)
    pairs, entry = np.unique(
        np.concatenate(e) * size + np.concatenate(f), return_inverse=True
    )  # e and f as one number
    owner, e_of, f_of = np.concatenate(owner), pairs // size, pairs % size
    t = np.full(len(pairs), 1.0 / size)
    for _ in range(iterations):
        share = t[entry] / np.bincount(owner, t[entry])[owner]
        counts = np.bincount(entry, share)
        t = counts / np.bincount(e_of, counts)[e_of]
    order = np.lexsort((t, e_of))  # of each e, the likeliest f stands last
    last = order[np.append(e_of[order][1:] != e_of[order][:-1], True)]
    return {
        source_words[a]: target_words[b]
        for a, b in zip(e_of[last], f_of[last], strict=True)
        if a  # not the empty word
    }


def translated(lines: Sequence[str], words: dict[str, str]) -> list[str]:
    """Each line word by word; unknown words and punctuation marks stay as they are.

    >>> translated(["das Boot!"], {"das": "the"})
    ['the Boot !']
    """
    return [" ".join(words.get(word, word) for word in WORD.findall(line)) for line in lines]


def _numbered(
    lines: Sequence[str], first: Sequence[str] = ()
) -> tuple[list[np.ndarray], list[str]]:
    """The words of each line as numbers, and the word of each number."""
    numbers = {word: n for n, word in enumerate(first)}
    rows = [
        np.array([numbers.setdefault(w, len(numbers)) for w in WORD.findall(line)], np.int64)
        for line in lines
    ]
    return rows, list(numbers)
