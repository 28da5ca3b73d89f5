"""ONNX's plain operators as functions of arrays.

A function's positional arguments are the operator's inputs, None if omitted.  Its keyword arguments
are the attributes, with the standard's defaults.  If an attribute became an input in a later
version, one argument represents both.  Functions of NumPy arrays return NumPy arrays, so that
shapes and values computed from them stay known while JAX traces the rest.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

Array = Any  # NumPy's or JAX's

OPERATORS: dict[str, dict[int, Callable[..., Any]]] = {}
"""Functions by the operator's name and the first opset version that each applies to."""


def operator(*names: str, since: int = 1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function in :data:`OPERATORS`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            OPERATORS.setdefault(name, {})[since] = function
        return function

    return register


def operator_at(name: str, opset: int) -> Callable[..., Any] | None:
    """The function of an operator in an opset version, or None if it is not supported.

    >>> operator_at("Softmax", 11).__name__, operator_at("Softmax", 13).__name__
    ('flat_softmax', 'softmax')
    """
    versions = [since for since in OPERATORS.get(name, {}) if since <= opset]
    return OPERATORS[name][max(versions)] if versions else None


def xp_of(*arrays: Array) -> Any:
    """NumPy if all arrays are NumPy's, otherwise ``jax.numpy``.

    >>> xp_of(np.ones(2), None).__name__
    'numpy'
    """
    known = all(array is None or isinstance(array, np.ndarray | np.generic) for array in arrays)
    return np if known else jnp


def known(what: str, array: Array) -> np.ndarray:
    """A NumPy array of values that must be known during tracing, such as a shape."""
    if isinstance(array, jax.core.Tracer):
        raise ValueError(f"{what} must be known during tracing, but depends on an input")
    return np.asarray(array)


def integers(what: str, array: Array) -> list[int]:
    """:func:`known` integers as a list, also for a scalar."""
    return [int(n) for n in known(what, array).reshape(-1)]


TYPES = ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
TYPES += ("FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE")


def dtype_of(code: int) -> np.dtype:
    """The type of a ``TensorProto`` code.

    >>> dtype_of(onnx.TensorProto.INT8)
    dtype('int8')
    """
    name = onnx.TensorProto.DataType.Name(code)
    if name not in TYPES:
        raise ValueError(f"type {name} is not supported; expected one of {', '.join(TYPES)}")
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))


