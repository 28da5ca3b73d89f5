"""Windows of many series, gathered by index arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from lstm_jax.data.calendar import calendar_features, following
from lstm_jax.data.pipelines import Batch, shuffled
from lstm_jax.data.series import Encoding, Series, SeriesColumns, stacked


class SeriesArrays(NamedTuple):
    """Many series, concatenated in each array, with N rows in total.

    Attributes:
      target: float32 ``[N]``, NaN where missing.
      past: encoded covariates that are known up to the present, float32 ``[N, Cp]``.
      known: encoded covariates and calendar that are known in advance, float32 ``[N, Ck]``.
      numbers: encoded static numbers, float32 ``[S, D]``.
      categories: static words, int32 ``[S, K]``.
      starts: the first row of each series, ``[S]``.
    """

    target: np.ndarray
    past: np.ndarray
    known: np.ndarray
    numbers: np.ndarray
    categories: np.ndarray
    starts: np.ndarray

    def windows(
        self, series: np.ndarray, origins: np.ndarray, window: int, horizon: int
    ) -> dict[str, np.ndarray]:
        """The inputs of forecasts; only ``known`` extends beyond the origins.

        Args:
          series: the index of the series, ``[B]``.
          origins: the first row of the future, counted from the start of its series, ``[B]``.
          window: W.
          horizon: F.

        Returns:
          The inputs of :class:`lstm_jax.models.EncoderForecaster`.
        """
        first = (self.starts[series] + origins)[:, None]
        before = first + np.arange(-window, 0)
        return {
            "target": self.target[before],
            "past": self.past[before],
            "known": self.known[first + np.arange(-window, horizon)],
            "numbers": self.numbers[series],
            "categories": self.categories[series],
        }

    def future(self, series: np.ndarray, origins: np.ndarray, horizon: int) -> np.ndarray:
        """The values that follow some origins, ``[B, F]``."""
        return self.target[(self.starts[series] + origins)[:, None] + np.arange(horizon)]


def series_arrays(
    series: Sequence[Series],
    columns: SeriesColumns,
    encoding: Encoding,
    frequency: str,
    *,
    calendar: bool = True,
    holidays: str = "",
) -> SeriesArrays:
    """Encodes and concatenates series.

    Args:
      series: the series.
      columns: the roles of the columns.
      encoding: the encoding of columns as numbers.
      frequency: the frequency of the time stamps.
      calendar: whether to add calendar features to the known columns.
      holidays: as for :func:`lstm_jax.data.calendar.calendar_features`.
    """
    past, known, numbers, categories = [], [], [], []
    words = [name for name in columns.static if name in encoding.words]
    others = [name for name in columns.static if name not in encoding.words]
    shared: dict[int, np.ndarray] = {}  # shared by series with the same time stamps
    for each in series:
        rows = len(each.target)
        parts = [encoding.encode(name, each.covariates[name]) for name in columns.known]
        if calendar:
            if id(each.times) not in shared:
                shared[id(each.times)] = calendar_features(each.times, frequency, holidays)
            parts.append(shared[id(each.times)])
        known.append(stacked(parts, rows))
        parts = [encoding.encode(name, each.covariates[name]) for name in columns.past]
        past.append(stacked(parts, rows))
        parts = [encoding.encode(name, np.array([each.static[name]])) for name in others]
        numbers.append(stacked(parts, 1))
        categories.append([encoding.category(name, each.static[name]) for name in words])
    lengths = [len(each.target) for each in series]
    return SeriesArrays(
        np.concatenate([each.target for each in series]).astype(np.float32),
        np.concatenate(past),
        np.concatenate(known),
        np.concatenate(numbers),
        np.array(categories, np.int32).reshape(len(series), len(words)),
        np.cumsum([0, *lengths[:-1]]),
    )


def extended(series: Series, horizon: int, frequency: str) -> Series:
    """The series up to the present, and ``horizon`` more rows with values from the file only.

    >>> import pandas as pd
    >>> one = Series("a", pd.RangeIndex(2), np.ones(2), {}, {}, np.array([2, 3]), 2)
    >>> extended(one, 2, "step").target.tolist()
    [1.0, 1.0, nan, nan]
    """
    rows = series.present + horizon
    more = max(0, rows - len(series.target))
    times = series.times[:rows]
    if more:
        times = times.append(following(times[-1], more, frequency))
    target = np.concatenate([series.target[: series.present], np.full(horizon, np.nan)])
    covariates = {}
    for name, column in series.covariates.items():
        empty = np.full(more, np.nan if column.dtype == float else None, column.dtype)
        covariates[name] = np.concatenate([column[:rows], empty])
    lines = np.concatenate([series.lines[:rows], np.zeros(more, int)])
    return series._replace(times=times, target=target, covariates=covariates, lines=lines)


def origins_within(
    arrays: SeriesArrays,
    begins: np.ndarray,
    ends: np.ndarray,
    window: int,
    horizon: int,
    stride: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The origins whose complete future lies in a given part of each series.

    Origins without an observed value in the window or in the future are skipped.

    Args:
      arrays: the series.
      begins, ends: the part of each series, rows counted from its start, ``[S]``.
      window, horizon: W and F.
      stride: rows from one origin to the next.

    Returns:
      The index of the series, and the first row of the future in it, arrays ``[N]`` each.
    """
    starts = [
        np.arange(max(begin, window), end - horizon + 1, stride)
        for begin, end in zip(begins, ends, strict=True)
    ]
    series = np.repeat(np.arange(len(starts)), [len(each) for each in starts])
    origins = np.concatenate(starts) if starts else np.zeros(0, int)
    observed = np.concatenate([[0], np.cumsum(np.isfinite(arrays.target))])
    first = arrays.starts[series] + origins
    seen = observed[first] > observed[first - window]
    known = observed[first + horizon] > observed[first]
    return series[seen & known], origins[seen & known]


def random_windows(
    arrays: SeriesArrays,
    origins: tuple[np.ndarray, np.ndarray],
    window: int,
    horizon: int,
    batch_size: int,
    seed: int,
) -> grain.MapDataset:
    """Windows in random order, which differs in each epoch; each batch is one gather.

    Args:
      arrays: the series.
      origins: the series and rows at which forecasts may start, as from :func:`origins_within`.
      window, horizon: W and F.
      batch_size: B.
      seed: determines the order.

    Returns:
      An endless data set of batches: the inputs of :meth:`SeriesArrays.windows`, and ``future``
      ``[B, F]``, NaN where missing.
    """

    def windows(chosen: Batch) -> Batch:
        series, rows = chosen["series"], chosen["rows"]
        inputs = arrays.windows(series, rows, window, horizon)
        return inputs | {"future": arrays.future(series, rows, horizon)}

    return shuffled(dict(zip(("series", "rows"), origins, strict=True)), batch_size, seed).map(
        windows
    )
