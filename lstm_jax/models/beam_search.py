"""Greedy and beam search, as one compiled loop over a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Carry = Any  # a pytree of arrays [N, ...]
Step = Callable[[Carry, jax.Array], tuple[Carry, jax.Array]]


class Hypotheses(NamedTuple):
    """The best sequences found by a search, best first in each row.

    Attributes:
      tokens: int32 ``[B, K, T]``, each up to and including ``end``, padded with ``end``.
      lengths: the number of tokens of each, including ``end``; int32 ``[B, K]``.
      scores: the scores by which they are ranked, ``[B, K]``; -inf if fewer than K were found.
      finished: whether each ends with ``end`` instead of being cut at T tokens; booleans ``[B,
        K]``.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    finished: jax.Array


def length_penalty(length: jax.Array | int, alpha: float | jax.Array) -> jax.Array:
    """The divisor of the log probability of a hypothesis.

    ::

        lp(Y) = (5 + |Y|)^α / (5 + 1)^α

    Args:
      length: the number of tokens |Y|, including ``end``.
      alpha: α; 0 means no penalty, 1 is close to the mean over tokens.

    >>> float(length_penalty(7, alpha=1.0))
    2.0

    References:
      Yonghui Wu et al., "Google's Neural Machine Translation System", arXiv:1609.08144, 2016,
      equation 14.
    """
    return ((5.0 + length) / 6.0) ** alpha


def coverage_penalty(coverage: jax.Array, mask: jax.Array, beta: float | jax.Array) -> jax.Array:
    """A score that is lower if parts of the source received little attention.

    ::

        cp(X; Y) = β Σ_s log min(Σ_t α_ts, 1)

    Args:
      coverage: attention to each source token, summed over steps, ``[..., S]``.
      mask: whether each source token is valid, booleans ``[..., S]``.
      beta: β.

    Returns:
      ``[...]``.

    >>> float(coverage_penalty(jnp.array([1.5, 1.0, 0.0]), jnp.array([True, True, False]), 0.2))
    0.0

    References:
      Wu et al., as :func:`length_penalty`.
    """
    smallest = jnp.finfo(coverage.dtype).tiny
    logs = jnp.log(jnp.clip(coverage, smallest, 1.0))
    return beta * jnp.where(mask, logs, 0.0).sum(-1)


def greedy_search(
    step: Step, carry: Carry, *, rows: int, max_steps: int, start: int, end: int
) -> Hypotheses:
    """Repeatedly chooses the most likely token, until every row has ended.

    Arguments and result are those of :func:`beam_search` with a beam of 1 and without penalties.

    >>> table = jnp.log(jnp.array([[1.0, 0.0, 0.0], [0.1, 0.3, 0.6], [0.8, 0.1, 0.1]]))
    >>> step = lambda carry, token: (carry, table[token])  # a Markov chain, which 0 ends
    >>> found = greedy_search(step, (), rows=1, max_steps=4, start=1, end=0)
    >>> found.tokens[0, 0].tolist(), found.lengths.tolist()
    ([2, 0, 0, 0], [[2]])
    """

    def unfinished(loop: Any) -> jax.Array:
        t, _, _, _, _, done = loop
        return (t < max_steps) & ~done.all()

    def extend(loop: Any) -> Any:
        t, carry, token, tokens, scores, done = loop
        carry, log_probs = step(carry, token)
        best = log_probs.argmax(-1).astype(jnp.int32)
        token = jnp.where(done, end, best)
        scores = scores + jnp.where(done, 0.0, log_probs.max(-1))
        return t + 1, carry, token, tokens.at[:, t].set(token), scores, done | (token == end)

    token = jnp.full(rows, start, jnp.int32)
    dtype = jax.eval_shape(step, carry, token)[1].dtype
    tokens = jnp.full((rows, max_steps), end, jnp.int32)
    loop = (0, carry, token, tokens, jnp.zeros(rows, dtype), jnp.zeros(rows, bool))
    _, _, _, tokens, scores, done = jax.lax.while_loop(unfinished, extend, loop)
    lengths = jnp.minimum((tokens != end).sum(-1) + 1, max_steps)
    return Hypotheses(tokens[:, None], lengths[:, None], scores[:, None], done[:, None])


class _Search(NamedTuple):
    """The carry of the loop; tokens are int32 [B, K, T], scores [B, K]."""

    t: jax.Array
    carry: Carry
    tokens: jax.Array  # of live hypotheses, most likely first
    log_probs: jax.Array  # of live hypotheses
    ended: jax.Array  # tokens of finished hypotheses, best first
    scores: jax.Array  # of finished hypotheses, -inf for missing ones


