"""The training loop: its output, stopping and resuming, and what it rejects."""

import dataclasses
import errno
import io
import json
import math
import os
import pathlib
import shutil
import signal

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from lstm_jax.config import TASKS
from lstm_jax.errors import UserError
from lstm_jax.models import LanguageModel
from lstm_jax.tasks import NextCharacter
from lstm_jax.train import (
    Report,
    Stopped,
    best_model,
    evaluate,
    load_config,
    load_run,
    load_workdir,
    read_metrics,
    train,
)
from lstm_jax.train.files import sealed
from tests.arrays import params_of

CONFIG = """
task = "next_character"
[data]
text = "{folder}/text.txt"
lanes = 4
window = 8
[model]
hidden_size = 8
embedding_size = 4
dropout = 0.3
[optimizer]
learning_rate = 1e-2
warmup_steps = 4
ema_decay = 0.9
[train]
num_steps = 24
log_every = 5
eval_every = 8
checkpoint_every = 7
num_devices = 2
sample_length = 10
"""


class Listener(Report):
    """Stores messages, and calls ``at_step`` when the progress of a step is reported."""

    def __init__(self, at_step=lambda step: None):
        super().__init__(Console(quiet=True))
        self.said: list[str] = []
        self.warned: list[str] = []
        self.steps: list[int] = []
        self._at_step = at_step

    def say(self, message):
        self.said.append(message)

    def warn(self, message):
        self.warned.append(message)

    def progress(self, line, *, lasting):
        step = int(line.split()[1].partition("/")[0])
        if step not in self.steps:
            self.steps.append(step)
            self._at_step(step)


def killer(number, *steps):
    """Sends this process a signal during given steps."""

    def at_step(step):
        if step in steps:
            os.kill(os.getpid(), number)

    return at_step


def write_config(folder, **overrides):
    """A config of a small text; overrides by names such as train__num_steps."""
    if not (folder / "text.txt").exists():
        words = ["the", "quick", "brown", "fox,", "a", "lazy", "dög\n"]
        words = np.random.default_rng(0).choice(words, 300)
        (folder / "text.txt").write_text(" ".join(words), "utf-8")
    path = folder / "run.toml"
    path.write_text(CONFIG.format(folder=folder), "utf-8")
    changes = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return load_config(path, changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its config, folder and report."""
    folder = tmp_path_factory.mktemp("whole")
    config, report = write_config(folder), Listener()
    results = train(config, folder / "run", report)
    return config, folder / "run", report, results


def files(workdir):
    return {name: (workdir / name).read_bytes() for name in ("metrics.jsonl", "results.json")}


def final_meta(workdir):
    """The metadata of the last checkpoint, including the digest of the arrays."""
    return json.loads((workdir / "checkpoints" / "24" / "meta" / "metadata").read_text("utf-8"))


def test_run_folder_contents(whole):
    config, workdir, report, results = whole
    assert load_config(workdir / "config.toml") == config
    lines = read_metrics(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss" in line] == [5, 10, 15, 20, 24]
    assert [line["step"] for line in lines if "validation/loss" in line] == [8, 16, 24]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert report.steps == list(range(1, 25))
    assert (workdir / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    on_disk = json.loads((workdir / "results.json").read_text("utf-8"))
    best = min(
        (line for line in lines if "validation/loss" in line),
        key=lambda line: line["validation/loss"],
    )
    assert on_disk["step"] == best["step"]
    assert on_disk["validation"]["loss"] == best["validation/loss"]
    assert results == {"validation": on_disk["validation"]}
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert {best["step"], 24} <= kept and len(kept) <= 3


def test_training_reduces_the_loss(whole):
    losses = [
        x["train/loss"] for x in read_metrics(whole[1] / "metrics.jsonl") if "train/loss" in x
    ]
    assert losses[-1] < losses[0] - 0.1


def test_train_loss_is_the_mean_since_the_last_line(whole, tmp_path):
    """Compared with a run that writes a line in each step."""
    config = write_config(tmp_path, train__log_every=1, data__text=whole[0].data.text)
    train(config, tmp_path / "run", Listener())
    each = {
        line["step"]: line["train/loss"]
        for line in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if "train/loss" in line
    }
    begin = 0
    for line in read_metrics(whole[1] / "metrics.jsonl"):
        if "train/loss" in line:
            mean = np.mean([each[step] for step in range(begin + 1, line["step"] + 1)])
            np.testing.assert_allclose(line["train/loss"], mean, rtol=1e-12)
            begin = line["step"]


@pytest.fixture
def compile_again(tmp_path):
    """Clears compiled programs, except those in the test's cache folder."""
    names = ("enable_compilation_cache", "compilation_cache_dir")
    sizes = ("persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes")
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in (*names, *sizes)}

    def forget(*, cache: bool) -> pathlib.Path:
        jax.clear_caches()
        compilation_cache.reset_cache()
        values = (cache, str(tmp_path / "programs"), 0.0, -1)
        for name, value in zip(before, values, strict=True):
            jax.config.update(name, value)
        return tmp_path / "programs"

    yield forget
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_run_is_the_same_with_and_without_a_compilation_cache(whole, tmp_path, compile_again):
    """One run compiles everything; the other is resumed with programs from the cache only."""
    config = write_config(tmp_path, data__text=whole[0].data.text)
    programs = compile_again(cache=False)
    train(config, tmp_path / "run without", Listener())
    assert not programs.exists()
    compile_again(cache=True)
    train(config, tmp_path / "run before", Listener())
    kept = sorted(programs.iterdir())
    compile_again(cache=True)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", Listener(killer(signal.SIGINT, 13)))
    compile_again(cache=True)
    train(config, tmp_path / "run", Listener())
    assert len(kept) > 3 and kept[0].name in {path.name for path in programs.iterdir()}
    step = [path for path in programs.iterdir() if path.name.startswith("jit_step")]
    assert [path for path in kept if path.name.startswith("jit_step")] == step
    for run in ("run", "run before"):
        assert files(tmp_path / run) == files(tmp_path / "run without")
        assert final_meta(tmp_path / run) == final_meta(tmp_path / "run without")


