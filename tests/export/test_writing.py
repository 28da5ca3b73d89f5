"""What leaves the library: its weights, its functions and its random numbers, read back."""

import json
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from lstm_jax.interop.deploy import Function, export_onnx, export_stablehlo

from lstm_jax import CELLS, LSTM, unroll
from lstm_jax.interop import deploy, standalone

D, H = 3, 4
# Sums of ten terms in float32 (eps 1.2e-7) through ten steps.
TOLERANCE = 5e-6


BOTH = ("step", "sequence")


def layer_functions(layer, steps=BOTH) -> dict[str, Function]:
    """A layer as it is exported, batch first."""

    def apply(params, state, xs):
        state, ys = layer.apply(params, xs.swapaxes(0, 1), state)
        return state, {"ys": ys.swapaxes(0, 1)}

    times = {"step": "1", "sequence": "t"}
    return {name: Function(apply, {"xs": (f"b, {times[name]}, {D}", "float32")}) for name in steps}


def exported(export, layer, folder, steps=("sequence",), **options):
    """The layer with some parameters, as it was read back, and these."""
    params = jax.tree.map(lambda a: 1.5 * a, layer.init(jax.random.key(1), D))
    first = layer.initial_state(params, (1,))
    return export(layer_functions(layer, steps), params, first, folder, **options), params


def some_inputs(rows: int, steps: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, steps, D)).astype(np.float32)


EXPORTS = [export_stablehlo, pytest.param(export_onnx, marks=pytest.mark.peers)]


@pytest.fixture(params=EXPORTS, ids=["stablehlo", "onnx"])
def export(request):
    if request.param is export_onnx:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    return request.param


# ---- functions ----


@pytest.mark.parametrize("name", sorted(set(CELLS) - {"conv_lstm"}))
def test_every_cell_can_be_exported_with_symbolic_sizes(name):
    cell = CELLS[name](hidden_size=H)
    params = cell.init(jax.random.key(0), D)
    shape = jax.export.symbolic_shape("t, b")

    def run(params, xs, lengths):
        return unroll(cell, params, xs, lengths=lengths)[1]

    xs = jax.ShapeDtypeStruct((*shape, D), jnp.float32)
    lengths = jax.ShapeDtypeStruct(shape[1:], jnp.int32)
    read_back = jax.export.export(jax.jit(run))(params, xs, lengths)
    xs = some_inputs(7, 2).swapaxes(0, 1)[:, :2]
    lengths = np.array([2, 1], np.int32)
    expected = unroll(cell, params, xs, lengths=lengths, engine="scan")[1]
    np.testing.assert_allclose(
        read_back.call(params, xs, lengths), expected, rtol=TOLERANCE, atol=TOLERANCE
    )


def test_what_must_know_its_sizes_says_so():
    cell = CELLS["lstm"](hidden_size=H)
    params = cell.init(jax.random.key(0), D)
    xs = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("t, b"), D), jnp.float32)
    why = r"^engine 'fused' needs sizes that are numbers when it is traced, not t, b"
    with pytest.raises(ValueError, match=why):
        jax.eval_shape(lambda xs: unroll(cell, params, xs, engine="fused"), xs)


@pytest.mark.parametrize("cell", ["gru", "peephole"])
def test_steps_and_sequences_of_any_size_are_those_of_the_layer(export, cell, tmp_path):
    layer = LSTM(H, num_layers=2, cell=cell)
    model, params = exported(export, layer, tmp_path, BOTH)
    for rows, steps in ((1, 6), (3, 5)):
        xs = some_inputs(rows, steps)
        _, expected = layer.apply(params, xs.swapaxes(0, 1))
        expected = np.swapaxes(expected, 0, 1)
        _, outputs = model.sequence(model.initial_state(rows), xs=xs)
        np.testing.assert_allclose(outputs["ys"], expected, rtol=0, atol=TOLERANCE)
        state = model.initial_state(rows)
        for t in range(steps):
            state, outputs = model.step(state, xs=xs[:, t : t + 1])
            np.testing.assert_allclose(outputs["ys"][:, 0], expected[:, t], rtol=0, atol=TOLERANCE)


