"""Advantage Actor-Critic (A2C), the synchronous form of A3C; Mnih et al. 2016.

Idea
    A critic V_w learns what to expect from a state; the actor π_θ is moved by how much better or
    worse than that it went. A few steps in each of many environments make a batch whose samples
    have little to do with each other, so no replay is needed, and no episode has to end first:
    where the rollout stops, the critic says what would have followed.

Equations, in the order of the code
    [CS-3a]    J(θ) = E_τ[Σ_t γ^t r_t]   the objective, to be maximised
    [AC-02a]   π_θ(a|s) = softmax(f_θ(s))_a   for Discrete actions
    [AC-02b]   a ∼ N(μ_θ(s), σ²I)   for Box actions; here σ is a vector, the same in all states
    [CS-5.4a]  ∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]
    [CS-9g]    ∇J = E[∇log π A]   with A = Q − V [CS-9f]: subtracting V costs no bias [CS-9b]
    [CS-10b]   δ_t = r_t + γ V(s_{t+1}) − V(s_t)   with V(s_{t+1}) = 0 if s_{t+1} is terminal
    [AC-07a]   Â_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) − V(s_t)
               The bootstrap γ^n V(s_{t+n}) is biased as long as V_w is wrong; it takes the place of
               all later rewards, and of their variance. Larger n: less bias, more variance.
    [CS-10a]   ĝ_t = ∇log π Â_t   and with n = 1 it is ĝ_t = ∇log π δ_t [CS-10c]
    [CS-10d]   L_critic = δ_t²   here (V_w(s_t) − V_t^target)² [X-VF], V_t^target = Â_t + V(s_t), a
               constant: no gradient flows through it
    [CS-8.1a]  J_ent = J + β E_s[H(π(·|s))]
    [AC-09c]   L = L_PG − c₁ L_critic + β H   to be maximised; L_PG = E_t[log π Â_t], not L_CLIP
    [AC-07b]   g = Σ_w g_w / W   over W processes, each with its share of the N environments

Algorithm [AC-07b]
    1. initialise the policy θ and the critic w
    2. play T steps in each of N environments
    3. advantages Â, with n = T − t or up to the episode's end (the text: one fixed n)
    4. one step up the objective L, averaged over the T·N samples
    5. discard the rollout, back to 2

A3C's N workers have one environment and a copy of θ and w each, and send their gradients to the
shared parameters whenever ready; by then a gradient may be out of date. A2C waits for all N, and
takes one step along the mean gradient: the N rollouts are one batch for the processor. Where the
text shares a backbone, here are two networks: no weight is torn between two losses.

Not in the text [impl]
    observations standardised by running statistics, clipped to ±10     Andrychowicz 2021, 3.3
    values standardised by running statistics, without a change of V_w  van Hasselt 2016
    Â in units of the same standard deviation                           tianshou, examples/mujoco
    RMSprop (average corrected as Adam's), step size lowered to 0       OpenAI Baselines, a2c
    the gradient's norm limited, to less than most gradients have: all batches weigh the same
    orthogonal weights; last layer of the policy × 0.01                 Andrychowicz 2021, 3.2
    σ starts at e^−0.5; actions in units of the half range              tianshou, examples/mujoco
    time limits bootstrap                                               Pardo 2018

Changed from reinforce_baseline.py
    n_step_advantages takes the place of G − b: the critic bootstraps, so unfinished episodes count;
    N environments; one optimizer follows one objective for θ and w, with the entropy bonus.

Run
    python a2c.py --env-id HalfCheetah-v4
    1,000,000 steps in 1 minute; return 2,345 ± 956 (10 seeds; more in benchmarks.md)

References
    Mnih et al. 2016, Asynchronous methods for deep reinforcement learning, arXiv:1602.01783
    Andrychowicz et al. 2021, What matters in on-policy reinforcement learning?, arXiv:2006.05990
    van Hasselt et al. 2016, Learning values across many orders of magnitude, arXiv:1602.07714
    Pardo et al. 2018, Time limits in reinforcement learning, arXiv:1712.00378
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import math
import os
import platform
import random
import re
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, distributed, nn
from torch.distributions import Categorical, Distribution
from tqdm import tqdm

# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Args:
    seed: int = 1  # seed of all random generators
    torch_deterministic: bool = True  # cuDNN uses deterministic kernels (matters on a GPU only)
    cuda: bool = False  # use the GPU; networks of this size are usually faster on one CPU core
    num_threads: int = 1  # PyTorch's CPU threads; more of them pay off-policy only, if at all
    track: bool = False  # log to Weights & Biases as well (WANDB_MODE=offline needs no account)
    wandb_project_name: str = "policy-gradients"  # W&B project
    wandb_entity: str | None = None  # W&B user or team
    capture_video: bool = False  # record the evaluation episodes as MP4 files
    eval_episodes: int = 10  # episodes of the deterministic evaluation, 100,000 steps at most each
    checkpoint_every: int = 100_000  # environment steps between two checkpoints
    resume: Path | None = None  # go on with the run in this folder; flags given override its own
    env_id: str = "HalfCheetah-v4"  # Gymnasium id, or module:id
    total_timesteps: int = 1_000_000  # environment steps, summed over all environments
    # Algorithm
    learning_rate: float = 3e-3  # step size of the optimizer
    num_envs: int = 32  # N, environments [AC-07b]
    num_steps: int = 32  # T, steps in each environment per rollout [AC-07a]
    anneal_lr: bool = True  # lower the step size linearly to 0 over total_timesteps
    gamma: float = 0.99  # γ, discount factor [CS-3a]
    ent_coef: float = 0.0  # β, weight of the entropy bonus [CS-8.1a]
    vf_coef: float = 0.5  # c₁, weight of the value loss, which has no factor ½ here [AC-09c]
    max_grad_norm: float = 0.1  # the gradient of θ and w together is scaled down to this norm
    compile: bool = False  # compile the update: half a minute's wait, then much faster updates


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────


class RunningNorm(nn.Module):
    """Standardises its input by the mean and std of all that `update` has seen [impl].

    The statistics are buffers: they are saved with the network, and move only when told to.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, sample: Tensor) -> Tensor:
        return ((sample - self.mean) / self.std).clamp(-10, 10)

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Merges a batch (B, *shape) in, as if all samples so far stood in one array."""
        self.count += len(batch)
        share = (len(batch) / self.count).float()  # of this batch among all samples
        shift = batch.mean(0) - self.mean
        variance = (1 - share) * self.std**2 + share * batch.var(0, correction=0)
        variance += share * (1 - share) * shift**2  # between the batch and the samples before it
        self.mean += share * shift
        self.std.copy_(variance.clamp(min=1e-8).sqrt())


def mlp(inputs: int, outputs: int, output_gain: float) -> nn.Sequential:
    """Two hidden layers of 64 tanh units; orthogonal weights and zero biases [impl]."""
    layers = [nn.Linear(inputs, 64), nn.Linear(64, 64), nn.Linear(64, outputs)]
    for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), output_gain)):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class DiagonalGaussian(Distribution):
    """N(μ, diag σ²) for a mean (B, A) and a log_std (A,); log_prob and entropy are (B,).

    As Independent(Normal(...), 1), but faster, and with the text's formula in sight.
    """

    arg_constraints = {}

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)
        # A copy: the parameter moves with the optimizer's next step, this distribution must not.
        self.mu, self.log_std, self.std = mean, log_std.clone(), log_std.exp()

    @property
    def mean(self) -> Tensor:
        return self.mu

    mode = mean

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():  # the score function needs no gradient through the action
            noise = torch.randn(sample_shape + self.mu.shape, device=self.mu.device)
            return self.mu + self.std * noise

    def log_prob(self, action: Tensor) -> Tensor:
        # Sum log-probabilities over action dimensions: (B, A) → (B,).
        squares = ((action - self.mu) / self.std) ** 2
        return -0.5 * (squares + 2 * self.log_std + math.log(2 * math.pi)).sum(-1)  # [AC-02b]

    def entropy(self) -> Tensor:
        entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
        return entropy.expand(self.batch_shape)


class Actor(nn.Module):
    """π_θ(a|s): a softmax over Discrete actions, or a diagonal Gaussian over Box actions.

    The Gaussian lives in units in which the bounds of the action space are −1 and +1. Its samples
    are stored and scored as they are; only `to_env` clips them. [impl]

    Raises:
        ValueError: if the actions are neither Discrete nor a Box of floats with finite bounds.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        self.discrete = isinstance(action_space, gym.spaces.Discrete)
        if not self.discrete and not is_bounded_box(action_space):
            raise ValueError(
                f"the action space is {action_space}; this script serves Discrete spaces, and Box "
                "spaces of floats with finite bounds"
            )
        self.obs_norm = RunningNorm(*observation_space.shape)
        if self.discrete:
            self.first_action, outputs = int(action_space.start), int(action_space.n)
        else:
            self.action_shape, outputs = action_space.shape, math.prod(action_space.shape)
            low, high = flat_bounds(action_space)
            self.register_buffer("low", low)
            self.register_buffer("high", high)
            self.register_buffer("middle", low / 2 + high / 2)
            self.register_buffer("half_range", high / 2 - low / 2)
            self.log_std = nn.Parameter(torch.full((outputs,), -0.5))  # log σ, for all states
        # [impl] A last layer near zero: at first no action is preferred, whatever the state.
        self.net = mlp(observation_space.shape[0], outputs, output_gain=0.01)

    def forward(self, obs: Tensor) -> Distribution:
        """obs (..., O) → the distribution of the actions; its log_prob and entropy are (...,)."""
        output = self.net(self.obs_norm(obs))
        if self.discrete:
            return Categorical(logits=output, validate_args=False)  # [AC-02a]
        return DiagonalGaussian(output, self.log_std)  # [AC-02b]

    def to_env(self, action: Tensor) -> Tensor:
        """A sample of the distribution → the action that env.step takes."""
        if self.discrete:
            return action + self.first_action
        action = (self.middle + self.half_range * action).clamp(self.low, self.high)
        return action.reshape(action.shape[:-1] + self.action_shape)

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """obs (B, O) → the most probable actions, as env.step takes them."""
        return self.to_env(self(obs).mode)


