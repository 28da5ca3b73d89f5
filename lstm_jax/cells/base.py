"""The cell protocol, and base classes that initialise parameters, check arguments and cast."""

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
    side_by_side,
    zeros,
)
from lstm_jax.cells.products import accumulation_dtype, dot

Params = Any  # a pytree of arrays
State = Any  # a pytree of arrays whose leading axes are the batch axes


class Cell(Protocol):
    """A recurrent cell: its sizes and options, and its equations as one pure step.

    Implementations are frozen dataclasses without arrays.  They are therefore hashable and can
    be static arguments of a jitted function.  The base class :class:`BaseCell` implements most of
    the protocol; its use is optional.
    """

    @property
    def hidden_size(self) -> int:
        """H, the number of hidden features."""
        ...

    def init(self, key: jax.Array, input_size: int) -> Params:
        """Initialises the parameters for inputs with ``input_size`` features."""
        ...

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> State:
        """The state before the first step, unless learned; ``batch_shape`` are its leading axes."""
        ...

    def step(self, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
        """Computes one time step and returns ``(state, y)``."""
        ...


class Parameter(NamedTuple):
    """The declaration of one parameter.

    Attributes:
      init: its initialiser, called as ``init(key, shape, dtype)``.
      shape: its shape.
      role: prefix of the option that selects the initialiser, such as ``"recurrent_kernel"`` for
        ``recurrent_kernel_init``; None if there is no such option.
    """

    init: Initializer | str
    shape: tuple[int, ...]
    role: str | None = None


@dataclasses.dataclass(frozen=True)
class BaseCell:
    """The base class of cells.  A subclass defines its parameters, state and equations::

        @dataclasses.dataclass(frozen=True)
        class MyCell(BaseCell):
            def parameters(self, input_size): ...   # a Parameter by name
            def zero_state(self, batch_shape=()): ...
            def equations(self, params, state, x): ...

    It inherits ``init``, ``initial_state`` and a ``step`` that checks its arguments.  Parameters
    are a flat dict.  Those whose names begin with ``w_`` are the weights of matrix products and
    are cast to ``dtype`` before each step.  All others keep the type in which they are stored.

    Attributes:
      hidden_size: H, the number of hidden features.
      dtype: type of the matrix products (``"bfloat16"``, ``"float32"``, ...); None for the widest
        type of parameters and inputs.  Cell states and all sums stay in float32 or wider.
      param_dtype: type in which parameters are stored.
      kernel_init: initialises each gate's input weights; by default normal with variance 1 / D
        (``lecun_normal``).  Every option for an initialiser accepts a function or a name in
        :data:`lstm_jax.cells.INITIALIZERS`.
      recurrent_kernel_init: initialises each gate's recurrent weights; by default orthogonal.
      bias_init: initialises each gate's bias; by default zeros.
      learn_initial_state: whether the initial state is also a parameter (``h_0`` for the field
        ``h`` of the state, and so on), initialised as the zero state.
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
            if field.name.endswith("_init"):  # cells compare by functions, not by their names
                given = initializer(field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, given)
        check_bool("learn_initial_state", self.learn_initial_state)

    # ---- defined by subclasses ----

    def parameters(self, input_size: int) -> dict[str, Parameter]:
        """The declaration of each parameter, by name."""
        raise NotImplementedError

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> Any:
        """The state before the first step, unless learned: a NamedTuple of arrays."""
        raise NotImplementedError

    def equations(self, params: Params, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        """Computes one step from arguments that have been checked and cast."""
        raise NotImplementedError

    # ---- provided by this class ----

    @property
    def output_size(self) -> int:
        """The number of output features, H by default."""
        return self.hidden_size

    @property
    def num_feature_axes(self) -> int:
        """The number of trailing feature axes of an input, 1 by default."""
        return 1

    @property
    def recurrent_weights(self) -> tuple[str, ...]:
        """Names of the weights that multiply the previous state, for DropConnect."""
        return ("w_hh",)

    @property
    def is_linear(self) -> bool:
        """Whether h_t = a_t ∘ h_{t-1} + b_t, where a and b do not depend on h.

        If so, the method ``linear_recurrence`` returns a and b.
        """
        return False

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Initialises the parameters, in ``param_dtype``; the cell's docstring lists their names.

        Args:
          key: a random key.
          input_size: D, the number of input features.

        Raises:
          TypeError, ValueError: ``input_size`` is not a positive integer.
        """
        parameters = self.all_parameters(input_size)
        keys = jax.random.split(key, len(parameters))
        return {
            name: new_parameter(parameter, k, self.param_dtype)
            for (name, parameter), k in zip(parameters.items(), keys, strict=True)
        }

    def all_parameters(self, input_size: int) -> dict[str, Parameter]:
        """All declarations: :meth:`parameters`, and the initial state if it is learned."""
        check_size("input_size", input_size)
        parameters = dict(self.parameters(input_size))
        if self.learn_initial_state:
            for name, start in self.zero_state()._asdict().items():
                parameters[f"{name}_0"] = Parameter(constant(start), start.shape)
        return parameters

    def initial_state(self, params: Params, batch_shape: tuple[int, ...] = ()) -> Any:
        """The state before the first step: zeros, or the learned state.

        It has the types of :meth:`zero_state`, except that a ``dtype`` of None means the type of
        ``params`` instead of ``param_dtype``.
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
        """Checks its arguments, casts them to ``dtype`` and computes one time step.

        Args:
          params: as from :meth:`init`.
          state: as from :meth:`zero_state`, or the state that the previous step returned.
          x: the input of this step, ``[..., D]``.

        Returns:
          ``(state, y)``: the new state, with the dtypes of the old one, and the output.

        Raises:
          TypeError: ``state`` does not have the structure of :meth:`zero_state`, a parameter is
            missing, or an array is not floating-point.
          ValueError: a shape does not match the cell's sizes.
        """
        params, x = self.prepared(params, x)
        state = jax.tree.map(jnp.asarray, state)
        self.check_state(state)
        return self.equations(params, state, x)

    # ---- helpers for subclasses ----

    def declare(
        self, role: str, shape: tuple[int, ...], gates: int | tuple[int, ...] = 1
    ) -> Parameter:
        """Declares a parameter that the option ``{role}_init`` initialises.

        Args:
          role: ``"kernel"`` for input weights, ``"recurrent_kernel"``, ``"bias"``, or the prefix of
            an option that the cell adds.
          shape: the shape of the parameter.
          gates: the number of gates in the last axis, or their relative widths; each gate is
            initialised separately.
        """
        init = getattr(self, f"{role}_init")
        if gates != 1:
            init = side_by_side(init, (1,) * gates if isinstance(gates, int) else gates)
        return Parameter(init, shape, role)

    def prepared(self, params: Params, x: jax.Array) -> tuple[Params, jax.Array]:
        """Checks parameters and inputs (of one step or more) and casts them to ``dtype``."""
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
        """The type of the matrix products: the option ``dtype``, or the widest of the arrays."""
        return widest(*given) if self.dtype is None else self.dtype

    def zeros(self, *shape: int, accumulated: bool = False) -> jax.Array:
        """Zeros for a state, in the type of the products, or of the sums if ``accumulated``."""
        dtype = jnp.dtype(self.param_dtype if self.dtype is None else self.dtype)
        return jnp.zeros(shape, accumulation_dtype(dtype) if accumulated else dtype)

    def input_size(self, params: Params) -> int | None:
        """D according to the shapes of the parameters; None if they do not determine it."""
        return params["w_ih"].shape[-2] if "w_ih" in params else None

    def check_params(self, params: Params) -> None:
        """Raises an error if names or shapes differ from those of :meth:`init`."""
        size = self.input_size(params)
        expected = self.all_parameters(size or 2**16)  # the names do not depend on D
        if set(params) != set(expected):
            raise TypeError(
                f"params of {type(self).__name__} must have {', '.join(expected)}, "
                f"got {', '.join(map(str, params))}"
            )
        if size is None:
            return
        for name, parameter in expected.items():
            if jnp.shape(params[name]) != parameter.shape:
                raise ValueError(
                    f"params[{name!r}] of {type(self).__name__} with hidden_size="
                    f"{self.hidden_size} must have shape {parameter.shape}, "
                    f"got {jnp.shape(params[name])}"
                )

    def check_x(self, params: Params, x: jax.Array) -> None:
        """Raises an error if an input does not match the parameters."""
        check_real("x", x)
        check_features("x", x, self.input_size(params), self.num_feature_axes)

    def check_state(self, state: Any) -> None:
        """Raises an error if fields, sizes or types differ from those of :meth:`zero_state`."""
        check_state(state, jax.eval_shape(self.zero_state), any_batch=True)


@dataclasses.dataclass(frozen=True)
class GatedCell(BaseCell):
    """The common options of cells with gates.

    Attributes:
      gate_fn: activation of the gates, a name or a function; by default ``"sigmoid"``.
      activation_fn: activation of the candidate; by default ``"tanh"``.
      preactivation_clip: limit to which the pre-activations of gates and candidates are clipped,
        on both sides of 0 (ONNX ``clip``); None for no clipping.
      chrono: the longest expected dependency, in steps, above 2.  Biases of gates that keep the
        state are initialised to log u, with u uniform in [1, chrono - 1], and those of gates that
        write it to -log u (Tallec & Ollivier 2018); None for ``bias_init`` alone.

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
        """The functions that the options select."""
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
        """An initialiser of the concatenated biases of several gates.

        Args:
          gates: a letter for each gate, such as ``"ifgo"``.
          keeps: the gate that keeps the state; ``forget_bias`` or ``chrono`` applies to it.
          writes: the gate that writes the state; ``chrono`` applies to it with a minus sign.
          forget_bias: added to the bias of the gate ``keeps``, unless ``chrono`` is set.
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
    """The state of an LSTM between steps.

    Attributes:
      h: hidden state, which is also the step's output; ``[..., H]``.
      c: cell state; ``[..., H]``, always in float32 (or float64).

    >>> import jax.numpy as jnp
    >>> LSTMState(h=jnp.zeros(3), c=jnp.ones(3)).c.sum()
    Array(3., dtype=float32)
    """

    h: jax.Array
    c: jax.Array


@dataclasses.dataclass(frozen=True)
class LSTMFamilyCell(GatedCell):
    """The common options of cells with a cell state c.

    Attributes:
      output_fn: activation applied to the cell state to compute the hidden state;
        ``activation_fn`` if None.
      cell_clip: limit to which the new cell state is clipped, on both sides of 0 (Sak et al. 2014);
        None for no clipping.
      forget_bias: added to the forget gate's initial bias; by default 0.  With a positive value a
        new network remembers longer (Gers et al. 2000; Jozefowicz et al. 2015 recommend 1).
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
        """The functions that the options select."""
        functions = super().activations
        if self.output_fn is not None:
            functions = functions._replace(output=activation("output_fn", self.output_fn))
        return functions._replace(clip=clipped(functions.clip, self.cell_clip))

    def zero_state(self, batch_shape: tuple[int, ...] = ()) -> LSTMState:
        """Zeros: ``h`` with the output features, and ``c`` with H, in float32 or wider."""
        return LSTMState(
            h=self.zeros(*batch_shape, self.output_size),
            c=self.zeros(*batch_shape, self.hidden_size, accumulated=True),
        )

    def gate_biases(self, gates: str) -> Initializer:
        """An initialiser of biases, where gate f keeps the state and gate i writes it."""
        return self.biases(gates, keeps="f", writes="i", forget_bias=self.forget_bias)


# ---- initialisation ----


def new_parameter(parameter: Parameter, key: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Initialises one parameter, in ``dtype``.

    The initialiser computes in float32 or wider, since the QR decomposition, which orthogonal
    matrices need, does not support narrower types.
    """
    init = initializer("init", parameter.init)
    return init(key, parameter.shape, accumulation_dtype(dtype)).astype(dtype)


# ---- arithmetic ----


def widest(*trees: Any) -> jnp.dtype | None:
    """The type to which the floating-point arrays of the trees promote; None if there are none.

    >>> widest({"w": jnp.ones(2, "bfloat16")}, jnp.ones(2, "float16"), jnp.arange(2))
    dtype('float32')
    """
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(trees)]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    with jax.numpy_dtype_promotion("standard"):  # even if the user set it to strict
        return functools.reduce(jnp.promote_types, floats) if floats else None


def widened(tree: Any, *others: Any) -> Any:
    """Casts the floating-point arrays of a tree to types at least as wide as those of ``others``.

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
    """``x @ w_ih + h @ w_hh + b``: the concatenated pre-activations of all gates.

    They are in float32 or wider for operands of any type.

    >>> params = {"w_ih": jnp.ones((3, 4)), "w_hh": jnp.ones((2, 4)), "b": jnp.ones(4)}
    >>> affine(params, h=jnp.ones((5, 2)), x=jnp.ones((5, 3)))[0].tolist()
    [6.0, 6.0, 6.0, 6.0]
    """
    z = dot(x, params["w_ih"]) + dot(h, params["w_hh"])
    return z + params["b"].astype(z.dtype)


def named(name: str, value: jax.Array) -> jax.Array:
    """Returns ``value`` unchanged and records its name, for ``lstm_jax.inspect``.

    The name has no cost at run time.  Policies of ``jax.checkpoint`` can also refer to it.

    >>> import jax.numpy as jnp
    >>> named("f", jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    return checkpoint_name(value, name)


def like(new: State, old: State) -> State:
    """Casts the new state to the dtypes of the old one, as ``lax.scan`` requires of a carry.

    >>> like({"h": jnp.ones(2)}, {"h": jnp.zeros(2, "bfloat16")})["h"].dtype
    dtype(bfloat16)
    """
    return jax.tree.map(lambda n, o: n.astype(o.dtype), new, old)


def cast(tree: Any, dtype: DTypeLike | None) -> Any:
    """Casts every array of a tree to ``dtype``; returns the tree unchanged if that is None."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


# ---- checks ----


def check_size(name: str, size: Any) -> None:
    """Raises an error if ``size`` is not a positive integer."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} must be an int, got {size!r}")
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")


def check_number(name: str, value: Any) -> None:
    """Raises an error if ``value`` is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_bool(name: str, value: Any) -> None:
    """Raises an error if ``value`` is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_dtype(name: str, dtype: Any) -> None:
    """Raises an error if a type is not floating-point; only the option ``dtype`` may be None."""
    if dtype is None and name == "dtype":
        return
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating or dtype is None:
        raise TypeError(f"{name} must be a floating type such as 'float32', got {dtype!r}")


def check_unset(options: Any, why: str, **defaults: Any) -> None:
    """Raises an error if an option that has no effect is not at its default."""
    for name, default in defaults.items():
        given = getattr(options, name)
        if given != default:
            default = getattr(default, "__name__", default)
            raise ValueError(f"{name} must be left at {default}, as {why}, got {given!r}")


def check_real(name: str, array: jax.Array) -> None:
    """Raises an error if an array is complex."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real, got {array.dtype}")


def check_features(
    name: str, x: jax.Array, size: int | None, num_feature_axes: int = 1, lead: str = "..."
) -> None:
    """Raises an error if inputs lack an axis or their feature size differs from the parameters'.

    Args:
      name: the argument, ``"x"`` for one step and ``"xs"`` for a sequence.
      x: the inputs.
      size: D according to the parameters; None if it is unknown.
      num_feature_axes: the number of trailing axes for spatial positions and features (D).
      lead: the axes before these: ``"..."`` for one step, ``"T, ..."`` or ``"..., T"`` for a
        sequence.

    >>> check_features("xs", jnp.ones((5, 4)), 3, lead="T, ...")
    Traceback (most recent call last):
    ValueError: xs must be [T, ..., D] with D=3 (the input size of the parameters), got shape (5, 4)
    """
    lacks_axis = x.ndim < num_feature_axes + ("T" in lead)
    if lacks_axis or size not in (None, x.shape[-1]):
        layout = f"[{lead}, {'space, ' * (num_feature_axes - 1)}D]"
        known = "" if size is None else f" with D={size} (the input size of the parameters)"
        raise ValueError(f"{name} must be {layout}{known}, got shape {x.shape}")


def check_state(state: State, expected: State, *, any_batch: bool = False) -> None:
    """Raises an error if the structure, a shape or a kind of type of a state is wrong.

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
            raise TypeError(f"{name} must be {wanted.dtype} or a similar type, got {given.dtype}")


def _kind(tree: Any) -> str:
    """The type of a pytree, with the fields of a NamedTuple."""
    fields = ", ".join(getattr(tree, "_fields", ()))
    return f"{type(tree).__name__}({fields})" if fields else type(tree).__name__
