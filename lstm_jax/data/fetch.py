"""Named files: downloaded once, verified by SHA-256, stored in a cache folder."""

import contextlib
import csv
import fcntl
import functools
import glob
import gzip
import hashlib
import importlib.resources
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

from lstm_jax.errors import UserError

CACHE_VARIABLE = "LSTM_JAX_DATA"


class Entry(NamedTuple):
    """A line of the registry.

    Attributes:
      file: the name of the file, which is also its path in the cache folder.
      sha256: the required digest of the file, in hexadecimal.
      url: the address from which it is downloaded.
      licence: the terms of use.

    >>> Entry("a/b.txt", "0" * 64, "https://example.org/b.txt", "public domain").file
    'a/b.txt'
    """

    file: str
    sha256: str
    url: str
    licence: str


@functools.cache
def registry() -> dict[str, Entry]:
    """Every file that :func:`fetch` knows, by name.

    >>> registry()["tiny_shakespeare/input.txt"].licence
    'text in the public domain'
    """
    text = importlib.resources.files("lstm_jax.data").joinpath("registry.tsv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return {row["file"]: Entry(**row) for row in rows}


def cache_folder() -> pathlib.Path:
    """The folder that stores files: ``$LSTM_JAX_DATA``, or the system's cache folder.

    >>> cache_folder().name != ""
    True
    """
    import pooch

    return pathlib.Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("lstm_jax"))


def fetch(file: str) -> pathlib.Path:
    """The path of a registered file, which is downloaded (with a progress bar) if it is missing.

    A file with a wrong digest, such as the page of a captive portal, is replaced by a new download.
    If the file is missing, a gzipped copy ``<file>.gz`` whose content has the digest is used.

    Args:
      file: a name of :func:`registry`, such as ``"etth1/ETTh1.csv"``.

    Raises:
      UserError: the name is unknown, or the file cannot be fetched.

    >>> fetch("moon/rocks.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: no data file is registered as 'moon/rocks.csv'; known: ...
    """
    if file not in registry():
        sets = sorted({name.partition("/")[0] for name in registry()})
        raise UserError(
            f"no data file is registered as {file!r}; known: files of {', '.join(sets)}"
        )
    entry = registry()[file]
    path = cache_folder() / file
    digest = _digest(path) if path.exists() else None
    if digest == entry.sha256:
        return path
    packed = path.with_name(f"{path.name}.gz")
    if packed.exists() and _digest(packed, gzip.open) == entry.sha256:
        return packed
    try:
        _download(entry, path)
    except UserError as error:
        if digest is None:
            raise
        raise UserError(
            f"{path}: wrong SHA-256: expected {entry.sha256}, got {digest}; a new download failed: "
            f"{error}"
        ) from error
    return path


def _digest(path: pathlib.Path, opened: Callable[..., Any] = open) -> str:
    try:
        with opened(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError) as error:  # also a damaged gzipped file
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({cause})") from error


def _download(entry: Entry, path: pathlib.Path) -> None:
    """Downloads to a temporary file, which is renamed to ``path`` if its digest is correct.

    A download locks its temporary file; an unlocked one was left by a killed process.
    """
    import pooch

    by_hand = (
        f"put the file at {path} by hand, or set {CACHE_VARIABLE} to a folder that contains it"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
            with left.open("rb") as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f"{path.name}.", suffix=".part", delete=False
        ) as file:
            part = pathlib.Path(file.name)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                download = pooch.downloaders.choose_downloader(entry.url, progressbar=True)
                download(entry.url, file, None)
                file.flush()
                digest = _digest(part)
                if digest == entry.sha256:
                    part.chmod(0o644)
                    part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except Exception as error:  # requests and the file system fail in many ways
        raise UserError(
            f"{entry.file}: could not be fetched from {entry.url} ({_brief(error)}); {by_hand}"
        ) from error
    if digest != entry.sha256:
        raise UserError(
            f"{entry.file}: wrong SHA-256 of {entry.url}: expected {entry.sha256}, got {digest}; "
            f"the network may have answered with another page; {by_hand}"
        )


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
