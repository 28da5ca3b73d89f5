"""The CTC model, compared with NumPy loops over each sequence without padding."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.models import Compiled
from lstm_jax.models.ctc import CTCModel
from tests.arrays import doubled, in_float64, params_of

LENGTHS = [7, 2, 5]
FEATURES = np.random.default_rng(0).normal(size=(3, 8, 3)).astype(np.float32)
TOLERANCE = 1e-5  # sums of a dozen terms in float32, over four steps


def model_of(**options):
    options = {"strides": (2, 1), "conv_features": 6, "kernel_size": 3} | options
    return doubled(CTCModel(3, 5, 4, rngs=nnx.Rngs(0), **options))


def convolved(xs, kernel, bias, norm, stride):
    """One convolution of a whole sequence, its normalisation and its activation."""
    size = len(kernel)
    xs = np.pad(xs, ((size - stride, -len(xs) % stride), (0, 0)))
    ys = []
    for start in range(0, len(xs) - size + 1, stride):
        y = np.einsum("kd,kde->e", xs[start : start + size], kernel) + bias
        y = (y - y.mean()) / np.sqrt(y.var() + 1e-6) * norm["scale"] + norm["bias"]
        ys.append(np.maximum(y, 0))
    return np.array(ys)


def direction(params, xs):
    """The outputs of one direction over one sequence."""
    h = c = np.zeros(len(params["w_hh"]))
    ys = []
    for x in xs:
        gates = np.split(x @ params["w_ih"] + h @ params["w_hh"] + params["b"], 4)
        i, f, o = (1 / (1 + np.exp(-gates[n])) for n in (0, 1, 3))
        c = f * c + i * np.tanh(gates[2])
        h = o * np.tanh(c)
        ys.append(h)
    return np.array(ys)


def expected(model, xs):
    """The logits of one sequence."""
    params = in_float64(params_of(model))
    for n, stride in enumerate(model.strides):
        kernel, norm = params["convolutions"][n], params["norms"][n]
        xs = convolved(xs, kernel["kernel"], kernel["bias"], norm, stride)
    layer = params["lstm"]["layer_0"]
    if model.bidirectional:
        both = direction(layer["forward"], xs), direction(layer["backward"], xs[::-1])[::-1]
        ys = np.concatenate(both, 1)
    else:
        ys = direction(layer, xs)
    return ys @ params["readout"]["kernel"] + params["readout"]["bias"]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_logits(bidirectional):
    """Padded rows give the same as separate sequences; values past a row's end are not read."""
    model = model_of(bidirectional=bidirectional)
    hidden = FEATURES.copy()
    for row, length in enumerate(LENGTHS):
        hidden[row, length:] = np.nan
    first = model.initial_carry(3)
    _, outputs = Compiled(model)(first, features=hidden, lengths=np.array(LENGTHS))
    assert outputs["steps"].tolist() == [4, 1, 3]
    for row, length in enumerate(LENGTHS):
        logits = expected(model, FEATURES[row, :length].astype(np.float64))
        found = outputs["logits"][row, : len(logits)]
        np.testing.assert_allclose(found, logits, atol=TOLERANCE)


def test_without_convolutions():
    model = model_of(strides=())
    assert model.inputs["features"] == ("b, t, 3", "float32")
    _, outputs = model((), features=FEATURES, lengths=np.array(LENGTHS))
    assert outputs["steps"].tolist() == LENGTHS
    logits = expected(model, FEATURES[2, :5].astype(np.float64))
    np.testing.assert_allclose(outputs["logits"][2, :5], logits, atol=TOLERANCE)


def test_parts_of_a_sequence():
    """A unidirectional model that reads parts returns what it returns for the whole."""
    model = Compiled(model_of(strides=(2, 2), bidirectional=False))
    assert model.inputs["features"] == ("b, 4*t, 3", "float32")
    features = np.random.default_rng(1).normal(size=(2, 15, 3)).astype(np.float32)
    lengths = np.array([15, 8])
    _, whole = model(model.initial_carry(2), features=features, lengths=lengths)
    carry, parts = model.initial_carry(2), []
    for start, end in ((0, 4), (4, 12), (12, 15)):
        carry, outputs = model(
            carry, features=features[:, start:end],
            lengths=np.clip(lengths - start, 0, end - start),
        )  # fmt: skip
        parts.append(np.asarray(outputs["logits"]))
    parts = np.concatenate(parts, 1)
    for row, length in enumerate(whole["steps"]):
        np.testing.assert_allclose(parts[row, :length], whole["logits"][row, :length], atol=1e-6)


def test_dropout_in_training():
    model = model_of(dropout=0.5)
    inputs = {"features": jnp.asarray(FEATURES), "lengths": jnp.array(LENGTHS)}
    one = model((), **inputs, rngs=nnx.Rngs(1))[1]["logits"]
    other = model((), **inputs, rngs=nnx.Rngs(2))[1]["logits"]
    assert not np.allclose(one, other)


def test_impossible_stride():
    with pytest.raises(ValueError, match="strides must be from 1 to kernel_size = 3, got 4"):
        model_of(strides=(4,))
