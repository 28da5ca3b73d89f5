"""Builds ONNX graphs node by node."""

import ast
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

OPSET = 18  # the opset of written models, which ONNX Runtime 1.14 (2023) and later support
IR_VERSION = 8

Value = Any  # the name of a value in the graph, or a NumPy array if it is constant


class Builder:
    """A graph under construction.

    Constants belong to the outermost graph, where nested graphs can read them.

    >>> builder = Builder()
    >>> builder.add("Add", "x", np.ones(3, np.float32))
    'Add_0'
    >>> [node.op_type for node in builder.nodes], list(builder.constants)
    (['Add'], ['constant_0'])
    """

    def __init__(self, outer: "Builder | None" = None):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {} if outer is None else outer.constants
        self._sizes: dict[str, str] = {} if outer is None else outer._sizes
        self._known: dict[Any, str] = {} if outer is None else outer._known
        self._counts: dict[str, int] = {} if outer is None else outer._counts

    def within(self) -> "Builder":
        """Returns a builder for a graph nested in a node of this one."""
        return Builder(self)

    def add(self, operator: str, *inputs: Value | None, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node, and returns the name of its output, or a list if it has several.

        Args:
          operator: the operator's name in the standard.
          inputs: names, or arrays, which become constants; None for an omitted input.
          outputs: the number of outputs.
          attributes: the attributes; those that are None are omitted.
        """
        name = self.new_name(operator)
        names = [name] if outputs == 1 else [f"{name}_{n}" for n in range(outputs)]
        given = [self.name_of(value) for value in inputs]
        while given and not given[-1]:
            given.pop()
        attributes = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(operator, given, names, name=name, **attributes))
        return name if outputs == 1 else names

    def new_name(self, kind: str) -> str:
        """Returns a unique name."""
        count = self._counts.get(kind, 0)
        self._counts[kind] = count + 1
        return f"{kind}_{count}"

    def name_of(self, value: Value | None) -> str:
        """The name of a value; an array becomes a constant."""
        if value is None:
            return ""
        return value if isinstance(value, str) else self.constant(value)

    def constant(self, array: np.ndarray, name: str | None = None) -> str:
        """Stores an array as a constant, and returns its name.

        The same array, and small arrays with equal values, are stored once.
        """
        array = np.asarray(array)
        small = array.size <= 16 and name is None and id(array) not in self._known
        key = (array.dtype, array.shape, array.tobytes()) if small else id(array)
        if key not in self._known:
            self._known[key] = name or self.new_name("constant")
            self.constants[self._known[key]] = array  # this reference keeps its id unique
        return self._known[key]

    # ---- sizes ----

    def learn_sizes(self, name: str, shape: Sequence[Any]) -> None:
        """Adds nodes that read symbolic sizes from the shape of an input: t of an axis t or 8*t."""
        for axis, size in enumerate(shape):
            if isinstance(size, int):
                continue
            found = re.fullmatch(r"(?:(\d+)\*)?([A-Za-z_]\w*)", str(size))
            if found and found[2] not in self._sizes:
                read = self.add("Shape", name, start=axis, end=axis + 1)
                if found[1]:
                    read = self.add("Div", read, np.array([int(found[1])]))
                self._sizes[found[2]] = read

    def size(self, size: Any) -> Value:
        """A size as integers ``[1]``: a constant, or computed from the inputs' shapes."""
        if isinstance(size, int | np.integer):
            return np.array([size], np.int64)
        return self._computed(ast.parse(str(size).replace("^", "**"), mode="eval").body)

    def _computed(self, tree: ast.expr) -> Value:
        if isinstance(tree, ast.Constant):
            return np.array([tree.value], np.int64)
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            return self.arithmetic("Neg", self._computed(tree.operand))
        if isinstance(tree, ast.Name) and tree.id in self._sizes:
            return self._sizes[tree.id]
        if isinstance(tree, ast.BinOp):
            sides = self._computed(tree.left), self._computed(tree.right)
            return self.arithmetic(_OPERATIONS[type(tree.op).__name__], *sides)
        if isinstance(tree, ast.Call):
            arguments = [self._computed(argument) for argument in tree.args]
            return self.arithmetic(_FUNCTIONS[ast.unparse(tree.func)], *arguments)
        raise ValueError(f"size {ast.unparse(tree)} does not follow from the shapes of the inputs")

    def arithmetic(self, operator: str, *values: Value) -> Value:
        """Applies an operation to sizes, at once if they are constant."""
        if all(isinstance(value, np.ndarray) for value in values):
            return np.asarray(_NUMPY[operator](*values))
        return self.add(operator, *values)

    def shape(self, sizes: Sequence[Any]) -> Value:
        """A shape as one vector of integers."""
        if all(isinstance(size, int | np.integer) for size in sizes):
            return np.array(sizes, np.int64)
        return self.add("Concat", *map(self.size, sizes), axis=0)

    # ---- the finished graph ----

    def value_info(self, name: str, aval: Any) -> onnx.ValueInfoProto:
        """The type and shape of a value; symbolic sizes are names."""
        shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
        return helper.make_tensor_value_info(name, type_code(aval.dtype), shape)

    def graph(
        self, name: str, inputs: dict[str, Any], outputs: dict[str, tuple[Value, Any]]
    ) -> onnx.GraphProto:
        """Returns the graph of the nodes that contribute to the outputs.

        Args:
          name: the graph's name.
          inputs: the shape and type of each input by name.
          outputs: the value, and its shape and type, by the name of each output.
        """
        for new, (value, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [self.name_of(value)], [new], name=new))
        needed, reached = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                reached.append(node)
                needed |= names_read(node)
        return helper.make_graph(
            reached[::-1],
            name,
            [self.value_info(key, aval) for key, aval in inputs.items()],
            [self.value_info(key, aval) for key, (_, aval) in outputs.items()],
        )


def names_read(node: onnx.NodeProto) -> set[str]:
    """The values that a node and its nested graphs read.

    >>> sorted(names_read(helper.make_node("Add", ["a", "b"], ["c"])))
    ['a', 'b']
    """
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                names |= names_read(inner)
    return names


def type_code(dtype: Any) -> int:
    """The code of a type in ``TensorProto``."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def is_known_size(shape: Sequence[Any]) -> bool:
    """Whether all sizes are numbers.

    >>> from jax.export import symbolic_shape
    >>> is_known_size((3, 4)), is_known_size(symbolic_shape("t, 4"))
    (True, False)
    """
    return all(isinstance(size, int | np.integer) for size in shape)


_OPERATIONS = {"Add": "Add", "Sub": "Sub", "Mult": "Mul", "Pow": "Pow"}
_FUNCTIONS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}
_NUMPY = {
    "Add": np.add,
    "Div": np.floor_divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mod": np.mod,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Pow": np.power,
    "Sub": np.subtract,
}
