"""Damaged and malicious configs: a config that is read back as written, or a one-line error.

Each goes through ``lstm-jax train`` in this process, up to the first step.
``pytest tests/robustness --fuzz 5000 -s`` tries more and prints how many.
"""

import contextlib
import io
import json
import math
import tomllib

import jax
import numpy as np
import pytest
import soundfile
import tomli_w

from lstm_jax import tasks
from lstm_jax.cli import main
from lstm_jax.cli import train as train_command
from lstm_jax.config import load_config, sections_for, write_config
from lstm_jax.data.ink import NAMED_INK
from lstm_jax.data.labelled_text import read_labelled_text
from lstm_jax.data.moving_digits import Digits
from lstm_jax.data.public_series import PUBLIC_SERIES
from lstm_jax.data.series import SeriesColumns, read_frame
from lstm_jax.data.transcripts import NAMED_SPEECH
from lstm_jax.errors import UserError
from lstm_jax.train import loop
from lstm_jax.train.optimizer import build_optimizer, build_schedule
from lstm_jax.train.step import abstract_state
from lstm_jax.train.sweep import points_of, swept_axes
from tests.ink import write_ink
from tests.robustness import hostile, hostile_configs
from tests.skeletons import write_skeletons
from tests.test_configs import CONFIGS, OF_ONE, SHORT, SMALL

NAMED = r"^/|broken\.toml|--\w|\btask\b|\b(data|model|optimizer|train)\.\w"
"""A message about a config must name one of these: a file, an option or a key."""

# ---- small data for every config ----

TABLE_ROWS = 600
FILES = {
    "next_character": {"text": "text.txt"},
    "forecasting": {"table": "table.csv"},
    "classification": {"train": "sequences.ts", "test": "sequences.ts"},
    "text_classification": {"train": "a.csv", "validation": "a.csv", "test": "a.csv"},
    "translation": {"source": "a.en", "target": "a.de"},
    "music": {"pieces": "rolls.json"},
    "speech": {"recordings": "speech/table.csv"},
    "time_series": {
        "table": "series.csv",
        "window": 8,
        "horizon": 4,
        "season": 4,
        "validation": "8",
        "test": "8",
        "stride": 4,
    },
    "handwriting": {"ink": "ink.csv"},
    "handwriting_synthesis": {"ink": "ink.csv"},
    "video": {"videos": "videos.npz"},
    "action": {"recordings": "skeletons", "train_subjects": "1,2"},
}
"""By task."""

