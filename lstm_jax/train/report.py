"""What a run prints."""

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
    """A console that raises where nobody reads its output; rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Report:
    """Messages, a progress line, and tables of metrics.

    On a terminal the progress line stays in one place; elsewhere it is printed anew each
    time metrics are written.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or _Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None

    def say(self, message: str) -> None:
        """One line."""
        self._console.print(Text(message))

    def warn(self, message: str) -> None:
        """One line that stands out."""
        self._console.print(Text(f"warning: {message}", style="yellow"))

    def progress(self, line: str, *, lasting: bool) -> None:
        """The progress line; ``lasting`` where metrics were written with it."""
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(Text(line), refresh=True)
        elif lasting:
            self.say(line)

    def end_progress(self) -> None:
        """Leaves the progress line as it last was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def leave_terminal(self) -> None:
        """Writes no more to a terminal, which may have been closed."""
        if self._console.is_terminal:
            self._console.file = io.StringIO()

    def columns(self, columns: Columns, shown: int) -> None:
        """A table of columns of equal length, its first ``shown`` rows."""
        table = Table(box=None, pad_edge=False)
        rows = len(next(iter(columns.values())))
        for name, column in columns.items():
            numeric = not isinstance(column[0], str) if rows else False
            table.add_column(Text(name), justify="right" if numeric else "left")
        for n in range(min(rows, shown)):
            values = (column[n] for column in columns.values())
            table.add_row(*(Text(_cell(value)) for value in values))
        self._console.print(table)
        if rows > shown:
            self.say(f"... {rows - shown:,} more rows; --output FILE writes all")

    def metrics(self, title: str, rows: Mapping[str, Metrics]) -> None:
        """A table with a row for each method and a column for each metric.

        Where the console is too narrow for all columns, tables of the other columns follow.
        """
        names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
        while names:
            count = len(names)
            while count > 1 and not self._fits(_metrics_table(title, names[:count], rows)):
                count -= 1
            self._console.print(_metrics_table(title, names[:count], rows))
            names = names[count:]

    def _fits(self, table: Table) -> bool:
        unlimited = self._console.options.update(width=10**4)
        return Measurement.get(self._console, unlimited, table).maximum <= self._console.width


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
    """A value of a table; of an array its type and shape."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"{value:.6g}" if isinstance(value, float | np.floating) else f"{value}"


def _rounded(value: float) -> str:
    """Four decimals, or one of a large number.

    >>> _rounded(1.5), _rounded(790066.3406)
    ('1.5000', '790,066.3')
    """
    return f"{value:.4f}" if abs(value) < 10_000 else f"{value:,.1f}"


class Clock:
    """Speed and time left, over the steps that this process has taken.

    Compilation in the first step, and what happens between steps, do not count as speed.
    """

    def __init__(self, units_per_step: int):
        self._units, self._steps, self._seconds = units_per_step, 0, 0.0
        self._began = 0.0

    def start(self) -> None:
        """Before a step."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """After it."""
        seconds = time.perf_counter() - self._began
        if self._steps > 0:
            self._seconds += seconds
        self._steps += 1

    @property
    def units_per_second(self) -> float:
        """What the task counts, a second; 0 while unknown."""
        return self._units * (self._steps - 1) / self._seconds if self._seconds else 0.0

    def left(self, steps: int) -> str:
        """The time that so many steps will take, as h:mm:ss.

        >>> Clock(1).left(10)
        '?'
        """
        if not self._seconds:
            return "?"
        seconds = round(steps * self._seconds / (self._steps - 1))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
