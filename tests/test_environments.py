"""What environments may do: spaces, types of rewards and ends, infos, random numbers, faults.

Each fault stands for a kind that users of other libraries have reported. The plumbing, the Actor of
a family and the loops are the same text in several scripts, so most tests take one of each kind.
"""

import math
import re
from contextlib import suppress

import envs
import numpy as np
import pytest
import torch
from conftest import (
    EPISODIC,
    OFF_POLICY,
    ON_POLICY,
    SCRIPTS,
    TINY,
    checkpoint_of,
    each,
    env_for,
    error_line,
    only_folder,
    state_of,
    table,
    train,
    without_clock,
)

KINDS = ["reinforce", "ppo", "sac"]  # whole episodes, rollouts, single steps


def make(script, env_id):
    """The environment as the script sees it, and an untrained actor."""
    env = script.make_env(env_id)
    return env, script.Actor(env.observation_space, env.action_space)


# ── Spaces ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("space", envs.DISCRETE | envs.BOUNDED | envs.UNBOUNDED)
@each("reinforce", "ppo")
def test_actions_on_policy(script, space):
    """Every action is in the space and has its type, and is scored by one number a sample. In the
    runs, the environment asserts that each action that it gets is in its space."""
    env, actor = make(script, f"envs:{space}-v0")
    obs = np.stack([env.reset(seed=n)[0] for n in range(50)])
    if space in envs.DISCRETE:  # each action of the space comes up
        drawn = actor.to_env(actor(torch.as_tensor(obs[0])).sample((3_000,)))
        assert len({str(action) for action in drawn}) == env.unwrapped.n.prod()
    torch.nn.init.orthogonal_(actor.net[-1].weight, 2)  # far from the middle as well
    dist = actor(torch.as_tensor(obs))
    samples = dist.sample()
    for x in (dist.log_prob(samples), dist.entropy()):
        assert x.shape == (50,) and x.isfinite().all()
    for action in (*actor.to_env(samples), *actor.mode(obs), actor.mode(obs[0])):
        assert env.action_space.contains(action) and action.dtype == env.action_space.dtype
    assert (dist.log_prob(dist.mode) >= dist.log_prob(samples)).all()
    rows = table(train(script, f"envs:{space}-v0", eval_episodes=1) / "episodes.csv")
    assert len({row["episode_return"] for row in rows}) > 3


@pytest.mark.parametrize("space", envs.BOUNDED)
@each(*OFF_POLICY)
def test_training_off_policy(script, space):
    """The same; and the bounds themselves can be reached."""
    train(script, f"envs:{space}-v0", eval_episodes=1)
    env, actor = make(script, f"envs:{space}-v0")
    low, high = env.action_space.low, env.action_space.high
    for end, bound in ((-1.0, low), (1.0, high)):
        action = actor.to_env(torch.full((low.size,), end))
        assert env.action_space.contains(action) and action.dtype == low.dtype
        np.testing.assert_allclose(action, bound, rtol=1e-3 if low.dtype == np.float16 else 1e-6)


@each("ppo")
def test_observations(script):
    """Of any kind that can be flattened; the space says what reset and step return: float32."""
    sizes = {"envs:Nested-v0": 10, "envs:Image-v0": 96 * 96 * 3, "Pendulum-v1": 3}
    for env_id, size in (sizes | {"FrozenLake-v1": 16}).items():
        env = script.make_env(env_id)
        assert env.observation_space.shape == (size,)
        for x in (env.reset()[0], env.step(env.action_space.sample())[0]):
            assert x.dtype == env.observation_space.dtype == np.float32
            assert env.observation_space.contains(x)


@each("ppo")
def test_warnings_of_mujoco(script, capfd):
    """MuJoCo 4 warns about HalfCheetah's model: that is shown once, not for each environment."""
    for _ in range(5):
        script.make_env("HalfCheetah-v4")
    shown = capfd.readouterr()
    assert shown.err.count("settotalmass") <= 1  # of the first, by MuJoCo itself
    assert shown.out.count("settotalmass") <= 1


@each("ddpg")
def test_replay_of_images(script):
    """The buffer has no more rows than the run has steps: one million do not fit into memory."""
    settings = {"total_timesteps": 30, "learning_starts": 28, "buffer_size": 1_000_000}
    obs, *_ = state_of(train(script, "envs:BoxImage-v0", **settings))["buffer"]["rows"]
    assert obs.shape == (30, 96 * 96 * 3)


# ── Rewards, ends, infos ──────────────────────────────────────────────────────────────────────────


