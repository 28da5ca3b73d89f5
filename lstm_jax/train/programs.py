"""The compiled programs of a run: its own, or those shared by the points of a sweep."""

import copy
import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from lstm_jax.config import Config
from lstm_jax.models import Compiled
from lstm_jax.models.base import Carry
from lstm_jax.tasks.base import Batch, Task
from lstm_jax.train.devices import AXIS, compiled, data_mesh
from lstm_jax.train.optimizer import build_optimizer, build_schedule
from lstm_jax.train.step import (
    StepMetrics,
    TrainState,
    abstract_state,
    build_step,
    init_state,
    new_state,
    split,
    state_shardings,
    step_function,
    trained_model,
)


class Programs(NamedTuple):
    """The programs that the training loop calls.

    Attributes:
      mesh: the devices that share a batch.
      new_state: returns the state before the first step, on these devices.
      take_step: maps a state, which is donated, and a batch to the next state and the metrics.
      model: returns the model of a state in evaluation mode, on one device.
      shapes: the shapes and types of a state.
    """

    mesh: Mesh
    new_state: Callable[[], TrainState]
    take_step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
    model: Callable[[TrainState], Compiled]
    shapes: TrainState


def own_programs(config: Config, task: Task) -> Programs:
    """The programs of a single run, compiled for its config when they are first called."""
    mesh = data_mesh(task.batch_size, config.train.num_devices)
    schedule = build_schedule(config.optimizer, config.train.num_steps)
    optimizer = build_optimizer(config.optimizer, schedule)
    decay, triggered = config.optimizer.ema_decay, config.optimizer.average_patience > 0
    averages, seed = config.optimizer.averages, config.train.seed
    graph, shapes = abstract_state(task, optimizer, averages, triggered)

    def new_state() -> TrainState:
        _, state = init_state(task, optimizer, averages, seed, triggered)
        return jax.device_put(state, state_shardings(state, mesh))

    def model(state: TrainState) -> Compiled:
        return trained_model(graph, on_one_device(state))

    take_step = build_step(task, graph, optimizer, schedule, decay, mesh, config.train.accumulate)
    return Programs(mesh, new_state, take_step, model, shapes)


def on_one_device(state: TrainState) -> TrainState:
    """The part of a state that evaluation needs, on one device; every device has a copy."""
    device = next(iter(state.step.devices()))
    needed = state._replace(opt_state=(), carry=())
    return jax.device_put(jax.device_get(needed), device)


# ---- programs that take config numbers as arguments ----


ARITHMETIC = {
    f"optimizer.{name}"
    for name in ("learning_rate", "alpha", "b1", "b2", "eps", "decay", "weight_decay", "ema_decay")
}
"""Numbers that enter only arithmetic, never comparisons, while an optimizer is built."""


