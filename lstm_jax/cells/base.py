"""What every cell is, and what all cells share: drawing parameters, checking, casting."""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from lstm_jax.cells.activations import Activation, Activations, activation, check_limit, clipped
from lstm_jax.cells.initializers import (
    Initializer,
    blocks,
    chrono_bias,
    constant,
    initializer,
    lecun_normal,
    orthogonal,
    zeros,
)
from lstm_jax.cells.products import accumulation_dtype, dot

Params = Any  # a pytree of arrays
State = Any  # a pytree of arrays, each with the batch axes leading


class Cell(Protocol):
    """A recurrent cell: its sizes and options, and its equations as one pure step.

    Implementations are frozen dataclasses, so that they are hashable and can be
    static arguments of a jitted function.  They hold no arrays.  :class:`BaseCell` gives
    most of it as a base class, which is optional.
    """

    @property
    def hidden_size(self) -> int:
        """H, the number of hidden features."""
        ...

    def init(self, key: jax.Array, input_size: int) -> Params:
        """Parameters for inputs of ``input_size`` features, drawn from ``key``."""
        ...

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> State:
        """The state of a sequence that has not begun."""
        ...

    def step(self, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
        """One step in time: ``(state, y)``."""
        ...


class Parameter(NamedTuple):
    """How one parameter begins.

    Attributes:
      init: draws it, called as ``init(key, shape, dtype)``.
      shape: its shape.
    """

    init: Initializer | str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class BaseCell:
    """What cells share.  A cell says its parameters, its state and its equations::

        @dataclasses.dataclass(frozen=True)
        class MyCell(BaseCell):
            def parameters(self, input_size): ...   # name to Parameter
            def zero_state(self, batch_shape=()): ...
            def equations(self, params, state, x): ...

    and has ``init``, ``initial_state`` and a checked ``step`` from here.  Parameters are a
    flat dict.  Those whose names begin with ``w_`` are the matrices of products and are
    cast to ``dtype`` before each step; all others keep the type they are stored in.

    Attributes:
      hidden_size: H, the number of hidden features.
      dtype: type of the products (``"bfloat16"``, ``"float32"``, ...); None takes the widest
        of parameters and inputs.  Cell states and every sum stay in float32 or wider.
      param_dtype: type in which parameters are stored.
      kernel_init: initialises each gate's input weights; normal with variance 1 / D
        (``lecun_normal``).  An initialiser is given by its name in
        :data:`lstm_jax.cells.INITIALIZERS` or itself, here and elsewhere.
      recurrent_kernel_init: draws each gate's recurrent weights; orthogonal.
      bias_init: draws each gate's bias; zeros.
      learn_initial_state: whether the state before the first step is a parameter, too:
        ``h_0`` for the state's ``h`` and so on, beginning with the zero state.
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = "float32"
    kernel_init: Initializer | str = lecun_normal
    recurrent_kernel_init: Initializer | str = orthogonal
    bias_init: Initializer | str = zeros
    learn_initial_state: bool = False

    def __post_init__(self):
        check_size("hidden_size", self.hidden_size)
        for name in ("dtype", "param_dtype"):
            check_dtype(name, getattr(self, name))
        for field in dataclasses.fields(self):
            if field.name.endswith("_init"):  # from here on the functions, which cells compare by
                given = initializer(field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, given)
        check_bool("learn_initial_state", self.learn_initial_state)

    # ---- what a cell says ----

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        """How each parameter begins, by its name."""
        raise NotImplementedError

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> Any:
        """The state of a sequence that has not begun: a NamedTuple of arrays."""
        raise NotImplementedError

    def equations(self, params: Params, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        """One step, its arguments checked and cast."""
        raise NotImplementedError

    # ---- what follows from it ----

    @property
    def output_size(self) -> int:
        """Features of one output: H unless a cell says otherwise."""
        return self.hidden_size

    @property
    def num_feature_axes(self) -> int:
        """The number of feature axes of an input: the last one, unless a cell defines more."""
        return 1

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        """Names of the parameters that read the last state, for DropConnect."""
        return ("w_hh",)

    @property
    def is_linear(self) -> bool:
        """Whether h_t = a_t ∘ h_{t-1} + b_t with a and b free of h, by ``linear_recurrence``."""
        return False

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """The parameters by name, as this cell's docstring lists them, in ``param_dtype``.

        Args:
          key: a random key.
          input_size: D, the number of input features.

        Raises:
          TypeError, ValueError: ``input_size`` is not a positive integer.
        """
        parameters = self.all_parameters(input_size)
        keys = jax.random.split(key, len(parameters))
        return {
            name: draw(parameter, k, self.param_dtype)
            for (name, parameter), k in zip(parameters.items(), keys, strict=True)
        }

    def all_parameters(self, input_size: int) -> dict[str, Parameter]:
        """:meth:`parameters`, and the initial state's where that is learned."""
        check_size("input_size", input_size)
        parameters = dict(self.parameters(input_size))
        if self.learn_initial_state:
            for name, start in self.zero_state()._asdict().items():
                parameters[f"{name}_0"] = Parameter(constant(start), start.shape)
        return parameters

    def initial_state(self, params: Params, batch_shape: tuple[int, ...] = ()) -> Any:
        """The state before the first step: zeros, or what was learned.

        Its types are those of :meth:`zero_state`, but follow the ``params`` as they are, and not
        ``param_dtype``, where ``dtype`` is None.
        """
        state = dataclasses.replace(self, dtype=self._dtype(params)).zero_state(batch_shape)
        if not self.learn_initial_state:
            return state
        return type(state)(
            **{
                name: jnp.broadcast_to(params[f"{name}_0"].astype(zero.dtype), zero.shape)
                for name, zero in state._asdict().items()
            }
        )

    def step(self, params: Params, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        """One step in time, its arguments checked and cast to ``dtype``.

        Args:
          params: as from :meth:`init`.
          state: as from :meth:`zero_state`, or the state that the step before returned.
          x: this step's input, ``[..., D]``.

        Returns:
          ``(state, y)``: the new state, in the types of the old one, and the output.

        Raises:
          TypeError: ``state`` has another structure than :meth:`zero_state`, ``params`` lack
            a name, or an array is not floating-point.
          ValueError: a shape does not fit the cell's sizes.
        """
        params, x = self.prepared(params, x)
        state = jax.tree.map(jnp.asarray, state)
        self.check_state(state)
        return self.equations(params, state, x)

    # ---- help for cells ----

    def prepared(self, params: Params, x: jax.Array) -> tuple[Params, jax.Array]:
        """Parameters and an input (or several, with more axes), checked and cast to ``dtype``."""
        x = jnp.asarray(x)
        self.check_params(params)
        self.check_x(params, x)
        dtype = self._dtype(params, x)
        params = {
            name: cast(array, dtype) if name.startswith("w_") else array
            for name, array in params.items()
        }
        return params, cast(x, dtype)

    def _dtype(self, *given: Any) -> DTypeLike | None:
        """The type of the products: the option, or the widest of what is given."""
        return widest(*given) if self.dtype is None else self.dtype

    def zeros(self, *shape: int, accumulated: bool = False) -> jax.Array:
        """Zeros of a state: in the type of the products, or of sums where ``accumulated``."""
        dtype = jnp.dtype(self.param_dtype if self.dtype is None else self.dtype)
        return jnp.zeros(shape, accumulation_dtype(dtype) if accumulated else dtype)

    def input_size(self, params: Params) -> int | None:
        """D as the parameters have it, or None where it cannot be told."""
        return params["w_ih"].shape[-2] if "w_ih" in params else None

    def check_params(self, params: Params) -> None:
        """Raises where parameters are not as :meth:`init` makes them."""
        size = self.input_size(params)
        expected = self.all_parameters(size or 2**16)  # names are the same whatever D is
        if set(params) != set(expected):
            raise TypeError(
                f"params of {type(self).__name__} must have {', '.join(expected)}, "
                f"got {', '.join(map(str, params))}"
            )
        if size is None:
            return
        for name, (_, shape) in expected.items():
            if jnp.shape(params[name]) != shape:
                raise ValueError(
                    f"params[{name!r}] of {type(self).__name__} with hidden_size="
                    f"{self.hidden_size} must have shape {shape}, got {jnp.shape(params[name])}"
                )

    def check_x(self, params: Params, x: jax.Array) -> None:
        """Raises where an input does not fit the parameters."""
        check_real("x", x)
        check_features("x", x, self.input_size(params), self.num_feature_axes)

    def check_state(self, state: Any) -> None:
        """Raises where a state does not have the fields, sizes and types of :meth:`zero_state`."""
        check_state(state, jax.eval_shape(self.zero_state), any_batch=True)


@dataclasses.dataclass(frozen=True)
class GatedCell(BaseCell):
    """Options of cells with gates; they mean the same in each of them.

    Attributes:
      gate_fn: activation of the gates, by name or itself; ``"sigmoid"``.
      activation_fn: activation of what is to be written; ``"tanh"``.
      preactivation_clip: gates and candidates are computed of pre-activations clipped to
        plus and minus this (ONNX ``clip``); None for no clipping.
      chrono: the longest dependency to expect, in steps, above 2: gates that keep the state
        begin with biases log u, u uniform in [1, chrono - 1], and gates that write it with
        the negative of the same (Tallec & Ollivier 2018); None for none.

    References:
      Corentin Tallec, Yann Ollivier, "Can recurrent neural networks warp time?", ICLR 2018.
    """

    _: dataclasses.KW_ONLY
    gate_fn: Activation = "sigmoid"
    activation_fn: Activation = "tanh"
    preactivation_clip: float | None = None
    chrono: float | None = None

    def __post_init__(self):
        super().__post_init__()
        activation("gate_fn", self.gate_fn)
        activation("activation_fn", self.activation_fn)
        check_limit("preactivation_clip", self.preactivation_clip)
        check_limit("chrono", self.chrono)
        if self.chrono is not None and self.chrono <= 2:
            raise ValueError(f"chrono must be above 2 (steps), got {self.chrono}")

    @property
    def activations(self) -> Activations:
        """The functions that the options ask for."""
        limit = self.preactivation_clip
        candidate = activation("activation_fn", self.activation_fn)
        return Activations(
            gate=clipped(activation("gate_fn", self.gate_fn), limit),
            candidate=clipped(candidate, limit),
            output=candidate,
        )

    def biases(
        self, gates: str, keeps: str = "", writes: str = "", forget_bias: float = 0.0
    ) -> Initializer:
        """Draws the biases of gates side by side.

        Args:
          gates: a letter for each block, such as ``"ifgo"``.
          keeps: the gate that keeps the state; begins with ``forget_bias`` more than
            ``bias_init`` draws, or as ``chrono`` has it.
          writes: the gate that writes it, the negative of it with ``chrono``.
          forget_bias: see there.
        """

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            drawn = jnp.split(blocks(self.bias_init, len(gates))(key, shape, dtype), len(gates))
            biases = dict(zip(gates, drawn, strict=True))
            if self.chrono is None:
                if keeps in biases:
                    biases[keeps] = biases[keeps] + jnp.asarray(forget_bias, dtype)
            else:
                b = chrono_bias(self.chrono)(jax.random.fold_in(key, 1), drawn[0].shape, dtype)
                biases |= {gate: bias for gate, bias in ((keeps, b), (writes, -b)) if gate}
            return jnp.concatenate([biases[gate] for gate in gates])

        return init


class LSTMState(NamedTuple):
    """What an LSTM hands from one step to the next.

    Attributes:
      h: hidden state, which is also the step's output; ``[..., H]``.
      c: cell state; ``[..., H]``, float32 (or float64) whatever the computation's type.

    >>> import jax.numpy as jnp
    >>> LSTMState(h=jnp.zeros(3), c=jnp.ones(3)).c.sum()
    Array(3., dtype=float32)
    """

    h: jax.Array
    c: jax.Array


@dataclasses.dataclass(frozen=True)
class LSTMFamilyCell(GatedCell):
    """Options of the LSTM family, cells with a cell state c; they mean the same in each.

    Attributes:
      output_fn: activation of the cell state on its way to the hidden state;
        ``activation_fn`` if None.
      cell_clip: the new cell state is clipped to plus and minus this (Sak et al. 2014);
        None for no clipping.
      forget_bias: added to the forget gate's initial bias; 0.  With a positive value a new
        network remembers longer (Gers et al. 2000; Jozefowicz et al. 2015 recommend 1);
        ``chrono`` replaces it.
    """

    _: dataclasses.KW_ONLY
    output_fn: Activation | None = None
    cell_clip: float | None = None
    forget_bias: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.output_fn is not None:
            activation("output_fn", self.output_fn)
        check_limit("cell_clip", self.cell_clip)
        check_number("forget_bias", self.forget_bias)

    @property
    def activations(self) -> Activations:
        """The functions that the options ask for."""
        functions = super().activations
        if self.output_fn is not None:
            functions = functions._replace(output=activation("output_fn", self.output_fn))
        return functions._replace(clip=clipped(functions.clip, self.cell_clip))

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        """Zeros: ``h`` as wide as an output and ``c`` ``[*batch_shape, H]``, float32 or wider."""
        return LSTMState(
            h=self.zeros(*batch_shape, self.output_size),
            c=self.zeros(*batch_shape, self.hidden_size, accumulated=True),
        )

    def gate_biases(self, gates: str) -> Initializer:
        """Draws the biases of gates side by side, such as ``"ifgo"``, f keeping, i writing."""
        return self.biases(gates, keeps="f", writes="i", forget_bias=self.forget_bias)


# ---- drawing ----


def draw(parameter: Parameter, key: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A new parameter in ``dtype``.

    Drawn in float32 or wider: an orthogonal matrix comes from a QR decomposition, which has
    no narrower types.
    """
    init = initializer("init", parameter.init)
    return init(key, parameter.shape, accumulation_dtype(dtype)).astype(dtype)


# ---- arithmetic ----


def widest(*trees: Any) -> jnp.dtype | None:
    """The type to which the floating arrays of the trees promote; None where there are none.

    >>> widest({"w": jnp.ones(2, "bfloat16")}, jnp.ones(2, "float16"), jnp.arange(2))
    dtype('float32')
    """
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(trees)]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    with jax.numpy_dtype_promotion("standard"):  # also where the user has promotion strict
        return functools.reduce(jnp.promote_types, floats) if floats else None


def widened(tree: Any, *others: Any) -> Any:
    """The tree with its floating arrays at least as wide as those of ``others``.

    >>> widened(jnp.ones(2, "bfloat16"), jnp.ones(3)).dtype
    dtype('float32')
    """
    return jax.tree.map(
        lambda leaf: (
            leaf.astype(widest(leaf, *others)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        ),
        tree,
    )


def affine(params: Params, h: jax.Array, x: jax.Array) -> jax.Array:
    """``x @ w_ih + h @ w_hh + b``: the pre-activations of all gates, side by side.

    They are in float32 or wider whatever the operands are.

    >>> params = {"w_ih": jnp.ones((3, 4)), "w_hh": jnp.ones((2, 4)), "b": jnp.ones(4)}
    >>> affine(params, h=jnp.ones((5, 2)), x=jnp.ones((5, 3)))[0].tolist()
    [6.0, 6.0, 6.0, 6.0]
    """
    z = dot(x, params["w_ih"]) + dot(h, params["w_hh"])
    return z + params["b"].astype(z.dtype)


def named(name: str, value: jax.Array) -> jax.Array:
    """``value`` as it is, under its name in the equations, where ``lstm_jax.inspect`` finds it.

    The name costs nothing when the program runs; ``jax.checkpoint``'s policies know it, too.

    >>> import jax.numpy as jnp
    >>> named("f", jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    return checkpoint_name(value, name)


def like(new: State, old: State) -> State:
    """The new state in the types of the old one, as a scan's carry must be.

    >>> like({"h": jnp.ones(2)}, {"h": jnp.zeros(2, "bfloat16")})["h"].dtype
    dtype(bfloat16)
    """
    return jax.tree.map(lambda n, o: n.astype(o.dtype), new, old)


def cast(tree: Any, dtype: DTypeLike | None) -> Any:
    """The tree with every array in ``dtype``; as it is where ``dtype`` is None."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


# ---- checks ----


def check_size(name: str, size: Any) -> None:
    """Raises where ``size`` is not a positive integer."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} must be an int, got {size!r}")
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")


def check_number(name: str, value: Any) -> None:
    """Raises an error if ``value`` is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_bool(name: str, value: Any) -> None:
    """Raises where ``value`` is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_dtype(name: str, dtype: Any) -> None:
    """Raises where ``dtype`` is neither None nor a floating type."""
    if dtype is None and name == "dtype":
        return
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating or dtype is None:
        raise TypeError(f"{name} must be a floating type such as 'float32', got {dtype!r}")


def check_unset(options: Any, why: str, **defaults: Any) -> None:
    """Raises where an option of ``options`` is set that has nothing to act on."""
    for name, default in defaults.items():
        given = getattr(options, name)
        if given != default:
            default = getattr(default, "__name__", default)
            raise ValueError(f"{name} must be left at {default}, as {why}, got {given!r}")


def check_real(name: str, array: jax.Array) -> None:
    """Raises where an array is complex."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real, got {array.dtype}")


def check_features(
    name: str, x: jax.Array, size: int | None, num_feature_axes: int = 1, lead: str = "..."
) -> None:
    """Raises where inputs lack an axis or have another feature size than the parameters.

    Args:
      name: the argument, ``"x"`` for one step and ``"xs"`` for a sequence.
      x: the inputs.
      size: D as the parameters have it; None where they cannot tell.
      num_feature_axes: the last axes that are not batch axes: D, and those of space before it.
      lead: the axes before these: ``"..."`` for one step, ``"T, ..."`` or ``"..., T"`` for a
        sequence.

    >>> check_features("xs", jnp.ones((5, 4)), 3, lead="T, ...")
    Traceback (most recent call last):
    ValueError: xs must be [T, ..., D] with D=3 (as the parameters have it), got shape (5, 4)
    """
    lacks_axis = x.ndim < num_feature_axes + ("T" in lead)
    if lacks_axis or size not in (None, x.shape[-1]):
        layout = f"[{lead}, {'space, ' * (num_feature_axes - 1)}D]"
        known = "" if size is None else f" with D={size} (as the parameters have it)"
        raise ValueError(f"{name} must be {layout}{known}, got shape {x.shape}")


def check_state(state: State, expected: State, *, any_batch: bool = False) -> None:
    """Raises where a state has another structure, shape or kind of type than expected.

    Args:
      state: a pytree of arrays.
      expected: a pytree of arrays, or of shapes and types.
      any_batch: whether any batch axes may precede the expected shapes.

    >>> from lstm_jax import LSTMCell
    >>> check_state((jnp.ones(3), jnp.ones(3)), LSTMCell(3).zero_state())
    Traceback (most recent call last):
    TypeError: state must be LSTMState(h, c), got tuple
    """
    if jax.tree.structure(state) != jax.tree.structure(expected):
        wanted, given = _kind(expected), _kind(state)
        if wanted == given:
            wanted, given = map(str, map(jax.tree.structure, (expected, state)))
        raise TypeError(f"state must be {wanted}, got {given}")
    for (path, wanted), given in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(state), strict=True
    ):
        name = f"state{jax.tree_util.keystr(path)}"
        begin = given.ndim - wanted.ndim if any_batch else 0
        if given.shape[begin:] != wanted.shape:
            sizes = f"{wanted.shape} (the batch shape, then the cell's sizes)"
            if any_batch:
                sizes = f"[{', '.join(map(str, ('...', *wanted.shape)))}]"
            raise ValueError(f"{name} must have shape {sizes}, got shape {given.shape}")
        if jnp.issubdtype(given.dtype, jnp.floating) != jnp.issubdtype(wanted.dtype, jnp.floating):
            raise TypeError(
                f"{name} must be {wanted.dtype} or another such type, got {given.dtype}"
            )


def _kind(tree: Any) -> str:
    """The type of a pytree, with the fields of a NamedTuple."""
    fields = ", ".join(getattr(tree, "_fields", ()))
    return f"{type(tree).__name__}({fields})" if fields else type(tree).__name__
