"""Plots for the tables of docs/benchmarks/: the time of each library relative to torch.

    python benchmarks/plot.py docs/benchmarks/speed.md     # redraws its plots

``speed.py`` calls this script for the page it has written.  A library has the same colour in all
plots; those of lstm_jax are blue.
"""

import argparse
import pathlib
import re

COLOURS = {
    "lstm_jax, all devices": "#08306b",
    "lstm_jax": "#2171ff",
    "lstm_jax, scan": "#9ecae1",
    "torch": "#e6550d",
    "onnxruntime": "#fdae6b",
    "nnx LSTMCell": "#31a354",
    "nnx OptimizedLSTMCell": "#a1d99b",
    "linen LSTMCell": "#756bb1",
    "linen OptimizedLSTMCell": "#cbc9e2",
    "Haiku": "#d4a400",
    "Equinox": "#e377c2",
    "Keras on JAX": "#8c564b",
    "products alone, all devices": "#636363",
    "products alone": "#bdbdbd",
}
SECTIONS = {"train": "Training step, milliseconds", "infer": "Inference, milliseconds"}
WORDS = {"train": "training step", "infer": "forward pass"}


def medians(page: str, section: str) -> dict[str, dict[str, float]]:
    """The milliseconds in a section's table, by shape and library.

    Example:
      >>> lines = ["## Inference, milliseconds", "", "| (T, B, D, H) | lstm_jax | torch |"]
      >>> lines += ["| --- | --- | --- |", "| (6, 2, 3, 4) | 1.5 (1.2–1.9) |  |"]
      >>> medians("\\n".join(lines), "Inference, milliseconds")
      {'(6, 2, 3, 4)': {'lstm_jax': 1.5}}
    """
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.M)
    if found is None:
        return {}
    table = re.findall(r"^\| (\(.*) \|$", found[1], re.MULTILINE)
    (_, *names), *rows = ([cell.strip() for cell in line.split("|")] for line in table)
    return {
        shape: {
            name: float(cell.split()[0]) for name, cell in zip(names, cells, strict=True) if cell
        }
        for shape, *cells in rows
    }


def plot(times: dict[str, dict[str, float]], what: str, path: pathlib.Path) -> None:
    """Plots each library's time relative to torch, or to lstm_jax if torch was not measured."""
    from matplotlib.figure import Figure

    measured = [name for name in COLOURS if any(name in row for row in times.values())]
    base = "torch" if all("torch" in row for row in times.values()) else "lstm_jax"
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(measured)
    for n, name in enumerate(measured):
        bars = {m: row[name] / row[base] for m, row in enumerate(times.values()) if name in row}
        places = [m + width * (n + 0.5) - 0.42 for m in bars]
        axes.bar(places, list(bars.values()), 0.9 * width, label=name, color=COLOURS[name])
    axes.axhline(1.0, color=COLOURS[base], linewidth=1, zorder=0)
    axes.set_xticks(range(len(times)), [shape.replace(" 2 ×", "\n2 ×") for shape in times])
    axes.tick_params(axis="x", labelsize=7, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel(f"time of a {WORDS[what]}, {base} = 1")
    axes.set_xlabel("(T, B, D, H)")
    figure.legend(loc="outside upper center", fontsize=7.5, ncols=5, frameon=False)
    figure.savefig(path, dpi=200)


def draw(page: pathlib.Path) -> None:
    """Writes the plots for a page of tables next to that page."""
    text = page.read_text("utf-8")
    for what, section in SECTIONS.items():
        if times := medians(text, section):
            plot(times, what, page.with_name(f"{page.stem}_{what}.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Plots the tables of a page of benchmarks.")
    parser.add_argument("pages", nargs="+", type=pathlib.Path, metavar="PAGE")
    for page in parser.parse_args().pages:
        draw(page)
