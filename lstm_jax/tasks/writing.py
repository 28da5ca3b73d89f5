"""Writing with a model of handwriting: moves one after the other, words on a page, the window."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstm_jax.data.ink import Ink, read_inks
from lstm_jax.errors import UserError, expect
from lstm_jax.models.handwriting_synthesis import END, ON, mixture_of, sampled_moves
from lstm_jax.tasks.handwriting_data import checked_labels
from lstm_jax.tasks.handwriting_synthesis_data import (
    Trail,
    padded_text,
    padded_trails,
    strokes_from,
    trail_of,
)
from lstm_jax.tasks.ink_svg import Panel, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_WIDTH, LINE_HEIGHT, WORD_SPACE = 60.0, 8.0, 2.0  # in deviations of heights
BIASES = (0.0, 0.5, 1.0, 2.0)
STYLES = 3


class Primer(NamedTuple):
    """A piece of handwriting that a model continues, in its style.

    Attributes:
      trail: its moves.
      labels: what was written.
    """

    trail: Trail
    labels: np.ndarray


def write(
    model: Any,
    labels: Sequence[np.ndarray],
    primer: Primer | None,
    bias: float,
    temperature: float,
    longest: int,
    key: jax.Array,
) -> list[list[np.ndarray]]:
    """The strokes of new pieces of handwriting, all written at once.

    With a primer, the model first reads its moves, with the primer's text before each text.

    Args:
      model: a compiled model.
      labels: the text of each piece.
      primer: the style; None for none.
      bias: how neat; see :func:`lstm_jax.models.handwriting_synthesis.mixture_of`.
      temperature: a factor of deviations.
      longest: the most moves of a piece.
      key: a random key.

    Returns:
      For each piece its strokes, ``[N, 2]``, from the first point at 0 on; with a primer, from the
      first point after it.
    """
    rows = len(labels)
    carry, move = model.initial_carry(rows), jnp.zeros((rows, 3))
    if primer is not None:
        labels = [np.concatenate([primer.labels, row]) for row in labels]
        read = padded_trails([primer.trail], len(primer.trail.moves))["moves"]
        read = jnp.asarray(np.repeat(read, rows, axis=0))
        carry, _ = model(carry, moves=read, text=padded_text(labels))
        move = jnp.append(jnp.asarray(primer.trail.moves[-1]), 1.0)
        move = jnp.tile(move.astype(jnp.float32), (rows, 1))
    moves, kinds = _continued(
        model.graph, model.state, longest, carry, move, padded_text(labels), key, bias, temperature
    )
    found = []
    for row, kind in zip(np.asarray(moves), np.asarray(kinds), strict=True):
        ends = np.flatnonzero(kind == END)
        count = ends[0] + 1 if ends.size else len(kind)
        row, kind = row[:count], np.append(ON, kind[:count])
        if primer is not None:  # the first move leads from the primer to the piece
            row, kind = row[1:], kind[1:]
        found.append(strokes_from(row, kind))
    return found


@functools.partial(jax.jit, static_argnums=(0, 2))
def _continued(
    graph: Any, state: Any, longest: int, carry: Any, move: jax.Array, text: jax.Array,
    key: jax.Array, bias: jax.Array, temperature: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Moves ``[B, longest, 2]`` and what their points are, ``[B, longest]``."""
    model = nnx.merge(graph, state)

    def step(before: Any, key: jax.Array) -> tuple[Any, Any]:
        carry, move = before
        carry, outputs = model(carry, moves=move[:, None], text=text)
        mixture = jax.tree.map(lambda leaf: leaf[:, 0], mixture_of(outputs, bias))
        moves, kinds = sampled_moves(key, mixture, temperature)
        following = jnp.concatenate([moves, (kinds[:, None] != ON).astype(jnp.float32)], -1)
        return (carry, following), (moves, kinds)

    _, (moves, kinds) = jax.lax.scan(step, (carry, move), jax.random.split(key, longest))
    return moves.swapaxes(0, 1), kinds.swapaxes(0, 1)


def words_of(text: str, alphabet: str) -> list[str]:
    """The words of a text.

    Raises:
      UserError: there are none, or a letter is not in the alphabet.

    >>> words_of("a ba", "ab")
    ['a', 'ba']
    """
    words = text.split()
    expect(words, "text", "words", repr(text))
    strange = "".join(sorted(set("".join(words)) - set(alphabet)))
    expect(not strange, "text", f"letters of {alphabet}", repr(strange))
    return words


def style_of(path: str, alphabet: str) -> Ink:
    """The first piece of a file of ink, with its text.

    Raises:
      UserError: the file is missing or broken, or the piece has no text of the alphabet.
    """
    try:
        ink = read_inks(path)[0]
        expect(ink.text, path, "ink with its text", "none")
        checked_labels([ink], alphabet, path)
    except UserError as error:
        raise UserError(f"style: {error}") from error
    return ink


def baseline(strokes: Sequence[np.ndarray]) -> float:
    """The height of the line that a word stands on: the median of its lowest points.

    Points are lowest where the pen goes up before and after, or begins or ends.

    >>> baseline([np.array([[0.0, 3.0], [1.0, 1.0], [2.0, 3.0]])])
    1.0
    """
    lowest = []
    for stroke in strokes:
        y = np.pad(stroke[:, 1], 1, constant_values=np.inf)
        lowest += stroke[(y[1:-1] <= y[:-2]) & (y[1:-1] < y[2:]), 1].tolist()
    return float(np.median(lowest))


def laid_out(words: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The strokes of words side by side on lines, as many as they need."""
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
      write: returns the strokes of each word of a list, as ``SynthesisTask.written``.
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
    """Where the model's window is in its text at each point of a piece, above the piece."""
    from matplotlib.figure import Figure

    trail = trail_of([stroke / unit for stroke in strokes])
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