def test_often_interrupted_run_equals_an_uninterrupted_one(whole, tmp_path):
    """Stopped by both signals, before, at and after metrics, evaluations and checkpoints."""
    config, workdir, _, _ = whole
    config = write_config(tmp_path, data__text=config.data.text)
    done = 0
    for number, steps in (
        (signal.SIGTERM, [1]),
        (signal.SIGINT, [8]),
        (signal.SIGTERM, [13]),
        (signal.SIGINT, [24]),
    ):
        report = Listener(killer(number, *steps))
        before = signal.getsignal(number)
        with pytest.raises(Stopped) as stopped:
            train(config, tmp_path / "run", report)
        assert stopped.value.signal == number
        assert signal.getsignal(number) is before
        assert report.steps == list(range(done + 1, steps[0] + 1))
        done = steps[0]
        assert f"stopped after step {done} of 24" in report.said[-1]
        assert f"lstm-jax train {tmp_path / 'run'}" in report.said[-1]
        assert not (tmp_path / "run" / "results.json").exists()
    report = Listener()
    train(config, tmp_path / "run", report)
    assert report.steps == [] and report.warned == []
    assert files(tmp_path / "run") == files(workdir)
    assert final_meta(tmp_path / "run") == final_meta(workdir)


def test_a_second_signal_does_not_stop_the_save(whole, tmp_path):
    """Even if it arrives immediately."""
    config = write_config(tmp_path, data__text=whole[0].data.text)
    report = Listener(lambda step: step == 13 and signal_twice())

    def signal_twice():
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped) as stopped:
        train(config, tmp_path / "run", report)
    assert stopped.value.signal == signal.SIGINT
    assert (
        len(report.warned) == 1 and "everything is being saved; a third signal" in report.warned[0]
    )
    (
        tmp_path / "run" / "checkpoints" / "15.orbax-checkpoint-tmp"
    ).mkdir()  # left by a killed process
    report = Listener()
    train(config, tmp_path / "run", report)
    assert report.steps[0] == 14 and files(tmp_path / "run") == files(whole[1])
    assert all(path.name.isdigit() for path in (tmp_path / "run" / "checkpoints").iterdir())


