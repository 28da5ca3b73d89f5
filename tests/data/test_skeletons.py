"""Skeleton files, and the invariance of body coordinates."""

import io
import tarfile
import zipfile

import numpy as np
import pytest

from lstm_jax.data.skeletons import (
    ACTIONS,
    BONES,
    EMPTY_RECORDING,
    FOCAL_LENGTH,
    body_coordinates,
    find_action3d,
    read_recordings,
    read_skeleton,
)
from lstm_jax.errors import UserError
from tests.skeletons import content, screen, write_skeletons


def image(points: np.ndarray) -> np.ndarray:
    """The image of points ``[T, 20, 3]`` in a pinhole camera, in its units."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack([160 + FOCAL_LENGTH * x / z, 120 - FOCAL_LENGTH * y / z, z], -1)


def test_body_coordinates_do_not_depend_on_position_and_size():
    rng = np.random.default_rng(0)
    body = 100 * rng.normal(size=(6, 20, 3))
    near = image(body + np.array([0, 0, 1000]))
    far = image(1.5 * body + np.array([200, -50, 1400]))
    np.testing.assert_allclose(body_coordinates(near), body_coordinates(far), atol=1e-5)
    trunk = sum(np.linalg.norm(body[:, a] - body[:, b], axis=-1) for a, b in BONES[:3])
    expected = (body - body[:, 6:7]) / np.median(trunk)
    np.testing.assert_allclose(body_coordinates(near), expected, atol=1e-5)


def test_lost_joints_are_interpolated_in_time():
    joints = screen(1, 1, 6)
    whole = body_coordinates(joints)
    joints[2] = 0
    joints[4, 11] = 2.0**31
    found = body_coordinates(joints)
    assert np.isfinite(found).all() and np.abs(found).max() < 3
    still = [0, 1, 3, 5]
    np.testing.assert_allclose(found[still], whole[still], atol=0.05)  # the scale is a median


def test_files_are_read_from_folders_and_archives(tmp_path):
    folder = write_skeletons(tmp_path / "data", subjects=(1, 2), actions=(1, 20))
    (folder / f"{EMPTY_RECORDING}_skeleton.txt").write_text(content(np.zeros((3, 20, 3))))
    (folder / "readme.txt").write_text("not a skeleton")
    found = read_recordings(folder)
    assert [x.name for x in found][:3] == ["a01_s01_e01", "a01_s01_e02", "a01_s02_e01"]
    assert [(ACTIONS[x.action], x.subject) for x in found][-1] == ("pick up and throw", 2)
    assert len(found) == 8
    np.testing.assert_array_equal(
        found[0].joints, read_skeleton(folder / "a01_s01_e01_skeleton.txt")
    )
    np.testing.assert_allclose(
        found[0].joints, body_coordinates(screen(1, 1, 8, seed=1)), atol=1e-6
    )
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as tar:
        tar.add(folder, "msraction3d")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"repository/msraction3d/{file.name}")
    for name in ("a.tar.xz", "a.zip"):
        again = read_recordings(tmp_path / name)
        assert [x.name for x in again] == [x.name for x in found]
        np.testing.assert_array_equal(again[3].joints, found[3].joints)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected rows of 4 numbers, got an empty file"),
        (content(np.zeros((2, 20, 3))), "expected joints, got a skeleton of zeros in every frame"),
        (content(np.ones((1, 20, 3)))[:-16], "expected 20 rows (joints) a frame, got 19 rows"),
        ("1 2 3\n", "line 1: expected 4 numbers (u, v, depth, confidence), got 3"),
        ("1 2 x 1\n" * 20, "line 1: expected numbers, got '1 2 x'"),
        (
            content(np.full((2, 20, 3), 9.0)),
            "expected a hip, a spine, a neck and a head at different",
        ),
    ],
)
def test_damaged_file_gives_one_line(tmp_path, text, message):
    path = tmp_path / "a01_s01_e01_skeleton.txt"
    path.write_text(text)
    for read, source in ((read_skeleton, path), (read_recordings, tmp_path)):
        with pytest.raises(UserError) as caught:
            read(source)
        assert message in str(caught.value) and str(caught.value).startswith(str(source))


def test_a_joint_that_is_never_seen_is_named(tmp_path):
    joints = screen(1, 1, 4)
    joints[:, 7] = 0
    with pytest.raises(ValueError, match="expected joint 8 in some frame, got zeros"):
        body_coordinates(joints)


def test_damaged_archives_and_folders_give_one_line(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"a\.tar: expected a whole \.tar or \.zip archive"):
        read_recordings(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"expected files such as a01_s01_e01_skeleton\.txt, got n"):
        read_recordings(tmp_path)
    (tmp_path / "a21_s01_e01_skeleton.txt").write_text(content(screen(1, 1, 3)))
    with pytest.raises(UserError, match="expected an action from a01 to a20, got a21_s01_e01"):
        read_recordings(tmp_path)


def test_the_data_set_is_found_in_the_cache_or_the_error_says_where_to_get_it(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("LSTM_JAX_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"msr_action3d: no such folder: get the skeletons .* from"):
        find_action3d()
    folder = write_skeletons(tmp_path / "msr_action3d", subjects=(1,), actions=(2,))
    assert len(read_recordings(find_action3d())) == 2
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder / "a02_s01_e01_skeleton.txt")
    (folder / "all.tar").write_bytes(buffer.getvalue())
    assert find_action3d().name == "all.tar"
    assert len(read_recordings(find_action3d())) == 1


@pytest.mark.data
def test_the_public_recordings_are_those_of_the_literature():
    """291 recordings of odd subjects and 275 of even ones."""
    try:
        path = find_action3d()
    except UserError as error:
        pytest.skip(f"needs public data: {error}")
    found = read_recordings(path)
    odd = sum(x.subject % 2 for x in found)
    assert (odd, len(found) - odd) == (291, 275)
    assert {x.action for x in found} == set(range(20))
    assert all(np.isfinite(x.joints).all() for x in found)


def test_links_in_archives_and_numbers_in_other_notations_are_rejected(tmp_path):
    name, good = "a01_s01_e01_skeleton.txt", content(screen(1, 1, 4)).encode()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(good)
        archive.addfile(member, io.BytesIO(good))
        link = tarfile.TarInfo("a02_s01_e01_skeleton.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert [x.name for x in read_recordings(tmp_path / "a.tar")] == ["a01_s01_e01"]
    for word in (b"1_0", b"nan", b"\xd9\xa1"):
        (tmp_path / name).write_bytes(word + good[good.index(b" ") :])
        with pytest.raises(UserError, match=r"line 1: expected numbers, got"):
            read_skeleton(tmp_path / name)
