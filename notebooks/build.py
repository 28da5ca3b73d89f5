"""Runs the notebooks: of each .py an .ipynb with what its cells print and draw.

    python notebooks/build.py                         # all of them
    python notebooks/build.py 01_equations_to_text

The .py files are where notebooks are written (percent format, which jupytext and editors know);
the .ipynb beside each is made here, and its metadata hold nothing that differs between two runs.
"""

import argparse
import os
import pathlib
import tempfile

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.py"))
CELL_SECONDS = 600  # a machine may be busy; the tests bound the work itself
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def source(name: str) -> nbformat.NotebookNode:
    """The notebook as its .py has it, without outputs."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook, run from start to end by a new kernel in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,  # however the text came, in one piece or many
            extra_arguments=["--log-level=ERROR"],
        )
        return client.execute(env={**os.environ, "IPYTHONDIR": folder, "MPLBACKEND": ""})


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs notebooks and writes their .ipynb.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all if none is named")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"expected notebooks among {', '.join(NAMES)}, got {', '.join(unknown)}")
    for name in names:
        print(name, flush=True)
        nbformat.write(executed(source(name)), FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
