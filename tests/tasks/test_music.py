"""Music, against loops in NumPy over frames and pitches."""

import jax
import numpy as np
import pytest
from flax import nnx

from lstm_jax.cli import main
from lstm_jax.data import midi_bytes, read_midi
from lstm_jax.errors import UserError
from lstm_jax.export.runner import Model as ExportedModel
from lstm_jax.models import Compiled, PianoRollModel
from lstm_jax.tasks import File
from lstm_jax.tasks.music import Music, MusicData, PianoRollConfig
from lstm_jax.tasks.piano_rolls import continued, frame_losses, summary
from lstm_jax.train import load_run
from tests.arrays import in_float64, params_of, with_params
from tests.runs import trained

# Sums of a few dozen terms of size one in float32 (eps 1.2e-7), through ten steps.
TOLERANCE = 1e-5


def model_of(conditioned: bool, features: int = 3):
    """A model whose parameters are large enough to matter, none of them zero."""
    model = PianoRollModel(5, conditioned=conditioned, interval_features=features, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32) / 3, params_of(model)
    )
    params["readout"]["bias"] = params["readout"]["bias"] - 2
    return Compiled(with_params(model, params))


def rolls(seed: int, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.random((length, 88)) < 0.1).astype(np.uint8) for length in lengths]


def network(params, roll, conditioned: bool) -> np.ndarray:
    """The logits of one piece in float64, pitch by pitch."""
    params = in_float64(params)
    (lstm,) = params["lstm"].values()
    h = c = np.zeros(5)
    before, logits = np.zeros(88), []
    for frame in roll:
        z = (before @ lstm["w_ih"] + h @ lstm["w_hh"] + lstm["b"]).reshape(4, -1)
        i, f, o = (1 / (1 + np.exp(-z[gate])) for gate in (0, 1, 3))
        c = f * c + i * np.tanh(z[2])
        h = o * np.tanh(c)
        scores = h @ params["readout"]["kernel"] + params["readout"]["bias"]
        for k in range(88):
            if "scores" in params:
                u = h @ params["context"]["kernel"] + params["context"]["bias"] + params["pitch"][k]
                for j in np.flatnonzero(before):
                    u = u + params["before"][j - k + 87]
                for j in np.flatnonzero(frame) if conditioned else ():
                    if j > k:
                        u = u + params["above"][j - k - 1]
                scores[k] += (u / (1 + np.exp(-u))) @ params["scores"][k]
        logits.append(scores)
        before = frame
    return np.array(logits)


@pytest.mark.parametrize(("conditioned", "features"), [(False, 0), (False, 3), (True, 3)])
def test_logits_equal_a_loop_over_frames_and_pitches(conditioned, features):
    model, (roll,) = model_of(conditioned, features), rolls(0, 6)
    _, outputs = model(model.initial_carry(1), frames=roll[None].astype(np.float32))
    expected = network(params_of(model.module), roll, conditioned)
    np.testing.assert_allclose(outputs["logits"][0], expected, rtol=0, atol=TOLERANCE)


def test_a_pitch_depends_only_on_previously_chosen_ones():
    model, (roll,) = model_of(conditioned=True), rolls(0, 4)
    frames = roll[None].astype(np.float32)
    first = model.initial_carry(1)
    one = model(first, frames=frames)[1]["logits"][0]
    frames[0, 2, 40] = 1 - frames[0, 2, 40]
    other = model(first, frames=frames)[1]["logits"][0]
    same = np.asarray(one == other)
    assert same[:2].all() and same[2, 40:].all()
    assert not same[2, :40].any() and not same[3].all()


@pytest.mark.parametrize("conditioned", [False, True])
def test_pieces_in_one_row_equal_separate_pieces(conditioned):
    """A row that is read in parts also gives the same results."""
    model, pieces = model_of(conditioned), rolls(0, 3, 5, 4)
    frames = np.concatenate(pieces)[None].astype(np.float32)
    start = np.zeros((1, 12), bool)
    start[0, [0, 3, 8]] = True
    carry, parts = model.initial_carry(1), []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):  # one part ends where a piece ends
        carry, outputs = model(carry, frames=frames[:, part], start=start[:, part])
        parts.append(outputs["logits"][0])
    alone = [
        model(model.initial_carry(1), frames=piece[None].astype(np.float32))[1]["logits"][0]
        for piece in pieces
    ]
    np.testing.assert_allclose(np.concatenate(parts), np.concatenate(alone), atol=TOLERANCE)


