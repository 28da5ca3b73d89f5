# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Forecasting with gaps, short histories and honest doubt
#
# At the end of this notebook you will know
#
# - how rows of different lengths share a batch, and why padding does no harm;
# - how to feed missing values: fill them, and tell the network with a mask;
# - how to forecast quantiles and not only a number;
# - how to see whether those quantiles are true: calibration on data from later months.
#
# The series is real: two years of hourly loads and oil temperature of an electricity transformer
# (ETTh1, from Zhou et al., "Informer", AAAI 2021). It is fetched once, 2.5 MB. All in all it takes
# less than a minute on two cores.

# %%
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from lstm_jax import LSTMCell, unroll
from lstm_jax.data import fetch, read_csv

plt.rcParams.update({"figure.figsize": (6, 4), "figure.constrained_layout.use": True})
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.55"
# Downloads show their progress as text where Jupyter has no widgets, which is well.
warnings.filterwarnings("ignore", message="IProgress not found")

# %% [markdown]
# ## The series
#
# There are seven columns: six loads, and OT, the temperature of the oil. The first twelve months
# are for training, months 17 to 20 for the test. (The four months in between are for choosing
# sizes; we shall not need them.) Each column is scaled with mean and deviation of the *training*
# months: what comes later must not be known.

# %%
table = read_csv(fetch("etth1/ETTh1.csv"))
MONTH = 30 * 24
train_rows, test_rows = slice(0, 12 * MONTH), slice(16 * MONTH, 20 * MONTH)
mean, deviation = table.values[train_rows].mean(0), table.values[train_rows].std(0)
series = ((table.values - mean) / deviation).astype(np.float32)
print(table.columns, series.shape)

# %% [markdown]
# ## The task
#
# Forecast the next 24 hours of a column from its own past. To make it as hard as real data:
#
# - *Short histories.* Some meters were installed only days ago: of each example we see 2 to 14
#   days.
# - *Gaps.* A tenth of the hours is missing here and there, and on many days an outage of up to 12
#   hours.
#
# The LSTM will read one **day** a step, 24 numbers. Two weeks are then 14 steps and not 336, which
# is faster to run and easier to learn.
#
# Rows of a batch have different lengths. Each begins at step 0; behind its end the array is filled
# up with anything at all, and `lengths` says how many steps count.

# %%
DAYS, HOURS = 14, 24


def examples(rng, starts, columns, lengths=None):
    """Examples with random gaps, and random lengths where none are given.

    past [B, 14, 24] with NaN where a value is missing, lengths [B], future [B, 24].
    """
    B = len(starts)
    hours = starts[:, None] + np.arange((DAYS + 1) * HOURS)
    days = series[hours, columns[:, None]].reshape(B, DAYS + 1, HOURS)
    past, future = days[:, :-1].copy(), days[:, -1]

    past[rng.random(past.shape) < 0.1] = np.nan
    hour = np.arange(HOURS)
    begin, duration = rng.integers(0, HOURS, (B, DAYS, 1)), rng.integers(1, 13, (B, DAYS, 1))
    outage = (rng.random((B, DAYS, 1)) < 0.4) & (hour >= begin) & (hour < begin + duration)
    past[outage] = np.nan

    if lengths is None:
        lengths = rng.integers(2, DAYS + 1, B)
    # The last `length` days become the first ones.
    past = np.stack([np.roll(row, n, axis=0) for row, n in zip(past, lengths, strict=True)])
    past[np.arange(DAYS) >= lengths[:, None]] = np.nan
    return {"past": past, "lengths": lengths, "future": future, "columns": columns}


def drawn(rng, rows, count):
    starts = rng.integers(rows.start, rows.stop - (DAYS + 1) * HOURS, count)
    return examples(rng, starts, rng.integers(0, series.shape[1], count))


train = drawn(np.random.default_rng(0), train_rows, 4096)
test = drawn(np.random.default_rng(1), test_rows, 4096)
print({name: array.shape for name, array in test.items()})
print("days seen:", test["lengths"][:10])
seen = np.arange(DAYS) < test["lengths"][:, None]
print(f"missing within them: {np.isnan(test['past'][seen]).mean():.0%}")

# %% [markdown]
# ## What simple methods do
#
# The *seasonal naive* forecast is: tomorrow is like today, hour by hour. Where today's hour is
# missing, take yesterday's, and so on. Where none was seen, take the mean of what was. For a
# series with a daily rhythm this is hard to beat.


# %%
def level_of(past):
    """The mean of what was seen, [B]."""
    return np.nanmean(past, axis=(1, 2))


def seasonal_naive(batch):
    past, lengths = batch["past"], batch["lengths"]
    forecast = np.full(batch["future"].shape, np.nan)
    for back in range(1, DAYS + 1):
        day = past[np.arange(len(past)), np.maximum(lengths - back, 0)]
        forecast = np.where(np.isnan(forecast), day, forecast)
    return np.where(np.isnan(forecast), level_of(past)[:, None], forecast)


def mean_absolute_error(forecast, batch):
    return np.abs(forecast - batch["future"]).mean()


