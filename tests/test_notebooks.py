"""The notebooks run from start to end, and their cells equal those of the .py files."""

import functools
import importlib.util
import pathlib
import re

import pytest

from tests import compiled

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
PAIRED = sorted({path.stem for path in FOLDER.glob("[0-9]*.*")})
DATA = {
    "09_handwriting": ["pen_digits/pendigits.tra", "pen_digits/pendigits.tes"],
    "10_music": ["poly_music/JSB_Chorales.mat"],
}
"""Public files that a notebook reads."""
PEERS = {"07_from_torch_and_back": "torch"}
"""Another library that a notebook compares with."""
SHORTER = {
    "02_inside_the_gates": {"num_steps = 600": "num_steps = 60", "_every = 600": "_every = 60"},
    "04_your_own_cell": {"num_steps = 300": "num_steps = 30", "_every = 300": "_every = 30"},
    "07_from_torch_and_back": {"range(200)": "range(20)", "STEPS = 200": "STEPS = 20"},
    "09_handwriting": {"WRITER_STEPS, MOVES = 1000": "WRITER_STEPS, MOVES = 500"},
    "10_music": {"WINDOW, STEPS = 128, 24, 16, 48, 300": "WINDOW, STEPS = 128, 24, 16, 48, 150"},
    "11_reinforcement_learning": {"num_updates=80": "num_updates=8"},
}
"""Trainings of a tenth in notebooks that check no result of the training, of half in 09 and 10.

``make notebooks`` runs the complete ones.
"""
KILOBYTES = 800


def _load_build():
    spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load_build()


@functools.cache
def shown(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def with_shorter_trainings(name):
    notebook = build.source(name)
    for text, shorter in SHORTER.get(name, {}).items():
        assert any(text in cell.source for cell in notebook.cells), text
        for cell in notebook.cells:
            cell.source = cell.source.replace(text, shorter)
    return notebook


def check_outputs(notebook):
    """Every code cell has run, in order and without errors or warnings."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text
            text = output.get("text", "") or output.data.get("text/plain", "")
            assert not re.search(r"Warning\b|Traceback", text), text


@pytest.mark.parametrize("name", PAIRED)
def test_py_and_ipynb_have_the_same_cells(name):
    from_py, from_ipynb = build.source(name), shown(name)
    for one, other in zip(from_py.cells, from_ipynb.cells, strict=True):
        assert (one.id, one.cell_type, one.source) == (other.id, other.cell_type, other.source)
        assert other.metadata == {}
    assert from_ipynb.metadata == build.METADATA
    nbformat.validate(from_ipynb)


@pytest.mark.parametrize("name", PAIRED)
def test_outputs_have_no_warnings(name):
    check_outputs(shown(name))
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1000 * KILOBYTES


@pytest.mark.parametrize("name", PAIRED)
def test_the_first_cell_lists_what_the_reader_will_know(name):
    first = shown(name).cells[0]
    assert first.cell_type == "markdown"
    title, *rest = first.source.splitlines()
    assert re.fullmatch(r"# \S.*", title)
    assert "At the end of this notebook you will know" in rest
    assert sum(line.startswith("- ") for line in rest) >= 3


@pytest.mark.parametrize("name", PAIRED)
def test_images_fit_a_page_and_one_is_in_docs(name):
    texts = [
        output.data["text/plain"]
        for cell in shown(name).cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    sizes = [re.match(r"<Figure size (\d+)x(\d+) with", text).groups() for text in texts]
    assert all((int(width), int(height)) <= (600, 400) for width, height in sizes)  # at 100 dpi
    picture = build.images(shown(name))[build.IMAGE_OF[name]]
    assert (build.IMAGES / f"notebook_{name}.png").read_bytes() == picture


@pytest.mark.parametrize("name", PAIRED)
def test_links_refer_to_existing_files(name):
    text = "\n".join(cell.source for cell in shown(name).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        assert "://" in link or (FOLDER / link).exists(), link
    for path in re.findall(r"`((?:docs|configs)/[\w.]+)`", text):
        assert (ROOT / path).exists(), path


def marks(name):
    return [pytest.mark.data] * (name in DATA) + [pytest.mark.peers] * (name in PEERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in PAIRED])
def test_a_notebook_runs_from_start_to_end(name, public_data, monkeypatch):
    public_data(*DATA.get(name, []))
    if name in PEERS:
        pytest.importorskip(PEERS[name])
    monkeypatch.setenv("XLA_FLAGS", compiled.flags_for_loops())
    check_outputs(build.executed(with_shorter_trainings(name)))
