"""Files of arrays by name: ``.safetensors``, ``.npz``, Keras's ``.weights.h5`` and ``.keras``.

No format here can hold code, and what is a pickle is refused.
"""

import io
import json
import pathlib
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax.errors import UserError
from lstm_jax.interop.weights import flattened

READ = ".safetensors, .npz, .weights.h5, .keras"
WRITTEN = ".safetensors, .npz, .weights.h5"
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".eqx", ".joblib")
VARIABLES = ("kernel", "recurrent_kernel", "bias")  # of a Keras cell, in their order
WIDTHS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_arrays(path: str | pathlib.Path, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of a file by name.

    A Keras file names the parts of a layer by their place, and they get the names that
    :func:`from_keras` knows: ``layers/lstm/cell/kernel``.  Layers of a ``.keras`` file come in
    the model's order; a ``.weights.h5`` with more than one kind of recurrent layers does not
    tell theirs, and ``prefix`` must choose one kind.

    Args:
      path: ends in ``.safetensors``, ``.npz``, ``.h5`` or ``.keras``.
      prefix: arrays whose names do not begin with this are left out; the others keep theirs.

    Raises:
      UserError: there is no such file, it is damaged, a pickle or of an unknown kind, or no name
        begins with ``prefix``.

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
        ".h5": _read_h5,
        ".keras": _read_keras,
    }.get(path.suffix)
    if reader is None:
        _refuse_pickles(path)
        raise UserError(f"{path}: unknown kind of file; expected one of {READ}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        arrays = reader(path)
    except UserError:
        raise
    except Exception as error:  # each format has errors of its own
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: no readable {path.suffix} file: {first}") from error
    chosen = {name: array for name, array in arrays.items() if name.startswith(prefix)}
    if not chosen:
        names = ", ".join(arrays) or "nothing"
        raise UserError(f"{path}: no array has a name that begins with {prefix!r}, got {names}")
    if path.suffix == ".h5":
        _check_order(path, chosen)
    return chosen


def write_arrays(path: str | pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name, names of nested mappings joined by ``/``.

    Args:
      path: ends in ``.safetensors``, ``.npz``, or ``.weights.h5`` for arrays of Keras, which
        ``model.load_weights`` of a model of the same layers then reads.
      arrays: as :func:`to_torch` and others return them.

    Raises:
      UserError: the file cannot be written, is of an unknown kind, or its kind has no place for
        such arrays.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "rnn.npz"
    >>> write_arrays(path, {"linear": {"w": np.ones((2, 3))}})
    >>> {name: array.shape for name, array in read_arrays(path).items()}
    {'linear/w': (2, 3)}
    """
    path, flat = pathlib.Path(path), {n: np.asarray(a) for n, a in flattened(arrays)}
    try:
        if path.suffix == ".safetensors":
            numpy_file = _needs("safetensors.numpy", path)
            numpy_file.save_file({n: np.array(a, order="C") for n, a in flat.items()}, str(path))
        elif path.suffix == ".npz":
            for name, array in flat.items():
                if array.dtype == jnp.bfloat16:
                    raise UserError(f"{path}: .npz has no bfloat16 ({name}); take .safetensors")
            with path.open("wb") as file:
                np.savez(file, **flat)  # type: ignore[arg-type]
        elif path.name.endswith(".weights.h5"):
            _write_h5(path, flat)
        else:
            _refuse_pickles(path)
            raise UserError(f"{path}: unknown kind of file; expected one of {WRITTEN}")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _refuse_pickles(path: pathlib.Path) -> None:
    if path.suffix in PICKLES:
        raise UserError(
            f"{path}: {path.suffix} files are, or may be, pickles, which run code when they are "
            "read; save the arrays as .safetensors (safetensors.torch.save_file(state_dict, ...)) "
            "or .npz"
        )


def _needs(module: str, path: pathlib.Path) -> Any:
    """A module that is needed for a kind of file alone."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"{path}: needs the package {package}: pip install {package}") from error


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    tensors = _needs("safetensors", path).deserialize(path.read_bytes())
    arrays = {}
    for name, tensor in tensors:
        if tensor["dtype"] in WIDTHS:  # whatever else is no weight of a recurrent layer
            dtype = jnp.dtype(WIDTHS[tensor["dtype"]])
            flat = np.frombuffer(bytearray(tensor["data"]), dtype)
            arrays[name] = flat.reshape(tensor["shape"])
    return arrays


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


# ---- Keras ----


def _read_h5(path: pathlib.Path) -> dict[str, np.ndarray]:
    with _needs("h5py", path).File(path, "r") as file:
        return _from_h5(file)


def _from_h5(file: Any) -> dict[str, np.ndarray]:
    """Arrays by name in natural order: ``lstm_2`` before ``lstm_10``, forwards before backwards."""
    found = {}

    def visit(name: str, item: Any) -> None:
        if hasattr(item, "shape"):
            above, _, last = name.rpartition("/")
            cell, _, place = above.rpartition("/")
            if place == "vars" and cell.split("/")[-1] == "cell" and int(last) < len(VARIABLES):
                name = f"{cell}/{VARIABLES[int(last)]}"
            found[name] = np.asarray(item)

    file.visititems(visit)

    def order(name: str) -> list[tuple[int, Any]]:
        *above, last = name.split("/")
        keys: list[tuple[int, Any]] = []
        for part in above:
            word, number = re.fullmatch(r"(.*?)(?:_(\d+))?", part).groups()  # type: ignore[union-attr]
            turned = {"forward_layer": "0", "backward_layer": "1"}.get(part, word)
            keys += [(0, turned), (1, int(number or 0))]
        return [*keys, (2, VARIABLES.index(last) if last in VARIABLES else 0), (3, last)]

    return {name: found[name] for name in sorted(found, key=order)}


def _check_order(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Raises where a file does not tell which of two recurrent layers comes first."""
    layers = {
        name.split("/cell/")[0].split("/forward")[0].split("/backward")[0]: None
        for name in arrays
        if name.endswith("/recurrent_kernel")
    }
    kinds = {re.sub(r"_\d+$", "", layer) for layer in layers}
    if len(kinds) > 1:
        raise UserError(
            f"{path}: does not tell the order of {', '.join(layers)}; give a prefix for one kind "
            "of them, or the .keras file"
        )


def _read_keras(path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as file:
        names = [layer for layer, _ in _layers_of(json.loads(file.read("config.json")))]
        h5 = _needs("h5py", path).File(io.BytesIO(file.read("model.weights.h5")), "r")
    with h5:
        arrays = {n: a for n, a in _from_h5(h5).items() if not n.startswith("optimizer")}

    def place(name: str) -> int:
        layer = "/".join(name.split("/")[:2])
        return names.index(layer) if layer in names else len(names)

    return {name: arrays[name] for name in sorted(arrays, key=place)}


def _layers_of(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each layer of a saved model, by its name in the file, from the first to the last."""
    counts: Counter[str] = Counter()
    for layer in config["config"].get("layers", ()):
        name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", layer["class_name"])
        name = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
        counts[name] += 1
        number = counts[name] - 1
        yield f"layers/{name}_{number}" if number else f"layers/{name}", layer


def keras_options(path: str | pathlib.Path, prefix: str = "") -> dict[str, Any]:
    """What a ``.keras`` file says of its recurrent layers, as :func:`from_keras` takes it.

    Args:
      path: the file.
      prefix: of the names of the arrays of these layers, as in :func:`read_arrays`.

    Raises:
      UserError: the layers differ in an option, or have one that would be lost.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.keras"
    >>> lstm = {"name": "lstm", "recurrent_initializer": "zeros", "activation": "relu"}
    >>> layer = {"class_name": "LSTM", "config": lstm | {"use_bias": True}}
    >>> with zipfile.ZipFile(path, "w") as file:
    ...     file.writestr("config.json", json.dumps({"config": {"layers": [layer]}}))
    >>> keras_options(path)
    {'activation': 'relu'}
    """
    path = pathlib.Path(path)
    with zipfile.ZipFile(path) as file:
        layers = list(_layers_of(json.loads(file.read("config.json"))))
    options: dict[str, Any] = {}

    def note(where: str, name: str, value: Any) -> None:
        if options.setdefault(name, value) != value:
            raise UserError(
                f"{path}: {where} has {name}={value!r} and a layer before it {options[name]!r}; "
                "give a prefix for layers that are alike"
            )

    for where, layer in layers:
        if not (f"{where}/").startswith(prefix) and not prefix.startswith(f"{where}/"):
            continue
        if layer["class_name"] == "Bidirectional":
            note(where, "merge_mode", layer["config"]["merge_mode"])
        for config in _recurrent_configs(layer):
            lost = {"go_backwards": False, "strides": 1, "dilation_rate": 1}
            for name, default in lost.items():
                value = config.get(name, default)
                wanted = [default] * len(value) if isinstance(value, list) else default
                if value != wanted:
                    raise UserError(f"{path}: {name}={value!r} of {where} would be lost")
            for name in ("activation", "recurrent_activation", "padding"):
                if name in config:
                    note(where, name, config[name])
            if not config["use_bias"] and "reset_after" in config:  # otherwise told by the bias
                note(where, "reset_after", config["reset_after"])
    return options


def _recurrent_configs(layer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What a saved layer says of the recurrent layer in it, or of those of both directions."""
    config = layer["config"]
    if layer["class_name"] == "Bidirectional":
        yield from _recurrent_configs(config["layer"])
        if config.get("backward_layer"):  # one with options of its own; always goes backwards
            for backward in _recurrent_configs(config["backward_layer"]):
                yield {**backward, "go_backwards": False}
    elif layer["class_name"] == "RNN":  # the options are the cell's
        for cell in _recurrent_configs(config["cell"]):
            yield {**cell, "go_backwards": config["go_backwards"]}
    elif "recurrent_initializer" in config:
        yield config


def _write_h5(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays under the paths of :func:`to_keras` as Keras lays them out in a file."""
    with _needs("h5py", path).File(path, "w") as file:
        for name, array in arrays.items():
            cell, _, last = name.rpartition("/")
            layer = cell.split("/")[:-1]
            if last not in VARIABLES or not layer:
                raise UserError(
                    f"{path}: .weights.h5 is for arrays of Keras layers, lstm/lstm_cell/kernel, "
                    f"got {name}"
                )
            for direction in ("forward", "backward"):
                if layer[-1].startswith(f"{direction}_"):
                    layer[-1] = f"{direction}_layer"
            group = "/".join(["layers", *layer, "cell", "vars"])
            file[f"{group}/{VARIABLES.index(last)}"] = array
