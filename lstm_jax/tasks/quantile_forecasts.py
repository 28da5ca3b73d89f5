"""Forecasts as quantiles, and their origins."""

from typing import NamedTuple

import numpy as np

from lstm_jax.models.heads import DECILES

LEVELS = (0.025, *DECILES, 0.975)
"""The levels of the quantiles that are reported."""
MEDIAN = LEVELS.index(0.5)


class Forecasts(NamedTuple):
    """Forecasts in the units of the data.

    Attributes:
      quantiles: the quantiles at :data:`LEVELS`, float64 ``[N, F, Q]``.
      mean: float64 ``[N, F]``.
    """

    quantiles: np.ndarray
    mean: np.ndarray

    @property
    def median(self) -> np.ndarray:
        return self.quantiles[..., MEDIAN]


class Origins(NamedTuple):
    """The origins of forecasts, and the true values.

    Attributes:
      series: the index of the series, ``[N]``.
      rows: the first row of the future in that series, ``[N]``.
      truth: float64 ``[N, F]``, NaN where missing.
    """

    series: np.ndarray
    rows: np.ndarray
    truth: np.ndarray


def chosen(found: Forecasts, origins: Origins, rows: np.ndarray) -> tuple[Forecasts, Origins]:
    """A subset of the forecasts, by a mask or by indices."""
    return Forecasts(*(each[rows] for each in found)), Origins(*(each[rows] for each in origins))


def at_step(found: Forecasts, origins: Origins, step: int) -> tuple[Forecasts, Origins]:
    """The forecasts of one step of the horizon."""
    at = slice(step, step + 1)
    return (
        Forecasts(found.quantiles[:, at], found.mean[:, at]),
        origins._replace(truth=origins.truth[:, at]),
    )
