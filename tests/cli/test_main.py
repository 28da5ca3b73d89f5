"""The command line: what each command prints, and one line for a user's mistake."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from lstm_jax.cli import main
from lstm_jax.tasks import TASKS
from lstm_jax.tasks.options import expectation
from lstm_jax.train import load_config, sections_for, write_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CHARACTERS = """
task = "next_character"
[data]
text = "{folder}/text.txt"
lanes = 4
window = 8
[model]
hidden_size = 8
embedding_size = 4
[train]
num_steps = 6
log_every = 2
eval_every = 3
checkpoint_every = 4
sample_prompt = "the "
sample_length = 10
"""
FORECASTING = """
task = "forecasting"
[data]
table = "{folder}/table.csv"
train_rows = 20
validation_rows = 5
test_rows = 5
window = 4
horizon = 2
season = 2
[model]
segment = 2
"""
CLASSIFICATION = """
task = "classification"
[data]
train = "{folder}/sequences.ts"
test = "{folder}/sequences.ts"
batch_size = 2
"""


def lay_out(folder: pathlib.Path) -> pathlib.Path:
    """A config of each task in a folder, with its data."""
    words = ["the", "quick", "brown", "fox", "a", "lazy", "[dög]\n", "\tx\r\n"]
    words = np.random.default_rng(0).choice(words, 200)
    (folder / "text.txt").write_text(" ".join(words), "utf-8")
    rows = [f"{n},{n * 0.5},{n**2 % 7}" for n in range(30)]
    (folder / "table.csv").write_text("\n".join(["time,one,two", *rows]) + "\n", "utf-8")
    (folder / "sequences.ts").write_text(
        "@classLabel true x y\n@data\n1,2,3:2,1,5:x\n2,4:1,0:y\n5,4:1,7:y\n", "utf-8"
    )
    for text in (CHARACTERS, FORECASTING, CLASSIFICATION):
        name = re.search(r'task = "(\w+)"', text)[1]
        (folder / f"{name}.toml").write_text(text.format(folder=folder), "utf-8")
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return lay_out(tmp_path)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, and what its training printed."""

    workdir: str
    out: str
    err: str


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = lay_out(tmp_path_factory.mktemp("run"))
    workdir = str(folder / "run")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["train", str(folder / "next_character.toml"), "--workdir", workdir])
    assert code == 0
    return Run(workdir, out.getvalue(), err.getvalue())


def call(*args: object) -> int:
    """The exit status of a command, however it ends."""
    try:
        return main([str(arg) for arg in args])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def test_train_prints_plain_lines(run):
    assert run.err == ""
    assert "\x1b" not in run.out and "\r" not in run.out.partition("a sample of")[0]
    lines = run.out.splitlines()
    assert any(re.match(r"next_character: [\d,]+ parameters, 6 steps of 32 ch", x) for x in lines)
    progress = [x for x in lines if x.startswith("step 2/6 | ")]
    assert len(progress) == 1
    assert re.fullmatch(
        r"step 2/6 \| loss \d\.\d{4} \| learning rate \d\.\d\de-\d\d \| [\d,]+ characters/s \| "
        r"\d+:\d\d:\d\d left",
        progress[0],
    )
    assert sum("validation loss" in x for x in lines) == 2
    assert f"drew {run.workdir}/plots/loss.png" in lines
    assert "a sample of 10 characters:" in run.out
    assert any(x.startswith("the ") and len(x) <= 14 for x in lines)


def test_evaluate_prints_figures_beside_the_ngram_model(run, capsys):
    assert call("evaluate", run.workdir) == 0
    told = capsys.readouterr()
    assert told.err == ""
    results = json.loads(pathlib.Path(run.workdir, "results.json").read_text("utf-8"))
    (own,) = [line for line in told.out.splitlines() if "this run, step" in line]
    assert f"{results['validation']['loss']:.4f}" in own
    assert f"{results['validation']['bits']:.4f}" in own
    assert f"step {results['step']}" in own
    (ngram,) = [line for line in told.out.splitlines() if "5-gram" in line]
    assert re.search(r"\d\.\d{4}", ngram)


def generate(run, capsys, *args) -> str:
    assert call("generate", run.workdir, *args) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out.removesuffix("\n")


