"""Damaged and malicious files of other libraries: a right result, or a one-line error.

``pytest tests/robustness --fuzz 5000 -s`` tries more inputs and prints how many.
"""

import io
import json
import os
import resource
import shutil

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_jax import Bidirectional, LSTMCell, Stack
from lstm_jax.cells import GRUCell
from lstm_jax.errors import UserError
from lstm_jax.interop import read_arrays, to_keras, to_torch, write_arrays
from lstm_jax.interop.convert import read_layer, write_layer
from lstm_jax.interop.weights import flattened
from tests.interop.test_interop_files import random_params
from tests.robustness import hostile

GROWTH = 1536 * 1024  # KiB of peak memory that is allowed for all inputs together

TORCH = Stack([Bidirectional(LSTMCell(3))] * 2)
KERAS = Stack([LSTMCell(2), Bidirectional(GRUCell(3, reset_after=True))])


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A valid file of each kind."""
    pytest.importorskip("safetensors")
    h5py = pytest.importorskip("h5py")
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("valid")
    torch = to_torch(TORCH, random_params(TORCH))
    write_arrays(folder / "a.safetensors", torch)
    write_arrays(folder / "a.npz", torch)
    keras = to_keras(KERAS, random_params(KERAS))
    lstm = Stack([LSTMCell(2)] * 2)
    write_arrays(folder / "a.weights.h5", to_keras(lstm, random_params(lstm)))
    write_arrays(folder / "both.weights.h5", keras)
    config = {"recurrent_initializer": None, "activation": "tanh", "use_bias": True}
    inner = {"class_name": "GRU", "config": {**config, "name": "gru", "reset_after": True}}
    layers = [
        {"class_name": "InputLayer", "config": {"name": "input"}},
        {"class_name": "LSTM", "config": {**config, "name": "lstm"}},
        {"class_name": "Bidirectional", "config": {"name": "b", "layer": inner}},
    ]
    model = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    with hostile.zipfile.ZipFile(folder / "a.keras", "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("config.json", json.dumps(model))
        file.write(folder / "both.weights.h5", "model.weights.h5")
    with h5py.File(folder / "legacy.h5", "w") as file:
        file.attrs["keras_version"] = "2.2.4"
        file.attrs["model_config"] = json.dumps(model)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([b"input", b"lstm", b"b"])
        for layer in ("input", "lstm", "b"):
            inside = group.create_group(layer)
            names = {"lstm": "lstm/", "b": "bidirectional/"}.get(layer, "none/")
            weights = {n: a for n, a in keras.items() if n.startswith(names)}
            inside.attrs["weight_names"] = np.array([f"{n}:0".encode() for n in weights], "S")
            for name, array in weights.items():
                inside[f"{name}:0"] = array
    os.rename(folder / "both.weights.h5", folder / "unused")
    stack = Stack([Bidirectional(LSTMCell(2)), GRUCell(3)])
    write_layer(folder / "a.onnx", "onnx", stack, random_params(stack))
    onnx.load(folder / "a.onnx")
    return folder


# ---- the content of the files, by other readers ----


def same(arrays, others):
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
        assert array.dtype == np.asarray(others[name]).dtype.newbyteorder("="), name


def held_by_npz(path, arrays):
    with np.load(path) as file:
        assert set(arrays) == set(file.files)
        same(arrays, file)


def held_by_safetensors(path, arrays):
    from safetensors.numpy import load_file

    held = load_file(path)
    floats = {name for name, array in held.items() if np.issubdtype(array.dtype, np.floating)}
    assert floats <= set(arrays)
    same({n: a for n, a in arrays.items() if a.dtype != jax.numpy.bfloat16}, held)


def held_by_h5(path, arrays):
    """Every array is one of the file's datasets."""
    import h5py

    content = path
    if path.suffix == ".keras":
        with hostile.zipfile.ZipFile(path) as file:
            content = io.BytesIO(file.read("model.weights.h5"))
    found = []
    with h5py.File(content, "r") as file:
        file.visititems(lambda _, item: found.append(item[()]) if hasattr(item, "shape") else None)
    for name, array in arrays.items():
        assert any(
            np.shape(one) == array.shape and np.array_equal(one, array, equal_nan=True)
            for one in found
        ), name


