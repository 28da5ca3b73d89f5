"""Recurrent PPO on a memory task, in one file.

    python examples/ppo.py                       # half a minute on two cores
    python examples/ppo.py --plot recall.png     # also plots the learning curve

An agent sees one of four cues, then nothing for 10 to 30 steps, and must then name the cue. The
environments are vmapped, a rollout is one ``lax.scan``, and an update replays whole rollouts from
their initial carry. The replay reproduces the log-probabilities of the rollout because it uses the
same resets: ``resets_from_dones``.

References:
  John Schulman, Filip Wolski, Prafulla Dhariwal, Alec Radford, Oleg Klimov, "Proximal Policy
  Optimization Algorithms", 2017.
  John Schulman, Philipp Moritz, Sergey Levine, Michael Jordan, Pieter Abbeel, "High-Dimensional
  Continuous Control Using Generalized Advantage Estimation", ICLR 2016.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lstm_jax import resets_from_dones, tune_cpu
from lstm_jax.nnx import LSTM

# ---- the environment ----


class RecallState(NamedTuple):
    """The state of an episode: the cue, the step within it, and its number of steps (all int)."""

    cue: jax.Array
    step: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class Recall:
    """The task is to remember the cue of the first step and to name it in the last one.

    An observation is ``[num_cues + 1]``: the one-hot cue in the first step, and a flag in the last
    one. The reward is 1 if the action of the last step is the cue, and 0 otherwise, so an agent
    without memory has a mean reward of ``1 / num_cues`` per episode.
    """

    num_cues: int = 4
    shortest: int = 10
    longest: int = 30

    @property
    def num_features(self) -> int:
        """Size of an observation."""
        return self.num_cues + 1

    @property
    def num_actions(self) -> int:
        """One action names each cue."""
        return self.num_cues

    def reset(self, key: jax.Array) -> RecallState:
        """A new episode."""
        cue_key, length_key = jax.random.split(key)
        return RecallState(
            cue=jax.random.randint(cue_key, (), 0, self.num_cues),
            step=jnp.zeros((), "int32"),
            length=jax.random.randint(length_key, (), self.shortest, self.longest + 1),
        )

    def observe(self, state: RecallState) -> jax.Array:
        """The agent's observation of a state, float32 ``[num_cues + 1]``."""
        cue = jax.nn.one_hot(state.cue, self.num_cues) * (state.step == 0)
        asked = state.step == state.length - 1
        return jnp.append(cue, asked)

    def step(
        self, state: RecallState, action: jax.Array, key: jax.Array
    ) -> tuple[RecallState, jax.Array, jax.Array]:
        """The next state (of a new episode after the last step), the reward, and the done flag."""
        done = state.step == state.length - 1
        reward = jnp.where(done & (action == state.cue), 1.0, 0.0)
        following = state._replace(step=state.step + 1)
        state = jax.tree.map(functools.partial(jnp.where, done), self.reset(key), following)
        return state, reward, done


# ---- the agent ----


class Agent(nnx.Module):
    """An LSTM with a policy and a value head. Time leads: xs ``[T, B, D]``, resets ``[T, B]``."""

    def __init__(self, num_features: int, num_actions: int, hidden: int, *, rngs: nnx.Rngs):
        self.lstm = LSTM(num_features, hidden, time_major=True, rngs=rngs)
        small = nnx.initializers.orthogonal(0.01)
        self.policy = nnx.Linear(hidden, num_actions, kernel_init=small, rngs=rngs)
        self.value = nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(
        self, carry: Any, xs: jax.Array, resets: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array]:
        """The carry after the last step, logits ``[T, B, A]`` and values ``[T, B]``."""
        carry, hs = self.lstm(xs, initial_carry=carry, resets=resets, return_carry=True)
        return carry, self.policy(hs), self.value(hs)[..., 0]

    def initial_carry(self, rows: int) -> Any:
        """The state before the first step."""
        return self.lstm.initialize_carry((rows, self.lstm.in_features))


def log_probability(logits: jax.Array, actions: jax.Array) -> jax.Array:
    """Log-probability of the actions, ``[...]``, given logits ``[..., A]``."""
    logits = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logits, actions[..., None], -1)[..., 0]


