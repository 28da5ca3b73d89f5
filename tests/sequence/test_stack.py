import dataclasses
import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTM, Bidirectional, LSTMCell, Stack, unroll
from lstm_jax.cells import RNNCell
from lstm_jax.sequence import Zoneout, dropout
from tests import oracle

T, B, D, H = 6, 3, 4, 5
XS = jax.random.normal(jax.random.key(1), (T, B, D))
LENGTHS = jnp.array([6, 2, 0])
MIXED = Stack({"low": LSTMCell(3), "both": Bidirectional(RNNCell(4)), "top": LSTMCell(H)})


@dataclasses.dataclass(frozen=True)
class Average:
    """A custom cell that has only the four members of the protocol."""

    hidden_size: int

    def init(self, key, input_size):
        return {"w": jax.random.normal(key, (input_size, self.hidden_size))}

    def zero_state(self, batch_shape=()):
        return jnp.zeros((*batch_shape, self.hidden_size))

    def step(self, params, state, x):
        state = 0.9 * state + 0.1 * x @ params["w"]
        return state, state


def test_widths_and_names():
    params = MIXED.init(jax.random.key(0), D)
    assert list(params) == ["low", "both", "top"]
    assert params["both"]["backward"]["w_ih"].shape == (3, 4)
    assert params["top"]["w_ih"].shape == (8, 4 * H)
    assert MIXED.output_size == H
    assert MIXED.input_size(params) == D


def test_mixed_layers_equal_the_layers_one_after_the_other():
    params = MIXED.init(jax.random.key(0), D)
    state, ys = MIXED.apply(params, XS, lengths=LENGTHS)
    low, below = unroll(LSTMCell(3), params["low"], XS, lengths=LENGTHS)
    both, below = Bidirectional(RNNCell(4)).apply(params["both"], below, lengths=LENGTHS)
    top, below = unroll(LSTMCell(H), params["top"], below, lengths=LENGTHS)
    last = {"low": low, "both": both, "top": top}
    chex.assert_trees_all_equal((state, ys), (last, below))


def test_layers_are_named_and_equal_however_they_are_given():
    cells = LSTMCell(3), LSTMCell(H)
    stack = Stack(cells)
    assert [name for name, _ in stack.layers] == ["layer_0", "layer_1"]
    same = [Stack(list(cells)), Stack(dict(stack.layers)), Stack(stack.layers), stack]
    assert len({hash(each) for each in same}) == 1 and all(each == stack for each in same)
    assert dataclasses.replace(stack, dropout=0.5).layers == stack.layers


def test_a_custom_cell():
    stack = Stack([Average(3), LSTMCell(H), Average(2)])
    params = stack.init(jax.random.key(0), D)
    state, ys = stack.apply(params, XS)
    assert ys.shape == (T, B, 2)
    np.testing.assert_array_equal(state["layer_2"], ys[-1])


def test_a_stack_within_a_stack():
    inner = Stack([LSTMCell(3), LSTMCell(4)])
    outer = Stack([inner, LSTMCell(H)])
    params = outer.init(jax.random.key(0), D)
    flat = Stack({"a": LSTMCell(3), "b": LSTMCell(4), "c": LSTMCell(H)})
    names = {"a": params["layer_0"]["layer_0"], "b": params["layer_0"]["layer_1"]}
    _, expected = flat.apply(names | {"c": params["layer_1"]}, XS)
    np.testing.assert_array_equal(outer.apply(params, XS)[1], expected)


