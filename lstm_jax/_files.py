"""Files that are written whole or not at all, and messages of one line."""

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

import numpy as np

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
        if target.exists() and not target.is_file():
            raise UserError(one_line(f"{path}: cannot be written: it is not a regular file"))
        if not target.parent.is_dir():
            raise UserError(one_line(f"{path}: cannot be written: no folder {path.parent}"))
        partial = target.with_name(f".{secrets.token_hex(8)}.partial")
        try:
            with partial.open("xb") as file:
                lock(file.fileno())  # until the file has its name: it is not a leftover
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

    >>> np.load(io.BytesIO(npz_content({"file": [1, 2]})))["file"].tolist()
    [1, 2]
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    return content.getvalue()


def lock(file: int) -> bool:
    """Locks an open file for this process, until it is closed; False if it has another lock.

    The lock is the operating system's and ends with the process, however that ends.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # also where a file system has no locks
        return False
    return True


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes the partial files of :func:`write_content` that a killed process has left.

    What another process is writing stays.

    >>> remove_leftovers(pathlib.Path("/no/such/folder"))
    """
    with contextlib.suppress(OSError):
        for path in [*folder.glob(".*.partial")]:
            ours = re.fullmatch(r"\.[0-9a-f]{16}\.partial", path.name)
            if ours and path.is_file() and not path.is_symlink():
                with path.open("r+b") as file:
                    if lock(file.fileno()):
                        path.unlink()
