"""Exports models that run without this library: as StableHLO or ONNX, with the script run.py."""

from lstm_jax.export.encoder_decoder import export_encoder_decoder
from lstm_jax.export.runner import Model as ExportedModel
from lstm_jax.export.translator import Translator
from lstm_jax.export.writing import DTYPES, PLATFORMS, export_onnx, export_stablehlo

__all__ = [
    "DTYPES",
    "PLATFORMS",
    "ExportedModel",
    "Translator",
    "export_encoder_decoder",
    "export_onnx",
    "export_stablehlo",
]
