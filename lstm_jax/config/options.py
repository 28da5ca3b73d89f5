"""Sections of a config: frozen dataclasses whose fields have a range and a meaning."""

import dataclasses
import difflib
import operator
import pathlib
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lstm_jax.errors import UserError

SectionT = TypeVar("SectionT", bound="Section")

LARGEST_NUMBER = (2 - 2**-23) * 2.0**127
"""The largest finite float32; configs are limited to it, since models compute in float32."""
MOST = 10**9
"""The largest value of an integer option without another limit; it fits into 32 bits."""
LARGEST_SIZE = 10**6
"""The largest number of features of a layer; one matrix of this size takes 16 TB."""
LONGEST_SAMPLE = 10**7
"""The largest number of units (characters, ...) that one call generates."""


def option(
    default: Any,
    meaning: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    check: Callable[[Any], Any] | None = None,
    path_or: tuple[str, ...] | None = None,
) -> Any:
    """A field of a :class:`Section`: its default, a one-line description, and its range.

    Args:
      default: the default value.
      meaning: a one-line description for ``--help``.
      at_least, above, at_most, below: limits of a number. The default upper limit of an integer is
        ``MOST``.
      choices: the possible values, if there are only a few.
      check: called with a value of the right type; raises :class:`UserError` if it is invalid.
      path_or: marks a path option; lists the values that are not paths, such as names of data sets
        (an empty tuple if there are none). A relative path in a config file is resolved from the
        file's folder.
    """
    if type(default) is int and at_most is None and below is None:
        at_most = MOST
    limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    metadata = {
        "meaning": meaning,
        "limits": {words: limit for words, limit in limits.items() if limit is not None},
        "choices": choices,
        "check": check,
        "path_or": path_or,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a config.  Subclasses are frozen dataclasses of :func:`option` fields.

    Values are checked when a section is created, from a file or in Python.

    Raises:
      UserError: a value has the wrong type or is outside its range.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Window(Section):
    ...     length: int = option(64, "steps", at_least=1)
    >>> Window(length=8).length
    8
    >>> Window(length=0)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: length: expected an integer of at least 1 and at most ..., got 0
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if problem := _problem(field, value):
                raise UserError(f"{field.name}: {problem}")
            object.__setattr__(self, field.name, _kind(field)(value))


def expectation(field: dataclasses.Field) -> str:
    """The values that a field accepts, in words.

    >>> expectation(dataclasses.fields(_Example)[0])
    'an integer of at least 1 and at most 1000000000'
    """
    if field.metadata["choices"]:
        return f"one of {', '.join(field.metadata['choices'])}"
    noun = _NOUNS[_kind(field)]
    limits = [f"{words} {limit}" for words, limit in field.metadata["limits"].items()]
    if not limits:
        return noun
    of = "of " if limits[0].startswith("at ") else ""  # "of at least 1", "above 0"
    return f"{noun} {of}{' and '.join(limits)}"


_NOUNS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def _kind(field: dataclasses.Field) -> type:
    """The type of a field, even if annotations are strings."""
    return next(kind for kind in _NOUNS if field.type in (kind, kind.__name__))


def _problem(field: dataclasses.Field, value: Any) -> str:
    """What is wrong with a value; an empty string if nothing is."""
    if not _fits(field, value):
        return f"expected {expectation(field)}, got {_shown(value)}"
    if value == "" and "" not in (field.default, *(field.metadata["path_or"] or [""])):
        return "expected a path or the name of a data set, got an empty one"
    if isinstance(value, str) and not _is_unicode(value):
        return f"expected text in UTF-8, got {value!r}"
    if _kind(field) is float and not abs(value) <= LARGEST_NUMBER:
        return f"expected a number in the range of float32, got {_shown(value)}"
    if field.metadata["check"]:
        try:
            field.metadata["check"](value)
        except UserError as error:
            return str(error)
    return ""


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer with thousands of digits, possible in hexadecimal
        return f"{type(value).__name__} of more digits than Python prints"


def _is_unicode(text: str) -> bool:
    """Whether a string can be encoded in UTF-8; undecodable bytes of a command line cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _fits(field: dataclasses.Field, value: Any) -> bool:
    if field.metadata["choices"] and value not in field.metadata["choices"]:
        return False
    if _kind(field) is float:
        right_type = isinstance(value, float | int) and not isinstance(value, bool)
        right_type = right_type and abs(value) < float("inf")  # no infinity, no NaN
    else:
        right_type = type(value) is _kind(field)
    if not right_type:
        return False
    holds = {
        "at least": operator.ge,
        "above": operator.gt,
        "at most": operator.le,
        "below": operator.lt,
    }
    return all(holds[words](value, limit) for words, limit in field.metadata["limits"].items())


def nearest(name: str, known: typing.Iterable[str], section: str = "") -> str:
    """``"; did you mean ...?"`` if a known name resembles this one, else the known names.

    A name with additional words means something else: ``text_classification`` is not a misspelt
    ``classification``. If a section is given, names are prefixed with it.

    >>> nearest("num_stepz", ["num_steps", "seed"])
    '; did you mean num_steps?'
    >>> nearest("colour", ["num_steps", "seed"])
    '; known: num_steps, seed'
    """
    known, dot = list(known), f"{section}." if section else ""
    close = difflib.get_close_matches(name, known, n=1)
    if close and not set(re.split(r"[_-]+", close[0])) < set(re.split(r"[_-]+", name)):
        return f"; did you mean {dot}{close[0]}?"
    return f"; known: {', '.join(dot + each for each in known)}"


def section_from(
    kind: type[SectionT],
    values: Mapping[str, Any],
    name: str,
    source: str,
    folder: pathlib.Path = pathlib.Path(),
) -> SectionT:
    """A section from a mapping, such as a table of a TOML file.

    Args:
      kind: the section's dataclass.
      values: its keys; missing ones take their defaults.
      name: the section's name, for messages, which call the key ``k`` ``name.k``.
      source: the file that contains the values, for messages.
      folder: relative paths are resolved from it.

    Raises:
      UserError: a key is unknown, or a value is not valid for its field.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise UserError(f"{source}: unknown key {name}.{key}{nearest(key, fields, name)}")
    try:
        values = {key: _absolute(fields[key], value, folder) for key, value in values.items()}
        return kind(**values)
    except UserError as error:
        raise UserError(f"{source}: {name}.{error}") from error


def _absolute(field: dataclasses.Field, value: Any, folder: pathlib.Path) -> Any:
    """Makes a relative path absolute; returns any other value unchanged."""
    names = field.metadata["path_or"]
    if names is None or not isinstance(value, str) or value in ("", *names):
        return value
    try:
        path = pathlib.Path(value).expanduser()
    except RuntimeError as error:  # the home folder of an unknown user
        raise UserError(f"{field.name}: expected a path, got {value!r} ({error})") from error
    return str((folder / path).absolute())


def parse(field: dataclasses.Field, text: str) -> Any:
    """Converts a command-line word to the field's type; returns it unchanged if that fails.

    Numbers must have ASCII digits: Python itself also accepts ``1_000`` and digits of other
    scripts.

    >>> parse(dataclasses.fields(_Example)[0], "12"), parse(dataclasses.fields(_Example)[0], "1_2")
    (12, '1_2')
    """
    kind = _kind(field)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind is not str and ("_" in text or not text.isascii()):
        return text
    try:
        return kind(text)
    except ValueError:
        return text


def read(field: dataclasses.Field, text: str) -> Any:
    """Reads a command-line word as a value of the field.

    Raises:
      UserError: it is not a valid value, or is outside the field's range.

    >>> read(dataclasses.fields(_Example)[0], "0")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: expected an integer of at least 1 and at most ..., got 0
    """
    value = parse(field, text)
    if problem := _problem(field, value):
        raise UserError(problem)
    return value


def sections_of(task: type) -> dict[str, type[Section]]:
    """The sections of a task class, by name: its fields whose type is a section."""
    hints = typing.get_type_hints(task)
    return {
        field.name: hints[field.name]
        for field in dataclasses.fields(task)
        if isinstance(hints[field.name], type) and issubclass(hints[field.name], Section)
    }


@dataclasses.dataclass(frozen=True)
class _Example(Section):
    length: int = option(64, "steps", at_least=1)
