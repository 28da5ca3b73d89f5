"""Readers of sequences with labels: .ts files (UEA and UCR archives), CSV files, NumPy archives."""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lstm_jax.config.options import nearest
from lstm_jax.data.fields import is_number, number, read_rows, resembles_number
from lstm_jax.data.tables import dates
from lstm_jax.data.text import read_text
from lstm_jax.errors import UserError, expect, first_line

LARGEST = float(np.finfo(np.float32).max)


class LabelledSequences(NamedTuple):
    """Sequences of different lengths, each with a label.

    Attributes:
      xs: float32 or float64 ``[N, T, D]``, zero beyond the end of each sequence.
      lengths: int32 ``[N]``.
      labels: int32 ``[N]``, positions in ``classes``; zeros if the file has no labels.
      classes: the names of the labels; empty if the file has no labels.
      ids: the name of each sequence, ``[N]``; None numbers them from 1.
      features: the names of the D columns; empty if the file has no names.

    >>> LabelledSequences(np.zeros((1, 3, 2)), np.array([2]), np.array([0]), ("a",)).xs.shape
    (1, 3, 2)
    """

    xs: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    ids: np.ndarray | None = None
    features: tuple[str, ...] = ()

    def rows(self, chosen: np.ndarray) -> "LabelledSequences":
        """A subset of the sequences, chosen by booleans ``[N]`` or positions."""
        xs, lengths, labels = self.xs[chosen], self.lengths[chosen], self.labels[chosen]
        return self._replace(xs=xs, lengths=lengths, labels=labels, ids=self.names[chosen])

    @property
    def names(self) -> np.ndarray:
        """The name of each sequence, by default its number from 1; ``[N]``."""
        return np.arange(1, len(self.labels) + 1) if self.ids is None else self.ids

    @property
    def steps(self) -> np.ndarray:
        """The steps of all sequences without padding, ``[sum of lengths, D]``."""
        return self.xs[np.arange(self.xs.shape[1]) < self.lengths[:, None]]

    def place(self, step: int, dimension: int) -> str:
        """Describes the position of a row of :attr:`steps`."""
        ends = np.cumsum(self.lengths)
        row = int(np.searchsorted(ends, step, "right"))
        name = f"dimension {dimension}"
        if self.features:
            name = f"column {self.features[dimension]!r}"
        place = step - ends[row] + self.lengths[row] + 1
        return f"sequence {self.names[row]}, step {place}, {name}"


class SequenceColumns(NamedTuple):
    """The meaning of the columns of a CSV file of sequences.

    Attributes:
      id: the column whose value is the same in all rows of a sequence.
      label: the column with the sequence's label.
      order: the column by which the rows of a sequence are sorted, numbers or dates; empty for the
        order in the file.
      features: the input columns; empty for all other columns of numbers.

    >>> SequenceColumns(order="t").id
    'id'
    """

    id: str = "id"
    label: str = "label"
    order: str = ""
    features: tuple[str, ...] = ()


DEFAULT_COLUMNS = SequenceColumns()


