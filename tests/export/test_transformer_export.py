"""An exported Transformer, compared with the model."""

import numpy as np
import pytest
from flax import nnx

from lstm_jax.export.writing import export_onnx, export_stablehlo
from lstm_jax.models import Compiled, TransformerLanguageModel

TOKENS = np.random.default_rng(0).integers(0, 9, (2, 15)).astype(np.int32)
EXPORTS = {"stablehlo": export_stablehlo, "onnx": export_onnx}


@pytest.mark.parametrize("format", EXPORTS)
@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_transformer_equals_the_model(format, tied, tmp_path):
    """Sections shorter and longer than the context, followed by single steps."""
    if format == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    model = TransformerLanguageModel(
        9, 8, 2, num_heads=2, context=4, tied_embeddings=tied, dropout=0.1, rngs=nnx.Rngs(0)
    )
    exported, compiled = EXPORTS[format](model, tmp_path / "model"), Compiled(model)
    carry, own = exported.initial_carry(2), compiled.initial_carry(2)
    for part in np.split(TOKENS, [3, 12, 13, 14], axis=1):
        carry, outputs = exported(carry, tokens=part)
        own, expected = compiled(own, tokens=part)
        # Float32 in two blocks; other runtimes add in a different order.
        np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=0, atol=2e-5)