class Critic(nn.Module):
    """V_w(s), in the units of the rewards.

    [impl] The network inside works with the running mean of its targets as zero and their standard
    deviation as unit, so that what it has to learn does not depend on the scale of the rewards.
    """

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__()
        self.obs_norm = RunningNorm(*observation_space.shape)
        self.return_norm = RunningNorm()
        self.net = mlp(observation_space.shape[0], 1, output_gain=1.0)

    def forward(self, obs: Tensor) -> Tensor:
        """obs (..., O) → values (...,)."""
        output = self.net(self.obs_norm(obs)).squeeze(-1)
        return self.return_norm.mean + self.return_norm.std * output

    @torch.no_grad()
    def update_return_norm(self, targets: Tensor) -> None:
        """Moves the mean and std by targets (B,), and the last layer against them. [impl]

        V_w stays as it was, up to rounding. Source: PopArt, van Hasselt et al. 2016.
        """
        old = copy.deepcopy(self.return_norm)
        self.return_norm.update(targets)
        if old.count > 0:  # at first there is nothing to keep: V_w starts at the targets' mean
            new, last = self.return_norm, self.net[-1]
            last.weight.mul_(old.std / new.std)
            last.bias.copy_((old.mean + old.std * last.bias - new.mean) / new.std)


# ── Equations ─────────────────────────────────────────────────────────────────────────────────────


