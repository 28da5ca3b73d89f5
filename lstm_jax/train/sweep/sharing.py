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


def check_points(points: Sequence[Point], tasks: Callable[[Config], Task]) -> None:
    """Raises where a point's config cannot run, or a step of it needs more memory than there is.

    The values of floating numbers and the seed do not change what is needed.
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
