"""The reader of CSV tables of numbers."""

import datetime
import pathlib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lstm_jax.data.fields import is_number, number, read_rows
from lstm_jax.errors import UserError

TIME_NAMES = ("", "t", "time", "timestamp", "date", "datetime", "index", "row", "step")


class Table(NamedTuple):
    """A table of numbers.

    Attributes:
      columns: the names of its numeric columns, C of them.
      values: float64 ``[rows, C]``.
      times: the time stamp of each row, as in the file; empty if it has none.

    >>> Table(("a",), np.zeros((2, 1))).values.shape
    (2, 1)
    """

    columns: tuple[str, ...]
    values: np.ndarray
    times: tuple[str, ...] = ()

    def place(self, row: int, column: int) -> str:
        """Describes the position of a value in the file."""
        return f"line {row + 2}: column {self.columns[column]!r}"


def dates(times: ArrayLike) -> np.ndarray | None:
    """Time stamps as ``datetime64``, or None if they are not dates in ISO 8601.

    Time stamps with different offsets are converted to UTC; those without an offset are in UTC.

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
    offsets = {moment.utcoffset() for moment in parsed}
    if len(offsets) > 1:
        utc = datetime.UTC
        parsed = [m.astimezone(utc) if m.tzinfo else m.replace(tzinfo=utc) for m in parsed]
    moments = [moment.replace(tzinfo=None) for moment in parsed]
    return np.array(moments, "datetime64[us]").reshape(times.shape)


def read_csv(path: str | pathlib.Path) -> Table:
    """Reads a CSV file with a header, a time stamp in the first column and numbers in the others.

    Fields are separated by commas, semicolons (with decimal points or commas) or tabs.  A first
    column of numbers is a time stamp if its name is ``t``, ``time``, ``index``, ... or empty, or if
    the numbers increase in equal steps. Otherwise it is a column like the others, and the table has
    no time stamps.

    Raises:
      UserError: the file is missing, has no header or no rows, a row and the header differ in their
        number of fields, or a field is missing or not a finite number (the message gives row and
        column).

    >>> read_csv("/no/such/file.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.csv: no such file
    """
    names, *rows = read_rows(path)
    if not rows:
        raise UserError(
            f"{path}: expected a header and rows of a time stamp and numbers, got 1 lines"
        )
    first = 1 if _has_time(names, [row[0] for row in rows]) else 0
    columns = tuple(names[first:])
    times = tuple(row[0] for row in rows) if first else ()
    values = np.empty((len(rows), len(columns)))
    table = Table(columns, values, times)
    for n, row in enumerate(rows):
        for m, field in enumerate(row[first:]):
            values[n, m] = number(field, f"{path}: {table.place(n, m)}")
    return table


def _has_time(names: list[str], fields: list[str]) -> bool:
    """Whether the first column of a table, given by its ``fields``, contains time stamps."""
    numbers = [float(field) for field in fields if is_number(field)]
    if len(names) == 1:
        return False
    if not numbers or names[0].strip().lower() in TIME_NAMES:
        return True
    if len(numbers) < max(len(fields), 2):
        return False
    with np.errstate(all="ignore"):
        steps = np.diff(numbers)
        return bool(steps[0] > 0 and np.allclose(steps, steps[0]))
