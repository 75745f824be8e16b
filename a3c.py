"""Asynchronous Advantage Actor-Critic (A3C); Mnih et al. 2016.

Idea
    Several workers, each a process with its own environment and its own copy of the actor π_θ and
    the critic V_w. Each pulls the shared parameters, plays a few steps, and pushes the gradient
    that these give whenever it is ready: nobody waits for anybody. They are at different places of
    their episodes, so consecutive gradients have little in common, and no replay is needed.

Equations, in the order of the code
    [CS-3a]    J(θ) = E_τ[Σ_t γ^t r_t]   the objective, to be maximised
    [AC-02a]   π_θ(a|s) = softmax(f_θ(s))_a   for Discrete actions
    [AC-02b]   a ∼ N(μ_θ(s), σ²I)   for Box actions; here σ is a vector, the same in all states
    [CS-5.4a]  ∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]
    [CS-9g]    ∇J = E[∇log π A]   with A = Q − V [CS-9f]: subtracting V costs no bias [CS-9b]
    [CS-10b]   δ_t = r_t + γ V(s_{t+1}) − V(s_t)   with V(s_{t+1}) = 0 if s_{t+1} is terminal
    [AC-07a]   Â_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) − V(s_t)
    [CS-10a]   ĝ_t = ∇log π Â_t   and with n = 1 it is ĝ_t = ∇log π δ_t [CS-10c]
    [CS-10d]   L_critic = δ_t²   here (V_w(s_t) − V_t^target)² [X-VF], V_t^target = Â_t + V(s_t), a
               constant: no gradient flows through it
    [CS-8.1a]  J_ent = J + β E_s[H(π(·|s))]
    [AC-09c]   L = L_PG − c₁ L_critic + β H   to be maximised; L_PG = E_t[log π Â_t], not L_CLIP
    [AC-07c]   θ ← θ + α ∇L(θ')   where θ' is what the worker had pulled; others have moved θ since

Algorithm [AC-07c]
    1. initialise the shared policy θ and critic w; start the workers; in each of them, repeatedly:
    2. pull: the worker's own θ', w' = θ, w
    3. play T steps in its environment with π_θ'
    4. advantages Â by V_w', with n = T − t or up to the episode's end (the text: one fixed n)
    5. the gradient of the objective L at θ', w'
    6. push: one step of the shared optimizer from the shared θ, w along this gradient

What asynchrony costs: the gradient of step 5 belongs to θ', not to the θ that it moves by then.
A2C waits for all and averages; over the 32 environments of a2c.py that means √32 times less noise.

Not in the text [impl]
    a lock around pull and push, so that no gradient is lost; the paper has none
    one RMSprop for all, with shared averages, corrected as Adam's      Mnih 2016, section 4
    observations standardised by running statistics, clipped to ±10     Andrychowicz 2021, 3.3
    values standardised by running statistics, without a change of V_w  van Hasselt 2016
    Â in units of the same standard deviation                           tianshou, examples/mujoco
    step size lowered to 0                                              OpenAI Baselines, a2c
    the gradient's norm limited, to less than most gradients have: all rollouts weigh the same
    orthogonal weights; last layer of the policy × 0.01                 Andrychowicz 2021, 3.2
    σ starts at e^−0.5; actions in units of the half range              tianshou, examples/mujoco
    time limits bootstrap                                               Pardo 2018

Changed from a2c.py
    The loop runs in several processes at once, each with one environment and a copy of θ and w;
    what was one step along the mean gradient is one step for each worker's gradient, in whatever
    order they come. The main process only logs, saves and evaluates.

Run
    python a3c.py --env-id HalfCheetah-v4 --num-workers 2
    1,000,000 steps in 2 minutes; return 1,687 ± 1,144 (3 seeds; more in benchmarks.md)

References
    Mnih et al. 2016, Asynchronous methods for deep reinforcement learning, arXiv:1602.01783
    Andrychowicz et al. 2021, What matters in on-policy reinforcement learning?, arXiv:2006.05990
    van Hasselt et al. 2016, Learning values across many orders of magnitude, arXiv:1602.07714
    Pardo et al. 2018, Time limits in reinforcement learning, arXiv:1712.00378
"""

from __future__ import annotations

import copy
import importlib.util
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
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Event, Lock
from pathlib import Path
from typing import BinaryIO

import gymnasium as gym
import numpy as np
import torch
import torch.multiprocessing as mp
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
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
    learning_rate: float = 5e-4  # step size: about a2c.py's / √32, as each gradient is noisier
    num_workers: int = 2  # processes, each with one environment [AC-07c]
    num_steps: int = 32  # T, steps of a worker between pull and push [AC-07a]
    anneal_lr: bool = True  # lower the step size linearly to 0 over total_timesteps
    gamma: float = 0.99  # γ, discount factor [CS-3a]
    ent_coef: float = 0.0  # β, weight of the entropy bonus [CS-8.1a]
    vf_coef: float = 0.5  # c₁, weight of the value loss, which has no factor ½ here [AC-09c]
    max_grad_norm: float = 0.1  # the gradient of θ and w together is scaled down to this norm


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


