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
# # Translation with attention
#
# At the end of this notebook you will know
#
# - how an encoder and a decoder, both LSTMs, turn one sequence into another of any length;
# - what attention computes, and how a map of it explains a translation;
# - how to train with teacher forcing, and how to generate without it: greedily, and with a beam;
# - what a beam shows that a single answer hides.
#
# The two languages are small, so that a model learns them within a minute: dates as people write
# them, and dates as computers write them. No data are downloaded.

# %%
import datetime
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from lstm_jax import LSTMCell
from lstm_jax.models import Decoding, Seq2Seq
from lstm_jax.models.attention import attend, dot_scores
from lstm_jax.models.beam_search import beam_search, greedy_search, repeated

plt.rcParams.update({"figure.figsize": (6, 4), "figure.constrained_layout.use": True})

# %% [markdown]
# ## Pairs of sentences
#
# Each day is written in one of several ways. One of them is deliberately ambiguous: `03/04/2021` is
# the third of April in some countries and the fourth of March in others.

# %%
FORMATS = ["%-d %B %Y", "%B %-d, %Y", "%a, %d %b %Y", "%d.%m.%y", "%d/%m/%Y", "%m/%d/%Y"]


def pair(rng):
    day = datetime.date(1980, 1, 1) + datetime.timedelta(days=int(rng.integers(20_000)))
    return day.strftime(FORMATS[rng.integers(len(FORMATS))]), day.isoformat()


rng = np.random.default_rng(0)
pairs = [pair(rng) for _ in range(12_000)]
train, test = pairs[:-500], pairs[-500:]
for source, target in pairs[:5]:
    print(f"{source:18} -> {target}")

# %% [markdown]
# Tokens are characters here; `lstm_jax.data.Tokenizer` makes subwords of real sentences. Three
# numbers have a special meaning: 0 is padding, 1 starts a target, and 2 ends a sequence.

# %%
PAD, START, END = range(3)
characters = sorted({c for pair in pairs for text in pair for c in text})
number = {c: n for n, c in enumerate(characters, 3)}
V = len(characters) + 3


def encoded(texts):
    """The characters of each text and the end, padded: int32 [B, T], and the lengths [B]."""
    rows = [[number[c] for c in text] + [END] for text in texts]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, filled in zip(rows, tokens, strict=True):
        filled[: len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)


def decoded(tokens):
    return "".join(characters[t - 3] for t in tokens if t > END)


xs, lengths = encoded([source for source, _ in train])
ys, _ = encoded([target for _, target in train])  # all targets have ten characters
print(xs.shape, ys.shape, "V =", V)

# %% [markdown]
# ## What attention computes
#
# The encoder computes one vector $m_s$ for each source token. At each step the decoder has a query
# $q$. Scores measure the similarity of $q$ and $m_s$, a softmax turns them into weights that add up
# to 1, and the *context* is the mean with these weights:
#
# $$\alpha_s = \frac{e^{q \cdot m_s}}{\sum_r e^{q \cdot m_r}} \qquad
#   \mathrm{context} = \sum_s \alpha_s m_s$$
#
# With a query that resembles the second of three vectors, the context is nearly that vector:

# %%
memory = jnp.array([[4.0, 0.0], [0.0, 4.0], [-4.0, 0.0]])
context, weights = attend(dot_scores(jnp.array([0.3, 1.0]), memory), memory)
print("weights", np.asarray(weights).round(3), "context", np.asarray(context).round(2))

by_hand = np.exp([1.2, 4.0, -1.2])
np.testing.assert_allclose(weights, by_hand / by_hand.sum(), rtol=1e-5)

# %% [markdown]
# ## The model
#
# `Seq2Seq` reads the source in both directions. Its decoder reads the embedding of the last token
# and the last *attentional vector* $a_{t-1}$ (input feeding), so it knows which source tokens it
# has attended to:
#
# $$s_t = \mathrm{LSTM}(s_{t-1}, [E y_t, a_{t-1}]) \qquad
#   a_t = \tanh(W [s_t, \mathrm{context}_t]) \qquad \mathrm{logits}_t = E a_t + b$$

# %%
# With open initial forget gates, 1500 steps are enough.
cell = functools.partial(LSTMCell, kernel_init="glorot_uniform", forget_bias=1.0)
model = Seq2Seq(V, 32, 64, cell=cell, rngs=nnx.Rngs(0))
carry = model.encode(source=xs[:4], lengths=lengths[:4])
_, outputs = model(carry, tokens=ys[:4])
print({name: array.shape for name, array in outputs.items()})

# %% [markdown]
# ## Training with the right answer so far
#
# In *teacher forcing*, the decoder reads the true target during training, one step behind. All
# steps are then one call, and the loss is the cross-entropy of each next token.

