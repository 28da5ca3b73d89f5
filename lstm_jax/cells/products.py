"""Products of narrow types, such as bfloat16, whose derivatives are also narrow products.

Products of narrow numbers are summed in float32, so the cotangent of a product is also float32.
JAX multiplies it in that type by the other operand.  Two of the three products of a training step
are then as slow as in float32.  Here, the transpose of a product first rounds the cotangent to the
type of the operands, r(dy).  It is then itself a narrow product:

    y  = x w           x and w are narrow, y is in float32
    dx = r(dy) w^T     summed in float32
    dw = x^T r(dy)     summed in float32

Values and tangents are those of the ordinary product.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The type in which products of this type are summed: float32, or the type itself if wider.

    >>> accumulation_dtype("bfloat16"), accumulation_dtype("float64")
    (dtype('float32'), dtype('float64'))
    """
    # promote_types would raise an error if the user set promotion to strict.
    return jnp.dtype("float32") if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w``, multiplied in the operands' type and summed in float32 or wider.

    >>> dot(jnp.ones((2, 3), "bfloat16"), jnp.ones((3, 4), "bfloat16")).dtype
    dtype('float32')
    """
    return product(jax.lax.dot_general, x, w, dimension_numbers=(((x.ndim - 1,), (0,)), ((), ())))


def product(
    function: Callable[..., jax.Array], x: jax.Array, w: jax.Array, **options: Any
) -> jax.Array:
    """Multiplies with a function of ``jax.lax`` and sums in float32 or wider.

    Args:
      function: ``dot_general`` or ``conv_general_dilated``.
      x: the first operand.
      w: the second operand; the product is computed in the wider type of the two.
      options: arguments of the function.

    >>> one_each = ((1,), (1,)), ((0,), (0,))
    >>> x, w = jnp.ones((5, 3), "bfloat16"), jnp.ones((5, 3, 4), "bfloat16")
    >>> product(jax.lax.dot_general, x, w, dimension_numbers=one_each).shape
    (5, 4)
    """
    dtype = jnp.result_type(x, w)
    sums = accumulation_dtype(dtype)
    function = functools.partial(function, preferred_element_type=sums, **options)
    x, w = x.astype(dtype), w.astype(dtype)
    return function(x, w) if sums == dtype else _with_narrow(function, x, w)


# ---- the primitives ----


def _with_narrow(function: Callable[..., jax.Array], *arguments: jax.Array) -> Any:
    """Evaluates a function of arrays with the primitives in :data:`_NARROW`."""
    closed = jax.make_jaxpr(function)(*arguments)
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *arguments), strict=True))
    value_of = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
        primitive = _NARROW.get(eqn.primitive, eqn.primitive)
        result = primitive.bind(*map(value_of, eqn.invars), **eqn.params)
        values.update(
            zip(eqn.outvars, result if primitive.multiple_results else [result], strict=True)
        )
    (output,) = jaxpr.outvars
    return value_of(output)


def _narrow(primitive: Primitive, cotangent_of: Callable[..., jax.Array]) -> Primitive:
    """A bilinear primitive whose transpose rounds the cotangent to the type of the operands.

    Its name, its parameters and its other rules are those of ``primitive``.

    Args:
      primitive: ``dot_general`` or ``conv_general_dilated``.
      cotangent_of: computes the cotangent of the operand at a position (0 or 1), called as
        ``cotangent_of(position, cotangent, known, unknown=unknown, **params)`` with the other
        operand and the abstract value of this one.
    """
    narrow = Primitive(primitive.name)
    narrow.def_impl(primitive.bind)
    narrow.def_effectful_abstract_eval(primitive.abstract_eval)
    mlir.register_lowering(narrow, mlir.lower_fun(primitive.bind, multiple_results=False))
    mlir.register_lowering(
        narrow, mlir.lower_fun(_on_cpu(primitive), multiple_results=False), "cpu"
    )

    def transpose(position: int, cotangent: jax.Array, lhs: Any, rhs: Any, **params: Any) -> Any:
        unknown, known = (lhs, rhs) if position == 0 else (rhs, lhs)
        rule = functools.partial(cotangent_of, position, unknown=unknown.aval, **params)
        return _with_narrow(rule, cotangent.astype(known.dtype), known)

    def batch(axis: Any, operands: Any, dims: Any, **params: Any) -> tuple[jax.Array, Any]:
        dim = None

        def rule(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
            nonlocal dim
            of_primitive = batching.fancy_primitive_batchers[primitive]
            result, dim = of_primitive(axis, [lhs, rhs], dims, **params)
            return result

        return _with_narrow(rule, *operands), dim

    ad.defbilinear(narrow, *(functools.partial(transpose, position) for position in (0, 1)))
    batching.fancy_primitive_batchers[narrow] = batch
    return narrow


def _on_cpu(primitive: Primitive) -> Callable[..., jax.Array]:
    """The primitive, followed by an optimization barrier.

    XLA's CPU compiler chooses a library for narrow products by the axes of the product.  Without
    the barrier, it may later move a transpose of the result into the product, which the library
    then cannot run.
    """
    return lambda *operands, **params: jax.lax.optimization_barrier(
        primitive.bind(*operands, **params)
    )


def _cotangent_of_dot(
    position: int,
    cotangent: jax.Array,
    known: jax.Array,
    *,
    unknown: Any,
    dimension_numbers: Any,
    out_sharding: Any,
    **params: Any,
) -> jax.Array:
    """The cotangent of one operand of ``dot_general``, with the order of the operands preserved.

    JAX always puts the cotangent first and transposes the result.  XLA's CPU compiler would then
    transpose the cotangent of a step's gates, which is the larger operand.
    """
    del out_sharding
    contracted, batched = ([tuple(axes) for axes in pair] for pair in dimension_numbers)
    own, other = contracted[position], contracted[1 - position]
    batch, other_batch = batched[position], batched[1 - position]
    kept = [axis for axis in range(unknown.ndim) if axis not in (*own, *batch)]
    other_kept = [axis for axis in range(known.ndim) if axis not in (*other, *other_batch)]
    own = [axis for _, axis in sorted(zip(other, own, strict=True))]
    begin = len(batch) + (len(kept) if position == 0 else 0)
    summed = tuple(range(begin, begin + len(other_kept)))
    order = [*batch, *kept, *own] if position == 0 else [*batch, *own, *kept]
    pairs = [(summed, tuple(other_kept)), (tuple(range(len(batch))), other_batch)]
    axes: Any = tuple(pair if position == 0 else pair[::-1] for pair in pairs)
    operands = (cotangent, known) if position == 0 else (known, cotangent)
    result = jax.lax.dot_general(*operands, axes, out_sharding=_sharding(unknown, order), **params)
    result = jax.lax.transpose(result, [order.index(axis) for axis in range(unknown.ndim)])
    return result.astype(unknown.dtype)


def _sharding(aval: Any, order: list[int]) -> jax.sharding.NamedSharding | None:
    """The sharding of an array with reordered axes; None unless the mesh has explicit axes."""
    sharding = aval.sharding
    if jax.sharding.AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    spec = sharding.spec
    return sharding.update(spec=spec.update(partitions=tuple(spec[axis] for axis in order)))


def _cotangent_of_conv(
    position: int, cotangent: jax.Array, known: jax.Array, *, unknown: Any, **params: Any
) -> jax.Array:
    """The cotangent of one operand of ``conv_general_dilated``, by JAX's own rule."""
    operands: list[Any] = [known, known]
    operands[position] = ad.UndefinedPrimal(unknown)
    transposed = ad.get_primitive_transpose(jax.lax.conv_general_dilated_p)
    return transposed(cotangent, *operands, **params)[position]


_NARROW: dict[Primitive, Primitive] = {}
_NARROW |= {
    jax.lax.dot_general_p: _narrow(jax.lax.dot_general_p, _cotangent_of_dot),
    jax.lax.conv_general_dilated_p: _narrow(jax.lax.conv_general_dilated_p, _cotangent_of_conv),
}
