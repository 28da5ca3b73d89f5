"""From one library's file to another's."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from lstm_jax.cells.base import BaseCell
from lstm_jax.errors import UserError
from lstm_jax.interop.cudnn import from_cudnn, to_cudnn
from lstm_jax.interop.equinox import from_equinox, to_equinox
from lstm_jax.interop.files import keras_options, read_arrays, write_arrays
from lstm_jax.interop.flax import from_flax, to_flax
from lstm_jax.interop.haiku import from_haiku, to_haiku
from lstm_jax.interop.keras import from_keras, to_keras
from lstm_jax.interop.native import from_lstm_jax, to_lstm_jax
from lstm_jax.interop.torch import from_torch, to_torch
from lstm_jax.interop.weights import layers_of
from lstm_jax.sequence.stack import Stack


@dataclasses.dataclass(frozen=True)
class Library:
    """How a library's arrays become a layer of ours, and the other way.

    >>> LIBRARIES["torch"].read is from_torch
    True
    """

    read: Callable[..., Any]
    write: Callable[..., Any]


def _from_cudnn(arrays: dict[str, Any], **sizes: Any) -> Any:
    if len(arrays) != 1:
        raise ValueError(f"cudnn has one array, got {', '.join(arrays)}")
    return from_cudnn(*arrays.values(), **sizes)


LIBRARIES = {
    "cudnn": Library(from_cudnn, lambda layer, params: {"weights": to_cudnn(layer, params)}),
    "equinox": Library(from_equinox, to_equinox),
    "flax": Library(from_flax, to_flax),
    "haiku": Library(from_haiku, to_haiku),
    "keras": Library(from_keras, to_keras),
    "lstm_jax": Library(from_lstm_jax, to_lstm_jax),
    "torch": Library(from_torch, to_torch),
}
"""Libraries by name; ``lstm_jax`` is ours."""


def read_layer(
    path: str | pathlib.Path, library: str, prefix: str = "", options: Iterable[str] = ()
) -> tuple[Any, Any]:
    """A layer of ours, and its parameters, of a file of a library's arrays.

    Args:
      path: as :func:`read_arrays` takes it.
      library: whose arrays these are, one of :data:`LIBRARIES`.
      prefix: what the names of the layer's arrays begin with; others are left out.
      options: of the library's ``from_`` function, each ``"name=value"``.  A ``.keras`` file tells
        most of them itself.

    Raises:
      UserError: the file cannot be read, an option is unknown, or the arrays do not fit.
    """
    arrays = read_arrays(path, prefix)
    given = parsed(f"from {library}", LIBRARIES[library].read, options)
    if library == "keras":  # takes whole paths
        if pathlib.Path(path).suffix == ".keras":
            given = {**keras_options(path, prefix), **given}
    else:
        arrays = {name[len(prefix) :].lstrip("./"): array for name, array in arrays.items()}
    read = _from_cudnn if library == "cudnn" else LIBRARIES[library].read
    return _told(path, lambda: read(arrays, **given))


def write_layer(
    path: str | pathlib.Path, library: str, layer: Any, params: Any, options: Iterable[str] = ()
) -> dict[str, Any]:
    """Writes a layer of ours as a library's arrays, which it returns.

    Args:
      path: as :func:`write_arrays` takes it.
      library: whose arrays it shall hold, one of :data:`LIBRARIES`.
      layer: ours.
      params: its parameters.
      options: of the library's ``to_`` function, each ``"name=value"``.

    Raises:
      UserError: the file cannot be written, an option is unknown, or something would be lost.
    """
    if library in ("equinox", "flax", "haiku") and hasattr(layer, "apply"):  # they have cells
        stack = layers_of(layer, params, library)
        if len(stack) > 1:
            raise UserError(
                f"{path}: {library} has cells, of which a file holds one, got {len(stack)} layers"
            )
        ((_, layer, params),) = stack
    holds_layers = library == "cudnn" or str(path).endswith(".weights.h5")
    if holds_layers and isinstance(layer, BaseCell):
        layer, params = Stack([layer]), {"layer_0": params}
    write = LIBRARIES[library].write
    given = parsed(f"to {library}", from_lstm_jax if write is to_lstm_jax else write, options)
    arrays = _told(path, lambda: write(layer, params, **given))
    write_arrays(path, arrays)
    return arrays


def _told(path: str | pathlib.Path, conversion: Callable[[], Any]) -> Any:
    """What a conversion gives, its errors with the file's name."""
    try:
        return conversion()
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def parsed(where: str, function: Callable[..., Any], options: Iterable[str]) -> dict[str, Any]:
    """Options of a function from texts.

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
        given[name] = truth[text] if text in truth else int(text) if text.isdigit() else text
    return given
