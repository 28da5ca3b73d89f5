"""Compare runs: their metrics, the config keys that differ, and their loss curves."""

import argparse
import pathlib
from collections.abc import Sequence

from lstm_jax.cli.parser import Parser, to_path


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options."""
    parser.usage = "lstm-jax compare RUN RUN ... [OPTION ...]"
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=to_path,
        help="the folder of a run, or of a sweep for all its points",
    )
    parser.add_argument(
        "--output",
        type=to_path,
        default=pathlib.Path("compare.png"),
        metavar="FILE",
        help="the plot of the curves, .png, .svg or .pdf (default: compare.png)",
    )


def run(options: argparse.Namespace) -> None:
    """Prints the table and writes the plot."""
    from lstm_jax.train.compare import compare

    compare(options.runs, options.output)
