"""Each switch in a process of its own, since it cannot be taken back."""

import ctypes
import platform
import subprocess
import sys

import pytest

from lstm_jax import tune_cpu

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
LIBC = """
import ctypes, lstm_jax
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
"""


def printed(code):
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


def test_devices_before_jax_is_used():
    code = "import jax, lstm_jax; print(lstm_jax.tune_cpu(3)); print(len(jax.devices('cpu')))"
    lines = printed(code)
    assert lines[0] == "devices: 3 on the CPU, each with its share of a batch"
    assert lines[-1] == "3"


def test_devices_after_jax_was_used():
    code = "import jax, lstm_jax; n = len(jax.devices()); print(lstm_jax.tune_cpu(n + 1)); print(n)"
    lines = printed(code)
    assert lines[0] == "devices: as they were, since JAX has been used already"


def test_importing_changes_nothing():
    code = "import jax, lstm_jax; print(jax.config.jax_num_cpu_devices, len(jax.devices('cpu')))"
    assert printed(code) == printed(code.replace(", lstm_jax", ""))


@needs_glibc
def test_large_blocks_come_from_kept_memory():
    """A block above the threshold for mmap lies on the heap, and is the same one again."""
    code = (
        LIBC
        + """
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
fields = [(name, ctypes.c_size_t) for name in names]
libc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": fields})
def block():
    before = libc.mallinfo2().hblks
    p = libc.malloc(100 << 20)
    mapped = libc.mallinfo2().hblks - before
    libc.free(p)
    return mapped
first = block()
print(lstm_jax.tune_cpu().allocator)
print(first, block(), libc.mallinfo2().fordblks >= 100 << 20)
"""
    )
    if not hasattr(ctypes.CDLL("libc.so.6"), "mallinfo2"):
        pytest.skip("needs glibc 2.33 for mallinfo2")
    lines = printed(code)
    assert lines[0] == "allocator: keeps freed memory for the next call"
    assert lines[1] == "1 0 True"


@needs_glibc
def test_threads_keep_their_memory():
    """What a thread frees and asks for again was touched before: no page comes from the kernel."""
    code = (
        LIBC
        + """
import resource, threading
size = 40 << 20  # two of them fill more than one heap of a thread's own arena
def blocks():
    pointers = [libc.malloc(size), libc.malloc(size)]
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for p in pointers:
        ctypes.memset(p, 1, size)
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
    for p in pointers:
        libc.free(p)
lstm_jax.tune_cpu()
thread = threading.Thread(target=lambda: (blocks(), blocks()))
thread.start()
thread.join()
"""
    )
    first, again = map(int, printed(code)[-2:])
    assert again < first / 10


def test_bad_number():
    with pytest.raises(ValueError, match="num_devices must be at least 1, got 0"):
        tune_cpu(0)
