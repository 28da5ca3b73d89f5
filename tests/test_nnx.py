import copy
import dataclasses
import functools
import inspect
import pickle
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import lstm_jax
from lstm_jax import cells, sequence
from lstm_jax.interop import from_flax
from lstm_jax.nnx import LSTM, Cell, ConvLSTMCell, GRUCell, LSTMCell, OdysseyLSTMCell, Stack
from tests import oracle
from tests.noisy import NOISY

B, T, D, H = 3, 6, 4, 5
XS = jax.random.normal(jax.random.key(1), (B, T, D))
LENGTHS = jnp.array([6, 4, 1])
KEY = jax.random.key(2)
VALID = np.arange(T) < np.asarray(LENGTHS)[:, None]


def turned(xs):
    """Batch-major from time-major, and back."""
    return xs.swapaxes(0, 1)


class TestCells:
    def test_in_flax_rnn_equals_the_numpy_loop(self):
        cell = LSTMCell(D, H, rngs=nnx.Rngs(0))
        carry, ys = nnx.RNN(cell, time_major=True)(
            turned(XS), seq_lengths=LENGTHS, return_carry=True
        )
        h, c, expected = oracle.lstm(cell.params, turned(XS), lengths=LENGTHS)
        np.testing.assert_allclose(carry.h, h, atol=3e-6)
        np.testing.assert_allclose(carry.c, c, atol=3e-6)
        np.testing.assert_allclose(turned(ys)[VALID], turned(expected)[VALID], atol=3e-6)

    def test_the_equations_equal_those_of_flax(self):
        """The same weights in Flax's LSTMCell (gates i, f, g, o by name)."""
        ours = LSTMCell(D, H, rngs=nnx.Rngs(0))
        theirs = nnx.LSTMCell(D, H, rngs=nnx.Rngs(1))
        for name, w, u, b in zip(
            "ifgo",
            *(jnp.split(ours.params[name], 4, -1) for name in ("w_ih", "w_hh", "b")),
            strict=True,
        ):
            getattr(theirs, {"f": "if_"}.get(name, f"i{name}")).kernel[...] = w
            getattr(theirs, f"h{name}").kernel[...] = u
            getattr(theirs, f"h{name}").bias[...] = b
        np.testing.assert_allclose(nnx.RNN(ours)(XS), nnx.RNN(theirs)(XS), atol=3e-6)

    def test_parameters_equal_those_of_the_functional_cell(self):
        expected = lstm_jax.LSTMCell(H).init(nnx.Rngs(0).params(), D)
        chex.assert_trees_all_equal(LSTMCell(D, H, rngs=nnx.Rngs(0)).params, expected)

    def test_options_equal_those_of_the_functional_cell(self):
        cell = LSTMCell(D, H, forget_bias=3.0, cell_clip=0.5, dtype="bfloat16", rngs=nnx.Rngs(0))
        assert cell.cell == lstm_jax.LSTMCell(H, forget_bias=3.0, cell_clip=0.5, dtype="bfloat16")
        assert cell.b[H] == 3.0

    def test_signatures_show_the_options(self):
        parameters = inspect.signature(OdysseyLSTMCell).parameters
        assert list(parameters)[:2] == ["in_features", "hidden_features"]
        assert parameters["variant"].default is inspect.Parameter.empty
        assert parameters["cell_clip"].default is None
        assert {"carry_init", "kernel_metadata", "rngs"} < set(parameters)

        class Mine(LSTMCell):
            def __init__(self, size, *, rngs):
                super().__init__(size, size, rngs=rngs)

        assert list(inspect.signature(Mine).parameters) == ["size", "rngs"]
        assert list(inspect.signature(Mine(D, rngs=nnx.Rngs(0))).parameters) == ["carry", "inputs"]

    def test_an_unknown_keyword_is_named(self):
        with pytest.raises(TypeError, match="GRUCell got an unexpected keyword argument 'forget'"):
            GRUCell(D, H, forget=1.0, rngs=nnx.Rngs(0))

    def test_sizes_are_checked_by_name(self):
        with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
            LSTMCell(0, H, rngs=nnx.Rngs(0))
        with pytest.raises(TypeError, match=r"hidden_features must be an int, got 2\.5"):
            LSTMCell(D, 2.5, rngs=nnx.Rngs(0))

    def test_first_carries_are_sampled_on_request(self):
        normal = jax.nn.initializers.normal(1.0)
        cell = LSTMCell(D, H, rngs=nnx.Rngs(0))
        drawn = cell.initialize_carry((B, D), nnx.Rngs(carry=1), normal)
        assert not np.array_equal(drawn.h, drawn.c)
        with pytest.raises(ValueError, match="rngs must be given if carry_init is given"):
            cell.initialize_carry((B, D), None, normal)

        stored = LSTMCell(D, H, carry_init=jax.nn.initializers.ones, rngs=nnx.Rngs(0))
        ones = jax.tree.map(jnp.ones_like, stored.cell.zero_state((B,)))
        expected = nnx.RNN(cell)(XS, initial_carry=ones)
        np.testing.assert_allclose(nnx.RNN(stored)(XS), expected, atol=1e-6)

    @pytest.mark.parametrize("name", ["lstm", "slstm"])
    def test_a_learned_first_carry_is_the_one_that_flax_uses(self, name):
        functional = lstm_jax.CELLS[name](hidden_size=H, learn_initial_state=True)
        cell = Cell(D, functional, rngs=nnx.Rngs(0))
        cell.h_0[...] = jnp.linspace(-1.0, 1.0, H)

        @nnx.grad
        def gradient(rnn):
            return (rnn(XS) ** 2).sum()

        @jax.grad
        def expected(params):
            return (lstm_jax.unroll(functional, params, turned(XS))[1] ** 2).sum()

        gradients = nnx.to_pure_dict(gradient(nnx.RNN(cell, rngs=False)))["cell"]
        chex.assert_trees_all_close(gradients, expected(cell.params), atol=1e-5, rtol=1e-5)
        assert abs(gradients["h_0"]).min() > 0

    def test_a_carry_is_learned_or_sampled(self):
        with pytest.raises(ValueError, match="carry_init must be None if learn_initial_state"):
            LSTMCell(
                D,
                H,
                learn_initial_state=True,
                carry_init=jax.nn.initializers.ones,
                rngs=nnx.Rngs(0),
            )


