"""Each equation label of the scripts against values that are worked out in another way.

By hand, by enumeration, by quadrature, by the definition's explicit sums or by finite differences;
never by a second call of the same code.
"""

import itertools
import math
from decimal import Decimal, getcontext

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import EPISODIC, OFF_POLICY, ON_POLICY, each, state_of, train
from numpy.polynomial.legendre import leggauss
from torch import nn, tensor
from torch.nn.utils import parameters_to_vector

import a2c
import a3c
import ddpg
import ppo
import reinforce
import reinforce_baseline
import sac
import td3
import trpo

OBS, BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32), gym.spaces.Box(-1, 1, (2,))


def box_actor(script):
    """A Gaussian actor with a mean far from 0, and log σ = −0.5 and 0.3."""
    actor = script.Actor(OBS, BOX)
    nn.init.normal_(actor.net[-1].weight)
    actor.log_std.data = tensor([-0.5, 0.3])
    return actor


def softmax_actor(script):
    actor = script.Actor(OBS, gym.spaces.Discrete(3))
    nn.init.normal_(actor.net[-1].weight)
    return actor


def column(*numbers, dtype=torch.float64):
    """(T,) numbers → a (T, 1) tensor: one environment."""
    return tensor(numbers, dtype=dtype).unsqueeze(1)


def gaussian_log_prob(actor, obs, actions):
    """The density's formula in NumPy, from the network's output alone; and the entropy's."""
    mean, std = actor.net(obs).detach().numpy(), np.exp(actor.log_std.detach().numpy())
    squares = ((actions.numpy() - mean) / std) ** 2
    entropy = np.log(std * np.sqrt(2 * np.pi * np.e)).sum()
    return -0.5 * (squares + 2 * np.log(std) + np.log(2 * np.pi)).sum(1), entropy


# ── The policy ────────────────────────────────────────────────────────────────────────────────────


@each(*ON_POLICY)
def test_softmax_policy(script):
    """[AC-02a] exp(log_prob(a)) = e^{f_a} / Σ_b e^{f_b}; the probabilities sum to 1 [CS-2a];
    the entropy is −Σ π log π [CS-8.1a]."""
    actor, obs = softmax_actor(script), torch.randn(5, 3)
    logits = actor.net(obs).detach().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for action in range(3):
        log_prob = actor(obs).log_prob(torch.full((5,), action))
        assert log_prob.shape == (5,)
        np.testing.assert_allclose(log_prob.exp().detach(), expected[:, action], rtol=1e-5)
    assert actor.mode(obs.numpy()).tolist() == expected.argmax(1).tolist()
    entropy = -(expected * np.log(expected)).sum(1)
    np.testing.assert_allclose(actor(obs).entropy().detach(), entropy, rtol=1e-4)


@each(*ON_POLICY)
def test_gaussian_policy(script):
    """[AC-02b] log π = −½ Σ_i [((a−μ)/σ)² + 2 log σ + log 2π], one number a sample; and
    [AC-02c] ∂ log π / ∂μ = (a − μ)/σ², through the network's last bias."""
    actor, obs, actions = box_actor(script), torch.randn(5, 3), 3 * torch.randn(5, 2)
    log_probs, entropy = gaussian_log_prob(actor, obs, actions)
    dist = actor(obs)
    assert dist.log_prob(actions).shape == dist.entropy().shape == (5,)
    np.testing.assert_allclose(dist.log_prob(actions).detach(), log_probs, rtol=1e-5)
    assert dist.entropy().tolist() == pytest.approx([entropy] * 5)  # [CS-8.1a]
    (score,) = torch.autograd.grad(dist.log_prob(actions)[0], actor.net[-1].bias)
    mean, variance = actor.net(obs)[0].detach(), tensor([-1.0, 0.6]).exp()
    torch.testing.assert_close(score, (actions[0] - mean) / variance, rtol=1e-4, atol=1e-5)


def test_actions_are_scaled_and_clipped_per_dimension():
    """−1 and +1 are the bounds of each dimension; nothing that leaves the actor is outside."""
    box = gym.spaces.Box(np.float32([-1, 2, -np.inf, 3]), np.float32([3, 2.5, np.inf, np.inf]))
    raw = tensor([[-1.0, -1.0, -9.0, 1.0], [0.0, 0.5, 0.5, -0.5], [-7.0, 7.0, 9.0, -9.0]])
    expected = [[-1.0, 2.0, -9.0, 4.0], [1.0, 2.375, 0.5, 3.0], [-1.0, 2.5, 9.0, 3.0]]
    np.testing.assert_allclose(ppo.Actor(OBS, box).to_env(raw), expected)
    scalar = ppo.Actor(OBS, gym.spaces.Box(-2.0, 2.0, ()))
    assert scalar.to_env(tensor([0.5, 3.0])).tolist() == [1.0, 2.0]
    assert scalar.mode(np.zeros((4, 3), np.float32)).shape == (4,)


# ── Running statistics ────────────────────────────────────────────────────────────────────────────


@each("ppo", "a2c")
def test_running_norm(script):
    """Batches of any sizes give the mean and standard deviation of all samples in one array."""
    norm = script.RunningNorm((2,))
    samples = np.random.default_rng(0).normal(5, [0.1, 30], (1000, 2))
    samples[700:] += 4  # the batches differ from one another
    for batch in np.split(samples, [1, 2, 700]):
        norm.update(tensor(batch, dtype=torch.float32))
    np.testing.assert_allclose(norm.mean, samples.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.std, samples.std(0), rtol=1e-4)
    x = np.array([[4.0, 25.0], [100.0, 0.0]])
    expected = ((x - samples.mean(0)) / samples.std(0)).clip(-10, 10)
    np.testing.assert_allclose(norm(tensor(x, dtype=torch.float32)), expected, rtol=1e-3)


