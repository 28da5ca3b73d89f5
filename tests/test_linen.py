import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn
from jax.sharding import PartitionSpec

import lstm_jax
import lstm_jax.nnx
from lstm_jax import cells, sequence
from lstm_jax.interop import from_flax
from lstm_jax.linen import LSTM, Cell, GRUCell, LSTMCell, OdysseyLSTMCell, Stack
from tests import oracle
from tests.noisy import NOISY

B, T, D, H = 3, 6, 4, 5
KEY = jax.random.key(0)
XS = jax.random.normal(jax.random.key(1), (B, T, D))
LENGTHS = jnp.array([6, 4, 1])
VALID = np.arange(T) < np.asarray(LENGTHS)[:, None]


def turned(xs):
    """Batch-major from time-major, and back."""
    return xs.swapaxes(0, 1)


class TestCells:
    rnn = nn.RNN(LSTMCell(H))
    variables = rnn.init(KEY, XS)

    def test_in_flax_rnn_equals_the_numpy_loop(self):
        params = self.variables["params"]["cell"]
        carry, ys = self.rnn.apply(
            self.variables, turned(XS), seq_lengths=LENGTHS, time_major=True, return_carry=True
        )
        h, c, expected = oracle.lstm(params, turned(XS), lengths=LENGTHS)
        np.testing.assert_allclose(carry.h, h, atol=3e-6)
        np.testing.assert_allclose(carry.c, c, atol=3e-6)
        np.testing.assert_allclose(turned(ys)[VALID], turned(expected)[VALID], atol=3e-6)

    def test_initialises_each_gate_separately(self):
        params = self.variables["params"]["cell"]
        for gate in jnp.split(params["w_hh"], 4, -1):
            np.testing.assert_allclose(gate @ gate.T, jnp.eye(H), atol=1e-5)
        assert params["b"].tolist() == [0.0] * 4 * H
        keyed = nn.RNN(LSTMCell(H)).init(jax.random.key(7), XS)["params"]["cell"]
        assert not np.allclose(keyed["w_ih"], params["w_ih"])

    def test_options_equal_those_of_the_functional_cell(self):
        cell = LSTMCell(H, forget_bias=3.0, cell_clip=0.5, dtype="bfloat16")
        assert cell.cell == lstm_jax.LSTMCell(H, forget_bias=3.0, cell_clip=0.5, dtype="bfloat16")
        assert GRUCell(H) == GRUCell(H) != GRUCell(H, reset_after=True)

    def test_signatures_show_the_options(self):
        parameters = inspect.signature(OdysseyLSTMCell).parameters
        assert list(parameters)[:2] == ["features", "variant"]
        assert parameters["variant"].default is inspect.Parameter.empty
        assert parameters["cell_clip"].default is None
        assert "carry_init" in parameters

    def test_an_unknown_keyword_is_named(self):
        with pytest.raises(TypeError, match="unexpected keyword argument 'forget'"):
            GRUCell(H, forget=1.0)

    def test_options_are_checked_in_the_constructor(self):
        with pytest.raises(ValueError, match="features must be at least 1, got 0"):
            GRUCell(0)
        with pytest.raises(ValueError, match="cell_clip must be above 0, got -1"):
            LSTMCell(H, cell_clip=-1.0)

    def test_a_missing_or_wrong_parameter_is_named(self):
        for params, error in (
            ({"w_ih": jnp.zeros((D, 4 * H))}, errors.ScopeParamNotFoundError),
            (LSTMCell(H + 1).cell.init(KEY, D), errors.ScopeParamShapeError),
        ):
            with pytest.raises(error, match='"b"'):
                self.rnn.apply({"params": {"cell": params}}, XS)

    def test_first_carries_are_sampled_on_request(self):
        normal = jax.nn.initializers.normal(1.0)
        drawn = LSTMCell(H, carry_init=normal).initialize_carry(KEY, (B, D))
        assert not np.array_equal(drawn.h, drawn.c)
        module = nn.RNN(LSTMCell(H, carry_init=jax.nn.initializers.ones))
        ones = jax.tree.map(jnp.ones_like, LSTMCell(H).cell.zero_state((B,)))
        np.testing.assert_allclose(
            module.apply(self.variables, XS),
            self.rnn.apply(self.variables, XS, initial_carry=ones),
            atol=1e-6,
        )

    @pytest.mark.parametrize("name", ["lstm", "slstm"])
    def test_a_learned_first_carry_is_the_one_that_flax_uses(self, name):
        functional = lstm_jax.CELLS[name](hidden_size=H, learn_initial_state=True)
        rnn = nn.RNN(Cell(functional))
        ys, variables = rnn.init_with_output(KEY, XS)
        params = variables["params"]["cell"]
        _, drawn = lstm_jax.unroll(functional, params, turned(XS))
        np.testing.assert_allclose(ys, turned(drawn), atol=1e-6)
        params = {**params, "h_0": jnp.linspace(-1.0, 1.0, H)}

        @jax.grad
        def gradient(params):
            return (rnn.apply({"params": {"cell": params}}, XS) ** 2).sum()

        @jax.grad
        def expected(params):
            return (lstm_jax.unroll(functional, params, turned(XS))[1] ** 2).sum()

        gradients = gradient(params)
        chex.assert_trees_all_close(gradients, expected(params), atol=1e-5, rtol=1e-5)
        assert abs(gradients["h_0"]).min() > 0

    def test_a_learned_first_carry_outside_of_flax_rnn(self):
        cell = LSTMCell(H, learn_initial_state=True)
        with pytest.raises(ValueError, match="only available inside apply"):
            cell.initialize_carry(KEY, (B, D))
        params = {**cell.cell.init(KEY, D), "h_0": jnp.arange(float(H))}
        carry = cell.apply({"params": params}, KEY, (B, D), method="initialize_carry")
        assert carry.h.tolist() == [list(range(H))] * B

    def test_a_carry_is_learned_or_sampled(self):
        with pytest.raises(ValueError, match="carry_init must be None if learn_initial_state"):
            LSTMCell(H, learn_initial_state=True, carry_init=jax.nn.initializers.ones)

    def test_inside_a_custom_module(self):
        """The cell is created in the module's call and called step by step."""

        class Loop(nn.Module):
            @nn.compact
            def __call__(self, xs):
                cell = LSTMCell(H, learn_initial_state=True)
                carry, ys = cell.initialize_carry(KEY, xs[:, 0].shape), []
                for t in range(xs.shape[1]):
                    carry, y = cell(carry, xs[:, t])
                    ys.append(y)
                return jnp.stack(ys, 1)

        ys, variables = Loop().init_with_output(KEY, XS[:, :2])
        params = variables["params"]["LSTMCell_0"]
        cell = lstm_jax.LSTMCell(H, learn_initial_state=True)
        _, expected = lstm_jax.unroll(cell, params, turned(XS[:, :2]))
        np.testing.assert_allclose(ys, turned(expected), atol=1e-6)


