"""The registry, the cache folder and the digests, with only a local server."""

import fcntl
import gc
import hashlib
import http.server
import re
import sys
import threading

import pytest

from lstm_jax.data import CACHE_VARIABLE, Entry, cache_folder, fetch, registry
from lstm_jax.errors import UserError

# pooch leaves the connection of a failed download open until it is collected.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

CONTENT = b"one line\n" * 1000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def register(monkeypatch):
    """Replaces the registry by one entry."""

    def only(file: str, sha256: str, url: str) -> None:
        entry = Entry(file, sha256, url, "none")
        monkeypatch.setattr(sys.modules["lstm_jax.data.fetch"], "registry", lambda: {file: entry})

    return only


@pytest.fixture
def server(monkeypatch):
    """A local server: its address, and the list of requested paths."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            found = self.path == "/good.txt"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(CONTENT) if found else 0))
            self.end_headers()
            self.wfile.write(CONTENT if found else b"")

        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()
    gc.collect(1)  # objects of this test


def test_every_entry_can_be_fetched_and_checked():
    assert registry()
    for name, entry in registry().items():
        assert entry.file == name
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256), name
        assert re.fullmatch(r"https://\S+", entry.url), name
        assert entry.licence.strip(), name
        assert not name.startswith("/") and ".." not in name


def test_cache_folder_follows_the_environment_variable(cache, monkeypatch):
    assert cache_folder() == cache
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_folder().name == "lstm_jax"
    assert cache_folder().is_absolute()


def test_cached_file_is_not_downloaded(cache, register):
    register("a/b.txt", hashlib.sha256(CONTENT).hexdigest(), "https://0.0.0.0/never")
    (cache / "a").mkdir(parents=True)
    (cache / "a/b.txt").write_bytes(CONTENT)
    assert fetch("a/b.txt") == cache / "a/b.txt"


def test_file_is_downloaded_once_into_the_cache(cache, register, server):
    address, asked = server
    register("a/b.txt", hashlib.sha256(CONTENT).hexdigest(), f"{address}/good.txt")
    path = fetch("a/b.txt")
    assert path == cache / "a/b.txt"
    assert path.read_bytes() == CONTENT
    assert fetch("a/b.txt") == path
    assert asked == ["/good.txt"]
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_download_with_a_wrong_digest_is_rejected(cache, register, server):
    address, _ = server
    register("b.txt", "0" * 64, f"{address}/good.txt")
    with pytest.raises(UserError, match="wrong SHA-256"):
        fetch("b.txt")


def test_rejected_download_is_removed_from_the_cache(cache, register, server):
    """As with the login page of a network: the next attempt downloads again."""
    address, asked = server
    register("b.txt", "0" * 64, f"{address}/good.txt")
    with pytest.raises(UserError, match="wrong SHA-256"):
        fetch("b.txt")
    assert list(cache.iterdir()) == []
    register("b.txt", hashlib.sha256(CONTENT).hexdigest(), f"{address}/good.txt")
    assert fetch("b.txt").read_bytes() == CONTENT
    assert asked == ["/good.txt"] * 2


def test_remains_of_a_killed_download_are_removed(cache, register, server):
    """The temporary file of a running download is locked and not removed."""
    register("b.txt", hashlib.sha256(CONTENT).hexdigest(), f"{server[0]}/good.txt")
    cache.mkdir()
    for name in ("b.txt.killed.part", "b.txt.running.part", "other.txt.x.part"):
        (cache / name).write_bytes(b"half")
    with (cache / "b.txt.running.part").open("rb") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        fetch("b.txt")
    names = sorted(path.name for path in cache.iterdir())
    assert names == ["b.txt", "b.txt.running.part", "other.txt.x.part"]


def test_cached_file_with_a_wrong_digest_is_replaced(cache, register, server):
    address, asked = server
    register("b.txt", hashlib.sha256(CONTENT).hexdigest(), f"{address}/good.txt")
    for wrong in (b"<html>Log in</html>", b"", CONTENT[:-1]):
        cache.mkdir(exist_ok=True)
        (cache / "b.txt").write_bytes(wrong)
        assert fetch("b.txt").read_bytes() == CONTENT
    assert asked == ["/good.txt"] * 3 and [path.name for path in cache.iterdir()] == ["b.txt"]


def test_wrong_cached_file_stays_if_download_fails(cache, register):
    register("b.txt", "0" * 64, "http://127.0.0.1:1/never")
    cache.mkdir()
    (cache / "b.txt").write_bytes(CONTENT)
    with pytest.raises(UserError) as caught:
        fetch("b.txt")
    assert str(caught.value).startswith(
        f"{cache / 'b.txt'}: wrong SHA-256: expected {'0' * 64}, got "
        f"{hashlib.sha256(CONTENT).hexdigest()}; a new download failed: b.txt: could not be fetched"
    )
    assert (cache / "b.txt").read_bytes() == CONTENT
    (cache / "b.txt").unlink()
    (cache / "b.txt").mkdir()
    with pytest.raises(UserError, match=r"b\.txt: cannot be read \(Is a directory\)$"):
        fetch("b.txt")


@pytest.mark.parametrize("kind", ["not found", "no server"])
def test_failed_download_gives_instructions(cache, register, server, kind):
    address = server[0] if kind == "not found" else "http://127.0.0.1:1"
    register("a/b.txt", "0" * 64, f"{address}/bad.txt")
    with pytest.raises(UserError) as caught:
        fetch("a/b.txt")
    message = str(caught.value)
    assert message.startswith(f"a/b.txt: could not be fetched from {address}/bad.txt (")
    assert f"put the file at {cache / 'a/b.txt'} by hand, or set {CACHE_VARIABLE}" in message
    assert "\n" not in message
    assert not (cache / "a/b.txt").exists()


def test_a_cache_that_cannot_be_written_is_an_error_for_the_user(cache, register, server):
    cache.write_text("a file where the folder should be")
    register("a/b.txt", "0" * 64, f"{server[0]}/good.txt")
    with pytest.raises(UserError, match="could not be fetched"):
        fetch("a/b.txt")


def test_an_unknown_name_lists_the_known_sets():
    with pytest.raises(UserError) as caught:
        fetch("moon/rocks.csv")
    assert str(caught.value).startswith("no data file is registered as 'moon/rocks.csv'; known: ")
    assert all(name.partition("/")[0] in str(caught.value) for name in registry())