def policy_gradient_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]  [CS-5.4a]

    Log-probabilities and weights, an estimate of Q or of A, both (B,) → scalar, to be minimised;
    its gradient estimates −∇J, up to a factor, as it is a mean over the B steps.
    """
    assert log_probs.shape == weights.shape
    # Ascent on the objective = descent on its negative.
    return -(log_probs * weights).mean()  # [CS-5.4a]


def td_errors(
    rewards: Tensor, values: Tensor, next_values: Tensor, terminations: Tensor, gamma: float
) -> Tensor:
    """δ_t = r_t + γ V(s_{t+1}) − V(s_t)  [CS-10b]

    All (T, N) → (T, N).
    """
    assert rewards.shape == values.shape == next_values.shape == terminations.shape
    # V(s') = 0 only if terminated; a time limit still bootstraps.
    return rewards + gamma * (1 - terminations.to(rewards.dtype)) * next_values - values  # [CS-10b]


def n_step_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminations: Tensor,
    truncations: Tensor,
    gamma: float,
) -> Tensor:
    """Â_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) − V(s_t)  [AC-07a]

    All (T, N) → (T, N), with n as large as the rollout and the episode allow, by the recursion
    Â_t = δ_t + γ Â_{t+1}, in which V(s_{t+1}) cancels. It starts at 0 behind the end of the
    rollout, and anew behind the end of each episode, whichever way that ended.
    """
    assert rewards.shape == truncations.shape
    errors = td_errors(rewards, values, next_values, terminations, gamma)  # δ
    done = (terminations.bool() | truncations.bool()).to(rewards.dtype)
    traces = gamma * (1 - done)
    advantages, advantage = [], 0.0
    # From t = T−1 to 0, in NumPy, which is quicker at so small sums: each is of shape (N,).
    for td_error, trace in zip(*(x.flip(0).numpy(force=True) for x in (errors, traces))):
        advantage = td_error + trace * advantage  # [AC-07a]
        advantages.append(advantage)
    return torch.as_tensor(np.stack(advantages[::-1])).to(errors)


def actor_critic_loss(
    actor: Actor,
    critic: Critic,
    observations: Tensor,
    actions: Tensor,
    advantages: Tensor,
    targets: Tensor,
    args: Args,
) -> tuple[Tensor, ...]:
    """L = L_PG − c₁ L_critic + β H  [AC-09c]

    All (B, ...) → four scalars: −L, to be minimised, and its terms −L_PG, L_critic, H.
    """
    dist = actor(observations)
    log_probs = dist.log_prob(actions)
    # [impl] In units of the targets' std, as the value loss: else one of them drowns the other.
    weights = advantages / critic.return_norm.std  # A = Q − V [CS-9f]
    policy_loss = policy_gradient_loss(log_probs, weights)  # [CS-10a] [CS-9g]

    values = critic(observations)
    assert values.shape == targets.shape == advantages.shape
    errors = (values - targets) ** 2  # [CS-10d] [X-VF]
    value_loss = errors.mean() / critic.return_norm.std**2  # in units of the targets' std

    entropy = dist.entropy().mean()
    bonus = args.ent_coef * entropy  # [CS-8.1a]
    loss = policy_loss + args.vf_coef * value_loss - bonus  # [AC-09c]
    return loss, policy_loss, value_loss, entropy


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """g = Σ_w g_w / W  [AC-07b]

    Puts the mean over all W processes in the place of the gradients; alone it does nothing. The
    text's coordinator is an all-reduce: each process gets the sum, and all take the same step.
    """
    if several():
        gradients = [parameter.grad for parameter in parameters]
        total = nn.utils.parameters_to_vector(gradients)
        distributed.all_reduce(total)  # Σ_w g_w
        mean = total / distributed.get_world_size()  # [AC-07b]
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, mean.split(sizes)):
            gradient.copy_(part.view_as(gradient))


def explained_variance(values: Tensor, targets: Tensor) -> Tensor:
    """1 − Var(target − V)/Var(target): 1 for a perfect critic, 0 for a constant one."""
    variance = targets.var(correction=0).clamp(min=1e-8)
    return 1 - (targets - values).var(correction=0) / variance


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────


def play(envs: SyncVectorEnv, obs: np.ndarray, actor: Actor, T: int, run: Run) -> tuple:
    """Plays T steps in each of N environments; counts them and logs the episodes that end.

    Args:
        obs: (N, O), where the environments are now.

    Returns:
        where they are then (N, O); observations (T, N, O), actions (T, N) or (T, N, A), rewards
        (T, N), next_observations (T, N, O), terminations (T, N), truncations (T, N).
    """
    N, device = envs.num_envs, next(actor.parameters()).device
    observations = np.empty((T, *obs.shape), np.float32)
    next_observations = np.empty_like(observations)
    rewards = np.empty((T, N), np.float32)
    terminations, truncations = np.empty((2, T, N), bool)
    actions = []
    for t in range(T):
        observations[t] = obs
        with torch.inference_mode():
            action = actor(torch.as_tensor(observations[t], device=device)).sample()
            env_action = actor.to_env(action).numpy(force=True)
        obs, rewards[t], terminations[t], truncations[t], infos = envs.step(env_action)
        actions.append(action)
        next_observations[t] = obs
        run.step += N
        for n in np.flatnonzero(terminations[t] | truncations[t]):
            # next_obs is the true successor, even when the env has just been reset.
            next_observations[t, n] = infos["final_obs"][n]
            episode = infos["final_info"]["episode"]
            run.log_episode(episode["r"][n], episode["l"][n])
        run.check_finite(observation=next_observations[t], reward=rewards[t])
    arrays = observations, rewards, next_observations, terminations, truncations
    observations, *rest = (torch.as_tensor(array, device=device) for array in arrays)
    return obs, observations, torch.stack(actions), *rest


def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder.

    Raises:
        ValueError: for an argument or an environment that cannot be used.
        FloatingPointError: when an observation, a reward, a loss or a parameter is not finite.
        OSError: when the run's folder cannot be written.
    """
    device = prepare(args, least_steps=args.num_steps * args.num_envs)
    rank, world_size = join_processes(args)  # 0 and 1, without torchrun
    T, N = args.num_steps, args.num_envs // world_size  # N: its share, in each process
    env_fns = [lambda: make_env(args.env_id)] * N
    envs = SyncVectorEnv(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)
    observation_space, action_space = envs.single_observation_space, envs.single_action_space

    # 1. Initialise the policy θ and the critic w.
    actor = Actor(observation_space, action_space).to(device)
    critic = Critic(observation_space).to(device)
    parameters = [*actor.parameters(), *critic.parameters()]
    # [impl] Without momentum it is RMSprop, but for Adam's correction of the average: that starts
    # at 0, so that RMSprop's first step is ten times as long as it should be, the next ones less.
    settings = dict(betas=(0.0, 0.99), eps=1e-5, fused=True)
    optimizer = torch.optim.Adam(parameters, args.learning_rate, **settings)

    def update(*batch: Tensor) -> Tensor:
        """A step down −L, the gradient limited to its greatest norm; returns what is logged."""
        loss, *terms = actor_critic_loss(actor, critic, *batch, args)
        loss.backward()
        average_gradients(parameters)  # [AC-07b]
        grad_norm = nn.utils.clip_grad_norm_(parameters, args.max_grad_norm, foreach=False)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack((*terms, grad_norm)).detach()

    state = dict(actor=actor, critic=critic, optimizer=optimizer)
    run = Run(args, **state) if rank == 0 else Follower(args)
    start_alike(run, **state)
    if args.compile:
        update = compiled(update, device, optimizer)

    # Seeds 10⁶·seed + step + n: neither another run nor a resumption plays the same episodes.
    obs, _ = envs.reset(seed=10**6 * args.seed + run.step + rank * N)  # (N, O)
    while run.step < args.total_timesteps and not any(of_all_objects(run.interrupted)):
        remaining = 1 - run.step / args.total_timesteps if args.anneal_lr else 1.0
        optimizer.param_groups[0]["lr"] = args.learning_rate * remaining

        # 2. Play T steps in each of N environments.
        obs, *rollout = play(envs, obs, actor, T, run)
        count_all(run, steps=T * N)
        observations, actions, rewards, next_observations, terminations, truncations = rollout
        everyone = of_all(observations.flatten(0, 1))  # (W·T·N, O), of all W processes

        # 3. Advantages Â, each with all the steps that are left.
        # The target is a constant: no gradient flows through it.
        with torch.no_grad():
            values, next_values = critic(observations), critic(next_observations)  # (T, N)
            transitions = rewards, values, next_values, terminations, truncations
            advantages = n_step_advantages(*transitions, args.gamma)  # (T, N)
            targets = advantages + values
        # [impl] The critic's statistics move before its step, which corrects what that changes.
        critic.obs_norm.update(everyone)
        critic.update_return_norm(of_all(targets.flatten()))

        # 4. One step up the objective L, averaged over the T·N samples.
        samples = observations, actions, advantages, targets
        losses = update(*(tensor.flatten(0, 1) for tensor in samples))  # [AC-07b]

        # 5. Discard the rollout. [impl] The actor's statistics move here only.
        actor.obs_norm.update(everyone)
        names = "policy_loss", "value_loss", "entropy", "grad_norm"
        run.log_update(
            **dict(zip(names, losses)),
            explained_variance=explained_variance(values, targets),
            learning_rate=args.learning_rate * remaining,
        )
    envs.close()
    if several():
        run.interrupted |= run.step < args.total_timesteps  # on whichever rank that was
        distributed.destroy_process_group()
    return run.finish(actor)


