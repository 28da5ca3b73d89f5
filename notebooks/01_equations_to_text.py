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
# # From equations to text
#
# At the end of this notebook you will know
#
# - what the four gates of an LSTM compute, and why its cell state remembers;
# - how one step becomes a sequence: a `jax.lax.scan` by hand, then `lstm_jax.unroll`;
# - how a character model is trained on a stream of text with optax;
# - how the trained model generates text, and what the temperature does.
#
# You should have used JAX before, but you need not know LSTMs. The notebook takes about a minute on
# two cores and downloads nothing.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from lstm_jax import LSTMCell, LSTMState, lstm_cell, unroll
from lstm_jax.data import encode, ngram_loss, python_reference, stream_windows

plt.rcParams.update({"figure.figsize": (6, 4), "figure.constrained_layout.use": True})
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "0.55"

# %% [markdown]
# ## Why gates?
#
# A recurrent network reads a sequence $x_1, x_2, \dots$ one step at a time. A vector $h_t$, its
# *state*, stores what it knows about the past. The simplest network replaces the state at each
# step:
#
# $$h_t = \tanh(W x_t + U h_{t-1} + b)$$
#
# Information survives only if $U$ happens to preserve it. After some tens of steps, little of an
# input is left in the state, and the gradient that reaches this input in training is equally small.
#
# The LSTM adds a second vector, the *cell state* $c_t$. It is not replaced at each step, but
# preserved and changed a little:
#
# $$c_t = f_t \circ c_{t-1} + i_t \circ g_t \qquad h_t = o_t \circ \tanh(c_t)$$
#
# The product $\circ$ is element-wise. Here
#
# - $g_t$ is the *candidate*: what could be written;
# - $i_t$, the *input gate*, determines how much of it is written;
# - $f_t$, the *forget gate*, determines how much of the old content is retained;
# - $o_t$, the *output gate*, determines how much of it the rest of the network sees.
#
# Gates are numbers between 0 and 1, one for each unit, and each is computed from the input and the
# previous output. With the logistic function $\sigma(z) = 1 / (1 + e^{-z})$:
#
# $$
# \begin{aligned}
# i_t &= \sigma(W_i x_t + U_i h_{t-1} + b_i) & f_t &= \sigma(W_f x_t + U_f h_{t-1} + b_f) \\
# g_t &= \tanh(W_g x_t + U_g h_{t-1} + b_g) & o_t &= \sigma(W_o x_t + U_o h_{t-1} + b_o)
# \end{aligned}
# $$
#
# These are all of the equations. Let us compute one step.

# %% [markdown]
# ## One step by hand
#
# `LSTMCell` stores the sizes and initialises the parameters, which are three arrays. Each array has
# the four gates side by side, in the order i, f, g, o, so one matrix product computes all four.

# %%
cell = LSTMCell(hidden_size=4)
params = cell.init(jax.random.key(0), input_size=3)
for name, array in params.items():
    print(f"{name:5} {array.shape}")
print("b =", params["b"])

# %% [markdown]
# All biases are initially zero. Since $\sigma(0) = 0.5$, a new network retains about half of its
# state from step to step, and must learn to remember longer. (`LSTMCell(4, forget_bias=1.0)` starts
# with $\sigma(1) \approx 0.73$.)
#
# Now the equations, line by line, in NumPy:


# %%
def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def step_by_hand(params, h, c, x):
    z = x @ params["w_ih"] + h @ params["w_hh"] + params["b"]  # all pre-activations, 4H of them
    i, f, g, o = np.split(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, c


x = np.array([1.0, -0.5, 2.0])
weights = {name: np.asarray(array, np.float64) for name, array in params.items()}
h, c = step_by_hand(weights, np.zeros(4), np.zeros(4), x)
print("c =", c)
print("h =", h)

# %% [markdown]
# `lstm_cell` is the same function in JAX. It receives the parameters, the state and an input, and
# returns the new state and the output $h_t$:

# %%
state, y = lstm_cell(params, cell.zero_state(), jnp.asarray(x))
np.testing.assert_allclose(state.c, c, atol=1e-6)
np.testing.assert_allclose(state.h, h, atol=1e-6)
print(state)

# %% [markdown]
# ## A memory made by hand
#
# To see what gates are good for, let us set the weights of one unit ourselves. It reads two numbers
# per step, a value and a flag. It should store the value when the flag is 1, and preserve it until
# the next flag.
#
# A gate with a pre-activation of +10 is open ($\sigma(10) = 0.99995$), and with -10 it is shut. The
# pre-activation of the input gate is therefore 20 times the flag minus 10, that of the forget gate
# is the opposite, and that of the candidate is the value:

# %%
#                   i      f     g     o
w_ih = jnp.array([[0.0, 0.0, 1.0, 0.0], [20.0, -20.0, 0.0, 0.0]])  # rows: value, flag
b = jnp.array([-10.0, 10.0, 0.0, 10.0])
memory = {"w_ih": w_ih, "w_hh": jnp.zeros((1, 4)), "b": b}

rng = np.random.default_rng(4)
values = rng.uniform(-1, 1, 60)
flags = np.isin(np.arange(60), [5, 20, 48]).astype(float)

unit = LSTMState(h=jnp.zeros(1), c=jnp.zeros(1))
contents = []
for value, flag in zip(values, flags, strict=True):
    unit, _ = lstm_cell(memory, unit, jnp.array([value, flag]))
    contents.append(float(unit.c[0]))

figure, axes = plt.subplots()
axes.plot(values, ".", color=GREY, label="value at the input")
axes.plot(np.flatnonzero(flags), values[flags == 1], "o", color=ORANGE, label="value with a flag")
axes.plot(contents, drawstyle="steps-mid", color=BLUE, label="cell state $c_t$")
axes.set(xlabel="time (steps)", ylabel="value (no unit)", ylim=(-1.15, 1.55))
axes.legend(loc="upper center", ncols=3, frameon=False, fontsize="small", columnspacing=1.0)
plt.show()

# %% [markdown]
# The blue line jumps at each flag and is constant in between: the unit stores a number for any
# number of steps, and no other input disturbs it. (It jumps to $\tanh$ of the value, a little less
# than the value.)
#
# The gradient takes the same path backwards. Along the cell state, we have
# $\partial c_t / \partial c_{t-1} = f_t$. While the gate is open, this factor is nearly 1, so the
# gradient reaches back over any number of steps. That is why training can find weights like ours.

# %% [markdown]
# ## From a step to a sequence
#
# The step has the signature that `jax.lax.scan` requires: `(state, x) -> (state, y)`. With the
# parameters bound by `functools.partial`, it is a valid scan body. Time is the first axis.

# %%
xs = jax.random.normal(jax.random.key(1), (50, 3))  # 50 steps of 3 features

last, ys = jax.lax.scan(functools.partial(lstm_cell, params), cell.zero_state(), xs)
print("outputs", ys.shape, " last state", last.h.shape, last.c.shape)

h, c = np.zeros(4), np.zeros(4)
for x in np.asarray(xs, np.float64):
    h, c = step_by_hand(weights, h, c, x)
np.testing.assert_allclose(last.c, c, atol=1e-5)

# %% [markdown]
# `unroll` does the same, and more. It supports batch axes, rows of different lengths, resets
# between documents, and both directions of time. It also reorganises the loop so that the gradient
# is cheap: the scan above accumulates the gradient of every weight *in* its backward loop, whereas
# `unroll` computes these gradients outside the loop, with the same result.

# %%
_, unrolled = unroll(cell, params, xs)
np.testing.assert_allclose(unrolled, ys, atol=1e-6)

batch = jax.random.normal(jax.random.key(2), (50, 8, 3))  # time, batch, features
last, ys = unroll(cell, params, batch)
print("outputs", ys.shape, " last state", last.h.shape)

# %% [markdown]
# ## A text
#
# We train on Python's own language reference, which comes with every Python. Each character is
# represented by a number, its index in the alphabet of the text. The last tenth is held out: the
# model is not trained on it.

# %%
text = python_reference()
alphabet = "".join(sorted(set(text)))
tokens = encode(text, alphabet)
cut = len(tokens) * 9 // 10
train, held_out = tokens[:cut], tokens[cut:]
print(f"{len(text)} characters, {len(alphabet)} different ones\n")
start = text.find("Lambda expressions")
print(text[start : start + 260])

# %% [markdown]
# The model has three parts. A table gives each character a vector (its *embedding*). The LSTM reads
# these vectors. A matrix turns each output $h_t$ into scores, one for each possible next character.
#
# The *loss* is the mean of $-\log p(\text{next character})$, where $p$ is the softmax of the
# scores. It is measured in nats. A loss of $\log 103 \approx 4.6$ means that all 103 characters
# seem equally likely. A loss of $1.4$ means that the model is as unsure as if it chose among
# $e^{1.4} \approx 4$ equally likely characters.

# %%
lstm = LSTMCell(hidden_size=192)
EMBEDDING = 32


def init(key):
    embedding_key, lstm_key, readout_key = jax.random.split(key, 3)
    glorot = jax.nn.initializers.glorot_uniform()
    return {
        "embedding": jax.random.normal(embedding_key, (len(alphabet), EMBEDDING)),
        "lstm": lstm.init(lstm_key, EMBEDDING),
        "readout": glorot(readout_key, (lstm.hidden_size, len(alphabet))),
        "bias": jnp.zeros(len(alphabet)),
    }


def scores(params, state, characters):
    """Scores of the next character after each one; characters are [T, B]."""
    state, hs = unroll(lstm, params["lstm"], params["embedding"][characters], state)
    return state, hs @ params["readout"] + params["bias"]


def loss(params, state, inputs, targets):
    state, predicted = scores(params, state, inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(predicted, targets)
    return losses.mean(), state


# %% [markdown]
# ## Training on a stream
#
# The text is one long sequence, too long to differentiate through at once. It is therefore read in
# windows of 64 characters. The state at the end of a window is the initial state of the next one,
# but the gradient stops at the boundary. This is *truncated backpropagation through time*.
#
# To make a batch, the text is divided into 32 lanes, one for each row. `stream_windows` chooses the
# windows so that each row continues where it stopped. If a row starts a new pass through the text,
# the flag `start` is true, and we reset the state to zero.

# %%
LANES, WINDOW, STEPS = 32, 64, 600
optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.cosine_decay_schedule(8e-3, STEPS)),
)


