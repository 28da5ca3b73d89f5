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
# # Handwriting: reading the path of a pen, and writing
#
# At the end of this notebook you will know
#
# - how the path of a pen becomes a sequence of vectors;
# - how CTC trains a model on texts without knowing which point belongs to which letter;
# - how a network generates handwriting: a mixture of Gaussians for each move of the pen, and a soft
#   window that slides along the text;
# - how to measure whether its writing is legible.
#
# The data are real: 10,992 digits that 44 people wrote on a tablet (Alimoğlu and Alpaydın, 1996).
# They are downloaded once (0.5 MB). The notebook takes less than two minutes on two cores.

# %%
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from lstm_jax.data.ink import read_ink_splits
from lstm_jax.data.strokes import FEATURES, features, paths_of, resampled, scaled
from lstm_jax.models import Compiled
from lstm_jax.models.ctc import CTCModel
from lstm_jax.models.handwriting_synthesis import (
    END,
    LIFT,
    ON,
    HandwritingSynthesis,
    mixture_of,
    move_losses,
    sampled_moves,
)

plt.rcParams.update({"figure.figsize": (6, 3), "figure.constrained_layout.use": True})
# Without widgets, Jupyter shows the progress of downloads as text, which is fine.
warnings.filterwarnings("ignore", message="IProgress not found")

# %% [markdown]
# ## Numbers
#
# A digit is eight points along the path of the pen, (x, y) from 0 to 100. We place digits side by
# side to form numbers of two to four digits. The test digits are by 14 people whose handwriting is
# not in the training data.

# %%
digits = read_ink_splits("pen_digits")
print({split: len(inks) for split, inks in digits.items()})


def numbers(split, count, seed, least=2, most=4):
    """Random handwritten numbers: the points ``[n, 8, 2]`` of each one's digits, and its labels."""
    rng, inks = np.random.default_rng(seed), digits[split]
    strokes, labels = [], []
    for size in rng.integers(least, most + 1, count):
        chosen, right, parts = rng.integers(len(inks), size=size), 0.0, []
        for n in chosen:
            points = inks[n].strokes[0] / 50
            left = right + rng.uniform(0.3, 0.6) - points[:, 0].min()
            parts.append(points + np.array([left, 0.0]))
            right = parts[-1][:, 0].max()
        strokes.append(np.array(parts))
        labels.append(np.array([int(inks[n].text) for n in chosen]))
    return strokes, labels


def draw(axes, strokes, title="", colours=None):
    for n, points in enumerate(strokes):
        axes.plot(*points.T, color="C0" if colours is None else colours[n], linewidth=1.8)
    axes.set_aspect("equal")
    axes.set_title(title, fontsize="medium")
    axes.axis("off")


inks, truths = numbers("train", 4, seed=1)
figure, panels = plt.subplots(1, 4, figsize=(6, 0.9))
for panel, strokes, label in zip(panels, inks, truths, strict=True):
    draw(panel, strokes, "".join(map(str, label)))
plt.show()

# %% [markdown]
# ## Reading
#
# The reader receives handwriting of a standard size, with points at equal distances along the path,
# so the speed of the pen has no influence. Each point has six features: the direction of the move
# to it (two numbers), its height, whether the pen was lifted, and how far it then moved (two
# numbers).
#
# At each step, a bidirectional LSTM computes scores of the ten digits and of a *blank*. **CTC**
# sums the probabilities of all alignments, that is, of all sequences of digits and blanks that
# spell the number once repetitions are merged and blanks removed. The target is therefore only the
# number, without the points that belong to each digit.

# %%
POINTS, LABELS = 120, 4  # at most; shorter ones are padded


def batch_of(strokes, labels):
    paths = resampled(scaled(paths_of(strokes)), 0.25, POINTS)
    found, lengths = features(paths), np.bincount(paths.owner)
    xs = np.zeros((len(labels), POINTS, FEATURES), np.float32)
    targets = np.zeros((len(labels), LABELS), np.int32)
    for row, part in enumerate(np.split(found, np.cumsum(lengths)[:-1])):
        xs[row, : len(part)] = part
        targets[row, : len(labels[row])] = 1 + labels[row]  # 0 is the blank
    return {"features": xs, "lengths": lengths, "targets": targets}


reader = CTCModel(FEATURES, 11, 64, strides=(2,), conv_features=32, rngs=nnx.Rngs(0))
READER_STEPS = 300


def ctc(model, batch):
    _, outputs = model((), features=batch["features"], lengths=batch["lengths"])
    padding = jnp.arange(outputs["logits"].shape[1]) >= outputs["steps"][:, None]
    return optax.ctc_loss(
        outputs["logits"], padding.astype(float), batch["targets"], batch["targets"] == 0
    ).mean()


