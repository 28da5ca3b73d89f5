"""Traces contain the values that unroll computes, and only the requested ones."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import CELLS, LSTM, Bidirectional, LSTMCell, Stack, unroll
from lstm_jax.cells import BaseCell, GRUCell, RNNCell, named
from lstm_jax.inspect import trace
from lstm_jax.inspect.models import cells_by_path
from lstm_jax.sequence import Zoneout, engines
from lstm_jax.sequence.rows import valid_steps
from tests import oracle
from tests.arrays import assert_same

T, B, D, H = 7, 2, 3, 4
SPACE = {"conv_lstm": (3, 2)}
LENGTHS = np.array([7, 3])
RESETS = np.zeros((T, B), bool)
RESETS[2, 0] = RESETS[5, 0] = RESETS[1, 1] = True
ROUNDING = 16 * np.finfo(np.float32).eps
"""Where asking for its gates makes XLA fuse a step otherwise, a product of numbers of order 1 is
rounded once and not twice; T such steps add up."""

NAMES = {
    "lstm": "i f g o c h",
    "lstm_1997": "i g o c h",
    "peephole": "i f g c o h",
    "coupled": "f i g c o h",
    "nig": "f g c o h",
    "nfg": "i g c o h",
    "nog": "i f g c h",
    "niaf": "i f g c o h",
    "noaf": "i f g c o h",
    "np": "i f g c o h",
    "fgr": "i f g c o h",
    "projected": "i f g o c m h",
    "layer_norm": "i f g o c h",
    "multiplicative": "m i f g o c h",
    "mogrifier": "x_1 h_2 x_3 h_4 x_5 i f g o c h",
    "slstm": "m i f g o c n h",
    "min_lstm": "f' i' g h",
    "min_gru": "z g h",
    "gru": "r z g h",
    "mgu": "f g h",
    "rnn": "h",
    "ind_rnn": "h",
    "ea_lstm": "i f g o c h",
    "conv_lstm": "i f g c o h",
}

over_cells = pytest.mark.parametrize("name", list(CELLS))


def made(name, **options):
    cell = CELLS[name](hidden_size=H, **options)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, *SPACE.get(name, ()), D))
    return cell, params, xs


# ---- values ----


@functools.cache
def traced_forwards(name):
    return trace(*made(name))


@over_cells
def test_names_are_those_of_the_equations_in_the_order_of_computation(name):
    values = traced_forwards(name).values["cell"]
    assert set(values) == set(NAMES[name].split())
    assert list(values)[-1] == "h"


def assert_as_unroll(name, traced, state, ys):
    got, expected = (traced.values["cell"]["h"], traced.state), (ys, state)
    if name in ("nig", "mgu"):
        chex.assert_trees_all_close(got, expected, atol=ROUNDING, rtol=0)
    else:
        assert_same(got, expected, ROUNDING)


@pytest.mark.optimized
@over_cells
def test_outputs_and_last_states_are_those_of_unroll(name):
    assert_as_unroll(name, traced_forwards(name), *unroll(*made(name)))


@pytest.mark.optimized
@pytest.mark.parametrize("name", ["lstm", "lstm_1997", "fgr", "slstm", "min_gru", "conv_lstm"])
def test_backwards_with_lengths_and_resets(name):
    options = {"reverse": True, "lengths": LENGTHS, "resets": RESETS}
    traced = trace(*made(name), **options)
    assert_as_unroll(name, traced, *unroll(*made(name), **options))


@over_cells
def test_states_of_every_step_are_those_of_single_steps(name):
    cell, params, xs = made(name)
    values, step = traced_forwards(name).values["cell"], jax.jit(cell.step)
    state = cell.zero_state(xs.shape[1:-1])
    for steps in range(1, T):
        state, _ = step(params, state, xs[steps - 1])
        for field, array in state._asdict().items():
            np.testing.assert_allclose(values[field][steps - 1], array, atol=ROUNDING, rtol=1e-5)


def test_gates_of_the_lstm_are_those_of_a_loop_in_numpy():
    cell, params, xs = made("lstm")
    traced = trace(cell, params, xs).values["cell"]
    weights = {name: np.asarray(array, np.float64) for name, array in params.items()}
    for row in range(B):
        h = c = np.zeros(H)
        for t in range(T):
            z = xs[t, row] @ weights["w_ih"] + h @ weights["w_hh"] + weights["b"]
            gates = [oracle.sigmoid(part) for part in np.split(z, 4)]
            gates[2] = np.tanh(np.split(z, 4)[2])
            h, c = oracle.lstm_step(weights, h, c, np.asarray(xs[t, row], np.float64))
            for name, value in zip("ifgoch", (*gates, c, h), strict=True):
                np.testing.assert_allclose(traced[name][t, row], value, atol=1e-6)


@over_cells
def test_gates_fulfil_the_equations(name):
    """A cell's new state follows from its gates by the equations."""
    v = traced_forwards(name).values["cell"]
    before = {field: jnp.concatenate([jnp.zeros_like(a[:1]), a[:-1]]) for field, a in v.items()}
    keep = v.get("f", 1.0)
    if name == "lstm_1997":
        expected = {"c": before["c"] + v["i"] * v["g"]}
    elif name == "coupled":
        expected = {"i": 1 - keep, "c": keep * before["c"] + (1 - keep) * v["g"]}
    elif name == "gru":
        expected = {"h": v["z"] * before["h"] + (1 - v["z"]) * v["g"]}
    elif name == "mgu":
        expected = {"h": (1 - keep) * before["h"] + keep * v["g"]}
    elif name == "min_gru":
        expected = {"h": (1 - v["z"]) * before["h"] + v["z"] * v["g"]}
    elif name == "min_lstm":
        expected = {"i'": 1 - v["f'"], "h": v["f'"] * before["h"] + v["i'"] * v["g"]}
    elif name == "slstm":
        c, n = (keep * before[s] + v["i"] * a for s, a in (("c", v["g"]), ("n", 1.0)))
        expected = {"c": c, "n": n, "h": v["o"] * c / n}
    elif "c" in v:
        c = keep * before["c"] + v.get("i", 1.0) * v["g"]
        read = v.get("o", 1.0) * (c if name == "noaf" else jnp.tanh(c))
        expected = {"c": c, ("m" if name == "projected" else "h"): read}
        if name == "layer_norm":  # which reads a normalised c
            expected = {"c": c}
    else:
        expected = {}
    for field, value in expected.items():
        np.testing.assert_allclose(v[field], value, atol=ROUNDING, rtol=1e-5)


