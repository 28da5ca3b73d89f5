"""Killed processes: a resumed run gives the same bits as an uninterrupted one.

``LSTM_JAX_KILLS`` sets the total number of SIGKILLs (default 3); ``LSTM_JAX_KILL_SEED`` repeats the
moments of a failed run.
"""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lstm_jax.cli import main
from lstm_jax.train import (
    Checkpoints,
    build_optimizer,
    data_mesh,
    init_state,
    load_workdir,
    read_metrics,
)
from lstm_jax.train.checkpoint import digest
from lstm_jax.train.step import state_shardings

NUM_STEPS = 120
CONFIG = f"""
task = "killed_tasks.NormalisedCharacters"
[data]
text = "{{folder}}/text.txt"
lanes = 4
window = 8
[model]
hidden_size = 8
embedding_size = 4
dropout = 0.3
[optimizer]
learning_rate = 1e-2
warmup_steps = 10
ema_decay = 0.9
[train]
num_steps = {NUM_STEPS}
log_every = 7
eval_every = 25
checkpoint_every = 9
num_devices = 2
sample_length = 10
"""
# A character model that also has batch statistics and a separate random stream.
TASK = """
from flax import nnx
from lstm_jax.tasks import NextCharacter

class Embedded(nnx.Module):
    def __init__(self, embedding, rngs):
        self.embedding = embedding
        self.norm = nnx.BatchNorm(embedding.features, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, tokens):
        return self.dropout(self.norm(self.embedding(tokens)))

class NormalisedCharacters(NextCharacter):
    def build(self, rngs):
        model = super().build(rngs)
        model.embedding = Embedded(model.embedding, rngs)
        return model
"""
# Like `python -m lstm_jax`, but always with the two devices of the tests.
PROGRAM = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
jax.devices()
from lstm_jax.cli import main
sys.exit(main())
"""
KILLS = int(os.environ.get("LSTM_JAX_KILLS", "3"))
KILLS_A_RUN = 5
PATIENCE = 120  # seconds; no process here should take longer


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("interruption")
    (folder / "killed_tasks.py").write_text(TASK, "utf-8")
    words = ["the", "quick", "brown", "fox,", "a", "lazy", "dög\n"]
    words = np.random.default_rng(0).choice(words, 300)
    (folder / "text.txt").write_text(" ".join(words), "utf-8")
    (folder / "run.toml").write_text(CONFIG.format(folder=folder), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield folder / "run.toml"


@pytest.fixture(scope="module")
def whole(config) -> pathlib.Path:
    """The folder of an uninterrupted run."""
    workdir = config.parent / "whole"
    assert main(["train", str(config), "--workdir", str(workdir)]) == 0
    return workdir


def heed_signals():
    """Restores signals: a child inherits those ignored by a background shell or nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def process(*args):
    """A command in a separate process, which does not outlive the test."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def newest(workdir: pathlib.Path) -> int:
    """The step of the newest checkpoint, complete or still being written."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(found[0]) for name in names if (found := re.match(r"\d+", name))), default=0)


def wait_for(running: subprocess.Popen, condition) -> bool:
    """Whether the condition became true before the process ended."""
    end = time.monotonic() + PATIENCE
    while running.poll() is None:
        if condition():
            return True
        assert time.monotonic() < end, "the process hangs"
        time.sleep(0.005)
    return condition()


def left_behind(workdir: pathlib.Path):
    """Everything that must be identical: metrics, results, and the bits of the last state."""
    config = load_workdir(workdir)
    task = config.build_task()
    optimizer = build_optimizer(config.optimizer, lambda step: 0.0)
    _, like = init_state(task, optimizer, True, 0)
    like = jax.device_put(like, state_shardings(like, data_mesh(task.batch_size, 2)))
    with contextlib.closing(Checkpoints(workdir / "checkpoints", 2)) as checkpoints:
        assert checkpoints.latest_step() == NUM_STEPS
        state, meta = checkpoints.restore(NUM_STEPS, like)
        best = checkpoints.best_step()
    return {
        "metrics": (workdir / "metrics.jsonl").read_bytes(),
        "results": (workdir / "results.json").read_bytes(),
        "params": digest(state.params),
        "statistics": digest(state.rest["embedding"]["norm"]),
        "draws": int(state.rest["embedding"]["dropout"]["rngs"]["count"]),
        "average": digest(state.average),
        "state": digest(state),
        "meta": json.dumps(meta, sort_keys=True),
        "best": best,
    }


