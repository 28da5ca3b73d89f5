"""Draws cells: converts a step's equations to a dataflow graph, and lays it out as an SVG."""

from lstm_jax.inspect.schematic.draw import CellDrawing, draw_cell

__all__ = ["CellDrawing", "draw_cell"]
