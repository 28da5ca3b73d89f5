"""Predict on new data with a run's best checkpoint.

FILE has the format of the training data. The training data themselves are not needed. A task that
reads text also accepts it on the command line.
"""

import argparse
from collections.abc import Sequence

from lstm_jax.cli.parser import Parser, to_path
from lstm_jax.cli.process import add_process_options, add_run, set_up
from lstm_jax.errors import UserError


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options."""
    add_run(parser)
    parser.add_argument(
        "file",
        metavar="FILE",
        type=to_path,
        nargs="*",
        help="new data in the format of the training data (default: the run's own test or "
        "validation data; for a table, the following rows); tasks on recordings take several files",
    )
    parser.add_argument(
        "--text",
        action="append",
        metavar="TEXT",
        help="text to predict on instead of a file; repeat the option for more strings",
    )
    parser.add_argument(
        "--output",
        type=to_path,
        metavar="OUT",
        help="a .csv, .json or .npz file for the predictions (default: print a table)",
    )
    parser.add_argument(
        "--plot",
        type=to_path,
        metavar="IMAGE",
        help="for tasks that support it: also plot how the model predicts on FILE or one --text, "
        "as .png, .svg or .gif",
    )
    add_process_options(parser)


def run(options: argparse.Namespace) -> None:
    """Writes or prints the predictions."""
    from lstm_jax.train import Report
    from lstm_jax.train.predict import predict_run

    files = options.file
    if files and options.text is not None:
        raise UserError(f"--text: expected no files, got {files[0]}")
    set_up(options)
    source = options.text or (files if len(files) > 1 else next(iter(files), None))
    predict_run(options.run_folder, source, options.output, Report(), plot=options.plot)