def moments(rng: random.Random, kills: int) -> list[float]:
    """Points in a run: below 0 before the first step, from 1 on after the last."""
    return sorted(rng.uniform(-0.15, 1.1) for _ in range(kills))


@pytest.mark.slow
@pytest.mark.parametrize("run", range(-(-KILLS // KILLS_A_RUN)))
def test_killed_at_random_moments(run, config, whole, tmp_path):
    seed = int(os.environ.get("LSTM_JAX_KILL_SEED") or random.SystemRandom().randrange(10**6))
    print(f"LSTM_JAX_KILL_SEED={seed}")
    rng = random.Random(seed + run)
    workdir = tmp_path / "run"
    places = moments(rng, min(KILLS_A_RUN, KILLS - run * KILLS_A_RUN))
    for place in places:
        with process("train", config, "--workdir", workdir) as running:
            before = newest(workdir)
            if place < 0:
                delay = rng.uniform(0.0, 6.0)  # duration of imports, set-up and compilation
            else:
                target = min(int(place * NUM_STEPS), NUM_STEPS)
                wait_for(running, lambda t=target, b=before: newest(workdir) >= min(t, b + 1))
                wait_for(running, lambda t=target: newest(workdir) >= t)
                delay = rng.uniform(0.0, 0.3 if place < 1 else 1.5)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(delay)
            running.kill()
            code = running.wait(PATIENCE)
            print(f"at {place:.2f}: exit {code}, checkpoints to {before}, then {newest(workdir)}")
            assert code in (-signal.SIGKILL, 0), running.stderr.read()
    assert main(["train", str(config), "--workdir", str(workdir)]) == 0
    assert left_behind(workdir) == left_behind(whole)
    # No partial files are left on disk.
    assert [p.name for p in (workdir / "checkpoints").iterdir() if not p.name.isdigit()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name
)
def test_stopped_by_a_signal(number, config, whole, tmp_path, capsys):
    workdir = tmp_path / "run"
    with process("train", config, "--workdir", workdir) as running:
        assert wait_for(running, lambda: newest(workdir) > 0)
        # A second process is rejected meanwhile, and changes nothing.
        assert main(["train", str(workdir)]) == 1
        assert "another process is training in this folder" in capsys.readouterr().err
        running.send_signal(number)
        out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 128 + number
    assert err == ""
    step = newest(workdir)
    assert 9 <= step < NUM_STEPS
    assert f"stopped after step {step} of {NUM_STEPS}" in out.splitlines()[-1]
    assert out.endswith(f"resume with: lstm-jax train {workdir}\n")
    assert "\x1b" not in out  # plain lines if the output is not a terminal
    # Everything is saved: no line is missing or repeated.
    assert read_metrics(workdir / "metrics.jsonl")[-1]["step"] >= step - 7
    assert main(["train", str(workdir)]) == 0
    assert f"resuming from step {step} in" in capsys.readouterr().out
    assert left_behind(workdir) == left_behind(whole)


@pytest.mark.slow
def test_third_signal_kills_and_loses_only_steps(config, whole, tmp_path):
    workdir = tmp_path / "run"
    with process("train", config, "--workdir", workdir) as running:
        assert wait_for(running, lambda: newest(workdir) > 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            running.send_signal(number)
        running.communicate(timeout=PATIENCE)
    assert running.returncode in (-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)
    assert main(["train", str(workdir)]) == 0
    assert left_behind(workdir) == left_behind(whole)
