"""Flax nnx modules for the cells.  Modules hold the parameters, and cells compute the steps.

There is a module for each cell, for ``flax.nnx.RNN`` and ``flax.nnx.Bidirectional``, and modules
for whole sequences.  Their state consists of ``nnx.Param``.  Modules with dropout or a regulariser
also have a random stream, and ``deterministic`` switches them as it does ``nnx.Dropout``.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax import _flax, cells
from lstm_jax.cells.activations import Activation
from lstm_jax.cells.base import Initializer, check_size
from lstm_jax.sequence.bidirectional import Merge
from lstm_jax.sequence.protocol import check_cell, is_stochastic, num_feature_axes
from lstm_jax.sequence.regularizers import single_step
from lstm_jax.sequence.unroll import initial_state

__all__ = [
    "LSTM",
    "Cell",
    "ConvLSTMCell",
    "CoupledLSTMCell",
    "EntityAwareLSTMCell",
    "GRUCell",
    "IndRNNCell",
    "LSTM1997Cell",
    "LSTMCell",
    "LayerNormLSTMCell",
    "MGUCell",
    "MinGRUCell",
    "MinLSTMCell",
    "MogrifierLSTMCell",
    "MultiplicativeLSTMCell",
    "OdysseyLSTMCell",
    "PeepholeLSTMCell",
    "ProjectedLSTMCell",
    "RNNCell",
    "SLSTMCell",
    "Stack",
]

Metadata = Mapping[str, Any]
RandomSource = nnx.Rngs | nnx.RngStream | jax.Array  # accepted by calls of nnx.Dropout
NO_METADATA: Metadata = MappingProxyType({})

# ---- holding parameters ----


class _Holder(nnx.Module):
    """A module whose attributes are the entries of a nested dict of parameters."""

    def _hold(self, tree: dict[str, Any]) -> None:
        for name, child in tree.items():
            if hasattr(type(self), name) or name in vars(self):
                raise ValueError(
                    f"{name!r} cannot name a parameter: it is an attribute of {type(self).__name__}"
                )
            if isinstance(child, dict):
                child, nested = _Holder(), child
                child._hold(nested)
            setattr(self, name, child)
        self._names = tuple(tree)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, in the form that the functional cell or layer accepts."""
        children = {name: getattr(self, name) for name in self._names}
        return {
            name: child.params if isinstance(child, _Holder) else child[...]
            for name, child in children.items()
        }


def _new_parameters(
    functional: Any, in_features: int, rngs: nnx.Rngs, metadata: dict[str, Metadata]
) -> dict[str, Any]:
    """New parameters as a nested dict of ``nnx.Param``.

    Args:
      functional: a cell or layer.
      in_features: D.
      rngs: its stream ``params`` gives one key a cell.
      metadata: metadata of the parameters, by their role.
    """
    check_size("in_features", in_features)

    def variable(new: _flax.NewParameter) -> nnx.Param:
        value = new.value if new.box is None else _boxed(new.box, new.value)
        return nnx.Param(value, **metadata.get(new.role or "", NO_METADATA))

    parameters = _flax.new_parameters(functional, in_features, rngs.params, _unboxed)
    return _flax.map_parameters(variable, parameters)


def _unboxed(value: Any) -> tuple[jax.Array, Any]:
    """The array that an initialiser returned, and its metadata if ``nnx.with_metadata`` set any."""
    return (value.raw_value, value) if isinstance(value, nnx.VariableMetadata) else (value, None)


def _boxed(box: Any, value: jax.Array) -> Any:
    return dataclasses.replace(box, raw_value=value)


# ---- dropout ----


