"""A plot of the characters that a speech model recognises over time."""

import itertools
from typing import TYPE_CHECKING

import numpy as np

from lstm_jax.tasks.ctc import BLANK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spikes(
    features: np.ndarray, logits: np.ndarray, characters: str, frame: float, step: float
) -> "Figure":
    """A spectrogram, and above it the probability of each character, labelled at its peaks.

    Args:
      features: log-mel features, ``[T, M]``.
      logits: the logits of the blank and the characters, ``[T', C]``.
      characters: character n is class n + 1.
      frame: seconds from one frame to the next.
      step: seconds from one step of the logits to the next.
    """
    from matplotlib.figure import Figure

    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    times = (np.arange(len(probs)) + 0.5) * step
    figure = Figure(figsize=(min(24, 3 + 4 * len(features) * frame), 3.6), layout="constrained")
    axes = figure.add_subplot()
    extent = (0, len(features) * frame, 0, features.shape[1])
    axes.imshow(features.T, origin="lower", aspect="auto", extent=extent, cmap="gray_r")
    axes.set(xlabel="seconds", ylabel="mel band")
    over = axes.twinx()
    over.set(ylim=(0, 1.15), ylabel="probability of a character")
    for n in np.flatnonzero((probs.argmax(-1)[:, None] == np.arange(probs.shape[1])).any(0)):
        if n != BLANK:
            over.plot(times, probs[:, n], color=f"C{n % 10}", linewidth=1.2)
    for start, end, n in runs(probs.argmax(-1)):
        if n != BLANK:
            peak = start + probs[start:end, n].argmax()
            name = characters[n - 1].replace(" ", "␣")
            over.text(times[peak], probs[peak, n] + 0.02, name, ha="center", color=f"C{n % 10}")
    return figure


def runs(classes: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs of equal classes: the start, the end and the class of each.

    >>> runs(np.array([0, 0, 3, 3, 1]))
    [(0, 2, 0), (2, 4, 3), (4, 5, 1)]
    """
    bounds = [0, *(np.flatnonzero(np.diff(classes)) + 1).tolist(), len(classes)]
    return [(start, end, int(classes[start])) for start, end in itertools.pairwise(bounds)]
