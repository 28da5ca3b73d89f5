"""Damaged run folders: resumed to the same bits, or a one-line error.

``pytest tests/robustness --fuzz 2000 -s`` tries a quarter as many of each kind, since each takes a
tenth of a second, and prints how many.
"""

import contextlib
import io
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from lstm_jax.config import load_config
from lstm_jax.errors import UserError
from lstm_jax.train import Report, Stopped, load_run, load_workdir
from lstm_jax.train.checkpoint import Checkpoints
from lstm_jax.train.compare import runs_in
from lstm_jax.train.loop import run_steps, write_results
from lstm_jax.train.optimizer import build_optimizer
from lstm_jax.train.programs import own_programs
from lstm_jax.train.step import abstract_state
from lstm_jax.train.workdir import claimed
from tests.robustness import hostile, hostile_configs

CONFIG = """
task = "next_character"
[data]
text = "text.txt"
lanes = 2
window = 4
validation_fraction = 0.05
[model]
hidden_size = 3
embedding_size = 2
dropout = 0.2
[optimizer]
warmup_steps = 0
[train]
num_steps = 6
log_every = 1
eval_every = 2
checkpoint_every = 2
num_devices = 1
seed = {seed}
sample_length = 0
"""


class Runs(NamedTuple):
    """Folders to damage, and their results without damage.

    Attributes:
      stopped: a run that was stopped after 4 of 6 steps.
      finished: the same, resumed to its end.
      other: a finished run with another seed.
      resume: takes the remaining steps in a folder; returns its messages.
    """

    stopped: pathlib.Path
    finished: pathlib.Path
    other: pathlib.Path
    resume: Callable[[pathlib.Path], str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("the quick brown fox\n" * 20, "utf-8")
    programs, tasks = {}, {}

    def resume(workdir, config=None, stop=None):
        config = config or load_workdir(workdir)
        if config not in programs:  # compiled once for all inputs
            tasks[config] = config.build_task()
            made = own_programs(config, tasks[config])
            first = jax.tree.map(np.asarray, made.new_state())
            shardings = jax.tree.map(lambda leaf: leaf.sharding, made.new_state())
            programs[config] = made._replace(new_state=lambda: jax.device_put(first, shardings))
        task, output, came = tasks[config], io.StringIO(), []
        report = Report(Console(file=output, width=10_000))
        stopping = [lambda step, metrics: came.append(2) if step == stop else None]
        with claimed(workdir, config, task.known):
            run_steps(config, task, workdir, report, programs[config], came, None, stopping)
        return output.getvalue()

    for seed in (0, 1):
        path = folder / f"{seed}.toml"
        path.write_text(CONFIG.format(seed=seed), "utf-8")
        config = load_config(path)
        with pytest.raises(Stopped):
            resume(folder / f"run {seed}", config, stop=4)
        shutil.copytree(folder / f"run {seed}", folder / f"stopped {seed}")
        resume(folder / f"run {seed}")
        run = load_run(folder / f"run {seed}")
        write_results(run.task, run.model, run.step, run.folder)
    return Runs(folder / "stopped 0", folder / "run 0", folder / "run 1", resume)


# ---- checks ----


def state_of(workdir: pathlib.Path, step: int) -> list[tuple[str, str, bytes]]:
    """Names, types and bytes of the arrays of a checkpoint, read by Orbax without our reader."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore((workdir / "checkpoints" / str(step) / "state").absolute())
    return [
        (jax.tree_util.keystr(path), str(leaf.dtype), np.asarray(leaf).tobytes())
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def lines_of(workdir: pathlib.Path) -> list[Any]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def resumed_to_the_same_end(runs):
    expected, lines = state_of(runs.finished, 6), lines_of(runs.finished)

    def check(folder, printed):
        assert state_of(folder, 6) == expected, "other parameters"
        found = lines_of(folder)
        assert found == lines or "warning: " in printed, "other metrics without a warning"
        assert all(line in lines for line in found[-2:]), "other last metrics"

    return check


def same_model(runs):
    best, params = load_run(runs.finished), {}

    def check(folder, run):
        if run.step not in params:  # read from the whole folder
            checkpoints = Checkpoints(runs.finished / "checkpoints", keep=2)
            with contextlib.closing(checkpoints):
                like = abstract_state_of(best)
                params[run.step] = bits(checkpoints.restore(run.step, like)[0].evaluated)
        assert params_of(run) == params[run.step], "other parameters"
        assert run.task.known == best.task.known and run.config == best.config
        if (folder / "checkpoints" / str(best.step)).exists():
            assert run.step == best.step, "not the best"

    return check


def abstract_state_of(run):
    optimizer = build_optimizer(run.config.optimizer, lambda step: 0.0)
    like = abstract_state(run.task, optimizer, run.config.optimizer.ema_decay > 0)[1]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), like)


def params_of(run) -> list[tuple[str, bytes]]:
    return bits(nnx.to_pure_dict(nnx.state(run.model.module, nnx.Param)))


def bits(tree) -> list[tuple[str, bytes]]:
    leaves = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), np.asarray(leaf).tobytes()) for path, leaf in leaves]


def same_comparison(runs):
    """Compares contents: the files have no digests, so a changed digit is not detected."""
    [expected] = runs_in([runs.finished])

    def check(folder, found):
        [run], warnings = found
        assert run.config == expected.config
        path = folder / "metrics.jsonl"
        rows = path.read_bytes().split(b"\n") if path.exists() else []
        whole = [metrics_of(row) for row in rows]
        assert run.lines == [line for line in whole if line]
        assert warnings or all(whole[:-1]), "lines are left out without a warning"
        path = folder / "results.json"
        held = json.loads(path.read_bytes()) if path.exists() else {}
        held.pop("step", None)
        assert run.results == {
            f"{s}/{n}": x for s, metrics in held.items() for n, x in metrics.items()
        }

    return check


def metrics_of(row: bytes) -> dict[str, Any] | None:
    """A step and metrics, or nothing."""
    try:
        line = json.loads(row)
        step = line.pop("step")
        assert isinstance(step, int) and not isinstance(step, bool) and line
        assert all(type(x) in (int, float) and float(x) is not None for x in line.values())
        return {"step": step, **line}
    except (
        ValueError,
        AssertionError,
        AttributeError,
        KeyError,
        TypeError,
        RecursionError,
        OverflowError,
    ):
        return None


# ---- damage ----

NAMES = [
    "7", "x", "4.orbax-checkpoint-tmp-1", "04", "-1", "9" * 30, "²", "a\nb", ".x", "6.bak",
]  # fmt: skip

LINES = [
    b"5", b"null", b'{"step": null}', b'{"step": 1e400}', b"\xff\xfe", b"[" * 10**5, b"{}",
    b'{"step": 2, "validation/loss": NaN}', b'{"step": 99999}', b'{"step": 3}',
    b'{"step": 1, "x": ""}',
]  # fmt: skip
"""Of ``metrics.jsonl``."""


def damaged(rng, folder: pathlib.Path, other: pathlib.Path) -> None:
    """A run folder in which something is changed, removed, added or exchanged."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    own = [path for path in files if "checkpoints" not in path.parts]
    path = rng.choice(own if rng.random() < 0.5 else files)
    steps = sorted((folder / "checkpoints").iterdir())
    what = rng.randrange(15)
    if what <= 3:
        path.write_bytes(hostile.mutated_bytes(rng, path.read_bytes()))
    elif what == 4:
        path.unlink()
    elif what == 5:
        path.write_bytes(
            rng.choice([b"", b"\0" * 100, b"{}", b"[]", b"null", b"\xff", b"[" * 10**5])
        )
    elif what == 6:
        path.unlink()
        path.mkdir()
    elif what == 7:
        path.write_bytes(rng.choice(files).read_bytes())
    elif what == 8:
        json_files = [each for each in files if each.suffix == ".json" or each.name == "metadata"]
        path = rng.choice(json_files)
        changed = hostile.mutated_json(rng, json.loads(path.read_bytes()))
        path.write_text(json.dumps(changed), "utf-8")
    elif what == 9:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")
        for _ in range(rng.choice([1, 1, 3])):
            line = rng.choice(LINES)
            n = rng.randrange(len(lines))
            lines[n : n + rng.choice([0, 1])] = [line]
        (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))
    elif what == 10:
        one, two = rng.choice(steps), rng.choice(steps)
        if one != two:
            part = folder / "part"
            one.rename(part)
            two.rename(one)
            part.rename(two)
    elif what == 11:
        shutil.rmtree(rng.choice([*steps, folder / "checkpoints"]))
    elif what == 12:
        name = folder / "checkpoints" / rng.choice(NAMES)
        if rng.random() < 0.5:
            name.mkdir(exist_ok=True)
        elif not name.exists():
            name.write_bytes(b"x")
    elif what == 13:
        path = folder / "config.toml"
        text = hostile_configs.mutated_config(rng, path.read_text("utf-8"))
        path.write_text(text, "utf-8", "surrogatepass")
    else:  # from another run of the same sizes
        at = rng.choice([path.relative_to(folder), *(step.relative_to(folder) for step in steps)])
        source, target = other / at, folder / at
        if source.is_dir():
            shutil.rmtree(target)
            shutil.copytree(source, target)
        elif source.exists():
            shutil.copy(source, target)


