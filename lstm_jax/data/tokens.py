"""Tokenizers: text as numbers and back, trained and run by the ``tokenizers`` library."""

import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_jax.errors import UserError, expect

if TYPE_CHECKING:
    import tokenizers

KINDS = ("words", "subwords", "characters")
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PAD, UNKNOWN, START, END = range(len(SPECIAL))

# A word, a clitic as the Penn Treebank separates it (do | n't, it | 's), or a run of one mark.
WORD = r"\w+?(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+|([^\w\s])\1*"


class Tokenizer:
    """Splits text into tokens of a vocabulary, each a number.

    The first numbers are the special tokens: ``<pad>`` 0, ``<unk>`` 1, ``<s>`` 2 and ``</s>`` 3.
    Text is never encoded as a special token, even if it spells one, except that an unknown word or
    character becomes ``<unk>``. There are three kinds:

    ``"words"``
      Words, clitics and runs of one punctuation mark: ``do | n't | stop | ...``.  Decoding joins
      them with single spaces.
    ``"subwords"``
      Byte-pair encoding of UTF-8 bytes. There are no unknown tokens, and decoding restores the text
      exactly. A space belongs to the word that follows it; the first word of a text is encoded as
      if a space preceded it.
    ``"characters"``
      Unicode characters, including spaces and line ends. Decoding restores the text exactly, except
      for unknown characters.

    ``lowercase=True`` converts text to lower case before it is split. Characters that UTF-8 cannot
    encode (lone surrogates) become U+FFFD.

    Args:
      library: a tokenizer of the ``tokenizers`` library, as :meth:`train` makes it.

    Example:
      >>> tokenizer = Tokenizer.train(["the cat", "the dog"], kind="words")
      >>> len(tokenizer), tokenizer.tokens
      (7, ['<pad>', '<unk>', '<s>', '</s>', 'the', 'cat', 'dog'])
      >>> [ids.tolist() for ids in tokenizer.encode(["The dog", "the  dog!"])]
      [[1, 6], [4, 6, 1]]
      >>> tokenizer.decode([2, 4, 6, 3])
      'the dog'

    References:
      Rico Sennrich, Barry Haddow, Alexandra Birch, "Neural Machine Translation of Rare Words with
      Subword Units", ACL 2016 (byte-pair encoding); Alec Radford et al., "Language Models are
      Unsupervised Multitask Learners", 2019, section 2.2 (of bytes).
    """

    def __init__(self, library: "tokenizers.Tokenizer"):
        self._library = library
        self._library.encode_special_tokens = True  # "</s>" in a text is ordinary text

    @classmethod
    def train(
        cls,
        lines: Iterable[str],
        *,
        kind: str,
        vocabulary_size: int = 30_000,
        min_count: int = 1,
        lowercase: bool = False,
    ) -> "Tokenizer":
        """A tokenizer with a vocabulary learned from text; equal text gives an equal tokenizer.

        Args:
          lines: the text, divided in any way.
          kind: ``"words"``, ``"subwords"`` or ``"characters"``.
          vocabulary_size: the largest number of tokens, including special ones. With subwords, the
            special tokens and the bytes take 260.
          min_count: the smallest number of occurrences of a word, character or pair of subwords.
          lowercase: whether case is ignored.

        Raises:
          UserError: ``kind`` is unknown, or ``vocabulary_size`` is too small for the special tokens
            (and the bytes).
        """
        from tokenizers import trainers

        expect(kind in KINDS, "kind", f"one of {', '.join(KINDS)}", repr(kind))
        alphabet = _bytes() if kind == "subwords" else []
        least = len(SPECIAL) + max(1, len(alphabet))
        expect(vocabulary_size >= least, "vocabulary_size", f"at least {least}", vocabulary_size)
        options = {
            "vocab_size": vocabulary_size,
            "min_frequency": min_count,
            "special_tokens": list(SPECIAL),
            "show_progress": False,
        }
        if kind == "subwords":
            trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **options)
        else:
            trainer = trainers.WordLevelTrainer(**options)
        library = _untrained(kind, lowercase)
        library.train_from_iterator(map(_valid, lines), trainer)
        return cls(library)

    def __len__(self) -> int:
        return self._library.get_vocab_size()

    @property
    def tokens(self) -> list[str]:
        """All tokens in the order of their numbers; subwords in the library's notation of bytes."""
        vocabulary = self._library.get_vocab()
        return sorted(vocabulary, key=vocabulary.__getitem__)

    def encode(self, lines: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each string, int32 ``[T]``; no start or end is added."""
        encoded = self._library.encode_batch([_valid(line) for line in lines])
        return [np.array(each.ids, np.int32) for each in encoded]

    def spans(self, line: str) -> list[tuple[int, int]]:
        """The start and end of each token in a string.

        >>> Tokenizer.train(["a bc"], kind="words").spans("a  bc!")
        [(0, 1), (3, 5), (5, 6)]
        """
        return self._library.encode(_valid(line)).offsets

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes tokens into text; ``<pad>``, ``<s>`` and ``</s>`` are dropped.

        Raises:
          ValueError: a number is outside the vocabulary.
        """
        ids = [int(token) for token in ids]
        if ids and not 0 <= min(ids) <= max(ids) < len(self):
            raise ValueError(f"ids must be from 0 to {len(self) - 1}, got {min(ids)} to {max(ids)}")
        text = [token for token in ids if token not in (PAD, START, END)]
        return self._library.decode(text, skip_special_tokens=False)

    def to_json(self) -> str:
        """The complete tokenizer as a string in the library's JSON format."""
        return self._library.to_str()

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer that :meth:`to_json` saved.

        Raises:
          UserError: it is not such a string.

        >>> Tokenizer.from_json("{}")
        Traceback (most recent call last):
        lstm_jax.errors.UserError: tokenizer: expected JSON of the tokenizers library, got '{}' ...
        """
        from tokenizers import Tokenizer as Library
        from tokenizers import models

        expected = "tokenizer: expected JSON of the tokenizers library"
        try:
            library = Library.from_str(text)
        except Exception as error:  # the library raises only plain exceptions
            cause = " ".join(f"{error}".split())[:120]
            raise UserError(f"{expected}, got {text[:40]!r} ({cause})") from error
        rules, numbers = _rules(library)
        if sorted(numbers.values()) != [*range(len(numbers))]:
            raise UserError(f"{expected} whose tokens are numbered from 0, got other numbers")
        if any(numbers.get(token) != n for n, token in enumerate(SPECIAL)):
            raise UserError(f"{expected} whose first tokens are {', '.join(SPECIAL)}, got another")
        if rules not in _known_rules():
            raise UserError(f"{expected} as Tokenizer.train makes it, got other rules")
        if isinstance(library.model, models.BPE) and not numbers.keys() >= {*_bytes()}:
            raise UserError(f"{expected} with a token for every byte, got fewer")
        return cls(library)


def _untrained(kind: str, lowercase: bool) -> "tokenizers.Tokenizer":
    """A tokenizer of a kind, with its splitting and joining rules and an empty vocabulary."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library

    normalizer: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lowercase else []
    if kind == "subwords":
        library = Library(models.BPE())
        normalizer.append(normalizers.Prepend(" "))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    else:
        library = Library(models.WordLevel({}, unk_token=SPECIAL[UNKNOWN]))
    if kind == "words":
        words = pre_tokenizers.Split(Regex(WORD), "isolated")
        spaces = pre_tokenizers.Split(Regex(r"\s+"), "removed")
        library.pre_tokenizer = pre_tokenizers.Sequence([spaces, words])
    elif kind == "characters":
        library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        library.decoder = decoders.Fuse()
    library.normalizer = normalizers.Sequence(normalizer)
    return library


def _bytes() -> list[str]:
    """The library's notation of each byte."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _rules(library: "tokenizers.Tokenizer") -> tuple[dict[str, Any], dict[str, int]]:
    """A tokenizer without its vocabulary, as JSON, and the numbers of its tokens."""
    rules = json.loads(library.to_str())
    numbers = rules["model"].pop("vocab")
    rules["model"].pop("merges", None)
    return rules, numbers


@functools.cache
def _known_rules() -> list[dict[str, Any]]:
    """The rules of every kind of tokenizer, with and without upper case."""
    found = []
    for kind, lowercase in itertools.product(KINDS, (False, True)):
        library = _untrained(kind, lowercase)
        library.add_special_tokens(list(SPECIAL))
        found.append(_rules(library)[0])
    return found


def padded(rows: Sequence[np.ndarray], length: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as one array, and their lengths.

    Args:
      rows: integers ``[T_n]`` for each of N rows.
      length: T; 0 for the length of the longest row.  Longer rows are cut.

    Returns:
      int32 ``[N, T]``, ``PAD`` past each row's end, and int32 ``[N]``.

    >>> padded([np.array([7, 8]), np.array([9])])
    (array([[7, 8],
           [9, 0]], dtype=int32), array([2, 1], dtype=int32))
    """
    length = length or max(map(len, rows), default=0)
    lengths = np.array([min(len(row), length) for row in rows], np.int32)
    tokens = np.full((len(rows), length), PAD, np.int32)
    for n, row in enumerate(rows):
        tokens[n, : lengths[n]] = row[:length]
    return tokens, lengths


def _valid(text: str) -> str:
    """The text without lone surrogates, which represent bytes that are not UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
