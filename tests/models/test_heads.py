"""Heads, compared with scipy's distributions and integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lstm_jax.models.heads import HEADS, MixtureHead, QuantileHead

LEVELS = jnp.array([0.025, 0.1, 0.5, 0.9, 0.975])
RAW = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
SCALE = jnp.full(6, 7.0)


def head_of(name: str):
    return HEADS[name]()


def softplus(x):
    return np.logaddexp(0, np.asarray(x, np.float64)) + 1e-3


def known(name: str):
    """The same distributions in scipy, and the unit of a count."""
    raw = RAW.astype(np.float64)
    if name == "normal":
        return scipy.stats.norm(raw[:, 0], softplus(raw[:, 1])), 1.0
    if name == "student_t":
        return scipy.stats.t(2 + softplus(raw[:, 2]), raw[:, 0], softplus(raw[:, 1])), 1.0
    mean, dispersion = 7 * softplus(raw[:, 0]), softplus(raw[:, 1])
    n = 1 / dispersion
    return scipy.stats.nbinom(n, n / (n + mean)), 7.0


@pytest.mark.parametrize("name", ["normal", "student_t", "negative_binomial"])
def test_likelihoods_quantiles_and_samples_agree_with_scipy(name):
    head, (expected, unit) = head_of(name), known(name)
    raw = jnp.asarray(RAW[:, : head.size])
    found = head.distribution(raw, SCALE)
    y = np.array([3.0, 1, 0, 2, 5, 9]) if unit > 1 else np.linspace(-3, 3, 6)
    log_prob = expected.logpmf(y) if unit > 1 else expected.logpdf(y)
    loss = head.loss(raw, jnp.asarray(y / unit, jnp.float32), SCALE)
    np.testing.assert_allclose(loss, -log_prob, rtol=2e-4)
    quantiles = np.stack([expected.ppf(float(level)) for level in LEVELS], -1) / unit
    np.testing.assert_allclose(found.quantiles(LEVELS), quantiles, rtol=2e-3, atol=2e-3)
    samples = np.asarray(found.sample(jax.random.key(0), 20_000)) * unit
    spread = expected.std()
    # Five standard errors of a mean of 20,000.
    assert np.all(np.abs(samples.mean(0) - expected.mean()) < 5 * spread / 140)


def test_the_mixture_is_a_density_with_its_own_quantiles_and_samples():
    found = MixtureHead().distribution(jnp.asarray(RAW), SCALE)
    edges = np.linspace(-80, 80, 160_001)
    grid = jnp.asarray((edges[1:] + edges[:-1]) / 2, jnp.float32)[:, None]
    density = np.exp(np.asarray(found.log_prob(grid), np.float64)) * (edges[1] - edges[0])
    np.testing.assert_allclose(density.sum(0), 1, atol=2e-3)
    below = np.asarray(found.cdf(jnp.asarray(edges[1::4000, None], jnp.float32)))
    np.testing.assert_allclose(below, np.cumsum(density, 0)[::4000], atol=3e-3)
    quantiles = found.quantiles(LEVELS)
    np.testing.assert_allclose(
        np.stack([found.cdf(quantiles[:, n]) for n in range(5)], -1),
        np.broadcast_to(LEVELS, (6, 5)), atol=2e-5,
    )  # fmt: skip
    samples = np.asarray(found.sample(jax.random.key(1), 20_000))
    share = (samples[..., None] < np.asarray(quantiles)).mean(0)
    np.testing.assert_allclose(share, np.broadcast_to(LEVELS, (6, 5)), atol=0.02)


def test_quantiles_increase_and_their_loss_is_lowest_at_those_of_the_data():
    head = QuantileHead(levels=(0.1, 0.5, 0.9))
    values = head.distribution(jnp.asarray(RAW[:, :3]) * 20, SCALE).values
    assert (np.diff(values, axis=-1) >= 0).all()
    y = jnp.asarray(np.random.default_rng(1).normal(size=4001), jnp.float32)

    def loss(middle, down, up):
        return head.loss(jnp.broadcast_to(jnp.array([middle, down, up]), (4001, 3)), y, y).mean()

    inverse = lambda x: np.log(np.expm1(x))  # noqa: E731 - of softplus
    low, middle, high = np.quantile(y, [0.1, 0.5, 0.9])
    best = (middle, inverse(middle - low), inverse(high - middle))
    for n in range(3):
        for step in (-0.1, 0.1):
            moved = [b + step * (n == k) for k, b in enumerate(best)]
            assert loss(*moved) > loss(*best)


def test_levels_that_do_not_increase_are_rejected():
    with pytest.raises(ValueError, match=r"levels must increase and include 0\.5"):
        QuantileHead(levels=(0.1, 0.9))
