"""One training step: gradients of each device's rows, their mean, one update."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lstm_jax.tasks.base import Batch, Carry, Params, Task
from lstm_jax.train.devices import AXIS


class TrainState(NamedTuple):
    """All that changes in training, but for the place in the data.

    Attributes:
      step: steps taken, int32.
      params: what is learned.
      average: exponential moving average of ``params``; None where the config asks for none.
      opt_state: the optimizer's.
      carry: what the task hands from one batch to the next, sharded over devices.
      key: data of the run's random key (uint32); step n draws from ``fold_in(key, n)``.
    """

    step: jax.Array
    params: Params
    average: Params | None
    opt_state: optax.OptState
    carry: Carry
    key: jax.Array

    @property
    def evaluated(self) -> Params:
        """The parameters that evaluation and sampling use."""
        return self.params if self.average is None else self.average


class StepFigures(NamedTuple):
    """What one step tells.

    Attributes:
      loss: mean training loss of the batch before the update.
      grad_norm: global norm of its gradient, before clipping.
      learning_rate: of this step.
    """

    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array


def init_state(
    task: Task, optimizer: optax.GradientTransformation, ema: bool, seed: int
) -> TrainState:
    """The state before the first step."""
    init_key, key = jax.random.split(jax.random.key(seed))
    params = task.init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: a donated buffer must not stand twice in the state.
        average=jax.tree.map(jnp.copy, params) if ema else None,
        opt_state=optimizer.init(params),
        carry=task.initial_carry(),
        key=jax.random.key_data(key),
    )


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Where each array of a state lies: the carry by rows, all else on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_rows = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda _: everywhere, state)._replace(
        carry=jax.tree.map(lambda _: by_rows, state.carry)
    )


def build_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepFigures]]:
    """The jitted step; the state it is given is donated.

    Each device differentiates the loss of its own rows, with one sum of gradients at the
    end: were the batch shared out by the compiler, that sum could land inside the scan.
    """

    def gradients(
        params: Params, carry: Carry, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Params, Carry]:
        key = jax.random.fold_in(jax.random.wrap_key_data(key), jax.lax.axis_index(AXIS))
        # Marked as a device's own, or the gradient's sum would move into the backward scan.
        params = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), params)
        (loss, carry), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, carry, batch, key
        )
        return *jax.lax.pmean((loss, grads), AXIS), carry

    rows, everywhere = PartitionSpec(AXIS), PartitionSpec()
    gradients = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(everywhere, rows, rows, everywhere),
        out_specs=(everywhere, everywhere, rows),
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepFigures]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        loss, grads, carry = gradients(state.params, state.carry, batch, jax.random.key_data(key))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            # Early on the mean is over all steps so far, so that it forgets the beginning.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            average = optax.incremental_update(params, average, 1.0 - decay)
        figures = StepFigures(loss, optax.global_norm(grads), jnp.asarray(schedule(state.step)))
        new = TrainState(state.step + 1, params, average, opt_state, carry, state.key)
        return new, figures

    return jax.jit(step, donate_argnums=0)
