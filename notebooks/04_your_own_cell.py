# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own cell
#
# At the end of this notebook you will know
#
# - how to write a new recurrent cell in ten lines;
# - how to check that it computes what you intended;
# - why it immediately runs at full speed, with the same values as the plain loop;
# - how to train it from a config file, without changing the library.
#
# The notebook takes about a minute on two cores. You should know what a gate is:
# [01_equations_to_text](01_equations_to_text.ipynb) explains it.

# %%
import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from jax.test_util import check_grads

from lstm_jax import LSTM, Bidirectional, LSTMCell, choose_engine, stream, unroll
from lstm_jax.nnx import Cell
from lstm_jax.train import read_metrics

plt.rcParams.update({"figure.figsize": (6, 4), "figure.constrained_layout.use": True})

# %% [markdown]
# ## The idea
#
# The LSTM has four products per step, and two state vectors. How good is a cell with a single gate?
# Take the plain recurrent network, whose new state would be $s_t$, and let a gate $u_t$ determine
# how much of the old state is retained:
#
# $$
# \begin{aligned}
# u_t &= \sigma(W_u x_t + U_u h_{t-1} + b_u + 1) \\
# s_t &= \tanh(W_s x_t + U_s h_{t-1} + b_s) \\
# h_t &= u_t \circ h_{t-1} + (1 - u_t) \circ s_t
# \end{aligned}
# $$
#
# This is the *update gate RNN* of Collins, Sohl-Dickstein and Sussillo ("Capacity and Trainability
# in Recurrent Neural Networks", ICLR 2017). It has half the weights of an LSTM. The library does
# not contain it. Because of the 1 in the gate, a new network retains about 73 % of its state at
# each step.
#
# ## Ten lines
#
# A cell defines three things: its parameters, its initial state, and how it computes one step from
# the previous one. We write it to a file, so that a config can use it.

# %%
# %%writefile my_cells.py
import dataclasses

import jax
import jax.numpy as jnp

from lstm_jax.cells import BaseCell, RNNState, affine, like, named


@dataclasses.dataclass(frozen=True)
class UpdateGateCell(BaseCell):
    def parameters(self, input_size):
        D, H = input_size, self.hidden_size
        return {
            "w_ih": self.declare("kernel", (D, 2 * H), gates=2),
            "w_hh": self.declare("recurrent_kernel", (H, 2 * H), gates=2),
            "b": self.declare("bias", (2 * H,)),
        }

    def zero_state(self, batch_shape=()):
        return RNNState(h=self.zeros(*batch_shape, self.hidden_size))

    def equations(self, params, state, x):
        u, s = jnp.split(affine(params, state.h, x), 2, -1)
        u, s = named("u", jax.nn.sigmoid(u + 1)), named("s", jnp.tanh(s))
        state = like(RNNState(h=u * state.h + (1 - u) * s), state)
        return state, state.h


# %% [markdown]
# Line by line:
#
# - `parameters` declares each array: its role, which selects its initialiser, and its shape. One
#   matrix contains both pre-activations side by side, so one product computes both; `gates=2`
#   initialises the two halves separately.
# - `zero_state` is a NamedTuple. Ours has one field, `h`, and `RNNState` is just that.
# - `affine` is `x @ w_ih + h @ w_hh + b`, summed in float32 even if the arrays are bfloat16.
# - `named` does not change a value; it gives the value a name for `lstm_jax.inspect`.
# - `like` gives the new state the types of the old one, as every loop in JAX requires.
# - A frozen dataclass is hashable, so JAX can compile one program for each cell and cache it.
#
# `init`, a `step` that checks its arguments, types and learned initial states come from
# `BaseCell`.

# %%
from my_cells import UpdateGateCell

cell = UpdateGateCell(hidden_size=32)
params = cell.init(jax.random.key(0), input_size=8)
xs = jax.random.normal(jax.random.key(1), (100, 4, 8))  # time, batch, features
state, ys = unroll(cell, params, xs)
print({name: array.shape for name, array in params.items()}, ys.shape)

# %% [markdown]
# ## Is it right?
#
# Write the equations a second time, in NumPy, from the formulas and not from the code, and
# compare. In float64, rounding errors are negligible, so any difference is a mistake. `check_grads`
# compares the gradient with finite differences.