def cast_to(x: Array, dtype: Any) -> Array:
    """``x`` in another type; in JAX, 64 bits become 32 unless ``jax_enable_x64`` is set."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x).astype(dtype)
    return x.astype(jax.dtypes.canonicalize_dtype(dtype))


# ---- elementwise ----


def _elementwise(name: str, function: Callable[..., Any]) -> None:
    """Registers a function that is called as ``function(xp, *inputs)``."""
    operator(name)(lambda *inputs: function(xp_of(*inputs), *inputs))


def _reduced(name: str) -> Callable[..., Any]:
    """Extends a function of two arrays to any number of them."""

    def run(xp: Any, first: Array, *rest: Array) -> Array:
        for array in rest:
            first = getattr(xp, name)(first, array)
        return first

    return run


def _divided(xp: Any, a: Array, b: Array) -> Array:
    if not np.issubdtype(a.dtype, np.integer):
        return xp.divide(a, b)
    # Integer division rounds towards zero.
    quotient, remainder = xp.floor_divide(a, b), xp.remainder(a, b)
    return xp.where((remainder != 0) & ((a < 0) != (b < 0)), quotient + 1, quotient)


def _power(xp: Any, a: Array, b: Array) -> Array:
    return xp.power(a, b).astype(a.dtype)


def _sigmoid(xp: Any, x: Array) -> Array:
    return jax.nn.sigmoid(x) if xp is jnp else (1 / (1 + np.exp(-x))).astype(x.dtype)


def _erf(xp: Any, x: Array) -> Array:
    if xp is jnp:
        return jax.lax.erf(x)
    return np.vectorize(math.erf, otypes=[x.dtype])(x)


for _name, _function in {
    "Abs": lambda xp, x: xp.abs(x),
    "Acos": lambda xp, x: xp.arccos(x),
    "Acosh": lambda xp, x: xp.arccosh(x),
    "Add": lambda xp, a, b: xp.add(a, b),
    "And": lambda xp, a, b: xp.logical_and(a, b),
    "Asin": lambda xp, x: xp.arcsin(x),
    "Asinh": lambda xp, x: xp.arcsinh(x),
    "Atan": lambda xp, x: xp.arctan(x),
    "Atanh": lambda xp, x: xp.arctanh(x),
    "BitwiseAnd": lambda xp, a, b: xp.bitwise_and(a, b),
    "BitwiseNot": lambda xp, x: xp.bitwise_not(x),
    "BitwiseOr": lambda xp, a, b: xp.bitwise_or(a, b),
    "BitwiseXor": lambda xp, a, b: xp.bitwise_xor(a, b),
    "Ceil": lambda xp, x: xp.ceil(x),
    "Cos": lambda xp, x: xp.cos(x),
    "Cosh": lambda xp, x: xp.cosh(x),
    "Div": _divided,
    "Equal": lambda xp, a, b: xp.equal(a, b),
    "Erf": _erf,
    "Exp": lambda xp, x: xp.exp(x),
    "Floor": lambda xp, x: xp.floor(x),
    "Greater": lambda xp, a, b: xp.greater(a, b),
    "GreaterOrEqual": lambda xp, a, b: xp.greater_equal(a, b),
    "Identity": lambda xp, x: x,
    "IsNaN": lambda xp, x: xp.isnan(x),
    "Less": lambda xp, a, b: xp.less(a, b),
    "LessOrEqual": lambda xp, a, b: xp.less_equal(a, b),
    "Log": lambda xp, x: xp.log(x),
    "Max": _reduced("maximum"),
    "Min": _reduced("minimum"),
    "Mul": lambda xp, a, b: xp.multiply(a, b),
    "Neg": lambda xp, x: xp.negative(x),
    "Not": lambda xp, x: xp.logical_not(x),
    "Or": lambda xp, a, b: xp.logical_or(a, b),
    "Pow": _power,
    "Reciprocal": lambda xp, x: xp.reciprocal(x),
    "Relu": lambda xp, x: xp.maximum(x, xp.zeros((), x.dtype)),
    "Round": lambda xp, x: xp.round(x),
    "Sigmoid": _sigmoid,
    "Sign": lambda xp, x: xp.sign(x),
    "Sin": lambda xp, x: xp.sin(x),
    "Sinh": lambda xp, x: xp.sinh(x),
    "Softplus": lambda xp, x: xp.logaddexp(x, xp.zeros((), x.dtype)),
    "Softsign": lambda xp, x: x / (1 + xp.abs(x)),
    "Sqrt": lambda xp, x: xp.sqrt(x),
    "Sub": lambda xp, a, b: xp.subtract(a, b),
    "Sum": _reduced("add"),
    "Tan": lambda xp, x: xp.tan(x),
    "Tanh": lambda xp, x: xp.tanh(x),
    "Where": lambda xp, condition, a, b: xp.where(condition, a, b),
    "Xor": lambda xp, a, b: xp.logical_xor(a, b),
}.items():
    _elementwise(_name, _function)


@operator("Mean")
def mean(*inputs: Array) -> Array:
    return _reduced("add")(xp_of(*inputs), *inputs) / len(inputs)


@operator("IsInf")
def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    xp = xp_of(x)
    counts = (x > 0) & bool(detect_positive) | (x < 0) & bool(detect_negative)
    return xp.isinf(x) & counts


@operator("Mod")
def mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    xp = xp_of(a, b)
    return xp.fmod(a, b) if fmod else xp.remainder(a, b)


@operator("Clip")
def clip(x: Array, min: Array = None, max: Array = None) -> Array:
    xp = xp_of(x, min, max)
    if min is not None:
        x = xp.maximum(x, xp.asarray(min, x.dtype))
    return x if max is None else xp.minimum(x, xp.asarray(max, x.dtype))


@operator("Elu")
def elu(x: Array, *, alpha: float = 1.0) -> Array:
    return jax.nn.elu(jnp.asarray(x), alpha)


@operator("LeakyRelu")
def leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    return jax.nn.leaky_relu(jnp.asarray(x), alpha)


@operator("ThresholdedRelu")
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    return xp_of(x).where(x > alpha, x, xp_of(x).zeros((), x.dtype))


@operator("HardSigmoid")
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    return xp_of(x).clip(alpha * x + beta, 0, 1).astype(x.dtype)


@operator("HardSwish")
def hard_swish(x: Array) -> Array:
    return x * hard_sigmoid(x, alpha=1 / 6, beta=0.5)


@operator("Selu")
def selu(
    x: Array, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Array:
    return gamma * jax.nn.elu(jnp.asarray(x), alpha)


@operator("Gelu")
def gelu(x: Array, *, approximate: str = "none") -> Array:
    return jax.nn.gelu(jnp.asarray(x), approximate=approximate == "tanh")


@operator("Cast")
def cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    return cast_to(x, dtype_of(to))


@operator("CastLike")
def cast_like(x: Array, target: Array, *, saturate: int = 1, round_mode: str = "up") -> Array:
    return cast_to(x, target.dtype)


@operator("Dropout")
def dropout(
    x: Array,
    ratio: Array = None,
    training_mode: Array = None,
    *,
    seed: int = 0,
) -> tuple[Array, Array]:
    """The input unchanged, as in evaluation, and the mask, which is all true."""
    if training_mode is not None and known("training_mode of Dropout", training_mode).any():
        raise ValueError("Dropout in training mode is not supported")
    return x, np.ones(x.shape, bool)


# ---- constants and shapes ----


@operator("Constant")
def constant(*, value: Any = None, sparse_value: Any = None, **of_type: Any) -> np.ndarray:
    """The names of the attributes ``value_float``, ``value_ints`` and so on imply the type."""
    if sparse_value is not None:
        raise ValueError("Constant with sparse_value is not supported")
    if value is not None:
        return value
    ((name, given),) = of_type.items()
    if "string" in name:
        raise ValueError("Constant of strings is not supported")
    return np.asarray(given, np.float32 if "float" in name else np.int64)


@operator("ConstantOfShape")
def constant_of_shape(shape: Array, *, value: np.ndarray | None = None) -> np.ndarray:
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full(integers("the shape of ConstantOfShape", shape), fill[0], fill.dtype)


@operator("Shape")
def shape_of(x: Array, *, start: int = 0, end: int | None = None) -> np.ndarray:
    return np.asarray(x.shape[start:end], np.int64)


@operator("Size")
def size_of(x: Array) -> np.ndarray:
    return np.asarray(math.prod(x.shape), np.int64)


@operator("Range")
def range_of(start: Array, limit: Array, delta: Array) -> np.ndarray:
    start, limit, delta = (
        known(f"the {what} of Range", a).reshape(())
        for what, a in (("start", start), ("limit", limit), ("delta", delta))
    )
    count = max(0, math.ceil((limit - start) / delta))
    return (start + np.arange(count) * delta).astype(start.dtype)


@operator("Reshape")
def reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    sizes = integers("the shape of Reshape", shape)
    if not allowzero:  # zero means: keep the size of this axis
        sizes = [x.shape[n] if size == 0 else size for n, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(x: Array, *, axis: int = 1) -> Array:
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose")
def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    return xp_of(x).transpose(x, perm)


@operator("Squeeze")
def squeeze(x: Array, axes: Array = None) -> Array:
    chosen = None if axes is None else tuple(integers("the axes of Squeeze", axes))
    return xp_of(x).squeeze(x, chosen)


@operator("Unsqueeze")
def unsqueeze(x: Array, axes: Array) -> Array:
    return xp_of(x).expand_dims(x, tuple(integers("the axes of Unsqueeze", axes)))


@operator("Expand")
def expand(x: Array, shape: Array) -> Array:
    sizes = np.broadcast_shapes(x.shape, tuple(integers("the shape of Expand", shape)))
    return xp_of(x).broadcast_to(x, sizes)


@operator("Tile", since=6)
def tile(x: Array, repeats: Array) -> Array:
    return xp_of(x).tile(x, integers("the repeats of Tile", repeats))


@operator("Concat")
def concat(*inputs: Array, axis: int) -> Array:
    return xp_of(*inputs).concatenate(inputs, axis)


@operator("Split")
def split(
    x: Array, split: Array = None, *, axis: int = 0, num_outputs: int = 0, outputs: int
) -> list[Array]:
    size = x.shape[axis]
    if split is None:  # equal parts, except the last
        part = math.ceil(size / (num_outputs or outputs))
        edges = list(range(part, size, part))
    else:
        edges = np.cumsum(integers("the sizes of Split", split))[:-1].tolist()
    return xp_of(x).split(x, edges, axis)


@operator("Slice")
def slice_of(
    x: Array, starts: Array, ends: Array, axes: Array = None, steps: Array = None
) -> Array:
    begin, end = integers("the starts of Slice", starts), integers("the ends of Slice", ends)
    along = range(len(begin)) if axes is None else integers("the axes of Slice", axes)
    by = [1] * len(begin) if steps is None else integers("the steps of Slice", steps)
    index = [slice(None)] * x.ndim
    for first, last, axis, step in zip(begin, end, along, by, strict=True):
        size = x.shape[axis]
        first, last = (n + size if n < 0 else n for n in (first, last))
        if step > 0:
            index[axis] = slice(min(max(first, 0), size), min(max(last, 0), size), step)
        else:
            last = min(max(last, -1), size - 1)
            index[axis] = slice(min(max(first, 0), size - 1), None if last < 0 else last, step)
    return x[tuple(index)]


@operator("Pad")
def pad(
    x: Array,
    pads: Array,
    constant_value: Array = None,
    axes: Array = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
) -> Array:
    amounts = integers("the pads of Pad", pads)
    along = range(x.ndim) if axes is None else integers("the axes of Pad", axes)
    rank = len(amounts) // 2
    widths = [(0, 0)] * x.ndim
    for axis, before, after in zip(along, amounts[:rank], amounts[rank:], strict=True):
        widths[axis] = (before, after)
    # Negative pads remove elements.
    cut = tuple(
        slice(max(0, -before), size - max(0, -after))
        for size, (before, after) in zip(x.shape, widths, strict=True)
    )
    widths = [(max(0, before), max(0, after)) for before, after in widths]
    xp = xp_of(x, constant_value)
    if mode != "constant":
        return xp.pad(x[cut], widths, mode)
    fill = value if constant_value is None else constant_value.reshape(())
    return xp.pad(x[cut], widths, constant_values=fill)


@operator("Gather")
def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    if xp_of(x, indices) is np:
        return np.take(x, indices, axis)
    return jnp.take(x, _wrapped(indices, x.shape[axis]), axis, mode="clip")


@operator("GatherElements")
def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    xp = xp_of(x, indices)
    index = list(xp.indices(indices.shape, sparse=True))
    index[axis] = _wrapped(indices, x.shape[axis])
    return x[tuple(index)] if xp is np else jnp.asarray(x)[tuple(index)]


@operator("GatherND")
def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    if batch_dims:
        return jax.vmap(lambda x, i: gather_nd(x, i, batch_dims=batch_dims - 1))(
            jnp.asarray(x), jnp.asarray(indices)
        )
    xp = xp_of(x, indices)
    index = tuple(xp.moveaxis(indices, -1, 0))
    return x[index] if xp is np else jnp.asarray(x)[index]


def _wrapped(indices: Array, size: int) -> Array:
    """Converts negative indices, which count from the end."""
    return xp_of(indices).where(indices < 0, indices + size, indices)


@operator("OneHot")
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    (size,) = integers("the depth of OneHot", depth)
    xp = xp_of(indices, values)
    wrapped = _wrapped(indices, size)
    hot = xp.expand_dims(wrapped, axis) == _along(np.arange(size), axis, indices.ndim + 1)
    return xp.where(hot, values[1], values[0])


def _along(array: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Reshapes a vector to ``ndim`` axes; its elements are along ``axis``."""
    shape = [1] * ndim
    shape[axis] = -1
    return array.reshape(shape)


