"""Sweeps: a run for each combination of some values, all in one process, with shared programs."""

import contextlib
import csv
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import filelock
import jax

from lstm_jax.config import Config, config_from, differing_keys
from lstm_jax.errors import UserError
from lstm_jax.tasks.base import Task
from lstm_jax.train.loop import (
    Diverged,
    Stopped,
    best_state,
    has_checkpoint,
    load_source,
    run_steps,
    signals,
    write_results,
)
from lstm_jax.train.programs import Lockstep, SharedPrograms
from lstm_jax.train.report import Report
from lstm_jax.train.workdir import claimed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP_FILE = "sweep.json"
FORMAT = 1
SEED = "train.seed"
MOST_POINTS = 1000
MOST_TOGETHER = 32  # points that one program trains, which bounds the memory
NOT_SWEPT = {
    "train.num_devices": "each point is trained on one device",
    **dict.fromkeys(
        ("train.log_every", "train.checkpoint_every", "train.keep_checkpoints"),
        "it does not change what is learned",
    ),
    **dict.fromkeys(
        ("train.sample_prompt", "train.sample_length", "train.sample_temperature"),
        "a sweep writes no samples",
    ),
}
"""Keys that a sweep does not vary, and why."""

Axes = Mapping[str, Sequence[Any]]


@dataclasses.dataclass
class Point:
    """One combination of a sweep.

    Attributes:
      folder: its run's folder.
      values: its values of the swept keys.
      config: its whole config.
      results: metrics of its best checkpoint by split; None until it is finished.
      failure: why it has no results although it is finished: its loss was not finite.
    """

    folder: pathlib.Path
    values: dict[str, Any]
    config: Config
    results: dict[str, Any] | None = None
    failure: str | None = None

    @property
    def finished(self) -> bool:
        """Whether it needs no further training."""
        return self.results is not None or self.failure is not None

    @property
    def name(self) -> str:
        """Its folder's name and its values."""
        return f"{self.folder.name} {', '.join(f'{k} {v}' for k, v in self.values.items())}".strip()


# ---- which points there are ----


def swept_axes(config: Config, texts: Mapping[str, str]) -> tuple[Config, dict[str, list[Any]]]:
    """The values to sweep, from texts such as ``{"train.seed": "0,1,2"}``.

    Commas in brackets belong to a value.  A key with one value replaces the config's.

    Args:
      config: the config that the points have in common.
      texts: comma-separated values by dotted key.

    Returns:
      The config with single values replaced, and the values of each swept key.

    Raises:
      UserError: a key is unknown or cannot be swept, or a value is impossible or given twice.

    >>> config = config_from({"task": "classification"}, "example", {})
    >>> swept_axes(config, {"train.seed": "0,1", "model.cell": "gru,lstm(forget_bias=2.0)"})[1]
    {'train.seed': [0, 1], 'model.cell': ['gru', 'lstm(forget_bias=2.0)']}
    """
    axes: dict[str, list[Any]] = {}
    for key, text in texts.items():
        flag = "--" + key.replace("_", "-")
        words = split_values(text)
        one = [config_from(config.as_dict(), flag, {key: word}) for word in words]
        values = [_value(each, key) for each in one]
        if len(values) > 1 and key in NOT_SWEPT:
            raise UserError(f"{flag}: cannot be swept ({NOT_SWEPT[key]}); give one value")
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{flag}: expected different values, got {value!r} twice")
        if len(values) == 1:
            config = one[0]
        else:
            axes[key] = values
    if not axes:
        raise UserError("expected a key with several values, such as --train.seed 0,1,2")
    return config, axes


def split_values(text: str) -> list[str]:
    """The values in a comma-separated text; commas in brackets belong to a value.

    >>> split_values("gru, zoneout(lstm, cell_rate=0.2)")
    ['gru', 'zoneout(lstm, cell_rate=0.2)']
    """
    values, depth = [""], 0
    for character in text:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def _value(config: Config, key: str) -> Any:
    section, _, field = key.partition(".")
    return getattr(getattr(config, section), field)


def points_of(config: Config, axes: Axes, folder: pathlib.Path) -> list[Point]:
    """A point for each combination of values, the last key's values next to each other.

    Raises:
      UserError: there are more than ``MOST_POINTS``, or a value is impossible.
    """
    count = math.prod(map(len, axes.values()))
    if count > MOST_POINTS:
        sizes = " x ".join(str(len(values)) for values in axes.values())
        raise UserError(f"expected at most {MOST_POINTS} points, got {sizes} = {count}")
    digits, points = len(str(count - 1)), []
    for number, combination in enumerate(itertools.product(*axes.values())):
        plain = config.as_dict()
        plain["train"]["num_devices"] = 1
        for key, value in zip(axes, combination, strict=True):
            section, _, field = key.partition(".")
            plain[section][field] = value
        own = config_from(plain, "sweep", {})
        at = folder / "points" / f"{number:0{digits}}"
        points.append(Point(at, {key: _value(own, key) for key in axes}, own))
    return points


