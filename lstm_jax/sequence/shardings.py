"""Shardings of traced arrays: which axes may be merged, and how new arrays are sharded."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, reshard


def on_one_device(*arrays: jax.Array) -> bool:
    """Whether each device computes with its own whole arrays, so that axes may be merged.

    True without a mesh and within ``shard_map``, where the axes of the mesh are manual.  Elsewhere
    any axis may be sharded, and a sharded axis must not be merged with another.

    >>> import jax.numpy as jnp
    >>> on_one_device(jnp.ones(2))
    True
    """
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(a).sharding.mesh for a in arrays)]
    return all(
        size == 1 or kind == AxisType.Manual
        for mesh in meshes
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    )


def has_all_cores(*arrays: jax.Array) -> bool:
    """Whether the only device of a CPU runs large operations on all of its cores.

    >>> import jax, jax.numpy as jnp
    >>> is_only_device = jax.default_backend() == "cpu" and jax.local_device_count() == 1
    >>> has_all_cores(jnp.ones(2)) == is_only_device
    True
    """
    only_device = jax.default_backend() == "cpu" and jax.local_device_count() == 1
    return only_device and on_one_device(*arrays)


def has_explicit_axes(array: jax.Array) -> bool:
    """Whether an array's sharding is part of its type.

    >>> import jax.numpy as jnp
    >>> has_explicit_axes(jnp.ones(2))
    False
    """
    return AxisType.Explicit in jax.typeof(array).sharding.mesh.axis_types


def mesh_of(array: jax.Array) -> AbstractContextManager[Any]:
    """The context of the mesh of an array with explicit axes, otherwise one that changes nothing.

    From jax 0.11 on, the derivative of operations traced outside of the mesh's context contains
    zeros without a sharding.

    >>> import jax.numpy as jnp
    >>> with mesh_of(jnp.ones(2)):
    ...     jax.sharding.get_abstract_mesh().empty
    True
    """
    if not has_explicit_axes(array):
        return contextlib.nullcontext()
    mesh = _sharding(array).mesh
    in_context = jax.set_mesh if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh
    return in_context(mesh)


def gathered(params: Any, xs: jax.Array) -> Any:
    """The parameters, whole over the mesh axes that shard the inputs.

    A product of a sharded batch with parameters that are sharded over the same axes (FSDP) needs
    them whole.  In reverse mode their gradient is summed and sharded again.  This is for arrays
    with explicit axes; with ``Auto`` axes the compiler decides.

    >>> import jax.numpy as jnp
    >>> gathered({"w": jnp.ones(2)}, jnp.ones((5, 2, 4)))["w"].shape
    (2,)
    """
    if not has_explicit_axes(xs):
        return params
    sharding = _sharding(xs)
    taken = {name for axes in sharding.spec for name in _names(axes)}

    def whole(leaf: jax.Array) -> jax.Array:
        spec = jax.typeof(leaf).sharding.spec
        kept = [tuple(name for name in _names(axes) if name not in taken) for axes in spec]
        return reshard(leaf, NamedSharding(sharding.mesh, PartitionSpec(*kept)))

    return jax.tree.map(whole, params)


def _sharding(array: jax.Array) -> Any:
    """The sharding with an entry for each axis; outside of ``jit`` its mesh has real devices."""
    sharding = jax.typeof(array).sharding
    if isinstance(array, jax.core.Tracer) or not isinstance(array.sharding, NamedSharding):
        return sharding
    return NamedSharding(array.sharding.mesh, sharding.spec)


def _names(axes: Any) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def like_batch(tree: Any, xs: jax.Array, lead: int = 0, others: Any = ()) -> Any:
    """Shards a tree like the batch; within ``shard_map`` it varies over the same devices.

    A scan's carry must have the type of the carry that the step returns.  An array with explicit
    axes has its sharding in its type, and within ``shard_map`` the axes over which it varies.

    Args:
      tree: arrays whose axes from ``lead`` on are the batch axes of ``xs``.
      xs: inputs, ``[T, ..., D]``.
      lead: axes before the batch axes, such as 1 for ``[T, ...]``.
      others: further arrays that an axis can make vary.

    >>> import jax.numpy as jnp
    >>> like_batch({"h": jnp.ones((2, 3))}, jnp.ones((5, 2, 4)))["h"].shape
    (2, 3)
    """
    varying = set().union(*map(_varying_axes, jax.tree.leaves((xs, others))))
    sharding = _sharding(xs)

    def placed(leaf: jax.Array) -> jax.Array:
        missing = tuple(varying - _varying_axes(leaf))  # a learned state already varies
        leaf = jax.lax.pcast(leaf, missing, to="varying") if missing else leaf
        if not has_explicit_axes(xs):
            return leaf
        own, batch = jax.typeof(leaf).sharding.spec, sharding.spec[1:-1]
        batch = batch[: leaf.ndim - lead]
        spec = PartitionSpec(*own[:lead], *batch, *own[lead + len(batch) :])
        return reshard(leaf, NamedSharding(sharding.mesh, spec))

    return jax.tree.map(placed, tree)


def output_like(y: jax.Array, x: jax.Array) -> jax.Array:
    """One step's output ``[..., H]`` sharded as its input ``[..., D]``, with whole features.

    Features that are sharded (tensor parallelism) would otherwise meet weights sharded over the
    same axis in the next layer.

    >>> import jax.numpy as jnp
    >>> output_like(jnp.ones((2, 3)), jnp.ones((2, 4))).shape
    (2, 3)
    """
    if not has_explicit_axes(x):
        return y
    sharding = _sharding(x)
    return reshard(y, NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:-1], None)))


def like(array: jax.Array, other: jax.Array) -> jax.Array:
    """The array with the sharding of another of its shape, where that is part of its type.

    >>> import jax.numpy as jnp
    >>> like(jnp.ones(2), jnp.zeros(2)).tolist()
    [1.0, 1.0]
    """
    return reshard(array, _sharding(other)) if has_explicit_axes(other) else array


def _varying_axes(array: jax.Array) -> set[str]:
    type_ = jax.typeof(array)  # until jax 0.10.1, the varying axes are the attribute `vma`
    return set(type_.vma if hasattr(type_, "vma") else type_.manual_axis_type.varying)
