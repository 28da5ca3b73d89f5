"""Compares the LSTM initialisation of lstm_jax with Flax, Keras and torch, on five tasks.

    python experiments/initialisation/study.py runs/initialisation

trains the missing runs, two sweeps for each task, and writes the table and the plot of
docs/initialisation.md.
"""

import pathlib
import statistics
import sys

import numpy as np
from matplotlib.figure import Figure

import lstm_jax
from lstm_jax.data import fetch
from lstm_jax.train import load_config, read_metrics
from lstm_jax.train.sweep import sweep

HERE = pathlib.Path(__file__).parent
LIBRARIES = {
    "lstm_jax": "lstm",
    "Flax": 'lstm(recurrent_kernel_init="joint_orthogonal")',
    "Keras": (
        'lstm(kernel_init="joint_glorot_uniform", recurrent_kernel_init="joint_orthogonal", '
        "forget_bias=1.0)"
    ),
    "torch": (
        'lstm(kernel_init="torch_uniform", recurrent_kernel_init="torch_uniform", '
        'bias_init="torch_bias")'
    ),
}
"""Cells with each library's LSTM initialisation; Flax's is that of ``nnx.OptimizedLSTMCell``, and
``nnx.LSTMCell`` has the same as lstm_jax.
"""

VARIANTS = {
    "the former default": 'lstm(kernel_init="glorot_uniform", forget_bias=1.0)',
    "lstm_jax with forget bias 1": "lstm(forget_bias=1.0)",
}
"""Cells that differ from the default of lstm_jax in one or two points."""

RATES = (1e-2,)  # the best on the validation data is reported
SEEDS = range(5)
REPORTED = {  # the metric of each task in the table
    "adding": "test/loss",
    "japanese_vowels": "test/accuracy",
    "pen_digits": "test/accuracy",
    "python_reference": "validation/loss",
    "etth1": "test/mse",
}


def write_pen_digits():
    """Converts the published files: a line per digit with eight points and ten class flags."""
    for part, end in (("train", "tra"), ("test", "tes")):
        rows = np.loadtxt(fetch(f"pen_digits/pendigits.{end}"), str, delimiter=",")
        labels = [flags.index("1") for flags in rows[:, 16]]
        xs = rows[:, :16].astype(np.float32).reshape(-1, 8, 2)
        np.savez(HERE / f"pen_digits_{part}.npz", xs=xs, labels=labels)


def trained(task, rate, folder):
    """The points of a task with one learning rate, by cell name."""
    config = load_config(HERE / f"{task}.toml", {"optimizer.learning_rate": str(rate)})
    groups = {}
    for name, cells in (("libraries", LIBRARIES), ("variants", VARIANTS)):
        axes = {"model.cell": list(cells.values()), "train.seed": list(SEEDS)}
        points = iter(sweep(config, axes, folder / name / f"{task}_{rate:g}"))
        groups |= {cell: [next(points) for _ in SEEDS] for cell in cells}
    return groups


def mean_of(points, metric):
    """Mean and sample deviation of a metric, such as ``test/loss``, over points."""
    split, name = metric.split("/")
    values = [point.results[split][name] for point in points]
    return statistics.fmean(values), statistics.stdev(values)


def curves(points):
    """Steps, and the validation loss at each of them ``[points, steps]``."""
    lines = [read_metrics(point.folder / "metrics.jsonl") for point in points]
    lines = [[line for line in one if "validation/loss" in line] for one in lines]
    return [line["step"] for line in lines[0]], np.array(
        [[line["validation/loss"] for line in one] for one in lines]
    )


def main(folder):
    print(lstm_jax.tune_cpu())
    lstm_jax.tune.cache_compiled()
    write_pen_digits()
    sys.path.insert(0, str(HERE))  # contains adding.py
    studied = {(rate, task): trained(task, rate, folder) for rate in RATES for task in REPORTED}

    figure = Figure(figsize=(18, 3.6), layout="constrained")
    header = ["", *(f"{task}: {metric}" for task, metric in REPORTED.items())]
    rows = {name: [name] for name in (*LIBRARIES, *VARIANTS)}
    for axes, task in zip(figure.subplots(1, len(REPORTED)), REPORTED, strict=True):
        for name in rows:
            of_rates = {rate: studied[rate, task][name] for rate in RATES}
            rate = min(RATES, key=lambda rate: mean_of(of_rates[rate], "validation/loss")[0])
            mean, deviation = mean_of(of_rates[rate], REPORTED[task])
            rows[name].append(f"{mean:.4g} ± {deviation:.2g} ({rate:g})")
            if name in VARIANTS:
                continue
            steps, losses = curves(of_rates[rate])
            (line,) = axes.plot(steps, losses.mean(0), label=name)
            low, high = losses.min(0), losses.max(0)
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        axes.set(title=task, xlabel="step", yscale="log")
        axes.grid(alpha=0.25, which="both")
    figure.axes[0].set_ylabel("validation loss")
    figure.axes[0].legend(frameon=False)
    figure.savefig(folder / "initialisation.png", dpi=200)
    for row in (header, ["---"] * len(header), *rows.values()):
        print("|", " | ".join(row), "|")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
