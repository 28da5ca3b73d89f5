"""Conversion of the columns of a table to the inputs of a model."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lstm_jax.data.calendar import calendar_names
from lstm_jax.data.series import Encoding, Series, SeriesColumns, SeriesTable, encoding_of
from lstm_jax.data.windows import SeriesArrays, series_arrays
from lstm_jax.errors import UserError
from lstm_jax.models.encoder_forecaster import Sizes
from lstm_jax.tasks.time_series_data import TimeSeriesData


def metadata_of(table: SeriesTable, train: np.ndarray) -> dict[str, Any]:
    """The facts about a table that a run's folder stores.

    Args:
      table: the table.
      train: the number of training rows of each series, ``[S]``.

    Returns:
      ``columns``, ``frequency``; ``magnitude``, mean and deviation of log(1 + size) of the series;
      ``moments`` and ``words`` of :class:`lstm_jax.data.series.Encoding`.
    """
    rows = zip(table.series, train, strict=True)
    sizes = [np.log1p(abs(np.nanmean(each.target[:end]))) for each, end in rows]
    deviation = float(np.std(sizes))
    return {
        "columns": dataclasses.asdict(table.columns),
        "frequency": table.frequency,
        "magnitude": [float(np.mean(sizes)), deviation if deviation > 1e-3 else 1.0],
        **encoding_of(table, train.tolist())._asdict(),
    }


class Inputs(NamedTuple):
    """Converts the series of a table to arrays.

    Attributes:
      columns: the roles of the columns.
      encoding: the encoding of columns as numbers.
      frequency: the frequency of the time stamps.
      calendar: whether calendar features are inputs.
      holidays: country of public holidays; empty for none.
    """

    columns: SeriesColumns
    encoding: Encoding
    frequency: str
    calendar: bool
    holidays: str

    def arrays(self, series: Sequence[Series], where: str) -> SeriesArrays:
        """The series, encoded.

        Raises:
          UserError: a number cannot be encoded; the message begins with ``where``.
        """
        try:
            for each in series:
                self.encoding.check(each)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return series_arrays(
            series, self.columns, self.encoding, self.frequency, calendar=self.calendar,
            holidays=self.holidays,
        )  # fmt: skip

    def sizes(self, window: int, horizon: int) -> Sizes:
        """The sizes of a model's inputs."""
        columns, encoding = self.columns, self.encoding
        calendar = calendar_names(self.frequency, self.holidays) if self.calendar else ()
        words = [len(encoding.words[name]) + 1 for name in columns.static if name in encoding.words]
        return Sizes(
            window, horizon, sum(map(encoding.width, columns.past)),
            sum(map(encoding.width, columns.known)) + len(calendar),
            len(columns.static) - len(words), tuple(words),
        )  # fmt: skip


def inputs_of(known: dict[str, Any], data: TimeSeriesData) -> Inputs:
    """The conversion of series to arrays, from stored metadata and the section ``[data]``."""
    names = known["columns"]
    lists: Any = {name: tuple(value) for name, value in names.items() if name != "time"}
    return Inputs(
        SeriesColumns(names["time"], **lists), Encoding(known["moments"], known["words"]),
        known["frequency"], data.calendar, data.holidays,
    )  # fmt: skip
