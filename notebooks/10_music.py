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
# # Chorales: predicting and generating chords
#
# At the end of this notebook you will know
#
# - how to represent music as a sequence of vectors, and what the likelihood of music is;
# - why 88 independent predictions make poor chords, and how the chain rule solves this;
# - how to score music, generate chords and harmonise a melody with one model;
# - how to listen to the generated music.
#
# The music is real: 382 chorales harmonised by Johann Sebastian Bach, in the representation and
# split that are standard for such models (Boulanger-Lewandowski et al., 2012). They are downloaded
# once (96 kB). The notebook takes about a minute on two cores.

# %%
import pathlib
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from lstm_jax.data import (
    fetch,
    frequencies,
    midi_bytes,
    pitch_name,
    read_collection,
    roll_windows,
    transitions,
    wav_bytes,
)
from lstm_jax.models import Compiled, PianoRollModel
from lstm_jax.tasks.piano_rolls import frame_losses

plt.rcParams.update({"figure.figsize": (6, 4), "figure.constrained_layout.use": True})
# Without widgets, Jupyter shows the progress of downloads as text, which is fine.
warnings.filterwarnings("ignore", message="IProgress not found")

# %% [markdown]
# ## Music as a sequence
#
# A *piano roll* has a row for each moment and a column for each of a piano's 88 keys, with a 1 if
# the key sounds. Each moment, called a *frame*, lasts a quarter note here.

# %%
chorales = read_collection(fetch("poly_music/JSB_Chorales.mat"), frames_per_beat=1, held_out=0.1)
train, validation, test = (
    [piece.roll for piece in chorales[split]] for split in ("train", "validation", "test")
)
print({split: len(pieces) for split, pieces in chorales.items()}, "first piece:", train[0].shape)
for frame in test[0][:4]:
    print([pitch_name(pitch) for pitch in np.flatnonzero(frame)[::-1]])


def draw(axes, roll, title):
    axes.imshow(roll.T, cmap="Blues", aspect="auto", origin="lower", interpolation="nearest")
    octaves = range(3, 88, 12)
    axes.set_yticks(octaves, [pitch_name(pitch) for pitch in octaves])
    axes.set(title=title, ylim=(20, 78), ylabel="pitch")
    axes.grid(axis="y", color="0.85", linewidth=0.6)


figure, axes = plt.subplots(figsize=(6, 3))
draw(axes, test[0][:64], "a chorale by Bach")
axes.set_xlabel("frame (quarter notes)")
plt.show()

# %% [markdown]
# There are four voices: soprano, alto, tenor and bass. Each moves by small steps, and together they
# form chords.
#
# ## How likely is music?
#
# A model assigns a probability to each frame $x_t \in \{0, 1\}^{88}$, given the previous frames. We
# measure it by the mean of $-\log p(x_t \mid x_{<t})$ in nats: how surprising is the next frame for
# the model, on average? As in the literature, the mean excludes the first frame of each piece.
#
# Two simple models treat each pitch separately. The first uses the frequency of each pitch. The
# second uses the frequency of each pitch *after a frame in which it sounded*, or did not.

# %%
shares, chain = frequencies(train), transitions(train)


def nats(roll, probability):
    return -np.log(np.where(roll, probability, 1 - probability)).sum(1)


constant = np.concatenate([nats(roll[1:], shares) for roll in test]).mean()
markov = np.concatenate(
    [nats(roll[1:], np.where(roll[:-1], chain[1], chain[0])) for roll in test]
).mean()
print(f"each pitch by itself {constant:.2f} nats a frame, as a Markov chain {markov:.2f}")

# %% [markdown]
# ## Chords and the chain rule
#
# The obvious model is an LSTM that reads the previous frames, with 88 sigmoids as outputs. But it
# chooses each key independently of the others. If Bach would continue with C major or with A minor,
# such a model mixes both.
#
# Any distribution is a product of conditional distributions. We order the keys from the highest to
# the lowest:
#
# $$p(x_t \mid x_{<t}) = \prod_{k=88}^{1} p(x_{t,k} \mid x_{<t}, x_{t,k+1}, \dots, x_{t,88})$$
#
# `PianoRollModel` computes all these factors at once. An LSTM encodes the past as $h_t$. The
# probability of key $k$ also depends on the previous frame and on the higher keys in the same
# frame, *as intervals*:
#
# $$u_{t,k} = \mathrm{silu}\Bigl(A h_t + c_k
# + \sum_j x_{t-1,j}\, Q_{j-k} + \sum_{j>k} x_{t,j}\, P_{j-k}\Bigr)$$
#
# and its logit is $(W h_t + b)_k + V_k \cdot u_{t,k}$. $P$ and $Q$ depend only on the interval, so
# a third below the soprano has the same effect at any pitch. That is why 229 chorales are enough.

# %%
HIDDEN, FEATURES, LANES, WINDOW, STEPS = 128, 24, 16, 48, 300

model = PianoRollModel(
    HIDDEN,
    conditioned=True,
    interval_features=FEATURES,
    input_dropout=0.1,
    dropout=0.2,
    rngs=nnx.Rngs(0),
)
optimizer = nnx.Optimizer(
    model,
    optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(8e-3, STEPS), weight_decay=0.05),
    ),
    wrt=nnx.Param,
)


