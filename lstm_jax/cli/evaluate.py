"""Metrics of a run's best checkpoint next to those of simple methods; plots."""

import argparse
from collections.abc import Sequence

from lstm_jax.cli.parser import Parser
from lstm_jax.cli.process import add_process_options, add_run, set_up


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options."""
    add_run(parser)
    add_process_options(parser)


def run(options: argparse.Namespace) -> None:
    """Evaluates the run; prints a table, and writes results.json and plots."""
    from lstm_jax.train import Report, evaluate, load_workdir

    config = load_workdir(options.run_folder)
    set_up(options)
    evaluate(config, config.build_task(), options.run_folder, Report())
