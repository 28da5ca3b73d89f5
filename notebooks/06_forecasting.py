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
# # Forecasting: from a spreadsheet of sales to the weeks that follow
#
# At the end of this notebook you will know
#
# - how to turn a table with dates, gaps, several series and planned promotions into a forecast
#   file;
# - what a config must specify, and what is inferred from the table;
# - how to compare a forecast with simple methods on held-out weeks;
# - how to forecast row by row, and how to measure the effect of a promotion.
#
# The notebook needs no download, and takes about a minute on two cores. `docs/forecasting.md` is
# the corresponding page.

# %%
import pathlib

import matplotlib.dates
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from rich.console import Console

from lstm_jax.train import Report, load_config, load_run, train

plt.rcParams.update({"figure.figsize": (6, 4), "figure.constrained_layout.use": True})
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.55"

# %% [markdown]
# ## The spreadsheet
#
# The table has weekly sales of two shops over three years. A promotion raises sales by 40 %. Four
# weeks of the southern shop are missing. Promotions are planned for the next eight weeks, where the
# sales are still empty.

# %%
rng, weeks, planned = np.random.default_rng(0), 156, 8
parts = []
for shop, size in (("north", 200), ("south", 80)):
    week = pd.date_range("2022-01-02", periods=weeks + planned, freq="W-SUN")
    promotion = rng.random(len(week)) < 0.15
    yearly = 1 + 0.3 * np.sin(2 * np.pi * week.day_of_year / 365.25)
    sales = size * yearly * (1 + 0.4 * promotion) + rng.normal(0, size / 15, len(week))
    sales = pd.Series(sales.round(), dtype=object)
    sales[weeks:] = None
    part = pd.DataFrame({"shop": shop, "week": week, "sales": sales, "promotion": promotion * 1})
    parts.append(part.drop(index=range(40, 44)) if shop == "south" else part)
pd.concat(parts).to_csv("sales.csv", index=False)
table = pd.read_csv("sales.csv", parse_dates=["week"])
table.groupby("shop").tail(10).head(4)  # the present of the northern shop is between these lines

# %%
shops = {shop: part.set_index("week").asfreq("W-SUN") for shop, part in table.groupby("shop")}


def plot_history(panel, shop, part):
    panel.plot(part.index, part["sales"], color=GREY, label="sales")
    on = part[part["promotion"] == 1]
    panel.plot(on.index, 0 * on["promotion"], "^", color=BLUE, label="promotion")
    panel.set_ylabel(f"{shop} (units a week)")
    locator = panel.xaxis.get_major_locator()
    panel.xaxis.set_major_formatter(matplotlib.dates.ConciseDateFormatter(locator))


figure, panels = plt.subplots(2, 1, sharex=True)
for panel, (shop, part) in zip(panels, shops.items(), strict=True):
    plot_history(panel, shop, part)
panels[0].legend(frameon=False, ncols=2, fontsize="small")
plt.show()

# %% [markdown]
# The promotions after the last week of sales are planned. Gaps are not filled.
#
# ## A config
#
# The config names the table and the role of each column. Everything else is inferred: the
# frequency, the season, the window of the past that a forecast reads, the horizon, the splits. Here
# we set the horizon, eight weeks, and make a forecast in every week of the backtest (`stride`).
# `promotion` is *known in advance*: the model can read it for the weeks that it forecasts. Any
# other column would be read only up to the present.

# %%
HEAD = """
task = "time_series"
[data]
table = "sales.csv"
id_columns = "shop"
target_columns = "sales"
known_columns = "promotion"
static_columns = "shop"
horizon = 8
stride = 1
"""
CONFIGS = {
    "inferred": """
[model]
hidden_size = 32
[train]
num_steps = 300
eval_every = 50
"""
}


def trained(name):
    """Trains a config; returns the run with its best checkpoint on the validation weeks."""
    path = pathlib.Path(f"{name}.toml")
    path.write_text(HEAD + CONFIGS[name])
    quiet = Report(Console(quiet=True))
    train(load_config(path), path.with_suffix(""), quiet)
    return load_run(path.with_suffix(""))


runs = {"inferred": trained("inferred")}
for line in runs["inferred"].task.described():
    print(line.replace(f"{pathlib.Path.cwd()}/", ""))

