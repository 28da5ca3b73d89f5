"""The standard LSTM computed by NVIDIA's cuDNN, through ``jax.experimental.rnn``.

That function has limitations.  It has no rules for vmap and jvp; JAX raises an error that names it.
Its dropout cannot be seeded, so this module never uses it.  A length of zero is an error inside
cuDNN, so such rows run one step, whose results are discarded.  It always computes as in training.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import LSTMState
from lstm_jax.sequence.rows import flipped, valid_steps

Kernel = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def weights(layers: list[dict[str, jax.Array]]) -> jax.Array:
    """Parameters as the flat array that cuDNN reads.

    Our matrices are stored for ``x @ w``, with one bias.  Those of cuDNN are transposed, with gates
    in the same order i, f, g, o, and two biases that are added.  All matrices come first.

    Args:
      layers: the parameters of each layer and, in it, of each direction, forward first.

    >>> import jax
    >>> from lstm_jax import LSTMCell
    >>> weights([LSTMCell(3).init(jax.random.key(0), input_size=2)]).shape  # 4 * 3 * (2 + 3 + 2)
    (84,)
    """
    matrices = [layer[name].T.ravel() for layer in layers for name in ("w_ih", "w_hh")]
    biases = [bias for layer in layers for bias in (layer["b"], jnp.zeros_like(layer["b"]))]
    return jnp.concatenate([*matrices, *biases])


def cudnn_lstm(
    params: dict[str, jax.Array],
    xs: jax.Array,
    state: LSTMState,
    lengths: jax.Array | None = None,
    *,
    reverse: bool = False,
    kernel: Kernel | None = None,
) -> tuple[LSTMState, jax.Array]:
    """A standard LSTM over a sequence, float32, on an NVIDIA GPU.

    Args:
      params: ``w_ih``, ``w_hh``, ``b``.
      xs: ``[T, B, D]``, at least one step.
      state: ``h`` and ``c``, each ``[B, H]``.
      lengths: integers ``[B]``; None for T in every row.
      reverse: whether each row is read from its own last step.
      kernel: a function with the signature of ``jax.experimental.rnn.lstm``, the default.

    Returns:
      ``(state, ys)`` as :func:`unroll` returns them.
    """
    if kernel is None:
        from jax.experimental import rnn

        kernel = rnn.lstm
    num_steps, batch, features = xs.shape
    every = jnp.full(batch, num_steps) if lengths is None else lengths
    if reverse:
        xs = flipped(xs, every)
    ys, h, c = kernel(
        jnp.swapaxes(xs, 0, 1),
        state.h[None],
        state.c[None],
        weights([params]),
        jnp.maximum(every, 1).astype(jnp.int32),
        features,
        state.h.shape[-1],
        1,  # layers
        0.0,  # dropout
        False,  # bidirectional
    )
    ys, last = jnp.swapaxes(ys, 0, 1), LSTMState(h=h[0], c=c[0])
    if lengths is not None:
        empty = (lengths == 0)[:, None]
        last = jax.tree.map(lambda new, old: jnp.where(empty, old, new), last, state)
        ys = jnp.where(valid_steps(num_steps, lengths)[..., None], ys, 0.0)
    return last, flipped(ys, every) if reverse else ys
