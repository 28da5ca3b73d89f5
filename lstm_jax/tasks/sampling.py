"""Filters for sampling: pure functions from the logits of one step to other logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.config import Section, option

EXCLUDED = -jnp.inf  # the logit of a token that is not sampled


def penalised(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Makes tokens that occur in the text less likely: x / penalty, or x * penalty if x < 0.

    Args:
      logits: ``[V]``.
      seen: booleans ``[V]``, true for the tokens of the text so far.
      penalty: 1 changes nothing; the paper proposes 1.2.

    >>> penalised(jnp.array([2.0, -1.0, 3.0]), jnp.array([True, True, False]), 2.0).tolist()
    [1.0, -2.0, 3.0]

    References:
      Nitish Shirish Keskar et al., "CTRL: A Conditional Transformer Language Model for
      Controllable Generation", arXiv:1909.05858, 2019, section 4.1, which divides every logit.
      Here, as in other libraries, a negative logit is multiplied, so that its token also becomes
      less likely.
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Excludes all but the ``k`` most likely tokens; among ties, lower ids are retained.

    Args:
      logits: ``[V]``.
      k: the number of tokens to retain, at least 1; V or more changes nothing.

    >>> top_k(jnp.array([1.0, 4.0, 2.0, 3.0]), 2).tolist()
    [-inf, 4.0, -inf, 3.0]

    References:
      Angela Fan, Mike Lewis, Yann Dauphin, "Hierarchical Neural Story Generation", ACL 2018,
      section 5.1.
    """
    order = jnp.argsort(-logits)  # stable
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    return jnp.where(rank < k, logits, EXCLUDED)


def top_p(logits: jax.Array, p: float) -> jax.Array:
    """Retains the smallest set of most likely tokens whose probabilities add up to ``p`` or more.

    Args:
      logits: ``[V]``.
      p: above 0 and at most 1; 1 changes nothing.  The most likely token is always retained.

    >>> top_p(jnp.log(jnp.array([0.125, 0.5, 0.125, 0.25])), 0.7).round(3).tolist()
    [-inf, -0.693..., -inf, -1.386...]

    References:
      Ari Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020, section 3.1
      (nucleus sampling).
    """
    order = jnp.argsort(-logits)
    probabilities = jax.nn.softmax(logits)[order]
    before = jnp.cumsum(probabilities) - probabilities
    stays = jnp.zeros(len(order), bool).at[order].set((before < p) | (p >= 1))
    return jnp.where(stays, logits, EXCLUDED)


@dataclasses.dataclass(frozen=True)
class Filters(Section):
    """The filters that are applied to the logits of each step before a token is sampled.

    Raises:
      UserError: a value is impossible.

    >>> Filters(top_p=0.0)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: top_p: expected a number above 0 and at most 1, got 0.0
    """

    top_k: int = option(0, "sample from this number of most likely tokens; 0: from all", at_least=0)
    top_p: float = option(
        1.0, "sample from the fewest most likely tokens with this total probability",
        above=0, at_most=1,
    )  # fmt: skip
    repetition_penalty: float = option(
        1.0, "above 1: tokens that occur in the text become less likely", above=0
    )

    def __call__(self, logits: np.ndarray, seen: np.ndarray, temperature: float) -> np.ndarray:
        """The logits of one step, -inf for excluded tokens, not yet divided by the temperature.

        The penalty comes first, then ``top_k``, then ``top_p`` of the probabilities that remain at
        this temperature.

        Args:
          logits: float32 ``[V]``.
          seen: booleans ``[V]``, true for the tokens of the text so far.
          temperature: divides the logits; 0 always takes the most likely token.
        """
        if self == NO_FILTERS:
            return logits
        return np.asarray(_filtered(self, logits, seen, np.float32(temperature)))


NO_FILTERS = Filters()


@functools.partial(jax.jit, static_argnums=0)
def _filtered(
    filters: Filters, logits: jax.Array, seen: jax.Array, temperature: jax.Array
) -> jax.Array:
    logits = penalised(logits, seen, filters.repetition_penalty)
    kept = top_k(logits, filters.top_k or len(logits)) / jnp.maximum(temperature, 1e-6)
    return jnp.where(top_p(kept, filters.top_p) > EXCLUDED, logits, EXCLUDED)


@functools.partial(jax.jit, static_argnums=1)
def keys(seed: jax.Array, length: int) -> jax.Array:
    """Data of a random key for each token, uint32 ``[length, 2]``."""
    return jax.random.key_data(jax.random.split(jax.random.key(seed), length))


@jax.jit
def choice(key: jax.Array, logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """A token from the distribution softmax(logits / temperature), with the data of a key."""
    key = jax.random.wrap_key_data(key)
    sampled = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, sampled, logits.argmax(-1)).astype(jnp.int32)
