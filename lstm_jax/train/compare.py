"""Comparison of runs: their metrics, the config keys in which they differ, their loss curves."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lstm_jax._files import write_content
from lstm_jax._labels import label
from lstm_jax.config import Config, differing_keys
from lstm_jax.errors import UserError
from lstm_jax.train.metrics import drawn, ignore, read_metrics
from lstm_jax.train.report import Report
from lstm_jax.train.sweep import SWEEP_FILE, load_sweep
from lstm_jax.train.workdir import load_workdir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_COMPARED = ("train.num_devices",)


@dataclasses.dataclass(frozen=True)
class Trained:
    """The parts of a run that are compared.

    Attributes:
      folder: its folder.
      config: its config.
      results: metrics of its best checkpoint by names such as ``validation/loss``; empty for a
        run that has not finished.
      lines: its ``metrics.jsonl``.
    """

    folder: pathlib.Path
    config: Config
    results: dict[str, float]
    lines: list[dict[str, Any]]


def runs_in(
    folders: Sequence[str | pathlib.Path], warn: Callable[[str], None] = ignore
) -> list[Trained]:
    """The runs in some folders; the folder of a sweep contributes all its points.

    Args:
      folders: the folders.
      warn: receives a message that names damaged lines of metrics; these are skipped.

    Raises:
      UserError: a folder holds neither a run nor a sweep, is given twice, or its run has no metrics
        yet.
    """
    runs: list[Trained] = []
    for folder in map(pathlib.Path, folders):
        inside = [folder]
        if (folder / SWEEP_FILE).is_file():
            # Points that have not started have no folder yet.
            inside = [
                p.folder for p in load_sweep(folder)[2] if (p.folder / "config.toml").exists()
            ]
        runs += [_read(each, warn) for each in inside]
    for run in runs:
        if [each.folder.absolute() for each in runs].count(run.folder.absolute()) > 1:
            raise UserError(f"{run.folder}: expected different runs, got this one twice")
    return runs


def _read(folder: pathlib.Path, warn: Callable[[str], None]) -> Trained:
    config, lines = load_workdir(folder), read_metrics(folder / "metrics.jsonl", warn)
    path, results = folder / "results.json", {}
    if path.exists():
        try:
            held = json.loads(path.read_text("utf-8"))
            results = {
                f"{split}/{name}": float(value)
                for split, metrics in held.items()
                if split != "step"
                for name, value in metrics.items()
            }
            broken = not all(map(math.isfinite, results.values()))
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            broken = True
        if broken:
            raise UserError(f"{path}: expected the JSON of a run's results, got something else")
    if not lines and not results:
        raise UserError(f"{folder}: this run has no metrics yet")
    return Trained(folder, config, results, lines)


def differing(runs: Sequence[Trained]) -> list[str]:
    """The config keys in which some of the runs differ."""
    keys = dict.fromkeys(
        key for run in runs[1:] for key in differing_keys(runs[0].config, run.config)
    )
    return [key for key in keys if key not in NOT_COMPARED]


def table(runs: Sequence[Trained]) -> dict[str, list[Any]]:
    """Columns: the run, the config keys that differ, the metrics of the best checkpoint.

    A run that has not finished has no such metrics; the column ``steps`` shows the progress of each
    run.
    """
    columns: dict[str, list[Any]] = {"run": [str(run.folder) for run in runs]}
    for key in differing(runs):
        columns[key] = [_value(run.config, key) for run in runs]
    columns["steps"] = [str(run.lines[-1]["step"] if run.lines else "") for run in runs]
    for name in dict.fromkeys(name for run in runs for name in run.results):
        values = [run.results.get(name) for run in runs]
        columns[name] = ["" if value is None else f"{value:.4f}" for value in values]
    return columns


def _value(config: Config, key: str) -> str:
    section, _, field = key.partition(".")
    value = getattr(config, section)
    return str(getattr(value, field, "") if field else value)


def plot(runs: Sequence[Trained]) -> "Figure":
    """The validation loss of each run over its steps, or the training loss if no run has one."""
    from matplotlib.figure import Figure

    names = {name for run in runs for line in run.lines for name in line}
    name = "validation/loss" if "validation/loss" in names else "train/loss"
    keys = differing(runs)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(runs):
        curve = [(line["step"], line[name]) for line in run.lines if name in line]
        values = ", ".join(
            f"{key.partition('.')[2] or key} {_value(run.config, key)}" for key in keys[:3]
        )
        name_of_run = run.folder.name or str(run.folder)
        shown = label(f"{name_of_run}: {values}" if values else name_of_run)
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}
        if curve:
            axes.plot(*zip(*curve, strict=True), label=shown, marker=".", **style)
    axes.set_xlabel("training step")
    axes.set_ylabel(label(name))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def compare(
    folders: Sequence[str | pathlib.Path], output: pathlib.Path, report: Report | None = None
) -> None:
    """Prints a table of the runs, and writes a plot of their curves.

    Args:
      folders: at least two runs, or a sweep.
      output: the file of the plot; its suffix determines the format.
      report: receives the table; by default the console.

    Raises:
      UserError: there are fewer than two runs, a folder holds no run or has no metrics, or the
        plot cannot be written.

    >>> compare(["/no/such/run", "/no/such/other"], pathlib.Path("compare.png"))
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/run: no run here (expected a config.toml)
    """
    report = report or Report()
    runs = runs_in(folders, report.warn)
    if len(runs) < 2:
        raise UserError(f"expected at least two runs to compare, got {len(runs)}")
    report.columns(table(runs), len(runs))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        report.warn("no plot: matplotlib is not installed (pip install 'lstm_jax[plot]')")
        return
    try:
        content = drawn(plot(runs), output.suffix.removeprefix(".") or "png")
    except ValueError as error:  # matplotlib does not know the format
        raise UserError(f"--output: {output}: cannot be written ({error})") from error
    write_content(output, content)
    report.say(f"plotted {output}")
