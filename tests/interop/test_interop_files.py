"""Files of arrays: written files are read back, also by the other libraries."""

import os
import pickle
import zipfile

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported anywhere

import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import Bidirectional, LSTMCell, Stack
from lstm_jax.cells import CELLS, ConvLSTMCell, GRUCell, PeepholeLSTMCell, ProjectedLSTMCell
from lstm_jax.errors import UserError
from lstm_jax.interop import (
    from_keras,
    from_lstm_jax,
    keras_options,
    read_arrays,
    to_keras,
    to_lstm_jax,
    write_arrays,
)
from tests.interop.comparison import draw_like

ARRAYS = {
    "a/w": np.arange(6, dtype="float32").reshape(2, 3).T,  # not contiguous
    "a/b": np.zeros(0, "float64"),
    "c": np.ones((), "float16"),
}


def random_params(layer, input_size=3):
    import jax

    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), input_size))
    return jax.tree.map(jnp.asarray, draw_like(np.random.default_rng(0), shapes))


def assert_same(arrays, others):
    assert set(arrays) == set(others)
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], others[name], strict=True)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_round_trip(suffix, tmp_path):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"arrays{suffix}"
    write_arrays(path, {"a": {"w": ARRAYS["a/w"], "b": ARRAYS["a/b"]}, "c": ARRAYS["c"]})
    assert_same(read_arrays(path), ARRAYS)
    assert set(read_arrays(path, "a/")) == {"a/w", "a/b"}


def test_bfloat16(tmp_path):
    pytest.importorskip("safetensors")
    arrays = {"w": np.asarray(jnp.arange(3, dtype="bfloat16"))}
    write_arrays(tmp_path / "a.safetensors", arrays)
    assert_same(read_arrays(tmp_path / "a.safetensors"), arrays)
    with pytest.raises(UserError, match=r"\.npz has no bfloat16 \(w\); use \.safetensors"):
        write_arrays(tmp_path / "a.npz", arrays)


@pytest.mark.peers
def test_safetensors_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the peer torch")
    files = pytest.importorskip("safetensors.torch")
    tensors = {"w": torch.randn(3, 2), "n": torch.arange(3)}  # integers are not weights
    files.save_file(tensors, tmp_path / "a.safetensors")
    assert_same(read_arrays(tmp_path / "a.safetensors"), {"w": tensors["w"].numpy()})


# ---- Keras ----

LAYERS = Stack([LSTMCell(2)] * 11)


def test_keras_weights_come_back_in_order(tmp_path):
    pytest.importorskip("h5py")
    params = random_params(LAYERS, 2)
    write_arrays(tmp_path / "a.weights.h5", to_keras(LAYERS, params))
    layer, back = from_keras(read_arrays(tmp_path / "a.weights.h5"))
    assert layer == LAYERS  # lstm_2 before lstm_10
    for name in params:
        assert_same(params[name], back[name])


def test_the_order_of_two_kinds_is_not_guessed(tmp_path):
    pytest.importorskip("h5py")
    stack = Stack([Bidirectional(LSTMCell(2)), GRUCell(3, reset_after=True)])
    params = random_params(stack)
    path = tmp_path / "a.weights.h5"
    write_arrays(path, to_keras(stack, params))
    with pytest.raises(UserError, match="does not store the order of layers/bidirectional, "):
        read_arrays(path)
    layer, back = from_keras(read_arrays(path, "layers/bidirectional"))
    assert layer.layers[0][1] == Bidirectional(LSTMCell(2))
    assert_same(params["layer_0"]["backward"], back["layer_0"]["backward"])


@pytest.fixture
def keras():
    pytest.importorskip("h5py")
    return pytest.importorskip("keras", reason="needs the peer keras")


