"""Models out of this library: a folder with which another process runs one, by itself.

It holds ``step`` and ``sequence`` as functions of StableHLO (``*.jaxexport``, with the weights
beside them in ``weights.npz``) or as graphs of ONNX (``*.onnx``, weights within), the state in
which a sequence begins (``state.npz``), what else there is to know (``manifest.json``), and a
script that runs it with jax or onnxruntime alone (``run.py``,
:mod:`lstm_jax.interop.standalone`).
"""

import functools
import importlib.metadata
import inspect
import json
import logging
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.base import Params, State, like
from lstm_jax.interop import standalone
from lstm_jax.interop.standalone import Model

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = ("float32", "bfloat16", "int8")
"""How weights can be stored: matrices in this type, all else in its own."""

Weights = dict[str, Any]  # arrays by name


class Function(NamedTuple):
    """One function of a model.

    Attributes:
      apply: called as ``apply(params, state, **inputs)``; returns the new state, and a dict of
        outputs.
      inputs: shape and type of each input by its name.  In shapes ``b`` and ``t`` stand for any
        number of rows and steps: ``{"xs": ("b, t, 16", "float32")}``.
    """

    apply: Callable[..., tuple[State, dict[str, jax.Array]]]
    inputs: dict[str, tuple[str, str]]


# ---- weights ----


def is_matrix(array: Any) -> bool:
    """Whether an array has two axes or more of more than one element, of floating numbers.

    >>> is_matrix(np.zeros((3, 2))), is_matrix(np.zeros((1, 3)))
    (True, False)
    """
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return floating and sum(size > 1 for size in array.shape) >= 2


def quantized(w: np.ndarray, axis: int = -2) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as int8, with one scale for each channel: ``w ≈ q * scale``.

    Symmetric: scale = max |w| / 127 over ``axis``, the axis that a product sums over, so that
    each output has a scale of its own; q = round(w / scale).

    Returns:
      ``(q, scale)``: int8 as ``w``, and float32 with one element along ``axis``.

    >>> q, scale = quantized(np.array([[1.27, 0.0], [-0.5, 2.54]]))
    >>> q.tolist(), scale.tolist()
    ([[127, 0], [-50, 127]], [[0.009999999776482582, 0.019999999552965164]])
    """
    scale = (np.abs(w).max(axis, keepdims=True) / 127).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1), scale)
    return np.rint(w / scale).astype(np.int8), scale


def stored(params: Params, dtype: str) -> Weights:
    """Parameters as flat arrays by name, matrices in ``dtype``.

    Args:
      params: a pytree of arrays.
      dtype: ``"float32"``, as they are; ``"bfloat16"``; ``"int8"``, :func:`quantized`, with the
        scales of ``name`` as ``name:scale``.

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
    """The parameters that :func:`stored` has stored, in structure and types of ``like``.

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
    """A path in a pytree as a name."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


# ---- export ----


def export_stablehlo(
    functions: Mapping[str, Function],
    params: Params,
    first_state: State,
    folder: pathlib.Path,
    *,
    dtype: str = "float32",
    about: Mapping[str, Any] | None = None,
    platforms: tuple[str, ...] = PLATFORMS,
) -> Model:
    """A model as StableHLO, through ``jax.export``.

    Args:
      functions: what it computes, ``sequence``, and ``step`` where it runs forwards in time.
      params: their parameters.
      first_state: the state where one sequence begins, arrays ``[1, ...]``.
      folder: where to; made, if need be.
      dtype: how matrices are stored: ``"float32"``, ``"bfloat16"`` or ``"int8"``.  They are
        computed with in their own type.
      about: what goes into ``manifest.json``, too.
      platforms: what each file is for.

    Returns:
      The model as it was read back.

    Raises:
      ValueError: ``dtype`` is unknown.

    Example:
      >>> import tempfile, jax
      >>> from lstm_jax import LSTM
      >>> lstm = LSTM(4)
      >>> def apply(params, state, xs):  # batch leads
      ...     state, ys = lstm.apply(params, xs.swapaxes(0, 1), state)
      ...     return state, {"ys": ys.swapaxes(0, 1)}
      >>> functions = {"sequence": Function(apply, {"xs": ("b, t, 3", "float32")})}
      >>> params = lstm.init(jax.random.key(0), input_size=3)
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> model = export_stablehlo(functions, params, lstm.zero_state((1,)), folder)
      >>> state, outputs = model.sequence(model.initial_state(2), xs=np.ones((2, 7, 3)))
      >>> outputs["ys"].shape, sorted(state)
      ((2, 7, 4), ['layer_0.c', 'layer_0.h'])
    """
    weights = stored(params, checked_dtype(dtype))
    structure = jax.tree.structure(first_state)

    def call(apply: Any, weights: Weights, state: Weights, inputs: Weights) -> Any:
        before = structure.unflatten([state[name] for name in flat(first_state)])
        after, outputs = apply(restored(weights, params), before, **inputs)
        return flat(like(after, before)), outputs

    folder.mkdir(parents=True, exist_ok=True)
    for name, function in functions.items():
        state, inputs = symbolic(function, first_state)
        exported = jax.export.export(
            jax.jit(functools.partial(call, function.apply)), platforms=platforms
        )(weights, flat(state), inputs)
        (folder / f"{name}.jaxexport").write_bytes(exported.serialize())
    np.savez(folder / "weights.npz", **weights)
    about = {"format": "stablehlo", "dtype": dtype, "platforms": platforms, **(about or {})}
    return finished(folder, functions, first_state, about, ("jax", "jaxlib"))


