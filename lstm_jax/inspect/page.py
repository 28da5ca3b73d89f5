"""What a model does while it reads, as one page of HTML that holds all its pictures."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lstm_jax.cells.base import Params
from lstm_jax.inspect.gates import GATES, memory_horizon, saturation
from lstm_jax.inspect.gradients import gradient_flow, jacobian_spectrum
from lstm_jax.inspect.models import cells_of
from lstm_jax.inspect.plots import (
    plot_gradient_flow,
    plot_jacobian_spectrum,
    plot_memory_horizon,
    plot_saturation,
    plot_trace,
    plot_unit,
    plot_units,
)
from lstm_jax.inspect.schematic.draw import draw_cell
from lstm_jax.inspect.summary import Summary, summary
from lstm_jax.inspect.text import PROPERTIES, find_units, text_html
from lstm_jax.inspect.trace import Trace, trace
from lstm_jax.sequence import Bidirectional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS_SHOWN, UNITS_SHOWN = 60, 24  # in a heat map
TEXT_SHOWN = 1200  # characters, in colours
WINDOW, WINDOWS = 32, 3  # steps, of a Jacobian
LARGEST_JACOBIAN = 2048  # numbers in a state, for seconds and not minutes

STYLE = """
:root { color-scheme: light dark; }
body { color: #1b1b1b; background: #fff; font: 16px/1.5 system-ui, sans-serif;
       max-width: 110rem; margin: 2rem auto; padding: 0 2rem; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
img { max-width: 100%; height: auto; display: block; margin: 0.5rem 0; background: #fff; }
pre { font: 14px/1.4 ui-monospace, monospace; background: #f6f6f6; padding: 0.5rem;
      overflow-x: auto; }
table { border-collapse: collapse; font-size: 15px; }
th, td { border-bottom: 1px solid #ddd; padding: 0.2em 0.7em; text-align: left; }
div.wide { overflow-x: auto; }
div.side-by-side { display: grid; gap: 1rem; align-items: start;
                   grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); }
@media (prefers-color-scheme: dark) {
  body { color: #e4e4e4; background: #17191d; }
  pre { background: #23262c; }
  h2, th, td { border-color: #444; }
}
"""


class Section(NamedTuple):
    """A part of the page.

    Attributes:
      title: its heading.
      body: HTML.
    """

    title: str
    body: str


def page(title: str, sections: Sequence[Section], style: str = "") -> str:
    """The sections as one self-contained HTML document, with some more CSS of their own.

    >>> page("<a run>", [Section("Layers", "<p>one</p>")]).count("&lt;a run&gt;")
    2
    """
    title = html.escape(title)
    body = "\n".join(
        f"<section>\n<h2>{html.escape(section.title)}</h2>\n{section.body}\n</section>"
        for section in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>{STYLE}{style}</style>\n'
        f"</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    """A paragraph of plain text.

    >>> paragraph("a < b")
    '<p>a &lt; b</p>'
    """
    return f"<p>{html.escape(text)}</p>"


def image(svg: str, alt: str) -> str:
    """An SVG as an image that lies in the page itself.

    >>> image("<svg/>", "nothing")
    '<img alt="nothing" src="data:image/svg+xml;base64,PHN2Zy8+">'
    """
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def picture(figure: "Figure", alt: str) -> str:
    """A matplotlib figure as such an image."""
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return image(svg.getvalue(), alt)


def side_by_side(parts: Iterable[str]) -> str:
    """Parts of the page in columns, as many as there is room for."""
    return f'<div class="side-by-side">{"".join(parts)}</div>'


def facts(table: dict[str, str]) -> str:
    """A table of names and values.

    >>> facts({"step": "3"})
    '<table><tr><th scope="row">step</th><td>3</td></tr></table>'
    """
    rows = (
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in table.items()
    )
    return f"<table>{''.join(rows)}</table>"


def look_into(
    layer: Any,
    params: Params,
    xs: Any,
    *,
    lengths: Any = None,
    text: str | None = None,
) -> list[Section]:
    """Sections on what recurrent layers do while they read.

    Args:
      layer: a functional cell or layer that runs forwards in time.
      params: its parameters.
      xs: what it reads, ``[T, B, D]``, or ``[T, B, *space, D]``: then the place in the middle is
        shown, without gradients through time and the Jacobian.
      lengths: of its rows; None for all T steps.
      text: the characters that row 0 reads, where these are what it reads.
    """
    read = trace(layer, params, xs, lengths=lengths)
    first = len(xs) if lengths is None else int(lengths[0])
    row = xs[:first, :1]  # one sequence, without padding
    space = xs.shape[2:-1]
    if space:
        read = _in_the_middle(read, space)
    sections = [
        _layers(summary(layer, (*space, xs.shape[-1]))),
        _drawings(layer),
        _maps(_first_units(_first_steps(read, min(first, STEPS_SHOWN))), text),
    ]
    sections += _text(read, text) if text else [_units(read, first)]
    sections += [*_gates(read), *_horizon(read, layer)]
    if space:
        return sections
    return [*sections, _flow(layer, params, xs, lengths), _spectrum(layer, params, row)]


def _in_the_middle(read: Trace, space: tuple[int, ...]) -> Trace:
    """What happens at the middle of a grid, ``[T, B, H]``."""
    middle = (slice(None), slice(None), *(size // 2 for size in space))
    values = {
        place: {name: array[middle] for name, array in arrays.items()}
        for place, arrays in read.values.items()
    }
    return read._replace(values=values)


def _layers(table: Summary) -> Section:
    said = paragraph(
        "State is the memory of one sequence. Training stores, of each step of each sequence, what "
        "is named there. A multiplication with an addition counts as two operations."
    )
    return Section("Layers", f'<div class="wide">{table._repr_html_()}</div>{said}')


def _drawings(layer: Any) -> Section:
    kinds = {type(cell).__name__: cell for cell in cells_of(layer).values()}
    said = paragraph(
        "One step, drawn from the cell's own equations: the state comes in on the left and goes "
        "out on the right, the input comes from below."
    )
    drawn = (image(str(draw_cell(cell)), f"data flow of {kind}") for kind, cell in kinds.items())
    return Section("The cell", said + side_by_side(drawn))


def _maps(shown: Trace, text: str | None) -> Section:
    said = paragraph(
        f"The first {STEPS_SHOWN} steps of the first sequence, and {UNITS_SHOWN} units of each "
        "layer, or as many as there are."
    )
    pictures = (
        picture(plot_trace(shown, place, text=text), f"gates and states of {place} over time")
        for place in shown.values
    )
    return Section("Gates and states over time", said + side_by_side(pictures))


def _first_units(traced: Trace) -> Trace:
    values = {
        place: {name: array[..., :UNITS_SHOWN] for name, array in arrays.items()}
        for place, arrays in traced.values.items()
    }
    return traced._replace(values=values)


def _first_steps(traced: Trace, steps: int) -> Trace:
    values = {
        place: {name: array[:steps] for name, array in arrays.items()}
        for place, arrays in traced.values.items()
    }
    return traced._replace(values=values)


def _units(read: Trace, first: int) -> Section:
    """Of each layer the unit whose state moves most."""
    said = paragraph("Of each layer the unit whose state moves most, in the first sequence.")
    pictures = []
    shown = _first_steps(read, first)
    for place, values in shown.values.items():
        states = np.asarray(values["c" if "c" in values else "h"], np.float64)
        unit = int(states.reshape(-1, states.shape[-1]).std(0).argmax())
        pictures.append(picture(plot_unit(shown, unit, place), f"{place}, unit {unit} over time"))
    return Section("One unit over time", said + side_by_side(pictures))


def _text(read: Trace, text: str) -> list[Section]:
    """Units by what of the text they follow, and the text in their colours."""
    bars, coloured, lines = [], [], []
    for name, property_of in PROPERTIES.items():
        followed = property_of(text)
        if (followed == followed[0]).all():  # no quotes, no brackets
            continue
        found = find_units(read, followed)
        place, unit, correlation = found.layer[0], int(found.unit[0]), found.correlation[0]
        values = read.values[place]
        state = np.asarray(values["c" if "c" in values else "h"], np.float64)[:, 0, unit]
        state = (state - state.mean()) / (state.std() or 1.0)
        shown = len(text[:TEXT_SHOWN])
        title = f"{name}: {place}, unit {unit}, correlation {correlation:+.2f}"
        bars.append(picture(plot_units(found, title=name), f"units that follow: {name}"))
        coloured.append(text_html(text[:shown], state[:shown], title=title, limit=2.0))
        figure = plot_unit(_first_steps(read, STEPS_SHOWN), unit, place, text=text[:STEPS_SHOWN])
        lines.append(picture(figure, f"{place}, unit {unit} over time"))
    said = paragraph(
        f"Correlation of each unit's state with what it may follow, over {len(text):,} characters."
    )
    colours = paragraph(
        "The text on the colour of a unit's state once it has read the character: blue below the "
        "unit's mean, orange above, in its standard deviations. It is the unit that follows the "
        "property best; how well, the correlation tells."
    )
    return [
        Section("What units follow", said + side_by_side(bars)),
        Section("The text in the colours of units", colours + "".join(coloured)),
        Section("These units over time", side_by_side(dict.fromkeys(lines))),
    ]


def _gates(read: Trace) -> list[Section]:
    if not any(name in GATES for values in read.values.values() for name in values):
        return []
    shares = saturation(read)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(place)}</th><td>{gate}</td>'
        f"<td>{100 * left.mean():.1f} %</td>"
        f"<td>{100 * shares.right[place][gate].mean():.1f} %</td></tr>"
        for place, gates in shares.left.items()
        for gate, left in gates.items()
    )
    said = paragraph(
        "A gate is shut below 0.1 and open above 0.9. Each point is a unit: far right its gate is "
        "open most of the time, far up it is shut."
    )
    head = "<tr><th>layer</th><th>gate</th><th>shut</th><th>open</th></tr>"
    drawn = picture(plot_saturation(shares), "shares of time for which gates are open and shut")
    return [Section("Saturation of gates", f"{said}{drawn}<table>{head}{rows}</table>")]


def _horizon(read: Trace, layer: Any) -> list[Section]:
    try:
        horizon = memory_horizon(read, layer)
    except ValueError:  # a cell without a gate that keeps
        return []
    said = paragraph(
        "How many steps it takes until 1/e of what a unit holds is left, by its gate that keeps."
    )
    drawn = picture(plot_memory_horizon(horizon), "memory horizons of units")
    return [Section("Memory horizon", said + drawn)]


def _flow(layer: Any, params: Params, xs: Any, lengths: Any) -> Section:
    if lengths is not None:  # rows that end together, so that a mean over them means something
        xs = xs[: int(np.min(lengths))]
    flow = gradient_flow(layer, params, xs)
    said = paragraph(
        "Norm of the derivative of the sum of the last outputs by state and by input of each step "
        "before, the mean over the sequences."
    )
    drawn = (
        picture(plot_gradient_flow(flow, of=of), f"norm of the derivative by {name} over steps")
        for of, name in (("state", "the state"), ("x", "the input"))
    )
    return Section("Gradient through time", said + side_by_side(drawn))


def _spectrum(layer: Any, params: Params, row: Any) -> Section:
    title = "Jacobian of the state"
    parts = dict(getattr(layer, "layers", {"": layer})).values()
    if any(isinstance(part, Bidirectional) for part in parts):
        why = "Left out: a layer that reads in both directions has no state that steps forward."
        return Section(title, paragraph(why))
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(layer.zero_state)))
    if size > LARGEST_JACOBIAN:
        why = f"Left out: the state has {size:,} numbers, more than {LARGEST_JACOBIAN:,}."
        return Section(title, paragraph(why))
    row = row[: WINDOW * WINDOWS]
    window = min(WINDOW, len(row))
    spectrum = jacobian_spectrum(layer, params, row, window=window)
    said = paragraph(
        f"Singular values of the derivative of the state by the state {window} steps before: 1 is "
        "what passes unchanged. The largest Lyapunov exponent tells by how much, in nats a step, a "
        "small change grows, or shrinks below zero."
    )
    drawn = picture(plot_jacobian_spectrum(spectrum), "singular values by rank")
    return Section(title, said + drawn)
