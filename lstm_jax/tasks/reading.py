"""The transcriptions of a handwriting model: strings, words of a lexicon, plots."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lstm_jax.data.ink import Ink
from lstm_jax.data.strokes import Paths, normalised, paths_of, resampled, strokes_of
from lstm_jax.models.ctc_beam import greedy
from lstm_jax.models.lexicon import Lexicon, best_words
from lstm_jax.tasks.ctc import ctc_losses, spelled
from lstm_jax.tasks.handwriting_data import GRAIN, padded_features
from lstm_jax.tasks.ink_svg import Panel, svg

ROWS = 256  # pieces per call of a model
_losses: Any = jax.jit(ctc_losses)


def model_inputs(
    inks: Sequence[Ink], spacing: float
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Batches of pieces of similar length, as a model reads them, and their positions.

    The last batch of a length is filled with its first pieces, so that there are few shapes.
    """
    paths = resampled(normalised(paths_of([ink.strokes for ink in inks])), spacing)
    ends = np.cumsum(np.bincount(paths.owner))[:-1]
    points = np.split(paths.points, ends)
    strokes = np.split(paths.stroke, ends)
    bounds = np.array([-(-len(part) // GRAIN) * GRAIN for part in points])
    for bound in np.unique(bounds):
        chosen = np.flatnonzero(bounds == bound)
        size = min(ROWS, len(chosen))
        for start in range(0, len(chosen), ROWS):
            part = np.resize(chosen[start : start + ROWS], size)
            pieces = [np.split(points[n], np.flatnonzero(np.diff(strokes[n])) + 1) for n in part]
            xs, lengths = padded_features(paths_of(pieces), bound)
            yield part, {"features": xs, "lengths": lengths}


def readings(
    model: Any,
    inks: Sequence[Ink],
    spacing: float,
    alphabet: str,
    words: tuple[Sequence[str], Lexicon],
    labels: Sequence[np.ndarray] | None = None,
) -> dict[str, list[Any]]:
    """The transcription of each piece of handwriting, in their order.

    Args:
      model: reads ``features`` and ``lengths`` and returns ``logits`` and ``lengths``.
      inks: the pieces.
      spacing: the distance between the points that the model reads.
      alphabet: letter n - 1 for class n.
      words: a lexicon and its tree.
      labels: the labels of each piece, for the losses; None to compute no losses.

    Returns:
      Columns ``reading``, the most likely letters; ``word``, the most likely word of the lexicon;
      ``share``, its share of the lexicon's probability; and, with labels, ``loss``.
    """
    found: dict[str, list[Any]] = {}
    for places, inputs in model_inputs(inks, spacing):
        _, out = model(model.initial_carry(len(places)), **inputs)
        logits, lengths = out["logits"], out["steps"]
        best, shares = best_words(logits, lengths, words[1])
        columns: dict[str, Any] = {
            "reading": [spelled(row, alphabet) for row in greedy(logits, lengths).labels[:, 0]],
            "word": [words[0][n] for n in best],
            "share": shares,
        }
        if labels is not None:
            sizes = np.array([len(labels[n]) for n in places])
            most = max(map(len, labels))
            rows = np.stack([np.pad(labels[n], (0, most - len(labels[n]))) for n in places])
            columns["loss"] = np.asarray(_losses(logits, lengths, rows, sizes))
        for name, column in columns.items():
            ordered = found.setdefault(name, [None] * len(inks))
            for place, value in zip(places, column, strict=True):
                ordered[place] = value
    return found


def drawing(model: Any, inks: Sequence[Ink], spacing: float, alphabet: str, stride: int) -> str:
    """Pieces of handwriting as SVG; the colour of the ink shows the recognised letter."""
    panels: list[Any] = [None] * len(inks)
    for places, inputs in model_inputs(inks, spacing):
        _, out = model(model.initial_carry(len(places)), **inputs)
        best, lengths = np.asarray(out["logits"]).argmax(-1), np.asarray(out["steps"])
        for row, n in enumerate(places):
            paths = resampled(normalised(paths_of([inks[n].strokes])), spacing)
            panels[n] = reading_panel(paths, best[row, : lengths[row]], stride, alphabet)
    return svg(panels)


def nearest_texts(train: Sequence[Ink], inks: Sequence[Ink], points: int = 48) -> list[str]:
    """The text of the nearest training piece of each piece of handwriting.

    The distance is that between corresponding points, which are equally spaced along all strokes.
    """
    known, new = (_outline(part, points) for part in (train, inks))
    squares = (known**2).sum(1)
    nearest: list[Any] = []
    for start in range(0, len(new), ROWS):
        distances = squares - 2 * new[start : start + ROWS] @ known.T
        nearest += distances.argmin(1).tolist()
    return [train[n].text for n in nearest]


def _outline(inks: Sequence[Ink], count: int) -> np.ndarray:
    """Equally spaced points along all strokes of each piece, ``[N, 2 count]``."""
    paths = normalised(paths_of([ink.strokes for ink in inks]))
    rows = np.zeros((len(inks), 2 * count))
    ends = np.cumsum(np.bincount(paths.owner))[:-1]
    lengths = np.hypot(*paths.drawn.T)
    for n, (points, moved) in enumerate(
        zip(np.split(paths.points, ends), np.split(lengths, ends), strict=True)
    ):
        place = np.cumsum(moved) + np.arange(len(moved)) * 1e-9
        wanted = np.linspace(0, place[-1], count)
        rows[n] = np.concatenate([np.interp(wanted, place, axis) for axis in points.T])
    return rows


def reading_panel(paths: Paths, best: np.ndarray, stride: int, alphabet: str) -> Panel:
    """One piece of handwriting, each point in the colour of the letter whose step is nearest.

    Args:
      paths: the points of one piece that the model has read.
      best: the most likely class of each step, integers ``[T]``; 0 is the blank.
      stride: the number of points per step.
      alphabet: letter n - 1 for class n.
    """
    starts = np.flatnonzero((np.diff(best, prepend=0) != 0) & (best > 0))
    letters = [alphabet[label - 1] for label in best[starts]]
    middles = [start + (np.append(best[start:], 0) != best[start]).argmax() / 2 for start in starts]
    groups = np.full(len(paths.points), -1)
    if letters:
        steps = (np.arange(len(groups)) + 0.5) / stride
        groups = abs(steps[:, None] - np.array(middles)).argmin(1)
    (strokes,) = strokes_of(paths)
    ends = np.cumsum([len(stroke) for stroke in strokes])[:-1]
    caption = [(letter, n) for n, letter in enumerate(letters)] or [("(nothing)", -1)]
    return Panel(strokes, np.split(groups, ends), caption)
