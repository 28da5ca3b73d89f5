"""The configs of experiments/ and the statements of their pages."""

import importlib
import importlib.util
import json
import pathlib
import sys

import numpy as np
import pandas as pd
import pytest

from lstm_jax.config.recurrent import cell_factory
from lstm_jax.tasks.time_series import TimeSeries
from lstm_jax.tasks.time_series_data import TimeSeriesData, TimeSeriesModel
from lstm_jax.train import load_config, train
from tests.cells.test_initializers import LIBRARIES
from tests.train.test_loop import Listener

ROOT = pathlib.Path(__file__).parents[1]
STUDY = ROOT / "experiments" / "initialisation"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study", STUDY / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_names_the_cells_that_are_compared(study):
    page = (ROOT / "docs" / "initialisation.md").read_text("utf-8")
    for text in (*study.LIBRARIES.values(), *LIBRARIES):
        assert f"| `{text}` |" in page
        cell_factory(text)


def test_there_is_a_config_for_each_task(study, monkeypatch):
    monkeypatch.syspath_prepend(STUDY)
    assert {path.stem for path in STUDY.glob("*.toml")} == set(study.REPORTED)
    for task, metric in study.REPORTED.items():
        config = load_config(STUDY / f"{task}.toml")
        assert config.train.num_steps % config.train.eval_every == 0
        assert metric.split("/")[0] in ("validation", "test")


def test_the_adding_problem(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(STUDY)
    small = {"data.steps": "6", "model.hidden_size": "8", "train.num_steps": "2"}
    config = load_config(STUDY / "adding.toml", small)
    batch = importlib.import_module("adding").sequences(0, rows=4000, steps=6)
    numbers, marks = batch["xs"][..., 0], batch["xs"][..., 1]
    assert (marks.sum(1) == 2).all() and (marks[:, :3].sum(1) == 1).all()
    np.testing.assert_allclose((numbers * marks).sum(1), batch["sums"], rtol=1e-6)
    # The square of (sum - 1) has the mean 1/6 and the variance 1/15 - 1/36: five deviations.
    spread = np.sqrt((1 / 15 - 1 / 36) / 4000)
    assert abs(np.square(batch["sums"] - 1).mean() - 1 / 6) < 5 * spread
    results = train(config, tmp_path / "run", Listener())
    assert 0 < results["validation"]["loss"] != results["test"]["loss"] > 0


COMPARISON = ROOT / "experiments" / "transformer"


@pytest.fixture
def comparison(monkeypatch):
    """The modules of experiments/transformer."""
    monkeypatch.syspath_prepend(COMPARISON)
    names = ("compare", "measure", "tables")
    yield [importlib.import_module(name) for name in names]
    for name in names:
        sys.modules.pop(name)


def test_runs_of_the_comparison_have_names(comparison):
    compare, _, _ = comparison
    names = [run.name for run in compare.RUNS]
    assert [compare.Run.named(name) for name in names] == compare.RUNS
    assert "translation_LSTM_0.1_0.002_0.3_0" in names
    for task, kinds in compare.KINDS.items():
        for kind in kinds:
            config = compare.config_of(task, kind, {"model.dropout": 0.45})
            assert config.model.dropout == 0.45
            assert config.model.kind == kind.lower()
            assert config.train.num_steps == compare.STEPS[task][1.0]


def test_tables_select_by_validation_and_report_the_test(comparison, tmp_path, capsys):
    compare, _, tables = comparison
    for dropout, seed, validation, test in ((0.2, 0, 30, 35), (0.3, 0, 31, 33), (0.3, 1, 20, 34)):
        run = compare.Run("translation", "LSTM", 1.0, 2e-3, dropout, seed)
        (tmp_path / run.name).mkdir()
        results = {"validation": {"BLEU": validation}, "test": {"BLEU": test}}
        (tmp_path / run.name / "results.json").write_text(json.dumps(results))
    tables.write(tmp_path, compare.RUNS)
    row = "| translation | 100% | LSTM | 0.002 | 0.3 | 2 | 25.5 ± 7.8 | 33.5 ± 0.7 |"
    assert row in capsys.readouterr().out


def test_a_peer_reads_the_table_and_forecasts_from_the_origins_of_the_backtest(tmp_path):
    path = ROOT / "experiments" / "forecasting" / "compare.py"
    spec = importlib.util.spec_from_file_location("forecasting_compare", path)
    compare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compare)
    assert set(compare.SHORT) <= {each.stem for each in (ROOT / "configs").glob("*.toml")}
    rng, times = np.random.default_rng(0), pd.date_range("2024-01-01", periods=60, freq="h")
    table = pd.concat(
        pd.DataFrame(
            {"unique_id": n, "ds": times, "y": rng.normal(5, 1, 60), "wind": ["N", "S"] * 30}
        )
        for n in "ab"
    )
    table.iloc[3:5, 2] = np.nan
    table.iloc[7, 3] = None
    table.to_csv(tmp_path / "table.csv", index=False)
    sizes = dict(window=12, horizon=4, season=4, validation="10", test="10", stride=2)
    data = TimeSeriesData(table=str(tmp_path / "table.csv"), static_columns="unique_id", **sizes)
    task = TimeSeries(data, TimeSeriesModel())
    whole, static, past, future = compare.frames(task)
    assert past == ["wind_N", "wind_S"] and "hour sin" in future
    assert static.columns.tolist() == ["unique_id", "unique_id_a", "unique_id_b"]
    assert whole["available_mask"].tolist() == [1] * 3 + [0] * 2 + [1] * 115
    assert whole["y"][4] == whole["y"][2] and whole["wind_N"][7] == 1 == whole["wind_N"][6]
    rows = []
    for name in "ba":
        for row in (50, 52, 54, 56):
            forecast = pd.DataFrame({"ds": times[row : row + 4], "unique_id": name})
            forecast["cutoff"] = times[row - 1]
            value = row + (name == "b") + 0.01 * np.arange(4)
            columns = [f"q{level:g}" for level in compare.LEVELS]
            forecast[columns] = value[:, None] + np.arange(len(columns))[::-1]
            rows.append(forecast.iloc[::-1])
    found = compare.aligned(task, pd.concat(rows))
    expected = np.array([*range(50, 57, 2), *range(51, 58, 2)])[:, None] + 0.01 * np.arange(4)
    np.testing.assert_allclose(found.quantiles[..., 0], expected)
    np.testing.assert_allclose(found.mean, expected + 5)
