"""Forecasting: the next hours of every column of a table, from a window of the past."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.data import Table, fetch, read_csv, sliding_windows
from lstm_jax.errors import UserError
from lstm_jax.interop.deploy import Function
from lstm_jax.sequence import LSTM, dropout
from lstm_jax.sequence.layers import LSTMStates
from lstm_jax.tasks.base import Batch, Figures, Inspected, Model, Outputs, Params, Trained
from lstm_jax.tasks.options import Section, option
from lstm_jax.tasks.recurrent import RecurrentModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVALUATION_BATCH = 128
INSPECTED_WINDOWS = 8


@dataclasses.dataclass(frozen=True)
class SeriesData(Section):
    """Section ``[data]`` of task ``forecasting``."""

    table: str = option("etth1", "etth1, or the path of a CSV file (time stamp, then numbers)")
    train_rows: int = option(12 * 30 * 24, "rows for training: the first ones", at_least=1)
    validation_rows: int = option(4 * 30 * 24, "rows after them, for validation", at_least=1)
    test_rows: int = option(4 * 30 * 24, "rows after those, for the test", at_least=1)
    window: int = option(720, "W, rows of the past that a forecast sees", at_least=1)
    horizon: int = option(96, "F, rows of the future that it tells", at_least=1)
    season: int = option(24, "rows of a season, for the seasonal naive forecast", at_least=1)
    batch_size: int = option(64, "windows a training step", at_least=1)


@dataclasses.dataclass(frozen=True)
class ForecastModel(RecurrentModel):
    """Section ``[model]`` of task ``forecasting``."""

    segment: int = option(48, "rows that one LSTM step reads; divides data.window", at_least=1)
    dropout: float = option(0.5, "dropout on the outputs of every layer", at_least=0, below=1)
    loss: str = option("mse", "what training minimises", choices=("mse", "mae"))


@dataclasses.dataclass(frozen=True)
class Forecasting:
    """Forecasts every column of a table from its own past.

    The columns are standardised with mean and deviation of the training rows, and stay apart:
    one network with one set of weights reads each column by itself.  From a column's window
    ``x_1 .. x_W`` it subtracts the last value, cuts the rest into W/S segments, embeds each,
    runs an LSTM over them, and reads the whole horizon off the last hidden state::

        e_n = relu(W_e (x_{(n-1)S+1 .. nS} - x_W) + b_e)
        h_N = LSTM(e_1, ..., e_N)
        y_{1..F} = W_y h_N + b_y + x_W

    Validation and test windows may reach back into the rows before their split, as is usual
    for this table; what they forecast lies inside it.

    Raises:
      UserError: the table is missing or broken, or a split is too short for one window.

    References:
      Shengsheng Lin et al., "SegRNN: Segment Recurrent Neural Network for Long-Term Time
      Series Forecasting", arXiv:2308.11200, 2023 (segments, channels apart, last
      value subtracted; here an LSTM, and one linear map for the horizon); Haoyi Zhou et al.,
      "Informer", AAAI 2021 (ETTh1 and its 12/4/4-month split).
    """

    data: SeriesData
    model: ForecastModel
    unit = "windows"
    splits = ("validation", "test")

    def __post_init__(self) -> None:
        data, model = self.data, self.model
        if data.window % model.segment:
            raise UserError(
                f"model.segment: expected a divisor of data.window = {data.window}, "
                f"got {model.segment}"
            )
        if data.season > data.window:
            raise UserError(
                f"data.season: expected at most data.window = {data.window}, got {data.season}"
            )
        rows = len(self._table.values)
        needed = data.train_rows + data.validation_rows + data.test_rows
        if rows < needed:
            raise UserError(
                f"data.table: {data.table} has {rows} rows, expected at least train_rows + "
                f"validation_rows + test_rows = {needed}"
            )
        if data.train_rows < data.window + data.horizon:
            raise UserError(
                f"data.train_rows: expected at least window + horizon = "
                f"{data.window + data.horizon}, got {data.train_rows}"
            )
        for split in ("validation", "test"):
            if getattr(data, f"{split}_rows") < data.horizon:
                raise UserError(
                    f"data.{split}_rows: expected at least horizon = {data.horizon}, "
                    f"got {getattr(data, f'{split}_rows')}"
                )

        train = self._table.values[: data.train_rows]
        constant = np.flatnonzero(np.ptp(train, 0) == 0)
        if constant.size:
            raise UserError(
                f"data.table: {data.table}: column {self._table.columns[constant[0]]!r} is "
                "constant over the training rows"
            )
        model.check_layers(model.hidden_size)

    @functools.cached_property
    def _table(self) -> Table:
        return read_csv(fetch("etth1/ETTh1.csv") if self.data.table == "etth1" else self.data.table)

    @functools.cached_property
    def _standardised(self) -> np.ndarray:
        mean, deviation = self._moments
        return ((self._table.values - mean) / deviation).astype(np.float32)

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each column, over the training rows."""
        train = self._table.values[: self.data.train_rows]
        return train.mean(0), train.std(0)

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._table.values.tobytes()).hexdigest()

    @property
    def batch_size(self) -> int:
        return self.data.batch_size

    @property
    def loss_unit(self) -> str:
        return f"{self.model.loss}, standardised"

    @property
    def units_per_step(self) -> int:
        return self.data.batch_size

    @property
    def _lstm(self) -> LSTM:
        return self.model.layers

    def batches(self, seed: int) -> grain.MapDataset:
        data = self.data
        train = self._standardised[: data.train_rows]
        return sliding_windows(train, data.window, data.horizon, data.batch_size, seed)

    def init(self, key: jax.Array) -> Params:
        """``w_e`` ``(S, H)``, ``b_e``, ``lstm``, ``w_y`` ``(H, F)``, ``b_y``."""
        size, horizon = self.model.hidden_size, self.data.horizon
        keys = jax.random.split(key, 3)
        init = jax.nn.initializers.glorot_uniform()
        return {
            "w_e": init(keys[0], (self.model.segment, size)),
            "b_e": jnp.zeros(size),
            "lstm": self._lstm.init(keys[1], size),
            "w_y": init(keys[2], (self._lstm.output_size, horizon)),
            "b_y": jnp.zeros(horizon),
        }

    def initial_carry(self) -> tuple:
        return ()

    def forecast(self, params: Params, past: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The future of each column, standardised as its past.

        Args:
          params: as from :meth:`init`.
          past: ``[B, W, C]``.
          key: random key for dropout; None for no dropout.

        Returns:
          ``[B, F, C]``.
        """
        state = self.initial_state(params, len(past))
        return self.read(params, state, past, past[:, -1], key)[1]["forecast"]

    def initial_state(self, params: Params, rows: int) -> LSTMStates:
        """The state of each layer where a window begins, arrays ``[rows, C, H]``."""
        return self._lstm.initial_state(params["lstm"], (rows, len(self._table.columns)))

    def read(
        self,
        params: Params,
        state: LSTMStates,
        past: jax.Array,
        level: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[LSTMStates, Outputs]:
        """Some more segments of a window: the state after them, and the ``forecast`` from there.

        Args:
          params: as from :meth:`init`.
          state: as from :meth:`initial_state`, or after the segments before.
          past: ``[B, N * S, C]``.
          level: x_W, which is subtracted from what is read and added to what is told; ``[B, C]``.
          key: random key for dropout; None for no dropout.

        Returns:
          ``(state, {"forecast": [B, F, C]})``.
        """
        lstm_key, key = (None, None) if key is None else jax.random.split(key)
        batch, _, columns = past.shape
        level = level[:, None]
        embedded = self._embedded(params, past - level)
        state = jax.tree.map(lambda leaf: leaf.reshape(batch * columns, *leaf.shape[2:]), state)
        state, ys = self._lstm.apply(params["lstm"], embedded, state, key=lstm_key)
        h = dropout(ys[-1].astype(jnp.float32), self.model.dropout, key)
        change = h @ params["w_y"] + params["b_y"]
        state = jax.tree.map(lambda leaf: leaf.reshape(batch, columns, *leaf.shape[1:]), state)
        return state, {"forecast": change.reshape(batch, columns, -1).swapaxes(1, 2) + level}

    def _embedded(self, params: Params, past: jax.Array) -> jax.Array:
        """What the layers read of ``[B, N * S, C]``, the level subtracted: ``[N, B * C, H]``."""
        batch, _, columns = past.shape
        rows = past.swapaxes(1, 2).reshape(batch * columns, -1, self.model.segment)
        segments = rows.swapaxes(0, 1)  # [N, B * C, S]
        return jax.nn.relu(segments @ params["w_e"] + params["b_e"])

    def loss(
        self, params: Params, carry: tuple, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple]:
        error = self.forecast(params, batch["past"], key) - batch["future"]
        return (jnp.square(error) if self.model.loss == "mse" else jnp.abs(error)).mean(), carry

    def _windows(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Every window of a split: past ``[N, W, C]`` and future ``[N, F, C]``, as views."""
        data = self.data
        start = data.train_rows + (data.validation_rows if split == "test" else 0)
        rows = data.test_rows if split == "test" else data.validation_rows
        reach = min(data.window, start)
        series = self._standardised[start - reach : start + rows]
        stretches = np.lib.stride_tricks.sliding_window_view(series, data.window + data.horizon, 0)
        stretches = stretches.swapaxes(1, 2)
        return stretches[:, : data.window], stretches[:, data.window :]

    @property
    def functions(self) -> dict[str, Function]:
        """``sequence`` reads whole windows; ``step`` a segment, with a level for all of them."""

        def window(params: Params, state: LSTMStates, past: jax.Array) -> Any:
            return self.read(params, state, past, past[:, -1])

        segment, columns = self.model.segment, len(self._table.columns)
        past = (f"b, {segment}, {columns}", "float32")
        level = (f"b, {columns}", "float32")
        return {
            "step": Function(self.read, {"past": past, "level": level}),
            "sequence": Function(window, {"past": (f"b, {segment}*t, {columns}", "float32")}),
        }

    def about(self) -> dict[str, Any]:
        """``columns``, and the ``scaling`` of what is read and told."""
        mean, deviation = (moment.tolist() for moment in self._moments)
        scaled = {"mean": mean, "deviation": deviation}
        scaling = dict.fromkeys(("past", "level", "forecast"), scaled)
        return {"columns": list(self._table.columns), "scaling": scaling}

    def evaluate(self, params: Params, split: str) -> Figures:
        """``mse`` and ``mae`` over all windows and columns; ``loss`` is what training minimises."""
        return self.score(Trained(self, params), split)

    def score(self, model: Model, split: str) -> Figures:
        past, future = self._windows(split)
        # One shape for all batches, the last one filled up with rows that are dropped again.
        forecasts = []
        for start in range(0, len(past), EVALUATION_BATCH):
            rows = np.arange(start, start + EVALUATION_BATCH).clip(max=len(past) - 1)
            forecasts.append(_forecast(model, past[rows]))
        return self._errors(np.concatenate(forecasts)[: len(past)], future)

    def baselines(self, split: str) -> dict[str, Figures]:
        past, future = self._windows(split)
        season = past[:, -self.data.season :]
        steps = np.arange(self.data.horizon) % self.data.season
        return {
            "persistence": self._errors(past[:, -1:], future),
            f"seasonal naive ({self.data.season} rows)": self._errors(season[:, steps], future),
        }

    def _errors(self, forecast: np.ndarray, truth: np.ndarray) -> Figures:
        error = (forecast - truth).astype(np.float64)
        errors = {"mse": float(np.square(error).mean()), "mae": float(np.abs(error).mean())}
        return {"loss": errors[self.model.loss], **errors}

    def inspected(self, params: Params, text: str | None = None) -> Inspected:
        """Windows from the beginning to the end of the validation split, every column a row."""
        if text is not None:
            raise UserError("--text: task forecasting reads no text")
        past, _ = self._windows("validation")
        places = np.linspace(0, len(past) - 1, INSPECTED_WINDOWS).astype(int)
        past = past[np.unique(places)]
        xs = self._embedded(params, jnp.asarray(past - past[:, -1:]))
        what = f"{len(past)} windows of the validation split, {past.shape[-1]} columns each"
        return Inspected(self._lstm, params["lstm"], xs, what)

    def pictures(self, params: Params) -> Iterator[tuple[str, "Figure"]]:
        """Forecasts of the last column, at three places of the test rows."""
        from matplotlib.figure import Figure

        past, future = self._windows("test")
        places = np.linspace(0, len(past) - 1, 5).astype(int)[1:4]
        forecast = _forecast(Trained(self, params), past[places])
        shown = min(self.data.window, 2 * self.data.horizon)
        figure = Figure(figsize=(8, 7), layout="constrained")
        ahead = np.arange(1, self.data.horizon + 1)
        panels = figure.subplots(3, 1, sharex=True)
        for panel, place, guess in zip(panels, places, forecast, strict=True):
            panel.plot(
                np.arange(1 - shown, 1), past[place, -shown:, -1], color="0.55", label="past"
            )
            panel.plot(ahead, future[place, :, -1], color="black", label="truth")
            panel.plot(ahead, guess[:, -1], color="#d55e00", label="forecast")
            panel.axvline(0.5, color="0.8", linewidth=0.8)
            panel.set_ylabel(f"{self._table.columns[-1]} (standard deviations)")
            panel.set_title(f"test window {place}", loc="left", fontsize="medium")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
        panels[-1].set_xlabel("rows from the end of the past")
        yield "forecasts", figure


def _forecast(model: Model, past: np.ndarray) -> np.ndarray:
    _, outputs = model.sequence(model.initial_state(len(past)), past=past)
    return np.asarray(outputs["forecast"])