def beam_search(
    step: Step,
    carry: Carry,
    *,
    rows: int,
    beam: int,
    max_steps: int,
    start: int,
    end: int,
    alpha: float | jax.Array = 0.0,
    bonus: Callable[[Carry], jax.Array] | None = None,
) -> Hypotheses:
    """Beam search: each step extends the K most likely sequences of each row.

    Each row has K live hypotheses, those with the highest log probability that have not ended. A
    hypothesis that ends while it is among the K most likely is finished, with the score::

        s(Y) = log P(Y) / lp(Y) + bonus

    A row is done once K hypotheses are finished, and the loop ends when all rows are, or after T
    steps.  Live hypotheses then replace missing finished ones.

    Args:
      step: ``(carry, token) -> (carry, log_probs)``: maps the last token of each hypothesis, int32
        ``[N]``, to the log probabilities of the next, ``[N, V]``; N is B K, and the hypotheses of a
        row are adjacent.
      carry: the first carry of ``step``, arrays ``[N, ...]`` with each row repeated K times.
      rows: B.
      beam: K.
      max_steps: T, the largest number of tokens, including ``end``.
      start: the token passed to the first step; it is not part of a hypothesis.
      end: the token that ends a sequence.
      alpha: the α of :func:`length_penalty`.
      bonus: computes the term added to the score of a finished hypothesis, ``[N]``, from the carry
        that ``step`` returned with the scores of its end; for example :func:`coverage_penalty` of
        the attention summed in the carry.

    Returns:
      The hypotheses of each row.

    Example:
      >>> table = jnp.log(jnp.array([[0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.05, 0.05, 0.9]]))
      >>> step = lambda carry, token: (carry, table[token])  # a Markov chain, which 0 ends
      >>> found = beam_search(step, (), rows=1, beam=2, max_steps=4, start=1, end=0)
      >>> found.tokens[0].tolist()[0], found.lengths[0].tolist()
      ([0, 0, 0, 0], [1, 4])

    References:
      Wu et al., as :func:`length_penalty`, section 7 (scores); Myle Ott et al., "fairseq: A Fast,
      Extensible Toolkit for Sequence Modeling", NAACL 2019 (when a hypothesis is finished).
    """
    shape = (rows, beam)

    def bonuses(carry: Carry) -> jax.Array:
        return jnp.zeros(shape) if bonus is None else bonus(carry).reshape(shape)

    def done(search: _Search) -> jax.Array:
        return jnp.isfinite(search.scores).all(-1)

    def unfinished(search: _Search) -> jax.Array:
        return (search.t < max_steps) & ~done(search).all()

    def extend(search: _Search) -> _Search:
        t = search.t
        last = jnp.where(t == 0, start, search.tokens[:, :, t - 1])
        carry, log_probs = step(search.carry, last.reshape(-1))
        log_probs = log_probs.reshape(*shape, -1)
        # At most K of the 2 K candidates end, one per hypothesis; at least K others remain.
        values, token = jax.lax.top_k(log_probs, min(2 * beam, log_probs.shape[-1]))
        values = (values + search.log_probs[..., None]).reshape(rows, -1)
        values, place = jax.lax.top_k(values, 2 * beam)
        parent = place // token.shape[-1]
        token = jnp.take_along_axis(token.reshape(rows, -1), place, 1).astype(jnp.int32)
        ends = token == end
        candidates = _rows(search.tokens, parent).at[:, :, t].set(token)

        finishing = ends[:, :beam] & jnp.isfinite(values[:, :beam]) & ~done(search)[:, None]
        new = values[:, :beam] / length_penalty(t + 1, alpha)
        new += jnp.take_along_axis(bonuses(carry), parent[:, :beam], 1)
        new = jnp.where(finishing, new, -jnp.inf)
        scores, best = jax.lax.top_k(jnp.concatenate([search.scores, new], 1), beam)
        ended = _rows(jnp.concatenate([search.ended, candidates[:, :beam]], 1), best)

        live, best = jax.lax.top_k(jnp.where(ends, -jnp.inf, values), beam)
        carry = _gathered(carry, jnp.take_along_axis(parent, best, 1))
        return _Search(t + 1, carry, _rows(candidates, best), live, ended, scores)

    tokens = jnp.full((*shape, max_steps), end, jnp.int32)
    dtype = jax.eval_shape(step, carry, tokens[:, :, 0].reshape(-1))[1].dtype
    none = jnp.full(shape, -jnp.inf, dtype)
    first = none.at[:, 0].set(0.0)  # all hypotheses of a row are equal at first
    search = _Search(jnp.array(0), carry, tokens, first, tokens, none)
    search = jax.lax.while_loop(unfinished, extend, search)

    finished = jnp.isfinite(search.scores)
    cut = search.log_probs / length_penalty(search.t, alpha) + bonuses(search.carry)
    cut, best = jax.lax.top_k(cut, beam)
    live = _rows(search.tokens, best)
    place = jnp.cumsum(~finished, -1) - 1  # finished ones come first
    tokens = jnp.where(finished[..., None], search.ended, _rows(live, place))
    scores = jnp.where(finished, search.scores, jnp.take_along_axis(cut, place, 1))
    lengths = jnp.minimum((tokens != end).sum(-1) + 1, max_steps).astype(jnp.int32)
    return Hypotheses(tokens, lengths, scores, finished)


def repeated(tree: Any, times: int) -> Any:
    """Repeats each row of the arrays of a pytree, to form the first carry of a search.

    >>> repeated(jnp.array([1, 2]), 2).tolist()
    [1, 1, 2, 2]
    """
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, 0), tree)


def _rows(arrays: jax.Array, numbers: jax.Array) -> jax.Array:
    """Entries ``[B, M, ...]`` of arrays ``[B, N, ...]``, by indices ``[B, M]``."""
    numbers = numbers.reshape(*numbers.shape, *[1] * (arrays.ndim - 2))
    return jnp.take_along_axis(arrays, numbers, 1)


def _gathered(carry: Carry, parent: jax.Array) -> Carry:
    """The carries of hypotheses, by their indices ``[B, K]`` within each row."""
    rows, beam = parent.shape
    place = (jnp.arange(rows)[:, None] * beam + parent).reshape(-1)
    return jax.tree.map(lambda leaf: leaf[place], carry)
