"""Forecasts of tables: metrics against loops, and no use of values that are not yet known."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from flax import nnx
from scipy.stats import norm

from lstm_jax.cli import main
from lstm_jax.errors import UserError
from lstm_jax.export import ExportedModel
from lstm_jax.models import Compiled
from lstm_jax.tasks.forecast_metrics import metrics_of
from lstm_jax.tasks.quantile_forecasts import LEVELS, Forecasts, Origins
from lstm_jax.tasks.quantile_regression import quantile_regression
from lstm_jax.tasks.simple_methods import with_errors
from lstm_jax.tasks.time_series import TimeSeries
from lstm_jax.tasks.time_series_data import TimeSeriesData, TimeSeriesModel
from lstm_jax.train import load_run

W, F = 16, 4
SMALL = TimeSeriesModel(hidden_size=6, embedding_size=2)
SAMPLED = dataclasses.replace(SMALL, decoding="autoregressive", samples=20, head="student_t")


def weekly(path, rows: int = 100, future: int = F, gap: bool = True):
    """Weekly sales of two shops, with a gap and a promotion that is planned."""
    rng, parts = np.random.default_rng(0), []
    for n, shop in enumerate(("north", "south")):
        dates = pd.date_range("2022-01-02", periods=rows + future, freq="W-SUN")
        promotion = rng.integers(0, 2, rows + future)
        sales = 50 * (n + 1) + 10 * np.sin(np.arange(rows + future)) + 20 * promotion
        sales += rng.normal(size=len(sales))
        sales[rows:] = np.nan
        sales[30:33] = np.nan if gap else sales[30:33]
        columns = {"shop": shop, "week": dates, "sales": sales, "promotion": promotion}
        parts.append(pd.DataFrame(columns | {"visitors": sales + rng.normal(size=len(sales))}))
    frame = pd.concat(parts)
    frame.to_csv(path, index=False)
    return frame


def task_of(path, model=SMALL, **options):
    options = {
        "id_columns": "shop", "target_columns": "sales", "known_columns": "promotion",
        "static_columns": "shop", "window": W, "horizon": F, "season": 4, "validation": "12",
        "test": "12", "batch_size": 4,
    } | options  # fmt: skip
    return TimeSeries(TimeSeriesData(table=str(path), **options), model)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Several batches of forecasts, the last one incomplete, where there would be one of 256."""
    monkeypatch.setattr("lstm_jax.tasks.backtest.EVALUATION_BATCH", 16)


@pytest.fixture(scope="module")
def sales(tmp_path_factory):
    path = tmp_path_factory.mktemp("sales") / "sales.csv"
    weekly(path)
    return path


@pytest.fixture(scope="module")
def task(sales):
    return task_of(sales)


@pytest.fixture(scope="module")
def model(task):
    return Compiled(task.build(nnx.Rngs(0)))


# ---- inferred options ----


def test_missing_options_are_inferred(sales):
    data = TimeSeriesData(table=str(sales), id_columns="shop", target_columns="sales")
    task = TimeSeries(dataclasses.replace(data, known_columns="promotion"), SMALL)
    data = task.data
    assert (data.frequency, data.season, data.horizon) == ("W-SUN", 1, 12)
    assert data.time_column == "week" and data.past_columns == "visitors"
    assert data.window % task.model.segment == 0 and data.stride == data.horizon
    assert "2 series from 2022-01-02" in task.described()[0]
    again = TimeSeries(task.data, task.model)
    assert again == task


@pytest.mark.parametrize(
    ("part", "rows"), [("10", 10), ("0.1", 10), ("2023-10-01", 9), ("none", 0)]
)
def test_splits_are_rows_fractions_or_dates(sales, part, rows):
    task = task_of(sales, test=part)
    parts = task.data.parts(task._table.series[0])
    assert parts.test - parts.validation == rows and parts.validation - parts.train == 12
    assert task.splits == (("validation",) if part == "none" else ("validation", "test"))


