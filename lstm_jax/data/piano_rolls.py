"""Collections of music as piano rolls: MATLAB files, JSON files, folders of MIDI files."""

import io
import itertools
import json
import math
import pathlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from lstm_jax.data.midi import LOWEST, PITCHES, read_midi
from lstm_jax.data.pipelines import Batch
from lstm_jax.data.text import read_text
from lstm_jax.errors import UserError, expect, first_line

NAMED_MUSIC = {
    "jsb": "poly_music/JSB_Chorales.mat",
    "jsb_16th": "jsb_chorales/jsb-chorales-16th.json",
    "nottingham": "poly_music/Nottingham.mat",
}
"""Registered files by their name in a config."""

SPLITS = ("train", "validation", "test")
MAT_NAMES = ("traindata", "validdata", "testdata")
BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
"""The size of a number, by type of element in a MATLAB file."""

FOLDER_NAMES = ("train", "valid", "test")


class Piece(NamedTuple):
    """A piece of music.

    Attributes:
      name: its file, or its position in a file.
      roll: the pitches that sound in each frame, uint8 ``[T, 88]``.

    >>> Piece("tune.mid", np.zeros((16, 88), np.uint8)).roll.shape
    (16, 88)
    """

    name: str
    roll: np.ndarray


def read_collection(
    path: str | pathlib.Path, frames_per_beat: int, held_out: float
) -> dict[str, list[Piece]]:
    """The training, validation and test pieces of a collection.

    A ``.mat`` file holds piano rolls in ``traindata``, ``validdata`` and ``testdata``, each a cell
    array of matrices ``[T, 88]``; a ``.json`` file has lists ``train``, ``valid`` and ``test`` of
    pieces, each a list of frames of MIDI numbers (negative for a rest).  In a folder of MIDI files,
    the subfolders train, valid and test are the splits; without them, the files are assigned at
    random, reproducibly.

    Args:
      path: the file or folder.
      frames_per_beat: the time resolution of MIDI files.
      held_out: the fraction of a folder's files for validation, and the same number for the test.

    Raises:
      UserError: the path is missing, empty, not supported or damaged, or a split has no pieces.

    >>> read_collection("/no/such/folder", 4, 0.1)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/folder: no such file or folder
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _read_folder(path, frames_per_beat, held_out)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    readers = {".mat": read_mat, ".json": read_json}
    kinds = "a .mat or .json file of piano rolls, or a folder of MIDI files"
    expect(path.suffix in readers, str(path), kinds, f"a {path.suffix or 'nameless'} file")
    return readers[path.suffix](path)


def read_pieces(path: str | pathlib.Path, frames_per_beat: int) -> list[Piece]:
    """The pieces of a MIDI file or folder, or the test pieces of a collection.

    Args:
      path: a MIDI file, a folder of MIDI files, or a ``.mat`` or ``.json`` file.
      frames_per_beat: the time resolution of MIDI files.

    Raises:
      UserError: as in :func:`read_collection` and :func:`lstm_jax.data.read_midi`.

    >>> read_pieces("/no/such/tune.mid", 4)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/tune.mid: no such file
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return [_midi_piece(file, frames_per_beat) for file in _midi_files(path)]
    if path.suffix in (".mat", ".json"):
        return read_collection(path, frames_per_beat, 0.0)["test"]
    return [_midi_piece(path, frames_per_beat)]


def _midi_piece(path: pathlib.Path, frames_per_beat: int) -> Piece:
    return Piece(path.name, read_midi(path, frames_per_beat))