def test_generate_is_decided_by_its_seed_and_temperature(run, capsys):
    args = ("--prompt", "the fox", "--length", 80)
    text = generate(run, capsys, *args, "--seed", 1)
    assert text.startswith("the fox") and len(text) == 7 + 80
    assert generate(run, capsys, *args, "--seed", 1) == text
    assert generate(run, capsys, *args, "--seed", 2) != text
    assert generate(run, capsys, *args, "--seed", 1, "--temperature", 0.01) != text
    greedy = generate(run, capsys, *args, "--temperature", 0)
    assert generate(run, capsys, *args, "--temperature", 0, "--seed", 5) == greedy


def test_generate_keeps_brackets_and_takes_small_lengths(run, capsys):
    assert generate(run, capsys, "--prompt", "[dög]", "--length", 0) == "[dög]"
    assert len(generate(run, capsys, "--prompt", "[dög] a", "--length", 1)) == 8
    assert generate(run, capsys, "--length", 0) == ""


def test_generate_prints_tabs_and_line_ends_as_they_are(run, capsys):
    prompt = "[dög]\tx\r\n the"
    assert generate(run, capsys, "--prompt", prompt, "--length", 0) == prompt


def test_going_on_with_a_finished_run(run, capsys):
    assert call("train", run.workdir) == 0
    out = capsys.readouterr().out
    assert "going on from step 6" in out and "this run, step" in out
    assert "| loss" not in out


def test_the_default_workdir_is_named_for_the_config(folder, capsys):
    assert call("train", "next_character.toml", "--train.num-steps", 1) == 0
    assert (folder / "runs" / "next_character" / "results.json").is_file()
    # Dashes and underscores, and the value after a space or an equals sign.
    assert call("train", "next_character.toml", "--train.num_steps=1") == 0
    assert "going on from step 1" in capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    assert call("--help") == 0
    out = capsys.readouterr().out
    for command in ("train", "evaluate", "generate"):
        assert re.search(rf"\b{command}\b", out)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate", ["PATH"]),
        ("generate", ["PATH", "--prompt", "--length", "--temperature", "--seed", "400", "0.8"]),
        ("train", ["PATH", "--workdir"]),
    ],
)
def test_help_of_each_command(command, words, capsys):
    assert call(command, "--help") == 0
    told = capsys.readouterr()
    assert told.err == ""
    for word in words:
        assert word in told.out


def rows(out: str) -> dict[str, list[list[str]]]:
    """The columns of each line of help that begins with a config key's flag."""
    found: dict[str, list[list[str]]] = {}
    for line in out.splitlines():
        if re.match(r"--\w+\.[\w-]+ ", line):
            flag, *columns = re.split(r" {2,}", line.rstrip())
            found.setdefault(flag, []).append(columns)
    return found


