"""Properties of the whole package."""

import ast
import functools
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
    "lstm_jax.config",
    "lstm_jax.data",
    "lstm_jax.export",
    "lstm_jax.inspect",
    "lstm_jax.interop",
    "lstm_jax.interop.onnx",
    "lstm_jax.linen",
    "lstm_jax.models",
    "lstm_jax.nnx",
    "lstm_jax.sequence",
    "lstm_jax.tasks",
    "lstm_jax.train",
]


HEAVY = ["flax", "optax", "orbax", "grain", "matplotlib", "rich", "pooch", "torch"]
PARTS = {info.name for info in pkgutil.iter_modules([str(ROOT)]) if info.name[0] != "_"}


def imported_by(code: str, *modules: str) -> set[str]:
    """The modules that a new process has imported after running the code."""
    code = f"import sys\n{code}\nprint(*({set(modules)} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_importing_the_package_imports_nothing_else():
    assert not imported_by("import lstm_jax; dir(lstm_jax)", "jax", "numpy", "lstm_jax.cells")


def test_the_core_imports_jax_and_nothing_heavier():
    assert imported_by("from lstm_jax import *; LSTM, tune_cpu", "jax", *HEAVY) == {"jax"}


def test_every_name_and_part_is_reachable_after_importing_the_package():
    code = """
import lstm_jax
names = set(dir(lstm_jax))
for name in sorted(names):
    getattr(lstm_jax, name)
assert names <= set(dir(lstm_jax))
from lstm_jax import *
assert lstm_jax.LSTM is LSTM is lstm_jax.sequence.LSTM
assert lstm_jax.nnx.LSTM is not LSTM
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {*lstm_jax.__all__, *PARTS, "__version__"} <= set(dir(lstm_jax))


def test_type_checkers_see_every_name_and_part():
    """They read the imports under ``if TYPE_CHECKING``, which are not executed."""
    tree = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {(node.module, alias.name) for node in block.body for alias in node.names}
    assert {name for module, name in seen if module == "lstm_jax"} == PARTS
    assert {name for module, name in seen if module != "lstm_jax"} == set(lstm_jax.__all__)
    for module, name in seen:
        assert getattr(importlib.import_module(module), name) is getattr(lstm_jax, name)


def test_every_cell_class_is_at_the_top_level():
    for make in lstm_jax.CELLS.values():
        kind = make.func if isinstance(make, functools.partial) else make
        assert getattr(lstm_jax, kind.__name__) is kind and kind.__name__ in lstm_jax.__all__


def test_unknown_names_are_attribute_errors():
    for name in ("Lstm", "_parts_", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'lstm_jax' has no attribute '{name}'"):
            getattr(lstm_jax, name)
    with pytest.raises(ImportError, match="cannot import name 'Lstm' from 'lstm_jax'"):
        from lstm_jax import Lstm  # noqa: F401


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


def test_dependencies_between_the_parts_point_one_way():
    """cells <- sequence <- nnx, linen <- inspect, interop <- models <- tasks <- train <- cli.

    config and data are at the level of models; export is the last before cli.
    """
    order = [
        "errors",
        "_files",
        "_labels",
        "_program_cache",
        "_scans",
        "tune",
        "cells",
        "sequence",
        "_flax",
        "linen",
        "nnx",
        "inspect",
        "interop",
        "config",
        "data",
        "models",
        "tasks",
        "train",
        "export",
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
        "import lstm_jax\n"
        "right = lstm_jax.sequence.Zoneout(lstm_jax.GRUCell(4), hidden_rate=0.1)\n"
        "wrong = lstm_jax.sequence.Zoneout(lstm_jax.GRUCell(4), hiden_rate=0.1)\n"
        "wrong = lstm_jax.nnx.LSTMM\n"
    )
    (tmp_path / "pyrefly.toml").write_text('preset = "default"\n')
    pyrefly = pathlib.Path(sys.executable).with_name("pyrefly")
    command = [str(pyrefly), "check", "user.py", "--search-path", str(ROOT.parent)]
    command += ["--python-interpreter-path", sys.executable, "--output-format", "min-text"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    lines = [line for line in ran.stdout.splitlines() if "ERROR" in line]
    assert [line.split("user.py:")[1].split(":")[0] for line in lines] == list("4589"), ran.stdout