class Sum(NamedTuple):
    h: jax.Array


@dataclasses.dataclass(frozen=True)
class Summing:
    """A custom cell without a base class."""

    hidden_size: int
    names: tuple[str, ...] = ("w",)
    nested: bool = False

    def init(self, key, input_size):
        params = {name: jnp.ones((input_size, self.hidden_size)) for name in self.names}
        return {"inner": params} if self.nested else params

    def zero_state(self, batch_shape=()):
        return Sum(jnp.zeros((*batch_shape, self.hidden_size)))

    def step(self, params, state, x):
        h = state.h + x @ params["w"]
        return Sum(h), h


class TestCell:
    def test_accepts_a_custom_cell(self):
        ys = nnx.RNN(Cell(D, Summing(2), rngs=nnx.Rngs(0)))(XS)
        np.testing.assert_allclose(ys[..., 0], XS.sum(-1).cumsum(-1), atol=1e-5)

    def test_accepts_a_regularised_cell(self):
        zoneout = sequence.Zoneout(lstm_jax.LSTMCell(H))
        cell = Cell(D, zoneout, deterministic=True, rngs=nnx.Rngs(0))
        _, expected = lstm_jax.unroll(zoneout, cell.params, turned(XS))
        np.testing.assert_allclose(nnx.RNN(cell)(XS), turned(expected), atol=1e-6)

    def test_rejects_unsupported_cells(self):
        with pytest.raises(TypeError, match="cell must be a cell"):
            Cell(D, lstm_jax.LSTMCell, rngs=nnx.Rngs(0))
        with pytest.raises(TypeError, match="parameters of Summing must be a flat dict of arrays"):
            Cell(D, Summing(2, nested=True), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="'cell' cannot name a parameter"):
            Cell(D, Summing(2, names=("w", "cell")), rngs=nnx.Rngs(0))
        for name in ("params", "deterministic", "rngs"):
            with pytest.raises(ValueError, match=f"'{name}' cannot name a parameter"):
                Cell(D, Summing(2, names=("w", name)), rngs=nnx.Rngs(0))


