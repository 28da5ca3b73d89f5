"""Tokenizers, compared with byte-pair encoding and word splitting in plain Python."""

import collections
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstm_jax.data.tokens import END, KINDS, PAD, SPECIAL, START, UNKNOWN, Tokenizer, padded
from lstm_jax.errors import UserError

LINES = [
    "The cat sat on the mat; the cat's mat.",
    "Don't sit on the mat, it's the cat's!",
    "Größe: 3.5 m... the <unk> end</s>",
] * 3


def words(line: str) -> list[str]:
    """Splits a line at spaces, then clitics, then words and punctuation."""
    found = []
    for part in line.split():
        while part:
            clitic = re.match(r"(n't|'(s|re|ve|ll|d|m))(?!\w)", part)
            if clitic:
                end = clitic.end()
            elif part[0].isalnum() or part[0] == "_":
                end = len(re.match(r"\w+", part)[0])
                # "Don't": the word ends before "n't".
                if part[end - 1 : end + 2] == "n't" and not part[end + 2 :][:1].isalnum():
                    end = max(end - 1, 1)
            else:
                end = len(part) - len(part.lstrip(part[0]))
            found.append(part[:end])
            part = part[end:]
    return found


def byte_pairs(lines: list[str], merges: int) -> list[tuple[bytes, bytes]]:
    """The merges of byte-pair encoding, found by counting all pairs after each merge."""
    # Pieces of letters, digits or marks, each with one space before it, as GPT-2 splits text.
    pieces = collections.Counter(
        tuple(bytes([byte]) for byte in piece.encode())
        for line in lines
        for piece in re.findall(r" ?[^\W\d]+| ?\d+| ?[^\w\s]+|\s+", " " + line)
    )
    joined = []
    for _ in range(merges):
        counts = collections.Counter()
        for piece, count in pieces.items():
            for pair in itertools.pairwise(piece):
                counts[pair] += count
        pair, most = counts.most_common(1)[0]
        assert list(counts.values()).count(most) == 1, "the order of the joins is not unique"
        joined.append(pair)
        pieces = collections.Counter({_join(piece, pair): n for piece, n in pieces.items()})
    return joined


def _join(piece, pair):
    out = []
    for symbol in piece:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: Tokenizer.train(LINES, kind=kind, vocabulary_size=300) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_fixed_numbers_and_text_never_becomes_one(tokenizers, kind):
    tokenizer = tokenizers[kind]
    assert tokenizer.tokens[:4] == list(SPECIAL) and (PAD, UNKNOWN, START, END) == (0, 1, 2, 3)
    spelt = tokenizer.encode(["<pad> <s> </s>"])[0]
    assert not {PAD, START, END} & set(spelt.tolist())
    assert tokenizer.decode([START, *tokenizer.encode(["the cat"])[0], END, PAD]) == "the cat"


def test_words_are_the_most_frequent_ones_in_order():
    tokenizer = Tokenizer.train(LINES, kind="words", vocabulary_size=12, min_count=4)
    counts = collections.Counter(word for line in LINES for word in words(line))
    often = sorted((-n, word) for word, n in counts.items() if n >= 4)[: 12 - 4]
    assert tokenizer.tokens == [*SPECIAL, *(word for _, word in often)]
    assert len(tokenizer) == 12


def test_words_are_split_at_spaces_clitics_and_marks(tokenizers):
    tokenizer = tokenizers["words"]
    for line in [*LINES, "Isn't  'that' ...\tn't\u00a0ok?!", "shouldn't've"]:
        spans = tokenizer.spans(line)
        assert [line[start:end] for start, end in spans] == words(line)
    known = LINES[1]
    assert tokenizer.decode(tokenizer.encode([known])[0]) == " ".join(words(known))
    assert tokenizer.decode(tokenizer.encode(["the zebra"])[0]) == "the <unk>"


def test_subword_merges_match_brute_force_counts():
    lines = ["aab aabc aab ab", "caab aab aabc bc bc"]
    tokenizer = Tokenizer.train(lines, kind="subwords", vocabulary_size=260 + 3)
    merged = [first + second for first, second in byte_pairs(lines, 3)]
    assert [token.replace("Ġ", " ").encode() for token in tokenizer.tokens[260:]] == merged


@given(st.text(max_size=30))
def test_subwords_restore_the_text_exactly(text):
    tokenizer = Tokenizer.train(LINES, kind="subwords", vocabulary_size=290)
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_word_has_the_same_subword_at_the_start_and_later(tokenizers):
    first, later = tokenizers["subwords"].encode(["the", "the the"])
    assert later.tolist() == [*first, *first]


