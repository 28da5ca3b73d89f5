"""Tables of time series: roles of columns, regular time, gaps, and errors by line."""

import bz2
import dataclasses
import gzip
import io
import lzma
import pathlib
import re
import warnings
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lstm_jax.data.calendar import DAY, STEP, grid, infer_frequency, seconds
from lstm_jax.data.fields import split_fields
from lstm_jax.data.scaling import LARGEST, check_numbers
from lstm_jax.data.text import decoded
from lstm_jax.errors import UserError, expect

TIME_NAMES = ("ds", "date", "time", "timestamp", "datetime", "date_time", "week", "month", "day")
COMPRESSIONS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MOST_WORDS = 32  # distinct values of a covariate of words
LARGEST_TARGET = 1e17  # models compute squares of targets in float32
LARGEST_COVARIATE = 3e38  # float32


@dataclasses.dataclass(frozen=True)
class SeriesColumns:
    """The roles of a table's columns; names as in the table.

    Attributes:
      time: the time stamps.
      ids: the columns that together identify a series; empty if there is one series per target.
      targets: the columns to forecast; each is a separate series.
      past: covariates that are known up to the present.
      known: covariates that are known over the future as well.
      static: columns that are constant within a series.

    >>> SeriesColumns("ds", ("unique_id",), ("y",)).covariates
    ()
    """

    time: str
    ids: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    static: tuple[str, ...] = ()

    @property
    def covariates(self) -> tuple[str, ...]:
        return self.past + self.known


class Series(NamedTuple):
    """A series on a regular grid of time.

    Attributes:
      name: derived from the id columns and the target.
      times: a pandas index, ``[T]``.
      target: float64 ``[T]``, NaN where missing.
      covariates: by column ``[T]``: float64 with NaN, or strings with None.
      static: a number or a string by column.
      lines: the line of the file for each row, 0 if it is not in the file, ``[T]``.
      present: rows up to the present; later ones hold covariates that are known in advance.
    """

    name: str
    times: Any
    target: np.ndarray
    covariates: dict[str, np.ndarray]
    static: dict[str, Any]
    lines: np.ndarray
    present: int


class SeriesTable(NamedTuple):
    """The series of a table.

    Attributes:
      series: all of them.
      frequency: the frequency of the time stamps in pandas notation; ``"step"`` for integers.
      columns: the roles of the columns.
      notes: messages for the user about gaps and ignored columns.
    """

    series: list[Series]
    frequency: str
    columns: SeriesColumns
    notes: list[str]


def read_frame(path: str | pathlib.Path) -> Any:
    """A CSV or Parquet file as a ``pandas.DataFrame``; its index holds the lines.

    The separator of a CSV file is the most frequent of comma, semicolon and tab in its first line,
    and all lines have the same number of fields. In a file with semicolons, numbers may have a
    decimal comma. The file may be compressed: .gz, .bz2 or .xz.

    Raises:
      UserError: the file is missing, damaged or empty, or names a column twice.

    >>> read_frame("/no/such/file.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.csv: no such file
    """
    import pandas as pd

    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
            frame = frame if frame.index.names == [None] else frame.reset_index()
        else:
            frame = _read_csv(path)
    except ImportError as error:
        raise UserError(f"{path}: needs pyarrow (pip install 'lstm_jax[parquet]')") from error
    # Those of pandas and Arrow are ValueErrors.
    except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a CSV or Parquet file ({cause})") from error
    frame.columns = [str(name) for name in frame.columns]
    twice = frame.columns[frame.columns.duplicated()]
    expect(not len(twice), f"{path}: line 1", "different names of columns", f"two {list(twice)}")
    expect(len(frame), f"{path}", "a header and rows", "no rows")
    frame.index = pd.RangeIndex(2, len(frame) + 2)
    return frame


def _read_csv(path: pathlib.Path) -> Any:
    import pandas as pd

    opened = COMPRESSIONS.get(path.suffix, open)
    with opened(path, "rb") as file:
        text = decoded(file.read(), path)
    rows, separator = split_fields(text, path)  # which compares the lengths of lines; pandas fills
    comma = separator == ";" and any(re.match(r"-?\d+,\d", f) for row in rows[1:20] for f in row)
    return pd.read_csv(
        io.StringIO(text), sep=separator, decimal="," if comma else ".", skip_blank_lines=False,
        nrows=len(rows) - 1, index_col=False, low_memory=False,
    )  # fmt: skip


