"""Sampling from a handwriting model: words in a given style, move by move."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstm_jax.data.ink import Ink, read_inks
from lstm_jax.errors import UserError, expect
from lstm_jax.models.handwriting_synthesis import END, ON, mixture_of, sampled_moves
from lstm_jax.tasks.handwriting_data import checked_labels
from lstm_jax.tasks.handwriting_synthesis_data import standard
from lstm_jax.tasks.trails import Trail, padded_text, padded_trails, strokes_from, trails_of


class Primer(NamedTuple):
    """A piece of handwriting that a model continues in the same style.

    Attributes:
      trail: its moves.
      labels: its text.
    """

    trail: Trail
    labels: np.ndarray


def primer_of(ink: Ink, alphabet: str, every: int, unit: float) -> Primer:
    """A piece of handwriting as moves.

    Args:
      ink: the piece, with its text.
      alphabet: the model's alphabet.
      every: every n-th point of a stroke is read.
      unit: the divisor of moves.
    """
    (labels,) = checked_labels([ink], alphabet, "style")
    (trail,) = trails_of(standard([ink], every), unit)
    return Primer(trail, labels)


def write(
    model: Any,
    labels: Sequence[np.ndarray],
    primer: Primer | None,
    bias: float,
    temperature: float,
    longest: int,
    key: jax.Array,
) -> list[list[np.ndarray]]:
    """The strokes of new pieces of handwriting, which are sampled in parallel.

    With a primer, the model first reads its moves, and its text precedes each text.

    Args:
      model: a compiled model.
      labels: the text of each piece.
      primer: the style; None for none.
      bias: favours neat writing; see :func:`lstm_jax.models.handwriting_synthesis.mixture_of`.
      temperature: a factor of the standard deviations.
      longest: the largest number of moves in a piece.
      key: a random key.

    Returns:
      The strokes of each piece, ``[N, 2]``, starting at the origin; with a primer, starting with
      the first point after it.
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
        if primer is not None:  # the first move connects the primer to the piece
            row, kind = row[1:], kind[1:]
        found.append(strokes_from(row, kind))
    return found


@functools.partial(jax.jit, static_argnums=(0, 2))
def _continued(
    graph: Any, state: Any, longest: int, carry: Any, move: jax.Array, text: jax.Array,
    key: jax.Array, bias: jax.Array, temperature: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Moves ``[B, longest, 2]`` and the kinds of their points, ``[B, longest]``."""
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
