"""Labelled text, compared with generated trees and tables."""

import random

import numpy as np
import pytest

from lstm_jax.data import fetch
from lstm_jax.data.labelled_text import (
    SST5,
    read_labelled_text,
    read_polarity,
    read_trees,
    stratified,
)
from lstm_jax.errors import UserError


def tree(rng: random.Random, words: list[str]) -> tuple[str, list[tuple[str, int]]]:
    """A random tree over some words, and the text and label of every node, the root first."""
    label = rng.randrange(5)
    if len(words) == 1:
        return f"({label} {words[0]})", [(words[0], label)]
    cut = rng.randrange(1, len(words))
    (left, left_nodes), (right, right_nodes) = tree(rng, words[:cut]), tree(rng, words[cut:])
    nodes = [(" ".join(words), label), *left_nodes, *right_nodes]
    return f"({label} {left} {right})", nodes


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A file of trees, and the nodes of each."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("trees") / "train.txt"
    made = [
        tree(rng, [rng.choice(["a", "n't", "été", "--", "b"]) for _ in range(length)])
        for length in (1, 2, 5, 9, 2, 4)
    ]
    path.write_text("\n".join(line for line, _ in made) + "\n", "utf-8")
    return path, [nodes for _, nodes in made]


def pairs(found) -> list[tuple[str, str]]:
    return [
        (text, found.classes[label]) for text, label in zip(found.texts, found.labels, strict=True)
    ]


def test_sentences_are_the_roots(trees):
    path, nodes = trees
    assert pairs(read_trees(path)) == [(text, SST5[label]) for (text, label), *_ in nodes]
    decided = [(text, label) for (text, label), *_ in nodes if label != 2]
    expected = [(text, "positive" if label > 2 else "negative") for text, label in decided]
    assert pairs(read_trees(path, polarity=True)) == expected and expected


def test_each_distinct_phrase_occurs_once(trees):
    path, nodes = trees
    every = [(text, SST5[label]) for sentence in nodes for text, label in sentence]
    found = pairs(read_trees(path, phrases=True))
    assert len(found) == len(set(found)) < len(every) and set(found) == set(every)


def test_brackets_and_quotation_marks_are_ordinary(tmp_path):
    path = tmp_path / "trees.txt"
    path.write_text(r"(2 (2 -LRB-) (2 (2 ``) (2 (2 and\/or) (2 (2 '') (2 -RRB-)))))")
    assert read_trees(path).texts == ['( " and/or " )']


@pytest.mark.parametrize(
    "line",
    ["", "words", "(5 (2 a) (2 b))", "(2 (2 a) (2 b)", "(2 (2 a) (2 b)))", "(2 )", "(2 a) (2 b)"],
)
def test_invalid_tree_is_reported(tmp_path, line):
    (tmp_path / "trees.txt").write_text(f"(2 a)\n{line}\n(2 b)\n")
    with pytest.raises(UserError, match=r"trees.txt: line 2: expected a tree such as"):
        read_trees(tmp_path / "trees.txt")


@pytest.mark.data
def test_the_treebank_has_its_published_sizes(public_data):
    files = {part: f"sst_trees/{part}.txt" for part in ("train", "dev", "test")}
    public_data(*files.values())
    sizes = {"train": (8544, 6920), "dev": (1101, 872), "test": (2210, 1821)}
    for part, (five, two) in sizes.items():
        path = fetch(files[part])
        assert len(read_trees(path).texts) == five
        assert len(read_trees(path, polarity=True).texts) == two
    phrases = read_trees(fetch(files["train"]), phrases=True)
    assert len(phrases.texts) == 159_275  # of 159,276: two differ only in a bracket


@pytest.mark.data
def test_the_polarity_data_have_their_published_size(public_data):
    public_data("rt_polarity/rt-polarity.pos", "rt_polarity/rt-polarity.neg")
    found = read_polarity()
    assert np.bincount(found.labels).tolist() == [5331, 5331] and all(found.texts)
    assert any("é" in text for text in found.texts)


# ---- the user's own files ----


ROWS = [('say "no", or\nyes', "good"), ("é; 1,5", "bad"), ("\tx", "good")]


