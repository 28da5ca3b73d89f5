"""Sequence classification: one label for a whole sequence, of whatever length."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax.data import LabelledSequences, fetch, read_ts, shuffled
from lstm_jax.errors import UserError
from lstm_jax.interop.deploy import Function
from lstm_jax.sequence import LSTM, dropout
from lstm_jax.sequence.layers import LSTMStates
from lstm_jax.tasks.base import Batch, Figures, Inspected, Model, Outputs, Params, Trained
from lstm_jax.tasks.options import Section, option
from lstm_jax.tasks.recurrent import RecurrentModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSPECTED_SEQUENCES = 32


@dataclasses.dataclass(frozen=True)
class SequencesData(Section):
    """Section ``[data]`` of task ``classification``."""

    train: str = option("japanese_vowels", "japanese_vowels, or the path of a .ts file")
    test: str = option("japanese_vowels", "japanese_vowels, or the path of a .ts file")
    validation_fraction: float = option(
        0.0, "share of each class kept from training to choose the best checkpoint by",
        at_least=0, below=1,
    )  # fmt: skip
    batch_size: int = option(32, "sequences a training step", at_least=1)


@dataclasses.dataclass(frozen=True)
class ClassifierModel(RecurrentModel):
    """Section ``[model]`` of task ``classification``."""

    pooling: str = option(
        "mean", "what of the top layer is read: its mean or last output",
        choices=("mean", "last"),
    )  # fmt: skip
    dropout: float = option(0.5, "dropout on the outputs of every layer", at_least=0, below=1)
    input_noise: float = option(
        0.3, "deviation of the noise added to inputs in training, in their own deviations",
        at_least=0,
    )  # fmt: skip
    label_smoothing: float = option(
        0.0, "share of the target spread over all classes", at_least=0, below=1
    )


class ClassifierState(NamedTuple):
    """What is known of a sequence after some of its steps.

    Attributes:
      lstm: the state of each layer.
      read: what is read of the top layer's outputs so far, their sum or the last; ``[B, H]``.
      steps: how many steps there were, int32 ``[B]``.
    """

    lstm: LSTMStates
    read: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True)
class Classification:
    """Tells the class of a sequence; rows of a batch have their own lengths.

    Features are standardised with mean and deviation over all training steps.  The top
    layer's outputs are averaged over a sequence's own steps (or the last of them taken) and
    mapped to one score a class.

    Raises:
      UserError: a file is missing or broken, or the two files do not fit each other.

    References:
      Mineichi Kudo, Jun Toyama, Masaru Shimbo, "Multidimensional curve classification using
      passing-through regions", Pattern Recognition Letters 20, 1999 (Japanese vowels: 9
      speakers, 270 utterances for training, 370 for the test).
    """

    data: SequencesData
    model: ClassifierModel
    unit = "sequences"
    loss_unit = "nats a sequence"

    def __post_init__(self) -> None:
        train, test = self._files
        if train.xs.shape[-1] != test.xs.shape[-1]:
            raise UserError(
                f"data.test: {self.data.test}: expected {train.xs.shape[-1]} dimensions as in "
                f"the training file, got {test.xs.shape[-1]}"
            )
        if train.classes != test.classes:
            raise UserError(
                f"data.test: {self.data.test}: expected the classes {', '.join(train.classes)} "
                f"of the training file, got {', '.join(test.classes)}"
            )
        rows = int((~self._held_out).sum())
        if rows < self.data.batch_size:
            raise UserError(
                f"data.batch_size: expected at most the {rows} training sequences, "
                f"got {self.data.batch_size}"
            )
        if self.data.validation_fraction and not self._held_out.any():
            raise UserError(
                f"data.validation_fraction: expected a share that keeps at least one of "
                f"{len(train.labels)} sequences, got {self.data.validation_fraction}"
            )
        constant = np.flatnonzero(self._moments[1] == 0)
        if constant.size:
            raise UserError(f"data.train: {self.data.train}: dimension {constant[0]} is constant")
        self.model.check_layers(train.xs.shape[-1])

    @property
    def splits(self) -> tuple[str, ...]:
        return ("validation", "test") if self.data.validation_fraction else ("test",)

    @functools.cached_property
    def _files(self) -> tuple[LabelledSequences, LabelledSequences]:
        def read(source: str, part: str) -> LabelledSequences:
            if source == "japanese_vowels":
                return read_ts(fetch(f"japanese_vowels/JapaneseVowels_{part}.ts"))
            return read_ts(source)

        return read(self.data.train, "TRAIN"), read(self.data.test, "TEST")

    @functools.cached_property
    def _held_out(self) -> np.ndarray:
        """Which sequences of the training file are for validation: the last of each class."""
        labels = self._files[0].labels
        held_out = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            held_out[rows[len(rows) - round(len(rows) * self.data.validation_fraction) :]] = True
        return held_out

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each dimension, over all steps to train on."""
        train = self._files[0]
        valid = np.arange(train.xs.shape[1]) < train.lengths[:, None]
        steps = train.xs[valid & ~self._held_out[:, None]].astype(np.float64)
        return steps.mean(0), np.where(np.ptp(steps, 0) > 0, steps.std(0), 0.0)

    @functools.cached_property
    def _splits(self) -> dict[str, LabelledSequences]:
        train, test = self._files
        mean, deviation = self._moments

        def rows(sequences: LabelledSequences, chosen: np.ndarray) -> LabelledSequences:
            return sequences._replace(
                xs=sequences.xs[chosen],
                lengths=sequences.lengths[chosen],
                labels=sequences.labels[chosen],
            )

        return {
            name: split._replace(xs=((split.xs - mean) / deviation).astype(np.float32))
            for name, split in {
                "train": rows(train, ~self._held_out),
                "validation": rows(train, self._held_out),
                "test": test,
            }.items()
        }

    def _split(self, name: str) -> LabelledSequences:
        return self._splits[name]

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for sequences in self._files:
            for array in (sequences.xs, sequences.lengths, sequences.labels):
                digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def batch_size(self) -> int:
        return self.data.batch_size

    @property
    def units_per_step(self) -> int:
        return self.data.batch_size

    @property
    def _lstm(self) -> LSTM:
        return self.model.layers

    def batches(self, seed: int) -> grain.MapDataset:
        train = self._split("train")
        arrays = {"xs": train.xs, "lengths": train.lengths, "labels": train.labels}
        return shuffled(arrays, self.data.batch_size, seed)

    def init(self, key: jax.Array) -> Params:
        """``lstm``, ``w`` ``(H, classes)``, ``b``."""
        lstm_key, key = jax.random.split(key)
        train = self._split("train")
        shape = (self._lstm.output_size, len(train.classes))
        return {
            "lstm": self._lstm.init(lstm_key, train.xs.shape[-1]),
            "w": jax.nn.initializers.glorot_uniform()(key, shape),
            "b": jnp.zeros(shape[-1]),
        }

    def initial_carry(self) -> tuple:
        return ()

    def logits(
        self, params: Params, xs: jax.Array, lengths: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Scores of the classes.

        Args:
          params: as from :meth:`init`.
          xs: standardised, ``[B, T, D]``; what lies past a row's length has no influence.
          lengths: integers from 1 to T, ``[B]``.
          key: random key for noise and dropout; None for neither.

        Returns:
          ``[B, classes]``.
        """
        state = self.initial_state(params, len(xs))
        return self.read(params, state, xs, lengths, key)[1]["logits"]

    def initial_state(self, params: Params, rows: int) -> ClassifierState:
        """The state of sequences of which nothing was read."""
        return ClassifierState(
            lstm=self._lstm.initial_state(params["lstm"], (rows,)),
            read=jnp.zeros((rows, self._lstm.output_size)),
            steps=jnp.zeros(rows, jnp.int32),
        )

    def read(
        self,
        params: Params,
        state: ClassifierState,
        xs: jax.Array,
        lengths: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[ClassifierState, Outputs]:
        """Some more steps of each sequence: the state after them, and ``logits`` of all so far.

        Arguments are those of :meth:`logits`, lengths from 0 to T.
        """
        noise_key, lstm_key, key = [None] * 3 if key is None else jax.random.split(key, 3)
        if noise_key is not None:
            xs = xs + self.model.input_noise * jax.random.normal(noise_key, xs.shape)
        lstm, ys = self._lstm.apply(
            params["lstm"], xs.swapaxes(0, 1), state.lstm, lengths=lengths, key=lstm_key
        )
        ys, steps = ys.astype(jnp.float32), state.steps + lengths
        if self.model.pooling == "mean":
            read = state.read + ys.sum(0)  # outputs past a row's end are zero
            pooled = read / jnp.maximum(steps, 1)[:, None]
        else:
            last = jnp.take_along_axis(ys, jnp.maximum(lengths - 1, 0)[None, :, None], 0)[0]
            pooled = read = jnp.where(lengths[:, None] > 0, last, state.read)
        logits = dropout(pooled, self.model.dropout, key) @ params["w"] + params["b"]
        return ClassifierState(lstm, read, steps), {"logits": logits}

    def loss(
        self, params: Params, carry: tuple, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple]:
        logits = self.logits(params, batch["xs"], batch["lengths"], key)
        targets = jax.nn.one_hot(batch["labels"], logits.shape[-1])
        targets = optax.smooth_labels(targets, self.model.label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean(), carry

    @property
    def functions(self) -> dict[str, Function]:
        size = self._split("train").xs.shape[-1]
        return {
            name: Function(
                self.read, {"xs": (f"b, {steps}, {size}", "float32"), "lengths": ("b", "int32")}
            )
            for name, steps in {"step": "1", "sequence": "t"}.items()
        }

    def about(self) -> dict[str, Any]:
        """``classes`` in the order of the logits, and the ``scaling`` of what is read."""
        mean, deviation = self._moments
        scaling = {"xs": {"mean": mean.tolist(), "deviation": deviation.tolist()}}
        return {"classes": list(self._split("train").classes), "scaling": scaling}

    def evaluate(self, params: Params, split: str) -> Figures:
        """``loss`` in nats and ``accuracy`` in percent."""
        return self.score(Trained(self, params), split)

    def score(self, model: Model, split: str) -> Figures:
        sequences = self._split(split)
        logits = _logits(model, sequences)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, sequences.labels)
        right = logits.argmax(-1) == sequences.labels
        return {"loss": float(losses.mean()), "accuracy": 100.0 * float(right.mean())}

    def baselines(self, split: str) -> dict[str, Figures]:
        commonest = np.bincount(self._split("train").labels).argmax()
        share = float((self._split(split).labels == commonest).mean())
        return {"always the commonest class": {"accuracy": 100.0 * share}}

    def inspected(self, params: Params, text: str | None = None) -> Inspected:
        """The first sequences of the validation split, or of the test split."""
        if text is not None:
            raise UserError("--text: task classification reads no text")
        sequences = self._split(self.splits[0])
        lengths = sequences.lengths[:INSPECTED_SEQUENCES]
        xs = jnp.asarray(sequences.xs[: len(lengths)]).swapaxes(0, 1)
        what = f"{len(lengths)} sequences of the {self.splits[0]} split"
        return Inspected(self._lstm, params["lstm"], xs, what, lengths=lengths)

    def pictures(self, params: Params) -> Iterator[tuple[str, "Figure"]]:
        """The confusion matrix of the test split."""
        from matplotlib.figure import Figure

        test = self._split("test")
        guesses = _logits(Trained(self, params), test).argmax(-1)
        counts = np.zeros((len(test.classes),) * 2, int)
        np.add.at(counts, (test.labels, guesses), 1)
        shares = counts / counts.sum(1, keepdims=True).clip(min=1)
        figure = Figure(figsize=(6, 5.4), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                dark = shares[row, column] > 0.5
                axes.text(
                    column, row, str(count), ha="center", va="center",
                    color="white" if dark else "black",
                )  # fmt: skip
        axes.set_xticks(range(len(test.classes)), test.classes)
        axes.set_yticks(range(len(test.classes)), test.classes)
        axes.set_xlabel("told class")
        axes.set_ylabel("true class")
        right = 100 * np.trace(counts) / counts.sum()
        axes.set_title(f"test split: {right:.2f} % of {counts.sum()} sequences right")
        figure.colorbar(image, label="share of the true class")
        yield "confusion", figure


def _logits(model: Model, sequences: LabelledSequences) -> np.ndarray:
    state = model.initial_state(len(sequences.labels))
    _, outputs = model.sequence(state, xs=sequences.xs, lengths=sequences.lengths)
    return np.asarray(outputs["logits"])
