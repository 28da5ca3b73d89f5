"""A forecaster of many series: one LSTM reads the past, and another steps through the future."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Carry, Model, Outputs
from lstm_jax.models.heads import Head
from lstm_jax.nnx import LSTM

SCALINGS = ("standard", "mean", "robust", "log")


class Sizes(NamedTuple):
    """Sizes of the inputs of an :class:`EncoderForecaster`.

    Attributes:
      window: W, the number of past steps.
      horizon: F, the number of future steps.
      past: the number of covariates known up to the present.
      known: the number of covariates known over the future as well.
      numbers: the number of static numbers.
      categories: the number of values of each static category.
    """

    window: int
    horizon: int
    past: int = 0
    known: int = 0
    numbers: int = 0
    categories: tuple[int, ...] = ()


class WindowScale(NamedTuple):
    """The scaling of a window: ``z = (f(y) - level) / scale``; f is log(1 + y) or the identity.

    Attributes:
      level: float32 ``[B]``.
      scale: float32 ``[B]``, above 0.
    """

    level: jax.Array
    scale: jax.Array


def window_scale(values: jax.Array, scaling: str) -> WindowScale:
    """The level and scale of the observed values of each window.

    ``"standard"``: mean and standard deviation; ``"mean"``: 0 and the mean absolute value;
    ``"robust"``: median and interquartile range; ``"log"``: like standard, for log(1 + y).  A
    window that hardly varies is scaled by its mean absolute value; a window of zeros, or without
    values, by 1.

    Args:
      values: ``[B, W]``; NaN where missing.
      scaling: one of :data:`SCALINGS`.

    >>> window_scale(jnp.array([[1.0, jnp.nan, 3.0]]), "standard")
    WindowScale(level=Array([2.], dtype=float32), scale=Array([1.], dtype=float32))
    """
    observed = jnp.isfinite(values)
    y = jnp.where(observed, values, 0)
    y = jnp.log1p(y) if scaling == "log" else y
    count = jnp.maximum(observed.sum(1), 1)
    magnitude = jnp.abs(y).sum(1) / count
    if scaling == "mean":
        level, scale = jnp.zeros_like(magnitude), magnitude
    elif scaling == "robust":
        rows = jnp.where(observed, y, jnp.nan)
        low, level, high = jnp.nanquantile(rows, jnp.array([0.25, 0.5, 0.75]), axis=1)
        scale = (high - low) / 1.349  # equal to the standard deviation for a normal distribution
        level, scale = (jnp.nan_to_num(each) for each in (level, scale))
    else:
        level = y.sum(1) / count
        scale = jnp.sqrt((jnp.where(observed, y - level[:, None], 0) ** 2).sum(1) / count)
    scale = jnp.where(scale > 1e-3 * magnitude, scale, magnitude)
    return WindowScale(level, jnp.where(scale > 1e-12, scale, 1.0))


def scaled(values: jax.Array, window: WindowScale, scaling: str) -> jax.Array:
    """Values ``[B, ...]`` in the units of their windows; 0 where missing.

    >>> scaled(jnp.array([[4.0, jnp.nan]]), WindowScale(jnp.full(1, 2.0), jnp.ones(1)), "mean")
    Array([[2., 0.]], dtype=float32)
    """
    observed = jnp.isfinite(values)
    y = jnp.where(observed, values, 0)
    y = jnp.log1p(jnp.maximum(y, 0)) if scaling == "log" else y
    level, scale = (each.reshape(-1, *(1,) * (values.ndim - 1)) for each in window)
    return jnp.where(observed, (y - level) / scale, 0)


def unscaled(values: jax.Array, window: WindowScale, scaling: str) -> jax.Array:
    """The inverse of :func:`scaled`, ``[B, ...]``.

    >>> unscaled(jnp.ones((1, 1)), WindowScale(jnp.zeros(1), jnp.ones(1)), "log").round(3)
    Array([[1.718]], dtype=float32)
    """
    level, scale = (each.reshape(-1, *(1,) * (values.ndim - 1)) for each in window)
    y = values * scale + level
    return jnp.expm1(y) if scaling == "log" else y


class Read(NamedTuple):
    """The information that a forecaster has at the present.

    Attributes:
      window: the scaling of the window.
      z: the scaled values, 0 where missing, ``[B, W]``.
      observed: whether each value is observed, ``[B, W]``.
      static: static features, ``[B, K]``.
      state: the state of the second LSTM before its first step.
    """

    window: WindowScale
    z: jax.Array
    observed: jax.Array
    static: jax.Array
    state: Any


class EncoderForecaster(Model):
    """Forecasts a series from its past window, known covariates, and static features.

    A window of W steps is scaled by its own level and scale, ``z_t``.  Both LSTMs read segments of
    S steps: x_n is a segment of ``z``, of the flags of observed values, and of covariates with
    their flags; k_m is a segment of the covariates that are known over the future.  The final state
    of the first LSTM is mapped linearly to the initial state of the second one (the handoff); the
    maps are initialised as the identity::

        h_N, c_N = LSTM(..., (relu(W_x x_n + b_x), s), ...)
        u_m      = LSTM'((relu(W_k k_m + b_k), s); A_h h_N, A_c c_N)
        (r_{(m-1)S+1}, ..., r_{mS}) = W_u u_m + b_u
        r_{f,0} += sum_t z'_t L_{t,f}

    with the static features s: the window's level and scale, numbers, and embedded categories.  z'
    is z with gaps filled by the last observed value.  L is a linear model in parallel to the
    network; it is initialised as the seasonal naive forecast.  The head turns the raw numbers
    ``r_f`` into a distribution.

    Args:
      sizes: the sizes of the inputs.
      head: turns raw numbers into a distribution.
      hidden_features: H of each layer.
      num_layers: stacked layers of each LSTM.
      segment: S, a divisor of W.
      season: the number of steps in a season, at most W; 1 for none.
      scaling: one of :data:`SCALINGS`.
      embedding_features: the features of each static category.
      magnitude: the mean and deviation of ``log(1 + |level|)`` over training series.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`, or a function of the number of
        static features that returns one.
      dropout: dropout rate of inputs and outputs of every layer.
      dtype: type of the products in the layers.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Example:
      >>> from lstm_jax.models.heads import QuantileHead
      >>> model = EncoderForecaster(Sizes(window=12, horizon=3), QuantileHead(), 8, season=4,
      ...                           rngs=nnx.Rngs(0))
      >>> _, outputs = model((), target=jnp.ones((5, 12)), past=jnp.ones((5, 12, 0)),
      ...                    known=jnp.ones((5, 15, 0)), numbers=jnp.ones((5, 0)),
      ...                    categories=jnp.ones((5, 0), int))
      >>> outputs["raw"].shape, outputs["scale"].shape  # [B, F, P] and [B]
      ((5, 3, 9), (5,))

    References:
      Ruofeng Wen et al., "A Multi-Horizon Quantile Recurrent Forecaster", arXiv:1711.11053, 2017
      (direct forecasts of all steps, known covariates in the decoder); Shengsheng Lin et al.,
      "SegRNN", arXiv:2308.11200, 2023 (segments); Guokun Lai et al., "Modeling Long- and
      Short-Term Temporal Patterns with Deep Neural Networks", SIGIR 2018 (a linear model in
      parallel with the network); Grey Nearing et al., "Global prediction of extreme floods in
      ungauged watersheds", Nature 627, 2024 (handoff from a hindcast to a forecast LSTM).
    """

    def __init__(
        self,
        sizes: Sizes,
        head: Head,
        hidden_features: int,
        num_layers: int = 1,
        *,
        segment: int = 1,
        season: int = 1,
        scaling: str = "standard",
        embedding_features: int = 8,
        magnitude: tuple[float, float] = (0.0, 1.0),
        cell: Any = "lstm",
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        self.sizes, self.head, self.segment, self.scaling = sizes, head, segment, scaling
        self.magnitude = magnitude
        self.blocks = -(-sizes.horizon // segment)
        glorot, H = jax.nn.initializers.glorot_uniform(), hidden_features
        self.embeddings = nnx.List(
            [nnx.Embed(n, embedding_features, rngs=rngs) for n in sizes.categories]
        )
        static = 2 + sizes.numbers + embedding_features * len(sizes.categories)
        read = segment * (2 + 2 * sizes.past + 2 * sizes.known)
        given, written, linear = self._decoder_sizes(season)
        self.read = nnx.Linear(read, H, kernel_init=glorot, rngs=rngs)
        self.given = nnx.Linear(given, H, kernel_init=glorot, rngs=rngs)
        cell = cell(static) if isinstance(cell, StaticCell) else cell
        options: Mapping[str, Any] = dict(cell=cell, dropout=dropout, dtype=dtype, rngs=rngs)
        self.encoder = LSTM(H + static, H, num_layers, **options)
        self.decoder = LSTM(H + static, H, num_layers, **options)
        leaves = jax.tree.leaves(self._state(1))
        self.handoff = nnx.List(
            [nnx.Linear(a.shape[-1], a.shape[-1], kernel_init=_identity, rngs=rngs) for a in leaves]
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        width = self.decoder.layer.output_size
        self.readout = nnx.Linear(width, written * head.size, kernel_init=glorot, rngs=rngs)
        self.linear = nnx.Param(linear)

    def _decoder_sizes(self, season: int) -> tuple[int, int, jax.Array]:
        """The inputs and outputs of a decoder step, and the initial linear model."""
        given = 2 * self.segment * self.sizes.known + self.blocks
        return given, self.segment, _seasonal(self.sizes.window, self.sizes.horizon, season)

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        W, F = self.sizes.window, self.sizes.horizon
        return {
            "target": (f"b, {W}", "float32"),
            "past": (f"b, {W}, {self.sizes.past}", "float32"),
            "known": (f"b, {W + F}, {self.sizes.known}", "float32"),
            "numbers": (f"b, {self.sizes.numbers}", "float32"),
            "categories": (f"b, {len(self.sizes.categories)}", "int32"),
        }

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        """The range of the category with the most values; the others are smaller."""
        return {"categories": (0, max(self.sizes.categories, default=1) - 1)}

    @property
    def missing(self) -> tuple[str, ...]:
        return ("target", "past", "known", "numbers")

    def __call__(
        self,
        carry: Carry,
        *,
        target: jax.Array,
        past: jax.Array,
        known: jax.Array,
        numbers: jax.Array,
        categories: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Carry, Outputs]:
        """Raw numbers of each step of the horizon.

        NaN means a missing value in every input of type float32.

        Args:
          carry: ``()``; windows are independent.
          target: the past of the series in its own units, ``[B, W]``.
          past: covariates up to the present, ``[B, W, Cp]``.
          known: covariates that are known over the future, ``[B, W + F, Ck]``.
          numbers: static numbers, ``[B, N]``.
          categories: static categories, ``[B, K]``.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, {"raw": [B, F, P], "level": [B], "scale": [B]})``.
        """
        W, F, S = self.sizes.window, self.sizes.horizon, self.segment
        known = with_flags(known)
        read = self._past(target, past, known[:, :W], numbers, categories, rngs)
        future = jnp.pad(known[:, W:], ((0, 0), (0, self.blocks * S - F), (0, 0)))
        future, rows = _segments(future, S), target.shape[0]
        place = jnp.broadcast_to(jnp.eye(self.blocks), (rows, self.blocks, self.blocks))
        ks = jax.nn.relu(self.given(jnp.concatenate([future, place], -1)))
        us = self.decoder(with_static(ks, read.static), initial_carry=read.state, rngs=rngs)
        raw = self.readout(self.dropout(us.astype(jnp.float32), rngs=rngs))
        raw = raw.reshape(rows, self.blocks * S, -1)[:, :F]
        raw = self._moved(raw, filled(read.z, read.observed) @ self.linear[...])
        return carry, {"raw": raw, **read.window._asdict()}

    def _past(
        self, target: jax.Array, past: jax.Array, known: jax.Array, numbers: jax.Array,
        categories: jax.Array, rngs: nnx.Rngs | None,
    ) -> "Read":  # fmt: skip
        """The first LSTM's outputs for the window; ``known`` has flags, up to the present."""
        window = window_scale(target, self.scaling)
        z, observed = scaled(target, window, self.scaling), jnp.isfinite(target)
        static = self._static(window, numbers, categories)
        pair = jnp.stack([z, observed.astype(z.dtype)], -1)
        xs = _segments(jnp.concatenate([pair, with_flags(past), known], -1), self.segment)
        xs = with_static(jax.nn.relu(self.read(self.dropout(xs, rngs=rngs))), static)
        state, _ = self.encoder(
            xs, initial_carry=self._state(xs.shape[0]), return_carry=True, rngs=rngs
        )
        leaves, tree = jax.tree.flatten(state)
        leaves = [
            linear(leaf).astype(leaf.dtype)
            for linear, leaf in zip(self.handoff, leaves, strict=True)
        ]
        return Read(window, z, observed, static, jax.tree.unflatten(tree, leaves))

    def _moved(self, raw: jax.Array, base: jax.Array) -> jax.Array:
        """Raw numbers ``[..., P]`` with their locations shifted by ``base`` ``[...]``."""
        return raw + base[..., None] * (jnp.arange(self.head.size) < self.head.locations)

    def _state(self, rows: int) -> Any:
        return self.encoder.layer.initial_state(self.encoder.params, (rows,))

    def _static(self, window: WindowScale, numbers: jax.Array, categories: jax.Array) -> jax.Array:
        level = window.level if self.scaling == "log" else jnp.log1p(jnp.abs(window.level))
        if self.scaling == "mean":
            level = jnp.log1p(window.scale)
        spread = jnp.log(window.scale)
        if self.scaling != "log":  # relative to the level
            spread = spread - jnp.log(jnp.abs(window.level) + window.scale)
        mean, deviation = self.magnitude
        parts = [jnp.stack([(level - mean) / deviation, spread], -1), jnp.nan_to_num(numbers)]
        parts += [embed(categories[:, n]) for n, embed in enumerate(self.embeddings)]
        return jnp.concatenate(parts, -1)


class ForecasterEnsemble(Model):
    """Several forecasters with separate parameters, trained and called together.

    Args:
      make: a function of random streams that makes a member.
      members: M, the number of members.
      rngs: the stream ``params`` initialises the parameters.

    Example:
      >>> from lstm_jax.models.heads import PointHead
      >>> make = lambda rngs: EncoderForecaster(Sizes(4, 2), PointHead(), 3, rngs=rngs)
      >>> model = ForecasterEnsemble(make, members=5, rngs=nnx.Rngs(0))
      >>> _, outputs = model((), target=jnp.ones((6, 4)), past=jnp.ones((6, 4, 0)),
      ...                    known=jnp.ones((6, 6, 0)), numbers=jnp.ones((6, 0)),
      ...                    categories=jnp.ones((6, 0), int))
      >>> outputs["raw"].shape  # [B, M, F, P]
      (6, 5, 2, 1)

    References:
      Balaji Lakshminarayanan, Alexander Pritzel, Charles Blundell, "Simple and Scalable Predictive
      Uncertainty Estimation using Deep Ensembles", NeurIPS 2017.
    """

    def __init__(
        self, make: Callable[[nnx.Rngs], EncoderForecaster], members: int, *, rngs: nnx.Rngs
    ):
        keys = jax.random.split(rngs.params(), members)
        state = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))(keys)
        graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        self.count, self.members = members, nnx.merge(graph, state)

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return self.members.inputs

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        return self.members.ranges

    @property
    def missing(self) -> tuple[str, ...]:
        return self.members.missing

    def __call__(
        self, carry: Carry, *, rngs: nnx.Rngs | None = None, **inputs: jax.Array
    ) -> tuple[Carry, Outputs]:
        """Like a member's call; ``raw`` is ``[B, M, F, P]``, and samples are ``[B, M, N, F]``."""
        graph, state = nnx.split(self.members)
        key = jax.random.key(0) if rngs is None else rngs.dropout()

        def call(state: Any, key: jax.Array) -> Outputs:
            return nnx.merge(graph, state)((), **inputs, rngs=nnx.Rngs(key))[1]

        outputs = jax.vmap(call, out_axes=1)(state, jax.random.split(key, self.count))
        return carry, outputs | {name: outputs[name][:, 0] for name in WindowScale._fields}


class StaticCell(NamedTuple):
    """A cell whose last inputs are static; it depends on their number.

    Attributes:
      make: a function of that number that returns the kind of cell.
    """

    make: Callable[[int], Any]

    def __call__(self, static: int) -> Any:
        return self.make(static)


def with_flags(values: jax.Array) -> jax.Array:
    """Columns with 0 for missing values, and next to them flags that mark the observed values.

    >>> with_flags(jnp.array([[2.0, jnp.nan]])).tolist()
    [[2.0, 0.0, 1.0, 0.0]]
    """
    observed = jnp.isfinite(values)
    return jnp.concatenate([jnp.where(observed, values, 0), observed.astype(values.dtype)], -1)


def filled(z: jax.Array, observed: jax.Array) -> jax.Array:
    """Rows ``[B, W]`` with gaps filled by the last observed value; 0 before the first one.

    >>> filled(jnp.array([[0.0, 5.0, 0.0]]), jnp.array([[False, True, False]])).tolist()
    [[0.0, 5.0, 5.0]]
    """
    last = jax.lax.cummax(jnp.where(observed, jnp.arange(z.shape[1]), 0), axis=1)
    return jnp.take_along_axis(z, last, 1)


def _segments(xs: jax.Array, segment: int) -> jax.Array:
    """``[B, N * S, D]`` as ``[B, N, S * D]``."""
    return xs.reshape(xs.shape[0], xs.shape[1] // segment, segment * xs.shape[2])


def with_static(xs: jax.Array, static: jax.Array) -> jax.Array:
    """Steps ``[..., N, D]``, with the same static features ``[..., K]`` appended to each.

    >>> with_static(jnp.ones((1, 2, 1)), jnp.zeros((1, 1))).tolist()
    [[[1.0, 0.0], [1.0, 0.0]]]
    """
    static = jnp.broadcast_to(static[..., None, :], (*xs.shape[:-1], static.shape[-1]))
    return jnp.concatenate([xs, static], -1)


def _identity(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> Any:
    return jnp.eye(*shape, dtype=dtype)


def _seasonal(window: int, horizon: int, season: int) -> jax.Array:
    """The linear map ``[W, F]`` that repeats the last season."""
    weights = np.zeros((window, horizon), np.float32)
    steps = np.arange(horizon)
    weights[window - season + steps % season, steps] = 1
    return jnp.asarray(weights)
