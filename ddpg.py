"""Deep Deterministic Policy Gradient (DDPG); Lillicrap et al. 2015.

Idea
    If the policy is a function a = μ_θ(s) and not a distribution, its gradient needs no expectation
    over actions: it follows the slope of Q_w(s, a) in the action, times the slope of the action in
    θ. It does not matter who chose the action of a transition, so a replay buffer lets the policy
    reuse old transitions many times. Noise on the action explores.

Equations, in the order of the code
    [CS-3a]    J(θ) = E_τ[Σ_t γ^t r_t]   the objective, to be maximised
    [X-Q]      y = r + γ (1 − terminated) Q'(s', μ'(s'))
    [AC-10a]   ∇J(μ_θ) = E_s[∇_θ μ_θ(s) ∇_a Q(s,a)|_{a=μ_θ(s)}]
    [X-POLYAK] w' ← τ w + (1−τ) w'
    [X-REPLAY] FIFO store, uniform sample
    [AC-10b]   a = μ_θ(s) + noise   while collecting
    [CS-10d]   L_critic = δ_t²   here (Q_w(s, a) − y)²

Algorithm
    1. initialise the policy θ, the critic w, and their targets θ' = θ, w' = w
    2. act with a = μ_θ(s) + noise
    3. store s, a, r, s', and whether s' is terminal, in the replay buffer
    4. sample a batch of transitions from the buffer
    5. critic: one step down (Q_w(s, a) − y)²
    6. policy: one step up Q_w(s, μ_θ(s))
    7. targets: θ', w' move towards θ, w at the rate τ; go to 2
Why targets: y contains Q. With Q_w itself, each step of w would also move y, and errors could grow.
The theorem averages over the states that μ_θ visits (the text's ρ^μ). The buffer's states, which
older policies visited, replace them.

Not in the text [impl]
    [impl 1] the first 25,000 actions are random (Lillicrap: none)         Fujimoto 2018, later code
    [impl 2] 256-256 ReLU units, Adam and noise as in td3.py, so that only its
        three ideas differ. Lillicrap: 400-300 with batch normalisation, weight decay and
        Ornstein-Uhlenbeck noise, and --policy-lr 1e-4 --tau 0.001 --batch-size 64
    [impl 3] actions, and so the noise, in units of half the action range  Fujimoto 2018, code
    [impl 4] bootstrap from V(s') at time limits                           Pardo 2018

Run: python ddpg.py --env-id HalfCheetah-v4
    evaluated 10,044 after 1,000,000 steps (1 seed, see benchmarks.md)
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
from tqdm import tqdm


# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Args:
    env_id: str = "HalfCheetah-v4"  # Gymnasium id, or module:id
    total_timesteps: int = 1_000_000  # environment steps in total; with --resume, 0 only evaluates
    seed: int = 1  # seed of the weights, the actions and the environments
    # Algorithm
    q_lr: float = 1e-3  # learning rate of the critic's Adam
    policy_lr: float = 3e-4  # learning rate of the policy's Adam
    buffer_size: int = 1_000_000  # transitions that the replay buffer holds [X-REPLAY]
    gamma: float = 0.99  # γ, discount factor [CS-3a]
    tau: float = 0.005  # τ, averaging rate of the target networks [X-POLYAK]
    batch_size: int = 256  # B, transitions per update
    learning_starts: int = 25_000  # steps with uniformly random actions before the first update
    exploration_noise: float = 0.1  # std of the noise, in units of half the action range [AC-10b]
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
    """μ_θ(s), in units of half the action range: a in [−1, 1] [impl 3]."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        is_box = isinstance(action_space, gym.spaces.Box) and action_space.dtype.kind == "f"
        if not is_box or not np.isfinite(action_space.high - action_space.low).all():
            raise gym.error.Error(f"tanh needs a float Box with finite bounds, not {action_space}")
        self.space = action_space
        self.net = mlp(observation_space.shape[0], action_space.low.size)

    def forward(self, obs: Tensor) -> Tensor:
        """obs (..., O) → actions (..., A) in [−1, 1]."""
        return torch.tanh(self.net(obs))

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
        return self.to_env(self(obs))


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
def td_target(rewards, next_q, terminations, gamma) -> Tensor:
    """y = r + γ (1 − terminated) Q'(s', μ'(s'))  [X-Q]; all (B,) → (B,)."""
    assert rewards.shape == next_q.shape == terminations.shape
    # V(s') = 0 only if terminated; a time limit still bootstraps.
    return rewards + gamma * ~terminations * next_q  # [X-Q]


def deterministic_policy_loss(actor: Actor, critic: Critic, observations) -> Tensor:
    """∇J(μ_θ) = E_s[∇_θ μ_θ(s) ∇_a Q(s,a)|_{a=μ_θ(s)}]  [AC-10a]

    observations (B, O) → scalar, to be minimised over θ; autograd applies the chain rule.
    """
    # Ascent on the objective = descent on its negative.
    return -critic(observations, actor(observations)).mean()  # [AC-10a]


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

    # 1. Initialise the policy θ, the critic w, and their targets θ' = θ, w' = w.
    actor = Actor(*spaces).to(device)
    critic = Critic(*spaces).to(device)
    networks = {
        "actor": actor,
        "critic": critic,
        "target_actor": copy.deepcopy(actor),
        "target_critic": copy.deepcopy(critic),
        "actor_adam": Adam(actor.parameters(), args.policy_lr).to(device),
        "critic_adam": Adam(critic.parameters(), args.q_lr).to(device),
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

        # 2. Act with a = μ_θ(s) + noise; [impl 1] uniformly random actions at first.
        with torch.inference_mode():
            if step <= args.learning_starts:
                action = 2 * torch.rand(action_size) - 1  # (A,)
            else:
                action = actor(torch.as_tensor(obs, device=device))  # (A,)
                noise = args.exploration_noise * torch.randn_like(action)
                action = (action + noise).clamp(-1, 1)  # [AC-10b]
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
    args, batch, actor, critic, target_actor, target_critic, actor_adam, critic_adam
) -> dict[str, Tensor]:
    """Steps 5 to 7 with a batch (B, ...); returns the metrics."""
    observations, actions, rewards, next_observations, terminations = batch

    # 5. Critic: one step down (Q_w(s, a) − y)².
    # The target is a constant: no gradient flows through it.
    with torch.no_grad():
        next_actions = target_actor(next_observations)  # (B, A)
        next_q = target_critic(next_observations, next_actions)  # (B,)
        target_q = td_target(rewards, next_q, terminations, args.gamma)  # (B,)
    q_values = critic(observations, actions)  # (B,)
    critic_loss = ((q_values - target_q) ** 2).mean()  # [CS-10d]
    critic_adam.step(critic_loss)

    # 6. Policy: one step up Q_w(s, μ_θ(s)).
    policy_loss = deterministic_policy_loss(actor, critic, observations)
    actor_adam.step(policy_loss)

    # 7. Targets: θ', w' move towards θ, w at the rate τ.
    polyak_update(critic, target_critic, args.tau)
    polyak_update(actor, target_actor, args.tau)
    metrics = {"q_loss": critic_loss, "q_value": q_values.mean(), "policy_loss": policy_loss}
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
