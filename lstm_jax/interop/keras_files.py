"""Keras's files: ``.keras``, ``.weights.h5``, and ``.h5`` and ``.hdf5`` in the layout of Keras 2.

A ``.keras`` file is a zip file of a ``config.json`` and a ``model.weights.h5``.  HDF5 files have
one of two layouts.  Keras 3 numbers the weights of each layer, ``layers/lstm/cell/vars/0``, and
stores neither the layers' order nor their options.  Keras 2, and the legacy ``.h5`` of Keras 3,
store ``layer_names`` and ``weight_names`` as attributes, and the weights under these names.  A
saved model also has the attribute ``model_config``, the same JSON as ``config.json``.
"""

import importlib
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
from lstm_jax.interop.guards import check_room, native, needed, one_line, readable, zip_members
from lstm_jax.interop.keras import hard_sigmoid_of_keras_2

VARIABLES = ("kernel", "recurrent_kernel", "bias")  # of a Keras cell, in their order
FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # built into HDF5 and h5py; HDF5 loads others from a folder
DEEPEST = 64  # the maximum depth of nested HDF5 groups

# ---- files to arrays ----


def read_h5(path: pathlib.Path, prefix: str) -> dict[str, np.ndarray]:
    """Reads an HDF5 file of either layout; the order of the arrays under ``prefix`` must be known.

    Raises:
      UserError: the file does not store the order of the layers under ``prefix``.
    """
    with needed("h5py", path).File(path, "r") as file:
        arrays = _arrays_of(file, path.stat().st_size)
        if not _is_legacy(file):
            _check_order(path, [name for name in arrays if name.startswith(prefix)])
    return arrays


