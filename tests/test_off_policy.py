"""The equations of ddpg, td3 and sac, each against a value that was worked out in another way."""

import copy
import importlib
import math
import os
import re
import tracemalloc
from decimal import Decimal, getcontext

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import OFF_POLICY, SCRIPTS, TINY, table
from numpy.polynomial.legendre import leggauss
from probes import Lopsided

import ddpg
import sac
import td3

MODULES = [importlib.import_module(script) for script in SCRIPTS if script in OFF_POLICY]
off_policy = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
DETERMINISTIC = pytest.mark.parametrize("module", [ddpg, td3], ids=lambda module: module.__name__)
OBS, ACTIONS = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,))


def tiny(module, **settings):
    """Arguments of a run of 350 updates."""
    short = dict(env_id="Pendulum-v1", total_timesteps=400, learning_starts=50, eval_episodes=0)
    return module.Args(**TINY[module.__name__] | short | settings)


def frozen(module):
    """Settings with which no network moves."""
    return dict(q_lr=0.0, policy_lr=0.0) if module is sac else dict(learning_rate=0.0)


def state_of(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]


# ── Replay buffer, targets that follow ────────────────────────────────────────────────────────────


def numbered(module, size, count):
    """A buffer that was given the transitions 0, 1, ..., count − 1, each told by its number."""
    buffer = module.ReplayBuffer(size, 2, 1, torch.device("cpu"))
    for i in range(count):
        buffer.add(np.array([i, -i]), np.array([i / 10]), i, np.array([i + 1, -i - 1]), i % 3 == 0)
    return buffer


@off_policy
def test_replay_is_first_in_first_out(module):
    buffer = numbered(module, size=5, count=8)  # X-REPLAY
    assert len(buffer) == 5
    observations, actions, rewards, next_observations, terminations = buffer.sample(2000)
    assert set(rewards.tolist()) == {3.0, 4.0, 5.0, 6.0, 7.0}  # 0, 1, 2 were overwritten
    assert torch.equal(observations, torch.stack((rewards, -rewards), 1))  # the rows stay whole
    assert torch.equal(next_observations, torch.stack((rewards + 1, -rewards - 1), 1))
    assert torch.equal(actions, (rewards / 10)[:, None])
    assert torch.equal(terminations, rewards % 3 == 0)
    assert terminations.dtype == torch.bool and rewards.shape == (2000,)
    counts = torch.bincount(rewards.long())[3:]
    assert ((counts - 400).abs() < 5 * math.sqrt(2000 * 0.2 * 0.8)).all()  # uniform


@off_policy
def test_only_written_rows_are_drawn(module):
    buffer = numbered(module, size=1000, count=3)
    for array in buffer.arrays.values():
        array[3:] = True if array.dtype == bool else np.nan
    assert set(buffer.sample(500)[2].tolist()) == {0.0, 1.0, 2.0}


@off_policy
def test_buffer_is_saved_without_a_copy(module, tmp_path):
    """The state shares the buffer's memory, and the file holds the filled rows and no more."""
    buffer = numbered(module, size=100_000, count=1000)
    state = buffer.state_dict()
    assert state["rewards"].data_ptr() == buffer.arrays["rewards"].ctypes.data
    torch.save(state, tmp_path / "buffer.pt")
    row = 4 * (2 + 1 + 1 + 2) + 1  # bytes
    assert 1000 * row <= (tmp_path / "buffer.pt").stat().st_size < 1000 * row + 5000
    assert sum(array.nbytes for array in buffer.arrays.values()) == 100_000 * row


@off_policy
def test_restored_buffer_goes_on(module):
    first, second = numbered(module, 5, 8), numbered(module, 5, 0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for buffer in (first, second):  # both overwrite the same, oldest row
        buffer.add(np.array([8, -8]), np.array([0.0]), 8, np.array([8, 8]), False)
    assert set(second.sample(500)[2].tolist()) == {4.0, 5.0, 6.0, 7.0, 8.0}
    larger = numbered(module, 50, 0)
    larger.load_state_dict(first.state_dict())
    assert len(larger) == 5
    for i in range(10, 56):
        assert set(larger.sample(2000)[2].tolist()) == {4, 5, 6, 7, 8, *range(10, i)}
        larger.add(np.array([i, -i]), np.array([0.0]), i, np.array([i, i]), False)
    assert set(larger.sample(2000)[2].tolist()) == {5, 6, 7, 8, *range(10, 56)}  # 4 is the oldest
    first = numbered(module, 10, 5)  # half full, into a buffer with just so much room
    exact = numbered(module, 5, 0)
    exact.load_state_dict(first.state_dict())
    exact.add(np.array([5, -5]), np.array([0.0]), 5, np.array([5, 5]), False)
    assert set(exact.sample(500)[2].tolist()) == {1, 2, 3, 4, 5}
    with pytest.raises(ValueError, match="buffer_size is 4; this run needs 5 or more"):
        numbered(module, 4, 0).load_state_dict(first.state_dict())


@off_policy
@pytest.mark.parametrize("tau, expected", [(0.0, 1.0), (1.0, 5.0), (0.5, 3.0), (0.005, 1.02)])
def test_polyak(module, tau, expected):
    source, target = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    for network, value in ((source, 5.0), (target, 1.0)):
        for parameter in network.parameters():
            torch.nn.init.constant_(parameter, value)
    module.polyak_update(source, target, tau)  # X-POLYAK
    for parameter in target.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))
    assert all((parameter == 5).all() for parameter in source.parameters())


@off_policy
def test_targets_start_equal_and_get_no_gradient(module, monkeypatch):
    calls = []

    def spy(source, target, tau):
        if len(calls) < 3:  # td3's targets move after two updates of the critics
            for a, b in zip(source.parameters(), target.parameters()):
                assert (a - b).abs().max() <= 2.1e-3  # Adam's first steps are 1e-3 long at most
        assert all(parameter.grad is None for parameter in target.parameters())
        calls.append(tau)

    monkeypatch.setattr(module, "polyak_update", spy)
    module.train(tiny(module))
    assert set(calls) == {0.005}


# ── What is played and stored ─────────────────────────────────────────────────────────────────────


def stored(module, monkeypatch, env_id, **settings):
    """The transitions that a run hands to its buffer."""
    transitions, add = [], module.ReplayBuffer.add

    def spy(buffer, *transition):
        transitions.append([np.array(value) for value in transition])
        add(buffer, *transition)

    monkeypatch.setattr(module.ReplayBuffer, "add", spy)
    module.train(tiny(module, env_id=env_id, **settings))
    return [np.array(field) for field in zip(*transitions)]


