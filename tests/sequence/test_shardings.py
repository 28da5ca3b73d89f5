"""A sharded batch stays sharded through every engine, forward and backward."""

import contextlib
import functools
import re
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lstm_jax.linen
import lstm_jax.nnx
from lstm_jax import CELLS, LSTM, Bidirectional, LSTMCell, unroll
from lstm_jax.sequence import (
    DropConnect,
    RecurrentDropout,
    VariationalDropout,
    Zoneout,
    shardings,
)
from lstm_jax.sequence.fused import scan

T, B, D, H = 32, 16, 6, 8
SPACE = {"conv_lstm": (3, 2)}
ROWS = {
    "lengths": np.random.default_rng(1).integers(0, T + 1, B),
    "mask": np.random.default_rng(2).random((T, B)) < 0.9,
    "resets": np.random.default_rng(3).random((T, B)) < 0.1,
}
COLLECTIVES = r"\b(all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(?:-start)?\("

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def mesh_of(kind, axis="data"):
    return jax.make_mesh((2,), (axis,), axis_types=(kind,))


def collectives(compiled):
    return set(re.findall(COLLECTIVES, compiled.as_text()))


def random_like(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), tree)


# ---- models: ``run(params, xs, lengths=, mask=, resets=) -> ys``, and the axis of their batch ----


def functional(part):
    def run(params, xs, **rows):
        if hasattr(part, "apply"):
            return part.apply(params, xs, **rows)[1]
        return unroll(part, params, xs, **rows)[1]

    return part.init(jax.random.key(0), D), run, 1


def nnx_lstm():
    module = lstm_jax.nnx.LSTM(D, H, 2, bidirectional=True, rngs=nnx.Rngs(0))
    graph, params = nnx.split(module)

    def run(params, xs, lengths=None, mask=None, resets=None):
        rows = {"mask": mask, "resets": resets}
        rows = {name: None if a is None else a.T for name, a in rows.items()}
        return nnx.merge(graph, params)(xs, seq_lengths=lengths, **rows)

    return params, run, 0


def linen_lstm():
    module = lstm_jax.linen.LSTM(H, 2)

    def run(params, xs, lengths=None, mask=None, resets=None):
        rows = {"mask": mask, "resets": resets}
        rows = {name: None if a is None else a.T for name, a in rows.items()}
        return module.apply(params, xs, seq_lengths=lengths, **rows)

    return module.init(jax.random.key(0), jnp.zeros((B, T, D))), run, 0


MODELS = {
    "lstm": lambda: functional(LSTMCell(H)),
    "gru": lambda: functional(CELLS["gru"](H)),
    "stack": lambda: functional(LSTM(H, 2)),
    "both directions": lambda: functional(Bidirectional(LSTMCell(H))),
    "nnx": nnx_lstm,
    "linen": linen_lstm,
}


def outputs_and_gradients(run):
    def f(params, xs, rows):
        def loss(params, xs):
            ys = run(params, xs, **rows)
            return (jnp.sin(ys) * jnp.cos(jnp.arange(ys.shape[-1]))).sum(), ys

        grads, ys = jax.grad(loss, (0, 1), has_aux=True)(params, xs)
        return ys, *grads

    return f


@functools.cache
def unsharded(name, with_rows):
    """Results and temporary memory on one device."""
    params, run, batch_axis = MODELS[name]()
    args = random_like(params), inputs(batch_axis), ROWS if with_rows else {}
    compiled = quick_jit(outputs_and_gradients(run)).lower(*args).compile()
    return compiled(*args), compiled.memory_analysis().temp_size_in_bytes


def inputs(batch_axis):
    return np.random.default_rng(0).normal(size=(T, B, D) if batch_axis else (B, T, D))


CASES = [
    *((name, kind, True, False) for name in MODELS for kind in (AxisType.Auto, AxisType.Explicit)),
    ("lstm", AxisType.Auto, False, False),
    ("lstm", AxisType.Explicit, False, True),
    ("nnx", AxisType.Explicit, False, True),
]


