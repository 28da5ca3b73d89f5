"""Gradients through time, compared with products of Jacobians, and known spectra."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import CELLS, LSTM, Bidirectional, LSTMCell, Stack, unroll
from lstm_jax.cells import LSTM1997Cell, MinLSTMCell, RNNCell
from lstm_jax.inspect import gradient_flow, jacobian_spectrum

T, B, D, H = 7, 2, 3, 4
SPACE = {"conv_lstm": (3, 2)}
LENGTHS = np.array([7, 3])
RESETS = np.zeros((T, B), bool)
RESETS[4, 0] = True
EXACT = {"rtol": 1e-9, "atol": 1e-12}  # float64, sums of tens of terms of order 1

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def flow_of(model, params, xs, loss=None, **how):
    """gradient_flow, compiled quickly."""
    how = {"loss": loss, **how}
    return quick_jit(lambda params, xs: gradient_flow(model, params, xs, **how))(params, xs)


def made(cell, space=()):
    """Parameters and inputs in float64."""
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape)), shapes)
    return params, jnp.asarray(rng.normal(size=(T, B, *space, D)))


def cell_of(name):
    return CELLS[name](hidden_size=H, param_dtype="float64")


# ---- gradient_flow ----


def by_products_of_jacobians(cell, params, xs):
    """Norms of d sum(y_T) / d s_t and d x_t for one row, step by step, by field of the state."""

    def step(state, x):
        return cell.step(params, state, x)[0]

    jacobian = quick_jit(jax.jacobian(step, (0, 1)))
    state, jacobians = cell.zero_state(xs.shape[1:-1]), []
    for x in xs:
        jacobians.append(jacobian(state, x))
        state = step(state, x)

    def product(carried, jacobians):
        """The sum, over fields of the new state, of their derivatives times a Jacobian."""
        return sum(np.tensordot(d, j, d.ndim) for d, j in zip(carried, jacobians, strict=True))

    # The output is h_T.
    carried = jax.tree.map(jnp.zeros_like, state)._replace(h=jnp.ones_like(state.h))
    states, inputs = [], []
    for rows in reversed(jacobians):  # of each field of the new state: (by old state, by x)
        states.append({field: np.linalg.norm(d) for field, d in carried._asdict().items()})
        inputs.append(np.linalg.norm(product(carried, [by_x for _, by_x in rows])))
        carried = type(state)(
            *(product(carried, [getattr(old, field) for old, _ in rows]) for field in state._fields)
        )
    return states[::-1], inputs[::-1]


# One for each shape of a state or a step.
SHAPES = ["lstm", "fgr", "projected", "slstm", "min_lstm", "conv_lstm"]


@pytest.mark.parametrize("name", SHAPES)
def test_norms_equal_those_of_products_of_jacobians(name):
    with jax.enable_x64(True):
        cell = cell_of(name)
        params, xs = made(cell, SPACE.get(name, ()))
        xs = xs[:4, 0]
        if name == "slstm":  # whose first step starts from m = -1e30
            params["b"] = params["b"] + 1.0
        flow = flow_of(cell, params, xs)
        states, inputs = by_products_of_jacobians(cell, params, xs)
        for field, norms in flow.fields["cell"].items():
            np.testing.assert_allclose(norms, [state[field] for state in states], **EXACT)
        total = np.sqrt([sum(n**2 for n in state.values()) for state in states])
        np.testing.assert_allclose(flow.state, total, **EXACT)
        np.testing.assert_allclose(flow.x, inputs, **EXACT)


def test_rows_lengths_resets_and_direction():
    with jax.enable_x64(True):
        cell = cell_of("peephole")
        params, xs = made(cell)
        flow = flow_of(cell, params, xs, lengths=LENGTHS, resets=RESETS)
        for row in range(B):
            cut = 4 if row == 0 else 0  # steps before a reset have no influence
            alone = flow_of(cell, params, xs[cut : LENGTHS[row], row])
            for norms, one in ((flow.state, alone.state), (flow.x, alone.x)):
                np.testing.assert_allclose(norms[cut : LENGTHS[row], row], one, **EXACT)
                assert (norms[:cut, row] == 0).all()
                assert (norms[LENGTHS[row] :, row] == 0).all()
        backwards = flow_of(cell, params, xs[::-1], reverse=True)
        chex.assert_trees_all_close(
            (backwards.state[::-1], backwards.x[::-1]),
            flow_of(cell, params, xs)[:2],
            **EXACT,
        )


def test_a_custom_loss():
    with jax.enable_x64(True):
        cell = cell_of("lstm")
        params, xs = made(cell)

        def loss(ys):
            return jnp.square(ys[3]).sum()

        flow = flow_of(cell, params, xs, loss)
        assert (flow.state[4:] == 0).all()
        expected = jax.grad(lambda xs: loss(unroll(cell, params, xs, engine="scan")[1]))(xs)
        np.testing.assert_allclose(flow.x, np.linalg.norm(expected, axis=-1), **EXACT)
        with pytest.raises(ValueError, match=r"loss must return a number, got shape \(2, 4\)"):
            flow_of(cell, params, xs, lambda ys: ys[0])
    with pytest.raises(TypeError, match="xs must be floating, got int32"):
        flow_of(cell, params, jnp.ones((T, B, D), int))
    with pytest.raises(ValueError, match=r"xs must have at least one step, got shape \(0, 2, 3\)"):
        flow_of(cell, params, jnp.ones((0, B, D)))


def test_stacks_and_directions():
    """The derivative by a lower layer's state includes the path through the layer above."""
    with jax.enable_x64(True):
        lower, upper = cell_of("lstm"), cell_of("gru")
        stack = Stack([Bidirectional(lower), upper], connections="skip")
        params, xs = made(stack)
        flow = flow_of(stack, params, xs, lengths=LENGTHS)
        assert list(flow.fields) == ["layer_0.forward", "layer_0.backward", "layer_1"]
        assert list(flow.fields["layer_0.forward"]) == ["h", "c"]

        def total(xs):
            _, ys = stack.apply(params, xs, lengths=LENGTHS)
            return sum(ys[length - 1, row].sum() for row, length in enumerate(LENGTHS))

        np.testing.assert_allclose(flow.x, np.linalg.norm(jax.grad(total)(xs), axis=-1), **EXACT)

        # One number of a state at a time, by running the rest of the sequence from it.
        t, plain = 3, LSTM(H, 2, cell="lstm", param_dtype="float64")
        params, xs = made(plain)
        state, _ = plain.apply(params, xs[: t + 1])
        flow = flow_of(plain, params, xs)
        later = lambda state: plain.apply(params, xs[t + 1 :], state)[1][-1].sum(-1)  # noqa: E731
        d_state = quick_jit(jax.grad(lambda state: later(state).sum()))(state)
        # layer_1 has already read h of layer_0 at t, which is included in its own state.
        for field in ("h", "c"):
            expected = np.linalg.norm(getattr(d_state["layer_1"], field), axis=-1)
            np.testing.assert_allclose(flow.fields["layer_1"][field][t], expected, **EXACT)
        expected = np.linalg.norm(d_state["layer_0"].c, axis=-1)
        np.testing.assert_allclose(flow.fields["layer_0"]["c"][t], expected, **EXACT)
        # h of layer_0 is read by the next step and by the layer above.
        above = jax.grad(lambda h: later(through(plain, params, xs, t, h)).sum())(
            state["layer_0"].h
        )
        expected = np.linalg.norm(above, axis=-1)
        np.testing.assert_allclose(flow.fields["layer_0"]["h"][t], expected, **EXACT)


