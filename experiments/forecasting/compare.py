"""Compares the forecaster of task ``time_series`` with the LSTM of neuralforecast, on one core.

    pip install neuralforecast          # on top of a torch for the CPU; versions are printed
    taskset -c 0 python experiments/forecasting/compare.py runs/comparison m4_hourly beijing_air

Both read the same rows, train on the same part, choose their best parameters on the same validation
rows, and forecast from the same test origins; :mod:`lstm_jax.tasks.backtest` evaluates both.
neuralforecast trains for ``SECONDS`` of processor time, including validation.  The forecaster
trains for the number of steps in ``SHORT``, and the processor time is printed.

neuralforecast has its own defaults (two layers of 128, a robust scaler, direct forecasts) and the
same window, batch, quantile levels, covariates, calendar and static columns.  It is validated every
``CHECK`` steps, and its best parameters are used.  For neuralforecast, gaps in covariates are
filled with the last value before them, and missing targets are masked.
"""

import json
import pathlib
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from lstm_jax.data.calendar import calendar_features, calendar_names
from lstm_jax.tasks.quantile_forecasts import LEVELS, Forecasts
from lstm_jax.train import Report, load_config, train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SECONDS = 150.0
CHECK = 200
SHORT = {  # a short validation split, since neuralforecast makes a forecast at each of its rows
    "m4_hourly": {"data.validation": "48", "train.num_steps": "2000"},
    "beijing_air": {"data.validation": "2016-02-01", "train.num_steps": "1500"},
}
SHOWN = ("loss", "mase", "owa", "coverage_80", "seconds")


class Clock(Report):
    """A report that records the processor time at the end of training."""

    seconds = 0.0

    def end_progress(self) -> None:
        self.seconds = self.seconds or time.process_time()
        super().end_progress()


def forecaster(task: Any, config: Any, workdir: pathlib.Path) -> dict[str, float]:
    """Metrics of the test split, and the seconds of training."""
    began, clock = time.process_time(), Clock()
    results = train(config, workdir, clock)
    return results["test"] | {"seconds": clock.seconds - began}


# ---- neuralforecast ----


def frames(task: Any) -> tuple[pd.DataFrame, pd.DataFrame, list[str], list[str]]:
    """The table as neuralforecast reads it, static columns, past covariates, and calendar."""
    parts, table = [], task.data.read()
    future = calendar_names(table.frequency)
    for series in table.series:
        part = pd.DataFrame(series.covariates, index=range(len(series.target)))
        part = part.ffill().bfill()
        if future:
            part[future] = calendar_features(series.times, table.frequency)
        part["available_mask"] = np.isfinite(series.target).astype(int)
        part["y"] = pd.Series(series.target).ffill().bfill()
        part.insert(0, "ds", series.times)
        part.insert(0, "unique_id", series.name)
        parts.append(part)
    whole = pd.concat(parts, ignore_index=True)
    words = [
        name for name in whole if name in table.columns.past and whole[name].dtype.kind not in "fi"
    ]
    whole = pd.get_dummies(whole, columns=words, dtype=float)
    past = [
        name for name in whole if name not in {"unique_id", "ds", "y", "available_mask", *future}
    ]
    static = pd.DataFrame([each.static for each in table.series])
    if table.columns.static:
        static = pd.get_dummies(static, dtype=float)
    static.insert(0, "unique_id", [each.name for each in table.series])
    return whole, static, past, future


def peer(task: Any, seed: int = 0) -> tuple[pd.DataFrame, float]:
    """Forecasts of neuralforecast from the rows of the test split, and the training seconds."""
    import pytorch_lightning
    import torch
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import LSTM

    class Best(pytorch_lightning.Callback):
        """Stops after ``SECONDS``, and restores the best parameters on the validation rows."""

        began, loss, state = time.process_time(), np.inf, None

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = time.process_time() - self.began > SECONDS

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if trainer.sanity_checking:
                return
            loss = float(trainer.callback_metrics["ptl/val_loss"])
            print(f"step {trainer.global_step}: validation loss {loss:.5g}", flush=True)
            if loss < self.loss:
                state = {name: array.clone() for name, array in module.state_dict().items()}
                self.loss, self.state = loss, state

        def on_train_end(self, trainer: Any, module: Any) -> None:
            seconds.append(time.process_time() - self.began)
            print(f"stopped after {trainer.global_step} steps, {seconds[0]:.0f} s")
            if self.state is not None:
                module.load_state_dict(self.state)

    torch.set_num_threads(1)
    data, seconds = task.data, []
    whole, static, past, future = frames(task)
    model = LSTM(
        h=data.horizon, input_size=data.window, loss=MQLoss(quantiles=list(LEVELS)),
        max_steps=10**6, val_check_steps=CHECK, windows_batch_size=data.batch_size,
        hist_exog_list=past or None, futr_exog_list=future or None,
        stat_exog_list=[name for name in static if name != "unique_id"] or None,
        random_seed=seed, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[Best()],
    )  # fmt: skip
    parts = task.data.parts(task.data.read().series[0])
    frequency = 1 if data.frequency == "step" else data.frequency
    found = NeuralForecast([model], freq=frequency).cross_validation(
        whole, static if static.shape[1] > 1 else None, n_windows=None, step_size=data.stride,
        val_size=parts.validation - parts.train, test_size=parts.test - parts.validation,
    )  # fmt: skip
    names = zip(model.loss.output_names, LEVELS, strict=True)
    columns = {f"LSTM{name}": f"q{level:g}" for name, level in names}
    return found.rename(columns=columns), seconds[0]


def aligned(task: Any, found: pd.DataFrame) -> Forecasts:
    """The forecasts of neuralforecast from the origins of the backtest."""
    table, origins = task.data.read(), task._backtests["test"].origins
    names = [f"q{level:g}" for level in LEVELS]
    groups = {key: part for key, part in found.groupby(["unique_id", "cutoff"])}
    quantiles = []
    for number, row in zip(origins.series, origins.rows, strict=True):
        series = table.series[number]
        part = groups[series.name, series.times[row - 1]].sort_values("ds")
        expected = series.times[row : row + task.data.horizon]
        assert part["ds"].tolist() == expected.tolist()
        quantiles.append(np.sort(part[names].to_numpy(np.float64), -1))
    values = np.stack(quantiles)
    return Forecasts(values, values[..., 1:-1].mean(-1))


def compare(folder: pathlib.Path, name: str) -> dict[str, dict[str, float]]:
    """Metrics of the test split by method."""
    config = load_config(CONFIGS / f"{name}.toml", SHORT[name])
    task = config.build_task()
    rows = {"lstm_jax": forecaster(task, config, folder / name)}
    found, seconds = peer(task)
    metrics = task._backtests["test"].metrics(aligned(task, found))
    rows["neuralforecast"] = metrics | {"seconds": seconds}
    return rows | task.baselines("test")


def main(folder: pathlib.Path, names: list[str]) -> None:
    for name in names:
        rows = compare(folder, name)
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1), "utf-8")
        print(f"\n{name}: neuralforecast {version('neuralforecast')}, torch {version('torch')}, "
              f"jax {version('jax')}\n\n| method | {' | '.join(SHOWN)} |")  # fmt: skip
        for method, metrics in rows.items():
            cells = (f"{metrics[key]:.4g}" if key in metrics else "" for key in SHOWN)
            print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:] or list(SHORT))
