"""Filters of the next token, against loops over sorted probabilities in NumPy."""

import numpy as np
import pytest

from lstm_jax.errors import UserError
from lstm_jax.tasks.language import continued
from lstm_jax.tasks.sampling import Filters, penalised, top_k, top_p

RNG = np.random.default_rng(0)
LOGITS = [RNG.normal(0, scale, size).astype(np.float32) for scale in (0.3, 3.0) for size in (1, 9)]
TIED = np.array([1.0, 2.0, 2.0, 0.0, 2.0], np.float32)


def order_of(logits) -> list[int]:
    """Tokens by decreasing probability; ties are ordered by number."""
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


def only(logits, tokens) -> list[float]:
    return [x if token in tokens else -np.inf for token, x in enumerate(logits.tolist())]


@pytest.mark.parametrize("logits", [*LOGITS, TIED], ids=str)
@pytest.mark.parametrize("k", [1, 2, 4, 9, 50])
def test_top_k(logits, k):
    assert top_k(logits, k).tolist() == only(logits, order_of(logits)[:k])


def nucleus(logits, p) -> set[int]:
    """The smallest set of likeliest tokens whose total probability reaches ``p``, in float64."""
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - np.logaddexp.reduce(logits))
    tokens, total = set(), 0.0
    for token in order_of(logits):
        tokens.add(token)
        total += probabilities[token]
        if total >= p:
            break
    return tokens


@pytest.mark.parametrize("logits", [*LOGITS, TIED], ids=str)
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 1.0])
def test_top_p(logits, p):
    expected = nucleus(logits, p) if p < 1 else set(range(len(logits)))
    assert top_p(logits, p).tolist() == only(logits, expected)


def test_a_penalty_lowers_only_seen_tokens():
    logits = np.array([2.0, -2.0, 0.5, -0.5, 0.0], np.float32)
    seen = np.array([True, True, False, False, True])
    by_hand = [2.0 / 1.25, -2.0 * 1.25, 0.5, -0.5, 0.0]
    np.testing.assert_allclose(penalised(logits, seen, 1.25), by_hand, rtol=1e-6)
    np.testing.assert_array_equal(penalised(logits, seen, 1.0), logits)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("filters", [Filters(5), Filters(0, 0.6), Filters(4, 0.7, 1.3)], ids=str)
def test_all_together_in_order(filters, temperature):
    """Penalty, the k likeliest, then the nucleus of the rest at this temperature."""
    logits = RNG.normal(0, 2, 12).astype(np.float32)
    seen = np.arange(12) % 3 == 0
    expected = np.asarray(penalised(logits, seen, filters.repetition_penalty))
    tokens = order_of(expected)[: filters.top_k or None]
    if filters.top_p < 1:
        scaled = expected[tokens] / max(temperature, 1e-6)
        tokens = [tokens[n] for n in nucleus(scaled, filters.top_p)]
    np.testing.assert_allclose(
        filters(logits, seen, temperature), only(expected, set(tokens)), rtol=1e-6
    )


def test_without_filters_logits_are_unchanged():
    logits = LOGITS[1]
    assert Filters()(logits, np.ones(len(logits), bool), 0.8) is logits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": -1}, r"top_k: expected an integer of at least 0 and at most \d+, got -1"),
        ({"top_k": 1.5}, r"top_k: expected an integer of at least 0 and at most \d+, got 1.5"),
        ({"top_p": 1.5}, "top_p: expected a number above 0 and at most 1, got 1.5"),
        ({"top_p": float("nan")}, "top_p: expected a number above 0 and at most 1, got nan"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0, got 0"),
    ],
)
def test_impossible_values(values, message):
    with pytest.raises(UserError, match=rf"^{message}$"):
        Filters(**values)


class Counter:
    """A model of 6 tokens that prefers the next number, then the following ones."""

    def initial_carry(self, rows):
        return ()

    def __call__(self, carry, *, tokens):
        ahead = (np.arange(6) - np.asarray(tokens)[..., None] - 1) % 6
        return carry, {"logits": 3.0 - ahead.astype(np.float32)}


def tokens_after(temperature, seed, **filters) -> list[int]:
    return list(continued(Counter(), np.array([0]), 40, temperature, seed, Filters(**filters)))


def test_tokens_are_sampled_among_those_that_remain():
    steps = np.diff([0, *tokens_after(1.0, 0, top_k=2)]) % 6
    assert set(steps) == {1, 2}
    # softmax(3, 2, 1, 0, -1, -2) is 0.63, 0.23, ...
    assert set(np.diff([0, *tokens_after(1.0, 0, top_p=0.8)]) % 6) == {1, 2}
    assert set(np.diff([0, *tokens_after(1.0, 0, top_p=0.6)]) % 6) == {1}
    assert set(np.diff([0, *tokens_after(1.0, 0)]) % 6) > {1, 2}
    assert set(np.diff([0, *tokens_after(5.0, 0, top_k=1)]) % 6) == {1}


def test_the_penalty_applies_to_the_prompt_and_generated_tokens():
    """At temperature 0: 1 is first, then 2, 3, ...; once all are seen, the order is as before."""
    written = tokens_after(0.0, 0, repetition_penalty=100.0)
    assert written[:5] == [1, 2, 3, 4, 5]
    # From 1, seen tokens have 3 / 100 and so on; only token 0 of the prompt remains.
    free = list(continued(Counter(), np.array([5, 0, 1]), 3, 0.0, 0, Filters(0, 1.0, 100.0)))
    assert free == [2, 3, 4]
    assert list(continued(Counter(), np.array([1, 0]), 1, 0.0, 0, Filters(0, 1.0, 100.0))) == [2]
