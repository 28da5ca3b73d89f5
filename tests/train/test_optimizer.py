"""Schedules against precomputed numbers, update rules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstm_jax.config import Config
from lstm_jax.errors import UserError
from lstm_jax.train import OptimizerConfig, build_optimizer, build_schedule


def at(schedule, *steps) -> list[float]:
    return [float(schedule(step)) for step in steps]


def test_constant():
    config = OptimizerConfig(schedule="constant", learning_rate=0.25, warmup_steps=0)
    assert at(build_schedule(config, 10), 0, 1, 10, 1000) == [0.25] * 4


def test_warmup_rises_from_zero_in_equal_steps():
    config = OptimizerConfig(schedule="constant", learning_rate=0.5, warmup_steps=4)
    rates = at(build_schedule(config, 10), 0, 1, 2, 3, 4, 5, 10)
    assert rates == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_cosine_ends_at_alpha_times_the_peak():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, alpha=0.1)
    schedule = build_schedule(config, num_steps=50)
    steps = np.arange(10, 51)
    expected = 2.0 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (steps - 10) / 40)))
    np.testing.assert_allclose(at(schedule, *steps), expected, rtol=1e-6)
    assert at(schedule, 50) == pytest.approx([0.2])
    assert at(schedule, 49)[0] > at(schedule, 50)[0]


def test_exponential():
    config = OptimizerConfig(
        schedule="exponential",
        learning_rate=0.8,
        warmup_steps=5,
        transition_steps=10,
        decay_rate=0.5,
    )
    schedule = build_schedule(config, num_steps=100)
    expected = [0.8, 0.8 * 0.5**0.5, 0.4, 0.2]
    np.testing.assert_allclose(at(schedule, 5, 10, 15, 25), expected, rtol=1e-6)


def test_inverse_square_root():
    config = OptimizerConfig(schedule="inverse_sqrt", learning_rate=0.6, warmup_steps=4)
    schedule = build_schedule(config, num_steps=100)
    np.testing.assert_allclose(at(schedule, 2, 4, 16, 36), [0.3, 0.6, 0.3, 0.2], rtol=1e-6)


def test_inverse_square_root_needs_a_warmup():
    optimizer = OptimizerConfig(schedule="inverse_sqrt", warmup_steps=0)
    with pytest.raises(UserError, match=r"^optimizer\.warmup_steps: expected at least 1 with"):
        Config("next_character", optimizer=optimizer)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "exponential", "inverse_sqrt"])
@pytest.mark.parametrize("warmup", [0, 10, 11, 50])
def test_warmup_as_long_as_the_run_or_longer(schedule, warmup):
    config = OptimizerConfig(schedule=schedule, learning_rate=1.0, warmup_steps=warmup)
    rates = np.array(at(build_schedule(config, 10), *range(11)))
    assert np.isfinite(rates).all() and (rates >= 0).all() and (rates <= 1).all()


PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([4.0, -5.0])}
GRADS = {"w": jnp.array([[0.1, -0.2], [0.0, 0.3]]), "b": jnp.array([0.2, -0.1])}


def first_update(config: OptimizerConfig, grads=GRADS):
    rule = build_optimizer(config, optax.constant_schedule(config.learning_rate))
    return jax.jit(rule.update)(grads, rule.init(PARAMS), PARAMS)[0]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_rule_decreases_the_loss(name, momentum):
    updates = first_update(OptimizerConfig(name=name, momentum=momentum, weight_decay=0.0))
    for update, grad in zip(jax.tree.leaves(updates), jax.tree.leaves(GRADS), strict=True):
        assert np.isfinite(update).all()
        np.testing.assert_array_equal(np.sign(update), -np.sign(grad))


def test_adamw_matches_its_formula():
    config = OptimizerConfig(learning_rate=0.01, b1=0.8, b2=0.95, weight_decay=0.1, max_norm=0.0)
    rule = build_optimizer(config, optax.constant_schedule(0.01))
    params, state = PARAMS, rule.init(PARAMS)
    expected = {name: np.asarray(leaf, np.float64) for name, leaf in PARAMS.items()}
    mean = {name: np.zeros_like(leaf) for name, leaf in expected.items()}
    square = {name: np.zeros_like(leaf) for name, leaf in expected.items()}
    for step in range(1, 4):
        grads = {name: (-1.5) ** step * leaf for name, leaf in GRADS.items()}
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name, leaf in grads.items():
            grad = np.asarray(leaf, np.float64)
            mean[name] = 0.8 * mean[name] + 0.2 * grad
            square[name] = 0.95 * square[name] + 0.05 * grad**2
            unbiased = mean[name] / (1 - 0.8**step), square[name] / (1 - 0.95**step)
            decay = 0.1 * expected[name] if name == "w" else 0.0  # only matrices
            expected[name] = expected[name] - 0.01 * (
                unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8) + decay
            )
        for name in expected:
            # A few float32 operations on values of order one.
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-6)


def test_weight_decay_applies_to_matrices_only():
    zero = jax.tree.map(jnp.zeros_like, GRADS)
    updates = first_update(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), zero)
    np.testing.assert_allclose(updates["w"], -0.1 * 0.5 * PARAMS["w"], rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], 0.0)


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
def test_weight_decay_applies_to_adamw_only(name):
    zero = jax.tree.map(jnp.zeros_like, GRADS)
    updates = first_update(OptimizerConfig(name=name, weight_decay=0.5), zero)
    for update in jax.tree.leaves(updates):
        np.testing.assert_array_equal(update, 0.0)


def test_clipping_scales_a_big_gradient_to_max_norm_and_leaves_a_small_one():
    config = OptimizerConfig(name="sgd", learning_rate=1.0, max_norm=0.5)
    big = jax.tree.map(lambda leaf: 100.0 * leaf, GRADS)
    updates = first_update(config, big)
    assert float(optax.global_norm(updates)) == pytest.approx(0.5, rel=1e-6)
    scale = 0.5 / float(optax.global_norm(big))
    for update, grad in zip(jax.tree.leaves(updates), jax.tree.leaves(big), strict=True):
        np.testing.assert_allclose(update, -scale * grad, rtol=1e-5)
    for update, grad in zip(
        jax.tree.leaves(first_update(config)), jax.tree.leaves(GRADS), strict=True
    ):
        np.testing.assert_array_equal(update, -grad)


def test_no_clipping_at_max_norm_zero():
    config = OptimizerConfig(name="sgd", learning_rate=1.0, max_norm=0.0)
    big = jax.tree.map(lambda leaf: 1e4 * leaf, GRADS)
    for update, grad in zip(
        jax.tree.leaves(first_update(config, big)), jax.tree.leaves(big), strict=True
    ):
        np.testing.assert_array_equal(update, -grad)


def test_arguments_reach_optax():
    """Momentum and decay over two steps, computed explicitly."""
    sgd = OptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.5, max_norm=0.0)
    rule = build_optimizer(sgd, optax.constant_schedule(1.0))
    _, state = rule.update(GRADS, rule.init(PARAMS), PARAMS)
    updates, _ = rule.update(GRADS, state, PARAMS)
    np.testing.assert_allclose(updates["b"], -1.5 * GRADS["b"], rtol=1e-6)
    rmsprop = OptimizerConfig(name="rmsprop", learning_rate=1.0, decay=0.75, max_norm=0.0)
    updates = first_update(rmsprop)
    # One step from a zero mean square: g / sqrt((1 - decay) g^2) = 2 for decay 3/4.
    np.testing.assert_allclose(updates["b"], -2.0 * np.sign(GRADS["b"]), rtol=1e-5)