flat = np.repeat(level_of(test["past"])[:, None], HOURS, axis=1)
print(f"mean of the past: error {mean_absolute_error(flat, test):.3f}")
print(f"seasonal naive:   error {mean_absolute_error(seasonal_naive(test), test):.3f}")

# %% [markdown]
# (Errors are mean absolute errors in units of a column's standard deviation.)
#
# ## Missing values
#
# A network cannot read NaN: one NaN times any weight, even zero, is NaN, and the gradient is lost
# with it. So missing values are filled, here with the level of the series. But then the network
# could not tell a filled value from a measured one. So each day comes with its *mask*: 24 numbers,
# 1 where a value was measured and 0 where it was not. A step reads 48 numbers.
#
# The level is subtracted before and added after. The network need only learn the shape of days,
# and what it learned of one column and month serves the others.


# %%
def inputs(batch):
    """What the network reads: days [T, B, 48], each row's length, and its level."""
    past, level = batch["past"], level_of(batch["past"])
    measured = ~np.isnan(past)
    filled = np.where(measured, past - level[:, None, None], 0)
    days = np.concatenate([filled, measured], axis=-1).swapaxes(0, 1)  # time leads
    return days.astype(np.float32), batch["lengths"], level


# %% [markdown]
# ## Quantiles
#
# A forecast without its uncertainty is half a forecast. We let the network tell five numbers for
# each hour: the 5 %, 25 %, 50 %, 75 % and 95 % *quantiles*. The truth should lie below the 5 %
# quantile 5 times in 100, and so on. The 50 % quantile is the median, our best single guess.
#
# What loss makes a number a quantile? The *pinball loss*. For the quantile $q$ at level $\tau$ and
# the truth $y$ it is
#
# $$\ell_\tau(q, y) = \max\bigl(\tau (y - q),\ (\tau - 1)(y - q)\bigr)$$
#
# At $\tau = 0.95$ a truth above $q$ costs 19 times as much as one that is as far below. The mean
# is smallest where 95 % of truths are below $q$. For $\tau = 0.5$ it is half the absolute error.

# %%
LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95], np.float32)


def pinball(quantiles, future):
    above = future[..., None] - quantiles
    return jnp.maximum(LEVELS * above, (LEVELS - 1) * above).mean()


# %% [markdown]
# ## The model
#
# A layer embeds each day, the LSTM reads the days, and one matrix turns its last state into 24
# times five quantiles. With `lengths`, the state that `unroll` returns is that of each row's *own*
# last day: steps behind it change neither value nor gradient.

# %%
lstm = LSTMCell(hidden_size=128)


def init(key):
    keys, glorot = jax.random.split(key, 3), jax.nn.initializers.glorot_uniform()
    H = lstm.hidden_size
    return {
        "w_in": glorot(keys[0], (2 * HOURS, H)),
        "b_in": jnp.zeros(H),
        "lstm": lstm.init(keys[1], H),
        "w_out": glorot(keys[2], (H, HOURS * len(LEVELS))),
        "b_out": jnp.zeros(HOURS * len(LEVELS)),
    }


def forecast(params, days, lengths, level):
    """Quantiles of the next day, [B, 24, 5]."""
    embedded = jax.nn.relu(days @ params["w_in"] + params["b_in"])
    state, _ = unroll(lstm, params["lstm"], embedded, lengths=lengths)
    quantiles = state.h @ params["w_out"] + params["b_out"]
    quantiles = jnp.sort(quantiles.reshape(-1, HOURS, len(LEVELS)))  # so that they never cross
    return quantiles + level[:, None, None]


def loss(params, inputs, future):
    return pinball(forecast(params, *inputs), future)


# %%
STEPS = 700
optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(3e-3, STEPS)),
)


@jax.jit
def train_step(params, opt_state, inputs, future):
    value, gradients = jax.value_and_grad(loss)(params, inputs, future)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


params = init(jax.random.key(0))
opt_state = optimizer.init(params)
rng = np.random.default_rng(2)
for number in range(STEPS):
    batch = drawn(rng, train_rows, 128)
    params, opt_state, value = train_step(params, opt_state, inputs(batch), batch["future"])
    if (number + 1) % 100 == 0:
        print(f"step {number + 1}: training loss {value:.3f}")

# %% [markdown]
# ## Padding does no harm
#
# That is easily said, and easily checked. Put garbage behind the end of each row, and nothing
# changes:

# %%
predict = jax.jit(forecast)
days, lengths, level = inputs(test)
quantiles = np.asarray(predict(params, days, lengths, level))

days[np.arange(DAYS)[:, None] >= lengths] = 1e9
assert (quantiles == predict(params, days, lengths, level)).all()
print("the same forecasts, to the last bit")

# %% [markdown]
# ## Is it any good?
#
# The test months begin four months after the training months end. For a fair opponent we give the
# seasonal naive forecast quantiles, too: its own errors on the training examples, column by
# column.

# %%
errors = train["future"] - seasonal_naive(train)
spread = np.stack(
    [np.quantile(errors[train["columns"] == n], LEVELS) for n in range(series.shape[1])]
)
naive = seasonal_naive(test)[..., None] + spread[test["columns"]][:, None]

