"""Shared safeguards of the file readers: one-line errors and bounded memory.

Reading never runs code from a file: nothing is unpickled, no other file is opened, and arrays
take no more memory than :func:`check_room` allows for the file's size.
"""

import contextlib
import importlib
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from lstm_jax._files import one_line
from lstm_jax.errors import UserError

ALWAYS = 256 * 2**20
PER_BYTE = 64


@contextlib.contextmanager
def readable(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Checks that ``path`` is a file, and turns every error in reading it into a `UserError`.

    Args:
      path: the file.
      kind: the expected kind of file, for messages.
    """
    try:
        if path.is_dir():
            raise UserError(one_line(f"{path}: is a folder; expected a {kind}"))
        if not path.is_file():
            raise UserError(one_line(f"{path}: no such file"))
        yield
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or error
        what = "cannot be read" if error.errno else f"not a readable {kind}"
        raise UserError(one_line(f"{path}: {what}: {reason}")) from error
    except Exception as error:  # every format and library has its own errors
        reason = str(error) or type(error).__name__
        raise UserError(one_line(f"{path}: not a readable {kind}: {reason}")) from error


def check_room(needed: int, size: int) -> None:
    """Raises if arrays are far larger than the file that declares them.

    Compression hardly shrinks trained weights.  A file that declares far more than it holds is
    damaged, or crafted to exhaust the memory.

    Args:
      needed: the size of the arrays in memory, in bytes.
      size: the size of the file, in bytes.

    >>> check_room(2**40, 10_000)
    Traceback (most recent call last):
    ValueError: a file of 10000 bytes declares 1099511627776 bytes of arrays; expected at most ...
    """
    most = ALWAYS + PER_BYTE * size
    if needed > most:
        raise ValueError(
            f"a file of {size} bytes declares {needed} bytes of arrays; expected at most {most}"
        )


def zip_members(file: zipfile.ZipFile) -> list[str]:
    """Returns the names of a zip file's members, which are read in memory and never extracted.

    Raises:
      ValueError: a name occurs twice, or the members are far larger than the file.
    """
    names = file.namelist()
    for name in names:
        if len(set(names)) < len(names) and names.count(name) > 1:
            raise ValueError(f"{name} is in the file twice")
    size = file.fp.seek(0, os.SEEK_END)  # type: ignore[union-attr]
    check_room(sum(info.file_size for info in file.infolist()), size)
    return names


def needed(module: str, path: pathlib.Path) -> Any:
    """Imports a module that only one kind of file needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"{path}: needs the package {package}: pip install {package}") from error


def native(array: np.ndarray) -> np.ndarray:
    """Copies an array in the byte order of this machine.

    >>> native(np.ones(2, ">f4")).dtype
    dtype('float32')
    """
    return np.array(array, array.dtype.newbyteorder("="), order="C")
