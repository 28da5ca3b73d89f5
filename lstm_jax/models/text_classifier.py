"""A classifier of text."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Carry, Model, Outputs
from lstm_jax.nnx import LSTM

POOLINGS = ("max", "mean", "last", "attention")


class TextClassifier(Model):
    """Scores the classes of a text with an LSTM over its tokens.

    ::

        e_t = E[x_t]
        h_1, ..., h_T = LSTM(e_1, ..., e_T)
        logits = pool(h_1, ..., h_T) W + b

    The pooling is the maximum or the mean of each feature over all steps, the last output of each
    direction, or attention::

        a = softmax(v . tanh(h_1 U + c), ..., v . tanh(h_T U + c))
        pool = a_1 h_1 + ... + a_T h_T

    Each row of a batch has its own length, at least 1; values beyond it have no influence.

    Args:
      num_tokens: V, the vocabulary size.
      num_classes: C.
      embedding_features: features of an embedding.
      hidden_features: H, hidden features of each layer and direction.
      num_layers: stacked layers.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      bidirectional: whether every layer reads the text from both ends.
      pooling: ``"max"``, ``"mean"``, ``"last"`` or ``"attention"``.
      unknown: the token that replaces dropped ones.
      word_dropout: rate at which whole tokens are dropped in training.
      embedding_dropout: dropout rate of the embeddings.
      dropout: dropout rate of the outputs of every layer.
      embedding_init: initialises E; None for a normal distribution of deviation 0.1.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Example:
      >>> model = TextClassifier(10, 2, 4, 8, pooling="attention", rngs=nnx.Rngs(0))
      >>> tokens, lengths = jnp.array([[1, 2, 3], [4, 5, 0]]), jnp.array([3, 2])
      >>> _, outputs = model(model.initial_carry(2), tokens=tokens, lengths=lengths)
      >>> outputs["logits"].shape, outputs["attention"].shape  # [B, C], [B, T]
      ((2, 2), (2, 3))

    References:
      Alexis Conneau et al., "Supervised Learning of Universal Sentence Representations from
      Natural Language Inference Data", EMNLP 2017 (maximum and mean over a bidirectional LSTM);
      Zichao Yang et al., "Hierarchical Attention Networks for Document Classification", NAACL 2016
      (attention); Mohit Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for
      Text Classification", ACL 2015 (word dropout).
    """

    def __init__(
        self,
        num_tokens: int,
        num_classes: int,
        embedding_features: int,
        hidden_features: int,
        num_layers: int = 1,
        *,
        cell: Any = "lstm",
        bidirectional: bool = True,
        pooling: str = "max",
        unknown: int = 1,
        word_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        dropout: float = 0.0,
        embedding_init: Any = None,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        glorot = jax.nn.initializers.glorot_uniform()
        self.pooling, self.bidirectional, self.unknown = pooling, bidirectional, unknown
        self.embedding = nnx.Embed(
            num_tokens, embedding_features,
            embedding_init=embedding_init or jax.nn.initializers.normal(0.1), rngs=rngs,
        )  # fmt: skip
        self.word_dropout = nnx.Dropout(word_dropout, rngs=rngs)
        self.embedding_dropout = nnx.Dropout(embedding_dropout, rngs=rngs)
        self.lstm = LSTM(
            embedding_features, hidden_features, num_layers, bidirectional=bidirectional,
            cell=cell, dropout=dropout, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        width = self.lstm.layer.output_size
        if pooling == "attention":
            self.attention = nnx.Linear(width, width, kernel_init=glorot, rngs=rngs)
            self.query = nnx.Linear(width, 1, use_bias=False, kernel_init=glorot, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.readout = nnx.Linear(width, num_classes, kernel_init=glorot, rngs=rngs)

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return {"tokens": ("b, t", "int32"), "lengths": ("b", "int32")}

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        return {"tokens": (0, self.embedding.num_embeddings - 1), "lengths": (1, "t")}

    def __call__(
        self,
        carry: Carry,
        *,
        tokens: jax.Array,
        lengths: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Carry, Outputs]:
        """Class scores of whole texts.

        Args:
          carry: ``()``, from :meth:`initial_carry`; texts are independent.
          tokens: int32 ``[B, T]``.
          lengths: integers from 1 to T, ``[B]``.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, {"logits": [B, C]})``, with attention also ``"attention": [B, T]``, weights
          that sum to 1 over a row.
        """
        kept = self.word_dropout(jnp.ones(tokens.shape), rngs=rngs) > 0
        xs = self.embedding(jnp.where(kept, tokens, self.unknown))
        return carry, self.read(xs, lengths, rngs)

    def read(self, xs: jax.Array, lengths: jax.Array, rngs: nnx.Rngs | None = None) -> Outputs:
        """Like :meth:`__call__`, with embeddings ``[B, T, E]`` instead of tokens."""
        xs = self.embedding_dropout(xs, rngs=rngs)
        ys = self.lstm(xs, seq_lengths=lengths, rngs=rngs).astype(jnp.float32)
        inside = jnp.arange(ys.shape[1]) < lengths[:, None]  # [B, T]; outputs elsewhere are zero
        outputs = {}
        if self.pooling == "max":
            pooled = jnp.where(inside[..., None], ys, -jnp.inf).max(1)
        elif self.pooling == "mean":
            pooled = ys.sum(1) / lengths[:, None]
        elif self.pooling == "last":
            pooled = jnp.take_along_axis(ys, (lengths - 1)[:, None, None], 1)[:, 0]
            if self.bidirectional:  # the backward direction ends at the first step
                forward = jnp.arange(ys.shape[-1]) < ys.shape[-1] // 2
                pooled = jnp.where(forward, pooled, ys[:, 0])
        else:
            scores = self.query(jnp.tanh(self.attention(ys)))[..., 0]
            weights = jax.nn.softmax(jnp.where(inside, scores, -jnp.inf))
            pooled = (weights[..., None] * ys).sum(1)
            outputs["attention"] = weights
        outputs["logits"] = self.readout(self.dropout(pooled, rngs=rngs))
        return outputs


def pretrained(read: Callable[[], tuple[Any, Any]]) -> Callable[..., jax.Array]:
    """An initialiser of embeddings with pretrained vectors for some tokens.

    All other vectors are sampled from a normal distribution with the same mean square.

    Args:
      read: returns whether each token has a vector, booleans ``[V]``, and all vectors, float32
        ``[V, E]``, zeros for missing ones. It is called when parameters are initialised, but not
        when only their shapes are requested.

    >>> vectors = jnp.array([True, False]), jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    >>> table = pretrained(lambda: vectors)(jax.random.key(0), (2, 3), "float32")
    >>> table[0].tolist(), bool((table[1] == 0).any())
    ([3.0, 4.0, 0.0], False)
    """

    def init(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike) -> jax.Array:
        types = jax.ShapeDtypeStruct(shape[:1], bool), jax.ShapeDtypeStruct(shape, jnp.float32)
        found, table = jax.pure_callback(lambda: tuple(read()), types)
        scale = jnp.sqrt(jnp.square(table).sum() / (found.sum() * shape[1]).clip(1))
        others = scale * jax.random.normal(key, shape)
        return jnp.where(found[:, None], table, others).astype(dtype)

    return init
