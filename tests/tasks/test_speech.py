"""Speech recognition: training on tones that encode letters, beams, plots, streams, errors."""

import json

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx

from lstm_jax.cli import main
from lstm_jax.errors import UserError
from lstm_jax.models import Compiled
from lstm_jax.tasks.ctc import error_rates
from lstm_jax.tasks.speech import Speech
from lstm_jax.tasks.speech_data import SpeechConfig, SpeechData
from lstm_jax.tasks.speech_features import Normalisation, spec_augment
from lstm_jax.tasks.speech_stream import SpeechStream
from lstm_jax.tasks.transcribing import (
    Search,
    beam_transcripts,
    greedy_transcripts,
    losses,
    nearest_transcripts,
    scores,
)
from lstm_jax.train import load_run

RATE = 8000
PITCH = {"a": 400, "b": 900, "c": 1600}
WORDS = ["ab", "ba", "cab", "bac"]


def said(text, rng, rate=RATE):
    """Letters as tones, separated by short pauses, with noise."""
    parts = []
    for letter in text:
        count = round(rate * rng.uniform(0.07, 0.1))
        time = np.arange(count) / rate
        tone = np.sin(2 * np.pi * PITCH.get(letter, 0) * rng.uniform(0.97, 1.03) * time)
        parts += [0.4 * tone * np.hanning(count), np.zeros(rate // 50)]
    samples = np.concatenate(parts)
    return samples + rng.normal(size=len(samples)) * 0.01


def write(folder, count=60):
    """Recordings of two words each, and the table of their transcripts."""
    rng = np.random.default_rng(0)
    lines = ["path,text,split"]
    for n in range(count):
        text = " ".join(rng.choice(WORDS, 2))
        rate = RATE if n % 3 else 2 * RATE
        name = f"{n}.{'wav' if n % 2 else 'flac'}"
        soundfile.write(folder / name, said(text, rng, rate), rate)
        split = ("validation", "test")[n % 2] if n < 12 else "train"
        lines.append(f"{name},{text},{split}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clips"))


DATA = {
    "sample_rate": RATE, "mel_bands": 16, "batch_size": 16, "buckets": 1, "frequency_width": 2,
    "normalization": "training",
}  # fmt: skip
MODEL = {
    "hidden_size": 24, "convolutions": 1, "conv_features": 24, "bidirectional": False,
    "dropout": 0.0, "beam_size": 4, "ngram_weight": 0.5,
}  # fmt: skip


def made(table, model=None, **data):
    return Speech(SpeechData(str(table), **DATA | data), SpeechConfig(**MODEL | (model or {})))


@pytest.fixture(scope="module")
def task(table):
    return made(table)


@pytest.fixture(scope="module")
def model(task):
    return Compiled(task.build(nnx.Rngs(0)))


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """A run whose model has learned the tone of each letter."""
    folder = tmp_path_factory.mktemp("run")
    workdir = folder / "run"
    sections = {"data": {"recordings": str(table), **DATA}, "model": MODEL}
    sections["optimizer"] = {"learning_rate": 1e-2, "warmup_steps": 10}
    sections["train"] = {
        "num_steps": 150,
        "log_every": 50,
        "eval_every": 75,
        "checkpoint_every": 75,
    }
    lines = ['task = "speech"']
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(x)}" for key, x in values.items())]
    (folder / "tones.toml").write_text("\n".join(lines))
    assert main(["train", str(folder / "tones.toml"), "--workdir", str(workdir)]) == 0
    return workdir


def test_batches(task):
    batches = task.batches(0)
    longest = max(len(each.samples) for each in task._recordings["train"])
    seen = []
    for n in range(9):  # an epoch: 48 recordings at three speeds
        batch = batches[n]
        assert batch["features"].shape[0] == 16 and batch["features"].dtype == np.float32
        assert batch["features"].shape[1] == task.data.frames(np.zeros(longest), 0.9)
        past = np.arange(batch["features"].shape[1]) >= batch["lengths"][:, None]
        assert (batch["features"][past] == 0).all()
        seen += [
            tuple(row[:size])
            for row, size in zip(batch["labels"], batch["label_lengths"], strict=True)
        ]
    expected = [tuple(labels) for labels in task._labels["train"]] * 3
    assert sorted(seen) == sorted(expected)


def test_normalisation():
    features = np.random.default_rng(0).normal(3, 2, (50, 4))
    found = Normalisation()(features)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-6)
    given = Normalisation(np.ones(4), np.full(4, 2.0))(features)
    np.testing.assert_allclose(given, (features - 1) / 2, rtol=1e-6)


def test_spec_augment():
    """Whole bands and time ranges are zero, no wider than allowed; all others are unchanged."""
    xs, lengths = np.ones((200, 40, 10), np.float32), np.full(200, 30)
    how = {"frequency_masks": 1, "frequency_width": 3, "time_masks": 1, "time_width": 0.2}
    found = np.asarray(spec_augment(jax.random.key(0), xs, lengths, **how))
    bands, frames = (found == 0).all(1).sum(1), (found == 0).all(2)
    assert set(bands.tolist()) == {0, 1, 2, 3}
    assert set(frames.sum(1).tolist()) == {0, 1, 2, 3, 4, 5, 6}
    assert not frames[:, 30:].any()
    assert ((found == 0) == ((found == 0).all(1)[:, None] | frames[..., None])).all()
    none = spec_augment(
        jax.random.key(0), xs, lengths, **how | {"frequency_masks": 0, "time_masks": 0}
    )
    np.testing.assert_array_equal(none, xs)