class Number:
    """A config number inside a compiled program that several values of the number share.

    In arithmetic it behaves like the traced number that it holds. A comparison with a constant is
    decided if the result is the same for all values between the lowest and the highest. Otherwise
    it raises :class:`TypeError`, and the number cannot be shared.

    Args:
      traced: the number inside the program.
      low, high: the range of the values.

    >>> rate = Number(jnp.array(0.25), 0.1, 0.5)
    >>> rate == 0, rate < 1, float(2 * rate)
    (False, True, 0.5)
    >>> rate < 0.2
    Traceback (most recent call last):
    TypeError: not the same for all values from 0.1 to 0.5
    """

    def __init__(self, traced: Any, low: float, high: float):
        self.traced, self.low, self.high = traced, low, high

    def __jax_array__(self) -> Any:
        return jnp.asarray(self.traced)

    def _same(self, at_low: bool, at_high: bool) -> bool:
        if at_low != at_high:
            raise TypeError(f"not the same for all values from {self.low} to {self.high}")
        return at_low

    def __lt__(self, other: Any) -> Any:
        return self._same(self.low < other, self.high < other)

    def __le__(self, other: Any) -> Any:
        return self._same(self.low <= other, self.high <= other)

    def __gt__(self, other: Any) -> Any:
        return not self <= other

    def __ge__(self, other: Any) -> Any:
        return not self < other

    def __eq__(self, other: Any) -> Any:
        if isinstance(other, int | float):
            return self <= other and self >= other
        return self is other

    def __bool__(self) -> bool:
        return bool(self != 0)

    def __ne__(self, other: Any) -> Any:
        return not self.__eq__(other)

    __hash__ = object.__hash__

    def __neg__(self) -> Any:
        return -self.traced

    def __add__(self, other: Any) -> Any:
        return self.traced + other

    def __sub__(self, other: Any) -> Any:
        return self.traced - other

    def __rsub__(self, other: Any) -> Any:
        return other - self.traced

    def __mul__(self, other: Any) -> Any:
        return self.traced * other

    def __truediv__(self, other: Any) -> Any:
        return self.traced / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.traced

    def __pow__(self, other: Any) -> Any:
        return self.traced**other

    def __rpow__(self, other: Any) -> Any:
        return other**self.traced

    __radd__, __rmul__ = __add__, __mul__


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A config with values replaced by dotted key. They are not checked, so they may be traced."""
    sections: dict[str, Any] = {}
    for key, value in values.items():
        name, _, field = key.partition(".")
        sections.setdefault(name, copy.copy(getattr(config, name)))
        object.__setattr__(sections[name], field, value)
    return dataclasses.replace(config, **sections)


class SharedPrograms:
    """The programs of configs that differ only in the seed and in some numbers, compiled once.

    Args:
      config: one of the configs; the others differ from it only in ``train.seed`` and the keys of
        ``ranges``.
      task: its task.
      ranges: the lowest and highest value of each number, by dotted key. A number must not be zero
        in some configs and nonzero in others, since a zero can switch off a part of the program.
    """

    def __init__(self, config: Config, task: Task, ranges: Mapping[str, tuple[float, float]]):
        self._config, self._task, self._ranges = config, task, dict(ranges)
        self._task_varies = any(not key.startswith("optimizer.") for key in ranges)
        self._new_state = compiled(self._traced_new_state)
        self._called = compiled(self._traced_call)
        self._initial_carry = jax.jit(self._traced_initial_carry, static_argnums=1)
        self._compiled_steps: dict[tuple[jax.Device, bool], Callable] = {}

    @functools.cached_property
    def graph(self) -> nnx.GraphDef:
        """The structure of the model, with the numbers of the config passed to the constructor."""
        optimizer = build_optimizer(self._config.optimizer, lambda step: 0.0)
        return abstract_state(self._task, optimizer, False)[0]

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and types of a state."""
        return jax.eval_shape(self._traced_new_state, jnp.uint32(0), self.numbers(self._config))

    def numbers(self, config: Config) -> tuple[float, ...]:
        """A config's values of the shared numbers."""
        keys = (key.partition(".") for key in self._ranges)
        return tuple(float(getattr(getattr(config, name), field)) for name, _, field in keys)

    def check(self) -> None:
        """Raises an error, of any type, if a number cannot be shared; compiles nothing."""
        batch, accumulate = self._task.batches(0)[0], self._config.train.accumulate
        if accumulate > 1:
            batch = jax.tree.map(lambda array: jnp.stack([array] * accumulate), batch)
        numbers = self.numbers(self._config)
        device = jax.local_devices()[0]
        jax.eval_shape(self.step(device), self.abstract_state, batch, numbers)

    def for_point(
        self, config: Config, device: jax.Device, lockstep: "Lockstep | None" = None
    ) -> Programs:
        """The programs of one of the configs on one device.

        Args:
          config: the config of the point.
          device: the device that trains it.
          lockstep: takes the steps of several points together; None if each point steps alone.
        """
        numbers, mesh, step = self.numbers(config), _one(device), self.step(device)
        take = step if lockstep is None else lockstep.take_step

        def new_state() -> TrainState:
            state = self._new_state(jnp.uint32(config.train.seed), numbers)
            return jax.device_put(state, state_shardings(state, mesh))

        def take_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
            return take(state, batch, numbers)

        def model(state: TrainState) -> Compiled:
            alone = trained_model(self.graph, on_one_device(state))
            return _SharedModel(self, numbers, alone) if self._task_varies else alone

        return Programs(mesh, new_state, take_step, model, self.abstract_state)

    def step(self, device: jax.Device, together: bool = False) -> Callable:
        """The compiled step on a device, ``(state, batch, numbers) -> (state, metrics)``.

        With ``together``, arguments and results are tuples with one entry per point.
        """
        if (device, together) not in self._compiled_steps:

            def step(state: TrainState, batch: Batch, numbers: tuple[float, ...]) -> Any:
                return self._traced_step(_one(device), state, batch, numbers)

            def steps(states: tuple, batches: tuple, numbers: tuple) -> tuple:
                points = zip(states, batches, numbers, strict=True)
                stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
                stepped = jax.vmap(step)(*stacked)
                return tuple(_entry(stepped, n) for n in range(len(states)))

            function = steps if together else step
            self._compiled_steps[device, together] = compiled(function, donate_argnums=0)
        return self._compiled_steps[device, together]

    # ---- inside the programs ----

    def _with(self, numbers: Sequence[Any]) -> tuple[Config, Task]:
        """The config and the task with traced numbers."""
        if not self._ranges:
            return self._config, self._task
        values = {
            key: number if key in ARITHMETIC else Number(number, *limits)
            for (key, limits), number in zip(self._ranges.items(), numbers, strict=True)
        }
        config = with_values(self._config, values)
        return config, config.build_task(self._task.known) if self._task_varies else self._task

    def _traced_new_state(self, seed: jax.Array, numbers: Sequence[Any]) -> TrainState:
        config, task = self._with(numbers)
        optimizer = build_optimizer(config.optimizer, lambda step: 0.0)
        averages = self._config.optimizer.averages
        triggered = self._config.optimizer.average_patience > 0
        return new_state(task, optimizer, averages, seed, triggered)[1]

    def _traced_step(
        self, mesh: Mesh, state: TrainState, batch: Batch, numbers: Sequence[Any]
    ) -> tuple[TrainState, StepMetrics]:
        config, task = self._with(numbers)
        graph = split(_in_training(task))[0] if self._task_varies else self.graph
        schedule = build_schedule(config.optimizer, config.train.num_steps)
        optimizer = build_optimizer(config.optimizer, schedule)
        step = step_function(
            task, graph, optimizer, schedule, config.optimizer.ema_decay, mesh,
            config.train.accumulate,
        )  # fmt: skip
        return step(state, batch)

    def _module(self, variables: Any, numbers: Sequence[Any]) -> Any:
        """A module with traced numbers and the given arrays."""
        module = self._with(numbers)[1].build(nnx.Rngs(0))
        module.eval()
        return nnx.merge(nnx.graphdef(module), variables)

    def _traced_call(
        self, variables: Any, numbers: Sequence[Any], args: tuple, inputs: dict[str, Any]
    ) -> Any:
        return self._module(variables, numbers)(*args, **inputs)

    def _traced_initial_carry(self, variables: Any, rows: int, numbers: Sequence[Any]) -> Carry:
        return self._module(variables, numbers).initial_carry(rows)


