"""Forecasting: the next rows of every column of a table, from a window of the past."""

import dataclasses
import functools
import pathlib
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstm_jax.config import RecurrentConfig, option
from lstm_jax.data import Table, dates, digest, read_csv, scaling, sliding_windows
from lstm_jax.errors import UserError, expect
from lstm_jax.models import SegmentForecaster
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.plots import forecasts
from lstm_jax.tasks.series_data import SeriesData

EVALUATION_BATCH = 128


@dataclasses.dataclass(frozen=True)
class ForecasterConfig(RecurrentConfig):
    """Section ``[model]`` of task ``forecasting``."""

    segment: int = option(48, "rows that one LSTM step reads; must divide data.window", at_least=1)
    dropout: float = option(0.5, "dropout on the outputs of every layer", at_least=0, below=1)
    loss: str = option("mse", "what training minimises", choices=("mse", "mae"))


@dataclasses.dataclass(frozen=True)
class Forecasting(Task):
    """Forecasts every column of a table from its own past.

    Columns are standardised with the mean and deviation of the training rows.  Validation and test
    windows may start in the rows before their split, as is usual for this table; the rows that they
    forecast are inside it.

    Raises:
      UserError: the table is missing or broken, or a split is too short for one window.

    References:
      Haoyi Zhou et al., "Informer", AAAI 2021 (ETTh1 and its 12/4/4-month split).
    """

    data: SeriesData
    model: ForecasterConfig
    unit = "windows"
    splits = ("validation", "test")

    def __post_init__(self) -> None:
        data, model, table = self.data, self.model, f"data.table: {self.data.table}"
        window, rows = data.window, len(self._table.values)
        divides = window % model.segment == 0
        expect(divides, "model.segment", f"a divisor of data.window = {window}", model.segment)
        expect(data.season <= window, "data.season", f"at most data.window = {window}", data.season)
        needed = {"train": window + data.horizon, "validation": data.horizon, "test": data.horizon}
        for split, least in needed.items():
            words = "window + horizon" if split == "train" else "horizon"
            found = getattr(data, f"{split}_rows")
            expect(found >= least, f"data.{split}_rows", f"at least {words} = {least}", found)
        total = data.train_rows + data.validation_rows + data.test_rows
        words = "at least train_rows + validation_rows + test_rows"
        expect(rows >= total, table, f"{words} = {total} rows", rows)
        constant = np.flatnonzero(np.array(self._scaling["deviation"]) == 0)
        if constant.size:
            column = self._table.columns[constant[0]]
            raise UserError(f"{table}: column {column!r} is constant over the training rows")
        values, place = self._table.values, self._table.place
        scaling.check_numbers(values, self._scaling, table, place)
        model.check_layers(model.hidden_size)

    # ---- data ----
    @functools.cached_property
    def _table(self) -> Table:
        return self.data.read()

    def metadata(self) -> dict[str, Any]:
        """``columns``, and the ``scaling`` of inputs and outputs."""
        scaled = scaling.scaling_of(self._table.values[: self.data.train_rows])
        scalings = dict.fromkeys(("past", "level", "forecast"), scaled)
        return {"columns": list(self._table.columns), "scaling": scalings}

    @property
    def _scaling(self) -> scaling.Scaling:
        return self.known["scaling"]["past"]

    @functools.cached_property
    def _series(self) -> np.ndarray:
        return scaling.standardised(self._table.values, self._scaling)

    @functools.cached_property
    def fingerprint(self) -> str:
        return digest(self._table.values)

    def batches(self, seed: int) -> grain.MapDataset:
        data = self.data
        train = self._series[: data.train_rows]
        return sliding_windows(train, data.window, data.horizon, data.batch_size, seed)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        data, columns = self.data, len(self.known["columns"])
        sizes = {"past": data.window, "future": data.horizon}
        return {
            name: jax.ShapeDtypeStruct((data.batch_size, size, columns), np.float32)
            for name, size in sizes.items()
        }

    def _windows(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Every window of a split: past ``[N, W, C]`` and future ``[N, F, C]``, as views."""
        data = self.data
        start = data.train_rows + (data.validation_rows if split == "test" else 0)
        rows = data.test_rows if split == "test" else data.validation_rows
        series = self._series[start - min(data.window, start) : start + rows]
        stretches = np.lib.stride_tricks.sliding_window_view(series, data.window + data.horizon, 0)
        stretches = stretches.swapaxes(1, 2)
        return stretches[:, : data.window], stretches[:, data.window :]

    # ---- model and loss ----
    def build(self, rngs: nnx.Rngs) -> SegmentForecaster:
        options = self.model
        return SegmentForecaster(
            len(self.known["columns"]), options.segment, self.data.horizon, options.hidden_size,
            options.num_layers, cell=options.cell_factory, dropout=options.dropout,
            dtype=options.dtype, rngs=rngs,
        )  # fmt: skip

    @property
    def loss_unit(self) -> str:  # type: ignore[override]
        return f"{self.model.loss}, standardised"

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        error = _forecast(model, batch["past"], rngs=rngs) - batch["future"]
        return (jnp.square(error) if self.model.loss == "mse" else jnp.abs(error)).mean(), carry

    # ---- metrics ----
    def evaluate(self, model: Any, split: str) -> Metrics:
        """``mse`` and ``mae`` over all windows and columns; training minimises ``loss``."""
        past, future = self._windows(split)
        # One shape for all batches; the last one repeats its last row.
        forecast = []
        for start in range(0, len(past), EVALUATION_BATCH):
            rows = np.arange(start, start + EVALUATION_BATCH).clip(max=len(past) - 1)
            forecast.append(np.asarray(_forecast(model, past[rows])))
        return self._errors(np.concatenate(forecast)[: len(past)], future)

    def _errors(self, forecast: np.ndarray, truth: np.ndarray) -> Metrics:
        error = (forecast - truth).astype(np.float64)
        errors = {"mse": float(np.square(error).mean()), "mae": float(np.abs(error).mean())}
        return {"loss": errors[self.model.loss], **errors}

    def baselines(self, split: str) -> dict[str, Metrics]:
        past, future = self._windows(split)
        season = past[:, -self.data.season :]
        steps = np.arange(self.data.horizon) % self.data.season
        return {
            "persistence": self._errors(past[:, -1:], future),
            f"seasonal naive ({self.data.season} rows)": self._errors(season[:, steps], future),
        }

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """The ``horizon`` rows that follow a CSV file with the columns of the training table."""
        table, columns = read_csv(source) if source else self._table, self.known["columns"]
        wanted = f"the columns {', '.join(columns)} of the training table"
        expect(list(table.columns) == columns, f"{source}", wanted, ", ".join(table.columns))
        rows, window = len(table.values), self.data.window
        expect(rows >= window, f"{source}", f"at least data.window = {window} rows", rows)
        scaling.check_numbers(table.values, self._scaling, f"{source}", table.place)
        past = scaling.standardised(table.values[-window:], self._scaling)
        future = scaling.unscaled(np.asarray(_forecast(model, past[None]))[0], self._scaling)
        numbers = {"row": np.arange(1, self.data.horizon + 1)}
        return numbers | {name: future[:, n] for n, name in enumerate(columns)}

    def plots(self, model: Any) -> Plots:
        """Forecasts from three positions in the test rows, in the units of the table."""
        data, (past, _) = self.data, self._windows("test")
        places = np.linspace(0, len(past) - 1, 5).astype(int)[1:4]
        forecast = scaling.unscaled(np.asarray(_forecast(model, past[places])), self._scaling)
        shown = np.arange(-min(data.window, 2 * data.horizon), data.horizon)
        rows = (data.train_rows + data.validation_rows + places)[:, None] + shown
        times, truth = np.array(self._table.times), self._table.values[rows]
        times = dates(times[rows]) if times.size else None
        titles = [f"test window {place}" for place in places]
        yield "forecasts", forecasts(truth, forecast, self._table.columns, titles, times)


def _forecast(model: Any, past: Any, **options: Any) -> Any:
    first = model.initial_carry(len(past))
    return model(first, past=past, level=past[:, -1], **options)[1]["forecast"]
