"""Damaged and malicious recordings of skeletons and videos.

``pytest tests/robustness --fuzz 5000 -s`` tries more inputs and prints how many.
"""

import contextlib
import io
import shutil
import tarfile
import zipfile

import numpy as np
import pytest

from lstm_jax.data.skeletons import body_coordinates, read_recordings, read_skeleton
from lstm_jax.data.videos import read_videos
from tests.robustness import hostile
from tests.robustness.hostile_text import mutated_lines
from tests.robustness.readers import NUMBER

# ---- skeletons ----


def skeleton(rng):
    numbers = np.random.default_rng(rng.randrange(2**32)).uniform(
        50, 200, (rng.choice([20, 40]), 4)
    )
    return "".join(" ".join(f"{x:.3f}" for x in row) + "\n" for row in numbers)


def damaged_skeleton(rng):
    text = skeleton(rng)
    if rng.random() < 0.6:
        text = mutated_lines(rng, text, " ")
    content = text.encode("utf-8", "replace")
    return hostile.mutated_bytes(rng, content) if rng.random() < 0.3 else content


def skeleton_file(folder, rng):
    path = folder / "a01_s02_e03_skeleton.txt"
    path.write_bytes(rng.choice([damaged_skeleton(rng)] * 20 + [b"", b"\n", b"0 0 0 0\n" * 20]))
    return path


def joints_in(content):
    rows = [line.split() for line in content.split(b"\n") if line.strip()]
    digits = {*map(ord, NUMBER)}
    assert all(len(row) == 4 and {*b"".join(row[:3])} <= digits for row in rows), "no numbers"
    screen = np.array([[float(field) for field in row[:3]] for row in rows])
    return body_coordinates(screen.reshape(-1, 20, 3))


def held_by_skeleton(path, joints):
    assert joints.dtype == np.float32 and np.isfinite(joints).all()
    np.testing.assert_array_equal(joints, joints_in(path.read_bytes()))


NAMES = [
    "a01_s01_e01_skeleton.txt", "x/a02_s10_e02_skeleton.txt", "a20_s01_e03_skeleton.txt",
    "a00_s01_e01_skeleton.txt", "a21_s01_e01_skeleton.txt", "readme.txt", "y/../z.txt",
    "a01_s01_e01_skeleton.txt", "/etc/a05_s01_e01_skeleton.txt", "a13_s09_e02_skeleton.txt",
]  # fmt: skip


