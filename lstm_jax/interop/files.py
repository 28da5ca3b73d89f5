"""Reads and writes named arrays: ``.safetensors``, ``.npz``, and Keras's ``.h5`` and ``.keras``.

Reading never runs code from a file: pickles are rejected, and no other file is opened.
"""

import functools
import io
import math
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax._files import npz_content, one_line, write_content
from lstm_jax.errors import UserError
from lstm_jax.interop import keras_files
from lstm_jax.interop.guards import native, needed, readable, zip_members
from lstm_jax.interop.weights import flattened

READ = ".safetensors, .npz, .h5, .hdf5, .keras"
WRITTEN = ".safetensors, .npz, .weights.h5"
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".eqx", ".joblib")
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_arrays(path: str | pathlib.Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Reads the arrays of a file by name, in the byte order of this machine.

    A Keras file numbers the weights of a layer.  The result has the names that :func:`from_keras`
    expects instead, such as ``layers/lstm/cell/kernel``.  Arrays of a ``.keras`` file, and of an
    ``.h5`` or ``.hdf5`` file in the Keras 2 layout, are in the model's order.  A ``.weights.h5``
    file of Keras 3 does not store the order of different kinds of recurrent layers; there,
    ``prefix`` must select one kind.

    Args:
      path: the file, ``.safetensors``, ``.npz``, ``.h5``, ``.hdf5`` or ``.keras``.
      prefix: only arrays whose names begin with this are returned, under their full names.

    Raises:
      UserError: the file does not exist, is damaged, is a pickle or of an unknown kind, its arrays
        are in another file or far larger than the file, or no name begins with ``prefix``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_arrays(f"{folder}/a.npz", {"lstm": {"w": np.ones((2, 3))}})
    ...     {name: array.shape for name, array in read_arrays(f"{folder}/a.npz").items()}
    {'lstm/w': (2, 3)}
    """
    path = pathlib.Path(path)
    reader = {
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        ".h5": functools.partial(keras_files.read_h5, prefix=prefix),
        ".hdf5": functools.partial(keras_files.read_h5, prefix=prefix),
        ".keras": keras_files.read_keras,
    }.get(path.suffix)
    if reader is None:
        _reject_pickles(path)
        raise UserError(one_line(f"{path}: unknown kind of file; expected one of {READ}"))
    with readable(path, f"{path.suffix} file"):
        arrays = reader(path)
    chosen = {name: array for name, array in arrays.items() if name.startswith(prefix)}
    if not chosen:
        names = ", ".join(arrays) or "nothing"
        raise UserError(
            one_line(f"{path}: no array has a name that begins with {prefix!r}, got {names}")
        )
    return chosen


def write_arrays(path: str | pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name; names of nested mappings are joined by ``/``.

    An existing file is replaced once the new one is complete.

    Args:
      path: the file, ``.safetensors``, ``.npz``, or ``.weights.h5`` for Keras arrays.  A Keras
        model with the same layers reads the latter with ``model.load_weights``.
      arrays: the arrays, as :func:`to_torch` and the other ``to_`` functions return them.

    Raises:
      UserError: the file cannot be written, its kind is unknown, or its kind cannot hold these
        arrays.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "rnn.npz"
    >>> write_arrays(path, {"linear": {"w": np.ones((2, 3))}})
    >>> {name: array.shape for name, array in read_arrays(path).items()}
    {'linear/w': (2, 3)}
    """
    path, flat = pathlib.Path(path), {n: np.asarray(a) for n, a in flattened(arrays)}
    if path.suffix == ".safetensors":
        library = needed("safetensors.numpy", path)
        content = library.save({n: np.array(a, order="C") for n, a in flat.items()})
    elif path.suffix == ".npz":
        for name, array in flat.items():
            if array.dtype == jnp.bfloat16:
                raise UserError(f"{path}: .npz has no bfloat16 ({name}); use .safetensors")
        content = npz_content(flat)
    elif path.name.endswith(".weights.h5"):
        content = keras_files.h5_content(path, flat)
    else:
        _reject_pickles(path)
        raise UserError(one_line(f"{path}: unknown kind of file; expected one of {WRITTEN}"))
    write_content(path, content)


def _reject_pickles(path: pathlib.Path) -> None:
    if path.suffix in PICKLES:
        raise UserError(
            one_line(
                f"{path}: {path.suffix} files are, or may be, pickles, which run code when they "
                "are read; save the arrays as .safetensors "
                "(safetensors.torch.save_file(state_dict, ...)) or .npz"
            )
        )


# ---- the formats ----


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    tensors = needed("safetensors", path).deserialize(path.read_bytes())
    arrays = {}
    for name, tensor in tensors:
        if tensor["dtype"] in FLOATS:  # weights of recurrent layers have no other type
            flat = np.frombuffer(bytearray(tensor["data"]), jnp.dtype(FLOATS[tensor["dtype"]]))
            arrays[name] = flat.reshape(tensor["shape"])
    return arrays


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as file:
        names = zip_members(file)
        for name in names:
            if not name.endswith(".npy"):
                raise ValueError(f"{name} is not an array; expected members that end in .npy")
        return {name[: -len(".npy")]: _npy(name, file.read(name)) for name in names}


def _npy(name: str, content: bytes) -> np.ndarray:
    """Decodes the content of a ``.npy`` file, and checks that it is complete."""
    file = io.BytesIO(content)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in headers:
        raise ValueError(f"{name} has format version {version}; expected one of {[*headers]}")
    shape, fortran, dtype = headers[version](file)
    if dtype.hasobject:
        raise ValueError(
            f"{name} holds Python objects, which are pickled and never read; expected numbers"
        )
    if min(shape, default=0) < 0:
        raise ValueError(f"{name} has shape {shape}; expected no negative size")
    count, start = math.prod(shape), file.tell()
    if count * dtype.itemsize != len(content) - start:
        raise ValueError(
            f"{name} must hold {count * dtype.itemsize} bytes for shape {shape} of {dtype}, "
            f"got {len(content) - start}"
        )
    flat = np.frombuffer(content, dtype, count, start)
    return native(flat.reshape(shape, order="F" if fortran else "C"))