# ---- which points share programs ----


@dataclasses.dataclass
class Group:
    """Points that are trained by the same compiled programs."""

    programs: SharedPrograms
    points: list[Point]


def grouped(points: Sequence[Point], tasks: Callable[[Config], Task]) -> list[Group]:
    """The points in groups that share programs: their seeds and some numbers differ, no more.

    A number that decides what is computed cannot be an argument of a program; points with
    different values of it come into different groups.

    Args:
      points: the points.
      tasks: the task of a config.
    """
    varied = {key for point in points for key in point.values}
    numbers = [key for key in varied if _is_number(points[0], key)]
    groups = []
    for members in _alike(points, numbers):
        ranges = _ranges(members, numbers)
        fixed = [key for key in ranges if not _shareable(members[0], tasks, {key: ranges[key]})]
        if not fixed and not _shareable(members[0], tasks, ranges):
            fixed = list(ranges)
        for part in _alike(members, [key for key in numbers if key not in fixed]):
            shared = _ranges(part, [key for key in numbers if key not in fixed])
            programs = SharedPrograms(part[0].config, tasks(part[0].config), shared)
            groups.append(Group(programs, part))
    return groups


def _is_number(point: Point, key: str) -> bool:
    return key.startswith(("model.", "optimizer.")) and type(point.values[key]) is float


def _alike(points: Sequence[Point], numbers: Sequence[str]) -> list[list[Point]]:
    """Points that differ only in their seeds and in numbers, together; zero is set apart."""
    alike: dict[Any, list[Point]] = {}
    for point in points:
        values = {**point.values, SEED: None}
        key = tuple(
            (name, value == 0 if name in numbers else value) for name, value in values.items()
        )
        alike.setdefault(key, []).append(point)
    return list(alike.values())


