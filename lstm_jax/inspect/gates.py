"""How gates are used: how often they are open or shut, and how long a cell remembers."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lstm_jax.cells import GRUCell, MGUCell, MinGRUCell, MinLSTMCell, SLSTMCell
from lstm_jax.inspect.models import NO_PARAMS, cells_of, functional
from lstm_jax.inspect.trace import Trace, valid

GATES = ("i", "f", "o", "r", "z", "i'", "f'")
"""What the equations of :data:`lstm_jax.CELLS` call their gates."""

Kept = tuple[tuple[str, ...], Callable[..., np.ndarray]]

FORGET: Kept = (("f",), lambda f: f)
KEEPS: dict[type, Kept] = {
    GRUCell: (("z",), lambda z: z),
    MGUCell: (("f",), lambda f: 1.0 - f),
    MinGRUCell: (("z",), lambda z: 1.0 - z),
    MinLSTMCell: (("f'",), lambda f: f),
    # c_t / n_t, of which h is read, is a mean: of what stood there, and of g with weight i / n.
    SLSTMCell: (("i", "n"), lambda i, n: 1.0 - i / n),
}
"""What share of its state a cell keeps, and of which values it is made, where that is not f."""


class Saturation(NamedTuple):
    """How often gates are shut and open.

    Attributes:
      left: share of the steps at which a unit's gate is left-saturated, which is shut: below
        ``low``; by layer and gate, ``[units]``.
      right: the same for right-saturated, which is open: above ``high``.
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
    """The share of time for which each gate of each unit is shut or open.

    A unit that is right-saturated in its forget gate most of the time keeps what it holds for
    long; one that is left-saturated there does not use its memory at all.

    Args:
      trace: with the gates, of all units or of some.
      low: a gate below it is shut.
      high: a gate above it is open.
      gates: the names of gates, of which a layer need not have all.

    Returns:
      :class:`Saturation`, over all steps (before the end of a row) and all batch axes.

    Raises:
      ValueError: the trace has none of the gates or no steps, or ``low`` and ``high`` are not
        in 0 < low < high < 1.

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
        raise ValueError(f"low and high must be 0 < low < high < 1, got {low} and {high}")
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
      steps: the number of steps after which 1/e of what a unit holds is left, by layer,
        ``[units]``; infinite where nothing is ever forgotten.
    """

    steps: dict[str, np.ndarray]


def memory_horizon(trace: Trace, model: Any = None, *, gate: str | None = None) -> MemoryHorizon:
    """The effective memory length of each unit, told by the gate that keeps its state.

    With f_t the share of its state that a unit keeps at step t, what it held at t is multiplied
    by f_{t+1} ... f_{t+n} until t + n.  On average that is exp(-n / τ) with::

        τ = -1 / mean_t log f_t

    which is the horizon, in steps; near f = 1 it is 1 / (1 - f).  It tells how fast a content
    fades, not what is read of it.  (A :class:`lstm_jax.sequence.Zoneout` around the cell, which
    keeps more, is not counted.)

    Args:
      trace: with the gate that keeps, of all units or of some.
      model: what was traced, whose cells tell which gate that is.
      gate: the gate that keeps, for a cell of your own: ``"f"``, or ``"1 - z"`` where keeping is
        what z does not write.

    Returns:
      :class:`MemoryHorizon`, over all batch axes and all steps (before the end of a row) but the
      first, which keeps what was there before the sequence.

    Raises:
      ValueError: neither ``model`` nor ``gate`` is given, ``model`` lacks a layer of the trace,
        no row has a second step, or the trace lacks the gate: a cell such as an Elman network
        has none.

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
        raise ValueError("model or gate must be given, since they tell which gate keeps the state")
    cells = {} if model is None else cells_of(functional(model, NO_PARAMS).layer)
    steps: dict[str, np.ndarray] = OrderedDict()
    for layer, values in trace.values.items():
        cell = cells.get(layer)
        if gate is None and cell is None:
            raise ValueError(f"model must have {layer} of the trace, got {', '.join(cells)}")
        names, share = _kept(gate) if gate else KEEPS.get(type(cell), FORGET)
        missing = [name for name in names if name not in values]
        if missing:
            what = layer if cell is None else f"{layer} ({type(cell).__name__})"
            raise ValueError(
                f"trace must have the gate that keeps the state, {missing[0]} of {what}, got "
                f"{', '.join(values)}; a cell without one has no horizon"
            )
        kept = share(*(_of_steps(trace, values[name], after=1) for name in names))
        with np.errstate(divide="ignore"):
            steps[layer] = 1.0 / np.abs(np.log(kept).mean(0))
    return MemoryHorizon(steps)


def _kept(gate: str) -> Kept:
    """What ``"f"`` or ``"1 - z"`` says."""
    name = gate.removeprefix("1 - ")
    return ((name,), lambda z: z if name == gate else 1.0 - z)


def _of_steps(trace: Trace, value: Any, after: int = 0) -> np.ndarray:
    """The values of all steps that count, from step ``after`` on, ``[N, units]``."""
    value, counted = np.asarray(value[after:], np.float64), valid(trace)[after:]
    if not counted.any():
        raise ValueError(f"trace must have rows of at least {after + 1} steps, got none")
    return value[counted].reshape(-1, value.shape[-1])


def _names(trace: Trace) -> str:
    names = dict.fromkeys(name for values in trace.values.values() for name in values)
    return ", ".join(names)