@pytest.mark.parametrize("engine", ["scan", "fused", "associative"])
def test_engines(engine):
    cell, params, xs = made("min_gru")
    state, ys = unroll(cell, params, xs, engine=engine)
    traced = trace(cell, params, xs, engine=engine)
    for got, expected in ((traced.values["cell"]["h"], ys), (traced.state, state)):
        chex.assert_trees_all_close(got, expected, atol=ROUNDING, rtol=0)


def test_a_split_batch(monkeypatch):
    cell, params, xs = made("lstm")
    expected = trace(cell, params, xs, lengths=LENGTHS)
    monkeypatch.setattr(engines, "splits_batch", lambda state, batch_shape: True)
    halves = trace(cell, params, xs, lengths=LENGTHS)
    chex.assert_trees_all_close(halves, expected, atol=ROUNDING, rtol=0)


def test_a_trace_continues_from_a_state():
    cell, params, xs = made("peephole")
    whole = trace(cell, params, xs).values["cell"]
    first = trace(cell, params, xs[:3])
    second = trace(cell, params, xs[3:], first.state).values["cell"]
    chex.assert_trees_all_close(dict(second), {n: a[3:] for n, a in whole.items()}, atol=ROUNDING)


def test_values_past_the_end_of_a_row_are_zero():
    for array in trace(*made("gru"), lengths=LENGTHS).values["cell"].values():
        assert (array[3:, 1] == 0).all()
        assert (array[:3] != 0).all()


@pytest.mark.optimized
def test_cell_states_are_wide_in_narrow_types():
    values = trace(*made("lstm", dtype="bfloat16", param_dtype="bfloat16")).values["cell"]
    assert (values["h"].dtype, values["c"].dtype, values["f"].dtype) == (
        "bfloat16",
        "float32",
        "float32",
    )


# ---- models ----


