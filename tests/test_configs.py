"""Every config of the repository runs to its end with reduced sizes."""

import gzip
import itertools
import json
import pathlib
import sys
import tomllib

import pytest

from lstm_jax.cli import main
from lstm_jax.config.run import Config
from lstm_jax.data import NAMED_MUSIC, cache_folder, fetch, public_series, registry
from lstm_jax.data.skeletons import read_recordings as read_movements
from lstm_jax.data.transcripts import read_recordings as read_speech
from lstm_jax.tasks import action_data, speech_data
from lstm_jax.train import load_config, sections_for
from tests.ink import write_ink

CONFIGS = sorted(pathlib.Path(__file__).parents[1].glob("configs/*.toml"))
SMALL = {
    "next_character": {
        "data.lanes": 4,
        "data.window": 8,
        "model.hidden_size": 8,
        "model.embedding_size": 4,
        "train.sample_length": 8,
    },
    "forecasting": {
        "data.train_rows": 300,
        "data.validation_rows": 120,
        "data.test_rows": 120,
        "data.window": 96,
        "data.horizon": 24,
        "data.batch_size": 4,
        "model.segment": 24,
        "model.hidden_size": 8,
    },
    "classification": {"data.batch_size": 4, "model.hidden_size": 8},
    "text_classification": {
        "data.phrases": False,
        "data.max_length": 8,
        "data.batch_size": 4,
        "model.embedding_size": 8,
        "model.hidden_size": 8,
    },
    "action": {
        "data.train_subjects": "1",  # all others are for the test
        "data.batch_size": 4,
        "data.max_frames": 8,
        "data.copies": 1,
        "model.hidden_size": 8,
        "model.num_layers": 1,
    },
    "video": {
        "data.batch_size": 4,
        "data.observed": 2,
        "data.horizon": 2,
        "data.validation_videos": 4,
        "data.test_videos": 4,
        "model.hidden_size": 4,
    },
    "speech": {
        "data.sample_rate": 8000,
        "data.mel_bands": 8,
        "data.speed_change": 0,
        "data.batch_size": 4,
        "data.buckets": 1,
        "model.hidden_size": 8,
        "model.num_layers": 1,
        "model.conv_features": 8,
        "model.beam_size": 2,
    },
    "handwriting": {"data.batch_size": 4, "model.hidden_size": 8, "model.num_layers": 1},
    "handwriting_synthesis": {
        "data.batch_size": 4,
        "model.hidden_size": 8,
        "model.num_layers": 1,
        "model.mixture_components": 2,
        "train.sample_length": 8,
    },
    "music": {
        "data.lanes": 4,
        "data.window": 8,
        "model.hidden_size": 8,
        "train.sample_length": 4,
    },
    "time_series": {"data.batch_size": 4, "data.stride": 500, "model.hidden_size": 8},
    "translation": {
        "data.vocabulary_size": 1000,
        "data.max_tokens": 120,
        "data.batch_size": 4,
        "data.buckets": 1,
        "model.hidden_size": 8,
        "model.embedding_size": 4,
        "model.beam_size": 1,
    },
}
HEADS = {"model.hidden_size": 12, "model.embedding_size": 12, "model.context": 8}
# Sizes that the heads can share.
OF_ONE = {
    "tiny_shakespeare_transformer": {**HEADS, "model.num_layers": 1},
    "multi30k_transformer": {"model.embedding_size": 8, "model.num_layers": 1},
}
LINES = {"m4": 21, "multi30k": 64, "rt_polarity": 300, "sst_trees": 300}
"""Of these public files, only the first lines are read: a tree, a sentence or a series each."""
RECORDINGS = 100
"""About as many recordings of speech are used in each split, so that every character occurs."""
MOVEMENTS = 4
"""Of the recordings of actions, only each fourth is used."""
SHORT = {
    "train.num_steps": 4,
    "train.log_every": 1,
    "train.eval_every": 2,
    "train.checkpoint_every": 3,
    "optimizer.warmup_steps": 1,
}


def needed(path: pathlib.Path) -> list[str]:
    """The registered files that a config's data come from."""
    values = tomllib.loads(path.read_text("utf-8"))["data"].values()
    names = {str(value).partition(".")[0] for value in values}  # multi30k.en belongs to multi30k
    names |= {NAMED_MUSIC[name] for name in names & NAMED_MUSIC.keys()}
    names |= {"mnist_5k", "mnist_t10k"} if "moving_digits" in names else set()
    names |= {"m4"} if "m4_hourly" in names else set()
    names |= {"forecast_csv/australia_tourism.csv"} if "tourism" in names else set()
    names |= {"sst_trees"} if names & {"sst2", "sst5"} else set()
    return [file for file in registry() if {file, file.split("/")[0]} & names]


def recorded(path: pathlib.Path) -> str:
    """The named set of recordings that a config needs, if any."""
    data = tomllib.loads(path.read_text("utf-8"))["data"]
    return data.get("recordings", "")


