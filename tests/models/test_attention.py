"""Attention, compared with NumPy loops over its equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.models.attention import ATTENTIONS, additive_scores, attend, dot_scores
from tests.arrays import params_of

TOLERANCE = 1e-5  # float32: sums of a few terms of size about one


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = {"query": (2, 4), "memory": (2, 5, 6), "keys": (2, 5, 4), "v": (4,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def test_scores(arrays):
    query, keys, v = (arrays[name] for name in ("query", "keys", "v"))
    dot, additive = dot_scores(query, keys), additive_scores(query, keys, v)
    for b in range(2):
        for s in range(5):
            expected = sum(query[b, a] * keys[b, s, a] for a in range(4))
            np.testing.assert_allclose(dot[b, s], expected, rtol=0, atol=TOLERANCE)
            expected = sum(v[a] * np.tanh(query[b, a] + keys[b, s, a]) for a in range(4))
            np.testing.assert_allclose(additive[b, s], expected, rtol=0, atol=TOLERANCE)


def test_masked_values_have_no_weight(arrays):
    scores = np.random.default_rng(1).normal(size=(2, 5))
    mask = np.array([[True, True, False, True, False], [True] * 5])
    values = np.where(mask[..., None], arrays["memory"], 1e30)
    context, weights = attend(scores, values, mask)
    for b in range(2):
        expected = softmax(scores[b][mask[b]])
        np.testing.assert_allclose(weights[b][mask[b]], expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(np.asarray(weights[b])[~mask[b]], 0)
        expected = expected @ values[b][mask[b]]
        np.testing.assert_allclose(context[b], expected, rtol=0, atol=10 * TOLERANCE)


def test_empty_sources(arrays):
    """Rows without source tokens have zero context and zero gradients, not NaN."""
    mask = np.array([[False] * 5, [True] * 5])
    values = jnp.asarray(arrays["memory"], jnp.float32)

    def total(scores):
        context, weights = attend(scores, values, mask)
        return context[0].sum() + weights[0].sum(), (context, weights)

    grads, (context, weights) = jax.grad(total, has_aux=True)(jnp.ones((2, 5)))
    assert not context[0].any() and not weights[0].any() and not grads.any()
    np.testing.assert_allclose(weights[1], 0.2, rtol=1e-6)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_modules(arrays, name):
    attention = ATTENTIONS[name](4, 6, rngs=nnx.Rngs(0))
    memory, mask = jnp.asarray(arrays["memory"]), np.arange(5) < np.array([[5], [3]])
    _, weights = attention(jnp.asarray(arrays["query"]), attention.keys(memory), memory, mask)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params_of(attention))
    for b, length in enumerate((5, 3)):
        scores = []
        for m in arrays["memory"][b, :length]:
            key = m @ params["memory_map"]["kernel"]
            query = arrays["query"][b]
            if name == "additive":
                query = query @ params["query_map"]["kernel"]
                scores.append(params["v"] @ np.tanh(query + key))
            else:
                scores.append(query @ key)
        expected = softmax(np.array(scores))
        np.testing.assert_allclose(weights[b, :length], expected, rtol=0, atol=TOLERANCE)
