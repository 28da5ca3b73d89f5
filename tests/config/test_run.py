"""Configs: every mistake in a file or flag is reported with its file and dotted key."""

import dataclasses
import pathlib
import re

import pytest

from lstm_jax.config import (
    TASKS,
    OptimizerConfig,
    TrainConfig,
    differing_keys,
    load_config,
    options,
    sections_for,
    task_name,
    write_config,
)
from lstm_jax.errors import UserError

CONFIGS = sorted(pathlib.Path(__file__).parents[2].glob("configs/*.toml"))


@pytest.fixture
def toml(tmp_path):
    """Writes a config file and gives its path."""

    def write(text: str, task: str = "next_character") -> pathlib.Path:
        path = tmp_path / "run.toml"
        path.write_text(f'task = "{task}"\n{text}' if task else text, "utf-8")
        return path

    return write


def message(path, overrides=None) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_round_trip(path, tmp_path):
    config = load_config(path)
    write_config(config, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == config
    assert differing_keys(config, load_config(tmp_path / "config.toml")) == {}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_defaults_of_every_task_round_trip(task, toml, tmp_path):
    config = load_config(toml("", task))
    write_config(config, tmp_path / "written.toml")
    assert load_config(tmp_path / "written.toml") == config


def test_strings_with_quotes_and_line_ends_round_trip(toml, tmp_path):
    prompt = 'He said "no":\n\\ ß\t=>\x7f'
    config = load_config(toml(""), {"train.sample_prompt": prompt})
    write_config(config, tmp_path / "written.toml")
    assert load_config(tmp_path / "written.toml").train.sample_prompt == prompt


def test_a_byte_order_mark_is_not_part_of_a_config(toml):
    path = toml("[train]\nnum_steps = 7\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_config(path).train.num_steps == 7


def test_the_base_class_is_not_a_task(toml):
    assert message(toml("", "lstm_jax.tasks.Task")) == (
        "task: lstm_jax.tasks.Task is not a task: expected a subclass of lstm_jax.tasks.Task"
    )


def test_options_must_be_valid_utf8(toml):
    """A command line can contain other bytes, which Python passes on as lone surrogates."""
    said = message(toml(""), {"train.sample_prompt": "a\udcff"})
    assert said == "--train.sample-prompt: expected text in UTF-8, got 'a\\udcff'"


def test_missing_keys_take_their_defaults(toml):
    config = load_config(toml("[train]\nnum_steps = 7\n"))
    assert config.train == TrainConfig(num_steps=7)
    assert config.optimizer == OptimizerConfig()


def test_fixed_names():
    sections = sections_for("next_character")
    for key in (
        "optimizer.learning_rate",
        "train.num_steps",
        "train.eval_every",
        "train.checkpoint_every",
        "train.seed",
    ):
        section, field = key.split(".")
        assert field in {f.name for f in dataclasses.fields(sections[section])}


def test_integer_given_for_a_float_becomes_a_float(toml):
    rate = load_config(toml("[optimizer]\nlearning_rate = 1\n")).optimizer.learning_rate
    assert rate == 1.0 and isinstance(rate, float)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(
            "[train]\nnum_stepz = 5\n",
            ("unknown key train.num_stepz", "did you mean train.num_steps?"),
            id="misspelt key",
        ),
        pytest.param(
            "[train]\ncolour = 5\n",
            ("unknown key train.colour", "train.seed"),
            id="key like no other",
        ),
        pytest.param("[trian]\nseed = 5\n", ("unknown key trian", "train?"), id="misspelt section"),
        pytest.param("seed = 5\n", ("unknown key seed",), id="key outside a section"),
        pytest.param("train = 5\n", ("train", "a section [train]", "5"), id="no section"),
        pytest.param(
            "[train]\nnum_steps = true\n",
            ("train.num_steps", "an integer of at least 1", "True"),
            id="bool for int",
        ),
        pytest.param(
            '[train]\nnum_steps = "5"\n',
            ("train.num_steps", "an integer of at least 1", "'5'"),
            id="text for int",
        ),
        pytest.param(
            "[train]\nnum_steps = 5.0\n",
            ("train.num_steps", "an integer of at least 1", "5.0"),
            id="float for int",
        ),
        pytest.param(
            "[optimizer]\nlearning_rate = true\n",
            ("optimizer.learning_rate", "a number above 0", "True"),
            id="bool for float",
        ),
        pytest.param(
            "[model]\ntied_embeddings = 1\n",
            ("model.tied_embeddings", "true or false", "1"),
            id="int for bool",
        ),
        pytest.param(
            "[optimizer]\nlearning_rate = 1e39\n",
            ("optimizer.learning_rate", "a number in the range of float32", "1e+39"),
            id="float64 only",
        ),
        pytest.param(
            '[data]\ntext = ""\n', ("data.text", "expected a path", "an empty one"), id="no path"
        ),
        pytest.param(
            '[data]\ntext = "~nobody-here/a.txt"\n',
            ("data.text", "expected a path", "'~nobody-here/a.txt'"),
            id="home of nobody",
        ),
        pytest.param("[data]\ntext = 1\n", ("data.text", "a string", "1"), id="int for text"),
        pytest.param("[data]\ntext = []\n", ("data.text", "a string", "[]"), id="list for text"),
        pytest.param(
            "[optimizer]\nname = ['adam']\n",
            ("optimizer.name", "one of adamw, adam", "['adam']"),
            id="list for choice",
        ),
        pytest.param(
            "[train]\nnum_steps = 0\n",
            ("train.num_steps", "an integer of at least 1", "0"),
            id="too small",
        ),
        pytest.param(
            "[optimizer]\nlearning_rate = 0\n",
            ("optimizer.learning_rate", "above 0", "0"),
            id="integer at an open limit",
        ),
        pytest.param(
            "[optimizer]\nlearning_rate = nan\n",
            ("optimizer.learning_rate", "a number", "nan"),
            id="nan",
        ),
        pytest.param(
            "[optimizer]\nlearning_rate = inf\n",
            ("optimizer.learning_rate", "a number", "inf"),
            id="infinite",
        ),
        pytest.param(
            "[model]\ndropout = 1.0\n",
            ("model.dropout", "at least 0 and below 1", "1.0"),
            id="too large",
        ),
        pytest.param(
            '[optimizer]\nname = "adan"\n',
            ("optimizer.name", "one of adamw, adam, sgd, rmsprop", "'adan'"),
            id="no choice",
        ),
        pytest.param(
            "[train]\nseed = 99999999999999999999\n",
            ("train.seed", "99999999999999999999"),
            id="seed of more than 64 bits",
        ),
        pytest.param("[train\n", ("not a TOML file", "line"), id="no TOML"),
        pytest.param(
            f"[train]\nnum_steps = {'9' * 5000}\n", ("not a TOML file", "digits"), id="long integer"
        ),
        pytest.param(
            f"[train]\nnum_steps = {'[' * 3000}{']' * 3000}\n", ("not a TOML file",), id="deep"
        ),
        pytest.param(
            f"[train]\nnum_steps = {'{a=' * 3000}1{'}' * 3000}\n", ("not a TOML file",), id="deeper"
        ),
        pytest.param(
            f"[train]\nnum_steps = 0x{'f' * 5000}\n",
            ("train.num_steps: expected an integer of at least 1", "int of more digits"),
            id="long hexadecimal integer",
        ),
        pytest.param(f"{'a.' * 9000}b = 1\n", ("unknown key a",), id="dotted"),
    ],
)
def test_mistakes_in_a_file(text, words, toml):
    path = toml(text)
    error = message(path)
    assert error.startswith(f"{path}: ")
    for word in words:
        assert word in error


