"""Merges the two directions of a layer into one operator, if a graph concatenates their outputs."""

from functools import partial
from typing import Any

import onnx
from onnx import helper

from lstm_jax.interop.onnx.graphs import Builder, names_read
from lstm_jax.interop.onnx.models import attribute_of
from lstm_jax.interop.onnx.recurrent import DEFAULTS, Operator, both_directions

ARRAYS = {"W": 1, "R": 2, "B": 3, "P": 7}  # their positions among a node's inputs
LENGTHS, STATES = 4, (5, 6)


def join_directions(g: Builder) -> None:
    """Replaces pairs of operators in a graph by one with ``direction="bidirectional"``.

    A pair is a forward and a reverse operator that read the same sequence and lengths, and whose
    outputs are concatenated along the features.  The new operator's outputs are split into those
    of the pair, so that the rest of the graph is unchanged.

    Args:
      g: the graph, modified in place.
    """
    made = {name: node for node in g.nodes for name in node.output}
    for node in [node for node in g.nodes if node.op_type == "Concat"]:
        sources = [_source(g, made, name, attribute_of(node.attribute[0])) for name in node.input]
        if len(sources) == 2 and None not in sources:
            _join(g, made, *sources)


def _source(g: Builder, made: dict[str, Any], name: str, axis: int) -> Any:
    """The recurrent node whose reshaped output this is; None unless ``axis`` is the features'."""
    node, rank = made.get(name), None
    while node is not None and node.op_type in ("Reshape", "Squeeze"):
        if rank is None and node.op_type == "Squeeze":
            rank = 3  # [T, 1, B, H] without the directions
        elif rank is None:
            shape = node.input[1]
            rank = g.constants[shape].size if shape in g.constants else len(made[shape].input)
        node = made.get(node.input[0]) if node.input[0] in made else None
        name = node.output[0] if node is not None else name
    is_source = node is not None and node.op_type in DEFAULTS and rank == axis + 1
    return node if is_source else None


def _join(g: Builder, made: dict[str, Any], forward: Any, backward: Any) -> None:
    """Replaces two nodes by one, if they are the two directions of one layer."""
    if not all(any(node is other for other in g.nodes) for node in (forward, backward)):
        return  # joined already
    inputs = [[*node.input, *[""] * (8 - len(node.input))] for node in (forward, backward)]
    operators = [_operator(g, forward, inputs[0]), _operator(g, backward, inputs[1])]
    directions = [operator.attributes.pop("direction") for operator in operators]
    same = all(_same(made, inputs[0][n], inputs[1][n]) for n in (0, LENGTHS))
    known = all(bool(inputs[0][n]) == bool(inputs[1][n]) for n in STATES)
    if directions != ["forward", "reverse"] or not same or not known:
        return
    try:
        operator = both_directions(*operators)
    except ValueError:  # one operator cannot express the functions or sizes of the two
        return
    first, last = sorted(n for n, node in enumerate(g.nodes) if node is forward or node is backward)
    after, dependent = [], set(g.nodes[first].output)
    before = []
    for node in g.nodes[first + 1 : last]:
        depends = bool(dependent & names_read(node))
        (after if depends else before).append(node)
        dependent |= set(node.output) if depends else set()
    if dependent & names_read(g.nodes[last]):
        return
    rest, g.nodes[first:] = g.nodes[last + 1 :], before
    states = [
        g.add("Concat", inputs[0][n], inputs[1][n], axis=0) if inputs[0][n] else None
        for n in STATES
    ]
    arrays = operator.arrays
    outputs = g.add(
        operator.name,
        inputs[0][0],
        *(arrays[key] for key in ("W", "R", "B")),
        inputs[0][LENGTHS] or None,
        *states,
        arrays.get("P"),
        outputs=len(forward.output),
        **operator.attributes,
    )
    g.nodes[-1].name = forward.name
    for n, pair in enumerate(zip(forward.output, backward.output, strict=True)):
        g.nodes.append(
            helper.make_node(
                "Split",
                [outputs[n]],
                pair,
                name=g.new_name("Split"),
                axis=int(n == 0),
                num_outputs=2,
            )
        )
    g.nodes.extend([*after, *rest])


def _same(made: dict[str, Any], one: str, other: str) -> bool:
    """Whether two values are computed by equal subgraphs."""
    if one == other:
        return True
    first, second = made.get(one), made.get(other)
    if first is None or second is None:
        return False
    for field in ("op_type", "attribute"):
        if getattr(first, field) != getattr(second, field):
            return False
    alike = len(first.input) == len(second.input)
    alike = alike and list(first.output).index(one) == list(second.output).index(other)
    return alike and all(map(partial(_same, made), first.input, second.input))


def _operator(g: Builder, node: onnx.NodeProto, names: list[str]) -> Operator:
    """A node as an operator with its weights, which are constants of the graph."""
    arrays = {key: g.constants[names[n]] for key, n in ARRAYS.items() if names[n]}
    attributes = {attribute.name: attribute_of(attribute) for attribute in node.attribute}
    return Operator(node.op_type, arrays, attributes)
