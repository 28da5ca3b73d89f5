"""Parameters in and out of other libraries, without those being installed.

``from_X(arrays) -> (layer, params)`` makes a functional layer of ours of a library's arrays,
``to_X(layer, params) -> arrays`` the library's arrays, under its own names and in its own shapes.
"""

from lstm_jax.interop.torch import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
