"""What tasks do with a language model: losses along a stream of tokens, and new tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from lstm_jax.tasks.base import Columns, Metrics
from lstm_jax.tasks.sampling import NO_FILTERS, Filters, choice, keys

CHUNK = 4096  # tokens that evaluation reads in one call, which bounds the memory


def text_metrics(loss: float, count: int, text: str) -> Metrics:
    """A mean loss in units that do not depend on how the text is split into tokens.

    Args:
      loss: nats per token.
      count: how many tokens have a loss.
      text: what these tokens stand for.

    Returns:
      ``loss``; ``bits per byte`` of the text in UTF-8; ``word perplexity``, the exponential of
      nats per word, words being what spaces separate (at most e^20: a text may have no spaces).

    >>> text_metrics(float(np.log(2)), 16, "ab cd ef")
    {'loss': 0.693..., 'bits per byte': 2.0, 'word perplexity': 40.317...}
    """
    nats = loss * count
    return {
        "loss": loss,
        "bits per byte": nats / float(np.log(2)) / max(1, len(text.encode())),
        "word perplexity": float(np.exp(min(20.0, nats / max(1, len(text.split()))))),
    }


def loss_of_lines(losses: np.ndarray, ends: np.ndarray, text: str) -> Columns:
    """The losses of a text's tokens as a table of its lines.

    Args:
      losses: of each token but the first, ``[N - 1]``.
      ends: how many characters of the text each token and all before it cover, ``[N]``.
      text: the text.

    Returns:
      Columns ``line``, ``tokens`` (how many with a loss end in this line), ``loss`` (their mean)
      and ``text``.

    >>> table = loss_of_lines(np.array([1.0, 3.0, 5.0]), np.array([1, 2, 3, 4]), "a\\nbc")
    >>> table["tokens"].tolist(), table["loss"].tolist(), table["text"]
    ([1, 2], [1.0, 4.0], ['a', 'bc'])
    """
    lines = text.splitlines(keepends=True)
    line_ends = np.cumsum([len(line) for line in lines])
    parts = np.split(losses, np.searchsorted(ends[1:], line_ends[:-1], side="right"))
    return {
        "line": np.arange(1, len(lines) + 1),
        "tokens": np.array([len(part) for part in parts]),
        "loss": np.array([part.mean() if len(part) else np.nan for part in parts]),
        "text": [line.rstrip("\r\n") for line in lines],
    }


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
    model: Any,
    tokens: np.ndarray,
    length: int,
    temperature: float,
    seed: int,
    filters: Filters = NO_FILTERS,
    excluded: Sequence[int] = (),
) -> Iterator[int]:
    """``length`` tokens that follow some given ones, each as soon as it is chosen.

    Args:
      model: reads ``tokens`` and returns ``logits``.
      tokens: int32 ``[N]``, N at least 1.
      length: how many tokens to choose.
      temperature: divides the logits; 0 always takes the likeliest token.
      seed: decides the random choices.
      filters: which tokens are excluded at each step.
      excluded: tokens that are never chosen.
    """
    carry = model.initial_carry(1) if length else ()
    seen: Any = None
    # On the host, what does not belong to a program of its own is not compiled as one.
    for key in np.asarray(keys(np.uint32(seed), length)):
        carry, outputs = model(carry, tokens=tokens[None])
        logits = np.asarray(outputs["logits"])[0, -1]
        seen = np.zeros(len(logits), bool) if seen is None else seen
        seen[tokens] = True
        if excluded:
            logits = logits.copy()
            logits[list(excluded)] = -np.inf
        allowed = filters(logits, seen, temperature)
        token = choice(key, allowed, np.float32(temperature))
        yield int(token)
        tokens = np.asarray(token)[None]
