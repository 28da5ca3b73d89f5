"""The command line: what each command prints, and one line for a user's mistake."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import lstm_jax
from lstm_jax.cli import main
from lstm_jax.cli.convert import LIBRARIES
from lstm_jax.cli.main import COMMANDS
from lstm_jax.cli.parser import shown
from lstm_jax.config import (
    TASKS,
    OptimizerConfig,
    TrainConfig,
    expectation,
    load_config,
    sections_for,
    write_config,
)
from lstm_jax.interop.convert import LIBRARIES as CONVERTED
from lstm_jax.train import read_metrics

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
        r"step 2/6 \| train/loss \d\.\d{4} \| learning_rate \d\.\d\de-\d\d \| "
        r"[\d,]+ characters/s \| \d+:\d\d:\d\d left",
        progress[0],
    )
    # The console shows the content of metrics.jsonl, with the same names, and each step once.
    metrics = read_metrics(pathlib.Path(run.workdir, "metrics.jsonl"))
    for step in (2, 3, 4, 6):
        written = {k: v for x in metrics if x["step"] == step for k, v in x.items()}
        (line,) = [x for x in lines if x.startswith(f"step {step}/6 | ")]
        for name in ("train/loss", "validation/loss"):
            found = re.findall(rf"\| {name} ([\d.]+) ", line)
            assert found == ([f"{written[name]:.4f}"] if name in written else []), line
    assert sum(x.startswith("step ") for x in lines) == 4
    assert f"plotted {run.workdir}/plots/loss.png" in lines
    assert "a sample of 10 characters:" in run.out
    assert any(x.startswith("the ") and len(x) <= 14 for x in lines)


def test_evaluate_prints_metrics_next_to_the_ngram_model(run, capsys):
    assert call("evaluate", run.workdir) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    results = json.loads(pathlib.Path(run.workdir, "results.json").read_text("utf-8"))
    (own,) = [line for line in printed.out.splitlines() if "this run, step" in line]
    assert f"{results['validation']['loss']:.4f}" in own
    assert f"{results['validation']['bits']:.4f}" in own
    assert f"step {results['step']}" in own
    (ngram,) = [line for line in printed.out.splitlines() if "5-gram" in line]
    assert re.search(r"\d\.\d{4}", ngram)


def test_quickstart_accepts_text_in_any_alphabet(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("Съешь ещё этих мягких булок\n" * 40, "utf-8-sig")
    small = (
        "--data.lanes",
        2,
        "--data.window",
        8,
        "--model.hidden-size",
        4,
        "--train.num-steps",
        1,
    )
    where = ("--data.text", tmp_path / "text.txt", "--workdir", tmp_path / "run")
    assert call("train", CONFIGS / "quickstart.toml", *where, *small) == 0
    assert "\ufeff" not in capsys.readouterr().out


def generate(run, capsys, *args) -> str:
    assert call("generate", run.workdir, *args) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out.removesuffix("\n")


def test_generate_depends_on_seed_and_temperature(run, capsys):
    args = ("--prompt", "the fox", "--length", 80)
    text = generate(run, capsys, *args, "--seed", 1)
    assert text.startswith("the fox") and len(text) == 7 + 80
    assert generate(run, capsys, *args, "--seed", 1) == text
    assert generate(run, capsys, *args, "--seed", 2) != text
    assert generate(run, capsys, *args, "--seed", 1, "--temperature", 0.01) != text
    greedy = generate(run, capsys, *args, "--temperature", 0)
    assert generate(run, capsys, *args, "--temperature", 0, "--seed", 5) == greedy


def test_generate_excludes_unlikely_and_repeated_characters(run, capsys):
    args = ("--prompt", "the fox", "--length", 40, "--temperature", 2)
    greedy = generate(run, capsys, *args[:-1], 0)
    assert generate(run, capsys, *args) != greedy
    assert generate(run, capsys, *args, "--top-k", 1) == greedy
    assert generate(run, capsys, *args, "--top-p", 1e-9) == greedy
    assert generate(run, capsys, *args[:-1], 0, "--repetition-penalty", 1e6) != greedy


def test_generate_prints_each_character_as_soon_as_it_is_known(run, capsys, monkeypatch):
    class Screen(io.StringIO):
        def __init__(self):
            super().__init__()
            self.seen = []

        def flush(self):
            self.seen.append(self.getvalue())

    args = ("--prompt", "the fox", "--length", 5)
    text = generate(run, capsys, *args)
    monkeypatch.setattr(sys, "stdout", Screen())
    assert call("generate", run.workdir, *args) == 0
    assert [text[:n] for n in range(7, 13)] == list(dict.fromkeys(sys.stdout.seen))[:6]


def test_generate_prints_brackets_and_accepts_small_lengths(run, capsys):
    assert generate(run, capsys, "--prompt", "[dög]", "--length", 0) == "[dög]"
    assert len(generate(run, capsys, "--prompt", "[dög] a", "--length", 1)) == 8
    assert generate(run, capsys, "--length", 0) == ""


def test_generate_prints_tabs_and_line_ends_as_they_are(run, capsys):
    prompt = "[dög]\tx\r\n the"
    assert generate(run, capsys, "--prompt", prompt, "--length", 0) == prompt


def test_extending_a_finished_run(run, capsys):
    assert call("train", run.workdir) == 0
    out = capsys.readouterr().out
    assert "resuming from step 6" in out and "this run, step" in out
    assert "| loss" not in out


def test_the_default_workdir_is_named_for_the_config(folder, capsys):
    assert call("train", "next_character.toml", "--train.num-steps", 1) == 0
    assert (folder / "runs" / "next_character" / "results.json").is_file()
    # Dashes and underscores, and the value after a space or an equals sign.
    assert call("train", "next_character.toml", "--train.num_steps=1") == 0
    assert "resuming from step 1" in capsys.readouterr().out


def test_every_command_has_a_module_and_convert_knows_every_library():
    modules = {path.stem for path in pathlib.Path(lstm_jax.cli.__file__).parent.glob("*.py")}
    assert set(COMMANDS) <= modules
    assert tuple(CONVERTED) == LIBRARIES


def words_of(out: str) -> str:
    """Help as one line."""
    return " ".join(out.split())


def test_help_lists_the_commands(capsys):
    assert call("--help") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for command, does in COMMANDS.items():
        assert f"{command} {does}" in words_of(printed.out)


def test_version(capsys):
    assert call("--version") == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"lstm-jax {lstm_jax.__version__}\n", "")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate", ["RUN"]),
        ("generate", ["RUN", "--prompt", "--length", "--temperature", "--seed", "400", "0.8"]),
        ("train", ["CONFIG|RUN", "--workdir", "--train.num-steps", "lstm-jax train CONFIG --help"]),
        ("inspect", ["RUN", "--text"]),
        ("export", ["RUN", "--format", "--dtype", "one of stablehlo, onnx; default: stablehlo"]),
        ("convert", ["SOURCE", "TARGET", "--from", "--to", "--prefix", "--reading", *LIBRARIES]),
    ],
)
def test_help_of_each_command(command, words, capsys):
    assert call(command, "--help") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for word in words:
        assert word in words_of(printed.out)


def test_help_shows_the_largest_seed_as_an_integer(capsys):
    for command in ("train", "generate"):
        assert call(command, "--help") == 0
        assert "at most 4294967295" in words_of(capsys.readouterr().out)


def lines_of_help(section: str, values, of: str = "") -> list[str]:
    """The help on a section's keys."""
    lines, defaults = [], type(values)()
    for field in dataclasses.fields(values):
        value, default = shown(getattr(values, field.name)), shown(getattr(defaults, field.name))
        here = f"{value} in {of}, " if of and value != default else ""
        flag = f"--{section}.{field.name.replace('_', '-')}"
        meaning = f"{field.metadata['meaning']} ({expectation(field)}; {here}default: {default})"
        lines.append((flag, words_of(meaning)))
    return lines


