"""Exports of a run of each task: the stand-alone script gives the same metrics and text."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from lstm_jax.errors import UserError
from lstm_jax.export.trained import export_run
from lstm_jax.export.writing import export_onnx, export_stablehlo, restored, stored
from lstm_jax.models import Compiled
from lstm_jax.train import Report, load_config, load_run, load_workdir, train
from tests.arrays import params_of, with_params

CONFIGS = {
    "next_character": """
task = "next_character"
[data]
text = "{folder}/text.txt"
lanes = 4
window = 8
[model]
hidden_size = 12
embedding_size = 6
cell = "gru"
tied_embeddings = true
[optimizer]
warmup_steps = 0
learning_rate = 0.05
[train]
num_steps = 12
num_devices = 1
sample_length = 0
""",
    "forecasting": """
task = "forecasting"
[data]
table = "{folder}/table.csv"
train_rows = 60
validation_rows = 20
test_rows = 20
window = 12
horizon = 5
season = 4
batch_size = 4
[model]
segment = 4
hidden_size = 8
cell = "peephole"
[train]
num_steps = 3
num_devices = 1
""",
    "classification": """
task = "classification"
[data]
train = "{folder}/sequences.ts"
test = "{folder}/sequences.ts"
batch_size = 4
[model]
hidden_size = 8
[train]
num_steps = 3
num_devices = 1
""",
}
FORMATS = ["stablehlo", pytest.param("onnx", marks=pytest.mark.peers)]

# On the module path of the other process; it also hides jax from a process with only onnxruntime.
REFUSAL = """
import os, sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["REFUSED"].split():
            raise ImportError(f"{name} is refused here")

sys.meta_path.insert(0, Refusal())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Creates a finished run of a task."""
    made = {}

    def get(name: str) -> pathlib.Path:
        if name not in made:
            folder, rng = tmp_path_factory.mktemp(name), np.random.default_rng(0)
            words = rng.choice(["the", "quick", "brown", "fox", "[dög]\n", "\tx\r\n"], 300)
            (folder / "text.txt").write_bytes(" ".join(words).encode())
            rows = [f"{t},{x},{y}" for t, (x, y) in enumerate(rng.normal(5, 2, (100, 2)).tolist())]
            (folder / "table.csv").write_text("\n".join(["date,a,b", *rows]), "utf-8")
            lines = [
                ":".join(
                    [*(",".join(map(str, rng.normal(n % 3, 1, t))) for _ in "xy"), "abc"[n % 3]]
                )
                for n, t in enumerate(rng.integers(1, 9, 24))
            ]
            lines = ["@classLabel true a b c", "@data", *lines]
            (folder / "sequences.ts").write_text("\n".join(lines), "utf-8")
            text = CONFIGS[name].format(folder=folder)
            (folder / "config.toml").write_text(text, "utf-8")
            config = load_config(folder / "config.toml")
            train(config, folder / "run", Report(Console(file=(folder / "out").open("w"))))
            made[name] = folder / "run"
        return made[name]

    return get


def exported(workdir: pathlib.Path, format: str, dtype: str = "float32"):
    """The task, the written folder and the printed lines; created once for all tests."""
    if format == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    return _exported(workdir, format, dtype)


@functools.cache
def _exported(workdir: pathlib.Path, format: str, dtype: str):
    config = load_workdir(workdir)
    task = config.build_task()
    path = workdir / "export.txt"
    with path.open("w", encoding="utf-8") as file:
        report = Report(Console(file=file, width=200, highlight=False))
        folder = export_run(config, task, workdir, report, format, dtype)
    return task, folder, path.read_text("utf-8").splitlines()


def alone(folder: pathlib.Path, *args: object, format: str) -> bytes:
    """The output of run.py, or of other code in its folder, without the library."""
    # Not in the folder itself, which must not change.
    refusal = folder.parent / "refusal"
    refusal.mkdir(exist_ok=True)
    (refusal / "sitecustomize.py").write_text(REFUSAL, "utf-8")
    refused = "lstm_jax flax optax" + (" jax" if format == "onnx" else " onnx onnxruntime")
    ran = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=folder,
        env={"PYTHONPATH": str(refusal), "REFUSED": refused, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout


def applied(folder: pathlib.Path, format: str, **inputs) -> dict[str, np.ndarray]:
    """The outputs of run.py for whole sequences."""
    np.savez(folder.parent / "inputs.npz", **inputs)
    alone(folder, "run.py", "apply", "../inputs.npz", "../outputs.npz", format=format)
    with np.load(folder.parent / "outputs.npz") as file:
        return dict(file)


def generated(task, model, *how) -> str:
    names = ("prompt", "length", "temperature", "seed")
    return "".join(task.generate(model, **dict(zip(names, how, strict=True))))


def printed(metrics) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in metrics.items()}


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    lost = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    )
    return lost.mean()


def results(workdir: pathlib.Path, split: str) -> dict[str, str]:
    return printed(json.loads((workdir / "results.json").read_text("utf-8"))[split])


@pytest.mark.parametrize("format", FORMATS)
def test_text_in_another_process_equals_that_of_the_library(run, format):
    workdir = run("next_character")
    task, folder, _ = exported(workdir, format)
    model = load_run(workdir).model
    given = [
        ("the ", 150, 0.8, 0),
        ("[dög", 150, 1.0, 1),
        ("x\r\n ", 150, 0.5, 2**32 - 1),
        ("\tx\r\n", 150, 0, 3),
        ("", 150, 0.8, 0),
    ]
    # The last one is also generated by the command line.
    script = (
        "import json, pathlib, run, sys; model = run.Model(pathlib.Path('.'));"
        "texts = [''.join(model.generate(*how)) for how in json.loads(sys.argv[1])];"
        "print(json.dumps(texts), flush=True);"
        "sys.argv[1:] = 'generate --length 150 --temperature 0.8 --seed 0'.split(); run.main()"
    )
    out = alone(folder, "-c", script, json.dumps(given), format=format).decode()
    line, _, last = out.partition("\n")
    texts = json.loads(line)
    assert texts == [generated(task, model, *how) for how in given]
    assert last == texts[-1] + "\n"
    assert min(len(set(text)) for text in texts[:3]) > 5, "texts worth comparing"


@pytest.mark.parametrize("format", FORMATS)
def test_the_loss_of_characters_in_another_process(run, format):
    workdir = run("next_character")
    task, folder, lines = exported(workdir, format)
    vocabulary = json.loads((folder / "manifest.json").read_text("utf-8"))["vocabulary"]
    text = task.text[len(task.text) - len(task._split[1]) :]
    tokens = np.array([vocabulary.index(character) for character in text])
    logits = applied(folder, format, tokens=tokens[None, :-1])["logits"][0]
    loss = cross_entropy(logits, tokens[1:])
    reported = results(workdir, "validation")
    assert printed({"loss": loss, "bits": loss / np.log(2)}).items() <= reported.items()
    assert_tables_agree(lines, workdir, ["validation"])


@pytest.mark.parametrize("format", FORMATS)
def test_the_errors_of_forecasts_in_another_process(run, format):
    """Inputs and outputs have the table's units; metrics are those of standardised columns."""
    workdir = run("forecasting")
    task, folder, lines = exported(workdir, format)
    values = np.loadtxt(task.data.table, delimiter=",", skiprows=1)[:, 1:]
    starts = np.arange(80 - 12, 100 - 12 - 5 + 1)
    past = np.stack([values[n : n + 12] for n in starts])
    future = np.stack([values[n + 12 : n + 17] for n in starts])
    forecast = applied(folder, format, past=past, level=past[:, -1])["forecast"]
    error = (forecast - future) / values[:60].std(0)
    figures = {"loss": np.square(error).mean(), "mse": np.square(error).mean()}
    figures["mae"] = np.abs(error).mean()
    assert printed(figures) == results(workdir, "test")
    assert_tables_agree(lines, workdir, ["validation", "test"])