@nnx.jit
def train_step(model, optimizer, carry, batch):
    def loss(model):
        after, outputs = model(carry, frames=batch["frames"], start=batch["start"])
        losses = optax.sigmoid_binary_cross_entropy(outputs["logits"], batch["frames"])
        return losses.sum(-1).mean(), after

    (value, after), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
    optimizer.update(model, gradients)
    return value, after


# %% [markdown]
# Each row of a batch reads the chorales in its own order. `start` marks the first frame of a
# chorale, at which the state is reset. The state after one window is the initial state of the next.

# %%
batches = roll_windows(train, LANES, WINDOW, transpose=1, seed=0)
carry = model.initial_carry(LANES)
for number in range(STEPS):
    value, carry = train_step(model, optimizer, carry, batches[number])
    if (number + 1) % 50 == 0:
        print(f"step {number + 1}: training loss {value:.2f}")

trained = Compiled(model)  # in evaluation mode, with compiled calls
loss = np.concatenate([losses[1:] for losses in frame_losses(trained, test)]).mean()
print(
    f"{loss:.2f} nats a frame (a Markov chain: {markov:.2f}, each pitch by itself: {constant:.2f})"
)
assert loss < 0.8 * markov

# %% [markdown]
# One nat less is a factor of $e$: in the geometric mean, the model assigns to a chord of Bach's a
# probability that is tens of times as high as the Markov chain's. (`configs/jsb_notes.toml` trains
# longer and reaches a lower loss.)
#
# ## Generating
#
# To generate a frame, sample the keys from the highest to the lowest, each with the probability
# that the model assigns, given the keys chosen so far. The complete frame then becomes part of the
# past.


# %%
@jax.jit
def invent(carry, key, soprano):
    """The carry after a new frame, and the frame; keys above the soprano are silent."""
    network = trained.module

    def choose(frame, inputs):
        pitch, coin = inputs
        _, outputs = network(carry, frames=frame[None, None])
        sounds = coin < jax.nn.sigmoid(outputs["logits"][0, 0, pitch])
        given = pitch == soprano
        return frame.at[pitch].set(jnp.where(pitch < soprano, sounds, given)), None

    coins = jax.random.uniform(key, 88)
    frame, _ = jax.lax.scan(choose, jnp.zeros(88), (jnp.arange(87, -1, -1), coins))
    carry, _ = network(carry, frames=frame[None, None])
    return carry, frame


def tune(seed, melody):
    carry, frames = trained.initial_carry(1), []
    for number, soprano in enumerate(melody):
        key = jax.random.fold_in(jax.random.key(seed), number)
        carry, frame = invent(carry, key, soprano)
        frames.append(np.asarray(frame))
    return np.array(frames)


# %% [markdown]
# The same function harmonises a melody. Keys above a given soprano are silent, the soprano's key
# sounds, and the model chooses the rest. The plot shows the melody of a chorale of the test set,
# with Bach's voices below it and with the model's. This chorale is not in the training data.

# %%
FRAMES = 48
melody = np.array([np.flatnonzero(frame).max(initial=-1) for frame in test[0][:FRAMES]])
harmonised = tune(1, melody)
assert [np.flatnonzero(frame).max(initial=-1) for frame in harmonised] == melody.tolist()

figure, panels = plt.subplots(2, 1, sharex=True)
draw(panels[0], test[0][:FRAMES], "Bach")
draw(panels[1], harmonised, "the same soprano, harmonised by the model")
panels[1].set_xlabel("frame (quarter notes)")
plt.show()

# %% [markdown]
# How likely are Bach's voices for the model, and how likely are its own? And how often does it
# choose the same key as Bach?

# %%
for name, roll in (("Bach", test[0][:FRAMES]), ("the model", harmonised)):
    print(f"{name:10} {frame_losses(trained, [roll])[0][1:].mean():.2f} nats a frame")
both = (harmonised > 0) & (test[0][:FRAMES] > 0)
lower = test[0][:FRAMES].sum() - FRAMES
print(f"{both.sum() - FRAMES} of Bach's {lower} lower notes are also the model's")

# %% [markdown]
# Bach's voices are more likely for the model than its own: the model chooses each chord without
# knowing the rest of the melody, but Bach knew it.
#
# ## From nothing
#
# Without a given soprano, the model chooses every key, from the first chord on. The MIDI file is
# for a notation program, and the WAV file is for listening; both are written to the current folder.

# %%
free = tune(3, np.full(64, 88))
pathlib.Path("chorale.mid").write_bytes(midi_bytes(free, frames_per_beat=1, tempo=80, program=19))
pathlib.Path("chorale.wav").write_bytes(wav_bytes(free, seconds=60 / 80))
for frame in free[:8]:
    print(" ".join(pitch_name(pitch) for pitch in np.flatnonzero(frame)[::-1]) or "-")

figure, axes = plt.subplots(figsize=(6, 3))
draw(axes, free, "a chorale that nobody has written")
axes.set_xlabel("frame (quarter notes)")
plt.show()

# %% [markdown]
# ## Where to go from here
#
# - `lstm-jax train configs/jsb_notes.toml` trains the full model, and
#   `lstm-jax generate RUN --soprano melody.mid` harmonises your own melody.
# - Your own music: `docs/music.md` describes the way from a folder of MIDI files to a new tune.
# - A lower temperature (divide the logits by 0.8) gives safer chords and fewer surprises.
