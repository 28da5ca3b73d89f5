"""Keras files in every layout, compared with Keras, and hostile files."""

import io
import json
import os
import zipfile

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported anywhere

import numpy as np
import pytest

from lstm_jax import Bidirectional, LSTMCell, Stack
from lstm_jax.cells import GRUCell
from lstm_jax.errors import UserError
from lstm_jax.interop import (
    from_keras,
    hard_sigmoid_of_keras_2,
    keras_mask_value,
    keras_options,
    read_arrays,
    to_keras,
    write_arrays,
)
from lstm_jax.interop.convert import read_layer
from tests.interop.test_interop_files import random_params

h5py = pytest.importorskip("h5py", reason="needs h5py")

XS = np.random.default_rng(0).normal(size=(5, 2, 3)).astype("float32")  # [T, B, D]
TOLERANCE = 1e-6  # a few float32 rounding errors of numbers below 1


@pytest.fixture
def keras():
    return pytest.importorskip("keras", reason="needs the peer keras")


def random_weights(model):
    """Weights that are large enough for gates and biases to matter."""
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(-1, 1, w.shape).astype("float32") for w in model.weights])
    return model


def assert_reads_as(model, path, prefix="", **options):
    """The file's layer computes the same as the Keras model."""
    layer, params = read_layer(path, "keras", prefix, [f"{n}={v}" for n, v in options.items()])
    _, ys = layer.apply(params, XS)
    expected = model.predict_on_batch(XS.swapaxes(0, 1))
    np.testing.assert_allclose(np.swapaxes(ys, 0, 1), expected, atol=TOLERANCE)
    return layer


# ---- files that Keras 3 writes ----


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # Keras warns about its own legacy format
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.hdf5"])
def test_a_saved_model_has_its_order_and_options(name, keras, tmp_path):
    """Two LSTM layers whose names are in the wrong order, and two cells in one layer."""
    keras.utils.clear_session()
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            layers.LSTM(2, name="z", return_sequences=True, activation="relu"),
            layers.LSTM(4, name="a", return_sequences=True, activation="relu", dropout=0.5),
            layers.RNN(
                [layers.LSTMCell(3, activation="relu"), layers.GRUCell(2, activation="relu")],
                return_sequences=True,
            ),
            layers.Bidirectional(
                layers.LSTM(2, activation="relu", return_sequences=True), name="both"
            ),
        ]
    )
    random_weights(model).save(tmp_path / name)
    layer = assert_reads_as(model, tmp_path / name)
    kinds = [one for _, one in layer.layers]
    assert kinds[:2] == [LSTMCell(2, activation_fn="relu"), LSTMCell(4, activation_fn="relu")]
    assert isinstance(kinds[3], GRUCell) and isinstance(kinds[4], Bidirectional)
    part = "a" if name != "model.keras" else "layers/lstm_1"
    layer, _ = read_layer(tmp_path / name, "keras", part)
    assert layer == Stack([LSTMCell(4, activation_fn="relu")])


@pytest.mark.peers
def test_two_cells_in_one_layer_of_a_weights_file(keras, tmp_path):
    keras.utils.clear_session()
    cell = keras.layers.LSTMCell
    rnn = keras.layers.RNN([cell(2), cell(4), cell(3)], return_sequences=True)
    model = random_weights(keras.Sequential([keras.Input((None, 3)), rnn]))
    model.save_weights(tmp_path / "a.weights.h5")
    assert_reads_as(model, tmp_path / "a.weights.h5")
    rnn = keras.layers.RNN([cell(2), keras.layers.GRUCell(3)])
    keras.Sequential([keras.Input((None, 3)), rnn]).save_weights(tmp_path / "b.weights.h5")
    with pytest.raises(
        UserError, match=r"b\.weights\.h5: does not store the order of layers/rnn/c"
    ):
        read_arrays(tmp_path / "b.weights.h5")