def test_help_of_train_lists_every_key(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert call("train", "--help") == 0
    found = rows(capsys.readouterr().out)
    for task in TASKS:
        for name, kind in sections_for(task).items():
            section = kind()
            for field in dataclasses.fields(kind):
                flag = f"--{name}.{field.name.replace('_', '-')}"
                default = getattr(section, field.name)
                shown = str(default).lower() if isinstance(default, bool) else str(default) or '""'
                row = [expectation(field), shown, field.metadata["meaning"]]
                assert row in found[flag]


def test_help_of_train_fits_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert call("train", "--help") == 0
    tables = capsys.readouterr().out.partition("[data]")[2]
    assert all(len(line) <= 80 for line in tables.splitlines())
    assert "--train.checkpoint-every " in tables and "--model.input-dropout " in tables


def test_help_of_train_shows_the_values_of_a_config(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    path = CONFIGS / "quickstart.toml"
    assert call("train", path, "--help") == 0
    found = rows(capsys.readouterr().out)
    config = load_config(path)
    assert found["--train.num-steps"][0][1] == str(config.train.num_steps)
    assert found["--model.hidden-size"][0][1] == str(config.model.hidden_size)
    assert found["--train.sample-prompt"][0][1].strip() == config.train.sample_prompt.strip()
    assert all(len(lines) == 1 for lines in found.values())  # of this task alone
    assert "--data.horizon" not in found
    assert call("train", "missing.toml", "--help") == 1
    assert capsys.readouterr().err == "lstm-jax: error: missing.toml: no such config file\n"


def file(name: str, content: bytes | str | None):
    """Changes a file of the folder; removes it for None."""

    def change(folder: pathlib.Path):
        if content is None:
            (folder / name).unlink()
        else:
            data = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(data)

    return change


def replaced(name: str, old: str, new: str):
    def change(folder: pathlib.Path):
        text = (folder / name).read_text("utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), "utf-8")

    return change


def classification_run(folder: pathlib.Path):
    (folder / "run").mkdir()
    write_config(load_config(folder / "classification.toml"), folder / "run" / "config.toml")


TRAIN = ("train", "next_character.toml")
MISTAKES = {
    "missing config": (None, ("train", "missing.toml"), ["missing.toml: no such config file"]),
    "config inside a file": (None, ("train", "text.txt/a.toml"), ["text.txt/a.toml"]),
    "no TOML": (None, ("train", "text.txt"), ["text.txt: not a TOML file"]),
    "misspelt key": (
        replaced("next_character.toml", "num_steps", "num_stepz"),
        TRAIN,
        ["next_character.toml", "train.num_stepz", "did you mean train.num_steps?"],
    ),
    "misspelt flag of a key": (
        None,
        (*TRAIN, "--train.num-stepz", "3"),
        ["--train.num-stepz", "did you mean train.num_steps?"],
    ),
    "misspelt flag": (None, (*TRAIN, "--workdri", "x"), ["--workdri", "--workdir"]),
    "flag without a value": (None, (*TRAIN, "--train.seed"), ["--train.seed", "value"]),
    "a word too many": (None, (*TRAIN, "more"), ["more"]),
    "wrong type in the file": (
        replaced("next_character.toml", "num_steps = 6", 'num_steps = "6"'),
        TRAIN,
        ["next_character.toml", "train.num_steps", "an integer of at least 1", "'6'"],
    ),
    "wrong type of a flag": (
        None,
        (*TRAIN, "--train.num-steps", "many"),
        ["--train.num-steps", "an integer of at least 1", "'many'"],
    ),
    "impossible value": (
        None,
        (*TRAIN, "--model.dropout", "1.5"),
        ["--model.dropout", "at least 0 and below 1", "1.5"],
    ),
    "negative value": (
        None,
        (*TRAIN, "--optimizer.learning-rate", "-1"),
        ["--optimizer.learning-rate", "above 0", "-1"],
    ),
    "a seed too large": (
        None,
        (*TRAIN, "--train.seed", str(2**70)),
        ["--train.seed", str(2**70)],
    ),
    "missing text": (file("text.txt", None), TRAIN, ["text.txt: no such file"]),
    "a folder as text": (None, (*TRAIN, "--data.text", "."), ["no such file"]),
    "empty text": (file("text.txt", ""), TRAIN, ["text.txt", "empty"]),
    "text of blanks": (file("text.txt", " \n\n"), TRAIN, ["text.txt", "expected text"]),
    "text not UTF-8": (
        file("text.txt", b"caf\xe9 " * 90),
        TRAIN,
        ["text.txt", "UTF-8", "0xe9", "position 3"],
    ),
    "text too short for one window": (
        file("text.txt", "too short"),
        TRAIN,
        ["text.txt", "8 characters", "data.lanes * data.window = 32"],
    ),
    "missing CSV": (
        file("table.csv", None),
        ("train", "forecasting.toml"),
        ["table.csv: no such file"],
    ),
    "CSV with a missing value": (
        replaced("table.csv", "3,1.5,2", "3,,2"),
        ("train", "forecasting.toml"),
        ["table.csv", "line 5", "'one'", "a missing value"],
    ),
    "CSV with a word": (
        replaced("table.csv", "3,1.5,2", "3,1.5,two"),
        ("train", "forecasting.toml"),
        ["table.csv", "line 5", "'two'", "expected a number"],
    ),
    "CSV too short for the splits": (
        None,
        ("train", "forecasting.toml", "--data.test-rows", "6"),
        ["table.csv", "30 rows", "= 31"],
    ),
    "split too short for one window": (
        None,
        ("train", "forecasting.toml", "--data.horizon", "6"),
        ["data.validation_rows", "horizon = 6", "5"],
    ),
    "window not whole segments": (
        None,
        ("train", "forecasting.toml", "--model.segment", "3"),
        ["model.segment", "data.window = 4", "3"],
    ),
    "binary CSV": (
        file("table.csv", b"\xff\xfe\x00"),
        ("train", "forecasting.toml"),
        ["table.csv", "UTF-8"],
    ),
    "CSV of one endless field": (
        file("table.csv", "time,a\n1," + "9" * 200_000),
        ("train", "forecasting.toml"),
        ["table.csv"],
    ),
    "sequences not UTF-8": (
        file("sequences.ts", b"# caf\xe9\n@data\n"),
        ("train", "classification.toml"),
        ["sequences.ts", "UTF-8"],
    ),
    "sequences without examples": (
        file("sequences.ts", "@classLabel true x y\n@data\n"),
        ("train", "classification.toml"),
        ["sequences.ts", "expected examples"],
    ),
    "a batch larger than the data": (
        None,
        ("train", "classification.toml", "--data.batch-size", "9"),
        ["data.batch_size", "3 training sequences", "9"],
    ),
    "nothing left for validation": (
        None,
        ("train", "classification.toml", "--data.validation-fraction", "0.01"),
        ["data.validation_fraction"],
    ),
    "nothing left for training": (
        None,
        ("train", "classification.toml", "--data.validation-fraction", "0.99"),
        ["data."],
    ),
    "train in no run": (None, ("train", "."), ["no run here"]),
    "evaluate no run": (None, ("evaluate", "."), ["no run here"]),
    "evaluate no folder": (None, ("evaluate", "missing"), ["missing: no run here"]),
    "evaluate with an unknown flag": (None, ("evaluate", ".", "--fast"), ["--fast: unknown opt"]),
    "evaluate before a checkpoint": (
        classification_run,
        ("evaluate", "run"),
        ["run: no checkpoint yet"],
    ),
    "generate of a task that writes nothing": (
        classification_run,
        ("generate", "run"),
        ["run", "classification", "writes nothing"],
    ),
    "workdir is a file": (None, (*TRAIN, "--workdir", "text.txt"), ["text.txt"]),
    "misspelt command": (None, ("trian", "next_character.toml"), ["trian", "train"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name, folder, capsys):
    change, args, words = MISTAKES[name]
    if change is not None:
        change(folder)
    code = call(*args)
    told = capsys.readouterr()
    assert code in (1, 2)
    assert told.err.count("\n") == 1 and told.err.endswith("\n")
    assert told.err.startswith("lstm-jax: error: ")
    assert "Traceback" not in told.err + told.out
    for word in words:
        assert word in told.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--prompt", "a fäx"), ["prompt", "'ä'", "position 3"]),
        (("--length", -1), ["--length", "at least 0", "-1"]),
        (("--length", "abc"), ["--length", "abc"]),
        (("--temperature", -0.5), ["--temperature", "at least 0", "-0.5"]),
        (("--temperature", "nan"), ["--temperature", "at least 0", "nan"]),
        (("--seed", 2**70), ["--seed", str(2**70)]),
        (("--lenght", 3), ["--lenght", "did you mean --length?"]),
    ],
    ids=str,
)
def test_a_mistake_in_generate_is_told_in_one_line(args, words, run, capsys):
    code = call("generate", run.workdir, *args)
    told = capsys.readouterr()
    assert code in (1, 2)
    assert told.out == ""
    assert told.err.count("\n") == 1 and told.err.startswith("lstm-jax: error: ")
    for word in words:
        assert word in told.err


def test_going_on_with_other_values_is_refused(run, capsys):
    assert call("train", run.workdir, "--train.seed", 5) == 1
    told = capsys.readouterr().err
    assert "train.seed (0 there, 5 asked)" in told and told.count("\n") == 1
    assert call("train", run.workdir, "--workdir", "elsewhere") == 1
    assert "--workdir" in capsys.readouterr().err


def test_no_command_is_a_mistake(capsys):
    assert call() == 2
    told = capsys.readouterr()
    assert "train" in told.err + told.out and "Traceback" not in told.err


@pytest.mark.slow
def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "lstm_jax", "evaluate", "/no/such/run"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == ("lstm-jax: error: /no/such/run: no run here (expected a config.toml)\n")
