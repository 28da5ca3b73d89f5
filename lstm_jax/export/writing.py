"""Exports models to a folder that runs without this library.

The folder contains the model's programs: ``sequence`` for any number of steps and, for a model with
a state, ``step`` for a single one.  They are in StableHLO (``*.jaxexport``, with the weights in
``weights.npz``) or in ONNX (``*.onnx``, with the weights in ``weights.bin``).  ``carry.npz``
contains the initial carry of one sequence, and ``manifest.json`` the metadata and the digests of
the files.
The script ``run.py`` (:mod:`lstm_jax.export.runner`) runs the model with only jax or onnxruntime.
"""

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import logging
import math
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstm_jax._files import write_content
from lstm_jax.cells.base import Params, like
from lstm_jax.errors import UserError
from lstm_jax.export import runner
from lstm_jax.models import Compiled, Model

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = ("float32", "bfloat16", "int8")
"""The storage types of matrices; all other arrays keep their type."""
SHARED_BYTES = 64  # smaller constants stay in the graph, where onnxruntime reads shapes

Weights = dict[str, Any]  # arrays by name


class _Parts(NamedTuple):
    """A model as a pure function.

    Attributes:
      apply: called as ``apply(weights, carry, inputs)``; returns the new carry and the outputs.
      weights: parameters and other variables, a nested dict.
      first: the initial carry of one sequence, arrays ``[1, ...]``.
      inputs: the shape and type of each input of ``sequence``, as :attr:`Model.inputs`.
      ranges: the ranges of integer inputs, as :attr:`Model.ranges`.
      missing: the inputs in which NaN is valid, as :attr:`Model.missing`.
      programs: the shape and type of each input, by program.
    """

    apply: Callable[..., tuple[Any, dict[str, jax.Array]]]
    weights: Params
    first: Any
    inputs: dict[str, tuple[str, str]]
    ranges: dict[str, tuple[int, int | str]]
    missing: tuple[str, ...]
    programs: dict[str, dict[str, tuple[str, str]]]


def _parts(model: Model | Compiled) -> _Parts:
    compiled = model if isinstance(model, Compiled) else Compiled(model)
    graph, streams, weights = nnx.split(compiled.module, nnx.RngState, ...)
    inputs, first = compiled.inputs, compiled.initial_carry(1)

    def apply(weights: Params, carry: Any, inputs: dict[str, Any]) -> Any:
        return nnx.merge(graph, streams, weights)(carry, **inputs)

    one = {name: (_one_step(shape), dtype) for name, (shape, dtype) in inputs.items()}
    programs = {"sequence": inputs}
    if jax.tree.leaves(first):
        programs["step"] = one
    weights = nnx.to_pure_dict(weights)
    return _Parts(apply, weights, first, inputs, compiled.ranges, compiled.missing, programs)


def _one_step(shape: str) -> str:
    """The shape of an input of one step.

    >>> _one_step("b, 48*t, 7"), _one_step("b, t")
    ('b, 48, 7', 'b, 1')
    """
    sizes = [[f for f in size.strip().split("*") if f != "t"] for size in shape.split(",")]
    return ", ".join("*".join(factors) or "1" for factors in sizes)


# ---- weights ----


def is_matrix(array: Any) -> bool:
    """Whether an array is of floating type and has at least two axes of more than one element.

    >>> is_matrix(np.zeros((3, 2))), is_matrix(np.zeros((1, 3)))
    (True, False)
    """
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return floating and sum(size > 1 for size in array.shape) >= 2


def quantized(w: np.ndarray, axis: int = -2) -> tuple[np.ndarray, np.ndarray]:
    """Quantises a matrix to int8, with one scale per channel: ``w ≈ q * scale``.

    The quantisation is symmetric: q = round(w / scale) with scale = max |w| / 127 over ``axis``.
    ``axis`` is the one that a product sums over, so each output has its own scale.

    Returns:
      ``(q, scale)``: int8 in the shape of ``w``, and float32 with size 1 along ``axis``.

    >>> q, scale = quantized(np.array([[1.27, 0.0], [-0.5, 2.54]]))
    >>> q.tolist(), scale.tolist()
    ([[127, 0], [-50, 127]], [[0.009999999776482582, 0.019999999552965164]])
    """
    scale = (np.abs(w).max(axis, keepdims=True) / 127).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1), scale)
    return np.rint(w / scale).astype(np.int8), scale


