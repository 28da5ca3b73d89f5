"""Initialisers by name, and those of other libraries, compared with layers of these libraries."""

import functools
import pickle

import jax
import numpy as np
import pytest
import scipy.stats
from flax import nnx

import lstm_jax.nnx
from lstm_jax.cells import CELLS, INITIALIZERS, Joint, LSTMCell
from lstm_jax.config.recurrent import cell_factory
from lstm_jax.interop import from_flax, from_keras, from_torch

D, H = 48, 64


def drawn_by_flax(kind):
    return from_flax(nnx.state(kind(D, H, rngs=nnx.Rngs(0)), nnx.Param))[1]


def drawn_by_keras():
    keras = pytest.importorskip("keras", reason="needs the peer keras")
    keras.utils.set_random_seed(0)
    cell = keras.layers.LSTMCell(H)
    cell.build((None, D))
    return from_keras({weight.name: weight.numpy() for weight in cell.weights})[1]


def drawn_by_torch():
    torch = pytest.importorskip("torch", reason="needs the peer torch")
    torch.manual_seed(0)
    return from_torch(torch.nn.LSTMCell(D, H).state_dict())[1]


# The strings of docs/initialisation.md.
LIBRARIES = {
    "lstm": functools.partial(drawn_by_flax, nnx.LSTMCell),
    'lstm(recurrent_kernel_init="joint_orthogonal")': functools.partial(
        drawn_by_flax, nnx.OptimizedLSTMCell
    ),
    'lstm(kernel_init="joint_glorot_uniform", recurrent_kernel_init="joint_orthogonal", '
    "forget_bias=1.0)": drawn_by_keras,
    'lstm(kernel_init="torch_uniform", recurrent_kernel_init="torch_uniform", '
    'bias_init="torch_bias")': drawn_by_torch,
}


def orthogonal_parts(w):
    """Whether the rows of the whole matrix, and those of each gate's part, are orthonormal."""
    parts = (w, *np.split(w, 4, -1))
    return [bool(np.allclose(part @ part.T, np.eye(H), atol=1e-5)) for part in parts]


@pytest.mark.peers
@pytest.mark.parametrize("text", LIBRARIES)
def test_initialisation_of_other_libraries(text):
    theirs = {name: np.asarray(array, np.float64) for name, array in LIBRARIES[text]().items()}
    drawn = cell_factory(text)(hidden_size=H).init(jax.random.key(0), D)
    ours = {name: np.asarray(array, np.float64) for name, array in drawn.items()}
    assert ours.keys() == theirs.keys()
    assert orthogonal_parts(ours["w_hh"]) == orthogonal_parts(theirs["w_hh"])
    for name, array in ours.items():
        gates = zip(np.split(array, 4, -1), np.split(theirs[name], 4, -1), strict=True)
        for gate, other in gates:
            # Equal distributions fail one of the 48 comparisons once in 2000 choices of seeds.
            assert scipy.stats.ks_2samp(gate.ravel(), other.ravel()).pvalue > 1e-5
            np.testing.assert_allclose(gate.std(), other.std(), rtol=0.2 if name == "b" else 0.05)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_a_name_is_the_initialiser_itself(name):
    cell = LSTMCell(H, kernel_init=name)
    assert cell == LSTMCell(H, kernel_init=INITIALIZERS[name]) == pickle.loads(pickle.dumps(cell))
    assert hash(cell) == hash(LSTMCell(H, kernel_init=INITIALIZERS[name]))


def test_joint_gates_of_a_module_are_orthogonal_together():
    layer = lstm_jax.nnx.LSTM(D, H, recurrent_kernel_init="joint_orthogonal", rngs=nnx.Rngs(0))
    w = np.asarray(jax.tree.leaves(nnx.to_pure_dict(nnx.state(layer, nnx.Param)))[1])
    assert orthogonal_parts(w) == [True, False, False, False, False]


@pytest.mark.parametrize("name", sorted(set(CELLS) - {"ind_rnn", "min_gru", "min_lstm"}))
def test_joint_initialisers_receive_the_weights_of_all_gates(name):
    shapes = []

    def init(key, shape, dtype):
        shapes.append(shape)
        return jax.numpy.zeros(shape, dtype)

    cell = CELLS[name](hidden_size=4, recurrent_kernel_init=Joint(init))
    w = cell.init(jax.random.key(0), 3)["w_hh"]
    assert w.shape[-2:] in [shape[-2:] for shape in shapes]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("ortogonal", ValueError, "kernel_init must be a function or one of glorot_uniform, .*got"),
        (0.1, TypeError, "kernel_init must be a function or the name of one, got 0.1"),
    ],
)
def test_mistakes(given, error, message):
    with pytest.raises(error, match=message):
        LSTMCell(H, kernel_init=given)
