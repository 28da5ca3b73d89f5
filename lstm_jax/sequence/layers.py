"""Stacks of one kind of cell, created from sizes."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from jax.typing import DTypeLike

from lstm_jax.cells import CELLS, LSTMCell
from lstm_jax.cells.base import check_size
from lstm_jax.sequence.bidirectional import Bidirectional, Merge
from lstm_jax.sequence.stack import Stack, Stacked, named

CellMaker = str | Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class LSTM(Stacked):
    """Stacked LSTM layers; each reads the outputs of the one below.

    Like a :class:`Stack`, but made from sizes; parameters and states are dicts by layer,
    ``layer_0``, ``layer_1``, ....

    Attributes:
      hidden_size: H, the number of hidden features of every layer, or a tuple with one
        for each.
      num_layers: L; tuples for ``hidden_size`` or ``cell`` determine it, too.
      bidirectional: whether every layer reads its sequence from both ends
        (:class:`Bidirectional`); H is the width of one direction.
      dropout: the probability that an output of a layer is zeroed before the next layer reads it
        (Zaremba et al. 2014); active only if ``apply`` receives a ``key``.
      merge: how the outputs of both directions are merged, as in :class:`Bidirectional`.
      connections: ``"plain"``, ``"residual"`` or ``"skip"``, as in :class:`Stack`.
      reverse: whether time runs backwards, as in :func:`unroll`.
      engine: how each layer runs over time, as in :func:`unroll`.
      memory: what each layer stores for the derivative, as in :func:`unroll`.
      cell: the kind of cell: a name in :data:`CELLS`, a class, or any function that makes a
        cell from ``hidden_size=`` (and ``dtype=`` and ``param_dtype=`` where these are
        given); or a tuple with one for each layer.  Pass a cell's options together with it:
        ``functools.partial(LSTMCell, forget_bias=2.0)``.
      dtype: type of the products, as in :class:`LSTMCell`; None for the cell's default.
      param_dtype: type in which parameters are stored; None for the cell's, float32.

    Raises:
      TypeError, ValueError: a size is not a positive integer, a tuple does not have one
        entry for each layer, ``cell`` is unknown, or as in :class:`Stack`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lstm = LSTM(hidden_size=4, num_layers=2)
      >>> params = lstm.init(jax.random.key(0), input_size=3)
      >>> state, ys = lstm.apply(params, jnp.ones((7, 5, 3)))  # T=7, B=5, D=3
      >>> ys.shape, sorted(state)
      ((7, 5, 4), ['layer_0', 'layer_1'])
      >>> LSTM((4, 6), bidirectional=True, cell="rnn").output_size
      12

    References:
      Wojciech Zaremba, Ilya Sutskever, Oriol Vinyals, "Recurrent Neural Network
      Regularization", arXiv:1409.2329, 2014, section 3.2 (dropout between layers only).
    """

    hidden_size: int | tuple[int, ...]
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    _: dataclasses.KW_ONLY
    merge: str | Merge = "concat"
    connections: str = "plain"
    reverse: bool = False
    engine: str = "auto"
    memory: str = "full"
    cell: CellMaker | tuple[CellMaker, ...] = LSTMCell
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike | None = None

    def __post_init__(self):
        check_size("num_layers", self.num_layers)
        if not isinstance(self.bidirectional, bool):
            raise TypeError(f"bidirectional must be true or false, got {self.bidirectional!r}")
        tuples = {}
        for name in ("hidden_size", "cell"):
            given = getattr(self, name)
            if isinstance(given, tuple | list):
                tuples[name] = tuple(given)
                object.__setattr__(self, name, tuples[name])
        if self.num_layers == 1 and tuples:
            object.__setattr__(self, "num_layers", max(1, *map(len, tuples.values())))
        for name, given in tuples.items():
            if len(given) != self.num_layers:
                raise ValueError(
                    f"{name} must have one entry for each of {self.num_layers} layers, "
                    f"got {len(given)}"
                )
        self._check_options()

    @property
    def layers(self) -> dict[str, Any]:
        """The cell (or both directions) of each layer, by name, from the bottom up."""
        return dict(self._pairs)

    @functools.cached_property
    def _pairs(self) -> tuple[tuple[str, Any], ...]:
        pairs = zip(self._each(self.hidden_size), self._each(self.cell), strict=True)
        return named([self._made(cell, hidden_size) for hidden_size, cell in pairs])

    @property
    def stack(self) -> Stack:
        """The layers as a :class:`Stack`; stacks of equal cells compare equal."""
        return Stack(
            self.layers,
            dropout=self.dropout,
            connections=self.connections,
            reverse=self.reverse,
            engine=self.engine,
            memory=self.memory,
        )

    def _each(self, given: Any) -> tuple[Any, ...]:
        return given if isinstance(given, tuple) else (given,) * self.num_layers

    def _made(self, cell: CellMaker, hidden_size: int) -> Any:
        """A layer of such cells; types that are not given keep the cell's defaults."""
        check_size("hidden_size", hidden_size)
        if isinstance(cell, str):
            if cell not in CELLS:
                raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {cell!r}")
            cell = CELLS[cell]
        if not callable(cell):
            raise TypeError(
                f"cell must be a name, a class or a function that makes a cell, got {cell!r}"
            )
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        given = {name: dtype for name, dtype in types.items() if dtype is not None}
        _check_makes_cells(cell, hidden_size=hidden_size, **given)
        layer = cell(hidden_size=hidden_size, **given)
        if not self.bidirectional:
            return layer
        return Bidirectional(layer, merge=self.merge, engine=self.engine, memory=self.memory)


def _check_makes_cells(cell: Callable[..., Any], **arguments: Any) -> None:
    """Raises a TypeError if a class or function cannot be called with these keywords."""
    inner, positions, keywords = cell, (), arguments
    while isinstance(inner, functools.partial):
        inner, positions, keywords = inner.func, inner.args + positions, inner.keywords | keywords
    try:
        signature = inspect.signature(inner)
    except (TypeError, ValueError):  # it has no signature
        return
    try:
        signature.bind(*positions, **keywords)
    except TypeError as error:
        call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise TypeError(
            f"cell must make a cell from keywords, as in cell({call}), got {cell!r}: {error}"
        ) from None
