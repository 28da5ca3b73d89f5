"""Readers of labelled text: treebanks, pairs of files, CSV and TSV tables, folders."""

import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lstm_jax.data.fetch import fetch
from lstm_jax.data.fields import read_fields
from lstm_jax.data.sequences import label_positions
from lstm_jax.data.text import read_text
from lstm_jax.errors import UserError, expect

SST5 = ("very negative", "negative", "neutral", "positive", "very positive")
POLARITY = ("negative", "positive")

# The Penn Treebank's codes for brackets and quotation marks.
TREEBANK = {"-LRB-": "(", "-RRB-": ")", "-lrb-": "(", "-rrb-": ")", "``": '"', "''": '"'}


class LabelledText(NamedTuple):
    """Strings, each with a class.

    Attributes:
      texts: N strings.
      labels: int32 ``[N]``, positions in ``classes``; zeros if the source has no labels.
      classes: the names of the classes; empty if the source has no labels.
      places: the location of each string, for messages.

    >>> LabelledText(["well done"], np.array([1]), ("bad", "good"), ["a.csv: line 2"]).classes
    ('bad', 'good')
    """

    texts: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    places: list[str]

    def rows(self, chosen: np.ndarray) -> "LabelledText":
        """A subset of the strings, chosen by booleans ``[N]`` or positions."""
        numbers = np.arange(len(self.texts))[chosen]
        texts, places = ([column[n] for n in numbers] for column in (self.texts, self.places))
        return LabelledText(texts, self.labels[numbers], self.classes, places)


def joined(parts: Sequence[LabelledText]) -> LabelledText:
    """The strings of several sources with the same classes.

    >>> one = LabelledText(["well done"], np.array([1]), ("bad", "good"), ["a.csv: line 2"])
    >>> joined([one, one]).labels.tolist()
    [1, 1]
    """
    texts, places = (
        [x for part in parts for x in getattr(part, name)] for name in ("texts", "places")
    )
    labels = np.concatenate([part.labels for part in parts])
    return LabelledText(texts, labels, parts[0].classes, places)


def read_trees(
    path: str | pathlib.Path, *, phrases: bool = False, polarity: bool = False
) -> LabelledText:
    """Sentences of the Stanford Sentiment Treebank, or all of their labelled phrases.

    A line is a tree, ``(3 (2 It) (4 (2 's) (4 great)))``, with a label from 0 to 4 at every node.
    Brackets, quotation marks and slashes are converted to ordinary characters.

    Args:
      path: a file of trees.
      phrases: whether to return every distinct phrase once, instead of the sentences.
      polarity: whether to use two classes instead of five; neutral strings are dropped.

    Raises:
      UserError: the file is missing or empty, or a line is not a tree (with its number).

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "trees.txt"
    >>> _ = path.write_text("(3 (2 It) (4 (2 's) (4 great)))\\n")
    >>> found = read_trees(path, phrases=True, polarity=True)
    >>> found.texts, found.labels.tolist()
    (["It 's great", "'s great", 'great'], [1, 1, 1])

    References:
      Richard Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment
      Treebank", EMNLP 2013.
    """
    found: dict[tuple[str, int, int], str] = {}  # by text, label and, for sentences, line
    for number, line in enumerate(_lines(read_text(path)), start=1):
        place = f"{path}: line {number}"
        nodes = _nodes(line, place)
        for text, label in nodes if phrases else nodes[:1]:
            found.setdefault((text, label, 0 if phrases else number), place)
    texts, labels = [text for text, _, _ in found], np.array([label for _, label, _ in found])
    every = LabelledText(texts, labels.astype(np.int32), SST5, list(found.values()))
    if not polarity:
        return every
    decided = every.rows(labels != 2)
    return decided._replace(labels=(decided.labels > 2).astype(np.int32), classes=POLARITY)


def _nodes(line: str, place: str) -> list[tuple[str, int]]:
    """Text and label of every node of a tree, the root first."""
    nodes: list[tuple[str, int]] = []
    words: list[str] = []
    opened: list[tuple[int, int]] = []  # each open node's index in `nodes`, its first word
    for label, word, close in re.findall(r"\(([0-4])(?=[\s(])|([^\s()]+)|(\))|\S", line):
        if label:
            if nodes and not opened:
                break
            opened.append((len(nodes), len(words)))
            nodes.append(("", int(label)))
        elif word and opened:
            words.append(_plain(word))
        elif close and opened and len(words) > opened[-1][1]:
            node, first = opened.pop()
            nodes[node] = (" ".join(words[first:]), nodes[node][1])
        else:
            break
    else:
        if nodes and not opened:
            return nodes
    raise UserError(f"{place}: expected a tree such as (3 (2 It) (4 works)), got {line[:40]!r}")