# %%
STEPS, BATCH = 1500, 64


def loss_of(model, xs, lengths, ys):
    carry = model.encode(source=xs, lengths=lengths)
    read = jnp.pad(ys[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    _, outputs = model(carry, tokens=read)
    return optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], ys).mean()


graph, params, rest = nnx.split(model, nnx.Param, ...)
optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.warmup_cosine_decay_schedule(0.0, 5e-3, 50, STEPS)),
)


@jax.jit
def step(params, state, xs, lengths, ys):
    def loss(params):
        return loss_of(nnx.merge(graph, params, rest), xs, lengths, ys)

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, value


state = optimizer.init(params)
for n in range(STEPS):
    rows = rng.integers(len(xs), size=BATCH)
    params, state, loss = step(params, state, xs[rows], lengths[rows], ys[rows])
    if n % 250 == 0 or n == STEPS - 1:
        print(f"step {n:4}: {float(loss):.3f} nats a character")
model = nnx.merge(graph, params, rest)

# %% [markdown]
# ## Generation without a teacher
#
# Now the decoder reads its own output. *Greedy* search chooses the most likely token at each step.
# The search is one compiled loop, which only needs a step `(carry, token) -> (carry, log
# probabilities)`.


# %%
def start(model, texts, times=1):
    """The arguments of a search: a step, and the first carry with each row repeated."""
    tokens, lengths = encoded(texts)
    memory, first = repeated(model.encode(source=tokens, lengths=lengths), times)

    def step(state, token):
        (_, state), outputs = model(Decoding(memory, state), tokens=token[:, None])
        return state, jax.nn.log_softmax(outputs["logits"][:, 0])

    return step, first


SEARCH = {"max_steps": 12, "start": START, "end": END}


def translate(texts):
    found = greedy_search(*start(model, texts), rows=len(texts), **SEARCH)
    return [decoded(tokens) for tokens in np.asarray(found.tokens[:, 0])]


clear = [(source, target) for source, target in test if "/" not in source]
written = translate([source for source, _ in clear])
right = np.mean([one == target for one, (_, target) in zip(written, clear, strict=True)])
print(f"{right:.1%} of {len(clear)} unambiguous dates of the test are right")
assert right > 0.95

# %% [markdown]
# ## The attention map
#
# The attention of each step is an output of the model. Each row of the map is a character of the
# answer, with its weights on the source characters.


# %%
def attention_of(source, target):
    tokens, lengths = encoded([source])
    labels, _ = encoded([target])
    read = np.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    _, outputs = model(model.encode(source=tokens, lengths=lengths), tokens=read)
    return np.asarray(outputs["attention"])[0]


source = "19 December 2015"
(target,) = translate([source])
weights = attention_of(source, target)
figure, axes = plt.subplots()
axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
axes.set_xticks(range(len(source) + 1), [*source, "end"])
axes.set_yticks(range(len(target) + 1), [*target, "end"])
axes.set(xlabel="source", ylabel="target, from top to bottom")
plt.show()
print(source, "->", target)

# %% [markdown]
# The year comes first in the answer and last in the source, so a model without attention would have
# to store the whole source. For the month, the decoder attends to the letters that distinguish it
# from the other eleven.
#
# ## What a beam shows
#
# A beam retains the K most likely hypotheses instead of one. For most dates the second hypothesis
# is very unlikely. For an ambiguous date it is the other interpretation, with a considerable
# probability:

# %%
texts = ["19 December 2015", "03/04/2021", "30/04/2021"]
K = 3
found = beam_search(*start(model, texts, K), rows=len(texts), beam=K, **SEARCH)
for n, text in enumerate(texts):
    print(text)
    for k in range(K):
        share = float(jnp.exp(found.scores[n, k]))
        print(f"   {decoded(np.asarray(found.tokens[n, k]))}   {share:.1%}")
second = np.exp(np.asarray(found.scores[:2, 1]))
assert second[1] > 4 * second[0]

# %% [markdown]
# Scores are log probabilities here. There is no 30th month, so the third date is unambiguous; the
# model has learned this from the pairs.
#
# ## Where to go from here
#
# - `lstm-jax train configs/multi30k.toml` trains the same model on real sentences, English to
#   German, with subwords, dropout, averaged parameters and BLEU; `docs/translation.md` does this
#   with your own text files.
# - `beam_search(alpha=...)` divides scores by a length penalty, without which short translations
#   are preferred; `bonus=` can add a penalty for source words that received little attention.
# - `Seq2Seq(..., input_feeding=False)` is faster to train: no step waits for the attention of the
#   previous step.