def test_batches_of_recordings_equal_separate_recordings(task, model):
    """Scores, losses and transcripts do not depend on other recordings of the batch."""
    features = task._features(task._recordings["validation"])
    together = scores(model, features, 2)
    labels = task._labels["validation"]
    alone = [scores(model, [each], 2)[0] for each in features]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    expected = [losses([each], [mine])[0] for each, mine in zip(alone, labels, strict=True)]
    np.testing.assert_allclose(losses(together, labels), expected, rtol=1e-5)


def test_transcripts_of_logits():
    def certain(classes):
        return np.eye(4, dtype=np.float32)[classes] * 20

    logits = [certain([1, 1, 0, 1, 2]), certain([3, 3])]
    assert greedy_transcripts(logits, "abc") == ["aab", "c"]
    assert beam_transcripts(logits, "abc", Search(4, None, ())) == ["aab", "c"]


def test_nearest_recording():
    known = [np.full((9, 2), value) for value in (0.0, 1.0)]
    assert nearest_transcripts(known, ["low", "high"], [np.full((5, 2), 0.8)]) == ["high"]


def test_it_learns(run, table):
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["CER"] < 10
    assert results["test"]["beam WER"] <= results["test"]["WER"] + 10
    assert any("train: 48 recordings" in note for note in results["notes"])
    assert {path.name for path in (run / "plots").iterdir()} >= {"spikes_0.png", "loss.png"}


def test_predict(run, table, tmp_path, capsys):
    rng = np.random.default_rng(5)
    files = [tmp_path / "new.wav", tmp_path / "loud.flac"]
    soundfile.write(files[0], said("cab ba", rng), RATE)
    soundfile.write(files[1], np.clip(4 * said("ab ab", rng), -1, 1), RATE)
    output, plot = tmp_path / "a.csv", tmp_path / "a.png"
    assert main(["predict", str(run), *map(str, files), "--output", str(output)]) == 0
    rows = [line.split(",") for line in output.read_text().splitlines()]
    assert rows[0] == ["file", "transcript", "greedy", "remark"]
    assert rows[1] == [str(files[0]), "cab ba", rows[1][2], ""]
    assert error_rates(["cab ba"], [rows[1][2]])["CER"] < 40
    assert rows[2][3].startswith("clipped: ")
    capsys.readouterr()
    assert main(["predict", str(run), str(files[0]), "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "a.mp3").write_bytes(b"")
    assert main(["predict", str(run), str(tmp_path / "a.mp3")]) == 1
    assert "a.mp3: expected a .wav, .flac or .sph file, got .mp3" in capsys.readouterr().err
    assert main(["predict", str(run), *map(str, files), "--plot", str(plot)]) == 1
    assert "--plot: expected a file to predict on" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_export(run, format, capsys):
    """The exported model has the run's metrics."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--format", format]) == 0
    manifest = json.loads((run / f"export/{format}-float32/manifest.json").read_text())
    results = json.loads((run / "results.json").read_text())
    assert manifest["metrics"]["test"]["CER"] == results["test"]["CER"]
    assert manifest["characters"] == " abc" and manifest["hop"] == 80


def test_inspect(run, capsys):
    assert main(["inspect", str(run)]) == 0


def test_without_its_training_data(run, table, tmp_path):
    """Predictions do not change after the data are removed."""
    known = json.loads(json.dumps(load_run(run).task.known))
    assert known["characters"] == " abc" and len(known["transcripts"]) == 48


@pytest.mark.parametrize("size", [50, 777, 10**6])
def test_a_stream(run, size):
    """Reading chunk by chunk gives the text of the whole recording."""
    loaded = load_run(run)
    rng = np.random.default_rng(7)
    for text in ("cab ba bac ab", "b", ""):
        samples = said(text, rng).astype(np.float32) if text else np.zeros(50, np.float32)
        whole = np.asarray(samples)
        (features,) = loaded.task.data.log_mels([whole])
        logits = scores(loaded.model, [loaded.task.normalised(features)], 2)
        (expected,) = greedy_transcripts(logits, " abc")
        stream = SpeechStream(loaded.task, loaded.model)
        parts = [stream.feed(whole[n : n + size]) for n in range(0, len(whole), size)]
        assert "".join(parts) + stream.finish() == expected
        assert len(expected) >= len(text) / 2


def failing(table, tmp_path, change=lambda text: text, model=None, **data):
    """The error message for a changed table of the same recordings."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in table.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "table.csv").write_text(change(table.read_text()))
    with pytest.raises(UserError) as caught:
        made(folder / "table.csv", model, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_characters_outside_the_alphabet(table, tmp_path):
    def change(text):
        lines = text.splitlines()
        lines[2] = "1.wav,abé ab,test"
        return "\n".join(lines)

    found = failing(table, tmp_path, change)
    expected = (
        "test split: 1.wav: expected characters of the training transcripts (' abc'), got 'é'"
    )
    assert expected in found


def test_a_transcript_that_is_too_long(table, tmp_path):
    def change(text):
        lines = text.splitlines()
        lines[20] = f"19.wav,{'ab' * 100},train"
        return "\n".join(lines)

    expected = "19.wav: expected at least 200 steps of 2 frames for its transcript, got "
    assert expected in failing(table, tmp_path, change)


def test_impossible_options():
    with pytest.raises(UserError, match="kernel_size: expected at least stride = 8, got 5"):
        SpeechConfig(stride=8)


def test_a_batch_larger_than_the_data(table):
    with pytest.raises(UserError, match="at most the 144 training recordings"):
        made(table, batch_size=200)
