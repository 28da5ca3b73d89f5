"""The sections of task ``speech``: the recordings, their features, and the model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lstm_jax.config import RecurrentConfig, Section, option
from lstm_jax.data.log_mel import frame_count, log_mels
from lstm_jax.data.transcripts import NAMED_SPEECH, Recordings, read_recordings
from lstm_jax.errors import UserError, expect
from lstm_jax.models.ctc_beam import Weights
from lstm_jax.tasks.transcribing import Search
from lstm_jax.tasks.word_model import word_model


@dataclasses.dataclass(frozen=True)
class SpeechData(Section):
    """Section ``[data]`` of task ``speech``."""

    recordings: str = option(
        "spoken_digits",
        f"{', '.join(NAMED_SPEECH)}, or a CSV table: path, text (and speaker, split)",
        path_or=NAMED_SPEECH,
    )
    validation_fraction: float = option(
        0.1, "table without splits: fraction of speakers for validation", above=0, below=0.5
    )
    test_fraction: float = option(
        0.1, "table without splits: fraction of speakers for the test", above=0, below=0.5
    )
    sample_rate: int = option(
        16000,
        "samples per second, to which recordings are resampled",
        at_least=1000,
        at_most=192_000,
    )
    mel_bands: int = option(80, "features per frame", at_least=8, at_most=256)
    window: float = option(0.025, "length of a frame in seconds", at_least=0.004, at_most=1)
    hop: float = option(0.01, "seconds from one frame to the next", at_least=0.002, at_most=1)
    normalization: str = option(
        "recording",
        "whether each band has mean 0 and deviation 1 in a recording or in the training data",
        choices=("recording", "training"),
    )
    speed_change: float = option(
        0.1, "training also uses copies faster and slower by this fraction; 0: no copies",
        at_least=0, at_most=0.5,
    )  # fmt: skip
    batch_size: int = option(32, "recordings per training step", at_least=1)
    buckets: int = option(
        6, "number of lengths to which training recordings are padded", at_least=1
    )
    frequency_masks: int = option(
        2, "number of masked ranges of bands, in training", at_least=0, at_most=20
    )
    frequency_width: int = option(16, "largest number of bands of a mask", at_least=1)
    time_masks: int = option(
        2, "number of masked ranges of frames, in training", at_least=0, at_most=20
    )
    time_width: float = option(
        0.1, "largest fraction of a recording's frames in a mask", above=0, at_most=1
    )

    def read(self) -> Recordings:
        """The recordings by split.

        Raises:
          UserError: they are missing or broken.
        """
        try:
            return read_recordings(
                self.recordings, self.sample_rate, self.validation_fraction, self.test_fraction
            )
        except UserError as error:
            raise UserError(f"data.recordings: {error}") from error

    @property
    def framing(self) -> dict[str, int]:
        """Keywords ``window`` and ``hop``, in samples."""
        sizes = {"window": self.window, "hop": self.hop}
        return {name: max(1, round(x * self.sample_rate)) for name, x in sizes.items()}

    @property
    def masks(self) -> dict[str, Any]:
        """The options of SpecAugment."""
        names = ("frequency_masks", "frequency_width", "time_masks", "time_width")
        return {name: getattr(self, name) for name in names}

    @property
    def speeds(self) -> list[float]:
        """The speeds of training recordings."""
        change = self.speed_change
        return [1.0 - change, 1.0, 1.0 + change] if change else [1.0]

    def frames(self, samples: np.ndarray, speed: float = 1.0) -> int:
        """The number of frames for a number of samples."""
        return frame_count(int(len(samples) / speed), **self.framing)

    def log_mels(self, recordings: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The features of each recording before they are normalised, float32 ``[T_n, M]``."""
        return log_mels(recordings, rate=self.sample_rate, bands=self.mel_bands, **self.framing)


@dataclasses.dataclass(frozen=True)
class SpeechConfig(RecurrentConfig):
    """Section ``[model]`` of task ``speech``."""

    bidirectional: bool = option(
        True, "whether layers read a recording from both ends; if not, it can be streamed"
    )
    convolutions: int = option(2, "convolutions before the layers", at_least=0, at_most=8)
    stride: int = option(2, "stride of each convolution in time", at_least=1, at_most=8)
    conv_features: int = option(256, "features of each convolution", at_least=1, at_most=10**4)
    kernel_size: int = option(
        5, "kernel size of a convolution in time; at least its stride", at_least=1, at_most=100
    )
    beam_size: int = option(16, "prefixes that the beam search keeps", at_least=1, at_most=1000)
    ngram_order: int = option(
        2, "order of the word model of the beam search; 0: it has none", at_least=0, at_most=5
    )
    ngram_weight: float = option(1.0, "factor of the word model's log probabilities", at_least=0)
    word_bonus: float = option(0.0, "score that each word adds to a transcript")
    unknown_word: float = option(
        -10.0, "log probability of a word that is not in the training transcripts", at_most=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        kernel, expected = self.kernel_size, f"at least stride = {self.stride}"
        expect(kernel >= self.stride, "kernel_size", expected, kernel)

    @property
    def frames_per_step(self) -> int:
        """The stride of all convolutions together."""
        return self.stride**self.convolutions

    @property
    def details(self) -> dict[str, Any]:
        """Keywords of :class:`lstm_jax.models.CTCModel`."""
        names = ("conv_features", "kernel_size", "bidirectional", "dropout", "dtype")
        strides = (self.stride,) * self.convolutions
        options = {name: getattr(self, name) for name in names}
        return {**options, "strides": strides, "cell": self.cell_factory}

    def search(self, characters: str, transcripts: Sequence[str]) -> Search:
        """The beam search, with the word model of some transcripts."""
        weights = Weights(self.ngram_weight, self.word_bonus)
        if self.ngram_order == 0:
            return Search(self.beam_size, None, weights)
        places = {character: n for n, character in enumerate(characters, start=1)}
        lines = [text.split() for text in transcripts]
        how = {"order": self.ngram_order, "separator": places.get(" ", -1)}
        try:
            words = word_model(lines, places, 1 + len(characters), unknown=self.unknown_word, **how)
        except UserError as error:
            raise UserError(f"model.ngram_order: {error}") from error
        return Search(self.beam_size, words, weights)
