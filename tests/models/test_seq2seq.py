"""The encoder-decoder, compared with a NumPy loop over its equations, one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.models import Seq2Seq
from tests.arrays import doubled, in_float64, params_of, with_params

# Sums of about ten terms in float32 (eps 1.2e-7) through ten steps, each of which passes errors on
# by a factor of about one.
TOLERANCE = 2e-5
V, E, H, S, T = 11, 4, 5, 6, 5
KINDS = [
    (feeding, attention, tied, layers)
    for feeding in (True, False)
    for attention, tied, layers in (("multiplicative", True, 1), ("additive", False, 2))
]


def built(feeding, attention, tied, layers, **options):
    model = Seq2Seq(
        V, E, H, layers, input_feeding=feeding, attention=attention, tied_embeddings=tied,
        rngs=nnx.Rngs(0), **options,
    )  # fmt: skip
    return doubled(model, 1.5, {("bias",): 1.0, ("initial", "bias"): 1.0})


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    source, tokens = rng.integers(1, V, (3, S)), rng.integers(1, V, (3, T))
    return source.astype(np.int32), np.array([6, 4, 1], np.int32), tokens.astype(np.int32)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm(params, state, x):
    h, c = state
    z = x @ params["w_ih"] + h @ params["w_hh"] + params["b"]
    i, f, g, o = np.split(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def run(params, xs):
    h = c = np.zeros(H)
    hs = []
    for x in xs:
        h, c = lstm(params, (h, c), x)
        hs.append(h)
    return hs


def looped(params, source, tokens, feeding, attention, tied, layers):
    """Logits and attention of one row."""
    matrix = {
        name: params["output_embedding" if tied else f"{name}_embedding"]["embedding"]
        for name in ("source", "target", "output")
    }
    xs = [matrix["source"][token] for token in source]
    for n in range(layers):
        both = params["encoder"][f"layer_{n}"]
        forwards, backwards = run(both["forward"], xs), run(both["backward"], xs[::-1])[::-1]
        xs = [np.concatenate(pair) for pair in zip(forwards, backwards, strict=True)]
    mean = np.mean(xs, 0) @ params["initial"]["kernel"] + params["initial"]["bias"]
    states = [(h, np.zeros(H)) for h in np.split(np.tanh(mean), layers)]
    attended, logits, weights = np.zeros(E), [], []
    for token in tokens:
        y = matrix["target"][token]
        if feeding:
            y = np.concatenate([y, attended])
        for n in range(layers):
            states[n] = lstm(params["decoder"][f"layer_{n}"], states[n], y)
            y = states[n][0]
        scores = []
        for m in xs:
            key = m @ params["attention"]["memory_map"]["kernel"]
            if attention == "additive":
                query = y @ params["attention"]["query_map"]["kernel"]
                scores.append(params["attention"]["v"] @ np.tanh(query + key))
            else:
                scores.append(y @ key)
        weight = np.exp(scores - np.max(scores))
        weights.append(weight / weight.sum())
        context = weights[-1] @ np.array(xs)
        attended = np.tanh(np.concatenate([y, context]) @ params["attended"]["kernel"])
        logits.append(attended @ matrix["output"].T + params["bias"])
    return np.array(logits), np.array(weights)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_the_equations(batch, kind):
    source, lengths, tokens = batch
    model = built(*kind)
    carry = model.encode(source=source, lengths=lengths)
    _, outputs = model(carry, tokens=tokens)
    params = in_float64(params_of(model))
    for b, length in enumerate(lengths):
        logits, weights = looped(params, source[b, :length], tokens[b], *kind)
        np.testing.assert_allclose(outputs["logits"][b], logits, rtol=0, atol=TOLERANCE)
        found = np.asarray(outputs["attention"][b])
        np.testing.assert_allclose(found[:, :length], weights, rtol=0, atol=TOLERANCE)
        assert not found[:, length:].any()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_token_by_token(batch, kind):
    """Steps of one token give the same as the whole target at once."""
    source, lengths, tokens = batch
    model = built(*kind)
    first = carry = model.encode(source=source, lengths=lengths)
    end, whole = model(first, tokens=tokens)
    logits = []
    for t in range(T):
        carry, outputs = model(carry, tokens=tokens[:, t : t + 1])
        logits.append(outputs["logits"])
    np.testing.assert_allclose(np.concatenate(logits, 1), whole["logits"], rtol=0, atol=TOLERANCE)
    for one, other in zip(*map(jax.tree.leaves, (carry.state, end.state)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS[::3], ids=lambda kind: "-".join(map(str, kind)))
def test_padding_has_no_influence(batch, kind):
    """It affects neither values nor gradients."""
    source, lengths, tokens = batch
    model = built(*kind)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def loss(params, source):
        module = nnx.merge(graph, params, rest)
        carry = module.encode(source=source, lengths=lengths)
        return jax.nn.log_softmax(module(carry, tokens=tokens)[1]["logits"])[..., 3].mean()

    other = np.where(np.arange(S) < lengths[:, None], source, 9)
    one, other = (jax.value_and_grad(loss)(params, x) for x in (source, other))
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_equal_those_of_a_plain_loop(batch):
    """The decoder with input feeding runs in the fused engine; a loop of steps is the reference."""
    source, lengths, tokens = batch
    model = built(*KINDS[0])
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, whole):
        module = nnx.merge(graph, params, rest)
        carry = module.encode(source=source, lengths=lengths)
        if whole:
            logits = module(carry, tokens=tokens)[1]["logits"]
        else:
            steps = []
            for t in range(T):
                carry, outputs = module(carry, tokens=tokens[:, t : t + 1])
                steps.append(outputs["logits"])
            logits = jnp.concatenate(steps, 1)
        return jnp.square(logits).mean()

    fused, plain = (jax.jit(jax.grad(loss), static_argnums=1)(params, x) for x in (True, False))
    for one, other in zip(*map(jax.tree.leaves, (fused, plain)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_dropout(batch, kind):
    source, lengths, tokens = batch
    model = built(*kind, input_dropout=0.5, dropout=0.5)

    def logits(seed):
        rngs = nnx.Rngs(seed)
        carry = model.encode(source=source, lengths=lengths, rngs=rngs)
        return np.asarray(model(carry, tokens=tokens, rngs=rngs)[1]["logits"])

    model.train()
    assert not np.array_equal(logits(0), logits(1))
    np.testing.assert_array_equal(logits(0), logits(0))
    model.eval()
    plain = with_params(built(*kind), params_of(model))
    plain.eval()
    carry = plain.encode(source=source, lengths=lengths)
    np.testing.assert_array_equal(logits(0), plain(carry, tokens=tokens)[1]["logits"])


def test_a_regularised_cell():
    """The noise of a regulariser is sampled in each call, and there is none in evaluation."""
    cell = "zoneout(lstm, hidden_rate=0.5)"
    from lstm_jax.config.recurrent import cell_factory

    model = built(*KINDS[0], cell=cell_factory(cell))
    source, lengths = np.array([[4, 5]], np.int32), np.array([2], np.int32)
    carry = model.encode(source=source, lengths=lengths, rngs=nnx.Rngs(0))

    def logits(seed):
        tokens = np.array([[2, 4, 5, 6]], np.int32)
        return np.asarray(model(carry, tokens=tokens, rngs=nnx.Rngs(seed))[1]["logits"])

    assert not np.array_equal(logits(0), logits(1))
    model.eval()
    np.testing.assert_array_equal(logits(0), logits(1))


def test_tied_embeddings_are_one_matrix():
    tied, untied = built(True, "additive", True, 1), built(True, "additive", False, 1)
    sizes = [sum(x.size for x in jax.tree.leaves(params_of(model))) for model in (tied, untied)]
    assert sizes[1] - sizes[0] == 2 * V * E