def through(lstm, params, xs, t, h):
    """The state after step t, with h instead of the output of layer_0."""
    lower, upper = lstm.layers.values()
    before, _ = lstm.apply(params, xs[:t])
    state, _ = lower.step(params["layer_0"], before["layer_0"], xs[t])
    above, _ = upper.step(params["layer_1"], before["layer_1"], h)
    return {"layer_0": state._replace(h=h), "layer_1": above}


def test_engines_and_narrow_types():
    cell = MinLSTMCell(H)
    params, xs = cell.init(jax.random.key(0), D), jax.random.normal(jax.random.key(1), (T, B, D))
    expected = flow_of(cell, params, xs)
    for engine in ("scan", "associative"):
        chex.assert_trees_all_close(flow_of(cell, params, xs, engine=engine), expected, rtol=1e-5)
    narrow = LSTMCell(H, dtype="bfloat16")
    params = narrow.init(jax.random.key(0), D)
    flow = flow_of(narrow, params, xs.astype("bfloat16"))
    wide = flow_of(LSTMCell(H), params, xs)
    assert flow.state.dtype == "float32"
    # bfloat16 has 8 bits, and T factors are multiplied.
    chex.assert_trees_all_close(flow.state, wide.state, rtol=0.1)


def test_jit_and_flax():
    import lstm_jax.linen

    module = lstm_jax.linen.LSTM(H)
    xs = jax.random.normal(jax.random.key(1), (B, T, D))
    variables = module.init(jax.random.key(0), xs)
    flow = jax.jit(functools.partial(gradient_flow, module))(variables, xs)
    lstm = LSTM(H)
    expected = gradient_flow(lstm, variables["params"], xs.swapaxes(0, 1))
    chex.assert_trees_all_close(flow, expected, rtol=1e-5)