def assert_like_apply(model, params, xs, **rows):
    """States and outputs of the top layer equal those of the model."""
    state, ys = model.apply(params, xs, **rows)
    traced = trace(model, params, xs, **rows)
    assert_same(traced.state, state, ROUNDING)
    assert list(traced.values) == list(cells_by_path(model))
    return traced.values, ys


@pytest.mark.optimized
@pytest.mark.parametrize("rows", [{}, {"lengths": LENGTHS, "resets": RESETS}], ids=["all", "rows"])
@pytest.mark.parametrize("reverse", [False, True])
def test_layers_of_a_stack(rows, reverse):
    lstm = LSTM(H, num_layers=2, cell=("lstm", "gru"), reverse=reverse)
    params = lstm.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    values, ys = assert_like_apply(lstm, params, xs, **rows)
    assert_same(values["layer_1"]["h"], ys, ROUNDING)
    below = trace(LSTMCell(H), params["layer_0"], xs, reverse=reverse, **rows)
    chex.assert_trees_all_equal(dict(values["layer_0"]), dict(below.values["cell"]))


@pytest.mark.parametrize("connections", ["residual", "skip"])
def test_connections(connections):
    stack = Stack([LSTMCell(H), LSTMCell(H), RNNCell(H)], connections=connections)
    params = stack.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    values, ys = assert_like_apply(stack, params, xs)
    outputs = [layer["h"] for layer in values.values()]
    made_up = sum(outputs) if connections == "residual" else jnp.concatenate(outputs, -1)
    np.testing.assert_allclose(ys, made_up, atol=ROUNDING)


@pytest.mark.parametrize("merge", ["concat", "mean", lambda ys, zs: ys - zs])
def test_both_directions_and_stacks_in_stacks(merge):
    both = Bidirectional(LSTMCell(H), GRUCell(H), merge=merge)
    stack = Stack({"both": both, "inner": Stack([RNNCell(H)]), "top": LSTMCell(2)})
    params = stack.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    rows = {"lengths": LENGTHS, "resets": RESETS}
    values, ys = assert_like_apply(stack, params, xs, **rows)
    assert list(values) == ["both.forward", "both.backward", "inner.layer_0", "top"]
    chex.assert_trees_all_equal(values["top"]["h"], ys)
    alone, zs = assert_like_apply(both, params["both"], xs, **rows)
    chex.assert_trees_all_equal(dict(alone["forward"]), dict(values["both.forward"]))
    if merge == "concat":
        directions = [alone["forward"]["h"], alone["backward"]["h"]]
        chex.assert_trees_all_equal(jnp.concatenate(directions, -1), zs)


@pytest.mark.optimized
def test_flax_modules():
    from flax import linen, nnx

    import lstm_jax.linen
    import lstm_jax.nnx

    xs = jax.random.normal(jax.random.key(0), (B, T, D))  # batch leads
    resets = RESETS.T
    module = lstm_jax.nnx.LSTM(D, H, num_layers=2, rngs=nnx.Rngs(0))
    ys = module(xs, seq_lengths=LENGTHS, resets=resets)
    traced = trace(module, None, xs, lengths=LENGTHS, resets=resets)
    assert_same(traced.values["layer_1"]["h"], ys.swapaxes(0, 1), ROUNDING)
    cell = lstm_jax.nnx.PeepholeLSTMCell(D, H, rngs=nnx.Rngs(0))
    outputs = trace(cell, None, xs).values["cell"]["h"]
    chex.assert_trees_all_close(outputs, nnx.RNN(cell)(xs).swapaxes(0, 1), atol=ROUNDING, rtol=0)

    module = lstm_jax.linen.LSTM(H, cell="gru", bidirectional=True, time_major=True)
    xs = xs.swapaxes(0, 1)
    ys, variables = module.init_with_output(jax.random.key(0), xs)
    traced = trace(module, variables, xs).values
    both = [traced[f"layer_0.{way}"]["h"] for way in ("forward", "backward")]
    assert_same(jnp.concatenate(both, -1), ys, ROUNDING)
    bound = trace(module.bind(variables), None, xs).values
    chex.assert_trees_all_equal(jax.tree.leaves(bound), jax.tree.leaves(traced))
    named_cell = lstm_jax.linen.LSTMCell(H)
    variables = named_cell.init(
        jax.random.key(0), named_cell.initialize_carry(jax.random.key(0), (B, D)), xs[0]
    )
    values = trace(named_cell, variables, xs.swapaxes(0, 1)).values["cell"]
    functional = trace(LSTMCell(H), variables["params"], xs).values["cell"]
    chex.assert_trees_all_equal(dict(values), dict(functional))
    with pytest.raises(TypeError, match=r"must be its variables, .*, got b, w_hh, w_ih"):
        trace(named_cell, dict(sorted(variables["params"].items())), xs)
    for other in (nnx.Linear(2, 2, rngs=nnx.Rngs(0)), linen.Dense(2)):
        with pytest.raises(TypeError, match=r"model must be a cell, .* got flax\..*(Linear|Dense)"):
            trace(other, None, xs)


