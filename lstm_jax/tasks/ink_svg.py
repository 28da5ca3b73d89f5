"""Drawings of ink as SVG."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf")
BLACK = "#222222"
WIDTH, HEIGHT, MARGIN, CAPTION = 240.0, 90.0, 10.0, 18.0  # of a panel, in pixels


class Panel(NamedTuple):
    """A piece of handwriting to draw.

    Attributes:
      strokes: ``[N, 2]`` each, x to the right and y upwards.
      groups: the group of each point, integers ``[N]`` for each stroke; each group has its own
        colour.  None for black ink.
      caption: the strings below the piece, each with its group, -1 for black.
    """

    strokes: Sequence[np.ndarray]
    groups: Sequence[np.ndarray] | None = None
    caption: Sequence[tuple[str, int]] = ()


def colour_of(group: int) -> str:
    """The colour of a group; black for -1.

    >>> colour_of(1) == colour_of(1 + len(COLOURS)), colour_of(-1)
    (True, '#222222')
    """
    return BLACK if group < 0 else COLOURS[group % len(COLOURS)]


def svg(panels: Sequence[Panel], columns: int = 4) -> str:
    """A drawing of pieces of handwriting, side by side, each scaled to its panel.

    A move between points of different groups has the colour of the second.  A stroke of one point
    is a dot.

    >>> drawing = svg([Panel([np.array([[0.0, 0.0], [1.0, 1.0]])], None, [("a <", -1)])])
    >>> drawing.count("<polyline"), "a &lt;" in drawing
    (1, True)
    """
    columns = min(columns, len(panels))
    tall = any(panel.caption for panel in panels)
    height = HEIGHT + (CAPTION if tall else 0.0)
    size = columns * WIDTH, -(-len(panels) // columns) * height
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:g} {size[1]:g}" '
        f'width="{size[0]:g}" height="{size[1]:g}">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        lines += _panel(panel, column * WIDTH, row * height)
    return "\n".join([*lines, "</svg>\n"])


def svg_page(strokes: Sequence[np.ndarray], scale: float = 14.0) -> str:
    """A drawing of strokes in their original size.

    Args:
      strokes: ``[N, 2]`` each, y upwards.
      scale: pixels per unit.

    >>> svg_page([np.array([[0.0, 0.0], [1.0, 1.0]])]).count("<polyline")
    1
    """
    points = np.concatenate(strokes)
    low, high = points.min(0), points.max(0)
    width, height = (high - low) * scale + 4 * MARGIN
    corner = np.array([low[0], high[1]])
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.1f} {height:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for stroke in strokes:
        places = (stroke - corner) * (scale, -scale) + 2 * MARGIN
        lines.append(_line(places if len(places) > 1 else np.repeat(places, 2, axis=0), BLACK))
    return "\n".join([*lines, "</svg>\n"])


def _line(places: np.ndarray, colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
        'stroke-linecap="round" stroke-linejoin="round"/>'
    )


def _panel(panel: Panel, left: float, top: float) -> list[str]:
    points = np.concatenate(panel.strokes)
    low, high = points.min(0), points.max(0)
    room = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    scale = (room / np.maximum(high - low, 1e-9)).min()
    shift = np.array([left + WIDTH / 2, top + HEIGHT / 2])
    lines = []
    groups = panel.groups or [np.full(len(stroke), -1) for stroke in panel.strokes]
    for stroke, group in zip(panel.strokes, groups, strict=True):
        places = (stroke - (low + high) / 2) * (scale, -scale) + shift
        if len(places) == 1:
            places, group = np.repeat(places, 2, axis=0), np.repeat(group, 2)
        for value, run in itertools.groupby(range(1, len(places)), key=lambda n: group[n]):
            moves = [*run]
            run_places = places[moves[0] - 1 : moves[-1] + 1]
            lines.append(_line(run_places, colour_of(int(value))))
    if panel.caption:
        words = "".join(
            f'<tspan fill="{colour_of(group)}">{escape(text)}</tspan>'
            for text, group in panel.caption
        )
        lines.append(
            f'<text x="{left + WIDTH / 2:g}" y="{top + HEIGHT + CAPTION / 2:g}" font-size="14" '
            f'font-family="sans-serif" text-anchor="middle">{words}</text>'
        )
    return lines
