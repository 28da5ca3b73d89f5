"""``lstm-jax train | evaluate | generate | inspect | export | convert``."""

import contextlib
import dataclasses
import io
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from lstm_jax.errors import UserError
from lstm_jax.interop.convert import LIBRARIES, library_of, read_layer, write_layer
from lstm_jax.interop.weights import flattened
from lstm_jax.tasks import TASKS, Samples
from lstm_jax.tasks.options import Section, expectation, nearest, sections_of
from lstm_jax.tasks.recurrent import RecurrentModel
from lstm_jax.train import (
    Report,
    Stopped,
    best_params,
    evaluate,
    export_run,
    inspect_run,
    load_config,
    load_workdir,
    train,
)
from lstm_jax.train.config import SHARED_SECTIONS, config_from
from lstm_jax.tune import tune_cpu

INTERRUPTED = 130
COMMANDS = ("train", "evaluate", "generate", "inspect", "export", "convert")


@dataclasses.dataclass(frozen=True)
class Train:
    """Train from a config file, or go on with a run.

    Any config key can be replaced: lstm-jax train CONFIG --SECTION.KEY VALUE. With a config
    file, --help shows that config's keys and values.
    """

    source: Positional[pathlib.Path]
    """A config file (.toml), or the folder of a run to go on with."""
    workdir: pathlib.Path | None = None
    """The run's folder; by default runs/ and the config's name. A run in it is gone on with."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Figures of a run's best checkpoint beside those of simple methods; draws its pictures."""

    workdir: Positional[pathlib.Path]
    """The run's folder."""


@dataclasses.dataclass(frozen=True)
class Generate:
    """Write text with a run's best checkpoint."""

    workdir: Positional[pathlib.Path]
    """The run's folder."""
    prompt: str = ""
    """What the text begins with."""
    length: int = 400
    """How much is written after the prompt."""
    temperature: float = 0.8
    """Below 1 likelier, above 1 bolder; 0 always takes the likeliest."""
    seed: int = 0
    """Decides the draws."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's best checkpoint as a model that runs without this library.

    It goes to export/FORMAT-DTYPE in the run's folder, with a script run.py that needs jax or
    onnxruntime alone. Its figures are printed beside the run's, with sizes and times.
    """

    workdir: Positional[pathlib.Path]
    """The run's folder."""
    format: Literal["stablehlo", "onnx"] = "stablehlo"
    """StableHLO is for jax, on any of cpu, cuda and tpu; ONNX for onnxruntime."""
    dtype: Literal["float32", "bfloat16", "int8", "dynamic-int8"] = "float32"
    """How weight matrices are stored; dynamic-int8 is onnxruntime's own quantisation."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Recurrent weights from one library's file into another's, or a run's best ones into one.

    Files are .safetensors, .npz, .weights.h5, .keras or .onnx; nothing is unpickled. Options of the
    functions from_LIBRARY and to_LIBRARY say what arrays do not: activations, for one.
    """

    source: Positional[pathlib.Path]
    """A file of arrays, a model of ONNX, or a run's folder."""
    target: Positional[pathlib.Path]
    """The file to write."""
    from_: Annotated[Literal[*LIBRARIES] | None, tyro.conf.arg(name="from")] = None  # type: ignore[valid-type]
    """Whose arrays the source has; told by a run and by files of Keras and ONNX."""
    to: Literal[*LIBRARIES] | None = None  # type: ignore[valid-type]
    """Whose arrays the target shall have; told by .weights.h5, Keras's, and .onnx."""
    prefix: str = ""
    """What names of the layer's arrays (in .onnx, nodes) begin with; others are left out."""
    reading: tuple[str, ...] = ()
    """Options of from_LIBRARY: NAME=VALUE ..."""
    writing: tuple[str, ...] = ()
    """Options of to_LIBRARY: NAME=VALUE ..."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Write a report on what a run's layers do, inspect.html in its folder.

    It is one page with all its pictures: gates and units over time, what of a text units follow,
    saturation, memory, gradients through time, the loss curve and the config.
    """

    workdir: Positional[pathlib.Path]
    """The run's folder."""
    text: pathlib.Path | None = None
    """A UTF-8 file to be read, for next_character; by default some of the validation data."""


