"""The text classifier, compared with NumPy loops over each text without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.models import Compiled
from lstm_jax.models.text_classifier import POOLINGS, TextClassifier, pretrained
from tests.arrays import doubled, in_float64, params_of

LENGTHS = [5, 1, 3]
TOKENS = np.random.default_rng(0).integers(2, 9, (3, 6)).astype(np.int32)
# Sums of six terms in float32 (eps 1.2e-7), over five steps.
TOLERANCE = 5e-6


def model_of(pooling, bidirectional=True, **options):
    model = TextClassifier(
        9, 3, 4, 5, pooling=pooling, bidirectional=bidirectional, rngs=nnx.Rngs(0), **options
    )
    biases = {("readout", "bias"): 1.0}
    if pooling == "attention":
        biases[("attention", "bias")] = 1.0
    return doubled(model, 3.0, biases)


def directions(params, xs) -> list[np.ndarray]:
    """The outputs of one direction over one text."""
    h = c = np.zeros(len(params["w_hh"]))
    ys = []
    for x in xs:
        gates = np.split(x @ params["w_ih"] + h @ params["w_hh"] + params["b"], 4)
        i, f, o = (1 / (1 + np.exp(-gates[n])) for n in (0, 1, 3))
        c = f * c + i * np.tanh(gates[2])
        h = o * np.tanh(c)
        ys.append(h)
    return ys


def expected(params, tokens, pooling, bidirectional):
    """Logits of one text, and the weights of attention."""
    params = in_float64(params)
    xs = params["embedding"]["embedding"][tokens]
    layer = params["lstm"]["layer_0"]
    if bidirectional:
        forward = directions(layer["forward"], xs)
        backward = directions(layer["backward"], xs[::-1])[::-1]
        ys = [np.concatenate(pair) for pair in zip(forward, backward, strict=True)]
        last = np.concatenate([forward[-1], backward[0]])
    else:
        ys = directions(layer, xs)
        last = ys[-1]
    weights = None
    if pooling == "attention":
        kernel, bias = params["attention"]["kernel"], params["attention"]["bias"]
        query = params["query"]["kernel"][:, 0]
        powers = [np.exp(np.tanh(y @ kernel + bias) @ query) for y in ys]
        weights = np.array(powers) / sum(powers)
        pooled = sum(weight * y for weight, y in zip(weights, ys, strict=True))
    else:
        pooled = {"max": np.max(ys, 0), "mean": np.mean(ys, 0), "last": last}[pooling]
    return pooled @ params["readout"]["kernel"] + params["readout"]["bias"], weights


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_row_is_independent_of_the_others(pooling, bidirectional):
    model = model_of(pooling, bidirectional)
    carry, outputs = Compiled(model)((), tokens=TOKENS, lengths=np.array(LENGTHS, np.int32))
    assert carry == () and set(outputs) - {"attention"} == {"logits"}
    params = params_of(model)
    for n, length in enumerate(LENGTHS):
        logits, weights = expected(params, TOKENS[n, :length], pooling, bidirectional)
        np.testing.assert_allclose(outputs["logits"][n], logits, rtol=TOLERANCE, atol=TOLERANCE)
        if weights is not None:
            found = outputs["attention"][n]
            np.testing.assert_allclose(found[:length], weights, rtol=TOLERANCE, atol=TOLERANCE)
            assert not found[length:].any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_gets_no_gradient(pooling):
    model = model_of(pooling)

    @jax.jit
    def slope(xs):
        def scores(xs):
            return model.read(xs, jnp.array(LENGTHS))["logits"].var()

        return jax.grad(scores)(xs)

    slopes = np.asarray(slope(model.embedding(TOKENS)))
    assert np.isfinite(slopes).all()
    for row, length in zip(slopes, LENGTHS, strict=True):
        assert row[:length].any(axis=1).all() and not row[length:].any()


def test_dropped_words_are_unknown_ones():
    """At a rate near one every token is dropped, so the model reads only unknown words."""
    model = model_of("max", word_dropout=0.999)
    lengths = np.array(LENGTHS, np.int32)
    _, outputs = model((), tokens=TOKENS, lengths=lengths, rngs=nnx.Rngs(dropout=1))
    model.eval()
    _, unknown = model((), tokens=np.ones_like(TOKENS), lengths=lengths)
    _, known = model((), tokens=TOKENS, lengths=lengths)
    np.testing.assert_array_equal(outputs["logits"], unknown["logits"])
    assert (known["logits"] != unknown["logits"]).all()


@pytest.mark.parametrize("option", ["word_dropout", "embedding_dropout", "dropout"])
def test_dropout_is_active_only_in_training(option):
    model = TextClassifier(9, 3, 4, 5, rngs=nnx.Rngs(0), **{option: 0.5})
    call = {"tokens": TOKENS, "lengths": np.array(LENGTHS, np.int32)}
    one, other = (model((), rngs=nnx.Rngs(dropout=n), **call)[1]["logits"] for n in (0, 1))
    assert (np.asarray(one) != np.asarray(other)).any()
    model.eval()
    one, other = (model((), rngs=nnx.Rngs(dropout=n), **call)[1]["logits"] for n in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_pretrained_vectors_are_read_only_when_parameters_are_initialised():
    calls = []

    def read():
        calls.append(1)
        table = np.zeros((9, 400), np.float32)
        table[:3] = 0.5
        return np.arange(9) < 3, table

    def build(seed=0):
        return TextClassifier(9, 2, 400, 3, embedding_init=pretrained(read), rngs=nnx.Rngs(seed))

    jax.eval_shape(build)
    assert not calls
    table = np.asarray(build().embedding.embedding[...])
    assert calls and (table[:3] == 0.5).all()
    # The others have the same mean square: the standard error over 2400 numbers is 3 %.
    assert np.square(table[3:]).mean() == pytest.approx(0.25, rel=0.12)


def test_poolings_have_names():
    with pytest.raises(ValueError, match="pooling must be one of max, mean, last, attention, got"):
        TextClassifier(9, 3, 4, 5, pooling="sum", rngs=nnx.Rngs(0))
