"""Forecasts as quantiles, and where they begin."""

from typing import NamedTuple

import numpy as np

from lstm_jax.models.heads import DECILES

LEVELS = (0.025, *DECILES, 0.975)
"""The levels of the quantiles that are reported."""
MEDIAN = LEVELS.index(0.5)


class Forecasts(NamedTuple):
    """Forecasts in the units of the data.

    Attributes:
      quantiles: of :data:`LEVELS`, float64 ``[N, F, Q]``.
      mean: float64 ``[N, F]``.
    """

    quantiles: np.ndarray
    mean: np.ndarray

    @property
    def median(self) -> np.ndarray:
        return self.quantiles[..., MEDIAN]


class Origins(NamedTuple):
    """Where forecasts begin, and what came of it.

    Attributes:
      series: which series, ``[N]``.
      rows: the first row of the future in it, ``[N]``.
      truth: float64 ``[N, F]``, NaN where missing.
    """

    series: np.ndarray
    rows: np.ndarray
    truth: np.ndarray


def chosen(found: Forecasts, origins: Origins, rows: np.ndarray) -> tuple[Forecasts, Origins]:
    """Some of the forecasts: a mask or places of origins."""
    return Forecasts(*(each[rows] for each in found)), Origins(*(each[rows] for each in origins))


def at_step(found: Forecasts, origins: Origins, step: int) -> tuple[Forecasts, Origins]:
    """The forecasts of one step of the horizon."""
    at = slice(step, step + 1)
    return (
        Forecasts(found.quantiles[:, at], found.mean[:, at]),
        origins._replace(truth=origins.truth[:, at]),
    )
