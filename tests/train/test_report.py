"""Console output of a run: numbers are never cut, even on a narrow terminal."""

import io

import pytest
from rich.console import Console

from lstm_jax.train.report import Report

ROWS = {
    "this run, step 600": {"loss": 0.25, "mae": 15.5, "rmse": 27.0, "coverage_95": 0.9116},
    "persistence": {"loss": 0.5, "mae": 18.75, "rmse": 123456.75},
}
NUMBERS = {"0.2500", "15.5000", "27.0000", "0.9116", "0.5000", "18.7500", "123,456.8"}


def printed(width: int) -> list[str]:
    file = io.StringIO()
    Report(Console(file=file, width=width)).metrics("test split", ROWS)
    return file.getvalue().splitlines()


def test_metrics_form_one_table_if_they_fit():
    lines = printed(80)
    assert [line.strip() for line in lines].count("test split") == 1
    assert set(" ".join(lines).split()) >= NUMBERS


@pytest.mark.parametrize("width", [40, 44, 50, 60])
def test_metrics_on_a_narrow_console_form_several_tables(width):
    lines = printed(width)
    assert [line.strip() for line in lines].count("test split") > 1
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert set(words) >= NUMBERS
    assert [name for name in words if name in ROWS["this run, step 600"]] == [
        "loss", "mae", "rmse", "coverage_95",
    ]  # fmt: skip
    assert "…" not in " ".join(lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_columns_of_a_file_are_not_wrapped(terminal):
    file = io.StringIO()
    columns = {"a name of many words": ["one of many values"], "another": [0.25]}
    Report(Console(file=file, width=20, force_terminal=terminal)).columns(columns, 5)
    lines = [line.split() for line in file.getvalue().splitlines()]
    whole = [
        ["a", "name", "of", "many", "words", "another"],
        ["one", "of", "many", "values", "0.25"],
    ]
    assert (lines == whole) == (not terminal)
