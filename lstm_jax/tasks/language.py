"""What tasks do with a language model: losses along a stream of tokens, and new tokens."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

CHUNK = 4096  # tokens that evaluation reads in one call, which bounds the memory


def stream_losses(model: Any, tokens: np.ndarray, chunk: int = CHUNK) -> np.ndarray:
    """The loss of each token but the first in nats, read as one stream; float64 ``[N - 1]``.

    Args:
      model: reads ``tokens`` and returns ``logits``.
      tokens: int32 ``[N]``, N at least 2.
      chunk: tokens that one call reads.
    """
    count, carry, losses = len(tokens) - 1, model.initial_carry(1), []
    chunk = min(chunk, count)
    for start in range(0, count, chunk):
        place = np.arange(start, start + chunk).clip(max=count - 1)  # one shape for all chunks
        carry, outputs = model(carry, tokens=tokens[place][None])
        losses.append(np.asarray(_losses(outputs["logits"], tokens[place + 1][None]))[0])
    return np.concatenate(losses).astype(np.float64)[:count]


_losses = jax.jit(optax.softmax_cross_entropy_with_integer_labels)


def continued(
    model: Any, tokens: np.ndarray, length: int, temperature: float, seed: int
) -> Iterator[int]:
    """``length`` tokens that follow some given ones, each as soon as it is chosen.

    Args:
      model: reads ``tokens`` and returns ``logits``.
      tokens: int32 ``[N]``, N at least 1.
      length: how many tokens to choose.
      temperature: divides the logits; 0 always takes the likeliest token.
      seed: decides the random choices.
    """
    carry = model.initial_carry(1) if length else ()
    # On the host, what does not belong to a program of its own is not compiled as one.
    for key in np.asarray(_keys(np.uint32(seed), length)):
        carry, outputs = model(carry, tokens=tokens[None])
        token = _choice(key, np.asarray(outputs["logits"])[0, -1], np.float32(temperature))
        yield int(token)
        tokens = np.asarray(token)[None]


@functools.partial(jax.jit, static_argnums=1)
def _keys(seed: jax.Array, length: int) -> jax.Array:
    """Data of a random key for each token, uint32 ``[length, 2]``."""
    return jax.random.key_data(jax.random.split(jax.random.key(seed), length))


@jax.jit
def _choice(key: jax.Array, logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """A token from the distribution softmax(logits / temperature)."""
    key = jax.random.wrap_key_data(key)
    drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
    return jnp.where(temperature > 0, drawn, logits.argmax(-1)).astype(jnp.int32)
