"""Damaged exports and invalid inputs: the model's own outputs, or a one-line error.

``pytest tests/robustness --fuzz 5000 -s`` tries more and prints how many.
"""

import contextlib
import json
import shutil

import numpy as np
import pytest
from flax import nnx

from lstm_jax.errors import UserError
from lstm_jax.export import ExportedModel, Translator, export_onnx, export_stablehlo
from lstm_jax.export.encoder_decoder import export_encoder_decoder
from lstm_jax.models import (
    Classifier,
    Compiled,
    LanguageModel,
    SegmentForecaster,
    Seq2Seq,
    TextClassifier,
)
from tests.robustness import hostile

FORMATS = ["stablehlo", pytest.param("onnx", marks=pytest.mark.peers)]
SCALING = {"mean": [1.0, 2.0], "deviation": [2.0, 0.5]}
MODELS = {
    "classifier": Classifier(2, 3, 4, rngs=nnx.Rngs(0)),
    "language": LanguageModel(10, 3, 4, rngs=nnx.Rngs(0)),
    "forecaster": SegmentForecaster(2, segment=4, horizon=3, hidden_features=4, rngs=nnx.Rngs(0)),
    "text": TextClassifier(10, 2, 3, 4, rngs=nnx.Rngs(0)),
}
METADATA = {
    "classifier": {"scaling": {"xs": SCALING}},
    "language": {"vocabulary": "abcdefghij", "opening": "a"},
    "forecaster": {"scaling": dict.fromkeys(("past", "level", "forecast"), SCALING)},
    "text": {"classes": ["bad", "good"]},
}
# Sums of ten terms in float32 (eps 1.2e-7) over eight steps.
TOLERANCE = 5e-6


@pytest.fixture(scope="module", params=FORMATS)
def folders(request, tmp_path_factory):
    """An export of each model in one format."""
    if request.param == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    export = {"stablehlo": export_stablehlo, "onnx": export_onnx}[request.param]
    made = {}
    for name, model in MODELS.items():
        made[name] = tmp_path_factory.mktemp(f"{name}-{request.param}")
        export(model, made[name], metadata=METADATA[name])
    return made


def as_run_py_reports(read):
    """The errors that ``run.py`` reports in one line."""

    def reading(path):
        try:
            return read(path)
        except (OSError, ValueError) as error:
            raise UserError(*error.args) from error

    return reading


# ---- the files ----


def damaged(rng, folder, other):
    """An export with a file that is changed, removed, or from another export."""
    path = rng.choice(sorted(path for path in folder.iterdir() if path.name != "run.py"))
    what = rng.randrange(6)
    if what <= 1:
        path.write_bytes(hostile.mutated_bytes(rng, path.read_bytes()))
    elif what == 2:
        path = folder / "manifest.json"
        changed = hostile.mutated_json(rng, json.loads(path.read_bytes()))
        path.write_text(json.dumps(changed), "utf-8")
    elif what == 3:
        path.unlink()
    elif what == 4 and (other / path.name).exists():
        shutil.copy(other / path.name, path)
    else:
        path.write_bytes(
            rng.choice([b"", b"\0" * 100, b"{}", b"null", b"[" * 10**5, b"PK\x03\x04"])
        )


@pytest.mark.parametrize("name", MODELS)
def test_damaged_exports(name, folders, tmp_path, fuzz_budget):
    whole = ExportedModel(folders[name])

    def make(rng):
        folder = tmp_path / "export"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folders[name], folder)
        with contextlib.suppress(FileNotFoundError):
            damaged(rng, folder, folders[rng.choice([*MODELS])])
        return folder

    def same(folder, model):
        assert model.metadata == whole.metadata
        for path in folders[name].iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes() or path.suffix == ".json"

    outcomes = hostile.tried(
        f"files of an export, {whole.metadata['format']} {name}", fuzz_budget, make,
        as_run_py_reports(ExportedModel), same, around=hostile.limited,
    )  # fmt: skip
    assert outcomes["rejected"]


def test_damaged_translators(tmp_path, fuzz_budget):
    model = Seq2Seq(10, 3, 4, rngs=nnx.Rngs(0))
    for dtype in ("float32", "bfloat16"):
        export_encoder_decoder(
            model, tmp_path / dtype, dtype=dtype, metadata={"max_tokens": 5}, platforms=("cpu",)
        )
    whole = Translator(tmp_path / "float32")

    def make(rng):
        folder = tmp_path / "export"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "float32", folder)
        damaged(rng, folder, tmp_path / "bfloat16")
        return folder

    def same(folder, translator):
        assert translator.metadata == whole.metadata
        for path in (tmp_path / "float32").iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes() or path.suffix == ".json"

    outcomes = hostile.tried(
        "files of an export, stablehlo translator", fuzz_budget, make,
        as_run_py_reports(Translator), same, around=hostile.limited,
    )  # fmt: skip
    assert outcomes["rejected"]


# ---- the inputs ----