def test_help_of_train_lists_the_keys_of_every_config(capsys):
    assert call("train", "--help") == 0
    out = words_of(capsys.readouterr().out)
    for section, values in (("optimizer", OptimizerConfig()), ("train", TrainConfig())):
        for flag, meaning in lines_of_help(section, values):
            assert re.search(rf"{flag} [A-Z]+ {re.escape(meaning)}", out), flag


@pytest.mark.parametrize("task", TASKS)
def test_help_of_train_lists_every_key_of_the_configs_task(task, tmp_path, capsys):
    path = tmp_path / "only.toml"
    path.write_text(f'task = "{task}"\n[train]\nnum_steps = 7\n', "utf-8")
    assert call("train", path, "--help") == 0
    out = words_of(capsys.readouterr().out)
    config = load_config(path)
    sections = sections_for(task)
    for section in sections:
        for flag, meaning in lines_of_help(section, getattr(config, section), "only.toml"):
            assert re.search(rf"{flag} [A-Z]+ {re.escape(meaning)}", out), flag
    keys = re.findall(r"--[a-z]+\.[\w-]+ [A-Z]", out)
    assert len(keys) == sum(len(dataclasses.fields(kind)) for kind in sections.values())


def test_help_of_train_fits_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert call("train", CONFIGS / "quickstart.toml", "--help") == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "--train.checkpoint-every " in out and "--model.input-dropout " in out