OF_EACH_TASK = [
    "quickstart",
    "etth1",
    "japanese_vowels",
    "reviews",
    "multi30k",
    "jsb",
    "spoken_digits",
    "tourism",
    "unipen_words",
    "unipen_synthesis",
    "moving_digits",
    "action3d",
]
SERIES = SeriesColumns("ds", ("unique_id",), ("y",), known=("price",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with every config of ``configs/``, shrunk, and small data for each."""
    folder = tmp_path_factory.mktemp("configs")
    rng = np.random.default_rng(0)
    (folder / "text.txt").write_text("ROMEO:\nThe quick brown fox. " * 40, "utf-8")
    table = [f"{n},{x:.3f},{y:.3f}" for n, (x, y) in enumerate(rng.normal(size=(TABLE_ROWS, 2)))]
    (folder / "table.csv").write_text("\n".join(["date,a,b", *table]), "utf-8")
    lines = [
        ":".join(
            [*(",".join(f"{x:.2f}" for x in rng.normal(n % 2, 1, 4)) for _ in "xy"), "ab"[n % 2]]
        )
        for n in range(12)
    ]
    (folder / "sequences.ts").write_text("\n".join(["@classLabel true a b", "@data", *lines]))
    (folder / "a.csv").write_text("text,label\n" + "so fine,good\nvery dull,bad\n" * 6)
    (folder / "trees.txt").write_text("(3 (2 so) (3 fine))\n(1 (2 very) (1 dull))\n" * 6)
    (folder / "a.en").write_text("a dog\ntwo cats\n" * 12)
    (folder / "a.de").write_text("ein Hund\nzwei Katzen\n" * 12)
    piece = [[60, 64], [62], []] * 4
    rolls = json.dumps({name: [piece] * 2 for name in ("train", "valid", "test")})
    (folder / "rolls.json").write_text(rolls)
    (folder / "speech").mkdir()
    lines = ["path,text,split"]
    for n, split in enumerate(["train"] * 4 + ["validation", "test"]):
        soundfile.write(folder / f"speech/{n}.wav", rng.uniform(-0.5, 0.5, 3000), 8000)
        lines.append(f"{n}.wav,{'ab'[n % 2]} ba,{split}")
    (folder / "speech/table.csv").write_text("\n".join(lines))
    days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    rows = [f"{name},{day},{n % 7 + n % 4},{n % 2}" for name in "ab" for n, day in enumerate(days)]
    (folder / "series.csv").write_text("\n".join(["unique_id,ds,y,price", *rows]))
    write_ink(folder / "ink.csv", pieces=36)
    np.savez(folder / "videos.npz", frames=rng.integers(0, 255, (6, 5, 8, 8, 1), np.uint8))
    write_skeletons(folder / "skeletons")
    for path in CONFIGS:
        text = path.read_text("utf-8")
        values = tomllib.loads(text)
        small = {**SMALL[values["task"]], **OF_ONE.get(path.stem, {}), **SHORT}
        small |= {"model.segment": 4} if values["task"] == "time_series" else {}
        for key, value in small.items():
            section, _, name = key.partition(".")
            values[section][name] = value
        values["data"] |= FILES[values["task"]]
        comment = text[: text.index("task")]
        (folder / path.name).write_text(comment + tomli_w.dumps(values), "utf-8")
    return folder


@pytest.fixture(autouse=True)
def small_data_sets(folder, monkeypatch):
    """Replaces named data sets by the small files, so that a config without a path reads little."""
    monkeypatch.setattr(tasks.series_data, "fetch", lambda name: folder / "table.csv")
    monkeypatch.setattr(tasks.next_character, "fetch", lambda name: folder / "text.txt")
    monkeypatch.setattr(tasks.next_character, "python_reference", lambda: "abc\n" * 300)
    monkeypatch.setattr(tasks.sequences_data, "fetch", lambda name: folder / "sequences.ts")
    monkeypatch.setattr(tasks.text_options, "fetch", lambda name: folder / "trees.txt")
    reviews = read_labelled_text(folder / "a.csv")
    monkeypatch.setattr(tasks.text_options, "read_polarity", lambda: reviews)
    pairs = {True: folder / "a.de", False: folder / "a.en"}
    monkeypatch.setattr(tasks.translation_config, "fetch", lambda name: pairs[".de" in name])
    monkeypatch.setattr(tasks.music_data, "fetch", lambda name: folder / "rolls.json")
    frame = read_frame(folder / "series.csv")
    for name in PUBLIC_SERIES:
        monkeypatch.setitem(PUBLIC_SERIES, name, (lambda: frame, SERIES))
    digits = Digits(np.full((20, 28, 28), 255, np.uint8), np.zeros(20, np.int32))
    monkeypatch.setattr(tasks.video_data, "read_digits", lambda part: digits)
    monkeypatch.setattr(tasks.action_data, "find_action3d", lambda: folder / "skeletons")
    for section, name, names, path in (
        (tasks.speech_data, "read_recordings", NAMED_SPEECH, "speech/table.csv"),
        (tasks.handwriting_data, "read_ink_splits", NAMED_INK, "ink.csv"),
        (tasks.handwriting_synthesis_data, "read_ink_splits", NAMED_INK, "ink.csv"),
    ):
        read, small = getattr(section, name), str(folder / path)
        monkeypatch.setattr(section, name, instead_of(names, small, read))


def instead_of(names, small, read):
    """A reader that reads a small file where a data set is named."""
    return lambda source, *options: read(small if source in names else source, *options)


# ---- up to the first step ----


class ReachedError(Exception):
    """Training would start now."""

    def __init__(self, config):
        self.config = config


traced = set()
"""What determined the states whose shapes are known; many damaged configs differ only elsewhere."""


def up_to_the_first_step(config, task, *_):
    """Instead of compiling, computes the shapes of the state and of a batch in the first step."""
    schedule = build_schedule(config.optimizer, config.train.num_steps)
    optimizer = build_optimizer(config.optimizer, schedule)
    assert math.isfinite(float(schedule(0)))
    determining = repr((config.task, config.data, config.model, config.optimizer))
    if determining not in traced:
        abstract_state(task, optimizer, config.optimizer.ema_decay > 0)
        traced.add(determining)
    batch = task.batches(config.train.seed)[0]
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(batch))
    raise ReachedError(config)


def started(path, workdir, *flags):
    """Runs ``lstm-jax train`` on a config; returns the config with which training would start.

    Raises:
      UserError: the command reports a mistake in one line.
    """
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main(["train", str(path), "--workdir", str(workdir), *flags])
        except ReachedError as reached:
            return reached.config
    assert "--help" in flags or status in (1, 2), (status, output.getvalue())
    line = errors.getvalue()
    assert line.startswith("lstm-jax: error: ") and line.endswith("\n"), line
    raise PrintedError(line.removeprefix("lstm-jax: error: ")[:-1])


class PrintedError(UserError):
    """A line that the command line has printed."""

    def __str__(self):
        return self.args[0]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """:func:`started` in a folder of this test, without compiling and without a folder claimed."""
    monkeypatch.setattr(loop, "own_programs", up_to_the_first_step)
    monkeypatch.setattr(loop, "claimed", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(train_command, "set_up", lambda options: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # a path can be "~"
    return lambda path, *flags: started(path, tmp_path / "run", *flags)


def comes_back_as_written(path, config):
    """The file in a run's folder is the same config."""
    write_config(config, path)
    again = load_config(path)
    assert again == config, f"{again} is not {config}"


def comes_back(path, config):
    """The file in a run's folder is the same config, with the values of the original file."""
    comes_back_as_written(path.with_name("written.toml"), config)
    plain = config.as_dict()
    values = tomllib.loads(path.read_text("utf-8-sig"))
    for name, section in values.items():
        for key, value in section.items() if name != "task" else ():
            kept = plain[name][key]
            is_path = isinstance(value, str) and str(kept).startswith("/")
            same = kept == (float(value) if isinstance(kept, float) else value)
            assert is_path or (same and isinstance(kept, bool) == isinstance(value, bool)), key
    assert config.task == values["task"]


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
@pytest.mark.parametrize("change", ["lines", "bytes"])
def test_damaged_configs(name, change, folder, command, fuzz_budget):
    text = (folder / f"{name}.toml").read_text("utf-8")

    def make(rng):
        path = folder / "broken.toml"
        if change == "lines":
            path.write_text(hostile_configs.mutated_config(rng, text), "utf-8", "surrogatepass")
        else:
            path.write_bytes(hostile_configs.mutated_file(rng, text.encode()))
        return path

    outcomes = hostile.tried(
        f"config {name}, {change}", fuzz_budget, make, command, comes_back,
        around=hostile.limited, names=NAMED,
    )  # fmt: skip
    assert outcomes["rejected"]  # few of 40 mutated configs are still valid


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_the_configs_reach_the_first_step(name, folder, command):
    path = folder / f"{name}.toml"
    assert hostile.attempt(path, command, comes_back, around=hostile.limited) == "read"


# ---- the command line and sweeps ----


def hostile_word(rng):
    """A value on a command line."""
    kinds = [hostile_configs.INTEGERS, hostile_configs.FLOATS, hostile_configs.STRINGS]
    more = [
        "true",
        "FALSE",
        "1e3",
        "0.5",
        "\u0663",
        " 3",
        "3 ",
        "1_0",
        "+3",
        "-",
        "--",
        "nan",
        "\udcff",
        "",
    ]
    return rng.choice([*rng.choice(kinds), *more, hostile_configs.cell(rng)])


def hostile_key(rng, task):
    """A key of a task's config, or something that resembles one."""
    kinds = sections_for(task)
    name = rng.choice([*kinds])
    key = f"{name}.{rng.choice([*kinds[name].__dataclass_fields__])}"
    odd = [
        key.upper(),
        key + "x",
        name,
        f"{name}.",
        f".{key}",
        key.replace("_", "-"),
        "",
        "x.y",
        "task",
    ]
    return key if rng.random() < 0.9 else rng.choice(odd)


def expected_value(kind, word):
    """The value of a word for a field of a type, by Python's conversions."""
    if kind is bool:
        return {"true": True, "false": False}[word.lower()]
    return kind(word)


@pytest.mark.parametrize("name", OF_EACH_TASK)
def test_hostile_options(name, folder, command, fuzz_budget):
    path, given = folder / f"{name}.toml", {}
    base = load_config(path)

    def make(rng):
        count = rng.choice([1, 1, 2])
        given["options"] = {hostile_key(rng, base.task): hostile_word(rng) for _ in range(count)}
        return path

    def read(path):
        flags = [f"--{key.replace('_', '-')}={word}" for key, word in given["options"].items()]
        return command(path, *flags)

    def check(path, config):
        comes_back_as_written(path.with_name("written.toml"), config)
        plain, before = config.as_dict(), base.as_dict()
        for key, word in given["options"].items():
            section, _, field = key.replace("-", "_").partition(".")
            value, old = plain[section][field], before[section][field]
            meant = expected_value(type(old), word)
            is_path = isinstance(value, str) and value.startswith("/")
            assert value == meant or is_path, (key, word, value)
            before[section][field] = value
        for name, section in before.items():
            for key, value in section.items() if name != "task" else ():
                inferred = base.task == "time_series" and value in ("", 0, "*")
                assert plain[name][key] == value or inferred, f"{name}.{key} has changed"

    outcomes = hostile.tried(
        f"options, {name}", fuzz_budget, make, read, check, around=hostile.limited, names=NAMED
    )
    assert outcomes["rejected"]  # few words fit many keys


def test_hostile_axes(folder, fuzz_budget):
    path, given = folder / "japanese_vowels.toml", {}
    base = load_config(path)

    def make(rng):
        def words():
            return ",".join(hostile_word(rng) for _ in range(rng.choice([1, 2, 3])))

        keys = [hostile_key(rng, base.task) or "train.x" for _ in range(rng.choice([1, 1, 2]))]
        seeds = [",".join(map(str, range(40))), "0,1", "0,0", "0,1,", "0..3", "[0,1]", "0;1"]
        given["texts"] = {key: words() for key in keys} | {"train.seed": rng.choice(seeds)}
        return path

    def read(path):
        config, axes = swept_axes(base, given["texts"])
        return config, axes, points_of(config, axes, path.parent / "sweep")

    def check(path, result):
        _, axes, points = result
        assert len(points) == math.prod(map(len, axes.values()))
        assert len({tuple(point.values.items()) for point in points}) == len(points)
        for key, text in given["texts"].items():
            if "(" not in text and "[" not in text:
                assert len(axes.get(key, [None])) == text.count(",") + 1
        for point in points:
            comes_back_as_written(path.with_name("written.toml"), point.config)

    outcomes = hostile.tried(
        "axes of a sweep", fuzz_budget, make, read, check, around=hostile.limited,
        names=NAMED + "|sweep|points",
    )  # fmt: skip
    assert outcomes["read"] and outcomes["rejected"]
