"""Linear quantile regression, and forecasts based on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.data.windows import SeriesArrays
from lstm_jax.models.encoder_forecaster import WindowScale, filled, scaled, unscaled, window_scale
from lstm_jax.tasks.quantile_forecasts import LEVELS, Forecasts, Origins


def linear_quantiles(
    arrays: SeriesArrays, origins: Origins, train: tuple[np.ndarray, np.ndarray],
    window: int, season: int, scaling: str, most: int = 1000,
) -> Forecasts:  # fmt: skip
    """Quantile regression for each step, on the scaled values of the last season or of 24 rows.

    Args:
      arrays: the series.
      origins: the positions at which forecasts start.
      train: the series and the rows of the training origins.
      window: W.
      season: the number of steps in a season.
      scaling: how windows are scaled.
      most: the largest number of training windows, which are chosen at random.
    """
    horizon = origins.truth.shape[1]
    lags = min(window, max(season, 8), 24)
    order = np.random.default_rng(0).permutation(len(train[0]))[:most]
    xs, scale = _features(arrays, train[0][order], train[1][order], window, lags, scaling)
    future = arrays.future(train[0][order], train[1][order], horizon)
    ys = np.asarray(jax.jit(scaled, static_argnums=2)(future, scale, scaling), np.float64)
    seen = np.isfinite(future)
    given, scale = _features(arrays, origins.series, origins.rows, window, lags, scaling)
    quantiles = np.zeros((len(given), horizon, len(LEVELS)))
    for step in range(horizon):
        weights = quantile_regression(xs[seen[:, step]], ys[seen[:, step], step], LEVELS)
        quantiles[:, step] = np.sort(given @ weights.T, -1)
    unscale = jax.jit(unscaled, static_argnums=2)
    quantiles = np.asarray(unscale(quantiles, scale, scaling), np.float64)
    return Forecasts(quantiles, quantiles[..., 1:-1].mean(-1))


def _features(
    arrays: SeriesArrays, series: np.ndarray, rows: np.ndarray, window: int, lags: int, scaling: str
) -> tuple[np.ndarray, WindowScale]:
    """A column of ones and the last scaled values, with gaps filled."""
    first = (arrays.starts[series] + rows)[:, None]
    z, scale = _filled_windows(arrays.target[first + np.arange(-window, 0)], scaling)
    last = np.asarray(z, np.float64)[:, -lags:]
    return np.concatenate([np.ones((len(series), 1)), last], 1), scale


@functools.partial(jax.jit, static_argnums=1)
def _filled_windows(past: jax.Array, scaling: str) -> tuple[jax.Array, WindowScale]:
    """The scaled values of windows ``[N, W]``, gaps filled, and their scale."""
    scale = window_scale(past, scaling)
    return filled(scaled(past, scale, scaling), jnp.isfinite(past)), scale


def quantile_regression(
    xs: np.ndarray, ys: np.ndarray, levels: tuple[float, ...], steps: int = 8
) -> np.ndarray:
    """Coefficients of linear quantile regression, by reweighted least squares.

    Args:
      xs: ``[N, D]``.
      ys: ``[N]``.
      levels: the levels of the Q quantiles.
      steps: the number of reweightings.

    Returns:
      ``[Q, D]``.

    References:
      Edward J. Schlossmacher, "An iterative technique for absolute deviations curve fitting",
      Journal of the American Statistical Association 68, 1973.

    >>> quantile_regression(np.ones((99, 1)), np.arange(99.0), (0.5,)).round().tolist()
    [[49.0]]
    """
    small = 1e-6 * np.eye(xs.shape[1]) * len(xs)
    first = np.linalg.solve(xs.T @ xs + small, xs.T @ ys)
    floor = 1e-3 * (np.abs(ys - xs @ first).mean() + 1e-12)
    found = []
    for level in levels:
        weights = first
        for _ in range(steps):
            residual = ys - xs @ weights
            share = np.where(residual < 0, 1 - level, level) / np.maximum(np.abs(residual), floor)
            weighted = xs.T * share
            scale = share.mean()
            weights = np.linalg.solve(weighted @ xs + small * scale, weighted @ ys)
        found.append(weights)
    return np.stack(found)
