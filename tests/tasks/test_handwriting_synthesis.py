"""Handwriting synthesis, on words of four letters."""

import json
import pathlib
import re
import xml.etree.ElementTree as ET

import jax
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from lstm_jax.cli import main
from lstm_jax.data.ink import Ink
from lstm_jax.errors import UserError
from lstm_jax.export.runner import Model as ExportedModel
from lstm_jax.models import Compiled
from lstm_jax.models.handwriting_synthesis import mixture_of, move_losses
from lstm_jax.tasks.handwriting_synthesis import SynthesisTask
from lstm_jax.tasks.handwriting_synthesis_data import SynthesisConfig, SynthesisData, thinned
from lstm_jax.tasks.synthesis_plots import baseline, laid_out
from lstm_jax.tasks.synthesis_scores import gaussian_mixture, linear_autoregression
from lstm_jax.tasks.trails import Trail, padded_trails, strokes_from, trail_of
from lstm_jax.train import load_run
from tests.ink import write_ink
from tests.runs import trained

# Sums of a few dozen terms of size one in float32 (eps 1.2e-7), through thirty steps.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def ink(tmp_path_factory):
    return write_ink(tmp_path_factory.mktemp("ink") / "words.csv")


def synthesis(ink, **data) -> SynthesisTask:
    data = {"ink": str(ink), "every": 1, "batch_size": 8} | data
    model = {"hidden_size": 8, "num_layers": 1, "mixture_components": 3}
    return SynthesisTask(SynthesisData(**data), SynthesisConfig(**model))


