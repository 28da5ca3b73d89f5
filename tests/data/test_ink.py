"""Ink files of tablets, browsers and UNIPEN."""

import tarfile
import zipfile

import numpy as np
import pytest

from lstm_jax.data.ink import (
    UNIPEN_STA,
    Ink,
    cache_folder,
    read_ink_csv,
    read_ink_splits,
    read_inkml,
    read_inks,
    split_inks,
)
from lstm_jax.data.unipen import read_unipen, read_unipen_file
from lstm_jax.errors import UserError

CSV = """\
x,y,pen,ink,text,writer
0,0,1,one,it,ann
1,2,1,one,it,ann
1,3,0,one,it,ann
4,5,1,one,it,ann
7,8,1,two,at,bob
"""
INKML = """\
<?xml version="1.0" encoding="UTF-8"?>
<ink xmlns="http://www.w3.org/2003/InkML">
<traceFormat><channel name="T" type="integer"/><channel name="X"/><channel name="Y"/></traceFormat>
<annotation type="truth">x</annotation><annotation type="writer"> ann </annotation>
<trace id="0">0 1 2, 1 3 4</trace><!-- a comment -->
<trace id="1">
2 5 6</trace>
</ink>
"""
LABELS = """\
.VERSION 1.0
.INCLUDE set/set.doc
.INCLUDE set/data/ann.dat
.SEGMENT WORD 0-2 OK "it"
.SEGMENT WORD 2:1-4:0,5 OK "say \\"a\\""
"""
DOC = ".COMMENT free text\n .no keyword\n.COORD X T Y\n"
COMPONENTS = """\
.WRITER_ID ann
.PEN_DOWN
0 0 0
1 1 2
.PEN_UP
9 9 9
.PEN_DOWN
2 2 3
3 3 4
.PEN_UP
.PEN_UP
9 9 9
.PEN_DOWN
4 4 5
5 5 6
.PEN_DOWN
6 6 7
"""
FILES = {
    "data/1/ann.dat": LABELS,
    "include/set/set.doc": DOC,
    "include/set/data/ann.dat": COMPONENTS,
}


def lists(strokes) -> list:
    return [stroke.tolist() for stroke in strokes]


def test_a_csv_file_has_a_row_for_each_point(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    one, two = read_ink_csv(tmp_path / "a.csv")
    assert (one.name, one.text, one.writer) == ("one", "it", "ann")
    assert lists(one.strokes) == [[[0, 0], [1, -2]], [[4, -5]]]
    assert (two.text, lists(two.strokes)) == ("at", [[[7, -8]]])


def test_inkml_has_a_trace_for_each_stroke(tmp_path):
    (tmp_path / "a.inkml").write_text(INKML)
    ink = read_inkml(tmp_path / "a.inkml")
    assert (ink.name, ink.text, ink.writer) == ("a.inkml", "x", "ann")
    assert lists(ink.strokes) == [[[1, -2], [3, -4]], [[5, -6]]]
    assert [found.text for found in read_inks(tmp_path)] == ["x"]


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.xz"])
def test_segments_count_components_with_the_pen_down_and_up(tmp_path, kind):
    path = write(tmp_path / "top", FILES)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name in FILES:
                archive.write(path / name, f"top/{name}")
        path = tmp_path / "a.zip"
    elif kind == "tar.xz":
        with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as archive:
            archive.add(path, "top")
        path = tmp_path / "a.tar.xz"
    one, two = read_inks(path)
    assert (one.text, one.writer, lists(one.strokes)) == (
        "it",
        "ann",
        [[[0, 0], [1, 2]], [[2, 3], [3, 4]]],
    )
    assert (two.text, lists(two.strokes)) == ('say "a"', [[[3, 4]], [[4, 5]], [[6, 7]]])


def test_a_unipen_file_without_segments_is_one_piece(tmp_path):
    (tmp_path / "a.dat").write_text(DOC + COMPONENTS)
    (segment,) = read_unipen_file(tmp_path / "a.dat")
    assert lists(segment.strokes)[2:] == [[[4, 5], [5, 6]], [[6, 7]]] and segment.text == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "x,y,pen\n", "expected ink, got no points"),
        ("a.csv", "x,y,pen\n1,2,0\n", "expected ink, got no point with pen = 1"),
        ("a.csv", "x,y\n1,2\n", "expected the columns x, y, pen and .* got no column 'pen'"),
        ("a.csv", "x,y,pen,z\n1,2,1,3\n", "got a column 'z'"),
        ("a.csv", "x,y,pen\n1,2,3\n", r"line 2: column 'pen': expected 1 \(down\) or 0 \(up\)"),
        ("a.csv", "x,y,pen\n1,b,1\n", "line 2: column 'y': expected a number, got 'b'"),
        ("a.inkml", "<ink></ink>", "expected ink, got no points"),
        ("a.inkml", "<ink><trace>1 2", "not InkML"),
        ("a.inkml", "<svg/>", "expected InkML, whose root is <ink>, got <svg>"),
        ("a.inkml", "<ink><trace>1, 2 3</trace></ink>", "trace 1: expected 2 numbers per point"),
        ("a.inkml", "<ink><trace>'1 '2</trace></ink>", "trace 1: expected a number"),
        ("a.inkml", '<!DOCTYPE a [<!ENTITY b "c">]><ink/>', "without declarations"),
        ("a.dat", ".VERSION 1.0\n", "expected ink, got no points"),
        ("a.dat", ".PEN_DOWN\n1 2 3\n", "expected 2 numbers per point, got 3 numbers"),
        ("a.dat", ".PEN_DOWN\n1 b\n", "component 0: expected numbers"),
        ("a.dat", '.PEN_DOWN\n1 2\n.SEGMENT WORD 0-3 OK "a"\n', "components from 0 to 0, got 0-3"),
        ("a.dat", '.PEN_DOWN\n1 2\n.SEGMENT WORD 0:5 OK "a"\n', "at most 1 points, got 0:5"),
        ("a.dat", '.PEN_DOWN\n1 2\n.SEGMENT WORD a-b OK "a"\n', "expected components such as"),
        ("a.dat", '.PEN_UP\n1 2\n.SEGMENT WORD 0 OK "a"\n', "expected ink, got no points"),
        ("a.dat", ".COORD T\n", "expected X and Y among the columns"),
        ("a.dat", ".INCLUDE ../../secret\n", "expected a file include/../../secret in"),
        ("a.png", "ink", "expected a .csv, .inkml, .dat"),
    ],
)
def test_damaged_files_give_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_inks(tmp_path / name)