def stored(params: Params, dtype: str) -> Weights:
    """Converts parameters to flat arrays by name, with matrices in ``dtype``.

    Args:
      params: a pytree of arrays.
      dtype: ``"float32"`` for unchanged matrices; ``"bfloat16"``; or ``"int8"`` for matrices from
        :func:`quantized`, with the scales of ``name`` as ``name:scale``.

    >>> {name: a.dtype.name for name, a in stored({"w": np.ones((2, 3))}, "int8").items()}
    {'w': 'int8', 'w:scale': 'float32'}
    """
    weights: Weights = {}
    for name, array in flat(params).items():
        array = np.asarray(array)
        if dtype == "int8" and is_matrix(array):
            weights[name], weights[f"{name}:scale"] = quantized(array)
        elif dtype == "bfloat16" and is_matrix(array):
            weights[name] = array.astype(jnp.bfloat16)
        else:
            weights[name] = array
    return weights


def restored(weights: Mapping[str, Any], like: Params) -> Params:
    """The inverse of :func:`stored`, with the structure and types of ``like``.

    >>> params = {"w": np.array([[1.27, 0.0], [-0.503, 2.54]])}
    >>> restored(stored(params, "int8"), params)["w"].round(5).tolist()
    [[1.27, 0.0], [-0.5, 2.54]]
    """

    def array(path: Any, leaf: Any) -> Any:
        name = name_of(path)
        if f"{name}:scale" in weights:
            return weights[name].astype(leaf.dtype) * weights[f"{name}:scale"]
        return weights[name].astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(array, like)


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by name: ``layer_0.w_ih``.

    >>> flat({"layer_0": {"b": 1}})
    {'layer_0.b': 1}
    """
    return {name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def name_of(path: Any) -> str:
    """The name of a path in a pytree."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


# ---- export ----


def export_stablehlo(
    model: Model | Compiled,
    folder: pathlib.Path,
    *,
    dtype: str = "float32",
    metadata: Mapping[str, Any] | None = None,
    platforms: tuple[str, ...] = PLATFORMS,
) -> runner.Model:
    """Exports a model to StableHLO, through ``jax.export``.

    Args:
      model: the model; it is exported in evaluation mode.
      folder: the folder to write; created if missing.
      dtype: the storage type of matrices: ``"float32"``, ``"bfloat16"`` or ``"int8"``.  The
        computation uses their original type.
      metadata: further entries of ``manifest.json``.
      platforms: the platforms that each program supports.

    Returns:
      The model, read back.

    An existing export is replaced once the new one is complete.

    Raises:
      ValueError: ``dtype`` is unknown.
      UserError: the folder cannot be written.

    Example:
      >>> import tempfile
      >>> from lstm_jax.models import LanguageModel
      >>> model = LanguageModel(10, 4, 8, rngs=nnx.Rngs(0))
      >>> exported = export_stablehlo(model, pathlib.Path(tempfile.mkdtemp()))
      >>> tokens = np.ones((2, 7), np.int32)
      >>> carry, outputs = exported(exported.initial_carry(rows=2), tokens=tokens)
      >>> outputs["logits"].shape, sorted(carry)
      ((2, 7, 10), ['layer_0.c', 'layer_0.h'])
    """
    parts = _parts(model)
    weights = stored(parts.weights, checked_dtype(dtype))
    structure = jax.tree.structure(parts.first)

    def call(weights: Weights, carry: Weights, inputs: Weights) -> Any:
        before = structure.unflatten([carry[name] for name in flat(parts.first)])
        after, outputs = parts.apply(restored(weights, parts.weights), before, inputs)
        return flat(like(after, before)), outputs

    metadata = {
        "format": "stablehlo", "dtype": dtype, "platforms": platforms, **(metadata or {})
    }  # fmt: skip
    with replaced(folder) as new:
        for name, shapes in parts.programs.items():
            carry, inputs = symbolic(shapes, parts.first)
            exported = jax.export.export(jax.jit(call), platforms=platforms)(
                weights, flat(carry), inputs
            )
            path = new / runner.program_file("stablehlo", name)
            path.write_bytes(exported.serialize())
        runner.write_npz(new / "weights.npz", weights)
        write_rest(new, parts, metadata, ("jax", "jaxlib"))
    return runner.Model(folder)