def _ranges(points: Sequence[Point], numbers: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The lowest and highest value of each number that differs between some points."""
    values = {key: [point.values[key] for point in points] for key in numbers}
    return {key: (min(x), max(x)) for key, x in values.items() if min(x) < max(x)}


def _shareable(
    point: Point, tasks: Callable[[Config], Task], ranges: Mapping[str, tuple[float, float]]
) -> bool:
    if not ranges:
        return True
    try:
        SharedPrograms(point.config, tasks(point.config), ranges).check()
    except Exception:  # whatever the code of a task raises that needs a number's value
        return False
    return True


# ---- training ----


def sweep(
    config: Config,
    axes: Axes,
    folder: str | pathlib.Path,
    report: Report | None = None,
    *,
    together: bool | None = None,
) -> list[Point]:
    """Trains a run for each combination of values; finished ones are not repeated.

    Points that differ in their seed and in numbers of ``[optimizer]`` and ``[model]`` share
    compiled programs.  Each point is trained on one device and gives the results of the run of
    its config alone, up to rounding.

    Args:
      config: what the points have in common.
      axes: the values of each swept key.
      folder: receives ``points/N``, a run's folder for each point; ``sweep.json`` and
        ``results.csv``, their results; and ``sweep.png``.
      report: receives progress and the table; by default the console.
      together: whether points that share programs are trained by one vectorised program.  By
        default they are on accelerators; on CPU devices, where that is slower, each device trains
        one point after another.

    Returns:
      The points, with their results.

    Raises:
      UserError: the folder holds another sweep, or a point cannot be trained.
      Stopped: SIGINT or SIGTERM came; all is saved, and the same call resumes.
    """
    folder, report = pathlib.Path(folder), report or Report()
    points = points_of(config, axes, folder)
    tasks = _Tasks()
    for point in points:
        tasks(point.config)  # a config that cannot run must not take the folder
    if together is None:
        together = jax.default_backend() != "cpu"
    with _claimed(folder, config, axes, points):
        left = [point for point in points if not point.finished]
        groups = grouped(left, tasks) if left else []
        report.say(
            f"{len(points)} points, {len(points) - len(left)} finished; {len(left)} to train with "
            f"{len(groups)} set(s) of programs on {jax.local_device_count()} "
            f"{jax.default_backend()} device(s), in {folder}"
        )
        with signals(report) as came:
            training = _Training(tasks, report, came, together)

            def finished(point: Point) -> None:
                _write(folder, config, axes, points)
                done = sum(each.finished for each in points)
                training.say(f"{done} of {len(points)} | {point.name} | {_summary(point)}")

            training.train(groups, finished)
        report.end_progress()
        if came and not all(point.finished for point in points):
            report.say(f"stopped; all is saved; resume with: lstm-jax sweep {folder}")
            raise Stopped(came[0])
        present(points, axes, folder, report)
    return points


class _Tasks:
    """The tasks of points; those with the same data and model sections share one."""

    def __init__(self) -> None:
        self._known: dict[Any, Task] = {}

    def __call__(self, config: Config) -> Task:
        key = (config.data, config.model)
        if key not in self._known:
            self._known[key] = config.build_task()
        return self._known[key]


class _Training:
    """Trains groups of points, each device in its own thread.

    Args:
      tasks: the task of a config.
      report: receives progress, from one thread at a time.
      came: once it is not empty, every point stops after a step.
      together: whether a program trains several points.
    """

    def __init__(
        self,
        tasks: Callable[[Config], Task],
        report: Report,
        came: Sequence[int],
        together: bool,
    ):
        self._tasks, self._report, self._came = tasks, report, came
        self._size = MOST_TOGETHER if together else 1
        self._errors: list[BaseException] = []
        self._lock = threading.RLock()

    def train(self, groups: Sequence[Group], finished: Callable[[Point], None]) -> None:
        """Trains all points and calls ``finished`` with each; raises the first error."""
        starts = [range(0, len(group.points), self._size) for group in groups]
        waiting = [
            [group.points[n : n + self._size] for n in places]
            for group, places in zip(groups, starts, strict=True)
        ]
        started = [False] * len(groups)

        def next_part(last: int | None) -> int | None:
            """The group that the device has programs for, else a new one, else the longest."""
            left = [n for n, parts in enumerate(waiting) if parts]
            if not left or self._came or self._errors:
                return None
            return max(left, key=lambda n: (n == last, not started[n], len(waiting[n])))

        def work(device: jax.Device) -> None:
            group = None
            while True:
                with self._lock:
                    group = next_part(group)
                    if group is None:
                        return
                    started[group] = True
                    points = waiting[group].pop(0)
                self._train_part(groups[group].programs, points, device, finished)

        _in_threads([functools.partial(work, device) for device in jax.local_devices()])
        if self._errors:
            raise self._errors[0]

    def _train_part(
        self,
        programs: SharedPrograms,
        points: Sequence[Point],
        device: jax.Device,
        finished: Callable[[Point], None],
    ) -> None:
        """Trains one point on a device, or several in lockstep."""
        lockstep = None
        if len(points) > 1:
            lockstep = Lockstep(programs.step(device, together=True), len(points), self._came)

        def train(point: Point) -> None:
            try:
                with jax.default_device(device):
                    results, failure = self._train_point(point, programs, device, lockstep)
                with self._lock:
                    point.results, point.failure = results, failure
                    finished(point)
            except Stopped:
                pass
            except BaseException as error:
                self._errors.append(error)
            finally:
                if lockstep is not None:
                    lockstep.leave()

        _in_threads([functools.partial(train, point) for point in points])

    def _train_point(
        self,
        point: Point,
        shared: SharedPrograms,
        device: jax.Device,
        lockstep: Lockstep | None,
    ) -> tuple[dict[str, Any] | None, str | None]:
        """Trains one point, as a run in its own folder; returns its results, or its failure."""
        config, workdir, task = point.config, point.folder, self._tasks(point.config)
        programs = shared.for_point(config, device, lockstep)
        came = self._came if lockstep is None else lockstep.signals
        with claimed(workdir, config, task.known):
            try:
                source = None if has_checkpoint(workdir) else load_source(config.train.init_from)
                run_steps(config, task, workdir, _PointReport(point, self), programs, came, source)
            except Diverged as error:
                return None, str(error)
            state, step = best_state(config, task, workdir, shared.abstract_state)
            model = programs.model(jax.device_put(state, device))
            return {"step": step, **write_results(task, model, step, workdir)}, None

    def say(self, message: str) -> None:
        """A line above the progress."""
        with self._lock:
            self._report.end_progress()
            self._report.say(message)

    def warn(self, message: str) -> None:
        """A warning above the progress."""
        with self._lock:
            self._report.end_progress()
            self._report.warn(message)

    def progress(self, line: str) -> None:
        """The progress of one of the points."""
        with self._lock:
            self._report.progress(line, lasting=False)


def _in_threads(functions: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _PointReport(Report):
    """Reports a point's progress and warnings in the sweep's report."""

    def __init__(self, point: Point, training: _Training):
        super().__init__()
        self._name, self._training = point.name, training

    def say(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        self._training.warn(f"{self._name}: {message}")

    def progress(self, line: str, *, lasting: bool) -> None:
        self._training.progress(f"{self._name} | {line}")

    def end_progress(self) -> None:
        pass


# ---- the sweep's folder ----


def load_sweep(folder: str | pathlib.Path) -> tuple[Config, dict[str, list[Any]], list[Point]]:
    """The common config, the axes and the points of the sweep in a folder.

    Raises:
      UserError: the folder holds no sweep, or one in another format.

    >>> load_sweep("/no/such/sweep")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/sweep: no sweep here (expected a sweep.json)
    """
    folder = pathlib.Path(folder)
    path = folder / SWEEP_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no sweep here (expected a {SWEEP_FILE})")
    try:
        held = json.loads(path.read_text("utf-8"))
        found = held["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the JSON of a sweep, got something else") from error
    if found != FORMAT:
        raise UserError(f"{folder}: expected a sweep of format {FORMAT}, got format {found}")
    config, axes = config_from(held["config"], str(path), {}), held["axes"]
    points = points_of(config, axes, folder)
    for point, known in zip(points, held["points"], strict=True):
        point.results, point.failure = known["results"], known["failure"]
    return config, axes, points


@contextlib.contextmanager
def _claimed(
    folder: pathlib.Path, config: Config, axes: Axes, points: list[Point]
) -> Iterator[None]:
    """The folder for this process only; the points take the results that it holds."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{folder}: another process is sweeping in this folder") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
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
            _write(folder, config, axes, points)
        yield
    finally:
        lock.release()


