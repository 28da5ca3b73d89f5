"""Write a report on the behaviour of a run's layers: inspect.html in its folder.

The report is one self-contained page: gates and units over time, what units follow in text,
saturation, memory, gradients through time, the loss curve and the config.
"""

import argparse
from collections.abc import Sequence

from lstm_jax.cli.parser import Parser, to_path
from lstm_jax.cli.process import add_process_options, add_run, keep_programs


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options."""
    add_run(parser)
    parser.add_argument(
        "--text",
        type=to_path,
        metavar="FILE",
        help="a UTF-8 file for the layers to read, for tasks that read text "
        "(default: some of the validation data)",
    )
    add_process_options(parser)


def run(options: argparse.Namespace) -> None:
    """Writes the report."""
    from lstm_jax.train import Report, inspect_run, load_workdir

    config = load_workdir(options.run_folder)
    keep_programs(options)
    path = inspect_run(config, config.build_task(), options.run_folder, options.text)
    Report().say(f"wrote {path}")
