"""Each script learns small tasks, one for each kind of action, far better than chance.

The thresholds leave room, so that the tests pass on every CPU and with every seed:
                  best    ten seeds, worst    threshold    untrained    loss with the wrong sign
    CartPole      500     112                 60           24           9
    MultiDiscrete 20      16                  14           8            at most 13
    Move          −2      −7                  −9           −19          −97
"""

import importlib
import json

import pytest
from conftest import OFF_POLICY, ON_POLICY

ROLLOUTS = dict(num_envs=8, num_steps=16)
SETTINGS = {
    "reinforce": dict(batch_size=300, learning_rate=1e-2, gamma=0.95),
    "reinforce_baseline": dict(batch_size=300, learning_rate=1e-2, gamma=0.95, critic_epochs=4),
    "a2c": dict(**ROLLOUTS, learning_rate=5e-3, gamma=0.95, max_grad_norm=0.5),
    "a3c": dict(num_workers=2, num_steps=32, learning_rate=3e-3, gamma=0.95, max_grad_norm=0.5),
    "trpo": dict(num_envs=8, num_steps=32, critic_learning_rate=3e-3, gamma=0.95, max_kl=0.05),
    "ppo": dict(
        **ROLLOUTS, learning_rate=3e-3, gamma=0.95, num_minibatches=4, update_epochs=4
    ),
    "ddpg": dict(q_lr=3e-3, policy_lr=1e-3, exploration_noise=0.3),
    "td3": dict(q_lr=3e-3, policy_lr=1e-3, exploration_noise=0.3),
    "sac": dict(q_lr=3e-3, policy_lr=3e-3),
}  # fmt: skip
for script in OFF_POLICY:
    SETTINGS[script] |= dict(learning_starts=300, batch_size=64, tau=0.02, gamma=0.9)
STEPS = {"CartPole-v1": 12_000, "envs:MultiDiscrete-v0": 5_000, "envs:Move-v0": 8_000}
MORE = {
    ("reinforce", "envs:MultiDiscrete-v0"): dict(total_timesteps=8_000),
    ("reinforce_baseline", "envs:MultiDiscrete-v0"): dict(total_timesteps=8_000),
    ("a2c", "CartPole-v1"): dict(total_timesteps=24_000, gamma=0.98),
    ("a3c", "CartPole-v1"): dict(total_timesteps=16_000, gamma=0.98),
    ("trpo", "CartPole-v1"): dict(total_timesteps=20_000, num_steps=64, gamma=0.98),
    ("ppo", "CartPole-v1"): dict(total_timesteps=12_000, num_steps=32, gamma=0.98),
}
THRESHOLDS = {"CartPole-v1": 60, "envs:MultiDiscrete-v0": 14, "envs:Move-v0": -9}
CASES = [(script, env_id) for script in ON_POLICY for env_id in THRESHOLDS]
CASES += [(script, "envs:Move-v0") for script in OFF_POLICY]


def final_return(script: str, env_id: str, seed: int = 1, **settings) -> float:
    """The mean return of 20 episodes after training; in CartPole of the last 100 in training,

    as there the most probable actions of an untrained network can reach 200 by chance.
    """
    module = importlib.import_module(script)
    steps = 1_200 if script in OFF_POLICY else STEPS.get(env_id)
    settings = (
        dict(total_timesteps=steps) | SETTINGS[script] | MORE.get((script, env_id), {}) | settings
    )
    args = module.Args(env_id=env_id, seed=seed, eval_episodes=20, **settings)
    summary = json.loads((module.train(args) / "summary.json").read_text())
    return summary["training_return" if env_id == "CartPole-v1" else "evaluation_return"]


@pytest.mark.parametrize("script, env_id", CASES)
def test_learns(script, env_id):
    assert final_return(script, env_id) >= THRESHOLDS[env_id]


def test_short_episodes_weigh_no_more_than_long_ones():
    """A short episode pays 1, a long one 2; a mean over each episode's own steps prefers 1."""
    settings = dict(total_timesteps=6_000, batch_size=1, gamma=1.0, learning_rate=3e-3)
    settings |= dict(norm_returns=False)
    assert final_return("reinforce", "envs:ShortLong-v0", **settings) == pytest.approx(2)