@pytest.fixture
def heeded():
    """Restores signals that a background shell or nohup ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    for number, handler in before.items():
        if handler == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_during_set_up_stops_before_the_first_step(number, whole, tmp_path, heeded):
    class Early(Listener):
        def say(self, message):
            if "parameters" in message:
                os.kill(os.getpid(), number)
            super().say(message)

    config, before = write_config(tmp_path, data__text=whole[0].data.text), signal.getsignal(number)
    report = Early()
    with pytest.raises(Stopped) as stopped:
        train(config, tmp_path / "run", report)
    assert stopped.value.signal == number and signal.getsignal(number) is before
    assert report.steps == [] and report.said[-1].startswith("stopped before the first step")


def test_a_closed_terminal_does_not_stop_the_save():
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    report = Report(Console(file=Closed(), force_terminal=True))
    report.leave_terminal()
    report.progress("step 1/2", lasting=True)
    report.end_progress()
    report.say("saved")


def test_damaged_checkpoint_only_costs_time(whole, tmp_path):
    config, workdir, _, _ = whole
    config = write_config(tmp_path, data__text=config.data.text)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", Listener(killer(signal.SIGTERM, 17)))
    for path in (tmp_path / "run" / "checkpoints" / "17" / "meta").iterdir():
        path.write_bytes(b"{")
    report = Listener()
    train(config, tmp_path / "run", report)
    assert report.steps[0] in (15, 17)  # after the checkpoint of step 14, or 16 if that is best
    assert len(report.warned) == 1
    assert str(tmp_path / "run" / "checkpoints" / "17") in report.warned[0]
    assert files(tmp_path / "run") == files(workdir)
    assert final_meta(tmp_path / "run") == final_meta(workdir)


def test_finished_run_prints_its_results_again(whole):
    config, workdir, _, results = whole
    before = files(workdir)
    report = Listener()
    assert train(config, workdir, report) == results
    assert report.steps == [] and files(workdir) == before


def test_evaluate_gives_the_best_checkpoint(whole):
    config, workdir, _, results = whole
    assert evaluate(config, config.build_task(), workdir, Listener()) == results


def test_second_process_is_rejected(whole):
    config, workdir, _, _ = whole
    with (
        filelock.FileLock(workdir / ".lock", timeout=0),
        pytest.raises(UserError, match=r"another process is training in this folder") as caught,
    ):
        train(config, workdir, Listener())
    assert str(workdir) in str(caught.value)


def test_folder_is_locked_during_training(whole, tmp_path):
    config = write_config(tmp_path, data__text=whole[0].data.text, train__num_steps=2)
    refused = []

    def at_step(step):
        try:
            train(config, tmp_path / "run", Listener())
        except UserError as error:
            refused.append(str(error))

    train(config, tmp_path / "run", Listener(at_step))
    assert len(refused) == 2 and all("another process" in message for message in refused)
    assert train(config, tmp_path / "run", Listener())  # the lock was released


def test_different_config_is_rejected(whole):
    workdir = whole[1]
    other = write_config(workdir.parent, train__num_steps=30, optimizer__name="adam")
    with pytest.raises(UserError) as caught:
        train(other, workdir, Listener())
    message = str(caught.value)
    assert message.startswith(f"{workdir}: ") and "\n" not in message
    assert "train.num_steps (24 in the folder, 30 requested)" in message
    assert "optimizer.name ('adamw' in the folder, 'adam' requested)" in message
    assert "train.seed" not in message


@pytest.mark.parametrize("gone", ["checkpoints", "what is in them"])
def test_lost_checkpoints_are_reported(gone, whole, tmp_path):
    """Training does not restart in a folder with the results of another run."""
    shutil.copytree(whole[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    if gone != "checkpoints":
        (tmp_path / "run" / "checkpoints").mkdir()
    report, before = Listener(), files(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        train(whole[0], tmp_path / "run", report)
    assert str(caught.value) == (
        f"{tmp_path / 'run' / 'checkpoints'}: expected the checkpoints of the run that wrote "
        "results.json, got none; put them back, or take another --workdir"
    )
    assert report.steps == [] and files(tmp_path / "run") == before
    (tmp_path / "run" / "results.json").unlink()
    if gone == "checkpoints":
        with pytest.raises(UserError, match=r"the run that wrote metrics\.jsonl, got none"):
            train(whole[0], tmp_path / "run", report)


def test_damaged_metrics_do_not_stop_a_run(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    path, report = tmp_path / "run" / "metrics.jsonl", Listener()
    with path.open("ab") as file:
        file.write(b'\xff\n{"step": null}\n')
    train(whole[0], tmp_path / "run", report)
    assert len(report.warned) == 1 and str(path) in report.warned[0]
    assert files(tmp_path / "run") == files(whole[1])


def test_changed_metrics_are_reported(whole, tmp_path):
    """A changed digit leaves a valid line; the checkpoint contains a digest of the lines."""
    shutil.copytree(whole[1], tmp_path / "run")
    path, report = tmp_path / "run" / "metrics.jsonl", Listener()
    lines = path.read_text("utf-8")
    path.write_text(lines.replace('"step": 5,', '"step": 4,', 1), "utf-8")
    train(whole[0], tmp_path / "run", report)
    assert report.warned == [f"{path}: differs from what this run wrote up to step 24"]


def test_metadata_of_another_run_are_rejected(whole, tmp_path):
    """Otherwise the parameters of a checkpoint would belong to other characters."""
    shutil.copytree(whole[1], tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    text = path.read_text("utf-8")
    path.write_text(text.replace('"vocabulary": "', '"vocabulary": "\\u0001'), "utf-8")
    for go_on in (load_run, load_workdir):
        with pytest.raises(UserError, match=r"run\.json: damaged or edited: its content differs"):
            go_on(tmp_path / "run")
    held = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(sealed(held)), "utf-8")
    with pytest.raises(UserError, match="its checkpoints belong to another run"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize("end", ["q", "Ω"], ids=["known characters", "a new character"])
def test_changed_data_are_rejected(end, whole, tmp_path):
    text = tmp_path / "text.txt"
    config = write_config(tmp_path, train__num_steps=2)
    train(config, tmp_path / "run", Listener())
    text.write_text(text.read_text("utf-8")[:-1] + end, "utf-8")
    report = Listener()
    for go_on in (
        lambda: train(config, tmp_path / "run", report),
        lambda: evaluate(config, config.build_task(), tmp_path / "run", report),
    ):
        with pytest.raises(UserError, match=r"the data have changed since this run began"):
            go_on()
    assert report.warned == []  # no checkpoint is reported as damaged
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_failed_start_leaves_the_folder_unclaimed(tmp_path):
    config = write_config(tmp_path, data__text=tmp_path / "missing.txt", train__num_steps=1)
    with pytest.raises(UserError, match=r"missing\.txt: no such file"):
        train(config, tmp_path / "run", Listener())
    train(write_config(tmp_path, train__num_steps=1), tmp_path / "run", Listener())


def test_unencodable_prompt_is_reported_before_training(tmp_path):
    config = write_config(tmp_path, train__sample_prompt="Ω", train__num_steps=1)
    report = Listener()
    with pytest.raises(UserError, match="Ω"):
        train(config, tmp_path / "run", report)
    assert report.steps == []


def test_wrong_number_of_devices_is_reported(tmp_path):
    for overrides in ({"train__num_devices": 1000}, {"train__num_devices": 2, "data__lanes": 3}):
        with pytest.raises(UserError, match=r"^train\.num_devices: expected"):
            train(write_config(tmp_path, **overrides), tmp_path / "run", Listener())


class Counting(LanguageModel):
    """Its carry also counts calls."""

    def initial_carry(self, rows):
        return super().initial_carry(rows), jnp.zeros(rows, jnp.int32)

    def __call__(self, carry, **inputs):
        states, outputs = super().__call__(carry[0], **inputs)
        return (states, carry[1] + 1), outputs


class Diverging(NextCharacter):
    """A task whose training loss is NaN from step 12 on."""

    def build(self, rngs):
        return Counting(len(self.known["vocabulary"]), 4, 8, rngs=rngs)

    def loss(self, model, carry, batch, rngs):
        loss, after = super().loss(model, carry, batch, rngs)
        taken = carry[1] + 1  # not reset at the start of a row
        return jnp.where(taken[0] >= 12, jnp.nan, loss), (after[0], taken)


def test_nonfinite_loss_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "next_character", f"{__name__}.Diverging")
    config = write_config(tmp_path)
    for attempt in range(2):
        report = Listener()
        with pytest.raises(UserError) as caught:
            train(config, tmp_path / "run", report)
        message = str(caught.value)
        assert "step 12" in message and "not finite" in message and "\n" not in message
        assert report.steps[-1] == 11
        if attempt == 0:  # step 8: the first evaluation is the best so far
            assert "that of step 8" in message
    assert {"7", "8"} == {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    model, step = best_model(config, config.build_task(), tmp_path / "run")
    assert step == 8
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params_of(model.module)))


class Unsound(NextCharacter):
    """A task whose validation loss is NaN from the second evaluation of a process on."""

    evaluations = 0

    def evaluate(self, model, split):
        type(self).evaluations += 1
        metrics = super().evaluate(model, split)
        return {**metrics, "loss": math.nan} if type(self).evaluations == 2 else metrics


def test_nonfinite_validation_loss_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "next_character", f"{__name__}.Unsound")
    monkeypatch.setattr(Unsound, "evaluations", 0)
    config = write_config(tmp_path, train__checkpoint_every=8)
    with pytest.raises(UserError, match=r"step 16.*not finite"):
        train(config, tmp_path / "run", Listener())
    assert best_model(config, config.build_task(), tmp_path / "run")[1] == 8


class Immeasurable(NextCharacter):
    """A task with a NaN metric in one split."""

    split = ""

    def evaluate(self, model, split):
        metrics = {"loss": 1.0, "accuracy": 1.0}
        return {**metrics, "accuracy": math.nan} if split == type(self).split else metrics


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("validation", "step 2: validation accuracy nan: not finite"),
        ("test", "test split: accuracy: expected a finite number, got nan"),
    ],
)
def test_nonfinite_metrics_are_rejected(tmp_path, monkeypatch, split, message):
    monkeypatch.setitem(TASKS, "next_character", f"{__name__}.Immeasurable")
    monkeypatch.setattr(Immeasurable, "split", split)
    monkeypatch.setattr(Immeasurable, "splits", ("validation", "test"))
    config = write_config(tmp_path, train__num_steps=2)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", Listener())
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_learning_rate_far_too_high(tmp_path):
    """Even if training diverges, the remaining checkpoints contain finite parameters."""
    config = write_config(
        tmp_path,
        optimizer__name="sgd",
        optimizer__schedule="constant",
        optimizer__learning_rate=1e38,
        optimizer__warmup_steps=0,
        optimizer__max_norm=0,
        train__checkpoint_every=1,
        train__num_steps=50,
        train__keep_checkpoints=1,
    )
    with pytest.raises(UserError, match=r"step \d+.*not finite"):
        train(config, tmp_path / "run", Listener())
    model, _ = best_model(config, config.build_task(), tmp_path / "run")
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params_of(model.module)))


def test_bfloat16_trains_and_keeps_float32_parameters(tmp_path):
    config = write_config(tmp_path, model__dtype="bfloat16", train__num_steps=8)
    results = train(config, tmp_path / "run", Listener())
    model, _ = best_model(config, config.build_task(), tmp_path / "run")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params_of(model.module))} == {"float32"}
    assert 1.0 < results["validation"]["loss"] < 4.0


# ---- longer runs, other starts, early ends ----


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """A run of 24 steps with a constant learning rate."""
    folder = tmp_path_factory.mktemp("longer")
    config = write_config(folder, optimizer__schedule="constant")
    train(config, folder / "run", Listener())
    return config, folder / "run"


def last_state(workdir, step):
    """The digest of the last checkpoint's arrays."""
    meta = (workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text("utf-8")
    return json.loads(meta)["digest"]


def test_finished_run_can_be_extended(longer, tmp_path):
    """Its parameters equal, bit for bit, those of a run with this length from the start."""
    config, workdir = longer
    changed = {"train": dataclasses.replace(config.train, num_steps=30)}
    config = dataclasses.replace(config, **changed)
    shutil.copytree(workdir, tmp_path / "extended")
    report = Listener()
    train(config, tmp_path / "extended", report)
    assert report.steps == list(range(25, 31))
    assert load_workdir(tmp_path / "extended") == config
    train(config, tmp_path / "whole", Listener())
    assert last_state(tmp_path / "extended", 30) == last_state(tmp_path / "whole", 30)


def test_runs_that_cannot_be_extended(longer, whole, tmp_path):
    config, workdir, *_ = whole
    longer_train = dataclasses.replace(config.train, num_steps=30)
    with pytest.raises(UserError, match=r"^train.num_steps: expected 24, where the cosine") as got:
        train(dataclasses.replace(config, train=longer_train), workdir, Listener())
    assert "\n" not in str(got.value)
    config, workdir = longer
    shorter = dataclasses.replace(config.train, num_steps=10)
    with pytest.raises(UserError, match=r"train.num_steps \(24 in the folder, 10 requested\)"):
        train(dataclasses.replace(config, train=shorter), workdir, Listener())
    also_other = dataclasses.replace(config.train, num_steps=30, seed=1)
    with pytest.raises(UserError, match=r"train.seed \(0 in the folder, 1 requested\)"):
        train(dataclasses.replace(config, train=also_other), workdir, Listener())
    assert load_workdir(workdir) == config


def test_training_starts_from_the_parameters_of_another_run(whole, tmp_path):
    source = shutil.copytree(whole[1], tmp_path / "source")
    # One step that leaves the parameters as they are. A moving average would round them.
    config = write_config(
        tmp_path,
        train__init_from=source,
        optimizer__learning_rate=1e-30,
        optimizer__ema_decay=0,
        train__num_steps=1,
    )
    report = Listener()
    results = train(config, tmp_path / "run", report)
    known = json.loads((source / "results.json").read_text("utf-8"))["validation"]
    assert results["validation"] == known
    assert any(said.startswith(f"starting from {source}: ") for said in report.said)
    assert not report.warned
    shutil.rmtree(source)  # needed only once
    assert train(config, tmp_path / "run", Listener()) == results


def test_incompatible_parameters_are_listed(whole, tmp_path):
    _, workdir, *_ = whole
    report = Listener()
    config = write_config(
        tmp_path, train__init_from=workdir, model__hidden_size=12, train__num_steps=1
    )
    train(config, tmp_path / "run", report)
    new, left_out = report.warned
    assert "train.init_from: new: " in new and "lstm.layer_0.w_hh (12, 48) ((8, 32) there)" in new
    assert left_out.startswith("train.init_from: left out: ") and "layer_0.w_hh" in left_out
    with pytest.raises(UserError, match=r"^train.init_from: .*no run here"):
        train(write_config(tmp_path, train__init_from=tmp_path), tmp_path / "other", Listener())
    assert not (tmp_path / "other").exists()


def test_different_vocabulary_is_reported(whole, tmp_path):
    """Embeddings of the same number of characters match in shape, but not in meaning."""
    _, workdir, *_ = whole
    text = (workdir.parent / "text.txt").read_text("utf-8")
    (tmp_path / "text.txt").write_text(text.replace("q", "z").replace("z", "ß"), "utf-8")
    report = Listener()
    config = write_config(tmp_path, train__init_from=workdir, train__num_steps=1)
    train(config, tmp_path / "run", report)
    assert any("has other metadata: vocabulary" in warned for warned in report.warned)


class Worse(NextCharacter):
    """A task whose validation loss is lowest at the second evaluation of a process."""

    losses = iter(())

    def evaluate(self, model, split):
        return {**super().evaluate(model, split), "loss": next(self.losses)}


def test_patience_ends_a_run_early(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "next_character", f"{__name__}.Worse")
    # The last value belongs to the best checkpoint in results.json.
    monkeypatch.setattr(Worse, "losses", iter([3.0, 1.0, 2.0, 1.0, 1.0]))
    config = write_config(tmp_path, train__eval_every=3, train__patience=2)
    report = Listener()
    train(config, tmp_path / "run", report)
    assert report.steps[-1] == 12
    assert any("stopped early after step 12" in said for said in report.said)
    assert {"6", "12"} <= {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))["step"] == 6

    monkeypatch.setattr(Worse, "losses", iter([1.0]))
    again = Listener()
    train(config, tmp_path / "run", again)  # training does not continue
    assert again.steps == []


