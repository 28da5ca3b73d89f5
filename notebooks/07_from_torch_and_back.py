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
# # From torch and back
#
# At the end of this notebook you will know
#
# - how to import a trained `torch.nn.LSTM`, and how to check that it computes the same;
# - what differs between the two: gate blocks, orientation, the number of biases;
# - how to fine-tune it in JAX, compared with training from scratch;
# - how to export it again, so that the rest of a torch program needs no change.
#
# The notebook needs PyTorch, and takes less than a minute on two cores.

# %%
import importlib
import inspect

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import torch

from lstm_jax.data import python_reference, stream_windows
from lstm_jax.interop import from_torch, to_torch

plt.rcParams.update({"figure.figsize": (6, 4), "figure.constrained_layout.use": True})

# %% [markdown]
# ## A model in torch
#
# Suppose that somebody has trained a character model in PyTorch, on prose: Python's language
# reference. For this notebook we do that ourselves, briefly. The model is an embedding, an LSTM and
# a linear readout. We use a fixed set of 97 characters, so that the model can read other texts
# later.

# %%
ALPHABET = "\t\n" + "".join(map(chr, range(32, 127)))
PLACE = {character: n for n, character in enumerate(ALPHABET)}


def encoded(text):
    return np.array([PLACE[character] for character in text if character in PLACE], np.int32)


class TorchModel(torch.nn.Module):
    def __init__(self, hidden=128, embedding=32):
        super().__init__()
        self.embedding = torch.nn.Embedding(len(ALPHABET), embedding)
        self.lstm = torch.nn.LSTM(embedding, hidden)  # time is the first axis
        self.head = torch.nn.Linear(hidden, len(ALPHABET))

    def forward(self, characters):  # [T, B]
        hs, _ = self.lstm(self.embedding(characters))
        return self.head(hs)

    def loss(self, inputs, targets):
        scores = self(torch.tensor(inputs).long())
        return torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), torch.tensor(targets).long().flatten()
        )


LANES, WINDOW = 32, 64
prose = stream_windows(encoded(python_reference()), LANES, WINDOW, seed=0)

torch.manual_seed(0)
model = TorchModel()
adam = torch.optim.Adam(model.parameters(), lr=1e-2)
for number in range(200):
    batch = prose[number]
    adam.zero_grad()
    value = model.loss(batch["inputs"].T, batch["targets"].T)
    value.backward()
    adam.step()
print(f"torch: training loss on prose {value.item():.2f} nats a character")

# %% [markdown]
# ## Importing it
#
# A trained torch model is a `state_dict`: arrays by name.

# %%
for name, array in model.state_dict().items():
    print(f"{name:20} {tuple(array.shape)}")

# %% [markdown]
# The LSTM's arrays are `(4H, in)`, for $W x$, whereas ours are `(in, 4H)`, for `x @ w`. Torch adds
# two biases, of which only the sum matters; we have one. The gates have the same order, i, f, g, o;
# in other libraries they do not. `from_torch` converts all of this. From names and shapes, it
# determines the kind of layer, the number of layers and whether they are bidirectional:

# %%
state_dict = model.state_dict()
lstm, lstm_params = from_torch(
    {name: array for name, array in state_dict.items() if name.startswith("lstm.")},
    prefix="lstm.",
)
cells = [type(cell).__name__ for _, cell in lstm.layers]
print(cells, {name: array.shape for name, array in lstm_params["layer_0"].items()})
params = {
    "embedding": jnp.asarray(state_dict["embedding.weight"].numpy()),
    "lstm": lstm_params,
    "readout": jnp.asarray(state_dict["head.weight"].numpy().T),
    "bias": jnp.asarray(state_dict["head.bias"].numpy()),
}


def scores(params, characters):
    _, hs = lstm.apply(params["lstm"], params["embedding"][characters])
    return hs @ params["readout"] + params["bias"]


inputs = prose[1000]["inputs"].T
ours = np.asarray(scores(params, inputs))
theirs = model(torch.tensor(inputs).long()).detach().numpy()
print(f"largest difference of a score: {np.abs(ours - theirs).max():.0e}")
np.testing.assert_allclose(ours, theirs, atol=1e-4)

