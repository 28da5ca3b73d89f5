"""Bidirectional layers: two cells that read a sequence from both ends."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import Cell, Params, State, check_size
from lstm_jax.sequence.protocol import (
    check_cell,
    input_size,
    is_stochastic,
    num_feature_axes,
    output_size,
)
from lstm_jax.sequence.resets import reversed_resets
from lstm_jax.sequence.rows import counted_steps, where
from lstm_jax.sequence.unroll import initial_state, unroll

Merge = Callable[[jax.Array, jax.Array], jax.Array]

MERGES: dict[str, Merge] = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], -1),
    "sum": lambda forward, backward: forward + backward,
    "mean": lambda forward, backward: (forward + backward) / 2,
    "product": lambda forward, backward: forward * backward,
}
"""How the outputs of both directions are merged, by name."""


class BidirectionalState(NamedTuple):
    """The states of both directions.

    Attributes:
      forward: the state of the forward cell after each row's last step.
      backward: the state of the backward cell after the step t = 0.
    """

    forward: Any
    backward: Any


@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """A layer of two cells: one reads the sequence forwards, the other backwards.

    With → and ← the outputs of the two directions at the same time t::

        y_t = merge(→h_t, ←h_t)

    The backward direction starts at the last valid step of each row, and skips the same steps as
    the forward direction.  Parameters are ``{"forward": ..., "backward": ...}``.

    Attributes:
      forward: the cell that reads forwards.
      backward: the cell that reads backwards, with its own parameters; by default a cell equal to
        ``forward``.
      merge: ``"concat"`` (features side by side), ``"sum"``, ``"mean"``, ``"product"``, or a
        function of both outputs, each ``[..., H]``, that works on any number of leading axes.
      engine: how both directions are run, as in :func:`unroll`.
      memory: what they store for the derivative, as in :func:`unroll`.

    Raises:
      TypeError: ``forward`` or ``backward`` is not a cell, or ``merge`` is neither a string nor a
        function.
      ValueError: ``merge`` is unknown, or needs two outputs of equal size and the sizes differ.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import LSTMCell
      >>> layer = Bidirectional(LSTMCell(4))
      >>> params = layer.init(jax.random.key(0), input_size=3)
      >>> state, ys = layer.apply(params, jnp.ones((7, 5, 3)))  # T=7, B=5, D=3
      >>> ys.shape
      (7, 5, 8)
      >>> bool((ys[0, :, 4:] == state.backward.h).all())
      True

    References:
      Mike Schuster, Kuldip K. Paliwal, "Bidirectional Recurrent Neural Networks", IEEE
      Transactions on Signal Processing 45(11), 1997.
      Alex Graves, Jürgen Schmidhuber, "Framewise Phoneme Classification with Bidirectional
      LSTM and Other Neural Network Architectures", Neural Networks 18, 2005.
    """

    forward: Cell
    backward: Any = None
    merge: str | Merge = "concat"
    _: dataclasses.KW_ONLY
    engine: str = "auto"
    memory: str = "full"

    def __post_init__(self):
        if self.backward is None:
            object.__setattr__(self, "backward", self.forward)
        check_cell("forward", self.forward)
        check_cell("backward", self.backward)
        if isinstance(self.merge, str) and self.merge not in MERGES:
            raise ValueError(
                f"merge must be a function or one of {', '.join(MERGES)}, got {self.merge!r}"
            )
        if not isinstance(self.merge, str) and not callable(self.merge):
            raise TypeError(f"merge must be a function or the name of one, got {self.merge!r}")
        sizes = output_size(self.forward), output_size(self.backward)
        if self.merge in ("sum", "mean", "product") and sizes[0] != sizes[1]:
            raise ValueError(
                f"merge={self.merge!r} needs outputs of equal size, got {sizes[0]} features "
                f"forward and {sizes[1]} backward"
            )

    @property
    def output_size(self) -> int:
        """Features of one merged output."""
        outputs = (
            jax.ShapeDtypeStruct((output_size(cell),), jnp.float32)
            for cell in (self.forward, self.backward)
        )
        return jax.eval_shape(self._merged, *outputs).shape[-1]

    @property
    def num_feature_axes(self) -> int:
        """The number of feature axes of an input: that of the cells."""
        return num_feature_axes(self.forward)

    @property
    def is_stochastic(self) -> bool:
        """Whether ``apply`` uses a key: for regularisers around the cells."""
        return is_stochastic(self.forward) or is_stochastic(self.backward)

    def input_size(self, params: Params) -> int | None:
        """D, read from the parameters; None if they do not determine it."""
        return input_size(self.forward, params["forward"])

    def init(self, key: jax.Array, input_size: int) -> dict[str, Params]:
        """The parameters of both cells, ``{"forward": ..., "backward": ...}``."""
        check_size("input_size", input_size)
        forward_key, backward_key = jax.random.split(key)
        return {
            "forward": self.forward.init(forward_key, input_size),
            "backward": self.backward.init(backward_key, input_size),
        }

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> BidirectionalState:
        """A zero state for both cells."""
        return BidirectionalState(
            forward=self.forward.zero_state(batch_shape),
            backward=self.backward.zero_state(batch_shape),
        )

    def initial_state(
        self, params: dict[str, Params], batch_shape: tuple[int, ...] = ()
    ) -> BidirectionalState:
        """The state before the first step of both cells: zeros, or a learned state."""
        return BidirectionalState(
            forward=initial_state(self.forward, params["forward"], batch_shape),
            backward=initial_state(self.backward, params["backward"], batch_shape),
        )

    def apply(
        self,
        params: dict[str, Params],
        xs: jax.Array,
        state: BidirectionalState | None = None,
        *,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[BidirectionalState, jax.Array]:
        """The layer over a sequence.

        Args:
          params: as from :meth:`init`.
          xs: ``[T, ..., D]``.
          state: the states from which both directions start, the backward one at each row's
            last step; by default, and where one direction is None, the initial state.
          lengths: as in :func:`unroll`.
          mask: booleans ``[T, ...]``, as in :func:`unroll`.
          resets: booleans ``[T, ...]``; a true flag marks the first step of a document.  The
            forward direction restarts there, and the backward one at the valid step before
            it, where the previous document ends (:func:`reversed_resets`).
          key: random key for regularisers around the cells.

        Returns:
          ``(state, ys)``: the states of both directions, forward after each row's last step
          and backward after t = 0, and the merged outputs ``[T, ..., H']``, zero at
          masked steps.

        Raises:
          TypeError: ``params`` or ``state`` belong to another layer, or as in
            :func:`unroll`.
          ValueError: as in :func:`unroll`.
        """
        self._check(params, state)
        given: State = BidirectionalState(None, None) if state is None else state
        keys = (None, None) if key is None else jax.random.split(key)
        forward, ys = unroll(
            self.forward,
            params["forward"],
            xs,
            given.forward,
            lengths=lengths,
            mask=mask,
            resets=resets,
            key=keys[0],
            engine=self.engine,
            memory=self.memory,
        )
        backward, zs = unroll(
            self.backward,
            params["backward"],
            xs,
            given.backward,
            lengths=lengths,
            mask=mask,
            resets=None if resets is None else reversed_resets(resets, lengths, mask=mask),
            reverse=True,
            key=keys[1],
            engine=self.engine,
            memory=self.memory,
        )
        merged = self._merged(ys, zs)
        valid = counted_steps(merged.shape[0], lengths, mask)
        if valid is not None and callable(self.merge):  # merge(0, 0) need not be 0
            merged = where(valid, merged, jnp.zeros_like(merged))
        return BidirectionalState(forward=forward, backward=backward), merged

    def _merged(self, forward: jax.Array, backward: jax.Array) -> jax.Array:
        merge = MERGES[self.merge] if isinstance(self.merge, str) else self.merge
        return merge(forward, backward)

    def _check(self, params: Any, state: Any) -> None:
        mapping = isinstance(params, Mapping)
        if not mapping or set(params) != {"forward", "backward"}:
            given = ", ".join(map(str, params)) if mapping else type(params).__name__
            raise TypeError(f"params must have the entries forward, backward, got {given}")
        if state is not None and not isinstance(state, BidirectionalState):
            raise TypeError(
                f"state must be BidirectionalState(forward, backward), got {type(state).__name__}"
            )
