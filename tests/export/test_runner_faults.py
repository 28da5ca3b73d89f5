"""Damaged exports and invalid inputs: one-line errors, and no partial files."""

import io
import json
import pathlib
import shutil
import subprocess
import sys
import zipfile
from unittest.mock import Mock

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.export import ExportedModel, export_onnx, export_stablehlo, runner, writing
from lstm_jax.models import Classifier, LanguageModel, SegmentForecaster

FORMATS = ["stablehlo", pytest.param("onnx", marks=pytest.mark.peers)]
MODELS = {
    "classifier": Classifier(3, 5, 4, rngs=nnx.Rngs(0)),
    "language": LanguageModel(10, 3, 4, rngs=nnx.Rngs(0)),
    "forecaster": SegmentForecaster(2, segment=4, horizon=3, hidden_features=4, rngs=nnx.Rngs(0)),
}
METADATA = {
    "classifier": {"scaling": {"xs": {"mean": [1.0, 2.0, 3.0], "deviation": [2.0, 1.0, 0.5]}}},
    "language": {"vocabulary": "abcdefghij", "opening": "a"},
    "forecaster": {},
}
GOOD = {
    "classifier": {"xs": np.ones((2, 4, 3), np.float32), "lengths": np.array([4, 2])},
    "language": {"tokens": np.ones((2, 4), np.int32)},
    "forecaster": {"past": np.ones((2, 8, 2)), "level": np.ones((2, 2))},
}


@pytest.fixture(scope="module", params=FORMATS)
def folders(request, tmp_path_factory):
    """An export of each model in one format; tests change copies."""
    if request.param == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    export = {"stablehlo": export_stablehlo, "onnx": export_onnx}[request.param]
    made = {}
    for name, model in MODELS.items():
        made[name] = tmp_path_factory.mktemp(f"{name}-{request.param}")
        export(model, made[name], metadata=METADATA[name])
    return made


@pytest.fixture
def command(monkeypatch, capsys):
    """Calls run.py of a folder in this process; returns its status and its error line."""

    def call(folder, *words) -> tuple[int, str]:
        monkeypatch.setattr(runner, "__file__", str(folder / "run.py"))
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
        status = runner.main()
        error = capsys.readouterr().err
        if status:
            assert error.startswith("run.py: error: ") and error.count("\n") == 1, error
            assert error[:-1].isprintable()
        return status, error

    return call


# ---- the export's own files ----


def test_every_file_of_an_export_has_a_digest(folders):
    for folder in folders.values():
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        names = {path.name for path in folder.iterdir()} - {"manifest.json"}
        assert set(manifest["files"]) == names and "run.py" in names


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    place = 2 * len(content) // 3
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


