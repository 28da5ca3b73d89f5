"""Skeleton files of people who move one arm in different ways."""

import pathlib

import numpy as np

from lstm_jax.data.skeletons import BONES

PLACES = {  # a standing person, in pixels
    6: (160, 120), 3: (160, 100), 2: (160, 70), 19: (160, 45),
    0: (145, 75), 7: (140, 95), 9: (138, 115), 11: (137, 122),
    1: (175, 75), 8: (180, 95), 10: (182, 115), 12: (183, 122),
    4: (152, 130), 13: (150, 165), 15: (149, 200), 17: (147, 206),
    5: (168, 130), 14: (170, 165), 16: (171, 200), 18: (173, 206),
}  # fmt: skip
assert {joint for bone in BONES for joint in bone} == set(PLACES)


def screen(action: int, subject: int, frames: int, seed: int = 0) -> np.ndarray:
    """``[T, 20, 3]``: the action raises the hand to the side, to the front or up."""
    rng = np.random.default_rng((seed, action, subject))
    joints = np.zeros((frames, 20, 3))
    for joint, place in PLACES.items():
        joints[:, joint] = (*place, 700)
    reach = np.sin(np.linspace(0, np.pi, frames))[:, None]
    direction = np.array([[-40, 0, 0], [0, -20, -60], [0, -60, 0]])[action % 3]
    joints[:, 11] += reach * direction
    joints[:, 9] += reach * direction / 2
    return joints + rng.normal(size=joints.shape) * (0.5, 0.5, 2) + (subject, 0, 3 * subject)


def content(joints: np.ndarray) -> str:
    """A skeleton file."""
    rows = [" ".join([*map(repr, row), "1.0"]) for row in joints.reshape(-1, 3).tolist()]
    return "\n".join([*rows, ""])


def write_skeletons(
    folder: pathlib.Path, subjects=(1, 2, 3, 4), actions=(1, 2, 3), repetitions=(1, 2)
) -> pathlib.Path:
    """Writes a folder of skeleton files; every recording has a different length."""
    folder.mkdir(exist_ok=True)
    for s in subjects:
        for a in actions:
            for e in repetitions:
                joints = screen(a, s, 5 + a + s + e, seed=e)
                (folder / f"a{a:02}_s{s:02}_e{e:02}_skeleton.txt").write_text(content(joints))
    return folder