def test_critic_is_in_reward_units():
    """V_w is 0 at first. The first targets set its mean and scale; later ones leave V_w as it is,
    for rewards of any scale."""
    obs = torch.randn(5, 3)
    for unit in (1.0, 2.0**-20):
        critic = ppo.Critic(OBS)
        assert critic(obs).tolist() == [0] * 5
        critic.update_return_norm(unit * tensor([0.0, 14.0]))  # mean 7, standard deviation 7
        torch.testing.assert_close(critic(obs), unit * tensor([7.0] * 5))
        nn.init.normal_(critic.net[-1].weight, std=10)  # some other V_w
        before = critic(obs)
        critic.update_return_norm(unit * tensor([-100.0, 300.0]))
        np.testing.assert_allclose(critic.return_norm.mean, unit * 53.5)  # of 0, 14, -100, 300
        std = unit * np.std([0, 14, -100, 300])
        np.testing.assert_allclose(critic.return_norm.std, std, rtol=1e-5)
        assert before.std() > unit
        torch.testing.assert_close(critic(obs), before, rtol=1e-4, atol=1e-3 * unit)


# ── Returns and advantages ────────────────────────────────────────────────────────────────────────


@each(*EPISODIC)
def test_discounted_returns(script):
    """[CS-6a] by hand with γ = ½, for whole numbers too (trap 8), and against the double sum."""
    for kind in (torch.float64, torch.float32, torch.int64):
        returns = script.discounted_returns(tensor([1, 2, 3], dtype=kind), 0.5)
        assert returns.tolist() == [2.75, 3.5, 3.0]
    assert script.discounted_returns(tensor([7.0]), 0.9).tolist() == [7.0]
    rewards = torch.randn(40, dtype=torch.float64)
    returns = script.discounted_returns(rewards, 0.9)
    for t in range(40):
        total = sum(0.9 ** (k - t) * rewards[k].item() for k in range(t, 40))
        assert returns[t].item() == pytest.approx(total, rel=1e-4, abs=1e-5)


EIGHT = dict(  # episodes: one terminates, one is truncated, one is both at once, one goes on
    rewards=column(1, 2, 3, 4, 5, 8, 6, 7),
    values=column(1, 2, 2, 1, 2, 3, 1, 2),
    next_values=column(2, 2, 2, 2, 2, 2, 2, 2),
    terminations=column(0, 0, 1, 0, 0, 1, 0, 0, dtype=torch.bool),
    truncations=column(0, 0, 0, 0, 1, 1, 0, 0, dtype=torch.bool),
)


@each("a2c", "a3c")
def test_n_step_advantages_by_hand(script):
    """[AC-07a], [CS-10b], [CS-10c] γ = ½; V(s') = 2 cancels where the next V(s) is 2 as well. A time
    limit bootstraps, an end does not."""
    advantages = script.n_step_advantages(**EIGHT, gamma=0.5)
    assert advantages.squeeze(1).tolist() == [
        1 + 2 / 2 + 3 / 4 - 1,
        2 + 3 / 2 - 2,
        3 - 2,
        4 + 5 / 2 + 2 / 4 - 1,
        5 + 2 / 2 - 2,
        8 - 3,
        6 + 7 / 2 + 2 / 4 - 1,
        7 + 2 / 2 - 2,
    ]


@each("trpo", "ppo")
def test_gae_by_hand(script):
    """[X-GAE], [CS-10b] γ = λ = ½: δ = r + 1 − V(s), without the 1 in the third and in the sixth
    step, which terminate; the trace is ¼."""
    advantages = script.gae(**EIGHT, gamma=0.5, gae_lambda=0.5)
    expected = [1 + (1 + 1 / 4) / 4, 1 + 1 / 4, 1, 4 + 4 / 4, 4, 5, 6 + 6 / 4, 6]
    assert advantages.squeeze(1).tolist() == expected


def random_rollout(T=30, N=4):
    rng = torch.Generator().manual_seed(3)
    rewards, values, next_values = torch.randn(3, T, N, generator=rng, dtype=torch.float64)
    terminations, truncations = torch.rand(2, T, N, generator=rng) < 0.1
    # Where no episode ends, the successor is the state that comes next.
    ends = terminations | truncations
    next_values[:-1] = torch.where(ends[:-1], next_values[:-1], values[1:])
    return rewards, values, next_values, terminations, truncations


@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
def test_advantages_against_the_sums(lam):
    """[X-GAE] Â_t = Σ_l (γλ)^l δ_{t+l} up to the episode's end. λ = 0 is δ [CS-10b]; λ = 1 is
    Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) − V(s_t) [AC-07a], which a2c.py and a3c.py compute; without
    a bootstrap, G − V [CS-9f]."""
    rewards, values, next_values, terminations, truncations = rollout = random_rollout()
    gamma, ends = 0.9, terminations | truncations
    found = {script.__name__: script.gae(*rollout, gamma, lam) for script in (trpo, ppo)}
    if lam == 1:
        found |= {s.__name__: s.n_step_advantages(*rollout, gamma) for s in (a2c, a3c)}
    for t, n in itertools.product(*map(range, rewards.shape)):
        last = next((k for k in range(t, len(rewards)) if ends[k, n]), len(rewards) - 1)
        total = 0.0
        for k in range(t, last + 1):
            bootstrap = 0.0 if terminations[k, n] else next_values[k, n].item()
            delta = rewards[k, n].item() + gamma * bootstrap - values[k, n].item()
            total += (gamma * lam) ** (k - t) * delta
        if lam == 1:
            n_steps = last + 1 - t
            explicit = sum(gamma**k * rewards[t + k, n].item() for k in range(n_steps))
            explicit += gamma**n_steps * bootstrap - values[t, n].item()
            assert total == pytest.approx(explicit)
        for advantages in found.values():
            assert advantages[t, n].item() == pytest.approx(total, rel=1e-4, abs=1e-5)