class Shared:
    """What the workers share: θ and w with their statistics, the optimizer, the count of steps.

    All tensors lie in memory that every process sees. Pull and push hold the lock.
    """

    def __init__(self, actor: Actor, critic: Critic, optimizer: torch.optim.Adam) -> None:
        self.actor, self.critic = actor.share_memory(), critic.share_memory()
        self.optimizer = optimizer
        for parameter in parameters_of(actor, critic):
            state = optimizer.state[parameter]
            if not state:  # none yet; made by the first step it would be one worker's own
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            for tensor in state.values():
                tensor.share_memory_()
        # Steps that workers have set out to play, and steps whose gradient is in θ and w.
        self.claimed, self.step = torch.zeros(2, dtype=torch.int64).share_memory_()

    def pull(self, actor: Actor, critic: Critic) -> None:
        """θ', w' ← θ, w, and the statistics  [AC-07c]"""
        actor.load_state_dict(self.actor.state_dict())
        critic.load_state_dict(self.critic.state_dict())

    def push(self, actor: Actor, critic: Critic, learning_rate: float) -> None:
        """θ, w ← one step of the optimizer along the gradient of the worker's copies  [AC-07c]

        The copies' gradient is cleared here: the optimizer knows only the shared parameters.
        """
        self.optimizer.param_groups[0]["lr"] = learning_rate
        own_parameters = parameters_of(actor, critic)
        for shared, own in zip(parameters_of(self.actor, self.critic), own_parameters):
            shared.grad, own.grad = own.grad, None
        self.optimizer.step()
        self.optimizer.zero_grad()


def parameters_of(actor: Actor, critic: Critic) -> list[nn.Parameter]:
    return [*actor.parameters(), *critic.parameters()]


class Report:
    """What `play` needs of a Run, in a worker: kept for the main process, which logs it."""

    def __init__(self) -> None:
        self.step, self.episodes = 0, []

    def log_episode(self, episode_return: float, length: int) -> None:
        self.episodes.append((float(episode_return), int(length)))

    def check_finite(self, **values: np.ndarray) -> None:
        broken = [name for name, value in values.items() if not np.isfinite(value).all()]
        if broken:
            raise FloatingPointError(*broken)


STOPS = signal.SIGINT, signal.SIGTERM  # Ctrl-C; a cluster's end of the job


def work(args: Args, seed: int, shared: Shared, lock: Lock, stop: Event, pipe: Connection) -> None:
    """A worker: pulls, plays and pushes until all steps are taken; reports each push."""
    for number in STOPS:  # they may reach all processes; the main one acts
        signal.signal(number, signal.SIG_IGN)
    if main := mp.parent_process():  # should it be killed, the lock could stay locked for ever
        threading.Thread(target=lambda: (main.join(), os._exit(1)), daemon=True).start()
    try:
        torch.manual_seed(seed)
        torch.set_num_threads(args.num_threads)
        envs = SyncVectorEnv(
            [lambda: make_env(args.env_id)], autoreset_mode=AutoresetMode.SAME_STEP
        )
        spaces = envs.single_observation_space, envs.single_action_space
        actor, critic = Actor(*spaces), Critic(spaces[0])  # θ', w'
        obs, _ = envs.reset(seed=seed)  # (1, O)
        T = args.num_steps
        while True:
            # 2. Pull.
            with lock:
                if stop.is_set() or shared.claimed >= args.total_timesteps:
                    break
                shared.claimed += T
                shared.pull(actor, critic)

            # 3. Play T steps.
            report = Report()
            obs, *rollout = play(envs, obs, actor, T, report)
            observations, actions, rewards, next_observations, terminations, truncations = rollout

            # 4. Advantages Â, each with all the steps that are left.
            # The target is a constant: no gradient flows through it.
            with torch.no_grad():
                values, next_values = critic(observations), critic(next_observations)  # (T, 1)
                transitions = rewards, values, next_values, terminations, truncations
                advantages = n_step_advantages(*transitions, args.gamma)  # (T, 1)
                targets = advantages + values
            samples = observations, actions, advantages, targets
            samples = [tensor.flatten(0, 1) for tensor in samples]  # (T, ...)
            # [impl] The critic's statistics move before its step, which corrects what that changes.
            critic.obs_norm.update(samples[0])
            critic.update_return_norm(samples[3])

            # 5. The gradient of −L at θ', w'.
            loss, *terms = actor_critic_loss(actor, critic, *samples, args)
            loss.backward()
            parameters = parameters_of(actor, critic)
            grad_norm = nn.utils.clip_grad_norm_(parameters, args.max_grad_norm, foreach=False)
            names = "policy_loss", "value_loss", "entropy", "grad_norm"
            metrics = dict(zip(names, torch.stack((*terms, grad_norm)).tolist()))
            metrics["explained_variance"] = float(explained_variance(values, targets))

            # 6. Push: a step from the shared θ, w. [impl] The shared statistics move with it.
            with lock:
                remaining = 1 - int(shared.step) / args.total_timesteps if args.anneal_lr else 1.0
                for network in (shared.actor, shared.critic):
                    network.obs_norm.update(samples[0])
                shared.critic.update_return_norm(samples[3])
                shared.push(actor, critic, args.learning_rate * remaining)
                shared.step += T
                metrics["learning_rate"] = args.learning_rate * remaining
                pipe.send((int(shared.step), report.episodes, metrics))
        pipe.send(None)  # all is well
    except (BrokenPipeError, ConnectionResetError):  # the main process is no more
        return
    except FloatingPointError as error:
        pipe.send(error)
    except Exception:
        pipe.send(ChildProcessError(f"a worker failed:\n{traceback.format_exc()}"))


