"""The compilation cache that the tests, their workers and their subprocesses share between runs.

JAX stores every compiled program in a folder outside the repository, and loads it if the same
program is compiled again. Its key covers the program, the compiler's options and its version.
Tracing and lowering, and the counts of both, are the same as without the cache.
"""

import functools
import os
from pathlib import Path

from lstm_jax._program_cache import processor_and_version, remove_oldest

LIMIT = 2_000_000_000  # bytes; one run of the tests stores about a tenth
LEVEL = "--xla_backend_optimization_level"
PARTS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
QUICK = f"{LEVEL}=0 {PARTS}"
FOR_LOOPS = f"{LEVEL}=1 {PARTS}"


def root() -> Path:
    """The folder that contains the caches of all versions and processors."""
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "lstm_jax" / "tests"


def folder() -> Path:
    """The folder of the installed JAX on this processor, for which its programs are compiled."""
    return root() / processor_and_version()


def share() -> None:
    """Sets the cache for this process and those it starts; a cache that is already set stays."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # Entries are not written atomically. One that another process is writing, or whose process was
    # killed, is compiled again; pyproject.toml ignores the warning in pytest's own process.
    ignored = "ignore:Error reading persistent compilation cache entry:UserWarning"
    others = os.environ.get("PYTHONWARNINGS", "")
    if ignored not in others:
        os.environ["PYTHONWARNINGS"] = f"{others},{ignored}" if others else ignored


def compile_quickly() -> None:
    """Compiles with fewer optimisations, unless ``XLA_FLAGS`` sets the level.

    The tests spend most of their time compiling small programs.  LLVM's level 0 and XLA's older
    code for fusions take less than half of the default's time.  The workers use all cores, so
    compiling a program in parallel parts would only add a seventh to the time.  XLA's own passes
    (fusion, layouts, buffers) are the default's.  With
    ``XLA_FLAGS=--xla_backend_optimization_level=3`` in the environment, the tests compile what
    users run.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if LEVEL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {QUICK}".strip()


def share_context() -> None:
    """Lowers all programs of this process in one MLIR context.

    JAX creates a context for each program, so that constants are freed with it.  Creating one takes
    a quarter of a small program's time.
    """
    from jax._src.interpreters import mlir  # reads the settings of share()

    mlir.make_ir_context = functools.cache(mlir.make_ir_context)


def flags_for_loops() -> str:
    """``XLA_FLAGS`` for a child process that computes for longer than it compiles.

    At level 0 a loop takes twice as long as at level 1.  Programs of different levels round
    differently, so a test that compares processes bit for bit uses the same level for both.
    """
    return os.environ["XLA_FLAGS"].replace(QUICK, FOR_LOOPS)


def is_quick() -> bool:
    """Whether the settings of :func:`compile_quickly` are active."""
    return QUICK in os.environ.get("XLA_FLAGS", "")


def limit() -> None:
    """Deletes the least recently used entries until at most ``LIMIT`` bytes are left."""
    remove_oldest(root(), LIMIT)