# ── The policy gradient ───────────────────────────────────────────────────────────────────────────


def test_worked_step_of_the_text():
    """[L10-4], [CS-4a]: θ = (0, 0), a₁, G = 2, α = 0.1 → ∇log π = (½, −½), π(a₁) = 0.549834."""
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log_prob = theta.log_softmax(0)[:1]
    reinforce.policy_gradient_loss(log_prob, tensor([2.0], dtype=torch.float64)).backward()
    torch.optim.SGD([theta], lr=0.1).step()
    assert theta.tolist() == pytest.approx([0.1, -0.1])
    assert theta.softmax(0)[0].item() == pytest.approx(0.549834, abs=5e-7)


THIRD = column(0, 0, 1, dtype=torch.bool)  # the episode ends with the third step
NEVER = column(0, 0, 0, dtype=torch.bool)


class SmallMDP:
    """Two states, two actions, three steps from state 0; every trajectory can be written down.

    γ = 1, as the boxes have no γ^t in front of ĝ_t.
    """

    def __init__(self):
        kind = dict(generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.theta = torch.randn(2, 2, requires_grad=True, **kind)  # (state, action)
        self.reward = torch.randn(2, 2, **kind)
        self.to_state_1 = torch.rand(2, 2, **kind)  # P(s' = 1 | s, a)
        self.any_value = torch.randn(2, **kind)  # an arbitrary V
        self.log_pi = self.theta.log_softmax(1)

    def trajectories(self):
        """states, actions, successors, and the probability, differentiable in θ."""
        for actions in itertools.product(range(2), repeat=3):
            for successors in itertools.product(range(2), repeat=3):
                states, p = [0, *successors[:2]], 1.0
                for s, a, s_next in zip(states, actions, successors):
                    to_1 = self.to_state_1[s, a]
                    p = p * self.log_pi[s, a].exp() * (to_1 if s_next else 1 - to_1)
                yield states, list(actions), list(successors), p

    def rewards(self, states, actions):
        return torch.stack([self.reward[s, a] for s, a in zip(states, actions)])

    def gradient_of_J(self):
        """∇ Σ_τ p(τ) R(τ), by differentiating the sum over all trajectories [CS-3a]."""
        J = sum(p * self.rewards(s, a).sum() for s, a, _, p in self.trajectories())
        return torch.autograd.grad(J, self.theta, retain_graph=True)[0]


def weights_of(script, mdp, rewards, states, successors):
    """What the script puts beside log π; its V may be any."""
    if script in (reinforce, reinforce_baseline):
        baseline = 0 if script is reinforce else mdp.any_value[states]
        return script.discounted_returns(rewards, 1.0) - baseline
    values, next_values = mdp.any_value[states], mdp.any_value[successors]
    samples = *(x.unsqueeze(1) for x in (rewards, values, next_values)), THIRD, NEVER
    if script in (a2c, a3c):
        return script.n_step_advantages(*samples, 1.0)[:, 0]
    return script.gae(*samples, 1.0, 1.0)[:, 0]


def objective_of(script, log_probs, weights):
    old = log_probs.detach()
    if script is trpo:
        return trpo.surrogate(log_probs, old, weights)
    if script is ppo:
        return ppo.clipped_surrogate(log_probs, old, weights, 0.2)
    return -script.policy_gradient_loss(log_probs, weights)


@each(*ON_POLICY)
def test_exact_policy_gradient(script):
    """[CS-5.4a], [CS-6b], [CS-9a], [CS-9b], [CS-9g], [CS-10a]: over all trajectories of a small MDP,
    the gradient of each script's objective has the expectation ∇J, whatever V is; J is enumerated.
    At θ_old, the ratio [AC-08b] changes nothing in the surrogates [AC-08a], [AC-09b]."""
    mdp, expectation = SmallMDP(), 0.0
    for states, actions, successors, p in mdp.trajectories():
        weights = weights_of(script, mdp, mdp.rewards(states, actions), states, successors)
        objective = objective_of(script, mdp.log_pi[states, actions], weights)
        (gradient,) = torch.autograd.grad(objective, mdp.theta, retain_graph=True)
        expectation = expectation + p.detach() * gradient * 3  # it is a mean over three steps
    torch.testing.assert_close(expectation, mdp.gradient_of_J())


def test_score_of_a_trajectory():
    """[AC-03c] ∇log p_θ(τ) = Σ_t ∇log π_θ(a_t|s_t), and E[R(τ) ∇log p_θ(τ)] = ∇J
    of [CS-3a]: the log-derivative trick [CS-5.3a]."""
    mdp, expectation = SmallMDP(), 0.0
    for states, actions, _, p in mdp.trajectories():
        (score,) = torch.autograd.grad(p.log(), mdp.theta, retain_graph=True)
        log_probs = mdp.log_pi[states, actions]
        (sum_of_scores,) = torch.autograd.grad(log_probs.sum(), mdp.theta, retain_graph=True)
        torch.testing.assert_close(score, sum_of_scores)
        expectation = expectation + p.detach() * mdp.rewards(states, actions).sum() * score
    torch.testing.assert_close(expectation, mdp.gradient_of_J())


def test_state_value_is_the_mean_of_action_values():
    """[CS-5.1], [CS-9f]: V and Q by backward induction; J, and the mean of a2c.py's advantages
    after each first action, over the trajectories: J = V(s₀), E[Â|a] = Q − V, Σ_a π A = 0."""
    mdp = SmallMDP()
    pi, to_1 = mdp.log_pi.detach().exp(), mdp.to_state_1
    V = torch.zeros(4, 2, dtype=torch.float64)  # (time, state); nothing follows the last step
    for t in (2, 1, 0):
        Q = mdp.reward + to_1 * V[t + 1, 1] + (1 - to_1) * V[t + 1, 0]
        V[t] = (pi * Q).sum(1)  # V = Σ_a π Q
    J, total, advantage = 0.0, [0.0, 0.0], [0.0, 0.0]
    for states, actions, successors, p in mdp.trajectories():
        rewards, p = mdp.rewards(states, actions), p.item()
        samples = rewards, V[range(3), states], V[range(1, 4), successors]
        weights = a2c.n_step_advantages(*(x.unsqueeze(1) for x in samples), THIRD, NEVER, 1.0)
        J += p * rewards.sum().item()
        total[actions[0]] += p
        advantage[actions[0]] += p * weights[0, 0].item()
    assert pytest.approx(J) == V[0, 0].item()
    means = [x / p for x, p in zip(advantage, total)]
    assert means == pytest.approx((Q[0] - V[0, 0]).tolist())
    assert sum(p * x for p, x in zip(total, means)) == pytest.approx(0)


# States, actions, rewards. In state 0, action 1 ends; action 0 leads to state 1, where both end.
FORK = [([0], [1], [2.0]), ([0, 1], [0, 0], [-1.0, 3.0]), ([0, 1], [0, 1], [-1.0, 0.5])]


@each(*EPISODIC)
def test_exact_gradient_of_a_whole_update(script, monkeypatch):
    """[CS-6b], [CS-6c], [CS-9g], [CS-4a], trap 9: FORK has three trajectories, of one step and of two, so
    the batches of two steps or more can be enumerated. Over these, the gradient that `train` hands
    to Adam has the expectation −E[episodes per batch] / batch_size · ∇J. It would not even be
    along ∇J if the sum were divided by the batch's own number of steps."""
    settings = dict(norm_returns=False) if script is reinforce else dict(norm_adv=False)
    settings |= dict(total_timesteps=1, batch_size=2, gamma=1.0)
    env = script.make_env("envs:Choose-v0")
    torch.manual_seed(1)
    actor = script.Actor(env.observation_space, env.action_space)  # as train initialises it
    log_pi = actor(torch.eye(2)).base_dist.logits
    log_probs = [sum(log_pi[s, a] for s, a in zip(states, actions)) for states, actions, _ in FORK]
    J = sum(p.exp() * sum(rewards) for p, (*_, rewards) in zip(log_probs, FORK))
    gradient = torch.autograd.grad(J, list(actor.parameters()))
    long = FORK[1:]
    batches = [[x] for x in long] + [[FORK[0], x] for x in FORK]
    expectation, number, total = 0.0, 0.0, 0.0
    for batch in batches:
        left = list(batch)

        def play_episode(env, actor):
            states, actions, rewards = left.pop(0)
            statistics = {"r": sum(rewards), "l": len(rewards), "t": 0.0}
            return torch.eye(2)[states], tensor(actions), tensor(rewards), statistics

        monkeypatch.setattr(script, "play_episode", play_episode)
        # Adam's first average is a tenth of the gradient.
        adam = state_of(train(script, "envs:Choose-v0", **settings))["optimizer"]["state"]
        found = torch.cat([10 * adam[i]["exp_avg"].flatten() for i in range(len(gradient))])
        p = sum(log_probs[FORK.index(x)] for x in batch).exp().item()
        expectation, number, total = expectation + p * found, number + p * len(batch), total + p
        assert not left
    assert total == pytest.approx(1)
    expected = torch.cat([-number / 2 * x.flatten() for x in gradient])
    assert expected.norm() > 0.01
    torch.testing.assert_close(expectation, expected, rtol=1e-3, atol=1e-5)


# ── The baseline and the critic ───────────────────────────────────────────────────────────────────


def test_baseline_of_five_arms():
    """[L3-8] rewards [.55, .62, .90, .58, .50], π uniform: b = E[r] keeps the mean gradient and
    makes its total variance 0.011856 of 0.329376, as the lesson works it out."""
    rewards = tensor([0.55, 0.62, 0.90, 0.58, 0.50], dtype=torch.float64)
    means, variances = [], []
    for b in (0.0, rewards.mean()):
        gradients = []
        for arm in range(5):
            theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
            log_prob, weight = theta.log_softmax(0)[arm : arm + 1], rewards[arm : arm + 1] - b
            loss = reinforce_baseline.policy_gradient_loss(log_prob, weight)
            gradients.append(-torch.autograd.grad(loss, theta)[0])
        gradients = torch.stack(gradients)
        means.append(gradients.mean(0))
        variances.append(gradients.var(0, correction=0).sum().item())
    torch.testing.assert_close(*means)
    assert variances == pytest.approx([0.329376, 0.011856], abs=5e-7)


def test_wrong_shapes_are_refused():
    """Trap 12: (B, 1) beside (B,) would broadcast to (B, B)."""
    B, C, ends = torch.zeros(3), torch.zeros(3, 1), torch.zeros(3, dtype=torch.bool)
    calls = [lambda s=s: s.policy_gradient_loss(B, C) for s in (reinforce, a2c, a3c)]
    calls += [lambda s=s: s.n_step_advantages(B, C, B, ends, ends, 0.9) for s in (a2c, a3c)]
    calls += [lambda s=s: s.gae(B, B, C, ends, ends, 0.9, 0.9) for s in (trpo, ppo)]
    calls += [lambda: trpo.surrogate(B, B, C), lambda: ppo.clipped_surrogate(C, B, B, 0.2)]
    calls += [lambda: ddpg.td_target(B, C, ends, 0.9), lambda: td3.td_target(B, B, C, ends, 0.9)]
    calls += [lambda: sac.td_target(B, B, B, C, ends, 0.9, 0.1)]
    calls += [lambda: sac.soft_policy_loss(C, B, B, 0.1)]
    for call in calls:
        with pytest.raises(AssertionError):
            call()


# ── The objectives of a2c, a3c and ppo ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("norm_adv", [False, True])
@each("a2c", "a3c", "ppo")
def test_objective(script, norm_adv):
    """[AC-09c] L = L_PG or L_CLIP − c₁ L_VF [X-VF] [CS-10d] + c₂ H [CS-8.1a], each term in NumPy from
    the networks' outputs alone; the value loss, and in L_PG [CS-10a] [CS-9g] the advantages A = Q − V
    [CS-9f], in units of the targets' std, which is 5."""
    actor, critic = box_actor(script), script.Critic(OBS)
    critic.return_norm.update(tensor([-5.0, 5.0]))
    obs, actions = torch.randn(16, 3), torch.randn(16, 2)
    batch = [obs, actions, torch.randn(16) + 1, 3 * torch.randn(16)]
    *_, advantages, targets = batch
    log_probs, entropy = gaussian_log_prob(actor, obs, actions)
    A, args = advantages.numpy(), dict(vf_coef=0.7, ent_coef=0.01)
    if script is ppo:
        args |= dict(clip_coef=0.2, norm_adv=norm_adv)
        old = torch.as_tensor(log_probs) + 0.3 * torch.randn(16)
        batch.insert(2, old)
        ratio = np.exp(log_probs - old.numpy())
        assert abs(ratio - 1).max() > 0.2
        A = (A - A.mean()) / A.std(ddof=1) if norm_adv else A
        policy = np.minimum(ratio * A, ratio.clip(0.8, 1.2) * A).mean()
    else:
        policy = (log_probs * A / 5).mean()
    values = 5 * critic.net(obs).detach().numpy()[:, 0]
    value_loss = ((values - targets.numpy()) ** 2).mean() / 25
    expected = policy - 0.7 * value_loss + 0.01 * entropy, policy, value_loss, entropy
    function = ppo.ppo_objective if script is ppo else script.actor_critic_objective
    objective, metrics = function(actor, critic, *batch, script.Args(**args))
    first, *others = (x.item() for x in metrics.values())  # first: L_CLIP, or −L_PG to be minimised
    found = objective.item(), first if script is ppo else -first, *others
    assert found == pytest.approx(expected, rel=1e-4)
    objective, _ = function(actor, critic, *(x[:1] for x in batch), script.Args(**args))
    assert objective.isfinite()  # trap 13: the std of one number is not a number


@pytest.mark.parametrize(
    "advantage, ratio, value, gradient",  # of the surrogate, with respect to log π: ratio · A, or 0
    [(1, 1.5, 1.2, 0.0), (1, 0.5, 0.5, 0.5), (-1, 1.5, -1.5, -1.5), (-1, 0.5, -0.8, 0.0)],
)
def test_clipped_surrogate_by_hand(advantage, ratio, value, gradient):
    """[AC-09b] with ε = 0.2, and the ratio [AC-08b] as the exponential of a difference of logs."""
    old_log_prob = tensor([-1.0])
    log_prob = (old_log_prob + math.log(ratio)).requires_grad_()
    surrogate = ppo.clipped_surrogate(log_prob, old_log_prob, tensor([float(advantage)]), 0.2)
    assert surrogate.item() == pytest.approx(value)
    assert torch.autograd.grad(surrogate, log_prob)[0].item() == pytest.approx(gradient)


def test_the_clip_as_a_kl_penalty():
    """[AC-09b] The clip's gradient is that of r_t A_t − β_t KL_t with the sample KL_t = log π_old −
    log π_θ, β_t = −r_t A_t beyond the clip on the side that A_t favours, and 0 elsewhere (arXiv
    2606.23932)."""
    old_log_probs, advantages = torch.randn(2, 200)
    log_probs = (old_log_probs + 0.4 * torch.randn(200)).requires_grad_()
    ratio = (log_probs - old_log_probs).exp()
    beyond = torch.where(advantages > 0, ratio > 1.2, ratio < 0.8)
    assert 20 < beyond.sum() < 180
    betas = torch.where(beyond, -ratio * advantages, 0.0).detach()
    penalised = (ratio * advantages - betas * (old_log_probs - log_probs)).mean()
    clipped = ppo.clipped_surrogate(log_probs, old_log_probs, advantages, 0.2)
    expected, found = (torch.autograd.grad(x, log_probs)[0] for x in (penalised, clipped))
    torch.testing.assert_close(found, expected)


def test_approximate_kl():
    """Trap 15: E[ratio − 1 − log ratio] for ratios 2 and ½, and not below 0 for tiny changes. Its
    expectation over a ∼ π_old is KL(π_old ‖ π_θ), here a sum over three actions."""
    by_hand = (2 - 1 - math.log(2) + 0.5 - 1 + math.log(2)) / 2
    assert ppo.approximate_kl(tensor([2.0, 0.5]).log()).item() == pytest.approx(by_hand)
    assert ppo.approximate_kl(torch.full((4,), 1e-4)).item() == pytest.approx(5e-9, rel=0.01)
    old, new = torch.randn(2, 3).softmax(1)
    terms = [ppo.approximate_kl((q / p).log().view(1)) for p, q in zip(old, new)]
    kl = (old * (old / new).log()).sum()
    assert sum(p * x for p, x in zip(old, terms)).item() == pytest.approx(kl.item(), rel=1e-4)


@each("ppo", "ddpg", "td3", "sac")
def test_adam(script):
    """Against Kingma's formulas in NumPy, over five steps of two tensors; ppo's third is clipped."""
    parameters = [nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(()))]
    adam, eps = script.Adam(parameters, 0.1), 1e-5 if script is ppo else 1e-8
    theta = parameters_to_vector(parameters).detach().double().numpy()
    m, v = np.zeros(7), np.zeros(7)
    for t in range(1, 6):
        loss = (parameters[0] ** 3).sum() + parameters[1] ** 2
        g = np.where(np.arange(7) < 6, 3 * theta**2, 2 * theta)
        if script is ppo:
            norm = adam.step(loss, max_norm=np.linalg.norm(g) * (0.25 if t == 3 else 2))
            assert norm.item() == pytest.approx(np.linalg.norm(g), rel=1e-3)
            g *= 0.25 if t == 3 else 1
        else:
            adam.step(loss)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)
        found = parameters_to_vector(parameters).detach()
        np.testing.assert_allclose(found, theta, rtol=1e-4, atol=1e-5)


