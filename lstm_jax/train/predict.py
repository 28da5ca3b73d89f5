"""Predictions of a trained run, as a table or a file."""

import csv
import importlib.util
import io
import json
import pathlib
from typing import Any

import numpy as np

from lstm_jax._files import npz_content, write_content
from lstm_jax.errors import UserError, expect
from lstm_jax.tasks.base import Columns
from lstm_jax.tasks.protocols import ChartsPredictions, PlotsFile, PlotsText
from lstm_jax.train.metrics import drawn, plot_content
from lstm_jax.train.report import Report
from lstm_jax.train.run import Run, load_run

SHOWN = 50  # rows of a printed table


def predict_run(
    folder: pathlib.Path,
    source: pathlib.Path | list[str] | None,
    output: pathlib.Path | None,
    report: Report,
    *,
    plot: pathlib.Path | None = None,
) -> Columns:
    """Predicts on new data with a run's best checkpoint, and writes or prints the predictions.

    Args:
      folder: the run's folder.
      source: a file in the format of the training data, or a list of strings; None for the
        task's own data.
      output: a .csv, .json or .npz file to write; None prints a table.
      report: receives the table.
      plot: an image file to write, which explains the prediction for a single string or file; None
        writes no image.

    Returns:
      The predictions: columns of equal length, by name.

    Raises:
      UserError: the folder holds no run, the data do not fit, or ``output`` cannot be written.
    """
    if output is not None:
        check_output(output)
    run = load_run(folder)
    if plot is not None:
        check_plot(run, source, plot)
    columns = run.predict(source)
    if output is None:
        report.columns(columns, SHOWN)
    else:
        write_columns(columns, output)
        report.say(f"wrote {output}")
        _write_charts(run, source, output, report)
    if plot is not None:
        write_content(plot, plotted(run, source, plot.suffix))
        report.say(f"plotted {plot}")
    return columns


def _write_charts(run: Run, source: Any, output: pathlib.Path, report: Report) -> None:
    """Plots the predictions next to their file, if the task has such plots."""
    if not isinstance(run.task, ChartsPredictions):
        return
    if importlib.util.find_spec("matplotlib") is None:
        report.warn("no charts: matplotlib is not installed (pip install 'lstm_jax[plot]')")
        return
    for name, plot in run.task.charts(run.model, source):
        suffix, content = plot_content(plot)
        path = output.with_name(f"{output.stem}{'_' if name else ''}{name}{suffix}")
        write_content(path, content)
        report.say(f"plotted {path}")


def check_plot(run: Run, source: pathlib.Path | list[str] | None, path: pathlib.Path) -> None:
    """Raises an error if the prediction for this source cannot be plotted.

    Raises:
      UserError: the source is not a single string or file, the task has no such plot, the image
        format is not supported, or matplotlib is not installed.
    """
    if isinstance(run.task, PlotsFile):
        expect(isinstance(source, pathlib.Path), "--plot", "a file to predict on", source)
        formats = run.task.plot_formats
    elif isinstance(run.task, PlotsText):
        texts = source if isinstance(source, list) else []
        expect(len(texts) == 1, "--plot", "exactly one --text", len(texts))
        formats = (".png", ".svg")
    else:
        raise UserError(f"--plot: task {run.config.task} does not plot a prediction")
    expect(path.suffix in formats, "--plot", f"a {' or '.join(formats)} file", path)
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot: needs matplotlib (pip install 'lstm_jax[plot]')")


def plotted(run: Run, source: Any, suffix: str) -> bytes | str:
    """The content of an image that explains the prediction for a single string or file."""
    if isinstance(run.task, PlotsFile):
        plot = run.task.plot_file(run.model, source)
    else:
        plot = run.task.plot(run.model, source[0])
    return plot if isinstance(plot, str | bytes) else drawn(plot, suffix[1:])


def check_output(path: pathlib.Path) -> None:
    """Raises an error if the suffix of a file is not that of a supported format."""
    if path.suffix not in (".csv", ".json", ".npz"):
        raise UserError(f"--output: expected a .csv, .json or .npz file, got {path}")


def write_columns(columns: Columns, path: pathlib.Path) -> None:
    """Writes columns as CSV, JSON (a list of rows) or NumPy arrays, by the file's suffix.

    Raises:
      UserError: the suffix is not supported, or the file cannot be written.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
    >>> write_columns({"row": np.array([1, 2]), "class": ["a", "b"]}, path)
    >>> path.read_text().split()
    ['row,class', '1,a', '2,b']
    """
    check_output(path)
    if path.suffix == ".npz":
        write_content(path, npz_content(columns))
    elif path.suffix == ".json":
        rows = [dict(zip(columns, row, strict=True)) for row in _rows(columns)]
        write_content(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    else:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([list(columns), *_rows(columns)])
        write_content(path, text.getvalue())


def _rows(columns: Columns) -> list[tuple[Any, ...]]:
    """The rows as plain Python values; a float32 has the fewest digits that identify it."""
    lists = [[_plain(value) for value in column] for column in columns.values()]
    return list(zip(*lists, strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, np.floating):
        return float(str(value)) if np.isfinite(value) else None
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
