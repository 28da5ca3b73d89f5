"""Plots of handwriting synthesis: words on a page, biases, styles, and the window over the text."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_jax.data.ink import Ink
from lstm_jax.tasks.ink_svg import Panel, svg
from lstm_jax.tasks.trails import padded_text, padded_trails, trails_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_WIDTH, LINE_HEIGHT, WORD_SPACE = 60.0, 8.0, 2.0  # in deviations of heights
BIASES = (0.0, 0.5, 1.0, 2.0)
STYLES = 3


def baseline(strokes: Sequence[np.ndarray]) -> float:
    """The height of a word's baseline: the median of its lowest points.

    These are the local minima of the height, which can be at the ends of a stroke.

    >>> baseline([np.array([[0.0, 3.0], [1.0, 1.0], [2.0, 3.0]])])
    1.0
    """
    lowest = []
    for stroke in strokes:
        y = np.pad(stroke[:, 1], 1, constant_values=np.inf)
        lowest += stroke[(y[1:-1] <= y[:-2]) & (y[1:-1] < y[2:]), 1].tolist()
    return float(np.median(lowest))


def laid_out(words: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The strokes of words, side by side on as many lines as necessary."""
    placed, left, line = [], 0.0, 0
    for strokes in words:
        points = np.concatenate(strokes)
        low, high = points[:, 0].min(), points[:, 0].max()
        if left and left + high - low > LINE_WIDTH:
            left, line = 0.0, line + 1
        shift = np.array([left - low, -baseline(strokes) - line * LINE_HEIGHT])
        placed += [stroke + shift for stroke in strokes]
        left += high - low + WORD_SPACE
    return placed


def drawn_biases(write: Callable[..., list[list[np.ndarray]]], text: str) -> str:
    """The same text with several biases, side by side, as SVG.

    Args:
      write: returns the strokes of each word in a list, like ``SynthesisTask.written``.
      text: a word.
    """
    found = [write([text], bias=bias)[0] for bias in BIASES]
    return svg(
        [
            Panel(strokes, None, [(f"bias {bias:g}", -1)])
            for bias, strokes in zip(BIASES, found, strict=True)
        ]
    )


def drawn_styles(write: Callable[..., list[list[np.ndarray]]], text: str, inks: list[Ink]) -> str:
    """Pieces of three writers, and the same text in the style of each, as SVG.

    Args:
      write: as for :func:`drawn_biases`.
      text: a word.
      inks: pieces of several writers.
    """
    first = {ink.writer: ink for ink in reversed(inks) if len(ink.text) > 3} or {"": inks[0]}
    panels = []
    for ink in [*first.values()][:STYLES]:
        (strokes,) = write([text], bias=1.0, style=ink)
        panels.append(Panel(ink.strokes, None, [(f"style: {ink.text}", -1)]))
        panels.append(Panel(strokes, None, [(text, -1)]))
    return svg(panels, columns=2)


def window_plot(
    model: Any, strokes: Sequence[np.ndarray], text: str, alphabet: str, unit: float
) -> "Figure":
    """The position of the model's window in the text at each point of a piece, above the piece."""
    from matplotlib.figure import Figure

    (trail,) = trails_of([strokes], unit)
    labels = np.array([alphabet.index(letter) + 1 for letter in text])
    moves = padded_trails([trail], len(trail.moves))["moves"]
    _, outputs = model(model.initial_carry(1), moves=moves, text=padded_text([labels]))
    figure = Figure(figsize=(6, 4), layout="constrained")
    above, below = figure.subplots(2, height_ratios=(2, 1))
    phi = np.asarray(outputs["window"])[0, :, : len(text)].T
    above.imshow(phi, aspect="auto", origin="lower", cmap="viridis", interpolation="nearest")
    above.set_yticks(range(len(text)), [*text])
    above.set_xlabel("point")
    above.set_title("the window's weight on each letter")
    for stroke in strokes:
        below.plot(*stroke.T, color="black", marker="." if len(stroke) == 1 else "", linewidth=1.2)
    below.set_aspect("equal")
    below.axis("off")
    return figure