class TestCell:
    def test_accepts_a_regularised_cell(self):
        zoneout = sequence.Zoneout(lstm_jax.LSTMCell(H))
        variables = TestCells.variables
        ys = nn.RNN(Cell(zoneout, deterministic=True)).apply(variables, XS)
        _, expected = lstm_jax.unroll(zoneout, variables["params"]["cell"], turned(XS))
        np.testing.assert_allclose(ys, turned(expected), atol=1e-6)

    def test_rejects_unsupported_cells(self):
        @dataclasses.dataclass(frozen=True)
        class Nested(cells.RNNCell):
            def init(self, key, input_size):
                return {"inner": super().init(key, input_size)}

        with pytest.raises(TypeError, match="cell must be a cell"):
            Cell(lstm_jax.LSTMCell)
        with pytest.raises(TypeError, match="parameters of Nested must be a flat dict of arrays"):
            nn.RNN(Cell(Nested(H))).init(KEY, XS)


class TestLSTM:
    lstm = LSTM(H, num_layers=2)
    variables = lstm.init(KEY, XS)

    def test_equals_the_functional_layer(self):
        carry, ys = self.lstm.apply(self.variables, XS, seq_lengths=LENGTHS, return_carry=True)
        functional = lstm_jax.LSTM(H, num_layers=2)
        expected = functional.apply(self.variables["params"], turned(XS), lengths=LENGTHS)
        chex.assert_trees_all_equal((carry, turned(ys)), expected)

    def test_parameters_equal_those_of_the_nnx_module(self):
        """Parameters of one module can be used in the other."""
        shapes = jax.tree.map(jnp.shape, self.variables)
        theirs = lstm_jax.nnx.LSTM(D, H, num_layers=2, rngs=lstm_jax.nnx.nnx.Rngs(0))
        assert shapes == {"params": jax.tree.map(jnp.shape, theirs.params)}

    def test_time_major_equals_the_transposed_result(self):
        resets = jax.random.bernoulli(jax.random.key(2), 0.3, (B, T))
        ys = self.lstm.apply(self.variables, XS, resets=resets)
        zs = LSTM(H, num_layers=2, time_major=True).apply(
            self.variables, turned(XS), resets=turned(resets)
        )
        np.testing.assert_array_equal(turned(zs), ys)

    @pytest.mark.parametrize("how", [{}, {"reverse": True}, {"reverse": True, "keep_order": True}])
    def test_lengths_are_a_mask(self, how):
        how |= {"return_carry": True}
        expected = self.lstm.apply(self.variables, XS, seq_lengths=LENGTHS, **how)
        given = self.lstm.apply(self.variables, XS, mask=VALID, **how)
        chex.assert_trees_all_equal(given, expected)
        how |= {"time_major": True}
        carry, ys = self.lstm.apply(self.variables, turned(XS), mask=turned(VALID), **how)
        chex.assert_trees_all_equal((carry, turned(ys)), expected)

    @pytest.mark.parametrize("keep_order", [False, True])
    @pytest.mark.parametrize("lengths", [LENGTHS, None])
    def test_backwards_as_in_flax(self, lengths, keep_order):
        options = {"reverse": True, "keep_order": keep_order, "return_carry": True}
        variables = TestCells.variables
        expected, zs = nn.RNN(LSTMCell(H), **options).apply(variables, XS, seq_lengths=lengths)
        variables = {"params": {"layer_0": variables["params"]["cell"]}}
        carry, ys = LSTM(H, **options).apply(variables, XS, seq_lengths=lengths)
        valid = VALID if lengths is not None else slice(None)
        np.testing.assert_allclose(ys[valid], zs[valid], atol=1e-6)
        chex.assert_trees_all_close(carry["layer_0"], expected, atol=1e-6)
        np.testing.assert_array_equal(
            LSTM(H).apply(variables, XS, seq_lengths=lengths, **options)[1], ys
        )

    def test_both_directions_as_in_flax(self):
        ours = LSTM(H, bidirectional=True, merge="sum", dropout=0.5)
        variables = ours.init(KEY, XS)
        theirs = nn.Bidirectional(LSTM(H), LSTM(H), merge_fn=jnp.add)
        zs = theirs.apply(
            {
                "params": {
                    f"{way}_rnn": {"layer_0": params}
                    for way, params in variables["params"]["layer_0"].items()
                }
            },
            XS,
            seq_lengths=LENGTHS,
        )
        ys = ours.apply(variables, XS, seq_lengths=LENGTHS)
        np.testing.assert_allclose(ys, zs, atol=1e-6)

    def test_layers_of_many_kinds(self):
        kinds = ("gru", functools.partial(lstm_jax.LSTMCell, forget_bias=2.0), cells.RNNCell)
        ys, variables = LSTM(
            (2, 3, 4), cell=kinds, connections="skip", bias_init=jax.nn.initializers.ones
        ).init_with_output(KEY, XS)
        functional = lstm_jax.LSTM((2, 3, 4), cell=kinds, connections="skip")
        _, expected = functional.apply(variables["params"], turned(XS))
        np.testing.assert_array_equal(ys, turned(expected))
        assert variables["params"]["layer_1"]["b"][3] == 3.0

    def test_activations_by_their_names_in_flax(self):
        functions = {"gate_fn": "hard_sigmoid", "activation_fn": jax.nn.relu}
        expected = LSTM(H, 2, cell=functools.partial(lstm_jax.LSTMCell, **functions))
        ys = LSTM(H, 2, **functions).apply(self.variables, XS)
        np.testing.assert_array_equal(ys, expected.apply(self.variables, XS))
        assert not np.allclose(ys, self.lstm.apply(self.variables, XS))

    def test_mistakes_name_the_argument(self):
        with pytest.raises(ValueError, match=r"xs must be \[\.\.\., T, D\], got shape \(4,\)"):
            self.lstm.apply(self.variables, jnp.zeros(D))
        with pytest.raises(ValueError, match="features must be at least 1, got 0"):
            LSTM((3, 0))
        with pytest.raises(ValueError, match=r"cell must be one of lstm,.*got 'lsmt'"):
            LSTM(3, cell="lsmt")


