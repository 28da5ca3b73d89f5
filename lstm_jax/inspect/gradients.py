"""How gradients travel through time: derivatives by states, their spectrum, their growth."""

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lstm_jax.cells.base import Params, State, check_size
from lstm_jax.inspect.models import directions, functional, run_by, stepwise
from lstm_jax.inspect.trace import field_names
from lstm_jax.sequence import Bidirectional, BidirectionalState, initial_state, unroll
from lstm_jax.sequence.fused.graph import StepGraph, bind
from lstm_jax.sequence.protocol import Around, num_feature_axes

Probes = dict[str, list[jax.Array]]  # by place, for each array of the state [T, ..., n]


# ---- derivatives of a loss by the states of all steps ----


class GradientFlow(NamedTuple):
    """How far a loss depends on what a model knew and read at each step.

    Attributes:
      state: norm of the loss's derivative with respect to the whole state that step t hands on,
        that of all layers, ``[T, ...]``.
      x: norm of its derivative with respect to the input of step t, ``[T, ...]``.
      fields: the part of ``state`` that is due to each array of each layer's state, by layer
        and by field, ``[T, ...]`` each.
    """

    state: jax.Array
    x: jax.Array
    fields: dict[str, dict[str, jax.Array]]


def gradient_flow(
    model: Any,
    params: Params,
    xs: jax.Array,
    loss: Callable[[jax.Array], jax.Array] | None = None,
    state: State | None = None,
    *,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    engine: str = "auto",
) -> GradientFlow:
    """Norms of the derivative of a loss with respect to state and input at every step.

    With s_t the state that step t hands on to the next (an LSTM's h_t and c_t, of every layer)
    and y_t the output::

        state_t = ‖ dL / ds_t ‖        x_t = ‖ dL / dx_t ‖        L = loss(y_1, ..., y_T)

    s_t also stands for the output that is read off it, y_t = h_t, so that a derivative is that
    of everything which the loss is told later.  It is exact, by one backward pass: zeros are
    added to every state, and L is differentiated with respect to them.

    Args:
      model: a cell, a layer or a Flax module, as in :func:`trace`.
      params: its parameters, as in :func:`trace`.
      xs: the inputs, as in :func:`trace`.
      loss: a function of the outputs ``[T, ..., H]`` (time in front) to a number; None for the
        sum of each row's last output, at T or the row's length, or at t = 0 where time runs
        backwards.  Rows that it adds up have each their own derivative.
      state: the state before the first step; the initial one if None.
      lengths: as in :func:`lstm_jax.unroll`; derivatives past a row's length are zero.
      resets: as in the model's own call.
      reverse: whether time runs backwards, for a cell.
      engine: for a cell, as in :func:`trace`.

    Returns:
      A :class:`GradientFlow`.

    Raises:
      TypeError, ValueError: as in :func:`trace`, or ``loss`` gives no number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax.cells import LSTM1997Cell, RNNCell
      >>> xs = jax.random.normal(jax.random.key(0), (50, 3))
      >>> def carried(cell):  # what is left of the derivative after 48 steps
      ...     flow = gradient_flow(cell, cell.init(jax.random.key(1), input_size=3), xs)
      ...     return float(flow.state[0] / flow.state[-2])
      >>> carried(RNNCell(8)) < 1e-3, carried(LSTM1997Cell(8)) < 1e-3
      (True, False)

    References:
      Sepp Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", diploma thesis, TU
      Munich, 1991; Sepp Hochreiter, Jürgen Schmidhuber, "Long Short-Term Memory", Neural
      Computation 9(8), 1997, sections 3 and 4 (the constant error carousel).
    """
    held = functional(model, params)
    layer, params = held.layer, held.params
    xs, resets = held.time_leading(xs, resets)
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise TypeError(f"xs must be floating, got {xs.dtype}")
    if not len(xs):
        raise ValueError(f"xs must have at least one step, got shape {xs.shape}")
    how = {"reverse": reverse, "engine": engine}
    backwards = reverse or getattr(layer, "reverse", False)

    def of_probes(xs: jax.Array, probes: Probes | None) -> tuple[jax.Array, dict[str, Any]]:
        ys, fields = _probed(layer, params, xs, state, probes, how, lengths, resets)
        total = _last_outputs(ys, lengths, backwards).sum() if loss is None else loss(ys)
        if jnp.shape(total) != ():
            raise ValueError(f"loss must give a number, got shape {jnp.shape(total)}")
        return total, fields

    _, like = jax.eval_shape(lambda: of_probes(xs, None))
    probes = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    d_xs, d_probes = jax.grad(lambda *args: of_probes(*args)[0], (0, 1))(xs, probes)

    batch = xs.ndim - num_feature_axes(layer)  # axes of time and batch
    fields = jax.tree.map(lambda leaf: _norm(leaf, batch), d_probes)
    every = jnp.stack(jax.tree.leaves(fields), -1)
    return GradientFlow(state=_norm(every, batch), x=_norm(d_xs, batch), fields=fields)