def _lines(text: str) -> list[str]:
    """The lines of a string, split at line ends only; str.splitlines also splits at U+0085."""
    return re.split(r"\r?\n", text.removesuffix("\n").removesuffix("\r"))


def _plain(word: str) -> str:
    return TREEBANK.get(word) or re.sub(r"\\([/*])", r"\1", word)


def read_polarity(folder: Callable[[str], pathlib.Path] = fetch) -> LabelledText:
    """The sentence polarity data: 5331 negative and 5331 positive sentences of film reviews.

    References:
      Bo Pang, Lillian Lee, "Seeing stars: Exploiting class relationships for sentiment
      categorization with respect to rating scales", ACL 2005, version 1.0 of the data.
    """
    texts, labels, places = [], [], []
    for label, suffix in enumerate(("neg", "pos")):
        path = folder(f"rt_polarity/rt-polarity.{suffix}")
        lines = _lines(read_text(path, "latin-1"))
        texts += [line.strip() for line in lines]
        labels += [label] * len(lines)
        places += [f"{path}: line {n}" for n in range(1, len(lines) + 1)]
    return LabelledText(texts, np.array(labels, np.int32), POLARITY, places)


def read_labelled_text(
    path: str | pathlib.Path,
    *,
    text_column: str = "text",
    label_column: str = "label",
    encoding: str = "utf-8",
    classes: tuple[str, ...] = (),
    labelled: bool = True,
) -> LabelledText:
    """Labelled strings from a table or a folder.

    A ``.csv`` or ``.tsv`` file has a header with the names of its columns.  A folder has one
    subfolder of ``.txt`` files per class. Without labels, the folder may contain the ``.txt`` files
    directly, and a single ``.txt`` file has one string per line.

    Args:
      path: the file or folder.
      text_column: the column with the text.
      label_column: the column with the class.
      encoding: the encoding of the files.
      classes: the names of the possible classes; if empty, the classes found are used.
      labelled: False ignores labels, which may then be missing.

    Raises:
      UserError: the file or folder is missing, empty or not supported, a column is missing, a label
        is empty or not in ``classes``, or bytes are not valid in the encoding.

    >>> read_labelled_text("/no/such/file.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.csv: no such file or folder
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        names, texts, places = _read_folder(path, encoding, labelled)
    elif path.suffix in (".csv", ".tsv"):
        names, texts, places = _read_table(path, text_column, label_column, encoding, labelled)
    elif path.suffix == ".txt" and not labelled:
        names, texts = [], _lines(read_text(path, encoding))
        places = [f"{path}: line {n}" for n in range(1, len(texts) + 1)]
    else:
        lines = "" if labelled else ", a .txt file"
        raise UserError(f"{path}: expected a .csv or .tsv file{lines} or a folder of .txt files")
    if not labelled:
        return LabelledText(texts, np.zeros(len(texts), np.int32), (), places)
    for name, place in zip(names, places, strict=True):
        expect(name, place, "a label", "an empty field")
    labels, classes = label_positions(names, classes, places)
    return LabelledText(texts, labels, classes, places)


Columns = tuple[list[str], list[str], list[str]]  # classes, texts, places


def _read_table(
    path: pathlib.Path, text_column: str, label_column: str, encoding: str, labelled: bool
) -> Columns:
    (header, *rows), _ = read_fields(path, encoding)
    for name in (text_column, label_column) if labelled else (text_column,):
        found = ", ".join(header)[:200]
        expect(name in header, f"{path}: line 1", f"a column {name!r}", f"the columns {found}")
    expect(rows, f"{path}", "lines below the header", "none")
    text = header.index(text_column)
    names = [row[header.index(label_column)].strip() for row in rows] if labelled else []
    places = [f"{path}: line {n}" for n in range(2, len(rows) + 2)]
    return names, [row[text] for row in rows], places


def _read_folder(path: pathlib.Path, encoding: str, labelled: bool) -> Columns:
    files = sorted(path.glob("*/*.txt" if labelled else "**/*.txt"))
    which = "one folder of .txt files per class" if labelled else ".txt files"
    expect(files, f"{path}", which, "none")
    names = [file.parent.name for file in files] if labelled else []
    return names, [read_text(file, encoding) for file in files], [str(file) for file in files]


def stratified(labels: Sequence[int] | np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """A random subset with the same fraction of each class, as booleans ``[N]``.

    Args:
      labels: integers ``[N]``.
      fraction: the fraction; the number chosen in each class is rounded to the nearest integer.
      seed: determines the subset.

    >>> chosen = stratified([0] * 8 + [1] * 4, 0.25)
    >>> int(chosen[:8].sum()), int(chosen[8:].sum())
    (2, 1)
    """
    labels, chosen = np.asarray(labels), np.zeros(len(labels), bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        chosen[rows[: round(fraction * len(rows))]] = True
    return chosen