def archive(folder, rng):
    """A partly damaged folder, .tar or .zip archive of skeleton files."""
    files = {name: skeleton(rng).encode() for name in rng.sample(NAMES, rng.choice([1, 2, 3]))}
    if rng.random() < 0.3:
        files[rng.choice([*files])] = damaged_skeleton(rng)
    kind = rng.choice(["folder", "tar", "gz", "bz2", "xz", "zip"])
    path = folder / "recordings"
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True) if path.is_file() else None
    if kind == "folder":
        for name, content in files.items():
            (path / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (path / name.lstrip("/")).write_bytes(content)
        return path
    output = io.BytesIO()
    if kind == "zip":
        how = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
        with zipfile.ZipFile(output, "w", how) as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        with tarfile.open(fileobj=output, mode="w" if kind == "tar" else f"w:{kind}") as file:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                if rng.random() < 0.1:
                    member.type = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
                    member.linkname = rng.choice(["/etc/passwd", "missing", name])
                file.addfile(member, io.BytesIO(content))
    content = output.getvalue()
    path = folder / f"recordings.{kind}"
    path.write_bytes(hostile.mutated_bytes(rng, content) if rng.random() < 0.4 else content)
    return path


def held_by_archive(path, recordings):
    assert len({recording.name for recording in recordings}) == len(recordings) > 0
    for recording in recordings:
        assert np.isfinite(recording.joints).all() and recording.joints.shape[1:] == (20, 3)
        assert 0 <= recording.action < 20
    if path.is_dir():
        files = {file.name[:11]: file for file in path.rglob("*_skeleton.txt")}
        for recording in recordings:
            np.testing.assert_array_equal(
                recording.joints, joints_in(files[recording.name].read_bytes())
            )


# ---- videos ----


def video_arrays(rng):
    numbers = np.random.default_rng(rng.randrange(2**32))
    arrays = {
        "frames": numbers.integers(0, 256, (4, 3, 2, 2, 1)).astype(np.uint8),
        "labels": numbers.integers(0, 2, 4),
        "lengths": numbers.integers(1, 4, 4),
    }
    if rng.random() < 0.5:
        arrays["frames"] = arrays["frames"].astype(rng.choice(["f4", "f8", ">f4", "f2"])) / 255
    for _ in range(rng.choice([0, 1, 1, 2])):
        name = rng.choice([*arrays])
        array, what = arrays[name], rng.randrange(6)
        if what == 0:
            with contextlib.suppress(ValueError):
                arrays[name] = array.astype(rng.choice(["i4", "u8", "c8", "U3", "b1", ">i2", "O"]))
        elif what == 1:
            arrays[rng.choice(["frames", "Frames", "labels", "length"])] = arrays.pop(name)
        elif what == 2:
            arrays[name] = np.ones(rng.choice([(), (0,), (4,), (4, 3), (1,) * 5, (4, 3, 0, 2, 1)]))
        elif what == 3 and array.size and array.dtype.kind in "fiu":
            array = array.copy()
            values = [0, 1, 4, 200] if array.dtype.kind in "iu" else [np.nan, -1, 1.5, np.inf, 1.0]
            array.flat[rng.randrange(array.size)] = rng.choice(values)
            arrays[name] = array
        elif what == 4:
            arrays["labels"] = np.array(rng.choices(["no", "yes", "", "é"], k=4))
        else:
            arrays.pop(name)
    return arrays


def video_file(folder, rng):
    path, content = folder / "videos.npz", io.BytesIO()
    np.savez(content, **video_arrays(rng))
    path.write_bytes(content.getvalue())
    what = rng.random()
    if what < 0.25:
        path.write_bytes(hostile.mutated_bytes(rng, path.read_bytes()))
    elif what < 0.45:
        hostile.mutated_zip(rng, path, hostile.mutated_npy)
    elif what < 0.6:
        with zipfile.ZipFile(path, "a") as file, np.testing.suppress_warnings() as quiet:
            quiet.filter(UserWarning)
            file.writestr(rng.choice(["frames", "labels", "lengths.npy", "../frames.npy"]), b"1,2")
    return path


def held_by_videos(path, videos):
    with np.load(path) as file:
        frames, labels = file["frames.npy"], file["labels.npy"]
        lengths = file["lengths.npy"] if "lengths.npy" in file.files + file.zip.namelist() else None
    assert frames.dtype.kind in "fu" and videos.frames.dtype in (np.uint8, np.float32)
    np.testing.assert_array_equal(videos.frames, frames.astype(videos.frames.dtype))
    assert videos.frames.dtype == np.uint8 or ((frames >= 0) & (frames <= 1)).all()
    assert [videos.classes[n] for n in videos.labels] == [str(label) for label in labels]
    assert list(videos.lengths) == (
        [frames.shape[1]] * len(frames) if lengths is None else [int(n) for n in lengths]
    )


KINDS = {
    "skeleton file": (skeleton_file, read_skeleton, held_by_skeleton),
    "recordings of skeletons": (archive, read_recordings, held_by_archive),
    ".npz of videos": (video_file, lambda path: read_videos(path, True), held_by_videos),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_motion(kind, tmp_path, fuzz_budget):
    make, read, check = KINDS[kind]
    more = {"around": hostile.limited} if "recordings" in kind else {}
    outcomes = hostile.tried(
        kind, fuzz_budget, lambda rng: make(tmp_path, rng), read, check, **more
    )
    assert outcomes["read"] and outcomes["rejected"]