@pytest.mark.parametrize(("name", "kind", "with_rows", "set_mesh"), CASES)
def test_each_device_computes_its_rows(name, kind, with_rows, set_mesh):
    """The only collective is the sum of parameter gradients, and memory is divided as well.

    The program contains the forward pass, so that a collective there is found as well.
    """
    mesh = mesh_of(kind)
    with jax.enable_x64(True), jax.set_mesh(mesh) if set_mesh else contextlib.nullcontext():
        expected, memory = unsharded(name, with_rows)
        params, run, batch_axis = MODELS[name]()

        def put(tree, *axes):
            return jax.device_put(tree, NamedSharding(mesh, P(*axes)))

        batch = (None, "data") if batch_axis else ("data",)
        rows = {
            key: put(value, "data") if key == "lengths" else put(value, None, "data")
            for key, value in (ROWS if with_rows else {}).items()
        }
        args = put(random_like(params)), put(inputs(batch_axis), *batch), rows
        compiled = quick_jit(outputs_and_gradients(run)).lower(*args).compile()
        got = compiled(*args)

        # Float64, sums of T * B = 512 terms of order 1 in another order.
        chex.assert_trees_all_close(got, expected, rtol=1e-10, atol=1e-11)
        assert collectives(compiled) == {"all-reduce"}
        ys, d_params, d_xs = got
        for array in (ys, d_xs):
            wanted = NamedSharding(mesh, P(*batch))
            assert array.sharding.is_equivalent_to(wanted, array.ndim), array.sharding
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(d_params))
        assert compiled.memory_analysis().temp_size_in_bytes <= 0.6 * memory


@pytest.mark.parametrize("check_vma", [True, False])
def test_within_shard_map(check_vma):
    with jax.enable_x64(True):
        (ys, d_params, d_xs), memory = unsharded("lstm", True)
        params, run, _ = MODELS["lstm"]()
        f = outputs_and_gradients(run)

        def local(params, xs, rows):
            if check_vma:  # marked as varying over devices, so that the sum comes last
                params = jax.lax.pcast(params, "data", to="varying")
            ys, d_params, d_xs = f(params, xs, rows)
            return ys, jax.lax.psum(d_params, "data"), d_xs

        batch = P(None, "data")
        rows = {"lengths": P("data"), "mask": batch, "resets": batch}
        sharded = jax.shard_map(
            local,
            mesh=mesh_of(AxisType.Auto),
            in_specs=(P(), batch, rows),
            out_specs=(batch, P(), batch),
            check_vma=check_vma,
        )
        args = random_like(params), inputs(1), ROWS
        compiled = quick_jit(sharded).lower(*args).compile()
        chex.assert_trees_all_close(compiled(*args), (ys, d_params, d_xs), rtol=1e-10, atol=1e-11)
        assert collectives(compiled) == {"all-reduce"}
        assert compiled.memory_analysis().temp_size_in_bytes <= 0.6 * memory


def test_a_convolution_over_a_sharded_batch():
    """The batching rule of convolutions would merge time and batch."""
    cell, mesh = CELLS["conv_lstm"](H), mesh_of(AxisType.Auto)
    run = outputs_and_gradients(lambda params, xs: unroll(cell, params, xs)[1])
    with jax.enable_x64(True):
        params = random_like(jax.eval_shape(lambda: cell.init(jax.random.key(0), D)))
        xs = np.random.default_rng(0).normal(size=(4, B, 3, 2, D))
        args = params, jax.device_put(xs, NamedSharding(mesh, P(None, "data"))), {}
        compiled = quick_jit(run).lower(*args).compile()
        expected = quick_jit(run)(params, xs, {})
        chex.assert_trees_all_close(compiled(*args), expected, rtol=1e-10, atol=1e-11)
    assert collectives(compiled) == {"all-reduce"}


# ---- sharded parameters ----


@pytest.fixture
def several_blocks(monkeypatch):
    """Blocks of 8 of the T=32 steps, so that there is a loop over blocks."""
    monkeypatch.setattr(scan, "block_size", lambda steps, carry: 8)
    jax.clear_caches()  # loops that were traced earlier have one block
    yield
    jax.clear_caches()


