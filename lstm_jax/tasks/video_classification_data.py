"""The sections of task ``video_classification``: the videos, their splits, and the model."""

import dataclasses
import re

from lstm_jax.config import RecurrentConfig, Section, option
from lstm_jax.data import Videos, check_size, last_of_each, read_videos
from lstm_jax.errors import UserError, expect


def sizes(text: str) -> tuple[int, ...]:
    """Parses a list of numbers such as ``"16,32"``.

    Raises:
      UserError: the string is not such a list.

    >>> sizes("16, 32")
    (16, 32)
    """
    if not re.fullmatch(r"\s*[1-9]\d{0,3}\s*(,\s*[1-9]\d{0,3}\s*){0,9}", text, re.ASCII):
        raise UserError(f"expected one to ten numbers from 1 to 9999 such as 16,32, got {text!r}")
    return tuple(int(number) for number in text.split(","))


@dataclasses.dataclass(frozen=True)
class LabelledVideoData(Section):
    """Section ``[data]`` of task ``video_classification``."""

    train: str = option(
        "", "a .npz file of frames [N, T, height, width, channels] and labels [N]", path_or=()
    )
    test: str = option("", "like data.train; if empty, test_fraction of each class", path_or=("",))
    test_fraction: float = option(
        0.2, "fraction of each class held out from data.train if data.test is empty",
        above=0, below=1,
    )  # fmt: skip
    validation_fraction: float = option(
        0.1, "fraction of each class held out from training to choose the best checkpoint",
        at_least=0, below=1,
    )  # fmt: skip
    batch_size: int = option(32, "videos per training step", at_least=1)

    def read(self) -> dict[str, Videos]:
        """The videos of each split.

        Raises:
          UserError: a file is missing or broken, or the test file does not match the training file.
        """
        train = self._read("train", ())
        if self.test:
            test = self._read("test", train.classes)
            check_size(test, train.frames.shape[2:], f"data.test: {self.test}")
        else:
            held_out = last_of_each(train.labels, self.test_fraction)
            test, train = train.rows(held_out), train.rows(~held_out)
        held_out = last_of_each(train.labels, self.validation_fraction)
        return {"train": train.rows(~held_out), "validation": train.rows(held_out), "test": test}

    def _read(self, split: str, classes: tuple[str, ...]) -> Videos:
        expect(getattr(self, split), f"data.{split}", "the path of a .npz file", "none")
        try:
            return read_videos(getattr(self, split), labelled=True, classes=classes)
        except UserError as error:
            raise UserError(f"data.{split}: {error}") from error


@dataclasses.dataclass(frozen=True)
class VideoClassifierConfig(RecurrentConfig):
    """Section ``[model]`` of task ``video_classification``."""

    channels: str = option(
        "16,32", "channels of the convolutions; each one halves height and width", check=sizes
    )
    frame_features: int = option(
        64, "features of a frame, which the LSTM reads", at_least=1, at_most=10**4
    )
    hidden_size: int = option(
        64, "hidden features of each recurrent layer", at_least=1, at_most=10**6
    )
    pooling: str = option(
        "mean", "output of the top layer that is read: the mean or the last",
        choices=("mean", "last"),
    )  # fmt: skip