def test_characters_keep_spaces_and_line_ends():
    text = "to be,\n\tor not"
    tokenizer = Tokenizer.train([text], kind="characters")
    ids = tokenizer.encode([text, "b?\n"])
    by_count = sorted(set(text), key=lambda letter: (-text.count(letter), letter))
    assert tokenizer.tokens[4:] == by_count
    assert ids[0].tolist() == [4 + by_count.index(letter) for letter in text]
    assert tokenizer.decode(ids[0]) == text and tokenizer.decode(ids[1]) == "b<unk>\n"


@pytest.mark.parametrize("kind", KINDS)
def test_lowercase(kind):
    tokenizer = Tokenizer.train(["ABC abc"], kind=kind, vocabulary_size=270, lowercase=True)
    assert tokenizer.decode(tokenizer.encode(["aBc"])[0]) == "abc"


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic_and_json_restores_it(kind):
    # Many ties: the order of equal counts must not depend on a hash or a thread.
    lines = [f"{n} {n + 1} {chr(97 + n % 26)}{chr(97 + n % 7)}" for n in range(200)]
    one = Tokenizer.train(lines, kind=kind, vocabulary_size=310)
    other = Tokenizer.train(reversed(lines), kind=kind, vocabulary_size=310)
    assert one.tokens == other.tokens and one.to_json() == other.to_json()
    restored = Tokenizer.from_json(json.loads(json.dumps(one.to_json())))
    text = "17 18 ab\n </s> ü"
    np.testing.assert_array_equal(restored.encode([text])[0], one.encode([text])[0])
    assert restored.to_json() == one.to_json()


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_undecodable_text(tokenizers, kind):
    tokenizer = tokenizers[kind]
    empty, surrogate = tokenizer.encode(["", "\udcff"])
    assert empty.shape == (0,) and empty.dtype == np.int32 and tokenizer.decode(empty) == ""
    assert tokenizer.decode(surrogate) == ("\ufffd" if kind == "subwords" else "<unk>")


def test_padded_rows_are_cut_and_filled():
    rows = [np.array([5, 6, 7]), np.array([], int), np.array([8])]
    tokens, lengths = padded(rows, 2)
    assert tokens.tolist() == [[5, 6], [0, 0], [8, 0]] and lengths.tolist() == [2, 0, 1]
    assert tokens.dtype == lengths.dtype == np.int32
    assert padded(rows)[0].shape == (3, 3) and padded([])[0].shape == (0, 0)


def test_messages(tokenizers):
    with pytest.raises(UserError, match=r"^kind: expected one of words, subwords, characters, got"):
        Tokenizer.train(LINES, kind="syllables")
    for kind, least in (("words", 5), ("subwords", 260)):
        with pytest.raises(UserError, match=f"^vocabulary_size: expected at least {least}, got 4$"):
            Tokenizer.train(LINES, kind=kind, vocabulary_size=4)
    whole = tokenizers["words"].to_json()
    other = whole.replace('"<pad>"', '"<fill>"')
    for text in ("", "[]", whole[: len(whole) // 2], '{"version": "1.0"}', other):
        with pytest.raises(UserError, match=r"^tokenizer: expected JSON of the tokenizers") as info:
            Tokenizer.from_json(text)
        assert "\n" not in str(info.value)
    with pytest.raises(ValueError, match="ids must be from 0 to"):
        tokenizers["words"].decode([10**6])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["model", "vocab", "cat"], 40, "whose tokens are numbered from 0, got other numbers"),
        (["model", "vocab", "cat"], 4, "whose tokens are numbered from 0, got other numbers"),
        (["model", "unk_token"], "cat", "as Tokenizer.train makes it, got other rules"),
        (["normalizer"], None, "as Tokenizer.train makes it, got other rules"),
        (["added_tokens", 1, "special"], False, "as Tokenizer.train makes it, got other rules"),
    ],
)
def test_tokenizers_with_other_numbers_or_rules_are_rejected(path, value, message):
    tree = json.loads(Tokenizer.train(["a cat sat"], kind="words").to_json())
    *above, last = path
    place = tree
    for key in above:
        place = place[key]
    assert place[last] != value
    place[last] = value
    with pytest.raises(UserError) as caught:
        Tokenizer.from_json(json.dumps(tree))
    assert message in str(caught.value)


def test_subwords_without_dropout_and_with_every_byte():
    tree = json.loads(Tokenizer.train(["a cat"], kind="subwords", vocabulary_size=270).to_json())
    with pytest.raises(UserError, match="got other rules"):  # other tokens each time
        Tokenizer.from_json(json.dumps({**tree, "model": {**tree["model"], "dropout": 0.5}}))
