"""The texts of the treebank that the data sections of text classification read."""

import collections

import pytest

from lstm_jax.tasks import text_options
from lstm_jax.tasks.text_options import LabelledTextData

TREES = """(4 (2 a) (3 (2 good) (2 film)))
(0 (2 a) (1 (1 bad) (2 film)))
(2 (2 a) (2 film))
"""


@pytest.fixture(autouse=True)
def treebank(tmp_path, monkeypatch):
    """Three sentences, the same in every split."""
    (tmp_path / "trees.txt").write_text(TREES)
    monkeypatch.setattr(text_options, "fetch", lambda name: tmp_path / "trees.txt")


@pytest.mark.parametrize("name, sentences", [("sst2", 2), ("sst5", 3)])
@pytest.mark.parametrize("repeats", [1, 4])
def test_whole_sentences_are_repeated_among_the_phrases(name, sentences, repeats):
    """Only in the training split; the sst2 task has no neutral texts."""
    splits = LabelledTextData(name, sentence_repeats=repeats).read()
    counts = collections.Counter(splits["train"].texts)
    expected = {"a good film": repeats, "a bad film": repeats, "good film": 1, "bad film": 1}
    expected["bad"] = 1
    if name == "sst5":
        expected |= {"a film": repeats, "a": 1, "good": 1, "film": 1}
    assert counts == expected
    for split in ("validation", "test"):
        assert len(splits[split].texts) == sentences


def test_without_phrases_only_sentences_are_repeated():
    data = LabelledTextData("sst5", phrases=False, sentence_repeats=2)
    train = data.read()["train"]
    assert sorted(train.texts) == sorted(2 * ["a good film", "a bad film", "a film"])
    labels = dict(zip(train.texts, train.labels, strict=True))
    assert all(labels[text] == label for text, label in zip(train.texts, train.labels, strict=True))
