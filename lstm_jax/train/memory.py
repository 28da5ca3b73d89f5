"""Checks from shapes, before anything is allocated, whether a run fits into memory.

At the same time a training step needs at least

- its state: parameters, their mean, the optimizer's state, and the carry of the model; with several
devices, each holds a copy of everything but the carry;
- one batch;
- the larger of two: the gradients of all parameters, if they are clipped by their global norm, and
the activations, the values that loops over time store for their derivatives.

Activations are computed from the step's program (its jaxpr). A value that a loop stacks over time
is in memory during another loop if the program produces it before that loop and reads it afterwards
in every order of the equations that a compiler may choose. Values that a compiler may never store
are not counted: values outside loops, values of loops that it may unroll, and values that it can
compute from constants. Equal values count once. The sum is therefore a lower bound. A run that
would fit is never rejected, but an accepted run can still need more memory than is available.
"""

import dataclasses
import math
import pathlib
import resource
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from lstm_jax._scans import scan_counts
from lstm_jax.config import Config
from lstm_jax.errors import UserError
from lstm_jax.tasks.base import Task
from lstm_jax.train.programs import Programs
from lstm_jax.train.step import batch_spec, state_shardings


class Need(NamedTuple):
    """A lower bound of the bytes that a training step needs at the same time, on all local devices.

    Attributes:
      state: parameters, their mean, the optimizer's state and the carry.
      batch: the inputs of a step.
      gradients: the gradients of all parameters, if the step holds them at the same time.
      activations: the values stored for the derivatives.
      devices: the number of devices.
      largest: the shape of the largest array in the larger of the two groups, data and parameters.
    """

    state: int
    batch: int
    gradients: int
    activations: int
    devices: int
    largest: tuple[int, ...]

    @property
    def of_data(self) -> bool:
        """Whether the batch and the activations need more memory than the parameters."""
        return self.batch + self.activations > self.state + self.gradients

    @property
    def total(self) -> int:
        """All bytes that must be in memory at once."""
        return self.state + self.batch + max(self.gradients, self.activations)

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("state", "batch")}
        more = "gradients" if self.gradients >= self.activations else "activations"
        parts[more] = getattr(self, more)
        words = ", ".join(f"{name} {size_in_words(size)}" for name, size in parts.items())
        return f"{size_in_words(self.total)} ({words}, on {self.devices} device(s))"


def check_memory(config: Config, task: Task, programs: Programs) -> None:
    """Raises an error if a training step needs more memory than is available.

    Raises:
      UserError: the message names the memory needed, the memory available, and the keys to lower.
    """
    need = needed_by(config, task, programs)
    available, source = available_bytes([*programs.mesh.devices.flat])
    if need.total > available:
        raise UserError(
            f"out of memory: a training step needs at least {need}, {size_in_words(available)} are "
            f"available ({source}); lower {keys_to_lower(config, need)}"
        )


# ---- the memory needed ----


def needed_by(config: Config, task: Task, programs: Programs) -> Need:
    """The memory of a training step; computes and allocates nothing."""
    mesh, accumulate = programs.mesh, config.train.accumulate
    rows = NamedSharding(mesh, batch_spec(accumulate))
    batch = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(
            (accumulate, *array.shape) if accumulate > 1 else array.shape,
            jax.dtypes.canonicalize_dtype(array.dtype),
            sharding=rows,
        ),
        task.batch_shapes(),
    )
    state = jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        programs.shapes,
        state_shardings(programs.shapes, mesh),
    )
    # The arguments of the first step have these types, so the step is not traced again.
    traced = programs.take_step.trace(state, batch)  # type: ignore[missing-attribute]
    activations, stored = live_bytes(traced.jaxpr.jaxpr)
    carry, devices = bytes_of(state.carry), mesh.size
    gradients = bytes_of(state.params) if config.optimizer.max_norm > 0 else 0
    need = Need(
        state=(bytes_of(state) - carry) * devices + carry,
        batch=bytes_of(batch),
        gradients=gradients * devices,
        activations=activations * devices,
        devices=devices,
        largest=(),
    )
    arrays = jax.tree.leaves((batch, stored) if need.of_data else state.params)
    largest = max((array.shape for array in arrays), key=math.prod, default=())
    return need._replace(largest=largest)


def bytes_of(tree: Any) -> int:
    """The bytes of all arrays, or abstract arrays, of a tree.

    >>> bytes_of({"a": np.zeros((2, 3), np.float32), "b": np.zeros(1, np.int8)})
    25
    """
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


