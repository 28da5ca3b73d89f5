"""Handwriting synthesis, compared with a NumPy loop over steps, components and letters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from lstm_jax.models import Compiled
from lstm_jax.models.handwriting_synthesis import (
    END,
    ON,
    HandwritingSynthesis,
    Mixture,
    mixture_of,
    move_losses,
    sampled_moves,
)
from tests.arrays import in_float64, params_of

# Sums of a few dozen terms of size one in float32 (eps 1.2e-7), over seven steps.
TOLERANCE = 1e-5
LETTERS, HIDDEN, WINDOWS, GAUSSIANS = 4, 5, 2, 3
TEXT = np.array([[1, 2, 3, 0, 0], [4, 1, 1, 2, 0], [4, 1, 1, 2, 3]])


@pytest.fixture(scope="module")
def model():
    return Compiled(
        HandwritingSynthesis(
            LETTERS, HIDDEN, 2, window_components=WINDOWS, mixture_components=GAUSSIANS,
            rngs=nnx.Rngs(0),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def moves():
    return np.random.default_rng(0).normal(size=(3, 7, 3)).astype(np.float32)


def lstm(params, h, c, x):
    z = (x @ params["w_ih"] + h @ params["w_hh"] + params["b"]).reshape(4, -1)
    i, f, o = (1 / (1 + np.exp(-z[gate])) for gate in (0, 1, 3))
    c = f * c + i * np.tanh(z[2])
    return o * np.tanh(c), c


def network(params, moves, text):
    """Mixture and window of one row in float64, step by step."""
    params = in_float64(params)
    first, second = (next(iter(params["layers"][n].values())) for n in params["layers"])
    h = c = g = d = np.zeros(HIDDEN)
    seen, place = np.zeros(LETTERS + 1), np.zeros(WINDOWS)
    end = len(text[text > 0])
    mixtures, windows = [], []
    for x in moves:
        h, c = lstm(first, h, c, np.concatenate([x, seen]))
        a, b, k = np.exp(h @ params["window"]["kernel"] + params["window"]["bias"]).reshape(3, -1)
        place = place + k
        phi = [
            sum(a[n] * np.exp(-b[n] * (place[n] - u) ** 2) for n in range(WINDOWS))
            for u in range(len(text))
        ]
        seen = np.zeros(LETTERS + 1)
        for u, letter in enumerate(text):
            if letter:
                seen[letter - 1] += phi[u]
            elif u == end:
                seen[LETTERS] += phi[u]
        g, d = lstm(second, g, d, np.concatenate([x, seen, h]))
        out = np.concatenate([h, g])
        mixtures.append(out @ params["readout"]["kernel"] + params["readout"]["bias"])
        windows.append(phi)
    return np.array(mixtures), np.array(windows)


def test_mixtures_equal_a_loop_over_steps_and_letters(model, moves):
    _, outputs = model(model.initial_carry(3), moves=moves, text=TEXT)
    for row in range(3):
        mixture, window = network(params_of(model.module), moves[row], TEXT[row])
        np.testing.assert_allclose(outputs["mixture"][row], mixture, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(outputs["window"][row], window, rtol=0, atol=TOLERANCE)


def test_a_piece_can_be_read_in_parts(model, moves):
    _, whole = model(model.initial_carry(3), moves=moves, text=TEXT)
    carry, parts = model.initial_carry(3), []
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        carry, outputs = model(carry, moves=moves[:, part], text=TEXT)
        parts.append(outputs["mixture"])
    np.testing.assert_allclose(np.concatenate(parts, 1), whole["mixture"], atol=TOLERANCE)


def mixture(seed=1, rows=4) -> tuple[Mixture, dict]:
    outputs = {"mixture": jax.random.normal(jax.random.key(seed), (rows, 6 * GAUSSIANS + 3))}
    return mixture_of(outputs), outputs


def test_losses_equal_those_of_scipy():
    found, _ = mixture()
    rng = np.random.default_rng(0)
    moves, kinds = rng.normal(size=(4, 2)), np.array([0, 1, 2, 0])
    losses = move_losses(found, jnp.asarray(moves), jnp.asarray(kinds))
    for row in range(4):
        weights = np.exp(found.weights[row]) / np.exp(found.weights[row]).sum()
        density = 0.0
        for n in range(GAUSSIANS):
            x, y = np.exp(found.log_deviations[row, n])
            rho = found.correlations[row, n]
            covariance = [[x * x, rho * x * y], [rho * x * y, y * y]]
            density += weights[n] * scipy.stats.multivariate_normal(
                found.means[row, n], covariance
            ).pdf(moves[row])
        pen = np.exp(found.pen[row]) / np.exp(found.pen[row]).sum()
        expected = -np.log(density) - np.log(pen[kinds[row]])
        assert losses[row] == pytest.approx(expected, rel=1e-4)


def test_samples_have_the_moments_of_their_mixture():
    found, _ = mixture(rows=1)
    many = jax.tree.map(lambda leaf: jnp.tile(leaf, (40_000, *[1] * (leaf.ndim - 1))), found)
    moves, kinds = sampled_moves(jax.random.key(0), many)
    weights = np.asarray(jax.nn.softmax(found.weights[0]))
    mean = weights @ np.asarray(found.means[0])
    deviations, rho = np.exp(found.log_deviations[0]), found.correlations[0]
    second = sum(
        weights[n]
        * (
            np.outer(found.means[0, n], found.means[0, n])
            + np.array([[1, rho[n]], [rho[n], 1]]) * np.outer(deviations[n], deviations[n])
        )
        for n in range(GAUSSIANS)
    )
    size = np.sqrt(np.diag(second).max() / 40_000)
    np.testing.assert_allclose(moves.mean(0), mean, atol=5 * size)
    np.testing.assert_allclose(np.cov(moves.T), second - np.outer(mean, mean), rtol=0.1, atol=0.05)
    shares = np.bincount(kinds, minlength=3) / 40_000
    np.testing.assert_allclose(shares, jax.nn.softmax(found.pen[0]), atol=0.01)


def test_a_bias_reduces_deviations_and_favours_likely_components():
    plain, outputs = mixture()
    neat = mixture_of(outputs, bias=1.5)
    np.testing.assert_allclose(neat.weights, 2.5 * plain.weights, rtol=1e-6)
    np.testing.assert_allclose(neat.log_deviations, plain.log_deviations - 1.5, rtol=1e-6)
    np.testing.assert_array_equal(neat.means, plain.means)
    cold, _ = sampled_moves(jax.random.key(0), plain, temperature=0.0)
    chosen = np.abs(np.asarray(cold)[:, None] - np.asarray(plain.means)).sum(-1).min(1)
    np.testing.assert_allclose(chosen, 0, atol=1e-6)
    assert (ON, END) == (0, 2)
