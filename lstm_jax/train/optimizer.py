"""Optax optimizers and schedules from a config."""

import jax
import jax.numpy as jnp
import optax

from lstm_jax.config import OptimizerConfig


def build_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: linear warm-up, then constant or decaying.

    After the w steps of warm-up, "inverse_sqrt" is ``peak √(w / step)``, as in Vaswani et al. 2017,
    section 5.3.

    Args:
      config: the schedule's name and parameters.
      num_steps: the step at which a cosine schedule ends.

    Example:
      >>> config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, alpha=0.0)
      >>> schedule = build_schedule(config, num_steps=110)
      >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 60, 110)]
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    warmup = max(1, config.warmup_steps)
    peak, left = config.learning_rate, max(1, num_steps - config.warmup_steps)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, left, config.alpha),
        "exponential": lambda: optax.exponential_decay(
            peak, config.transition_steps, config.decay_rate
        ),
        "inverse_sqrt": lambda: (
            lambda step: peak * jnp.sqrt(warmup / (warmup + jnp.maximum(0, step)))
        ),
    }[config.schedule]()
    if config.warmup_steps == 0:
        return after
    rise = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([rise, after], [warmup])


def build_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Clipping by global norm, then the update rule; weight decay applies to matrices only.

    Example:
      >>> rule = build_optimizer(OptimizerConfig(name="sgd"), lambda step: 0.5)
      >>> params = {"w": jnp.ones(2)}
      >>> updates, _ = rule.update({"w": jnp.array([0.6, 0.0])}, rule.init(params), params)
      >>> updates["w"].tolist()
      [-0.30000001192092896, -0.0]
    """
    momentum = config.momentum or None

    def matrices(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    rule = {
        "adamw": lambda: optax.adamw(
            schedule, config.b1, config.b2, config.eps,
            weight_decay=config.weight_decay, mask=matrices,
        ),
        "adam": lambda: optax.adam(schedule, config.b1, config.b2, config.eps),
        "sgd": lambda: optax.sgd(schedule, momentum),
        "rmsprop": lambda: optax.rmsprop(schedule, config.decay, config.eps, momentum=momentum),
    }[config.name]()  # fmt: skip
    if config.max_norm == 0:
        return rule
    return optax.chain(optax.clip_by_global_norm(config.max_norm), rule)
