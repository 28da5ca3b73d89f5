import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lstm_jax import CELLS, LSTMCell, LSTMState, lstm_cell
from tests import oracle

pytestmark = pytest.mark.optimized

D, H, B = 5, 7, 3


def random_case(dtype=np.float64, scale=1.0):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(scale * rng.normal(size=shape), dtype)  # noqa: E731
    params = {"w_ih": draw(D, 4 * H), "w_hh": draw(H, 4 * H), "b": draw(4 * H)}
    return params, LSTMState(h=draw(B, H), c=draw(B, H)), draw(B, D)


def test_step_equals_the_numpy_equations():
    with jax.enable_x64(True):
        params, state, x = random_case()
        new, y = lstm_cell(params, state, x)
        h, c = oracle.lstm_step(*jax.tree.map(np.asarray, (params, state.h, state.c, x)))
        # A handful of float64 rounding errors of numbers of order 1.
        np.testing.assert_allclose(new.h, h, rtol=0, atol=1e-14)
        np.testing.assert_allclose(new.c, c, rtol=0, atol=1e-14)
        np.testing.assert_array_equal(y, new.h)


def test_step_by_hand():
    """One unit and one input, computed with a pocket calculator; every gate has its own weight."""
    params = {
        "w_ih": jnp.array([[1.0, 2.0, 3.0, 4.0]]),  # i, f, g, o
        "w_hh": jnp.array([[0.5, -0.5, 0.25, -0.25]]),
        "b": jnp.array([0.1, 0.2, 0.3, 0.4]),
    }
    state = LSTMState(h=jnp.array([0.2]), c=jnp.array([-0.4]))
    new, _ = lstm_cell(params, state, jnp.array([0.5]))
    # i = s(0.7) = 0.668188, f = s(1.1) = 0.750260, g = tanh(1.85) = 0.951745,
    # o = s(2.35) = 0.912934; c = -0.300104 + 0.635944 = 0.335840; h = o tanh(c) = 0.295571
    np.testing.assert_allclose(new.c, [0.335840], atol=2e-6)
    np.testing.assert_allclose(new.h, [0.295571], atol=2e-6)


def test_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        params, state, x = random_case()

        def loss(params, state, x):
            new, y = lstm_cell(params, state, x)
            return (jnp.sin(new.c) + jnp.cos(y)).sum()

        jax.test_util.check_grads(loss, (params, state, x), order=2, modes=["fwd", "rev"])


def test_partial_is_a_scan_body():
    params, state, _ = random_case(np.float32)
    xs = jnp.ones((4, B, D))
    last, ys = jax.lax.scan(functools.partial(lstm_cell, params), state, xs)
    chex.assert_shape(ys, (4, B, H))
    np.testing.assert_array_equal(ys[-1], last.h)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_any_number_of_batch_axes(leading):
    params, _, _ = random_case(np.float32)
    cell = LSTMCell(H)
    x = jax.random.normal(jax.random.key(0), (*leading, D))
    _, y = cell.step(params, cell.zero_state(leading), x)
    rows = x.reshape(-1, D)
    apart = [cell.step(params, cell.zero_state(), row)[1] for row in rows]
    np.testing.assert_allclose(y.reshape(-1, H), jnp.stack(apart), atol=1e-6)


def test_saturated_gates_have_finite_gradients():
    params, state, x = random_case(np.float32, scale=1e4)
    grads = jax.grad(lambda p, s, x: lstm_cell(p, s, x)[1].sum(), (0, 1, 2))(params, state, x)
    chex.assert_tree_all_finite(grads)


class TestInit:
    params = LSTMCell(64).init(jax.random.key(0), 32)

    def test_recurrent_weights_are_orthogonal_for_each_gate(self):
        for block in np.split(np.asarray(self.params["w_hh"], np.float64), 4, -1):
            np.testing.assert_allclose(block @ block.T, np.eye(64), atol=1e-5)

    def test_input_weights_are_lecun_normal(self):
        scale = 32**-0.5 / scipy.stats.truncnorm(-2, 2).std()  # variance 1 / D after truncation
        for block in np.split(np.asarray(self.params["w_ih"], np.float64), 4, -1):
            assert 1.8 * scale < np.abs(block).max() <= 2 * scale * (1 + 1e-6)
            # The square of a normal sample has the variance 2 / D^2, and less if it is truncated.
            spread = np.sqrt(2) / 32 / np.sqrt(block.size)
            assert abs(np.square(block).mean() - 1 / 32) < 5 * spread

    def test_bias_is_zero(self):
        np.testing.assert_array_equal(self.params["b"], np.zeros(4 * 64))

    def test_gates_are_initialised_separately(self):
        for name in ("w_ih", "w_hh"):
            i, f, g, o = np.split(np.asarray(self.params[name]), 4, -1)
            assert not any(np.array_equal(a, b) for a, b in [(i, f), (f, g), (g, o), (i, o)])

    def test_each_initialiser_can_be_replaced(self):
        ones, twos = jax.nn.initializers.ones, jax.nn.initializers.constant(2.0)
        cell = LSTMCell(
            2, kernel_init=ones, recurrent_kernel_init=twos, bias_init=ones, forget_bias=0.5
        )
        params = cell.init(jax.random.key(0), 3)
        np.testing.assert_array_equal(params["w_ih"], np.ones((3, 8)))
        np.testing.assert_array_equal(params["w_hh"], np.full((2, 8), 2.0))
        np.testing.assert_array_equal(params["b"], [1, 1, 1.5, 1.5, 1, 1, 1, 1])


