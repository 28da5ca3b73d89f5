"""The section ``[data]`` of the forecasting task: the table and its splits."""

import dataclasses

from lstm_jax.config import Section, option
from lstm_jax.data import Table, fetch, read_csv


@dataclasses.dataclass(frozen=True)
class SeriesData(Section):
    """Section ``[data]`` of task ``forecasting``."""

    table: str = option(
        "etth1", "etth1, or the path of a CSV file (time stamp, then numbers)", path_or=("etth1",)
    )
    train_rows: int = option(12 * 30 * 24, "rows for training: the first ones", at_least=1)
    validation_rows: int = option(4 * 30 * 24, "rows after them, for validation", at_least=1)
    test_rows: int = option(4 * 30 * 24, "rows after those, for the test", at_least=1)
    window: int = option(
        720, "W, rows of the past that a forecast reads", at_least=1, at_most=10**6
    )
    horizon: int = option(96, "F, rows of the future that it predicts", at_least=1, at_most=10**6)
    season: int = option(24, "rows per season, for the seasonal naive forecast", at_least=1)
    batch_size: int = option(64, "windows per training step", at_least=1, at_most=10**6)

    def read(self) -> Table:
        """The table.

        Raises:
          UserError: the file is missing or broken.
        """
        return read_csv(fetch("etth1/ETTh1.csv") if self.table == "etth1" else self.table)
