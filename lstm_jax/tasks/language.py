"""Functions for tasks with a language model: losses along a stream of tokens, and generation."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from lstm_jax.tasks.base import Columns, Metrics
from lstm_jax.tasks.sampling import NO_FILTERS, Filters, choice, keys

CHUNK = 4096  # tokens per call in evaluation, which bounds the memory


def text_metrics(loss: float, count: int, text: str) -> Metrics:
    """A mean loss in units that do not depend on how the text is split into tokens.

    Args:
      loss: nats per token.
      count: the number of tokens that have a loss.
      text: the text that these tokens encode.

    Returns:
      ``loss``; ``bits per byte`` of the text in UTF-8; ``word perplexity``, the exponential of nats
      per word, where words are separated by spaces.  It is limited to e^20, since a text may have
      no spaces.

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
      losses: the loss of each token except the first, ``[N - 1]``.
      ends: the number of characters up to the end of each token, ``[N]``.
      text: the text.

    Returns:
      Columns ``line``, ``tokens`` (the number of tokens with a loss that end in this line),
      ``loss`` (their mean) and ``text``.

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
    """The loss in nats of each token except the first, read as one stream; float64 ``[N - 1]``.

    Args:
      model: reads ``tokens`` and returns ``logits``.
      tokens: int32 ``[N]``, N at least 2.
      chunk: the number of tokens per call.
    """
    count, carry, losses = len(tokens) - 1, model.initial_carry(1), []
    chunk = min(chunk, count)
    for start in range(0, count, chunk):
        place = np.arange(start, start + chunk).clip(max=count - 1)  # all have the same shape
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
    """Yields ``length`` tokens that follow the given ones, each as soon as it is chosen.

    Args:
      model: reads ``tokens`` and returns ``logits``.
      tokens: int32 ``[N]``, N at least 1.
      length: the number of tokens to choose.
      temperature: divides the logits; 0 always takes the most likely token.
      seed: determines the random choices.
      filters: determines the tokens that are excluded at each step.
      excluded: tokens that are never chosen.
    """
    carry = model.initial_carry(1) if length else ()
    seen: Any = None
    # Computed on the host, so that these small operations are not compiled.
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
