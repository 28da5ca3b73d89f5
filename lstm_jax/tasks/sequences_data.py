"""The section ``[data]`` of tasks on labelled sequences: the files and their contents."""

import dataclasses
import pathlib
from collections.abc import Sequence

from lstm_jax.config import Section, option
from lstm_jax.data import (
    LabelledSequences,
    SequenceColumns,
    fetch,
    last_of_each,
    read_sequences,
)

VOWELS = "japanese_vowels"


@dataclasses.dataclass(frozen=True)
class SequencesData(Section):
    """Section ``[data]`` of task ``classification``."""

    train: str = option(VOWELS, f"{VOWELS}, or a .ts, CSV or .npz file", path_or=(VOWELS,))
    test: str = option(
        "", "like data.train; if empty, test_fraction of a file, or the test set of a data set",
        path_or=(VOWELS,),
    )  # fmt: skip
    test_fraction: float = option(
        0.2, "fraction of each class held out from data.train if data.test is empty",
        above=0, below=1,
    )  # fmt: skip
    id_column: str = option("id", "CSV: the column with one value for all rows of a sequence")
    label_column: str = option("label", "CSV: the column with the class of a sequence")
    order_column: str = option("", "CSV: orders a sequence's rows; if empty, as in the file")
    feature_columns: str = option(
        "", "CSV: the input columns, as a,b,c; if empty, all other columns of numbers"
    )
    validation_fraction: float = option(
        0.0, "fraction of each class held out from training to choose the best checkpoint",
        at_least=0, below=1,
    )  # fmt: skip
    batch_size: int = option(32, "sequences per training step", at_least=1)

    def columns(self, features: Sequence[str]) -> SequenceColumns:
        """The meaning of the columns of a CSV file, with these features."""
        return SequenceColumns(
            self.id_column, self.label_column, self.order_column, tuple(features)
        )

    def read(self) -> tuple[LabelledSequences, LabelledSequences]:
        """The sequences for training and validation, and those for the test.

        Raises:
          UserError: a file is missing or broken, or the test file does not match the training file.
        """
        test = self.test or (VOWELS if self.train == VOWELS else "")
        names = [name.strip() for name in self.feature_columns.split(",") if name.strip()]
        first = read_sequences(_path(self.train, "TRAIN"), self.columns(names))
        if test:
            columns = self.columns(first.features)
            return first, read_sequences(_path(test, "TEST"), columns, first.classes)
        held_out = last_of_each(first.labels, self.test_fraction)
        return first.rows(~held_out), first.rows(held_out)


def _path(source: str, part: str) -> str | pathlib.Path:
    vowels = f"japanese_vowels/JapaneseVowels_{part}.ts"
    return fetch(vowels) if source == VOWELS else source