# %%
def by_hand(params, xs):
    w_ih, w_hh, b = (np.asarray(params[name]) for name in ("w_ih", "w_hh", "b"))
    H = w_hh.shape[0]
    h, hs = np.zeros(H), []
    for x in xs:
        u = 1 / (1 + np.exp(-(x @ w_ih[:, :H] + h @ w_hh[:, :H] + b[:H] + 1)))
        s = np.tanh(x @ w_ih[:, H:] + h @ w_hh[:, H:] + b[H:])
        h = u * h + (1 - u) * s
        hs.append(h)
    return np.stack(hs)


with jax.enable_x64(True):
    cell64 = UpdateGateCell(hidden_size=32, param_dtype="float64")
    params64 = cell64.init(jax.random.key(0), input_size=8)
    row = np.asarray(xs[:, 0], np.float64)
    np.testing.assert_allclose(unroll(cell64, params64, row)[1], by_hand(params64, row), rtol=1e-10)
    check_grads(
        lambda params: unroll(cell64, params, row[:5])[1], (params64,), order=1, modes=["rev"]
    )
print("values and gradients agree")

# %% [markdown]
# ## Everything else comes with it
#
# The code for rows of different lengths, stacks, both directions, single steps and Flax modules
# does not know our cell, but it can run it.

# %%
lengths = jnp.array([100, 60, 10, 0])
state, ys = unroll(cell, params, xs, lengths=lengths)
print("after its end a row is zero:", bool((ys[60:, 1] == 0).all()))

deep = LSTM(32, num_layers=2, cell=UpdateGateCell, dropout=0.1)
_, ys = deep.apply(deep.init(jax.random.key(2), input_size=8), xs, lengths=lengths)
print("two layers:", ys.shape)

both = Bidirectional(cell)
_, ys = both.apply(both.init(jax.random.key(2), input_size=8), xs)
print("both directions:", ys.shape)

step = stream(cell, params, batch_shape=(4,))
state, y = step(step.initial_state(), xs[0])
print("one step of a stream:", y.shape)

module = nnx.RNN(Cell(8, cell, rngs=nnx.Rngs(0)))
print("in Flax, batch first:", module(xs.swapaxes(0, 1)).shape)

# %% [markdown]
# ## At full speed
#
# `unroll` has several engines. `choose_engine` returns the one that is used for a cell, and
# explains why the others are not:

# %%
choice = choose_engine(cell, num_steps=100, batch_shape=(4,), platform="cpu")
print(f"{choice.engine}: {choice.reason}")
for engine, why in choice.rejected.items():
    print(f"  not {engine}: {why}")

# %% [markdown]
# `"scan"` is the plain `jax.lax.scan` over `cell.step`. When JAX differentiates it, the backward
# loop carries the gradient of *every weight* and adds to it at each step. `"fused"` works on any
# cell: its backward loop carries only the gradient of the state, and the gradients of the weights
# are computed for a whole block of steps at once, as one large matrix product.
#
# We can see it in the traced program. This function counts the numbers that one step of the
# innermost backward loop passes to the next:


# %%
def loops(program):
    """Every scan in a traced program, each before the scans that it contains."""
    for equation in program.eqns:
        if equation.primitive.name == "scan":
            yield equation
        if "jaxpr" in equation.params:
            yield from loops(equation.params["jaxpr"])


def carried_backwards(cell, engine, input_size=64, batch=8, steps=128):
    params = jax.eval_shape(functools.partial(cell.init, input_size=input_size), jax.random.key(0))
    xs = jnp.zeros((steps, batch, input_size))
    gradient = jax.grad(lambda params: unroll(cell, params, xs, engine=engine)[1].sum())
    innermost = [
        loop for loop in loops(jax.make_jaxpr(gradient)(params)) if loop.params["reverse"]
    ][-1]
    first = innermost.params["num_consts"]
    carry = innermost.invars[first : first + innermost.params["num_carry"]]
    return sum(value.aval.size for value in carry)


sizes = [32, 64, 128, 256, 512]
figure, axes = plt.subplots()
for engine, colour, marker in (("scan", "#d55e00", "s"), ("fused", "#0072b2", "o")):
    carried = [carried_backwards(UpdateGateCell(size), engine) for size in sizes]
    axes.loglog(sizes, carried, marker=marker, color=colour, label=f'engine="{engine}"')