def read_keras(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a ``.keras`` file in the model's order."""
    with zipfile.ZipFile(path) as file:
        paths = [cell_path for cell_path, _ in _cells_of(_config_of(file))]
        content = file.read(_member(file, "model.weights.h5"))
    with needed("h5py", path).File(io.BytesIO(content), "r") as h5:
        arrays = _arrays_of(h5, len(content))
    arrays = {n: a for n, a in arrays.items() if not n.startswith("optimizer/")}

    def position(name: str) -> int:
        found = (n for n, cell_path in enumerate(paths) if name.startswith(f"{cell_path}/"))
        return next(found, len(paths))

    return {name: arrays[name] for name in sorted(arrays, key=position)}


def _member(file: zipfile.ZipFile, name: str) -> str:
    if name not in zip_members(file):
        raise ValueError(f"{name} is missing from the zip file, got {', '.join(file.namelist())}")
    return name


def _arrays_of(file: Any, size: int) -> dict[str, np.ndarray]:
    """The arrays of an open HDF5 file of ``size`` bytes."""
    datasets = _datasets_of(file)
    legacy = _is_legacy(file)
    names = _legacy_names(file) if legacy else {name: name for name in datasets}
    for name in names.values():
        if name not in datasets:
            raise ValueError(f"{name} is listed in weight_names but is not in the file")
    check_room(sum(int(datasets[name].nbytes) for name in names.values()), size)
    arrays = {name: _array_of(where, datasets[where]) for name, where in names.items()}
    arrays = {n: a for n, a in arrays.items() if jnp.issubdtype(a.dtype, jnp.floating)}
    return arrays if legacy else _in_natural_order(arrays)


def _datasets_of(file: Any) -> dict[str, Any]:
    """All datasets of a file by path.

    Raises:
      ValueError: an entry is a link to another path or file, or is linked twice.
    """
    h5py = importlib.import_module("h5py")
    found: dict[str, Any] = {}
    seen: set[int] = set()
    waiting = [("", file)]
    while waiting:
        above, group = waiting.pop()
        for name in group:
            path = f"{above}{name}"
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                where = f"{getattr(link, 'filename', '')} {getattr(link, 'path', '')}".strip()
                raise ValueError(f"{path} is a link to {where}; expected the array itself")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or path.count("/") > DEEPEST:
                raise ValueError(f"{path} is in the file twice, or too deep in groups")
            seen.add(address)
            if isinstance(item, h5py.Group):
                waiting.append((f"{path}/", item))
            elif isinstance(item, h5py.Dataset):
                found[path] = item
    return found


def _array_of(name: str, dataset: Any) -> np.ndarray:
    """The numbers of a dataset; a zero-size array if the dataset holds something else.

    Raises:
      ValueError: the numbers are in another file, or their compression needs a plug-in.
    """
    properties = dataset.id.get_create_plist()
    if dataset.is_virtual or properties.get_external_count():
        raise ValueError(f"{name} has its numbers in another file; expected them in this one")
    for n in range(properties.get_nfilters()):
        code = properties.get_filter(n)[0]
        if code not in FILTERS:
            raise ValueError(f"{name} is compressed by a plug-in (filter {code}), which is not run")
    if dataset.dtype.hasobject or dataset.shape is None:
        return np.zeros(0, bool)  # strings and references: not weights
    if dataset.dtype.kind == "V":  # bfloat16, which HDF5 and NumPy do not know; or not a number
        is_bfloat16 = dataset.attrs.get("dtype") == "bfloat16"
        return np.array(dataset, jnp.bfloat16) if is_bfloat16 else np.zeros(0, bool)
    return native(np.asarray(dataset[()]))


def _in_natural_order(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names and sorts weights of the Keras 3 layout: ``lstm_2``, ``lstm_10``; forward first."""
    found = {}
    for name, array in arrays.items():
        cell, _, last = name.rpartition("/vars/")
        parts = cell.split("/")
        if (parts[-1] == "cell" or parts[-2:-1] == ["cells"]) and last in ("0", "1", "2"):
            name = f"{cell}/{VARIABLES[int(last)]}"
        found[name] = array

    def order(name: str) -> list[tuple[int, Any]]:
        *above, last = name.split("/")
        keys: list[tuple[int, Any]] = []
        for part in above:
            word, _, number = part.rpartition("_")
            if not (word and number.isascii() and number.isdigit()):
                word, number = part, "0"
            direction = {"forward_layer": "0", "backward_layer": "1"}.get(part)
            keys += [(0, direction or word), (1, int(number[:9]))]
        return [*keys, (2, VARIABLES.index(last) if last in VARIABLES else 0), (3, last)]

    return {name: found[name] for name in sorted(found, key=order)}


def _check_order(path: pathlib.Path, names: list[str]) -> None:
    """Raises if a file does not store which of two recurrent layers comes first."""
    children: dict[str, dict[str, str]] = {}  # by group, one path for each kind of layer
    for name in names:
        parts = name.split("/")
        if parts[-1] == "recurrent_kernel":
            for n, part in enumerate(parts[:-1]):
                kind = re.sub(r"^(for|back)ward_layer$|_\d+$", "", part)
                children.setdefault("/".join(parts[:n]), {})[kind] = "/".join(parts[: n + 1])
    for kinds in children.values():
        if len(kinds) > 1:
            raise UserError(
                one_line(
                    f"{path}: does not store the order of {', '.join(kinds.values())}; give a "
                    "prefix that selects one kind, or use the .keras file"
                )
            )


# ---- the layout of Keras 2 ----


def _legacy_group(file: Any) -> str:
    """The path of the group of layers; a file of weights only has them at its root."""
    return "model_weights/" if "model_weights" in file else ""


def _is_legacy(file: Any) -> bool:
    attributes = file[_legacy_group(file) or "/"].attrs
    return "layer_names" in attributes or "layer_names0" in attributes


def _legacy_names(file: Any) -> dict[str, str]:
    """The path of each weight by name, in the order of ``layer_names`` and ``weight_names``.

    A weight ``lstm/lstm_cell/kernel:0`` of the layer ``lstm`` is named ``lstm/lstm_cell/kernel``.
    """
    names: dict[str, str] = {}
    group = _legacy_group(file)
    for layer in _strings_of(file[group or "/"], "layer_names"):
        where = f"{group}{layer}"
        if where not in file:
            raise ValueError(f"{where} is listed in layer_names but is not in the file")
        for weight in _strings_of(file[where], "weight_names"):
            plain = re.sub(r":\d+$", "", weight)
            parts = plain.split("/")
            if layer in parts[:-1]:  # Keras 3 puts the model's name first
                plain = "/".join(parts[parts.index(layer) + 1 :])
            name = f"{layer}/{plain}"
            if name in names:
                raise ValueError(f"two weights are named {name}")
            names[name] = f"{where}/{weight}"
    return names


def _strings_of(group: Any, name: str) -> list[str]:
    """An attribute of strings; Keras splits a long one into numbered parts."""
    parts = [name] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(f"{name}{len(parts)}")
    strings = [s for part in parts for s in np.asarray(group.attrs[part]).reshape(-1).tolist()]
    decoded = [s.decode("utf-8") if isinstance(s, bytes) else s for s in strings]
    if any(not isinstance(s, str) for s in decoded):
        raise ValueError(f"{name} must be strings, got {decoded}")
    return decoded


# ---- the options that a saved model stores ----


def keras_options(path: str | pathlib.Path, prefix: str = "") -> dict[str, Any]:
    """Reads the options of the recurrent layers of a saved model, for :func:`from_keras`.

    Args:
      path: a ``.keras``, ``.h5`` or ``.hdf5`` file.  A file of weights only stores no options, and
        the result is empty.
      prefix: the beginning of the names of these layers' arrays, as in :func:`read_arrays`.

    Raises:
      UserError: the file cannot be read, the layers differ in an option, or they have an option
        that would be lost.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.keras"
    >>> lstm = {"name": "lstm", "recurrent_initializer": "zeros", "activation": "relu"}
    >>> layer = {"class_name": "LSTM", "config": lstm}
    >>> with zipfile.ZipFile(path, "w") as file:
    ...     file.writestr("config.json", json.dumps({"config": {"layers": [layer]}}))
    >>> keras_options(path)
    {'activation': 'relu'}
    """
    path = pathlib.Path(path)
    with readable(path, f"{path.suffix} file"):
        config, version = _saved_config(path)
        cells = [] if config is None else [*_cells_of(config, legacy=path.suffix != ".keras")]
        return _options_of(path, cells, prefix, version.startswith(("1.", "2.")))


def keras_mask_value(path: str | pathlib.Path) -> float | None:
    """Reads the ``mask_value`` of the ``Masking`` layer of a saved model, for :func:`keras_mask`.

    Args:
      path: a ``.keras``, ``.h5`` or ``.hdf5`` file.

    Returns:
      The number; None if the model has no such layer, or the file holds only weights.

    Raises:
      UserError: the file cannot be read, or its layers have different values.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.keras"
    >>> layer = {"class_name": "Masking", "config": {"name": "masking", "mask_value": -1.0}}
    >>> with zipfile.ZipFile(path, "w") as file:
    ...     file.writestr("config.json", json.dumps({"config": {"layers": [layer]}}))
    >>> keras_mask_value(path)
    -1.0
    """
    path = pathlib.Path(path)
    with readable(path, f"{path.suffix} file"):
        config, _ = _saved_config(path)
        values = set() if config is None else {*_mask_values(config)}
    if len(values) > 1:
        raise UserError(
            f"{path}: Masking layers must have one mask_value, got "
            f"{', '.join(map(str, sorted(values)))}"
        )
    return values.pop() if values else None


def _mask_values(config: Any) -> Iterator[float]:
    """The ``mask_value`` of each Masking layer of a model and of its nested models."""
    for layer in _layers_in(config):
        kind, inner = _part(layer, "class_name", str), layer.get("config")
        if kind == "Masking":
            yield float(_part(inner, "mask_value", int | float, 0.0))
        elif isinstance(inner, list) or (isinstance(inner, dict) and "layers" in inner):
            yield from _mask_values(layer)


def _saved_config(path: pathlib.Path) -> tuple[Any, str]:
    """A model's saved config (None if there is none), and the version of Keras."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as file:
            return _config_of(file), ""
    with needed("h5py", path).File(path, "r") as file:
        _datasets_of(file)  # rejects links
        groups = [file[name] for name in ("/", "model_weights") if name in file]
        version = next((g.attrs["keras_version"] for g in groups if "keras_version" in g.attrs), "")
        config = file.attrs.get("model_config")
    version = version.decode() if isinstance(version, bytes) else str(version)
    return (None if config is None else json.loads(config)), version


def _config_of(file: zipfile.ZipFile) -> Any:
    return json.loads(file.read(_member(file, "config.json")))


def _part(tree: Any, name: str, kind: Any, default: Any = None) -> Any:
    """An entry of a JSON object, which must have the type ``kind``; required if without default."""
    found = tree.get(name, default) if isinstance(tree, dict) else None
    if not isinstance(found, kind):
        wanted = getattr(kind, "__name__", kind)
        raise ValueError(
            f"the config must have {name}, of type {wanted}, got {type(found).__name__}"
        )
    return found


def _layers_in(config: Any) -> list[Any]:
    """The layers of a saved model; before Keras 2.2.3, a Sequential's config is this list."""
    inner = config.get("config") if isinstance(config, dict) else None
    return inner if isinstance(inner, list) else _part(inner, "layers", list, [])


def _cells_of(config: Any, above: str = "", legacy: bool = False) -> Iterator[tuple[str, Any]]:
    """The path of the arrays of each recurrent cell of a saved model, and the cell's options.

    Args:
      config: the model's config.
      above: the path of the model's arrays.
      legacy: whether paths have the layers' names; otherwise they have those of their classes.
    """
    names: Counter[str] = Counter()
    for layer in _layers_in(config):
        kind = _part(layer, "class_name", str)
        if legacy:
            path = above + str(_part(layer, "config", dict).get("name", kind))
        else:
            path = f"{above}layers/{_numbered(kind, names)}"
        yield from _cells_at(path, layer, legacy)


def _numbered(kind: str, names: Counter[str]) -> str:
    """The name that Keras 3 gives to the next object of a class."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    names[name] += 1
    return name if names[name] == 1 else f"{name}_{names[name] - 1}"


def _cells_at(path: str, layer: Any, legacy: bool) -> Iterator[tuple[str, Any]]:
    """The cells of one layer: of both directions, of a wrapper, or of a nested model."""
    kind, config = _part(layer, "class_name", str), layer.get("config")
    if isinstance(config, list) or (isinstance(config, dict) and "layers" in config):
        yield from _cells_of(layer, f"{path}/", legacy)
        return
    if not isinstance(config, dict):
        return
    if kind == "Bidirectional":
        merge = config.get("merge_mode", "concat")
        for _, cell in _cells_at(path, _part(config, "layer", dict), legacy):
            yield path, {**cell, "merge_mode": merge}
        if config.get("backward_layer"):  # it has its own options, and always go_backwards=True
            for _, cell in _cells_at(path, config["backward_layer"], legacy):
                yield path, {**cell, "merge_mode": merge, "go_backwards": False}
    elif kind == "RNN":
        cell = _part(config, "cell", dict)
        cells, inner = [(path, cell)], cell.get("config")
        if isinstance(inner, dict) and "cells" in inner:
            names: Counter[str] = Counter()
            cells = []
            for one in _part(inner, "cells", list):
                name = _numbered(_part(one, "class_name", str), names)
                cells.append((path if legacy else f"{path}/cell/cells/{name}", one))
        backwards = config.get("go_backwards", False)
        for cell_path, one in cells:
            yield cell_path, {**_part(one, "config", dict), "go_backwards": backwards}
    elif isinstance(config.get("layer"), dict):  # TimeDistributed and other wrappers
        inner_path = path if legacy else f"{path}/layer"
        yield from _cells_at(inner_path, config["layer"], legacy)
    elif "recurrent_initializer" in config:
        yield path, config


LOST = {"go_backwards": False, "strides": 1, "dilation_rate": 1}
"""Options that lstm_jax does not have, with their neutral values."""


def _options_of(
    path: pathlib.Path, cells: list[tuple[str, Any]], prefix: str, keras_2: bool
) -> dict[str, Any]:
    """The options of all cells under a prefix, which must agree."""
    options: dict[str, Any] = {}

    def error(message: str) -> UserError:
        return UserError(one_line(f"{path}: {message}"))

    def note(where: str, name: str, value: Any) -> None:
        if options.setdefault(name, value) != value:
            raise error(
                f"{where} has {name}={value!r}, but a layer before it has {options[name]!r}; "
                "give a prefix that selects layers with equal options"
            )

    for where, config in cells:
        if not f"{where}/".startswith(prefix) and not prefix.startswith(f"{where}/"):
            continue
        if "merge_mode" in config:
            note(where, "merge_mode", config["merge_mode"])
        for name, default in LOST.items():
            value = config.get(name, default)
            wanted = [default] * len(value) if isinstance(value, list) else default
            if value != wanted:
                raise error(f"{name}={value!r} of {where} would be lost")
        for name in ("activation", "recurrent_activation", "padding"):
            if name in config:
                value = config[name]
                if not isinstance(value, str):
                    raise error(f"{name} of {where} must be a name, got {value!r}")
                if keras_2 and value == "hard_sigmoid":
                    value = hard_sigmoid_of_keras_2
                note(where, name, value)
        if not config.get("use_bias", True) and "reset_after" in config:  # a bias would show it
            note(where, "reset_after", config["reset_after"])
    return options


# ---- arrays to files ----


def h5_content(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Encodes arrays under the paths of :func:`to_keras` as a Keras 3 ``.weights.h5`` file."""
    content = io.BytesIO()
    with needed("h5py", path).File(content, "w") as file:
        for name, array in arrays.items():
            cell, _, last = name.rpartition("/")
            layer = cell.split("/")[:-1]
            if last not in VARIABLES or not layer:
                raise UserError(
                    f"{path}: a .weights.h5 file holds arrays of Keras layers, such as "
                    f"lstm/lstm_cell/kernel, got {name}"
                )
            for direction in ("forward", "backward"):
                if layer[-1].startswith(f"{direction}_"):
                    layer[-1] = f"{direction}_layer"
            group = "/".join(["layers", *layer, "cell", "vars"])
            file[f"{group}/{VARIABLES.index(last)}"] = array
    return content.getvalue()