def test_missing_and_unknown_task(toml):
    path = toml("[train]\nseed = 1\n", task="")
    assert message(path).startswith(f"{path}: task: expected one of next_character, ")
    path = toml("", task="next_charcter")
    error = message(path)
    assert error.startswith(f"{path}: task: expected one of ")
    assert "got 'next_charcter'; did you mean next_character?" in error
    path = toml("task = 3\n", task="")
    assert "task: expected one of" in message(path) and "got 3" in message(path)


def test_file_that_cannot_be_read(tmp_path, toml):
    missing = tmp_path / "missing.toml"
    assert message(missing) == f"{missing}: no such config file"
    assert message(tmp_path).startswith(f"{tmp_path}: ")
    inside = toml("") / "inside.toml"
    assert message(inside).startswith(f"{inside}: ")
    other = tmp_path / "latin.toml"
    other.write_bytes('task = "café"'.encode("latin-1"))
    assert "UTF-8" in message(other) and str(other) in message(other)


def test_overrides_are_read_by_the_type_of_their_key(toml):
    config = load_config(
        toml("[train]\nseed = 4\n"),
        {
            "train.num_steps": "12",
            "optimizer.learning_rate": "1e-3",
            "optimizer.weight_decay": "0",
            "model.tied_embeddings": "true",
            "data.text": "/5",
            "train.sample_prompt": "",
        },
    )
    assert config.train.num_steps == 12
    assert config.train.seed == 4
    assert config.optimizer.learning_rate == 1e-3
    assert config.optimizer.weight_decay == 0.0
    assert config.model.tied_embeddings is True
    assert config.data.text == "/5"
    assert config.train.sample_prompt == ""


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.num_stepz", "5", ("--train.num-stepz", "did you mean train.num_steps?")),
        ("trian.num_steps", "5", ("--trian.num-steps", "did you mean train.num_steps?")),
        ("num_steps", "5", ("--num-steps", "unknown key num_steps")),
        ("train.num_steps", "many", ("--train.num-steps", "an integer of at least 1", "'many'")),
        ("train.num_steps", "1.5", ("--train.num-steps", "an integer of at least 1", "'1.5'")),
        ("train.num_steps", "0", ("--train.num-steps", "an integer of at least 1", "0")),
        ("optimizer.learning_rate", "fast", ("--optimizer.learning-rate", "a number", "'fast'")),
        ("optimizer.learning_rate", "nan", ("--optimizer.learning-rate", "a number", "nan")),
        ("model.tied_embeddings", "yes", ("--model.tied-embeddings", "true or false", "'yes'")),
        ("optimizer.name", "adan", ("--optimizer.name", "one of adamw", "'adan'")),
        ("model.hidden", "5", ("--model.hidden", "unknown key model.hidden")),
    ],
)
def test_mistakes_in_overrides(key, value, words, toml):
    error = message(toml(""), {key: value})
    assert error.startswith(f"{words[0]}: ")
    for word in words[1:]:
        assert word in error


