"""Features and augmentation of skeletons, compared with loops."""

import numpy as np
import pytest

from lstm_jax.data.skeleton_motion import motion_features, resampled, rotation, varied

RNG = np.random.default_rng(0)
JOINTS = RNG.normal(size=(7, 20, 3))


def test_features_are_positions_and_central_differences():
    features = motion_features(JOINTS)
    assert features.shape == (7, 114) and features.dtype == np.float32
    others = [joint for joint in range(20) if joint != 6]
    for t in range(7):
        before, after = JOINTS[max(t - 1, 0)], JOINTS[min(t + 1, 6)]
        np.testing.assert_allclose(features[t, :57].reshape(19, 3), JOINTS[t, others], atol=1e-6)
        velocity = ((after - before) / 2)[others]
        np.testing.assert_allclose(features[t, 57:].reshape(19, 3), velocity, atol=1e-6)


def test_a_rotation_keeps_lengths_and_the_vertical_axis():
    turn = rotation(0.7, 0.0)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(turn @ (0, 1, 0), (0, 1, 0), atol=1e-12)
    both = rotation(0.7, 0.2)
    np.testing.assert_allclose(both @ both.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(both) == pytest.approx(1)


def test_resampling_interpolates_each_coordinate():
    times = np.array([0.0, 1.5, 5.9, 6.0])
    expected = [np.interp(times, np.arange(7), values) for values in JOINTS.reshape(7, -1).T]
    np.testing.assert_allclose(
        resampled(JOINTS, times).reshape(4, -1), np.stack(expected, 1), atol=1e-12
    )


@pytest.mark.parametrize(
    ("option", "value"), [("rotate", 30.0), ("scale", 0.2), ("warp", 0.5), ("crop", 0.3)]
)
def test_each_augmentation_changes_only_its_aspect(option, value):
    """Bones, the order of frames, or the ends are unchanged."""
    found = [varied(JOINTS, np.random.default_rng(seed), **{option: value}) for seed in range(9)]
    assert any(len(x) != 7 or np.abs(x - JOINTS).max() > 0.01 for x in found)
    for x in found:
        if option == "rotate":
            norms = np.linalg.norm(x, axis=-1)
            np.testing.assert_allclose(norms, np.linalg.norm(JOINTS, axis=-1), atol=1e-9)
        elif option == "scale":
            ratio = x / JOINTS
            np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0, 0], ratio.shape), rtol=1e-9)
            assert np.abs(ratio - 1).max() <= 0.2
        elif option == "warp":
            np.testing.assert_allclose(x[[0, -1]], JOINTS[[0, -1]], atol=1e-9)
            assert 4 <= len(x) <= 11
        else:
            assert 3 <= len(x) <= 7


def test_time_runs_forwards_in_a_warp():
    line = np.arange(30.0)[:, None, None] * np.ones((30, 20, 3))
    for seed in range(20):
        times = varied(line, np.random.default_rng(seed), warp=1.0)[:, 0, 0]
        assert (np.diff(times) >= 0).all() and times[0] == 0 and times[-1] == pytest.approx(29)


def test_noise_has_the_requested_deviation():
    still = np.zeros((400, 20, 3))
    found = varied(still, np.random.default_rng(0), noise=0.1)
    shift = found.mean(0)
    assert shift.std() == pytest.approx(0.1, rel=0.25)
    assert (found - shift).std() == pytest.approx(0.05, rel=0.05)
