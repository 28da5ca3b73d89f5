"""Ink: handwriting as a pen's path, read from UNIPEN, InkML and CSV files."""

import pathlib
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lstm_jax.data.fetch import cache_folder, fetch
from lstm_jax.data.fields import number, read_rows
from lstm_jax.data.text import read_text
from lstm_jax.data.unipen import ARCHIVES, read_unipen, read_unipen_file
from lstm_jax.errors import UserError, expect

NAMED_INK = ("unipen_sta", "pen_digits")
"""The data sets that a config can name."""

UNIPEN_STA = "unipen_sta/unipen_sta_words.tar.xz"
SUFFIXES = (".csv", ".inkml", ".dat", ".txt", ".upn")
COLUMNS = ("x", "y", "pen")
OPTIONAL_COLUMNS = ("ink", "text", "writer")
SPLITS = ("train", "validation", "test")


class Ink(NamedTuple):
    """One piece of handwriting, such as a word.

    Attributes:
      name: its file, or its position in a file.
      strokes: the pen's path while it touched the paper, a float64 array ``[N, 2]`` for each
        stroke; x grows to the right and y upwards, in any unit.
      text: the written text; empty if unknown.
      writer: the writer; empty if unknown.

    >>> Ink("a dot", (np.array([[0.0, 1.0]]),)).strokes[0].shape
    (1, 2)
    """

    name: str
    strokes: tuple[np.ndarray, ...]
    text: str = ""
    writer: str = ""