def _probed(
    layer: Any,
    params: Params,
    xs: jax.Array,
    state: State | None,
    probes: Any,
    how: dict[str, Any],
    lengths: jax.Array | None,
    resets: jax.Array | None,
) -> tuple[jax.Array, Any]:
    """Outputs, with probes added to the states of all steps, and the shapes of such probes.

    A cell reads its probes beside its input, since these are what ``unroll`` hands to each step.
    """
    shapes: dict[str, dict[str, Any]] = OrderedDict()

    def run(
        path: str, part: Any, how: Any, params: Params, xs: Any, start: Any, **rows: Any
    ) -> Any:
        # As of these inputs: those with probes beside them may be wider.
        start = _started(part, params, xs, start)
        begins = start if isinstance(part, Bidirectional) else [start]
        parts, inputs, position = [], [xs], xs.shape[-1]
        for (place, cell), begin in zip(directions(part, path).items(), begins, strict=True):
            shapes[place] = OrderedDict(
                (name, jax.ShapeDtypeStruct((len(xs), *leaf.shape), leaf.dtype))
                for name, leaf in zip(field_names(begin), jax.tree.leaves(begin), strict=True)
                if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            )
            given = shapes[place] if probes is None else probes[place]
            given = [jnp.zeros(p.shape, p.dtype) if probes is None else p for p in given.values()]
            flat = [probe.reshape(*xs.shape[:-1], -1) for probe in given]
            inputs += flat
            parts.append(_Probed(cell, xs.dtype, xs.shape[-1], position))
            position += sum(probe.shape[-1] for probe in flat)
        dtype = jnp.result_type(*inputs)
        beside = jnp.concatenate([array.astype(dtype) for array in inputs], -1)
        if not isinstance(part, Bidirectional):
            return unroll(parts[0], params, beside, start, **rows, **how)
        engine = stepwise(part.engine)
        both = dataclasses.replace(part, forward=parts[0], backward=parts[1], engine=engine)
        return both.apply(params, beside, start, **rows)

    _, ys = run_by(layer, run, **how).apply(params, xs, state, lengths=lengths, resets=resets)
    return ys, shapes


