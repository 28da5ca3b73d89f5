"""Animations: the content of each frame of a GIF file."""

import io
import itertools

import numpy as np
from PIL import Image

from lstm_jax.tasks.animations import action_animation, forecast_animation, gif
from tests.skeletons import screen


def frames_of(content: bytes) -> list[np.ndarray]:
    with Image.open(io.BytesIO(content)) as image:
        found = []
        for n in range(image.n_frames):
            image.seek(n)
            found.append(np.asarray(image.convert("RGB")).astype(int))
        return found


def test_images_are_stored_in_order():
    images = [np.full((4, 6), value, np.uint8) for value in (0, 128, 255)]
    found = frames_of(gif(images, 100))
    assert [int(frame.mean()) for frame in found] == [0, 128, 255]
    assert found[0].shape == (4, 6, 3)


def test_a_forecast_is_below_the_true_frames():
    rng = np.random.default_rng(0)
    seen, truth, forecast = (rng.integers(0, 2, (2, t, 5, 7, 1)).astype(float) for t in (2, 3, 3))
    found = frames_of(forecast_animation(seen, truth, forecast))
    assert len(found) == 5 and found[0].shape == (2 * 9, 2 * 11, 3)
    for t, frame in enumerate(found):
        upper = seen[:, t] if t < 2 else truth[:, t - 2]
        lower = seen[:, t] if t < 2 else forecast[:, t - 2]
        for n in (0, 1):
            for row, expected in ((0, upper), (1, lower)):
                part = frame[9 * row + 2 : 9 * row + 7, 11 * n + 2 : 11 * n + 9]
                np.testing.assert_allclose(part[..., 0], 255 * expected[n, ..., 0], atol=3)
    # Without true frames their area is black.
    found = frames_of(forecast_animation(seen, truth[:, :0], forecast))
    assert found[4][2:7, 2:9].max() <= 3


def test_a_skeleton_moves_next_to_its_probabilities():
    joints = screen(1, 1, 5)[..., [0, 1, 2]] / 100
    probabilities = np.eye(8)[[0, 1, 2, 3, 3]]
    found = frames_of(action_animation(joints, probabilities, [f"class $_{n}" for n in range(8)]))
    assert len(found) == 5
    middle = found[0].shape[1] // 2
    for half in (np.s_[:, :middle], np.s_[:, middle:]):
        assert all(np.abs(a[half] - b[half]).max() > 30 for a, b in itertools.pairwise(found[:4]))
