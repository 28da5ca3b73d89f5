"""Video classification: splits, padding, and the commands on a run."""

import numpy as np
import pytest
from flax import nnx

from lstm_jax.cli import main
from lstm_jax.errors import UserError
from lstm_jax.export.runner import Model as ExportedModel
from lstm_jax.models import Compiled
from lstm_jax.tasks.video_classification import VideoClassification, video_logits
from lstm_jax.tasks.video_classification_data import LabelledVideoData, VideoClassifierConfig
from lstm_jax.train import load_run
from tests.runs import trained


def bars(count: int) -> dict[str, np.ndarray]:
    """A bar that moves to the right or to the left, with noise past each video's end."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 7, count)
    frames = rng.integers(0, 256, (count, 6, 6, 10, 1)).astype(np.uint8)
    for n, length in enumerate(lengths):
        frames[n, :length] = 0
        for t in range(length):
            frames[n, t, :, (n + t if n % 2 else n - t) % 10] = 200
    labels = np.array(["left", "right"])[np.arange(count) % 2]
    return {"frames": frames, "lengths": lengths, "labels": labels}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "bars.npz"
    np.savez(path, **bars(60))
    return path


def classification(file, model=None, **data) -> VideoClassification:
    data = {"train": str(file), "batch_size": 4} | data
    model = {"hidden_size": 4, "channels": "3", "frame_features": 5} | (model or {})
    return VideoClassification(LabelledVideoData(**data), VideoClassifierConfig(**model))


def test_splits_take_fractions_of_each_class(file):
    task = classification(file)
    counts = {name: np.bincount(x.labels).tolist() for name, x in task._videos.items()}
    assert counts == {"train": [22, 22], "validation": [2, 2], "test": [6, 6]}
    assert task.known == {"classes": ["left", "right"], "frame_shape": [6, 10, 1]}
    assert classification(file, validation_fraction=0.0).splits == ("test",)


def test_frames_past_the_end_have_no_influence(file):
    task = classification(file)
    model, test = Compiled(task.build(nnx.Rngs(0))), task._videos["test"]
    inside = np.arange(6) < test.lengths[:, None]
    black = test._replace(frames=np.where(inside[..., None, None, None], test.frames, 0))
    np.testing.assert_array_equal(video_logits(model, test), video_logits(model, black))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 45}, "data.batch_size: expected at most the 44 training videos, got 45"),
        ({"test_fraction": 0.01}, "data.test_fraction: expected a share that holds out at least"),
        ({"model": {"channels": "a"}}, "channels: expected one to ten numbers from 1 to 9999 such"),
        ({"train": "/no/such.npz"}, "data.train: /no/such.npz: no such file"),
    ],
)
def test_impossible_options_give_one_line(file, options, message):
    with pytest.raises(UserError) as caught:
        classification(file, **options)
    assert message in str(caught.value)


def test_a_test_file_of_another_size_gives_one_line(file, tmp_path):
    other = bars(4)
    np.savez(tmp_path / "t.npz", **other | {"frames": other["frames"][:, :, :5]})
    with pytest.raises(UserError, match=r"data\.test: .*t\.npz: expected frames of 6 x 10 pixels"):
        classification(file, test=str(tmp_path / "t.npz"))


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    return trained(
        tmp_path_factory.mktemp("runs"),
        f'task = "video_classification"\n[data]\ntrain = "{file}"\nbatch_size = 8\n'
        '[model]\nhidden_size = 12\nchannels = "6"\nframe_features = 16\ndropout = 0.0\n'
        "[optimizer]\nlearning_rate = 2e-2\nwarmup_steps = 1\n"
        "[train]\nnum_steps = 80\neval_every = 40\n",
    )


def test_a_run_learns_which_way_a_bar_moves(run):
    trained = load_run(run)
    assert trained.task.evaluate(trained.model, "test")["accuracy"] > 90
    assert (run / "plots" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_predict_reads_files_without_labels(run, tmp_path, capsys):
    new = {name: array for name, array in bars(6).items() if name != "labels"}
    np.savez(tmp_path / "new.npz", **new)
    columns = load_run(run).predict(tmp_path / "new.npz")
    assert len(columns["class"]) == 6
    np.testing.assert_allclose(columns["probability left"] + columns["probability right"], 1, 1e-5)
    np.savez(tmp_path / "new.npz", frames=new["frames"][..., [0, 0]])
    assert main(["predict", str(run), str(tmp_path / "new.npz")]) == 1
    printed = capsys.readouterr().err
    expected = "expected frames of 6 x 10 pixels and 1 channel(s), as in training, got 6 x 10 a"
    assert expected in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_an_exported_model_streams(run, format, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--format", format]) == 0
    assert capsys.readouterr().err == ""
    exported, trained = ExportedModel(run / "export" / f"{format}-float32"), load_run(run)
    frames = bars(1)["frames"][:, :4].astype(np.float32) / 255
    lengths = np.array([4], np.int32)
    first = trained.model.initial_carry(1)
    expected = trained.model(first, frames=frames, lengths=lengths)[1]["logits"]
    carry, one = exported.initial_carry(1), np.ones(1, np.int32)
    for n in range(4):
        carry, outputs = exported(carry, frames=frames[:, n : n + 1], lengths=one)
    np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-5)


def test_a_run_can_be_inspected(run):
    assert main(["inspect", str(run)]) == 0
    assert "sequence(s) of the validation split" in (run / "inspect.html").read_text("utf-8")
