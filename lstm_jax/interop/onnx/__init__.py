"""Converts ONNX graphs to JAX functions and back, and reads and writes recurrent weights."""

try:
    import onnx as _onnx  # noqa: F401
except ImportError as error:
    raise ImportError(
        "lstm_jax.interop.onnx needs the package onnx: pip install 'lstm_jax[interop]'"
    ) from error

from lstm_jax.interop.onnx.layers import layers_from_onnx
from lstm_jax.interop.onnx.reading import GraphFunction, from_onnx
from lstm_jax.interop.onnx.recurrent import Operator, layer_from_onnx, layer_to_onnx
from lstm_jax.interop.onnx.writing import function_to_onnx, to_onnx

__all__ = [
    "GraphFunction",
    "Operator",
    "from_onnx",
    "function_to_onnx",
    "layer_from_onnx",
    "layer_to_onnx",
    "layers_from_onnx",
    "to_onnx",
]
