"""What the folders of runs and sweeps share: the lock, and JSON with its digest."""

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
    """The folder for this process only; it is created where it is missing.

    The lock is the operating system's and ends with the process, however that ends.  Files that a
    killed process left half written are removed, also from the folders of plots and samples.

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
        for place in (folder, folder / "plots", folder / "samples"):
            remove_leftovers(place)
        yield
    finally:
        lock.release()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with their digest, which :func:`read_sealed` compares.

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
      what: whose values it holds, for messages.

    Raises:
      UserError: the file cannot be read, holds no object, or its content has another digest than
        it states.  (The files of older versions state none.)
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
