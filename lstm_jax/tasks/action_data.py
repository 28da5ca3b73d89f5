"""The sections of task ``action``: the recordings, their augmentation, and the model."""

import dataclasses
import pathlib
import re

import numpy as np

from lstm_jax.config import RecurrentConfig, Section, option
from lstm_jax.data import (
    ACTION3D,
    Recording,
    find_action3d,
    motion_features,
    read_recordings,
    read_skeleton,
    resampled,
    varied,
)
from lstm_jax.errors import UserError, expect


def subjects(text: str) -> set[int]:
    """Parses a list of numbers such as ``"1, 3, 5"``.

    Raises:
      UserError: the string is not such a list.

    >>> sorted(subjects("1, 3"))
    [1, 3]
    """
    if not re.fullmatch(r"\s*(\d{1,2}\s*(,\s*\d{1,2}\s*)*)?", text, re.ASCII):
        raise UserError(f"expected numbers of subjects such as 1,3,5, got {text!r}")
    return {int(number) for number in re.findall(r"\d+", text)}


@dataclasses.dataclass(frozen=True)
class ActionData(Section):
    """Section ``[data]`` of task ``action``."""

    recordings: str = option(
        ACTION3D, f"{ACTION3D}, or a folder or archive of files a01_s01_e01_skeleton.txt",
        path_or=(ACTION3D,),
    )  # fmt: skip
    train_subjects: str = option(
        "1,3,5,7,9",
        "numbers of the subjects to train on; all others are for the test",
        check=subjects,
    )
    validation_subjects: str = option(
        "", "subjects held out of these to choose the best checkpoint; none: keep the last one",
        check=subjects,
    )  # fmt: skip
    max_frames: int = option(
        64, "largest number of frames; longer recordings are sped up", at_least=2, at_most=1000
    )
    rotate: float = option(
        30.0,
        "in training, recordings are rotated by up to this number of degrees",
        at_least=0,
        at_most=180,
    )
    scale: float = option(
        0.15, "and stretched by up to this fraction along each axis", at_least=0, below=1
    )
    warp: float = option(
        0.3, "and sped up or slowed down by up to this power of e", at_least=0, at_most=1
    )
    crop: float = option(
        0.1, "and shortened at each end by up to this fraction", at_least=0, below=0.5
    )
    noise: float = option(
        0.02,
        "and their joints shifted with this standard deviation, in lengths of the trunk",
        at_least=0,
    )
    copies: int = option(
        1, "varied copies over which predictions are averaged; 1: only the recording itself",
        at_least=1, at_most=1000,
    )  # fmt: skip
    batch_size: int = option(32, "recordings per training step", at_least=1)

    def read(self) -> dict[str, list[Recording]]:
        """The recordings of each split.

        Raises:
          UserError: they are missing or broken, or a split has no subjects.
        """
        named = self.recordings == ACTION3D
        try:
            found = read_recordings(find_action3d() if named else self.recordings)
        except UserError as error:
            raise UserError(f"data.recordings: {error}") from error
        train, held_out = subjects(self.train_subjects), subjects(self.validation_subjects)
        known = f"some of data.train_subjects = {self.train_subjects}, not all"
        expect(held_out < train, "data.validation_subjects", known, self.validation_subjects)
        splits = {"train": train - held_out, "validation": held_out}
        splits["test"] = {recording.subject for recording in found} - train
        rows = {name: [x for x in found if x.subject in who] for name, who in splits.items()}
        for name in ("train", "test", *(["validation"] if held_out else [])):
            key = "validation_subjects" if name == "validation" else "train_subjects"
            expect(rows[name], f"data.{key}", f"subjects with recordings to {name}", "none")
        return rows

    def read_new(self, source: pathlib.Path) -> list[Recording]:
        """The recording in a skeleton file, or all recordings in a folder or archive."""
        if source.suffix == ".txt":
            return [Recording(source.stem.removesuffix("_skeleton"), read_skeleton(source))]
        return read_recordings(source)

    def inputs(self, joints: np.ndarray) -> np.ndarray:
        """Features of a recording of at most ``max_frames`` frames, float32 ``[T, 114]``."""
        if len(joints) > self.max_frames:
            joints = resampled(joints, np.linspace(0, len(joints) - 1, self.max_frames))
        return motion_features(joints)

    def varied(self, joints: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
        """A randomly varied copy of a recording."""
        return varied(
            joints, np.random.default_rng(seed), rotate=self.rotate, scale=self.scale,
            warp=self.warp, crop=self.crop, noise=self.noise,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ActionConfig(RecurrentConfig):
    """Section ``[model]`` of task ``action``."""

    bidirectional: bool = option(
        True, "whether layers read a recording from both ends; false: frame by frame, as a stream"
    )
    dropout: float = option(0.5, "dropout on the outputs of every layer", at_least=0, below=1)
    label_smoothing: float = option(
        0.1,
        "label smoothing: fraction of the target that is spread over all classes",
        at_least=0,
        below=1,
    )
