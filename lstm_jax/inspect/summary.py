"""Summarises a model: its layers, and the memory and operations of a step."""

import functools
import html
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from lstm_jax.cells.base import check_size
from lstm_jax.inspect.models import NO_PARAMS, directions, functional, join_path
from lstm_jax.sequence.fused.scan import stored_values
from lstm_jax.sequence.protocol import output_size
from lstm_jax.sequence.stack import Stacked

# fmt: off
FREE = frozenset((
    "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p", "expand_dims",
    "gather", "iota", "name", "pad", "reshape", "rev", "select_n", "slice", "split", "squeeze",
    "stop_gradient", "transpose",
))
# fmt: on
"""Primitives that move numbers without computing any."""


class LayerSummary(NamedTuple):
    """One layer, or one direction of it.

    Attributes:
      name: its path in the model.
      cell: the kind of cell.
      input_shape: the shape of one row's input in one step.
      output_shape: the shape of one row's output in one step.
      parameters: the number of parameters.
      state_bytes: the size of one row's state.
      step_bytes: the size of the residuals that training stores for each step of each row: the
        state, and the values of the gates that the derivative needs.
      step_flops: floating-point operations of one row's step in the forward pass.  A multiplication
        with an addition counts as two, any function of an element as one.
    """

    name: str
    cell: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    state_bytes: int
    step_bytes: int
    step_flops: int


class Summary(NamedTuple):
    """A model as a table, which ``print`` and notebooks show.

    Attributes:
      layers: the rows.
    """

    layers: tuple[LayerSummary, ...]

    @property
    def parameters(self) -> int:
        """The number of parameters of the whole model."""
        return sum(layer.parameters for layer in self.layers)

    def __str__(self) -> str:
        head, *rows = _table(self)
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        rule = "  ".join("-" * width for width in widths)
        lines = [_aligned(row, widths) for row in (head, *rows)]
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def _repr_html_(self) -> str:
        head, *rows = _table(self)

        def row(kind: str, strings: list[str]) -> str:
            cells = (
                f'<{kind} style="text-align:{"left" if n < LEFT else "right"};padding:0.2em 0.7em">'
                f"{html.escape(string)}</{kind}>"
                for n, string in enumerate(strings)
            )
            return f"<tr>{''.join(cells)}</tr>"

        body = "".join(row("td", strings) for strings in rows)
        return (
            '<table style="border-collapse:collapse">'
            f"<thead>{row('th', head)}</thead><tbody>{body}</tbody></table>"
        )


def summary(model: Any, input_size: int | tuple[int, ...] | None = None) -> Summary:
    """Summarises layers, shapes and parameters, and the memory and operations of a step.

    The model is only traced, not run.

    Args:
      model: a cell, a layer or a Flax module, as in :func:`lstm_jax.inspect.trace`.
      input_size: D, or ``(*space, D)`` for a convolutional cell; None for an nnx module, which
        stores it.

    Returns:
      A :class:`Summary`, whose ``str()`` is a table.

    Raises:
      ValueError: ``input_size`` is needed but missing.
      TypeError: ``model`` is not such a model, or has layers of another kind.

    Example:
      >>> from lstm_jax import LSTM
      >>> print(summary(LSTM(hidden_size=64, num_layers=2), input_size=16))
      layer    cell      input  output  parameters  state  training per step  operations per step
      -------  --------  -----  ------  ----------  -----  -----------------  -------------------
      layer_0  LSTMCell  16     64          20,736  512 B            1.5 KiB               42,048
      layer_1  LSTMCell  64     64          33,024  512 B            1.5 KiB               66,624
      -------  --------  -----  ------  ----------  -----  -----------------  -------------------
      total                                 53,760  1 KiB              3 KiB              108,672
    """
    if input_size is None:
        input_size = getattr(model, "in_features", None)
    if input_size is None:
        raise ValueError("input_size must be given, got None")
    shape = tuple(input_size) if isinstance(input_size, tuple | list) else (input_size,)
    for size in shape:
        check_size("input_size", size)
    layer = functional(model, NO_PARAMS).layer
    return Summary(tuple(_layers(layer, shape, "")))


