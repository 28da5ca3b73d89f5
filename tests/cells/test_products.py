import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lstm_jax import CELLS, unroll
from lstm_jax.cells.products import dot, product

rng = np.random.default_rng(0)

DOT = functools.partial(product, jax.lax.dot_general)
CONVOLUTION = functools.partial(
    product,
    jax.lax.conv_general_dilated,
    window_strides=(1,),
    padding="SAME",
    dimension_numbers=("NXC", "XIO", "NXC"),
)

# A function of two operands, and their shapes.  Axes of dot_general: of x and w, contracted, batch.
PRODUCTS = {
    "matrices": (dot, (3, 4), (4, 5)),
    "time and batch": (dot, (6, 3, 4), (4, 5)),
    "vector": (dot, (4,), (4, 5)),
    "two axes": (
        functools.partial(DOT, dimension_numbers=(((2, 0), (0, 2)), ((), ()))),
        (2, 3, 4),
        (4, 5, 2),
    ),
    "in batches": (
        functools.partial(DOT, dimension_numbers=(((1,), (2,)), ((2, 0), (1, 3)))),
        (2, 4, 3),
        (5, 3, 4, 2),
    ),
    "convolution": (CONVOLUTION, (2, 5, 3), (3, 3, 4)),
}
over_products = pytest.mark.parametrize("name", PRODUCTS)
over_types = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


def operands(name, dtype):
    """The product, its operands, a cotangent that is not narrow, and the product in float64."""
    function, x, w = PRODUCTS[name]
    x, w = (jnp.asarray(rng.normal(size=shape), dtype) for shape in (x, w))
    cotangent = jnp.asarray(rng.normal(size=function(x, w).shape), jnp.float32)
    return function, x, w, cotangent


def exact(name, x, w):
    """The product in float64, by JAX."""
    return PRODUCTS[name][0](x.astype(jnp.float64), w.astype(jnp.float64))


def multiplied(text):
    """Types of the operands of all products in a lowered program."""
    found = re.findall(
        r"stablehlo\.(?:dot_general|convolution).*: \(tensor<([^>]*)>, tensor<([^>]*)>\)", text
    )
    return [shape.split("x")[-1] for pair in found for shape in pair]


@over_types
@over_products
def test_values_equal_those_of_the_ordinary_product(name, dtype):
    function, x, w, _ = operands(name, dtype)
    y = jax.jit(function)(x, w)
    assert y.dtype == jnp.float32
    with jax.enable_x64(True):
        # Up to 9 products of order 1, each exact, summed in float32.
        np.testing.assert_allclose(y, exact(name, x, w), rtol=0, atol=9 * 2e-7)


@over_types
@over_products
def test_cotangents_equal_those_of_a_rounded_cotangent(name, dtype):
    function, x, w, cotangent = operands(name, dtype)
    pullback = jax.jit(lambda x, w, cotangent: jax.vjp(function, x, w)[1](cotangent))
    given = pullback(x, w, cotangent)
    assert [g.dtype for g in given] == [dtype, dtype]
    with jax.enable_x64(True):
        rounded = cotangent.astype(dtype).astype(jnp.float64)
        wide = x.astype(jnp.float64), w.astype(jnp.float64)
        expected = jax.vjp(PRODUCTS[name][0], *wide)[1](rounded)
    for got, right in zip(given, expected, strict=True):
        # The result is rounded once; sums of up to 18 terms of order 1 may cancel.
        eps = float(jnp.finfo(dtype).eps)
        got = np.asarray(got, np.float64)
        np.testing.assert_allclose(got, right, rtol=eps / 2 * 1.01, atol=18 * 2e-7)


@over_products
def test_tangents_equal_those_of_the_ordinary_product(name):
    function, x, w, _ = operands(name, "bfloat16")
    _, tangent = jax.jit(lambda x, w: jax.jvp(function, (x, w), (x, w)))(x, w)
    np.testing.assert_allclose(tangent, 2 * function(x, w), rtol=1e-6, atol=1e-6)


def test_wide_operands_are_left_to_jax():
    x, w = jnp.ones((2, 3)), jnp.ones((3, 4))
    jaxpr = jax.make_jaxpr(dot)(x, w)
    assert [eqn.primitive for eqn in jaxpr.eqns] == [jax.lax.dot_general_p]
    with jax.enable_x64(True):
        assert dot(x.astype(jnp.float64), w).dtype == jnp.float64


# ---- transformations ----


def loss(x, w):
    return jnp.sin(dot(x, w)).sum()


X = jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16)
W = jnp.asarray(rng.normal(size=(4, 5)), jnp.bfloat16)


def by_rows(x, w):
    return jax.vmap(jax.grad(loss, (0, 1)), (0, None))(x[:, None], w)


def over_steps(x, w):
    def body(total, x):
        return total + loss(x, w), None

    return jax.grad(lambda *args: jax.lax.scan(body, 0.0, x)[0], (0, 1))(x, w)


