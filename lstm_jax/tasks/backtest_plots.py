"""Plots of a backtest: fan charts, reliability, and metrics by step and by series."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstm_jax.data.series import SeriesTable
from lstm_jax.tasks.backtest import Backtest
from lstm_jax.tasks.base import Plots
from lstm_jax.tasks.fan_charts import CHARTS, COLOR, LISTED, fan_figure
from lstm_jax.tasks.forecast_metrics import metrics_of, reliability
from lstm_jax.tasks.quantile_forecasts import LEVELS, Forecasts, Origins, at_step, chosen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
table { border-collapse: collapse; font-size: 0.85rem; }
td, th { text-align: right; padding: 0.1rem 0.6rem; }
"""


def backtest_plots(table: SeriesTable, backtest: Backtest, found: Forecasts, window: int) -> Plots:
    """Fan charts with the true values, reliability, errors by step, and a page of metrics."""
    horizon, origins, naive = found.mean.shape[1], backtest.origins, backtest.naive
    _, places = np.unique(origins.series, return_index=True)
    places = places[:CHARTS]
    if len(places) < CHARTS:
        places = np.unique(np.linspace(0, len(origins.rows) - 1, CHARTS).astype(int))
    panels = [
        (table.series[s].name, table.series[s].times, table.series[s].target, row)
        for s, row in zip(origins.series[places], origins.rows[places], strict=True)
    ]
    shown, _ = chosen(found, origins, places)
    yield "forecasts", fan_figure(panels, shown, min(window, 4 * horizon))
    by_step = [metrics_of(*at_step(found, origins, step), naive) for step in range(horizon)
               if np.isfinite(origins.truth[:, step]).any()]  # fmt: skip
    yield "reliability", reliability_figure(found, origins)
    yield "errors_by_step", step_figure(by_step)
    by_series = {
        table.series[s].name: metrics_of(*chosen(found, origins, origins.series == s), naive)
        for s in np.unique(origins.series)[:LISTED]
    }
    yield "backtest", metrics_page(by_step, by_series)


def reliability_figure(found: Forecasts, origins: Origins) -> "Figure":
    """The fraction of values below each quantile, plotted against the quantile's level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.plot(LEVELS, reliability(found, origins), "o-", color=COLOR)
    axes.set_xlabel("level of the quantile")
    axes.set_ylabel("share of values at or below it")
    axes.set_aspect("equal")
    return figure


def step_figure(by_step: Sequence[dict[str, float]]) -> "Figure":
    """Weighted quantile loss by step of the horizon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(by_step) + 1), [each["loss"] for each in by_step], "o-", color=COLOR)
    axes.set_xlabel("step of the horizon")
    axes.set_ylabel("weighted quantile loss")
    axes.set_ylim(bottom=0)
    return figure


def metrics_page(
    by_step: Sequence[dict[str, float]], by_series: dict[str, dict[str, float]]
) -> str:
    """Tables of metrics by step and by series."""
    from lstm_jax.inspect.page import Section, page

    steps = {str(n): each for n, each in enumerate(by_step, start=1)}
    sections = [Section("By step of the horizon", _table(steps, "step"))]
    sections.append(Section("By series", _table(by_series, "series")))
    return page("Backtest", sections, STYLE)


def _table(rows: dict[str, dict[str, float]], first: str) -> str:
    names = list(dict.fromkeys(name for each in rows.values() for name in each))
    titles = [first, *("wql" if name == "loss" else name for name in names)]
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    lines = [
        f"<tr><th>{html.escape(row)}</th>"
        + "".join(f"<td>{each[n]:.4g}</td>" if n in each else "<td></td>" for n in names)
        for row, each in rows.items()
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
