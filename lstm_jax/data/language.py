"""Conversion between text and one stream of tokens, for language models."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lstm_jax.data.text import encode
from lstm_jax.data.tokens import END, PAD, START, UNKNOWN, Tokenizer


class Characters:
    """Each character is a token.

    Args:
      known: ``vocabulary``, the known characters, sorted, as :meth:`train` returns them.

    >>> codec = Characters(Characters.train("cab"))
    >>> codec.encode("abba").tolist(), "".join(codec.decode([2, 0, 1], given=[]))
    ([0, 1, 1, 0], 'cab')
    """

    excluded: tuple[int, ...] = ()  # tokens that are never generated

    def __init__(self, known: Mapping[str, Any]):
        self._vocabulary: str = known["vocabulary"]

    @staticmethod
    def train(text: str) -> dict[str, Any]:
        """The metadata of a training text, as plain JSON values."""
        return {"vocabulary": "".join(sorted(set(text)))}

    def __len__(self) -> int:
        return len(self._vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 ``[N]``.

        Raises:
          UserError: a character is unknown.
        """
        return encode(text, self._vocabulary)

    def ends(self, text: str) -> np.ndarray:
        """The number of characters of the text up to the end of each token, ``[N]``."""
        return np.arange(1, len(text) + 1)

    def decode(self, tokens: Iterator[int], given: np.ndarray) -> Iterator[str]:
        """Decodes tokens piece by piece, as the continuation of the tokens in ``given``."""
        return (self._vocabulary[token] for token in tokens)


class _Trained:
    """Base class for tokens of a :class:`lstm_jax.data.tokens.Tokenizer`."""

    kind = ""

    def __init__(self, known: Mapping[str, Any]):
        self._tokenizer = Tokenizer.from_json(known["tokenizer"])

    @classmethod
    def train(cls, text: str, vocabulary_size: int) -> dict[str, Any]:
        """The metadata of a text, as plain JSON values: the tokenizer trained on it."""
        lines = text.splitlines(keepends=True)
        tokenizer = Tokenizer.train(lines, kind=cls.kind, vocabulary_size=vocabulary_size)
        return {"tokenizer": tokenizer.to_json()}

    def __len__(self) -> int:
        return len(self._tokenizer)


class Words(_Trained):
    """Words and marks, as :class:`~lstm_jax.data.tokens.Tokenizer` splits them, and line ends.

    A line end is the token ``</s>``.  Spaces are not predicted: decoding puts one between tokens.

    >>> codec = Words(Words.train("the cat, the dog.", vocabulary_size=99))
    >>> tokens = codec.encode("the dog\\nthe fox")
    >>> tokens.tolist(), codec.ends("the dog\\nthe fox").tolist()
    ([4, 8, 3, 4, 1], [3, 7, 8, 11, 15])
    >>> "".join(codec.decode(tokens, given=[]))
    'the dog\\nthe <unk>'
    """

    kind = "words"
    excluded = (PAD, UNKNOWN, START)

    def encode(self, text: str) -> np.ndarray:
        """As :meth:`Characters.encode`; unknown words are not an error."""
        ends = np.array([END], np.int32)
        parts = [part for ids in self._tokenizer.encode(text.split("\n")) for part in (ids, ends)]
        return np.concatenate(parts[:-1])

    def ends(self, text: str) -> np.ndarray:
        """As :meth:`Characters.ends`."""
        ends, begin = [], 0
        for line in text.split("\n"):
            ends += [begin + end for _, end in self._tokenizer.spans(line)]
            begin += len(line) + 1
            ends.append(begin)
        return np.array(ends[:-1])

    def decode(self, tokens: Iterator[int], given: np.ndarray) -> Iterator[str]:
        """As :meth:`Characters.decode`."""
        names = self._tokenizer.tokens
        begins_line = len(given) == 0 or given[-1] == END
        for token in tokens:
            if token == END:
                yield "\n"
            else:
                yield names[token] if begins_line else " " + names[token]
            begins_line = token == END


class Subwords(_Trained):
    """Byte-pair encoding; it can encode any text, and decoding restores the text exactly.

    >>> codec = Subwords(Subwords.train("the cat, the dog.", vocabulary_size=262))
    >>> tokens = codec.encode("the dög")
    >>> len(codec), len(tokens), "".join(codec.decode(tokens, given=[]))
    (262, 7, 'the dög')
    """

    kind = "subwords"
    excluded = (PAD, UNKNOWN, START, END)

    def encode(self, text: str) -> np.ndarray:
        """As :meth:`Characters.encode`; any text can be encoded."""
        return self._tokenizer.encode([text])[0]

    def ends(self, text: str) -> np.ndarray:
        """As :meth:`Characters.ends`."""
        return np.array([end for _, end in self._tokenizer.spans(text)])

    def decode(self, tokens: Iterator[int], given: np.ndarray) -> Iterator[str]:
        """As :meth:`Characters.decode`; output waits until a character is complete."""
        ids = [int(token) for token in given[-1:]]
        done = len(ids)  # already decoded; they determine whether a space follows
        for token in tokens:
            ids.append(token)
            text = self._tokenizer.decode(ids)
            if not text.endswith("\ufffd"):
                yield text[len(self._tokenizer.decode(ids[:done])) :]
                ids, done = ids[done:], len(ids) - done
        if len(ids) > done:
            yield self._tokenizer.decode(ids)[len(self._tokenizer.decode(ids[:done])) :]


CODECS: dict[str, Any] = {"characters": Characters, "words": Words, "subwords": Subwords}
"""The kinds of tokens, by their name in a config (key ``data.tokens``)."""