@off_policy
def test_successors_and_time_limits(module, monkeypatch):
    """The Counter's observations are 1, 2, 3, ...: a reset counts on. No episode terminates."""
    fields = stored(module, monkeypatch, "probes:BoxCounter-v0", total_timesteps=100)
    observations, _, _, next_observations, terminations = fields
    assert len(observations) == 100
    np.testing.assert_array_equal(next_observations, observations + 1)
    gaps = (observations[1:] - next_observations[:-1])[:, 0]
    ends = np.arange(1, 100) % 10 == 0  # the time limit of 10 steps: here one reset lies between
    np.testing.assert_array_equal(gaps, np.where(ends, 1, 0))
    assert not terminations.any()


@off_policy
def test_terminations_are_stored(module, monkeypatch):
    for env_id in (
        "probes:BoxOneStep-v0",
        "probes:BoxBoth-v0",
    ):  # the latter's time limit is 1 step
        *_, terminations = stored(module, monkeypatch, env_id, total_timesteps=60)
        assert terminations.all()


@off_policy
def test_stored_action_is_the_one_that_was_played(module, monkeypatch):
    Lopsided.taken.clear()  # bounds [−1, 3] and [2, 2.5]
    settings = dict(total_timesteps=60, learning_starts=30)
    _, actions, rewards, *_ = stored(module, monkeypatch, "probes:Lopsided-v0", **settings)
    played = np.array(Lopsided.taken)[:, 0]
    np.testing.assert_allclose(rewards, -np.abs(played).sum(1), rtol=1e-6)  # the environment's own
    assert np.abs(actions).max() <= 1
    np.testing.assert_allclose(played, np.array([1, 2.25]) + actions * [2, 0.25], atol=1e-6)


@off_policy
def test_random_actions_before_the_start(module, monkeypatch):
    """Uniform over the box, per dimension: mean 0, variance ⅓, all of [−1, 1]."""
    settings = dict(total_timesteps=4001, learning_starts=3999)
    _, actions, *_ = stored(module, monkeypatch, "probes:Lopsided-v0", **settings)
    actions = actions[:3999]
    assert np.abs(actions.mean(0)).max() < 4 * math.sqrt(1 / 3 / 3999)
    assert np.abs(actions.var(0) - 1 / 3).max() < 4 * math.sqrt(4 / 45 / 3999)
    assert actions.min() < -0.99 and actions.max() > 0.99
    assert abs(np.corrcoef(actions.T)[0, 1]) < 4 / math.sqrt(3999)


@off_policy
def test_the_policy_plays_after_the_start(module, monkeypatch):
    """It is asked for the action of each step but for the first learning_starts."""
    steps, forward = [], module.Actor.forward

    def spy(actor, obs):
        steps.extend([obs] * (obs.ndim == 1))  # a batch has two dimensions
        return forward(actor, obs)

    monkeypatch.setattr(module.Actor, "forward", spy)
    module.train(tiny(module, total_timesteps=80, learning_starts=60))
    assert len(steps) == 20


