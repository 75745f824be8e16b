"""REINFORCE with a learned baseline, also called the vanilla policy gradient; Williams 1992.

Idea
    What counts is not whether an episode went well, but whether it went better than was to be
    expected from that state. A second network V_w learns what to expect, and is subtracted from the
    return. The gradient stays the same in expectation, and much of its noise is gone.

Equations, in the order of the code
    [CS-3a]    J(θ) = E_τ[Σ_t γ^t r_t]   the objective, to be maximised
    [CS-5.1/5.2]  J = E[V(s₀)]; V^π(s) = Σ_a π(a|s) Q^π(s,a)
    [AC-02a]   π_θ(a|s) = softmax(f_θ(s))_a   for Discrete actions
    [AC-02b]   a ∼ N(μ_θ(s), σ²I)   for Box actions; here σ is a vector, the same in all states
    [CS-6a]    G_t = Σ_{k=t..T} γ^{k−t} r_k
    [CS-5.4a]  ∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]
    [CS-9e]    b(s_t) = V^π(s_t)   learnt by V_w, here from whole returns G_t; by TD in a2c.py
    [CS-9f]    A = Q − V ≈ G_t − V(s_t)
    [CS-9a]    ĝ_t = ∇log π (G_t − b(s_t))
    [CS-9g]    ∇J = E[∇log π A]
    [CS-4a]    θ ← θ + α ∇J(θ)   here by a step of Adam
    [X-VF]     L_VF = (V_w(s_t) − V_t^target)²   with V_t^target = G_t

Why the baseline costs no bias
    [CS-9b]    E_a[∇log π(a|s) b(s)] = 0: it is b(s) Σ_a π ∇log π = b(s) Σ_a ∇π = b(s) ∇1 = 0.
    Whatever b(s) is, pushing all actions of a state by the same weight changes nothing in the mean.
    It must not depend on the action; so V_w is asked before it is fitted to that action's return.

Algorithm [CS-6alg]: that of reinforce.py, with the baseline in line 6, and line 8 new
    1. initialise the policy θ and the critic w
    2. for each episode:
    3.     sample a trajectory τ by following π_θ
    4.     for each of its steps t:
    5.         the return G_t
    6.         the gradient estimate ĝ_t, with the weight G_t − b(s_t)
    7.     θ ← θ + α (1/T) Σ_t ĝ_t
    8.     fit V_w to the returns, by steps of Adam down L_VF

Not in the text [impl]
    lines 3 to 6 for several episodes before line 7: batch_size steps and more    Duan 2016
    the weights G − b standardised over the batch (whose mean has the action's own return in it, a
        bias of the order 1/B)                                          OpenAI Spinning Up, vpg
    values standardised by running statistics, without a change of V_w  van Hasselt 2016
    observations standardised by running statistics, clipped to ±10     Andrychowicz 2021, 3.3
    orthogonal weights; last layer of the policy × 0.01                 Andrychowicz 2021, 3.2
    σ starts at e^−0.5; actions in units of the half range              tianshou, examples/mujoco

Changed from reinforce.py
    Critic; b = V(s_t) is subtracted from the returns (norm_adv takes the place of norm_returns);
    the critic's fit follows the policy's step, with its own arguments and --compile.

Run
    python reinforce_baseline.py --env-id HalfCheetah-v4
    1,000,000 steps in 2 minutes; return 850.4 ± 282.3 (10 seeds; more in benchmarks.md)

References
    Williams 1992, Simple statistical gradient-following algorithms, Machine Learning 8
    Duan et al. 2016, Benchmarking deep RL for continuous control, arXiv:1604.06778
    Andrychowicz et al. 2021, What matters in on-policy reinforcement learning?, arXiv:2006.05990
    van Hasselt et al. 2016, Learning values across many orders of magnitude, arXiv:1602.07714
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
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import gymnasium as gym
import numpy as np
import torch
import tyro
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
    learning_rate: float = 2e-3  # α, step size of Adam [CS-4a]
    batch_size: int = 2048  # an update waits for whole episodes of so many steps; 1: for each one
    gamma: float = 0.99  # γ, discount factor [CS-3a]
    norm_adv: bool = True  # standardise the weights G − b of each batch
    critic_learning_rate: float = 1e-3  # step size of the critic's Adam
    critic_epochs: int = 10  # how often the critic's fit goes through each batch [CS-9e]
    critic_batch_size: int = 64  # steps in each minibatch of that fit
    compile: bool = False  # compile the critic's fit: some seconds' wait, then a faster fit


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


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """G_t = Σ_{k=t..T} γ^{k−t} r_k  [CS-6a]

    The rewards of one whole episode of T steps, (T,) → (T,), by G_t = r_t + γ G_{t+1}.
    """
    returns, future = [], 0.0
    for reward in rewards.flip(0):  # from the last step back to the first
        future = reward + gamma * future  # [CS-6a]
        returns.append(future)
    return torch.stack(returns[::-1])


def policy_gradient_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]  [CS-5.4a]

    Log-probabilities and weights, an estimate of Q or of A, both (B,) → scalar, to be minimised;
    its gradient estimates −∇J, up to a factor, as it is a mean over the B steps.
    """
    assert log_probs.shape == weights.shape
    # Ascent on the objective = descent on its negative.
    return -(log_probs * weights).mean()  # [CS-5.4a]


def value_loss(values: Tensor, targets: Tensor) -> Tensor:
    """L_VF = (V_w(s_t) − V_t^target)²  [X-VF]

    Both (B,) → scalar, the mean over the B steps, to be minimised.
    """
    assert values.shape == targets.shape
    return ((values - targets) ** 2).mean()  # [X-VF]


