"""Exported weights, programs and random numbers, read back."""

import json
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax import CELLS, unroll
from lstm_jax.export import runner, writing
from lstm_jax.export.writing import export_onnx, export_stablehlo
from lstm_jax.models import Compiled, Model
from lstm_jax.nnx import LSTM
from tests.arrays import params_of, with_params

D, H = 3, 4
# Sums of ten terms in float32 (eps 1.2e-7) through ten steps.
TOLERANCE = 5e-6


class Layer(Model):
    """A model that consists of one layer."""

    def __init__(self, hidden_features=H, **options):
        self.lstm = LSTM(D, hidden_features, **options, rngs=nnx.Rngs(1))

    @property
    def inputs(self):
        return {"xs": (f"b, t, {D}", "float32")}

    def initial_carry(self, rows):
        return self.lstm.layer.initial_state(self.lstm.params, (rows,))

    def __call__(self, carry, *, xs, rngs=None):
        carry, ys = self.lstm(xs, initial_carry=carry, return_carry=True)
        return carry, {"ys": ys}


class Whole(Layer):
    """A layer that needs the future."""

    def initial_carry(self, rows):
        return ()

    def __call__(self, carry, *, xs, rngs=None):
        return carry, {"ys": self.lstm(xs)}


def enlarged(model):
    """The model with larger parameters."""
    return with_params(model, jax.tree.map(lambda a: 1.5 * a, params_of(model)))


def outputs_of(model, xs) -> np.ndarray:
    return np.asarray(model(model.initial_carry(len(xs)), xs=xs)[1]["ys"])


def some_inputs(rows: int, steps: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, steps, D)).astype(np.float32)


EXPORTS = [export_stablehlo, pytest.param(export_onnx, marks=pytest.mark.peers)]


@pytest.fixture(params=EXPORTS, ids=["stablehlo", "onnx"])
def export(request):
    if request.param is export_onnx:
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    return request.param


# ---- programs ----


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


def test_engines_that_need_concrete_sizes_are_reported():
    cell = CELLS["lstm"](hidden_size=H)
    params = cell.init(jax.random.key(0), D)
    xs = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("t, b"), D), jnp.float32)
    why = r"^engine 'fused' needs sizes that are known when it is traced, not t, b"
    with pytest.raises(ValueError, match=why):
        jax.eval_shape(lambda xs: unroll(cell, params, xs, engine="fused"), xs)


@pytest.mark.parametrize("cell", ["gru", "peephole"])
def test_steps_and_sequences_of_any_size_equal_the_layer(export, cell, tmp_path):
    model = enlarged(Layer(num_layers=2, cell=cell))
    exported = export(model, tmp_path)
    for rows, steps in ((1, 6), (3, 5)):
        xs = some_inputs(rows, steps)
        expected = outputs_of(Compiled(model), xs)
        np.testing.assert_allclose(outputs_of(exported, xs), expected, rtol=0, atol=TOLERANCE)
        carry = exported.initial_carry(rows)
        for t in range(steps):
            carry, outputs = exported(carry, xs=xs[:, t : t + 1])
            np.testing.assert_allclose(outputs["ys"][:, 0], expected[:, t], rtol=0, atol=TOLERANCE)


def test_a_single_step_has_its_own_program(export, tmp_path):
    exported = export(Layer(), tmp_path)
    called = []
    original = exported.runtime.call
    exported.runtime.call = lambda name, *rest: called.append(name) or original(name, *rest)
    for steps in (1, 2):
        outputs_of(exported, some_inputs(2, steps))
    assert called == ["step", "sequence"]


def test_a_learned_initial_state_is_exported(export, tmp_path):
    model = Layer(cell=lambda **sizes: CELLS["lstm"](learn_initial_state=True, **sizes))
    params = params_of(model)
    params["lstm"]["layer_0"]["c_0"] += 0.7
    model = with_params(model, params)
    xs = some_inputs(2, 1)
    expected = outputs_of(Compiled(model), xs)
    np.testing.assert_allclose(
        outputs_of(export(model, tmp_path), xs), expected, rtol=0, atol=TOLERANCE
    )
    assert np.abs(expected - outputs_of(Compiled(Layer()), xs)).max() > 1e-2


