"""Set-up of the process that runs a command."""

import argparse

from lstm_jax.cli.parser import to_path

FLAGS = ("--help", "--verbose", "--no-compilation-cache")
"""Options without a value."""


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of a trained run, the first argument of most commands."""
    parser.usage = f"{parser.prog} RUN [OPTION ...]"
    parser.add_argument("run_folder", metavar="RUN", type=to_path, help="the run's folder")


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options common to all commands that compute."""
    parser.add_argument("--verbose", action="store_true", help="also print how JAX is set up")
    parser.add_argument(
        "--no-compilation-cache",
        action="store_true",
        help="compile every program again; do not store compiled ones in the user's cache folder",
    )


def set_up(options: argparse.Namespace) -> None:
    """Sets up the process for training and evaluation; must precede the first use of JAX."""
    from lstm_jax.tune import tune_cpu

    tuned = tune_cpu()
    if options.verbose:
        print(tuned, flush=True)
    keep_programs(options)


def keep_programs(options: argparse.Namespace) -> None:
    """Caches compiled programs for later commands, unless the options forbid it."""
    if options.no_compilation_cache:
        return
    from lstm_jax.tune import cache_compiled

    folder = cache_compiled()
    if options.verbose:
        print(f"compiled programs: {folder or 'not kept, no folder for them'}", flush=True)
