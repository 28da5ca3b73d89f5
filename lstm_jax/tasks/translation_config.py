"""The sections of task ``translation``: its files, its model and its search."""

import dataclasses
from typing import NamedTuple

from flax import nnx

from lstm_jax.config import LARGEST_SIZE, RecurrentConfig, Section, option
from lstm_jax.config.transformer import check_transformer
from lstm_jax.data import fetch, read_parallel
from lstm_jax.errors import UserError, expect
from lstm_jax.models import EncoderDecoder, Seq2Seq, TransformerSeq2Seq
from lstm_jax.tasks.translating import Search

NAMED = ("multi30k.en", "multi30k.de")


class Pairs(NamedTuple):
    """Sentences and their translations, in equal numbers."""

    source: list[str]
    target: list[str]


@dataclasses.dataclass(frozen=True)
class ParallelData(Section):
    """Section ``[data]`` of task ``translation``."""

    source: str = option(
        NAMED[0], f"{' or '.join(NAMED)}, or a file with one sentence per line, plain or .gz",
        path_or=NAMED,
    )  # fmt: skip
    target: str = option(NAMED[1], "their translations, line by line", path_or=NAMED)
    validation_source: str = option(
        "", "validation sentences; if empty, those of a data set, or a fraction of data.source",
        path_or=("",),
    )  # fmt: skip
    validation_target: str = option("", "their translations", path_or=("",))
    validation_fraction: float = option(
        0.05, "fraction of the pairs, at the end, held out if there is no validation file",
        above=0, below=1,
    )  # fmt: skip
    test_source: str = option(
        "", "test sentences; if empty, the test set of a data set, or none",
        path_or=("",),
    )  # fmt: skip
    test_target: str = option("", "their translations", path_or=("",))
    vocabulary_size: int = option(
        8000, "size of the subword vocabulary, which both languages share", at_least=300
    )
    max_tokens: int = option(
        80,
        "largest number of subwords in a sentence; longer pairs are left out of training",
        at_least=2,
    )
    batch_size: int = option(64, "pairs per training step", at_least=1)
    buckets: int = option(
        6, "number of groups of pairs by length; a batch is from one group", at_least=1
    )

    @property
    def has_test(self) -> bool:
        """Whether there is a test split."""
        return bool(self.test_source) or self.source in NAMED

    def read(self) -> dict[str, Pairs]:
        """The sentence pairs by split.

        Raises:
          UserError: a file is missing or broken, or two files do not match.
        """
        for split in ("validation", "test"):
            source, target = (getattr(self, f"{split}_{side}") for side in ("source", "target"))
            if bool(source) != bool(target):
                name = f"{split}_{'target' if source else 'source'}"
                raise UserError(f"data.{name}: expected a file, got none for {source or target}")
        if (self.source in NAMED) != (self.target in NAMED):
            raise UserError(
                f"data.target: expected translations of {self.source}, got {self.target}"
            )
        train = self._pairs(self.source, self.target, "train")
        splits = {"train": train}
        if self.validation_source:
            splits["validation"] = self._pairs(self.validation_source, self.validation_target)
        elif self.source in NAMED:
            splits["validation"] = self._pairs(self.source, self.target, "val")
        else:
            count = max(1, round(len(train.source) * self.validation_fraction))
            if count == len(train.source):
                raise UserError(f"data.source: {self.source}: expected at least 2 pairs, got 1")
            splits["train"] = Pairs(*(side[:-count] for side in train))
            splits["validation"] = Pairs(*(side[-count:] for side in train))
        if self.test_source:
            splits["test"] = self._pairs(self.test_source, self.test_target)
        elif self.source in NAMED:
            splits["test"] = self._pairs(self.source, self.target, "test_2016_flickr")
        return splits

    def _pairs(self, source: str, target: str, part: str = "") -> Pairs:
        """The pairs of two files, or of one part of a data set."""
        files = [
            fetch("multi30k/{}.{}.gz".format(part, name.rpartition(".")[2]))
            if name in NAMED
            else name
            for name in (source, target)
        ]
        return Pairs(*read_parallel(*files))


@dataclasses.dataclass(frozen=True)
class TranslationConfig(RecurrentConfig):
    """Section ``[model]`` of task ``translation``."""

    kind: str = option("lstm", "layers of both sides", choices=("lstm", "transformer"))
    hidden_size: int = option(
        256, "hidden features of each decoder layer and encoder direction",
        at_least=1, at_most=LARGEST_SIZE,
    )  # fmt: skip
    embedding_size: int = option(
        256, "features of a subword's embedding", at_least=1, at_most=LARGEST_SIZE
    )
    attention: str = option(
        "multiplicative", "lstm: scores of the attention", choices=("multiplicative", "additive")
    )
    input_feeding: bool = option(True, "lstm: the decoder also reads its last attentional vector")
    num_heads: int = option(
        0, "transformer: heads of each attention", at_least=0, at_most=LARGEST_SIZE
    )
    tied_embeddings: bool = option(True, "one matrix for source, target and output subwords")
    input_dropout: float = option(0.2, "dropout on embeddings", at_least=0, below=1)
    label_smoothing: float = option(
        0.1,
        "label smoothing: fraction of the target that is spread over all subwords",
        at_least=0,
        below=1,
    )
    beam_size: int = option(
        5, "number of hypotheses in the beam search; 1: greedy", at_least=1, at_most=1000
    )
    length_penalty: float = option(1.0, "alpha of Wu et al. 2016; 0: none", at_least=0)
    coverage_penalty: float = option(0.0, "beta of Wu et al. 2016; 0: none", at_least=0)

    @property
    def search(self) -> Search:
        """The options of the search for translations."""
        return Search(self.beam_size, self.length_penalty, self.coverage_penalty)

    def check(self) -> None:
        """Raises :class:`UserError` if the values do not fit the kind of model."""
        with_kind = f'with model.kind "{self.kind}"'
        if self.kind == "lstm":
            expect(self.num_heads == 0, "model.num_heads", f"0 {with_kind}", self.num_heads)
            self.check_layers(self.embedding_size)
            return
        expect(self.num_heads > 0, "model.num_heads", f"at least 1 {with_kind}", 0)
        check_transformer(self, without=("cell", "attention", "input_feeding", "tied_embeddings"))

    def build(self, num_tokens: int, rngs: nnx.Rngs) -> EncoderDecoder:
        """A new model with a vocabulary of this size."""
        if self.kind == "transformer":
            return TransformerSeq2Seq(
                num_tokens, self.hidden_size, self.num_layers, num_heads=self.num_heads,
                input_dropout=self.input_dropout, dropout=self.dropout, dtype=self.dtype, rngs=rngs,
            )  # fmt: skip
        return Seq2Seq(
            num_tokens, self.embedding_size, self.hidden_size, self.num_layers,
            cell=self.cell_factory, attention=self.attention, input_feeding=self.input_feeding,
            tied_embeddings=self.tied_embeddings, input_dropout=self.input_dropout,
            dropout=self.dropout, dtype=self.dtype, rngs=rngs,
        )  # fmt: skip
