"""What tasks say their layers read is what the trained model reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lstm_jax.tasks.options import sections_of

from lstm_jax.errors import UserError
from lstm_jax.tasks import TASKS
from lstm_jax.tasks.base import Inspects

TEXT = "the (quick) fox " * 40


def made(name, data, model):
    sections = sections_of(TASKS[name])
    task = TASKS[name](sections["data"](**data), sections["model"](**model))
    assert isinstance(task, Inspects)
    return task, task.init(jax.random.key(0))


def outputs(seen):
    return seen.layer.apply(seen.params, seen.xs, lengths=seen.lengths)[1]


def test_characters_of_a_text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    data = {"text": str(tmp_path / "text.txt"), "lanes": 2, "window": 8}
    task, params = made("next_character", data, {"hidden_size": 5, "embedding_size": 4})
    seen = task.inspected(params, "fox the")
    assert (seen.text, seen.xs.shape, seen.what) == ("fox the", (7, 1, 4), "the first 7 characters")
    tokens = jnp.array([[task.vocabulary.index(character) for character in "fox the"]])
    _, logits = task.logits(params, task.initial_state(params, 1), tokens)
    mine = outputs(seen).swapaxes(0, 1) @ params["projection"] + params["bias"]
    np.testing.assert_allclose(mine, logits, atol=1e-6)
    seen = task.inspected(params)
    assert seen.text == TEXT[round(len(TEXT) * 0.9) :]
    assert seen.what == "the first 64 characters of the validation text"
    long = task.inspected(params, TEXT * 10)
    assert len(long.text) == len(long.xs) == 4000
    with pytest.raises(UserError, match="--text: character 'X' at position 1 is not among"):
        task.inspected(params, "tXt")
    with pytest.raises(UserError, match="--text: expected at least 2 characters, got 1"):
        task.inspected(params, "t")


def test_windows_of_a_table(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{t},{x},{y}" for t, (x, y) in enumerate(rng.normal(size=(90, 2)).tolist())]
    (tmp_path / "table.csv").write_text("\n".join(["date,a,b", *rows]))
    data = {"table": str(tmp_path / "table.csv"), "train_rows": 40, "validation_rows": 20}
    data |= {"test_rows": 30, "window": 12, "horizon": 5, "season": 4, "batch_size": 3}
    task, params = made("forecasting", data, {"segment": 4, "hidden_size": 5})
    seen = task.inspected(params)
    assert seen.xs.shape == (3, 8 * 2, 5)
    assert seen.what == "8 windows of the validation split, 2 columns each"
    past, _ = task._windows("validation")
    past = past[np.linspace(0, len(past) - 1, 8).astype(int)]
    told = outputs(seen)[-1] @ params["w_y"] + params["b_y"]
    told = told.reshape(8, 2, 5).swapaxes(1, 2) + past[:, -1:]
    np.testing.assert_allclose(told, task.forecast(params, past), atol=1e-6)
    with pytest.raises(UserError, match="--text: task forecasting reads no text"):
        task.inspected(params, "text")


def test_sequences_of_a_split(tmp_path):
    (tmp_path / "sequences.ts").write_text(
        "@classLabel true x y\n@data\n1,2,3:2,1,5:x\n2,4:1,0:y\n5,4:1,7:y\n", "utf-8"
    )
    data = dict.fromkeys(("train", "test"), str(tmp_path / "sequences.ts")) | {"batch_size": 2}
    task, params = made("classification", data, {"hidden_size": 4})
    seen = task.inspected(params)
    assert (seen.xs.shape, seen.what) == ((3, 3, 2), "3 sequences of the test split")
    logits = task.logits(params, seen.xs.swapaxes(0, 1), seen.lengths)
    pooled = outputs(seen).sum(0) / np.asarray(seen.lengths)[:, None]
    np.testing.assert_allclose(pooled @ params["w"] + params["b"], logits, atol=1e-6)
    with pytest.raises(UserError, match="--text: task classification reads no text"):
        task.inspected(params, "text")
