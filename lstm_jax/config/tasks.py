"""The task classes that configs name."""

import importlib
from typing import Any

from lstm_jax.config.options import nearest
from lstm_jax.errors import UserError

TASKS: dict[str, str] = {
    "next_character": "lstm_jax.tasks.next_character.NextCharacter",
    "forecasting": "lstm_jax.tasks.forecasting.Forecasting",
    "classification": "lstm_jax.tasks.classification.Classification",
    "action": "lstm_jax.tasks.action.ActionRecognition",
    "speech": "lstm_jax.tasks.speech.Speech",
    "handwriting": "lstm_jax.tasks.handwriting.Handwriting",
    "handwriting_synthesis": "lstm_jax.tasks.handwriting_synthesis.SynthesisTask",
    "music": "lstm_jax.tasks.music.Music",
    "video": "lstm_jax.tasks.video.VideoForecasting",
    "video_classification": "lstm_jax.tasks.video_classification.VideoClassification",
    "translation": "lstm_jax.tasks.translation.Translation",
    "time_series": "lstm_jax.tasks.time_series.TimeSeries",
    "text_classification": "lstm_jax.tasks.text_classification.TextClassification",
}
"""The location of each built-in task class, by its name in a config (key ``task``)."""


def task_class(name: Any, source: str = "task") -> type:
    """The class of a task.

    Args:
      name: a name in ``TASKS``, or ``module.Class`` for a custom task.
      source: the file that names it, for messages.

    Raises:
      UserError: the task does not exist.

    >>> task_class("classification").__name__
    'Classification'
    >>> task_class("clasification")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: task: expected one of ... got 'clasification'; did you mean ...
    """
    if not isinstance(name, str) or (name not in TASKS and "." not in name):
        expected = f"expected one of {', '.join(TASKS)} or module.Class"
        close = nearest(str(name), TASKS)
        hint = close if close.startswith("; did") else ""
        key = source if source == "task" else f"{source}: task"
        raise UserError(f"{key}: {expected}, got {name!r}{hint}")
    module, _, kind = TASKS.get(name, name).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), kind, None)
    except Exception as error:  # the module's own code can raise anything
        if name in TASKS:
            raise
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"task: {name}: module {module} cannot be imported ({cause})") from error
    if found is None:
        raise UserError(f"task: {name}: module {module} has no {kind}")
    is_task = isinstance(found, type) and all(hasattr(found, m) for m in ("build", "loss"))
    if (
        not is_task or found.__module__ == "lstm_jax.tasks.base"
    ):  # the base class itself is not a task
        raise UserError(f"task: {name} is not a task: expected a subclass of lstm_jax.tasks.Task")
    return found


def task_name(kind: type) -> str:
    """The name under which :func:`task_class` finds a class.

    >>> task_name(task_class("classification"))
    'classification'
    """
    path = f"{kind.__module__}.{kind.__qualname__}"
    return next((name for name, place in TASKS.items() if place == path), path)
