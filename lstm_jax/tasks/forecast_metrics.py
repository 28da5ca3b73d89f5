"""Metrics of quantile forecasts."""

import numpy as np

from lstm_jax.data.windows import SeriesArrays
from lstm_jax.tasks.base import Metrics
from lstm_jax.tasks.quantile_forecasts import LEVELS, Forecasts, Origins


def naive_errors(arrays: SeriesArrays, ends: np.ndarray, season: int) -> np.ndarray:
    """The mean absolute change of each series over a season, before a given row, ``[S]``.

    NaN where it is unknown or zero.
    """
    errors = []
    for start, end in zip(arrays.starts, ends, strict=True):
        values = arrays.target[start : start + end].astype(np.float64)
        changes = np.abs(values[season:] - values[:-season])
        changes = changes[np.isfinite(changes)]
        errors.append(changes.mean() if changes.any() else np.nan)
    return np.array(errors)


def metrics_of(found: Forecasts, origins: Origins, naive: np.ndarray) -> Metrics:
    r"""Metrics of forecasts, over the observed values of the future.

    With y the truth, m the median, q_a the quantile of level a::

        loss = mean over a = 0.1 ... 0.9 of  sum 2 max(a (y - q_a), (a - 1) (y - q_a)) / sum |y|
        mae  = mean |y - m|                    rmse = root of the mean of (y - mean)^2
        smape = mean 200 |y - m| / (|y| + |m|)
        mase = mean over series of  (mean |y - m|) / (mean |y_t - y_{t - season}| before the split)

    ``coverage_80`` and ``coverage_95`` are the fractions of values between the quantiles 0.1 and
    0.9, and between 0.025 and 0.975.  ``loss`` is the weighted quantile loss.

    Args:
      found: the forecasts.
      origins: the truth.
      naive: from :func:`naive_errors`.

    References:
      Rob J. Hyndman, Anne B. Koehler, "Another look at measures of forecast accuracy",
      International Journal of Forecasting 22, 2006 (MASE).
    """
    y, q = origins.truth[..., None], found.quantiles
    seen = np.isfinite(origins.truth)
    levels = np.array(LEVELS)
    losses = 2 * np.maximum(levels * (y - q), (levels - 1) * (y - q))[seen]
    truth, median = origins.truth[seen], found.median[seen]
    total = np.abs(truth).sum()
    wql = losses[:, 1:-1].sum(0).mean() / total if total else losses[:, 1:-1].sum(0).mean()
    error, sizes = np.abs(truth - median), np.abs(truth) + np.abs(median)
    which = np.broadcast_to(origins.series[:, None], seen.shape)[seen]
    sums = np.bincount(which, error, len(naive))
    counts = np.bincount(which, minlength=len(naive))
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled_errors = sums / counts / naive
        relative = np.where(sizes > 0, 200 * error / sizes, 0.0)
    scaled_errors = scaled_errors[np.isfinite(scaled_errors)]
    values = {
        "loss": wql,
        "mae": error.mean(),
        "rmse": np.sqrt(np.square(truth - found.mean[seen]).mean()),
        "smape": relative.mean(),
    }
    if scaled_errors.size:
        values["mase"] = scaled_errors.mean()
    if (q[..., 0] < q[..., -1]).any():
        inside = (q[seen] <= truth[:, None])[:, [0, 1]] & (q[seen] >= truth[:, None])[:, [-1, -2]]
        values["coverage_95"], values["coverage_80"] = inside.mean(0)
    return {name: float(value) for name, value in values.items()}


def reliability(found: Forecasts, origins: Origins) -> np.ndarray:
    """The fraction of values at or below the quantile of each level, ``[Q]``."""
    seen = np.isfinite(origins.truth)
    return (origins.truth[seen][:, None] <= found.quantiles[seen]).mean(0)