@pytest.mark.peers
def test_a_model_within_a_model(keras, tmp_path):
    keras.utils.clear_session()
    lstm = keras.layers.LSTM
    inputs = keras.Input((None, 3))
    inner = keras.Model(inputs, lstm(2, return_sequences=True, activation="relu")(inputs))
    outer = lstm(4, return_sequences=True, activation="relu")
    model = random_weights(keras.Sequential([keras.Input((None, 3)), inner, outer]))
    model.save(tmp_path / "a.keras")
    assert_reads_as(model, tmp_path / "a.keras")


@pytest.mark.peers
def test_bfloat16_weights(keras, tmp_path):
    keras.utils.clear_session()
    lstm = keras.layers.LSTM(2, dtype="bfloat16")
    model = keras.Sequential([keras.Input((None, 3), dtype="bfloat16"), lstm])
    model.save_weights(tmp_path / "a.weights.h5")
    arrays = read_arrays(tmp_path / "a.weights.h5")
    for array, weight in zip(arrays.values(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, weight, strict=True)


# ---- files that Keras 2 wrote, built in its layout ----


def keras_2_file(path, layers, config=None, version=b"2.2.4", split=False):
    """A file in the layout of Keras 2, as ``save_weights_to_hdf5_group`` writes it.

    Args:
      layers: ``{layer: {weight: array}}`` in the model's order, with full names.
      config: the model's config, if this is a saved model and not only weights.
      split: whether lists of names are split into numbered parts, as for long lists.
    """

    def put(group, name, strings):
        parts = np.array_split(strings, 2) if split and len(strings) > 1 else [strings]
        for n, part in enumerate(parts):
            group.attrs[f"{name}{n}" if len(parts) > 1 else name] = np.array(part, "S")

    with h5py.File(path, "w") as file:
        group = file
        if config is not None:
            file.attrs["keras_version"] = version
            file.attrs["backend"] = b"tensorflow"
            file.attrs["model_config"] = json.dumps(config).encode()
            group = file.create_group("model_weights")
        group.attrs["keras_version"] = version
        group.attrs["backend"] = b"tensorflow"
        put(group, "layer_names", [name.encode() for name in layers])
        for name, weights in layers.items():
            inside = group.create_group(name)
            put(inside, "weight_names", [weight.encode() for weight in weights])
            for weight, array in weights.items():
                inside[weight] = array


def layer_config(kind, name, **options):
    given = {"name": name, "recurrent_initializer": {"class_name": "Orthogonal", "config": {}}}
    return {"class_name": kind, "config": {**given, **options}}


def weights_of(path, D, H, gates=4):
    rng = np.random.default_rng(D * H)
    shapes = {"kernel": (D, gates * H), "recurrent_kernel": (H, gates * H), "bias": (gates * H,)}
    return {f"{path}/{n}:0": rng.uniform(-1, 1, s).astype("float32") for n, s in shapes.items()}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("saved", [False, True])
def test_names_and_order_of_keras_2(saved, split, tmp_path):
    z, a = weights_of("z/lstm_cell", 3, 2), weights_of("a/lstm_cell", 2, 3)
    dense = {"dense/kernel:0": np.ones((3, 1), "float32")}
    layers = {"input": {}, "z": z, "a": a, "dense": dense}
    config = {"class_name": "Sequential", "config": [layer_config("LSTM", n) for n in "za"]}
    keras_2_file(tmp_path / "m.hdf5", layers, config if saved else None, split=split)
    arrays = read_arrays(tmp_path / "m.hdf5")
    names = ("kernel", "recurrent_kernel", "bias")
    recurrent = [f"{layer}/lstm_cell/{name}" for layer in "za" for name in names]
    assert list(arrays) == [*recurrent, "dense/kernel"]
    del arrays["dense/kernel"]
    layer, params = from_keras(arrays)
    assert layer == Stack([LSTMCell(2), LSTMCell(3)])
    assert all((params["layer_1"]["w_ih"] == a["a/lstm_cell/kernel:0"]).ravel())
    assert read_layer(tmp_path / "m.hdf5", "keras", "a")[0] == Stack([LSTMCell(3)])


def test_cells_in_one_layer_of_keras_2(tmp_path):
    cells = weights_of("rnn/stacked_rnn_cells/lstm_cell_1", 3, 2)
    cells |= weights_of("rnn/stacked_rnn_cells/lstm_cell", 2, 4)
    inner = [layer_config("LSTMCell", n, activation="relu") for n in ("lstm_cell_1", "lstm_cell")]
    cell = {"class_name": "StackedRNNCells", "config": {"cells": inner}}
    rnn = {"class_name": "RNN", "config": {"name": "rnn", "cell": cell}}
    config = {"class_name": "Sequential", "config": {"layers": [rnn]}}
    keras_2_file(tmp_path / "m.h5", {"rnn": cells}, config)
    layer, _ = read_layer(tmp_path / "m.h5", "keras")
    assert layer == Stack([LSTMCell(n, activation_fn="relu") for n in (2, 4)])


def test_the_hard_sigmoid_of_keras_2(tmp_path):
    """Its slope is 1/5; since Keras 3 it is 1/6."""
    config = {
        "class_name": "Sequential",
        "config": [layer_config("LSTM", "lstm", recurrent_activation="hard_sigmoid")],
    }
    for version, wanted in ((b"2.2.4", hard_sigmoid_of_keras_2), (b"3.4.1", "hard_sigmoid")):
        layers = {"lstm": weights_of("lstm", 3, 2)}
        keras_2_file(tmp_path / "m.h5", layers, config, version)
        assert keras_options(tmp_path / "m.h5") == {"recurrent_activation": wanted}
        layer, _ = read_layer(tmp_path / "m.h5", "keras")
        assert layer == Stack([LSTMCell(2, gate_fn=wanted)])
    x = np.linspace(-4, 4, 17, dtype="float32")
    np.testing.assert_allclose(hard_sigmoid_of_keras_2(x), np.clip(0.2 * x + 0.5, 0, 1), rtol=1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cudnn_lstm(kernel, recurrent, bias, xs):
    """cuDNN's equations on the flat parameters that ``CuDNNLSTM`` passes to it, block by block."""
    (D, H), gates = (kernel.shape[0], recurrent.shape[0]), 4
    W = [block.ravel().reshape(H, D) for block in np.split(kernel, gates, 1)]
    R = [block.ravel().reshape(H, H) for block in np.split(recurrent, gates, 1)]
    bW, bR = (np.split(half, gates) for half in np.split(bias, 2))
    h, c, ys = np.zeros((xs.shape[1], H)), np.zeros((xs.shape[1], H)), []
    for x in xs:
        i, f, g, o = (x @ w.T + h @ r.T + a + b for w, r, a, b in zip(W, R, bW, bR, strict=True))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.stack(ys)


def cudnn_gru(kernel, recurrent, bias, xs):
    (D, H), gates = (kernel.shape[0], recurrent.shape[0]), 3
    W = [block.ravel().reshape(H, D) for block in np.split(kernel, gates, 1)]
    R = [block.ravel().reshape(H, H) for block in np.split(recurrent, gates, 1)]
    bW, bR = (np.split(half, gates) for half in np.split(bias, 2))
    h, ys = np.zeros((xs.shape[1], H)), []
    for x in xs:
        z, r = (sigmoid(x @ W[n].T + h @ R[n].T + bW[n] + bR[n]) for n in (0, 1))
        g = np.tanh(x @ W[2].T + bW[2] + r * (h @ R[2].T + bR[2]))
        h = (1 - z) * g + z * h
        ys.append(h)
    return np.stack(ys)


@pytest.mark.parametrize(
    ("kind", "reference", "gates"), [("lstm", cudnn_lstm, 4), ("gru", cudnn_gru, 3)]
)
def test_layers_of_cudnn_in_keras_2(kind, reference, gates, tmp_path):
    """Two biases side by side, and kernels whose blocks are transposed in memory."""
    H, name = 4, f"cu_dnn{kind}_1"
    weights = weights_of(name, 3, H, gates)
    bias = np.random.default_rng(7).uniform(-1, 1, 2 * gates * H).astype("float32")
    weights[f"{name}/bias:0"] = bias
    config = {"class_name": "Sequential", "config": [layer_config(f"CuDNN{kind.upper()}", name)]}
    keras_2_file(tmp_path / "m.hdf5", {name: weights}, config, b"2.2.4")
    layer, params = read_layer(tmp_path / "m.hdf5", "keras")
    _, ys = layer.apply(params, XS)
    np.testing.assert_allclose(ys, reference(*weights.values(), XS), atol=TOLERANCE)
    with pytest.raises(ValueError, match="reset_after=True, got reset_after=False"):
        if kind == "gru":
            from_keras(read_arrays(tmp_path / "m.hdf5"), reset_after=False)
        else:
            raise ValueError("reset_after=True, got reset_after=False")


def test_both_directions_of_cudnn_in_keras_2(tmp_path):
    both = {}
    for end in ("forward", "backward"):
        name = f"bidirectional_1/{end}_cu_dnnlstm_1"
        both |= weights_of(name, 3, 2)
        both[f"{name}/bias:0"] = np.arange(16, dtype="float32")
    keras_2_file(tmp_path / "m.h5", {"bidirectional_1": both})
    layer, params = from_keras(read_arrays(tmp_path / "m.h5"))
    assert layer == Stack([Bidirectional(LSTMCell(2))])
    bias = np.arange(8) + np.arange(8, 16)
    np.testing.assert_array_equal(params["layer_0"]["backward"]["b"], bias)


# ---- hostile files ----

GOOD = to_keras(Stack([LSTMCell(2)]), random_params(Stack([LSTMCell(2)])))
WHERE = "layers/lstm/cell/vars"
SECRET = b"root:x:0:0:root:/root:/bin/bash\n" * 8


@pytest.fixture
def weights(tmp_path):
    """A valid file, and a secret file next to it."""
    (tmp_path / "secret").write_bytes(SECRET)
    path = tmp_path / "a.weights.h5"
    write_arrays(path, GOOD)
    return path


def external(file, folder):
    place = [(str(folder / "secret"), 0, 96)]
    file.create_dataset(f"{WHERE}/0", (3, 8), "float32", external=place)


def virtual(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones((3, 8), "float32")
    layout = h5py.VirtualLayout((3, 8), "float32")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (3, 8))
    file.create_virtual_dataset(f"{WHERE}/0", layout)


def external_link(file, folder):
    virtual(file, folder)
    del file[f"{WHERE}/0"]
    file[f"{WHERE}/0"] = h5py.ExternalLink(str(folder / "other.h5"), "x")


def soft_link(file, folder):
    file[f"{WHERE}/0"] = h5py.SoftLink(f"/{WHERE}/1")


def link_to_itself(file, folder):
    file["layers/loop"] = file["layers"]


def unknown_filter(file, folder):
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((3, 8))
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    space, kind = h5py.h5s.create_simple((3, 8)), h5py.h5t.NATIVE_FLOAT
    h5py.h5d.create(file.id, f"{WHERE}/0".encode(), kind, space, properties)


def never_written(file, folder):
    file.create_dataset(f"{WHERE}/0", (2**40, 8), "float32", chunks=(1, 8))


def compressed(file, folder):
    shape = (2**13, 2**14)
    file.create_dataset(f"{WHERE}/0", shape, "float32", chunks=(2**10, 2**10), compression="gzip")


HOSTILE = [
    (external, "vars/0 has its numbers in another file; expected them in this one"),
    (virtual, "vars/0 has its numbers in another file; expected them in this one"),
    (external_link, "vars/0 is a link to .*other.h5 x; expected the array itself"),
    (soft_link, "vars/0 is a link to /layers/lstm/cell/vars/1; expected the array itself"),
    (link_to_itself, "layers/loop is in the file twice, or too deep in groups"),
    (unknown_filter, r"vars/0 is compressed by a plug-in \(filter 32015\), which is not run"),
    (never_written, "a file of .* bytes declares .* bytes of arrays; expected at most"),
    (compressed, "a file of .* bytes declares 5368.* bytes of arrays; expected at most"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_no_other_file_is_read_and_memory_stays_bounded(change, message, suffix, weights):
    with h5py.File(weights, "a") as file:
        del file[f"{WHERE}/0"]
        change(file, weights.parent)
    path = weights
    if suffix == ".keras":
        path = weights.with_name("a.keras")
        config = {"config": {"layers": [layer_config("LSTM", "lstm")]}}
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("config.json", json.dumps(config))
            file.write(weights, "model.weights.h5")
    with pytest.raises(UserError, match=f"a\\{suffix}: not a readable .*: .*{message}") as error:
        read_arrays(path)
    assert "\n" not in str(error.value)


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_members_stay_in_the_zip_file(weights):
    path, folder = weights.with_name("a.keras"), weights.parent
    config = json.dumps({"config": {"layers": [layer_config("LSTM", "lstm")]}})
    good = [("config.json", config), ("model.weights.h5", weights.read_bytes())]
    zipped(path, [*good, ("../../evil", "x"), ("/evil", "x")])
    before = sorted(folder.iterdir())
    assert len(read_arrays(path)) == 3  # such members are never extracted
    assert sorted(folder.iterdir()) == before
    zipped(path, [*good, ("assets/zeros", bytes(2**29))], zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"a\.keras: .* declares 53687.* bytes of arrays; expected"):
        read_arrays(path)
    zipped(path, [*good, good[0]])
    with pytest.raises(UserError, match=r"a\.keras: .*: config.json is in the file twice"):
        read_arrays(path)


CONFIGS = [
    ("[]", "the config must have layers, of type list, got NoneType"),
    ("{}", "the config must have layers, of type list, got NoneType"),
    ('{"config": {"layers": 5}}', "the config must have layers, of type list, got int"),
    ('{"config": {"layers": [5]}}', "the config must have class_name, of type str, got NoneType"),
    ('{"config": {"layers": [{"class_name": 5}]}}', "must have class_name, of type str, got int"),
    ("[" * 5000, "maximum recursion depth exceeded"),
    ('{"config": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ('{"config"', "Expecting ':' delimiter"),
]


@pytest.mark.parametrize(("config", "message"), CONFIGS)
def test_mistaken_configs_are_named(config, message, weights):
    path = weights.with_name("a.keras")
    zipped(path, [("config.json", config), ("model.weights.h5", weights.read_bytes())])
    for read in (read_arrays, keras_options):
        with pytest.raises(UserError, match=rf"a\.keras: not a readable \.keras file: .*{message}"):
            read(path)


def test_a_model_without_optional_keys(weights):
    """Missing keys have Keras's defaults."""
    path = weights.with_name("a.keras")
    lstm = {"class_name": "LSTM", "config": {"recurrent_initializer": None}}
    both = {"class_name": "Bidirectional", "config": {"layer": lstm}}
    config = {"config": {"layers": [{"class_name": "InputLayer"}, lstm, both]}}
    stack = Stack([LSTMCell(2), Bidirectional(LSTMCell(3))])
    write_arrays(weights, to_keras(stack, random_params(stack)))
    zipped(path, [("config.json", json.dumps(config)), ("model.weights.h5", weights.read_bytes())])
    assert keras_options(path) == {"merge_mode": "concat"}
    assert read_layer(path, "keras")[0] == stack
    zipped(path, [("config.json", json.dumps(config))])
    with pytest.raises(
        UserError, match=r"model\.weights\.h5 is missing from the zip file, got con"
    ):
        read_arrays(path)
    zipped(path, [("model.weights.h5", weights.read_bytes())])
    for read in (read_arrays, keras_options):
        with pytest.raises(UserError, match=r"config\.json is missing from the zip file, got mode"):
            read(path)


def test_a_custom_function_is_named(weights):
    path = weights.with_name("a.keras")
    config = {"config": {"layers": [layer_config("LSTM", "lstm", activation={"class_name": "f"})]}}
    zipped(path, [("config.json", json.dumps(config))])
    with pytest.raises(UserError, match=r"a\.keras: activation of layers/lstm must be a name, got"):
        keras_options(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: g.attrs.__setitem__("layer_names", np.array([b"b"])),
            "b is listed in layer_names",
        ),
        (
            lambda g: g.attrs.__setitem__("layer_names", np.array([5])),
            "layer_names must be strings",
        ),
        (
            lambda g: g["lstm"].attrs.__setitem__("weight_names", np.array([b"w"])),
            "lstm/w is listed in weight_names but is not in the file",
        ),
        (
            lambda g: g["lstm"].attrs.__setitem__("weight_names", np.array([b"lstm/bias:0"] * 2)),
            "two weights are named lstm/bias",
        ),
        (
            lambda g: g["lstm"].attrs.__setitem__("weight_names", np.array([b"\xff"])),
            "can't decode byte 0xff",
        ),
    ],
)
def test_mistaken_names_of_keras_2_are_named(change, message, tmp_path):
    keras_2_file(tmp_path / "m.h5", {"lstm": weights_of("lstm", 3, 2)})
    with h5py.File(tmp_path / "m.h5", "a") as file:
        change(file)
    with pytest.raises(UserError, match=rf"m\.h5: not a readable \.h5 file: .*{message}"):
        read_arrays(tmp_path / "m.h5")


def test_big_endian_weights(tmp_path):
    arrays = {name: array.astype(">f4") for name, array in GOOD.items()}
    write_arrays(tmp_path / "a.weights.h5", arrays)
    back = read_arrays(tmp_path / "a.weights.h5")
    assert {array.dtype for array in back.values()} == {np.dtype("float32")}
    file = io.BytesIO()
    np.savez(file, **{name.replace("/", "."): array for name, array in arrays.items()})
    (tmp_path / "a.npz").write_bytes(file.getvalue())
    for name, array in zip(GOOD, read_arrays(tmp_path / "a.npz").values(), strict=True):
        np.testing.assert_array_equal(array, GOOD[name], strict=True)


# ---- masks ----


def test_the_value_of_a_masking_layer(keras, tmp_path):
    path = tmp_path / "model.keras"
    inner = keras.Sequential([keras.Input((None, 3)), keras.layers.Masking(mask_value=-2)])
    keras.Sequential([keras.Input((None, 3)), inner, keras.layers.LSTM(2)]).save(path)
    assert keras_mask_value(path) == -2.0
    keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(2)]).save(path)
    assert keras_mask_value(path) is None


def test_several_values_of_masking_layers(keras, tmp_path):
    path = tmp_path / "model.keras"
    layers = [keras.layers.Masking(mask_value=value) for value in (0.0, 1.0)]
    keras.Sequential([keras.Input((None, 3)), *layers, keras.layers.LSTM(2)]).save(path)
    with pytest.raises(UserError, match=r"Masking layers must have one mask_value, got 0\.0, 1\.0"):
        keras_mask_value(path)


def test_a_masking_layer_of_keras_2(tmp_path):
    path = tmp_path / "model.h5"
    layer = {"class_name": "Masking", "config": {"name": "masking", "mask_value": 0.5}}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": [layer]})
    assert keras_mask_value(path) == 0.5
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Sequential", "config": [layer | {"config": {"mask_value": "x"}}]}
        )
    with pytest.raises(UserError, match=r"must have mask_value, of type int \| float, got str"):
        keras_mask_value(path)
