"""The sections of task ``video``: the videos, the frames to forecast, and the model."""

import dataclasses
import functools

import numpy as np

from lstm_jax.config import Section, option
from lstm_jax.data.moving_digits import Digits, moving_digits, read_digits
from lstm_jax.data.videos import read_videos
from lstm_jax.errors import UserError, expect

DIGITS = "moving_digits"


def odd(number: int) -> None:
    """Raises a :class:`UserError` for an even number.

    >>> odd(4)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: expected an odd number, got 4
    """
    if number % 2 == 0:
        raise UserError(f"expected an odd number, got {number}")


@dataclasses.dataclass(frozen=True)
class VideoData(Section):
    """Section ``[data]`` of task ``video``."""

    videos: str = option(
        DIGITS, f"{DIGITS}, or a .npz file of frames [N, T, height, width, channels]",
        path_or=(DIGITS,),
    )  # fmt: skip
    observed: int = option(10, "number of frames that the model reads", at_least=1)
    horizon: int = option(10, "number of following frames that it forecasts", at_least=1)
    held_out_fraction: float = option(
        0.1, "fraction of a file's videos for validation, and the same for the test",
        above=0, below=0.5,
    )  # fmt: skip
    num_digits: int = option(
        2, "moving_digits: number of digits in a frame", at_least=1, at_most=100
    )
    size: int = option(
        64, "moving_digits: height and width of a frame in pixels", at_least=29, at_most=10_000
    )
    speed: float = option(3.6, "moving_digits: speed in pixels per frame", at_least=0)
    validation_videos: int = option(
        200, "moving_digits: number of videos for validation", at_least=1
    )
    test_videos: int = option(500, "moving_digits: number of videos for the test", at_least=1)
    batch_size: int = option(16, "videos per training step", at_least=1)

    @property
    def num_frames(self) -> int:
        """The number of frames in an example."""
        return self.observed + self.horizon

    def held_out(self) -> dict[str, np.ndarray]:
        """The validation and test videos, uint8 ``[N, num_frames, height, width, C]``.

        Raises:
          UserError: the videos are missing or broken, or too short or too few.
        """
        if self.videos == DIGITS:
            return {
                "validation": self._moving(self._digits["validation"], 0, self.validation_videos),
                "test": self._moving(self._digits["test"], 1, self.test_videos),
            }
        frames, count = self._file, self._held_out_count
        return {
            "validation": frames[-2 * count : -count, : self.num_frames],
            "test": frames[-count:, : self.num_frames],
        }

    def example(self, seed: int, index: int) -> np.ndarray:
        """A training example, uint8 ``[num_frames, height, width, C]``, from a pure function."""
        if self.videos == DIGITS:
            return self._moving(self._digits["train"], (seed, index, 2), 1)[0]
        rng = np.random.default_rng((seed, index))
        train = self._file[: -2 * self._held_out_count]
        start = rng.integers(train.shape[1] - self.num_frames + 1)
        return train[rng.integers(len(train)), start : start + self.num_frames]

    def _moving(self, digits: Digits, seed: int | tuple[int, ...], count: int) -> np.ndarray:
        return moving_digits(
            digits, np.random.default_rng(seed), count, self.num_frames,
            num_digits=self.num_digits, size=self.size, speed=self.speed,
        ).frames  # fmt: skip

    @functools.cached_property
    def _digits(self) -> dict[str, Digits]:
        """The training digits, every tenth of which is for validation, and the test digits."""
        images, labels = read_digits("train")
        held_out = np.arange(len(labels)) % 10 == 9
        return {
            "train": Digits(images[~held_out], labels[~held_out]),
            "validation": Digits(images[held_out], labels[held_out]),
            "test": read_digits("test"),
        }

    @functools.cached_property
    def _file(self) -> np.ndarray:
        try:
            videos = read_videos(self.videos, labelled=False)
        except UserError as error:
            raise UserError(f"data.videos: {error}") from error
        name, needed = f"data.videos: {self.videos}", self.num_frames
        shortest = videos.lengths.min()
        frames = f"videos of at least data.observed + data.horizon = {needed} frames"
        expect(shortest >= needed, name, frames, shortest)
        expect(len(videos.frames) >= 3, name, "at least 3 videos", len(videos.frames))
        frames = videos.frames[:, :shortest]
        return frames if frames.dtype == np.uint8 else np.rint(255 * frames).astype(np.uint8)

    @property
    def _held_out_count(self) -> int:
        return max(1, round(len(self._file) * self.held_out_fraction))


@dataclasses.dataclass(frozen=True)
class VideoConfig(Section):
    """Section ``[model]`` of task ``video``."""

    kind: str = option(
        "conv_lstm", "whether layers read frames as grids or as vectors",
        choices=("conv_lstm", "lstm"),
    )  # fmt: skip
    hidden_size: int = option(
        64, "channels of each layer; for kind lstm, hidden features", at_least=1, at_most=10**6
    )
    num_layers: int = option(
        2, "number of layers of the encoder, and of the forecaster", at_least=1, at_most=256
    )
    kernel_size: int = option(3, "conv_lstm: kernel size, odd", at_least=1, at_most=99, check=odd)
    patch: int = option(
        4, "conv_lstm: side of the squares of pixels that are read as one position", at_least=1
    )
    dtype: str = option(
        "float32", "type of the products; sums stay in float32", choices=("float32", "bfloat16")
    )