def one_line_of_the_system(read):
    """The command line's message for an error of the file system."""

    def reading(path):
        try:
            return read(path)
        except OSError as error:
            assert error.filename, error
            raise UserError(f"{error.filename}: {error.strerror}") from error

    return reading


def comparing(path):
    warnings = []
    return runs_in([path], warnings.append), warnings


KINDS = {
    "resumed run": ("stopped", lambda runs: runs.resume, resumed_to_the_same_end),
    "run to predict with": ("finished", lambda runs: load_run, same_model),
    "run to compare": ("finished", lambda runs: comparing, same_comparison),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_runs(kind, runs, tmp_path, fuzz_budget):
    source, reader, checker = KINDS[kind]

    def make(rng):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(getattr(runs, source), folder)
        for _ in range(rng.choice([1, 1, 1, 2])):
            with contextlib.suppress(OSError, ValueError):  # after other damage
                damaged(rng, folder, runs.other)
        return folder

    outcomes = hostile.tried(
        kind, max(1, fuzz_budget // 4), make, one_line_of_the_system(reader(runs)), checker(runs),
        around=hostile.limited,
    )  # fmt: skip
    assert outcomes["read"] and outcomes["rejected"]


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_runs(kind, runs, tmp_path):
    source, reader, checker = KINDS[kind]
    shutil.copytree(getattr(runs, source), tmp_path / "whole")
    read, check = reader(runs), checker(runs)
    assert hostile.attempt(tmp_path / "whole", read, check, around=hostile.limited) == "read"