def trained(model, loss, batches, steps, rate):
    """Trains a model in place, and prints its loss several times."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, 30, steps)
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        value, gradients = nnx.value_and_grad(loss)(model, batch)
        optimizer.update(model, gradients)
        return value

    for number in range(steps):
        value = step(model, optimizer, batches(number))
        if (number + 1) % (steps // 5) == 0:
            print(f"step {number + 1}: training loss {value:.3f}")
    return Compiled(model)  # in evaluation mode, with compiled calls


read = trained(reader, ctc, lambda n: batch_of(*numbers("train", 64, n)), READER_STEPS, 1e-2)


# %% [markdown]
# To read, take the most likely class of each step, merge repetitions and remove blanks.


# %%
def readings(strokes):
    batch = batch_of(strokes, [np.zeros(0, int)] * len(strokes))
    _, outputs = read((), features=batch["features"], lengths=batch["lengths"])
    texts = []
    for scores, steps in zip(outputs["logits"], outputs["steps"], strict=True):
        best = np.asarray(scores[:steps]).argmax(-1)
        kept = (best > 0) & (best != np.append(0, best[:-1]))
        texts.append("".join(str(c - 1) for c in best[kept]))
    return texts


def distance(a, b):
    """The number of digits to insert, delete or replace."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def error_rate(texts, found):
    wrong = sum(distance(a, b) for a, b in zip(texts, found, strict=True))
    return wrong / sum(map(len, texts))


test_strokes, test_labels = numbers("test", 500, seed=0)
test_texts = ["".join(map(str, label)) for label in test_labels]
found = readings(test_strokes)
real_rate = error_rate(test_texts, found)
right = np.mean([a == b for a, b in zip(test_texts, found, strict=True)])
print(f"new writers: {right:.1%} of the numbers are right, {real_rate:.1%} of the digits wrong")
assert real_rate < 0.1

# %% [markdown]
# The model has learned *where* each digit is, although the targets do not contain this. Its
# probabilities are spikes: blank almost everywhere, and a digit at one or two steps.

# %%
chosen = next(n for n, text in enumerate(test_texts) if len(text) == 4 and found[n] == text)
batch = batch_of(test_strokes[chosen : chosen + 1], test_labels[chosen : chosen + 1])
_, outputs = read((), features=batch["features"], lengths=batch["lengths"])
spikes = jax.nn.softmax(outputs["logits"][0, : outputs["steps"][0]])
figure, (top, bottom) = plt.subplots(2, 1, figsize=(6, 3.4))
colours = [f"C{digit % 10}" for digit in test_labels[chosen]]
draw(top, test_strokes[chosen], f"read as {found[chosen]}", colours)
bottom.plot(spikes[:, 0], color="0.8", label="blank")
for digit in sorted(set(test_labels[chosen])):
    bottom.plot(spikes[:, 1 + digit], color=f"C{digit}", label=str(digit))
bottom.set(xlabel="step", ylabel="probability")
bottom.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## Writing
#
# The writer predicts the next move of the pen, $\Delta_t = (\Delta x, \Delta y)$, from the previous
# moves and from the text. If it predicted one number for each coordinate, the result would be the
# mean of all possible moves, which does not look like handwriting. The network therefore predicts a
# **mixture** of Gaussians:
#
# $$p(\Delta_t) = \sum_m \pi_m\, \mathcal{N}(\Delta_t;\, \mu_m, \Sigma_m)$$
#
# and the probability that a stroke, or the whole piece, ends there. A **soft window** determines
# which letter is being written: the first LSTM layer moves the window's centres $\kappa$ to the
# right and reads the letters, weighted by their distance from the centres (Graves, 2013).

# %%
WRITER_STEPS, MOVES = 1000, 8 * 3 - 1
LAST = 11  # a letter that ends every text, so that the window can see the end


def trails(strokes, labels):
    """Moves to each point except the last, moves to the next point, and the kind of that point."""
    batch = {
        "moves": np.zeros((len(labels), MOVES, 3), np.float32),
        "targets": np.zeros((len(labels), MOVES, 2), np.float32),
        "kinds": np.full((len(labels), MOVES), ON),
        "text": np.zeros((len(labels), 4), np.int32),
        "mask": np.zeros((len(labels), MOVES), bool),
    }
    for row, (parts, label) in enumerate(zip(strokes, labels, strict=True)):
        moves, count = np.diff(parts.reshape(-1, 2), axis=0), parts.size // 2 - 1
        kinds = np.full(count + 1, ON)
        kinds[7::8] = LIFT
        kinds[-1] = END
        batch["moves"][row, 1:count, :2] = moves[:-1]
        batch["moves"][row, :count, 2] = kinds[:-1] != ON
        batch["targets"][row, :count], batch["kinds"][row, :count] = moves, kinds[1:]
        batch["text"][row, : len(label) + 1] = [*(1 + label), LAST]
        batch["mask"][row, :count] = True
    return batch