@operator("ReverseSequence")
def reverse_sequence(
    x: Array, sequence_lens: Array, *, batch_axis: int = 1, time_axis: int = 0
) -> Array:
    xp = xp_of(x, sequence_lens)
    t = _along(np.arange(x.shape[time_axis]), time_axis, x.ndim)
    lens = xp.reshape(sequence_lens, [-1 if n == batch_axis else 1 for n in range(x.ndim)])
    return xp.take_along_axis(x, xp.where(t < lens, lens - 1 - t, t), time_axis)


@operator("Trilu")
def trilu(x: Array, k: Array = None, *, upper: int = 1) -> Array:
    offset = 0 if k is None else integers("k of Trilu", k)[0]
    return xp_of(x).triu(x, offset) if upper else xp_of(x).tril(x, offset)


# ---- reductions ----


def _reduction(name: str, function: Callable[..., Any]) -> None:
    """Registers a function that is called as ``function(xp, x, axes, keepdims)``."""

    @operator(name)
    def reduce(
        x: Array, axes: Array = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        chosen = [] if axes is None else integers(f"the axes of {name}", axes)
        if not chosen and noop_with_empty_axes:
            return function(xp_of(x), x, (), True)
        return function(xp_of(x), x, tuple(chosen) or None, bool(keepdims))


def _same_type(name: str) -> Callable[..., Any]:
    return lambda xp, x, axes, keep: getattr(xp, name)(x, axis=axes, keepdims=keep).astype(x.dtype)


for _name, _function in {
    "ReduceL1": lambda xp, x, axes, keep: xp.abs(x).sum(axes, keepdims=keep),
    "ReduceL2": lambda xp, x, axes, keep: xp.sqrt(xp.square(x).sum(axes, keepdims=keep)),
    "ReduceMax": _same_type("max"),
    "ReduceMean": _same_type("mean"),
    "ReduceMin": _same_type("min"),
    "ReduceProd": _same_type("prod"),
    "ReduceSum": _same_type("sum"),
    "ReduceSumSquare": lambda xp, x, axes, keep: xp.square(x).sum(axes, keepdims=keep),
}.items():
    _reduction(_name, _function)


def _arg(name: str) -> Callable[..., Any]:
    def run(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
        xp = xp_of(x)
        found = getattr(xp, name)(xp.flip(x, axis) if select_last_index else x, axis=axis)
        if select_last_index:
            found = x.shape[axis] - 1 - found
        found = cast_to(found, np.int64)
        return xp.expand_dims(found, axis) if keepdims else found

    return run


operator("ArgMax")(_arg("argmax"))
operator("ArgMin")(_arg("argmin"))


@operator("CumSum")
def cumsum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    (along,) = integers("the axis of CumSum", axis)
    xp = xp_of(x)
    x = xp.flip(x, along) if reverse else x
    total = xp.cumsum(x, along, dtype=x.dtype)
    total = total - x if exclusive else total
    return xp.flip(total, along) if reverse else total


@operator("Softmax", since=13)
def softmax(x: Array, *, axis: int = -1) -> Array:
    return jax.nn.softmax(jnp.asarray(x), axis)


@operator("Softmax")
def flat_softmax(x: Array, *, axis: int = 1) -> Array:
    return softmax(flatten(x, axis=axis), axis=-1).reshape(x.shape)


@operator("LogSoftmax", since=13)
def log_softmax(x: Array, *, axis: int = -1) -> Array:
    return jax.nn.log_softmax(jnp.asarray(x), axis)


@operator("LogSoftmax")
def flat_log_softmax(x: Array, *, axis: int = 1) -> Array:
    return log_softmax(flatten(x, axis=axis), axis=-1).reshape(x.shape)


@operator("LayerNormalization")
def layer_normalization(
    x: Array,
    scale: Array,
    shift: Array = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Array, Array, Array]:
    axes = tuple(range(axis % x.ndim, x.ndim))
    wide = x.astype(jnp.promote_types(x.dtype, np.float32))
    mean = wide.mean(axes, keepdims=True)
    centered = wide - mean
    deviation = 1 / xp_of(x).sqrt((centered * centered).mean(axes, keepdims=True) + epsilon)
    y = (centered * deviation).astype(x.dtype) * scale
    return (y if shift is None else y + shift), mean, deviation


@operator("BatchNormalization", since=9)
def batch_normalization(
    x: Array,
    scale: Array,
    shift: Array,
    mean: Array,
    variance: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Array:
    """Normalises by the given statistics, as in evaluation."""
    if training_mode:
        raise ValueError("BatchNormalization in training mode is not supported")
    xp = xp_of(x, scale, shift, mean, variance)
    scale, shift, mean, variance = (
        a.reshape(-1, *[1] * (x.ndim - 2)) for a in (scale, shift, mean, variance)
    )
    return ((x - mean) / xp.sqrt(variance + epsilon) * scale + shift).astype(x.dtype)


# ---- products ----


@operator("MatMul")
def matmul(a: Array, b: Array) -> Array:
    return xp_of(a, b).matmul(a, b)


@operator("Gemm")
def gemm(
    a: Array,
    b: Array,
    c: Array = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    y = matmul(a.T if transA else a, b.T if transB else b)
    y = y if alpha == 1 else (alpha * y).astype(y.dtype)
    if c is None:
        return y
    return y + (c if beta == 1 else (beta * c).astype(y.dtype))


@operator("Einsum")
def einsum(*inputs: Array, equation: str) -> Array:
    return xp_of(*inputs).einsum(equation, *inputs)


@operator("Conv")
def conv(
    x: Array,
    w: Array,
    b: Array = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    space = w.ndim - 2
    amounts = pads or [0] * 2 * space
    padding: Any = list(zip(amounts[:space], amounts[space:], strict=True))
    if auto_pad != "NOTSET":
        padding = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}[auto_pad]
    letters = "XYZ"[:space]
    y = jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(w),
        window_strides=strides or [1] * space,
        padding=padding,
        rhs_dilation=dilations or [1] * space,
        dimension_numbers=(f"NC{letters}", f"OI{letters}", f"NC{letters}"),
        feature_group_count=group,
    )
    return y if b is None else y + b.reshape(-1, *[1] * space)
