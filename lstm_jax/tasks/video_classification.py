"""Video classification: one label for a whole video, given as an array of frames."""

import dataclasses
import functools
import pathlib
from typing import Any

import grain
import jax
import numpy as np
import optax
from flax import nnx

from lstm_jax.data import Videos, check_size, digest, read_videos, shuffled, unit_range
from lstm_jax.errors import expect
from lstm_jax.models import VideoClassifier
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.plots import confusion_matrix
from lstm_jax.tasks.scores import class_columns, class_metrics, confusion_counts
from lstm_jax.tasks.video_classification_data import (
    LabelledVideoData,
    VideoClassifierConfig,
    sizes,
)

ROWS = 32  # videos per call of a model


@dataclasses.dataclass(frozen=True)
class VideoClassification(Task):
    """Predicts the class of a video; the videos of a file may differ in length.

    Raises:
      UserError: a file is missing or broken, or the two files do not match.

    References:
      Jeff Donahue et al., "Long-term Recurrent Convolutional Networks for Visual Recognition and
      Description", CVPR 2015.
    """

    data: LabelledVideoData
    model: VideoClassifierConfig
    unit = "videos"
    loss_unit = "nats a video"

    def __post_init__(self) -> None:
        rows, size = len(self._videos["train"].labels), self.data.batch_size
        expect(rows >= size, "data.batch_size", f"at most the {rows} training videos", size)
        for split in self.splits:
            some = "a share that holds out at least one video"
            share = getattr(self.data, f"{split}_fraction")
            expect(len(self._videos[split].labels), f"data.{split}_fraction", some, share)
        self.model.check_layers(self.model.frame_features)

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("validation", "test") if self.data.validation_fraction else ("test",)

    @functools.cached_property
    def _videos(self) -> dict[str, Videos]:
        return self.data.read()

    def metadata(self) -> dict[str, Any]:
        """``classes`` in the order of the logits, and ``frame_shape``: height, width, channels."""
        train = self._videos["train"]
        return {"classes": [*train.classes], "frame_shape": [*train.frames.shape[2:]]}

    @functools.cached_property
    def fingerprint(self) -> str:
        return digest(*(x for v in self._videos.values() for x in (v.frames, v.lengths, v.labels)))

    def batches(self, seed: int) -> grain.MapDataset:
        train = self._videos["train"]
        arrays = {"frames": train.frames, "lengths": train.lengths, "labels": train.labels}
        return shuffled(arrays, self.data.batch_size, seed)

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> VideoClassifier:
        options = self.model
        return VideoClassifier(
            tuple(self.known["frame_shape"]), len(self.known["classes"]), sizes(options.channels),
            options.frame_features, options.hidden_size, options.num_layers,
            cell=options.cell_factory, pooling=options.pooling, dropout=options.dropout,
            dtype=options.dtype, rngs=rngs,
        )  # fmt: skip

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        frames, lengths = unit_range(batch["frames"]), batch["lengths"]
        first = model.initial_carry(len(frames))
        _, outputs = model(first, frames=frames, lengths=lengths, rngs=rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["labels"])
        return losses.mean(), carry

    # ---- metrics ----

    def evaluate(self, model: Any, split: str) -> Metrics:
        """``loss`` in nats, ``accuracy`` and ``macro F1`` in percent."""
        videos = self._videos[split]
        return class_metrics(video_logits(model, videos), videos.labels)

    def baselines(self, split: str) -> dict[str, Metrics]:
        most_common = np.bincount(self._videos["train"].labels).argmax()
        share = float((self._videos[split].labels == most_common).mean())
        return {"always the most common class": {"accuracy": 100.0 * share}}

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """The most likely class of each video, and the probability of each class.

        ``source`` is a .npz file of ``frames`` ``[N, T, height, width, channels]``.
        """
        videos = self._videos["test"] if source is None else read_videos(source, labelled=False)
        check_size(videos, self.known["frame_shape"], f"{source}")
        logits = video_logits(model, videos)
        probabilities = np.asarray(jax.nn.softmax(logits))
        columns = class_columns(logits.argmax(-1), probabilities, self.known["classes"])
        return {"video": np.arange(1, len(logits) + 1), **columns}

    def plots(self, model: Any) -> Plots:
        """The confusion matrix of the test split."""
        test, classes = self._videos["test"], self.known["classes"]
        predicted = video_logits(model, test).argmax(-1)
        counts = confusion_counts(test.labels, predicted, len(classes))
        yield "confusion", confusion_matrix(counts, classes, self.unit)


def video_logits(model: Any, videos: Videos) -> np.ndarray:
    """The class scores of videos, computed in calls of equal shape, float32 ``[N, C]``."""
    count = len(videos.lengths)
    size, found = min(ROWS, count), []
    for start in range(0, count, size):
        part = videos.rows(np.arange(start, start + size) % count)
        _, outputs = model(
            model.initial_carry(size), frames=unit_range(part.frames), lengths=part.lengths
        )
        found.append(np.asarray(outputs["logits"]))
    return np.concatenate(found)[:count]
