"""Every task has all members of the protocol, so that the loop needs no others."""

import dataclasses
import itertools
import pathlib

import grain
import jax
import numpy as np
import pytest
import soundfile
from flax import nnx

from lstm_jax.config import TASKS, sections_of, task_class
from lstm_jax.data import midi_bytes
from lstm_jax.models import Compiled, Model
from lstm_jax.models.seq2seq import EncoderDecoder
from lstm_jax.tasks import Generates, Predicts, Task
from tests.arrays import params_of, with_params
from tests.ink import write_ink
from tests.skeletons import write_skeletons


def differentiated(task, model):
    """A compiled function of ``params, carry, batch, key``: ``((loss, new carry), gradient)``."""

    def loss(params, carry, batch, key):
        return task.loss(with_params(model, params), carry, batch, nnx.Rngs(key))

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module", params=TASKS)
def task(request, tmp_path_factory):
    """A small task of each kind."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    if request.param == "next_character":
        file = folder / "text.txt"
        file.write_text("".join(rng.choice(list("abcd e"), 500)))
        data = {"text": str(file), "lanes": 3, "window": 7}
        model = {"hidden_size": 5, "embedding_size": 4, "dropout": 0.2}
    elif request.param == "forecasting":
        file = folder / "table.csv"
        rows = [f"{t},{x},{y}" for t, (x, y) in enumerate(rng.normal(size=(90, 2)).tolist())]
        file.write_text("\n".join(["date,a,b", *rows]))
        data = {"table": str(file), "train_rows": 40, "validation_rows": 20, "test_rows": 30}
        data |= {"window": 12, "horizon": 5, "season": 4, "batch_size": 3}
        model = {"segment": 4, "hidden_size": 5}
    elif request.param == "time_series":
        file = folder / "series.csv"
        rows = [
            f"{n},{t},{x},{z}" for n in "ab" for t, (x, z) in enumerate(rng.normal(size=(60, 2)))
        ]
        file.write_text("\n".join(["unique_id,ds,y,price", *rows]))
        data = {"table": str(file), "known_columns": "price", "static_columns": "unique_id"}
        data |= {"window": 12, "horizon": 5, "season": 4, "validation": "10", "test": "10"}
        data |= {"batch_size": 3}
        # Smooth, as quantile losses are not.
        model = {"segment": 4, "hidden_size": 5, "embedding_size": 2, "head": "normal"}
    elif request.param == "music":
        for n in range(4):
            roll = rng.random((6 + n, 88)) < 0.05
            roll[-1, 40] = True
            (folder / f"{n}.mid").write_bytes(midi_bytes(roll, 1, 90.0))
        data = {"pieces": str(folder), "transpose": 1, "lanes": 3, "window": 5}
        model = {"hidden_size": 5, "conditioned": True, "interval_features": 2}
    elif request.param == "action":
        write_skeletons(folder, subjects=(1, 2, 3), actions=(1, 2), repetitions=(1,))
        data = {"recordings": str(folder), "train_subjects": "1,2", "batch_size": 3}
        # These skeletons hardly move, so rotated ones are many deviations away.
        data |= {"max_frames": 9, "copies": 2, "rotate": 0.0, "scale": 0.0, "noise": 0.0}
        model = {"hidden_size": 5}
    elif request.param == "video":
        np.savez(folder / "v.npz", frames=rng.integers(0, 256, (9, 6, 4, 6, 1)).astype(np.uint8))
        data = {"videos": str(folder / "v.npz"), "observed": 3, "horizon": 2, "batch_size": 3}
        model = {"hidden_size": 3, "patch": 2}
    elif request.param == "video_classification":
        frames, labels = rng.integers(0, 256, (24, 4, 4, 6, 1)).astype(np.uint8), list("ab") * 12
        np.savez(folder / "v.npz", frames=frames, labels=labels)
        data = {"train": str(folder / "v.npz"), "batch_size": 3}
        model = {"hidden_size": 5, "channels": "3", "frame_features": 4}
    elif request.param.startswith("handwriting"):
        data = {"ink": str(write_ink(folder / "words.csv", pieces=48)), "batch_size": 3}
        if request.param == "handwriting":  # smooth, as a convolution's rectifier is not
            model = {"hidden_size": 5, "stride": 1}
            data |= {"spacing": 0.6}
        else:
            model = {"hidden_size": 5, "window_components": 2, "mixture_components": 2}
    elif request.param == "speech":
        lines = ["path,text,split"]
        for n, split in enumerate([*["train"] * 6, *["validation", "test"] * 2]):
            soundfile.write(folder / f"{n}.wav", rng.uniform(-0.1, 0.1, 1600 + 80 * n), 8000)
            lines.append(f"{n}.wav,{'ab'[n % 2]} ba,{split}")
        (folder / "table.csv").write_text("\n".join(lines))
        data = {"recordings": str(folder / "table.csv"), "sample_rate": 8000, "mel_bands": 8}
        data |= {"speed_change": 0.0, "batch_size": 3, "buckets": 1}
        # Smooth, as the convolutions' rectifier is not.
        model = {"hidden_size": 5, "convolutions": 0, "beam_size": 2}
    elif request.param == "text_classification":
        file = folder / "texts.csv"
        texts = [" ".join(rng.choice(list("abcdefgh"), n)) for n in rng.integers(2, 9, 40)]
        rows = [f"{text},{'xyz'[n % 3]}" for n, text in enumerate(texts)]
        file.write_text("\n".join(["text,label", *rows]))
        data = {"train": str(file), "validation_fraction": 0.25, "test_fraction": 0.25}
        data |= {"batch_size": 3}
        # Smooth, as the maximum is not.
        model = {"embedding_size": 4, "hidden_size": 5, "pooling": "attention"}
    elif request.param == "translation":
        for side, letters in (("source", "abcd"), ("target", "efgh")):
            lines = [" ".join(rng.choice(list(letters), n)) for n in rng.integers(1, 6, 40)]
            (folder / side).write_text("\n".join(lines))
        data = {side: str(folder / side) for side in ("source", "target")}
        data |= {"vocabulary_size": 300, "batch_size": 3, "buckets": 1}
        model = {"hidden_size": 5, "embedding_size": 4, "beam_size": 2}
    else:
        file = folder / "sequences.ts"
        lengths = rng.integers(2, 9, 24)
        columns = [[",".join(map(str, rng.normal(size=n))) for _ in "xy"] for n in lengths]
        rows = [":".join([*pair, "abc"[n % 3]]) for n, pair in enumerate(columns)]
        file.write_text("\n".join(["@classLabel true a b c", "@data", *rows]))
        data = {"train": str(file), "test": str(file), "validation_fraction": 0.25}
        data |= {"batch_size": 3}
        model = {"hidden_size": 5}
    kind = task_class(request.param)
    sections = sections_of(kind)
    return kind(sections["data"](**data), sections["model"](**model))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_frozen_dataclass_of_two_sections(name):
    kind = task_class(name)
    assert issubclass(kind, Task) and kind.__dataclass_params__.frozen
    assert [field.name for field in dataclasses.fields(kind)] == ["data", "model"]
    assert list(sections_of(kind)) == ["data", "model"]


def test_a_model_declares_its_inputs_and_is_called_by_name(task):
    model = Compiled(task.build(nnx.Rngs(0)))
    assert isinstance(model.module, Model)
    sizes = {"b": 2, "t": 1, "u": 3}
    inputs = {}
    for name, (shape, dtype) in model.inputs.items():
        factors = [size.strip().split("*") for size in shape.split(",")]
        shape = [int(np.prod([sizes.get(f) or int(f) for f in each])) for each in factors]
        inputs[name] = np.ones(shape, dtype)
    if isinstance(model.module, EncoderDecoder):
        first = model.encode(source=np.ones((2, 3), np.int32), lengths=np.array([3, 2], np.int32))
    else:
        first = model.initial_carry(2)
    carry, outputs = model(first, **inputs)
    assert jax.tree.map(jax.typeof, carry) == jax.tree.map(jax.typeof, first)
    assert all(len(array) == 2 for array in outputs.values())


def test_a_restored_task_builds_the_same_model_without_reading_data(task, monkeypatch):
    again = type(task).restored(task.known, data=task.data, model=task.model)
    assert again == task
    readers = (
        "read_text", "read_csv", "read_sequences", "read_collection", "read_labelled_text",
        "read_parallel", "read_frame", "read_recordings", "read_videos", "read_ink_splits",
    )  # fmt: skip
    modules = (
        "next_character", "series_data", "sequences_data", "music_data", "text_options",
        "translation_config", "action_data", "video_data", "video_classification_data",
        "speech_data", "time_series_data", "handwriting_data", "handwriting_synthesis_data",
    )  # fmt: skip
    for read in readers:
        for module in modules:
            monkeypatch.delattr(f"lstm_jax.tasks.{module}.{read}", raising=False)
    one, other = (params_of(each.build(nnx.Rngs(0))) for each in (task, again))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_values_have_the_types_of_the_protocol(task):
    assert isinstance(task.unit, str) and isinstance(task.loss_unit, str)
    assert isinstance(task.splits, tuple) and task.splits
    assert isinstance(task.batch_size, int) and isinstance(task.units_per_step, int)
    assert len(task.fingerprint) == 64 and task.fingerprint == task.fingerprint


def test_batches_contain_batch_size_rows_and_their_units(task):
    assert task.batch_size == 3
    batches = task.batches(seed=0)
    assert isinstance(batches, grain.MapDataset)
    for k in (0, 1, 1000):
        assert {len(array) for array in batches[k].values()} == {3}
        assert all(isinstance(array, np.ndarray) for array in batches[k].values())
    if task.unit == "characters":
        assert task.units_per_step == batches[0]["targets"].size
    elif task.unit == "frames":
        assert task.units_per_step == batches[0]["start"].size
    else:
        assert task.units_per_step == 3


def test_a_batch_is_a_function_of_its_number_and_the_seed(task):
    again, other = task.batches(seed=0)[5], task.batches(seed=1)[5]
    for name, array in task.batches(seed=0)[5].items():
        np.testing.assert_array_equal(array, again[name])
    assert any((array != other[name]).any() for name, array in again.items())


def test_the_loss_is_a_scalar_with_finite_gradients_that_reach_every_parameter(task):
    model = task.build(nnx.Rngs(0))
    params, carry = params_of(model), model.initial_carry(task.batch_size)
    total = jax.tree.map(np.zeros_like, params)
    batches, run = iter(task.batches(seed=0).to_iter_dataset()), differentiated(task, model)
    for k, batch in enumerate(itertools.islice(batches, 4)):
        (loss, new_carry), grads = run(params, carry, batch, jax.random.key(k))
        assert loss.shape == () and np.isfinite(loss)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
        # The loop passes the carry on: same structure, shapes and types.
        assert jax.tree.map(jax.typeof, new_carry) == jax.tree.map(jax.typeof, carry)
        carry, total = new_carry, jax.tree.map(lambda a, b: a + np.abs(b), total, grads)
    assert all(leaf.any() for leaf in jax.tree.leaves(total))


def test_a_gradient_is_the_slope_of_the_loss(task):
    """Central differences in a random direction, extrapolated (Richardson) to step size zero."""
    model, rng = task.build(nnx.Rngs(0)), np.random.default_rng(2)
    params = params_of(model)
    direction = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), params)
    rest = (model.initial_carry(task.batch_size), task.batches(seed=0)[0], jax.random.key(1))
    run = differentiated(task, model)

    def along(step: float):
        moved = jax.tree.map(lambda a, d: a + np.float32(step) * d, params, direction)
        (loss, _), grads = run(moved, *rest)
        products = jax.tree.map(lambda g, d: float((g * d).sum()), grads, direction)
        return float(loss), sum(jax.tree.leaves(products))

    def slope(step: float) -> float:
        return (along(step)[0] - along(-step)[0]) / (2 * step)

    # The step size that balances truncation error with the rounding error of the loss.
    loss, gradient = along(0.0)
    step = 0.6 * (np.finfo(np.float32).eps * max(1.0, abs(loss))) ** (1 / 3)
    extrapolated = (4 * slope(step) - slope(2 * step)) / 3
    assert gradient == pytest.approx(extrapolated, rel=5e-3, abs=1e-3)


def test_new_parameters_depend_on_the_key(task):
    one, same, other = (params_of(task.build(nnx.Rngs(seed))) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(one))


def test_evaluation_returns_a_loss_and_the_metrics_of_the_baselines(task):
    model = Compiled(task.build(nnx.Rngs(0)))
    for split in task.splits:
        metrics = task.evaluate(model, split)
        assert "loss" in metrics
        assert all(type(v) is float and np.isfinite(v) for v in metrics.values())
        assert metrics == task.evaluate(model, split)
        assert task.baselines(split)
        for baseline in task.baselines(split).values():
            assert set(baseline) <= set(metrics)
            assert all(type(v) is float and np.isfinite(v) for v in baseline.values())


def test_plots_are_figures_that_can_be_saved_or_pages(task, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    plots = list(task.plots(Compiled(task.build(nnx.Rngs(0)))))
    names = [name for name, _ in plots]
    assert len(set(names)) == len(names)
    for name, figure in plots:
        if isinstance(figure, str):
            assert figure.startswith("<!DOCTYPE html>")
            continue
        if isinstance(figure, bytes):
            starts = {".gif": b"GIF89a", ".svg": b"<svg"}
            assert figure.startswith(starts[pathlib.Path(name).suffix])
            continue
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    if not names:
        assert task.unit == "characters"


def test_every_task_predicts_and_characters_are_generated(task):
    assert isinstance(task, Predicts)
    writes = task.unit in ("characters", "frames", "written pieces")
    assert isinstance(task, Generates) == writes
    if task.unit == "characters":
        options = {"prompt": "ab", "length": 5, "temperature": 1.0, "seed": 0}
        text = "".join(task.generate(Compiled(task.build(nnx.Rngs(0))), **options))
        assert text.startswith("ab") and len(text) == 7
