"""Deep Deterministic Policy Gradient (DDPG); Lillicrap et al. 2015.

Idea
    If the policy is a function a = μ_θ(s) and not a distribution, its gradient needs no expectation
    over actions: it follows the slope of Q_w(s, a) in the action, times the action's slope in θ.
    Nothing in that asks who chose the action of a transition, so all of the past can be learned
    from again and again, out of a replay buffer. Noise on the action does the exploring.

Equations, in the order of the code
    [CS-3a]    J(θ) = E_τ[Σ_t γ^t r_t]   the objective, to be maximised
    [X-Q]      y = r + γ (1 − terminated) Q'(s', μ'(s'))
    [CS-10d]   L_critic = δ_t²   here (Q_w(s, a) − y)², y a constant
    [AC-10a]   ∇J(μ_θ) = E_s[∇_θ μ_θ(s) ∇_a Q(s,a)|_{a=μ_θ(s)}]
    [X-POLYAK] w' ← τ w + (1−τ) w'
    [X-REPLAY] FIFO store, uniform sample
    [AC-10b]   a = μ_θ(s) + noise   while playing

Algorithm
    1. initialise the policy θ, the critic w, and their targets θ' = θ, w' = w
    2. play a = μ_θ(s) + noise
    3. store s, a, r, s', and whether s' is terminal, in the replay buffer
    4. sample a batch of transitions from the buffer
    5. the critic: a step down (Q_w(s, a) − y)²
    6. the policy: a step up Q_w(s, μ_θ(s))
    7. the targets θ', w' follow by the share τ; back to 2

Why targets: y contains Q itself. Were it Q_w, each step on w would move its own goal, and an error
could feed on itself. Q' and μ' are copies that follow slowly. The theorem averages over the states
that μ_θ visits (the text's ρ^μ); the buffer's states stand in for them.

Not in the text [impl]
    uniformly random actions in the first 25,000 steps                  Fujimoto 2018, later code
    256-256 ReLU units, rates and noise of TD3, so that td3.py differs in its three repairs only.
        Lillicrap: 400-300 with batch normalisation, the action from the second layer on, last
        layers within ±0.003, weight decay 0.01 for the critic, noise of Ornstein and Uhlenbeck
        (θ = 0.15, σ = 0.2); and --policy-lr 1e-4 --tau 0.001 --batch-size 64
    actions and noise in units of the half range of each dimension      Fujimoto 2018, code
    time limits bootstrap                                               Pardo 2018
    matrix products in float32; --matmul-precision medium: less exact, faster on GPUs and with AMX

Run
    python ddpg.py --env-id HalfCheetah-v4
    200,000 steps in 14 to 33 minutes; return 6,520 ± 639 (3 seeds; more in benchmarks.md)

References
    Silver et al. 2014, Deterministic policy gradient algorithms, ICML
    Lillicrap et al. 2015, Continuous control with deep reinforcement learning, arXiv:1509.02971
    Fujimoto et al. 2018, Addressing function approximation error in actor-critic, arXiv:1802.09477
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
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
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
    learning_rate: float = 1e-3  # step size of the critic's Adam
    policy_lr: float | None = None  # step size of the policy's Adam; None: the critic's
    buffer_size: int = 1_000_000  # transitions that the replay buffer holds [X-REPLAY]
    gamma: float = 0.99  # γ, discount factor [CS-3a]
    tau: float = 0.005  # τ, share by which the targets follow [X-POLYAK]
    batch_size: int = 256  # B, transitions in each update
    learning_starts: int = 25_000  # steps with random actions, before the first update
    exploration_noise: float = 0.1  # std of the noise, in units of the half range [AC-10b]
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # medium: fast on some CPUs
    compile: bool = False  # compile the updates: half a minute's wait, then faster updates


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 256 ReLU units, with PyTorch's initial weights [impl]."""
    layers = [nn.Linear(inputs, 256), nn.Linear(256, 256), nn.Linear(256, outputs)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


class Actor(nn.Module):
    """μ_θ(s), in units in which the bounds of the action space are −1 and +1. [impl]

    Raises:
        ValueError: if the actions are not a Box of floats with finite bounds.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        if not is_bounded_box(action_space):
            raise ValueError(
                f"the action space is {action_space}; this script serves Box spaces of floats with "
                "finite bounds; reinforce.py, reinforce_baseline.py, a2c.py, a3c.py, trpo.py and "
                "ppo.py serve Discrete ones too"
            )
        self.action_shape, outputs = action_space.shape, math.prod(action_space.shape)
        low, high = flat_bounds(action_space)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("middle", low / 2 + high / 2)
        self.register_buffer("half_range", high / 2 - low / 2)
        self.net = mlp(observation_space.shape[0], outputs)

    def forward(self, obs: Tensor) -> Tensor:
        """obs (..., O) → actions (..., A) in [−1, 1]."""
        return torch.tanh(self.net(obs))

    def to_env(self, action: Tensor) -> Tensor:
        """An action in [−1, 1] → the action that env.step takes."""
        action = (self.middle + self.half_range * action).clamp(self.low, self.high)
        return action.reshape(action.shape[:-1] + self.action_shape)

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """obs (B, O) → the policy's actions without noise, as env.step takes them."""
        return self.to_env(self(obs))


class Critic(nn.Module):
    """Q_w(s, a)."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        self.net = mlp(observation_space.shape[0] + math.prod(action_space.shape), 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """obs (..., O) and actions (..., A) in [−1, 1] → values (...,)."""
        return self.net(torch.cat((obs, action), -1)).squeeze(-1)


# ── Equations ─────────────────────────────────────────────────────────────────────────────────────


def td_target(rewards: Tensor, next_q: Tensor, terminations: Tensor, gamma: float) -> Tensor:
    """y = r + γ (1 − terminated) Q'(s', μ'(s'))  [X-Q]

    All (B,) → (B,).
    """
    assert rewards.shape == next_q.shape == terminations.shape
    # V(s') = 0 only if terminated; a time limit still bootstraps.
    return rewards + gamma * (1 - terminations.to(rewards.dtype)) * next_q  # [X-Q]


def q_loss(q_values: Tensor, target_q: Tensor) -> Tensor:
    """L_critic = δ_t²  [CS-10d]

    Here (Q_w(s, a) − y)²; values and targets, both (B,), → scalar, the mean.
    """
    assert q_values.shape == target_q.shape
    return ((q_values - target_q) ** 2).mean()  # [CS-10d]


def deterministic_policy_loss(actor: Actor, critic: Critic, observations: Tensor) -> Tensor:
    """∇J(μ_θ) = E_s[∇_θ μ_θ(s) ∇_a Q(s,a)|_{a=μ_θ(s)}]  [AC-10a]

    Observations (B, O) → scalar, to be minimised over θ. The product of the two Jacobians is the
    chain rule, which autograd applies to Q_w(s, μ_θ(s)).
    """
    # Ascent on the objective = descent on its negative.
    return -critic(observations, actor(observations)).mean()  # [AC-10a]


@torch.no_grad()
def polyak_update(source: nn.Module, target: nn.Module, tau: float) -> None:
    """w' ← τ w + (1−τ) w'  [X-POLYAK]"""
    # All tensors of the network in one call: lerp is w' + τ (w − w').
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)  # [X-POLYAK]


# ── Replay buffer ─────────────────────────────────────────────────────────────────────────────────


class ReplayBuffer:
    """FIFO store, uniform sample  [X-REPLAY]

    In main memory, one array for each field; an array takes memory only as far as it is written.
    """

    def __init__(self, size: int, obs_size: int, action_size: int, device: torch.device) -> None:
        self.arrays = {
            "observations": np.empty((size, obs_size), np.float32),
            "actions": np.empty((size, action_size), np.float32),
            "rewards": np.empty(size, np.float32),
            "next_observations": np.empty((size, obs_size), np.float32),
            "terminations": np.empty(size, bool),
        }
        self.tensors = [torch.from_numpy(array) for array in self.arrays.values()]  # same memory
        self.size, self.device = size, device
        self.filled = self.next = 0  # number of rows written; the row to be written next

    def __len__(self) -> int:
        return self.filled

    def add(self, *transition: np.ndarray | float) -> None:
        """Stores obs, action, reward, next_obs, terminated, if full in place of the oldest row."""
        for array, value in zip(self.arrays.values(), transition, strict=True):
            array[self.next] = value  # [X-REPLAY]
        self.next = (self.next + 1) % self.size
        self.filled = min(self.filled + 1, self.size)

    def sample(self, batch_size: int) -> list[Tensor]:
        """Draws rows with replacement: (B, O), (B, A), (B,), (B, O), (B,), in the order of add."""
        rows = torch.randint(self.filled, (batch_size,))  # never one that was not written
        return [tensor[rows].to(self.device) for tensor in self.tensors]  # [X-REPLAY]

    def state_dict(self) -> dict:
        """The rows written so far. They share the buffer's memory: saving them copies nothing."""
        rows = {name: torch.from_numpy(array[: len(self)]) for name, array in self.arrays.items()}
        return {"next": self.next, **rows}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the buffer has no room for all rows."""
        self.filled = len(state["rewards"])
        if self.filled > self.size:
            raise ValueError(f"buffer_size is {self.size}; this run needs {self.filled} or more")
        # Where there is room left the oldest row comes first, even if the saved buffer was full.
        full = self.filled == self.size
        oldest = 0 if full else state["next"]
        self.next = (state["next"] if full else self.filled) % self.size
        for name, array in self.arrays.items():
            rows = state[name].numpy()
            array[: self.filled - oldest] = rows[oldest:]
            array[self.filled - oldest : self.filled] = rows[:oldest]


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────


def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder.

    Raises:
        ValueError: for an argument or an environment that cannot be used.
        FloatingPointError: when an observation, a reward, a loss or a parameter is not finite.
        OSError: when the run's folder cannot be written.
    """
    device = prepare(args, least_steps=args.learning_starts + 1)
    env = make_env(args.env_id)
    spaces = env.observation_space, env.action_space

    # 1. Initialise the policy θ, the critic w, and their targets θ' = θ, w' = w.
    actor = Actor(*spaces).to(device)
    critic = Critic(*spaces).to(device)
    actor_target, critic_target = copy.deepcopy(actor), copy.deepcopy(critic)
    theta, w = list(actor.parameters()), list(critic.parameters())
    policy_lr = args.learning_rate if args.policy_lr is None else args.policy_lr
    actor_optimizer = torch.optim.Adam(theta, policy_lr, fused=True)
    critic_optimizer = torch.optim.Adam(w, args.learning_rate, fused=True)
    buffer = ReplayBuffer(args.buffer_size, spaces[0].shape[0], len(actor.low), device)

    def critic_update(*batch: Tensor) -> Tensor:
        """A step on w down the critic's loss; returns the loss and the mean of Q."""
        observations, actions, rewards, next_observations, terminations = batch
        # The target is a constant: no gradient flows through it.
        with torch.no_grad():
            next_actions = actor_target(next_observations)  # (B, A)
            next_q = critic_target(next_observations, next_actions)  # (B,)
            target_q = td_target(rewards, next_q, terminations, args.gamma)  # (B,)
        q_values = critic(observations, actions)  # (B,)
        loss = q_loss(q_values, target_q)
        loss.backward()
        critic_optimizer.step()
        critic_optimizer.zero_grad()
        return torch.stack((loss, q_values.mean())).detach()

    def actor_update(observations: Tensor) -> Tensor:
        """A step on θ down the mean −Q_w(s, μ_θ(s)), which it returns; w stays as it is."""
        loss = deterministic_policy_loss(actor, critic, observations)
        loss.backward(inputs=theta)  # w's gradient is not even computed
        actor_optimizer.step()
        actor_optimizer.zero_grad()
        return loss.detach()

    networks = dict(actor=actor, critic=critic)
    targets = dict(actor_target=actor_target, critic_target=critic_target)
    optimizers = dict(actor_optimizer=actor_optimizer, critic_optimizer=critic_optimizer)
    run = Run(args, env, **networks, **targets, **optimizers, buffer=buffer)
    if args.compile:
        critic_update = compiled(critic_update, device, critic_optimizer)
        actor_update = compiled(actor_update, device, actor_optimizer)

    if run.step == 0:  # seeds, once; the loop resets; a resumed run has its generator back
        env.reset(seed=10**6 * args.seed)
    done, pause, critic_logs, actor_logs = True, True, [], []
    while run.step < args.total_timesteps and not (run.interrupted and pause and not critic_logs):
        if done:
            obs, first_step = np.array(env.reset()[0], np.float32), run.step  # (O,)
            run.check_finite(observation=obs)

        # 2. Play a = μ_θ(s) + noise; [impl] at first any action.
        with torch.inference_mode():
            if run.step < args.learning_starts:
                action = 2 * torch.rand(len(actor.low), device=device) - 1  # (A,)
            else:
                action = actor(torch.as_tensor(obs, device=device))  # (A,)
                noise = args.exploration_noise * torch.randn_like(action)
                action = (action + noise).clamp(-1, 1)  # [AC-10b]
            env_action = actor.to_env(action).numpy(force=True)
        next_obs, reward, terminated, truncated, info = env.step(env_action)
        next_obs = np.array(next_obs, np.float32)  # a copy: some environments write into their own
        run.step += 1
        run.check_finite(action=env_action, observation=next_obs, reward=reward)

        # 3. Store s, a, r, s', and whether s' is terminal, in the replay buffer.
        # next_obs is the true successor; the environment is reset in the next turn only.
        buffer.add(obs, action.numpy(force=True), reward, next_obs, terminated)
        obs, done = next_obs, terminated or truncated
        if done:
            run.log_episode(info["episode"]["r"], info["episode"]["l"])

        if run.step > args.learning_starts:
            # 4. Sample a batch of transitions from the buffer.
            batch = buffer.sample(args.batch_size)

            # 5. The critic: a step down (Q_w(s, a) − y)².
            critic_logs.append(critic_update(*batch))

            # 6. The policy: a step up Q_w(s, μ_θ(s)).
            actor_logs.append(actor_update(batch[0]))

            # 7. The targets follow by the share τ.
            polyak_update(critic, critic_target, args.tau)
            polyak_update(actor, actor_target, args.tau)

        # Resumed at an episode's end, it is the same run. Without one, it pauses each 10,000 steps.
        pause = done or run.step == args.total_timesteps or (run.step - first_step) % 10_000 == 0
        if pause and actor_logs:
            loss, q_value = torch.stack(critic_logs).mean(0)
            policy_loss = torch.stack(actor_logs).mean()
            run.log_update(q_loss=loss, q_value=q_value, policy_loss=policy_loss)
            critic_logs, actor_logs = [], []
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
