"""Runs the notebooks: writes an .ipynb with outputs for each .py.

    python notebooks/build.py                         # all of them
    python notebooks/build.py 01_equations_to_text

Edit the .py files (percent format, which jupytext and editors support). This script writes the
.ipynb next to each; its metadata do not differ between runs. One image of each notebook is written
to docs/images/, for docs/notebooks.md.
"""

import argparse
import base64
import os
import pathlib
import tempfile

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.py"))
SHARP = "--InlineBackend.figure_formats={'retina'}"  # twice the pixels, in the same size
CELL_SECONDS = 600  # generous, since a machine may be busy; the CPU time is limited
CPU_SECONDS = 120
"""The most that a notebook's processes may use: on an idle machine, a notebook takes no longer."""
IMAGES = FOLDER.parent / "docs" / "images"
EXAMPLES = FOLDER.parent / "examples"
IMAGE_OF = {
    "01_equations_to_text": 0,
    "02_inside_the_gates": 1,
    "03_vanishing_gradients": 0,
    "04_your_own_cell": 1,
    "05_in_a_flax_model": 1,
    "06_forecasting": 1,
    "07_from_torch_and_back": 0,
    "08_translation": 0,
    "09_handwriting": 2,
    "10_music": 1,
    "11_reinforcement_learning": 0,
}
"""The index of the image of each notebook that docs/notebooks.md shows."""
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def source(name: str) -> nbformat.NotebookNode:
    """The notebook in a .py file, without outputs."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook, run from start to end by a new kernel in an empty folder.

    Raises:
      RuntimeError: its processes did not use 1 to ``CPU_SECONDS`` seconds of CPU time.
    """
    measure = "import os\n\nprint(sum(os.times()[:4]))"  # of the kernel and its child processes
    notebook.cells.append(nbformat.v4.new_code_cell(measure))
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,  # regardless of how the kernel splits the text
            extra_arguments=["--log-level=ERROR", SHARP],
        )
        examples = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {"IPYTHONDIR": folder, "MPLBACKEND": "", "PYTHONPATH": examples}
        client.execute(env={**os.environ, **environment})
    seconds = float(notebook.cells.pop().outputs[0].text)
    if not 1 < seconds < CPU_SECONDS:
        raise RuntimeError(f"expected 1 to {CPU_SECONDS} seconds of CPU time, got {seconds:.0f}")
    # Without the version that the kernel has added.
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def images(notebook: nbformat.NotebookNode) -> list[bytes]:
    """The images in its outputs, from top to bottom, as PNG files."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    texts = (output.get("data", {}).get("image/png") for output in outputs)
    return [base64.b64decode(text) for text in texts if text]


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs notebooks and writes their .ipynb.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks to run; all by default")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"expected notebooks among {', '.join(NAMES)}, got {', '.join(unknown)}")
    for name in names:
        print(name, flush=True)
        notebook = executed(source(name))
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        (IMAGES / f"notebook_{name}.png").write_bytes(images(notebook)[IMAGE_OF[name]])


if __name__ == "__main__":
    main()
