"""Readers of .ts files, CSV files and NumPy archives of sequences with labels."""

import zipfile

import numpy as np
import pytest

from lstm_jax.data import (
    fetch,
    read_npz,
    read_sequences,
    read_ts,
)
from lstm_jax.errors import UserError

HEADER = "# a comment\n@problemName Tiny\n@timeStamps false\n@classLabel true one two\n@data\n"


def written(tmp_path, content: str | bytes, name: str = "file"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("read", [read_ts, read_npz, read_sequences])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(UserError, match=r"nothing\.csv: no such file"):
        read(tmp_path / "nothing.csv")


def test_read_ts_gives_sequences_of_different_lengths(tmp_path):
    content = HEADER + "1,2,3:4,5,6:two\n\n# between\n7:8:one\n1.5,-2:0,1e2:two\n"
    sequences = read_ts(written(tmp_path, content))
    assert sequences.classes == ("one", "two")
    assert (sequences.xs.dtype, sequences.lengths.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(sequences.lengths, [3, 1, 2])
    np.testing.assert_array_equal(sequences.labels, [1, 0, 1])
    np.testing.assert_array_equal(
        sequences.xs,
        [[[1, 4], [2, 5], [3, 6]], [[7, 8], [0, 0], [0, 0]], [[1.5, 0], [-2, 100], [0, 0]]],
    )


def test_read_ts_treats_final_steps_without_values_as_padding(tmp_path):
    plain = read_ts(written(tmp_path, HEADER + "1,2:4,5:two\n7,8,9:8,7,6:one\n"))
    padded = HEADER + "1,2,?,?:4,5,?,NaN:two\n7,8,9,?:8,7,6, ?:one\n"
    sequences = read_ts(written(tmp_path, padded))
    np.testing.assert_array_equal(sequences.lengths, [2, 3])
    np.testing.assert_array_equal(sequences.xs, plain.xs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "1:2:one\n1,2:3,4:three\n", "line 7: expected a label among one, two, got 't"),
        (HEADER + "1,2\n", "line 6: expected a label among one, two, got '1,2'"),
        (HEADER + "1,2:3:one\n", "line 6: expected dimensions of one length, got lengths 2, 1"),
        (HEADER + "one\n", "line 6: expected dimensions of one length, got lengths of nothing"),
        (HEADER + "1:2:one\n1:two\n", "line 7: expected 2 dimensions as in the first example, g"),
        (HEADER + "1,?,3:4,5,6:one\n", "line 6: expected a number, got a missing value"),
        (HEADER + "1,?:4,5:one\n", "line 6: expected a number, got a missing value"),
        (HEADER + "1,,3:4,5,6:one\n", "line 6: expected a number, got a missing value"),
        (HEADER + "1,x:4,5:one\n", "line 6: expected a number, got 'x'"),
        (HEADER + "1,inf:4,5:one\n", "line 6: expected a number, got 'inf'"),
        (HEADER + "?,?:?,?:one\n", "line 6: expected at least one step, got none"),
        ("@classLabel false\n@data\n1:2\n", "line 3: expected @classLabel and @data before the"),
        ("@data\n1:2:one\n", "line 2: expected @classLabel and @data before the first example"),
        ("@classLabel true one\n1:one\n", "line 2: expected @classLabel and @data before the fir"),
        (HEADER, "expected examples after @data, got none"),
        ("", "expected text, got an empty file"),
        (HEADER + "1,1_0:4,5:one\n", "line 6: expected a number, got '1_0'"),
        (HEADER + "1:\u0663:one\n", "line 6: expected a number, got '\u0663'"),
        (HEADER + "1:1e39:one\n", "line 6: expected a number in the range of float32, got 1e39"),
        (HEADER + "1:2:one\n@classLabel true two one\n", "line 7: expected an example after @data"),
        ("@classLabel true a b a\n", "line 1: expected different class labels, got a, b, a"),
        (HEADER + "1:2:one\x0b\n", "line 6: expected a label among one, two, got 'one\\x0b'"),
        (HEADER + "1:2:one\x0b1:2:two\n3:one\n", "line 6: expected a number, got 'one\\x0b1'"),
    ],
)
def test_read_ts_reports_errors_with_their_location(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_ts(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_read_ts_of_other_bytes_than_utf8_is_an_error_for_the_user(tmp_path):
    with pytest.raises(UserError, match="UTF-8"):
        read_ts(written(tmp_path, HEADER.encode() + b"1:\xff:one\n"))


@pytest.mark.data
def test_japanese_vowels_are_as_published(public_data):
    """270 and 370 utterances of 9 speakers, 12 coefficients, 7 to 29 frames (Kudo et al.)."""
    names = [f"japanese_vowels/JapaneseVowels_{part}.ts" for part in ("TRAIN", "TEST")]
    public_data(*names)
    train, test = (read_ts(fetch(name)) for name in names)
    assert train.xs.shape == (270, train.lengths.max(), 12)
    assert test.xs.shape == (370, test.lengths.max(), 12)
    assert len(train.classes) == 9
    assert train.classes == test.classes
    lengths = np.concatenate([train.lengths, test.lengths])
    assert (lengths.min(), lengths.max()) == (7, 29)
    np.testing.assert_array_equal(np.bincount(train.labels), [30] * 9)
    # The numbers of test utterances that the archive's description gives for each speaker.
    np.testing.assert_array_equal(np.bincount(test.labels), [31, 35, 88, 44, 29, 24, 40, 50, 29])
    for sequences in (train, test):
        past_end = np.arange(sequences.xs.shape[1]) >= sequences.lengths[:, None]
        assert (sequences.xs[past_end] == 0).all()
        assert (sequences.xs[~past_end] != 0).any(-1).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"xs": np.ones((2, 3, 1)), "labels": np.array(["a", {}], object)}, "not a .npz file of"),
        ({"xs": np.ones((2, 3, 1))}, "expected the arrays xs and labels, got no labels"),
        ({"xs": np.ones((2, 3)), "labels": [0, 1]}, "xs: expected numbers [N, T, D], each at"),
        ({"xs": np.ones((2, 3, 1)), "labels": [0]}, "labels: expected 2 integers or strings, got"),
        (
            {"xs": np.ones((2, 3, 1)), "labels": [0, 1], "lengths": [3, 4]},
            "lengths: expected 2 integers from 1 to 3, got int64 (2,): [3 4]",
        ),
        (
            {"xs": np.array([[[1.0], [np.nan]]]), "labels": [0]},
            "xs[0, 1, 0]: expected a number in the range of float32, got nan",
        ),
    ],
)
def test_read_npz_reports_errors(tmp_path, arrays, message):
    """Objects, which would have to be unpickled, are not read."""
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError) as caught:
        read_npz(path)
    assert str(caught.value).startswith(f"{path}") and message in str(caught.value)


