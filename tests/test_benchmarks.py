"""The benchmark script, every part of it once, at a size that says nothing."""

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
