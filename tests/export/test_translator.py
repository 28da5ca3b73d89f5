"""Exported encoder-decoders: the same translations and scores, without the library."""

import json
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from lstm_jax.data import Tokenizer
from lstm_jax.data.tokens import END
from lstm_jax.export.encoder_decoder import export_encoder_decoder
from lstm_jax.export.translator import Translator, largest
from lstm_jax.models import Compiled, Seq2Seq
from lstm_jax.tasks.translating import Search, searched, target_losses, translations
from tests.arrays import doubled

LINES = ["a dog runs", "two dogs", "a cat sees two dogs", "dogs see a cat run"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(LINES, kind="subwords", vocabulary_size=270)


@pytest.fixture(scope="module")
def model(tokenizer):
    module = Seq2Seq(len(tokenizer), 6, 7, rngs=nnx.Rngs(1))
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
def test_the_search_is_that_of_the_library(model, folder, tokenizer, search):
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

    def run(*words):
        # -P: the library beside the current folder is not found either
        blocked = (
            "import sys; sys.modules['lstm_jax'] = None; import runpy; sys.argv[0] = 'run.py'; "
        )
        code = blocked + f"runpy.run_path({str(folder / 'run.py')!r}, run_name='__main__')"
        command = [sys.executable, "-P", "-c", code, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(str(path))
    assert done.returncode == 0, done.stderr
    found = translations(model, tokenizer.encode(LINES), Search(3, 0.7, 0.0))
    expected = "".join(tokenizer.decode(beam[0].tokens) + "\n" for beam in found)
    assert done.stdout == expected
    empty = run("--text", " ")
    assert (empty.returncode, empty.stdout) == (1, "")
    assert empty.stderr == "run.py: error: sentence 1: expected 1 to 20 subwords, got none\n"


def test_weights_of_fewer_bits(model, tmp_path, tokenizer):
    source = tokenizer.encode(LINES)
    losses = target_losses(model, source, source)
    for dtype, tolerance in (("bfloat16", 0.02), ("int8", 0.03)):  # of weights of size about one
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