@DETERMINISTIC
def test_exploration_noise(module, monkeypatch):
    """The residual a − μ(s) has the spread asked for, and is cut at the bounds."""
    mean = torch.tensor([0.0, 0.8])
    monkeypatch.setattr(module.Actor, "forward", lambda _, obs: mean.expand(*obs.shape[:-1], 2))
    monkeypatch.setattr(module, "deterministic_policy_loss", no_policy_loss)
    settings = dict(total_timesteps=2001, learning_starts=1, batch_size=1, exploration_noise=0.2)
    _, actions, *_ = stored(module, monkeypatch, "probes:Lopsided-v0", **settings, **frozen(module))
    first, second = actions[1:, 0], actions[1:, 1]  # AC-10b
    assert abs(first.mean()) < 4 * 0.2 / math.sqrt(2000)
    assert abs(first.std() - 0.2) < 4 * 0.2 / math.sqrt(4000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(2000)  # drawn per dimension
    # P(0.8 + 0.2 z > 1) = P(z > 1) = 0.1587
    assert abs((second == 1).mean() - 0.1587) < 4 * math.sqrt(0.1587 * 0.8413 / 2000)


@DETERMINISTIC
@torch.no_grad()
def test_the_moving_policy_plays(module, monkeypatch):
    """And not its target, which is far behind at so large a rate."""
    fields = []
    add = module.ReplayBuffer.add

    def spy(buffer, *transition):
        fields.append([np.array(value) for value in transition])
        add(buffer, *transition)

    monkeypatch.setattr(module.ReplayBuffer, "add", spy)
    settings = dict(exploration_noise=0.0, learning_rate=0.01)
    with torch.enable_grad():
        updates, _ = watched(module, monkeypatch, **settings)
    apart = []
    # The batch of update i is drawn after the step that it belongs to: step 60 + i, from 0.
    for i, (nets, *_) in enumerate(updates):
        obs, action, *_ = fields[60 + i]
        played, behind = (
            torch.tanh(nets[name].net(torch.as_tensor(obs).float()))
            for name in ("actor", "actor_target")
        )
        torch.testing.assert_close(torch.as_tensor(action).float(), played)
        apart.append((played - behind).abs().max().item())
    assert max(apart) > 0.01


def test_sac_plays_samples(monkeypatch):
    """artanh of the actions is Gaussian with the network's μ and σ: no noise besides, no mode."""

    def forward(_, obs):
        return torch.full((*obs.shape[:-1], 2), 0.4), torch.full((*obs.shape[:-1], 2), -1.0)

    monkeypatch.setattr(sac.Actor, "forward", forward)
    monkeypatch.setattr(sac, "soft_policy_loss", lambda *_: no_policy_loss(actors[0], None, None))
    actors, init = [], sac.Actor.__init__

    def spy(actor, *spaces):
        init(actor, *spaces)
        actors.append(actor)

    monkeypatch.setattr(sac.Actor, "__init__", spy)
    settings = dict(total_timesteps=2001, learning_starts=1, batch_size=1)
    _, actions, *_ = stored(sac, monkeypatch, "probes:Lopsided-v0", **settings, **frozen(sac))
    u = np.arctanh(actions[1:])
    sigma = math.exp(-1)
    assert np.abs(u.mean(0) - 0.4).max() < 4 * sigma / math.sqrt(2000)
    assert np.abs(u.std(0) - sigma).max() < 4 * sigma / math.sqrt(4000)


def no_policy_loss(actor, critic, observations):
    return sum(parameter.sum() for parameter in actor.parameters()) * 0.0


@off_policy
def test_actors_serve_the_box(module):
    """mode(obs) lies in the box, at its bounds when the network says so."""
    low, high = np.array([[-1.0], [2.0]], np.float32), np.array([[3.0], [2.5]], np.float32)
    space = gym.spaces.Box(low, high)
    actor = module.Actor(OBS, space)
    assert all(space.contains(action) for action in actor.mode(torch.randn(50, 3)).numpy())
    torch.nn.init.constant_(actor.net[-1].bias, 50.0)
    np.testing.assert_array_equal(actor.mode(torch.zeros(1, 3))[0], high)
    torch.nn.init.constant_(actor.net[-1].bias, -50.0)
    np.testing.assert_array_equal(actor.mode(torch.zeros(1, 3))[0], low)
    for wrong in (gym.spaces.Discrete(3), gym.spaces.Box(-np.inf, np.inf, (1,))):
        with pytest.raises(ValueError, match="trpo.py and ppo.py serve Discrete"):
            module.Actor(OBS, wrong)


# ── Targets ───────────────────────────────────────────────────────────────────────────────────────

# An ordinary step; a terminated one; one that the time limit cut, which bootstraps like the first.
REWARDS = torch.tensor([1.0, 2.0, 3.0])
TERMINATIONS = torch.tensor([False, True, False])


def test_target_of_ddpg_by_hand():
    next_q = torch.tensor([10.0, 20.0, 30.0])
    target_q = ddpg.td_target(REWARDS, next_q, TERMINATIONS, 0.9)  # X-Q
    torch.testing.assert_close(target_q, torch.tensor([10.0, 2.0, 30.0]))


def test_target_of_td3_by_hand():
    q1, q2 = torch.tensor([10.0, 20.0, 40.0]), torch.tensor([12.0, 10.0, 30.0])
    target_q = td3.td_target(REWARDS, q1, q2, TERMINATIONS, 0.9)  # AC-11a, AC-11d
    torch.testing.assert_close(target_q, torch.tensor([10.0, 2.0, 30.0]))


def test_target_of_sac_by_hand():
    q1, q2 = torch.tensor([10.0, 20.0, 40.0]), torch.tensor([12.0, 10.0, 30.0])
    log_probs = torch.tensor([-1.0, 5.0, 2.0])
    target_q = sac.td_target(REWARDS, q1, q2, log_probs, TERMINATIONS, 0.9, 0.5)  # X-SOFTQ
    torch.testing.assert_close(target_q, torch.tensor([1 + 0.9 * 10.5, 2.0, 3 + 0.9 * 29.0]))


def test_neighbouring_targets():
    """sac with α = 0 is td3; td3 with equal critics is ddpg."""
    rewards, q1, q2, log_probs = torch.randn(4, 100)
    ends = torch.rand(100) < 0.3
    soft = sac.td_target(rewards, q1, q2, log_probs, ends, 0.99, 0.0)
    assert torch.equal(soft, td3.td_target(rewards, q1, q2, ends, 0.99))
    twin = td3.td_target(rewards, q1, q1, ends, 0.99)
    assert torch.equal(twin, ddpg.td_target(rewards, q1, ends, 0.99))


def test_wrong_shapes_are_refused():
    """(B, 1) beside (B,) would broadcast to (B, B)."""
    flat, column = torch.zeros(4), torch.zeros(4, 1)
    ends = torch.zeros(4, dtype=torch.bool)
    for call in (
        lambda: ddpg.td_target(flat, column, ends, 0.9),
        lambda: td3.td_target(flat, flat, column, ends, 0.9),
        lambda: sac.td_target(flat, flat, flat, column, ends, 0.9, 0.1),
        lambda: sac.soft_policy_loss(column, flat, flat, 0.1),
        lambda: ddpg.q_loss(flat, column),
    ):
        with pytest.raises(AssertionError):
            call()


@off_policy
def test_q_loss_by_hand(module):
    loss = module.q_loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5]))
    assert loss.item() == pytest.approx((4 + 0.25) / 2)


def test_smoothing_noise():
    """Clipped at c; the share beyond is P(|z| > 2.5) = 0.01242; no two dimensions or samples alike."""
    noise = td3.clipped_noise(torch.zeros(20_000, 2), 0.2, 0.5)  # AC-11c
    assert noise.abs().max() == 0.5
    share = (noise.abs() == 0.5).float().mean().item()
    assert abs(share - 0.01242) < 4 * math.sqrt(0.01242 / 40_000)
    # Var = σ² (1 − 2 (c/σ) φ(c/σ) − 2 Q(c/σ)) + c² 2 Q(c/σ), with c/σ = 2.5
    density, tail = math.exp(-(2.5**2) / 2) / math.sqrt(2 * math.pi), 0.01242 / 2
    variance = 0.04 * (1 - 5 * density - 2 * tail) + 0.25 * 2 * tail
    assert noise.var().item() == pytest.approx(variance, rel=0.03)
    assert abs(torch.corrcoef(noise.T)[0, 1].item()) < 4 / math.sqrt(20_000)
    assert len(noise[:, 0].unique()) > 19_000


def test_target_actions_stay_within_the_bounds(monkeypatch):
    """With a smoothing noise of 5 half ranges μ'(s') + ε would lie far outside."""
    largest, forward = [], td3.Critic.forward

    def spy(critic, obs, action):
        largest.append(action.abs().max().item())
        return forward(critic, obs, action)

    monkeypatch.setattr(td3.Critic, "forward", spy)
    td3.train(tiny(td3, policy_noise=5.0, noise_clip=50.0))
    assert max(largest) == 1


