"""Soft Actor-Critic (SAC); Haarnoja et al. 2018, with the temperature of Haarnoja et al. 2018b.

Changed from td3.py: a squashed Gaussian replaces μ, its noises and μ'; −α log π in the target; the
policy minimises α log π − min Q_i instead of −Q_1; the temperature α; no delay.

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
    [AC-11a]   min(Q_w1', Q_w2')
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
X-LOGP divides the Gaussian's density by da/du = 1 − tanh²u: the change of variables from u to a.
[AC-12a] in the text has neither the γ^t of [CS-3a] nor parentheses around r + αH.
The entropy of a density can be negative, and so is its target H̄.

Not in the text [impl]
    uniformly random actions before learning_starts                     Haarnoja 2018, code
    256-256 ReLU units                                                  Haarnoja 2018, appendix D
    Adam: policy 3e-4, critics and temperature 1e-3 (the papers: 3e-4)  CleanRL
    log σ clamped to [−5, 2]                                            CleanRL, there by a tanh
    step 7 moves log α, so that α stays positive                        Haarnoja 2018b, code
    actions and H̄ in units of half the action range                     Haarnoja 2018b
    bootstrap from V(s') at time limits                                 Pardo 2018

Run: python sac.py --env-id HalfCheetah-v4 --total-timesteps 200000
    24 to 69 minutes with --compile; return 6,581 ± 1,239 (3 seeds)
"""

import copy
import json
import math
import os
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
    total_timesteps: int = 1_000_000  # environment steps; 0 with --resume only evaluates
    seed: int = 1  # seed of the weights, the actions and the environment
    # Algorithm
    q_lr: float = 1e-3  # learning rate of the critics' and the temperature's Adam
    policy_lr: float = 3e-4  # learning rate of the policy's Adam
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
    cuda: bool = False  # use the GPU; networks this small are usually faster on one CPU core
    num_threads: int = 1  # PyTorch's CPU threads
    track: bool = False  # also log to Weights & Biases, set up by WANDB_PROJECT, WANDB_MODE, ...
    capture_video: bool = False  # record the evaluation episodes as MP4 files
    eval_episodes: int = 10  # episodes of the deterministic evaluation at the end
    save_every: float = 60.0  # seconds between checkpoints, saved at ends of episodes or rollouts
    resume: Path | None = None  # continue the run in this folder; flags given override its own


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────
def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 256 ReLU units, PyTorch's default initialisation [impl]."""
    layers = [nn.Linear(inputs, 256), nn.Linear(256, 256), nn.Linear(256, outputs)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


class Actor(nn.Module):
    """π_θ(a|s), a squashed Gaussian, in units of half the action range: a in [−1, 1] [impl]."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        bounded = isinstance(action_space, gym.spaces.Box) and action_space.is_bounded()
        if not bounded or action_space.dtype.kind != "f":
            raise gym.error.Error(f"tanh needs a float Box with finite bounds, not {action_space}")
        self.space = action_space
        self.net = mlp(*observation_space.shape, 2 * action_space.low.size)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs (..., O) → μ and log σ, both (..., A), of the Gaussian before squashing."""
        mean, log_std = self.net(obs).chunk(2, -1)
        return mean, log_std.clamp(-5, 2)

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs (..., O) → actions (..., A) and log π (...,); gradients flow through both."""
        mean, log_std = self(obs)
        unsquashed = mean + log_std.exp() * torch.randn_like(mean)  # u [CS-2.1a]
        return torch.tanh(unsquashed), squashed_log_prob(unsquashed, mean, log_std)  # [AC-12c]

    def to_env(self, action: Tensor) -> np.ndarray:
        """Actions (..., A) in [−1, 1] → the action that env.step expects."""
        action = action.numpy(force=True).reshape(action.shape[:-1] + self.space.shape)
        low, high = self.space.low, self.space.high
        return ((low + high) / 2 + (high - low) / 2 * action).clip(low, high)

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """obs (..., O) → the action without noise, as env.step expects it."""
        return torch.as_tensor(self.to_env(torch.tanh(self(obs)[0])))


class Critic(nn.Module):
    """Q_w(s, a)."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        self.net = mlp(observation_space.shape[0] + action_space.low.size, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """obs (..., O) and actions (..., A) in [−1, 1] → values (...,)."""
        return self.net(torch.cat((obs, action), -1)).squeeze(-1)


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


class Adam(nn.Module):
    """Adam (Kingma 2015) on a flat vector (d,); torch.optim's would split the compiled graph."""

    def __init__(self, parameters, learning_rate: float) -> None:
        super().__init__()
        self.theta = tuple(parameters)
        self.sizes = [x.numel() for x in self.theta]
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
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)  # β₂
        change = self.mean / (self.square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)  # ε
        change *= self.learning_rate / (1 - 0.9**self.steps)
        parts = zip(self.theta, change.split(self.sizes))
        torch._foreach_sub_(self.theta, [part.view_as(x) for x, part in parts])


