"""Readers of numeric files: CSV tables, and the .ts format of the UEA and UCR archives."""

import csv
import datetime
import io
import math
import pathlib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lstm_jax.data.text import read_text
from lstm_jax.errors import UserError


class Table(NamedTuple):
    """A table of numbers.

    Attributes:
      columns: the names of its numeric columns, C of them.
      values: float64 ``[rows, C]``.
      times: the time stamp of each row, as in the file.

    >>> Table(("a",), np.zeros((2, 1))).values.shape
    (2, 1)
    """

    columns: tuple[str, ...]
    values: np.ndarray
    times: tuple[str, ...] = ()


def dates(times: ArrayLike) -> np.ndarray | None:
    """Time stamps as ``datetime64``, or None where they are not dates in ISO 8601.

    >>> dates(["2016-07-01 00:00:00", "2016-07-01T01:00"]).tolist()[1].hour
    1
    >>> dates(["20160701"]) is None  # which could be a number
    True
    """
    times = np.asarray(times)
    try:
        parsed = [datetime.datetime.fromisoformat(time) for time in times.flat if "-" in time]
    except ValueError:
        return None
    if len(parsed) < times.size:
        return None
    moments = [moment.replace(tzinfo=None) for moment in parsed]
    return np.array(moments, "datetime64[us]").reshape(times.shape)


def read_csv(path: str | pathlib.Path) -> Table:
    """A CSV file with a header, its first column a time stamp and the others numbers.

    Raises:
      UserError: the file is missing or has no rows, a row has another number of fields than
        the header, or a field is missing or no finite number (with its row and column).

    >>> read_csv("/no/such/file.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.csv: no such file
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
        while rows and not rows[-1]:  # blank lines at the end
            rows.pop()
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file: {error}") from error
    if len(rows) < 2 or len(rows[0]) < 2:
        raise UserError(
            f"{path}: expected a header and rows of a time stamp and numbers, got {len(rows)} lines"
        )
    columns = tuple(rows[0][1:])
    values = np.empty((len(rows) - 1, len(columns)))
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(columns) + 1:
            raise UserError(
                f"{path}: line {line}: expected {len(columns) + 1} fields as in the header, "
                f"got {len(row)}"
            )
        for n, field in enumerate(row[1:]):
            values[line - 2, n] = _finite(field, f"{path}: line {line}: column {columns[n]!r}")
    return Table(columns, values, tuple(row[0] for row in rows[1:]))


class LabelledSequences(NamedTuple):
    """Sequences of different lengths, each with a label.

    Attributes:
      xs: float32 ``[N, T, D]``, zero past each sequence's end.
      lengths: int32 ``[N]``.
      labels: int32 ``[N]``, positions in ``classes``.
      classes: the labels' names.

    >>> LabelledSequences(np.zeros((1, 3, 2)), np.array([2]), np.array([0]), ("a",)).xs.shape
    (1, 3, 2)
    """

    xs: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def rows(self, chosen: np.ndarray) -> "LabelledSequences":
        """Some of the sequences, by booleans ``[N]`` or positions."""
        return self._replace(
            xs=self.xs[chosen], lengths=self.lengths[chosen], labels=self.labels[chosen]
        )

    @property
    def steps(self) -> np.ndarray:
        """The steps of all sequences without padding, ``[sum of lengths, D]``."""
        return self.xs[np.arange(self.xs.shape[1]) < self.lengths[:, None]]


def last_of_each(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Booleans ``[N]``, true for the last rows of each label, a share ``fraction`` of them.

    >>> last_of_each(np.array([0, 1, 0, 1, 1]), 0.4).tolist()
    [False, False, True, False, True]
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen[rows[len(rows) - round(len(rows) * fraction) :]] = True
    return chosen


def read_ts(path: str | pathlib.Path) -> LabelledSequences:
    """A .ts file: multivariate sequences of different lengths with class labels.

    Each data line holds one example: its dimensions apart by colons, each a list of numbers
    apart by commas, then the label.  Steps in which every dimension is missing (``?``) at the
    end of an example are padding and count as past its end.

    Raises:
      UserError: the file is missing, declares no class labels, or a line does not fit what
        the header declares (with the line's number).

    >>> read_ts("/no/such/file.ts")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.ts: no such file
    """
    classes: tuple[str, ...] = ()
    examples: list[np.ndarray] = []
    labels: list[int] = []
    in_data = False
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            word, *rest = line.split()
            if word.lower() == "@classlabel" and rest and rest[0].lower() == "true":
                classes = tuple(rest[1:])
            in_data = in_data or word.lower() == "@data"
            continue
        where = f"{path}: line {number}"
        if not in_data or not classes:
            raise UserError(f"{where}: expected @classLabel and @data before the first example")
        *dimensions, label = line.split(":")
        if label not in classes:
            raise UserError(f"{where}: expected a label among {', '.join(classes)}, got {label!r}")
        examples.append(_example(dimensions, where))
        labels.append(classes.index(label))
        if examples[-1].shape[1] != examples[0].shape[1]:
            raise UserError(
                f"{where}: expected {examples[0].shape[1]} dimensions as in the first example, "
                f"got {examples[-1].shape[1]}"
            )
    if not examples:
        raise UserError(f"{path}: expected examples after @data, got none")
    lengths = np.array([len(example) for example in examples], np.int32)
    xs = np.zeros((len(examples), int(lengths.max()), examples[0].shape[1]), np.float32)
    for row, example in zip(xs, examples, strict=True):
        row[: len(example)] = example
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
    return np.array([[_finite(field, where) for field in step] for step in steps], np.float32)


def _finite(field: str, where: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = "a missing value" if not field.strip() or field.strip() == "?" else repr(field)
        raise UserError(f"{where}: expected a number, got {what}")
    return value