def test_a_stack_equals_the_functional_layer():
    layer = sequence.Stack(
        {"both": sequence.Bidirectional(cells.GRUCell(2)), "top": cells.RNNCell(3)}
    )
    (carry, ys), variables = Stack(layer, return_carry=True).init_with_output(KEY, XS)
    expected = layer.apply(variables["params"], turned(XS))
    chex.assert_trees_all_equal((carry, turned(ys)), expected)
    with pytest.raises(TypeError, match="layer must be a cell"):
        Stack(nn.Dense(3))


class TestCarries:
    c, h = (jax.random.normal(jax.random.key(n), (B, H)) for n in (3, 4))

    def test_flax_carries_are_accepted_and_returned(self):
        """The same weights, carry and call as in Flax's RNN, for one direction and for both."""
        rnns = [nn.RNN(nn.LSTMCell(H)) for _ in range(2)]
        pair = (self.c, self.h)
        for ours, other, carry, place in (
            (LSTM(H), rnns[0], pair, ("cell",)),
            (LSTM(H, bidirectional=True), nn.Bidirectional(*rnns), (pair, pair), None),
        ):
            options = {"initial_carry": carry, "seq_lengths": LENGTHS, "return_carry": True}
            (expected, zs), variables = other.init_with_output(KEY, XS, **options)
            theirs = variables["params"]
            params = (
                from_flax(theirs["cell"])[1]
                if place
                else {
                    way: from_flax(theirs[f"{way}_rnn"]["cell"])[1]
                    for way in ("forward", "backward")
                }
            )
            found, ys = ours.apply({"params": {"layer_0": params}}, XS, **options)
            assert jax.tree.structure(found) == jax.tree.structure(expected)
            chex.assert_trees_all_close(found, expected, atol=1e-6)
            np.testing.assert_allclose(ys[VALID], zs[VALID], atol=1e-6)

    def test_initialize_carry_is_the_default_carry(self):
        lstm, variables = TestLSTM.lstm, TestLSTM.variables
        carry = lstm.initialize_carry(KEY, (B, D))
        chex.assert_trees_all_equal(carry, lstm.functional.zero_state((B,)))
        np.testing.assert_array_equal(
            lstm.apply(variables, XS, initial_carry=carry), lstm.apply(variables, XS)
        )
        stack = Stack(sequence.Bidirectional(cells.RNNCell(2)))
        chex.assert_trees_all_equal(
            stack.initialize_carry(KEY, (7, 2, D)), stack.functional.zero_state((7, 2))
        )

    def test_a_learned_one(self):
        learning = functools.partial(lstm_jax.LSTMCell, learn_initial_state=True)
        lstm = LSTM(H, num_layers=2, cell=("gru", learning))
        variables = lstm.init(KEY, XS)
        variables["params"]["layer_1"]["h_0"] += 0.5
        with pytest.raises(ValueError, match=r"only available inside apply: module\.apply"):
            lstm.initialize_carry(KEY, (B, D))
        carry = lstm.apply(variables, KEY, (B, D), method="initialize_carry")
        assert (carry["layer_1"].h == 0.5).all() and not carry["layer_0"].h.any()
        np.testing.assert_array_equal(
            lstm.apply(variables, XS, initial_carry=carry), lstm.apply(variables, XS)
        )

    def test_errors_describe_what_to_pass(self):
        with pytest.raises(TypeError, match=r"initial_carry must be a dict .*, got LSTMState"):
            TestLSTM.lstm.apply(
                TestLSTM.variables, XS, initial_carry=lstm_jax.LSTMState(h=self.h, c=self.c)
            )