class LeakyState(NamedTuple):
    h: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class LeakyCell(BaseCell):
    """A custom cell: a named gate, an output that is not a state, a nested function."""

    def parameters(self, input_size):
        return {"w_ih": self.declare("kernel", (input_size, self.hidden_size))}

    def zero_state(self, batch_shape=()):
        zero = jnp.zeros((*batch_shape, self.hidden_size))
        return LeakyState(h=zero, count=jnp.zeros(batch_shape))

    def equations(self, params, state, x):
        @jax.jit
        def leak(x):
            return named("leak", jax.nn.sigmoid(x @ params["w_ih"]))

        h = leak(x) * state.h + jax.nn.relu(x.sum(-1, keepdims=True))
        return LeakyState(h=h, count=state.count + 1), 2 * h


def test_a_custom_cell():
    cell = LeakyCell(H)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    traced = trace(cell, params, xs).values["cell"]
    assert set(traced) == {"leak", "h", "count", "y"}
    np.testing.assert_allclose(traced["leak"], jax.nn.sigmoid(xs @ params["w_ih"]), rtol=1e-5)
    np.testing.assert_array_equal(traced["count"][:, 0], np.arange(1, T + 1))
    np.testing.assert_array_equal(traced["y"], 2 * traced["h"])


def test_a_regularised_cell_is_traced_as_in_evaluation():
    cell = Zoneout(LSTMCell(H), hidden_rate=0.2, cell_rate=0.4)
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    traced = trace(cell, params, xs)
    chex.assert_trees_all_close(
        traced.values["cell"]["h"], unroll(cell, params, xs)[1], atol=ROUNDING
    )
    assert set(traced.values["cell"]) >= set("ifgoch")


# ---- selection ----


def test_selection_by_layer_name_and_unit():
    lstm = LSTM(H, num_layers=2)
    params = lstm.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    everything = trace(lstm, params, xs).values
    some = trace(lstm, params, xs, layers=["layer_1"], names=("c", "f"), units=[3, 1])
    assert list(some.values) == ["layer_1"]
    assert some.units.tolist() == [3, 1]
    for name, array in some.values["layer_1"].items():
        assert name in "cf"
        chex.assert_trees_all_equal(array, everything["layer_1"][name][..., [3, 1]])
    one = trace(lstm, params, xs, units=2).values
    assert {array.shape for layer in one.values() for array in layer.values()} == {(T, B, 1)}
    directions = trace(
        Bidirectional(LSTMCell(H)),
        {"forward": params["layer_0"], "backward": params["layer_0"]},
        xs,
        layers="backward",
    )
    assert list(directions.values) == ["backward"]


def test_unselected_values_are_not_stored():
    """No array in the compiled program is large enough to contain it."""
    cell, steps = LSTMCell(64), 500
    params = cell.init(jax.random.key(0), D)
    xs = jnp.zeros((steps, B, D))

    def needed(run):
        memory = jax.jit(run).lower(params, xs).compile().memory_analysis()
        return memory.output_size_in_bytes, memory.temp_size_in_bytes

    whole, _ = needed(lambda params, xs: trace(cell, params, xs).values)
    out, temp = needed(lambda params, xs: trace(cell, params, xs, names="c", units=[0]).values)
    plain_out, plain_temp = needed(lambda params, xs: unroll(cell, params, xs))
    size = steps * B * 4
    assert whole >= 6 * 64 * size
    assert out < 2 * size
    # The cell's outputs, which a layer above would read, but no gates.
    assert temp + out < plain_temp + plain_out + 3 * size