@dataclasses.dataclass(frozen=True)
class _Probed(Around):
    """A cell that adds to its new state what stands beside its input.

    Attributes:
      cell: the cell.
      dtype: type of its input.
      size: D.
      position: where its probes begin.
    """

    dtype: Any
    size: int
    position: int

    def __getattr__(self, name: str) -> Any:
        if name == "input_size":  # it reads more than its cell
            raise AttributeError(name)
        return super().__getattr__(name)

    def step(self, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
        beside, x = x, x[..., : self.size].astype(self.dtype)
        graph = StepGraph(self.cell.step, params, state, x)
        known = bind(graph.inputs, (params, state, x))
        names, y = graph.outputs
        leaves, structure = jax.tree.flatten(graph.evaluate(names, known))
        position = self.position
        for n, leaf in enumerate(leaves):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                size = math.prod(leaf.shape) // math.prod(beside.shape[:-1])
                probe = beside[..., position : position + size]
                leaves[n] = leaf + probe.reshape(leaf.shape).astype(leaf.dtype)
                position += size
        state = structure.unflatten(leaves)
        return state, graph.evaluate(y, {**known, **bind(names, state)})


def _started(part: Any, params: Params, xs: jax.Array, state: Any) -> Any:
    """The state of a cell or of two before the first step, the initial one where it is None."""
    if not isinstance(part, Bidirectional):
        return initial_state(part, params, xs.shape[1:-1], xs) if state is None else state
    return BidirectionalState(
        *[
            _started(getattr(part, name), params[name], xs, state and getattr(state, name))
            for name in BidirectionalState._fields
        ]
    )


def _last_outputs(ys: jax.Array, lengths: jax.Array | None, backwards: bool) -> jax.Array:
    """Of each row, the output of the step that is run last."""
    if backwards:
        return ys[0]
    if lengths is None:
        return ys[-1]
    last = jnp.maximum(jnp.asarray(lengths) - 1, 0)
    last = last.reshape(1, *last.shape, *[1] * (ys.ndim - 1 - last.ndim))
    return jnp.take_along_axis(ys, last, 0)  # zero in rows of no steps


def _norm(array: jax.Array, axes: int) -> jax.Array:
    """The norm over all but the first ``axes`` axes, of numbers whose squares may underflow."""
    array = jnp.abs(array).reshape(*array.shape[:axes], -1)
    array = array.astype(jnp.promote_types(array.dtype, "float32"))
    largest = array.max(-1, keepdims=True, initial=0.0)
    scaled = array / jnp.where(largest > 0, largest, 1.0)
    return largest[..., 0] * jnp.sqrt(jnp.square(scaled).sum(-1))


# ---- the map from state to state ----


class JacobianSpectrum(NamedTuple):
    """What a stretch of steps does to small changes of the state.

    Attributes:
      singular_values: of d s_{t+w} / d s_t for consecutive windows of w steps, the largest
        first, ``[windows, ..., n]`` with n numbers in a state.
      exponent: the largest Lyapunov exponent, in nats a step, ``[...]``: the mean growth.
      growth: the logarithm by which a change, turned by all steps before into the direction
        that grows most, grows in each step, ``[T, ...]``.
    """

    singular_values: jax.Array
    exponent: jax.Array
    growth: jax.Array


def jacobian_spectrum(
    model: Any,
    params: Params,
    xs: jax.Array,
    state: State | None = None,
    *,
    window: int,
    burn_in: int = 0,
    key: jax.Array | None = None,
) -> JacobianSpectrum:
    """Singular values of the derivative of state by state, and the largest Lyapunov exponent.

    With s_t the state after step t, of all layers and as one vector, for each of the T // w
    consecutive windows of ``xs``::

        J = d s_{t+w} / d s_t = J_{t+w} ... J_{t+1}        singular_values = svd(J)

    A change of the state along a singular vector with value 1 passes the window unchanged, with
    0 it is forgotten.  The exponent is that of a change v that is carried along the trajectory::

        growth_t = log ‖ J_t v_{t-1} ‖        v_t = J_t v_{t-1} / ‖ J_t v_{t-1} ‖

    and is the mean growth: above 0 where trajectories part (chaos), below where the state
    forgets its beginning.

    Args:
      model: a cell, a layer or a Flax module that runs forwards in time.
      params: its parameters, as in :func:`trace`.
      xs: the inputs, as in :func:`trace`.
      state: the state before the first step; the initial one if None.
      window: w, steps of a window, from 1 to T.
      burn_in: how many steps are left out of the mean at the beginning, while v turns.
      key: random key that draws each row's first v; None for a fixed one.

    Returns:
      A :class:`JacobianSpectrum`.

    Raises:
      ValueError: ``window`` or ``burn_in`` do not fit T, or the model runs backwards.
      TypeError: as in :func:`trace`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax.cells import RNNCell
      >>> cell = RNNCell(2, activation_fn="identity")  # s_t = s_{t-1} U: powers of U
      >>> params = cell.init(jax.random.key(0), input_size=3)
      >>> params["w_hh"] = jnp.diag(jnp.array([0.5, 2.0]))
      >>> spectrum = jacobian_spectrum(cell, params, jnp.ones((40, 3)), window=2, burn_in=20)
      >>> spectrum.singular_values[0].tolist(), round(float(jnp.exp(spectrum.exponent)), 3)
      ([4.0, 0.25], 2.0)

    References:
      Jean-Pierre Eckmann, David Ruelle, "Ergodic theory of chaos and strange attractors",
      Reviews of Modern Physics 57, 1985, section 5 (exponents from products of Jacobians);
      Razvan Pascanu, Tomas Mikolov, Yoshua Bengio, "On the difficulty of training recurrent
      neural networks", ICML 2013, section 2 (spectra and vanishing gradients).
    """
    held = functional(model, params)
    layer, params = held.layer, held.params
    xs, _ = held.time_leading(xs, None)
    num_steps = len(xs)
    check_size("window", window)
    if window > num_steps:
        raise ValueError(f"window must be at most T={num_steps}, got {window}")
    if not 0 <= burn_in < num_steps:
        raise ValueError(f"burn_in must be at least 0 and below T={num_steps}, got {burn_in}")
    if not hasattr(layer, "step"):
        raise ValueError(
            f"model must run forwards in time, got {type(layer).__name__}, which needs the future"
        )
    features = num_feature_axes(layer)
    batch_shape = xs.shape[1 : xs.ndim - features]
    if state is None:
        state = initial_state(layer, params, xs.shape[1:-1])
    key = jax.random.key(0) if key is None else key

    def of_row(xs: jax.Array, state: State, key: jax.Array) -> Any:
        start, unravel = ravel_pytree(state)
        first = jax.random.normal(key, start.shape, start.dtype)

        def step(s: jax.Array, x: jax.Array) -> jax.Array:
            return ravel_pytree(layer.step(params, unravel(s), x)[0])[0].astype(s.dtype)

        def turned(carried: Any, x: jax.Array) -> Any:
            s, v = carried
            after, v = jax.jvp(lambda s: step(s, x), (s,), (v,))
            length = _norm(v, 0)
            return (after, scaled(v, length)), (s, jnp.log(length))

        def scaled(v: jax.Array, length: jax.Array) -> jax.Array:
            return (v / jnp.where(length > 0, length, 1.0)).astype(v.dtype)

        carried = (start, scaled(first, _norm(first, 0)))
        _, (before, growth) = jax.lax.scan(turned, carried, xs)

        def values(s: jax.Array, xs: jax.Array) -> jax.Array:
            def through(s: jax.Array) -> jax.Array:
                return jax.lax.scan(lambda s, x: (step(s, x), None), s, xs)[0]

            jacobian = jax.jacfwd(through)(s)
            wide = jnp.promote_types(jacobian.dtype, "float32")  # of bfloat16 there is no svd
            return jnp.linalg.svd(jacobian.astype(wide), compute_uv=False)

        count = num_steps // window
        windows = xs[: count * window].reshape(count, window, *xs.shape[1:])
        starts = before[: count * window : window]
        return jax.lax.map(lambda pair: values(*pair), (starts, windows)), growth

    rows = of_row
    for _ in batch_shape:
        rows = jax.vmap(rows, (1, 0, 0), 1)
    keys = jax.random.split(key, batch_shape) if batch_shape else key
    singular_values, growth = jax.jit(rows)(xs, state, keys)
    return JacobianSpectrum(singular_values, growth[burn_in:].mean(0), growth)
