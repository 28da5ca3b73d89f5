"""Moving digits, compared with one digit that is moved step by step."""

import numpy as np
import pytest

from lstm_jax.data.moving_digits import DIRECTIONS, Digits, moving_digits, read_digits
from lstm_jax.errors import UserError

DIGITS = Digits(np.full((3, 28, 28), [[[50]], [[100]], [[200]]], np.uint8), np.array([5, 6, 7]))


def corners(frames: np.ndarray) -> np.ndarray:
    """Row and column of the first pixel that is not black, ``[T, 2]``."""
    return np.array([np.argwhere(frame[..., 0])[0] for frame in frames])


def test_digit_moves_at_constant_speed_and_bounces():
    videos = moving_digits(DIGITS, np.random.default_rng(0), 20, 40, num_digits=1, speed=5.0)
    assert videos.frames.shape == (20, 40, 64, 64, 1) and videos.frames.dtype == np.uint8
    bounced = 0
    for frames, angle in zip(videos.frames, videos.angles[:, 0], strict=True):
        path = corners(frames)
        assert path.min() >= 0 and path.max() <= 36
        # The exact path, step by step, from a start within the rounding error of the first
        # position.
        velocity = 5 * np.array([-np.sin(angle), np.cos(angle)])
        best = np.inf
        for offset in np.random.default_rng(1).uniform(-0.5, 0.5, (60, 2)):
            place, speed, worst = np.clip(path[0] + offset, 0, 36), velocity.copy(), 0.0
            for seen in path[1:]:
                place = place + speed
                for axis in (0, 1):
                    if place[axis] < 0:
                        place[axis], speed[axis] = -place[axis], -speed[axis]
                    elif place[axis] > 36:
                        place[axis], speed[axis] = 72 - place[axis], -speed[axis]
                worst = max(worst, np.abs(place - seen).max())
            best = min(best, worst)
        assert best < 0.8
        bounced += np.abs(np.diff(path, axis=0)).sum() > 0
    assert bounced == 20


def test_pixels_have_the_larger_value_where_digits_overlap():
    videos = moving_digits(DIGITS, np.random.default_rng(3), 30, 2, num_digits=3)
    for frames, labels in zip(videos.frames, videos.labels, strict=True):
        brightest = {5: 50, 6: 100, 7: 200}[int(labels.max())]
        assert frames.max() == brightest
        assert (frames == brightest).sum() >= 2 * 784


def test_directions_are_the_nearest_to_the_angle():
    videos = moving_digits(DIGITS, np.random.default_rng(0), 50, 2, num_digits=1)
    towards = {"right": (1, 0), "up": (0, 1), "left": (-1, 0), "down": (0, -1)}
    for angle, name in zip(videos.angles[:, 0], videos.directions, strict=True):
        scores = [np.dot((np.cos(angle), np.sin(angle)), towards[d]) for d in DIRECTIONS]
        assert name == DIRECTIONS[int(np.argmax(scores))]


def test_a_frame_must_be_larger_than_a_digit():
    with pytest.raises(UserError, match="size: expected more than the 28 pixels of a digit, got 2"):
        moving_digits(DIGITS, np.random.default_rng(0), 1, 1, size=28)


@pytest.mark.data
def test_public_digits_have_their_known_counts(public_data):
    parts = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    public_data("mnist_5k/mnist_5k.csv.gz", *(f"mnist_t10k/{part}" for part in parts))
    train, test = read_digits("train"), read_digits("test")
    assert np.bincount(train.labels).tolist() == [500] * 10
    assert np.bincount(test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert train.images.shape == (5000, 28, 28) and test.images.shape == (10000, 28, 28)
    # The published mean value of a pixel of MNIST.
    assert test.images.mean() / 255 == pytest.approx(0.1325, abs=1e-3)
