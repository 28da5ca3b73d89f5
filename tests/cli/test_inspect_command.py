"""``lstm-jax inspect``: a page that a browser opens, and one line for a user's mistake."""

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from lstm_jax.cli import main
from lstm_jax.inspect.page import Section

CONFIGS = {
    "next_character": """
[data]
text = "text.txt"
lanes = 4
window = 8
[model]
hidden_size = 8
num_layers = 2
embedding_size = 4
[train]
num_steps = 4
sample_length = 0
eval_every = 2
""",
    "forecasting": """
[data]
table = "table.csv"
train_rows = 30
validation_rows = 10
test_rows = 10
window = 8
horizon = 2
season = 2
batch_size = 4
[model]
segment = 2
hidden_size = 4
cell = "gru"
[train]
num_steps = 2
""",
    "classification": """
[data]
train = "sequences.ts"
test = "sequences.ts"
batch_size = 2
[model]
hidden_size = 4
cell = "rnn"
[train]
num_steps = 2
""",
}


@contextlib.contextmanager
def in_folder(folder):
    before = pathlib.Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(*args) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(arg) for arg in args])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A trained run of each task, and its page."""
    folder = tmp_path_factory.mktemp("inspect")
    words = ["the", '"quick', 'brown"', "fox", "(a", "lazy)", "<dög>\n"]
    text = " ".join(np.random.default_rng(0).choice(words, 400))
    (folder / "text.txt").write_text(text, "utf-8")
    rows = [f"{n},{np.sin(n)},{n**2 % 7}" for n in range(60)]
    (folder / "table.csv").write_text("\n".join(["time,one,two", *rows]) + "\n", "utf-8")
    (folder / "sequences.ts").write_text(
        "@classLabel true x y\n@data\n1,2,3:2,1,5:x\n2,4:1,0:y\n5,4:1,7:y\n", "utf-8"
    )
    with in_folder(folder):
        for task, config in CONFIGS.items():
            (folder / f"{task}.toml").write_text(f'task = "{task}"\n{config}', "utf-8")
            assert run("train", f"{task}.toml", "--workdir", task)[0] == 0
    return folder


@pytest.fixture(scope="module")
def pages(folder) -> dict[str, str]:
    with in_folder(folder):
        for task in CONFIGS:
            assert run("inspect", task) == (0, f"wrote {task}/inspect.html\n", "")
    return {task: (folder / task / "inspect.html").read_text("utf-8") for task in CONFIGS}


COMMON = ["The run", "Loss", "Layers", "The cell", "Gates and states over time"]
LATER = ["Gradient through time", "Jacobian of the state", "Config"]
SECTIONS = {
    "next_character": [
        *COMMON,
        "What units follow",
        "The text in the colours of units",
        "These units over time",
        "Saturation of gates",
        "Memory horizon",
        *LATER,
    ],
    "forecasting": [
        *COMMON, "One unit over time", "Saturation of gates", "Memory horizon", *LATER
    ],
    "classification": [*COMMON, "One unit over time", *LATER],  # of a cell without gates
}  # fmt: skip


@pytest.mark.parametrize("task", list(CONFIGS))
def test_page_is_self_contained(pages, folder, task):
    page = pages[task]
    assert re.findall("<h2>(.*?)</h2>", page) == SECTIONS[task]
    outside = re.findall(r'(?:src|href)="(?!data:)([^"]*)', page)
    assert outside == []
    assert re.findall(r"url\(|@import|<script", page) == []
    config = (folder / task / "config.toml").read_text("utf-8")
    assert config.replace('"', "&quot;") in page
    assert "step 2 of 2, the best" in page or "of 4, the best" in page


def test_a_page_shows_the_validation_text(pages, folder):
    """Every character of the text, on its colour."""
    text = (folder / "text.txt").read_text("utf-8")
    tokens = round(len(text) * 0.9)
    (shown, *_) = re.findall("<pre style=.*?>(.*?)</pre>", pages["next_character"], re.DOTALL)
    shown = re.sub("<.*?>", "", shown).replace("↵\n", "\n")
    for escaped, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(escaped, character)
    assert len(shown) > 100
    assert text[tokens:].startswith(shown)


@pytest.fixture(scope="module")
def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs a browser, one of {', '.join(names)}")
    return found


MEASURE = """<script>
addEventListener("load", () => {
  const seen = {
    images: [...document.images].map(i => [i.alt, i.complete, i.naturalWidth, i.clientWidth]),
    heads: [...document.querySelectorAll("h2")].map(h => h.getBoundingClientRect().height),
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    letters: document.body.innerText.length,
  };
  const pre = document.createElement("pre");
  pre.id = "seen";
  pre.textContent = JSON.stringify(seen);
  document.body.replaceChildren(pre);
});
</script>"""


def opened(browser: str, page: str, folder: pathlib.Path, width: int) -> dict:
    """Properties of a page as displayed by the browser; its console must be empty."""
    path = folder / "measured.html"
    path.write_text(page.replace("</head>", MEASURE + "</head>"), "utf-8")
    ran = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--enable-logging=stderr", "--virtual-time-budget=5000",
            f"--user-data-dir={folder / 'profile'}", f"--window-size={width},800",
            "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    return json.loads(re.search('<pre id="seen">(.*)</pre>', ran.stdout, re.DOTALL)[1])


@pytest.mark.parametrize(
    ("task", "width"), [("next_character", 1200), ("forecasting", 1200), ("classification", 600)]
)
def test_a_browser_shows_the_page(pages, browser, tmp_path, task, width):
    seen = opened(browser, pages[task], tmp_path, width)
    assert len(seen["images"]) == pages[task].count("<img ")
    assert len(seen["images"]) >= 6
    for alt, complete, natural, shown in seen["images"]:
        assert complete, alt
        assert natural > 100, alt
        assert 100 < shown <= width, alt
        assert alt
    assert len(seen["heads"]) == len(SECTIONS[task])
    assert min(seen["heads"]) > 10
    assert seen["wide"] <= 0  # nothing exceeds the width
    assert seen["letters"] > 500


def test_the_browser_test_notices_broken_images_and_errors(browser, tmp_path):
    broken = (
        '<html><head></head><body><img alt="a" src="data:image/svg+xml;base64,AAAA"></body></html>'
    )
    assert opened(browser, broken, tmp_path, 800)["images"][0][2] == 0
    with pytest.raises(AssertionError):
        opened(browser, broken.replace("<img", "<script>nothing()</script><img"), tmp_path, 800)


# ---- custom text ----


def test_report_on_a_given_text(folder, monkeypatch):
    text = 'fox (a "quick fox) the\n' * 20
    (folder / "mine.txt").write_text(text, "utf-8")
    shown = {}

    def layer_sections(layer, params, xs, **what):
        shown.update(what, steps=len(xs))
        return [Section("Looked into", "")]

    monkeypatch.setattr("lstm_jax.train.inspection.layer_sections", layer_sections)
    with in_folder(folder):
        status, out, err = run("inspect", "next_character", "--text", "mine.txt")
    assert (status, out, err) == (0, "wrote next_character/inspect.html\n", "")
    page = (folder / "next_character" / "inspect.html").read_text("utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == ["The run", "Loss", "Looked into", "Config"]
    assert "the first 459 steps of 1 sequence(s) of mine.txt" in page  # the last has no successor
    assert shown == {"lengths": None, "text": text[:459], "steps": 459}


@pytest.mark.parametrize(
    ("args", "files", "message"),
    [
        (["nowhere"], {}, "nowhere: no run here (expected a config.toml)"),
        (["next_character", "--text", "no.txt"], {}, "--text: no.txt: no such file"),
        (
            ["next_character", "--text", "a.txt"],
            {"a.txt": "the fox Z"},
            "--text: a.txt: character 'Z' at position 8 is not among the 29 characters of the "
            "training text",
        ),
        (
            ["next_character", "--text", "a.txt"],
            {"a.txt": "t"},
            "--text: a.txt: expected at least 2 characters, got 1",
        ),
        (
            ["next_character", "--text", "a.txt"],
            {"a.txt": ""},
            "--text: a.txt: expected text, got an empty file",
        ),
        (
            ["forecasting", "--text", "a.txt"],
            {"a.txt": "the"},
            "--text: a.txt: expected a header and rows of a time stamp and numbers, got 1 lines",
        ),
        (
            ["classification", "--text", "a.txt"],
            {"a.txt": "the"},
            "--text: a.txt: expected a .ts or .npz file, or a CSV file whose first line names id; "
            "id is missing in 'the'",
        ),
    ],
)  # fmt: skip
def test_mistakes_give_one_line(folder, args, files, message):
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    with in_folder(folder):
        assert run("inspect", *args) == (1, "", f"lstm-jax: error: {message}\n")


def test_a_run_without_a_checkpoint(folder, tmp_path):
    shutil.copytree(folder / "forecasting", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with in_folder(folder):
        status, _, err = run("inspect", tmp_path / "run")
    assert (status, err) == (1, f"lstm-jax: error: {tmp_path}/run: no checkpoint yet\n")


def test_without_matplotlib(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with in_folder(folder):
        status, _, err = run("inspect", "forecasting")
    assert status == 1
    assert "matplotlib is not installed (pip install 'lstm_jax[plot]')" in err


def test_misspelt_option_gives_one_line():
    message = "--txt: unknown option; did you mean --text? see lstm-jax inspect --help"
    assert run("inspect", "a_run", "--txt", "a") == (2, "", f"lstm-jax: error: {message}\n")
