"""A report on the behaviour of the layers of a trained run."""

import contextlib
import html
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from lstm_jax._files import write_content
from lstm_jax.config import Config
from lstm_jax.errors import UserError
from lstm_jax.inspect.page import Section, facts, figure_image, layer_sections, page
from lstm_jax.nnx import Stack
from lstm_jax.tasks.base import Task
from lstm_jax.tasks.protocols import Predicts
from lstm_jax.train.loop import best_model
from lstm_jax.train.metrics import loss_curve, read_metrics
from lstm_jax.train.workdir import CONFIG_FILE

REPORT_FILE = "inspect.html"
ROWS, STEPS = 32, 4000  # of a layer's input, in a report


def inspect_run(
    config: Config, task: Task, workdir: pathlib.Path, file: pathlib.Path | None = None
) -> pathlib.Path:
    """Writes ``inspect.html`` into a run's folder: one self-contained page.

    Args:
      config: the run.
      task: its task.
      workdir: its folder.
      file: data for the task's ``predict``; None for part of its first evaluation split.

    Returns:
      The path of the page.

    Raises:
      UserError: there is no checkpoint, matplotlib is not installed, the model has no recurrent
        layers of this library, or the task cannot read the file.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "inspect draws plots, but matplotlib is not installed (pip install 'lstm_jax[plot]')"
        ) from error
    model, step = best_model(config, task, workdir)
    seen = recurrent_inputs(task, model.module, file)

    parameters = jax.tree.leaves(nnx.state(model.module, nnx.Param))
    rows = {
        "folder": str(workdir),
        "task": config.task,
        "checkpoint": f"step {step:,} of {config.train.num_steps:,}, the best",
        "parameters": f"{sum(leaf.size for leaf in parameters):,}",
        "read here": f"the first {seen.xs.shape[0]:,} steps of {seen.xs.shape[1]} sequence(s) of "
        f"{file or f'the {task.splits[0]} split'}",
    }
    curve = loss_curve(
        read_metrics(workdir / "metrics.jsonl"),
        task.loss_unit,
        task.baselines("validation") if "validation" in task.splits else {},
    )
    written = html.escape((workdir / CONFIG_FILE).read_text("utf-8"))
    sections = [
        Section("The run", facts(rows)),
        Section("Loss", figure_image(curve, "training and validation loss over training steps")),
        *layer_sections(seen.layer, seen.params, seen.xs, lengths=seen.lengths, text=seen.text),
        Section("Config", f"<pre>{written}</pre>"),
    ]
    path = workdir / REPORT_FILE
    write_content(path, page(f"Inside {workdir.name or workdir}", sections))
    return path


# ---- the inputs of the recurrent layers ----


class Seen(NamedTuple):
    """The inputs of a model's first recurrent layers in one call.

    Attributes:
      layer: the functional layers.
      params: their parameters.
      xs: their inputs, ``[T, B, D]``.
      lengths: integers ``[B]``, the lengths of the rows if they differ.
      text: the character of each input of row 0, if the model reads characters.
    """

    layer: Any
    params: Any
    xs: jax.Array
    lengths: Any = None
    text: str | None = None


class Call(NamedTuple):
    """A call of a layer of :mod:`lstm_jax.nnx`."""

    layer: Stack
    xs: jax.Array
    options: dict[str, Any]


class _Done(Exception):  # noqa: N818 - not an error: enough was read
    """Ends an evaluation after the first call of the model."""


def recurrent_inputs(task: Task, module: nnx.Module, file: pathlib.Path | None = None) -> Seen:
    """The inputs of a module's first recurrent layers, for a file or an evaluation split.

    The task reads the data as for :meth:`Task.evaluate` (or ``predict``), up to the first call of
    the model. During this call, the inputs of the module's first :class:`lstm_jax.nnx.Stack` are
    recorded.

    Args:
      task: the task.
      module: its model in evaluation mode.
      file: data for the task's ``predict``; None for its first evaluation split.

    Raises:
      UserError: the model has no such layers, or the task cannot read the file.
    """
    calls: list[tuple[dict[str, Any], Call]] = []

    class Reader:
        """A wrapper that runs the module once and then ends the evaluation."""

        def __getattr__(self, name: str) -> Any:
            return getattr(module, name)

        def __call__(self, *args: Any, **inputs: Any) -> Any:
            self._recorded(module, *args, **inputs)
            raise _Done

        def encode(self, **inputs: Any) -> Any:  # called before the decoder of an encoder-decoder
            return self._recorded(module.encode, **inputs)  # type: ignore[missing-attribute]

        def search(self, source: Any, lengths: Any, *_: Any) -> Any:
            self.encode(source=source, lengths=lengths)
            raise _Done

        def _recorded(self, function: Any, *args: Any, **inputs: Any) -> Any:
            with _recorded() as layers:
                result = function(*args, **inputs)
            calls.extend((inputs, call) for call in layers)
            return result

    if file is not None and not isinstance(task, Predicts):
        raise UserError(f"--text: task {type(task).__name__} does not read new data")
    try:
        if file is None:
            task.evaluate(Reader(), task.splits[0])
        else:
            task.predict(Reader(), file)  # type: ignore[missing-attribute]
    except _Done:
        pass
    except UserError as error:
        raise UserError(f"--text: {error}" if file else str(error)) from error
    if not calls:
        raise UserError(f"{type(module).__name__} has no layers of lstm_jax.nnx to inspect")
    inputs, (layer, xs, options) = calls[0]
    time_major = options.get("time_major")
    xs = xs if (layer.time_major if time_major is None else time_major) else xs.swapaxes(0, 1)
    lengths = options.get("seq_lengths")
    return Seen(
        layer.layer,
        layer.params,
        xs[:STEPS, :ROWS],
        None if lengths is None else np.minimum(lengths[:ROWS], STEPS),
        _characters(task, inputs),
    )


@contextlib.contextmanager
def _recorded() -> Iterator[list[Call]]:
    """Collects every call of a layer of :mod:`lstm_jax.nnx`."""
    calls: list[Call] = []
    original = Stack.__call__

    def call(self: Stack, xs: jax.Array, **options: Any) -> Any:
        calls.append(Call(self, xs, options))
        return original(self, xs, **options)

    Stack.__call__ = call  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        Stack.__call__ = original  # type: ignore[method-assign]


def _characters(task: Task, inputs: dict[str, Any]) -> str | None:
    """The characters of row 0, if the model reads tokens of a vocabulary of characters."""
    vocabulary = task.known.get("vocabulary")
    if "tokens" not in inputs or not isinstance(vocabulary, str):
        return None
    return "".join(vocabulary[token] for token in np.asarray(inputs["tokens"])[0, :STEPS])