def names_of(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list.

    >>> names_of("price, promotion")
    ('price', 'promotion')
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def choose_columns(frame: Any, columns: SeriesColumns, where: str) -> tuple[SeriesColumns, list]:
    """Guesses the columns that are not specified, and checks those that are.

    The time column is ``ds``, ``date`` or the like, or the first one; the id column is
    ``unique_id`` if there is one; the target is ``y``, or the only other column of numbers.  ``*``
    as past covariates means all columns without another role: numbers, and words with few distinct
    values.

    Returns:
      The columns, and the names of those that are ignored.

    Raises:
      UserError: a name is unknown or is used twice, or the target cannot be guessed.
    """
    import pandas as pd

    names = list(frame.columns)
    time = columns.time or next((n for n in names if n.lower() in TIME_NAMES), names[0])
    ids = columns.ids or (("unique_id",) if "unique_id" in names else ())
    named = {time, *ids, *columns.targets, *columns.known, *columns.static, *columns.past}
    for name in named - {"*"}:
        expect(name in names, where, f"a column {name!r}", f"the columns {', '.join(names)}")
    rest = [name for name in names if name not in named]
    numbers = [name for name in rest if pd.api.types.is_numeric_dtype(frame[name])]
    targets = columns.targets or (("y",) if "y" in rest else ())
    targets = targets or (tuple(numbers) if len(numbers) == 1 else ())
    known = f"the columns {', '.join(names)}"
    expect(targets, f"{where}: data.target_columns", "the names of what is forecast", known)
    rest = [name for name in rest if name not in targets]
    past, ignored = columns.past, rest
    if "*" in past:
        few = [n for n in rest if n in numbers or frame[n].nunique() <= MOST_WORDS]
        past = tuple(name for name in past if name != "*") + tuple(few)
        ignored = [name for name in rest if name not in few]
    chosen = SeriesColumns(time, ids, targets, past, columns.known, columns.static)
    used = [time, *targets, *past, *columns.known]
    for name in used + [name for name in columns.static if name in used]:
        both = used.count(name) + (name in columns.static) + (name in ids) > 1
        expect(not both, f"{where}: column {name!r}", "one use", "two (time, target, past, ...)")
    return chosen, ignored


def parse_times(column: Any, time_zone: str, where: str) -> Any:
    """Time stamps of a column: a ``pandas.DatetimeIndex``, or an index of whole numbers.

    Integers such as 20240131 are dates. Time stamps with different offsets are converted to UTC,
    and then to ``time_zone``, if given. Time stamps without an offset are interpreted in this zone.

    Raises:
      UserError: a time stamp is missing or cannot be read, with its line.

    >>> import pandas as pd
    >>> parse_times(pd.Series(["2024-01-01", "2024-01-xx"], index=[2, 3]), "", "a.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: a.csv: line 3: column None: expected a date or time, got '2024-01-xx'
    """
    import pandas as pd

    where_of = lambda line: f"{where}: line {line}: column {column.name!r}"  # noqa: E731
    for line in column.index[column.isna()][:1]:
        raise UserError(f"{where_of(line)}: expected a date or time, got a missing value")
    if pd.api.types.is_numeric_dtype(column):
        whole = column % 1 == 0
        for line in column.index[~whole][:1]:
            raise UserError(f"{where_of(line)}: expected a whole number, got {column[line]}")
        if not column.between(19000101, 21001231).all():
            return pd.Index(column.astype("int64"))
        column = column.astype("int64").astype(str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a format that pandas cannot infer
        try:
            times = pd.to_datetime(column, errors="coerce")
            if times.isna().any():  # dates without and with a time of day, in one column
                times = pd.to_datetime(column, errors="coerce", format="ISO8601")
        except ValueError:  # different offsets
            times = pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True)
    for line in column.index[times.isna()][:1]:
        raise UserError(f"{where_of(line)}: expected a date or time, got {column[line]!r}")
    if not time_zone:
        return pd.DatetimeIndex(times)
    try:
        if times.dt.tz is not None:
            return pd.DatetimeIndex(times.dt.tz_convert(time_zone))
        there = times.dt.tz_localize(time_zone, ambiguous="NaT", nonexistent="NaT")
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"data.time_zone: expected a time zone, got {time_zone!r}") from error
    for line in column.index[there.isna()][:1]:
        raise UserError(
            f"{where_of(line)}: expected a time that is unique in {time_zone}, got {column[line]!r}"
        )
    return pd.DatetimeIndex(there)


