"""Standardisation of features; its moments are plain values for a JSON file."""

import hashlib
from collections.abc import Callable

import numpy as np

from lstm_jax.errors import UserError

Scaling = dict[str, list[float]]  # "mean" and "deviation" of the last axis
LARGEST = 1e15  # deviations from the mean


def scaling_of(values: np.ndarray) -> Scaling:
    """Mean and deviation of each column of ``values``, ``[rows, D]``.

    The deviation of a constant column is exactly 0.

    >>> scaling_of(np.array([[1.0, 0.1], [3.0, 0.1]]))
    {'mean': [2.0, 0.1], 'deviation': [1.0, 0.0]}
    """
    values = values.astype(np.float64)
    constant = (values == values[:1]).all(0)
    with np.errstate(over="ignore", invalid="ignore"):  # check_numbers rejects such values
        deviation = np.where(constant, 0.0, values.std(0))
        return {"mean": values.mean(0).tolist(), "deviation": deviation.tolist()}


def standardised(values: np.ndarray, scaling: Scaling) -> np.ndarray:
    """``(values - mean) / deviation``, as float32.

    >>> standardised(np.array([[1.0], [3.0]]), {"mean": [2.0], "deviation": [0.5]}).tolist()
    [[-2.0], [2.0]]
    """
    mean, deviation = np.array(scaling["mean"]), np.array(scaling["deviation"])
    return ((values - mean) / deviation).astype(np.float32)


def check_numbers(
    values: np.ndarray, scaling: Scaling, name: str, place: Callable[[int, int], str]
) -> None:
    """Raises an error if a value cannot be standardised in float32.

    Such a value is outside float32's range, more than 1e15 deviations from the mean (the square of
    a larger one can overflow in a sum), or so far from the others in its column that rounding makes
    these equal.

    Args:
      values: ``[rows, D]``.
      scaling: their scaling; no deviation is zero.
      name: the file, for the message.
      place: describes the position of a row and column in the file.

    Raises:
      UserError: the message gives the position of the value.

    >>> scaling = {"mean": [0.0], "deviation": [1.0]}
    >>> check_numbers(np.array([[1e60]]), scaling, "a.csv", "row {}, column {}".format)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: a.csv: row 0, column 0: expected a number that float32 can hold...
    """
    mean, deviation = np.array(scaling["mean"]), np.array(scaling["deviation"])
    values = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.abs((values - mean) / deviation)
        wrong = ~((np.abs(values) <= np.finfo(np.float32).max) & (scaled <= LARGEST))
    if not wrong.any():
        narrow = standardised(values, scaling)
        for n in range(values.shape[1]):
            if 2 * len(np.unique(narrow[:, n])) < len(np.unique(values[:, n])):
                wrong[scaled[:, n].argmax(), n] = True
    for row, column in np.argwhere(wrong)[:1].tolist():
        raise UserError(
            f"{name}: {place(row, column)}: expected a number that float32 can hold "
            f"once standardised (mean {mean[column]:.6g}, deviation {deviation[column]:.6g}), got "
            f"{values[row, column]:.6g}"
        )


def unscaled(values: np.ndarray, scaling: Scaling) -> np.ndarray:
    """The inverse of :func:`standardised`, in float64.

    >>> unscaled(np.array([[-2.0]]), {"mean": [2.0], "deviation": [0.5]}).tolist()
    [[1.0]]
    """
    return values.astype(np.float64) * np.array(scaling["deviation"]) + np.array(scaling["mean"])


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the types, shapes and bytes of some arrays.

    >>> digest(np.zeros(2)) == digest(np.zeros(2)) != digest(np.zeros((2, 1)))
    True
    """
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(f"{array.dtype} {array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()
