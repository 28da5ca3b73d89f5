"""Collections of music written by scipy, by json and as folders."""

import io
import json
import pathlib

import numpy as np
import pytest
import scipy.io

from lstm_jax.data import (
    frequencies,
    midi_bytes,
    read_collection,
    read_pieces,
    roll_windows,
    transitions,
)
from lstm_jax.data.piano_rolls import read_mat
from lstm_jax.errors import UserError

SPLITS = ("train", "validation", "test")


def rolls(seed: int, count: int) -> list[np.ndarray]:
    """Pieces of 2 to 9 frames with a few pitches in the middle of the piano."""
    rng = np.random.default_rng(seed)
    pieces = [(rng.random((rng.integers(2, 10), 88)) < 0.2).astype(np.uint8) for _ in range(count)]
    for piece in pieces:
        piece[:, :30], piece[:, 60:] = 0, 0
        piece[-1, 40] = 1
    return pieces


def cells(pieces) -> np.ndarray:
    array = np.empty((1, len(pieces)), object)
    for n, piece in enumerate(pieces):
        array[0, n] = piece
    return array


GIVEN = {split: rolls(n, 2 + n) for n, split in enumerate(SPLITS)}
VARIABLES = {
    name: cells(GIVEN[split])
    for name, split in zip(("traindata", "validdata", "testdata"), SPLITS, strict=True)
}
LISTS = {
    name: [[[int(p) + 21 for p in np.flatnonzero(f)] for f in piece] for piece in GIVEN[split]]
    for name, split in zip(("train", "valid", "test"), SPLITS, strict=True)
}


def check(found, given=GIVEN):
    for split, pieces in given.items():
        for piece, roll in zip(found[split], pieces, strict=True):
            assert piece.roll.dtype == np.uint8
            np.testing.assert_array_equal(piece.roll, roll)


