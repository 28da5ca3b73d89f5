"""A forecaster that reads its own samples: each row of the future depends on those before it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lstm_jax.models.base import Carry, Outputs
from lstm_jax.models.encoder_forecaster import (
    EncoderForecaster,
    Sizes,
    filled,
    scaled,
    with_flags,
    with_static,
)
from lstm_jax.models.heads import Head


class AutoregressiveForecaster(EncoderForecaster):
    """Forecasts row by row, each row given the previous ones.

    The past is read as by :class:`lstm_jax.models.EncoderForecaster`.  The second LSTM steps
    through the future row by row.  It reads the previous L scaled values, flags that mark the
    observed ones, and the covariates k_f that are known over the future::

        v_f        = (z_{f-L}, ..., z_{f-1})
        u_f        = LSTM'((relu(W (v_f, flags of v_f, k_f) + b), s); ...)
        r_f        = W_u u_f + b_u
        r_{f,0}   += sum_l a_l z_{f-l}
        z_f        ~ the head's distribution of r_f

    L is a season, and the linear autoregression ``a`` is initialised as the seasonal naive
    forecast.  In training, ``z_f`` is the true value (teacher forcing), and gaps in v are filled
    with the last observed value.  A forecast is a sample of trajectories: each value is sampled
    from the head's distribution and read by the next row, so the rows of a trajectory depend on
    each other like those of the series.

    Args:
      sizes, head, hidden_features, num_layers: as for :class:`lstm_jax.models.EncoderForecaster`.
      season: L, at most W.
      samples: N, the number of trajectories in a forecast.
      options: ``segment``, ``scaling``, ``embedding_features``, ``magnitude``, ``cell``,
        ``dropout``, ``dtype`` and ``rngs``, as there.

    Example:
      >>> from lstm_jax.models.heads import StudentTHead
      >>> model = AutoregressiveForecaster(Sizes(window=12, horizon=3), StudentTHead(), 8, season=4,
      ...                                  samples=50, rngs=nnx.Rngs(0))
      >>> inputs = dict(target=jnp.ones((5, 12)), past=jnp.ones((5, 12, 0)),
      ...               known=jnp.ones((5, 15, 0)), numbers=jnp.ones((5, 0)),
      ...               categories=jnp.ones((5, 0), int))
      >>> model((), **inputs)[1]["samples"].shape  # [B, N, F]
      (5, 50, 3)
      >>> model((), **inputs, future=jnp.ones((5, 3)))[1]["raw"].shape  # [B, F, P]
      (5, 3, 3)

    References:
      David Salinas, Valentin Flunkert, Jan Gasthaus, "DeepAR: Probabilistic Forecasting with
      Autoregressive Recurrent Networks", International Journal of Forecasting 36, 2020; Guokun Lai
      et al., "Modeling Long- and Short-Term Temporal Patterns with Deep Neural Networks", SIGIR
      2018 (a linear autoregression in parallel with the network).
    """

    def __init__(
        self,
        sizes: Sizes,
        head: Head,
        hidden_features: int,
        num_layers: int = 1,
        *,
        season: int = 1,
        samples: int = 100,
        **options: Any,
    ):
        self.season, self.samples = season, samples
        super().__init__(sizes, head, hidden_features, num_layers, season=season, **options)

    def _decoder_sizes(self, season: int) -> tuple[int, int, jax.Array]:
        return 2 * season + 2 * self.sizes.known, 1, jnp.zeros(season).at[0].set(1)

    def __call__(  # type: ignore[override]
        self,
        carry: Carry,
        *,
        target: jax.Array,
        past: jax.Array,
        known: jax.Array,
        numbers: jax.Array,
        categories: jax.Array,
        future: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Carry, Outputs]:
        """Sampled trajectories; or, if the future is given, raw numbers with teacher forcing.

        NaN means a missing value in every input of type float32.

        Args:
          carry: ``()``; windows are independent.
          target, past, known, numbers, categories: as for
            :class:`lstm_jax.models.EncoderForecaster`.
          future: the true values in the units of the series, ``[B, F]``.  The raw numbers of a row
            depend only on the previous rows.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.  The
            stream ``samples`` is used for trajectories; if None, they are always the same.

        Returns:
          ``(carry, outputs)``: ``level`` and ``scale`` ``[B]``; and ``samples`` in scaled units,
          ``[B, N, F]``, or ``raw`` ``[B, F, P]`` if ``future`` is given.
        """
        W, L = self.sizes.window, self.season
        known = with_flags(known)
        read = self._past(target, past, known[:, :W], numbers, categories, rngs)
        known, outputs = known[:, W:], read.window._asdict()
        if future is None:
            values = filled(read.z, read.observed)[:, -L:]
            key = jax.random.key(0) if rngs is None else rngs.samples()
            return carry, {"samples": self._sampled(read, values, known, key), **outputs}
        z = jnp.concatenate([read.z, scaled(future, read.window, self.scaling)], 1)
        observed = jnp.concatenate([read.observed, jnp.isfinite(future)], 1)
        before = jnp.arange(self.sizes.horizon)[:, None] + jnp.arange(W - L, W)  # [F, L]
        values = filled(z, observed)[:, before]
        ks = self._step_inputs(values, observed[:, before], known)
        us = self.decoder(with_static(ks, read.static), initial_carry=read.state, rngs=rngs)
        us = self.dropout(us.astype(jnp.float32), rngs=rngs)
        return carry, {"raw": self._moved(self.readout(us), values @ self.linear[...]), **outputs}

    def _step_inputs(self, values: jax.Array, observed: jax.Array, known: jax.Array) -> jax.Array:
        """Features ``[..., H]`` of previous values, their flags, and the row's covariates."""
        flags = observed.astype(values.dtype)
        return jax.nn.relu(self.given(jnp.concatenate([values, flags, known], -1)))

    def _sampled(self, read: Any, values: jax.Array, known: jax.Array, key: jax.Array) -> jax.Array:
        """Trajectories ``[B, N, F]`` after the values ``[B, L]``, without dropout."""
        B, N = len(values), self.samples

        def each(array: jax.Array) -> jax.Array:  # for each trajectory, [B, N, ...]
            return jnp.broadcast_to(array[:, None], (B, N, *array.shape[1:]))

        static, scale = each(read.static), each(read.window.scale)

        def step(carry: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            state, values, observed = carry
            given, key = inputs
            ks = self._step_inputs(values, observed, each(given))
            state, us = self.decoder(
                jnp.concatenate([ks, static], -1)[..., None, :], initial_carry=state,
                return_carry=True, deterministic=True,
            )  # fmt: skip
            raw = self.readout(us[..., 0, :].astype(jnp.float32))
            raw = self._moved(raw, values @ self.linear[...])
            z = self.head.distribution(raw, scale).sample(key, 1)[0]
            values = jnp.concatenate([values[..., 1:], z[..., None]], -1)
            observed = jnp.concatenate([observed[..., 1:], jnp.ones_like(observed[..., :1])], -1)
            return (state, values, observed), z

        observed = read.observed[:, -self.season :]
        start = jax.tree.map(each, (read.state, values, observed))
        keys = jax.random.split(key, self.sizes.horizon)
        _, zs = jax.lax.scan(step, start, (known.swapaxes(0, 1), keys))
        return jnp.moveaxis(zs, 0, -1)
