"""The common parts of all conversions: named arrays, single cells, and checks that nothing is lost.

Every conversion rearranges arrays by a :class:`Convention`.  It runs in NumPy, or in JAX if an
array is traced.  Conversions *to* lstm_jax can therefore be differentiated, and the gradient has
the other library's names.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.activations import activation
from lstm_jax.cells.base import BaseCell, Params
from lstm_jax.interop.conventions import Convention, from_ours, to_ours
from lstm_jax.sequence.bidirectional import Bidirectional
from lstm_jax.sequence.protocol import is_layer
from lstm_jax.sequence.stack import Stack, Stacked

Key = Callable[[str], str]  # from a convention's short name to the full name
BIASES = ("b_ih", "b_hh", "b_hg")

# ---- arrays by name ----


class Arrays:
    """A library's arrays by name, checked when they are read; unread arrays are reported.

    Args:
      arrays: a mapping, nested or not, of NumPy, JAX or other arrays; nested names are joined
        by ``/``.
      library: the library's name, for messages.
      prefix: arrays whose names do not begin with this are ignored.

    Raises:
      ValueError: no name begins with ``prefix``.
      TypeError: ``arrays`` is not a mapping, or a name is not a string.

    >>> import numpy as np
    >>> Arrays({"linear": {"w": np.ones((2, 3), "float32")}}, "haiku")["linear/w"].shape
    (2, 3)
    """

    def __init__(self, arrays: Any, library: str, prefix: str = ""):
        if not isinstance(arrays, Mapping):
            raise TypeError(
                f"arrays of {library} must be a mapping from name to array, "
                f"got {type(arrays).__name__}"
            )
        self.library = library
        self.given = {n: a for n, a in flattened(arrays) if n.startswith(prefix)}
        if not self.given:
            raise ValueError(f"no array of {library} has a name that begins with {prefix!r}")
        self.left = dict.fromkeys(self.given)
        self.traced = any(isinstance(a, jax.core.Tracer) for a in self.given.values())

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __getitem__(self, name: str) -> Any:
        """The array of this name.

        Raises:
          ValueError: it is missing, or JAX cannot represent its numbers.
          TypeError: it is not an array of floating-point numbers.
        """
        if name not in self.given:
            names = ", ".join(self.given) or "nothing"
            raise ValueError(f"{name} is missing from the arrays of {self.library}, got {names}")
        self.left.pop(name, None)
        array = as_array(name, self.given[name])
        return jnp.asarray(array) if self.traced else array

    def check_all_taken(self, hint: str = "") -> None:
        """Raises if an array has not been read, since it does not belong to the library's cells."""
        for name in self.left:
            raise ValueError(f"{name} is not an array of a recurrent layer of {self.library}{hint}")


def flattened(tree: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays of a nested mapping, under names joined by ``/``.

    >>> list(flattened({"a": {"b": 1}, "c": 2}))
    [('a/b', 1), ('c', 2)]
    """
    for name, child in tree.items():
        if not isinstance(name, str):
            raise TypeError(f"names of arrays must be strings, got {name!r}")
        if isinstance(child, Mapping):
            yield from flattened(child, f"{above}{name}/")
        else:
            yield above + name, child


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flattened`.

    >>> nested({"a/b": 1, "c": 2})
    {'a': {'b': 1}, 'c': 2}
    """
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *above, last = name.split("/")
        branch = tree
        for part in above:
            branch = branch.setdefault(part, {})
        branch[last] = array
    return tree


def as_array(name: str, given: Any) -> Any:
    """Converts any library's array, or nested lists, to NumPy; a traced array is unchanged.

    Raises:
      TypeError: it is not an array of floating-point numbers.
      ValueError: it is float64, and JAX would round it.

    >>> as_array("w", [1.0, 2.0])
    array([1., 2.], dtype=float32)
    >>> as_array("w", "1.0, 2.0")
    Traceback (most recent call last):
    TypeError: w must be an array of floating numbers, got str
    """
    if isinstance(given, jax.core.Tracer):
        return given
    if isinstance(given, list | tuple):
        given = _from_lists(name, given)
    array = given.__jax_array__() if hasattr(given, "__jax_array__") else given
    if isinstance(array, jax.core.Tracer):
        return array
    if hasattr(array, "detach"):  # a torch tensor, which may require gradients
        array = array.detach().cpu()
    if hasattr(array, "__array__"):
        try:
            array = np.asarray(array)
        except TypeError:  # torch's bfloat16, which NumPy does not know
            array = np.array(jnp.from_dlpack(array))
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.floating):
        kind = getattr(array, "dtype", type(given).__name__)
        raise TypeError(f"{name} must be an array of floating numbers, got {kind}")
    if array.dtype == np.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError(
            f"{name} is float64, which JAX would round to float32: convert it first, or set "
            "jax_enable_x64"
        )
    return array


