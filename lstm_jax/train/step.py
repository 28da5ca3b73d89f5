"""One training step: gradients of the rows on each device, their mean, one update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lstm_jax.models import Compiled
from lstm_jax.tasks.base import Batch, Task
from lstm_jax.train.devices import AXIS, compiled

Params = Any
Arrays = Any  # a nested dict of arrays


NOT_YET = 2**31 - 1  # the start of a mean that has not begun yet


class PlainMean(NamedTuple):
    """The mean of the parameters over all steps from ``start`` on.

    Attributes:
      params: the mean of the parameters at ``start`` and at each step since; before ``start``, the
        current parameters.
      start: the step at which the mean begins, int32; ``NOT_YET`` before it is known.
    """

    params: Params
    start: jax.Array


class TrainState(NamedTuple):
    """Everything that training changes except the position in the data; pure dicts of arrays.

    Attributes:
      step: the number of steps taken, int32.
      params: the model's ``nnx.Param``.
      rest: all other variables of the model: batch statistics, counters of random streams.
      streams: key data of the model's random streams (uint32), which do not change; each device
        folds in its index.
      average: exponential moving average of ``params``, or their plain mean; None if the config
        requests neither.
      opt_state: the state of the optimizer.
      carry: the state that the task passes from one batch to the next, sharded over devices.
      key: key data of the run's random key (uint32); step n uses ``fold_in(key, n)``.
    """

    step: jax.Array
    params: Params
    rest: Arrays
    streams: Arrays
    average: Params | PlainMean | None
    opt_state: optax.OptState
    carry: Any
    key: jax.Array

    @property
    def evaluated(self) -> Params:
        """The parameters for evaluation and generation."""
        if isinstance(self.average, PlainMean):
            return self.average.params
        return self.params if self.average is None else self.average


class StepMetrics(NamedTuple):
    """Metrics of one step.

    Attributes:
      loss: mean training loss of the batch before the update.
      grad_norm: global norm of the gradient of this loss, before clipping.
      learning_rate: the learning rate of this step.
    """

    loss: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array


# ---- the model as arrays ----


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params, Arrays, Arrays]:
    """A module's structure, parameters, other variables, and key data of random streams."""
    graph, params, streams, rest = nnx.split(model, nnx.Param, nnx.RngKey, ...)
    data = jax.tree.map(jax.random.key_data, nnx.to_pure_dict(streams))
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(rest), data


def merged(graph: nnx.GraphDef, params: Params, rest: Arrays, streams: Arrays) -> Any:
    """The module that :func:`split` split into these parts."""
    return nnx.merge(graph, params, rest, jax.tree.map(jax.random.wrap_key_data, streams))


def trained_model(graph: nnx.GraphDef, state: TrainState) -> Compiled:
    """The model of a training state, in evaluation mode."""
    return Compiled(merged(graph, state.evaluated, state.rest, state.streams))


def init_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    averages: bool,
    seed: int,
    triggered: bool = False,
) -> tuple[nnx.GraphDef, TrainState]:
    """The model's structure and the initial state, computed by one compiled program.

    Args:
      task: the task.
      optimizer: the optimizer.
      averages: whether to maintain a mean of the parameters.
      seed: the seed of the run.
      triggered: whether it is a plain mean that starts at a step that is not yet known.
    """
    new = compiled(lambda seed: new_state(task, optimizer, averages, seed, triggered))
    return new(np.uint32(seed))  # an argument, so that all seeds share one program


def abstract_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    averages: bool,
    triggered: bool = False,
) -> tuple[nnx.GraphDef, TrainState]:
    """Like :func:`init_state`, with shapes and types instead of arrays."""
    return jax.eval_shape(lambda: new_state(task, optimizer, averages, 0, triggered))


def new_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    averages: bool,
    seed: int | jax.Array,
    triggered: bool = False,
) -> tuple[nnx.GraphDef, TrainState]:
    """Like :func:`init_state`, for use inside a compiled program; the seed can be traced."""
    init_key, key = jax.random.split(jax.random.key(seed))
    model = task.build(nnx.Rngs(init_key))
    model.train()
    carry = model.initial_carry(task.batch_size) if hasattr(model, "initial_carry") else ()
    graph, params, rest, streams = split(model)
    average = params if averages else None
    if triggered:
        average = PlainMean(params, jnp.asarray(NOT_YET, jnp.int32))
    return graph, TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        rest=rest,
        streams=streams,
        average=average,
        opt_state=optimizer.init(params),
        carry=carry,
        key=jax.random.key_data(key),
    )


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """The sharding of each array of a state: the carry by rows, everything else replicated."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_rows = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda _: everywhere, state)._replace(
        carry=jax.tree.map(lambda _: by_rows, state.carry)
    )


# ---- the step ----


def batch_spec(accumulate: int) -> PartitionSpec:
    """The sharding of a batch, or of a stack of batches: by rows."""
    return PartitionSpec(AXIS) if accumulate == 1 else PartitionSpec(None, AXIS)


def build_step(
    task: Task,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
    mesh: Mesh,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The jitted :func:`step_function`; its state argument is donated."""
    step = step_function(task, graph, optimizer, schedule, ema_decay, mesh, accumulate)
    return compiled(step, donate_argnums=0)


