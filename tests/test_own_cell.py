"""A custom cell, as written in docs/your_own_cell.md: the code of the page, and its statements.

The results of the cell are compared with loops in NumPy and float64.
"""

import functools
import importlib
import json
import os
import shlex
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.test_util import check_grads

import lstm_jax.linen
import lstm_jax.nnx
from lstm_jax import LSTM, Bidirectional, Stack, stream, truncated, unroll
from lstm_jax.sequence import DropConnect, RecurrentDropout, VariationalDropout, Zoneout
from tests.test_docs import ROOT, blocks, run_page, write_files

PAGE = ROOT / "docs" / "your_own_cell.md"
T, B, D, H = 7, 4, 3, 5
LENGTHS = np.array([7, 4, 1, 0])
RESETS = np.random.default_rng(1).random((T, B)) < 0.3
XS = np.random.default_rng(0).normal(size=(T, B, D))
OPTIONS = {"chrono": 20.0, "min_rate": 0.05, "learn_initial_state": True}
ATOL = 1e-5  # for values below 1, in float32, after about ten steps of sums of about ten terms


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    """All tests compile small programs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def my_cells(tmp_path_factory):
    """The module that the page writes."""
    folder = tmp_path_factory.mktemp("own")
    write_files(PAGE, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        sys.modules.pop("my_cells", None)
        yield importlib.import_module("my_cells")
        sys.modules.pop("my_cells", None)


@pytest.fixture
def cell(my_cells):
    return my_cells.LeakyCell(H, **OPTIONS)


def drawn(thing, input_size=D):
    """Random parameters; new ones can be zero, these are not."""
    shapes = jax.eval_shape(lambda: thing.init(jax.random.key(0), input_size))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0.0, 0.5, p.shape), p.dtype), shapes)


def by_hand(params, xs, lengths=None, resets=None, reverse=False, state=None, min_rate=0.05):
    """``((h, c), ys)`` by a loop over rows and steps."""
    p = {name: np.asarray(array, np.float64) for name, array in params.items()}
    xs = np.asarray(xs, np.float64)
    a = min_rate + (1.0 - min_rate) / (1.0 + np.exp(-p["r"]))
    size = p["r"].size
    start = p.get("h_0", np.zeros(size)), p.get("c_0", np.zeros(size))
    last, ys = np.zeros((2, xs.shape[1], size)), np.zeros((*xs.shape[:2], size))
    for row in range(xs.shape[1]):
        h, c = start if state is None else (np.asarray(field, np.float64)[row] for field in state)
        times = range(len(xs) if lengths is None else lengths[row])
        for t in reversed(times) if reverse else times:
            if resets is not None and resets[t, row]:
                h, c = start
            c = (1 - a) * c + a * np.tanh(xs[t, row] @ p["w_ih"] + h @ p["w_hh"] + p["b"])
            h = ys[t, row] = c
        last[:, row] = h, c
    return last, ys


def both_ways(params, xs, lengths):
    """The concatenated outputs of two directions, by the loop."""
    forward = by_hand(params["forward"], xs, lengths)[1]
    backward = by_hand(params["backward"], xs, lengths, reverse=True)[1]
    return np.concatenate([forward, backward], -1)


# ---- the page ----


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    run_page(PAGE, tmp_path, monkeypatch, capsys)


def test_its_config_trains_in_the_folder_of_the_file(tmp_path):
    """Run by a console script, which has its own folder on the path, not the current one."""
    script = tmp_path / "bin" / "lstm-jax"
    script.parent.mkdir()
    script.write_text("import sys\nfrom lstm_jax.cli import main\nsys.exit(main())\n")
    folder = tmp_path / "mine"
    folder.mkdir()
    write_files(PAGE, folder)
    (folder / "my_text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    (command,) = [block for block in blocks(PAGE, "") if block.startswith("lstm-jax train")]
    done = subprocess.run(
        [sys.executable, script, *shlex.split(command)[1:]],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / "leaky"
    config = tomllib.loads((run / "config.toml").read_text("utf-8"))
    assert config["model"]["cell"] == "my_cells.LeakyCell(chrono=50.0, min_rate=0.01)"
    metrics = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    losses = [line["train/loss"] for line in metrics if "train/loss" in line]
    assert losses[-1] < losses[0]
    assert json.loads((run / "results.json").read_text("utf-8"))["step"] == 60


# ---- over time ----


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "given",
    [{}, {"lengths": LENGTHS}, {"resets": RESETS}, {"lengths": LENGTHS, "resets": RESETS}],
    ids=" and ".join,
)
def test_unroll_equals_the_loop(my_cells, given, reverse):
    with jax.enable_x64(True):
        cell = my_cells.LeakyCell(H, param_dtype="float64", **OPTIONS)
        params = drawn(cell)
        state = None
        if len(given) != 1:  # with the initial state, and with another one
            state = my_cells.LeakyState(*np.random.default_rng(3).normal(size=(2, B, H)))
        last, ys = unroll(cell, params, XS, state, **given, reverse=reverse)
        expected_last, expected = by_hand(params, XS, **given, reverse=reverse, state=state)
        np.testing.assert_allclose(ys, expected, rtol=1e-12)
        np.testing.assert_allclose(np.stack(last), expected_last, rtol=1e-12)


def test_gradients_equal_finite_differences(my_cells):
    with jax.enable_x64(True):
        cell = my_cells.LeakyCell(H, param_dtype="float64", **OPTIONS)

        def loss(params, xs):
            given = {"lengths": LENGTHS, "resets": RESETS}
            last, ys = unroll(cell, params, xs, **given)
            _, zs = unroll(cell, params, xs, **given, reverse=True)
            return jnp.sin(ys).sum() + (last.c**2).sum() + (ys * zs).sum()

        args = drawn(cell), jnp.asarray(XS)
        check_grads(jax.jit(loss), args, order=1, modes=["fwd", "rev"])


def test_stacks_and_both_directions(my_cells, cell):
    kind = functools.partial(my_cells.LeakyCell, **OPTIONS)
    layers = LSTM(H, num_layers=2, cell=kind)
    params = drawn(layers)
    below = by_hand(params["layer_0"], XS, LENGTHS, RESETS)[1]
    last, expected = by_hand(params["layer_1"], below, LENGTHS, RESETS)
    state, ys = layers.apply(params, XS, lengths=LENGTHS, resets=RESETS)
    np.testing.assert_allclose(ys, expected, atol=ATOL)
    np.testing.assert_allclose(np.stack(state["layer_1"]), last, atol=ATOL)

    layers = LSTM(H, num_layers=2, cell=kind, bidirectional=True)
    params = drawn(layers)
    expected = both_ways(params["layer_0"], XS, LENGTHS)
    expected = both_ways(params["layer_1"], expected, LENGTHS)
    np.testing.assert_allclose(layers.apply(params, XS, lengths=LENGTHS)[1], expected, atol=ATOL)

    mixed = Stack([Bidirectional(cell), kind(2)])
    params = drawn(mixed)
    expected = by_hand(params["layer_1"], both_ways(params["layer_0"], XS, LENGTHS), LENGTHS)[1]
    np.testing.assert_allclose(mixed.apply(params, XS, lengths=LENGTHS)[1], expected, atol=ATOL)


def test_stream_and_truncated(cell):
    params = drawn(cell)
    last, expected = by_hand(params, XS)
    step = stream(cell, params, (B,))
    state = step.initial_state()
    for x, y in zip(XS, expected, strict=True):
        state, given = step(state, x)
        np.testing.assert_allclose(given, y, atol=ATOL)
    np.testing.assert_allclose(np.stack(state), last, atol=ATOL)

    run = functools.partial(unroll, cell, params)

    def fourth_output(xs):
        return truncated(run, xs, window=3, lengths=LENGTHS)[1][3].sum()

    _, ys = truncated(run, XS, window=3, lengths=LENGTHS, resets=RESETS)
    np.testing.assert_allclose(ys, by_hand(params, XS, LENGTHS, RESETS)[1], atol=ATOL)
    reached = jnp.any(jax.grad(fourth_output)(jnp.asarray(XS)) != 0, axis=(1, 2))
    assert reached.tolist() == [False] * 3 + [True] + [False] * 3


def test_narrow_products_do_not_narrow_the_memory(my_cells):
    cell = my_cells.LeakyCell(H, dtype="bfloat16", **OPTIONS)
    params = drawn(cell)
    state, ys = unroll(cell, params, XS)
    assert (state.h.dtype, state.c.dtype, ys.dtype) == (jnp.bfloat16, jnp.float32, jnp.bfloat16)
    # 8 bits in each product and its operands, in sums of about ten terms of about 1.
    np.testing.assert_allclose(ys.astype("float32"), by_hand(params, XS)[1], atol=10 * 2**-8)


# ---- regularisers ----


def test_regularisers(cell):
    params, key = drawn(cell), jax.random.key(3)
    _, plain = unroll(cell, params, XS)
    for noisy in (
        Zoneout(cell),
        VariationalDropout(cell),
        RecurrentDropout(cell),
        DropConnect(cell),
        Zoneout(DropConnect(VariationalDropout(RecurrentDropout(cell)))),
    ):
        assert not np.allclose(unroll(noisy, params, XS, key=key)[1], plain)

    # Written values are dropped or scaled; the memory is retained.
    _, ys = unroll(RecurrentDropout(cell, rate=0.5), params, XS[:1], key=key)
    rate = 0.05 + 0.95 * jax.nn.sigmoid(params["r"])
    memory = (1.0 - rate) * params["c_0"]
    written = (np.asarray(ys[0]) - memory) / (plain[0] - memory)
    assert {0.0, 2.0} == set(np.round(written.ravel(), 3).tolist())

    # Each unit has its previous value or that of the cell.
    _, ys = unroll(Zoneout(cell, 0.5, 0.5), params, XS[:1], key=key)
    kept, renewed = ys[0] == params["h_0"], np.isclose(ys[0], plain[0], atol=ATOL)
    assert (kept | renewed).all() and kept.any() and renewed.any()


# ---- Flax ----


def test_nnx(my_cells, cell):
    params, rows = drawn(cell), jnp.asarray(XS.swapaxes(0, 1))
    module = lstm_jax.nnx.Cell(D, cell, rngs=nnx.Rngs(0))
    for name, array in params.items():
        getattr(module, name)[...] = array
    _, expected = by_hand(params, XS)
    np.testing.assert_allclose(nnx.RNN(module)(rows), expected.swapaxes(0, 1), atol=ATOL)

    whole = lstm_jax.nnx.LSTM(D, H, num_layers=2, cell=my_cells.LeakyCell, rngs=nnx.Rngs(0))
    expected = XS
    for layer in whole.params.values():
        _, expected = by_hand(layer, expected, LENGTHS, RESETS, min_rate=0.0)
    given = whole(rows, seq_lengths=LENGTHS, resets=RESETS.T)
    np.testing.assert_allclose(given, expected.swapaxes(0, 1), atol=ATOL)


def test_linen(my_cells, cell):
    params, rows = drawn(cell), jnp.asarray(XS.swapaxes(0, 1))
    rnn = linen.RNN(lstm_jax.linen.Cell(cell))
    _, expected = by_hand(params, XS)
    given = rnn.apply({"params": {"cell": params}}, rows)
    np.testing.assert_allclose(given, expected.swapaxes(0, 1), atol=ATOL)

    whole = lstm_jax.linen.LSTM(H, num_layers=2, cell=my_cells.LeakyCell)
    variables = whole.init(jax.random.key(0), rows)
    expected = XS
    for _, layer in sorted(variables["params"].items()):
        _, expected = by_hand(layer, expected, LENGTHS, RESETS, min_rate=0.0)
    given = whole.apply(variables, rows, seq_lengths=LENGTHS, resets=RESETS.T)
    np.testing.assert_allclose(given, expected.swapaxes(0, 1), atol=ATOL)


# ---- features of the base class ----


def test_options_and_mistakes(my_cells):
    r = my_cells.LeakyCell(1000, chrono=50.0).parameters(D)["r"]
    rates = jax.nn.sigmoid(r.init(jax.random.key(0), r.shape, "float32"))
    assert (1.0 / rates).min() >= 2.0 and (1.0 / rates).max() <= 50.0
    cell = my_cells.LeakyCell(H)
    assert cell == my_cells.LeakyCell(H) and hash(cell) == hash(my_cells.LeakyCell(H))
    with pytest.raises(ValueError, match="min_rate must be at least 0 and below 1, got 2"):
        my_cells.LeakyCell(H, min_rate=2)
    with pytest.raises(TypeError, match=r"state must be LeakyState\(h, c\), got tuple"):
        cell.step(cell.init(jax.random.key(0), D), (jnp.zeros(H), jnp.zeros(H)), jnp.ones(D))
    with pytest.raises(ValueError, match=r"xs must be .* with D=3"):
        unroll(cell, cell.init(jax.random.key(0), D), jnp.ones((T, B, D + 1)))
