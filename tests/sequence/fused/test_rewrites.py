"""Each rewrite of a step graph leaves its values unchanged."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import CELLS, unroll
from lstm_jax.sequence.fused import StepGraph, rewrites
from lstm_jax.sequence.fused.graph import bind
from lstm_jax.sequence.fused.scan import with_finite_coefficients

T, B, D, H = 4, 2, 3, 4
SPACE = {"conv_lstm": (3, 2)}


def step_and_arguments(name):
    """A cell's step, and random float64 arguments of it."""
    rng = np.random.default_rng(0)
    cell = CELLS[name](hidden_size=H, param_dtype="float64")
    space = SPACE.get(name, ())
    shapes = jax.eval_shape(lambda: (cell.init(jax.random.key(0), D), cell.zero_state((B, *space))))
    params, state = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    return cell.step, (params, state, rng.normal(size=(B, *space, D)))


def derivative(step):
    """``(arguments, tangents) -> (values, tangents)`` of a step."""
    return lambda arguments, tangents: jax.jvp(step, arguments, tangents)


def evaluated(graph, arguments):
    return jax.tree.leaves(graph.evaluate(graph.outputs, bind(graph.inputs, arguments)))


def assert_same_values(graph, arguments, expected):
    for got, wanted in zip(evaluated(graph, arguments), jax.tree.leaves(expected), strict=True):
        # Sums of about ten float64 terms in another order; slopes reach several hundred.
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", list(CELLS))
def test_rewrites_of_a_step_and_its_derivative(name):
    """All of them, one after another, as the engine applies them."""
    with jax.enable_x64(True):
        step, arguments = step_and_arguments(name)
        graph = StepGraph(step, *arguments)
        expected = step(*arguments)
        assert_same_values(graph, arguments, expected)
        rewrites.merge_gates(graph)
        assert_same_values(graph, arguments, expected)

        tangents = jax.tree.map(np.cos, arguments)
        both = arguments, tangents
        graph = StepGraph(derivative(step), *both)
        expected = derivative(step)(*both)
        carry_tangents = jax.tree.leaves(graph.inputs[1][1])
        rewrites.separate_sums(graph, graph.depending_on(carry_tangents))
        assert_same_values(graph, both, expected)
        linear = graph.depending_on(jax.tree.leaves(graph.inputs[1]))
        changing = graph.depending_on(jax.tree.leaves((graph.inputs[0][1:], graph.inputs[1])))
        rewrites.transpose_weights_once(graph, linear, changing)
        assert_same_values(graph, both, expected)
        linear_in_carry = graph.depending_on(carry_tangents)
        rewrites.factor_out_products(graph, linear_in_carry, jax.tree.leaves(graph.outputs))
        assert_same_values(graph, both, expected)


def test_sums_independent_of_the_carry_come_first():
    graph = StepGraph(lambda h, a, b, c: ((a + h) + b) + (c + h * 2.0), *[1.0] * 4)
    rewrites.separate_sums(graph, graph.depending_on([graph.inputs[0]]))
    dependent = graph.depending_on([graph.inputs[0]])
    sums = [e for e in graph.equations if e.primitive == "add"]
    assert sum(e.outputs[0] not in dependent for e in sums) == 2  # a + b, and + c
    assert float(graph.evaluate(graph.outputs, bind(graph.inputs, [1.0, 2.0, 3.0, 4.0]))) == 12.0


def test_a_weight_is_transposed_once():
    def products(u, h, dh):
        _, tangents = jax.jvp(lambda h: (h @ u, jnp.sin(h) @ u), (h,), (dh,))
        return tangents

    arguments = np.ones((3, 4)), np.ones((2, 3)), np.ones((2, 3))
    graph = StepGraph(products, *arguments)
    u, h, dh = graph.inputs
    rewrites.transpose_weights_once(graph, graph.depending_on([dh]), graph.depending_on([h, dh]))
    transposes = [e for e in graph.equations if e.inputs == (u,)]
    assert [e.primitive for e in transposes] == ["transpose"]
    readers = [e for e in graph.equations if transposes[0].outputs[0] in e.inputs]
    assert [e.primitive for e in readers] == ["dot_general"] * 2
    assert_same_values(graph, arguments, products(*arguments))


