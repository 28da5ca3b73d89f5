"""Plots show the data with labelled axes, and open no window."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import CELLS, LSTM
from lstm_jax.inspect import (
    FoundUnits,
    GradientFlow,
    JacobianSpectrum,
    MemoryHorizon,
    Saturation,
    Trace,
    plot_gradient_flow,
    plot_jacobian_spectrum,
    plot_memory_horizon,
    plot_saturation,
    plot_trace,
    plot_unit,
    plot_units,
    trace,
)

pytest.importorskip("matplotlib")

T, B, D, H = 30, 2, 3, 10


@pytest.fixture(scope="module")
def traced():
    lstm = LSTM(H, 2, cell=("lstm", "gru"))
    params = lstm.init(jax.random.key(0), D)
    return trace(lstm, params, jax.random.normal(jax.random.key(1), (T, B, D)))


def drawn(figure):
    """The figure's panels after drawing; warnings are errors in tests."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()
    panels = [panel for panel in figure.axes if panel.get_visible()]
    check_no_overlap(figure, panels)
    return panels


def check_no_overlap(figure, panels):
    """No label or title covers another."""
    renderer = figure.canvas.get_renderer()
    boxes = []
    for panel in panels:
        texts = [panel.xaxis.label, panel.yaxis.label, panel.title, panel._left_title]
        for n, axis in enumerate((panel.xaxis, panel.yaxis)):
            low, high = sorted(axis.get_view_interval())
            labels = axis.get_majorticklabels()
            texts += [label for label in labels if low <= label.get_position()[n] <= high]
        for text in texts:
            if text.get_text() and text.get_visible():
                boxes.append((text.get_text(), text.get_window_extent(renderer)))
    width, height = figure.canvas.get_width_height()
    for n, (text, box) in enumerate(boxes):
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1
        assert inside or not box.width, text
        for other, other_box in boxes[:n]:
            across = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            down = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert across <= 1 or down <= 2, (text, other)


def lines_of(panel):
    return {line.get_label(): line.get_xydata() for line in panel.get_lines()}


def test_maps_show_units_over_time(traced):
    panels = drawn(plot_trace(traced, row=1))
    maps = {panel._left_title.get_text(): panel.images[0] for panel in panels if panel.images}
    assert list(maps)[:6] == ["i", "f", "g", "o", "c", "h"]
    for name, image in maps.items():
        expected = np.asarray(traced.values["layer_0"][name])[:, 1].T
        np.testing.assert_array_equal(image.get_array(), expected.astype(np.float64))
        low, high = image.get_clim()
        if name in "ifo":
            assert (low, high, image.get_cmap().name) == (0.0, 1.0, "cividis")
        else:
            np.testing.assert_allclose(high, np.abs(expected).max())
            assert (low, image.get_cmap().name) == (-high, "PuOr")
    assert panels[4].get_xlabel() == panels[5].get_xlabel() == "time (steps)"
    assert [panel.get_ylabel() for panel in panels[:6]] == ["unit", ""] * 3


