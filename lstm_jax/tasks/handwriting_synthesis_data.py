"""The sections of task ``handwriting_synthesis``, the points that it reads, and its batches."""

import dataclasses
import pathlib
from collections.abc import Sequence

import grain
import numpy as np

from lstm_jax.config import RecurrentConfig, Section, option
from lstm_jax.data import Batch, bucketed
from lstm_jax.data.ink import NAMED_INK, Ink, read_ink_splits, read_inks
from lstm_jax.data.strokes import distorted, paths_of, scaled, strokes_of
from lstm_jax.errors import UserError, expect
from lstm_jax.tasks.trails import padded_text, padded_trails, trails_of

GRAIN = 64  # pieces are padded to multiples of this number of moves
QUANTUM = 0.5  # in units of the tablet, to which coordinates are rounded


@dataclasses.dataclass(frozen=True)
class SynthesisData(Section):
    """Section ``[data]`` of task ``handwriting_synthesis``."""

    ink: str = option(
        "unipen_sta",
        f"{', '.join(NAMED_INK)}, or the path of a folder, an archive or a file of ink",
        path_or=NAMED_INK,
    )
    every: int = option(2, "every n-th point of a stroke is read", at_least=1, at_most=100)
    batch_size: int = option(64, "pieces of handwriting per training step", at_least=1)
    slant: float = option(
        0.1, "standard deviation of the shear of training pieces", at_least=0, at_most=2
    )
    scale: float = option(
        0.05, "standard deviation of the logarithm of the size", at_least=0, at_most=1
    )

    def read(self) -> dict[str, list[Ink]]:
        """The pieces with at least one move, by split; each writer is in only one split.

        Raises:
          UserError: they are missing or broken.
        """
        try:
            splits = read_ink_splits(self.ink)
        except UserError as error:
            raise UserError(f"data.ink: {error}") from error
        return {name: [ink for ink in inks if _has_move(ink)] for name, inks in splits.items()}

    def read_new(self, source: pathlib.Path) -> list[Ink]:
        """The pieces of a file, a folder or an archive.

        Raises:
          UserError: the path is missing or broken, or a piece has no move or no text.
        """
        inks = read_inks(source)
        for ink in inks:
            some = ink.text and _has_move(ink)
            expect(some, f"{source}: {ink.name}", "two points and a text", "fewer")
        return inks


@dataclasses.dataclass(frozen=True)
class SynthesisConfig(RecurrentConfig):
    """Section ``[model]`` of task ``handwriting_synthesis``."""

    hidden_size: int = option(256, "hidden features of each layer", at_least=1, at_most=10**6)
    num_layers: int = option(2, "stacked layers", at_least=1, at_most=256)
    window_components: int = option(
        10, "components of the soft window over the text", at_least=1, at_most=1000
    )
    mixture_components: int = option(
        20, "Gaussians in the mixture for a move", at_least=1, at_most=1000
    )
    dropout: float = option(0.1, "dropout on the outputs of every layer", at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class Writing(Section):
    """Further options of ``generate`` for task ``handwriting_synthesis``."""

    text: str = option("", "text to write, word by word; empty: the prompt, or an example")
    bias: float = option(
        0.5, "how neat the writing is; 0: sampled from the model without change", at_least=0
    )
    style: str = option(
        "", "a file of ink with its text, whose first piece is the style of the writing"
    )


def _has_move(ink: Ink) -> bool:  # a dot has no move
    return sum(map(len, ink.strokes)) > 1


def thinned(inks: Sequence[Ink], every: int) -> list[list[np.ndarray]]:
    """Every ``every``-th point of each stroke, starting with the first, and its last point.

    If coordinates are integers, uniform noise is added, always the same, since rounded values would
    have infinite densities.
    """
    rng = np.random.default_rng(0)
    pieces = []
    for ink in inks:
        chosen = []
        for stroke in ink.strokes:
            rounded = (stroke == np.rint(stroke)).all()
            noise = rng.uniform(-QUANTUM, QUANTUM, stroke.shape) if rounded else 0.0
            last = [] if (len(stroke) - 1) % every == 0 else [len(stroke) - 1]
            chosen.append((stroke + noise)[[*range(0, len(stroke), every), *last]])
        pieces.append(chosen)
    return pieces


def training_batches(
    pieces: list[list[np.ndarray]],
    labels: Sequence[np.ndarray],
    unit: float,
    data: SynthesisData,
    seed: int,
) -> grain.MapDataset:
    """Endless batches of pieces of about the same length, each sheared and scaled at random.

    Args:
      pieces: strokes of each piece.
      labels: the labels of each piece.
      unit: the divisor of moves.
      data: options.
      seed: determines the order and the distortions.
    """
    lengths = np.array([sum(map(len, strokes)) - 1 for strokes in pieces])
    bounds = range(GRAIN, max(lengths) + GRAIN, GRAIN)
    text = padded_text(labels)

    def batch(index: int, chosen: tuple[np.ndarray, int]) -> Batch:
        rows, bound = chosen
        rng = np.random.default_rng((seed, index))
        paths = paths_of([pieces[n] for n in rows])
        paths = distorted(paths, rng, slant=data.slant, scale=data.scale, turn=0.0, warp=0.0)
        trails = trails_of(strokes_of(paths), unit)
        return padded_trails(trails, bound) | {"text": text[rows]}

    order = bucketed(lengths, bounds, data.batch_size, seed)
    return order.map_with_index(batch)


def standard(inks: Sequence[Ink], every: int) -> list[list[np.ndarray]]:
    """The strokes of each piece with fewer points and a standard size; the slant is unchanged."""
    return strokes_of(scaled(paths_of(thinned(inks, every))))
