"""The metrics of a run: a file with one JSON object per line, and a plot of the loss."""

import hashlib
import importlib.util
import io
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lstm_jax._files import write_content, writing
from lstm_jax._labels import label
from lstm_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Callback = Callable[[int, dict[str, float]], None]
"""A logger, called as ``callback(step, {"train/loss": 1.2, ...})``."""


def ignore(message: str) -> None:
    """Drops a warning."""


def read_metrics(path: pathlib.Path, warn: Callable[[str], None] = ignore) -> list[dict[str, Any]]:
    """The intact lines of a ``metrics.jsonl``.

    Args:
      path: the file.
      warn: receives a message that names damaged lines, which are skipped. An incomplete last line,
        left by a killed process, is skipped without a message.

    >>> read_metrics(pathlib.Path("/no/such/metrics.jsonl"))
    []
    """
    try:
        rows = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    lines = [_line(row) for row in rows]
    damaged = [f"{n}" for n, line in enumerate(lines[:-1], 1) if line is None]
    if damaged:
        some = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        warn(f"{path}: skipped {len(damaged)} damaged line(s): {some}")
    return [line for line in lines if line is not None]


def _line(row: bytes) -> dict[str, Any] | None:
    """A step and its metrics; None if the row is anything else."""
    try:
        line = json.loads(row.decode("utf-8"))
        if not isinstance(line, dict) or type(line.get("step")) is not int or len(line) < 2:
            return None
        if not all(type(value) in (int, float) for value in line.values()):
            return None
        for value in line.values():
            float(value)  # OverflowError: a huge integer is not a metric
        return line
    except (ValueError, OverflowError, RecursionError):
        return None


class MetricsLog:
    """Appends lines to ``metrics.jsonl`` and scalars to TensorBoard's files.

    Lines hold only reproducible metrics: a repeated run writes the same ones. Speeds go only to
    TensorBoard, the callbacks and the progress line.

    Args:
      workdir: the run's folder.
      step: the step from which the run resumes; lines of later steps are removed, since they will
        be written again.
      tensorboard: whether to write TensorBoard's files into the folder ``tensorboard``.
      callbacks: called with a step and its metrics, speeds included.
      warn: receives a message that names damaged lines, which are removed.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        step: int,
        tensorboard: bool = False,
        callbacks: Sequence[Callback] = (),
        warn: Callable[[str], None] = ignore,
    ):
        self.path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path, warn) if line["step"] <= step]
        whole = "".join(json.dumps(line) + "\n" for line in kept)
        if not self.path.exists() or self.path.read_bytes() != whole.encode():
            write_content(self.path, whole)
        with writing(self.path):
            self._file = self.path.open("a", encoding="utf-8")
        self._callbacks = callbacks
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def lines(self) -> list[dict[str, Any]]:
        """The lines on disk."""
        return read_metrics(self.path)

    def digest(self) -> str:
        """SHA-256 of all lines, including those not yet on disk."""
        self._file.flush()
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line: the step and its metrics."""
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.board(step, metrics)

    def board(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends metrics to TensorBoard and the callbacks only."""
        for callback in self._callbacks:
            callback(step, dict(metrics))
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes all lines to disk. A checkpoint of their step relies on this."""
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes the files."""
        self.flush()
        self._file.close()
        if self._board is not None:
            self._board.close()


def check_tensorboard() -> None:
    """Raises :class:`UserError` if TensorBoard's files cannot be written."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError(
            "train.tensorboard: tensorboardX is not installed (pip install 'lstm_jax[tensorboard]')"
        )


def plot_content(plot: Any) -> tuple[str, str | bytes]:
    """The suffix and the content of a plot's file: a page unchanged, a figure as an image.

    >>> plot_content("<p>a page</p>")
    ('.html', '<p>a page</p>')
    """
    return (".html", plot) if isinstance(plot, str | bytes) else (".png", drawn(plot))


def drawn(figure: "Figure", format: str = "png") -> bytes:
    """A figure rendered as the content of a file."""
    file = io.BytesIO()
    figure.savefig(file, format=format, dpi=200)
    return file.getvalue()


def loss_curve(
    lines: list[dict[str, Any]], unit: str, baselines: Mapping[str, Mapping[str, float]]
) -> "Figure":
    """Training and validation loss over steps, with the baselines' losses as horizontal lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    styles: dict[str, dict[str, Any]] = {
        "train/loss": {"color": "#0072b2", "linewidth": 1.2, "label": "training"},
        "validation/loss": {"color": "#d55e00", "marker": "o", "label": "validation"},
    }
    for name, style in styles.items():
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), **style)
    for number, (name, reached) in enumerate(baselines.items()):
        if "loss" in reached:
            dashes = [":", "-.", "--"][number % 3]
            axes.axhline(reached["loss"], color="0.4", linestyle=dashes, label=label(name))
    axes.set_xlabel("training step")
    axes.set_ylabel(label(f"loss ({unit})"))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return figure
