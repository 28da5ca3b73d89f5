"""Draws the schematics of docs/cells.md: ``python docs/draw_cells.py``."""

import pathlib

from lstm_jax.cells import CELLS
from lstm_jax.inspect import CellDrawing, draw_cell

FOLDER = pathlib.Path(__file__).parent / "images" / "cells"
CELLS_SHOWN = [name for name in CELLS if name not in ("nig", "nfg", "nog", "niaf", "noaf", "np")]
"""Those left out are the peephole LSTM less one part."""
OPTIONS = {"mogrifier": {"rounds": 2}}  # five rounds are too wide for a page


def picture(name: str) -> CellDrawing:
    """Draws the cell with this name."""
    return draw_cell(CELLS[name](hidden_size=4, **OPTIONS.get(name, {})))


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in CELLS_SHOWN:
        (FOLDER / f"{name}.svg").write_text(str(picture(name)), "utf-8")
