"""examples/ppo.py: environment, advantages, replay, and an agent that learns to use its memory."""

import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax import resets_from_dones


@pytest.fixture(scope="module")
def ppo():
    path = pathlib.Path(__file__).parents[1] / "examples" / "ppo.py"
    spec = importlib.util.spec_from_file_location("ppo", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ppo"] = module  # where its dataclasses look up annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ppo"]


@pytest.fixture(scope="module")
def played(ppo):
    """An environment, an agent with large weights, and two consecutive rollouts."""
    env = ppo.Recall(shortest=3, longest=5)
    agent = ppo.Agent(env.num_features, env.num_cues, 8, rngs=nnx.Rngs(0))
    noisy = jax.tree.map(
        lambda p: p + 0.5 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), nnx.state(agent)
    )
    nnx.update(agent, noisy)
    players = ppo.start(env, agent, 6, jax.random.key(0))
    rollouts = []
    for key in jax.random.split(jax.random.key(1)):
        after, rollout, last_values = ppo.play(env, agent, players, key, 16)
        rollouts.append((players, rollout, last_values))
        players = after
    return env, agent, rollouts


def test_an_episode_of_recall(ppo):
    env = ppo.Recall(num_cues=3, shortest=4, longest=4)
    state = env.reset(jax.random.key(0))
    cue = int(state.cue)
    seen, rewards, dones = [], [], []
    for _ in range(5):
        seen.append(env.observe(state))
        state, reward, done = env.step(state, jnp.array(cue), jax.random.key(1))
        rewards.append(float(reward))
        dones.append(bool(done))
    np.testing.assert_array_equal(seen[0], [*np.eye(3)[cue], 0])
    np.testing.assert_array_equal(seen[1:4], [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    assert rewards[:4] == [0, 0, 0, 1] and dones == [False, False, False, True, False]
    assert seen[4][:3].sum() == 1 and seen[4][3] == 0  # a new episode


def test_a_wrong_answer_has_no_reward(ppo):
    env = ppo.Recall(num_cues=3, shortest=2, longest=2)
    state = env.reset(jax.random.key(0))._replace(step=jnp.array(1))
    for action in range(3):
        _, reward, done = env.step(state, jnp.array(action), jax.random.key(1))
        assert float(reward) == (action == int(state.cue)) and bool(done)


def test_the_replay_equals_the_rollout(ppo, played):
    """Also in the second rollout, which starts in the middle of episodes."""
    _, agent, rollouts = played
    for players, rollout, _ in rollouts:
        logits, values = ppo.replay(agent, players.carry, players.previous_done, rollout)
        log_probs = ppo.log_probability(logits, rollout.actions)
        np.testing.assert_allclose(log_probs, rollout.log_probs, atol=2e-6)
        np.testing.assert_allclose(values, rollout.values, atol=2e-6)
        assert rollout.dones.any(0).all()


def test_a_replay_with_dones_as_resets_differs(ppo, played):
    _, agent, ((players, rollout, _), _) = played
    _, _, values = agent(players.carry, rollout.observations, rollout.dones)
    assert np.abs(values - rollout.values).max() > 1e-2
    resets = resets_from_dones(rollout.dones, players.previous_done)
    assert (resets != rollout.dones).any()


def test_advantages_equal_a_loop_over_episodes(ppo, played):
    """Each step's estimate is the sum of (γλ)^k δ_{t+k} up to the end of its episode."""
    _, _, (_, (_, rollout, last_values)) = played
    options = ppo.PPO(discount=0.9, trace_decay=0.8)
    found = ppo.advantages(rollout, last_values, options)
    values = np.concatenate([rollout.values, last_values[None]])
    T, B = rollout.dones.shape
    for t in range(T):
        for b in range(B):
            total = 0.0
            for k, later in enumerate(range(t, T)):
                ended = bool(rollout.dones[later, b])
                following = 0.0 if ended else 0.9 * values[later + 1, b]
                error = rollout.rewards[later, b] + following - values[later, b]
                total += (0.9 * 0.8) ** k * error
                if ended:
                    break
            np.testing.assert_allclose(found[t, b], total, atol=1e-5)


def test_the_loss_of_the_first_update_has_the_ratio_one(ppo, played):
    """With the old parameters the policy loss is the mean of normalised advantages: zero."""
    _, agent, (_, (players, rollout, last_values)) = played
    options = ppo.PPO(value_weight=0.0, entropy_weight=0.0)
    gains = ppo.advantages(rollout, last_values, options)
    batch = ppo.Minibatch(players.carry, players.previous_done, rollout, gains)
    assert abs(float(ppo.ppo_loss(agent, batch, options))) < 1e-5


def test_the_agent_learns_to_remember(ppo):
    """Cues are 3 to 6 steps old: an agent without memory has a mean reward of 0.5."""
    env = ppo.Recall(num_cues=2, shortest=4, longest=7)
    options = ppo.PPO(num_updates=60, num_envs=32, num_steps=32, hidden=16, learning_rate=5e-3)
    rewards = [reward for _, reward in ppo.train(env, options)]
    assert rewards[0] < 0.7
    assert np.mean(rewards[-3:]) > 0.95
