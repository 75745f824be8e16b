"""Each equation label of the scripts against values worked out another way.

By hand, by enumeration, by the definition's explicit sums, or by finite differences; never by a
second call of the same code.
"""

import copy
import csv
import inspect
import itertools
import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TINY
from torch import tensor

import a2c
import ppo
import probes
import reinforce
import reinforce_baseline
import trpo

TWO_ACTIONS = gym.spaces.Discrete(2)
THREE_FEATURES = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)


def box_actor(script=ppo, low=(-1.0, -1.0), high=(1.0, 1.0)):
    """A Gaussian actor with a mean far from 0, and log σ = −0.5 and 0.3."""
    space = gym.spaces.Box(np.float32(low), np.float32(high))
    actor = script.Actor(THREE_FEATURES, space)
    torch.nn.init.normal_(actor.net[-1].weight)
    with torch.no_grad():
        actor.log_std.copy_(tensor([-0.5, 0.3]))
    return actor


def softmax_actor(script=ppo, actions=3):
    actor = script.Actor(THREE_FEATURES, gym.spaces.Discrete(actions))
    torch.nn.init.normal_(actor.net[-1].weight)
    return actor


def column(*numbers):
    """(T,) numbers → a (T, 1) tensor: one environment."""
    return tensor(numbers, dtype=torch.float64).unsqueeze(1)


# ── The policy ────────────────────────────────────────────────────────────────────────────────────


def test_softmax_policy():
    """[AC-02a] exp(log_prob(a)) = e^{f_a} / Σ_b e^{f_b}, and the probabilities sum to 1 [CS-2a]."""
    actor, obs = softmax_actor(), torch.randn(5, 3)
    logits = actor.net(obs).detach().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    dist = actor(obs)
    for action in range(3):
        log_prob = dist.log_prob(torch.full((5,), action))
        assert log_prob.shape == (5,)
        np.testing.assert_allclose(log_prob.exp().detach(), expected[:, action], rtol=1e-5)
    assert actor.mode(obs).tolist() == expected.argmax(1).tolist()


def test_gaussian_policy():
    """[AC-02b] log π = −½ Σ_i [((a−μ)/σ)² + 2 log σ + log 2π], one number a sample."""
    actor, obs, action = box_actor(), torch.randn(5, 3), 3 * torch.randn(5, 2)
    mean, std = actor.net(obs).detach().numpy(), np.exp([-0.5, 0.3])
    squares = ((action.numpy() - mean) / std) ** 2
    expected = -0.5 * (squares + 2 * np.log(std) + np.log(2 * np.pi)).sum(1)
    dist = actor(obs)
    assert dist.log_prob(action).shape == dist.entropy().shape == (5,)
    np.testing.assert_allclose(dist.log_prob(action).detach(), expected, rtol=1e-5)
    samples = actor(obs[:1].expand(100_000, 3)).sample()
    np.testing.assert_allclose(samples.mean(0), mean[0], atol=0.02)
    np.testing.assert_allclose(samples.std(0), std, rtol=0.02)


def test_sampled_actions_carry_no_gradient():
    """[CS-2.1a] is not for the on-policy scripts: only log π is differentiated."""
    assert not box_actor()(torch.randn(4, 3)).sample().requires_grad


@pytest.mark.parametrize("make", [box_actor, softmax_actor])
def test_a_distribution_stays_what_it_was(make):
    """π_old does not move with the parameters: what it says after a step is what it said before."""
    actor, obs = make(), torch.randn(5, 3)
    with torch.no_grad():
        dist = actor(obs)
        action = dist.sample()
        before = dist.log_prob(action), dist.entropy()
        for parameter in actor.parameters():
            parameter += 0.1
        assert not torch.equal(actor(obs).log_prob(action), before[0])
        assert torch.equal(dist.log_prob(action), before[0])
        assert torch.equal(dist.entropy(), before[1])


def test_score_function():
    """[AC-02c] ∂ log π / ∂μ = (a − μ)/σ², through the network's last bias."""
    actor, obs, action = box_actor(), torch.randn(1, 3), torch.randn(1, 2)
    actor(obs).log_prob(action).sum().backward()
    mean, std = actor.net(obs).detach(), actor.log_std.exp().detach()
    torch.testing.assert_close(actor.net[-1].bias.grad, ((action - mean) / std**2)[0])


def test_entropy():
    """[CS-8.1a] H = −Σ π log π for a softmax, Σ ½ log(2πeσ²) for a Gaussian."""
    actor, obs = softmax_actor(), torch.randn(5, 3)
    logits = actor.net(obs).detach().numpy()
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        actor(obs).entropy().detach(), -(probs * np.log(probs)).sum(1), rtol=1e-4
    )
    expected = sum(0.5 * math.log(2 * math.pi * math.e * math.exp(2 * x)) for x in (-0.5, 0.3))
    assert box_actor()(obs).entropy().tolist() == pytest.approx([expected] * 5)


def test_actions_are_scaled_and_clipped_per_dimension():
    """−1 and +1 are the bounds of each dimension; what leaves the script is never outside."""
    actor = box_actor(low=(-1.0, 2.0), high=(3.0, 2.5))
    raw = tensor([[-1.0, -1.0], [0.0, 0.5], [1.0, 1.0], [-7.0, 7.0]])
    expected = tensor([[-1.0, 2.0], [1.0, 2.375], [3.0, 2.5], [-1.0, 2.5]])
    torch.testing.assert_close(actor.to_env(raw), expected)
    start_at_3 = ppo.Actor(THREE_FEATURES, gym.spaces.Discrete(2, start=3))
    assert start_at_3.to_env(tensor([0, 1])).tolist() == [3, 4]


def test_action_of_no_dimensions():
    """A Box of shape () holds one number; a batch of such actions has shape (B,)."""
    actor = ppo.Actor(THREE_FEATURES, gym.spaces.Box(-2.0, 2.0, ()))
    assert actor.to_env(tensor([[0.5], [3.0]])).tolist() == [1.0, 2.0]
    assert actor.mode(torch.zeros(4, 3)).shape == (4,)


# ── Running statistics ────────────────────────────────────────────────────────────────────────────


def test_running_norm():
    """Batches of any sizes give the mean and standard deviation of all samples in one array."""
    norm, samples = ppo.RunningNorm(2), np.random.default_rng(0).normal(5, [0.1, 30], (1000, 2))
    samples[700:] += 4  # the batches differ from one another
    for batch in np.split(samples, [1, 2, 700]):
        norm.update(tensor(batch, dtype=torch.float32))
    np.testing.assert_allclose(norm.mean, samples.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.std, samples.std(0), rtol=1e-4)
    x = np.array([[4.0, 25.0], [100.0, 0.0]])
    expected = ((x - samples.mean(0)) / samples.std(0)).clip(-10, 10)
    np.testing.assert_allclose(norm(tensor(x, dtype=torch.float32)), expected, rtol=1e-3)


def test_running_norm_of_a_constant():
    norm = ppo.RunningNorm(1)
    norm.update(torch.ones(10, 1))
    assert norm(torch.ones(1, 1)).item() == 0.0


def test_critic_is_in_reward_units():
    critic, obs = ppo.Critic(THREE_FEATURES), torch.randn(5, 3)
    before = critic(obs)
    assert before.shape == (5,)
    critic.update_return_norm(tensor([0.0, 14.0]))  # mean 7, standard deviation 7
    torch.testing.assert_close(critic(obs), 7 + 7 * before)


def test_statistics_of_the_targets_leave_the_values_as_they_are():
    """But for the first ones: then V_w starts at the targets' mean, were they all the same, too."""
    critic, obs = ppo.Critic(THREE_FEATURES), torch.randn(5, 3)
    critic.update_return_norm(tensor([5.0, 5.0]))
    torch.testing.assert_close(critic(obs), torch.full((5,), 5.0), rtol=0, atol=1e-3)
    torch.nn.init.normal_(critic.net[-1].weight, std=1e4)  # some other V_w
    before = critic(obs)
    assert before.std() > 1
    critic.update_return_norm(tensor([-100.0, 300.0]))
    np.testing.assert_allclose(critic.return_norm.mean, 52.5)  # of 5, 5, -100, 300
    np.testing.assert_allclose(critic.return_norm.std, np.std([5, 5, -100, 300]), rtol=1e-5)
    torch.testing.assert_close(critic(obs), before, rtol=1e-4, atol=1e-3)


# ── Advantages ────────────────────────────────────────────────────────────────────────────────────


def test_td_error_by_hand():
    """[CS-10b] with γ = ½, V(s) = 3, V(s') = 4, r = 1: ordinary, terminated, truncated."""
    rewards, values, next_values = column(1, 1, 1), column(3, 3, 3), column(4, 4, 4)
    for kind in (torch.float64, torch.bool):
        terminations = column(0, 1, 0).to(kind)
        deltas = ppo.td_errors(rewards, values, next_values, terminations, 0.5)
        assert deltas.squeeze(1).tolist() == [0.0, -2.0, 0.0]


def test_gae_by_hand():
    """[X-GAE] one rollout with an episode that terminates, one that is truncated, one that goes on.

    γ = λ = ½, V(s) = 1, V(s') = 2, so δ = r, and r − 1 where terminated; γλ = ¼.
    """
    rewards = column(1, 2, 3, 4, 5, 6, 7)
    terminations, truncations = column(0, 0, 1, 0, 0, 0, 0), column(0, 0, 0, 0, 1, 0, 0)
    values, next_values = torch.ones_like(rewards), 2 * torch.ones_like(rewards)
    expected = [
        1.625,
        2.5,
        2.0,
        5.25,
        5.0,
        7.75,
        7.0,
    ]  # e.g. 7.75 = 6 + 7/4; 5 and 2 look no further
    for kind in (torch.float64, torch.bool):
        ends = terminations.to(kind), truncations.to(kind)
        for of_kind in (
            rewards,
            rewards.long(),
        ):  # whole numbers, too, have fractions as advantages
            advantages = ppo.gae(of_kind, values, next_values, *ends, 0.5, 0.5)
            assert advantages.squeeze(1).tolist() == expected


def random_rollout(T=30, N=4):
    rng = torch.Generator().manual_seed(3)
    rewards, values, next_values = torch.randn(3, T, N, generator=rng, dtype=torch.float64)
    terminations, truncations = torch.rand(2, T, N, generator=rng) < 0.1
    # Where no episode ends, the successor is the state that comes next.
    ends = terminations | truncations
    next_values[:-1] = torch.where(ends[:-1], next_values[:-1], values[1:])
    return rewards, values, next_values, terminations, truncations


def test_gae_against_the_double_sum():
    """[X-GAE] Â_t = Σ_l (γλ)^l δ_{t+l}, the sum written out; the sum stops with the episode."""
    rewards, values, next_values, terminations, truncations = random_rollout()
    gamma, lam = 0.9, 0.8
    advantages = ppo.gae(rewards, values, next_values, terminations, truncations, gamma, lam)
    T, N = rewards.shape
    for t, n in itertools.product(range(T), range(N)):
        total = 0.0
        for k in range(t, T):
            bootstrap = 0.0 if terminations[k, n] else float(next_values[k, n])
            delta = float(rewards[k, n]) + gamma * bootstrap - float(values[k, n])
            total += (gamma * lam) ** (k - t) * delta
            if terminations[k, n] or truncations[k, n]:
                break
        assert float(advantages[t, n]) == pytest.approx(total)


def test_gae_limits():
    """[X-GAE] λ = 0 is δ [CS-10b]; λ = 1 is Σ γ^k r_{t+k} + γ^n V(s_{t+n}) − V(s_t) [AC-07a]."""
    rewards, values, next_values, terminations, truncations = random_rollout()
    rollout, gamma = (rewards, values, next_values, terminations, truncations), 0.9
    deltas = rewards + gamma * torch.where(terminations, 0, next_values) - values
    torch.testing.assert_close(ppo.gae(*rollout, gamma, 0.0), deltas)
    advantages = ppo.gae(*rollout, gamma, 1.0)
    T, N = rewards.shape
    for t, n in itertools.product(range(T), range(N)):
        ends = (terminations | truncations)[t:, n].nonzero()
        last = t + int(ends[0]) if len(ends) else T - 1  # of the episode, or of the rollout
        steps = last - t + 1
        total = sum(gamma**k * float(rewards[t + k, n]) for k in range(steps))
        if not terminations[last, n]:
            total += gamma**steps * float(next_values[last, n])
        assert float(advantages[t, n]) == pytest.approx(total - float(values[t, n]))


def test_shapes_are_checked():
    """(B, 1) − (B,) would be (B, B) without a word."""
    column_of_3, three = torch.zeros(3, 1), torch.zeros(3)
    with pytest.raises(AssertionError):
        ppo.clipped_surrogate(column_of_3, three, three, 0.2)
    with pytest.raises(AssertionError):
        ppo.td_errors(column_of_3, three, three, three, 0.9)
    with pytest.raises(AssertionError):
        ppo.gae(column_of_3, column_of_3, column_of_3, column_of_3, three, 0.9, 0.9)


def test_approximate_kl():
    """E over π_old of (r − 1) − log r is KL(π_old ‖ π), here of two softmaxes, summed exactly."""
    old, new = torch.randn(2, 5, dtype=torch.float64).log_softmax(1)
    exact = (old.exp() * (old - new)).sum()
    terms = torch.stack([ppo.approx_kl(new[a : a + 1], old[a : a + 1]) for a in range(5)])
    torch.testing.assert_close((old.exp() * terms).sum(), exact)
    assert (terms >= 0).all()


def test_explained_variance_by_hand():
    targets = tensor([0.0, 2.0, 4.0])
    assert ppo.explained_variance(targets, targets).item() == 1.0
    assert ppo.explained_variance(tensor([7.0, 7.0, 7.0]), targets).item() == 0.0
    assert ppo.explained_variance(tensor([0.0, 1.0, 2.0]), targets).item() == pytest.approx(0.75)
    assert ppo.explained_variance(targets, torch.ones(3)).isfinite()


# ── The surrogate ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "advantage, ratio, value, gradient",  # of the surrogate, with respect to log π: ratio · A, or 0
    [(1, 1.5, 1.2, 0.0), (1, 0.5, 0.5, 0.5), (-1, 1.5, -1.5, -1.5), (-1, 0.5, -0.8, 0.0)],
)
def test_clipped_surrogate_by_hand(advantage, ratio, value, gradient):
    """[AC-09b] with ε = 0.2, and the ratio [AC-08b] as the exponential of a difference of logs."""
    old_log_prob = tensor([-1.0])
    log_prob = (old_log_prob + math.log(ratio)).requires_grad_()
    surrogate = ppo.clipped_surrogate(log_prob, old_log_prob, tensor([float(advantage)]), 0.2)
    surrogate.backward()
    assert surrogate.item() == pytest.approx(value)
    assert log_prob.grad.item() == pytest.approx(gradient)


def test_gradient_at_the_old_policy():
    """[AC-09b] at θ_old: the value is the mean advantage, the gradient E[∇log π · A] [CS-9g]."""
    actor, obs, action, advantage = (
        box_actor(),
        torch.randn(8, 3),
        torch.randn(8, 2),
        torch.randn(8),
    )
    log_prob = actor(obs).log_prob(action)
    surrogate = ppo.clipped_surrogate(log_prob, log_prob.detach(), advantage, 0.2)
    assert surrogate.item() == pytest.approx(advantage.mean().item())
    parameters = list(actor.parameters())
    gradients = torch.autograd.grad(surrogate, parameters)
    expected = [torch.zeros_like(parameter) for parameter in parameters]
    for i in range(8):  # one sample's score at a time
        score = torch.autograd.grad(
            actor(obs[i : i + 1]).log_prob(action[i : i + 1])[0], parameters
        )
        expected = [total + advantage[i] / 8 * part for total, part in zip(expected, score)]
    for gradient, part in zip(gradients, expected):
        torch.testing.assert_close(gradient, part, rtol=1e-4, atol=1e-6)


class SmallMDP:
    """Two states, two actions, three steps from state 0; every trajectory can be written down.

    γ = 1, as J's sum has no γ^t in front of ∇log π.
    """

    def __init__(self):
        gen = torch.Generator().manual_seed(1)
        kind = dict(generator=gen, dtype=torch.float64)
        self.theta = torch.randn(2, 2, requires_grad=True, **kind)  # (state, action)
        self.reward = torch.randn(2, 2, **kind)
        self.to_state_1 = torch.rand(2, 2, **kind)  # P(s' = 1 | s, a)
        self.any_value = torch.randn(2, **kind)  # an arbitrary V
        self.log_pi = self.theta.log_softmax(1)

    def trajectories(self):
        """states, actions, successors, and the probability, differentiable in θ."""
        for actions in itertools.product(range(2), repeat=3):
            for successors in itertools.product(range(2), repeat=3):
                states = [0, *successors[:2]]
                p = 1.0
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


def returns_as_weights(mdp, rewards, states, successors):
    return reinforce.discounted_returns(rewards, 1.0)


def returns_minus_baseline(mdp, rewards, states, successors):
    return reinforce_baseline.discounted_returns(rewards, 1.0) - mdp.any_value[states]


def advantages_of(script, *more):
    """A2C's or GAE's (λ = 1) advantages of the three steps, in which any V may serve."""

    def weights(mdp, rewards, states, successors):
        values, next_values = mdp.any_value[states], mdp.any_value[successors]
        ends = column(0, 0, 1), column(0, 0, 0)
        transitions = (x.unsqueeze(1) for x in (rewards, values, next_values))
        function = script.gae if more else script.n_step_advantages
        return function(*transitions, *ends, 1.0, *more)[:, 0]

    return weights


def negative_loss(script):
    return lambda log_probs, weights: -script.policy_gradient_loss(log_probs, weights)


@pytest.mark.parametrize(
    "weights, objective",
    [
        (returns_as_weights, negative_loss(reinforce)),
        (returns_minus_baseline, negative_loss(reinforce_baseline)),
        (advantages_of(a2c), negative_loss(a2c)),
        (advantages_of(trpo, 1.0), lambda lp, w: trpo.surrogate(lp, lp.detach(), w)),
        (advantages_of(ppo, 1.0), lambda lp, w: ppo.clipped_surrogate(lp, lp.detach(), w, 0.2)),
    ],
    ids=["reinforce", "reinforce_baseline", "a2c", "trpo", "ppo"],
)
def test_exact_policy_gradient(weights, objective):
    """[CS-5.4a], [CS-6b], [CS-9a], [CS-9g], [CS-10a]: over all trajectories of a small MDP, the gradient
    of each script's objective has the expectation ∇J, whatever V is; J is enumerated.
    """
    mdp, expectation = SmallMDP(), 0.0
    for states, actions, successors, p in mdp.trajectories():
        w = weights(mdp, mdp.rewards(states, actions), states, successors)
        objective_of_tau = objective(mdp.log_pi[states, actions], w)
        (gradient,) = torch.autograd.grad(objective_of_tau, mdp.theta, retain_graph=True)
        expectation = expectation + p.detach() * gradient * 3  # it is a mean over the three steps
    torch.testing.assert_close(expectation, mdp.gradient_of_J())


def test_trajectory_score():
    """[AC-03c] ∇log p_θ(τ) = Σ_t ∇log π_θ(a_t|s_t), and [AC-03b] E[R(τ) ∇log p_θ(τ)] = ∇J."""
    mdp, expectation = SmallMDP(), 0.0
    for states, actions, _, p in mdp.trajectories():
        (score,) = torch.autograd.grad(p.log(), mdp.theta, retain_graph=True)
        log_probs = mdp.log_pi[states, actions]
        (sum_of_scores,) = torch.autograd.grad(log_probs.sum(), mdp.theta, retain_graph=True)
        torch.testing.assert_close(score, sum_of_scores)
        expectation = expectation + p.detach() * mdp.rewards(states, actions).sum() * score
    torch.testing.assert_close(expectation, mdp.gradient_of_J())


def test_log_derivative():
    """[CS-5.3a] ∇π = π ∇log π: the left side by finite differences of the softmax, in float64."""
    actor, obs = softmax_actor(reinforce).double(), torch.randn(1, 3, dtype=torch.float64)
    bias, step = actor.net[-1].bias, 1e-6
    dist = actor(obs)
    for action in range(3):
        log_prob = dist.log_prob(tensor([action]))[0]
        (score,) = torch.autograd.grad(log_prob, bias, retain_graph=True)
        for i in range(3):
            sides = []
            for sign in (1, -1):
                logits = actor.net(obs).detach().numpy()[0]
                logits[i] += sign * step
                sides.append(np.exp(logits[action]) / np.exp(logits).sum())
            difference = (sides[0] - sides[1]) / (2 * step)
            assert difference == pytest.approx((log_prob.exp() * score[i]).item(), abs=1e-8)


def test_state_value_is_the_mean_of_action_values():
    """[CS-5.1/5.2], [CS-9f]: V and Q by backward induction; J, and what a2c.py's advantages are worth on
    the average after each first action, from the enumerated trajectories: J = V(s₀), E[Â|a] = Q − V.
    """
    mdp = SmallMDP()
    pi, to_1 = mdp.log_pi.detach().exp(), mdp.to_state_1
    V = torch.zeros(4, 2, dtype=torch.float64)  # (time, state); nothing follows the last step
    for t in (2, 1, 0):
        Q = mdp.reward + to_1 * V[t + 1, 1] + (1 - to_1) * V[t + 1, 0]
        V[t] = (pi * Q).sum(1)  # V = Σ_a π Q
    J, total, advantage = 0.0, [0.0, 0.0], [0.0, 0.0]
    for states, actions, successors, p in mdp.trajectories():
        rewards, p = mdp.rewards(states, actions), p.item()
        values, next_values = V[range(3), states], V[range(1, 4), successors]
        ends = column(0, 0, 1), column(0, 0, 0)
        transitions = (x.unsqueeze(1) for x in (rewards, values, next_values))
        weights = a2c.n_step_advantages(*transitions, *ends, 1.0)
        J += p * rewards.sum().item()
        total[actions[0]] += p
        advantage[actions[0]] += p * weights[0, 0].item()
    assert pytest.approx(J) == V[0, 0].item()
    assert total == pytest.approx(pi[0].tolist())
    means = [x / p for x, p in zip(advantage, total)]
    assert means == pytest.approx((Q[0] - V[0, 0]).tolist())
    assert sum(p * x for p, x in zip(total, means)) == pytest.approx(0)  # Σ_a π A = 0


def test_objective_is_the_mean_of_sampled_returns():
    """[CS-3a] J of the enumerated trajectories against 20,000 sampled ones, within 4 standard errors."""
    mdp, gen = SmallMDP(), torch.Generator().manual_seed(3)
    state, returns = torch.zeros(20_000, dtype=torch.long), 0.0
    for _ in range(3):
        to_action_1 = mdp.log_pi.detach().exp()[state, 1]
        action = (torch.rand(20_000, generator=gen) < to_action_1).long()
        returns = returns + mdp.reward[state, action]
        to_state_1 = mdp.to_state_1[state, action]
        state = (torch.rand(20_000, generator=gen) < to_state_1).long()
    J = sum(p * mdp.rewards(s, a).sum() for s, a, _, p in mdp.trajectories())
    assert abs(returns.mean() - J) < 4 * returns.std() / math.sqrt(20_000)


# ── REINFORCE ─────────────────────────────────────────────────────────────────────────────────────


def test_discounted_returns_by_hand():
    """[CS-6a] with γ = ½; whole-number rewards do not make whole-number returns (trap 8)."""
    for kind in (torch.float64, torch.float32, torch.int64):
        returns = reinforce.discounted_returns(tensor([1, 2, 3], dtype=kind), 0.5)
        assert returns.tolist() == [2.75, 3.5, 3.0]
    assert reinforce.discounted_returns(tensor([7.0]), 0.9).tolist() == [7.0]


def test_discounted_returns_against_the_double_sum():
    rewards = torch.randn(40, dtype=torch.float64)
    returns = reinforce.discounted_returns(rewards, 0.9)
    for t in range(40):
        total = sum(0.9 ** (k - t) * rewards[k].item() for k in range(t, 40))
        assert returns[t].item() == pytest.approx(total)


def test_worked_step_of_the_text():
    """[L10-4], [CS-4a]: θ = (0, 0), a₁, G = 2, α = 0.1 → ∇log π = (½, −½), π(a₁) = 0.549834."""
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log_prob = theta.log_softmax(0)[0:1]
    loss = reinforce.policy_gradient_loss(log_prob, tensor([2.0], dtype=torch.float64))
    loss.backward()
    torch.optim.SGD([theta], lr=0.1).step()
    assert theta.tolist() == pytest.approx([0.1, -0.1])
    assert theta.softmax(0)[0].item() == pytest.approx(0.549834, abs=5e-7)


def test_gradient_of_an_episode_by_hand():
    """[CS-6b] for a softmax over logits θ: ĝ_t = G_t (e_{a_t} − π); [CS-6c] the loss has their mean."""
    theta = tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    actions, returns = [2, 0, 2, 1], tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    loss = reinforce.policy_gradient_loss(theta.log_softmax(0)[actions], returns)
    (gradient,) = torch.autograd.grad(loss, theta)
    numbers = theta.detach().numpy()
    pi = np.exp(numbers) / np.exp(numbers).sum()
    expected = sum(G * (np.eye(3)[a] - pi) for a, G in zip(actions, returns.numpy()))
    np.testing.assert_allclose(-4 * gradient, expected)  # four steps


def test_weights_of_the_wrong_shape_are_refused():
    with pytest.raises(AssertionError):
        reinforce.policy_gradient_loss(torch.zeros(3), torch.zeros(3, 1))


def spy_on_policy_gradient(monkeypatch, script, look=None, **settings):
    """Trains while each call of policy_gradient_loss is recorded: (log-probabilities, weights)."""
    seen, loss = [], script.policy_gradient_loss

    def spy(log_probs, weights):
        seen.append((log_probs, weights, look() if look else None))
        return loss(log_probs, weights)

    monkeypatch.setattr(script, "policy_gradient_loss", spy)
    script.train(script.Args(eval_episodes=0, **settings))
    return seen


@pytest.mark.parametrize(
    "script", [reinforce, reinforce_baseline], ids=lambda script: script.__name__
)
def test_only_finished_episodes_are_scored(monkeypatch, script):
    """Trap 9: Counter pays 1 a step, and a time limit ends its episodes after 10 steps; 37 steps make
    three whole episodes. Each of the 30 steps is scored once, with its own return, and none of the 7
    that are left, which have no return.
    """
    if hasattr(script, "Critic"):
        monkeypatch.setattr(script.Critic, "forward", lambda self, obs: 0 * obs[..., 0])
        monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    standardise = "norm_returns" if script is reinforce else "norm_adv"
    seen = spy_on_policy_gradient(
        monkeypatch, script, env_id="probes:Counter-v0", total_timesteps=37, batch_size=20, gamma=0.5,
        **{standardise: False},
    )  # fmt: skip
    of_one_episode = [2 - 0.5 ** (9 - t) for t in range(10)]  # Σ_{k=0..9−t} ½^k
    scored = [weights.tolist() for _, weights, _ in seen]
    assert scored == [pytest.approx(2 * of_one_episode), pytest.approx(of_one_episode)]
    for log_probs, weights, _ in seen:
        assert log_probs.requires_grad and not weights.requires_grad


def test_an_update_waits_for_whole_episodes(monkeypatch):
    """[CS-6alg] with batch_size 1 there is an update after every episode; with 15, after every second."""
    for batch_size, sizes in ((1, [10] * 4), (10, [10] * 4), (11, [20] * 2), (15, [20] * 2)):
        seen = spy_on_policy_gradient(
            monkeypatch, reinforce, env_id="probes:Counter-v0", total_timesteps=40,
            batch_size=batch_size,
        )  # fmt: skip
        assert [len(weights) for _, weights, _ in seen] == sizes


def test_standardised_returns(monkeypatch):
    seen = spy_on_policy_gradient(
        monkeypatch, reinforce, env_id="CartPole-v1", total_timesteps=300, batch_size=50
    )
    for _, weights, _ in seen:
        assert weights.mean().item() == pytest.approx(0, abs=1e-5)
        assert weights.std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "script", [reinforce, reinforce_baseline], ids=lambda script: script.__name__
)
def test_batch_of_one_step(monkeypatch, script):
    """The standard deviation of one number is not a number: an episode of one step is used as it is."""
    seen = spy_on_policy_gradient(
        monkeypatch, script, env_id="probes:OneStep-v0", total_timesteps=3, batch_size=1
    )
    assert len(seen) == 3 and all(weights.isfinite().all() for _, weights, _ in seen)


def test_discounted_objective_of_a_played_episode(monkeypatch):
    """[CS-3a] the first return of an episode that was played is Σ_t γ^t r_t of its rewards."""
    probe, steps = probes.Counter(), []

    def step(action):
        reward = [1.0, -2.0, 5.0][len(steps)]
        steps.append(action)
        return (
            np.ones(1, np.float32),
            reward,
            len(steps) == 3,
            False,
            {"episode": {"r": 4.0, "l": 3}},
        )

    probe.step = step
    actor = reinforce.Actor(probe.observation_space, probe.action_space)
    run = SimpleNamespace(
        step=0, args=SimpleNamespace(total_timesteps=10), check_finite=lambda **_: None,
        log_episode=lambda *_: None, recent_returns=[],
    )  # fmt: skip
    observations, actions, rewards = reinforce.play_episode(probe, actor, run)
    assert observations.shape == (3, 1) and actions.tolist() == steps and run.step == 3
    returns = reinforce.discounted_returns(rewards, 0.9)
    assert returns[0].item() == pytest.approx(1 - 2 * 0.9 + 5 * 0.81)


# ── The baseline ──────────────────────────────────────────────────────────────────────────────────


def test_baseline_costs_no_bias():
    """[CS-9b] Σ_a π(a|s) b ∇log π(a|s) = 0 in every parameter, for any b."""
    actor, obs = softmax_actor(reinforce_baseline).double(), torch.randn(1, 3, dtype=torch.float64)
    dist, parameters = actor(obs), list(actor.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for action in range(3):
        log_prob = dist.log_prob(tensor([action]))
        scores = torch.autograd.grad(log_prob.sum(), parameters, retain_graph=True)
        assert any(score.abs().max() > 1e-3 for score in scores)
        total = [x + log_prob.exp().detach() * 7.3 * score for x, score in zip(total, scores)]
    for x in total:
        assert x.abs().max() < 1e-12


def test_baseline_of_five_arms():
    """[L3-8] rewards [.55, .62, .90, .58, .50], π uniform: b = E[r] leaves the mean gradient as it is, and
    makes its total variance 0.011856 of 0.329376, as the lesson works it out.
    """
    rewards = tensor([0.55, 0.62, 0.90, 0.58, 0.50], dtype=torch.float64)
    means, variances = [], []
    for b in (0.0, rewards.mean()):
        gradients = []
        for arm in range(5):
            theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
            loss = reinforce_baseline.policy_gradient_loss(
                theta.log_softmax(0)[arm : arm + 1], rewards[arm : arm + 1] - b
            )
            gradients.append(-torch.autograd.grad(loss, theta)[0])
        gradients = torch.stack(gradients)
        means.append(gradients.mean(0))
        variances.append(gradients.var(0, correction=0).sum().item())
    torch.testing.assert_close(*means)
    assert variances == pytest.approx([0.329376, 0.011856], abs=5e-7)


def test_baseline_is_asked_before_it_is_fitted(monkeypatch):
    """[CS-9a] the weight is G − V(s), V a constant, by the critic as the *previous* update left it."""
    script, critics, after_update, observations = reinforce_baseline, [], [], []
    critic_init, log_update, forward = (
        script.Critic.__init__,
        script.Run.log_update,
        script.Actor.forward,
    )

    def init(self, space):
        critic_init(self, space)
        critics.append(self)
        after_update.append(copy.deepcopy(self))

    def spy_update(self, **metrics):
        after_update.append(copy.deepcopy(critics[0]))
        return log_update(self, **metrics)

    def spy_forward(self, obs):
        observations.append(obs)
        return forward(self, obs)

    monkeypatch.setattr(script.Critic, "__init__", init)
    monkeypatch.setattr(script.Run, "log_update", spy_update)
    monkeypatch.setattr(script.Actor, "forward", spy_forward)
    seen = spy_on_policy_gradient(
        monkeypatch, script, look=lambda: observations[-1], env_id="probes:Counter-v0",
        total_timesteps=60, batch_size=20, gamma=0.5, norm_adv=False,
    )  # fmt: skip
    assert len(seen) == 3
    returns = tensor(2 * [2 - 0.5 ** (9 - t) for t in range(10)])
    for (_, weights, obs), critic in zip(seen, after_update):
        assert not weights.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(weights, returns - critic(obs))
    first, last = (critic.net[0].weight for critic in (after_update[0], after_update[-1]))
    assert not torch.equal(first, last)  # it was fitted


def test_critic_learns_a_constant():
    """[CS-9e] every episode pays 7 and ends: V becomes 7, and the weights 0."""
    folder = reinforce_baseline.train(
        reinforce_baseline.Args(env_id="probes:OneStep-v0", total_timesteps=400, batch_size=20)
    )
    space = probes.OneStep.observation_space
    critic = reinforce_baseline.Critic(space)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    critic.load_state_dict(checkpoint["state"]["critic"])
    assert critic(torch.ones(1, 1)).item() == pytest.approx(7, abs=0.01)


def test_value_loss_by_hand():
    """[X-VF] mean of (1 − 3)² and (5 − 4)²; the gradient is 2 (V − V_target)/B."""
    values = tensor([1.0, 5.0], requires_grad=True)
    for script in (reinforce_baseline, trpo):
        loss = script.value_loss(values, tensor([3.0, 4.0]))
        assert loss.item() == 2.5
        assert torch.autograd.grad(loss, values)[0].tolist() == [-2.0, 1.0]
        with pytest.raises(AssertionError):
            script.value_loss(values, torch.zeros(2, 1))


# ── A2C ───────────────────────────────────────────────────────────────────────────────────────────


def test_n_step_advantages_by_hand():
    """[AC-07a] γ = ½, V(s) = 1, V(s') = 2: an episode that terminates, one truncated, one that goes on."""
    rewards = column(1, 2, 3, 4, 5, 6, 7)
    terminations, truncations = column(0, 0, 1, 0, 0, 0, 0), column(0, 0, 0, 0, 1, 0, 0)
    values, next_values = torch.ones_like(rewards), 2 * torch.ones_like(rewards)
    expected = [
        1 + 2 / 2 + 3 / 4 - 1,
        2 + 3 / 2 - 1,
        3 - 1,
        4 + 5 / 2 + 2 / 4 - 1,
        5 + 2 / 2 - 1,
        6 + 7 / 2 + 2 / 4 - 1,
        7 + 2 / 2 - 1,
    ]
    # In the recursion V(s_{t+1}) must cancel, as it does when both are the same number.
    values[1:3], values[4], values[6] = 2, 2, 2
    expected = [x - (v - 1) for x, v in zip(expected, values.squeeze(1).tolist())]
    for kind in (torch.float64, torch.bool):
        ends = terminations.to(kind), truncations.to(kind)
        for of_kind in (
            rewards,
            rewards.long(),
        ):  # whole numbers, too, have fractions as advantages
            advantages = a2c.n_step_advantages(of_kind, values, next_values, *ends, 0.5)
            assert advantages.squeeze(1).tolist() == expected


def test_n_step_advantages_against_the_sum():
    """[AC-07a] Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) − V(s_t), n up to the end of rollout or episode."""
    rewards, values, next_values, terminations, truncations = random_rollout()
    ends, gamma = terminations | truncations, 0.9
    advantages = a2c.n_step_advantages(
        rewards, values, next_values, terminations, truncations, gamma
    )
    T, N = rewards.shape
    for t, n in itertools.product(range(T), range(N)):
        last = next((k for k in range(t, T) if ends[k, n]), T - 1)
        steps = last - t + 1
        total = sum(gamma**k * float(rewards[t + k, n]) for k in range(steps))
        if not terminations[last, n]:
            total += gamma**steps * float(next_values[last, n])
        assert float(advantages[t, n]) == pytest.approx(total - float(values[t, n]))


def test_neighbours_of_n_step_advantages():
    """n = 1 is δ [CS-10c]; λ = 1 in [X-GAE] is this; a whole episode is G − V(s) [CS-9f]."""
    rewards, values, next_values, terminations, truncations = random_rollout()
    for t in range(len(rewards)):  # rollouts of one step
        one = [x[t : t + 1] for x in (rewards, values, next_values, terminations, truncations)]
        deltas = ppo.td_errors(*one[:4], 0.9)
        assert torch.equal(a2c.n_step_advantages(*one, 0.9), deltas)
    rollout = rewards, values, next_values, terminations, truncations
    torch.testing.assert_close(a2c.n_step_advantages(*rollout, 0.9), ppo.gae(*rollout, 0.9, 1.0))
    terminated = torch.zeros_like(terminations)
    terminated[-1] = True
    never = torch.zeros_like(truncations)
    next_values = torch.cat([values[1:], next_values[-1:]])
    advantages = a2c.n_step_advantages(rewards, values, next_values, terminated, never, 0.9)
    for n in range(rewards.shape[1]):
        returns = reinforce.discounted_returns(rewards[:, n], 0.9)
        torch.testing.assert_close(advantages[:, n], returns - values[:, n])


def a2c_batch(critic, size=16):
    obs = torch.randn(size, 3)
    return obs, torch.randn(size, 2), torch.randn(size) + 1, 3 * torch.randn(size)


def test_actor_critic_loss():
    """[AC-09c] L_PG − c₁ L_critic + β H, each term in NumPy from the networks' outputs alone."""
    actor, critic = box_actor(a2c), a2c.Critic(THREE_FEATURES)
    critic.return_norm.update(tensor([-5.0, 5.0]))
    batch = a2c_batch(critic)
    obs, actions, advantages, targets = (x.numpy() for x in batch)
    args = a2c.Args(vf_coef=0.7, ent_coef=0.01)
    mean, std = actor.net(batch[0]).detach().numpy(), np.exp([-0.5, 0.3])
    log_probs = -0.5 * (((actions - mean) / std) ** 2 + 2 * np.log(std) + np.log(2 * np.pi)).sum(1)
    policy_loss = -(log_probs * advantages / 5).mean()
    values = 5 * critic.net(batch[0]).detach().numpy()[:, 0]
    value_loss = ((values - targets) ** 2).mean() / 25
    entropy = np.log(std * np.sqrt(2 * np.pi * np.e)).sum()
    loss = policy_loss + 0.7 * value_loss - 0.01 * entropy
    found = [term.item() for term in a2c.actor_critic_loss(actor, critic, *batch, args)]
    assert found == pytest.approx([loss, policy_loss, value_loss, entropy], rel=1e-4)


def test_critic_gradient():
    """[CS-10d] with one step the gradient is −2 δ ∇V(s), and the actor gets none of it."""
    actor, critic = box_actor(a2c), a2c.Critic(THREE_FEATURES)
    obs, actions, _, _ = a2c_batch(critic)
    rewards, next_obs = torch.randn(16), torch.randn(16, 3)
    with torch.no_grad():
        values, next_values = critic(obs), critic(next_obs)
        delta = a2c.td_errors(rewards, values, next_values, torch.zeros(16), 0.9)
    args = a2c.Args(vf_coef=1.0, ent_coef=0.0)
    targets = delta + values
    loss, *_ = a2c.actor_critic_loss(actor, critic, obs, actions, 0 * delta, targets, args)
    w, theta = list(critic.parameters()), list(actor.parameters())
    gradients = torch.autograd.grad(loss, w, retain_graph=True)
    expected = [torch.zeros_like(parameter) for parameter in w]
    for i in range(16):  # ∇V of one state at a time
        parts = torch.autograd.grad(critic(obs[i : i + 1]).sum(), w)
        expected = [x - 2 * delta[i] / 16 * part for x, part in zip(expected, parts)]
    for gradient, x in zip(gradients, expected):
        torch.testing.assert_close(gradient, x, rtol=1e-3, atol=1e-5)
    for gradient in torch.autograd.grad(loss, theta):
        assert not gradient.any()
    with pytest.raises(AssertionError):  # (B, 1) and (B,) would make a (B, B) of them
        a2c.actor_critic_loss(actor, critic, obs, actions, delta, targets.unsqueeze(1), args)


@pytest.mark.parametrize("script", [a2c, ppo, trpo, reinforce_baseline], ids=lambda x: x.__name__)
def test_nothing_flows_through_targets_and_weights(monkeypatch, script):
    """[CS-10d], trap 17: in a real run all that the losses get but the parameters are constants."""
    name = {"trpo": "surrogate", "ppo": "ppo_objective", "a2c": "actor_critic_loss"}.get(
        script.__name__, "policy_gradient_loss"
    )
    function, seen = getattr(script, name), []

    def spy(*given):
        seen.extend(x for x in given if isinstance(x, torch.Tensor) and x is not given[0])
        return function(*given)

    monkeypatch.setattr(script, name, spy)
    settings = TINY[script.__name__] | dict(eval_episodes=0)
    script.train(script.Args(env_id="Pendulum-v1", **settings))
    assert seen and not any(x.requires_grad for x in seen)


def test_averaged_update():
    """[AC-07b] the gradient over N environments is the mean of the N environments' own gradients."""
    actor, critic = box_actor(a2c), a2c.Critic(THREE_FEATURES)
    T, N = 5, 3
    obs, actions = torch.randn(T, N, 3), torch.randn(T, N, 2)
    advantages, targets = torch.randn(2, T, N)
    parameters, args = [*actor.parameters(), *critic.parameters()], a2c.Args(ent_coef=0.1)

    def gradients(*samples):
        samples = (x.flatten(0, 1) for x in samples)
        return torch.autograd.grad(
            a2c.actor_critic_loss(actor, critic, *samples, args)[0], parameters
        )

    together = gradients(obs, actions, advantages, targets)
    workers = [
        gradients(*(x[:, n : n + 1] for x in (obs, actions, advantages, targets))) for n in range(N)
    ]
    for whole, *parts in zip(together, *workers):
        torch.testing.assert_close(whole, sum(parts) / N, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [box_actor, softmax_actor])
def test_entropy_bonus_of_a2c_raises_entropy(make):
    """[CS-8.1a] with no advantage and β > 0, a step makes the policy less certain."""
    actor, critic = make(a2c), a2c.Critic(THREE_FEATURES)
    obs = torch.randn(16, 3)
    before = actor(obs).entropy().mean().item()
    actions = actor(obs).sample()
    args = a2c.Args(ent_coef=0.5)
    loss, *_ = a2c.actor_critic_loss(
        actor, critic, obs, actions, torch.zeros(16), torch.zeros(16), args
    )
    loss.backward()
    torch.optim.SGD(actor.parameters(), 0.1).step()
    assert actor(obs).entropy().mean() > before


def test_one_update_for_each_rollout(monkeypatch):
    """[AC-07b] T·N samples, each used once, in one batch; then they are discarded."""
    seen = spy_on_policy_gradient(
        monkeypatch, a2c, env_id="CartPole-v1", num_envs=3, num_steps=7, total_timesteps=84
    )
    assert [len(weights) for _, weights, _ in seen] == [21] * 4
    for log_probs, weights, _ in seen:
        assert log_probs.requires_grad and not weights.requires_grad


# ── TRPO ──────────────────────────────────────────────────────────────────────────────────────────


def test_gaussian_kl():
    """KL(π_old ‖ π_θ) as torch.distributions has it for Independent(Normal), in that direction."""
    old_mean, new_mean = torch.randn(2, 5, 3)
    old_log_std, new_log_std = torch.randn(2, 3)
    normal = [
        torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
        for mean, log_std in ((old_mean, old_log_std), (new_mean, new_log_std))
    ]
    expected = torch.distributions.kl_divergence(*normal)
    old = trpo.DiagonalGaussian(old_mean, old_log_std)
    new = trpo.DiagonalGaussian(new_mean, new_log_std)
    torch.testing.assert_close(trpo.gaussian_kl(old, new), expected)
    assert trpo.mean_kl(old, new).item() == pytest.approx(expected.mean().item())
    assert trpo.mean_kl(old, old).item() == 0


def test_softmax_kl():
    """E[Σ_a π_old log(π_old / π_θ)] written out."""
    old, new = torch.randn(2, 6, 4, dtype=torch.float64)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (old.numpy(), new.numpy()))
    expected = (p * np.log(p / q)).sum(1).mean()
    dists = (torch.distributions.Categorical(logits=x) for x in (old, new))
    assert trpo.mean_kl(*dists).item() == pytest.approx(expected)


def test_surrogate_by_hand():
    """[AC-08a] mean of ratio · A, without clipping: ratios 3 and ½, A = 2 and −4."""
    old = tensor([-1.0, -2.0])
    log_probs = old + tensor([3.0, 0.5]).log()
    assert trpo.surrogate(log_probs, old, tensor([2.0, -4.0])).item() == pytest.approx(2.0)
    with pytest.raises(AssertionError):
        trpo.surrogate(log_probs, old, torch.zeros(2, 1))


