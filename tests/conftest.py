"""Fixtures of all tests."""

import gc
import pathlib

import jax
import pytest


def pytest_collection_finish():
    """Makes garbage collection rarer: by default it takes 7 % of the tests' time.

    Modules and tests, which live until the end, are no longer searched.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def checking_leaks():
    """``jax.checking_leaks``, without a search of objects that are older than the test.

    JAX collects garbage once for each trace, which takes a second in a process with many objects.
    """
    gc.freeze()
    yield jax.checking_leaks
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Clears compiled programs before a process reaches Linux's limit on memory maps.

    Each program uses some maps, and with more than 65,530 the process is killed.
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
    """The number of hostile inputs of each kind."""
    return pytestconfig.getoption("--fuzz")


@pytest.fixture(scope="session")
def public_data():
    """Fetches a registered file, or skips the test if neither cache nor network has it."""
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
