"""Next character: a language model of one text, read as one continuous stream."""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lstm_jax.config import LARGEST_SIZE, RecurrentConfig, Section, option
from lstm_jax.data import encode, fetch, ngram_loss, python_reference, read_text, stream_windows
from lstm_jax.errors import UserError, expect
from lstm_jax.models import LanguageModel
from lstm_jax.tasks.base import Batch, Columns, Metrics, Task
from lstm_jax.tasks.language import continued, stream_losses

NGRAM_ORDER = 5


@dataclasses.dataclass(frozen=True)
class TextData(Section):
    """Section ``[data]`` of task ``next_character``."""

    text: str = option(
        "python_reference", "python_reference, tiny_shakespeare, or the path of a UTF-8 file",
        path_or=("python_reference", "tiny_shakespeare"),
    )  # fmt: skip
    validation_fraction: float = option(
        0.1, "share of the text, at its end, held out for validation", above=0, below=1
    )
    lanes: int = option(32, "rows of a batch, each reading its own part of the text", at_least=1)
    window: int = option(64, "characters a row reads (and gradients flow back) a step", at_least=1)


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig(RecurrentConfig):
    """Section ``[model]`` of task ``next_character``."""

    hidden_size: int = option(
        384, "hidden features of each LSTM layer", at_least=1, at_most=LARGEST_SIZE
    )
    embedding_size: int = option(
        64, "features of a character's embedding", at_least=1, at_most=LARGEST_SIZE
    )
    tied_embeddings: bool = option(False, "read characters out by the matrix that embeds them")
    input_dropout: float = option(0.0, "dropout on embeddings", at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class NextCharacter(Task):
    """Predicts each character of a text from all before it.

    Training is truncated backpropagation through time: each of ``lanes`` rows reads its part
    of the text window by window, and the state after one window is the state before the
    next.  Evaluation reads the validation text once, as one stream from the initial state.
    Losses are in nats per character.

    Raises:
      UserError: the text is missing, empty, not UTF-8, or too short for one window.

    References:
      Alex Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850,
      2013, section 3; Tomas Mikolov et al., "Recurrent neural network based language model",
      Interspeech 2010 (truncated backpropagation through time).
    """

    data: TextData
    model: LanguageModelConfig
    unit = "characters"
    loss_unit = "nats a character"

    def __post_init__(self) -> None:
        train, validation = (len(split) for split in self._split)
        needed, text = self.data.lanes * self.data.window, self.data.text
        name = f"data.text: {text}: characters of the training split"
        expect(train >= needed, name, f"at least data.lanes * data.window = {needed}", train)
        name = f"data.validation_fraction: {text}: characters of the validation split"
        expect(validation >= 2, name, "at least 2", validation)
        self.model.check_layers(self.model.embedding_size)

    # ---- data ----

    @functools.cached_property
    def text(self) -> str:
        """The whole text."""
        if self.data.text == "python_reference":
            return python_reference()
        if self.data.text == "tiny_shakespeare":
            return read_text(fetch("tiny_shakespeare/input.txt"))
        return read_text(self.data.text)

    def metadata(self) -> dict[str, Any]:
        """``vocabulary``, the characters of the text, sorted; ``opening``, the empty prompt's."""
        vocabulary = "".join(sorted(set(self.text)))
        opening = "\n" if "\n" in vocabulary else self.text[0]
        return {"vocabulary": vocabulary, "opening": opening}

    @functools.cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        tokens = encode(self.text, self.known["vocabulary"])
        cut = round(len(tokens) * (1 - self.data.validation_fraction))
        return tokens[:cut], tokens[cut:]

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def batch_size(self) -> int:
        return self.data.lanes

    @property
    def units_per_step(self) -> int:
        return self.data.lanes * self.data.window

    def batches(self, seed: int) -> grain.MapDataset:
        return stream_windows(self._split[0], self.data.lanes, self.data.window, seed)

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> LanguageModel:
        options = self.model
        return LanguageModel(
            len(self.known["vocabulary"]), options.embedding_size, options.hidden_size,
            options.num_layers, cell=options.cell_factory,
            tied_embeddings=options.tied_embeddings, input_dropout=options.input_dropout,
            dropout=options.dropout, dtype=options.dtype, rngs=rngs,
        )  # fmt: skip

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        start = batch["start"]  # where a row does not continue the one of the batch before
        carry = jax.tree.map(
            lambda first, leaf: jnp.where(start.reshape(-1, *[1] * (leaf.ndim - 1)), first, leaf),
            model.initial_carry(len(start)),
            carry,
        )
        carry, outputs = model(carry, tokens=batch["inputs"], rngs=rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            outputs["logits"], batch["targets"]
        )
        return losses.mean(), carry

    # ---- metrics ----

    def evaluate(self, model: Any, split: str) -> Metrics:
        """``loss`` in nats and ``bits`` per character, over the whole split as one stream."""
        loss = float(stream_losses(model, self._split[1]).mean())
        return {"loss": loss, "bits": loss / float(np.log(2))}

    def baselines(self, split: str) -> dict[str, Metrics]:
        train, validation = self._split
        # As in `evaluate`, the first character is given.
        train, validation = np.append(train, validation[:1]), validation[1:]
        loss = ngram_loss(train, validation, len(self.known["vocabulary"]), NGRAM_ORDER)
        name = f"{NGRAM_ORDER}-gram, Witten-Bell"
        return {name: {"loss": loss, "bits": loss / float(np.log(2))}}

    # ---- new text ----

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """Mean loss of each line of a UTF-8 file in nats per character, read as one stream.

        The file's first character is given; all others, line ends included, are predicted.
        """
        text = read_text(source) if source else self.text[len(self._split[0]) :]
        tokens = self._encoded(text, str(source))
        expect(len(tokens) >= 2, f"{source}", "at least 2 characters", len(tokens))
        losses = stream_losses(model, tokens)
        lines = text.splitlines(keepends=True)
        ends = np.cumsum([len(line) for line in lines]) - 1  # the first character has no loss
        parts = np.split(losses, ends[:-1])
        return {
            "line": np.arange(1, len(lines) + 1),
            "characters": np.array([len(part) for part in parts]),
            "loss": np.array([part.mean() if len(part) else np.nan for part in parts]),
            "text": [line.rstrip("\r\n") for line in lines],
        }

    def generate(
        self, model: Any, *, prompt: str, length: int, temperature: float, seed: int
    ) -> Iterator[str]:
        """The prompt, then ``length`` more characters, one by one.

        An empty prompt stands for a new line, or for the text's first character where it has no
        lines.
        """
        given = self._encoded(prompt or self.known["opening"], "prompt")
        tokens = continued(model, given, length, temperature, seed)
        return itertools.chain([prompt], (self.known["vocabulary"][token] for token in tokens))

    def _encoded(self, text: str, name: str) -> np.ndarray:
        try:
            return encode(text, self.known["vocabulary"])
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
