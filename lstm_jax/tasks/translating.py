"""Functions for tasks with an encoder-decoder: losses of given targets, and search for new ones."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lstm_jax.data.tokens import END, START, Tokenizer, padded
from lstm_jax.models import Compiled, Decoding
from lstm_jax.models.beam_search import (
    Hypotheses,
    beam_search,
    coverage_penalty,
    greedy_search,
    repeated,
)

ROWS = 64  # sentences per call
SHORTEST = 8  # lengths are rounded up to this or a larger power of two: few programs compile

Tokens = Sequence[np.ndarray]  # integers [T_n] for each sentence


class Search(NamedTuple):
    """Options of the search for targets.

    Attributes:
      beam: the number of hypotheses per sentence; 1 for greedy search.
      length_penalty: α of :func:`lstm_jax.models.beam_search.length_penalty`.
      coverage_penalty: β of :func:`lstm_jax.models.beam_search.coverage_penalty`.
    """

    beam: int = 5
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0


class Found(NamedTuple):
    """A target found by the search for a source.

    Attributes:
      tokens: int32 ``[T]``, without the end token.
      score: the score by which it is ranked.
    """

    tokens: np.ndarray
    score: float


def smoothed_cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy in nats, with a fraction of each label spread over all tokens.

    ::

        loss = log Σ_v exp z_v - (1 - ε) z_label - ε mean(z)

    Args:
      logits: z, ``[..., V]``.
      labels: integers ``[...]``.
      smoothing: ε.

    Returns:
      ``[...]``.

    >>> float(smoothed_cross_entropy(jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.array(1), 0.0))
    1.386...

    References:
      Christian Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR
      2016, section 7.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing == 0:
        return losses
    right = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return losses + smoothing * (right - logits.mean(-1))


def begun(labels: Any) -> jax.Array:
    """The decoder's inputs for labels ``[B, T]``: the predecessor of each label."""
    return jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=START)


def target_losses(model: Any, sources: Tokens, targets: Tokens) -> np.ndarray:
    """The loss in nats of every target token, including ends; float64, for all sentences."""
    losses = []
    for chosen, source, lengths in _in_batches(sources):
        rows = [np.append(targets[n], END) for n in chosen]
        labels, label_lengths = _padded(rows, len(source))
        carry = model.encode(source=source, lengths=lengths)
        _, outputs = model(carry, tokens=begun(labels))
        each = np.asarray(_cross_entropy(outputs["logits"], labels), np.float64)
        losses += [row[:n] for row, n in zip(each[: len(rows)], label_lengths, strict=False)]
    return np.concatenate(losses)


_cross_entropy = jax.jit(optax.softmax_cross_entropy_with_integer_labels)


def translations(model: Any, sources: Tokens, search: Search) -> list[list[Found]]:
    """For each source, the targets found by the search, the best first."""
    found: list[list[Found]] = [[] for _ in sources]
    for chosen, source, lengths in _in_batches(sources):
        hypotheses = searched(model, source, lengths, search)
        tokens, ends, scores, _ = map(np.asarray, hypotheses)
        for row, n in enumerate(chosen):
            for beam in np.flatnonzero(np.isfinite(scores[row])):
                target = tokens[row, beam, : ends[row, beam]]
                found[n].append(Found(target[target != END], float(scores[row, beam])))
    return found


def attention(model: Any, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The attention of each token of a target, including its end, to the source; ``[T, S]``."""
    labels = np.append(target, END)[None]
    carry = model.encode(source=source[None], lengths=np.array([len(source)], np.int32))
    _, outputs = model(carry, tokens=begun(labels))
    return np.asarray(outputs["attention"])[0]


def searched(model: Any, source: np.ndarray, lengths: np.ndarray, search: Search) -> Hypotheses:
    """The hypotheses for a padded batch of sources; an exported model uses its own search."""
    if not isinstance(model, Compiled):
        return Hypotheses(*model.search(source, lengths, *search))
    penalties = (np.float32(search.length_penalty), np.float32(search.coverage_penalty))
    return _searched(model.graph, model.state, source, lengths, search.beam, penalties)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _searched(
    graph: Any,
    state: Any,
    source: jax.Array,
    lengths: jax.Array,
    beam: int,
    penalties: tuple[jax.Array, jax.Array],
) -> Hypotheses:
    model, (rows, size) = nnx.merge(graph, state), source.shape
    memory, first = repeated(model.encode(source=source, lengths=lengths), beam)
    mask = repeated(jnp.arange(size) < lengths[:, None], beam)

    def step(carry: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        state, coverage = carry
        (_, state), outputs = model(Decoding(memory, state), tokens=token[:, None])
        log_probs = jax.nn.log_softmax(outputs["logits"][:, 0])
        return (state, coverage + outputs["attention"][:, 0]), log_probs

    carry = (first, jnp.zeros(mask.shape))
    how: Any = {"rows": rows, "max_steps": 2 * size, "start": START, "end": END}
    if beam == 1:
        return greedy_search(step, carry, **how)
    alpha, beta = penalties
    return beam_search(
        step, carry, beam=beam, alpha=alpha,
        bonus=lambda carry: coverage_penalty(carry[1], mask, beta), **how,
    )  # fmt: skip


def _in_batches(sources: Tokens) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of sources of similar length: positions, padded tokens with ends, and lengths."""
    order = np.argsort([len(source) for source in sources], kind="stable")
    rows = min(ROWS, 1 << max(0, len(order) - 1).bit_length())
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        yield chosen, *_padded([np.append(sources[n], END) for n in chosen], rows)


def _padded(sentences: Tokens, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Sentences as ``rows`` padded rows; if there are too few, the first ones are repeated."""
    length = max(SHORTEST, 1 << (max(map(len, sentences)) - 1).bit_length())
    missing = rows - len(sentences)
    return padded([*sentences, *[sentences[0]] * missing], length)


def spelled(tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray) -> list[str]:
    """The tokens of a sentence and the end as separate strings, for the labels of a plot."""
    return [*(tokenizer.decode([token]) for token in tokens), "</s>"]


def bleu(lines: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Case-sensitive BLEU of translations in percent with 13a tokens, and sacreBLEU's signature."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(force=True)  # no warning about separated punctuation, as in word-by-word output
    score = metric.corpus_score(list(lines), [list(references)]).score
    return score, str(metric.get_signature())