@pytest.mark.parametrize("noise, clip", [(0.0, 0.5), (0.05, 0.5), (5.0, 0.1)])
def test_target_action_of_td3(monkeypatch, noise, clip):
    """The target critics are asked about μ'(s') + ε: |ε| ≤ c, and none for σ = 0."""
    asked, actors, sampled, residuals = [], [], [], []
    forward, forward_actor, sample = td3.Critic.forward, td3.Actor.forward, td3.ReplayBuffer.sample

    def spy_critic(critic, obs, action):
        if not torch.is_grad_enabled():  # the two target critics
            asked.append((critic, action.clone()))
        return forward(critic, obs, action)

    def spy_actor(actor, obs):
        action = forward_actor(actor, obs)
        if obs.ndim == 2 and not torch.is_grad_enabled():
            actors.append((obs.clone(), action.clone()))
        return action

    def spy_sample(buffer, batch_size):
        sampled.append(sample(buffer, batch_size))
        return sampled[-1]

    monkeypatch.setattr(td3.Critic, "forward", spy_critic)
    monkeypatch.setattr(td3.Actor, "forward", spy_actor)
    monkeypatch.setattr(td3.ReplayBuffer, "sample", spy_sample)
    td3.train(tiny(td3, policy_noise=noise, noise_clip=clip))
    assert len(asked) == 2 * len(actors) == 2 * len(sampled)
    for i, ((obs, action), batch) in enumerate(zip(actors, sampled)):
        assert torch.equal(obs, batch[3])  # next_observations
        (first, given1), (second, given2) = asked[2 * i : 2 * i + 2]
        assert first is not second and torch.equal(given1, given2)
        difference = (given1 - action).abs().max().item()
        assert difference == 0 if noise == 0 else 0 < difference <= clip + 1e-6
        residuals.append(given1 - action)
        if noise == 5.0:  # one of 16 is at the clip, but for one chance in 10²⁸
            assert difference == pytest.approx(clip)
    if noise == 0.05:  # 350 batches of 16
        assert torch.cat(residuals).std().item() == pytest.approx(0.05, rel=4 / math.sqrt(2 * 5600))


# ── The policy's gradient ─────────────────────────────────────────────────────────────────────────


class Double:
    """A tiny policy and critic in float64, for finite differences and exact products."""

    def __init__(self):
        torch.manual_seed(3)
        self.policy = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2), torch.nn.Tanh()
        ).double()
        self.q = torch.nn.Sequential(
            torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)
        ).double()

    def critic(self, obs, action):
        return self.q(torch.cat((obs, action), -1)).squeeze(-1)


