"""Truncated backpropagation through time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import State, check_size

Run = Callable[..., tuple[State, jax.Array]]


def truncated(
    run: Run,
    xs: jax.Array,
    state: State | None = None,
    *,
    window: int,
    burn_in: int = 0,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    key: jax.Array | None = None,
) -> tuple[State, jax.Array]:
    """Runs over a sequence; gradients reach back only to the start of their window.

    The values are those of the plain run.  In Python::

        parts = [xs[:burn_in], xs[burn_in : burn_in + window], xs[burn_in + window : ...], ...]
        state, ys[0] = stop_gradient(run(parts[0], state))
        for n, part in enumerate(parts[1:]):
            state, ys[n] = run(part, state)
            if part is not parts[-1]:
                state = stop_gradient(state)

    The gradient of an output thus flows through the steps of its own window up to that
    output, 1 to ``window`` of them.  Only runs forwards in time can be truncated in this way, not
    bidirectional or reversed ones.

    Args:
      run: called as ``run(xs, state, lengths=..., resets=...)``, with ``mask=...`` and
        ``key=...`` where these are given, for instance
        ``functools.partial(unroll, cell, params)`` or ``functools.partial(lstm.apply, params)``.
      xs: ``[T, ..., D]``.
      state: the state before the first step; None for the run's own initial state.  Its
        gradient comes from the first window; with a burn-in it is zero.
      window: steps between two cuts, at least 1; the last window may be shorter.
      burn_in: the number of first steps that only warm up the state: neither they nor their
        outputs have a gradient.  From 0 to T.
      lengths: integers ``[...]``, as in :func:`unroll`.
      mask: booleans ``[T, ...]``, as in :func:`unroll`.
      resets: booleans ``[T, ...]``, as in :func:`unroll`.
      key: random key, split into one for each window; None where nothing is random.

    Returns:
      ``(state, ys)``, as ``run`` returns them for the whole sequence.

    Raises:
      TypeError, ValueError: ``window`` or ``burn_in`` is not an integer or out of range, or
        as ``run`` raises for the whole sequence.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from lstm_jax import LSTMCell, unroll
      >>> cell = LSTMCell(hidden_size=3)
      >>> run = functools.partial(unroll, cell, cell.init(jax.random.key(0), input_size=2))
      >>> last = lambda xs: truncated(run, xs, window=4)[1][-1].sum()
      >>> gradient = jax.grad(last)(jnp.ones((10, 2)))  # windows of 4, 4 and 2 steps
      >>> jnp.any(gradient != 0, axis=-1).tolist() == [False] * 8 + [True] * 2
      True

    References:
      Ronald J. Williams, Jing Peng, "An Efficient Gradient-Based Algorithm for On-Line
      Training of Recurrent Network Trajectories", Neural Computation 2(4), 1990.
      Steven Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement
      Learning", ICLR 2019, section 3 (burn-in).
    """
    check_size("window", window)
    if isinstance(burn_in, bool) or not isinstance(burn_in, int):
        raise TypeError(f"burn_in must be an int, got {burn_in!r}")
    xs = jnp.asarray(xs)
    # Traced once over the whole sequence, for the run's own checks of shapes and lengths.
    options = {name: a for name, a in (("mask", mask), ("key", key)) if a is not None}
    whole = functools.partial(run, lengths=lengths, resets=resets, **options)
    jax.eval_shape(whole, xs, state)
    if not 0 <= burn_in <= len(xs):
        raise ValueError(f"burn_in must be from 0 to T={len(xs)}, got {burn_in}")

    lengths = None if lengths is None else jnp.asarray(lengths).astype(jnp.int32)
    steps = (xs, *(None if flags is None else jnp.asarray(flags) for flags in (mask, resets)))
    whole_windows = max(0, -(-(len(xs) - burn_in) // window) - 1)  # all but the last
    end = burn_in + whole_windows * window

    def part(n: jax.Array | int, state: Any, start: jax.Array | int, steps: Any) -> Any:
        xs, mask, resets = steps
        options = {} if key is None else {"key": jax.random.fold_in(key, n)}
        if mask is not None:
            options["mask"] = mask
        left = None if lengths is None else jnp.clip(lengths - start, 0, len(xs))
        return run(xs, state, lengths=left, resets=resets, **options)

    def one_window(state: Any, inputs: Any) -> Any:
        n, steps = inputs
        state, ys = part(1 + n, state, burn_in + n * window, steps)
        return jax.lax.stop_gradient(state), ys

    # With no steps, this only replaces None by the initial state.
    state, first = part(0, state, 0, jax.tree.map(lambda a: a[:burn_in], steps))
    if burn_in > 0:
        state, first = jax.lax.stop_gradient((state, first))
    windows = jax.tree.map(
        lambda a: a[burn_in:end].reshape(whole_windows, window, *a.shape[1:]), steps
    )
    state, middle = jax.lax.scan(one_window, state, (jnp.arange(whole_windows), windows))
    middle = middle.reshape(end - burn_in, *middle.shape[2:])
    state, last = part(1 + whole_windows, state, end, jax.tree.map(lambda a: a[end:], steps))
    return state, jnp.concatenate([first, middle, last])
