"""The folder of compiled programs: its name for this machine, and its size.  Imports no jax."""

import hashlib
import importlib.metadata
import pathlib
import platform


def processor_and_version() -> str:
    """A name for the properties of this machine and of JAX on which compiled programs depend.

    >>> processor_and_version().startswith("jax-")
    True
    """
    processor = [platform.machine(), platform.processor()]
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        # The features of one core, named "flags" on x86 and "Features" on ARM.
        names = ("vendor_id", "cpu family", "model", "model name", "flags", "Features")
        processor += sorted({line for line in lines if line.split("\t")[0].strip() in names})
    except OSError:
        pass  # not Linux
    digest = hashlib.sha256("\n".join(processor).encode()).hexdigest()[:16]
    jax, jaxlib = map(importlib.metadata.version, ("jax", "jaxlib"))
    return f"jax-{jax}-{jaxlib}-{digest}"


def remove_oldest(folder: pathlib.Path, max_bytes: int) -> None:
    """Removes the least recently used files, of all processors and versions.

    Args:
      folder: the folder.
      max_bytes: the largest total size of the remaining files.
    """
    found = []
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:  # another process has removed it
            continue
        if path.is_file():
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
