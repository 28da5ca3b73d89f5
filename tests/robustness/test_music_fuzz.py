"""Damaged and malicious MIDI files and collections of piano rolls.

``pytest tests/robustness --fuzz 5000 -s`` tries more inputs and prints how many.
"""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import scipy.io

from lstm_jax.data import midi_bytes, read_midi
from lstm_jax.data.piano_rolls import read_json, read_mat
from tests.robustness import hostile

FRAMES = 4  # of a beat

# ---- MIDI ----


class InvalidError(AssertionError):
    """Bytes that the standard does not allow."""


def must(fits, what):
    if not fits:
        raise InvalidError(what)


class Bytes:
    """Bytes that are read from the start."""

    def __init__(self, content):
        self.content, self.place = content, 0

    def take(self, count):
        must(self.place + count <= len(self.content), "an end in the middle")
        self.place += count
        return self.content[self.place - count : self.place]

    def number(self):
        """A number of variable length."""
        value = 0
        while True:
            [byte] = self.take(1)
            value = value << 7 | byte & 127
            if byte < 128:
                return value


SIZES = {0x8: 2, 0x9: 2, 0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}


def events(track):
    """Tick, status byte and data bytes of the events of a track's channels."""
    tick, status = 0, None
    while track.place < len(track.content):
        tick += track.number()
        [byte] = track.take(1)
        data = []
        if byte < 128:
            must(status is not None, "no status before")
            data = [byte]
        elif byte >= 0xF0:
            must(byte in (0xF0, 0xF7, 0xFF), "a message that no file holds")
            if byte == 0xFF:
                track.take(1)
            else:
                status = None
            track.take(track.number())
            continue
        else:
            status = byte
        data += track.take(SIZES[status >> 4] - len(data))
        must(max(data) < 128, "no data byte")
        yield tick, status, data
    yield tick, None, []


