"""Engines: how a loop over time is run, what each engine supports, and which one to use."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.lstm import LSTMCell
from lstm_jax.sequence.fused.scan import (
    ScanConfig,
    fused_scan,
    in_blocks,
    joined,
    over_blocks,
    scan_stacking_float32,
    with_finite_coefficients,
)
from lstm_jax.sequence.shardings import has_all_cores

ENGINES = ("auto", "scan", "fused", "cudnn", "associative")
MEMORIES = ("full", "recompute", "sqrt", "offload")

Loop = Callable[[Callable[[Any, Any], tuple[Any, Any]], Any, Any], tuple[Any, Any]]


class Choice(NamedTuple):
    """An engine and the reason for it.

    Attributes:
      engine: its name.
      reason: why it is used, in words.
      rejected: for each other engine, by name, why it is not used.

    >>> Choice("scan", "asked for", {}).engine
    'scan'
    """

    engine: str
    reason: str
    rejected: Mapping[str, str]


def choose_engine(
    cell: Any,
    num_steps: int,
    batch_shape: tuple[int, ...] = (),
    *,
    dtype: Any = "float32",
    mask: bool = False,
    resets: bool = False,
    memory: str = "full",
    platform: str | None = None,
) -> Choice:
    """The engine that ``unroll(..., engine="auto")`` uses, and why.

    Args:
      cell: the cell.
      num_steps: T.
      batch_shape: the batch axes.
      dtype: of the inputs.
      mask: whether there is a mask.  (Lengths and direction make no difference.)
      resets: whether there are resets.
      memory: as in :func:`unroll`.
      platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``; None for JAX's default one.

    Returns:
      A :class:`Choice`.

    Raises:
      ValueError: ``memory`` is unknown.

    Example:
      >>> from lstm_jax import LSTMCell
      >>> choice = choose_engine(LSTMCell(64), num_steps=100, batch_shape=(32,), platform="cpu")
      >>> choice.engine, choice.rejected["cudnn"]
      ('fused', 'needs an NVIDIA GPU, not cpu')
    """
    check_memory(memory)
    platform = jax.default_backend() if platform is None else platform
    obstacles = {
        engine: obstacle(
            engine,
            cell,
            num_steps,
            batch_shape,
            dtype=dtype,
            mask=mask,
            resets=resets,
            memory=memory,
            platform=platform,
        )
        for engine in ENGINES[1:]
    }
    # cuDNN has no rules for vmap and jvp, and while a function is traced it is unknown whether
    # it will be transformed.
    if obstacles["cudnn"] is None:
        obstacles["cudnn"] = "has no vmap and no jvp rule; select it by name if you need neither"
    if obstacles["associative"] is None and platform == "cpu":
        obstacles["associative"] = (
            "does more work in total, which pays off with thousands of processors"
        )
    reasons = {
        "associative": "the recurrence is linear, so all steps are computed at once",
        "fused": "values that do not depend on the carry are computed for many steps at once, "
        "and parameter gradients after the loop",
        "scan": "the plain loop, which supports everything",
    }
    engine = next(engine for engine in reasons if obstacles[engine] is None)
    rejected = {
        other: "slower to differentiate, and otherwise no faster" if why is None else why
        for other, why in obstacles.items()
        if other != engine
    }
    return Choice(engine, reasons[engine], rejected)


def obstacle(
    engine: str,
    cell: Any,
    num_steps: int,
    batch_shape: tuple[int, ...],
    *,
    dtype: Any,
    mask: bool = False,
    resets: bool,
    memory: str,
    platform: str,
) -> str | None:
    """Why an engine cannot run a loop, in words; None if it can.

    >>> from lstm_jax import LSTMCell
    >>> how = {"dtype": "float32", "resets": False, "memory": "full", "platform": "cpu"}
    >>> obstacle("associative", LSTMCell(3), 5, (), **how)
    'is for cells whose recurrence is linear, not for LSTMCell'
    """
    name = type(cell).__name__
    is_empty = 0 in (num_steps, *batch_shape)
    sizes = (num_steps,) if engine == "associative" else (num_steps, *batch_shape)
    if engine != "scan" and not all(isinstance(size, int | np.integer) for size in sizes):
        return f"needs sizes that are known when it is traced, not {', '.join(map(str, sizes))}"
    if engine == "fused":
        return "needs at least one step of one row" if is_empty else None
    if engine == "scan":
        return "cannot offload" if memory == "offload" and not is_empty else None
    if engine == "associative":
        if not getattr(cell, "is_linear", False):
            return f"is for cells whose recurrence is linear, not for {name}"
        if memory != "full":
            return f"stores every step and does not support memory={memory!r}"
    if engine == "cudnn":
        if platform not in ("gpu", "cuda"):
            return f"needs an NVIDIA GPU, not {platform}"
        if type(cell) is not LSTMCell:
            return f"is for LSTMCell, not for {name}"
        if not _is_standard(cell):
            return "is only for the standard LSTM, without options that change its arithmetic"
        if jnp.dtype(dtype) != jnp.float32 or cell.dtype not in (None, "float32"):
            return "is only for float32"
        if len(batch_shape) != 1:
            return f"needs one batch axis, not {len(batch_shape)}"
        if is_empty:
            return "needs at least one step of one row"
        if memory != "full":
            return f"has its own memory plan and does not support memory={memory!r}"
        if mask:
            return "supports lengths, not a mask"
        if resets:
            return "does not support resets"
    return None


def _is_standard(cell: LSTMCell) -> bool:
    changed = (cell.preactivation_clip, cell.cell_clip)
    functions = (cell.gate_fn, cell.activation_fn, cell.output_fn or "tanh")
    return functions == ("sigmoid", "tanh", "tanh") and changed == (None, None)


def splits_batch(state: Any, batch_shape: tuple[int, ...]) -> bool:
    """Whether to split the batch into two parts that run side by side, in one loop.

    XLA runs a small element-wise operation on one core, but independent ones at the same time:
    a training step at (128, 32, 128, 256) takes 67 ms instead of 80 on one CPU device.  With
    several CPU devices, each computes its share of the batch instead.

    >>> import jax.numpy as jnp
    >>> splits_batch(jnp.zeros((2, 8)), (2,))  # too small
    False
    """
    if not has_all_cores(*jax.tree.leaves(state)):
        return False
    size = max(leaf.size for leaf in jax.tree.leaves(state))
    return bool(batch_shape) and batch_shape[0] % 2 == 0 and size >= SPLIT_FROM


SPLIT_FROM = 8192
"""The size of a state from which on each half of it keeps a core busy (measured)."""


def loop(engine: str, memory: str, reverse: bool, finite_coefficients: bool = False) -> Loop:
    """The loop of the engine ``scan`` or ``fused``, with the requested memory plan.

    With ``finite_coefficients``, local derivatives that are not finite are replaced by zero.

    >>> import jax.numpy as jnp
    >>> run = loop("scan", "sqrt", reverse=False)
    >>> run(lambda total, x: (total + x, total), jnp.zeros(()), jnp.arange(4.0))
    (Array(6., dtype=float32), Array([0., 0., 1., 3.], dtype=float32))
    """
    if memory == "sqrt":
        run = loop(engine, "full", reverse, finite_coefficients)
        return functools.partial(_in_segments, run, reverse)
    if engine == "fused":
        return functools.partial(
            fused_scan,
            reverse=reverse,
            save_residuals=memory != "recompute",
            offload=memory == "offload",
            finite_coefficients=finite_coefficients,
        )

    def scan(step: Any, state: Any, inputs: Any) -> tuple[Any, Any]:
        if finite_coefficients:
            step = with_finite_coefficients(step)
        if memory == "recompute":
            step = jax.checkpoint(step, prevent_cse=False)
        return scan_stacking_float32(step, state, inputs, reverse=reverse)

    return scan


def _in_segments(
    run: Loop, reverse: bool, step: Any, state: Any, inputs: Any
) -> tuple[Any, jax.Array]:
    """Runs √T segments of √T steps; stores the first state of each, and one segment in full."""
    num_steps = len(jax.tree.leaves(inputs)[0])
    if num_steps == 0:
        return run(step, state, inputs)
    segment = max(1, round(num_steps**0.5))
    config = ScanConfig(num_steps, segment, reverse, save_residuals=True, offload=False)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(state: Any, inputs: Any) -> tuple[Any, Any]:
        return run(step, state, inputs)

    state, chunks = over_blocks(body, state, in_blocks(inputs, config), config)
    return state, jax.tree.map(lambda *parts: joined(list(parts)), *chunks)


def check_engine(engine: Any) -> None:
    """Raises a ValueError if there is no such engine."""
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")


def check_memory(memory: Any) -> None:
    """Raises a ValueError if there is no such memory plan."""
    if memory not in MEMORIES:
        raise ValueError(f"memory must be one of {', '.join(MEMORIES)}, got {memory!r}")
