"""Code in the README and in docs/ runs as printed; statements about the library are true."""

import functools
import importlib
import inspect
import math
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTM
from lstm_jax.cells import CELLS, BaseCell, GatedCell, LSTMFamilyCell
from tests.test_package import PUBLIC

ROOT = pathlib.Path(__file__).parent.parent
INDEX = ROOT / "docs" / "index.md"
DOCS = sorted(set((ROOT / "docs").glob("*.md")) - {INDEX})
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", INDEX, *DOCS]


def name_of(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


# ---- code blocks ----


def blocks(page: pathlib.Path, language: str = "python") -> list[str]:
    """The code blocks of a page in one language."""
    text = page.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def file_name(block: str) -> str | None:
    """The file name from a block's first line, ``# name.py``, if it shows a file."""
    named = re.match(r"# (\w+\.\w+)\n", block)
    return named[1] if named else None


def write_files(page: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the files that a page shows into a folder."""
    for language in ("python", "toml"):
        for block in blocks(page, language):
            if name := file_name(block):
                (folder / name).write_text(block, "utf-8")


def run_block(block: str, name: str, namespace: dict, capsys) -> None:
    """Runs a block; its output must equal the comments after its prints."""
    capsys.readouterr()
    exec(compile(block, name, "exec"), namespace)
    expected = re.findall(r"print\(.*\)  # (.*)", block)
    assert capsys.readouterr().out.splitlines() == expected, block


def run_page(page: pathlib.Path, folder: pathlib.Path, monkeypatch, capsys) -> None:
    """Runs the blocks of a page in order in one namespace, with its files in a folder."""
    write_files(page, folder)
    monkeypatch.syspath_prepend(folder)
    for path in folder.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    namespace = {"__name__": page.stem}
    for block in blocks(page):
        if file_name(block) is None:
            run_block(block, name_of(page), namespace, capsys)


BLOCKS = blocks(README)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_each_block_of_the_readme_runs_by_itself(block, capsys):
    assert "print(" in block
    run_block(block, "README.md", {"__name__": "readme"}, capsys)


# Others are run in test_own_cell.py, test_own_task.py and interop/test_interop_docs.py.
ELSEWHERE = ("your_own_cell", "your_own_task", "interop")


@pytest.mark.parametrize("page", [p for p in DOCS if p.stem not in ELSEWHERE], ids=name_of)
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch, capsys):
    run_page(page, tmp_path, monkeypatch, capsys)


def test_several_hosts(tmp_path):
    """Two processes, each with half of the rows, print the results of one process with all rows."""
    write_files(ROOT / "docs" / "sharding.md", tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "several_hosts.py", address, "2"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    hosts = [
        subprocess.Popen(
            [*command, str(n)], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE
        )
        for n in range(2)
    ]
    printed = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0]

    lstm = LSTM(16)
    params = lstm.init(jax.random.key(0), 8)
    rows = [np.random.default_rng(n).normal(size=(50, 4, 8)).astype("float32") for n in range(2)]
    xs = np.concatenate(rows, 1)
    value, gradient = jax.value_and_grad(lambda p: jnp.mean(lstm.apply(p, xs)[1] ** 2))(params)
    norm = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)) ** 0.5
    for text in printed:
        numbers = re.search(r"(\d+) rows, loss ([\d.]+), gradient ([\d.]+)", text)
        numbers = [float(number) for number in numbers.groups()]
        # Printed with six decimals, float32.
        np.testing.assert_allclose(numbers, [8, value, norm], atol=2e-6)


# ---- links ----


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as web pages made from Markdown have them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_and_heading_that_is_linked_to_exists(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = pathlib.Path(os.path.normpath(page.parent / path)) if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme():
    readme = README.read_text("utf-8")
    for page in DOCS:
        assert f"]({name_of(page)})" in readme, name_of(page)


def test_every_page_is_in_the_contents_of_the_site():
    contents = re.findall(r"^```{toctree}\n(.*?)^```", INDEX.read_text("utf-8"), re.DOTALL | re.M)
    entries = {line.strip() for block in contents for line in block.splitlines()}
    assert {f"api/{page.stem}" for page in (ROOT / "docs" / "api").glob("*.md")} <= entries


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_api_reference(name):
    """Separately, in a table, or as a member of a part that is shown as a whole."""
    stem = {"lstm_jax": "index", "lstm_jax.interop.onnx": "onnx"}.get(name, name.split(".")[-1])
    page = (ROOT / "docs" / "api" / f"{stem}.md").read_text("utf-8")
    if f".. automodule:: {name}\n" in page:
        return  # all names, except those shown with another part
    entry = r"^\.\. (?:auto\w+|py:data):: (\w+)$|^   ~[\w.]+\.(\w+)$"
    shown = re.findall(entry, page, re.MULTILINE)
    shown = ["".join(pair) for pair in shown]
    assert sorted(shown) == sorted(importlib.import_module(name).__all__)


# ---- docs/cells.md ----

CELLS_PAGE = ROOT / "docs" / "cells.md"
SIZES = [(3, 4), (5, 6)]


def table() -> dict[str, list[str]]:
    """The table of all cells: the columns of each row, by the name of the cell."""
    rows = {}
    for line in CELLS_PAGE.read_text("utf-8").splitlines():
        if match := re.match(r"\| \[`(\w+)`\]\(#[\w-]+\) \| (`\w+Cell`.*) \|$", line):
            assert match[1] not in rows
            rows[match[1]] = match[2].split(" | ")
    return rows


def sections() -> dict[str, str]:
    """The text under each heading, by the cells in the heading."""
    parts = re.split(r"^### (.*)$", CELLS_PAGE.read_text("utf-8"), flags=re.MULTILINE)
    found = {}
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
        found |= {name: text for name in heading.split(", ")}
    return found


def test_the_table_of_kinds_names_every_cell():
    page = CELLS_PAGE.read_text("utf-8")
    section = re.search(r"^## Kinds\n(.*?)^## ", page, re.DOTALL | re.M)[1]
    rows = re.findall(r"^\| [^`|]+ \| (`.*`) \|$", section, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(names) == sorted(CELLS)
    assert f"has {len(CELLS)} cells" in section


def value(formula: str, **letters: int) -> float:
    """``4H(D + H/N + 1)`` as a number."""
    formula = formula.replace("²", "**2")
    return eval(re.sub(r"(?<=[\w)])(?=[A-Za-z(])", "*", formula), {}, letters)


def letters(cell, D: int, H: int) -> dict[str, int]:
    """The values of the letters in the formulas for a cell."""
    kernel = getattr(cell, "kernel_size", ())
    return {
        "D": D,
        "H": H,
        "n": H // getattr(cell, "block_size", H),
        "P": getattr(cell, "output_size", H),
        "R": getattr(cell, "rounds", 0),
        "k": getattr(cell, "rank", None) or 0,
        "N": getattr(cell, "num_heads", 1),
        "S": getattr(cell, "static_size", 0),
        "K": math.prod(kernel),
    }


def num_parameters(cell, D: int) -> int:
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_table_and_the_sections_name_every_cell_and_its_class():
    rows = table()
    assert list(rows) == list(sections()) == list(CELLS)
    for name, (kind, *_) in rows.items():
        assert kind == f"`{type(CELLS[name](hidden_size=4)).__name__}`", name


OPTIONS = {
    "lstm_1997": {"block_size": 2},
    "projected": {"proj_size": 3},
    "mogrifier": {"rounds": 2},
    "slstm": {"num_heads": 2},
    "ea_lstm": {"static_size": 2},
    "conv_lstm": {"kernel_size": (3, 5, 1)},
}
"""Options that change the letters of a formula."""


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("D", "H"), SIZES)
def test_numbers_of_parameters(name, D, H):
    formula = table()[name][2].strip("`")
    for options in ({}, OPTIONS.get(name, {})):
        cell = CELLS[name](hidden_size=H, **options)
        assert value(formula, **letters(cell, D, H)) == num_parameters(cell, D), options
        # The section's statements on options that change the number in another way.
        changes = re.findall(r"`(\w+=[^`]+)` (adds|makes it) `([^`]+)`", sections()[name])
        for option, verb, other in changes:
            more = {**options, **eval(f"dict({option})")}
            cell = CELLS[name](hidden_size=H, **more)
            expected = value(formula if verb == "adds" else "0", **letters(cell, D, H))
            expected += value(other, **letters(cell, D, H))
            assert expected == num_parameters(cell, D), (options, option)


def lines(text: str) -> list[str]:
    """Lines that are not empty, without indentation and alignment."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", CELLS)
def test_equations_equal_those_of_the_docstrings(name):
    kind = type(CELLS[name](hidden_size=4))
    steps = [f for n, f in vars(sys.modules[kind.__module__]).items() if n.endswith("_cell")]
    known = {line for step in steps for line in lines(inspect.getdoc(step) or "")}
    shown = re.findall(r"^```\n(.*?)^```$", sections()[name], re.DOTALL | re.MULTILINE)
    assert shown
    for block in shown:
        assert set(lines(block)) <= known


@pytest.mark.parametrize("name", CELLS)
def test_a_section_names_the_options_of_its_cell(name):
    kind = CELLS[name]
    kind = kind.func if isinstance(kind, functools.partial) else kind
    shared = set().union(
        *(inspect.signature(base).parameters for base in (BaseCell, GatedCell, LSTMFamilyCell))
    )
    for option in set(inspect.signature(kind).parameters) - shared:
        assert f"`{option}" in sections()[name], option
