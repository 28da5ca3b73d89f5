"""A custom task, as docs/your_own_task.md writes it, and one whose model uses Flax layers only."""

import csv
import dataclasses
import os
import pathlib
import re
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lstm_jax.cli import main
from lstm_jax.config import OptimizerConfig, Section, TrainConfig, option
from lstm_jax.errors import UserError
from lstm_jax.tasks import Task
from lstm_jax.train import evaluate, load_run, load_workdir, read_metrics, train

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "your_own_task.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's files in the current folder, which is the last one on Python's path."""
    folder = tmp_path_factory.mktemp("own_task")
    blocks = re.findall(
        r"^```(?:python|toml)\n(# (\S+\.\S+)\n.*?)^```$", PAGE.read_text(), re.M | re.S
    )
    for block, name in blocks:
        (folder / name).write_text(block)
    before = pathlib.Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    os.chdir(before)


def test_the_page_is_short():
    assert len(PAGE.read_text().splitlines()) < 100


def test_the_pages_commands(folder, capsys):
    """The model learns and predicts, also in another folder."""
    from my_tasks import sequences

    commands = re.findall(r"^lstm-jax (.*)$", PAGE.read_text(), re.M)
    np.save("new.npy", sequences(7, 50, 10)["xs"])
    for command in commands:
        assert main(command.split()) == 0, capsys.readouterr().err
    with open("sums.csv") as file:
        sums = [float(row["sum"]) for row in csv.DictReader(file)]
    errors = np.array(sums) - sequences(7, 50, 10)["sums"]
    # The constant 1 has a mean squared error of 1/6; 600 steps are enough for a third of it.
    assert np.square(errors).mean() < 1 / 18
    assert load_workdir(folder / "runs" / "adding").data.hidden_size == 24
    moved = folder / "moved"
    shutil.move("runs/adding", moved)
    np.testing.assert_allclose(load_run(moved).predict("new.npy")["sum"], sums, rtol=1e-6)


