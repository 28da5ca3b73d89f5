"""Looking inside: gates, gradients and memory of any cell, stack or Flax module of ours.

Data first: functions return NamedTuples of arrays, and ``plot_...`` draws them.
"""

from lstm_jax.inspect.gradients import (
    GradientFlow,
    JacobianSpectrum,
    gradient_flow,
    jacobian_spectrum,
)
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
    "FoundUnits",
    "GradientFlow",
    "Html",
    "JacobianSpectrum",
    "Trace",
    "find_units",
    "gradient_flow",
    "inside_quotes",
    "jacobian_spectrum",
    "line_length",
    "line_position",
    "nesting_depth",
    "text_html",
    "trace",
]
