"""What holds for the package as a whole."""

import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import lstm_jax

ROOT = pathlib.Path(lstm_jax.__file__).parent
PUBLIC = [
    "lstm_jax",
    "lstm_jax.cells",
    "lstm_jax.data",
    "lstm_jax.inspect",
    "lstm_jax.interop",
    "lstm_jax.interop.onnx",
    "lstm_jax.linen",
    "lstm_jax.nnx",
    "lstm_jax.sequence",
    "lstm_jax.tasks",
    "lstm_jax.train",
]


def test_import_brings_in_jax_and_nothing_heavier():
    heavy = ["flax", "optax", "orbax", "grain", "matplotlib", "rich", "pooch", "torch"]
    code = f"import sys, lstm_jax; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{name}.{public}"


@pytest.mark.parametrize("name", ["lstm_jax", "lstm_jax.linen", "lstm_jax.nnx"])
def test_every_public_name_of_the_core_has_a_tested_example(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert ">>>" in (inspect.getdoc(thing) or ""), f"{name}.{public}"


@pytest.mark.parametrize("name", ["lstm_jax.inspect", "lstm_jax.interop", "lstm_jax.interop.onnx"])
def test_every_public_function_has_a_tested_example(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        if inspect.isfunction(getattr(module, public)):
            assert ">>>" in (inspect.getdoc(getattr(module, public)) or ""), f"{name}.{public}"


def test_arrows_between_the_parts_point_one_way():
    """cells <- sequence <- nnx, linen <- inspect, interop <- tasks <- train <- cli.

    data stands beside tasks.
    """
    order = [
        "errors",
        "tune",
        "cells",
        "sequence",
        "_flax",
        "linen",
        "nnx",
        "inspect",
        "interop",
        "data",
        "tasks",
        "train",
        "cli",
    ]
    for info in pkgutil.walk_packages([str(ROOT)], "lstm_jax."):
        part = info.name.split(".")[1]
        if part not in order:
            continue
        file = ROOT.parent / (info.name.replace(".", "/") + ".py")
        source = file if file.exists() else file.with_suffix("") / "__init__.py"
        for line in source.read_text("utf-8").splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and words[1].startswith("lstm_jax."):
                used = words[1].split(".")[1]
                assert order.index(used) <= order.index(part), f"{source}: {line}"


def test_nothing_is_unpickled():
    for file in ROOT.rglob("*.py"):
        source = file.read_text("utf-8")
        assert "import pickle" not in source, file
        assert "allow_pickle" not in source, file


def test_a_type_checker_finds_mistakes_in_calls_of_the_public_functions(tmp_path):
    """The package ships its annotations (``py.typed``), so a user's checker reads them."""
    assert (ROOT / "py.typed").exists()
    user = tmp_path / "user.py"
    user.write_text(
        "from lstm_jax import LSTMCell, unroll\n"
        "cell = LSTMCell(hidden_size=3)\n"
        "right = unroll(cell, {}, cell.zero_state().h, reverse=True)\n"
        "wrong = unroll(cell, {}, cell.zero_state().h, reverse=True, enginee='scan')\n"
        "wrong = LSTMCell(hidden_size='three')\n"
    )
    (tmp_path / "pyrefly.toml").write_text('preset = "default"\n')
    pyrefly = pathlib.Path(sys.executable).with_name("pyrefly")
    command = [str(pyrefly), "check", "user.py", "--search-path", str(ROOT.parent)]
    command += ["--python-interpreter-path", sys.executable, "--output-format", "min-text"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    lines = [line for line in ran.stdout.splitlines() if "ERROR" in line]
    assert [line.split("user.py:")[1].split(":")[0] for line in lines] == ["4", "5"], ran.stdout
