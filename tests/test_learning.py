"""The scripts learn: fast environments with a known best return, and probes that expose one mistake."""

import importlib
import json

import pytest
import torch
from conftest import OFF_POLICY, SCRIPTS, probe

CARTPOLE = {
    "reinforce": dict(total_timesteps=70_000, batch_size=500, learning_rate=5e-3),
    "reinforce_baseline": dict(
        total_timesteps=60_000, batch_size=500, learning_rate=1e-2, critic_epochs=4
    ),
    "a2c": dict(total_timesteps=60_000, num_envs=8, num_steps=16, learning_rate=3e-3),
    "a3c": dict(total_timesteps=80_000, num_workers=2, num_steps=32, learning_rate=1e-3),
    "trpo": dict(
        total_timesteps=50_000, num_envs=8, num_steps=32, critic_epochs=4, critic_learning_rate=3e-3
    ),
    "ppo": dict(
        total_timesteps=25_000, num_envs=8, num_steps=64, num_minibatches=4, update_epochs=10,
        learning_rate=1e-3,
    ),
}  # fmt: skip
PROBE = {
    "a2c": dict(total_timesteps=8_000, num_envs=8, num_steps=16, learning_rate=3e-3),
    "a3c": dict(total_timesteps=8_000, num_workers=2, num_steps=16, learning_rate=3e-3),
    "trpo": dict(total_timesteps=8_000, num_envs=8, num_steps=16, critic_learning_rate=3e-3),
    "ppo": dict(
        total_timesteps=8_000, num_envs=8, num_steps=16, num_minibatches=2, update_epochs=8,
        learning_rate=3e-3,
    ),
    "ddpg": dict(
        total_timesteps=1_500, learning_starts=300, batch_size=64, learning_rate=1e-3, tau=0.02,
        buffer_size=10_000, exploration_noise=0.3,
    ),
}  # fmt: skip
PROBE["td3"] = PROBE["ddpg"] | dict(policy_frequency=1)
PROBE["sac"] = dict(
    total_timesteps=1_500, learning_starts=300, batch_size=64, q_lr=1e-3, policy_lr=1e-3, tau=0.02,
    buffer_size=10_000, alpha=0.01, autotune=False,
)  # fmt: skip
PENDULUM = {
    "ddpg": dict(
        total_timesteps=9_000, learning_starts=500, batch_size=64, learning_rate=1e-3
    ),
    "td3": dict(
        total_timesteps=8_000, learning_starts=500, batch_size=128, learning_rate=1e-3
    ),
    "sac": dict(
        total_timesteps=6_000, learning_starts=1_000, batch_size=128, policy_lr=1e-3, q_lr=1e-3,
        tau=0.01,
    ),
}  # fmt: skip


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script in CARTPOLE])
def test_cartpole(script):
    """CartPole-v1 is balanced for at least 475 of its 500 steps, its creators' threshold."""
    module = importlib.import_module(script)
    args = module.Args(env_id="CartPole-v1", eval_episodes=20, **CARTPOLE[script])
    result = summary(module.train(args))
    assert result["evaluation_return"] >= 475, result


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script in PROBE])
def test_time_limit_is_not_an_end(script):
    """Going on is worth 10, ending 5; who takes the time limit for an end prefers to end."""
    module = importlib.import_module(script)
    env_id = probe(script, "TimeLimit")
    folder = module.train(module.Args(env_id=env_id, gamma=0.9, **PROBE[script]))
    env = module.make_env(env_id)
    actor = module.Actor(env.observation_space, env.action_space)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    actor.load_state_dict(state["actor"])
    action = actor.mode(torch.ones(1, 1)).item()
    if script not in OFF_POLICY:
        assert action == 0 and actor(torch.ones(1, 1)).probs[0, 0] > 0.9
        return
    assert action < 0
    critic = module.Critic(env.observation_space, env.action_space)
    critic.load_state_dict(state.get("critic", state.get("critic1")))
    going_on, ending = critic(torch.ones(2, 1), torch.tensor([[-0.9], [0.9]])).tolist()
    assert going_on == pytest.approx(10, abs=1) and ending == pytest.approx(5, abs=1)


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script in PENDULUM])
def test_pendulum(script):
    """Pendulum-v1 is swung up and held: better than −250 over 20 episodes."""
    module = importlib.import_module(script)
    args = module.Args(env_id="Pendulum-v1", eval_episodes=20, **PENDULUM[script])
    result = summary(module.train(args))
    assert result["evaluation_return"] >= -250, result
