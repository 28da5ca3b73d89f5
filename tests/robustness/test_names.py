"""Names of columns, classes, files and runs with a special meaning in matplotlib or HTML."""

import html.parser
import pathlib
import shutil

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lstm_jax._labels import label
from lstm_jax.cli import main
from lstm_jax.inspect import JacobianSpectrum, plot_jacobian_spectrum, text_html
from lstm_jax.inspect.page import Section, facts, image, page, paragraph
from lstm_jax.tasks.plots import confusion_matrix, forecasts
from lstm_jax.train.compare import plot, runs_in
from lstm_jax.train.metrics import loss_curve
from lstm_jax.train.sweep import Point
from lstm_jax.train.sweep.results import plot as sweep_plot

HOSTILE = [
    "$\\frac{$", "$$", "$x^$ & $y", "\\$\\frac{$", "_private", "<script>alert(1)</script>",
    "a%b{c}", "&amp;", "x" * 300, '"quoted"', "\\", "^_~#",
]  # fmt: skip


def drawn(figure) -> list[str]:
    """The strings of a figure after drawing."""
    FigureCanvasAgg(figure).draw()
    texts = [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]
    return [text for text in texts if text]


def test_plots_show_names_literally():
    counts = np.eye(len(HOSTILE), dtype=int)
    shown = drawn(confusion_matrix(counts, HOSTILE))
    for name in HOSTILE:
        assert label(name, 32) in shown
    truth = np.random.default_rng(0).normal(size=(2, 8, len(HOSTILE)))
    shown = drawn(forecasts(truth, truth[:, 4:], HOSTILE, HOSTILE[:2]))
    assert label(HOSTILE[0]) in shown
    lines = [{"step": 1, "train/loss": 1.0}]
    points = [
        Point(pathlib.Path(f"{n}"), {"data.text": name}, None, {"step": 1, "test": {"$^$": 1.0}})
        for n, name in enumerate(HOSTILE[:6])
    ]
    shown = drawn(sweep_plot(points, {"data.text": HOSTILE[:6]}))
    assert {label(name, 32) for name in HOSTILE[:6]} <= set(shown)
    curve = loss_curve(lines, HOSTILE[0], {name: {"loss": 1.0} for name in HOSTILE})
    assert {label(name) for name in HOSTILE} <= set(drawn(curve))


def test_a_dollar_does_not_start_a_formula():
    from matplotlib.text import Text

    assert Text()._preprocess_math(label("$\\alpha$")) == ("$\\alpha$", False)
    spectrum = JacobianSpectrum(np.array([[2.0, 0.5]]), np.array(0.1), np.zeros(3))
    drawn(plot_jacobian_spectrum({"$\\alpha$": spectrum}))  # a name that is deliberately a formula


class Tags(html.parser.HTMLParser):
    """The tags of a page, and the text outside them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.words = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.tags |= {f"{tag} {name}" for name, _ in attributes}

    def handle_data(self, data):
        self.words += data


@pytest.mark.parametrize("name", HOSTILE)
def test_pages_show_names_literally(name):
    parts = facts({name: name}) + paragraph(name) + image("<svg/>", name)
    parts += text_html(name, np.zeros(len(name)), title=name)
    plain = page("a", [Section("b", facts({"a": "b"}) + image("<svg/>", "") + "<p></p>")])
    hostile = Tags(page(name, [Section(name, parts)]))
    added = hostile.tags - Tags(plain).tags
    assert {tag for tag in added if tag.split()[0] not in ("div", "span", "b", "pre")} == set()
    assert hostile.words.count(name) >= 5


TASKS = {
    "classification": """
task = "classification"
[data]
train = "{data}"
label_column = "l"
id_column = "id"
batch_size = 2
[model]
hidden_size = 4
[train]
num_steps = 1
num_devices = 1
""",
    "forecasting": """
task = "forecasting"
[data]
table = "{data}"
train_rows = 20
validation_rows = 6
test_rows = 6
window = 4
horizon = 2
season = 2
batch_size = 4
[model]
hidden_size = 4
segment = 2
[train]
num_steps = 1
num_devices = 1
""",
}


@pytest.mark.parametrize("task", TASKS)
def test_runs_on_hostile_names(task, tmp_path, monkeypatch, capsys):
    """Runs are trained, evaluated and compared with such names of folders and files."""
    monkeypatch.chdir(tmp_path)
    folder = pathlib.Path("$\\frac{$<b onload=x>&")
    folder.mkdir()
    column, label_name = "$\\frac{$ <i>", "<script>$\\frac{$"
    if task == "classification":
        rows = [f"id,{column},l"]
        for n in range(12):
            rows += [f"{n},{(3 * n + 5 * t) % 7},{[label_name, '_b'][n % 2]}" for t in range(3)]
    else:
        rows = [f"time,{column},_b"] + [f"{t},{(3 * t) % 7},{(5 * t) % 4}" for t in range(40)]
    (folder / "d$_{$<i>.csv").write_text("\n".join(rows) + "\n", "utf-8")
    (folder / "c.toml").write_text(TASKS[task].format(data="d$_{$<i>.csv"), "utf-8")
    run = str(folder / "_run$^$<img src=x>")
    assert main(["train", str(folder / "c.toml"), "--workdir", run]) == 0
    shutil.copytree(run, folder / "$$")
    assert main(["compare", run, str(folder / "$$"), "--output", str(folder / "a.png")]) == 0
    labels = drawn(plot(runs_in([run, folder / "$$"])))
    assert {" _run\\$^\\$<img src=x>", "\\$\\$"} <= set(labels)
    assert capsys.readouterr().err == ""
