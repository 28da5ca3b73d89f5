"""Videos as arrays: NumPy archives of frames, with labels for classification."""

import pathlib
from typing import NamedTuple

import numpy as np

from lstm_jax.data.sequences import npz_arrays, npz_labels, npz_lengths
from lstm_jax.errors import UserError, expect

AXES = "[N, T, height, width, channels]"


class Videos(NamedTuple):
    """Videos of the same size.

    Attributes:
      frames: uint8 from 0 to 255, or float32 from 0 to 1; ``[N, T, height, width, channels]``.
      lengths: the number of valid frames of each video, int32 ``[N]``.
      labels: int32 ``[N]``, positions in ``classes``; zeros if there are no labels.
      classes: the names of the labels; empty if there are no labels.
    """

    frames: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = ()

    def rows(self, chosen: np.ndarray) -> "Videos":
        """A subset of the videos, chosen by booleans ``[N]`` or positions."""
        frames, lengths, labels = (x[chosen] for x in (self.frames, self.lengths, self.labels))
        return Videos(frames, lengths, labels, self.classes)


def unit_range(frames: np.ndarray) -> np.ndarray:
    """Frames as float32 from 0 to 1.

    >>> unit_range(np.array([0, 255], np.uint8)).tolist()
    [0.0, 1.0]
    """
    scale = 255 if frames.dtype == np.uint8 else 1
    return frames.astype(np.float32) / np.float32(scale)


def read_videos(path: str | pathlib.Path, labelled: bool, classes: tuple[str, ...] = ()) -> Videos:
    """A NumPy archive of ``frames`` ``[N, T, height, width, channels]``.

    Frames are bytes, or floats from 0 to 1. ``lengths`` ``[N]`` is optional and holds the number of
    valid frames of each video. ``labels`` ``[N]`` are integers or strings. Pickled objects are not
    read.

    Args:
      path: the file.
      labelled: whether labels are needed; they are ignored otherwise.
      classes: the names of the possible labels; empty for those of the file.

    Raises:
      UserError: the file is missing or damaged, or an array is missing or not valid.

    >>> read_videos("/no/such/file.npz", labelled=True)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.npz: no such file
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    names = ("frames", "lengths", "labels") if labelled else ("frames", "lengths")
    expected = f"expected a .npz file of frames {AXES}"
    try:
        _, arrays = npz_arrays(path, names, expected)
    except UserError as error:
        if "Object arrays" in str(error):
            what = "an array of objects, as of frames of differing sizes"
            raise UserError(f"{path}: {expected}, got {what}") from error
        raise
    expect("frames" in arrays, f"{path}", f"an array frames {AXES}", "none")
    frames = arrays["frames"]
    got = f"{frames.dtype} {frames.shape}"
    expect(frames.ndim == 5 and frames.size, f"{path}: frames", f"an array {AXES}", got)
    expect(frames.dtype == np.uint8 or frames.dtype.kind == "f", f"{path}: frames",
           "bytes from 0 to 255 or floats from 0 to 1", got)  # fmt: skip
    if frames.dtype != np.uint8:
        outside = np.argwhere(~((frames >= 0) & (frames <= 1)))
        for place in outside[:1]:
            where = f"{path}: frames[{', '.join(map(str, place))}]"
            raise UserError(f"{where}: expected a number from 0 to 1, got {frames[*place]}")
        frames = frames.astype(np.float32)
    rows, steps = frames.shape[:2]
    lengths = npz_lengths(path, arrays, rows, steps)
    numbers, found = np.zeros(rows, np.int32), ()
    if labelled:
        expect("labels" in arrays, f"{path}", "an array labels [N]", "none")
        numbers, found = npz_labels(path, arrays["labels"], rows, classes)
    return Videos(frames, lengths, numbers, found)


def check_size(videos: Videos, shape: tuple[int, ...], name: str) -> None:
    """Raises a :class:`UserError` if the shape of the frames differs from that in training.

    >>> videos = Videos(np.zeros((1, 2, 8, 6, 1)), np.array([2]), np.array([0]))
    >>> check_size(videos, (8, 8, 1), "new.npz")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: new.npz: expected frames of 8 x 8 pixels and 1 channel(s), as in ...
    """
    height, width, channels = shape
    expected = f"frames of {height} x {width} pixels and {channels} channel(s), as in training"
    height, width, channels = videos.frames.shape[2:]
    got = f"{height} x {width} and {channels}"
    expect(videos.frames.shape[2:] == tuple(shape), name, expected, got)
