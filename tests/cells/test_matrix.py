"""Every cell, with every option that changes its arithmetic, in every transformation.

One table of cases; a cell without a case in it fails.  Cases of ``STRUCTURES`` (one for each
set of equations) run through all tests, those of ``FUNCTIONS`` (one for each element-wise
option) through values and gradients.
"""

import dataclasses
import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import unroll
from lstm_jax.cells import CELLS
from lstm_jax.sequence import initial_state
from tests import oracles

T, B, D, H = 4, 2, 3, 4
LENGTHS = np.array([4, 2])
RESETS = np.array([[False, False], [False, True], [True, False], [False, True]])


@dataclasses.dataclass(frozen=True)
class Case:
    """A cell of the table, and the shape of one row's input at one step."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    space: tuple[int, ...] = ()  # axes of an input between batch and features

    def __str__(self):
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options)])

    def cell(self, **more):
        return CELLS[self.name](hidden_size=H, **dict(self.options), **more)

    @property
    def oracle(self):
        return functools.partial(oracles.unroll, self.name, **dict(self.options))


def case(name, space=(), **options):
    return Case(
        name, tuple(options.items()), (3, 2) if name == "conv_lstm" and not space else space
    )


STRUCTURES = [
    case("lstm_1997"),
    case("lstm_1997", block_size=2),
    case("lstm"),
    case("peephole"),
    case("coupled"),
    case("coupled", peepholes=True),
    *[case(variant) for variant in ("nig", "nfg", "nog", "niaf", "noaf", "np", "fgr")],
    case("projected"),
    case("projected", proj_size=3),
    case("layer_norm"),
    case("multiplicative"),
    case("mogrifier"),
    case("mogrifier", rounds=0),
    case("mogrifier", rounds=2, rank=1),
    case("slstm"),
    case("slstm", num_heads=2, forget_fn="exp"),
    case("min_lstm"),
    case("min_gru"),
    case("gru"),
    case("gru", reset_after=True),
    case("mgu"),
    case("rnn"),
    case("ind_rnn"),
    case("ea_lstm"),
    case("ea_lstm", static_size=2),
    case("conv_lstm"),
    case("conv_lstm", space=(5,), kernel_size=(3,), peepholes=True),
    case("conv_lstm", space=(2, 3), kernel_size=(1, 3), peepholes=True, spatial_shape=(2, 3)),
    case("conv_lstm", space=(2, 1, 3), kernel_size=(1, 1, 3)),
]

# The slowest tests run once for each cell.
FIRST = [case for n, case in enumerate(STRUCTURES) if case.name != STRUCTURES[n - 1].name]

# Functions other than the defaults, and clips that are small enough to have an effect.
ELEMENTWISE = {"gate_fn": "hard_sigmoid", "activation_fn": "softsign", "preactivation_clip": 0.4}
LSTM_FAMILY = {"output_fn": "identity", "cell_clip": 0.3}
FUNCTIONS = [
    # Separately for cells with explicit equations, and all together for every cell.
    *[
        case(name, **{option: value})
        for name in ("lstm", "peephole")
        for option, value in (ELEMENTWISE | LSTM_FAMILY).items()
    ],
    *[
        case(name, **ELEMENTWISE, **LSTM_FAMILY)
        for name in (
            *("lstm_1997", "coupled", "nig", "nfg", "nog", "niaf", "np", "fgr", "projected"),
            *("layer_norm", "multiplicative", "mogrifier", "ea_lstm", "conv_lstm"),
        )
    ],
    case("noaf", **ELEMENTWISE, cell_clip=0.3),  # has no output_fn
    case("coupled", peepholes=True, cell_clip=0.3),
    case("lstm_1997", block_size=2, activation_fn="tanh", output_fn="tanh"),
    case("lstm", activation_fn="relu"),
    case("lstm", activation_fn="gelu", output_fn="tanh"),
    case("layer_norm", epsilon=0.1),
    *[
        case(name, **{option: value})
        for name in ("slstm", "gru")
        for option, value in ELEMENTWISE.items()
    ],
    *[case(name, **ELEMENTWISE) for name in ("mgu", "min_gru")],
    case("min_lstm", activation_fn="softsign", preactivation_clip=0.4),  # gates are sigmoids
    case("gru", reset_after=True, activation_fn="relu", preactivation_clip=0.4),
    *[case(name, activation_fn=f) for name in ("min_lstm", "min_gru") for f in ("tanh", "gelu")],
    case("rnn", activation_fn="relu"),
    case("rnn", preactivation_clip=0.4),
    case("ind_rnn", activation_fn="identity"),
    case("ind_rnn", activation_fn="tanh", preactivation_clip=0.4),
]

over_all = pytest.mark.parametrize("case", STRUCTURES + FUNCTIONS, ids=str)
over_structures = pytest.mark.parametrize("case", STRUCTURES, ids=str)


def test_every_cell_has_its_cases_and_its_oracle():
    assert {case.name for case in STRUCTURES} == set(CELLS), "cells without a case, or the reverse"
    assert set(oracles.ORACLES) == set(CELLS), "cells without an oracle, or the reverse"
    assert len({str(case) for case in STRUCTURES + FUNCTIONS}) == len(STRUCTURES + FUNCTIONS)


# ---- what the tests share ----

# Programs that run a few times need not be fast; this halves the time to compile them.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn(rng, tree, dtype, scale=1.0):
    """Normal numbers in the shapes of ``tree``."""
    return jax.tree.map(lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(dtype), tree)


def arguments(case, given=np.float64, scale=0.7, steps=T, batch=(B,), **more):
    """A cell with parameters, inputs and a state of random numbers: ``(cell, params, xs, state)``.

    The parameters are not those of ``init``, since many of these are zero.
    """
    rng = np.random.default_rng(0)
    cell = case.cell(**more)
    params = drawn(rng, jax.eval_shape(lambda: cell.init(jax.random.key(0), D)), given, scale)
    xs = drawn(rng, jax.ShapeDtypeStruct((steps, *batch, *case.space, D), given), given)
    zero = jax.eval_shape(lambda: initial_state(cell, params, (*batch, *case.space), xs))
    state = drawn(rng, zero, given, 0.5)
    if case.name == "slstm":  # a normaliser is a sum of exponentials
        state = state._replace(n=np.exp(state.n))
    return cell, params, xs, jax.tree.map(lambda a, z: a.astype(z.dtype), state, zero)


def scalar(last, ys):
    """A loss that depends on every output and every field of the last state in a different way."""
    total = 0.0
    for n, array in enumerate([ys, *last]):
        weight = jnp.cos(jnp.arange(array.size) + n).reshape(array.shape).astype(array.dtype)
        total = total + (weight * (jnp.sin(array) + array)).sum()
    return total


def loss(cell, params, xs, state, **how):
    return scalar(*unroll(cell, params, xs, state, **how))


def dicts(*trees):
    """States as dicts of NumPy arrays."""
    return [{name: np.asarray(array) for name, array in tree._asdict().items()} for tree in trees]


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def direction(rng, tree):
    """A tangent of length one."""
    tangent = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), tree)
    length = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tangent)))
    return jax.tree.map(lambda leaf: leaf / length, tangent)


def inner(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.vdot(x, y)) for x, y in pairs)


# ---- values and derivatives, in float64 ----


@over_all
def test_values_equal_the_numpy_loop(case):
    with jax.enable_x64(True):
        cell, params, xs, state = arguments(case)
        every = case in STRUCTURES
        for reverse in (False, True) if every else (len(str(case)) % 2 == 0,):
            run = quick_jit(functools.partial(unroll, cell, reverse=reverse))
            last, ys = run(params, xs, state, lengths=LENGTHS, resets=RESETS)
            (given,) = dicts(state)
            expected, expected_ys = case.oracle(params, xs, given, LENGTHS, RESETS, reverse)
            assert dtypes((last, ys)) == {"float64"}, "float64 in, float64 out"
            # Sums of at most 9 * (D + H) terms of order 1 over T steps: a hundred rounding errors
            # of 1e-16.  Layer normalisation divides by a standard deviation of that order.
            close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
            close(ys, expected_ys, err_msg=f"outputs, {reverse=}")
            (last,) = dicts(last)
            assert set(last) == set(expected)
            for field in expected:
                close(last[field], expected[field], err_msg=f"last {field}, {reverse=}")


@over_all
def test_derivatives_equal_finite_differences(case):
    with jax.enable_x64(True):
        cell, params, xs, state = arguments(case)
        args = params, xs, state
        rng = np.random.default_rng(1)
        how = {"lengths": LENGTHS, "resets": RESETS[:, ::-1]}
        derivative = jax.value_and_grad(functools.partial(loss, cell, **how), argnums=(0, 1, 2))
        value_and_grad = quick_jit(derivative)
        _, grads = value_and_grad(*args)
        assert dtypes(grads) == {"float64"}
        step = 1e-5

        def around(tangent):
            move = lambda sign: jax.tree.map(lambda a, v: a + sign * step * v, args, tangent)  # noqa: E731
            return value_and_grad(*move(1)), value_and_grad(*move(-1))

        # Central differences along directions of length one err by the third derivative times
        # step**2 = 1e-10 and by rounding errors of 1e-15 / step = 1e-10, each times order 1 to 100.
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        none = jax.tree.map(np.zeros_like, args)
        for n, what in enumerate(("parameters", "inputs", "initial state")):
            tangent = tuple(direction(rng, args[m]) if m == n else none[m] for m in range(3))
            (up, _), (down, _) = around(tangent)
            close(inner(grads, tangent), (up - down) / (2 * step), err_msg=f"gradient for {what}")

        if case not in FIRST:
            return
        tangent = direction(rng, args)
        (_, up), (_, down) = around(tangent)
        # Forward over reverse: the first output's tangent is J v, the second's is H v.
        products = quick_jit(lambda a, v: jax.jvp(lambda a: derivative(*a), (a,), (v,)))
        _, (jv, hv) = products(args, tangent)
        np.testing.assert_allclose(
            jv, inner(grads, tangent), rtol=1e-10, atol=1e-12, err_msg="forward and reverse mode"
        )
        for product, plus, minus in zip(*map(jax.tree.leaves, (hv, up, down)), strict=True):
            close(product, (plus - minus) / (2 * step), err_msg="Hessian times vector")


@pytest.mark.parametrize("forget_fn", ["sigmoid", "exp"])
def test_slstm_equals_its_unstabilised_equations(forget_fn):
    """From a state that has not begun; with m, the stored c and n are short of exp(m)."""
    with jax.enable_x64(True):
        cell, params, xs, _ = arguments(case("slstm", forget_fn=forget_fn))
        last, ys = unroll(cell, params, xs)
        for row in range(B):
            state = {field: np.zeros(H) for field in "hcn"}
            for t in range(T):
                state, y = oracles.slstm_unstabilised(params, state, xs[t, row], forget_fn)
                np.testing.assert_allclose(ys[t, row], y, rtol=1e-12)
            for field in "cn":
                stored = getattr(last, field)[row] * np.exp(last.m[row])
                np.testing.assert_allclose(stored, state[field], rtol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "case",
    [case("min_lstm"), case("min_gru"), case("ind_rnn", activation_fn="identity")],
    ids=str,
)
def test_linear_cells_in_parallel_equal_the_numpy_loop(case, reverse):
    with jax.enable_x64(True):
        cell, params, xs, state = arguments(case)
        how = {"lengths": LENGTHS, "resets": RESETS, "reverse": reverse}
        (given,) = dicts(state)
        expected, expected_ys = case.oracle(params, xs, given, LENGTHS, RESETS, reverse)
        last, ys = unroll(cell, params, xs, state, engine="associative", **how)
        np.testing.assert_allclose(ys, expected_ys, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(last.h, expected["h"], rtol=1e-12, atol=1e-12)
        scan, parallel = (
            quick_jit(jax.grad(functools.partial(loss, cell, engine=engine, **how), (0, 1, 2)))(
                params, xs, state
            )
            for engine in ("scan", "associative")
        )
        chex.assert_trees_all_close(parallel, scan, rtol=1e-11, atol=1e-12)


# ---- transformations ----


@over_structures
def test_transformations_change_nothing(case):
    with jax.enable_x64(True):
        cell, params, xs, state = arguments(case)
        # A few rounding errors of numbers of order 1, in a different order.
        close = functools.partial(chex.assert_trees_all_close, rtol=1e-11, atol=1e-12)

        compiled = quick_jit(cell.step)
        batch = compiled(params, state, xs[0])
        again = jax.tree.map(np.sin, params), jax.tree.map(np.asarray, batch[0]), xs[1]
        compiled(*again)
        assert compiled._cache_size() == 1, "new values must not compile again"
        if case in FIRST:  # each operation is compiled by itself
            close(batch, cell.step(params, state, xs[0]), custom_message="jit")
        mapped = quick_jit(jax.vmap(cell.step, in_axes=(None, 0, 0)))
        close(mapped(params, state, xs[0]), batch, custom_message="vmap over the batch")

        if case not in FIRST:
            return

        def body(params, state, xs, step):
            state, ys = jax.lax.scan(functools.partial(step, params), state, xs)
            return scalar(state, ys)

        # scalar() of separate rows differs from that of all rows, so it is computed for each row.
        rows = quick_jit(jax.vmap(jax.grad(functools.partial(body, step=cell.step)), (None, 0, 1)))
        single = quick_jit(jax.grad(functools.partial(body, step=jax.checkpoint(cell.step))))
        by_row = rows(params, state, xs)
        for row in range(B):
            alone = single(params, jax.tree.map(lambda a, r=row: a[r], state), xs[:, row])
            ours = jax.tree.map(lambda a, r=row: a[r], by_row)
            close(ours, alone, custom_message="gradients by example, and of a checkpointed step")
        assert single._cache_size() == 1


def test_a_leaked_tracer_is_found(checking_leaks):
    leaked = []
    with checking_leaks(), pytest.raises(Exception, match="Leaked trace"):
        jax.eval_shape(jax.jit(lambda x: leaked.append(x + 1)), 1.0)


@over_structures
def test_tracing_leaks_nothing_and_promotes_nothing(case, checking_leaks):
    cell, params, xs, state = arguments(case, np.float32)
    run = jax.value_and_grad(functools.partial(loss, cell), (0, 1, 2))
    with checking_leaks():
        jax.eval_shape(jax.jit(run), params, xs, state)
    with jax.numpy_dtype_promotion("strict"):
        new, y = jax.eval_shape(cell.step, params, state, xs[0])
    assert dtypes((new, y)) == {"float32"}


@over_structures
@pytest.mark.parametrize("types", [("float32", "bfloat16"), ("bfloat16", None)], ids=str)
def test_no_cell_relies_on_implicit_type_promotion(case, types):
    stored, dtype = types
    cell = case.cell(param_dtype=stored, dtype=dtype)
    x = jnp.ones((B, *case.space, D), stored)

    def run():
        params, state = cell.init(jax.random.key(0), D), cell.zero_state((B, *case.space))
        if cell.is_linear:
            cell.linear_recurrence(params, x)
        return cell.step(params, state, x)

    with jax.numpy_dtype_promotion("strict"):
        _, y = jax.eval_shape(run)
    assert y.dtype == "bfloat16"


# ---- types ----


# Cells with products of values other than x and the last h, which are rounded for them.
BETWEEN = ("multiplicative", "mogrifier", "gru", "mgu", "fgr")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@over_structures
def test_low_precision_errors_are_bounded(case, dtype):
    """Only products have narrow operands; everything else is in float32, so only h is rounded.

    The oracle has the rounded weights, inputs and first h.  After one step (row 0), everything
    except h is therefore exact up to float32, and h up to its own rounding.  Over T steps (row 1),
    T roundings of eps / 2 reach the outputs, and gates with slopes below one do not amplify them.
    """
    cell, params, xs, state = arguments(case, np.float32, dtype=dtype)
    lengths = np.array([1, T])
    last, ys = quick_jit(functools.partial(unroll, cell))(params, xs, state, lengths=lengths)
    assert ys.dtype == last.h.dtype == dtype
    assert dtypes(last._replace(h=jnp.zeros(()))) == {"float32"}, "all but h is float32"

    rounded = lambda array: array.astype(dtype).astype(np.float32)  # noqa: E731
    params = {key: rounded(a) if key.startswith("w_") else a for key, a in params.items()}
    (given,) = dicts(state)
    expected, expected_ys = case.oracle(params, rounded(xs), given, lengths)
    (last,) = dicts(last)
    eps = float(jnp.finfo(dtype).eps)
    for field in expected:
        got, right = last[field].astype(np.float64), expected[field]
        size = max(1.0, np.abs(right).max())
        if case.name in BETWEEN or (case.name, field) == ("projected", "h"):
            once = eps * size
        elif field == "h":
            once = eps / 2 * size
        else:
            once = 0.0
        # Float32 sums of up to 9 * (D + H) = 63 terms of order 1.
        np.testing.assert_allclose(got[0], right[0], rtol=0, atol=once + 63 * 6e-8 * size)
        np.testing.assert_allclose(got[1], right[1], rtol=0, atol=T * eps / 2 * size)
    size = max(1.0, np.abs(expected_ys).max())
    np.testing.assert_allclose(
        np.asarray(ys, np.float64), expected_ys, rtol=0, atol=T * eps / 2 * size
    )


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, "bfloat16") for case in FIRST]
    + [(case, "float16") for case in FIRST if case.name in ("lstm", "mogrifier", "conv_lstm")],
    ids=str,
)
def test_low_precision_gradient_errors_are_bounded(case, dtype):
    """The reference is the gradient in float32 of the rounded weights and inputs.

    Each step rounds h in the forward pass, and the cotangents of its products and of h in the
    backward pass: 3 T consecutive rounding errors of eps / 2.
    """
    cell, params, xs, state = arguments(case, np.float32, dtype=dtype)
    rounded = lambda array: array.astype(dtype).astype(np.float32)  # noqa: E731
    params = {key: rounded(a) if key.startswith("w_") else a for key, a in params.items()}

    def gradients(cell, state):
        def wide_loss(params, xs):
            return scalar(*jax.tree.map(jnp.float32, unroll(cell, params, xs, state)))

        return quick_jit(jax.grad(wide_loss, (0, 1)))(params, rounded(xs))

    given = gradients(cell, state)
    expected = gradients(case.cell(), jax.tree.map(jnp.float32, state))
    eps = float(jnp.finfo(dtype).eps)
    for got, right in zip(*map(jax.tree.leaves, (given, expected)), strict=True):
        error = np.linalg.norm(np.asarray(got, np.float64) - np.asarray(right, np.float64))
        assert error <= 3 * T * eps / 2 * np.linalg.norm(right)


@pytest.mark.parametrize(("name", "large"), [("multiplicative", "w_mx"), ("mogrifier", "w_q1")])
def test_sums_beyond_float16_are_multiplied_before_they_are_rounded(name, large):
    """The largest float16 is 65504; only values that are multiplied again are rounded to it."""
    one, cell = case(name), case(name).cell(dtype="float16")
    params, state = cell.init(jax.random.key(0), D), cell.zero_state((B,))
    params |= {large: jnp.full_like(params[large], 3e4)}
    state = state._replace(h=jnp.full_like(state.h, 1e-3 if name == "multiplicative" else 1.0))
    x = jnp.full((B, D), 1.0)
    assert ((x if name == "multiplicative" else state.h) @ params[large] > 65504).all()
    _, y = cell.step(params, state, x)
    (given,) = dicts(state)
    _, expected = one.oracle(params, x[None], given)
    # Weights of order 1 and numbers up to 2**3 x, rounded by half of 2**-10 in a few places.
    np.testing.assert_allclose(y, expected[0], rtol=0, atol=0.02)


@over_structures
def test_a_scan_preserves_any_types(case):
    _, params, xs, state = arguments(case, np.float32)
    pair = ("bfloat16", "float32")
    for types in [(*three, None) for three in itertools.product(pair, repeat=3)] + [
        ("float32", "float32", "float32", "bfloat16"),
        ("bfloat16", "bfloat16", "bfloat16", "float32"),
    ]:
        for_params, for_state, for_x, dtype = types
        cell = case.cell(param_dtype=for_params, dtype=dtype)
        last, ys = jax.eval_shape(
            lambda p, s, x, cell=cell: jax.lax.scan(functools.partial(cell.step, p), s, x),
            jax.tree.map(lambda a, t=for_params: a.astype(t), params),
            jax.tree.map(lambda a, t=for_state: a.astype(t), state),
            xs.astype(for_x),
        )
        what = f"params, state, x and option: {types}"
        assert dtypes(last) == {for_state}, what
        assert ys.dtype == last.h.dtype, what
        zero = jax.eval_shape(cell.zero_state)
        assert zero.h.dtype == (dtype or for_params), what
        assert dtypes(zero._replace(h=jnp.zeros(()))) == {"float32"}, what


@over_structures
def test_a_state_is_as_wide_as_the_widest_of_parameters_and_inputs(case):
    widths = ["bfloat16", "float32", "float64"]
    with jax.enable_x64(True):
        cell, params, xs, state = arguments(case)
        for for_params, for_x in itertools.product(widths, repeat=2):
            given = jax.tree.map(lambda a, t=for_params: a.astype(t), params), xs.astype(for_x)
            width = max(for_params, for_x, key=widths.index)
            accumulated = max(width, "float32", key=widths.index)
            for engine in ("scan", "fused", *(["associative"] if cell.is_linear else [])):
                run = functools.partial(unroll, cell, resets=RESETS, engine=engine)
                last, ys = jax.eval_shape(run, *given)
                what = f"{engine}, parameters and inputs: {for_params}, {for_x}"
                assert ys.dtype == last.h.dtype == width, what
                others = [leaf.dtype for name, leaf in last._asdict().items() if name != "h"]
                assert all(dtype == accumulated for dtype in others), what
                passed = jax.tree.map(lambda a: a.astype(np.float32), state)
                assert dtypes(jax.eval_shape(run, *given, passed)) == {"float32"}, what


# ---- edges ----


@over_structures
def test_saturated_gates_and_masked_steps_have_finite_gradients(case):
    """Pre-activations of 1e4 and more, with both signs; steps that a row does not read are NaN.

    Float32 reaches 3e38.  The largest numbers are those of cells whose candidates are not
    squashed: ind_rnn multiplies by u = 1e4 in each of T = 4 steps, so its outputs are of order
    1e20, and its gradients are larger by another factor of 1e4 or 1e8.
    """
    cell, params, xs, state = arguments(case, np.float32, scale=1e4)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def run(params, xs, state, mask):
        last, ys = unroll(cell, params, xs, state, mask=mask)
        return ys.sum() + last.h.sum()

    rows = np.array([[True, False]] * T), np.array([[False, True], [True, False]] * (T // 2))
    for begin in (state, cell.zero_state((B, *case.space))):
        for mask in rows:
            absent = ~mask.reshape(T, B, *[1] * (xs.ndim - 2))
            value, grads = run(params, jnp.where(absent, jnp.nan, xs), begin, mask)
            assert np.isfinite(value)
            chex.assert_tree_all_finite(grads)
            assert not np.where(absent, grads[1], 0.0).any(), "no gradient at masked steps"


@over_structures
def test_a_learned_initial_state_is_a_parameter_and_resets_restore_it(case):
    with jax.enable_x64(True):
        cell, params, xs, _ = arguments(case, learn_initial_state=True)
        fields = cell.zero_state()._fields
        learned = set(fields) - ({"n"} if case.name == "slstm" else set())  # which is 1
        assert {f"{field}_0" for field in learned} == set(params) - set(
            case.cell().all_parameters(D)
        ), "a parameter for each field"
        whole = {**params, "n_0": np.ones(H)} if case.name == "slstm" else params

        def run(params, xs):
            last, ys = unroll(cell, params, xs, lengths=LENGTHS, resets=RESETS)
            return scalar(last, ys), (last, ys)

        (_, (last, ys)), grads = quick_jit(jax.value_and_grad(run, has_aux=True))(params, xs)
        expected, expected_ys = case.oracle(whole, xs, None, LENGTHS, RESETS)
        np.testing.assert_allclose(ys, expected_ys, rtol=1e-12, atol=1e-12)
        (last,) = dicts(last)
        for field in fields:
            np.testing.assert_allclose(last[field], expected[field], rtol=1e-12, atol=1e-12)
        for field in learned:
            assert np.abs(grads[f"{field}_0"]).max() > 1e-3, f"{field}_0 receives gradient"


@pytest.mark.parametrize("value", [-20.0, -1.0, 0.0, 20.0])
@pytest.mark.parametrize("written", [-200.0, 0.0])
def test_slstm_divides_only_by_positive_numbers(value, written):
    """h is o times a mean of candidates and the first c / n, with weights of at least 0."""
    cell = case("slstm").cell(learn_initial_state=True)
    params = cell.init(jax.random.key(0), D)
    begun = {key: jnp.full(H, value) for key in params if key.endswith("_0")}
    params |= begun | {"b": params["b"].at[:H].set(written)}  # in float32 exp(-200) is 0
    xs = jax.random.normal(jax.random.key(1), (T, B, D))

    def run(params):
        _, ys = unroll(cell, params, xs)
        return ys.sum(), ys

    (_, ys), grads = quick_jit(jax.value_and_grad(run, has_aux=True))(params)
    assert np.abs(ys).max() <= max(1.0, abs(value))
    chex.assert_tree_all_finite(grads)


@over_all
def test_cells_with_equal_options_are_equal(case):
    assert case.cell() == case.cell()
    assert hash(case.cell()) == hash(case.cell())
    assert case.cell() != case.cell(learn_initial_state=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.cell().hidden_size = 5
