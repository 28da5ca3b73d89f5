"""An encoder-decoder Transformer, for comparison with :class:`lstm_jax.models.Seq2Seq`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Carry, Outputs
from lstm_jax.models.seq2seq import Decoding, EncoderDecoder
from lstm_jax.models.transformer import (
    Block,
    KeyValues,
    check_heads,
    dropped_weights,
    no_positions,
    rotary_attention,
)


class Memory(NamedTuple):
    """The encoding of the source by a Transformer encoder.

    Attributes:
      blocks: the keys and values that each block of the decoder attends to, by name.
      mask: whether each source token is valid, booleans ``[B, S]``.
    """

    blocks: dict[str, KeyValues]
    mask: jax.Array


class Cache(NamedTuple):
    """The state of a Transformer decoder between parts of the target.

    Attributes:
      blocks: keys and values of the last C target positions in each block, by name.
      length: the number of these that were read; int32 ``[B]``.
    """

    blocks: dict[str, KeyValues]
    length: jax.Array


def attention_weights(queries: jax.Array, keys: jax.Array, mask: jax.Array) -> jax.Array:
    """The attention of each query to each key, averaged over heads.

    ::

        mean_h softmax_s(q_h · k_hs / √D)

    Args:
      queries: ``[B, T, heads, D]``.
      keys: ``[B, S, heads, D]``.
      mask: whether each key is valid, booleans ``[B, S]``.

    Returns:
      ``[B, T, S]``, float32.

    >>> keys = jnp.array([[[[1.0]], [[1.0]], [[9.0]]]])
    >>> attention_weights(jnp.ones((1, 1, 1, 1)), keys, jnp.array([[True, True, False]])).tolist()
    [[[0.5, 0.5, 0.0]]]
    """
    scores = jnp.einsum("bthd,bshd->bhts", queries, keys).astype(jnp.float32)
    scores = scores / jnp.sqrt(queries.shape[-1])
    return jax.nn.softmax(scores, -1, where=mask[:, None, None]).mean(1)


class DecoderBlock(Block):
    """A layer of a decoder: :class:`Block` with attention to the source between its two parts.

    ::

        x ← x + Attention(LayerNorm(x), m)

    The arguments are those of :class:`Block`.
    """

    def __init__(
        self, features: int, num_heads: int, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        super().__init__(features, num_heads, dropout, dtype, rngs)
        self.source_norm = nnx.LayerNorm(features, rngs=rngs)
        self.source_attention = nnx.MultiHeadAttention(
            num_heads, features, dropout_rate=dropout, deterministic=False, dtype=dtype, rngs=rngs
        )

    def memory(self, outputs: jax.Array) -> KeyValues:
        """Keys and values of an encoder's outputs m, ``[B, S, features]``."""
        return KeyValues(self.source_attention.key(outputs), self.source_attention.value(outputs))

    def attend_to_source(
        self, xs: jax.Array, memory: KeyValues, mask: jax.Array, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array]:
        """A section with its attention to the source added, and the weights ``[B, T, S]``.

        Args:
          xs: the section, ``[B, T, features]``.
          memory: from :meth:`memory`.
          mask: whether each source token is valid, booleans ``[B, S]``.
          rngs: the stream ``dropout`` is used in training; the module's own streams if None.
        """
        queries = self.source_attention.query(self.source_norm(xs))
        ys = nnx.dot_product_attention(
            queries, memory.keys, memory.values, mask=mask[:, None, None],
            **dropped_weights(self.source_attention, rngs),
        )  # fmt: skip
        weights = attention_weights(queries, memory.keys, mask)
        return self.added(xs, self.source_attention.out(ys), rngs), weights


