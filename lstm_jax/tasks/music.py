"""Music: piano rolls, frame by frame."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import optax
from flax import nnx

from lstm_jax.config import RecurrentConfig, Section, option
from lstm_jax.data import (
    LOWEST,
    PITCHES,
    Piece,
    digest,
    read_midi,
    read_pieces,
    roll_windows,
)
from lstm_jax.errors import UserError, expect
from lstm_jax.models import PianoRollModel
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.music_data import MusicData
from lstm_jax.tasks.piano_rolls import continued, frame_losses, simple_models, summary, tune
from lstm_jax.tasks.plots import piano_rolls
from lstm_jax.tasks.protocols import File


@dataclasses.dataclass(frozen=True)
class PianoRollConfig(RecurrentConfig):
    """Section ``[model]`` of task ``music``."""

    conditioned: bool = option(False, "whether a pitch depends on the higher pitches in its frame")
    interval_features: int = option(
        0,
        "features computed from the intervals of chords to each pitch; 0: a linear readout",
        at_least=0,
        at_most=10**4,
    )
    input_dropout: float = option(0.0, "dropout on the input frames", at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class MusicSampling(Section):
    """Further options of ``generate`` for task ``music``."""

    soprano: str = option("", "a MIDI file whose highest pitches are retained and harmonised")


@dataclasses.dataclass(frozen=True)
class Music(Task):
    """Predicts which of a piano's 88 pitches sound in each frame, from the previous frames.

    Losses are negative log-likelihoods in nats per frame, summed over pitches.  ``loss`` is the
    mean over all frames of a split except the first frame of each piece; ``with_first_frame`` is
    the mean over all frames.  ``by_piece`` is the mean over pieces of each piece's mean, without
    its first frame.

    Raises:
      UserError: the pieces are missing or broken, or a split has no frame that follows another.

    References:
      Nicolas Boulanger-Lewandowski, Yoshua Bengio, Pascal Vincent, "Modeling Temporal Dependencies
      in High-Dimensional Sequences: Application to Polyphonic Music Generation and Transcription",
      ICML 2012; Shaojie Bai, J. Zico Kolter, Vladlen Koltun, "An Empirical Evaluation of Generic
      Convolutional and Recurrent Networks for Sequence Modeling", arXiv:1803.01271, 2018 (88
      independent sigmoids; the mean over frames without the first of each piece).
    """

    data: MusicData
    model: PianoRollConfig
    unit = "frames"
    loss_unit = "nats a frame"
    splits = ("validation", "test")
    sampling = MusicSampling

    def __post_init__(self) -> None:
        for split, pieces in self._splits.items():
            longest = max(len(piece.roll) for piece in pieces)
            name = f"data.pieces: {self.data.pieces}: {split} split"
            expect(longest >= 2, name, "a piece of at least 2 frames", longest)
        self.model.check_layers(PITCHES)
        features = self.model.interval_features
        needed = "at least 1, as model.conditioned is true"
        expect(features or not self.model.conditioned, "model.interval_features", needed, features)

    # ---- data ----

    @functools.cached_property
    def _splits(self) -> dict[str, list[Piece]]:
        return self.data.read()

    def _rolls(self, split: str) -> list[np.ndarray]:
        return [piece.roll for piece in self._splits[split]]

    def metadata(self) -> dict[str, Any]:
        """``lowest``: the MIDI number of the first pitch."""
        return {"lowest": LOWEST}

    @functools.cached_property
    def fingerprint(self) -> str:
        return digest(*(roll for split in self._splits for roll in self._rolls(split)))

    @property
    def batch_size(self) -> int:
        return self.data.lanes

    @property
    def units_per_step(self) -> int:
        return self.data.lanes * self.data.window

    def batches(self, seed: int) -> grain.MapDataset:
        data = self.data
        return roll_windows(self._rolls("train"), data.lanes, data.window, data.transpose, seed)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows = (self.data.lanes, self.data.window)
        return {
            "frames": jax.ShapeDtypeStruct((*rows, PITCHES), np.float32),
            "start": jax.ShapeDtypeStruct(rows, np.bool),
        }

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> PianoRollModel:
        options = self.model
        return PianoRollModel(
            options.hidden_size, options.num_layers, cell=options.cell_factory,
            conditioned=options.conditioned, interval_features=options.interval_features,
            input_dropout=options.input_dropout, dropout=options.dropout, dtype=options.dtype,
            rngs=rngs,
        )  # fmt: skip

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        frames = batch["frames"]
        carry, outputs = model(carry, frames=frames, start=batch["start"], rngs=rngs)
        losses = optax.sigmoid_binary_cross_entropy(outputs["logits"], frames).sum(-1)
        return losses.mean(), carry

    # ---- metrics ----

    def evaluate(self, model: Any, split: str) -> Metrics:
        """The three means that the class's docstring defines."""
        return summary(frame_losses(model, self._rolls(split)))

    def baselines(self, split: str) -> dict[str, Metrics]:
        """Each pitch separately: with its frequency in training, or as a Markov chain."""
        return simple_models(self._rolls("train"), self._rolls(split))

    def plots(self, model: Any) -> Plots:
        """The first test piece, and the model's probability of each pitch."""
        roll = self._rolls("test")[0]
        _, outputs = model(model.initial_carry(1), frames=roll[None].astype(np.float32))
        likely = np.asarray(jax.nn.sigmoid(outputs["logits"]))[0]
        panels = {"a test piece": roll, "probability of each pitch": likely}
        yield "piano_roll", piano_rolls(panels, self.data.frames_per_beat)

    # ---- new data ----

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """Nats per frame of each piece, without its first frame (NaN if it has only one frame).

        ``source`` is a MIDI file, a folder of MIDI files, or a collection, whose test pieces are
        read.
        """
        pieces = self._splits["test"]
        if source is not None:
            pieces = read_pieces(source, self.data.frames_per_beat)
        losses = frame_losses(model, [piece.roll for piece in pieces])
        return {
            "piece": [piece.name for piece in pieces],
            "frames": np.array([len(piece.roll) for piece in pieces]),
            "loss": np.array([x[1:].mean() if len(x) > 1 else np.nan for x in losses]),
        }

    def generate(
        self, model: Any, *, prompt: str, length: int, temperature: float, seed: int,
        soprano: str = "",
    ) -> Iterator[str | File]:  # fmt: skip
        """Yields the pitches of each frame, then ``tune.mid``, ``tune.wav`` and ``tune.png``."""
        given, melody = self._read(prompt, "prompt"), self._read(soprano, "soprano")
        melody = np.where(melody.any(1), PITCHES - 1 - melody[:, ::-1].argmax(1), -1)
        length = min(length, len(melody)) if soprano else length
        frames = continued(model, given, melody, length, temperature, seed)
        return tune(given, frames, self.data)

    def _read(self, file: str, name: str) -> np.ndarray:
        """The piano roll of a MIDI file; no frames if no file is given."""
        try:
            return read_midi(file, self.data.frames_per_beat) if file else np.zeros((0, PITCHES))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