def modules(kind, rate, **options):
    """Pairs of a module and the arguments of a call: Flax's dropout first."""
    yield nn.Dropout(rate, **options), (XS,)
    thing = NOISY[kind](rate)
    yield Stack(thing, **options), (XS,)
    if not hasattr(thing, "apply"):
        carry = jax.tree.map(jnp.ones_like, thing.zero_state((B,)))
        yield Cell(thing, **options), (carry, XS[:, 0])


def output(result):
    return result[1] if isinstance(result, tuple) else result


def outcome(module, args, rngs, **given):
    """Whether a call adds noise, or how it fails; initialised first with the same streams."""
    variables = module.copy(deterministic=True).init({"params": KEY, "dropout": KEY}, *args)
    results = []
    for call in (
        lambda: module.init_with_output({"params": KEY} | rngs, *args, **given)[0],
        lambda: module.apply(variables, *args, rngs=rngs, **given),
    ):
        try:
            ys = output(call())
        except (ValueError, errors.InvalidRngError) as error:
            results.append((type(error), "deterministic" in str(error), "dropout" in str(error)))
        else:
            quiet = module.copy(deterministic=True).apply(variables, *args)
            results.append(bool((ys != output(quiet)).any()))
    return results


class TestDropout:
    """Our dropout against Flax's in the same position: which calls are noisy or fail."""

    @pytest.mark.parametrize("built_with", [None, False, True])
    def test_every_call_behaves_as_in_flax(self, built_with):
        (theirs, *layer), (_, _, *cell) = (
            modules(kind, 0.5, deterministic=built_with) for kind in ("dropout", "zoneout")
        )
        seen = set()
        for called_with in (None, False, True):
            for rngs in ({}, {"dropout": KEY}, {"params": KEY}, {"other": KEY}):
                for rng in (None, jax.random.key(3)):
                    given = {"rngs": rngs, "deterministic": called_with, "rng": rng}
                    expected = outcome(*theirs, **given)
                    for one in (*layer, *cell):
                        assert outcome(*one, **given) == expected, (given, one)
                    seen.add(str(expected))
        assert len(seen) >= {True: 2, False: 3, None: 4}[built_with]  # noise, none, failures

    @pytest.mark.parametrize("kind", NOISY)
    def test_every_regulariser_is_switched_like_flax_dropout(self, kind):
        for deterministic, rngs, noisy in (
            (False, {"dropout": KEY}, [True, True]),
            (True, {"dropout": KEY}, [False, False]),
            (False, {}, [True, (errors.InvalidRngError, False, True)]),
        ):
            for module, args in modules(kind, 0.5, deterministic=deterministic):
                assert outcome(module, args, rngs) == noisy, (module, deterministic)

    @pytest.mark.parametrize("kind", NOISY)
    def test_rates_of_zero_need_no_stream(self, kind):
        """As in Flax's attention."""
        nn.MultiHeadDotProductAttention(1).init(KEY, XS)
        _, *ours = modules(kind, 0.0)
        for module, args in ours:
            assert outcome(module, args, {}) == [False, False]
        LSTM(H, 1, dropout=0.5).init(KEY, XS)  # no dropout between layers

    def test_noise_equals_flax_dropout_between_the_layers(self):
        lstm, key = LSTM(H, 2, dropout=0.5, time_major=True, deterministic=False), jax.random.key(3)
        params = TestLSTM.variables["params"]
        lower, upper = (layer for _, layer in lstm.functional.layers)
        _, ys = lstm_jax.unroll(lower, params["layer_0"], turned(XS))
        ys = nn.Dropout(0.5, deterministic=False).apply({}, ys, rng=jax.random.fold_in(key, 1))
        _, ys = lstm_jax.unroll(upper, params["layer_1"], ys)
        np.testing.assert_array_equal(lstm.apply({"params": params}, turned(XS), rng=key), ys)
        rngs = {"dropout": key}
        first, again = (lstm.apply({"params": params}, turned(XS), rngs=rngs) for _ in range(2))
        np.testing.assert_array_equal(first, again)


