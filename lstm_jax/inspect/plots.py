"""Plots the results of this package's functions, as matplotlib figures that are not shown.

Colours are those of Okabe & Ito (2008), and colour maps are ``cividis`` and ``PuOr``.  Colour-blind
readers can distinguish them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_jax._labels import label
from lstm_jax.inspect.gates import GATES, MemoryHorizon, Saturation
from lstm_jax.inspect.gradients import GradientFlow, JacobianSpectrum
from lstm_jax.inspect.text import FoundUnits
from lstm_jax.inspect.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
LINES = ("-", "--", "-.", ":")
SIZE = (6.0, 4.0)  # inches
SMALLEST = float(np.finfo(np.float32).tiny)  # the smallest gradient with full precision
GATE, VALUE = "gate (0 shut, 1 open)", "value (dimensionless)"


def plot_trace(
    trace: Trace,
    layer: str | None = None,
    names: Sequence[str] | None = None,
    *,
    row: int = 0,
    text: str | None = None,
) -> "Figure":
    """Plots heat maps of a layer's gates and states: units from top to bottom, time to the right.

    Args:
      trace: a trace; units and steps are only distinguishable up to some tens of them.
      layer: which layer; the first if None.
      names: which values; all if None.
      row: which row of the batch (the index in all batch axes flattened).
      text: the text that was read, one character per step, shown below the last maps if it fits.

    Returns:
      A figure with a map for each name: gates from 0 to 1, all other values around 0.

    Raises:
      ValueError: the trace has no such layer, name or row, or no steps, or ``text`` is too short.

    >>> traced = Trace({"layer_0": {"f": np.full((9, 4), 0.5), "c": np.ones((9, 4))}}, state=())
    >>> [panel.get_title(loc="left") for panel in plot_trace(traced).axes[:2]]
    ['f', 'c']
    """
    from matplotlib.figure import Figure

    layer, values = _of_layer(trace, layer)
    names = tuple(values) if names is None else tuple(names)
    if not names:
        raise ValueError("names must be at least one, or None for all, got none")
    columns = 1 if len(names) <= 2 else 2
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=SIZE, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for n, panel in enumerate(panels.flat):
        if n >= len(names):
            panel.set_visible(False)
            continue
        array = _of_row(values, names[n], layer, row)
        is_gate = names[n] in GATES and array.min() >= 0 and array.max() <= 1
        limit = 1.0 if is_gate else float(np.abs(array).max()) or 1.0
        image = panel.imshow(
            array.T,
            aspect="auto",
            interpolation="nearest",
            cmap="cividis" if is_gate else "PuOr",
            vmin=0.0 if is_gate else -limit,
            vmax=limit,
        )
        figure.colorbar(image, ax=panel, pad=0.02, aspect=12)
        panel.set_title(label(names[n]), loc="left", fontsize="medium", pad=3)
        _unit_ticks(panel, array.shape[1], trace.units)
        if n % columns == 0:
            panel.set_ylabel("unit")
        if n + columns >= len(names):  # nothing is below
            panel.xaxis.set_tick_params(labelbottom=True)
            _time_axis(panel, len(array), text if columns == 1 else None)
    figure.suptitle(label(layer), fontsize="medium")
    return figure


def plot_unit(
    trace: Trace,
    unit: int,
    layer: str | None = None,
    *,
    row: int = 0,
    text: str | None = None,
) -> "Figure":
    """Plots one unit over time: its gates at the top, its candidate and states below.

    Args:
      trace: a trace that contains the unit.
      unit: its index in the layer.
      layer: which layer; the first if None.
      row: which row of the batch (the index in all batch axes flattened).
      text: the text that was read, one character per step, shown below the lines if it fits.

    Raises:
      ValueError: the trace has no such layer, unit or row, or no steps, or ``text`` is too short.

    >>> traced = Trace({"layer_0": {"f": np.full((9, 4), 0.5), "c": np.ones((9, 4))}}, state=())
    >>> len(plot_unit(traced, unit=3).axes)
    2
    """
    from matplotlib.figure import Figure

    layer, values = _of_layer(trace, layer)
    column = _column(trace, unit, layer)
    lines = {name: _of_row(values, name, layer, row) for name in values}
    lines = {name: array[:, column] for name, array in lines.items() if column < array.shape[1]}
    gates = {name: line for name, line in lines.items() if name in GATES}
    others = {name: line for name, line in lines.items() if name not in GATES}
    groups = [(group, unit) for group, unit in ((gates, GATE), (others, VALUE)) if group]

    figure = Figure(figsize=SIZE, layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (group, unit_of_values) in zip(panels, groups, strict=True):
        for n, (name, line) in enumerate(group.items()):
            style = {"color": COLOURS[n % len(COLOURS)], "linestyle": LINES[n % len(LINES)]}
            marker = _marker(line)
            panel.plot(
                np.arange(len(line)), line, label=label(name), linewidth=1.3, marker=marker, **style
            )
        if unit_of_values == GATE:
            panel.set_ylim(-0.05, 1.05)
        else:
            panel.axhline(0.0, color="0.7", linewidth=0.8, zorder=0)
        panel.set_ylabel(unit_of_values)
        panel.grid(alpha=0.25, axis="both" if text is None else "y")
        panel.tick_params(axis="x", length=0)
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _time_axis(panels[-1], len(next(iter(lines.values()))), text)
    figure.suptitle(label(f"{layer}, unit {unit}"), fontsize="medium")
    return figure


def plot_gradient_flow(
    flows: GradientFlow | Mapping[str, GradientFlow], *, of: str = "state"
) -> "Figure":
    """Plots norms of derivatives over the steps before the last one, on a logarithmic axis.

    Args:
      flows: the flow of one model, or of several models by name.
      of: ``"state"`` or ``"x"``.

    Returns:
      A figure with a line for each model, the mean over its rows.

    Raises:
      ValueError: ``of`` is neither.

    >>> fading = GradientFlow(state=0.5 ** np.arange(9)[::-1], x=np.ones(9), fields={})
    >>> plot_gradient_flow({"half a step": fading}).axes[0].get_yscale()
    'log'
    """
    from matplotlib.figure import Figure

    if of not in ("state", "x"):
        raise ValueError(f"of must be 'state' or 'x', got {of!r}")
    by_name = {"": flows} if isinstance(flows, GradientFlow) else dict(flows)
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for n, (name, flow) in enumerate(by_name.items()):
        norms = np.asarray(getattr(flow, of), np.float64)
        mean = norms.reshape(len(norms), -1).mean(1)[::-1]
        mean = np.where(mean > 0, mean, np.nan)  # a logarithmic axis cannot show zeros
        style = {"color": COLOURS[n % len(COLOURS)], "linestyle": LINES[n % len(LINES)]}
        marker = _marker(mean)
        axes.plot(np.arange(len(mean)), mean, label=name, linewidth=1.6, marker=marker, **style)
    axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    if top > SMALLEST:  # below it, float32 has lost most of its digits
        axes.set_ylim(bottom=max(bottom, SMALLEST))
    axes.set_xlabel("steps before the last one")
    _whole_numbers(axes)
    what = "state" if of == "state" else "input"
    axes.set_ylabel(f"norm of the derivative of the loss\nby the {what} (loss per unit)")
    axes.grid(alpha=0.25)
    if any(by_name):
        axes.legend(frameon=False)
    return figure


def plot_jacobian_spectrum(
    spectra: JacobianSpectrum | Mapping[str, JacobianSpectrum],
) -> "Figure":
    """Plots singular values by rank on a logarithmic axis, with the exponent of each model.

    Args:
      spectra: the spectrum of one model, or of several models by name.

    Returns:
      A figure with a line for each model, the median over windows and rows, and a band from the
      10th to the 90th percentile.

    >>> spectrum = JacobianSpectrum(np.array([[2.0, 0.5]]), np.array(0.1), np.zeros(3))
    >>> plot_jacobian_spectrum(spectrum).axes[0].get_legend().get_texts()[0].get_text()
    'exponent +0.100 per step'
    """
    from matplotlib.figure import Figure

    by_name = {"": spectra} if isinstance(spectra, JacobianSpectrum) else dict(spectra)
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    lowest, last = np.inf, 1
    for n, (name, spectrum) in enumerate(by_name.items()):
        values = np.asarray(spectrum.singular_values, np.float64)
        values = values.reshape(-1, values.shape[-1])
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=0)
        rank = np.arange(1, values.shape[-1] + 1)
        exponent = float(np.mean(spectrum.exponent))
        words = f"{name}: " * bool(name) + f"exponent {exponent:+.3f} per step"
        style = {"color": COLOURS[n % len(COLOURS)], "linestyle": LINES[n % len(LINES)]}
        axes.plot(rank, np.where(middle > 0, middle, np.nan), label=words, linewidth=1.6, **style)
        axes.fill_between(rank, low, high, color=style["color"], alpha=0.2, linewidth=0)
        # The smallest values are rounding errors.
        smallest = max(middle.min(), 1e-8 * middle.max())
        lowest, last = min(lowest, smallest), max(last, int((middle >= smallest).sum()))
    axes.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_yscale("log")
    axes.set_ylim(bottom=lowest / 3)
    axes.set_xlim(0, 1.05 * last + 0.5)
    axes.set_xlabel("rank of the singular value")
    _whole_numbers(axes)
    axes.set_ylabel("singular value of the state's derivative\nby the state a window before")
    axes.grid(alpha=0.25)
    axes.legend(edgecolor="none", framealpha=0.9)
    return figure


def plot_saturation(shares: Saturation) -> "Figure":
    """Plots the shares of time for which each unit's gate is open and shut, one panel per gate.

    A unit in the lower right corner has an open gate, one in the upper left corner a shut gate; at
    the origin the gate is never saturated.  All units are on or below the diagonal.

    Args:
      shares: the result of :func:`lstm_jax.inspect.saturation`.

    >>> shares = Saturation(left={"a": {"f": np.zeros(3)}}, right={"a": {"f": np.ones(3)}})
    >>> plot_saturation(shares).axes[0].get_title()
    'gate f'
    """
    from matplotlib.figure import Figure

    layers = list(shares.left)
    gates = list(dict.fromkeys(gate for layer in layers for gate in shares.left[layer]))
    columns = min(3, len(gates))
    rows = math.ceil(len(gates) / columns)
    figure = Figure(figsize=(SIZE[0], SIZE[0] / columns * rows + 0.6), layout="compressed")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for panel in panels[len(gates) :]:
        panel.set_visible(False)
    for panel, gate in zip(panels, gates, strict=False):
        panel.plot([0, 1], [1, 0], color="0.8", linewidth=0.8, zorder=0)
        for n, layer in enumerate(layers):
            if gate in shares.left[layer]:
                panel.scatter(
                    shares.right[layer][gate],
                    shares.left[layer][gate],
                    s=22,
                    marker="os^Dv"[n % 5],
                    color=COLOURS[n % len(COLOURS)],
                    alpha=0.4,
                    linewidth=0,
                    label=label(layer),
                )
        panel.set_title(label(f"gate {gate}"), fontsize="medium")
        panel.set_xlim(-0.04, 1.04)
        panel.set_ylim(-0.04, 1.04)
        panel.set_xticks([0, 0.5, 1])
        panel.set_aspect("equal")
        panel.grid(alpha=0.25)
    for panel in panels[max(0, len(gates) - columns) : len(gates)]:  # nothing is below
        panel.xaxis.set_tick_params(labelbottom=True)
        panel.set_xlabel("share of time open")
    for panel in grid[:, 0]:
        panel.set_ylabel("share of time shut")
    handles = {
        name: h for p in panels for h, name in zip(*p.get_legend_handles_labels(), strict=True)
    }
    if len(layers) > 1:
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper center",
            ncols=min(4, len(handles)), frameon=False,
        )  # fmt: skip
    return figure


def plot_memory_horizon(horizon: MemoryHorizon) -> "Figure":
    """Plots the horizons of each layer's units, from the shortest to the longest.

    Args:
      horizon: the result of :func:`lstm_jax.inspect.memory_horizon`.

    >>> horizon = MemoryHorizon({"layer_0": np.array([20.0, 1.0, np.inf])})
    >>> plot_memory_horizon(horizon).axes[0].get_legend().get_texts()[0].get_text()
    'layer_0, median 20, 1 endless'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for n, (layer, steps) in enumerate(horizon.steps.items()):
        steps = np.sort(steps)
        share = (np.arange(len(steps)) + 0.5) / len(steps)
        endless = int(np.isinf(steps).sum())
        words = f"{layer}, median {np.median(steps):.3g}" + f", {endless} endless" * bool(endless)
        style = {"color": COLOURS[n % len(COLOURS)], "linestyle": LINES[n % len(LINES)]}
        marker = "o" if len(steps) <= 40 else None
        shown = np.where(np.isinf(steps), np.nan, steps)
        axes.plot(
            share, shown, label=label(words), marker=marker, markersize=4, linewidth=1.6, **style
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.0, 0.4)))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the units")
    axes.set_ylabel("memory horizon (steps)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def plot_units(found: FoundUnits, *, count: int = 10, title: str = "") -> "Figure":
    """Plots the correlations of the units that follow a property most closely, as bars.

    Args:
      found: the result of :func:`lstm_jax.inspect.find_units`.
      count: the number of units.
      title: the title, such as the property's name.

    >>> found = FoundUnits(np.array(["layer_0"]), np.array([7]), np.array([0.9]))
    >>> plot_units(found).axes[0].get_yticklabels()[0].get_text()
    'layer_0, 7'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    correlation = found.correlation[:count]
    labels = [
        label(f"{layer}, {unit}") for layer, unit in zip(found.layer, found.unit, strict=True)
    ]
    positions = np.arange(len(correlation))
    colours = [COLOURS[0] if value < 0 else COLOURS[1] for value in correlation]
    axes.barh(positions, correlation, color=colours, height=0.7)
    axes.set_yticks(positions, labels[:count])
    axes.invert_yaxis()
    axes.set_xlim(-1, 1)
    axes.axvline(0.0, color="0.3", linewidth=0.8)
    axes.set_xlabel("correlation (dimensionless)")
    axes.set_ylabel("layer and unit")
    axes.grid(alpha=0.25, axis="x")
    axes.set_title(title, fontsize="medium")
    return figure


# ---- parts of plots ----


def _of_layer(trace: Trace, layer: str | None) -> tuple[str, Any]:
    layer = next(iter(trace.values)) if layer is None else layer
    if layer not in trace.values:
        raise ValueError(f"layer must be one of {', '.join(trace.values)}, got {layer!r}")
    return layer, trace.values[layer]


def _of_row(values: Mapping[str, Any], name: str, layer: str, row: int) -> np.ndarray:
    """One row of a value, ``[T, units]``."""
    if name not in values:
        raise ValueError(f"names must be among {', '.join(values)} (in {layer}), got {name!r}")
    array = np.asarray(values[name], np.float64)
    if not len(array):
        raise ValueError("trace must have at least one step, got none")
    array = array.reshape(len(array), -1, array.shape[-1])
    if not 0 <= row < array.shape[1]:
        raise ValueError(f"row must be at least 0 and below {array.shape[1]}, got {row}")
    return array[:, row]


def _column(trace: Trace, unit: int, layer: str) -> int:
    """The index of a unit in the trace's values."""
    if trace.units is not None:
        traced = np.asarray(trace.units).tolist()
    else:
        traced = list(range(max(array.shape[-1] for array in trace.values[layer].values())))
    if unit not in traced:
        known = f"0 to {traced[-1]}" if trace.units is None else ", ".join(map(str, traced))
        raise ValueError(f"unit must be in {known}, got {unit}")
    return traced.index(unit)


def _unit_ticks(panel: Any, count: int, units: Any) -> None:
    """Labels as many units as fit."""
    step = max(1, math.ceil(count / 4))
    positions = np.arange(0, count, step)
    labels = positions if units is None else np.asarray(units)[positions]
    panel.set_yticks(positions, [str(each) for each in labels])


def _marker(line: np.ndarray) -> str | None:
    """A point for a single step, for which a line is invisible."""
    return "o" if len(line) == 1 else None


def _whole_numbers(panel: Any) -> None:
    """Sets the horizontal axis' ticks to whole numbers, even if only one fits."""
    from matplotlib.ticker import MaxNLocator

    whole = MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    panel.xaxis.set_major_locator(whole)


MOST_CHARACTERS = 70
"""The number of characters that fit below a plot six inches wide."""


def _time_axis(panel: Any, num_steps: int, text: str | None) -> None:
    """Labels the time axis with the characters that are read if they fit, otherwise with steps."""
    if text is not None and len(text) < num_steps:
        raise ValueError(f"text must have one character per step, {num_steps}, got {len(text)}")
    if text is None or num_steps > MOST_CHARACTERS:
        panel.set_xlabel("time (steps)")
        _whole_numbers(panel)
        return
    marks = {"\n": "↵", " ": "␣", "\t": "⇥"}
    shown = [label(marks.get(character, character)) for character in text]
    panel.set_xticks(range(num_steps), shown[:num_steps], family="monospace", fontsize=7)
    panel.tick_params(axis="x", length=0)
    panel.set_xlabel("time (characters read)")
