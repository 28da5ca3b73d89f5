"""Each switch is tested in a separate process, since it cannot be undone."""

import ctypes
import os
import pathlib
import platform
import subprocess
import sys

import jax
import pytest

from lstm_jax import tune_cpu
from lstm_jax._program_cache import remove_oldest
from lstm_jax.tune import cache_compiled

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
    assert lines[0] == "devices: 3 on the CPU, each for a part of the batch"
    assert lines[-1] == "3"


def test_devices_after_jax_was_used():
    code = "import jax, lstm_jax; n = len(jax.devices()); print(lstm_jax.tune_cpu(n + 1)); print(n)"
    lines = printed(code)
    assert lines[0] == "devices: unchanged, since JAX is already in use"


def test_importing_changes_nothing():
    code = "import jax, lstm_jax; print(jax.config.jax_num_cpu_devices, len(jax.devices('cpu')))"
    assert printed(code) == printed(code.replace(", lstm_jax", ""))


@needs_glibc
def test_large_blocks_reuse_freed_memory():
    """A block above the threshold for mmap is on the heap, and the same block is reused."""
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
    assert lines[0] == "allocator: retains freed memory for reuse"
    assert lines[1] == "1 0 True"


@needs_glibc
def test_threads_reuse_freed_memory():
    """Memory that a thread frees and allocates again needs no new pages from the kernel."""
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


COMPILES = """
import sys, jax, jax.numpy as jnp
import lstm_jax.tune
counts = {"hits": 0, "misses": 0}
def count(event, **_):
    for name in counts:
        counts[name] += event == f"/jax/compilation_cache/cache_{name}"
jax.monitoring.register_event_listener(count)
print(lstm_jax.tune.cache_compiled(sys.argv[1]))
values = jax.jit(lambda x: jnp.tanh(x @ x.T) / 3)(jnp.arange(12.0).reshape(3, 4))
print(counts["hits"] > 0, counts["misses"] > 0, values.tobytes().hex())
"""


def compiled(folder, *, change: str = "") -> tuple[pathlib.Path, bool, bool, str]:
    """The folder of the cache, whether programs were found and written there, and a result."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", change + COMPILES, str(folder)],
        capture_output=True,
        text=True,
        env=env,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    used, counts = ran.stdout.splitlines()
    hit, missed, bits = counts.split()
    return pathlib.Path(used), hit == "True", missed == "True", bits


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[pathlib.Path, bool, bool, str]:
    """The first process of a cache folder."""
    return compiled(tmp_path_factory.mktemp("compiled"))


def test_compiled_programs_are_found_again_and_give_the_same_bits(first):
    used, hit, missed, bits = first
    assert (hit, missed) == (False, True)
    assert used.stat().st_mode & 0o077 == 0  # anyone who can write here can run code
    assert compiled(used.parent) == (used, True, False, bits)
    # A damaged program is compiled again without a message.
    for program in used.glob("*-cache"):
        program.write_bytes(program.read_bytes()[:-7])
    assert compiled(used.parent)[3] == bits


@pytest.mark.parametrize(
    "change",
    [
        "import platform; platform.machine = lambda: 'pdp11'\n",
        "import importlib.metadata as m; v = m.version\n"
        "m.version = lambda name: '99.0' if name == 'jax' else v(name)\n",
        "import pathlib; read = pathlib.Path.read_text\n"
        "pathlib.Path.read_text = lambda *a, **k: read(*a, **k).replace('sse2', 'sse9')\n",
    ],
    ids=["machine", "version", "feature"],
)
def test_another_processor_or_version_has_separate_programs(change, first):
    if "sse2" in change and "sse2" not in pathlib.Path("/proc/cpuinfo").read_text("utf-8"):
        pytest.skip("needs an x86 processor under Linux")
    used, hit, missed, bits = compiled(first[0].parent, change=change)
    assert used.parent == first[0].parent and used != first[0]
    assert (hit, missed, bits) == (False, True, first[3])


def test_a_folder_that_cannot_be_created_disables_the_cache(first, tmp_path):
    (tmp_path / "file").write_text("")
    used, hit, missed, bits = compiled(tmp_path / "file")
    assert (str(used), hit, missed) == ("None", False, False)
    assert bits == first[3]


def test_a_folder_set_by_the_user_is_not_changed(monkeypatch, tmp_path):
    assert jax.config.jax_compilation_cache_dir is not None  # by conftest.py
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    assert cache_compiled(tmp_path) == pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == seconds
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_programs_are_removed_first(tmp_path):
    (tmp_path / "another").mkdir()
    for age, name in enumerate(["new", "another/older", "oldest"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    remove_oldest(tmp_path, 300)
    assert len(list(tmp_path.rglob("*"))) == 4
    remove_oldest(tmp_path, 299)
    assert {path.name for path in tmp_path.rglob("*")} == {"new", "another", "older"}
    remove_oldest(tmp_path, 0)
    assert {path.name for path in tmp_path.rglob("*")} == {"another"}


def test_bad_number():
    with pytest.raises(ValueError, match="num_devices must be at least 1, got 0"):
        tune_cpu(0)
