"""Sequence classification: one label for a whole sequence of any length."""

import dataclasses
import functools
import pathlib
from typing import Any

import grain
import jax
import numpy as np
import optax
from flax import nnx

from lstm_jax.config import RecurrentConfig, option
from lstm_jax.data import LabelledSequences, digest, last_of_each, read_sequences, scaling, shuffled
from lstm_jax.errors import UserError, expect
from lstm_jax.models import Classifier
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.plots import confusion_matrix
from lstm_jax.tasks.scores import class_columns, confusion_counts
from lstm_jax.tasks.sequences_data import SequencesData


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(RecurrentConfig):
    """Section ``[model]`` of task ``classification``."""

    pooling: str = option(
        "mean", "output of the top layer that is read: the mean or the last",
        choices=("mean", "last"),
    )  # fmt: skip
    dropout: float = option(0.5, "dropout on the outputs of every layer", at_least=0, below=1)
    input_noise: float = option(
        0.3, "noise added to inputs in training, relative to their standard deviations",
        at_least=0,
    )  # fmt: skip
    label_smoothing: float = option(
        0.0,
        "label smoothing: fraction of the target that is spread over all classes",
        at_least=0,
        below=1,
    )


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Predicts the class of a sequence; each row of a batch has its own length.

    Features are standardised with the mean and deviation over all training steps.

    Raises:
      UserError: a file is missing or broken, or the two files do not match.

    References:
      Mineichi Kudo, Jun Toyama, Masaru Shimbo, "Multidimensional curve classification using
      passing-through regions", Pattern Recognition Letters 20, 1999 (Japanese vowels: 9
      speakers, 270 utterances for training, 370 for the test).
    """

    data: SequencesData
    model: ClassifierConfig
    unit = "sequences"
    loss_unit = "nats a sequence"

    def __post_init__(self) -> None:
        (train, test), data = self._files, self.data
        rows, share = int((~self._held_out).sum()), data.validation_fraction
        batch_size = f"at most the {rows} training sequences"
        expect(rows >= data.batch_size, "data.batch_size", batch_size, data.batch_size)
        some = f"a share that holds out at least one of {len(train.labels)} sequences"
        expect(not share or self._held_out.any(), "data.validation_fraction", some, share)
        expect(len(test.labels), "data.test_fraction", some, data.test_fraction)
        name = data.test or data.train
        self._check_format(test, f"data.test: {name}")
        constant = np.flatnonzero(np.array(self._scaling["deviation"]) == 0)
        if constant.size:
            raise UserError(f"data.train: {data.train}: dimension {constant[0]} is constant")
        self._check_numbers(train, f"data.train: {data.train}")
        self._check_numbers(test, f"data.test: {name}")
        self.model.check_layers(train.xs.shape[-1])

    # ---- data ----

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("validation", "test") if self.data.validation_fraction else ("test",)

    @functools.cached_property
    def _files(self) -> tuple[LabelledSequences, LabelledSequences]:
        return self.data.read()

    @functools.cached_property
    def _held_out(self) -> np.ndarray:
        """The sequences of the training file that are for validation: the last of each class."""
        return last_of_each(self._files[0].labels, self.data.validation_fraction)

    def metadata(self) -> dict[str, Any]:
        """``classes`` in the order of the logits, ``features`` and their ``scaling``."""
        train = self._files[0].rows(~self._held_out)
        scaled = {"xs": scaling.scaling_of(train.steps)}
        return {"classes": [*train.classes], "features": [*train.features], "scaling": scaled}

    @property
    def _scaling(self) -> scaling.Scaling:
        return self.known["scaling"]["xs"]

    def _check_format(self, sequences: LabelledSequences, name: str) -> None:
        size, classes = len(self._scaling["mean"]), ", ".join(self.known["classes"])
        found = sequences.xs.shape[-1]
        expect(found == size, name, f"{size} dimensions as in the training file", found)
        found = ", ".join(sequences.classes)
        fits = found == classes or not found  # a file to predict needs no labels
        expect(fits, name, f"the classes {classes} of the training file", found)

    def _check_numbers(self, sequences: LabelledSequences, name: str) -> None:
        scaling.check_numbers(sequences.steps, self._scaling, name, sequences.place)

    def _standardised(self, sequences: LabelledSequences) -> LabelledSequences:
        return sequences._replace(xs=scaling.standardised(sequences.xs, self._scaling))

    @functools.cached_property
    def _splits(self) -> dict[str, LabelledSequences]:
        train, test = self._files
        splits = {"train": train.rows(~self._held_out), "validation": train.rows(self._held_out)}
        return {name: self._standardised(x) for name, x in {**splits, "test": test}.items()}

    @functools.cached_property
    def fingerprint(self) -> str:
        return digest(*(x for file in self._files for x in (file.xs, file.lengths, file.labels)))

    def batches(self, seed: int) -> grain.MapDataset:
        train = self._splits["train"]
        arrays = {"xs": train.xs, "lengths": train.lengths, "labels": train.labels}
        return shuffled(arrays, self.data.batch_size, seed)

    # ---- model and loss ----
    def build(self, rngs: nnx.Rngs) -> Classifier:
        options = self.model
        return Classifier(
            len(self._scaling["mean"]), len(self.known["classes"]), options.hidden_size,
            options.num_layers, cell=options.cell_factory, pooling=options.pooling,
            dropout=options.dropout, dtype=options.dtype, rngs=rngs,
        )  # fmt: skip

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        xs, lengths, labels = batch["xs"], batch["lengths"], batch["labels"]
        xs = xs + self.model.input_noise * jax.random.normal(rngs.noise(), xs.shape)
        first = model.initial_carry(len(xs))
        _, outputs = model(first, xs=xs, lengths=lengths, rngs=rngs)
        targets = jax.nn.one_hot(labels, len(self.known["classes"]))
        targets = optax.smooth_labels(targets, self.model.label_smoothing)
        return optax.softmax_cross_entropy(outputs["logits"], targets).mean(), carry

    # ---- metrics ----

    def evaluate(self, model: Any, split: str) -> Metrics:
        """``loss`` in nats and ``accuracy`` in percent."""
        logits, labels = _logits(model, self._splits[split]), self._splits[split].labels
        cross_entropy = jax.jit(optax.softmax_cross_entropy_with_integer_labels)
        losses = np.asarray(cross_entropy(logits, labels), np.float64)
        right = logits.argmax(-1) == labels
        return {"loss": float(losses.mean()), "accuracy": 100.0 * float(right.mean())}

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """The most likely class of each sequence, and the probability of each class."""
        if source is None:
            sequences = self._files[1]
        else:
            columns = self.data.columns(self.known.get("features", ()))
            sequences = read_sequences(source, columns, labelled=False)
        self._check_format(sequences, str(source))
        self._check_numbers(sequences, str(source))
        logits = _logits(model, self._standardised(sequences))
        probabilities = np.asarray(jax.nn.softmax(logits))
        columns = class_columns(logits.argmax(-1), probabilities, self.known["classes"])
        return {"sequence": sequences.names, **columns}

    def baselines(self, split: str) -> dict[str, Metrics]:
        most_common = np.bincount(self._splits["train"].labels).argmax()
        share = float((self._splits[split].labels == most_common).mean())
        return {"always the most common class": {"accuracy": 100.0 * share}}

    def plots(self, model: Any) -> Plots:
        """The confusion matrix of the test split."""
        test = self._splits["test"]
        predicted = _logits(model, test).argmax(-1)
        counts = confusion_counts(test.labels, predicted, len(test.classes))
        yield "confusion", confusion_matrix(counts, test.classes)


def _logits(model: Any, sequences: LabelledSequences) -> np.ndarray:
    first = model.initial_carry(len(sequences.labels))
    _, outputs = model(first, xs=sequences.xs, lengths=sequences.lengths)
    return np.asarray(outputs["logits"])
