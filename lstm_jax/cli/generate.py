"""Write text with a run's best checkpoint."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from lstm_jax.cli.parser import Parser, add_section
from lstm_jax.cli.process import add_process_options, add_run, keep_programs
from lstm_jax.errors import UserError
from lstm_jax.tasks.options import Section, option


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
    """Prints the text."""
    from lstm_jax.tasks import Samples
    from lstm_jax.train import best_params, load_workdir

    config = load_workdir(options.run_folder)
    keep_programs(options)
    task = config.build_task()
    if not isinstance(task, Samples):
        raise UserError(f"{options.run_folder}: task {config.task} writes nothing")
    params, _ = best_params(config, task, options.run_folder)
    text = task.sample(params, options.prompt, options.length, options.temperature, options.seed)
    sys.stdout.write(text + "\n")
