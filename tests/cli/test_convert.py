"""``lstm-jax convert``."""

import itertools

import jax
import numpy as np
import pytest

from lstm_jax import LSTM
from lstm_jax.cli import main
from lstm_jax.interop import from_torch, read_arrays, to_lstm_jax, to_torch, write_arrays
from lstm_jax.interop.convert import write_layer
from lstm_jax.train import load_run

LAYER = LSTM(4, 2)


@pytest.fixture
def source(tmp_path):
    """A file with two torch layers and an unrelated head."""
    params = jax.tree.map(lambda a: a + 1.0, LAYER.init(jax.random.key(0), 3))  # biases, too
    arrays = to_torch(LAYER, params, prefix="lstm.")
    write_arrays(tmp_path / "model.npz", {**arrays, "head.weight": np.ones((2, 4), "float32")})
    return tmp_path / "model.npz"


def test_round_trip_through_every_library_with_stacks(source, tmp_path, capsys):
    steps = [
        ("torch", source),
        *((name, tmp_path / f"{name}.npz") for name in ("keras", "lstm_jax")),
    ]
    steps.append(("torch", tmp_path / "back.npz"))
    for (before, path), (after, target) in itertools.pairwise(steps):
        prefix = ["--prefix", "lstm."] if path == source else []
        convert = ["convert", str(path), str(target), "--from", before, "--to", after]
        assert main([*convert, *prefix]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "lstm/lstm_cell/kernel  float32 (3, 16)"
    assert said[-1] == "bias_hh_l1  float32 (16,)"
    again = read_arrays(tmp_path / "back.npz")
    for name, array in read_arrays(source, "lstm.").items():
        np.testing.assert_array_equal(again[name.removeprefix("lstm.")], array, strict=True)


@pytest.mark.parametrize("library", ["equinox", "flax", "haiku", "cudnn"])
def test_round_trip_of_one_layer_through_cell_libraries(library, tmp_path):
    lstm = LSTM(4)
    arrays = to_torch(lstm, lstm.init(jax.random.key(0), 3))
    write_arrays(tmp_path / "a.npz", arrays)
    a, b, c = (str(tmp_path / name) for name in ("a.npz", "b.npz", "c.npz"))
    assert main(["convert", a, b, "--from", "torch", "--to", library]) == 0
    sizes = ["--reading", "input_size=3", "hidden_size=4"] if library == "cudnn" else []
    assert main(["convert", b, c, "--from", library, "--to", "torch", *sizes]) == 0
    back = read_arrays(c)
    end = "_l0" if library == "cudnn" else ""  # a cell comes back as a cell
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name.removesuffix("_l0") + end], array, strict=True)


def test_library_of_keras_files_is_detected(source, tmp_path):
    pytest.importorskip("h5py")
    h5, back = str(tmp_path / "a.weights.h5"), str(tmp_path / "b.npz")
    assert main(["convert", str(source), h5, "--from", "torch", "--prefix", "lstm"]) == 0
    assert main(["convert", h5, back, "--to", "torch"]) == 0
    layer, _ = from_torch(read_arrays(back))
    assert layer == LAYER.stack


def test_onnx_model_is_converted(tmp_path, capsys):
    pytest.importorskip("onnx")
    lstm = LSTM(4, 2, cell=("lstm", "gru"))
    params = lstm.init(jax.random.key(0), 3)
    a, b, c = (str(tmp_path / name) for name in ("a.npz", "b.onnx", "c.npz"))
    write_arrays(a, to_lstm_jax(lstm, params))
    assert main(["convert", a, b, "--from", "lstm_jax"]) == 0
    assert "float32" in capsys.readouterr().out
    assert main(["convert", b, c, "--to", "lstm_jax"]) == 0
    back = read_arrays(c)
    for name, array in read_arrays(a).items():
        np.testing.assert_array_equal(back[name], array, strict=True)
    assert main(["convert", b, c, "--to", "lstm_jax", "--prefix", "dense"]) == 1
    assert "no recurrent layer has a name that begins with 'dense'" in capsys.readouterr().err
    assert main(["convert", "none.onnx", c, "--to", "torch"]) == 1
    assert capsys.readouterr().err.startswith("lstm-jax: error: none.onnx: ")


