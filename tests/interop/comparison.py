"""Our layers beside those of other libraries: outputs, last states and every gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.sequence import Bidirectional, Stack, unroll

NUMBER = 50  # of random configurations a library


def draw(rng, *shape, dtype="float32"):
    """Numbers of the size that weights and inputs have."""
    return rng.uniform(-1, 1, shape).astype(dtype)


def draw_like(rng, tree):
    return jax.tree.map(lambda leaf: draw(rng, *np.shape(leaf), dtype=str(leaf.dtype)), tree)


def plainly(layer):
    """The layer run by the plain scan, which compiles fastest."""
    if isinstance(layer, Bidirectional):
        return dataclasses.replace(layer, engine="scan")
    layers = [(name, plainly(one) if hasattr(one, "apply") else one) for name, one in layer.layers]
    return dataclasses.replace(layer, layers=layers, engine="scan")


def run(layer, params, xs, state, lengths=None):
    """Last state and outputs of a layer or cell, time leading."""
    if isinstance(layer, Stack | Bidirectional):
        return plainly(layer).apply(params, xs, state, lengths=lengths)
    return unroll(layer, params, xs, state, engine="scan", lengths=lengths)


def zero_state(layer, batch_shape, dtype):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), layer.zero_state(batch_shape))


def value_and_gradients(from_library, arrays, xs, state, lengths, weigh):
    """What ours gives for a library's arrays: outputs and last state, and gradients.

    Args:
      from_library: the conversion, which is differentiated with all else.
      arrays: the library's, nested or not.
      xs: ``[T, ...]``.
      state: our layer's first state.
      lengths: of rows, or None.
      weigh: the number of outputs and last state that is differentiated, as a sum.

    Returns:
      ``((ys, state), gradients)``, gradients by the library's arrays, ``xs`` and ``state``.
    """

    def loss(arrays, xs, state):
        layer, params = from_library(arrays)
        last, ys = run(layer, params, xs, state, lengths)
        return weigh(ys, last), (ys, last)

    graded = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, results), gradients = graded(arrays, jnp.asarray(xs), state)
    return results, gradients


def assert_close(ours, theirs, terms, what=""):
    """Equal but for rounding: of sums of ``terms`` numbers of order 1 each, in the arrays' type."""
    ours = np.asarray(ours)
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    bound = 8 * np.sqrt(terms) * np.finfo(ours.dtype).eps
    np.testing.assert_allclose(
        ours, theirs, rtol=bound, atol=bound * max(1, np.abs(theirs).max(initial=0)), err_msg=what
    )