@DETERMINISTIC
def test_deterministic_policy_gradient(module):
    """−∇ of the loss is the mean of ∇_θ μ · ∇_a Q, each Jacobian taken by itself; and the slope."""
    double, obs = Double(), torch.randn(7, 3, dtype=torch.float64)
    theta = list(double.policy.parameters())
    loss = module.deterministic_policy_loss(double.policy, double.critic, obs)  # AC-10a
    gradient = torch.cat([-g.flatten() for g in torch.autograd.grad(loss, theta)])
    expected = torch.zeros_like(gradient)
    for s in obs:
        action = double.policy(s).detach().requires_grad_()
        (dq_da,) = torch.autograd.grad(double.critic(s, action), action)  # (A,)
        rows = [torch.autograd.grad(double.policy(s)[i], theta) for i in range(2)]
        dmu_dtheta = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])  # (A, d)
        expected += dq_da @ dmu_dtheta / len(obs)
    torch.testing.assert_close(gradient, expected)
    vector, step = torch.nn.utils.parameters_to_vector(theta).detach(), 1e-6
    for i in (0, 5, 12, 20):
        values = []
        for sign in (1, -1):
            moved = vector.clone()
            moved[i] += sign * step
            torch.nn.utils.vector_to_parameters(moved, theta)
            values.append(double.critic(obs, double.policy(obs)).mean().item())
        slope = (values[0] - values[1]) / (2 * step)
        assert gradient[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


class Counts:
    """Counts the steps of each optimizer, told apart by the number of its tensors and its rate."""

    def __init__(self, monkeypatch):
        self.steps, step = {}, torch.optim.Adam.step

        def spy(optimizer, *args, **more):
            self.steps.setdefault(id(optimizer), [optimizer, 0])[1] += 1
            return step(optimizer, *args, **more)

        monkeypatch.setattr(torch.optim.Adam, "step", spy)

    def by_tensors(self):
        return {len(o.param_groups[0]["params"]): n for o, n in self.steps.values()}


@pytest.mark.parametrize(
    "module, frequency, expected, targets",
    [
        # 6 tensors: the policy (or ddpg's critic); 12: both critics; 1: log_alpha
        (td3, 2, {12: 350, 6: 175}, 3 * 175),
        (td3, 3, {12: 350, 6: 116}, 3 * 116),
        (sac, 1, {12: 350, 6: 350, 1: 350}, 2 * 350),
        (sac, 2, {12: 350, 6: 175, 1: 175}, 2 * 350),
    ],
    ids=["td3-2", "td3-3", "sac-1", "sac-2"],
)
def test_counts_of_updates(monkeypatch, module, frequency, expected, targets):
    """AC-11b: one update of the policy, and in td3 of all targets, for every so many of the critics."""
    counts, moved = Counts(monkeypatch), []
    monkeypatch.setattr(module, "polyak_update", lambda *args: moved.append(args))
    settings = dict(total_timesteps=400, learning_starts=50, policy_frequency=frequency)
    module.train(tiny(module, **settings))
    assert counts.by_tensors() == expected
    assert len(moved) == targets


def test_ddpg_is_not_delayed(monkeypatch):
    counts, moved = Counts(monkeypatch), []
    monkeypatch.setattr(ddpg, "polyak_update", lambda *args: moved.append(args))
    ddpg.train(tiny(ddpg, total_timesteps=400, learning_starts=50))
    assert sorted(n for _, n in counts.steps.values()) == [350, 350]  # critic and policy
    assert len(moved) == 2 * 350


def test_policy_of_td3_climbs_the_first_critic(monkeypatch):
    """Its gradient is that of Q1 alone: another Q2 changes nothing."""
    seen, loss = [], td3.deterministic_policy_loss
    critics, init = [], td3.Critic.__init__

    def spy_init(critic, *spaces):
        init(critic, *spaces)
        critics.append(critic)

    def spy(actor, critic, observations):
        seen.append(critic)
        return loss(actor, critic, observations)

    monkeypatch.setattr(td3.Critic, "__init__", spy_init)
    monkeypatch.setattr(td3, "deterministic_policy_loss", spy)
    td3.train(tiny(td3))
    assert len(critics) == 2 and seen and all(critic is critics[0] for critic in seen)


@off_policy
def test_critics_get_no_gradient_from_the_policy(monkeypatch, module):
    """After the policy's gradient is taken the critics' is still what their optimizer left: none."""
    critics, init, backward, passes = [], module.Critic.__init__, torch.Tensor.backward, []

    def spy_init(critic, *spaces):
        init(critic, *spaces)
        critics.append(critic)

    def spy(loss, *args, **more):
        backward(loss, *args, **more)
        gradients = [p.grad for critic in critics for p in critic.parameters()]
        passes.append(any(g is not None and bool(g.any()) for g in gradients))

    monkeypatch.setattr(module.Critic, "__init__", spy_init)
    monkeypatch.setattr(torch.Tensor, "backward", spy)
    module.train(tiny(module, total_timesteps=200))
    # 150 updates: the critics' own pass, then, in td3 every second time, the policy's; in sac also
    # the temperature's.
    turn = {ddpg: [True, False], td3: [True, True, False], sac: [True, False, False]}[module]
    assert passes == turn * (len(passes) // len(turn))
    assert len(passes) == {ddpg: 300, td3: 225, sac: 450}[module]


# ── Whole updates ─────────────────────────────────────────────────────────────────────────────────


def watched(module, monkeypatch, **settings):
    """A run's updates: (networks before it, batch, generator's state after the batch was drawn)."""
    updates, state, init, sample = [], {}, module.Run.__init__, module.ReplayBuffer.sample

    def spy_init(run, args, env, **parts):
        state.update(parts)
        init(run, args, env, **parts)

    def spy_sample(buffer, batch_size):
        batch = sample(buffer, batch_size)
        networks = {k: copy.deepcopy(v) for k, v in state.items() if isinstance(v, torch.nn.Module)}
        updates.append((networks, batch, torch.get_rng_state()))
        return batch

    monkeypatch.setattr(module.Run, "__init__", spy_init)
    monkeypatch.setattr(module.ReplayBuffer, "sample", spy_sample)
    settings = dict(total_timesteps=80, learning_starts=60, gamma=0.9) | settings
    folder = module.train(tiny(module, env_id="probes:BoxChance-v0", **settings))
    return updates, table(folder / "updates.csv")


def q(network, obs, action):
    """A critic's value, layer by layer."""
    first, _, second, _, third = network.net
    hidden = torch.cat((obs, action), 1)
    for layer in (first, second):
        hidden = (hidden @ layer.weight.T + layer.bias).clamp(min=0)
    return (hidden @ third.weight.T + third.bias)[:, 0]


@off_policy
@torch.no_grad()
def test_critic_loss_of_whole_updates(module, monkeypatch):
    """The logged loss is Σ_i mean (Q_i(s, a) − y)², with y put together from the target networks."""
    # With so large a rate α and the critics change much: the target must use the present α, and not
    # the present critics.
    rate = dict(q_lr=0.05) if module is sac else dict(learning_rate=0.05)
    settings = rate | (dict(policy_noise=0.0) if module is td3 else {})
    with torch.enable_grad():
        updates, rows = watched(module, monkeypatch, **settings)
    losses = []
    for nets, (obs, action, reward, next_obs, terminated), generator in updates:
        if module is sac:
            torch.set_rng_state(generator)
            mean, log_std = nets["actor"].net(next_obs).chunk(2, -1)
            noise = torch.randn(mean.shape)
            u = (mean + log_std.exp() * noise).double()  # float32's 1 − tanh²u may be 0
            next_action = torch.tanh(u).float()
            log_prob = -(noise**2) / 2 - log_std - math.log(2 * math.pi) / 2
            log_prob = (log_prob - torch.log(1 - torch.tanh(u) ** 2).float()).sum(1)
            bonus = -nets["temperature"].log_alpha.exp() * log_prob
        else:
            next_action, bonus = torch.tanh(nets["actor_target"].net(next_obs)), 0.0
        names = ["critic"] if module is ddpg else ["critic1", "critic2"]
        next_q = torch.stack([q(nets[f"{name}_target"], next_obs, next_action) for name in names])
        y = torch.where(terminated, reward, reward + 0.9 * (next_q.min(0).values + bonus))
        losses.append(sum(((q(nets[name], obs, action) - y) ** 2).mean() for name in names).item())
        weights = [nets[name].net[0].weight for name in names]
        assert (
            not torch.equal(weights[0], weights[-1]) or module is ddpg
        )  # equal ones would stay so
    assert len(losses) == 20 and any(batch[4].any() for _, batch, _ in updates)
    steps, logged = [60, *(row["step"] for row in rows)], [row["q_loss"] for row in rows]
    ends = [int(step) - 60 for step in steps]
    means = [np.mean(losses[a:b]) for a, b in zip(ends, ends[1:])]
    assert len(means) >= 3
    np.testing.assert_allclose(logged, means, rtol=1e-5)


@off_policy
def test_policy_gradient_of_the_first_update(module, monkeypatch):
    """X-JPI, AC-10a: −Q1 (sac: α log π − the smaller Q) of the critics that have just moved.

    Adam's first average is a tenth of the gradient that it was given.
    """
    settings = dict(policy_frequency=1) if module is td3 else {}
    averages, step = [], torch.optim.Adam.step

    def spy(optimizer, *args, **more):
        step(optimizer, *args, **more)
        parameters = optimizer.param_groups[0]["params"]
        averages.append([optimizer.state[p]["exp_avg"].clone() for p in parameters])

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    updates, rows = watched(module, monkeypatch, **settings)
    (before, (obs, action, *_), generator), (after, *_) = updates[:2]
    actor = before["actor"]
    critics = [after[name] for name in ("critic", "critic1", "critic2") if name in after]
    if module is sac:
        torch.set_rng_state(generator)
        torch.randn(action.shape)  # the noise of the critics' target
        mean, log_std = actor.net(obs).chunk(2, -1)
        noise = torch.randn(action.shape)
        u = mean + log_std.exp() * noise
        log_prob = -(noise**2) / 2 - log_std - math.log(2 * math.pi) / 2
        log_prob = (log_prob - torch.log(1 - torch.tanh(u) ** 2)).sum(1)
        values = torch.stack([q(critic, obs, torch.tanh(u)) for critic in critics])
        loss = (0.2 * log_prob - values.min(0).values).mean()
    else:
        loss = -q(critics[0], obs, torch.tanh(actor.net(obs))).mean()
    gradients = torch.autograd.grad(loss, list(actor.parameters()))
    # The critics' optimizer comes first, then the policy's.
    assert len(averages[1]) == len(gradients) == 6
    for average, gradient in zip(averages[1], gradients):
        torch.testing.assert_close(average, 0.1 * gradient, rtol=1e-3, atol=1e-7)


@off_policy
@torch.no_grad()
def test_targets_follow_in_whole_updates(module, monkeypatch):
    """After each update (in td3 each second one) target ← 0.3 network + 0.7 target."""
    with torch.enable_grad():
        updates, _ = watched(module, monkeypatch, tau=0.3)
    for i, ((before, *_), (after, *_)) in enumerate(zip(updates, updates[1:]), start=1):
        for name in [name for name in before if name.endswith("_target")]:
            source = after[name.removesuffix("_target")]
            tau = 0.3 if module is not td3 or i % 2 == 0 else 0.0
            parameters = (network.parameters() for network in (before[name], after[name], source))
            for old, new, now in zip(*parameters):
                torch.testing.assert_close(new, tau * now + (1 - tau) * old, rtol=1e-5, atol=1e-7)
        moved = [name for name in before if not name.endswith("_target")]
        for name in set(moved) - ({"actor"} if module is td3 and i % 2 else set()):
            a, b = (
                torch.nn.utils.parameters_to_vector(x[name].parameters()) for x in (before, after)
            )
            assert not torch.equal(a, b), name


@off_policy
def test_policy_loss_of_whole_updates(module, monkeypatch):
    """The logged ones are means over the policy's updates since the row before; sac's α is the
    present one, and its entropy −E[log π]."""
    name = "soft_policy_loss" if module is sac else "deterministic_policy_loss"
    calls, loss = [], getattr(module, name)

    def spy(*args):
        calls.append((args, loss(*args)))
        return calls[-1][1]

    monkeypatch.setattr(module, name, spy)
    settings = {td3: dict(policy_frequency=1), sac: dict(q_lr=0.05)}.get(module, {})
    updates, rows = watched(module, monkeypatch, **settings)
    columns = {"policy_loss": [value.item() for _, value in calls]}
    if module is sac:
        columns["alpha"] = [nets["temperature"].log_alpha.exp().item() for nets, *_ in updates]
        columns["entropy"] = [-log_probs.mean().item() for (log_probs, *_), _ in calls]
        given = [float(alpha) for (*_, alpha), _ in calls]
        np.testing.assert_allclose(given, columns["alpha"], rtol=1e-6)
        assert len(set(given)) == 20
    ends = [0, *(int(row["step"]) - 60 for row in rows)]
    assert ends[-1] == 20 and len(ends) < 20
    for column, values in columns.items():
        means = [np.mean(values[a:b]) for a, b in zip(ends, ends[1:])]
        np.testing.assert_allclose([row[column] for row in rows], means, rtol=1e-5)


@off_policy
def test_sizes_of_batch_and_buffer(module, monkeypatch):
    updates, _ = watched(module, monkeypatch, batch_size=7)
    assert {len(field) for _, batch, _ in updates for field in batch} == {7}
    folder = module.train(tiny(module, total_timesteps=100, buffer_size=40))
    assert len(state_of(folder)["buffer"]["rewards"]) == 40


@off_policy
def test_step_size_of_the_policy_alone(module):
    """With policy_lr = 0 the critics move, the policy does not."""
    rate = dict(policy_lr=0.0, q_lr=1e-3) if module is sac else dict(policy_lr=0.0)
    first, second = (
        state_of(module.train(tiny(module, total_timesteps=n, **rate))) for n in (200, 400)
    )
    for name, value in first["actor"].items():
        assert torch.equal(value, second["actor"][name])
    critic = "critic" if module is ddpg else "critic1"
    assert not torch.equal(first[critic]["net.0.weight"], second[critic]["net.0.weight"])


# ── The squashed Gaussian ─────────────────────────────────────────────────────────────────────────

NODES, WEIGHTS = (torch.as_tensor(x) for x in leggauss(4000))  # on [−1, 1], float64


def density(mean, log_std):
    """π(a) at the nodes, from the code's log π at u = artanh(a)."""
    u = torch.atanh(NODES)[:, None]
    mean, log_std = (torch.full_like(u, number) for number in (mean, log_std))
    return sac.squashed_log_prob(u, mean, log_std).exp()


@pytest.mark.parametrize("mean, log_std", [(0.0, 0.0), (0.7, -1.0), (-1.5, -0.3), (0.2, -2.5)])
def test_density_integrates_to_one(mean, log_std):
    assert (WEIGHTS * density(mean, log_std)).sum().item() == pytest.approx(1, abs=1e-6)  # X-LOGP


def test_log_prob_is_summed_over_dimensions():
    u, mean, log_std = torch.randn(3, 5, 2)
    both = sac.squashed_log_prob(u, mean, log_std)
    single = [sac.squashed_log_prob(*(x[:, [i]] for x in (u, mean, log_std))) for i in (0, 1)]
    assert both.shape == (5,)
    torch.testing.assert_close(both, single[0] + single[1])


@pytest.mark.parametrize("u", [-12.0, -8.0, 0.5, 8.0, 10.0, 12.0, 40.0])
def test_log_prob_far_out(u):
    """In float32, against 1 − tanh²u = 4 e^{2u} / (e^{2u} + 1)² in fifty decimal digits."""
    getcontext().prec = 50
    power = Decimal(2 * u).exp()
    log_slope = float((4 * power / (power + 1) ** 2).ln())
    at_mean = sac.squashed_log_prob(*torch.tensor([[u], [u], [0.0]]))  # the Gaussian's part is flat
    assert at_mean.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - log_slope, abs=1e-4)


def test_entropy_by_quadrature():
    """H = −E[log π] of sampled actions is −∫ π log π."""
    values = density(0.3, -0.7)
    expected = -(WEIGHTS * values * values.log().nan_to_num(neginf=0)).sum().item()  # AC-12b
    actor = sac.Actor(OBS, gym.spaces.Box(-1, 1, (1,)))
    for parameter in actor.parameters():
        torch.nn.init.zeros_(parameter)
    actor.net[-1].bias.data = torch.tensor([0.3, -0.7])
    _, log_probs = actor.sample(torch.zeros(100_000, 3))
    assert -log_probs.mean().item() == pytest.approx(expected, abs=5 * log_probs.std().item() / 316)


def test_sampled_actions():
    """a = tanh u, u = μ + σ⊙ε: |a| ≤ 1, ∂u/∂μ = 1, ∂u/∂σ = ε, so ∂a/∂μ = 1 − a² and
    ∂a/∂log σ = (1 − a²) σ ε."""
    actor = sac.Actor(OBS, ACTIONS)
    mean = torch.full((1000, 2), 0.4, requires_grad=True)
    log_std = torch.full((1000, 2), -0.5, requires_grad=True)
    actor.forward = lambda obs: (mean, log_std)
    actions, log_probs = actor.sample(torch.zeros(1000, 3))  # CS-2.1a, AC-12c
    assert actions.abs().max() <= 1 and log_probs.shape == (1000,)
    d_mean, d_log_std = torch.autograd.grad(actions.sum(), (mean, log_std))
    torch.testing.assert_close(d_mean, 1 - actions**2)
    u = torch.atanh(actions)
    torch.testing.assert_close(d_log_std, (1 - actions**2) * (u - 0.4), rtol=1e-3, atol=1e-5)
    z = (u - 0.4) / math.exp(-0.5)
    assert abs(torch.corrcoef(z.T)[0, 1]) < 4 / math.sqrt(1000)  # drawn per dimension
    z = z.flatten()
    assert abs(z.mean()) < 4 / math.sqrt(2000) and abs(z.var() - 1) < 4 * math.sqrt(2 / 2000)
    expected = sac.squashed_log_prob(u, mean, log_std)
    torch.testing.assert_close(log_probs, expected, rtol=1e-3, atol=1e-3)


def test_mode_of_sac():
    actor = sac.Actor(OBS, gym.spaces.Box(-2, 2, (1,)))
    obs = torch.randn(4, 3)
    mean, _ = actor(obs)
    torch.testing.assert_close(actor.mode(obs), 2 * torch.tanh(mean))


def test_log_std_is_bounded():
    actor = sac.Actor(OBS, ACTIONS)
    for bias, bound in ((50.0, 2.0), (-50.0, -5.0)):
        torch.nn.init.constant_(actor.net[-1].bias, bias)
        assert (actor(torch.zeros(1, 3))[1] == bound).all()


# ── Maximum entropy ───────────────────────────────────────────────────────────────────────────────


def test_soft_policy_loss_by_hand():
    log_probs, q1, q2 = torch.tensor([[-1.0, 2.0], [3.0, 5.0], [4.0, 1.0]])
    loss = sac.soft_policy_loss(log_probs, q1, q2, 0.5)  # X-JPI
    assert loss.item() == pytest.approx((-0.5 - 3 + 1 - 1) / 2)


def test_gradient_of_the_soft_policy():
    """In one dimension: the sampled gradient of E[α log π − Q] against the slope of the integral."""
    alpha, value = 0.3, lambda a: -((a - 0.5) ** 2)

    def objective(mean, log_std):
        pi = density(mean, log_std)
        terms = pi * (alpha * pi.clamp(min=1e-300).log() - value(NODES))
        return (WEIGHTS * terms).sum().item()

    mean, log_std = (
        torch.tensor([0.2], requires_grad=True),
        torch.tensor([-0.4], requires_grad=True),
    )
    actor = sac.Actor(OBS, gym.spaces.Box(-1, 1, (1,)))
    actor.forward = lambda obs: (mean.expand(len(obs), 1), log_std.expand(len(obs), 1))
    actions, log_probs = actor.sample(torch.zeros(400_000, 3))
    q = value(actions[:, 0])
    loss = sac.soft_policy_loss(log_probs, q, q, alpha)
    assert loss.item() == pytest.approx(objective(0.2, -0.4), abs=0.01)
    gradients = torch.autograd.grad(loss, (mean, log_std))
    h = 1e-4
    slopes = [
        (objective(0.2 + h, -0.4) - objective(0.2 - h, -0.4)) / (2 * h),
        (objective(0.2, -0.4 + h) - objective(0.2, -0.4 - h)) / (2 * h),
    ]
    for gradient, slope in zip(gradients, slopes):
        assert gradient.item() == pytest.approx(slope, abs=0.01)
        assert abs(slope) > 0.05


def test_soft_policy_loss_without_entropy():
    """α = 0 and equal critics: the deterministic policy's loss [AC-10a], at the sampled action."""
    double, obs = Double(), torch.randn(7, 3, dtype=torch.float64)
    q = double.critic(obs, double.policy(obs))
    soft = sac.soft_policy_loss(torch.randn(7, dtype=torch.float64), q, q, 0.0)
    expected = ddpg.deterministic_policy_loss(double.policy, double.critic, obs)
    theta = list(double.policy.parameters())
    for a, b in zip(torch.autograd.grad(soft, theta), torch.autograd.grad(expected, theta)):
        torch.testing.assert_close(a, b)


def test_temperature_loss():
    """dJ/d log α = −α (mean log π + H̄): α falls where the entropy is above H̄, and rises below."""
    temperature = sac.Temperature(0.2)
    assert temperature().item() == pytest.approx(0.2)
    for log_prob in (1.0, 3.0):  # entropies −1 and −3; H̄ = −2
        loss = sac.temperature_loss(temperature(), torch.tensor([log_prob, log_prob]), -2)
        (slope,) = torch.autograd.grad(loss, list(temperature.parameters()))  # X-ALPHA
        assert slope.item() == pytest.approx(-0.2 * (log_prob - 2))
        assert (slope > 0) == (log_prob == 1)  # descent: down for the larger entropy


def test_temperature_is_moved_by_the_whole_batch(monkeypatch):
    """Adam's first average is a tenth of dJ/d log α = −α (mean log π + H̄)."""
    averages, step, log_probs = [], torch.optim.Adam.step, []

    def spy(optimizer, *args, **more):
        step(optimizer, *args, **more)
        (parameter, *others) = optimizer.param_groups[0]["params"]
        if not others:
            averages.append(optimizer.state[parameter]["exp_avg"].item())

    loss = sac.soft_policy_loss
    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    monkeypatch.setattr(
        sac, "soft_policy_loss", lambda x, *rest: [log_probs.append(x.detach()), loss(x, *rest)][1]
    )
    sac.train(tiny(sac, total_timesteps=60, alpha=0.2))
    assert len(log_probs[0]) == 16
    assert averages[0] == pytest.approx(0.1 * -0.2 * (log_probs[0].mean().item() - 1), rel=1e-5)


@pytest.mark.parametrize(
    "env_id, log_std, direction",
    [("Pendulum-v1", -4.0, 1), ("Pendulum-v1", 0.0, -1), ("probes:Lopsided-v0", -2.17, -1)],
)
def test_temperature_moves_in_training(monkeypatch, env_id, log_std, direction):
    """Pendulum has one action: H̄ = −1. A narrow policy raises α, a wide one lowers it.

    The other has two, H̄ = −2; the entropy of a Gaussian of this σ near 0 is 2 · (1.42 − 2.17) = −1.5.
    """

    def forward(actor, obs):
        mean, _ = actor.net(obs).chunk(2, -1)
        return mean, torch.full_like(mean, log_std)

    monkeypatch.setattr(sac.Actor, "forward", forward)
    folder = sac.train(tiny(sac, env_id=env_id, alpha=0.2, policy_lr=0.0))
    alphas = [row["alpha"] for row in table(folder / "updates.csv")]
    assert all(direction * (b - a) > 0 for a, b in zip([0.2, *alphas], alphas))


def test_fixed_temperature():
    folder = sac.train(tiny(sac, alpha=0.7, autotune=False))
    alphas = [row["alpha"] for row in table(folder / "updates.csv")]
    assert alphas == pytest.approx([0.7] * len(alphas))
    assert state_of(folder)["temperature"]["log_alpha"].item() == pytest.approx(math.log(0.7))


# ── Settings and ends of a run ─────────────────────────────────────────────────────────────────────


@off_policy
def test_matmul_precision_is_set(module):
    module.train(tiny(module, matmul_precision="medium", total_timesteps=60))
    assert torch.get_float32_matmul_precision() == "medium"
    module.train(tiny(module, total_timesteps=60))
    assert torch.get_float32_matmul_precision() == "highest"


@off_policy
def test_episodes_that_never_end(module):
    """Without an end there are logs and checkpoints all the same, once in 10,000 steps."""
    settings = dict(total_timesteps=10_200, learning_starts=9_900, batch_size=1, checkpoint_every=1)
    folder = module.train(tiny(module, env_id="probes:Endless-v0", **settings))
    rows = [row["step"] for row in table(folder / "updates.csv")]
    assert rows == [10_000, 10_200]


@off_policy
def test_first_log_is_at_an_end_of_an_episode(module):
    """However long it took to fill the buffer: a checkpoint may follow, and should fall on an end."""
    settings = dict(total_timesteps=10_030, learning_starts=10_003, batch_size=1)
    folder = module.train(tiny(module, env_id="probes:BoxCounter-v0", **settings))
    assert [row["step"] for row in table(folder / "updates.csv")] == [10_010, 10_020, 10_030]


@off_policy
def test_environment_that_writes_into_its_observation(module):
    """Each next_obs is the next row's obs, and none is its own row's: nothing has changed later."""
    settings = dict(total_timesteps=100, learning_starts=60, env_id="probes:BoxReuse-v0")
    buffer = state_of(module.train(tiny(module, **settings)))["buffer"]
    obs, next_obs = buffer["observations"][:, 0], buffer["next_observations"][:, 0]
    torch.testing.assert_close(next_obs, obs + 1)
    ends = torch.arange(1, 101) % 10 == 0
    assert torch.equal(obs[1:] == next_obs[:-1], ~ends[:-1])


@off_policy
def test_updates_from_the_first_step(module):
    settings = dict(policy_frequency=1) if module is td3 else {}
    folder = module.train(tiny(module, total_timesteps=60, learning_starts=0, **settings))
    for name in ("critic_optimizer", "actor_optimizer"):
        assert state_of(folder)[name]["state"][0]["step"] == 60


@off_policy
def test_last_updates_are_logged(module):
    """Also those of an episode that the end of the run has cut."""
    folder = module.train(tiny(module, total_timesteps=250))
    assert [row["step"] for row in table(folder / "updates.csv")] == [200, 250]


def test_alpha_of_zero():
    """No bonus at all: the ablation."""
    folder = sac.train(tiny(sac, alpha=0.0, autotune=False, total_timesteps=200))
    assert table(folder / "updates.csv")[-1]["alpha"] < 1e-20


def test_alpha_of_zero_that_should_move():
    with pytest.raises(ValueError, match="alpha is 0, from where it cannot move"):
        sac.train(tiny(sac, alpha=0.0))


def test_fixed_alpha_of_a_resumed_run():
    folder = sac.train(tiny(sac, alpha=0.7, autotune=False))
    settings = dict(alpha=0.3, autotune=False, total_timesteps=800, resume=folder)
    sac.train(tiny(sac, **settings))
    assert table(folder / "updates.csv")[-1]["alpha"] == pytest.approx(0.3)


def test_temperature_of_zero_that_may_move_in_a_resumed_run():
    folder = sac.train(tiny(sac, alpha=0.0, autotune=False))
    settings = dict(alpha=0.2, total_timesteps=800, resume=folder)
    sac.train(tiny(sac, **settings))
    alphas = [row["alpha"] for row in table(folder / "updates.csv")]
    assert alphas[0] < 1e-20 and 0.05 < alphas[-1] < 0.8


@off_policy
def test_loading_a_buffer_takes_no_second_one(module):
    """Beside the rows that were loaded and the buffer's own there is no copy."""
    state, buffer = numbered(module, 20_000, 20_000).state_dict(), numbered(module, 20_000, 0)
    state["next"] = 7_000
    tracemalloc.start()
    buffer.load_state_dict(state)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.1 * sum(array.nbytes for array in buffer.arrays.values())


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_a_checkpoint_is_mapped_not_read(tmp_path, monkeypatch):
    """Until the buffer copies its rows, the checkpoint's 66 MB are in the file only."""

    def anonymous() -> int:
        """Bytes of this process that no file holds."""
        status = open("/proc/self/status").read()
        return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])

    args, cpu = sac.Args(env_id="Pendulum-v1", total_timesteps=10), torch.device("cpu")
    buffer = sac.ReplayBuffer(400_000, 17, 6, cpu)
    for array in buffer.arrays.values():
        array[:] = 1
    buffer.filled = 400_000
    folder = sac.Run(args, buffer=buffer).folder
    size = (folder / "checkpoint.pt").stat().st_size
    assert size > 60e6
    load, seen = sac.ReplayBuffer.load_state_dict, []

    def spy(self, state):
        seen.append(anonymous() - before)
        load(self, state)

    monkeypatch.setattr(sac.ReplayBuffer, "load_state_dict", spy)
    args.resume, other = folder, sac.ReplayBuffer(400_000, 17, 6, cpu)
    before = anonymous()
    sac.Run(args, buffer=other)
    assert len(other) == 400_000 and seen[0] < 0.2 * size
