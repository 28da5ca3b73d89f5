"""Text coloured by a unit's state, and a search for units that follow a property of the text."""

import html
import itertools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lstm_jax.inspect.trace import Trace, valid

# ---- coloured text ----

NEGATIVE, NEUTRAL, POSITIVE = (0x56, 0xB4, 0xE9), (0xFF, 0xFF, 0xFF), (0xE6, 0x9F, 0x00)
"""Sky blue, white and orange (Okabe & Ito 2008): light enough for black text, and distinguishable
for colour-blind readers."""

SHADES = 16  # on each side of zero


class Html(str):
    """HTML that a notebook displays, and that :meth:`save` writes to a file.

    >>> Html("<b>1</b>")._repr_html_()
    '<b>1</b>'
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes a complete HTML page."""
        page = f'<!DOCTYPE html>\n<meta charset="utf-8">\n<title>lstm_jax</title>\n{self}\n'
        pathlib.Path(path).write_text(page, "utf-8")


def text_html(
    text: str,
    values: ArrayLike,
    *,
    title: str = "",
    limit: float | None = None,
) -> Html:
    """Colours the background of each character by a value: blue below zero, orange above.

    Args:
      text: N characters.
      values: a number for each character, ``[N]``, such as a unit's state after reading it.
      title: the title, such as the unit's name.
      limit: the absolute value that has the full colour; by default, the largest one.

    Returns:
      An :class:`Html`, which a notebook displays.

    Raises:
      ValueError: the number of values is not N, a value is not finite, or ``limit`` is not
        positive.

    Example:
      >>> page = text_html("a <b>", [0.0, 0.5, 1.0, -1.0, -0.2])
      >>> "&lt;" in page and "<b>" not in page
      True

    References:
      Andrej Karpathy, Justin Johnson, Li Fei-Fei, "Visualizing and Understanding Recurrent
      Networks", ICLR 2016 workshop, figure 2.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(text),):
        raise ValueError(
            f"values must have one number per character, shape ({len(text)},), got shape "
            f"{values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError("values must be finite, got NaN or infinity")
    if limit is None:
        limit = float(np.abs(values).max(initial=0.0)) or 1.0
    if not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    shades = np.rint(np.clip(values / limit, -1.0, 1.0) * SHADES).astype(int)
    spans = []
    for shade, run in itertools.groupby(zip(text, shades, strict=True), key=lambda pair: pair[1]):
        shown = html.escape("".join(character for character, _ in run)).replace("\n", "↵\n")
        spans.append(f'<span style="background:{_colour(shade)}">{shown}</span>')
    heading = f"<div><b>{html.escape(title)}</b></div>\n" if title else ""
    return Html(
        '<div style="color:#000;background:#fff;padding:0.5em;line-height:1.5;'
        'font-family:system-ui,sans-serif">\n'
        f"{heading}{_legend(limit)}\n"
        '<pre style="color:#000;background:#fff;margin:0.5em 0;white-space:pre-wrap;'
        f'overflow-wrap:anywhere;line-height:1.5">{"".join(spans)}</pre>\n</div>'
    )


def _colour(shade: int) -> str:
    end, share = (POSITIVE if shade > 0 else NEGATIVE), abs(shade) / SHADES
    mixed = (round(n + share * (e - n)) for n, e in zip(NEUTRAL, end, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _legend(limit: float) -> str:
    colours = ", ".join(_colour(shade) for shade in (-SHADES, 0, SHADES))
    bar = (
        '<span style="display:inline-block;width:8em;height:0.8em;border:1px solid #888;'
        f'margin:0 0.5em;background:linear-gradient(to right, {colours})"></span>'
    )
    return f'<div style="font-size:85%">−{limit:.3g}{bar}+{limit:.3g}</div>'


# ---- the properties that units follow ----


class FoundUnits(NamedTuple):
    """Units sorted by how closely they follow a property, the closest first.

    Attributes:
      layer: the unit's layer, ``[N]`` strings.
      unit: its index in that layer, ``[N]`` integers.
      correlation: Pearson's correlation, from -1 to 1, over all steps and rows, ``[N]``.
    """

    layer: np.ndarray
    unit: np.ndarray
    correlation: np.ndarray


def find_units(trace: Trace, followed: ArrayLike, *, name: str | None = None) -> FoundUnits:
    """Finds the units whose state is most correlated with a property of the input.

    Args:
      trace: a trace of the states, as from ``trace(model, params, xs, names="c")``.
      followed: the property at each step, numbers or booleans ``[T]``, or ``[T, ...]`` with the
        batch axes; for instance :func:`inside_quotes`, :func:`line_position`,
        :func:`line_length` or :func:`nesting_depth` of a text.
      name: the value of the trace to compare; by default ``c``, or ``h`` if there is no c.

    Returns:
      :class:`FoundUnits` of all layers in the trace, sorted by the absolute correlation.  The
      correlation of a constant unit or property is 0.

    Raises:
      ValueError: ``followed`` has another shape than the steps or is not finite, or the trace
        lacks the value or has no steps.

    Example:
      >>> import jax.numpy as jnp
      >>> c = jnp.stack([jnp.array([0.1, 0.2, 0.9, 0.8]), jnp.array([-1.0, -1.0, 1.0, -1.0])], -1)
      >>> found = find_units(Trace({"cell": {"c": c}}, state=()), [0, 0, 1, 0])
      >>> found.unit.tolist(), found.correlation.round(2).tolist()
      ([1, 0], [1.0, 0.65])
    """
    layers, units, correlations = [], [], []
    for layer, values in trace.values.items():
        wanted = name or next((known for known in ("c", "h") if known in values), None)
        if wanted is None or wanted not in values:
            raise ValueError(
                f"name must be one of {', '.join(values)} (in {layer} of the trace), got {name!r}"
            )
        states = np.asarray(values[wanted], np.float64)
        steps = states.shape[:-1]
        target = np.asarray(followed, np.float64)
        if target.shape not in (steps, steps[:1]):
            raise ValueError(
                f"followed must have the steps of the trace, shape {steps[:1]} or {steps}, "
                f"got shape {target.shape}"
            )
        counted, target = _spread(valid(trace), steps), _spread(target, steps)
        if not counted.any():
            raise ValueError("trace must have at least one step, got none")
        if not np.isfinite(target[counted]).all():
            raise ValueError("followed must be finite, got NaN or infinity")
        correlation = _correlations(states[counted], target[counted])
        layers += [layer] * len(correlation)
        units.append(np.arange(len(correlation)) if trace.units is None else trace.units)
        correlations.append(correlation)
    correlation = np.concatenate(correlations)
    order = np.argsort(-np.abs(correlation), kind="stable")
    return FoundUnits(np.array(layers)[order], np.concatenate(units)[order], correlation[order])


def _spread(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Broadcasts an array to a shape that begins with the array's own."""
    return np.broadcast_to(array.reshape(*array.shape, *[1] * (len(shape) - array.ndim)), shape)


