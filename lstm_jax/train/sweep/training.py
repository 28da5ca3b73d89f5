"""Training of the points of a sweep, on all devices."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lstm_jax.config import Config
from lstm_jax.tasks.base import Task
from lstm_jax.train.loop import (
    Diverged,
    Stopped,
    best_state,
    has_checkpoint,
    load_source,
    run_steps,
    write_results,
)
from lstm_jax.train.programs import Lockstep, SharedPrograms
from lstm_jax.train.report import Report
from lstm_jax.train.sweep.points import Point
from lstm_jax.train.sweep.sharing import Group
from lstm_jax.train.workdir import claimed

MOST_TOGETHER = 32  # points trained by one program; bounds the memory


class Tasks:
    """The tasks of points; points with the same data and model sections share a task."""

    def __init__(self) -> None:
        self._known: dict[Any, Task] = {}

    def __call__(self, config: Config) -> Task:
        key = (config.data, config.model)
        if key not in self._known:
            self._known[key] = config.build_task()
        return self._known[key]


class Training:
    """Trains groups of points, each device in its own thread.

    Args:
      tasks: the task of a config.
      report: receives progress, from one thread at a time.
      came: once it is not empty, every point stops after the current step.
      together: whether one program trains several points.
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
            """The group whose programs the device has, else a new one, else the longest."""
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
        """Trains one point as a run in its own folder; returns its results or its failure."""
        config, workdir, task = point.config, point.folder, self._tasks(point.config)
        programs = shared.for_point(config, device, lockstep)
        config = dataclasses.replace(config, data=task.data, model=task.model)
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
        """Prints a line above the progress."""
        with self._lock:
            self._report.end_progress()
            self._report.say(message)

    def warn(self, message: str) -> None:
        """Prints a warning above the progress."""
        with self._lock:
            self._report.end_progress()
            self._report.warn(message)

    def progress(self, line: str) -> None:
        """Updates the progress of one point."""
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

    def __init__(self, point: Point, training: Training):
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
