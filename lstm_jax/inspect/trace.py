"""Records every gate, candidate, state and output of every step, by its name in the equations."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.base import Params, State
from lstm_jax.inspect.models import directions, functional, run_by, stepwise
from lstm_jax.sequence import Bidirectional, unroll
from lstm_jax.sequence.bidirectional import MERGES
from lstm_jax.sequence.fused.graph import StepGraph, Var, bind
from lstm_jax.sequence.protocol import Around
from lstm_jax.sequence.rows import valid_steps

Values = dict[str, dict[str, jax.Array]]  # both keep their order as pytrees


class Trace(NamedTuple):
    """The values that a model computed, step by step.

    Attributes:
      values: values by layer and name, each ``[T, ..., units]``; zero beyond a row's length.
      state: the state after each row's last step, as from :func:`lstm_jax.unroll`; pass it on to
        trace the next chunk of a long sequence.
      units: the indices of the units in ``values``; None for all.
      lengths: the lengths of the rows; None for all T steps.
    """

    values: Values
    state: State
    units: jax.Array | None = None
    lengths: jax.Array | None = None


def trace(
    model: Any,
    params: Params,
    xs: jax.Array,
    state: State | None = None,
    *,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    engine: str = "auto",
    layers: str | Sequence[str] | None = None,
    names: str | Sequence[str] | None = None,
    units: int | Sequence[int] | None = None,
) -> Trace:
    """Records the gates, candidates, states and outputs of every step of a model.

    The model runs as usual (in evaluation, without dropout).  Each cell returns the requested
    values in addition to its output; nothing else is stored.  Values equal those of
    :func:`lstm_jax.unroll` bit for bit, unless the additional outputs make XLA fuse the step
    differently, which rounds some products once instead of twice.  Names are those of the cell's
    equations, ``i``, ``f``, ``g``, ``o``, ``c``, ``h`` for :class:`lstm_jax.LSTMCell`, and ``y``
    for an output that is not part of the state.  A custom cell provides its state, and the values
    that its equations mark with :func:`lstm_jax.cells.named`.

    Args:
      model: a cell, a :class:`lstm_jax.LSTM`, :class:`lstm_jax.Stack` or
        :class:`lstm_jax.Bidirectional`, or a module of ``lstm_jax.nnx`` or ``lstm_jax.linen``.
      params: its parameters; None for an nnx module; the variables of a linen module.
      xs: the inputs as the model takes them: ``[T, ..., D]``, or ``[..., T, D]`` for a Flax
        module that is not ``time_major``.  In the trace, time is always the first axis.
      state: the state before the first step; the initial one if None.
      lengths: as in :func:`lstm_jax.unroll`.
      resets: as in the model's own call.
      reverse: whether time runs backwards, for a cell; a stack has its own option.
      engine: for a cell, as in :func:`lstm_jax.unroll`; a stack has its own option.
        ``"associative"`` and ``"cudnn"`` compute all steps at once; the trace then runs step by
        step and differs by rounding.
      layers: the layers to record: ``"layer_0"``, or one direction ``"layer_0.forward"``; a single
        cell is ``"cell"``.  None for all.
      names: the values to record; None for all.
      units: the indices of the values' last axis to record.  Values without such a unit (for
        instance a gate that a block of cells shares) are skipped unless requested by name.

    Returns:
      A :class:`Trace`.

    Raises:
      ValueError: there is no such layer, name or unit; or as in :func:`lstm_jax.unroll`.
      TypeError: ``model`` is of another type, or units are not integers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import LSTM
      >>> lstm = LSTM(hidden_size=4, num_layers=2)
      >>> params, xs = lstm.init(jax.random.key(0), input_size=3), jnp.ones((7, 5, 3))
      >>> values = trace(lstm, params, xs).values  # T=7, B=5, D=3
      >>> list(values), list(values["layer_0"]), values["layer_0"]["f"].shape
      (['layer_0', 'layer_1'], ['i', 'f', 'g', 'o', 'c', 'h'], (7, 5, 4))
      >>> trace(lstm, params, xs, layers="layer_1", names="c", units=2).values["layer_1"]["c"].shape
      (7, 5, 1)
    """
    held = functional(model, params)
    layer, params = held.layer, held.params
    xs, resets = held.time_leading(xs, resets)
    units = _integers(units)
    how = {"reverse": reverse, "engine": engine}

    def run(select: Mapping[str, Sequence[str]] | None, xs, state=None, **rows) -> Any:
        return _run(layer, params, xs, state, select, units, how, **rows)

    known, _ = jax.eval_shape(functools.partial(run, None), xs)
    select = _selected(known, _strings(layers), _strings(names), units)
    values, state = run(select, xs, state, lengths=lengths, resets=resets)
    return Trace(
        values=values,
        state=state,
        units=None if units is None else jnp.asarray(units),
        lengths=None if lengths is None else jnp.asarray(lengths),
    )


def _run(
    layer: Any,
    params: Params,
    xs: jax.Array,
    state: State | None,
    select: Mapping[str, Sequence[str]] | None,
    units: tuple[int, ...] | None,
    how: Mapping[str, Any],
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
) -> tuple[Values, State]:
    """The selected values of each cell by path (all if None), and the last state."""
    values: Values = OrderedDict()

    def traced(path: str, cell: Any) -> Any:
        if select is None:
            return _Traced(cell, None, None)
        return _Traced(cell, tuple(select.get(path, ())), units)

    def record(path: str, out: Any) -> jax.Array:
        y, shown = out
        if select is None or path in select:
            values[path] = shown
        return y

    def run(
        path: str, part: Any, how: Any, params: Params, xs: Any, state: Any, **rows: Any
    ) -> Any:
        if not isinstance(part, Bidirectional):
            ((where, _),) = directions(part, path).items()
            state, out = unroll(traced(where, part), params, xs, state, **rows, **how)
            return state, record(where, out)

        forward, backward = directions(part, path)
        merge = MERGES[part.merge] if isinstance(part.merge, str) else part.merge
        both = Bidirectional(
            traced(forward, part.forward),
            traced(backward, part.backward),
            merge=lambda ys, zs: merge(record(forward, ys), record(backward, zs)),
            engine=stepwise(part.engine),
        )
        return both.apply(params, xs, state, **rows)

    state, _ = run_by(layer, run, **how).apply(params, xs, state, lengths=lengths, resets=resets)
    return values, state


@dataclasses.dataclass(frozen=True)
class _Traced(Around):
    """A cell that returns a pair: its output, and the requested values by name."""

    names: tuple[str, ...] | None
    units: tuple[int, ...] | None

    def step(self, params: Params, state: State, x: jax.Array) -> tuple[State, Any]:
        graph = StepGraph(self.cell.step, params, state, x)
        shown = equation_names(graph)
        if self.names is not None:
            shown = {name: shown[name] for name in self.names}
        shown = OrderedDict(shown)  # as a pytree, this preserves the order
        known = bind(graph.inputs, (params, state, x))
        state, y = graph.outputs
        state, y, shown = graph.evaluate((state, y, shown), known)
        if self.units is not None:
            shown = jax.tree.map(lambda value: value[..., jnp.asarray(self.units)], shown)
        return state, (y, shown)


def equation_names(graph: StepGraph) -> dict[str, Var]:
    """The values of a cell's step by their names in the equations, in the order of computation.

    Args:
      graph: the graph of ``cell.step(params, state, x)``.
    """
    state, y = graph.outputs
    fields = dict(zip(field_names(state), jax.tree.leaves(state), strict=True))
    shown = {**graph.labels, **fields}
    if y not in fields.values():
        shown["y"] = y
    return dict(sorted(shown.items(), key=lambda item: item[1]))


def field_names(state: Any) -> list[str]:
    """The names of a state's arrays: the fields of a NamedTuple, the keys of a dict.

    >>> from lstm_jax import LSTMState
    >>> field_names(LSTMState(h=0, c=0)), field_names(0)
    (['h', 'c'], ['state'])
    """
    paths = (path for path, _ in jax.tree.leaves_with_path(state))
    return [jax.tree_util.keystr(path, simple=True, separator=".") or "state" for path in paths]


def valid(trace: Trace) -> np.ndarray:
    """Whether each step is before the end of its row; booleans ``[T]`` or ``[T, ...]``.

    >>> valid(Trace({"cell": {"h": jnp.ones((3, 2, 4))}}, (), lengths=jnp.array([3, 1]))).tolist()
    [[True, True], [True, False], [True, False]]
    """
    num_steps = len(jax.tree.leaves(trace.values)[0])
    if trace.lengths is None:
        return np.ones(num_steps, bool)
    return np.asarray(valid_steps(num_steps, trace.lengths))


def _strings(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)


def _integers(given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    array = np.asarray(given)
    if array.ndim > 1 or (array.size and array.dtype.kind not in "iu"):  # for instance a mask
        raise TypeError(f"units must be an integer or a sequence of integers, got {given!r}")
    return tuple(array.ravel().tolist())


def _selected(
    known: Mapping[str, Mapping[str, Any]],
    layers: tuple[str, ...] | None,
    names: tuple[str, ...] | None,
    units: tuple[int, ...] | None,
) -> dict[str, list[str]]:
    """The requested names of each cell by path, out of the known ones."""
    paths = list(known)
    for what, wanted in (("layers", layers), ("names", names)):
        if wanted == ():
            raise ValueError(f"{what} must be at least one, or None for all, got none")
    if layers is not None:
        for layer in layers:
            if not any(_is_in(path, layer) for path in known):
                raise ValueError(f"layers must be among {', '.join(known)}, got {layer!r}")
        paths = [path for path in known if any(_is_in(path, layer) for layer in layers)]
    if units is not None and (not units or min(units) < 0):
        raise ValueError(f"units must be integers of at least 0, got {units}")

    available = _ordered(known, paths)
    for name in names or ():
        if name not in available:
            raise ValueError(f"names must be among {', '.join(available)}, got {name!r}")
    select: dict[str, list[str]] = {}
    for path in paths:
        select[path] = []
        for name, value in known[path].items():
            fits = units is None or max(units) < value.shape[-1]
            if names is not None and name in names and not fits:
                raise ValueError(
                    f"units must be below {value.shape[-1]} for {name} of {path}, "
                    f"got {max(units or ())}"
                )
            if fits and (names is None or name in names):
                select[path].append(name)
    if not any(select.values()):
        widest = max(value.shape[-1] for path in paths for value in known[path].values())
        raise ValueError(f"units must be below {widest}, got {max(units or ())}")
    return {path: chosen for path, chosen in select.items() if chosen}


def _ordered(known: Mapping[str, Mapping[str, Any]], paths: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for path in paths for name in known[path]))


def _is_in(path: str, layer: str) -> bool:
    return path == layer or path.startswith(f"{layer}.")
