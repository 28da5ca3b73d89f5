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
from lstm_jax.nnx import LSTM, Cell, ConvLSTMCell, GRUCell, LSTMCell, OdysseyLSTMCell, Stack
from tests import oracle

B, T, D, H = 3, 6, 4, 5
XS = jax.random.normal(jax.random.key(1), (B, T, D))
LENGTHS = jnp.array([6, 4, 1])
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

    def test_the_equations_are_those_of_flax(self):
        """The same weights in flax's own LSTMCell (gate order i, f, g, o by name)."""
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

    def test_draws_are_those_of_the_functional_cell(self):
        expected = lstm_jax.LSTMCell(H).init(nnx.Rngs(0).params(), D)
        chex.assert_trees_all_equal(LSTMCell(D, H, rngs=nnx.Rngs(0)).params, expected)

    def test_options_are_those_of_the_functional_cell(self):
        cell = LSTMCell(D, H, forget_bias=3.0, cell_clip=0.5, dtype="bfloat16", rngs=nnx.Rngs(0))
        assert cell.cell == lstm_jax.LSTMCell(H, forget_bias=3.0, cell_clip=0.5, dtype="bfloat16")
        assert cell.b[H] == 3.0

    def test_signatures_tell_the_options(self):
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

    def test_first_carries_are_drawn_where_asked(self):
        normal = jax.nn.initializers.normal(1.0)
        cell = LSTMCell(D, H, rngs=nnx.Rngs(0))
        drawn = cell.initialize_carry((B, D), nnx.Rngs(carry=1), normal)
        assert not np.array_equal(drawn.h, drawn.c)
        with pytest.raises(ValueError, match="rngs must be given where carry_init is"):
            cell.initialize_carry((B, D), None, normal)

        told = LSTMCell(D, H, carry_init=jax.nn.initializers.ones, rngs=nnx.Rngs(0))
        ones = jax.tree.map(jnp.ones_like, told.cell.zero_state((B,)))
        expected = nnx.RNN(cell)(XS, initial_carry=ones)
        np.testing.assert_allclose(nnx.RNN(told)(XS), expected, atol=1e-6)

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

    def test_a_carry_is_learned_or_drawn(self):
        with pytest.raises(ValueError, match="carry_init must be None where learn_initial_state"):
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
    """A cell of one's own, which inherits from nothing."""

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
    def test_holds_a_cell_of_ones_own(self):
        ys = nnx.RNN(Cell(D, Summing(2), rngs=nnx.Rngs(0)))(XS)
        np.testing.assert_allclose(ys[..., 0], XS.sum(-1).cumsum(-1), atol=1e-5)

    def test_holds_a_regularised_cell(self):
        zoneout = sequence.Zoneout(lstm_jax.LSTMCell(H))
        cell = Cell(D, zoneout, rngs=nnx.Rngs(0))
        _, expected = lstm_jax.unroll(zoneout, cell.params, turned(XS))
        np.testing.assert_allclose(nnx.RNN(cell)(XS), turned(expected), atol=1e-6)

    def test_refuses_what_it_cannot_hold(self):
        with pytest.raises(TypeError, match="cell must be a cell"):
            Cell(D, lstm_jax.LSTMCell, rngs=nnx.Rngs(0))
        with pytest.raises(TypeError, match="parameters of Summing must be a flat dict of arrays"):
            Cell(D, Summing(2, nested=True), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="'cell' cannot name a parameter"):
            Cell(D, Summing(2, names=("w", "cell")), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="'params' cannot name a parameter"):
            Cell(D, Summing(2, names=("w", "params")), rngs=nnx.Rngs(0))


