"""Each equation label of the scripts against values worked out another way.

By hand, by enumeration, by the definition's explicit sums, or by finite differences; never by a
second call of the same code.
"""

import itertools
import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import tensor

import ppo
import probes

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
    critic.return_norm.update(tensor([0.0, 14.0]))  # mean 7, standard deviation 7
    torch.testing.assert_close(critic(obs), 7 * before)


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
        advantages = ppo.gae(rewards, values, next_values, *ends, 0.5, 0.5)
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


def test_exact_policy_gradient():
    """[CS-3a], [CS-5.4a]: over all trajectories of a small MDP, the gradient of the surrogate with GAE's
    advantages (λ = 1, any V) has the expectation ∇J, J enumerated and differentiated.

    Two states, two actions, three steps, γ = 1, as J's sum has no γ^t in front of ∇log π.
    """
    gen = torch.Generator().manual_seed(1)
    theta = torch.randn(
        2, 2, generator=gen, dtype=torch.float64, requires_grad=True
    )  # (state, action)
    reward = torch.randn(2, 2, generator=gen, dtype=torch.float64)
    to_state_1 = torch.rand(2, 2, generator=gen, dtype=torch.float64)  # P(s' = 1 | s, a)
    value = torch.randn(2, generator=gen, dtype=torch.float64)  # an arbitrary baseline
    log_pi = theta.log_softmax(1)
    J, expected_gradient = 0.0, torch.zeros_like(theta)
    for actions in itertools.product(range(2), repeat=3):
        for successors in itertools.product(range(2), repeat=3):
            states = (0, *successors[:2])
            p = 1.0
            for s, a, s_next in zip(states, actions, successors):
                p = p * log_pi[s, a].exp() * (to_state_1[s, a] if s_next else 1 - to_state_1[s, a])
            rewards = column(*(reward[s, a] for s, a in zip(states, actions)))
            J = J + p * rewards.sum()
            values, next_values = column(*value[list(states)]), column(*value[list(successors)])
            advantages = ppo.gae(
                rewards, values, next_values, column(0, 0, 1), column(0, 0, 0), 1.0, 1.0
            )
            log_probs = log_pi[list(states), list(actions)]
            surrogate = ppo.clipped_surrogate(log_probs, log_probs.detach(), advantages[:, 0], 0.2)
            (gradient,) = torch.autograd.grad(surrogate, theta, retain_graph=True)
            expected_gradient += p.detach() * gradient * 3  # it is a mean over the three steps
    (exact,) = torch.autograd.grad(J, theta)
    torch.testing.assert_close(expected_gradient, exact)


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
    """Trains while every minibatch is recorded: (observations, actions, log ratio, advantages)."""
    seen, objective = [], script.ppo_objective

    def spy(actor, critic, obs, actions, old_log_probs, advantages, *rest):
        with torch.no_grad():
            log_ratio = actor(obs).log_prob(actions) - old_log_probs
        batch = SimpleNamespace(obs=obs, actions=actions, log_ratio=log_ratio)
        batch.old_log_probs = old_log_probs
        seen.append(batch)
        return objective(actor, critic, obs, actions, old_log_probs, advantages, *rest)

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
    taken = np.array(probes.Lopsided.taken)  # (64, 2, 1), checked against the bounds by the probe
    assert taken.shape == (64, 2, 1) and (taken == 3.0).any() and (taken == 2.0).any()


def test_target_kl_prevents_the_next_epoch(monkeypatch):
    settings = dict(
        env_id="CartPole-v1", num_envs=2, num_steps=32, total_timesteps=64, num_minibatches=4
    )
    seen = spy_on_objective(monkeypatch, ppo, target_kl=1e-9, update_epochs=5, **settings)
    assert len(seen) == 4  # after one epoch of four steps the policy has moved: no second epoch


def test_annealed_learning_rate(tmp_path):
    """Four updates of 64 steps: 1, ¾, ½, ¼ of the rate; never 0."""
    folder = ppo.train(
        ppo.Args(env_id="CartPole-v1", num_envs=2, num_steps=32, total_timesteps=256, eval_episodes=0,
                 num_minibatches=4, update_epochs=1, learning_rate=0.008, anneal_lr=True)
    )  # fmt: skip
    lines = (folder / "updates.csv").read_text().splitlines()
    column = lines[0].split(",").index("learning_rate")
    rates = [float(line.split(",")[column]) for line in lines[1:]]
    assert rates == pytest.approx([0.008, 0.006, 0.004, 0.002])


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
    observations, next_observations = pairs[1:3]  # after V_old, values and next values: (T, N, 1)
    assert observations.shape == (32, 2, 1)
    torch.testing.assert_close(next_observations, observations + 1)