class TestConnections:
    def layers(self, connections, rate=0.0):
        stack = Stack([LSTMCell(H)] * 3, connections=connections, dropout=rate)
        return stack, stack.init(jax.random.key(0), D)

    def test_residual_layers_equal_numpy(self):
        stack, params = self.layers("residual")
        _, ys = stack.apply(params, XS, lengths=LENGTHS)
        below = oracle.lstm(params["layer_0"], XS, lengths=LENGTHS)[2]
        for name in ("layer_1", "layer_2"):
            below = below + oracle.lstm(params[name], below, lengths=LENGTHS)[2]
        np.testing.assert_allclose(ys, below, atol=3e-6)
        assert stack.output_size == H

    def test_skip_layers_equal_numpy(self):
        stack, params = self.layers("skip")
        _, ys = stack.apply(params, XS, lengths=LENGTHS)
        outputs = [oracle.lstm(params["layer_0"], XS, lengths=LENGTHS)[2]]
        for name in ("layer_1", "layer_2"):
            reads = np.concatenate([XS, outputs[-1]], -1)
            outputs.append(oracle.lstm(params[name], reads, lengths=LENGTHS)[2])
        np.testing.assert_allclose(ys, np.concatenate(outputs, -1), atol=3e-6)
        assert stack.output_size == 3 * H

    @pytest.mark.parametrize("connections", ["residual", "skip"])
    def test_only_what_layers_read_is_dropped(self, connections):
        stack, params = self.layers(connections, rate=0.5)
        key = jax.random.key(7)
        _, ys = stack.apply(params, XS, key=key)
        outputs = [unroll(LSTMCell(H), params["layer_0"], XS)[1]]
        for n in (1, 2):
            reads = dropout(outputs[-1], 0.5, jax.random.fold_in(key, n))
            if connections == "skip":
                reads = jnp.concatenate([XS, reads], -1)
            y = unroll(LSTMCell(H), params[f"layer_{n}"], reads)[1]
            outputs.append(y + outputs[-1] if connections == "residual" else y)
        expected = jnp.concatenate(outputs, -1) if connections == "skip" else outputs[-1]
        np.testing.assert_array_equal(ys, expected)

    @pytest.mark.parametrize("connections", ["plain", "residual", "skip"])
    def test_a_step_at_a_time_equals_the_sequence(self, connections):
        stack, params = self.layers(connections)
        last, ys = stack.apply(params, XS)
        state = stack.zero_state((B,))
        for x, expected in zip(XS, ys, strict=True):
            state, y = stack.step(params, state, x)
            np.testing.assert_allclose(y, expected, atol=1e-6)
        chex.assert_trees_all_close(state, last, atol=1e-6)

    def test_residual_of_different_widths(self):
        with pytest.raises(ValueError, match="layer_1 reads 5 features and gives 3"):
            Stack([LSTMCell(H), LSTMCell(3)], connections="residual")
        with pytest.raises(ValueError, match="top reads 10 features and gives 5"):
            Stack({"b": Bidirectional(LSTMCell(H)), "top": LSTMCell(H)}, connections="residual")


@pytest.mark.parametrize("connections", ["plain", "residual", "skip"])
def test_backwards_equals_each_row_reversed(connections):
    layers = [LSTMCell(H), LSTMCell(H)]
    there = Stack(layers, connections=connections)
    back = Stack(layers, connections=connections, reverse=True)
    params = there.init(jax.random.key(0), D)
    _, ys = back.apply(params, XS, lengths=LENGTHS)
    turned = np.array(XS)
    for row, length in enumerate(LENGTHS):
        turned[:length, row] = turned[:length, row][::-1]
    expected = np.array(there.apply(params, turned, lengths=LENGTHS)[1])
    for row, length in enumerate(LENGTHS):
        expected[:length, row] = expected[:length, row][::-1]
    np.testing.assert_allclose(ys, expected, atol=1e-6)


class TestDocuments:
    """Documents in one row with resets, and each in a separate row with a length."""

    stack = dataclasses.replace(MIXED, connections="skip")
    params = stack.init(jax.random.key(0), D)

    @staticmethod
    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def packed(params, xs, resets):
        _, ys = TestDocuments.stack.apply(params, xs, resets=resets)
        return jnp.sin(ys).sum(), ys

    @staticmethod
    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def apart(params, xs, starts, lengths, rows):
        steps = jnp.arange(T)[:, None]
        own = xs[(starts + steps).clip(max=T - 1)]  # [T, documents, D]
        _, ys = TestDocuments.stack.apply(params, own, lengths=lengths)
        ys = ys[jnp.arange(T) - starts[rows], rows]
        return jnp.sin(ys).sum(), ys

    @hypothesis.settings(deadline=None, max_examples=15)
    @hypothesis.given(st.lists(st.booleans(), min_size=T - 1, max_size=T - 1))
    def test_are_equal_in_value_and_gradient(self, begins):
        resets = np.array([True, *begins])
        rows = resets.cumsum() - 1
        starts = np.resize(np.flatnonzero(resets), T)  # the largest possible number of rows
        lengths = np.bincount(rows, minlength=T)
        xs = XS[:, 0]
        (_, ys), gradients = self.packed(self.params, xs, resets)
        (_, expected), wanted = self.apart(self.params, xs, starts, lengths, rows)
        np.testing.assert_allclose(ys, expected, atol=1e-6)
        # Sums of T terms of order 1 in another order.
        chex.assert_trees_all_close(gradients, wanted, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 2, T])
def test_chunks_with_passed_states_equal_the_whole(cut):
    stack = Stack([LSTMCell(3), RNNCell(H)], connections="skip", engine="scan")
    params = stack.init(jax.random.key(0), D)
    whole, ys = stack.apply(params, XS)
    middle, first = stack.apply(params, XS[:cut])
    last, second = stack.apply(params, XS[cut:], middle)
    np.testing.assert_array_equal(jnp.concatenate([first, second]), ys)
    chex.assert_trees_all_equal(last, whole)


