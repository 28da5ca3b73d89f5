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
# # Vanishing gradients
#
# At the end of this notebook you will know
#
# - why the gradient of a plain recurrent network vanishes, and why that of an LSTM need not;
# - how to measure it exactly, over a thousand steps, before you train anything;
# - why a new LSTM may forget, too, and how this depends on its biases;
# - the consequence for learning: a task that the LSTM learns and the plain network does not.
#
# The notebook takes about a minute on two cores. [01_equations_to_text](01_equations_to_text.ipynb)
# explains the LSTM's gates.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import display

from lstm_jax import LSTMCell, unroll
from lstm_jax.cells import PeepholeLSTMCell, RNNCell
from lstm_jax.inspect import gradient_flow, plot_gradient_flow, trace

# %matplotlib inline
plt.rcParams.update({"figure.figsize": (6, 4), "figure.constrained_layout.use": True})
COLOURS = {"Elman": "#d55e00", "LSTM": "#0072b2", "peephole LSTM": "#009e73"}

# %% [markdown]
# ## Two ways back
#
# Let the loss depend on the last step $T$, and let the relevant input be at step $t$. Training can
# learn this dependency only if a change of the state at $t$ changes the loss, that is, if the
# gradient $\partial L / \partial h_t$ is not zero. By the chain rule, it is a product with one
# factor per step.
#
# The plain network (Elman's) is $h_t = \tanh(W x_t + U h_{t-1} + b)$. Each factor is
#
# $$\frac{\partial h_t}{\partial h_{t-1}} = \mathrm{diag}(1 - h_t^2)\, U.$$
#
# $U$ is initially a rotation, which preserves lengths. But $1 - h_t^2$ is below 1 if a unit is not
# zero, and a product of many numbers below 1 approaches zero exponentially fast.
#
# The LSTM has the cell state $c_t = f_t \circ c_{t-1} + i_t \circ g_t$. Along the cell state the
# factor is only the forget gate $f_t$, which training can make as close to 1 as necessary.
# Hochreiter and Schmidhuber called this the *constant error carousel*. (Their cell of 1997 had no
# forget gate: the factor was 1.)
#
# ## Measuring it
#
# `gradient_flow` computes the norm of the exact derivative of a loss with respect to the state of
# every earlier step, in one backward pass. We use new, untrained networks and 1000 steps of noise.
# The loss is the sum of the last outputs.
#
# In the *peephole* LSTM, the gates also read the cell state.

# %%
STEPS, D, H = 1001, 5, 32
xs = jax.random.normal(jax.random.key(0), (STEPS, D))


def flow(cell):
    return gradient_flow(cell, cell.init(jax.random.key(1), input_size=D), xs)


new = {
    "Elman": flow(RNNCell(H)),
    "LSTM": flow(LSTMCell(H)),
    "peephole LSTM": flow(PeepholeLSTMCell(H)),
}


def print_table(flows):
    lags = [1, 10, 100, 1000]
    print(f"{'steps back':28}", *(f"{lag:>9}" for lag in lags))
    for name, flow in flows.items():
        norms = flow.state / flow.state[-1]
        print(f"{name:28}", *(f"{norms[-1 - lag]:9.1e}" for lag in lags))


print_table(new)

# %% [markdown]
# Is an LSTM no better, then? After 100 steps almost nothing is left. Consider the factor: a new
# forget gate is $\sigma(b_f)$ with a bias of 0, about one half, and $0.5^{100}$ is about
# $10^{-30}$. (Units whose gates happen to be more open retain more, which helps the whole network,
# but not enough. With the often recommended bias of 1, the gate is 0.73, and $0.73^{100}$ is still
# only $10^{-14}$.) Such a network remembers for a few steps. That is enough for the letters of a
# word, but not for this task.
#
# ## Biases that remember
#
# A gate that retains the fraction $f$ in each step remembers for about $1 / (1 - f)$ steps.
# Conversely, to remember for $\tau$ steps, a gate needs $f = 1 - 1/\tau$, that is, a bias of about
# $\log \tau$. Tallec and Ollivier ("Can recurrent neural networks warp time?", ICLR 2018) sample
# each unit's time between 1 and the longest expected one. This is the option `chrono`:

# %%
chrono = {
    "LSTM, chrono=3000": flow(LSTMCell(H, chrono=3000.0)),
    "peephole LSTM, chrono=3000": flow(PeepholeLSTMCell(H, chrono=3000.0)),
}
print_table(new | chrono)

figure = plot_gradient_flow({"Elman": new["Elman"], "LSTM": new["LSTM"], **chrono})
figure.axes[0].legend(loc="upper right", bbox_to_anchor=(1.0, 0.9), frameon=False)
display(figure)

# %% [markdown]
# The axis is logarithmic, so straight lines are exponential decay. Elman's line ends after fewer
# than 200 steps, where the values are too small for float32: beyond that distance the gradient is
# exactly zero, and no amount of training can use it. The line of the plain LSTM falls almost as
# fast, and also ends. With suitable biases, a fifth of the gradient is left after 1000 steps.
#
# (The peephole LSTM's line covers the LSTM's. New peephole weights are zero, so both are initially
# the same network, and differ only after training.)
#
# ## A task: delayed recall
#
# At the first step the network reads one of four symbols, with a flag that marks it. Other symbols
# without a flag follow; their number is the *lag*. After the last one, the network must name the
# first symbol. Guessing is right in a quarter of cases.
#
# The network must remember one symbol and protect it from all later ones, which is exactly the
# purpose of gates.

# %%
SYMBOLS, ROWS, UPDATES = 4, 32, 240


