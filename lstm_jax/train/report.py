"""The output of a run on the console."""

import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lstm_jax.tasks.base import Columns, Metrics


class _Console(Console):
    """A console that raises an error on a broken pipe; rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Report:
    """Messages, a progress line, and tables of metrics.

    On a terminal the progress line is updated in place. Elsewhere it is printed each time metrics
    are written.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or _Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None

    def say(self, message: str) -> None:
        """Prints one line."""
        self._console.print(Text(message))

    def warn(self, message: str) -> None:
        """Prints one highlighted line."""
        self._console.print(Text(f"warning: {message}", style="yellow"))

    def progress(self, line: str, *, lasting: bool) -> None:
        """Updates the progress line; ``lasting`` if metrics were written with it."""
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(Text(line), refresh=True)
        elif lasting:
            self.say(line)

    def end_progress(self) -> None:
        """Ends the progress line and leaves its last state visible."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def leave_terminal(self) -> None:
        """Stops writing to a terminal, which may have been closed."""
        if self._console.is_terminal:
            self._console.file = io.StringIO()

    def columns(self, columns: Columns, shown: int) -> None:
        """Prints a table of columns of equal length, up to ``shown`` rows.

        A terminal wraps long cells at its width; a file or pipe gets each row on one line.
        """
        table = Table(box=None, pad_edge=False)
        rows = len(next(iter(columns.values())))
        for name, column in columns.items():
            numeric = not isinstance(column[0], str) if rows else False
            table.add_column(Text(name), justify="right" if numeric else "left")
        for n in range(min(rows, shown)):
            values = (column[n] for column in columns.values())
            table.add_row(*(Text(_cell(value)) for value in values))
        width = self._console.width
        if not self._console.is_terminal:
            self._console.width = max(width, self._natural_width(table))
        self._console.print(table)
        if not self._console.is_terminal:
            self._console.width = width
        if rows > shown:
            self.say(f"... {rows - shown:,} more rows; --output FILE writes all")

    def metrics(self, title: str, rows: Mapping[str, Metrics]) -> None:
        """Prints a table with a row per method and a column per metric.

        If the console is too narrow for all columns, further tables show the remaining ones.
        """
        names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
        while names:
            count = len(names)
            while count > 1 and not self._fits(_metrics_table(title, names[:count], rows)):
                count -= 1
            self._console.print(_metrics_table(title, names[:count], rows))
            names = names[count:]

    def _fits(self, table: Table) -> bool:
        return self._natural_width(table) <= self._console.width

    def _natural_width(self, table: Table) -> int:
        unlimited = self._console.options.update(width=10**4)
        return Measurement.get(self._console, unlimited, table).maximum


def _metrics_table(title: str, names: Sequence[str], rows: Mapping[str, Metrics]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for method, metrics in rows.items():
        cells = (_rounded(metrics[name]) if name in metrics else "" for name in names)
        table.add_row(Text(method), *cells)
    return table


def _cell(value: Any) -> str:
    """A value as a table cell; for an array, its type and shape."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"{value:.6g}" if isinstance(value, float | np.floating) else f"{value}"


def _rounded(value: float) -> str:
    """A number with four decimals, or with one if it is large.

    >>> _rounded(1.5), _rounded(790066.3406)
    ('1.5000', '790,066.3')
    """
    return f"{value:.4f}" if abs(value) < 10_000 else f"{value:,.1f}"


class Clock:
    """Speed and time left, measured over the steps of this process.

    The first step, which includes compilation, and the time between steps are not counted.
    """

    def __init__(self, units_per_step: int):
        self._units, self._steps, self._seconds = units_per_step, 0, 0.0
        self._began = 0.0

    def start(self) -> None:
        """Called before a step."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Called after a step."""
        seconds = time.perf_counter() - self._began
        if self._steps > 0:
            self._seconds += seconds
        self._steps += 1

    @property
    def units_per_second(self) -> float:
        """The task's units per second; 0 while unknown."""
        return self._units * (self._steps - 1) / self._seconds if self._seconds else 0.0

    def left(self, steps: int) -> str:
        """The expected time for a number of steps, as h:mm:ss.

        >>> Clock(1).left(10)
        '?'
        """
        if not self._seconds:
            return "?"
        seconds = round(steps * self._seconds / (self._steps - 1))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