def test_elman_forgets_and_the_carousel_preserves_gradients():
    steps = 200
    xs = jax.random.normal(jax.random.key(1), (steps, D))
    elman = RNNCell(16)
    flow = gradient_flow(elman, elman.init(jax.random.key(0), D), xs)
    assert flow.state[0] < 1e-6 * flow.state[-1]
    # Without a forget gate and without recurrent weights, dL/dc is carried unchanged.
    carousel = LSTM1997Cell(16)
    params = carousel.init(jax.random.key(0), D)
    params["w_hh"] = jnp.zeros_like(params["w_hh"])
    flow = gradient_flow(carousel, params, xs)
    c = flow.fields["cell"]["c"][:-1]
    assert c[0] > 0
    np.testing.assert_array_equal(c, np.full(steps - 1, c[0]))


def test_norms_of_values_whose_squares_underflow():
    cell = RNNCell(2, activation_fn="identity")
    params = cell.init(jax.random.key(0), D) | {"w_hh": 0.1 * jnp.eye(2)}
    flow = flow_of(cell, params, jnp.ones((31, D)))
    # 0.1^30 in float32, whose square is not; 30 products, each rounded.
    np.testing.assert_allclose(flow.state[0], np.sqrt(2) * 0.1**30, rtol=1e-5)


# ---- jacobian_spectrum ----


def linear_network(matrix):
    cell = RNNCell(len(matrix), activation_fn="identity", param_dtype="float64")
    params = jax.tree.map(lambda a: jnp.asarray(a, "float64"), cell.init(jax.random.key(0), D))
    return cell, params | {"w_hh": jnp.asarray(matrix)}


def test_spectrum_of_a_linear_network():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        basis = rng.normal(size=(4, 4))
        matrix = basis @ np.diag([1.02, 0.9, -0.6, 0.3]) @ np.linalg.inv(basis)
        cell, params = linear_network(matrix)
        xs = jnp.asarray(rng.normal(size=(403, 2, D)))
        spectrum = jacobian_spectrum(cell, params, xs, window=5, burn_in=300)
        assert spectrum.singular_values.shape == (80, 2, 4)
        expected = np.linalg.svd(np.linalg.matrix_power(matrix, 5), compute_uv=False)
        np.testing.assert_allclose(
            spectrum.singular_values, np.broadcast_to(expected, (80, 2, 4)), rtol=1e-9
        )
        # The influence of the second eigenvalue is (0.9 / 1.02)^300 = 1e-16.
        np.testing.assert_allclose(spectrum.exponent, np.full(2, np.log(1.02)), atol=1e-12)
        np.testing.assert_allclose(spectrum.growth.sum(0) / 403, np.log(1.02), atol=0.02)


