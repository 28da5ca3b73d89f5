"""Speed of an LSTM layer and of a bidirectional stack, compared with other libraries.

All libraries run in one process and take turns in each round, so that other load on the machine
affects them equally. Results are medians over the rounds. Times are those of complete calls: the
gradients of the parameters and the inputs of ``sum(ys * weights)`` (``train``), or outputs
(``infer``), float32.

    python benchmarks/speed.py                        # every shape, a table and a plot
    python benchmarks/speed.py --shapes 128,32,64,64 --rounds 30
    python benchmarks/speed.py --smoke                # every part once, at one small shape
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import importlib
import itertools
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import plot

import lstm_jax
from lstm_jax import LSTM, LSTMCell, LSTMState, stream, tune_cpu, unroll
from lstm_jax.cells.base import affine

SHAPES = [
    (128, 32, 64, 64),
    (128, 32, 128, 256),
    (100, 64, 512, 512),
    (512, 1, 128, 256),
    (2048, 8, 32, 128),
    (50, 128, 256, 256),
]
STACK = (128, 32, 128, 256)  # two bidirectional layers
NARROW = [(128, 32, 128, 256), (100, 64, 512, 512)]  # also measured in bfloat16
OTHER_CELLS = [(128, 32, 128, 256), (128, 32, 64, 64), (512, 1, 128, 256)]
OUT = pathlib.Path(__file__).parent.parent / "docs" / "benchmarks"

Call = Callable[[], Any]


@dataclasses.dataclass
class Peer:
    """An LSTM implementation: creates a training or inference call for a shape."""

    name: str
    make: Callable[[tuple[int, int, int, int], bool, bool], Call]
    is_ours: bool = False
    is_jax: bool = True


# ---- the implementations ----


def jax_call(run: Callable[[Any, jax.Array], jax.Array], params: Any, xs: Any, train: bool) -> Call:
    """A compiled call: gradients with respect to params and xs, or outputs."""
    ys = jax.eval_shape(run, params, xs)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=ys.shape), jnp.float32)
    if train:

        def f(p, x):
            return jnp.vdot(run(p, x), weights)

        compiled = jax.jit(jax.grad(f, (0, 1))).lower(params, xs).compile()
    else:
        compiled = jax.jit(run).lower(params, xs).compile()
    return lambda: jax.block_until_ready(compiled(params, xs))


def inputs(shape: tuple[int, int, int, int], batch_first: bool = False) -> jax.Array:
    t, b, d, _ = shape
    xs = np.random.default_rng(0).normal(size=(b, t, d) if batch_first else (t, b, d))
    return jnp.asarray(xs, jnp.float32)


def layers(shape: Any, stacked: bool, **how: Any) -> Any:
    *_, h = shape
    return LSTM(h, 2, bidirectional=True, **how) if stacked else LSTM(h, **how)


def ours(**how: Any) -> Callable[[Any, bool, bool], Call]:
    def make(shape: Any, train: bool, stacked: bool) -> Call:
        if how.get("engine") == "cudnn" and jax.default_backend() != "gpu":
            raise NotImplementedError("needs an NVIDIA GPU")
        layer = layers(shape, stacked, **how)
        params = layer.init(jax.random.key(0), shape[2])
        return jax_call(lambda p, x: layer.apply(p, x)[1], params, inputs(shape), train)

    return make


@dataclasses.dataclass(frozen=True)
class Products(LSTMCell):
    """The matrix products of an LSTM with additions instead of gates: a lower bound of the time."""

    def equations(self, params: Any, state: LSTMState, x: jax.Array) -> Any:
        # The barrier keeps the four slices together, as the tanh of all gates does.
        z = jax.lax.optimization_barrier(affine(params, state.h, x))
        h = 0.2 * sum(jnp.split(z, 4, -1))
        return LSTMState(h=h, c=state.c), h


def on_all_devices(**how: Any) -> Callable[[Any, bool, bool], Call]:
    """As in the command line: each device has a part of the batch, and gradients are summed."""

    def make(shape: Any, train: bool, stacked: bool) -> Call:
        return shared(layers(shape, stacked, **how), shape, train)

    return make


def shared(layer: LSTM, shape: Any, train: bool) -> Call:
    devices = [n for n in range(1, len(jax.devices()) + 1) if shape[1] % n == 0][-1]
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[:devices]), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    spec = jax.sharding.PartitionSpec
    params = layer.init(jax.random.key(0), shape[2])
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, spec()))
    rows = jax.sharding.NamedSharding(mesh, spec(None, "data"))
    xs = jax.device_put(inputs(shape), rows)
    ys = jax.eval_shape(lambda p, x: layer.apply(p, x)[1], params, xs)
    weights = np.random.default_rng(1).normal(size=ys.shape)
    weights = jax.device_put(jnp.asarray(weights, jnp.float32), rows)

    def local(params: Any, xs: jax.Array, weights: jax.Array) -> Any:
        params = jax.lax.pcast(params, "data", to="varying")
        if not train:
            return layer.apply(params, xs)[1]
        by_params, by_xs = jax.grad(lambda p, x: jnp.vdot(layer.apply(p, x)[1], weights), (0, 1))(
            params, xs
        )
        return jax.lax.psum(by_params, "data"), by_xs

    out = (spec(), spec(None, "data")) if train else spec(None, "data")
    in_specs = (spec(), spec(None, "data"), spec(None, "data"))
    f = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out))
    compiled = f.lower(params, xs, weights).compile()
    return lambda: jax.block_until_ready(compiled(params, xs, weights))


def torch_lstm(shape: Any, train: bool, stacked: bool, dtype: str = "float32") -> Call:
    """Runs on JAX's device: the CPU, or the GPU, where torch calls cuDNN."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise NotImplementedError("this torch has no CUDA")
    to = {"device": "cuda" if on_gpu else "cpu", "dtype": getattr(torch, dtype)}
    t, b, d, h = shape
    model = torch.nn.LSTM(d, h, num_layers=2 if stacked else 1, bidirectional=stacked).to(**to)
    xs = torch.tensor(np.asarray(inputs(shape))).to(**to).requires_grad_(train)
    weights = torch.randn(t, b, h * (2 if stacked else 1), device=to["device"])
    wait = torch.cuda.synchronize if on_gpu else lambda: None

    def training() -> None:
        model.zero_grad()
        xs.grad = None
        (model(xs)[0] * weights).sum().backward()
        wait()

    def inference() -> None:
        with torch.inference_mode():
            model(xs)
        wait()

    return training if train else inference


