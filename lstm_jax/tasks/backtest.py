"""A rolling backtest: forecasts of a model and of simple methods from many origins."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.data.windows import SeriesArrays, origins_within
from lstm_jax.errors import expect
from lstm_jax.models.encoder_forecaster import WindowScale, unscaled
from lstm_jax.models.heads import Head
from lstm_jax.tasks.base import Metrics
from lstm_jax.tasks.forecast_metrics import metrics_of, naive_errors
from lstm_jax.tasks.quantile_forecasts import LEVELS, Forecasts, Origins
from lstm_jax.tasks.quantile_regression import linear_quantiles
from lstm_jax.tasks.simple_methods import (
    climatology,
    naive_2,
    naive_forecasts,
    point,
    spread_out,
    with_errors,
)
from lstm_jax.tasks.time_series_data import TimeSeriesData
from lstm_jax.tasks.time_series_splits import Parts

GRID = tuple((n + 0.5) / 25 for n in range(25))
"""Levels of the quantiles whose average is the mean."""
EVALUATION_BATCH = 256
NAIVE_2_MOST = 5000  # origins


class Backtest(NamedTuple):
    """The forecasts of a split that are compared with the true values.

    Attributes:
      arrays: the series.
      origins: the positions at which forecasts start.
      train: the number of training rows of each series, ``[S]``.
      before: the number of rows of each series before the split, ``[S]``.
      season: the number of steps in a season.
    """

    arrays: SeriesArrays
    origins: Origins
    train: np.ndarray
    before: np.ndarray
    season: int

    @property
    def naive(self) -> np.ndarray:
        """The errors of the seasonal naive forecast, by which :func:`metrics_of` divides."""
        return naive_errors(self.arrays, self.before, self.season)

    def metrics(self, found: Forecasts) -> Metrics:
        """The metrics of :func:`metrics_of`, and ``owa`` if each series has one forecast.

        ``owa`` is the mean of two ratios, of ``smape`` and ``mase`` to those of ``naive 2``; it is
        the criterion of the M4 competition.
        """
        values, reference = metrics_of(found, self.origins, self.naive), self._naive_2()
        if reference is not None and len(np.unique(self.origins.series)) == len(found.mean):
            other = metrics_of(reference, self.origins, self.naive)
            ratios = [values[name] / other[name] for name in ("smape", "mase")]
            values["owa"] = float(np.mean(ratios))
        return values

    def _naive_2(self) -> Forecasts | None:
        whole = self.season > 1 and np.isfinite(self.arrays.target).all()
        if not whole or len(self.origins.rows) > NAIVE_2_MOST:
            return None
        return point(naive_2(self.arrays, self.origins, self.season))

    def simple_methods(
        self, train: tuple[np.ndarray, np.ndarray], window: int, scaling: str
    ) -> dict[str, Forecasts]:
        """Forecasts of simple methods from the same origins.

        ``persistence`` repeats the last value, ``seasonal naive`` repeats the last season, and
        ``drift`` extends the line from the first value of the window to the last; each has the
        quantiles of its errors in training.  ``naive 2`` is the last value of the seasonally
        adjusted series, multiplied by the seasonal factors; it exists if no value is missing.
        ``climatology`` is the quantiles of the training values at the same position in the season.
        ``linear quantiles`` is a quantile regression for each step on the scaled values of the last
        season.

        Args:
          train: the series and the rows of the training origins.
          window: W.
          scaling: how windows are scaled, for the regression.
        """
        arrays, origins, season = self.arrays, self.origins, self.season
        some = spread_out(*train)
        truth = arrays.future(*some, origins.truth.shape[1]).astype(np.float64)
        past = Origins(*some, truth)
        errors = naive_forecasts(arrays, past, window, season)
        methods = {
            name: with_errors(values, origins, past._replace(truth=truth - errors[name]))
            for name, values in naive_forecasts(arrays, origins, window, season).items()
        }
        if (reference := self._naive_2()) is not None:
            methods["naive 2"] = reference
        methods["climatology"] = climatology(arrays, self.train, origins, season)
        methods["linear quantiles"] = linear_quantiles(
            arrays, origins, train, window, season, scaling
        )
        return methods


def backtest_of(
    arrays: SeriesArrays, ends: np.ndarray, split: str, data: TimeSeriesData
) -> Backtest:
    """The backtest of a split.

    Args:
      arrays: the series.
      ends: the rows at which training, validation and test end in each series, ``[S, 3]``.
      split: ``"validation"`` or ``"test"``.
      data: the section ``[data]``.

    Raises:
      UserError: the split has no observed value.
    """
    n = Parts._fields.index(split)
    before, end = ends[:, n - 1], ends[:, n]
    series, rows = origins_within(arrays, before, end, data.window, data.horizon, data.stride)
    expect(len(series), f"data.{split}", "an observed value to forecast", "none")
    truth = arrays.future(series, rows, data.horizon).astype(np.float64)
    return Backtest(arrays, Origins(series, rows, truth), ends[:, 0], before, data.season)


def forecast(
    model: Any, head: Head, scaling: str, arrays: SeriesArrays, series: np.ndarray,
    rows: np.ndarray, window: int, horizon: int,
) -> Forecasts:  # fmt: skip
    """The model's forecasts from some origins."""
    quantiles, means = [], []
    for start in range(0, len(series), EVALUATION_BATCH):
        # All batches have the same shape; the last one repeats its last row.
        at = np.arange(start, start + EVALUATION_BATCH).clip(max=len(series) - 1)
        inputs = arrays.windows(series[at], rows[at], window, horizon)
        outputs = model(model.initial_carry(len(at)), **inputs)[1]
        found, mean = _summary(head, scaling, outputs)
        quantiles.append(np.asarray(found, np.float64))
        means.append(np.asarray(mean, np.float64))
    return Forecasts(np.concatenate(quantiles)[: len(series)], np.concatenate(means)[: len(series)])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _summary(head: Head, scaling: str, outputs: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Quantiles and mean in the units of the data, averaged over the members of an ensemble."""
    window, levels = WindowScale(outputs["level"], outputs["scale"]), jnp.array(LEVELS + GRID)
    given = outputs["samples" if "samples" in outputs else "raw"]
    given = given.reshape(len(given), -1, *given.shape[-2:])
    if "samples" in outputs:  # [B, M, N, F]
        found = jnp.moveaxis(jnp.quantile(given, levels, axis=2), 0, -1).mean(1)
    else:  # [B, M, F, P]
        scale = jnp.broadcast_to(window.scale[:, None, None], given.shape[:-1])
        found = head.distribution(given, scale).quantiles(levels).mean(1)
    found = unscaled(found, window, scaling)
    return found[..., : len(LEVELS)], found[..., len(LEVELS) :].mean(-1)
