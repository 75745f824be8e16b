"""Proximal Policy Optimization (PPO) with the clipped surrogate objective; Schulman et al. 2017.

Changed from a2c.py: gae replaces n_step_advantages, and clipped_surrogate the policy gradient. Many
minibatches per rollout; --compile turns their update into one graph. torchrun: several processes.

Idea
    A policy gradient is only valid near the policy that collected the data: a large step can ruin
    the policy, and with it the next rollout. PPO takes many small steps on each rollout, and gives
    them no reason to go far: once a sample's probability ratio has left [1−ε, 1+ε] in the direction
    that its advantage favours, its gradient is zero.

Equations, in the order of the code
    [CS-3a]    J(θ) = E_τ[Σ_t γ^t r_t]   the objective, to be maximised
    [AC-02b]   a ∼ N(μ_θ(s), σ²I)   for Box actions; here σ is a vector, the same in all states
    [AC-02a]   π_θ(a|s) = softmax(f_θ(s))_a   for discrete actions
    [CS-10b]   δ_t = r_t + γ V(s_{t+1}) − V(s_t)   with V(s_{t+1}) = 0 if s_{t+1} is terminal
    [X-GAE]    Â_t = Σ_l (γλ)^l δ_{t+l}
    [AC-08b]   r_t(θ) = π_θ(a_t|s_t) / π_old(a_t|s_t)   the probability ratio, not the reward
    [AC-09b]   L_CLIP = E_t[min(r_t A_t, clip(r_t, 1−ε, 1+ε) A_t)]
    [X-VF]     L_VF = (V_w(s_t) − V_t^target)²   with V_t^target = Â_t + V(s_t)
    [CS-8.1a]  J_ent = J + β E_s[H(π(·|s))]   β is c₂ of the next line
    [AC-09c]   L = L_CLIP − c₁ L_VF + c₂ H   to be maximised over θ and w

Algorithm [AC-09d]
    1. initialise the policy θ and the critic w
    2. run π_old = π_θ for T steps in each of N environments
    3. for all T·N samples: log π_old(a|s), V_old(s) and the value targets
    4. K times: advantages Â by GAE with the current critic (in the text: once, with V_old)
    5.     shuffle the T·N samples into minibatches; one Adam step up L for each
    6. discard the rollout and go to 2

Not in the text [impl]; benchmarks.md measures most of it
    [impl 1] observations standardised by running statistics, clipped to ±10  Andrychowicz 2021, 3.3
    [impl 2] orthogonal weights; last layer × 0.01, critic's × 0 (ours)    Andrychowicz 2021, 3.2
    [impl 3] initial σ = e^−0.5, in units of half the action range         tianshou, examples/mujoco
    [impl 4] values standardised by running statistics, L_VF in their unit  PopArt, van Hasselt 2016
    [impl 5] bootstrap from V(s') at time limits                           Pardo 2018
    [impl 6] first episodes cut short; else all environments end theirs together
    [impl 7] advantages (not the value targets) recomputed in every epoch  Andrychowicz 2021, 3.5
    [impl 8] advantages standardised in each minibatch                     OpenAI Baselines, ppo2
    [impl 9] Adam with ε = 1e-5, annealed rate, clipped norm of gradient   OpenAI Baselines, ppo2

Run: python ppo.py --env-id HalfCheetah-v4
    evaluated 6,498 ± 515 after 1,000,000 steps (5 seeds, see benchmarks.md)
"""

import contextlib
import functools
import json
import math
import os
import random
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, distributed, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from tqdm import tqdm


# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Args:
    env_id: str = "HalfCheetah-v4"  # Gymnasium id, or module:id
    total_timesteps: int = 1_000_000  # environment steps in total; with --resume, 0 only evaluates
    seed: int = 1  # seed of the weights, the actions and the environments
    # Algorithm
    learning_rate: float = 5e-4  # initial learning rate of Adam
    num_envs: int = 64  # N, environments of all processes together
    num_steps: int = 32  # T, steps in each environment per rollout
    stagger: bool = True  # cut the first episodes by an early reset(), which some simulators refuse
    anneal_lr: bool = True  # anneal the learning rate linearly to 0 over total_timesteps
    gamma: float = 0.995  # γ, discount factor [CS-3a]
    gae_lambda: float = 0.97  # λ, decay of the weight of later TD errors [X-GAE]
    num_minibatches: int = 32  # minibatches per epoch; the defaults make them 64 samples each
    update_epochs: int = 10  # K, epochs over each rollout [AC-09d]
    norm_adv: bool = True  # standardise the advantages of each minibatch
    clip_coef: float = 0.2  # ε, the ratio is clipped to 1 ± ε [AC-09b]
    ent_coef: float = 0.0  # c₂ = β, weight of the entropy bonus [AC-09c]
    vf_coef: float = 0.25  # c₁, weight of the value loss, which has no factor ½ here [AC-09c]
    max_grad_norm: float = 0.5  # clip the norm of the joint gradient of θ and w to this
    target_kl: float | None = None  # no further epoch once KL(π_old ‖ π_θ) exceeds this
    compile: bool = False  # compile the update into one graph: slow start, faster updates
    # Run
    cuda: bool = False  # use the GPU; it pays only if updates take most of the time
    num_threads: int = 1  # PyTorch's CPU threads
    track: bool = False  # also log to Weights & Biases, set up by WANDB_PROJECT, WANDB_MODE, ...
    capture_video: bool = False  # record the evaluation episodes as MP4 files
    eval_episodes: int = 10  # episodes of the deterministic evaluation at the end
    save_every: float = 60.0  # seconds between checkpoints, written after updates or episodes
    resume: Path | None = None  # continue the run in this folder; flags given here override its own


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────
class Actor(nn.Module):
    """π_θ(a|s): a softmax for each entry of a discrete action, a diagonal Gaussian for a Box.

    [impl 3] The Gaussian is in units of half the action range, or of 1 where a bound is infinite.
    log_prob is that of the unclipped sample; only `to_env` clips.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        self.space = action_space
        self.continuous = isinstance(action_space, gym.spaces.Box)
        if self.continuous and action_space.dtype.kind == "f":
            low, high = action_space.low, action_space.high
            bounded = np.isfinite(high - low)
            self.unit = np.where(bounded, (high - low) / 2, 1)
            self.middle = np.where(bounded, low + self.unit, np.clip(0, low, high))
            self.log_std = nn.Parameter(torch.full(low.shape, -0.5))  # log σ, the same for all s
            outputs = low.size
        else:  # one row of logits per entry, padded to the longest; -1e9 masks the padding
            choices = torch.as_tensor(choices_of(action_space))
            padding = torch.arange(choices.max()) >= choices.unsqueeze(-1)
            self.register_buffer("mask", torch.where(padding, -1e9, 0.0))  # (*shape, max(choices))
            outputs = self.mask.numel()
        self.obs_norm = RunningNorm(observation_space.shape)
        self.net = mlp(observation_space.shape[0], outputs, output_gain=0.01)

    def forward(self, obs: Tensor) -> Distribution:
        """obs (..., O) → the distribution of actions; its log_prob and entropy are (...,)."""
        output = self.net(self.obs_norm(obs))  # (..., outputs)
        if self.continuous:
            mean = output.reshape(output.shape[:-1] + self.log_std.shape)
            dist = Normal(mean, self.log_std.exp(), validate_args=False)  # [AC-02b]
        else:
            logits = output.reshape(output.shape[:-1] + self.mask.shape) + self.mask
            dist = Categorical(logits=logits, validate_args=False)  # [AC-02a]
        # Sum log-probabilities over action dimensions: (B, A) → (B,).
        return Independent(dist, len(self.space.shape), validate_args=False)

    def to_env(self, action: Tensor) -> np.ndarray:
        """A sample of the distribution → the action that env.step expects."""
        action = action.numpy(force=True)
        if self.continuous:
            action = (self.middle + self.unit * action).clip(self.space.low, self.space.high)
        else:
            action = action + getattr(self.space, "start", 0)
        return action.astype(self.space.dtype)

    @torch.no_grad()
    def mode(self, obs: np.ndarray) -> np.ndarray:
        """obs (..., O) → the most probable action, as env.step expects it."""
        obs = torch.as_tensor(obs, device=self.obs_norm.mean.device)
        return self.to_env(self(obs).mode)


class Critic(nn.Module):
    """V_w(s), in units of the rewards; the network predicts standardised values [impl 4]."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__()
        self.obs_norm = RunningNorm(observation_space.shape)
        self.return_norm = RunningNorm((), min_std=1e-8)  # smaller, because rewards may be small
        # [impl 2] V_w = 0 at first, so that the first value targets come from the rewards alone.
        self.net = mlp(observation_space.shape[0], 1, output_gain=0.0)

    def forward(self, obs: Tensor) -> Tensor:
        """obs (..., O) → values (...,)."""
        output = self.net(self.obs_norm(obs)).squeeze(-1)
        return self.return_norm.mean + self.return_norm.std * output

    @torch.no_grad()
    def update_return_norm(self, targets: Tensor) -> None:
        """PopArt: updates the statistics; rescales the last layer so that V_w does not change."""
        norm, last = self.return_norm, self.net[-1]
        mean, std = norm.mean.clone(), norm.std.clone()
        is_first = norm.count == 0
        norm.update(targets)
        if not is_first:  # at first there is no V_w worth keeping
            last.weight.mul_(std / norm.std)
            last.bias.copy_((mean + std * last.bias - norm.mean) / norm.std)


