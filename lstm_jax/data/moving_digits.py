"""Moving digits: handwritten digits that move through a frame and bounce off its edges."""

import gzip
import zlib
from typing import NamedTuple

import numpy as np

from lstm_jax.data.fetch import fetch
from lstm_jax.errors import UserError, expect

SIDE = 28  # pixels of a digit
DIRECTIONS = ("right", "up", "left", "down")


class Digits(NamedTuple):
    """Handwritten digits.

    Attributes:
      images: uint8 ``[N, 28, 28]``, white on black.
      labels: int32 ``[N]``.
    """

    images: np.ndarray
    labels: np.ndarray


class MovingDigits(NamedTuple):
    """Videos of moving digits.

    Attributes:
      frames: uint8 ``[N, T, size, size, 1]``.
      labels: the digits of each video, int32 ``[N, digits]``.
      angles: the initial direction of each digit, in radians, 0 to the right and π / 2 upwards;
        float64 ``[N, digits]``.
    """

    frames: np.ndarray
    labels: np.ndarray
    angles: np.ndarray

    @property
    def directions(self) -> np.ndarray:
        """The nearest of :data:`DIRECTIONS` to the angle of the first digit, strings ``[N]``."""
        quarters = np.rint(self.angles[:, 0] / (np.pi / 2)).astype(int) % len(DIRECTIONS)
        return np.array(DIRECTIONS)[quarters]


def read_digits(part: str) -> Digits:
    """The digits of a public data set.

    Args:
      part: ``"train"`` for 5000 digits of MNIST's training set (mnist_5k), ``"test"`` for the
        10,000 of its test set.

    Raises:
      UserError: they cannot be fetched.
    """
    if part == "train":
        with gzip.open(fetch("mnist_5k/mnist_5k.csv.gz"), "rt") as file:
            rows = np.loadtxt(file, np.uint8, delimiter=",")
        return Digits(rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].astype(np.int32))
    images = _idx("mnist_t10k/t10k-images-idx3-ubyte.gz", header=16)
    labels = _idx("mnist_t10k/t10k-labels-idx1-ubyte.gz", header=8)
    return Digits(images.reshape(-1, SIDE, SIDE), labels.astype(np.int32))


def _idx(file: str, header: int) -> np.ndarray:
    """The bytes of a file in MNIST's own format, without its header."""
    path = fetch(file)
    try:
        return np.frombuffer(gzip.decompress(path.read_bytes())[header:], np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: expected a whole gzip file ({error})") from error


def moving_digits(
    digits: Digits,
    rng: np.random.Generator,
    count: int,
    num_frames: int = 20,
    *,
    num_digits: int = 2,
    size: int = 64,
    speed: float = 3.6,
) -> MovingDigits:
    """Videos of digits that move at a constant speed in a random direction and bounce.

    If digits overlap, a pixel has the larger of their values.

    Args:
      digits: the digits to choose from.
      rng: determines the digits, their initial positions and directions.
      count: N.
      num_frames: T.
      num_digits: the number of digits in a frame.
      size: height and width of a frame, in pixels.
      speed: pixels per frame.

    Raises:
      UserError: a frame is not larger than a digit, or there are no digits.

    Example:
      >>> digits = Digits(np.full((1, 28, 28), 255, np.uint8), np.array([7]))
      >>> videos = moving_digits(digits, np.random.default_rng(0), 3, 5, num_digits=1)
      >>> videos.frames.shape, (videos.frames[0] > 0).sum((1, 2, 3)).tolist()
      ((3, 5, 64, 64, 1), [784, 784, 784, 784, 784])

    References:
      Nitish Srivastava, Elman Mansimov, Ruslan Salakhutdinov, "Unsupervised Learning of Video
      Representations using LSTMs", ICML 2015.
    """
    room = size - SIDE
    expect(room > 0, "size", f"more than the {SIDE} pixels of a digit", size)
    expect(len(digits.labels), "digits", "at least one", "none")
    shape = (count, num_digits)
    chosen, angles = rng.integers(len(digits.labels), size=shape), rng.uniform(0, 2 * np.pi, shape)
    first = rng.uniform(0, room, (*shape, 2))  # row and column of a digit's corner
    velocity = speed * np.stack([-np.sin(angles), np.cos(angles)], -1)
    times = np.arange(num_frames)[:, None]
    # A path that is reflected at 0 and at room is a folded straight path.
    straight = first[:, :, None] + velocity[:, :, None] * times
    corners = np.rint(room - np.abs(straight % (2 * room) - room)).astype(int)
    frames = np.zeros((count, num_frames, size, size, 1), np.uint8)
    for (n, k), digit in np.ndenumerate(chosen):
        for t, (row, column) in enumerate(corners[n, k]):
            part = frames[n, t, row : row + SIDE, column : column + SIDE, 0]
            np.maximum(part, digits.images[digit], out=part)
    return MovingDigits(frames, digits.labels[chosen], angles)
