"""The results of a sweep: a table of means and deviations over seeds, and a plot."""

import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lstm_jax._files import write_content
from lstm_jax._labels import label
from lstm_jax.train.metrics import drawn
from lstm_jax.train.report import Report
from lstm_jax.train.sweep.points import SEED, Axes, Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACE_LENGTH = 32  # characters of a tick label


def metrics_of(point: Point) -> dict[str, float]:
    """A point's metrics by names such as ``validation/loss``."""
    return {
        f"{split}/{name}": value
        for split, metrics in (point.results or {}).items()
        if split != "step"
        for name, value in metrics.items()
    }


def metric_names(points: Sequence[Point]) -> list[str]:
    """The names of the points' metrics, such as ``validation/loss``."""
    return list(dict.fromkeys(name for point in points for name in metrics_of(point)))


def summary(point: Point) -> str:
    if point.failure:
        return point.failure
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics_of(point).items())


def over_seeds(points: Sequence[Point]) -> list[tuple[dict[str, Any], list[Point]]]:
    """The combinations of values other than the seed, each with its points."""
    combinations: dict[tuple, list[Point]] = {}
    for point in points:
        values = {key: value for key, value in point.values.items() if key != SEED}
        combinations.setdefault(tuple(values.items()), []).append(point)
    return [(dict(values), members) for values, members in combinations.items()]


def mean_and_deviation(points: Sequence[Point], metric: str) -> tuple[float, float]:
    """The mean of a metric over finished points, and its sample deviation (0 for one point)."""
    values = [metrics_of(point)[metric] for point in points if metric in metrics_of(point)]
    if not values:
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(points: Sequence[Point]) -> dict[str, list[Any]]:
    """Columns: the swept values, the number of runs, mean and deviation of each metric."""
    columns: dict[str, list[Any]] = {}
    fields = [key.partition(".")[2] for key in points[0].values]
    for values, members in over_seeds(points):
        for key, value in values.items():
            field = key.partition(".")[2]
            columns.setdefault(field if fields.count(field) == 1 else key, []).append(value)
        done = [point for point in members if point.results is not None]
        columns.setdefault("runs", []).append(len(done))
        for metric in metric_names(points):
            mean, deviation = mean_and_deviation(done, metric)
            spread = f" ± {deviation:.4f}" if len(done) > 1 else ""
            columns.setdefault(metric, []).append(f"{mean:.4f}{spread}" if done else "not finite")
    return columns


def present(points: Sequence[Point], axes: Axes, folder: pathlib.Path, report: Report) -> None:
    """Prints the table and writes ``sweep.png``."""
    report.columns(table(points), len(points))
    if not metric_names(points):
        return
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        report.warn("no plot: matplotlib is not installed (pip install 'lstm_jax[plot]')")
        return
    write_content(folder / "sweep.png", drawn(plot(points, axes)))
    report.say(f"plotted {folder / 'sweep.png'}")


def _on_an_axis(values: Sequence[Any], key: str) -> bool:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    return numbers and key != SEED


def plot(points: Sequence[Point], axes: Axes) -> "Figure":
    """Mean and deviation of each metric of one split, with a dot for every run.

    The horizontal axis shows the last swept number, and each combination of the other keys has a
    line. If no number was swept, the axis shows the combinations.
    """
    from matplotlib.figure import Figure

    names = metric_names(points)
    split = (
        "validation" if any(x.startswith("validation/") for x in names) else names[0].split("/")[0]
    )
    names = [name for name in names if name.startswith(f"{split}/")]
    figure = Figure(figsize=(1 + 4.5 * len(names), 4), layout="constrained")
    number = next((key for key in reversed(list(axes)) if _on_an_axis(axes[key], key)), None)
    lines: dict[str, list[tuple[Any, list[Point]]]] = {}
    for values, members in over_seeds(points):
        place = values.pop(number) if number else None
        words = ", ".join(map(str, values.values()))
        place, line = (place, words) if number else (words, "")
        lines.setdefault(line, []).append((place, members))
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for color, (line, places) in enumerate(lines.items()):
            xs = [place if number else n for n, (place, _) in enumerate(places)]
            means, deviations = zip(*(mean_and_deviation(m, name) for _, m in places), strict=True)
            style: dict[str, Any] = {"color": f"C{color % 10}", "marker": "o", "capsize": 3}
            style["label"] = label(line) if line else None
            axis.errorbar(xs, means, deviations, linestyle="-" if number else "", **style)
            dots = [
                (x, metrics_of(point)[name])
                for x, (_, members) in zip(xs, places, strict=True)
                for point in members
                if name in metrics_of(point)
            ]
            if dots:
                axis.plot(*zip(*dots, strict=True), ".", color=style["color"], alpha=0.4)
        if number and min(axes[number]) > 0 and max(axes[number]) >= 8 * min(axes[number]):
            axis.set_xscale("log")
        if number:
            axis.set_xlabel(number)
        else:
            names_of_places = [label(place, PLACE_LENGTH) for place, _ in lines[""]]
            axis.set_xticks(range(len(names_of_places)), names_of_places)
        axis.set_ylabel(label(name))
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    return figure
