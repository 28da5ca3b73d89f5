"""The error that a person, not a programmer, is meant to read."""

from typing import Any


class UserError(Exception):
    """Something a user can mend: a config, a file, a flag.

    The message is one line that names what is wrong and what was expected; the command
    line prints it without a traceback.

    >>> raise UserError("model.dropout must be below 1, got 1.5")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: model.dropout must be below 1, got 1.5
    """


def expect(fits: Any, name: str, expected: str, got: Any) -> None:
    """Raises a :class:`UserError` that names what does not fit.

    >>> expect(5 > 6, "data.window", "at least 6", 5)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: data.window: expected at least 6, got 5
    """
    if not fits:
        raise UserError(f"{name}: expected {expected}, got {got}")
