"""The encoder-decoder Transformer, compared with a NumPy loop, partial calls and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.data.tokens import END
from lstm_jax.models import Compiled, TransformerSeq2Seq
from lstm_jax.tasks.translating import Search, begun, searched
from tests.arrays import doubled, in_float64, params_of, with_params
from tests.models.test_transformer import norm, turned

# Sums of about ten terms in float32 (eps 1.2e-7) through two blocks of normalised features.
TOLERANCE = 2e-5
V, D, HEADS, S, T = 9, 8, 2, 6, 11
rng = np.random.default_rng(0)
SOURCE = rng.integers(1, V, (3, S)).astype(np.int32)
TOKENS = rng.integers(1, V, (3, T)).astype(np.int32)
LENGTHS = np.array([6, 4, 1], np.int32)


def built(num_layers=2, **options):
    model = TransformerSeq2Seq(V, D, num_layers, num_heads=HEADS, rngs=nnx.Rngs(0), **options)
    return doubled(model, 1.5, {("bias",): 1.0})


@pytest.fixture(scope="module")
def model():
    return Compiled(built())


def whole(model, source=SOURCE, lengths=LENGTHS, tokens=TOKENS):
    """The model's outputs for whole targets."""
    return model(model.encode(source=source, lengths=lengths), tokens=tokens)


# ---- the equations in float64, one position at a time ----


def projected(x, params):
    return np.einsum("d,dnh->nh", x, params["kernel"]) + params["bias"]


def attended(x, seen, params, position):
    """The output of one position's attention to others, and the mean of its weights over heads.

    ``position`` is None if queries and keys are not rotated.
    """
    q = projected(x, params["query"])
    keys = [projected(m, params["key"]) for m in seen]
    if position is not None:
        q = turned(q, position)
        keys = [turned(k, n) for n, k in enumerate(keys)]
    values = [projected(m, params["value"]) for m in seen]
    y, mean = params["out"]["bias"], np.zeros(len(seen))
    for head in range(HEADS):
        scores = np.array([q[head] @ k[head] for k in keys]) / np.sqrt(D / HEADS)
        weights = np.exp(scores - np.logaddexp.reduce(scores))
        mean += weights / HEADS
        mixed = sum(w * v[head] for w, v in zip(weights, values, strict=True))
        y = y + mixed @ params["out"]["kernel"][head]
    return y, mean


def dense(x, block):
    z = norm(x, block["dense_norm"]) @ block["widen"]["kernel"] + block["widen"]["bias"]
    z = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    return x + z @ block["narrow"]["kernel"] + block["narrow"]["bias"]


def looped(params, source, tokens):
    """Logits and attention of one row."""
    embedding = params["embedding"]["embedding"]
    xs = [np.sqrt(D) * embedding[token] for token in source]
    for block in params["encoder"].values():
        normed = [norm(x, block["attention_norm"]) for x in xs]
        xs = [
            dense(x + attended(normed[n], normed, block["attention"], n)[0], block)
            for n, x in enumerate(xs)
        ]
    memory = [norm(x, params["encoder_norm"]) for x in xs]
    ys, weights = [np.sqrt(D) * embedding[token] for token in tokens], []
    for block in params["decoder"].values():
        normed = [norm(y, block["attention_norm"]) for y in ys]
        after, weights = [], []
        for n, y in enumerate(ys):
            y = y + attended(normed[n], normed[: n + 1], block["attention"], n)[0]
            query = norm(y, block["source_norm"])
            added, weight = attended(query, memory, block["source_attention"], None)
            after.append(dense(y + added, block))
            weights.append(weight)
        ys = after
    ys = np.array([norm(y, params["decoder_norm"]) for y in ys])
    return ys @ embedding.T + params["bias"], np.array(weights)


def test_the_equations(model):
    """Includes targets that are longer than the carry of the last row."""
    _, outputs = whole(model)
    params = in_float64(params_of(model.module))
    for b, length in enumerate(LENGTHS):
        logits, weights = looped(params, SOURCE[b, :length], TOKENS[b])
        np.testing.assert_allclose(outputs["logits"][b], logits, rtol=0, atol=TOLERANCE)
        found = np.asarray(outputs["attention"][b])
        np.testing.assert_allclose(found[:, :length], weights, rtol=0, atol=TOLERANCE)
        assert not found[:, length:].any()


# ---- parts, masks, causality ----