def model_of(keras, **options):
    """Two kinds of layers, alphabetically in the wrong order, and a head."""
    keras.utils.clear_session()
    return keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.LSTM(2, return_sequences=True, **options),
            keras.layers.Bidirectional(
                keras.layers.GRU(4, use_bias=False, return_sequences=True, **options),
                merge_mode="ave",
            ),
            keras.layers.Dense(2),
        ]
    )


@pytest.mark.peers
def test_a_keras_model_stores_order_and_options(keras, tmp_path):
    model = model_of(keras, activation="softsign", recurrent_activation="hard_sigmoid")
    path = tmp_path / "model.keras"
    model.save(path)
    arrays = read_arrays(path)
    recurrent = {name: array for name, array in arrays.items() if "dense" not in name}
    assert set(arrays) - set(recurrent) == {"layers/dense/vars/0", "layers/dense/vars/1"}
    given = {
        "activation": "softsign",
        "recurrent_activation": "hard_sigmoid",
        "merge_mode": "ave",
        "reset_after": True,
    }
    assert keras_options(path) == given
    assert keras_options(path, "layers/lstm") == {n: given[n] for n in list(given)[:2]}
    layer, params = from_keras(recurrent, **given)
    xs = np.random.default_rng(0).normal(size=(4, 2, 3)).astype("float32")
    _, ys = layer.apply(params, xs)
    features = keras.Model(model.inputs, model.layers[-2].output)
    expected = features.predict_on_batch(xs.swapaxes(0, 1))
    # A few float32 rounding errors.
    np.testing.assert_allclose(ys.swapaxes(0, 1), expected, atol=1e-6)


@pytest.mark.peers
def test_options_of_a_cell_within_an_rnn_are_read(keras, tmp_path):
    cell = keras.layers.GRUCell(2, activation="relu", use_bias=False, reset_after=False)
    rnn = keras.layers.RNN(cell, return_sequences=True)
    both = keras.layers.Bidirectional(rnn, merge_mode="sum")
    keras.Sequential([keras.Input((None, 3)), rnn, both]).save(tmp_path / "model.keras")
    assert keras_options(tmp_path / "model.keras") == {
        "activation": "relu",
        "recurrent_activation": "sigmoid",
        "reset_after": False,
        "merge_mode": "sum",
    }


@pytest.mark.peers
def test_keras_loads_what_is_written(keras, tmp_path):
    model = keras.Sequential([keras.Input((None, 3)), *model_of(keras).layers[:2]])
    stack = Stack([LSTMCell(2), Bidirectional(GRUCell(4, reset_after=True), merge="mean")])
    params = random_params(stack)
    params["layer_1"] = {
        end: {**one, "b": 0 * one["b"], "b_hg": 0 * one["b_hg"]}
        for end, one in params["layer_1"].items()
    }
    arrays = to_keras(stack, params, merge_mode="ave")
    arrays = {n: a for n, a in arrays.items() if "gru" not in n or "bias" not in n}
    write_arrays(tmp_path / "a.weights.h5", arrays)
    model.load_weights(tmp_path / "a.weights.h5")
    for weight, array in zip(model.weights, arrays.values(), strict=True):
        np.testing.assert_array_equal(weight.numpy(), array)


