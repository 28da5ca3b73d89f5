"""Forecasts, their windows, errors and baselines against explicit loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.errors import UserError
from lstm_jax.models import Compiled
from lstm_jax.tasks.forecasting import ForecasterConfig, Forecasting
from lstm_jax.tasks.series_data import SeriesData
from tests.arrays import doubled, in_float64, params_of, with_params

TRAIN, VALIDATION, TEST, WINDOW, HORIZON, SEASON = 200, 100, 80, 24, 5, 8


def table(rows: int = 400) -> np.ndarray:
    """Three columns of different scales, with a season, a trend and noise."""
    t = np.arange(rows)
    noise = np.random.default_rng(0).normal(size=(rows, 3))
    season = np.sin(2 * np.pi * t / SEASON)[:, None]
    return np.array([3.0, -100.0, 0.02]) * (season + 0.01 * t[:, None] + 0.3 * noise) + 7


def forecast_of(model, past, seed=None):
    """The forecast from one compiled call; in training mode if a seed is given."""
    options = {"past": past, "level": past[:, -1]}
    first = model.initial_carry(len(past))
    if seed is None:
        return Compiled(model)(first, **options)[1]["forecast"]
    call = nnx.jit(type(model).__call__)
    return call(model, first, **options, rngs=nnx.Rngs(seed))[1]["forecast"]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a small task of a small table."""
    folder = tmp_path_factory.mktemp("tables")

    def task(values=None, model=None, **data) -> Forecasting:
        values = table() if values is None else values
        path = folder / f"{hash(values.tobytes())}.csv"
        rows = [",".join([str(t), *map(repr, row)]) for t, row in enumerate(values.tolist())]
        path.write_text("\n".join(["date,one,two,three", *rows]))
        sizes = SeriesData(
            str(path), TRAIN, VALIDATION, TEST, WINDOW, HORIZON, SEASON, batch_size=4
        )
        small = ForecasterConfig(segment=6, hidden_size=4, num_layers=2, dropout=0.0)
        return Forecasting(
            dataclasses.replace(sizes, **data), dataclasses.replace(small, **(model or {}))
        )

    return task


def standardised() -> np.ndarray:
    values = table()
    return (values - values[:TRAIN].mean(0)) / values[:TRAIN].std(0)


def windows(split: str, window: int = WINDOW, horizon: int = HORIZON) -> list[tuple]:
    """Past and future of every forecast whose future rows are all in the split."""
    begin, end = {"validation": (200, 300), "test": (300, 380)}[split]
    series = standardised()
    return [
        (series[at - window : at], series[at : at + horizon])
        for at in range(begin, end - horizon + 1)
    ]


def errors(forecasts, futures) -> dict[str, float]:
    error = np.array(forecasts) - np.array(futures)
    return {"mse": (error**2).mean(), "mae": np.abs(error).mean()}


def network(params, column: np.ndarray, segment: int = 6) -> np.ndarray:
    """The docstring's equations for one column, in float64."""
    params = in_float64(params)
    rest = column - column[-1]
    xs = [
        np.maximum(
            rest[n : n + segment] @ params["embedding"]["kernel"] + params["embedding"]["bias"], 0
        )
        for n in range(0, len(rest), segment)
    ]
    for _, weights in sorted(params["lstm"].items()):
        h = c = np.zeros(len(weights["w_hh"]))
        ys = []
        for x in xs:
            z = x @ weights["w_ih"] + h @ weights["w_hh"] + weights["b"]
            i, f, o = (1 / (1 + np.exp(-z.reshape(4, -1)[gate])) for gate in (0, 1, 3))
            c = f * c + i * np.tanh(z.reshape(4, -1)[2])
            h = o * np.tanh(c)
            ys.append(h)
        xs = ys
    return xs[-1] @ params["readout"]["kernel"] + params["readout"]["bias"] + column[-1]


def built(task):
    """A model with biases that are not zero."""
    biases = {("embedding", "bias"): 0.3, ("readout", "bias"): 0.3}
    return doubled(task.build(nnx.Rngs(0)), 1.0, biases)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_windows_are_explicit_slices_and_standardised_by_training_rows(make, split):
    past, future = make()._windows(split)
    expected = windows(split)
    assert len(past) == len(future) == len(expected)
    for n, (before, after) in enumerate(expected):
        np.testing.assert_allclose(past[n], before, rtol=0, atol=1e-6)
        np.testing.assert_allclose(future[n], after, rtol=0, atol=1e-6)


def test_rows_after_the_training_rows_do_not_affect_the_standardisation(make):
    values = table()
    changed = values.copy()
    changed[TRAIN:] += 1000
    (batch, other) = (make(values=v).batches(seed=0)[3] for v in (values, changed))
    for name in ("past", "future"):
        np.testing.assert_array_equal(batch[name], other[name])


