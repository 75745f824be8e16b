"""Soft Actor-Critic (SAC); Haarnoja et al. 2018, with the temperature of Haarnoja et al. 2018b.

Changed from td3.py: a squashed Gaussian replaces μ, μ' and both noises. The target gets −α log π.
The policy minimises α log π − min Q_i. α is learned. No delayed updates.

Idea
    Maximise the return plus α times the policy's entropy, so that of two equally good actions the
    policy keeps both, and explores without added noise. Its gradient flows through the sampled
    action into Q, as in DDPG: the sample is a function of θ and of noise that does not depend on θ.
    α is adapted so that the entropy stays near a target.

Equations, in the order of the code
    [AC-12a]   J(π) = E[Σ_t γ^t (r_t + α H(π(·|s_t)))]   the objective, to be maximised
    [CS-2.1a]  z = μ + σ⊙ε, ε∼N(0,I)   z is called u from here on
    [AC-12c]   a = tanh(μ + σ⊙ε), ε∼N(0,I)   μ and σ are both functions of s here
    [X-LOGP]   log π(a|s) = log N(u;μ,σ²) − Σ log(1−tanh²u)   with a = tanh u
    [AC-11a]   min(Q_{w1'}, Q_{w2'})
    [X-SOFTQ]  y = r + γ (1 − terminated)(min_i Q_i'(s',a') − α log π(a'|s')), a'∼π_θ
    [X-JPI]    min_θ E[α log π(a|s) − min_i Q_i(s,a)]
    [X-ALPHA]  J(α) = E[−α(log π + H̄)], H̄ = −dim(A)
    [X-POLYAK] w' ← τ w + (1−τ) w'
    [X-REPLAY] FIFO store, uniform sample
    [CS-10d]   L_critic = δ_t²   here (Q_w(s, a) − y)² for each critic
    [AC-12b]   H = −E_a[log π(a|s)]   estimated from the batch, for updates.csv

Algorithm
    1. initialise the policy θ, the critics w1, w2, their targets w1' = w1, w2' = w2, and α
    2. act with a ∼ π_θ(·|s)
    3. store s, a, r, s', and whether s' is terminal, in the replay buffer
    4. sample a batch of transitions from the buffer
    5. critics: one step down (Q_w1(s, a) − y)² + (Q_w2(s, a) − y)²
    6. policy: one step down α log π_θ(a|s) − min_i Q_wi(s, a), with a new a ∼ π_θ(·|s)
    7. temperature: one step of α down J(α)
    8. targets: w1', w2' move towards w1, w2 at the rate τ; go to 2
[X-LOGP] divides the Gaussian's density by da/du = 1 − tanh²u, the change of variables from u to a.
The text's [AC-12a] has neither the γ^t of [CS-3a] nor parentheses around r + αH.
The entropy of a density can be negative, and so is its target H̄.

Not in the text [impl]
    [impl 1] the first 10,000 actions are random (code: 1,000 or 10,000)   Haarnoja 2018, code
    [impl 2] 256-256 ReLU units                                            Haarnoja 2018, appendix D
    [impl 3] actions and H̄ in units of half the action range              Haarnoja 2018b
    [impl 4] bootstrap from V(s') at time limits                           Pardo 2018
    [impl 5] Adam: policy 3e-4, critics and temperature 1e-3 (papers: 3e-4)  CleanRL
    [impl 6] log σ clamped to [−5, 2] (no gradient beyond)                 CleanRL, by a tanh
    [impl 7] step 7 moves log α, so that α stays positive                  Haarnoja 2018b, code

Run: python sac.py --env-id HalfCheetah-v4
    evaluated 11,394 after 1,000,000 steps (1 seed, see benchmarks.md)
"""

import contextlib
import copy
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
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm


# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Args:
    env_id: str = "HalfCheetah-v4"  # Gymnasium id, or module:id
    total_timesteps: int = 1_000_000  # environment steps in total; with --resume, 0 only evaluates
    seed: int = 1  # seed of the weights, the actions and the environments
    # Algorithm
    q_lr: float = 1e-3  # learning rate of the critics' and the temperature's Adam
    policy_lr: float = 3e-4  # learning rate of the policy's Adam [impl 5]
    buffer_size: int = 1_000_000  # transitions that the replay buffer holds [X-REPLAY]
    gamma: float = 0.99  # γ, discount factor [AC-12a]
    tau: float = 0.005  # τ, averaging rate of the target networks [X-POLYAK]
    batch_size: int = 256  # B, transitions per update
    learning_starts: int = 10_000  # steps with uniformly random actions before the first update
    alpha: float = 0.2  # α, weight of the entropy [AC-12a]; with autotune its initial value
    autotune: bool = True  # adapt α so that the entropy stays near H̄ [X-ALPHA]
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # medium: bfloat16
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
    """π_θ(a|s), a squashed Gaussian, in units of half the action range: a in [−1, 1] [impl 3]."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        is_box = isinstance(action_space, gym.spaces.Box) and action_space.dtype.kind == "f"
        if not is_box or not np.isfinite(action_space.high - action_space.low).all():
            raise gym.error.Error(f"tanh needs a float Box with finite bounds, not {action_space}")
        self.space = action_space
        self.net = mlp(observation_space.shape[0], 2 * action_space.low.size)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs (..., O) → μ and log σ, both (..., A), of the Gaussian before squashing."""
        mean, log_std = self.net(obs).chunk(2, -1)
        return mean, log_std.clamp(-5, 2)  # [impl 6]

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs (..., O) → actions (..., A) and log π (...,); gradients flow through both."""
        mean, log_std = self(obs)
        unsquashed = mean + log_std.exp() * torch.randn_like(mean)  # u [CS-2.1a]
        return torch.tanh(unsquashed), squashed_log_prob(unsquashed, mean, log_std)  # [AC-12c]

    def to_env(self, action: Tensor) -> np.ndarray:
        """Actions (..., A) in [−1, 1] → the action that env.step expects."""
        action = action.numpy(force=True).reshape(action.shape[:-1] + self.space.shape)
        low, high = self.space.low, self.space.high
        unit = (high - low) / 2
        return (low + unit + unit * action).clip(low, high).astype(self.space.dtype)

    @torch.no_grad()
    def mode(self, obs: np.ndarray) -> np.ndarray:
        """obs (..., O) → the action without noise, as env.step expects it."""
        obs = torch.as_tensor(obs, device=next(self.parameters()).device)
        mean, _ = self(obs)
        return self.to_env(torch.tanh(mean))


class Critic(nn.Module):
    """Q_w(s, a)."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        self.net = mlp(observation_space.shape[0] + action_space.low.size, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """obs (..., O) and actions (..., A) in [−1, 1] → values (...,)."""
        return self.net(torch.cat((obs, action), -1)).squeeze(-1)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 256 ReLU units, PyTorch's default initialisation [impl 2]."""
    layers = [nn.Linear(inputs, 256), nn.Linear(256, 256), nn.Linear(256, outputs)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


# ── Equations ─────────────────────────────────────────────────────────────────────────────────────
def squashed_log_prob(unsquashed, mean, log_std) -> Tensor:
    """log π(a|s) = log N(u;μ,σ²) − Σ log(1−tanh²u)  [X-LOGP]; u, μ, log σ (..., A) → (...,)."""
    squares = ((unsquashed - mean) / log_std.exp()) ** 2
    log_gaussian = -0.5 * (squares + 2 * log_std + math.log(2 * math.pi))
    # log(1 − tanh²u) = log 4 − 2u − 2 log(1 + e^(−2u)): exact where 1 − tanh²u would round to 0.
    log_slope = 2 * (math.log(2) - unsquashed - F.softplus(-2 * unsquashed))
    # Sum log-probabilities over action dimensions: (B, A) → (B,).
    return (log_gaussian - log_slope).sum(-1)  # [X-LOGP]


def td_target(rewards, next_q1, next_q2, next_log_probs, terminations, gamma, alpha) -> Tensor:
    """y = r + γ (1 − terminated)(min_i Q_i'(s',a') − α log π(a'|s')), a'∼π_θ  [X-SOFTQ]

    All (B,) → (B,).
    """
    assert rewards.shape == next_q1.shape == next_q2.shape == next_log_probs.shape
    assert terminations.shape == rewards.shape
    next_values = torch.min(next_q1, next_q2) - alpha * next_log_probs  # [AC-11a]
    # V(s') = 0 only if terminated; a time limit still bootstraps.
    return rewards + gamma * ~terminations * next_values  # [X-SOFTQ]


def soft_policy_loss(log_probs, q1, q2, alpha) -> Tensor:
    """min_θ E[α log π(a|s) − min_i Q_i(s,a)]  [X-JPI]; all (B,) → scalar, to be minimised."""
    assert log_probs.shape == q1.shape == q2.shape
    return (alpha * log_probs - torch.min(q1, q2)).mean()  # [X-JPI]


def temperature_loss(alpha, log_probs, target_entropy) -> Tensor:
    """J(α) = E[−α(log π + H̄)], H̄ = −dim(A)  [X-ALPHA]; α rises while the entropy is below H̄."""
    return (-alpha * (log_probs + target_entropy)).mean()  # [X-ALPHA]


@torch.no_grad()
def polyak_update(source: nn.Module, target: nn.Module, tau: float) -> None:
    """w' ← τ w + (1−τ) w'  [X-POLYAK], for all parameters of a network at once."""
    torch._foreach_lerp_([*target.parameters()], [*source.parameters()], tau)  # [X-POLYAK]


# ── Replay buffer ─────────────────────────────────────────────────────────────────────────────────
class ReplayBuffer:
    """FIFO store, uniform sample  [X-REPLAY]; one array per field, in main memory."""

    def __init__(self, size: int, obs_size: int, action_size: int, device: torch.device) -> None:
        shapes = (size, obs_size), (size, action_size), (size,), (size, obs_size)
        with explained(f"--buffer-size {size}"):  # for the error if memory is too small
            self.arrays = [np.empty(shape, np.float32) for shape in shapes] + [np.empty(size, bool)]
        self.size, self.device = size, device
        self.filled, self.next = 0, 0

    def add(self, *transition) -> None:
        """Stores obs, action, reward, next_obs, terminated; if full, in place of the oldest."""
        for array, value in zip(self.arrays, transition, strict=True):
            array[self.next] = value  # [X-REPLAY]
        self.filled = max(self.filled, self.next + 1)
        self.next = (self.next + 1) % self.size

    def sample(self, batch_size: int) -> list[Tensor]:
        """(B, O), (B, A), (B,), (B, O), (B,), drawn with replacement, in the order of add."""
        rows = torch.randint(self.filled, (batch_size,))
        return [torch.from_numpy(x)[rows].to(self.device) for x in self.arrays]  # [X-REPLAY]

    def state_dict(self) -> dict:
        """The rows written so far, without copying them."""
        rows = [torch.from_numpy(array[: self.filled]) for array in self.arrays]
        return {"next": self.next, "rows": rows}

    def load_state_dict(self, state: dict) -> None:
        """Restores the rows; in a buffer of another size, the newest that fit, the oldest first."""
        self.next, saved = state["next"] % self.size, len(state["rows"][0])
        self.filled = min(saved, self.size)
        for array, rows in zip(self.arrays, state["rows"], strict=True):
            if saved != self.size:
                rows = rows.roll(-state["next"], 0)[-self.size :]
            array[: self.filled] = rows.numpy()
        if saved != self.size:
            self.next = self.filled % self.size


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────
def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder."""
    if args.learning_starts >= args.total_timesteps > 0:
        raise gym.error.Error("learning_starts must be less than total_timesteps")
    device = set_up(args, args.cuda)
    torch.set_float32_matmul_precision(args.matmul_precision)
    env = make_env(args.env_id)
    env.reset(seed=10**6 * args.seed)  # once; later resets draw from env's generator
    spaces = env.observation_space, env.action_space

    # 1. Initialise the policy θ, the critics w1, w2, their targets w1' = w1, w2' = w2, and α.
    actor = Actor(*spaces).to(device)
    critics = nn.ModuleList([Critic(*spaces), Critic(*spaces)]).to(device)
    # A list of one, because a module has what Run saves: state_dict and load_state_dict.
    log_alpha = nn.ParameterList([torch.tensor(args.alpha).log()]).to(device)
    networks = {
        "actor": actor,
        "critics": critics,
        "log_alpha": log_alpha,
        "target_critics": copy.deepcopy(critics),
        "actor_adam": Adam(actor.parameters(), args.policy_lr).to(device),
        "critic_adam": Adam(critics.parameters(), args.q_lr).to(device),
        "alpha_adam": Adam(log_alpha.parameters(), args.q_lr).to(device),
    }
    action_size = env.action_space.low.size
    buffer_size = min(args.buffer_size, max(args.total_timesteps, 1))
    buffer = ReplayBuffer(buffer_size, env.observation_space.shape[0], action_size, device)

    run = Run(args, [env], **networks, buffer=buffer)
    step_networks = compiled(update, args.cuda) if args.compile else update
    step, done = run.step, True
    losses = []
    for step in range(step + 1, args.total_timesteps + 1):
        if done:
            obs, _ = env.reset()  # (O,)
            first_step = step

        # 2. Act with a ∼ π_θ(·|s); [impl 1] uniformly random actions at first.
        with torch.inference_mode():
            if step <= args.learning_starts:
                action = 2 * torch.rand(action_size) - 1  # (A,)
            else:
                action, _ = actor.sample(torch.as_tensor(obs, device=device))  # (A,)
        next_obs, reward, terminated, truncated, info = env.step(actor.to_env(action))

        # 3. Store s, a, r, s', and whether s' is terminal, in the replay buffer.
        # next_obs is the true successor, even when the env has just been reset. [impl 4]
        buffer.add(obs, action.numpy(force=True), reward, next_obs, terminated)
        obs = next_obs
        done = terminated or truncated

        # 4. Sample a batch of transitions from the buffer, and update the networks with it.
        if step > args.learning_starts:
            batch = buffer.sample(args.batch_size)
            metrics = step_networks(args, batch, **networks)
            losses.append(torch.stack([*metrics.values()]))

        run.bar.update()
        if done:
            episode = info.pop("_episode")
            run.log("episodes", step, episode_return=episode["r"], length=episode["l"])
        # Log and save when an episode ends, where a resumed run continues exactly, and every 10,000
        # steps inside a long one, where it starts a new episode.
        if done or step == args.total_timesteps or (step - first_step) % 10_000 == 9_999:
            if losses:
                run.log("updates", step, **dict(zip(metrics, torch.stack(losses).mean(0))))
                losses = []
            run.save(step)
    return run.finish(step, actor)


def update(
    args, batch, actor, critics, log_alpha, target_critics, actor_adam, critic_adam, alpha_adam
) -> dict[str, Tensor]:
    """Steps 5 to 8 with a batch (B, ...); returns the metrics."""
    observations, actions, rewards, next_observations, terminations = batch

    # 5. Critics: one step down (Q_w1(s, a) − y)² + (Q_w2(s, a) − y)².
    # The target is a constant: no gradient flows through it.
    with torch.no_grad():
        # A tensor in both cases.
        alpha = log_alpha[0].exp() if args.autotune else rewards.new_tensor(args.alpha)
        next_actions, next_log_probs = actor.sample(next_observations)  # (B, A), (B,)
        next_q1, next_q2 = (q(next_observations, next_actions) for q in target_critics)  # (B,)
        target_q = td_target(
            rewards, next_q1, next_q2, next_log_probs, terminations, args.gamma, alpha
        )  # (B,)
    q1, q2 = (q(observations, actions) for q in critics)  # (B,)
    critic_loss = ((q1 - target_q) ** 2 + (q2 - target_q) ** 2).mean()  # [CS-10d]
    critic_adam.step(critic_loss)

    # 6. Policy: one step down α log π_θ(a|s) − min_i Q_wi(s, a), with a new a ∼ π_θ(·|s).
    new_actions, log_probs = actor.sample(observations)  # (B, A), (B,)
    new_q1, new_q2 = (q(observations, new_actions) for q in critics)  # (B,)
    policy_loss = soft_policy_loss(log_probs, new_q1, new_q2, alpha)
    actor_adam.step(policy_loss)

    # 7. Temperature: one step of α down J(α), with the same log π. [impl 7] It moves log α.
    if args.autotune:
        target_entropy = -actions.shape[-1]  # H̄
        alpha_loss = temperature_loss(log_alpha[0].exp(), log_probs.detach(), target_entropy)
        alpha_adam.step(alpha_loss)

    # 8. Targets: w1', w2' move towards w1, w2 at the rate τ.
    polyak_update(critics, target_critics, args.tau)
    metrics = {"q_loss": critic_loss, "q_value": q1.mean(), "policy_loss": policy_loss}
    metrics["entropy"] = -log_probs.mean()  # [AC-12b]
    metrics["alpha"] = alpha
    return {name: x.detach() for name, x in metrics.items()}


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
    def step(self, loss: Tensor) -> None:
        """Moves θ down the gradient of the loss."""
        gradient = torch.cat([x.flatten() for x in torch.autograd.grad(loss, self.theta)])  # (d,)
        self.steps += 1
        self.mean.lerp_(gradient, 1 - 0.9)  # β₁ = 0.9
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)  # β₂ = 0.999
        root = (self.square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)  # ε
        change = self.mean / root
        change *= self.learning_rate / (1 - 0.9**self.steps)
        parts = zip(self.theta, change.split(self.sizes))
        torch._foreach_sub_(self.theta, [part.view_as(x) for x, part in parts])


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
