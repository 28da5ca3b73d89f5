"""Layers on top of one another."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import Params, State, check_size
from lstm_jax.sequence.protocol import (
    check_cell_or_layer,
    input_size,
    is_layer,
    is_stochastic,
    num_feature_axes,
    output_size,
)
from lstm_jax.sequence.regularizers import dropout
from lstm_jax.sequence.unroll import initial_state, unroll

CONNECTIONS = ("plain", "residual", "skip")


class Stacked:
    """What :class:`Stack` and :class:`lstm_jax.LSTM` do with their layers.

    Attributes:
      layers: from the bottom up, a mapping from name to layer, or pairs of both.
      dropout, connections, reverse, engine, memory: as in :class:`Stack`.
    """

    if TYPE_CHECKING:  # fields of both

        @property
        def layers(self) -> Any: ...
        @property
        def dropout(self) -> float: ...
        @property
        def connections(self) -> str: ...
        @property
        def reverse(self) -> bool: ...
        @property
        def engine(self) -> str: ...
        @property
        def memory(self) -> str: ...

    @property
    def _pairs(self) -> tuple[tuple[str, Any], ...]:
        return tuple(dict(self.layers).items())

    def _check_options(self) -> None:
        """Raises an error if an option is invalid or does not fit the layers, as :class:`Stack`."""
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if self.connections not in CONNECTIONS:
            raise ValueError(
                f"connections must be one of {', '.join(CONNECTIONS)}, got {self.connections!r}"
            )
        for name, layer in self._pairs:
            if self.reverse and is_layer(layer):
                raise ValueError(
                    f"reverse is for stacks of cells; {name} is {type(layer).__name__}, which "
                    "has its own directions"
                )
        if self.connections == "residual":
            widths = [output_size(layer) for _, layer in self._pairs]
            for (name, _), width, below in zip(
                self._pairs[1:], widths[1:], widths[:-1], strict=True
            ):
                if width != below:
                    raise ValueError(
                        f"connections='residual' adds a layer's input to its output, but {name} "
                        f"reads {below} features and gives {width}"
                    )

    @property
    def output_size(self) -> int:
        """Features of one output: the top layer's, or with ``"skip"`` those of all layers."""
        widths = [output_size(layer) for _, layer in self._pairs]
        return sum(widths) if self.connections == "skip" else widths[-1]

    @property
    def num_feature_axes(self) -> int:
        """The number of feature axes of an input: that of the first layer."""
        return num_feature_axes(self._pairs[0][1])

    @property
    def is_stochastic(self) -> bool:
        """Whether ``apply`` uses a key: for dropout between layers, or in one of the layers."""
        between = self.dropout > 0.0 and len(self._pairs) > 1
        return between or any(is_stochastic(layer) for _, layer in self._pairs)

    def input_size(self, params: Mapping[str, Params]) -> int | None:
        """D, read from the parameters; None if they do not determine it."""
        name, layer = self._pairs[0]
        return input_size(layer, params[name])

    def init(self, key: jax.Array, input_size: int) -> dict[str, Params]:
        """The parameters of each layer, by the layer's name."""
        check_size("input_size", input_size)
        params, size = {}, input_size
        keys = jax.random.split(key, len(self._pairs))
        for (name, layer), layer_key in zip(self._pairs, keys, strict=True):
            params[name] = layer.init(layer_key, size)
            size = output_size(layer) + (input_size if self.connections == "skip" else 0)
        return params

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> dict[str, State]:
        """A zero state for each layer, by the layer's name."""
        return {name: layer.zero_state(batch_shape) for name, layer in self._pairs}

    def initial_state(
        self, params: Mapping[str, Params], batch_shape: tuple[int, ...] = ()
    ) -> dict[str, State]:
        """The state of each layer before its first step: zeros, or a learned state."""
        self._check_names("params", params)
        return {
            name: initial_state(layer, params[name], batch_shape) for name, layer in self._pairs
        }

    def apply(
        self,
        params: Mapping[str, Params],
        xs: jax.Array,
        state: Mapping[str, State] | None = None,
        *,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[dict[str, State], jax.Array]:
        """The stack over a sequence.

        Args:
          params: as from :meth:`init`.
          xs: ``[T, ..., D]``.
          state: the state of each layer before the first step; the initial states if None.
          lengths: as in :func:`unroll`.
          mask: booleans ``[T, ...]``, as in :func:`unroll`.
          resets: as in :func:`unroll` for cells; other layers define their meaning.
          key: random key for dropout and for regularisers around the cells; None switches
            both off.

        Returns:
          ``(state, ys)``: each layer's last state by its name, and the outputs
          ``[T, ..., H]``.

        Raises:
          TypeError: ``params`` or ``state`` do not name this stack's layers, or as in
            :func:`unroll`.
          ValueError: as in :func:`unroll`.
        """
        self._check_names("params", params)
        if state is not None:
            self._check_names("state", state)

        def run(n: int, name: str, layer: Any, xs: jax.Array) -> tuple[State, jax.Array]:
            arguments = {
                "lengths": lengths,
                "mask": mask,
                "resets": resets,
                # Dropout between layers uses the keys 1 to N - 1.
                "key": None if key is None else jax.random.fold_in(key, len(self._pairs) + n),
            }
            begin = None if state is None else state[name]
            if is_layer(layer):
                return layer.apply(params[name], xs, begin, **arguments)
            return unroll(
                layer,
                params[name],
                xs,
                begin,
                reverse=self.reverse,
                engine=self.engine,
                memory=self.memory,
                **arguments,
            )

        return self._upwards(xs, run, key)

    def step(
        self, params: Mapping[str, Params], state: Mapping[str, State], x: jax.Array
    ) -> tuple[dict[str, State], jax.Array]:
        """One step in time through all layers, which must be cells that run forwards.

        Args:
          params: as from :meth:`init`.
          state: as from :meth:`zero_state`, or the state that the previous step returned.
          x: this step's input, ``[..., D]``.

        Returns:
          ``(state, y)``: the new state, and the output ``[..., H]``.

        Raises:
          TypeError: ``params`` or ``state`` do not name this stack's layers.
          ValueError: a layer reads its sequence backwards, or a shape does not fit.
        """
        self._check_names("params", params)
        self._check_names("state", state)
        if self.reverse:
            raise ValueError("reverse=True needs the future; a step can only run forwards")

        def run(n: int, name: str, layer: Any, x: jax.Array) -> tuple[State, jax.Array]:
            if not hasattr(layer, "step"):
                raise ValueError(
                    f"{name} is {type(layer).__name__}, which needs the future; a step can only "
                    "run forwards"
                )
            return layer.step(params[name], state[name], x)

        return self._upwards(x, run)

    def _upwards(
        self,
        xs: jax.Array,
        run: Callable[[int, str, Any, jax.Array], tuple[State, jax.Array]],
        key: jax.Array | None = None,
    ) -> tuple[dict[str, State], jax.Array]:
        """Applies ``run(n, name, layer, inputs)`` to every layer from the bottom up."""
        ys, outputs, states = xs, [], {}
        for n, (name, layer) in enumerate(self._pairs):
            reads = below = ys
            if n > 0:
                reads = dropout(
                    below, self.dropout, None if key is None else jax.random.fold_in(key, n)
                )
                if self.connections == "skip":
                    reads = jnp.concatenate([jnp.asarray(xs), reads], -1)
            with _noting(name):
                states[name], ys = run(n, name, layer, reads)
            if n > 0 and self.connections == "residual":
                ys = ys + below
            outputs.append(ys)
        return states, jnp.concatenate(outputs, -1) if self.connections == "skip" else ys

    def _check_names(self, what: str, tree: Any) -> None:
        names = [name for name, _ in self._pairs]
        mapping = isinstance(tree, Mapping)
        if not mapping or set(tree) != set(names):
            given = ", ".join(map(str, tree)) if mapping else type(tree).__name__
            raise TypeError(
                f"{what} must have one entry per layer, {', '.join(names)}, got {given}"
            )


@dataclasses.dataclass(frozen=True)
class Stack(Stacked):
    """Layers on top of one another, with any cells and widths.

    With y⁰ = x and dropout written as δ, layer n of N computes::

        plain      y^n_t = layer_n(δ(y^{n-1}_t))                     and y_t = y^N_t
        residual   y^n_t = layer_n(δ(y^{n-1}_t)) + y^{n-1}_t, n > 1  and y_t = y^N_t
        skip       y^n_t = layer_n([x_t, δ(y^{n-1}_t)]),      n > 1  and y_t = [y^1_t, ..., y^N_t]

    (nothing is dropped on the way into layer 1).  Parameters and states are dicts by layer.

    Attributes:
      layers: from the bottom up, cells and layers such as :class:`Bidirectional`: a sequence
        of them, which are named ``layer_0``, ``layer_1``, ..., or a mapping (or pairs) from
        name to layer.  Stored as a tuple of pairs ``(name, layer)``.
      dropout: the probability that an output of a layer is zeroed before the next layer reads it
        (Zaremba et al. 2014); active only if ``apply`` receives a ``key``.
      connections: ``"plain"``; ``"residual"``, each layer's input added to its output, for
        every layer but the first; ``"skip"``, every layer reads the stack's input and the
        output of the layer below, and the outputs of all layers are concatenated.
      reverse: whether time runs backwards in every cell, as in :func:`unroll`.
      engine: how cells are run, as in :func:`unroll`; other layers have their own engine.
      memory: what cells store for the derivative, as in :func:`unroll`.

    Raises:
      TypeError: a layer is neither a cell nor a layer, or a name is not a string.
      ValueError: there is no layer, a name occurs twice, ``dropout`` lies outside [0, 1),
        ``connections`` is unknown, residual layers differ in width, or a layer with
        its own directions is part of a stack that runs backwards.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import Bidirectional, LSTMCell
      >>> stack = Stack({"words": Bidirectional(LSTMCell(4)), "phrases": LSTMCell(6)})
      >>> params = stack.init(jax.random.key(0), input_size=3)
      >>> state, ys = stack.apply(params, jnp.ones((7, 5, 3)))  # T=7, B=5, D=3
      >>> ys.shape, params["phrases"]["w_ih"].shape, state["phrases"].h.shape
      ((7, 5, 6), (8, 24), (5, 6))

    References:
      Wojciech Zaremba, Ilya Sutskever, Oriol Vinyals, "Recurrent Neural Network
      Regularization", arXiv:1409.2329, 2014, section 3.2 (dropout between layers only).
      Yonghui Wu et al., "Google's Neural Machine Translation System", arXiv:1609.08144, 2016,
      section 3.1 (residual connections).
      Alex Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850,
      2013, equations 1-3 (skip connections).
    """

    layers: Any
    _: dataclasses.KW_ONLY
    dropout: float = 0.0
    connections: str = "plain"
    reverse: bool = False
    engine: str = "auto"
    memory: str = "full"

    def __post_init__(self):
        object.__setattr__(self, "layers", named(self.layers))
        self._check_options()


def named(layers: Any) -> tuple[tuple[str, Any], ...]:
    """The layers as pairs of name and layer, checked."""
    layers = layers.items() if isinstance(layers, Mapping) else layers
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers must be a sequence of layers or a mapping, got {layers!r}")
    pairs: list[tuple[str, Any]] = []
    for n, layer in enumerate(layers):
        name = f"layer_{n}"
        if type(layer) is tuple and len(layer) == 2:
            name, layer = layer
        if not isinstance(name, str):
            raise TypeError(f"names of layers must be strings, got {name!r}")
        if name in dict(pairs):
            raise ValueError(f"names of layers must differ, got {name!r} twice")
        check_cell_or_layer(name, layer)
        pairs.append((name, layer))
    if not pairs:
        raise ValueError("layers must contain at least one layer, got none")
    return tuple(pairs)


@contextlib.contextmanager
def _noting(name: str) -> Iterator[None]:
    """Adds to an error a note that names the layer in which it occurred."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"in layer {name!r} of a stack")
        raise
