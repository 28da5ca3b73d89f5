"""What a task must give, and nothing else: the training loop knows tasks by this alone."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax

if TYPE_CHECKING:
    import grain
    from matplotlib.figure import Figure

Params = Any
Carry = Any  # a pytree of arrays [B, ...]; () where batches have nothing to do with one another
Batch = Mapping[str, Any]  # arrays [B, ...]
Figures = dict[str, float]  # figures of merit by name


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

    def evaluate(self, params: Params, split: str) -> Figures:
        """Figures over a whole split; ``"loss"`` is the one by which the best is chosen."""
        ...

    def baselines(self, split: str) -> dict[str, Figures]:
        """What simple methods reach on the same split, by their names."""
        ...

    def pictures(self, params: Params) -> Iterator[tuple[str, "Figure"]]:
        """Pictures of what was learned, with file names; none is fine."""
        ...


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
