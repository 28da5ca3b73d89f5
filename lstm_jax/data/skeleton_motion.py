"""Skeleton motion: the features that a classifier reads, and augmentation in training."""

import numpy as np

from lstm_jax.data.skeletons import HIP, JOINTS


def motion_features(joints: np.ndarray) -> np.ndarray:
    """Positions and velocities of all joints except the hip's centre, which is the origin.

    ``v_t = (p_{t+1} - p_{t-1}) / 2``, with the first and last positions repeated at the ends.

    Args:
      joints: ``[T, 20, 3]``.

    Returns:
      float32 ``[T, 114]``.

    >>> still = np.ones((3, 20, 3))
    >>> features = motion_features(still)
    >>> features.shape, bool(features[:, 57:].any())
    ((3, 114), False)
    """
    joints = np.delete(joints, HIP, axis=1)
    longer = np.concatenate([joints[:1], joints, joints[-1:]])
    velocities = (longer[2:] - longer[:-2]) / 2
    both = np.stack([joints, velocities], 1)
    return both.reshape(len(joints), -1).astype(np.float32)


def rotation(yaw: float, pitch: float) -> np.ndarray:
    """The matrix ``[3, 3]`` that rotates about the vertical axis, then tilts about the first.

    Args:
      yaw, pitch: in radians.

    >>> rotation(np.pi / 2, 0.0).round(6).tolist()
    [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]
    """
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = np.cos(pitch), np.sin(pitch)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ turn


def resampled(joints: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Joints at the given times, interpolated between frames.

    Args:
      joints: ``[T, 20, 3]``.
      times: fractional frame indices from 0 to T - 1, ``[S]``.

    Returns:
      ``[S, 20, 3]``.

    >>> resampled(np.arange(2.0)[:, None, None] * np.ones((2, 20, 3)), np.array([0.25]))[0, 0, 0]
    np.float64(0.25)
    """
    before = np.clip(np.floor(times).astype(int), 0, len(joints) - 1)
    after = np.minimum(before + 1, len(joints) - 1)
    share = (times - before)[:, None, None]
    return (1 - share) * joints[before] + share * joints[after]


def varied(
    joints: np.ndarray,
    rng: np.random.Generator,
    *,
    rotate: float = 0.0,
    scale: float = 0.0,
    warp: float = 0.0,
    crop: float = 0.0,
    noise: float = 0.0,
) -> np.ndarray:
    """Augments a recording: the same action by another person in front of another camera.

    Args:
      joints: ``[T, 20, 3]``.
      rng: the source of random numbers.
      rotate: largest angle about the vertical axis, in degrees; the tilt is at most a third.
      scale: largest relative change of each of the three axes.
      warp: largest relative change of the speed, as a logarithm, of the whole and again of its
        parts: the time shown at a share u of the duration is ``u + a sin(pi u) / pi + b sin(2 pi
        u) / (2 pi)`` with a and b between ``-warp / 3`` and ``warp / 3``.
      crop: largest share of the frames cut off at each end.
      noise: deviation of the shift of each joint in the whole recording; that of each frame is
        half as large.

    Returns:
      ``[S, 20, 3]``.

    >>> same = varied(np.ones((4, 20, 3)), np.random.default_rng(0))
    >>> same.shape, bool((same == 1).all())
    ((4, 20, 3), True)
    """
    yaw, pitch = np.deg2rad(rotate) * rng.uniform(-1, 1, 2) * (1, 1 / 3)
    axes = 1 + scale * rng.uniform(-1, 1, 3)
    first, last = (len(joints) - 1) * (np.array([0, 1]) + crop * rng.uniform(size=2) * (1, -1))
    steps = max(2, round((last - first) * np.exp(warp * rng.uniform(-1, 1))) + 1)
    u = np.linspace(0, 1, steps)
    a, b = warp / 3 * rng.uniform(-1, 1, 2)
    u = u + a * np.sin(np.pi * u) / np.pi + b * np.sin(2 * np.pi * u) / (2 * np.pi)
    moved = resampled(joints, first + u.clip(0, 1) * (last - first))
    moved = (moved * axes) @ rotation(yaw, pitch).T
    moved += noise * rng.normal(size=(1, JOINTS, 3))
    return moved + noise / 2 * rng.normal(size=moved.shape)