def test_strokes_and_moves_are_equivalent():
    strokes = [np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[3.0, 3.0]]), np.ones((2, 2))]
    trail = trail_of(strokes)
    assert trail.kinds.tolist() == [0, 1, 1, 0, 2]
    for one, other in zip(strokes_from(*trail), strokes, strict=True):
        np.testing.assert_allclose(one, other)
    batch = padded_trails([trail], 6)
    assert batch["moves"][0, :, 2].tolist() == [0, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(batch["moves"][0, 1:4, :2], trail.moves[:3])
    np.testing.assert_array_equal(batch["targets"][0, :4], trail.moves)
    assert batch["kinds"][0, :4].tolist() == [1, 1, 0, 2] and batch["mask"].sum() == 4


def test_thinned_strokes_preserve_their_ends():
    stroke = np.stack([np.arange(8.0), np.arange(8.0) ** 2], 1)
    ((kept,),) = thinned([Ink("", (stroke + 0.5,))], 3)
    assert (kept[:, 0] - 0.5).tolist() == [0, 3, 6, 7]
    ((noisy,),) = thinned([Ink("", (stroke,))], 3)  # rounded coordinates get a random part
    difference = abs(noisy[:, 0] - [0, 3, 6, 7])
    assert (difference > 0).all() and (difference <= 0.5).all()


def test_batches_are_moves_of_pieces_with_their_text(ink):
    task = synthesis(ink, slant=0.0, scale=0.0)
    trails = task._trails("train")
    batch = task.batches(0)[0]
    for row in range(8):
        count = int(batch["mask"][row].sum())
        text = batch["text"][row]
        assert any(
            len(trail.moves) == count
            and np.allclose(trail.moves, batch["targets"][row, :count], atol=1e-5)
            and np.array_equal(labels, text[text > 0])
            for trail, labels in zip(trails, task._labels["train"], strict=True)
        )
    moves = np.concatenate([trail.moves for trail in trails])
    assert np.square(moves).mean() == pytest.approx(1, rel=1e-4)


def test_a_loss_is_the_mean_over_all_moves(ink):
    task = synthesis(ink)
    model = Compiled(task.build(nnx.Rngs(0)))
    losses = []
    for trail, labels in zip(task._trails("test"), task._labels["test"], strict=True):
        batch = padded_trails([trail], 64)
        text = np.zeros((1, 5), np.int32)
        text[0, : len(labels)] = labels
        _, out = model(model.initial_carry(1), moves=batch["moves"], text=text)
        of_steps = move_losses(mixture_of(out), batch["targets"], batch["kinds"])
        losses += np.asarray(of_steps)[0, : len(trail.moves)].tolist()
    found = task.evaluate(model, "test")
    assert found == {"loss": pytest.approx(np.mean(losses), rel=TOLERANCE)}


def walks(seed, pieces=40) -> list[Trail]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(pieces):
        moves = [0.5 * rng.normal(size=2)]
        for _ in range(30):
            moves.append(0.8 * moves[-1] + 0.5 * rng.normal(size=2))
        kinds = np.append(np.zeros(31, np.int32), 2).astype(np.int32)
        found.append(Trail(np.array(moves, np.float32), kinds))
    return found


def test_simple_models_reach_their_theoretical_losses():
    """For a linear process: that of its noise, and that of its stationary distribution."""
    train, test = walks(0), walks(1)
    pen = scipy.stats.entropy([30 / 31, 1 / 31])
    noise = 2 * (np.log(2 * np.pi * np.e) / 2 + np.log(0.5))
    assert linear_autoregression(train, test, order=2) == pytest.approx(noise + pen, abs=0.1)
    deviation = 0.5 / np.sqrt(1 - 0.8**2)
    stationary = 2 * (np.log(2 * np.pi * np.e) / 2 + np.log(deviation))
    assert gaussian_mixture(train, test, 2) == pytest.approx(stationary + pen, abs=0.15)


@pytest.fixture(scope="module")
def run(ink, tmp_path_factory):
    return trained(
        tmp_path_factory.mktemp("runs"),
        f'task = "handwriting_synthesis"\n[data]\nink = "{ink}"\nevery = 1\nbatch_size = 16\n'
        "[model]\nhidden_size = 16\nnum_layers = 1\nwindow_components = 3\n"
        "mixture_components = 3\ndropout = 0.0\n[optimizer]\nlearning_rate = 1e-2\n"
        "warmup_steps = 10\n[train]\nnum_steps = 100\nlog_every = 10\neval_every = 100\n"
        "sample_length = 40\n",
    )


def test_a_run_learns_and_plots(run):
    results = json.loads((run / "results.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (line["train/loss"] for line in lines if "train/loss" in line)
    baselines = load_run(run).task.baselines("test")
    assert last < first - 0.5
    assert results["test"]["loss"] < baselines["mixture of 20 Gaussians"]["loss"]
    for name in ("biases.svg", "styles.svg"):
        ET.parse(run / "plots" / name)
    assert (run / "plots" / "window.png").read_bytes().startswith(b"\x89PNG")
    ET.parse(run / "samples" / "handwriting.svg")


def test_generate_writes_a_text_word_by_word(run, ink, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--text", "oil viol", "--bias", "0.7", "--length", "40", "--output", "page.svg"]
    assert main(["generate", str(run), *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out == "oil viol\nwrote page.svg\n"
    one = (tmp_path / "page.svg").read_text()
    ET.fromstring(one)
    assert main(["generate", str(run), *words]) == 0
    assert (tmp_path / "page.svg").read_text() == one
    assert main(["generate", str(run), *words, "--style", str(ink)]) == 0
    assert (tmp_path / "page.svg").read_text() != one


def test_a_primer_is_read_before_the_text(run, ink):
    """A model that has read a piece continues from it, given the text of both."""
    loaded = load_run(run)
    task, model = loaded.task, loaded.model
    style = task._inks["test"][0]
    (plain,) = task.written(model, ["oil"], bias=20.0, temperature=0.0, longest=30)
    (primed,) = task.written(model, ["oil"], bias=20.0, temperature=0.0, longest=30, style=style)
    assert np.concatenate(plain).shape[1] == np.concatenate(primed).shape[1] == 2
    assert plain[0][0].tolist() == primed[0][0].tolist() == [0, 0]


def test_words_are_placed_on_lines():
    low = [np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]]) + 5]
    assert baseline(low) == 5.0
    placed = laid_out([low, low])
    np.testing.assert_allclose(placed[0][:, 0], [0, 1, 2])
    np.testing.assert_allclose(placed[1][:, 0], [4, 5, 6])
    assert placed[0][:, 1].tolist() == [1, 0, 1]
    many = laid_out([low] * 20)
    assert many[-1][:, 1].min() == -8.0


def test_a_reader_reads_the_generated_words(run, ink, tmp_path):
    """Uses the function shown in the documentation."""
    page = (pathlib.Path(__file__).parents[2] / "docs" / "handwriting.md").read_text("utf-8")
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    reader = trained(
        tmp_path,
        f'task = "handwriting"\n[data]\nink = "{ink}"\nbatch_size = 16\nspacing = 0.6\n[model]\n'
        "hidden_size = 4\nconv_features = 4\n[train]\nnum_steps = 2\n",
    )
    assert names["legibility"](run, reader, ["oil", "vivo"]) > 0


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_an_exported_model_streams(run, format, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--format", format]) == 0
    assert capsys.readouterr().err == ""
    exported, model = ExportedModel(run / "export" / f"{format}-float32"), load_run(run).model
    moves = np.asarray(jax.random.normal(jax.random.key(0), (1, 5, 3)))
    text = np.array([[1, 2, 3, 0]], np.int32)
    _, expected = model(model.initial_carry(1), moves=moves, text=text)
    carry, parts = exported.initial_carry(1), []
    for n in range(5):
        carry, outputs = exported(carry, moves=moves[:, n : n + 1], text=text)
        parts.append(outputs["mixture"])
    np.testing.assert_allclose(np.concatenate(parts, 1), expected["mixture"], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--text", "zoo"), "--text: expected letters of ilov, got 'z'"),
        (("--text", " "), "--text: expected words, got ' '"),
        (("--style", "none.csv"), "--style: none.csv: no such file or folder"),
        (("--style", "plain.csv"), "--style: plain.csv: expected ink with its text, got none"),
    ],
)
def test_mistakes_give_one_line(run, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.csv").write_text("x,y,pen\n1,2,1\n3,4,1\n")
    assert main(["generate", str(run), *words]) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_impossible_data_give_one_line(ink, tmp_path):
    with pytest.raises(UserError, match=r"data\.batch_size: expected at most the"):
        synthesis(ink, batch_size=1000)
    with pytest.raises(UserError, match=r"data\.ink: .*no such file"):
        synthesis(tmp_path / "none.csv")