def _from_lists(name: str, given: Any) -> np.ndarray:
    """Converts nested lists of numbers to JAX's default type."""
    try:
        wide = np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name} must be lists of equal lengths: {error}") from error
    if wide.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be lists of numbers, got {wide.dtype}")
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    if np.isfinite(wide).all() and np.abs(wide).max(initial=0) > jnp.finfo(dtype).max:
        raise ValueError(f"{name} has numbers outside the range of {dtype}")
    return wide.astype(dtype)


def as_params(tree: Any) -> Any:
    """Copies the arrays of a (nested) dict to JAX arrays.

    >>> as_params({"b": np.zeros(2, "float32")})
    {'b': Array([0., 0.], dtype=float32)}
    """
    if isinstance(tree, Mapping):
        return {name: as_params(child) for name, child in tree.items()}
    return jnp.array(tree)


# ---- reading one cell ----


class CellReader:
    """Reads the arrays of one cell by their roles, checks them and converts them to our layout.

    Args:
      arrays: the library's arrays.
      convention: the convention of the library and the kind of cell.
      gates: the order of our gates.
      key: maps the convention's short name of an array to its full name.

    >>> from lstm_jax.interop.conventions import CONVENTIONS
    >>> arrays = Arrays({"bias": np.arange(4.0, dtype="float32")}, "keras")
    >>> reader = CellReader(arrays, CONVENTIONS["keras"]["lstm"], "ifgo", lambda name: name)
    >>> reader.ours("b_ih", "4H").tolist()
    [0.0, 1.0, 2.0, 3.0]
    """

    def __init__(self, arrays: Arrays, convention: Convention, gates: str, key: Key):
        self.arrays, self.convention, self.gates, self.key = arrays, convention, gates, key

    def names(self, what: str) -> list[str]:
        """The full name of an array, or of the array of each gate."""
        names = self.convention.names.get(what, ())
        return [self.key(name) for name in ((names,) if isinstance(names, str) else names)]

    def __contains__(self, what: str) -> bool:
        return any(name in self.arrays for name in self.names(what))

    def theirs(self, what: str) -> Any:
        """An array in the library's layout; separate arrays of the gates are concatenated."""
        names = self.names(what)
        each = [self.arrays[name] for name in names]
        for name, array in zip(names, each, strict=True):
            if array.shape != each[0].shape:
                raise ValueError(
                    f"{name} must have the shape of {names[0]}, {each[0].shape}, got {array.shape}"
                )
        return each[0] if len(each) == 1 else each[0].__array_namespace__().concatenate(each, -1)

    def ours(self, what: str, letters: str, shape: tuple[int, ...] | None = None) -> Any:
        """An array of all gates in our layout, which must have this shape.

        ``letters`` is the shape in symbols, for messages.
        """
        return self.arranged(what, self.theirs(what), letters, shape)

    def arranged(
        self, what: str, array: Any, letters: str, shape: tuple[int, ...] | None = None
    ) -> Any:
        """Converts an array of all gates to our layout, and checks its shape."""
        if shape is not None:
            self.check(what, array, shape, letters)
        along = array.shape[:1] if self.convention.transposed else array.shape[-1:]
        if not array.size or not along or along[0] % len(self.gates):
            raise ValueError(f"{self._wanted(what, letters)}, got {array.shape}")
        return to_ours(array, self.convention, self.gates)

    def check(self, what: str, array: Any, shape: tuple[int, ...], letters: str) -> None:
        """Raises if an array in the library's layout does not have this shape, given in ours."""
        shape = shape[::-1] if self.convention.transposed else shape
        if array.shape != shape:
            raise ValueError(
                f"{self._wanted(what, letters)}, {shape} with these weights, got {array.shape}"
            )

    def _wanted(self, what: str, letters: str) -> str:
        parts = letters.split(", ")
        parts = parts[::-1] if self.convention.transposed else parts
        shape = f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
        return f"{self.names(what)[0]} must have shape {shape}"


