"""Write text with a run's best checkpoint."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from lstm_jax.cli.parser import Parser, add_section
from lstm_jax.cli.process import add_process_options, add_run, keep_programs
from lstm_jax.config import Section, option, task_class
from lstm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling(Section):
    """How text is written."""

    prompt: str = option("", "how the text begins")
    length: int = option(400, "characters to write after the prompt", at_least=0)
    temperature: float = option(
        0.8, "below 1 likelier, above 1 bolder; 0 always takes the likeliest", at_least=0
    )
    seed: int = option(0, "seed of the samples", at_least=0, at_most=2**32 - 1)


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options."""
    add_run(parser)
    add_section(parser, Sampling())
    add_process_options(parser)


def run(options: argparse.Namespace) -> None:
    """Prints the text as it is generated, and writes generated files to the current folder."""
    from lstm_jax.tasks.base import File, Generates
    from lstm_jax.train import load_run, load_workdir

    config = load_workdir(options.run_folder)
    if not issubclass(task_class(config.task), Generates):
        raise UserError(f"{options.run_folder}: task {config.task} does not generate")
    keep_programs(options)
    run = load_run(options.run_folder)
    sampling = {field.name: getattr(options, field.name) for field in dataclasses.fields(Sampling)}
    try:
        pieces = run.task.generate(run.model, **sampling)
    except UserError as error:
        raise UserError(f"--prompt: {str(error).removeprefix('prompt: ')}") from error
    for piece in pieces:
        if isinstance(piece, File):
            pathlib.Path(piece.name).write_bytes(piece.content)
            piece = f"wrote {piece.name}"
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