class Halved(nn.RNNCellBase):
    """A Flax cell with dropout on its output."""

    deterministic: bool | None = None

    @nn.compact
    def __call__(self, carry, x):
        carry, y = nn.SimpleCell(H)(carry, x)
        return carry, nn.Dropout(0.5, deterministic=self.deterministic)(y)

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], H))

    num_feature_axes = 1


def halved(deterministic=None):
    """The same with our cell."""
    cell = sequence.VariationalDropout(cells.RNNCell(H), 0.0, 0.0, output_rate=0.5)
    return Cell(cell, deterministic=deterministic)


class TestDropoutInFlaxsModules:
    @pytest.mark.parametrize("cell", [Halved, halved])
    def test_streams_are_split_as_in_flax(self, cell):
        rngs = {"dropout": jax.random.key(3)}
        variables = nn.RNN(cell(deterministic=True)).init(KEY, XS)
        for split, whole in ((True, False), (False, True)):
            rnn = nn.RNN(cell(deterministic=False), split_rngs={"params": False, "dropout": split})
            dropped = np.asarray(rnn.apply(variables, XS, rngs=rngs) == 0)
            assert 0.3 < dropped.mean() < 0.7
            assert (dropped == dropped[:, :1]).all() == whole
        with pytest.raises(errors.InvalidRngError, match="dropout"):
            nn.RNN(cell(deterministic=False)).apply(variables, XS, rngs=rngs)
        with pytest.raises(ValueError, match="deterministic"):
            nn.RNN(cell()).apply(variables, XS, rngs=rngs)
        quiet = nn.RNN(cell(deterministic=True))
        np.testing.assert_array_equal(
            quiet.apply(variables, XS), quiet.apply(variables, XS, rngs=rngs)
        )

    @pytest.mark.parametrize("cell", [Halved, halved])
    def test_both_directions(self, cell):
        split = {"params": False, "dropout": True}
        rnns = (nn.RNN(cell(deterministic=False), split_rngs=split) for _ in range(2))
        model = nn.Bidirectional(*rnns)
        variables = model.init({"params": KEY, "dropout": KEY}, XS)
        first, second = (
            model.apply(variables, XS, rngs={"dropout": jax.random.key(n)}) for n in range(2)
        )
        dropped = np.asarray(first == 0)
        assert (dropped != np.asarray(second == 0)).any()
        assert (dropped[..., :H] != dropped[..., H:]).any()

    def test_layers_in_both_directions(self):
        lstms = (LSTM(H, 2, dropout=0.5, deterministic=False) for _ in range(2))
        model = nn.Bidirectional(*lstms)
        variables = model.init({"params": KEY, "dropout": KEY}, XS)
        first, second = (
            model.apply(variables, XS, rngs={"dropout": jax.random.key(n)}) for n in range(2)
        )
        assert (first != second).any()
        with pytest.raises(errors.InvalidRngError, match="dropout"):
            model.apply(variables, XS)

    def test_in_one_model_under_jit_grad_and_vmap(self):
        class Both(nn.Module):
            deterministic: bool

            @nn.compact
            def __call__(self, xs):
                theirs = nn.Dropout(0.5)(xs, deterministic=self.deterministic)
                ours = LSTM(H, 2, cell="rnn", dropout=0.5)(xs, deterministic=self.deterministic)
                return theirs, ours

        variables = Both(True).init(KEY, XS)

        @jax.jit
        def gradient(variables, key):
            def loss(variables):
                ys = Both(False).apply(variables, XS, rngs={"dropout": key})
                return sum((y**2).sum() for y in ys), ys

            return jax.grad(loss, has_aux=True)(variables)

        key = jax.random.key(3)
        gradients, ys = gradient(variables, key)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
        chex.assert_trees_all_close(
            ys, Both(False).apply(variables, XS, rngs={"dropout": key}), atol=1e-6
        )
        for y, other in zip(ys, gradient(variables, jax.random.key(4))[1], strict=True):
            assert (y != other).any()

        for split in (True, False):
            members = nn.vmap(
                Both,
                in_axes=None,
                axis_size=2,
                variable_axes={"params": None},
                split_rngs={"params": False, "dropout": split},
            )
            for y in jax.jit(members(False).apply)(variables, XS, rngs={"dropout": key}):
                assert (y[0] != y[1]).any() == split