def _write(folder: pathlib.Path, config: Config, axes: Axes, points: Sequence[Point]) -> None:
    """Writes ``sweep.json`` and ``results.csv``, each in one move."""
    held = {
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
    part = folder / ".sweep.part"
    part.write_text(json.dumps(held, ensure_ascii=False, indent=1) + "\n", "utf-8")
    part.replace(folder / SWEEP_FILE)
    metrics = metric_names(points)
    with part.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["point", *axes, *metrics, "failure"])
        for point in points:
            flat = _flat(point)
            values = [*point.values.values(), *(flat.get(name, "") for name in metrics)]
            rows.writerow([point.folder.name, *values, point.failure or ""])
    part.replace(folder / "results.csv")


# ---- results ----


def _flat(point: Point) -> dict[str, float]:
    """A point's metrics by names such as ``validation/loss``."""
    return {
        f"{split}/{name}": value
        for split, metrics in (point.results or {}).items()
        if split != "step"
        for name, value in metrics.items()
    }


def metric_names(points: Sequence[Point]) -> list[str]:
    """The names of the points' metrics, such as ``validation/loss``."""
    return list(dict.fromkeys(name for point in points for name in _flat(point)))


def _summary(point: Point) -> str:
    if point.failure:
        return point.failure
    return ", ".join(f"{name} {value:.4f}" for name, value in _flat(point).items())


def over_seeds(points: Sequence[Point]) -> list[tuple[dict[str, Any], list[Point]]]:
    """The combinations of values other than the seed, each with its points."""
    combinations: dict[tuple, list[Point]] = {}
    for point in points:
        values = {key: value for key, value in point.values.items() if key != SEED}
        combinations.setdefault(tuple(values.items()), []).append(point)
    return [(dict(values), members) for values, members in combinations.items()]


def mean_and_deviation(points: Sequence[Point], metric: str) -> tuple[float, float]:
    """The mean of a metric over finished points, and its sample deviation (0 for one point)."""
    values = [_flat(point)[metric] for point in points if metric in _flat(point)]
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
    plot(points, axes).savefig(folder / "sweep.png", dpi=120)
    report.say(f"plotted {folder / 'sweep.png'}")


def _on_an_axis(values: Sequence[Any], key: str) -> bool:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    return numbers and key != SEED


def plot(points: Sequence[Point], axes: Axes) -> "Figure":
    """Mean and deviation of each metric of one split, with every run as a dot.

    The values of the last swept number are on the horizontal axis, and each combination of the
    other keys has its own line; without a swept number the combinations are on the axis.
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
        place = values.pop(number) if number else ", ".join(f"{v}" for v in values.values())
        label = ", ".join(f"{v}" for v in values.values()) if number else ""
        lines.setdefault(label, []).append((place, members))
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for color, (label, places) in enumerate(lines.items()):
            xs = [place for place, _ in places]
            means, deviations = zip(*(mean_and_deviation(m, name) for _, m in places), strict=True)
            style = {"color": f"C{color % 10}", "marker": "o", "capsize": 3}
            axis.errorbar(
                xs, means, deviations, label=label or None, linestyle="-" if number else "", **style
            )
            dots = [(x, _flat(p)[name]) for x, m in places for p in m if name in _flat(p)]
            if dots:
                axis.plot(*zip(*dots, strict=True), ".", color=style["color"], alpha=0.4)
        if number and min(axes[number]) > 0 and max(axes[number]) >= 8 * min(axes[number]):
            axis.set_xscale("log")
        if number:
            axis.set_xlabel(number)
        axis.set_ylabel(name)
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    return figure
