"""The sections of handwriting recognition, and its batches."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from lstm_jax.config import RecurrentConfig, Section, option
from lstm_jax.data import Batch, bucketed
from lstm_jax.data.ink import NAMED_INK, Ink, read_ink_splits
from lstm_jax.data.strokes import Paths, distorted, features, resampled
from lstm_jax.errors import UserError, expect

GRAIN = 96  # pieces are padded to multiples of this number of points


@dataclasses.dataclass(frozen=True)
class HandwritingData(Section):
    """Section ``[data]`` of task ``handwriting``."""

    ink: str = option(
        "unipen_sta",
        f"{', '.join(NAMED_INK)}, or the path of a folder, an archive or a file of ink",
        path_or=NAMED_INK,
    )
    split_by: str = option(
        "writer", "each writer (or each text) is in only one split", choices=("writer", "text")
    )
    lexicon: str = option(
        "",
        "a text file with one word per line; empty: the labels of the training data",
        path_or=("",),
    )
    batch_size: int = option(64, "pieces of handwriting per training step", at_least=1)
    spacing: float = option(
        0.25, "distance between the points that are read, in standard deviations of their heights",
        above=0.01, at_most=10,
    )  # fmt: skip
    slant: float = option(
        0.2, "standard deviation of the shear of training pieces", at_least=0, at_most=2
    )
    scale: float = option(
        0.15, "standard deviation of the logarithm of the size", at_least=0, at_most=1
    )
    turn: float = option(0.06, "standard deviation of rotations, in radians", at_least=0, at_most=1)
    warp: float = option(
        0.1,
        "standard deviation of a smooth displacement, relative to that of heights",
        at_least=0,
        at_most=1,
    )

    def read(self) -> dict[str, list[Ink]]:
        """The pieces of handwriting by split.

        Raises:
          UserError: they are missing or broken.
        """
        try:
            return read_ink_splits(self.ink, self.split_by)
        except UserError as error:
            raise UserError(f"data.ink: {error}") from error


@dataclasses.dataclass(frozen=True)
class HandwritingConfig(RecurrentConfig):
    """Section ``[model]`` of task ``handwriting``."""

    hidden_size: int = option(
        128, "hidden features of each layer and direction", at_least=1, at_most=10**6
    )
    stride: int = option(
        2, "points per step of the LSTM layers; 1: no convolution", at_least=1, at_most=8
    )
    conv_features: int = option(
        64, "features of the convolution that reads the points", at_least=1, at_most=10**4
    )
    kernel_size: int = option(
        5, "kernel size of the convolution, in points", at_least=1, at_most=100
    )


def training_batches(
    pieces: Paths, labels: Sequence[np.ndarray], data: HandwritingData, seed: int
) -> grain.MapDataset:
    """Endless batches of distorted pieces of handwriting of about the same length.

    Args:
      pieces: normalised strokes.
      labels: the labels of each piece.
      data: options.
      seed: determines the order and the distortions.

    Returns:
      Batches of ``features`` ``[B, T, 6]``, ``lengths`` ``[B]``, ``labels`` ``[B, U]``, zeros past
      the end, and ``label_lengths`` ``[B]``.
    """
    lengths = np.ceil(1.1 * np.bincount(resampled(pieces, data.spacing).owner)).astype(int)
    lengths = np.maximum(lengths, 2 * np.bincount(pieces.piece) + 1)
    bounds = range(GRAIN, max(lengths) + GRAIN, GRAIN)
    starts = np.searchsorted(pieces.owner, np.arange(len(labels) + 1))
    first_stroke = np.searchsorted(pieces.piece, np.arange(len(labels)))
    most = max(map(len, labels))

    def batch(index: int, chosen: tuple[np.ndarray, int]) -> Batch:
        rows, bound = chosen
        rng = np.random.default_rng((seed, index))
        strokes = [pieces.stroke[starts[n] : starts[n + 1]] - first_stroke[n] for n in rows]
        counts = [part[-1] + 1 for part in strokes]
        offsets = np.cumsum(counts) - counts
        paths = Paths(
            np.concatenate([pieces.points[starts[n] : starts[n + 1]] for n in rows]),
            np.concatenate([s + offset for s, offset in zip(strokes, offsets, strict=True)]),
            np.repeat(np.arange(len(rows)), counts),
        )
        paths = distorted(
            paths, rng, slant=data.slant, scale=data.scale, turn=data.turn, warp=data.warp
        )
        xs, steps = padded_features(resampled(paths, data.spacing, bound), bound)
        targets = np.zeros((len(rows), most), np.int32)
        for row, n in enumerate(rows):
            targets[row, : len(labels[n])] = labels[n]
        sizes = np.array([len(labels[n]) for n in rows], np.int32)
        return {"features": xs, "lengths": steps, "labels": targets, "label_lengths": sizes}

    order = bucketed(lengths, bounds, data.batch_size, seed)
    return order.map_with_index(batch)


def padded_features(paths: Paths, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The features of each piece, float32 ``[B, T, 6]``, zeros past its end, and int32 ``[B]``."""
    lengths = np.bincount(paths.owner).astype(np.int32)
    found = features(paths)
    xs = np.zeros((len(lengths), length, found.shape[1]), np.float32)
    within = np.arange(len(found)) - (np.cumsum(lengths) - lengths)[paths.owner]
    xs[paths.owner, within] = found
    return xs, lengths


def checked_labels(inks: Sequence[Ink], alphabet: str, where: str) -> list[np.ndarray]:
    """The labels of each text: letter n of the alphabet is label n + 1.

    Raises:
      UserError: a letter is not in the alphabet.
    """
    places: dict[str, int] = {letter: n for n, letter in enumerate(alphabet, start=1)}
    for ink in inks:
        strange = sorted(set(ink.text) - set(places))
        expect(not strange, f"{where}: {ink.name}", f"letters of {alphabet!r}", ink.text)
    return [np.array([places[letter] for letter in ink.text], np.int32) for ink in inks]


def summary_lines(inks: dict[str, list[Ink]]) -> list[str]:
    """A summary of the handwriting data, one line per split."""
    known = {ink.text for ink in inks["train"]}
    lines = []
    for split, found in inks.items():
        writers = len({ink.writer for ink in found if ink.writer})
        new = sum(ink.text not in known for ink in found)
        hands = f" by {writers} writers" if writers else ""
        unseen = (
            f", {new:,} with a text that does not occur in training" if split != "train" else ""
        )
        lines.append(f"{split}: {len(found):,} pieces{hands}{unseen}")
    return lines
