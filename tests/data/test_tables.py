"""Readers of CSV and .ts files: what they read, and what they say of broken files."""

import numpy as np
import pytest

from lstm_jax.data import fetch, read_csv, read_ts
from lstm_jax.data.tables import dates
from lstm_jax.errors import UserError

HEADER = "# a comment\n@problemName Tiny\n@timeStamps false\n@classLabel true one two\n@data\n"


def written(tmp_path, content: str | bytes, name: str = "file"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_read_csv_gives_columns_and_values(tmp_path):
    content = 'date,"a, b",c\n2016-07-01 00:00:00,1.5,-2e3\r\n2016-07-01 01:00:00, 7 ,0\n'
    table = read_csv(written(tmp_path, content))
    assert table.columns == ("a, b", "c")
    assert table.values.dtype == np.float64
    np.testing.assert_array_equal(table.values, [[1.5, -2000.0], [7.0, 0.0]])


def test_read_csv_gives_the_time_stamps_as_they_are(tmp_path):
    path = written(tmp_path, "time,a\n2016-07-01 00:00:00,1\nlater,2\n")
    assert read_csv(path).times == ("2016-07-01 00:00:00", "later")


def test_dates_are_recognised():
    expected = ["2016-07-01T00:00:00", "2016-07-01T01:30:00"]
    for times in (expected, ["2016-07-01", "2016-07-01 01:30"], ["2016-07-01", expected[1] + "Z"]):
        np.testing.assert_array_equal(dates(times), np.array(expected, "datetime64[s]"))
    for times in (["1", "2"], ["2016-07-01", "3"], ["2016-13-01"], ["01/07/2016"], ["a-b"]):
        assert dates(times) is None


def test_read_csv_reads_back_what_numpy_wrote(tmp_path):
    values = np.random.default_rng(0).normal(size=(30, 4)) * [1e-9, 1, 1e9, 1e300]
    rows = [",".join([f"t{n}", *map(repr, row)]) for n, row in enumerate(values.tolist())]
    table = read_csv(written(tmp_path, "\n".join(["t,a,b,c,d", *rows])))
    np.testing.assert_array_equal(table.values, values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("t,a,b\n1,2,3\n2,,5\n", "line 3: column 'a': expected a number, got a missing value"),
        ("t,a,b\n1,2, ?\n", "line 2: column 'b': expected a number, got a missing value"),
        ("t,a,b\n1,2,x3\n", "line 2: column 'b': expected a number, got 'x3'"),
        ("t,a,b\n1,inf,3\n", "line 2: column 'a': expected a number, got 'inf'"),
        ("t,a,b\n1,2,nan\n", "line 2: column 'b': expected a number, got 'nan'"),
        ("t,a,b\n1,2,3\n2,3\n", "line 3: expected 3 fields as in the header, got 2"),
        ("t,a,b\n1,2,3,4\n", "line 2: expected 3 fields as in the header, got 4"),
        ("t,a,b\n", "expected a header and rows of a time stamp and numbers, got 1 lines"),
        ("", "expected text, got an empty file"),
        ("t,a\n1,\xff".encode("latin-1"), "expected UTF-8 text, got byte 0xff at position 6"),
    ],
)
def test_read_csv_says_what_is_wrong_and_where(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_csv(path)
    assert str(caught.value) == f"{path}: {message}"


def test_read_csv_of_no_csv_file_is_an_error_for_the_user(tmp_path):
    """An open quote makes one field of the rest of the file, too long for Python's reader."""
    with pytest.raises(UserError, match="file"):
        read_csv(written(tmp_path, 't,a\n1,"' + "x" * 200_000))


@pytest.mark.parametrize("read", [read_csv, read_ts])
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


def test_read_ts_takes_steps_without_any_value_at_the_end_as_padding(tmp_path):
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
    ],
)
def test_read_ts_says_what_is_wrong_and_where(tmp_path, content, message):
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


@pytest.mark.data
def test_etth1_is_as_published(public_data):
    """Two years of hours of seven columns, the last the oil temperature (Zhou et al.)."""
    public_data("etth1/ETTh1.csv")
    table = read_csv(fetch("etth1/ETTh1.csv"))
    assert table.columns == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert table.values.shape == (17420, 7)
