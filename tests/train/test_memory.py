"""The memory estimate: at most what XLA reports, and a one-line error if memory is too small."""

import json
import pathlib
import re
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest

from lstm_jax.cli import main
from lstm_jax.config import config_from
from lstm_jax.errors import UserError
from lstm_jax.tasks import NextCharacter
from lstm_jax.train import memory, train
from lstm_jax.train.loop import own_programs
from lstm_jax.train.memory import Need, available_bytes, keys_to_lower, live_bytes, needed_by

TEXT = "the quick brown fox jumps over the lazy dog\n" * 40


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "text.txt").write_text(TEXT, "utf-8")
    rows = [f"{t},{x},{y}" for t, (x, y) in enumerate(rng.normal(5, 2, (300, 2)).tolist())]
    (folder / "table.csv").write_text("\n".join(["time,a,b", *rows]), "utf-8")
    np.savez(folder / "xs.npz", xs=rng.normal(size=(40, 30, 3)), labels=np.arange(40) % 2)
    return folder


CONFIGS = {
    "characters": ("next_character", {"data.lanes": 8, "data.window": 64}),
    "accumulated": (
        "next_character", {"data.lanes": 8, "data.window": 64, "train.accumulate": 3},
    ),
    "three layers": (
        "next_character", {"data.lanes": 8, "data.window": 64, "model.num_layers": 3},
    ),
    "not clipped": (
        "next_character", {"data.lanes": 8, "data.window": 8, "optimizer.max_norm": 0},
    ),
    "parallel": (
        "next_character", {"data.lanes": 8, "data.window": 64, "model.cell": "min_lstm"},
    ),
    "regularised": (
        "next_character",
        {"data.lanes": 8, "data.window": 64, "model.cell": "zoneout(gru, hidden_rate=0.1)"},
    ),
    "forecasts": (
        "forecasting",
        {"data.window": 96, "data.horizon": 8, "model.segment": 4, "data.batch_size": 16},
    ),
    "classes": ("classification", {"data.batch_size": 16}),
}  # fmt: skip


def config(files, name: str, **changed):
    task, values = CONFIGS[name]
    values = {"model.hidden_size": 32, "train.num_devices": 1, **values, **changed}
    data = {
        "next_character": {"data.text": files / "text.txt"},
        "forecasting": {
            "data.table": files / "table.csv", "data.train_rows": 200,
            "data.validation_rows": 50, "data.test_rows": 50,
        },
        "classification": {"data.train": files / "xs.npz"},
    }[task]  # fmt: skip
    texts = {key: str(value) for key, value in {**data, **values}.items()}
    return config_from({"task": task}, "test", texts)


def need_of(chosen) -> Need:
    task = chosen.build_task()
    return needed_by(chosen, task, own_programs(chosen, task))


@pytest.mark.parametrize("name", CONFIGS)
def test_estimate_is_below_the_memory_that_xla_uses(name, files):
    """XLA counts arguments, outputs and temporary buffers of the compiled step."""
    chosen = config(files, name)
    task = chosen.build_task()
    programs = own_programs(chosen, task)
    need = needed_by(chosen, task, programs)
    state = programs.new_state()
    batch = jax.tree.map(
        lambda a: (
            np.zeros((chosen.train.accumulate, *a.shape), a.dtype).squeeze()
            if chosen.train.accumulate > 1
            else np.zeros(a.shape, a.dtype)
        ),
        task.batch_shapes(),
    )
    xla = programs.take_step.lower(state, batch).compile().memory_analysis()
    taken = (
        xla.argument_size_in_bytes + xla.output_size_in_bytes + xla.temp_size_in_bytes
        - xla.alias_size_in_bytes
    )  # fmt: skip
    assert need.total <= taken
    if name != "parallel":  # its values are not in a loop
        assert need.total >= 0.3 * taken


def test_batch_shapes_match_and_step_is_traced_once(files, monkeypatch):
    chosen, traced = config(files, "characters"), []
    loss = NextCharacter.loss
    monkeypatch.setattr(NextCharacter, "loss", lambda *args: traced.append(1) or loss(*args))
    task = chosen.build_task()
    programs = own_programs(chosen, task)
    needed_by(chosen, task, programs)
    assert traced == [1]
    rows = jax.sharding.NamedSharding(programs.mesh, jax.sharding.PartitionSpec("data"))
    state = programs.new_state()
    for n in range(2):
        state, _ = programs.take_step(state, jax.device_put(task.batches(0)[n], rows))
    assert traced == [1]


@pytest.mark.parametrize("name", ["characters", "forecasts", "classes"])
def test_shapes_of_batches(name, files):
    task = config(files, name).build_task()
    batch = {key: (np.shape(a), a.dtype) for key, a in task.batches(0)[0].items()}
    assert {key: (a.shape, a.dtype) for key, a in task.batch_shapes().items()} == batch