def receive(pipes: list[Connection]) -> tuple[list[tuple], Exception | None]:
    """The reports that have come, in order of their steps, and what has befallen a worker, if so.

    The pipes of workers that are done are taken out of the list.
    """
    reports, error = [], None
    for pipe in list(pipes):
        while pipe in pipes and pipe.poll():
            try:
                message = pipe.recv()
            except EOFError:
                message = ChildProcessError(
                    "a worker was killed, or crashed; its error may stand above"
                )
            if message is None or isinstance(message, Exception):
                pipes.remove(pipe)
                error = message or error
            else:
                reports.append(message)
    return sorted(reports, key=lambda report: report[0]), error


def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder.

    Call it below `if __name__ == "__main__":`, since each worker imports the calling script again.

    Raises:
        ValueError: for an argument or an environment that cannot be used.
        FloatingPointError: when an observation, a reward, a loss or a parameter is not finite.
        RuntimeError: when a worker has failed or was killed, with its traceback.
        OSError: when the run's folder cannot be written.
    """
    if getattr(mp.current_process(), "_inheriting", False):  # a worker that is still importing
        raise RuntimeError('workers import your script: train below `if __name__ == "__main__":`')
    prepare(args, least_steps=args.num_steps)
    if args.cuda:
        raise ValueError("cuda is set; the workers share their parameters in the CPU's memory")
    env = make_env(args.env_id)

    # 1. Initialise the shared policy θ and critic w; start the workers.
    actor, critic = Actor(env.observation_space, env.action_space), Critic(env.observation_space)
    env.close()
    parameters = parameters_of(actor, critic)
    # [impl] Without momentum it is RMSprop, but for Adam's correction of the average: that starts
    # at 0, so that RMSprop's first step is ten times as long as it should be, the next ones less.
    settings = dict(betas=(0.0, 0.99), eps=1e-5, fused=True)
    optimizer = torch.optim.Adam(parameters, args.learning_rate, **settings)
    run = Run(args, actor=actor, critic=critic, optimizer=optimizer)
    shared = Shared(actor, critic, optimizer)
    shared.claimed += run.step
    shared.step += run.step
    context = mp.get_context("spawn")
    lock, stop = context.Lock(), context.Event()
    pipes, workers = [], []
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
    if can_block:  # the workers inherit it, so that no signal finds them before `work` does
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        for rank in range(args.num_workers if run.step < args.total_timesteps else 0):
            pipe, workers_end = context.Pipe(duplex=False)
            # 10⁶·seed + step + rank: no other run, worker or resumption plays the same episodes.
            seed = 10**6 * args.seed + run.step + rank
            arguments = args, seed, shared, lock, stop, workers_end
            workers.append(context.Process(target=work, args=arguments, daemon=True))
            workers[-1].start()
            workers_end.close()  # so that the worker's end is the only one: its death is seen here
            pipes.append(pipe)
    finally:
        if can_block:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    # The workers do steps 2 to 6; here their reports are logged, and the run is saved.
    whole = True  # whether θ and w are as a worker's push has left them
    try:
        while pipes:
            wait(pipes, timeout=1)
            if run.interrupted:
                stop.set()
            # With the lock nobody is in the middle of a push, and the reports of all pushes are in
            # the pipes: what is logged and saved is one state.
            whole = lock.acquire(timeout=30)
            if not whole:
                raise ChildProcessError("a worker has ended, or hangs, in the middle of a push")
            try:
                reports, error = receive(pipes)
                for step, episodes, metrics in reports:
                    run.step = step
                    for episode in episodes:
                        run.log_episode(*episode)
                    run.log_update(**metrics)
            finally:
                lock.release()
            if isinstance(error, FloatingPointError):  # its arguments are names
                run.check_finite(**dict.fromkeys(error.args, math.nan))
            if error:
                raise error
    except ChildProcessError as error:
        run.on_signal(None)
        if whole and run.step > run.saved_step:
            run.save()
        message = f"{error}\nThe run has stopped; {run.folder / 'checkpoint.pt'} holds step"
        raise RuntimeError(f"{message} {run.saved_step}. To go on: {run.resume_command}") from None
    finally:
        for worker in workers:
            worker.kill()  # those that have ended do not mind
            worker.join()
    return run.finish(actor)


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
