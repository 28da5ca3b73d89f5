"""A step as a graph of equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import CELLS
from lstm_jax.cells import named
from lstm_jax.sequence.fused.graph import CHEAP, EXPENSIVE, TRANSCENDENTAL, StepGraph, bind


def test_inner_calls_are_inlined_and_literals_and_constants_known():
    table = jnp.arange(3.0)
    inner = jax.jit(lambda a: jax.jit(jnp.sin)(a) + 2.0)
    graph = StepGraph(lambda a: inner(a) * table, jnp.ones(3))
    assert [e.primitive for e in graph.equations] == ["sin", "add", "mul"]
    assert [value.shape for value in graph.consts.values()] == [(3,)]
    got = graph.evaluate(graph.outputs, bind(graph.inputs, [jnp.ones(3)]))
    np.testing.assert_allclose(got, (np.sin(1.0) + 2.0) * np.arange(3.0), rtol=1e-6)


def test_trees_of_arguments_and_results():
    graph = StepGraph(lambda a, b: {"sum": a["x"] + b, "a": a}, {"x": 1.0}, 2.0)
    assert jax.tree.structure(graph.inputs) == jax.tree.structure(({"x": 0}, 0))
    assert graph.outputs["a"] == graph.inputs[0]
    assert graph.evaluate(graph.outputs, bind(graph.inputs, ({"x": 3.0}, 4.0))) == {
        "sum": 7.0,
        "a": {"x": 3.0},
    }


def test_labels_refer_to_the_values_of_the_equations():
    graph = StepGraph(lambda a: named("gate", jnp.tanh(a)) * 2.0, 1.0)
    assert [e.outputs[0] for e in graph.equations if e.primitive == "tanh"] == [
        graph.labels["gate"]
    ]


def test_dependencies():
    graph = StepGraph(lambda a, b: (a * 2.0, a + b, jnp.sin(b)), 1.0, 1.0)
    (a, b), (double, total, sine) = graph.inputs, graph.outputs
    assert graph.depending_on([a]) == {a, double, total}
    assert [e.primitive for e in graph.needed_for([total], [a, b])] == ["add"]
    assert graph.needed_for([sine], [sine]) == []


def test_a_minimal_cut_stops_at_the_first_expensive_value():
    def step(h, w):
        z = h @ w
        gate = jnp.tanh(z * 2.0)
        return gate * gate, z

    graph = StepGraph(step, jnp.ones((2, 2)), jnp.ones((2, 2)))
    squared, z = graph.outputs
    (tanh,) = [e.outputs[0] for e in graph.equations if e.primitive == "tanh"]
    among = graph.depending_on(graph.inputs)
    cut = functools.partial(graph.minimal_cut, [squared], among, free=CHEAP)
    assert cut(known=graph.inputs) == [tanh]
    # A function of a stored value is recomputed: the product by 2 is cheap, tanh reads it.
    (scaled,) = [e.outputs[0] for e in graph.equations if e.primitive == "mul" and z in e.inputs]
    assert cut(known=[*graph.inputs, scaled]) == []


def test_a_copy_is_independent():
    graph = StepGraph(lambda a: a * 2.0, 1.0)
    other = graph.copy()
    other.equations = []
    other.new((2,), jnp.float32)
    assert len(graph.equations) == 1
    assert graph.size(*graph.inputs) == 1


def unclassified(step, *arguments):
    """Names of primitives in a step and its derivative that no class contains."""
    derivative = lambda arguments, tangents: jax.jvp(step, arguments, tangents)  # noqa: E731
    graph = StepGraph(derivative, arguments, arguments)
    classes = CHEAP | TRANSCENDENTAL | EXPENSIVE
    return {equation.primitive for equation in graph.equations} - classes


@pytest.mark.parametrize("name", list(CELLS))
def test_every_primitive_of_a_cell_is_classified(name):
    """A new version of JAX may trace a cell to other primitives; the lists must contain them."""
    space = (3, 2) if name == "conv_lstm" else ()
    cell = CELLS[name](hidden_size=4)
    params = cell.init(jax.random.key(0), 3)
    found = unclassified(cell.step, params, cell.zero_state((2, *space)), jnp.ones((2, *space, 3)))
    assert not found, f"add to CHEAP, TRANSCENDENTAL or EXPENSIVE in graph.py: {sorted(found)}"


def test_an_unclassified_primitive_is_named():
    assert unclassified(jax.lax.lgamma, jnp.ones(2)) == {"lgamma", "digamma"}


def test_classes_of_primitives_are_disjoint():
    assert not CHEAP & TRANSCENDENTAL | CHEAP & EXPENSIVE | TRANSCENDENTAL & EXPENSIVE
