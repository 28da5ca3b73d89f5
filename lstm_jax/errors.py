"""The error that a person, not a programmer, is meant to read."""


class UserError(Exception):
    """Something a user can mend: a config, a file, a flag.

    The message is one line that names what is wrong and what was expected; the command
    line prints it without a traceback.

    >>> raise UserError("model.dropout must be below 1, got 1.5")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: model.dropout must be below 1, got 1.5
    """
