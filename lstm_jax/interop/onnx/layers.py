"""Finds the recurrent layers of an ONNX model, including those in nested graphs and functions."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx

from lstm_jax.interop.guards import ALWAYS, PER_BYTE
from lstm_jax.interop.onnx.models import (
    STANDARD,
    Functions,
    array_of,
    attribute_of,
    check_computed,
    graphs_in,
    loaded,
    naming,
)
from lstm_jax.interop.onnx.operators import operator_at
from lstm_jax.interop.onnx.recurrent import DEFAULTS as RECURRENT
from lstm_jax.interop.onnx.recurrent import layer_from_onnx
from lstm_jax.sequence import Stack

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
MOST_LAYERS = 1000
LONGEST = 64  # the maximum length of a chain of operators that computes a weight
OVERHEAD = 4096  # the minimum bytes counted for an operator, so that their number is bounded
NOT_COMPUTED = {"BatchNormalization", "Conv", "Einsum", "LayerNormalization"}


def layers_from_onnx(
    model: onnx.ModelProto | str | os.PathLike,
) -> dict[str, tuple[Stack, dict[str, Any]]]:
    """Reads the recurrent layers of a model and their weights; all other nodes are ignored.

    Layers in the branches of If, in the bodies of Loop and Scan and in the model's functions are
    found, too.  Other nodes are evaluated only if they compute a layer's weights.

    Args:
      model: an ONNX model, or its path.

    Returns:
      ``(layer, params)``, as from :func:`layer_from_onnx`, by the names of the nodes, in their
      order.  A node without a name gets its operator and a number, ``"LSTM_0"``.  In a nested
      graph, the path of the graph comes before the name, ``"If_0/then_branch/LSTM_0"``.

    Raises:
      ValueError: the model has no recurrent layer, weights are computed from the model's inputs or
        are in another file, or the model is damaged.
      UserError: the same for a model from a file, which the message names.
      TypeError: ``model`` is neither a model nor a path.

    Example:
      >>> import jax
      >>> from lstm_jax import LSTM
      >>> from lstm_jax.interop.onnx import to_onnx
      >>> lstm = LSTM(4, num_layers=2)
      >>> model = to_onnx(lstm, lstm.init(jax.random.key(0), input_size=3))
      >>> layers = layers_from_onnx(model)
      >>> list(layers), layers["LSTM_1"][1]["layer_0"]["w_ih"].shape
      (['LSTM_0', 'LSTM_1'], (4, 16))
    """
    with naming(model), np.errstate(all="ignore"):
        proto = loaded(model)
        walk = _Walk(proto)
        layers: dict[str, tuple[Stack, dict[str, Any]]] = {}
        for name, node, scope in walk.recurrent_nodes():
            unique = name if name not in layers else f"{name}_{len(layers)}"
            layers[unique] = walk.layer_of(name, node, scope)
        if not layers:
            raise ValueError(f"the model has no {', '.join(RECURRENT)}")
        return layers


class _Scope:
    """The values that a graph can read: its own, and those of the enclosing graph.

    Attributes:
      made: the node that computes each value, by the value's name.
      given: in a function, the argument of each parameter, by the parameter's name.
      outer: the scope of the enclosing graph, or of a function's caller.
      is_function: whether the graph reads nothing of ``outer`` but its arguments.
      attributes: in a function, the attributes that the call passes.
      opset: the version of the standard's operators.
      known: values that have been computed.
    """

    def __init__(
        self,
        nodes: Any,
        opset: int,
        constants: Any = (),
        outer: "_Scope | None" = None,
        given: dict[str, str] | None = None,
        attributes: dict[str, onnx.AttributeProto] | None = None,
        is_function: bool = False,
    ):
        self.is_function = is_function
        self.nodes, self.opset, self.outer, self.given = nodes, opset, outer, given
        self.attributes = attributes or {}
        self.made = {output: node for node in nodes for output in node.output if output}
        self.constants = {tensor.name: tensor for tensor in constants}
        self.known: dict[str, np.ndarray] = {}
        self.calls: dict[str, _Scope] = {}


class _Walk:
    """Walks through a model and computes the weights, within a memory bound set by its size."""

    def __init__(self, model: onnx.ModelProto):
        self.functions = Functions(model)
        versions = {entry.domain: entry.version for entry in model.opset_import}
        self.opset = versions.get("", versions.get("ai.onnx", 1))
        self.graph = model.graph
        self.room = ALWAYS + PER_BYTE * model.ByteSize()
        self.unnamed = 0

    def recurrent_nodes(self) -> Iterator[tuple[str, onnx.NodeProto, _Scope]]:
        """Each recurrent node with its name and the scope of its inputs."""
        count = self.functions.count(self.graph.node, set(RECURRENT))
        if count > MOST_LAYERS:
            raise ValueError(
                f"the model has {count} recurrent layers; expected at most {MOST_LAYERS}"
            )
        scope = _Scope(self.graph.node, self.opset, self.graph.initializer)
        yield from self._nodes_in(scope, "")

    def _nodes_in(self, scope: _Scope, path: str) -> Iterator[tuple[str, onnx.NodeProto, _Scope]]:
        numbers: Counter[str] = Counter()
        for node in scope.nodes:
            function = self.functions.called_by(node)
            if function is None and node.domain in STANDARD and node.op_type in RECURRENT:
                name = node.name or f"{node.op_type}_{self.unnamed}"
                self.unnamed += 1
                yield f"{path}{name}", node, scope
                continue
            if not self.functions.count([node], set(RECURRENT)):
                continue
            name = node.name or f"{node.op_type}_{numbers[node.op_type]}"
            numbers[node.op_type] += 1
            if function is not None:
                yield from self._nodes_in(self._called(node, function, scope), f"{path}{name}/")
            for attribute, graph in graphs_in(node):
                inner = _Scope(graph.node, scope.opset, graph.initializer, scope)
                inner.attributes = scope.attributes
                hidden = {value.name for value in graph.input} - set(inner.constants)
                inner.given = dict.fromkeys(hidden, "")  # only known when the model runs
                yield from self._nodes_in(inner, f"{path}{name}/{attribute}/")

    def _called(self, node: onnx.NodeProto, function: Any, scope: _Scope) -> _Scope:
        """The scope of a function in one of its calls."""
        key = "\n".join([node.op_type, *node.input, *node.output])
        if key not in scope.calls:
            versions = {entry.domain: entry.version for entry in function.opset_import}
            attributes = {a.name: a for a in function.attribute_proto}
            attributes |= {a.name: _resolved(a, scope) for a in node.attribute}
            given = dict.fromkeys(function.input, "")
            given |= dict(zip(function.input, node.input, strict=False))
            opset = versions.get("", versions.get("ai.onnx", self.opset))
            passed = {name: a for name, a in attributes.items() if a is not None}
            scope.calls[key] = _Scope(function.node, opset, (), scope, given, passed, True)
        return scope.calls[key]

    def layer_of(self, name: str, node: onnx.NodeProto, scope: _Scope) -> tuple[Stack, Any]:
        """Converts a recurrent node to a layer."""
        given = dict(zip(INPUTS, node.input, strict=False))
        arrays = {}
        for key in ("W", "R", "B", "P"):
            if given.get(key):
                array = self.value(scope, given[key], f"{key} of node {name!r}")
                if not jnp.issubdtype(array.dtype, jnp.floating):
                    raise ValueError(
                        f"{key} of node {name!r} must be floating numbers, got {array.dtype}"
                    )
                arrays[key] = array
        return layer_from_onnx(node.op_type, arrays, self._attributes(node, scope))

    def value(self, scope: _Scope, name: str, what: str, depth: int = 0) -> np.ndarray:
        """Computes a value from constants.

        Args:
          scope: the scope of the name.
          name: the value's name.
          what: the purpose of the value, for messages.
          depth: the number of operators between this value and the weight.

        Raises:
          ValueError: the value depends on inputs, or needs too much memory.
        """
        if depth > LONGEST:
            raise ValueError(f"{what} is computed by more than {LONGEST} operators in a row")
        if name in scope.known:
            return scope.known[name]
        if name in scope.constants:
            scope.known[name] = array_of(scope.constants[name])
        elif name in scope.made:
            self._compute(scope, scope.made[name], what, depth)
        elif scope.given is not None and name in scope.given:
            if not scope.given[name] or scope.outer is None:
                raise ValueError(f"{what} is computed from the model's inputs")
            scope.known[name] = self.value(scope.outer, scope.given[name], what, depth + 1)
        elif scope.outer is not None and not scope.is_function:
            return self.value(scope.outer, name, what, depth + 1)
        if name not in scope.known:
            raise ValueError(f"{what} is computed from the model's inputs")
        return scope.known[name]

    def _compute(self, scope: _Scope, node: onnx.NodeProto, what: str, depth: int) -> None:
        """Computes the outputs of a node."""
        function = self.functions.called_by(node)
        self.room -= OVERHEAD
        if function is not None:
            inner = self._called(node, function, scope)
            for theirs, ours in zip(function.output, node.output, strict=False):
                if ours:
                    scope.known[ours] = self.value(inner, theirs, what, depth + 1)
            return
        run = operator_at(node.op_type, scope.opset) if node.domain in STANDARD else None
        if run is None or node.op_type in NOT_COMPUTED:
            raise ValueError(f"{what} is computed by {node.op_type}, which is not evaluated here")
        inputs = [self.value(scope, n, what, depth + 1) if n else None for n in node.input]
        attributes = self._attributes(node, scope)
        self.room -= check_computed(node.op_type, inputs, attributes)
        if self.room < 0:
            raise ValueError(f"{what} needs far more memory to compute than the size of the model")
        if node.op_type == "Split":
            attributes["outputs"] = len(node.output)
        results = run(*inputs, **attributes)
        results = results if isinstance(results, tuple | list) else [results]
        pairs = zip(node.output, results, strict=False)
        scope.known |= {name: np.asarray(array) for name, array in pairs if name}

    def _attributes(self, node: onnx.NodeProto, scope: _Scope) -> dict[str, Any]:
        resolved = (_resolved(attribute, scope) for attribute in node.attribute)
        return {a.name: attribute_of(a) for a in resolved if a is not None}


def _resolved(attribute: onnx.AttributeProto, scope: _Scope) -> Any:
    """An attribute; a reference to an attribute of the function is resolved, to None if unset."""
    if not attribute.ref_attr_name:
        return attribute
    found = scope.attributes.get(attribute.ref_attr_name)
    if found is None:
        return None
    named = onnx.AttributeProto()
    named.CopyFrom(found)
    named.name = attribute.name
    return named