class TestLSTM:
    lstm = LSTM(D, H, num_layers=2, rngs=nnx.Rngs(0))

    def test_equals_the_functional_layer(self):
        carry, ys = self.lstm(XS, seq_lengths=LENGTHS, return_carry=True)
        functional = lstm_jax.LSTM(H, num_layers=2)
        expected = functional.apply(self.lstm.params, turned(XS), lengths=LENGTHS)
        chex.assert_trees_all_equal((carry, turned(ys)), expected)

    def test_each_layer_is_initialised_like_a_cell(self):
        rngs = nnx.Rngs(0)
        expected = {
            f"layer_{n}": LSTMCell(size, H, rngs=rngs).params for n, size in enumerate((D, H))
        }
        chex.assert_trees_all_equal(self.lstm.params, expected)

    def test_time_major_equals_the_transposed_result(self):
        resets = jax.random.bernoulli(jax.random.key(2), 0.3, (B, T))
        ys = self.lstm(XS, resets=resets)
        zs = self.lstm(turned(XS), resets=turned(resets), time_major=True)
        np.testing.assert_array_equal(turned(zs), ys)
        assert not np.allclose(ys, self.lstm(XS))

    @pytest.mark.parametrize("how", [{}, {"reverse": True}, {"reverse": True, "keep_order": True}])
    def test_lengths_are_a_mask(self, how):
        expected = self.lstm(XS, seq_lengths=LENGTHS, return_carry=True, **how)
        given = self.lstm(XS, mask=VALID, return_carry=True, **how)
        chex.assert_trees_all_equal(given, expected)
        how |= {"time_major": True, "return_carry": True}
        carry, ys = self.lstm(turned(XS), mask=turned(VALID), **how)
        chex.assert_trees_all_equal((carry, turned(ys)), expected)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_padding_in_front_and_gaps(self, reverse):
        """Steps 2, 3 and 5 of row 0 are valid, none of row 1, and all of row 2."""
        mask = np.array([[0, 0, 1, 1, 0, 1], [0] * T, [1] * T], bool)
        spoilt = jnp.where(mask[..., None], XS, jnp.nan)
        carry, ys = self.lstm(spoilt, mask=mask, reverse=reverse, return_carry=True)
        for row, steps in enumerate([[2, 3, 5], [], range(T)]):
            part = XS[row : row + 1, np.array(steps, int)]
            last, outputs = self.lstm(part, reverse=reverse, return_carry=True)
            np.testing.assert_allclose(ys[row, np.array(steps, int)], outputs[0], atol=1e-6)
            chex.assert_trees_all_close(
                jax.tree.map(lambda a, r=row: a[r : r + 1], carry), last, atol=1e-6
            )
        assert (np.asarray(ys)[~mask] == 0).all()

    def test_continues_from_a_carry(self):
        carry, first = self.lstm(XS[:, :2], return_carry=True)
        second = self.lstm(XS[:, 2:], initial_carry=carry)
        np.testing.assert_array_equal(jnp.concatenate([first, second], 1), self.lstm(XS))

    def test_more_batch_axes_and_none(self):
        np.testing.assert_allclose(self.lstm(XS[0]), self.lstm(XS)[0], atol=1e-6)
        doubled = self.lstm(jnp.stack([XS, 2 * XS]))
        np.testing.assert_allclose(doubled[1], self.lstm(2 * XS), atol=1e-6)

    @pytest.mark.parametrize("keep_order", [False, True])
    @pytest.mark.parametrize("lengths", [LENGTHS, None])
    def test_backwards_as_in_flax(self, lengths, keep_order):
        ours = LSTM(D, H, reverse=True, keep_order=keep_order, rngs=nnx.Rngs(0))
        cell = LSTMCell(D, H, rngs=nnx.Rngs(0))
        theirs = nnx.RNN(cell, reverse=True, keep_order=keep_order, return_carry=True)
        expected, zs = theirs(XS, seq_lengths=lengths)
        carry, ys = ours(XS, seq_lengths=lengths, return_carry=True)
        valid = VALID if lengths is not None else slice(None)
        np.testing.assert_allclose(ys[valid], zs[valid], atol=1e-6)
        chex.assert_trees_all_close(carry["layer_0"], expected, atol=1e-6)
        chosen = LSTM(D, H, rngs=nnx.Rngs(0))(
            XS, seq_lengths=lengths, reverse=True, keep_order=keep_order
        )
        np.testing.assert_array_equal(chosen, ys)

    def test_both_directions_as_in_flax(self):
        ours = LSTM(D, H, bidirectional=True, merge="sum", dropout=0.5, rngs=nnx.Rngs(0))
        rngs = nnx.Rngs(0)  # each direction samples its own parameters
        one_way = [LSTM(D, H, dropout=0.5, rngs=rngs) for _ in range(2)]
        theirs = nnx.Bidirectional(*one_way, merge_fn=jnp.add, return_carry=True)
        (forward, backward), zs = theirs(XS, seq_lengths=LENGTHS)
        carry, ys = ours(XS, seq_lengths=LENGTHS, return_carry=True)
        np.testing.assert_allclose(ys, zs, atol=1e-6)
        chex.assert_trees_all_close(
            carry["layer_0"]._asdict(),
            {"forward": forward["layer_0"], "backward": backward["layer_0"]},
            atol=1e-6,
        )

    def test_layers_of_many_kinds(self):
        kinds = ("gru", functools.partial(lstm_jax.LSTMCell, forget_bias=2.0), cells.RNNCell)
        lstm = LSTM(D, (2, 3, 4), cell=kinds, connections="skip", rngs=nnx.Rngs(0))
        functional = lstm_jax.LSTM((2, 3, 4), cell=kinds, connections="skip")
        _, expected = functional.apply(lstm.params, turned(XS))
        np.testing.assert_array_equal(lstm(XS), turned(expected))
        assert lstm.layer_1.b[3] == 2.0

    def test_activations_by_their_names_in_flax(self):
        functions = {"gate_fn": "hard_sigmoid", "activation_fn": jax.nn.relu}
        lstm = LSTM(D, H, bidirectional=True, **functions, rngs=nnx.Rngs(0))
        cell = functools.partial(lstm_jax.LSTMCell, **functions)
        expected = LSTM(D, H, bidirectional=True, cell=cell, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(lstm(XS), expected(XS))
        assert not np.allclose(lstm(XS), LSTM(D, H, bidirectional=True, rngs=nnx.Rngs(0))(XS))

    def test_options_of_cells_leave_modules_equal(self):
        """A program compiled for one module also runs the other."""
        options = {"kernel_init": jax.nn.initializers.zeros, "param_dtype": "bfloat16"}
        lstm, other = (LSTM(D, H, **options, rngs=nnx.Rngs(n)) for n in range(2))
        assert nnx.graphdef(lstm) == nnx.graphdef(other)
        assert lstm.layer_0.w_ih.dtype == jnp.bfloat16
        assert not lstm.layer_0.w_ih[...].any()

    def test_grids(self):
        """The time axis comes before the axes of space."""
        xs = jax.random.normal(jax.random.key(3), (B, T, 3, 3, 2))
        lstm = LSTM(2, 4, cell="conv_lstm", rngs=nnx.Rngs(0))
        cell = ConvLSTMCell(2, 4, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(lstm(xs), nnx.RNN(cell)(xs), atol=1e-6)

    def test_contains_only_parameters(self):
        state = nnx.state(self.lstm)
        assert jax.tree.leaves(state) == jax.tree.leaves(nnx.state(self.lstm, nnx.Param))
        names = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
        assert names == {f"layer_{n}/{name}" for n in (0, 1) for name in ("w_ih", "w_hh", "b")}

    def test_mistakes_name_the_argument(self):
        with pytest.raises(
            ValueError, match=r"xs must be \[\.\.\., T, D\] with D=4.*got shape \(4,\)"
        ):
            self.lstm(jnp.zeros(D))
        with pytest.raises(ValueError, match=r"xs must be \[\.\.\., T, D\] with D=4.*\(2, 7, 5\)"):
            self.lstm(jnp.zeros((2, 7, 5)))
        with pytest.raises(
            ValueError, match=r"time and batch axes of xs, \(3, 6\), got .*\(6, 3\)"
        ):
            self.lstm(XS, resets=jnp.zeros((T, B), bool))
        with pytest.raises(
            ValueError,
            match=r"mask must have the time and batch axes of xs, \(3, 6\), got .*\(6, 3\)",
        ):
            self.lstm(XS, mask=jnp.zeros((T, B), bool))
        with pytest.raises(TypeError, match="mask must be booleans, got float32"):
            self.lstm(XS, mask=jnp.zeros((B, T)))
        with pytest.raises(ValueError, match="hidden_features must be at least 1, got 0"):
            LSTM(D, (3, 0), rngs=nnx.Rngs(0))
        with pytest.raises(TypeError, match="unexpected keyword argument 'bidirectonal'"):
            LSTM(D, H, bidirectonal=True, rngs=nnx.Rngs(0))

    def test_clones_copies_and_pickles(self):
        expected = self.lstm(XS)
        for copied in (
            nnx.clone(self.lstm),
            copy.deepcopy(self.lstm),
            pickle.loads(pickle.dumps(self.lstm)),
        ):
            np.testing.assert_array_equal(copied(XS), expected)


class TestStack:
    layer = sequence.Stack(
        {"both": sequence.Bidirectional(cells.GRUCell(2)), "top": cells.RNNCell(3)}
    )

    def test_equals_the_functional_layer(self):
        stack = Stack(D, self.layer, return_carry=True, rngs=nnx.Rngs(0))
        carry, ys = stack(XS, seq_lengths=LENGTHS)
        expected = self.layer.apply(stack.params, turned(XS), lengths=LENGTHS)
        chex.assert_trees_all_equal((carry, turned(ys)), expected)
        assert stack.both.backward.w_hh.shape == (2, 6)

    def test_its_own_directions(self):
        with pytest.raises(ValueError, match="both is Bidirectional, which has its own directions"):
            Stack(D, self.layer, rngs=nnx.Rngs(0))(XS, reverse=True)
        both = Stack(D, sequence.Bidirectional(cells.RNNCell(2)), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="reverse is for stacks of cells, got Bidirectional"):
            both(XS, reverse=True)

    def test_accepts_a_cell(self):
        stack = Stack(D, cells.RNNCell(2), rngs=nnx.Rngs(0))
        np.testing.assert_allclose(
            stack(XS), LSTM(D, 2, cell="rnn", rngs=nnx.Rngs(0))(XS), atol=1e-6
        )
        with pytest.raises(TypeError, match="layer must be a cell"):
            Stack(D, nnx.Linear(D, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))


class TestCarries:
    c, h = (jax.random.normal(jax.random.key(n), (B, H)) for n in (3, 4))
    state = lstm_jax.LSTMState(h=h, c=c)

    def test_flax_carries_are_accepted_and_returned(self):
        """The same weights, carry and call as in Flax's RNN, for one direction and for both."""
        theirs = [nnx.RNN(nnx.LSTMCell(D, H, rngs=nnx.Rngs(n)), rngs=False) for n in range(2)]
        one, both = (LSTM(D, H, bidirectional=way, rngs=nnx.Rngs(0)) for way in (False, True))
        params = [from_flax(nnx.state(rnn.cell, nnx.Param))[1] for rnn in theirs]
        nnx.update(one, {"layer_0": params[0]})
        nnx.update(both, {"layer_0": dict(zip(("forward", "backward"), params, strict=True))})
        pair = (self.c, self.h)
        for ours, other, carry in (
            (one, theirs[0], pair),
            (both, nnx.Bidirectional(*theirs), (pair, pair)),
        ):

            def run(layer, carry):
                return layer(XS, initial_carry=carry, seq_lengths=LENGTHS, return_carry=True)

            expected, zs = run(other, carry)
            found, ys = run(ours, carry)
            assert jax.tree.structure(found) == jax.tree.structure(expected)
            chex.assert_trees_all_close(found, expected, atol=1e-6)
            np.testing.assert_allclose(ys[VALID], zs[VALID], atol=1e-6)

    def test_every_form_of_a_carry_is_the_same_state(self):
        lstm = LSTM(D, H, return_carry=True, rngs=nnx.Rngs(0))
        expected, ys = lstm(XS, initial_carry={"layer_0": self.state})
        assert not np.allclose(ys, lstm(XS)[1])
        for carry, found in (
            (self.state, expected["layer_0"]),
            ((self.c, self.h), (expected["layer_0"].c, expected["layer_0"].h)),
            ({"layer_0": (self.c, self.h)}, {"layer_0": expected["layer_0"][::-1]}),
        ):
            last, zs = lstm(XS, initial_carry=carry)
            np.testing.assert_array_equal(zs, ys)
            chex.assert_trees_all_equal(last, found)
            assert jax.tree.structure(last) == jax.tree.structure(carry)  # so it can be scanned

    @pytest.mark.parametrize(("cell", "kind"), [("gru", nnx.GRUCell), ("rnn", nnx.SimpleCell)])
    def test_an_array_is_the_carry_of_a_cell_with_h_alone(self, cell, kind):
        lstm = LSTM(D, H, cell=cell, return_carry=True, rngs=nnx.Rngs(0))
        carry = kind(D, H, rngs=nnx.Rngs(0)).initialize_carry((B, D), nnx.Rngs(0)) + 0.5
        last, ys = lstm(XS, initial_carry=carry)
        expected, zs = lstm(XS, initial_carry={"layer_0": cells.RNNState(h=carry)})
        np.testing.assert_array_equal(ys, zs)
        np.testing.assert_array_equal(last, expected["layer_0"].h)

    def test_states_of_both_directions(self):
        lstm = LSTM(D, H, bidirectional=True, return_carry=True, rngs=nnx.Rngs(0))
        state = lstm_jax.sequence.BidirectionalState(forward=self.state, backward=self.state)
        expected, ys = lstm(XS, initial_carry={"layer_0": state})
        last, zs = lstm(XS, initial_carry=state)
        np.testing.assert_array_equal(ys, zs)
        chex.assert_trees_all_equal(last, expected["layer_0"])
        (forward, backward), zs = lstm(XS, initial_carry=((self.c, self.h), self.state))
        np.testing.assert_array_equal(ys, zs)
        expected = (last.forward.c, last.forward.h), last.backward
        chex.assert_trees_all_equal((forward, backward), expected)

    def test_initialize_carry_is_the_default_carry(self):
        learning = functools.partial(lstm_jax.LSTMCell, learn_initial_state=True)
        lstm = LSTM(D, H, num_layers=2, cell=("gru", learning), rngs=nnx.Rngs(0))
        lstm.layer_1.h_0[...] += 0.5
        carry = lstm.initialize_carry((B, D))
        assert jax.tree.map(jnp.shape, carry) == {
            "layer_0": cells.RNNState(h=(B, H)),
            "layer_1": lstm_jax.LSTMState(h=(B, H), c=(B, H)),
        }
        assert (carry["layer_1"].h == 0.5).all() and not carry["layer_0"].h.any()
        np.testing.assert_array_equal(lstm(XS, initial_carry=carry), lstm(XS))
        stack = Stack(D, sequence.Bidirectional(cells.RNNCell(2)), rngs=nnx.Rngs(0))
        chex.assert_trees_all_equal(
            stack.initialize_carry((7, 2, D)), stack.layer.zero_state((7, 2))
        )
        grids = LSTM(2, 4, cell="conv_lstm", rngs=nnx.Rngs(0))
        assert grids.initialize_carry((B, 3, 5, 2))["layer_0"].h.shape == (B, 3, 5, 4)

    def test_carries_by_an_initialiser_as_in_flaxs_cells(self):
        lstm, ones = LSTM(D, H, num_layers=2, rngs=nnx.Rngs(0)), jax.nn.initializers.ones
        carry = lstm.initialize_carry((B, D), nnx.Rngs(0), ones)
        assert all((leaf == 1).all() for leaf in jax.tree.leaves(carry))
        rngs = nnx.Rngs(carry=0)
        lstm.initialize_carry((B, D), rngs, jax.nn.initializers.normal())
        assert rngs.carry.count[...] == 4  # a key for each array
        with pytest.raises(ValueError, match="rngs must be given if carry_init is given"):
            lstm.initialize_carry((B, D), carry_init=ones)

    def test_errors_describe_what_to_pass(self):
        deep = LSTM(D, H, num_layers=2, rngs=nnx.Rngs(0))
        wanted = r"initial_carry must be a dict with the state of each layer, \{'layer_0': \.\.\., "
        wanted += r"'layer_1': \.\.\.\}, as initialize_carry returns it, got "
        for carry, got in (
            (self.state, "LSTMState"),
            ((self.c, self.h), "tuple"),
            ([self.state, self.state], "list"),
            ({"layer_0": self.state}, "the keys layer_0"),
        ):
            with pytest.raises(TypeError, match=wanted + got):
                deep(XS, initial_carry=carry)
        both = LSTM(D, H, bidirectional=True, rngs=nnx.Rngs(0))
        with pytest.raises(
            TypeError, match=r"BidirectionalState\(forward, backward\) or the pair .*got LSTMState"
        ):
            both(XS, initial_carry=self.state)
        with pytest.raises(TypeError, match=r"state must be LSTMState\(h, c\), got list"):
            LSTM(D, H, rngs=nnx.Rngs(0))(XS, initial_carry=[self.c, self.h])
        with pytest.raises(ValueError, match=r"state.h must have shape \(3, 5\)"):
            LSTM(D, H, rngs=nnx.Rngs(0))(XS, initial_carry=(self.c, self.h[:2]))


def step(cell, xs, **call):
    """The output of one step of a cell."""
    carry = jax.tree.map(jnp.ones_like, cell.initialize_carry(xs[:, 0].shape))
    return cell(carry, xs[:, 0], **call)[1]


def theirs_and_ours(kind, rate, **options):
    """Pairs of a module and the function that calls it: Flax's dropout first."""
    rngs = options.setdefault("rngs", nnx.Rngs(params=0))
    # Ours needs rngs for its parameters in any case; nnx.Dropout without a stream is given none.
    without = {"rngs": None} if list(rngs) == ["params"] else {}
    yield nnx.Dropout(rate, **options | without), nnx.Dropout.__call__
    thing = NOISY[kind](rate)
    yield Stack(D, thing, **options), Stack.__call__
    if hasattr(thing, "step") and not hasattr(thing, "apply"):
        yield Cell(D, thing, **options), step


def outcome(module, call, *, rngs=None, **given):
    """Which streams a call takes a key from, and whether it adds noise; or how it fails."""
    own, stream = module.rngs, rngs.dropout if isinstance(rngs, nnx.Rngs) else rngs
    streams = [one for one in (own, stream) if isinstance(one, nnx.RngStream)]
    before = [int(one.count[...]) for one in streams]
    try:
        ys = call(module, XS, rngs=rngs, **given)
    except (TypeError, ValueError) as error:
        return type(error), [word for word in ("deterministic", "rngs") if word in str(error)][:1]
    taken = [int(one.count[...]) - count for one, count in zip(streams, before, strict=True)]
    quiet = call(module, XS, deterministic=True)
    return taken, bool((ys != quiet).any())


class TestDropout:
    """Our dropout against Flax's in one position: which calls are noisy, take a key or fail."""

    @pytest.mark.parametrize("built_with", [None, False, True])
    def test_every_call_behaves_as_in_flax(self, built_with):
        streams = [{}, {"rngs": nnx.Rngs(0)}, {"rngs": nnx.Rngs(params=0, dropout=1)}]
        seen = set()
        for options in streams:
            options["deterministic"] = built_with
            (theirs, *layer), (_, _, *cell) = (
                theirs_and_ours(kind, 0.5, **options) for kind in ("dropout", "zoneout")
            )
            for deterministic in (None, False, True):
                for rngs in (
                    None,
                    nnx.Rngs(3),
                    nnx.Rngs(dropout=3),
                    nnx.RngStream(3, tag="dropout"),
                    jax.random.key(3),
                    3,
                ):
                    given = {"deterministic": deterministic, "rngs": rngs}
                    expected = outcome(*theirs, **given)
                    for one in (*layer, *cell):
                        assert outcome(*one, **given) == expected, (options, given, one)
                    seen.add(str(expected))
        assert len(seen) >= 6  # noise from either stream or a key, none, and failures

    @pytest.mark.parametrize("kind", NOISY)
    def test_every_regulariser_is_switched_like_flax_dropout(self, kind):
        for rngs, deterministic, noisy in (
            (nnx.Rngs(0), False, ([1], True)),
            (nnx.Rngs(0), True, ([0], False)),
            (nnx.Rngs(params=0), False, (ValueError, ["deterministic"])),
            (nnx.Rngs(params=0), True, ([], False)),
        ):
            for module, call in theirs_and_ours(kind, 0.5, deterministic=deterministic, rngs=rngs):
                assert outcome(module, call) == noisy, (module, deterministic)

    @pytest.mark.parametrize("kind", NOISY)
    def test_rates_of_zero_use_no_key(self, kind):
        for module, call in theirs_and_ours(kind, 0.0, rngs=nnx.Rngs(0)):
            streams = [] if module.rngs is None else [0]
            assert outcome(module, call) == (streams, False)
            assert outcome(module, call, rngs=nnx.Rngs(1)) == ([*streams, 0], False)

    def test_deterministic_is_needed_only_with_dropout(self):
        """As in Flax's attention."""
        attention = nnx.MultiHeadAttention(1, D, deterministic=None, decode=False, rngs=nnx.Rngs(0))
        attention(XS)
        LSTM(D, H, 2, deterministic=None, rngs=nnx.Rngs(0))(XS)
        # With one layer, there is no dropout between layers.
        LSTM(D, H, 1, dropout=0.5, deterministic=None, rngs=nnx.Rngs(0))(XS)

    def test_modules_without_noise_have_no_stream(self):
        for rate in (0.0, 0.5):
            for kind in ("dropout", "both_directions", "zoneout"):
                _, (stack, _), *_ = theirs_and_ours(kind, rate, rngs=nnx.Rngs(0))
                assert bool(jax.tree.leaves(nnx.state(stack, nnx.RngState))) == bool(rate)

    def test_parameters_do_not_depend_on_the_rate(self):
        noisy, quiet = (LSTM(D, H, 2, dropout=rate, rngs=nnx.Rngs(0)) for rate in (0.5, 0.0))
        chex.assert_trees_all_equal(noisy.params, quiet.params)

    def test_noise_equals_flax_dropout_between_the_layers(self):
        lstm, key = LSTM(D, H, 2, dropout=0.5, time_major=True, rngs=nnx.Rngs(0)), KEY
        lower, upper = (lstm.layer.layers[n][1] for n in range(2))
        _, ys = lstm_jax.unroll(lower, lstm.params["layer_0"], turned(XS))
        ys = nnx.Dropout(0.5)(ys, rngs=jax.random.fold_in(key, 1))
        _, ys = lstm_jax.unroll(upper, lstm.params["layer_1"], ys)
        np.testing.assert_array_equal(lstm(turned(XS), rngs=key), ys)

    def test_custom_layers_are_given_a_key(self):
        class Noise:
            hidden_size = output_size = D

            def init(self, key, input_size):
                return {}

            def zero_state(self, batch_shape=()):
                return ()

            def apply(self, params, xs, state=None, *, key=None, **rows):
                return (), xs if key is None else xs + jax.random.normal(key, xs.shape)

        stack = Stack(D, Noise(), rngs=nnx.Rngs(0))
        assert not np.allclose(stack(XS), XS)
        stack.eval()
        np.testing.assert_array_equal(stack(XS), XS)

    def test_messages(self):
        lstm = LSTM(D, H, 2, dropout=0.5, deterministic=None, rngs=nnx.Rngs(params=0))
        with pytest.raises(ValueError, match=r"deterministic must be given to LSTM or to its call"):
            lstm(XS)
        with pytest.raises(
            ValueError, match=r"rngs must have a stream 'dropout'.*deterministic is"
        ):
            lstm(XS, deterministic=False)
        with pytest.raises(TypeError, match=r"rngs must be nnx.Rngs, .* or a random key, got int"):
            lstm(XS, deterministic=False, rngs=3)


class Halved(nnx.RNNCellBase):
    """A Flax cell with dropout on its output."""

    def __init__(self, rngs):
        self.cell = nnx.SimpleCell(D, H, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, carry, x):
        carry, y = self.cell(carry, x)
        return carry, self.dropout(y)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], H))

    num_feature_axes = 1


