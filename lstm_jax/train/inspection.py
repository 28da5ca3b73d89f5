"""A report on what the layers of a trained run do."""

import html
import pathlib

import jax

from lstm_jax.data import read_text
from lstm_jax.errors import UserError
from lstm_jax.inspect.report import Section, facts, look_into, page, picture
from lstm_jax.tasks.base import Inspects, Task
from lstm_jax.train.config import Config
from lstm_jax.train.loop import best_params
from lstm_jax.train.metrics import loss_curve, read_metrics
from lstm_jax.train.workdir import CONFIG_FILE

REPORT_FILE = "inspect.html"


def inspect_run(
    config: Config, task: Task, workdir: pathlib.Path, text: pathlib.Path | None = None
) -> pathlib.Path:
    """Writes ``inspect.html`` into a run's folder: one page that needs no other file.

    Args:
      config: the run.
      task: its task.
      workdir: its folder.
      text: a UTF-8 file for a task that reads text; None for some of its validation data.

    Returns:
      The path of the page.

    Raises:
      UserError: there is no checkpoint, matplotlib is not installed, the task cannot be looked
        into or reads no text, or the text is too short or has unknown characters.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "inspect draws pictures, but matplotlib is not installed (pip install 'lstm_jax[plot]')"
        ) from error
    if not isinstance(task, Inspects):
        raise UserError(f"{workdir}: task {config.task} does not show its layers")
    params, step = best_params(config, task, workdir)
    seen = task.inspected(params, None if text is None else _text(text))

    rows = {
        "folder": str(workdir),
        "task": config.task,
        "checkpoint": f"step {step:,} of {config.train.num_steps:,}, the best",
        "parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}",
        "read here": seen.what if text is None else f"{seen.what} of {text}",
    }
    curve = loss_curve(
        read_metrics(workdir / "metrics.jsonl"),
        task.loss_unit,
        task.baselines("validation") if "validation" in task.splits else {},
    )
    written = html.escape((workdir / CONFIG_FILE).read_text("utf-8"))
    sections = [
        Section("The run", facts(rows)),
        Section("Loss", picture(curve, "training and validation loss over training steps")),
        *look_into(seen.layer, seen.params, seen.xs, lengths=seen.lengths, text=seen.text),
        Section("Config", f"<pre>{written}</pre>"),
    ]
    path = workdir / REPORT_FILE
    path.write_text(page(f"Inside {workdir.name or workdir}", sections), "utf-8")
    return path


def _text(path: pathlib.Path) -> str:
    try:
        return read_text(path)
    except UserError as error:
        raise UserError(f"--text: {error}") from error
