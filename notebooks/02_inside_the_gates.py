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
# # Inside the gates
#
# At the end of this notebook you will know
#
# - how to see every gate and state of a trained model, step by step;
# - how to find a unit that follows a property of the text, such as an open quotation;
# - how to find out whether the model *uses* that unit;
# - how often its gates are open or shut, and for how long its units remember.
#
# The notebook takes about a minute on two cores, mostly to train the model.
# [01_equations_to_text](01_equations_to_text.ipynb) explains the gates $i, f, o$, the candidate
# $g$ and the states $c$ and $h$.

# %%
import subprocess
import sys

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from IPython.display import display

from lstm_jax.data import encode
from lstm_jax.inspect import (
    find_units,
    memory_horizon,
    plot_memory_horizon,
    plot_saturation,
    plot_unit,
    plot_units,
    saturation,
    text_html,
    trace,
)
from lstm_jax.train import load_run

# %matplotlib inline
plt.rcParams.update({"figure.figsize": (6, 4), "figure.constrained_layout.use": True})

# %% [markdown]
# ## A trained model
#
# We train a smaller version of the character model of Python's language reference that `make demo`
# trains. Its run folder contains all that we need: the config, which describes the model, and a
# checkpoint. (With another version of Python the text is slightly different, and other units will
# have the behaviour that is shown here.)

# %%
CONFIG = """\
task = "next_character"

[data]
text = "python_reference"
validation_fraction = 0.05

[model]
hidden_size = 192
embedding_size = 32
dropout = 0.1

[optimizer]
learning_rate = 8e-3

[train]
num_steps = 600
eval_every = 600
checkpoint_every = 600
sample_length = 1
seed = 2
"""
with open("small.toml", "w") as file:
    file.write(CONFIG)
command = [sys.executable, "-m", "lstm_jax", "train", "small.toml", "--workdir", "runs/text"]
subprocess.run(command, check=True, capture_output=True)

run = load_run("runs/text")
task, model = run.task, run.model.module  # a lstm_jax.models.LanguageModel, an nnx.Module
print(f"trained for {run.step} steps;", *nnx.state(model, nnx.Param))
print(*task.generate(run.model, prompt="The ", length=200, temperature=0.5, seed=0), sep="")

# %% [markdown]
# ## Every gate of every step
#
# `trace` runs a layer and returns its intermediate values, under their names in the equations. The
# layer reads 18,000 characters that the model was not trained on.

# %%
lstm, params = model.lstm.layer, model.lstm.params
held_out = task.text[-18_000:]
tokens = encode(held_out, task.known["vocabulary"])
xs = model.embedding(tokens)  # [T, 32]: time, features

values = trace(lstm, params, xs)
for name, array in values.values["layer_0"].items():
    print(name, array.shape)

_, ys = lstm.apply(params, xs)
np.testing.assert_allclose(values.values["layer_0"]["h"], ys, atol=1e-5)

# %% [markdown]
# The outputs agree, since it is the same computation. (For a longer text or a larger model, request
# only some `names`, `units` or `layers`.)
#
# ## What does a unit follow?
#
# There are 192 units. Does one of them indicate whether a quotation is open? Karpathy, Johnson and
# Fei-Fei ("Visualizing and Understanding Recurrent Networks", 2015) found one in a large model. We
# compute the property, one number per character, and `find_units` finds the units whose output
# correlates most with it. You can use any property:


# %%
def inside_quotes(text):
    """Whether a double quotation mark is open; a new line closes it."""
    is_open, found = False, []
    for character in text:
        is_open = character != "\n" and is_open != (character == '"')
        found.append(is_open)
    return np.array(found)


def letters_so_far(text):
    """The number of letters of the current word that have been read, up to 12."""
    count, found = 0, []
    for character in text:
        count = count + 1 if character.isalpha() else 0
        found.append(min(count, 12))
    return np.array(found)


def spaces_so_far(text):
    """The number of consecutive spaces, up to 12: the margin of a list or of code."""
    count, found = 0, []
    for character in text:
        count = count + 1 if character == " " else 0
        found.append(min(count, 12))
    return np.array(found)


quoted = inside_quotes(held_out)
found = {
    "inside quotes (h)": find_units(values, quoted, name="h"),
    "letters so far (c)": find_units(values, letters_so_far(held_out), name="c"),
    "spaces so far (c)": find_units(values, spaces_so_far(held_out), name="c"),
}
for what, units in found.items():
    best = [
        f"unit {unit} ({r:+.2f})" for unit, r in zip(units.unit, units.correlation, strict=True)
    ]
    print(f"{what:20}", ", ".join(best[:3]))

units = found["inside quotes (h)"]
plot_units(units, title="inside quotes")

# %% [markdown]
# One unit stands out for quotations, and others follow words and margins. How good is a correlation
# of that size? This is a piece of text, in which each character is coloured by the output of the
# first unit after reading it:

