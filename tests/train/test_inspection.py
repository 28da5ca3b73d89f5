"""The recorded inputs of recurrent layers are the inputs of the trained model."""

import numpy as np
import pytest
from flax import nnx

from lstm_jax.config import sections_of, task_class
from lstm_jax.errors import UserError
from lstm_jax.models import evaluation
from lstm_jax.tasks import Task
from lstm_jax.train.inspection import STEPS, recurrent_inputs

TEXT = "the (quick) fox " * 40


def made(name, data, model):
    kind = task_class(name)
    sections = sections_of(kind)
    task = kind(sections["data"](**data), sections["model"](**model))
    return task, evaluation(task.build(nnx.Rngs(0)))


def outputs(seen):
    return seen.layer.apply(seen.params, seen.xs, lengths=seen.lengths)[1]


def test_characters_of_a_file_or_of_the_validation_text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "new.txt").write_text("fox the!"[:-1])
    data = {"text": str(tmp_path / "text.txt"), "lanes": 2, "window": 8}
    task, model = made("next_character", data, {"hidden_size": 5, "embedding_size": 4})
    seen = recurrent_inputs(task, model, tmp_path / "new.txt")
    assert (seen.text, seen.xs.shape) == (
        "fox th",
        (6, 1, 4),
    )  # the last character is only predicted
    tokens = np.array([[task.known["vocabulary"].index(character) for character in "fox th"]])
    logits = model(model.initial_carry(1), tokens=tokens)[1]["logits"]
    mine = model.projection(outputs(seen).swapaxes(0, 1)) + model.bias[...]
    np.testing.assert_allclose(mine, logits, atol=1e-6)
    seen = recurrent_inputs(task, model)
    assert seen.text == TEXT[round(len(TEXT) * 0.9) : -1]
    (tmp_path / "long.txt").write_text(TEXT * 10)
    long = recurrent_inputs(task, model, tmp_path / "long.txt")
    assert len(long.text) == len(long.xs) == STEPS
    (tmp_path / "new.txt").write_text("tXt")
    with pytest.raises(UserError, match=r"^--text: .*new\.txt: character 'X' at position 1 is not"):
        recurrent_inputs(task, model, tmp_path / "new.txt")


def test_windows_of_a_table(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{t},{x},{y}" for t, (x, y) in enumerate(rng.normal(size=(90, 2)).tolist())]
    (tmp_path / "table.csv").write_text("\n".join(["date,a,b", *rows]))
    data = {"table": str(tmp_path / "table.csv"), "train_rows": 40, "validation_rows": 20}
    data |= {"test_rows": 30, "window": 12, "horizon": 5, "season": 4, "batch_size": 3}
    task, model = made("forecasting", data, {"segment": 4, "hidden_size": 5})
    seen = recurrent_inputs(task, model)
    assert seen.xs.shape == (3, 32, 5) and seen.text is None  # 16 windows of two columns
    past = task._windows("validation")[0][:16]
    mine = model.readout(outputs(seen)[-1]).reshape(16, 2, 5).swapaxes(1, 2) + past[:, -1:]
    first = model.initial_carry(16)
    forecast = model(first, past=past, level=past[:, -1])[1]["forecast"]
    np.testing.assert_allclose(mine, forecast, atol=1e-6)


def test_sequences_of_a_split(tmp_path):
    (tmp_path / "sequences.ts").write_text(
        "@classLabel true x y\n@data\n1,2,3:2,1,5:x\n2,4:1,0:y\n5,4:1,7:y\n", "utf-8"
    )
    data = dict.fromkeys(("train", "test"), str(tmp_path / "sequences.ts")) | {"batch_size": 2}
    task, model = made("classification", data, {"hidden_size": 4})
    seen = recurrent_inputs(task, model)
    assert seen.xs.shape == (3, 3, 2)
    np.testing.assert_array_equal(seen.lengths, [3, 2, 2])
    xs = seen.xs.swapaxes(0, 1)
    logits = model(model.initial_carry(3), xs=xs, lengths=seen.lengths)[1]["logits"]
    pooled = outputs(seen).sum(0) / np.asarray(seen.lengths)[:, None]
    np.testing.assert_allclose(model.readout(pooled), logits, atol=1e-6)


class Plain(Task):
    """A task without prediction, whose model has no recurrent layers."""

    def build(self, rngs):
        return nnx.Linear(2, 1, rngs=rngs)

    def evaluate(self, model, split):
        return {"loss": float(model(np.ones((1, 2), np.float32)).sum())}


def test_the_encoder_of_a_translator(tmp_path):
    """It reads the sentences of the validation split, or of a file."""
    for side, words in (("a", "one two three"), ("b", "eins zwei drei")):
        (tmp_path / f"train.{side}").write_text(f"{words}\n{words[:3]}\n" * 20)
    (tmp_path / "new.a").write_text("three two\ntwo\n")
    data = {"source": str(tmp_path / "train.a"), "target": str(tmp_path / "train.b")}
    data |= {"vocabulary_size": 300, "batch_size": 4}
    task, model = made("translation", data, {"hidden_size": 5, "embedding_size": 4})
    for file, lines in ((None, task._pairs["validation"].source), (tmp_path / "new.a", None)):
        seen = recurrent_inputs(task, model, file)
        lines = lines or ["two", "three two"]  # shortest first
        lengths = [len(tokens) + 1 for tokens in task.tokenizer.encode(lines)]
        assert sorted(seen.lengths.tolist()) == sorted(lengths) and seen.text is None
        assert seen.xs.shape[1:] == (2, 4) and outputs(seen).shape[2] == 10
    model_of = {"kind": "transformer", "num_heads": 2, "hidden_size": 8, "embedding_size": 8}
    task, model = made("translation", data, model_of)
    with pytest.raises(UserError, match=r"^TransformerSeq2Seq has no layers of lstm_jax\.nnx to"):
        recurrent_inputs(task, model)


def test_sentences_that_are_classified(tmp_path):
    rows = [f"{text},{label}" for text, label in (("a good film", "x"), ("bad", "y")) * 20]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]))
    model = {"hidden_size": 5, "embedding_size": 4}
    data = {"train": str(tmp_path / "texts.csv"), "batch_size": 8}
    task, model = made("text_classification", data, model)
    seen = recurrent_inputs(task, model)
    assert seen.xs.shape[2] == 4 and set(seen.lengths.tolist()) == {1, 3}


def test_model_without_recurrent_layers_is_an_error(tmp_path):
    model = Plain().build(nnx.Rngs(0))
    with pytest.raises(UserError, match=r"^Linear has no layers of lstm_jax\.nnx to inspect"):
        recurrent_inputs(Plain(), model)
    with pytest.raises(UserError, match=r"^--text: task Plain does not read new data"):
        recurrent_inputs(Plain(), model, tmp_path)
