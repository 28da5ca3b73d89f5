"""Video forecasting: metrics against sums, custom files, and the commands on a run."""

import jax
import numpy as np
import pytest
from flax import nnx

from lstm_jax.cli import main
from lstm_jax.data import DIRECTIONS, Digits, moving_digits
from lstm_jax.errors import UserError
from lstm_jax.export.runner import Model as ExportedModel
from lstm_jax.models import Compiled
from lstm_jax.tasks.video import VideoForecasting
from lstm_jax.tasks.video_data import VideoConfig, VideoData
from lstm_jax.train import load_run
from tests.arrays import params_of
from tests.runs import trained

SIZES = {"observed": 3, "horizon": 2, "batch_size": 2}


def squares(count: int, frames: int = 6) -> np.ndarray:
    """A bright square that moves to the right, ``[N, T, 8, 12, 1]``."""
    videos = np.zeros((count, frames, 8, 12, 1), np.uint8)
    for n in range(count):
        for t in range(frames):
            column = (n + t) % 9
            videos[n, t, n % 5 : n % 5 + 3, column : column + 3] = 240
    return videos


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "squares.npz"
    np.savez(path, frames=squares(40))
    return path


def video(file, model=None, **data) -> VideoForecasting:
    data = {"videos": str(file), **SIZES} | data
    return VideoForecasting(VideoData(**data), VideoConfig(**{"hidden_size": 4} | (model or {})))


def test_metrics_are_sums_over_pixels_and_means_over_frames(file):
    task = video(file)
    model = Compiled(task.build(nnx.Rngs(0)))
    held_out = squares(40)[-4:, :5] / 255
    logits = np.asarray(
        model(model.initial_carry(4), frames=held_out[:, :3].astype(np.float32))[1]["logits"],
        np.float64,
    )
    p, truth = 1 / (1 + np.exp(-logits)), held_out[:, 3:]
    error = np.mean([((a - b) ** 2).sum() for a, b in zip(p[:, 0], truth[:, 0], strict=True)])
    error = (
        error + np.mean([((a - b) ** 2).sum() for a, b in zip(p[:, 1], truth[:, 1], strict=True)])
    ) / 2
    repeated = ((held_out[:, 2:3] - truth) ** 2).sum((2, 3, 4)).mean()
    metrics, baselines = task.evaluate(model, "test"), task.baselines("test")
    assert metrics["squared error"] == pytest.approx(error, rel=1e-5)
    assert metrics["relative"] == pytest.approx(error / repeated, rel=1e-5)
    loss = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert baselines["repeat the last frame"]["squared error"] == pytest.approx(repeated, rel=1e-6)
    black = (truth**2).sum((2, 3, 4)).mean()
    assert baselines["black frames"]["squared error"] == pytest.approx(black, rel=1e-6)


def test_training_examples_are_parts_of_training_videos(file):
    task, train = video(file), squares(40)[:32]
    starts = set()
    for k in range(20):
        for frames in task.batches(seed=0)[k]["frames"]:
            places = [
                (n, t) for n in range(32) for t in (0, 1) if (train[n, t : t + 5] == frames).all()
            ]
            assert places
            starts |= {t for _, t in places}
    assert starts == {0, 1}


def test_both_kinds_can_have_as_many_parameters():
    """These are the sizes compared in the documentation."""
    count = {}
    for kind, size in (("conv_lstm", 48), ("lstm", 15)):
        task = object.__new__(VideoForecasting)
        object.__setattr__(task, "data", VideoData())
        object.__setattr__(task, "model", VideoConfig(kind=kind, hidden_size=size))
        object.__setattr__(task, "known", {"frame_shape": [64, 64, 1]})
        model = nnx.eval_shape(lambda task=task: task.build(nnx.Rngs(0)))
        leaves = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        count[kind] = sum(leaf.size for leaf in jax.tree.leaves(leaves))
    assert count["conv_lstm"] < count["lstm"] < 1.02 * count["conv_lstm"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": 5}, "expected videos of at least data.observed + data.horizon = 7 frames"),
        ({"model": {"patch": 8}}, "model.patch: expected a divisor of frames' sides, 8 and 12"),
        ({"model": {"kernel_size": 4}}, "kernel_size: expected an odd number, got 4"),
        ({"videos": "/no/such.npz"}, "data.videos: /no/such.npz: no such file"),
        ({"size": 20}, "size: expected an integer of at least 29"),
    ],
)
def test_impossible_options_give_one_line(file, options, message):
    with pytest.raises(UserError) as caught:
        video(file, **options)
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    return trained(
        tmp_path_factory.mktemp("runs"),
        f'task = "video"\n[data]\nvideos = "{file}"\nobserved = 3\nhorizon = 2\nbatch_size = 4\n'
        "[model]\nhidden_size = 8\nnum_layers = 1\n[optimizer]\nlearning_rate = 2e-2\n"
        "warmup_steps = 1\n[train]\nnum_steps = 200\neval_every = 200\n",
    )


