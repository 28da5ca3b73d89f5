"""The recurrent layers of a model, as described by a config."""

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lstm_jax.cells import CELLS
from lstm_jax.config.options import LARGEST_NUMBER, LARGEST_SIZE, Section, nearest, option
from lstm_jax.errors import UserError
from lstm_jax.sequence import (
    LSTM,
    DropConnect,
    RecurrentDropout,
    VariationalDropout,
    Zoneout,
)

REGULARIZERS: dict[str, Callable[..., Any]] = {
    "drop_connect": DropConnect,
    "recurrent_dropout": RecurrentDropout,
    "variational_dropout": VariationalDropout,
    "zoneout": Zoneout,
}
"""Regularisers by their name in a config."""

MOST_LAYERS = 256  # each is compiled separately

CELL_MEMBERS = ("init", "zero_state", "step")

CellFactory = Callable[..., Any]  # called with hidden_size=, dtype= and param_dtype=


@functools.cache
def cell_factory(text: str) -> CellFactory:
    """The function that creates a config's cells; equal strings give the same function.

    Args:
      text: the name of a cell in ``CELLS``, or ``module.Class`` for a custom one, optionally with
        options in brackets and wrapped in regularisers: ``"peephole"``,
        ``"lstm(forget_bias=2.0)"``, ``"zoneout(my_cells.LeakyCell, hidden_rate=0.1)"``.

    Returns:
      A function of ``hidden_size=`` and the types, which returns the cell.

    Raises:
      UserError: ``text`` does not name a cell, an option is unknown or invalid, or the cell reads
        grids. (For a custom cell only the class is checked here;
        :meth:`RecurrentConfig.check_layers` checks its options and sizes.)

    >>> cell_factory("lstm(forget_bias=2.0)")(hidden_size=3).forget_bias
    2.0
    >>> cell_factory("lstn")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: unknown cell lstn; did you mean lstm?
    """
    try:
        tree = ast.parse(text, mode="eval").body
        factory = _factory(tree, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # or nested too deeply
        raise UserError(f"expected a cell such as lstm(forget_bias=2.0), got {text!r}") from error
    if not any(isinstance(node, ast.Attribute) for node in ast.walk(tree)):
        # Reports an invalid option now. The size is arbitrary; this one has many divisors.
        with _in_one_line():
            _check_axes(factory(hidden_size=5040, dtype="float32"), text)
    return factory


def _factory(tree: ast.expr, text: str) -> CellFactory:
    name, arguments, keywords = tree, [], []
    if isinstance(tree, ast.Call):
        name, arguments, keywords = tree.func, tree.args, tree.keywords
    options: dict[str, Any] = {}
    for keyword in keywords:
        try:
            options[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{keyword.arg} of {ast.unparse(name)}: expected a number, a string, true or "
                f"false, got {ast.unparse(keyword.value)}"
            ) from error
        _check_number(f"{keyword.arg} of {ast.unparse(name)}", options[str(keyword.arg)])
    word = ast.unparse(name)
    if word in REGULARIZERS:
        if len(arguments) != 1:
            raise UserError(f"{word}: expected one cell in its brackets, got {text!r}")
        regularizer, inner = REGULARIZERS[word], _factory(arguments[0], text)
        _check_options(word, regularizer, options)
        return lambda **sizes: regularizer(inner(**sizes), **options)
    if arguments:
        raise UserError(f"{word}: expected options by name, got {ast.unparse(arguments[0])}")
    kind = CELLS[word] if word in CELLS else _imported(name, word)
    _check_options(word, kind, options)
    return functools.partial(kind, **options)


def _check_number(name: str, value: Any) -> None:
    """Raises an error if an option's number, or one in a tuple or list, is out of range."""
    if isinstance(value, tuple | list):
        for each in value:
            _check_number(name, each)
    if type(value) is int and abs(value) > LARGEST_SIZE:
        got = value if abs(value) < 2**64 else f"one of {value.bit_length()} bits"
        raise UserError(f"{name}: expected an integer of at most {LARGEST_SIZE}, got {got}")
    if isinstance(value, float) and not abs(value) <= LARGEST_NUMBER:
        raise UserError(f"{name}: expected a number in the range of float32, got {value}")


def _imported(tree: ast.expr, word: str) -> Callable[..., Any]:
    """The class that ``package.module.Class`` names."""
    if not isinstance(tree, ast.Attribute):
        raise UserError(f"unknown cell {word}{nearest(word, [*CELLS, *REGULARIZERS])}")
    module, name = ast.unparse(tree.value), tree.attr
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # the module's own code can raise anything
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{word}: module {module} cannot be imported ({cause})") from error
    if not hasattr(imported, name):
        raise UserError(f"{word}: module {module} has no {name}")
    kind = getattr(imported, name)
    made = kind.func if isinstance(kind, functools.partial) else kind
    if not (isinstance(made, type) and all(hasattr(made, member) for member in CELL_MEMBERS)):
        raise UserError(f"{word} is not a cell: expected a class with {', '.join(CELL_MEMBERS)}")
    return kind


def _check_options(word: str, kind: Callable[..., Any], options: dict[str, Any]) -> None:
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    # The model determines the size and the types.
    own = {"cell", "hidden_size", "dtype", "param_dtype"}
    known = {parameter.name for parameter in parameters} - own
    for name in options:
        if name not in known:
            raise UserError(f"unknown option {name} of {word}{nearest(name, sorted(known))}")


def _check_axes(cell: Any, text: str) -> None:
    if getattr(cell, "num_feature_axes", 1) != 1:
        raise UserError(f"expected a cell that reads features, got {text}, which reads grids")


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Turns a cell's error about its options or sizes into a one-line message."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(Section):
    """The keys of a section ``[model]`` that describe the recurrent layers."""

    hidden_size: int = option(
        128, "hidden features of each recurrent layer", at_least=1, at_most=LARGEST_SIZE
    )
    num_layers: int = option(1, "stacked recurrent layers", at_least=1, at_most=MOST_LAYERS)
    cell: str = option(
        "lstm",
        'cell: "gru", "lstm(forget_bias=2.0)", "zoneout(lstm, cell_rate=0.2)", "module.Class"',
        check=cell_factory,
    )
    dropout: float = option(0.2, "dropout on the outputs of every layer", at_least=0, below=1)
    dtype: str = option(
        "float32", "type of the products; sums stay in float32", choices=("float32", "bfloat16")
    )

    @property
    def cell_factory(self) -> CellFactory:
        """The function that creates the cells, for ``cell=`` of :class:`lstm_jax.nnx.LSTM`."""
        return cell_factory(self.cell)

    def check_layers(self, input_size: int) -> None:
        """Raises :class:`UserError` if the cell does not support the sizes."""
        try:
            with _in_one_line():
                layers = LSTM(
                    self.hidden_size, self.num_layers, dtype=self.dtype, cell=self.cell_factory
                )
                for cell in layers.layers.values():
                    _check_axes(cell, self.cell)
                jax.eval_shape(lambda: layers.init(jax.random.key(0), input_size))
        except UserError as error:
            raise UserError(f"model.cell: {error}") from error