def test_units_that_a_value_lacks():
    cell = CELLS["lstm_1997"](hidden_size=H, block_size=2)
    params, xs = cell.init(jax.random.key(0), D), jnp.ones((T, B, D))
    assert set(trace(cell, params, xs, units=3).values["cell"]) == {"g", "c", "h"}
    assert set(trace(cell, params, xs, units=1).values["cell"]) == {"i", "g", "o", "c", "h"}
    with pytest.raises(ValueError, match="units must be below 2 for i of cell, got 3"):
        trace(cell, params, xs, units=3, names="i")


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ({"layers": "layer_2"}, "layers must be among layer_0, layer_1, got 'layer_2'"),
        ({"names": "z"}, "names must be among i, f, g, o, c, h, got 'z'"),
        ({"units": -1}, r"units must be integers of at least 0, got \(-1,\)"),
        ({"units": []}, r"units must be integers of at least 0, got \(\)"),
        ({"units": H}, "units must be below 4, got 4"),
        ({"layers": 0}, "layers must be among layer_0, layer_1, got 0"),
        ({"layers": []}, "layers must be at least one, or None for all, got none"),
        ({"names": ()}, "names must be at least one, or None for all, got none"),
        ({"reverse": True}, "reverse is for a cell; LSTM has its own"),
        ({"engine": "scan"}, "engine is for a cell; LSTM has its own"),
    ],
)
def test_impossible_selections(select, message):
    lstm = LSTM(H, num_layers=2)
    params, xs = lstm.init(jax.random.key(0), D), jnp.ones((T, B, D))
    with pytest.raises(ValueError, match=message):
        trace(lstm, params, xs, **select)


def test_units_are_integers_of_any_kind():
    cell = LSTMCell(H)
    params, xs = cell.init(jax.random.key(0), D), jnp.ones((T, B, D))
    for units in (np.int64(2), [2], np.array([2]), jnp.array([2]), range(2, 3)):
        assert trace(cell, params, xs, units=units).units.tolist() == [2]
    for units in (1.5, [0.5, 2], "2", slice(0, 2), [False, True, True, False], [[1]]):
        with pytest.raises(
            TypeError, match="units must be an integer or a sequence of integers, got"
        ):
            trace(cell, params, xs, units=units)


def test_models_that_cannot_be_traced():
    xs = jnp.ones((T, B, D))

    class Other:
        output_size = H
        init = zero_state = apply = lambda self, *args: None

    with pytest.raises(
        TypeError, match=r"model must consist of cells, Stack, LSTM and .*, got Other"
    ):
        trace(Other(), None, xs)
    with pytest.raises(TypeError, match="model must be a cell"):
        trace(LSTMCell, None, xs)
    with pytest.raises(ValueError, match=r"xs must be .* D=3 .* got shape \(7, 2, 5\)"):
        trace(LSTMCell(H), LSTMCell(H).init(jax.random.key(0), D), jnp.ones((T, B, 5)))


# ---- transformations ----


def test_jit_vmap_and_grad():
    cell, params, xs = made("lstm")
    plain = trace(cell, params, xs, lengths=LENGTHS)
    jitted = jax.jit(functools.partial(trace, cell))(params, xs, lengths=LENGTHS)
    assert list(jitted.values["cell"]) == list(plain.values["cell"])
    chex.assert_trees_all_close(jitted, plain, atol=ROUNDING)
    over_rows = jax.vmap(lambda xs: trace(cell, params, xs).values["cell"]["f"], 1, 1)(xs)
    chex.assert_trees_all_close(over_rows, trace(cell, params, xs).values["cell"]["f"], atol=1e-6)

    def total(xs):
        return trace(cell, params, xs, names="c").values["cell"]["c"][-1].sum()

    expected = jax.grad(lambda xs: unroll(cell, params, xs, engine="scan")[0].c.sum())(xs)
    chex.assert_trees_all_close(jax.grad(total)(xs), expected, atol=1e-6)


def test_valid_steps_of_a_trace():
    from lstm_jax.inspect.trace import valid

    traced = trace(*made("rnn"), lengths=LENGTHS)
    np.testing.assert_array_equal(valid(traced), valid_steps(T, LENGTHS))
