"""Reads ONNX models from files: no code is run, no other file is opened, and sizes are bounded."""

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
DEEPEST = 64  # the maximum depth of nested calls of a model's functions
MOST_NODES = 1_000_000  # the maximum number of nodes of a model whose functions are inlined
MOST_COMPUTED = 8 * ALWAYS  # the maximum bytes of a constant that is computed from others


def loaded(model: onnx.ModelProto | str | os.PathLike) -> onnx.ModelProto:
    """Returns a model unchanged, or reads it from a file; no other file is opened.

    Raises:
      TypeError: ``model`` is neither a model nor a path.
      UserError: the file does not exist or is damaged.
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
    """Turns every error into a single line: a UserError with the model's path, or a ValueError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a malicious model can fail anywhere
        if not isinstance(model, onnx.ModelProto | str | os.PathLike):
            raise
        raise _named(model, error) from error


def _named(model: Any, error: Exception) -> Exception:
    reason = str(error) or type(error).__name__
    if isinstance(model, onnx.ModelProto):
        return ValueError(one_line(reason))
    return UserError(one_line(f"{model}: {reason}"))


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    """The numbers of a tensor, which must be in the model itself.

    Raises:
      ValueError: the numbers are in another file, or do not fit the tensor's sizes.

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
    """An attribute as a number, a string, a list of these, a NumPy array, or an unchanged graph."""
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


# ---- nested graphs, and the functions of a model ----


def graphs_in(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs in a node's attributes, as in If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for n, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}_{n}", graph


class Functions:
    """A model's functions, and the number of nodes of a graph that calls them.

    Nested calls can double the number of nodes at every level, so nodes are counted without
    inlining the functions.

    >>> functions = Functions(onnx.ModelProto())
    >>> functions.count([onnx.helper.make_node("LSTM", ["x"], ["y"])], {"LSTM"})
    1
    """

    def __init__(self, model: onnx.ModelProto):
        self._by_name = {_key(f.domain, f.name, f.overload): f for f in model.functions}
        self._counts: dict[Any, int] = {}

    def called_by(self, node: onnx.NodeProto) -> onnx.FunctionProto | None:
        """The function that a node calls; None if the node is an operator."""
        return self._by_name.get(_key(node.domain, node.op_type, node.overload))

    def count(self, nodes: Any, operators: set[str] | None = None, depth: int = 0) -> int:
        """Counts nodes, including those of called functions and nested graphs.

        Args:
          nodes: the nodes of a graph or function.
          operators: if given, count only these operators of the standard.
          depth: the depth of the enclosing calls.

        Raises:
          ValueError: calls are nested too deeply, for instance because a function calls itself.
        """
        if depth > DEEPEST:
            raise ValueError(f"function calls of the model are nested more than {DEEPEST} deep")
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


# ---- constants computed from constants ----


def check_computed(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> int:
    """An upper bound of the bytes that an operator computes from constants.

    Raises:
      ValueError: the bound is far more than a weight or shape can need.

    >>> check_computed("ConstantOfShape", [np.array([4, 2])], {})
    64
    """
    sizes = [np.size(array) for array in inputs if array is not None]
    most = _grown(operator, inputs, attributes)
    count = max([most, *sizes], default=0)
    if 8 * count > MOST_COMPUTED:
        raise ValueError(
            f"{operator} would compute {count} numbers from {sum(sizes)}; expected at most "
            f"{MOST_COMPUTED // 8}"
        )
    return 8 * count


def _grown(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> int:
    """An upper bound of the numbers that an operator computes."""

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
    """The size of the broadcast result of arrays with these shapes."""
    rank = max(map(len, shapes), default=0)
    whole = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return math.prod(max(map(abs, sizes)) for sizes in zip(*whole, strict=True)) if rank else 1