def halved(rngs):
    """The same with our cell."""
    cell = sequence.VariationalDropout(cells.RNNCell(H), 0.0, 0.0, output_rate=0.5)
    return Cell(D, cell, rngs=rngs)


class SideBySide(nnx.Module):
    """Flax's dropout and ours in one model: as layers, and inside cells of Flax's RNN."""

    def __init__(self, rngs, **rnn):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.lstm = LSTM(D, H, 2, cell="rnn", dropout=0.5, rngs=rngs)
        self.theirs = nnx.RNN(Halved(rngs), **rnn)
        self.ours = nnx.RNN(halved(rngs), **rnn)

    def __call__(self, xs):
        return {
            "dropout": self.dropout(xs),
            "lstm": self.lstm(xs),
            "theirs": self.theirs(xs),
            "ours": self.ours(xs),
        }

    def counts(self):
        """How often each of the four took a key."""
        streams = (self.dropout, self.lstm, self.theirs.cell.dropout, self.ours.cell)
        return [int(one.rngs.count[...].max()) for one in streams]


def differ(one, other):
    return {name: bool((ys != other[name]).any()) for name, ys in one.items()}


ALL, NONE = ({name: on for name in ("dropout", "lstm", "theirs", "ours")} for on in (True, False))


class TestDropoutBesideFlaxs:
    @pytest.mark.skipif(not hasattr(nnx, "view"), reason="flax before nnx.view")
    def test_train_eval_view_and_set_attributes(self):
        model = SideBySide(nnx.Rngs(0))
        assert differ(model(XS), model(XS)) == ALL
        model.eval()
        assert differ(model(XS), model(XS)) == NONE
        assert model.counts() == [2, 2, 2 * T, 2 * T]
        noisy = nnx.view(model, deterministic=False)
        assert differ(noisy(XS), noisy(XS)) == ALL
        assert differ(model(XS), model(XS)) == NONE
        model.train()
        assert differ(model(XS), model(XS)) == ALL
        model.set_attributes(deterministic=True)
        assert differ(model(XS), model(XS)) == NONE
        model.set_attributes(nnx.Any(nnx.Dropout, LSTM, Cell), deterministic=None)
        for layer in (model.dropout, model.lstm, model.theirs, model.ours):
            with pytest.raises(ValueError, match="deterministic"):
                layer(XS)
        assert nnx.view_info(model).count("deterministic: bool | None = None") == 3

    def test_jit_and_grad(self):
        @nnx.jit
        def train(model):
            def loss(model):
                ys = model(XS)
                return sum((y**2).sum() for y in ys.values()), ys

            return nnx.grad(loss, has_aux=True)(model)

        model, eager = SideBySide(nnx.Rngs(0)), SideBySide(nnx.Rngs(0))
        gradient, first = train(model)
        _, second = train(model)
        assert differ(first, second) == ALL
        assert model.counts() == [2, 2, 2 * T, 2 * T]
        chex.assert_trees_all_close(first, eager(XS), atol=1e-6)
        chex.assert_trees_all_close(second, eager(XS), atol=1e-6)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        model.eval()
        assert differ(train(model)[1], train(model)[1]) == NONE

    def test_split_and_merge(self):
        model = SideBySide(nnx.Rngs(0))
        graph, params, streams = nnx.split(model, nnx.Param, nnx.RngState)
        assert len(jax.tree.leaves(streams)) == 2 * 6  # of four dropouts and two nnx.RNN

        @jax.jit
        def pure(params, streams):
            merged = nnx.merge(graph, params, streams)
            return merged(XS), nnx.state(merged, nnx.RngState)

        first, streams = pure(params, streams)
        second, _ = pure(params, streams)
        assert differ(first, second) == ALL
        chex.assert_trees_all_close(first, model(XS), atol=1e-6)
        chex.assert_trees_all_close(second, model(XS), atol=1e-6)

    def test_vmap(self):
        """Members have separate noise if streams are split, and separate streams if created so."""

        class Layers(nnx.Module):
            def __init__(self, rngs):
                self.dropout = nnx.Dropout(0.5, rngs=rngs)
                # Zeros, since the orthogonal ones are slow to compile under vmap.
                zeros = jax.nn.initializers.zeros
                self.lstm = LSTM(
                    D, H, 2, cell="rnn", dropout=0.5, recurrent_kernel_init=zeros, rngs=rngs
                )

            def __call__(self, xs):
                return self.dropout(xs), self.lstm(xs)

        @nnx.jit
        def ensemble():
            model = nnx.split_rngs(splits=2)(nnx.vmap(Layers))(nnx.Rngs(0))
            return model, nnx.vmap(lambda model: model(XS))(model)

        model, ys = ensemble()
        chex.assert_tree_shape_prefix(ys, (2, B, T))
        for layer in (model.dropout, model.lstm):
            assert layer.rngs.count[...].tolist() == [1, 1]
            assert layer.rngs.key[0] != layer.rngs.key[1]

        one = Layers(nnx.Rngs(0))
        axes = nnx.StateAxes({nnx.RngState: 0, ...: None})
        run = nnx.vmap(lambda model, xs: model(xs), in_axes=(axes, None), axis_size=2)
        for y in nnx.jit(nnx.split_rngs(splits=2)(run))(one, XS):
            assert (y[0] != y[1]).any()

    @pytest.mark.parametrize("whole", [False, True])
    def test_each_step_or_the_whole_sequence_has_a_mask(self, whole):
        options = {"broadcast_rngs": "dropout"} if whole else {}
        model = SideBySide(nnx.Rngs(params=0, dropout=1), **options)
        ys = model(XS)
        for name in ("theirs", "ours"):
            dropped = np.asarray(ys[name] == 0)
            assert 0.3 < dropped.mean() < 0.7
            assert (dropped == dropped[:, :1]).all() == whole
        assert differ(ys, model(XS)) == ALL
        *_, theirs, ours = model.counts()
        assert theirs == ours

    def test_both_directions(self):
        for cell in (Halved, halved):
            model = nnx.Bidirectional(nnx.RNN(cell(nnx.Rngs(0))), nnx.RNN(cell(nnx.Rngs(1))))
            assert (model(XS) != model(XS)).any()
            model.eval()
            np.testing.assert_array_equal(model(XS), model(XS))

    def test_layers_in_both_directions_use_their_own_streams(self):
        """They do not use the stream for carries that Flax's Bidirectional passes to its layers."""
        lstms = [LSTM(D, H, 2, dropout=0.5, rngs=nnx.Rngs(n)) for n in range(2)]
        model = nnx.Bidirectional(*lstms)
        assert (model(XS) != model(XS)).any()
        assert [int(lstm.rngs.count[...]) for lstm in lstms] == [2, 2]
        model(XS, rngs=nnx.Rngs(carry=0))
        assert [int(lstm.rngs.count[...]) for lstm in lstms] == [3, 3]
        model.eval()
        np.testing.assert_array_equal(model(XS), model(XS))

    def test_every_step_of_a_cell_uses_one_key(self):
        """Zoneout in Flax's RNN equals its equations with masks from the keys of the stream."""
        zoneout = sequence.Zoneout(cells.RNNCell(H), 0.5, 0.0)
        cell = Cell(D, zoneout, rngs=nnx.Rngs(0))
        stream, h, expected = nnx.clone(cell.rngs), jnp.zeros((B, H)), []
        for x in turned(XS):
            state, _ = cells.RNNCell(H).step(cell.params, cells.RNNState(h=h), x)
            kept = jax.random.bernoulli(jax.random.split(stream(), 3)[0], 0.5, (1, B, H))[0]
            h = jnp.where(kept, h, state.h)
            expected.append(h)
        np.testing.assert_allclose(nnx.RNN(cell)(XS), jnp.stack(expected, 1), atol=1e-6)


