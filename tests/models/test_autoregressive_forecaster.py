"""Forecasts row by row: teacher forcing equals a loop, and samples have known distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm

from lstm_jax import EntityAwareLSTMCell
from lstm_jax.models import AutoregressiveForecaster, Compiled, ForecasterEnsemble, StaticCell
from lstm_jax.models.encoder_forecaster import Sizes, WindowScale, unscaled
from lstm_jax.models.heads import HEADS, NormalHead, PointHead, QuantileHead
from tests.arrays import params_of, with_params
from tests.models.test_encoder_forecaster import (
    HEAD,
    SIZES,
    TOLERANCE,
    filled,
    flagged,
    inputs_of,
    lstm,
    past_of,
    row_of,
)
from tests.models.test_encoder_forecaster import model_of as any_model_of

L, F = 4, SIZES.horizon
model_of = functools.partial(any_model_of, AutoregressiveForecaster, samples=6)


def future_of(rows: int = 3):
    """True values in units of the series, with a gap."""
    future = np.random.default_rng(3).normal(5, 2, (rows, F)).astype(np.float32)
    future[0, 1] = np.nan
    return future


def network(params, inputs, future, row: int) -> np.ndarray:
    """The raw numbers of one window in float64, row by row of the future."""
    p, x = row_of(params, inputs, row)
    past, known, (decoder,) = past_of(p, x), flagged(x["known"]), p["decoder"].values()
    y = np.concatenate([x["target"], future[row]])
    observed = np.isfinite(y)
    z = filled(np.where(observed, (y - past.level) / past.scale, 0), observed)
    h, c, raw = past.h, past.c, []
    for t in range(8, 8 + F):
        k = np.concatenate([z[t - L : t], observed[t - L : t], known[t]])
        k = np.maximum(k @ p["given"]["kernel"] + p["given"]["bias"], 0)
        (h,), c = lstm(decoder, [np.concatenate([k, past.static])], h, c)
        raw.append(h @ p["readout"]["kernel"] + p["readout"]["bias"])
        raw[-1][0] += z[t - L : t] @ p["linear"]
    return np.array(raw)


def test_raw_numbers_with_teacher_forcing_equal_a_loop():
    model, inputs, future = model_of(), inputs_of(), future_of()
    raw = model((), **inputs, future=future)[1]["raw"]
    for row in range(3):
        expected = network(params_of(model.module), inputs, future, row)
        np.testing.assert_allclose(raw[row], expected, rtol=0, atol=TOLERANCE)


def test_teacher_forcing_shows_each_row_only_the_previous_rows():
    model, inputs, future = model_of(), inputs_of(), future_of()
    before = model((), **inputs, future=future)[1]["raw"]
    changed = future.copy()  # a copy, since the first call may still read its input
    changed[:, 2:] = 1e9
    after = model((), **inputs, future=changed)[1]["raw"]
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3] != after[:, 3]).any()


CELL = StaticCell(lambda static: functools.partial(EntityAwareLSTMCell, static_size=static))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "scaling": "log"}, {"cell": CELL}])
def test_a_trajectory_follows_from_its_own_values(options):
    """A point head samples its prediction, so the loop must agree with a single teacher-forced
    call that reads the trajectory as the truth."""
    options = dict(options)
    layers = options.pop("num_layers", 1)
    kind = functools.partial(AutoregressiveForecaster, num_layers=layers)
    model, inputs = any_model_of(kind, PointHead(), samples=2, **options), inputs_of()
    outputs = model((), **inputs)[1]
    paths = outputs["samples"]
    assert paths.shape == (3, 2, F)
    np.testing.assert_array_equal(paths[:, 0], paths[:, 1])
    window = WindowScale(outputs["level"], outputs["scale"])
    future = unscaled(paths[:, 0], window, options.get("scaling", "standard"))
    raw = model((), **inputs, future=future)[1]["raw"]
    if "scaling" not in options:
        np.testing.assert_allclose(raw[..., 0], paths[:, 0], atol=5e-5)
    else:  # the logarithm is not invertible below 0
        kept = np.cumprod(np.asarray(future) > 0, 1).astype(bool)
        assert kept[:, 0].any()
        first = np.pad(kept, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
        np.testing.assert_allclose(raw[..., 0][first], paths[:, 0][first], atol=1e-3)


@pytest.mark.parametrize("name", ["quantile", "student_t", "negative_binomial"])
def test_the_first_row_has_the_distribution_of_the_head(name):
    head = QuantileHead((0.1, 0.5, 0.9)) if name == "quantile" else HEADS[name]()
    N, scaling = 4000, "mean" if name == "negative_binomial" else "standard"
    model = model_of(head, samples=N, scaling=scaling)
    inputs = inputs_of()
    outputs = model((), **inputs)[1]
    paths = np.asarray(outputs["samples"])
    assert np.isfinite(paths).all()
    raw = model((), **inputs, future=future_of())[1]["raw"][:, 0]
    levels = jnp.array([0.2, 0.5, 0.8])
    expected = np.asarray(head.distribution(raw, outputs["scale"]).quantiles(levels))
    # The fraction of samples below a quantile is its level, except for ties; five standard errors.
    slack = 1e-5 * (1 + np.abs(expected))
    below = (paths[..., 0][..., None] < (expected - slack)[:, None]).mean(1)
    up_to = (paths[..., 0][..., None] <= (expected + slack)[:, None]).mean(1)
    error = 5 * np.sqrt(0.25 / N)
    assert (below <= levels + error).all() and (up_to >= levels - error).all()


def test_samples_of_a_gaussian_autoregression_have_its_moments():
    """Without the network, z_f = 0.5 z_{f-1} + 0.3 z_{f-2} + noise, whose moments are known."""
    sizes, deviation, N = Sizes(window=6, horizon=4), 0.7, 20_000
    model = AutoregressiveForecaster(
        sizes, NormalHead(), 3, season=2, samples=N, scaling="mean", rngs=nnx.Rngs(0)
    )
    params = params_of(model)
    params["readout"]["kernel"] *= 0
    params["readout"]["bias"] = jnp.array([0.0, np.log(np.expm1(deviation - 1e-3))])
    params["linear"] = jnp.array([0.3, 0.5])
    y = np.random.default_rng(0).normal(3, 1, (2, 6)).astype(np.float32)
    none = np.zeros((2, 6, 0), np.float32)
    outputs = Compiled(with_params(model, params))(
        (), target=y, past=none, known=np.zeros((2, 10, 0), np.float32), numbers=none[:, 0],
        categories=none[:, 0].astype(np.int32),
    )[1]  # fmt: skip
    z = y / np.abs(y).mean(1, keepdims=True)
    mean = list(z.T[-2:])
    psi = [0.0, 1.0]
    for _ in range(4):
        mean.append(0.5 * mean[-1] + 0.3 * mean[-2])
        psi.append(0.5 * psi[-1] + 0.3 * psi[-2])
    moving = np.array([[psi[1 + f - e] if e <= f else 0 for e in range(4)] for f in range(4)])
    covariance = deviation**2 * moving @ moving.T
    paths = np.asarray(outputs["samples"], np.float64)
    for n in range(2):
        found = np.cov(paths[n].T)
        np.testing.assert_allclose(paths[n].mean(0), np.array(mean[2:])[:, n], atol=0.04)
        np.testing.assert_allclose(found, covariance, atol=0.04)
        quantile = np.array(mean[2:])[:, n] + np.sqrt(np.diag(covariance)) * norm.ppf(0.9)
        np.testing.assert_allclose(np.quantile(paths[n], 0.9, axis=0), quantile, atol=0.05)


def test_samples_are_the_same_unless_a_key_is_given():
    model, inputs = model_of(NormalHead()), inputs_of()
    one, again = (model((), **inputs)[1]["samples"] for _ in range(2))
    np.testing.assert_array_equal(one, again)
    other = model((), **inputs, rngs=nnx.Rngs(1))[1]["samples"]
    assert (one != other).any()
    inputs["known"][:, 8:] += 1  # covariates of the future are read
    assert (model((), **inputs)[1]["samples"] != one).any()


def test_members_of_an_ensemble_are_called_together():
    def make(rngs):
        return AutoregressiveForecaster(SIZES, HEAD, 4, season=L, samples=6, rngs=rngs)

    ensemble, inputs = ForecasterEnsemble(make, 2, rngs=nnx.Rngs(0)), inputs_of()
    future = jnp.asarray(future_of())
    outputs = Compiled(ensemble)((), **inputs, future=future)[1]
    assert outputs["raw"].shape == (3, 2, F, 3) and outputs["level"].shape == (3,)
    graph, state = nnx.split(ensemble.members)
    for n in range(2):
        member = Compiled(nnx.merge(graph, jax.tree.map(lambda leaf, n=n: leaf[n], state)))
        raw = member((), **inputs, future=future)[1]["raw"]
        np.testing.assert_allclose(outputs["raw"][:, n], raw, atol=TOLERANCE)
