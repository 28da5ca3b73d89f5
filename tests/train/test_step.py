"""The training step: equal on one and two devices, compiled once, with a donated state."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lstm_jax.train import (
    Checkpoints,
    OptimizerConfig,
    build_optimizer,
    build_schedule,
    build_step,
    data_mesh,
    init_state,
    load_config,
)
from lstm_jax.train.devices import AXIS
from lstm_jax.train.step import batch_spec, merged, state_shardings

P = jax.sharding.PartitionSpec

CHARACTERS = """
task = "next_character"
[data]
text = "{folder}/text.txt"
lanes = 4
window = 6
[model]
hidden_size = 5
embedding_size = 3
dropout = {dropout}
"""
FORECASTING = """
task = "forecasting"
[data]
table = "{folder}/table.csv"
train_rows = 60
validation_rows = 20
test_rows = 20
window = 12
horizon = 4
season = 6
batch_size = 4
[model]
segment = 3
hidden_size = 5
dropout = {dropout}
"""
CLASSIFICATION = """
task = "classification"
[data]
train = "{folder}/sequences.ts"
test = "{folder}/sequences.ts"
batch_size = 4
[model]
hidden_size = 5
dropout = {dropout}
input_noise = 0.0
"""
TASKS = {
    "carried state": CHARACTERS,
    "no state": FORECASTING,
    "no state, lengths": CLASSIFICATION,
}
OPTIMIZER = OptimizerConfig(learning_rate=0.05, warmup_steps=2, ema_decay=0.7)


@pytest.fixture
def build(tmp_path):
    """A task, and its optimizer and schedule."""
    rng = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text("".join(rng.choice(list("abcd e\n"), 400)), "utf-8")
    rows = np.sin(np.arange(100)[:, None] * [0.3, 0.5]) + rng.normal(size=(100, 2))
    lines = [f"{n},{a},{b}" for n, (a, b) in enumerate(rows)]
    (tmp_path / "table.csv").write_text("\n".join(["time,a,b", *lines]), "utf-8")
    examples = [
        ":".join(",".join(f"{x:.3f}" for x in rng.normal(size=3 + n % 4)) for _ in range(2))
        for n in range(12)
    ]
    lines = [f"{example}:{'xy'[n % 2]}" for n, example in enumerate(examples)]
    header = ["@classLabel true x y", "@data"]
    (tmp_path / "sequences.ts").write_text("\n".join(header + lines), "utf-8")

    def build(text: str, dropout: float = 0.0):
        path = tmp_path / "config.toml"
        path.write_text(text.format(folder=tmp_path, dropout=dropout), "utf-8")
        schedule = build_schedule(OPTIMIZER, 20)
        return load_config(path).build_task(), build_optimizer(OPTIMIZER, schedule), schedule

    return build


def begin(task, optimizer, schedule, mesh):
    """The jitted step and its initial state."""
    graph, state = init_state(task, optimizer, True, seed=3)
    state = jax.device_put(state, state_shardings(state, mesh))
    return build_step(task, graph, optimizer, schedule, OPTIMIZER.ema_decay, mesh), state


def on(mesh, batch):
    return jax.device_put(batch, jax.sharding.NamedSharding(mesh, P(AXIS)))


def run(task, optimizer, schedule, num_devices, steps=3):
    mesh = data_mesh(task.batch_size, num_devices)
    take_step, state = begin(task, optimizer, schedule, mesh)
    losses = []
    batches = task.batches(0)
    for n in range(steps):
        state, metrics = take_step(state, on(mesh, batches[n]))
        losses.append(jax.device_get(metrics))
    return jax.device_get(state), losses


def test_there_are_two_devices():
    assert len(jax.local_devices()) >= 2


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("name", TASKS)
def test_accumulated_gradients_are_the_mean_over_several_batches(name, num_devices, build):
    """Compared with separate gradients of each batch; there is no update between the batches."""
    task, optimizer, schedule = build(TASKS[name])
    mesh = data_mesh(task.batch_size, num_devices)
    graph, state = init_state(task, optimizer, True, seed=3)
    batches = [task.batches(0)[n] for n in range(3)]

    @jax.jit
    def by_hand(params, batches):
        def loss(params, carry, batch):
            model = merged(graph, params, state.rest, state.streams)
            return task.loss(model, carry, batch, nnx.Rngs(0))

        carry, losses, grads = state.carry, [], []
        for batch in batches:  # gradients do not flow into the previous batch
            (value, after), one = jax.value_and_grad(loss, has_aux=True)(params, carry, batch)
            losses.append(value)
            grads.append(one)
            carry = after
        return sum(losses) / 3, jax.tree.map(lambda *g: sum(g) / 3, *grads), carry

    loss, grads, carry = by_hand(state.params, batches)
    updates, _ = optimizer.update(grads, state.opt_state, state.params)
    expected = optax.apply_updates(state.params, updates)

    take_step = build_step(
        task, graph, optimizer, schedule, OPTIMIZER.ema_decay, mesh, accumulate=3
    )
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
    stacked = jax.device_put(stacked, jax.sharding.NamedSharding(mesh, batch_spec(3)))
    new, metrics = take_step(jax.device_put(state, state_shardings(state, mesh)), stacked)
    # Sums of float32 in another order; Adam divides by the root of a square of the same size.
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.grad_norm, optax.global_norm(grads), rtol=1e-4)
    chex.assert_trees_all_close(jax.device_get(new.params), expected, atol=2e-5)
    chex.assert_trees_all_close(jax.device_get(new.carry), carry, atol=1e-5)
    assert int(new.step) == 1


@pytest.mark.parametrize("name", TASKS)
def test_two_devices_match_one_device(name, build):
    parts = build(TASKS[name])
    one, ones = run(*parts, num_devices=1)
    two, twos = run(*parts, num_devices=2)
    # Sums of gradients in another order, through three steps of Adam: about a dozen float32
    # rounding errors of values of order one.
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    for a, b in zip(ones, twos, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert int(two.step) == 3


@pytest.mark.parametrize("name", TASKS)
def test_step_applies_one_update_with_the_tasks_gradient(name, build):
    task, optimizer, schedule = build(TASKS[name])
    mesh = data_mesh(task.batch_size, 2)
    take_step, state = begin(task, optimizer, schedule, mesh)
    batches = task.batches(0)
    # From the second step on, where the carry is not zero and the warm-up has started.
    state, _ = take_step(state, on(mesh, batches[0]))
    before = jax.device_get(state)
    state, metrics = take_step(state, on(mesh, batches[1]))
    graph, _ = init_state(task, optimizer, True, seed=3)

    def loss_of(params):
        model = merged(graph, params, before.rest, before.streams)
        return task.loss(model, before.carry, batches[1], nnx.Rngs(0))

    (loss, carry), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(before.params)
    updates, _ = optimizer.update(grads, before.opt_state, before.params)
    params = optax.apply_updates(before.params, updates)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, optax.global_norm(grads), rtol=1e-5)
    np.testing.assert_allclose(metrics.learning_rate, 0.05 / 2, rtol=1e-6)
    expected = (*jax.tree.leaves(params), *jax.tree.leaves(carry))
    got = (*jax.tree.leaves(state.params), *jax.tree.leaves(state.carry))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_dropout_differs_by_device_and_step(build):
    # Dropout below the LSTM, so that its state shows it.
    text = CHARACTERS.replace("dropout =", "input_dropout = 0.5\ndropout =")
    task, optimizer, schedule = build(text)
    mesh = data_mesh(task.batch_size, 2)
    take_step, state = begin(task, optimizer, schedule, mesh)
    # All rows are equal: only dropout can make them differ.
    batch = {
        "inputs": np.ones((4, 6), np.int32),
        "targets": np.ones((4, 6), np.int32),
        "start": np.ones(4, bool),
    }
    carries = []
    for _ in range(2):
        state, _ = take_step(state, on(mesh, batch))
        carries.append(jax.device_get(jax.tree.leaves(state.carry)[-1]))
        state = state._replace(params=begin(task, optimizer, schedule, mesh)[1].params)
    assert not np.allclose(carries[0][0], carries[0][2])  # rows 0 and 2: two devices
    assert not np.allclose(carries[0], carries[1])  # two steps from the same parameters


def test_restored_state_needs_no_recompilation(build, tmp_path):
    task, optimizer, schedule = build(CHARACTERS, dropout=0.5)
    mesh = data_mesh(task.batch_size, 2)
    take_step, state = begin(task, optimizer, schedule, mesh)
    like = begin(task, optimizer, schedule, mesh)[1]
    batches = task.batches(0)
    for n in range(4):
        state, _ = take_step(state, on(mesh, batches[n]))
        assert take_step._cache_size() == 1
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    checkpoints.save(state, {}, None)
    restored, _ = checkpoints.restore(4, like)
    checkpoints.close()
    restored, _ = take_step(restored, on(mesh, batches[4]))
    restored, _ = take_step(restored, on(mesh, batches[5]))
    assert int(restored.step) == 6
    assert take_step._cache_size() == 1


def test_state_is_donated(build):
    task, optimizer, schedule = build(CHARACTERS)
    mesh = data_mesh(task.batch_size, 2)
    take_step, state = begin(task, optimizer, schedule, mesh)
    for n in range(2):
        before = state
        state, _ = take_step(state, on(mesh, task.batches(0)[n]))
        held = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree.leaves_with_path(before)
            if not leaf.is_deleted()
        ]
        assert held == []
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_triggered_average_is_the_plain_mean_from_its_start_on(build):
    task, optimizer, schedule = build(FORECASTING)
    mesh = data_mesh(task.batch_size, 2)
    graph, state = init_state(task, optimizer, True, seed=3, triggered=True)
    state = jax.device_put(state, state_shardings(state, mesh))
    take_step = build_step(task, graph, optimizer, schedule, 0.0, mesh)
    batches, seen = task.batches(0), []
    for n in range(9):
        state, _ = take_step(state, on(mesh, batches[n]))
        params = jax.device_get(state.params)
        if n < 4:
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.evaluated), params)
        if n == 4:  # after the fifth step
            start = jax.device_put(np.int32(5), state.step.sharding)
            state = state._replace(average=state.average._replace(start=start))
        if n >= 4:
            seen.append(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params))
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *seen)
    for a, b in zip(jax.tree.leaves(state.evaluated), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert take_step._cache_size() == 1


def test_average_is_the_moving_mean_of_parameters(build):
    task, optimizer, schedule = build(FORECASTING)
    mesh = data_mesh(task.batch_size, 2)
    take_step, state = begin(task, optimizer, schedule, mesh)
    average = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(state.params))
    batches = task.batches(0)
    decays = []
    for n in range(30):
        state, _ = take_step(state, on(mesh, batches[n]))
        params = jax.device_get(state.params)
        decays.append(min(OPTIMIZER.ema_decay, (1 + n) / (10 + n)))
        average = jax.tree.map(lambda a, p, d=decays[-1]: d * a + (1 - d) * p, average, params)
    assert decays[0] == 0.1 and decays[-1] == OPTIMIZER.ema_decay  # both branches were taken
    assert state.evaluated is state.average
    for a, b in zip(jax.tree.leaves(state.average), jax.tree.leaves(average), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_no_average_unless_requested(build):
    task, optimizer, schedule = build(FORECASTING)
    mesh = data_mesh(task.batch_size, 2)
    graph, state = init_state(task, optimizer, False, seed=0)
    state = jax.device_put(state, state_shardings(state, mesh))
    take_step = build_step(task, graph, optimizer, schedule, 0.0, mesh)
    state, _ = take_step(state, on(mesh, task.batches(0)[0]))
    assert state.average is None and state.evaluated is state.params


def test_seed_determines_parameters_and_key(build):
    task, optimizer, _ = build(FORECASTING)
    states = [init_state(task, optimizer, False, seed)[1] for seed in (0, 0, 1)]
    leaves = [jnp.concatenate([x.ravel() for x in jax.tree.leaves(s.params)]) for s in states]
    np.testing.assert_array_equal(leaves[0], leaves[1])
    assert not np.array_equal(leaves[0], leaves[2])
    assert not np.array_equal(states[0].key, states[2].key)
