"""Process-wide settings that speed up CPUs; they only take effect when called explicitly."""

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
    """A description of what :func:`tune_cpu` did; ``str()`` has one line for each setting.

    Attributes:
      devices: the number of JAX's CPU devices.
      allocator: the settings of the C library's memory allocator.

    >>> print(Tuned("devices: 2", "allocator: unchanged"))
    devices: 2
    allocator: unchanged
    """

    devices: str
    allocator: str

    def __str__(self) -> str:
        return f"{self.devices}\n{self.allocator}"


def tune_cpu(num_devices: int | None = None) -> Tuned:
    """Configures this process for fast training on a CPU.

    It changes two settings.  Both affect the whole process, so they are not changed by default:

    - One JAX CPU device per physical core.  A single device runs the small elementwise operations
      of each step on only one core.  With several devices, each computes a part of the batch (use
      a mesh of ``jax.devices()``, as the command line does).  Call this before JAX is first used.
    - The allocator of glibc retains freed memory and reuses it.  By default it returns large blocks
      to the kernel, which fills them with zeros at the next allocation.  The process therefore
      stays at its peak size.  All threads share one arena, because other arenas, with heaps of
      64 MiB, return memory regardless of the threshold.

    The second setting only applies to Linux with glibc.  Neither affects GPUs or TPUs.

    Args:
      num_devices: the number of CPU devices; None for one per physical core that the process may
        use.

    Returns:
      A :class:`Tuned`, which can be printed.

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
        return f"{count}, unchanged"
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return "unchanged, since JAX is already in use"
    return f"{count} on the CPU, each for a part of the batch"


def _physical_cores() -> int:
    """The number of cores that this process may run on; threads of one core count once."""
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
        return "unchanged, since the C library is not glibc"
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    # mallopt returns 1 on success.  A threshold is a C int.
    switches = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    if all([mallopt(switch, value) for switch, value in switches]):
        return "retains freed memory for reuse"
    return "unchanged, since glibc rejected a setting"


def cache_compiled(
    folder: str | os.PathLike | None = None, max_bytes: int = CACHE_BYTES
) -> pathlib.Path | None:
    """Caches compiled programs in a folder, for use by later processes.

    This enables JAX's persistent compilation cache, for programs of any size.  A program is
    recompiled on another processor, with another version of JAX or with other XLA flags.  Results
    of a cached program are equal bit for bit.  If the user has already configured a folder
    (``JAX_COMPILATION_CACHE_DIR``), that folder and its settings are not changed.

    Args:
      folder: the cache folder, by default ``lstm_jax/compiled`` in the user's cache folder
        (determined by ``platformdirs``, of the extra ``[train]``).  Anyone who can write to it can
        run code in the processes that read it.
      max_bytes: the maximum size; the least recently used programs are removed first.

    Returns:
      The folder that is used; None if it cannot be written, in which case nothing is cached.

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
    # By default, JAX does not cache programs that compile within a second, which most do.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A program that cannot be read or written, for instance on a full disk, is recompiled.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    return own
