"""A trained run as files with which another process runs its model, by itself."""

import json
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from lstm_jax.errors import UserError
from lstm_jax.interop.deploy import DTYPES, export_onnx, export_stablehlo
from lstm_jax.interop.standalone import Model
from lstm_jax.tasks.base import Figures, Task
from lstm_jax.train.config import Config
from lstm_jax.train.loop import best_params
from lstm_jax.train.report import Report

FORMATS = {"stablehlo": "flatbuffers", "onnx": "onnx and onnxruntime"}
"""What can be written, and the packages that it needs."""

DYNAMIC = "dynamic-int8"
STEPS_TIMED = 64


def export_run(
    config: Config, task: Task, workdir: pathlib.Path, report: Report, format: str, dtype: str
) -> pathlib.Path:
    """Writes a run's best checkpoint as a model that runs alone, and tells how good it is.

    Its figures are taken with what was written, read back, beside those of the run; then come
    sizes and times.

    Args:
      config: the run.
      task: its task.
      workdir: its folder; the model goes to ``export/FORMAT-DTYPE`` in it.
      report: where figures are told.
      format: ``"stablehlo"`` or ``"onnx"``.
      dtype: how matrices are stored, ``"float32"``, ``"bfloat16"`` or ``"int8"``; or, with
        ONNX, ``"dynamic-int8"``, onnxruntime's own dynamic quantisation.

    Returns:
      The folder.

    Raises:
      UserError: there is no checkpoint, ``dtype`` does not go with ``format``, or a library that
        ``format`` needs is not installed.
    """
    if dtype == DYNAMIC and format != "onnx":
        raise UserError(f"--dtype {DYNAMIC} is onnxruntime's: expected --format onnx, got {format}")
    params, step = best_params(config, task, workdir)
    folder = workdir / "export" / f"{format}-{dtype}"
    about: dict[str, Any] = {"task": config.task, "step": step, **task.about()}
    model = (task.functions, params, task.initial_state(params, 1), folder)
    try:
        if format == "stablehlo":
            export_stablehlo(*model, dtype=dtype, about=about)
        else:
            dynamic = dtype == DYNAMIC
            export_onnx(*model, dtype=DTYPES[0] if dynamic else dtype, about=about, dynamic=dynamic)
        began = time.perf_counter()
        exported = Model(folder)
        loading = time.perf_counter() - began
    except ImportError as error:
        raise UserError(f"--format {format} needs {FORMATS[format]}: {error}") from error

    figures: dict[str, Figures] = {}
    for split in task.splits:
        own, figures[split] = task.evaluate(params, split), task.score(exported, split)
        # Rounded as printed, so that no difference is not -0.0000.
        change = {name: round(figures[split][name] - own[name], 4) + 0.0 for name in own}
        rows = {
            f"this run, step {step}": own,
            f"exported, {format} {dtype}": figures[split],
            "difference": change,
        }
        report.figures(f"{split} split", rows)
    manifest = json.dumps(exported.about | {"figures": figures}, indent=2, ensure_ascii=False)
    (folder / "manifest.json").write_text(manifest + "\n", "utf-8")

    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    parts = ", ".join(f"{name} {size / 1000:,.1f} kB" for name, size in sizes.items())
    report.say(f"{folder}: {sum(sizes.values()) / 1000:,.1f} kB: {parts}")
    report.say(f"loaded in {loading:.3f} s; {_latencies(exported)}")
    return folder


def _latencies(model: Model) -> str:
    """How long one row takes, step by step and as a whole, in words."""
    parts = []
    for name, steps, count in (("step", 1, 200), ("sequence", STEPS_TIMED, 20)):
        first, *others = _times(model, name, steps, count)
        what = "a step of one row" if name == "step" else f"{steps} steps at once"
        parts.append(f"{what} {1000 * np.median(others):.3f} ms (the first {first:.2f} s)")
    return ", ".join(parts)


def _times(model: Model, name: str, steps: int, count: int) -> list[float]:
    """The seconds that each of some calls took, one after the other."""
    inputs = {
        # Zeros are a character, too, but no length.
        key: np.full(_sizes(spec["shape"], steps), steps if key == "lengths" else 0, spec["dtype"])
        for key, spec in model.about["functions"][name].items()
    }
    state, times = model.initial_state(1), []
    for _ in range(1 + count):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(getattr(model, name)(state, **inputs))
        times.append(time.perf_counter() - began)
    return times


def _sizes(shape: str, steps: int) -> list[int]:
    """A shape as a function's inputs have it, of one row and so many steps.

    >>> _sizes("b, 48*t, 7", steps=64)
    [1, 3072, 7]
    """
    letters = {"b": 1, "t": steps}
    return [
        math.prod(letters.get(factor) or int(factor) for factor in size.strip().split("*"))
        for size in shape.split(",")
    ]
