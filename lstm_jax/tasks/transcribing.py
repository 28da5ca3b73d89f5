"""Transcripts of a speech model by greedy and beam search, and nearest neighbours."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lstm_jax.models.ctc_beam import Weights, WordModel, greedy, prefix_beam_search
from lstm_jax.tasks.ctc import BLANK, ctc_losses, spelled

ROWS = 32  # recordings per call
SHORTEST = 32  # steps are padded to this or a larger power of two, so few programs compile

Features = Sequence[np.ndarray]  # float32 [T_n, M] for each recording


class Search(NamedTuple):
    """Options of the beam search for transcripts.

    Attributes:
      beam: the number of prefixes retained.
      words: the word model, or None.
      weights: the weights of the word model.
    """

    beam: int
    words: WordModel | None
    weights: Weights


class Heard(NamedTuple):
    """The outputs of a model for some recordings.

    Attributes:
      logits: the logits of each recording, float32 ``[T', C]``.
      greedy: the texts of greedy decoding.
      beam: the texts of the beam search.
    """

    logits: list[np.ndarray]
    greedy: list[str]
    beam: list[str]


def heard(model: Any, features: Features, stride: int, characters: str, search: Search) -> Heard:
    """Logits and transcripts of recordings, from their normalised features."""
    logits = scores(model, features, stride)
    greedy = greedy_transcripts(logits, characters)
    return Heard(logits, greedy, beam_transcripts(logits, characters, search))


def scores(model: Any, features: Features, stride: int) -> list[np.ndarray]:
    """The logits of each recording, float32 ``[T'_n, C]``.

    Args:
      model: a CTC model.
      features: normalised features.
      stride: the stride of the model.
    """
    found: list[Any] = [None] * len(features)
    for chosen, inputs in _in_batches(features, stride):
        _, outputs = model(model.initial_carry(ROWS), **inputs)
        logits, steps = (np.asarray(outputs[name]) for name in ("logits", "steps"))
        for row, n in enumerate(chosen):
            found[n] = logits[row, : steps[row]]
    return found


def greedy_transcripts(logits: Sequence[np.ndarray], characters: str) -> list[str]:
    """The text of the most likely class of each step."""
    found = [""] * len(logits)
    for chosen, inputs in _in_batches(logits, 1):
        labels = np.asarray(greedy(inputs["features"], inputs["lengths"], blank=BLANK).labels)
        for row, n in enumerate(chosen):
            found[n] = spelled(labels[row, 0], characters)
    return found


def beam_transcripts(logits: Sequence[np.ndarray], characters: str, search: Search) -> list[str]:
    """The text of the best labelling that the beam search finds."""
    found = [""] * len(logits)
    for chosen, inputs in _in_batches(logits, 1):
        best = prefix_beam_search(
            inputs["features"], inputs["lengths"], search.words, search.weights,
            beam=search.beam, blank=BLANK,
        )  # fmt: skip
        labels = np.asarray(best.labels[:, 0])
        for row, n in enumerate(chosen):
            found[n] = spelled(labels[row], characters).strip()
    return found


def _in_batches(
    sequences: Features, stride: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Batches of sequences of similar length: their positions, and the inputs of a model.

    All batches have the same number of rows; the last batch is filled with its first rows.
    """
    order = np.argsort([len(each) for each in sequences], kind="stable")
    for first in range(0, len(order), ROWS):
        chosen = order[first : first + ROWS]
        longest, steps = len(sequences[chosen[-1]]), SHORTEST
        while stride * steps < longest:
            steps *= 2
        xs = np.zeros((ROWS, stride * steps, sequences[0].shape[1]), np.float32)
        lengths = np.zeros(ROWS, np.int32)
        for row, n in enumerate(np.resize(chosen, ROWS).tolist()):
            lengths[row] = len(sequences[n])
            xs[row, : lengths[row]] = sequences[n]
        yield chosen, {"features": xs, "lengths": lengths}


def nearest_transcripts(train: Features, texts: Sequence[str], features: Features) -> list[str]:
    """The text of the training recording with the nearest features.

    Features are compared at 32 frames, equally spaced in time.
    """
    known, others = (
        np.stack(
            [each[np.linspace(0, len(each) - 1, 32).round().astype(int)].ravel() for each in x]
        )
        for x in (train, features)
    )
    squares = (known**2).sum(1)
    return [texts[(squares - 2 * known @ each).argmin()] for each in others]


def losses(logits: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
    """The CTC loss of each recording in nats, float64."""
    most = max(map(len, labels))
    found = np.zeros(len(logits))
    for chosen, inputs in _in_batches(logits, 1):
        rows = np.zeros((ROWS, most), np.int32)
        sizes = np.zeros(ROWS, np.int32)
        for row, n in enumerate(chosen):
            sizes[row] = len(labels[n])
            rows[row, : sizes[row]] = labels[n]
        each = _losses(inputs["features"], inputs["lengths"], rows, sizes)
        found[chosen] = np.asarray(each)[: len(chosen)]
    return found


_losses = jax.jit(ctc_losses)
