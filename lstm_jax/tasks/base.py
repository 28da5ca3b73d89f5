"""What a task must give, and nothing else: the training loop knows tasks by this alone."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax

from lstm_jax.interop.deploy import Function

if TYPE_CHECKING:
    import grain
    from matplotlib.figure import Figure

Params = Any
Carry = Any  # a pytree of arrays [B, ...]; () where batches have nothing to do with one another
State = Any  # a pytree of arrays [B, ...]: what a model hands from one step in time to the next
Batch = Mapping[str, Any]  # arrays [B, ...]
Outputs = dict[str, Any]  # arrays [B, ...] by name
Figures = dict[str, float]  # figures of merit by name


class Model(Protocol):
    """What computes a task's outputs: the task with its parameters, or what was exported of it."""

    def initial_state(self, rows: int) -> State:
        """The state where so many sequences begin."""
        ...

    def sequence(self, state: State, **inputs: Any) -> tuple[State, Outputs]:
        """The state after a stretch of each sequence, and the outputs."""
        ...


class Task(Protocol):
    """Something to learn: data, model, loss and metrics.

    A task is a frozen dataclass of config sections (``data``, ``model``); it reads its data
    when it is made.  One file a task; ``TASKS`` lists them.
    """

    loss_unit: str  # of the loss, for the axis of its curve
    unit: str  # what is counted in "per second": "characters", "windows", "sequences"
    splits: tuple[str, ...]  # what `evaluate` knows; "validation", if there, picks the best

    @property
    def batch_size(self) -> int:
        """B, the rows of a training batch."""
        ...

    @property
    def units_per_step(self) -> int:
        """How many of ``unit`` a training batch holds."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest of the data: a run goes on only where it is what the run began with."""
        ...

    def batches(self, seed: int) -> "grain.MapDataset":
        """An endless data set of training batches, the k-th a function of k and the seed."""
        ...

    def init(self, key: jax.Array) -> Params:
        """New parameters."""
        ...

    def initial_carry(self) -> Carry:
        """What the first training step is handed; each later one gets what the last returned."""
        ...

    def loss(
        self, params: Params, carry: Carry, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Carry]:
        """Mean training loss of a batch (or of a part of its rows), and the new carry."""
        ...

    @property
    def functions(self) -> dict[str, Function]:
        """What the model computes, as it can run alone: ``sequence``, and ``step`` for a stream."""
        ...

    def initial_state(self, params: Params, rows: int) -> State:
        """The state where so many sequences begin, arrays ``[rows, ...]``."""
        ...

    def about(self) -> dict[str, Any]:
        """What else is needed to run the model alone, as plain values for a JSON file.

        ``scaling`` has, by the name of an input or output, the ``mean`` and ``deviation`` of its
        last axis; all other entries are the task's own.
        """
        ...

    def evaluate(self, params: Params, split: str) -> Figures:
        """Figures over a whole split; ``"loss"`` is the one by which the best is chosen."""
        ...

    def score(self, model: Model, split: str) -> Figures:
        """The figures of :meth:`evaluate` for whatever computes the outputs."""
        ...

    def baselines(self, split: str) -> dict[str, Figures]:
        """What simple methods reach on the same split, by their names."""
        ...

    def pictures(self, params: Params) -> Iterator[tuple[str, "Figure"]]:
        """Pictures of what was learned, with file names; none is fine."""
        ...


@dataclasses.dataclass(frozen=True)
class Trained:
    """A task's model with its parameters."""

    task: Any
    params: Params

    def initial_state(self, rows: int) -> State:
        return self.task.initial_state(self.params, rows)

    def sequence(self, state: State, **inputs: Any) -> tuple[State, Outputs]:
        return _sequence(self.task, self.params, state, inputs)


@functools.partial(jax.jit, static_argnames="task")
def _sequence(
    task: Any, params: Params, state: State, inputs: dict[str, Any]
) -> tuple[State, Outputs]:
    return task.functions["sequence"].apply(params, state, **inputs)


@runtime_checkable
class Samples(Protocol):
    """A task that can also write something of its own."""

    def sample(
        self, params: Params, prompt: str, length: int, temperature: float, seed: int
    ) -> str:
        """The prompt carried on by ``length`` units; of length 0, it is only checked.

        Raises:
          UserError: the prompt is none that the task could carry on.
        """
        ...


class Inspected(NamedTuple):
    """What a task's recurrent layers read, to be looked into.

    Attributes:
      layer: the layers.
      params: their parameters.
      xs: their inputs, ``[T, B, D]``.
      what: what these are, in words.
      lengths: integers ``[B]``, where rows end early.
      text: the character behind each input of row 0, where there are characters.
    """

    layer: Any
    params: Params
    xs: jax.Array
    what: str
    lengths: Any = None
    text: str | None = None


@runtime_checkable
class Inspects(Protocol):
    """A task whose recurrent layers can be looked into."""

    def inspected(self, params: Params, text: str | None = None) -> Inspected:
        """What the layers read of a text, or of some validation data.

        Raises:
          UserError: the task reads no text, or none such.
        """
        ...
