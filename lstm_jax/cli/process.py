"""How the process is set up that runs a command."""

import argparse
import pathlib

FLAGS = ("--help", "--verbose")
"""Options without a value."""


def add_run(parser: argparse.ArgumentParser) -> None:
    """The folder of a trained run, the first argument of most commands."""
    parser.add_argument("run_folder", metavar="RUN", type=pathlib.Path, help="the run's folder")


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that computes."""
    parser.add_argument("--verbose", action="store_true", help="also print how JAX is set up")


def set_up(options: argparse.Namespace) -> None:
    """Sets the process up before JAX is used."""
    from lstm_jax.tune import tune_cpu

    tuned = tune_cpu()
    if options.verbose:
        print(tuned, flush=True)
