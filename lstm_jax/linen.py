"""Flax linen modules for the cells.  Modules hold the parameters, and cells compute the steps.

There is a module for each cell, for ``flax.linen.RNN`` and ``flax.linen.Bidirectional``, and
modules for whole sequences.  Parameters have the same names and shapes as in the functional cells.
Dropout and regularisers use ``deterministic`` and the stream ``dropout`` like ``nn.Dropout``.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
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

# ---- holding parameters ----


def _params(module: nn.Module, functional: Any, input_size: int) -> dict[str, Any]:
    """The parameters of a cell or layer, which the module stores and, if needed, initialises."""

    @functools.cache
    def parameters() -> dict[str, Any]:
        new_key = functools.partial(module.make_rng, "params")
        return _flax.new_parameters(functional, input_size, new_key, _unboxed)

    def new(name: str, key: jax.Array) -> Any:
        # This parameter's key is not used, since a cell initialises all parameters from one key.
        return _flax.map_parameters(_boxed, parameters()[name])

    def zeros(shapes: Any, key: jax.Array) -> Any:  # to check an existing parameter
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return {
        name: module.param(
            name,
            functools.partial(zeros, shapes)
            if module.has_variable("params", name)
            else functools.partial(new, name),
        )
        for name, shapes in _shapes(functional, input_size).items()
    }


@functools.lru_cache(maxsize=1024)
def _shapes(functional: Any, input_size: int) -> dict[str, Any]:
    """Shapes and types of the parameters."""
    return jax.eval_shape(lambda: _anew(functional, input_size))


def _anew(functional: Any, input_size: int) -> dict[str, Any]:
    """Parameters from an arbitrary key."""
    new_key = functools.partial(jax.random.key, 0)
    return _flax.values(_flax.new_parameters(functional, input_size, new_key, _unboxed))


def _unboxed(value: Any) -> tuple[jax.Array, Any]:
    """The array that an initialiser returned, and its box if ``nn.with_partitioning`` made one."""
    if not isinstance(value, nn.meta.AxisMetadata):
        return value, None
    (array,) = jax.tree.leaves(value)  # value.unbox() may constrain the sharding
    return array, value


def _boxed(new: _flax.NewParameter) -> Any:
    return new.value if new.box is None else new.box.replace_boxed(new.value)


# ---- dropout ----


def _key(
    module: Any, functional: Any, deterministic: bool | None, rng: jax.Array | None
) -> jax.Array | None:
    """The random key of one call; None if ``functional`` is deterministic."""
    if not is_stochastic(functional):
        return None
    if nn.merge_param("deterministic", module.deterministic, deterministic):
        return None
    return module.make_rng("dropout") if rng is None else rng


# ---- cells ----


def _initial_carry(module: Any, functional: Any, input_shape: tuple[int, ...]) -> Any:
    """The state of a cell or layer before its first step: zeros, or the learned state."""
    *batch_shape, input_size = input_shape
    batch_shape = tuple(batch_shape)  # followed by the spatial axes, if the cell has any
    params = _params_if_bound(module)
    if params and _shapes(functional, input_size).keys() <= params.keys():
        return initial_state(functional, params, batch_shape)
    if not _flax.learns_initial_state(functional):
        return functional.zero_state(batch_shape)
    if module.scope is None:
        raise ValueError(
            "a learned initial state is only available inside apply: "
            "module.apply(variables, rng, input_shape, method='initialize_carry')"
        )
    # The value at initialisation; jit removes the parameters that do not affect it.
    return jax.jit(lambda: initial_state(functional, _anew(functional, input_size), batch_shape))()


def _params_if_bound(module: Any) -> dict[str, Any]:
    """The parameters of the module if it is bound, as inside ``apply``; otherwise none."""
    return {} if module.scope is None else nn.meta.unbox(module.variables.get("params", {}))


class _Cell(nn.RNNCellBase):
    """A module that runs ``self.cell``; subclasses define ``cell`` and ``carry_init``."""

    def __post_init__(self):
        super().__post_init__()
        _flax.check_carry_init(self.cell, self.carry_init)

    @nn.compact
    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """One step: ``(carry, y)``; ``inputs`` is ``[..., D]``, ``y`` ``[..., H]``."""
        return self.cell.step(_params(self, self.cell, inputs.shape[-1]), carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Any:
        """The state before the first step, for inputs of a shape ``[..., D]``.

        A learned state is a parameter of the module, and therefore only available inside
        ``apply``, where ``flax.linen.RNN`` calls this method:
        ``cell.apply(variables, rng, input_shape, method="initialize_carry")``.

        Args:
          rng: random key for ``carry_init``; ignored if that is None.
          input_shape: shape of one step's input.

        Raises:
          ValueError: the state is learned, and this is not inside ``apply``.
        """
        if self.carry_init is None:
            return _initial_carry(self, self.cell, input_shape)
        keys = iter(jax.random.split(rng, len(jax.tree.leaves(self.cell.zero_state()))))
        return _flax.new_carry(
            self.cell,
            _params_if_bound(self),
            tuple(input_shape[:-1]),
            self.carry_init,
            functools.partial(next, keys),
        )

    @property
    def num_feature_axes(self) -> int:
        """The number of trailing feature axes of an input: spatial axes and features."""
        return num_feature_axes(self.cell)


class Cell(_Cell):
    """Any functional cell as a cell for ``flax.linen.RNN``.

    Use it for a custom cell, or for a cell with a regulariser.  The cells of
    :data:`lstm_jax.CELLS` have their own modules.  Parameters have the same names as in the
    cell, and the carry is the state of the cell.

    A regulariser is switched and seeded like an ``nn.Dropout`` inside the cell, with the stream
    ``dropout``, which ``flax.linen.RNN`` must pass to it.  With
    ``nn.RNN(cell, split_rngs={"params": False, "dropout": True})`` every step has its own noise, as
    :class:`lstm_jax.sequence.Zoneout` and :class:`lstm_jax.sequence.RecurrentDropout` require.
    ``"dropout": False`` uses one key for all steps of a sequence, as
    :class:`lstm_jax.sequence.VariationalDropout` and :class:`lstm_jax.sequence.DropConnect`
    require.  :class:`Stack` handles both kinds correctly.

    Attributes:
      cell: a functional cell, such as ``lstm_jax.LSTMCell(4)``, whose parameters are a flat
        dict of arrays.
      carry_init: initialises each array of the first carry; None for the cell's own initial state,
        which is zeros or learned.
      deterministic: whether the noise of regularisers is off; with a regulariser, it must be given
        here or to the call.

    Raises:
      TypeError, ValueError: ``cell`` is not a cell, its parameters are not a flat dict of
        arrays, or ``carry_init`` is given although the state is learned.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lstm_jax
      >>> from flax import linen as nn
      >>> rnn = nn.RNN(Cell(lstm_jax.CELLS["lstm"](4)))
      >>> ys, variables = rnn.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> ys.shape, jax.tree.map(jnp.shape, variables["params"]["cell"]["w_ih"])
      ((2, 5, 4), (3, 16))
    """

    cell: Any
    carry_init: Initializer | None = None
    deterministic: bool | None = None

    def __post_init__(self):
        check_cell("cell", self.cell)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        carry: Any,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[Any, jax.Array]:
        """One step: ``(carry, y)``.

        Args:
          carry: the cell's state before the step.
          inputs: ``[..., D]``.
          deterministic: see the class.
          rng: a random key for the noise of regularisers; from the stream ``dropout`` if None.

        Returns:
          The state after the step, and the output ``[..., H]``.

        Raises:
          ValueError: there is a regulariser, and ``deterministic`` is given neither here nor to
            the class, or to both.
          flax.errors.InvalidRngError: a regulariser needs the stream ``dropout``, and there is
            none.
        """
        key = _key(self, self.cell, deterministic, rng)
        return single_step(
            self.cell, _params(self, self.cell, inputs.shape[-1]), carry, inputs, key
        )


class _Named(_Cell):
    """A cell that is constructed from its size and options, the fields of ``functional``.

    Attributes:
      features: H.
      carry_init: as in :class:`Cell`; all other fields are the functional cell's.
    """

    def __init_subclass__(cls, functional: Callable[..., Any] | None = None, **kwargs: Any):
        if functional is not None:
            cls.functional = staticmethod(functional)
            cls.__annotations__ = {"features": int}
            for name, annotation, default in _flax.options(functional):
                cls.__annotations__[name] = annotation
                if default is not inspect.Parameter.empty:
                    setattr(cls, name, default)
            cls.__annotations__["carry_init"] = Initializer | None
            cls.carry_init = None
        super().__init_subclass__(**kwargs)

    @property
    def cell(self) -> Any:
        """The functional cell."""
        check_size("features", self.features)
        options = {name: getattr(self, name) for name, _, _ in _flax.options(self.functional)}
        return self.functional(hidden_size=self.features, **options)


class LSTMCell(_Named, functional=cells.LSTMCell):
    """The standard LSTM.

    Equations, parameters and options are those of :class:`lstm_jax.cells.LSTMCell`.

    >>> rnn = nn.RNN(LSTMCell(4, forget_bias=2.0))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_hh', 'w_ih']
    """


class LSTM1997Cell(_Named, functional=cells.LSTM1997Cell):
    """The LSTM of 1997, without forget gates.

    Equations, parameters and options are those of :class:`lstm_jax.cells.LSTM1997Cell`.

    >>> rnn = nn.RNN(LSTM1997Cell(4, block_size=2))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_hh', 'w_ih']
    """


class PeepholeLSTMCell(_Named, functional=cells.PeepholeLSTMCell):
    """The LSTM whose gates see the cell state.

    Equations, parameters and options are those of :class:`lstm_jax.cells.PeepholeLSTMCell`.

    >>> rnn = nn.RNN(PeepholeLSTMCell(4, cell_clip=10.0))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'p_f', 'p_i', 'p_o', 'w_hh', 'w_ih']
    """


class CoupledLSTMCell(_Named, functional=cells.CoupledLSTMCell):
    """The LSTM with coupled input and forget gates.

    Equations, parameters and options are those of :class:`lstm_jax.cells.CoupledLSTMCell`.

    >>> rnn = nn.RNN(CoupledLSTMCell(4, peepholes=True))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'p_f', 'p_o', 'w_hh', 'w_ih']
    """


class OdysseyLSTMCell(_Named, functional=cells.OdysseyLSTMCell):
    """The LSTM without one of its parts.

    Equations, parameters and options are those of :class:`lstm_jax.cells.OdysseyLSTMCell`.

    >>> rnn = nn.RNN(OdysseyLSTMCell(4, variant="nig"))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'p_f', 'p_o', 'w_hh', 'w_ih']
    """


class ProjectedLSTMCell(_Named, functional=cells.ProjectedLSTMCell):
    """The LSTM whose hidden state is a projection of its cells.

    Equations, parameters and options are those of :class:`lstm_jax.cells.ProjectedLSTMCell`.

    >>> rnn = nn.RNN(ProjectedLSTMCell(6, proj_size=4))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_hh', 'w_hr', 'w_ih']
    """


class LayerNormLSTMCell(_Named, functional=cells.LayerNormLSTMCell):
    """The LSTM with layer normalisation.

    Equations, parameters and options are those of :class:`lstm_jax.cells.LayerNormLSTMCell`.

    >>> rnn = nn.RNN(LayerNormLSTMCell(4, epsilon=1e-6))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'scale_c', 'scale_h', 'scale_x', 'shift_c', 'shift_h', 'shift_x', 'w_hh', 'w_ih']
    """


class MultiplicativeLSTMCell(_Named, functional=cells.MultiplicativeLSTMCell):
    """The LSTM whose transition depends on the input.

    Equations, parameters and options are those of :class:`lstm_jax.cells.MultiplicativeLSTMCell`.

    >>> rnn = nn.RNN(MultiplicativeLSTMCell(4))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_hh', 'w_ih', 'w_mh', 'w_mx']
    """


class MogrifierLSTMCell(_Named, functional=cells.MogrifierLSTMCell):
    """The mogrifier LSTM: input and hidden state gate each other first.

    Equations, parameters and options are those of :class:`lstm_jax.cells.MogrifierLSTMCell`.

    >>> rnn = nn.RNN(MogrifierLSTMCell(4, rounds=2))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_hh', 'w_ih', 'w_q1', 'w_r2']
    """


class SLSTMCell(_Named, functional=cells.SLSTMCell):
    """The sLSTM of xLSTM, with exponential gates.

    Equations, parameters and options are those of :class:`lstm_jax.cells.SLSTMCell`.

    >>> rnn = nn.RNN(SLSTMCell(4, num_heads=2))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_hh', 'w_ih']
    """


class MinLSTMCell(_Named, functional=cells.MinLSTMCell):
    """The minimal LSTM, whose gates do not read the hidden state.

    Equations, parameters and options are those of :class:`lstm_jax.cells.MinLSTMCell`.

    >>> rnn = nn.RNN(MinLSTMCell(4))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_ih']
    """


class MinGRUCell(_Named, functional=cells.MinGRUCell):
    """The minimal GRU, whose gate does not read the hidden state.

    Equations, parameters and options are those of :class:`lstm_jax.cells.MinGRUCell`.

    >>> rnn = nn.RNN(MinGRUCell(4))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_ih']
    """


class GRUCell(_Named, functional=cells.GRUCell):
    """The gated recurrent unit.

    Equations, parameters and options are those of :class:`lstm_jax.cells.GRUCell`.

    >>> rnn = nn.RNN(GRUCell(4, reset_after=True))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'b_hg', 'w_hh', 'w_ih']
    """


class MGUCell(_Named, functional=cells.MGUCell):
    """The minimal gated unit.

    Equations, parameters and options are those of :class:`lstm_jax.cells.MGUCell`.

    >>> rnn = nn.RNN(MGUCell(4))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_hh', 'w_ih']
    """


class RNNCell(_Named, functional=cells.RNNCell):
    """The simple recurrent network.

    Equations, parameters and options are those of :class:`lstm_jax.cells.RNNCell`.

    >>> rnn = nn.RNN(RNNCell(4, activation_fn="relu"))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_hh', 'w_ih']
    """


class IndRNNCell(_Named, functional=cells.IndRNNCell):
    """The independently recurrent network: each unit reads only its own past.

    Equations, parameters and options are those of :class:`lstm_jax.cells.IndRNNCell`.

    >>> rnn = nn.RNN(IndRNNCell(4))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'u_hh', 'w_ih']
    """


class EntityAwareLSTMCell(_Named, functional=cells.EntityAwareLSTMCell):
    """The entity-aware LSTM: its input gate reads static features.

    Equations, parameters and options are those of :class:`lstm_jax.cells.EntityAwareLSTMCell`.

    >>> rnn = nn.RNN(EntityAwareLSTMCell(4, static_size=2))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_hh', 'w_ih', 'w_si']
    """


class ConvLSTMCell(_Named, functional=cells.ConvLSTMCell):
    """The convolutional LSTM, with features at each point of a grid.

    Equations, parameters and options are those of :class:`lstm_jax.cells.ConvLSTMCell`.

    >>> rnn = nn.RNN(ConvLSTMCell(4, kernel_size=(3, 5)))
    >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), jnp.ones((2, 5, 8, 9, 3)))
    >>> sorted(variables["params"]["cell"])
    ['b', 'w_hh', 'w_ih']
    """


# ---- whole sequences ----


class _Sequence(nn.Module):
    """A module that runs ``self.layer``."""

    @nn.compact
    def __call__(
        self,
        xs: jax.Array,
        *,
        initial_carry: Any = None,
        init_key: jax.Array | None = None,
        seq_lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
    ) -> Any:
        """The layer over a sequence, with the arguments of ``flax.linen.RNN`` and some more.

        Args:
          xs: ``[..., T, D]``, or ``[T, ..., D]`` if ``time_major``.
          initial_carry: the state before the first step, as :meth:`initialize_carry` returns it;
            None for the initial state, which is zeros unless learned.  A single layer also accepts
            its own state, such as :class:`lstm_jax.LSTMState`, or a carry of Flax: ``(c, h)`` for
            an LSTM, an array for a GRU, and a pair of these for two directions.
          init_key: ignored; ``flax.linen.Bidirectional`` passes it.
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
          deterministic: see the class.
          rng: a random key for dropout and the noise of regularisers; from the stream ``dropout``
            if None.

        Returns:
          The outputs, with the layout of ``xs``; with ``return_carry`` the pair
          ``(carry, outputs)``.  The carry has the form of ``initial_carry``; if that is None, it is
          a dict with the state of each layer, as from :meth:`initialize_carry`.
          Arguments that are None default to those of the constructor.

        Raises:
          ValueError: ``xs`` lacks an axis or has another feature size than the parameters,
            ``reverse`` is set for a layer with its own directions, there is dropout or a
            regulariser and ``deterministic`` is given neither here nor to the class, or to both,
            or as in :func:`lstm_jax.unroll`.
          TypeError: ``initial_carry`` has another structure.
          flax.errors.InvalidRngError: dropout or a regulariser needs the stream ``dropout``, and
            there is none.
        """
        layer = self.functional
        time_major = self.time_major if time_major is None else time_major
        xs = _flax.checked_inputs(layer, None, xs, time_major)
        return _flax.over_sequence(
            layer,
            _params(self, layer, xs.shape[-1]),
            xs,
            initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            key=_key(self, layer, deterministic, rng),
            time_major=time_major,
            reverse=reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            return_carry=self.return_carry if return_carry is None else return_carry,
        )

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Any:
        """The state before the first step, as in the cells of Flax.

        A learned state is a parameter of the module, and therefore only available inside ``apply``:
        ``module.apply(variables, rng, input_shape, method="initialize_carry")``.

        Args:
          rng: ignored; the cells of Flax have this argument.
          input_shape: shape of one step's input: ``(B, D)`` for sequences ``[B, T, D]``.

        Returns:
          For :class:`LSTM` and any other stack a dict with the state of each layer, ``layer_0``
          first.

        Raises:
          ValueError: the state is learned, and this is not inside ``apply``.

        Example:
          >>> carry = LSTM(4, num_layers=2).initialize_carry(jax.random.key(0), (2, 3))
          >>> carry["layer_1"].h.shape
          (2, 4)
        """
        return _initial_carry(self, self.functional, input_shape)


class Stack(_Sequence):
    """Any functional layer over whole sequences.

    Attributes:
      layer: a functional layer, such as :class:`lstm_jax.sequence.Stack` or
        :class:`lstm_jax.sequence.Bidirectional`; or a cell, which becomes a stack of one.
      time_major: whether time is the first axis of inputs and outputs (``[T, ..., D]``)
        instead of the second to last (``[..., T, D]``).
      keep_order: whether the outputs of a layer that runs backwards stay at the times of
        their inputs; otherwise they are in the order in which they were computed, each
        row's last step first, and masked steps stay in their positions, as in ``flax.linen.RNN``.
      return_carry: whether calls also return the last states.
      deterministic: whether dropout and the noise of regularisers are off; if there are any,
        it must be given here or to the call, as in ``nn.Dropout``.

    Raises:
      TypeError: ``layer`` is not a layer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import cells, sequence
      >>> layer = sequence.Stack([sequence.Bidirectional(cells.LSTMCell(4)), cells.RNNCell(6)])
      >>> ys, variables = Stack(layer).init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> ys.shape, sorted(variables["params"]["layer_0"])
      ((2, 5, 6), ['backward', 'forward'])
    """

    layer: Any
    time_major: bool = False
    keep_order: bool = False
    return_carry: bool = False
    deterministic: bool | None = None

    def __post_init__(self):
        _flax.as_layer(self.layer)
        super().__post_init__()

    @property
    def functional(self) -> Any:
        """The functional layer."""
        return _flax.as_layer(self.layer)


class LSTM(_Sequence):
    """Stacked LSTM layers, or layers of any other cell, over a whole sequence.

    Attributes:
      features: H of every layer, or a tuple with one for each.
      num_layers: L; also determined by a tuple.
      bidirectional: whether every layer reads its sequence in both directions; H is the width of
        one direction.
      cell: a name in :data:`lstm_jax.CELLS`, a functional class, any function that constructs a
        functional cell, or a tuple with one of these for each layer.  Set options of the cell with
        ``functools.partial(lstm_jax.LSTMCell, forget_bias=2.0)``.
      dropout: probability that an output between layers is zeroed; switched and seeded as
        ``nn.Dropout`` is; see ``deterministic``.
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
      time_major, keep_order, return_carry, deterministic: as in :class:`Stack`.

    Raises:
      TypeError, ValueError: a size is not a positive integer, ``dropout`` lies outside [0, 1), or
        another option is invalid; the message names it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lstm = LSTM(4, num_layers=2, return_carry=True)
      >>> xs, lengths = jnp.ones((2, 5, 3)), jnp.array([5, 2])
      >>> variables = lstm.init(jax.random.key(0), xs)
      >>> carry, ys = lstm.apply(variables, xs, seq_lengths=lengths)
      >>> ys.shape, carry["layer_1"].h.shape
      ((2, 5, 4), (2, 4))
    """

    features: int | tuple[int, ...]
    num_layers: int = 1
    bidirectional: bool = False
    cell: Any = "lstm"
    dropout: float = 0.0
    merge: str | Merge = "concat"
    connections: str = "plain"
    reverse: bool = False
    keep_order: bool = False
    time_major: bool = False
    return_carry: bool = False
    deterministic: bool | None = None
    engine: str = "auto"
    memory: str = "full"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike | None = None
    gate_fn: Activation | None = None
    activation_fn: Activation | None = None
    kernel_init: Initializer | str | None = None
    recurrent_kernel_init: Initializer | str | None = None
    bias_init: Initializer | str | None = None

    def __post_init__(self):
        _ = self.functional  # checks the fields
        super().__post_init__()

    @property
    def functional(self) -> Any:
        """The functional layer."""
        return _flax.lstm(
            {"features": self.features},
            self.num_layers,
            cell=self.cell,
            options={
                "gate_fn": self.gate_fn,
                "activation_fn": self.activation_fn,
                "kernel_init": self.kernel_init,
                "recurrent_kernel_init": self.recurrent_kernel_init,
                "bias_init": self.bias_init,
            },
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            merge=self.merge,
            connections=self.connections,
            reverse=self.reverse,
            engine=self.engine,
            memory=self.memory,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
