"""The rows at which the training, validation and test parts of a series end."""

from typing import NamedTuple

from lstm_jax.data.fields import is_number
from lstm_jax.data.series import Series
from lstm_jax.errors import UserError

FORMS = "a number of rows (48), a fraction (0.1), or a date (2016-03-01)"


def check_part(text: str) -> None:
    """Raises an error if a string does not describe the size of a split."""
    import pandas as pd

    if text in ("", "none"):
        return
    try:
        fits = float(text) > 0 if is_number(text) else bool(pd.Timestamp(text) is not pd.NaT)
    except ValueError:
        fits = False
    if not fits or (is_number(text) and "." in text and float(text) >= 1):
        raise UserError(f"expected {FORMS}, got {text!r}")


class Parts(NamedTuple):
    """The ends of a series' parts: training rows come before ``train``, and so on.

    >>> Parts(80, 90, 100).validation
    90
    """

    train: int
    validation: int
    test: int


def parts_of(series: Series, validation: str, test: str) -> Parts:
    """The rows at which the splits of a series end.

    Args:
      series: the series.
      validation: the size of the split before the test, as for :func:`check_part`.
      test: the size of the split at the end.

    Raises:
      UserError: a size is a date, and the series has no dates.
    """
    end = series.present - _rows(test, series, series.present)
    return Parts(end - _rows(validation, series, end), end, series.present)


def _rows(text: str, series: Series, end: int) -> int:
    """The number of rows before ``end`` that belong to a split."""
    import pandas as pd

    if text == "none":
        return 0
    if is_number(text):
        return int(text) if "." not in text else max(1, round(float(text) * series.present))
    moment = pd.Timestamp(text)
    zone = getattr(series.times, "tz", None)
    if not isinstance(series.times, pd.DatetimeIndex):
        raise UserError(f"data: expected a number of rows or a fraction for a split, got {text!r}")
    moment = moment.tz_localize(zone) if zone is not None and moment.tz is None else moment
    return max(0, end - int(series.times.searchsorted(moment)))
