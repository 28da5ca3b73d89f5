"""Files that are written whole or not at all, and messages of one line."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

from lstm_jax.errors import UserError, printable


def one_line(message: Any) -> str:
    """A message of another library as one printable line, without its line ends.

    >>> one_line("no array\\n  is named \\x1b[2J")
    'no array is named \\\\x1b[2J'
    """
    return printable(" ".join(str(message).split()))


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns an error of the file system into a :class:`UserError` that names a file or folder.

    >>> with writing(pathlib.Path("runs/a")):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: runs/a: cannot be written: No space left on device
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(one_line(f"{path}: cannot be written: {reason}")) from error


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder where there is none.

    Raises:
      UserError: it cannot be made, or something else has its name.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def write_content(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file as a whole: until it is complete, what was there before stays.

    Args:
      path: the file.
      content: bytes, or a text for UTF-8.

    Raises:
      UserError: the folder does not exist, the disk is full, or anything else prevents it.

    >>> write_content(pathlib.Path("/no/such/folder/a.txt"), "a")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/folder/a.txt: cannot be written: no folder /no/such/folder
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")  # names that are not UTF-8
    with writing(path):
        target = pathlib.Path(os.path.realpath(path))
        partial = target.with_name(f".{secrets.token_hex(8)}.partial")
        if target.exists() and not target.is_file():
            raise UserError(one_line(f"{path}: cannot be written: it is not a regular file"))
        if not target.parent.is_dir():
            raise UserError(one_line(f"{path}: cannot be written: no folder {path.parent}"))
        try:
            partial.write_bytes(content)
            partial.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