def explained_variance(values: Tensor, targets: Tensor) -> Tensor:
    """1 − Var(target − V)/Var(target): 1 for a perfect critic, 0 for a constant one."""
    variance = targets.var(correction=0).clamp(min=1e-8)
    return 1 - (targets - values).var(correction=0) / variance


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────


def play_episode(env: gym.Env, actor: Actor, run: Run) -> tuple[Tensor, Tensor, Tensor] | None:
    """Plays one episode to its end, counts its steps and logs it.

    Returns:
        observations (T, O), actions (T,) or (T, A), rewards (T,); or None if `total_timesteps` are
        reached before its end: nobody knows what would have come, so it has no return.
    """
    device = next(actor.parameters()).device
    observations, actions, rewards, done = [], [], [], False
    obs, _ = env.reset()
    while not done:
        if run.step == run.args.total_timesteps:
            if not run.recent_returns:
                run.on_signal(None)
                raise ValueError(
                    f"no episode of {run.args.env_id} ended within {run.step} steps, and this "
                    "script learns from whole episodes; raise total_timesteps, or use a2c.py"
                )
            return None
        run.check_finite(observation=np.asarray(obs, np.float32))
        # A copy: some environments write into the array that they have given.
        obs = torch.tensor(obs, dtype=torch.float32, device=device)
        with torch.inference_mode():
            action = actor(obs).sample()
            env_action = actor.to_env(action).numpy(force=True)[()]  # a number if it is just one
        next_obs, reward, terminated, truncated, info = env.step(env_action)
        run.step += 1
        run.check_finite(reward=reward)
        observations.append(obs)
        actions.append(action)
        rewards.append(float(reward))
        obs, done = next_obs, terminated or truncated
    run.log_episode(info["episode"]["r"], info["episode"]["l"])
    return torch.stack(observations), torch.stack(actions), torch.tensor(rewards, device=device)


def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder.

    Raises:
        ValueError: for an argument or an environment that cannot be used.
        FloatingPointError: when an observation, a reward, a loss or a parameter is not finite.
        OSError: when the run's folder cannot be written.
    """
    device = prepare(args, least_steps=args.batch_size)
    env = make_env(args.env_id)

    # 1. Initialise the policy θ and the critic w.
    actor = Actor(env.observation_space, env.action_space).to(device)
    critic = Critic(env.observation_space).to(device)
    optimizer = torch.optim.Adam(actor.parameters(), args.learning_rate, fused=True)
    critic_optimizer = torch.optim.Adam(critic.parameters(), args.critic_learning_rate, fused=True)

    def critic_update(observations: Tensor, targets: Tensor) -> Tensor:
        """A step of Adam down L_VF in units of the targets' variance, which it returns."""
        loss = value_loss(critic(observations), targets) / critic.return_norm.std**2
        loss.backward()
        critic_optimizer.step()
        critic_optimizer.zero_grad()
        return loss.detach()

    state = dict(actor=actor, critic=critic, optimizer=optimizer, critic_optimizer=critic_optimizer)
    run = Run(args, env, **state)
    if args.compile:
        critic_update = compiled(critic_update, device, critic_optimizer)

    if run.step == 0:  # seeds, once; the loop resets; a resumed run has its generator back
        env.reset(seed=10**6 * args.seed)
    while run.step < args.total_timesteps and not run.interrupted:  # [CS-6alg]
        # 2. For each episode; [impl] several of them before θ moves.
        episodes, steps = [], 0
        while steps < args.batch_size:
            # 3. Sample a trajectory τ by following π_θ.
            episode = play_episode(env, actor, run)
            if episode is None:
                break
            observations, actions, rewards = episode

            # 4. For each of its steps t:
            # 5. the return G_t,
            returns = discounted_returns(rewards, args.gamma)  # (T,)
            episodes.append((observations, actions, returns))
            steps += len(returns)
        if not episodes:
            break

        # 6. the gradient estimate ĝ_t, for all steps of all episodes at once.
        observations, actions, returns = (torch.cat(parts) for parts in zip(*episodes))  # (B, ...)
        # The baseline is a constant for the policy, and has not seen these returns yet.
        with torch.no_grad():
            baseline = critic(observations)  # (B,) [CS-9e]
        weights = returns - baseline  # [CS-9a] [CS-9f]
        if args.norm_adv and len(weights) > 1:  # the std of one number is NaN
            weights = (weights - weights.mean()) / (weights.std() + 1e-8)
        dist = actor(observations)
        policy_loss = policy_gradient_loss(dist.log_prob(actions), weights)  # [CS-9g]
        policy_loss.backward()

        # 7. θ ← θ + α (1/T) Σ_t ĝ_t, here with all the batch's steps for T [CS-6c].
        optimizer.step()  # [CS-4a]
        optimizer.zero_grad()

        # 8. Fit V_w to the returns. [impl] All statistics move first; the fit corrects what that
        # changes of V_w.
        actor.obs_norm.update(observations)
        critic.obs_norm.update(observations)
        critic.update_return_norm(returns)
        losses = []
        for _ in range(args.critic_epochs):
            order = torch.randperm(len(returns), device=device)
            shuffled = observations[order], returns[order]
            minibatches = (tensor.split(args.critic_batch_size) for tensor in shuffled)
            for minibatch in zip(*minibatches):
                losses.append(critic_update(*minibatch))
        run.log_update(
            policy_loss=policy_loss.detach(),
            value_loss=torch.stack(losses).mean(),
            entropy=dist.entropy().mean().detach(),
            explained_variance=explained_variance(baseline, returns),
            discounted_return=returns.mean(),  # of all steps, not only the first of each episode
            episodes=len(episodes),
        )
    env.close()
    return run.finish(actor)


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
