"""Compares an LSTM and a Transformer of the same size as translators and as language models.

    python experiments/transformer/compare.py train runs/transformer     # hours; resumes
    python experiments/transformer/compare.py steps runs/transformer     # a few minutes
    python experiments/transformer/compare.py streamed runs/transformer  # a minute
    python experiments/transformer/compare.py tables runs/transformer

``train`` trains both kinds of model on both tasks with 1, 10 and 100 % of the training data, for
every dropout rate of a grid. Names of runs after the folder restrict it to these
runs. ``steps`` times training steps and asks the compiler for their memory. ``streamed`` times a
single streamed step as a function of the number of positions that it reads. ``tables`` prints the
available results as Markdown, for docs/transformer.md, and plots transformer.png into the folder.
It reports the point of the grid that is best on the validation split.
"""

import itertools
import json
import pathlib
import sys
import time
from typing import NamedTuple

import measure
import tables

import lstm_jax
from lstm_jax.config import Config
from lstm_jax.data import cut_text, fetch, read_lines, read_text
from lstm_jax.train import load_config, train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
KINDS = {
    "translation": {"LSTM": "multi30k", "Transformer": "multi30k_transformer"},
    "characters": {"LSTM": "tiny_shakespeare", "Transformer": "tiny_shakespeare_transformer"},
}
SHARES = (0.01, 0.1, 1.0)
STEPS = {  # for each fraction of the data; the best checkpoint is used
    "translation": {0.01: 200, 0.1: 900, 1.0: 9000},
    "characters": {0.01: 60, 0.1: 245, 1.0: 4900},
}
EVALUATIONS = {"translation": 2, "characters": 6}
RATES = {"translation": 2e-3, "characters": 3e-3}  # those of the configs
DROPOUTS = (0.2, 0.3, 0.5)
SIDES = {"source": "en", "target": "de"}


class Run(NamedTuple):
    """A point of the grid."""

    task: str
    kind: str
    share: float
    learning_rate: float
    dropout: float
    seed: int = 0

    @property
    def name(self) -> str:
        return "_".join(map(str, self))

    @classmethod
    def named(cls, name: str) -> "Run":
        task, kind, *numbers, seed = name.split("_")
        return cls(task, kind, *map(float, numbers), int(seed))


GRID = itertools.product(KINDS, KINDS["translation"], SHARES, DROPOUTS)
RUNS = [Run(task, kind, share, RATES[task], dropout) for task, kind, share, dropout in GRID]


def data_of(folder: pathlib.Path, task: str, share: float) -> dict[str, object]:
    """Config values for the first ``share`` of the training data and all validation data."""
    folder.mkdir(parents=True, exist_ok=True)
    if task == "characters":
        training, validation = cut_text(read_text(fetch("tiny_shakespeare/input.txt")), 0.1)
        text = training[: round(share * len(training))] + validation
        path = folder / f"text_{share:g}.txt"
        path.write_text(text, "utf-8")
        return {"data.text": path, "data.validation_fraction": len(validation) / len(text)}
    values: dict[str, object] = {}
    for side, language in SIDES.items():
        lines = read_lines(fetch(f"multi30k/train.{language}.gz"))
        path = folder / f"pairs_{share:g}.{language}"
        path.write_text("\n".join(lines[: round(share * len(lines))]) + "\n", "utf-8")
        values[f"data.{side}"] = path
        for split, part in (("validation", "val"), ("test", "test_2016_flickr")):
            values[f"data.{split}_{side}"] = fetch(f"multi30k/{part}.{language}.gz")
    return values


def config_of(task: str, kind: str, values: dict[str, object]) -> Config:
    changes = {key: str(value) for key, value in values.items()}
    return load_config(CONFIGS / f"{KINDS[task][kind]}.toml", changes)


def train_one(folder: pathlib.Path, run: Run) -> None:
    steps, began = STEPS[run.task][run.share], time.perf_counter()
    warmup = config_of(run.task, run.kind, {}).optimizer.warmup_steps
    values = data_of(folder, run.task, run.share) | {
        "optimizer.learning_rate": run.learning_rate,
        "optimizer.warmup_steps": min(warmup, steps // 5),
        "model.dropout": run.dropout,
        "train.seed": run.seed,
        "train.num_steps": steps,
        "train.eval_every": steps // EVALUATIONS[run.task],
        "train.sample_length": 0,
    }
    workdir = folder / run.name
    if (workdir / "results.json").exists():
        return
    train(config_of(run.task, run.kind, values), workdir)
    seconds = round(time.perf_counter() - began, 1)
    (workdir / "seconds.json").write_text(json.dumps(seconds), "utf-8")


def main(command: str, folder: pathlib.Path, names: list[str]) -> None:
    print(lstm_jax.tune_cpu())
    lstm_jax.tune.cache_compiled()
    if command == "train":
        for run in map(Run.named, names) if names else RUNS:
            train_one(folder, run)
    elif command == "tables":
        tables.write(folder, RUNS)
    else:
        measure.write(command, folder, KINDS, config_of)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:])
