"""Regular time: the frequency of time stamps, its season, and features of the calendar."""

import importlib
from typing import Any

import numpy as np

from lstm_jax.errors import UserError

STEP = "step"
"""The frequency of a time column of integers: steps without a calendar."""

SEASONS = {"B": (5, 10), "C": (5, 10), "W": (52, 13), "M": (12, 12), "Q": (4, 8), "Y": (1, 4)}
DAY = 86_400


def infer_frequency(times: Any, where: str) -> str:
    """The frequency of time stamps, in the spelling of pandas; ``"step"`` for whole numbers.

    Time stamps may be missing: the result is the most common frequency among runs of six time
    stamps.

    Args:
      times: increasing time stamps, a ``pandas.DatetimeIndex``, or integers.
      where: the file and column, for the message.

    Raises:
      UserError: no part of the time stamps is regular.

    >>> import pandas as pd
    >>> infer_frequency(pd.DatetimeIndex(["2024-01-07", "2024-01-14", "2024-01-21"]), "a.csv")
    'W-SUN'
    """
    import pandas as pd

    if not isinstance(times, pd.DatetimeIndex):
        return STEP
    whole = pd.infer_freq(times) if len(times) > 2 else None
    if whole is not None:
        return whole
    size = min(6, max(len(times) // 2, 3))
    starts = np.unique(np.linspace(0, max(len(times) - size, 0), 60).astype(int))
    found = [pd.infer_freq(times[n : n + size]) for n in starts if len(times) >= 3]
    counts = pd.Series([each for each in found if each is not None]).value_counts()
    if counts.empty:
        shown = ", ".join(map(str, times[:3]))
        raise UserError(
            f"{where}: expected time stamps at a regular frequency, got {shown}, ...; "
            "data.frequency names it (h, D, B, W-SUN, MS, ...)"
        )
    return str(counts.index[0])


def check_frequency(text: str) -> str:
    """Returns the frequency if pandas knows it.

    Raises:
      UserError: pandas does not know it.

    >>> check_frequency("fortnight")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: expected a frequency of pandas such as h, D, B, W-SUN or MS, ...
    """
    import pandas as pd

    if text not in ("", STEP):
        try:
            pd.tseries.frequencies.to_offset(text)
        except ValueError as error:
            raise UserError(
                f"expected a frequency of pandas such as h, D, B, W-SUN or MS, got {text!r}"
            ) from error
    return text


def grid(first: Any, last: Any, frequency: str) -> Any:
    """All time stamps of a frequency, from the first to the last.

    >>> import pandas as pd
    >>> len(grid(pd.Timestamp("2024-01-01"), pd.Timestamp("2024-12-01"), "MS"))
    12
    """
    import pandas as pd

    if frequency == STEP:
        return pd.RangeIndex(int(first), int(last) + 1)
    return pd.date_range(first, last, freq=frequency)


def following(last: Any, steps: int, frequency: str) -> Any:
    """The time stamps that follow a time stamp.

    >>> import pandas as pd
    >>> following(pd.Timestamp("2024-01-31"), 2, "ME").strftime("%Y-%m-%d").tolist()
    ['2024-02-29', '2024-03-31']
    """
    import pandas as pd

    if frequency == STEP:
        return pd.RangeIndex(int(last) + 1, int(last) + 1 + steps)
    return pd.date_range(last, periods=steps + 1, freq=frequency)[1:]


def seconds(frequency: str) -> float | None:
    """The seconds of one step of a frequency that is at most a day; None for a longer one.

    >>> seconds("15min"), seconds("D"), seconds("W-SUN")
    (900.0, 86400.0, None)
    """
    import pandas as pd

    if frequency == STEP:
        return None
    offset: Any = pd.tseries.frequencies.to_offset(frequency)
    if isinstance(offset, pd.offsets.Day):
        return float(DAY) if offset.n == 1 else None
    return offset.nanos / 1e9 if isinstance(offset, pd.offsets.Tick) else None


def season_and_horizon(frequency: str) -> tuple[int, int]:
    """The usual season of a frequency, in steps, and a usual horizon.

    >>> season_and_horizon("h"), season_and_horizon("W-SUN"), season_and_horizon("QS-OCT")
    ((24, 24), (52, 13), (4, 8))
    """
    step = seconds(frequency)
    if step == DAY:
        return 7, 28
    if step is not None:  # a day, or an hour if a day has too many steps
        long = DAY if DAY / step <= 288 else 3600 if step < 3600 else DAY
        season = int(long / step) if long % step == 0 else 1
        return season, max(season, 12)
    name = frequency.lstrip("0123456789").partition("-")[0]
    key = name[1] if len(name) > 1 and name[0] == "B" else name[:1]
    return (1, 12) if frequency == STEP else SEASONS.get(key, (1, 8))


def calendar_names(frequency: str, holidays: str = "") -> list[str]:
    """The columns of :func:`calendar_features`.

    >>> calendar_names("D")
    ['weekday sin', 'weekday cos', 'weekend', 'year sin', 'year cos']
    """
    step, names = seconds(frequency), []
    if frequency == STEP:
        return []
    if step is not None and step < DAY:
        names += ["hour sin", "hour cos"]
    if step is not None or frequency[:1] in "BC":
        names += ["weekday sin", "weekday cos", "weekend"]
    if frequency[:1] not in "YA":
        names += ["year sin", "year cos"]
    return names + (["holiday"] if holidays else [])


def calendar_features(times: Any, frequency: str, holidays: str = "") -> np.ndarray:
    """The positions of time stamps in their day, week and year, as points on circles.

    Args:
      times: a ``pandas.DatetimeIndex``, or any index if the frequency is ``"step"``.
      frequency: the frequency of the time stamps; it determines which features exist.
      holidays: a country (``"DE"``) or a country and a subdivision (``"DE-BY"``) whose public
        holidays are flagged; empty for none.

    Returns:
      float32 ``[T, D]``.

    Raises:
      UserError: the country is unknown, or the package ``holidays`` is not installed.

    >>> import pandas as pd
    >>> calendar_features(pd.DatetimeIndex(["2024-01-01"]), "D").shape
    (1, 5)
    """
    if frequency == STEP:
        return np.zeros((len(times), 0), np.float32)
    hours = times.hour + times.minute / 60 + times.second / 3600
    turns = {
        "hour": hours / 24,
        "weekday": (times.day_of_week + hours / 24) / 7,
        "year": (times.day_of_year - 1 + hours / 24) / 365.25,
    }
    columns = []
    for name in calendar_names(frequency):
        word, _, function = name.partition(" ")
        if word == "weekend":
            columns.append(times.day_of_week >= 5)
        else:
            columns.append(getattr(np, function)(2 * np.pi * np.asarray(turns[word])))
    if holidays:
        columns.append(_holidays(times, holidays))
    return np.stack(columns, -1).astype(np.float32) if columns else np.zeros((len(times), 0))


def _holidays(times: Any, where: str) -> np.ndarray:
    try:
        package = importlib.import_module("holidays")
    except ImportError as error:
        raise UserError(
            f"data.holidays: {where}: needs the package holidays (pip install holidays)"
        ) from error
    country, _, subdivision = where.partition("-")
    years = range(times.year.min(), times.year.max() + 1)
    try:
        days = package.country_holidays(country, subdiv=subdivision or None, years=years)
    except NotImplementedError as error:
        raise UserError(f"data.holidays: expected a country such as DE, got {where}") from error
    return np.isin(times.normalize().tz_localize(None), np.array(list(days), "datetime64[ns]"))
