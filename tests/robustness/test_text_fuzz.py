"""Damaged and malicious text to classify or translate, and tokenizers.

``pytest tests/robustness --fuzz 5000 -s`` tries more inputs and prints how many.
"""

import csv
import gzip
import io
import json
import re
import shutil
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_jax.data import Tokenizer
from lstm_jax.data.labelled_text import read_labelled_text, read_trees
from lstm_jax.data.parallel import read_parallel
from lstm_jax.data.tokens import SPECIAL
from tests.robustness import hostile
from tests.robustness.hostile_text import encoded, mutated_lines
from tests.robustness.readers import in_some_dialect, text_of

REVIEWS = [
    ("good", "A film that moves, and is funny."),
    ("bad", "Dull; I left."),
    ("good", "naïve — 東京"),
    ("bad", "1,5 stars"),
    ("good", "2.5"),
    ("bad", "1,5"),
    ("good", "10"),
    ("bad", "It 's\u0085not good"),
]

# ---- tables of labelled text ----


def table(separator):
    text = io.StringIO(newline="")
    rows = [["label", "text"], *REVIEWS]
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=separator, quoting=quoting, lineterminator="\n").writerows(rows)
    return text.getvalue()


def labelled_table(name, separator):
    """A table with changed fields, lines, encoding or bytes."""

    def make(folder, rng):
        text = table(separator)
        content = encoded(rng, mutated_lines(rng, text, separator) if rng.random() < 0.7 else text)
        if rng.random() < 0.25:
            content = hostile.mutated_bytes(rng, content)
        (folder / name).write_bytes(rng.choice([content] * 20 + [b"", b"\n", b"\0" * 64, b"text"]))
        return folder / name

    return make


def held_by_rows(records, found):
    names, *rows = records
    text, label = names.index("text"), names.index("label")
    assert [row[text] for row in rows] == found.texts, "other texts"
    assert [row[label].strip() for row in rows] == [found.classes[n] for n in found.labels]
    assert len(set(found.classes)) == len(found.classes) and "" not in found.classes
    assert {len(row) for row in rows} == {len(names)}


def held_by_csv(path, found):
    in_some_dialect(path, lambda records, comma: held_by_rows(records, found))


def held_by_tsv(path, found):
    lines = re.split("\r\n|\r|\n", text_of(path))
    held_by_rows([line.split("\t") for line in lines if line], found)


# ---- folders of labelled text ----


def labelled_folder(folder, rng):
    """A folder with one folder of files per class, some of which are damaged."""
    top = folder / "reviews"
    shutil.rmtree(top, ignore_errors=True)
    for n, (label, text) in enumerate(REVIEWS):
        (top / label).mkdir(parents=True, exist_ok=True)
        (top / label / f"{n}.txt").write_text(text, "utf-8")
    for _ in range(rng.choice([1, 1, 2, 3])):
        path = rng.choice(sorted(top.rglob("*.txt")) or [top / "x.txt"])
        what = rng.randrange(7)
        if what == 0 and path.is_file():
            path.write_bytes(encoded(rng, rng.choice(REVIEWS)[1]))
        elif what == 1 and path.is_file() and path.stat().st_size:
            path.write_bytes(hostile.mutated_bytes(rng, path.read_bytes()))
        elif what == 2 and path.is_file():
            path.unlink()
            rng.choice([lambda: None, path.mkdir])()
        elif what == 3 and path.parent != top:
            shutil.rmtree(path.parent)
        elif what == 4 and path.is_file():
            path.rename(path.with_name(rng.choice(["\x1b.txt", "a.TXT", "b", ".txt", "é\n.txt"])))
        elif what == 5 or path.is_dir():
            (top / rng.choice(["other", "bad ", ".hidden", "a\nb"])).mkdir(exist_ok=True)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(rng.choice([b"", b" \n", b"\xef\xbb\xbf", b"\xff", b"x" * 10**6]))
    return top


def held_by_folder(path, found):
    folders = [each for each in path.iterdir() if each.is_dir()]
    files = [file for each in folders for file in each.iterdir()]
    files = sorted(file for file in files if file.name.endswith(".txt"))
    assert [text_of(file) for file in files] == found.texts
    assert [file.parent.name.strip() for file in files] == [found.classes[n] for n in found.labels]


# ---- trees ----

TREES = """(3 (2 It) (4 (2 's) (4 (2 great) (2 .))))
(1 (2 -LRB-) (1 (1 dull) (2 -RRB-)))
(2 either\\/or)
"""


