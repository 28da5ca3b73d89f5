"""IBM model 1 against expectation maximisation with dictionaries."""

import collections

from lstm_jax.data import translated, word_translations
from lstm_jax.data.word_by_word import WORD

SOURCE = [
    "a dog runs .",
    "a cat runs .",
    "the dog sleeps .",
    "two dogs run .",
    "the cat sees a dog .",
]
TARGET = ["ein Hund rennt .", "eine Katze rennt .", "der Hund schläft .", "zwei Hunde rennen .",
          "die Katze sieht einen Hund ."]  # fmt: skip


def looped(source, target, iterations):
    pairs = [(["", *WORD.findall(e)], WORD.findall(f)) for e, f in zip(source, target, strict=True)]
    t = collections.defaultdict(lambda: 1.0)
    for _ in range(iterations):
        counts, totals = collections.Counter(), collections.Counter()
        for es, fs in pairs:
            for f in fs:
                total = sum(t[e, f] for e in es)
                for e in es:
                    counts[e, f] += t[e, f] / total
                    totals[e] += t[e, f] / total
        t = {(e, f): count / totals[e] for (e, f), count in counts.items()}
    return t


def test_most_likely_translations():
    t = looped(SOURCE, TARGET, 5)
    words = word_translations(SOURCE, TARGET, 5)
    assert set(words) == {e for e, _ in t} - {""}
    for e, f in words.items():
        best = max(p for (other, _), p in t.items() if other == e)
        assert t[e, f] >= best * (1 - 1e-9)
    assert (words["dog"], words["cat"], words["runs"]) == ("Hund", "Katze", "rennt")


def test_unknown_words_are_unchanged():
    assert translated(["dog, moose."], {"dog": "Hund"}) == ["Hund , moose ."]