def test_unipen_includes_stay_within_the_given_folder(tmp_path):
    (tmp_path / "secret").write_text(COMPONENTS)
    loop = FILES | {"include/set/set.doc": ".INCLUDE set/set.doc\n"}
    with pytest.raises(UserError, match="at most 8 files deep"):
        read_unipen(write(tmp_path / "loop", loop))
    with pytest.raises(UserError, match=r"expected a file include/\.\./\.\./secret"):
        read_unipen(
            write(tmp_path / "out", {"data/a.dat": ".INCLUDE ../../secret\n.SEGMENT A 0\n"})
        )
    with pytest.raises(UserError, match=r"UNIPEN files with \.SEGMENT lines, got none"):
        read_unipen(write(tmp_path / "none", {"a.dat": "nothing"}))
    (tmp_path / "a.tar.xz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"a\.tar\.xz: cannot be read"):
        read_inks(tmp_path / "a.tar.xz")


def test_each_writer_is_in_one_split():
    inks = [Ink(f"{n}", (), text=f"{n % 7}", writer=f"{n % 24:02}") for n in range(240)]
    splits = split_inks(inks)
    writers = {split: {ink.writer for ink in part} for split, part in splits.items()}
    assert writers["test"] == {"00", "06", "12", "18"} and writers["validation"] == {"03", "15"}
    assert sum(map(len, writers.values())) == 24
    few = split_inks(inks, by="text")  # seven texts: the pieces themselves are assigned
    assert {split: len(part) for split, part in few.items()} == {
        "train": 180,
        "validation": 20,
        "test": 40,
    }
    with pytest.raises(UserError, match="at least 4 pieces"):
        split_inks(inks[:3])


def test_training_needs_texts(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,pen\n1,2,1\n")
    with pytest.raises(UserError, match=r"a\.csv 1: expected the text that was written, got none"):
        read_ink_splits(str(tmp_path / "a.csv"))


def test_a_missing_public_set_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LSTM_JAX_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"unipen_sta: not found in .*10\.5281/zenodo\.1195803"):
        read_ink_splits("unipen_sta")


@pytest.mark.data
def test_public_sets_have_their_published_sizes(public_data):
    public_data("pen_digits/pendigits.tra", "pen_digits/pendigits.tes")
    digits = read_ink_splits("pen_digits")
    assert len(digits["train"]) + len(digits["validation"]) == 7494 and len(digits["test"]) == 3498
    counts = np.bincount([int(ink.text) for ink in digits["test"]])
    assert counts.tolist() == [363, 364, 364, 336, 364, 335, 336, 364, 336, 336]  # as UCI has them


@pytest.mark.data
def test_unipen_words_have_their_documented_sizes():
    if not (cache_folder() / UNIPEN_STA).exists():
        pytest.skip("needs the words of donor sta of UNIPEN")
    splits = read_ink_splits("unipen_sta")
    inks = [ink for part in splits.values() for ink in part]
    assert len(inks) == 15_808 and len({ink.text for ink in inks}) == 1002
    writers = {split: len({ink.writer for ink in part}) for split, part in splits.items()}
    assert writers == {"train": 23, "validation": 3, "test": 6} and len(splits["test"]) == 2974
    assert all(ink.text.isalpha() for ink in inks)