axes.set(xlabel="hidden size H (units)", ylabel="carried from step to step (numbers)")
axes.set_xticks(sizes, map(str, sizes))
axes.minorticks_off()
axes.grid(alpha=0.25)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# With the plain scan (orange) this number grows with the square of the hidden size, since it
# includes the weights. With the fused engine (blue) it grows linearly, with the size of the state.
# At 512 units, each step reads and writes about 150 times less. `docs/performance.md` has measured
# times.
#
# Both engines must give the same gradient, up to rounding in float32:


# %%
def loss(params, engine):
    return jnp.square(unroll(cell, params, xs, engine=engine)[1]).sum()


plain, fused = (jax.grad(loss)(params, engine) for engine in ("scan", "fused"))
for name in params:
    difference = float(jnp.abs(plain[name] - fused[name]).max() / jnp.abs(plain[name]).max())
    print(f"{name:5} largest difference, relative to the largest gradient: {difference:.0e}")
    assert difference < 1e-5

# %% [markdown]
# ## In a config
#
# A config names a cell by its name in `lstm_jax.CELLS`, or as `module.Class`. The module is found
# in the folder in which the command runs, which contains our file.

# %%
CONFIG = """\
task = "next_character"

[data]
text = "python_reference"
validation_fraction = 0.02
lanes = 32
window = 64

[model]
cell = "my_cells.UpdateGateCell"
hidden_size = 128
embedding_size = 32
dropout = 0.0

[optimizer]
learning_rate = 1e-2

[train]
num_steps = 300
log_every = 5
eval_every = 300
checkpoint_every = 300
sample_length = 1
"""
with open("small.toml", "w") as file:
    file.write(CONFIG)

# %% [markdown]
# In a shell, the commands are
#
# ```
# lstm-jax train small.toml --workdir runs/update_gate
# lstm-jax train small.toml --workdir runs/lstm --model.cell lstm
# ```
#
# The notebook does the same in Python, for our cell, the plain network without a gate, and the
# LSTM:

# %%
CELLS = {"update gate": "my_cells.UpdateGateCell", "no gate": "rnn", "LSTM": "lstm"}
curves, rows = {}, {}
for name, text in CELLS.items():
    folder = pathlib.Path("runs", name.replace(" ", "_"))
    flags = ["--workdir", folder, "--model.cell", text]
    subprocess.run(
        [sys.executable, "-m", "lstm_jax", "train", "small.toml", *flags],
        check=True,
        capture_output=True,
    )
    metrics = read_metrics(folder / "metrics.jsonl")
    curves[name] = [(line["step"], line["train/loss"]) for line in metrics if "train/loss" in line]
    rows[name] = [line["validation/loss"] for line in metrics if "validation/loss" in line][-1]

figure, axes = plt.subplots()
for (name, curve), colour, dashes in zip(
    curves.items(), ("#0072b2", "#d55e00", "0.3"), ("-", "--", ":"), strict=True
):
    axes.plot(*zip(*curve, strict=True), color=colour, linestyle=dashes, label=name)
axes.set(xlabel="training step", ylabel="training loss (nats a character)", ylim=(1.3, 3.0))
axes.grid(alpha=0.25)
axes.legend(frameon=False)
plt.show()

count = {"update gate": UpdateGateCell(128), "LSTM": LSTMCell(128)}
for name, loss in rows.items():
    print(f"{name:12} validation loss {loss:.3f}")
for name, kind in count.items():
    arrays = jax.eval_shape(functools.partial(kind.init, input_size=32), jax.random.key(0))
    print(f"{name:12} {sum(a.size for a in arrays.values()):,} parameters in the cell")

# %% [markdown]
# All three have 128 units. The network without a gate is the best for the first 100 steps, since it
# has the least to learn. Then the two with gates overtake it. One gate is about as good as the
# LSTM's three here, with half the weights. This says little about longer texts and longer training,
# but the experiment took only ten lines and a config.
#
# ## Where to go from here
#
# - `docs/your_own_cell.md` describes what else a cell can define: options, regularisers, linear
#   recurrences, cells without the base class.
# - `docs/cells.md` describes the existing cells; you can start from the file of any of them.
# - [02_inside_the_gates](02_inside_the_gates.ipynb) shows trained gates by the names that `named`
#   gives.
