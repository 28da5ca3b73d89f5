"""Parts of the page that do not occur for small runs."""

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import LSTM
from lstm_jax.inspect import page

pytest.importorskip("matplotlib")


def test_long_rows_large_states_and_texts_without_quotes(monkeypatch):
    lstm = LSTM(3, cell="lstm_1997")  # has gates, but none that retains the state
    params = lstm.init(jax.random.key(0), 2)
    xs = jax.random.normal(jax.random.key(1), (90, 1, 2))
    monkeypatch.setattr(page, "LARGEST_JACOBIAN", 5)
    sections = {s.title: s.body for s in page.layer_sections(lstm, params, xs, text="ab c\n" * 18)}
    assert sections["Jacobian of the state"] == (
        "<p>Left out: the state has 6 numbers, more than 5.</p>"
    )
    assert "Memory horizon" not in sections
    assert "position in the line" in sections["The text in the colours of units"]
    for absent in ("inside quotes", "nesting depth"):
        assert absent not in sections["The text in the colours of units"]
    assert sections["These units over time"].count("<img") in (1, 2)  # a unit is shown once


def test_text_is_escaped():
    shown = page.page("<b>", [page.Section("a & b", page.facts({"<i>": "\"x\" & 'y'"}))])
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "<h2>a &amp; b</h2>" in shown
    assert 'alt="&lt;i&gt;"' in page.image("<svg/>", "<i>")


def test_padding_is_not_shown():
    lstm = LSTM(3, cell="gru")
    params = lstm.init(jax.random.key(0), 2)
    xs = jax.random.normal(jax.random.key(1), (9, 3, 2)).at[4:, 0].set(jnp.nan)
    sections = page.layer_sections(lstm, params, xs, lengths=jnp.array([4, 9, 6]))
    assert [section.title for section in sections][3] == "One unit over time"
    assert "4 steps before" in sections[-1].body  # the window of row 0
