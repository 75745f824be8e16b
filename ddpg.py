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
The theorem averages over the states that μ_θ visits (the text's ρ^μ); the
buffer's states replace them.

Not in the text [impl]
    25,000 uniformly random actions first (paper: 1,000 or 10,000)      Fujimoto 2018, later code
    256-256 ReLU units, Adam and noise as in TD3, so that td3.py differs in its three ideas only.
        Lillicrap: 400-300 with batch normalisation, weight decay, Ornstein-Uhlenbeck noise, and
        --policy-lr 1e-4 --tau 0.001 --batch-size 64
    actions, and so the noise, in units of half the action range        noise: Fujimoto 2018, code
    bootstrap from V(s') at time limits                                 Pardo 2018

Run: python ddpg.py --env-id HalfCheetah-v4 --total-timesteps 200000
    14 to 33 minutes with --compile; return 6,520 ± 639 (3 seeds; see benchmarks.md)
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
from tqdm import tqdm


# ── Arguments ─────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Args:
    env_id: str = "HalfCheetah-v4"  # Gymnasium id, or module:id
    total_timesteps: int = 1_000_000  # environment steps; 0 with --resume only evaluates
    seed: int = 1  # seed of the weights, the actions and the environment
    # Algorithm
    q_lr: float = 1e-3  # learning rate of the critic's Adam
    policy_lr: float = 1e-3  # learning rate of the policy's Adam
    buffer_size: int = 1_000_000  # transitions that the replay buffer holds [X-REPLAY]
    gamma: float = 0.99  # γ, discount factor [CS-3a]
    tau: float = 0.005  # τ, averaging rate of the target networks [X-POLYAK]
    batch_size: int = 256  # B, transitions per update
    learning_starts: int = 25_000  # steps with uniformly random actions before the first update
    exploration_noise: float = 0.1  # std of the noise, in units of half the action range [AC-10b]
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
    """μ_θ(s), in units of half the action range: a in [−1, 1] [impl]."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        bounded = isinstance(action_space, gym.spaces.Box) and action_space.is_bounded()
        if not bounded or action_space.dtype.kind != "f":
            raise gym.error.Error(f"tanh needs a float Box with finite bounds, not {action_space}")
        self.space = action_space
        self.net = mlp(*observation_space.shape, action_space.low.size)

    def forward(self, obs: Tensor) -> Tensor:
        """obs (..., O) → actions (..., A) in [−1, 1]."""
        return torch.tanh(self.net(obs))

    def to_env(self, action: Tensor) -> np.ndarray:
        """Actions (..., A) in [−1, 1] → the action that env.step expects."""
        action = action.numpy(force=True).reshape(action.shape[:-1] + self.space.shape)
        low, high = self.space.low, self.space.high
        return ((low + high) / 2 + (high - low) / 2 * action).clip(low, high)

    @torch.no_grad()
    def mode(self, obs: Tensor) -> Tensor:
        """obs (..., O) → the action without noise, as env.step expects it."""
        return torch.as_tensor(self.to_env(self(obs)))


class Critic(nn.Module):
    """Q_w(s, a)."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        self.net = mlp(observation_space.shape[0] + action_space.low.size, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """obs (..., O) and actions (..., A) in [−1, 1] → values (...,)."""
        return self.net(torch.cat((obs, action), -1)).squeeze(-1)


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

    # 1. Initialise the policy θ, the critic w, and their targets θ' = θ, w' = w.
    actor, critic = Actor(*spaces), Critic(*spaces)
    adam = nn.ModuleDict(dict(actor=Adam(actor.parameters(), args.policy_lr)))
    adam["critic"] = Adam(critic.parameters(), args.q_lr)
    networks = dict(actor=actor, critic=critic, adam=adam)
    networks |= dict(target_actor=copy.deepcopy(actor), target_critic=copy.deepcopy(critic))
    networks = nn.ModuleDict(networks).to(device)
    action_size = env.action_space.low.size
    buffer = ReplayBuffer(args.buffer_size, *spaces[0].shape, action_size, device)

    run = Run(args, env, **networks, buffer=buffer)
    steps_5_to_7 = compiled(update, args.cuda) if args.compile else update
    done, losses = True, []
    for step in range(run.step + 1, args.total_timesteps + 1):
        if done:
            obs, _ = env.reset()  # (O,)
            first_step = step

        # 2. Act with a = μ_θ(s) + noise; [impl] uniformly random actions at first.
        with torch.inference_mode():
            if step <= args.learning_starts:
                action = 2 * torch.rand(action_size) - 1  # (A,)
            else:
                action = actor(torch.as_tensor(obs, device=device))  # (A,)
                noise = args.exploration_noise * torch.randn_like(action)
                action = (action + noise).clamp(-1, 1)  # [AC-10b]
        next_obs, reward, terminated, truncated, info = env.step(actor.to_env(action))

        # 3. Store s, a, r, s', and whether s' is terminal, in the replay buffer.
        # next_obs is the true successor, even when the env has just been reset.
        buffer.add(obs, action.numpy(force=True), reward, next_obs, terminated)
        obs, done = next_obs, terminated or truncated

        # 4. Sample a batch of transitions from the buffer, for steps 5 to 7.
        if step > args.learning_starts:
            batch = buffer.sample(args.batch_size)
            losses.append(steps_5_to_7(args, batch, **networks).clone())

        run.bar.update()
        if done:
            episode = info["statistics"]
            run.log("episodes", step, episode_return=episode["r"], length=episode["l"])
        # A run resumed at the end of an episode is the same run; inside one, a new one starts.
        if done or step == args.total_timesteps or (step - first_step) % 10_000 == 9_999:
            if losses:
                names = "q_loss", "q_value", "policy_loss"
                run.log("updates", step, **dict(zip(names, torch.stack(losses).mean(0))))
                losses = []
            run.save(step)
    return run.finish(max(run.step, args.total_timesteps), actor)  # run.step if only evaluated


def update(args, batch, actor, critic, target_actor, target_critic, adam) -> Tensor:
    """Steps 5 to 7 with a batch (B, ...); returns what is logged."""
    observations, actions, rewards, next_observations, terminations = batch

    # 5. Critic: one step down (Q_w(s, a) − y)².
    # The target is a constant: no gradient flows through it.
    with torch.no_grad():
        next_actions = target_actor(next_observations)  # (B, A)
        next_q = target_critic(next_observations, next_actions)  # (B,)
        target_q = td_target(rewards, next_q, terminations, args.gamma)  # (B,)
    q_values = critic(observations, actions)  # (B,)
    critic_loss = ((q_values - target_q) ** 2).mean()  # [CS-10d]
    adam["critic"].step(critic_loss)

    # 6. Policy: one step up Q_w(s, μ_θ(s)).
    policy_loss = deterministic_policy_loss(actor, critic, observations)
    adam["actor"].step(policy_loss)

    # 7. Targets: θ', w' move towards θ, w at the rate τ.
    polyak_update(critic, target_critic, args.tau)
    polyak_update(actor, target_actor, args.tau)
    return torch.stack((critic_loss, q_values.mean(), policy_loss)).detach()


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
