"""Predictions of a trained run, as a table or a file."""

import csv
import io
import json
import pathlib
from typing import Any

import numpy as np

from lstm_jax._files import write_content
from lstm_jax.errors import UserError
from lstm_jax.tasks.base import Columns
from lstm_jax.train.report import Report
from lstm_jax.train.run import load_run

SHOWN = 50  # rows of a table that is printed


def predict_run(
    folder: pathlib.Path,
    source: pathlib.Path | list[str] | None,
    output: pathlib.Path | None,
    report: Report,
) -> Columns:
    """Predicts on new data with a run's best checkpoint; writes the predictions, or prints them.

    Args:
      folder: the run's folder.
      source: a file in the format of the training data, or a list of strings; None for the
        task's own data.
      output: a .csv, .json or .npz file to write; None prints a table.
      report: receives the table.

    Returns:
      The predictions, as columns of equal length by name.

    Raises:
      UserError: the folder holds no run, the data do not fit, or ``output`` cannot be written.
    """
    if output is not None:
        check_output(output)
    columns = load_run(folder).predict(source)
    if output is None:
        report.columns(columns, SHOWN)
    else:
        write_columns(columns, output)
        report.say(f"wrote {output}")
    return columns


def check_output(path: pathlib.Path) -> None:
    """Raises where the name of a file does not end as one of the formats."""
    if path.suffix not in (".csv", ".json", ".npz"):
        raise UserError(f"--output: expected a .csv, .json or .npz file, got {path}")


def write_columns(columns: Columns, path: pathlib.Path) -> None:
    """Writes columns as CSV, JSON (a list of rows) or NumPy arrays, by the file's suffix.

    Raises:
      UserError: the suffix is another one, or the file cannot be written.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
    >>> write_columns({"row": np.array([1, 2]), "class": ["a", "b"]}, path)
    >>> path.read_text().split()
    ['row,class', '1,a', '2,b']
    """
    check_output(path)
    if path.suffix == ".npz":
        arrays: Any = {name: np.asarray(column) for name, column in columns.items()}
        file = io.BytesIO()
        np.savez(file, **arrays)
        write_content(path, file.getvalue())
    elif path.suffix == ".json":
        rows = [dict(zip(columns, row, strict=True)) for row in _rows(columns)]
        write_content(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    else:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([list(columns), *_rows(columns)])
        write_content(path, text.getvalue())


def _rows(columns: Columns) -> list[tuple[Any, ...]]:
    """The rows, as plain Python values; a float32 has its own shortest digits."""
    lists = [[_plain(value) for value in column] for column in columns.values()]
    return list(zip(*lists, strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, np.floating):
        return float(str(value)) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
