"""Noise for training, around any cell: zoneout, three kinds of dropout, DropConnect.

A regulariser wraps a cell.  It has the same parameters and states, and in evaluation the same
arithmetic (except for the means of zoneout).  If ``unroll`` receives a ``key``, the regulariser
samples its noise with it.  Regularisers nest: ``Zoneout(DropConnect(LSTMCell(64), rate=0.5))``.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import Cell, GatedCell, Params, State, like
from lstm_jax.sequence import shardings
from lstm_jax.sequence.protocol import Around, is_stochastic

Step = Callable[[State, jax.Array, Any], tuple[State, jax.Array]]


def noisy_step(
    cell: Cell, params: Params, key: jax.Array | None, shape: tuple[int, ...]
) -> tuple[Step, Any]:
    """A step that takes its noise as an input, and the noise of each step of a sequence.

    Args:
      cell: a cell; it is noisy if it is a :class:`Regularizer` and there is a ``key``.
      params: its parameters.
      key: a random key; None for no noise.
      shape: of the inputs, ``[T, ..., D]``.

    Returns:
      ``(run, noise)``: ``run(state, x, noise_t)`` is one step, and ``noise`` a pytree whose
      arrays have time as their first axis.
    """
    if key is None or not isinstance(cell, Regularizer):
        return lambda state, x, _: cell.step(params, state, x), None
    return cell.noisy(params, key, shape)


def single_step(
    cell: Cell, params: Params, state: State, x: jax.Array, key: jax.Array | None
) -> tuple[State, jax.Array]:
    """A single step: with noise if there is a key, otherwise as in evaluation.

    Args:
      cell: a cell, or a regulariser around one.
      params: its parameters.
      state: the state before the step.
      x: the input, ``[..., D]``.
      key: a random key; None for no noise.

    Returns:
      ``(state, y)``.
    """
    step, noise = noisy_step(cell, params, key, (1, *x.shape))
    return step(state, x, jax.tree.map(lambda of_steps: of_steps[0], noise))


@dataclasses.dataclass(frozen=True)
class Regularizer(Around):
    """A wrapper around a cell that adds noise in training; subclasses define :meth:`noisy`.

    Attributes:
      cell: the cell that is regularised, or another regulariser around it.
      rate_names: the fields that hold rates; if every rate is zero, there is no noise.
    """

    rate_names: ClassVar[tuple[str, ...]] = ()

    @property
    def is_stochastic(self) -> bool:
        """Whether training adds noise: a rate is above zero, here or inside."""
        rates = [getattr(self, name) for name in self.rate_names]
        return not rates or any(rates) or is_stochastic(self.cell)

    def noisy(self, params: Params, key: jax.Array, shape: tuple[int, ...]) -> tuple[Step, Any]:
        """As :func:`noisy_step`, with the noise of this regulariser and of its cell."""
        raise NotImplementedError

    @property
    def hidden_size(self) -> int:
        """H of the cell."""
        return self.cell.hidden_size

    def init(self, key: jax.Array, input_size: int) -> Params:
        """The parameters of the cell; a regulariser has none."""
        return self.cell.init(key, input_size)

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> State:
        """The zero state of the cell."""
        return self.cell.zero_state(batch_shape)

    def step(self, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
        """One step as in evaluation."""
        return self.cell.step(params, state, x)


def without_regularizers(cell: Any) -> Any:
    """The cell inside all regularisers.

    >>> from lstm_jax import LSTMCell
    >>> without_regularizers(Zoneout(LSTMCell(3))).hidden_size
    3
    """
    while isinstance(cell, Regularizer):
        cell = cell.cell
    return cell


@dataclasses.dataclass(frozen=True)
class Zoneout(Regularizer):
    """Randomly chosen units keep their previous value instead of being dropped.

    With masks sampled at each step, 1 with probability ``rate``::

        c_t = d^c_t ∘ c_{t-1} + (1 - d^c_t) ∘ ĉ_t        h_t = d^h_t ∘ h_{t-1} + (1 - d^h_t) ∘ ĥ_t

    where ĉ_t and ĥ_t are the states that the cell computes; in evaluation the rate replaces the
    mask.  Any further field of the state uses the mask of c.

    Attributes:
      cell: any cell whose state is a NamedTuple with a field ``h``.
      hidden_rate: for the hidden state, at least 0 and below 1.
      cell_rate: for the cell state, and any other field, at least 0 and below 1.

    Raises:
      ValueError: a rate lies outside its range.
      TypeError: the cell's state has no ``h``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import LSTMCell, unroll
      >>> cell = Zoneout(LSTMCell(4), hidden_rate=0.05, cell_rate=0.5)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = unroll(cell, params, jnp.ones((7, 3)), key=jax.random.key(1))
      >>> ys.shape
      (7, 4)

    References:
      David Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden
      Activations", ICLR 2017, section 3.
    """

    hidden_rate: float = 0.05
    cell_rate: float = 0.5
    rate_names: ClassVar[tuple[str, ...]] = ("hidden_rate", "cell_rate")

    def __post_init__(self):
        _check_rates(self)
        _check_hidden_state(self)

    def noisy(self, params: Params, key: jax.Array, shape: tuple[int, ...]) -> tuple[Step, Any]:
        h_key, c_key, key = jax.random.split(key, 3)
        run, noise = noisy_step(self.cell, params, key, shape)
        # One key for all fields but h: fields of the same unit are preserved or updated together.
        masks = self._of_fields(
            lambda rate, name, zero: jax.random.bernoulli(
                h_key if name == "h" else c_key, rate, (shape[0], *zero.shape)
            ),
            jax.eval_shape(lambda: self.zero_state(shape[1:-1])),
        )

        def zoned(state: Any, x: jax.Array, noise: Any) -> tuple[Any, jax.Array]:
            masks, noise = noise
            stepped, y = run(state, x, noise)
            masks = jax.tree.map(shardings.like, masks, stepped)
            zoned_out = jax.tree.map(jnp.where, masks, state, stepped)
            return zoned_out, _output(y, stepped, zoned_out)

        return zoned, (masks, noise)

    def step(self, params: Params, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        stepped, y = self.cell.step(params, state, x)
        mean = self._of_fields(
            lambda rate, name, new: rate * getattr(state, name) + (1.0 - rate) * new, stepped
        )
        if hasattr(self.cell, "mean_state"):  # whose fields cannot be averaged one by one
            mean = self.cell.mean_state(state, stepped, self.cell_rate)._replace(h=mean.h)
        mean = like(mean, stepped)
        return mean, _output(y, stepped, mean)

    def _of_fields(self, function: Callable[[float, str, Any], Any], state: Any) -> Any:
        rates = {name: self.cell_rate for name in state._fields} | {"h": self.hidden_rate}
        return type(state)(
            **{name: function(rates[name], name, leaf) for name, leaf in state._asdict().items()}
        )


@dataclasses.dataclass(frozen=True)
class VariationalDropout(Regularizer):
    """Dropout with one mask for a whole sequence, on inputs, hidden state and outputs.

    With masks that are sampled once for each row and sequence, and scaled by 1 / (1 - rate)::

        (state_t, y_t) = cell(d^h ∘ h_{t-1}, ...; d^x ∘ x_t)        and d^y ∘ y_t is the output

    The mask of the state applies to ``h`` as a step reads it; the cell state is never dropped.

    Attributes:
      cell: any cell; with a ``state_rate`` one whose state has a field ``h``.
      input_rate: probability that an input feature is zero throughout a sequence.
      state_rate: the same for the hidden state that a step reads.
      output_rate: the same for outputs.

    Raises:
      ValueError: a rate lies outside its range, at least 0 and below 1.
      TypeError: there is a ``state_rate``, and the cell's state has no ``h``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import LSTMCell, unroll
      >>> cell = VariationalDropout(LSTMCell(4), output_rate=0.5)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> _, ys = unroll(cell, params, jnp.ones((7, 3)), key=jax.random.key(1))
      >>> bool(((ys == 0).all(0) == (ys == 0).any(0)).all())  # dropped throughout or never
      True

    References:
      Yarin Gal, Zoubin Ghahramani, "A Theoretically Grounded Application of Dropout in
      Recurrent Neural Networks", NeurIPS 2016 (the tied form; their "untied" form has one mask per
      gate).
    """

    input_rate: float = 0.25
    state_rate: float = 0.25
    output_rate: float = 0.25
    rate_names: ClassVar[tuple[str, ...]] = ("input_rate", "state_rate", "output_rate")

    def __post_init__(self):
        _check_rates(self)
        if self.state_rate:
            _check_hidden_state(self)

    def noisy(self, params: Params, key: jax.Array, shape: tuple[int, ...]) -> tuple[Step, Any]:
        x_key, h_key, y_key, key = jax.random.split(key, 4)
        run, noise = noisy_step(self.cell, params, key, shape)
        width = getattr(self.cell, "output_size", self.hidden_size)
        keep_x = jax.random.bernoulli(x_key, 1.0 - self.input_rate, shape[1:])
        keep_h = None
        if self.state_rate:
            zero = jax.eval_shape(lambda: self.zero_state(shape[1:-1]))
            keep_h = jax.random.bernoulli(h_key, 1.0 - self.state_rate, zero.h.shape)
        keep_y = jax.random.bernoulli(y_key, 1.0 - self.output_rate, (*shape[1:-1], width))

        def dropped(state: Any, x: jax.Array, noise: Any) -> tuple[Any, jax.Array]:
            if keep_h is not None:
                state = state._replace(h=_kept(state.h, keep_h, self.state_rate))
            state, y = run(state, _kept(x, keep_x, self.input_rate), noise)
            return state, _kept(y, keep_y, self.output_rate)

        return dropped, noise


@dataclasses.dataclass(frozen=True)
class RecurrentDropout(Regularizer):
    """Dropout of the candidate, which leaves the memory intact.

    With a mask d(.) sampled at each step, and scaled by 1 / (1 - rate)::

        c_t = f_t ∘ c_{t-1} + i_t ∘ d(g_t)

    and likewise for the candidate of any gated cell, such as the GRU.

    Attributes:
      cell: a cell with gates and a candidate, not a regulariser around one.
      rate: the probability, at least 0 and below 1, that an element becomes zero.

    Raises:
      ValueError: the rate lies outside its range.
      TypeError: the cell is not a :class:`lstm_jax.cells.GatedCell`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import LSTMCell, unroll
      >>> cell = RecurrentDropout(LSTMCell(4), rate=0.25)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = unroll(cell, params, jnp.ones((7, 3)), key=jax.random.key(1))
      >>> ys.shape
      (7, 4)

    References:
      Stanislau Semeniuta, Aliaksei Severyn, Erhardt Barth, "Recurrent Dropout without Memory
      Loss", COLING 2016.
    """

    rate: float = 0.25
    rate_names: ClassVar[tuple[str, ...]] = ("rate",)

    def __post_init__(self):
        _check_rates(self)
        if not isinstance(self.cell, GatedCell):
            raise TypeError(
                "RecurrentDropout drops the candidate of a cell with gates, and must wrap "
                f"that cell directly, got {self.cell}"
            )

    def noisy(self, params: Params, key: jax.Array, shape: tuple[int, ...]) -> tuple[Step, Any]:
        cell, functions = self.cell, self.cell.activations
        keep = jax.random.bernoulli(key, 1.0 - self.rate, (*shape[:-1], self.hidden_size))
        options = {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)}

        def dropped(state: Any, x: jax.Array, keep: jax.Array) -> tuple[Any, jax.Array]:
            def drop(z: jax.Array) -> jax.Array:
                return _kept(functions.candidate(z), keep, self.rate)

            noisy = _with_own_activations(type(cell))(**options)
            object.__setattr__(noisy, "activations", functions._replace(candidate=drop))
            return noisy.step(params, state, x)

        return dropped, keep


@functools.cache
def _with_own_activations(kind: type[GatedCell]) -> type[GatedCell]:
    """A kind of cell whose activations are an attribute of each cell, not given by its options.

    No option sets only the candidate's function: ``activation_fn`` may also apply to the read-out,
    and in the variant niaf it applies to nothing else.
    """
    return type(kind.__name__, (kind,), {"activations": None})


@dataclasses.dataclass(frozen=True)
class DropConnect(Regularizer):
    """Dropout of recurrent weights: one mask for all rows and steps of a call.

    ::

        h_t = cell(h_{t-1}, x_t; d ∘ U / (1 - rate))        d sampled once for all steps

    Attributes:
      cell: a cell with parameters in a flat dict; ``cell.recurrent_weights`` names those
        that are dropped, by default ``("w_hh",)``.
      rate: the probability, at least 0 and below 1, that a weight becomes zero.

    Raises:
      ValueError: the rate lies outside its range, or the cell has no recurrent weights.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax import LSTMCell, unroll
      >>> cell = DropConnect(LSTMCell(4), rate=0.5)
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> state, ys = unroll(cell, params, jnp.ones((7, 3)), key=jax.random.key(1))
      >>> ys.shape
      (7, 4)

    References:
      Stephen Merity, Nitish Shirish Keskar, Richard Socher, "Regularizing and Optimizing LSTM
      Language Models", ICLR 2018 (the weight-dropped LSTM).
    """

    rate: float = 0.5
    rate_names: ClassVar[tuple[str, ...]] = ("rate",)

    def __post_init__(self):
        _check_rates(self)
        if not self._names:
            raise ValueError(
                f"DropConnect needs a cell with recurrent weights (cell.recurrent_weights), "
                f"got {self.cell}"
            )

    @property
    def _names(self) -> tuple[str, ...]:
        return getattr(self.cell, "recurrent_weights", ("w_hh",))

    def noisy(self, params: Params, key: jax.Array, shape: tuple[int, ...]) -> tuple[Step, Any]:
        names = self._names
        for name in names:
            if name not in params:
                raise ValueError(f"DropConnect needs params[{name!r}], got {', '.join(params)}")
        *keys, key = jax.random.split(key, len(names) + 1)
        dropped = {
            name: dropout(params[name], self.rate, k) for name, k in zip(names, keys, strict=True)
        }
        return noisy_step(self.cell, {**params, **dropped}, key, shape)


def dropout(xs: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a fraction ``rate`` of ``xs`` and scales the rest by ``1 / (1 - rate)``.

    Args:
      xs: any array.
      rate: the probability, 0 <= rate < 1, that an element becomes zero.
      key: a random key; None (evaluation) returns ``xs`` unchanged.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> dropout(jnp.ones(8), 0.5, jax.random.key(0)).tolist().count(0.0) in range(9)
      True
      >>> dropout(jnp.ones(2), 0.5, None).tolist()
      [1.0, 1.0]

    References:
      Nitish Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
      Overfitting", JMLR 15, 2014.
    """
    if key is None or rate == 0.0:
        return xs
    sharding = jax.typeof(xs).sharding  # each device of an explicit mesh makes its part of the mask
    return _kept(xs, jax.random.bernoulli(key, 1.0 - rate, xs.shape, out_sharding=sharding), rate)


def _kept(array: jax.Array, keep: jax.Array, rate: float) -> jax.Array:
    """Inverted dropout: the remaining elements are scaled up to preserve the mean."""
    keep = shardings.like(keep, array)
    return jnp.where(keep, array / jnp.asarray(1.0 - rate, array.dtype), jnp.zeros_like(array))


def _output(y: jax.Array, stepped: Any, state: Any) -> jax.Array:
    """The output for a changed ``state``: its h if the output of the cell is its h."""
    return state.h if y is stepped.h else y


def _check_rates(regularizer: Regularizer) -> None:
    for name in regularizer.rate_names:
        rate = getattr(regularizer, name)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
            raise ValueError(f"{name} must be at least 0 and below 1, got {rate!r}")


def _check_hidden_state(regularizer: Regularizer) -> None:
    state = jax.eval_shape(regularizer.zero_state)
    if "h" not in getattr(state, "_fields", ()):
        raise TypeError(
            f"{type(regularizer).__name__} needs a cell whose state is a NamedTuple with a "
            f"field h, got {type(state).__name__}"
        )
