"""A finished run: its model, task and config."""

import dataclasses
import pathlib
from typing import Any

from lstm_jax.config import Config
from lstm_jax.errors import UserError
from lstm_jax.models import Compiled
from lstm_jax.tasks.base import Columns
from lstm_jax.tasks.protocols import Predicts
from lstm_jax.train.loop import best_model
from lstm_jax.train.workdir import load_workdir, stored_metadata

Source = str | pathlib.Path | list[str] | list[pathlib.Path] | None


@dataclasses.dataclass(frozen=True)
class Run:
    """The best checkpoint of a run.

    Attributes:
      folder: the run's folder.
      config: its config.
      task: its task, which reads its training data only when it needs them.
      model: the model in evaluation mode.
      step: the step of the checkpoint.
    """

    folder: pathlib.Path
    config: Config
    task: Any
    model: Compiled
    step: int

    def predict(self, source: Source = None) -> Columns:
        """Predictions on new data, as columns of a table.

        Args:
          source: a file in the format of the training data; None for the task's own test or
            validation data; a list of strings for a task that reads text; a list of files for a
            task that reads several files.

        Raises:
          UserError: the task does not predict or does not read text, or the data do not fit.
        """
        if not isinstance(self.task, Predicts):
            raise UserError(f"{self.folder}: task {self.config.task} does not predict on new data")
        files = isinstance(source, list) and all(isinstance(x, pathlib.Path) for x in source)
        if files and not getattr(self.task, "reads_files", False):
            raise UserError(
                f"{self.folder}: task {self.config.task} reads a single file, got {len(source)}"
            )
        if isinstance(source, list) and not files and not getattr(self.task, "reads_text", False):
            raise UserError(f"{self.folder}: task {self.config.task} does not read text")
        found: Any = pathlib.Path(source) if isinstance(source, str) else source
        return self.task.predict(self.model, found)


def load_run(folder: str | pathlib.Path) -> Run:
    """The best checkpoint of the run in a folder; the training data are not needed.

    Raises:
      UserError: the folder holds no run, or no intact checkpoint.

    >>> load_run("/no/such/run")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/run: no run here (expected a config.toml)
    """
    folder = pathlib.Path(folder)
    config = load_workdir(folder)
    task = config.build_task(stored_metadata(folder))
    model, step = best_model(config, task, folder, check_data=False)
    return Run(folder, config, task, model, step)