Command = Annotated[
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")],
    tyro.conf.OmitArgPrefixes,
]


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status.

    Returns:
      0; 1 for a user's mistake, told in one line; 2 for a command line of the wrong form;
      128 and the signal's number where a signal stopped the run.
    """
    # A config may name a cell of one's own, model.cell = "my_cells.MyCell", whose file lies where
    # the command is run; a console script has its own folder on the path instead.  Last, so that
    # nothing there hides an installed module; "" is the current folder.
    if "" not in sys.path:
        sys.path.append("")
    args = list(sys.argv[1:] if args is None else args)
    told = io.StringIO()
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    if args[:1] == ["train"] and {"-h", "--help"} & set(args):
        return _help_of_train(args)
    try:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise UserError(f"{args[0]}: unknown command{nearest(args[0], COMMANDS)}")
        with contextlib.redirect_stderr(told):
            command, rest = tyro.cli(
                Command,
                prog="lstm-jax",
                description="Train, evaluate, sample, inspect and export LSTMs from config files.",
                args=args,
                return_unknown_args=True,
            )
        if isinstance(command, Train):
            _train(command, _overrides(rest))
            return 0
        if rest:
            known = {"--" + field.name.rstrip("_") for field in dataclasses.fields(command)} - {
                "--workdir"
            }
            hint = nearest(rest[0], sorted(known)) if known else ""
            raise UserError(f"{rest[0]}: unknown option{hint}")
        if isinstance(command, Evaluate):
            _evaluate(command)
        elif isinstance(command, Convert):
            _convert(command)
        elif isinstance(command, Export):
            _export(command)
        elif isinstance(command, Inspect):
            _inspect(command)
        else:
            _generate(command)
        return 0
    except SystemExit as end:
        if end.code:
            errors.print(f"lstm-jax: error: {_one_line(told.getvalue())}", markup=False)
            return 2
        return 0
    except UserError as error:
        errors.print(f"lstm-jax: error: {error}", markup=False)
        return 1
    except Stopped as stopped:
        return 128 + stopped.signal
    except KeyboardInterrupt:
        errors.print("lstm-jax: interrupted", markup=False)
        return INTERRUPTED


def _one_line(box: str) -> str:
    """What tyro says of a wrong command line, without the frame and the advice under it."""
    lines = (line.strip("│|╭╮╰╯+ ") for line in box.splitlines()[1:])  # the first is the title
    parts = itertools.groupby(lines, key=lambda line: set(line) <= set("─-"))
    said = next((" ".join(part) for is_rule, part in parts if not is_rule), "mistaken")
    return f"{said}; see lstm-jax --help"


def _tune() -> None:
    """Sets the process up, and says how."""
    for line in str(tune_cpu()).splitlines():
        Console(soft_wrap=True, highlight=False).print(line, markup=False)


def _train(command: Train, overrides: dict[str, str]) -> None:
    if command.source.is_dir():
        if command.workdir not in (None, command.source):
            raise UserError("--workdir: a run that is gone on with stays in its own folder")
        workdir = command.source
        config = config_from(load_workdir(workdir).as_dict(), str(workdir), overrides)
    else:
        config = load_config(command.source, overrides)
        workdir = command.workdir or pathlib.Path("runs") / command.source.stem
    _tune()
    train(config, workdir, Report())


def _evaluate(command: Evaluate) -> None:
    config = load_workdir(command.workdir)
    _tune()
    evaluate(config, config.build_task(), command.workdir, Report())


def _export(command: Export) -> None:
    config = load_workdir(command.workdir)
    _tune()
    task = config.build_task()
    export_run(config, task, command.workdir, Report(), command.format, command.dtype)


def _inspect(command: Inspect) -> None:
    config = load_workdir(command.workdir)
    path = inspect_run(config, config.build_task(), command.workdir, command.text)
    Report().say(f"wrote {path}")


def _generate(command: Generate) -> None:
    if command.length < 0:
        raise UserError(f"--length: expected an integer of at least 0, got {command.length}")
    if not 0 <= command.temperature < float("inf"):
        raise UserError(
            f"--temperature: expected a number of at least 0, got {command.temperature}"
        )
    if not 0 <= command.seed < 2**32:
        raise UserError(f"--seed: expected an integer from 0 to 2**32 - 1, got {command.seed}")
    config = load_workdir(command.workdir)
    task = config.build_task()
    if not isinstance(task, Samples):
        raise UserError(f"{command.workdir}: task {config.task} writes nothing")
    params, _ = best_params(config, task, command.workdir)
    text = task.sample(params, command.prompt, command.length, command.temperature, command.seed)
    sys.stdout.write(text + "\n")  # rich would expand its tabs and drop its line ends


def _convert(command: Convert) -> None:
    source, target = command.source, command.target
    known = ", ".join(LIBRARIES)
    to = command.to or library_of(target)
    if to is None:
        raise UserError(f"--to: expected one of {known} for {target}")
    if source.is_dir():
        files_only = {
            "--from": command.from_,
            "--prefix": command.prefix,
            "--reading": " ".join(command.reading),
        }
        for flag, given in files_only.items():
            if given:
                raise UserError(f"{flag}: is for files, not for a run's folder, got {given}")
        config = load_workdir(source)
        if not isinstance(config.model, RecurrentModel):
            raise UserError(f"{source}: task {config.task} has no recurrent layers")
        params, _ = best_params(config, config.build_task(), source)
        layer, params = config.model.layers, params["lstm"]
    else:
        library = command.from_ or library_of(source)
        if library is None:
            raise UserError(f"--from: expected one of {known} for {source}")
        layer, params = read_layer(source, library, command.prefix, command.reading)
    arrays = write_layer(target, to, layer, params, command.writing)
    console = Console(soft_wrap=True, highlight=False)
    for name, array in flattened(arrays):
        console.print(f"{name}  {array.dtype} {array.shape}", markup=False)


def _overrides(words: Sequence[str]) -> dict[str, str]:
    """``--section.key value`` and ``--section.key=value`` as texts by dotted key."""
    overrides: dict[str, str] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or "." not in flag:
            hint = nearest(flag, ["--workdir"]) if flag.startswith("--") else ""
            raise UserError(f"{word}: expected --SECTION.KEY VALUE{hint}")
        if not equals:
            if not words:
                raise UserError(f"{flag}: expected a value after it, got nothing")
            value = words.pop(0)
        overrides[flag[2:].replace("-", "_")] = value
    return overrides


def _help_of_train(args: Sequence[str]) -> int:
    """What tyro says of the command, then every config key with its default."""
    with contextlib.suppress(SystemExit):
        tyro.cli(Command, prog="lstm-jax", args=["train", "--help"])
    console = Console(highlight=False)
    given = [pathlib.Path(arg) for arg in args[1:] if arg.endswith(".toml")]
    values: dict[str, Section] = {}
    tasks = list(TASKS)
    if given:
        try:
            config = load_config(given[0])
        except UserError as error:
            Console(stderr=True, soft_wrap=True).print(f"lstm-jax: error: {error}", markup=False)
            return 1
        tasks = [config.task]
        values = {name: getattr(config, name) for name in ("data", "model", *SHARED_SECTIONS)}
    for task in tasks:
        for name, kind in sections_of(TASKS[task]).items():
            _print_section(console, name, values.get(name) or kind(), f' of task = "{task}"')
    for name, kind in SHARED_SECTIONS.items():
        _print_section(console, name, values.get(name) or kind(), "")
    return 0


def _print_section(console: Console, name: str, section: Section, of: str) -> None:
    table = Table(title=rf"\[{name}]{of}", title_justify="left", box=None, pad_edge=False)
    table.add_column("flag", no_wrap=True)
    table.add_column("takes")
    table.add_column("default", no_wrap=True)
    table.add_column("meaning")
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        shown = str(value).lower() if isinstance(value, bool) else str(value) or '""'
        flag = f"--{name}.{field.name.replace('_', '-')}"
        table.add_row(flag, expectation(field), shown, field.metadata["meaning"])
    console.print(table)
    console.print()
