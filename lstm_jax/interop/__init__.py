"""Converts parameters from and to other libraries, which need not be installed.

``from_X(arrays) -> (layer, params)`` converts a library's arrays to a functional lstm_jax layer.
``to_X(layer, params) -> arrays`` returns the library's arrays, under its names and in its shapes.
``fill`` copies converted parameters into an lstm_jax Flax module.  ``read_arrays`` and
``write_arrays`` read and write files.  ``lstm_jax.interop.onnx`` converts ONNX graphs.
"""

from lstm_jax.interop.cudnn import from_cudnn, to_cudnn
from lstm_jax.interop.equinox import from_equinox, to_equinox
from lstm_jax.interop.files import read_arrays, write_arrays
from lstm_jax.interop.flax import from_flax, to_flax
from lstm_jax.interop.haiku import from_haiku, to_haiku
from lstm_jax.interop.keras import from_keras, hard_sigmoid_of_keras_2, keras_mask, to_keras
from lstm_jax.interop.keras_files import keras_mask_value, keras_options
from lstm_jax.interop.modules import fill
from lstm_jax.interop.native import from_lstm_jax, to_lstm_jax
from lstm_jax.interop.torch import from_torch, to_torch

__all__ = [
    "fill",
    "from_cudnn",
    "from_equinox",
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_lstm_jax",
    "from_torch",
    "hard_sigmoid_of_keras_2",
    "keras_mask",
    "keras_mask_value",
    "keras_options",
    "read_arrays",
    "to_cudnn",
    "to_equinox",
    "to_flax",
    "to_haiku",
    "to_keras",
    "to_lstm_jax",
    "to_torch",
    "write_arrays",
]