def onnx_lstm(shape: Any, train: bool, stacked: bool) -> Call:
    if train:
        raise NotImplementedError("inference only")
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    t, b, d, h = shape
    directions = 2 if stacked else 1
    rng = np.random.default_rng(0)
    nodes, weights, name, size = [], [], "x", d
    for n in range(2 if stacked else 1):
        parts = {
            f"w{n}": (directions, 4 * h, size),
            f"r{n}": (directions, 4 * h, h),
            f"b{n}": (directions, 8 * h),
        }
        for part, dims in parts.items():
            array = (0.1 * rng.normal(size=dims)).astype("float32")
            weights.append(onnx.numpy_helper.from_array(array, part))
        direction = "bidirectional" if stacked else "forward"
        nodes.append(
            helper.make_node("LSTM", [name, *parts], [f"y{n}"], hidden_size=h, direction=direction)
        )
        shape_name = f"s{n}"
        weights.append(onnx.numpy_helper.from_array(np.array([t, b, directions * h]), shape_name))
        nodes.append(helper.make_node("Transpose", [f"y{n}"], [f"z{n}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"z{n}", shape_name], [f"o{n}"]))
        name, size = f"o{n}", directions * h
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [t, b, d])
    y = helper.make_tensor_value_info(name, TensorProto.FLOAT, [t, b, size])
    graph = helper.make_graph(nodes, "lstm", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    xs = np.asarray(inputs(shape))
    return lambda: session.run(None, {"x": xs})


def flax_nnx(cell: str) -> Callable[[Any, bool, bool], Call]:
    def make(shape: Any, train: bool, stacked: bool) -> Call:
        from flax import nnx

        _, b, d, h = shape
        rngs = nnx.Rngs(0)

        def rnn(size: int) -> nnx.RNN:
            return nnx.RNN(getattr(nnx, cell)(size, h, rngs=rngs), time_major=True)

        zeros = (jnp.zeros((b, h)), jnp.zeros((b, h)))
        if stacked:
            parts = [
                nnx.Bidirectional(rnn(size), rnn(size), time_major=True) for size in (d, 2 * h)
            ]
            zeros = (zeros, zeros)
        else:
            parts = [rnn(d)]
        graph, params, rest = nnx.split(nnx.List(parts), nnx.Param, ...)

        def run(params: Any, xs: jax.Array) -> jax.Array:
            for part in nnx.merge(graph, params, rest):
                xs = part(xs, initial_carry=zeros)
            return xs

        return jax_call(run, params, inputs(shape), train)

    return make


def flax_linen(cell: str) -> Callable[[Any, bool, bool], Call]:
    def make(shape: Any, train: bool, stacked: bool) -> Call:
        from flax import linen

        h = shape[3]

        def rnn() -> linen.RNN:
            return linen.RNN(getattr(linen, cell)(h), time_major=True)

        both = [linen.Bidirectional(rnn(), rnn(), time_major=True) for _ in range(2)]
        model = linen.Sequential(both) if stacked else rnn()
        params = model.init(jax.random.key(0), inputs(shape))
        return jax_call(model.apply, params, inputs(shape), train)

    return make


def haiku(shape: Any, train: bool, stacked: bool) -> Call:
    import haiku as hk

    h = shape[3]

    def forward(xs: jax.Array) -> jax.Array:
        def one(xs: jax.Array) -> jax.Array:
            core = hk.LSTM(h)
            return hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))[0]

        if not stacked:
            return one(xs)
        for _ in range(2):
            xs = jnp.concatenate([one(xs), one(xs[::-1])[::-1]], -1)
        return xs

    model = hk.without_apply_rng(hk.transform(forward))
    params = model.init(jax.random.key(0), inputs(shape))
    return jax_call(model.apply, params, inputs(shape), train)


def equinox(shape: Any, train: bool, stacked: bool) -> Call:
    import equinox as eqx

    _, b, d, h = shape
    keys = iter(jax.random.split(jax.random.key(0), 4))
    sizes = [d, d, 2 * h, 2 * h] if stacked else [d]
    cells = [eqx.nn.LSTMCell(size, h, key=next(keys)) for size in sizes]
    params, static = eqx.partition(cells, eqx.is_inexact_array)

    def one(cell: Any, xs: jax.Array) -> jax.Array:
        def step(carry: Any, x: jax.Array) -> Any:
            carry = jax.vmap(cell)(x, carry)
            return carry, carry[0]

        return jax.lax.scan(step, (jnp.zeros((b, h)), jnp.zeros((b, h))), xs)[1]

    def run(params: Any, xs: jax.Array) -> jax.Array:
        cells = eqx.combine(params, static)
        if not stacked:
            return one(cells[0], xs)
        for forward, backward in (cells[:2], cells[2:]):
            xs = jnp.concatenate([one(forward, xs), one(backward, xs[::-1])[::-1]], -1)
        return xs

    return jax_call(run, params, inputs(shape), train)


def keras(shape: Any, train: bool, stacked: bool) -> Call:
    import keras as k

    t, b, d, h = shape
    parts = [k.layers.Input((t, d), batch_size=b)]
    for _ in range(2 if stacked else 1):
        lstm = k.layers.LSTM(h, return_sequences=True)
        parts.append(k.layers.Bidirectional(lstm) if stacked else lstm)
    model = k.Sequential(parts)
    params = [v.value for v in model.trainable_variables]
    rest = [v.value for v in model.non_trainable_variables]

    def run(params: Any, xs: jax.Array) -> jax.Array:
        return model.stateless_call(params, rest, xs)[0]

    return jax_call(run, params, inputs(shape, batch_first=True), train)


PEERS = [
    Peer("lstm_jax, all devices", on_all_devices(), is_ours=True),
    Peer("lstm_jax", ours(), is_ours=True),
    Peer("lstm_jax, scan", ours(engine="scan"), is_ours=True),
    Peer("lstm_jax, cudnn", ours(engine="cudnn"), is_ours=True),
    Peer("torch", torch_lstm, is_jax=False),
    Peer("onnxruntime", onnx_lstm, is_jax=False),
    Peer("nnx LSTMCell", flax_nnx("LSTMCell")),
    Peer("nnx OptimizedLSTMCell", flax_nnx("OptimizedLSTMCell")),
    Peer("linen LSTMCell", flax_linen("LSTMCell")),
    Peer("linen OptimizedLSTMCell", flax_linen("OptimizedLSTMCell")),
    Peer("Haiku", haiku),
    Peer("Equinox", equinox),
    Peer("Keras on JAX", keras),
    Peer("products alone, all devices", on_all_devices(cell=Products), is_ours=True),
    Peer("products alone", ours(cell=Products), is_ours=True),
]


# ---- measuring ----


def measured(calls: dict[str, Call], rounds: int, seconds: float) -> dict[str, list[float]]:
    """The seconds of each call in each round; the order changes between rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    names = list(calls)
    end = time.perf_counter() + seconds
    for n in range(rounds):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            # Threads of the previous library spin for a while, so wait until they sleep. The first
            # call of a turn, which wakes the library's own threads, is not counted.
            time.sleep(0.02)
            calls[name]()
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
        if n >= 4 and time.perf_counter() > end:
            break
    return times


def quartiles(times: list[float]) -> tuple[float, float, float]:
    return tuple(np.percentile(times, [25, 50, 75]))  # type: ignore[return-value]


def geometric_mean(numbers: list[float]) -> float:
    return statistics.geometric_mean(numbers) if numbers else float("nan")


def run_shape(
    shape: Any, stacked: bool, train: bool, peers: list[Peer], rounds: int, seconds: float
) -> dict[str, list[float]]:
    calls: dict[str, Call] = {}
    for peer in peers:
        try:
            calls[peer.name] = peer.make(shape, train, stacked)
        except (ImportError, NotImplementedError) as error:
            print(f"    {peer.name}: left out ({error})", flush=True)
    return measured(calls, rounds, seconds)


def label(shape: Any, stacked: bool) -> str:
    return f"({', '.join(map(str, shape))})" + (" 2 × both" if stacked else "")


def table(results: dict[Any, dict[str, list[float]]], peers: list[Peer]) -> list[str]:
    names = [p.name for p in peers if any(p.name in times for times in results.values())]
    lines = [
        "| (T, B, D, H) | " + " | ".join(names) + " |",
        "| --- " * (len(names) + 1) + "|",
    ]
    for key, times in results.items():
        cells = []
        for name in names:
            if name in times:
                low, middle, high = (1e3 * q for q in quartiles(times[name]))
                cells.append(f"{middle:.1f} ({low:.1f}–{high:.1f})")
            else:
                cells.append("")
        lines.append(f"| {label(*key)} | " + " | ".join(cells) + " |")
    return lines


def ratios(results: Any, of: str, to: list[str]) -> list[float]:
    """For each shape, the time of ``of`` divided by that of the fastest of ``to``."""
    return [
        statistics.median(times[of]) / min(statistics.median(times[n]) for n in to if n in times)
        for times in results.values()
        if of in times and any(n in times for n in to)
    ]


def summary(results: Any, train: bool) -> list[str]:
    peers = [p.name for p in PEERS if p.is_jax and not p.is_ours]
    rivals = [(["torch"], "torch"), (peers, "the best JAX peer")]
    if not train:
        rivals.append((["onnxruntime"], "onnxruntime"))
    lines = [
        "| time of | relative to | geometric mean | at each shape |",
        "| --- | --- | --- | --- |",
    ]
    rows = list(itertools.product(("lstm_jax, all devices", "lstm_jax"), rivals))
    rows += [(alone, rivals[0]) for alone in ("products alone, all devices", "products alone")]
    for of, (to, name) in rows:
        r = ratios(results, of, to)
        if r:
            each = ", ".join(f"{x:.2f}" for x in r)
            lines.append(f"| {of} | {name} | {geometric_mean(r):.2f} | {each} |")
    return lines


def machine() -> str:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    versions = [f"Python {platform.python_version()}", f"lstm_jax {lstm_jax.__version__}"]
    for module in ("jax", "torch", "onnxruntime", "flax", "haiku", "equinox", "keras"):
        with contextlib.suppress(ImportError):
            versions.append(f"{module} {importlib.import_module(module).__version__}")
    return (
        f"{model}, {os.cpu_count()} cores, JAX devices: {len(jax.devices())} "
        f"({jax.devices()[0].device_kind}); " + ", ".join(versions)
    )


def latency(rounds: int) -> str:
    """The time of one streamed step, including dispatch."""
    cell = LSTMCell(256)
    step = stream(cell, cell.init(jax.random.key(0), 128), (1,))
    said = []
    for what, x in (
        ("a JAX array", jnp.zeros((1, 128))),
        ("a NumPy array", np.zeros((1, 128), np.float32)),
    ):
        state, times = step.initial_state(), []
        for n in range(max(rounds, 10) * 50):
            start = time.perf_counter()
            state, y = step(state, x)
            jax.block_until_ready(y)
            if n > 100:
                times.append(time.perf_counter() - start)
        low, middle, high = (1e6 * q for q in quartiles(times))
        said.append(f"{middle:.0f} µs ({low:.0f}–{high:.0f}) from {what}")
    return "; ".join(said) + "; B = 1, D = 128, H = 256."


def memory() -> list[str]:
    """Temporary memory, in units of H floats per step and row."""
    lines = [
        "| memory= | T | H floats per step and row | MB | MB with products of bfloat16 |",
        "| --- | --- | --- | --- | --- |",
    ]
    b, d, h = 16, 64, 256

    def temporary(plan: str, t: int, dtype: str) -> int:
        cell = LSTMCell(h, dtype=dtype)
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), d))

        def step(params: Any, xs: Any, ct: Any) -> Any:
            ys, back = jax.vjp(lambda p, x: unroll(cell, p, x, memory=plan)[1], params, xs)
            return ys, back(ct)

        xs = jax.ShapeDtypeStruct((t, b, d), jnp.float32)
        ct = jax.ShapeDtypeStruct((t, b, h), dtype)
        compiled = jax.jit(step).lower(params, xs, ct).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for plan, t in [("full", 4096), ("recompute", 4096), ("sqrt", 4096), ("sqrt", 16384)]:
        wide, thin = (temporary(plan, t, dtype) for dtype in ("float32", "bfloat16"))
        floats = f"{wide / 4 / t / b / h:.2f}"
        lines.append(f"| {plan} | {t} | {floats} | {wide / 1e6:.0f} | {thin / 1e6:.0f} |")
    return lines


def compile_times() -> list[str]:
    """Median seconds to trace, lower and compile a training step; the variants take turns."""
    from flax import nnx

    b, d, h = 32, 128, 256
    cell = LSTMCell(h)
    params = cell.init(jax.random.key(0), d)
    zeros = (jnp.zeros((b, h)), jnp.zeros((b, h)))
    steps: dict[tuple[str, int], tuple[Any, Any]] = {}
    for t in (128, 131072):
        steps["lstm_jax", t] = lambda p, x: unroll(cell, p, x)[1].sum(), params
    for kind in (nnx.LSTMCell, nnx.OptimizedLSTMCell):
        rnn = nnx.RNN(kind(d, h, rngs=nnx.Rngs(0)), time_major=True)
        graph, state, rest = nnx.split(rnn, nnx.Param, ...)

        def loss(p: Any, x: Any, graph: Any = graph, rest: Any = rest) -> jax.Array:
            return nnx.merge(graph, p, rest)(x, initial_carry=zeros).sum()

        steps[f"nnx.RNN of {kind.__name__}", 128] = loss, state

    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    for _ in range(8):
        for (name, t), (f, p) in steps.items():
            xs = jax.ShapeDtypeStruct((t, b, d), jnp.float32)
            jax.clear_caches()
            start = time.perf_counter()
            jax.jit(jax.grad(f, (0, 1))).lower(p, xs).compile()
            seconds[name, t].append(time.perf_counter() - start)
    return [
        "| | T | seconds |",
        "| --- | --- | --- |",
        *(f"| {name} | {t} | {statistics.median(s[1:]):.2f} |" for (name, t), s in seconds.items()),
    ]


def variants(rounds: int, shapes: list[Any]) -> list[str]:
    """Training steps of other cells, compared with our LSTM and with a loop in torch."""
    lines = [
        "| (T, B, D, H) | cell | ms | relative to lstm | torch loop, ms | loop relative to ours |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for shape in shapes:
        middle = variants_at(rounds, shape)
        for name in [name for name in middle if "torch" not in name]:
            loop = middle.get(f"torch loop: {name}", float("nan"))
            lines.append(
                f"| {label(shape, False)} | {name} | {1e3 * middle[name]:.1f} "
                f"| {middle[name] / middle['lstm']:.2f} "
                f"| {1e3 * loop:.0f} | {loop / middle[name]:.1f} |"
            )
    return lines


def variants_at(rounds: int, shape: Any) -> dict[str, float]:
    """Median seconds of every cell and of its torch loop."""
    from lstm_jax import CELLS
    from lstm_jax.sequence import Zoneout

    h = shape[3]
    cells = {name: CELLS[name](h) for name in ("lstm", "peephole", "coupled", "layer_norm")}
    cells["projected"] = CELLS["projected"](h, proj_size=h // 2)
    cells["zoneout"] = Zoneout(CELLS["lstm"](h))
    calls: dict[str, Call] = {}
    for name, cell in cells.items():
        params = cell.init(jax.random.key(0), shape[2])
        key = jax.random.key(1) if name == "zoneout" else None

        def run(p: Any, x: Any, cell: Any = cell, key: Any = key) -> jax.Array:
            return unroll(cell, p, x, key=key)[1]

        calls[name] = jax_call(run, params, inputs(shape), train=True)
    with contextlib.suppress(ImportError):
        for name in cells:
            calls[f"torch loop: {name}"] = torch_loop(name, shape)
    times = measured(calls, rounds, 40.0)
    return {name: statistics.median(t) for name, t in times.items()}


def narrow(rounds: int, shapes: list[Any]) -> list[str]:
    """Training steps with bfloat16 products, and with float32 in the same rounds."""
    lines = [
        "| (T, B, D, H) | | float32, ms | bfloat16, ms | bfloat16 relative to float32 |",
        "| --- | --- | --- | --- | --- |",
    ]
    makers: dict[str, Callable[..., Callable[[Any, bool, bool], Call]]] = {
        "lstm_jax, all devices": on_all_devices,
        "lstm_jax": ours,
        "products alone": functools.partial(ours, cell=Products),
        "torch": lambda dtype: functools.partial(torch_lstm, dtype=dtype),
    }
    for shape in shapes:
        calls: dict[str, Call] = {}
        for name, maker in makers.items():
            for dtype in ("float32", "bfloat16"):
                with contextlib.suppress(ImportError):
                    calls[f"{name} {dtype}"] = maker(dtype=dtype)(shape, True, False)
        middle = {
            key: 1e3 * statistics.median(t) for key, t in measured(calls, rounds, 60.0).items()
        }
        for name in makers:
            if f"{name} bfloat16" in middle:
                wide, thin = middle[f"{name} float32"], middle[f"{name} bfloat16"]
                row = f"{name} | {wide:.1f} | {thin:.1f} | {thin / wide:.2f}"
                lines.append(f"| {label(shape, False)} | {row} |")
    return lines


def torch_loop(name: str, shape: Any) -> Call:
    """The same cell in plain torch: a Python loop over steps."""
    import torch

    t, b, d, h = shape
    out = h // 2 if name == "projected" else h
    rng = torch.Generator().manual_seed(0)
    make = lambda *size: (0.1 * torch.randn(*size, generator=rng)).requires_grad_()  # noqa: E731
    gates = 3 if name == "coupled" else 4
    w, u, bias = make(d, gates * h), make(out, gates * h), make(gates * h)
    peepholes = [make(h) for _ in range(3)]
    projection = make(h, out)
    norms = [torch.nn.LayerNorm(gates * h), torch.nn.LayerNorm(gates * h), torch.nn.LayerNorm(h)]
    xs = torch.tensor(np.asarray(inputs(shape)), requires_grad=True)
    weights = torch.randn(t, b, out)

    def call() -> None:
        y, c, total = torch.zeros(b, out), torch.zeros(b, h), []
        for x in xs:
            if name == "layer_norm":
                z = norms[0](x @ w) + norms[1](y @ u) + bias
            else:
                z = x @ w + y @ u + bias
            if name == "coupled":
                f, g, o = z.chunk(3, -1)
                f = torch.sigmoid(f)
                new = f * c + (1 - f) * torch.tanh(g)
            else:
                i, f, g, o = z.chunk(4, -1)
                if name == "peephole":
                    i, f = i + peepholes[0] * c, f + peepholes[1] * c
                new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            if name == "peephole":
                o = o + peepholes[2] * new
            if name == "zoneout":
                new = torch.where(torch.rand(b, h) < 0.5, c, new)
            c = new
            read = norms[2](c) if name == "layer_norm" else c
            last, y = y, torch.sigmoid(o) * torch.tanh(read)
            if name == "projected":
                y = y @ projection
            if name == "zoneout":
                y = torch.where(torch.rand(b, h) < 0.05, last, y)
            total.append(y)
        for leaf in (w, u, bias, xs):
            leaf.grad = None
        (torch.stack(total) * weights).sum().backward()

    return call


def scaling(rounds: int) -> list[str]:
    """The time per step of training on sequences of increasing length."""
    b, d, h = 4, 16, 32
    lines = ["| T | µs per step |", "| --- | --- |"]
    calls = {str(t): ours()((t, b, d, h), True, False) for t in (128, 1024, 8192, 131072)}
    for name, times in measured(calls, max(5, rounds // 3), 60.0).items():
        lines.append(f"| {name} | {1e6 * statistics.median(times) / int(name):.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="*", help="T,B,D,H of single layers, instead of all")
    parser.add_argument("--peers", nargs="*", help="only those whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=40.0, help="at most, for each shape")
    parser.add_argument("--devices", type=int, default=None, help="JAX's CPU devices")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    parser.add_argument("--name", default="speed", help="of the tables and plots")
    parser.add_argument(
        "--only",
        choices=["train", "infer", "bfloat16", "cells", "memory", "compile", "latency", "scaling"],
    )
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    print(tune_cpu(args.devices))

    peers = [p for p in PEERS if not args.peers or any(word in p.name for word in args.peers)]
    keys: list[tuple[Any, bool]] = [(shape, False) for shape in SHAPES] + [(STACK, True)]
    if args.shapes:
        keys = [(tuple(map(int, text.split(","))), False) for text in args.shapes]
    if args.smoke:
        keys = [((6, 2, 3, 4), False), ((6, 2, 3, 4), True)]
        args.rounds = 2
    wanted = lambda what: args.only in (None, what)  # noqa: E731
    text = ["# Speed", "", f"{datetime.date.today()}: {machine()}.", ""]
    text += [f"`{' '.join(['python benchmarks/speed.py', *sys.argv[1:]])}`", ""]
    args.out.mkdir(parents=True, exist_ok=True)
    for train, what in ((True, "train"), (False, "infer")):
        if not wanted(what):
            continue
        text += [f"## {'Training step' if train else 'Inference'}, milliseconds", ""]
        text += ["Medians, with the middle half of the rounds in brackets.", ""]
        results = {}
        for shape, stacked in keys:
            print(f"{what} {label(shape, stacked)}", flush=True)
            results[shape, stacked] = run_shape(
                shape, stacked, train, peers, args.rounds, args.seconds
            )
            for name, times in results[shape, stacked].items():
                print(f"    {name:28s} {1e3 * statistics.median(times):9.2f} ms", flush=True)
        text += [*table(results, peers), "", *summary(results, train), ""]
        text += [f"![times relative to torch]({args.name}_{what}.png)", ""]
    parts = [
        (
            "bfloat16",
            "Products of bfloat16, a training step",
            lambda: narrow(args.rounds, [(6, 2, 4, 4)] if args.smoke else NARROW),
        ),
        (
            "cells",
            "Other cells, a training step",
            lambda: variants(args.rounds, [(6, 2, 4, 4)] if args.smoke else OTHER_CELLS),
        ),
        (
            "memory",
            "Memory of a training step beyond arguments and results, at B = 16, D = 64, H = 256",
            memory,
        ),
        ("compile", "Seconds to compile a training step", compile_times),
        ("latency", "One streamed step", lambda: [latency(args.rounds)]),
        (
            "scaling",
            "Long sequences, a training step at B = 4, D = 16, H = 32",
            lambda: scaling(args.rounds),
        ),
    ]
    for what, title, part in parts:
        if wanted(what) and not (args.smoke and what in ("memory", "compile", "scaling")):
            lines = part()
            print(title, *lines, sep="\n", flush=True)
            text += [f"## {title}", "", *lines, ""]
    path = args.out / f"{args.name}.md"
    path.write_text("\n".join(text).rstrip() + "\n")
    with contextlib.suppress(ImportError):
        plot.draw(path)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
