"""Text: reading and splitting it, and an n-gram model as a baseline."""

import pathlib
import re

import numpy as np

from lstm_jax.errors import UserError


def python_reference() -> str:
    """The language reference of Python as one string, without a download.

    It consists of the topics of ``pydoc_data.topics``, sorted by name, without repeated paragraphs.
    Topics quote one another, and a paragraph on both sides of a split would test a model on
    memorised text. The text differs slightly between versions of Python.

    >>> text = python_reference()
    >>> len(text) > 300_000, "lambda" in text
    (True, True)
    """
    from pydoc_data.topics import topics

    paragraphs = (p for name in sorted(topics) for p in topics[name].split("\n\n"))
    first: dict[str, str] = {}
    for paragraph in paragraphs:
        first.setdefault(paragraph.strip(), paragraph.strip("\n"))
    return "\n\n".join(paragraph for words, paragraph in first.items() if words)


def read_text(path: str | pathlib.Path, encoding: str = "utf-8") -> str:
    """The text of a file, with unchanged line ends and without a byte-order mark.

    Args:
      path: the file.
      encoding: its encoding, the name of a Python codec.

    Raises:
      UserError: the file is missing or empty, or has bytes that are not valid in the encoding (the
        message gives the position of the first).

    >>> read_text("/no/such/file.txt")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.txt: no such file
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return decoded(path.read_bytes(), path, encoding)


def decoded(content: bytes, path: str | pathlib.Path, encoding: str = "utf-8") -> str:
    """Decodes the content of a file, as in :func:`read_text`.

    Args:
      content: the content of the file.
      path: the file, for messages.
      encoding: the encoding of the content.

    >>> decoded(b"\\xef\\xbb\\xbfday", "a.csv")
    'day'
    """
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected {encoding.upper()} text, got byte "
            f"0x{error.object[error.start]:02x} at position {error.start}"
        ) from error
    if not text.strip():
        raise UserError(f"{path}: expected text, got an empty file")
    return text


def cut_text(text: str, fraction: float, *, whole_words: bool = False) -> tuple[str, str]:
    """Splits a string into its beginning and a fraction at its end.

    Args:
      text: the text.
      fraction: the fraction of the characters that belongs to the end.
      whole_words: whether the cut moves to the next space, if there is one.

    >>> cut_text("a cat sat", 0.6), cut_text("a cat sat", 0.6, whole_words=True)
    (('a ca', 't sat'), ('a cat', ' sat'))
    """
    cut = round(len(text) * (1 - fraction))
    space = re.compile(r"\s").search(text, cut) if whole_words else None
    cut = space.start() if space else cut
    return text[:cut], text[cut:]


def encode(text: str, vocabulary: str) -> np.ndarray:
    """Each character's position in ``vocabulary``, as int32.

    Args:
      text: any text.
      vocabulary: the known characters, sorted, each once.

    Raises:
      UserError: the text has a character that is not in the vocabulary.

    >>> encode("cab", "abc").tolist()
    [2, 0, 1]
    """
    # Undecodable bytes of a command line become lone surrogates, which count as unknown.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    known = np.frombuffer(vocabulary.encode("utf-32-le"), np.uint32)
    found = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    unknown = np.flatnonzero(known[found] != codes)
    if unknown.size:
        raise UserError(
            f"character {text[unknown[0]]!r} at position {unknown[0]} is not among the "
            f"{len(vocabulary)} characters of the training text"
        )
    return found.astype(np.int32)


def ngram_loss(train: np.ndarray, held_out: np.ndarray, vocabulary_size: int, order: int) -> float:
    """The loss of an interpolated character n-gram model on held-out text.

    Witten-Bell smoothing: a context's distribution is mixed with that of the context one
    character shorter, in proportion to how many different characters followed it::

        P_k(w | c) = (count(c w) + kinds(c) P_{k-1}(w | c')) / (count(c) + kinds(c))

    down to the uniform distribution over the vocabulary.

    Args:
      train: tokens to count, ``[N]``.
      held_out: tokens to predict, ``[M]``, each from its predecessors; those of the first token are
        the last tokens of ``train``.
      vocabulary_size: the number of different tokens.
      order: n, the length of the longest n-gram.

    Returns:
      Mean negative log probability, in nats per token.

    >>> tokens = np.array([0, 1] * 50)
    >>> ngram_loss(tokens, tokens[:10], 2, order=5) < 0.1 < ngram_loss(tokens, tokens, 2, 1)
    True

    References:
      Ian H. Witten, Timothy C. Bell, "The zero-frequency problem: Estimating the
      probabilities of novel events in adaptive text compression", IEEE Transactions on
      Information Theory 37(4), 1991, method C; interpolated as in Stanley F. Chen, Joshua
      Goodman, "An empirical study of smoothing techniques for language modeling", Computer
      Speech & Language 13(4), 1999.
    """
    tokens = np.concatenate([train, held_out]).astype(np.int64)
    start = len(train)
    probability = np.full(len(held_out), 1.0 / vocabulary_size)
    context = np.zeros(len(tokens), np.int64)  # an id of the n-1 tokens before each one
    for n in range(1, order + 1):
        if n > 1:
            earlier = np.concatenate([np.zeros(n - 1, np.int64), tokens[: 1 - n]])
            context = np.unique(context * vocabulary_size + earlier, return_inverse=True)[1]
        gram = context * vocabulary_size + tokens
        # Tokens without a complete context before them are not counted.
        counted = slice(n - 1, start)
        kinds_of_gram, gram_counts = np.unique(gram[counted], return_counts=True)
        totals = np.bincount(context[counted], minlength=context.max() + 1)
        kinds = np.bincount(kinds_of_gram // vocabulary_size, minlength=context.max() + 1)
        if not len(kinds_of_gram):  # there are fewer than n training tokens
            break
        place = np.searchsorted(kinds_of_gram, gram[start:]).clip(max=len(kinds_of_gram) - 1)
        count = np.where(kinds_of_gram[place] == gram[start:], gram_counts[place], 0)
        total, kind = totals[context[start:]], kinds[context[start:]]
        with np.errstate(invalid="ignore"):
            mixed = (count + kind * probability) / (total + kind)
        probability = np.where(total > 0, mixed, probability)
    return float(-np.log(probability).mean())
