"""Standardisation of features, with moments that are plain values for a JSON file."""

import hashlib

import numpy as np

Scaling = dict[str, list[float]]  # "mean" and "deviation" of the last axis


def scaling_of(values: np.ndarray) -> Scaling:
    """Mean and deviation of each column of ``values``, ``[rows, D]``.

    The deviation of a constant column is exactly 0.

    >>> scaling_of(np.array([[1.0, 0.1], [3.0, 0.1]]))
    {'mean': [2.0, 0.1], 'deviation': [1.0, 0.0]}
    """
    values = values.astype(np.float64)
    constant = np.ptp(values, 0) == 0
    deviation = np.where(constant, 0.0, values.std(0))
    return {"mean": values.mean(0).tolist(), "deviation": deviation.tolist()}


def standardised(values: np.ndarray, scaling: Scaling) -> np.ndarray:
    """``(values - mean) / deviation``, as float32.

    >>> standardised(np.array([[1.0], [3.0]]), {"mean": [2.0], "deviation": [0.5]}).tolist()
    [[-2.0], [2.0]]
    """
    mean, deviation = np.array(scaling["mean"]), np.array(scaling["deviation"])
    return ((values - mean) / deviation).astype(np.float32)


def unscaled(values: np.ndarray, scaling: Scaling) -> np.ndarray:
    """What :func:`standardised` standardised, as float64.

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
