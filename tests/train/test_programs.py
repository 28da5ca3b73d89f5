"""Programs shared by several configs give the same numbers as separate programs."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.config import config_from
from lstm_jax.models import LanguageModel
from lstm_jax.tasks import NextCharacter
from lstm_jax.train.programs import Lockstep, Number, SharedPrograms, own_programs, with_values

VALUES = {
    "model.dropout": (0.1, 0.3),
    "model.input_dropout": (0.2, 0.4),
    "optimizer.learning_rate": (0.005, 0.02),
    "optimizer.weight_decay": (0.1, 0.01),
    "optimizer.max_norm": (0.2, 0.1),
    "optimizer.b1": (0.8, 0.9),
    "optimizer.alpha": (0.1, 0.01),
    "optimizer.ema_decay": (0.9, 0.5),
}


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """Two configs that differ in the seed and in every number that can be shared."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("the quick brown fox\n" * 40, "utf-8")
    base = config_from(
        {
            "task": "next_character",
            "data": {"text": str(text), "lanes": 2, "window": 4},
            "model": {"hidden_size": 4, "embedding_size": 3, "num_layers": 2},
            "optimizer": {"warmup_steps": 1},
            "train": {"num_steps": 6, "num_devices": 1},
        },
        "test",
        {},
    )
    return [
        with_values(
            base, {key: values[n] for key, values in VALUES.items()} | {"train.seed": 7 * n}
        )
        for n in range(2)
    ]


@pytest.fixture(scope="module")
def shared(points):
    ranges = {key: (min(values), max(values)) for key, values in VALUES.items()}
    return SharedPrograms(points[0], points[0].build_task(), ranges)


def trained(config, programs, steps=4):
    """The state after some steps, the last step's metrics and the evaluation."""
    task = config.build_task()
    state, batches = programs.new_state(), task.batches(config.train.seed)
    metrics = None
    for n in range(steps):
        state, metrics = programs.take_step(state, batches[n])
    return jax.device_get(state), metrics, task.evaluate(programs.model(state), "validation")


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_each_point_equals_its_separate_run(points, shared):
    """All numbers at once, on each device, and both points in lockstep in one program."""
    alone = [trained(point, own_programs(point, point.build_task())) for point in points]
    assert abs(float(alone[0][1].loss - alone[1][1].loss)) > 1e-3
    devices = jax.local_devices()
    for point, device, expected in zip(points, devices, alone, strict=False):
        assert_same(trained(point, shared.for_point(point, device)), expected)
    lockstep, together = Lockstep(shared.step(devices[0], together=True), 2), [None, None]

    def train(n):
        together[n] = trained(points[n], shared.for_point(points[n], devices[0], lockstep))
        lockstep.leave()

    threads = [threading.Thread(target=train, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(together, alone)


def test_points_share_one_compilation(points, monkeypatch):
    """The step is traced once for two points that differ in every number."""
    traced, ranges = [], {key: (min(values), max(values)) for key, values in VALUES.items()}
    original = SharedPrograms._traced_step

    def counted(self, *args):
        traced.append(1)
        return original(self, *args)

    monkeypatch.setattr(SharedPrograms, "_traced_step", counted)
    shared = SharedPrograms(points[0], points[0].build_task(), ranges)
    for point in points:
        trained(point, shared.for_point(point, jax.local_devices()[0]), steps=2)
    assert traced == [1]


class Scaled(LanguageModel):
    """Its logits also depend on a number in evaluation."""

    def __call__(self, carry, *, tokens, rngs=None):
        carry, outputs = super().__call__(carry, tokens=tokens, rngs=rngs)
        return carry, {"logits": outputs["logits"] * self.dropout.rate}


class ScaledTask(NextCharacter):
    def build(self, rngs):
        return Scaled(len(self.known["vocabulary"]), 3, 4, dropout=self.model.dropout, rngs=rngs)


def test_shared_number_is_used_in_evaluation(points):
    """A point's model has its own numbers, not those of the config that was compiled."""
    name = f"{ScaledTask.__module__}.ScaledTask"
    one, other = (dataclasses.replace(point, task=name) for point in points)
    other = with_values(one, {"model.dropout": other.model.dropout})
    shared = SharedPrograms(one, one.build_task(), {"model.dropout": (0.1, 0.3)})
    for point in (one, other):
        programs = shared.for_point(point, jax.local_devices()[0])
        own = own_programs(point, point.build_task())
        assert_same(trained(point, programs, 0)[2], trained(point, own, 0)[2])
        assert programs.model(programs.new_state()).lstm is not None


def test_comparisons_of_a_number():
    number = Number(jnp.float32(0.25), 0.1, 0.5)
    assert number and number != 0 and number < 1 and number > 0 and 0 <= number <= 0.5
    assert number == number and number != Number(number.traced, 0.1, 0.5)
    for ask in (lambda: number < 0.3, lambda: number == 0.25, lambda: number >= 0.2):
        with pytest.raises(TypeError, match=r"not the same for all values from 0\.1 to 0\.5"):
            ask()


def test_arithmetic_of_a_number():
    number = Number(jnp.float32(0.25), 0.1, 0.5)
    two = jnp.float32(2.0)
    found = [
        -number, number + 2, 2 + number, number - 2, 2 - number, number * 2, 2 * number,
        number / 2, 2 / number, number**2, 2**number, two * number, two - number,
    ]  # fmt: skip
    expected = [-0.25, 2.25, 2.25, -1.75, 1.75, 0.5, 0.5, 0.125, 8, 0.0625, 2**0.25, 0.5, 1.75]
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-6)


def test_lockstep_returns_each_callers_result_and_allows_leaving():
    widths = []

    def step(states, batches):
        widths.append(len(states))
        return [state + batch for state, batch in zip(states, batches, strict=True)]

    lockstep, sums = Lockstep(step, 3), [0, 0, 0]

    def add(n):
        for _ in range(n + 1):
            sums[n] = lockstep.take_step(sums[n], n + 1)
        lockstep.leave()

    threads = [threading.Thread(target=add, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sums == [1, 4, 9] and widths == [3, 2, 1]


def test_lockstep_raises_in_every_caller():
    def step(states):
        raise ValueError("no memory")

    lockstep, raised = Lockstep(step, 2), []

    def ask():
        with pytest.raises(ValueError, match="no memory"):
            lockstep.take_step(0)
        raised.append(True)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert raised == [True, True]