def to_numbers(column: Any, where: str, largest: float = LARGEST_COVARIATE) -> np.ndarray | None:
    """A column as float64 with NaN for empty fields; None if it contains no numbers.

    In a column that contains only true and false, these become 1 and 0.

    Raises:
      UserError: some values are numbers and others are words, or the absolute value of one is above
        ``largest``; with its line.

    >>> import pandas as pd
    >>> to_numbers(pd.Series([1.0, "x"], index=[2, 3], name="y"), "a.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: a.csv: line 3: column 'y': expected a number, got 'x'
    """
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column):  # as text: an integer may be beyond float64
        column = column.astype(str).where(column.notna()).mask(column.astype(str).str.strip() == "")
    values = pd.to_numeric(column, errors="coerce").astype("float64")
    for line in column.index[values.abs() > largest][:1]:
        raise UserError(
            f"{where}: line {line}: column {column.name!r}: expected a number from {-largest:g} to "
            f"{largest:g}, got {values[line]}"
        )
    words = column.notna() & values.isna()
    if words.any() and not values.notna().any():
        return None
    for line in column.index[words][:1]:
        raise UserError(
            f"{where}: line {line}: column {column.name!r}: expected a number, got {column[line]!r}"
        )
    return values.to_numpy()


def read_series(
    frame: Any, columns: SeriesColumns, where: str, *, frequency: str = "", time_zone: str = ""
) -> SeriesTable:
    """The series of a table, each on a regular grid of time from its first row to its last.

    A time stamp that is missing in between is a gap: a row without values.

    Args:
      frame: from :func:`read_frame`.
      columns: the roles of the columns; :func:`choose_columns` guesses the rest.
      where: the file, for messages.
      frequency: the frequency of the time stamps; inferred if empty.
      time_zone: as for :func:`parse_times`.

    Raises:
      UserError: with the line and column: a time stamp that cannot be read, is out of order, occurs
        twice in a series or is not of the frequency; a word among numbers; an infinite number; a
        static column that changes; a series without any value.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"ds": [1, 2, 4], "y": [5.0, 6.0, 8.0]}, index=[2, 3, 4])
    >>> table = read_series(frame, SeriesColumns(""), "a.csv")
    >>> table.series[0].target.tolist()
    [5.0, 6.0, nan, 8.0]
    """
    import pandas as pd

    columns, ignored = choose_columns(frame, columns, where)
    times = parse_times(frame[columns.time], time_zone, where)
    unique = times.unique().sort_values()
    frequency = frequency or infer_frequency(unique, f"{where}: column {columns.time!r}")
    as_steps = isinstance(times, pd.DatetimeIndex) != (frequency == STEP)
    expect(as_steps, f"{where}: data.frequency", "one that fits the time stamps", frequency)
    step = seconds(frequency) or DAY
    if frequency == STEP or step < DAY:
        unit: Any = 1 if frequency == STEP else pd.Timedelta(seconds=step)
        span = int((unique[-1] - unique[0]) / unit)
        most = 1000 * len(unique) + 10**6
        expect(span <= most, f"{where}: column {columns.time!r}", f"at most {most} steps", span)
    all_times = grid(unique[0], unique[-1], frequency)
    places = all_times.get_indexer(times)
    for row in np.flatnonzero(places < 0)[:1]:
        shown = ", ".join(map(str, all_times[:2]))
        raise UserError(
            f"{where}: line {frame.index[row]}: column {columns.time!r}: expected a time stamp of "
            f"frequency {frequency} ({shown}, ...), got {times[row]}"
        )
    covariates = {name: _values(frame[name], where) for name in columns.covariates}
    static = {name: _values(frame[name], where) for name in columns.static}
    targets = {name: _target(frame[name], where) for name in columns.targets}
    groups = {"": np.arange(len(frame))}
    if columns.ids:
        labels = frame[list(columns.ids)]
        for line in frame.index[labels.isna().any(axis=1)][:1]:
            raise UserError(f"{where}: line {line}: expected {', '.join(columns.ids)}, got none")
        joined = labels.iloc[:, 0].astype(str)
        for name in columns.ids[1:]:
            joined = joined + "/" + labels[name].astype(str)
        found = pd.Series(np.arange(len(frame))).groupby(joined.to_numpy(), sort=False).indices
        groups = {str(label): np.asarray(rows) for label, rows in found.items()}
    series, gaps = [], 0
    for label, rows in groups.items():
        _check_order(places[rows], frame.index[rows], times[rows], columns.time, label, where)
        first, last = places[rows[0]], places[rows[-1]]
        at, steps = places[rows] - first, last - first + 1
        gaps += steps - len(rows)
        lines = np.zeros(steps, int)
        lines[at] = frame.index[rows]
        constant = {name: _constant(col, rows, frame, name, where) for name, col in static.items()}
        placed = {name: _placed(column[rows], at, steps) for name, column in covariates.items()}
        for name, column in targets.items():
            words = (label, name if len(targets) > 1 or not label else "")
            title = "/".join(word for word in words if word)
            target = _placed(column[rows], at, steps)
            observed = np.flatnonzero(np.isfinite(target))
            where_series = f"{where}: series {title!r}: lines {lines[0]} to {lines[-1]}"
            expect(observed.size, f"{where_series}: column {name!r}", "a number", "none")
            present = observed[-1] + 1 if columns.known else steps
            stamps = all_times[first : last + 1]
            series.append(Series(title, stamps, target, placed, constant, lines, int(present)))
    notes = [f"ignored columns: {', '.join(ignored)}"] if ignored else []
    notes += [f"{gaps} missing time stamps are gaps"] if gaps else []
    return SeriesTable(series, frequency, columns, notes)


