"""The cell of a model, as named in a config."""

import jax
import numpy as np
import pytest
from flax import nnx

from lstm_jax.cells import CELLS, LSTMCell, PeepholeLSTMCell
from lstm_jax.config import RecurrentConfig, cell_factory
from lstm_jax.errors import UserError
from lstm_jax.models import Compiled
from lstm_jax.sequence import DropConnect, Zoneout
from lstm_jax.tasks.language import stream_losses
from lstm_jax.tasks.next_character import LanguageModelConfig, NextCharacter, TextData
from tests.arrays import params_of, with_params


def test_every_cell_by_its_name():
    for name, kind in CELLS.items():
        if name == "conv_lstm":
            continue  # reads grids
        assert cell_factory(name)(hidden_size=4) == kind(hidden_size=4)


def test_options_and_regularisers():
    assert cell_factory("peephole(cell_clip=3.0, gate_fn='hard_sigmoid')")(
        hidden_size=4, dtype="bfloat16"
    ) == PeepholeLSTMCell(4, cell_clip=3.0, gate_fn="hard_sigmoid", dtype="bfloat16")
    assert cell_factory("zoneout(drop_connect(lstm, rate=0.3), cell_rate=0.2)")(
        hidden_size=4
    ) == Zoneout(DropConnect(LSTMCell(4), rate=0.3), cell_rate=0.2)


