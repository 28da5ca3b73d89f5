"""Gradients through time: derivatives with respect to states, their spectrum and growth."""

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

Probes = dict[str, list[jax.Array]]  # by cell path, [T, ..., n] for each array of the state


# ---- derivatives of a loss with respect to the states of all steps ----


class GradientFlow(NamedTuple):
    """How strongly a loss depends on the state and input of each step.

    Attributes:
      state: the norm of the loss's derivative with respect to the whole state after step t, over
        all layers, ``[T, ...]``.
      x: the norm of its derivative with respect to the input of step t, ``[T, ...]``.
      fields: the contribution of each array of each layer's state to ``state``, by layer and
        field, ``[T, ...]`` each.
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
    """Computes norms of the derivative of a loss with respect to state and input at every step.

    Let s_t be the state after step t (h_t and c_t of every LSTM layer), and y_t the output::

        state_t = ‖ dL / ds_t ‖        x_t = ‖ dL / dx_t ‖        L = loss(y_1, ..., y_T)

    A change of s_t also changes the output y_t = h_t.  The derivative therefore covers everything
    that the loss reads from step t on.  It is exact and needs one backward pass: zeros are added
    to every state, and L is differentiated with respect to them.

    Args:
      model: a cell, a layer or a Flax module, as in :func:`trace`.
      params: its parameters, as in :func:`trace`.
      xs: the inputs, as in :func:`trace`.
      loss: a function from the outputs ``[T, ..., H]`` (time first) to a number.  By default, the
        sum of each row's last output: at T or the row's length, or at t = 0 if time runs
        backwards.  If the loss is a sum over rows, each row has its own derivative.
      state: the state before the first step; the initial one if None.
      lengths: as in :func:`lstm_jax.unroll`; derivatives beyond a row's length are zero.
      resets: as in the model's own call.
      reverse: whether time runs backwards, for a cell.
      engine: for a cell, as in :func:`trace`.

    Returns:
      A :class:`GradientFlow`.

    Raises:
      TypeError, ValueError: as in :func:`trace`, or ``loss`` does not return a number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lstm_jax.cells import LSTM1997Cell, RNNCell
      >>> xs = jax.random.normal(jax.random.key(0), (50, 3))
      >>> def carried(cell):  # the relative size of the derivative after 48 steps
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
            raise ValueError(f"loss must return a number, got shape {jnp.shape(total)}")
        return total, fields

    _, like = jax.eval_shape(lambda: of_probes(xs, None))
    probes = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    d_xs, d_probes = jax.grad(lambda *args: of_probes(*args)[0], (0, 1))(xs, probes)

    batch = xs.ndim - num_feature_axes(layer)  # the number of time and batch axes
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
    """Computes outputs, with probes added to the states of all steps, and the shapes of probes.

    The probes are concatenated to a cell's input, which ``unroll`` passes to each step.
    """
    shapes: dict[str, dict[str, Any]] = OrderedDict()

    def run(
        path: str, part: Any, how: Any, params: Params, xs: Any, start: Any, **rows: Any
    ) -> Any:
        # The type of the state follows from these inputs; with probes, the inputs may be wider.
        start = _started(part, params, xs, start)
        begins = start if isinstance(part, Bidirectional) else [start]
        parts, inputs, position = [], [xs], xs.shape[-1]
        for (name, cell), begin in zip(directions(part, path).items(), begins, strict=True):
            shapes[name] = OrderedDict(
                (field, jax.ShapeDtypeStruct((len(xs), *leaf.shape), leaf.dtype))
                for field, leaf in zip(field_names(begin), jax.tree.leaves(begin), strict=True)
                if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            )
            given = shapes[name] if probes is None else probes[name]
            given = [jnp.zeros(p.shape, p.dtype) if probes is None else p for p in given.values()]
            flat = [probe.reshape(*xs.shape[:-1], -1) for probe in given]
            inputs += flat
            parts.append(_Probed(cell, xs.dtype, xs.shape[-1], position))
            position += sum(probe.shape[-1] for probe in flat)
        dtype = jnp.result_type(*inputs)
        with_probes = jnp.concatenate([array.astype(dtype) for array in inputs], -1)
        if not isinstance(part, Bidirectional):
            return unroll(parts[0], params, with_probes, start, **rows, **how)
        engine = stepwise(part.engine)
        both = dataclasses.replace(part, forward=parts[0], backward=parts[1], engine=engine)
        return both.apply(params, with_probes, start, **rows)

    _, ys = run_by(layer, run, **how).apply(params, xs, state, lengths=lengths, resets=resets)
    return ys, shapes