def test_a_learned_initial_state_goes_along(export, tmp_path):
    layer = LSTM(H, cell=lambda **sizes: CELLS["lstm"](learn_initial_state=True, **sizes))
    params = layer.init(jax.random.key(1), D)
    params["layer_0"]["c_0"] += 0.7
    first = layer.initial_state(params, (1,))
    model = export(layer_functions(layer), params, first, tmp_path)
    xs = some_inputs(2, 1)
    _, outputs = model.step(model.initial_state(2), xs=xs)
    expected = layer.apply(params, xs.swapaxes(0, 1))[1][0]
    np.testing.assert_allclose(outputs["ys"][:, 0], expected, rtol=0, atol=TOLERANCE)


def test_what_needs_the_future_is_exported_as_a_whole_alone(export, tmp_path):
    layer = LSTM(H, bidirectional=True)
    model, params = exported(export, layer, tmp_path)
    xs = some_inputs(3, 5)
    _, outputs = model.sequence(model.initial_state(3), xs=xs)
    expected = np.swapaxes(layer.apply(params, xs.swapaxes(0, 1))[1], 0, 1)
    np.testing.assert_allclose(outputs["ys"], expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match=r"^the model has no step: it needs the future"):
        model.step(model.initial_state(3), xs=xs[:, :1])


def test_one_file_is_for_all_platforms(tmp_path):
    exported(export_stablehlo, LSTM(H), tmp_path, BOTH)
    for name in ("step", "sequence"):
        function = jax.export.deserialize(bytearray((tmp_path / f"{name}.jaxexport").read_bytes()))
        assert function.platforms == ("cpu", "cuda", "tpu")
    about = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["made_with"]["jax"] == jax.__version__


def test_mistakes_are_named(export, tmp_path):
    with pytest.raises(ValueError, match=r"^dtype must be one of float32, bfloat16, int8, got 'i4"):
        exported(export, LSTM(H), tmp_path, dtype="i4")
    model, _ = exported(export, LSTM(H), tmp_path)
    with pytest.raises(ValueError, match=r"^sequence must be given xs, got x$"):
        model.sequence(model.initial_state(1), x=np.zeros((1, 1, D)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generate --seed -1", "--seed: expected a number from 0 to 2**32 - 1, got -1"),
        ("generate --temperature nan", "--temperature: expected a number at least 0, got nan"),
        ("generate --length -3", "--length: expected a number at least 0, got -3"),
        ("generate", "generate: this model writes no text"),
        ("apply missing.npz out.npz", "[Errno 2] No such file or directory: 'missing.npz'"),
        ("apply {}/state.npz out.npz", "sequence must be given xs, got layer_0.h, layer_0.c"),
    ],
)
def test_mistakes_on_the_command_line_get_one_line(words, said, layer_folder, monkeypatch, capsys):
    monkeypatch.setattr(standalone, "__file__", str(layer_folder / "run.py"))
    monkeypatch.setattr(sys, "argv", ["run.py", *words.format(layer_folder).split()])
    assert standalone.main() == 1
    assert capsys.readouterr().err == f"run.py: error: {said}\n"


@pytest.fixture(scope="module")
def layer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layer")
    exported(export_stablehlo, LSTM(H), folder)
    return folder


# ---- weights ----


