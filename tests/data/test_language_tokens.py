"""Conversion of text to token streams and back, at once and piece by piece."""

import numpy as np
import pytest

from lstm_jax.data.language import CODECS
from lstm_jax.data.tokens import END, UNKNOWN
from lstm_jax.errors import UserError

TEXT = "The cat sat on the mat;\nthe cat's  hat. Größe: 3 m …\n\n" * 5
OTHER = "the dog 😀 sat\non  the Größe.\n"


def made(kind: str, text: str = TEXT):
    options = () if kind == "characters" else (300,)
    return CODECS[kind](CODECS[kind].train(text, *options))


def written(codec, tokens, given=()) -> list[str]:
    return list(codec.decode(iter(tokens), np.array(given, np.int32)))


@pytest.mark.parametrize("kind", ["characters", "subwords"])
def test_decoding_restores_the_text(kind):
    codec, text = made(kind), TEXT if kind == "characters" else TEXT + OTHER
    tokens = codec.encode(text)
    assert tokens.dtype == np.int32 and tokens.max() < len(codec)
    pieces = written(codec, tokens)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) > 20  # piece by piece


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_decoding_after_a_prompt_gives_the_rest_of_the_text(kind, cut):
    """Cut between words, where each kind of token ends."""
    codec = made(kind)
    text = "the cat sat on the mat the hat"
    place = len(" ".join(text.split()[:cut]))
    tokens, given = codec.encode(text), codec.encode(text[:place])
    np.testing.assert_array_equal(tokens[: len(given)], given)
    assert "".join(written(codec, tokens[len(given) :], given)) == text[place:]


def test_words_are_joined_by_spaces_and_line_ends_are_tokens():
    codec = made("words")
    tokens = codec.encode(OTHER)
    assert (tokens == END).sum() == 2 and (tokens == UNKNOWN).sum() == 2  # dog, 😀
    assert "".join(written(codec, tokens)) == "the <unk> <unk> sat\non the Größe .\n"
    assert written(codec, tokens[-2:], tokens[:-2]) == [" .", "\n"]
    assert written(codec, tokens[:1], [END]) == ["the"]


@pytest.mark.parametrize("kind", CODECS)
def test_ends_cover_the_text(kind):
    codec, text = made(kind), TEXT
    tokens, ends = codec.encode(text), codec.ends(text)
    assert len(ends) == len(tokens)
    assert (np.diff(ends) >= 0).all() and ends[-1] == len(text)
    whole = codec.decode(iter(tokens), tokens[:0])
    if kind != "subwords":  # whose tokens can be parts of a character
        for piece, end in zip(whole, ends, strict=True):
            assert text[:end].endswith(piece.strip(" "))


def test_character_of_several_tokens_is_decoded_at_once():
    codec = made("subwords")
    tokens = codec.encode("😀")
    assert len(tokens) > 2
    pieces = written(codec, tokens)
    assert pieces == ["", "😀"]  # the space before the first word is not written
    assert "".join(written(codec, tokens[:-1])) == "\ufffd"  # the rest of it, at the end


@pytest.mark.parametrize("kind", CODECS)
def test_empty_text_has_no_tokens(kind):
    assert len(made(kind).encode("")) == 0


def test_unknown_characters_and_small_vocabularies_are_errors():
    with pytest.raises(UserError, match=r"^character '😀' at position 4 is not among"):
        made("characters").encode("the 😀")
    with pytest.raises(UserError, match=r"^vocabulary_size: expected at least 260, got 99"):
        CODECS["subwords"].train(TEXT, 99)
