"""REINFORCE with a learned baseline, also called the vanilla policy gradient; Williams 1992.

Changed from reinforce.py: a Critic, whose value is subtracted from the returns; it is fitted after
the policy's step. norm_returns is now called norm_adv.

Idea
    What counts is not whether an episode went well, but whether it went better than expected from
    that state. A second network V_w learns what to expect, and is subtracted from the return. The
    gradient stays the same in expectation, and much of its noise is gone.

Equations, in the order of the code
    [CS-3a]    J(θ) = E_τ[Σ_t γ^t r_t]   the objective, to be maximised
    [CS-5.1]   J = E[V(s₀)]   with V^π(s) = Σ_a π(a|s) Q^π(s,a)
    [AC-02b]   a ∼ N(μ_θ(s), σ²I)   for Box actions; here σ is a vector, the same in all states
    [AC-02a]   π_θ(a|s) = softmax(f_θ(s))_a   for discrete actions
    [CS-6a]    G_t = Σ_{k=t..T} γ^{k−t} r_k
    [CS-5.4a]  ∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]
    [CS-9e]    b(s_t) = V^π(s_t)   V_w is fitted to whole returns G_t; in a2c.py it bootstraps
    [CS-9f]    A = Q − V ≈ G_t − V(s_t)
    [CS-9a]    ĝ_t = ∇log π (G_t − b(s_t))
    [CS-9g]    ∇J = E[∇log π A]
    [CS-4a]    θ ← θ + α ∇J(θ)   here by a step of Adam
    [X-VF]     L_VF = (V_w(s_t) − V_t^target)²   with V_t^target = G_t

Why the baseline adds no bias
    [CS-9b]    E_a[∇log π(a|s) b(s)] = 0   as b(s) Σ_a π ∇log π = b(s) ∇Σ_a π = b(s) ∇1 = 0
    This holds only if b(s) does not depend on the action, so V_w is evaluated before its fit.

Algorithm [CS-6alg]: as in reinforce.py (also on γ^t, batch_size); line 8 is new
    1. initialise the policy θ and the critic w
    2. for each episode:
    3.     sample a trajectory τ by following π_θ
    4.     for each of its steps t:
    5.         the return G_t
    6.         the gradient estimate ĝ_t, with the weight G_t − b(s_t)
    7.     θ ← θ + α Σ_t ĝ_t
    8.     fit V_w to the returns, by steps of Adam down L_VF

Not in the text [impl]
    [impl 1] observations standardised by running statistics, clipped to ±10  Andrychowicz 2021, 3.3
    [impl 2] orthogonal weights; last layer × 0.01, critic's × 0 (ours)    Andrychowicz 2021, 3.2
    [impl 3] initial σ = e^−0.5, in units of half the action range         tianshou, examples/mujoco
    [impl 4] values standardised by running statistics, L_VF in their unit  PopArt, van Hasselt 2016
    [impl 5] several episodes, batch_size steps or more, before step 7     Duan 2016
    [impl 6] weights G − b standardised over the batch; see reinforce.py   Spinning Up, vpg
    [impl 7] an episode that a time limit truncates counts as terminated

Run: python reinforce_baseline.py --env-id HalfCheetah-v4
    evaluated 1,778 ± 923 after 1,000,000 steps (5 seeds, see benchmarks.md)
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
from torch.distributions import Categorical, Distribution, Independent, Normal
from tqdm import tqdm


# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Args:
    env_id: str = "HalfCheetah-v4"  # Gymnasium id, or module:id
    total_timesteps: int = 1_000_000  # environment steps in total; with --resume, 0 only evaluates
    seed: int = 1  # seed of the weights, the actions and the environments
    # Algorithm
    learning_rate: float = 2e-3  # α, learning rate of Adam [CS-4a]
    batch_size: int = 2048  # play whole episodes until they have this many steps, then update
    gamma: float = 0.99  # γ, discount factor [CS-3a]
    norm_adv: bool = True  # standardise the weights G − b of each batch
    critic_learning_rate: float = 1e-3  # learning rate of the critic's Adam
    critic_epochs: int = 10  # epochs over each batch in the critic's fit [CS-9e]
    critic_batch_size: int = 64  # steps in each minibatch of that fit
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
def discounted_returns(rewards, gamma) -> Tensor:
    """G_t = Σ_{k=t..T} γ^{k−t} r_k  [CS-6a], by G_t = r_t + γ G_{t+1}; one episode, (T,) → (T,)."""
    returns = rewards.numpy(force=True).astype(np.float32)  # a copy; NumPy is faster in this loop
    for t in reversed(range(len(returns) - 1)):
        returns[t] += gamma * returns[t + 1]  # [CS-6a]
    return torch.as_tensor(returns, device=rewards.device)


def policy_gradient_loss(log_probs, weights) -> Tensor:
    """∇J = E_{s∼d, a∼π}[∇log π_θ(a|s) Q^π(s,a)]  [CS-5.4a]

    Both (B,) → scalar, whose gradient estimates −∇J but for γ^t and a factor; weights: Q or A.
    """
    assert log_probs.shape == weights.shape
    # Ascent on the objective = descent on its negative.
    return -(log_probs * weights).mean()  # [CS-5.4a]


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────
def play_episode(env: gym.Env, actor: Actor) -> tuple:
    """One episode: observations (T, O), actions (T, ...), rewards (T,), and its statistics."""
    device = next(actor.parameters()).device
    steps, done = [], False
    obs, _ = env.reset()
    while not done:
        with torch.inference_mode():
            action = actor(torch.as_tensor(obs, device=device)).sample()
        next_obs, reward, terminated, truncated, info = env.step(actor.to_env(action))
        steps.append((obs, action.numpy(force=True), np.float32(reward)))
        obs = next_obs
        done = terminated or truncated
    arrays = (torch.as_tensor(np.stack(x), device=device) for x in zip(*steps))
    return *arrays, info.pop("_episode")


def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder."""
    device = set_up(args, args.cuda)
    env = make_env(args.env_id)
    env.reset(seed=10**6 * args.seed)  # once; later resets draw from env's generator

    # 1. Initialise the policy θ and the critic w.
    actor = Actor(env.observation_space, env.action_space).to(device)
    critic = Critic(env.observation_space).to(device)
    optimizer = torch.optim.Adam(actor.parameters(), args.learning_rate)
    critic_optimizer = torch.optim.Adam(critic.parameters(), args.critic_learning_rate, fused=True)

    run = Run(
        args,
        [env],
        actor=actor,
        critic=critic,
        optimizer=optimizer,
        critic_optimizer=critic_optimizer,
    )
    optimizer.param_groups[0]["lr"] = args.learning_rate  # not the checkpoint's
    critic_optimizer.param_groups[0]["lr"] = args.critic_learning_rate
    step = run.step
    while step < args.total_timesteps:
        # 2. For each episode; [impl 5] several of them before step 7.
        episodes, first_step = [], step
        while step - first_step < args.batch_size:
            # 3. Sample a trajectory τ by following π_θ.
            observations, actions, rewards, episode = play_episode(env, actor)
            step += len(rewards)
            run.log("episodes", step, episode_return=episode["r"], length=episode["l"])

            # 4. For each of its steps t:
            # 5. the return G_t. [impl 7] After a time limit it counts no further rewards.
            returns = discounted_returns(rewards, args.gamma)  # (T,)
            episodes.append((observations, actions, returns))

        # 6. The gradient estimate ĝ_t, for the B steps of all episodes at once.
        observations, actions, returns = map(torch.cat, zip(*episodes))  # (B, ...)
        with torch.no_grad():  # the baseline is a constant: no gradient flows through it
            baseline = critic(observations)  # (B,) [CS-9e]
        weights = returns - baseline  # [CS-9f]
        variance = returns.var(correction=0)
        explained_variance = 1 - weights.var(correction=0) / variance.clamp(min=1e-20)
        if args.norm_adv and len(weights) > 1:  # the std of a single number is NaN
            weights = (weights - weights.mean()) / (weights.std() + 1e-8)  # [impl 6]
        dist = actor(observations)
        loss = policy_gradient_loss(dist.log_prob(actions), weights)  # [CS-9a] [CS-9g]
        loss = loss * len(weights) / args.batch_size  # the sum over the steps / batch_size

        # 7. θ ← θ + α Σ_t ĝ_t.
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # [CS-4a]

        # 8. Fit V_w to the returns, by steps of Adam down L_VF. [impl 1] [impl 4] First update all
        # running statistics: the actor has taken its step, and the fit adapts to the new scale.
        actor.obs_norm.update(observations)
        critic.obs_norm.update(observations)
        critic.update_return_norm(returns)
        critic_losses = []
        for _ in range(args.critic_epochs):
            order = torch.randperm(len(returns), device=device)
            for rows in order.split(args.critic_batch_size):
                value_errors = (critic(observations[rows]) - returns[rows]) / critic.return_norm.std
                critic_loss = (value_errors**2).mean()  # [X-VF]
                critic_optimizer.zero_grad()
                critic_loss.backward()
                critic_optimizer.step()
                critic_losses.append(critic_loss.detach())
        metrics = {"policy_loss": loss, "entropy": dist.entropy().mean()}
        metrics["value_loss"] = torch.stack(critic_losses).mean()
        metrics["explained_variance"] = explained_variance
        run.log("updates", step, **{name: x.detach() for name, x in metrics.items()})
        run.save(step)
    return run.finish(step, actor)


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