def compiled(update, cuda: bool):
    """The function as one graph, which draws the same random numbers as the function itself."""
    torch._dynamo.config.trace_autograd_ops = True  # else torch.autograd.grad splits the graph
    options = {"triton.cudagraphs": True} if cuda else {"cpp_wrapper": True}  # less overhead a call
    return torch.compile(update, options=options | {"fallback_random": True})


# ── Replay buffer ─────────────────────────────────────────────────────────────────────────────────
class ReplayBuffer:
    """FIFO store, uniform sample  [X-REPLAY]; one array per field, in main memory."""

    def __init__(self, size: int, obs_size: int, action_size: int, device: torch.device) -> None:
        shapes = (size, obs_size), (size, action_size), (size,), (size, obs_size)
        self.arrays = [np.empty(shape, np.float32) for shape in shapes] + [np.empty(size, bool)]
        self.size, self.device, self.filled, self.next = size, device, 0, 0

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
        self.next, self.filled = state["next"], len(state["rows"][0])
        for array, rows in zip(self.arrays, state["rows"], strict=True):
            array[: self.filled] = rows.numpy()


# ── Algorithm ─────────────────────────────────────────────────────────────────────────────────────
def train(args: Args) -> Path:
    """Trains, saves and evaluates; returns the run's folder."""
    if args.learning_starts >= args.total_timesteps > 0:
        raise gym.error.Error("learning_starts must be less than total_timesteps")
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    torch.set_float32_matmul_precision(args.matmul_precision)
    device = torch.device("cuda" if args.cuda else "cpu")
    env = make_env(args.env_id)
    env.reset(seed=10**6 * args.seed)  # once; later resets draw from env's generator
    spaces = env.observation_space, env.action_space

    # 1. Initialise the policy θ, the critics w1, w2, their targets w1' = w1, w2' = w2, and α.
    actor, critics = Actor(*spaces), nn.ModuleList([Critic(*spaces), Critic(*spaces)])
    log_alpha = nn.ParameterList([torch.tensor(args.alpha).log()])
    adam = nn.ModuleDict(dict(actor=Adam(actor.parameters(), args.policy_lr)))
    adam["critics"] = Adam(critics.parameters(), args.q_lr)
    adam["alpha"] = Adam(log_alpha, args.q_lr)
    networks = dict(actor=actor, critics=critics, target_critics=copy.deepcopy(critics))
    networks = nn.ModuleDict(networks | dict(log_alpha=log_alpha, adam=adam)).to(device)
    action_size = env.action_space.low.size
    buffer = ReplayBuffer(args.buffer_size, *spaces[0].shape, action_size, device)

    run = Run(args, env, **networks, buffer=buffer)
    steps_5_to_8 = compiled(update, args.cuda) if args.compile else update
    done, losses = True, []
    for step in range(run.step + 1, args.total_timesteps + 1):
        if done:
            obs, _ = env.reset()  # (O,)
            first_step = step

        # 2. Act with a ∼ π_θ(·|s); [impl] uniformly random actions at first.
        with torch.inference_mode():
            if step <= args.learning_starts:
                action = 2 * torch.rand(action_size) - 1  # (A,)
            else:
                action, _ = actor.sample(torch.as_tensor(obs, device=device))  # (A,)
        next_obs, reward, terminated, truncated, info = env.step(actor.to_env(action))

        # 3. Store s, a, r, s', and whether s' is terminal, in the replay buffer.
        # next_obs is the true successor, even when the env has just been reset.
        buffer.add(obs, action.numpy(force=True), reward, next_obs, terminated)
        obs, done = next_obs, terminated or truncated

        # 4. Sample a batch of transitions from the buffer, for steps 5 to 8.
        if step > args.learning_starts:
            batch = buffer.sample(args.batch_size)
            losses.append(steps_5_to_8(args, batch, **networks).clone())

        run.bar.update()
        if done:
            episode = info["statistics"]
            run.log("episodes", step, episode_return=episode["r"], length=episode["l"])
        # A run resumed at the end of an episode is the same run; inside one, a new one starts.
        if done or step == args.total_timesteps or (step - first_step) % 10_000 == 9_999:
            if losses:
                names = "q_loss", "q_value", "policy_loss", "entropy", "alpha"
                run.log("updates", step, **dict(zip(names, torch.stack(losses).mean(0))))
                losses = []
            run.save(step)
    return run.finish(max(run.step, args.total_timesteps), actor)  # run.step if only evaluated