# ---- rollouts ----


class Rollout(NamedTuple):
    """T steps of B environments: each ``[T, B]``, observations ``[T, B, D]``."""

    observations: jax.Array
    actions: jax.Array
    log_probs: jax.Array
    values: jax.Array
    rewards: jax.Array
    dones: jax.Array


class Players(NamedTuple):
    """B environments during their episodes, and the agent's memory of each."""

    states: Any
    carry: Any
    previous_done: jax.Array  # [B]: whether the step before the next one ended an episode


def start(env: Recall, agent: Agent, rows: int, key: jax.Array) -> Players:
    """Environments at the start of their first episodes."""
    states = jax.vmap(env.reset)(jax.random.split(key, rows))
    return Players(states, agent.initial_carry(rows), jnp.ones(rows, bool))


def play(
    env: Recall, agent: Agent, players: Players, key: jax.Array, num_steps: int
) -> tuple[Players, Rollout, jax.Array]:
    """A rollout, the environments after it, and the value of their next observations, ``[B]``."""
    rows = len(players.previous_done)

    def one(players: Players, key: jax.Array) -> tuple[Players, Rollout]:
        seen = jax.vmap(env.observe)(players.states)
        carry, logits, values = agent(players.carry, seen[None], players.previous_done[None])
        action_key, step_key = jax.random.split(key)
        actions = jax.random.categorical(action_key, logits[0])
        states, rewards, dones = jax.vmap(env.step)(
            players.states, actions, jax.random.split(step_key, rows)
        )
        log_probs = log_probability(logits[0], actions)
        happened = Rollout(seen, actions, log_probs, values[0], rewards, dones)
        return Players(states, carry, dones), happened

    players, rollout = jax.lax.scan(one, players, jax.random.split(key, num_steps))
    seen = jax.vmap(env.observe)(players.states)
    _, _, values = agent(players.carry, seen[None], players.previous_done[None])
    return players, rollout, values[0]


def replay(
    agent: Agent, carry: Any, previous_done: jax.Array, rollout: Rollout
) -> tuple[jax.Array, jax.Array]:
    """Logits ``[T, B, A]`` and values ``[T, B]`` of a rollout, in one call of the agent."""
    resets = resets_from_dones(rollout.dones, previous_done)
    _, logits, values = agent(carry, rollout.observations, resets)
    return logits, values


# ---- PPO ----


@dataclasses.dataclass(frozen=True)
class PPO:
    """The algorithm's constants."""

    num_updates: int = 120
    num_envs: int = 64
    num_steps: int = 64
    hidden: int = 48
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 2e-3
    discount: float = 0.99
    trace_decay: float = 0.95
    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    max_norm: float = 0.5

    def optimizer(self) -> optax.GradientTransformation:
        """Adam with clipping of the gradient norm."""
        return optax.chain(optax.clip_by_global_norm(self.max_norm), optax.adam(self.learning_rate))


def advantages(rollout: Rollout, last_values: jax.Array, options: PPO) -> jax.Array:
    """Generalised advantage estimates ``[T, B]``.

    A_t = δ_t + γ λ (1 - d_t) A_{t+1}, where δ_t = r_t + γ (1 - d_t) V_{t+1} - V_t and d_t is 1 if
    step t ended its episode.
    """
    following = jnp.concatenate([rollout.values[1:], last_values[None]])
    goes_on = 1 - rollout.dones
    errors = rollout.rewards + options.discount * goes_on * following - rollout.values
    decay = options.discount * options.trace_decay * goes_on

    def one(later: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, decay = step
        later = error + decay * later
        return later, later

    return jax.lax.scan(one, jnp.zeros_like(last_values), (errors, decay), reverse=True)[1]


class Minibatch(NamedTuple):
    """Whole rollouts of some environments, with the data needed to replay them."""

    carry: Any  # [B, ...], before the first step
    previous_done: jax.Array  # [B]
    rollout: Rollout
    advantages: jax.Array  # [T, B]


def ppo_loss(agent: Agent, batch: Minibatch, options: PPO, replay: Callable = replay) -> jax.Array:
    """Clipped policy loss, squared error of the values, and an entropy bonus."""
    rollout = batch.rollout
    logits, values = replay(agent, batch.carry, batch.previous_done, rollout)
    ratio = jnp.exp(log_probability(logits, rollout.actions) - rollout.log_probs)
    gain = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - options.clip, 1 + options.clip)
    policy_loss = -jnp.minimum(ratio * gain, clipped * gain).mean()
    value_loss = jnp.square(values - rollout.values - batch.advantages).mean()
    entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1).mean()
    return policy_loss + options.value_weight * value_loss - options.entropy_weight * entropy


