"""Runs every part of the benchmark script once, with sizes too small to be meaningful."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "benchmarks" / "speed.py"


def run(tmp_path, *flags):
    command = [sys.executable, str(SCRIPT), "--smoke", "--out", str(tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "speed.md").read_text()


@pytest.mark.slow
@pytest.mark.peers
def test_every_peer_that_is_installed(tmp_path):
    for module in ("torch", "onnxruntime", "haiku", "equinox", "keras"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    text = run(tmp_path)
    for word in ("lstm_jax, all devices", "torch", "onnxruntime", "Haiku", "Equinox", "Keras"):
        assert word in text
    assert "| lstm_jax | the best JAX peer |" in text
    assert (tmp_path / "speed_train.png").stat().st_size > 10_000


@pytest.mark.slow
def test_without_peers(tmp_path):
    text = run(tmp_path, "--peers", "lstm_jax", "--only", "train", "--devices", "1")
    assert "| (T, B, D, H) | lstm_jax, all devices | lstm_jax | lstm_jax, scan |" in text


@pytest.fixture(scope="module")
def plot():
    spec = importlib.util.spec_from_file_location("plot", SCRIPT.with_name("plot.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["speed", "one_device"])
def test_every_measured_library_has_a_colour(plot, name):
    page = (SCRIPT.parents[1] / "docs" / "benchmarks" / f"{name}.md").read_text("utf-8")
    for section in plot.SECTIONS.values():
        for times in plot.medians(page, section).values():
            assert {"lstm_jax", "torch"} <= times.keys() <= plot.COLOURS.keys()
    assert len(set(plot.COLOURS.values())) == len(plot.COLOURS)


def test_plots_are_made_from_the_tables_of_a_page(plot, tmp_path):
    page = tmp_path / "mine.md"
    lines = ["## Training step, milliseconds", "", "| (T, B, D, H) | lstm_jax | torch |"]
    lines += ["| --- | --- | --- |", "| (6, 2, 3, 4) | 3.0 (2.5–3.2) | 1.5 (1.2–1.9) |"]
    page.write_text("\n".join([*lines, "| (9, 2, 3, 4) |  | 2.5 (2.2–2.9) |", "", "## Other", ""]))
    found = plot.medians(page.read_text(), "Training step, milliseconds")
    first = {"lstm_jax": 3.0, "torch": 1.5}
    assert found == {"(6, 2, 3, 4)": first, "(9, 2, 3, 4)": {"torch": 2.5}}
    plot.draw(page)
    assert [path.name for path in tmp_path.glob("*.png")] == ["mine_train.png"]