# ---- no use of future values ----


@pytest.mark.parametrize("decoding", ["direct", "autoregressive"])
def test_the_future_can_be_poisoned_where_it_is_not_known(sales, task, model, decoding):
    """All future values, except in columns that are known in advance."""
    if decoding == "autoregressive":
        task = task_of(sales, SAMPLED)
        model = Compiled(task.build(nnx.Rngs(0)))
    arrays = task._arrays
    series, rows = np.array([0, 1]), np.array([60, 70])
    before = task._forecast(model, arrays, series, rows)
    target, past = arrays.target.copy(), arrays.past.copy()
    for s, row in zip(series, rows, strict=True):
        later = slice(arrays.starts[s] + row, arrays.starts[s] + 104)
        target[later], past[later] = 1e9, np.nan
    poisoned = arrays._replace(target=target, past=past)
    after = task._forecast(model, poisoned, series, rows)
    np.testing.assert_array_equal(before.quantiles, after.quantiles)
    known = arrays.known.copy()
    known[arrays.starts[0] + 61, 0] += 3  # a promotion
    after = task._forecast(model, arrays._replace(known=known), series, rows)
    assert (after.quantiles[0] != before.quantiles[0]).any()


def test_missing_values_affect_neither_loss_nor_metrics(task, model):
    batch = {name: array.copy() for name, array in task.batches(0)[0].items()}
    batch["future"][:, 1] = np.nan
    whole, _ = task.loss(model.module, (), batch, nnx.Rngs(0))
    assert np.isfinite(whole)
    origins = task._backtests["test"].origins
    found = task._forecast(model, task._arrays, origins.series, origins.rows)
    truth = origins.truth.copy()
    truth[0, 1] = np.nan
    wild = Forecasts(found.quantiles.copy(), found.mean.copy())
    wild.quantiles[0, 1], wild.mean[0, 1] = 1e6, 1e6
    naive = task._backtests["test"].naive
    masked = origins._replace(truth=truth)
    assert metrics_of(found, masked, naive) == metrics_of(wild, masked, naive)


# ---- metrics and simple methods ----


def test_metrics_equal_those_of_loops():
    rng = np.random.default_rng(0)
    truth = rng.gamma(2, 3, (5, 3))
    truth[0, 2] = np.nan
    quantiles = np.sort(rng.gamma(2, 3, (5, 3, len(LEVELS))), -1)
    found, naive = Forecasts(quantiles, quantiles.mean(-1)), np.array([2.0, np.nan, 0.5])
    series = np.array([0, 0, 1, 2, 2])
    values = metrics_of(found, Origins(series, np.zeros(5, int), truth), naive)
    seen = [(n, f) for n in range(5) for f in range(3) if np.isfinite(truth[n, f])]
    total = sum(truth[n, f] for n, f in seen)
    losses = []
    for k, level in enumerate(LEVELS):
        if 0.05 < level < 0.95:
            errors = [truth[n, f] - quantiles[n, f, k] for n, f in seen]
            losses.append(2 * sum(e * level if e > 0 else e * (level - 1) for e in errors) / total)
    assert values["loss"] == pytest.approx(np.mean(losses))
    error = {place: abs(truth[place] - quantiles[*place, 5]) for place in seen}
    assert values["mae"] == pytest.approx(np.mean(list(error.values())))
    smape = [200 * e / (truth[p] + quantiles[*p, 5]) for p, e in error.items()]
    assert values["smape"] == pytest.approx(np.mean(smape))
    by_series = [
        np.mean([e for (n, _), e in error.items() if series[n] == s]) / naive[s] for s in (0, 2)
    ]
    assert values["mase"] == pytest.approx(np.mean(by_series))
    inside = [quantiles[*p, 1] <= truth[p] <= quantiles[*p, 9] for p in seen]
    assert values["coverage_80"] == pytest.approx(np.mean(inside))