def test_training_batches_lie_within_the_training_rows(make):
    batches, series = make().batches(seed=0), standardised()
    starts = []
    for k in range(2 * (TRAIN - WINDOW - HORIZON + 1) // 4):
        for past, future in zip(batches[k]["past"], batches[k]["future"], strict=True):
            (start,) = np.flatnonzero(np.abs(series - past[0]).max(1) < 1e-6)
            stretch = np.concatenate([past, future])
            expected = series[start : start + WINDOW + HORIZON]
            np.testing.assert_allclose(stretch, expected, rtol=0, atol=1e-6)
            starts.append(start)
    assert set(starts) == set(range(TRAIN - WINDOW - HORIZON + 1))


def test_a_forecast_equals_the_equations(make):
    task = make()
    model = built(task)
    past = np.stack([before for before, _ in windows("test")[:3]]).astype(np.float32)
    forecast = forecast_of(model, past)
    for b in range(3):
        for column in range(3):
            expected = network(params_of(model), past[b, :, column].astype(np.float64))
            np.testing.assert_allclose(forecast[b, :, column], expected, rtol=0, atol=1e-5)


def test_a_network_of_zeros_forecasts_the_last_value_exactly(make):
    task = make()
    model = task.build(nnx.Rngs(0))
    zeros = with_params(model, jax.tree.map(jnp.zeros_like, params_of(model)))
    past, _ = task._windows("test")
    forecast = forecast_of(zeros, past)
    np.testing.assert_array_equal(forecast, np.repeat(past[:, -1:], HORIZON, 1))
    figures = task.evaluate(Compiled(zeros), "test")
    assert figures["mse"] == task.baselines("test")["persistence"]["mse"]


@pytest.mark.parametrize("batch", [1000, 32, 19])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_is_the_error_over_all_windows(make, monkeypatch, split, batch):
    """Also if the number of windows is not a multiple of the batch size."""
    monkeypatch.setattr("lstm_jax.tasks.forecasting.EVALUATION_BATCH", batch)
    task = make()
    model = built(task)
    pasts, futures = zip(*windows(split), strict=True)
    forecasts = [np.stack([network(params_of(model), c) for c in past.T], 1) for past in pasts]
    expected = errors(forecasts, futures)
    figures = task.evaluate(Compiled(model), split)
    assert figures["mse"] == pytest.approx(expected["mse"], rel=1e-5)
    assert figures["mae"] == pytest.approx(expected["mae"], rel=1e-5)


@pytest.mark.parametrize("horizon", [1, HORIZON, SEASON, 2 * SEASON + 3])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_baselines_equal_explicit_loops(make, split, horizon):
    """Also if the horizon is longer than the season."""
    task = make(horizon=horizon)
    pasts, futures = zip(*windows(split, horizon=horizon), strict=True)
    persistence = [[past[-1] for _ in range(horizon)] for past in pasts]
    seasonal = []
    for past in pasts:
        rows = list(past)
        for _ in range(horizon):
            rows.append(rows[-SEASON])
        seasonal.append(rows[len(past) :])
    baselines = task.baselines(split)
    assert list(baselines) == ["persistence", "seasonal naive (8 rows)"]
    for figures, forecasts in zip(baselines.values(), (persistence, seasonal), strict=True):
        expected = errors(forecasts, futures)
        assert figures == pytest.approx({"loss": expected["mse"], **expected}, rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_the_loss_of_an_evaluation_equals_that_of_training(make, loss):
    task = make(model={"loss": loss})
    figures = [task.evaluate(Compiled(built(task)), "validation")]
    figures += task.baselines("validation").values()
    assert all(each["loss"] == each[loss] for each in figures)


def test_columns_are_independent(make):
    """A column's forecast depends neither on the order of columns nor on the other columns."""
    task = make()
    model = built(task)
    past = np.array(task._windows("test")[0][:4])
    forecast = np.asarray(forecast_of(model, past))
    order = [2, 0, 1]
    np.testing.assert_allclose(
        forecast_of(model, past[:, :, order]), forecast[:, :, order], rtol=0, atol=1e-6
    )
    past[:, :, :2] = np.random.default_rng(1).normal(size=past[:, :, :2].shape)
    np.testing.assert_allclose(
        forecast_of(model, past)[:, :, 2], forecast[:, :, 2], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_the_loss_is_the_error_of_the_forecast(make, loss):
    task = make(model={"loss": loss})
    model, batch = built(task), task.batches(seed=0)[0]
    forecasts = [
        np.stack([network(params_of(model), column) for column in past.T], 1)
        for past in batch["past"].astype(np.float64)
    ]
    value, carry = task.loss(Compiled(model), (), batch, None)
    assert float(value) == pytest.approx(errors(forecasts, batch["future"])[loss], rel=1e-5)
    assert carry == ()
    assert loss in task.loss_unit


def test_dropout_is_active_only_in_training(make):
    task, plain = make(model={"dropout": 0.5}), make()
    model, past = built(task), task.batches(seed=0)[0]["past"]
    forecast = forecast_of(model, past)
    other = with_params(plain.build(nnx.Rngs(0)), params_of(model))
    np.testing.assert_array_equal(forecast, forecast_of(other, past))
    assert np.abs(forecast_of(model, past, seed=0) - forecast).max() > 1e-2


def test_bfloat16_is_close_to_float32(make):
    task, coarse = make(), make(model={"dtype": "bfloat16"})
    model, past = built(task), task.batches(seed=0)[0]["past"]
    narrow = with_params(coarse.build(nnx.Rngs(0)), params_of(model))
    forecast, other = forecast_of(model, past), forecast_of(narrow, past)
    assert other.dtype == jnp.float32
    # bfloat16 rounds each factor to 2**-9; outputs are of order one.
    np.testing.assert_allclose(other, forecast, rtol=0, atol=0.02)
    assert np.abs(other - forecast).max() > 0


def write(path, values, columns=("one", "two", "three")):
    rows = [",".join([str(t), *map(repr, row)]) for t, row in enumerate(values.tolist())]
    path.write_text("\n".join([",".join(["date", *columns]), *rows]))
    return path


def test_predictions_for_new_files_have_the_errors_of_an_evaluation(make, tmp_path):
    """A file with the past of each window of the test split, in the units of the table."""
    task = make()
    model, errors_of_all = Compiled(built(task)), []
    deviation = table()[:TRAIN].std(0)
    for start in range(300, 380 - HORIZON + 1):
        path = write(tmp_path / "new.csv", table()[start - WINDOW - 3 : start])
        columns = task.predict(model, path)
        assert columns["row"].tolist() == list(range(1, HORIZON + 1))
        forecast = np.stack([columns[name] for name in ("one", "two", "three")], 1)
        errors_of_all.append((forecast - table()[start : start + HORIZON]) / deviation)
    metrics = task.evaluate(model, "test")
    # Windows are standardised in float32: rounding errors of 6e-8 in values of order one.
    assert metrics["mse"] == pytest.approx(np.square(errors_of_all).mean(), rel=1e-6)
    assert metrics["mae"] == pytest.approx(np.abs(errors_of_all).mean(), rel=1e-6)


def test_files_that_do_not_fit_are_named(make, tmp_path):
    task = make()
    path = write(tmp_path / "new.csv", table()[: WINDOW - 1])
    with pytest.raises(
        UserError, match=r"new\.csv: expected at least data\.window = 24 rows, got 23"
    ):
        task.predict(None, path)
    path = write(tmp_path / "new.csv", table(), ("one", "three", "two"))
    with pytest.raises(
        UserError, match=r"expected the columns one, two, three .*got one, three, two"
    ):
        task.predict(None, path)


def constant(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values[:TRAIN, 1] = value
    return values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"segment": 7}}, "model.segment: expected a divisor of data.window = 24, got 7"),
        ({"season": 25}, "data.season: expected at most data.window = 24, got 25"),
        (
            {"test_rows": 101},
            ".csv: expected at least train_rows + validation_rows + test_rows = 401 rows, got 400",
        ),
        ({"train_rows": 28}, "data.train_rows: expected at least window + horizon = 29, got 28"),
        ({"validation_rows": 4}, "data.validation_rows: expected at least horizon = 5, got 4"),
        ({"test_rows": 4}, "data.test_rows: expected at least horizon = 5, got 4"),
        ({"values": constant(table(), 5.0)}, "column 'two' is constant over the training rows"),
        # The mean of many values 0.7 is not 0.7, so their deviation is not exactly zero.
        ({"values": constant(table(), 0.7)}, "column 'two' is constant over the training rows"),
    ],
)
def test_inconsistent_options_are_named(make, options, message):
    with pytest.raises(UserError) as caught:
        make(**options).batches(seed=0)
    assert message in str(caught.value)