TRANSFORMED = {
    "grad": jax.grad(loss, (0, 1)),
    "vmap of grad": by_rows,
    "vmap over the second operand": lambda x, w: jax.vmap(jax.grad(loss, (0, 1)))(
        x[:, None], jnp.stack([w] * 8)
    ),
    "grad of vmap": jax.grad(lambda x, w: jax.vmap(loss, (0, None))(x[:, None], w).sum(), (0, 1)),
    "checkpoint": jax.grad(jax.checkpoint(loss), (0, 1)),
    "scan": lambda x, w: jax.grad(
        lambda x, w: jax.lax.scan(lambda s, x: (s + loss(x, w), None), 0.0, x[:, None])[0], (0, 1)
    )(x, w),
    "transposed weights": jax.grad(lambda x, w: loss(x, w.T.T), (0, 1)),
    "linearize": lambda x, w: jax.linearize(jax.grad(loss, (0, 1)), x, w)[1](x, w),
    "forward over reverse": lambda x, w: jax.jvp(jax.grad(loss, (0, 1)), (x, w), (x, w))[1],
    "reverse over reverse": jax.grad(
        lambda x, w: sum((g.astype(jnp.float32) ** 2).sum() for g in jax.grad(loss, (0, 1))(x, w)),
        (0, 1),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_every_transformation_multiplies_narrow_numbers(name):
    lowered = jax.jit(TRANSFORMED[name]).lower(X, W)
    types = multiplied(lowered.as_text())
    assert len(types) >= 4
    assert set(types) == {"bf16"}
    wide = X.astype(jnp.float32), W.astype(jnp.float32)
    for got, right in zip(lowered.compile()(X, W), TRANSFORMED[name](*wide), strict=True):
        got, right = np.asarray(got, np.float32), np.asarray(right)
        # At most six rounding errors follow one another, of cotangents twice and of their products.
        bound = 6 * 2.0**-9 * np.linalg.norm(right)
        assert np.linalg.norm(got - right) <= bound


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map(check_vma):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(x, w):
        by_x, by_w = jax.grad(loss, (0, 1))(x, jax.lax.pcast(w, "data", to="varying"))
        return by_x, jax.lax.psum(by_w.astype(jnp.float32), "data")

    specs = {"in_specs": (P("data"), P()), "out_specs": (P("data"), P())}
    shared = jax.jit(jax.shard_map(local, mesh=mesh, **specs, check_vma=check_vma))
    assert set(multiplied(shared.lower(X, W).as_text())) == {"bf16"}
    for got, right in zip(shared(X, W), jax.grad(loss, (0, 1))(X, W), strict=True):
        np.testing.assert_array_equal(got.astype(jnp.float32), right.astype(jnp.float32))


def test_with_explicit_shardings():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x, w = jax.device_put(X, P("data", None)), jax.device_put(W, P(None, None))
        by_x, by_w = jax.jit(jax.grad(loss, (0, 1)))(x, w)
        assert jax.typeof(by_x).sharding.spec == P("data", None)
        assert jax.typeof(by_w).sharding.spec == P(None, None)
    for got, right in zip((by_x, by_w), jax.grad(loss, (0, 1))(X, W), strict=True):
        np.testing.assert_array_equal(got.astype(jnp.float32), right.astype(jnp.float32))


def test_export_with_derivative():
    exported = jax.export.export(jax.jit(jax.grad(loss, (0, 1))))(X, W)
    again = jax.export.deserialize(exported.serialize(vjp_order=0))
    for got, right in zip(again.call(X, W), jax.grad(loss, (0, 1))(X, W), strict=True):
        np.testing.assert_array_equal(got.astype(jnp.float32), right.astype(jnp.float32))


def test_export_for_other_platforms_with_symbolic_sizes():
    rows = jax.export.symbolic_shape("rows")
    x = jax.ShapeDtypeStruct((*rows, 4), jnp.bfloat16)
    exported = jax.export.export(jax.jit(jax.grad(loss, (0, 1))), platforms=("cuda", "tpu"))(x, W)
    assert set(multiplied(exported.mlir_module())) == {"bf16"}


# ---- in cells ----

ENGINES = [
    *itertools.product(["scan", "fused"], ["full", "recompute", "sqrt"]),
    ("fused", "offload"),
]


@over_types
@pytest.mark.parametrize("name", ["lstm", "gru", "slstm", "conv_lstm", "mogrifier"])
@pytest.mark.parametrize(("engine", "memory"), ENGINES)
def test_every_engine_multiplies_narrow_numbers(name, engine, memory, dtype):
    cell = CELLS[name](4, dtype=dtype)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
    space = (3,) * (cell.num_feature_axes - 1)
    xs = jax.ShapeDtypeStruct((6, 2, *space, 3), jnp.float32)

    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(params, xs):
        _, ys = unroll(cell, params, xs, engine=engine, memory=memory)
        return ys.astype(jnp.float32).sum()

    types = multiplied(jax.jit(gradient).lower(params, xs).as_text())
    # A product with x and one with h, each with two in the backward pass.
    assert len(types) >= 2 * 2 * 3
    assert set(types) == {"bf16" if dtype == "bfloat16" else "f16"}
