"""Graphs of ONNX as they are built, node by node."""

import ast
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

OPSET = 18  # of what is written; ONNX Runtime 1.14 (2023) and later run it
IR_VERSION = 8

Value = Any  # the name of a value in the graph, or a NumPy array that is known


class Builder:
    """A graph in the making.

    Constants belong to the outermost graph, where graphs within its nodes see them, too.

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
        """A graph that is to stand in a node of this one."""
        return Builder(self)

    def add(self, operator: str, *inputs: Value | None, outputs: int = 1, **attributes: Any) -> Any:
        """A node; the name of its output, or of its outputs where there are more.

        Args:
          operator: its name in the standard.
          inputs: names, or arrays, which become constants; None for one that is left out.
          outputs: how many there are.
          attributes: those that are None are left out.
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
        """A name that no other value has."""
        count = self._counts.get(kind, 0)
        self._counts[kind] = count + 1
        return f"{kind}_{count}"

    def name_of(self, value: Value | None) -> str:
        """The name of a value; a known one becomes a constant."""
        if value is None:
            return ""
        return value if isinstance(value, str) else self.constant(value)

    def constant(self, array: np.ndarray, name: str | None = None) -> str:
        """The name of a constant; the same array, or a small one that is equal, is stored once."""
        array = np.asarray(array)
        small = array.size <= 16 and name is None and id(array) not in self._known
        key = (array.dtype, array.shape, array.tobytes()) if small else id(array)
        if key not in self._known:
            self._known[key] = name or self.new_name("constant")
            self.constants[self._known[key]] = array  # kept, so that its id stays its own
        return self._known[key]

    # ---- sizes ----

    def learn_sizes(self, name: str, shape: Sequence[Any]) -> None:
        """Takes symbolic sizes from the shape of an input: t of an axis t or 8*t."""
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
        """A size as integers ``[1]``: a number, or what is computed of the inputs' shapes."""
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
        """An operation on sizes, done at once where they are known."""
        if all(isinstance(value, np.ndarray) for value in values):
            return np.asarray(_NUMPY[operator](*values))
        return self.add(operator, *values)

    def shape(self, sizes: Sequence[Any]) -> Value:
        """Sizes as one vector of integers."""
        if all(isinstance(size, int | np.integer) for size in sizes):
            return np.array(sizes, np.int64)
        return self.add("Concat", *map(self.size, sizes), axis=0)

    # ---- done ----

    def value_info(self, name: str, aval: Any) -> onnx.ValueInfoProto:
        """What is known of a value: its type, and its shape with symbolic sizes by name."""
        shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
        return helper.make_tensor_value_info(name, type_code(aval.dtype), shape)

    def graph(
        self, name: str, inputs: dict[str, Any], outputs: dict[str, tuple[Value, Any]]
    ) -> onnx.GraphProto:
        """The graph, of nodes that contribute to its outputs.

        Args:
          name: its name.
          inputs: what is known of each, by its name.
          outputs: the value and what is known of it, by the name that it gets.
        """
        for new, (value, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [self.name_of(value)], [new], name=new))
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed |= names_read(node)
        return helper.make_graph(
            kept[::-1],
            name,
            [self.value_info(key, aval) for key, aval in inputs.items()],
            [self.value_info(key, aval) for key, (_, aval) in outputs.items()],
        )


def names_read(node: onnx.NodeProto) -> set[str]:
    """The values that a node reads, those of graphs within it, too.

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
    """The code that ``TensorProto`` has for a type."""
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
