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
# # An LSTM in a Flax model
#
# At the end of this notebook you will know
#
# - how to combine an LSTM with a convolution below and attention above, in nnx;
# - how to write the same model in linen, and that both have the same parameters;
# - how to distribute a training step over several devices;
# - how to train an ensemble with `vmap`, distributed over devices, and its advantages.
#
# You should have seen a Flax model before. The notebook takes less than a minute on two cores.
#
# The first cell configures JAX to have two CPU devices, one for each core, so that work can be
# distributed. This must precede any use of JAX. On a machine with several GPUs, omit that line.

# %%

import jax

jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lstm_jax.linen
import lstm_jax.nnx

plt.rcParams.update({"figure.figsize": (6, 4), "figure.constrained_layout.use": True})
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.55"
print(len(jax.devices()), "devices")

# %% [markdown]
# ## A task that needs all three
#
# A sensor records 96 noisy numbers. There is one event at some position in the first half, and
# another one in the second half. An event is *up* (a bump up, then down) or *down* (the same upside
# down). The task is to identify both events in their order: up-up, up-down, down-up or down-down.
#
# - A *convolution* is good at finding a short shape at any position.
# - An *LSTM* is good at remembering what came first.
# - *Attention* is good at reading the answer at the right step.

# %%
LENGTH, EVENT = 96, 12
CLASSES = ["up-up", "up-down", "down-up", "down-down"]
SHAPE = 2 * np.sin(2 * np.pi * np.arange(EVENT) / EVENT) * np.hanning(EVENT)


