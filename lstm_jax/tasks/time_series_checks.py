"""Checks that sizes, splits and values of time series fit together; a summary of a table."""

import numpy as np

from lstm_jax.data.series import SeriesTable
from lstm_jax.errors import expect
from lstm_jax.tasks.time_series_data import TimeSeriesData, TimeSeriesModel


def check_sizes(data: TimeSeriesData, model: TimeSeriesModel, table: SeriesTable) -> None:
    """Raises :class:`UserError` if the sizes, the splits and the values do not fit together."""
    window, horizon, where = data.window, data.horizon, f"data.table: {data.table}"
    expect(window % model.segment == 0, "model.segment", f"a divisor of data.window = {window}",
           model.segment)  # fmt: skip
    expect(data.season <= window, "data.season", f"at most data.window = {window}", data.season)
    expect(model.cell != "ea_lstm" or model.num_layers == 1, "model.num_layers",
           "1 with model.cell ea_lstm, whose inputs end in the static features",
           model.num_layers)  # fmt: skip
    if model.head == "negative_binomial":
        expect(model.scaling == "mean", "model.scaling", "mean with head negative_binomial",
               model.scaling)  # fmt: skip
    for series in table.series:
        parts, name = data.parts(series), f"{where}: series {series.name!r}"
        found = {"train": parts.train, "validation": parts.validation - parts.train}
        found |= {"test": parts.test - parts.validation} if data.test != "none" else {}
        for split, rows in found.items():
            least = window + horizon if split == "train" else horizon
            words = "data.window + data.horizon" if split == "train" else "data.horizon"
            expect(rows >= least, f"{name}: {split} split", f"at least {words} = {least} rows",
                   rows)  # fmt: skip
        train = series.target[: parts.train]
        values = train[np.isfinite(train)]
        lines = f"{name}: lines {series.lines[0]} to {series.lines[parts.train - 1]}"
        expect(values.size, f"{lines} (train split)", "a value of the target", "none")
        expect(values.min() < values.max(), f"{lines} (train split)", "values that vary",
               f"the constant {values[0]:g}")  # fmt: skip
        rounded = np.unique(values.astype(np.float32))
        expect(2 * len(rounded) >= len(np.unique(values)), f"{lines} (train split)",
               "values that stay different in float32",
               f"{values.min():g} to {values.max():g}, most of which do not")  # fmt: skip
        least = 0 if model.scaling == "log" or model.head == "negative_binomial" else -np.inf
        wrong = series.target < least
        if model.head == "negative_binomial":
            wrong |= np.isfinite(series.target) & (series.target % 1 != 0)
        for row in np.flatnonzero(wrong)[:1]:
            kind = "whole numbers of at least 0" if model.head != "quantile" else "at least 0"
            expect(False, f"{name}: line {series.lines[row]}",
                   f"{kind} (model.head {model.head}, model.scaling {model.scaling})",
                   series.target[row])  # fmt: skip


def check_new(data: TimeSeriesData, table: SeriesTable, where: str) -> None:
    """Raises :class:`UserError` if a table has too few rows, or lacks covariates of the future."""
    for each in table.series:
        name = f"{where}: series {each.name!r}: lines {each.lines[0]} to {each.lines[-1]}"
        wanted = f"at least data.window = {data.window} rows up to the present"
        expect(each.present >= data.window, name, wanted, each.present)
        seen = np.isfinite(each.target[each.present - data.window : each.present]).any()
        expect(seen, name, f"a value in the last {data.window} rows", "none")
        if table.columns.known:
            names, ahead = ", ".join(table.columns.known), len(each.target) - each.present
            wanted = f"{data.horizon} rows with {names} after {each.times[each.present - 1]}"
            expect(ahead >= data.horizon, f"{name}: columns {names}", wanted, ahead)


def described(data: TimeSeriesData, model: TimeSeriesModel, table: SeriesTable) -> list[str]:
    """A summary of a table and of the values inferred from it."""
    first = table.series[0]
    begin = min(each.times[0] for each in table.series)
    end = max(each.times[each.present - 1] for each in table.series)
    parts = data.parts(first)
    rows = f"{parts.train}, {parts.validation - parts.train}, {parts.test - parts.validation}"
    return [
        f"{data.table}: {len(table.series)} series from {begin} to {end}, frequency "
        f"{table.frequency}; season {data.season}, window {data.window}, horizon "
        f"{data.horizon}, segment {model.segment}; rows of {first.name!r} for training, "
        f"validation and test: {rows}",
        *table.notes,
    ]