@pytest.fixture
def sliced(tmp_path, monkeypatch):
    """Cuts public text files to their first lines, and takes a part of the recordings and stations.

    Forecasts are computed in small batches, since a batch is filled up with copies.
    """

    def first_lines(name):
        path, copy = fetch(name), tmp_path / "public" / name
        number = LINES.get(copy.parent.name)
        if number and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            open_file = gzip.open if copy.suffix == ".gz" else open
            with open_file(path, "rb") as source, open_file(copy, "wb") as target:
                target.writelines(itertools.islice(source, number))
        return copy if number else path

    for module in [*sys.modules.values()]:
        if getattr(module, "fetch", None) is fetch and module.__name__.startswith("lstm_jax"):
            monkeypatch.setattr(module, "fetch", first_lines)

    def some_of_each_split(*how):
        splits = read_speech(*how)
        return {name: rows[:: len(rows) // RECORDINGS or 1] for name, rows in splits.items()}

    monkeypatch.setattr(speech_data, "read_recordings", some_of_each_split)
    monkeypatch.setattr(
        action_data, "read_recordings", lambda path: read_movements(path)[::MOVEMENTS]
    )
    monkeypatch.setattr(public_series, "STATIONS", public_series.STATIONS[:2])
    monkeypatch.setattr("lstm_jax.tasks.backtest.EVALUATION_BATCH", 32)


@pytest.fixture
def built(monkeypatch):
    """The tasks that a command has built."""
    tasks = []
    build = Config.build_task
    monkeypatch.setattr(
        Config, "build_task", lambda *given: tasks.append(build(*given)) or tasks[-1]
    )
    return tasks


def cases():
    for path in CONFIGS:
        marks = [pytest.mark.data] if needed(path) or recorded(path) else []
        yield pytest.param(path, id=path.stem, marks=marks)


def test_there_are_configs():
    shipped = {"quickstart", "tiny_shakespeare", "etth1", "japanese_vowels"}
    shipped |= {"jsb", "jsb_notes", "nottingham", "sst2", "sst5", "reviews"}
    assert shipped <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_is_known(path):
    config = load_config(path)
    values = tomllib.loads(path.read_text("utf-8"))
    for name, section in values.items():
        if name != "task":
            known = sections_for(config.task)[name].__dataclass_fields__
            assert set(section) <= set(known)
            for key, value in section.items():
                assert getattr(getattr(config, name), key) == value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_sizes_fit(path):
    """Checks the original values of the configs."""
    config = load_config(path)
    assert config.train.num_steps >= config.optimizer.warmup_steps
    for key in ("log_every", "eval_every", "checkpoint_every"):
        assert getattr(config.train, key) <= config.train.num_steps


@pytest.mark.slow
@pytest.mark.parametrize("path", cases())
def test_a_shrunk_config_runs_to_its_end(path, tmp_path, capsys, public_data, sliced, built):
    public_data(*needed(path))
    if recorded(path) and not (cache_folder() / recorded(path)).is_dir():
        pytest.skip(f"needs public data: {recorded(path)}")
    workdir = tmp_path / "run"
    config = load_config(path)
    overrides = {**SMALL[config.task], **OF_ONE.get(path.stem, {}), **SHORT}
    if path.stem.startswith("unipen"):
        overrides["data.ink"] = write_ink(tmp_path / "words.csv")
    flags = [
        word for key, x in overrides.items() for word in (f"--{key}".replace("_", "-"), str(x))
    ]
    assert main(["train", str(path), "--workdir", str(workdir), *flags]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""

    assert load_config(workdir / "config.toml").train.num_steps == 4
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    assert all(isinstance(line["step"], int) for line in lines)
    assert all(isinstance(x, int | float) for line in lines for x in line.values())
    (task,) = built
    splits = task.splits
    evaluated = [2, 4] if "validation" in splits else []
    assert [line["step"] for line in lines if "validation/loss" in line] == evaluated
    assert "4" in {path.name for path in (workdir / "checkpoints").iterdir()}

    plots = {plot.stem: plot for plot in (workdir / "plots").glob("*.png")}
    expected = {
        "forecasting": {"forecasts"},
        "classification": {"confusion"},
        "text_classification": {"confusion"},
        "action": {"confusion"},
        "handwriting_synthesis": {"window"},
        "music": {"piano_roll"},
        "speech": {f"spikes_{n}" for n in range(3)},
        "time_series": {"forecasts", "reliability", "errors_by_step"},
        "translation": {f"attention_{n}" for n in range(4)},
    }
    assert set(plots) == {"loss", *expected.get(config.task, set())}
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots.values())
    results = json.loads((workdir / "results.json").read_text("utf-8"))
    assert {*results} - {"notes"} == {"step", *splits}
    assert all("loss" in results[split] for split in splits)
    for plot in plots.values():
        assert str(plot) in printed.out
