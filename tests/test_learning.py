"""The scripts learn: fast environments with a known best return, and probes that expose one mistake."""

import importlib
import json

import pytest
import torch
from conftest import SCRIPTS

CARTPOLE = {
    "reinforce": dict(total_timesteps=70_000, batch_size=500, learning_rate=5e-3),
    "reinforce_baseline": dict(
        total_timesteps=60_000, batch_size=500, learning_rate=1e-2, critic_epochs=4
    ),
    "a2c": dict(total_timesteps=60_000, num_envs=8, num_steps=16, learning_rate=3e-3),
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
    "trpo": dict(total_timesteps=8_000, num_envs=8, num_steps=16, critic_learning_rate=3e-3),
    "ppo": dict(
        total_timesteps=8_000, num_envs=8, num_steps=16, num_minibatches=2, update_epochs=8,
        learning_rate=3e-3,
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
    folder = module.train(module.Args(env_id="probes:TimeLimit-v0", gamma=0.9, **PROBE[script]))
    env = module.make_env("probes:TimeLimit-v0")
    actor = module.Actor(env.observation_space, env.action_space)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    actor.load_state_dict(checkpoint["state"]["actor"])
    assert actor.mode(torch.ones(1, 1)).item() == 0
    assert actor(torch.ones(1, 1)).probs[0, 0] > 0.9