class TestTransforms:
    variables = LSTM(D).init(KEY, XS)

    def test_remat(self):
        @jax.grad
        def gradient(params, module=LSTM):
            return (module(D).apply({"params": params}, XS) ** 2).sum()

        params = self.variables["params"]
        expected = gradient(params)
        remat = jax.grad(lambda p: (nn.remat(LSTM)(D).apply({"params": p}, XS) ** 2).sum())(params)
        chex.assert_trees_all_close(remat, expected, atol=1e-6)

    def test_an_ensemble(self):
        ensemble = nn.vmap(
            LSTM,
            in_axes=None,
            axis_size=2,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )(D)
        ys, variables = ensemble.init_with_output(KEY, XS)
        second = jax.tree.map(lambda leaf: leaf[1], variables)
        np.testing.assert_allclose(ys[1], LSTM(D).apply(second, XS), atol=1e-6)
        assert not np.allclose(ys[0], ys[1])

    def test_a_scan_over_layers(self):
        class Deep(nn.Module):
            @nn.compact
            def __call__(self, xs):
                upwards = nn.scan(
                    lambda layer, ys, _: (layer(ys), None),
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    length=3,
                )
                return upwards(LSTM(D, name="layers"), xs, None)[0]

        ys, variables = Deep().init_with_output(KEY, XS)
        expected = XS
        for n in range(3):
            params = jax.tree.map(lambda leaf, n=n: leaf[n], variables["params"]["layers"])
            expected = LSTM(D).apply({"params": params}, expected)
        np.testing.assert_allclose(ys, expected, atol=1e-6)

    def test_jit_compiles_once(self):
        traces = []

        @functools.partial(jax.jit, static_argnums=0)
        def apply(module, variables, xs):
            traces.append(1)
            return module.apply(variables, xs)

        first, second = (apply(LSTM(D), self.variables, XS) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert len(traces) == 1

    def test_a_checkpoint(self, tmp_path):
        ocp = pytest.importorskip("orbax.checkpoint")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "lstm", self.variables)
            checkpointer.wait_until_finished()
            like = jax.tree.map(jnp.zeros_like, self.variables)
            restored = checkpointer.restore(tmp_path / "lstm", like)
        chex.assert_trees_all_equal(restored, self.variables)