def split_rows(batch: Minibatch, key: jax.Array, parts: int) -> Minibatch:
    """Divides the environments at random into parts, with a leading axis: ``[parts, ...]``."""
    order = jax.random.permutation(key, len(batch.previous_done)).reshape(parts, -1)
    take_rows = functools.partial(jax.tree.map, lambda leaf: leaf[order])
    take_steps = functools.partial(jax.tree.map, lambda leaf: jnp.moveaxis(leaf[:, order], 1, 0))
    return Minibatch(
        take_rows(batch.carry),
        take_rows(batch.previous_done),
        take_steps(batch.rollout),
        take_steps(batch.advantages),
    )


def train(
    env: Recall,
    options: PPO,
    seed: int = 0,
    agent_class: type[Agent] = Agent,
    replay: Callable = replay,
) -> Iterator[tuple[Agent, float]]:
    """Trains an agent; after each update yields it and the mean reward per finished episode."""
    agent = agent_class(env.num_features, env.num_actions, options.hidden, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(agent)
    optimizer = options.optimizer()
    loss = functools.partial(ppo_loss, options=options, replay=replay)

    def learn(learner: tuple, batch: Minibatch) -> tuple[tuple, None]:
        params, opt_state = learner
        gradient = jax.grad(lambda p: loss(nnx.merge(graph, p), batch))(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def update(
        learner: tuple, players: Players, key: jax.Array
    ) -> tuple[tuple, Players, jax.Array]:
        agent = nnx.merge(graph, learner[0])
        play_key, learn_key = jax.random.split(key)
        after, rollout, last_values = play(env, agent, players, play_key, options.num_steps)
        gains = advantages(rollout, last_values, options)
        batch = Minibatch(players.carry, players.previous_done, rollout, gains)

        def epoch(learner: tuple, key: jax.Array) -> tuple[tuple, None]:
            parts = split_rows(batch, key, options.minibatches)
            return jax.lax.scan(learn, learner, parts)

        learner, _ = jax.lax.scan(epoch, learner, jax.random.split(learn_key, options.epochs))
        return learner, after, rollout.rewards.sum() / rollout.dones.sum()

    key, start_key = jax.random.split(jax.random.key(seed))
    players = start(env, agent, options.num_envs, start_key)
    learner = params, optimizer.init(params)
    for update_key in jax.random.split(key, options.num_updates):
        learner, players, reward = update(learner, players, update_key)
        yield nnx.merge(graph, learner[0]), float(reward)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains an agent on a memory task.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE", help="write a plot of the learning curve")
    arguments = parser.parse_args()
    tune_cpu()
    env, options = Recall(), PPO()
    print(f"an agent without memory earns {1 / env.num_cues} per episode, a perfect one 1.0")
    began, rewards = time.perf_counter(), []
    for number, (_, reward) in enumerate(train(env, options, arguments.seed), 1):
        rewards.append(reward)
        if number % 10 == 0:
            steps = number * options.num_envs * options.num_steps
            seconds = time.perf_counter() - began
            print(f"{steps:7} steps  {seconds:5.1f} s  reward per episode {reward:.3f}")
    if arguments.plot:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
        axes.plot(rewards)
        axes.axhline(1 / env.num_cues, color="0.5", linestyle="--", label="without memory")
        axes.set(xlabel="update", ylabel="reward per episode", ylim=(0, 1.05))
        axes.legend()
        figure.savefig(arguments.plot, dpi=200)


if __name__ == "__main__":
    main()