def choices_of(space: gym.Space) -> np.ndarray:
    """The number of values of each entry of a discrete action, in the shape of the action."""
    if isinstance(space, gym.spaces.Discrete):
        return np.array(space.n)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.nvec
    if isinstance(space, gym.spaces.MultiBinary):
        return np.full(space.shape, 2)
    raise gym.error.Error(f"cannot choose actions from {space}")


def mlp(inputs: int, outputs: int, output_gain: float) -> nn.Sequential:
    """Two hidden layers of 64 tanh units; orthogonal weights, zero biases [impl 2]."""
    layers = [nn.Linear(inputs, 64), nn.Linear(64, 64), nn.Linear(64, outputs)]
    for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), output_gain)):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class RunningNorm(nn.Module):
    """Standardises by the mean and std of all samples that `update` has seen, clipped to ±10."""

    def __init__(self, shape: tuple, min_std: float = 1e-4) -> None:
        super().__init__()
        self.min_std = min_std
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).clamp(-10, 10)

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Merges the mean and std of a batch (B, *shape) with those of all samples before."""
        self.count += len(batch)
        share = (len(batch) / self.count).float()  # the batch's share of all samples
        mean = batch.mean(0)
        within = share * batch.var(0, correction=0) + (1 - share) * self.std**2
        between = share * (1 - share) * (mean - self.mean) ** 2  # variance between the two means
        self.mean.lerp_(mean, share)
        self.std.copy_((within + between).sqrt().clamp(min=self.min_std))


# ── Equations ─────────────────────────────────────────────────────────────────────────────────────
def gae(rewards, values, next_values, terminations, truncations, gamma, gae_lambda) -> Tensor:
    """Â_t = Σ_l (γλ)^l δ_{t+l}  [X-GAE]

    All (T, N) → (T, N), by Â_t = δ_t + γλ Â_{t+1}. The recursion starts from 0 at the end of the
    rollout, and restarts at the end of every episode, terminated or truncated.
    """
    assert rewards.shape == values.shape == next_values.shape == terminations.shape
    assert truncations.shape == terminations.shape
    # V(s') = 0 only if terminated; a time limit still bootstraps.
    td_errors = rewards + gamma * ~terminations * next_values - values  # δ [CS-10b]
    traces = gamma * gae_lambda * ~(terminations | truncations)
    td_errors, traces = td_errors.numpy(force=True), traces.numpy(force=True)  # faster in NumPy
    advantages, advantage = np.empty_like(td_errors), 0.0
    for t in reversed(range(len(td_errors))):
        advantages[t] = advantage = td_errors[t] + traces[t] * advantage  # [X-GAE]
    return torch.as_tensor(advantages, device=rewards.device)


def clipped_surrogate(log_probs, old_log_probs, advantages, clip_coef) -> Tensor:
    """L_CLIP = E_t[min(r_t A_t, clip(r_t, 1−ε, 1+ε) A_t)]  [AC-09b]; all of one shape → scalar."""
    assert log_probs.shape == old_log_probs.shape == advantages.shape
    ratio = (log_probs - old_log_probs).exp()  # [AC-08b]
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return torch.minimum(ratio * advantages, clipped_ratio * advantages).mean()  # [AC-09b]


def ppo_objective(actor, critic, observations, actions, old_log_probs, advantages, targets, args):
    """L = L_CLIP − c₁ L_VF + c₂ H  [AC-09c]; all (B, ...) → the scalar L, and its terms."""
    if args.norm_adv and len(advantages) > 1:  # the std of a single number is NaN
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)  # [impl 8]
    dist = actor(observations)
    surrogate = clipped_surrogate(dist.log_prob(actions), old_log_probs, advantages, args.clip_coef)
    # [impl 4] In units of the targets' std, so that c₁ does not depend on the scale of the rewards.
    value_errors = (critic(observations) - targets) / critic.return_norm.std
    value_loss = (value_errors**2).mean()  # [X-VF]
    entropy = dist.entropy().mean()  # H [CS-8.1a]
    objective = surrogate - args.vf_coef * value_loss + args.ent_coef * entropy  # [AC-09c]
    return objective, dict(clipped_surrogate=surrogate, value_loss=value_loss, entropy=entropy)


def approximate_kl(log_ratio) -> Tensor:
    """KL(π_old ‖ π_θ) ≈ E[ratio − 1 − log ratio] → scalar; see joschu.net/blog/kl-approx.html"""
    return (torch.expm1(log_ratio) - log_ratio).mean()


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────
def rollout(envs: list[gym.Env], obs: np.ndarray, actor: Actor, T: int) -> tuple:
    """Acts for T steps in each of N environments, starting from obs (N, O).

    Returns the last obs, the statistics of the episodes that ended, and (T, N, ...): observations,
    actions, rewards, next_observations, terminations, truncations.
    """
    device = next(actor.parameters()).device
    steps, episodes = [], []
    for _ in range(T):
        with torch.inference_mode():
            action = actor(torch.as_tensor(obs, device=device)).sample()  # (N, ...)
        transitions = zip(*(env.step(a) for env, a in zip(envs, actor.to_env(action))))
        next_obs, reward, terminated, truncated, infos = map(np.array, transitions)
        reward = reward.astype(np.float32)
        steps.append((obs, action.numpy(force=True), reward, next_obs, terminated, truncated))
        obs = next_obs.copy()
        for n in np.flatnonzero(terminated | truncated):
            # next_obs is the true successor, even when the env has just been reset. [impl 5]
            obs[n], _ = envs[n].reset()
            episodes.append(infos[n].pop("_episode"))
    return obs, episodes, *(torch.as_tensor(np.stack(x), device=device) for x in zip(*steps))


def train(args: Args) -> Path | None:
    """Trains, saves and evaluates; returns the run's folder, on rank 0."""
    rank = int(os.environ.get("RANK", 0))  # set by torchrun, like WORLD_SIZE
    W = int(os.environ.get("WORLD_SIZE", 1))  # processes
    T, N = args.num_steps, args.num_envs
    if args.num_minibatches > T * N:
        raise gym.error.Error("num_minibatches must be at most num_steps * num_envs")
    if N % W:
        raise gym.error.Error(f"{W} processes cannot share {N} environments evenly")
    device = set_up(args, args.cuda)
    envs = [make_env(args.env_id) for _ in range(N // W)]

    # 1. Initialise the policy θ and the critic w.
    actor = Actor(envs[0].observation_space, envs[0].action_space).to(device)
    critic = Critic(envs[0].observation_space).to(device)
    parameters = [*actor.parameters(), *critic.parameters()]
    adam = Adam(parameters, args.learning_rate).to(device)

    if W > 1:
        distributed.init_process_group("gloo")
    run = Run(args, envs, actor=actor, critic=critic, adam=adam) if rank == 0 else None
    step = from_rank_0(run.step if run else None)
    step_up = compiled(update, args.cuda) if args.compile else update
    seed = 10**6 * args.seed + step + rank * len(envs)  # a resumed run has other episodes
    random.seed(seed)  # as in set_up, but other numbers in each process and resumed run
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    obs = np.stack([env.reset(seed=seed + n)[0] for n, env in enumerate(envs)])  # (N, O)
    rollouts = 0
    while step < args.total_timesteps:  # [AC-09d]
        lr_fraction = 1 - step / args.total_timesteps if args.anneal_lr else 1.0
        adam.learning_rate.fill_(args.learning_rate * lr_fraction)  # [impl 9]

        # 2. Run π_old = π_θ for T steps in each of N environments.
        obs, episodes, *samples = rollout_of_all(envs, obs, actor, T)
        observations, actions, rewards, next_observations, terminations, truncations = samples
        step += T * N
        # [impl 6] Reset one environment after each of the first rollouts. Otherwise the episodes of
        # all environments would keep ending at the same step.
        rollouts += 1
        if args.stagger and rollouts < len(envs):
            obs[rollouts], _ = envs[rollouts].reset()
        if rank > 0:  # only rank 0 learns
            continue

        # 3. For all T·N samples: log π_old(a|s), V_old(s) and the value targets.
        # The target is a constant: no gradient flows through it.
        with torch.no_grad():
            old_log_probs = actor(observations).log_prob(actions)  # (T, N)
            values, next_values = critic(observations), critic(next_observations)  # (T, N)
            advantages = gae(
                rewards, values, next_values, terminations, truncations, args.gamma, args.gae_lambda
            )
            targets = advantages + values
        variance = targets.var(correction=0)
        explained_variance = 1 - advantages.var(correction=0) / variance.clamp(min=1e-20)
        # [impl 4] Update the critic's statistics before its training, which fits the new scale.
        critic.obs_norm.update(observations.flatten(0, 1))
        critic.update_return_norm(targets.flatten())

        @torch.no_grad()
        def log_ratio() -> Tensor:
            return actor(observations).log_prob(actions) - old_log_probs  # (T, N)

        losses = []
        for _ in range(args.update_epochs):
            # 4. Advantages Â by GAE with the current critic [impl 7].
            with torch.no_grad():
                values, next_values = critic(observations), critic(next_observations)  # (T, N)
            advantages = gae(
                rewards, values, next_values, terminations, truncations, args.gamma, args.gae_lambda
            )

            # 5. Shuffle the T·N samples into minibatches; one Adam step up L for each.
            order = torch.randperm(T * N, device=device)
            samples = observations, actions, old_log_probs, advantages, targets
            shuffled = (x.flatten(0, 1)[order].tensor_split(args.num_minibatches) for x in samples)
            for minibatch in zip(*shuffled):
                metrics = step_up(args, minibatch, actor, critic, adam)
                losses.append(torch.stack([*metrics.values()]))

            if args.target_kl is not None and approximate_kl(log_ratio()) > args.target_kl:
                break

        # 6. Discard the rollout. [impl 1] Update the actor's statistics only now; before step 5
        # that would change π_θ, and the ratio would not start at 1.
        final_log_ratio = log_ratio()
        actor.obs_norm.update(observations.flatten(0, 1))
        for episode in episodes:
            run.log("episodes", step, episode_return=episode["r"], length=episode["l"])
        metrics = dict(zip(metrics, torch.stack(losses).mean(0)))  # means over all minibatches
        metrics["approx_kl"] = approximate_kl(final_log_ratio)
        clipped = (final_log_ratio.exp() - 1).abs() > args.clip_coef
        metrics["clip_fraction"] = clipped.float().mean()
        run.log("updates", step, **metrics, explained_variance=explained_variance)
        run.save(step)
    if W > 1:
        distributed.destroy_process_group()
    if run:
        return run.finish(step, actor)
    for env in envs:
        env.close()


def update(args, minibatch, actor, critic, adam) -> dict[str, Tensor]:
    """One Adam step up L, with the gradient clipped; returns the metrics."""
    objective, metrics = ppo_objective(actor, critic, *minibatch, args)
    # Ascent on the objective = descent on its negative.
    metrics["grad_norm"] = adam.step(-objective, args.max_grad_norm)
    return {name: x.detach() for name, x in metrics.items()}


# ── Several processes ─────────────────────────────────────────────────────────────────────────────
def from_rank_0(value):
    """The value of rank 0, in every process of torchrun."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def rollout_of_all(envs: list[gym.Env], obs: np.ndarray, actor: Actor, T: int) -> tuple:
    """`rollout` in every process with the policy of rank 0, which also gets the others' samples."""
    if not distributed.is_initialized():
        return rollout(envs, obs, actor, T)
    actor.load_state_dict(from_rank_0(actor.state_dict()))
    obs, *own = rollout(envs, obs, actor, T)
    rollouts = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(own, rollouts)
    if rollouts is None:
        return obs, *own
    episodes, *samples = zip(*rollouts)
    return obs, sum(episodes, []), *(torch.cat(x, dim=1) for x in samples)


# ── One compiled graph ────────────────────────────────────────────────────────────────────────────
class Adam(nn.Module):
    """Adam (Kingma 2015) on a flat vector (d,); torch.optim.Adam would split the compiled graph."""

    def __init__(self, parameters, learning_rate: float) -> None:
        super().__init__()
        self.theta = tuple(parameters)  # a plain tuple: not registered here as well
        self.sizes = [x.numel() for x in self.theta]
        # Not persistent: a resumed run takes the learning rate of its arguments.
        self.register_buffer("learning_rate", torch.tensor(learning_rate), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(sum(self.sizes)))
        self.register_buffer("square", torch.zeros(sum(self.sizes)))

    @torch.no_grad()
    def step(self, loss: Tensor, max_norm: float) -> Tensor:
        """Moves θ, w down the loss's gradient, its norm clipped to max_norm; returns that norm."""
        gradient = torch.cat([x.flatten() for x in torch.autograd.grad(loss, self.theta)])  # (d,)
        norm = gradient.norm()
        gradient *= (max_norm / norm).clamp(max=1)
        self.steps += 1
        self.mean.lerp_(gradient, 1 - 0.9)  # β₁ = 0.9
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)  # β₂ = 0.999
        root = (self.square / (1 - 0.999**self.steps)).sqrt_().add_(1e-5)  # ε [impl 9]
        change = self.mean / root
        change *= self.learning_rate / (1 - 0.9**self.steps)
        parts = zip(self.theta, change.split(self.sizes))
        torch._foreach_sub_(self.theta, [part.view_as(x) for x, part in parts])
        return norm


def compiled(update, cuda: bool):
    """Compiles `update` into one graph, which draws the random numbers of the eager function."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    with explained("--compile"):
        get_cpp_compiler()  # fails here, before training, if there is none
    torch._dynamo.config.trace_autograd_ops = True  # else torch.autograd.grad splits the graph
    options = (
        {"triton.cudagraphs": True} if cuda else {"cpp_wrapper": True}
    )  # less overhead per call
    return torch.compile(update, options=options | {"fallback_random": True})


# ── Plumbing: the same text in every script ───────────────────────────────────────────────────────
def set_up(args: Args, cuda: bool = False) -> torch.device:
    """Checks the sizes, seeds the global generators, sets the threads; returns the device."""
    for name, value in asdict(args).items():
        may_be_0 = name in ("total_timesteps", "seed", "learning_starts", "eval_episodes")
        least = 1 if type(value) is int and not may_be_0 else 0
        if type(value) in (int, float) and not value >= least:
            raise gym.error.Error(f"--{name.replace('_', '-')} has to be at least {least}")
    if cuda and not torch.cuda.is_available():
        raise gym.error.Error("--cuda: PyTorch finds no GPU")
    random.seed(args.seed)  # for environments that draw from these two
    np.random.seed(args.seed % 2**32)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    return torch.device("cuda" if cuda else "cpu")


@contextlib.contextmanager
def explained(what: str):
    """Turns any error in its block into one line that says what could not be done."""
    try:
        yield
    except Exception as error:
        raise gym.error.Error(f"{what}: {' '.join(str(error).split())}") from error


class Boundary(gym.Wrapper):
    """Observations as float32, rewards as float, ends as bool; raises on a NaN or an infinity."""

    def reset(self, **options) -> tuple:
        obs, info = self.env.reset(**options)
        return self.finite(obs, np.zeros(())), info

    def step(self, action: np.ndarray) -> tuple:
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = np.asarray(reward, float)
        obs = self.finite(obs, reward)
        return obs, reward.item(), bool(terminated), bool(truncated), info

    def finite(self, obs: np.ndarray, reward: np.ndarray) -> np.ndarray:
        obs = np.asarray(obs, np.float32)
        if reward.size > 1 or not (np.isfinite(obs).all() and math.isfinite(reward.item())):
            where = f"step {self.get_wrapper_attr('_elapsed_steps')} of an episode"
            values = f"observation {obs.tolist()}, reward {reward.tolist()}"
            raise FloatingPointError(f"not finite, or several rewards, in {where}: {values}")
        return obs


def make_env(env_id: str, video_folder: Path | None = None) -> gym.Env:
    """One environment with flat float32 observations; it records its episodes in video_folder."""
    options = {"render_mode": "rgb_array"} if video_folder else {}
    mujoco = sys.modules.get("mujoco")  # each of its warnings once, not for each environment
    if mujoco and not mujoco.get_mju_user_warning():
        mujoco.set_mju_user_warning(functools.cache(print))
    env = gym.make(env_id, **options)
    with explained(f"cannot flatten the observations {env.observation_space}"):
        size = gym.spaces.flatdim(env.observation_space)
    if video_folder:
        env.reset()
        env.render()  # fails here, before training, if the environment cannot render
        env = gym.wrappers.RecordVideo(env, str(video_folder), episode_trigger=lambda _: True)
    env = gym.wrappers.TimeLimit(env, 100_000)  # for an environment that has no limit of its own
    env = Boundary(gym.wrappers.FlattenObservation(env))
    env.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
    env.action_space.seed(random.getrandbits(32))  # for an environment that samples actions
    return gym.wrappers.RecordEpisodeStatistics(env, stats_key="_episode")


def evaluate(actor: nn.Module, env: gym.Env, episodes: int, seed: int) -> list[float]:
    """The returns of some episodes with the actor's deterministic actions."""
    returns = []
    for _ in tqdm(range(episodes), "evaluation", leave=False, disable=None):
        obs, info = env.reset(seed=None if returns else seed)
        while "_episode" not in info:  # it comes with the last step of an episode
            obs, *_, info = env.step(actor.mode(obs))
        returns.append(float(info.pop("_episode")["r"]))  # pop: the next info may be this dict
    return returns


class Run:
    """A run's folder: args.json, episodes.csv, updates.csv, checkpoint.pt, summary.json.

    A killed run loses at most `save_every` seconds and the unfinished episode, batch or rollout.
    After --resume, a2c, a3c, trpo and ppo start new episodes. The rest, saved at an episode's end,
    give an uninterrupted run's numbers, on the CPU, if the environment draws from np_random only.
    """

    def __init__(self, args: Args, envs: list[gym.Env], **state) -> None:
        self.args, self.envs, self.state = args, envs, state
        self.step, self.returns = 0, deque(maxlen=100)
        self.start = self.saved_at = time.time()
        self.only_evaluates = args.resume is not None and args.total_timesteps == 0
        script = Path(globals().get("__file__", "notebook.py")).stem
        name = f"{args.env_id}__{script}__{args.seed}__{time.time_ns()}"
        self.folder = Path(args.resume or Path("runs", name.replace("/", "-").replace(":", "-")))
        self.eval_env = args.capture_video and make_env(args.env_id, self.folder / "videos")
        if args.resume:
            with explained(f"cannot continue from {self.folder / 'checkpoint.pt'}"):
                self.load(torch.load(self.folder / "checkpoint.pt", "cpu", weights_only=True))
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.save(0, now=True)
        if not self.only_evaluates:
            content = {"script": script, "args": asdict(args) | {"resume": None}}
            content["versions"] = {x.__name__: x.__version__ for x in (torch, gym, np)}
            (self.folder / "args.json").write_text(json.dumps(content, indent=2))
        self.wandb = None
        if args.track and not self.only_evaluates:
            import wandb

            name, config = self.folder.resolve().name, asdict(args)
            with explained("Weights & Biases"):
                self.wandb = wandb.init(
                    id=name, name=name, dir=self.folder, config=config, resume="allow"
                )
            self.wandb.define_metric("*", step_metric="step")
        print(
            f"{script}.py on {args.env_id}, seed {args.seed}. To continue: --resume {self.folder}"
        )
        total = max(args.total_timesteps, self.step)
        self.bar = tqdm(total=total, initial=self.step, unit_scale=True, mininterval=1, leave=False)

    def log(self, table: str, step: int, **metrics: Tensor | float) -> None:
        """Adds a row to episodes.csv or updates.csv, and to W&B; raises on a NaN or an infinity."""
        row = {"step": step, "seconds": round(time.time() - self.start, 3)}
        row |= {name: float(x) for name, x in metrics.items()}
        if broken := {name: x for name, x in row.items() if not math.isfinite(x)}:
            raise FloatingPointError(f"not finite at step {step}: {broken}")
        with open(self.folder / f"{table}.csv", "a") as file:
            if file.tell() == 0:
                print(*row, sep=",", file=file)
            print(*row.values(), sep=",", file=file)
        if self.wandb:
            self.wandb.log({"step": step} | {f"{table}/{name}": x for name, x in row.items()})
        if table == "episodes":
            self.returns.append(row["episode_return"])
            self.bar.set_postfix_str(f"return {np.mean(self.returns):,.5g}", refresh=False)
        self.bar.update(min(step, self.bar.total) - self.bar.n)

    def save(self, step: int, now: bool = False) -> None:
        """Replaces checkpoint.pt if it is more than `save_every` seconds old, or `now`."""
        if not now and time.time() - self.saved_at < self.args.save_every:
            return
        checkpoint = dict(step=step, seconds=time.time() - self.start, returns=[*self.returns])
        checkpoint["state"] = {name: part.state_dict() for name, part in self.state.items()}
        checkpoint["csv_sizes"] = {x.name: x.stat().st_size for x in self.folder.glob("*.csv")}
        checkpoint["random"] = torch.get_rng_state()
        generators = [getattr(x.unwrapped.np_random, "bit_generator", None) for x in self.envs]
        states = [generator and generator.state for generator in generators]
        checkpoint["env_random"] = json.dumps(states, default=np.ndarray.tolist)
        with explained(f"cannot write a checkpoint to {self.folder}; disk full?"):
            torch.save(checkpoint, self.folder / "checkpoint.tmp")
            os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")
        self.saved_at = time.time()

    def load(self, checkpoint: dict) -> None:
        """Goes back to a checkpoint, and cuts the CSV files to the sizes they had then."""
        for name, part in self.state.items():
            part.load_state_dict(checkpoint["state"][name])
        torch.set_rng_state(checkpoint["random"])
        self.step, self.start = checkpoint["step"], time.time() - checkpoint["seconds"]
        self.returns.extend(checkpoint["returns"])
        for env, state in zip(self.envs, json.loads(checkpoint["env_random"])):
            env.reset(seed=10**6 * self.args.seed + self.step)  # a new episode, new random numbers
            if state:  # here instead those that an uninterrupted run would draw
                env.unwrapped.np_random.bit_generator.state = state
        for table in ("episodes.csv", "updates.csv") if not self.only_evaluates else ():
            with open(self.folder / table, "a") as file:
                file.truncate(min(file.tell(), checkpoint["csv_sizes"].get(table, 0)))

    def finish(self, step: int, actor: nn.Module) -> Path:
        """Saves and evaluates; writes and prints the summary; returns the run's folder."""
        self.bar.close()
        if step > self.step:
            self.save(step, now=True)
        summary = {"step": step, "seconds": round(time.time() - self.start, 3)}
        for env in self.envs:
            with contextlib.suppress(Exception):  # if a simulator has crashed, still evaluate
                env.close()
        env = self.eval_env or make_env(self.args.env_id)
        seed = 10**6 * self.args.seed + 999_999  # one that a fresh run does not use in training
        returns = evaluate(actor, env, self.args.eval_episodes, seed)
        means = dict(training_return=self.returns, evaluation_return=returns)
        summary |= {name: float(np.mean(values)) for name, values in means.items() if values}
        print(", ".join(f"{name} {x:,.7g}" for name, x in summary.items()))
        if not self.only_evaluates:
            content = summary | {"evaluation_returns": returns}
            (self.folder / "summary.json").write_text(json.dumps(content, indent=2))
        if self.wandb:
            self.wandb.summary.update(summary)
            self.wandb.finish()
        env.close()  # completes the last video
        return self.folder


if __name__ == "__main__" and "__file__" in globals():  # and not in a cell of a notebook
    sys.path.append("")  # finds module:Id in the current folder as well
    args = tyro.cli(Args, description=__doc__.split("\n")[0])
    try:
        if args.resume:  # the run's own arguments become the defaults
            with explained(f"cannot continue from {args.resume / 'args.json'}"):
                stored = json.loads((args.resume / "args.json").read_text())
                assert stored["script"] == Path(__file__).stem, f"a run of {stored['script']}.py"
                default = Args(**stored["args"])
            args = tyro.cli(Args, default=default)
        train(args)
    except (KeyboardInterrupt, gym.error.Error, FloatingPointError, OSError, ImportError) as error:
        sys.exit(f"\n{type(error).__name__}: {error}")