@pytest.mark.parametrize("format", FORMATS)
def test_the_classes_in_another_process(run, format):
    workdir = run("classification")
    task, folder, lines = exported(workdir, format)
    test = task._files[1]
    logits = applied(folder, format, xs=test.xs, lengths=test.lengths)["logits"]
    right = (logits.argmax(-1) == test.labels).mean()
    figures = {"loss": cross_entropy(logits, test.labels), "accuracy": 100 * right}
    assert printed(figures) == results(workdir, "test")
    assert_tables_agree(lines, workdir, ["test"])


def assert_tables_agree(lines: list[str], workdir: pathlib.Path, splits: list[str]) -> None:
    """The exported model's row has the digits of the run's, and those of results.json."""
    rows = [[cell.strip() for cell in x.split("│")[2:-1]] for x in lines if x.startswith("│")]
    assert len(rows) == 3 * len(splits)
    for n, split in enumerate(splits):
        values = results(workdir, split)
        for name, own, read_back, difference in zip(values, *rows[3 * n : 3 * n + 3], strict=True):
            if name.endswith("perplexity"):  # an exponential, so its logarithm is compared
                logs = np.log([float(cell.replace(",", "")) for cell in (own, read_back)])
                np.testing.assert_allclose(*logs, rtol=1e-6)
            else:
                assert (own, read_back, difference) == (values[name], values[name], "0.0000"), name


