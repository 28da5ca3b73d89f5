"""The sections of task ``text_classification``: the texts, their tokens, and the model."""

import dataclasses
import pathlib

import numpy as np

from lstm_jax.config import LARGEST_SIZE, RecurrentConfig, Section, option
from lstm_jax.data import fetch
from lstm_jax.data.labelled_text import (
    LabelledText,
    joined,
    read_labelled_text,
    read_polarity,
    read_trees,
    stratified,
)
from lstm_jax.data.tokens import KINDS, SPECIAL, Tokenizer
from lstm_jax.errors import UserError, expect
from lstm_jax.models.text_classifier import POOLINGS

POLARITY = "rt_polarity"
TREES = {"train": "train", "validation": "dev", "test": "test"}  # files of the treebank
NAMES = ("sst2", "sst5", POLARITY)


@dataclasses.dataclass(frozen=True)
class LabelledTextData(Section):
    """Section ``[data]`` of task ``text_classification``."""

    train: str = option(
        "sst2", "sst2, sst5, rt_polarity, a .csv or .tsv file, or a folder with one folder of .txt "
        "files per class", path_or=NAMES,
    )  # fmt: skip
    validation: str = option(
        "", "like data.train; if empty, validation_fraction of it, or that of sst2 and sst5",
        path_or=NAMES,
    )  # fmt: skip
    test: str = option(
        "",
        "like data.train; if empty, test_fraction of it, or that of the named sets",
        path_or=NAMES,
    )
    validation_fraction: float = option(
        0.1, "fraction of each class held out to choose the best checkpoint; 0: none",
        at_least=0, below=1,
    )  # fmt: skip
    test_fraction: float = option(
        0.1, "fraction of each class held out for the test", above=0, below=1
    )
    text_column: str = option("text", "table: the column with the text")
    label_column: str = option("label", "table: the column with the class")
    encoding: str = option(
        "utf-8", "of files", choices=("utf-8", "utf-16", "latin-1", "cp1252")
    )  # fmt: skip
    phrases: bool = option(
        True, "sst2, sst5: train on every labelled phrase, not only on sentences"
    )
    sentence_repeats: int = option(
        1, "sst2, sst5: how often each whole sentence occurs in an epoch of phrases", at_least=1
    )
    tokens: str = option("words", "the units into which text is split", choices=KINDS)
    vocabulary_size: int = option(20_000, "largest number of tokens", at_least=len(SPECIAL) + 1)
    min_count: int = option(1, "smallest number of occurrences of a token in training", at_least=1)
    lowercase: bool = option(True, "whether case is ignored")
    max_length: int = option(256, "largest number of tokens in a text", at_least=1)
    too_long: str = option(
        "cut",
        "whether a longer text is cut to its first tokens or is an error",
        choices=("cut", "error"),
    )
    class_weights: str = option(
        "equal", "weights of texts in the loss; balanced: every class has the same total weight",
        choices=("equal", "balanced"),
    )  # fmt: skip
    batch_size: int = option(64, "texts per training step", at_least=1)

    def read(self) -> dict[str, LabelledText]:
        """The texts of each split.

        Raises:
          UserError: a file is missing or broken, or its classes differ from those in training.
        """
        trees = self.train if self.train in ("sst2", "sst5") else ""
        train, splits = self._source(self.train, "train"), {}
        for split, fraction in (
            ("test", self.test_fraction),
            ("validation", self.validation_fraction),
        ):
            if source := getattr(self, split) or trees:
                splits[split] = self._source(source, split, train.classes)
            elif fraction:
                held_out = stratified(train.labels, fraction)
                if split == "test" and self.train == POLARITY:
                    held_out = np.arange(len(train.texts)) % 10 == 9
                splits[split], train = train.rows(held_out), train.rows(~held_out)
        return {"train": train, **splits}

    def read_new(self, source: pathlib.Path | list[str]) -> LabelledText:
        """Texts without labels, to predict on."""
        if isinstance(source, list):
            expect(source, "text", "at least one string", "none")
            places = [f"text {n}" for n in range(1, len(source) + 1)]
            return LabelledText(source, np.zeros(len(source), np.int32), (), places)
        return self._read(source, labelled=False)

    def tokenizer(self, texts: list[str]) -> Tokenizer:
        """A tokenizer with the vocabulary of some texts."""
        try:
            return Tokenizer.train(
                texts, kind=self.tokens, vocabulary_size=self.vocabulary_size,
                min_count=self.min_count, lowercase=self.lowercase,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"data.{error}") from error

    def encode(self, tokenizer: Tokenizer, found: LabelledText) -> list[np.ndarray]:
        """The tokens of each text, at most ``max_length``.

        Raises:
          UserError: a text is empty, or is too long and must not be cut.
        """
        rows, most = tokenizer.encode(found.texts), self.max_length
        for row, text, place in zip(rows, found.texts, found.places, strict=True):
            expect(len(row) and text.strip(), place, "text", "an empty string")
            fits = len(row) <= most or self.too_long == "cut"
            expect(fits, place, f"at most data.max_length = {most} tokens", len(row))
        return [row[:most] for row in rows]

    def _source(self, source: str, split: str, classes: tuple[str, ...] = ()) -> LabelledText:
        if source == POLARITY:
            return read_polarity()
        if source in NAMES:
            path = fetch(f"sst_trees/{TREES[split]}.txt")
            polarity, training = source == "sst2", split == "train"
            found = read_trees(path, phrases=self.phrases and training, polarity=polarity)
            if training and self.sentence_repeats > 1:
                sentences = read_trees(path, polarity=polarity)
                found = joined([found, *[sentences] * (self.sentence_repeats - 1)])
            return found
        return self._read(source, classes=classes)

    def _read(
        self, path: str | pathlib.Path, classes: tuple[str, ...] = (), labelled: bool = True
    ) -> LabelledText:
        return read_labelled_text(
            path, text_column=self.text_column, label_column=self.label_column,
            encoding=self.encoding, classes=classes, labelled=labelled,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TextClassifierConfig(RecurrentConfig):
    """Section ``[model]`` of task ``text_classification``."""

    embedding_size: int = option(
        128, "features of a token's embedding", at_least=1, at_most=LARGEST_SIZE
    )
    bidirectional: bool = option(True, "whether layers read a text from both ends")
    pooling: str = option("max", "how the outputs of all steps are combined", choices=POOLINGS)
    word_dropout: float = option(
        0.1, "fraction of tokens that are dropped in training", at_least=0, below=1
    )
    embedding_dropout: float = option(0.5, "dropout on embeddings", at_least=0, below=1)
    dropout: float = option(0.5, "dropout on the outputs of every layer", at_least=0, below=1)
    vectors: str = option(
        "", "a GloVe or word2vec text file with initial vectors of the embeddings",
        path_or=("",),
    )  # fmt: skip
