"""Videos in NumPy archives: reading, and one-line errors."""

import zipfile

import numpy as np
import pytest

from lstm_jax.data.videos import read_videos, unit_range
from lstm_jax.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 6, 2), np.uint8)
DIFFERING = np.empty(2, object)
DIFFERING[:] = [FRAMES[0], FRAMES[0, :, :3]]


def test_bytes_floats_lengths_and_labels(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, frames=FRAMES, labels=["no", "yes", "no"], lengths=[4, 1, 3])
    found = read_videos(path, labelled=True)
    np.testing.assert_array_equal(found.frames, FRAMES)
    assert found.classes == ("no", "yes") and found.labels.tolist() == [0, 1, 0]
    assert found.lengths.tolist() == [4, 1, 3]
    assert read_videos(path, labelled=False).classes == ()
    np.savez(path, frames=FRAMES / 255)
    again = read_videos(path, labelled=False)
    assert again.frames.dtype == np.float32 and again.lengths.tolist() == [4, 4, 4]
    np.testing.assert_allclose(unit_range(again.frames), unit_range(found.frames), atol=1e-7)
    part = found.rows(np.array([2, 0]))
    assert part.labels.tolist() == [0, 0] and part.lengths.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"frames": DIFFERING}, "frames of differing sizes"),
        ({"frames": FRAMES[0], "labels": [1]}, "frames: expected an array [N, T, height, width, c"),
        ({"frames": FRAMES[:0], "labels": []}, "frames: expected an array [N, T, height, width, c"),
        ({"frames": FRAMES.astype(int), "labels": [1, 2, 3]}, "expected bytes from 0 to 255 or fl"),
        ({"frames": FRAMES / 200, "labels": [1, 2, 3]}, "expected a number from 0 to 1, got 1."),
        (
            {"frames": FRAMES * np.nan, "labels": [1, 2, 3]},
            "expected a number from 0 to 1, got nan",
        ),
        ({"frames": FRAMES, "labels": [1, 2]}, "labels: expected 3 integers or strings, got int64"),
        ({"frames": FRAMES}, "expected an array labels [N], got none"),
        ({"videos": FRAMES, "labels": [1, 2, 3]}, "expected an array frames [N, T, height, width"),
        (
            {"frames": FRAMES, "labels": [1, 2, 3], "lengths": [1, 5, 2]},
            "lengths: expected 3 integers from 1 to 4, got int64 (3,): [1 5 2]",
        ),
    ],
)
def test_unsuitable_file_gives_one_line(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError) as caught:
        read_videos(path, labelled=True)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"PK\x03\x04 half"])
def test_other_file_formats_give_one_line(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz: expected a \.npz file of frames \[N, T, height"):
        read_videos(path, labelled=False)


def test_members_that_are_not_arrays_are_rejected(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, labels=np.array([0, 1]))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("frames", b"1,2")
    with pytest.raises(UserError, match=r"a\.npz: expected an array frames .*, got none"):
        read_videos(path, labelled=True)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("frames.npy", b"1,2")
    with pytest.raises(UserError, match=r"a\.npz: expected a \.npz file of frames"):
        read_videos(path, labelled=True)