class TestLSTM:
    lstm = LSTM(D, H, num_layers=2, rngs=nnx.Rngs(0))

    def test_equals_the_functional_layer(self):
        carry, ys = self.lstm(XS, seq_lengths=LENGTHS, return_carry=True)
        functional = lstm_jax.LSTM(H, num_layers=2)
        expected = functional.apply(self.lstm.params, turned(XS), lengths=LENGTHS)
        chex.assert_trees_all_equal((carry, turned(ys)), expected)

    def test_each_layer_draws_as_a_cell_does(self):
        rngs = nnx.Rngs(0)
        expected = {
            f"layer_{n}": LSTMCell(size, H, rngs=rngs).params for n, size in enumerate((D, H))
        }
        chex.assert_trees_all_equal(self.lstm.params, expected)

    def test_time_major_is_the_same_turned(self):
        resets = jax.random.bernoulli(jax.random.key(2), 0.3, (B, T))
        ys = self.lstm(XS, resets=resets)
        zs = self.lstm(turned(XS), resets=turned(resets), time_major=True)
        np.testing.assert_array_equal(turned(zs), ys)
        assert not np.allclose(ys, self.lstm(XS))

    def test_goes_on_from_a_carry(self):
        carry, first = self.lstm(XS[:, :2], return_carry=True)
        second = self.lstm(XS[:, 2:], initial_carry=carry)
        np.testing.assert_array_equal(jnp.concatenate([first, second], 1), self.lstm(XS))

    def test_more_batch_axes_and_none(self):
        np.testing.assert_allclose(self.lstm(XS[0]), self.lstm(XS)[0], atol=1e-6)
        doubled = self.lstm(jnp.stack([XS, 2 * XS]))
        np.testing.assert_allclose(doubled[1], self.lstm(2 * XS), atol=1e-6)

    @pytest.mark.parametrize("keep_order", [False, True])
    @pytest.mark.parametrize("lengths", [LENGTHS, None])
    def test_backwards_as_flax_does(self, lengths, keep_order):
        ours = LSTM(D, H, reverse=True, keep_order=keep_order, rngs=nnx.Rngs(0))
        cell = LSTMCell(D, H, rngs=nnx.Rngs(0))
        theirs = nnx.RNN(cell, reverse=True, keep_order=keep_order, return_carry=True)
        expected, zs = theirs(XS, seq_lengths=lengths)
        carry, ys = ours(XS, seq_lengths=lengths, return_carry=True)
        valid = VALID if lengths is not None else slice(None)
        np.testing.assert_allclose(ys[valid], zs[valid], atol=1e-6)
        chex.assert_trees_all_close(carry["layer_0"], expected, atol=1e-6)
        told = LSTM(D, H, rngs=nnx.Rngs(0))(
            XS, seq_lengths=lengths, reverse=True, keep_order=keep_order
        )
        np.testing.assert_array_equal(told, ys)

    def test_both_directions_are_flaxs(self):
        ours = LSTM(D, H, bidirectional=True, merge="sum", dropout=0.5, rngs=nnx.Rngs(0))
        rngs = nnx.Rngs(0)  # each direction's cell draws for itself
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

    def test_activations_by_flaxs_names(self):
        told = {"gate_fn": "hard_sigmoid", "activation_fn": jax.nn.relu}
        lstm = LSTM(D, H, bidirectional=True, **told, rngs=nnx.Rngs(0))
        cell = functools.partial(lstm_jax.LSTMCell, **told)
        expected = LSTM(D, H, bidirectional=True, cell=cell, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(lstm(XS), expected(XS))
        assert not np.allclose(lstm(XS), LSTM(D, H, bidirectional=True, rngs=nnx.Rngs(0))(XS))

    def test_options_of_cells_leave_modules_equal(self):
        """So that what was compiled for one runs the other."""
        options = {"kernel_init": jax.nn.initializers.zeros, "param_dtype": "bfloat16"}
        lstm, other = (LSTM(D, H, **options, rngs=nnx.Rngs(n)) for n in range(2))
        assert nnx.graphdef(lstm) == nnx.graphdef(other)
        assert lstm.layer_0.w_ih.dtype == jnp.bfloat16
        assert not lstm.layer_0.w_ih[...].any()

    def test_dropout_needs_rngs(self):
        lstm = LSTM(D, H, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(lstm(XS), self.lstm(XS))
        key = nnx.Rngs(dropout=3).dropout()
        _, expected = lstm.layer.apply(lstm.params, turned(XS), key=key)
        np.testing.assert_array_equal(lstm(XS, rngs=nnx.Rngs(dropout=3)), turned(expected))
        assert not np.allclose(expected, turned(self.lstm(XS)))

    def test_grids(self):
        """Time stands before the axes of space."""
        xs = jax.random.normal(jax.random.key(3), (B, T, 3, 3, 2))
        lstm = LSTM(2, 4, cell="conv_lstm", rngs=nnx.Rngs(0))
        cell = ConvLSTMCell(2, 4, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(lstm(xs), nnx.RNN(cell)(xs), atol=1e-6)

    def test_holds_parameters_only(self):
        state = nnx.state(self.lstm)
        assert jax.tree.leaves(state) == jax.tree.leaves(nnx.state(self.lstm, nnx.Param))
        names = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
        assert names == {f"layer_{n}/{name}" for n in (0, 1) for name in ("w_ih", "w_hh", "b")}

    def test_mistakes_are_named_as_they_were_made(self):
        with pytest.raises(ValueError, match=r"xs must be \[\.\.\., T, D\], got shape \(4,\)"):
            self.lstm(jnp.zeros(D))
        with pytest.raises(ValueError, match=r"xs must be \[\.\.\., T, D\] with D=4.*\(2, 7, 5\)"):
            self.lstm(jnp.zeros((2, 7, 5)))
        with pytest.raises(
            ValueError, match=r"time and batch axes of xs, \(3, 6\), got .*\(6, 3\)"
        ):
            self.lstm(XS, resets=jnp.zeros((T, B), bool))
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

    def test_directions_of_its_own(self):
        with pytest.raises(ValueError, match="both is Bidirectional, which has directions"):
            Stack(D, self.layer, rngs=nnx.Rngs(0))(XS, reverse=True)
        both = Stack(D, sequence.Bidirectional(cells.RNNCell(2)), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="reverse is for stacks of cells, got Bidirectional"):
            both(XS, reverse=True)

    def test_takes_a_cell(self):
        stack = Stack(D, cells.RNNCell(2), rngs=nnx.Rngs(0))
        np.testing.assert_allclose(
            stack(XS), LSTM(D, 2, cell="rnn", rngs=nnx.Rngs(0))(XS), atol=1e-6
        )
        with pytest.raises(TypeError, match="layer must be a cell"):
            Stack(D, nnx.Linear(D, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))


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
            for name in ("w_ih", "w_hh", "b"):  # h_0 and c_0 begin at zero
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

    def test_a_sharded_step_gives_the_same_numbers(self):
        def make(across=lambda init, axes: init):
            return LSTM(
                D,
                6,
                kernel_init=across(cells.base.glorot_uniform, (None, "model")),
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
