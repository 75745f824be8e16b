"""Asynchronous Advantage Actor-Critic (A3C); Mnih et al. 2016.

Changed from a2c.py: the loop runs in worker processes, each with one environment and a copy of θ
and w. One step per worker's gradient replaces one step along the mean gradient.

Idea
    Several workers, each a process with its own environment and its own copy of the actor π_θ and
    the critic V_w. Each pulls the shared parameters, acts for a few steps, and pushes the gradient
    whenever it is ready: no worker waits for another. With many workers, at different points of
    their episodes, consecutive gradients are less correlated, and no replay is needed.

Equations, in the order of the code
    [CS-3a]    J(θ) = E_τ[Σ_t γ^t r_t]   the objective, to be maximised
    [AC-02b]   a ∼ N(μ_θ(s), σ²I)   for Box actions; here σ is a vector, the same in all states
    [AC-02a]   π_θ(a|s) = softmax(f_θ(s))_a   for discrete actions
    [CS-5.4a]  ∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]
    [CS-10b]   δ_t = r_t + γ V(s_{t+1}) − V(s_t)   with V(s_{t+1}) = 0 if s_{t+1} is terminal
    [AC-07a]   Â_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) − V(s_t)
    [CS-9g]    ∇J = E[∇log π A]   with A = Q − V [CS-9f]: subtracting V adds no bias [CS-9b]
    [CS-10a]   ĝ_t = ∇log π Â_t   and with n = 1 it is ĝ_t = ∇log π δ_t [CS-10c]
    [CS-10d]   L_critic = δ_t²   here (V_w(s_t) − V_t^target)² [X-VF], V_t^target = Â_t + V(s_t)
    [CS-8.1a]  J_ent = J + β E_s[H(π(·|s))]
    [AC-09c]   L = L_PG − c₁ L_critic + β H   to be maximised; L_PG = E_t[log π Â_t], not L_CLIP
    [AC-07b]   g = Σ_w g_w / W   in a2c.py; here each g_w makes a step of its own
    [AC-07c]   θ ← θ + α ∇L(θ')   θ' is what the worker pulled; θ has moved since

Algorithm [AC-07c]
    1. initialise the shared policy θ and critic w; start the workers, each of which repeats:
    2. pull: θ', w' = θ, w
    3. run π_θ' for T steps in the worker's environment
    4. advantages Â by V_w', with n up to the end of the rollout or the episode (the text fixes n)
    5. the gradient of the objective L at θ', w'
    6. push: one step of the shared optimizer from θ, w along this gradient
The gradient of step 5 belongs to θ', not to the θ that it moves. It is noisier, too: one A2C update
averages 32 environments (√32 times less noise), where A3C makes 32 updates.

Not in the text [impl]
    [impl 1] observations standardised by running statistics, clipped to ±10  Andrychowicz 2021, 3.3
    [impl 2] orthogonal weights; last layer × 0.01, critic's × 0 (ours)    Andrychowicz 2021, 3.2
    [impl 3] initial σ = e^−0.5, in units of half the action range         tianshou, examples/mujoco
    [impl 4] running statistics standardise values; Â, L_VF in their unit   PopArt, van Hasselt 2016
    [impl 5] bootstrap from V(s') at time limits                           Pardo 2018
    [impl 6] RMSprop with Adam's bias correction (none in OpenAI Baselines, where v starts at 1)
    [impl 7] annealed learning rate, clipped norm of the gradient          OpenAI Baselines, a2c
    [impl 8] a lock around pull and push, so that no update is lost        the paper has none
    [impl 9] one RMSprop for all workers, with shared averages             Mnih 2016, section 4

Run: python a3c.py --env-id HalfCheetah-v4
    evaluated 2,272 ± 1,488 after 1,000,000 steps (3 seeds, see benchmarks.md)
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
from torch import Tensor, nn
from torch import multiprocessing as mp
from torch.distributions import Categorical, Distribution, Independent, Normal
from tqdm import tqdm


# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Args:
    env_id: str = "HalfCheetah-v4"  # Gymnasium id, or module:id
    total_timesteps: int = 1_000_000  # environment steps in total; with --resume, 0 only evaluates
    seed: int = 1  # seed of the weights, the actions and the environments
    # Algorithm
    learning_rate: float = 5e-4  # initial learning rate of RMSprop, about a2c.py's / √32
    num_workers: int = 2  # processes, each with one environment [AC-07c]
    num_steps: int = 32  # T, steps of a worker between pull and push [AC-07a]
    anneal_lr: bool = True  # anneal the learning rate linearly to 0 over total_timesteps
    gamma: float = 0.99  # γ, discount factor [CS-3a]
    ent_coef: float = 0.0  # β, weight of the entropy bonus [CS-8.1a]
    vf_coef: float = 0.5  # c₁, weight of the value loss, which has no factor ½ here [AC-09c]
    max_grad_norm: float = 0.1  # clip the norm of the joint gradient of θ and w to this
    # Run
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
def policy_gradient_loss(log_probs, weights) -> Tensor:
    """∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]  [CS-5.4a]

    Both (B,) → scalar, whose gradient estimates −∇J but for γ^t and a factor; weights: Q or A.
    """
    assert log_probs.shape == weights.shape
    # Ascent on the objective = descent on its negative.
    return -(log_probs * weights).mean()  # [CS-5.4a]


def n_step_advantages(rewards, values, next_values, terminations, truncations, gamma) -> Tensor:
    """Â_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) − V(s_t)  [AC-07a]

    All (T, N) → (T, N), by Â_t = δ_t + γ Â_{t+1}. The recursion starts from 0 at the end of the
    rollout, and restarts at the end of every episode, terminated or truncated.
    """
    assert rewards.shape == values.shape == next_values.shape == terminations.shape
    assert truncations.shape == terminations.shape
    # V(s') = 0 only if terminated; a time limit still bootstraps.
    td_errors = rewards + gamma * ~terminations * next_values - values  # δ [CS-10b]
    traces = gamma * ~(terminations | truncations)
    td_errors, traces = td_errors.numpy(force=True), traces.numpy(force=True)  # faster in NumPy
    advantages, advantage = np.empty_like(td_errors), 0.0
    for t in reversed(range(len(td_errors))):
        advantages[t] = advantage = td_errors[t] + traces[t] * advantage  # [AC-07a] [CS-9f]
    return torch.as_tensor(advantages, device=rewards.device)


def actor_critic_objective(actor, critic, observations, actions, advantages, targets, args):
    """L = L_PG − c₁ L_critic + β H  [AC-09c]; all (B, ...) → the scalar L, and its terms."""
    dist = actor(observations)
    # [impl 4] In units of the targets' std, so that c₁ does not depend on the scale of the rewards.
    weights = advantages / critic.return_norm.std
    policy_loss = policy_gradient_loss(dist.log_prob(actions), weights)  # [CS-10a] [CS-9g]
    value_errors = (critic(observations) - targets) / critic.return_norm.std
    value_loss = (value_errors**2).mean()  # [CS-10d] [X-VF]
    entropy = dist.entropy().mean()  # H [CS-8.1a]
    objective = -policy_loss - args.vf_coef * value_loss + args.ent_coef * entropy  # [AC-09c]
    return objective, dict(policy_loss=policy_loss, value_loss=value_loss, entropy=entropy)


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


def work(rank, args, seed, shared_actor, shared_critic, optimizer, shared_step, lock, queue):
    """One worker process: steps 2 to 6 up to total_timesteps; its metrics go to the queue."""
    torch.set_num_threads(args.num_threads)
    random.seed(seed + rank)  # other episodes in each worker
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)
    T = args.num_steps
    envs = [make_env(args.env_id)]
    actor = Actor(envs[0].observation_space, envs[0].action_space)  # θ'
    critic = Critic(envs[0].observation_space)  # w'
    parameters = [*actor.parameters(), *critic.parameters()]
    shared_parameters = [*shared_actor.parameters(), *shared_critic.parameters()]
    obs = np.stack([env.reset(seed=seed + rank)[0] for env in envs])  # (N, O), N = 1
    while shared_step < args.total_timesteps:
        # 2. Pull: θ', w' = θ, w. [impl 8]
        with lock:
            actor.load_state_dict(shared_actor.state_dict())
            critic.load_state_dict(shared_critic.state_dict())

        # 3. Run π_θ' for T steps in the worker's environment.
        obs, episodes, *samples = rollout(envs, obs, actor, T)
        observations, actions, rewards, next_observations, terminations, truncations = samples

        # 4. Advantages Â by V_w', with n up to the end of the rollout or the episode.
        # The target is a constant: no gradient flows through it.
        with torch.no_grad():
            values, next_values = critic(observations), critic(next_observations)  # (T, N)
            advantages = n_step_advantages(
                rewards, values, next_values, terminations, truncations, args.gamma
            )
            targets = advantages + values
        variance = targets.var(correction=0)
        explained_variance = 1 - advantages.var(correction=0) / variance.clamp(min=1e-20)
        # [impl 4] Update the critic's statistics before its training, which fits the new scale.
        critic.obs_norm.update(observations.flatten(0, 1))
        critic.update_return_norm(targets.flatten())

        # 5. The gradient of the objective L at θ', w', from the T samples (T, ...).
        samples = (x.flatten(0, 1) for x in (observations, actions, advantages, targets))
        objective, metrics = actor_critic_objective(actor, critic, *samples, args)
        # Ascent on the objective = descent on its negative.
        gradients = torch.autograd.grad(-objective, parameters)
        grad_norm = nn.utils.get_total_norm(gradients)
        scale = (args.max_grad_norm / grad_norm).clamp(max=1)
        metrics["grad_norm"] = grad_norm
        metrics["explained_variance"] = explained_variance
        metrics = {name: x.item() for name, x in metrics.items()}

        # 6. Push: one step of the shared optimizer from θ, w along this gradient [AC-07c].
        with lock:  # [impl 8]
            lr_fraction = 1 - float(shared_step) / args.total_timesteps if args.anneal_lr else 1.0
            optimizer.param_groups[0]["lr"] = args.learning_rate * max(lr_fraction, 0.0)  # [impl 7]
            for parameter, gradient in zip(shared_parameters, gradients):
                parameter.grad = scale * gradient
            shared_critic.obs_norm.update(observations.flatten(0, 1))
            shared_critic.update_return_norm(targets.flatten())
            optimizer.step()  # [AC-07c]
            # [impl 1] Only the shared statistics change. The copy's are part of π_θ', which acted.
            shared_actor.obs_norm.update(observations.flatten(0, 1))
            shared_step += T
            queue.put((int(shared_step), episodes, metrics))
    for env in envs:
        env.close()


def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder. Call it below `if __name__ == ...`."""
    set_up(args)
    env = make_env(args.env_id)

    # 1. Initialise the shared policy θ and critic w; start the workers.
    actor = Actor(env.observation_space, env.action_space)
    critic = Critic(env.observation_space)
    env.close()
    parameters = [*actor.parameters(), *critic.parameters()]
    # [impl 6] Adam with β₁ = 0 is RMSprop with bias correction. Without the correction, the first
    # steps would be up to 10 times too large, as the mean square starts at 0.
    optimizer = torch.optim.Adam(
        parameters, args.learning_rate, betas=(0.0, 0.99), eps=1e-5, fused=True
    )
    # [impl 9] Create Adam's state here, to share it. Otherwise each worker would create its own.
    for x in parameters:
        optimizer.state[x] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(x),
            "exp_avg_sq": torch.zeros_like(x),
        }

    run = Run(args, [], actor=actor, critic=critic, optimizer=optimizer)
    shared_step = torch.tensor(run.step).share_memory_()
    actor.share_memory()
    critic.share_memory()
    for state in optimizer.state.values():
        for x in state.values():
            x.share_memory_()
    spawn = mp.get_context("spawn")
    lock, queue = spawn.Lock(), spawn.SimpleQueue()
    seed = 10**6 * args.seed + run.step  # a resumed run has other episodes
    shared = args, seed, actor, critic, optimizer, shared_step, lock, queue
    workers = mp.spawn(work, shared, nprocs=args.num_workers, join=False, daemon=True)
    running = True
    while running or not queue.empty():
        try:
            running = not workers.join(timeout=0.1)
        except mp.ProcessRaisedException as error:  # the error of a worker that failed
            last_line = str(error).strip().split("\n")[-1]
            if last_line.startswith("FloatingPointError: "):  # one that Boundary explains
                raise FloatingPointError(last_line.removeprefix("FloatingPointError: ")) from None
            raise
        while not queue.empty():
            step, episodes, metrics = queue.get()
            for episode in episodes:
                run.log("episodes", step, episode_return=episode["r"], length=episode["l"])
            run.log("updates", step, **metrics)
        # With a timeout, because a worker holds the lock while it waits for room in the queue.
        if lock.acquire(timeout=0.1):  # no worker is in the middle of a push
            if queue.empty():  # all rows up to this step are logged
                run.save(int(shared_step))
            lock.release()
    return run.finish(int(shared_step), actor)


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
