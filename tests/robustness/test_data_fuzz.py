"""Damaged and malicious data files: the content that an independent reader finds, or a one-line
error.

``pytest tests/robustness --fuzz 5000 -s`` tries more inputs and prints how many.
"""

import contextlib
import csv
import io
import math
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_jax.data import SequenceColumns, encode, read_csv, read_sequences, read_text
from lstm_jax.errors import UserError
from tests.robustness import hostile
from tests.robustness.hostile_text import encoded, mutated_lines
from tests.robustness.readers import in_some_dialect, same_column, text_of, value_of

# ---- the content of files, by independent readers ----


def held_by_table(path, table):
    """Every field of the file is a name, a time stamp or a number of the table."""

    def agrees(records, comma):
        names, *rows = records
        assert len(rows) == len(table.values), f"{len(rows)} rows"
        first = len(names) - len(table.columns)
        assert first in (0, 1) and tuple(names[first:]) == table.columns, names
        columns = list(zip(*rows, strict=True))
        if first:
            same = tuple(stamp.replace(",", ".") for stamp in columns[0])
            assert table.times in (columns[0], same), "other time stamps"
        for fields, values in zip(columns[first:], table.values.T, strict=True):
            assert same_column(fields, values, comma), "other numbers"

    assert np.isfinite(table.values).all()
    in_some_dialect(path, agrees)


COLUMNS = SequenceColumns(id="who", label="what", order="when")


def held_by_sequences_csv(path, found):
    """Rows grouped by id, in the order of the column ``when``, as plain dicts and floats."""

    def agrees(records, comma):
        names, *rows = records
        rows = [dict(zip(names, row, strict=True)) for row in rows]
        groups = {}
        for row in rows:
            groups.setdefault(row["who"].strip(), []).append(row)
        assert list(groups) == list(found.ids), "other ids"
        unused = set(names) - {"who", "what", "when", *found.features}
        assert not any(is_float(row[name]) for row in rows for name in unused), unused
        for n, group in enumerate(groups.values()):
            group.sort(key=lambda row: order_of(row["when"], comma))
            assert {row["what"].strip() for row in group} == {found.classes[found.labels[n]]}
            assert found.lengths[n] == len(group)
            for m, name in enumerate(found.features):
                fields = [row[name] for row in group]
                assert same_column(fields, found.xs[n, : len(group), m], comma), name
            assert not found.xs[n, len(group) :].any()

    in_some_dialect(path, agrees)


def is_float(field):
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


def order_of(field, comma):
    return field if "-" in field[1:] and "e" not in field.lower() else value_of(field, comma)


def held_by_ts(path, found):
    """Lines, colons and commas."""
    lines = re.split("\r\n|\n|\r", text_of(path))
    lines = [line.strip(" \t") for line in lines]
    lines = [line for line in lines if line and not line.startswith("#")]
    start = next(n for n, line in enumerate(lines) if line.lower().split()[0] == "@data")
    examples = lines[start + 1 :]
    assert len(examples) == len(found.labels), "other examples"
    assert len(set(found.classes)) == len(found.classes)
    for line, xs, length, label in zip(
        examples, found.xs, found.lengths, found.labels, strict=True
    ):
        *dimensions, name = line.split(":")
        assert name == found.classes[label]
        assert len(dimensions) == xs.shape[1]
        steps = [dimension.split(",") for dimension in dimensions]
        for fields, column in zip(steps, xs.T, strict=True):
            missing = {field.strip() for field in fields[length:]}
            assert missing <= {"?", "NaN"} and not column[length:].any()
            numbers = np.array([value_of(field, False) for field in fields[:length]], np.float32)
            assert np.array_equal(numbers, column[:length])


def held_by_archive(path, found):
    with np.load(path) as file:
        xs, labels = file["xs.npy"], file["labels.npy"]  # not members without an ending
        given = "lengths.npy" in file.zip.namelist()
        lengths = file["lengths.npy"] if given else [xs.shape[1]] * len(xs)
        assert [str(label) for label in labels] == [found.classes[n] for n in found.labels]
        assert list(lengths) == list(found.lengths)
        assert set(map(str, labels)) == set(found.classes)
        for row, length, read in zip(xs, lengths, found.xs, strict=True):
            expected = [[float(x) for x in step] for step in row[:length]]
            assert np.array_equal(expected, read[:length]) and not read[length:].any()


