"""``lstm-jax COMMAND``: one module of this package for each command.

A command's module has ``configure(parser, words)``, which adds its options, and ``run(options)``,
which returns an exit status, or None for success. Only the module of the given command is imported,
and ``run`` imports what the command needs, so that ``--help`` is fast.
"""

import errno
import importlib
import os
import sys
from collections.abc import Sequence

import lstm_jax
from lstm_jax.cli.parser import Answered, Parser, WrongCommandLine, dashed
from lstm_jax.config import nearest
from lstm_jax.errors import UserError

COMMANDS = {
    "train": "train from a config file, or resume a run",
    "sweep": "train a run for each combination of config values, in one process",
    "compare": "compare runs: metrics, differing config keys, loss curves",
    "evaluate": "metrics and plots of a run's best checkpoint, compared with simple methods",
    "predict": "predict on new data, as a table or a file",
    "generate": "write text with a run's best checkpoint",
    "inspect": "write an HTML report on what a run's layers do",
    "export": "write a run's best model as files that run without this library",
    "convert": "convert recurrent weights from one library's file to another's",
}
"""The description of each command, by name."""

WRONG_COMMAND_LINE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, the size of a file


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status.

    Returns:
      0 for success; 1 for a user's mistake and 2 for a malformed command line, each reported in one
      line; 128 plus the signal's number if a signal stopped the command.

    >>> main(["--version"])
    lstm-jax ...
    0
    """
    # A config can name a user's class, model.cell = "my_cells.MyCell", from a file in the current
    # folder, which is not on the path of a console script. "" is the current folder. It comes last,
    # so that no file in it hides an installed module.
    if "" not in sys.path:
        sys.path.append("")
    try:
        _open_closed_outputs()
        status = _status(dashed(sys.argv[1:] if args is None else args))
        sys.stdout.flush()
        return status
    except WrongCommandLine as error:
        return _fail(f"error: {error}", WRONG_COMMAND_LINE)
    except UserError as error:
        return _fail(f"error: {error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output has closed it, as `head` does. Nothing more can be written, not
        # even when the interpreter flushes its files at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:  # a full disk, a read-only folder, a file instead of a folder
        name = error.filename
        # Errors of other files name them.
        if _drop_unwritable_output() or error.errno in FULL:
            name = name or "standard output"
        where = f"{name}: " if name else ""
        return _fail(f"error: {where}{error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        detail = (str(error).strip().splitlines() or ["allocation failed"])[0][:200]
        sizes = "lower the sizes in [model] and [data] of the config"
        return _fail(f"error: out of memory ({detail}); {sizes}", 1)
    except SystemExit as end:
        return _fail(f"error: imported code ended the program (exit status {end.code})", 1)


def _status(words: list[str]) -> int:
    try:
        return _run(words) or 0
    except Answered:
        return 0


def _run(words: list[str]) -> int | None:
    parser = Parser(
        prog="lstm-jax",
        description="Train, evaluate, sample, inspect and export LSTMs from config files.",
        epilog="lstm-jax COMMAND --help shows a command's options.",
    )
    version = f"lstm-jax {lstm_jax.__version__}"
    parser.add_argument("--version", action="version", version=version, help="show the version")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    parsers = {name: commands.add_parser(name, help=text) for name, text in COMMANDS.items()}
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None:
        parser.parse(words)  # --help, --version or an unknown option
        parser.error(f"expected a command, one of {', '.join(COMMANDS)}")
    if name not in COMMANDS:
        parser.error(f"{name}: unknown command{nearest(name, COMMANDS)}")
    command = importlib.import_module(f"lstm_jax.cli.{name}")
    parsers[name].description = command.__doc__
    command.configure(parsers[name], words[words.index(name) + 1 :])
    return command.run(parser.parse(words, parsers[name]))


def _open_closed_outputs() -> None:
    """Opens closed outputs (``>&-``) on the null device, so that the command works without them."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process


def _lacks_memory(error: BaseException) -> bool:
    """Whether NumPy, XLA or the start of a thread ran out of memory."""
    signs = ("RESOURCE_EXHAUSTED", "bad_alloc", "can't start new thread")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def _drop_unwritable_output() -> bool:
    """Redirects the output if it cannot be written, as the interpreter's flush at exit would fail.

    Returns:
      Whether it could not be written.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _fail(message: str, status: int) -> int:
    print(f"lstm-jax: {message}", file=sys.stderr)
    return status