# ── Several processes: the same text in a2c.py and ppo.py ─────────────────────────────────────────


def several() -> bool:
    """Whether this is one of several processes, which torchrun has started."""
    return distributed.is_available() and distributed.is_initialized()


def join_processes(args: Args) -> tuple[int, int]:
    """This process's rank and the number W of processes; 0 and 1 without torchrun.

    They share the work of one run: rank r has environments r·N/W to (r+1)·N/W − 1 of the N, and
    all of them together take the steps that one process would take.

    Raises:
        ValueError: if the environments cannot be divided evenly, or the arguments differ.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return 0, 1
    if args.num_envs % world_size:
        raise ValueError(f"num_envs is {args.num_envs}; {world_size} processes cannot share them")
    if args.cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # These functions keep the group that exists at their import as a default argument. Imported
    # later, by the optimizer, they would hold its threads past the end, which then may abort.
    importlib.import_module("torch.distributed.nn.functional")
    distributed.init_process_group("nccl" if args.cuda else "gloo", timeout=timedelta(minutes=10))
    everyone = of_all_objects({k: v for k, v in vars(args).items() if k != "resume"})
    for name, number in everyone[0].items():
        if any(other[name] != number for other in everyone):
            raise ValueError(f"{name} differs: {[other[name] for other in everyone]}, rank by rank")
    return rank, world_size


def of_all(samples: Tensor) -> Tensor:
    """The samples (B, ...) of all W processes, (W·B, ...), the same on each of them."""
    if not several():
        return samples
    parts = [torch.empty_like(samples) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, samples.contiguous())
    return torch.cat(parts)


def of_all_objects(value: object) -> list:
    """What each process has brought, rank by rank: anything that can be pickled."""
    if not several():
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def start_alike(run: Run | Follower, **state) -> None:
    """Gives all processes the step, folder, parameters and statistics of rank 0, new or resumed."""
    if not several():
        return
    buffer, rank = io.BytesIO(), distributed.get_rank()
    if rank == 0:
        parts = {name: part.state_dict() for name, part in state.items()}
        torch.save([run.step, str(run.folder), parts], buffer)
    content = [buffer.getvalue()]
    distributed.broadcast_object_list(content)  # from rank 0
    if rank == 0:
        return
    run.step, folder, parts = torch.load(io.BytesIO(content[0]), "cpu", weights_only=True)
    run.folder = Path(folder)
    for name, part in state.items():
        part.load_state_dict(parts[name])
    # Other actions, and another order, on each rank.
    seed = int(np.random.SeedSequence([run.args.seed, run.step, rank]).generate_state(1)[0])
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(seed)


def count_all(run: Run | Follower, steps: int) -> None:
    """Counts the `steps` of each other process too; their episodes go to rank 0's log."""
    if several():
        run.step += steps * (distributed.get_world_size() - 1)
        episodes = of_all_objects(run.episodes if isinstance(run, Follower) else [])
        if isinstance(run, Follower):
            run.episodes = []
        else:
            for episode in sum(episodes, []):
                run.log_episode(*episode)


