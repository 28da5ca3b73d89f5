"""Converts files of parameters from one library to another."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from lstm_jax._files import one_line, write_content
from lstm_jax.cells.base import BaseCell
from lstm_jax.errors import UserError
from lstm_jax.interop.cudnn import from_cudnn, to_cudnn
from lstm_jax.interop.equinox import from_equinox, to_equinox
from lstm_jax.interop.files import read_arrays, write_arrays
from lstm_jax.interop.flax import from_flax, to_flax
from lstm_jax.interop.haiku import from_haiku, to_haiku
from lstm_jax.interop.keras import from_keras, to_keras
from lstm_jax.interop.keras_files import keras_options
from lstm_jax.interop.native import from_lstm_jax, to_lstm_jax
from lstm_jax.interop.torch import from_torch, to_torch
from lstm_jax.interop.weights import layers_of
from lstm_jax.sequence.stack import Stack


@dataclasses.dataclass(frozen=True)
class Library:
    """Functions that read a library's arrays as an lstm_jax layer, and write them.

    >>> LIBRARIES["torch"].read is from_torch
    True
    """

    read: Callable[..., Any]
    write: Callable[..., Any]


def _from_cudnn(arrays: dict[str, Any], **sizes: Any) -> Any:
    if len(arrays) != 1:
        raise ValueError(f"cudnn has one array, got {', '.join(arrays)}")
    return from_cudnn(*arrays.values(), **sizes)


def _from_onnx(path: str | pathlib.Path, prefix: str = "") -> Any:
    """The recurrent layers of an ONNX model as one stack."""
    from lstm_jax.interop.onnx import layers_from_onnx

    found = {
        name: layer for name, layer in layers_from_onnx(path).items() if name.startswith(prefix)
    }
    if not found:
        raise ValueError(f"no recurrent layer has a name that begins with {prefix!r}")
    reverse, width = next(iter(found.values()))[0].reverse, None
    cells, params = [], {}
    for name, (stack, weights) in found.items():  # each stack has one layer
        size = stack.input_size(weights)
        if width not in (None, size) or reverse != stack.reverse:
            raise ValueError(
                f"{name} must have input size {width} and the direction of the layer before it, "
                f"got input size {size}; give a prefix that selects the layers of one stack"
            )
        params[f"layer_{len(cells)}"] = weights["layer_0"]
        cells.append(stack.layers[0][1])
        width = stack.output_size
    return Stack(cells, reverse=reverse), params


def _to_onnx(
    layer: Any,
    params: Any,
    *,
    streaming: bool = False,
    lengths: bool = False,
    mask: bool = False,
) -> Any:
    """Converts a layer to an ONNX model."""
    from lstm_jax.interop.onnx import to_onnx

    return to_onnx(layer, params, streaming=streaming, lengths=lengths, mask=mask)


LIBRARIES = {
    "cudnn": Library(from_cudnn, lambda layer, params: {"weights": to_cudnn(layer, params)}),
    "equinox": Library(from_equinox, to_equinox),
    "flax": Library(from_flax, to_flax),
    "haiku": Library(from_haiku, to_haiku),
    "keras": Library(from_keras, to_keras),
    "lstm_jax": Library(from_lstm_jax, to_lstm_jax),
    "onnx": Library(_from_onnx, _to_onnx),
    "torch": Library(from_torch, to_torch),
}
"""Libraries by name.  ``lstm_jax`` is this library, and ``onnx`` has its own file format."""


def library_of(path: str | pathlib.Path) -> str | None:
    """The library that a file's suffix implies, or None.

    >>> library_of("a.keras"), library_of("a.onnx"), library_of("a.npz")
    ('keras', 'onnx', None)
    """
    endings = {".keras": "keras", ".h5": "keras", ".hdf5": "keras", ".onnx": "onnx"}
    return next((name for end, name in endings.items() if str(path).endswith(end)), None)


def read_layer(
    path: str | pathlib.Path, library: str, prefix: str = "", options: Iterable[str] = ()
) -> tuple[Any, Any]:
    """Reads an lstm_jax layer and its parameters from a file of a library's arrays.

    Args:
      path: a file that :func:`read_arrays` accepts, or an ONNX model.
      library: the library that the arrays come from, one of :data:`LIBRARIES`.
      prefix: the beginning of the names of the layer's arrays (in an ONNX model, of its nodes);
        all others are skipped.
      options: options of the library's ``from_`` function, each ``"name=value"``.  A ``.keras``
        file stores most of them.

    Raises:
      UserError: the file cannot be read, an option is unknown, or the arrays do not fit.
    """
    if library == "onnx":
        parsed("from onnx", LIBRARIES[library].read, options)
        return _with_path(path, lambda: _from_onnx(path, prefix))
    arrays = read_arrays(path, prefix)
    given = parsed(f"from {library}", LIBRARIES[library].read, options)
    if library == "keras":  # from_keras takes full paths
        if pathlib.Path(path).suffix in (".keras", ".h5", ".hdf5"):
            given = {**keras_options(path, prefix), **given}
    else:
        arrays = {name[len(prefix) :].lstrip("./"): array for name, array in arrays.items()}
    read = _from_cudnn if library == "cudnn" else LIBRARIES[library].read
    return _with_path(path, lambda: read(arrays, **given))


def write_layer(
    path: str | pathlib.Path, library: str, layer: Any, params: Any, options: Iterable[str] = ()
) -> dict[str, Any]:
    """Writes an lstm_jax layer as a library's arrays, and returns these.

    Args:
      path: a file name that :func:`write_arrays` accepts; for ONNX, the file of the model.
      library: the library to convert to, one of :data:`LIBRARIES`.
      layer: the lstm_jax layer.
      params: its parameters.
      options: options of the library's ``to_`` function, each ``"name=value"``.

    Raises:
      UserError: the file cannot be written, an option is unknown, or something would be lost.
    """
    if library in ("equinox", "flax", "haiku") and hasattr(layer, "apply"):  # these have cells only
        stack = layers_of(layer, params, library)
        if len(stack) > 1:
            raise UserError(
                f"{path}: {library} has only cells, and a file holds one cell; "
                f"got {len(stack)} layers"
            )
        ((_, layer, params),) = stack
    holds_layers = library == "cudnn" or str(path).endswith(".weights.h5")
    if holds_layers and isinstance(layer, BaseCell):
        layer, params = Stack([layer]), {"layer_0": params}
    if library == "onnx":
        given = parsed("to onnx", _to_onnx, options)
        return _saved(path, _with_path(path, lambda: _to_onnx(layer, params, **given)))
    write = LIBRARIES[library].write
    given = parsed(f"to {library}", from_lstm_jax if write is to_lstm_jax else write, options)
    arrays = _with_path(path, lambda: write(layer, params, **given))
    write_arrays(path, arrays)
    return arrays


def _saved(path: str | pathlib.Path, model: Any) -> dict[str, Any]:
    """Writes an ONNX model, and returns its arrays."""
    import onnx

    write_content(pathlib.Path(path), model.SerializeToString())
    return {held.name: onnx.numpy_helper.to_array(held) for held in model.graph.initializer}


def _with_path(path: str | pathlib.Path, conversion: Callable[[], Any]) -> Any:
    """Runs a conversion, and puts the file's name in front of its errors."""
    try:
        return conversion()
    except UserError:
        raise
    except Exception as error:  # a malicious file can fail anywhere
        raise UserError(one_line(f"{path}: {error or type(error).__name__}")) from error


def parsed(where: str, function: Callable[..., Any], options: Iterable[str]) -> dict[str, Any]:
    """Parses options of a function from strings.

    >>> parsed("to torch", to_torch, ["bias=false", "nonlinearity=relu"])
    {'bias': False, 'nonlinearity': 'relu'}
    """
    parameters = list(inspect.signature(function).parameters)
    first = 2 if parameters[:1] in (["layer"], ["cell"]) else 1
    known = [name for name in parameters[first:] if name != "prefix"]
    given: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals:
            raise UserError(f"{option}: expected NAME=VALUE")
        if name not in known:
            names = ", ".join(known) or "none"
            raise UserError(f"{name}: no option {where}; expected one of {names}")
        truth = {"true": True, "false": False, "none": None}
        is_number = text.isascii() and text.isdigit() and len(text) < 10
        given[name] = truth[text] if text in truth else int(text) if is_number else text
    return given