class TestTransforms:
    def test_jit_and_optimizer(self):
        lstm = LSTM(D, H, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(lstm, optax.sgd(0.1), wrt=nnx.Param)
        traces = []

        @nnx.jit
        def step(lstm, optimizer):
            traces.append(1)
            loss, grads = nnx.value_and_grad(lambda lstm: (lstm(XS) ** 2).mean())(lstm)
            optimizer.update(lstm, grads)
            return loss

        losses = [float(step(lstm, optimizer)) for _ in range(5)]
        assert losses == sorted(losses, reverse=True)
        assert len(traces) == 1

    def test_split_and_merge(self):
        graph, state = nnx.split(TestLSTM.lstm)
        np.testing.assert_array_equal(nnx.merge(graph, state)(XS), TestLSTM.lstm(XS))

    def test_an_ensemble_and_a_scan_over_layers(self):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return LSTM(D, D, rngs=rngs)

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def upwards(layer, ys):
            return layer(ys)

        ensemble = make(nnx.Rngs(0))
        graph, state = nnx.split(ensemble)
        each = [nnx.merge(graph, jax.tree.map(lambda leaf, n=n: leaf[n], state)) for n in range(3)]
        ys = nnx.vmap(lambda lstm: lstm(XS))(ensemble)
        for y, lstm in zip(ys, each, strict=True):
            np.testing.assert_allclose(y, lstm(XS), atol=1e-6)
        assert not np.allclose(ys[0], ys[1])
        expected = functools.reduce(lambda xs, lstm: lstm(xs), each, XS)
        np.testing.assert_allclose(upwards(ensemble, XS), expected, atol=1e-6)

    def test_cells_in_flax_rnns(self):
        """An ensemble of ``nnx.RNN``, and a scan over cells as layers."""

        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return LSTMCell(D, D, learn_initial_state=True, rngs=rngs)

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def upwards(cell, ys):
            return nnx.RNN(cell)(ys)

        cells = make(nnx.Rngs(0))
        each = [LSTM(D, D, rngs=nnx.Rngs(0)) for _ in range(3)]
        for n, lstm in enumerate(each):
            for name in ("w_ih", "w_hh", "b"):  # h_0 and c_0 are initially zero
                getattr(lstm.layer_0, name)[...] = getattr(cells, name)[n]
        ys = nnx.vmap(lambda cell: nnx.RNN(cell)(XS))(cells)
        for y, lstm in zip(ys, each, strict=True):
            np.testing.assert_allclose(y, lstm(XS), atol=1e-6)
        expected = functools.reduce(lambda xs, lstm: lstm(xs), each, XS)
        np.testing.assert_allclose(upwards(cells, XS), expected, atol=1e-6)

    def test_a_checkpoint(self, tmp_path):
        ocp = pytest.importorskip("orbax.checkpoint")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "lstm", nnx.state(TestLSTM.lstm))
            checkpointer.wait_until_finished()
            like = nnx.eval_shape(lambda: LSTM(D, H, num_layers=2, rngs=nnx.Rngs(1)))
            graph, state = nnx.split(like)
            state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
            restored = nnx.merge(graph, checkpointer.restore(tmp_path / "lstm", state))
        np.testing.assert_array_equal(restored(XS), TestLSTM.lstm(XS))


