"""Inspects the gates, gradients and memory of any lstm_jax cell, stack or Flax module.

Most functions return NamedTuples of arrays, which the ``plot_...`` functions draw.
"""

from lstm_jax.inspect.gates import MemoryHorizon, Saturation, memory_horizon, saturation
from lstm_jax.inspect.gradients import (
    GradientFlow,
    JacobianSpectrum,
    gradient_flow,
    jacobian_spectrum,
)
from lstm_jax.inspect.plots import (
    plot_gradient_flow,
    plot_jacobian_spectrum,
    plot_memory_horizon,
    plot_saturation,
    plot_trace,
    plot_unit,
    plot_units,
)
from lstm_jax.inspect.schematic.draw import CellDrawing, draw_cell
from lstm_jax.inspect.summary import LayerSummary, Summary, summary
from lstm_jax.inspect.text import (
    FoundUnits,
    Html,
    find_units,
    inside_quotes,
    line_length,
    line_position,
    nesting_depth,
    text_html,
)
from lstm_jax.inspect.trace import Trace, trace

__all__ = [
    "CellDrawing",
    "FoundUnits",
    "GradientFlow",
    "Html",
    "JacobianSpectrum",
    "LayerSummary",
    "MemoryHorizon",
    "Saturation",
    "Summary",
    "Trace",
    "draw_cell",
    "find_units",
    "gradient_flow",
    "inside_quotes",
    "jacobian_spectrum",
    "line_length",
    "line_position",
    "memory_horizon",
    "nesting_depth",
    "plot_gradient_flow",
    "plot_jacobian_spectrum",
    "plot_memory_horizon",
    "plot_saturation",
    "plot_trace",
    "plot_unit",
    "plot_units",
    "saturation",
    "summary",
    "text_html",
    "trace",
]
