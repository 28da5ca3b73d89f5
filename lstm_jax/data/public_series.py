"""Public tables of time series, by their name in a config."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lstm_jax.data.fetch import fetch
from lstm_jax.data.series import SeriesColumns, read_frame

STATIONS = (
    "Aotizhongxin", "Changping", "Dingling", "Dongsi", "Guanyuan", "Gucheng", "Huairou",
    "Nongzhanguan", "Shunyi", "Tiantan", "Wanliu", "Wanshouxigong",
)  # fmt: skip
WEATHER = ("PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "wd", "WSPM")


def beijing_air() -> Any:
    """Air quality and weather of twelve stations in Beijing, 35,064 hours each.

    References:
      Shuyi Zhang et al., "Cautionary tales on air-quality improvement in Beijing", Proceedings of
      the Royal Society A 473, 2017.
    """
    import pandas as pd

    frames = [
        read_frame(fetch(f"beijing_air/PRSA_Data_{station}_20130301-20170228.csv"))
        for station in STATIONS
    ]
    frame = pd.concat(frames, ignore_index=True)
    frame.index = frame.index + 2
    frame["ds"] = pd.to_datetime(frame[["year", "month", "day", "hour"]])
    return frame


def m4_hourly() -> Any:
    """The hourly series of the M4 competition: training values, then the 48 of the test.

    References:
      Spyros Makridakis, Evangelos Spiliotis, Vassilios Assimakopoulos, "The M4 Competition: 100,000
      time series and 61 forecasting methods", International Journal of Forecasting 36, 2020.
    """
    import pandas as pd

    parts = [
        read_frame(fetch(f"m4/Hourly-{part}.csv")).set_index("V1") for part in ("train", "test")
    ]
    rows = []
    for name in parts[0].index:
        values = np.concatenate([part.loc[name].dropna().to_numpy(float) for part in parts])
        rows.append(pd.DataFrame({"ds": np.arange(1, len(values) + 1), "y": values}))
        rows[-1].insert(0, "unique_id", name)
    frame = pd.concat(rows, ignore_index=True)
    frame.index = frame.index + 2
    return frame


def tourism() -> Any:
    """Overnight trips in Australia, by region and purpose, 304 series of 80 quarters.

    References:
      Rob J. Hyndman, George Athanasopoulos, "Forecasting: Principles and Practice", third edition,
      2021 (the data set tourism).
    """
    return read_frame(fetch("forecast_csv/australia_tourism.csv"))


def bike_sharing() -> Any:
    """Hourly rentals of bicycles in Washington, D.C., with weather and holidays.

    References:
      Hadi Fanaee-T, Joao Gama, "Event labeling combining ensemble detectors and background
      knowledge", Progress in Artificial Intelligence 2, 2014.
    """
    return read_frame(fetch("forecast_csv/bike_sharing_dataset_clean.csv"))


PUBLIC_SERIES: dict[str, tuple[Callable[[], Any], SeriesColumns]] = {
    "beijing_air": (
        beijing_air,
        SeriesColumns("ds", ("station",), ("PM2.5",), past=WEATHER, static=("station",)),
    ),
    "m4_hourly": (m4_hourly, SeriesColumns("ds", ("unique_id",), ("y",))),
    "tourism": (
        tourism,
        SeriesColumns(
            "date_time",
            ("Region", "State", "Purpose"),
            ("Trips",),
            static=("Region", "State", "Purpose"),
        ),
    ),
    "bike_sharing": (
        bike_sharing,
        SeriesColumns(
            "date_time",
            targets=("users",),
            past=("weather", "temp", "hum", "windspeed"),
            known=("holiday", "workingday"),
        ),
    ),
}
"""A reader for each name, and the roles of the columns."""