def test_int8_is_within_half_a_step_of_each_channel():
    w = np.random.default_rng(0).normal(size=(50, 6)) * 10.0 ** np.arange(-3, 3)
    w[:, 2] = 0
    q, scale = deploy.quantized(w.astype(np.float32))
    assert q.dtype == np.int8 and scale.shape == (1, 6)
    largest = np.abs(w).max(0)
    np.testing.assert_allclose(scale[0], np.where(largest == 0, 1, largest / 127), rtol=1e-6)
    # Half a step, and the rounding of float32 numbers up to 127 steps.
    assert (np.abs(q * scale.astype(np.float64) - w) <= scale * (0.5 + 127 * 2.0**-23)).all()
    assert set(np.abs(q).max(0)) == {0, 127}


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_matrices_are_stored_small_and_computed_with_as_they_are_stored(export, dtype, tmp_path):
    layer = LSTM(32, num_layers=2)
    model, params = exported(export, layer, tmp_path, dtype=dtype)
    coarse = deploy.restored(deploy.stored(params, dtype), params)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(coarse))
    np.testing.assert_array_equal(coarse["layer_0"]["b"], params["layer_0"]["b"])
    xs = some_inputs(2, 4)
    _, outputs = model.sequence(model.initial_state(2), xs=xs)
    expected = np.swapaxes(layer.apply(coarse, xs.swapaxes(0, 1))[1], 0, 1)
    np.testing.assert_allclose(outputs["ys"], expected, rtol=0, atol=TOLERANCE)
    plain = np.swapaxes(layer.apply(params, xs.swapaxes(0, 1))[1], 0, 1)
    assert np.abs(plain - expected).max() > 10 * TOLERANCE

    exported(export, layer, tmp_path / "full")
    file = "weights.npz" if export is export_stablehlo else "sequence.onnx"
    saved = [(folder / file).stat().st_size for folder in (tmp_path / "full", tmp_path)]
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    scales = 4 * 4 * 4 * 32 * (dtype == "int8")  # four matrices with four gates of 32 channels
    spared = matrices * {"bfloat16": 2, "int8": 3}[dtype] - scales
    assert saved[0] - saved[1] == pytest.approx(spared, abs=2500)  # headers, names, nodes


@pytest.mark.peers
def test_onnxruntimes_own_quantisation(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    layer = LSTM(32)
    model, params = exported(export_onnx, layer, tmp_path, dynamic=True)
    xs = some_inputs(2, 4)
    _, outputs = model.sequence(model.initial_state(2), xs=xs)
    expected = np.swapaxes(layer.apply(params, xs.swapaxes(0, 1))[1], 0, 1)
    error = np.abs(outputs["ys"] - expected).max()
    # 8 bits for numbers up to about 3, in sums of some 35 terms.
    assert 1e-5 < error < 0.1
    exported(export_onnx, layer, tmp_path / "full")
    sizes = [(folder / "sequence.onnx").stat().st_size for folder in (tmp_path, tmp_path / "full")]
    assert sizes[0] < 0.5 * sizes[1]


# ---- random numbers ----


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 1])
def test_random_bits_are_those_of_jax(seed):
    keys = jax.random.key_data(jax.random.split(jax.random.key(seed), 300))
    root = np.array([[0, seed]], np.uint32)
    own = np.stack(standalone.threefry(root, np.arange(300)), -1)[0]
    np.testing.assert_array_equal(own, keys)
    bits = jax.vmap(lambda key: jax.random.bits(key, (1, 7)))(jax.random.wrap_key_data(keys))
    np.testing.assert_array_equal(
        np.bitwise_xor(*standalone.threefry(own, np.arange(7))), bits[:, 0]
    )


def test_noise_of_both_runtimes_is_that_of_categorical():
    """More draws than a block; logarithms of two libraries differ by a rounding or two."""
    seed, length, size = 7, standalone.NOISE_BLOCK + 5, 9
    noise = np.stack(list(standalone.ONNX.noise(None, seed, length, size)))
    runtime = standalone.StableHLO.__new__(standalone.StableHLO)
    runtime.jax = jax
    exact = np.stack(list(runtime.noise(seed, length, size)))
    assert noise.dtype == exact.dtype == np.float32 and noise.shape == (length, size)
    np.testing.assert_allclose(noise, exact, rtol=5e-7, atol=5e-7)
    logits = jax.random.normal(jax.random.key(5), (length, 1, size))
    keys = jax.random.split(jax.random.key(seed), length)
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
    np.testing.assert_array_equal((logits[:, 0] + exact).argmax(-1), drawn[:, 0])