def roll_of(content):
    """The piano roll of a MIDI file, by the standard."""
    file = Bytes(content)
    must(file.take(4) == b"MThd", "no header")
    header = file.take(int.from_bytes(file.take(4), "big"))
    must(len(header) >= 6, "a short header")
    kind, count, ticks = struct.unpack(">hhh", header[:6])
    must(kind in (0, 1) and ticks > 0, "another kind of file")
    merged = []
    for _ in range(count):
        must(file.take(4) == b"MTrk", "no track")
        merged += events(Bytes(file.take(int.from_bytes(file.take(4), "big"))))
    must(file.content[file.place :][:4] != b"MTrk", "more tracks")
    merged.sort(key=lambda event: event[0])  # stable: tracks in their order
    last, sounding, notes = max((tick for tick, *_ in merged), default=0), {}, []
    for tick, status, data in merged:
        if status is not None and status >> 4 in (8, 9) and status & 15 != 9:
            key = status & 15, data[0]
            if key in sounding:
                notes.append((sounding.pop(key), tick, data[0]))
            if status >> 4 == 9 and data[1]:
                sounding[key] = tick
    notes += [(tick, last, pitch) for (_, pitch), tick in sounding.items()]
    frames = []
    for start, end, pitch in notes:
        start, end = ((tick * FRAMES * 2 + ticks) // (ticks * 2) for tick in (start, end))
        frames.append((start, max(end, start + 1), pitch - 21))
    must(frames and all(0 <= pitch < 88 for *_, pitch in frames), "no notes, or not of a piano")
    roll = np.zeros((max(end for _, end, _ in frames), 88), np.uint8)
    for start, end, pitch in frames:
        roll[start:end, pitch] = 1
    return roll


def tune(rng):
    """A valid file of one or two tracks, with running status, other messages and percussion."""
    roll = np.random.default_rng(rng.randrange(2**32)).random((8, 88)) < 0.03
    roll[0, 39] = True
    if rng.random() < 0.5:
        return midi_bytes(roll, FRAMES, tempo=90)
    tracks = []
    for _ in range(2):
        track = b"\x00\xff\x03\x04tune\x00\xc0\x05\x00\xf0\x02\x01\xf7"
        track += b"\x00\x99\x23\x40"  # a drum
        for pitch in rng.choices(range(30, 90), k=4):
            track += bytes([rng.randrange(100), 0x90, pitch, 64, 0x81, 0x10, pitch, 0])
        track += b"\x00\xb0\x40\x7f\x00\xff\x2f\x00"
        tracks.append(b"MTrk" + len(track).to_bytes(4, "big") + track)
    return b"MThd\x00\x00\x00\x06" + struct.pack(">hhh", 1, 2, 96) + b"".join(tracks)


def midi(folder, rng):
    content, what = tune(rng), rng.randrange(12)
    if what <= 6:
        content = hostile.mutated_bytes(rng, content)
    elif what == 7:  # another header
        numbers = [rng.choice([0, 1, 2, 3, -1, 96, 255, -6120, 32767]) for _ in range(3)]
        content = content[:8] + struct.pack(">hhh", *numbers) + content[14:]
    elif what == 8:  # a number of variable length that is enormous
        place = rng.randrange(22, len(content))
        content = content[:place] + b"\xff" * rng.choice([4, 200, 3000]) + content[place:]
    elif what == 9:
        content += rng.choice([b"\0", b"XFIH\0\0\0\1x", content[14:], b"RIFF"])
    elif what == 10:
        content = rng.choice([b"", b"MThd", b"RIFF\x10\0\0\0RMID" + content, content * 2])
    path = folder / "tune.mid"
    path.write_bytes(content)
    return path


def held_by_midi(path, roll):
    np.testing.assert_array_equal(roll, roll_of(path.read_bytes()))


# ---- MATLAB files ----

NAMES = ("traindata", "validdata", "testdata")
CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


def elements(content, order):
    """Type and content of the data elements of a MATLAB file, one after the other."""
    place = 0
    while place < len(content):
        kind, size = struct.unpack(order + "II", content[place : place + 8])
        if kind >> 16:  # a small element
            yield kind & 0xFFFF, content[place + 4 : place + 4 + (kind >> 16)]
            place += 8
            continue
        must(place + 8 + size <= len(content), "an end in the middle")
        yield kind, content[place + 8 : place + 8 + size]
        place += 8 + size + (-size % 8 if kind != 15 else 0)


def variables(path):
    """The cells of matrices in a MATLAB file of level 5, by name."""
    content = path.read_bytes()
    must(content[126:128] in (b"IM", b"MI"), "another version")
    order = "<" if content[126:128] == b"IM" else ">"
    found = {}
    for kind, data in elements(content[128:], order):
        if kind == 15:
            [(kind, data)] = elements(zlib.decompress(data), order)
        must(kind == 14, "no matrix")
        name, value = matrix(data, order)
        found[name] = value
    return found


def matrix(data, order):
    """Name and value of a matrix or of a cell array."""
    (_, flags), (kind, sizes), (_, name), *parts = elements(data, order)
    must(kind == 5, "sizes of another type")
    sizes = np.frombuffer(sizes, order + "i4")
    content = struct.unpack(order + "I", flags[:4])[0] & 0xFF
    if content == 1:
        cells = [matrix(part, order)[1] for kind, part in parts if kind == 14]
        must(len(cells) == np.prod(sizes), "other cells")
        return name.decode(), cells
    must(content in CLASSES and parts[0][0] in TYPES, "no numbers")
    numbers = np.frombuffer(parts[0][1], order + TYPES[parts[0][0]]).astype(CLASSES[content])
    return name.decode(), numbers.reshape(sizes, order="F")


def matrices(rng):
    """Possible contents of a file instead of three cell arrays of zeros and ones."""
    numbers = np.random.default_rng(rng.randrange(2**32))

    def roll(rows=None):
        return (numbers.random((rows or numbers.integers(1, 6), 88)) < 0.1).astype(float)

    def cells(values):
        array = np.empty((1, len(values)), object)
        array[0] = values
        return array

    held = {name: [roll() for _ in range(rng.choice([1, 2, 3]))] for name in NAMES}
    for _ in range(rng.choice([0, 1, 1, 2])):
        name = rng.choice([*held])
        n = rng.randrange(len(held[name]))
        odd = roll()
        odd[-1, 5] = rng.choice([2, -1, np.nan, np.inf, 0.5, 1e-300, 2**40, 256, 257])
        held[name][n] = rng.choice(
            [
                odd,
                roll().astype(rng.choice(["bool", "u1", "i1", "i8", "f4"])),
                roll()[:, :87],
                roll()[:0],
                roll().T,
                np.float64(1),
                1j * roll(),
                "x" * 88,
                scipy.sparse.csc_matrix(roll()),
                cells([roll()]),
                {"a": roll()},
                np.zeros((2, 2, 88)),
            ]
        )
    content = {name: cells(values) for name, values in held.items()}
    if rng.random() < 0.2:
        name = rng.choice([*content])
        content[rng.choice(["traindata ", "Testdata", "piano", name])] = content.pop(name)
    if rng.random() < 0.1:
        content[rng.choice(NAMES)] = rng.choice([roll(), "text", 5, cells([]), np.zeros((0, 0))])
    return content


def mat(folder, rng):
    path, file = folder / "rolls.mat", io.BytesIO()
    form = "4" if rng.random() < 0.05 else "5"
    content = matrices(rng)
    if form == "4":
        content = {"traindata": np.ones((2, 88))}
    scipy.io.savemat(file, content, format=form, do_compression=rng.random() < 0.5)
    content = file.getvalue()
    if rng.random() < 0.5:
        content = hostile.mutated_bytes(rng, content)
    if rng.random() < 0.02:
        content = rng.choice([b"", b"MATLAB 7.3", b"\x89HDF\r\n\x1a\n" + bytes(600), bytes(200)])
    path.write_bytes(content)
    return path


def held_by_mat(path, pieces):
    found = variables(path)
    for split, name in zip(("train", "validation", "test"), NAMES, strict=True):
        assert len(pieces[split]) == len(found[name])
        for piece, array in zip(pieces[split], found[name], strict=True):
            assert piece.roll.dtype == np.uint8 and np.isin(array, [0, 1]).all()
            np.testing.assert_array_equal(piece.roll, array)


# ---- JSON ----


def rolls_json(folder, rng):
    def piece():
        return [sorted(rng.sample(range(21, 109), rng.choice([0, 1, 4]))) for _ in range(3)]

    tree = {name: [piece() for _ in range(2)] for name in ("train", "valid", "test")}
    text = json.dumps(hostile.mutated_json(rng, tree) if rng.random() < 0.6 else tree)
    for _ in range(rng.choice([0, 0, 1, 2])):
        values = ["20", "109", "60.0", "60.5", "-1", "1e400", "NaN", "true", '"60"', "9" * 5000]
        text = text.replace(str(rng.randrange(21, 109)), rng.choice(values), 1)
    content = text.encode()
    if rng.random() < 0.2:
        content = hostile.mutated_bytes(rng, content)
    if rng.random() < 0.02:
        content = rng.choice([b"", b"null", b"[" * 10**5, b'{"train": {"0": []}}', b"\xff"])
    path = folder / "rolls.json"
    path.write_bytes(content)
    return path


def held_by_json(path, pieces):
    tree = json.loads(path.read_bytes().decode("utf-8").removeprefix("\ufeff"))
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        assert len(pieces[split]) == len(tree[name])
        for piece, frames in zip(pieces[split], tree[name], strict=True):
            sounding = [{int(p) for p in frame if p >= 0} for frame in frames]
            assert [{*np.flatnonzero(row) + 21} for row in piece.roll] == sounding
            assert not any(isinstance(p, bool) or p != int(p) for frame in frames for p in frame)


KINDS = {
    "MIDI": (midi, lambda path: read_midi(path, FRAMES), held_by_midi),
    ".mat of piano rolls": (mat, read_mat, held_by_mat),
    ".json of piano rolls": (rolls_json, read_json, held_by_json),
}


@pytest.mark.filterwarnings("ignore")  # of scipy: duplicate variables
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_music(kind, tmp_path, fuzz_budget):
    make, read, check = KINDS[kind]
    outcomes = hostile.tried(kind, fuzz_budget, lambda rng: make(tmp_path, rng), read, check)
    assert outcomes["read"] and outcomes["rejected"]
