"""Shared code for the folders of runs and sweeps: the lock, and JSON with its digest."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import filelock

from lstm_jax._files import remove_leftovers
from lstm_jax.errors import UserError


@contextlib.contextmanager
def locked(folder: pathlib.Path, doing: str) -> Iterator[None]:
    """Locks a folder for this process; creates it if it is missing.

    The operating system holds the lock and releases it when the process ends for any reason.
    Partial files left by a killed process are removed, also from the folders of plots and samples.

    Args:
      folder: the folder.
      doing: what a process does in the folder, for the error message: ``"training"``.

    Raises:
      UserError: another process has the lock, or the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be created ({error.strerror})") from error
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{folder}: another process is {doing} in this folder") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        for place in (folder, folder / "plots", folder / "samples"):
            remove_leftovers(place)
        yield
    finally:
        lock.release()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values together with their digest, which :func:`read_sealed` verifies.

    >>> sealed({"a": 1}) == sealed(sealed({"a": 1}))
    True
    """
    values = {name: value for name, value in content.items() if name != "digest"}
    text = json.dumps(values, sort_keys=True)
    return {**values, "digest": hashlib.sha256(text.encode()).hexdigest()}


def read_sealed(path: pathlib.Path, what: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
      path: the file.
      what: the kind of object that the file describes, for error messages.

    Raises:
      UserError: the file cannot be read, does not hold an object, or its content does not match the
        digest in it. (Files of older versions contain no digest.)
    """
    try:
        held = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise UserError(f"{path}: expected the JSON of a {what}, got something else")
    if "digest" in held and held != sealed(held):
        raise UserError(f"{path}: damaged or edited: its content differs from its digest")
    return held
