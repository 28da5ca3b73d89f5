"""Plots of what tasks have learned."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    past: np.ndarray, future: np.ndarray, forecast: np.ndarray, titles: Sequence[str], unit: str
) -> "Figure":
    """Forecasts of one column in a panel each.

    Args:
      past: ``[N, W]``.
      future: what came after, ``[N, F]``.
      forecast: ``[N, F]``.
      titles: one for each panel.
      unit: name of the column, with its unit.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    panels = figure.subplots(len(past), 1, sharex=True, squeeze=False)[:, 0]
    before, after = np.arange(1 - past.shape[1], 1), np.arange(1, future.shape[1] + 1)
    for panel, *rows, title in zip(panels, past, future, forecast, titles, strict=True):
        panel.plot(before, rows[0], color="0.55", label="past")
        panel.plot(after, rows[1], color="black", label="truth")
        panel.plot(after, rows[2], color="#d55e00", label="forecast")
        panel.axvline(0.5, color="0.8", linewidth=0.8)
        panel.set_ylabel(unit)
        panel.set_title(title, loc="left", fontsize="medium")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    panels[-1].set_xlabel("rows from the end of the past")
    return figure
