"""Parameters in and out of other libraries, without those being installed.

``from_X(arrays) -> (layer, params)`` makes a functional layer of ours of a library's arrays,
``to_X(layer, params) -> arrays`` the library's arrays, under its own names and in its own shapes.
"""

from lstm_jax.interop.cudnn import from_cudnn, to_cudnn
from lstm_jax.interop.equinox import from_equinox, to_equinox
from lstm_jax.interop.flax import from_flax, to_flax
from lstm_jax.interop.haiku import from_haiku, to_haiku
from lstm_jax.interop.keras import from_keras, to_keras
from lstm_jax.interop.torch import from_torch, to_torch

__all__ = [
    "from_cudnn",
    "from_equinox",
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_torch",
    "to_cudnn",
    "to_equinox",
    "to_flax",
    "to_haiku",
    "to_keras",
    "to_torch",
]
