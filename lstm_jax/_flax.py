"""Common code of the nnx and linen modules: parameters with metadata, carries and layouts."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax import sequence
from lstm_jax.cells import CELLS
from lstm_jax.cells.base import Cell, Initializer, Params, State, check_features, check_size
from lstm_jax.cells.initializers import Joint
from lstm_jax.sequence.bidirectional import Bidirectional, BidirectionalState
from lstm_jax.sequence.protocol import (
    check_cell_or_layer,
    input_size,
    is_layer,
    num_feature_axes,
)
from lstm_jax.sequence.regularizers import without_regularizers
from lstm_jax.sequence.rows import checked_flags, flipped, flipped_by_mask, valid_steps
from lstm_jax.sequence.stack import Stack, Stacked
from lstm_jax.sequence.unroll import initial_state

NewKey = Callable[[], jax.Array]
Unbox = Callable[[Any], tuple[jax.Array, Any]]  # from an initialiser's result to (array, box)

# ---- initialisation ----


class NewParameter(NamedTuple):
    """One new parameter.

    Attributes:
      value: the array.
      role: the role that the cell declares, such as ``"kernel"``, or None.
      box: the box with metadata in which the initialiser of this role returned an array; None if
        it returned a bare array.
    """

    value: jax.Array
    role: str | None = None
    box: Any = None


def new_parameters(thing: Any, input_size: int, new_key: NewKey, unbox: Unbox) -> dict[str, Any]:
    """Initialises the parameters of a cell or layer, as a nested dict of :class:`NewParameter`.

    An initialiser may return its array in a box with metadata.  Cells initialise each gate
    separately and concatenate the arrays, so the arrays of the gates are unboxed.  The caller puts
    the whole parameter into a box of its role.

    Args:
      thing: a cell or layer.
      input_size: D.
      new_key: returns a new random key, called once per cell.
      unbox: takes the array out of its box.

    Raises:
      TypeError: the parameters are not a (nested) dict of arrays.
    """
    # The wrapped cells create their own keys.
    return _wrapped(thing, new_key, unbox).init(jax.random.key(0), input_size)


def values(parameters: dict[str, Any]) -> Params:
    """The bare arrays."""
    return map_parameters(lambda parameter: parameter.value, parameters)


def map_parameters(function: Callable[[NewParameter], Any], parameters: Any) -> Any:
    """Applies ``function`` to each :class:`NewParameter` of a nested dict."""
    if isinstance(parameters, NewParameter):
        return function(parameters)
    return {name: map_parameters(function, child) for name, child in parameters.items()}


def _wrapped(thing: Any, new_key: NewKey, unbox: Unbox) -> Any:
    """The cell or layer, with each cell wrapped in :class:`_Initialisable`."""
    if isinstance(thing, Stacked):
        layers = dict(thing.layers)
        layers = {name: _wrapped(layer, new_key, unbox) for name, layer in layers.items()}
        return Stack(layers, connections=thing.connections)
    if isinstance(thing, Bidirectional):
        cells = (_wrapped(cell, new_key, unbox) for cell in (thing.forward, thing.backward))
        return Bidirectional(*cells, merge=thing.merge)
    return _Initialisable(thing, new_key, unbox)


class _Initialisable:
    """A cell whose ``init`` creates its own key and returns a dict of :class:`NewParameter`."""

    def __init__(self, cell: Any, new_key: NewKey, unbox: Unbox):
        self.cell, self.new_key, self.unbox = cell, new_key, unbox

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cell, name)

    def init(self, _: jax.Array, input_size: int) -> dict[str, Any]:
        cell = without_regularizers(self.cell)  # regularisers have no parameters
        if not hasattr(cell, "all_parameters"):
            return self._checked(cell.init(self.new_key(), input_size), nested=is_layer(cell))
        bare, boxes = self._without_boxes(cell)
        parameters = self._checked(bare.init(self.new_key(), input_size), nested=False)
        for name, declared in cell.all_parameters(input_size).items():
            box = boxes.get(declared.role)
            parameters[name] = parameters[name]._replace(role=declared.role, box=box)
        return parameters

    def _without_boxes(self, cell: Any) -> tuple[Any, dict[str, Any]]:
        """A copy of a cell whose initialisers return bare arrays and store their boxes by role."""
        boxes = {}

        def unboxed(role: str, init: Initializer) -> Initializer:
            def bare(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
                value, boxes[role] = self.unbox(init(key, shape, dtype))
                return value

            return Joint(bare) if isinstance(init, Joint) else bare

        copied = copy.copy(cell)  # dataclasses.replace would check the initialisers
        for field in dataclasses.fields(cell):
            if field.name.endswith("_init"):
                role, init = field.name.removesuffix("_init"), getattr(cell, field.name)
                object.__setattr__(copied, field.name, unboxed(role, init))
        return copied, boxes

    def _checked(self, params: Any, nested: bool) -> Any:
        if isinstance(params, dict):
            if all(isinstance(leaf, jax.Array) for leaf in params.values()):
                return {name: NewParameter(leaf) for name, leaf in params.items()}
            if nested:
                return {name: self._checked(child, nested) for name, child in params.items()}
        elif nested and isinstance(params, jax.Array):
            return NewParameter(params)
        kind = "dict" if nested else "flat dict"
        raise TypeError(
            f"parameters of {type(self.cell).__name__} must be a {kind} of arrays to be held by "
            f"a Flax module, got {jax.tree.structure(params)}"
        )


# ---- cells ----


@functools.cache
def options(functional: Any) -> tuple[tuple[str, Any, Any], ...]:
    """The name, type and default of each option of a functional cell, except its size.

    Those without a default, ``inspect.Parameter.empty``, come first.
    """
    parameters = list(inspect.signature(functional).parameters.values())
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    return tuple((p.name, p.annotation, p.default) for p in parameters if p.name != "hidden_size")


def check_options(module: str, functional: Any, given: dict[str, Any]) -> None:
    """Raises an error if a keyword is not an option of the functional cell."""
    known = [name for name, _, _ in options(functional)]
    for name in given:
        if name not in known:
            raise TypeError(
                f"{module} got an unexpected keyword argument {name!r}; its options are "
                f"{', '.join(known)}"
            )


def new_carry(
    cell: Cell,
    params: Params,
    batch_shape: tuple[int, ...],
    carry_init: Initializer,
    new_key: NewKey,
) -> State:
    """A state whose arrays ``carry_init`` initialises, each with its own key."""
    zeros = jax.eval_shape(
        lambda: initial_state(cell, params, batch_shape) if params else cell.zero_state(batch_shape)
    )
    return jax.tree.map(lambda zero: carry_init(new_key(), zero.shape, zero.dtype), zeros)


def check_carry_init(cell: Cell, carry_init: Initializer | None) -> None:
    """Raises an error if ``carry_init`` is given for a cell that learns its initial state."""
    if carry_init is not None and getattr(cell, "learn_initial_state", False):
        raise ValueError("carry_init must be None if learn_initial_state is True")


def learns_initial_state(thing: Any) -> bool:
    """Whether the initial state of a cell or layer depends on its parameters.

    >>> from lstm_jax import LSTM, LSTMCell
    >>> cell = functools.partial(LSTMCell, learn_initial_state=True)
    >>> learns_initial_state(LSTM(3, cell=("gru", cell))), learns_initial_state(LSTM(3))
    (True, False)
    """
    if isinstance(thing, Stacked):
        return any(map(learns_initial_state, dict(thing.layers).values()))
    if isinstance(thing, Bidirectional):
        return any(map(learns_initial_state, (thing.forward, thing.backward)))
    return getattr(thing, "learn_initial_state", hasattr(thing, "initial_state"))


# ---- carries ----

Back = Callable[[State], Any]


def state_of(carry: Any, layer: Any) -> tuple[State, Back]:
    """Converts a carry to the state of a layer; also returns a function for the inverse.

    A stack of one layer accepts that layer's carry, and :class:`Bidirectional` a pair of carries.
    A cell accepts a carry of Flax: ``(c, h)`` for a state of h and c, or an array for a state of h.

    Args:
      carry: the state itself, or one of these forms; None stays None.
      layer: a cell or layer.

    Raises:
      TypeError: the carry of a layer or stack has another structure.

    Example:
      >>> from lstm_jax import LSTM
      >>> state, back = state_of((jnp.zeros(3), jnp.ones(3)), LSTM(3))  # Flax's (c, h)
      >>> state["layer_0"].h.tolist()
      [1.0, 1.0, 1.0]
      >>> back(state)[1].tolist()
      [1.0, 1.0, 1.0]
    """
    if isinstance(layer, Stacked):
        return _stack_state(carry, dict(layer.layers))
    if isinstance(layer, Bidirectional):
        return _directions_state(carry, layer)
    return _layer_state(carry, layer)


def _unchanged(carry: Any) -> Any:
    return carry


def _stack_state(carry: Any, layers: dict[str, Any]) -> tuple[State, Back]:
    names = [*layers]
    if isinstance(carry, Mapping) and set(carry) == set(names):
        pairs = {name: state_of(carry[name], layer) for name, layer in layers.items()}
        return (
            {name: state for name, (state, _) in pairs.items()},
            lambda states: {name: back(states[name]) for name, (_, back) in pairs.items()},
        )
    if carry is None:
        return None, _unchanged
    if len(names) == 1 and not isinstance(carry, Mapping):
        state, back = state_of(carry, layers[names[0]])
        return {names[0]: state}, lambda states: back(states[names[0]])
    wanted = ", ".join(f"{name!r}: ..." for name in names)
    given = f"the keys {', '.join(map(str, carry))}" if isinstance(carry, Mapping) else None
    raise TypeError(
        f"initial_carry must be a dict with the state of each layer, {{{wanted}}}, as "
        f"initialize_carry returns it, got {given or type(carry).__name__}"
    )


def _directions_state(carry: Any, layer: Bidirectional) -> tuple[State, Back]:
    if carry is None:
        return None, _unchanged
    kind = type(carry)
    if kind is not BidirectionalState and not (kind is tuple and len(carry) == 2):
        raise TypeError(
            "initial_carry of a bidirectional layer must be BidirectionalState(forward, "
            f"backward) or the pair of their carries, got {kind.__name__}"
        )
    forward, forward_back = state_of(carry[0], layer.forward)
    backward, backward_back = state_of(carry[1], layer.backward)

    def back(state: State) -> Any:
        pair = forward_back(state.forward), backward_back(state.backward)
        return pair if kind is tuple else BidirectionalState(*pair)

    return BidirectionalState(forward=forward, backward=backward), back


def _layer_state(carry: Any, cell: Any) -> tuple[State, Back]:
    pair, array = type(carry) is tuple and len(carry) == 2, hasattr(carry, "shape")
    if not pair and not array:
        return carry, _unchanged
    kind = type(jax.eval_shape(cell.zero_state))
    fields = set(getattr(kind, "_fields", ()))
    if pair and fields == {"h", "c"}:
        return kind(h=carry[1], c=carry[0]), lambda state: (state.c, state.h)
    if array and fields == {"h"}:
        return kind(h=carry), lambda state: state.h
    return carry, _unchanged


# ---- sequences ----


def lstm(
    widths: dict[str, Any], num_layers: int, *, cell: Any, options: dict[str, Any], **rest: Any
) -> Stack:
    """The stack inside an :class:`lstm_jax.LSTM`; equal stacks, unlike layers, compare equal.

    Args:
      widths: the hidden sizes, by the name of the argument.
      num_layers: as in :class:`lstm_jax.LSTM`.
      cell: as in :class:`lstm_jax.LSTM`.
      options: options of every cell; for those that are None, the cell's default applies.
      rest: further arguments of :class:`lstm_jax.LSTM`.
    """
    ((name, width),) = widths.items()
    for size in width if isinstance(width, tuple | list) else [width]:
        check_size(name, size)
    given = {name: value for name, value in options.items() if value is not None}

    def with_options(cell: Any) -> Any:
        cell = CELLS.get(cell, cell) if isinstance(cell, str) else cell
        return functools.partial(cell, **given) if given and callable(cell) else cell

    cell = tuple(map(with_options, cell)) if isinstance(cell, tuple | list) else with_options(cell)
    return sequence.LSTM(width, num_layers, cell=cell, **rest).stack


def as_layer(thing: Any) -> Any:
    """Returns a layer unchanged, and a cell as a stack of one layer."""
    check_cell_or_layer("layer", thing)
    return thing if is_layer(thing) else Stack([thing])


def checked_inputs(layer: Any, params: Params | None, xs: Any, time_major: bool) -> jax.Array:
    """Converts inputs to an array and checks their axes and feature size.

    Args:
      layer: a functional layer.
      params: its parameters; None if they are not known yet.
      xs: ``[..., T, D]``, or ``[T, ..., D]`` if ``time_major``.
      time_major: whether time is the first axis.
    """
    xs = jnp.asarray(xs)
    size = None if params is None else input_size(layer, params)
    lead = "T, ..." if time_major else "..., T"
    check_features("xs", xs, size, num_feature_axes(layer), lead)
    return xs


def over_sequence(
    layer: Any,
    params: Params,
    xs: jax.Array,
    initial_carry: State | None,
    *,
    seq_lengths: jax.Array | None,
    mask: jax.Array | None,
    resets: jax.Array | None,
    key: jax.Array | None,
    time_major: bool,
    reverse: bool | None,
    keep_order: bool,
    return_carry: bool,
) -> Any:
    """Applies a functional layer to a sequence, with inputs and outputs in Flax's layout.

    Args:
      layer: a functional layer.
      params: its parameters.
      xs: from :func:`checked_inputs`.
      initial_carry: the layer's state before the first step, in one of the forms that
        :func:`state_of` accepts; the last state is returned in the same form.
      seq_lengths: integers of the batch shape.
      mask: booleans with the axes of ``xs`` except the features; false steps are skipped.
      resets: booleans with the axes of ``xs`` except the features.
      key: random key for dropout and regularisers.
      time_major: whether time is the first axis.
      reverse: whether time runs backwards; None for the layer's own option.
      keep_order: whether outputs of a reversed run are in the order of their inputs; otherwise,
        they are in the order of computation.
      return_carry: whether the last state is also returned.

    Returns:
      The outputs, or the pair ``(carry, outputs)``.
    """
    features = num_feature_axes(layer)
    steps = xs.shape[: xs.ndim - features]

    def time_leading(name: str, flags: jax.Array | None) -> jax.Array | None:
        if flags is None:
            return None
        flags = checked_flags(name, flags, steps)
        return flags if time_major else jnp.moveaxis(flags, -1, 0)

    mask, resets = time_leading("mask", mask), time_leading("resets", resets)
    if not time_major:
        xs = jnp.moveaxis(xs, -1 - features, 0)

    reversible = hasattr(layer, "reverse")
    if reverse is None:
        reverse = reversible and layer.reverse
    elif reversible:
        layer = dataclasses.replace(layer, reverse=reverse)
    elif reverse:
        raise ValueError(f"reverse is for stacks of cells, got {type(layer).__name__}")

    state, back = state_of(initial_carry, layer)
    state, ys = layer.apply(
        params, xs, state, lengths=seq_lengths, mask=mask, resets=resets, key=key
    )
    if reverse and not keep_order:
        if mask is None:
            ys = jnp.flip(ys, 0) if seq_lengths is None else flipped(ys, seq_lengths)
        elif seq_lengths is None:
            ys = flipped_by_mask(ys, mask)
        else:
            ys = flipped_by_mask(ys, mask & valid_steps(ys.shape[0], seq_lengths))
    if not time_major:
        ys = jnp.moveaxis(ys, 0, -1 - features)
    return (back(state), ys) if return_carry else ys