def read_cell(
    arrays: Arrays, convention: Convention, gates: str, key: Key, *, reset_after: bool = False
) -> dict[str, Any]:
    """Reads a cell's parameters in our layout.

    If a library adds two biases, the result is their sum.  If all biases are missing, ``b`` is
    zero.

    Args:
      arrays, convention, gates, key: as in :class:`CellReader`.
      reset_after: whether the cell is a GRU with ``b_hg``.

    Raises:
      ValueError: an array is missing, or its shape does not fit; the message names it.
    """
    reader = CellReader(arrays, convention, gates, key)
    params = _read_weights(reader)
    w_hh = params["w_hh"]
    size = w_hh.shape[-1] // len(gates)
    biases = _read_biases(reader, size)
    xp = w_hh.__array_namespace__()
    b_ih = biases.get("b_ih", xp.zeros(len(gates) * size, w_hh.dtype))
    b_hh = biases.get("b_hh", xp.zeros_like(b_ih))
    both = "b_ih" in biases and "b_hh" in biases
    b = b_ih + b_hh if both else b_ih if "b_ih" in biases else b_hh
    if reset_after:  # the bias inside r ∘ (...) stays separate
        params["b"] = xp.concatenate([b[:-size], b_ih[-size:]])
        params["b_hg"] = biases.get("b_hg", b_hh[-size:])
    else:
        params["b"] = raised(b, gates, convention.forget_bias) if convention.forget_bias else b
    return params


def _read_weights(reader: CellReader) -> dict[str, Any]:
    """Reads ``w_ih``, ``w_hh`` and, if present, ``w_hr``."""
    names, count = reader.convention.names, len(reader.gates)
    all_gates = f"{count}H" if count > 1 else "H"
    joined = names["w_ih"] == names["w_hh"]
    w_hh = reader.ours("w_hh", f"D + H, {all_gates}" if joined else f"H, {all_gates}")
    width = w_hh.shape[-1]
    size = width // count
    if joined:  # one matrix for both, the input's rows first
        if w_hh.ndim != 2 or w_hh.shape[0] <= size:
            raise ValueError(
                f"{reader.names('w_hh')[0]} must have shape (D + H, {all_gates}), got {w_hh.shape}"
            )
        return {"w_ih": w_hh[:-size], "w_hh": w_hh[-size:]}
    params, rows, letter = {"w_hh": w_hh}, size, "H"
    if "w_hr" in reader:
        w_hr = reader.theirs("w_hr")
        rows, letter = w_hr.shape[0] if w_hr.ndim else 0, "P"
        reader.check("w_hr", w_hr, (size, rows), "H, P")
        params["w_hr"] = w_hr.T
    kernel = w_hh.shape[:-2]
    leading = "*kernel, " if kernel else ""
    reader.ours("w_hh", f"{leading}{letter}, {all_gates}", (*kernel, rows, width))
    shape = reader.theirs("w_ih").shape
    inputs = shape[-1 if reader.convention.transposed else -2] if len(shape) > 1 else 0
    w_ih = reader.ours("w_ih", f"{leading}D, {all_gates}", (*kernel, inputs, width))
    return {"w_ih": w_ih, **params}


def _read_biases(reader: CellReader, size: int) -> dict[str, Any]:
    """Reads all biases of the convention in our layout; an empty dict if all are missing."""
    names, count = reader.convention.names, len(reader.gates)
    all_gates = f"{count}H" if count > 1 else "H"
    kinds = [what for what in BIASES if what in names]
    if not any(what in reader for what in kinds):
        return {}
    biases = {}
    for what in kinds:
        array = reader.theirs(what)
        if what == "b_hg":
            reader.check(what, array, (size,), "H")
            biases[what] = array
            continue
        if names.get("b_ih") == names.get("b_hh"):  # one array of both, the input's part first
            flat = array.reshape(-1)
            half = flat.shape[0] // 2
            array = flat[:half] if what == "b_ih" else flat[half:]
        biases[what] = reader.arranged(what, array, all_gates, (count * size,))
    return biases


def raised(b: Any, gates: str, amount: float) -> Any:
    """Adds ``amount`` to the forget gate's part of a bias, rounded to its type.

    >>> raised(np.zeros(4, "float32"), "ifgo", 1.0).tolist()
    [0.0, 1.0, 0.0, 0.0]
    """
    xp = b.__array_namespace__()
    size = b.shape[0] // len(gates)
    start = gates.index("f") * size
    forget = b[start : start + size] + xp.asarray(amount, dtype=b.dtype)
    return xp.concatenate([b[:start], forget, b[start + size :]])


def gate_count(w_hh: Any, transposed: bool = False) -> int:
    """The number of gates in a recurrent matrix of square blocks; 0 if it is not an integer.

    >>> gate_count(np.zeros((12, 3)), transposed=True), gate_count(np.zeros((3, 5)))
    (4, 0)
    """
    rows, columns = w_hh.shape[-2:] if w_hh.ndim > 1 else (0, 0)
    inputs, outputs = (columns, rows) if transposed else (rows, columns)
    return outputs // inputs if inputs and outputs % inputs == 0 else 0