def export_onnx(
    model: Model | Compiled,
    folder: pathlib.Path,
    *,
    dtype: str = "float32",
    metadata: Mapping[str, Any] | None = None,
    dynamic: bool = False,
) -> runner.Model:
    """Exports a model to ONNX, for onnxruntime; arguments and result as :func:`export_stablehlo`.

    Args:
      dynamic: whether to apply onnxruntime's dynamic quantisation, which replaces matrix products
        by int8 products and quantises their inputs at run time.  ``dtype`` must then be float32.

    Raises:
      ValueError: ``dtype`` is unknown, or the model has an operation without a translation.
      ImportError: onnx or, for ``dynamic``, onnxruntime is not installed.
      UserError: the folder cannot be written.
    """
    import onnx

    from lstm_jax.interop.onnx import function_to_onnx

    parts = _parts(model)
    weights = restored(stored(parts.weights, checked_dtype(dtype)), parts.weights)

    def call(weights: Params, /, carry: Any, **inputs: Any) -> dict[str, Any]:
        after, outputs = parts.apply(weights, carry, inputs)
        return {"new_carry": like(after, carry), **outputs}

    metadata = {
        "format": "onnx", "dtype": "dynamic int8" if dynamic else dtype, **(metadata or {})
    }  # fmt: skip
    with replaced(folder) as new:
        for name, shapes in parts.programs.items():
            carry, inputs = symbolic(shapes, parts.first)
            graph = function_to_onnx(call, weights, {"carry": carry, **inputs})
            path = new / runner.program_file("onnx", name)
            onnx.save(with_matrices_in(graph, dtype), path)
            if dynamic:
                quantize_dynamically(path)
        share_weights(new)
        write_rest(new, parts, metadata, ("onnx", "onnxruntime"))
    return runner.Model(folder)


def share_weights(folder: pathlib.Path) -> None:
    """Moves the large constants of a folder's ONNX files into ``weights.bin``, each one once.

    A file refers to them as external data, by offset and length.
    """
    import onnx

    offsets: dict[bytes, int] = {}
    with (folder / "weights.bin").open("wb") as weights:
        for path in sorted(folder.glob("*.onnx")):
            graph = onnx.load(path)
            for constant in graph.graph.initializer:
                content = constant.raw_data
                if len(content) < SHARED_BYTES:
                    continue
                if content not in offsets:
                    weights.write(bytes(-weights.tell() % 64))  # runtimes read aligned numbers
                    offsets[content] = weights.tell()
                    weights.write(content)
                constant.ClearField("raw_data")
                constant.data_location = onnx.TensorProto.EXTERNAL
                place = {"location": "weights.bin", "offset": offsets[content]}
                for key, value in (place | {"length": len(content)}).items():
                    constant.external_data.add(key=key, value=str(value))
            path.write_bytes(graph.SerializeToString())


