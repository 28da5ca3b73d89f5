"""What all tests share."""

import gc
import pathlib

import jax
import pytest


@pytest.fixture
def checking_leaks():
    """``jax.checking_leaks``, which then does not search objects that are older than the test.

    JAX collects garbage once for each trace, which takes a second where a process holds much.
    """
    gc.freeze()
    yield jax.checking_leaks
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Forgets compiled programs before a process has as many memory maps as Linux allows.

    Each program takes some, and past 65,530 of them the process is killed.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz",
        type=int,
        default=40,
        metavar="N",
        help="hostile inputs of each kind that tests/robustness tries (default: 40)",
    )


@pytest.fixture(scope="session")
def fuzz_budget(pytestconfig):
    """How many hostile inputs of each kind are tried."""
    return pytestconfig.getoption("--fuzz")


@pytest.fixture(scope="session")
def public_data():
    """Fetches a registered file, or skips the test where neither cache nor network has it."""
    from lstm_jax.data import fetch
    from lstm_jax.errors import UserError

    missing: dict[str, str] = {}

    def get(*files: str):
        for file in files:
            if file not in missing:
                try:
                    fetch(file)
                    missing[file] = ""
                except UserError as error:
                    if "could not be fetched" not in str(error):
                        raise
                    missing[file] = str(error)
            if missing[file]:
                pytest.skip(f"needs public data: {missing[file]}")

    return get
