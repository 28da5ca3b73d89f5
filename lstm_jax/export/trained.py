"""Exports the model of a trained run to files that run without this library."""

import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from lstm_jax.config import Config
from lstm_jax.errors import UserError, first_line
from lstm_jax.export.encoder_decoder import export_encoder_decoder
from lstm_jax.export.runner import Model
from lstm_jax.export.translator import Translator
from lstm_jax.export.writing import DTYPES, export_onnx, export_stablehlo, write_manifest
from lstm_jax.models import EncoderDecoder
from lstm_jax.models import Model as TrainableModel
from lstm_jax.tasks.base import Metrics, Task
from lstm_jax.train import Report, best_model

FORMATS = {"stablehlo": "flatbuffers", "onnx": "onnx and onnxruntime"}
"""The formats, and the packages that each requires."""

DYNAMIC = "dynamic-int8"
STEPS_TIMED = 64
SENTENCE = "A dog runs."  # translated to measure the time


def export_run(
    config: Config, task: Task, workdir: pathlib.Path, report: Report, format: str, dtype: str
) -> pathlib.Path:
    """Exports a run's best checkpoint to a standalone model, and reports its quality.

    The exported model is read back and evaluated, and its metrics are compared with those of the
    run's model.  The report also contains file sizes and times.

    Args:
      config: the run's config.
      task: its task.
      workdir: its folder; the export is written to ``export/FORMAT-DTYPE`` in it.
      report: receives the tables.
      format: ``"stablehlo"`` or ``"onnx"``.
      dtype: the storage type of matrices, ``"float32"``, ``"bfloat16"`` or ``"int8"``; or, with
        ONNX, ``"dynamic-int8"``, onnxruntime's own dynamic quantisation.

    Returns:
      The folder.

    Raises:
      UserError: there is no checkpoint, ``format`` does not support ``dtype`` or a part of the
        model, the model does not name its inputs, a library that ``format`` requires is not
        installed, or the folder cannot be written.
    """
    if dtype == DYNAMIC and format != "onnx":
        raise UserError(f"--dtype {DYNAMIC} is onnxruntime's: expected --format onnx, got {format}")
    model, step = best_model(config, task, workdir)
    if not isinstance(model.module, TrainableModel):
        raise UserError(
            f"{workdir}: expected a lstm_jax.models.Model, which names its inputs, got "
            f"{type(model.module).__name__}"
        )
    translates = isinstance(model.module, EncoderDecoder)
    if translates and format != "stablehlo":
        raise UserError(f"--format: expected stablehlo for an encoder-decoder, got {format}")
    folder = workdir / "export" / f"{format}-{dtype}"
    metadata: dict[str, Any] = {"task": config.task, "step": step, **task.exported()}
    try:
        if translates:
            export_encoder_decoder(model, folder, dtype=dtype, metadata=metadata)
        elif format == "stablehlo":
            export_stablehlo(model, folder, dtype=dtype, metadata=metadata)
        else:
            dynamic = dtype == DYNAMIC
            stored = DTYPES[0] if dynamic else dtype
            try:
                export_onnx(model, folder, dtype=stored, metadata=metadata, dynamic=dynamic)
            except ValueError as error:  # a part of the model has no translation
                raise UserError(
                    f"--format: expected stablehlo for this model, got onnx ({first_line(error)})"
                ) from error
        began = time.perf_counter()
        exported: Any = Translator(folder) if translates else Model(folder)
        loading = time.perf_counter() - began
    except ImportError as error:
        raise UserError(f"--format {format} needs {FORMATS[format]}: {error}") from error

    metrics: dict[str, Metrics] = {}
    for split in task.splits:
        own, metrics[split] = task.evaluate(model, split), task.evaluate(exported, split)
        # Rounded as printed, so that no difference is not -0.0000.
        change = {name: round(metrics[split][name] - own[name], 4) + 0.0 for name in own}
        rows = {
            f"this run, step {step}": own,
            f"exported, {format} {dtype}": metrics[split],
            "difference": change,
        }
        report.metrics(f"{split} split", rows)
    write_manifest(folder, exported.metadata | {"metrics": metrics})

    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    parts = ", ".join(f"{name} {size / 1000:,.1f} kB" for name, size in sizes.items())
    report.say(f"{folder}: {sum(sizes.values()) / 1000:,.1f} kB: {parts}")
    report.say(f"loaded in {loading:.3f} s; {_seconds(exported)}")
    return folder


def _seconds(model: Model | Translator) -> str:
    """The time that one row takes, for one step and for many, as text."""
    parts = []
    if isinstance(model, Translator):
        for _ in range(2):
            began = time.perf_counter()
            _ = [*model.translate([SENTENCE])]
            parts.append(f"{time.perf_counter() - began:.2f} s")
        return f"a sentence of {len(SENTENCE)} characters in {parts[1]} (the first {parts[0]})"
    for steps, count, what in (
        (1, 200, "a step of one row"),
        (STEPS_TIMED, 20, f"{STEPS_TIMED} steps at once"),
    ):
        first, *others = _times(model, steps, count)
        parts.append(f"{what} {1000 * np.median(others):.3f} ms (the first {first:.2f} s)")
    return ", ".join(parts)


def _times(model: Model, steps: int, count: int) -> list[float]:
    """The seconds that each of several consecutive calls took."""
    inputs = {
        # Zeros are valid tokens, but not valid lengths.
        key: np.full(_sizes(spec["shape"], steps), steps if key == "lengths" else 0, spec["dtype"])
        for key, spec in model.metadata["inputs"].items()
    }
    carry, times = model.initial_carry(1), []
    for _ in range(1 + count):
        began = time.perf_counter()
        carry, _ = jax.block_until_ready(model(carry, **inputs))
        times.append(time.perf_counter() - began)
    return times


def _sizes(shape: str, steps: int) -> list[int]:
    """The shape of an input of one row and ``steps`` steps.

    >>> _sizes("b, 48*t, 7", steps=64)
    [1, 3072, 7]
    """
    letters = {"b": 1, "t": steps, "u": 1}
    return [
        math.prod(letters.get(factor) or int(factor) for factor in size.strip().split("*"))
        for size in shape.split(",")
    ]
