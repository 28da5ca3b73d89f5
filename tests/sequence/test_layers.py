import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_jax import CELLS, LSTM, Bidirectional, LSTMCell, Stack
from lstm_jax.cells import RNNCell
from lstm_jax.sequence import Zoneout, dropout
from tests import oracle

T, B, D, H = 7, 3, 4, 5
XS = jax.random.normal(jax.random.key(1), (T, B, D))


def test_a_stack_equals_numpy_loops_on_top_of_each_other():
    lstm = LSTM(H, num_layers=3)
    params = lstm.init(jax.random.key(0), D)
    lengths = [7, 2, 0]
    state, ys = lstm.apply(params, XS, lengths=jnp.array(lengths))
    below = XS
    for name in ("layer_0", "layer_1", "layer_2"):
        h, c, below = oracle.lstm(params[name], below, lengths=lengths)
        np.testing.assert_allclose(state[name].h, h, atol=3e-6)
        np.testing.assert_allclose(state[name].c, c, atol=3e-6)
    np.testing.assert_allclose(ys, below, atol=3e-6)


def test_chunks_with_passed_states_equal_the_whole():
    lstm = LSTM(H, num_layers=2)
    params = lstm.init(jax.random.key(0), D)
    whole, ys = lstm.apply(params, XS)
    middle, first = lstm.apply(params, XS[:3])
    last, second = lstm.apply(params, XS[3:], middle)
    np.testing.assert_array_equal(jnp.concatenate([first, second]), ys)
    chex.assert_trees_all_equal(last, whole)


def test_a_default_layer_preserves_float64_precision():
    with jax.enable_x64(True):
        xs = np.random.default_rng(0).normal(size=(T, B, D))
        double = functools.partial(jax.tree.map, lambda a: jnp.asarray(a, jnp.float64))
        for xs_, cast in ((xs, double), (xs.astype(np.float32), double), (xs, lambda a: a)):
            lstm = LSTM(H, num_layers=2, bidirectional=True)
            params = cast(lstm.init(jax.random.key(0), D))
            state, ys = lstm.apply(params, xs_)
            below = xs_
            for layer in params.values():
                there = oracle.lstm(layer["forward"], below)[2]
                back = oracle.lstm(layer["backward"], below[::-1])[2][::-1]
                below = np.concatenate([there, back], -1)
            assert {leaf.dtype.name for leaf in jax.tree.leaves((state, ys))} == {"float64"}
            # Sums of 15 terms over two layers and 7 steps: about a dozen rounding errors of 1e-16.
            np.testing.assert_allclose(ys, below, rtol=0, atol=1e-14)


def test_layers_are_initialised_separately():
    params = LSTM(H, num_layers=2).init(jax.random.key(0), H)
    assert not np.array_equal(params["layer_0"]["w_hh"], params["layer_1"]["w_hh"])


def test_parameters_equal_those_of_the_cell_with_each_layers_key():
    """The parameters of a key must never change: checkpoints and results depend on them."""
    params = LSTM(H, num_layers=2).init(jax.random.key(0), D)
    keys = jax.random.split(jax.random.key(0), 2)
    expected = {"layer_0": LSTMCell(H).init(keys[0], D), "layer_1": LSTMCell(H).init(keys[1], H)}
    chex.assert_trees_all_equal(params, expected)


def test_the_third_argument_is_bidirectional():
    lstm = LSTM(H, 2, True, 0.25)
    assert (lstm.num_layers, lstm.bidirectional, lstm.dropout) == (2, True, 0.25)
    assert lstm.layers == {f"layer_{n}": Bidirectional(LSTMCell(H)) for n in range(2)}


def test_options_go_to_the_layers_and_to_the_stack():
    lstm = LSTM((3, 3), bidirectional=True, merge="sum", connections="residual", dropout=0.1)
    layer = Bidirectional(LSTMCell(3), merge="sum")
    assert lstm.stack == Stack([layer, layer], connections="residual", dropout=0.1)
    lstm = LSTM(3, connections="skip", reverse=True, engine="scan", dtype="bfloat16")
    cell = LSTMCell(3, dtype="bfloat16")
    assert lstm.stack == Stack([cell], connections="skip", reverse=True, engine="scan")
    lstm = LSTM(3, bidirectional=True, engine="scan", param_dtype="bfloat16")
    layer = Bidirectional(LSTMCell(3, param_dtype="bfloat16"), engine="scan")
    assert lstm.stack == Stack([layer], engine="scan")


