"""Translates JAX primitives to ONNX operators.

A translation is called with the graph's builder, the equation, and its inputs: names of values, or
NumPy arrays if they are constant.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lstm_jax.interop.onnx.graphs import Builder, Value, is_known_size, type_code

Translation = Callable[..., Any]

TRANSLATIONS: dict[str, Translation] = {}
"""Translations by the primitive's name; each returns the output's name, or a list of names."""


def primitive(*names: str) -> Callable[[Translation], Translation]:
    """Registers a translation in :data:`TRANSLATIONS`."""

    def register(translation: Translation) -> Translation:
        TRANSLATIONS.update(dict.fromkeys(names, translation))
        return translation

    return register


# ---- elementwise ----

SAME = {
    "abs": "Abs",
    "acos": "Acos",
    "acosh": "Acosh",
    "add": "Add",
    "add_any": "Add",
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tan": "Tan",
    "tanh": "Tanh",
}
"""Primitives that are a single operator with the same inputs."""


def _same(operator: str) -> Translation:
    return lambda g, eqn, *inputs: g.add(operator, *inputs)


for _name, _operator in SAME.items():
    primitive(_name)(_same(_operator))


@primitive("copy", "copy_p", "name", "optimization_barrier", "pcast", "pvary", "stop_gradient")
def unchanged(g: Builder, eqn: Any, *inputs: Value) -> list[Value]:
    return list(inputs)


@primitive("and", "or", "not", "xor")
def logical(g: Builder, eqn: Any, *inputs: Value) -> str:
    word = eqn.primitive.name.capitalize()
    return g.add(word if is_bool(eqn.invars[0]) else f"Bitwise{word}", *inputs)


@primitive("ne")
def not_equal(g: Builder, eqn: Any, a: Value, b: Value) -> str:
    return g.add("Not", g.add("Equal", a, b))


@primitive("is_finite")
def is_finite(g: Builder, eqn: Any, x: Value) -> str:
    return g.add("Not", g.add("Or", g.add("IsInf", x), g.add("IsNaN", x)))


@primitive("rem")
def remainder(g: Builder, eqn: Any, a: Value, b: Value) -> str:
    return g.add("Mod", a, b, fmod=1)


@primitive("round")
def rounded(g: Builder, eqn: Any, x: Value) -> str:
    if eqn.params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return g.add("Round", x)
    half = one(eqn, 0.5)
    return g.add("Mul", g.add("Sign", x), g.add("Floor", g.add("Add", g.add("Abs", x), half)))


@primitive("square")
def square(g: Builder, eqn: Any, x: Value) -> str:
    return g.add("Mul", x, x)


@primitive("integer_pow")
def integer_pow(g: Builder, eqn: Any, x: Value) -> str:
    if eqn.params["y"] == 2:
        return g.add("Mul", x, x)
    return g.add("Pow", x, one(eqn, eqn.params["y"]))


@primitive("rsqrt")
def rsqrt(g: Builder, eqn: Any, x: Value) -> str:
    return g.add("Reciprocal", g.add("Sqrt", x))


@primitive("exp2")
def exp2(g: Builder, eqn: Any, x: Value) -> str:
    return g.add("Pow", one(eqn, 2), x)


@primitive("log1p")
def log1p(g: Builder, eqn: Any, x: Value) -> str:
    """x log(u) / (u - 1) with u = 1 + x, which is accurate although u is rounded (Kahan)."""
    u = g.add("Add", x, one(eqn, 1))
    difference = g.add("Sub", u, one(eqn, 1))
    exact = g.add("Mul", x, g.add("Div", g.add("Log", u), difference))
    exact = g.add("Where", g.add("Equal", difference, one(eqn, 0)), x, exact)
    return g.add("Where", g.add("IsInf", u), u, exact)


@primitive("expm1")
def expm1(g: Builder, eqn: Any, x: Value) -> str:
    """2 tanh(x/2) / (1 - tanh(x/2)) near zero, where exp(x) - 1 loses digits to cancellation."""
    tanh = g.add("Tanh", g.add("Mul", x, one(eqn, 0.5)))
    ratio = g.add("Div", tanh, g.add("Sub", one(eqn, 1), tanh))
    near = g.add("Less", g.add("Abs", x), one(eqn, 1))
    far = g.add("Sub", g.add("Exp", x), one(eqn, 1))
    return g.add("Where", near, g.add("Mul", ratio, one(eqn, 2)), far)


@primitive("clamp")
def clamp(g: Builder, eqn: Any, low: Value, x: Value, high: Value) -> str:
    return g.add("Min", g.add("Max", x, low), high)


@primitive("select_n")
def select(g: Builder, eqn: Any, which: Value, *cases: Value) -> Value:
    if is_bool(eqn.outvars[0]):  # ONNX Runtime has no Where for booleans
        no, yes = g.add("And", g.add("Not", which), cases[0]), g.add("And", which, cases[1])
        return g.add("Or", no, yes)
    if is_bool(eqn.invars[0]):
        return g.add("Where", which, cases[1], cases[0])
    chosen = cases[0]
    for n, case in enumerate(cases[1:], 1):
        chosen = g.add("Where", g.add("Equal", which, one(eqn, n, 0)), case, chosen)
    return chosen


@primitive("convert_element_type")
def convert(g: Builder, eqn: Any, x: Value) -> Value:
    if dtype_of(eqn.invars[0]) == eqn.params["new_dtype"]:
        return x
    return g.add("Cast", x, to=type_code(eqn.params["new_dtype"]))


# ---- shapes ----


@primitive("dim_as_value")
def dim_as_value(g: Builder, eqn: Any) -> str:
    size = g.add("Squeeze", g.size(eqn.params["dim"]), np.array([0]))
    return g.add("Cast", size, to=type_code(dtype_of(eqn.outvars[0])))


@primitive("reshape")
def reshape(g: Builder, eqn: Any, x: Value) -> Value:
    return reshaped(g, x, eqn.params["new_sizes"])


def reshaped(g: Builder, x: Value, sizes: Sequence[Any]) -> Value:
    """``x`` in another shape; ONNX infers a single symbolic size itself."""
    if isinstance(x, np.ndarray) and is_known_size(sizes):
        return x.reshape(sizes)
    symbolic = [n for n, size in enumerate(sizes) if not isinstance(size, int)]
    if len(symbolic) == 1 and 0 not in [size for size in sizes if isinstance(size, int)]:
        return g.add("Reshape", x, np.array([s if isinstance(s, int) else -1 for s in sizes]))
    return g.add("Reshape", x, g.shape(sizes), allowzero=1)


@primitive("broadcast_in_dim")
def broadcast_in_dim(g: Builder, eqn: Any, x: Value, *dynamic: Value) -> Value:
    shape = eqn.params["shape"]
    axes = eqn.params["broadcast_dimensions"]
    given = eqn.invars[0].aval.shape
    missing = [n for n in range(len(shape)) if n not in axes]
    if missing and given:
        x = unsqueezed(g, x, missing)
    thin = [given[axes.index(n)] if n in axes else 1 for n in range(len(shape))]
    return x if given and tuple(thin) == tuple(shape) else g.add("Expand", x, g.shape(shape))


def unsqueezed(g: Builder, x: Value, axes: Sequence[int]) -> Value:
    """``x`` with new axes of size 1."""
    if isinstance(x, np.ndarray):
        return np.expand_dims(x, tuple(axes))
    return g.add("Unsqueeze", x, np.array(axes))


@primitive("squeeze")
def squeeze(g: Builder, eqn: Any, x: Value) -> str:
    return g.add("Squeeze", x, np.array(eqn.params["dimensions"]))


@primitive("transpose")
def transpose(g: Builder, eqn: Any, x: Value) -> Value:
    return transposed(g, x, eqn.params["permutation"])


def transposed(g: Builder, x: Value, permutation: Sequence[int]) -> Value:
    """``x`` with its axes in another order."""
    permutation = [int(axis) for axis in permutation]
    if permutation == sorted(permutation):
        return x
    return (
        x.transpose(permutation)
        if isinstance(x, np.ndarray)
        else g.add("Transpose", x, perm=permutation)
    )


@primitive("rev")
def reverse(g: Builder, eqn: Any, x: Value) -> str:
    axes = np.array(eqn.params["dimensions"])
    backwards = np.full_like(axes, -1)
    return g.add("Slice", x, backwards, np.full_like(axes, np.iinfo(np.int64).min), axes, backwards)


@primitive("concatenate")
def concatenate(g: Builder, eqn: Any, *inputs: Value) -> str:
    return g.add("Concat", *inputs, axis=eqn.params["dimension"])


@primitive("stack")
def stack(g: Builder, eqn: Any, *inputs: Value) -> str:
    axis = eqn.params["axis"]
    return g.add("Concat", *(g.add("Unsqueeze", x, np.array([axis])) for x in inputs), axis=axis)


@primitive("split")
def split(g: Builder, eqn: Any, x: Value) -> list[str]:
    sizes = g.shape(eqn.params["sizes"])
    names = g.add("Split", x, sizes, outputs=len(eqn.outvars), axis=eqn.params["axis"])
    return names if isinstance(names, list) else [names]


@primitive("slice")
def slice_(g: Builder, eqn: Any, x: Value) -> str:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    return g.add(
        "Slice", x, g.shape(starts), g.shape(limits), np.arange(len(starts)), np.array(strides)
    )


@primitive("dynamic_slice")
def dynamic_slice(g: Builder, eqn: Any, x: Value, *starts: Value) -> str:
    first = g.add("Concat", *(reshaped(g, start, (1,)) for start in starts), axis=0)
    axes = range(len(starts))
    return part(g, x, first, axes, eqn.invars[0].aval.shape, eqn.params["slice_sizes"])


def part(
    g: Builder,
    x: Value,
    first: Value,
    axes: Sequence[int],
    shape: Sequence[Any],
    sizes: Sequence[Any],
    squeezed: Sequence[int] = (),
) -> str:
    """A slice of ``x`` with these sizes; the start ``first`` is clamped so that the slice fits."""
    along, within = g.shape([sizes[n] for n in axes]), g.shape([shape[n] for n in axes])
    last = g.arithmetic("Sub", within, along)
    first = widened(g, first, np.int64)
    begin = g.add("Min", g.add("Max", first, np.array([0])), last)
    y = g.add("Slice", x, begin, g.add("Add", begin, along), np.array(axes))
    return g.add("Squeeze", y, np.array(squeezed)) if squeezed else y


@primitive("pad")
def pad(g: Builder, eqn: Any, x: Value, fill: Value) -> str:
    low, high, interior = zip(*eqn.params["padding_config"], strict=True)
    if any(interior):
        raise ValueError("ONNX has no operator for padding between elements")
    return g.add("Pad", x, g.shape([*low, *high]), fill)


@primitive("iota")
def iota(g: Builder, eqn: Any, *sizes: Value) -> str:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    count = g.add("Squeeze", g.size(shape[axis]), np.array([0]))
    numbers = g.add("Range", np.array(0), count, np.array(1))
    numbers = g.add("Cast", numbers, to=type_code(eqn.params["dtype"]))
    if len(shape) == 1:
        return numbers
    numbers = unsqueezed(g, numbers, [n for n in range(len(shape)) if n != axis])
    return g.add("Expand", numbers, g.shape(shape))


# ---- indexing ----


@primitive("gather")
def gather(g: Builder, eqn: Any, x: Value, indices: Value) -> str:
    """Gathers single indices along some axes and all of the others, or one slice of the array."""
    dims, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    if eqn.invars[1].aval.ndim == 1:
        axes, sizes = dims.start_index_map, eqn.params["slice_sizes"]
        return part(g, x, indices, axes, shape, sizes, dims.collapsed_slice_dims)
    index_shape, batch = eqn.invars[1].aval.shape[:-1], dims.operand_batching_dims
    whole = [n for n in range(len(shape)) if n not in (*dims.collapsed_slice_dims, *batch)]
    indexed = dims.start_index_map
    sizes = eqn.params["slice_sizes"]
    if any(sizes[n] != shape[n] for n in whole) or set(indexed) & set(whole):
        raise ValueError("ONNX has no operator for a gather of several slices of an axis")
    if eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP:
        last = g.arithmetic("Sub", g.shape([shape[n] for n in indexed]), np.array([1]))
        last = g.add("Cast", last, to=type_code(dtype_of(eqn.invars[1])))
        indices = g.add("Min", g.add("Max", indices, one(eqn, 0, 1)), last)
    if len(indexed) == 1 and not batch:
        (axis,) = indexed
        at = [n if n < axis else n + len(index_shape) - 1 for n in whole]
        if list(dims.offset_dims) == at:
            return g.add("Gather", x, reshaped(g, indices, index_shape), axis=axis)
    indices = g.add("Cast", indices, to=type_code(np.int64))
    of_batch = []
    for n in dims.start_indices_batching_dims:
        count = g.add("Squeeze", g.size(index_shape[n]), np.array([0]))
        along = g.add("Range", np.array(0), count, np.array(1))
        along = unsqueezed(g, along, [k for k in range(len(index_shape) + 1) if k != n])
        of_batch.append(g.add("Expand", along, g.shape([*index_shape, 1])))
    if of_batch:
        indices = g.add("Concat", *of_batch, indices, axis=len(index_shape))
    x = transposed(g, x, [*batch, *indexed, *whole])
    y = g.add("GatherND", x, indices)  # the axes of the indices, then the whole axes
    rest = iter(range(len(index_shape)))
    ndim = len(index_shape) + len(whole)
    order = [
        len(index_shape) + dims.offset_dims.index(n) if n in dims.offset_dims else next(rest)
        for n in range(ndim)
    ]
    return transposed(g, y, order)


# ---- reductions ----


def _reduction(operator: str) -> Translation:
    def translate(g: Builder, eqn: Any, x: Value) -> str:
        return g.add(operator, x, np.array(eqn.params["axes"]), keepdims=0)

    return translate


for _name, _operator in {
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_sum": "ReduceSum",
}.items():
    primitive(_name)(_reduction(_operator))


@primitive("reduce_and", "reduce_or")
def reduce_logical(g: Builder, eqn: Any, x: Value) -> str:
    operator = "ReduceMin" if eqn.primitive.name == "reduce_and" else "ReduceMax"
    number = g.add("Cast", x, to=type_code(np.int32))
    number = g.add(operator, number, np.array(eqn.params["axes"]), keepdims=0)
    return g.add("Cast", number, to=type_code(bool))


@primitive("argmax", "argmin")
def argmax(g: Builder, eqn: Any, x: Value) -> str:
    operator = {"argmax": "ArgMax", "argmin": "ArgMin"}[eqn.primitive.name]
    if is_bool(eqn.invars[0]):
        x = g.add("Cast", x, to=type_code(np.int32))
    found = g.add(operator, x, axis=eqn.params["axes"][0], keepdims=0)
    return g.add("Cast", found, to=type_code(eqn.params["index_dtype"]))


@primitive("cumsum")
def cumsum(g: Builder, eqn: Any, x: Value) -> str:
    return g.add("CumSum", x, np.array(eqn.params["axis"]), reverse=int(eqn.params["reverse"]))


# ---- products ----


@primitive("dot_general")
def dot_general(g: Builder, eqn: Any, a: Value, b: Value) -> str:
    ((left, right), (left_batch, right_batch)) = eqn.params["dimension_numbers"]
    ndims = [len(v.aval.shape) for v in eqn.invars]
    wide = computing_dtype(eqn.outvars[0])
    # Products of narrow numbers are exact in the type that the sum has.
    a, b = (
        x if computing_dtype(v) == wide else widened(g, x, wide)
        for x, v in zip((a, b), eqn.invars, strict=True)
    )
    if not left_batch and ndims[1] == 2 and left == (ndims[0] - 1,) and len(right) == 1:
        return g.add("MatMul", a, b if right == (0,) else transposed(g, b, (1, 0)))
    letters = iter(string.ascii_lowercase)
    batch = [next(letters) for _ in left_batch]
    summed = [next(letters) for _ in left]

    def axes(ndim: int, batching: Sequence[int], contracted: Sequence[int]) -> list[str]:
        named = dict(zip((*batching, *contracted), [*batch, *summed], strict=True))
        return [named[n] if n in named else next(letters) for n in range(ndim)]

    of_a, of_b = axes(ndims[0], left_batch, left), axes(ndims[1], right_batch, right)
    free = [n for n in (*of_a, *of_b) if n not in (*batch, *summed)]
    equation = f"{''.join(of_a)},{''.join(of_b)}->{''.join([*batch, *free])}"
    return g.add("Einsum", a, b, equation=equation)


@primitive("conv_general_dilated")
def convolution(g: Builder, eqn: Any, x: Value, w: Value) -> Value:
    params = eqn.params
    dims = params["dimension_numbers"]
    if any(n != 1 for n in (*params["lhs_dilation"], params["batch_group_count"])):
        raise ValueError("a convolution with lhs_dilation or batch_group_count is not translated")
    low, high = zip(*params["padding"], strict=True)
    y = g.add(
        "Conv",
        transposed(g, x, dims.lhs_spec),
        transposed(g, w, dims.rhs_spec),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        pads=[int(n) for n in (*low, *high)],
        strides=list(params["window_strides"]),
    )
    return transposed(g, y, np.argsort(dims.out_spec).tolist())


# ---- helpers ----


def dtype_of(v: Any) -> np.dtype:
    """The type of a variable or literal of an equation."""
    return np.dtype(v.aval.dtype)


def computing_dtype(v: Any) -> np.dtype:
    """The type in which operators compute a variable: float32 if its own is narrow."""
    return np.dtype(np.float32) if is_narrow(dtype_of(v)) else dtype_of(v)


def is_bool(v: Any) -> bool:
    """Whether a variable or literal holds booleans."""
    return np.issubdtype(v.aval.dtype, np.bool_)


def one(eqn: Any, number: float, of: int = 0) -> np.ndarray:
    """A number in the type of one of the inputs."""
    return np.asarray(number, dtype_of(eqn.invars[of]))


def widened(g: Builder, x: Value, dtype: Any) -> Value:
    """``x`` in another type."""
    if isinstance(x, np.ndarray):
        return x.astype(dtype)
    return g.add("Cast", x, to=type_code(dtype))


def is_narrow(dtype: Any) -> bool:
    """Whether this is a floating type of fewer than 32 bits.

    >>> is_narrow("bfloat16"), is_narrow("float32"), is_narrow("int8")
    (True, False, False)
    """
    dtype = np.dtype(dtype)
    return jax.dtypes.issubdtype(dtype, np.floating) and dtype.itemsize < 4