def test_spectrum_of_an_lstm_and_of_a_stack():
    with jax.enable_x64(True):
        lstm = LSTM(3, 2, param_dtype="float64")
        params, xs = made(lstm)
        spectrum = jacobian_spectrum(lstm, params, xs, window=3)
        assert spectrum.singular_values.shape == (2, B, 12)
        for window, start in enumerate((0, 3)):
            for row in range(B):
                state = lstm.zero_state()
                if start:
                    state, _ = lstm.apply(params, xs[:start, row])
                leaves, structure = jax.tree.flatten(state)

                def through(s, start=start, row=row, structure=structure):
                    state = structure.unflatten(jnp.split(s, 4))
                    state, _ = lstm.apply(params, xs[start : start + 3, row], state)
                    return jnp.concatenate(jax.tree.leaves(state))

                jacobian = quick_jit(jax.jacobian(through))(jnp.concatenate(leaves))
                np.testing.assert_allclose(
                    spectrum.singular_values[window, row],
                    np.linalg.svd(jacobian, compute_uv=False),
                    rtol=1e-8,
                    atol=1e-12,
                )
        np.testing.assert_allclose(spectrum.exponent, spectrum.growth.mean(0), rtol=1e-12)


def test_spectrum_of_a_state_in_bfloat16():
    cell = RNNCell(2, activation_fn="identity", param_dtype="bfloat16")
    params = cell.init(jax.random.key(0), D) | {"w_hh": jnp.diag(jnp.bfloat16([0.5, 2.0]))}
    state = cell.zero_state()._replace(h=jnp.zeros(2, jnp.bfloat16))
    xs = jnp.zeros((20, D), jnp.bfloat16)
    spectrum = jacobian_spectrum(cell, params, xs, state, window=2, burn_in=10)
    np.testing.assert_array_equal(spectrum.singular_values, np.tile([4.0, 0.25], (10, 1)))
    eps = float(jnp.finfo(jnp.bfloat16).eps)  # the precision of a unit vector
    np.testing.assert_allclose(spectrum.exponent, np.log(2), atol=eps)


def test_growth_equals_that_of_a_small_change():
    """The difference between two runs with similar initial states changes by the growth."""
    with jax.enable_x64(True):
        cell = cell_of("gru")
        params, xs = made(cell)
        xs = xs[:, 0]
        key = jax.random.key(5)
        growth = jacobian_spectrum(cell, params, xs, window=T, key=key).growth
        v = jax.random.normal(key, (H,))
        change = 1e-6 * v / jnp.linalg.norm(v)
        start = cell.zero_state()
        one, _ = unroll(cell, params, xs, start._replace(h=start.h + change))
        other, _ = unroll(cell, params, xs, start._replace(h=start.h - change))
        grown = jnp.linalg.norm(one.h - other.h) / 2e-6
        np.testing.assert_allclose(jnp.exp(growth.sum()), grown, rtol=1e-6)


def test_spectrum_of_grids():
    cell = CELLS["conv_lstm"](hidden_size=2, kernel_size=(3,))
    params = cell.init(jax.random.key(0), 1)
    spectrum = jacobian_spectrum(cell, params, jnp.ones((4, B, 3, 1)), window=2)
    assert spectrum.singular_values.shape == (2, B, 12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": 8}, ValueError, "window must be at most T=7, got 8"),
        ({"window": 2.0}, TypeError, "window must be an int, got 2.0"),
        (
            {"window": 2, "burn_in": 7},
            ValueError,
            "burn_in must be at least 0 and below T=7, got 7",
        ),
    ],
)
def test_impossible_windows(options, error, message):
    cell = RNNCell(H)
    with pytest.raises(error, match=message):
        jacobian_spectrum(cell, cell.init(jax.random.key(0), D), jnp.ones((T, D)), **options)


def test_models_that_run_backwards_have_no_spectrum():
    both = Bidirectional(RNNCell(H))
    params = both.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match="model must run forwards in time, got Bidirectional"):
        jacobian_spectrum(both, params, jnp.ones((T, D)), window=2)
    backwards = LSTM(H, reverse=True)
    params = backwards.init(jax.random.key(0), D)
    with pytest.raises(ValueError, match="reverse=True needs the future"):
        jacobian_spectrum(backwards, params, jnp.ones((T, D)), window=2)