class TestDtypes:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_low_precision_products_with_a_float32_cell_state(self, dtype):
        cell = LSTMCell(H, dtype=dtype)
        params = cell.init(jax.random.key(0), D)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        state, y = cell.step(params, cell.zero_state((B,)), jnp.ones((B, D)))
        assert (state.h.dtype, state.c.dtype, y.dtype) == (dtype, jnp.float32, dtype)
        _, c, _ = oracle.lstm(params, np.ones((1, B, D)))
        # Sums of at most D + H = 12 rounded products of order 1.
        np.testing.assert_allclose(state.c, c, atol=12 * float(jnp.finfo(dtype).eps))

    def test_float64_stays_float64(self):
        with jax.enable_x64(True):
            cell = LSTMCell(H, param_dtype="float64")
            params = cell.init(jax.random.key(0), D)
            state, y = cell.step(params, cell.zero_state(), jnp.ones(D, jnp.float64))
            assert {state.h.dtype, state.c.dtype, y.dtype} == {jnp.dtype("float64")}

    @pytest.mark.parametrize("x_dtype", ["bfloat16", "float32"])
    @pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
    @pytest.mark.parametrize("param_dtype", ["bfloat16", "float32"])
    def test_the_state_preserves_its_types_in_a_scan(self, x_dtype, dtype, param_dtype):
        cell = LSTMCell(H, dtype=dtype, param_dtype=param_dtype)
        params = cell.init(jax.random.key(0), D)
        with jax.numpy_dtype_promotion("standard"):
            last, ys = jax.lax.scan(
                functools.partial(cell.step, params), cell.zero_state(), jnp.ones((3, D), x_dtype)
            )
        assert last.c.dtype == jnp.float32
        assert ys.dtype == last.h.dtype

    def test_no_implicit_promotion_between_float32_arrays(self):
        params, state, x = random_case(np.float32)
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("allow"):
            lstm_cell(params, state, x)


class TestErrors:
    cell = LSTMCell(H)
    params = cell.init(jax.random.key(0), D)

    def test_wrong_input_size(self):
        with pytest.raises(ValueError, match=r"x must be \[\.\.\., D\] with D=5.*got shape \(6,\)"):
            self.cell.step(self.params, self.cell.zero_state(), jnp.ones(6))

    def test_wrong_state_size(self):
        bad = LSTMState(h=jnp.zeros(H + 1), c=jnp.zeros(H))
        with pytest.raises(ValueError, match=r"state\.h must have shape \[\.\.\., 7\], .*\(8,\)"):
            self.cell.step(self.params, bad, jnp.ones(D))

    def test_state_with_wrong_structure(self):
        with pytest.raises(TypeError, match=r"state must be LSTMState\(h, c\), got tuple"):
            self.cell.step(self.params, (jnp.zeros(H), jnp.zeros(H)), jnp.ones(D))

    @pytest.mark.parametrize("size", [0, -3])
    def test_impossible_hidden_size(self, size):
        with pytest.raises(ValueError, match=f"hidden_size must be at least 1, got {size}"):
            LSTMCell(size)

    @pytest.mark.parametrize("size", [2.0, "2", True, None])
    def test_hidden_size_that_is_not_an_integer(self, size):
        with pytest.raises(TypeError, match="hidden_size must be an int, got"):
            LSTMCell(size)

    def test_impossible_input_size(self):
        with pytest.raises(ValueError, match="input_size must be at least 1, got 0"):
            self.cell.init(jax.random.key(0), 0)


def test_cells_are_hashable_and_frozen():
    for cell_class in CELLS.values():
        assert cell_class(hidden_size=3) == cell_class(hidden_size=3)
        assert hash(cell_class(hidden_size=3)) == hash(cell_class(hidden_size=3))
        with pytest.raises(dataclasses.FrozenInstanceError):
            cell_class(hidden_size=3).hidden_size = 4
