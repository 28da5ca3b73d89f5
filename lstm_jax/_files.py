"""Atomic writes of files, and one-line messages."""

import contextlib
import fcntl
import io
import os
import pathlib
import re
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from lstm_jax.errors import UserError, printable


def one_line(message: Any) -> str:
    """Converts a message of another library to one printable line.

    >>> one_line("no array\\n  is named \\x1b[2J")
    'no array is named \\\\x1b[2J'
    """
    return printable(" ".join(str(message).split()))


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Converts an error of the file system to a :class:`UserError` that names the file or folder.

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
    """Creates a folder if it is missing.

    Raises:
      UserError: it cannot be created, or a file has its name.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def write_content(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file atomically: an existing file is replaced once the new one is complete.

    Args:
      path: the file.
      content: bytes, or a string, which is encoded in UTF-8.

    Raises:
      UserError: the folder does not exist, the disk is full, or writing fails in another way.

    >>> write_content(pathlib.Path("/no/such/folder/a.txt"), "a")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/folder/a.txt: cannot be written: no folder /no/such/folder
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")  # names that are not UTF-8
    with writing(path):
        target = pathlib.Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise UserError(one_line(f"{path}: cannot be written: it is not a regular file"))
        if not target.parent.is_dir():
            raise UserError(one_line(f"{path}: cannot be written: no folder {path.parent}"))
        partial = target.with_name(f".{secrets.token_hex(8)}.partial")
        try:
            with partial.open("xb") as file:
                lock(file.fileno())  # until it is renamed, so that it is not a leftover
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                partial.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def npz_content(arrays: Mapping[str, Any]) -> bytes:
    """The content of a .npz file. Any name is allowed; :func:`numpy.savez` rejects ``"file"``.

    >>> import numpy as np
    >>> np.load(io.BytesIO(npz_content({"file": [1, 2]})))["file"].tolist()
    [1, 2]
    """
    import numpy as np  # this module is also imported for --help, which needs no numpy

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array))
    return content.getvalue()


def lock(file: int) -> bool:
    """Locks an open file for this process until it is closed; returns False if it is locked.

    The operating system holds the lock and releases it when the process ends for any reason.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # also if the file system does not support locks
        return False
    return True


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes the partial files of :func:`write_content` that a killed process has left.

    Files that another process is writing are not removed.

    >>> remove_leftovers(pathlib.Path("/no/such/folder"))
    """
    with contextlib.suppress(OSError):
        for path in [*folder.glob(".*.partial")]:
            ours = re.fullmatch(r"\.[0-9a-f]{16}\.partial", path.name)
            if ours and path.is_file() and not path.is_symlink():
                with path.open("r+b") as file:
                    if lock(file.fileno()):
                        path.unlink()