def _midi_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """All MIDI files in a folder and its subfolders, sorted by name."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".mid", ".midi"))
    expect(found, f"{folder}", "a folder with .mid or .midi files", "none")
    return found


def _read_folder(
    folder: pathlib.Path, frames_per_beat: int, held_out: float
) -> dict[str, list[Piece]]:
    parts = [folder / name for name in FOLDER_NAMES]
    if all(part.is_dir() for part in parts):
        files = [_midi_files(part) for part in parts]
    else:
        found = _midi_files(folder)
        expect(len(found) >= 3, f"{folder}", "at least 3 MIDI files, one per split", len(found))
        order = np.random.default_rng(0).permutation(len(found))
        each = min(max(1, round(len(found) * held_out)), (len(found) - 1) // 2)
        cuts = (len(found) - 2 * each, len(found) - each)
        files = [sorted(found[n] for n in part) for part in np.split(order, cuts)]
    return {
        split: [_midi_piece(file, frames_per_beat) for file in part]
        for split, part in zip(SPLITS, files, strict=True)
    }


def read_mat(path: str | pathlib.Path) -> dict[str, list[Piece]]:
    """The piano rolls of a MATLAB file by split; see :func:`read_collection`.

    Raises:
      UserError: the file is missing or damaged, or a variable is missing or not a cell array of
        piano rolls.

    References:
      Nicolas Boulanger-Lewandowski, Yoshua Bengio, Pascal Vincent, "Modeling Temporal Dependencies
      in High-Dimensional Sequences: Application to Polyphonic Music Generation and Transcription",
      ICML 2012 (the collections).

    >>> read_mat("/no/such/file.mat")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.mat: no such file
    """
    import scipy.io

    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        content = path.read_bytes()
        _check_elements(content)
        found = scipy.io.loadmat(io.BytesIO(content), variable_names=MAT_NAMES)
    except Exception as error:  # scipy raises many kinds of errors for damaged files
        what = first_line(error)
        raise UserError(f"{path}: not a MATLAB file up to version 7 ({what})") from error
    pieces = {}
    for split, name in zip(SPLITS, MAT_NAMES, strict=True):
        expect(name in found, f"{path}", f"the variables {', '.join(MAT_NAMES)}", f"no {name}")
        cells = np.asarray(found[name])
        shape = f"{cells.dtype} {cells.shape}"
        expect(cells.dtype == object and cells.size, f"{path}: {name}", "a cell array", shape)
        pieces[split] = [
            Piece(f"{split} {n}", _checked(cell, f"{path}: {name}, cell {n}"))
            for n, cell in enumerate(cells.ravel(), start=1)
        ]
    return pieces


def _check_elements(content: bytes) -> None:
    """Raises an error if a MATLAB file has incomplete variables, on which scipy can crash."""
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:  # files of level 4 have no byte-order mark
        return
    for kind, data in _elements(content[128:], order):
        if kind == 15:
            [(kind, data)] = _elements(zlib.decompress(data), order)
        if kind != 14:
            raise ValueError(f"expected a variable, got an element of type {kind}")
        _, _, (_, name) = itertools.islice(_elements(data, order), 3)
        if name.decode("latin-1") in MAT_NAMES:
            _check_matrix(data, order)


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and content of each data element; compressed elements (15) have no padding."""
    place = 0
    while place < len(content):
        kind, size = struct.unpack_from(f"{order}II", content.ljust(place + 8), place)
        start = place + 8
        if kind >> 16:  # a small element: two bytes of size, two of type, four of content
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + size > len(content) or (start == place + 4 and size > 4):
            raise ValueError(f"an element of type {kind} ends after {len(content) - start} bytes")
        yield kind, content[start : start + size]
        place = max(place + 8, start + size + (-size % 8 if kind != 15 else 0))


def _check_matrix(data: bytes, order: str) -> None:
    """Raises an error if a matrix is incomplete, or a cell array does not match its sizes."""
    (first, flags), (second, sizes), (third, _), *parts = _elements(data, order)
    if (first, len(flags), second, third) != (6, 8, 5, 1):
        raise ValueError("a variable without flags, sizes and a name")
    shape = np.frombuffer(sizes, f"{order}i4").tolist()
    what = struct.unpack_from(f"{order}I", flags)[0] & 0xFF
    if 6 <= what <= 15:
        kind, numbers = parts[0] if parts else (0, b"")
        if len(numbers) != BYTES.get(kind, 0) * math.prod(shape):
            raise ValueError(f"{len(numbers)} bytes of numbers in a matrix of {shape}")
    elif what == 1:
        if [kind for kind, _ in parts] != [14] * math.prod(shape):
            raise ValueError(f"{len(parts)} cells in a cell array of {shape}")
        for _, part in parts:
            _check_matrix(part, order)
    else:
        raise ValueError(f"expected matrices and cell arrays, got an array of class {what}")


def _checked(matrix: Any, where: str) -> np.ndarray:
    """A matrix of zeros and ones ``[T, 88]`` as uint8."""
    array = np.asarray(matrix)
    wanted = f"a matrix of frames and {PITCHES} pitches"
    fits = array.ndim == 2 and array.shape[1] == PITCHES and len(array)
    expect(fits and array.dtype.kind in "biuf", where, wanted, f"{array.dtype} {array.shape}")
    strange = array[(array != 0) & (array != 1)]
    expect(not strange.size, where, "zeros and ones", strange[:1].tolist())
    return array.astype(np.uint8)


def read_json(path: str | pathlib.Path) -> dict[str, list[Piece]]:
    """The piano rolls of a JSON file by split; see :func:`read_collection`.

    Raises:
      UserError: the file is missing or not JSON, a split is missing, or a pitch is outside the
        piano's range.

    >>> read_json("/no/such/file.json")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.json: no such file
    """
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({first_line(error)})") from error
    pieces = {}
    for split, name in zip(SPLITS, FOLDER_NAMES, strict=True):
        given: Any = found.get(name) if isinstance(found, dict) else None
        wanted = f"an object with lists {', '.join(FOLDER_NAMES)} of pieces"
        expect(isinstance(given, list) and given, f"{path}", wanted, f"no {name}")
        pieces[split] = [
            Piece(f"{split} {n}", _roll(piece, f"{path}: {name}, piece {n}"))
            for n, piece in enumerate(given, start=1)
        ]
    return pieces