def test_learned_initial_states():
    stack = Stack([LSTMCell(3, learn_initial_state=True), RNNCell(H)])
    params = jax.tree.map(lambda a: a + 0.1, stack.init(jax.random.key(0), D))
    begin = stack.initial_state(params, (B,))
    assert (begin["layer_0"].c == 0.1).all() and (begin["layer_1"].h == 0).all()
    chex.assert_trees_all_equal(stack.apply(params, XS, begin), stack.apply(params, XS))


def test_every_layer_has_its_own_noise():
    stack = Stack([Zoneout(LSTMCell(H))] * 2)
    params = stack.init(jax.random.key(0), D)
    calm, _ = stack.apply(params, XS)
    noisy, _ = stack.apply(params, XS, key=jax.random.key(2))
    alone, _ = unroll(
        Zoneout(LSTMCell(H)), params["layer_0"], XS, key=jax.random.fold_in(jax.random.key(2), 2)
    )
    chex.assert_trees_all_equal(noisy["layer_0"], alone)
    assert not np.allclose(noisy["layer_1"].h, calm["layer_1"].h)


def test_no_batch_axis_and_no_steps():
    params = MIXED.init(jax.random.key(0), D)
    np.testing.assert_allclose(
        MIXED.apply(params, XS[:, 0])[1], MIXED.apply(params, XS)[1][:, 0], atol=1e-6
    )
    state, ys = MIXED.apply(params, XS[:0])
    chex.assert_trees_all_equal(state, MIXED.zero_state((B,)))
    assert ys.shape == (0, B, H)


def test_is_a_static_argument_that_compiles_once():
    run = jax.jit(lambda stack, params, xs: stack.apply(params, xs)[1], static_argnums=0)
    params = MIXED.init(jax.random.key(0), D)
    run(MIXED, params, XS)
    run(Stack(dict(MIXED.layers)), params, 2 * XS)
    assert run._cache_size() == 1


class TestErrors:
    def test_objects_that_are_not_layers(self):
        with pytest.raises(TypeError, match=r"layer_1 must be a cell .* or a layer .*, got 'lstm'"):
            Stack([LSTMCell(H), "lstm"])
        with pytest.raises(TypeError, match=r"top must be a cell .*got <class"):
            Stack({"top": LSTMCell})
        with pytest.raises(TypeError, match="layers must be a sequence of layers or a mapping"):
            Stack(LSTMCell(H))

    def test_no_layer(self):
        with pytest.raises(ValueError, match="layers must contain at least one layer"):
            Stack([])

    def test_names(self):
        with pytest.raises(ValueError, match="names of layers must differ, got 'a' twice"):
            Stack([("a", LSTMCell(H)), ("a", LSTMCell(H))])
        with pytest.raises(TypeError, match="names of layers must be strings, got 1"):
            Stack({1: LSTMCell(H)})

    def test_unknown_connections(self):
        with pytest.raises(ValueError, match="connections must be one of plain, residual, skip"):
            Stack([LSTMCell(H)], connections="dense")

    def test_both_directions_backwards(self):
        with pytest.raises(ValueError, match="reverse is for stacks of cells; both is Bidirec"):
            dataclasses.replace(MIXED, reverse=True)

    def test_trees_of_another_stack(self):
        params = MIXED.init(jax.random.key(0), D)
        with pytest.raises(TypeError, match="params must have one entry per layer, low, both, top"):
            MIXED.apply({"low": params["low"]}, XS)
        with pytest.raises(TypeError, match=r"state must have one entry per layer.*got LSTMState"):
            MIXED.apply(params, XS, LSTMCell(3).zero_state((B,)))
        with pytest.raises(TypeError, match=r"state must have one entry per layer.*layer_0"):
            MIXED.apply(params, XS, LSTM(3).zero_state((B,)))

    def test_an_error_within_a_layer_names_it(self):
        params = MIXED.init(jax.random.key(0), D)
        state = MIXED.zero_state((B,))
        state["top"] = state["low"]
        with pytest.raises(ValueError, match=r"state\.h must have shape \(3, 5\)") as error:
            MIXED.apply(params, XS, state)
        assert error.value.__notes__ == ["in layer 'top' of a stack"]

    def test_a_step_of_a_layer_that_needs_the_future(self):
        params = MIXED.init(jax.random.key(0), D)
        with pytest.raises(ValueError, match="both is Bidirectional, which needs the future"):
            MIXED.step(params, MIXED.zero_state((B,)), XS[0])
        back = Stack([LSTMCell(H)], reverse=True)
        params = back.init(jax.random.key(0), D)
        with pytest.raises(ValueError, match="reverse=True needs the future"):
            back.step(params, back.zero_state((B,)), XS[0])