def test_averaging_begins_when_the_validation_loss_does_not_fall(tmp_path, monkeypatch):
    """The loss exceeds the lowest loss of more than one evaluation earlier; also if resumed."""
    monkeypatch.setitem(TASKS, "next_character", f"{__name__}.Worse")
    values = {"train__eval_every": 3, "optimizer__average_patience": 1, "optimizer__ema_decay": 0.0}
    config = write_config(tmp_path, **values)
    losses = [3.0, 1.0, 2.0, 1.5, 1.0, 1.0, 1.0, 1.0]  # 1.5 after step 12 is above 1.0
    monkeypatch.setattr(Worse, "losses", iter([*losses, 0.0]))
    report = Listener()
    train(config, tmp_path / "whole", report)
    begun = [said for said in report.said if said.startswith("averaging")]
    assert begun == ["averaging of parameters begins after step 12"]
    for stop, left in ((11, losses[3:]), (14, losses[4:])):
        monkeypatch.setattr(Worse, "losses", iter([*losses, 0.0]))
        folder = tmp_path / f"stopped_{stop}"
        with pytest.raises(Stopped):
            train(config, folder, Listener(killer(signal.SIGINT, stop)))
        monkeypatch.setattr(Worse, "losses", iter([*left, 0.0]))
        train(config, folder, Listener())
        assert files(folder) == files(tmp_path / "whole")
        assert final_meta(folder) == final_meta(tmp_path / "whole")


