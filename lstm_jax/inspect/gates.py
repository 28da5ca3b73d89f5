"""Measures how often gates are open or shut, and how long a cell remembers."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lstm_jax.cells import GRUCell, MGUCell, MinGRUCell, MinLSTMCell, SLSTMCell
from lstm_jax.inspect.models import NO_PARAMS, cells_by_path, functional
from lstm_jax.inspect.trace import Trace, valid

GATES = ("i", "f", "o", "r", "z", "i'", "f'")
"""The names of gates in the equations of :data:`lstm_jax.CELLS`."""

Retention = tuple[tuple[str, ...], Callable[..., np.ndarray]]

FORGET: Retention = (("f",), lambda f: f)
RETENTION: dict[type, Retention] = {
    GRUCell: (("z",), lambda z: z),
    MGUCell: (("f",), lambda f: 1.0 - f),
    MinGRUCell: (("z",), lambda z: 1.0 - z),
    MinLSTMCell: (("f'",), lambda f: f),
    # h reads c_t / n_t, the weighted mean of its previous value and of g, with weight i / n for g.
    SLSTMCell: (("i", "n"), lambda i, n: 1.0 - i / n),
}
"""The share of its state that a cell retains, and the values it is computed from, if not f."""


class Saturation(NamedTuple):
    """How often gates are shut and open.

    Attributes:
      left: the share of steps at which a unit's gate is left-saturated (shut, below ``low``), by
        layer and gate, ``[units]``.
      right: the same for right-saturated gates (open, above ``high``).
    """

    left: dict[str, dict[str, np.ndarray]]
    right: dict[str, dict[str, np.ndarray]]


def saturation(
    trace: Trace,
    *,
    low: float = 0.1,
    high: float = 0.9,
    gates: str | Sequence[str] = GATES,
) -> Saturation:
    """Computes the share of time for which each gate of each unit is shut or open.

    A unit whose forget gate is right-saturated most of the time retains its content for long.  A
    unit whose forget gate is left-saturated does not use its memory at all.

    Args:
      trace: a trace that contains the gates of some or all units.
      low: a gate below this value is shut.
      high: a gate above this value is open.
      gates: the names of gates; a layer need not have all of them.

    Returns:
      :class:`Saturation`, over all steps (before the end of a row) and all batch axes.

    Raises:
      ValueError: the trace has none of the gates or no steps, or 0 < low < high < 1 does not hold.

    Example:
      >>> import jax.numpy as jnp
      >>> trace = Trace({"cell": {"f": jnp.array([[0.95, 0.5], [0.99, 0.05]])}}, state=())
      >>> shares = saturation(trace)
      >>> shares.right["cell"]["f"].tolist(), shares.left["cell"]["f"].tolist()
      ([1.0, 0.0], [0.0, 0.5])

    References:
      Andrej Karpathy, Justin Johnson, Li Fei-Fei, "Visualizing and Understanding Recurrent
      Networks", ICLR 2016 workshop, section 4.2 and figure 3.
    """
    if not 0 < low < high < 1:
        raise ValueError(f"low and high must satisfy 0 < low < high < 1, got {low} and {high}")
    gates = (gates,) if isinstance(gates, str) else tuple(gates)
    left, right = OrderedDict(), OrderedDict()
    for layer, values in trace.values.items():
        found = {gate: _of_steps(trace, value) for gate, value in values.items() if gate in gates}
        if found:
            left[layer] = {gate: (value < low).mean(0) for gate, value in found.items()}
            right[layer] = {gate: (value > high).mean(0) for gate, value in found.items()}
    if not left:
        raise ValueError(f"trace must have gates, {', '.join(gates)}, got {_names(trace)}")
    return Saturation(left, right)


class MemoryHorizon(NamedTuple):
    """How long units remember.

    Attributes:
      steps: the number of steps after which a unit's content has decayed to 1/e, by layer,
        ``[units]``; infinite for units that forget nothing.
    """

    steps: dict[str, np.ndarray]


def memory_horizon(trace: Trace, model: Any = None, *, gate: str | None = None) -> MemoryHorizon:
    """Computes the effective memory length of each unit from the gate that retains its state.

    Let f_t be the share of its state that a unit retains at step t.  Between t and t + n, the
    state of step t is multiplied by f_{t+1} ... f_{t+n}.  On average this is exp(-n / τ) with::

        τ = -1 / mean_t log f_t

    τ is the horizon in steps; near f = 1 it is 1 / (1 - f).  It measures how fast the content
    fades, not whether it is read.  (A :class:`lstm_jax.sequence.Zoneout` around the cell retains
    more; this is not taken into account.)

    Args:
      trace: a trace that contains the retaining gate of some or all units.
      model: the traced model, whose cells determine the gate.
      gate: the retaining gate of a custom cell: ``"f"``, or ``"1 - z"`` if z is the share that is
        overwritten.

    Returns:
      :class:`MemoryHorizon`, over all batch axes and all steps (before the end of a row) except
      the first, which retains the initial state.

    Raises:
      ValueError: neither ``model`` nor ``gate`` is given, ``model`` lacks a layer of the trace,
        no row has a second step, or the trace lacks the gate; cells such as an Elman network do
        not have one.

    Example:
      >>> import jax.numpy as jnp
      >>> z = jnp.array([[0.5, 0.0], [0.1, 0.0], [0.3, 0.0]])
      >>> trace = Trace({"cell": {"z": z}}, state=())
      >>> memory_horizon(trace, gate="1 - z").steps["cell"].round(2).tolist()  # sqrt(0.9 * 0.7)
      [4.33, inf]

    References:
      Corentin Tallec, Yann Ollivier, "Can recurrent neural networks warp time?", ICLR 2018
      (1 / (1 - f) as a characteristic forgetting time).
    """
    if model is None and gate is None:
        raise ValueError("model or gate must be given, to know which gate retains the state")
    cells = {} if model is None else cells_by_path(functional(model, NO_PARAMS).layer)
    steps: dict[str, np.ndarray] = OrderedDict()
    for layer, values in trace.values.items():
        cell = cells.get(layer)
        if gate is None and cell is None:
            raise ValueError(f"model must have {layer} of the trace, got {', '.join(cells)}")
        names, share = _retention(gate) if gate else RETENTION.get(type(cell), FORGET)
        missing = [name for name in names if name not in values]
        if missing:
            what = layer if cell is None else f"{layer} ({type(cell).__name__})"
            raise ValueError(
                f"trace must have the gate that retains the state, {missing[0]} of {what}, got "
                f"{', '.join(values)}; a cell without such a gate has no horizon"
            )
        retained = share(*(_of_steps(trace, values[name], after=1) for name in names))
        with np.errstate(divide="ignore"):
            steps[layer] = 1.0 / np.abs(np.log(retained).mean(0))
    return MemoryHorizon(steps)


def _retention(gate: str) -> Retention:
    """Parses ``"f"`` or ``"1 - z"``."""
    name = gate.removeprefix("1 - ")
    return ((name,), lambda z: z if name == gate else 1.0 - z)


def _of_steps(trace: Trace, value: Any, after: int = 0) -> np.ndarray:
    """The values of all valid steps, from step ``after`` on, ``[N, units]``."""
    value, counted = np.asarray(value[after:], np.float64), valid(trace)[after:]
    if not counted.any():
        raise ValueError(f"trace must have rows of at least {after + 1} steps, got none")
    return value[counted].reshape(-1, value.shape[-1])


def _names(trace: Trace) -> str:
    names = dict.fromkeys(name for values in trace.values.values() for name in values)
    return ", ".join(names)