def test_bidirectional_layers_round_trip_through_onnx(tmp_path):
    pytest.importorskip("onnx")
    lstm = LSTM(4, 2, bidirectional=True)
    arrays = to_torch(lstm, lstm.init(jax.random.key(0), 3))
    a, b, c = (str(tmp_path / name) for name in ("a.npz", "b.onnx", "c.npz"))
    write_arrays(a, arrays)
    assert main(["convert", a, b, "--from", "torch"]) == 0
    assert main(["convert", b, c, "--to", "torch"]) == 0
    back = read_arrays(c)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, strict=True)


def test_separate_directions_do_not_form_a_stack(tmp_path, capsys):
    pytest.importorskip("onnx")
    both = LSTM(4, bidirectional=True, merge="sum")  # one operator per direction
    write_layer(tmp_path / "b.onnx", "onnx", both, both.init(jax.random.key(0), 3))
    convert = ["convert", str(tmp_path / "b.onnx"), str(tmp_path / "c.npz"), "--to", "torch"]
    assert main(convert) == 1
    assert "LSTM_1 must have input size 4" in capsys.readouterr().err
    assert main([*convert, "--prefix", "LSTM_0"]) == 0
    assert "weight_ih_l0  float32 (16, 3)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.npz", "a.weights.h5"])
def test_cell_is_written_to_a_library_of_layers(name, tmp_path):
    pytest.importorskip("h5py")
    lstm = LSTM(4)
    params = lstm.init(jax.random.key(0), 3)
    write_arrays(tmp_path / "cell.npz", params["layer_0"])
    cell, held, back = (str(tmp_path / path) for path in ("cell.npz", name, "back.npz"))
    library = "keras" if name.endswith(".h5") else "cudnn"
    sizes = [] if library == "keras" else ["--reading", "input_size=3", "hidden_size=4"]
    assert main(["convert", cell, held, "--from", "lstm_jax", "--to", library]) == 0
    assert main(["convert", held, back, "--from", library, "--to", "torch", *sizes]) == 0
    layer, again = from_torch(read_arrays(back))
    assert layer == lstm.stack
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_options(tmp_path):
    rnn = LSTM(4, cell="rnn")
    params = rnn.init(jax.random.key(0), 3)
    write_arrays(tmp_path / "a.npz", to_torch(rnn, params))
    a, b = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    convert = ["convert", a, b, "--from", "torch", "--to", "haiku"]
    assert main([*convert, "--reading", "nonlinearity=relu", "--writing", "double_bias=false"]) == 0
    assert "vanilla_rnn/linear_1/b" not in read_arrays(b)


WRONG = [
    (["--to", "keras"], "--from: expected one of cudnn, equinox, flax, haiku, keras, lstm_jax, o"),
    (["--from", "torch"], "--to: expected one of cudnn, equinox, flax, haiku, keras, lstm_jax, o"),
    (
        ["--from", "torch", "--to", "keras"],
        "model.npz: lstm.weight_ih_l0 is not an array of a",
    ),
    (
        ["--from", "torch", "--to", "keras", "--prefix", "gru."],
        "model.npz: no array has a name that begins with 'gru.'",
    ),
    (
        ["--from", "torch", "--to", "flax", "--prefix", "lstm."],
        "b.npz: flax has only cells, and a file holds one cell; got 2 layers",
    ),
    (
        ["--from", "torch", "--to", "torch", "--prefix", "lstm.", "--writing", "bias=false"],
        "b.npz: b is not zero and would be lost",
    ),
    (
        ["--from", "torch", "--to", "keras", "--reading", "relu"],
        "relu: expected NAME=VALUE",
    ),
    (
        ["--from", "torch", "--to", "keras", "--reading", "activation=relu"],
        "activation: no option from torch; expected one of nonlinearity",
    ),
    (
        ["--from", "torch", "--to", "keras", "--prefix", "lstm.", "--reading", "nonlinearity=x"],
        "model.npz: nonlinearity must be 'tanh' or 'relu', got 'x'",
    ),
]


@pytest.mark.parametrize(("flags", "message"), WRONG)
def test_mistakes_give_one_line(flags, message, source, tmp_path, capsys):
    assert main(["convert", str(source), str(tmp_path / "b.npz"), *flags]) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1, printed