def held_by_text(path, text):
    assert text == str(path.read_bytes(), "utf-8").removeprefix("\ufeff") and text.strip()
    vocabulary = "".join(sorted(set(text)))
    place = {character: n for n, character in enumerate(vocabulary)}
    assert encode(text, vocabulary).tolist() == [place[character] for character in text]


# ---- valid files ----


def table_text():
    rng = np.random.default_rng(0)
    rows = [
        f"2024-01-{n + 1:02},{n % 3},{x:.4f},{x * 1e3:.1e}"
        for n, x in enumerate(rng.normal(size=20))
    ]
    return "\n".join(["date,shop,price,sold", *rows, ""])


def sequences_text():
    rng = np.random.default_rng(1)
    rows = [
        f"p{n},{'ill' if n % 2 else 'well'},{10 - t},{rng.normal():.3f},note,{rng.integers(9)}"
        for n in range(5)
        for t in range(n + 1)
    ]
    return "\n".join(["who,what,when,pulse,remark,dose", *rows, ""])


def ts_text():
    rng = np.random.default_rng(2)
    lines = [
        ":".join(
            [*(",".join(f"{x:.2f}" for x in rng.normal(size=n + 1)) for _ in "xyz"), "ab"[n % 2]]
        )
        for n in range(6)
    ]
    return "\n".join(["# made", "@problemName x", "@classLabel true a b", "@data", *lines, ""])


TEXT = "ROMEO:\nThe quick brown fox — naïve, 東京.\r\n\tEnd.\n" * 3


# ---- mutations of text files ----


def of_text(name, separators=","):
    """A file with changed fields, encoding or bytes."""

    def make(folder, rng):
        path, text = folder / name, VALID[name]
        content = encoded(rng, mutated_lines(rng, text, separators) if rng.random() < 0.7 else text)
        if rng.random() < 0.25:
            content = hostile.mutated_bytes(rng, content)
        others = [b"", b"\n", b"\xef\xbb\xbf", b"\0" * 64, b"\n" * 200_000 + b"x"]
        path.write_bytes(rng.choice([content] * 30 + others))
        return path

    return make


# ---- mutations of archives ----


def arrays_of(rng):
    """Arrays of sequences, some with other types, shapes, names or values."""
    rows, steps = 6, 4
    numbers = np.random.default_rng(rng.randrange(2**32))
    arrays = {
        "xs": numbers.normal(size=(rows, steps, 2)),
        "labels": numbers.integers(0, 3, rows),
        "lengths": numbers.integers(1, steps + 1, rows),
    }
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        name = rng.choice([*arrays])
        array, what = arrays[name], rng.randrange(9)
        if what == 0:
            types = [
                ">f4",
                "<f2",
                ">i8",
                "<u2",
                "|b1",
                "<c16",
                "<U3",
                "|S3",
                "<M8[s]",
                "<f16",
                "<u8",
                ">u4",
                "|i1",
            ]
            with np.errstate(all="ignore"), contextlib.suppress(ValueError, TypeError):
                arrays[name] = array.astype(rng.choice(types))
        elif what == 1:
            arrays[
                rng.choice(
                    ["lengths", "length", "xs", "ys", "label", "Labels", "XS", "ids", "labels"]
                )
            ] = arrays.pop(name)
        elif what == 2:
            arrays[name] = array.T
        elif what == 3:
            shapes = [
                (),
                (0,),
                (0, 0, 0),
                (1, 2),
                (2, 3, 4),
                (1, 1, 1),
                (6,),
                (7,),
                (6, 1),
                (6, 0, 2),
            ]
            arrays[name] = np.ones(rng.choice(shapes), array.dtype)
        elif what == 4 and array.size and array.dtype.kind in "iuf":
            array = array.astype(rng.choice(["float64", array.dtype.str]))
            values = [-1, 0, 2**40, 5]
            if array.dtype.kind == "f":
                values = [*values, np.nan, np.inf, -np.inf, 1e39, 1e308, -0.0, 1e-300]
            with np.errstate(all="ignore"):
                array.flat[rng.randrange(array.size)] = np.array(rng.choice(values)).astype(
                    array.dtype
                )
            arrays[name] = array
        elif what == 5:
            arrays[name] = np.array([None, {}], object)
        elif what == 6:
            arrays["labels"] = np.array(
                rng.choices(["yes", "no", "", "1", "01", "-3", "9" * 30, "é", "\x1b", "1 "], k=rows)
            )
        elif what == 7:
            arrays[name] = np.asfortranarray(array)
        else:
            arrays[name] = np.zeros(array.shape, "f4,i4")
    return arrays