def test_losses_of_pieces_equal_those_of_each_separately():
    model, pieces = model_of(conditioned=True), rolls(0, *range(1, 19), 150)
    for losses, piece in zip(frame_losses(model, pieces), pieces, strict=True):
        logits = model(model.initial_carry(1), frames=piece[None].astype(np.float32))[1]["logits"]
        logits = np.asarray(logits[0], np.float64)
        expected = np.where(piece, np.logaddexp(0, -logits), np.logaddexp(0, logits)).sum(1)
        np.testing.assert_allclose(losses, expected, rtol=TOLERANCE)


def sampled(model, given, melody, length, temperature, seed):
    """The frames of :func:`continued`, by a loop that calls the model for every pitch."""
    carry, frames = model.initial_carry(1), []
    for frame in given:
        carry, _ = model(carry, frames=frame[None, None].astype(np.float32))
    for n in range(length):
        uniform = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), n), (88,))
        top = melody[n] if n < len(melody) else -1
        frame = np.zeros(88, np.float32)
        for place, pitch in enumerate(range(87, -1, -1)):
            logit = model(carry, frames=frame[None, None])[1]["logits"][0, 0, pitch]
            if 0 <= top <= pitch:
                frame[pitch] = pitch == top
            elif temperature:
                frame[pitch] = uniform[place] < 1 / (1 + np.exp(-logit / temperature))
            else:
                frame[pitch] = logit > 0
        carry, _ = model(carry, frames=frame[None, None])
        frames.append(frame)
    return np.array(frames)


@pytest.mark.parametrize("temperature", [1.5, 0.0])
def test_frames_are_chosen_pitch_by_pitch(temperature):
    model, (given,) = model_of(conditioned=True), rolls(3, 2)
    melody = np.array([50, -1])
    found = np.array([*continued(model, given, melody, 3, temperature, seed=4)])
    np.testing.assert_array_equal(found, sampled(model, given, melody, 3, temperature, 4))
    assert found[0].nonzero()[0].max() == 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few tunes as MIDI files: a scale in two voices, starting at different pitches."""
    folder = tmp_path_factory.mktemp("tunes")
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12])
    for n in range(12):
        roll = np.zeros((16, 88), np.uint8)
        for voice in (30 + n, 42 + n):
            roll[np.arange(16), voice + scale[np.arange(16) // 2]] = 1
        (folder / f"{n:02}.mid").write_bytes(midi_bytes(roll, 2, 90.0))
    return folder


def music(folder, model=None, **data) -> Music:
    data = {"pieces": str(folder), "frames_per_beat": 2, "lanes": 2, "window": 8} | data
    return Music(MusicData(**data), PianoRollConfig(**{"hidden_size": 6} | (model or {})))


def test_metrics_and_baselines_are_means_over_frames_and_pieces(folder):
    task = music(folder)
    train, test = ([piece.roll for piece in task._splits[name]] for name in ("train", "test"))
    for name, markov in (("independent pitches", False), ("each pitch a Markov chain", True)):
        losses = []
        for roll in test:
            losses.append([])
            for t, frame in enumerate(roll):
                p = []
                for pitch in range(88):
                    outcomes = [
                        piece[s, pitch]
                        for piece in train
                        for s in range(len(piece))
                        if not (markov and t) or (s and piece[s - 1, pitch] == roll[t - 1, pitch])
                    ]
                    p.append((sum(outcomes) + 0.5) / (len(outcomes) + 1))
                losses[-1].append(-np.log(np.where(frame, p, 1 - np.array(p))).sum())
        expected = {
            "loss": np.mean([x for piece in losses for x in piece[1:]]),
            "with_first_frame": np.mean([x for piece in losses for x in piece]),
            "by_piece": np.mean([np.mean(piece[1:]) for piece in losses]),
        }
        assert task.baselines("test")[name] == pytest.approx(expected)


def test_a_piece_of_one_frame_is_excluded_from_the_loss():
    losses = [np.array([7.0]), np.array([9.0, 1.0])]
    assert summary(losses) == {"loss": 1.0, "with_first_frame": 17 / 3, "by_piece": 1.0}


@pytest.mark.data
def test_baselines_of_public_sets_agree_with_the_literature(public_data):
    """The reference values were measured by other code."""
    public_data("poly_music/JSB_Chorales.mat")
    task = Music(MusicData(pieces="jsb"), PianoRollConfig(hidden_size=4))
    baselines = task.baselines("test")
    assert baselines["independent pitches"]["with_first_frame"] == pytest.approx(11.06, abs=0.02)
    assert baselines["each pitch a Markov chain"]["loss"] == pytest.approx(10.49, abs=0.02)


def test_impossible_options_give_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"model\.interval_features: expected at least 1, as"):
        music(folder, {"conditioned": True})
    with pytest.raises(UserError, match=r"data\.pieces: .*expected a folder with"):
        music(tmp_path)
    for n in range(3):
        (tmp_path / f"{n}.mid").write_bytes(midi_bytes(np.eye(1, 88, k=40), 2, 90.0))
    with pytest.raises(UserError, match="split: expected a piece of at least 2 frames, got 1"):
        music(tmp_path)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run whose model has learned the scales."""
    return trained(
        tmp_path_factory.mktemp("runs"),
        f'task = "music"\n[data]\npieces = "{folder}"\nframes_per_beat = 2\nlanes = 4\n'
        "window = 16\ntranspose = 2\n[model]\nhidden_size = 16\nconditioned = true\n"
        "interval_features = 4\ndropout = 0.0\n[optimizer]\nlearning_rate = 2e-2\n"
        "[train]\nnum_steps = 60\neval_every = 60\nsample_length = 4\n",
    )


