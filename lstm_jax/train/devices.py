"""Which devices share a batch."""

import os

import jax
import numpy as np

from lstm_jax.errors import UserError

AXIS = "data"


def use_all_cores() -> None:
    """One JAX CPU device a physical core, so that a batch can be shared among them.

    One device runs the small element-wise work of each step on one core alone.  Must be
    called before JAX is first used; does nothing where JAX has devices already.
    """
    import psutil

    physical = psutil.cpu_count(logical=False) or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    try:
        jax.config.update("jax_num_cpu_devices", max(1, min(physical, allowed)))
    except RuntimeError:  # JAX has been used
        return


def data_mesh(batch_size: int, num_devices: int = 0) -> jax.sharding.Mesh:
    """A mesh of one axis, ``"data"``, over local devices that share a batch equally.

    Args:
      batch_size: rows of a batch.
      num_devices: how many devices; 0 for as many as there are, or the largest smaller
        number that divides ``batch_size``.

    Raises:
      UserError: there are not ``num_devices``, or they do not divide the batch.

    >>> data_mesh(7).size
    1
    """
    devices = jax.local_devices()
    if num_devices > len(devices):
        raise UserError(
            f"train.num_devices: expected at most the {len(devices)} devices there are, "
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