def with_member(name: str, content: bytes, compression: int = zipfile.ZIP_STORED):
    def change(path):
        with zipfile.ZipFile(path, "a", compression) as file:
            file.writestr(name, content)

    return change


@pytest.mark.parametrize(
    ("arrays", "change", "message"),
    [
        (["labels"], with_member("xs", b"1,2"), "expected the arrays xs and labels, got no xs"),
        (["labels"], with_member("xs.npy", b"1,2"), "(bytes that are not an array)"),
        (["labels"], with_member("xs.npy", b"", zipfile.ZIP_LZMA), "not a .npz file of numbers"),
        (["xs", "labels", "length"], lambda path: None, "length.npy; did you mean lengths.npy?"),
        (["xs", "labels"], with_member("xs.npy", b""), "(an array is in the file twice)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_read_npz_rejects_invalid_members(tmp_path, arrays, change, message):
    path = tmp_path / "a.npz"
    held = {"xs": np.ones((2, 3, 1)), "labels": [0, 1], "length": [1, 2]}
    np.savez(path, **{name: held[name] for name in arrays})
    change(path)
    with pytest.raises(UserError) as caught:
        read_npz(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("1_000", "line 2: column 'v': expected a number, got '1_000'"),
        ("nan", "line 2: column 'v': expected a number, got 'nan'"),
        ('"2,5"', "line 2: column 'v': expected a number with a decimal point, got '2,5'"),
        ("\u0661", "line 2: column 'v': expected a number, got '\u0661'"),
    ],
)
def test_column_of_numbers_in_another_notation_is_reported(tmp_path, fields, message):
    path = written(tmp_path, f"id,u,v,label\na,1,{fields},x\nb,1,{fields},y\n", "a.csv")
    with pytest.raises(UserError) as caught:
        read_sequences(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(("row", "column"), [(" ,1,x", "id"), ("b,1,", "label")])
def test_a_row_needs_an_id_and_a_label(tmp_path, row, column):
    path = written(tmp_path, f"id,v,label\na,1,x\n{row}\n", "a.csv")
    with pytest.raises(
        UserError, match=f"line 3: column '{column}': expected an? {column}, got a m"
    ):
        read_sequences(path)


def test_labels_of_any_length_are_names(tmp_path):
    """Python converts no integers of more than 4300 digits."""
    label = "7" * 5000
    path = written(tmp_path, f"id,v,label\na,1,{label}\nb,2,3\n", "a.csv")
    assert read_sequences(path).classes == ("3", label)


def test_blank_lines_are_skipped_quickly(tmp_path):
    """In time that is quadratic in their number, these would take minutes."""
    with pytest.raises(UserError, match="line 300001: expected 0 fields"):
        read_sequences(written(tmp_path, "\n" * 300_000 + "x", "a.csv"))


def test_read_npz_sorts_integer_labels_and_reads_big_endian_numbers(tmp_path):
    xs = np.arange(6.0).reshape(3, 2, 1)
    np.savez(tmp_path / "a.npz", xs=xs.astype(">f8"), labels=[10, 9, 10])
    sequences = read_npz(tmp_path / "a.npz")
    assert sequences.classes == ("9", "10")
    assert sequences.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(sequences.xs, xs)
    np.testing.assert_array_equal(sequences.lengths, [2, 2, 2])