# ── TRPO ──────────────────────────────────────────────────────────────────────────────────────────


def test_mean_kl():
    """[AC-08a] KL(π_old ‖ π_θ), in that direction, from the densities' formulas."""
    obs, (old, new) = torch.randn(6, 3), (softmax_actor(trpo) for _ in range(2))
    p, q = (actor.net(obs).detach().softmax(1).numpy() for actor in (old, new))
    expected = (p * np.log(p / q)).sum(1).mean()
    assert trpo.mean_kl(old(obs), new(obs)).item() == pytest.approx(expected, rel=1e-4)
    assert trpo.mean_kl(old(obs), old(obs)).item() == 0
    old, new = box_actor(trpo), box_actor(trpo)
    new.log_std.data -= 0.4
    means = [actor.net(obs).detach().numpy() for actor in (old, new)]
    stds = [np.exp(actor.log_std.detach().numpy()) for actor in (old, new)]
    squares = (stds[0] ** 2 + (means[0] - means[1]) ** 2) / (2 * stds[1] ** 2)
    expected = (np.log(stds[1] / stds[0]) + squares - 0.5).sum(1).mean()
    assert trpo.mean_kl(old(obs), new(obs)).item() == pytest.approx(expected, rel=1e-4)


def test_surrogate_by_hand():
    """[AC-08a] mean of ratio · A, without clipping: ratios 3 and ½, A = 2 and −4."""
    old = tensor([-1.0, -2.0])
    log_probs = old + tensor([3.0, 0.5]).log()
    assert trpo.surrogate(log_probs, old, tensor([2.0, -4.0])).item() == pytest.approx(2.0)


