"""Full or read-only disks: a one-line error, and existing files remain."""

import contextlib
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lstm_jax.cli import main

CONFIG = """
task = "next_character"
[data]
text = "{folder}/text.txt"
lanes = 2
window = 4
[model]
hidden_size = 6
embedding_size = 4
[train]
num_steps = 1
sample_length = 0
num_devices = 1
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """A folder with a run, its export, report and predictions."""
    folder = tmp_path_factory.mktemp("disks")
    words = np.random.default_rng(0).choice(["the", "quick", "brown", "fox\n"], 100)
    (folder / "text.txt").write_text(" ".join(words), "utf-8")
    (folder / "tiny.toml").write_text(CONFIG.format(folder=folder), "utf-8")
    assert main(["train", str(folder / "tiny.toml"), "--workdir", str(folder / "run")]) == 0
    assert main(["export", str(folder / "run")]) == 0
    assert main(["inspect", str(folder / "run")]) == 0
    shutil.copytree(folder / "run", folder / "other")
    for name in ("p.csv", "p.json", "p.npz", "c.npz", "c.png"):
        (folder / name).write_text("as before", "utf-8")
    return folder


class Disk:
    """A small separate file system, to which ``source`` is copied."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def fill(self) -> None:
        with (self.folder / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def clear(self) -> None:
        (self.folder / "fill").unlink()

    def protect(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    def unprotect(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)


@pytest.fixture(params=["full", "read-only", "limited"])
def disk(request, source, tmp_path):
    """Yields a folder with a copy of ``source``, and a context in which nothing can be written.

    The last kind needs no privileges: it limits the size of the process's files to a few bytes.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False
    if request.param != "limited":
        command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder]
        mounted = shutil.which("mount") and subprocess.run(command, capture_output=True)
        if not mounted or mounted.returncode != 0:
            pytest.skip("needs the right to mount a file system")
    disk = Disk(folder)

    @contextlib.contextmanager
    def limited():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @contextlib.contextmanager
    def between(begin, end):
        begin()
        try:
            yield
        finally:
            end()

    contexts = {
        "full": lambda: between(disk.fill, disk.clear),
        "read-only": lambda: between(disk.protect, disk.unprotect),
        "limited": limited,
    }
    try:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        yield folder, contexts[request.param]
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file except locks and the remains of a failed save."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "fill")
        if ".orbax-checkpoint-tmp" not in path.as_posix()
    }


COMMANDS = {
    "evaluate": ["evaluate", "run"],
    "export": ["export", "run"],
    "inspect": ["inspect", "run"],
    "predict csv": ["predict", "run", "text.txt", "--output", "p.csv"],
    "predict json": ["predict", "run", "text.txt", "--output", "p.json"],
    "predict npz": ["predict", "run", "text.txt", "--output", "p.npz"],
    "convert": ["convert", "run", "c.npz", "--to", "torch"],
    "compare": ["compare", "run", "other", "--output", "c.png"],
}


def test_a_repeated_write_gives_the_same_content(disk, monkeypatch, capsys):
    folder, nothing_can_be_written = disk
    monkeypatch.chdir(folder)
    before = contents(folder)
    for name, words in COMMANDS.items():
        capsys.readouterr()
        with nothing_can_be_written():
            status = main(words)
        error = capsys.readouterr().err
        assert status == 1 and error.count("\n") == 1, f"{name}: {error}"
        assert error.startswith("lstm-jax: error: ") and "cannot be written" in error, name
        assert contents(folder) == before, name
    for name in ("export", "predict csv", "convert"):
        assert main(COMMANDS[name]) == 0
    assert (folder / "p.csv").read_text("utf-8").startswith("line,")


@pytest.mark.parametrize("disk", ["full"], indirect=True)
def test_a_run_can_be_resumed_when_there_is_space(disk, monkeypatch, capsys):
    folder, nothing_can_be_written = disk
    monkeypatch.chdir(folder)
    rate = ["--optimizer.schedule", "constant"]
    assert main(["train", "tiny.toml", "--workdir", "longer", *rate]) == 0
    held = contents(folder)
    longer = ["train", "longer", "--train.num-steps", "3"]
    for words in (["train", "tiny.toml", "--workdir", "new"], longer):
        capsys.readouterr()
        with nothing_can_be_written():
            assert main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith("lstm-jax: error: ") and error.count("\n") == 1, error
        now = contents(folder)
        assert {name: now[name] for name in held} == held
    assert main(["train", "tiny.toml", "--workdir", "new"]) == 0
    assert main(longer) == 0
    assert main(["evaluate", "longer"]) == 0
    assert "step 3" in capsys.readouterr().out


@pytest.mark.parametrize("disk", ["limited"], indirect=True)
def test_a_sweep_can_be_resumed_when_there_is_space(disk, monkeypatch, capsys):
    folder, nothing_can_be_written = disk
    monkeypatch.chdir(folder)
    words = ["sweep", "tiny.toml", "--workdir", "sweep", "--train.seed", "0,1"]
    with nothing_can_be_written():
        assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("lstm-jax: error: ") and error.count("\n") == 1, error
    assert main(words) == 0


NAMES = {
    "too long": "n" * 300,
    "inside a file": "text.txt/run",
    "a file": "text.txt",
    "a dangling link": "link/run",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_created_gives_one_line(name, source, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    shutil.copy(source / "text.txt", "text.txt")
    pathlib.Path("link").symlink_to("nowhere/at/all")
    for words in (
        ["train", str(source / "tiny.toml"), "--workdir", NAMES[name]],
        ["sweep", str(source / "tiny.toml"), "--workdir", NAMES[name], "--train.seed", "0,1"],
        ["predict", str(source / "run"), "--output", f"{NAMES[name]}/p.csv"],
        ["compare", str(source / "run"), str(source / "other"), "--output", f"{NAMES[name]}/a.png"],
        ["convert", str(source / "run"), f"{NAMES[name]}/a.npz", "--to", "torch"],
        ["evaluate", NAMES[name]],
    ):
        if name == "a dangling link" and words[0] in ("train", "sweep"):
            continue  # the link's target is created
        capfd.readouterr()
        assert main(words) == 1, words
        error = capfd.readouterr().err
        assert error.startswith("lstm-jax: error: ") and error.count("\n") == 1, error
    assert sorted(os.listdir()) == ["link", "text.txt"]


def test_a_file_instead_of_a_folder_of_a_run(source, tmp_path, capfd):
    for name, words in {
        "plots": ["evaluate"], "export": ["export"], "checkpoints": ["train"],
    }.items():  # fmt: skip
        run = shutil.copytree(source / "run", tmp_path / name)
        shutil.rmtree(run / name)
        (run / name).write_text("a file", "utf-8")
        capfd.readouterr()
        assert main([*words, str(run)]) == 1
        error = capfd.readouterr().err
        assert error.startswith("lstm-jax: error: ") and error.count("\n") == 1, error
        assert name in error


def test_names_that_are_not_utf_8(source, tmp_path, monkeypatch, capfd):
    """A run in such a folder works; a config cannot name such a file."""
    monkeypatch.chdir(tmp_path)
    run = os.fsdecode(b"run\xff")
    shutil.copytree(source / "run", run)
    shutil.copy(source / "text.txt", os.fsdecode(b"t\xff.txt"))
    for words in (
        ["inspect", run],
        ["predict", run, os.fsdecode(b"t\xff.txt"), "--output", os.fsdecode(b"o\xff.csv")],
        ["compare", run, str(source / "run"), "--output", os.fsdecode(b"c\xff.png")],
        ["convert", run, os.fsdecode(b"c\xff.npz"), "--to", "torch"],
        ["train", run],
    ):
        assert main(words) == 0, (words, capfd.readouterr().err)
    capfd.readouterr()
    text = ["--data.text", os.fsdecode(b"t\xff.txt")]
    assert main(["train", str(source / "tiny.toml"), "--workdir", "new", *text]) == 1
    error = capfd.readouterr().err
    assert error.startswith("lstm-jax: error: ") and error.count("\n") == 1, error


def test_commands_work_without_any_output(source, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(source, tmp_path / "closed"))
    silent = [COMMANDS[name] for name in ("evaluate", "predict csv", "convert", "compare")]
    for words in (*silent, ["generate", "run"], ["--help"]):
        monkeypatch.setattr(sys, "stdout", None)
        monkeypatch.setattr(sys, "stderr", None)
        assert main(words) == 0, words
        for file in (sys.stdout, sys.stderr):
            file.close()
    assert pathlib.Path("p.csv").read_text("utf-8").startswith("line,")


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("output", ["full", "closed"])
def test_output_that_cannot_be_written_does_not_affect_a_run(output, source, tmp_path):
    """The run is the same as with an output, and can be resumed."""
    close = '"$@" >/dev/full' if output == "full" else '"$@" >&-'
    command = [sys.executable, "-m", "lstm_jax", "train", str(source / "tiny.toml")]
    done = subprocess.run(
        ["sh", "-c", close, "sh", *command, "--workdir", str(tmp_path / "run")],
        stderr=subprocess.PIPE, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode in (0, 1) and done.stderr.count("\n") == done.returncode, done.stderr
    assert output == "closed" or "standard output" in done.stderr
    assert main(["train", str(tmp_path / "run")]) == 0
    results = [folder / "results.json" for folder in (tmp_path / "run", source / "run")]
    assert results[0].read_bytes() == results[1].read_bytes()