# %% [markdown]
# The scores are equal, up to rounding in float32.
#
# (Store a `state_dict` as safetensors: `lstm_jax.interop.read_arrays` reads this format, which,
# unlike a pickle, cannot contain code.)
#
# ## Fine-tuning here
#
# The model was trained on prose. Now we train it on code: the sources of some modules of Python's
# standard library. Does its knowledge of prose help? We train two models for the same number of
# steps, one from torch's parameters and one from new ones. The last tenth of each module is held
# out.

# %%
NAMES = ["argparse", "ast", "collections", "dataclasses", "functools", "json", "pathlib"]
MODULES = [importlib.import_module(name) for name in NAMES]
sources = [encoded(inspect.getsource(module)) for module in MODULES]
code = np.concatenate([source[: len(source) * 9 // 10] for source in sources])
held_out = np.concatenate([source[len(source) * 9 // 10 :] for source in sources])
batches = stream_windows(code, LANES, WINDOW, seed=0)
rows = held_out[: len(held_out) // LANES * LANES].reshape(LANES, -1).T  # [T, B]
print(f"{len(code)} characters of code, {len(held_out)} held out")


@jax.jit
def loss(params, inputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(scores(params, inputs), targets).mean()


STEPS = 200
optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))


@jax.jit
def train_step(params, opt_state, inputs, targets):
    gradients = jax.grad(loss)(params, inputs, targets)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state


def trained(params):
    """The trained parameters, and the held-out loss during training."""
    opt_state = optimizer.init(params)
    losses = {0: float(loss(params, rows[:-1], rows[1:]))}
    for number in range(STEPS):
        batch = batches[number]
        params, opt_state = train_step(params, opt_state, batch["inputs"].T, batch["targets"].T)
        if (number + 1) % 20 == 0:
            losses[number + 1] = float(loss(params, rows[:-1], rows[1:]))
    return params, losses


keys = jax.random.split(jax.random.key(0), 3)
new = params | {
    "embedding": jax.random.normal(keys[0], params["embedding"].shape),
    "lstm": lstm.init(keys[1], input_size=params["embedding"].shape[1]),
    "readout": jax.nn.initializers.glorot_uniform()(keys[2], params["readout"].shape),
    "bias": jnp.zeros_like(params["bias"]),
}
tuned, tuned_losses = trained(params)
scratch, scratch_losses = trained(new)

# %% [markdown]
# ## And back
#
# `to_torch` returns the arrays with torch's names and shapes. We load them into the original torch
# model.

# %%
arrays = to_torch(lstm, tuned["lstm"], prefix="lstm.") | {
    "embedding.weight": np.asarray(tuned["embedding"]),
    "head.weight": np.asarray(tuned["readout"]).T,
    "head.bias": np.asarray(tuned["bias"]),
}
model.load_state_dict({name: torch.tensor(np.array(array)) for name, array in arrays.items()})
with torch.no_grad():
    back_in_torch = model.loss(rows[:-1], rows[1:]).item()

print(f"held-out loss here {tuned_losses[STEPS]:.5f}, back in torch {back_in_torch:.5f}")
assert abs(back_in_torch - tuned_losses[STEPS]) < 1e-4

figure, axes = plt.subplots()
axes.plot(*zip(*scratch_losses.items(), strict=True), "s--", color="0.5", label="from scratch")
axes.plot(*zip(*tuned_losses.items(), strict=True), "o-", color="#0072b2", label="from torch")
axes.plot(STEPS, back_in_torch, "*", color="#d55e00", markersize=15, label="back in torch")
axes.set(xlabel="training step", ylabel="held-out loss on code (nats a character)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The knowledge of prose helps with code: before the first step, the loss is one that training from
# scratch reaches only after some time, and it remains lower. Torch computes the same loss as JAX
# (the star), so both conversions are exact.
#
# ## Where to go from here
#
# - `fill` copies the imported parameters into a module of `lstm_jax.nnx` or `lstm_jax.linen`.
# - `from_keras`, `from_flax`, `from_haiku`, `from_equinox` and `from_cudnn` do the same for other
#   libraries.
# - `lstm_jax.interop.onnx` reads and writes graphs of ONNX.