def test_quantile_regression_agrees_with_linear_programming():
    from scipy.optimize import linprog

    rng = np.random.default_rng(0)
    xs = np.concatenate([np.ones((60, 1)), rng.normal(size=(60, 2))], 1)
    ys = xs @ [1.0, 2.0, -1.0] + rng.gumbel(size=60)
    for level in (0.2, 0.5):
        cost = np.concatenate([np.zeros(6), np.full(60, level), np.full(60, 1 - level)])
        equal = np.concatenate([xs, -xs, np.eye(60), -np.eye(60)], 1)
        best = linprog(cost, A_eq=equal, b_eq=ys).fun
        (weights,) = quantile_regression(xs, ys, (level,), steps=60)
        r = ys - xs @ weights
        assert np.maximum(level * r, (level - 1) * r).sum() == pytest.approx(best, rel=0.01)


def test_simple_methods_equal_their_definitions(task):
    methods = task.baselines("test")
    assert list(methods) == [
        "persistence", "seasonal naive (4)", "drift", "climatology", "linear quantiles"
    ]  # fmt: skip
    origins, arrays = task._backtests["test"].origins, task._arrays
    errors = []
    for s, row, truth in zip(*origins, strict=True):
        past = arrays.target[arrays.starts[s] + row - 4 : arrays.starts[s] + row]
        errors += np.abs(truth - past).tolist()
    assert methods["seasonal naive (4)"]["mae"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_intervals_of_simple_methods_have_their_coverage():
    rng = np.random.default_rng(0)
    errors = Origins(np.repeat([0, 1], 2000), np.arange(4000), rng.normal(size=(4000, 2)))
    errors.truth[2000:] = 3 + 5 * errors.truth[2000:]
    values = np.ones((4000, 2))
    found = with_errors(values, errors, errors)
    np.testing.assert_array_equal(found.median, values)
    relative = (found.quantiles[[0, -1]] - 1) / np.array([1, 5])[:, None, None]
    # Four standard errors of the outermost quantile of 2,000 values, sqrt(0.025 / 2000) / 0.06.
    np.testing.assert_allclose(relative, np.tile(norm.ppf(LEVELS), (2, 2, 1)), atol=0.24)
    unknown = errors._replace(truth=np.full((4000, 2), np.nan))
    assert (with_errors(values, errors, unknown).quantiles == 1).all()
    first = Origins(*(each[:2000] for each in errors))  # the other series has no errors
    assert (with_errors(values, errors, first).quantiles[2000:] == 1).all()


@pytest.mark.parametrize("head", ["point", "normal", "student_t", "mixture", "negative_binomial"])
def test_every_head_is_evaluated(tmp_path, head):
    frame = weekly(tmp_path / "sales.csv")
    frame["sales"] = frame["sales"].round()
    frame.to_csv(tmp_path / "sales.csv", index=False)
    scaling = "mean" if head == "negative_binomial" else "log"
    options = dataclasses.replace(SMALL, head=head, scaling=scaling)
    task = task_of(tmp_path / "sales.csv", options)
    metrics = task.evaluate(Compiled(task.build(nnx.Rngs(0))), "test")
    assert all(np.isfinite(value) for value in metrics.values())
    assert ("coverage_80" in metrics) == (head != "point")
    loss, _ = task.loss(task.build(nnx.Rngs(0)), (), task.batches(0)[0], nnx.Rngs(0))
    assert np.isfinite(loss)


# ---- a run ----


def test_a_run_forecasts_the_rows_after_its_table(sales, tmp_path, capsys):
    config = tmp_path / "sales.toml"
    config.write_text(
        f'task = "time_series"\n[data]\ntable = "{sales}"\nid_columns = "shop"\n'
        'target_columns = "sales"\nknown_columns = "promotion"\nhorizon = 4\n'
        "[model]\nhidden_size = 6\n[train]\nnum_steps = 3\n"
    )
    run = tmp_path / "run"
    assert main(["train", str(config), "--workdir", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "frequency W-SUN" in printed and "gaps" not in printed  # they are rows of the file
    stored = (run / "config.toml").read_text()
    assert 'frequency = "W-SUN"' in stored and "window = 0" not in stored
    assert main(["train", str(run)]) == 0
    moved = sales.with_name("moved.csv")
    sales.rename(moved)
    try:
        output = tmp_path / "forecast.csv"
        assert main(["predict", str(run), str(moved), "--output", str(output)]) == 0
    finally:
        moved.rename(sales)
    found = pd.read_csv(output)
    assert found["unique_id"].tolist() == ["north"] * 4 + ["south"] * 4
    expected = pd.date_range("2023-12-03", periods=4, freq="W-SUN").strftime("%Y-%m-%d")
    assert found["ds"].tolist() == 2 * expected.tolist()
    levels = found[[f"q{level:g}" for level in LEVELS]].to_numpy()
    assert (np.diff(levels, axis=1) >= 0).all() and np.isfinite(levels).all()
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "forecast.html").read_text()
    assert page.count("<svg") == 2 and "2023-12-03 to 2023-12-24" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert {"mase", "coverage_80", "loss"} <= set(
        json.loads((run / "results.json").read_text())["test"]
    )
    assert load_run(run).task.data.frequency == "W-SUN"
    _exported_as_evaluated(run, capsys)


def _exported_as_evaluated(run, capsys):
    """The exported model has the run's metrics, from windows with missing values, too."""
    assert main(["export", str(run)]) == 0
    results = json.loads((run / "results.json").read_text())
    manifest = json.loads((run / "export" / "stablehlo-float32" / "manifest.json").read_text())
    for split in ("validation", "test"):
        for name, value in manifest["metrics"][split].items():
            np.testing.assert_allclose(value, results[split][name], rtol=1e-4, err_msg=name)
    model = ExportedModel(run / "export" / "stablehlo-float32")
    inputs = {
        name: np.zeros(
            [int(size) if size.strip() != "b" else 1 for size in spec["shape"].split(",")]
        )
        for name, spec in model.metadata["inputs"].items()
    }
    inputs["categories"] = inputs["categories"].astype(np.int32)
    inputs["target"][0, 3] = np.nan
    assert np.isfinite(model.apply(inputs)["raw"]).all()
    inputs["target"][0, 3] = np.inf
    with pytest.raises(ValueError, match=r"target\[0, 3\]: expected a finite float32 input"):
        model.apply(inputs)
    capsys.readouterr()
    assert main(["export", str(run), "--format", "onnx"]) == 1
    assert (
        "--format: expected stablehlo for this model, got onnx (cummax" in capsys.readouterr().err
    )


def test_the_criterion_selects_the_checkpoint(sales, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "sales.toml").write_text(
        f'task = "time_series"\n[data]\ntable = "{sales}"\nid_columns = "shop"\n'
        'target_columns = "sales"\nhorizon = 4\ncriterion = "mase"\n[model]\nhidden_size = 6\n'
        "[optimizer]\nlearning_rate = 0.05\n[train]\nnum_steps = 6\neval_every = 1\n"
    )
    assert main(["train", str(tmp_path / "sales.toml"), "--workdir", str(run)]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {x["step"]: x["validation/mase"] for x in lines if "validation/mase" in x}
    assert [*found] == [1, 2, 3, 4, 5, 6]
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == min(found, key=found.get)
    np.testing.assert_allclose(results["validation"]["mase"], min(found.values()), rtol=1e-6)


def test_an_ensemble_of_sampled_forecasters_is_trained_and_forecasts(sales, tmp_path, capsys):
    run, output = tmp_path / "run", tmp_path / "forecast.csv"
    (tmp_path / "sales.toml").write_text(
        f'task = "time_series"\n[data]\ntable = "{sales}"\nid_columns = "shop"\n'
        'target_columns = "sales"\nknown_columns = "promotion"\nhorizon = 4\n'
        '[model]\nhidden_size = 6\nmembers = 2\ndecoding = "autoregressive"\nsamples = 20\n'
        'head = "student_t"\n[train]\nnum_steps = 3\n'
    )
    assert main(["train", str(tmp_path / "sales.toml"), "--workdir", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert main(["predict", str(run), "--output", str(output)]) == 0
    levels = pd.read_csv(output)[[f"q{level:g}" for level in LEVELS]].to_numpy()
    assert (np.diff(levels, axis=1) >= 0).all() and np.isfinite(levels).all()
    assert main(["predict", str(run), "--output", str(tmp_path / "again.csv")]) == 0
    assert (tmp_path / "again.csv").read_bytes() == output.read_bytes()
    capsys.readouterr()
    assert main(["export", str(run)]) == 1
    found = "autoregressive, whose forecasts are random samples"
    said = f"model.decoding: expected direct for a model to export, got {found}"
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_forecast_has_the_units_of_the_data(task, sales, model, tmp_path):
    """Sales a thousand times as large have forecasts a thousand times as large, except for the
    effect of the scale that the model reads."""
    columns = task.predict(model, None)
    assert len(columns["ds"]) == 2 * F and columns["unique_id"][0] == "north"
    assert 20 < np.median(columns["q0.5"]) < 200


# ---- mistakes ----


def wrong(path, model=SMALL, **options):
    with pytest.raises(UserError) as raised:
        task_of(path, model, **options)
    return str(raised.value)


def test_sizes_that_do_not_fit_are_reported(sales):
    assert "train split: expected at least data.window + data.horizon = 84 rows, got 76" in wrong(
        sales, window=80
    )
    assert "series 'north': test split: expected at least data.horizon = 4 rows, got 3" in wrong(
        sales, test="3"
    )
    assert "data.season: expected at most data.window = 16, got 20" in wrong(sales, season=20)
    assert "model.segment: expected a divisor of data.window = 16, got 3" in wrong(
        sales, dataclasses.replace(SMALL, segment=3)
    )


def test_values_that_do_not_fit_are_reported(sales, tmp_path):
    frame = pd.read_csv(sales)
    frame.loc[frame["shop"] == "south", "sales"] = 5.0
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert "series 'south': lines 106 to 185 (train split): expected values that vary" in wrong(
        tmp_path / "a.csv", known_columns=""
    )
    frame.loc[frame["shop"] == "south", "sales"] = 1e9 + 0.01 * np.arange(104)
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert "(train split): expected values that stay different in float32" in wrong(
        tmp_path / "a.csv", known_columns=""
    )
    frame.loc[3, "sales"] = -1.0
    frame.to_csv(tmp_path / "a.csv", index=False)
    model = dataclasses.replace(SMALL, scaling="log")
    frame.loc[frame["shop"] == "south", "sales"] = np.arange(104.0)
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert "line 5: expected at least 0" in wrong(tmp_path / "a.csv", model, known_columns="")


def test_a_file_that_does_not_fit_is_reported(task, model, tmp_path):
    weekly(tmp_path / "short.csv", future=2)
    with pytest.raises(UserError, match="columns promotion: expected 4 rows with promotion after"):
        task.predict(model, tmp_path / "short.csv")
    weekly(tmp_path / "new.csv", rows=10)
    with pytest.raises(UserError, match=r"expected at least data\.window = 16 rows"):
        task.predict(model, tmp_path / "new.csv")
    frame = weekly(tmp_path / "new.csv")
    frame.assign(promotion="yes").to_csv(tmp_path / "words.csv", index=False)
    with pytest.raises(UserError, match=r"words\.csv: series 'north': line 2: column 'promotion'"):
        task.predict(model, tmp_path / "words.csv")
    columns = task.predict(model, tmp_path / "new.csv")
    assert len(columns["mean"]) == 2 * F