def _layers(layer: Any, shape: tuple[int, ...], path: str) -> list[LayerSummary]:
    """The rows of a layer with this input shape."""
    if not isinstance(layer, Stacked):
        return [_of_cell(cell, shape, name) for name, cell in directions(layer, path).items()]
    rows, reads = [], shape
    for name, part in dict(layer.layers).items():
        rows += _layers(part, reads, join_path(path, name))
        skipped = shape[-1] if layer.connections == "skip" else 0
        reads = (*shape[:-1], output_size(part) + skipped)
    return rows


def _of_cell(cell: Any, shape: tuple[int, ...], name: str) -> LayerSummary:
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda key: cell.init(key, shape[-1]), key)
    state = jax.eval_shape(lambda: cell.zero_state(shape[:-1]))
    x = jax.ShapeDtypeStruct(shape, jnp.result_type(*jax.tree.leaves(params)))
    _, y = jax.eval_shape(cell.step, params, state, x)
    return LayerSummary(
        name=name,
        cell=type(cell).__name__,
        input_shape=shape,
        output_shape=y.shape,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        state_bytes=_bytes(state),
        step_bytes=_bytes(_stored(cell, params, state, x)),
        step_flops=_operations(jax.make_jaxpr(cell.step)(params, state, x).jaxpr),
    )


def _stored(cell: Any, params: Any, state: Any, x: Any) -> Any:
    """The residuals that the engine ``"fused"`` stores for a step with ``memory="full"``."""

    def stored(params: Any, state: Any, x: Any) -> Any:
        return stored_values(functools.partial(cell.step, params), state, x)

    return jax.eval_shape(stored, params, state, x)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _operations(jaxpr: Any) -> int:
    """The floating-point operations of a program; a loop's body counts once per iteration."""
    total = 0
    for eqn in jaxpr.eqns:
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        inner = list(jaxprs_in_params(eqn.params))
        if name == "dot_general":
            ((left, _), _) = eqn.params["dimension_numbers"]
            lhs = eqn.invars[0].aval.shape
            total += 2 * out.size * math.prod(lhs[axis] for axis in left)
        elif name == "conv_general_dilated":
            # Each output is a sum over the kernel and the input channels.
            kernel = eqn.invars[1].aval
            channels = eqn.params["dimension_numbers"].rhs_spec[0]
            total += 2 * out.size * (kernel.size // kernel.shape[channels])
        elif inner:
            times = eqn.params["length"] if name == "scan" else 1
            total += times * sum(map(_operations, inner[:1] if "custom" in name else inner))
        elif name.startswith(("reduce_", "arg")):
            total += eqn.invars[0].aval.size
        elif name not in FREE and jnp.issubdtype(out.dtype, jnp.floating):
            total += out.size
    return total


# ---- the table ----

NAMES = ("layer", "cell", "input", "output")
HEAD = (*NAMES, "parameters", "state", "training per step", "operations per step")
LEFT = len(NAMES)  # the number of left-aligned columns


def _table(table: Summary) -> list[list[str]]:
    """The heading, the layers and the total as rows of strings."""
    rows = [list(HEAD)]
    for layer in table.layers:
        shapes = (" x ".join(map(str, shape)) for shape in (layer.input_shape, layer.output_shape))
        rows.append([layer.name, layer.cell, *shapes, *_numbers([layer])])
    return [*rows, ["total", "", "", "", *_numbers(table.layers)]]


def _numbers(layers: Any) -> list[str]:
    parameters, state, step, operations = (
        sum(getattr(layer, field) for layer in layers)
        for field in ("parameters", "state_bytes", "step_bytes", "step_flops")
    )
    return [f"{parameters:,}", _size(state), _size(step), f"{operations:,}"]


def _size(count: int) -> str:
    """Formats a number of bytes with a suitable unit.

    >>> _size(512), _size(1536), _size(3 * 2**20)
    ('512 B', '1.5 KiB', '3 MiB')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _aligned(strings: list[str], widths: list[int]) -> str:
    cells = [
        string.ljust(width) if n < LEFT else string.rjust(width)
        for n, (string, width) in enumerate(zip(strings, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