class _Stochastic(_Holder):
    """A holder with dropout or regularisers, switched and seeded like ``nnx.Dropout``."""

    deterministic: bool | None = False
    rngs: nnx.RngStream | None = None

    def _hold_stream(self, functional: Any, deterministic: bool | None, rngs: nnx.Rngs) -> None:
        """Stores ``deterministic``, and forks a stream if ``functional`` is stochastic."""
        self.deterministic = deterministic
        has_stream = "dropout" in rngs or "default" in rngs
        keeps = has_stream and is_stochastic(functional)
        self.rngs = rngs.dropout.fork() if keeps else nnx.data(None)

    def _key(
        self, functional: Any, deterministic: bool | None, rngs: RandomSource | None
    ) -> jax.Array | None:
        """The random key of one call; None if ``functional`` is deterministic."""
        if not is_stochastic(functional):
            return None
        kind = type(self).__name__
        deterministic = self.deterministic if deterministic is None else deterministic
        if deterministic is None:
            raise ValueError(
                f"deterministic must be given to {kind} or to its call, or be set with train() or "
                "eval(), got None"
            )
        if deterministic:
            return None
        rngs = self.rngs if rngs is None else rngs
        if isinstance(rngs, nnx.Rngs):
            return rngs.dropout()
        if isinstance(rngs, nnx.RngStream):
            return rngs()
        if isinstance(rngs, jax.Array):
            return rngs
        if rngs is None:
            raise ValueError(
                f"rngs must have a stream 'dropout' (or 'default') when {kind} is constructed, "
                "or be passed to its call, since deterministic is False and there is dropout"
            )
        raise TypeError(
            f"rngs must be nnx.Rngs, nnx.RngStream or a random key, got {type(rngs).__name__}"
        )

    def set_view(self, deterministic: bool | None = None) -> None:
        """Used by ``nnx.view``.

        Args:
          deterministic: if True, dropout and the noise of regularisers are switched off.
        """
        if deterministic is not None:
            self.deterministic = deterministic


# ---- cells ----


def _initial_carry(
    functional: Any,
    params: dict[str, Any],
    input_shape: tuple[int, ...],
    rngs: nnx.Rngs | nnx.RngStream | None,
    carry_init: Initializer | None,
) -> Any:
    """The state of a cell or layer before its first step."""

    def new_key() -> jax.Array:
        if rngs is None:
            raise ValueError("rngs must be given if carry_init is given, got None")
        return (rngs.carry if isinstance(rngs, nnx.Rngs) else rngs)()

    batch_shape = tuple(input_shape[:-1])  # followed by the spatial axes, if the cell has any
    if carry_init is None:
        return initial_state(functional, params, batch_shape)
    return _flax.new_carry(functional, params, batch_shape, carry_init, new_key)


class _Cell(_Holder, nnx.RNNCellBase):
    """A module that runs ``self.cell``."""

    def __init__(
        self,
        in_features: int,
        cell: Any,
        *,
        carry_init: Initializer | None,
        kernel_metadata: Metadata,
        recurrent_kernel_metadata: Metadata,
        bias_metadata: Metadata,
        rngs: nnx.Rngs,
    ):
        check_cell("cell", cell)
        _flax.check_carry_init(cell, carry_init)
        self.in_features = in_features
        self.hidden_features = cell.hidden_size
        self.cell = cell
        self.carry_init = carry_init
        metadata = {
            "kernel": kernel_metadata,
            "recurrent_kernel": recurrent_kernel_metadata,
            "bias": bias_metadata,
        }
        self._hold(_new_parameters(cell, in_features, rngs, metadata))

    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """One step: ``(carry, y)``; ``inputs`` is ``[..., D]``, ``y`` ``[..., H]``."""
        return self.cell.step(self.params, carry, inputs)

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Any:
        """The state before the first step, for inputs of a shape ``[..., D]``.

        Args:
          input_shape: shape of one step's input.
          rngs: its stream ``carry`` (or the stream itself) is used by ``carry_init``.
          carry_init: initialises each array of the state; the module's own ``carry_init`` if
            None.

        Raises:
          ValueError: ``rngs`` is needed and not given.
        """
        carry_init = self.carry_init if carry_init is None else carry_init
        return _initial_carry(self.cell, self.params, input_shape, rngs, carry_init)

    @property
    def num_feature_axes(self) -> int:
        """The number of trailing feature axes of an input: spatial axes and features."""
        return num_feature_axes(self.cell)


