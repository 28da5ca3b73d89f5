"""Parameters in and out of other libraries, without those being installed.

``from_X(arrays) -> (layer, params)`` makes a functional layer of ours of a library's arrays,
``to_X(layer, params) -> arrays`` the library's arrays, under its own names and in its own shapes.
``fill`` puts what was read into a Flax module of ours, and ``read_arrays`` and ``write_arrays`` are
for files.  Graphs of ONNX are in ``lstm_jax.interop.onnx``.
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