def last_of_each(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Booleans ``[N]``, true for the last ``fraction`` of the rows of each label.

    >>> last_of_each(np.array([0, 1, 0, 1, 1]), 0.4).tolist()
    [False, False, True, False, True]
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen[rows[len(rows) - round(len(rows) * fraction) :]] = True
    return chosen


def read_sequences(
    path: str | pathlib.Path,
    columns: SequenceColumns = DEFAULT_COLUMNS,
    classes: tuple[str, ...] = (),
    labelled: bool = True,
) -> LabelledSequences:
    """Sequences from a .ts, CSV or .npz file, recognised by its name or its content.

    Args:
      path: the file.
      columns: the meaning of the columns of a CSV file.
      classes: the names of the possible labels; empty for those of the file.  (A .ts file declares
        its classes itself.)
      labelled: False ignores labels; they may then be missing in a CSV or .npz file.

    Raises:
      UserError: the file is missing, not supported, or damaged.

    >>> read_sequences("/no/such/file.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.csv: no such file
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(1024)
    if path.suffix == ".npz" or head.startswith(b"PK\x03\x04"):
        return read_npz(path, classes, labelled)
    if b"\0" in head:
        raise UserError(f"{path}: expected a .ts, CSV or .npz file, got another kind of file")
    if path.suffix == ".ts" or re.search(r"^[ \t]*@\w", read_text(path), re.MULTILINE):
        return read_ts(path, labelled)
    return read_sequences_csv(path, columns, classes, labelled)


def read_ts(path: str | pathlib.Path, labelled: bool = True) -> LabelledSequences:
    """A .ts file: multivariate sequences of different lengths with class labels.

    Each data line holds one example: its dimensions, separated by colons, then the label. A
    dimension is a list of numbers separated by commas. Steps at the end of an example in which
    every dimension is missing (``?``) are padding.

    Args:
      path: the file.
      labelled: False accepts a file that declares no class labels.

    Raises:
      UserError: the file is missing, declares no class labels, or a line does not match the header
        (the message gives the line's number).

    >>> read_ts("/no/such/file.ts")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.ts: no such file
    """
    classes: tuple[str, ...] = ()
    examples: list[np.ndarray] = []
    labels: list[int] = []
    in_data = False
    for line_number, line in enumerate(re.split(r"\r\n|\r|\n", read_text(path)), start=1):
        line, where = line.strip(" \t"), f"{path}: line {line_number}"
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            word, *rest = re.split(r"[ \t]+", line)
            expect(not in_data, where, "an example after @data", word)
            if word.lower() == "@classlabel" and rest and rest[0].lower() == "true":
                classes = tuple(rest[1:])
                different = len(set(classes)) == len(classes)
                expect(different, where, "different class labels", ", ".join(classes))
            in_data = word.lower() == "@data"
            continue
        if not in_data or (labelled and not classes):
            raise UserError(f"{where}: expected @classLabel and @data before the first example")
        dimensions = line.split(":")
        if classes:
            label = dimensions.pop()
            if label not in classes and (labelled or label != "?"):
                known = ", ".join(classes)
                raise UserError(f"{where}: expected a label among {known}, got {label!r}")
            labels.append(0 if label == "?" and not labelled else classes.index(label))
        else:
            labels.append(0)
        examples.append(_example(dimensions, where))
        if examples[-1].shape[1] != examples[0].shape[1]:
            raise UserError(
                f"{where}: expected {examples[0].shape[1]} dimensions as in the first example, "
                f"got {examples[-1].shape[1]}"
            )
    if not examples:
        raise UserError(f"{path}: expected examples after @data, got none")
    xs, lengths = _padded(examples, np.float32)
    return LabelledSequences(xs, lengths, np.array(labels, np.int32), classes)


def _example(dimensions: list[str], where: str) -> np.ndarray:
    """One example as ``[T, D]``, without the padding at its end."""
    columns = [dimension.split(",") for dimension in dimensions]
    if not columns or len({len(column) for column in columns}) != 1:
        raise UserError(
            f"{where}: expected dimensions of one length, got lengths "
            f"{', '.join(str(len(column)) for column in columns) or 'of nothing'}"
        )
    steps = list(zip(*columns, strict=True))
    while steps and all(field.strip() in ("?", "NaN") for field in steps[-1]):
        steps.pop()
    if not steps:
        raise UserError(f"{where}: expected at least one step, got none")
    return np.array([[_float32(field, where) for field in step] for step in steps], np.float32)


def _float32(field: str, where: str) -> float:
    """A number that float32 can hold."""
    value = number(field, where)
    if abs(value) > LARGEST:
        raise UserError(f"{where}: expected a number in the range of float32, got {field}")
    return value


def _padded(examples: Sequence[np.ndarray], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Examples ``[T_n, D]`` as one array ``[N, T, D]``, padded with zeros, and their lengths."""
    lengths = np.array([len(example) for example in examples], np.int32)
    xs = np.zeros((len(examples), int(lengths.max()), examples[0].shape[1]), dtype)
    for row, example in zip(xs, examples, strict=True):
        row[: len(example)] = example
    return xs, lengths


def read_sequences_csv(
    path: str | pathlib.Path, columns: SequenceColumns, classes: tuple[str, ...], labelled: bool
) -> LabelledSequences:
    """A CSV file with named columns and a row per step; arguments as for :func:`read_sequences`.

    The rows of a sequence have the same id and the same label. Sequences are in the order of their
    first rows.

    Raises:
      UserError: the file is not CSV, a column is missing, or a row is not valid (the message gives
        its line).
    """
    names, *rows = read_rows(path)
    features = columns.features
    needed = [columns.id, *([columns.label] if labelled else []), *features]
    for name in [*needed, *([columns.order] if columns.order else [])]:
        if name not in names:
            raise UserError(
                f"{path}: expected a .ts or .npz file, or a CSV file whose first line names "
                f"{', '.join(needed)}; {name} is missing in {', '.join(names)[:120]!r}"
            )
    if not rows:
        raise UserError(f"{path}: expected rows after the header, got none")
    if not features:
        others = [n for n in names if n not in (columns.id, columns.label, columns.order)]
        in_columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        # A column with 1,5 or nan is included, so that reading its numbers raises an error.
        features = tuple(n for n in others if any(map(resembles_number, in_columns[n])))
        expect(features, str(path), "columns of numbers besides the id and the label", "none")
    by_id: dict[str, list[int]] = {}
    field = names.index(columns.id)
    for n, row in enumerate(rows):
        key = row[field].strip()
        expect(key, f"{path}: line {n + 2}: column {columns.id!r}", "an id", "a missing value")
        by_id.setdefault(key, []).append(n)
    if columns.order:
        field = names.index(columns.order)
        by_id = _ordered(by_id, [row[field] for row in rows], f"{path}", columns.order)
    values = np.empty((len(rows), len(features)))
    for m, name in enumerate(features):
        field = names.index(name)
        for n, row in enumerate(rows):
            values[n, m] = _float32(row[field], f"{path}: line {n + 2}: column {name!r}")
    xs, lengths = _padded([values[chosen] for chosen in by_id.values()], np.float64)
    ids = np.array(list(by_id))
    if not labelled:
        return LabelledSequences(xs, lengths, np.zeros(len(ids), np.int32), (), ids, features)
    given = [row[names.index(columns.label)].strip() for row in rows]
    for key, chosen in by_id.items():
        for n in chosen:
            where = f"{path}: line {n + 2}: column {columns.label!r}"
            expect(given[n], where, "a label", "a missing value")
            first = given[chosen[0]]
            expect(given[n] == first, where, f"the label {first!r} of sequence {key}", given[n])
    firsts = [chosen[0] for chosen in by_id.values()]
    places = [f"{path}: line {n + 2}: column {columns.label!r}" for n in firsts]
    labels, classes = label_positions([given[n] for n in firsts], classes, places)
    return LabelledSequences(xs, lengths, labels, classes, ids, features)


def _ordered(
    by_id: dict[str, list[int]], fields: list[str], path: str, name: str
) -> dict[str, list[int]]:
    """The rows of each sequence in the order of a column of numbers or dates."""
    if any(is_number(field) for field in fields):
        where = f"{path}: line {{}}: column {name!r}"
        keys = np.array([number(field, where.format(n + 2)) for n, field in enumerate(fields)])
    elif (keys := dates(fields)) is None:
        raise UserError(f"{path}: column {name!r}: expected numbers or dates such as 2016-07-01")
    ordered = {}
    for key, chosen in by_id.items():
        ordered[key] = sorted(chosen, key=lambda n: keys[n])
        for one, other in zip(ordered[key], ordered[key][1:], strict=False):
            if keys[one] == keys[other]:
                raise UserError(
                    f"{path}: line {max(one, other) + 2}: column {name!r}: expected different "
                    f"values in sequence {key}, got {fields[other]} twice"
                )
    return ordered


def label_positions(
    labels: Sequence[str], classes: tuple[str, ...], places: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as positions in the classes: given ones, or the labels found, sorted."""
    if not classes:
        whole = all(re.fullmatch(r"-?\d{1,18}", label, re.ASCII) for label in labels)
        found = sorted(set(labels))
        classes = tuple(sorted(found, key=int) if whole else found)
    for label, place in zip(labels, places, strict=True):
        expect(label in classes, place, f"a label among {', '.join(classes)[:200]}", repr(label))
    return np.array([classes.index(label) for label in labels], np.int32), classes


def read_npz(
    path: str | pathlib.Path, classes: tuple[str, ...] = (), labelled: bool = True
) -> LabelledSequences:
    """A NumPy archive of ``xs`` ``[N, T, D]``, ``labels`` ``[N]``, and ``lengths`` ``[N]``.

    Labels are integers or strings.  Without ``lengths``, every sequence has T steps; with them,
    values of ``xs`` beyond the end of a sequence are ignored. Pickled objects are not read.

    Args:
      path: the file.
      classes: the names of the possible labels; empty for those of the file.
      labelled: False to ignore labels, which may then be missing.

    Raises:
      UserError: the file is missing or damaged, or an array is missing or not valid.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.npz"
    >>> np.savez(path, xs=np.ones((2, 3, 1)), labels=["no", "yes"])
    >>> read_npz(path).classes
    ('no', 'yes')
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: no such file")
    names = ("xs", "labels", "lengths") if labelled else ("xs", "lengths")
    held, arrays = npz_arrays(path, names, "not a .npz file of numbers and strings")
    known = ("xs.npy", "labels.npy", "lengths.npy")
    for name in held:
        if name not in known and (hint := nearest(name, known)).startswith("; did"):
            raise UserError(f"{path}: expected the arrays xs, labels and lengths, got {name}{hint}")
    for name in names[:-1]:
        expect(name in arrays, f"{path}", "the arrays xs and labels", f"no {name}")
    xs = arrays["xs"]
    wanted = "numbers [N, T, D], each at least 1"
    real = xs.dtype.kind in "fiu"
    expect(xs.ndim == 3 and xs.size and real, f"{path}: xs", wanted, f"{xs.dtype} {xs.shape}")
    rows, steps, _ = xs.shape
    lengths = npz_lengths(path, arrays, rows, steps)
    inside = np.arange(steps) < lengths[:, None]
    xs = np.where(inside[..., None], xs, 0).astype(np.float64)
    for position in np.argwhere(~(np.abs(xs) <= LARGEST))[:1]:
        where = f"{path}: xs[{', '.join(map(str, position))}]"
        raise UserError(f"{where}: expected a number in the range of float32, got {xs[*position]}")
    numbers, names_of_classes = np.zeros(rows, np.int32), ()
    if labelled:
        numbers, names_of_classes = npz_labels(path, arrays["labels"], rows, classes)
    return LabelledSequences(xs, lengths, numbers, names_of_classes)


def npz_arrays(
    path: str | pathlib.Path, names: Sequence[str], otherwise: str
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all members of a NumPy archive, and some of its arrays.

    Args:
      path: the file.
      names: the names of the arrays to read.
      otherwise: the error message for a file that is not such an archive.

    Raises:
      UserError: the file is not an intact archive, or contains a duplicate array or an array of
        objects.
    """
    try:
        with np.load(path) as file:
            members = file.zip.namelist()
            if len(set(members)) < len(members):
                raise ValueError("an array is in the file twice")
            arrays = {name: file[f"{name}.npy"] for name in names if f"{name}.npy" in members}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("bytes that are not an array")
    except Exception as error:  # zipfile, decompressors and NumPy raise their own
        raise UserError(f"{path}: {otherwise} ({first_line(error)})") from error
    return members, arrays


def npz_lengths(
    path: str | pathlib.Path, arrays: dict[str, np.ndarray], rows: int, steps: int
) -> np.ndarray:
    """The array ``lengths`` of an archive, int32 ``[rows]``; all are ``steps`` if it is missing."""
    lengths = arrays.get("lengths", np.full(rows, steps))
    fits = lengths.shape == (rows,) and lengths.dtype.kind in "iu"
    fits = fits and lengths.min() >= 1 and lengths.max() <= steps
    got = f"{lengths.dtype} {lengths.shape}: {lengths}"[:90]
    expect(fits, f"{path}: lengths", f"{rows} integers from 1 to {steps}", got)
    return lengths.astype(np.int32)


def npz_labels(
    path: str | pathlib.Path, labels: np.ndarray, rows: int, classes: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of an archive as positions ``[rows]`` in the classes, and the classes."""
    fits = labels.shape == (rows,) and labels.dtype.kind in "iuU"
    expect(fits, f"{path}: labels", f"{rows} integers or strings", f"{labels.dtype} {labels.shape}")
    places = [f"{path}: labels[{n}]" for n in range(rows)]
    return label_positions([str(x) for x in labels], classes, places)