def test_an_lstm_equals_its_stack():
    lstm = LSTM((3, H), connections="skip", dropout=0.5)
    params = lstm.init(jax.random.key(0), D)
    stack = lstm.stack
    chex.assert_trees_all_equal(params, stack.init(jax.random.key(0), D))
    chex.assert_trees_all_equal(lstm.zero_state((B,)), stack.zero_state((B,)))
    chex.assert_trees_all_equal(lstm.initial_state(params), stack.initial_state(params))
    options = {"lengths": jnp.array([7, 2, 0]), "resets": jnp.ones((T, B), bool)}
    options["key"] = jax.random.key(3)
    state, ys = lstm.apply(params, XS, **options)
    chex.assert_trees_all_equal((state, ys), stack.apply(params, XS, **options))
    chex.assert_trees_all_equal(lstm.step(params, state, XS[0]), stack.step(params, state, XS[0]))
    assert lstm.output_size == ys.shape[-1] == 3 + H
    assert lstm.input_size(params) == D


def test_widths_and_cells_of_each_layer():
    lstm = LSTM([3, H], cell=["rnn", functools.partial(LSTMCell, forget_bias=2.0)])
    assert lstm.layers == {"layer_0": RNNCell(3), "layer_1": LSTMCell(H, forget_bias=2.0)}
    assert lstm.num_layers == 2
    assert list(LSTM(H, cell=("lstm", "rnn", "lstm")).layers) == ["layer_0", "layer_1", "layer_2"]


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_by_its_name(name):
    lstm = LSTM(4, cell=name)
    made = lstm.layers["layer_0"]
    assert made == CELLS[name](hidden_size=4)
    assert hash(lstm) == hash(LSTM(4, cell=name))


def test_a_cell_function_receives_only_the_given_types():
    lstm = LSTM(4, cell=lambda hidden_size: Zoneout(LSTMCell(hidden_size)))
    assert lstm.layers == {"layer_0": Zoneout(LSTMCell(4))}


def test_is_a_static_argument_that_compiles_once():
    run = jax.jit(lambda lstm, params, xs: lstm.apply(params, xs)[1], static_argnums=0)
    params = LSTM(H).init(jax.random.key(0), D)
    run(LSTM(H), params, XS)
    run(LSTM((H,)).stack, params, XS)
    run(LSTM(H, 1), params, 2 * XS)
    assert run._cache_size() == 2  # an LSTM, and a Stack


def test_the_cell_of_the_layers_can_be_replaced():
    lstm = LSTM(H, cell=functools.partial(LSTMCell, forget_bias=3.0))
    bias = lstm.init(jax.random.key(0), D)["layer_0"]["b"]
    np.testing.assert_array_equal(bias, np.repeat([0.0, 3.0, 0.0, 0.0], H))


class TestDropout:
    lstm = LSTM(H, num_layers=2, dropout=0.5)
    params = lstm.init(jax.random.key(0), D)

    def test_is_off_without_a_key(self):
        plain = LSTM(H, num_layers=2).apply(self.params, XS)
        chex.assert_trees_all_equal(self.lstm.apply(self.params, XS), plain)

    def test_each_device_of_an_explicit_mesh_makes_its_part_of_the_mask(self):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
        xs = jax.device_put(jnp.ones((T, 4, H)), NamedSharding(mesh, P(None, "data")))
        run = jax.jit(lambda xs: dropout(xs, 0.5, jax.random.key(0)))
        assert jax.typeof(run(xs)).sharding.spec == P(None, "data", None)
        np.testing.assert_array_equal(run(xs), run(jnp.ones((T, 4, H))))
        text = run.lower(xs).compile().as_text()
        assert f"pred[{T},2,{H}]" in text and f"[{T},4,{H}]" not in text

    def test_applies_only_between_layers(self):
        plain, _ = self.lstm.apply(self.params, XS)
        state, ys = self.lstm.apply(self.params, XS, key=jax.random.key(2))
        chex.assert_trees_all_equal(state["layer_0"], plain["layer_0"])
        assert not np.allclose(state["layer_1"].h, plain["layer_1"].h)
        assert (ys != 0).all()  # nothing is dropped after the top layer

    def test_preserves_the_mean(self):
        xs = dropout(jnp.ones(100_000), 0.3, jax.random.key(0))
        zeros = float((xs == 0).mean())
        # Five deviations of the mean of 100,000 coin tosses.
        assert abs(zeros - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 1e5)
        np.testing.assert_allclose(xs[xs != 0], 1 / 0.7, rtol=1e-6)


