"""The numbers of constants and carried values of a scan, for all versions of JAX."""

from typing import Any


def scan_counts(equation: Any) -> tuple[int, int]:
    """The number of constants and the number of carried values of a scan.

    Both have the same rank inside the loop as outside; arrays that are scanned over or stacked have
    one axis less inside.  The names of JAX's own counts differ between versions.

    >>> import jax, jax.numpy as jnp
    >>> def summed(a, xs):
    ...     return jax.lax.scan(lambda carry, x: (carry + a * x, carry), jnp.zeros(2), xs)
    >>> (equation,) = jax.make_jaxpr(summed)(jnp.ones(2), jnp.ones((3, 2))).eqns[-1:]
    >>> scan_counts(equation)
    (1, 1)
    """
    body = equation.params["jaxpr"].jaxpr
    carried = _of_equal_rank(body.outvars, equation.outvars)
    return _of_equal_rank(body.invars, equation.invars) - carried, carried


def _of_equal_rank(inner: Any, outer: Any) -> int:
    return sum(
        len(one.aval.shape) == len(other.aval.shape)
        for one, other in zip(inner, outer, strict=True)
    )
