"""Drawings of cells: a step's equations become a dataflow graph, which is laid out as an SVG."""

from lstm_jax.inspect.schematic.draw import CellDrawing, draw_cell

__all__ = ["CellDrawing", "draw_cell"]