OWN = """
import functools
import lstm_jax
class Mine(lstm_jax.LSTMCell):
    pass
class Untyped(lstm_jax.LSTMCell):
    def __init__(self, hidden_size):
        super().__init__(hidden_size)
class Even(lstm_jax.LSTMCell):
    def __init__(self, hidden_size, **rest):
        if hidden_size != 6:
            raise ValueError("hidden_size must be 6")
        super().__init__(hidden_size, **rest)
class Grid(lstm_jax.cells.ConvLSTMCell):
    pass
given = functools.partial(lstm_jax.LSTMCell, forget_bias=2.0)
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text, name):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def task(cell, hidden_size=6, embedding_size=4):
    model = LanguageModelConfig(hidden_size=hidden_size, embedding_size=embedding_size, cell=cell)
    return NextCharacter(TextData(lanes=4, window=8), model)


def test_custom_class_by_its_module(module):
    own = module(OWN, "my_own_cells")
    assert type(cell_factory(f"{own}.Mine")(hidden_size=4)).__name__ == "Mine"
    assert cell_factory(f"{own}.given")(hidden_size=4).forget_bias == 2.0
    assert cell_factory(f"zoneout({own}.Even(forget_bias=3.0))")(hidden_size=6).forget_bias == 3.0
    for text in ("number", "functools"):
        said = rf"my_own_cells.*{text} is not a cell: expected a class"
        with pytest.raises(UserError, match=said):
            cell_factory(f"{own}.{text}")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("class Mine(:\n", r"SyntaxError: invalid syntax \(broken_0.py, line 1\)"),
        ("import lstm_jax\nlstm_jax.no_such", "AttributeError: module 'lstm_jax' has no attribute"),
        ("raise RuntimeError('two\\nlines')", r"RuntimeError: two lines\)$"),
    ],
)
def test_failing_module_is_reported_in_one_line(module, request, text, cause):
    own = module(text, f"broken_{request.node.callspec.indices['text']}")
    message = f"^{own}.Mine: module {own} cannot be imported .{cause}"
    with pytest.raises(UserError, match=message):
        cell_factory(f"{own}.Mine")


def test_cell_that_does_not_fit_the_task_sizes_is_reported(module):
    own = module(OWN, "my_fitting_cells")
    assert task("slstm(num_heads=3)").model.hidden_size == 6
    assert task(f"{own}.Even").model.hidden_size == 6
    for cell, cause in {
        "slstm(num_heads=4)": "num_heads must divide",
        "ea_lstm(static_size=4)": "input_size must be above static_size=4, got 4",
        f"{own}.Untyped": ".*unexpected keyword argument 'dtype'",
        f"zoneout({own}.Grid)": r"expected a cell that reads features, got zoneout\(.*grids",
    }.items():
        with pytest.raises(UserError, match=rf"^model\.cell: {cause}"):
            task(cell)


def test_learned_initial_state_has_a_gradient_only_at_the_start():
    learning = task("lstm(learn_initial_state=True)")
    model = learning.build(nnx.Rngs(0))
    params = params_of(model)
    h_0 = params["lstm"]["layer_0"]["h_0"]
    params["lstm"]["layer_0"]["h_0"] = h_0 + 0.5

    @jax.jit
    def gradient(batch):
        def loss(params):
            changed = with_params(model, params)
            return learning.loss(changed, model.initial_carry(4), batch, nnx.Rngs(1))[0]

        return jax.grad(loss)(params)["lstm"]["layer_0"]["h_0"]

    first, second = (learning.batches(seed=0)[k] for k in range(2))
    assert np.abs(gradient(first)).min() > 0
    assert not gradient(second).any()  # reads the carry
    # Evaluation and samples also start from it.
    tokens = learning._split[1][:9]
    losses = stream_losses(Compiled(with_params(model, params)), tokens)
    assert stream_losses(Compiled(model), tokens).mean() != losses.mean()


def test_equal_configs_have_the_same_cells():
    """Equal modules share their compiled programs."""
    first, second = (RecurrentConfig(cell="gru(reset_after=True)") for _ in range(2))
    assert first.cell_factory is second.cell_factory
    graphs = [nnx.graphdef(task("gru(reset_after=True)").build(nnx.Rngs(0))) for _ in range(2)]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])


@pytest.mark.parametrize("cell", ["projected", "zoneout(slstm(num_heads=2), cell_rate=0.1)"])
def test_a_task_learns_with_another_cell(cell):
    learning = task(cell, hidden_size=8)
    model = learning.build(nnx.Rngs(0))
    batch = learning.batches(seed=0)[0]

    def loss(params):
        changed = with_params(model, params)
        return learning.loss(changed, model.initial_carry(4), batch, nnx.Rngs(1))[0]

    params = params_of(model)
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
        ("math.sqrt", "math.sqrt is not a cell: expected a class with init, zero_state, step"),
        ("lstm(dtype='bfloat16')", "unknown option dtype of lstm"),
        ("lstm(forget_bias={[]: 1})", "forget_bias of lstm: expected a number"),
        (
            "lstm(forget_bias=1e400)",
            "forget_bias of lstm: expected a number in the range of float32",
        ),
        ("lstm(forget_bias=-1e39)", "expected a number in the range of float32, got -1e\\+39"),
        (
            "lstm(forget_bias=(1, [1e999]))",
            "forget_bias of lstm: expected a number in the range of",
        ),
        ("zoneout(lstm, cell_rate=1e999)", "cell_rate of zoneout: expected a number in the range"),
        (f"lstm(forget_bias={'9' * 400})", "forget_bias of lstm: expected an integer of at most"),
        (
            f"lstm(forget_bias=0x{'f' * 4000})",
            "forget_bias of lstm: expected an integer of at most",
        ),
        (f"lstm(forget_bias={'9' * 5000})", "expected a cell such as lstm"),
        ("lstm(forget_bias=1e400-1e400)", "forget_bias of lstm: expected a number, a string"),
        ("lstm(forget_bias='nan')", "forget_bias must be a number, got 'nan'"),
        ("lstm(forget_bias=2j)", "forget_bias must be a number, got 2j"),
        ("mogrifier(rounds=100000)", "rounds must be at least 0 and at most 100, got 100000"),
        ("mogrifier(rounds=10000000000)", "rounds of mogrifier: expected an integer of at most"),
        ("zoneout(" * 3000 + "lstm" + ")" * 3000, "expected a cell such as lstm"),
        ("conv_lstm", "expected a cell that reads features, got conv_lstm, which reads grids"),
    ],
)
def test_mistakes_are_reported(text, message):
    with pytest.raises(UserError, match=message):
        cell_factory(text)
    with pytest.raises(UserError, match=f"cell: .*{message}"):
        RecurrentConfig(cell=text)


def test_a_cell_string_is_parsed_once():
    assert cell_factory("lstm(forget_bias=2.5)") is cell_factory("lstm(forget_bias=2.5)")


def test_number_with_thousands_of_digits_is_not_a_cell():
    """Python cannot print such an integer, so the message must not contain it."""
    with pytest.raises(UserError, match="expected a cell such as lstm"):
        cell_factory("0x" + "f" * 5000)
