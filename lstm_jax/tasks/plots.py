"""Plots of what tasks have learned."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS_PLOTTED = 8
NAME_LENGTH = 32


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> "Figure":
    """How often each true class (row) was predicted as each class (column)."""
    from matplotlib.figure import Figure

    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    right = 100 * np.trace(counts) / counts.sum()
    axes.set_title(f"test split: {right:.2f} % of {counts.sum()} sequences right")
    figure.colorbar(image, label="share of the true class")
    return figure


def forecasts(
    truth: np.ndarray,
    forecast: np.ndarray,
    columns: Sequence[str],
    titles: Sequence[str],
    times: np.ndarray | None = None,
) -> "Figure":
    """Forecasts in the units of the data: a row of panels for each column, one panel a window.

    Args:
      truth: the values before and during the forecast, ``[N, W + F, C]``.
      forecast: ``[N, F, C]``.
      columns: the names of the C columns; the first ``COLUMNS_PLOTTED`` are plotted.
      titles: one for each window.
      times: ``datetime64`` ``[N, W + F]``; None to count rows from the end of the past.
    """
    import matplotlib.dates
    from matplotlib.figure import Figure

    windows, steps, _ = truth.shape
    before = steps - forecast.shape[1]
    if times is None:
        times = np.tile(np.arange(1 - before, 1 + steps - before), (windows, 1))
    columns = columns[:COLUMNS_PLOTTED]
    figure = Figure(figsize=(4 * windows, 1 + 1.6 * len(columns)), layout="constrained")
    panels = figure.subplots(len(columns), windows, sharex="col", sharey="row", squeeze=False)
    for (c, n), panel in np.ndenumerate(panels):
        panel.plot(times[n, :before], truth[n, :before, c], color="0.55", label="past")
        panel.plot(times[n, before:], truth[n, before:, c], color="black", label="truth")
        panel.plot(times[n, before:], forecast[n, :, c], color="#d55e00", label="forecast")
        panel.axvline(times[n, before - 1], color="0.8", linewidth=0.8)
        panel.tick_params(labelsize="small")
    for panel, name in zip(panels[:, 0], columns, strict=True):
        # Above the panel, where there is room for it; a "$" in a name does not begin a formula.
        name = name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
        panel.set_title(name, loc="left", fontsize="small", parse_math=False)
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, loc="right", fontsize="small", parse_math=False)
    for panel in panels[-1]:
        if np.issubdtype(times.dtype, np.datetime64):
            locator = matplotlib.dates.AutoDateLocator(minticks=2, maxticks=5)
            panel.xaxis.set_major_locator(locator)
            panel.xaxis.set_major_formatter(matplotlib.dates.ConciseDateFormatter(locator))
        else:
            panel.set_xlabel("rows from the end of the past", fontsize="small")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    return figure
