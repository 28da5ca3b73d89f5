"""Comparison of runs: table, curves and errors."""

import json

import pytest

from lstm_jax.cli import main
from lstm_jax.config import config_from
from lstm_jax.errors import UserError
from lstm_jax.train.compare import compare, differing, plot, runs_in, table
from lstm_jax.train.workdir import claimed
from tests.train.test_loop import Listener


def make_run(folder, seed, cell, loss):
    """A run folder, written without training."""
    values = {"task": "classification", "model": {"cell": cell}, "train": {"seed": seed}}
    with claimed(folder, config_from(values, "test", {}), {}):
        lines = [{"step": n, "train/loss": loss / n, "validation/loss": loss} for n in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two runs, one of them finished."""
    one = make_run(tmp_path / "one", 0, "lstm", 2.0)
    (one / "results.json").write_text(
        json.dumps({"step": 2, "validation": {"loss": 1.5, "accuracy": 90.0}}), "utf-8"
    )
    return [one, make_run(tmp_path / "other", 3, "gru", 3.0)]


def test_table(runs):
    found = runs_in(runs)
    assert differing(found) == ["model.cell", "train.seed"]
    assert table(found) == {
        "run": [str(folder) for folder in runs],
        "model.cell": ["lstm", "gru"],
        "train.seed": ["0", "3"],
        "steps": ["2", "2"],
        "validation/loss": ["1.5000", ""],
        "validation/accuracy": ["90.0000", ""],
    }


def test_curves(runs):
    axes = plot(runs_in(runs)).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2.0, 2.0], [3.0, 3.0]]
    assert axes.lines[1].get_label() == "other: cell gru, seed 3"
    assert axes.get_ylabel() == "validation/loss"


def test_command(runs, tmp_path, capfd):
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "c.svg")]) == 0
    assert "<svg" in (tmp_path / "c.svg").read_text("utf-8")
    assert f"plotted {tmp_path / 'c.svg'}" in capfd.readouterr().out.replace("\n", "")


def test_errors_in_one_line(runs, tmp_path):
    empty = make_run(tmp_path / "empty", 0, "lstm", 1.0)
    (empty / "metrics.jsonl").unlink()
    cases = [
        ([runs[0]], tmp_path / "c.png", "expected at least two runs to compare, got 1"),
        (
            [runs[0], runs[0]],
            tmp_path / "c.png",
            "one: expected different runs, got this one twice",
        ),
        ([runs[0], tmp_path], tmp_path / "c.png", r"no run here \(expected a config.toml\)"),
        ([runs[0], empty], tmp_path / "c.png", "empty: this run has no metrics yet"),
        (runs, tmp_path / "c.xyz", "--output: .*c.xyz: cannot be written"),
    ]
    for folders, output, message in cases:
        with pytest.raises(UserError, match=message) as raised:
            compare(folders, output, Listener())
        assert "\n" not in str(raised.value)