def update(args, batch, actor, critics, target_critics, log_alpha, adam) -> Tensor:
    """Steps 5 to 8 with a batch (B, ...); returns what is logged."""
    observations, actions, rewards, next_observations, terminations = batch

    # 5. Critics: one step down (Q_w1(s, a) − y)² + (Q_w2(s, a) − y)².
    # The target is a constant: no gradient flows through it.
    with torch.no_grad():
        alpha = log_alpha[0].exp() if args.autotune else rewards.new_tensor(args.alpha)
        next_actions, next_log_probs = actor.sample(next_observations)  # (B, A), (B,)
        next_q = [q(next_observations, next_actions) for q in target_critics]  # (B,) each
        target_q = td_target(rewards, *next_q, next_log_probs, terminations, args.gamma, alpha)
    q1, q2 = (q(observations, actions) for q in critics)  # (B,)
    critic_loss = ((q1 - target_q) ** 2 + (q2 - target_q) ** 2).mean()  # [CS-10d]
    adam["critics"].step(critic_loss)

    # 6. Policy: one step down α log π_θ(a|s) − min_i Q_wi(s, a), with a new a ∼ π_θ(·|s).
    new_actions, log_probs = actor.sample(observations)  # (B, A), (B,)
    new_q1, new_q2 = (q(observations, new_actions) for q in critics)  # (B,)
    policy_loss = soft_policy_loss(log_probs, new_q1, new_q2, alpha)
    adam["actor"].step(policy_loss)

    # 7. Temperature: one step of α down J(α), with the same log π.
    if args.autotune:
        target_entropy = -actions.shape[-1]  # H̄
        alpha_loss = temperature_loss(log_alpha[0].exp(), log_probs.detach(), target_entropy)
        adam["alpha"].step(alpha_loss)

    # 8. Targets: w1', w2' move towards w1, w2 at the rate τ.
    polyak_update(critics, target_critics, args.tau)
    entropy = -log_probs.mean()  # [AC-12b]
    return torch.stack((critic_loss, q1.mean(), policy_loss, entropy, alpha)).detach()


# ── Plumbing: the same text in every script ───────────────────────────────────────────────────────
def make_env(env_id: str, video_folder: Path | None = None) -> gym.Env:
    """One environment with flat float32 observations; it records its episodes in video_folder."""
    env = gym.make(env_id, **({"render_mode": "rgb_array"} if video_folder else {}))
    if not env.observation_space.is_np_flattenable:
        raise gym.error.Error(f"cannot flatten the observations: {env.observation_space}")
    if video_folder:
        env.reset(), env.render()  # fail now, not after training, where this is impossible
        env = gym.wrappers.RecordVideo(env, str(video_folder), episode_trigger=lambda _: True)
    env = gym.wrappers.TimeLimit(env, 100_000)  # for an environment that has no limit of its own
    env = gym.wrappers.TransformReward(env, lambda reward: float(np.asarray(reward).item()))
    env = gym.wrappers.RecordEpisodeStatistics(env, stats_key="statistics")
    return gym.wrappers.TransformObservation(gym.wrappers.FlattenObservation(env), np.float32, None)


def evaluate(actor: nn.Module, env: gym.Env, episodes: int, seed: int) -> list[float]:
    """The returns of some episodes with the actor's deterministic actions."""
    returns, device = [], next(actor.parameters()).device
    for episode in tqdm(range(episodes), "evaluation", leave=False, disable=None):
        (obs, _), done = env.reset(seed=None if episode else seed), False
        while not done:
            action = actor.mode(torch.as_tensor(obs, device=device)).numpy()[()]  # 0-d → number
            obs, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
        returns.append(float(info["statistics"]["r"]))
    env.close()  # completes the last video
    return returns