def test_fisher_vector_product():
    """[X-FVP] F v is the Hessian of KL times v, and so E[score scoreᵀ] v, a sum over actions."""
    actor, obs = softmax_actor(trpo).double(), torch.randn(4, 3, dtype=torch.float64)
    dist = actor(obs)
    theta = list(actor.parameters())
    v = torch.randn_like(parameters_to_vector(theta))
    with torch.no_grad():
        old_dist = actor(obs)
    kl_gradient = torch.autograd.grad(trpo.mean_kl(old_dist, dist), theta, create_graph=True)
    kl_gradient = parameters_to_vector(kl_gradient)
    product, damped = (trpo.fisher_vector_product(kl_gradient, theta, v, x) for x in (0.0, 0.3))
    torch.testing.assert_close(damped, product + 0.3 * v)
    expected = torch.zeros_like(v)
    for s, action in itertools.product(range(4), range(3)):
        log_prob = dist.log_prob(tensor(action))[s]
        score = parameters_to_vector(torch.autograd.grad(log_prob, theta, retain_graph=True))
        expected += log_prob.exp().item() * score * (score @ v) / 4
    torch.testing.assert_close(product, expected, rtol=1e-6, atol=1e-8)


def test_conjugate_gradient():
    """[X-CG] A x = b on random positive definite systems, in as many steps as dimensions."""
    for size in (1, 2, 20):
        B = torch.randn(size, size, dtype=torch.float64)
        A, b = B @ B.T + torch.eye(size), torch.randn(size, dtype=torch.float64)
        x = trpo.conjugate_gradient(lambda v: A @ v, b, iterations=size + 1)
        torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=1e-4, atol=1e-5)
        first = trpo.conjugate_gradient(lambda v: A @ v, b, iterations=1)
        torch.testing.assert_close(first, (b @ b) / (b @ A @ b) * b)  # the steepest descent step
    assert trpo.conjugate_gradient(lambda v: 2 * v, torch.zeros(3), 10).tolist() == [0, 0, 0]
    tiny = torch.full((3,), 1e-9)  # no scale is too small
    torch.testing.assert_close(trpo.conjugate_gradient(lambda v: 2 * v, tiny, 10), tiny / 2)