@pytest.mark.parametrize(
    "values",
    [{"learning_rate": 0}, {"learning_rate": -1}, {"alpha": 2}, {"decay_rate": 0}, {"b1": 1}],
    ids=str,
)
def test_ranges_apply_to_sections_created_in_python(values):
    (key,) = values
    with pytest.raises(UserError, match=f"^{key}: expected a number .*, got {values[key]}"):
        OptimizerConfig(**values)


def test_differing_keys_have_both_values(toml):
    one = load_config(toml(""))
    other = load_config(toml(""), {"train.seed": "3", "model.dropout": "0.5"})
    assert differing_keys(one, other) == {"train.seed": (0, 3), "model.dropout": (0.2, 0.5)}
    assert differing_keys(other, one)["train.seed"] == (3, 0)
    third = load_config(toml("", "classification"))
    assert differing_keys(one, third)["task"] == ("next_character", "classification")


def test_every_key_has_a_meaning_of_one_line():
    for task in TASKS:
        for name, kind in sections_for(task).items():
            for field in dataclasses.fields(kind):
                meaning = field.metadata["meaning"]
                assert re.fullmatch(r"\S.{5,99}", meaning), f"{name}.{field.name}: {meaning!r}"


def test_relative_paths_are_resolved_from_config_or_current_folder(toml, tmp_path, monkeypatch):
    path = toml('[data]\ntext = "texts/a.txt"\n')
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    assert load_config(path).data.text == str(tmp_path / "texts" / "a.txt")
    assert load_config(pathlib.Path("..") / path.name).data.text.endswith("texts/a.txt")
    assert load_config(path, {"data.text": "b.txt"}).data.text == str(other / "b.txt")
    assert load_config(path, {"data.text": "tiny_shakespeare"}).data.text == "tiny_shakespeare"


OWN_TASK = """
import dataclasses
from lstm_jax.tasks import Section, Task, option

@dataclasses.dataclass(frozen=True)
class MyData(Section):
    rows: int = option(3, "rows of data", at_least=1)

@dataclasses.dataclass(frozen=True)
class MyTask(Task):
    data: MyData

class NotATask:
    pass
"""


@pytest.fixture
def own_tasks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_own_tasks.py").write_text(OWN_TASK)
    (tmp_path / "my_broken_tasks.py").write_text("raise RuntimeError('two\\nlines')")


def test_a_custom_task_has_its_own_keys(own_tasks, toml):
    config = load_config(toml("[data]\nrows = 5\n", "my_own_tasks.MyTask"))
    task = config.build_task()
    assert (type(task).__name__, task.data.rows) == ("MyTask", 5)
    assert task_name(type(task)) == "my_own_tasks.MyTask"
    path = toml("[data]\nrow = 5\n", "my_own_tasks.MyTask")
    assert message(path) == f"{path}: unknown key data.row; did you mean data.rows?"
    path = toml("[model]\nsize = 5\n", "my_own_tasks.MyTask")
    assert message(path).startswith(f"{path}: unknown key model.size")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_own_tasks.MyTsk", "task: my_own_tasks.MyTsk: module my_own_tasks has no MyTsk"),
        ("no_such.Task", "task: no_such.Task: module no_such cannot be imported (ModuleNotFoundE"),
        ("my_broken_tasks.A", "module my_broken_tasks cannot be imported (RuntimeError: two lin"),
        ("my_own_tasks.NotATask", "NotATask is not a task: expected a subclass of lstm_jax.tasks"),
    ],
)
def test_mistakes_in_the_name_of_a_custom_task(name, said, own_tasks, toml):
    assert said in message(toml("", name))


def test_each_value_is_checked_once(toml, monkeypatch):
    checked = []
    problem = options._problem

    def counting(field, value):
        checked.append(field.name)
        return problem(field, value)

    monkeypatch.setattr(options, "_problem", counting)
    load_config(toml("[train]\nseed = 3\n"))
    sections = sections_for("next_character").values()
    assert len(checked) == sum(len(dataclasses.fields(kind)) for kind in sections)