def step_function(
    task: Task,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
    mesh: Mesh,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """A function that maps a state and a batch to the next state and the metrics.

    With ``accumulate`` above 1, the batch holds that many batches, stacked along a first axis. They
    are processed one after another, and their mean gradient gives one update.

    Each device differentiates the loss of its own rows, and the gradients are summed once at the
    end. If the compiler partitioned the batch instead, this sum could end up inside the scan.
    """

    def loss_of(
        params: Params, rest: Arrays, streams: Arrays, carry: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Arrays]]:
        model = merged(graph, params, rest, streams)
        loss, carry = task.loss(model, carry, batch, nnx.Rngs(key))
        return loss, (carry, split(model)[2])

    differentiated = jax.value_and_grad(loss_of, has_aux=True)

    def mean_gradients(
        params: Params, rest: Arrays, streams: Arrays, carry: Any, batches: Batch, key: jax.Array
    ) -> tuple[jax.Array, Params, Arrays, Any]:
        def add(before: Any, inputs: Any) -> Any:
            (sums, rest, carry), (n, batch) = before, inputs
            (loss, (carry, rest)), grads = differentiated(
                params, rest, streams, carry, batch, jax.random.fold_in(key, n)
            )
            return (jax.tree.map(jnp.add, sums, (loss, grads)), rest, carry), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        (sums, rest, carry), _ = jax.lax.scan(
            add, (zeros, rest, carry), (jnp.arange(accumulate), batches)
        )
        return *jax.tree.map(lambda total: total / accumulate, sums), rest, carry

    def gradients(
        params: Params, rest: Arrays, streams: Arrays, carry: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Params, Arrays, Any]:
        device = jax.lax.axis_index(AXIS)
        key = jax.random.fold_in(jax.random.wrap_key_data(key), device)
        streams = jax.tree.map(lambda data: _folded(data, device), streams)
        if accumulate == 1:
            (loss, (carry, rest)), grads = differentiated(params, rest, streams, carry, batch, key)
        else:
            loss, grads, rest, carry = mean_gradients(params, rest, streams, carry, batch, key)
        return *jax.lax.pmean((loss, grads), AXIS), jax.tree.map(_shared, rest), carry

    rows, everywhere = PartitionSpec(AXIS), PartitionSpec()
    gradients = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(everywhere, everywhere, everywhere, rows, batch_spec(accumulate), everywhere),
        out_specs=(everywhere, everywhere, everywhere, rows),
        # Loops in a user's module may start from constants, which are equal on all devices.
        check_vma=False,
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        loss, grads, rest, carry = gradients(
            state.params, state.rest, state.streams, state.carry, batch, jax.random.key_data(key)
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if isinstance(average, PlainMean):
            since = jnp.maximum(0, state.step + 1 - average.start)
            mean = optax.incremental_update(params, average.params, 1.0 / (1.0 + since))
            average = average._replace(params=mean)
        elif average is not None:
            # In the first steps the mean is over all steps so far, so that it forgets the initial
            # values.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            average = optax.incremental_update(params, average, 1.0 - decay)
        metrics = StepMetrics(loss, optax.global_norm(grads), jnp.asarray(schedule(state.step)))
        new = state._replace(
            step=state.step + 1,
            params=params,
            rest=rest,
            average=average,
            opt_state=opt_state,
            carry=carry,
        )
        return new, metrics

    return step


def _folded(data: jax.Array, number: jax.Array) -> jax.Array:
    """Key data ``[..., 2]`` with a number folded into each key."""
    keys = jax.random.wrap_key_data(data)
    fold = jax.random.fold_in
    for _ in keys.shape:
        fold = jax.vmap(fold, in_axes=(0, None))
    return jax.random.key_data(fold(keys, number))


def _shared(leaf: jax.Array) -> jax.Array:
    """One value for all devices: statistics are averaged, counters are equal on all of them."""
    return jax.lax.pmean(leaf, AXIS) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf
