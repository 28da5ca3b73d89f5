"""Text in the colours of a unit, and units that follow properties of text."""

import html.parser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTM
from lstm_jax.inspect import (
    Trace,
    find_units,
    inside_quotes,
    line_length,
    line_position,
    nesting_depth,
    text_html,
    trace,
)
from lstm_jax.inspect.text import NEGATIVE, POSITIVE, _colour


class Reader(html.parser.HTMLParser):
    """The visible text: each character with its colour."""

    def __init__(self):
        super().__init__()
        self.stack, self.characters = [], []

    def handle_starttag(self, tag, attrs):
        self.stack.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        if [tag for tag, _ in self.stack][-2:] == ["pre", "span"]:
            colour = self.stack[-1][1]["style"].removeprefix("background:")
            self.characters += [(character, colour) for character in data]


def read(shown):
    reader = Reader()
    reader.feed(shown)
    assert not reader.stack  # every tag is closed
    return reader.characters


def test_every_character_has_its_colour():
    text = 'if <a> & "b":\n\tpass  # ünïcode 日本 𝒙'
    values = np.linspace(-1.0, 1.0, len(text))
    shown = read(text_html(text, values))
    assert "".join(character for character, _ in shown) == text.replace("\n", "↵\n")
    colours = [colour for character, colour in shown if character != "\n"]
    lightness = [sum(bytes.fromhex(colour[1:])) for colour in colours]
    middle = int(np.argmax(lightness))
    assert colours[0] == "#56b4e9"
    assert colours[-1] == "#e69f00"
    assert len(text) // 2 - 2 <= middle <= len(text) // 2 + 2
    assert (np.diff(lightness[: middle + 1]) >= 0).all()
    assert (np.diff(lightness[middle:]) <= 0).all()


def contrast(colour):
    """The contrast of black letters on a colour, as defined by WCAG 2."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return (np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05) / 0.05


def test_letters_are_legible_on_every_colour():
    assert min(map(contrast, (POSITIVE, NEGATIVE))) > 7  # WCAG 2, level AAA
    assert _colour(0) == "#ffffff"


def test_limit_title_and_notebook():
    shown = text_html("ab", [0.5, 4.0], title="unit <3>", limit=0.5)
    assert "unit &lt;3&gt;" in shown
    assert [colour for _, colour in read(shown)] == ["#e69f00"] * 2
    assert shown._repr_html_() == shown
    assert "http" not in shown
    assert read(text_html("", [])) == []
    assert [colour for _, colour in read(text_html("ab", [0, 0]))] == ["#ffffff"] * 2


def test_a_page_for_a_browser(tmp_path):
    text_html("é", [1.0]).save(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text("utf-8")
    assert page.startswith('<!DOCTYPE html>\n<meta charset="utf-8">')
    assert ">é<" in page


@pytest.mark.parametrize(
    ("values", "limit", "message"),
    [
        ([1.0], None, r"values must have one number per character, shape \(2,\), got shape \(1,\)"),
        ([1.0, np.nan], None, "values must be finite, got NaN"),
        ([1.0, 1.0], 0.0, "limit must be above 0, got 0.0"),
    ],
)
def test_impossible_values(values, limit, message):
    with pytest.raises(ValueError, match=message):
        text_html("ab", values, limit=limit)


# ---- find_units ----


def test_correlations_are_those_of_numpy_sorted_by_size():
    lstm = LSTM((4, 3), 2)
    params = lstm.init(jax.random.key(0), 2)
    xs = jax.random.normal(jax.random.key(1), (30, 2, 2))
    traced = trace(lstm, params, xs, names=("c", "h"))
    rng = np.random.default_rng(0)
    followed = rng.normal(size=(30, 2))
    for name in ("c", "h"):
        found = find_units(traced, followed, name=name)
        assert (np.diff(np.abs(found.correlation)) <= 0).all()
        pairs = set(zip(found.layer.tolist(), found.unit.tolist(), strict=True))
        assert pairs == {("layer_0", u) for u in range(4)} | {("layer_1", u) for u in range(3)}
        for layer, unit, correlation in zip(*found, strict=True):
            states = np.asarray(traced.values[layer][name], np.float64)[..., unit].ravel()
            expected = np.corrcoef(states, followed.ravel())[0, 1]
            np.testing.assert_allclose(correlation, expected, rtol=1e-9)
    np.testing.assert_array_equal(
        find_units(traced, followed), find_units(traced, followed, name="c")
    )


def test_a_planted_unit_is_found():
    text = 'he said "this is (all) there is" and "left" her\n' * 5
    rng = np.random.default_rng(0)
    states = rng.normal(size=(len(text), 1, 20))
    for unit, property_of in ((3, inside_quotes), (11, line_position), (17, nesting_depth)):
        states[:, 0, unit] = 0.1 * rng.normal(size=len(text)) - property_of(text)
    traced = Trace({"cell": {"h": jnp.asarray(states[..., 2:])}}, (), units=np.arange(2, 20))
    for unit, property_of in ((3, inside_quotes), (11, line_position), (17, nesting_depth)):
        found = find_units(traced, property_of(text))
        assert found.unit[0] == unit
        assert found.correlation[0] < -0.9


def test_padding_and_constant_units_are_ignored():
    c = np.zeros((4, 2, 2))
    c[:, 0, 0] = [1, 2, 3, 4]
    c[:, 1, 0] = [1, 2, 99, 99]
    followed = np.array([[1, 1], [2, 2], [3, -5], [4, -5]])
    found = find_units(Trace({"cell": {"c": c}}, (), lengths=jnp.array([4, 2])), followed)
    np.testing.assert_allclose(found.correlation, [1.0, 0.0])
    assert find_units(Trace({"cell": {"c": c}}, ()), [1, 1, 1, 1]).correlation.tolist() == [0, 0]


def test_impossible_comparisons():
    traced = Trace({"cell": {"h": jnp.ones((4, 2, 3))}}, ())
    with pytest.raises(ValueError, match=r"shape \(4,\) or \(4, 2\), got shape \(5,\)"):
        find_units(traced, np.ones(5))
    with pytest.raises(
        ValueError, match=r"name must be one of h \(in cell of the trace\), got 'c'"
    ):
        find_units(traced, np.ones(4), name="c")
    with pytest.raises(ValueError, match="followed must be finite, got NaN or infinity"):
        find_units(traced, [0.0, 1.0, np.nan, 0.0])
    with pytest.raises(ValueError, match="trace must have at least one step, got none"):
        find_units(traced._replace(lengths=jnp.array([0, 0])), np.ones(4))


# ---- properties of a text ----


def test_properties_have_one_value_per_character():
    text = 'a "b\r\nc" (d [e)}]\n\n\x0bf'
    for property_of in (inside_quotes, line_position, line_length, nesting_depth):
        assert property_of(text).shape == (len(text),)
        assert property_of("").shape == (0,)
    assert nesting_depth("a)(b").tolist() == [0, 0, 1, 1]
    assert nesting_depth("<a<b>", pairs="<>").tolist() == [1, 1, 2, 2, 1]
    assert inside_quotes("'a'", quote="'").tolist() == [True, True, False]
    assert line_position("ab\n\nc").tolist() == [1, 2, 3, 1, 1]
    assert line_length("ab\n\nc").tolist() == [3, 3, 3, 1, 1]
