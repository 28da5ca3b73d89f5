"""Compares an LSTM and a Transformer of the same size as language models of one text.

    python experiments/transformer/compare.py streamed runs/transformer  # a minute
    python experiments/transformer/compare.py steps runs/transformer     # a few minutes
    python experiments/transformer/compare.py train runs/transformer     # hours; resumes
    python experiments/transformer/compare.py tables runs/transformer

``streamed`` times a single step whose carry passes from one to the next, by the positions that it
reads.  ``steps`` times training steps and asks the compiler for their memory.  ``train`` trains
both at 1, 10 and 100 % of the training text.  ``tables`` prints what is there as Markdown, for
docs/transformer.md, and draws transformer.png into the folder.
"""

import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

import lstm_jax
from lstm_jax.config import Config
from lstm_jax.data import cut_text, fetch, read_text
from lstm_jax.models import Compiled
from lstm_jax.train import load_config, train
from lstm_jax.train.programs import own_programs

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
KINDS = {"LSTM": "tiny_shakespeare", "Transformer": "tiny_shakespeare_transformer"}
SHARES = (0.01, 0.1, 1.0)
LENGTHS = (64, 256, 1024, 4096)  # positions that the Transformer attends to
STEPS = {0.01: 300, 0.1: 1000, 1.0: 2450}  # both kinds at a share; the best checkpoint counts
SEEDS = range(3)


def text_file(folder: pathlib.Path, share: float) -> tuple[pathlib.Path, float]:
    """The first ``share`` of the training text and the whole validation text; its fraction."""
    training, validation = cut_text(read_text(fetch("tiny_shakespeare/input.txt")), 0.1)
    text = training[: round(share * len(training))] + validation
    path = folder / f"text_{share:g}.txt"
    path.write_text(text, "utf-8")
    return path, len(validation) / len(text)


def config_of(kind: str, **values: object) -> Config:
    changes = {key.replace("__", "."): str(value) for key, value in values.items()}
    return load_config(CONFIGS / f"{KINDS[kind]}.toml", changes)


# ---- what takes minutes ----


def steps(kind: str) -> dict[str, object]:
    """Parameters, time and memory of a training step."""
    config = config_of(kind)
    task = config.build_task()
    programs = own_programs(config, task)
    state = programs.new_state()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    batches = iter(task.batches(0).to_iter_dataset())
    first = next(batches)
    memory = programs.take_step.lower(state, first).compile().memory_analysis()
    times = []
    for _ in range(8):
        batch, began = next(batches), time.perf_counter()
        state, metrics = programs.take_step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    step = statistics.median(times[2:])
    characters = len(cut_text(task.text, config.data.validation_fraction)[0])
    return {
        "parameters": parameters,
        "seconds of a training step": step,
        "seconds of an epoch": step * characters / task.units_per_step,
        "MB of a training step": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 1e6,
    }


def streamed(kind: str) -> dict[str, object]:
    """Time of a streamed step and size of the carry, by the positions that a step reads."""
    result = {}
    for length in LENGTHS if kind == "Transformer" else LENGTHS[:1]:
        options = {"model__context": length} if kind == "Transformer" else {}
        model = Compiled(config_of(kind, **options).model.build(65, nnx.Rngs(0)))
        carry = model.initial_carry(1)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
        token, times = np.zeros((1, 1), np.int32), []
        for _ in range(300):
            began = time.perf_counter()
            carry, _ = jax.block_until_ready(model(carry, tokens=token))
            times.append(time.perf_counter() - began)
        result[str(length)] = {
            "milliseconds": 1e3 * statistics.median(times[50:]),
            "kB of the carry": size / 1e3,
        }
    return result


def measure(function: Callable[[str], dict[str, object]], folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = {kind: function(kind) for kind in KINDS}
    path = folder / f"{function.__name__}.json"
    path.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


# ---- what takes hours ----


def run_folder(folder: pathlib.Path, kind: str, share: float, seed: int) -> pathlib.Path:
    return folder / f"{kind}_{share:g}_{seed}"


def train_all(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for share in SHARES:
        path, fraction = text_file(folder, share)
        for seed in SEEDS:
            for kind in KINDS:
                config = config_of(
                    kind, data__text=path, data__validation_fraction=fraction, train__seed=seed,
                    train__num_steps=STEPS[share], train__eval_every=max(50, STEPS[share] // 10),
                )  # fmt: skip
                train(config, run_folder(folder, kind, share, seed))


# ---- tables ----


def losses(folder: pathlib.Path, kind: str, share: float) -> list[float]:
    """The validation losses of the finished runs of all seeds."""
    files = [run_folder(folder, kind, share, seed) / "results.json" for seed in SEEDS]
    return [json.loads(file.read_text())["validation"]["loss"] for file in files if file.exists()]


def print_table(*rows: list[str]) -> None:
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print("|", " | ".join(row), "|")
    print()


def tables(folder: pathlib.Path) -> None:
    quality = [[kind, *(_mean(losses(folder, kind, share)) for share in SHARES)] for kind in KINDS]
    if any(cell for row in quality for cell in row[1:]):
        print_table(["validation loss at", *(f"{share:.0%}" for share in SHARES)], *quality)
    if (file := folder / "steps.json").exists():
        found = json.loads(file.read_text())
        _, *names = found["LSTM"]
        rows = [
            [kind, f"{values['parameters']:,}", *(f"{values[name]:,.4g}" for name in names)]
            for kind, values in found.items()
        ]
        print_table(["", "parameters", *names], *rows)
    if not (file := folder / "streamed.json").exists():
        return
    found = json.loads(file.read_text())
    rows = [
        [f"{kind}, {length} positions" if kind == "Transformer" else f"{kind}, any number",
         f"{values['milliseconds']:.3f}", f"{values['kB of the carry']:,.0f}"]
        for kind in KINDS
        for length, values in found[kind].items()
    ]  # fmt: skip
    print_table(["a streamed step", "milliseconds", "kB of the carry"], *rows)
    plot(found, folder / "transformer.png")


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def plot(found: dict, path: pathlib.Path) -> None:
    """Time of a streamed step over the positions that it reads."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    points = found["Transformer"]
    axes.plot([int(n) for n in points], [v["milliseconds"] for v in points.values()], "o-")
    flat = found["LSTM"][str(LENGTHS[0])]["milliseconds"]
    axes.axhline(flat, color="C1")
    axes.legend(["Transformer", "LSTM"], frameon=False)
    axes.set(xscale="log", xlabel="positions that a step reads", ylabel="ms per streamed step")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    print(lstm_jax.tune_cpu())
    lstm_jax.tune.cache_compiled()
    commands = {
        "streamed": functools.partial(measure, streamed),
        "steps": functools.partial(measure, steps),
        "train": train_all,
        "tables": tables,
    }
    commands[sys.argv[1]](pathlib.Path(sys.argv[2]))
