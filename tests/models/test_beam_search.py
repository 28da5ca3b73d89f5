"""Beam search, compared with a search over all sequences in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.models.beam_search import (
    beam_search,
    coverage_penalty,
    greedy_search,
    length_penalty,
    repeated,
)

END, START, VOCABULARY, STEPS, ROWS = 0, 1, 4, 4, 3
WIDE = VOCABULARY**STEPS  # large enough for all hypotheses


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def model(seed):
    """Scores that depend on the row, the time and the last two tokens; attention to 3 positions."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(ROWS, STEPS, VOCABULARY, VOCABULARY, VOCABULARY)) * 1.5
    table = jax.nn.log_softmax(jnp.asarray(scores))
    attention = jax.nn.softmax(jnp.asarray(rng.normal(size=(ROWS, STEPS, VOCABULARY, 3))))
    return table, attention


def carry_and_step(table, attention, rows=range(ROWS)):
    rows = jnp.array(list(rows), jnp.int32)
    first = {
        "row": rows, "t": jnp.zeros_like(rows), "last": jnp.full_like(rows, START),
        "coverage": jnp.zeros((len(rows), 3)),
    }  # fmt: skip

    def step(carry, token):
        row, t = carry["row"], carry["t"]
        log_probs = table[row, t, carry["last"], token]
        coverage = carry["coverage"] + attention[row, t, token]
        return {"row": row, "t": t + 1, "last": token, "coverage": coverage}, log_probs

    return first, step


def all_sequences():
    for length in range(1, STEPS + 1):
        for tokens in itertools.product(range(1, VOCABULARY), repeat=length - 1):
            yield (*tokens, END)


def scored(table, attention, row, alpha, beta):
    """Every finished sequence and its score, the best first."""
    table, attention, found = np.asarray(table), np.asarray(attention), []
    for tokens in all_sequences():
        log_prob, coverage, before, last = 0.0, np.zeros(3), START, START
        for t, token in enumerate(tokens):
            log_prob += table[row, t, before, last, token]
            coverage += attention[row, t, last]
            before, last = last, token
        score = log_prob / ((5 + len(tokens)) / 6) ** alpha
        found.append((score + beta * np.log(np.minimum(coverage, 1)).sum(), tokens))
    return sorted(found, reverse=True)


def search(table, attention, beam, alpha=0.0, beta=0.0, rows=range(ROWS), max_steps=STEPS):
    first, step = carry_and_step(table, attention, rows)
    mask = jnp.ones((len(rows) * beam, 3), bool)
    return beam_search(
        step, repeated(first, beam), rows=len(rows), beam=beam, max_steps=max_steps, start=START,
        end=END, alpha=alpha, bonus=lambda carry: coverage_penalty(carry["coverage"], mask, beta),
    )  # fmt: skip


def tokens_of(found, row, n):
    return tuple(np.asarray(found.tokens[row, n, : found.lengths[row, n]]).tolist())


@pytest.mark.parametrize("alpha, beta", [(0.0, 0.0), (1.0, 0.0), (0.6, 0.3)])
def test_a_wide_beam_finds_the_best_of_all_sequences(alpha, beta):
    table, attention = model(seed=0)
    found = search(table, attention, WIDE, alpha, beta)
    for row in range(ROWS):
        expected = scored(table, attention, row, alpha, beta)
        assert int(found.finished[row].sum()) == len(expected)
        for n, (score, tokens) in enumerate(expected[:10]):
            assert tokens_of(found, row, n) == tokens
            np.testing.assert_allclose(found.scores[row, n], score, rtol=1e-12)
            assert not found.tokens[row, n, len(tokens) :].any()  # the end is repeated


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy(seed):
    table, attention = model(seed)
    first, step = carry_and_step(table, attention)
    greedy = greedy_search(step, first, rows=ROWS, max_steps=STEPS, start=START, end=END)
    found = search(table, attention, beam=1)
    for one, other in zip(found, greedy, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    for row in range(ROWS):  # and greedy search takes the most likely token of each step
        before = last = START
        for t, token in enumerate(tokens_of(greedy, row, 0)):
            assert token == int(table[row, t, before, last].argmax())
            before, last = last, token


def test_rows_do_not_depend_on_each_other():
    table, attention = model(seed=1)
    together = search(table, attention, beam=2, alpha=1.0)
    for row in range(ROWS):
        alone = search(table, attention, beam=2, alpha=1.0, rows=[row])
        assert [tokens_of(alone, 0, n) for n in range(2)] == [
            tokens_of(together, row, n) for n in range(2)
        ]
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-12)


def test_a_beam_retains_the_most_likely_hypotheses():
    """As a loop in Python over lists of hypotheses."""
    beam, found = 3, search(*model(seed=2), beam=3, alpha=0.8)
    table = np.asarray(model(seed=2)[0])
    for row in range(ROWS):
        live, finished = [(0.0, (START, START))], []
        for t in range(STEPS):
            candidates = sorted(
                ((log_prob + p, (*h, token)) for log_prob, h in live
                 for token, p in enumerate(table[row, t, h[-2], h[-1]])),
                reverse=True,
            )  # fmt: skip
            if len(finished) < beam:
                ended = [c for c in candidates[:beam] if c[1][-1] == END]
                finished += [(p / ((6 + t) / 6) ** 0.8, h[2:]) for p, h in ended]
            live = [c for c in candidates if c[1][-1] != END][:beam]
        cut = sorted(((p / ((5 + STEPS) / 6) ** 0.8, h[2:]) for p, h in live), reverse=True)
        expected = (sorted(finished, reverse=True)[:beam] + cut)[:beam]
        assert [tokens_of(found, row, n) for n in range(beam)] == [h for _, h in expected]
        np.testing.assert_allclose(found.scores[row], [score for score, _ in expected], rtol=1e-12)


def test_sequences_are_cut_where_none_has_ended():
    table, attention = model(seed=3)
    never = table.at[..., END].set(-jnp.inf)
    found = search(never, attention, beam=2, max_steps=3)
    assert not found.finished.any() and found.tokens.shape == (ROWS, 2, 3)
    np.testing.assert_array_equal(found.lengths, 3)
    greedy = search(never, attention, beam=1, max_steps=3)
    assert not greedy.finished.any() and greedy.tokens.all()


def test_penalties():
    assert float(length_penalty(1, 0.7)) == 1.0
    np.testing.assert_allclose(length_penalty(13, 0.5), 3**0.5)
    coverage, mask = jnp.array([0.5, 2.0, 0.0]), jnp.array([True, True, False])
    np.testing.assert_allclose(coverage_penalty(coverage, mask, 0.2), 0.2 * np.log(0.5))
    assert np.isfinite(coverage_penalty(jnp.zeros(1), jnp.array([True]), 0.2))