def quantize_dynamically(path: pathlib.Path) -> None:
    """Applies onnxruntime's dynamic quantisation to an ONNX file, in place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it reports each integer that it leaves unchanged
    try:
        quantize_dynamic(path, path, weight_type=QuantType.QInt8)
    finally:
        logging.disable(level)


def with_matrices_in(graph: Any, dtype: str) -> Any:
    """An ONNX model that stores its matrices in ``dtype`` and computes in the original type."""
    import onnx
    from onnx import helper, numpy_helper

    constants, nodes = [], []
    for constant in graph.graph.initializer:
        array, name = numpy_helper.to_array(constant), constant.name
        factors = exact_factors(array, dtype) if is_matrix(array) else [array]
        if len(factors) == 1 and factors[0].dtype == array.dtype:
            constants.append(constant)
            continue
        names = [f"{name}:{dtype}", f"{name}:scale"][: len(factors)]
        constants += map(numpy_helper.from_array, factors, names)
        # onnxruntime would merge DequantizeLinear with products to int8 products.
        wide = name if len(factors) == 1 else f"{name}:wide"
        to = helper.np_dtype_to_tensor_dtype(array.dtype)
        nodes.append(helper.make_node("Cast", names[:1], [wide], to=to))
        if len(factors) == 2:
            nodes.append(helper.make_node("Mul", [wide, names[1]], [name]))
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    before = list(changed.graph.node)
    del changed.graph.initializer[:], changed.graph.node[:]
    changed.graph.initializer.extend(constants)
    changed.graph.node.extend([*nodes, *before])
    return changed


def exact_factors(w: np.ndarray, dtype: str) -> list[np.ndarray]:
    """The factors of a matrix that was rounded to ``dtype`` and possibly transposed since.

    If it was not rounded to ``dtype``, the matrix itself is the only factor.

    >>> q, scale = quantized(np.array([[1.0, 0.3], [0.2, 0.1]], np.float32))
    >>> [factor.shape for factor in exact_factors((q * scale).T, "int8")]
    [(2, 2), (2, 1)]
    """
    options: list[list[np.ndarray]] = []
    if dtype == "bfloat16":
        options = [[w.astype(jnp.bfloat16)]]
    if dtype == "int8":
        axes = [axis for axis, size in enumerate(w.shape) if size > 1][-2:]
        options = [list(quantized(w, axis)) for axis in axes]
    for factors in options:
        product = math.prod(factor.astype(w.dtype) for factor in factors)
        if np.allclose(product, w, rtol=1e-6, atol=0):  # recomputed scales may differ by rounding
            return factors
    return [w]


def symbolic(inputs: dict[str, tuple[str, str]], first: Any) -> tuple[Any, dict[str, Any]]:
    """The shapes and types of a program's carry and inputs, with symbolic rows and steps."""
    scope = jax.export.SymbolicScope()

    def spec(shape: str, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), dtype)

    carry = jax.tree.map(
        lambda leaf: spec(", ".join(map(str, ("b", *leaf.shape[1:]))), leaf.dtype), first
    )
    return carry, {name: spec(*shape_and_type) for name, shape_and_type in inputs.items()}


@contextlib.contextmanager
def replaced(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, whose files move into ``folder`` once all of them are written.

    After an error, ``folder`` is removed if it was created here.

    Raises:
      UserError: ``folder`` cannot be written; its previous files stay.
    """
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".part-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as name:
            yield pathlib.Path(name)
            for path in sorted(pathlib.Path(name).iterdir()):
                path.replace(folder / path.name)
    except BaseException as error:
        for each in created:
            with contextlib.suppress(OSError):  # it is not empty
                each.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
        raise


def write_rest(
    folder: pathlib.Path, parts: _Parts, metadata: Mapping[str, Any], made_with: tuple[str, ...]
) -> None:
    """Writes all files except the programs and their weights."""
    first: Weights = {
        name: np.asarray(array, np.float32 if metadata["format"] == "onnx" else None)
        if jnp.issubdtype(array.dtype, jnp.floating)
        else np.asarray(array)
        for name, array in flat(parts.first).items()
    }
    runner.write_npz(folder / "carry.npz", first)
    (folder / "run.py").write_text(inspect.getsource(runner), "utf-8")
    manifest = {
        **metadata,
        "programs": list(parts.programs),
        "inputs": described(parts.inputs, parts.ranges, parts.missing),
        "carry": {name: list(array.shape[1:]) for name, array in first.items()},
    }
    write_manifest_of(folder, manifest, made_with)


def described(
    inputs: Mapping[str, tuple[str, str]],
    ranges: Mapping[str, tuple[int, int | str]],
    missing: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """A model's inputs in the form of its manifest.

    >>> described({"tokens": ("b, t", "int32")}, {"tokens": (0, 9)})
    {'tokens': {'shape': 'b, t', 'dtype': 'int32', 'range': [0, 9]}}
    """
    return {
        name: {"shape": shape, "dtype": dtype}
        | ({"range": list(ranges[name])} if name in ranges else {})
        | ({"missing": True} if name in missing else {})
        for name, (shape, dtype) in inputs.items()
    }


def write_manifest_of(
    folder: pathlib.Path, manifest: Mapping[str, Any], made_with: tuple[str, ...]
) -> None:
    """Writes ``manifest.json`` with the versions of libraries and the digests of all files."""
    rest = {
        "made_with": {name: importlib.metadata.version(name) for name in made_with},
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir())
        },
    }
    write_manifest(folder, {**manifest, **rest})


def write_manifest(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Writes ``manifest.json`` with its own digest.

    Raises:
      UserError: the file cannot be written; the previous file stays.
    """
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    content["sha256"] = runner.digest_of(content)
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_content(folder / "manifest.json", text)


def checked_dtype(dtype: str) -> str:
    """Returns ``dtype``, or raises if it is unknown."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype
