"""The loops of the scripts: counts, order, what is scored, and the traps of an implementation."""

import copy
import inspect
import math
import queue
import threading
import time
from pathlib import Path

import envs
import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import (
    EPISODIC,
    OFF_POLICY,
    ROLLOUTS,
    each,
    env_for,
    only_folder,
    state_of,
    table,
    train,
)
from torch import nn, tensor
from torch.nn.utils import parameters_to_vector

import a2c
import a3c
import ddpg
import ppo
import reinforce_baseline
import sac
import td3
import trpo


def record(monkeypatch, script, name, before=None):
    """A list that gets, for each call of a function of the script, what `before` makes of its
    arguments (by default the arguments themselves), and its result."""
    calls, function = [], getattr(script, name)

    def recorder(*args, **more):
        seen = before(*args, **more) if before else args
        result = function(*args, **more)
        calls.append((seen, result))
        return result

    monkeypatch.setattr(script, name, recorder)
    return calls


def envs_of(script, name, count):
    return [script.make_env(env_for(script.__name__, name)) for _ in range(count)]


def actor_of(script, env):
    return script.Actor(env.observation_space, env.action_space)


def moved(before, after):
    """Whether any parameter of a network differs from its copy's."""
    a, b = (parameters_to_vector(network.parameters()) for network in (before, after))
    return not torch.equal(a, b)


# ── Rollouts and episodes ─────────────────────────────────────────────────────────────────────────


def roll(script, name, T, N):
    """One rollout of the script: last obs, statistics, and a dict of the (T, N, ...) tensors."""
    made = envs_of(script, name, N)
    obs = np.stack([env.reset(seed=n)[0] for n, env in enumerate(made)])
    last, episodes, *samples = script.rollout(made, obs, actor_of(script, made[0]), T)
    names = "obs", "actions", "rewards", "next_obs", "terminations", "truncations"
    return last, episodes, dict(zip(names, samples, strict=True))


@each(*ROLLOUTS)
def test_successors_at_the_ends_of_episodes(script):
    """Traps 1 to 3: the successor of k is k + 1, at a time limit too, though the environment has
    been reset; the next row starts from the reset observation, and none is trained on twice.
    An environment may write into the array of its last observation."""
    last, episodes, x = roll(script, "Counter", T=25, N=2)
    assert x["obs"].shape == x["next_obs"].shape == (25, 2, 1)
    assert torch.equal(x["next_obs"], x["obs"] + 1)
    ends = torch.arange(1, 26) % 10 == 0  # the time limit
    gaps = (x["obs"][1:] - x["next_obs"][:-1])[..., 0]
    assert torch.equal(gaps, ends[:-1, None].expand(24, 2).float())
    assert torch.equal(tensor(last), x["next_obs"][-1])
    assert not x["terminations"].any()
    assert torch.equal(x["truncations"], ends[:, None].expand(25, 2))
    assert [(e["r"], e["l"]) for e in episodes] == [(10.0, 10)] * 4  # the cut ones are not counted
    assert x["rewards"].dtype == torch.float32 and x["rewards"].shape == (25, 2)
    terminations = roll(script, "Both", T=20, N=1)[2]["terminations"]  # both at once is terminated
    assert terminations[:, 0].nonzero().flatten().tolist() == [9, 19]


@each("reinforce", "ppo")  # the Actor, rollout and play_episode are one text in the others
def test_actions_that_the_environment_gets(script):
    """The stored action of a Box is the Gaussian's own sample (trap 11), clipped for the environment
    only."""
    envs.Lopsided.taken.clear()
    if script is ppo:
        actions = roll(script, "Lopsided", T=40, N=2)[2]["actions"].flatten(0, 1)
    else:
        env = envs_of(script, "Lopsided", 1)[0]
        actor = actor_of(script, env)
        actions = torch.cat([script.play_episode(env, actor)[1] for _ in range(4)])
    raw, played = actions[:, 0].numpy(), np.array(envs.Lopsided.taken)[:, 0]
    assert actions.shape == (80, 1, 2) and np.abs(raw).max() > 1
    expected = (np.array([1, 2.25]) + raw * [2, 0.25]).clip([-1, 2], [3, 2.5])
    np.testing.assert_allclose(played, expected, atol=1e-5)


@each(*EPISODIC)
def test_an_episode(script):
    """Its rows are the steps from the reset to the end, each with the reward of its own action."""
    env = envs_of(script, "Parity", 1)[0]
    observations, actions, rewards, statistics = script.play_episode(env, actor_of(script, env))
    assert torch.equal(observations[1:], observations[:-1] + 1) and len(observations) == 10
    assert torch.equal(rewards, observations[:, 0] % 2) and rewards.dtype == torch.float32
    assert actions.shape == (10,) and (statistics["r"], statistics["l"]) == (5, 10)


@each(*EPISODIC)
def test_only_finished_episodes_are_scored(script, monkeypatch):
    """Trap 9: episodes of 10 steps, updates after 20 or more. 37 steps make two updates, of two
    whole episodes each; every step is scored once, with the return of its own episode, and the
    weights are constants."""
    if hasattr(script, "Critic"):
        monkeypatch.setattr(script.Critic, "forward", lambda self, obs: 0 * self.net(obs)[..., 0])
    calls = record(monkeypatch, script, "policy_gradient_loss")
    off = "norm_adv" if hasattr(script, "Critic") else "norm_returns"
    settings = dict(total_timesteps=37, batch_size=11, gamma=0.5)
    folder = train(script, env_for(script.__name__, "Counter"), **settings, **{off: False})
    of_one_episode = [2 - 0.5 ** (9 - t) for t in range(10)]  # Σ_{k=0..9−t} ½^k
    for (log_probs, weights), _ in calls:
        assert weights.tolist() == pytest.approx(2 * of_one_episode)
        assert log_probs.requires_grad and not weights.requires_grad
    assert [row["step"] for row in table(folder / "updates.csv")] == [20, 40]
    episodes = [(row["step"], row["episode_return"]) for row in table(folder / "episodes.csv")]
    assert episodes == [(10, 10), (20, 10), (30, 10), (40, 10)]


@each(*EPISODIC)
def test_standardised_weights(script, monkeypatch):
    """Trap 13: mean 0 and standard deviation 1 over the batch; a single number is left alone."""
    calls = record(monkeypatch, script, "policy_gradient_loss")
    train(script, "CartPole-v1", total_timesteps=300, batch_size=50)
    for (_, weights), _ in calls:
        assert weights.mean().item() == pytest.approx(0, abs=1e-5)
        assert weights.std().item() == pytest.approx(1, abs=1e-4)
    calls.clear()
    train(script, "envs:OneStep-v0", total_timesteps=3, batch_size=1)
    assert len(calls) == 3 and all(weights.isfinite().all() for (_, weights), _ in calls)


@each("reinforce_baseline", "trpo")
def test_loss_of_a_critic(script, monkeypatch):
    """[X-VF] the mean of (V − V_target)², in units of the targets' std; trap 12: (B, 1) beside (B,)
    would give another number. With a learning rate of 0 the critic saved is the one scored."""
    played = record(monkeypatch, script, "rollout" if script is trpo else "play_episode")
    valued = record(monkeypatch, script, "gae" if script is trpo else "discounted_returns")
    settings = dict(critic_learning_rate=0.0, critic_epochs=1, critic_batch_size=10**6)
    folder = train(script, "CartPole-v1", total_timesteps=1, **settings)
    critic = script.Critic(gym.make("CartPole-v1").observation_space)
    critic.load_state_dict(state_of(folder)["critic"])
    if script is trpo:
        ((_, values, *_), advantages), ((*_, (_, _, obs, *_)),) = valued[0], played
        targets = advantages + values
    else:
        obs, targets = (torch.cat([x[1][0] for x in played])), torch.cat([x[1] for x in valued])
    errors = (critic(obs) - targets).detach().numpy()
    expected = (errors**2).mean() / targets.numpy().std() ** 2
    (row,) = table(folder / "updates.csv")
    assert row["value_loss"] == pytest.approx(expected, rel=1e-4)


def test_baseline_is_evaluated_before_it_is_fitted(monkeypatch):
    """[CS-9a] [CS-9e] [CS-9f] the weight is G − V(s), by the critic that the update before has left."""
    script, settings = reinforce_baseline, dict(batch_size=1, norm_adv=False, gamma=0.9)
    first = train(script, "CartPole-v1", total_timesteps=1, **settings)  # one episode, one update
    played = record(monkeypatch, script, "play_episode")
    calls = record(monkeypatch, script, "policy_gradient_loss")
    length = int(table(first / "episodes.csv")[0]["length"])
    train(script, "CartPole-v1", total_timesteps=length + 1, **settings)  # the same, and another
    observations, _, rewards, _ = played[1][1]
    critic = script.Critic(gym.make("CartPole-v1").observation_space)
    critic.load_state_dict(state_of(first)["critic"])
    returns = sum(0.9**k * torch.ones(len(rewards)).cumsum(0).flip(0).gt(k) for k in range(500))
    expected = returns - critic(observations).detach()
    torch.testing.assert_close(calls[1][0][1], expected, rtol=1e-3, atol=1e-4)
    assert critic.net[-1].weight.any() and critic.obs_norm.count == length  # it is fitted, too


# ── Updates of the on-policy scripts ──────────────────────────────────────────────────────────────


def scored(monkeypatch, script, env_id, **settings):
    """Trains; returns the log-probabilities of the drawn actions in the order of the rollouts, when
    they were drawn, and the first that each update computes, sorted alike by their sample."""
    drawn, updates = [], []
    collect = "play_episode" if script.__name__ in EPISODIC else "rollout"

    def remember(*args):
        drawn.append((copy.deepcopy(args[1 if collect == "play_episode" else 2]), None))

    rollouts = record(monkeypatch, script, collect, remember)
    name = {"trpo": "surrogate", "ppo": "clipped_surrogate"}.get(script.__name__)
    calls = record(monkeypatch, script, name or "policy_gradient_loss")
    train(script, env_id, **settings)
    for args, _ in calls:  # [CS-10d], trap 22: all but log π is a constant
        assert not any(x.requires_grad for x in args[1:3] if isinstance(x, torch.Tensor))
    for (actor, _), (_, result) in zip(drawn, rollouts):
        observations, actions = result[:2] if collect == "play_episode" else result[2:4]
        with torch.no_grad():
            updates.append(actor(observations).log_prob(actions).flatten())
    assert (getattr(actor, "log_std", torch.zeros(1)) != -0.5).all()  # σ is learned, trap 25
    return updates, [call[0][:-1] for call in calls]


