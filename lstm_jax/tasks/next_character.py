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
from flax import nnx

from lstm_jax.data import cut_text, fetch, ngram_loss, python_reference, read_text, stream_windows
from lstm_jax.data.language import CODECS
from lstm_jax.data.tokens import UNKNOWN
from lstm_jax.errors import UserError, expect
from lstm_jax.models import Model
from lstm_jax.tasks.base import Batch, Columns, Metrics, Task
from lstm_jax.tasks.language import continued, loss_of_lines, stream_losses, text_metrics
from lstm_jax.tasks.language_config import CHARACTERS, LanguageModelConfig, TextData
from lstm_jax.tasks.sampling import Filters

NGRAM_ORDER = 5


@dataclasses.dataclass(frozen=True)
class NextCharacter(Task):
    """Predicts each character (or word, or subword) of a text from all previous ones.

    Training uses truncated backpropagation through time: each of ``lanes`` rows reads its part of
    the text window by window, and the state after one window is the initial state of the next.
    Evaluation reads the validation text once, as one stream from the initial state.  Losses are in
    nats per token; by default (``data.tokens``), a token is a character.

    Raises:
      UserError: the text is missing, empty, not UTF-8, or too short for one window.

    References:
      Alex Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850,
      2013, section 3; Tomas Mikolov et al., "Recurrent neural network based language model",
      Interspeech 2010 (truncated backpropagation through time).
    """

    data: TextData
    model: LanguageModelConfig
    sampling = Filters

    def __post_init__(self) -> None:
        train, validation = (len(split) for split in self._split)
        needed, text = self.data.lanes * self.data.window, self.data.text
        name = f"data.text: {text}: {self.unit} of the training split"
        expect(train >= needed, name, f"at least data.lanes * data.window = {needed}", train)
        name = f"data.validation_fraction: {text}: {self.unit} of the validation split"
        expect(validation >= 2, name, "at least 2", validation)
        self.model.check()

    # ---- data ----

    @property
    def unit(self) -> str:  # type: ignore[bad-override]
        return self.data.tokens

    @property
    def loss_unit(self) -> str:  # type: ignore[bad-override]
        return f"nats a {self.data.tokens.removesuffix('s')}"

    @functools.cached_property
    def text(self) -> str:
        """The whole text."""
        if self.data.text == "python_reference":
            return python_reference()
        if self.data.text == "tiny_shakespeare":
            return read_text(fetch("tiny_shakespeare/input.txt"))
        return read_text(self.data.text)

    @functools.cached_property
    def _texts(self) -> tuple[str, str]:
        """The training text and the validation text."""
        whole_words = self.data.tokens != CHARACTERS
        return cut_text(self.text, self.data.validation_fraction, whole_words=whole_words)

    def metadata(self) -> dict[str, Any]:
        """``vocabulary``, the sorted characters of the text, or ``tokenizer``; and ``opening``.

        A tokenizer of words or subwords is trained only on the training split.  The opening
        replaces an empty prompt: a line end, or the first character of a text without line ends.
        """
        opening = {"opening": "\n" if "\n" in self.text else self.text[0]}
        kind = CODECS[self.data.tokens]
        if self.data.tokens == CHARACTERS:
            return kind.train(self.text) | opening
        try:
            return kind.train(self._texts[0], self.data.vocabulary_size) | opening
        except UserError as error:
            raise UserError(f"data.{error}") from error

    @functools.cached_property
    def codec(self) -> Any:
        """Converts text to tokens and back; one of :data:`lstm_jax.data.language.CODECS`."""
        return CODECS[self.data.tokens](self.known)

    @functools.cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        train, validation = self._texts
        return self.codec.encode(train), self.codec.encode(validation)

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

    def build(self, rngs: nnx.Rngs) -> Model:
        return self.model.build(len(self.codec), rngs)

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        start = batch["start"]  # where a row does not continue that of the previous batch
        carry = jax.tree.map(
            lambda first, leaf: jnp.where(start.reshape(-1, *[1] * (leaf.ndim - 1)), first, leaf),
            model.initial_carry(len(start)),
            carry,
        )
        return self.model.loss(model, carry, batch, rngs)

    # ---- metrics ----

    def evaluate(self, model: Any, split: str) -> Metrics:
        """:meth:`_metrics` of the split as one stream, and its percentage of unknown words."""
        metrics = self._metrics(float(stream_losses(model, self._split[1]).mean()))
        if self.data.tokens == "words":
            metrics["unknown"] = float((self._split[1][1:] == UNKNOWN).mean())
        return metrics

    def _metrics(self, loss: float) -> Metrics:
        """Converts a mean loss on the validation split, given its first token, to several units."""
        count, text = len(self._split[1]) - 1, self._texts[1]
        text = text[self.codec.ends(text)[0] :]
        metrics = text_metrics(loss, count, text)
        if self.data.tokens == CHARACTERS:
            return {"loss": loss, "bits": loss / float(np.log(2)), **metrics}
        return {"loss": loss, "perplexity": float(np.exp(loss)), **metrics}

    def baselines(self, split: str) -> dict[str, Metrics]:
        train, validation = self._split
        # As in `evaluate`, the first token is given.
        train, validation = np.append(train, validation[:1]), validation[1:]
        loss = ngram_loss(train, validation, len(self.codec), NGRAM_ORDER)
        return {f"{NGRAM_ORDER}-gram, Witten-Bell": self._metrics(loss)}

    # ---- new text ----

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """Mean loss of each line of a UTF-8 file in nats per token, read as one stream.

        The file's first token is given; all others, including line ends, are predicted.
        """
        text = read_text(source) if source else self._texts[1]
        losses = stream_losses(model, self._encoded(text, str(source), 2))
        columns = loss_of_lines(losses, self.codec.ends(text), text)
        return {self.unit if name == "tokens" else name: column for name, column in columns.items()}

    def generate(
        self, model: Any, *, prompt: str, length: int, temperature: float, seed: int, **filters: Any
    ) -> Iterator[str]:
        """Yields the prompt, then ``length`` more tokens, one by one."""
        given, kept = (
            self._encoded(prompt or self.known["opening"], "prompt", 1),
            Filters(**filters),
        )
        tokens = continued(model, given, length, temperature, seed, kept, self.codec.excluded)
        return itertools.chain([prompt], self.codec.decode(tokens, given if prompt else given[:0]))

    def _encoded(self, text: str, name: str, least: int) -> np.ndarray:
        try:
            tokens = self.codec.encode(text)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        expect(len(tokens) >= least, name, f"at least {least} {self.unit}", len(tokens))
        return tokens
