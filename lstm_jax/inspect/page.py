"""A self-contained HTML page, with embedded plots, on what a model computes from its input."""

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
from lstm_jax.inspect.models import cells_by_path
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
TEXT_SHOWN = 1200  # characters of the coloured text
WINDOW, WINDOWS = 32, 3  # steps per Jacobian, and the number of Jacobians
LARGEST_JACOBIAN = 2048  # numbers in a state; a larger Jacobian takes minutes

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
    """A section of the page.

    Attributes:
      title: the heading.
      body: HTML.
    """

    title: str
    body: str


def page(title: str, sections: Sequence[Section], style: str = "") -> str:
    """Returns the sections as one self-contained HTML document; ``style`` is additional CSS.

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
    """An SVG as an embedded image.

    >>> image("<svg/>", "nothing")
    '<img alt="nothing" src="data:image/svg+xml;base64,PHN2Zy8+">'
    """
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def figure_image(figure: "Figure", alt: str) -> str:
    """A matplotlib figure as an embedded image."""
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return image(svg.getvalue(), alt)


def side_by_side(parts: Iterable[str]) -> str:
    """Parts of the page in as many columns as fit."""
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


def layer_sections(
    layer: Any,
    params: Params,
    xs: Any,
    *,
    lengths: Any = None,
    text: str | None = None,
) -> list[Section]:
    """Sections on what recurrent layers compute from an input.

    Args:
      layer: a functional cell or layer that runs forwards in time.
      params: its parameters.
      xs: the input, ``[T, B, D]``.  For ``[T, B, *space, D]``, the sections show the position in
        the middle, without gradients through time and the Jacobian.
      lengths: the lengths of its rows; None for all T steps.
      text: the characters that row 0 reads, if the input is text.
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
    """The values at the middle of a grid, ``[T, B, H]``."""
    middle = (slice(None), slice(None), *(size // 2 for size in space))
    values = {
        layer: {name: array[middle] for name, array in arrays.items()}
        for layer, arrays in read.values.items()
    }
    return read._replace(values=values)


def _layers(table: Summary) -> Section:
    caption = paragraph(
        "State is the memory of one sequence. The training column is the memory that training "
        "needs for each step of each sequence. A multiplication with an addition counts as two "
        "operations."
    )
    return Section("Layers", f'<div class="wide">{table._repr_html_()}</div>{caption}')


def _drawings(layer: Any) -> Section:
    kinds = {type(cell).__name__: cell for cell in cells_by_path(layer).values()}
    caption = paragraph(
        "One step, drawn from the cell's own equations: the state enters on the left and leaves on "
        "the right, and the input enters from below."
    )
    drawn = (image(str(draw_cell(cell)), f"data flow of {kind}") for kind, cell in kinds.items())
    return Section("The cell", caption + side_by_side(drawn))


def _maps(shown: Trace, text: str | None) -> Section:
    caption = paragraph(
        f"At most {STEPS_SHOWN} steps of the first sequence and {UNITS_SHOWN} units of each layer."
    )
    plots = (
        figure_image(plot_trace(shown, layer, text=text), f"gates and states of {layer} over time")
        for layer in shown.values
    )
    return Section("Gates and states over time", caption + side_by_side(plots))


def _first_units(traced: Trace) -> Trace:
    values = {
        layer: {name: array[..., :UNITS_SHOWN] for name, array in arrays.items()}
        for layer, arrays in traced.values.items()
    }
    return traced._replace(values=values)


def _first_steps(traced: Trace, steps: int) -> Trace:
    values = {
        layer: {name: array[:steps] for name, array in arrays.items()}
        for layer, arrays in traced.values.items()
    }
    return traced._replace(values=values)


def _units(read: Trace, first: int) -> Section:
    """The unit of each layer whose state varies most."""
    caption = paragraph("The unit of each layer whose state varies most, in the first sequence.")
    plots = []
    shown = _first_steps(read, first)
    for layer, values in shown.values.items():
        states = np.asarray(values["c" if "c" in values else "h"], np.float64)
        unit = int(states.reshape(-1, states.shape[-1]).std(0).argmax())
        figure = plot_unit(shown, unit, layer)
        plots.append(figure_image(figure, f"{layer}, unit {unit} over time"))
    return Section("One unit over time", caption + side_by_side(plots))


def _text(read: Trace, text: str) -> list[Section]:
    """Units by the properties of the text that they follow, and the text in their colours."""
    bars, coloured, lines = [], [], []
    for name, property_of in PROPERTIES.items():
        followed = property_of(text)
        if (followed == followed[0]).all():  # no quotes, no brackets
            continue
        found = find_units(read, followed)
        layer, unit, correlation = found.layer[0], int(found.unit[0]), found.correlation[0]
        values = read.values[layer]
        state = np.asarray(values["c" if "c" in values else "h"], np.float64)[:, 0, unit]
        state = (state - state.mean()) / (state.std() or 1.0)
        shown = len(text[:TEXT_SHOWN])
        title = f"{name}: {layer}, unit {unit}, correlation {correlation:+.2f}"
        bars.append(figure_image(plot_units(found, title=name), f"units that follow: {name}"))
        coloured.append(text_html(text[:shown], state[:shown], title=title, limit=2.0))
        figure = plot_unit(_first_steps(read, STEPS_SHOWN), unit, layer, text=text[:STEPS_SHOWN])
        lines.append(figure_image(figure, f"{layer}, unit {unit} over time"))
    caption = paragraph(
        f"Correlation of each unit's state with a property of the text, over {len(text):,} "
        "characters."
    )
    colours = paragraph(
        "The background colour of each character is the state of a unit after it has read the "
        "character: blue below the unit's mean, orange above, in standard deviations. The unit is "
        "the one that follows the property best, with the correlation in the title."
    )
    return [
        Section("What units follow", caption + side_by_side(bars)),
        Section("The text in the colours of units", colours + "".join(coloured)),
        Section("These units over time", side_by_side(dict.fromkeys(lines))),
    ]


def _gates(read: Trace) -> list[Section]:
    if not any(name in GATES for values in read.values.values() for name in values):
        return []
    shares = saturation(read)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(layer)}</th><td>{gate}</td>'
        f"<td>{100 * left.mean():.1f} %</td>"
        f"<td>{100 * shares.right[layer][gate].mean():.1f} %</td></tr>"
        for layer, gates in shares.left.items()
        for gate, left in gates.items()
    )
    caption = paragraph(
        "A gate is shut below 0.1 and open above 0.9. Each point is a unit: on the right, its gate "
        "is open most of the time; at the top, it is shut."
    )
    head = "<tr><th>layer</th><th>gate</th><th>shut</th><th>open</th></tr>"
    drawn = figure_image(
        plot_saturation(shares), "shares of time for which gates are open and shut"
    )
    return [Section("Saturation of gates", f"{caption}{drawn}<table>{head}{rows}</table>")]