# ---- writing one cell ----


def write_cell(
    params: Mapping[str, Any],
    convention: Convention,
    gates: str,
    key: Key,
    *,
    bias: bool = True,
) -> dict[str, np.ndarray]:
    """The inverse of :func:`read_cell`: returns the library's arrays, in NumPy.

    If the library adds two biases, the first is ours and the second is zero, except for the
    candidate's part in a GRU with ``b_hg``.

    Args:
      params: the parameters of an lstm_jax cell that the library also has.
      convention, gates, key: as in :func:`read_cell`.
      bias: whether the library's cell has biases.

    Raises:
      ValueError: a nonzero bias would be lost.
    """
    params = {name: np.array(array) for name, array in params.items()}
    arrays: dict[str, np.ndarray] = {}

    def put(what: str, array: np.ndarray) -> None:
        names = convention.names[what]
        if what in ("w_ih", "w_hh", "b_ih", "b_hh"):
            array = from_ours(array, convention, gates)
        if isinstance(names, str):
            given = arrays.get(key(names))  # one array of both, the input's part first
            array = array if given is None else np.concatenate([given, array])
            arrays[key(names)] = np.ascontiguousarray(array)
        else:
            for name, part in zip(names, np.split(array, len(gates), -1), strict=True):
                arrays[key(name)] = np.ascontiguousarray(part)

    put("w_ih", params["w_ih"])
    put("w_hh", params["w_hh"])
    b, b_hg = params["b"], params.get("b_hg")
    written = [what for what in BIASES if what in convention.names] if bias else []
    for name, array, has in (("b", b, written), ("b_hg", b_hg, {"b_hh", "b_hg"} & set(written))):
        if array is not None and not has and np.any(array):
            why = "nnx.GRUCell has no such bias" if bias else "the target has bias=False"
            raise ValueError(f"{name} is not zero and would be lost: {why}")
    if convention.forget_bias and written:
        b = raised(b, gates, -convention.forget_bias)
    for n, what in enumerate(what for what in written if what != "b_hg"):
        second = np.zeros_like(b)
        if what == "b_hh" and b_hg is not None:
            second[-len(b_hg) :] = b_hg
        put(what, second if n else b)
    if "b_hg" in written and b_hg is not None:
        put("b_hg", b_hg)
    if "w_hr" in params:
        arrays[key(str(convention.names["w_hr"]))] = np.ascontiguousarray(params["w_hr"].T)
    return arrays


# ---- checks that nothing is lost ----

NOT_CONVERTED = {
    "dtype",
    "param_dtype",
    "kernel_init",
    "recurrent_kernel_init",
    "bias_init",
    "peephole_init",
    "forget_bias",
    "chrono",
}
"""Options of a cell that only concern initialisation or types, and are not checked."""


def check_same(cell: Any, other: Any, library: str, has: str) -> None:
    """Raises if ``cell`` has other equations than ``other``, the equivalent of a library's cell.

    Args:
      cell: an lstm_jax cell.
      other: the lstm_jax cell that the library's cell is read as; None if it has no equivalent.
      library: the library's name, for messages.
      has: the kinds of cells that the library has, for messages.

    >>> from lstm_jax import LSTMCell
    >>> check_same(LSTMCell(2, cell_clip=3.0), LSTMCell(2), "torch", "LSTMCell")
    Traceback (most recent call last):
    ValueError: cell_clip=3.0 of LSTMCell would be lost: torch has cell_clip=None
    """
    name = type(cell).__name__
    if is_layer(cell):
        raise TypeError(f"cell must be a single cell for {library}, got {name}")
    if type(cell) is not type(other):
        extra: list[str] = []
        if isinstance(cell, BaseCell):
            known = {"w_ih", "w_hh", "b", "b_hg", "w_hr"}
            extra = [p for p in cell.all_parameters(2) if p not in known]
        lost = f"{', '.join(extra)} of {name}" if extra else name
        raise ValueError(f"{lost} would be lost: {library} has {has}")
    for field in dataclasses.fields(cell):
        if field.name in NOT_CONVERTED:
            continue
        given, wanted = getattr(cell, field.name), getattr(other, field.name)
        if field.name == "proj_size":  # None means half of hidden_size
            given, wanted = cell.output_size, other.output_size
        if _meaning(field.name, given) != _meaning(field.name, wanted):
            shown = f"{field.name}={_shown(given)}"
            raise ValueError(
                f"{shown} of {name} would be lost: {library} has {field.name}={_shown(wanted)}"
            )


def _meaning(name: str, value: Any) -> Any:
    return activation(name, value) if name.endswith("_fn") and value is not None else value


