"""metrics.jsonl in new and resumed runs; the loss curve."""

import json

import pytest

from lstm_jax.train import read_metrics
from lstm_jax.train.metrics import MetricsLog, loss_curve


def lines(*steps: int) -> str:
    return "".join(json.dumps({"step": step, "train/loss": step / 3}) + "\n" for step in steps)


def go_on(folder, step: int) -> MetricsLog:
    return MetricsLog(folder, step)


def test_new_run_writes_one_object_per_line(tmp_path):
    log = go_on(tmp_path, 0)
    log.write(5, {"train/loss": 0.1 + 0.2, "learning_rate": 1e-3})
    log.write(5, {"validation/loss": 2.0})
    log.flush()
    on_disk = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert on_disk == log.lines() == read_metrics(tmp_path / "metrics.jsonl")
    assert on_disk == [
        {"step": 5, "train/loss": 0.1 + 0.2, "learning_rate": 1e-3},
        {"step": 5, "validation/loss": 2.0},
    ]
    log.close()


@pytest.mark.parametrize(
    ("found", "step", "left"),
    [
        pytest.param(lines(2, 4), 4, lines(2, 4), id="nothing to drop"),
        pytest.param(lines(2, 4, 6, 8), 5, lines(2, 4), id="lines past the step"),
        pytest.param(lines(2, 4), 0, "", id="from the start"),
        pytest.param(lines(2, 4) + lines(6)[:-9], 6, lines(2, 4), id="half-written last line"),
        pytest.param(lines(2, 4)[:-1], 4, lines(2, 4), id="last line end missing"),
        pytest.param(lines(2) + '{"st', 1, "", id="half a line and lines past the step"),
        pytest.param(lines(2) + "\0\0\0\0", 2, lines(2), id="zero bytes after a power cut"),
        pytest.param("", 3, "", id="empty"),
    ],
)
def test_later_and_incomplete_lines_are_removed(found, step, left, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(found, "utf-8")
    log = go_on(tmp_path, step)
    assert path.read_text("utf-8") == left
    log.write(step + 1, {"train/loss": 1.0})
    log.close()
    assert (
        path.read_text("utf-8") == left + json.dumps({"step": step + 1, "train/loss": 1.0}) + "\n"
    )
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_reading_a_file_with_an_incomplete_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(1, 2) + '{"step": 3, "tra', "utf-8")
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


BROKEN = {
    "not JSON": b"{",
    "empty": b"",
    "not UTF-8": b'{"step": 3, "train/l\xffss": 1.0}',
    "zero bytes": b"\0\0\0",
    "a number": b"5",
    "a list": b"[1]",
    "a string": b'"step"',
    "no step": b'{"train/loss": 1.0}',
    "a step that is null": b'{"step": null, "train/loss": 1.0}',
    "a step that is a string": b'{"step": "3"}',
    "a step that is true": b'{"step": true}',
    "a step with a fraction": b'{"step": 2.5}',
    "a value that is a string": b'{"step": 3, "validation/loss": "low"}',
    "a value that is null": b'{"step": 3, "validation/loss": null}',
    "a value too large": b'{"step": 3, "validation/loss": ' + b"9" * 400 + b"}",
    "an integer too long": b'{"step": ' + b"9" * 6000 + b"}",
    "nested too deep": b"[" * 10**5,
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_damaged_line_is_skipped_alone(broken, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(1, 2).encode() + broken + b"\n" + lines(4, 5).encode())
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 4, 5]
    warnings: list[str] = []
    log = MetricsLog(tmp_path, 4, warn=warnings.append)
    assert warnings == [f"{path}: skipped 1 damaged line(s): 3"]
    assert path.read_text("utf-8") == lines(1, 2, 4)
    log.close()
    MetricsLog(tmp_path, 4, warn=pytest.fail).close()  # removed


def test_many_broken_lines_give_one_warning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"5\n" * 1000 + lines(1).encode() + b'{"st')
    warnings: list[str] = []
    assert read_metrics(path, warnings.append) == [{"step": 1, "train/loss": 1 / 3}]
    assert warnings == [f"{path}: skipped 1000 damaged line(s): 1, 2, 3, 4, 5, ..."]


def test_loss_curve_shows_both_losses_and_the_baselines(tmp_path):
    found = [
        {"step": 1, "train/loss": 3.0},
        {"step": 2, "train/loss": 2.0},
        {"step": 2, "validation/loss": 2.5},
    ]
    figure = loss_curve(found, "nats", {"5-gram": {"loss": 1.5}, "other": {"mse": 1.0}})
    (axes,) = figure.axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert curves["training"] == [[1.0, 3.0], [2.0, 2.0]]
    assert curves["validation"] == [[2.0, 2.5]]
    assert curves["5-gram"][0][1] == 1.5
    assert set(curves) == {"training", "validation", "5-gram"}
    assert "nats" in axes.get_ylabel()
    figure.savefig(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_loss_curve_of_a_run_without_metrics(tmp_path):
    loss_curve([], "nats", {}).savefig(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 0