@pytest.mark.parametrize("cuts", [range(1, T), [1], [3, 4, 9]], ids=str)
def test_parts_of_any_length_equal_the_whole(model, cuts):
    end, outputs = whole(model)
    carry, logits = model.encode(source=SOURCE, lengths=LENGTHS), []
    for part in np.split(TOKENS, cuts, axis=1):
        carry, found = model(carry, tokens=part)
        logits.append(np.asarray(found["logits"]))
    np.testing.assert_allclose(np.concatenate(logits, 1), outputs["logits"], rtol=0, atol=TOLERANCE)
    assert jax.tree.structure(carry) == jax.tree.structure(end)
    for one, other in zip(*map(jax.tree.leaves, (carry.state, end.state)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)


def test_a_target_can_be_longer_than_the_carry(model):
    """It gives the same as after a source with more padding, and therefore a larger carry."""
    _, short = whole(model, SOURCE[:, :3], np.array([3, 2, 1]))
    source = np.pad(SOURCE[:, :3], ((0, 0), (0, 7)))
    _, padded = whole(model, source, np.array([3, 2, 1]))
    np.testing.assert_allclose(short["logits"], padded["logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        short["attention"], padded["attention"][..., :3], rtol=0, atol=TOLERANCE
    )


def test_padding_has_no_influence(model):
    """Any padding tokens affect neither values nor gradients."""
    graph, params, rest = nnx.split(model.module, nnx.Param, ...)

    @jax.jit
    def loss(params, source):
        outputs = whole(nnx.merge(graph, params, rest), source)[1]
        return jax.nn.log_softmax(outputs["logits"])[..., 3].mean(), outputs

    other = np.where(np.arange(S) < LENGTHS[:, None], SOURCE, 8)
    assert (other != SOURCE).any()
    one, other = (jax.value_and_grad(loss, has_aux=True)(params, x) for x in (SOURCE, other))
    for a, b in zip(*map(jax.tree.leaves, (one[0], other[0])), strict=True):
        np.testing.assert_array_equal(a, b)
    # The embedding of a token only has a gradient from valid positions.
    for a, b in zip(*map(jax.tree.leaves, (one[1], other[1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("place", [0, 6, T - 1])
def test_later_tokens_have_no_influence(model, place):
    other = TOKENS.copy()
    other[:, place] = (other[:, place] + 1) % V
    found, expected = (np.asarray(whole(model, tokens=x)[1]["logits"]) for x in (other, TOKENS))
    np.testing.assert_array_equal(found[:, :place], expected[:, :place])
    assert (np.abs(found - expected)[:, place:].max((0, 2)) > 1e-4).all()


def test_every_parameter_has_a_gradient(model):
    """And every source token has influence on every row of logits."""
    graph, params, rest = nnx.split(model.module, nnx.Param, ...)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = whole(nnx.merge(graph, params, rest))[1]["logits"]
        return jax.nn.log_softmax(logits)[..., 3].mean()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        # A softmax does not depend on terms that are equal for all keys.
        same = "'key'" in jax.tree_util.keystr(path) and leaf.ndim == 2
        assert np.isfinite(leaf).all()
        assert same or np.abs(leaf).max() > 1e-6, path
    for place in range(S):
        other = SOURCE[:1].copy()
        other[0, place] = (other[0, place] + 1) % V
        found, expected = (whole(model, x, LENGTHS[:1], TOKENS[:1])[1] for x in (other, SOURCE[:1]))
        assert (np.abs(found["logits"] - expected["logits"]).max(-1) > 1e-5).all()


# ---- search ----


def test_a_wide_beam_equals_brute_force():
    """Over all targets of at most four tokens, for two sources of different lengths."""
    model = Compiled(
        doubled(TransformerSeq2Seq(6, D, num_heads=HEADS, rngs=nnx.Rngs(1)), 1.5, {("bias",): 1.0})
    )
    source, lengths, alpha = np.array([[4, 5], [5, 0]], np.int32), np.array([2, 1], np.int32), 0.7
    others = [token for token in range(6) if token != END]
    targets = [
        [*tokens, END, *[END] * (3 - count)]
        for count in range(4)
        for tokens in itertools.product(others, repeat=count)
    ]
    found = searched(model, source, lengths, Search(len(targets), alpha, 0.0))
    labels = np.array(targets)
    sizes = (labels != END).sum(1) + 1
    for row in range(2):
        rows = np.full(len(labels), row)
        logits = whole(model, source[rows], lengths[rows], begun(labels))[1]["logits"]
        log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
        each = np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
        totals = np.where(np.arange(4) < sizes[:, None], each, 0).sum(1)
        scores = totals / ((5 + sizes) / 6) ** alpha
        best = np.argsort(-scores)[:8]
        np.testing.assert_allclose(found.scores[row, :8], scores[best], rtol=1e-5)
        np.testing.assert_array_equal(found.tokens[row, :8], labels[best])


# ---- options ----


def test_dropout_is_active_only_in_training():
    plain = built()
    model = with_params(built(dropout=0.3, input_dropout=0.2), params_of(plain))

    @nnx.jit
    def logits(model, rngs):
        carry = model.encode(source=SOURCE, lengths=LENGTHS, rngs=rngs)
        return model(carry, tokens=TOKENS, rngs=rngs)[1]["logits"]

    one, same, other = (logits(model, nnx.Rngs(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-2
    found, expected = (whole(Compiled(each))[1]["logits"] for each in (model, plain))
    np.testing.assert_array_equal(found, expected)


def test_bfloat16_is_close_to_float32(model):
    carry, outputs = whole(Compiled(built(dtype="bfloat16")))
    assert outputs["logits"].dtype == outputs["attention"].dtype == np.float32
    assert carry.state.blocks["block_0"].keys.dtype == jnp.bfloat16
    # Factors are rounded to 2**-9, through four blocks.
    np.testing.assert_allclose(outputs["logits"], whole(model)[1]["logits"], rtol=0, atol=0.3)


def test_features_that_heads_do_not_divide():
    with pytest.raises(
        ValueError, match=r"^features must be a multiple of 2 \* num_heads = 6, got 8"
    ):
        TransformerSeq2Seq(V, D, num_heads=3, rngs=nnx.Rngs(0))