class _Value:
    """An array inside a program.

    Attributes:
      aval: its shape and type.
      producer: the index of the equation that computes it; None for an argument.
      readers: the indices of the equations that read it.
      stored: whether every compiler must store it.
      constant: whether it is computed from constants alone.
    """

    def __init__(
        self, aval: Any, producer: int | None, stored: bool = False, constant: bool = False
    ):
        self.aval, self.producer = aval, producer
        self.stored, self.constant = stored, constant
        self.readers: list[int] = []


class _Equation(NamedTuple):
    """An equation of a program in which calls of other programs are inlined.

    Attributes:
      inputs: the values that it reads.
      loop: the program of its body, if it is a loop.
    """

    inputs: list[_Value]
    loop: Any = None


VIEWS = ("reshape", "squeeze", "expand_dims", "transpose", "copy", "optimization_barrier", "name")
"""Operations whose result may share the memory of their operand."""
UNROLLED = 8
"""The largest number of steps of a loop that a compiler may unroll."""


def live_bytes(jaxpr: Any) -> tuple[int, Any]:
    """A lower bound of the memory that a program's intermediate values occupy at once, in bytes.

    Args:
      jaxpr: the program; its equations may be computed in any order that their inputs permit.

    Returns:
      The bytes, and the shape and type of the largest value among them.

    >>> def total(xs):
    ...     return jax.lax.scan(lambda h, x: (h + x, h * x), xs[0], xs)[1].sum()
    >>> program = jax.make_jaxpr(total)(jax.ShapeDtypeStruct((100, 8), "float32"))
    >>> live_bytes(program.jaxpr)  # the loop's outputs; arguments do not count
    (3200, ShapedArray(float32[100,8]))
    """
    equations: list[_Equation] = []
    values: list[_Value] = []
    arguments = {variable: _Value(variable.aval, None) for variable in jaxpr.invars}
    _flatten(jaxpr, arguments, equations, values, {})
    before = [0] * len(equations)  # bit mask of the equations each one depends on
    for n, equation in enumerate(equations):
        for value in equation.inputs:
            if value.producer is not None:
                before[n] |= before[value.producer] | 1 << value.producer
    most, largest = 0, jax.ShapeDtypeStruct((), np.float32)
    for n, equation in enumerate(equations):
        if equation.loop is None:
            continue
        inside, stored = live_bytes(equation.loop)
        live = [value.aval for value in values if value.stored and _is_live(value, n, before)]
        total = inside + bytes_of(live)
        if total > most:
            most = total
            largest = max([*live, stored], key=lambda aval: math.prod(aval.shape))
    return most, largest


def _is_live(value: _Value, at: int, before: list[int]) -> bool:
    """Whether a value is in memory, in every order, while the equation ``at`` is computed."""
    producer = value.producer
    if producer is None or not (producer == at or before[at] >> producer & 1):
        return False
    return any(reader == at or before[reader] >> at & 1 for reader in value.readers)


def _flatten(
    jaxpr: Any,
    known: dict[Any, _Value],
    equations: list[_Equation],
    values: list[_Value],
    results: dict[Any, list[_Value]],
) -> None:
    """Appends a program's equations, and those of the programs it calls.

    Args:
      jaxpr: the program.
      known: the values of its variables; computed values are added.
      equations, values: the lists that are extended.
      results: the results of the appended equations, by what they compute.
    """
    for constant in jaxpr.constvars:
        known[constant] = _Value(constant.aval, None)
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inputs = [_value(variable, known) for variable in equation.invars]
        called = None if name in ("scan", "while", "cond") else _called(params)
        if called is not None and len(called.invars) == len(inputs):
            inner = dict(zip(called.invars, inputs, strict=True))
            _flatten(called, inner, equations, values, results)
            outputs = [_value(variable, inner) for variable in called.outvars]
            known.update(zip(equation.outvars, outputs, strict=True))
            continue
        if name in VIEWS and len(inputs) == len(equation.outvars):
            known.update(zip(equation.outvars, inputs, strict=True))
            continue
        number, carried, body = len(equations), len(equation.outvars), None
        if name == "scan":
            body, (constants, carried) = params["jaxpr"].jaxpr, scan_counts(equation)
            if params["length"] <= UNROLLED:
                carried = len(equation.outvars)
            else:
                for value in inputs[constants + carried :]:
                    value.stored = not value.constant
        content = _content(equation, inputs)
        if content not in results:
            for value in inputs:
                value.readers.append(number)
            equations.append(_Equation(inputs, body))
            constant = all(value.constant for value in inputs) and body is None
            results[content] = [
                _Value(variable.aval, number, n >= carried, constant)
                for n, variable in enumerate(equation.outvars)
            ]
            values += results[content]
        known.update(zip(equation.outvars, results[content], strict=True))


def _value(variable: Any, known: Mapping[Any, _Value]) -> _Value:
    is_literal = hasattr(variable, "val")
    return _Value(variable.aval, None, constant=True) if is_literal else known[variable]


