"""Human action recognition: what a person does, from the skeleton that a depth camera tracks."""

import dataclasses
import functools
import pathlib
from typing import Any

import grain
import jax
import numpy as np
import optax
from flax import nnx

from lstm_jax.data import ACTIONS, JOINTS, Recording, digest, scaling
from lstm_jax.errors import expect
from lstm_jax.models import BidirectionalClassifier, Classifier
from lstm_jax.tasks.action_data import ActionConfig, ActionData
from lstm_jax.tasks.animations import action_animation
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.plots import confusion_matrix
from lstm_jax.tasks.scores import class_columns, class_metrics, confusion_counts
from lstm_jax.tasks.warping import nearest

FEATURES = 6 * (JOINTS - 1)  # coordinates and velocities of each joint except the hip
ROWS = 256  # recordings that a model reads in one call


@dataclasses.dataclass(frozen=True)
class ActionRecognition(Task):
    """Predicts the action in a recording of a person who is not in the training data.

    Positions and velocities of joints, in coordinates of the body
    (:func:`lstm_jax.data.skeletons.body_coordinates`), are standardised with the mean and deviation
    over all training frames.  In training, a recording is randomly varied each time it is read.

    Raises:
      UserError: the recordings are missing or broken, or there are fewer of them than a batch.

    References:
      Wanqing Li, Zhengyou Zhang, Zicheng Liu, "Action Recognition Based on a Bag of 3D Points",
      CVPR Workshops 2010 (MSR Action3D: 20 actions, 10 subjects); Yong Du, Wei Wang, Liang Wang,
      "Hierarchical Recurrent Neural Network for Skeleton Based Action Recognition", CVPR 2015.
    """

    data: ActionData
    model: ActionConfig
    unit = "recordings"
    loss_unit = "nats a recording"
    criterion, maximize = "accuracy", True
    plot_formats = (".gif",)

    def __post_init__(self) -> None:
        rows, size = len(self._recordings["train"]), self.data.batch_size
        expect(rows >= size, "data.batch_size", f"at most the {rows} training recordings", size)
        self.model.check_layers(FEATURES)

    # ---- data ----

    @functools.cached_property
    def _recordings(self) -> dict[str, list[Recording]]:
        return self.data.read()

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("validation", "test") if self.data.validation_subjects.strip() else ("test",)

    def metadata(self) -> dict[str, Any]:
        """``classes`` in the order of the logits, and the ``scaling`` of features."""
        found = {x.action for rows in self._recordings.values() for x in rows}
        frames = [self.data.inputs(x.joints) for x in self._recordings["train"]]
        scaled = {"xs": scaling.scaling_of(np.concatenate(frames))}
        return {"classes": [ACTIONS[n] for n in sorted(found)], "scaling": scaled}

    @functools.cached_property
    def fingerprint(self) -> str:
        return digest(*(x.joints for rows in self._recordings.values() for x in rows))

    def _labels(self, recordings: list[Recording]) -> np.ndarray:
        classes = self.known["classes"]
        return np.array([classes.index(ACTIONS[x.action]) for x in recordings], np.int32)

    def _read(self, joints: np.ndarray) -> tuple[np.ndarray, int]:
        """The standardised features of a recording, ``[max_frames, 114]``, and their count."""
        steps = self.data.inputs(joints)
        padded = np.zeros((self.data.max_frames, FEATURES), np.float32)
        padded[: len(steps)] = scaling.standardised(steps, self.known["scaling"]["xs"])
        return padded, len(steps)

    def batches(self, seed: int) -> grain.MapDataset:
        train, data = self._recordings["train"], self.data
        labels = self._labels(train)

        def example(index: int, row: int) -> Batch:
            xs, length = self._read(data.varied(train[row].joints, (seed, index)))
            return {"xs": xs, "lengths": np.int32(length), "labels": labels[row]}

        order = grain.MapDataset.range(len(train)).shuffle(seed=seed).repeat()
        return order.map_with_index(example).batch(data.batch_size)

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> Classifier | BidirectionalClassifier:
        options, count = self.model, len(self.known["classes"])
        kind = BidirectionalClassifier if options.bidirectional else Classifier
        return kind(
            FEATURES, count, options.hidden_size, options.num_layers, cell=options.cell_factory,
            dropout=options.dropout, dtype=options.dtype, rngs=rngs,
        )  # fmt: skip

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        first, xs = model.initial_carry(len(batch["xs"])), batch["xs"]
        _, outputs = model(first, xs=xs, lengths=batch["lengths"], rngs=rngs)
        targets = jax.nn.one_hot(batch["labels"], len(self.known["classes"]))
        targets = optax.smooth_labels(targets, self.model.label_smoothing)
        return optax.softmax_cross_entropy(outputs["logits"], targets).mean(), carry

    # ---- metrics ----

    def _probabilities(self, model: Any, recordings: list[Recording]) -> np.ndarray:
        """Mean probabilities over varied copies, of which the first is unchanged; ``[N, C]``."""
        total = np.zeros((len(recordings), len(self.known["classes"])))
        for copy in range(self.data.copies):
            rows = [
                self._read(self.data.varied(x.joints, (copy, n)) if copy else x.joints)
                for n, x in enumerate(recordings)
            ]
            total += class_probabilities(model, rows)
        return total / self.data.copies

    def evaluate(self, model: Any, split: str) -> Metrics:
        """``loss`` in nats, ``accuracy`` and ``macro F1`` in percent."""
        recordings = self._recordings[split]
        probabilities = self._probabilities(model, recordings)
        return class_metrics(np.log(probabilities.clip(1e-30)), self._labels(recordings))

    def baselines(self, split: str) -> dict[str, Metrics]:
        train, labels = (self._labels(self._recordings[name]) for name in ("train", split))
        share = float((labels == np.bincount(train).argmax()).mean())
        found = train[nearest(self._every_second(split), self._every_second("train"))]
        return {
            "always the most common class": {"accuracy": 100.0 * share},
            "nearest neighbour, time warped": {"accuracy": 100.0 * float((found == labels).mean())},
        }

    def _every_second(self, split: str) -> list[np.ndarray]:
        """Every second frame of each recording, ``[T, 60]``."""
        return [x.joints[::2].reshape(-1, 3 * JOINTS) for x in self._recordings[split]]

    # ---- new data ----

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """The most likely action in each recording, and the probability of each action.

        ``source`` is a skeleton file, or a folder or archive of skeleton files.
        """
        found = self._recordings["test"] if source is None else self.data.read_new(source)
        probabilities, classes = self._probabilities(model, found), self.known["classes"]
        columns = class_columns(probabilities.argmax(-1), probabilities, classes)
        return {"recording": [x.name for x in found], **columns}

    def plots(self, model: Any) -> Plots:
        """The confusion matrix of the test split, and its first recording as an animation."""
        test, classes = self._recordings["test"], self.known["classes"]
        predicted = self._probabilities(model, test).argmax(-1)
        counts = confusion_counts(self._labels(test), predicted, len(classes))
        yield "confusion", confusion_matrix(counts, classes, self.unit)
        yield "action.gif", self._animation(model, test[0])

    def plot_file(self, model: Any, source: pathlib.Path) -> bytes:
        """An animation of the recording in a skeleton file."""
        return self._animation(model, self.data.read_new(source)[0])

    def _animation(self, model: Any, recording: Recording) -> bytes:
        """A recording, next to the probabilities after each frame, given the frames so far."""
        frames = range(1, len(recording.joints) + 1)
        rows = [self._read(recording.joints[:frame]) for frame in frames]
        probabilities = class_probabilities(model, rows)
        return action_animation(recording.joints, probabilities, self.known["classes"])


def class_probabilities(model: Any, rows: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Probabilities of classes, computed in calls of equal shape.

    Args:
      model: reads ``xs`` and ``lengths`` and returns ``logits``.
      rows: features ``[T, D]`` and the number of valid frames of each recording.

    Returns:
      float32 ``[N, C]``.
    """
    size, found = min(ROWS, len(rows)), []
    for start in range(0, len(rows), size):
        part = [rows[n % len(rows)] for n in range(start, start + size)]
        xs = np.stack([x for x, _ in part])
        lengths = np.array([length for _, length in part], np.int32)
        _, outputs = model(model.initial_carry(size), xs=xs, lengths=lengths)
        found.append(np.asarray(jax.nn.softmax(outputs["logits"])))
    return np.concatenate(found)[: len(rows)]
