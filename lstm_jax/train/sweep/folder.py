"""A sweep's folder: ``sweep.json``, ``results.csv`` and the lock."""

import contextlib
import csv
import io
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from lstm_jax._files import write_content
from lstm_jax.config import Config, config_from, differing_keys
from lstm_jax.errors import UserError
from lstm_jax.train.files import locked, read_sealed, sealed
from lstm_jax.train.sweep.points import Axes, Point, points_of
from lstm_jax.train.sweep.results import metric_names, metrics_of

SWEEP_FILE = "sweep.json"
FORMAT = 1


def load_sweep(folder: str | pathlib.Path) -> tuple[Config, dict[str, list[Any]], list[Point]]:
    """The common config, the axes and the points of the sweep in a folder.

    Raises:
      UserError: the folder holds no sweep, or its format is not supported.

    >>> load_sweep("/no/such/sweep")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/sweep: no sweep here (expected a sweep.json)
    """
    folder = pathlib.Path(folder)
    path = folder / SWEEP_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no sweep here (expected a {SWEEP_FILE})")
    held = read_sealed(path, "sweep")
    found = held.get("format")
    if found != FORMAT:
        raise UserError(f"{folder}: expected a sweep of format {FORMAT}, got format {found!r}")
    try:
        config, axes = config_from(held["config"], str(path), {}), held["axes"]
        points = points_of(config, axes, folder)
        for point, known in zip(points, held["points"], strict=True):
            point.results, point.failure = known["results"], known["failure"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected the JSON of a sweep, got something else") from error
    return config, axes, points


@contextlib.contextmanager
def claimed(
    folder: pathlib.Path, config: Config, axes: Axes, points: list[Point]
) -> Iterator[None]:
    """Locks a folder for this process; the points receive the results stored in it."""
    with locked(folder, "sweeping"):
        if (folder / SWEEP_FILE).exists():
            there, there_axes, known = load_sweep(folder)
            differing = differing_keys(there, config)
            if differing or list(there_axes.items()) != [(k, list(v)) for k, v in axes.items()]:
                keys = ", ".join(differing) or "the swept values"
                raise UserError(
                    f"{folder}: holds another sweep ({keys} differ); take another --workdir"
                )
            for point, old in zip(points, known, strict=True):
                point.results, point.failure = old.results, old.failure
        else:
            if (folder / "config.toml").exists():
                raise UserError(f"{folder}: holds a run; take another --workdir")
            write(folder, config, axes, points)
        yield


def write(folder: pathlib.Path, config: Config, axes: Axes, points: Sequence[Point]) -> None:
    """Writes ``sweep.json`` and ``results.csv``, each atomically."""
    content = {
        "format": FORMAT,
        "config": config.as_dict(),
        "axes": axes,
        "points": [
            {
                "folder": point.folder.relative_to(folder).as_posix(),
                "values": point.values,
                "results": point.results,
                "failure": point.failure,
            }
            for point in points
        ],
    }
    text = json.dumps(sealed(content), ensure_ascii=False, indent=1) + "\n"
    write_content(folder / SWEEP_FILE, text)
    metrics, table = metric_names(points), io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["point", *axes, *metrics, "failure"])
    for point in points:
        known = metrics_of(point)
        values = [*point.values.values(), *(known.get(name, "") for name in metrics)]
        rows.writerow([point.folder.name, *values, point.failure or ""])
    write_content(folder / "results.csv", table.getvalue())
