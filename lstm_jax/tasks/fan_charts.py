"""Forecasts as tables, fan charts and pages of fan charts."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_jax._labels import label
from lstm_jax.data.series import Series
from lstm_jax.tasks.base import Columns, Plots
from lstm_jax.tasks.quantile_forecasts import LEVELS, Forecasts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHARTS = 12
LISTED = 2000  # series per page
BANDS = ((0, -1, 0.2), (1, -2, 0.35))  # quantiles 0.025 and 0.975, 0.1 and 0.9
COLOR = "#d55e00"
STYLE = """
figure { display: inline-block; margin: 0.4rem; }
figure svg { width: 360px; height: 160px; background: rgb(128 128 128 / 0.08); }
figcaption { font-size: 0.85rem; }
"""


def columns_of(series: Sequence[Series], found: Forecasts) -> Columns:
    """Forecasts as columns, with a row for each series and time stamp.

    Args:
      series: the series with future rows, as from :func:`lstm_jax.data.windows.extended`.
      found: the forecast for each series.
    """
    horizon = found.mean.shape[1]
    times = [time for each in series for time in map(_shown, each.times[-horizon:])]
    names = [each.name for each in series for _ in range(horizon)]
    columns: Columns = {"unique_id": names, "ds": times, "mean": found.mean.ravel()}
    if found.quantiles[..., 0].tolist() == found.quantiles[..., -1].tolist():
        return columns  # a point forecast
    for n, level in enumerate(LEVELS):
        columns[f"q{level:g}"] = found.quantiles[..., n].ravel()
    return columns


def _shown(time: Any) -> Any:
    """A time stamp in ISO 8601 (only a date at midnight), or an integer unchanged."""
    if not hasattr(time, "isoformat"):
        return int(time)
    return str(time.date()) if time == time.normalize() and time.tz is None else str(time)


def future_plots(series: Sequence[Series], found: Forecasts) -> Plots:
    """Fan charts of the first series, and a page of all of them."""
    horizon = found.mean.shape[1]
    shown = [each.present for each in series]
    panels = [
        (each.name, each.times, each.target, end) for each, end in zip(series, shown, strict=True)
    ]
    yield "", fan_figure(panels[:CHARTS], found, 4 * horizon)
    yield "", fan_page("Forecasts", panels, found, 4 * horizon)


def fan_figure(panels: Sequence[Any], found: Forecasts, before: int) -> "Figure":
    """Fan charts, three in a row: history, median, intervals of 80 and 95 percent.

    Args:
      panels: name, time stamps, values (NaN where missing) and the first row of the future of each.
      found: the forecast for each panel.
      before: the number of rows of history to show.
    """
    from matplotlib.figure import Figure

    across = min(3, len(panels))
    rows = -(-len(panels) // across)
    figure = Figure(figsize=(4.5 * across, 2.4 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, across, squeeze=False).ravel()
    horizon = found.mean.shape[1]
    for n, (panel, (name, times, values, end)) in enumerate(zip(axes, panels, strict=False)):
        past = slice(max(0, end - before), end)
        future = slice(end, end + horizon)
        ahead = times[future]
        for (low, high, alpha), share in zip(BANDS, ("95 %", "80 %"), strict=True):
            lower, upper = found.quantiles[n, :, low], found.quantiles[n, :, high]
            panel.fill_between(
                ahead, lower, upper, color=COLOR, alpha=alpha, linewidth=0, label=share
            )
        panel.plot(times[past], values[past], color="0.3", linewidth=1, label="history")
        if np.isfinite(values[future]).any():
            panel.plot(times[future], values[future], color="black", linewidth=1, label="truth")
        panel.plot(ahead, found.median[n], color=COLOR, linewidth=1.4, label="forecast")
        panel.set_title(label(name, 40), loc="left", fontsize="small")
        panel.tick_params(labelsize="x-small")
        if hasattr(times, "strftime"):
            _dates(panel)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=5, frameon=False)
    return figure


def _dates(panel: Any) -> None:
    import matplotlib.dates

    locator = matplotlib.dates.AutoDateLocator(minticks=2, maxticks=5)
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(matplotlib.dates.ConciseDateFormatter(locator))


def fan_page(title: str, panels: Sequence[Any], found: Forecasts, before: int) -> str:
    """A self-contained page of fan charts."""
    from lstm_jax.inspect.page import Section, page, paragraph

    parts = []
    for n, (name, times, values, end) in enumerate(panels[:LISTED]):
        horizon = found.mean.shape[1]
        span = f"{_shown(times[end])} to {_shown(times[end + horizon - 1])}"
        svg = fan_svg(values[max(0, end - before) : end], found.quantiles[n])
        caption = f"<figcaption>{html.escape(name)}<br>{span}</figcaption>"
        parts.append(f"<figure>{svg}{caption}</figure>")
    said = "Black: history. Line: median. Bands: intervals of 80 and 95 percent."
    if len(panels) > LISTED:
        said += f" The first {LISTED} of {len(panels)} series."
    return page(title, [Section(f"{len(panels)} series", paragraph(said) + "".join(parts))], STYLE)


def fan_svg(history: np.ndarray, quantiles: np.ndarray) -> str:
    """One fan chart as an SVG, 360 by 160.

    >>> fan_svg(np.array([1.0, 2.0]), np.ones((2, 11))).startswith("<svg")
    True
    """
    steps = len(history) + len(quantiles)
    finite = np.concatenate([history[np.isfinite(history)], quantiles.ravel()])
    low, high = finite.min(), finite.max()
    size = (high - low) or 1.0

    def points(values: np.ndarray, first: int) -> str:
        x = 5 + 350 * (first + np.arange(len(values))) / max(steps - 1, 1)
        y = 150 - 140 * (values - low) / size
        pairs = zip(x, y, strict=True)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs if np.isfinite(b))

    first, parts = len(history), []
    for bottom, top, alpha in BANDS:
        x = 5 + 350 * (first + np.arange(len(quantiles))) / max(steps - 1, 1)
        edge = np.concatenate([quantiles[:, bottom], quantiles[::-1, top]])
        y = 150 - 140 * (edge - low) / size
        both = zip(np.concatenate([x, x[::-1]]), y, strict=True)
        shape = " ".join(f"{a:.1f},{b:.1f}" for a, b in both)
        parts.append(f'<polygon points="{shape}" fill="{COLOR}" opacity="{alpha}"/>')
    line = 'fill="none" stroke-width="1.5"'
    parts.append(f'<polyline points="{points(history, 0)}" {line} stroke="currentColor"/>')
    median = points(quantiles[:, LEVELS.index(0.5)], first)
    parts.append(f'<polyline points="{median}" {line} stroke="{COLOR}"/>')
    parts.append(f'<text x="5" y="12" font-size="10" fill="currentColor">{high:.4g}</text>')
    parts.append(f'<text x="5" y="158" font-size="10" fill="currentColor">{low:.4g}</text>')
    return f'<svg viewBox="0 0 360 160">{"".join(parts)}</svg>'
