"""Tables of series, compared with pandas; each mistake gives one line with its position."""

import numpy as np
import pandas as pd
import pytest

from lstm_jax.data.calendar import STEP, calendar_features, calendar_names
from lstm_jax.data.series import (
    SeriesColumns,
    encoding_of,
    read_frame,
    read_series,
)
from lstm_jax.data.windows import extended, origins_within, random_windows, series_arrays
from lstm_jax.errors import UserError

DAYS = pd.date_range("2024-01-01", periods=6, freq="D").strftime("%Y-%m-%d").tolist()


def table_of(tmp_path, text: str, name: str = "a.csv", **columns):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return read_series(read_frame(path), SeriesColumns(columns.pop("time", ""), **columns), "a.csv")


def lines(*rows: str) -> str:
    return "\n".join(rows) + "\n"


# ---- reading ----


def test_a_wide_table_holds_a_series_for_each_target(tmp_path):
    rows = [f"{day},{n},{10 - n},{n % 2}" for n, day in enumerate(DAYS)]
    table = table_of(tmp_path, lines("date,a,b,promo", *rows), targets=("a", "b"), past=("*",))
    assert [each.name for each in table.series] == ["a", "b"]
    assert table.frequency == "D" and table.columns.past == ("promo",)
    assert table.series[1].target.tolist() == [10, 9, 8, 7, 6, 5]
    assert table.series[0].covariates["promo"].tolist() == [0, 1, 0, 1, 0, 1]


def test_long_table_matches_pandas_pivot(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"unique_id": np.repeat(["x", "y"], 6), "ds": DAYS * 2, "y": rng.normal(size=12)}
    ).drop(index=[3, 10])
    frame.to_csv(tmp_path / "long.csv", index=False)
    table = read_series(read_frame(tmp_path / "long.csv"), SeriesColumns(""), "long.csv")
    wide = frame.pivot(index="ds", columns="unique_id", values="y")
    for each in table.series:
        np.testing.assert_allclose(each.target, wide[each.name].to_numpy())
    assert table.notes == ["2 missing time stamps are gaps"]
    assert table.series[0].lines.tolist() == [2, 3, 4, 0, 5, 6]


@pytest.mark.parametrize(
    "frequency", ["h", "15min", "D", "B", "W-SUN", "MS", "ME", "QS-OCT", "QE-DEC", "YS-JAN"]
)
def test_frequencies_are_inferred_also_between_gaps(tmp_path, frequency):
    times = pd.date_range("2020-01-05", periods=60, freq=frequency)
    left = times.delete([20, 21, 41])
    rows = [f"{time},{n % 7}" for n, time in enumerate(left)]
    table = table_of(tmp_path, lines("ds,y", *rows))
    (series,) = table.series
    assert table.frequency == frequency or frequency[:1] in "QY"
    assert series.times.equals(times)
    assert np.isnan(series.target[[20, 21, 41]]).all() and np.isfinite(series.target).sum() == 57