# %%
quote_unit = int(units.unit[0])
sign = np.sign(units.correlation[0])
h = np.asarray(values.values["layer_0"]["h"])[:, quote_unit]
begin = held_out.index("\n\n", 3000) + 2
piece = slice(begin, begin + 240)
text_html(held_out[piece], sign * h[piece], title=f"output of unit {quote_unit}")

# %% [markdown]
# It is orange within quotation marks and blue outside. It is also orange between *stars*, which
# surround the names of arguments in this text. The unit therefore does not follow exactly the
# property that we requested. It indicates "this is a name or a piece of code", regardless of how
# that is marked, and the correlation was low only because stars are not quotation marks.
#
# How does it work? These are its gates around the first quotation of this piece:

# %%
middle = begin + held_out[begin:].index('"') - 6
line = slice(middle, middle + 40)
few = trace(lstm, params, xs[: line.stop], units=quote_unit)
few = few._replace(values={"layer_0": {k: v[line] for k, v in few.values["layer_0"].items()}})
plot_unit(few, quote_unit, text=held_out[line])

# %% [markdown]
# At the opening mark the forget gate $f$ falls to 0, which erases the content of the cell. The
# input gate $i$ is open, and the candidate $g$ is +1: the cell now stores "inside". At the closing
# mark the forget gate shuts again, little is left, and a negative value is written afterwards:
# "outside". Within later words, $f$ stays near 1, and the cell retains its content. Nobody designed
# this behaviour; it is the result of training.
#
# ## Does the model use it?
#
# A correlation is not a cause. We therefore silence the unit, so that neither the other units nor
# the readout can read it. This takes a row of zeros in two matrices. If the model uses the unit to
# recognise an open quotation, it should now be worse at closing quotations, and almost unchanged
# elsewhere.


# %%
def silenced(model, unit):
    model = nnx.clone(model)
    for weights in (model.lstm.layer_0.w_hh, model.projection.kernel):
        weights[...] = weights[...].at[unit].set(0.0)
    return model


def losses(model):
    """The loss at each character except the first, in nats."""
    _, outputs = model(model.initial_carry(1), tokens=jnp.asarray(tokens[None, :-1]))
    logits = outputs["logits"][0]
    return np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:]))


closing = quoted[:-1] & (np.array(list(held_out[1:])) == '"')
others = np.random.default_rng(0).choice(np.delete(np.arange(192), quote_unit), 10, replace=False)


def summary(loss):
    return np.array([loss[closing].mean(), loss[~closing].mean()])


rows = {
    "all units": summary(losses(model)),
    f"without unit {quote_unit}": summary(losses(silenced(model, quote_unit))),
    "without another": np.mean([summary(losses(silenced(model, n))) for n in others], axis=0),
}
print(f"{'loss (nats)':20} closing quotes   other characters")
for name, (at_quotes, elsewhere) in rows.items():
    print(f"{name:20} {at_quotes:14.2f} {elsewhere:18.2f}")

# %% [markdown]
# Without this one of 192 units, the loss at closing quotation marks is much higher, while that at
# other characters hardly changes. Without another unit (the mean over ten units is shown), both
# hardly change. The model does use this unit, and it uses it to follow quotations.
#
# ## Open, shut, or in between
#
# How often is a gate wide open (above 0.9), and how often is it shut (below 0.1)? `saturation`
# computes this for each unit, and each point below is a unit. Gates on the right are mostly open,
# and gates at the top are mostly shut.

# %%
shares = saturation(values)
display(plot_saturation(shares))
for gate in "ifo":
    shut, wide = shares.left["layer_0"][gate], shares.right["layer_0"][gate]
    print(f"gate {gate}: shut {shut.mean():.0%} of the time, open {wide.mean():.0%}")

# %% [markdown]
# Some forget gates are open most of the time; their units can store something. Most forget gates
# are often shut, and their units start again with nearly every character. Few input gates are shut
# for long.
#
# ## How long is its memory?
#
# A unit with the forget gate $f$ retains the fraction $f^n$ of its content after $n$ steps.
# `memory_horizon` gives the number of steps after which $1/e$ is left, from the mean of $\log
# f_t$.

# %%
horizon = memory_horizon(values, lstm)
display(plot_memory_horizon(horizon))
steps = horizon.steps["layer_0"]
print(f"median {np.median(steps):.1f} steps, longest {steps.max():.0f} steps")

# %% [markdown]
# Most of the units forget within about one step, so a character influences them only once. Some
# remember for a word, and a few for a line.
#
# ## Where to go from here
#
# - `lstm-jax inspect runs/text --text some.txt` writes all of this as one HTML page.
# - [03_vanishing_gradients](03_vanishing_gradients.ipynb) shows how far back training can reach.
# - `trace` works on your own cell: [04_your_own_cell](04_your_own_cell.ipynb) names its
#   gates.