def with_model(workdir: pathlib.Path, folder: pathlib.Path, **changed: str):
    """The run's task with another, untrained model, and the exported model."""
    task = load_workdir(workdir).build_task()
    task = dataclasses.replace(task, model=dataclasses.replace(task.model, **changed))
    model = Compiled(task.build(nnx.Rngs(0)))
    metadata = {"task": "any", **task.known}
    return task, model, export_stablehlo(model, folder, metadata=metadata)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("next_character", {}),
        ("forecasting", {}),
        ("classification", {"pooling": "mean"}),
        ("classification", {"pooling": "last"}),
    ],
)
def test_steps_add_up_to_the_sequence(run, name, changed, tmp_path):
    """All rows of a batch at once; a row that has ended does not change."""
    _, model, exported = with_model(run(name), tmp_path, **changed)
    rng = np.random.default_rng(1)
    if name == "next_character":
        whole = {"tokens": rng.integers(0, 9, (3, 4), np.int32)}
        steps = [{"tokens": whole["tokens"][:, t : t + 1]} for t in range(4)]
    elif name == "forecasting":
        past = rng.normal(size=(3, 12, 2)).astype(np.float32)
        whole = {"past": past, "level": past[:, -1]}
        steps = [{"past": part, "level": past[:, -1]} for part in np.split(past, 3, 1)]
    else:
        xs, lengths = rng.normal(size=(3, 4, 2)).astype(np.float32), np.array([4, 1, 3], np.int32)
        whole = {"xs": xs, "lengths": lengths}
        steps = [{"xs": xs[:, t : t + 1], "lengths": (t < lengths).astype(int)} for t in range(4)]
    _, outputs = model(model.initial_carry(3), **whole)
    (expected,) = outputs.values()
    # Sums of about ten float32 terms, over four steps.
    close = {"rtol": 1e-5, "atol": 1e-6}
    for each in (model, exported):
        end, outputs = each(each.initial_carry(3), **whole)
        np.testing.assert_allclose(next(iter(outputs.values())), expected, **close)
        carry, outputs = each.initial_carry(3), {}
        for inputs in steps:
            carry, outputs = each(carry, **inputs)
        (last,) = outputs.values()
        wanted = expected[:, -1:] if name == "next_character" else expected
        np.testing.assert_allclose(last, wanted, **close)
        for one, other in zip(*map(jax.tree.leaves, (carry, end)), strict=True):
            np.testing.assert_allclose(one, other, **close)


def test_a_model_of_bfloat16_writes_the_same_text_bit_for_bit(run, tmp_path):
    """Products of bfloat16 would reveal a different order of rounding."""
    task, model, exported = with_model(run("next_character"), tmp_path, dtype="bfloat16")
    for seed in range(3):
        how = ("the ", 200, 0.1, seed)
        assert "".join(exported.generate(*how)) == generated(task, model, *how)


@pytest.mark.peers
def test_a_model_of_bfloat16_runs_in_onnxruntime(run, tmp_path):
    """Its readout is a product whose result is also in bfloat16."""
    _, model, _ = with_model(run("next_character"), tmp_path / "stablehlo", dtype="bfloat16")
    exported = export_onnx(model, tmp_path / "onnx")
    tokens = np.random.default_rng(0).integers(0, 5, (3, 4))
    ours, theirs = (
        np.asarray(each(each.initial_carry(3), tokens=tokens)[1]["logits"], np.float32)
        for each in (model, exported)
    )
    # One unit of bfloat16, in case a float32 sum is close to a tie.
    np.testing.assert_allclose(ours, theirs, rtol=2**-7, atol=2**-7)
    assert (ours == theirs).mean() > 0.95


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_smaller_weights_and_their_loss_are_reported(run, format, dtype):
    workdir = run("next_character")
    task, folder, lines = exported(workdir, format, dtype)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (row,) = [line for line in lines if f"exported, {format} {dtype}" in line]
    assert f"{manifest['metrics']['validation']['loss']:.4f}" in row
    model = load_run(workdir).model
    params = params_of(model.module)
    own = task.evaluate(model, "validation")["loss"]
    rounded = with_params(model.module, restored(stored(params, dtype), params))
    coarse = task.evaluate(Compiled(rounded), "validation")["loss"]
    assert manifest["metrics"]["validation"]["loss"] == pytest.approx(coarse, abs=2e-6)
    assert abs(coarse - own) > 1e-5
    (change,) = [line.split("│")[2].strip() for line in lines if "difference" in line]
    assert float(change) == pytest.approx(coarse - own, abs=6e-5)
    (sizes,) = [line for line in lines if " kB: carry.npz" in line]
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert sizes.startswith(f"{folder}: {total / 1000:,.1f} kB")


def test_impossible_options_are_reported(run, tmp_path, monkeypatch):
    workdir = run("next_character")
    config = load_workdir(workdir)
    task, report = config.build_task(), Report()
    with pytest.raises(UserError, match=r"^--dtype dynamic-int8 is onnxruntime's: expected --form"):
        export_run(config, task, workdir, report, "stablehlo", "dynamic-int8")
    with pytest.raises(UserError, match=r"no checkpoint yet$"):
        export_run(config, task, tmp_path, report, "stablehlo", "float32")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"^--format onnx needs onnx and onnxruntime: "):
        export_run(config, task, workdir, report, "onnx", "float32")
