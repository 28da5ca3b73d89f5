"""The reader of CSV tables: its results, and errors for damaged files."""

import numpy as np
import pytest

from lstm_jax.data import fetch, read_csv
from lstm_jax.data.tables import dates
from lstm_jax.errors import UserError


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


def test_read_csv_returns_time_stamps_unchanged(tmp_path):
    path = written(tmp_path, "time,a\n2016-07-01 00:00:00,1\nlater,2\n")
    assert read_csv(path).times == ("2016-07-01 00:00:00", "later")


def test_dates_are_recognised():
    expected = ["2016-07-01T00:00:00", "2016-07-01T01:30:00"]
    for times in (expected, ["2016-07-01", "2016-07-01 01:30"], ["2016-07-01", expected[1] + "Z"]):
        np.testing.assert_array_equal(dates(times), np.array(expected, "datetime64[s]"))
    later = dates(["2016-07-01T12:00+05:00", "2016-07-01T08:00Z"])  # 07:00 and 08:00 in UTC
    assert later[1] - later[0] == np.timedelta64(1, "h")
    assert dates(["2016-07-01T12:00+05:00"] * 2)[0] == np.datetime64("2016-07-01T12:00")
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
def test_read_csv_reports_errors_with_their_location(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_csv(path)
    assert str(caught.value) == f"{path}: {message}"


def test_read_csv_reports_a_file_that_is_not_csv(tmp_path):
    """An open quote turns the rest of the file into one field, too long for Python's reader."""
    with pytest.raises(UserError, match="file"):
        read_csv(written(tmp_path, 't,a\n1,"' + "x" * 200_000))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.csv: no such file"):
        read_csv(tmp_path / "nothing.csv")


SPREADSHEETS = [
    "t;a;b\n1;2,5;-3\n2;1e3;,5\n",
    "t;a;b\n1;2.5;-3\n2;1e3;.5\n",
    "t\ta\tb\n1\t2.5\t-3\n2\t1e3\t.5\n",
    'zeit;a;b\n1.7.2016;"2,5";-3,0\n2.7.2016;1000;0,5\n',
]


@pytest.mark.parametrize("content", SPREADSHEETS)
def test_read_csv_recognises_separators_and_decimal_commas(tmp_path, content):
    table = read_csv(written(tmp_path, content))
    assert table.columns == ("a", "b")
    np.testing.assert_array_equal(table.values, [[2.5, -3.0], [1000.0, 0.5]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("2016-07-01,2,3\n2016-07-02,4,5\n", "line 1: expected a header with the names of the"),
        ("1,2,3\n2,4,5\n", "line 1: expected a header with the names of the columns, got 1, 2, 3"),
        ("5\n6\n", "line 1: expected a header with the names of the columns, got 5"),
        ("first,1.5,2\nsecond,4,5\n", "line 1: expected a header with the names of the columns"),
        ("t,a,a\n1,2,3\n", "line 1: expected different names of columns, got two 'a'"),
        ("t;a\n1;1.234\n2;0,5\n", "line 2: expected a decimal comma as in other lines, got '1.2"),
        ('t,a\n1,"2,5"\n', "line 2: column 'a': expected a number with a decimal point, got '2,5'"),
        ("t\ta\n1\t2,5\n", "line 2: column 'a': expected a number with a decimal point, got '2"),
        ("t;a\n1;1.234,5\n", "line 2: column 'a': expected a number, got '1.234,5'"),
        ("a,b\n3,1\n?,2\n5,3\n", "line 3: column 'a': expected a number, got a missing value"),
        ("t,a\n1,1_000\n", "line 2: column 'a': expected a number, got '1_000'"),
        ("t,a\n1,\u0661\u0662\n", "line 2: column 'a': expected a number, got '\u0661\u0662'"),
        ('t,a\n1,"2"5\n', "not a CSV file: ',' expected after '\"'"),
        ('t,a\n1,2\n2,"3\n3,4\n', "not a CSV file: unexpected end of data"),
        ("t,a\n1,1e400\n", "line 2: column 'a': expected a number, got '1e400'"),
    ],
)
def test_read_csv_rejects_ambiguous_content(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_csv(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_long_fields_and_headers_are_read_quickly(tmp_path):
    """In time that is quadratic in their length, these would take minutes."""
    digits = "1" * 100_000
    with pytest.raises(UserError, match="line 2: column 'a': expected a number, got '111"):
        read_csv(written(tmp_path, f"t,a\n1,{digits}x\n"))
    names = ",".join(f"column{n}" for n in range(50_000))
    with pytest.raises(UserError, match="line 2: expected 50000 fields as in the header, got 1"):
        read_csv(written(tmp_path, f"{names}\n1\n"))


@pytest.mark.parametrize(
    ("content", "columns", "times"),
    [
        ("a,b\n3,1\n1,2\n2,3\n", ("a", "b"), ()),
        ("sales\n3\n5\n", ("sales",), ()),
        ("a,b\n3,1\n", ("a", "b"), ()),
        ("t,b\n3,1\n1,2\n", ("b",), ("3", "1")),
        (",0,1\n7,1,2\n9,2,4\n", ("0", "1"), ("7", "9")),
        ("seconds,b\n0.1,1\n0.2,2\n0.3,5\n", ("b",), ("0.1", "0.2", "0.3")),
        ("date,2019,2020\n1 July,1,2\n", ("2019", "2020"), ("1 July",)),
    ],
)
def test_a_first_column_of_numbers_is_data_unless_it_counts_time(tmp_path, content, columns, times):
    table = read_csv(written(tmp_path, content))
    assert (table.columns, table.times) == (columns, times)
    assert table.values.shape == (content.count("\n") - 1, len(columns))


@pytest.mark.data
def test_etth1_is_as_published(public_data):
    """Two years of hours of seven columns, the last the oil temperature (Zhou et al.)."""
    public_data("etth1/ETTh1.csv")
    table = read_csv(fetch("etth1/ETTh1.csv"))
    assert table.columns == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert table.values.shape == (17420, 7)