def test_bidirectional_layers_are_exported_without_a_step(export, tmp_path):
    model = enlarged(Whole(bidirectional=True))
    exported = export(model, tmp_path)
    for steps in (1, 5):
        xs = some_inputs(3, steps)
        np.testing.assert_allclose(
            outputs_of(exported, xs), outputs_of(Compiled(model), xs), rtol=0, atol=TOLERANCE
        )
    assert exported.metadata["programs"] == ["sequence"]
    assert not list(tmp_path.glob("step*"))


class Normalised(Model):
    """A module with batch statistics, dropout and a random stream."""

    def __init__(self):
        self.norm = nnx.BatchNorm(D, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    @property
    def inputs(self):
        return {"xs": (f"b, t, {D}", "float32")}

    def __call__(self, carry, *, xs, rngs=None):
        return carry, {"ys": self.dropout(self.norm(xs))}


def test_batch_statistics_are_exported_and_dropout_is_off(export, tmp_path):
    model, xs = Normalised(), some_inputs(4, 5)
    for _ in range(3):
        model((), xs=xs)  # in training, so that the statistics change
    mean, var = np.asarray(model.norm.mean[...]), np.asarray(model.norm.var[...])
    assert np.abs(mean).max() > 1e-3
    expected = (xs - mean) / np.sqrt(var + 1e-5)
    exported = export(model, tmp_path)
    np.testing.assert_allclose(outputs_of(exported, xs), expected, rtol=0, atol=TOLERANCE)


def test_one_file_is_for_all_platforms(tmp_path):
    export_stablehlo(Layer(), tmp_path)
    for name in ("step", "sequence"):
        function = jax.export.deserialize(bytearray((tmp_path / f"{name}.jaxexport").read_bytes()))
        assert function.platforms == ("cpu", "cuda", "tpu")
    manifest = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["made_with"]["jax"] == jax.__version__


def test_mistakes_are_named(export, tmp_path):
    with pytest.raises(ValueError, match=r"^dtype must be one of float32, bfloat16, int8, got 'i4"):
        export(Layer(), tmp_path, dtype="i4")
    exported = export(Layer(), tmp_path)
    with pytest.raises(ValueError, match=r"^the model's inputs are xs, got x$"):
        exported(exported.initial_carry(1), x=np.zeros((1, 1, D)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generate --seed -1", "--seed: expected a number from 0 to 2**32 - 1, got -1"),
        ("generate --temperature -1", "--temperature: expected a number at least 0, got -1.0"),
        ("generate --length -3", "--length: expected a number from 0 to 10000000, got -3"),
        (
            "generate --length 10000001",
            "--length: expected a number from 0 to 10000000, got 10000001",
        ),
        ("generate", "generate: this model does not generate text"),
        ("apply missing.npz out.npz", "missing.npz: cannot be read (No such file or directory)"),
        ("apply {}/carry.npz out.npz", "the model's inputs are xs, got layer_0.h, layer_0.c"),
    ],
)
def test_command_line_mistakes_give_one_line(words, said, layer_folder, monkeypatch, capsys):
    monkeypatch.setattr(runner, "__file__", str(layer_folder / "run.py"))
    monkeypatch.setattr(sys, "argv", ["run.py", *words.format(layer_folder).split()])
    assert runner.main() == 1
    assert capsys.readouterr().err == f"run.py: error: {said}\n"


@pytest.fixture(scope="module")
def layer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layer")
    export_stablehlo(Layer(), folder)
    return folder


# ---- weights ----


def test_int8_is_within_half_a_step_of_each_channel():
    w = np.random.default_rng(0).normal(size=(50, 6)) * 10.0 ** np.arange(-3, 3)
    w[:, 2] = 0
    q, scale = writing.quantized(w.astype(np.float32))
    assert q.dtype == np.int8 and scale.shape == (1, 6)
    largest = np.abs(w).max(0)
    np.testing.assert_allclose(scale[0], np.where(largest == 0, 1, largest / 127), rtol=1e-6)
    # Half a step, plus the rounding of float32 numbers up to 127 steps.
    assert (np.abs(q * scale.astype(np.float64) - w) <= scale * (0.5 + 127 * 2.0**-23)).all()
    assert set(np.abs(q).max(0)) == {0, 127}


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_matrices_are_stored_narrow_and_used_as_stored(export, dtype, tmp_path):
    model = enlarged(Layer(32, num_layers=2))
    exported = export(model, tmp_path, dtype=dtype)
    params = params_of(model)
    coarse = writing.restored(writing.stored(params, dtype), params)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(coarse))
    bias = coarse["lstm"]["layer_0"]["b"]
    np.testing.assert_array_equal(bias, params["lstm"]["layer_0"]["b"])
    xs = some_inputs(2, 4)
    expected = outputs_of(Compiled(with_params(model, coarse)), xs)
    np.testing.assert_allclose(outputs_of(exported, xs), expected, rtol=0, atol=TOLERANCE)
    assert np.abs(outputs_of(Compiled(model), xs) - expected).max() > 10 * TOLERANCE

    export(model, tmp_path / "full")
    stablehlo = export is export_stablehlo
    files = ["weights.npz"] if stablehlo else ["weights.bin", "sequence.onnx"]
    saved = [
        sum((folder / file).stat().st_size for file in files)
        for folder in (tmp_path / "full", tmp_path)
    ]
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    scales = 4 * 4 * 4 * 32 * (dtype == "int8")  # four matrices with four gates of 32 channels
    spared = matrices * {"bfloat16": 2, "int8": 3}[dtype] - scales
    assert saved[0] - saved[1] == pytest.approx(spared, abs=2500)  # headers, names, nodes


