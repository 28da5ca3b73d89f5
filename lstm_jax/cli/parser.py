"""The parser of all commands: argparse that reports each mistake in one line."""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from lstm_jax.config import Section, expectation, nearest, read
from lstm_jax.errors import UserError


class WrongCommandLine(Exception):  # noqa: N818 - its message is what the user reads
    """A malformed command line; the message is one line."""


class Answered(Exception):  # noqa: N818 - not an error
    """``--help`` or ``--version`` has printed its answer."""


class Parser(argparse.ArgumentParser):
    """An :class:`argparse.ArgumentParser` that raises instead of ending the process.

    Each message is one line and names the nearest known option.

    >>> parser = Parser(prog="lstm-jax train")
    >>> _ = parser.add_argument("--workdir")
    >>> parser.parse(["--workdri", "runs/a"])
    Traceback (most recent call last):
    lstm_jax.cli.parser.WrongCommandLine: --workdri: unknown option; did you mean --workdir? ...
    """

    def __init__(self, **settings: Any):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )

    def parse(self, words: Sequence[str], command: "Parser | None" = None) -> argparse.Namespace:
        """The options of a whole command line.

        Args:
          words: the command line.
          command: the parser of its command; a similar option of it is suggested for an unknown
            one.
        """
        options, unknown = self.parse_known_args(words)
        command = command or self
        if unknown and unknown[0].startswith("-"):
            name = unknown[0].partition("=")[0]
            hint = nearest(name, command._option_string_actions)
            command.error(f"{name}: unknown option{hint if hint.startswith('; did') else ''}")
        if unknown:
            command.error(f"{unknown[0]}: expected nothing more")
        return options

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.removeprefix("argument ").split())
        option, _, rest = line.partition(": ")
        if rest == "expected one argument":
            line = f"{option}: expected a value ({option}=VALUE if it begins with a dash)"
        raise WrongCommandLine(f"{line}{'' if line.endswith('?') else ';'} see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Answered


def dashed(words: Iterable[str]) -> list[str]:
    """The words of a command line, with underscores in option names replaced by dashes.

    >>> dashed(["train", "a_b.toml", "--train.num_steps=5", "--", "--a_b"])
    ['train', 'a_b.toml', '--train.num-steps=5', '--', '--a_b']
    """
    words = list(words)
    end = words.index("--") if "--" in words else len(words)
    for place, word in enumerate(words[:end]):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            words[place] = name.replace("_", "-") + equals + value
    return words


def to_path(text: str) -> pathlib.Path:
    """A path from a command line; an empty one, as from an unset variable, is an error.

    >>> to_path("")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: expected a path, got an empty string
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, got an empty string")
    return pathlib.Path(text)


def add_section(parser: argparse.ArgumentParser, section: Section) -> None:
    """Adds an option for each field of a section; the section's values are the defaults."""
    for field in dataclasses.fields(section):
        default = getattr(section, field.name)
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=_reader(field),
            default=default,
            metavar=metavar(field),
            help=meaning(field, f"default: {shown(default)}"),
        )


def _reader(field: dataclasses.Field) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        try:
            return read(field, text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return value


def metavar(field: dataclasses.Field) -> str:
    """The placeholder for a field's value in the help."""
    names = {"bool": "BOOL", "int": "INTEGER", "float": "NUMBER", "str": "TEXT"}
    return names[field.type if isinstance(field.type, str) else field.type.__name__]


def meaning(field: dataclasses.Field, values: str) -> str:
    """A field's help line: its meaning, its range, and its ``values``."""
    text = f"{field.metadata['meaning']} ({expectation(field)}; {values})"
    return text.replace("%", "%%")  # argparse formats help by %


def shown(value: Any) -> str:
    """A value in TOML notation.

    >>> shown(True), shown(""), shown("lstm"), shown(5)
    ('true', '""', 'lstm', '5')
    """
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'