def test_maps_of_some_values_over_a_text(traced):
    text = "a b\nc\td" * 4 + "ef"
    panels = drawn(plot_trace(traced, "layer_1", ["z", "h"], text=text))
    labels = [label.get_text() for label in panels[1].get_xticklabels()]
    assert labels == list(text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥"))
    assert panels[1].get_xlabel() == "time (characters read)"
    for names in (["h"], ["r", "z", "g"]):
        drawn(plot_trace(traced, "layer_1", names))


def test_chosen_units_keep_their_numbers():
    lstm = LSTM(H)
    params = lstm.init(jax.random.key(0), D)
    some = trace(lstm, params, jnp.ones((T, B, D)), units=[7, 2], names=["f", "c"])
    panel, *_ = drawn(plot_trace(some))
    assert [label.get_text() for label in panel.get_yticklabels()] == ["7", "2"]
    _, below = drawn(plot_unit(some, 2))
    expected = np.asarray(some.values["layer_0"]["c"])[:, 0, 1]
    np.testing.assert_allclose(lines_of(below)["c"][:, 1], expected)
    with pytest.raises(ValueError, match="unit must be in 7, 2, got 3"):
        plot_unit(some, 3)


def test_a_unit_over_time(traced):
    above, below = drawn(plot_unit(traced, 4, "layer_1", row=1))
    values = traced.values["layer_1"]
    for panel, names in ((above, "rz"), (below, "gh")):
        lines = lines_of(panel)
        for name in names:
            np.testing.assert_allclose(lines[name][:, 1], np.asarray(values[name])[:, 1, 4])
    assert above.get_ylabel() == "gate (0 shut, 1 open)"
    assert below.get_ylabel() == "value (dimensionless)"
    rnn = CELLS["rnn"](hidden_size=3)
    alone = trace(rnn, rnn.init(jax.random.key(0), D), jnp.ones((T, D)))
    assert len(drawn(plot_unit(alone, 0))) == 1  # no gates
    blocks = CELLS["lstm_1997"](hidden_size=4, block_size=2)
    alone = trace(blocks, blocks.init(jax.random.key(0), D), jnp.ones((T, D)))
    assert len(drawn(plot_unit(alone, 3))) == 1  # no axis labels of its own


def test_a_single_step():
    one = Trace({"layer_0": {"f": np.full((1, 4), 0.5), "c": np.ones((1, 4))}}, state=())
    flow = GradientFlow(state=np.full(1, 2.0), x=np.ones(1), fields={})
    for figure in (plot_trace(one), plot_unit(one, 0), plot_gradient_flow(flow)):
        panel = next(panel for panel in drawn(figure) if "steps" in panel.get_xlabel())
        low, high = panel.get_xlim()
        assert [tick for tick in panel.get_xticks() if low <= tick <= high] == [0.0]
        lines = [line for panel in figure.axes for line in panel.get_lines()]
        assert all(len(line.get_xdata()) > 1 or line.get_marker() == "o" for line in lines)


def test_grids_are_rows():
    cell = CELLS["conv_lstm"](hidden_size=2)
    params = cell.init(jax.random.key(0), 1)
    traced = trace(cell, params, jax.random.normal(jax.random.key(1), (T, B, 3, 3, 1)))
    panels = drawn(plot_trace(traced, names=["c"], row=10))  # row 1, position (0, 1)
    expected = np.asarray(traced.values["cell"]["c"], np.float64)[:, 1, 0, 1]
    np.testing.assert_array_equal(panels[0].images[0].get_array(), expected.T)


def test_gradient_flow_of_several_models():
    steps = np.arange(40)
    norms = np.stack([0.5 ** steps[::-1], 3 * 0.5 ** steps[::-1]], -1)
    norms[:5] = 0.0
    fast, slow = (GradientFlow(state=a, x=a / 2, fields={}) for a in (norms, norms**0.1))
    (panel,) = drawn(plot_gradient_flow({"fast": fast, "slow": slow}, of="x"))
    assert panel.get_yscale() == "log"
    assert (panel.get_xlabel(), panel.get_ylabel().split("\n")[1]) == (
        "steps before the last one",
        "by the input (loss per unit)",
    )
    line = lines_of(panel)["fast"]
    np.testing.assert_allclose(line[:35, 1], 0.5 ** np.arange(35))
    assert np.isnan(line[35:, 1]).all()  # zero, which has no logarithm
    assert [t.get_text() for t in panel.get_legend().get_texts()] == ["fast", "slow"]
    (panel,) = drawn(plot_gradient_flow(fast))
    assert panel.get_legend() is None
    with pytest.raises(ValueError, match="of must be 'state' or 'x', got 'c'"):
        plot_gradient_flow(fast, of="c")


def test_spectra():
    values = np.geomspace(1, 1e-30, 12) * np.array([0.5, 1.0, 2.0])[:, None, None]
    spectrum = JacobianSpectrum(values, np.array([-0.25]), np.zeros(3))
    (panel,) = drawn(plot_jacobian_spectrum({"rnn": spectrum}))
    (text,) = panel.get_legend().get_texts()
    assert text.get_text() == "rnn: exponent -0.250 per step"
    np.testing.assert_allclose(lines_of(panel)[text.get_text()][:, 1], np.geomspace(1, 1e-30, 12))
    assert panel.get_ylim()[0] > 1e-10  # values that are only rounding errors are omitted
    drawn(plot_jacobian_spectrum(spectrum))


def test_saturation_has_one_panel_per_gate():
    left = {"layer_0": {g: np.linspace(0, 0.5, 4) for g in "ifo"}, "layer_1": {"z": np.ones(2)}}
    right = {"layer_0": {g: np.linspace(0.5, 0, 4) for g in "ifo"}, "layer_1": {"z": np.zeros(2)}}
    panels = drawn(plot_saturation(Saturation(left, right)))
    assert [panel.get_title() for panel in panels] == [f"gate {gate}" for gate in "ifoz"]
    points = panels[1].collections[0].get_offsets()
    np.testing.assert_allclose(points, np.stack([right["layer_0"]["f"], left["layer_0"]["f"]], -1))
    assert {panel.get_xlim() for panel in panels} == {(-0.04, 1.04)}
    assert (
        len(drawn(plot_saturation(Saturation({"a": {"f": np.ones(3)}}, {"a": {"f": np.zeros(3)}}))))
        == 1
    )


def test_horizons_are_sorted():
    steps = np.array([30.0, np.inf, 2.0, 500.0])
    (panel,) = drawn(plot_memory_horizon(MemoryHorizon({"a": steps, "b": np.full(3, 5.0)})))
    label = "a, median 265, 1 endless"
    np.testing.assert_allclose(lines_of(panel)[label][:3, 1], [2, 30, 500])
    assert "b, median 5" in lines_of(panel)
    assert panel.get_ylabel() == "memory horizon (steps)"


def test_bars_of_units():
    found = FoundUnits(
        np.array(["layer_0", "layer_1", "layer_0"]), np.array([5, 3, 1]), np.array([-0.9, 0.5, 0.1])
    )
    (panel,) = drawn(plot_units(found, count=2, title="inside quotes"))
    assert [bar.get_width() for bar in panel.patches] == [-0.9, 0.5]
    assert [t.get_text() for t in panel.get_yticklabels()] == ["layer_0, 5", "layer_1, 3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "top"}, "layer must be one of layer_0, layer_1, got 'top'"),
        ({"names": ["z"]}, r"names must be among i, f, g, o, c, h \(in layer_0\), got 'z'"),
        ({"row": 2}, "row must be at least 0 and below 2, got 2"),
        ({"names": []}, "names must be at least one, or None for all, got none"),
        ({"names": "f", "text": "too short"}, "text must have one character per step, 30, got 9"),
    ],
)
def test_impossible_maps(traced, options, message):
    with pytest.raises(ValueError, match=message):
        plot_trace(traced, **options)
    with pytest.raises(ValueError, match="trace must have at least one step, got none"):
        plot_trace(Trace({"layer_0": {"f": np.ones((0, 4))}}, state=()))


def test_importing_needs_no_matplotlib():
    heavy = ("matplotlib", "flax")
    code = f"import sys, lstm_jax.inspect; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_axis_of_gradients_ends_at_the_smallest_normal_float32():
    def lowest(rate):
        state = np.float64(rate) ** np.arange(60)[::-1]
        flow = GradientFlow(state=state, x=np.ones(60), fields={})
        return plot_gradient_flow(flow).axes[0].get_ylim()[0]

    assert lowest(0.1) == np.finfo(np.float32).tiny
    assert 1e-20 < lowest(0.5) < 0.5**59
