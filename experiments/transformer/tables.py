"""Tables and a plot of the results of compare.py."""

import json
import pathlib
import statistics
from typing import Any

METRICS = {"translation": ("BLEU", max), "characters": ("loss", min)}
TITLES = {"translation": "Multi30k", "characters": "Tiny Shakespeare"}
POSITIONS = {"translation": "source tokens", "characters": "positions that the Transformer reads"}
COLOURS = {"LSTM": "C1", "Transformer": "C0"}


def write(folder: pathlib.Path, runs: list[Any]) -> None:
    """Prints tables of the results in a folder, and writes FOLDER/transformer.png."""
    trained = {run: json.loads(file.read_text("utf-8")) for run, file in finished(folder, runs)}
    quality = best_points(trained)
    if quality:
        print_table(
            ["task", "share", "kind", "learning rate", "dropout", "points", "validation", "test"],
            *(
                [task, f"{share:.0%}", kind, f"{run.learning_rate:g}", f"{run.dropout:g}",
                 str(count), spread(validation), spread(test)]
                for (task, share, kind), (run, count, validation, test) in quality.items()
            ),
        )  # fmt: skip
    measured = {}
    for name in ("steps", "streamed"):
        file = folder / f"{name}.json"
        measured[name] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    rows = [
        [
            task,
            kind,
            *(f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}" for value in each.values()),
        ]
        for task, kinds in measured["steps"].items()
        for kind, each in kinds.items()
    ]
    if rows:
        names = list(measured["steps"]["translation"]["LSTM"])
        print_table(["task", "kind", *names], *rows)
    rows = [
        [task, kind, length, f"{each['milliseconds']:.3f}", f"{each['kB of the carry']:,.0f}"]
        for task, kinds in measured["streamed"].items()
        for kind, lengths in kinds.items()
        for length, each in lengths.items()
    ]
    if rows:
        print_table(["task", "kind", "positions", "ms of a streamed step", "kB it reads"], *rows)
        plot(quality, measured["streamed"], folder / "transformer.png")


def finished(folder: pathlib.Path, runs: list[Any]) -> list[tuple[Any, pathlib.Path]]:
    """The finished runs of the grid, each followed by its other seeds."""
    files = []
    for run in runs:
        for seed in range(3):
            each = run._replace(seed=seed)
            if (file := folder / each.name / "results.json").exists():
                files.append((each, file))
    return files


def best_points(trained: dict[Any, Any]) -> dict[tuple[str, float, str], tuple]:
    """The point with the best validation metric of seed 0, by task, share and kind.

    Each value is the run, the number of points tried, and the validation and test metrics of all
    seeds of the best point.
    """
    groups: dict[tuple[str, float, str], list[Any]] = {}
    for run in trained:
        groups.setdefault((run.task, run.share, run.kind), []).append(run)
    found = {}
    for group, runs in sorted(groups.items(), reverse=True):
        metric, best = METRICS[group[0]]
        points = [run for run in runs if run.seed == 0]
        if not points:
            continue
        chosen = best(points, key=lambda run: trained[run]["validation"][metric])
        seeds = [run for run in runs if run[:5] == chosen[:5]]
        validation, test = (
            [trained[run][split][metric] for run in seeds if split in trained[run]]
            for split in ("validation", "test")
        )
        found[group] = (chosen, len(points), validation, test)
    return found


def spread(values: list[float]) -> str:
    if not values:
        return ""
    digits = 1 if values[0] > 4 else 3
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def print_table(*rows: list[str]) -> None:
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print("|", " | ".join(row), "|")
    print()


def plot(quality: dict, streamed: dict, path: pathlib.Path) -> None:
    """Plots quality by share of the data, and below it the time of a streamed step by positions."""
    from matplotlib.figure import Figure

    rows = 2 if quality else 1
    figure = Figure(figsize=(8.5, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for column, task in zip(axes.T, TITLES, strict=True):
        for kind, colour in COLOURS.items():
            times = {int(n): each["milliseconds"] for n, each in streamed[task][kind].items()}
            column[-1].plot([*times], [*times.values()], "o-", color=colour, label=kind)
            points = {
                share: statistics.fmean(test or validation)
                for (name, share, each), (_, _, validation, test) in sorted(quality.items())
                if (name, each) == (task, kind)
            }
            if quality:
                column[0].plot([*points], [*points.values()], "o-", color=colour)
        if quality:
            column[0].set(xscale="log", ylabel=METRICS[task][0], xlabel="share of training data")
            column[0].set_xticks([0.01, 0.1, 1], ["1 %", "10 %", "100 %"])
        column[0].set_title(TITLES[task])
        column[-1].set(xscale="log", xlabel=POSITIONS[task], ylabel="ms of a streamed step")
        column[-1].set_xticks([*times], [*map(str, times)])
        column[-1].set_ylim(bottom=0)
        for ax in column:
            ax.minorticks_off()
            ax.grid(alpha=0.25)
    axes[-1, 0].legend(frameon=False)
    figure.savefig(path, dpi=200)
