"""A language model of characters or other tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Carry, Model, Outputs
from lstm_jax.nnx import LSTM


class LanguageModel(Model):
    """Predicts the next token after each token.

    ::

        e_t = E[x_t]
        h_t = LSTM(e_1, ..., e_t)
        logits_t = h_t P + b

    With tied embeddings the logits are ``(h_t P) E^T + b``, and P is needed only if embeddings and
    layers differ in their number of features.

    Args:
      num_tokens: V, the vocabulary size.
      embedding_features: features of an embedding.
      hidden_features: H, hidden features of each layer.
      num_layers: stacked layers.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      tied_embeddings: whether the readout uses the embedding matrix.
      input_dropout: dropout rate of the embeddings.
      embedding_dropout: dropout rate of whole rows of E, sampled once per call: a dropped token is
        zero at every position.
      dropout: dropout rate of the outputs of every layer.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Example:
      >>> model = LanguageModel(10, 4, 8, rngs=nnx.Rngs(0))
      >>> tokens = jnp.array([[1, 2, 3], [4, 5, 6]])
      >>> carry, outputs = model(model.initial_carry(rows=2), tokens=tokens)
      >>> outputs["logits"].shape  # [B, T, V]
      (2, 3, 10)

    References:
      Tomas Mikolov et al., "Recurrent neural network based language model", Interspeech 2010;
      Ofir Press, Lior Wolf, "Using the Output Embedding to Improve Language Models", EACL 2017
      (tied embeddings); Yarin Gal, Zoubin Ghahramani, "A Theoretically Grounded Application of
      Dropout in Recurrent Neural Networks", NeurIPS 2016, section 4.2 (dropout of whole tokens).
    """

    def __init__(
        self,
        num_tokens: int,
        embedding_features: int,
        hidden_features: int,
        num_layers: int = 1,
        *,
        cell: Any = "lstm",
        tied_embeddings: bool = False,
        input_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        # Initial logits should be near zero, so unit embeddings are scaled down if they are tied.
        scale = embedding_features**-0.5 if tied_embeddings else 1.0
        self.embedding = nnx.Embed(
            num_tokens, embedding_features,
            embedding_init=jax.nn.initializers.normal(scale), rngs=rngs,
        )  # fmt: skip
        self.input_dropout = nnx.Dropout(input_dropout, rngs=rngs)
        self.lstm = LSTM(
            embedding_features, hidden_features, num_layers,
            cell=cell, dropout=dropout, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.tied_embeddings = tied_embeddings
        self.dtype = dtype
        outputs = self.lstm.layer.output_size
        width = embedding_features if tied_embeddings else num_tokens
        if not (tied_embeddings and width == outputs):
            self.projection = nnx.Linear(
                outputs, width, use_bias=False, dtype=dtype,
                kernel_init=jax.nn.initializers.glorot_uniform(), rngs=rngs,
            )  # fmt: skip
        self.bias = nnx.Param(jnp.zeros(num_tokens))
        if embedding_dropout:  # an unused module would add a random stream to the state
            self.embedding_dropout = nnx.Dropout(embedding_dropout, rngs=rngs)

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return {"tokens": ("b, t", "int32")}

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        return {"tokens": (0, self.bias.shape[0] - 1)}

    def initial_carry(self, rows: int) -> Carry:
        """The initial state of each layer: zeros, or learned values."""
        return self.lstm.layer.initial_state(self.lstm.params, (rows,))

    def __call__(
        self, carry: Carry, *, tokens: jax.Array, rngs: nnx.Rngs | None = None
    ) -> tuple[Carry, Outputs]:
        """Logits of the next token after each one.

        Args:
          carry: the state of each layer, arrays ``[B, H]``.
          tokens: int32 ``[B, T]``.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, {"logits": [B, T, V]})``.
        """
        carry, ys = self.hidden(carry, tokens, rngs)
        return carry, {"logits": self.logits(self.dropout(ys, rngs=rngs))}

    def hidden(
        self, carry: Carry, tokens: jax.Array, rngs: nnx.Rngs | None = None
    ) -> tuple[Carry, jax.Array]:
        """Outputs of the last layer before their dropout, ``[T, B, H]``; as :meth:`__call__`.

        Time is the leading axis here, so that the loop reads each step from contiguous memory.
        """
        xs = self.embedding(tokens.T)  # [T, B, E]
        if hasattr(self, "embedding_dropout"):
            rows = jnp.ones(self.embedding.num_embeddings, xs.dtype)
            xs = xs * self.embedding_dropout(rows, rngs=rngs)[tokens.T][..., None]
        xs = self.input_dropout(xs, rngs=rngs)
        return self.lstm(xs, initial_carry=carry, time_major=True, return_carry=True, rngs=rngs)

    def logits(self, ys: jax.Array) -> jax.Array:
        """Logits ``[B, T, V]`` of what :meth:`hidden` returns."""
        ys = ys.astype(self.dtype)
        if hasattr(self, "projection"):
            ys = self.projection(ys)
        if self.tied_embeddings:
            ys = ys @ self.embedding.embedding[...].T.astype(ys.dtype)
        return ys.swapaxes(0, 1).astype(jnp.float32) + self.bias[...]