def _target(column: Any, where: str) -> np.ndarray:
    values = to_numbers(column, where, LARGEST_TARGET)
    if values is None:
        line = column.first_valid_index()
        raise UserError(
            f"{where}: line {line}: column {column.name!r}: expected a number, got {column[line]!r}"
        )
    return values


def _values(column: Any, where: str) -> np.ndarray:
    """Numbers, or strings with None."""
    values = to_numbers(column, where)
    if values is not None:
        return values
    return np.array([None if x != x or x is None else str(x) for x in column.tolist()], object)


def _placed(values: np.ndarray, at: np.ndarray, steps: int) -> np.ndarray:
    empty = np.full(steps, np.nan if values.dtype == float else None, values.dtype)
    empty[at] = values
    return empty


def _constant(column: np.ndarray, rows: np.ndarray, frame: Any, name: str, where: str) -> Any:
    values = column[rows]
    for n in np.flatnonzero(values != values[0])[:1]:
        if values[n] == values[n] or values[0] == values[0]:  # both NaN: both are missing
            raise UserError(
                f"{where}: line {frame.index[rows[n]]}: column {name!r}: expected {values[0]!r} as "
                f"in line {frame.index[rows[0]]} of the same series, got {values[n]!r}"
            )
    return values[0]


def _check_order(
    places: np.ndarray, lines: Any, times: Any, name: str, label: str, where: str
) -> None:
    steps = np.diff(places)
    of = f" of series {label!r}" if label else ""
    for n in np.flatnonzero(steps <= 0)[:1]:
        what = "another time stamp than" if steps[n] == 0 else "a later time stamp than"
        raise UserError(
            f"{where}: line {lines[n + 1]}: column {name!r}: expected {what} in line {lines[n]}"
            f"{of} ({times[n]}), got {times[n + 1]}"
        )


# ---- features ----


