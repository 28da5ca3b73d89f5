"""Evaluate a run's best checkpoint: metrics, compared with simple methods, and plots."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from lstm_jax.cli.parser import Parser
from lstm_jax.cli.process import add_process_options, add_run, set_up
from lstm_jax.errors import expect


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options."""
    add_run(parser)
    parser.add_argument(
        "--stride",
        type=int,
        metavar="ROWS",
        help="for time series: rows between forecasts of the backtest (default: data.stride)",
    )
    add_process_options(parser)


def run(options: argparse.Namespace) -> None:
    """Evaluates the run; prints a table, and writes results.json and plots."""
    from lstm_jax.train import Report, evaluate, load_workdir

    config = load_workdir(options.run_folder)
    if options.stride is not None:
        fits = hasattr(config.data, "stride") and options.stride > 0
        expect(fits, "--stride", "rows of a time series, at least 1", options.stride)
        data: Any = config.data
        config = dataclasses.replace(config, data=dataclasses.replace(data, stride=options.stride))
    set_up(options)
    evaluate(config, config.build_task(), options.run_folder, Report())