def test_help_has_the_tasks_keys(folder, capsys):
    assert main(["train", "adding.toml", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--data.steps INTEGER steps of a sequence (an integer of at least 2 and at most 1" in out
    assert "000000000; 10 in adding" in out


def test_the_pages_python(folder):
    (block,) = re.findall(r"^```python\n(from my_tasks.*?)^```$", PAGE.read_text(), re.M | re.S)
    exec(compile(block, "your_own_task.md", "exec"), {})


# ---- Flax layers only ----


class Plain(nnx.Module):
    """Convolution, batch statistics, dropout and a Flax recurrent layer."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 8, kernel_size=3, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(8, 8, rngs=rngs))
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)])

    def __call__(self, xs):
        ys = self.rnn(nnx.relu(self.norm(self.conv(xs))))[:, -1]
        for layer in self.layers:
            ys = layer(self.dropout(ys))
        return ys


def signals(seed, rows):
    """Two classes: the second column follows the first, or its negative."""
    rng = np.random.default_rng(seed)
    first, labels = rng.normal(size=(rows, 12)), rng.integers(0, 2, rows)
    second = first * (1 - 2 * labels)[:, None] + 0.3 * rng.normal(size=first.shape)
    return {"xs": np.stack([first, second], -1).astype(np.float32), "labels": labels}


@dataclasses.dataclass(frozen=True)
class SignalData(Section):
    batch_size: int = option(16, "rows of a batch", at_least=1)


@dataclasses.dataclass(frozen=True)
class Signals(Task):
    data: SignalData

    def build(self, rngs):
        return Plain(rngs)

    def batches(self, seed):
        numbers = grain.MapDataset.range(10**9)
        return numbers.map(lambda k: signals((seed, k), self.data.batch_size))

    def loss(self, model, carry, batch, rngs):
        scores = model(batch["xs"])
        return optax.softmax_cross_entropy_with_integer_labels(
            scores, batch["labels"]
        ).mean(), carry

    def evaluate(self, model, split):
        held_out = signals(0, 200)
        scores = model(held_out["xs"])
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, held_out["labels"])
        right = np.asarray(scores.argmax(-1)) == held_out["labels"]
        return {"loss": float(losses.mean()), "accuracy": 100 * float(right.mean())}


OPTIONS = {
    "optimizer": OptimizerConfig(learning_rate=2e-2, warmup_steps=5, ema_decay=0.5),
    "options": TrainConfig(num_steps=60, eval_every=20, checkpoint_every=25, num_devices=2),
}


def test_a_plain_flax_module_trains_from_python(tmp_path):
    results = train(Signals(SignalData()), tmp_path / "run", **OPTIONS)
    assert results["validation"]["accuracy"] > 85
    run = load_run(tmp_path / "run")
    assert isinstance(run.model.module, Plain) and run.config.task.endswith("test_own_task.Signals")
    assert run.task.evaluate(run.model, "validation") == results["validation"]
    # Batch statistics were also trained, and evaluation uses them: rows do not affect each other.
    mean = np.asarray(run.model.module.norm.mean[...])
    assert np.abs(mean).max() > 1e-3
    xs = signals(1, 4)["xs"]
    alone = np.concatenate([np.asarray(run.model(xs[n : n + 1])) for n in range(4)])
    np.testing.assert_allclose(run.model(xs), alone, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="does not predict on new data"):
        run.predict("new.csv")
    assert evaluate(run.config, run.task, tmp_path / "run", _quiet()) == results
    # The same call again resumes the run, which is already finished.
    assert train(Signals(SignalData()), tmp_path / "run", **OPTIONS) == results
    with pytest.raises(UserError, match=r"data\.batch_size \(16 in the folder, 8 requested\)"):
        train(Signals(SignalData(batch_size=8)), tmp_path / "run", **OPTIONS)


def _quiet():
    from rich.console import Console

    from lstm_jax.train import Report

    return Report(Console(quiet=True))


def test_batch_statistics_and_noise_of_devices(tmp_path):
    """Statistics are the mean over devices; noise differs between devices and between steps."""
    from lstm_jax.train import build_optimizer, build_step, data_mesh, init_state
    from lstm_jax.train.step import state_shardings

    task = Signals(SignalData(batch_size=8))
    optimizer = build_optimizer(OptimizerConfig(name="sgd", learning_rate=1e-9), lambda step: 0.0)
    mesh = data_mesh(8, 2)
    graph, state = init_state(task, optimizer, False, seed=0)
    params = jax.tree.map(np.asarray, state.params)
    state = jax.device_put(state, state_shardings(state, mesh))
    step = build_step(task, graph, optimizer, lambda step: 0.0, 0.0, mesh)
    batch = signals(3, 8)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    losses = []
    for _ in range(2):
        state, metrics = step(state, jax.device_put(batch, rows))
        losses.append(float(metrics.loss))
    assert losses[0] != losses[1]  # different dropout masks
    conv = nnx.Conv(2, 8, kernel_size=3, rngs=nnx.Rngs(0))
    conv.kernel[...], conv.bias[...] = params["conv"]["kernel"], params["conv"]["bias"]
    halves = [np.asarray(conv(jnp.asarray(batch["xs"][part]))) for part in (slice(4), slice(4, 8))]
    mean = np.mean([half.mean((0, 1)) for half in halves], 0)
    var = np.mean([half.var((0, 1)) for half in halves], 0)
    rest = jax.device_get(state.rest)["norm"]
    np.testing.assert_allclose(rest["mean"], (1 - 0.9**2) * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rest["var"], 0.9**2 + (1 - 0.9**2) * var, rtol=1e-4, atol=1e-6)


def test_metrics_of_a_custom_task_are_written(tmp_path):
    options = TrainConfig(num_steps=4, log_every=2, eval_every=2)
    train(Signals(SignalData()), tmp_path / "run", _quiet(), options=options)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "validation/accuracy" in line] == [2, 4]