def test_pickles_and_unknown_libraries_are_rejected(tmp_path, capsys):
    target = str(tmp_path / "b.npz")
    assert main(["convert", "a.pt", target, "--from", "torch", "--to", "keras"]) == 1
    assert "pickles, which run code" in capsys.readouterr().err
    assert main(["convert", "a.npz", target, "--from", "theano", "--to", "keras"]) == 2
    assert "theano" in capsys.readouterr().err


def test_layers_of_a_run_are_converted(workdir, tmp_path, capsys):
    out = tmp_path / "out.npz"
    assert main(["convert", str(workdir), str(out), "--to", "torch"]) == 0
    trained = load_run(workdir).model.module.lstm.params
    _, params = from_torch(read_arrays(out))
    jax.tree.map(np.testing.assert_array_equal, params, trained)
    capsys.readouterr()
    for flag, value in (("--from", "torch"), ("--prefix", "a."), ("--reading", "bias=false")):
        assert main(["convert", str(workdir), str(out), "--to", "torch", flag, value]) == 1
        said = capsys.readouterr().err
        assert f"{flag}: is for files, not for a run's folder, got {value}" in said
    assert (
        main(["convert", str(tmp_path / "no"), str(out), "--from", "torch", "--to", "keras"]) == 1
    )
    assert "no: unknown kind of file" in capsys.readouterr().err


def hostile_h5(path):
    h5py = pytest.importorskip("h5py")
    (path.parent / "secret").write_text("root:x:0:0" * 100)
    with h5py.File(path, "w") as file:
        place = [(str(path.parent / "secret"), 0, 96)]
        file.create_dataset("layers/lstm/cell/vars/0", (3, 8), "float32", external=place)


def hostile_onnx(path):
    onnx = pytest.importorskip("onnx")
    lstm = LSTM(8)
    write_layer(path, "onnx", lstm, lstm.init(jax.random.key(0), 3))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="far.bin", size_threshold=0)
    (path.parent / "far.bin").unlink()


def hostile_npz(path):
    np.savez(path, weight_hh_l0=np.array([{}], dtype=object))


FILES = {
    "a.weights.h5": (hostile_h5, "keras", "vars/0 has its numbers in another file"),
    "a.onnx": (hostile_onnx, "onnx", "are in another file, 'far.bin', which is not read"),
    "a.npz": (hostile_npz, "torch", "holds Python objects, which are pickled"),
    "a.keras": (lambda path: path.write_bytes(b"PK"), "keras", "not a readable .keras file"),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_give_one_line_and_no_output(name, tmp_path, capsys):
    make, library, message = FILES[name]
    make(tmp_path / name)
    out = tmp_path / "out.npz"
    assert (
        main(["convert", str(tmp_path / name), str(out), "--from", library, "--to", "torch"]) == 1
    )
    said = capsys.readouterr().err
    assert said.startswith("lstm-jax: error: ") and said.count("\n") == 1
    assert name in said and message in said
    assert not out.exists()


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.weights.h5", "a.onnx"])
def test_missing_folder_is_named(name, tmp_path, capsys):
    lstm = LSTM(4)
    write_arrays(tmp_path / "s.npz", to_torch(lstm, lstm.init(jax.random.key(0), 3)))
    target = tmp_path / "none" / name
    to = [] if name.endswith((".h5", ".onnx")) else ["--to", "torch"]
    assert main(["convert", str(tmp_path / "s.npz"), str(target), "--from", "torch", *to]) == 1
    said = capsys.readouterr().err
    assert said == f"lstm-jax: error: {target}: cannot be written: no folder {target.parent}\n"


def test_options_that_are_not_plain_numbers(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", w=np.ones(3, "float32"))
    for number in ("²", "9" * 5000, "-1"):
        files = [str(tmp_path / name) for name in ("a.npz", "b.npz")]
        options = ["--reading", f"hidden_size={number}", "input_size=2"]
        assert main(["convert", *files, "--from", "cudnn", "--to", "torch", *options]) == 1
        assert "a.npz: hidden_size must be an int, got" in capsys.readouterr().err