median = len(LEVELS) // 2
results = {"seasonal naive": naive, "LSTM": quantiles}
for name, forecasts in results.items():
    print(
        f"{name:15} pinball loss {pinball(forecasts, test['future']):.3f}, "
        f"absolute error of the median {mean_absolute_error(forecasts[..., median], test):.3f}"
    )
assert pinball(quantiles, test["future"]) < 0.95 * pinball(naive, test["future"])

# %% [markdown]
# The LSTM is better in both, and more so in the pinball loss: it knows *when* it does not know.
# Here are two forecasts, of a load and of the oil's temperature:

# %%
figure, panels = plt.subplots(2, 1, sharex=True)
units = {"HUFL": "load HUFL (table's unit)", "OT": "oil temperature (°C)"}
rng = np.random.default_rng(7)
for panel, (name, unit), start in zip(panels, units.items(), (12600, 13500), strict=True):
    column = table.columns.index(name)
    one = examples(rng, np.array([start]), np.array([column]))
    bands = np.asarray(predict(params, *inputs(one)))[0]
    bands = bands * deviation[column] + mean[column]
    past = (
        one["past"][0, : one["lengths"][0]].ravel()[-5 * HOURS :] * deviation[column] + mean[column]
    )
    truth = one["future"][0] * deviation[column] + mean[column]
    ahead = np.arange(1, HOURS + 1)
    panel.plot(np.arange(-len(past), 0) + 1, past, color=GREY, label="past, with gaps")
    panel.plot(ahead, truth, color="black", label="truth")
    panel.plot(ahead, bands[:, 2], color=ORANGE, linestyle="--", label="median")
    panel.fill_between(
        ahead, bands[:, 1], bands[:, 3], color=ORANGE, alpha=0.45, label="25 to 75 %", lw=0
    )
    panel.fill_between(
        ahead, bands[:, 0], bands[:, 4], color=ORANGE, alpha=0.2, label="5 to 95 %", lw=0
    )
    panel.set_ylabel(unit)
panels[1].set_xlabel("time from the last hour seen (hours)")
handles, labels = panels[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# The grey line breaks off where values are missing. In the load, the bands are narrow in the hours
# that are alike every day, and wide in the dip, whose depth differs from day to day. The
# temperature has hardly a rhythm. There the bands open up as the hours go by.
#
# ## Calibration
#
# Does "95 %" mean 95 %? Count, for each level, how often the truth lay below the forecast
# quantile. On the diagonal the forecast is honest.

# %%
figure, axes = plt.subplots()
axes.plot([0, 1], [0, 1], color="0.8")
for (name, forecasts), colour, marker in zip(
    results.items(), (BLUE, ORANGE), ("s", "o"), strict=True
):
    below = (test["future"][..., None] < forecasts).mean((0, 1))
    axes.plot(LEVELS, below, marker=marker, color=colour, label=name)
    print(
        f"{name:15}",
        {f"{level:.0%}": f"{share:.1%}" for level, share in zip(LEVELS, below, strict=True)},
    )
axes.set(xlabel="level of the forecast quantile", ylabel="share of truths below it (test months)")
axes.legend(frameon=False)
plt.show()
assert np.abs(below - LEVELS).max() < 0.06

# %% [markdown]
# Overall, both are close to the diagonal. That is less than it seems: a forecast may be honest on
# average and too sure on some days. The sharper test is the pinball loss above, which pays for
# being both honest and precise, and there the LSTM won.
#
# ## How much history does it take?

# Take 1000 examples of the test months, with the same gaps each time, and show more and more of
# their past:

# %%
rng = np.random.default_rng(3)
starts = rng.integers(test_rows.start, test_rows.stop - (DAYS + 1) * HOURS, 1000)
columns = rng.integers(0, series.shape[1], 1000)
shown = np.arange(1, DAYS + 1)
errors = {"seasonal naive": [], "LSTM": []}
for number in shown:
    batch = examples(np.random.default_rng(4), starts, columns, np.full(1000, number))
    medians = predict(params, *inputs(batch))[..., median]
    errors["seasonal naive"].append(mean_absolute_error(seasonal_naive(batch), batch))
    errors["LSTM"].append(mean_absolute_error(medians, batch))

figure, axes = plt.subplots()
for (name, error), colour, marker in zip(errors.items(), (BLUE, ORANGE), ("s", "o"), strict=True):
    axes.plot(shown, error, marker=marker, color=colour, label=name)
axes.set(xlabel="history shown (days)", ylabel="absolute error (standard deviations)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# One network serves every length. (Mind the axis, which does not begin at 0.) A single day is less
# than it ever saw in training, and there it is no better than the naive forecast. From two days on
# it is ahead, and after about five it has learned what there is to learn of a column. The naive
# forecast profits only as long as there are gaps to fill: it looks at the last day that it can
# see.
#
# ## Where to go from here
#
# - `lstm-jax train configs/etth1.toml` trains the usual benchmark on this table, from a config.
# - A Gaussian likelihood is another loss, not another model: let the readout give a mean and a log
#   deviation.
# - Data that arrive hour by hour: `lstm_jax.stream` is one compiled step.