CHANGES = {
    "half": halved, "empty": lambda content: b"", "a bit": flipped, "longer": lambda c: c + b"\n",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_has_changed_is_named(folders, change, command, tmp_path):
    folder = shutil.copytree(folders["language"], tmp_path / "export")
    names = sorted(path.name for path in folder.iterdir())
    for name in set(names) - {"manifest.json"}:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(CHANGES[change](whole))
        status, error = command(folder, "generate", "--length", "1")
        assert status == 1 and f"{name}: has changed since the export" in error
        (folder / name).write_bytes(whole)
    (folder / "carry.npz").unlink()
    status, error = command(folder, "generate", "--length", "1")
    assert status == 1 and "carry.npz: cannot be read (No such file or directory)" in error


MANIFESTS = {
    "half": halved,
    "empty": lambda content: b"",
    "not UTF-8": lambda content: b"\xff" + content,
    "a list": lambda content: b"[]",
    "a number": lambda content: b"5",
    "deep": lambda content: b"[" * 100_000,
    "long": lambda content: b'{"sha256": ' + b"9" * 5000 + b"}",
    "another number": lambda content: content.replace(b'"b"', b'"b, t"').replace(b"1.0", b"1.5"),
    "no digest": lambda content: content.replace(b'"sha256"', b'"sha"'),
}


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_manifest_that_has_changed_is_rejected(folders, change, command, tmp_path):
    folder = shutil.copytree(folders["classifier"], tmp_path / "export")
    content = (folder / "manifest.json").read_bytes()
    changed = MANIFESTS[change](content)
    assert changed != content
    (folder / "manifest.json").write_bytes(changed)
    np.savez(tmp_path / "in.npz", **GOOD["classifier"])
    status, error = command(folder, "apply", tmp_path / "in.npz", tmp_path / "out.npz")
    assert status == 1 and "manifest.json: " in error


@pytest.mark.parametrize(
    "change",
    [
        {"format": "pickle"},
        {"format": None},
        {"programs": ["../sequence"]},
        {"programs": 5},
        {"files": {"../../etc/passwd": "0"}},
        {"files": {}},
        {"files": []},
    ],
    ids=str,
)
def test_a_manifest_with_its_own_digest_reads_no_other_files(folders, change, command, tmp_path):
    """The manifest could have been written by someone else."""
    folder = shutil.copytree(folders["language"], tmp_path / "export")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    if change.get("files"):
        change = {"files": manifest["files"] | dict(change["files"])}
    writing.write_manifest(folder, manifest | change)
    status, error = command(folder, "generate", "--length", "1")
    assert status == 1 and "manifest.json: " in error


def test_files_with_the_right_digest_but_wrong_content(folders, command, tmp_path):
    folder = shutil.copytree(folders["language"], tmp_path / "export")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    program = next(folder.glob("sequence.*"))
    program.write_bytes(b"something else")
    manifest["files"][program.name] = runner.hashlib.sha256(b"something else").hexdigest()
    writing.write_manifest(folder, manifest)
    status, error = command(folder, "generate", "--length", "1")
    assert status == 1 and f"{folder}: the model cannot be loaded: " in error


# ---- inputs ----


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members_of:
        for name, content in members.items():
            members_of.writestr(f"{name}.npy", content)
    return file.getvalue()


def saved(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


FILES = {
    "empty": b"",
    "half": halved(saved(tokens=np.ones((2, 4), np.int32))),
    "text": b"tokens\n1\n2\n",
    "an array": npy(np.ones((2, 4), np.int32)),
    "half an array": archive(tokens=npy(np.ones((2, 400), np.int32))[:200]),
    "an empty array file": archive(tokens=b""),
    "a pickle": saved(tokens=np.array([{}], object)),
    "a huge array": archive(tokens=npy(np.ones(1, np.int32)).replace(b"(1,)", b"(9" + b"9" * 14)),
}


@pytest.mark.parametrize("name", FILES)
def test_input_file_that_is_not_an_archive(folders, name, command, tmp_path):
    (tmp_path / "in.npz").write_bytes(FILES[name])
    (tmp_path / "out.npz").write_bytes(b"as before")
    status, error = command(folders["language"], "apply", tmp_path / "in.npz", tmp_path / "out.npz")
    assert status == 1 and "in.npz: expected a .npz file of numbers (" in error
    assert (tmp_path / "out.npz").read_bytes() == b"as before"


XS, LENGTHS = GOOD["classifier"]["xs"], GOOD["classifier"]["lengths"]
NAN, HUGE = XS.copy(), XS.astype(np.float64)
NAN[1, 2, 0], HUGE[0, 1, 2] = np.nan, 1e39
INPUTS = {
    "no array": ("language", {}, "the model's inputs are tokens, got nothing"),
    "another name": ("language", {"token": XS}, "the model's inputs are tokens, got token"),
    "rank": ("language", {"tokens": [1, 2]}, "tokens: expected shape [b, t], "),
    "a number": ("language", {"tokens": 3}, "tokens: expected shape [b, t], "),
    "no rows": ("language", {"tokens": np.ones((0, 4), int)}, "tokens: expected shape [b, t], "),
    "no steps": ("language", {"tokens": np.ones((2, 0), int)}, "tokens: expected shape [b, t], "),
    "floats": ("language", {"tokens": np.ones((2, 4))}, "tokens: expected numbers of type int32, "),
    "strings": ("language", {"tokens": [["a"]]}, "tokens: expected numbers of type int32, got <U1"),
    "booleans": ("language", {"tokens": [[True]]}, "tokens: expected numbers of type int32, "),
    "a token too large": ("language", {"tokens": [[3, 10]]}, "tokens[0, 1]: expected an integer "),
    "a negative token": ("language", {"tokens": [[-1]]}, "from 0 to 9, got -1"),
    "a token of 2**40": ("language", {"tokens": [[2**40]]}, "from 0 to 9, got 1099511627776"),
    "features": (
        "classifier", {"xs": XS[..., :2], "lengths": LENGTHS}, "xs: expected shape [b, t, 3], ",
    ),
    "rows that differ": (
        "classifier", {"xs": XS, "lengths": LENGTHS[:1]}, "lengths: expected shape [b], ",
    ),
    "too long": ("classifier", {"xs": XS, "lengths": [4, 5]}, "lengths[1]: expected an integer "),
    "NaN": ("classifier", {"xs": NAN, "lengths": LENGTHS}, "xs[1, 2, 0]: expected a finite "),
    "1e39": ("classifier", {"xs": HUGE, "lengths": LENGTHS}, "xs[0, 1, 2]: expected a finite "),
    "complex": ("classifier", {"xs": 1j * XS, "lengths": LENGTHS}, "xs: expected numbers of type "),
    "dates": (
        "classifier", {"xs": XS.astype("M8[s]"), "lengths": LENGTHS}, "xs: expected numbers of ",
    ),
    "a segment cut": (
        "forecaster", {"past": np.ones((2, 7, 2)), "level": np.ones((2, 2))}, "past: expected sh",
    ),
    "overflow": (
        "forecaster",
        {"past": np.full((1, 8, 2), 3e38), "level": np.full((1, 2), -3e38)},
        "forecast[0, 0, 0]: expected a finite output, got ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_do_not_fit(folders, name, command, tmp_path):
    model, inputs, words = INPUTS[name]
    if name == "overflow" and list(folders[model].glob("*.onnx")):
        pytest.skip("onnxruntime's Relu returns 0 for NaN")
    np.savez(tmp_path / "in.npz", **inputs)
    status, error = command(folders[model], "apply", tmp_path / "in.npz", tmp_path / "out.npz")
    assert status == 1 and words in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz"]


def test_good_inputs_of_other_types_give_the_same_outputs(folders, command, tmp_path):
    given = {
        "whole": GOOD["classifier"],
        "wide": {"xs": XS.astype(np.float64), "lengths": LENGTHS.astype(np.uint8)},
        "integers": {"xs": XS.astype(np.int8), "lengths": LENGTHS.astype(np.int16)},
        "big-endian": {"xs": XS.astype(">f4"), "lengths": LENGTHS.astype(">i8")},
    }
    outputs = []
    for inputs in given.values():
        np.savez(tmp_path / "in.npz", **inputs)
        apply = ("apply", tmp_path / "in.npz", tmp_path / "out.npz")
        assert command(folders["classifier"], *apply)[0] == 0
        with np.load(tmp_path / "out.npz") as file:
            outputs.append(file["logits"])
    assert outputs[0].shape == (2, 5) and np.ptp(outputs[0]) > 0
    for other in outputs[1:]:
        np.testing.assert_array_equal(other, outputs[0])


def test_narrow_inputs_and_a_wrong_carry_in_python(folders):
    model = ExportedModel(folders["classifier"])
    carry = model.initial_carry(2)
    wide = model(carry, xs=XS, lengths=LENGTHS)[1]["logits"]
    narrow = model(carry, xs=jnp.asarray(XS, jnp.bfloat16), lengths=LENGTHS)[1]["logits"]
    np.testing.assert_array_equal(narrow, wide)  # ones are the same in both
    for wrong in ({}, carry | {"pooled": np.ones((2, 5))}):
        with pytest.raises(ValueError, match=r"^the model's carry has the shapes \{"):
            model(wrong, xs=XS, lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"^xs: expected an array, got ValueError: "):
        model(carry, xs=[[[1.0]], [[1.0, 2.0]]], lengths=LENGTHS)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("missing/out.npz", "out.npz: cannot be written (No such file or directory)"),
        ("in.npz/out.npz", "out.npz: cannot be written (Not a directory)"),
        ("folder.npz", "folder.npz: cannot be written (Is a directory)"),
        ("out.csv", "out.csv: expected a name that ends in .npz"),
        ("n" * 300 + ".npz", "cannot be written (File name too long)"),
    ],
)
def test_outputs_that_cannot_be_written(folders, target, words, command, tmp_path):
    np.savez(tmp_path / "in.npz", **GOOD["language"])
    (tmp_path / "folder.npz").mkdir()
    status, error = command(folders["language"], "apply", tmp_path / "in.npz", tmp_path / target)
    assert status == 1 and words in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.npz", "in.npz"]


@pytest.mark.parametrize(
    "words", ["--seed ١", "--seed 1_0", "--length 1e3", "--temperature 1_0", "--temperature nan"]
)
def test_numbers_need_ascii_digits(folders, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "generate", *words.split()])
    with pytest.raises(SystemExit) as ended:
        runner.main()
    assert ended.value.code == 2 and words.split()[0] in capsys.readouterr().err


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_closed_or_full_standard_output(folders):
    command = [sys.executable, folders["language"] / "run.py", "generate", "--length", "3"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "run.py: error: the text cannot be written (No space left on device)" in done.stderr
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True
    )
    assert closed.returncode == 1
    assert closed.stderr == "run.py: error: generate: the standard output is closed\n"


def test_an_output_can_have_any_name(tmp_path):
    runner.write_arrays(tmp_path / "out.npz", {"file": [1.5], "x": jnp.ones(2)})
    with np.load(tmp_path / "out.npz") as found:
        assert found["file"].tolist() == [1.5] and found["x"].tolist() == [1, 1]


# ---- writing an export ----


def test_an_export_is_replaced_only_once_the_new_one_is_complete(folders, tmp_path, monkeypatch):
    name = json.loads((folders["language"] / "manifest.json").read_text("utf-8"))["format"]
    export = {"stablehlo": export_stablehlo, "onnx": export_onnx}[name]
    folder = shutil.copytree(folders["language"], tmp_path / "export")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    for place in ("write_rest", "write_manifest"):
        with monkeypatch.context() as patch:
            patch.setattr(writing, place, full)
            with pytest.raises(writing.UserError) as caught:
                export(MODELS["classifier"], folder)
        assert str(caught.value) == f"{folder}: cannot be written: No space left on device"
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for failure in (OSError(28, "No space left on device"), ValueError("no translation")):
        with monkeypatch.context() as patch:
            patch.setattr(writing, "write_rest", Mock(side_effect=failure))
            with pytest.raises((writing.UserError, ValueError)):
                export(MODELS["classifier"], tmp_path / "new" / "export")
        assert not (tmp_path / "new").exists()
    (folder / ".part-killed").mkdir()
    export(MODELS["classifier"], folder)
    assert list(ExportedModel(folder).metadata["inputs"]) == ["xs", "lengths"]
    assert not list(folder.glob(".part*")) and not list(folder.glob("*.part"))
