"""Parallel text: reading, rejected files, and batches of pairs."""

import gzip
import itertools

import numpy as np
import pytest

from lstm_jax.data import bucketed_pairs, read_lines, read_parallel
from lstm_jax.data.parallel import least_padding
from lstm_jax.errors import UserError


def test_lines_of_plain_and_compressed_files(tmp_path):
    # Only a line feed ends a line: other separators of Unicode are part of it.
    text = "\ufeffeins zwei\r\n\ndrei\u2028vier\nGr\u00fc\u00dfe"
    plain, compressed = tmp_path / "a.txt", tmp_path / "a.de.gz"
    plain.write_bytes(text.encode())
    compressed.write_bytes(gzip.compress(text.encode()))
    assert read_lines(plain) == ["eins zwei", "", "drei\u2028vier", "Gr\u00fc\u00dfe"]
    assert read_lines(compressed) == read_lines(plain)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "expected lines of text, got an empty file"),
        (b"eins\nGr\xfc\xdfe\n", "line 2: expected UTF-8 text, got byte 0xfc at position 2"),
        (gzip.compress(b"eins\n" * 99)[:-9], "expected a whole gzip file"),
        (b"\x1f\x8beins", "expected a whole gzip file"),
    ],
    ids=["empty", "another encoding", "cut off", "no gzip"],
)
def test_invalid_files_are_rejected(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_lines(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_mismatched_files_are_rejected(tmp_path):
    one, other = tmp_path / "a.en", tmp_path / "a.de"
    one.write_text("a dog\na cat\n\n")
    other.write_text("ein Hund\neine Katze\n\n")
    assert read_parallel(one, other) == (["a dog", "a cat"], ["ein Hund", "eine Katze"])
    other.write_text("ein Hund\n")
    with pytest.raises(UserError, match=r"as many lines in both.*a.en: 3 lines.*a.de: 1 lines"):
        read_parallel(one, other)
    other.write_text("ein Hund\n \n\n")
    with pytest.raises(UserError, match=r"a\.de: line 2: expected a translation, got"):
        read_parallel(one, other)
    one.write_text("\n\n")
    other.write_text("\n\n")
    with pytest.raises(UserError, match=r"a.en: expected lines of text, got empty lines only"):
        read_parallel(one, other)


def test_batches_have_a_few_shapes_and_every_pair():
    rng = np.random.default_rng(0)
    sources = [np.full(rng.integers(1, 30), n) for n in range(1, 101)]
    targets = [np.full(rng.integers(1, 30), n) for n in range(1, 101)]
    batches = bucketed_pairs(sources, targets, batch_size=5, buckets=4, seed=3)
    seen, shapes = [], set()
    for k in range(20):
        batch = batches[k]
        shapes.add(batch["source"].shape)
        assert batch["source"].shape == batch["target"].shape
        for row in range(5):
            (n,) = {*batch["source"][row], *batch["target"][row]} - {0}
            seen.append(int(n))
            for name, each in (("source", sources), ("target", targets)):
                length = batch[f"{name}_lengths"][row]
                assert length == len(each[n - 1]) == np.count_nonzero(batch[name][row])
                assert batch[name][row, :length].all()
    assert sorted(seen) == [*range(1, 101)]
    assert len(shapes) == 4


def test_bucket_bounds_minimise_padding():
    rng = np.random.default_rng(1)
    for buckets in (1, 2, 3, 9):
        lengths = rng.integers(1, 9, 30) ** 2
        sizes = np.unique(lengths)
        count = min(buckets, len(sizes))

        def padded(bounds, lengths=lengths):
            return np.asarray(bounds)[np.searchsorted(bounds, lengths)].sum()

        options = itertools.combinations(sizes[:-1], count - 1)
        least = min(padded([*option, sizes[-1]]) for option in options)
        found = least_padding(lengths, buckets)
        assert len(found) == count and padded(found) == least
