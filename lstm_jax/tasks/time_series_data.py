"""The sections of the task ``time_series``, and values inferred from the table."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

from lstm_jax.config import RecurrentConfig, Section, cell_factory, option
from lstm_jax.data.calendar import check_frequency, season_and_horizon
from lstm_jax.data.fields import is_number
from lstm_jax.data.public_series import PUBLIC_SERIES
from lstm_jax.data.series import (
    Series,
    SeriesColumns,
    SeriesTable,
    names_of,
    read_frame,
    read_series,
)
from lstm_jax.errors import expect
from lstm_jax.models import StaticCell
from lstm_jax.models.encoder_forecaster import SCALINGS
from lstm_jax.models.heads import HEADS, Head, MixtureHead, QuantileHead
from lstm_jax.tasks.time_series_splits import FORMS, Parts, check_part, parts_of

NAMED = tuple(PUBLIC_SERIES)


def check_levels(text: str) -> tuple[float, ...]:
    """Parses a comma-separated list of levels."""
    expect(all(map(is_number, names_of(text))), "levels", "numbers separated by commas", text)
    levels = tuple(map(float, names_of(text)))
    rising = list(levels) == sorted(set(levels)) and all(0 < level < 1 for level in levels)
    words = "increasing numbers between 0 and 1, including 0.5"
    expect(rising and 0.5 in levels, "levels", words, text)
    return levels


@dataclasses.dataclass(frozen=True)
class TimeSeriesData(Section):
    """Section ``[data]`` of task ``time_series``; values that are empty or 0 are inferred."""

    table: str = option(
        "tourism", f"{', '.join(NAMED)}, or the path of a CSV or Parquet file", path_or=NAMED
    )
    time_column: str = option("", "time stamps, or whole numbers (ds, date, ... or the first)")
    id_columns: str = option("", "columns that identify a series (unique_id, if it exists)")
    target_columns: str = option("", "columns to forecast (y, or the only column of numbers)")
    past_columns: str = option("*", "covariates known up to the present; *: all other columns")
    known_columns: str = option("", "covariates known in advance, such as promotions")
    static_columns: str = option("", "columns that are constant within a series")
    frequency: str = option(
        "", "of the time stamps: h, D, B, W-SUN, MS, ... as in pandas", check=check_frequency
    )
    time_zone: str = option("", "time zone of the time stamps, such as Europe/Berlin")
    calendar: bool = option(True, "whether hour, weekday and day of the year are inputs")
    holidays: str = option("", "country of holidays, as DE or DE-BY; needs the package holidays")
    season: int = option(0, "rows per season; 1: none", at_least=0, at_most=10**6)
    horizon: int = option(0, "F, rows of the future to forecast", at_least=0, at_most=10**6)
    window: int = option(0, "W, rows of the past that a forecast reads", at_least=0, at_most=10**6)
    validation: str = option("", f"split before the test: {FORMS}", check=check_part)
    test: str = option("", f"split at the end: {FORMS}; none: no test", check=check_part)
    criterion: str = option(
        "loss", "metric of the validation split that chooses the best checkpoint",
        choices=("loss", "mae", "rmse", "smape", "mase"),
    )  # fmt: skip
    stride: int = option(0, "rows between forecasts of the backtest (horizon)", at_least=0)
    batch_size: int = option(64, "windows per training step", at_least=1, at_most=10**6)

    @property
    def columns(self) -> SeriesColumns:
        """The roles of the columns that the config names."""
        known = PUBLIC_SERIES[self.table][1] if self.table in NAMED else SeriesColumns("")
        given: dict[str, Any] = {
            "time": self.time_column,
            "ids": names_of(self.id_columns),
            "targets": names_of(self.target_columns),
            "past": names_of(self.past_columns),
            "known": names_of(self.known_columns),
            "static": names_of(self.static_columns),
        }
        if self.table in NAMED and given["past"] == ("*",):
            given["past"] = ()
        return dataclasses.replace(known, **{name: value for name, value in given.items() if value})

    def read(self) -> SeriesTable:
        """The table.

        Raises:
          UserError: the file is missing or broken; as :func:`lstm_jax.data.series.read_series`.
        """
        if self.table in NAMED:
            return self.read_frame(PUBLIC_SERIES[self.table][0](), self.table)
        return self.read_frame(read_frame(self.table), self.table)

    def read_frame(self, frame: Any, where: str | pathlib.Path) -> SeriesTable:
        """The series of a data frame with the columns of this section."""
        return read_series(
            frame, self.columns, str(where), frequency=self.frequency, time_zone=self.time_zone
        )

    def inferred(self, table: SeriesTable) -> "TimeSeriesData":
        """This section with inferred values for all keys that are empty or 0."""
        season, horizon = season_and_horizon(table.frequency)
        season = self.season or season
        shortest = min(each.present for each in table.series)
        horizon = self.horizon or max(1, min(horizon, shortest // 8))
        part = str(max(horizon, round(0.15 * shortest)))
        validation = self.validation or (str(horizon) if self.test == "none" else part)
        test = self.test or part
        cut = dataclasses.replace(self, validation=validation, test=test)
        rows = min(cut.parts(each).train for each in table.series)
        window = self.window
        if not window:
            most = max(1, 2 * (rows - horizon) // 3)
            window = min(max(2 * season, 3 * horizon), most)
            season = season if self.season or season <= window else 1
            window = window - window % season
        columns = table.columns
        return dataclasses.replace(
            cut, season=season, horizon=horizon, window=window, frequency=table.frequency,
            stride=self.stride or horizon, time_column=columns.time,
            id_columns=",".join(columns.ids), target_columns=",".join(columns.targets),
            past_columns=",".join(columns.past), known_columns=",".join(columns.known),
            static_columns=",".join(columns.static),
        )  # fmt: skip

    def parts(self, series: Series) -> Parts:
        """The rows at which the splits of a series end."""
        return parts_of(series, self.validation, self.test)


@dataclasses.dataclass(frozen=True)
class TimeSeriesModel(RecurrentConfig):
    """Section ``[model]`` of task ``time_series``."""

    head: str = option("quantile", "what the model predicts for each value", choices=tuple(HEADS))
    levels: str = option(
        "0.025,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.975", "of head quantile", check=check_levels
    )
    components: int = option(3, "of head mixture", at_least=1, at_most=1000)
    scaling: str = option(
        "standard", "scaling of each window: by mean and deviation, mean, median, or log(1 + y)",
        choices=SCALINGS,
    )  # fmt: skip
    segment: int = option(
        0, "rows per LSTM step; must divide data.window; 0: a season or fewer",
        at_least=0,
    )  # fmt: skip
    embedding_size: int = option(8, "features of each static category", at_least=1, at_most=10**4)
    members: int = option(
        1, "models in an ensemble, trained together; their quantiles are averaged", at_least=1,
        at_most=1000,
    )  # fmt: skip
    weighted: bool = option(False, "whether a window's loss is weighted by its scale")
    decoding: str = option(
        "direct", "all steps at once, or row by row, each from a sample of the previous rows",
        choices=("direct", "autoregressive"),
    )  # fmt: skip
    samples: int = option(
        100, "number of sampled trajectories, with decoding autoregressive", at_least=2,
        at_most=10**4,
    )  # fmt: skip

    @property
    def autoregressive(self) -> bool:
        """Whether forecasts are sampled trajectories."""
        return self.decoding == "autoregressive"

    @property
    def head_module(self) -> Head:
        """The head."""
        if self.head == "quantile":
            return QuantileHead(levels=check_levels(self.levels))
        return (
            MixtureHead(components=self.components)
            if self.head == "mixture"
            else HEADS[self.head]()
        )

    @property
    def cell_kind(self) -> Any:
        """The argument ``cell`` of :class:`lstm_jax.models.EncoderForecaster`."""
        return StaticCell(_entity_aware) if self.cell == "ea_lstm" else self.cell_factory

    def inferred(self, data: TimeSeriesData) -> "TimeSeriesModel":
        """This section with the inferred segment: the largest divisor of a season, up to 24."""
        if self.segment:
            return self
        common = math.gcd(data.window, data.season)
        segment = max(n for n in range(1, 25) if common % n == 0)
        return dataclasses.replace(self, segment=segment if data.season <= data.window else 1)


@functools.cache
def _entity_aware(static: int) -> Any:
    return cell_factory(f"ea_lstm(static_size={static})")