def export_onnx(
    functions: Mapping[str, Function],
    params: Params,
    first_state: State,
    folder: pathlib.Path,
    *,
    dtype: str = "float32",
    about: Mapping[str, Any] | None = None,
    dynamic: bool = False,
) -> Model:
    """A model as ONNX, for onnxruntime; arguments and result as :func:`export_stablehlo`.

    Args:
      dynamic: whether onnxruntime's own dynamic quantisation turns products into ones of int8,
        in which the inputs are quantised, too, as they come.  ``dtype`` is float32 then.

    Raises:
      ValueError: ``dtype`` is unknown, or the model holds an operation that has no translation.
      ImportError: onnx or, for ``dynamic``, onnxruntime is not installed.
    """
    import onnx

    from lstm_jax.interop.onnx import function_to_onnx

    held = restored(stored(params, checked_dtype(dtype)), params)

    def call(apply: Any, params: Params, /, state: State, **inputs: Any) -> dict[str, Any]:
        after, outputs = apply(params, state, **inputs)
        return {"new_state": like(after, state), **outputs}

    folder.mkdir(parents=True, exist_ok=True)
    for name, function in functions.items():
        state, inputs = symbolic(function, first_state)
        graph = function_to_onnx(
            functools.partial(call, function.apply), held, {"state": state, **inputs}
        )
        path = folder / f"{name}.onnx"
        onnx.save(with_matrices_in(graph, dtype), path)
        if dynamic:
            quantize_dynamically(path)
    about = {"format": "onnx", "dtype": "dynamic int8" if dynamic else dtype, **(about or {})}
    return finished(folder, functions, first_state, about, ("onnx", "onnxruntime"))


def quantize_dynamically(path: pathlib.Path) -> None:
    """Replaces an ONNX file by what onnxruntime's dynamic quantisation makes of it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it tells of each integer that it leaves as it is
    try:
        quantize_dynamic(path, path, weight_type=QuantType.QInt8)
    finally:
        logging.disable(level)


def with_matrices_in(graph: Any, dtype: str) -> Any:
    """An ONNX model whose matrices are stored in ``dtype``, and computed with as before."""
    import onnx
    from onnx import helper, numpy_helper

    kept, nodes = [], []
    for constant in graph.graph.initializer:
        array, name = numpy_helper.to_array(constant), constant.name
        factors = exact_factors(array, dtype) if is_matrix(array) else [array]
        if len(factors) == 1 and factors[0].dtype == array.dtype:
            kept.append(constant)
            continue
        names = [f"{name}:{dtype}", f"{name}:scale"][: len(factors)]
        kept += map(numpy_helper.from_array, factors, names)
        # Not DequantizeLinear, which onnxruntime merges with products to ones of int8.
        wide = name if len(factors) == 1 else f"{name}:wide"
        to = helper.np_dtype_to_tensor_dtype(array.dtype)
        nodes.append(helper.make_node("Cast", names[:1], [wide], to=to))
        if len(factors) == 2:
            nodes.append(helper.make_node("Mul", [wide, names[1]], [name]))
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    before = list(changed.graph.node)
    del changed.graph.initializer[:], changed.graph.node[:]
    changed.graph.initializer.extend(kept)
    changed.graph.node.extend([*nodes, *before])
    return changed


def exact_factors(w: np.ndarray, dtype: str) -> list[np.ndarray]:
    """A matrix that was rounded to ``dtype`` as what it is the product of, be it transposed since.

    It is itself the only factor where it was not so rounded.

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
        if np.allclose(product, w, rtol=1e-6, atol=0):  # scales are found again to a rounding
            return factors
    return [w]


def symbolic(function: Function, first_state: State) -> tuple[Any, dict[str, Any]]:
    """Shapes and types of a function's state and inputs, for any number of rows and steps."""
    scope = jax.export.SymbolicScope()

    def spec(shape: str, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), dtype)

    inputs = {name: spec(*shape_and_type) for name, shape_and_type in function.inputs.items()}
    state = jax.tree.map(
        lambda leaf: spec(", ".join(map(str, ("b", *leaf.shape[1:]))), leaf.dtype), first_state
    )
    return state, inputs


def finished(
    folder: pathlib.Path,
    functions: Mapping[str, Function],
    first_state: State,
    about: Mapping[str, Any],
    made_with: tuple[str, ...],
) -> Model:
    """The rest of the folder's files, and the model as it is read back from them."""
    starts: Weights = {
        name: np.asarray(array, np.float32 if about["format"] == "onnx" else None)
        if jnp.issubdtype(array.dtype, jnp.floating)
        else np.asarray(array)
        for name, array in flat(first_state).items()
    }
    np.savez(folder / "state.npz", **starts)
    manifest = {
        **about,
        "functions": {
            name: {
                key: {"shape": shape, "dtype": dtype}
                for key, (shape, dtype) in function.inputs.items()
            }
            for name, function in functions.items()
        },
        "state": {name: list(array.shape[1:]) for name, array in starts.items()},
        "made_with": {name: importlib.metadata.version(name) for name in made_with},
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / "manifest.json").write_text(text + "\n", "utf-8")
    (folder / "run.py").write_text(inspect.getsource(standalone), "utf-8")
    return Model(folder)


def checked_dtype(dtype: str) -> str:
    """``dtype``, or an error where it is unknown."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype
