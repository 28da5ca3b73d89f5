"""Every engine and memory plan against the plain scan, for every cell and transform."""

import functools
import itertools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from lstm_jax import CELLS, LSTM, Bidirectional, LSTMCell, Stack, choose_engine, unroll
from lstm_jax.sequence import (
    DropConnect,
    RecurrentDropout,
    VariationalDropout,
    Zoneout,
    engines,
)
from lstm_jax.sequence.engines import ENGINES, MEMORIES
from lstm_jax.sequence.fused import scan

T, B, D, H = 7, 2, 3, 4
SPACE = {"conv_lstm": (3, 2)}
LENGTHS = np.array([7, 3])
RESETS = np.zeros((T, B), bool)
RESETS[2, 0] = RESETS[5, 0] = RESETS[1, 1] = True
LINEAR = [("min_lstm", {}), ("min_gru", {}), ("ind_rnn", {"activation_fn": "identity"})]

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
over_cells = pytest.mark.parametrize("name", list(CELLS))


@pytest.fixture(scope="module", autouse=True)
def short_blocks():
    """Blocks of 3 steps, so that T=7 has two and a remainder; other tests have a single block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "block_size", lambda steps, carry: min(steps, 3))
        jax.clear_caches()  # loops that were traced earlier keep their blocks
        yield
    jax.clear_caches()


def arguments(name, steps=T, dtype=np.float64, **options):
    rng = np.random.default_rng(0)
    cell = CELLS[name](hidden_size=H, param_dtype=np.dtype(dtype).name, **options)
    space = SPACE.get(name, ())
    like = lambda tree: jax.tree.map(  # noqa: E731
        lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(leaf.dtype), tree
    )
    params = like(jax.eval_shape(lambda: cell.init(jax.random.key(0), D)))
    state = like(jax.eval_shape(lambda: cell.zero_state((B, *space))))
    if name == "slstm":
        state = state._replace(n=np.exp(state.n))
    xs = rng.normal(size=(steps, B, *space, D)).astype(dtype)
    return cell, params, xs, state


def loss(cell, params, xs, state, **how):
    last, ys = unroll(cell, params, xs, state, **how)
    leaves = [ys, *jax.tree.leaves(last)]
    return sum(
        (jnp.sin(leaf) * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)).sum()
        for leaf in leaves
    )


def value_and_gradients(name, reverse=False, **how):
    """Value of :func:`loss` with lengths and resets; gradients by parameters, inputs and state."""
    cell, *args = arguments(name)
    f = functools.partial(loss, cell, lengths=LENGTHS, resets=RESETS, reverse=reverse, **how)
    return quick_jit(jax.value_and_grad(f, (0, 1, 2)))(*args)


@functools.cache
def by_scan(name, reverse=False):
    return value_and_gradients(name, reverse, engine="scan")


# Float64, T steps of sums of about 10 terms of order 1, each rounded at 1e-16; the slopes of layer
# normalisation and of the sLSTM's quotient reach several hundred.
close_to_scan = functools.partial(chex.assert_trees_all_close, rtol=1e-11, atol=1e-12)


# Directions and memory plans are written once, for the loop of any cell, so a few cells have all.
EVERY_PLAN = ("lstm", "slstm", "gru")
IN_REVERSE = (*EVERY_PLAN, "conv_lstm")


@pytest.mark.parametrize(
    ("name", "reverse"),
    [(name, False) for name in CELLS] + [(name, True) for name in IN_REVERSE],
)
def test_fused_equals_scan_with_lengths_and_resets(name, reverse):
    memories = ("full", "recompute", "sqrt") if name in EVERY_PLAN else ("full",)
    with jax.enable_x64(True):
        for memory in memories:
            got = value_and_gradients(name, reverse, engine="fused", memory=memory)
            close_to_scan(got, by_scan(name, reverse))


@hypothesis.settings(deadline=None, max_examples=8)
@hypothesis.given(
    st.sampled_from(["lstm", "peephole", "gru", "layer_norm"]),
    st.sampled_from([1, 3, 33, 70]),
    st.sampled_from(MEMORIES[:3]),
    st.booleans(),
    st.data(),
)
def test_any_length_with_any_plan(name, steps, memory, reverse, data):
    lengths = np.array(data.draw(st.lists(st.integers(0, steps), min_size=B, max_size=B)))
    flags = data.draw(st.integers(0, 2**32 - 1))
    resets = np.random.default_rng(flags).random((steps, B)) < 0.1
    with jax.enable_x64(True):
        cell, *args = arguments(name, steps)

        def run(engine, memory):
            f = functools.partial(loss, cell, engine=engine, memory=memory, reverse=reverse)
            return quick_jit(jax.value_and_grad(f))(*args, lengths=lengths, resets=resets)

        expected = run("scan", "full")
        scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        # At most 70 steps, as above.
        got = run("fused", memory)
        chex.assert_trees_all_close(got, expected, rtol=1e-10, atol=1e-12 * max(scale, 1.0))


@functools.cache
def of_lstm(engine, memory, steps):
    cell, *args = arguments("lstm", steps, np.float32)
    f = functools.partial(loss, cell, engine=engine, memory=memory)
    return quick_jit(jax.value_and_grad(f, (0, 1, 2)))(*args)


@pytest.mark.parametrize("engine", ["scan", "fused"])
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("steps", [1, 33])
def test_memory_plans_give_the_same_gradients(engine, memory, steps):
    if (engine, memory) == ("scan", "offload"):
        with pytest.raises(ValueError, match="engine 'scan' cannot offload"):
            of_lstm(engine, memory, steps)
        return
    # 33 steps, about a hundred rounding errors of 6e-8 in numbers of order 10.
    got, expected = of_lstm(engine, memory, steps), of_lstm("scan", "full", steps)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)


def reverse_over_reverse(f, args, tangent):
    grad = jax.grad(lambda a: f(*a))
    return jax.grad(lambda a: sum(jnp.sin(g).sum() for g in jax.tree.leaves(grad(a))))(args)


def ensemble(f, args, tangent):
    params, xs, state = args
    members = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), params)
    return jax.vmap(jax.grad(f), (0, None, None))(members, xs, state)


def per_example(f, args, tangent):
    def of_row(params, xs, state):
        return f(params, xs[:, None], jax.tree.map(lambda a: a[None], state))

    return jax.vmap(jax.grad(of_row), (None, 1, 0))(*args)


TRANSFORMS = {
    "jvp": lambda f, args, tangent: jax.jvp(lambda a: f(*a), (args,), (tangent,)),
    "forward over reverse": lambda f, args, tangent: jax.jvp(
        jax.grad(lambda a: f(*a)), (args,), (tangent,)
    ),
    "reverse over reverse": reverse_over_reverse,
    "reverse over forward": lambda f, args, tangent: jax.grad(
        lambda a: jax.jvp(lambda b: f(*b), (a,), (tangent,))[1]
    )(args),
    "ensemble": ensemble,
    "per-example gradients": per_example,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    ("name", "memory"),
    [("lstm", "full"), ("lstm", "recompute"), ("gru", "sqrt"), ("peephole", "full")],
)
def test_every_transform_of_the_fused_engine(name, memory, transform):
    with jax.enable_x64(True):
        cell, *args = arguments(name, steps=5)
        # Lengths refer to the whole batch, but per-example gradients see one row of it.
        how = {} if transform == "per-example gradients" else {"lengths": np.array([5, 2])}
        tangent = jax.tree.map(np.cos, tuple(args))
        ours, theirs = (
            quick_jit(functools.partial(TRANSFORMS[transform], f))(tuple(args), tangent)
            for f in (
                functools.partial(loss, cell, engine="fused", memory=memory, **how),
                functools.partial(loss, cell, engine="scan", **how),
            )
        )
        chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "around",
    [Zoneout, VariationalDropout, RecurrentDropout, DropConnect],
)
def test_regularisers_sample_the_same_noise_in_every_engine(around):
    with jax.enable_x64(True):
        cell, *args = arguments("lstm")
        cell = around(cell)
        key = jax.random.key(3)
        got, expected = (
            quick_jit(
                jax.value_and_grad(functools.partial(loss, cell, engine=engine, key=key), (0, 1, 2))
            )(*args)
            for engine in ("fused", "scan")
        )
        chex.assert_trees_all_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_learned_initial_states_have_their_gradients(name):
    with jax.enable_x64(True):
        cell, params, xs, _ = arguments(name, learn_initial_state=True)
        got, expected = (
            quick_jit(jax.grad(functools.partial(loss, cell, engine=engine, resets=RESETS)))(
                params, xs, None
            )
            for engine in ("fused", "scan")
        )
        assert (np.abs(expected["h_0"]) > 1e-3).all()
        chex.assert_trees_all_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["lstm", "peephole", "gru", "projected"])
def test_low_precision(name, dtype):
    cell, params, xs, state = arguments(name, dtype=np.float32)
    cell = CELLS[name](H, dtype=dtype)
    got, expected = (
        quick_jit(
            jax.value_and_grad(functools.partial(loss, cell, engine=engine, lengths=LENGTHS))
        )(params, xs, state)
        for engine in ("fused", "scan")
    )
    assert jax.tree.map(jnp.dtype, got) == jax.tree.map(jnp.dtype, expected)
    # Weights' gradients are sums of T * B = 14 numbers of order 1, rounded to the narrow type
    # by step in one engine and by block in the other.
    eps = float(jnp.finfo(dtype).eps)
    chex.assert_trees_all_close(got, expected, rtol=0, atol=14 * eps)


def test_narrow_outputs_are_stacked_in_float32():
    """A CPU scan needs time T² to stack bfloat16 numbers; the engine returns the same numbers."""
    cell = LSTMCell(H, dtype="bfloat16")
    params = cell.init(jax.random.key(0), D)
    xs = jax.random.normal(jax.random.key(1), (9, B, D))

    def run(params, xs):
        return unroll(cell, params, xs, engine="scan")[1]

    def plain(params, xs):
        return jax.lax.scan(functools.partial(cell.step, params), cell.zero_state((B,)), xs)[1]

    ys = run(params, xs)
    assert ys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ys, jax.jit(plain)(params, xs))
    weights = jnp.arange(float(H))
    got, expected = (
        jax.jit(jax.grad(lambda p, f=f: jnp.vdot(f(p, xs).sum((0, 1)), weights)))(params)
        for f in (run, plain)
    )
    # Float32, sums of T * B = 18 terms.
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)

    def stacked(f):
        ((_, eqn),) = scans(jax.make_jaxpr(f)(params, xs).jaxpr)
        return [v.aval.dtype.name for v in eqn.outvars[eqn.params["num_carry"] :]]

    assert stacked(run) == ["float32"]
    assert stacked(plain) == ["bfloat16"]


def test_a_cell_that_contains_a_loop():
    """The engine needs no knowledge of the primitives in the equations."""

    class Power:
        hidden_size = D

        def init(self, key, input_size):
            return {"w": jnp.eye(D) * 0.5}

        def zero_state(self, batch_shape=()):
            return jnp.zeros((*batch_shape, D))

        def step(self, params, state, x):
            h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["w"] + x), None), state, length=3)
            return h, jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, h)

    with jax.enable_x64(True):
        cell, xs = Power(), np.random.default_rng(0).normal(size=(T, B, D))
        args = {"w": np.eye(D) * 0.5}, xs, np.ones((B, D))
        got, expected = (
            jax.jit(jax.value_and_grad(functools.partial(loss, cell, engine=engine), (0, 1, 2)))(
                *args
            )
            for engine in ("fused", "scan")
        )
        chex.assert_trees_all_close(got, expected, rtol=1e-12, atol=1e-13)


def primitives(jaxpr):
    """The names of all primitives in a jaxpr, including inner ones."""
    names = {eqn.primitive.name for eqn in jaxpr.eqns}
    for eqn in jaxpr.eqns:
        for sub in jaxprs_in_params(eqn.params):
            names |= primitives(getattr(sub, "jaxpr", sub))
    return names


def scans(jaxpr, depth=0):
    """Every scan in a jaxpr, with the number of scans around it."""
    for eqn in jaxpr.eqns:
        inner = depth + (eqn.primitive.name == "scan")
        if eqn.primitive.name == "scan":
            yield depth, eqn
        for sub in jaxprs_in_params(eqn.params):
            yield from scans(getattr(sub, "jaxpr", sub), inner)


@pytest.mark.parametrize("name", ["lstm", "layer_norm"])
def test_gates_overwrite_precomputed_values(name):
    """Only in a first derivative, since overwritten values cannot be differentiated again."""
    cell, params, xs, state = arguments(name, dtype=np.float32)
    grad = jax.grad(lambda params, engine: loss(cell, params, xs, state, engine=engine))
    written = f"f32[{T},{B},{4 * H}] = dynamic_update_slice"
    for engine, there in (("fused", True), ("scan", False)):
        assert (written in str(jax.make_jaxpr(lambda p, e=engine: grad(p, e))(params))) == there
    again = jax.make_jaxpr(lambda p: jax.jvp(lambda q: grad(q, "fused"), (p,), (p,)))(params)
    assert written not in str(again)


@pytest.mark.parametrize("name", [name for name in CELLS if name != "conv_lstm"])
def test_no_parameter_gradient_in_the_inner_loop(name):
    """This is the purpose of the engine; the plain scan computes all of them there."""
    cell, params, xs, state = arguments(name, steps=96, dtype=np.float32)
    sizes = {leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim > 1}

    def carried(engine):
        f = functools.partial(loss, cell, engine=engine)
        jaxpr = jax.make_jaxpr(jax.grad(f))(params, xs, state).jaxpr
        found = list(scans(jaxpr))
        innermost = max(depth for depth, _ in found)
        return {
            v.aval.shape
            for depth, eqn in found
            if depth == innermost
            for v in eqn.outvars[: eqn.params["num_carry"]]
        }

    assert not carried("fused") & sizes
    assert carried("scan") & sizes


@pytest.mark.parametrize(("name", "options"), LINEAR)
def test_linear_cells_in_parallel(name, options):
    with jax.enable_x64(True):
        cell, *args = arguments(name, **options)
        how = {"lengths": LENGTHS, "resets": RESETS}
        got, expected = (
            quick_jit(
                jax.value_and_grad(functools.partial(loss, cell, engine=e, **how), (0, 1, 2))
            )(*args)
            for e in ("associative", "scan")
        )
        chex.assert_trees_all_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("engine", ["auto", "scan", "fused"])
def test_no_steps_and_no_batch(engine):
    cell = LSTMCell(H)
    params = cell.init(jax.random.key(0), D)
    state = cell.zero_state(())
    last, ys = unroll(cell, params, jnp.zeros((0, D)), state, engine=engine)
    assert ys.shape == (0, H)
    chex.assert_trees_all_equal(last, state)
    _, ys = unroll(cell, params, jnp.ones((3, D)), engine=engine)
    assert ys.shape == (3, H)


def test_layers_pass_on_engine_and_memory():
    with jax.enable_x64(True):
        xs = np.random.default_rng(0).normal(size=(T, B, D))
        for make in (
            lambda **how: LSTM(H, 2, bidirectional=True, param_dtype="float64", **how),
            lambda **how: Stack([LSTMCell(H, param_dtype="float64")], **how),
            lambda **how: Bidirectional(LSTMCell(H, param_dtype="float64"), **how),
        ):
            plain, fused = make(engine="scan"), make(engine="fused", memory="sqrt")
            params = plain.init(jax.random.key(0), D)
            grads = [
                jax.jit(jax.grad(lambda p, layer=layer: jnp.sin(layer.apply(p, xs)[1]).sum()))(
                    params
                )
                for layer in (plain, fused)
            ]
            chex.assert_trees_all_close(*grads, rtol=1e-11, atol=1e-12)
            names = primitives(jax.make_jaxpr(lambda p, f=fused: f.apply(p, xs))(params).jaxpr)
            assert names & {"checkpoint", "remat", "remat2"}


class TestChoice:
    def test_auto_selects_the_fused_engine(self):
        choice = choose_engine(LSTMCell(H), T, (B,), platform="cpu")
        assert choice.engine == "fused"
        assert set(choice.rejected) == set(ENGINES) - {"auto", "fused"}
        assert all(choice.rejected.values())
        assert choice.reason

    @over_cells
    def test_auto_never_fails(self, name):
        cell = CELLS[name](H)
        cases = itertools.product(MEMORIES, ["cpu", "gpu", "tpu"], [0, 5])
        for memory, platform, steps in cases:
            choice = choose_engine(cell, steps, (B,), memory=memory, platform=platform, resets=True)
            assert choice.engine in ENGINES[1:], (memory, platform, steps)

    def test_no_steps(self):
        for memory in MEMORIES:
            assert choose_engine(LSTMCell(H), 0, memory=memory).engine == "scan"
            _, ys = unroll(
                LSTMCell(H),
                LSTMCell(H).init(jax.random.key(0), D),
                jnp.zeros((0, D)),
                memory=memory,
            )
            assert ys.shape == (0, H)

    def test_linear_recurrences_run_in_parallel_on_accelerators(self):
        cell = CELLS["min_lstm"](H)
        assert choose_engine(cell, T, (B,), platform="gpu").engine == "associative"
        choice = choose_engine(cell, T, (B,), platform="cpu")
        assert choice.engine == "fused"
        assert "processors" in choice.rejected["associative"]

    @pytest.mark.parametrize(
        ("cell", "options", "words"),
        [
            (CELLS["peephole"](H), {}, "is for LSTMCell, not for PeepholeLSTMCell"),
            (LSTMCell(H, cell_clip=1.0), {}, "standard LSTM"),
            (LSTMCell(H, activation_fn="relu"), {}, "standard LSTM"),
            (LSTMCell(H, dtype="bfloat16"), {}, "only for float32"),
            (LSTMCell(H), {"dtype": "float64"}, "only for float32"),
            (LSTMCell(H), {"resets": True}, "does not support resets"),
            (LSTMCell(H), {"memory": "sqrt"}, "not support memory='sqrt'"),
            (LSTMCell(H), {"batch_shape": (2, 3)}, "one batch axis, not 2"),
            (LSTMCell(H), {}, "no vmap and no jvp"),
        ],
    )
    def test_why_not_cudnn(self, cell, options, words):
        options = {"batch_shape": (B,), "platform": "gpu"} | options
        assert words in choose_engine(cell, T, **options).rejected["cudnn"]


class TestErrors:
    def run(self, cell=None, **how):
        cell = LSTMCell(H) if cell is None else cell
        return unroll(cell, cell.init(jax.random.key(0), D), jnp.zeros((T, B, D)), **how)

    def test_unknown_engine(self):
        with pytest.raises(ValueError, match=r"engine must be one of auto, .*, got 'fast'"):
            self.run(engine="fast")

    def test_unknown_memory(self):
        with pytest.raises(ValueError, match=r"memory must be one of full, .*, got 'low'"):
            self.run(memory="low")
        with pytest.raises(ValueError, match=r"memory must be one of full, .*, got 'low'"):
            choose_engine(LSTMCell(H), T, memory="low")

    def test_an_engine_that_does_not_support_the_arguments(self):
        with pytest.raises(ValueError, match=r"engine 'associative' is for cells whose recurrence"):
            self.run(engine="associative")
        with pytest.raises(ValueError, match=r"engine 'cudnn' needs an NVIDIA GPU, not cpu"):
            self.run(engine="cudnn")
        with pytest.raises(ValueError, match=r"engine 'associative' stores every step"):
            self.run(CELLS["min_gru"](H), engine="associative", memory="sqrt")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["lstm", "conv_lstm", "slstm"])
def test_a_split_batch(monkeypatch, name, reverse):
    """The batch is split on one CPU device; here it is split on two to make it visible."""
    with jax.enable_x64(True):
        expected = by_scan(name, reverse)
        monkeypatch.setattr(engines, "splits_batch", lambda state, batch_shape: True)
        close_to_scan(value_and_gradients(name, reverse, engine="fused"), expected)


@over_cells
def test_precomputed_factors(monkeypatch, name):
    """As on a single CPU device; with two, the loop computes them, as other tests check."""
    with jax.enable_x64(True):
        expected = by_scan(name)
        monkeypatch.setattr(scan, "has_all_cores", lambda *arrays: True)
        jax.clear_caches()
        for memory in ("full", "recompute") if name in EVERY_PLAN else ("full",):
            close_to_scan(value_and_gradients(name, engine="fused", memory=memory), expected)
        jax.clear_caches()


def test_which_cells_have_precomputed_factors(monkeypatch):
    """Those whose loop does not read more than without them."""
    chosen = []
    known = scan.LinearizedStep.with_factors

    def noted(linear):
        chosen.append(known(linear).has_factors)
        return known(linear)

    monkeypatch.setattr(scan, "has_all_cores", lambda *arrays: True)
    monkeypatch.setattr(scan.LinearizedStep, "with_factors", noted)
    jax.clear_caches()
    for name in ("lstm", "peephole", "coupled", "layer_norm"):
        cell, params, xs, state = arguments(name, dtype=np.float32)
        jax.eval_shape(jax.grad(functools.partial(loss, cell, engine="fused")), params, xs, state)
    assert chosen == [True, True, False, False]
    jax.clear_caches()


def test_when_the_batch_is_split(monkeypatch):
    state = jnp.zeros((32, 256))
    assert not engines.splits_batch(state, (32,)), "two devices share the batch"
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    assert engines.splits_batch(state, (32,))
    assert not engines.splits_batch(state, ())
    assert not engines.splits_batch(state[:31], (31,))
    assert not engines.splits_batch(state[:2], (2,)), "too small"


@pytest.mark.parametrize("engine", ["scan", "fused"])
def test_a_learned_initial_state_on_several_devices(engine):
    """Inside shard_map, parameters vary over devices, and so do learned initial states."""
    cell, params, xs, _ = arguments("lstm", dtype=np.float32, learn_initial_state=True)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def total(params, xs, resets):
        return jnp.sin(unroll(cell, params, xs, resets=resets, engine=engine)[1]).sum()

    def local(params, xs, resets):
        params = jax.lax.pcast(params, "data", to="varying")
        return jax.lax.psum(jax.grad(total)(params, xs, resets), "data")

    rows = spec(None, "data")
    shared = jax.shard_map(local, mesh=mesh, in_specs=(spec(), rows, rows), out_specs=spec())
    # Sums over 14 steps in another order, float32.
    chex.assert_trees_all_close(
        jax.jit(shared)(params, xs, RESETS), jax.grad(total)(params, xs, RESETS), atol=1e-5
    )
