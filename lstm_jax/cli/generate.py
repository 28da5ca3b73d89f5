"""Generate text, or files such as tunes, with a run's best checkpoint."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from lstm_jax.cli.parser import Parser, add_section
from lstm_jax.cli.process import add_process_options, add_run, keep_programs
from lstm_jax.cli.source import find_source
from lstm_jax.config import LONGEST_SAMPLE, Section, option, task_class
from lstm_jax.errors import UserError, expect


@dataclasses.dataclass(frozen=True)
class Sampling(Section):
    """The options of sampling."""

    prompt: str = option("", "how the text begins; for music, a MIDI file")
    length: int = option(
        400, "characters or frames to write after the prompt",
        at_least=0, at_most=LONGEST_SAMPLE,
    )  # fmt: skip
    temperature: float = option(
        0.8,
        "below 1 more likely samples, above 1 more diverse ones; 0 always takes the most likely",
        at_least=0,
    )
    seed: int = option(0, "seed of the samples", at_least=0, at_most=2**32 - 1)


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options, including those of the task of the run in the folder."""
    add_run(parser)
    add_section(parser, Sampling())
    if (folder := find_source(words)) is not None:
        from lstm_jax.train import load_workdir

        further = task_class(load_workdir(folder).task).sampling()
        add_section(parser, further)
        parser.set_defaults(further=[field.name for field in dataclasses.fields(further)])
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="OUT",
        help="path of generated files; each adds its own suffix (default: names that the "
        "task gives, in the current folder)",
    )
    add_process_options(parser)


def run(options: argparse.Namespace) -> None:
    """Prints text as it is generated, and writes generated files."""
    from lstm_jax._files import write_content
    from lstm_jax.tasks.protocols import File, Generates
    from lstm_jax.train import load_run, load_workdir

    if options.output is not None:
        expect(options.output.name, "--output", "the path of a file", f"{options.output}")
    config = load_workdir(options.run_folder)
    if not issubclass(task_class(config.task), Generates):
        raise UserError(f"{options.run_folder}: task {config.task} does not generate")
    keep_programs(options)
    run = load_run(options.run_folder)
    names = [*(field.name for field in dataclasses.fields(Sampling)), *options.further]
    sampling = {name: getattr(options, name) for name in names}
    try:
        pieces = run.task.generate(run.model, **sampling)
    except UserError as error:
        known = str(error).partition(": ")[0] in names
        raise UserError(f"--{'' if known else 'prompt: '}{error}") from error
    at_line_start = True
    for piece in pieces:
        if isinstance(piece, File):
            path = pathlib.Path(piece.name)
            path = path if options.output is None else options.output.with_suffix(path.suffix)
            write_content(path, piece.content)
            piece = f"wrote {path}" if at_line_start else f"\nwrote {path}"
        at_line_start = piece.endswith("\n") if piece else at_line_start
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