def test_a_run_learns_and_writes_a_tune(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    printed = capsys.readouterr()
    assert "each pitch a Markov chain" in printed.out and "a sample of 4 frames" in printed.out
    assert (run / "plots" / "piano_roll.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (run / "samples").iterdir()} == {
        "tune.mid",
        "tune.png",
        "tune.wav",
    }


def test_generate_harmonises_a_soprano_and_writes_files(run, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soprano = folder / "03.mid"
    words = ["--soprano", str(soprano), "--length", "6", "--output", "mine", "--seed", "2"]
    assert main(["generate", str(run), *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.endswith("wrote mine.mid\nwrote mine.wav\nwrote mine.png\n")
    roll, melody = read_midi("mine.mid", 2), read_midi(soprano, 2)[:6]
    assert len(roll) == 6
    for frame, given in zip(roll, melody, strict=True):
        assert np.flatnonzero(frame).max() == np.flatnonzero(given).max()
    assert main(["generate", str(run), *words]) == 0
    assert capsys.readouterr().out == printed.out
    tops = [
        line.split()[0] for line in printed.out.split("\nwrote")[0].replace(" | ", "\n").split("\n")
    ]
    assert tops == ["F#4", "F#4", "G#4", "G#4", "A#4", "A#4"]


def test_a_tune_starts_with_its_prompt_and_is_streamed(folder):
    task = music(folder)
    model = Compiled(task.build(nnx.Rngs(0)))
    options = {"length": 3, "temperature": 1.0, "seed": 0}
    pieces = task.generate(model, prompt=str(folder / "00.mid"), **options)
    assert next(pieces) == "D#4 D#3"  # before any frame is sampled
    files = [piece for piece in pieces if isinstance(piece, File)]
    assert [file.name for file in files] == ["tune.mid", "tune.wav", "tune.png"]
    assert files[1].content.startswith(b"RIFF") and files[2].content.startswith(b"\x89PNG")
    assert [*task.generate(model, prompt="", **options | {"length": 0})] == []


def test_predict_reads_midi_files_and_folders(run, folder, capsys):
    assert main(["predict", str(run), str(folder / "00.mid")]) == 0
    assert "00.mid" in capsys.readouterr().out
    assert main(["predict", str(run), str(folder)]) == 0
    assert "11.mid" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_an_exported_model_streams(run, format, capsys):
    """Frame by frame, its outputs equal those of the run's model for the whole piece."""
    pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--format", format]) == 0
    assert capsys.readouterr().err == ""
    exported, (roll,) = ExportedModel(run / "export" / f"{format}-float32"), rolls(0, 5)
    frames, model = roll[None].astype(np.float32), load_run(run).model
    expected = model(model.initial_carry(1), frames=frames)[1]["logits"]
    carry, parts = exported.initial_carry(1), []
    for n in range(5):
        carry, outputs = exported(carry, frames=frames[:, n : n + 1])
        parts.append(outputs["logits"])
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=0, atol=TOLERANCE)
    _, outputs = exported(exported.initial_carry(1), frames=frames)
    np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=TOLERANCE)


def test_a_run_can_be_inspected(run):
    assert main(["inspect", str(run)]) == 0
    assert "sequence(s) of the validation split" in (run / "inspect.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("generate", "--prompt", "none.mid"), "--prompt: none.mid: no such file"),
        (("generate", "--soprano", "text.mid"), "--soprano: text.mid: not a MIDI file"),
        (("generate", "--output", "."), "--output: expected the path of a file"),
        (("predict", "text.mid"), "text.mid: not a MIDI file"),
    ],
)
def test_mistakes_give_one_line(run, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mid").write_text("la la la")
    assert main([words[0], str(run), *words[1:]]) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