@pytest.mark.peers
def test_onnxruntimes_own_quantisation(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model = enlarged(Layer(32))
    exported = export_onnx(model, tmp_path, dynamic=True)
    xs = some_inputs(2, 4)
    error = np.abs(outputs_of(exported, xs) - outputs_of(Compiled(model), xs)).max()
    # 8 bits for numbers up to about 3, in sums of about 35 terms.
    assert 1e-5 < error < 0.1
    export_onnx(model, tmp_path / "full")
    sizes = [(folder / "weights.bin").stat().st_size for folder in (tmp_path, tmp_path / "full")]
    assert sizes[0] < 0.5 * sizes[1]


@pytest.mark.peers
def test_both_graphs_share_one_file_of_weights(tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = enlarged(Layer(64, num_layers=2))
    exported = export_onnx(model, tmp_path)
    large = [leaf.nbytes for leaf in jax.tree.leaves(params_of(model)) if leaf.nbytes >= 64]
    assert sum(large) <= (tmp_path / "weights.bin").stat().st_size <= sum(large) + 64 * len(large)
    for name in ("step", "sequence"):
        assert (tmp_path / f"{name}.onnx").stat().st_size < 0.1 * sum(large)
    onnx.save(onnx.load(tmp_path / "sequence.onnx"), tmp_path / "whole.onnx")
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    session = onnxruntime.InferenceSession(str(tmp_path / "whole.onnx"))
    xs = some_inputs(2, 4)
    feeds = {f"carry.{name}": array for name, array in exported.initial_carry(2).items()}
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, feeds | {"xs": xs}), strict=True))
    np.testing.assert_array_equal(found["ys"], outputs_of(exported, xs))


# ---- random numbers ----


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 1])
def test_random_bits_equal_those_of_jax(seed):
    keys = jax.random.key_data(jax.random.split(jax.random.key(seed), 300))
    root = np.array([[0, seed]], np.uint32)
    own = np.stack(runner.threefry(root, np.arange(300)), -1)[0]
    np.testing.assert_array_equal(own, keys)
    bits = jax.vmap(lambda key: jax.random.bits(key, (1, 7)))(jax.random.wrap_key_data(keys))
    np.testing.assert_array_equal(np.bitwise_xor(*runner.threefry(own, np.arange(7))), bits[:, 0])


def test_noise_of_both_runtimes_equals_that_of_categorical():
    """More samples than one block; the logarithms differ by one or two rounding errors."""
    seed, length, size = 7, runner.NOISE_BLOCK + 5, 9
    noise = np.stack(list(runner.ONNX.noise(None, seed, length, size)))
    runtime = runner.StableHLO.__new__(runner.StableHLO)
    runtime.jax = jax
    exact = np.stack(list(runtime.noise(seed, length, size)))
    assert noise.dtype == exact.dtype == np.float32 and noise.shape == (length, size)
    np.testing.assert_allclose(noise, exact, rtol=5e-7, atol=5e-7)
    logits = jax.random.normal(jax.random.key(5), (length, 1, size))
    keys = jax.random.split(jax.random.key(seed), length)
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
    np.testing.assert_array_equal((logits[:, 0] + exact).argmax(-1), drawn[:, 0])
