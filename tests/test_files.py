"""Files are written completely or not at all; remains of killed processes are removed."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from lstm_jax import _files
from lstm_jax._files import remove_leftovers, write_content
from lstm_jax.errors import UserError
from lstm_jax.train.files import locked

# Writes a file and stops before renaming it.
STOPPED = """
import pathlib, sys, time
from lstm_jax import _files

def stop(self, target):
    print("written", flush=True)
    time.sleep(60)

pathlib.Path.replace = stop
_files.write_content(pathlib.Path(sys.argv[1]), "half of the results")
"""


def partial_files(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.rglob("*.partial")]


@pytest.fixture
def writer(tmp_path):
    """A process that is writing ``results.json``."""
    command = [sys.executable, "-c", STOPPED, tmp_path / "results.json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        yield process
        process.kill()


def test_the_next_start_removes_the_remains_of_a_killed_process(writer, tmp_path):
    (tmp_path / "results.json").write_text("as before")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / ".0123456789abcdef.partial").write_bytes(b"")
    assert len(partial_files(tmp_path)) == 2
    with locked(tmp_path, "training"):  # while the other process is still writing
        [left] = partial_files(tmp_path)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert partial_files(tmp_path) == [left]
    with locked(tmp_path, "training"):
        assert partial_files(tmp_path) == []
    assert (tmp_path / "results.json").read_text() == "as before"


def test_files_of_users_are_not_removed(tmp_path):
    names = [
        ".movie.partial", "0123456789abcdef.partial", ".0123456789ABCDEF.partial",
        ".0123456789abcde.partial", ".0123456789abcdef.partial.txt", ".00123456789abcdef.partial",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".0000000000000000.partial").mkdir()
    (tmp_path / ".1111111111111111.partial").symlink_to(tmp_path / names[0])
    before = sorted(tmp_path.iterdir())
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_leaves_the_file_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("as before")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as caught:
        write_content(path, "new")
    assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "as before"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(_files.fcntl, "flock", unsupported)
    write_content(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    (tmp_path / ".0123456789abcdef.partial").write_bytes(b"")
    remove_leftovers(tmp_path)  # another process might be writing it
    assert len(partial_files(tmp_path)) == 1