class TestSharding:
    def test_boxes_contain_whole_parameters(self):
        init = nn.with_partitioning(jax.nn.initializers.ones, (None, "model"))
        variables = LSTM(H, bidirectional=True, kernel_init=init).init(KEY, XS)
        params = variables["params"]["layer_0"]["backward"]
        assert isinstance(params["w_ih"], nn.Partitioned)
        assert params["w_ih"].value.shape == (D, 4 * H)
        specs = nn.get_partition_spec(variables)["params"]["layer_0"]["backward"]
        assert specs["w_ih"] == PartitionSpec(None, "model")
        assert specs["w_hh"] == PartitionSpec()
        plain = LSTM(H, bidirectional=True, kernel_init=jax.nn.initializers.ones)
        np.testing.assert_array_equal(
            LSTM(H, bidirectional=True, kernel_init=init).apply(variables, XS),
            plain.apply(plain.init(KEY, XS), XS),
        )

    def test_boxes_of_logical_axes_and_of_scanned_layers(self):
        init = nn.with_logical_partitioning(jax.nn.initializers.zeros, ("in", "gates"))
        ensemble = nn.vmap(
            LSTMCell,
            in_axes=None,
            axis_size=2,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            metadata_params={nn.PARTITION_NAME: "ensemble"},
        )(H, kernel_init=init)
        carry = LSTMCell(H).initialize_carry(KEY, (B, D))
        variables = jax.eval_shape(ensemble.init, KEY, carry, XS[:, 0])
        assert nn.get_partition_spec(variables)["params"]["w_ih"] == PartitionSpec(
            "ensemble", "in", "gates"
        )

    def test_a_sharded_step_gives_the_same_numbers(self):
        def make(across=lambda init, axes: init):
            return LSTM(
                6,
                kernel_init=across(cells.base.lecun_normal, (None, "model")),
                recurrent_kernel_init=across(cells.base.orthogonal, (None, "model")),
                bias_init=across(cells.base.zeros, ("model",)),
            )

        def step(module, params, xs):
            return jax.value_and_grad(
                lambda params: (module.apply({"params": params}, xs) ** 2).sum()
            )(params)

        plain, sharded = make(), make(nn.with_partitioning)
        params = plain.init(KEY, XS)["params"]
        expected = jax.jit(functools.partial(step, plain))(params, XS)
        mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
        with jax.set_mesh(mesh):
            shardings = nn.get_sharding(jax.eval_shape(sharded.init, KEY, XS)["params"], mesh)
            boxed = jax.jit(lambda: sharded.init(KEY, XS)["params"], out_shardings=shardings)()
            w_ih = boxed["layer_0"]["w_ih"]
            assert w_ih.value.sharding.shard_shape((D, 24)) == (D, 12)
            loss, gradients = jax.jit(functools.partial(step, sharded))(boxed, XS)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
        chex.assert_trees_all_close(
            jax.device_get(nn.unbox(gradients)), jax.device_get(expected[1]), atol=1e-5
        )