def is_a_layer(path, result):
    """Its parameters are those that its cells have."""
    layer, params = result
    if not isinstance(layer, Stack):
        layer, params = Stack([layer]), {"layer_0": params}
    for (name, one), weights in zip(layer.layers, params.values(), strict=True):
        cells = {"": (one, weights)}
        if isinstance(one, Bidirectional):
            both = {"forward": one.forward, "backward": one.backward}
            cells = {end: (cell, weights[end]) for end, cell in both.items()}
        for cell, cell_params in cells.values():
            cell.check_params(cell_params)
            assert cell.hidden_size == cell_params["w_hh"].shape[-2], name


# ---- seeded mutations ----


def of_bytes(name, change=hostile.mutated_bytes):
    def make(valid, folder, rng):
        path = folder / name
        path.write_bytes(change(rng, (valid / name).read_bytes()))
        return path

    return make


def of_zip(name, change):
    def make(valid, folder, rng):
        path = folder / name
        shutil.copy(valid / name, path)
        hostile.mutated_zip(rng, path, change)
        return path

    return make


def changed_member(rng, name, content):
    if name.endswith(".json") and rng.random() < 0.9:
        return json.dumps(hostile.mutated_json(rng, json.loads(content)))
    return hostile.mutated_bytes(rng, content)


def of_legacy_config(valid, folder, rng):
    import h5py

    path = folder / "legacy.h5"
    shutil.copy(valid / path.name, path)
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = json.dumps(hostile.mutated_json(rng, config))
        group = file["model_weights"]
        where = rng.choice([group, group["lstm"], group["b"]])
        name = "layer_names" if where == group else "weight_names"
        names = [*where.attrs[name]]
        rng.shuffle(names)
        if rng.random() < 0.3:
            where.attrs[name] = np.array(names[: rng.randrange(1, 3)])
    return path


def of_messages(valid, folder, rng):
    import onnx

    model = onnx.load(valid / "a.onnx")
    path = folder / "a.onnx"
    path.write_bytes(hostile.mutated_message(rng, model).SerializeToString())
    return path


def of_arrays(library):
    """Arrays of a library, some with other names, shapes or types, or missing."""

    def make(valid, folder, rng):
        cell = GRUCell(3, reset_after=True)
        layer = LSTMCell(3) if library == "haiku" or rng.random() < 0.5 else cell
        if library in ("torch", "keras", "lstm_jax"):
            layer = Stack([Bidirectional(layer)] * 2)
        path = folder / f"{library}.npz"
        arrays = write_layer(path, library, layer, random_params(layer))
        arrays = {name: np.asarray(array) for name, array in flattened(arrays)}
        for _ in range(rng.choice([1, 1, 2, 4])):
            name = rng.choice([*arrays])
            array, what = arrays[name], rng.randrange(6)
            if what == 0 and len(arrays) > 1:
                del arrays[name]
            elif what == 1:
                arrays[rng.choice([name + "x", name.upper(), "w", "a/b", "a/b/c"])] = array
            elif what == 2:
                arrays[name] = array.astype(rng.choice(["int8", "float16", "float64", "complex64"]))
            elif what == 3:
                shapes = [
                    (),
                    (0,),
                    (0, 0),
                    (1, 12),
                    (12, 3),
                    (3, 3, 12),
                    (1, 1, 1, 1),
                    (4,),
                    (5, 7),
                ]
                arrays[name] = np.ones(rng.choice(shapes), "float32")
            elif what == 4:
                arrays[name] = array.T
            else:
                arrays[name] = array[..., : rng.randrange(4)] if array.ndim else array
        write_arrays(path, arrays)
        return path

    return make


def layer_of(library):
    return lambda path: read_layer(path, library)


KINDS = {
    "safetensors, bytes": (of_bytes("a.safetensors"), read_arrays, held_by_safetensors),
    "safetensors, header": (
        of_bytes("a.safetensors", hostile.mutated_safetensors),
        read_arrays,
        held_by_safetensors,
    ),
    "safetensors, layer": (
        of_bytes("a.safetensors", hostile.mutated_safetensors),
        layer_of("torch"),
        is_a_layer,
    ),
    "npz, bytes": (of_bytes("a.npz"), read_arrays, held_by_npz),
    "npz, members": (of_zip("a.npz", hostile.mutated_npy), read_arrays, held_by_npz),
    "npz, layer": (of_zip("a.npz", hostile.mutated_npy), layer_of("torch"), is_a_layer),
    "weights.h5, bytes": (of_bytes("a.weights.h5"), read_arrays, held_by_h5),
    "weights.h5, layer": (of_bytes("a.weights.h5"), layer_of("keras"), is_a_layer),
    "legacy h5, bytes": (of_bytes("legacy.h5"), read_arrays, held_by_h5),
    "legacy h5, config": (of_legacy_config, layer_of("keras"), is_a_layer),
    "keras, bytes": (of_bytes("a.keras"), read_arrays, held_by_h5),
    "keras, members": (of_zip("a.keras", changed_member), layer_of("keras"), is_a_layer),
    "onnx, bytes": (of_bytes("a.onnx"), layer_of("onnx"), is_a_layer),
    "onnx, messages": (of_messages, layer_of("onnx"), is_a_layer),
    **{
        f"arrays of {library}": (of_arrays(library), layer_of(library), is_a_layer)
        for library in ("torch", "keras", "lstm_jax", "flax", "haiku", "equinox")
    },
}


