"""Exported encoder-decoders: the same translations and scores, without the library."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from lstm_jax.data import Tokenizer
from lstm_jax.data.tokens import END
from lstm_jax.export import translator
from lstm_jax.export.encoder_decoder import export_encoder_decoder
from lstm_jax.export.translator import Translator, largest
from lstm_jax.export.writing import write_manifest
from lstm_jax.models import Compiled, Seq2Seq, TransformerSeq2Seq
from lstm_jax.tasks.translating import Search, searched, target_losses, translations
from tests.arrays import doubled

LINES = ["a dog runs", "two dogs", "a cat sees two dogs", "dogs see a cat run"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(LINES, kind="subwords", vocabulary_size=270)


KINDS = {
    "lstm": lambda tokens: Seq2Seq(tokens, 6, 7, rngs=nnx.Rngs(1)),
    "transformer": lambda tokens: TransformerSeq2Seq(tokens, 8, num_heads=2, rngs=nnx.Rngs(1)),
}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tokenizer):
    module = KINDS[request.param](len(tokenizer))
    return Compiled(doubled(module, 2.0, {("bias",): 1.0}))


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    metadata = {
        "tokenizer": tokenizer.to_json(), "max_tokens": 20,
        "search": {"beam": 3, "length_penalty": 0.7, "coverage_penalty": 0.0},
    }  # fmt: skip
    export_encoder_decoder(model, folder, metadata=metadata, platforms=("cpu",))
    return folder


@pytest.mark.parametrize("search", [Search(1), Search(3, 0.8, 0.0), Search(2, 1.0, 0.3)])
def test_the_search_equals_that_of_the_library(model, folder, tokenizer, search):
    rows = [np.append(row, END) for row in tokenizer.encode(LINES)]
    lengths = np.array([len(row) for row in rows], np.int32)
    source = np.zeros((4, 32), np.int32)
    for row, tokens in zip(source, rows, strict=True):
        row[: len(tokens)] = tokens
    expected, found = (
        searched(each, source, lengths, search) for each in (model, Translator(folder))
    )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.finished, expected.finished)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)


def test_losses_of_given_targets(model, folder, tokenizer):
    source = tokenizer.encode(LINES)
    losses = (target_losses(each, source, source[::-1]) for each in (model, Translator(folder)))
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_the_script_translates_without_the_library(model, folder, tokenizer, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{line}\n" for line in LINES))
    (tmp_path / "lstm_jax.py").write_text("raise ImportError('refused here')")

    def run(*words):
        command = [sys.executable, folder / "run.py", *words]
        where = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=where)

    done = run(str(path))
    assert done.returncode == 0, done.stderr
    found = translations(model, tokenizer.encode(LINES), Search(3, 0.7, 0.0))
    expected = "".join(tokenizer.decode(beam[0].tokens) + "\n" for beam in found)
    assert done.stdout == expected
    wrong = run("--text", " ")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "run.py: error: sentence 1: expected 1 to 20 subwords, got none\n"


def test_weights_with_fewer_bits(model, tmp_path, tokenizer):
    source = tokenizer.encode(LINES)
    losses = target_losses(model, source, source)
    for dtype, tolerance in (("bfloat16", 0.02), ("int8", 0.03)):  # for weights of size about one
        exported = export_encoder_decoder(
            model, tmp_path / dtype, dtype=dtype, metadata={}, platforms=("cpu",)
        )
        assert json.loads((tmp_path / dtype / "manifest.json").read_text())["dtype"] == dtype
        found = target_losses(exported, source, source)
        assert 0 < np.abs(found - losses).mean() < tolerance * np.abs(losses).max()


def test_the_largest_values():
    values = np.random.default_rng(0).normal(size=(3, 50))
    found, place = largest(values, 7)
    np.testing.assert_array_equal(found, -np.sort(-values)[:, :7])
    np.testing.assert_array_equal(np.take_along_axis(values, place, 1), found)


# ---- changed files, and inputs that do not fit ----


@pytest.fixture
def command(monkeypatch, capsysbinary):
    """Calls run.py of a folder in this process; returns its status and its error line."""

    def call(folder, *words) -> tuple[int, str]:
        monkeypatch.setattr(translator, "__file__", str(folder / "run.py"))
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
        status = translator.main()
        error = capsysbinary.readouterr().err.decode()
        if status:
            assert error.startswith("run.py: error: ") and error.count("\n") == 1, error
            assert error[:-1].isprintable()
        return status, error

    return call


def test_every_file_has_a_digest_which_is_checked(folder, command, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "export")
    digests = json.loads((folder / "manifest.json").read_text("utf-8"))["files"]
    names = {path.name for path in folder.iterdir()} - {"manifest.json", "__pycache__"}
    assert digests.keys() == names and {"run.py", "runner.py", "weights.npz"} < names
    for name in sorted(names):
        whole = (folder / name).read_bytes()
        assert digests[name] == hashlib.sha256(whole).hexdigest()
        for changed in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
            (copy / name).write_bytes(changed)
            status, error = command(copy, "--text", "a dog")
            assert status == 1 and f"{name}: has changed since the export" in error
        (copy / name).write_bytes(whole)
    (copy / "encode.jaxexport").unlink()
    status, error = command(copy, "--text", "a dog")
    assert status == 1 and "encode.jaxexport: cannot be read (No such file or directory)" in error


MANIFESTS = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a list": lambda content: b"[]",
    "another beam": lambda content: content.replace(b'"beam": 3', b'"beam": 4'),
    "no digest": lambda content: content.replace(b'"sha256"', b'"sha"'),
}


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_manifest_that_has_changed_is_rejected(folder, change, command, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "export")
    content = (copy / "manifest.json").read_bytes()
    changed = MANIFESTS[change](content)
    assert changed != content
    (copy / "manifest.json").write_bytes(changed)
    status, error = command(copy, "--text", "a dog")
    assert status == 1 and "manifest.json: " in error


@pytest.mark.parametrize(
    "change",
    [
        {"programs": ["../encode"]},
        {"programs": ["sequence"], "files": {}},
        {"files": {"../x": "0"}},
        {"format": "onnx"},
    ],
    ids=str,
)
def test_a_manifest_with_its_own_digest_reads_no_other_files(folder, change, command, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "export")
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    if change.get("files"):
        change = {"files": manifest["files"] | change["files"]}
    write_manifest(copy, manifest | change)
    status, error = command(copy, "--text", "a dog")
    assert status == 1 and "manifest.json: " in error


def test_invalid_weights_with_the_right_digest(folder, command, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "export")
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    for name in ("weights.npz", "step.jaxexport"):
        (copy / name).write_bytes(b"something else")
        manifest["files"][name] = hashlib.sha256(b"something else").hexdigest()
        write_manifest(copy, manifest)
        status, error = command(copy, "--text", "a dog")
        assert status == 1 and f"{copy}: the model cannot be loaded: " in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lines.txt: expected one sentence per line, got an empty file"),
        (b"\xef\xbb\xbf\n \n", "lines.txt: expected one sentence per line, got an empty file"),
        (b"a dog\n\n", "sentence 2: expected 1 to 20 subwords, got none"),
        (b"a dog\nd\xf6g\n", "lines.txt: expected UTF-8 text, got byte 0xf6 at position 7"),
        (b"dog " * 30, "sentence 1: expected 1 to 20 subwords, got 3"),
    ],
)
def test_files_of_sentences_that_do_not_fit(folder, content, words, command, tmp_path):
    (tmp_path / "lines.txt").write_bytes(content)
    status, error = command(folder, tmp_path / "lines.txt")
    assert status == 1 and words in error
    status, error = command(folder, tmp_path / "missing.txt")
    assert status == 1 and "missing.txt: cannot be read (No such file or directory)" in error


def test_line_ends_of_other_systems_and_invalid_bytes(folder, command, tmp_path, monkeypatch):
    path = tmp_path / "lines.txt"
    written = []
    for content in (b"a dog\ntwo dogs", b"\xef\xbb\xbfa dog\r\ntwo dogs\r\n"):
        path.write_bytes(content)
        output = io.TextIOWrapper(io.BytesIO())
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            assert command(folder, path)[0] == 0
        written.append(output.buffer.getvalue())
    assert written[0] == written[1] and written[0].count(b"\n") == 2
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        status, error = command(folder, path)
    assert (status, error) == (1, "run.py: error: the standard output is closed\n")
    lone, replaced = Translator(folder).translate(["a \udcff", "a \ufffd"])
    assert lone == replaced


def test_inputs_that_do_not_fit(folder):
    model = Translator(folder)
    size = model.metadata["inputs"]["tokens"]["range"][1]
    good, lengths = np.array([[4, 5, 3], [6, 3, 0]]), np.array([3, 2])
    for source, given, words in (
        (good.astype(float), lengths, r"source: expected numbers of type int32, got float64"),
        (good + 2**40, lengths, rf"source\[0, 0\]: expected an integer from 0 to {size}, got 1099"),
        (-good, lengths, r"source\[0, 0\]: expected an integer from 0 to"),
        (good[:, :0], lengths, r"source: expected shape \[b, s\], "),
        (good[:0], lengths[:0], r"source: expected shape \[b, s\], "),
        (good[0], lengths, r"source: expected shape \[b, s\], "),
        (good, lengths[:1], r"lengths: expected shape \[b\], "),
        (good, lengths + 1, r"lengths\[0\]: expected an integer from [01] to 3, got 4"),
    ):
        with pytest.raises(ValueError, match=f"^{words}"):
            model.encode(source=source, lengths=given)
    carry = model.encode(source=good, lengths=lengths)
    for tokens, words in (
        (
            [[size + 1], [2]],
            rf"tokens\[0, 0\]: expected an integer from 0 to {size}, got {size + 1}",
        ),
        ([[2], [-1]], r"tokens\[1, 0\]: expected an integer from 0 to"),
        (np.zeros((2, 0), int), r"tokens: expected shape \[b, t\], "),
        ([[2]], r"carry memory\.[\w.]+: expected shape \[b, s, "),
    ):
        with pytest.raises(ValueError, match=f"^{words}"):
            model(carry, tokens=tokens)
    with pytest.raises(ValueError, match=r"^the model's carry has the parts memory\."):
        model({}, tokens=[[2]])


def test_a_model_without_a_tokenizer(model, tmp_path):
    exported = export_encoder_decoder(model, tmp_path, metadata={}, platforms=("cpu",))
    with pytest.raises(ValueError, match=r"^this model does not translate text"):
        next(exported.translate(["a dog"]))