def test_full_step():
    """[X-STEP] ½ ΔθᵀFΔθ = δ and Δθ ∥ x, however small x; an x of 0 gives a step of 0."""
    B = torch.randn(5, 5, dtype=torch.float64)
    for scale in 1, 1e-8:
        F, x = B @ B.T, scale * torch.randn(5, dtype=torch.float64)
        step = trpo.full_step(x, F @ x, max_kl=0.01)
        assert (0.5 * step @ F @ step).item() == pytest.approx(0.01)
        torch.testing.assert_close(step / step.norm(), x / x.norm())
    assert trpo.full_step(torch.zeros(5), torch.zeros(5), 0.01).tolist() == [0] * 5


def search(answers):
    """A line search with δ = 0.01 in which the k-th evaluation is answered by answers[k]."""
    parameters, seen, answers = [torch.randn(2, 3), torch.randn(4)], [], iter(answers)
    old, step = parameters_to_vector(parameters), torch.randn(10)

    def evaluate_policy():
        seen.append(parameters_to_vector(parameters))
        return tuple(map(tensor, next(answers)))

    fraction, *final = trpo.line_search(parameters, step, evaluate_policy, 0.01, 4)
    final = tuple(x.item() for x in final)
    return fraction, final, parameters_to_vector(parameters), seen, old, step


