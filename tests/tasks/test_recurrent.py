"""The cell of a model as a config names it."""

import jax
import pytest

from lstm_jax.cells import CELLS, LSTMCell, PeepholeLSTMCell
from lstm_jax.errors import UserError
from lstm_jax.sequence import DropConnect, Zoneout
from lstm_jax.tasks.next_character import CharacterModel, NextCharacter, TextData
from lstm_jax.tasks.recurrent import RecurrentModel, cell_factory


def test_every_cell_by_its_name():
    for name, kind in CELLS.items():
        assert cell_factory(name)(hidden_size=4) == kind(hidden_size=4)


def test_options_and_regularisers():
    assert cell_factory("peephole(cell_clip=3.0, gate_fn='hard_sigmoid')")(
        hidden_size=4, dtype="bfloat16"
    ) == PeepholeLSTMCell(4, cell_clip=3.0, gate_fn="hard_sigmoid", dtype="bfloat16")
    assert cell_factory("zoneout(drop_connect(lstm, rate=0.3), cell_rate=0.2)")(
        hidden_size=4
    ) == Zoneout(DropConnect(LSTMCell(4), rate=0.3), cell_rate=0.2)


def test_a_class_of_ones_own_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "my_own_cells.py").write_text(
        "from lstm_jax import LSTMCell\nclass Mine(LSTMCell):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert type(cell_factory("my_own_cells.Mine")(hidden_size=4)).__name__ == "Mine"


def test_layers_of_equal_models_are_equal():
    """They are static arguments of jitted functions."""
    first, second = (RecurrentModel(cell="gru(reset_after=True)").layers for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize("cell", ["projected", "zoneout(slstm(num_heads=2), cell_rate=0.1)"])
def test_a_task_learns_with_another_cell(cell):
    task = NextCharacter(TextData(lanes=4, window=8), CharacterModel(hidden_size=8, cell=cell))
    params = task.init(jax.random.key(0))
    batch = task.batches(seed=0)[0]

    def loss(params):
        return task.loss(params, task.initial_carry(), batch, jax.random.key(1))[0]

    before, grads = jax.value_and_grad(loss)(params)
    assert loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)) < before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lstn", "unknown cell lstn; did you mean lstm"),
        ("lstm(", "expected a cell such as lstm"),
        ("lstm(forget_bais=2)", "unknown option forget_bais of lstm; did you mean forget_bias"),
        ("lstm(cell_clip=-1)", "cell_clip must be above 0, got -1"),
        ("lstm(3)", "lstm: expected options by name, got 3"),
        ("lstm(cell_clip=print)", "cell_clip of lstm: expected a number"),
        ("zoneout", "zoneout: expected one cell in its brackets"),
        ("zoneout(lstm, rate=1)", "unknown option rate of zoneout"),
        ("recurrent_dropout(rnn)", "RecurrentDropout drops the candidate"),
        ("no_such_module.Cell", "no_such_module.Cell: module no_such_module cannot be imported"),
        ("math.Cell", "math.Cell: module math has no Cell"),
    ],
)
def test_mistakes_are_told(text, message):
    with pytest.raises(UserError, match=message):
        cell_factory(text)
    with pytest.raises(UserError, match=f"cell: .*{message}"):
        RecurrentModel(cell=text)
