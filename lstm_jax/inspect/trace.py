"""Every gate, candidate, state and output of every step, by its name in the equations."""

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
    """What a model computed, step by step.

    Attributes:
      values: by layer and by name, each ``[T, ..., units]``; zero past a row's length.
      state: the state after each row's last step, as :func:`lstm_jax.unroll` has it: what the
        next stretch of a long sequence begins with.
      units: which units ``values`` hold, integers; None for all.
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
    """What a model computes on the way: gates, candidates, states and outputs of every step.

    The model runs as it always does (in evaluation, without dropout), and each cell hands out,
    beside its output, what is asked for; nothing else is stored.  Values are those of
    :func:`lstm_jax.unroll`, to the last bit unless XLA fuses the step otherwise since its gates
    are asked for, which rounds some products once and not twice.  Names are those of the
    cell's equations, ``i``, ``f``, ``g``, ``o``, ``c``, ``h`` for :class:`lstm_jax.LSTMCell`, and
    ``y`` for an output that is not part of the state.  A cell of your own shows its state, and
    whatever its equations mark with :func:`lstm_jax.cells.named`.

    Args:
      model: a cell, a :class:`lstm_jax.LSTM`, :class:`lstm_jax.Stack` or
        :class:`lstm_jax.Bidirectional`, or a module of ``lstm_jax.nnx`` or ``lstm_jax.linen``.
      params: its parameters; None for an nnx module; the variables of a linen module.
      xs: the inputs as the model takes them: ``[T, ..., D]``, and ``[..., T, D]`` for a Flax
        module that is not ``time_major``.  Values have time in front in any case.
      state: the state before the first step; the initial one if None.
      lengths: as in :func:`lstm_jax.unroll`.
      resets: as in the model's own call.
      reverse: whether time runs backwards, for a cell; a stack has it itself.
      engine: for a cell, as in :func:`lstm_jax.unroll`; a stack has it itself.  ``"associative"``
        and ``"cudnn"`` compute all steps at once; a trace is then taken step by step, and
        equal but for rounding.
      layers: which layers are wanted: ``"layer_0"``, or one direction ``"layer_0.forward"``; a
        cell by itself is ``"cell"``.  None for all.
      names: which values; None for all.
      units: which places of the values' last axis.  Values without such a unit (a gate that is
        shared by a block of cells, say) are left out unless they are asked for by name.

    Returns:
      A :class:`Trace`.

    Raises:
      ValueError: there is no such layer, name or unit; or as in :func:`lstm_jax.unroll`.
      TypeError: ``model`` is none of these, or units are not integers.

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
    select = _selected(known, _texts(layers), _texts(names), units)
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
    """Values of the selected names of each place, and the last state; everything if None."""
    values: Values = OrderedDict()

    def handing_out(path: str, cell: Any) -> Any:
        if select is None:
            return _Traced(cell, None, None)
        return _Traced(cell, tuple(select.get(path, ())), units)

    def noted(path: str, out: Any) -> jax.Array:
        y, shown = out
        if select is None or path in select:
            values[path] = shown
        return y

    def run(
        path: str, part: Any, how: Any, params: Params, xs: Any, state: Any, **rows: Any
    ) -> Any:
        if not isinstance(part, Bidirectional):
            ((where, _),) = directions(part, path).items()
            state, out = unroll(handing_out(where, part), params, xs, state, **rows, **how)
            return state, noted(where, out)

        forward, backward = directions(part, path)
        merge = MERGES[part.merge] if isinstance(part.merge, str) else part.merge
        both = Bidirectional(
            handing_out(forward, part.forward),
            handing_out(backward, part.backward),
            merge=lambda ys, zs: merge(noted(forward, ys), noted(backward, zs)),
            engine=stepwise(part.engine),
        )
        return both.apply(params, xs, state, **rows)

    state, _ = run_by(layer, run, **how).apply(params, xs, state, lengths=lengths, resets=resets)
    return values, state