def read_inks(path: str | pathlib.Path) -> list[Ink]:
    """All pieces of handwriting of a file, a folder or an archive.

    A ``.csv`` file is read as by :func:`read_ink_csv`, an ``.inkml`` file as by :func:`read_inkml`,
    and a ``.dat``, ``.txt`` or ``.upn`` file as UNIPEN.  A folder contains files of one of these
    kinds; a ``.zip`` or ``.tar`` archive (also compressed) contains UNIPEN files.

    Raises:
      UserError: the path is missing, not supported or damaged, or contains no ink.

    >>> read_inks("/no/such/word.inkml")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/word.inkml: no such file or folder
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        inks = _read_folder(path)
    elif path.name.lower().endswith(ARCHIVES):
        inks = [Ink(*segment) for segment in read_unipen(path)]
    else:
        inks = _read_file(path)
    expect(inks, f"{path}", "ink", "none")
    return inks


def _read_folder(folder: pathlib.Path) -> list[Ink]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for suffix in (".inkml", ".csv"):
        found = [file for file in files if file.suffix.lower() == suffix]
        if found:
            return [ink for file in found for ink in _read_file(file)]
    return [Ink(*segment) for segment in read_unipen(folder)]


def _read_file(path: pathlib.Path) -> list[Ink]:
    suffix = path.suffix.lower()
    kinds = f"a {', '.join(SUFFIXES)} file, an archive or a folder"
    expect(suffix in SUFFIXES, f"{path}", kinds, f"a {suffix or 'nameless'} file")
    if suffix == ".csv":
        return read_ink_csv(path)
    if suffix == ".inkml":
        return [read_inkml(path)]
    return [Ink(*segment) for segment in read_unipen_file(path)]


# ---- CSV ----


def read_ink_csv(path: str | pathlib.Path) -> list[Ink]:
    """Ink from a CSV file with a header and a row for each point.

    Columns ``x`` and ``y`` are the position, x to the right and y downwards as on a screen, in any
    unit. ``pen`` is 1 if the pen touches the paper and 0 otherwise; a 0 ends a stroke. The optional
    columns ``ink``, ``text`` and ``writer`` give the piece of handwriting to which a point belongs,
    its text and its writer; a new value of ``ink`` starts a new piece.

    Raises:
      UserError: the file is missing, a column is missing or unknown, a field is not a number, or
        a piece of handwriting has no points.

    >>> read_ink_csv("/no/such/word.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/word.csv: no such file
    """
    names, *rows = read_rows(path)
    known = f"the columns {', '.join(COLUMNS)} and at most {', '.join(OPTIONAL_COLUMNS)}"
    for name in names:
        expect(name in COLUMNS + OPTIONAL_COLUMNS, f"{path}", known, f"a column {name!r}")
    for name in COLUMNS:
        expect(name in names, f"{path}", known, f"no column {name!r}")
    pieces: list[tuple[dict[str, str], list[list[tuple[float, float]]]]] = []
    down = False
    for line, fields in enumerate(rows, start=2):
        row, place = dict(zip(names, fields, strict=True)), f"{path}: line {line}: column"
        x, y, pen = (number(row[name], f"{place} {name!r}") for name in COLUMNS)
        expect(pen in (0, 1), f"{place} 'pen'", "1 (down) or 0 (up)", row["pen"])
        if not pieces or pieces[-1][0].get("ink") != row.get("ink"):
            pieces.append((row, []))
            down = False
        if pen and not down:
            pieces[-1][1].append([])
        if pen:
            pieces[-1][1][-1].append((x, -y))
        down = bool(pen)
    inks = []
    for count, (row, strokes) in enumerate(pieces, start=1):
        name = row.get("ink") or f"{pathlib.Path(path).name} {count}"
        expect(strokes, f"{path}: {name}", "ink", "no point with pen = 1")
        arrays = tuple(np.array(stroke) for stroke in strokes)
        inks.append(Ink(name, arrays, row.get("text") or "", row.get("writer") or ""))
    expect(inks, f"{path}", "ink", "no points")
    return inks


# ---- InkML ----


def read_inkml(path: str | pathlib.Path) -> Ink:
    """The ink of an InkML file.

    The traces are the strokes of one piece of handwriting. Points are separated by commas. The
    channels X and Y are the first two, unless ``traceFormat`` specifies others; y points downwards.
    ``<annotation type="truth">`` is the text and ``<annotation type="writer">`` the writer.

    Raises:
      UserError: the file is missing or not InkML, has no points, has points with too few numbers,
        or contains differences instead of coordinates.

    References:
      Stephen M. Watt, Tom Underhill (editors), "Ink Markup Language (InkML)", W3C Recommendation,
      2011.

    >>> read_inkml("/no/such/word.inkml")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/word.inkml: no such file
    """
    text = read_text(path)
    expect("<!" not in text.replace("<!--", ""), f"{path}", "InkML without declarations", "some")
    try:
        root = ET.fromstring(text.encode())
    except (ET.ParseError, ValueError) as error:
        raise UserError(f"{path}: not InkML ({error})") from error
    tags = [(element.tag.rpartition("}")[2], element) for element in root.iter()]
    expect(tags[0][0] == "ink", f"{path}", "InkML, whose root is <ink>", f"<{tags[0][0]}>")
    channels = [e.get("name", "") for tag, e in tags if tag == "channel"] or ["X", "Y"]
    both = "X" in channels and "Y" in channels
    expect(both, f"{path}: traceFormat", "the channels X and Y", ", ".join(channels))
    columns = channels.index("X"), channels.index("Y")
    strokes = []
    for count, (_, trace) in enumerate((pair for pair in tags if pair[0] == "trace"), start=1):
        points = [point.split() for point in (trace.text or "").split(",") if point.strip()]
        place = f"{path}: trace {count}"
        for point in points:
            wanted = f"{len(channels)} numbers per point"
            expect(len(point) > max(columns), place, wanted, f"{' '.join(point)!r}")
        if points:
            pairs = [[number(point[column], place) for column in columns] for point in points]
            strokes.append(np.array(pairs) * (1, -1))
    expect(strokes, f"{path}", "ink", "no points")
    said = {e.get("type", ""): (e.text or "").strip() for t, e in tags if t == "annotation"}
    name = pathlib.Path(path).name
    return Ink(name, tuple(strokes), said.get("truth", ""), said.get("writer", ""))


# ---- named sets and splits ----


def read_pen_digits(file: str) -> list[Ink]:
    """The digits in a file of the UCI set: eight points each, and the class.

    References:
      Fevzi Alimoğlu, Ethem Alpaydın, "Methods of Combining Multiple Classifiers Based on Different
      Representations for Pen-based Handwriting Recognition", TAINN 1996.
    """
    inks = []
    for line, text in enumerate(read_text(fetch(f"pen_digits/{file}")).split(), start=1):
        *numbers, classes = text.split(",")  # a 1 at the position of the digit
        points = np.array(numbers, float).reshape(8, 2)
        inks.append(Ink(f"{file} {line}", (points,), str(classes.index("1"))))
    return inks


def read_ink_splits(source: str, by: str = "writer") -> dict[str, list[Ink]]:
    """Ink for training, validation and test.

    Args:
      source: a name in ``NAMED_INK``, or a path as for :func:`read_inks`.
      by: ``"writer"`` or ``"text"``; each writer or text occurs in only one split.

    Returns:
      For ``pen_digits``, the official test file, and every eighth training digit for validation;
      for other sources, the result of :func:`split_inks`.

    Raises:
      UserError: as in :func:`read_inks` and :func:`split_inks`, or a piece has no text.
    """
    if source == "pen_digits":
        digits = read_pen_digits("pendigits.tra")
        train = [ink for place, ink in enumerate(digits) if place % 8]
        test = read_pen_digits("pendigits.tes")
        return {"train": train, "validation": digits[::8], "test": test}
    inks = read_inks(unipen_sta() if source == "unipen_sta" else source)
    for ink in inks:
        expect(ink.text, f"{source}: {ink.name}", "the text that was written", "none")
    try:
        return split_inks(inks, by)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def unipen_sta() -> pathlib.Path:
    """The location in the cache folder of the words of UNIPEN's donor sta.

    Raises:
      UserError: they are missing; the message says how to get them.
    """
    path = cache_folder() / UNIPEN_STA
    folder = path.parent
    if path.exists():
        return path
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    raise UserError(
        f"unipen_sta: not found in {folder}: put the folders data/6/sta and include/sta of UNIPEN "
        "train_r01_v07 (doi.org/10.5281/zenodo.1195803) there, or set data.ink to the path of a "
        "folder or archive with both"
    )


def split_inks(inks: Sequence[Ink], by: str = "writer") -> dict[str, list[Ink]]:
    """Assigns writers (or texts) to the splits; assigns pieces if there are fewer than 12 writers.

    Of the sorted writers, every 6th is for testing, starting with the first, and every 12th is for
    validation, starting with the fourth.

    Args:
      inks: the pieces of handwriting.
      by: ``"writer"`` or ``"text"``, the unit that is assigned.

    Raises:
      UserError: there are fewer than four pieces.

    >>> inks = [Ink("", (), writer=f"{n:02}") for n in range(32)]
    >>> {split: len(part) for split, part in split_inks(inks).items()}
    {'train': 23, 'validation': 3, 'test': 6}
    """
    expect(len(inks) >= 4, "ink", "at least 4 pieces of handwriting", len(inks))
    owners = [ink.writer if by == "writer" else ink.text for ink in inks]
    if len(set(owners)) < 12:
        owners = [f"{place:09}" for place in np.random.default_rng(0).permutation(len(inks))]
    place = {owner: count for count, owner in enumerate(sorted(set(owners)))}
    splits: dict[str, list[Ink]] = {split: [] for split in SPLITS}
    for ink, owner in zip(inks, owners, strict=True):
        split = {0: "test", 6: "test", 3: "validation"}.get(place[owner] % 12, "train")
        splits[split].append(ink)
    return splits
