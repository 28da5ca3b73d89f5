"""Biases with which gates begin."""

from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import Initializer, blocks, chrono_bias


def gate_biases(
    init: Initializer,
    gates: str,
    *,
    keep: str = "",
    write: str = "",
    chrono: float | None = None,
    forget_bias: float = 0.0,
) -> Initializer:
    """Draws the biases of gates side by side.

    Args:
      init: draws each gate's bias.
      gates: a letter for each of them, in order, such as ``"rzg"``.
      keep: those that keep the state; they begin with ``forget_bias`` more than ``init`` draws.
      write: those that write the state.
      chrono: as in :class:`GatedCell`; replaces the biases of ``keep`` and ``write``.
      forget_bias: see ``keep``.

    >>> import jax
    >>> init = gate_biases(jax.nn.initializers.zeros, "ifg", keep="f", write="i", forget_bias=1.0)
    >>> init(jax.random.key(0), (6,), "float32").tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    """

    def init_biases(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        drawn = jnp.split(blocks(init, len(gates))(key, shape, dtype), len(gates))
        biases = dict(zip(gates, drawn, strict=True))
        if chrono is None:
            biases |= {gate: biases[gate] + jnp.asarray(forget_bias, dtype) for gate in keep}
        else:
            b = chrono_bias(chrono)(jax.random.fold_in(key, 1), drawn[0].shape, dtype)
            biases |= {gate: b for gate in keep} | {gate: -b for gate in write}
        return jnp.concatenate(list(biases.values()))

    return init_biases
