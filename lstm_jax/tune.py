"""Switches of the process that make a CPU faster; nothing here happens by itself."""

import ctypes
import os
import pathlib
import platform
import warnings
from typing import NamedTuple

import jax

from lstm_jax._program_cache import processor_and_version, remove_oldest

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8

CACHE_BYTES = 2**30


class Tuned(NamedTuple):
    """What :func:`tune_cpu` did, in words; ``str()`` of it is one line each.

    Attributes:
      devices: of the number of JAX's CPU devices.
      allocator: of the C library's memory allocator.

    >>> print(Tuned("devices: 2", "allocator: as it was"))
    devices: 2
    allocator: as it was
    """

    devices: str
    allocator: str

    def __str__(self) -> str:
        return f"{self.devices}\n{self.allocator}"


def tune_cpu(num_devices: int | None = None) -> Tuned:
    """Sets this process up for fast training on a CPU.

    Two switches, both of the whole process, so that it is the user who turns them:

    - One JAX CPU device a physical core.  One device runs the small element-wise work of each
      step on one core alone; several devices each take their share of a batch (a mesh of
      ``jax.devices()``, as the command line makes it).  It must come before JAX is first used.
    - The allocator of glibc keeps memory that is freed and gives it out again, instead of
      handing large blocks back to the kernel, which fills them with zeros for each new call.
      The process then stays as large as it once was.  Its threads share one arena: others, of
      64 MiB heaps, are handed back whatever the threshold.

    Elsewhere than on Linux with glibc the second is left alone; nothing is done to GPUs or TPUs.

    Args:
      num_devices: how many CPU devices; None for one a physical core that the process may use.

    Returns:
      A :class:`Tuned`, to be printed.

    Raises:
      ValueError: ``num_devices`` is not at least 1.

    Example:
      >>> import lstm_jax
      >>> print(lstm_jax.tune_cpu())
      devices: ...
      allocator: ...
    """
    if num_devices is not None and num_devices < 1:
        raise ValueError(f"num_devices must be at least 1, got {num_devices}")
    return Tuned(f"devices: {_set_devices(num_devices)}", f"allocator: {_set_allocator()}")


def _set_devices(num_devices: int | None) -> str:
    count = _physical_cores() if num_devices is None else num_devices
    if jax.config.jax_num_cpu_devices == count:  # type: ignore[missing-attribute]
        return f"{count}, as it was"
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return "as they were, since JAX has been used already"
    return f"{count} on the CPU, each with its share of a batch"


def _physical_cores() -> int:
    """Cores that this process may run on, two threads of one core counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                cores.add(file.read().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def _set_allocator() -> str:
    if platform.libc_ver()[0] != "glibc":
        return "as it was, since it is not glibc's"
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    # Each succeeds with 1.  A threshold is a C int.
    switches = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    if all([mallopt(switch, value) for switch, value in switches]):
        return "keeps freed memory for the next call"
    return "as it was, since it refused"


def cache_compiled(
    folder: str | os.PathLike | None = None, max_bytes: int = CACHE_BYTES
) -> pathlib.Path | None:
    """Keeps compiled programs in a folder, where later processes find them.

    This is JAX's persistent compilation cache, for programs of any size.  A program is compiled
    again on another processor, with another version of JAX or with other flags of XLA; the
    results are those of the compiled program, bit for bit.  A folder that the user has given to
    JAX (``JAX_COMPILATION_CACHE_DIR``) stays, and so do its settings.

    Args:
      folder: where programs are kept, by default ``lstm_jax/compiled`` in the user's cache folder
        (found by ``platformdirs``, of the extra ``[train]``).  Whoever can write there can run
        code in processes that read it.
      max_bytes: the programs used least recently are removed until the others fit in.

    Returns:
      The folder that is used; None where it cannot be written, and nothing is kept.

    >>> import tempfile
    >>> cache_compiled(tempfile.mkdtemp()) is not None
    True
    """
    given = jax.config.jax_compilation_cache_dir  # type: ignore[missing-attribute]
    if given is not None:
        return pathlib.Path(given)
    if folder is None:
        import platformdirs

        folder = platformdirs.user_cache_path("lstm_jax", appauthor=False) / "compiled"
    folder = pathlib.Path(folder)
    own = folder / processor_and_version()
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_oldest(folder, max_bytes)
    except OSError:
        return None
    if not os.access(own, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(own))
    # By default programs that compile within a second are left out, which is nearly all of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A program that cannot be read or written, on a full disk for one, is compiled again.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    return own