def of_archive(folder, rng):
    path = folder / "a.npz"
    content = io.BytesIO()
    rng.choice([np.savez, np.savez_compressed])(content, **arrays_of(rng))
    path.write_bytes(content.getvalue())
    what = rng.random()
    if what < 0.25:
        path.write_bytes(hostile.mutated_bytes(rng, path.read_bytes()))
    elif what < 0.45:
        hostile.mutated_zip(rng, path, hostile.mutated_npy)
    elif what < 0.6:
        with zipfile.ZipFile(path, "a", rng.choice([zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])) as file:
            name = rng.choice(
                ["xs.npy", "xs", "labels", "../xs.npy", "lengths.npy", "x.txt", "/etc/x"]
            )
            with np.testing.suppress_warnings() as quiet:
                quiet.filter(UserWarning)
                file.writestr(name, rng.choice([b"", b"1,2", b"\x93NUMPY\x01\x00"]))
    return path


VALID = {"a.csv": table_text(), "b.csv": sequences_text(), "c.ts": ts_text(), "d.txt": TEXT}
KINDS = {
    "CSV table": (of_text("a.csv", ",;"), read_csv, held_by_table),
    "CSV of sequences": (
        of_text("b.csv"),
        lambda path: read_sequences(path, COLUMNS),
        held_by_sequences_csv,
    ),
    ".ts": (of_text("c.ts", ",:"), read_sequences, held_by_ts),
    ".npz of sequences": (of_archive, read_sequences, held_by_archive),
    "text": (of_text("d.txt", ", "), read_text, held_by_text),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_data(kind, tmp_path, fuzz_budget):
    make, read, check = KINDS[kind]
    outcomes = hostile.tried(kind, fuzz_budget, lambda rng: make(tmp_path, rng), read, check)
    assert outcomes["read"] and outcomes["rejected"]


@pytest.mark.parametrize(
    ("name", "kind"), zip(VALID, [k for k in KINDS if "npz" not in k], strict=True)
)
def test_the_valid_data_are_read(name, kind, tmp_path):
    (tmp_path / name).write_text(VALID[name], "utf-8", newline="")
    _, read, check = KINDS[kind]
    assert hostile.attempt(tmp_path / name, read, check) == "read"


# ---- tables whose content is known, in every dialect ----

PLAIN = st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=5)
ODD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-1000, 1000).map(float)


@st.composite
def tables(draw):
    """Names, numbers ``[rows, columns]``, and the file's text."""
    width, rows = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    plain = draw(st.booleans())
    names = draw(st.lists(PLAIN if plain else ODD, min_size=width, max_size=width, unique=True))
    values = draw(
        st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=rows, max_size=rows)
    )
    separator = draw(st.sampled_from(",;\t"))
    comma = separator == ";" and draw(st.booleans())
    stamps = draw(st.sampled_from(["none", "date", "name", "count"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    spelt = [[repr(x).replace(".", "," if comma else ".") for x in row] for row in values]
    if stamps != "none":
        names = ["time" if stamps == "name" else "when it was", *names]
        forms = {"date": "2024-02-{:02}", "name": "{}", "count": "{}"}
        spelt = [[forms[stamps].format(n + 1), *row] for n, row in enumerate(spelt)]
    text = io.StringIO(newline="")
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=end).writerows(
        [names, *spelt]
    )
    whole = (
        draw(st.sampled_from(["", "\ufeff"]))
        + text.getvalue()
        + draw(st.sampled_from(["", end, end * 3]))
    )
    return names, np.array(values), whole, plain


def test_any_table_is_read_as_it_was_written(tmp_path_factory, fuzz_budget):
    path = tmp_path_factory.mktemp("tables") / "a.csv"

    @settings(max_examples=min(fuzz_budget, 1000), deadline=None, derandomize=True, database=None)
    @given(tables())
    def check(table):
        names, values, text, plain = table
        path.write_bytes(text.encode())
        try:
            found = read_csv(path)
        except UserError as error:
            assert path.name in str(error)
            assert not plain or len(names) == 1, error
            return
        assert [*found.columns] in (names, names[1:])
        numbers = found.values[:, len(found.columns) - values.shape[1] :]
        if len(found.columns) >= values.shape[1]:
            np.testing.assert_array_equal(numbers, values)
        else:  # its first column is interpreted as time stamps
            np.testing.assert_array_equal(found.values, values[:, 1:])
            assert len(found.times) == len(values)

    check()
