"""The compilation cache of the tests."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests import compiled

REPOSITORY = Path(__file__).parents[1]


def test_is_outside_the_repository_and_named_by_version(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compiled.folder()
    assert folder.parent == tmp_path / "lstm_jax" / "tests"
    assert folder.name.startswith(f"jax-{jax.__version__}-")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert compiled.root() == Path("/home/someone/.cache/lstm_jax/tests")


def test_every_program_of_this_process_is_stored():
    used = jax.config.jax_compilation_cache_dir
    assert used == os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert REPOSITORY not in Path(used).parents
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1


def test_a_second_process_compiles_nothing_and_computes_the_same(tmp_path):
    code = """
import jax, jax.numpy as jnp
from jax._src import monitoring
events = []
monitoring.register_event_listener(lambda event, **_: events.append(event))
run = jax.jit(lambda x: jnp.tanh(x @ x))
print(float(run(jnp.ones((3, 3))).sum()), events.count("/jax/compilation_cache/cache_misses") > 0)
memory = run.lower(jnp.ones((3, 3))).compile().memory_analysis()
print(memory.temp_size_in_bytes, memory.output_size_in_bytes)
"""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert "True" in first
    assert second == first.replace("True", "False")


def test_a_broken_entry_is_compiled_again_without_a_message(tmp_path):
    code = "import jax; print(float(jax.jit(lambda x: x * 2)(3.0)))"
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "6.0\n", "")
        entries = list(tmp_path.glob("*-cache"))
        assert entries
        for entry in entries:
            entry.write_bytes(entry.read_bytes()[:20])


def test_a_cache_that_is_already_set_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    compiled.share()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
    warnings = os.environ["PYTHONWARNINGS"]
    assert warnings.startswith("error,ignore:")
    compiled.share()  # as a worker does, which has its parent's environment
    assert os.environ["PYTHONWARNINGS"] == warnings


@pytest.mark.parametrize("given", ["", "--a=b", "--xla_backend_optimization_level=3"])
def test_the_level_of_optimisation_is_lowered_once(monkeypatch, given):
    monkeypatch.setenv("XLA_FLAGS", given)
    compiled.compile_quickly()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[: len(given.split())] == given.split()
    lowered = "level=3" not in given
    assert flags[len(given.split()) :] == (compiled.QUICK.split() if lowered else [])
    assert compiled.is_quick() == lowered
    compiled.compile_quickly()  # as a worker does, which has its parent's environment
    assert os.environ["XLA_FLAGS"].split() == flags
    higher = [word.replace("level=0", "level=1") for word in flags]
    assert compiled.flags_for_loops().split() == higher
