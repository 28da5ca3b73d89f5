"""A run's folder: its config must be the original config."""

import json
import re

import pytest

from lstm_jax.config import load_config
from lstm_jax.errors import UserError
from lstm_jax.train.workdir import claimed, load_workdir

CONFIG = """
task = "next_character"
[data]
text = "text.txt"
[model]
hidden_size = 8
[optimizer]
schedule = "constant"
[train]
num_steps = 20
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.toml").write_text(CONFIG, "utf-8")
    config = load_config(tmp_path / "run.toml")
    with claimed(tmp_path / "run", config, {"vocabulary": "ab"}):
        pass
    assert load_workdir(tmp_path / "run") == config
    return tmp_path / "run"


def edit(run, key, value):
    path = run / "config.toml"
    text, edits = re.subn(rf"^{key} = .*$", f"{key} = {value}", path.read_text("utf-8"), flags=re.M)
    assert edits == 1
    path.write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("hidden_size", "16", "model.hidden_size (8 when the run began, 16 now)"),
        ("cell", '"gru"', "model.cell ('lstm' when the run began, 'gru' now)"),
        ("name", '"sgd"', "optimizer.name ('adamw' when the run began, 'sgd' now)"),
        ("learning_rate", "0.5", "optimizer.learning_rate (0.002 when the run began, 0.5 now)"),
        ("seed", "1", "train.seed (0 when the run began, 1 now)"),
        (
            "validation_fraction",
            "0.3",
            "data.validation_fraction (0.1 when the run began, 0.3 now)",
        ),
        ("num_steps", "10", "train.num_steps (20 when the run began, 10 now)"),
    ],
)
def test_edited_config_is_rejected(key, value, named, run):
    edit(run, key, value)
    with pytest.raises(UserError) as caught:
        load_workdir(run)
    assert str(caught.value) == (
        f"{run / 'config.toml'}: edited since the run began: {named}; undo this, or train the new "
        "config in another --workdir"
    )
    # Training with the edited config is also rejected.
    with (
        pytest.raises(UserError, match="edited since the run began"),
        claimed(run, load_config(run / "config.toml"), {}),
    ):
        pass


def test_all_edited_keys_are_named(run):
    edit(run, "hidden_size", "16")
    edit(run, "seed", "3")
    with pytest.raises(UserError, match=r"model\.hidden_size .*, train\.seed .*"):
        load_workdir(run)


def test_extending_a_run_is_not_an_edit(run):
    longer = load_config(run / "config.toml", {"train.num_steps": "30"})
    with claimed(run, longer, {}):
        pass
    assert load_workdir(run) == longer


def test_comments_and_order_are_not_edits(run):
    path = run / "config.toml"
    before = load_workdir(run)
    path.write_text("# mine\n" + path.read_text("utf-8").replace(" = ", "  =  "), "utf-8")
    assert load_workdir(run) == before


@pytest.mark.parametrize("first", [5, None, [], "x", {"task": "next_character", "nonsense": {}}])
def test_a_damaged_record_is_reported(first, run):
    held = json.loads((run / "run.json").read_text("utf-8")) | {"config": first}
    (run / "run.json").write_text(json.dumps(held), "utf-8")
    with pytest.raises(UserError) as caught:
        load_workdir(run)
    assert str(caught.value).startswith(str(run / "run.json")) and "\n" not in str(caught.value)
