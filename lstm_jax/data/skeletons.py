"""Human actions as skeletons: files of MSR Action3D, and body coordinates."""

import io
import itertools
import pathlib
import re
import tarfile
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lstm_jax.data.fetch import cache_folder
from lstm_jax.errors import UserError, expect

JOINTS = 20
HIP, SPINE, NECK, HEAD = 6, 3, 2, 19
BONES = (
    (HIP, SPINE), (SPINE, NECK), (NECK, HEAD),
    (NECK, 0), (0, 7), (7, 9), (9, 11),
    (NECK, 1), (1, 8), (8, 10), (10, 12),
    (HIP, 4), (4, 13), (13, 15), (15, 17),
    (HIP, 5), (5, 14), (14, 16), (16, 18),
)  # fmt: skip
"""Pairs of joints: the trunk, the arms from the neck to the hands, the legs from the hip down."""

ACTIONS = (
    "high arm wave", "horizontal arm wave", "hammer", "hand catch", "forward punch", "high throw",
    "draw x", "draw tick", "draw circle", "hand clap", "two hand wave", "side boxing", "bend",
    "forward kick", "side kick", "jogging", "tennis swing", "tennis serve", "golf swing",
    "pick up and throw",
)  # fmt: skip
"""The actions of MSR Action3D; the first is a01."""

EMPTY_RECORDING = "a13_s09_e02"  # zeros throughout, as published
ACTION3D = "msr_action3d"
SOURCE = "https://github.com/MihirK1212/msraction3d-rpi"

CENTRE = (160.0, 120.0)  # of the image, in pixels
FOCAL_LENGTH = 285.63  # of the camera, in pixels of its 320 x 240 images
PLAIN_NUMBER = re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
LARGEST = 1e4  # of coordinates; a few published files have 2**31 where the tracker failed


class Recording(NamedTuple):
    """A recording of a person who performs an action.

    Attributes:
      name: as in the name of its file, ``"a01_s03_e02"``.
      joints: position of each joint in each frame, float32 ``[T, 20, 3]``, as
        :func:`body_coordinates` returns it.
    """

    name: str
    joints: np.ndarray

    @property
    def action(self) -> int:
        """The index of the action in :data:`ACTIONS`.

        >>> Recording("a02_s03_e01", np.zeros((1, 20, 3))).action
        1
        """
        return int(self.name[1:3]) - 1

    @property
    def subject(self) -> int:
        """The number of the subject, from 1.

        >>> Recording("a02_s03_e01", np.zeros((1, 20, 3))).subject
        3
        """
        return int(self.name[5:7])


def body_coordinates(screen: np.ndarray) -> np.ndarray:
    """Joints from camera coordinates in coordinates that depend only on the body and its pose.

    The projection of the camera is inverted, ``x = (u - 160) d / f`` and ``y = -(v - 120) d / f``,
    with the depth ``d`` as the third coordinate. The hip's centre becomes the origin of each frame.
    Lengths are divided by the distance from hip to head along the spine (the median over frames).
    If the tracker lost a joint (zeros, or numbers beyond :data:`LARGEST`), its coordinates are
    interpolated in time.

    Args:
      screen: ``u`` and ``v`` in pixels and ``d`` in units of the camera, ``[T, 20, 3]``.

    Returns:
      float32 ``[T, 20, 3]``: to the right, upwards and away from the camera, in lengths of the
      trunk with the head.

    Raises:
      ValueError: a joint is missing in every frame, or the trunk has no length.

    >>> screen = np.random.default_rng(0).uniform(50, 200, (4, 20, 3))
    >>> body = body_coordinates(screen)
    >>> body.shape, body[:, 6].tolist() == [[0, 0, 0]] * 4
    ((4, 20, 3), True)
    """
    screen = np.array(screen, np.float64)
    lost = (screen == 0).all(-1) | ~(np.abs(screen) <= LARGEST).all(-1)
    if lost.all():
        raise ValueError("expected joints, got a skeleton of zeros in every frame")
    times = np.arange(len(screen))
    for joint in np.flatnonzero(lost.any(0)):
        seen = ~lost[:, joint]
        if not seen.any():
            raise ValueError(f"expected joint {joint + 1} in some frame, got zeros in every frame")
        for values in screen[:, joint].T:
            values[~seen] = np.interp(times[~seen], times[seen], values[seen])
    depth = screen[..., 2]
    x, y = (screen[..., n] - CENTRE[n] for n in (0, 1))
    points = np.stack([x * depth / FOCAL_LENGTH, -y * depth / FOCAL_LENGTH, depth], -1)
    bones = [np.linalg.norm(points[:, a] - points[:, b], axis=-1) for a, b in BONES[:3]]
    length = np.median(sum(bones))
    if not length > 0:
        raise ValueError(
            "expected a hip, a spine, a neck and a head at different points, got one point"
        )
    return ((points - points[:, HIP, None]) / length).astype(np.float32)