def test_one_gradient_at_the_old_policy():
    """[AC-08a], [AC-09b], [CS-9g] agree at θ_old: ∇ of both surrogates is −∇ of the policy-gradient loss."""
    actor = box_actor()
    obs, actions, advantages = torch.randn(8, 3), torch.randn(8, 2), torch.randn(8)
    log_probs = actor(obs).log_prob(actions)
    old = log_probs.detach()
    objectives = (
        -a2c.policy_gradient_loss(log_probs, advantages),
        trpo.surrogate(log_probs, old, advantages),
        ppo.clipped_surrogate(log_probs, old, advantages, 0.2),
    )
    parameters = list(actor.parameters())
    first, *others = (
        torch.autograd.grad(objective, parameters, retain_graph=True) for objective in objectives
    )
    for other in others:
        for a, b in zip(first, other):
            torch.testing.assert_close(a, b)


class TinyActor(torch.nn.Module):
    """Seven (softmax) or six (Gaussian) parameters, few enough for a dense Fisher matrix, in float64."""

    def __init__(self, discrete):
        super().__init__()
        self.net = torch.nn.Linear(1, 3 if discrete else 2).double()
        self.log_std = None if discrete else torch.nn.Parameter(tensor([-0.5, 0.3]).double())

    def forward(self, obs):
        output = torch.tanh(self.net(obs))
        if self.log_std is None:
            return torch.distributions.Categorical(logits=output)
        return trpo.DiagonalGaussian(output, self.log_std)


def fisher_of(actor, obs, damping):
    """trpo.py's Fisher-vector product, as train makes it."""
    parameters = list(actor.parameters())
    with torch.no_grad():
        old_dist = actor(obs)
    gradient = torch.autograd.grad(
        trpo.mean_kl(old_dist, actor(obs)), parameters, create_graph=True
    )
    kl_gradient = trpo.parameters_to_vector(gradient)
    return lambda v: trpo.fisher_vector_product(kl_gradient, parameters, v, damping)


@pytest.mark.parametrize("discrete", [True, False])
def test_fisher_vector_product(discrete):
    """[X-FVP] F v, twice otherwise: by finite differences of KL's gradient, and as E[score scoreᵀ] v.

    The expectation over actions is a sum for the softmax, Gauss-Hermite quadrature for the Gaussian.
    """
    torch.manual_seed(1)
    actor, obs = TinyActor(discrete), torch.randn(4, 1, dtype=torch.float64)
    parameters = list(actor.parameters())
    theta = trpo.parameters_to_vector(parameters).detach()
    v = torch.randn_like(theta)
    product = fisher_of(actor, obs, damping=0.0)(v)

    # Finite differences of ∇_θ E[KL(π_old ‖ π_θ)] along v.
    with torch.no_grad():
        old_dist = actor(obs)
    sides = []
    for sign in (1, -1):
        trpo.assign(parameters, theta + sign * 1e-5 * v)
        kl = trpo.mean_kl(old_dist, actor(obs))
        sides.append(trpo.parameters_to_vector(torch.autograd.grad(kl, parameters)))
    trpo.assign(parameters, theta)
    torch.testing.assert_close(product, (sides[0] - sides[1]) / 2e-5, rtol=1e-6, atol=1e-8)

    # The dense Hessian, column by column, of the same KL as a function of the vector θ.
    names, shapes = zip(*((name, x.shape) for name, x in actor.named_parameters()))

    def kl_of(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        tensors = {name: x.view(shape) for name, x, shape in zip(names, parts, shapes)}
        return trpo.mean_kl(old_dist, torch.func.functional_call(actor, tensors, (obs,)))

    hessian = torch.autograd.functional.hessian(kl_of, theta)
    torch.testing.assert_close(product, hessian @ v)

    # E[score scoreᵀ] v, the mean over states of the expectation over actions.
    expected = torch.zeros_like(v)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)  # exact up to degree 9; needed: 4
    for s in range(4):
        dist = actor(obs[s : s + 1])
        if discrete:
            cases = [(tensor([a]), dist.probs[0, a].item()) for a in range(3)]
        else:
            cases = [
                (
                    (dist.mean + dist.std * tensor([x, y])).detach(),
                    wx * wy / (2 * math.pi),
                )
                for (x, wx), (y, wy) in itertools.product(zip(nodes, weights), repeat=2)
            ]
        assert sum(p for _, p in cases) == pytest.approx(1)
        for action, p in cases:
            log_prob = dist.log_prob(action).sum()
            score = torch.autograd.grad(log_prob, parameters, retain_graph=True)
            score = trpo.parameters_to_vector(score)
            expected += p * score * (score @ v) / 4
    torch.testing.assert_close(product, expected, rtol=1e-6, atol=1e-8)

    damped = fisher_of(actor, obs, damping=0.3)(v)
    torch.testing.assert_close(damped, product + 0.3 * v)


def test_conjugate_gradient():
    """[X-CG] on random symmetric positive definite systems: A x = b, at most as many steps as dimensions."""
    for size in (1, 2, 20):
        B = torch.randn(size, size, dtype=torch.float64)
        A, b = B @ B.T + torch.eye(size), torch.randn(size, dtype=torch.float64)
        x = trpo.conjugate_gradient(lambda v: A @ v, b, iterations=size + 1, tolerance=1e-20)
        torch.testing.assert_close(x, torch.linalg.solve(A, b))
        first = trpo.conjugate_gradient(lambda v: A @ v, b, iterations=1)
        torch.testing.assert_close(first, (b @ b) / (b @ A @ b) * b)  # the steepest descent step


def test_conjugate_gradient_stops():
    """A gradient of 0 has the solution 0, not 0/0; no product is computed in vain; no scale is too small."""
    calls = []

    def matvec(v):
        calls.append(v)
        return 2 * v

    assert trpo.conjugate_gradient(matvec, torch.zeros(3), 10).tolist() == [0, 0, 0]
    assert not calls
    assert trpo.conjugate_gradient(matvec, torch.ones(3), 10).tolist() == [0.5] * 3
    assert len(calls) == 1  # an identity is solved in one step
    tiny = torch.full((3,), 1e-9)
    torch.testing.assert_close(trpo.conjugate_gradient(matvec, tiny, 10), tiny / 2)


def test_full_step():
    """[X-STEP] ½ ΔθᵀFΔθ = δ and Δθ ∥ x; an x of 0 gives a step of 0."""
    B = torch.randn(5, 5, dtype=torch.float64)
    F, x = B @ B.T, torch.randn(5, dtype=torch.float64)
    step = trpo.full_step(x, F @ x, max_kl=0.01)
    assert (0.5 * step @ F @ step).item() == pytest.approx(0.01)
    torch.testing.assert_close(step / step.norm(), x / x.norm())
    assert trpo.full_step(torch.zeros(5), torch.zeros(5), 0.01).tolist() == [0] * 5


def search(answers, max_kl=0.01, attempts=4):
    """A line search in which the k-th question is answered by answers[k]."""
    parameters, seen = [torch.randn(2, 3), torch.randn(4)], []
    old = [parameter.clone() for parameter in parameters]
    step, answers = torch.randn(10), iter(answers)

    def evaluate_policy():
        seen.append(trpo.parameters_to_vector(parameters))
        return tuple(map(tensor, next(answers)))

    fraction, surrogate, kl = trpo.line_search(parameters, step, evaluate_policy, max_kl, attempts)
    final = (surrogate.item(), kl.item())
    return fraction, final, parameters, seen, old, step


def test_line_search_shrinks():
    """[X-LS] the first length that keeps KL ≤ δ and improves the surrogate is taken, 0.8² of the step."""
    answers = [(1.0, 0.0), (2.0, 0.02), (0.9, 0.005), (1.1, 0.01)]
    fraction, final, parameters, seen, old, step = search(answers)
    assert fraction == pytest.approx(0.64) and final == pytest.approx((1.1, 0.01))
    old = trpo.parameters_to_vector(old)
    for theta, expected in zip(seen, (0, 1, 0.8, 0.64)):
        torch.testing.assert_close(theta, old + expected * step)
    assert torch.equal(trpo.parameters_to_vector(parameters), seen[-1])


@pytest.mark.parametrize(
    "answer", [(2.0, 0.02), (0.5, 0.0), (1.0, 0.0), (math.nan, 0.0), (2.0, math.nan)]
)
def test_line_search_gives_up(answer):
    """[X-LS] nothing but an improvement within the trust region moves θ, by not a bit."""
    fraction, final, parameters, seen, old, _ = search([(1.0, 0.0), *[answer] * 4])
    assert fraction == 0 and final == (1.0, 0.0) and len(seen) == 5
    assert all(torch.equal(a, b) for a, b in zip(parameters, old))


