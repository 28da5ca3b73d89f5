"""Predictions of a run: in another folder, without the training data, in each file format."""

import csv
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from lstm_jax.cli import main
from lstm_jax.errors import UserError
from lstm_jax.models import Compiled
from lstm_jax.train import load_run
from lstm_jax.train.predict import write_columns

CONFIGS = {
    "next_character": """
[data]
text = "data/text.txt"
lanes = 4
window = 8
[model]
hidden_size = 8
embedding_size = 4
""",
    "forecasting": """
[data]
table = "data/table.csv"
train_rows = 30
validation_rows = 10
test_rows = 10
window = 8
horizon = 2
season = 2
batch_size = 4
[model]
segment = 2
hidden_size = 4
""",
    "classification": """
[data]
train = "data/train.ts"
test = "data/test.ts"
batch_size = 2
[model]
hidden_size = 4
""",
}
FILES = {"next_character": "new.txt", "forecasting": "new.csv", "classification": "new.ts"}
TEXT = " ".join(["the quick brown fox\n"] * 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Runs of every task, moved to another folder with new files; their data are deleted."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "configs" / "data").mkdir(parents=True)
    rows = ["time,one,two", *(f"{n},{np.sin(n)},{n**2 % 7}" for n in range(60))]
    sequences = "1,2,3:2,1,5:x\n2,4:1,0:y\n5,4:1,7:y\n"
    data = folder / "configs" / "data"
    (data / "text.txt").write_text(TEXT)
    (data / "table.csv").write_text("\n".join(rows[:51]))
    for part in ("train", "test"):
        (data / f"{part}.ts").write_text(f"@classLabel true x y\n@data\n{sequences}")
    for task, config in CONFIGS.items():
        path = folder / "configs" / f"{task}.toml"
        path.write_text(f'task = "{task}"\n{config}[train]\nnum_steps = 3\nsample_length = 0\n')
        assert main(["train", str(path), "--workdir", str(folder / "runs" / task)]) == 0
    (folder / "new.txt").write_text(TEXT[round(0.9 * len(TEXT)) :])
    (folder / "new.csv").write_text("\n".join(rows[:51]))
    (folder / "new.ts").write_text(f"@classLabel true x y\n@data\n{sequences}")
    shutil.move(folder / "runs", folder / "moved")
    shutil.rmtree(folder / "configs")
    return folder


@pytest.mark.parametrize("task", CONFIGS)
def test_a_moved_run_predicts_without_its_data(folder, task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run, new = folder / "moved" / task, folder / FILES[task]
    assert main(["predict", str(run), str(new), "--output", "out.csv"]) == 0
    assert capsys.readouterr().out == "wrote out.csv\n"
    with open("out.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = load_run(run).predict(new)
    assert list(rows[0]) == list(columns)
    for name, column in columns.items():
        written = [row[name] for row in rows]
        if isinstance(column[0], str):
            assert written == list(column)
        else:  # every digit of a number is written
            np.testing.assert_array_equal(np.array(written, column.dtype), column)
    assert main(["predict", str(run), str(new)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[0] == next(iter(columns))
    assert len([line for line in table if line.strip()]) == len(rows) + 1


@pytest.mark.parametrize("task", CONFIGS)
def test_held_out_data_have_the_metrics_of_the_evaluation(folder, task):
    """The training process wrote results.json from the data in their original location."""
    run = load_run(folder / "moved" / task)
    results = json.loads((run.folder / "results.json").read_text())
    columns = run.predict(folder / FILES[task])
    if task == "next_character":
        total = (columns["loss"] * columns["characters"]).sum() / columns["characters"].sum()
        # Sums of float64 in another order.
        assert total == pytest.approx(results["validation"]["loss"], rel=1e-12)
    elif task == "classification":
        right = [a == b for a, b in zip(columns["class"], ["x", "y", "y"], strict=True)]
        assert 100 * np.mean(right) == results["test"]["accuracy"]
        chosen = columns["probability x"][:1], columns["probability y"][1:]
        # Probabilities are rounded to float32.
        losses = -np.log(np.concatenate(chosen).astype(np.float64))
        assert losses.mean() == pytest.approx(results["test"]["loss"], rel=1e-6)
    else:
        scaling = run.task.known["scaling"]["past"]
        values = np.loadtxt(folder / "new.csv", delimiter=",", skiprows=1)[:, 1:]
        errors = []
        for end in range(40, 49):  # the last row that each test window shows
            rows = (folder / "new.csv").read_text().splitlines()[: end + 1]
            (folder / "part.csv").write_text("\n".join(rows))
            columns = run.predict(folder / "part.csv")
            forecast = np.stack([columns["one"], columns["two"]], 1)
            errors.append((forecast - values[end : end + 2]) / scaling["deviation"])
        assert np.square(errors).mean() == pytest.approx(results["test"]["mse"], rel=1e-6)


def test_the_folder_holds_what_prediction_needs(folder):
    held = json.loads((folder / "moved" / "forecasting" / "run.json").read_text())
    assert held["format"] == 2 and held["metadata"]["columns"] == ["one", "two"]
    run = load_run(folder / "moved" / "classification")
    assert run.task.known["classes"] == ["x", "y"] and isinstance(run.model, Compiled)
    assert os.path.isabs(run.config.data.train)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("classification", "new.csv"),
            "new.csv: expected a .ts or .npz file, or a CSV file whose first line names id; id",
        ),
        (("forecasting", "no.csv"), "no.csv: no such file"),
        (("forecasting", "new.csv", "--output", "out.xls"), "--output: expected a .csv, .json or"),
        (("forecasting", "new.csv", "--output", "no/o.csv"), "no/o.csv: cannot be written: no"),
        (("next_character",), "text.txt: no such file"),  # its own data, which are deleted
        (("forecasting", "--text", "x"), "forecasting: task forecasting does not read text"),
        (
            ("forecasting", "new.csv", "--text", "x"),
            "--text: expected no files, got new.c",
        ),
        (("nothing", "new.csv"), "nothing: no run here (expected a config.toml)"),
    ],
)
def test_mistakes_give_one_line(folder, args, message, monkeypatch, capsys):
    monkeypatch.chdir(folder / "moved")
    for name in FILES.values():
        shutil.copy(folder / name, name)
    assert main(["predict", *args]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


COLUMNS = {
    "row": np.array([1, 2], np.int32),
    "class": ["a", "b"],
    "share": np.array([0.1, np.nan], np.float32),
}


def test_each_format_stores_full_precision(tmp_path):
    write_columns(COLUMNS, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().split() == ["row,class,share", "1,a,0.1", "2,b,"]
    write_columns(COLUMNS, tmp_path / "a.json")
    rows = json.loads((tmp_path / "a.json").read_text())
    assert rows == [
        {"row": 1, "class": "a", "share": 0.1},
        {"row": 2, "class": "b", "share": None},
    ]
    write_columns(COLUMNS, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        for name, column in COLUMNS.items():
            np.testing.assert_array_equal(file[name], column)
    write_columns({"file": ["a.wav"], "allow_pickle": [1]}, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        assert file["file"].tolist() == ["a.wav"] and file["allow_pickle"].tolist() == [1]
    with pytest.raises(UserError, match=r"^--output: expected a \.csv, \.json or \.npz file, got"):
        write_columns(COLUMNS, tmp_path / "a.txt")
