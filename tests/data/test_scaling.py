"""Standardisation: values that float32 cannot represent are errors that give their position."""

import numpy as np
import pytest

from lstm_jax.data.scaling import check_numbers, scaling_of, standardised
from lstm_jax.errors import UserError

ORDINARY = np.random.default_rng(0).normal(size=(50, 2)) * [1e-9, 1e9] + [0, 1e12]


def check(values, scaling):
    check_numbers(values, scaling, "a.csv", "row {} column {}".format)


@pytest.mark.parametrize("value", [1e308, -1e308, 1e60, 1e39, 1e30, 1e25])
@pytest.mark.parametrize("known", [True, False], ids=["new data", "training data"])
def test_one_huge_value_is_named(value, known):
    """In training data it makes the other values of its column equal, or overflows."""
    values = ORDINARY.copy()
    values[7, 1] = value
    with pytest.raises(UserError, match=r"^a\.csv: row 7 column 1: expected a number that float32"):
        check(values, scaling_of(ORDINARY if known else values))


def test_ordinary_values_of_any_scale_are_accepted():
    scaling = scaling_of(ORDINARY)
    check(ORDINARY, scaling)
    check(ORDINARY[:1], scaling)
    check(np.arange(10.0)[:, None] % 2 * 1e-3, {"mean": [0.0], "deviation": [1.0]})
    rare = np.zeros((1000, 1))  # an event that occurs once, and a few outliers
    rare[:3, 0] = 1, 1e4, 1e6
    check(rare, scaling_of(rare))
    assert np.isfinite(standardised(rare, scaling_of(rare))).all()