def test_parquet_semicolons_and_decimal_commas_are_read(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [f"{day};{n},5" for n, day in enumerate(DAYS)]
    csv = table_of(tmp_path, lines("ds;y", *rows))
    frame = pd.DataFrame({"ds": pd.to_datetime(DAYS), "y": np.arange(6) + 0.5})
    frame.to_parquet(tmp_path / "a.parquet")
    parquet = read_series(read_frame(tmp_path / "a.parquet"), SeriesColumns(""), "a.parquet")
    assert csv.series[0].target.tolist() == parquet.series[0].target.tolist() == [
        0.5, 1.5, 2.5, 3.5, 4.5, 5.5,
    ]  # fmt: skip


def test_repeated_hour_at_the_end_of_daylight_saving_is_two_hours(tmp_path):
    """Summer time ends: 02:00+02:00 and 02:00+01:00."""
    times = pd.date_range("2023-10-28 22:00", periods=8, freq="h", tz="UTC").tz_convert(
        "Europe/Berlin"
    )
    rows = [f"{time.isoformat()},{n}" for n, time in enumerate(times)]
    table = table_of(tmp_path, lines("ds,y", *rows))
    assert table.frequency == "h" and table.series[0].target.tolist() == list(range(8))
    frame = read_frame(tmp_path / "a.csv")
    there = read_series(frame, SeriesColumns(""), "a.csv", time_zone="Europe/Berlin")
    assert there.series[0].times.hour.tolist() == [0, 1, 2, 2, 3, 4, 5, 6]


def test_integers_are_steps_and_yyyymmdd_are_dates(tmp_path):
    steps = table_of(tmp_path, lines("t,y", "5,1", "6,2", "8,4"), time="t")
    assert steps.frequency == STEP and steps.series[0].times.tolist() == [5, 6, 7, 8]
    days = table_of(tmp_path, lines("ds,y", "20240130,1", "20240131,2", "20240201,3"))
    assert days.frequency == "D"


# ---- errors ----

DATES = [f"{day},{n}" for n, day in enumerate(DAYS)]
WRONG = {
    "unsorted": (
        ["ds,y", DATES[0], DATES[2], DATES[1], *DATES[3:]],
        "a.csv: line 4: column 'ds': expected a later time stamp than in line 3",
    ),
    "duplicate": (
        ["ds,y", *DATES[:3], *DATES[2:]],
        "a.csv: line 5: column 'ds': expected another time stamp than in line 4",
    ),
    "irregular": (
        ["ds,y", *DATES, "2024-01-07 11:00,3"],
        "a.csv: line 8: column 'ds': expected a time stamp of frequency D",
    ),
    "no frequency": (
        ["ds,y", "2024-01-01,1", "2024-01-05,2", "2024-03-02,3"],
        "a.csv: column 'ds': expected time stamps at a regular frequency",
    ),
    "text": (
        ["ds,y", *DATES[:3], f"{DAYS[3]},n/k", *DATES[4:]],
        "a.csv: line 5: column 'y': expected a number, got 'n/k'",
    ),
    "infinite": (
        ["ds,y", *DATES[:3], f"{DAYS[3]},-inf"],
        "a.csv: line 5: column 'y': expected a number from -1e+17 to 1e+17, got -inf",
    ),
    "large": (
        ["ds,y", *DATES[:3], f"{DAYS[3]},1e39", *DATES[4:]],
        "a.csv: line 5: column 'y': expected a number from -1e+17 to 1e+17, got 1e+39",
    ),
    "all missing": (
        ["ds,y", *(f"{day}," for day in DAYS)],
        "a.csv: series 'y': lines 2 to 7: column 'y': expected a number, got none",
    ),
    "no date": (
        ["ds,y", *DATES[:2], ",3"],
        "a.csv: line 4: column 'ds': expected a date or time, got a missing value",
    ),
    "bad date": (
        ["ds,y", *DATES[:2], "2024-13-01,3"],
        "a.csv: line 4: column 'ds': expected a date or time, got '2024-13-01'",
    ),
    "no target": (
        ["ds,a,b", "2024-01-01,1,2", "2024-01-02,1,2"],
        "data.target_columns: expected the names of what is forecast",
    ),
    "sparse": (
        ["t,y", "1,1", "2,2", "999999999,3"],
        "a.csv: column 't': expected at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_mistake_gives_one_line_with_its_location(tmp_path, kind):
    rows, message = WRONG[kind]
    with pytest.raises(UserError) as raised:
        table_of(tmp_path, lines(*rows), time=rows[0].split(",")[0])
    assert message in str(raised.value)


def test_columns_that_cannot_be_encoded_are_reported(tmp_path):
    def table(column):
        rows = [f"{DAYS[n]},{n},{value}" for n, value in enumerate(column)]
        return table_of(tmp_path, lines("ds,y,promo", *rows), past=("promo",))

    numbers, words = ([*range(6)], [*"ababab"])
    of_numbers, of_words = (encoding_of(table(column), [6]) for column in (numbers, words))
    for encoding, column, message in (
        (of_numbers, words, "line 2: column 'promo': expected a number as in training, got a"),
        (of_words, ["", *numbers[1:]], "line 3: column 'promo': expected a word as in training"),
        (of_numbers, [*numbers[:5], 1e30], "line 7: column 'promo': expected at most 1e+15 dev"),
    ):
        with pytest.raises(UserError) as raised:
            encoding.check(table(column).series[0])
        assert message in str(raised.value)
    with pytest.raises(UserError, match="data: column 'promo': expected a number that float32"):
        encoding_of(table([*numbers[:5], 1e30]), [6])
    with pytest.raises(UserError, match="line 7: column 'promo': expected a number from -3e"):
        table([*numbers[:5], 1e39])


def test_a_static_column_that_changes_is_reported(tmp_path):
    rows = [f"{day},{n},{'ab'[n > 3]}" for n, day in enumerate(DAYS)]
    with pytest.raises(UserError, match=r"line 6: column 'kind': expected 'a' as in line 2"):
        table_of(tmp_path, lines("ds,y,kind", *rows), static=("kind",))


def test_an_unknown_column_and_a_column_of_two_uses_are_reported(tmp_path):
    with pytest.raises(UserError, match="expected a column 'price', got the columns ds, y"):
        table_of(tmp_path, lines("ds,y", *DATES), known=("price",))
    with pytest.raises(UserError, match="column 'y': expected one use"):
        table_of(tmp_path, lines("ds,y", *DATES), targets=("y",), known=("y",))


# ---- features and windows ----


def test_words_become_flags_and_numbers_are_standardised(tmp_path):
    rows = [f"{day},{n},{'ab'[n % 2] if n < 5 else ''},{3 * n}" for n, day in enumerate(DAYS)]
    table = table_of(tmp_path, lines("ds,y,wind,price", *rows), targets=("y",), past=("*",))
    encoding = encoding_of(table, [4])
    arrays = series_arrays(table.series, table.columns, encoding, "D")
    assert encoding.words == {"wind": ["a", "b"]}
    np.testing.assert_array_equal(arrays.past[:5, :2], np.eye(2)[[0, 1, 0, 1, 0]])
    assert np.isnan(arrays.past[5, :2]).all()
    price = 3.0 * np.arange(6)
    np.testing.assert_allclose(
        arrays.past[:, 2], (price - price[:4].mean()) / price[:4].std(), rtol=1e-6
    )


def test_calendar_features_are_points_on_circles():
    times = pd.date_range("2024-01-01", periods=200, freq="h")
    names, found = calendar_names("h"), calendar_features(times, "h")
    assert found.shape == (200, len(names))
    np.testing.assert_allclose(found[:, 0] ** 2 + found[:, 1] ** 2, 1, rtol=1e-5)
    np.testing.assert_allclose(found[:-24, :2], found[24:, :2], atol=1e-5)
    weekend = found[:, names.index("weekend")]
    assert weekend.tolist() == [float(time.weekday() >= 5) for time in times]


def test_windows_are_slices_and_empty_ones_are_skipped(tmp_path):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=n) for n in (20, 13)]
    values[0][4:9] = np.nan
    text = ["unique_id,ds,y"]
    for name, column in zip("ab", values, strict=True):
        text += [f"{name},{t},{'' if np.isnan(x) else x}" for t, x in enumerate(column)]
    table = table_of(tmp_path, lines(*text))
    arrays = series_arrays(table.series, table.columns, encoding_of(table, [20, 13]), STEP)
    W, F = 4, 3
    series, rows = origins_within(arrays, np.array([0, 5]), np.array([20, 13]), W, F, 1)
    expected = [
        (s, t)
        for s, begin in ((0, W), (1, 5))
        for t in range(begin, len(values[s]) - F + 1)
        if np.isfinite(values[s][t - W : t]).any() and np.isfinite(values[s][t : t + F]).any()
    ]
    assert list(zip(series.tolist(), rows.tolist(), strict=True)) == expected
    batches = random_windows(arrays, (series, rows), W, F, 4, seed=0)
    seen = set()
    for k in range(-(-len(rows) // 4)):
        for past, future in zip(batches[k]["target"], batches[k]["future"], strict=True):
            (place,) = [
                (s, t)
                for s, t in expected
                if np.array_equal(values[s][t - W : t].astype("float32"), past, equal_nan=True)
            ]
            s, t = place
            np.testing.assert_array_equal(future, values[s][t : t + F].astype("float32"))
            seen.add(place)
    assert seen == set(expected)


def test_the_present_is_the_last_target_where_a_column_is_known_in_advance(tmp_path):
    rows = [f"{day},{n if n < 4 else ''},{n % 2}" for n, day in enumerate(DAYS)]
    table = table_of(tmp_path, lines("ds,y,promo", *rows), targets=("y",), known=("promo",))
    (series,) = table.series
    assert series.present == 4
    longer = extended(series, 2, "D")
    assert longer.covariates["promo"].tolist() == [0, 1, 0, 1, 0, 1]
    table = table_of(tmp_path, lines("ds,y,promo", *rows), targets=("y",), past=("promo",))
    assert table.series[0].present == 6  # a gap at the end