class TestShardedParameters:
    def run(self, kind, axis, specs, batch):
        """The compiled program of an LSTM, and its arguments."""
        mesh = mesh_of(kind, axis)
        with jax.enable_x64(True):
            expected, _ = unsharded("lstm", False)
            params, run, _ = MODELS["lstm"]()

            f = outputs_and_gradients(run)
            parts = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
            rows = NamedSharding(mesh, P(None, batch))

            def by_constraints(params, xs, _):
                whole = jax.lax.with_sharding_constraint(params, NamedSharding(mesh, P()))
                ys, d_params, d_xs = f(whole, xs, {})
                return ys, jax.lax.with_sharding_constraint(d_params, parts), d_xs

            if batch is None:
                step = quick_jit(f, out_shardings=(rows, parts, rows))
            else:
                step = quick_jit(by_constraints if kind == AxisType.Auto else f)
            args = jax.device_put(random_like(params), parts), jax.device_put(inputs(1), rows), {}
            compiled = step.lower(*args).compile()
            got = compiled(*args)
            chex.assert_trees_all_close(got, expected, rtol=1e-10, atol=1e-11)
            return compiled, got

    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
    def test_over_the_axis_of_the_batch(self, kind, several_blocks):
        """FSDP: parameters are gathered before the loop, and their gradients are sharded like them.

        XLA's CPU compiler reduces and slices; those for GPUs and TPUs use reduce-scatter.
        """
        specs = {"w_ih": P("data"), "w_hh": P("data"), "b": P("data")}
        compiled, (ys, d_params, _) = self.run(kind, "data", specs, "data")
        assert collectives(compiled) <= {"all-gather", "all-reduce", "reduce-scatter"}
        assert ys.sharding.spec[1] == "data"
        assert {name: leaf.sharding.spec[0] for name, leaf in d_params.items()} == dict.fromkeys(
            specs, "data"
        )
        # Only parameters are gathered: no array with a time or batch axis.
        for line in re.findall(r"= (.*?) all-gather\(", compiled.as_text()):
            assert f"[{T}," not in line and f",{B}," not in line, line
        # With explicit axes, the gradient of a layer is sharded after its loop over blocks.
        loops = [line for line in compiled.as_text().splitlines() if " while(" in line]
        w_ih, w_hh = f"f64[{D // 2},{4 * H}]", f"f64[{H // 2},{4 * H}]"
        assert any(w_ih in line and w_hh in line for line in loops) == (kind == AxisType.Auto)

    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
    def test_over_hidden_features(self, kind):
        """Tensor parallelism: each device stores a part of every weight matrix."""
        specs = {"w_ih": P(None, "model"), "w_hh": P(None, "model"), "b": P("model")}
        _, (_, d_params, _) = self.run(kind, "model", specs, None)
        shapes = {name: leaf.addressable_shards[0].data.shape for name, leaf in d_params.items()}
        assert shapes == {"w_ih": (D, 2 * H), "w_hh": (H, 2 * H), "b": (2 * H,)}


def test_fsdp_within_shard_map_reduce_scatters_the_gradient():
    with jax.enable_x64(True):
        (_, expected, _), _ = unsharded("lstm", False)
        params, run, _ = MODELS["lstm"]()

        def local(params, xs):
            def loss(params):
                whole = jax.tree.map(
                    lambda leaf: jax.lax.all_gather(leaf, "data", tiled=True), params
                )
                ys = run(whole, xs)
                return (jnp.sin(ys) * jnp.cos(jnp.arange(H))).sum()

            return jax.grad(loss)(params)

        specs = P("data"), P(None, "data")
        step = jax.shard_map(
            local, mesh=mesh_of(AxisType.Auto), in_specs=specs, out_specs=P("data")
        )
        args = random_like(params), inputs(1)
        compiled = quick_jit(step).lower(*args).compile()
        chex.assert_trees_all_close(compiled(*args), expected, rtol=1e-10, atol=1e-11)
        assert collectives(compiled) == {"all-gather", "reduce-scatter"}


def test_tensor_parallel_through_the_metadata_of_flax():
    mesh = mesh_of(AxisType.Auto, "model")
    names = {"sharding_names": (None, "model")}
    with jax.set_mesh(mesh):
        module = lstm_jax.nnx.LSTM(
            D, H, kernel_metadata=names, recurrent_kernel_metadata=names, rngs=nnx.Rngs(0)
        )
        graph, params = nnx.split(module)
        specs = nnx.get_partition_spec(params)
        sharded = jax.tree.map(
            lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), params, specs
        )
        xs = inputs(0).astype(np.float32)
        run = jax.jit(lambda params, xs: nnx.merge(graph, params)(xs))
        ys = run(sharded, xs)
    plain = lstm_jax.nnx.LSTM(D, H, rngs=nnx.Rngs(0))
    # Float32, T steps of sums of about ten terms of order 1.
    np.testing.assert_allclose(ys, plain(xs), atol=1e-5)
    parts = {leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(sharded)}
    assert parts == {(D, 2 * H), (H, 2 * H), (4 * H,)}


# ---- types only: nothing is compiled ----


EXPLICIT = [
    *((name, CELLS[name](H), {}) for name in CELLS),
    ("learned", LSTMCell(H, learn_initial_state=True), {}),
    *(
        (around.__name__, around(LSTMCell(H)), {"key": jax.random.key(0)})
        for around in (Zoneout, VariationalDropout, RecurrentDropout, DropConnect)
    ),
    ("dropout", LSTM(H, 2, dropout=0.5), {"key": jax.random.key(0)}),
]


