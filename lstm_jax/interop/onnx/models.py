"""Models of ONNX as files: read as data, with everything in one file, and of bounded size."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from lstm_jax.errors import UserError
from lstm_jax.interop.guards import ALWAYS, one_line, readable

STANDARD = ("", "ai.onnx")
DEEPEST = 64  # calls of a model's own functions within each other
MOST_NODES = 1_000_000  # of a model once its own functions are written out
MOST_COMPUTED = 8 * ALWAYS  # bytes of one constant that is computed from others


def loaded(model: onnx.ModelProto | str | os.PathLike) -> onnx.ModelProto:
    """A model as it is, or from a file; no other file is opened.

    Raises:
      TypeError: it is neither a model nor a path.
      UserError: there is no such file, or it is damaged.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a ModelProto or a path, got {type(model).__name__}")
    path = pathlib.Path(model)
    with readable(path, "ONNX model"):
        proto = onnx.load_model_from_string(path.read_bytes())
        if not proto.HasField("graph"):  # as in an empty file
            raise ValueError("it has no graph")
    return proto


@contextlib.contextmanager
def naming(model: Any) -> Iterator[None]:
    """Every error of a model becomes one line: a UserError with its path, else a ValueError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a hostile model can fail anywhere
        if not isinstance(model, onnx.ModelProto | str | os.PathLike):
            raise
        raise _named(model, error) from error


def _named(model: Any, error: Exception) -> Exception:
    reason = str(error) or type(error).__name__
    if isinstance(model, onnx.ModelProto):
        return ValueError(one_line(reason))
    return UserError(one_line(f"{model}: {reason}"))


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    """The numbers of a tensor that are in the model itself.

    Raises:
      ValueError: they are in another file, or do not fit the tensor's sizes.

    >>> array_of(onnx.numpy_helper.from_array(np.ones((1, 2)), "w")).tolist()
    [[1.0, 1.0]]
    """
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        files = [entry.value for entry in tensor.external_data if entry.key == "location"]
        raise ValueError(
            f"the numbers of {tensor.name!r} are in another file, {', '.join(files)!r}, which is "
            "not read; write the model as one file: onnx.save(onnx.load(PATH), NEW_PATH)"
        )
    if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > 2**48:
        raise ValueError(f"{tensor.name!r} has impossible sizes, {list(tensor.dims)}")
    return onnx.numpy_helper.to_array(tensor)


def attribute_of(attribute: onnx.AttributeProto) -> Any:
    """Numbers, strings and lists of them; tensors as NumPy arrays, graphs as they are."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return array_of(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.GraphProto) or not hasattr(value, "__iter__"):
        return value
    if isinstance(value, str):
        return value
    return [item.decode() if isinstance(item, bytes) else item for item in value]


# ---- graphs within nodes, and functions of a model's own ----


def graphs_in(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs in a node's attributes, as If, Loop and Scan have them."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for n, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}_{n}", graph


class Functions:
    """A model's own functions, and how much there is in a graph that calls them.

    Calls within calls double what there is at every level; it is counted here, and never written
    out.

    >>> functions = Functions(onnx.ModelProto())
    >>> functions.count([onnx.helper.make_node("LSTM", ["x"], ["y"])], {"LSTM"})
    1
    """

    def __init__(self, model: onnx.ModelProto):
        self._by_name = {_key(f.domain, f.name, f.overload): f for f in model.functions}
        self._counts: dict[Any, int] = {}

    def called_by(self, node: onnx.NodeProto) -> onnx.FunctionProto | None:
        """The function that a node calls; None where it is an operator."""
        return self._by_name.get(_key(node.domain, node.op_type, node.overload))

    def count(self, nodes: Any, operators: set[str] | None = None, depth: int = 0) -> int:
        """How many nodes there are with everything that they call and hold.

        Args:
          nodes: of a graph or function.
          operators: count only these operators of the standard.
          depth: of calls around it.

        Raises:
          ValueError: functions call each other too deeply, as one does that calls itself.
        """
        if depth > DEEPEST:
            raise ValueError(f"functions of the model call each other more than {DEEPEST} deep")
        total = 0
        for node in nodes:
            function = self.called_by(node)
            if function is not None:
                key = (function.domain, function.name, function.overload, operators is None)
                if key not in self._counts:
                    self._counts[key] = self.count(function.node, operators, depth + 1)
                total += self._counts[key]
            elif operators is None or (node.domain in STANDARD and node.op_type in operators):
                total += 1
            total += sum(self.count(g.node, operators, depth) for _, g in graphs_in(node))
        return total


def _key(domain: str, name: str, overload: str) -> tuple[str, str, str]:
    return ("" if domain in STANDARD else domain), name, overload


# ---- constants that are computed from constants ----


def check_computed(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> int:
    """The bytes that an operator is about to make of arrays that are known, at most.

    Raises:
      ValueError: it is far more than a weight or shape can need.

    >>> check_computed("ConstantOfShape", [np.array([4, 2])], {})
    64
    """
    sizes = [np.size(array) for array in inputs if array is not None]
    most = _grown(operator, inputs, attributes)
    count = max([most, *sizes], default=0)
    if 8 * count > MOST_COMPUTED:
        raise ValueError(
            f"{operator} would make {count} numbers out of {sum(sizes)}; expected at most "
            f"{MOST_COMPUTED // 8}"
        )
    return 8 * count


def _grown(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> int:
    """How many numbers an operator makes at most, where these are more than it is given."""

    def given(n: int) -> list[int]:
        array = inputs[n] if n < len(inputs) else None
        return [] if array is None else [int(i) for i in np.asarray(array).reshape(-1)[:64]]

    shapes = [np.shape(array) for array in inputs if array is not None]
    if operator == "ConstantOfShape":
        return math.prod(given(0))
    if operator == "Range":
        start, limit, delta = (float(np.asarray(a).reshape(-1)[0]) for a in inputs[:3])
        return max(0, math.ceil((limit - start) / delta))
    if operator == "Tile":
        return math.prod([*shapes[0], *given(1)])
    if operator == "Expand":
        return _broadcast([shapes[0], tuple(given(1))])
    if operator == "Pad":
        return math.prod(abs(n) + sum(map(abs, given(1))) for n in shapes[0])
    if operator == "OneHot":
        return math.prod([*shapes[0], *given(1)])
    if operator in ("Gather", "GatherND"):
        axis = attributes.get("axis", 0)
        return math.prod(shapes[1]) * (math.prod(shapes[0]) // max(shapes[0][axis], 1))
    if operator in ("MatMul", "Gemm"):
        summed = max(shapes[0][0 if attributes.get("transA") else -1], 1)
        return math.prod(shapes[0]) // summed * (math.prod(shapes[1]) // summed)
    if operator in ("Conv", "Einsum"):
        return math.prod(math.prod(shape) for shape in shapes[:2])
    if operator == "Concat":
        return sum(math.prod(shape) for shape in shapes)
    return _broadcast(shapes)


def _broadcast(shapes: list[tuple[int, ...]]) -> int:
    """The size that arrays have together, 0 where they do not fit."""
    rank = max(map(len, shapes), default=0)
    whole = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return math.prod(max(map(abs, sizes)) for sizes in zip(*whole, strict=True)) if rank else 1
