"""Settings of every test, the doctests of the package included; must come before JAX is used."""

import os

from tests import compiled

compiled.share()
compiled.compile_quickly()
os.environ.setdefault("MPLBACKEND", "agg")
# Threads of NumPy's and torch's products in several workers would wait for each other, busily.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax  # noqa: E402

# As the command line has it on a machine of two cores.
jax.config.update("jax_num_cpu_devices", 2)
jax.devices()


def pytest_sessionstart(session):
    if not hasattr(session.config, "workerinput"):  # once, before pytest-xdist starts its workers
        compiled.limit()


def pytest_collection_modifyitems(items):
    """The longest tests come first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
