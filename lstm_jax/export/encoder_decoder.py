"""Exports encoder-decoders to a folder that translates without this library.

The folder contains the weights and three StableHLO programs: ``encode`` (from a batch of sources to
the decoder's initial carry), ``step`` (one target token) and ``sequence`` (any number of target
tokens).  ``manifest.json`` contains the metadata, the tokenizer and the digests of the files.
``run.py`` (:mod:`lstm_jax.export.translator`) translates; it checks files and inputs with
``runner.py`` (:mod:`lstm_jax.export.runner`).
"""

import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
from flax import nnx

from lstm_jax.export import runner, translator
from lstm_jax.export.writing import (
    PLATFORMS,
    Weights,
    checked_dtype,
    described,
    flat,
    replaced,
    restored,
    stored,
    write_manifest_of,
)
from lstm_jax.models import Compiled, EncoderDecoder


def export_encoder_decoder(
    model: EncoderDecoder | Compiled,
    folder: pathlib.Path,
    *,
    dtype: str = "float32",
    metadata: Mapping[str, Any],
    platforms: tuple[str, ...] = PLATFORMS,
) -> translator.Translator:
    """Exports an encoder-decoder to StableHLO, through ``jax.export``.

    Args:
      model: the model; it is exported in evaluation mode.
      folder: the folder to write; created if missing.
      dtype: the storage type of matrices: ``"float32"``, ``"bfloat16"`` or ``"int8"``.
      metadata: entries of ``manifest.json``.  Translation of text requires ``tokenizer``, the JSON
        of the tokenizers library; ``max_tokens``, the length of the longest sentence; and
        ``search``, a dict with ``beam``, ``length_penalty`` and ``coverage_penalty``.
      platforms: the platforms that each program supports.

    Returns:
      The model, read back.

    An existing export is replaced once the new one is complete.

    Raises:
      ValueError: ``dtype`` is unknown.
      UserError: the folder cannot be written.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from lstm_jax.models import Seq2Seq
      >>> model = Seq2Seq(10, 4, 8, rngs=nnx.Rngs(0))
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> exported = export_encoder_decoder(model, folder, metadata={})
      >>> carry = exported.encode(source=np.ones((2, 7), int), lengths=np.array([7, 5]))
      >>> carry, outputs = exported(carry, tokens=np.ones((2, 1), int))
      >>> outputs["logits"].shape, outputs["attention"].shape
      ((2, 1, 10), (2, 1, 7))
    """
    compiled = model if isinstance(model, Compiled) else Compiled(model)
    graph, streams, arrays = nnx.split(compiled.module, nnx.RngState, ...)
    arrays = nnx.to_pure_dict(arrays)
    weights, scope = stored(arrays, checked_dtype(dtype)), jax.export.SymbolicScope()

    def module(weights: Weights) -> Any:
        return nnx.merge(graph, streams, restored(weights, arrays))

    def specs(inputs: Mapping[str, tuple[str, str]]) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), kind)
            for name, (shape, kind) in inputs.items()
        }

    def encoded(weights: Weights, inputs: Weights) -> Any:
        return module(weights).encode(**inputs)

    sources = specs(compiled.encoder_inputs)
    first = jax.eval_shape(encoded, weights, sources)

    def encode(weights: Weights, inputs: Weights) -> Weights:
        return flat(encoded(weights, inputs))

    def decode(weights: Weights, carry: Weights, inputs: Weights) -> Any:
        before = jax.tree.structure(first).unflatten([carry[name] for name in flat(first)])
        after, outputs = module(weights)(before, **inputs)
        return flat(after), outputs

    targets = compiled.inputs
    one = {name: (shape.replace("t", "1"), kind) for name, (shape, kind) in targets.items()}
    programs = {
        "encode": (encode, (weights, sources)),
        "step": (decode, (weights, flat(first), specs(one))),
        "sequence": (decode, (weights, flat(first), specs(targets))),
    }
    inputs = {**compiled.encoder_inputs, **targets}
    manifest = {
        "format": "stablehlo", "dtype": dtype, "platforms": platforms, **metadata,
        "programs": list(programs), "inputs": described(inputs, compiled.ranges),
        "carry": {name: ", ".join(map(str, leaf.shape)) for name, leaf in flat(first).items()},
    }  # fmt: skip
    with replaced(folder) as new:
        for name, (function, arguments) in programs.items():
            exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments)
            path = new / runner.program_file("stablehlo", name)
            path.write_bytes(exported.serialize())
        runner.write_npz(new / "weights.npz", weights)
        (new / "run.py").write_text(_stand_alone(inspect.getsource(translator)), "utf-8")
        (new / "runner.py").write_text(inspect.getsource(runner), "utf-8")
        write_manifest_of(new, manifest, ("jax", "jaxlib"))
    return translator.Translator(folder)


def _stand_alone(source: str) -> str:
    """The source of a script that imports ``runner.py`` from its own folder.

    >>> _stand_alone("from lstm_jax.export import runner\\n")
    'import runner\\n'
    """
    return source.replace("from lstm_jax.export import runner", "import runner")