def test_patience_needs_a_validation_split(tmp_path, monkeypatch):
    monkeypatch.setattr(NextCharacter, "splits", ())
    config = write_config(tmp_path, train__patience=2)
    with pytest.raises(UserError, match=r"^train.patience: expected 0, got 2: there is no valid"):
        train(config, tmp_path / "run", Listener())
    values = {"optimizer__average_patience": 3, "optimizer__ema_decay": 0.0}
    with pytest.raises(UserError, match=r"^optimizer.average_patience: expected 0, got 3: there"):
        train(write_config(tmp_path, **values), tmp_path / "run", Listener())
    with pytest.raises(UserError, match=r"^optimizer.average_patience: expected 0 with .* 0.9, "):
        write_config(tmp_path, optimizer__average_patience=3)
    assert not (tmp_path / "run").exists()


def test_accumulated_batches_resume_bit_for_bit_and_callbacks_see_every_line(tmp_path):
    config = write_config(tmp_path, train__accumulate=3, train__num_steps=6, train__log_every=2)
    seen = []
    train(config, tmp_path / "whole", Listener(), callbacks=[lambda *line: seen.append(line)])
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    named = [{"step": step, **metrics} for step, metrics in seen]
    assert [line for line in named if "characters per second" not in line] == lines
    assert sum("characters per second" in line for line in named) == 3

    with pytest.raises(Stopped):
        train(config, tmp_path / "stopped", Listener(killer(signal.SIGTERM, 3)))
    train(config, tmp_path / "stopped", Listener())
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert last_state(tmp_path / "stopped", 6) == last_state(tmp_path / "whole", 6)