def test_a_csv_file_has_named_columns(tmp_path):
    doubled = [(text.replace('"', '""'), name) for text, name in ROWS]
    quoted = [f'"{text}",{n},"{name}"' for n, (text, name) in enumerate(doubled)]
    (tmp_path / "a.csv").write_text("\n".join(["review,stars,class", *quoted]), "utf-8")
    options = {"text_column": "review", "label_column": "class"}
    found = read_labelled_text(tmp_path / "a.csv", **options)
    assert pairs(found) == ROWS and found.classes == ("bad", "good")
    assert found.places[1].endswith("a.csv: line 3")
    unlabelled = read_labelled_text(tmp_path / "a.csv", text_column="review", labelled=False)
    assert unlabelled.texts == found.texts and unlabelled.classes == ()
    known = read_labelled_text(tmp_path / "a.csv", **options, classes=("good", "other", "bad"))
    assert known.labels.tolist() == [0, 2, 0]


def test_quotation_marks_in_a_tsv_file_are_ordinary(tmp_path):
    (tmp_path / "a.tsv").write_text('label\ttext\n10\t"so; far, so good\n9\t5" or more\n')
    found = read_labelled_text(tmp_path / "a.tsv")
    assert pairs(found) == [('"so; far, so good', "10"), ('5" or more', "9")]
    assert found.classes == ("9", "10")  # whole numbers in their order


def test_folder_has_one_subfolder_per_class(tmp_path):
    for name, text in (("neg/1.txt", "bad é"), ("pos/7.txt", "good"), ("pos/12.txt", "fine")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "latin-1")
    found = read_labelled_text(tmp_path, encoding="latin-1")
    assert pairs(found) == [("bad é", "neg"), ("fine", "pos"), ("good", "pos")]
    assert read_labelled_text(tmp_path / "pos", labelled=False).texts == ["fine", "good"]


def test_text_file_to_predict_on_has_one_string_per_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\u0085two\r\n\r\nthree".encode())
    found = read_labelled_text(tmp_path / "a.txt", labelled=False)
    assert found.texts == ["one\u0085two", "", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv: expected text, got an empty file"),
        ("a.csv", b"text,label\n", "a.csv: expected lines below the header, got none"),
        ("a.csv", b"text,class\nx,y\n", "a.csv: line 1: expected a column 'label', got the colu"),
        ("a.csv", b"text,label\nx,\n", "a.csv: line 2: expected a label, got an empty field"),
        ("a.csv", b"text,label\nx\n", "a.csv: line 2: expected 2 fields as in the header, got 1"),
        ("a.csv", b"text,label\nx,no\n", "a.csv: line 2: expected a label among bad, good, got '"),
        ("a.csv", b"text,label\n\xe9,bad\n", "a.csv: expected UTF-8 text, got byte 0xe9 at posit"),
        ("a.txt", b"x\n", "a.txt: expected a .csv or .tsv file or a folder of .txt files"),
        ("b.csv", None, "b.csv: no such file or folder"),
    ],
)
def test_mistakes_give_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as info:
        read_labelled_text(tmp_path / name, classes=("bad", "good"))
    assert message in str(info.value) and "\n" not in str(info.value)


def test_an_empty_folder_and_an_empty_file_in_one(tmp_path):
    with pytest.raises(UserError, match=r"expected one folder of .txt files per class, got none"):
        read_labelled_text(tmp_path)
    (tmp_path / "pos").mkdir()
    (tmp_path / "pos" / "1.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"1.txt: expected text, got an empty file"):
        read_labelled_text(tmp_path)


def test_stratified_subset_is_random_within_each_class():
    labels = np.array([0] * 40 + [1] * 10 + [2] * 3)
    chosen = stratified(labels, 0.2, seed=1)
    assert [int(chosen[labels == c].sum()) for c in range(3)] == [8, 2, 1]
    np.testing.assert_array_equal(chosen, stratified(labels, 0.2, seed=1))
    assert (chosen != stratified(labels, 0.2, seed=2)).any()
    assert not np.array_equal(np.flatnonzero(chosen[:40]), np.arange(32, 40))


def test_decimal_commas_and_points_in_text_stay(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text;label\n1,5;bad\n2.5;good\n")
    assert read_labelled_text(path).texts == ["1,5", "2.5"]
