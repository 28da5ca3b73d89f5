"""Settings of all tests, including the doctests of the package; must run before JAX is used."""

import os

from tests import compiled

compiled.share()
compiled.compile_quickly()
os.environ.setdefault("MPLBACKEND", "agg")
# Otherwise the product threads of NumPy and torch in several workers would busy-wait for each
# other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax  # noqa: E402

compiled.share_context()
# The setting of the command line on a machine with two cores.
jax.config.update("jax_num_cpu_devices", 2)
jax.devices()


def pytest_sessionstart(session):
    # Only once, before pytest-xdist starts its workers.
    if not hasattr(session.config, "workerinput"):
        compiled.limit()


def pytest_collection_modifyitems(items):
    """Puts the longest tests first, so that no worker runs one of them last while others wait."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
