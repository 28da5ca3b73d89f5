"""Sections of the config of a language model: its text, and its layers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lstm_jax.config import LARGEST_SIZE, RecurrentConfig, Section, option
from lstm_jax.config.transformer import check_transformer
from lstm_jax.data.language import CODECS
from lstm_jax.errors import expect
from lstm_jax.models import LanguageModel, Model, TransformerLanguageModel
from lstm_jax.tasks.base import Batch

CHARACTERS = "characters"


@dataclasses.dataclass(frozen=True)
class TextData(Section):
    """Section ``[data]`` of task ``next_character``."""

    text: str = option(
        "python_reference", "python_reference, tiny_shakespeare, or the path of a UTF-8 file",
        path_or=("python_reference", "tiny_shakespeare"),
    )  # fmt: skip
    tokens: str = option(CHARACTERS, "the units into which text is split", choices=tuple(CODECS))
    vocabulary_size: int = option(
        10_000, "words, subwords: the largest number of tokens",
        at_least=5, at_most=LARGEST_SIZE,
    )  # fmt: skip
    validation_fraction: float = option(
        0.1, "fraction of the text, at its end, held out for validation", above=0, below=1
    )
    lanes: int = option(32, "rows of a batch, each reading its own part of the text", at_least=1)
    window: int = option(
        64, "tokens per row and step, through which gradients flow back", at_least=1
    )


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig(RecurrentConfig):
    """Section ``[model]`` of a language model."""

    kind: str = option(
        "lstm", "kind of layers between embedding and logits", choices=("lstm", "transformer")
    )
    hidden_size: int = option(
        384, "hidden features of each layer", at_least=1, at_most=LARGEST_SIZE
    )
    embedding_size: int = option(
        64, "features of a token's embedding", at_least=1, at_most=LARGEST_SIZE
    )
    tied_embeddings: bool = option(False, "use the embedding matrix for the logits as well")
    input_dropout: float = option(0.0, "dropout on embeddings", at_least=0, below=1)
    embedding_dropout: float = option(
        0.0,
        "lstm: fraction of tokens whose embedding is zero throughout a batch",
        at_least=0,
        below=1,
    )
    activation_penalty: float = option(
        0.0, "lstm: factor of the mean square of the last layer's outputs, after dropout (AR)",
        at_least=0,
    )  # fmt: skip
    temporal_penalty: float = option(
        0.0, "lstm: factor of the mean square of their change per step, before dropout (TAR)",
        at_least=0,
    )  # fmt: skip
    num_heads: int = option(
        0, "transformer: heads of each attention", at_least=0, at_most=LARGEST_SIZE
    )
    context: int = option(
        0, "transformer: number of previous tokens that each token attends to",
        at_least=0, at_most=LARGEST_SIZE,
    )  # fmt: skip

    def check(self) -> None:
        """Raises :class:`UserError` if the values do not fit the kind of model."""
        with_kind = f'with model.kind "{self.kind}"'
        if self.kind == "lstm":
            for name in ("num_heads", "context"):
                value = getattr(self, name)
                expect(value == 0, f"model.{name}", f"0 {with_kind}", value)
            self.check_layers(self.embedding_size)
            return
        for name in ("num_heads", "context"):
            expect(getattr(self, name) > 0, f"model.{name}", f"at least 1 {with_kind}", 0)
        check_transformer(
            self, without=("cell", "embedding_dropout", "activation_penalty", "temporal_penalty")
        )

    def build(self, num_tokens: int, rngs: nnx.Rngs) -> Model:
        """A new model with a vocabulary of this size."""
        if self.kind == "transformer":
            return TransformerLanguageModel(
                num_tokens, self.hidden_size, self.num_layers, num_heads=self.num_heads,
                context=self.context, tied_embeddings=self.tied_embeddings,
                input_dropout=self.input_dropout, dropout=self.dropout, dtype=self.dtype, rngs=rngs,
            )  # fmt: skip
        return LanguageModel(
            num_tokens, self.embedding_size, self.hidden_size, self.num_layers,
            cell=self.cell_factory, tied_embeddings=self.tied_embeddings,
            input_dropout=self.input_dropout, embedding_dropout=self.embedding_dropout,
            dropout=self.dropout, dtype=self.dtype, rngs=rngs,
        )  # fmt: skip

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        """Mean loss of a batch of windows, with the penalties of activations, and the new carry.

        With the outputs y_t of the last layer, their dropout d, the activation penalty α and the
        temporal penalty β::

            cross entropy + α mean((d y_t)²) + β mean((y_t - y_{t-1})²)

        Args:
          model, carry, rngs: as for :meth:`lstm_jax.tasks.Task.loss`.
          batch: ``inputs`` and ``targets``, int32 ``[B, T]``.

        References:
          Stephen Merity, Nitish Shirish Keskar, Richard Socher, "Regularizing and Optimizing LSTM
          Language Models", ICLR 2018, section 4.6.
        """
        penalty: Any = 0.0
        if self.activation_penalty or self.temporal_penalty:
            carry, ys = model.hidden(carry, batch["inputs"], rngs)  # [T, B, H]
            dropped = model.dropout(ys, rngs=rngs)
            logits = model.logits(dropped)
            penalty = self.activation_penalty * jnp.square(dropped).mean()
            if len(ys) > 1:
                penalty += self.temporal_penalty * jnp.square(ys[1:] - ys[:-1]).mean()
        else:
            carry, outputs = model(carry, tokens=batch["inputs"], rngs=rngs)
            logits = outputs["logits"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return losses.mean() + penalty, carry