def test_line_search_shrinks():
    """[X-LS] the first length that keeps KL ≤ δ and improves the surrogate: 0.8² of the step."""
    answers = [(1.0, 0.0), (2.0, 0.02), (0.9, 0.005), (1.1, 0.01)]
    fraction, final, theta, seen, old, step = search(answers)
    assert fraction == pytest.approx(0.64) and final == pytest.approx((1.1, 0.01))
    for tried, expected in zip(seen, (0, 1, 0.8, 0.64), strict=True):
        torch.testing.assert_close(tried, old + expected * step)
    assert torch.equal(theta, seen[-1])


BAD = [(2.0, 0.02), (0.5, 0.0), (1.0, 0.0), (math.nan, 0.0), (2.0, math.nan)]


@pytest.mark.parametrize("answer", BAD)
def test_line_search_gives_up(answer):
    """[X-LS] nothing but an improvement within the trust region moves θ, by not a bit."""
    fraction, final, theta, seen, old, _ = search([(1.0, 0.0), *[answer] * 4])
    assert fraction == 0 and final == (1.0, 0.0) and len(seen) == 5
    assert torch.equal(theta, old)


# ── Targets and losses of ddpg, td3 and sac ───────────────────────────────────────────────────────


def test_targets_by_hand():
    """[X-Q], [AC-11a], [AC-11d], [X-SOFTQ] γ = 0.9, α = ½: an ordinary step, a terminated one, and
    one that the time limit cut, which bootstraps like the first."""
    rewards, ends = tensor([1.0, 2.0, 3.0]), tensor([False, True, False])
    q1, q2, log_probs = tensor([[10.0, 20.0, 40.0], [12.0, 10.0, 30.0], [-1.0, 5.0, 2.0]])
    found = ddpg.td_target(rewards, q1, ends, 0.9)
    torch.testing.assert_close(found, tensor([10.0, 2.0, 39.0]))
    found = td3.td_target(rewards, q1, q2, ends, 0.9)
    torch.testing.assert_close(found, tensor([10.0, 2.0, 30.0]))
    found = sac.td_target(rewards, q1, q2, log_probs, ends, 0.9, 0.5)
    torch.testing.assert_close(found, tensor([1 + 0.9 * 10.5, 2.0, 3 + 0.9 * 29.0]))


def test_smoothing_noise():
    """[AC-11c] |ε| ≤ c; with c = 2.5 σ the share at ±c is P(|z| > 2.5) = 0.01242; drawn for each
    sample and dimension."""
    noise = td3.clipped_noise(torch.zeros(20_000, 2), 0.2, 0.5)
    assert noise.shape == (20_000, 2) and noise.abs().max() == 0.5
    share = (noise.abs() == 0.5).float().mean().item()
    assert abs(share - 0.01242) < 4 * math.sqrt(0.01242 / 40_000)
    # Var = σ² (1 − 2 (c/σ) φ(c/σ) − 2 Q(c/σ)) + c² 2 Q(c/σ)
    density, tails = math.exp(-(2.5**2) / 2) / math.sqrt(2 * math.pi), 0.01242
    variance = 0.04 * (1 - 5 * density - tails) + 0.25 * tails
    assert noise.var().item() == pytest.approx(variance, rel=0.03)
    assert abs(torch.corrcoef(noise.T)[0, 1].item()) < 4 / math.sqrt(20_000)
    assert len(noise[:, 0].unique()) > 19_000


@each(*OFF_POLICY)
@pytest.mark.parametrize("tau, expected", [(0.0, 1.0), (1.0, 5.0), (0.5, 3.0), (0.005, 1.02)])
def test_polyak_update(script, tau, expected):
    """[X-POLYAK]"""
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    for network, value in ((source, 5.0), (target, 1.0)):
        for parameter in network.parameters():
            nn.init.constant_(parameter, value)
    script.polyak_update(source, target, tau)
    for parameter in target.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))
    assert all((parameter == 5).all() for parameter in source.parameters())


@each("ddpg", "td3")
def test_deterministic_policy_gradient(script):
    """[AC-10a] −∇ of the loss is the mean of ∇_θ μ · ∇_a Q, each Jacobian taken by itself."""
    actor, critic = script.Actor(OBS, BOX).double(), script.Critic(OBS, BOX).double()
    obs = torch.randn(7, 3, dtype=torch.float64)
    theta = list(actor.parameters())
    loss = script.deterministic_policy_loss(actor, critic, obs)
    gradient = -parameters_to_vector(torch.autograd.grad(loss, theta))
    expected = torch.zeros_like(gradient)
    for s in obs:
        action = actor(s).detach().requires_grad_()
        (dq_da,) = torch.autograd.grad(critic(s, action), action)  # (A,)
        rows = [torch.autograd.grad(actor(s)[i], theta) for i in range(2)]
        dmu_dtheta = torch.stack([parameters_to_vector(row) for row in rows])  # (A, d)
        expected += dq_da @ dmu_dtheta / len(obs)
    torch.testing.assert_close(gradient, expected)


