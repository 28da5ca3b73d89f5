"""Plots of the results of trained models."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstm_jax._labels import label
from lstm_jax.data import PITCHES, pitch_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS_PLOTTED = 8
NAME_LENGTH = 32


def confusion_matrix(
    counts: np.ndarray, classes: Sequence[str], unit: str = "sequences"
) -> "Figure":
    """The number of times that each true class (row) was predicted as each class (column)."""
    from matplotlib.figure import Figure

    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color)
    names = [label(name, NAME_LENGTH) for name in classes]
    axes.set_xticks(range(len(classes)), names)
    if max(map(len, names)) > 6:
        axes.tick_params("x", rotation=30)
    axes.set_yticks(range(len(classes)), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    right = 100 * np.trace(counts) / counts.sum()
    axes.set_title(f"test split: {right:.2f} % of {counts.sum()} {unit} right")
    figure.colorbar(image, label="share of the true class")
    return figure


def forecasts(
    truth: np.ndarray,
    forecast: np.ndarray,
    columns: Sequence[str],
    titles: Sequence[str],
    times: np.ndarray | None = None,
) -> "Figure":
    """Forecasts in the units of the data: a row of panels for each column, one panel per window.

    Args:
      truth: the values before and during the forecast, ``[N, W + F, C]``.
      forecast: ``[N, F, C]``.
      columns: the names of the C columns, of which the first ``COLUMNS_PLOTTED`` are plotted.
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
        # Above the panel, where there is enough room.
        panel.set_title(label(name, NAME_LENGTH), loc="left", fontsize="small")
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(label(title), loc="right", fontsize="small")
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


def piano_rolls(panels: Mapping[str, np.ndarray], frames_per_beat: int) -> "Figure":
    """Piano rolls, one above another: the strength of each pitch in each frame, from 0 to 1.

    Args:
      panels: the rolls by title, ``[T, 88]`` each.
      frames_per_beat: the number of frames per beat, for the time axis.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    beats = max(len(roll) for roll in panels.values()) / frames_per_beat
    sounding = np.flatnonzero(np.any([(roll > 0.5).any(0) for roll in panels.values()], axis=0))
    low, high = (sounding[0], sounding[-1]) if sounding.size else (0, PITCHES - 1)
    width = float(np.clip(2 + beats / 8, 6, 40))
    figure = Figure(figsize=(width, 0.4 + 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    octaves = [pitch for pitch in range(PITCHES) if pitch_name(pitch).startswith("C")]
    octaves = [pitch for pitch in octaves if "#" not in pitch_name(pitch)]
    for panel, (title, roll) in zip(axes, panels.items(), strict=True):
        extent = (0, len(roll) / frames_per_beat, -0.5, PITCHES - 0.5)
        panel.imshow(
            roll.T, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower",
            interpolation="nearest", extent=extent,
        )  # fmt: skip
        panel.set_yticks(octaves, [pitch_name(pitch) for pitch in octaves])
        panel.set_ylim(low - 2.5, high + 2.5)
        panel.grid(axis="y", color="0.85", linewidth=0.6)
        panel.set_title(label(title), loc="left", fontsize="small")
        panel.set_ylabel("pitch")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("beats")
    return figure


def attention_map(weights: np.ndarray, source: Sequence[str], target: Sequence[str]) -> "Figure":
    """How strongly each target token (row) attends to each source token (column).

    Args:
      weights: ``[T, S]``, each row of which adds up to 1.
      source: the S tokens of the source.
      target: the T tokens of the target.
    """
    from matplotlib.figure import Figure

    size = (1.8 + 0.34 * len(source), 1.6 + 0.3 * len(target))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(source)), [label(token) for token in source], rotation=60, ha="left")
    axes.set_yticks(range(len(target)), [label(token) for token in target])
    axes.xaxis.tick_top()
    figure.colorbar(image, label="attention")
    return figure