class TransformerSeq2Seq(EncoderDecoder):
    """An encoder that attends to the whole source, and a decoder that attends to both sides.

    ::

        m = LayerNorm(blocks(√d E[x_1], ..., √d E[x_S]))         each position attends to all
        s = LayerNorm(blocks(√d E[y_1], ..., √d E[y_T]; m))      to those before it, and to m
        logits_t = s_t Eᵀ + b

    E is one matrix for source, target and output.  Positions enter by rotation of queries and keys
    within the source and within the target (:func:`lstm_jax.models.transformer.rotated`).

    The carry holds the keys and values of the last C = 2 S target positions.  A target of at most C
    tokens that is read in parts, even token by token, gets the same logits as in one call. If a
    longer target is read in parts, each part attends to itself and to the C previous positions.

    The output ``attention`` is the attention of the last block to the source, averaged over heads.

    Args:
      num_tokens: V, the vocabulary size, source and target together.
      features: d, features of an embedding and of each layer, a multiple of ``2 * num_heads``.
      num_layers: blocks of the encoder, and of the decoder.
      num_heads: heads of each attention.
      input_dropout: dropout rate of the embeddings.
      dropout: dropout rate of the residual branches and of attention weights.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Raises:
      ValueError: ``features`` is not a multiple of ``2 * num_heads``.

    Example:
      >>> model = TransformerSeq2Seq(10, 8, num_heads=2, rngs=nnx.Rngs(0))
      >>> source, lengths = jnp.array([[4, 5, 6], [7, 8, 0]]), jnp.array([3, 2])
      >>> carry = model.encode(source=source, lengths=lengths)
      >>> carry, outputs = model(carry, tokens=jnp.array([[2, 4, 5, 6], [2, 7, 8, 3]]))
      >>> outputs["logits"].shape, outputs["attention"].shape  # [B, T, V], [B, T, S]
      ((2, 4, 10), (2, 4, 3))

    References:
      As :class:`lstm_jax.models.transformer.Block`; Ofir Press, Lior Wolf, "Using the Output
      Embedding to Improve Language Models", EACL 2017 (section 5, three-way tying).
    """

    def __init__(
        self,
        num_tokens: int,
        features: int,
        num_layers: int = 1,
        *,
        num_heads: int,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        check_heads(features, num_heads)

        def blocks(kind: type[Block]) -> nnx.Dict:
            sizes = (features, num_heads, dropout, dtype, rngs)
            return nnx.Dict({f"block_{n}": kind(*sizes) for n in range(num_layers)})

        self.embedding = nnx.Embed(
            num_tokens, features,
            embedding_init=jax.nn.initializers.normal(features**-0.5), rngs=rngs,
        )  # fmt: skip
        self.input_dropout = nnx.Dropout(input_dropout, rngs=rngs)
        self.encoder, self.decoder = blocks(Block), blocks(DecoderBlock)
        self.encoder_norm = nnx.LayerNorm(features, rngs=rngs)
        self.decoder_norm = nnx.LayerNorm(features, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(num_tokens))
        self.features, self.num_heads, self.dtype = features, num_heads, dtype

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        tokens = (0, self.bias.shape[0] - 1)
        return {"source": tokens, "lengths": (1, "s"), "tokens": tokens}

    def encode(
        self, *, source: jax.Array, lengths: jax.Array, rngs: nnx.Rngs | None = None
    ) -> Decoding:
        rows, size = source.shape
        mask = jnp.arange(size) < lengths[:, None]
        xs, nothing = self._embedded(source, rngs), self._zeros(rows, 0)
        everywhere = functools.partial(rotary_attention, mask=mask[:, None, None])
        for block in self.encoder.values():
            _, xs = block.attend(xs, nothing, everywhere, rngs)
            xs = block.dense(xs, rngs)
        outputs, room = self.encoder_norm(xs), self._zeros(rows, 2 * size)
        memory = {name: block.memory(outputs) for name, block in self.decoder.items()}
        cache = Cache(dict.fromkeys(self.decoder, room), jnp.zeros(rows, jnp.int32))
        return Decoding(Memory(memory, mask), cache)

    def __call__(
        self, carry: Carry, *, tokens: jax.Array, rngs: nnx.Rngs | None = None
    ) -> tuple[Carry, Outputs]:
        """Logits of the next token after each one, and its attention to the source.

        Args:
          carry: from :meth:`encode`, or from an earlier part of the targets.
          tokens: int32 ``[B, T]``.
          rngs: the stream ``dropout`` is used in training; the module's own streams if None.

        Returns:
          ``(carry, {"logits": [B, T, V], "attention": [B, T, S]})``.
        """
        (memory, mask), (cache, length) = carry
        steps, xs = tokens.shape[1], self._embedded(tokens, rngs)
        room = cache["block_0"].keys.shape[1]
        places = jnp.arange(room + steps)
        read = places >= room - length[:, None]  # [B, C + T]
        causal = read[:, None, None] & (places <= places[room:, None])
        attention = functools.partial(rotary_attention, mask=causal)
        after, weights = {}, jnp.zeros(())
        for name, block in self.decoder.items():
            after[name], xs = block.attend(xs, cache[name], attention, rngs)
            xs, weights = block.attend_to_source(xs, memory[name], mask, rngs)
            xs = block.dense(xs, rngs)
        matrix = self.embedding.embedding[...].T.astype(self.dtype)
        logits = self.decoder_norm(xs).astype(self.dtype) @ matrix
        logits = logits.astype(jnp.float32) + self.bias[...]
        state = Cache(after, jnp.minimum(length + steps, room))
        return Decoding(Memory(memory, mask), state), {"logits": logits, "attention": weights}

    def _embedded(self, tokens: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        xs = self.embedding(tokens) * self.features**0.5
        return self.input_dropout(xs, rngs=rngs)

    def _zeros(self, rows: int, positions: int) -> KeyValues:
        return no_positions(rows, positions, self.num_heads, self.features, self.dtype)