def recall_batch(key, lag):
    symbols = jax.random.randint(key, (lag + 1, ROWS), 0, SYMBOLS)
    flag = jnp.zeros((lag + 1, ROWS, 1)).at[0].set(1.0)
    return jnp.concatenate([jax.nn.one_hot(symbols, SYMBOLS), flag], axis=-1), symbols[0]


def recall_loss(cell, params, key, lag):
    xs, first = recall_batch(key, lag)
    state, _ = unroll(cell, params["cell"], xs)
    scores = state.h @ params["readout"]
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, first)
    return losses.mean(), (scores.argmax(-1) == first).mean()


optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(3e-2, UPDATES)),
)


@functools.partial(jax.jit, static_argnames=("cell", "lag"))
def learned(cell, lag, key):
    """Trains in one program; returns the parameters, and the accuracy at each update."""
    glorot = jax.nn.initializers.glorot_uniform()
    params = {
        "cell": cell.init(key, input_size=SYMBOLS + 1),
        "readout": glorot(jax.random.fold_in(key, 1), (H, SYMBOLS)),
    }

    def update(carried, key):
        params, opt_state = carried
        gradient = jax.grad(lambda params: recall_loss(cell, params, key, lag), has_aux=True)
        gradients, accuracy = gradient(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), opt_state), accuracy

    keys = jax.random.split(jax.random.fold_in(key, 2), UPDATES)
    (params, _), accuracies = jax.lax.scan(update, (params, optimizer.init(params)), keys)
    return params, accuracies


# %%
LAGS = [10, 100, 200]
trained, curves = {}, {}
for lag in LAGS:
    cells = {
        "Elman": RNNCell(H),
        "LSTM": LSTMCell(H, chrono=3.0 * lag),
        "peephole LSTM": PeepholeLSTMCell(H, chrono=3.0 * lag),
    }
    for name, cell in cells.items():
        params, accuracies = learned(cell, lag, jax.random.key(0))
        trained[name, lag] = cell, params["cell"]
        curves[name, lag] = np.asarray(accuracies)

figure, panels = plt.subplots(1, len(LAGS), sharey=True)
for panel, lag in zip(panels, LAGS, strict=True):
    for (name, colour), dashes in zip(COLOURS.items(), ("-", "--", ":"), strict=True):
        means = 100 * curves[name, lag].reshape(-1, 12).mean(1)  # over 12 updates each
        panel.plot(np.arange(6, UPDATES, 12), means, color=colour, linestyle=dashes, label=name)
    panel.axhline(100 / SYMBOLS, color="0.8", linewidth=1, zorder=0)
    panel.set_title(f"lag {lag} steps", fontsize="medium")
panels[0].set_ylabel("accuracy (%)")
panels[1].set_xlabel("training step")
handles, labels = panels[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
plt.show()

for (name, lag), accuracies in curves.items():
    print(f"lag {lag:3}: {name:14} {accuracies[-24:].mean():4.0%} right at the end")
assert all(curves["LSTM", lag][-24:].mean() > 0.7 for lag in LAGS)
assert all(curves["Elman", lag][-24:].mean() < 0.5 for lag in LAGS[1:])

# %% [markdown]
# With a lag of 10 all of them learn the task, and the simplest learns it first. With a lag of 100
# or more, the Elman network remains at the level of guessing: it cannot learn that the first symbol
# is relevant. Both LSTMs learn the task in a few hundred steps.
#
# ## What the state still knows
#
# `trace` returns the state of every step. We use it to measure how long the networks that were
# trained for a lag of 100 store the symbol. From half of 512 new sequences, we compute the mean
# state for each symbol. For the other half, we predict the symbol whose mean state is the nearest.


# %%
def readable(states, symbols):
    """How often the nearest mean state is that of the symbol, [T], for states [T, B, H]."""
    half = len(symbols) // 2
    known, asked = states[:, :half], states[:, half:]
    means = np.stack([known[:, symbols[:half] == n].mean(1) for n in range(SYMBOLS)])
    spread = known.std(1, keepdims=True) + 1e-6
    distances = np.square((asked - means[:, :, None]) / spread).sum(-1)  # [symbols, T, B / 2]
    return (distances.argmin(0) == symbols[half:]).mean(1)


batches = [recall_batch(key, lag=100) for key in jax.random.split(jax.random.key(5), 16)]
xs = jnp.concatenate([xs for xs, _ in batches], axis=1)
first = np.concatenate([first for _, first in batches])

figure, axes = plt.subplots()
for name, field, dashes in (("LSTM", "c", "--"), ("Elman", "h", "-")):
    states = np.asarray(trace(*trained[name, 100], xs, names=field).values["cell"][field])
    share = 100 * readable(states, first)
    axes.plot(share, color=COLOURS[name], linestyle=dashes, label=f"{name}, from ${field}_t$")
axes.axhline(100 / SYMBOLS, color="0.8", linewidth=1, zorder=0)
axes.set(xlabel="time since the symbol (steps)", ylabel="symbol told correctly (%)", ylim=(0, 105))
axes.legend(frameon=False, loc="center right")
plt.show()

# %% [markdown]
# The LSTM's cell state identifies the symbol at any time. The Elman network has lost the symbol
# after about ten steps, so the gradient at the end contains no information about the start.
# Forgetting in the forward pass and vanishing gradients in the backward pass have the same cause.
#
# ## Where to go from here
#
# - `jacobian_spectrum` in `lstm_jax.inspect` computes all directions instead of only the norm, and
#   the Lyapunov exponent.
# - [02_inside_the_gates](02_inside_the_gates.ipynb) shows what a trained network stores in its
#   state.
# - `chrono` is an option of every cell with gates, in a config as well: `--model.cell
#   "lstm(chrono=300.0)"`.