@jax.jit
def train_step(params, opt_state, state, inputs, targets):
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    (value, state), gradients = value_and_grad(params, state, inputs, targets)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state, state, value


rows = held_out[: len(held_out) // 16 * 16].reshape(16, -1).T  # in 16 lanes, [T, 16]


@jax.jit
def held_out_loss(params):
    return loss(params, lstm.zero_state((16,)), rows[:-1], rows[1:])[0]


@functools.partial(jax.jit, static_argnames="length")
def continued(params, prompt, length, temperature, key):
    """Characters that the model generates after a prompt, [length]."""
    state, predicted = scores(params, lstm.zero_state((1,)), prompt[:, None])

    def write(carried, key):
        state, predicted = carried
        character = jax.random.categorical(key, predicted / temperature)  # [1]
        state, predicted = scores(params, state, character[None])
        return (state, predicted[0]), character[0]

    return jax.lax.scan(write, (state, predicted[-1]), jax.random.split(key, length))[1]


def written(params, prompt, length=300, temperature=0.6, seed=0):
    characters = continued(
        params, encode(prompt, alphabet), length, temperature, jax.random.key(seed)
    )
    return prompt + "".join(alphabet[n] for n in np.asarray(characters))


# %% [markdown]
# `written` generates text: it samples a character from the predicted probabilities, passes it back
# as the next input, and so on. We print such text during training.

# %%
params = init(jax.random.key(0))
opt_state = optimizer.init(params)
batches = stream_windows(train, LANES, WINDOW, seed=0)
losses, held_out_losses = [], {0: float(held_out_loss(params))}

for number in range(STEPS):
    batch = batches[number]
    if batch["start"].any():
        state = lstm.zero_state((LANES,))
    params, opt_state, state, value = train_step(
        params, opt_state, state, batch["inputs"].T, batch["targets"].T
    )
    losses.append(value)
    if number + 1 in (25, 50, 100, 200, 300, 400, 500, 600):
        held_out_losses[number + 1] = float(held_out_loss(params))
    if number + 1 in (25, 100, 600):
        print(f"--- step {number + 1}, held-out loss {held_out_losses[number + 1]:.2f} nats")
        print(written(params, "The ", length=120), "\n")

# %% [markdown]
# The model first learns which characters are common, then words, then phrases. Is this better than
# counting? An *n-gram* model predicts a character from the previous n - 1 characters, by counting
# which ones followed them in the training text. `ngram_loss` computes the loss of a good n-gram
# model (with Witten-Bell smoothing):

# %%
ngrams = {n: ngram_loss(train, held_out, len(alphabet), order=n) for n in (1, 2, 5)}

figure, axes = plt.subplots()
axes.plot(np.arange(1, STEPS + 1), losses, color=BLUE, linewidth=0.8, label="LSTM, training")
axes.plot(*zip(*held_out_losses.items(), strict=True), "o-", color=ORANGE, label="LSTM, held out")
for (n, level), dashes in zip(ngrams.items(), (":", "-.", "--"), strict=True):
    axes.axhline(level, color=GREY, linestyle=dashes, label=f"{n}-gram, held out")
axes.set(xlabel="training step", ylabel="loss (nats a character)", ylim=(1.0, 4.8))
axes.legend(frameon=False)
plt.show()

print({f"{n}-gram": round(level, 3) for n, level in ngrams.items()})
print("LSTM  ", round(held_out_losses[STEPS], 3))
assert held_out_losses[STEPS] < ngrams[5]

# %% [markdown]
# After a few steps the LSTM is as good as letter frequencies, and after about 25 steps it is as
# good as frequencies of letter pairs. At the end it is better than the 5-gram model, since it uses
# more than the last four characters. The orange points end slightly above the blue line, because
# the model has memorised a little of the training text.
#
# `make demo` trains a larger model for longer, with dropout, and reaches about 1.2 nats.

# %% [markdown]
# ## Sampling
#
# The scores can be divided by a *temperature* before sampling. Below 1, likely characters become
# even more likely: the text is safe, and repeats itself. At 1, the model's own probabilities are
# used. Above 1, unlikely characters occur more often.

# %%
for temperature in (0.3, 0.8, 1.3):
    print(f"--- temperature {temperature}")
    print(written(params, "The value of", length=250, temperature=temperature), "\n")

# %% [markdown]
# At 0.3 nearly every word is right, and phrases are repeated. At 1.3 the spelling breaks down.
#
# ## Where to go from here
#
# - `lstm-jax train configs/quickstart.toml` does all this from a config file, with checkpoints.
# - `LSTM(hidden_size, num_layers=2)` stacks cells; `LSTMCell(192, forget_bias=2.0)` changes one.
# - [02_inside_the_gates](02_inside_the_gates.ipynb) looks at what single units have learned.
# - [04_your_own_cell](04_your_own_cell.ipynb) changes the equations.
