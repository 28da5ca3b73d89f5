"""Train a run for each combination of config values, in one process.

--SECTION.KEY VALUE,VALUE,... sweeps a key of the config; a key with one value replaces it.
"""

import argparse
from collections.abc import Sequence

from lstm_jax.cli.keys import overrides
from lstm_jax.cli.parser import Parser
from lstm_jax.cli.process import set_up
from lstm_jax.cli.source import add_source, find_source, workdir_of


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options."""
    parser.usage = "lstm-jax sweep CONFIG|SWEEP [OPTION ...] [--SECTION.KEY VALUE,VALUE,... ...]"
    if find_source(words) is None:
        parser.epilog = "lstm-jax sweep CONFIG --help also shows the keys of the config's task."
    add_source(parser, words, "sweep")


def run(options: argparse.Namespace) -> int:
    """Trains the points; returns 0, or 128 plus the number of the signal that stopped it."""
    from lstm_jax.train import Report, Stopped
    from lstm_jax.train.sweep import load_sweep, sweep, swept_axes

    workdir = workdir_of(options, "sweep")
    if options.source.is_dir():
        config, axes, _ = load_sweep(workdir)
    else:
        config, axes = swept_axes(options.config, overrides(options))
    set_up(options)
    try:
        sweep(config, axes, workdir, Report())
    except Stopped as stopped:
        return 128 + stopped.signal
    return 0
