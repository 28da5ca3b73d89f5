"""Human actions: the model's inputs, averages over copies, and the commands on a run."""

import io

import numpy as np
import pytest
from flax import nnx

from lstm_jax.cli import main
from lstm_jax.data import motion_features, read_skeleton
from lstm_jax.errors import UserError
from lstm_jax.export.runner import Model as ExportedModel
from lstm_jax.models import Compiled
from lstm_jax.tasks.action import ActionRecognition
from lstm_jax.tasks.action_data import ActionConfig, ActionData
from lstm_jax.train import load_run
from tests.runs import trained
from tests.skeletons import content, screen, write_skeletons

CLASSES = ["high arm wave", "horizontal arm wave", "hammer"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_skeletons(tmp_path_factory.mktemp("skeletons") / "data")


def action(folder, model=None, **data) -> ActionRecognition:
    data = {"recordings": str(folder), "train_subjects": "1,3", "batch_size": 4} | data
    model = {"hidden_size": 4, "max_frames": 16} | (model or {})
    data["max_frames"] = model.pop("max_frames")
    return ActionRecognition(ActionData(**data), ActionConfig(**model))


def test_splits_are_by_subject(folder):
    task = action(folder, train_subjects="1, 2,3", validation_subjects="2", batch_size=2)
    subjects = {name: {x.subject for x in rows} for name, rows in task._recordings.items()}
    assert subjects == {"train": {1, 3}, "validation": {2}, "test": {4}}
    assert task.splits == ("validation", "test") and task.known["classes"] == CLASSES
    assert action(folder).splits == ("test",)


def test_batches_contain_standardised_features_of_varied_recordings(folder):
    still = {name: 0.0 for name in ("rotate", "scale", "warp", "crop", "noise")}
    task = action(folder, **still)
    train = task._recordings["train"]
    features = np.concatenate([motion_features(x.joints) for x in train])
    expected = {
        tuple(np.round((motion_features(x.joints)[-1] - features.mean(0)) / features.std(0), 3)): x
        for x in train
    }
    for batch in (task.batches(seed=0)[k] for k in range(3)):
        for xs, length, label in zip(*(batch[k] for k in ("xs", "lengths", "labels")), strict=True):
            (found,) = (
                x for key, x in expected.items() if np.allclose(key, xs[length - 1], atol=2e-3)
            )
            assert (found.action, len(found.joints)) == (label, length)
            assert not xs[length:].any()
    varied, again = action(folder).batches(seed=0)[0], action(folder).batches(seed=0)[0]
    np.testing.assert_array_equal(varied["xs"], again["xs"])
    assert np.abs(varied["xs"] - task.batches(seed=0)[0]["xs"]).max() > 0.01


def test_a_long_recording_is_sped_up(folder):
    task = action(folder, {"max_frames": 6})
    joints = task._recordings["test"][-1].joints
    xs, length = task._read(joints)
    assert len(joints) > 6 == length
    assert xs.shape == (6, 114)


def test_predictions_are_means_over_copies(folder):
    one, three = action(folder), action(folder, copies=3)
    model = Compiled(one.build(nnx.Rngs(0)))
    test = one._recordings["test"]
    alone, mean = one._probabilities(model, test), three._probabilities(model, test)
    np.testing.assert_allclose(mean.sum(1), 1, rtol=1e-5)
    assert 1e-4 < np.abs(alone - mean).max() < 0.3
    expected = alone.copy()
    for copy in (1, 2):
        rows = [three._read(three.data.varied(x.joints, (copy, n))) for n, x in enumerate(test)]
        for n, (xs, length) in enumerate(rows):
            inputs = {"xs": xs[None], "lengths": np.array([length], np.int32)}
            logits = np.asarray(model((), **inputs)[1]["logits"], np.float64)[0]
            expected[n] += np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(mean, expected / 3, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train_subjects": "one"}, "train_subjects: expected numbers of subjects such as 1,3,5"),
        (
            {"validation_subjects": "2"},
            "data.validation_subjects: expected some of data.train_subj",
        ),
        (
            {"train_subjects": "7"},
            "data.train_subjects: expected subjects with recordings to train",
        ),
        (
            {"train_subjects": "1,2,3,4"},
            "data.train_subjects: expected subjects with recordings to",
        ),
        (
            {"batch_size": 13},
            "data.batch_size: expected at most the 12 training recordings, got 13",
        ),
        ({"recordings": "/no/such"}, "data.recordings: /no/such: no such folder or archive"),
    ],
)
def test_impossible_options_give_one_line(folder, data, message):
    with pytest.raises(UserError) as caught:
        action(folder, **data)
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run that has learned three movements, frame by frame."""
    return trained(
        tmp_path_factory.mktemp("runs"),
        f'task = "action"\n[data]\nrecordings = "{folder}"\ntrain_subjects = "1,3"\n'
        "max_frames = 16\nbatch_size = 4\nrotate = 10.0\n[model]\nhidden_size = 8\ndropout = 0.0\n"
        "bidirectional = false\n[optimizer]\nlearning_rate = 1e-2\nwarmup_steps = 1\n"
        "[train]\nnum_steps = 150\neval_every = 150\n",
    )


def test_a_run_distinguishes_actions_of_other_people(run):
    from PIL import Image

    task = load_run(run).task
    assert task.evaluate(load_run(run).model, "test")["accuracy"] > 90
    assert (run / "plots" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(run / "plots" / "action.gif") as image:
        assert image.n_frames == len(task._recordings["test"][0].joints)


def test_predict_reads_files_and_folders_and_animates_one(run, folder, tmp_path, capsys):
    from PIL import Image

    file, plot = folder / "a02_s04_e02_skeleton.txt", tmp_path / "a.gif"
    assert main(["predict", str(run), str(file), "--plot", str(plot)]) == 0
    printed = capsys.readouterr()
    assert f"plotted {plot}" in printed.out and printed.err == ""
    columns = load_run(run).predict(file)
    assert columns["recording"] == ["a02_s04_e02"] and columns["class"] == [CLASSES[1]]
    with Image.open(io.BytesIO(plot.read_bytes())) as image:
        assert image.n_frames == len(read_skeleton(file))
    assert load_run(run).predict(folder)["recording"][-1] == "a03_s04_e02"


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_an_exported_model_streams(run, format, capsys):
    """Frame by frame, its outputs equal those of the run's model for the whole recording."""
    pytest.importorskip("onnxruntime")
    assert main(["export", str(run), "--format", format]) == 0
    assert capsys.readouterr().err == ""
    exported, trained = ExportedModel(run / "export" / f"{format}-float32"), load_run(run)
    xs, length = trained.task._read(trained.task._recordings["test"][0].joints)
    whole = {"xs": xs[None], "lengths": np.array([length], np.int32)}
    expected = trained.model(trained.model.initial_carry(1), **whole)[1]["logits"]
    carry, one = exported.initial_carry(1), np.ones(1, np.int32)
    for n in range(length):
        carry, outputs = exported(carry, xs=xs[None, n : n + 1], lengths=one)
    np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-5)


def test_a_run_can_be_inspected(run):
    assert main(["inspect", str(run)]) == 0
    assert "sequence(s) of the test split" in (run / "inspect.html").read_text("utf-8")


def test_mistakes_give_one_line(run, tmp_path, capsys):
    file = tmp_path / "a01_s01_e01_skeleton.txt"
    file.write_text(content(np.zeros((2, 20, 3))))
    words = ["predict", str(run)]
    for more, message in (
        ([str(file)], "expected joints, got a skeleton of zeros in every frame"),
        ([str(tmp_path / "none.txt")], "none.txt: no such file"),
        ([str(file), "--plot", "a.png"], "--plot: expected a .gif file, got a.png"),
        (["--plot", "a.gif"], "--plot: expected a file to predict on, got None"),
    ):
        assert main([*words, *more]) == 1
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1


def test_a_file_of_one_frame_is_read(run, tmp_path):
    file = tmp_path / "wave_skeleton.txt"
    file.write_text(content(screen(1, 1, 1)))
    assert load_run(run).predict(file)["recording"] == ["wave"]