def test_a_run_forecasts_better_than_repeating_the_last_frame(run):
    from PIL import Image

    trained = load_run(run)
    assert trained.task.evaluate(trained.model, "test")["relative"] < 0.75
    with Image.open(run / "plots" / "forecasts.gif") as image:
        assert image.n_frames == 5


def test_predict_writes_frames_and_an_animation(run, file, tmp_path, capsys):
    out, plot = tmp_path / "out.npz", tmp_path / "a.gif"
    assert main(["predict", str(run), str(file), "--output", str(out), "--plot", str(plot)]) == 0
    assert capsys.readouterr().err == ""
    assert plot.read_bytes().startswith(b"GIF89a")
    with np.load(out) as arrays:
        assert arrays["frames"].shape == (40, 2, 8, 12, 1)
        assert arrays["frames"].dtype == np.uint8 and arrays["video"].tolist() == [*range(1, 41)]
    for suffix in ("json", "csv"):
        assert main(["predict", str(run), "--output", str(tmp_path / f"out.{suffix}")]) == 0
    assert main(["predict", str(run)]) == 0


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_an_exported_model_streams(run, format, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--format", format]) == 0
    assert capsys.readouterr().err == ""
    exported, model = ExportedModel(run / "export" / f"{format}-float32"), load_run(run).model
    frames = squares(1).astype(np.float32) / 255
    expected = model(model.initial_carry(1), frames=frames)[1]["logits"]
    carry = exported.initial_carry(1)
    for n in range(6):
        carry, outputs = exported(carry, frames=frames[:, n : n + 1])
    np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-4)


def test_a_run_can_be_inspected(run):
    assert main(["inspect", str(run)]) == 0
    assert "sequence(s) of the validation split" in (run / "inspect.html").read_text("utf-8")


def test_mistakes_give_one_line(run, tmp_path, capsys):
    np.savez(tmp_path / "other.npz", frames=squares(2)[:, :, :, :8])
    np.savez(tmp_path / "short.npz", frames=squares(2)[:, :2])
    for name, message in (
        ("other.npz", "expected frames of 8 x 12 pixels and 1 channel(s), as in training, got 8 x"),
        ("short.npz", "video 1: expected at least data.observed = 3 frames, got 2"),
    ):
        assert main(["predict", str(run), str(tmp_path / name)]) == 1
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1


def test_examples_of_moving_digits_are_new_ones(monkeypatch):
    digits = Digits(np.full((20, 28, 28), 200, np.uint8), np.arange(20) % 10)
    monkeypatch.setattr("lstm_jax.tasks.video_data.read_digits", lambda part: digits)
    task = VideoForecasting(
        VideoData(**SIZES, validation_videos=3, test_videos=2, num_digits=1), VideoConfig()
    )
    one, same, other = (task.data.example(*key) for key in ((0, 5), (0, 5), (0, 6)))
    np.testing.assert_array_equal(one, same)
    assert one.shape == (5, 64, 64, 1) and (one != other).any()
    assert {k: len(v) for k, v in task._held_out.items()} == {"validation": 3, "test": 2}
    assert len(task.fingerprint) == 64 and len(DIRECTIONS) == 4
    assert moving_digits(digits, np.random.default_rng(0), 1, 2).labels.shape == (1, 2)
    assert params_of(task.build(nnx.Rngs(0)))
