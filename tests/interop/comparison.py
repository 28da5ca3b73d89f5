"""Compares our layers with those of other libraries: outputs, last states and all gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.sequence import Bidirectional, Stack, unroll

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

NUMBER = 50  # random configurations per library


def sizes(rng):
    """D and H, with few distinct values, since every operation is compiled for each shape."""
    kinds, shares = ((1, 4), (3, 2), (5, 7)), (0.46, 0.46, 0.08)
    return kinds[rng.choice(3, p=shares)]


def draw(rng, *shape, dtype="float32"):
    """Random numbers of the typical size of weights and inputs."""
    return rng.uniform(-1, 1, shape).astype(dtype)


def draw_like(rng, tree):
    return jax.tree.map(lambda leaf: draw(rng, *np.shape(leaf), dtype=str(leaf.dtype)), tree)


def plainly(layer):
    """The layer with the plain scan, which compiles fastest."""
    if isinstance(layer, Bidirectional):
        return dataclasses.replace(layer, engine="scan")
    layers = [(name, plainly(one) if hasattr(one, "apply") else one) for name, one in layer.layers]
    return dataclasses.replace(layer, layers=layers, engine="scan")


def run(layer, params, xs, state, lengths=None):
    """Last state and outputs of a layer or cell; time is the first axis."""
    if isinstance(layer, Stack | Bidirectional):
        return plainly(layer).apply(params, xs, state, lengths=lengths)
    return unroll(layer, params, xs, state, engine="scan", lengths=lengths)


def zero_state(layer, batch_shape, dtype):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), layer.zero_state(batch_shape))


def value_and_gradients(from_library, arrays, xs, state, lengths, weigh):
    """The outputs, last state and gradients of our layer for a library's arrays.

    Args:
      from_library: the conversion, which is also differentiated.
      arrays: the library's, nested or not.
      xs: ``[T, ...]``.
      state: our layer's initial state.
      lengths: the lengths of rows, or None.
      weigh: a function of the outputs and the last state, which is differentiated.

    Returns:
      ``((ys, state), gradients)``, gradients by the library's arrays, ``xs`` and ``state``.
    """

    def loss(arrays, xs, state):
        layer, params = from_library(arrays)
        last, ys = run(layer, params, xs, state, lengths)
        return weigh(ys, last), (ys, last)

    graded = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    with jax.disable_jit():  # since compilation takes far longer than a few small steps
        (_, results), gradients = graded(arrays, jnp.asarray(xs), state)
    return results, gradients


def assert_close(ours, theirs, terms, what=""):
    """Equal up to rounding of sums of ``terms`` numbers of order 1, in the arrays' type."""
    ours = np.asarray(ours)
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    bound = 8 * np.sqrt(terms) * np.finfo(ours.dtype).eps
    np.testing.assert_allclose(
        ours, theirs, rtol=bound, atol=bound * max(1, np.abs(theirs).max(initial=0)), err_msg=what
    )


def assert_cells_agree(from_library, arrays, step, carry, as_state, xs, rng):
    """A cell of a JAX library and ours: outputs, last state and every gradient agree.

    Args:
      from_library: the conversion of ``arrays``.
      arrays: the library's parameters, nested or not.
      step: the library's cell, ``step(arrays, carry, x) -> (carry, y)``.
      carry: its initial carry.
      as_state: converts such a carry to our state.
      xs: ``[T, ...]``.
      rng: samples the weights of the differentiated sum.
    """

    def theirs(arrays, xs, carry):
        ys = []
        for x in xs:
            carry, y = step(arrays, carry, x)
            ys.append(y)
        return jnp.stack(ys), as_state(carry)

    def ours(arrays, xs, carry):
        layer, params = from_library(arrays)
        state, ys = run(layer, params, xs, as_state(carry))
        return ys, state

    args = arrays, xs, carry
    weights = draw_like(rng, jax.eval_shape(theirs, *args))

    def value_and_gradients(function):
        """Values are arguments of the program, so equal configurations share one compilation."""

        def loss(args, weights):
            results = function(*args)
            return sum(jax.tree.leaves(jax.tree.map(weighed, weights, results))), results

        (_, results), gradients = quick_jit(jax.value_and_grad(loss, has_aux=True))(args, weights)
        return results, gradients

    terms = 8 * xs.size
    got, expected = value_and_gradients(ours), value_and_gradients(theirs)
    named = jax.tree_util.tree_leaves_with_path(got)
    for (path, one), other in zip(named, jax.tree.leaves(expected), strict=True):
        assert_close(one, other, terms, jax.tree_util.keystr(path))


def weighed(weights, array):
    return (weights * array).sum()
