"""Damaged and malicious ink, recordings and tables of time series.

``pytest tests/robustness --fuzz 5000 -s`` tries more inputs and prints how many.
"""

import csv
import io
import re

import numpy as np
import pytest

from lstm_jax.data.audio import read_samples
from lstm_jax.data.ink import read_inks
from lstm_jax.data.series import SeriesColumns, read_frame, read_series
from tests.ink import WORDS, written
from tests.robustness import hostile
from tests.robustness.hostile_text import mutated_lines
from tests.robustness.readers import NUMBER

soundfile = pytest.importorskip("soundfile")


def damaged(rng, text, separators):
    """The bytes of a text with changed lines, fields or bytes."""
    if rng.random() < 0.7:
        text = mutated_lines(rng, text, separators)
    content = text.encode("utf-8", "replace")
    return hostile.mutated_bytes(rng, content) if rng.random() < 0.3 else content


def strokes_of(rng):
    numbers = np.random.default_rng(rng.randrange(2**32))
    return [stroke.round(3) for stroke in written(rng.choice(WORDS), numbers)]


def as_number(field):
    """The number in a field of ASCII digits."""
    assert field and {*field.encode()} <= {*map(ord, NUMBER)}, f"no number: {field!r}"
    return float(field)


# ---- ink ----


def ink_csv(folder, rng):
    lines = ["x,y,pen,ink,text"]
    for n in range(rng.choice([1, 2])):
        for stroke in strokes_of(rng):
            lines += [f"{x},{y},1,{n},oil" for x, y in stroke] + [f"0,0,0,{n},oil"]
    path = folder / "ink.csv"
    path.write_bytes(damaged(rng, "\n".join(lines) + "\n", ","))
    return path


def held_by_csv(path, inks):
    text = path.read_bytes().decode("utf-8-sig")
    separator = max(";\t,", key=text.splitlines()[0].count)
    names, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    places = [[name.strip() for name in names].index(name) for name in ("x", "y", "pen")]
    if separator == ";":
        rows = [[field.replace(",", ".") for field in row] for row in rows]
    points = [[as_number(row[n].strip()) for n in places] for row in rows if row]
    down = np.array([(x, -y) for x, y, pen in points if pen == 1])
    found = np.concatenate([stroke for ink in inks for stroke in ink.strokes])
    np.testing.assert_array_equal(found, down)


def inkml(folder, rng):
    traces = [
        "<trace>" + ", ".join(f"{x} {y}" for x, y in stroke) + "</trace>"
        for stroke in strokes_of(rng)
    ]
    page = ['<ink xmlns="http://www.w3.org/2003/InkML">', *traces, "</ink>"]
    path = folder / "ink.inkml"
    path.write_bytes(damaged(rng, "\n".join(page), " ,<>"))
    return path


def held_by_inkml(path, inks):
    text = path.read_bytes().decode("utf-8-sig")
    traces = re.findall(r"<trace>(.*?)</trace>", text, re.DOTALL)
    points = [p.split() for trace in traces for p in trace.split(",") if p.strip()]
    found = np.concatenate(inks[0].strokes)
    assert len(inks) == 1 and np.isfinite(found).all()
    if "channel" not in text and text.count("<trace") == len(traces):
        expected = [(as_number(p[0]), -as_number(p[1])) for p in points]
        np.testing.assert_array_equal(found, expected)


def unipen(folder, rng):
    lines, parts = [".VERSION 1.0", ".COORD X Y", ".HIERARCHY WORD"], []
    for n, stroke in enumerate(strokes_of(rng)):
        lines += [".PEN_DOWN", *(f"{x:.0f} {y:.0f}" for x, y in 100 * stroke), ".PEN_UP", "0 0"]
        parts.append(2 * n)
    lines.append(f'.SEGMENT WORD {",".join(map(str, parts))} OK "oil"')
    path = folder / "ink.dat"
    path.write_bytes(damaged(rng, "\n".join(lines) + "\n", " ,"))
    return path


def held_by_unipen(path, inks):
    for ink in inks:
        assert ink.strokes and all(np.isfinite(s).all() and len(s) for s in ink.strokes)
    numbers = {
        float(n) for n in re.findall(rb"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", path.read_bytes())
    }
    assert {*np.abs(np.concatenate([s.ravel() for i in inks for s in i.strokes]))} <= {
        *map(abs, numbers)
    }


# ---- audio ----


def audio(folder, rng):
    kind = rng.choice(["wav", "flac", "nist"])
    path, content = folder / f"a.{'sph' if kind == 'nist' else kind}", io.BytesIO()
    samples = np.random.default_rng(rng.randrange(2**32)).uniform(-1, 1, (400, rng.choice([1, 2])))
    soundfile.write(content, samples, rng.choice([8000, 16000]), "PCM_16", format=kind)
    path.write_bytes(rng.choice([hostile.mutated_bytes(rng, content.getvalue())] * 9 + [b""]))
    return path


def held_by_audio(path, samples):
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) and np.isfinite(samples).all()


# ---- time series ----


def table_text(numbers):
    days = np.arange("2024-01-01", "2024-02-10", dtype="datetime64[D]")
    values = numbers.uniform(1, 9, len(days)).round(2)
    lines = ["ds,y"] + [f"{day},{value}" for day, value in zip(days, values, strict=True)]
    return "\n".join(lines) + "\n"


def table(folder, rng):
    text = table_text(np.random.default_rng(rng.randrange(2**32)))
    path = folder / "sales.csv"
    path.write_bytes(damaged(rng, text, ","))
    return path


MISSING = {"", "NaN", "nan", "None"}  # of those that are tried


def read_table(path):
    return read_series(read_frame(path), SeriesColumns("ds", targets="y"), str(path))


def held_by_table(path, found):
    text = path.read_bytes().decode("utf-8-sig")
    if {*'"\r;\t'} & {*text} or len(found.series) != 1:
        return
    lines, (series,) = text.split("\n"), found.series
    for line, value in zip(series.lines, series.target, strict=True):
        if line:
            names, fields = lines[0].split(","), lines[line - 1].split(",")
            field = fields[[name.strip() for name in names].index("y")].strip()
            field = {"True": "1", "False": "0"}.get(field, field)
            assert np.isnan(value) if field in MISSING else as_number(field) == value


KINDS = {
    ".csv of ink": (ink_csv, read_inks, held_by_csv),
    ".inkml": (inkml, read_inks, held_by_inkml),
    "UNIPEN": (unipen, read_inks, held_by_unipen),
    "audio": (audio, lambda path: read_samples(path, 8000), held_by_audio),
    ".csv of a time series": (table, read_table, held_by_table),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_signals(kind, tmp_path, fuzz_budget):
    make, read, check = KINDS[kind]
    outcomes = hostile.tried(kind, fuzz_budget, lambda rng: make(tmp_path, rng), read, check)
    assert outcomes["read"] and outcomes["rejected"]