@pytest.mark.filterwarnings("ignore")  # of damaged weights: overflow, duplicate names
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_a_right_result_or_one_line(kind, valid, tmp_path, fuzz_budget):
    make, read, check = KINDS[kind]
    if "bytes" in kind or "members" in kind:  # an unchanged file is read; imports are done
        for path in valid.glob("*.*"):
            if make is of_bytes(path.name):
                read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = hostile.tried(kind, fuzz_budget, lambda rng: make(valid, tmp_path, rng), read, check)
    assert outcomes["rejected"], "no mutation did any harm"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("a.safetensors", "torch"),
        ("a.npz", "torch"),
        ("a.weights.h5", "keras"),
        ("legacy.h5", "keras"),
        ("a.keras", "keras"),
        ("a.onnx", "onnx"),
    ],
)
def test_the_valid_files_are_read(name, library, valid):
    assert hostile.attempt(valid / name, layer_of(library), is_a_layer) == "read"


# ---- inputs from hypothesis ----

MAGIC = {
    "a.safetensors": [b"", b"\x08\0\0\0\0\0\0\0{}"],
    "a.npz": [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)],
    "a.weights.h5": [b"", b"\x89HDF\r\n\x1a\n\0", b"\x89HDF\r\n\x1a\n\2\x08\x08\0"],
    "a.keras": [b"", b"PK\x03\x04"],
    "a.onnx": [b"", b"\x08\x08:", b"\x08\x08:\x02\x0a\x00"],
}


@pytest.mark.parametrize("name", MAGIC)
def test_any_bytes_give_one_line(name, tmp_path_factory, fuzz_budget):
    path = tmp_path_factory.mktemp("any") / name
    library = {"a.weights.h5": "keras", "a.keras": "keras", "a.onnx": "onnx"}.get(name, "torch")

    @settings(max_examples=min(fuzz_budget, 1000), deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(MAGIC[name]), st.binary(max_size=200))
    def check(magic, content):
        path.write_bytes(magic + content)
        assert hostile.attempt(path, layer_of(library), is_a_layer) == "rejected"

    check()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["config", "layers", "class_name", "layer", "cell", "cells", "name"]),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def test_any_config_gives_a_right_result_or_one_line(valid, tmp_path_factory, fuzz_budget):
    path = tmp_path_factory.mktemp("config") / "a.keras"
    with hostile.zipfile.ZipFile(valid / "a.keras") as file:
        weights = file.read("model.weights.h5")

    @settings(max_examples=min(fuzz_budget, 1000), deadline=None, derandomize=True, database=None)
    @given(JSON)
    def check(config):
        with hostile.zipfile.ZipFile(path, "w") as file:
            file.writestr("config.json", json.dumps(config))
            file.writestr("model.weights.h5", weights)
        hostile.attempt(path, layer_of("keras"), is_a_layer)

    check()


# ---- the suite itself ----


def test_another_file_that_is_opened_is_noticed(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)

    def read_both(path):
        return path.read_text() + (path.parent / "b").read_text()

    with pytest.raises(AssertionError, match=r"a: opened \['.*b'\]"):
        hostile.attempt(tmp_path / "a", read_both, lambda path, result: None)


def test_a_hang_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(hostile, "SECONDS", 0.1)

    def never(path):
        while True:
            pass

    with pytest.raises(hostile.Hang):
        hostile.attempt(tmp_path / "a", never, lambda path, result: None)


def test_other_errors_are_noticed(tmp_path):
    def fails(error):
        def read(path):
            raise error

        return read

    for error, kind in (
        (KeyError("x"), KeyError),
        (ValueError("a"), AssertionError),
        (UserError("no name"), AssertionError),
    ):
        with pytest.raises(kind):
            hostile.attempt(tmp_path / "a.npz", fails(error), lambda path, result: None)
