"""The encoder-decoder of series, compared with NumPy loops."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax import EntityAwareLSTMCell
from lstm_jax.models import Compiled, EncoderForecaster, StaticCell
from lstm_jax.models.encoder_forecaster import SCALINGS, Sizes, scaled, unscaled, window_scale
from lstm_jax.models.heads import QuantileHead
from tests.arrays import in_float64, params_of, with_params

TOLERANCE = 2e-5
SIZES = Sizes(window=8, horizon=5, past=2, known=1, numbers=1, categories=(3,))
HEAD = QuantileHead(levels=(0.1, 0.5, 0.9))


def model_of(kind=EncoderForecaster, head=HEAD, **options):
    """A model with nonzero parameters that are large enough to matter."""
    options = {"segment": 2, "season": 4, "embedding_features": 2, "rngs": nnx.Rngs(0)} | options
    model = kind(SIZES, head, 4, **options)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32) / 4, params_of(model)
    )
    return Compiled(with_params(model, params))


def inputs_of(seed: int = 0, rows: int = 3):
    rng = np.random.default_rng(seed)
    W, F = SIZES.window, SIZES.horizon
    target = rng.normal(5, 2, (rows, W)).astype(np.float32)
    target[0, 2:4] = np.nan
    past = rng.normal(size=(rows, W, 2)).astype(np.float32)
    past[1, 5] = np.nan
    return {
        "target": target,
        "past": past,
        "known": rng.normal(size=(rows, W + F, 1)).astype(np.float32),
        "numbers": rng.normal(size=(rows, 1)).astype(np.float32),
        "categories": rng.integers(0, 3, (rows, 1)).astype(np.int32),
    }


def flagged(x):
    return np.concatenate([np.nan_to_num(x), np.isfinite(x)], -1)


def lstm(params, xs, h, c):
    """An LSTM over time ``[N, D]``; all hidden states and the last cell state."""
    hs = []
    for x in xs:
        z = (x @ params["w_ih"] + h @ params["w_hh"] + params["b"]).reshape(4, -1)
        i, f, o = (1 / (1 + np.exp(-z[gate])) for gate in (0, 1, 3))
        c = f * c + i * np.tanh(z[2])
        h = o * np.tanh(c)
        hs.append(h)
    return np.array(hs), c


class Past(NamedTuple):
    """The state at the present: scaled values, static features, and the second LSTM's state."""

    level: float
    scale: float
    z: np.ndarray
    static: np.ndarray
    h: np.ndarray
    c: np.ndarray


def past_of(p, x) -> Past:
    """The past of one window in float64, segment by segment."""
    y = x["target"]
    observed = np.isfinite(y)
    level, scale = np.nanmean(y), np.nanstd(y)
    z = np.where(observed, (y - level) / scale, 0)
    category = p["embeddings"]["0"] if "0" in p["embeddings"] else p["embeddings"][0]
    spread = np.log(scale) - np.log(abs(level) + scale)
    static = np.concatenate(
        [
            [np.log1p(abs(level)), spread],
            x["numbers"],
            category["embedding"][int(x["categories"][0])],
        ]
    )
    known = flagged(x["known"])
    columns = np.concatenate([z[:, None], observed[:, None], flagged(x["past"]), known[:8]], -1)
    xs = np.maximum(columns.reshape(4, -1) @ p["read"]["kernel"] + p["read"]["bias"], 0)
    xs = np.concatenate([xs, np.tile(static, (4, 1))], -1)
    (encoder,) = p["encoder"].values()
    hs, c = lstm(encoder, xs, np.zeros(4), np.zeros(4))
    handoff = [p["handoff"][n] for n in sorted(p["handoff"])]
    h, c = (v @ w["kernel"] + w["bias"] for v, w in zip((hs[-1], c), handoff, strict=True))
    return Past(level, scale, z, static, h, c)


def filled(z, observed):
    """The last observed value in each gap."""
    z = z.copy()
    for t in range(1, len(z)):
        z[t] = z[t] if observed[t] else z[t - 1]
    return z


def row_of(params, inputs, row: int):
    """Parameters and one window in float64."""
    return in_float64(params), {name: np.asarray(a[row], float) for name, a in inputs.items()}


def network(params, inputs, row: int) -> np.ndarray:
    """The raw numbers of one window in float64, segment by segment."""
    p, x = row_of(params, inputs, row)
    past, known, (decoder,) = past_of(p, x), flagged(x["known"]), p["decoder"].values()
    future = np.concatenate([known[8:], np.zeros((1, 2))]).reshape(3, -1)
    ks = np.concatenate([future, np.eye(3)], -1) @ p["given"]["kernel"] + p["given"]["bias"]
    ks = np.concatenate([np.maximum(ks, 0), np.tile(past.static, (3, 1))], -1)
    us, _ = lstm(decoder, ks, past.h, past.c)
    raw = (us @ p["readout"]["kernel"] + p["readout"]["bias"]).reshape(6, -1)[: SIZES.horizon]
    raw[:, 0] += filled(past.z, np.isfinite(x["target"])) @ p["linear"]
    return raw


def test_raw_numbers_equal_those_of_a_loop():
    model, inputs = model_of(), inputs_of()
    raw = model((), **inputs)[1]["raw"]
    for row in range(3):
        expected = network(params_of(model.module), inputs, row)
        np.testing.assert_allclose(raw[row], expected, rtol=0, atol=TOLERANCE)


def test_a_new_model_is_close_to_the_seasonal_naive_forecast():
    """The readout returns small numbers, and the linear model repeats the last season."""
    module = EncoderForecaster(SIZES, HEAD, 4, segment=2, season=4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(module.linear[...].sum(0), np.ones(5))
    steps = np.asarray(module.linear[...]).argmax(0)
    assert steps.tolist() == [4, 5, 6, 7, 4]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaling_is_inverted_and_follows_the_window(scaling):
    y = np.random.default_rng(0).gamma(2, 10, (4, 30)).astype(np.float32)
    y[0, :5] = np.nan
    window = window_scale(jnp.asarray(y), scaling)
    z = scaled(jnp.asarray(y), window, scaling)
    np.testing.assert_allclose(
        np.where(np.isfinite(y), unscaled(z, window, scaling), np.nan), y, rtol=1e-4
    )
    if scaling == "robust":
        low, middle, high = np.nanquantile(y, [0.25, 0.5, 0.75], axis=1)
        np.testing.assert_allclose(window.level, middle, rtol=1e-5)
        np.testing.assert_allclose(window.scale, (high - low) / 1.349, rtol=1e-5)
    larger = window_scale(jnp.asarray(3 * y), scaling)
    if scaling != "log":
        np.testing.assert_allclose(scaled(3 * y, larger, scaling), z, atol=1e-4)


def test_constant_and_empty_windows_have_a_scale():
    y = jnp.array([[5.0, 5.0], [0.0, 0.0], [jnp.nan, jnp.nan]])
    for scaling in SCALINGS:
        window = window_scale(y, scaling)
        assert np.isfinite(window.level).all() and (np.asarray(window.scale) > 0).all()


def test_the_input_gate_of_an_entity_aware_model_reads_only_static_features():
    cell = StaticCell(lambda static: functools.partial(EntityAwareLSTMCell, static_size=static))
    model = model_of(cell=cell)
    (encoder,) = params_of(model.module)["encoder"].values()
    assert encoder["w_si"].shape == (2 + 1 + 2, 4)
    inputs = inputs_of()
    one = model((), **inputs)[1]["raw"]
    other = model((), **inputs | {"categories": (inputs["categories"] + 1) % 3})[1]["raw"]
    assert np.abs(one - other).max() > 1e-3