def test_a_constant_column_is_rejected_when_the_task_is_created(make):
    with pytest.raises(UserError, match="'two' is constant"):
        make(values=constant(table(), 5.0))


def test_the_smallest_sufficient_number_of_rows(make):
    task = make(train_rows=WINDOW + HORIZON, validation_rows=HORIZON, test_rows=HORIZON)
    model = task.build(nnx.Rngs(0))
    for split in task.splits:
        assert len(task._windows(split)[0]) == 1
        assert np.isfinite(task.evaluate(Compiled(model), split)["loss"])


def test_the_fingerprint_changes_with_the_table(make):
    changed = table()
    changed[-1, -1] += 1
    assert make().fingerprint != make(values=changed).fingerprint


@pytest.mark.data
def test_baselines_of_etth1_are_close_to_published_values(public_data):
    """Horizon 96, test rows: about 1.29 for persistence, 0.51 for repeating the previous day."""
    public_data("etth1/ETTh1.csv")
    baselines = Forecasting(SeriesData(), ForecasterConfig()).baselines("test")
    assert 1.28 < baselines["persistence"]["mse"] < 1.31
    assert 0.50 < baselines["seasonal naive (24 rows)"]["mse"] < 0.52


@pytest.mark.parametrize("value", [1e308, 1e60, 1e39])
@pytest.mark.parametrize("row", [5, TRAIN + VALIDATION + 3], ids=["training", "test"])
def test_a_number_that_float32_cannot_hold_is_named_before_training(make, value, row):
    values = table()
    values[row, 1] = value
    with pytest.raises(UserError) as caught:
        make(values)
    assert f"line {row + 2}: column 'two': expected a number that float32 can" in str(caught.value)