@pytest.mark.peers
def test_options_that_differ_or_would_be_lost_are_named(keras, tmp_path):
    path = tmp_path / "model.keras"
    layers = [
        keras.layers.LSTM(2, return_sequences=True),
        keras.layers.LSTM(2, activation="relu", return_sequences=True),
    ]
    keras.Sequential([keras.Input((None, 3)), *layers]).save(path)
    with pytest.raises(UserError, match="layers/lstm_1 has activation='relu', but a layer before"):
        keras_options(path)
    backwards = keras.layers.LSTM(2, go_backwards=True)
    keras.Sequential([keras.Input((None, 3)), backwards]).save(path)
    with pytest.raises(UserError, match="go_backwards=True of layers/lstm would be lost"):
        keras_options(path)
    lstm = keras.layers.LSTM
    both = keras.layers.Bidirectional(
        lstm(2), backward_layer=lstm(2, go_backwards=True, activation="relu")
    )
    keras.Sequential([keras.Input((None, 3)), both]).save(path)
    with pytest.raises(UserError, match="bidirectional has activation='relu', but a layer before"):
        keras_options(path)
    for wrapped in (
        keras.layers.RNN(keras.layers.GRUCell(2), go_backwards=True),
        keras.layers.Bidirectional(
            lstm(2, go_backwards=True, return_sequences=True),
            backward_layer=lstm(2, return_sequences=True),
        ),
    ):
        keras.Sequential([keras.Input((None, 3)), wrapped]).save(path)
        with pytest.raises(UserError, match=r"go_backwards=True of layers/.* would be lost"):
            keras_options(path)
    strided = keras.layers.ConvLSTM2D(2, 3, strides=2)
    keras.Sequential([keras.Input((None, 5, 5, 1)), strided]).save(path)
    with pytest.raises(UserError, match=r"strides=\[2, 2\] of layers/conv_lstm2d would be lost"):
        keras_options(path)


# ---- files that cannot be read or written ----


def test_pickles_are_rejected(tmp_path):
    for name in ("a.pt", "a.pth", "a.pkl", "a.bin"):
        (tmp_path / name).write_bytes(pickle.dumps({"w": 1}))
        for function in (read_arrays, lambda path: write_arrays(path, ARRAYS)):
            with pytest.raises(UserError, match=r"may be, pickles.*save the arrays as \.safetens"):
                function(tmp_path / name)
    np.savez(tmp_path / "a.npz", w=np.array([{}], dtype=object))
    with pytest.raises(
        UserError,
        match=r"a\.npz: not a readable \.npz file: w.npy holds Python objects, which are pickled",
    ):
        read_arrays(tmp_path / "a.npz")


def test_headers_of_npz_must_fit(tmp_path):
    path = tmp_path / "a.npz"

    def header(shape, descr="<f4"):
        text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text

    for name, content, message in (
        ("w", header((2, 3)) + bytes(24), "w is not an array; expected members that end in .npy"),
        ("w.npy", header((2, 3)) + bytes(20), r"must hold 24 bytes for shape \(2, 3\) of .*got 20"),
        ("w.npy", header((2**40, 2**40)), "must hold 4835703278458516698824704 bytes for shape"),
        ("w.npy", header((-1, 3)) + bytes(24), r"w.npy has shape \(-1, 3\); expected no negative"),
        ("w.npy", header((1,), "|O") + bytes(8), "w.npy holds Python objects, which are pickled"),
        ("w.npy", b"\x93NUMPY\x09\x00", r"w.npy has format version \(9, 0\); expected one of"),
    ):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, content)
        with pytest.raises(UserError, match=rf"a\.npz: not a readable \.npz file: .*{message}"):
            read_arrays(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("w.npy", header((2**27,)) + bytes(2**29))
    with pytest.raises(UserError, match=r"a file of .* bytes declares 536.* bytes of arrays; exp"):
        read_arrays(path)


def test_a_file_is_replaced_when_the_new_one_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    before = path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match=r"a\.npz: cannot be written: No space left on device"):
            write_arrays(path, {"w": np.ones(3)})
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]
    with pytest.raises(UserError, match=r"b\.npz: cannot be written: it is not a regular file"):
        (tmp_path / "b.npz").mkdir()
        write_arrays(tmp_path / "b.npz", ARRAYS)
    with pytest.raises(UserError, match=r"b\.npz: is a folder; expected a \.npz file"):
        read_arrays(tmp_path / "b.npz")
    link = tmp_path / "link.npz"
    link.symlink_to(path)
    write_arrays(link, {"w": np.ones(3)})
    assert link.is_symlink() and list(read_arrays(path)) == ["w"]