def test_matlab_and_json_files_give_the_same_pieces(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", VARIABLES | {"more": 3.0}, do_compression=True)
    (tmp_path / "a.json").write_text(json.dumps(LISTS))
    for name in ("a.mat", "a.json"):
        check(read_collection(tmp_path / name, 1, 0.1))
    names = [piece.name for piece in read_pieces(tmp_path / "a.mat", 1)]
    assert names == ["test 1", "test 2", "test 3", "test 4"]


def test_rests_of_a_json_file_are_negative(tmp_path):
    given = {name: [[[60.0, -1], [-1, -1]]] for name in ("train", "valid", "test")}
    (tmp_path / "a.json").write_text(json.dumps(given))
    roll = read_collection(tmp_path / "a.json", 1, 0.1)["test"][0].roll
    assert [np.flatnonzero(frame).tolist() for frame in roll] == [[39], []]


def written(folder: pathlib.Path, pieces) -> list[str]:
    folder.mkdir(parents=True)
    for n, piece in enumerate(pieces):
        (folder / f"{n}.mid").write_bytes(midi_bytes(piece, 1, 90.0))
    return [f"{n}.mid" for n in range(len(pieces))]


def test_folder_is_split_reproducibly(tmp_path):
    names = written(tmp_path / "tunes" / "deeper", rolls(0, 10))
    (tmp_path / "tunes" / "notes.txt").write_text("not music")
    found = read_collection(tmp_path / "tunes", 1, 0.2)
    assert [len(found[split]) for split in SPLITS] == [6, 2, 2]
    assert sorted(piece.name for split in SPLITS for piece in found[split]) == names
    again = read_collection(tmp_path / "tunes", 1, 0.2)
    for split in SPLITS:
        assert [piece.name for piece in found[split]] == [piece.name for piece in again[split]]
    assert [piece.name for piece in read_pieces(tmp_path / "tunes", 1)] == names


@pytest.mark.parametrize("share", [0.01, 0.49])
def test_three_files_are_enough(tmp_path, share):
    written(tmp_path / "tunes", rolls(0, 3))
    found = read_collection(tmp_path / "tunes", 1, share)
    assert [len(found[split]) for split in SPLITS] == [1, 1, 1]


def test_subfolders_are_the_splits_of_a_folder(tmp_path):
    for name, split in zip(("train", "valid", "test"), SPLITS, strict=True):
        written(tmp_path / "tunes" / name, GIVEN[split])
    check(read_collection(tmp_path / "tunes", 1, 0.1))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mat", b"not a matrix", "not a MATLAB file up to version 7"),
        (
            "a.mat",
            {"traindata": VARIABLES["traindata"]},
            "traindata, validdata, testdata, got no v",
        ),
        ("a.mat", VARIABLES | {"validdata": np.eye(88)}, "validdata: expected a cell array, got f"),
        (
            "a.mat",
            VARIABLES | {"testdata": cells([np.zeros((4, 88)), np.zeros((4, 87))])},
            "testdata, cell 2: expected a matrix of frames and 88 pitches, got float64 (4, 87)",
        ),
        (
            "a.mat",
            VARIABLES | {"testdata": cells([np.full((4, 88), 2.0)])},
            "testdata, cell 1: expected zeros and ones, got [2.0]",
        ),
        ("a.json", b"{", "not a JSON file"),
        ("a.json", json.dumps({"train": LISTS["train"]}).encode(), "pieces, got no valid"),
        (
            "a.json",
            json.dumps(LISTS | {"test": [[[60], [109]]]}).encode(),
            "test, piece 1, frame 2: expected pitches from 21 to 108, got 109",
        ),
        ("a.json", json.dumps(LISTS | {"test": [[60]]}).encode(), "expected a list of frames"),
        ("a.json", json.dumps(LISTS | {"test": [[["C"]]]}).encode(), "from 21 to 108, got C"),
        ("a.csv", b"1,2", "expected a .mat or .json file of piano rolls, or a folder of MIDI"),
        ("none.mat", None, "no such file"),
    ],
)
def test_invalid_collection_gives_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, dict):
        scipy.io.savemat(path, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_collection(path, 1, 0.1)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_folder_with_too_few_files_gives_one_line(tmp_path):
    with pytest.raises(UserError, match=r"expected a folder with \.mid or \.midi files, got none"):
        read_collection(tmp_path, 1, 0.1)
    (tmp_path / "a.mid").write_bytes(midi_bytes(GIVEN["train"][0], 1, 90.0))
    with pytest.raises(UserError, match="expected at least 3 MIDI files, one per split, got 1"):
        read_collection(tmp_path, 1, 0.1)


@pytest.mark.parametrize("transpose", [0, 3, 200])
def test_each_lane_reads_every_piece_once_per_epoch(transpose):
    pieces = [*rolls(3, 7), np.zeros((3, 88), np.uint8)]
    total = sum(map(len, pieces))
    batches = roll_windows(pieces, 3, 5, transpose, seed=1)
    count = -(-2 * total // 5)
    frames = np.concatenate([batches[k]["frames"] for k in range(count)], 1)[:, : 2 * total]
    start = np.concatenate([batches[k]["start"] for k in range(count)], 1)[:, : 2 * total]
    orders, shifts = set(), set()
    for lane in range(3):
        found = np.split(frames[lane], np.flatnonzero(start[lane])[1:])
        for epoch in (found[: len(pieces)], found[len(pieces) :]):
            order = []
            for roll in epoch:
                fits = [
                    (n, shift)
                    for n, piece in enumerate(pieces)
                    for shift in range(-transpose, transpose + 1)
                    if roll.shape == piece.shape and moved(piece, shift, roll)
                ]
                order.append(fits[0][0])
                shifts.add(fits[0][1])
            assert sorted(order) == list(range(len(pieces)))
            orders.add(tuple(order))
    assert len(orders) == 6  # a different order for each lane and epoch
    assert max(map(abs, shifts)) == {0: 0, 3: 3}.get(transpose, max(map(abs, shifts)))
    assert (len(shifts) > 1) == (transpose > 0)


def moved(piece, shift, roll) -> bool:
    """Whether a roll is a transposed piece without lost notes."""
    notes = np.argwhere(piece)
    notes[:, 1] += shift
    return np.array_equal(np.argwhere(roll), notes)


def test_simple_models_count_frames():
    pieces = rolls(5, 4)
    ones, frames = np.zeros(88), 0
    after, counts = np.zeros((2, 88)), np.zeros((2, 88))
    for piece in pieces:
        for t in range(len(piece)):
            ones, frames = ones + piece[t], frames + 1
            for pitch in range(88):
                if t:
                    counts[piece[t - 1, pitch], pitch] += 1
                    after[piece[t - 1, pitch], pitch] += piece[t, pitch]
    np.testing.assert_allclose(frequencies(pieces), (ones + 0.5) / (frames + 1))
    np.testing.assert_allclose(transitions(pieces), (after + 0.5) / (counts + 1))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (128, b"\x00\x00\x00\x00", "expected a variable, got an element of type 0"),
        (132, b"\xff\xff\xff\x7f", "an element of type 14 ends after"),
        (160, b"\x05\x00\x00\x00", "1 cells in a cell array of"),  # its rows
        (144, b"\x05\x00\x00\x00", "expected matrices and cell arrays, got an array of class 5"),
    ],
)
def test_incomplete_matlab_files_are_rejected(tmp_path, place, value, message):
    """scipy's reader could crash on them."""
    cells, file = np.empty((1, 1), object), io.BytesIO()
    cells[0, 0] = np.eye(2, 88)
    scipy.io.savemat(file, dict.fromkeys(("traindata", "validdata", "testdata"), cells))
    whole, path = file.getvalue(), tmp_path / "a.mat"
    path.write_bytes(whole)
    assert len(read_mat(path)["test"]) == 1
    path.write_bytes(whole[:place] + value + whole[place + 4 :])
    with pytest.raises(UserError, match=rf"a\.mat: not a MATLAB file .*{message}"):
        read_mat(path)
