"""Plots of tasks: their content, their units, and that nothing overlaps."""

import dataclasses
import itertools

import matplotlib.dates
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lstm_jax.config import task_class
from lstm_jax.tasks.plots import COLUMNS_PLOTTED, forecasts

NAMES = ("temperature of the living room in degrees", "Umsatz $\\frac{$", "c")


def curves(columns: int, windows: int = 3):
    rng = np.random.default_rng(0)
    return [1e4 * rng.normal(size=(windows, steps, columns)) for steps in (6, 4, 4)]


def drawn(figure) -> FigureCanvasAgg:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


@pytest.mark.parametrize("names", [NAMES, ["x" * 200] * 12])
def test_forecasts_show_columns_by_name_without_overlap(names):
    past, future, forecast = curves(len(names))
    truth = np.concatenate([past, future], axis=1)
    figure = forecasts(truth, forecast, names, [f"test window {n}00" for n in range(3)])
    panels = np.array(figure.axes).reshape(-1, 3)
    assert len(panels) == min(len(names), COLUMNS_PLOTTED)
    for (c, n), panel in np.ndenumerate(panels):
        shown = [line.get_ydata() for line in panel.get_lines()[:3]]
        for values, expected in zip(shown, (past, future, forecast), strict=True):
            np.testing.assert_array_equal(values, expected[n, :, c])
    assert panels[-1, 0].get_title("left").rstrip("…") in names[len(panels) - 1]
    renderer = drawn(figure).get_renderer()
    texts = [
        text.get_window_extent(renderer)
        for panel in figure.axes
        for text in (panel.title, panel._left_title, panel._right_title, panel.xaxis.label)
        if text.get_text()
    ]
    texts += [text.get_window_extent(renderer) for text in figure.legends]
    texts += [
        label.get_window_extent(renderer)
        for panel in panels[:, 0]
        for label in panel.get_yticklabels()
        if label.get_text()
        and panel.get_ylim()[0] <= label.get_position()[1] <= panel.get_ylim()[1]
    ]
    for one, other in itertools.combinations(texts, 2):
        assert not one.overlaps(other)
    assert all(
        figure.bbox.contains(*text.min) and figure.bbox.contains(*text.max) for text in texts
    )


def test_dates_of_every_step_have_ticks():
    """From seconds to years: no warning, and at least two ticks in each panel."""
    past, future, forecast = curves(1)
    truth = np.concatenate([past, future], axis=1)
    for step in (1, 60, 900, 3600, 3 * 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400):
        times = np.datetime64("2024-02-28T23:00:00") + np.arange(10) * np.timedelta64(step, "s")
        figure = forecasts(truth, forecast, ("a",), ["one", "two", "three"], np.array([times] * 3))
        drawn(figure)
        for panel in figure.axes:
            shown = [
                t for t in panel.get_xticks() if panel.get_xlim()[0] <= t <= panel.get_xlim()[1]
            ]
            assert 2 <= len(shown) <= 7, (step, shown)


@pytest.mark.parametrize("dated", [True, False])
def test_the_plot_of_a_forecaster_has_the_units_and_dates_of_the_table(dated, tmp_path):
    times = np.datetime64("2024-02-28") + np.arange(30)
    rows = [f"{time if dated else n},{5000 + n},{n % 7}" for n, time in enumerate(times)]
    (tmp_path / "table.csv").write_text("\n".join(["time,one,two", *rows]), "utf-8")
    kind = task_class("forecasting")
    sections = {field.name: field.type for field in dataclasses.fields(kind)}
    data = sections["data"](
        table=str(tmp_path / "table.csv"), train_rows=15, validation_rows=5, test_rows=10,
        window=4, horizon=2, season=2,
    )  # fmt: skip
    task = kind(data, sections["model"](segment=2))

    class Persistence:
        def initial_carry(self, rows):
            return ()

        def __call__(self, carry, *, past, level):
            return carry, {"forecast": np.repeat(level[:, None], 2, axis=1)}

    ((name, figure),) = task.plots(Persistence())
    assert name == "forecasts"
    first = figure.axes[0]
    before, after, forecast = (line.get_xydata() for line in first.get_lines()[:3])
    place = 2  # the first plotted window among those that forecast rows from 20 on
    end = 20 + place
    np.testing.assert_allclose(before[:, 1], 5000 + np.arange(end - 4, end), rtol=1e-6)
    np.testing.assert_allclose(after[:, 1], 5000 + np.arange(end, end + 2), rtol=1e-6)
    np.testing.assert_allclose(forecast[:, 1], [5000 + end - 1] * 2, rtol=1e-6)
    shown = np.concatenate([before[:, 0], after[:, 0]])
    if dated:
        expected = matplotlib.dates.date2num(times[end - 4 : end + 2])
        np.testing.assert_array_equal(shown, expected)
        drawn(figure)
        assert figure.axes[3].xaxis.get_offset_text().get_text() == "2024-Mar"
    else:
        np.testing.assert_array_equal(shown, np.arange(-3, 3))
        assert figure.axes[3].get_xlabel() == "rows from the end of the past"
