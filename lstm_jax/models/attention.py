"""Attention over encoder outputs: scores, a softmax over the valid steps, a weighted mean."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


def dot_scores(query: jax.Array, keys: jax.Array) -> jax.Array:
    """Multiplicative scores of keys for a query: ``score_s = q · k_s``.

    With ``k_s = W m_s`` these are the scores ``qᵀ W m_s`` that Luong et al. call "general".

    Args:
      query: ``[..., A]``.
      keys: ``[..., S, A]``.

    Returns:
      ``[..., S]``.

    >>> dot_scores(jnp.array([1.0, 2.0]), jnp.array([[1.0, 0.0], [0.0, 1.0]])).tolist()
    [1.0, 2.0]

    References:
      Minh-Thang Luong, Hieu Pham, Christopher D. Manning, "Effective Approaches to
      Attention-based Neural Machine Translation", EMNLP 2015, equation 8.
    """
    return jnp.einsum("...a,...sa->...s", query, keys)


def additive_scores(query: jax.Array, keys: jax.Array, v: jax.Array) -> jax.Array:
    """Additive scores of keys for a query: ``score_s = v · tanh(q + k_s)``.

    With ``q = W s_{t-1}`` and ``k_s = U m_s`` these are the alignments of Bahdanau et al.

    Args:
      query: ``[..., A]``.
      keys: ``[..., S, A]``.
      v: ``[A]``.

    Returns:
      ``[..., S]``.

    >>> additive_scores(jnp.zeros(2), jnp.zeros((3, 2)), jnp.ones(2)).tolist()
    [0.0, 0.0, 0.0]

    References:
      Dzmitry Bahdanau, Kyunghyun Cho, Yoshua Bengio, "Neural Machine Translation by Jointly
      Learning to Align and Translate", ICLR 2015, appendix A.1.2.
    """
    return jnp.tanh(query[..., None, :] + keys) @ v


def attend(
    scores: jax.Array, values: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The mean of values, weighted by the softmax of their scores.

    ::

        α_s = exp(score_s) / Σ_r exp(score_r)        context = Σ_s α_s m_s

    Args:
      scores: ``[..., S]``.
      values: m, ``[..., S, M]``.
      mask: booleans ``[..., S]``; a value whose flag is false has weight zero. If all flags are
        false, all weights and the context are zero.

    Returns:
      ``(context, weights)``: ``[..., M]`` and ``[..., S]``.

    >>> values = jnp.array([[1.0], [3.0], [100.0]])
    >>> context, weights = attend(jnp.zeros(3), values, jnp.array([True, True, False]))
    >>> context.tolist(), weights.tolist()
    ([2.0], [0.5, 0.5, 0.0])
    """
    weights = jax.nn.softmax(scores, -1, where=mask)
    if mask is not None:  # a softmax over an empty set is 0 / 0
        weights = jnp.where(mask.any(-1, keepdims=True), weights, 0)
    return jnp.einsum("...s,...sm->...m", weights, values), weights


class MultiplicativeAttention(nnx.Module):
    """Attention with the scores ``qᵀ W m_s``.

    Args:
      query_features: features of a query q.
      memory_features: features of an encoder output m.
      dtype: type of the product with W.
      rngs: the stream ``params`` initialises W.

    Example:
      >>> attention = MultiplicativeAttention(4, 6, rngs=nnx.Rngs(0))
      >>> memory = jnp.ones((2, 5, 6))  # [B, S, M]
      >>> context, weights = attention(jnp.ones((2, 4)), attention.keys(memory), memory)
      >>> context.shape, weights.shape
      ((2, 6), (2, 5))

    References:
      Luong et al., as :func:`dot_scores`.
    """

    def __init__(
        self,
        query_features: int,
        memory_features: int,
        *,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        self.memory_map = nnx.Linear(
            memory_features, query_features, use_bias=False, dtype=dtype,
            kernel_init=jax.nn.initializers.glorot_uniform(), rngs=rngs,
        )  # fmt: skip

    def keys(self, memory: jax.Array) -> jax.Array:
        """``W m_s``, which does not depend on the query: ``[..., S, M]`` to ``[..., S, A]``."""
        return self.memory_map(memory)

    def __call__(
        self, query: jax.Array, keys: jax.Array, memory: jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """As :func:`attend`, with the scores of a query ``[..., Q]``."""
        return attend(dot_scores(query, keys), memory, mask)


class AdditiveAttention(nnx.Module):
    """Attention with the scores ``v · tanh(W q + U m_s)``.

    Args:
      query_features: features of a query q.
      memory_features: features of an encoder output m.
      features: A, the size of v; None for the size of a query.
      dtype: type of the products with W and U.
      rngs: the stream ``params`` initialises W, U and v.

    Example:
      >>> attention = AdditiveAttention(4, 6, rngs=nnx.Rngs(0))
      >>> memory = jnp.ones((2, 5, 6))  # [B, S, M]
      >>> context, weights = attention(jnp.ones((2, 4)), attention.keys(memory), memory)
      >>> context.shape, weights.shape
      ((2, 6), (2, 5))

    References:
      Bahdanau et al., as :func:`additive_scores`.
    """

    def __init__(
        self,
        query_features: int,
        memory_features: int,
        features: int | None = None,
        *,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        features = query_features if features is None else features
        glorot = jax.nn.initializers.glorot_uniform()
        self.query_map = nnx.Linear(
            query_features, features, use_bias=False, dtype=dtype, kernel_init=glorot, rngs=rngs
        )
        self.memory_map = nnx.Linear(
            memory_features, features, use_bias=False, dtype=dtype, kernel_init=glorot, rngs=rngs
        )
        self.v = nnx.Param(glorot(rngs.params(), (features, 1))[:, 0])

    def keys(self, memory: jax.Array) -> jax.Array:
        """``U m_s``, which does not depend on the query: ``[..., S, M]`` to ``[..., S, A]``."""
        return self.memory_map(memory)

    def __call__(
        self, query: jax.Array, keys: jax.Array, memory: jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """As :func:`attend`, with the scores of a query ``[..., Q]``."""
        return attend(additive_scores(self.query_map(query), keys, self.v[...]), memory, mask)


ATTENTIONS: dict[str, type[MultiplicativeAttention] | type[AdditiveAttention]] = {
    "multiplicative": MultiplicativeAttention,
    "additive": AdditiveAttention,
}
"""The modules by their name in a config."""
