"""Constraints on the sizes of a Transformer, common to all tasks that offer one."""

from collections.abc import Iterable
from typing import Any

from lstm_jax.errors import expect


def check_transformer(model: Any, without: Iterable[str]) -> None:
    """Raises a :class:`UserError` if a section ``[model]`` is not valid for a Transformer.

    Args:
      model: a section with ``hidden_size``, ``embedding_size`` and ``num_heads``, which is at
        least 1.
      without: names of options that do not apply to a Transformer; they must have their defaults.
    """
    with_kind = 'with model.kind "transformer"'
    for name in without:
        value, default = getattr(model, name), type(model).__dataclass_fields__[name].default
        expect(value == default, f"model.{name}", f"{default!r} {with_kind}", repr(value))
    size, multiple = model.hidden_size, 2 * model.num_heads
    expected = f"a multiple of 2 * model.num_heads = {multiple} {with_kind}"
    expect(size % multiple == 0, "model.hidden_size", expected, size)
    expected = f"model.hidden_size = {size} {with_kind}"
    expect(model.embedding_size == size, "model.embedding_size", expected, model.embedding_size)