def _content(equation: Any, inputs: Sequence[_Value]) -> Any:
    """A key that is equal for two equations of which a compiler may compute only one."""
    if equation.effects or equation.primitive.name in ("scan", "while", "cond"):
        return id(equation)
    operands = tuple(
        f"{variable.val!r}" if hasattr(variable, "val") else id(value)
        for variable, value in zip(equation.invars, inputs, strict=True)
    )
    return equation.primitive.name, operands, f"{equation.params}"


def _called(params: Mapping[str, Any]) -> Any:
    """The program that an equation calls, if it does nothing else."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in params:
            return getattr(params[name], "jaxpr", params[name])
    return None


# ---- the memory available ----


def available_bytes(devices: Sequence[jax.Device]) -> tuple[int, str]:
    """The memory that this process can still allocate on some devices, and what limits it.

    CPU devices share their memory. It is limited by the machine's free memory and swap, by the
    process's control groups, and by its address space (``ulimit -v``). For other devices, it is the
    number of devices times the free memory of the device that has least.
    """
    if devices[0].platform != "cpu":
        held = [device.memory_stats() or {} for device in devices]
        if not all("bytes_limit" in each for each in held):
            return 2**63, "not known"
        free = [each["bytes_limit"] - each.get("bytes_in_use", 0) for each in held]
        return len(free) * min(free), "memory of the devices"
    return min([_of_machine(), *_of_control_groups(), _of_address_space()])


def _of_machine(root: pathlib.Path = pathlib.Path("/")) -> tuple[int, str]:
    """The memory that programs can allocate: free memory and free swap."""
    held = _memory_info(root)
    if "MemAvailable" not in held:
        return 2**63, "not known"  # not Linux
    return held["MemAvailable"] + held.get("SwapFree", 0), "free memory and swap"


def _memory_info(root: pathlib.Path) -> dict[str, int]:
    """The lines of /proc/meminfo in bytes."""
    try:
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
        fields = [line.split() for line in lines if line.endswith("kB")]
        return {name.rstrip(":"): 1024 * int(size) for name, size, _ in fields}
    except (OSError, ValueError):
        return {}


def _of_control_groups(root: pathlib.Path = pathlib.Path("/")) -> Iterator[tuple[int, str]]:
    """The limit of each control group of the process, minus its memory that cannot be reclaimed."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    swap = _memory_info(root).get("SwapFree", 0)
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mount, names = "sys/fs/cgroup", ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            mount = "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        group = pathlib.PurePosixPath(path.lstrip("/"))
        for above in {group, *group.parents, pathlib.PurePosixPath(".")}:
            limit = _of_control_group(root / mount / above, *names)
            if limit is not None:
                yield limit + swap, f"limit of the control group {root / mount / above}"


def _of_control_group(folder: pathlib.Path, most: str, used: str, prefix: str) -> int | None:
    try:
        limit, current = ((folder / name).read_text("ascii").strip() for name in (most, used))
        if limit == "max":
            return None
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
        held = {name: int(size) for name, size in (line.split() for line in lines)}
        given_back = sum(held.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        return int(limit) - int(current) + given_back
    except (OSError, ValueError):
        return None


def _of_address_space() -> tuple[int, str]:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return 2**63, "no limit"
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text("ascii").split()[0])
    except (OSError, ValueError):
        pages = 0
    return limit - pages * resource.getpagesize(), "limit of the address space, ulimit -v"


# ---- messages ----


def size_in_words(size: int) -> str:
    """A number of bytes with a unit and three digits.

    >>> size_in_words(1_234_567), size_in_words(16 * 10**13)
    ('1.23 MB', '160 TB')
    """
    unit = min(max(len(str(max(size, 1))) - 1, 0) // 3, 6)
    return f"{size / 1000**unit:.3g} {['bytes', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB'][unit]}"


def keys_to_lower(config: Config, need: Need) -> str:
    """The keys of [data] and [model] that determine the size of the largest array, as text."""
    keys: dict[str, int] = {}
    for name in ("data", "model") if need.of_data else ("model",):
        section = getattr(config, name)
        values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
        keys |= {f"{name}.{key}": v for key, v in values.items() if type(v) is int and v > 1}
    found = []
    for size in sorted(need.largest, reverse=True):
        fitting = {k: v for k, v in keys.items() if size % v == 0 or size * need.devices == v}
        if fitting and size > 1:
            found.append(max(fitting, key=lambda key: fitting[key]))
    found += [key for key in ("model.num_layers",) if key in keys]
    named = [f"{key} ({keys[key]})" for key in dict.fromkeys(found)]
    return " or ".join(named) or "the sizes in [model] and [data]"