def tree_nodes(line):
    """Text and label of every node, by recursive descent; the root first."""
    place = 0

    def skip():
        nonlocal place
        while place < len(line) and line[place].isspace():
            place += 1

    def node():
        nonlocal place
        assert line[place] == "(" and line[place + 1] in "01234", "no node"
        label, place = int(line[place + 1]), place + 2
        assert line[place].isspace() or line[place] == "(", "no space after a label"
        words, below = [], []
        skip()
        while line[place] != ")":
            if line[place] == "(":
                inside, nodes = node()
                words, below = words + inside, below + nodes
            else:
                word = re.compile(r"[^\s()]+").match(line, place).group()
                words, place = [*words, plain(word)], place + len(word)
            skip()
        assert words, "an empty node"
        place += 1
        return words, [(" ".join(words), label), *below]

    skip()
    _, nodes = node()
    skip()
    assert place == len(line), "more than a tree"
    return nodes


def plain(word):
    known = {"-LRB-": "(", "-RRB-": ")", "-lrb-": "(", "-rrb-": ")", "``": '"', "''": '"'}
    return known.get(word) or word.replace("\\/", "/").replace("\\*", "*")


def mutated_trees(folder, rng):
    text = TREES
    for _ in range(rng.choice([1, 1, 2, 5])):
        n = rng.randrange(len(text))
        piece = rng.choice(
            ["", "(", ")", " ", "((", "))", "(2 ", "(5 ", "\n", "\r", "\x0b", "3", "\0"]
        )
        text = text[:n] + piece + text[n + rng.choice([0, 1, 1, 3]) :]
    if rng.random() < 0.02:
        text = "(2 " * 100 + "x" + ")" * 100
    content = encoded(rng, text)
    if rng.random() < 0.2:
        content = hostile.mutated_bytes(rng, content)
    path = folder / "trees.txt"
    path.write_bytes(content)
    return path


def held_by_trees(path, found):
    lines = re.split("\r?\n", text_of(path).removesuffix("\n").removesuffix("\r"))
    roots = [tree_nodes(line)[0] for line in lines]
    assert list(zip(found.texts, found.labels, strict=True)) == roots


def held_by_phrases(path, found):
    lines = re.split("\r?\n", text_of(path).removesuffix("\n").removesuffix("\r"))
    phrases = dict.fromkeys(node for line in lines for node in tree_nodes(line))
    assert list(zip(found.texts, found.labels, strict=True)) == [*phrases]


# ---- parallel text ----

ENGLISH = "A dog runs.\nTwo naïve dogs.\n\nA cat — 猫.\n"
GERMAN = "Ein Hund läuft.\nZwei naive Hunde.\n\nEine Katze.\n"


def one_side(rng, text):
    lines = text.split("\n")
    for _ in range(rng.choice([0, 1, 1, 2])):
        n = rng.randrange(len(lines))
        piece = rng.choice(["", " ", "\u0085", "a\u2028b", "\r", "\x0b", "</s>", "\0", "x" * 10**4])
        lines[n : n + rng.choice([0, 1])] = [piece] * rng.choice([0, 1, 1, 2])
    content = encoded(rng, "\n".join(lines))
    if rng.random() < 0.2:
        content = content.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n"]))
    if rng.random() < 0.2:
        content = hostile.mutated_bytes(rng, content)
    if rng.random() < 0.4:
        content = gzip.compress(content) * rng.choice([1, 1, 1, 2])
        if rng.random() < 0.5:
            content = hostile.mutated_bytes(rng, content)
    if rng.random() < 0.03:
        content = rng.choice([b"", b"\x1f\x8b", b"\n" * 10**5, gzip.compress(b"")])
    return content


def parallel(folder, rng):
    for name, text in (("a.de", GERMAN), ("a.en", ENGLISH)):
        (folder / name).write_bytes(one_side(rng, text) if rng.random() < 0.7 else text.encode())
    return folder / "a.en"


def gzip_content(content):
    """The uncompressed content, member by member."""
    whole = b""
    while content:
        member = zlib.decompressobj(wbits=31)
        whole += member.decompress(content)
        assert member.eof, "a broken member"
        content = member.unused_data.lstrip(b"\0")
    return whole


def lines_in(path):
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip_content(content)
    text = content.decode("utf-8").removeprefix("\ufeff")
    assert text
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]


