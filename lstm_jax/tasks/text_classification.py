"""Text classification: the class of a text, such as the sentiment of a sentence."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lstm_jax.data import Tokenizer, bucketed, length_bounds, padded
from lstm_jax.data.labelled_text import LabelledText
from lstm_jax.data.tokens import UNKNOWN
from lstm_jax.data.vectors import WordVectors, read_vectors
from lstm_jax.errors import expect
from lstm_jax.models.text_classifier import TextClassifier, pretrained
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.ngrams import ngram_classifier
from lstm_jax.tasks.plots import confusion_matrix
from lstm_jax.tasks.scores import class_columns, class_metrics, confusion_counts, logits_of
from lstm_jax.tasks.text_options import LabelledTextData, TextClassifierConfig
from lstm_jax.tasks.text_page import text_page


@dataclasses.dataclass(frozen=True)
class TextClassification(Task):
    """Predicts the class of a text.

    Raises:
      UserError: a file is missing or broken, a text is empty or too long, or there are fewer than
        two classes or fewer texts than a batch.

    References:
      Kai Sheng Tai, Richard Socher, Christopher Manning, "Improved Semantic Representations From
      Tree-Structured Long Short-Term Memory Networks", ACL 2015 (among others, bidirectional LSTMs
      on the Stanford Sentiment Treebank, trained on all phrases).
    """

    data: LabelledTextData
    model: TextClassifierConfig
    unit = "texts"
    loss_unit = "nats a text"
    reads_text = True
    criterion, maximize = "accuracy", True

    def __post_init__(self) -> None:
        data, train = self.data, self._texts["train"]
        rows, classes = len(train.texts), ", ".join(train.classes)
        expect(len(train.classes) > 1, f"data.train: {data.train}", "at least two classes", classes)
        texts = f"at most the {rows} training texts"
        expect(rows >= data.batch_size, "data.batch_size", texts, data.batch_size)
        for split in self.splits:
            some = "a share that holds out at least one string"
            share = getattr(data, f"{split}_fraction")
            expect(self._texts[split].texts, f"data.{split}_fraction", some, share)
        size, found = self.model.embedding_size, self.model.vectors and self._vectors.table.shape[1]
        expect(not found or found == size, "model.vectors", f"vectors of {size} numbers", found)
        self.model.check_layers(size)
        _ = self._encoded  # reports an empty or long text before training

    # ---- data ----

    @functools.cached_property
    def _texts(self) -> dict[str, LabelledText]:
        return self.data.read()

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(split for split in ("validation", "test") if split in self._texts)

    def metadata(self) -> dict[str, Any]:
        """``classes`` in the order of the logits, and the ``tokenizer`` as JSON."""
        train = self._texts["train"]
        tokenizer = self.data.tokenizer(train.texts)
        return {"classes": [*train.classes], "tokenizer": tokenizer.to_json()}

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with the vocabulary of the training texts."""
        return Tokenizer.from_json(self.known["tokenizer"])

    @functools.cached_property
    def _vectors(self) -> WordVectors:
        return read_vectors(self.model.vectors, self.tokenizer.tokens)

    @functools.cached_property
    def _encoded(self) -> dict[str, list[np.ndarray]]:
        return {
            name: self.data.encode(self.tokenizer, found) for name, found in self._texts.items()
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        parts = (part for x in self._texts.values() for part in (*x.texts, x.labels.tobytes()))
        return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()

    def notes(self) -> list[str]:
        train, size = self._texts["train"], len(self.tokenizer)
        counts = zip(train.classes, np.bincount(train.labels), strict=True)
        classes = ", ".join(f"{count:,} {name}" for name, count in counts)
        unknown = [
            f"{100 * (np.concatenate(self._encoded[split]) == UNKNOWN).mean():.1f} % of {split}"
            for split in self.splits
        ]
        lines = [f"{len(train.texts):,} training texts: {classes}"]
        lines.append(f"{size:,} {self.data.tokens}; unknown: {', '.join(unknown)}")
        if self.model.vectors:
            share = f"{self._vectors.found.sum():,} of {size:,} {self.data.tokens}"
            lines.append(f"{share} have a vector in {self.model.vectors}")
        return lines

    def batches(self, seed: int) -> grain.MapDataset:
        rows, labels = self._encoded["train"], self._texts["train"].labels
        lengths = np.array([len(row) for row in rows])

        def batch(chosen: tuple[np.ndarray, int]) -> Batch:
            tokens, steps = padded([rows[n] for n in chosen[0]], chosen[1])
            return {"tokens": tokens, "lengths": steps, "labels": labels[chosen[0]]}

        bounds = length_bounds(lengths.max())
        return bucketed(lengths, bounds, self.data.batch_size, seed).map(batch)

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> TextClassifier:
        options = self.model
        return TextClassifier(
            len(self.tokenizer), len(self.known["classes"]), options.embedding_size,
            options.hidden_size, options.num_layers, cell=options.cell_factory,
            bidirectional=options.bidirectional, pooling=options.pooling, unknown=UNKNOWN,
            word_dropout=options.word_dropout, embedding_dropout=options.embedding_dropout,
            dropout=options.dropout, dtype=options.dtype,
            embedding_init=pretrained(lambda: self._vectors) if options.vectors else None,
            rngs=rngs,
        )  # fmt: skip

    @functools.cached_property
    def _weights(self) -> np.ndarray:
        """The weight of each class in the loss, with mean 1 over the training texts."""
        count = len(self.known["classes"])
        if self.data.class_weights == "equal":
            return np.ones(count, np.float32)
        labels = self._texts["train"].labels
        return (len(labels) / (count * np.bincount(labels, minlength=count))).astype(np.float32)

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        _, outputs = model((), tokens=batch["tokens"], lengths=batch["lengths"], rngs=rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["labels"])
        return (losses * jnp.asarray(self._weights)[batch["labels"]]).mean(), carry

    # ---- metrics ----

    def evaluate(self, model: Any, split: str) -> Metrics:
        """``loss`` in nats, ``accuracy`` and ``macro F1`` in percent."""
        return class_metrics(logits_of(model, self._encoded[split]), self._texts[split].labels)

    def baselines(self, split: str) -> dict[str, Metrics]:
        found, count = self._texts[split], len(self.known["classes"])
        most_common = np.bincount(self._texts["train"].labels).argmax()
        always = class_metrics(np.eye(count)[np.full(len(found.texts), most_common)], found.labels)
        del always["loss"]  # this method has no probabilities
        logistic = class_metrics(self._regression(found.texts), found.labels)
        return {"always the most common class": always, "logistic regression, 1-2-grams": logistic}

    @functools.cached_property
    def _regression(self) -> Callable[[list[str]], np.ndarray]:
        train = self._texts["train"]
        return ngram_classifier(train.texts, train.labels, len(train.classes))

    def predict(self, model: Any, source: pathlib.Path | list[str] | None) -> Columns:
        """The most likely class of each text, class probabilities, and counts of unread tokens.

        ``unknown`` counts the tokens that are not in the vocabulary, and ``cut`` those past
        ``data.max_length``.
        """
        found = self._texts["test"] if source is None else self.data.read_new(source)
        rows, whole = self.data.encode(self.tokenizer, found), self.tokenizer.encode(found.texts)
        logits = logits_of(model, rows)
        probabilities = np.asarray(jax.nn.softmax(logits))
        return {
            "text": found.texts,
            **class_columns(logits.argmax(-1), probabilities, self.known["classes"]),
            "unknown": np.array([(row == UNKNOWN).sum() for row in rows]),
            "cut": np.array([len(a) - len(b) for a, b in zip(whole, rows, strict=True)]),
        }

    def plots(self, model: Any) -> Plots:
        """The confusion matrix of the test split, and a page of its texts in colours."""
        test, rows = self._texts["test"], self._encoded["test"]
        predicted = logits_of(model, rows).argmax(-1)
        counts = confusion_counts(test.labels, predicted, len(test.classes))
        yield "confusion", confusion_matrix(counts, test.classes, self.unit)
        yield "texts", text_page(model, self.tokenizer, test, rows)