# %% [markdown]
# On the command line this is `lstm-jax train sales.toml --workdir runs/sales`, which prints the
# same lines. Inferred values are written into the run's config.
#
# ## Is it any good?
#
# The last weeks of each series are the test. The model makes a forecast in every week, given all
# previous weeks, and is compared with simple methods. `loss` is the weighted quantile loss, 0 for a
# perfect forecast; `mae` and `smape` are errors of the median; `coverage_80` is the fraction of
# sales inside the interval of 80 percent.


# %%
def compared(runs):
    """Metrics of the test weeks, simple methods first."""
    task = next(iter(runs.values())).task
    rows = dict(task.baselines("test"))
    rows |= {name: run.task.evaluate(run.model, "test") for name, run in runs.items()}
    return pd.DataFrame(rows).T[["loss", "mae", "smape", "coverage_80"]]


compared(runs).round(3)

# %% [markdown]
# Not yet: the seasonal naive forecast is better. The inferred window is a season, which is a year.
# Two years of training data contain only a few such windows, and the LSTM reads a quarter of a year
# in one step.
#
# ## A better config
#
# The calendar features contain the time of the year, so half a year of history is enough, and there
# are more windows to learn from. The forecast can also be made week by week, each week given the
# previous ones: this is the *autoregressive* decoding of DeepAR. In training the LSTM reads the
# true sales of the earlier weeks. In a forecast it reads its own samples, from a Student-t
# distribution, and a hundred sampled futures give the quantiles.

# %%
HEAD += "window = 26\nseason = 1\n"
CONFIGS["row by row"] = """
[model]
hidden_size = 32
segment = 1
decoding = "autoregressive"
head = "student_t"
[train]
num_steps = 300
eval_every = 50
"""
runs["row by row"] = trained("row by row")
results = compared(runs)
assert results["loss"].idxmin() == "row by row"
results.round(3)

# %% [markdown]
# ## The forecast
#
# `predict` forecasts the weeks after the table, in the units of the table: the mean and quantiles
# of each week. (On the command line: `lstm-jax predict runs/sales --output forecast.csv`, which
# also writes a fan chart of each series and an HTML page of all of them.)

# %%
run = runs["row by row"]
forecast = pd.DataFrame(run.predict())
forecast.to_csv("forecast.csv", index=False)
forecast[["unique_id", "ds", "mean", "q0.1", "q0.5", "q0.9"]].head(8).round(1)

# %%
figure, panels = plt.subplots(2, 1, sharex=True)
for panel, (shop, part) in zip(panels, shops.items(), strict=True):
    ahead = forecast[forecast["unique_id"] == shop]
    dates = pd.to_datetime(ahead["ds"])
    for low, high, alpha, name in (("0.025", "0.975", 0.2, "95 %"), ("0.1", "0.9", 0.45, "80 %")):
        panel.fill_between(
            dates, ahead[f"q{low}"], ahead[f"q{high}"], color=ORANGE, alpha=alpha, lw=0, label=name
        )
    panel.plot(dates, ahead["q0.5"], color=ORANGE, label="median")
    plot_history(panel, shop, part.iloc[-130:])
handles, labels = panels[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# The forecast rises in the weeks of planned promotions, and follows the season. The gap of the
# southern shop is on the left.
#
# ## The effect of a promotion
#
# We make another forecast from a table with the same history, but no promotions in the eight weeks.
# New tables may also contain new weeks or new shops.

# %%
without = table.copy()
without.loc[without["sales"].isna(), "promotion"] = 0
without.to_csv("without.csv", index=False)
plain = pd.DataFrame(run.predict("without.csv"))

on = table[table["sales"].isna()]["promotion"].to_numpy() == 1
gain = forecast["q0.5"] / plain["q0.5"] - 1
print(f"weeks with a promotion in the plan: {gain[on].mean():+.0%}")
print(f"the other weeks:                    {gain[~on].mean():+.0%}")
assert gain[on].mean() > 0.2 > abs(gain[~on].mean())

# %% [markdown]
# The table was made with an effect of 40 %. From the promotions of two years, the model has learned
# more than half of it.
#
# ## Where to go from here
#
# - Your own table: change the names of the columns. `docs/forecasting.md` describes the contents of
#   a table, and how time zones, words, missing values and mistakes are treated.
# - Train on every week, once you trust the config: `data.test = "none"`.
# - `model.members = 5` trains an ensemble; `model.head` offers counts, mixtures and quantiles.
# - `configs/beijing_air.toml`, `configs/m4_hourly.toml` and `configs/tourism.toml` are real tables
#   with 12 to 414 series.