@each(*KINDS)
def test_types_of_ends_rewards_and_infos(script):
    """What an `if` takes for true ends the episode: with 0 and 1, ~1 = −2 would be a bitwise NOT.
    The whole run is the same as with bool, and so the returns, the bootstraps and the policy. So it
    is with rewards as arrays, and with one dict, with keys of any name, as the info of all steps."""
    expected = without_clock(train(script, "envs:Reach-v0", eval_episodes=1))
    assert len({row["length"] for row in expected["episodes.csv"]}) > 3
    for name in [*(f"Ends{name}" for name in envs.ENDS), "ArrayReward", "OwnInfo"]:
        folder = train(script, f"envs:{name}-v0", eval_episodes=1)
        assert without_clock(folder) == expected, name


@each(*(script for script in ON_POLICY if script != "a3c"))
def test_small_rewards(script):
    """Rewards 2^−20 times as large make the same policy, and values 2^−20 times as large: neither
    what the untrained critic puts out nor the floor of a variance decides."""
    env, actor = make(script, "envs:Choose-v0")
    obs = torch.as_tensor(np.stack([env.reset(seed=n)[0] for n in range(50)]))
    found = []
    for name, scale in (("Choose", 1.0), ("ChooseSmall", 2.0**20)):
        state = state_of(train(script, f"envs:{name}-v0", total_timesteps=800))
        actor.load_state_dict(state["actor"])
        found.append([actor(obs).log_prob(torch.ones(50)).detach() - math.log(0.5)])
        if "critic" in state:
            critic = script.Critic(env.observation_space)
            critic.load_state_dict(state["critic"])
            found[-1].append(scale * critic(obs).detach())
    for large, small in zip(*found):  # what the policy has learned, and V
        assert (small - large).norm() < 0.1 * large.norm() and large.norm() > 0.1


@pytest.mark.parametrize("name", ["NaN", "Infinite", "NaNInReset"])
@each(*KINDS)
def test_observations_that_are_not_finite(script, name, capsys, tmp_path):
    """One line names the observation and the step; the checkpoint is as good as the one before."""
    settings = TINY[script.__name__] | {"total_timesteps": 5_000, "save_every": 0.0}
    settings["env_id"] = env_for(script.__name__, name)
    line = error_line(capsys, script.__name__, **settings)
    assert "observation" in line and re.search(r"\bstep \d+", line)
    folder = only_folder(tmp_path)
    for network in ("actor", "critic", "critics"):
        assert all(x.isfinite().all() for x in state_of(folder).get(network, {}).values())
    train(script, env_for(script.__name__, "Finite"), resume=folder)  # the fault came early


# ── Random numbers ────────────────────────────────────────────────────────────────────────────────


@each(*[name for name in SCRIPTS if name != "a3c"])  # its workers race
def test_the_same_seed_gives_the_same_run(script):
    """Though the environment draws from np_random, NumPy, Python and the space of its actions; the
    states are the same as well, and another seed gives other rows."""
    runs = [train(script, "envs:DrawnEverywhere-v0", seed=seed) for seed in (1, 1, 2)]
    rows = [without_clock(folder) for folder in runs]
    assert rows[0] == rows[1]
    assert all(rows[0][name] != rows[2][name] for name in rows[0])
    states = [str(state_of(folder)) for folder in runs]
    assert states[0] == states[1] != states[2]


@pytest.mark.parametrize("generator", ["MT19937", "RandomState"])
@each("reinforce", "sac")
def test_generators_of_any_kind_are_saved(script, generator):
    """What is saved can be loaded, with weights_only=True, and the run goes on."""
    first = TINY[script.__name__]["total_timesteps"]
    folder = None
    for total in (first, first + 60):
        folder = train(script, f"envs:Drawn{generator}-v0", total_timesteps=total, resume=folder)
        assert checkpoint_of(folder)["step"] >= total


# ── One copy, resets, close() ─────────────────────────────────────────────────────────────────────


@each(*EPISODIC, *OFF_POLICY, "ppo")
def test_one_copy_at_a_time(script, monkeypatch):
    """The evaluation's environment is made when all of the training are closed, and closed too."""
    monkeypatch.setattr(envs.OneCopy, "most", 2 if script.__name__ == "ppo" else 1)
    train(script, env_for(script.__name__, "OneCopy"), eval_episodes=1)
    assert envs.OneCopy.open == 0


@each(*KINDS)
def test_a_close_that_raises(script, tmp_path):
    with suppress(AttributeError):
        train(script, env_for(script.__name__, "BadClose"), eval_episodes=1)
    assert (only_folder(tmp_path) / "summary.json").exists()
