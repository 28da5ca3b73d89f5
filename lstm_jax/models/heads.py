"""Heads of forecasters: distributions of the next values, from a model's raw outputs.

A head turns P raw numbers for each value, the first of which are locations, into a distribution.
Everything is in the scaled units of a window; a distribution of counts also needs the window's
scale.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import stats
from jax.scipy.special import betainc, logsumexp
from jax.typing import ArrayLike

SMALLEST = 1e-3  # the smallest scale, in scaled units
BISECTIONS = 40
DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def pinball(target: jax.Array, quantiles: jax.Array, levels: jax.Array) -> jax.Array:
    """The quantile loss ``2 max(a (y - q), (a - 1) (y - q))``; at level 0.5 the absolute error.

    Args:
      target: y, ``[...]``.
      quantiles: q, ``[..., Q]``.
      levels: a, ``[Q]``.

    Returns:
      ``[..., Q]``.

    >>> pinball(jnp.array(1.0), jnp.array([0.0, 3.0]), jnp.array([0.75, 0.5])).tolist()
    [1.5, 2.0]
    """
    error = target[..., None] - quantiles
    return 2 * jnp.maximum(levels * error, (levels - 1) * error)


# ---- distributions ----


class Normal(NamedTuple):
    """Normal distributions with the given ``location`` and ``scale``, arrays of equal shape.

    >>> Normal(jnp.zeros(1), jnp.ones(1)).quantiles(jnp.array([0.5])).tolist()
    [[0.0]]
    """

    location: jax.Array
    scale: jax.Array

    def log_prob(self, y: jax.Array) -> jax.Array:
        return stats.norm.logpdf(y, self.location, self.scale)

    def quantiles(self, levels: jax.Array) -> jax.Array:
        """``[..., Q]``."""
        return self.location[..., None] + self.scale[..., None] * stats.norm.ppf(levels)

    def sample(self, key: jax.Array, samples: int) -> jax.Array:
        """``[samples, ...]``."""
        noise = jax.random.normal(key, (samples, *self.location.shape))
        return self.location + self.scale * noise


class StudentT(NamedTuple):
    """Student's t distributions: ``degrees`` of freedom, ``location`` and ``scale``.

    >>> t = StudentT(jnp.full(1, 3.0), jnp.zeros(1), jnp.ones(1))
    >>> f"{t.quantiles(jnp.array([0.9])).item():.3f}"
    '1.638'
    """

    degrees: jax.Array
    location: jax.Array
    scale: jax.Array

    def log_prob(self, y: jax.Array) -> jax.Array:
        return stats.t.logpdf(y, self.degrees, self.location, self.scale)

    def cdf(self, y: jax.Array) -> jax.Array:
        z = (y - self.location) / self.scale
        tail = betainc(self.degrees / 2, 0.5, self.degrees / (self.degrees + z**2)) / 2
        return jnp.where(z > 0, 1 - tail, tail)

    def quantiles(self, levels: jax.Array) -> jax.Array:
        """``[..., Q]``, by bisection within 1000 scales of the location."""
        wide = 1000 * self.scale
        return inverse(self.cdf, levels, self.location - wide, self.location + wide)

    def sample(self, key: jax.Array, samples: int) -> jax.Array:
        """``[samples, ...]``."""
        shape = (samples, *self.location.shape)
        return self.location + self.scale * jax.random.t(key, self.degrees, shape)


class NegativeBinomial(NamedTuple):
    """Counts, divided by ``unit``, with a ``mean`` and a variance of ``mean + dispersion mean²``.

    Attributes:
      mean: the mean of the count.
      dispersion: above 0.
      unit: the divisor of the count.

    >>> counts = NegativeBinomial(jnp.full(1, 2.0), jnp.ones(1), jnp.ones(1))
    >>> counts.quantiles(jnp.array([0.5, 0.9])).tolist()
    [[1.0, 5.0]]
    """

    mean: jax.Array
    dispersion: jax.Array
    unit: jax.Array

    def _shape(self) -> tuple[jax.Array, jax.Array]:
        """The number of successes and their probability, as in :mod:`jax.scipy.stats.nbinom`."""
        n = 1 / self.dispersion
        return n, n / (n + self.mean)

    def log_prob(self, y: jax.Array) -> jax.Array:
        return stats.nbinom.logpmf(jnp.round(y * self.unit), *self._shape())

    def quantiles(self, levels: jax.Array) -> jax.Array:
        """``[..., Q]``: the smallest count whose cumulative probability reaches the level."""
        n, p = self._shape()

        def cdf(count: jax.Array) -> jax.Array:
            return betainc(n, jnp.floor(count) + 1, p)

        deviation = jnp.sqrt(self.mean + self.dispersion * self.mean**2)
        last = self.mean + 100 * (1 + deviation)
        count = jnp.round(inverse(cdf, levels, jnp.full_like(last, -1.0), last))
        return jnp.maximum(count, 0) / self.unit[..., None]

    def sample(self, key: jax.Array, samples: int) -> jax.Array:
        """``[samples, ...]``: Poisson counts whose rate has a gamma distribution."""
        n, p = self._shape()
        one, other = jax.random.split(key)
        rate = jax.random.gamma(one, n, (samples, *self.mean.shape)) * (1 - p) / p
        return jax.random.poisson(other, rate).astype(rate.dtype) / self.unit


class AsymmetricLaplaceMixture(NamedTuple):
    """Mixtures of K asymmetric Laplace distributions, arrays ``[..., K]``.

    A component with location m, scale s and asymmetry t has, for ``y >= m``, the density
    ``t (1 - t) / s exp(-t (y - m) / s)``, and ``t (1 - t) / s exp((1 - t) (y - m) / s)`` below;
    its location is its quantile of level t.

    Attributes:
      log_weights: the logarithms of the weights, which add up to 1.
      locations, scales, asymmetries: the parameters of the components.

    References:
      Daniel Klotz et al., "Uncertainty estimation with deep learning for rainfall-runoff
      modeling", Hydrology and Earth System Sciences 26, 2022, equations 5 and 6 (CMAL).

    >>> one = jnp.ones((1, 1))
    >>> AsymmetricLaplaceMixture(0 * one, 2 * one, one, one / 4).cdf(jnp.full(1, 2.0)).tolist()
    [0.25]
    """

    log_weights: jax.Array
    locations: jax.Array
    scales: jax.Array
    asymmetries: jax.Array

    def log_prob(self, y: jax.Array) -> jax.Array:
        t, z = self.asymmetries, (y[..., None] - self.locations) / self.scales
        density = jnp.log(t * (1 - t) / self.scales) - jnp.where(z >= 0, t * z, (t - 1) * z)
        return logsumexp(self.log_weights + density, axis=-1)

    def cdf(self, y: jax.Array) -> jax.Array:
        t, z = self.asymmetries, (y[..., None] - self.locations) / self.scales
        below = t * jnp.exp((1 - t) * jnp.minimum(z, 0))
        above = 1 - (1 - t) * jnp.exp(-t * jnp.maximum(z, 0))
        return (jnp.exp(self.log_weights) * jnp.where(z >= 0, above, below)).sum(-1)

    def quantiles(self, levels: jax.Array) -> jax.Array:
        """``[..., Q]``, by bisection between the outermost tails of 1e-6."""
        reach = 14 * self.scales
        low = (self.locations - reach / (1 - self.asymmetries)).min(-1)
        high = (self.locations + reach / self.asymmetries).max(-1)
        return inverse(self.cdf, levels, low, high)

    def sample(self, key: jax.Array, samples: int) -> jax.Array:
        """``[samples, ...]``: a component is sampled, and then its quantile at a uniform level."""
        one, other = jax.random.split(key)
        shape = (samples, *self.locations.shape[:-1])
        chosen = jax.random.categorical(one, self.log_weights, shape=shape)[..., None]
        m, s, t = (
            jnp.take_along_axis(jnp.broadcast_to(a, (*shape, a.shape[-1])), chosen, -1)[..., 0]
            for a in (self.locations, self.scales, self.asymmetries)
        )
        u = jax.random.uniform(other, shape, minval=1e-7)
        below, above = jnp.log(u / t) / (1 - t), -jnp.log((1 - u) / (1 - t)) / t
        return m + s * jnp.where(u < t, below, above)


class Quantiles(NamedTuple):
    """A distribution given by some quantiles, with linear interpolation between them.

    Attributes:
      values: the quantiles, increasing along the last axis, ``[..., Q]``.
      levels: the levels of the quantiles, increasing, ``[Q]``.

    >>> Quantiles(jnp.array([0.0, 2.0]), jnp.array([0.1, 0.9])).quantiles(jnp.array([0.5])).round(3)
    Array([1.], dtype=float32)
    """

    values: jax.Array
    levels: jax.Array

    def quantiles(self, levels: jax.Array) -> jax.Array:
        """``[..., Q]``; levels beyond the outermost known quantile give that quantile."""
        at = jnp.interp(levels, self.levels, jnp.arange(len(self.levels)))
        low = jnp.floor(at).astype(int)
        high = jnp.minimum(low + 1, len(self.levels) - 1)
        return self.values[..., low] + (at - low) * (self.values[..., high] - self.values[..., low])

    def sample(self, key: jax.Array, samples: int) -> jax.Array:
        """``[samples, ...]``."""
        shape, last = self.values.shape[:-1], len(self.levels) - 1
        at = jnp.interp(
            jax.random.uniform(key, (samples, *shape)), self.levels, jnp.arange(last + 1)
        )
        low = jnp.floor(at).astype(int)
        values = jnp.broadcast_to(self.values, (samples, *self.values.shape))
        one, other = (
            jnp.take_along_axis(values, jnp.minimum(n, last)[..., None], -1)[..., 0]
            for n in (low, low + 1)
        )
        return one + (at - low) * (other - one)


def inverse(
    cdf: Callable[[jax.Array], jax.Array], levels: ArrayLike, low: jax.Array, high: jax.Array
) -> jax.Array:
    """The values at which a distribution function reaches each level, ``[..., Q]``, by bisection.

    Args:
      cdf: an increasing function of arrays ``[...]``.
      levels: ``[Q]``.
      low, high: bounds of all quantiles, ``[...]``.

    >>> inverse(lambda y: y / 4, jnp.array([0.25]), jnp.zeros(()), jnp.full((), 4.0)).round(4)
    Array([1.], dtype=float32)
    """

    def at(level: jax.Array) -> jax.Array:
        def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = (low + high) / 2
            short = cdf(middle) < level
            return jnp.where(short, middle, low), jnp.where(short, high, middle)

        return jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))[1]

    return jnp.moveaxis(jax.vmap(at)(jnp.asarray(levels, low.dtype)), 0, -1)


# ---- heads ----


@dataclasses.dataclass(frozen=True)
class Head:
    """A map from raw outputs to a distribution, with a loss for training.

    Attributes:
      size: P, the number of raw numbers for each value.
      locations: the number of leading raw numbers that are locations.
    """

    size: int = 1
    locations: int = 1

    def distribution(self, raw: jax.Array, scale: jax.Array) -> Any:
        """The distribution of values in scaled units.

        Args:
          raw: ``[..., P]``.
          scale: the scale of each value's window, ``[...]``.
        """
        raise NotImplementedError

    def loss(self, raw: jax.Array, target: jax.Array, scale: jax.Array) -> jax.Array:
        """The loss of each value; by default the negative log-likelihood.

        Args:
          raw: ``[..., P]``.
          target: ``[...]``.
          scale: ``[...]``.
        """
        return -self.distribution(raw, scale).log_prob(target)


@dataclasses.dataclass(frozen=True)
class PointHead(Head):
    """One number, the median; the loss is the absolute error.

    >>> PointHead().loss(jnp.array([[3.0]]), jnp.array([1.0]), jnp.ones(1)).tolist()
    [2.0]
    """

    def distribution(self, raw: jax.Array, scale: jax.Array) -> Quantiles:
        return Quantiles(raw, jnp.array([0.5]))

    def loss(self, raw: jax.Array, target: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.abs(raw[..., 0] - target)


@dataclasses.dataclass(frozen=True)
class QuantileHead(Head):
    """Quantiles that cannot cross; the loss is the mean pinball loss over their levels.

    The median is a raw number; the distances of the others from it are sums of softplus of the
    remaining raw numbers.

    Attributes:
      levels: increasing levels, including 0.5.

    References:
      Roger Koenker, Gilbert Bassett, "Regression Quantiles", Econometrica 46, 1978.

    >>> head = QuantileHead(levels=(0.1, 0.5, 0.9))
    >>> head.distribution(jnp.zeros((1, 3)), jnp.ones(1)).values.round(2)
    Array([[-0.69,  0.  ,  0.69]], dtype=float32)
    """

    levels: tuple[float, ...] = DECILES

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.levels))
        if list(self.levels) != sorted(set(self.levels)) or 0.5 not in self.levels:
            raise ValueError(f"levels must increase and include 0.5, got {self.levels}")

    def distribution(self, raw: jax.Array, scale: jax.Array) -> Quantiles:
        below, middle = self.levels.index(0.5), raw[..., :1]
        down, up = jnp.split(jax.nn.softplus(raw[..., 1:]), [below], -1)
        lower = middle - jnp.cumsum(down, -1)[..., ::-1]
        values = jnp.concatenate([lower, middle, middle + jnp.cumsum(up, -1)], -1)
        return Quantiles(values, jnp.array(self.levels))

    def loss(self, raw: jax.Array, target: jax.Array, scale: jax.Array) -> jax.Array:
        found = self.distribution(raw, scale)
        return pinball(target, found.values, found.levels).mean(-1)


@dataclasses.dataclass(frozen=True)
class NormalHead(Head):
    """Location and scale of a normal distribution.

    >>> NormalHead().distribution(jnp.zeros((1, 2)), jnp.ones(1)).scale.round(1)
    Array([0.7], dtype=float32)
    """

    size: int = 2

    def distribution(self, raw: jax.Array, scale: jax.Array) -> Normal:
        return Normal(raw[..., 0], _positive(raw[..., 1]))


@dataclasses.dataclass(frozen=True)
class StudentTHead(Head):
    """Location, scale and degrees of freedom, above 2, of Student's t distribution.

    >>> StudentTHead().distribution(jnp.zeros((1, 3)), jnp.ones(1)).degrees.round(1)
    Array([2.7], dtype=float32)
    """

    size: int = 3

    def distribution(self, raw: jax.Array, scale: jax.Array) -> StudentT:
        return StudentT(2 + _positive(raw[..., 2]), raw[..., 0], _positive(raw[..., 1]))


@dataclasses.dataclass(frozen=True)
class NegativeBinomialHead(Head):
    """Mean and dispersion of counts, for windows divided by their mean.

    References:
      David Salinas, Valentin Flunkert, Jan Gasthaus, "DeepAR: Probabilistic Forecasting with
      Autoregressive Recurrent Networks", International Journal of Forecasting 36, 2020,
      section 3.1 and 3.3 (without the root of the scale).

    >>> NegativeBinomialHead().distribution(jnp.zeros((1, 2)), jnp.full(1, 10.0)).mean.round(2)
    Array([6.94], dtype=float32)
    """

    size: int = 2

    def distribution(self, raw: jax.Array, scale: jax.Array) -> NegativeBinomial:
        return NegativeBinomial(_positive(raw[..., 0]) * scale, _positive(raw[..., 1]), scale)


@dataclasses.dataclass(frozen=True)
class MixtureHead(Head):
    """A mixture of asymmetric Laplace distributions (CMAL).

    Attributes:
      components: K.

    >>> MixtureHead(components=2).size
    8
    """

    components: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", 4 * self.components)
        object.__setattr__(self, "locations", self.components)

    def distribution(self, raw: jax.Array, scale: jax.Array) -> AsymmetricLaplaceMixture:
        locations, scales, asymmetries, weights = jnp.split(raw, 4, -1)
        return AsymmetricLaplaceMixture(
            jax.nn.log_softmax(weights), locations, _positive(scales),
            0.02 + 0.96 * jax.nn.sigmoid(asymmetries),
        )  # fmt: skip


HEADS = {
    "quantile": QuantileHead,
    "point": PointHead,
    "normal": NormalHead,
    "student_t": StudentTHead,
    "negative_binomial": NegativeBinomialHead,
    "mixture": MixtureHead,
}
"""Heads by their name in a config."""


def _positive(raw: jax.Array) -> jax.Array:
    return jax.nn.softplus(raw) + SMALLEST
