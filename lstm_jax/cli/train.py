"""Train from a config file, or resume a run.

Every key of the config is an option: --SECTION.KEY VALUE replaces its value.
"""

import argparse
import pathlib
from collections.abc import Sequence

from lstm_jax.cli.keys import add_keys, find_source, overrides
from lstm_jax.cli.parser import Parser
from lstm_jax.cli.process import add_process_options, set_up
from lstm_jax.config import SHARED_SECTIONS, TASKS, Config, config_from, load_config
from lstm_jax.errors import UserError


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options; those of [data] and [model] are known from the config's task."""
    parser.usage = "lstm-jax train CONFIG|RUN [OPTION ...] [--SECTION.KEY VALUE ...]"
    parser.add_argument(
        "source",
        metavar="CONFIG|RUN",
        type=pathlib.Path,
        help="a config file (.toml), or the folder of a run to resume",
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        metavar="FOLDER",
        help="the run's folder; a run in it is resumed (default: runs/ and the config's name)",
    )
    add_process_options(parser)
    source = find_source(words)
    if source is None:
        add_keys(parser, {name: kind() for name, kind in SHARED_SECTIONS.items()})
        parser.epilog = (
            "lstm-jax train CONFIG --help also shows the keys of the config's task, [data] and\n"
            '[model]. A config needs only one line, task = "NAME", where NAME is one of\n'
            f"{', '.join(TASKS)},\n"
            "or module.Class for a custom task."
        )
    else:
        config = _config(source)
        sections = {name: getattr(config, name) for name in ("data", "model", *SHARED_SECTIONS)}
        add_keys(parser, sections, source.name)
        parser.set_defaults(config=config)


def _config(source: pathlib.Path) -> Config:
    if not source.is_dir():
        return load_config(source)
    from lstm_jax.train import load_workdir

    return load_workdir(source)


def run(options: argparse.Namespace) -> int:
    """Trains; returns 0, or 128 and the number of the signal that stopped it."""
    from lstm_jax.train import Report, Stopped, train

    source, workdir = options.source, options.workdir
    if not source.is_dir():
        workdir = workdir or pathlib.Path("runs") / source.stem
    elif workdir not in (None, source):
        raise UserError("--workdir: a resumed run stays in its own folder")
    config = config_from(options.config.as_dict(), str(source), overrides(options))
    set_up(options)
    try:
        train(config, workdir or source, Report())
    except Stopped as stopped:
        return 128 + stopped.signal
    return 0