def _roll(frames: Any, where: str) -> np.ndarray:
    """Lists of MIDI numbers as a piano roll."""
    lists = isinstance(frames, list) and frames and all(isinstance(x, list) for x in frames)
    expect(lists, where, "a list of frames, each a list of pitches", str(frames)[:80])
    roll = np.zeros((len(frames), PITCHES), np.uint8)
    highest = LOWEST + PITCHES - 1
    for n, frame in enumerate(frames):
        for pitch in frame:
            whole = type(pitch) is int or (type(pitch) is float and pitch.is_integer())
            fits = whole and (pitch < 0 or LOWEST <= pitch <= highest)
            expect(fits, f"{where}, frame {n + 1}", f"pitches from {LOWEST} to {highest}", pitch)
            if pitch >= 0:
                roll[n, int(pitch) - LOWEST] = 1
    return roll


def roll_windows(
    rolls: Sequence[np.ndarray], lanes: int, window: int, transpose: int, seed: int
) -> grain.MapDataset:
    """Windows of pieces for truncated backpropagation through time.

    Each lane repeatedly reads all pieces, one after another, in its own order. Batch k holds the
    lane's frames from ``k * window`` on, so each row of a batch continues the same row of the
    previous batch. Each time a piece is read, it is transposed by a random number of semitones
    within the range of the piano.

    Args:
      rolls: the pieces, uint8 ``[T, 88]`` each.
      lanes: B, the rows of a batch.
      window: W, the frames of a row.
      transpose: the largest shift in semitones, up or down.
      seed: determines the orders and the shifts.

    Returns:
      An endless data set of batches: ``frames``, float32 ``[B, W, 88]``, and ``start``, bool
      ``[B, W]``, true for the first frame of a piece.

    >>> pieces = [np.eye(2, 88, dtype=np.uint8), np.eye(3, 88, dtype=np.uint8)]
    >>> batch = roll_windows(pieces, lanes=4, window=5, transpose=0, seed=0)[0]
    >>> batch["frames"].shape, batch["start"].sum(1).tolist()
    ((4, 5, 88), [2, 2, 2, 2])
    """
    frames, lengths = np.concatenate(rolls), np.array([len(roll) for roll in rolls])
    first = np.cumsum(lengths) - lengths
    sounding = [np.flatnonzero(roll.any(0)) for roll in rolls]
    # The range of shifts for each piece; a silent piece is not shifted.
    room = np.array([(p[0], PITCHES - 1 - p[-1]) if p.size else (0, 0) for p in sounding])
    down, up = np.minimum(room, transpose).T

    def epoch(lane: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the pieces, and the shift at each position in this order."""
        rng = np.random.default_rng((seed, lane, number))
        order = rng.permutation(len(rolls))
        return order, rng.integers(-down[order], up[order] + 1)

    def row(lane: int, begin: int) -> tuple[np.ndarray, np.ndarray]:
        epochs, offsets = np.divmod(begin + np.arange(window), len(frames))
        place, shift, step = np.empty((3, window), int)
        for number in np.unique(epochs):
            inside = epochs == number
            order, shifts = epoch(lane, number)
            ends = np.cumsum(lengths[order])
            at = np.searchsorted(ends, offsets[inside], "right")
            step[inside] = offsets[inside] - (ends - lengths[order])[at]
            place[inside] = first[order[at]] + step[inside]
            shift[inside] = shifts[at]
        columns = (
            np.arange(PITCHES) - shift[:, None]
        ) % PITCHES  # pitches that wrap around are silent
        return np.take_along_axis(frames[place], columns, 1), step == 0

    def batch(index: int) -> Batch:
        rows = [row(lane, index * window) for lane in range(lanes)]
        return {
            "frames": np.stack([frames for frames, _ in rows]).astype(np.float32),
            "start": np.stack([start for _, start in rows]),
        }

    return grain.MapDataset.range(10**12).map(batch)


def frequencies(rolls: Sequence[np.ndarray]) -> np.ndarray:
    """The fraction of frames in which each pitch sounds, ``[88]``.

    ``(count + 1/2) / (frames + 1)``, so that no probability is zero.

    >>> frequencies([np.ones((3, 88), np.uint8)])[0]
    np.float64(0.875)
    """
    frames = np.concatenate(rolls)
    return (frames.sum(0) + 0.5) / (len(frames) + 1)


def transitions(rolls: Sequence[np.ndarray]) -> np.ndarray:
    """The probability that each pitch sounds after a frame without it and with it, ``[2, 88]``.

    Each pitch is a separate Markov chain, smoothed as in :func:`frequencies`.

    >>> transitions([np.ones((4, 88), np.uint8)])[:, 0].tolist()
    [0.5, 0.875]
    """
    before = np.concatenate([roll[:-1] for roll in rolls])
    after = np.concatenate([roll[1:] for roll in rolls])
    counts = np.stack([(before == state).sum(0) for state in (0, 1)])
    ones = np.stack([((before == state) & (after == 1)).sum(0) for state in (0, 1)])
    return (ones + 0.5) / (counts + 1)