def _horizon(read: Trace, layer: Any) -> list[Section]:
    try:
        horizon = memory_horizon(read, layer)
    except ValueError:  # a cell without a gate that retains its state
        return []
    caption = paragraph(
        "The number of steps after which a unit's content has decayed to 1/e, computed from the "
        "gate that retains its state."
    )
    drawn = figure_image(plot_memory_horizon(horizon), "memory horizons of units")
    return [Section("Memory horizon", caption + drawn)]


def _flow(layer: Any, params: Params, xs: Any, lengths: Any) -> Section:
    if lengths is not None:  # cut rows to equal lengths, so that their mean is meaningful
        xs = xs[: int(np.min(lengths))]
    flow = gradient_flow(layer, params, xs)
    caption = paragraph(
        "Norm of the derivative of the sum of the last outputs with respect to the state and the "
        "input of each earlier step, averaged over the sequences."
    )
    drawn = (
        figure_image(
            plot_gradient_flow(flow, of=of), f"norm of the derivative by {name} over steps"
        )
        for of, name in (("state", "the state"), ("x", "the input"))
    )
    return Section("Gradient through time", caption + side_by_side(drawn))


def _spectrum(layer: Any, params: Params, row: Any) -> Section:
    title = "Jacobian of the state"
    parts = dict(getattr(layer, "layers", {"": layer})).values()
    if any(isinstance(part, Bidirectional) for part in parts):
        why = "Left out: a bidirectional layer has no state that is carried forwards only."
        return Section(title, paragraph(why))
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(layer.zero_state)))
    if size > LARGEST_JACOBIAN:
        why = f"Left out: the state has {size:,} numbers, more than {LARGEST_JACOBIAN:,}."
        return Section(title, paragraph(why))
    row = row[: WINDOW * WINDOWS]
    window = min(WINDOW, len(row))
    spectrum = jacobian_spectrum(layer, params, row, window=window)
    caption = paragraph(
        f"Singular values of the derivative of the state with respect to the state {window} steps "
        "before; a perturbation with value 1 keeps its size. The largest Lyapunov exponent is the "
        "growth rate of a small perturbation in nats per step; below zero, the perturbation "
        "shrinks."
    )
    drawn = figure_image(plot_jacobian_spectrum(spectrum), "singular values by rank")
    return Section(title, caption + drawn)