def test_coefficients_that_are_not_finite_become_zero():
    """Finite ones stay as they are; each function is singular at zero."""
    function = lambda x: jnp.sqrt(x) + jnp.log(x) + 1 / x + x / jnp.abs(x) + jnp.cbrt(x)  # noqa: E731
    step = lambda x, dx: jax.jvp(function, (x,), (dx,))[1]  # noqa: E731
    x = np.array([0.0, np.nan, np.inf, 1.0, 2.0], np.float32)
    graph = StepGraph(step, x, x)
    x_, dx_ = graph.inputs
    rewrites.make_coefficients_finite(graph, graph.depending_on([dx_]), graph.depending_on([x_]))
    for dx in (np.zeros(5, np.float32), np.ones(5, np.float32)):
        found = graph.evaluate(graph.outputs, bind(graph.inputs, (x, dx)))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[3:], step(x, dx)[3:], rtol=1e-6)
        assert (found[:3] == 0).all() or dx.any()


def test_a_function_with_finite_coefficients_has_its_values_and_derivatives():
    scale = jnp.array([1.0, 2.0])

    def function(x, n):
        return {"y": jnp.sin(x * scale) / x, "n": n + 1}

    finite = with_finite_coefficients(function)
    x, n = jnp.array([0.5, 2.0]), jnp.array(3)
    chex.assert_trees_all_equal(finite(x, n), function(x, n))
    total = lambda f, x, scale: (f(x * scale, n)["y"] ** 2).sum()  # noqa: E731
    for derivative in (jax.grad, jax.hessian, jax.jacfwd):
        chex.assert_trees_all_close(
            *(
                derivative(functools.partial(total, f), (0, 1))(x, scale)
                for f in (finite, function)
            ),
            rtol=1e-5,
        )
    np.testing.assert_array_equal(finite(0 * x, n)["y"], [np.nan, np.nan])
    assert (jax.grad(lambda x: finite(x, n)["y"][0])(jnp.array([1.0, 0.0]))[1] == 0).all()


class TestReusableBuffers:
    def found(self, step, *examples):
        graph = StepGraph(step, *examples)
        (z, _), outputs = graph.inputs, graph.outputs
        found = rewrites.reusable_buffers(graph, [z], [*outputs], [*outputs])
        return found, z, outputs

    def test_a_value_that_only_one_result_reads(self):
        found, z, (_, gate) = self.found(lambda z, h: (h, jnp.tanh(z + h)), *[jnp.ones(2)] * 2)
        assert found == {z: gate}

    def test_a_value_that_another_result_also_reads(self):
        found, _, _ = self.found(lambda z, h: (h * z, jnp.tanh(z + h)), *[jnp.ones(2)] * 2)
        assert found == {}

    def test_another_shape(self):
        examples = jnp.ones(2), jnp.ones((3, 2))
        found, _, _ = self.found(lambda z, h: (h, jnp.tanh(z + h)), *examples)
        assert found == {}


@dataclasses.dataclass(frozen=True)
class Gates:
    """Gates that are not adjacent, or a slice of gates with several functions."""

    kind: str
    hidden_size: int = D

    def init(self, key, input_size):
        return {"w": jnp.eye(D) * 0.5, "r": jnp.array(0.3)}

    def zero_state(self, batch_shape=()):
        return jnp.zeros((*batch_shape, D))

    def step(self, params, h, x):
        z = x @ params["w"] + h
        h = {
            "two functions of one part": lambda: jax.nn.sigmoid(z) * jnp.tanh(z),
            "one function twice": lambda: jax.nn.sigmoid(z) * jax.nn.silu(z),
            "overlapping parts": lambda: jnp.pad(
                jax.nn.sigmoid(z[..., :2]) * jnp.tanh(z[..., 1:]),
                [(0, 0)] * (z.ndim - 1) + [(0, 1)],
            ),
            "a gap between": lambda: jnp.concatenate(
                [jax.nn.sigmoid(z[..., :1]), z[..., 1:2], jnp.tanh(z[..., 2:])], -1
            ),
            "a scalar": lambda: jax.nn.sigmoid(params["r"]) * jnp.tanh(z),
            "a number": lambda: jax.nn.silu(2.0) * jnp.tanh(z),
        }[self.kind]()
        return h, h


@pytest.mark.parametrize(
    "kind",
    [
        *("two functions of one part", "one function twice", "overlapping parts"),
        *("a gap between", "a scalar", "a number"),
    ],
)
def test_gates_of_any_shape(kind):
    with jax.enable_x64(True):
        xs = np.random.default_rng(0).normal(size=(T, B, D))

        def loss(params, xs, state, engine):
            state, ys = unroll(Gates(kind), params, xs, state, engine=engine)
            return jnp.sin(ys).sum() + jnp.cos(state).sum()

        args = {"w": np.eye(D) * 0.5, "r": np.array(0.3)}, xs, np.ones((B, D))
        got, expected = (
            jax.jit(jax.value_and_grad(functools.partial(loss, engine=engine), (0, 1, 2)))(*args)
            for engine in ("fused", "scan")
        )
        chex.assert_trees_all_close(got, expected, rtol=1e-12, atol=1e-13)