def test_values_not_live_together_are_not_added():
    """Two consecutive loops; the second needs only the sums of the first."""

    def step(h, x):
        h = jax.numpy.tanh(h + x)
        return h, h

    def f(xs):
        sums = jax.lax.scan(step, xs[0], xs)[1].sum()
        return jax.lax.scan(step, xs[0], xs * sums)[1].sum()

    def both(xs):
        one, two = (jax.lax.scan(step, xs[0], n * xs)[1] for n in (2, 3))
        return jax.lax.scan(step, xs[0], one * two)[1].sum()

    xs = jax.ShapeDtypeStruct((100, 8), "float32")
    size = 4 * 100 * 8
    # The product with the sums and the stacked outputs of the second loop; arguments do not count.
    assert live_bytes(jax.make_jaxpr(f)(xs).jaxpr)[0] == 2 * size
    # Either loop can be the first of the two: its inputs and outputs count, not those of both.
    assert live_bytes(jax.make_jaxpr(both)(xs).jaxpr)[0] == 2 * size


TOO_LARGE = {
    "features": ({"model.hidden_size": 100_000}, "state 480 GB", "lower model.hidden_size (1"),
    "embedding": ({"model.embedding_size": 10**6}, "gradients", "model.embedding_size (1000000)"),
    "layers": (
        {"model.hidden_size": 20_000, "model.num_layers": 4}, "state",
        "model.hidden_size (20000) or model.num_layers (4)",
    ),
    "cell": (
        {"model.hidden_size": 100_000, "model.cell": "projected(proj_size=8)"}, "state",
        "model.hidden_size (100000)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_LARGE)
def test_too_large_model_gives_one_line_and_claims_no_folder(name, files, monkeypatch):
    changed, part, keys = TOO_LARGE[name]
    most = 2**20 if name in ("embedding", "cell") else 2**34
    monkeypatch.setattr(memory, "available_bytes", lambda devices: (most, "a test's limit"))
    folder = files / "too large"
    with pytest.raises(UserError) as caught:
        train(config(files, "characters", **changed), folder)
    message = str(caught.value)
    assert message.startswith("out of memory: a training step needs at least ")
    assert part in message and keys in message and "a test's limit" in message
    assert not folder.exists()


def test_too_large_batch_gives_one_line(files):
    """Computed from shapes: no batch of 10**6 windows is created."""
    chosen = config(files, "forecasts", **{"data.batch_size": 10**6, "model.hidden_size": 2000})
    need = need_of(chosen)
    assert need.activations > 10**6 * 24 * 2000 * 4 > need.state
    assert "data.batch_size (1000000)" in keys_to_lower(chosen, need)
    accumulated = need_of(config(files, "characters", **{"train.accumulate": 10_000}))
    # Inputs and targets of int32, and one flag per row.
    assert accumulated.batch == 10_000 * (2 * 4 * 8 * 64 + 8)


def test_shapes_of_generated_and_repeated_batches(tmp_path):
    """Videos are cut from a file, and lanes repeat pieces: any number of rows is possible."""
    frames = np.random.default_rng(0).integers(0, 255, (6, 5, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "videos.npz", frames=frames)
    (tmp_path / "rolls.json").write_text(
        json.dumps({name: [[[60], [62, 64]]] * 2 for name in ("train", "valid", "test")})
    )
    cases = {
        "video": (
            {"data.videos": tmp_path / "videos.npz", "data.observed": 2, "data.horizon": 2},
            "batch_size",
        ),
        "music": ({"data.pieces": tmp_path / "rolls.json", "data.window": 4}, "lanes"),
    }
    for task, (values, rows) in cases.items():

        def made(count, task=task, values=values, rows=rows):
            values = {key: str(value) for key, value in values.items()}
            values |= {f"data.{rows}": str(count), "model.hidden_size": "3"}
            return config_from({"task": task}, "test", values, tmp_path)

        few = made(4).build_task()
        batch = {key: (np.shape(a), a.dtype) for key, a in few.batches(0)[0].items()}
        assert {key: (a.shape, a.dtype) for key, a in few.batch_shapes().items()} == batch
        with pytest.raises(UserError, match=rf"out of memory.*lower data.{rows} \(1000000000\)"):
            train(made(10**9), tmp_path / "run")
        assert not (tmp_path / "run").exists()


SENSELESS = {
    "speech": ("conv_features", 10**6),
    "handwriting": ("conv_features", 10**6),
    "video_classification": ("frame_features", 10**6),
    "music": ("interval_features", 10**6),
    "translation": ("beam_size", 10**6),
    "text_classification": ("embedding_size", 10**7),
    "time_series": ("samples", 10**6),
}
"""Sizes whose values outside loops, or in a search, are not part of the estimate."""


@pytest.mark.parametrize("task", SENSELESS)
def test_sizes_that_make_no_sense_are_rejected(task):
    key, size = SENSELESS[task]
    with pytest.raises(UserError, match=f"{key.replace('_', '-')}: expected .*at most"):
        config_from({"task": task}, "test", {f"model.{key}": str(size)})


def test_every_device_has_its_own_state(files):
    if len(jax.local_devices()) < 2:
        pytest.skip("needs two devices")
    one, two = (need_of(config(files, "characters", **{"train.num_devices": n})) for n in (1, 2))
    carry = 2 * 4 * 8 * 32  # h and c of 8 rows, divided among devices
    assert two.state - carry == 2 * (one.state - carry) and two.devices == 2


def test_sizes_in_words_and_keys_without_a_match():
    need = Need(10**9, 0, 0, 0, 1, (7, 11))
    chosen = config_from({"task": "classification"}, "test", {"model.hidden_size": "64"})
    assert str(need) == "1 GB (state 1 GB, batch 0 bytes, gradients 0 bytes, on 1 device(s))"
    assert keys_to_lower(chosen, need) == "the sizes in [model] and [data]"


# ---- the memory available ----


def machine(folder: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, "ascii")
    return folder


MEMINFO = "MemTotal: 9000 kB\nMemAvailable: 4000 kB\nSwapFree: 100 kB\nHugePages_Total: 0\n"


def test_memory_of_the_machine(tmp_path):
    root = machine(tmp_path, {"proc/meminfo": MEMINFO})
    assert memory._of_machine(root) == (1024 * 4100, "free memory and swap")
    assert memory._of_machine(tmp_path / "other")[0] == 2**63


def test_limits_of_control_groups(tmp_path):
    """Both versions, the group of the process and its ancestors; caches are reclaimable."""
    two = {
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/memory.max": "5000\n",
        "sys/fs/cgroup/user/memory.current": "3000\n",
        "sys/fs/cgroup/user/memory.stat": "anon 1\ninactive_file 500\nactive_file 100\n",
    }
    root = machine(tmp_path / "two", two)
    assert [size for size, _ in memory._of_control_groups(root)] == [2600]
    one = {
        "proc/self/cgroup": "11:cpu:/x\n4:memory:/job\n0::/\n",
        "proc/meminfo": MEMINFO,
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "900\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 150\n",
    }
    root = machine(tmp_path / "one", one)
    assert [size for size, _ in memory._of_control_groups(root)] == [50 + 1024 * 100]
    assert list(memory._of_control_groups(tmp_path / "none")) == []


def test_the_limit_of_the_address_space(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**50, resource.RLIM_INFINITY))
    size, source = memory._of_address_space()
    assert 0 < 2**50 - size < 2**45 and "ulimit -v" in source
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert memory._of_address_space()[0] == 2**63


def test_the_memory_of_an_accelerator():
    class Device:
        platform = "gpu"
        stats = None

        def memory_stats(self):
            return self.stats

    devices = [Device(), Device()]
    devices[0].stats = {"bytes_limit": 100, "bytes_in_use": 30}
    assert available_bytes(devices)[0] == 2**63
    devices[1].stats = {"bytes_limit": 100}
    assert available_bytes(devices)[0] == 2 * 70


LIMITED = """
import resource, sys
import lstm_jax.cli
free = 6 * 2**30
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + free, used + free))
sys.exit(lstm_jax.cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_ulimit_is_respected(files):
    """A limit set by ``ulimit -v``: one line, and another config can use the folder."""
    (files / "run.toml").write_text('task = "next_character"\n[data]\ntext = "text.txt"\n', "utf-8")
    words = ["--model.hidden-size", "20000", "--data.lanes", "4", "--data.window", "8"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "train", "run.toml", "--workdir", "run", *words],
        cwd=files, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(
        r"lstm-jax: error: out of memory: a training step needs at least \S+ GB \(.*\), \S+ GB are "
        r"available \(limit of the address space, ulimit -v\); lower model.hidden_size \(20000\)\n",
        done.stderr,
    )
    assert not (files / "run").exists()


# ---- failures that still happen ----


def test_failed_allocations_give_one_line(files, monkeypatch, capsys):
    """Failures of XLA and of NumPy during a command."""
    sizes = "lanes = 4\nwindow = 8\n"
    (files / "small.toml").write_text(
        f'task = "next_character"\n[data]\ntext = "text.txt"\n{sizes}', "utf-8"
    )
    command = ["train", str(files / "small.toml"), "--workdir", str(files / "small")]
    for allocate in (
        lambda *args: jax.numpy.zeros((2**25, 2**25)),
        lambda *args: np.zeros((2**25, 2**25)),
    ):
        monkeypatch.setattr("lstm_jax.train.loop.own_programs", allocate)
        assert main(command) == 1
        error = capsys.readouterr().err
        assert error.startswith("lstm-jax: error: out of memory (") and error.count("\n") == 1
        assert "lower the sizes in [model] and [data]" in error
    monkeypatch.setattr("lstm_jax.train.loop.own_programs", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(command)