class Run:
    """A run's folder: args.json, episodes.csv, updates.csv, checkpoint.pt, summary.json.

    A kill costs `save_every` seconds and the present episode or rollout: checkpoint.pt is replaced
    as a whole, and --resume cuts the CSV files back to their sizes then. It holds `state` and the
    random generators of PyTorch and, if given, of `env`: then, on the CPU, a run that is resumed at
    the end of an episode is the same run.
    """

    def __init__(self, args: Args, env: gym.Env | None = None, **state) -> None:
        self.args, self.env, self.state, self.wandb = args, env, state, None
        self.step, self.returns = 0, deque(maxlen=100)
        self.start = self.saved_at = time.time()
        script = Path(__file__).stem
        name = f"{args.env_id}__{script}__{args.seed}__{time.time_ns()}"
        self.folder = args.resume or Path("runs", name.replace("/", "-").replace(":", "-"))
        self.eval_env = make_env(args.env_id, args.capture_video and self.folder / "videos")
        if args.resume:
            checkpoint = torch.load(self.folder / "checkpoint.pt", "cpu", weights_only=True)
            for part, saved in checkpoint["state"].items():
                state[part].load_state_dict(saved)
            torch.set_rng_state(checkpoint["random"])
            if env:
                env.unwrapped.np_random.bit_generator.state = checkpoint["env_random"]
            self.step, self.start = checkpoint["step"], time.time() - checkpoint["seconds"]
            self.returns.extend(checkpoint["returns"])
            if self.step < args.total_timesteps:  # else: evaluation only
                for name in ("episodes.csv", "updates.csv"):
                    open(self.folder / name, "a").truncate(checkpoint["csv_sizes"].get(name, 0))
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.save(0, now=True)
        if self.step < args.total_timesteps:  # else: evaluation only
            content = {"script": script, "args": asdict(args) | {"resume": None}}
            content["versions"] = {x.__name__: x.__version__ for x in (torch, gym, np)}
            (self.folder / "args.json").write_text(json.dumps(content, indent=2))
        if args.track and self.step < args.total_timesteps:
            import wandb

            names = dict(id=self.folder.resolve().name, dir=self.folder, resume="allow")
            self.wandb = wandb.init(config=asdict(args), **names)
            self.wandb.define_metric("*", step_metric="step")
        print(f"{script}.py on {args.env_id}, seed {args.seed}, saved in {self.folder}")
        total = max(args.total_timesteps, self.step)
        self.bar = tqdm(total=total, initial=self.step, unit_scale=True, mininterval=1)
        Run.current = self  # for the error message at the end of this file

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
            self.bar.set_postfix_str(f"return {np.mean(self.returns):,.1f}", refresh=False)
        self.bar.update(min(step, self.bar.total) - self.bar.n)

    def save(self, step: int, now: bool = False) -> None:
        """Replaces checkpoint.pt if it is more than `save_every` seconds old, or `now`."""
        if not now and time.time() - self.saved_at < self.args.save_every:
            return
        checkpoint = dict(step=step, seconds=time.time() - self.start, returns=[*self.returns])
        checkpoint["state"] = {name: part.state_dict() for name, part in self.state.items()}
        checkpoint["csv_sizes"] = {x.name: x.stat().st_size for x in self.folder.glob("*.csv")}
        checkpoint["random"] = torch.get_rng_state()
        checkpoint["env_random"] = self.env and self.env.unwrapped.np_random.bit_generator.state
        try:
            torch.save(checkpoint, self.folder / "checkpoint.tmp")
        except RuntimeError as error:  # what torch.save raises where the disk is full
            raise OSError(f"cannot write a checkpoint to {self.folder}; disk full?") from error
        os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")
        self.saved_at = time.time()

    def finish(self, step: int, actor: nn.Module) -> Path:
        """Saves and evaluates; writes and prints the summary; returns the run's folder."""
        self.bar.close()
        if step > self.step:
            self.save(step, now=True)
        summary = {"step": step, "seconds": round(time.time() - self.start, 3)}
        seed = 10**6 * self.args.seed + 999_999  # a seed that training does not use
        returns = evaluate(actor, self.eval_env, self.args.eval_episodes, seed)
        means = dict(training_return=self.returns, evaluation_return=returns)
        summary |= {name: float(np.mean(values)) for name, values in means.items() if values}
        print(", ".join(f"{name} {round(x, 1):,}" for name, x in summary.items()))
        if self.args.total_timesteps > 0:  # else: evaluation only, which keeps training's summary
            content = summary | {"evaluation_returns": returns}
            (self.folder / "summary.json").write_text(json.dumps(content, indent=2))
        if self.wandb:
            self.wandb.summary.update(summary)
            self.wandb.finish()
        return self.folder


if __name__ == "__main__":
    sys.path.append("")  # finds module:Id in the current folder as well
    args = tyro.cli(Args, description=__doc__.split("\n")[0])
    try:
        if args.resume:  # the run's own arguments become the defaults
            stored = json.loads((args.resume / "args.json").read_text())
            if stored["script"] != Path(__file__).stem:
                raise gym.error.Error(f"{args.resume} is a run of {stored['script']}.py")
            args = tyro.cli(Args, default=Args(**stored["args"]))
        train(args)
    except BaseException as error:  # its message is to be the last line on the screen
        if run := getattr(Run, "current", None):
            run.bar.close()
            print(f"To continue from the last checkpoint: --resume {run.folder}")
        users = KeyboardInterrupt, gym.error.Error, FloatingPointError, OSError, ImportError
        if isinstance(error, users):
            sys.exit(f"{type(error).__name__}: {error}".rstrip(": "))
        raise  # with a traceback, because it may be a bug
