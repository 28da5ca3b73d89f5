"""Sweeps: points equal separate runs, resuming, and results."""

import csv
import json
import os
import pathlib
import signal

import numpy as np
import pytest

from lstm_jax.cli import main
from lstm_jax.config import config_from
from lstm_jax.errors import UserError
from lstm_jax.train import Stopped, load_run, read_metrics, train
from lstm_jax.train.sweep import (
    grouped,
    load_sweep,
    mean_and_deviation,
    plot,
    points_of,
    split_values,
    sweep,
    swept_axes,
    table,
)
from tests.train.test_loop import Listener


class Quiet(Listener):
    """Stores messages; progress lines of a sweep start with the point."""

    def progress(self, line, *, lasting):
        pass


AXES = {"optimizer.learning_rate": [0.01, 0.02], "train.seed": [0, 1]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("the quick brown fox\n" * 40, "utf-8")
    return config_from(
        {
            "task": "next_character",
            "data": {"text": str(text), "lanes": 2, "window": 4},
            "model": {"hidden_size": 4, "embedding_size": 3},
            "optimizer": {"warmup_steps": 1},
            "train": {"num_steps": 6, "log_every": 2, "eval_every": 3, "sample_length": 0},
        },
        "test",
        {},
    )


@pytest.fixture(scope="module")
def swept(base, tmp_path_factory):
    """A sweep that was stopped during its points and resumed."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"

    class Stopping(Listener):
        sent = False

        def progress(self, line, *, lasting):
            if "step 3/6" in line and not self.sent:
                self.sent = True
                os.kill(os.getpid(), signal.SIGINT)

    stopping = Stopping()
    with pytest.raises(Stopped):
        sweep(base, AXES, folder, stopping)
    unfinished = [point for point in load_sweep(folder)[2] if not point.finished]
    report = Quiet()
    points = sweep(base, AXES, folder, report)
    return folder, points, stopping, unfinished, report


def test_a_stopped_sweep_is_resumed(swept):
    folder, points, stopping, unfinished, report = swept
    assert stopping.said[-1].endswith(f"resume with: lstm-jax sweep {folder}")
    assert unfinished and "4 points, 0 finished; 4 to train with 1 set" in stopping.said[0]
    assert all(point.results for point in points)
    assert sum("of 4 |" in line for line in report.said) == len(unfinished)
    again = Quiet()
    assert sweep(*load_sweep(folder)[:2], folder, again)[3].results == points[3].results
    assert not any("of 4 |" in line for line in again.said)  # nothing was trained again


def test_each_point_equals_the_run_of_its_config(swept, tmp_path):
    """A point that was stopped and one that was not started, compared with separate runs."""
    for point in (swept[1][0], swept[1][3]):
        results = train(point.config, tmp_path / point.folder.name, Listener())
        loss = point.results["validation"]["loss"]
        np.testing.assert_allclose(loss, results["validation"]["loss"], rtol=1e-5)
        lines, alone = (
            read_metrics(folder / "metrics.jsonl")
            for folder in (point.folder, tmp_path / point.folder.name)
        )
        assert [line.keys() for line in lines] == [line.keys() for line in alone]
        for line, other in zip(lines, alone, strict=True):
            np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=2e-5)
    losses = {point.results["validation"]["loss"] for point in swept[1]}
    assert len(losses) == 4


def test_a_point_is_a_run_folder(swept):
    run = load_run(swept[1][2].folder)
    assert run.config.optimizer.learning_rate == 0.02 and run.config.train.seed == 0
    assert (
        len("".join(run.task.generate(run.model, prompt="t", length=3, temperature=1.0, seed=0)))
        == 4
    )
    assert run.task.evaluate(run.model, "validation") == pytest.approx(
        swept[1][2].results["validation"], rel=1e-5
    )


def test_results_are_written(swept):
    folder, points = swept[:2]
    rows = list(csv.DictReader((folder / "results.csv").open(encoding="utf-8")))
    assert [row["point"] for row in rows] == ["0", "1", "2", "3"]
    assert [float(row["validation/loss"]) for row in rows] == [
        point.results["validation"]["loss"] for point in points
    ]
    held = json.loads((folder / "sweep.json").read_text("utf-8"))
    assert held["axes"] == AXES and held["points"][3]["folder"] == "points/3"
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_table_and_plot_show_mean_and_deviation_over_seeds(swept):
    points = swept[1]
    losses = [point.results["validation"]["loss"] for point in points]
    columns = table(points)
    assert columns["learning_rate"] == [0.01, 0.02] and columns["runs"] == [2, 2]
    mean, deviation = np.mean(losses[:2]), np.std(losses[:2], ddof=1)
    assert columns["validation/loss"][0] == f"{mean:.4f} ± {deviation:.4f}"
    np.testing.assert_allclose(mean_and_deviation(points[:2], "validation/loss"), (mean, deviation))
    axis = plot(points, AXES).axes[0]
    assert axis.get_xlabel() == "optimizer.learning_rate"
    assert axis.get_ylabel() == "validation/loss"


def test_different_sweep_cannot_use_the_folder(swept, base):
    with pytest.raises(UserError, match=r"holds another sweep \(the swept values differ\)"):
        sweep(base, {"train.seed": [0, 1]}, swept[0], Quiet())
    with pytest.raises(UserError, match="holds a run; take another --workdir"):
        sweep(base, AXES, swept[1][0].folder, Quiet())


def test_diverged_point_counts_as_finished(base, tmp_path):
    """One learning rate is too large; the other points are still trained."""
    axes = {"optimizer.learning_rate": [0.01, 1e30], "optimizer.max_norm": [0.0]}
    points = sweep(base, axes, tmp_path / "sweep", Quiet())
    assert points[0].results and points[1].results is None
    assert "not finite" in points[1].failure
    assert table(points)["validation/loss"][1] == "not finite"
    assert load_sweep(tmp_path / "sweep")[2][1].finished


def test_points_in_groups(base):
    axes = {"model.dropout": [0.0, 0.1, 0.2], "optimizer.weight_decay": [0.1, 0.2],
            "model.hidden_size": [4, 8], "train.seed": [0, 1]}  # fmt: skip
    points = points_of(base, axes, pathlib.Path("sweep"))
    groups = grouped(points, lambda config: config.build_task())
    assert sorted(len(group.points) for group in groups) == [4, 4, 8, 8]


def test_number_that_changes_the_program_is_not_shared(base):
    """The schedule compares the exponential decay's rate with no number between its values."""
    axes = {"model.dropout": [0.1, 0.2], "train.seed": [0, 1]}

    class Compares(type(base.build_task())):
        def build(self, rngs):
            assert self.model.dropout > 0.15 or self.model.dropout < 0.15
            return super().build(rngs)

    def tasks(config):
        return Compares(data=config.data, model=config.model)

    points = points_of(base, axes, pathlib.Path("sweep"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(base), "build_task", lambda self, known=None: tasks(self))
        groups = grouped(points, tasks)
    assert [len(group.points) for group in groups] == [2, 2]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"train.sead": "0,1"}, "--train.sead: unknown key train.sead; did you mean train.seed?"),
        ({"train.seed": "0,-1"}, "--train.seed: .*expected an integer of at least 0.*, got -1"),
        ({"train.seed": "0,x"}, "--train.seed: .*expected an integer of at least 0.*, got 'x'"),
        ({"train.seed": "0,1,0"}, "--train.seed: expected different values, got 0 twice"),
        ({"train.num_devices": "1,2"}, "--train.num-devices: cannot be swept .each point is"),
        ({"train.seed": "3"}, "expected a key with several values, such as --train.seed 0,1,2"),
    ],
)
def test_invalid_axes_are_rejected(base, texts, message):
    with pytest.raises(UserError, match=message) as raised:
        swept_axes(base, texts)
    assert "\n" not in str(raised.value)


def test_a_single_value_replaces_the_configs(base):
    config, axes = swept_axes(base, {"train.num_steps": "7", "train.seed": "0,1"})
    assert config.train.num_steps == 7 and axes == {"train.seed": [0, 1]}


def test_the_number_of_points_is_bounded(base, tmp_path):
    axes = {"train.seed": list(range(40)), "model.hidden_size": list(range(1, 41))}
    with pytest.raises(UserError, match="at most 1000 points, got 40 x 40 = 1600"):
        points_of(base, axes, tmp_path)


def test_commas_in_brackets_belong_to_a_value():
    assert split_values("lstm(a=1, b=2),gru") == ["lstm(a=1, b=2)", "gru"]


def test_command_line_errors(tmp_path, capfd):
    path = tmp_path / "run.toml"
    path.write_text('task = "next_character"\n', "utf-8")
    assert main(["sweep", str(path), "--train.seed", "0,1,1"]) == 1
    assert capfd.readouterr().err == (
        "lstm-jax: error: --train.seed: expected different values, got 1 twice\n"
    )
    assert main(["sweep", str(tmp_path)]) == 1
    assert "no sweep here (expected a sweep.json)" in capfd.readouterr().err