class Follower:
    """What takes the place of Run on the other ranks: it writes no file and shows no progress."""

    def __init__(self, args: Args) -> None:
        self.args, self.step, self.folder = args, 0, None
        self.interrupted, self.episodes = False, []
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.interrupt)

    def interrupt(self, *_: object) -> None:
        """All stop together, at the head of the loop, and rank 0 saves."""
        self.interrupted = True

    def log_episode(self, episode_return: float, length: int) -> None:
        self.episodes.append((float(episode_return), int(length)))

    def check_finite(self, **values: Tensor | np.ndarray) -> None:
        broken = [name for name, value in values.items() if not np.isfinite(value).all()]
        if broken:
            raise FloatingPointError(f"not finite at step {self.step}: {', '.join(broken)}")

    def log_update(self, **metrics: Tensor | float) -> None:
        """Nothing: its parameters are those of rank 0, which checks them, and logs its losses."""

    def finish(self, actor: nn.Module) -> Path:
        return self.folder


# ── Compiling: the same text in every script with --compile ───────────────────────────────────────


def compiled(
    update: Callable, device: torch.device, *optimizers: torch.optim.Optimizer
) -> Callable:
    """A whole update as one graph by torch.compile: both passes, clipping, the optimizers' steps.

    Small networks spend most of an update on launching operations; a graph launches them at once.
    """
    dynamo = importlib.import_module("torch._dynamo")
    if hasattr(dynamo.config, "trace_autograd_ops"):  # older PyTorch makes more graphs: still right
        dynamo.config.trace_autograd_ops = True
    step_sizes = [make_traceable(optimizer) for optimizer in optimizers]
    # fallback_random: the same random numbers as without compiling, from the same generator.
    options = {"fallback_random": True}
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        # The calls too in one piece; what processes say to each other cannot be part of it.
        options["triton.cudagraphs" if device.type == "cuda" else "cpp_wrapper"] = True
    graph = torch.compile(update, options=options)

    def call(*batch: Tensor) -> Tensor:
        for optimizer, step_size in zip(optimizers, step_sizes):
            step_size.fill_(optimizer.param_groups[0]["lr"])
        return graph(*batch).clone()  # CUDA graphs write each output to the same place

    return call


def make_traceable(optimizer: torch.optim.Adam) -> Tensor:
    """Gives Adam a step that does not break torch.compile's graph, as PyTorch's own does.

    The same formulas on the same state: a checkpoint fits either. Returns the step size as the
    tensor that the graph reads: a number would be compiled in.

    Raises:
        TypeError: for another optimizer, or an option of Adam that is not written out here.
    """
    (group,) = optimizer.param_groups
    others = "weight_decay", "amsgrad", "maximize"
    if type(optimizer) is not torch.optim.Adam or any(map(group.get, others)):
        raise TypeError(f"compile serves plain Adam, not {optimizer}; leave it out")
    beta1, beta2 = group["betas"]
    names = "exp_avg", "exp_avg_sq"
    parameters, states = group["params"], optimizer.state
    for parameter in parameters:
        if not states[parameter]:  # none yet
            states[parameter]["step"] = torch.zeros((), device=parameter.device)
            states[parameter] |= {name: torch.zeros_like(parameter) for name in names}
    steps = [states[parameter]["step"] for parameter in parameters]
    averages = [[states[parameter][name] for name in names] for parameter in parameters]
    step_size = torch.tensor(group["lr"], device=parameters[0].device)

    @torch.no_grad()
    def step() -> None:
        for count in steps:
            count.add_(1)
        count = steps[0].double()  # in float32 1 − β₂^t would lose digits
        correction1, correction2 = (1 - beta1**count).float(), (1 - beta2**count).float()
        for parameter, (first, second) in zip(parameters, averages):
            first.lerp_(parameter.grad, 1 - beta1)
            second.lerp_(parameter.grad**2, 1 - beta2)
            scale = (second / correction2).sqrt() + group["eps"]
            parameter.sub_(step_size * (first / correction1) / scale)

    def zero_grad() -> None:
        for parameter in parameters:
            parameter.grad = None

    optimizer.step, optimizer.zero_grad = step, zero_grad
    return step_size


# ── Plumbing: the same text in every script ───────────────────────────────────────────────────────


def prepare(args: Args, least_steps: int) -> torch.device:
    """Checks the arguments, seeds all random generators, sets the threads; returns the device.

    Args:
        least_steps: without as many there is no update.

    Raises:
        ValueError: for an argument that no run can use: which one, and what is needed.
    """
    for field in fields(args):
        name, number = field.name, getattr(args, field.name)
        if number is None or not field.type.startswith(("int", "float")):
            continue
        whole = field.type == "int"
        least = 1 if whole and name not in ("seed", "eval_episodes", "learning_starts") else 0
        most = {"gamma": 1, "gae_lambda": 1, "tau": 1, "seed": 2**32 - 1}.get(name, math.inf)
        if not (least <= number <= most and math.isfinite(number)):
            raise ValueError(f"{name} is {number}; it must be finite, from {least} to {most}")
        if whole and not isinstance(number, int):
            raise ValueError(f"{name} is {number}; it must be a whole number")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "join_processes" not in globals():
        raise ValueError("torchrun would repeat the whole run in each process; use python")
    if args.total_timesteps < least_steps:
        causes = {"num_steps", "num_envs", "learning_starts", "policy_frequency"}
        causes = causes & vars(args).keys() or {"batch_size"}
        raise ValueError(
            f"total_timesteps is {args.total_timesteps}; the first update needs {least_steps}: "
            f"raise it, or lower {' or '.join(sorted(causes))}"
        )
    precision = getattr(args, "matmul_precision", "highest")
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f"matmul_precision is {precision}; it must be highest, high or medium")
    if args.cuda and not torch.cuda.is_available():
        raise ValueError("cuda is set, but PyTorch finds no GPU here; use --no-cuda")
    if getattr(args, "compile", False):
        try:
            torch.compile(torch.sin)(torch.zeros(1, device="cuda" if args.cuda else "cpu"))
        except Exception as error:
            raise ValueError(
                "compile is set, but PyTorch cannot compile here; it needs a C++ compiler such as "
                f"g++ (and on a GPU, Triton). {type(error).__name__}: {error}"
            ) from error
    if args.track and not importlib.util.find_spec("wandb"):
        raise ValueError("track is set, but wandb is not installed; pip install wandb")
    if args.capture_video:  # better now than after a million steps
        check_video(args.env_id)
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    with suppress(Exception):  # MuJoCo's notices as Python warnings: once, not once for each env
        importlib.import_module("mujoco").set_mju_user_warning(warnings.warn)
    return torch.device("cuda" if args.cuda else "cpu")


