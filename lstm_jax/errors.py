"""Errors for users of the command line, and one-line messages."""

from typing import Any


class UserError(Exception):
    """An error that a user can correct: in a config, a file or a flag.

    The message is one line that gives the cause and the expected value; the command line prints it
    without a traceback.  Names and values in it can come from a file: :func:`printable` is applied
    to it.

    >>> raise UserError("model.dropout must be below 1, got 1.5")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: model.dropout must be below 1, got 1.5
    """

    def __str__(self) -> str:
        return printable(super().__str__())


LONGEST = 1000  # the largest number of characters of a message


def printable(text: str) -> str:
    r"""Converts a message to one printable line; a long message is shortened in the middle.

    Other characters (line ends, escape sequences of terminals, bytes that are not UTF-8) are
    written as in the representation of a Python string.

    >>> printable("a\n\x1b[2J.csv: no such file")
    'a\\n\\x1b[2J.csv: no such file'
    """
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 205]} ... {line[-200:]}"


def first_line(error: BaseException) -> str:
    """The first line of another library's error, at most 120 characters; its type if the line is
    empty.

    >>> first_line(ValueError("bad magic number\\nin the header"))
    'bad magic number'
    """
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__


def expect(fits: Any, name: str, expected: str, got: Any) -> None:
    """Raises a :class:`UserError` with the expected and the actual value unless a condition holds.

    >>> expect(5 > 6, "data.window", "at least 6", 5)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: data.window: expected at least 6, got 5
    """
    if not fits:
        raise UserError(f"{name}: expected {expected}, got {got}")
