"""Texts, their encoding, and the n-gram baseline against a brute-force count."""

import collections
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_jax.data import encode, ngram_loss, python_reference, read_text
from lstm_jax.errors import UserError


def witten_bell(train: list[int], held_out: list[int], vocabulary_size: int, order: int) -> float:
    """The recursion of the papers, with a dictionary of successors per context."""
    followers: dict[tuple, collections.Counter] = collections.defaultdict(collections.Counter)
    for n in range(order):
        for place in range(n, len(train)):
            followers[tuple(train[place - n : place])][train[place]] += 1

    def probability(context: tuple, token: int) -> float:
        shorter = (
            probability(context[1:], token) if context else 1 / vocabulary_size
        )  # the empty context backs off to the uniform distribution
        seen = followers.get(context)
        if not seen:
            return shorter
        return (seen[token] + len(seen) * shorter) / (seen.total() + len(seen))

    tokens, losses = train + held_out, []
    for place in range(len(train), len(tokens)):
        context = tuple(tokens[max(0, place - order + 1) : place])
        losses.append(-math.log(probability(context, tokens[place])))
    return sum(losses) / len(losses)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    train=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    held_out=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    spare=st.integers(0, 3),
    order=st.integers(1, 6),
)
def test_ngram_loss_matches_brute_force_counts(train, held_out, spare, order):
    """Also if the training text is shorter than an n-gram, and for unseen tokens."""
    size = 4 + spare
    loss = ngram_loss(np.array(train), np.array(held_out), size, order)
    assert loss == pytest.approx(witten_bell(train, held_out, size, order), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
def test_ngram_loss_of_a_real_text_matches_brute_force_counts(order):
    text = "the cat sat on the mat; the rat that sat on the cat sat on that mat, too. " * 3
    tokens = np.array([ord(c) % 64 for c in text], np.int32)
    loss = ngram_loss(tokens[:150], tokens[150:], 64, order)
    expected = witten_bell(tokens[:150].tolist(), tokens[150:].tolist(), 64, order)
    assert loss == pytest.approx(expected, rel=1e-12)


def test_ngram_loss_of_order_one_matches_the_formula():
    # Three kinds in three tokens: P(seen) = (1 + 3/4) / 6, P(unseen) = (0 + 3/4) / 6.
    train = np.array([0, 1, 2])
    assert ngram_loss(train, np.array([1]), 4, 1) == pytest.approx(-math.log(1.75 / 6))
    assert ngram_loss(train, np.array([3]), 4, 1) == pytest.approx(-math.log(0.75 / 6))


def test_five_grams_reach_their_known_loss_on_pythons_reference():
    """About 1.41 nats on Python 3.11; the text differs a little between versions."""
    text = python_reference()
    vocabulary = "".join(sorted(set(text)))
    tokens = encode(text, vocabulary)
    cut = round(0.9 * len(tokens))
    assert 1.3 < ngram_loss(tokens[:cut], tokens[cut:], len(vocabulary), 5) < 1.5


def test_python_reference_has_no_paragraph_twice():
    """Not even with different white space: it could occur on both sides of a split."""
    paragraphs = [" ".join(p.split()) for p in python_reference().split("\n\n") if p.strip()]
    repeated = [p[:60] for p, n in collections.Counter(paragraphs).items() if n > 1]
    assert len(paragraphs) > 1500
    assert repeated == []


def test_python_reference_keeps_the_first_occurrence_of_each_paragraph(monkeypatch):
    topics = {"b": "one\n\ntwo\n\n\n  four\n", "a": "\ntwo\n\nthree\n", "c": "three\n\n five"}
    monkeypatch.setattr("pydoc_data.topics.topics", topics)
    assert python_reference() == "two\n\nthree\n\none\n\n  four\n\n five"


def test_python_reference_is_the_same_each_time():
    assert python_reference() == python_reference()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_encode_gives_positions_in_the_vocabulary(text):
    vocabulary = "".join(sorted(set(text)))
    tokens = encode(text, vocabulary)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [vocabulary.index(c) for c in text]


def test_encode_accepts_characters_beyond_the_basic_plane():
    assert encode("a😀z\U0010ffff😀", "az😀\U0010ffff").tolist() == [0, 2, 1, 3, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abxa", r"character 'x' at position 2 is not among the 3 characters of the training"),
        ("ab\x00", r"character '\\x00' at position 2 "),
        ("c😀", r"character '😀' at position 1 "),
        ("b\udcff", r"character '\\udcff' at position 1 "),  # a byte of argv that is not UTF-8
    ],
)
def test_encode_names_the_first_unknown_character(text, message):
    with pytest.raises(UserError, match=message):
        encode(text, "abc")


def test_read_text_gives_all_characters_and_keeps_line_ends(tmp_path):
    path = tmp_path / "text.txt"
    text = "".join(random.Random(0).choices("aä😀 \r\n\t", k=200)) + "\r\n"
    path.write_bytes(text.encode())
    assert read_text(path) == read_text(str(path)) == text


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "marked.txt").write_text("a\ufeffb\n", "utf-8-sig")
    assert read_text(tmp_path / "marked.txt") == "a\ufeffb\n"
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(UserError, match="expected text, got an empty file"):
        read_text(tmp_path / "marked.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected text, got an empty file"),
        (b" \n\t\n", "expected text, got an empty file"),
        ("ää".encode() + b"\xff.", "expected UTF-8 text, got byte 0xff at position 4"),
        ("é".encode("latin-1"), "expected UTF-8 text, got byte 0xe9 at position 0"),
    ],
)
def test_read_text_reports_errors(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_text(path)
    assert str(caught.value) == f"{path}: {message}"


def test_read_text_names_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.txt: no such file"):
        read_text(tmp_path / "nothing.txt")