def _correlations(states: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each column of ``[N, units]`` with ``[N]``."""
    states, target = states - states.mean(0), target - target.mean()
    scale = np.sqrt(np.square(states).sum(0) * np.square(target).sum())
    return np.divide(target @ states, scale, out=np.zeros(states.shape[1]), where=scale > 0)


# ---- properties of a text: one number per character ----


def inside_quotes(text: str, quote: str = '"') -> np.ndarray:
    """Whether a quotation is open after each character; booleans ``[N]``.

    >>> inside_quotes('a "b" c').astype(int).tolist()
    [0, 0, 1, 1, 0, 0, 0]
    """
    return np.cumsum(np.array([character == quote for character in text], int)) % 2 == 1


def line_position(text: str) -> np.ndarray:
    """The number of characters of the line up to each character; newlines count; ``[N]``.

    >>> line_position("ab\\nc").tolist()
    [1, 2, 3, 1]
    """
    return np.array([n for line in text.splitlines(True) for n in range(1, len(line) + 1)], int)


def line_length(text: str) -> np.ndarray:
    """The length of each character's line, including the newline; ``[N]``.

    >>> line_length("ab\\nc").tolist()
    [3, 3, 3, 1]
    """
    return np.array([len(line) for line in text.splitlines(True) for _ in line], int)


def nesting_depth(text: str, pairs: str = "()[]{}") -> np.ndarray:
    """The number of open brackets after each character, at least 0; ``[N]``.

    >>> nesting_depth("f(x[1])").tolist()
    [0, 1, 1, 2, 2, 1, 0]
    """
    opening, closing = pairs[::2], pairs[1::2]
    depths, depth = [], 0
    for character in text:
        depth = max(0, depth + (character in opening) - (character in closing))
        depths.append(depth)
    return np.array(depths, int)


PROPERTIES: dict[str, Callable[[str], np.ndarray]] = {
    "inside quotes": inside_quotes,
    "position in the line": line_position,
    "length of the line": line_length,
    "nesting depth": nesting_depth,
}
"""Properties of a text by their names in plots."""
