"""Pretrained word vectors, from text files of GloVe or word2vec."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lstm_jax.data.fields import is_number
from lstm_jax.errors import UserError, expect


class WordVectors(NamedTuple):
    """Vectors of some words.

    Attributes:
      found: whether each word has a vector, booleans ``[V]``.
      table: float32 ``[V, D]``, zeros for words without one.

    >>> WordVectors(np.array([True, False]), np.zeros((2, 3), np.float32)).table.shape
    (2, 3)
    """

    found: np.ndarray
    table: np.ndarray


def read_vectors(path: str | pathlib.Path, words: Sequence[str]) -> WordVectors:
    """The vectors of some words; all others in the file are skipped.

    A line has a word and D numbers, separated by spaces. A first line of two integers, which
    word2vec writes, is skipped. If a word occurs twice, the first line is used.

    Args:
      path: a UTF-8 text file.
      words: V different words.

    Raises:
      UserError: the file is missing or empty, is not UTF-8, or a line is not a word and D finite
        numbers (the message gives its number).

    >>> read_vectors("/no/such/file.txt", ["a"])
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.txt: no such file

    References:
      Jeffrey Pennington, Richard Socher, Christopher Manning, "GloVe: Global Vectors for Word
      Representation", EMNLP 2014; Tomas Mikolov et al., "Distributed Representations of Words and
      Phrases and their Compositionality", NIPS 2013 (word2vec).
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    place = {word: n for n, word in enumerate(words)}
    found, table, size = np.zeros(len(words), bool), np.zeros((len(words), 0), np.float32), 0
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2 and all(field.isdecimal() for field in fields):
                    continue
                if not size:
                    size = len(fields) - 1
                    table = np.zeros((len(words), size), np.float32)
                # A word in GloVe's largest files can contain spaces.
                word, numbers = " ".join(fields[: len(fields) - size]), fields[len(fields) - size :]
                n = place.get(word)
                if size and word and (n is None or found[n]):
                    continue
                fits = size and word and all(map(is_number, numbers))
                wanted = f"a word and {size or 'some'} numbers"
                expect(fits, f"{path}: line {number}", wanted, repr(line[:40]))
                vector = np.array(numbers, np.float64)
                small = np.abs(vector).max() <= np.finfo(np.float32).max
                expect(small, f"{path}: line {number}", "numbers within float32", repr(line[:40]))
                found[n], table[n] = True, vector
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, got other bytes ({error.reason})") from error
    expect(size, f"{path}", "lines of a word and its vector", "none")
    return WordVectors(found, table)