def signals(seed, count, noise=0.6):
    """Signals [count, 96, 1], labels [count], and the positions of both events, [count, 2]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    xs = rng.normal(0, noise, (count, LENGTH))
    half = LENGTH // 2
    places = rng.integers([0, half], [half - EVENT, LENGTH - EVENT], (count, 2))
    for x, label, (first, second) in zip(xs, labels, places, strict=True):
        x[first : first + EVENT] += SHAPE * (1 if label in (0, 1) else -1)
        x[second : second + EVENT] += SHAPE * (1 if label in (0, 2) else -1)
    return xs[..., None].astype(np.float32), labels.astype(np.int32), places


train_xs, train_labels, _ = signals(seed=0, count=1024)
test_xs, test_labels, test_places = signals(seed=1, count=2048)

figure, panels = plt.subplots(4, 1, sharex=True)
for label, panel in enumerate(panels):
    row = np.flatnonzero(test_labels == label)[0]
    panel.plot(test_xs[row, :, 0], color=GREY, linewidth=1)
    for place in test_places[row]:
        inside = np.arange(place, place + EVENT)
        panel.plot(inside, test_xs[row, inside, 0], color=ORANGE, linewidth=1.5)
    panel.set(ylabel=CLASSES[label], ylim=(-3.2, 3.2))
panels[-1].set_xlabel("time (samples)")
figure.supylabel("signal (no unit)")
plt.show()

# %% [markdown]
# The plot has one signal of each class, with the events in orange; the model must find them.
#
# ## In nnx
#
# `lstm_jax.nnx.LSTM` is a module like any other. The batch axis comes first, `[B, T, D]`, as
# everywhere in Flax, so the LSTM can read the convolution's output directly. `strides=2` halves the
# number of steps.
#
# Attention has one *query*, a learned vector. It compares the query with the LSTM's output at each
# step, and computes a weighted mean of these outputs. The weights show which steps it reads.


# %%
class Listener(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 16, kernel_size=(9,), strides=(2,), rngs=rngs)
        self.lstm = lstm_jax.nnx.LSTM(16, 32, rngs=rngs)
        self.query = nnx.Param(jax.random.normal(rngs.params(), (1, 32)))
        self.attention = nnx.MultiHeadAttention(2, in_features=32, decode=False, rngs=rngs)
        self.head = nnx.Linear(32, len(CLASSES), rngs=rngs)

    def __call__(self, xs):
        xs = nnx.relu(self.conv(xs))  # [B, 48, 16]
        xs = self.lstm(xs)  # [B, 48, 32]
        query = jnp.broadcast_to(self.query[...], (len(xs), 1, 32))
        return self.head(self.attention(query, xs)[:, 0])  # [B, 4]


def loss(model, xs, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(xs), labels).mean()


@nnx.jit
def train_step(model, optimizer, xs, labels):
    value, gradients = nnx.value_and_grad(loss)(model, xs, labels)
    optimizer.update(model, gradients)
    return value


def accuracy(scores, labels):
    return float((np.asarray(scores).argmax(-1) == labels).mean())


model = Listener(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
rng = np.random.default_rng(0)
for _ in range(300):
    rows = rng.integers(0, len(train_xs), 64)
    value = train_step(model, optimizer, train_xs[rows], train_labels[rows])

scores = nnx.jit(lambda model, xs: model(xs))(model, test_xs)
print(f"accuracy on new signals {accuracy(scores, test_labels):.1%}, by guessing 25 %")
assert accuracy(scores, test_labels) > 0.7

# %% [markdown]
# ## In linen
#
# The linen model has the same layers with the same names. In linen a model is a description, and
# its parameters are a separate tree.


# %%
class LinenListener(linen.Module):
    def setup(self):
        self.conv = linen.Conv(16, kernel_size=(9,), strides=(2,))
        self.lstm = lstm_jax.linen.LSTM(32)
        self.query = self.param("query", linen.initializers.normal(1.0), (1, 32))
        self.attention = linen.MultiHeadDotProductAttention(2)
        self.head = linen.Dense(len(CLASSES))

    def __call__(self, xs):
        xs = linen.relu(self.conv(xs))
        xs = self.lstm(xs)
        query = jnp.broadcast_to(self.query, (len(xs), 1, 32))
        return self.head(self.attention(query, xs, sow_weights=True)[:, 0])


net = LinenListener()
new = net.init(jax.random.key(0), test_xs[:1])["params"]
trained = nnx.to_pure_dict(nnx.state(model, nnx.Param))
assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, trained)
print("lstm:", jax.tree.map(jnp.shape, trained["lstm"]))

# %% [markdown]
# Both have the same tree of parameters, with the same names and shapes. The trained parameters can
# therefore be used directly, with the same results:

# %%
linen_scores, seen = net.apply({"params": trained}, test_xs, mutable="intermediates")
np.testing.assert_allclose(linen_scores, scores, atol=1e-4)
print("the same scores")

# %% [markdown]
# With `sow_weights=True` the attention weights were recorded. Which steps does the model read?

# %%
(weights,) = seen["intermediates"]["attention"]["attention_weights"]  # [B, heads, 1, 48]
row = int(np.flatnonzero((test_labels == 1) & (np.asarray(scores).argmax(-1) == 1))[2])

figure, (upper, lower) = plt.subplots(2, 1, sharex=True)
upper.plot(test_xs[row, :, 0], color=GREY, linewidth=1)
upper.set_ylabel("signal (no unit)")
for head, (colour, dashes) in enumerate(((BLUE, "-"), (ORANGE, "--"))):
    steps = np.arange(0, LENGTH, 2)
    lower.plot(steps, weights[row, head, 0], color=colour, linestyle=dashes, label=f"head {head}")
for panel in (upper, lower):
    for place in test_places[row]:
        panel.axvspan(place, place + EVENT, color="0.9")
lower.set(xlabel="time (samples)", ylabel="attention weight", ylim=(0, None))
lower.legend(frameon=False, loc="upper left")
plt.show()

inside = (steps >= test_places[..., None]) & (steps < test_places[..., None] + EVENT)
share = np.einsum("bhqt,bet->he", weights, inside) / len(weights)
print("share of the weight that lies on", "the first event  the second event", sep="\n        ")
for head in range(2):
    print(f"head {head}  {share[head, 0]:15.0%}  {share[head, 1]:16.0%}")

# %% [markdown]
# The grey bands mark the events. Their positions were not part of the training data; the model has
# learned that these steps are relevant. Both heads place most of their weight on a quarter of the
# steps.
#
# ## Distributed over devices
#
# A batch of 64 signals can be split: each of two devices computes the gradient of 32 signals, and
# the mean of both is the gradient of the batch. In JAX you only specify where the arrays are
# stored. A *mesh* names the devices, and a *sharding* maps axes of an array to axes of the mesh.
# The compiler does the rest.

# %%
mesh = jax.make_mesh((len(jax.devices()),), ("devices",), axis_types=(AxisType.Auto,))
by_rows = NamedSharding(mesh, PartitionSpec("devices"))
everywhere = NamedSharding(mesh, PartitionSpec())

xs, labels = train_xs[:64], train_labels[:64]
gradient = nnx.jit(nnx.grad(loss))
alone = jax.device_get(nnx.to_pure_dict(gradient(model, xs, labels)))

nnx.update(model, jax.device_put(nnx.state(model), everywhere))
xs, labels = jax.device_put((xs, labels), by_rows)
for shard in xs.addressable_shards:
    print(shard.device, shard.data.shape)
shared = jax.device_get(nnx.to_pure_dict(gradient(model, xs, labels)))

# Devices exchange sums of gradients and nothing else: no device collects the rows of another.
program = gradient.lower(model, xs, labels).compile().as_text()
assert "all-reduce(" in program
assert not any(f"{kind}(" in program for kind in ("all-gather", "all-to-all"))

difference = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), alone, shared)
print(f"largest difference of a gradient: {max(jax.tree.leaves(difference)):.0e}")
assert max(jax.tree.leaves(difference)) < 1e-5

# %% [markdown]
# The same `loss` gives the same gradient on two devices. `train_step` needs no change, either. The
# optimizer's state must be on the same devices as the model, and batches must be sharded by rows:

# %%
nnx.update(optimizer, jax.device_put(nnx.state(optimizer), everywhere))
for _ in range(20):
    rows = rng.integers(0, len(train_xs), 64)
    batch = jax.device_put((train_xs[rows], train_labels[rows]), by_rows)
    value = train_step(model, optimizer, *batch)
print(f"training loss after 20 steps more: {value:.2f}, on {value.sharding.num_devices} devices")

# %% [markdown]
# ## An ensemble
#
# Models with different initial parameters make different mistakes. Their mean is better than each
# of them, and if they disagree, the prediction is less reliable. A linen model is a function of its
# parameters, so `vmap` turns one model into many: stack four trees of parameters, and map over the
# first axis.
#
# Members are independent of each other, so they are ideal for distribution over devices.
# `shard_map` gives each device its part of the first axis, here two members, and runs the function
# on that part.

# %%
MEMBERS = 4
tx = optax.adam(3e-3)


def member_loss(params, xs, labels):
    scores = net.apply({"params": params}, xs)
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def member_step(params, opt_state, xs, labels):
    value, gradients = jax.value_and_grad(member_loss)(params, xs, labels)
    updates, opt_state = tx.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


keys = jax.random.split(jax.random.key(1), MEMBERS)
members = jax.vmap(lambda key: net.init(key, test_xs[:1])["params"])(keys)
members = jax.device_put(members, by_rows)  # the first axis is now that of the members
opt_states = jax.device_put(jax.vmap(tx.init)(members), by_rows)
ensemble_step = jax.jit(
    jax.shard_map(jax.vmap(member_step), mesh=mesh, in_specs=by_rows.spec, out_specs=by_rows.spec)
)
w_hh = members["lstm"]["layer_0"]["w_hh"]
print("w_hh", w_hh.shape, "of which a device has", w_hh.addressable_shards[0].data.shape)

for _ in range(300):
    rows = rng.integers(0, len(train_xs), (MEMBERS, 64))  # each member samples its own batch
    batch = jax.device_put((train_xs[rows], train_labels[rows]), by_rows)
    members, opt_states, values = ensemble_step(members, opt_states, *batch)


# %% [markdown]
# The ensemble's prediction is the mean of its members' probabilities. We make the task harder, with
# more noise than in the training signals:


# %%
@jax.jit
def probabilities(members, xs):
    return jax.vmap(lambda params: jax.nn.softmax(net.apply({"params": params}, xs)))(members)


noises = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
single, mean, agreeing, shares = [], [], [], []
for noise in noises:
    xs, labels, _ = signals(seed=2, count=2048, noise=noise)
    each = np.asarray(probabilities(members, jax.device_put(xs, everywhere)))
    right = each.argmax(-1) == labels
    together = each.mean(0).argmax(-1)
    agree = (each.argmax(-1) == together).all(0)
    single.append(right.mean(1))
    mean.append((together == labels).mean())
    agreeing.append((together == labels)[agree].mean())
    shares.append(agree.mean())

figure, axes = plt.subplots()
axes.plot(noises, 100 * np.array(single), color=GREY, linewidth=0.8)
axes.plot([], [], color=GREY, linewidth=0.8, label="each member")
axes.plot(noises, 100 * np.array(mean), "o-", color=ORANGE, label="ensemble")
axes.plot(noises, 100 * np.array(agreeing), "s--", color=BLUE, label="ensemble, where all agree")
axes.axvline(0.6, color="0.8", linewidth=1, zorder=0)
axes.text(0.605, 62, "noise of the\ntraining signals", color="0.4", fontsize="small")
axes.set(xlabel="standard deviation of the noise (signal's unit)", ylabel="accuracy (%)")
axes.legend(frameon=False)
plt.show()
print("all agree on", {noise: f"{share:.0%}" for noise, share in zip(noises, shares, strict=True)})
assert (np.array(mean) > np.array(single).mean(1)).all()

# %% [markdown]
# The ensemble (orange) is better than its members (grey) at any noise. It also indicates its own
# uncertainty: if all four members agree (blue), it is right much more often. As the noise grows,
# they agree on fewer signals; the others are better checked by a person.
#
# ## Where to go from here
#
# - `lstm_jax.nnx.LSTM` and `lstm_jax.linen.LSTM` take `bidirectional=True`, `num_layers`, any
#   `cell`, `seq_lengths` for rows of different lengths and `resets` between documents.
# - A single cell, such as `lstm_jax.nnx.PeepholeLSTMCell`, works in Flax's own `nnx.RNN`.
# - Weights can be sharded, too: `kernel_metadata={"out_sharding": (None, "model")}`.
# - [04_your_own_cell](04_your_own_cell.ipynb) puts a custom cell into such a module.
