"""Convert recurrent weights, from a file or a run's best checkpoint, to another library's file.

Files are .safetensors, .npz, .weights.h5, .keras or .onnx; nothing is unpickled. Options of the
functions from_LIBRARY and to_LIBRARY specify what arrays do not show, such as activations.
"""

import argparse
from collections.abc import Sequence

from lstm_jax.cli.parser import Parser, to_path
from lstm_jax.errors import UserError

LIBRARIES = ("cudnn", "equinox", "flax", "haiku", "keras", "lstm_jax", "onnx", "torch")


def configure(parser: Parser, words: Sequence[str]) -> None:
    """Adds the options."""
    parser.usage = "lstm-jax convert SOURCE TARGET [OPTION ...]"
    libraries = {"choices": LIBRARIES, "metavar": "LIBRARY"}
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=to_path,
        help="a file of arrays, an ONNX model, or a run's folder",
    )
    parser.add_argument("target", metavar="TARGET", type=to_path, help="the file to write")
    parser.add_argument(
        "--from",
        dest="from_library",
        help=f"library of the arrays in SOURCE: {', '.join(LIBRARIES)} (default: known for a run, "
        "and for .keras, .weights.h5 and .onnx)",
        **libraries,
    )
    parser.add_argument(
        "--to",
        dest="to_library",
        help="library of the arrays in TARGET (default: known for .keras, .weights.h5 and .onnx)",
        **libraries,
    )
    parser.add_argument(
        "--prefix",
        default="",
        metavar="TEXT",
        help="prefix of the names of the layer's arrays (in .onnx, of its nodes); others are "
        "left out",
    )
    for flag, function in (("--reading", "from_LIBRARY"), ("--writing", "to_LIBRARY")):
        parser.add_argument(
            flag, nargs="+", default=(), metavar="NAME=VALUE", help=f"options of {function}"
        )


def run(options: argparse.Namespace) -> None:
    """Converts, and prints the name, type and shape of each array that was written."""
    from lstm_jax.interop.convert import library_of, read_layer, write_layer
    from lstm_jax.interop.weights import flattened

    source, target = options.source, options.target
    known = ", ".join(LIBRARIES)
    to_library = options.to_library or library_of(target)
    if to_library is None:
        raise UserError(f"--to: expected one of {known} for {target}")
    if source.is_dir():
        layer, params = _layer_of_run(options)
    else:
        from_library = options.from_library or library_of(source)
        if from_library is None:
            raise UserError(f"--from: expected one of {known} for {source}")
        layer, params = read_layer(source, from_library, options.prefix, options.reading)
    arrays = write_layer(target, to_library, layer, params, options.writing)
    for name, array in flattened(arrays):
        print(f"{name}  {array.dtype} {array.shape}")


def _layer_of_run(options: argparse.Namespace) -> tuple:
    """The recurrent layers of a run and their best parameters."""
    from flax import nnx

    from lstm_jax.nnx import Stack
    from lstm_jax.train import load_run

    files_only = {
        "--from": options.from_library,
        "--prefix": options.prefix,
        "--reading": " ".join(options.reading),
    }
    for flag, given in files_only.items():
        if given:
            raise UserError(f"{flag}: is for files, not for a run's folder, got {given}")
    run = load_run(options.source)
    layers = [node for _, node in nnx.iter_graph(run.model.module) if isinstance(node, Stack)]
    if not layers:
        raise UserError(f"{options.source}: task {run.config.task} has no recurrent layers")
    return layers[0].layer, layers[0].params
