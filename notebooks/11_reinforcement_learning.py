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
# # Reinforcement learning: an agent with a memory
#
# At the end of this notebook you will know
#
# - how to compute a rollout of vmapped environments and an LSTM in one `lax.scan`;
# - why an update has to replay the rollout with the same resets, and how `resets_from_dones` makes
#   them from the flags of the rollout;
# - what happens without memory, and with resets that are one step off;
# - how the trained agent stores the cue.
#
# The algorithm is recurrent PPO, in one file: [`examples/ppo.py`](../examples/ppo.py). The notebook
# takes about a minute on two cores.

# %%
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from lstm_jax import resets_from_dones

sys.path.append("../examples")  # the folder of ppo.py, seen from this notebook
import ppo

plt.rcParams.update({"figure.figsize": (6, 3.5), "figure.constrained_layout.use": True})

# %% [markdown]
# ## A task that needs a memory
#
# In the first step of an episode the agent sees one of four cues. Then it sees nothing, for a
# number of steps that differs from episode to episode. In the last step a flag asks for the cue,
# and the right action has a reward of 1. No single observation contains both the answer and the
# question.

# %%
env = ppo.Recall(num_cues=4, shortest=5, longest=10)
state = env.reset(jax.random.key(0))
print("cue", int(state.cue), "length", int(state.length))
for _ in range(int(state.length)):
    print(int(state.step), env.observe(state))
    state, reward, done = env.step(state, state.cue, jax.random.key(1))
print("reward", reward, "done", done)

# %% [markdown]
# ## The rollout and its replay
#
# `play` steps the agent and 4 environments together. An environment that ends its episode starts
# the next one automatically, so a rollout contains several episodes, and its first step may be in
# the middle of one. The agent's LSTM therefore starts from its initial state if the *previous* step
# was the last of its episode.
#
# An update needs log-probabilities and values as functions of the parameters. It runs the agent
# over the whole rollout in one call, from the initial carry of the rollout. With unchanged
# parameters, this replay must return the values that the rollout recorded.

# %%
agent = ppo.Agent(env.num_features, env.num_cues, hidden=32, rngs=nnx.Rngs(0))
players = ppo.start(env, agent, 4, jax.random.key(0))
players, _, _ = ppo.play(env, agent, players, jax.random.key(1), num_steps=20)
after, rollout, _ = ppo.play(env, agent, players, jax.random.key(2), num_steps=20)

resets = resets_from_dones(rollout.dones, players.previous_done)
print("dones ", *rollout.dones[:, 0].astype(int))
print("resets", *resets[:, 0].astype(int))

_, values = ppo.replay(agent, players.carry, players.previous_done, rollout)
print(
    "largest difference of values:",
    "tiny" if jnp.abs(values - rollout.values).max() < 1e-5 else "large",
)

# %% [markdown]
# With `dones` as resets the replay differs: the last step of each episode, which asks for the cue,
# would start from an empty memory.

# %%
_, _, wrong = agent(players.carry, rollout.observations, rollout.dones)
print(
    "largest difference of values:",
    "tiny" if jnp.abs(wrong - rollout.values).max() < 1e-5 else "large",
)


# %% [markdown]
# ## Three agents
#
# The first agent has a memory. The second is reset before each step, so it has none. The third acts
# correctly, but its updates replay the rollout with `dones` as resets.


# %%
class Forgetful(ppo.Agent):
    """Starts from the initial state at each step."""

    def __call__(self, carry, xs, resets):
        return super().__call__(carry, xs, jnp.ones_like(resets))


def replay_with_dones(agent, carry, previous_done, rollout):
    """A mistake: the resets are one step early."""
    _, logits, values = agent(carry, rollout.observations, rollout.dones)
    return logits, values


options = ppo.PPO(num_updates=80, num_envs=32, num_steps=32, hidden=24, learning_rate=5e-3)
kinds = {
    "resets_from_dones": {},
    "no memory": {"agent_class": Forgetful},
    "resets = dones": {"replay": replay_with_dones},
}
agents, curves = {}, {}
for name, kind in kinds.items():
    history = list(ppo.train(env, options, **kind))
    agents[name] = history[-1][0]
    curves[name] = [reward for _, reward in history]
    print(f"{name:18} mean reward of the last ten updates {np.mean(curves[name][-10:]):.1f}")

for (name, curve), colour in zip(curves.items(), ("tab:blue", "0.6", "tab:orange"), strict=True):
    plt.plot(curve, color=colour, linewidth=2, label=name)
plt.axhline(1 / env.num_cues, color="0.3", linewidth=0.8, linestyle="--")
plt.xlabel("update")
plt.ylabel("reward per episode")
plt.ylim(0, 1.05)
plt.legend()
plt.show()

# %% [markdown]
# There is no error with the wrong resets: the loss falls, and the agent acts. It only lacks the
# gradient from the question to the cue.

# %% [markdown]
# ## What the agent stores
#
# The trained agent sees each cue, and then nothing. The cell state of its LSTM differs between cues
# and preserves this difference until the question.

# %%
agent = agents["resets_from_dones"]
xs = np.zeros((10, env.num_cues, env.num_features), "float32")
xs[0, :, : env.num_cues] = np.eye(env.num_cues)
xs[-1, :, -1] = 1
carry, cells = agent.initial_carry(env.num_cues), []
for x in xs:
    carry, logits, _ = agent(carry, x[None], jnp.zeros((1, env.num_cues), bool))
    cells.append(jax.tree.leaves(carry)[1])
print("answers:", logits[0].argmax(-1))

cells = np.stack(cells)  # [T, cue, H]
unit = cells[-1].std(0).argmax()  # the unit that differs most between cues
for cue in range(env.num_cues):
    plt.plot(cells[:, cue, unit], marker="o", markersize=3, label=f"cue {cue}")
plt.xlabel("step")
plt.ylabel(f"cell state of unit {unit}")
plt.legend()
plt.show()

# %% [markdown]
# ## Exercises
#
# 1. Give the environment distractors: random cues in the steps between the first and the last, with
#    a flag that marks the relevant one.
# 2. Train with rollouts shorter than an episode (`num_steps=8`). The gradient then does not reach
#    the cue, since it ends at the start of the rollout. How much is still learned, and why?
# 3. Replace the LSTM by a `gru` or a `min_gru` ([the cells](../docs/cells.md)).