def test_damaged_missing_and_unknown_files_are_named(tmp_path):
    for suffix in (".npz", ".safetensors", ".h5", ".keras"):
        path = tmp_path / f"a{suffix}"
        with pytest.raises(UserError, match=rf"a\{suffix}: no such file"):
            read_arrays(path)
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(UserError, match=rf"a\{suffix}: not a readable \{suffix} file: "):
            read_arrays(path)
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as file:
        file.writestr("config.json", "{}")
    with pytest.raises(UserError, match=r"a\.keras: not a readable \.keras file: "):
        read_arrays(tmp_path / "a.keras")
    with pytest.raises(UserError, match=r"a\.txt: unknown kind of file; expected one of \.safeten"):
        read_arrays(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.keras: unknown kind of file; expected one of"):
        write_arrays(tmp_path / "a.keras", ARRAYS)
    with pytest.raises(UserError, match=r"a\.npz: cannot be written: no folder "):
        write_arrays(tmp_path / "no" / "a.npz", ARRAYS)
    with pytest.raises(UserError, match=r"h5 file holds arrays of Keras layers, .* got a/w"):
        write_arrays(tmp_path / "a.weights.h5", ARRAYS)
    with pytest.raises(UserError, match=r"h5 file holds arrays of Keras layers, .* got kernel"):
        write_arrays(tmp_path / "a.weights.h5", {"kernel": np.ones((2, 8))})
    write_arrays(tmp_path / "b.npz", ARRAYS)
    with pytest.raises(UserError, match="no array has a name that begins with 'd', got a/w"):
        read_arrays(tmp_path / "b.npz", "d")


# ---- our own names ----

OWN = [
    Stack([LSTMCell(2), GRUCell(3), GRUCell(2, reset_after=True), CELLS["rnn"](3)]),
    Stack([Bidirectional(PeepholeLSTMCell(2)), ProjectedLSTMCell(4, proj_size=2)]),
    ConvLSTMCell(2, kernel_size=(3,), peepholes=True, spatial_shape=(5,)),
    LSTMCell(3),
]


@pytest.mark.parametrize("layer", OWN)
def test_our_names_determine_the_layer(layer):
    params = random_params(layer)
    flat = to_lstm_jax(layer, params)
    again, back = from_lstm_jax(flat)
    assert again == layer
    assert_same(to_lstm_jax(again, back), flat)


def test_options_that_our_names_do_not_determine():
    cell = LSTMCell(3, gate_fn="hard_sigmoid")
    params = random_params(cell)
    with pytest.raises(ValueError, match="gate_fn='hard_sigmoid' of LSTMCell would be lost"):
        to_lstm_jax(cell, params)
    flat = to_lstm_jax(cell, params, gate_fn="hard_sigmoid")
    assert from_lstm_jax(flat, gate_fn="hard_sigmoid")[0] == cell
    with pytest.raises(ValueError, match="CoupledLSTMCell would be lost"):
        to_lstm_jax(CELLS["coupled"](3), random_params(CELLS["coupled"](3)))


def ones(*shape):
    return np.ones(shape, "float32")


WRONG = [
    ({"w_hh": ones(2, 5)}, "w_ih is missing or not a matrix, among w_hh"),
    ({"w_hh": ones(2, 5), "w_ih": ones(2, 5)}, r"w_hh must be of an LSTM, GRU or RNN, got .*2, 5"),
    (
        {"layer_1": {"w_hh": ones(2, 8)}},
        "layer_0 is missing from the arrays of lstm_jax, got",
    ),
    ({"layer_0/forward/w_hh": ones(2, 8)}, "layer_0 must have forward and backward, got forward"),
    (
        {"layer_0/w_hh": ones(2, 8), "layer_0/w_ih": ones(3, 8), "layer_0/bias": ones(8)},
        "layer_0/params of LSTMCell must have w_ih, w_hh, b, got w_hh, w_ih, bias",
    ),
]


@pytest.mark.parametrize(("arrays", "message"), WRONG)
def test_wrong_arrays_with_our_names_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        from_lstm_jax(arrays)