def make_env(env_id: str, video_folder: Path | None = None) -> gym.Env:
    """One environment with flat observations; an episode's last info has its return and length.

    Raises:
        UnregisteredEnv: Gymnasium's error, if it does not know the id.
        ValueError: if the observations cannot become a flat vector.
    """
    try:
        env = gym.make(env_id, **({"render_mode": "rgb_array"} if video_folder else {}))
    except gym.error.UnregisteredEnv as error:
        hint = "Your own needs its module: --env-id my_module:MyEnv-v0. Atari is not served."
        raise type(error)(f"{error} {hint}") from None
    if video_folder:
        env = gym.wrappers.RecordVideo(env, str(video_folder), episode_trigger=lambda _: True)
    env = EpisodeInfo(gym.wrappers.RecordEpisodeStatistics(env))
    space = env.observation_space
    if not space.is_np_flattenable:
        raise ValueError(f"{env_id} has observations that cannot become a flat vector: {space}")
    if isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3:
        warnings.warn(
            f"{env_id} shows images, {space.shape}; the networks see them as flat vectors"
        )
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        env = gym.wrappers.FlattenObservation(env)
    return env


class EpisodeInfo(gym.Wrapper):
    """Keeps of each info only the episode's statistics: merging the rest over N environments, for
    nobody, would take a quarter of a step's time."""

    def step(self, action: np.ndarray) -> tuple:
        *transition, info = self.env.step(action)
        return *transition, {name: info[name] for name in info if name == "episode"}


def random_state(env: gym.Env) -> dict:
    """The state of an environment's random generator, in plain Python numbers."""
    generator = env.unwrapped.np_random
    if isinstance(generator, np.random.RandomState):  # NumPy's older kind; dm_control has it
        state = generator.get_state(legacy=False)
    else:
        state = generator.bit_generator.state
    return json.loads(json.dumps(state, default=np.ndarray.tolist))


def set_random_state(env: gym.Env, state: dict) -> None:
    generator = env.unwrapped.np_random
    if isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def check_video(env_id: str) -> None:
    """Raises ValueError if the episodes of this environment cannot be recorded here."""
    try:
        importlib.import_module("moviepy")
        env = gym.make(env_id, render_mode="rgb_array")
        env.reset()
        env.render()
        env.close()
    except gym.error.UnregisteredEnv:  # it has nothing to do with videos
        raise
    except Exception as error:
        raise ValueError(
            f"capture_video is set, but {env_id} cannot be recorded here: {error!r}. It needs "
            "`pip install moviepy pygame`; MuJoCo without a screen needs MUJOCO_GL=egl "
            "(a GPU or Mesa's libegl1) or MUJOCO_GL=osmesa (libosmesa6)."
        ) from error


def is_bounded_box(space: gym.Space) -> bool:
    """Whether the space holds arrays of floats between finite bounds."""
    is_box = isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating)
    return is_box and all(bool(x.isfinite().all()) for x in flat_bounds(space))


def flat_bounds(space: gym.spaces.Box) -> tuple[Tensor, Tensor]:
    """low and high, flat, in float32; where float64 has to be rounded, towards the inside."""
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    low = np.where(low < space.low, np.nextafter(low, high), low)
    high = np.where(high > space.high, np.nextafter(high, low), high)
    return torch.as_tensor(low.flatten()), torch.as_tensor(high.flatten())


@torch.inference_mode()
def evaluate(
    actor: nn.Module, env_id: str, episodes: int, seed: int, video_folder: Path | None = None
) -> list[float]:
    """The returns of some episodes played with the actor's mode, its statistics frozen.

    Args:
        actor: has `mode(obs)`, observations (B, O) → actions as env.step takes them.
        env_id: a new environment of this id is made, and seeded once.
        video_folder: records every episode there as an MP4 file.
    """
    env = make_env(env_id, video_folder)
    device = next(actor.parameters()).device
    returns = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        returns.append(0.0)
        for _ in range(100_000):  # some environments set no time limit to a policy that goes round
            batch = torch.as_tensor(obs, dtype=torch.float32, device=device).unsqueeze(0)  # (1, O)
            action = actor.mode(batch).numpy(force=True)[0]
            obs, reward, terminated, truncated, _ = env.step(action)
            returns[-1] += float(reward)
            if terminated or truncated:
                break
    env.close()
    return returns