@dataclasses.dataclass(frozen=True)
class _Traced(Around):
    """A cell whose output is the pair of its output and what was asked for, by name."""

    names: tuple[str, ...] | None
    units: tuple[int, ...] | None

    def step(self, params: Params, state: State, x: jax.Array) -> tuple[State, Any]:
        graph = StepGraph(self.cell.step, params, state, x)
        shown = equation_names(graph)
        if self.names is not None:
            shown = {name: shown[name] for name in self.names}
        shown = OrderedDict(shown)  # which keeps its order as a pytree
        known = bind(graph.inputs, (params, state, x))
        state, y = graph.outputs
        state, y, shown = graph.evaluate((state, y, shown), known)
        if self.units is not None:
            shown = jax.tree.map(lambda value: value[..., jnp.asarray(self.units)], shown)
        return state, (y, shown)


def equation_names(graph: StepGraph) -> dict[str, Var]:
    """The values of a cell's step by their names in the equations, in their order.

    Args:
      graph: of ``cell.step(params, state, x)``.
    """
    state, y = graph.outputs
    fields = dict(zip(field_names(state), jax.tree.leaves(state), strict=True))
    shown = {**graph.labels, **fields}
    if y not in fields.values():
        shown["y"] = y
    return dict(sorted(shown.items(), key=lambda item: item[1]))  # as they are computed


def field_names(state: Any) -> list[str]:
    """The names of a state's arrays: the fields of a NamedTuple, the keys of a dict.

    >>> from lstm_jax import LSTMState
    >>> field_names(LSTMState(h=0, c=0)), field_names(0)
    (['h', 'c'], ['state'])
    """
    paths = (path for path, _ in jax.tree.leaves_with_path(state))
    return [jax.tree_util.keystr(path, simple=True, separator=".") or "state" for path in paths]


def valid(trace: Trace) -> np.ndarray:
    """Which steps are before the end of their row; booleans ``[T]`` or ``[T, ...]``.

    >>> valid(Trace({"cell": {"h": jnp.ones((3, 2, 4))}}, (), lengths=jnp.array([3, 1]))).tolist()
    [[True, True], [True, False], [True, False]]
    """
    num_steps = len(jax.tree.leaves(trace.values)[0])
    if trace.lengths is None:
        return np.ones(num_steps, bool)
    return np.asarray(valid_steps(num_steps, trace.lengths))


def _texts(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)


def _integers(given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    array = np.asarray(given)
    if array.ndim > 1 or (array.size and array.dtype.kind not in "iu"):  # masks, say
        raise TypeError(f"units must be an integer or some in a row, got {given!r}")
    return tuple(array.ravel().tolist())


def _selected(
    known: Mapping[str, Mapping[str, Any]],
    layers: tuple[str, ...] | None,
    names: tuple[str, ...] | None,
    units: tuple[int, ...] | None,
) -> dict[str, list[str]]:
    """The names wanted of each place, of those that there are."""
    places = list(known)
    for what, wanted in (("layers", layers), ("names", names)):
        if wanted == ():
            raise ValueError(f"{what} must be at least one, or None for all, got none")
    if layers is not None:
        for layer in layers:
            if not any(_is_in(place, layer) for place in known):
                raise ValueError(f"layers must be of {', '.join(known)}, got {layer!r}")
        places = [place for place in known if any(_is_in(place, layer) for layer in layers)]
    if units is not None and (not units or min(units) < 0):
        raise ValueError(f"units must be integers of at least 0, got {units}")

    there = {name for place in places for name in known[place]}
    for name in names or ():
        if name not in there:
            raise ValueError(f"names must be of {', '.join(_ordered(known, places))}, got {name!r}")
    select: dict[str, list[str]] = {}
    for place in places:
        select[place] = []
        for name, value in known[place].items():
            fits = units is None or max(units) < value.shape[-1]
            if names is not None and name in names and not fits:
                raise ValueError(
                    f"units must be below {value.shape[-1]} for {name} of {place}, "
                    f"got {max(units or ())}"
                )
            if fits and (names is None or name in names):
                select[place].append(name)
    if not any(select.values()):
        widest = max(value.shape[-1] for place in places for value in known[place].values())
        raise ValueError(f"units must be below {widest}, got {max(units or ())}")
    return {place: chosen for place, chosen in select.items() if chosen}


def _ordered(known: Mapping[str, Mapping[str, Any]], places: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for place in places for name in known[place]))


def _is_in(place: str, layer: str) -> bool:
    return place == layer or place.startswith(f"{layer}.")