@dataclasses.dataclass(frozen=True)
class _Probed(Around):
    """A cell that adds probes to its new state, which follow its input on the last axis.

    Attributes:
      cell: the cell.
      dtype: the type of its input.
      size: D.
      position: the index of its first probe.
    """

    dtype: Any
    size: int
    position: int

    def __getattr__(self, name: str) -> Any:
        if name == "input_size":  # its input is wider than the cell's
            raise AttributeError(name)
        return super().__getattr__(name)

    def step(self, params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
        with_probes, x = x, x[..., : self.size].astype(self.dtype)
        graph = StepGraph(self.cell.step, params, state, x)
        known = bind(graph.inputs, (params, state, x))
        names, y = graph.outputs
        leaves, structure = jax.tree.flatten(graph.evaluate(names, known))
        position = self.position
        for n, leaf in enumerate(leaves):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                size = math.prod(leaf.shape) // math.prod(with_probes.shape[:-1])
                probe = with_probes[..., position : position + size]
                leaves[n] = leaf + probe.reshape(leaf.shape).astype(leaf.dtype)
                position += size
        state = structure.unflatten(leaves)
        return state, graph.evaluate(y, {**known, **bind(names, state)})


def _started(part: Any, params: Params, xs: jax.Array, state: Any) -> Any:
    """The state of a cell or :class:`Bidirectional` before the first step; None means initial."""
    if not isinstance(part, Bidirectional):
        return initial_state(part, params, xs.shape[1:-1], xs) if state is None else state
    return BidirectionalState(
        *[
            _started(getattr(part, name), params[name], xs, state and getattr(state, name))
            for name in BidirectionalState._fields
        ]
    )


def _last_outputs(ys: jax.Array, lengths: jax.Array | None, backwards: bool) -> jax.Array:
    """The output of the last step that each row computes."""
    if backwards:
        return ys[0]
    if lengths is None:
        return ys[-1]
    last = jnp.maximum(jnp.asarray(lengths) - 1, 0)
    last = last.reshape(1, *last.shape, *[1] * (ys.ndim - 1 - last.ndim))
    return jnp.take_along_axis(ys, last, 0)  # zero in rows of length zero


def _norm(array: jax.Array, axes: int) -> jax.Array:
    """The norm over all but the first ``axes`` axes, safe if squares underflow."""
    array = jnp.abs(array).reshape(*array.shape[:axes], -1)
    array = array.astype(jnp.promote_types(array.dtype, "float32"))
    largest = array.max(-1, keepdims=True, initial=0.0)
    scaled = array / jnp.where(largest > 0, largest, 1.0)
    return largest[..., 0] * jnp.sqrt(jnp.square(scaled).sum(-1))


# ---- derivatives of states with respect to earlier states ----


class JacobianSpectrum(NamedTuple):
    """How consecutive steps change small perturbations of the state.

    Attributes:
      singular_values: the singular values of d s_{t+w} / d s_t for consecutive windows of w
        steps, the largest first, ``[windows, ..., n]`` with n numbers in a state.
      exponent: the largest Lyapunov exponent, in nats per step, ``[...]``: the mean growth.
      growth: the logarithm of the growth of a perturbation in each step, ``[T, ...]``.  Previous
        steps have turned the perturbation to the direction that grows most.
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
    """Computes singular values of the state's Jacobian, and the largest Lyapunov exponent.

    Let s_t be the state of all layers after step t, as one vector.  For each of the T // w
    consecutive windows of ``xs``::

        J = d s_{t+w} / d s_t = J_{t+w} ... J_{t+1}        singular_values = svd(J)

    A perturbation of the state along a singular vector with value 1 keeps its norm over the
    window; with value 0 it is forgotten.  The exponent is the mean growth of a perturbation v that
    is carried along the trajectory::

        growth_t = log ‖ J_t v_{t-1} ‖        v_t = J_t v_{t-1} / ‖ J_t v_{t-1} ‖

    It is positive if trajectories diverge (chaos), and negative if the state forgets its initial
    value.

    Args:
      model: a cell, a layer or a Flax module that runs forwards in time.
      params: its parameters, as in :func:`trace`.
      xs: the inputs, as in :func:`trace`.
      state: the state before the first step; the initial one if None.
      window: w, the number of steps in a window, from 1 to T.
      burn_in: the number of initial steps that the mean excludes, in which v turns.
      key: random key that samples each row's first v; None for a fixed one.

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
            wide = jnp.promote_types(jacobian.dtype, "float32")  # svd does not support bfloat16
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