class Run:
    """All that surrounds the algorithm: the run's folder, logs, progress bar, checkpoints, end.

    args.json       script, arguments, versions of the packages
    episodes.csv    one row for each finished training episode: step, return, length, seconds
    updates.csv     step, seconds, steps_per_second, losses, diagnostics: one row for each update,
                    with a replay buffer one for each episode, the means over its updates
    checkpoint.pt   all that --resume needs: `state`, the counters, all random generators
    summary.json    what the last line on the screen says

    Args:
        args: if `args.resume` is set, that folder is used, and everything restored from it.
        env: if there is just one, its random generator is saved too: a resumed run is the same run.
        state: what a checkpoint holds, by name; each has state_dict() and load_state_dict().
    """

    def __init__(self, args: Args, env: gym.Env | None = None, **state) -> None:
        self.args, self.env, self.state, self.script = args, env, state, Path(__file__).stem
        self.step = self.saved_step = 0  # environment steps: taken so far, and in the checkpoint
        self.recent_returns = deque(maxlen=100)
        self.csv_files, self.wandb, self.interrupted = {}, None, False
        label = re.sub(r"[^\w.-]+", "-", f"{args.env_id}__{self.script}__{args.seed}__")
        self.folder = Path(f"runs/{label}{datetime.now():%Y%m%d-%H%M%S-%f}")
        if args.resume:  # relative to here, with its name even if that was '.'
            self.folder = Path(os.path.relpath(Path(args.resume).resolve()))
        self.resume_command = f"python {self.script}.py --resume {self.folder}"
        self.last_seconds = self.restore() if args.resume else 0.0
        self.clock = time.perf_counter() - self.last_seconds  # goes on where it had stopped
        self.last_step = self.step
        if not args.resume:
            with self.disk_errors():
                self.folder.mkdir(parents=True)
            self.save()
        if self.step < args.total_timesteps:  # watching a finished run leaves its arguments alone
            arguments = {name: value for name, value in vars(args).items() if name != "resume"}
            versions = {"python": platform.python_version()}
            for package in ("torch", "gymnasium", "numpy", "mujoco"):
                with suppress(ModuleNotFoundError):  # MuJoCo may be missing
                    versions[package] = version(package)
            content = {"script": self.script, "args": arguments, "versions": versions}
            self.write_json("args.json", content)
        if args.track:
            import wandb  # needed with --track only

            self.wandb = wandb.init(
                project=args.wandb_project_name,
                entity=args.wandb_entity,
                name=self.folder.resolve().name,
                id=self.folder.resolve().name,
                resume="allow",
                config=vars(args),
                dir=self.folder,
            )
            self.wandb.define_metric("*", step_metric="step")
        print(f"{self.script} on {args.env_id}, seed {args.seed}, saved in {self.folder}")
        self.bar = tqdm(
            initial=self.step,
            total=args.total_timesteps,
            unit=" steps",
            unit_scale=True,
            mininterval=0.5 if sys.stderr.isatty() else 60,  # seconds; a log file needs few lines
        )
        self.on_signal(self.interrupt)

    def seconds(self) -> float:
        """Seconds since the start, without the time between a stop and its resumption."""
        return time.perf_counter() - self.clock

    def log_episode(self, episode_return: float, length: int) -> None:
        """Logs a training episode that has just ended, its rewards as the environment gave them."""
        self.recent_returns.append(float(episode_return))
        row = {"step": self.step, "return": float(episode_return), "length": int(length)}
        self.write_row("episodes", row | {"seconds": self.seconds()})
        self.move_bar()

    def move_bar(self) -> None:
        """Shows on the progress bar the steps so far, and the mean return."""
        if self.recent_returns:
            self.bar.set_postfix_str(f"return {np.mean(self.recent_returns):,.1f}", refresh=False)
        self.bar.update(self.step - self.bar.n)

    def check_finite(self, **values: Tensor | np.ndarray | float) -> None:
        """Raises FloatingPointError if one of the named values has a NaN or an infinity in it."""
        broken = [name for name, value in values.items() if not np.isfinite(value).all()]
        if broken:
            self.on_signal(None)
            raise FloatingPointError(
                f"not finite at step {self.step}: {', '.join(broken)}. The run has stopped; "
                f"{self.folder / 'checkpoint.pt'} still holds step {self.saved_step}. If it is not "
                "the environment that gave such numbers, lower the learning rate."
            )

    def network_sums(self) -> dict[str, float]:
        """Of each network the sum over its parameters and statistics: finite if all of them are."""
        return {
            name: float(sum(x.double().sum() for x in part.state_dict().values()))
            for name, part in self.state.items()
            if isinstance(part, nn.Module)
        }

    def log_update(self, **metrics: Tensor | float) -> None:
        """Logs an update, moves the progress bar, and saves a checkpoint when one is due.

        Raises:
            FloatingPointError: if a metric, a parameter or a running statistic is not finite.
        """
        metrics = {name: float(number) for name, number in metrics.items()}
        self.check_finite(**metrics, **self.network_sums())
        steps, seconds = self.step - self.last_step, self.seconds()
        row = {"step": self.step, "seconds": seconds}
        row["steps_per_second"] = steps / (seconds - self.last_seconds)
        self.last_step, self.last_seconds = self.step, seconds
        self.write_row("updates", row | metrics)
        self.move_bar()
        if self.step - self.saved_step >= self.args.checkpoint_every:
            self.save()

    def finish(self, actor: nn.Module) -> Path:
        """Saves, evaluates, prints the summary, returns the folder; after Ctrl-C it only saves."""
        self.on_signal(None)
        for file in (self.bar, *self.csv_files.values()):
            file.close()
        if self.step > self.last_step:  # steps that no update has followed
            self.last_seconds = self.seconds()
        if self.step > self.saved_step:
            self.save()
        if self.interrupted:
            print(f"Stopped and saved at step {self.step}. To go on: {self.resume_command}")
            raise SystemExit(130)  # what a shell expects after Ctrl-C
        videos = self.folder / "videos" if self.args.capture_video else None
        # One that training does not use; of 32 bits, since some environments take no more.
        seed = (10**6 * self.args.seed + 999_999) % 2**32
        returns = evaluate(actor, self.args.env_id, self.args.eval_episodes, seed, videos)
        summary = {
            "step": self.step,
            "seconds": self.last_seconds,
            "training_return": float(np.mean(self.recent_returns)) if self.recent_returns else None,
            "evaluation_return": float(np.mean(returns)) if returns else None,
            "evaluation_std": float(np.std(returns)) if returns else None,
        }
        self.write_json("summary.json", summary | {"evaluation_returns": returns})
        speed = self.step / self.last_seconds
        line = f"{self.step:,} steps in {self.last_seconds:,.0f} s ({speed:,.0f} steps/s)"
        if self.recent_returns:
            line += f"; training return {np.mean(self.recent_returns):,.1f}"
            line += f" over the last {len(self.recent_returns)} episodes"
        if returns:
            line += f"; deterministic evaluation {np.mean(returns):,.1f} ± {np.std(returns):,.1f}"
            line += f" over {len(returns)} episodes"
        print(f"{line}; saved in {self.folder}")
        if self.wandb:
            self.wandb.summary.update(summary)
            self.wandb.finish()
        return self.folder

    def interrupt(self, *_: object) -> None:
        """Ctrl-C or SIGTERM: the loop ends where a checkpoint may be; a second one: at once."""
        self.on_signal(None)
        self.interrupted = True
        self.bar.write(
            "Stopping after this update or episode, and saving. Once more stops at once."
        )

    def on_signal(self, handler: Callable | None) -> None:
        """Sets what Ctrl-C and SIGTERM do; None: what they do anyway."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler or signal.default_int_handler)
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Adds to the error of a full or read-only disk what is saved, and what to do."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            message = f"cannot write to {self.folder}: {error}."
            if (self.folder / "checkpoint.pt").exists():
                message += f" Its checkpoint.pt still holds step {self.saved_step}."
                message += f" Make room, then: {self.resume_command}"
            raise OSError(message) from error

    def write_row(self, table: str, row: dict[str, float]) -> None:
        """Appends a row to a CSV file, whole and at once, so that a kill loses none; and to W&B."""
        with self.disk_errors():
            if table not in self.csv_files:  # buffering=1: line by line
                file = open(self.folder / f"{table}.csv", "a", buffering=1)
                self.csv_files[table] = file
                if file.tell() == 0:
                    print(*row, sep=",", file=file)
            numbers = (f"{x:.7g}" if isinstance(x, float) else x for x in row.values())
            print(*numbers, sep=",", file=self.csv_files[table])
        if self.wandb:
            self.wandb.log({"step": row["step"]} | {f"{table}/{k}": v for k, v in row.items()})

    def write_json(self, name: str, content: dict) -> None:
        text = json.dumps(content, indent=2, default=str) + "\n"
        self.replace(name, lambda file: file.write(text.encode()))

    def replace(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Writes a file beside the old one, then moves it into its place: never half a file."""
        temporary = self.folder / f"{name}.tmp"
        with self.disk_errors():
            try:
                with open(temporary, "wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.folder / name)
            finally:
                temporary.unlink(missing_ok=True)

    def save(self) -> None:
        """Writes checkpoint.pt; the rows of the CSV files up to this step have gone out already.

        Raises:
            FloatingPointError: if a parameter or a running statistic is not finite.
        """
        self.check_finite(**self.network_sums())
        numpy_state = [
            x.tolist() if isinstance(x, np.ndarray) else x for x in np.random.get_state()
        ]
        checkpoint = {
            "step": self.step,
            "seconds": self.last_seconds,
            "recent_returns": list(self.recent_returns),
            "state": {name: part.state_dict() for name, part in self.state.items()},
            "random": [random.getstate(), numpy_state, torch.get_rng_state()],
            "cuda_random": torch.cuda.get_rng_state() if self.args.cuda else None,
            "env_random": random_state(self.env) if self.env else {},
        }
        self.replace("checkpoint.pt", lambda file: torch.save(checkpoint, file))
        self.saved_step = self.step

    def restore(self) -> float:
        """Loads checkpoint.pt, cuts the CSV files back to its step; returns the seconds till then.

        Raises:
            ValueError: if the folder holds no run of this script on this environment.
        """
        env_id = stored_args(self.folder)["env_id"]
        if env_id != self.args.env_id:
            raise ValueError(f"{self.folder} is a run on {env_id}, env_id is {self.args.env_id}")
        # Mapped, not read: a replay buffer is then in memory once, not twice.
        path = self.folder / "checkpoint.pt"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for name, part in self.state.items():
            saved = checkpoint["state"][name]
            if isinstance(part, torch.optim.Optimizer):  # its moments; the step size is args' own
                saved = copy.deepcopy(saved)  # an optimizer would keep hold of the mapped file
                saved["param_groups"] = part.state_dict()["param_groups"]
            part.load_state_dict(saved)
        python_state, numpy_state, torch_state = checkpoint["random"]
        random.setstate(python_state)
        np.random.set_state(tuple(numpy_state))
        torch.set_rng_state(torch_state)
        if self.args.cuda and checkpoint["cuda_random"] is not None:
            torch.cuda.set_rng_state(checkpoint["cuda_random"])
        if self.env:
            set_random_state(self.env, checkpoint["env_random"])
        self.recent_returns.extend(checkpoint["recent_returns"])
        self.step = self.saved_step = checkpoint["step"]
        for path in self.folder.glob("*.csv"):
            header, *rows = path.read_text().splitlines(keepends=True) or [""]
            # A row starts with its step; a kill may have left half a row at the end.
            rows = [
                row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= self.step
            ]
            text = "".join([header, *rows])
            self.replace(path.name, lambda file, text=text: file.write(text.encode()))
        return checkpoint["seconds"]


def stored_args(folder: Path) -> dict:
    """The arguments of the run in this folder, for --resume.

    Raises:
        ValueError: if there is no run of this script.
    """
    path, script = Path(folder) / "args.json", Path(__file__).stem
    if not (path.exists() and path.with_name("checkpoint.pt").exists()):
        raise ValueError(f"resume is {folder}, which has no args.json and checkpoint.pt of a run")
    content = json.loads(path.read_text())
    if content["script"] != script:
        raise ValueError(f"resume is {folder}, a run of {content['script']}.py, not of {script}.py")
    return content["args"]


def parse_args() -> Args:
    """The command line; with --resume, the run's stored arguments in place of the defaults."""
    description = __doc__.split("\n")[0]
    args = tyro.cli(Args, description=description)
    if args.resume is not None:
        args = tyro.cli(Args, description=description, default=Args(**stored_args(args.resume)))
    return args


if __name__ == "__main__":
    train(parse_args())