def valid(rng, name):
    """Inputs with one of a few shapes, since each shape is compiled."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    rows, steps = rng.choice([1, 2, 3]), rng.choice([1, 4])
    if name == "classifier":
        xs = numbers.normal(size=(rows, steps, 2)).astype(np.float32)
        return {"xs": xs, "lengths": numbers.integers(1, steps + 1, rows)}
    if name == "language":
        return {"tokens": numbers.integers(0, 10, (rows, steps))}
    if name == "text":
        lengths = numbers.integers(1, steps + 1, rows)
        return {"tokens": numbers.integers(0, 10, (rows, steps)), "lengths": lengths}
    return {
        "past": numbers.normal(size=(rows, 4 * steps, 2)),
        "level": numbers.normal(size=(rows, 2)),
    }


HOSTILE = [
    np.nan, np.inf, -np.inf, 1e39, -1e308, -1, -(2**31), 2**31, 2**40, 2**63, 10, 9, 0, 5, 1e-45,
]  # fmt: skip
TYPES = [
    "float64", "float16", "int8", "uint8", "int64", "uint64", "bool", "complex64", "U3", "S2",
    "object", "M8[s]", ">f4", ">i4", "f4,f4",
]  # fmt: skip


def hostile_inputs(rng, name):
    inputs = valid(rng, name)
    for _ in range(rng.choice([0, 1, 1, 2])):
        key = rng.choice([*inputs])
        with (
            np.errstate(all="ignore"),
            contextlib.suppress(TypeError, ValueError, IndexError, OverflowError),
        ):
            array, what = np.asarray(inputs[key]), rng.randrange(8)
            if what == 0:
                del inputs[key]
                inputs[rng.choice([key + "x", "", "labels"])] = array
            elif what == 1:
                inputs[rng.choice(["xs", "tokens", "lengths", "extra"])] = array
            elif what == 2:
                inputs[key] = array.astype(rng.choice(TYPES))
            elif what == 3:
                inputs[key] = rng.choice(
                    [
                        array[:0],
                        array[None],
                        array[..., None],
                        array.T,
                        array[0],
                        array[..., :1],
                        array[:1],
                        5,
                        None,
                        [[1], [2, 3]],
                        "x",
                    ]
                )
            elif what <= 6 and array.size:
                array = array.astype(rng.choice(["float64", "int64", array.dtype.str]))
                array.flat[rng.randrange(array.size)] = rng.choice(HOSTILE)
                inputs[key] = array
            else:
                inputs[key] = array.tolist()
        if not inputs:
            break
    return inputs


def is_legal(name, inputs):
    """Whether inputs are valid for a model, according to its documentation."""
    kinds = {
        "classifier": {"xs": "fiu", "lengths": "iu"},
        "language": {"tokens": "iu"},
        "forecaster": {"past": "fiu", "level": "fiu"},
        "text": {"tokens": "iu", "lengths": "iu"},
    }[name]
    try:
        arrays = {key: np.asarray(value) for key, value in inputs.items()}
    except ValueError:
        return False
    if set(arrays) != set(kinds) or any(a.dtype.kind not in kinds[k] for k, a in arrays.items()):
        return False
    if not all(a.size and abs(float(x)) <= 3.5e38 for a in arrays.values() for x in a.flat):
        return False
    if name in ("language", "text"):
        tokens = arrays["tokens"]
        lengths = arrays.get("lengths", np.ones(len(tokens), int) if tokens.ndim else 0)
        return (
            tokens.ndim == 2 and all(0 <= int(x) < 10 for x in tokens.flat)
            and np.shape(lengths) == tokens.shape[:1]
            and all(1 <= int(x) <= tokens.shape[1] for x in lengths)
        )  # fmt: skip
    if name == "classifier":
        xs, lengths = arrays["xs"], arrays["lengths"]
        return (
            xs.ndim == 3 and xs.shape[2] == 2 and lengths.shape == xs.shape[:1]
            and all(0 <= int(x) <= xs.shape[1] for x in lengths)
        )  # fmt: skip
    past, level = arrays["past"], arrays["level"]
    return (
        past.ndim == 3 and past.shape[1] % 4 == 0 and past.shape[2] == 2
        and level.shape == (len(past), 2)
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of NumPy: conversions of hostile numbers
@pytest.mark.parametrize("name", MODELS)
def test_hostile_inputs(name, folders, tmp_path, fuzz_budget):
    model, own = ExportedModel(folders[name]), Compiled(MODELS[name])
    scaling, given = METADATA[name].get("scaling", {}), {}

    def make(rng):
        given["inputs"] = hostile_inputs(rng, name)
        return tmp_path / "inputs"

    def same(_, outputs):
        assert is_legal(name, given["inputs"]), "illegal inputs were read"
        inputs = {}
        for key, value in given["inputs"].items():
            array = np.asarray(value)
            if key in scaling:
                array = (array.astype(np.float64) - SCALING["mean"]) / SCALING["deviation"]
            inputs[key] = array.astype(np.int32 if key in ("tokens", "lengths") else np.float32)
        rows = len(next(iter(inputs.values())))
        _, expected = own(own.initial_carry(rows), **inputs)
        for key, array in outputs.items():
            wanted = np.asarray(expected[key], np.float64)
            if key in scaling:
                wanted = wanted * SCALING["deviation"] + SCALING["mean"]
            scale = max(1.0, np.abs(wanted).max())
            np.testing.assert_allclose(array, wanted, atol=TOLERANCE * scale, rtol=0)

    def apply(_):
        try:
            return model.apply(given["inputs"])
        except ValueError:
            assert not is_legal(name, given["inputs"]) or far(given["inputs"]), given["inputs"]
            raise

    outcomes = hostile.tried(
        f"inputs of an export, {model.metadata['format']} {name}", fuzz_budget, make,
        as_run_py_reports(apply), same, around=hostile.limited, names=r"\w",
    )  # fmt: skip
    assert outcomes["read"] and outcomes["rejected"]


def far(inputs):
    """Whether numbers are so large that a sum of their products can exceed float32."""
    return any(np.abs(np.asarray(value, np.float64)).max() > 1e30 for value in inputs.values())
