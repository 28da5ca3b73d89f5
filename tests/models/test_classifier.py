"""The bidirectional classifier, compared with NumPy loops over each sequence separately."""

import numpy as np
from flax import nnx

from lstm_jax.models import BidirectionalClassifier, Compiled
from tests.arrays import doubled, in_float64, params_of


def lstm(params, xs):
    h = c = np.zeros(params["w_hh"].shape[0])
    ys = []
    for x in xs:
        z = (x @ params["w_ih"] + h @ params["w_hh"] + params["b"]).reshape(4, -1)
        i, f, o = (1 / (1 + np.exp(-z[n])) for n in (0, 1, 3))
        c = f * c + i * np.tanh(z[2])
        h = o * np.tanh(c)
        ys.append(h)
    return np.array(ys)


def test_logits_are_read_from_the_mean_over_both_directions():
    model = doubled(BidirectionalClassifier(3, 4, 5, num_layers=2, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    xs, lengths = rng.normal(size=(3, 6, 3)).astype(np.float32), np.array([6, 1, 4], np.int32)
    noisy = np.where(np.arange(6)[:, None] < lengths[:, None, None], xs, np.nan)
    _, outputs = Compiled(model)((), xs=noisy.astype(np.float32), lengths=lengths)
    params = in_float64(params_of(model))
    for row, length, found in zip(xs, lengths, outputs["logits"], strict=True):
        ys = row[:length].astype(np.float64)
        for layer in ("layer_0", "layer_1"):
            both = params["lstm"][layer]
            backward = lstm(both["backward"], ys[::-1])[::-1]
            ys = np.concatenate([lstm(both["forward"], ys), backward], 1)
        readout = params["readout"]
        expected = ys.mean(0) @ readout["kernel"] + readout["bias"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