@pytest.mark.parametrize("set_mesh", [False, True])
@pytest.mark.parametrize(("name", "part", "how"), EXPLICIT, ids=[case[0] for case in EXPLICIT])
def test_explicit_axes(name, part, how, set_mesh):
    """With explicit axes, shardings are part of the types, so that tracing checks all of them."""
    mesh = mesh_of(AxisType.Explicit)
    space = SPACE.get(name, ())
    batch = P(None, "data")

    def of(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    params = jax.eval_shape(lambda: part.init(jax.random.key(0), D))
    params = jax.tree.map(lambda leaf: of(leaf.shape, leaf.dtype, P()), params)
    xs = of((4, 2, *space, D), jnp.float32, batch)
    rows = {
        "lengths": of((2,), jnp.int32, P("data")),
        "mask": of((4, 2), bool, batch),
        "resets": of((4, 2), bool, batch),
    }

    def loss(params, xs, rows):
        if hasattr(part, "apply"):
            state, ys = part.apply(params, xs, **rows, **how)
        else:
            state, ys = unroll(part, params, xs, engine="fused", **rows, **how)
        assert jax.typeof(ys).sharding.spec == P(None, "data", *[None] * (ys.ndim - 2))
        for leaf in jax.tree.leaves(state):
            assert jax.typeof(leaf).sharding.spec[0] == "data"
        return jnp.sin(ys).sum()

    with jax.set_mesh(mesh) if set_mesh else contextlib.nullcontext():
        d_params, d_xs = jax.eval_shape(jax.grad(loss, (0, 1)), params, xs, rows)
    assert d_xs.sharding.spec[1] == "data"
    assert all(set(leaf.sharding.spec) <= {None} for leaf in jax.tree.leaves(d_params))


def test_unsharded_rows_and_states_join_a_sharded_batch():
    mesh = mesh_of(AxisType.Explicit)
    cell = LSTMCell(H)
    params = cell.init(jax.random.key(0), D)
    xs = jax.device_put(inputs(1).astype(np.float32), NamedSharding(mesh, P(None, "data")))
    state, ys = unroll(cell, params, xs, cell.zero_state((B,)), **ROWS)
    _, expected = unroll(cell, params, np.asarray(xs), **ROWS)
    assert state.c.sharding.spec[0] == ys.sharding.spec[1] == "data"
    np.testing.assert_allclose(ys, expected, atol=1e-6)  # float32, sums of 14 terms


def test_linear_recurrences_in_parallel_with_explicit_axes():
    mesh = mesh_of(AxisType.Explicit)
    cell = CELLS["min_lstm"](H)
    params = cell.init(jax.random.key(0), D)
    xs = jax.device_put(inputs(1).astype(np.float32), NamedSharding(mesh, P(None, "data")))
    run = functools.partial(unroll, cell, params, engine="associative", **ROWS)
    ys = run(xs)[1]
    assert ys.sharding.spec[1] == "data"
    np.testing.assert_allclose(ys, run(np.asarray(xs))[1], atol=1e-6)


class TestOnOneDevice:
    def test_a_mesh_of_several_devices(self):
        xs = jnp.zeros((2, 2))
        assert shardings.on_one_device(xs)
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = mesh_of(kind)
            sharded = jax.device_put(xs, NamedSharding(mesh, P("data")))
            assert not shardings.on_one_device(xs, sharded)
            found = []
            f = lambda x, found=found: found.append(shardings.on_one_device(x)) or x  # noqa: E731
            jax.jit(f)(sharded)
            jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(sharded)
            with jax.set_mesh(mesh):
                jax.jit(f)(xs)
            assert found == [False, True, False]

    def test_a_mesh_of_one_device(self):
        mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
        xs = jax.device_put(jnp.zeros(2), NamedSharding(mesh, P("data")))
        assert shardings.on_one_device(xs)


def test_four_devices():
    """Compiled but not run: on two cores, four CPU devices can wait for each other forever."""
    code = """
        import re, jax, jax.numpy as jnp
        jax.config.update("jax_num_cpu_devices", 4)
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from lstm_jax import LSTMCell, unroll

        cell = LSTMCell(8)
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 6))

        def grads(params, xs):
            return jax.grad(lambda p, x: jnp.sin(unroll(cell, p, x)[1]).sum(), (0, 1))(params, xs)

        def compiled(put):
            xs = put((32, 16, 6), P(None, "data"))
            args = jax.tree.map(lambda a: put(a.shape, P()), params), xs
            options = {"xla_backend_optimization_level": 0}
            return jax.jit(grads, compiler_options=options).lower(*args).compile()

        alone = compiled(lambda shape, _: jax.ShapeDtypeStruct(shape, jnp.float32))
        memory = alone.memory_analysis().temp_size_in_bytes
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
            shared = compiled(lambda shape, spec: jax.ShapeDtypeStruct(
                shape, jnp.float32, sharding=NamedSharding(mesh, spec)))
            print(sorted(set(re.findall(r"COLLECTIVES", shared.as_text()))),
                  shared.output_shardings[1].spec[1],
                  shared.memory_analysis().temp_size_in_bytes <= 0.35 * memory)
    """.replace("COLLECTIVES", COLLECTIVES)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines() == ["['all-reduce'] data True"] * 2, done.stderr