def parse_skeleton(content: bytes, name: str) -> np.ndarray:
    """The joints in the content of a skeleton file.

    Each row has four numbers: u and v in pixels, the depth, and a confidence, which is ignored. 20
    rows, one per joint, form a frame.

    Args:
      content: of the file.
      name: of the file, for messages.

    Returns:
      As :func:`body_coordinates`.

    Raises:
      UserError: it is empty, has a wrong number of columns or rows, or contains no skeleton.

    >>> parse_skeleton(b"1 2 3 1", "a.txt")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: a.txt: expected 20 rows (joints) a frame, got 1 rows
    """
    expect(content.strip(), name, "rows of 4 numbers", "an empty file")
    lines = {n: line.split() for n, line in enumerate(content.split(b"\n"), 1) if line.strip()}
    for number in [n for n, fields in lines.items() if len(fields) != 4][:1]:
        expected = "expected 4 numbers (u, v, depth, confidence)"
        raise UserError(f"{name}: line {number}: {expected}, got {len(lines[number])}")
    rows = [fields[:3] for fields in lines.values()]
    expect(len(rows) % JOINTS == 0, name, f"{JOINTS} rows (joints) a frame", f"{len(rows)} rows")
    # All lines are converted at once, since files are long. NumPy also accepts 1_000 and words.
    digits = re.fullmatch(rb"[-+.0-9eE ]*", b" ".join(itertools.chain(*rows)))
    for number, fields in {} if digits else lines.items():
        if not all(PLAIN_NUMBER.fullmatch(field) for field in fields[:3]):
            got = b" ".join(fields[:3]).decode("utf-8", "replace")
            raise UserError(f"{name}: line {number}: expected numbers, got {got[:60]!r}")
    try:
        screen = np.array(rows).astype(np.float64).reshape(-1, JOINTS, 3)
    except ValueError as error:  # such as 1.2.3
        raise UserError(f"{name}: expected numbers in every line ({error})") from error
    try:
        return body_coordinates(screen)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def read_skeleton(path: str | pathlib.Path) -> np.ndarray:
    """The joints in a skeleton file, as :func:`parse_skeleton` returns them.

    Raises:
      UserError: the file is missing, or as in :func:`parse_skeleton`.

    >>> read_skeleton("/no/such/a01_s01_e01_skeleton.txt")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/a01_s01_e01_skeleton.txt: no such file
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return parse_skeleton(path.read_bytes(), str(path))


def read_recordings(path: str | pathlib.Path) -> list[Recording]:
    """All recordings in a folder, or in a .tar or .zip archive, of skeleton files.

    Files are recognised by their names, ``a01_s01_e01_skeleton.txt``, which contain the numbers of
    the action, the subject and the repetition; other files are ignored. ``a13_s09_e02``, which was
    published without a skeleton, is skipped.

    Returns:
      The recordings, sorted by name.

    Raises:
      UserError: the folder or archive does not exist, contains no such files, contains two files of
        one name, or contains a damaged file.

    >>> read_recordings("/no/such/folder")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/folder: no such folder or archive
    """
    path, found = pathlib.Path(path), {}
    for file, content in _contents(path):
        named = re.search(r"(a(\d\d)_s\d\d_e\d\d)_skeleton\.txt$", file)
        if not named or named[1] == EMPTY_RECORDING:
            continue
        name, place = named[1], f"{path}: {file}"
        known = f"an action from a01 to a{len(ACTIONS)}"
        expect(1 <= int(named[2]) <= len(ACTIONS), place, known, name)
        expect(name not in found, place, "one file for each name", f"two of {name}")
        found[name] = Recording(name, parse_skeleton(content, place))
    expect(found, f"{path}", "files such as a01_s01_e01_skeleton.txt", "none")
    return [found[name] for name in sorted(found)]


def _contents(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the text files in a folder or archive; nothing is unpacked."""
    if path.is_dir():
        for file in sorted(path.rglob("*.txt")):
            yield str(file.relative_to(path)), file.read_bytes()
        return
    if not path.is_file():
        raise UserError(f"{path}: no such folder or archive")
    try:
        yield from _members(path)
    except Exception as error:  # zipfile, tarfile and decompressors raise their own errors
        what = f"{error}" or type(error).__name__
        raise UserError(f"{path}: expected a whole .tar or .zip archive ({what})") from error


def _members(path: pathlib.Path) -> list[tuple[str, bytes]]:
    """Names and contents of the text files in an archive; links are not followed."""
    content = io.BytesIO(path.read_bytes())
    if zipfile.is_zipfile(content):
        with zipfile.ZipFile(content) as archive:
            names = [name for name in archive.namelist() if name.endswith(".txt")]
            return [(name, archive.read(name)) for name in names]
    content.seek(0)
    with tarfile.open(fileobj=content) as archive:
        members = [each for each in archive if each.isfile() and each.name.endswith(".txt")]
        files = [(each.name, archive.extractfile(each)) for each in members]
        return [(name, file.read()) for name, file in files if file is not None]


def find_action3d() -> pathlib.Path:
    """The location of MSR Action3D in the cache folder: a folder of skeleton files, or an archive.

    Raises:
      UserError: it is missing; the message says where to get it.
    """
    folder = cache_folder() / ACTION3D
    if folder.is_dir():
        for pattern in ("*.tar*", "*.zip"):
            if archives := sorted(folder.glob(pattern)):
                return archives[0]
        return folder
    raise UserError(
        f"{folder}: no such folder: get the skeletons of MSR Action3D, 567 files such as "
        f"a01_s01_e01_skeleton.txt, from {SOURCE} (folder msraction3d) and put them there, as "
        "files or as one .tar or .zip archive"
    )