class _SharedModel(Compiled):
    """A model in evaluation mode whose compiled calls take its config numbers as arguments."""

    def __init__(self, programs: SharedPrograms, numbers: tuple[float, ...], model: Compiled):
        self.graph, self.state = model.graph, model.state
        self._programs, self._numbers = programs, numbers

    def initial_carry(self, rows: int) -> Carry:
        return self._programs._initial_carry(self.state, rows, self._numbers)

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        return self._programs._called(self.state, self._numbers, args, inputs)


def _one(device: jax.Device) -> Mesh:
    return Mesh([device], (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))  # type: ignore[bad-argument-type]


def _entry(stacked: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[number], stacked)


def _in_training(task: Task) -> nnx.Module:
    model = task.build(nnx.Rngs(0))
    model.train()
    return model


class Lockstep:
    """Takes one step of several points in one program, as soon as each of them requests one.

    Each point trains in its own thread and calls :meth:`take_step`, which waits for the others.

    Args:
      step: the compiled step, whose arguments and results are tuples with one entry per point.
      points: the number of points.
      came: a list of signals.

    Attributes:
      signals: the content of ``came`` before the last step, so that all points see the same
        signals.
    """

    def __init__(self, step: Callable, points: int, came: Sequence[int] = ()):
        self._step, self._points, self._came = step, points, came
        self.signals: list[int] = []
        self._turn = threading.Condition()
        self._asked: list[tuple] = []
        self._answers: list[Any] = []

    def take_step(self, *asked: Any) -> tuple[TrainState, StepMetrics]:
        """One point's step: maps state, batch and numbers to the next state and the metrics."""
        with self._turn:
            mine, answers = len(self._asked), self._answers
            self._asked.append(asked)
            self._take_if_complete()
            self._turn.wait_for(lambda: bool(answers))
        answer = answers[mine]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def leave(self) -> None:
        """Removes one point, which takes no further steps."""
        with self._turn:
            self._points -= 1
            self._take_if_complete()

    def _take_if_complete(self) -> None:
        if not self._asked or len(self._asked) < self._points:
            return
        self.signals[:] = self._came
        try:
            self._answers.extend(self._step(*zip(*self._asked, strict=True)))
        except Exception as error:
            self._answers.extend([error] * len(self._asked))
        self._asked, self._answers = [], []
        self._turn.notify_all()