def test_help_of_train_shows_the_values_of_a_config(capsys):
    assert call("train", CONFIGS / "quickstart.toml", "--help") == 0
    out = words_of(capsys.readouterr().out)
    assert "1600 in quickstart.toml, default: 1000" in out
    assert "--data.horizon" not in out
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
    (folder / "run" / "run.json").write_text('{"format": 2, "metadata": {}}')


def older_run(folder):
    """A run's folder without run.json."""
    classification_run(folder)
    (folder / "run" / "run.json").unlink()


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
        ["--train.num-stepz", "did you mean --train.num-steps?"],
    ),
    "misspelt flag": (None, (*TRAIN, "--workdri", "x"), ["--workdri", "--workdir"]),
    "flag without a value": (None, (*TRAIN, "--train.seed"), ["--train.seed: expected a value ("]),
    "a word too many": (None, (*TRAIN, "more"), ["more: expected nothing more"]),
    "an unknown flag before the config": (
        None,
        ("train", "--workdri", "x", "next_character.toml"),
        ["--workdri: unknown option; did you mean --workdir? see lstm-jax train --help"],
    ),
    "a flag like no other": (
        None,
        (*TRAIN, "--qqqq", "1"),
        ["error: --qqqq: unknown option; see lstm-jax train --help"],
    ),
    "an abbreviated flag": (None, (*TRAIN, "--work", "x"), ["--work: unknown option"]),
    "no config": (None, ("train",), ["the following arguments are required: CONFIG|RUN"]),
    "an unknown flag of all commands": (None, ("--verson",), ["did you mean --version?"]),
    "wrong type in the file": (
        replaced("next_character.toml", "num_steps = 6", 'num_steps = "6"'),
        TRAIN,
        ["next_character.toml", "train.num_steps", "an integer of at least 1", "'6'"],
    ),
    "wrong type of a flag": (
        None,
        (*TRAIN, "--train.num-steps", "many"),
        ["--train.num-steps: expected an integer of at least 1 and at most 1000000000, got 'many'"],
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
    "an empty workdir": (
        None,
        (*TRAIN, "--workdir", ""),
        ["--workdir: expected a path, got an empty string"],
    ),
    "an empty run": (None, ("evaluate", ""), ["RUN: expected a path, got an empty string"]),
    "digits of another alphabet": (
        None,
        (*TRAIN, "--train.num-steps", "٣"),
        ["--train.num-steps", "an integer", "'٣'"],
    ),
    "more layers than make sense": (
        None,
        (*TRAIN, "--model.num-layers", "1000000"),
        ["--model.num-layers", "at most 256"],
    ),
    "more steps of warm-up than make sense": (
        None,
        (*TRAIN, "--optimizer.warmup-steps", "1000000000000"),
        ["--optimizer.warmup-steps", "at most 1000000000, got 1000000000000"],
    ),
    "a seed too large": (
        None,
        (*TRAIN, "--train.seed", str(2**70)),
        ["--train.seed", str(2**70)],
    ),
    "a prompt in another alphabet": (
        None,
        (*TRAIN, "--train.sample-prompt", "Да"),
        ["error: train.sample_prompt: character 'Д' at position 0 is not among the "],
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
        ["text.txt", "data.lanes * data.window = 32, got 8"],
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
        ["table.csv", "= 31 rows, got 30"],
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
    "evaluate a folder of an older version": (
        older_run,
        ("evaluate", "run"),
        ["run: expected a run folder of format 2, got format 1; train the run again"],
    ),
    "generate of a task that does not generate": (
        classification_run,
        ("generate", "run"),
        ["run", "classification", "does not generate"],
    ),
    "workdir is a file": (None, (*TRAIN, "--workdir", "text.txt"), ["text.txt"]),
    "misspelt command": (
        None,
        ("trian", "next_character.toml"),
        ["error: trian: unknown command; did you mean train? see lstm-jax --help"],
    ),
    "a command like no other": (
        None,
        ("qqqq",),
        [f"qqqq: unknown command; known: {', '.join(COMMANDS)}; see lstm-jax --help"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_gives_one_line(name, folder, capsys):
    change, args, words = MISTAKES[name]
    if change is not None:
        change(folder)
    code = call(*args)
    printed = capsys.readouterr()
    assert code in (1, 2)
    assert printed.err.count("\n") == 1 and printed.err.endswith("\n")
    assert printed.err.startswith("lstm-jax: error: ")
    assert "Traceback" not in printed.err + printed.out
    for word in words:
        assert word in printed.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--prompt", "a fäx"), ["error: --prompt: character 'ä' at position 3"]),
        (("--length", -1), ["--length", "at least 0", "-1"]),
        (("--length", "abc"), ["--length", "abc"]),
        (("--temperature", -0.5), ["--temperature", "at least 0", "-0.5"]),
        (("--temperature", "nan"), ["--temperature", "at least 0", "nan"]),
        (("--seed", 2**70), ["--seed", str(2**70)]),
        (("--length", 10**12), ["--length", "at most 10000000", "1000000000000"]),
        (("--length", "1_0"), ["--length", "expected an integer", "'1_0'"]),
        (("--top-k", -1), ["--top-k", "an integer of at least 0", "got -1"]),
        (("--top-p", 0), ["--top-p", "a number above 0 and at most 1, got 0"]),
        (("--repetition-penalty", 0), ["--repetition-penalty", "a number above 0, got 0"]),
        (("--lenght", 3), ["--lenght", "did you mean --length?"]),
    ],
    ids=str,
)
def test_mistake_in_generate_gives_one_line(args, words, run, capsys):
    code = call("generate", run.workdir, *args)
    printed = capsys.readouterr()
    assert code in (1, 2)
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.startswith("lstm-jax: error: ")
    for word in words:
        assert word in printed.err


def test_resuming_with_other_values_is_rejected(run, capsys):
    assert call("train", run.workdir, "--train.seed", 5) == 1
    printed = capsys.readouterr().err
    assert "train.seed (0 in the folder, 5 requested)" in printed and printed.count("\n") == 1
    assert call("train", run.workdir, "--workdir", "elsewhere") == 1
    assert "--workdir" in capsys.readouterr().err


def test_missing_command_is_a_mistake(capsys):
    assert call() == 2
    assert capsys.readouterr() == (
        "",
        f"lstm-jax: error: expected a command, one of {', '.join(COMMANDS)}; see lstm-jax --help\n",
    )


LOWER = "lower the sizes in [model] and [data] of the config"


@pytest.mark.parametrize(
    ("ending", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "lstm-jax: interrupted\n"),
        (SystemExit(0), 1, "lstm-jax: error: imported code ended the program (exit status 0)\n"),
        (BrokenPipeError(), 141, ""),
        (OSError(28, "No space left", "a/b"), 1, "lstm-jax: error: a/b: No space left\n"),
        (NotADirectoryError(20, "Not a directory"), 1, "lstm-jax: error: Not a directory\n"),
        (MemoryError(), 1, f"lstm-jax: error: out of memory (allocation failed); {LOWER}\n"),
        (RuntimeError("bad_alloc\nb"), 1, f"lstm-jax: error: out of memory (bad_alloc); {LOWER}\n"),
    ],
    ids=["interrupt", "exit", "pipe", "disk", "folder", "memory", "runtime"],
)
def test_exit_status_of_other_failures(ending, status, message, monkeypatch, capfd):
    def run(options):
        raise ending

    monkeypatch.setattr("lstm_jax.cli.evaluate.run", run)
    monkeypatch.setattr("os.dup2", lambda *files: None)  # pytest's own standard output
    assert main(["evaluate", "somewhere"]) == status
    assert capfd.readouterr().err == message


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk_gives_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lstm_jax", "--version"],
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr == "lstm-jax: error: standard output: No space left on device\n"


def test_a_custom_module_that_ends_the_program_is_an_error(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leaving_cells.py").write_text("import sys\nsys.exit(0)\n", "utf-8")
    config = (
        'task = "next_character"\n[data]\ntext = "t.txt"\n[model]\ncell = "leaving_cells.Cell"\n'
    )
    (tmp_path / "run.toml").write_text(config, "utf-8")
    (tmp_path / "t.txt").write_text("ab " * 3000, "utf-8")
    workdir = str(tmp_path / "run")
    assert main(["train", str(tmp_path / "run.toml"), "--workdir", workdir]) == 1
    message = capfd.readouterr().err
    assert "exit status 0" in message and message.count("\n") == 1


@pytest.mark.parametrize("words", [("--help",), ("train", "classification.toml")])
def test_broken_pipe_ends_a_command_quietly(words, folder):
    """As in ``lstm-jax ... | head -1``."""
    command = subprocess.Popen(
        [sys.executable, "-m", "lstm_jax", *words],
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(timeout=120) == 141


def test_verbose_prints_how_jax_is_set_up(run, capsys):
    assert call("evaluate", run.workdir, "--verbose") == 0
    out = capsys.readouterr().out
    assert out.startswith("devices: ") and "\nallocator: " in out
    assert f"\ncompiled programs: {jax.config.jax_compilation_cache_dir}\n" in out
    assert "allocator" not in run.out


LIGHT = """
import resource, sys
import lstm_jax.cli
assert lstm_jax.cli.main(sys.argv[1:]) == 0
heavy = {"jax", "flax", "numpy", "optax", "grain", "orbax", "rich", "tqdm"} & set(sys.modules)
assert not heavy, heavy
used = resource.getrusage(resource.RUSAGE_SELF)
assert used.ru_utime + used.ru_stime < 1, used
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], *[[c, "--help"] for c in COMMANDS]])
def test_help_imports_nothing_heavy_and_takes_less_than_a_second(words):
    ran = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "") and ran.stdout


@pytest.mark.slow
def test_python_m_runs_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "lstm_jax", "evaluate", "/no/such/run"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == ("lstm-jax: error: /no/such/run: no run here (expected a config.toml)\n")


def test_two_dashes_as_a_value_give_one_line(tmp_path, capsys):
    """Some versions of argparse drop them."""
    (tmp_path / "a.toml").write_text('task = "next_character"\n', "utf-8")
    assert main(["train", str(tmp_path / "a.toml"), "--data.text=--"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lstm-jax: error: ") and error.count("\n") == 1 and "--" in error
