"""Simple forecasts with which a model is compared: naive ones, and seasonal quantiles."""

import numpy as np

from lstm_jax.data.windows import SeriesArrays
from lstm_jax.tasks.quantile_forecasts import LEVELS, MEDIAN, Forecasts, Origins


def point(values: np.ndarray) -> Forecasts:
    """A point forecast without intervals."""
    return Forecasts(np.repeat(values[..., None], len(LEVELS), -1), values)


def naive_forecasts(
    arrays: SeriesArrays, origins: Origins, window: int, season: int
) -> dict[str, np.ndarray]:
    """Persistence, seasonal naive and drift forecasts, ``[N, F]`` each."""
    steps = np.arange(origins.truth.shape[1])
    first = (arrays.starts[origins.series] + origins.rows)[:, None]
    past = arrays.target[first + np.arange(-window, 0)].astype(np.float64)
    last = _last(past)[:, None]
    slope = (last - _last(past[:, ::-1])[:, None]) / max(window - 1, 1)
    seasonal = {}
    if season > 1:
        seasonal[f"seasonal naive ({season})"] = _last_season(past, season)[:, steps % season]
    return {"persistence": last + 0 * steps, **seasonal, "drift": last + slope * (steps + 1)}


def spread_out(
    series: np.ndarray, rows: np.ndarray, most: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` equally spaced origins of each series.

    >>> spread_out(np.repeat([0, 1], [4, 2]), np.array([5, 6, 7, 8, 5, 6]), most=2)
    (array([0, 0, 1, 1]), array([5, 7, 5, 6]))
    """
    counts = np.bincount(series)
    place = np.arange(len(series)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = place % -(-counts[series] // most) == 0
    return series[kept], rows[kept]


def with_errors(values: np.ndarray, origins: Origins, errors: Origins) -> Forecasts:
    """Point forecasts ``[N, F]`` with the quantiles of earlier errors of the same series and step.

    The median of the errors is subtracted, so that the point forecast remains the median.  A series
    without earlier errors has no interval.
    """
    count = 1 + int(max(errors.series.max(), origins.series.max()))
    found = np.zeros((count, values.shape[1], len(LEVELS)))
    for series in np.unique(errors.series):
        mine = errors.truth[errors.series == series]
        mine = np.where(np.isfinite(mine).any(0), mine, 0)
        quantiles = np.nanquantile(mine, LEVELS, axis=0).T
        found[series] = quantiles - quantiles[:, MEDIAN, None]
    return Forecasts(values[..., None] + found[origins.series], values)


def _last(values: np.ndarray) -> np.ndarray:
    """The last observed value of each row, 0 if there is none."""
    seen = np.isfinite(values)
    at = values.shape[1] - 1 - seen[:, ::-1].argmax(1)
    return np.nan_to_num(np.take_along_axis(values, at[:, None], 1)[:, 0])


def _last_season(past: np.ndarray, season: int) -> np.ndarray:
    """The last observed value at each position in the season; if none, the last observed value."""
    rows = np.repeat(_last(past)[:, None], season, 1)
    for back in range(past.shape[1] // season, 0, -1):
        end = past.shape[1] - (back - 1) * season
        part = past[:, end - season : end]
        rows = np.where(np.isfinite(part), part, rows)
    return rows


def climatology(arrays: SeriesArrays, ends: np.ndarray, origins: Origins, season: int) -> Forecasts:
    """Quantiles of a series' training values at the same position in the season."""
    horizon = origins.truth.shape[1]
    table = np.zeros((len(ends), season, len(LEVELS)))
    means = np.zeros((len(ends), season))
    for n, (start, end) in enumerate(zip(arrays.starts, ends, strict=True)):
        values = arrays.target[start : start + end].astype(np.float64)
        values = np.append(values, np.full(-len(values) % season, np.nan)).reshape(-1, season)
        whole = values[np.isfinite(values)]
        lacking = ~np.isfinite(values).any(0)
        values = np.where(lacking, whole.mean(), values)
        table[n] = np.nanquantile(values, LEVELS, axis=0).T
        means[n] = np.nanmean(values, 0)
    places = (origins.rows[:, None] + np.arange(horizon)) % season
    which = origins.series[:, None]
    return Forecasts(table[which, places], means[which, places])


def naive_2(arrays: SeriesArrays, origins: Origins, season: int) -> np.ndarray:
    """The benchmark of the M competitions, from the whole history before each origin, ``[N, F]``.

    A series is seasonally adjusted, by classical multiplicative decomposition, if its
    autocorrelation at the lag of a season is significant at 90 percent.

    References:
      Spyros Makridakis, Evangelos Spiliotis, Vassilios Assimakopoulos, "The M4 Competition",
      International Journal of Forecasting 36, 2020 (and its published code).
    """
    steps, found = np.arange(origins.truth.shape[1]), []
    for series, row in zip(origins.series, origins.rows, strict=True):
        start = arrays.starts[series]
        y = arrays.target[start : start + row].astype(np.float64)
        factors = _seasonal_factors(y, season) if _is_seasonal(y, season) else np.ones(season)
        adjusted = y[-1] / factors[(row - 1) % season]
        found.append(adjusted * factors[(row + steps) % season])
    return np.array(found)


def _is_seasonal(y: np.ndarray, season: int) -> bool:
    if len(y) < 3 * season or (y <= 0).any():
        return False
    z = y - y.mean()
    lags = [(z[lag:] * z[:-lag]).sum() / (z * z).sum() for lag in range(1, season + 1)]
    limit = 1.645 * np.sqrt((1 + 2 * np.square(lags[:-1]).sum()) / len(y))
    return bool(abs(lags[-1]) > limit)


def _seasonal_factors(y: np.ndarray, season: int) -> np.ndarray:
    """The mean ratio of a series to its centred moving average, at each position in the season."""
    weights = np.full(season + (season % 2 == 0), 1 / season)
    if season % 2 == 0:
        weights[[0, -1]] /= 2
    trend = np.convolve(y, weights, "valid")
    first = len(weights) // 2
    ratios = y[first : first + len(trend)] / trend
    places = (first + np.arange(len(trend))) % season
    factors = np.bincount(places, ratios, season) / np.bincount(places, minlength=season)
    return factors / factors.mean()
