"""Time series: forecasts of many series in a table, with dates and prediction intervals."""

import dataclasses
import functools
import pathlib
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstm_jax.data import digest
from lstm_jax.data.series import SeriesTable, read_frame
from lstm_jax.data.windows import SeriesArrays, extended, origins_within, random_windows
from lstm_jax.errors import expect
from lstm_jax.models import (
    AutoregressiveForecaster,
    EncoderForecaster,
    ForecasterEnsemble,
    Model,
)
from lstm_jax.models.encoder_forecaster import WindowScale, scaled
from lstm_jax.tasks.backtest import Backtest, backtest_of, forecast
from lstm_jax.tasks.backtest_plots import backtest_plots
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.fan_charts import columns_of, future_plots
from lstm_jax.tasks.quantile_forecasts import Forecasts
from lstm_jax.tasks.time_series_checks import check_new, check_sizes, described
from lstm_jax.tasks.time_series_data import TimeSeriesData, TimeSeriesModel
from lstm_jax.tasks.time_series_inputs import Inputs, inputs_of, metadata_of


@dataclasses.dataclass(frozen=True)
class TimeSeries(Task):
    """Forecasts all series of a table with one model, as quantiles or a distribution.

    Keys of ``[data]`` and ``[model]`` that are empty or 0 are inferred from the table.

    Raises:
      UserError: the table is missing or broken, or the splits are too short.
    """

    data: TimeSeriesData
    model: TimeSeriesModel
    unit = "windows"

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", self.data.inferred(self._table))
        object.__setattr__(self, "model", self.model.inferred(self.data))
        check_sizes(self.data, self.model, self._table)
        self.model.check_layers(self.model.hidden_size)

    def described(self) -> list[str]:
        return described(self.data, self.model, self._table)

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("validation",) if self.data.test == "none" else ("validation", "test")

    @property
    def criterion(self) -> str:  # type: ignore[override]
        return self.data.criterion

    @property
    def loss_unit(self) -> str:  # type: ignore[override]
        return f"{self.model.head} loss; validation: weighted quantile loss"

    # ---- data ----

    @functools.cached_property
    def _table(self) -> SeriesTable:
        return self.data.read()

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """The rows at which training, validation and test end in each series, ``[S, 3]``."""
        return np.array([self.data.parts(each) for each in self._table.series])

    def metadata(self) -> dict[str, Any]:
        """As :func:`lstm_jax.tasks.time_series_inputs.metadata_of`."""
        return metadata_of(self._table, self._ends[:, 0])

    def exported(self) -> dict[str, Any]:
        expect(not self.model.autoregressive, "model.decoding", "direct for a model to export",
               "autoregressive, whose forecasts are random samples")  # fmt: skip
        return super().exported()

    @functools.cached_property
    def _inputs(self) -> Inputs:
        return inputs_of(self.known, self.data)

    @functools.cached_property
    def _arrays(self) -> SeriesArrays:
        return self._inputs.arrays(self._table.series, f"data.table: {self.data.table}")

    @functools.cached_property
    def fingerprint(self) -> str:
        return digest(*self._arrays)

    @functools.cached_property
    def _training(self) -> tuple[np.ndarray, np.ndarray]:
        ends, data = self._ends[:, 0], self.data
        return origins_within(self._arrays, 0 * ends, ends, data.window, data.horizon, 1)

    def batches(self, seed: int) -> grain.MapDataset:
        data = self.data
        return random_windows(
            self._arrays, self._training, data.window, data.horizon, data.batch_size, seed
        )

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> Model:
        if self.model.members > 1:
            return ForecasterEnsemble(self._member, self.model.members, rngs=rngs)
        return self._member(rngs)

    def _member(self, rngs: nnx.Rngs) -> EncoderForecaster:
        options, data = self.model, self.data
        make = EncoderForecaster
        if options.autoregressive:
            make = functools.partial(AutoregressiveForecaster, samples=options.samples)
        return make(
            self._inputs.sizes(data.window, data.horizon), options.head_module,
            options.hidden_size, options.num_layers,
            segment=options.segment, season=data.season, scaling=options.scaling,
            embedding_features=options.embedding_size, magnitude=tuple(self.known["magnitude"]),
            cell=options.cell_kind, dropout=options.dropout, dtype=options.dtype, rngs=rngs,
        )  # fmt: skip

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        future, inputs = batch["future"], dict(batch)
        if not self.model.autoregressive:  # other models read the true values of earlier rows
            del inputs["future"]
        _, outputs = model((), **inputs, rngs=rngs)
        window, seen = WindowScale(outputs["level"], outputs["scale"]), jnp.isfinite(future)
        target = scaled(future, window, self.model.scaling)
        scale = jnp.broadcast_to(window.scale[:, None], future.shape)
        raw = outputs["raw"].reshape(len(future), self.model.members, *outputs["raw"].shape[-2:])
        losses = jax.vmap(self.model.head_module.loss, (1, None, None))(raw, target, scale).mean(0)
        if self.model.weighted:
            losses = losses * scale / scale.mean()
        return jnp.where(seen, losses, 0).sum() / jnp.maximum(seen.sum(), 1), carry

    # ---- backtest ----

    @functools.cached_property
    def _backtests(self) -> dict[str, Backtest]:
        arrays, ends = self._arrays, self._ends
        return {split: backtest_of(arrays, ends, split, self.data) for split in self.splits}

    def _forecast(self, model: Any, arrays: SeriesArrays, series: Any, rows: Any) -> Forecasts:
        options, data = self.model, self.data
        return forecast(
            model, options.head_module, options.scaling, arrays, series, rows, data.window,
            data.horizon,
        )  # fmt: skip

    def _forecasts(self, model: Any, split: str) -> Forecasts:
        origins = self._backtests[split].origins
        return self._forecast(model, self._arrays, origins.series, origins.rows)

    def evaluate(self, model: Any, split: str) -> Metrics:
        """The metrics of :meth:`lstm_jax.tasks.backtest.Backtest.metrics`."""
        return self._backtests[split].metrics(self._forecasts(model, split))

    def baselines(self, split: str) -> dict[str, Metrics]:
        backtest = self._backtests[split]
        methods = backtest.simple_methods(self._training, self.data.window, self.model.scaling)
        return {name: backtest.metrics(found) for name, found in methods.items()}

    def plots(self, model: Any) -> Plots:
        """Fan charts, reliability, error by step, and a page of metrics by step and series."""
        split = self.splits[-1]
        found = self._forecasts(model, split)
        yield from backtest_plots(self._table, self._backtests[split], found, self.data.window)

    # ---- new data ----

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """Forecasts for the horizon after the present of each series: dates, mean and quantiles."""
        return columns_of(*self._future(model, source))

    def charts(self, model: Any, source: pathlib.Path | None) -> Plots:
        """Fan charts of the first series, and a page of all of them."""
        return future_plots(*self._future(model, source))

    def _future(self, model: Any, source: pathlib.Path | None) -> tuple[list[Any], Forecasts]:
        """Each series, extended by ``horizon`` future rows, and the forecasts."""
        data, where = self.data, str(source or self.data.table)
        table = self._table if source is None else data.read_frame(read_frame(source), source)
        check_new(data, table, where)
        series = [extended(each, data.horizon, self.known["frequency"]) for each in table.series]
        presents = np.array([each.present for each in series])
        arrays = self._inputs.arrays(series, where)
        return series, self._forecast(model, arrays, np.arange(len(series)), presents)
