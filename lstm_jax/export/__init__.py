"""Export of models that run without this library: StableHLO, ONNX, and the script run.py."""

from lstm_jax.export.runner import Model as ExportedModel
from lstm_jax.export.writing import DTYPES, PLATFORMS, export_onnx, export_stablehlo

__all__ = ["DTYPES", "PLATFORMS", "ExportedModel", "export_onnx", "export_stablehlo"]
