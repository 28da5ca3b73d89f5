"""Pretrained vectors, compared with a plain reading of the same lines."""

import numpy as np
import pytest

from lstm_jax.data.vectors import read_vectors
from lstm_jax.errors import UserError

LINES = ["the 1 2 -3.5", ". . 4 5 6", "été 7e-2 8 9", "the 0 0 0"]
WORDS = ["<pad>", "été", "the", "unheard", ". ."]


@pytest.mark.parametrize("header", [[], ["4 3"]])
def test_words_in_the_file_get_its_vectors(tmp_path, header):
    path = tmp_path / "vectors.txt"
    path.write_text("\n".join([*header, *LINES]) + "\n", "utf-8")
    found, table = read_vectors(path, WORDS)
    assert found.tolist() == [False, True, True, False, True]
    expected = [[0, 0, 0], [0.07, 8, 9], [1, 2, -3.5], [0, 0, 0], [4, 5, 6]]
    np.testing.assert_array_equal(table, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": expected lines of a word and its vector, got none"),
        (b"2 3\n", ": expected lines of a word and its vector, got none"),
        (b"the 1 2\nof 3 4\nthe\n", ": line 3: expected a word and 2 numbers, got 'the"),
        (b"a 1 2\nthe 1 x\n", ": line 2: expected a word and 2 numbers, got 'the 1 x"),
        (b"the 1 1e60\n", ": line 1: expected numbers within float32, got 'the 1 1e60"),
        (b"the 1\n\xff 2\n", ": expected UTF-8 text, got other bytes (invalid start byte)"),
    ],
)
def test_mistakes_give_one_line(tmp_path, content, message):
    (tmp_path / "vectors.txt").write_bytes(content)
    with pytest.raises(UserError) as info:
        read_vectors(tmp_path / "vectors.txt", WORDS)
    assert f"vectors.txt{message}" in str(info.value) and "\n" not in str(info.value)