def train_trpo(**settings):
    return trpo.train(
        trpo.Args(num_envs=4, num_steps=64, total_timesteps=2048, eval_episodes=0, **settings)
    )


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_trust_region_of_a_real_run(monkeypatch, env_id):
    """[AC-08a] after each update KL ≤ δ, and the surrogate is not lower than at θ_old, where it is the
    mean of the standardised advantages, 0; KL's gradient there is 0 (trap 18), and most steps are taken.
    KL and surrogate are computed anew, from the densities' formulas, and agree with what is logged.
    """
    gradients, product = [], trpo.fisher_vector_product
    checked, line_search = [], trpo.line_search

    def densities(actor, obs, actions):
        """log π(a|s), and what the KL needs of π."""
        with torch.no_grad():
            dist = actor(obs)
        if env_id == "CartPole-v1":
            log_pi = dist.logits.double() - dist.logits.double().logsumexp(1, keepdim=True)
            return log_pi.gather(1, actions.long().view(-1, 1))[:, 0], (log_pi,)
        mean, std = dist.mean.double(), dist.std.double()
        z = (actions.double() - mean) / std
        return (-0.5 * z**2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(1), (mean, std)

    def spy_search(parameters, step, evaluate_policy, *rest):
        names = inspect.getclosurevars(evaluate_policy).nonlocals
        actor, obs, actions = (names[name] for name in ("actor", "observations", "actions"))
        old_log_probs, old = densities(actor, obs, actions)
        result = line_search(parameters, step, evaluate_policy, *rest)
        log_probs, new = densities(actor, obs, actions)
        if env_id == "CartPole-v1":
            kl = (old[0].exp() * (old[0] - new[0])).sum(1).mean()
        else:
            (mean, std), (new_mean, new_std) = old, new
            squares = (std**2 + (mean - new_mean) ** 2) / (2 * new_std**2)
            kl = ((new_std / std).log() + squares - 0.5).sum(1).mean()
        gain = ((log_probs - old_log_probs).exp() * names["advantages"]).mean()
        checked.append((kl.item(), gain.item()))
        return result

    monkeypatch.setattr(trpo, "line_search", spy_search)

    def spy(kl_gradient, *rest, **more):
        gradients.append(kl_gradient.abs().max().item())
        return product(kl_gradient, *rest, **more)

    monkeypatch.setattr(trpo, "fisher_vector_product", spy)
    folder = train_trpo(env_id=env_id, max_kl=0.02)
    with open(folder / "updates.csv") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 8
    for row, (kl, gain) in zip(rows, checked, strict=True):
        assert -1e-7 < kl <= 0.02 * (1 + 1e-3) and gain >= -1e-6
        assert row["kl"] == pytest.approx(kl, abs=1e-5)
        assert row["surrogate"] == pytest.approx(gain, abs=1e-5)
    assert sum(row["step_fraction"] > 0 and row["kl"] > 0.002 for row in rows) >= 6
    assert gradients and max(gradients) < 1e-5


@pytest.mark.parametrize("script", [reinforce, reinforce_baseline, a2c], ids=lambda x: x.__name__)
def test_what_is_scored_is_what_was_drawn(monkeypatch, script):
    """Traps 11 and 18: the loss has log π of the Gaussian's own sample, not of what the bounds left of
    it, under the policy, statistics included, that drew it.
    """
    drawn, actions, seen = [], [], []
    sample, loss = script.DiagonalGaussian.sample, script.policy_gradient_loss

    def spy_sample(dist):
        actions.append(sample(dist))
        drawn.append(dist.log_prob(actions[-1]).flatten())
        return actions[-1]

    def spy_loss(log_probs, weights):
        seen.append(log_probs.detach())
        return loss(log_probs, weights)

    monkeypatch.setattr(script.DiagonalGaussian, "sample", spy_sample)
    monkeypatch.setattr(script, "policy_gradient_loss", spy_loss)
    settings = TINY[script.__name__] | dict(eval_episodes=0, learning_rate=0.01)
    script.train(script.Args(env_id="probes:Lopsided-v0", **settings))
    scored = torch.cat(seen)
    assert len(seen) > 2 and torch.cat([x.flatten() for x in actions]).abs().max() > 1
    torch.testing.assert_close(scored, torch.cat(drawn)[: len(scored)], rtol=1e-4, atol=1e-4)


def test_trpo_keeps_the_policy_that_acted(monkeypatch):
    """Trap 18: log π_old is what each action had when it was drawn, though it is computed afterwards."""
    drawn, seen, sample, surrogate = [], [], trpo.DiagonalGaussian.sample, trpo.surrogate

    def spy_sample(dist):
        actions = sample(dist)
        drawn.append(dist.log_prob(actions))
        return actions

    def spy_surrogate(log_probs, old_log_probs, advantages):
        seen.append(old_log_probs)
        return surrogate(log_probs, old_log_probs, advantages)

    monkeypatch.setattr(trpo.DiagonalGaussian, "sample", spy_sample)
    monkeypatch.setattr(trpo, "surrogate", spy_surrogate)
    train_trpo(env_id="Pendulum-v1")
    old_log_probs = torch.cat(list(dict.fromkeys(seen)))  # each rollout's tensor once
    assert len(old_log_probs) == 2048
    torch.testing.assert_close(old_log_probs, torch.cat(drawn), rtol=1e-4, atol=1e-4)


def test_adversarial_step_changes_nothing(monkeypatch):
    """[X-LS] in train: a direction that only makes it worse leaves every parameter of the policy as it was."""
    actors, init = [], trpo.Actor.__init__

    def spy(self, *spaces):
        init(self, *spaces)
        actors.append((self, [parameter.clone() for parameter in self.parameters()]))

    monkeypatch.setattr(trpo.Actor, "__init__", spy)
    uphill = trpo.full_step
    monkeypatch.setattr(trpo, "full_step", lambda *args: -uphill(*args))
    folder = train_trpo(env_id="Pendulum-v1")
    ((actor, before),) = actors
    assert all(torch.equal(a, b) for a, b in zip(actor.parameters(), before))
    with open(folder / "updates.csv") as file:
        assert all(float(row["step_fraction"]) == 0 for row in csv.DictReader(file))


# ── The objective ─────────────────────────────────────────────────────────────────────────────────


def minibatch(actor, critic, size=16):
    obs = torch.randn(size, 3)
    with torch.no_grad():
        dist = actor(obs)
        actions = dist.sample()
        old_log_probs = dist.log_prob(actions) + 0.3 * torch.randn(size)
        old_values = critic(obs) + torch.randn(size)
    return obs, actions, old_log_probs, torch.randn(size) + 1, old_values, 3 * torch.randn(size)


@pytest.mark.parametrize("norm_adv", [False, True])
@pytest.mark.parametrize("clip_vloss", [False, True])
def test_objective(norm_adv, clip_vloss):
    """[AC-09c] L = L_CLIP − c₁ L_VF + c₂ H, each term in NumPy from the networks' outputs alone.

    [X-VF] is the mean squared error, in units of the returns' standard deviation (here 5).
    """
    actor, critic = box_actor(), ppo.Critic(THREE_FEATURES)
    critic.return_norm.update(tensor([-5.0, 5.0]))
    batch = minibatch(actor, critic)
    args = ppo.Args(
        clip_coef=0.2, vf_coef=0.7, ent_coef=0.01, norm_adv=norm_adv, clip_vloss=clip_vloss
    )
    obs, actions, old_log_probs, advantages, old_values, targets = (x.numpy() for x in batch)
    mean, std = actor.net(batch[0]).detach().numpy(), np.exp([-0.5, 0.3])
    log_probs = -0.5 * (((actions - mean) / std) ** 2 + 2 * np.log(std) + np.log(2 * np.pi)).sum(1)
    ratio = np.exp(log_probs - old_log_probs)
    if norm_adv:
        advantages = (advantages - advantages.mean()) / advantages.std(ddof=1)
    surrogate = np.minimum(ratio * advantages, ratio.clip(0.8, 1.2) * advantages).mean()
    values = 5 * critic.net(batch[0]).detach().numpy()[:, 0]
    squares = (values - targets) ** 2
    if clip_vloss:
        clipped = np.clip(values, old_values - 0.2 * 5, old_values + 0.2 * 5)
        squares = np.maximum(squares, (clipped - targets) ** 2)
    value_loss = squares.mean() / 25
    entropy = np.log(std * np.sqrt(2 * np.pi * np.e)).sum()
    expected = surrogate - 0.7 * value_loss + 0.01 * entropy, surrogate, value_loss, entropy
    found = [term.item() for term in ppo.ppo_objective(actor, critic, *batch, args)]
    assert found == pytest.approx(expected, rel=1e-4)
    assert (
        abs(ratio - 1).max() > 0.2 and abs(values - old_values).max() > 1
    )  # all branches were taken


def test_norm_adv_of_a_single_sample():
    """The standard deviation of one number is not a number."""
    actor, critic = box_actor(), ppo.Critic(THREE_FEATURES)
    batch = minibatch(actor, critic, size=1)
    assert ppo.ppo_objective(actor, critic, *batch, ppo.Args(norm_adv=True))[0].isfinite()


def test_value_loss_gradient():
    """[X-VF] ∂L/∂V = −2 c₁ (V − V_target)/B: nothing flows through the target, or to the actor."""
    actor, critic = box_actor(), ppo.Critic(THREE_FEATURES)
    obs, actions, old_log_probs, advantages, old_values, targets = minibatch(actor, critic)
    targets.requires_grad_()
    batch = obs, actions, old_log_probs, torch.zeros(16), old_values, targets.detach()
    L, *_ = ppo.ppo_objective(
        actor, critic, *batch, ppo.Args(vf_coef=0.5, ent_coef=0.0, norm_adv=False)
    )
    (gradient,) = torch.autograd.grad(L, critic.net[-1].bias, retain_graph=True)
    expected = (-2 * 0.5 * (critic(obs) - targets) / 16).sum()
    assert gradient.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient in torch.autograd.grad(L, list(actor.parameters())):
        assert not gradient.any()


@pytest.mark.parametrize("make", [box_actor, softmax_actor])
def test_entropy_bonus_raises_entropy(make):
    """[CS-8.1a] with no advantage and c₂ > 0, a step up the objective makes the policy less certain."""
    actor, critic = make(), ppo.Critic(THREE_FEATURES)
    batch = list(minibatch(actor, critic))
    batch[3] = torch.zeros(16)
    optimizer = torch.optim.SGD(actor.parameters(), 0.1)
    L, _, _, before = ppo.ppo_objective(actor, critic, *batch, ppo.Args(ent_coef=0.5))
    (-L).backward()
    optimizer.step()
    assert actor(batch[0]).entropy().mean() > before


# ── The algorithm box ─────────────────────────────────────────────────────────────────────────────


def spy_on_objective(monkeypatch, script, **settings):
    """Trains while every minibatch is recorded, with the values before its update."""
    seen, objective = [], script.ppo_objective

    def spy(actor, critic, obs, actions, old_log_probs, advantages, old_values, targets, args):
        with torch.no_grad():
            log_ratio = actor(obs).log_prob(actions) - old_log_probs
        batch = SimpleNamespace(obs=obs, actions=actions, log_ratio=log_ratio)
        batch.old_log_probs, batch.advantages = old_log_probs, advantages
        batch.old_values, batch.targets = old_values, targets
        batch.critic = copy.deepcopy(critic)
        seen.append(batch)
        rest = old_log_probs, advantages, old_values, targets, args
        return objective(actor, critic, obs, actions, *rest)

    monkeypatch.setattr(script, "ppo_objective", spy)
    script.train(script.Args(eval_episodes=0, **settings))
    return seen


def test_every_sample_is_used_in_every_epoch(monkeypatch):
    """[AC-09d] 3 epochs of 7 minibatches over 2 × 32 samples, which 7 does not divide."""
    seen = spy_on_objective(
        monkeypatch, ppo, env_id="probes:Counter-v0", num_envs=2, num_steps=32,
        total_timesteps=128, num_minibatches=7, update_epochs=3,
    )  # fmt: skip
    assert len(seen) == 2 * 3 * 7
    rollouts = [torch.cat([batch.obs for batch in seen[i : i + 21]]).flatten() for i in (0, 21)]
    for rollout in rollouts:
        numbers, counts = rollout.unique(return_counts=True)
        assert len(numbers) == 64 and (counts == 3).all()
    assert not set(rollouts[0].tolist()) & set(rollouts[1].tolist())  # then it is discarded
    orders = [torch.cat([batch.obs for batch in seen[i : i + 7]]).tolist() for i in (0, 7)]
    assert orders[0] != orders[1]  # each epoch is shuffled anew


def test_advantages_are_of_the_present_critic_and_targets_of_the_old(monkeypatch):
    """[AC-09d] Parity pays k mod 2 where it observes k, and k + 1 follows: with λ = 0,
    Â = k mod 2 + γ V(k + 1) − V(k) by the critic at the epoch's start, and in all epochs the target
    is k mod 2 + γ V_old(k + 1)."""
    seen = spy_on_objective(
        monkeypatch, ppo, env_id="probes:Parity-v0", num_envs=2, num_steps=32, gamma=0.9,
        gae_lambda=0.0, total_timesteps=128, num_minibatches=4, update_epochs=3, learning_rate=0.01,
    )  # fmt: skip
    for start in (0, 12):  # two rollouts
        fitted = []
        for epoch in range(3):
            batches = seen[start + 4 * epoch : start + 4 * epoch + 4]
            names = "obs", "advantages", "old_values", "targets"
            parts = ([getattr(batch, name) for batch in batches] for name in names)
            obs, advantages, old_values, targets = map(torch.cat, parts)
            critic = batches[0].critic
            with torch.no_grad():
                expected = obs.squeeze(1) % 2 + 0.9 * critic(obs + 1) - critic(obs)
            torch.testing.assert_close(advantages, expected, rtol=1e-4, atol=1e-4)
            numbers = obs.flatten().int().tolist()
            old_values = dict(zip(numbers, old_values.tolist()))
            targets = dict(zip(numbers, targets.tolist()))
            inner = [number for number in numbers if number + 1 in old_values]
            assert len(inner) == 56  # all but the last of each rollout and episode
            for number in inner:
                expected = number % 2 + 0.9 * old_values[number + 1]
                assert targets[number] == pytest.approx(expected, abs=1e-4)
            fitted.append((sorted(old_values.items()), sorted(targets.items())))
        assert fitted[0] == fitted[1] == fitted[2]
        first, last = (seen[start + k].critic for k in (0, 8))
        assert (first(obs) - last(obs)).abs().max() > 0.01  # the critic does move in between


@pytest.mark.parametrize("env_id", ["probes:Lopsided-v0", "CartPole-v1"])
def test_ratio_starts_at_one(monkeypatch, env_id):
    """[AC-08b] at θ_old: statistics that moved between acting and updating would show here."""
    seen = spy_on_objective(
        monkeypatch, ppo, env_id=env_id, num_envs=2, num_steps=32, total_timesteps=192,
        num_minibatches=4, update_epochs=2,
    )  # fmt: skip
    for batch in seen[::8]:
        assert batch.log_ratio.abs().max() < 1e-5
    assert max(batch.log_ratio.abs().max() for batch in seen) > 1e-3  # later it does move


def test_old_policy_is_the_one_that_acted(monkeypatch):
    """log π_old, computed after the rollout, is what each action had when it was drawn."""
    drawn, sample = {}, ppo.DiagonalGaussian.sample

    def spy(dist):
        actions = sample(dist)
        for action, log_prob in zip(actions.tolist(), dist.log_prob(actions).tolist()):
            drawn[tuple(action)] = log_prob
        return actions

    monkeypatch.setattr(ppo.DiagonalGaussian, "sample", spy)
    seen = spy_on_objective(
        monkeypatch, ppo, env_id="Pendulum-v1", num_envs=2, num_steps=32, total_timesteps=192,
        num_minibatches=4, update_epochs=2,
    )  # fmt: skip
    for batch in seen:
        for action, log_prob in zip(batch.actions.tolist(), batch.old_log_probs.tolist()):
            assert log_prob == pytest.approx(drawn[tuple(action)], abs=1e-4)


def test_unclipped_actions_are_scored(monkeypatch):
    """The Gaussian's own sample is stored and scored; only the environment sees it clipped."""
    probes.Lopsided.taken.clear()
    seen = spy_on_objective(
        monkeypatch, ppo, env_id="probes:Lopsided-v0", num_envs=2, num_steps=32,
        total_timesteps=64, num_minibatches=1, update_epochs=1,
    )  # fmt: skip
    assert seen[0].actions.abs().max() > 1
    taken = np.array(probes.Lopsided.taken)  # (64, 1, 2), checked against the bounds by the probe
    assert taken.shape == (64, 1, 2) and (taken == 3.0).any() and (taken == 2.0).any()


def test_target_kl_prevents_the_next_epoch(monkeypatch):
    settings = dict(
        env_id="CartPole-v1", num_envs=2, num_steps=32, total_timesteps=64, num_minibatches=4
    )
    seen = spy_on_objective(monkeypatch, ppo, target_kl=1e-9, update_epochs=5, **settings)
    assert len(seen) == 4  # after one epoch of four steps the policy has moved: no second epoch


@pytest.mark.parametrize("anneal_lr", [True, False])
@pytest.mark.parametrize("module", [a2c, ppo])
def test_annealed_learning_rate(module, anneal_lr, monkeypatch):
    """Four updates of 64 steps, made with 1, ¾, ½, ¼ of the rate: never 0."""
    used, step = [], torch.optim.Adam.step

    def spy(self, *args, **kwargs):
        used.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    sizes = dict(num_minibatches=1, update_epochs=1) if module is ppo else {}
    folder = module.train(
        module.Args(env_id="CartPole-v1", num_envs=2, num_steps=32, total_timesteps=256,
                    eval_episodes=0, learning_rate=0.008, anneal_lr=anneal_lr, **sizes)
    )  # fmt: skip
    rates = [0.008, 0.006, 0.004, 0.002] if anneal_lr else [0.008] * 4
    with open(folder / "updates.csv") as file:
        assert [float(row["learning_rate"]) for row in csv.DictReader(file)] == pytest.approx(rates)
    assert used == pytest.approx(rates)


def test_successor_of_a_finished_episode(monkeypatch):
    """Counter observes 1001, 1002, ...: the successor of k is k + 1, at the end of an episode too."""
    pairs = []
    critic = ppo.Critic.forward

    def spy(self, obs):
        pairs.append(obs.detach().clone())
        return critic(self, obs)

    monkeypatch.setattr(ppo.Critic, "forward", spy)
    ppo.train(
        ppo.Args(env_id="probes:Counter-v0", num_envs=2, num_steps=32, total_timesteps=64,
                 eval_episodes=0, num_minibatches=1, update_epochs=1)
    )  # fmt: skip
    observations, next_observations = pairs[:2]  # (T, N, 1)
    assert observations.shape == (32, 2, 1)
    torch.testing.assert_close(next_observations, observations + 1)