class Encoding(NamedTuple):
    """The encoding of columns as numbers; plain values for a JSON file.

    Attributes:
      moments: mean and deviation of each column of numbers, over training rows.
      words: the distinct values of each column of words.

    >>> Encoding({"price": [2.0, 0.5]}, {}).encode("price", np.array([3.0])).tolist()
    [[2.0]]
    """

    moments: dict[str, list[float]]
    words: dict[str, list[str]]

    def width(self, name: str) -> int:
        """The number of features that encode a column."""
        return len(self.words[name]) if name in self.words else 1

    def encode(self, name: str, values: np.ndarray) -> np.ndarray:
        """A covariate, float32 ``[T, D]``: standardised, or one flag per word; NaN if missing.

        A word that does not occur in the training rows has no flag.
        """
        if name in self.words:
            flags = values[:, None] == np.array(self.words[name], object)
            missing = np.array([value is None for value in values])
            return np.where(missing[:, None], np.nan, flags).astype(np.float32)
        mean, deviation = self.moments[name]
        return ((values.astype(float) - mean) / deviation).astype(np.float32)[:, None]

    def check(self, each: Series) -> None:
        """Raises an error where a series cannot be encoded.

        Raises:
          UserError: a column has words and had numbers in training, or the reverse, or a number is
            too far from the mean.
        """
        import pandas as pd

        for name in [*self.moments, *self.words]:
            values = np.asarray(each.covariates.get(name, [each.static.get(name)]))
            numbers = values.dtype.kind == "f"
            if name in self.words:
                wrong, expected = numbers & ~pd.isna(values), "a word as in training"
            elif not numbers:
                wrong, expected = ~pd.isna(values), "a number as in training"
            else:
                mean, deviation = self.moments[name]
                wrong = np.abs(values - mean) > LARGEST * deviation
                expected = (
                    f"at most {LARGEST:g} deviations from the mean of the training rows "
                    f"(mean {mean:g}, deviation {deviation:g})"
                )
            for row in np.flatnonzero(wrong)[:1]:
                raise UserError(
                    f"series {each.name!r}: line {each.lines[row]}: column {name!r}: expected "
                    f"{expected}, got {values[row]}"
                )

    def category(self, name: str, value: Any) -> int:
        """The index of a static word: 1, 2, ..., or 0 if it is unknown."""
        words = self.words[name]
        return words.index(value) + 1 if value in words else 0


def encoding_of(table: SeriesTable, train: Sequence[int]) -> Encoding:
    """The encoding of a table's columns.

    Args:
      table: the table.
      train: the number of training rows of each series.

    Raises:
      UserError: a covariate has too many distinct words, or a number that makes the others of its
        column equal in float32.
    """
    moments, words = {}, {}
    for name in table.columns.covariates + table.columns.static:
        if name in table.columns.static:
            found = np.array([each.static[name] for each in table.series], object)
        else:
            rows = zip(table.series, train, strict=True)
            found = np.concatenate([each.covariates[name][:end] for each, end in rows])
        strings = [value for value in found.tolist() if isinstance(value, str)]
        if strings:
            words[name] = sorted(set(strings))
            if name in table.columns.covariates:
                got = len(words[name])
                most = f"at most {MOST_WORDS} distinct words"
                expect(got <= MOST_WORDS, f"data: column {name!r}", most, got)
            continue
        numbers = found.astype(float)
        numbers = numbers[np.isfinite(numbers)]
        mean = float(numbers.mean()) if numbers.size else 0.0
        deviation = float(numbers.std()) if numbers.size else 0.0
        moments[name] = [mean, deviation if deviation > 1e-12 * abs(mean) else 1.0]
        scaling = {"mean": [mean], "deviation": moments[name][1:]}
        check_numbers(
            numbers[:, None], scaling, "data", lambda row, _, name=name: f"column {name!r}"
        )
    return Encoding(moments, words)


def stacked(parts: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Columns stacked side by side, float32 ``[rows, D]``; D can be 0.

    >>> stacked([], 3).shape
    (3, 0)
    """
    return np.concatenate([np.zeros((rows, 0), np.float32), *parts], -1).astype(np.float32)