def _shown(value: Any) -> str:
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)


def layers_of(layer: Any, params: Params, library: str) -> list[tuple[str, Any, Params]]:
    """The name, cell (or `Bidirectional`) and parameters of each layer, from the bottom up.

    Raises:
      TypeError: ``layer`` is not a stack, or the parameters belong to another layer.
      ValueError: an option of the stack would be lost.

    >>> import jax
    >>> from lstm_jax import LSTM
    >>> lstm = LSTM(3, connections="residual")
    >>> layers_of(lstm, lstm.init(jax.random.key(0), 2), "torch")
    Traceback (most recent call last):
    ValueError: connections='residual' would be lost: torch has plain stacks
    """
    if isinstance(layer, Bidirectional):
        layer, params = Stack([layer]), {"layer_0": params}
    if not isinstance(layer, Stacked):
        raise TypeError(
            f"layer must be a cell, Stack, LSTM or Bidirectional, got {type(layer).__name__}"
        )
    if layer.connections != "plain":
        raise ValueError(
            f"connections={layer.connections!r} would be lost: {library} has plain stacks"
        )
    if layer.reverse:
        raise ValueError(f"reverse=True would be lost: stacks of {library} run forwards")
    layers = dict(layer.layers)
    check_names("params", params, [*layers])
    return [(name, one, params[name]) for name, one in layers.items()]


def cells_of(
    layer: Any, params: Params, library: str
) -> list[tuple[str, dict[str, tuple[Any, Params]]]]:
    """The name of each layer, and its cells and parameters by direction, from the bottom up.

    Raises:
      TypeError: as :func:`layers_of`.
      ValueError: as :func:`layers_of`; or layers differ in their directions, or do not concatenate
        the outputs of both.

    >>> import jax
    >>> from lstm_jax import LSTM
    >>> lstm = LSTM(3, 2, bidirectional=True)
    >>> layers = cells_of(lstm, lstm.init(jax.random.key(0), 2), "torch")
    >>> [(name, *cells) for name, cells in layers]
    [('layer_0', 'forward', 'backward'), ('layer_1', 'forward', 'backward')]
    """
    found: list[tuple[str, dict[str, tuple[Any, Params]]]] = []
    for name, one, weights in layers_of(layer, params, library):
        if isinstance(one, Bidirectional) and one.merge != "concat":
            raise ValueError(f"merge={one.merge!r} would be lost: {library} has merge='concat'")
        cells = directions_of(one, weights, f"params[{name!r}]")
        if found and len(cells) != len(found[0][1]):
            raise ValueError(
                f"{name} has other directions than the layer below; in {library}, all layers have "
                "the same directions"
            )
        found.append((name, cells))
    return found


def directions_of(layer: Any, params: Params, where: str) -> dict[str, tuple[Any, Params]]:
    """The cells of one layer and their checked parameters, by direction.

    >>> import jax
    >>> from lstm_jax import LSTMCell
    >>> cell = LSTMCell(3)
    >>> list(directions_of(cell, cell.init(jax.random.key(0), 2), "layer_0"))
    ['forward']
    """
    both = {"forward": layer}
    if isinstance(layer, Bidirectional):
        both = {"forward": layer.forward, "backward": layer.backward}
        check_names(where, params, list(both))
    else:
        params = {"forward": params}
    for direction, cell in both.items():
        if isinstance(cell, BaseCell):
            cell.check_params(params[direction])
    return {direction: (cell, params[direction]) for direction, cell in both.items()}


def check_names(what: str, tree: Any, names: list[str]) -> None:
    """Raises if a mapping does not have exactly these names."""
    if not isinstance(tree, Mapping) or set(tree) != set(names):
        given = ", ".join(map(str, tree)) if isinstance(tree, Mapping) else type(tree).__name__
        raise TypeError(f"{what} must have {', '.join(names)}, got {given}")


def check_odd_kernel(params: Mapping[str, Any], name: str) -> None:
    """Raises if the kernel of a convolution has an even size, and so no middle.

    >>> check_odd_kernel({"w_hh": np.zeros((2, 3, 1, 4))}, "kernel")
    Traceback (most recent call last):
    ValueError: kernel must have odd kernel sizes, got (2, 3)
    """
    kernel = params["w_hh"].shape[:-2]
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"{name} must have odd kernel sizes, got {kernel}")


def dtype_of(params: Mapping[str, Any]) -> str:
    """The type in which a cell's parameters are stored.

    >>> dtype_of({"w_hh": np.zeros((2, 2), "float16")})
    'float16'
    """
    return str(params["w_hh"].dtype)
