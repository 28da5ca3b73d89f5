"""Train a run for each combination of some values, in one process.

--SECTION.KEY VALUE,VALUE,... sweeps a key of the config; a key with one value replaces it.
"""

import argparse
import pathlib
from collections.abc import Sequence

from lstm_jax.cli.keys import add_keys, find_source, overrides
from lstm_jax.cli.parser import Parser
from lstm_jax.cli.process import add_process_options, set_up
from lstm_jax.config import SHARED_SECTIONS, load_config
from lstm_jax.errors import UserError


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options; those of [data] and [model] are known from the config's task."""
    parser.usage = "lstm-jax sweep CONFIG|SWEEP [OPTION ...] [--SECTION.KEY VALUE,VALUE,... ...]"
    parser.add_argument(
        "source",
        metavar="CONFIG|SWEEP",
        type=pathlib.Path,
        help="a config file (.toml), or the folder of a sweep to resume",
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        metavar="FOLDER",
        help="the sweep's folder; a sweep in it is resumed (default: sweeps/ and the config's "
        "name)",
    )
    add_process_options(parser)
    source = find_source(words)
    if source is None:
        add_keys(parser, {name: kind() for name, kind in SHARED_SECTIONS.items()})
        parser.epilog = "lstm-jax sweep CONFIG --help also shows the keys of the config's task."
    elif not source.is_dir():
        config = load_config(source)
        sections = {name: getattr(config, name) for name in ("data", "model", *SHARED_SECTIONS)}
        add_keys(parser, sections, source.name)
        parser.set_defaults(config=config)


def run(options: argparse.Namespace) -> int:
    """Trains the points; returns 0, or 128 and the number of the signal that stopped it."""
    from lstm_jax.train import Report, Stopped
    from lstm_jax.train.sweep import load_sweep, sweep, swept_axes

    source, workdir = options.source, options.workdir
    if source.is_dir():
        if workdir not in (None, source):
            raise UserError("--workdir: a resumed sweep stays in its own folder")
        config, axes, _ = load_sweep(source)
        workdir = source
    else:
        config, axes = swept_axes(options.config, overrides(options))
        workdir = workdir or pathlib.Path("sweeps") / source.stem
    set_up(options)
    try:
        sweep(config, axes, workdir, Report())
    except Stopped as stopped:
        return 128 + stopped.signal
    return 0
