"""The sections of handwriting synthesis, its pieces as moves, and its batches."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from lstm_jax.config import RecurrentConfig, Section, option
from lstm_jax.data import Batch, bucketed
from lstm_jax.data.ink import NAMED_INK, Ink, read_ink_splits
from lstm_jax.data.strokes import distorted, paths_of, scaled, strokes_of
from lstm_jax.errors import UserError
from lstm_jax.models.handwriting_synthesis import END, LIFT, ON

GRAIN = 64  # pieces are padded to multiples of so many moves
QUANTUM = 0.5  # of a tablet's units: coordinates are rounded to them


@dataclasses.dataclass(frozen=True)
class SynthesisData(Section):
    """Section ``[data]`` of task ``handwriting_synthesis``."""

    ink: str = option(
        "unipen_sta",
        f"{', '.join(NAMED_INK)}, or the path of a folder, an archive or a file of ink",
        path_or=NAMED_INK,
    )
    every: int = option(2, "one of so many points of a stroke is read", at_least=1, at_most=100)
    batch_size: int = option(64, "pieces of handwriting a training step", at_least=1)
    slant: float = option(0.1, "deviation of the shear of training pieces", at_least=0, at_most=2)
    scale: float = option(0.05, "deviation of the logarithms of scales", at_least=0, at_most=1)

    def read(self) -> dict[str, list[Ink]]:
        """The pieces of handwriting by split; no writer is in two.

        Raises:
          UserError: they are missing or broken.
        """
        try:
            return read_ink_splits(self.ink)
        except UserError as error:
            raise UserError(f"data.ink: {error}") from error


@dataclasses.dataclass(frozen=True)
class SynthesisConfig(RecurrentConfig):
    """Section ``[model]`` of task ``handwriting_synthesis``."""

    hidden_size: int = option(256, "hidden features of each layer", at_least=1, at_most=10**6)
    num_layers: int = option(2, "stacked layers", at_least=1, at_most=256)
    window_components: int = option(
        10, "components of the window on the text", at_least=1, at_most=1000
    )
    mixture_components: int = option(20, "Gaussians of a move", at_least=1, at_most=1000)
    dropout: float = option(0.1, "dropout on the outputs of every layer", at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class Writing(Section):
    """Further options of ``generate`` for task ``handwriting_synthesis``."""

    text: str = option("", "what is written, word by word; empty: the prompt, or an example")
    bias: float = option(0.5, "how neat the writing is; 0: as the model has it", at_least=0)
    style: str = option(
        "", "a file of ink with its text, whose first piece is the style of the writing"
    )


class Trail(NamedTuple):
    """A piece of handwriting as moves between its points.

    Attributes:
      moves: float32 ``[N - 1, 2]``.
      kinds: what the points are, ``ON``, ``LIFT`` or ``END``, int32 ``[N]``.
    """

    moves: np.ndarray
    kinds: np.ndarray


def thinned(inks: Sequence[Ink], every: int) -> list[list[np.ndarray]]:
    """One of ``every`` points of each stroke, beginning with the first, and its last one.

    Coordinates that are integers get a uniform random part, always the same: as rounded ones they
    would have infinite densities.
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


def trail_of(strokes: Sequence[np.ndarray]) -> Trail:
    """The moves of a piece of handwriting.

    >>> trail_of([np.zeros((2, 2)), np.ones((1, 2))]).kinds.tolist()
    [0, 1, 2]
    """
    points = np.concatenate(strokes)
    kinds = np.full(len(points), ON, np.int32)
    kinds[np.cumsum([len(stroke) for stroke in strokes]) - 1] = LIFT
    kinds[-1] = END
    return Trail(np.diff(points, axis=0).astype(np.float32), kinds)


def strokes_from(moves: np.ndarray, kinds: np.ndarray) -> list[np.ndarray]:
    """The strokes of a piece from its moves, its first point at 0.

    Args:
      moves: ``[N - 1, 2]``.
      kinds: of all its points, ``[N]``.

    >>> [len(stroke) for stroke in strokes_from(np.ones((2, 2)), np.array([0, 1, 2]))]
    [2, 1]
    """
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    ends = np.flatnonzero(kinds[:-1] != ON) + 1
    return np.split(points, ends)


def padded_trails(trails: Sequence[Trail], length: int) -> dict[str, np.ndarray]:
    """What a model reads and predicts of some pieces.

    Returns:
      ``moves`` ``[B, T, 3]``, the move to each point but the last (zeros for the first) and
      whether a stroke ends there; ``targets`` ``[B, T, 2]`` and ``kinds`` ``[B, T]``, the move to
      the next point and what it is; ``mask`` ``[B, T]``, true before the end.
    """
    rows = len(trails)
    batch: dict[str, np.ndarray] = {
        "moves": np.zeros((rows, length, 3), np.float32),
        "targets": np.zeros((rows, length, 2), np.float32),
        "kinds": np.zeros((rows, length), np.int32),
        "mask": np.zeros((rows, length), bool),
    }
    for row, (moves, kinds) in enumerate(trails):
        count = len(moves)
        batch["moves"][row, 1:count, :2] = moves[:-1]
        batch["moves"][row, :count, 2] = kinds[:-1] != ON
        batch["targets"][row, :count] = moves
        batch["kinds"][row, :count] = kinds[1:]
        batch["mask"][row, :count] = True
    return batch


def padded_text(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Labels as int32 ``[B, U]``, with zeros past the end, at least one."""
    text = np.zeros((len(labels), 1 + max(map(len, labels))), np.int32)
    for row, letters in zip(text, labels, strict=True):
        row[: len(letters)] = letters
    return text


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
      labels: of each piece.
      unit: by which moves are divided.
      data: options.
      seed: decides the order and the distortions.
    """
    lengths = np.array([sum(map(len, strokes)) - 1 for strokes in pieces])
    bounds = range(GRAIN, max(lengths) + GRAIN, GRAIN)
    text = padded_text(labels)

    def batch(index: int, chosen: tuple[np.ndarray, int]) -> Batch:
        rows, bound = chosen
        rng = np.random.default_rng((seed, index))
        paths = paths_of([pieces[n] for n in rows])
        paths = distorted(paths, rng, slant=data.slant, scale=data.scale, turn=0.0, warp=0.0)
        paths = paths._replace(points=paths.points / unit)
        trails = [trail_of(strokes) for strokes in strokes_of(paths)]
        return padded_trails(trails, bound) | {"text": text[rows]}

    order = bucketed(lengths, bounds, data.batch_size, seed)
    return order.map_with_index(batch)


def standard(inks: Sequence[Ink], every: int) -> list[list[np.ndarray]]:
    """The strokes of each piece with fewer points and of a standard size, slant as it was."""
    return strokes_of(scaled(paths_of(thinned(inks, every))))
