"""Optional methods of a task: predict, plot predictions, generate."""

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from lstm_jax.tasks.base import Columns, Plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class Predicts(Protocol):
    """A task that predicts on new data."""

    def predict(self, model: Any, source: pathlib.Path | list[str] | None) -> Columns:
        """Predictions on new data, as columns of a table.

        Args:
          model: the trained model.
          source: a file in the format of the training data; None for the task's own test or
            validation data; if the task has ``reads_text``, also a list of strings.

        Raises:
          UserError: the file is missing, or the data do not fit the training data.
        """
        ...


@runtime_checkable
class ChartsPredictions(Protocol):
    """A task that also plots its predictions, next to their file."""

    def charts(self, model: Any, source: pathlib.Path | None) -> Plots:
        """Plots of the result of :meth:`Predicts.predict`, with suffixes for the file's name."""
        ...


@runtime_checkable
class PlotsText(Protocol):
    """A task that plots how it predicts on a string."""

    def plot(self, model: Any, text: str) -> "Figure":
        """The plot for one string.

        Raises:
          UserError: the string does not fit.
        """
        ...


@runtime_checkable
class PlotsFile(Protocol):
    """A task that plots how it predicts on a file of new data.

    Attributes:
      plot_formats: the suffixes of images that it can write, such as ``(".gif",)``.
    """

    plot_formats: tuple[str, ...]

    def plot_file(self, model: Any, source: pathlib.Path) -> "Figure | str | bytes":
        """The plot for one file: a figure, or the content of a file of ``plot_formats``.

        Raises:
          UserError: the file is missing, or does not fit.
        """
        ...


class File(NamedTuple):
    """A file that a task has generated.

    Attributes:
      name: its name, such as ``"tune.mid"``.
      content: its bytes.
    """

    name: str
    content: bytes


@runtime_checkable
class Generates(Protocol):
    """A task that generates new samples: text, or files."""

    def generate(
        self, model: Any, *, prompt: str, length: int, temperature: float, seed: int
    ) -> Iterator[str | File]:
        """Yields a new sample piece by piece, each as soon as it is known.

        The fields of the task's :attr:`Task.sampling` are additional keywords.

        Args:
          model: the trained model.
          prompt: the start of the sample.
          length: the number of units after the prompt.
          temperature: below 1 for more likely samples, above 1 for more diverse ones; 0 always
            takes the most likely.
          seed: determines the random choices.

        Raises:
          UserError: the model cannot continue this prompt; raised by the call itself.
        """
        ...