class Cell(_Stochastic, _Cell):
    """Any functional cell as a cell for ``flax.nnx.RNN``.

    Use it for a custom cell, or for a cell with a regulariser.  The cells of
    :data:`lstm_jax.CELLS` have their own modules.  Parameters have the same names as in the
    cell, and the carry is the state of the cell.

    A regulariser is switched and seeded like an ``nnx.Dropout`` inside the cell: each call
    takes one key from the stream ``dropout`` unless ``deterministic``.  In ``flax.nnx.RNN``,
    every step therefore has its own noise, as :class:`lstm_jax.sequence.Zoneout` and
    :class:`lstm_jax.sequence.RecurrentDropout` require.
    ``nnx.RNN(cell, broadcast_rngs="dropout")`` uses one key for all steps of a sequence, as
    :class:`lstm_jax.sequence.VariationalDropout` and :class:`lstm_jax.sequence.DropConnect`
    require.  :class:`Stack` handles both kinds correctly.

    Args:
      in_features: D.
      cell: a functional cell, such as ``lstm_jax.LSTMCell(4)``, whose parameters are a flat
        dict of arrays.
      carry_init: initialises each array of the first carry, from the stream ``carry``; None for the
        cell's own initial state, which is zeros or learned.
      deterministic: whether the noise of regularisers is off; set by ``train()``, ``eval()`` and
        ``nnx.view``.
      kernel_metadata: metadata of the parameters that ``kernel_init`` initialises, such as
        ``{"out_sharding": (None, "model")}``.
      recurrent_kernel_metadata: the same for ``recurrent_kernel_init``.
      bias_metadata: the same for ``bias_init``.
      rngs: its stream ``params`` initialises the parameters; with a regulariser, the module
        stores a fork of its stream ``dropout`` for the noise.

    Raises:
      TypeError, ValueError: ``in_features`` is not a positive integer, ``cell`` is not a cell, its
        parameters are not a flat dict of arrays, or one of them has the name of an attribute of
        the module.

    Example:
      >>> import jax.numpy as jnp
      >>> import lstm_jax
      >>> from flax import nnx
      >>> zoneout = lstm_jax.sequence.Zoneout(lstm_jax.LSTMCell(4))
      >>> rnn = nnx.RNN(Cell(3, zoneout, rngs=nnx.Rngs(0)))
      >>> first, second = (rnn(jnp.ones((2, 5, 3))) for _ in range(2))  # [B, T, D] to [B, T, H]
      >>> first.shape, bool((first == second).all())
      ((2, 5, 4), False)
      >>> rnn.eval()
      >>> bool((rnn(jnp.ones((2, 5, 3))) == rnn(jnp.ones((2, 5, 3)))).all())
      True
    """

    def __init__(
        self,
        in_features: int,
        cell: Any,
        *,
        carry_init: Initializer | None = None,
        deterministic: bool | None = False,
        kernel_metadata: Metadata = NO_METADATA,
        recurrent_kernel_metadata: Metadata = NO_METADATA,
        bias_metadata: Metadata = NO_METADATA,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features,
            cell,
            carry_init=carry_init,
            kernel_metadata=kernel_metadata,
            recurrent_kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        self._hold_stream(cell, deterministic, rngs)

    def __call__(
        self,
        carry: Any,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: RandomSource | None = None,
    ) -> tuple[Any, jax.Array]:
        """One step: ``(carry, y)``.

        Args:
          carry: the cell's state before the step.
          inputs: ``[..., D]``.
          deterministic: overrides the attribute.
          rngs: an ``nnx.Rngs`` (its stream ``dropout``), a stream or a key for the noise of
            regularisers, instead of the module's own stream.

        Returns:
          The state after the step, and the output ``[..., H]``.

        Raises:
          ValueError: a regulariser needs ``rngs`` or ``deterministic``, and there is none.
          TypeError: ``rngs`` has another type.
        """
        key = self._key(self.cell, deterministic, rngs)
        return single_step(self.cell, self.params, carry, inputs, key)


class _Signature:
    """The result of ``inspect.signature`` for a class (its instances have another signature)."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        own = inspect.signature(owner.__init__)
        parameters = list(own.parameters.values())[1:]
        if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
            *parameters, rngs, _ = parameters
            parameters += [
                inspect.Parameter(name, rngs.kind, default=default, annotation=annotation)
                for name, annotation, default in _flax.options(owner.functional)
            ]
            parameters.append(rngs)
        return own.replace(parameters=parameters)


class _Named(_Cell):
    """A cell that is constructed from its sizes and options.

    Args:
      in_features: D.
      hidden_features: H.
      carry_init, kernel_metadata, recurrent_kernel_metadata, bias_metadata, rngs: as in
        :class:`Cell`.
      options: the options of the functional cell, such as ``forget_bias`` or ``dtype``.

    Raises:
      TypeError, ValueError: a size or option is invalid, or a keyword is not an option.
    """

    functional: Callable[..., Any]
    __signature__ = _Signature()  # type: ignore[assignment]

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        carry_init: Initializer | None = None,
        kernel_metadata: Metadata = NO_METADATA,
        recurrent_kernel_metadata: Metadata = NO_METADATA,
        bias_metadata: Metadata = NO_METADATA,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        check_size("hidden_features", hidden_features)
        _flax.check_options(type(self).__name__, self.functional, options)
        super().__init__(
            in_features,
            self.functional(hidden_size=hidden_features, **options),
            carry_init=carry_init,
            kernel_metadata=kernel_metadata,
            recurrent_kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )


class LSTMCell(_Named):
    """The standard LSTM.

    Equations, parameters and options are those of :class:`lstm_jax.cells.LSTMCell`.

    >>> cell = LSTMCell(3, 4, forget_bias=2.0, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_hh', 'w_ih']
    """

    functional = cells.LSTMCell


class LSTM1997Cell(_Named):
    """The LSTM of 1997, without forget gates.

    Equations, parameters and options are those of :class:`lstm_jax.cells.LSTM1997Cell`.

    >>> cell = LSTM1997Cell(3, 4, block_size=2, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_hh', 'w_ih']
    """

    functional = cells.LSTM1997Cell


class PeepholeLSTMCell(_Named):
    """The LSTM whose gates see the cell state.

    Equations, parameters and options are those of :class:`lstm_jax.cells.PeepholeLSTMCell`.

    >>> cell = PeepholeLSTMCell(3, 4, cell_clip=10.0, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'p_f', 'p_i', 'p_o', 'w_hh', 'w_ih']
    """

    functional = cells.PeepholeLSTMCell


class CoupledLSTMCell(_Named):
    """The LSTM with coupled input and forget gates.

    Equations, parameters and options are those of :class:`lstm_jax.cells.CoupledLSTMCell`.

    >>> cell = CoupledLSTMCell(3, 4, peepholes=True, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'p_f', 'p_o', 'w_hh', 'w_ih']
    """

    functional = cells.CoupledLSTMCell


class OdysseyLSTMCell(_Named):
    """The LSTM without one of its parts.

    Equations, parameters and options are those of :class:`lstm_jax.cells.OdysseyLSTMCell`.

    >>> cell = OdysseyLSTMCell(3, 4, variant="nig", rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'p_f', 'p_o', 'w_hh', 'w_ih']
    """

    functional = cells.OdysseyLSTMCell


class ProjectedLSTMCell(_Named):
    """The LSTM whose hidden state is a projection of its cells.

    Equations, parameters and options are those of :class:`lstm_jax.cells.ProjectedLSTMCell`.

    >>> cell = ProjectedLSTMCell(3, 6, proj_size=4, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_hh', 'w_hr', 'w_ih']
    """

    functional = cells.ProjectedLSTMCell


class LayerNormLSTMCell(_Named):
    """The LSTM with layer normalisation.

    Equations, parameters and options are those of :class:`lstm_jax.cells.LayerNormLSTMCell`.

    >>> cell = LayerNormLSTMCell(3, 4, epsilon=1e-6, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'scale_c', 'scale_h', 'scale_x', 'shift_c', 'shift_h', 'shift_x', 'w_hh', 'w_ih']
    """

    functional = cells.LayerNormLSTMCell


class MultiplicativeLSTMCell(_Named):
    """The LSTM whose transition depends on the input.

    Equations, parameters and options are those of :class:`lstm_jax.cells.MultiplicativeLSTMCell`.

    >>> cell = MultiplicativeLSTMCell(3, 4, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_hh', 'w_ih', 'w_mh', 'w_mx']
    """

    functional = cells.MultiplicativeLSTMCell


class MogrifierLSTMCell(_Named):
    """The mogrifier LSTM: input and hidden state gate each other first.

    Equations, parameters and options are those of :class:`lstm_jax.cells.MogrifierLSTMCell`.

    >>> cell = MogrifierLSTMCell(3, 4, rounds=2, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_hh', 'w_ih', 'w_q1', 'w_r2']
    """

    functional = cells.MogrifierLSTMCell


class SLSTMCell(_Named):
    """The sLSTM of xLSTM, with exponential gates.

    Equations, parameters and options are those of :class:`lstm_jax.cells.SLSTMCell`.

    >>> cell = SLSTMCell(3, 4, num_heads=2, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_hh', 'w_ih']
    """

    functional = cells.SLSTMCell


class MinLSTMCell(_Named):
    """The minimal LSTM, whose gates do not read the hidden state.

    Equations, parameters and options are those of :class:`lstm_jax.cells.MinLSTMCell`.

    >>> cell = MinLSTMCell(3, 4, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_ih']
    """

    functional = cells.MinLSTMCell


class MinGRUCell(_Named):
    """The minimal GRU, whose gate does not read the hidden state.

    Equations, parameters and options are those of :class:`lstm_jax.cells.MinGRUCell`.

    >>> cell = MinGRUCell(3, 4, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_ih']
    """

    functional = cells.MinGRUCell


class GRUCell(_Named):
    """The gated recurrent unit.

    Equations, parameters and options are those of :class:`lstm_jax.cells.GRUCell`.

    >>> cell = GRUCell(3, 4, reset_after=True, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'b_hg', 'w_hh', 'w_ih']
    """

    functional = cells.GRUCell


class MGUCell(_Named):
    """The minimal gated unit.

    Equations, parameters and options are those of :class:`lstm_jax.cells.MGUCell`.

    >>> cell = MGUCell(3, 4, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_hh', 'w_ih']
    """

    functional = cells.MGUCell


class RNNCell(_Named):
    """The simple recurrent network.

    Equations, parameters and options are those of :class:`lstm_jax.cells.RNNCell`.

    >>> cell = RNNCell(3, 4, activation_fn="relu", rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_hh', 'w_ih']
    """

    functional = cells.RNNCell


class IndRNNCell(_Named):
    """The independently recurrent network: each unit reads only its own past.

    Equations, parameters and options are those of :class:`lstm_jax.cells.IndRNNCell`.

    >>> cell = IndRNNCell(3, 4, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'u_hh', 'w_ih']
    """

    functional = cells.IndRNNCell


class EntityAwareLSTMCell(_Named):
    """The entity-aware LSTM: its input gate reads static features.

    Equations, parameters and options are those of :class:`lstm_jax.cells.EntityAwareLSTMCell`.

    >>> cell = EntityAwareLSTMCell(3, 4, static_size=2, rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_hh', 'w_ih', 'w_si']
    """

    functional = cells.EntityAwareLSTMCell


class ConvLSTMCell(_Named):
    """The convolutional LSTM, with features at each point of a grid.

    Equations, parameters and options are those of :class:`lstm_jax.cells.ConvLSTMCell`.

    >>> cell = ConvLSTMCell(3, 4, kernel_size=(3, 5), rngs=nnx.Rngs(0))
    >>> sorted(cell.params)
    ['b', 'w_hh', 'w_ih']
    """

    functional = cells.ConvLSTMCell


# ---- whole sequences ----


class Stack(_Stochastic):
    """Any functional layer over whole sequences.

    Args:
      in_features: D.
      layer: a functional layer, such as :class:`lstm_jax.sequence.Stack` or
        :class:`lstm_jax.sequence.Bidirectional`; or a cell, which becomes a stack of one.
      time_major: whether time is the first axis of inputs and outputs (``[T, ..., D]``)
        instead of the second to last (``[..., T, D]``).
      keep_order: whether the outputs of a layer that runs backwards stay at the times of
        their inputs; otherwise they are in the order in which they were computed, each
        row's last step first, and masked steps stay in their positions, as in ``flax.nnx.RNN``.
      return_carry: whether calls also return the last states.
      deterministic: whether dropout and the noise of regularisers are off; set by ``train()``,
        ``eval()`` and ``nnx.view``.
      kernel_metadata: metadata of the parameters that the cells' ``kernel_init`` initialises,
        such as ``{"out_sharding": (None, "model")}``.
      recurrent_kernel_metadata: the same for ``recurrent_kernel_init``.
      bias_metadata: the same for ``bias_init``.
      rngs: its stream ``params`` initialises the parameters; with dropout or a regulariser, the
        module stores a fork of its stream ``dropout``, as ``nnx.Dropout`` does.

    Raises:
      TypeError, ValueError: ``in_features`` is not a positive integer, or ``layer`` is not a layer.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_jax import cells, sequence
      >>> layer = sequence.Stack([sequence.Bidirectional(cells.LSTMCell(4)), cells.RNNCell(6)])
      >>> Stack(3, layer, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 3))).shape
      (2, 5, 6)
    """

    def __init__(
        self,
        in_features: int,
        layer: Any,
        *,
        time_major: bool = False,
        keep_order: bool = False,
        return_carry: bool = False,
        deterministic: bool | None = False,
        kernel_metadata: Metadata = NO_METADATA,
        recurrent_kernel_metadata: Metadata = NO_METADATA,
        bias_metadata: Metadata = NO_METADATA,
        rngs: nnx.Rngs,
    ):
        self.in_features = in_features
        self.layer = _flax.as_layer(layer)
        self.time_major = time_major
        self.keep_order = keep_order
        self.return_carry = return_carry
        metadata = {
            "kernel": kernel_metadata,
            "recurrent_kernel": recurrent_kernel_metadata,
            "bias": bias_metadata,
        }
        self._hold(_new_parameters(self.layer, in_features, rngs, metadata))
        self._hold_stream(self.layer, deterministic, rngs)

    def __call__(
        self,
        xs: jax.Array,
        *,
        initial_carry: Any = None,
        seq_lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        deterministic: bool | None = None,
        rngs: RandomSource | None = None,
    ) -> Any:
        """The layer over a sequence, with the arguments of ``flax.nnx.RNN`` and some more.

        Args:
          xs: ``[..., T, D]``, or ``[T, ..., D]`` if ``time_major``.
          initial_carry: the state before the first step, as :meth:`initialize_carry` returns it;
            None for the initial state, which is zeros unless learned.  A single layer also accepts
            its own state, such as :class:`lstm_jax.LSTMState`, or a carry of Flax: ``(c, h)`` for
            an LSTM, an array for a GRU, and a pair of these for two directions.
          seq_lengths: the number of valid steps of each row, as in :func:`lstm_jax.unroll`;
            outputs of other steps are zero.
          mask: booleans ``[..., T]``, or ``[T, ...]`` if ``time_major``; a false step is
            treated as absent, as in :func:`lstm_jax.unroll`.
          resets: booleans ``[..., T]``, or ``[T, ...]`` if ``time_major``; a true flag restores
            the layer's initial state before that step.
          return_carry: whether the last states are also returned.
          time_major: see the class.
          reverse: whether time runs backwards, each row from its own last valid step.
          keep_order: see the class.
          deterministic: overrides the attribute.
          rngs: an ``nnx.Rngs`` (its stream ``dropout``), a stream or a key for dropout and the
            noise of regularisers, instead of the module's own stream.  A stream ``carry``, which
            ``flax.nnx.Bidirectional`` passes, is ignored.

        Returns:
          The outputs, with the layout of ``xs``; with ``return_carry`` the pair
          ``(carry, outputs)``.  The carry has the form of ``initial_carry``; if that is None, it is
          a dict with the state of each layer, as from :meth:`initialize_carry`.
          Arguments that are None default to those of the constructor.

        Raises:
          ValueError: ``xs`` lacks an axis or has another feature size than the parameters,
            ``reverse`` is set for a layer with its own directions, dropout or a regulariser
            needs ``rngs`` or ``deterministic`` and there is none, or as in
            :func:`lstm_jax.unroll`.
          TypeError: ``rngs`` has another type, or ``initial_carry`` another structure.
        """
        if isinstance(rngs, nnx.RngStream) and rngs.tag == "carry":
            rngs = None
        params = self.params
        time_major = self.time_major if time_major is None else time_major
        return _flax.over_sequence(
            self.layer,
            params,
            _flax.checked_inputs(self.layer, params, xs, time_major),
            initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            key=self._key(self.layer, deterministic, rngs),
            time_major=time_major,
            reverse=reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            return_carry=self.return_carry if return_carry is None else return_carry,
        )

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Any:
        """The state before the first step, as in the cells of Flax.

        Args:
          input_shape: shape of one step's input: ``(B, D)`` for sequences ``[B, T, D]``.
          rngs: its stream ``carry`` (or the stream itself) is used by ``carry_init``.
          carry_init: initialises each array of the state; None for the layer's initial state,
            which is zeros or learned.

        Returns:
          For :class:`LSTM` and any other stack a dict with the state of each layer, ``layer_0``
          first.

        Raises:
          ValueError: ``carry_init`` is given, but ``rngs`` is not.

        Example:
          >>> carry = LSTM(3, 4, num_layers=2, rngs=nnx.Rngs(0)).initialize_carry((2, 3))
          >>> carry["layer_1"].h.shape
          (2, 4)
        """
        return _initial_carry(self.layer, self.params, input_shape, rngs, carry_init)


class LSTM(Stack):
    """Stacked LSTM layers, or layers of any other cell, over a whole sequence.

    Args:
      in_features: D.
      hidden_features: H of every layer, or a tuple with one for each.
      num_layers: L; also determined by a tuple.
      bidirectional: whether every layer reads its sequence in both directions; H is the width of
        one direction.
      cell: a name in :data:`lstm_jax.CELLS`, a functional class, any function that constructs a
        functional cell, or a tuple with one of these for each layer.  Set options of the cell with
        ``functools.partial(lstm_jax.LSTMCell, forget_bias=2.0)``.
      dropout: probability that an output between layers is zeroed; switched and seeded as
        ``nnx.Dropout`` is; see ``deterministic`` and ``rngs``.
      merge: how the outputs of both directions are merged: ``"concat"``, ``"sum"``, ``"mean"``,
        ``"product"`` or a function.
      connections: ``"plain"``, ``"residual"`` or ``"skip"``, as in
        :class:`lstm_jax.sequence.Stack`.
      reverse: whether time runs backwards, each row from its own last valid step.
      engine: how each layer runs over time, as in :func:`lstm_jax.unroll`.
      memory: what each layer stores for the derivative, as in :func:`lstm_jax.unroll`.
      dtype: type of the products; cell states and every sum stay in float32 or wider.
      param_dtype: type in which parameters are stored; float32 if None.
      gate_fn: activation of the gates, a name or a function; None for the cell's default, as in
        the options below.
      activation_fn: activation of the candidate.
      kernel_init: initialises each gate's input weights.
      recurrent_kernel_init: initialises each gate's recurrent weights.
      bias_init: initialises each gate's bias.
      time_major, keep_order, return_carry, deterministic, rngs: as in :class:`Stack`.
      kernel_metadata, recurrent_kernel_metadata, bias_metadata: as in :class:`Stack`.

    Raises:
      TypeError, ValueError: a size is not a positive integer, ``dropout`` lies outside [0, 1), or
        another option is invalid; the message names it.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> lstm = LSTM(3, 4, num_layers=2, rngs=nnx.Rngs(0))
      >>> carry, ys = lstm(jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 2]), return_carry=True)
      >>> ys.shape, carry["layer_1"].h.shape
      ((2, 5, 4), (2, 4))
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | tuple[int, ...],
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        cell: Any = "lstm",
        dropout: float = 0.0,
        merge: str | Merge = "concat",
        connections: str = "plain",
        reverse: bool = False,
        keep_order: bool = False,
        time_major: bool = False,
        return_carry: bool = False,
        deterministic: bool | None = False,
        engine: str = "auto",
        memory: str = "full",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        gate_fn: Activation | None = None,
        activation_fn: Activation | None = None,
        kernel_init: Initializer | str | None = None,
        recurrent_kernel_init: Initializer | str | None = None,
        bias_init: Initializer | str | None = None,
        kernel_metadata: Metadata = NO_METADATA,
        recurrent_kernel_metadata: Metadata = NO_METADATA,
        bias_metadata: Metadata = NO_METADATA,
        rngs: nnx.Rngs,
    ):
        layer = _flax.lstm(
            {"hidden_features": hidden_features},
            num_layers,
            cell=cell,
            options={
                "gate_fn": gate_fn,
                "activation_fn": activation_fn,
                "kernel_init": kernel_init,
                "recurrent_kernel_init": recurrent_kernel_init,
                "bias_init": bias_init,
            },
            bidirectional=bidirectional,
            dropout=dropout,
            merge=merge,
            connections=connections,
            reverse=reverse,
            engine=engine,
            memory=memory,
            dtype=dtype,
            param_dtype=param_dtype,
        )
        super().__init__(
            in_features,
            layer,
            time_major=time_major,
            keep_order=keep_order,
            return_carry=return_carry,
            deterministic=deterministic,
            kernel_metadata=kernel_metadata,
            recurrent_kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
