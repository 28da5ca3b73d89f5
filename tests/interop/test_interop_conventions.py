"""The table of conventions, which needs none of the libraries that it describes."""

import subprocess
import sys

import numpy as np
import pytest

from lstm_jax.interop.conventions import CONVENTIONS, GATES, from_ours, to_ours

CASES = [(library, kind) for library, kinds in CONVENTIONS.items() for kind in kinds]


def gates_of(kind):
    return GATES[next(name for name in GATES if name in kind and not kind.startswith("conv"))]


@pytest.mark.parametrize(("library", "kind"), CASES)
def test_rearranging_round_trip_is_exact(library, kind):
    convention, gates = CONVENTIONS[library][kind], gates_of(kind.removeprefix("conv_"))
    assert sorted(convention.gates) == sorted(gates)
    bits = np.random.default_rng(0).integers(0, 2**32, (3, 2 * len(gates)), "uint32")
    matrix = bits.view("float32")  # with NaN, infinity and numbers of any size
    for array in (matrix, matrix[0]):
        theirs = from_ours(array, convention, gates)
        back = to_ours(theirs, convention, gates)
        np.testing.assert_array_equal(back.view("uint32"), array.view("uint32"))


def test_gates_have_the_positions_of_their_library():
    """Blocks named after gates, as each library's documentation orders them."""
    documented = {
        ("torch", "lstm"): "ifgo",
        ("torch", "gru"): "rzg",
        ("keras", "lstm"): "ifgo",
        ("keras", "gru"): "zrg",
        ("haiku", "lstm"): "igfo",
        ("haiku", "gru"): "zrg",
        ("flax.linen", "conv_lstm"): "igfo",
        ("onnx", "lstm"): "iofg",
        ("onnx", "gru"): "zrg",
        ("cudnn", "lstm"): "ifgo",
    }
    for (library, kind), order in documented.items():
        convention, gates = CONVENTIONS[library][kind], GATES[kind]
        numbers = np.array([float(1 + gates.index(gate)) for gate in order])
        ours = np.abs(to_ours(numbers, convention, gates))
        np.testing.assert_array_equal(ours, 1 + np.arange(len(gates)), err_msg=library)


ALONE = """
import sys
for name in ("torch", "keras", "haiku", "equinox", "onnx", "flax", "h5py", "safetensors"):
    sys.modules[name] = None  # importing it is an error
import numpy as np
from lstm_jax import interop
arrays = {"weight_ih": np.ones((12, 2), "float32"), "weight_hh": np.ones((12, 3), "float32")}
cell, params = interop.from_torch(arrays)
params = interop.from_equinox(interop.to_equinox(cell, params))[1]
params = interop.from_haiku(interop.to_haiku(cell, params))[1]
params = interop.from_keras(interop.to_keras(cell, params))[1]
params = interop.from_flax(interop.to_flax(cell, params))[1]
print(interop.to_torch(cell, params)["weight_ih"].sum())
"""


def test_no_other_library_is_needed():
    ran = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert ran.stdout.strip() == "24.0", ran.stderr
