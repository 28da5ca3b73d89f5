"""UNIPEN: labelled pen recordings, distributed over files that include each other."""

import pathlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lstm_jax.data.fields import is_number
from lstm_jax.errors import UserError, expect

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PART = re.compile(r"(\d+)(?::(\d+))?(?:-(\d+)(?::(\d+))?)?")
LABEL = re.compile(r'(\S+)\s+(\S+)(?:\s+[^"\s]+)?\s*(?:"(.*)")?', re.DOTALL)
DEEPEST = 8  # nested includes


class Segment(NamedTuple):
    """A labelled part of a recording.

    Attributes:
      name: its file and its position in it.
      strokes: float64 ``[N, 2]`` for each stroke, x to the right and y upwards.
      text: its label.
      writer: the writer.
    """

    name: str
    strokes: tuple[np.ndarray, ...]
    text: str
    writer: str


def read_unipen(path: str | pathlib.Path) -> list[Segment]:
    """The labelled segments of all UNIPEN files of a folder or archive.

    A file with ``.SEGMENT`` lines labels components of ink, which it contains itself or includes
    from the folder ``include``, the arrangement of UNIPEN's releases. Components, ``.PEN_DOWN`` and
    ``.PEN_UP``, are numbered together from 0. ``3-5`` denotes the complete components 3 to 5,
    ``3:7-5:2`` starts at point 7 of the first and ends at point 2 of the last, and commas separate
    parts. ``.COORD`` names the columns of a point.

    Args:
      path: a folder, or a .zip or .tar archive of one, also compressed.

    Raises:
      UserError: the path cannot be read, an included file is missing, a segment refers to missing
        components or points, or points are not valid.

    References:
      Isabelle Guyon, Lambert Schomaker, Réjean Plamondon, Mark Liberman, Stan Janet, "UNIPEN
      project of on-line data exchange and recognizer benchmarks", ICPR 1994.
    """
    path = pathlib.Path(path)
    try:
        files = _files(path)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError,
            NotImplementedError) as error:  # fmt: skip
        raise UserError(f"{path}: cannot be read ({error})") from error
    labelled = [
        name
        for name, text in files.items()
        if "include" not in pathlib.PurePosixPath(name).parts and ".SEGMENT" in text
    ]
    expect(labelled, f"{path}", "UNIPEN files with .SEGMENT lines", "none")
    return [segment for name in sorted(labelled) for segment in _segments(name, files)]


def read_unipen_file(path: str | pathlib.Path) -> list[Segment]:
    """The labelled segments of one UNIPEN file, or all its ink if it has none.

    Raises:
      UserError: as in :func:`read_unipen`, or the file includes others.

    >>> read_unipen_file("/no/such/word.dat")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/word.dat: no such file
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return [*_segments(str(path), {str(path): path.read_bytes().decode("latin-1")})]


def _files(path: pathlib.Path) -> dict[str, str]:
    """The text of each file of a folder or archive, by relative path."""
    if path.is_dir():
        found = {
            file.relative_to(path).as_posix(): file.read_bytes()
            for file in path.rglob("*")
            if file.is_file() and not file.name.lower().endswith(ARCHIVES)
        }
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in archive.namelist() if name[-1:] != "/"}
    else:
        with tarfile.open(path) as archive:
            found = {
                member.name: file.read()
                for member in archive
                if member.isfile() and (file := archive.extractfile(member))
            }
    return {name: content.decode("latin-1") for name, content in found.items()}


def _keywords(name: str, files: Mapping[str, str], depth: int = 0) -> Iterator[tuple[str, str]]:
    """Keywords with their arguments; ``.INCLUDE`` is replaced by those of the included file."""
    text = "\n" + files[name].replace("\r\n", "\n")
    for part in text.split("\n.")[1:]:  # anything before the first keyword is ignored
        keyword, rest = [*part.split(None, 1), "", ""][:2]
        if keyword != "INCLUDE":
            yield keyword, rest
            continue
        wanted = f"include/{rest.strip()}"
        found = [file for file in files if file == wanted or file.endswith(f"/{wanted}")]
        expect(found, f"{name}: .INCLUDE", f"a file {wanted} in the same folder or archive", "none")
        expect(depth < DEEPEST, f"{name}: .INCLUDE", f"at most {DEEPEST} files deep", "more")
        yield from _keywords(found[0], files, depth + 1)


def _segments(name: str, files: Mapping[str, str]) -> Iterator[Segment]:
    components: list[tuple[bool, str]] = []
    labels, columns, writer = [], ["X", "Y"], ""
    for keyword, rest in _keywords(name, files):
        if keyword in ("PEN_DOWN", "PEN_UP"):
            if rest.strip():  # empty components are not counted
                components.append((keyword == "PEN_DOWN", rest))
        elif keyword == "SEGMENT":
            labels.append(rest)
        elif keyword == "COORD":
            columns = rest.split()
            both = "X" in columns and "Y" in columns
            expect(both, f"{name}: .COORD", "X and Y among the columns", rest.strip())
        elif keyword == "WRITER_ID":
            writer = rest.strip()
    if not labels and components:
        labels = [f"INK 0-{len(components) - 1}"]
    expect(labels, name, "ink", "no points")
    for label in labels:
        found = LABEL.match(label.strip())
        where = f"{name}: .SEGMENT {' '.join(label.split())}"
        expect(found, where, "a type, components and a label", "something else")
        assert found is not None
        strokes = _strokes(found[2], components, columns, where)
        expect(strokes, where, "ink", "no points")
        text = (found[3] or "").replace('\\"', '"').replace("\\\\", "\\")
        yield Segment(f"{name} {found[2]}", tuple(strokes), text, writer)


def _strokes(
    place: str, components: list[tuple[bool, str]], columns: list[str], where: str
) -> list[np.ndarray]:
    """The strokes of a segment such as ``3:7-5:2,8``."""
    strokes = []
    for part in place.split(","):
        found = PART.fullmatch(part)
        expect(found, where, "components such as 3-5 or 3:7-5:2", repr(part))
        assert found is not None
        first, begin, last, end = found.groups()
        numbers = range(int(first), int(last or first) + 1)
        inside = f"components from 0 to {len(components) - 1}"
        expect(numbers and numbers[-1] < len(components), where, inside, part)
        for number in numbers:
            down, text = components[number]
            if not down:
                continue
            points = _points(text, columns, f"{where}: component {number}")
            start = int(begin or 0) if number == numbers[0] else 0
            stop = int(end) + 1 if end and number == numbers[-1] else len(points)
            expect(start < stop <= len(points), where, f"at most {len(points)} points", part)
            strokes.append(points[start:stop])
    return strokes


def _points(text: str, columns: list[str], where: str) -> np.ndarray:
    """The columns X and Y of a component's numbers."""
    fields = text.split()
    words = [field for field in fields if not is_number(field)]
    expect(not words, where, "numbers", repr("".join(words[:1])))
    numbers = np.array(fields, float)
    wanted = f"{len(columns)} numbers per point"
    expect(numbers.size % len(columns) == 0, where, wanted, f"{numbers.size} numbers")
    table = numbers.reshape(-1, len(columns))[:, [columns.index("X"), columns.index("Y")]]
    expect((abs(table) < 1e9).all(), where, "numbers below 1e9", "others")
    return table
