"""The base class of tasks: data, loss and metrics.  The training loop only uses this interface."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
from flax import nnx

from lstm_jax.config import Section
from lstm_jax.data import digest

if TYPE_CHECKING:
    import grain
    from matplotlib.figure import Figure

Batch = Mapping[str, Any]  # arrays [B, ...] by name
Metrics = dict[str, float]  # by name
Columns = dict[str, Any]  # sequences of equal length by name
Plots = Iterator[tuple[str, "Figure | str | bytes"]]  # with the names of their files


@dataclasses.dataclass(frozen=True)
class Task:
    """Data, loss and metrics of something to learn: a frozen dataclass of config sections.

    A subclass defines :meth:`build`, :meth:`batches`, :meth:`loss` and :meth:`evaluate`; the rest
    has defaults.  Every model that a task receives is called like the module that it builds.
    :meth:`loss` receives that module in training mode.  Other methods receive the trained model in
    evaluation mode with compiled calls (:class:`lstm_jax.models.Compiled`), or an exported one.

    :mod:`lstm_jax.tasks.protocols` describes optional methods: :class:`Predicts`,
    :class:`Generates` and others.

    Attributes:
      data: the section ``[data]`` of a config.
      model: the section ``[model]``.
      unit: what is counted per second, such as ``"characters"``.
      loss_unit: the unit of the loss, for the axis of its plot.
      splits: the splits that :meth:`evaluate` accepts.  If ``"validation"`` is one of them, it
        selects the best checkpoint.
      reads_text: whether :meth:`Predicts.predict` also accepts a list of strings.
      reads_files: whether it also accepts a list of files.
      sampling: a section of additional options of ``generate``, passed as keywords.
      criterion: the validation metric that selects the best checkpoint.
      maximize: whether the highest value of this metric is the best, rather than the lowest.

    Example:
      >>> import grain, optax
      >>> class Parity(Task):
      ...     unit = "sequences"
      ...     batch_size = 4
      ...     def build(self, rngs):
      ...         return nnx.Linear(2, 1, rngs=rngs)
      ...     def batches(self, seed):
      ...         bits = np.random.default_rng(seed).integers(0, 2, (100, 2))
      ...         rows = {"bits": bits.astype(np.float32), "parity": bits.sum(1) % 2}
      ...         source = grain.MapDataset.range(100).repeat()
      ...         return source.map(lambda n: {k: v[n] for k, v in rows.items()}).batch(4)
      ...     def loss(self, model, carry, batch, rngs):
      ...         scores = model(batch["bits"])[:, 0]
      ...         losses = optax.sigmoid_binary_cross_entropy(scores, batch["parity"])
      ...         return losses.mean(), carry
      ...     def evaluate(self, model, split):
      ...         return {"loss": float(self.loss(model, (), self.batches(1)[0], None)[0])}
      >>> task = Parity()
      >>> sorted(task.evaluate(task.build(nnx.Rngs(0)), "validation"))
      ['loss']
    """

    data: Section = dataclasses.field(default_factory=Section)
    model: Section = dataclasses.field(default_factory=Section)
    unit: ClassVar[str] = "rows"
    loss_unit: ClassVar[str] = "training objective"
    splits: ClassVar[tuple[str, ...]] = ("validation",)
    reads_text: ClassVar[bool] = False
    reads_files: ClassVar[bool] = False
    sampling: ClassVar[type[Section]] = Section
    criterion: ClassVar[str] = "loss"
    maximize: ClassVar[bool] = False

    # ---- methods that a subclass defines ----

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """A new module: a :class:`lstm_jax.models.Model`, or any other Flax module."""
        raise NotImplementedError(f"{type(self).__name__} does not define build")

    def batches(self, seed: int) -> "grain.MapDataset":
        """An endless data set of training batches, the k-th a function of k and the seed."""
        raise NotImplementedError(f"{type(self).__name__} does not define batches")

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        """Mean loss over the rows of a batch (or of one device's part of it), and the new carry.

        Args:
          model: the module, in training mode.
          carry: the carry that the previous step returned; at the first step the model's initial
            carry (``()`` if it has none).
          batch: arrays ``[B, ...]``.
          rngs: random streams of this step and device.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define loss")

    def evaluate(self, model: Any, split: str) -> Metrics:
        """Metrics over a whole split, including ``"loss"`` and :attr:`criterion`."""
        raise NotImplementedError(f"{type(self).__name__} does not define evaluate")

    # ---- methods with defaults ----

    @property
    def batch_size(self) -> int:
        """B, the number of rows in a training batch; by default ``data.batch_size``."""
        return self.data.batch_size  # type: ignore[attr-defined]

    @property
    def units_per_step(self) -> int:
        """The number of units in a training batch; by default its rows."""
        return self.batch_size

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of a training batch, from which the memory of a step is estimated.

        By default, those of the first batch.
        """
        arrays = jax.tree.map(np.asarray, self.batches(0)[0])
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)

    @property
    def fingerprint(self) -> str:
        """A digest of the data: a run resumes only with unchanged data.

        By default, the digest of the first batch.
        """
        first: Any = self.batches(0)[0]
        return digest(*(np.asarray(first[name]) for name in sorted(first)))

    def baselines(self, split: str) -> dict[str, Metrics]:
        """Metrics of simple methods on the same split, by the names of the methods."""
        return {}

    def notes(self) -> list[str]:
        """Remarks that readers of the results need, one per line; stored with the results."""
        return []

    def described(self) -> list[str]:
        """Facts that the task found in its data or inferred from them; printed before training."""
        return []

    def plots(self, model: Any) -> Plots:
        """Plots of the trained model's behaviour, with file names.

        A plot is a figure, a whole HTML page (a string), or the content of another kind of file,
        such as a GIF, whose name then has its suffix: ``("frames.gif", b"GIF89a...")``.
        """
        return iter(())

    def metadata(self) -> dict[str, Any]:
        """The facts about the data that are needed to build the model and to predict; JSON values.

        They are stored in the run's folder and with an exported model.  ``scaling`` maps the name
        of an input or output to the ``mean`` and ``deviation`` of its last axis; the task defines
        all other entries.
        """
        return {}

    def exported(self) -> dict[str, Any]:
        """Entries of an exported model's manifest besides its programs; by default the metadata."""
        return self.known

    # ---- methods that the library calls ----

    @functools.cached_property
    def known(self) -> dict[str, Any]:
        """The metadata, from the data or, for a trained run, from the run's folder.

        A task that uses this attribute can predict after its training data have been deleted.
        """
        return json.loads(json.dumps(self.metadata()))

    @classmethod
    def restored(cls, known: Mapping[str, Any], **sections: Section) -> Any:
        """Restores a run's task from its sections and stored metadata, without reading its data."""
        task = object.__new__(cls)
        for name, value in {**sections, "known": dict(known)}.items():
            object.__setattr__(task, name, value)
        return task
