"""Train from a config file, or resume a run.

Every key of the config is an option: --SECTION.KEY VALUE replaces its value.
"""

import argparse
import pathlib
from collections.abc import Sequence

from lstm_jax.cli.keys import overrides
from lstm_jax.cli.parser import Parser
from lstm_jax.cli.process import set_up
from lstm_jax.cli.source import add_source, find_source, workdir_of
from lstm_jax.config import TASKS, Config, config_from


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options."""
    parser.usage = "lstm-jax train CONFIG|RUN [OPTION ...] [--SECTION.KEY VALUE ...]"
    if find_source(words) is None:
        parser.epilog = (
            "lstm-jax train CONFIG --help also shows the keys of the config's task, [data] and\n"
            '[model]. A config needs only one line, task = "NAME", where NAME is one of\n'
            f"{', '.join(TASKS)},\n"
            "or module.Class for a custom task."
        )
    add_source(parser, words, "run", _config)


def _config(run: pathlib.Path) -> Config:
    from lstm_jax.train import load_workdir

    return load_workdir(run)


def run(options: argparse.Namespace) -> int:
    """Trains; returns 0, or 128 plus the number of the signal that stopped it."""
    from lstm_jax.train import Report, Stopped, train

    workdir = workdir_of(options, "run")
    config = config_from(options.config.as_dict(), str(options.source), overrides(options))
    set_up(options)
    try:
        train(config, workdir, Report())
    except Stopped as stopped:
        return 128 + stopped.signal
    return 0
