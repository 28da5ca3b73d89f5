"""A Transformer that reads a stream of tokens, for comparison with recurrent layers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Carry, Model, Outputs


class KeyValues(NamedTuple):
    """Keys and values of the last C positions, ``[B, C, heads, head features]``."""

    keys: jax.Array
    values: jax.Array


def rotated(xs: jax.Array, positions: jax.Array) -> jax.Array:
    """Queries or keys rotated by their positions, so that products depend only on distances.

    With the halves a and b of the features of a head, and θ_n = 10000^(-n / n_max)::

        a' = a cos(p θ) - b sin(p θ)        b' = a sin(p θ) + b cos(p θ)

    Args:
      xs: ``[..., T, heads, D]``, D even.
      positions: p, numbers ``[T]``.

    >>> x, y = jnp.array([[[1.0, 2.0, 3.0, 4.0]]]), jnp.array([[[0.5, -1.0, 2.0, 0.0]]])
    >>> near = (rotated(x, jnp.array([3])) * rotated(y, jnp.array([1]))).sum()
    >>> far = (rotated(x, jnp.array([103])) * rotated(y, jnp.array([101]))).sum()
    >>> bool(jnp.allclose(near, far, atol=1e-4))
    True

    References:
      Jianlin Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
      arXiv:2104.09864, 2021, section 3.2.
    """
    half = xs.shape[-1] // 2
    angles = positions[:, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles).astype(xs.dtype), jnp.sin(angles).astype(xs.dtype)
    a, b = xs[..., :half], xs[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def rotary_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, **dropout: Any
) -> jax.Array:
    """Attention of the last T of N positions to all N positions.

    Args:
      queries: ``[..., T, heads, D]``, before rotation (:func:`rotated`).
      keys, values: ``[..., N, heads, D]``; keys before rotation.
      mask: which positions each one attends to, booleans that broadcast to ``[..., heads, T, N]``.
      dropout: arguments of ``nnx.dot_product_attention``.

    Returns:
      ``[..., T, heads, D]``.
    """
    places = jnp.arange(keys.shape[-3])
    queries = rotated(queries, places[places.shape[0] - queries.shape[-3] :])
    return nnx.dot_product_attention(queries, rotated(keys, places), values, mask=mask, **dropout)


def windowed_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, valid: jax.Array, **dropout: Any
) -> jax.Array:
    """Attention of each position to itself and to the C positions before it.

    A section longer than C is divided into blocks of C, each of which attends to itself and to the
    previous block, so time and memory grow with T C instead of T².

    Args:
      queries: ``[B, T, heads, D]``.
      keys, values: ``[B, C + T, heads, D]``, those of the C previous positions first.
      valid: booleans ``[B, C + T]``, false for positions before the start of the sequence.
      dropout: arguments of ``nnx.dot_product_attention``.

    Returns:
      ``[B, T, heads, D]``.
    """
    rows, steps = queries.shape[:2]
    context = keys.shape[1] - steps
    if jax.export.is_symbolic_dim(steps) or steps > context:
        size, count = context, (steps + context - 1) // context

        def padded(xs: jax.Array) -> jax.Array:
            missing = jnp.zeros((rows, count * size - steps, *xs.shape[2:]), xs.dtype)
            return jnp.concatenate([xs, missing], 1)

        def pairs(xs: jax.Array) -> jax.Array:
            blocks = padded(xs).reshape(rows, count + 1, size, *xs.shape[2:])
            return jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], 2)

        queries = padded(queries).reshape(rows, count, size, *queries.shape[2:])
        keys, values, valid = pairs(keys), pairs(values), pairs(valid)
    else:
        size, count = steps, 1
        queries, keys, values, valid = (xs[:, None] for xs in (queries, keys, values, valid))
    places = jnp.arange(context + size)
    age = places[context:, None] - places
    mask = ((age >= 0) & (age <= context)) & valid[:, :, None, None, :]
    ys = rotary_attention(queries, keys, values, mask, **dropout)
    return ys.reshape(rows, count * size, *ys.shape[3:])[:, :steps]


def check_heads(features: int, num_heads: int) -> None:
    """Raises a ValueError if rotated heads do not divide the features.

    >>> check_heads(10, 4)
    Traceback (most recent call last):
    ValueError: features must be a multiple of 2 * num_heads = 8, got 10
    """
    if features % (2 * num_heads):
        raise ValueError(
            f"features must be a multiple of 2 * num_heads = {2 * num_heads}, got {features}"
        )


def no_positions(
    rows: int, positions: int, num_heads: int, features: int, dtype: DTypeLike
) -> KeyValues:
    """Empty keys and values of the given positions, zeros ``[rows, positions, heads, D]``."""
    zeros = jnp.zeros((rows, positions, num_heads, features // num_heads), dtype)
    return KeyValues(zeros, zeros)


def dropped_weights(attention: nnx.MultiHeadAttention, rngs: nnx.Rngs | None) -> dict[str, Any]:
    """Arguments for dropout of attention weights, as in ``nnx.MultiHeadAttention``."""
    if attention.deterministic or not attention.dropout_rate > 0:
        return {}
    streams: Any = attention.rngs if rngs is None else rngs.dropout
    return {"dropout_rng": streams(), "dropout_rate": attention.dropout_rate}


class Block(nnx.Module):
    """One layer: attention, then two dense layers, both with residual connections.

    ::

        x ← x + Attention(LayerNorm(x))        x ← x + W_2 gelu(W_1 LayerNorm(x))

    Args:
      features: the features of x, a multiple of ``2 * num_heads``.
      num_heads: heads of the attention.
      dropout: dropout rate of the residual branches and of attention weights.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    References:
      Ashish Vaswani et al., "Attention Is All You Need", NeurIPS 2017; with normalisation before
      each part, Ruibin Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML
      2020.
    """

    def __init__(
        self, features: int, num_heads: int, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.attention_norm = nnx.LayerNorm(features, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads, features, dropout_rate=dropout, deterministic=False, dtype=dtype, rngs=rngs
        )
        self.dense_norm = nnx.LayerNorm(features, rngs=rngs)
        self.widen = nnx.Linear(features, 4 * features, dtype=dtype, rngs=rngs)
        self.narrow = nnx.Linear(4 * features, features, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def attend(
        self,
        xs: jax.Array,
        cache: KeyValues,
        attention: Callable[..., jax.Array],
        rngs: nnx.Rngs | None,
    ) -> tuple[KeyValues, jax.Array]:
        """A section ``[B, T, features]`` with its attention added.

        Args:
          xs: the section.
          cache: keys and values of the C previous positions.
          attention: :func:`windowed_attention` or :func:`rotary_attention`, with its mask.
          rngs: the stream ``dropout`` is used in training; the module's own streams if None.

        Returns:
          Keys and values of the last C positions, and x with the attention added.
        """
        steps, normed = xs.shape[1], self.attention_norm(xs)
        keys = jnp.concatenate([cache.keys, self.attention.key(normed)], 1)
        values = jnp.concatenate([cache.values, self.attention.value(normed)], 1)
        queries, dropout = self.attention.query(normed), dropped_weights(self.attention, rngs)
        ys = self.attention.out(attention(queries, keys, values, **dropout))
        return KeyValues(keys[:, steps:], values[:, steps:]), self.added(xs, ys, rngs)

    def added(self, xs: jax.Array, ys: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """The output of a residual connection: the input plus the branch's output after dropout."""
        return xs + self.dropout(ys, rngs=rngs).astype(xs.dtype)

    def dense(self, xs: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """The dense layers with their residual connection."""
        ys = self.narrow(jax.nn.gelu(self.widen(self.dense_norm(xs))))
        return self.added(xs, ys, rngs)


class TransformerLanguageModel(Model):
    """Predicts the next token after each token, like :class:`LanguageModel`.

    Each position attends to itself and to the ``context`` previous positions, whose keys and values
    are the carry. A text that is read in parts, even token by token, gets the same logits as in one
    call. In training, the gradient stops at the start of a call, as in truncated backpropagation
    through time.

    Args:
      num_tokens: V, the vocabulary size.
      features: features of an embedding and of each layer, a multiple of ``2 * num_heads``.
      num_layers: blocks of attention and dense layers.
      num_heads: heads of each attention.
      context: C, the number of previous positions that each one attends to.
      tied_embeddings: whether the readout uses the embedding matrix.
      input_dropout: dropout rate of the embeddings.
      dropout: dropout rate of the residual branches and of attention weights.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Raises:
      ValueError: ``features`` is not a multiple of ``2 * num_heads``.

    Example:
      >>> model = TransformerLanguageModel(10, 8, num_heads=2, context=4, rngs=nnx.Rngs(0))
      >>> tokens = jnp.array([[1, 2, 3], [4, 5, 6]])
      >>> carry, outputs = model(model.initial_carry(rows=2), tokens=tokens)
      >>> outputs["logits"].shape  # [B, T, V]
      (2, 3, 10)

    References:
      As :class:`Block` and :func:`rotated`; Zihang Dai et al., "Transformer-XL: Attentive Language
      Models beyond a Fixed-Length Context", ACL 2019 (the carry).
    """

    def __init__(
        self,
        num_tokens: int,
        features: int,
        num_layers: int = 1,
        *,
        num_heads: int,
        context: int,
        tied_embeddings: bool = False,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        check_heads(features, num_heads)
        self.embedding = nnx.Embed(
            num_tokens, features,
            embedding_init=jax.nn.initializers.normal(features**-0.5), rngs=rngs,
        )  # fmt: skip
        self.input_dropout = nnx.Dropout(input_dropout, rngs=rngs)
        self.blocks = nnx.Dict(
            {
                f"block_{n}": Block(features, num_heads, dropout, dtype, rngs)
                for n in range(num_layers)
            }
        )
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        if not tied_embeddings:
            self.projection = nnx.Linear(
                features, num_tokens, use_bias=False, dtype=dtype,
                kernel_init=jax.nn.initializers.glorot_uniform(), rngs=rngs,
            )  # fmt: skip
        self.bias = nnx.Param(jnp.zeros(num_tokens))
        self.features, self.num_heads, self.context = features, num_heads, context
        self.dtype = dtype

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return {"tokens": ("b, t", "int32")}

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        return {"tokens": (0, self.bias.shape[0] - 1)}

    def initial_carry(self, rows: int) -> Carry:
        """Keys and values of each block, zeros, and ``length``, the number of positions read."""
        room = no_positions(rows, self.context, self.num_heads, self.features, self.dtype)
        blocks = dict.fromkeys(self.blocks, room)
        return {"length": jnp.zeros(rows, jnp.int32), **blocks}

    def __call__(
        self, carry: Carry, *, tokens: jax.Array, rngs: nnx.Rngs | None = None
    ) -> tuple[Carry, Outputs]:
        """Logits of the next token after each one; as :meth:`LanguageModel.__call__`.

        Args:
          carry: from :meth:`initial_carry` or the last call; ``length`` is at most C.
          tokens: int32 ``[B, T]``.
          rngs: the stream ``dropout`` is used in training; the module's own streams if None.

        Returns:
          ``(carry, {"logits": [B, T, V]})``.
        """
        steps, length = tokens.shape[1], carry["length"]
        valid = jnp.arange(self.context + steps) >= self.context - length[:, None]
        xs = self.embedding(tokens) * self.features**0.5
        xs = self.input_dropout(xs, rngs=rngs)
        attention = functools.partial(windowed_attention, valid=valid)
        after: dict[str, Any] = {"length": jnp.minimum(length + steps, self.context)}
        for name, block in self.blocks.items():
            after[name], xs = block.attend(xs, carry[name], attention, rngs)
            xs = block.dense(xs, rngs)
        ys = self.norm(xs).astype(self.dtype)
        if hasattr(self, "projection"):
            ys = self.projection(ys)
        else:
            ys = ys @ self.embedding.embedding[...].T.astype(ys.dtype)
        return after, {"logits": ys.astype(jnp.float32) + self.bias[...]}
