"""Which devices share a batch, and how programs are compiled for them."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lstm_jax.errors import UserError

AXIS = "data"
LEVEL = "xla_backend_optimization_level"


def compiled(function: Callable, **options: Any) -> Callable:
    """``jax.jit`` with options for training programs.

    On a CPU, LLVM's first optimisation level is enough, because most of the time is spent in matrix
    products, which a library computes. A step is as fast as with the default level, and most
    programs compile in about half the time. A level in the environment variable ``XLA_FLAGS`` takes
    precedence.

    Args:
      function: the function to compile.
      options: of ``jax.jit``.

    >>> float(compiled(lambda x: x + 1)(1.0))
    2.0
    """
    chosen = LEVEL in os.environ.get("XLA_FLAGS", "")
    lower = jax.default_backend() == "cpu" and not chosen
    return jax.jit(function, compiler_options={LEVEL: 1} if lower else None, **options)


def data_mesh(batch_size: int, num_devices: int = 0) -> jax.sharding.Mesh:
    """A mesh with one axis, ``"data"``, over local devices that share a batch equally.

    Args:
      batch_size: the number of rows of a batch.
      num_devices: the number of devices; 0 for the largest number that is available and divides
        ``batch_size``.

    Raises:
      UserError: fewer than ``num_devices`` are available, or they do not divide the batch.

    >>> data_mesh(7).size
    1
    """
    devices = jax.local_devices()
    if num_devices > len(devices):
        raise UserError(
            f"train.num_devices: expected at most {len(devices)}, the number of devices, "
            f"got {num_devices}"
        )
    if num_devices and batch_size % num_devices:
        raise UserError(
            f"train.num_devices: expected a divisor of the batch of {batch_size} rows, "
            f"got {num_devices}"
        )
    shared = num_devices or max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    return jax.sharding.Mesh(
        np.array(devices[:shared]), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,)
    )
