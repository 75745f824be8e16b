"""Each script learns small tasks, one for each kind of action, far better than chance.

The thresholds leave room, so that the tests pass on every CPU and with every seed:
                  best    ten seeds, worst    threshold    untrained    loss with the wrong sign
    CartPole      500     112                 60           24           9
    MultiDiscrete 20      16                  14           8            at most 13
    Move          −2      −7                  −9           −19          −97
"""

import pytest
from conftest import OFF_POLICY, ON_POLICY, summary_of, train

ENVS = {"num_envs": 8, "num_steps": 16}
OFF = {"learning_starts": 300, "batch_size": 64, "tau": 0.02, "gamma": 0.9, "q_lr": 3e-3}
SETTINGS = {
    "reinforce": {"batch_size": 300, "learning_rate": 1e-2},
    "reinforce_baseline": {"batch_size": 300, "learning_rate": 1e-2, "critic_epochs": 4},
    "a2c": ENVS | {"learning_rate": 5e-3, "max_grad_norm": 0.5},
    "a3c": {"num_workers": 2, "num_steps": 32, "learning_rate": 3e-3, "max_grad_norm": 0.5},
    "trpo": {"num_envs": 8, "num_steps": 32, "critic_learning_rate": 3e-3, "max_kl": 0.05},
    "ppo": ENVS | {"learning_rate": 3e-3, "num_minibatches": 4, "update_epochs": 4},
    "ddpg": OFF | {"policy_lr": 1e-3, "exploration_noise": 0.3},
    "td3": OFF | {"policy_lr": 1e-3, "exploration_noise": 0.3},
    "sac": OFF | {"policy_lr": 3e-3},
}
STEPS = {"CartPole-v1": 12_000, "envs:MultiDiscrete-v0": 5_000, "envs:Move-v0": 8_000}
MORE = {
    ("reinforce", "envs:MultiDiscrete-v0"): {"total_timesteps": 8_000},
    ("reinforce_baseline", "envs:MultiDiscrete-v0"): {"total_timesteps": 8_000},
    ("a2c", "CartPole-v1"): {"total_timesteps": 24_000, "gamma": 0.98},
    ("a3c", "CartPole-v1"): {"total_timesteps": 16_000, "gamma": 0.98},
    ("trpo", "CartPole-v1"): {"total_timesteps": 20_000, "num_steps": 64, "gamma": 0.98},
    ("ppo", "CartPole-v1"): {"num_steps": 32, "gamma": 0.98},
}
THRESHOLDS = {"CartPole-v1": 60, "envs:MultiDiscrete-v0": 14, "envs:Move-v0": -9}
CASES = [(script, env_id) for script in ON_POLICY for env_id in THRESHOLDS]
CASES = [case for case in CASES if case[0] != "a3c" or case[1] == "CartPole-v1"]  # it is slow
CASES += [(script, "envs:Move-v0") for script in OFF_POLICY]


@pytest.mark.parametrize("script, env_id", CASES)
def test_learns(script, env_id):
    """The mean return of 20 episodes after training; in CartPole of the last 100 in training, as
    there the most probable actions of an untrained network can reach 200 by chance."""
    steps = 1_200 if script in OFF_POLICY else STEPS[env_id]
    settings = {"total_timesteps": steps, "gamma": 0.95, "eval_episodes": 20}
    settings |= SETTINGS[script] | MORE.get((script, env_id), {})
    summary = summary_of(train(script, env_id, **settings))
    name = "training_return" if env_id == "CartPole-v1" else "evaluation_return"
    assert summary[name] >= THRESHOLDS[env_id]