def negative_log_likelihood(model, batch):
    first = model.initial_carry(len(batch["text"]))
    _, outputs = model(first, moves=batch["moves"], text=batch["text"])
    losses = move_losses(mixture_of(outputs), batch["targets"], batch["kinds"])
    return (losses * batch["mask"]).sum() / batch["mask"].sum()


writer = HandwritingSynthesis(
    LAST, 128, 1, window_components=4, mixture_components=8, rngs=nnx.Rngs(0)
)
writing = trained(
    writer,
    negative_log_likelihood,
    lambda n: trails(*numbers("train", 64, n, least=1, most=3)),
    WRITER_STEPS,
    1e-2,
)


# %% [markdown]
# To write, sample each move from the mixture and pass it to the model as the next input. A *bias*
# makes the deviations smaller, so the writing is neater and has less variety.


# %%
def written(texts, bias, seed=0):
    """The points of the digits of each text."""
    text = np.zeros((len(texts), 4), np.int32)
    for row, word in enumerate(texts):
        text[row, : len(word) + 1] = [*(1 + int(c) for c in word), LAST]
    model = writing.module

    @jax.jit
    def write(key):
        def step(before, key):
            carry, move = before
            carry, outputs = model(carry, moves=move[:, None], text=text)
            mixture = jax.tree.map(lambda leaf: leaf[:, 0], mixture_of(outputs, bias))
            moves, kinds = sampled_moves(key, mixture)
            move = jnp.concatenate([moves, (kinds != ON)[:, None]], -1)
            return (carry, move), (moves, kinds, outputs["window"][:, 0])

        first = model.initial_carry(len(texts)), jnp.zeros((len(texts), 3))
        return jax.lax.scan(step, first, jax.random.split(key, 40))[1]

    moves, kinds, window = map(np.asarray, write(jax.random.key(seed)))
    found = []
    for row in range(len(texts)):
        ends = np.flatnonzero(kinds[:, row] == END)
        count = ends[0] + 1 if ends.size else len(kinds)
        points = np.concatenate([np.zeros((1, 2)), np.cumsum(moves[:count, row], axis=0)])
        lifts = np.flatnonzero(kinds[: count - 1, row] == LIFT) + 2
        found.append(np.split(points, lifts))
    return found, window


figure, panels = plt.subplots(3, 5, figsize=(6, 3.4))
for row, bias in zip(panels, (0.0, 0.5, 2.0), strict=True):
    samples, _ = written(["207", "318", "45", "96", "888"], bias, seed=2)
    for panel, strokes in zip(row, samples, strict=True):
        draw(panel, strokes)
    row[0].set_title(f"bias {bias:g}", fontsize="medium", loc="left")
plt.show()

# %% [markdown]
# The window moves from digit to digit while the pen writes:

# %%
samples, window = written(["318"], 1.0, seed=0)
count = sum(map(len, samples[0])) - 1
figure, axes = plt.subplots(figsize=(6, 2))
image = axes.imshow(window[:count, 0, :3].T, cmap="Blues", aspect="auto")
axes.set_yticks(range(3), list("318"))
axes.set(xlabel="move of the pen", ylabel="digit")
figure.colorbar(image, label="weight")
plt.show()

# %% [markdown]
# Is it legible? We measure this with the reader of the first part, which was not trained on this
# writer.

# %%
rng = np.random.default_rng(0)
texts = ["".join(map(str, rng.integers(0, 10, size))) for size in rng.integers(2, 4, 300)]
for bias in (0.0, 0.5, 2.0):
    samples, _ = written(texts, bias, seed=1)
    rate = error_rate(texts, readings(samples))
    print(
        f"bias {bias:g}: {rate:.1%} of the written digits are misread (people's: {real_rate:.1%})"
    )
assert rate < 0.3

# %% [markdown]
# ## Where to go from here
#
# - `lstm-jax train configs/unipen_words.toml` reads words, optionally with a lexicon, and
#   `configs/unipen_synthesis.toml` writes them. `docs/handwriting.md` describes both.
# - Your own ink, as CSV, InkML or UNIPEN: `lstm-jax predict RUN my_word.inkml --plot word.svg`.
# - The reader's model is also that of speech: `configs/spoken_digits.toml`.