class TestMetadata:
    def test_reaches_the_parameters_of_each_initialiser(self):
        init = nnx.with_metadata(jax.nn.initializers.ones, drawn_by="mine")
        lstm = LSTM(
            D,
            H,
            bidirectional=True,
            kernel_init=init,
            recurrent_kernel_metadata={"tag": "recurrent"},
            bias_metadata={"tag": "bias"},
            rngs=nnx.Rngs(0),
        )
        w_ih, w_hh, b = (getattr(lstm.layer_0.backward, name) for name in ("w_ih", "w_hh", "b"))
        assert (w_ih.drawn_by, w_hh.tag, b.tag) == ("mine", "recurrent", "bias")
        assert w_ih.shape == (D, 4 * H) and w_ih[...].all()
        plain = LSTM(D, H, bidirectional=True, rngs=nnx.Rngs(0)).layer_0.backward
        np.testing.assert_array_equal(w_hh[...], plain.w_hh[...])

    def test_of_cells(self):
        cell = GRUCell(D, H, reset_after=True, bias_metadata={"tag": "bias"}, rngs=nnx.Rngs(0))
        assert cell.b.tag == cell.b_hg.tag == "bias"
        assert not hasattr(cell.w_ih, "tag")

    def test_of_a_custom_cell(self):
        @dataclasses.dataclass(frozen=True)
        class WithoutARole(lstm_jax.RNNCell):
            gate_init: cells.base.Initializer = jax.nn.initializers.ones

            def parameters(self, input_size):
                w_ih = cells.Parameter(self.kernel_init, (input_size, H))
                own = self.declare("gate", (2 * H,), gates=2)
                return super().parameters(input_size) | {"w_ih": w_ih, "own": own}

        tagged = nnx.with_metadata(jax.nn.initializers.ones, tag="box")
        functional = WithoutARole(H, kernel_init=tagged, bias_init=tagged, gate_init=tagged)
        cell = Cell(D, functional, kernel_metadata={"by": "kernel_init"}, rngs=nnx.Rngs(0))
        assert cell.b.tag == cell.own.tag == "box" and cell.own.shape == (2 * H,)
        assert not hasattr(cell.w_ih, "tag") and not hasattr(cell.w_ih, "by")
        assert cell.w_ih[...].all()

    def test_a_sharded_step_gives_the_same_numbers(self):
        def make(across=lambda init, axes: init):
            return LSTM(
                D,
                6,
                kernel_init=across(cells.base.lecun_normal, (None, "model")),
                recurrent_kernel_init=across(cells.base.orthogonal, (None, "model")),
                bias_init=across(cells.base.zeros, ("model",)),
                rngs=nnx.Rngs(0),
            )

        @nnx.jit
        def step(lstm, xs):
            return nnx.value_and_grad(lambda lstm: (lstm(xs) ** 2).sum())(lstm)

        expected = step(make(), XS)
        mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
        with jax.set_mesh(mesh):
            sharded = make(nnx.with_partitioning)
            specs = nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(sharded)))
            assert specs["layer_0"] == {
                "w_ih": PartitionSpec(None, "model"),
                "w_hh": PartitionSpec(None, "model"),
                "b": PartitionSpec("model"),
            }
            assert sharded.layer_0.w_ih[...].sharding.shard_shape((D, 24)) == (D, 12)
            loss, gradients = step(sharded, XS)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
        chex.assert_trees_all_close(
            *(jax.device_get(nnx.to_pure_dict(g)) for g in (gradients, expected[1])), atol=1e-5
        )
