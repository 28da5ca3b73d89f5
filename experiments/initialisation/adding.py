"""The adding problem: the sum of two marked numbers (Hochreiter & Schmidhuber 1997)."""

import dataclasses

import grain
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstm_jax.config import RecurrentConfig
from lstm_jax.nnx import LSTM
from lstm_jax.tasks import Section, Task, option

EVALUATED = {"validation": 1, "test": 2}  # seeds; training uses the run's seed


def sequences(seed, rows, steps):
    """Random numbers with one marked number in each half, and the sum of these two."""
    rng = np.random.default_rng(seed)
    numbers, marks = rng.uniform(size=(rows, steps)), np.zeros((rows, steps))
    marks[np.arange(rows), rng.integers(0, steps // 2, rows)] = 1
    marks[np.arange(rows), rng.integers(steps // 2, steps, rows)] = 1
    xs = np.stack([numbers, marks], -1).astype(np.float32)
    return {"xs": xs, "sums": (numbers * marks).sum(1).astype(np.float32)}


class Adder(nnx.Module):
    """Predicts the sum from the last output; inputs are ``[B, T, 2]``, sums are ``[B]``."""

    def __init__(self, hidden_size, cell, rngs):
        self.lstm = LSTM(2, hidden_size, cell=cell, rngs=rngs)
        self.readout = nnx.Linear(hidden_size, 1, rngs=rngs)

    def __call__(self, xs):
        return self.readout(self.lstm(xs)[:, -1])[:, 0]


@dataclasses.dataclass(frozen=True)
class AddingData(Section):
    steps: int = option(40, "steps of a sequence", at_least=2)
    batch_size: int = option(32, "sequences per training step", at_least=1)


@dataclasses.dataclass(frozen=True)
class Adding(Task):
    """Mean squared error of the sum; a constant answer of 1 has an error of 1/6."""

    data: AddingData
    model: RecurrentConfig
    unit = "sequences"
    loss_unit = "mean squared error"
    splits = ("validation", "test")

    def build(self, rngs):
        return Adder(self.model.hidden_size, self.model.cell_factory, rngs)

    def batches(self, seed):
        rows, steps = self.data.batch_size, self.data.steps
        return grain.MapDataset.range(10**9).map(lambda k: sequences((seed, 0, k), rows, steps))

    def loss(self, model, carry, batch, rngs):
        return jnp.square(model(batch["xs"]) - batch["sums"]).mean(), carry

    def evaluate(self, model, split):
        held_out = sequences((0, EVALUATED[split]), 1000, self.data.steps)
        errors = np.asarray(model(held_out["xs"])) - held_out["sums"]
        return {"loss": float(np.square(errors).mean())}