def held_by_parallel(path, found):
    sides = lines_in(path), lines_in(path.with_suffix(".de"))
    pairs = [pair for pair in zip(*sides, strict=True) if pair[0].strip() or pair[1].strip()]
    assert pairs and all(one.strip() and other.strip() for one, other in pairs)
    assert list(zip(*found, strict=True)) == pairs


KINDS = {
    "CSV of labelled text": (labelled_table("a.csv", ","), read_labelled_text, held_by_csv),
    "CSV of labelled text with semicolons": (
        labelled_table("b.csv", ";"), read_labelled_text, held_by_csv,
    ),
    "TSV of labelled text": (labelled_table("c.tsv", "\t"), read_labelled_text, held_by_tsv),
    "folders of labelled text": (labelled_folder, read_labelled_text, held_by_folder),
    "trees": (mutated_trees, read_trees, held_by_trees),
    "phrases of trees": (
        mutated_trees, lambda path: read_trees(path, phrases=True), held_by_phrases,
    ),
    "parallel text": (
        parallel, lambda path: read_parallel(path, path.with_suffix(".de")), held_by_parallel,
    ),
}  # fmt: skip
FOLDERS = {"folders of labelled text": r"reviews", "parallel text": r"a\.(en|de)"}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_text(kind, tmp_path, fuzz_budget):
    make, read, check = KINDS[kind]
    more = {"names": FOLDERS[kind], "around": hostile.limited} if kind in FOLDERS else {}
    outcomes = hostile.tried(
        kind, fuzz_budget, lambda rng: make(tmp_path, rng), read, check, **more
    )
    assert outcomes["read"] and outcomes["rejected"]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b b", "1"]),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")),
        ),
        min_size=1,
    ),
    st.sampled_from(",;\t"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_any_labelled_text_is_read_as_it_was_written(tmp_path_factory, rows, separator, quoting):
    path = tmp_path_factory.mktemp("tables") / "a.csv"
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, quoting=quoting)
    writer.writerows([["label", "text"], *rows])
    path.write_bytes(text.getvalue().encode())
    found = read_labelled_text(path)
    assert found.texts == [text for _, text in rows]
    assert [found.classes[n] for n in found.labels] == [label for label, _ in rows]


# ---- tokenizers ----

LINES = ["the cat sat", "The dog's cat, don't!", "naïve 東京 — (a)"]
OTHERS = [*LINES, "</s><pad> unknown", "", " ", "\0\u0301é", "𝔘nicode 👩‍👩‍👧", "x" * 1000]


def mutated_tokenizer(rng, whole):
    what = rng.randrange(4)
    if what == 0:
        return hostile.mutated_bytes(rng, whole.encode()).decode("utf-8", "replace")
    if what == 1:
        return rng.choice(["", "{}", "[]", "null", "[" * 10**5, '{"version": "1.0"}', "x\0y"])
    return json.dumps(hostile.mutated_json(rng, json.loads(whole)))


@pytest.mark.parametrize("kind", ["words", "subwords", "characters"])
def test_damaged_tokenizers(kind, tmp_path, fuzz_budget):
    whole = Tokenizer.train(LINES, kind=kind, vocabulary_size=280, lowercase=kind == "words")
    path = tmp_path / "tokenizer.json"

    def make(rng):
        path.write_text(mutated_tokenizer(rng, whole.to_json()), "utf-8")
        return path

    def consistent(_, tokenizer):
        size, tokens = len(tokenizer), tokenizer.tokens
        assert size == len(tokens) == len(set(tokens)) and tuple(tokens[:4]) == SPECIAL
        for line, ids in zip(OTHERS, tokenizer.encode(OTHERS), strict=True):
            assert ids.dtype == np.int32 and all(0 <= n < size for n in ids), f"{ids} of {size}"
            assert not set(ids.tolist()) & {0, 2, 3}, f"special tokens in {line!r}: {ids}"
            tokenizer.decode(ids)
            assert len(tokenizer.spans(line)) == len(ids)
        again = Tokenizer.from_json(tokenizer.to_json())
        for one, other in zip(tokenizer.encode(OTHERS), again.encode(OTHERS), strict=True):
            np.testing.assert_array_equal(one, other)

    outcomes = hostile.tried(
        f"tokenizer of {kind}", fuzz_budget, make,
        lambda path: Tokenizer.from_json(path.read_text("utf-8")), consistent, names="tokenizer",
    )  # fmt: skip
    assert outcomes["rejected"]