class TestErrors:
    lstm = LSTM(H, num_layers=2)

    def test_parameters_of_another_stack(self):
        params = LSTM(H).init(jax.random.key(0), D)
        with pytest.raises(
            TypeError, match="params must have one entry per layer, layer_0, layer_1"
        ):
            self.lstm.apply(params, XS)

    def test_states_of_another_stack(self):
        params = self.lstm.init(jax.random.key(0), D)
        with pytest.raises(TypeError, match="state must have one entry per layer"):
            self.lstm.apply(params, XS, LSTM(H).zero_state((B,)))

    @pytest.mark.parametrize("rate", [-0.1, 1.0])
    def test_impossible_dropout(self, rate):
        with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
            LSTM(H, dropout=rate)

    def test_impossible_number_of_layers(self):
        with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
            LSTM(H, num_layers=0)
        with pytest.raises(TypeError, match="num_layers must be an int"):
            LSTM(H, num_layers=1.5)

    def test_tuples_of_another_number_of_layers(self):
        with pytest.raises(ValueError, match=r"hidden_size must have one entry.*3 layers, got 2"):
            LSTM((3, 4), num_layers=3)
        with pytest.raises(ValueError, match=r"cell must have one entry.*3 layers, got 2"):
            LSTM((3, 4, 5), cell=("lstm", "rnn"))
        with pytest.raises(ValueError, match=r"hidden_size must have one entry.*1 layers, got 0"):
            LSTM(())

    def test_sizes(self):
        with pytest.raises(TypeError, match=r"hidden_size must be an int, got 2\.5"):
            LSTM((3, 2.5))
        with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
            LSTM(0)

    def test_cells(self):
        with pytest.raises(ValueError, match=r"cell must be one of lstm, .*, got 'lsmt'"):
            LSTM(H, cell="lsmt")
        with pytest.raises(TypeError, match="cell must be a name, a class or a function"):
            LSTM(H, cell=LSTMCell(H))

    @pytest.mark.parametrize(
        ("cell", "options", "expected"),
        [
            (
                lambda n: LSTMCell(n),
                {},
                r"\(hidden_size=5\), got <function .*: .*required.*'n'",
            ),
            (
                lambda hidden_size: LSTMCell(hidden_size),
                {"dtype": "bfloat16"},
                r"\(hidden_size=5, dtype='bfloat16'\), got .*: .*unexpected.*'dtype'",
            ),
            (functools.partial(LSTMCell, bias=1), {}, r"got functools.partial.*unexpected.*'bias'"),
            (lambda hidden_size, depth: None, {}, "missing a required argument: 'depth'"),
        ],
    )
    def test_functions_that_do_not_make_a_cell_from_a_size(self, cell, options, expected):
        with pytest.raises(
            TypeError, match=f"cell must make a cell from keywords, as in .*?{expected}"
        ):
            LSTM(H, cell=cell, **options)
        with pytest.raises(TypeError, match=r"layer_0 must be a cell .*, got None"):
            LSTM(H, cell=lambda hidden_size: None)

    def test_dropout_in_the_position_of_bidirectional(self):
        with pytest.raises(TypeError, match=r"bidirectional must be true or false, got 0\.5"):
            LSTM(H, 2, 0.5)

    def test_both_directions_backwards(self):
        with pytest.raises(ValueError, match="reverse is for stacks of cells; layer_0 is Bidir"):
            LSTM(H, bidirectional=True, reverse=True)
