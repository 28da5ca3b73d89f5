"""Write a run's best checkpoint as a model that runs without this library.

The model is written to export/FORMAT-DTYPE in the run's folder, with a script run.py that needs
only jax or onnxruntime. Its metrics are printed next to the run's, with sizes and times.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from lstm_jax.cli.parser import Parser, add_section
from lstm_jax.cli.process import add_process_options, add_run, set_up
from lstm_jax.config import Section, option


@dataclasses.dataclass(frozen=True)
class Exporting(Section):
    """The options of an export."""

    format: str = option(
        "stablehlo",
        "StableHLO runs with jax on cpu, cuda and tpu; ONNX with onnxruntime",
        choices=("stablehlo", "onnx"),
    )
    dtype: str = option(
        "float32",
        "storage type of weight matrices; dynamic-int8 is onnxruntime's quantisation",
        choices=("float32", "bfloat16", "int8", "dynamic-int8"),
    )


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options."""
    add_run(parser)
    add_section(parser, Exporting())
    add_process_options(parser)


def run(options: argparse.Namespace) -> None:
    """Writes the model, and prints its metrics, sizes and times."""
    from lstm_jax.export.trained import export_run
    from lstm_jax.train import Report, load_workdir

    config = load_workdir(options.run_folder)
    set_up(options)
    task = config.build_task()
    export_run(config, task, options.run_folder, Report(), options.format, options.dtype)