@each("reinforce", "reinforce_baseline", "a2c", "trpo")
def test_what_is_scored_is_what_was_drawn(script, monkeypatch):
    """Traps 11 and 18: the loss (in trpo log π_old) has log π of the sample, not of what the bounds
    left of it, under the policy, statistics included, that drew it."""
    rate = {} if script is trpo else dict(learning_rate=0.01)
    drawn, calls = scored(monkeypatch, script, "envs:Lopsided-v0", **rate)
    found = torch.cat(list(dict.fromkeys(args[-1] for args in calls))).detach()
    assert len(drawn) > 2 and len(found) >= 400
    torch.testing.assert_close(found, torch.cat(drawn)[: len(found)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("env_id", ["envs:Lopsided-v0", "CartPole-v1"])
def test_ratio_starts_at_one(monkeypatch, env_id):
    """[AC-08b] at θ_old in each update; statistics that moved before it would show here. All the
    minibatches of an update are compared with the same log π_old, that of the drawing policy."""
    settings = dict(total_timesteps=192, num_minibatches=4, update_epochs=3)
    drawn, calls = scored(monkeypatch, ppo, env_id, **settings)
    assert len(drawn) == 3 and len(calls) == 3 * 12
    for update, log_probs in enumerate(drawn):
        rows = calls[12 * update : 12 * update + 12]
        assert (rows[0][0] - rows[0][1]).abs().max() < 1e-4
        assert (rows[-1][0] - rows[-1][1]).abs().max() > 1e-3  # later it moves
        for epoch in range(3):
            old = torch.cat([old for _, old, *_ in rows[4 * epoch : 4 * epoch + 4]])
            torch.testing.assert_close(old.sort()[0], log_probs.sort()[0], rtol=1e-4, atol=1e-4)


@each("a2c", "trpo", "ppo")
def test_counts(script):
    """[AC-07b] T·N samples an update; the statistics have seen each observation once; the last rollout may
    go beyond the total; the optimizer makes one step a minibatch (trap 6)."""
    settings = dict(num_envs=3, num_steps=7, total_timesteps=50)
    settings |= {"trpo": dict(critic_epochs=2, critic_batch_size=10)}.get(script.__name__, {})
    folder = train(script, "CartPole-v1", **settings)
    assert [row["step"] for row in table(folder / "updates.csv")] == [21, 42, 63]
    state = state_of(folder)
    assert state["actor"]["obs_norm.count"] == state["critic"]["obs_norm.count"] == 63
    assert state["critic"]["return_norm.count"] == 63
    if script is ppo:
        assert state["adam"]["steps"] == 3 * 2 * 4  # epochs, minibatches
    else:
        name = "optimizer" if script is a2c else "critic_optimizer"
        steps = {float(x["step"]) for x in state[name]["state"].values()}
        assert steps == {3.0 if script is a2c else 3 * 2 * 3}  # 21 samples are 3 minibatches


def test_every_sample_is_used_in_every_epoch(monkeypatch):
    """[AC-09d] 3 epochs of 7 minibatches over 2 · 32 samples, which 7 does not divide. Each epoch
    is shuffled anew, and the rollout is discarded."""
    calls = record(monkeypatch, ppo, "ppo_objective", lambda actor, critic, obs, *_: obs)
    settings = dict(total_timesteps=128, num_minibatches=7, update_epochs=3)
    folder = train(ppo, "envs:Counter-v0", **settings)
    epochs = [torch.cat([x for x, _ in calls[i : i + 7]]).flatten() for i in range(0, 42, 7)]
    for epoch in epochs:
        assert len(epoch) == 64 and len(epoch.unique()) == 64
    first, again, _, other = (epochs[i] for i in (0, 1, 2, 3))
    assert not torch.equal(first, again) and torch.equal(first.sort()[0], again.sort()[0])
    assert not set(first.tolist()) & set(other.tolist())
    for i, row in enumerate(table(folder / "updates.csv")):  # trap 16: means over all minibatches
        losses = [metrics["value_loss"].item() for _, (_, metrics) in calls[21 * i : 21 * i + 21]]
        assert row["value_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_advantages_of_each_epoch(monkeypatch):
    """[AC-09d] Parity pays k mod 2 where it observes k. With λ = 0, Â = r + γ V(k + 1) − V(k)
    by the critic at the epoch's start; the targets are the same in all epochs."""

    def look(actor, critic, obs, actions, old_log_probs, advantages, targets, args):
        return copy.deepcopy(critic), obs[:, 0], advantages, targets

    calls = record(monkeypatch, ppo, "ppo_objective", look)
    settings = dict(total_timesteps=64, update_epochs=3, gamma=0.9, gae_lambda=0.0)
    train(ppo, "envs:Parity-v0", learning_rate=0.01, **settings)
    epochs = [[x for x, _ in calls[i : i + 4]] for i in (0, 4, 8)]
    targets = []
    for epoch in epochs:
        critic = epoch[0][0]
        k, advantages, target = (torch.cat(x) for x in list(zip(*epoch))[1:])
        with torch.no_grad():
            V, next_V = critic(k[:, None]), critic(k[:, None] + 1)
        expected = k % 2 + 0.9 * next_V - V
        torch.testing.assert_close(advantages, expected, rtol=1e-3, atol=1e-3)
        targets.append(dict(zip(k.tolist(), target.tolist())))
        assert len(targets[-1]) == 64
    assert targets[0] == targets[1] == targets[2]
    first, last = (epoch[0][0](k[:, None]) for epoch in (epochs[0], epochs[2]))
    assert (first - last).abs().max() > 0.01  # the critic does move in between


@each("a2c", "trpo", "ppo")
def test_bootstraps_of_a_run(script, monkeypatch):
    """Traps 1 and 2 in `train`: what the advantages are made of, and the targets Â + V(s), in the
    second rollout, as V is 0 in the first."""
    rolled = record(monkeypatch, script, "rollout")
    given = record(monkeypatch, script, "n_step_advantages" if script is a2c else "gae")
    normed = record(monkeypatch, script.Critic, "update_return_norm")
    rates = dict(gamma=0.9) if script is a2c else dict(gamma=0.9, gae_lambda=0.8)
    train(script, "envs:Reach-v0", total_timesteps=128, **rates)
    samples, advantages = given[3 if script is ppo else 1]  # ppo has three calls a rollout
    _, _, obs, _, rewards, next_obs, terminations, truncations = rolled[1][1]
    r, V, next_V, *ends = samples[:5]
    assert samples[5:] == (*rates.values(),)
    assert all(map(torch.equal, (r, *ends), (rewards, terminations, truncations)))
    inside = (obs[1:] == next_obs[:-1]).all(-1)
    assert terminations.any() and V.std() > 0.001
    torch.testing.assert_close(next_V[:-1][inside], V[1:][inside])
    torch.testing.assert_close(normed[1][0][1], (advantages + V).flatten())


def test_target_kl_prevents_the_next_epoch():
    """Trap 15: after one epoch of four steps the policy has moved, and no second one follows."""
    for target_kl, steps in ((1e-9, 4), (None, 20), (1e9, 20)):
        settings = dict(target_kl=target_kl, update_epochs=5, total_timesteps=64)
        assert state_of(train(ppo, "CartPole-v1", **settings))["adam"]["steps"] == steps


@each("a2c", "ppo")
@pytest.mark.parametrize("anneal_lr", [True, False])
def test_annealed_learning_rate(script, anneal_lr, monkeypatch):
    """Trap 17: four updates of 64 steps with 1, ¾, ½, ¼ of the rate; the last one is not 0. RMSprop
    and Adam move a parameter by at most about the rate, and in each update some by half of it."""
    moves, before = [], []

    def look(envs, obs, actor, T):
        before.append(parameters_to_vector(actor.parameters()).detach().clone())

    record(monkeypatch, script, "rollout", look)
    sizes = dict(num_minibatches=1, update_epochs=1) if script is ppo else {}
    settings = dict(total_timesteps=256, learning_rate=0.008, anneal_lr=anneal_lr)
    folder = train(script, "CartPole-v1", **settings, **sizes)
    parameters = actor_of(script, gym.make("CartPole-v1"))
    parameters.load_state_dict(state_of(folder)["actor"])
    before.append(parameters_to_vector(parameters.parameters()).detach())
    moves = [(b - a).abs().max().item() for a, b in zip(before, before[1:])]
    rates = [0.008, 0.006, 0.004, 0.002] if anneal_lr else [0.008] * 4
    assert len(moves) == 4 and moves[0] == pytest.approx(0.008, rel=0.01)  # g / √g²
    largest = 10 if script is a2c else 2
    assert all(0.5 < move / rate < largest for move, rate in zip(moves, rates))
    if script is a2c:
        assert state_of(folder)["optimizer"]["param_groups"][0]["lr"] == pytest.approx(rates[-1])


@each("a2c", "trpo", "ppo")
@pytest.mark.parametrize("stagger", [True, False])
def test_staggered_resets(script, stagger, monkeypatch):
    """After each of the first rollouts another environment is reset, so that the episodes do not go
    on to end together. An episode that is cut so counts for nothing; environment 0 loses none."""
    calls = record(monkeypatch, script, "rollout", lambda envs, obs, *_: obs.copy())
    settings = {"num_envs": 3, "num_steps": 4, "total_timesteps": 60}
    if not stagger:  # it is the default
        settings["stagger"] = False
    folder = train(script, "envs:Counter-v0", **settings)
    starts, lasts = [obs for obs, _ in calls], [result[5][-1].numpy() for _, result in calls]
    resets = [(b - a)[:, 0].nonzero()[0].tolist() for a, b in zip(lasts, starts[1:])]
    assert resets == ([[1], [2], [], []] if stagger else [[], [], [], []])
    ends = torch.cat([result[-1] for _, result in calls])  # (20, 3) truncations
    together = [[t, n] for t in (9, 19) for n in range(3)]
    assert ends.nonzero().tolist() == ([[9, 0], [13, 1], [17, 2], [19, 0]] if stagger else together)
    rows = table(folder / "episodes.csv")
    assert {(row["length"], row["episode_return"]) for row in rows} == {(10, 10)}
    assert len(rows) == len(ends.nonzero())


@each("a2c", "trpo", "ppo")
def test_environments_have_their_own_seeds(script, monkeypatch):
    """Trap 7: seed, seed + 1, ...: no two environments start alike, nor two runs."""
    calls = record(monkeypatch, script, "rollout", lambda envs, obs, *_: obs.copy())
    for seed in (1, 2):
        train(script, "Pendulum-v1", total_timesteps=64, num_envs=4, num_steps=16, seed=seed)
    starts = np.concatenate([calls[0][0], calls[1][0]])
    assert len(np.unique(starts.round(5), axis=0)) == 8


def test_trust_region_of_a_real_run(monkeypatch):
    """[AC-08a] after each update KL ≤ δ, and the surrogate is higher than at θ_old, where it is the
    mean of the standardised advantages, 0; both computed anew from the actors before and after.
    The step is along the natural gradient: (F + 0.1) Δθ is along the surrogate's gradient g."""
    rollouts = record(monkeypatch, trpo, "rollout", lambda *args: copy.deepcopy(args[2]))
    calls = record(monkeypatch, trpo, "surrogate")
    for env_id in ("CartPole-v1", "Pendulum-v1"):
        rollouts.clear(), calls.clear()
        settings = dict(total_timesteps=1024, num_envs=4, num_steps=64, max_kl=0.01)
        rows = table(train(trpo, env_id, **settings) / "updates.csv")
        assert len(rows) == 4
        advantages = list(dict.fromkeys(args[2] for args, _ in calls))
        for i in range(3):
            (old, (_, _, obs, actions, *_)), (new, _) = rollouts[i : i + 2]
            new = copy.deepcopy(new)
            new.obs_norm = old.obs_norm  # it has moved since
            with torch.no_grad():
                p, q = (actor(obs.flatten(0, 1)) for actor in (old, new))
                kl = torch.distributions.kl_divergence(p, q).mean().item()
                log_ratio = q.log_prob(actions.flatten(0, 1)) - p.log_prob(actions.flatten(0, 1))
                gain = (log_ratio.exp() * advantages[i]).mean().item()
            dist, theta = old(obs.flatten(0, 1)), [*old.parameters()]
            log_probs = dist.log_prob(actions.flatten(0, 1))
            surrogate = (log_probs - log_probs.detach()).exp() @ advantages[i] / len(log_probs)
            g = torch.autograd.grad(surrogate, theta, retain_graph=True)
            kl_gradient = torch.autograd.grad(trpo.mean_kl(p, dist), theta, create_graph=True)
            kl_gradient = parameters_to_vector(kl_gradient)
            step = parameters_to_vector(new.parameters()) - parameters_to_vector(theta)
            found = trpo.fisher_vector_product(kl_gradient, theta, step.detach(), 0.1)
            assert torch.cosine_similarity(found, parameters_to_vector(g), 0) > 0.99
            assert -1e-6 < kl <= 0.01 * (1 + 1e-3)
            assert rows[i]["kl"] == pytest.approx(kl, abs=1e-5)
            assert rows[i]["surrogate"] == pytest.approx(gain, abs=1e-4)
        assert sum(row["step_fraction"] > 0 and row["kl"] > 0.001 for row in rows) >= 3
        assert all(row["surrogate"] > 0 for row in rows if row["step_fraction"] > 0)


@each("a2c", "ppo")
def test_gradient_is_clipped(script):
    """The norm that is logged is the gradient's own; Adam gets it clipped, θ and w jointly."""
    one = dict(total_timesteps=64, num_minibatches=1, update_epochs=1) if script is ppo else {}
    settings = dict(total_timesteps=64) | one
    for limit in (1e-3, 1e3):
        folder = train(script, "Pendulum-v1", max_grad_norm=limit, **settings)
        norm, state = table(folder / "updates.csv")[0]["grad_norm"], state_of(folder)
        if script is ppo:  # the first average is a tenth of the gradient; in a2c all of it
            given = 10 * state["adam"]["mean"].norm().item()
        else:
            averages = [x["exp_avg"].flatten() for x in state["optimizer"]["state"].values()]
            given = torch.cat(averages).norm().item()
        assert given == pytest.approx(min(norm, limit), rel=1e-3) and norm > 1e-3


# ── A3C: pull and push ────────────────────────────────────────────────────────────────────────────


def one_worker(args):
    """The shared actor, critic and optimizer, as train initialises them, and a function that does in
    this process, where a test can look, what a worker does; it returns the reports."""
    torch.manual_seed(args.seed)
    env = a3c.make_env(args.env_id)
    actor, critic = actor_of(a3c, env), a3c.Critic(env.observation_space)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, args.learning_rate, betas=(0.0, 0.99), eps=1e-5)

    def work(rank=0):
        reports = queue.SimpleQueue()
        shared = actor, critic, optimizer, torch.tensor(0), threading.Lock(), reports
        a3c.work(rank, args, 10**6, *shared)
        return [reports.get() for _ in range(reports.qsize())]

    return actor, critic, optimizer, work


def canned_rollout():
    """A rollout that ignores its policy: the same random samples in the same order."""
    rng = np.random.default_rng(0)

    def rollout(envs, obs, actor, T):
        samples = [rng.normal(size=(T, 1, k)).astype(np.float32) for k in (3, 1, 1, 3)]
        samples[2] = 5 * samples[2][..., 0] + 3
        ends = [rng.random((T, 1)) < 0.1 for _ in range(2)]
        return obs, [], *map(torch.as_tensor, samples + ends)

    return rollout


def test_one_worker_is_a2c_with_one_environment(monkeypatch):
    """[AC-07c] with nobody beside it, a pulled θ' is never out of date: the same samples make the
    same updates. The rates are 1, ¾, ½, ¼ of the first one."""
    for script in (a2c, a3c):
        monkeypatch.setattr(script, "rollout", canned_rollout())
    settings = {"total_timesteps": 64, "num_steps": 16, "learning_rate": 0.01}
    folder = train(a2c, "Pendulum-v1", num_envs=1, **settings)
    args = a3c.Args(env_id="Pendulum-v1", **settings)
    actor, critic, optimizer, work = one_worker(args)
    reports = work()
    assert [step for step, *_ in reports] == [16, 32, 48, 64]
    for name, network in (("actor", actor), ("critic", critic)):
        found, expected = network.state_dict(), state_of(folder)[name]
        torch.testing.assert_close({**found}, {**expected}, rtol=1e-3, atol=1e-4)
    for row, (_, _, metrics) in zip(table(folder / "updates.csv"), reports, strict=True):
        assert metrics == pytest.approx({name: row[name] for name in metrics}, rel=1e-2, abs=1e-3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)


def test_workers_have_their_own_seeds(monkeypatch):
    """Trap 7: neither the first observations nor the noise of the actions are the same."""
    *_, work = one_worker(a3c.Args(env_id="Pendulum-v1", total_timesteps=16, num_steps=16))
    calls = record(monkeypatch, a3c, "rollout", lambda envs, obs, *_: obs.copy())
    work(0)
    work(1)
    (first, one), (second, other) = calls
    assert (first != second).all() and (one[3] - other[3]).abs().max() > 0.5


def test_push_moves_what_others_have_moved(monkeypatch):
    """[AC-07c] while the worker acts, another one adds 0.5 to the shared parameters: the push adds
    the step along the gradient at θ', which was pulled before, to what they are now. The first step
    of RMSprop is lr · g / (|g| + ε)."""
    args = a3c.Args(env_id="Pendulum-v1", total_timesteps=16, num_steps=16, max_grad_norm=1e9)
    actor, critic, _, work = one_worker(args)
    parameters = [*actor.parameters(), *critic.parameters()]
    before, gradients = parameters_to_vector(parameters).detach(), []
    actor.obs_norm.update(torch.randn(50, 3) + 7)  # what others have seen is pulled too
    rollout, objective = a3c.rollout, a3c.actor_critic_objective

    @torch.no_grad()
    def meddle(*given):
        for x in parameters:
            x += 0.5
        return rollout(*given)

    def look(actor, critic, *samples):
        own = [*actor.parameters(), *critic.parameters()]  # θ', w'
        assert torch.equal(parameters_to_vector(own), before) and actor.obs_norm.count == 50
        gradient = torch.autograd.grad(-objective(actor, critic, *samples)[0], own)
        gradients.append(parameters_to_vector(gradient))

    monkeypatch.setattr(a3c, "rollout", meddle)
    record(monkeypatch, a3c, "actor_critic_objective", look)
    work()
    step = args.learning_rate * gradients[0] / (gradients[0].abs() + 1e-5)
    expected = before + 0.5 - step
    torch.testing.assert_close(parameters_to_vector(parameters), expected, rtol=1e-3, atol=1e-5)


def test_workers_share_everything():
    """Two processes: each push is counted once and has its row, in order; the shared statistics and
    the optimizer's averages have seen all of them; the last rollouts may go beyond the total."""
    folder = train(a3c, "envs:Counter-v0", total_timesteps=500, num_workers=2)
    steps, state = [row["step"] for row in table(folder / "updates.csv")], state_of(folder)
    total = steps[-1]
    assert steps == list(range(32, int(total) + 1, 32)) and 500 <= total < 500 + 2 * 32
    assert state["critic"]["obs_norm.count"] == state["actor"]["obs_norm.count"] == total
    assert {float(x["step"]) for x in state["optimizer"]["state"].values()} == {total / 32}
    group = state["optimizer"]["param_groups"][0]
    assert (group["betas"], group["eps"]) == ((0.0, 0.99), 1e-5)
    assert all(x["exp_avg_sq"].any() for x in state["optimizer"]["state"].values())
    rows = table(folder / "episodes.csv")
    assert {(row["length"], row["episode_return"]) for row in rows} == {(10, 10)}
    # Each worker's last episode is cut; nothing else is lost.
    assert total - 2 * 10 < sum(row["length"] for row in rows) <= total


def test_a_report_larger_than_a_pipe(monkeypatch):
    """A worker reports while it holds the lock. The main process must not wait for the lock then,
    or both would wait for ever: a pipe holds 64 KB."""

    class Workers(threading.Thread):  # in place of mp.spawn: one worker, one report
        def __init__(self, work, shared, **_):
            super().__init__(daemon=True)
            *_, self.step, self.lock, self.queue = shared
            self.start()

        def run(self):
            with self.lock:
                time.sleep(0.5)
                self.step += 4_000
                self.queue.put((4_000, 4_000 * [dict(r=1.0, l=1)], dict(policy_loss=0.0)))

        def join(self, timeout):
            super().join(timeout)
            return not self.is_alive()

    monkeypatch.setattr(a3c.mp, "spawn", Workers)
    settings = {"total_timesteps": 4_000}
    main = threading.Thread(target=train, args=(a3c, "CartPole-v1"), kwargs=settings, daemon=True)
    main.start()
    main.join(timeout=30)
    assert not main.is_alive()
    assert len(table(only_folder(Path.cwd()) / "episodes.csv")) == 4_000


# ── Replay buffer ─────────────────────────────────────────────────────────────────────────────────


def numbered(script, size, count):
    """A buffer that was given the transitions 0, 1, ..., count − 1, each told by its number."""
    buffer = script.ReplayBuffer(size, 2, 1, torch.device("cpu"))
    for i in range(count):
        buffer.add(np.array([i, -i]), np.array([i / 10]), i, np.array([i + 1, -i - 1]), i % 3 == 0)
    return buffer


@each(*OFF_POLICY)
def test_replay_is_first_in_first_out(script):
    """[X-REPLAY] rows stay whole, the oldest are overwritten, and the sample is uniform."""
    obs, actions, rewards, next_obs, ends = numbered(script, size=5, count=8).sample(2000)
    assert set(rewards.tolist()) == {3.0, 4.0, 5.0, 6.0, 7.0}  # 0, 1, 2 were overwritten
    assert torch.equal(obs, torch.stack((rewards, -rewards), 1))
    assert torch.equal(next_obs, torch.stack((rewards + 1, -rewards - 1), 1))
    assert torch.equal(actions, (rewards / 10)[:, None])
    assert torch.equal(ends, rewards % 3 == 0) and ends.dtype == torch.bool
    counts = torch.bincount(rewards.long())[3:]
    assert ((counts - 400).abs() < 5 * math.sqrt(2000 * 0.2 * 0.8)).all()
    few = numbered(script, size=1000, count=3).sample(500)  # trap 27: no empty slot is drawn
    assert set(few[2].tolist()) == {0.0, 1.0, 2.0}


@each(*OFF_POLICY)
def test_restored_buffer_goes_on(script):
    """It overwrites the oldest row, and the saved state has the filled rows only."""
    full, part = numbered(script, 5, 8), numbered(script, 50, 3)
    assert [len(x.state_dict()["rows"][0]) for x in (full, part)] == [5, 3]
    for buffer, size, expected in [
        (full, 5, {4, 5, 6, 7, 8}),
        (part, 50, {0, 1, 2, 8}),
        (full, 9, {3, 4, 5, 6, 7, 8}),  # in a larger buffer: none lost, no empty slot drawn
        (part, 3, {1, 2, 8}),  # it has as many slots as there are rows
        (full, 3, {6, 7, 8}),  # in a smaller one: the newest
    ]:
        other = numbered(script, size, 0)
        other.load_state_dict(copy.deepcopy(buffer.state_dict()))
        other.add(np.array([8, -8]), np.array([0.0]), 8, np.array([8, 8]), False)
        assert set(other.sample(500)[2].tolist()) == expected


# ── What ddpg, td3 and sac play and store ─────────────────────────────────────────────────────────


def stored(script, env_id, **settings):
    """obs, actions, rewards, next_obs, terminations of a run, as its checkpoint has them."""
    settings = dict(total_timesteps=100, learning_starts=60, buffer_size=5000) | settings
    return [x.numpy() for x in state_of(train(script, env_id, **settings))["buffer"]["rows"]]


@each(*OFF_POLICY)
def test_stored_transitions(script):
    """Traps 1 and 26: the successor of k is k + 1, at a time limit too, which terminates nothing."""
    obs, _, rewards, next_obs, terminations = stored(script, "envs:BoxCounter-v0")
    assert len(obs) == 100 and (rewards == 1).all() and not terminations.any()
    np.testing.assert_array_equal(next_obs, obs + 1)
    ends = np.arange(1, 100) % 10 == 0  # the time limit: here one reset lies between
    np.testing.assert_array_equal((obs[1:] - next_obs[:-1])[:, 0], ends)
    *_, terminations = stored(script, "envs:BoxBoth-v0")  # both at once is terminated
    np.testing.assert_array_equal(terminations, np.arange(1, 101) % 10 == 0)


@each(*OFF_POLICY)
def test_random_actions_before_the_start(script):
    """Trap 27: uniform over the box, per dimension: mean 0, variance ⅓, all of [−1, 1]. The stored
    action is the one that the environment got, in units of half its range (trap 28)."""
    envs.Lopsided.taken.clear()  # bounds [−1, 3] and [2, 2.5]
    settings = dict(total_timesteps=4001, learning_starts=3999, batch_size=1)
    _, actions, *_ = stored(script, "envs:Lopsided-v0", **settings)
    played = np.array(envs.Lopsided.taken)[:4001, 0]
    np.testing.assert_allclose(played, np.array([1, 2.25]) + actions * [2, 0.25], atol=1e-6)
    assert np.abs(actions).max() <= 1
    actions = actions[:3999]
    assert np.abs(actions.mean(0)).max() < 4 * math.sqrt(1 / 3 / 3999)
    assert np.abs(actions.var(0) - 1 / 3).max() < 4 * math.sqrt(4 / 45 / 3999)
    assert actions.min() < -0.99 and actions.max() > 0.99
    assert abs(np.corrcoef(actions.T)[0, 1]) < 4 / math.sqrt(3999)


@each(*OFF_POLICY)
def test_learning_starts(script, monkeypatch):
    """No update before learning_starts, then one a step, each with a batch of its own that was drawn
    after the step was stored; and a run whose updates never start is refused."""
    batches = record(monkeypatch, script, "update", lambda args, batch, *_, **networks: batch)
    stored(script, "envs:BoxCounter-v0", total_timesteps=80, learning_starts=60, batch_size=7)
    assert len(batches) == 20
    assert {len(field) for batch, _ in batches for field in batch} == {7}
    batches.clear()
    stored(script, "envs:BoxCounter-v0", total_timesteps=3, learning_starts=0, batch_size=7)
    first = batches[0][0]
    assert len(batches) == 3 and first[0].unique().numel() == 1 and (first[2] == 1).all()
    with pytest.raises(gym.error.Error, match="learning_starts"):
        train(script, "envs:BoxCounter-v0", total_timesteps=60, learning_starts=60)


@each("ddpg", "td3")
def test_exploration_noise(script, monkeypatch):
    """[AC-10b] the spread of a − μ(s), per dimension, cut at the bounds; by the policy that moves,
    not its target; P(0.8 + 0.2 z > 1) = P(z > 1) = 0.1587."""
    mean = tensor([0.0, 0.8])
    monkeypatch.setattr(script.Actor, "forward", lambda _, obs: mean.expand(*obs.shape[:-1], 2))
    monkeypatch.setattr(script, "update", lambda *_, **__: {"q_loss": torch.zeros(())})
    settings = dict(total_timesteps=2001, learning_starts=1, exploration_noise=0.2)
    _, actions, *_ = stored(script, "envs:Lopsided-v0", **settings)
    first, second = actions[1:, 0], actions[1:, 1]
    assert abs(first.mean()) < 4 * 0.2 / math.sqrt(2000)
    assert abs(first.std() - 0.2) < 4 * 0.2 / math.sqrt(4000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(2000)
    assert abs((second == 1).mean() - 0.1587) < 4 * math.sqrt(0.1587 * 0.8413 / 2000)


def test_sac_plays_samples(monkeypatch):
    """artanh of the actions is Gaussian with the network's μ and σ: no noise besides, no mode."""

    def forward(_, obs):
        return torch.full((*obs.shape[:-1], 2), 0.4), torch.full((*obs.shape[:-1], 2), -1.0)

    monkeypatch.setattr(sac.Actor, "forward", forward)
    monkeypatch.setattr(sac, "update", lambda *_, **__: {"q_loss": torch.zeros(())})
    _, actions, *_ = stored(sac, "envs:Lopsided-v0", total_timesteps=2001, learning_starts=1)
    u, sigma = np.arctanh(actions[1:]), math.exp(-1)
    assert np.abs(u.mean(0) - 0.4).max() < 4 * sigma / math.sqrt(2000)
    assert np.abs(u.std(0) - sigma).max() < 4 * sigma / math.sqrt(4000)


# ── Updates of ddpg, td3 and sac ──────────────────────────────────────────────────────────────────


OBS, BOX = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (2,))


def started(script, monkeypatch, updates=1, **settings):
    """The named arguments of a run's first updates, copied before each, and what it returned."""
    signature = inspect.signature(script.update)

    def look(*args, **more):
        return copy.deepcopy(signature.bind(*args, **more).arguments)

    calls = record(monkeypatch, script, "update", look)
    settings = {"total_timesteps": 60 + updates, "learning_starts": 60, "gamma": 0.9} | settings
    train(script, "envs:Reach-v0", **settings)
    return calls


@each(*OFF_POLICY)
def test_targets_start_as_copies(script, monkeypatch):
    """Trap 35; and trap 30: each Adam has the learning rate of its own network."""
    ((networks, _),) = started(script, monkeypatch, q_lr=0.03, policy_lr=0.02)
    rates = {name: x.learning_rate.item() for name, x in networks.items() if name.endswith("_adam")}
    expected = {name: 0.02 if name == "actor_adam" else 0.03 for name in rates}
    assert rates == pytest.approx(expected) and len(rates) == (3 if script is sac else 2)
    targets = [name for name in networks if name.startswith("target_")]
    assert len(targets) == (1 if script is sac else 2)
    for name in targets:
        assert not moved(networks[name], networks[name.removeprefix("target_")])
    if script is not ddpg:
        assert moved(*networks["critics"])  # equal ones would stay equal


def q(critic, obs, action):
    """A critic's value, layer by layer."""
    first, _, second, _, third = critic.net
    hidden = torch.cat((obs, action), 1)
    for layer in (first, second):
        hidden = (hidden @ layer.weight.T + layer.bias).clamp(min=0)
    return (hidden @ third.weight.T + third.bias)[:, 0]


def smaller_q(critics, obs, action):
    return torch.stack([q(critic, obs, action) for critic in critics]).min(0).values


def first_update(script, *policy_due, **settings):
    """One update of networks whose targets lag behind them: the networks before it and after it,
    its batch, and what it returns. γ = 0.9, τ = 0.3."""
    names = inspect.signature(script.update).parameters
    networks = {"actor": script.Actor(OBS, BOX), "critic": script.Critic(OBS, BOX)}
    if "critics" in names:
        networks["critics"] = nn.ModuleList([networks.pop("critic"), script.Critic(OBS, BOX)])
    if "log_alpha" in names:
        networks["log_alpha"] = nn.ParameterList([tensor(math.log(0.2))])
    adams = {name.removesuffix("s").removeprefix("log_"): x for name, x in networks.items()}
    adams = {f"{name}_adam": script.Adam(x.parameters(), 0.01) for name, x in adams.items()}
    for name in [name for name in names if name.startswith("target_")]:
        networks[name] = copy.deepcopy(networks[name.removeprefix("target_")])
        for x in networks[name].parameters():
            x.data += 0.03 * torch.randn_like(x)
    before = copy.deepcopy(networks)
    obs, next_obs = torch.randn(2, 16, 3)
    batch = obs, torch.rand(16, 2) * 2 - 1, torch.randn(16), next_obs, torch.rand(16) < 0.3
    args = script.Args(gamma=0.9, tau=0.3, **settings)
    torch.manual_seed(5)
    metrics = script.update(args, batch, *policy_due, **networks, **adams)
    torch.manual_seed(5)  # the test draws the same noise
    return before, networks | adams, batch, metrics


def assert_descent(adam, loss, network, logged=None):
    """Adam got the gradient of this loss, which is logged: its first average is a tenth of it."""
    gradient = parameters_to_vector(torch.autograd.grad(loss, list(network.parameters())))
    torch.testing.assert_close(10 * adam.mean, gradient, rtol=1e-3, atol=1e-5)
    assert logged is None or logged.item() == pytest.approx(loss.item(), rel=1e-4)


def assert_averaged(before, after, *names):
    """[X-POLYAK] the targets have made 0.3 of the way to their networks, which have moved."""
    for name in names:
        target = parameters_to_vector(before[f"target_{name}"].parameters())
        expected = 0.3 * parameters_to_vector(after[name].parameters()) + 0.7 * target
        found = parameters_to_vector(after[f"target_{name}"].parameters())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert moved(before[name], after[name])


def test_one_update_of_ddpg():
    """[X-Q], [CS-10d], [AC-10a], [X-POLYAK], put together from the networks' layers."""
    before, after, (obs, actions, rewards, next_obs, ends), metrics = first_update(ddpg)
    # 5. Critic: the target by the target networks.
    next_actions = torch.tanh(before["target_actor"].net(next_obs))
    next_q = q(before["target_critic"], next_obs, next_actions)
    target_q = torch.where(ends, rewards, rewards + 0.9 * next_q).detach()
    loss = ((q(before["critic"], obs, actions) - target_q) ** 2).mean()
    assert_descent(after["critic_adam"], loss, before["critic"], metrics["q_loss"])
    # 6. Policy: by the critic that has just moved.
    policy_loss = -q(after["critic"], obs, torch.tanh(before["actor"].net(obs))).mean()
    assert_descent(after["actor_adam"], policy_loss, before["actor"], metrics["policy_loss"])
    # 7. Targets.
    assert_averaged(before, after, "critic", "actor")


def test_one_update_of_td3():
    """[AC-11a], [AC-11c], [AC-11d], [CS-10d], [AC-10a], [X-POLYAK], alike."""
    settings = {"policy_noise": 2.0, "noise_clip": 0.9}
    before, after, batch, metrics = first_update(td3, True, **settings)
    obs, actions, rewards, next_obs, ends = batch
    # 5. Critics: the smaller target; the noise reaches beyond the bounds (trap 29).
    noise = (2.0 * torch.randn(16, 2)).clamp(-0.9, 0.9)
    next_actions = (torch.tanh(before["target_actor"].net(next_obs)) + noise).clamp(-1, 1)
    next_q = smaller_q(before["target_critics"], next_obs, next_actions)
    target_q = torch.where(ends, rewards, rewards + 0.9 * next_q).detach()
    loss = sum(((q(x, obs, actions) - target_q) ** 2).mean() for x in before["critics"])
    assert_descent(after["critic_adam"], loss, before["critics"], metrics["q_loss"])
    # 6. Policy: by the first critic alone, which has just moved.
    policy_loss = -q(after["critics"][0], obs, torch.tanh(before["actor"].net(obs))).mean()
    assert_descent(after["actor_adam"], policy_loss, before["actor"])
    # 7. Targets.
    assert_averaged(before, after, "critics", "actor")


def sac_sample(actor, obs):
    """a = tanh u and log π(a|s) for u = μ + σ ε, with the correction in float64."""
    (mean, log_std), noise = actor.net(obs).chunk(2, -1), torch.randn(len(obs), 2)
    u = (mean + log_std.exp() * noise).double()
    log_prob = -(noise**2) / 2 - log_std - math.log(2 * math.pi) / 2
    log_prob = (log_prob - torch.log(1 - torch.tanh(u) ** 2)).sum(1)
    return torch.tanh(u).float(), log_prob.float()


def test_one_update_of_sac():
    """[X-SOFTQ], [CS-10d], [X-JPI], [X-ALPHA], [AC-12a], [AC-12b], [X-POLYAK], alike; α = 0.2,
    which is learned: not the α of the arguments."""
    before, after, batch, metrics = first_update(sac, alpha=9.0)
    obs, actions, rewards, next_obs, ends = batch
    # 5. Critics: the next action by the policy, which has no target network.
    next_actions, log_probs = sac_sample(before["actor"], next_obs)
    next_v = smaller_q(before["target_critics"], next_obs, next_actions) - 0.2 * log_probs
    target_q = torch.where(ends, rewards, rewards + 0.9 * next_v).detach()
    loss = sum(((q(x, obs, actions) - target_q) ** 2).mean() for x in before["critics"])
    assert_descent(after["critic_adam"], loss, before["critics"], metrics["q_loss"])
    # 6. Policy: by the critics that have just moved.
    new_actions, log_probs = sac_sample(before["actor"], obs)
    policy_loss = (0.2 * log_probs - smaller_q(after["critics"], obs, new_actions)).mean()
    assert_descent(after["actor_adam"], policy_loss, before["actor"], metrics["policy_loss"])
    assert metrics["entropy"].item() == pytest.approx(-log_probs.mean().item(), rel=1e-4)
    # 7. Temperature: d/d log α of −α (log π + H̄), with H̄ = −2 for two actions in [−1, 1] (trap 32).
    slope = -0.2 * (log_probs.mean().item() - 2)
    assert after["alpha_adam"].mean.item() == pytest.approx(0.1 * slope, rel=1e-3)
    alpha = after["log_alpha"][0].exp().item()
    assert (alpha < 0.2) == (slope > 0) and alpha != pytest.approx(0.2, abs=1e-4)
    # 8. Targets.
    assert_averaged(before, after, "critics")


@each(*OFF_POLICY)
def test_delayed_updates(script, monkeypatch):
    """[AC-11b] in td3 the policy and all targets move in every third update only, where
    policy_frequency is 3; in ddpg and sac in each. The critics move in each, and nothing else
    moves a policy."""
    more = dict(policy_frequency=3) if script is td3 else {}
    calls = started(script, monkeypatch, updates=7, **more)
    for i, ((before, _), (after, _)) in enumerate(zip(calls, calls[1:]), start=1):
        for name in before:
            if name.removeprefix("target_") in ("actor", "critic", "critics"):
                due = script is not td3 or name == "critics" or i % 3 == 0
                assert moved(before[name], after[name]) == due, (i, name)


@each(*OFF_POLICY)
def test_logged_values_are_means(script, monkeypatch):
    """Trap 16: a row has the means over the updates since the row before, at ends of episodes and
    at the end of the run, which is here inside an episode."""
    calls = started(script, monkeypatch, updates=42)
    rows, start = table(only_folder(Path.cwd()) / "updates.csv"), 60
    assert len(rows) > 3
    for row in rows:
        metrics = [result for _, result in calls[start - 60 : int(row["step"]) - 60]]
        for name in row.keys() - {"step", "seconds"}:
            values = [x[name].item() for x in metrics if name in x]
            assert row[name] == pytest.approx(np.mean(values), rel=1e-4)
        start = int(row["step"])
    assert start == 60 + 42


@each(*OFF_POLICY)
def test_an_episode_without_end_has_rows(script):
    """One every 10,000 steps, and one at the end."""
    settings = dict(total_timesteps=10_020, learning_starts=9_990, buffer_size=20_000)
    rows = table(train(script, "envs:BoxEndless-v0", **settings) / "updates.csv")
    assert [row["step"] for row in rows] == [10_000, 10_020]


def test_fixed_temperature():
    """Without autotune, α is the flag, not the one with which the run began."""
    folder = train(sac, "Pendulum-v1", alpha=0.7, autotune=False)
    train(sac, "Pendulum-v1", alpha=0.5, autotune=False, total_timesteps=400, resume=folder)
    alphas = [row["alpha"] for row in table(folder / "updates.csv")]
    assert alphas == pytest.approx([0.7, 0.5, 0.5])
    assert state_of(folder)["log_alpha"]["0"].item() == pytest.approx(math.log(0.7))
