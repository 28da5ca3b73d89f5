"""Which points of a sweep share compiled programs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lstm_jax.config import Config
from lstm_jax.tasks.base import Task
from lstm_jax.train.memory import check_memory
from lstm_jax.train.programs import SharedPrograms, own_programs
from lstm_jax.train.sweep.points import SEED, Point


@dataclasses.dataclass
class Group:
    """Points that share compiled programs."""

    programs: SharedPrograms
    points: list[Point]


def grouped(points: Sequence[Point], tasks: Callable[[Config], Task]) -> list[Group]:
    """Groups of points that share programs: they differ only in their seeds and some numbers.

    A number that determines the structure of a program cannot be its argument. Points with
    different values of such a number belong to different groups.

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
    """Groups of points that differ only in seeds and numbers; zero and nonzero are separate."""
    alike: dict[Any, list[Point]] = {}
    for point in points:
        values = {**point.values, SEED: None}
        key = tuple(
            (name, value == 0 if name in numbers else value) for name, value in values.items()
        )
        alike.setdefault(key, []).append(point)
    return list(alike.values())


def _ranges(points: Sequence[Point], numbers: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The lowest and highest value of each number that differs among the points."""
    values = {key: [point.values[key] for point in points] for key in numbers}
    return {key: (min(x), max(x)) for key, x in values.items() if min(x) < max(x)}


def _shareable(
    point: Point, tasks: Callable[[Config], Task], ranges: Mapping[str, tuple[float, float]]
) -> bool:
    if not ranges:
        return True
    try:
        SharedPrograms(point.config, tasks(point.config), ranges).check()
    except Exception:  # code that needs a concrete number can raise anything
        return False
    return True


def check_points(points: Sequence[Point], tasks: Callable[[Config], Task]) -> None:
    """Raises an error if a point's config is impossible or a step exceeds the available memory.

    Floating-point values and the seed do not affect the memory needed.
    """
    known: set[Any] = set()
    for point in points:
        task, plain = tasks(point.config), point.config.as_dict()
        sizes = tuple(
            (name, key, value != 0 if isinstance(value, float) else value)
            for name in ("data", "model", "optimizer")
            for key, value in plain[name].items()
        )
        sizes += (point.config.train.accumulate,)
        if sizes not in known:
            known.add(sizes)
            check_memory(point.config, task, own_programs(point.config, task))
