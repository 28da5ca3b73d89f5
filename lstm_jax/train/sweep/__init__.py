"""Sweeps: one run per combination of config values, in one process, with shared programs."""

import pathlib

import jax

from lstm_jax.config import Config
from lstm_jax.train.loop import Stopped, signals
from lstm_jax.train.report import Report
from lstm_jax.train.sweep.folder import SWEEP_FILE, claimed, load_sweep, write
from lstm_jax.train.sweep.points import Axes, Point, points_of, split_values, swept_axes
from lstm_jax.train.sweep.results import (
    mean_and_deviation,
    over_seeds,
    plot,
    present,
    summary,
    table,
)
from lstm_jax.train.sweep.sharing import check_points, grouped
from lstm_jax.train.sweep.training import Tasks, Training

__all__ = [
    "SWEEP_FILE",
    "Axes",
    "Point",
    "grouped",
    "load_sweep",
    "mean_and_deviation",
    "over_seeds",
    "plot",
    "points_of",
    "split_values",
    "sweep",
    "swept_axes",
    "table",
]


def sweep(
    config: Config,
    axes: Axes,
    folder: str | pathlib.Path,
    report: Report | None = None,
    *,
    together: bool | None = None,
) -> list[Point]:
    """Trains a run for each combination of values; finished runs are not repeated.

    Points that differ only in their seed and in numbers of ``[optimizer]`` and ``[model]`` share
    compiled programs. Each point is trained on one device and gives the same results, up to
    rounding, as a separate run of its config.

    Args:
      config: the config that the points have in common.
      axes: the values of each swept key.
      folder: receives ``points/N``, a run's folder for each point; ``sweep.json`` and
        ``results.csv``, their results; and ``sweep.png``.
      report: receives progress and the table; by default the console.
      together: whether one vectorised program trains several points that share programs. The
        default is true on accelerators. On CPU devices, where this is slower, each device trains
        one point after another.

    Returns:
      The points, with their results.

    Raises:
      UserError: the folder holds another sweep, or a point cannot be trained.
      Stopped: SIGINT or SIGTERM arrived; everything is saved, and the same call resumes.
    """
    folder, report = pathlib.Path(folder), report or Report()
    points = points_of(config, axes, folder)
    tasks = Tasks()
    check_points(points, tasks)  # an impossible config must not occupy the folder
    if together is None:
        together = jax.default_backend() != "cpu"
    with claimed(folder, config, axes, points):
        left = [point for point in points if not point.finished]
        groups = grouped(left, tasks) if left else []
        report.say(
            f"{len(points)} points, {len(points) - len(left)} finished; {len(left)} to train with "
            f"{len(groups)} set(s) of programs on {jax.local_device_count()} "
            f"{jax.default_backend()} device(s), in {folder}"
        )
        with signals(report) as came:
            training = Training(tasks, report, came, together)

            def finished(point: Point) -> None:
                write(folder, config, axes, points)
                done = sum(each.finished for each in points)
                training.say(f"{done} of {len(points)} | {point.name} | {summary(point)}")

            training.train(groups, finished)
        report.end_progress()
        if came and not all(point.finished for point in points):
            report.say(f"stopped; everything is saved; resume with: lstm-jax sweep {folder}")
            raise Stopped(came[0])
        present(points, axes, folder, report)
    return points
