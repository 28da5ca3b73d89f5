"""The model protocol: a Flax module that reads a section of each sequence in a batch."""

import functools
from typing import Any

import jax
from flax import nnx

Carry = Any  # a pytree of arrays [B, ...]; () if sequences are independent
Outputs = dict[str, Any]  # arrays [B, ...] by name


class Model(nnx.Module):
    """A Flax module that tasks train, ``model(carry, **inputs) -> (carry, outputs)``.

    The batch axis comes first in every array. A long sequence can be read in parts: the carry that
    one call returns is passed to the next. A single streamed step is the same call with t = 1.
    ``model.eval()`` disables dropout. In training, random numbers come from ``rngs``, or from the
    streams passed to the constructor.

    Subclasses define :attr:`inputs` and ``__call__``, and :meth:`initial_carry` if a state is
    passed from one call to the next.

    >>> class Doubled(Model):
    ...     inputs = property(lambda self: {"xs": ("b, t, 3", "float32")})
    ...     def __call__(self, carry, *, xs, rngs=None):
    ...         return carry, {"ys": 2 * xs}
    >>> model = Doubled()
    >>> model(model.initial_carry(rows=2), xs=jax.numpy.ones((2, 5, 3)))[1]["ys"].shape
    (2, 5, 3)
    """

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        """Shape and type of each input: ``{"tokens": ("b, t", "int32")}``.

        ``b`` and ``t`` stand for arbitrary numbers of rows and steps.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define its inputs")

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        """The smallest and the largest value of integer inputs: ``{"tokens": (0, 99)}``.

        The largest value can be an expression of sizes: ``{"lengths": (0, "4*t")}``.  An exported
        model rejects other values.
        """
        return {}

    @property
    def missing(self) -> tuple[str, ...]:
        """The inputs in which NaN stands for a missing value.

        An exported model rejects NaN in the others.
        """
        return ()

    def initial_carry(self, rows: int) -> Carry:
        """The carry before the first step of ``rows`` sequences, arrays ``[rows, ...]``."""
        return ()

    def __call__(
        self, carry: Carry, *, rngs: nnx.Rngs | None = None, **inputs: Any
    ) -> tuple[Carry, Outputs]:
        """The carry after a section of each sequence, and the outputs by name."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


class Compiled:
    """A module in evaluation mode with compiled calls; it is called like the module itself.

    Modules with the same structure share their compiled programs, so new parameters do not trigger
    recompilation.

    Args:
      module: any ``nnx.Module``.  Its structure must be hashable, as for ``nnx.jit``.  Later
        changes to the module have no effect.

    Attributes:
      graph: the module's structure.
      state: its arrays.

    >>> layer = Compiled(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> layer(jax.numpy.ones((4, 3))).shape, layer.out_features
    ((4, 2), 2)
    """

    def __init__(self, module: nnx.Module):
        self.graph, self.state = nnx.split(evaluation(module))

    @property
    def module(self) -> Any:
        """A new module with the stored arrays, in evaluation mode."""
        return nnx.merge(self.graph, self.state)

    def initial_carry(self, rows: int) -> Carry:
        """As :meth:`Model.initial_carry`."""
        carry = _initial_carry(self.graph, self.state, rows)
        arrays = [leaf for leaf in jax.tree.leaves(self.state) if isinstance(leaf, jax.Array)]
        if any(isinstance(array, jax.core.Tracer) for array in arrays):
            return carry
        devices = {device for array in arrays for device in array.devices()}
        # The same placement as the carry of a call. If only the latter were committed to a device,
        # the second call of a sequence would be compiled again.
        return jax.device_put(carry, *devices) if len(devices) == 1 else carry

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        return _called(self.graph, self.state, "__call__", args, inputs)

    def encode(self, **inputs: Any) -> Carry:
        """As :meth:`lstm_jax.models.EncoderDecoder.encode`."""
        return _called(self.graph, self.state, "encode", (), inputs)

    def __getattr__(self, name: str) -> Any:
        if name in ("graph", "state") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.module, name)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _called(graph: Any, state: Any, method: str, args: tuple, inputs: dict[str, Any]) -> Any:
    return getattr(nnx.merge(graph, state), method)(*args, **inputs)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _initial_carry(graph: Any, state: Any, rows: int) -> Carry:
    return nnx.merge(graph, state).initial_carry(rows)


def evaluation(module: nnx.Module) -> Any:
    """A copy of a module in evaluation mode: without dropout, with running averages.

    >>> evaluation(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))(jax.numpy.ones(2)).tolist()
    [1.0, 1.0]
    """
    copy = nnx.merge(*nnx.split(module))
    copy.eval()
    return copy
