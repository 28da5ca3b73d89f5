"""The lock of a folder that one process writes."""

import contextlib
import pathlib
from collections.abc import Iterator

import filelock

from lstm_jax.errors import UserError


@contextlib.contextmanager
def locked(folder: pathlib.Path, doing: str) -> Iterator[None]:
    """The folder for this process only; it is created where it is missing.

    The lock is the operating system's and ends with the process, however that ends.

    Args:
      folder: the folder.
      doing: what processes do in it, for the message: ``"training"``.

    Raises:
      UserError: another process has the lock, or the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{folder}: another process is {doing} in this folder") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()