# ── The squashed Gaussian ─────────────────────────────────────────────────────────────────────────

NODES, WEIGHTS = (torch.as_tensor(x) for x in leggauss(4000))  # on [−1, 1], float64


def density(mean, log_std):
    """π(a) at the nodes, from the code's log π at u = artanh(a)."""
    u = torch.atanh(NODES)[:, None]
    mean, log_std = (torch.full_like(u, number) for number in (mean, log_std))
    return sac.squashed_log_prob(u, mean, log_std).exp()


@pytest.mark.parametrize("mean, log_std", [(0.0, 0.0), (0.7, -1.0), (-1.5, -0.3), (0.2, -2.5)])
def test_density_integrates_to_one(mean, log_std):
    """[X-LOGP]"""
    assert (WEIGHTS * density(mean, log_std)).sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("u", [-12.0, -8.0, 0.5, 8.0, 10.0, 12.0, 40.0])
def test_log_prob_far_out(u):
    """Trap 31: in float32, against 1 − tanh²u = 4 e^{2u} / (e^{2u} + 1)² in fifty digits."""
    getcontext().prec = 50
    power = Decimal(2 * u).exp()
    log_slope = float((4 * power / (power + 1) ** 2).ln())
    at_mean = sac.squashed_log_prob(*tensor([[u], [u], [0.0]]))  # the Gaussian's part is flat
    assert at_mean.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - log_slope, abs=1e-4)


def test_sampled_actions():
    """[AC-12c], [CS-2.1a] a = tanh u, u = μ + σ⊙ε: ∂a/∂μ = 1 − a², ∂a/∂log σ = (1 − a²) σ ε."""
    actor, (mean, log_std) = sac.Actor(OBS, BOX), torch.tensor([0.4, -0.5])
    mean, log_std = (x.expand(1000, 2).clone().requires_grad_() for x in (mean, log_std))
    actor.forward = lambda obs: (mean, log_std)
    actions, log_probs = actor.sample(torch.zeros(1000, 3))
    assert actions.abs().max() <= 1 and log_probs.shape == (1000,)
    d_mean, d_log_std = torch.autograd.grad(actions.sum(), (mean, log_std), retain_graph=True)
    torch.testing.assert_close(d_mean, 1 - actions**2)
    u = torch.atanh(actions.detach().double())
    z = ((u - 0.4) / math.exp(-0.5)).float()
    expected = (1 - actions**2) * math.exp(-0.5) * z
    torch.testing.assert_close(d_log_std, expected, rtol=1e-3, atol=1e-5)


def test_sac_actor():
    """log σ is clamped to [−5, 2]; the mode is tanh μ, in the units of the box."""
    actor, obs = sac.Actor(OBS, gym.spaces.Box(-2, 2, (1,))), torch.randn(4, 3)
    expected = 2 * torch.tanh(actor.net(obs)[:, :1])
    np.testing.assert_allclose(actor.mode(obs.numpy()), expected.detach(), rtol=1e-6)
    for bias, bound in ((50.0, 2.0), (-50.0, -5.0)):
        nn.init.constant_(actor.net[-1].bias, bias)
        assert (actor(torch.zeros(1, 3))[1] == bound).all()


def test_soft_policy_loss():
    """[X-JPI] by hand; and in one dimension, the sampled value and gradient of E[α log π − Q]
    against the integral and its slopes."""
    log_probs, q1, q2 = tensor([[-1.0, 2.0], [3.0, 5.0], [4.0, 1.0]])
    by_hand = sac.soft_policy_loss(log_probs, q1, q2, 0.5).item()
    assert by_hand == pytest.approx((-0.5 - 3 + 1 - 1) / 2)
    alpha, value = 0.3, lambda a: -((a - 0.5) ** 2)

    def integral(mean, log_std):
        pi = density(mean, log_std)
        return (WEIGHTS * pi * (alpha * pi.clamp(min=1e-300).log() - value(NODES))).sum().item()

    mean, log_std = (tensor([x], requires_grad=True) for x in (0.2, -0.4))
    actor = sac.Actor(OBS, gym.spaces.Box(-1, 1, (1,)))
    actor.forward = lambda obs: (mean.expand(len(obs), 1), log_std.expand(len(obs), 1))
    actions, log_probs = actor.sample(torch.zeros(400_000, 3))
    q = value(actions[:, 0])
    loss = sac.soft_policy_loss(log_probs, q, q, alpha)
    assert loss.item() == pytest.approx(integral(0.2, -0.4), abs=0.01)
    for gradient, h in zip(torch.autograd.grad(loss, (mean, log_std)), ((1e-4, 0), (0, 1e-4))):
        slope = integral(0.2 + h[0], -0.4 + h[1]) - integral(0.2 - h[0], -0.4 - h[1])
        assert gradient.item() == pytest.approx(slope / 2e-4, abs=0.01)
        assert abs(slope / 2e-4) > 0.05


def test_temperature_loss():
    """[X-ALPHA] dJ/d log α = −α (mean log π + H̄): α falls above the target H̄ = −2, rises below."""
    log_alpha = tensor(math.log(0.2), requires_grad=True)
    for log_prob in (1.0, 3.0):  # entropies −1 and −3
        loss = sac.temperature_loss(log_alpha.exp(), tensor([log_prob - 1, log_prob + 1]), -2)
        (slope,) = torch.autograd.grad(loss, log_alpha)
        assert slope.item() == pytest.approx(-0.2 * (log_prob - 2))
